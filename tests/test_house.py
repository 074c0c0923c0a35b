"""The rules of the house, as tests: what tools demand, how modules look, what imports what.

Tools that are not installed skip their test here and fail it where CI is set.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from support.requirements import require_program
from uvfio.cli.main import VERBS

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src"
MODULES = sorted((SOURCE / "uvfio").rglob("*.py"))
WRITTEN = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "Makefile", "pyproject.toml", ".ci")
FOLDERS = ("src", "tests", "examples", "bench", "include", "docs")
PYTHON = [
    name for name in ("src", "tests", "examples", "bench") if any(ROOT.glob(f"{name}/**/*.py"))
]

LONGEST = 600
LARGEST_FOLDER = 16
# What `uvfio run` may load before the program starts. Lines of code are counted: to split a module is free, and so are
# docstrings and comments, which cost next to nothing in a .pyc. The standard library's own imports differ between
# versions: the last number is that of 3.14 and later.
STARTUP_STANDARD_MODULES = {(3, 11): 64, (3, 12): 65, (3, 13): 64}.get(sys.version_info[:2], 69)
STARTUP_LINES = 17_700
STARTUP_FORBIDDEN = (
    "uvfio.core.events",  # data classes, which only an observer needs
    *("argparse", "asyncio", "concurrent", "difflib", "email", "hypothesis", "importlib.metadata"),
    *("json", "logging", "msgspec", "multiprocessing", "numpy", "rich", "subprocess", "tomllib"),
    # what only a machine with platform devices needs
    *("uvfio.drivers.platform", "uvfio.kit.platform.model", "uvfio.kit.platform.region"),
    *("uvfio.machine.device_tree", "uvfio.machine.platform", "uvfio.fops.rfc2011.device_tree"),
)

MIRRORED = ("uapi", "core", "drivers", "fops", "kit", "models", "machine")
TESTED_ELSEWHERE = {  # modules without a test module of their own name, and what tests them or why nothing does
    "core/bus": "protocols and an enum; tests/unit/drivers/pci/test_irqset.py",
    "core/structure/base": "tests/unit/core/structure/test_framework.py",
    "drivers/pci/hardware": "protocols and an enum; tests/support/pci_function.py is one",
    "drivers/pci/decoding": "tests/unit/fops/mainline/test_device.py",
    "drivers/pci/ioevents": "tests/unit/fops/mainline/test_device.py",
    "drivers/pci/mainline": "tests/unit/fops/mainline/test_device.py",
    "drivers/platform/driver": "tests/unit/drivers/platform/test_device.py",
    "drivers/platform/hardware": "protocols; tests/support/platform_device.py is one",
    "drivers/platform/interrupts": "tests/unit/drivers/platform/test_device.py",
    "machine/platform": "tests/unit/machine/test_device_tree.py",
    "machine/sysfs/platform": "tests/unit/machine/test_device_tree.py",
    "fops/group": "tests/unit/fops/test_either.py",
    "fops/mainline/feature": "tests/unit/fops/mainline/test_device.py",
    "fops/mainline/type1": "tests/unit/fops/mainline/test_container.py",
    "fops/rfc2011/file": "tests/unit/fops/rfc2011/test_group.py",
    "kit/description": "tests/unit/kit/test_register.py, where its names are to be imported from",
    "models/kit": "an alias; tests/unit/models/test_catalogue.py",
    "models/bar": "an alias; tests/unit/models/test_catalogue.py",
    "models/pci": "an alias; tests/unit/models/test_catalogue.py",
    "models/register": "an alias; tests/unit/models/test_catalogue.py",
    "models/platform": "an alias; tests/unit/models/test_catalogue.py",
    "uapi/linux": "tests/abi/test_seccomp_abi.py",
    "uapi/vfio_feature": "tests/unit/uapi/test_vfio.py",
}


def run(*command: str, **options: object) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.fail(f"{' '.join(command)}\n{done.stdout}{done.stderr}", pytrace=False)


def isolated(code: str, *, site: bool) -> str:
    """What ``code`` prints in a fresh interpreter; without ``site`` there is the standard library alone."""
    flags = ["-I"] if site else ["-I", "-S"]
    code = f"import sys; sys.path.insert(0, {str(SOURCE)!r})\n{code}"
    done = subprocess.run(
        [sys.executable, *flags, "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def name_of(module: Path) -> str:
    parts = module.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def lines_of_code(text: str) -> int:
    """Lines but for docstrings, comments and empty ones."""
    prose = {
        line
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    lines = enumerate(map(str.strip, text.splitlines()), 1)
    return sum(bool(line) and not line.startswith("#") and at not in prose for at, line in lines)


# -- tools -------------------------------------------------------------------------------------------


def test_format() -> None:
    run(require_program("ruff"), "format", "--check", *PYTHON)


def test_rules() -> None:
    run(require_program("ruff"), "check", *PYTHON)


def test_types() -> None:
    run(require_program("mypy"), *PYTHON)


def test_imports_flow_one_way() -> None:
    run(require_program("lint-imports"))


# -- modules -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", MODULES, ids=name_of)
def test_module(module: Path) -> None:
    text = module.read_text()
    lines = len(text.splitlines())
    assert lines <= LONGEST, f"{lines} lines: split it"
    assert ast.get_docstring(ast.parse(text)), "a module says what it is"
    unfinished = re.search(r"\b(TODO|FIXME|XXX|NotImplementedError)\b", text)
    assert unfinished is None, f"unfinished: {unfinished}"


def test_folders_are_rooms() -> None:
    """A folder that needs more modules needs sub-folders; a module is named for what it is."""
    for folder in {module.parent for module in MODULES}:
        modules = [path.name for path in folder.glob("*.py") if path.name != "__init__.py"]
        assert len(modules) <= LARGEST_FOLDER, f"{folder}: {sorted(modules)}"
    relative = [name for module in MODULES for name in name_of(module).split(".")]
    assert not {"modern", "legacy"} & set(relative)


@pytest.mark.parametrize("module", MODULES, ids=name_of)
def test_words(module: Path) -> None:
    """The mainline ABIs are called that; "legacy" is the name of an interface in the specification of virtio."""
    words = r"\b(today|modern|legacy)('s)?\b"
    if name_of(module).startswith(("uvfio.models.virtio", "uvfio.uapi")):
        words = r"\b(today|modern)('s)?\b"
    found = re.search(words, module.read_text(), re.IGNORECASE)
    assert found is None, found


def test_libraries_are_loaded_in_one_folder() -> None:
    """What Python's standard library lacks of Linux is in ``doors/run/linux``."""
    loading = [name_of(path) for path in MODULES if re.search(r"\bCDLL\b", path.read_text())]
    assert all(name.startswith("uvfio.doors.run.linux.") for name in loading), loading


