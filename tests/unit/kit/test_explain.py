"""What is said of a hook, a timer or a reset that fails: file, line, register, and what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.author import Author
from support.model_world import power_on
from uvfio.errors import ModelMistake
from uvfio.kit.explain import mistaken, place
from uvfio.kit.pci.model import PciModel


@pytest.fixture
def author(tmp_path: Path) -> Author:
    return Author(tmp_path / "mine.py")


# -- running -----------------------------------------------------------------------------------------------

RUNNING = """\
class M(PciModel):
  vendor_id, device_id = 1, 2
  regs = RegisterBar(0, Regs)
  broken = 0
  @Regs.status.on_read
  def give(self): pass
  @Regs.status.on_write
  def misspell(self, value): self.regs.lenght = 3
  @Regs.length.on_write
  def widen(self, value):
    self.regs.status = [1 << 40, "2", None, 1.5, -(1 << 40)][value]
  @Regs.array.on_store
  def keep(self, index, old, new):
    if index: sys.exit(0)
  def on_reset(self):
    if self.broken: raise KeyError(3)
  def later(self): self.nothing
"""


@pytest.mark.parametrize(
    ("access", "line", "says"),
    [
        ((0x0, None), 5, "M.give, on_read of register status, returned None instead of a whole"),
        ((0x0, 1), 8, "AttributeError: Regs has no register 'lenght', did you mean 'length'?"),
        ((0x4, 0), 11, "0x10000000000 is wider than register status, which has 4 bytes"),
        ((0x4, 1), 11, "register status takes a whole number, not '2'"),
        ((0x4, 2), 11, "register status takes a whole number, not None"),
        ((0x4, 3), 11, "register status takes a whole number, not 1.5"),
        ((0x4, 4), 11, "is wider than register status"),
        ((0x10, 1), 12, "M.keep, on_store of register array[0], returned None instead of a whole"),
        ((0x14, 1), 14, "register array[1]: M.keep, on_store of it, failed: SystemExit: 0"),
    ],
)
def test_a_hook_that_fails(
    author: Author, access: tuple[int, int | None], line: int, says: str
) -> None:
    world = author.model(RUNNING)
    offset, value = access
    with pytest.raises(ModelMistake) as error:
        world.read(offset) if value is None else world.write(offset, value)
    assert str(error.value).startswith(f"{author.line(line)}{world.model.name}: ")
    assert says in str(error.value)
    assert error.value.hint
    assert error.value.__cause__ is not None


OWN = """\
class Odd(BaseException): pass
class M(PciModel):
  vendor_id, device_id = 1, 2
  regs = RegisterBar(0, Regs)
  broken = 0
  @Regs.length.on_write
  def fail(self, *value): raise Odd
  def on_reset(self):
    if self.broken: raise Odd
"""


def test_an_exception_class_of_the_author_is_a_mistake_too(author: Author) -> None:
    world = author.model(OWN)
    model = world.model
    with pytest.raises(ModelMistake, match="M.fail, on_write of it, failed: Odd"):
        world.write(0x4, 1)
    model.after(1.0, model.fail)  # type: ignore[attr-defined]
    with pytest.raises(ModelMistake, match=r"M.fail, called by after\(\), failed: Odd") as error:
        world.clock.advance(1.0)
    assert "must not end the process" in error.value.hint
    model.broken = 1  # type: ignore[attr-defined]
    with pytest.raises(ModelMistake, match="on_reset failed: Odd"):
        model.reset()


def test_a_timer_and_a_reset_that_fail(author: Author) -> None:
    world = author.model(RUNNING)
    model = world.model
    model.after(1.0, model.later)  # type: ignore[attr-defined]
    with pytest.raises(ModelMistake) as error:
        world.clock.advance(1.0)
    assert str(error.value).startswith(f"{author.line(17)}{model.name}: M.later, called by after()")
    model.broken = 1  # type: ignore[attr-defined]
    model.regs.length = 5  # type: ignore[attr-defined]
    with pytest.raises(ModelMistake, match=r"on_reset failed: KeyError: 3") as error:
        model.reset()
    assert str(error.value).startswith(author.line(16))
    assert model.regs.length == 0  # type: ignore[attr-defined]


def test_sums_and_counters_wrap(author: Author) -> None:
    regs = author.model(RUNNING).model.regs  # type: ignore[attr-defined]
    regs.length = 0xFFFF_FFFF
    regs.length += 1
    assert regs.length == 0
    regs.length -= 1
    assert regs.length == 0xFFFF_FFFF
    regs.array[1] = ~5
    assert regs.array[1] == 0xFFFF_FFFA
    regs.length = True
    assert regs.length == 1
    with pytest.raises(ValueError, match="wider than register array"):
        regs.array[0] = 1 << 33


def test_a_map_has_the_attributes_that_its_class_declares(author: Author) -> None:
    body = """\
    class Own(RegisterMap):
      x = Register(0)
      count = 0
      later: int
    class M(PciModel):
      vendor_id, device_id = 1, 2
      regs = RegisterBar(0, Own)
    """
    regs = author.model(body).model.regs  # type: ignore[attr-defined]
    regs.count, regs.later = 1, 2
    with pytest.raises(AttributeError, match="^Own has no register 'y': an attribute of its own"):
        regs.y = 1


def test_one_message_for_a_mistake_that_was_explained() -> None:
    error = ModelMistake("said", "hint")
    assert mistaken(power_on(Plain).model, "again", error) is error
    assert place(error) == ""


class Plain(PciModel):
    vendor_id, device_id = 1, 2
