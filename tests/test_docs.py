"""The documentation, as tests: links lead somewhere, commands do what is shown, tables are complete.

Comments in the text tell what to do with the fenced block that follows::

    <!-- file: NAME -->     the block is the text of this file
    <!-- insert: NAME -->   the block goes in front of the line "/* more */" of this file
    <!-- run --> or <!-- run: 1 -->     its commands are run, must end with this status, and print these lines

    <!-- background -->     its command is started, must print these lines, and goes on until the document is done;
                            then its standard input ends, and it must end with status 0

A document's blocks are done in order, in a folder of its own. Numbers of threads and addresses of programs count
as equal, and a line "..." stands for any lines. Every ``uvfio`` command line must parse, run or not.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from support.requirements import require, require_program
from support.uvfio_cli import run_uvfio
from uvfio import kit
from uvfio.cli import ctl, machinefile
from uvfio.cli import run as cli_run
from uvfio.cli.main import VERBS
from uvfio.cli.usage import machine_spec
from uvfio.doors.run.launch.check import probe_all
from uvfio.kit import platform

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
DOCS = sorted((ROOT / "docs").rglob("*.md"))
TEXTS = [README, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *DOCS]
CLI = ROOT / "docs/reference/cli.md"
OPTION = re.compile(r"(?<![\w-])--?[a-z][a-z-]*")


def name_of(text: Path) -> str:
    return str(text.relative_to(ROOT))


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, the comment in front of it, and where it is."""

    language: str
    text: str
    order: str
    line: int

    @property
    def commands(self) -> list[tuple[str, list[str]]]:
        """Each line after ``$ `` with the output that is shown for it."""
        found: list[tuple[str, list[str]]] = []
        for line in self.text.splitlines():
            if line.startswith("$ "):
                found.append((line[2:], []))
            elif found:
                found[-1][1].append(line)
        return found


def blocks(text: Path) -> Iterator[Block]:
    order, lines = "", iter(enumerate(text.read_text().splitlines(keepends=True), 1))
    for number, line in lines:
        comment = re.fullmatch(r"<!-- (.*) -->\n", line)
        if comment:
            order = comment[1]
        elif line.startswith("```"):
            inner = []
            for _, inside in lines:
                if inside.startswith("```"):
                    break
                inner.append(inside)
            yield Block(line[3:].strip(), "".join(inner), order, number)
            order = ""


# -- links -------------------------------------------------------------------------------------------


def anchors(text: Path) -> set[str]:
    """The names that headings get."""
    found = set()
    for heading in re.findall(r"^#+ (.*)$", text.read_text(), re.MULTILINE):
        plain = re.sub(r"[^\w\- ]", "", heading.lower())
        found.add(plain.replace(" ", "-"))
    return found