def test_tests_mirror_the_source() -> None:
    """Each module of these layers has a test module of its own name, or a reason that is still true."""
    source, tests = SOURCE / "uvfio", ROOT / "tests"
    paths = [path for layer in MIRRORED for path in (source / layer).rglob("*.py")]
    modules = {path.relative_to(source).with_suffix("").as_posix() for path in paths}
    modules = {module for module in modules if not module.endswith("__init__")}
    bare = {
        module
        for module in modules
        if not (tests / "unit" / module).with_name(f"test_{Path(module).name}.py").is_file()
    }
    assert bare - TESTED_ELSEWHERE.keys() == set(), "write them a test"
    assert TESTED_ELSEWHERE.keys() - bare == set(), "these have one by now, or are gone"
    for module, reason in TESTED_ELSEWHERE.items():
        for path in re.findall(r"tests/[\w/]+\.py", reason):
            assert (ROOT / path).is_file(), f"{module}: {path}"


def test_all_lists_what_exists_once() -> None:
    for module in MODULES:
        for node in ast.parse(module.read_text()).body:
            match node:
                case ast.Assign(targets=[ast.Name("__all__")], value=ast.List(elts=elements)):
                    names = [ast.literal_eval(element) for element in elements]
                    assert len(names) == len(set(names)), module


