"""Mistakes of a model's author that are found when its file is imported, and when a device is made."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from support.author import Author
from uvfio.errors import ConfigError, InvalidArgument, ModelError
from uvfio.kit.option import Option
from uvfio.machine.machine import Machine
from uvfio.models import catalogue


@pytest.fixture
def author(tmp_path: Path) -> Author:
    return Author(tmp_path / "mine.py")


# -- import ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "line", "says", "hint"),
    [
        ("foo()", 1, "NameError: name 'foo' is not defined", ""),
        ("\nx = Register(0, acess='ro')", 2, "TypeError: ", "did you mean 'access'?"),
        ("x = Msi(1, wide=3)", 1, "TypeError: ", "it takes vectors, "),
        ("def f():\n  import no_such_module\nf()", 2, "ModuleNotFoundError: ", ""),
        ("x = (", 1, "SyntaxError: '(' was never closed", ""),
        ("sys.exit(0)", 1, "it calls sys.exit() when it is imported", "__main__"),
        ("raise GeneratorExit", 1, "GeneratorExit", ""),
        (
            "class E(Exception):\n  def __str__(self): raise KeyError(1)\nraise E",
            3,
            "E: its text raises KeyError",
            "",
        ),
        ("x = Option(int, 'abc', 'help')", 1, "Option(int, 'abc', ...): the default is no", ""),
        ("x = Register(3)\nclass R(RegisterMap):\n  a = x", 2, "ValueError: R.a: offset 0x3", ""),
        ("class M(PciModel):\n  a = RegisterBar(7, Regs)", 1, "ValueError: M.a: BAR must", ""),
    ],
)
def test_an_import_names_the_line(
    author: Author, body: str, line: int, says: str, hint: str
) -> None:
    spec = author.write(body)
    with pytest.raises(ModelError) as error:
        catalogue.find(spec)
    start = f"model {spec!r} cannot be loaded: {author.line(line)}"
    assert str(error.value).startswith(start)
    assert says.removesuffix("no") in str(error.value)
    assert hint in error.value.hint


def test_an_import_in_another_file_names_that_file(
    author: Author, monkeypatch: pytest.MonkeyPatch
) -> None:
    helper = author.file.with_name("helper_of_mine.py")
    helper.write_text("\n\nundefined\n")
    monkeypatch.syspath_prepend(author.file.parent)
    with pytest.raises(ModelError, match=f"{helper}:3: NameError"):
        catalogue.find(author.write("import helper_of_mine"))


@pytest.mark.parametrize(
    ("hook", "says"),
    [
        ("@Regs.status.on_read\n  def f(self, value): return 1", "(self)"),
        ("@Regs.status.on_write\n  def f(self): pass", "(self, value)"),
        ("@Regs.status.on_store\n  def f(self, value): pass", "(self, old, new)"),
        ("@Regs.array.on_write\n  def f(self, value): pass", "(self, index, value)"),
        ("@Regs.status.on_write\n  def f(self, value, *, more): pass", "(self, value)"),
        ("@Regs.status.on_write\n  async def f(self, value): pass", "no async, no yield"),
        ("@Regs.status.on_read\n  def f(self): yield 1", "no async, no yield"),
    ],
)
def test_a_hook_with_a_wrong_signature(author: Author, hook: str, says: str) -> None:
    with pytest.raises(ModelError) as error:
        catalogue.find(author.write(f"class M(PciModel):\n  {hook}"))
    assert f"{author.line(2)}M.f" in str(error.value)
    assert "of register" in str(error.value)
    assert says in str(error.value)


def test_hooks_that_can_be_called(author: Author) -> None:
    body = """\
    class Own(RegisterMap):
      x = Register(0)
      @x.on_read
      def f(self, more=1): return 2
    class M(PciModel):
      vendor_id, device_id = 1, 2
      regs = RegisterBar(0, Own)
      @Own.x.on_write
      def g(*args): pass
    """
    assert author.model(body).read(0) == 2


# -- making ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "line", "says", "hint"),
    [
        ("def __init__(self, *a, **k): self.x = 1", 3, "does not call super()", "on_reset()"),
        ("def __init__(self): super().__init__()", 3, "unexpected keyword", "on_reset()"),
        ("def __init__(self, *a, **k): self.regs.x", 3, "AttributeError", "on_reset()"),
        ("def on_reset(self):\n    self.x = 1 / 0", 4, "M.on_reset failed: ZeroDiv", "each reset"),
        ("def on_reset(self): sys.exit(0)", 3, "M.on_reset failed: SystemExit", "must not end"),
        (
            "def on_reset(self): raise type('Odd', (BaseException,), {})",
            3,
            "failed: Odd",
            "must not",
        ),
        (
            "def __init__(self, *a, **k): raise GeneratorExit",
            3,
            "failed: GeneratorExit",
            "must not",
        ),
        ("def on_reset(self): open('/none')", 3, "FileNotFoundError", "each reset"),
        ("regs = RegisterBar(0, Regs, size=5000)", 1, "M: BAR 0: size 0x1388", ""),
        ("regs = RegisterBar(0, Regs, size=16)", 1, "M: BAR 0: its registers need 0x18", ""),
        ("vendor_id = 0xFFFF", 1, "M declares no vendor_id", "set vendor_id"),
        ("a = MemoryBar(0, 4096)\n  b = RegisterBar(1, Regs)", 1, "needs BAR 1 too", ""),
        (
            "regs = RegisterBar(0, Regs)\n  capabilities = (MsiX(4, bar=0),)",
            1,
            "M: MsiX(4, bar=0): registers of regs are hidden by the table at 0x0-0x3f of BAR 0: status,",
            "",
        ),
        (
            "regs = RegisterBar(0, Regs)\n  capabilities = (MsiX(4, bar=0, table=0x40, pba=0x10),)",
            1,
            "by the pending bits at 0x10-0x17 of BAR 0: array[0], array[1]; give it another BAR, or table=",
            "",
        ),
    ],
)
def test_a_model_that_cannot_be_made(
    author: Author, body: str, line: int, says: str, hint: str
) -> None:
    spec = author.write(f"class M(PciModel):\n  vendor_id, device_id = 1, 2\n  {body}")
    machine = Machine(devices=[])
    for _ in range(2):
        with pytest.raises(ModelError) as error:
            machine.plug(spec)
        assert str(error.value).startswith(author.line(line))
        assert says in str(error.value)
        assert hint in error.value.hint
        assert machine.slots == ()
        assert list(machine.framework.groups) == []


def test_a_refusal_of_the_model_is_no_mistake(author: Author) -> None:
    spec = author.write(
        "class M(PciModel):\n  vendor_id, device_id = 1, 2\n"
        "  def on_reset(self): raise InvalidArgument('no cable')"
    )
    with pytest.raises(InvalidArgument, match="^no cable$"):
        Machine(devices=[spec])


def test_options_whose_default_does_not_fit() -> None:
    for kind, default in ((int, "abc"), (int, True), (bool, 1), (float, "1"), (str, 1)):
        with pytest.raises(TypeError, match=r"^Option\(\w+, .*: the default is not"):
            Option(kind, default, "help")
    with pytest.raises(TypeError, match="the type is bool, int, float or str"):
        Option(list, [], "help")  # type: ignore[type-var]
    with pytest.raises(ValueError, match="the default is odd"):
        Option(int, 3, "help", check=lambda number: "is odd" if number % 2 else "")
    assert Option(float, 1, "help").default == 1


def test_a_module_path_that_is_none() -> None:
    for spec in ("a\0b.py:M", "..:M", ":M", "\ud800.py:M", f"{'d' * 300}.py:M", "/:M"):
        with pytest.raises(ConfigError, match=re.escape(f"model {spec!r}")):
            catalogue.find(spec)