@pytest.mark.parametrize("text", TEXTS, ids=name_of)
def test_links(text: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", text.read_text()):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        there = (text.parent / path).resolve() if path else text
        assert there.exists(), f"{target}: there is no such file"
        assert there.is_relative_to(ROOT), f"{target} leads out of the project"
        if anchor:
            assert anchor in anchors(there), f"{target}: there is no such heading"


def test_the_index_leads_to_every_document() -> None:
    index = ROOT / "docs/index.md"
    linked = {
        (index.parent / t).resolve() for t in re.findall(r"\]\(([^)#\s]+)", index.read_text())
    }
    assert not [name_of(text) for text in DOCS if text not in linked and text != index]


# -- commands ----------------------------------------------------------------------------------------


def uvfio_commands(text: Path) -> Iterator[list[str]]:
    """The words of every command ``uvfio ...`` in console blocks."""
    for block in blocks(text):
        if block.language == "console":
            for command, _ in block.commands:
                lexer = shlex.shlex(command, posix=True, punctuation_chars=True)
                lexer.whitespace_split = True
                words: list[str] = []
                for word in [*lexer, ";"]:
                    if word in (";", "&&", "||", "|", ">", "<"):
                        if words[:1] == ["uvfio"] and len(words) > 1:
                            yield words[1:]
                        words = []
                    else:
                        words.append(word)


@pytest.mark.parametrize("text", [README, *DOCS], ids=name_of)
def test_commands_parse(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for words in uvfio_commands(text):
        verb, *rest = words
        assert verb in VERBS, words
        if verb == "run":
            options = cli_run.parse(rest)
            assert options.program, words
            machine_spec(None, options.device)
        elif verb == "ctl":
            ctl._parser().parse_args(rest)
        else:
            with pytest.raises(SystemExit) as done:  # the parser is inside the verb
                main_help(verb, rest)
            assert done.value.code == 0, words


def main_help(verb: str, words: list[str]) -> None:
    """Let the verb's own parser read the words, and stop it with the usage."""
    from uvfio.cli.main import _verb

    _verb(verb)([*words, "--help"])


@pytest.fixture(scope="module")
def runnable() -> None:
    missing = [probe.name for probe in probe_all() if probe.required and not probe.ok]
    require(not missing, f"programs cannot be run here: {', '.join(missing)}")


def ready(tmp_path: Path) -> dict[str, str]:
    """A folder to follow a document in, and the environment for it."""
    work = tmp_path / "work"
    work.mkdir()
    for name in ("examples", "include"):
        (work / name).symlink_to(ROOT / name)
    (work / "mydevice.py").write_text((ROOT / "examples/adder.py").read_text())
    (work / "driver.py").write_text((ROOT / "examples/adder_driver.py").read_text())
    programs = tmp_path / "bin"
    programs.mkdir()
    uvfio = programs / "uvfio"
    uvfio.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m uvfio "$@"\n')
    uvfio.chmod(0o755)
    python = programs / "python3"  # no link: a virtual environment is found by the path
    python.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    python.chmod(0o755)
    return {
        **os.environ,
        "PATH": f"{programs}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT / "src"),
        "PYTHONDONTWRITEBYTECODE": "1",
        "UVFIO_PCI_IDS": os.devnull,
    }


def same(line: str) -> str:
    """The line without what differs from run to run."""
    line = re.sub(r"^\d+ (?=\w+\()", "TID ", line.rstrip())
    line = re.sub(r"0x7f[0-9a-f]{6,}", "ADDRESS", line)
    line = re.sub(r"\bpid \d+", "pid PID", line)
    return re.sub(r'"pid": \d+', '"pid": PID', line)


@pytest.mark.parametrize(
    "text",
    [text for text in (README, *DOCS) if any(b.order.startswith("run") for b in blocks(text))],
    ids=name_of,
)
@pytest.mark.usefixtures("runnable")
def test_what_is_shown_happens(text: Path, tmp_path: Path) -> None:
    env = ready(tmp_path)
    work = tmp_path / "work"
    with ExitStack() as background:
        for block in blocks(text):
            where = f"{name_of(text)}:{block.line}"
            if block.order == "background":
                for command, shown in block.commands:
                    background.enter_context(going_on(command, shown, work, env, where))
            else:
                done(text, block, work, env, where)


def done(text: Path, block: Block, work: Path, env: dict[str, str], where: str) -> None:
    """Do what the comment in front of the block says."""
    kind, _, rest = block.order.partition(": ")
    if kind == "file":
        (work / rest).write_text(block.text)
    elif kind == "insert":
        before, mark, after = (work / rest).read_text().partition("\t/* more */\n")
        assert mark, f"{where}: {rest} has no place to insert at"
        (work / rest).write_text(f"{before}\n{block.text}{mark}{after}")
    elif kind == "run":
        for command, shown in block.commands:
            follow(command, shown, int(rest or 0), work, env, where)


@contextmanager
def going_on(
    command: str, shown: list[str], work: Path, env: dict[str, str], where: str
) -> Iterator[None]:
    """The command runs, and has printed what is shown."""
    with subprocess.Popen(
        ["sh", "-c", f"exec {command}"],
        cwd=work,
        env=env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            for line in shown:
                assert same(process.stdout.readline()) == same(line), f"{where}: {command}"
            yield
        finally:
            process.stdin.close()
            status = process.wait(60)
    assert status == 0, f"{where}: {command} ended with status {status}"


def follow(
    command: str, shown: list[str], status: int, work: Path, env: dict[str, str], where: str
) -> None:
    if re.search(r"\bcc\b", command):
        require_program("cc")
    done = subprocess.run(
        ["sh", "-c", command], cwd=work, env=env, capture_output=True, text=True, check=False
    )
    printed = done.stdout + done.stderr
    assert done.returncode == status, f"{where}: {command}\n{printed}"
    have = {same(line) for line in printed.splitlines()}
    for line in shown:
        if line.strip() not in ("", "..."):
            assert same(line) in have, f"{where}: {command}\ndoes not print {line!r}\n{printed}"
    if shown and "..." not in shown:
        lines = len(printed.rstrip().splitlines())
        expected = len("\n".join(shown).rstrip().splitlines())
        assert lines == expected, f"{where}: {command}\nprints other lines as well\n{printed}"


# -- tables that must be complete --------------------------------------------------------------------


def sections(text: Path) -> dict[str, str]:
    """The parts of a reference by their second-level headings."""
    parts = re.split(r"^## (.*)\n", text.read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def options_of(verb: str, capsys: pytest.CaptureFixture[str]) -> set[str]:
    """The options that the program itself names."""
    if verb == "run":
        return {*cli_run.OPTIONS}
    if verb == "ctl":
        found: set[str] = set()
        for sub in ("plug", "unplug", "bind", "unbind", "status"):
            with pytest.raises(SystemExit):
                main_help("ctl", ["socket", sub])
            found |= set(OPTION.findall(capsys.readouterr().out))
        return found
    with pytest.raises(SystemExit):
        main_help(verb, [])
    rows = re.findall(r"^  (-.*)", capsys.readouterr().out, re.MULTILINE)
    return {option for row in rows for option in OPTION.findall(row)}


@pytest.mark.parametrize("verb", VERBS)
def test_the_reference_has_every_option(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    section = sections(CLI)[f"uvfio {verb}"]
    rows = re.findall(r"^\| (`-.*?) \|", section, re.MULTILINE)
    documented = {option for row in rows for option in OPTION.findall(row)}
    assert documented == options_of(verb, capsys)


def test_the_reference_has_no_verb_that_does_not_exist() -> None:
    headings = {name.removeprefix("uvfio ") for name in sections(CLI) if name.startswith("uvfio ")}
    assert headings == set(VERBS)


def machine_file_keys() -> set[str]:
    """The keys of all tables of a machine file."""
    kinds = [kind for kind in vars(machinefile).values() if isinstance(kind, type)]
    tables = [
        kind for kind in kinds if issubclass(kind, msgspec.Struct) and kind is not msgspec.Struct
    ]
    return {field.encode_name for kind in tables for field in msgspec.structs.fields(kind)}


def test_the_machine_file_reference_has_every_key() -> None:
    text = (ROOT / "docs/reference/machine-file.md").read_text()
    missing = [key for key in machine_file_keys() if not re.search(rf"[`\[]{key}[`\].]", text)]
    assert not missing


def test_the_example_machines_have_every_key() -> None:
    text = "".join(path.read_text() for path in (ROOT / "examples").glob("*.toml"))
    missing = [key for key in machine_file_keys() if not re.search(rf"\b{key}\b", text)]
    assert not missing


def test_the_python_reference_has_every_name_for_models() -> None:
    text = (ROOT / "docs/reference/python.md").read_text()
    assert not [name for name in [*kit.__all__, *platform.__all__] if f"`{name}" not in text]


def test_the_python_reference_has_every_condition() -> None:
    import uvfio.errors as errors

    text = (ROOT / "docs/reference/python.md").read_text()
    names = [
        name
        for name, found in vars(errors).items()
        if isinstance(found, type) and issubclass(found, errors.VfioError)
    ]
    assert not [name for name in names if f"`{name}`" not in text]


def test_the_trace_reference_has_every_event() -> None:
    text = (ROOT / "docs/reference/trace.md").read_text()
    for module in (ROOT / "src/uvfio").rglob("*.py"):
        for kind in re.findall(r'\bnotify\(\s*"([\w-]+)"', module.read_text()):
            assert f"`{kind}`" in text, kind


# -- examples ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["adder.py", "adder_driver.py"])
def test_the_readme_shows_the_example_as_it_is(name: str) -> None:
    shown = [block.text for block in blocks(README) if block.language == "python"]
    assert (ROOT / "examples" / name).read_text() in shown


def test_the_adder_is_a_model_of_twenty_lines() -> None:
    text = (ROOT / "examples/adder.py").read_text()
    assert len([line for line in text.splitlines() if line.strip()]) <= 20


@pytest.mark.usefixtures("runnable")
def test_the_adder_runs() -> None:
    device = f"{ROOT}/examples/adder.py:Adder"
    done = run_uvfio(
        "run", "-d", device, "--", sys.executable, str(ROOT / "examples/adder_driver.py")
    )
    assert done.ok().stdout == "2 + 40 = 42\n"


def test_the_local_door_example_runs() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples/local_door.py")],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "10! = 3628800" in done.stdout
    assert done.stdout.endswith("viable, owned by nobody\n")


@pytest.mark.usefixtures("runnable")
def test_the_example_machine_runs_a_program() -> None:
    done = run_uvfio("run", "-m", str(ROOT / "examples/machine.toml"), "--", "ls", "/dev/vfio")
    groups = ["0", "1", "2", "240", "241", "243", "244", "250"]  # nothing of 242 is VFIO's
    assert done.ok().stdout.split() == [*groups, "devices", "vfio"]


def test_every_python_block_compiles() -> None:
    for text in (README, *DOCS):
        for block in blocks(text):
            if block.language == "python":
                compile(block.text, f"{name_of(text)}:{block.line}", "exec")