def test_nothing_refers_to_where_it_was_written() -> None:
    """Paths of one computer, and folders beside this one, mean nothing to who clones it."""
    elsewhere = re.compile(r"(?<![\w.$~})-])/" + r"work/|\.\./" + r"shared\b|/home/(?!me\b)\w+/")
    files = [ROOT / name for name in WRITTEN if (ROOT / name).is_file()]
    for folder in (*FOLDERS, ".ci"):
        files += [path for path in (ROOT / folder).rglob("*") if path.is_file()]
    for path in files:
        if "__pycache__" in path.parts:
            continue
        found = elsewhere.findall(path.read_bytes().decode("utf-8", "replace"))
        assert not found, f"{path.relative_to(ROOT)}: {found}"


# -- imports -----------------------------------------------------------------------------------------


def test_everything_but_the_command_needs_the_standard_library_alone() -> None:
    names = [name_of(module) for module in MODULES]
    ours = [name for name in names if not name.startswith(("uvfio.cli", "uvfio.__main__"))]
    code = f"import importlib\nfor name in {ours!r}: importlib.import_module(name)\n"
    isolated(code + "assert not {'msgspec', 'rich'} & set(sys.modules)", site=False)


def test_importing_the_package_imports_nothing_else() -> None:
    code = "import uvfio; print([m for m in sys.modules if m.startswith('uvfio.')])"
    assert isolated(code, site=False) == "[]\n"


def test_what_stands_between_run_and_the_program() -> None:
    """Counted, not timed: a shared computer has no reliable milliseconds."""
    code = """
before = set(sys.modules)
import uvfio.doors.run.supervisor as supervisor
from uvfio.cli.main import main
from uvfio.machine.machine import Machine
supervisor.run = lambda spec, *rest, **options: Machine(spec) and 0
assert main(["run", "--status-fd", "1", "-d", "edu", "--", "true"]) == 0
print(*sorted(set(sys.modules) - before))
"""
    loaded = isolated(code, site=True).split()
    wrong = [name for name in loaded if name.startswith(STARTUP_FORBIDDEN)]
    assert not wrong
    foreign = [name for name in loaded if not name.startswith("uvfio")]
    assert len(foreign) <= STARTUP_STANDARD_MODULES, foreign
    lines = {
        name_of(module): lines_of_code(module.read_text())
        for module in MODULES
        if name_of(module) in loaded
    }
    assert sum(lines.values()) <= STARTUP_LINES, lines


def test_every_verb_is_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    missing = [verb for verb in VERBS if f"uvfio {verb}" not in readme]
    assert not missing or len(readme) < 100, missing


# -- what the tests leave --------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", ["0", "2"])
def test_the_tests_leave_nothing_in_the_temporary_folder(workers: str, tmp_path: Path) -> None:
    """Neither tests that write files nor those that compile programs."""
    names = ("tests/unit/cli/test_machinefile.py", "tests/e2e/test_mapped_registers.py")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-n", workers, "-p", "no:cacheprovider", *names],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert list(tmp_path.iterdir()) == []


def test_what_failed_tests_wrote_stays(tmp_path: Path) -> None:
    failing = tmp_path / "test_failing.py"
    failing.write_text("def test_it(tmp_path):\n    (tmp_path / 'a').touch()\n    assert False\n")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider"),
            *("-c", str(ROOT / "pyproject.toml"), "-p", "conftest", str(failing)),
        ],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(scratch), "PYTHONPATH": str(ROOT / "tests")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stdout
    (kept,) = scratch.iterdir()
    assert f"what the tests wrote is in {kept}" in done.stdout
    assert [path.name for path in kept.rglob("a")] == ["a"]
