"""Names in docstrings, comments and documentation exist: a rename that forgets its prose fails here.

Three kinds of names are checked:

- paths of Python files (``core/irq.py``): relative to the package, or to the file's own folder or one above it;
- dotted names below ``uvfio``: a module, or a name in one;
- names in double backticks (in documents: in backticks) that can only be ours: ``Class.attribute`` of a class in src,
  ``_private`` names, and words in CamelCase or with an underscore.

A name exists if it is an identifier somewhere in the code of src. What else may stand there (names of C, of the kernel,
of programs) is listed in ELSEWHERE.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src"
PACKAGE = SOURCE / "uvfio"
MODULES = sorted(PACKAGE.rglob("*.py"))
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]

PATH = re.compile(r"(?<![\w/.-])((?:\w+/)*\w+\.py)\b(?!:)")
DOTTED = re.compile(r"\buvfio(?:\.\w+)+")
QUOTED = re.compile(r"``([^`\n]+)``")
ATTRIBUTE = re.compile(r"([A-Z]\w*)\.(\w+)(?:\(.*\))?")
WORD = re.compile(r"_?[a-z]\w*_\w+|_[a-z]\w*|[A-Z][a-z0-9]+(?:[A-Z]\w*)")

ELSEWHERE = {  # names of the kernel, of C headers, of programs and of examples
    *("dmabuf_id", "in_data_type", "vring_init"),
    "VfClass",
    *("device_add", "msi_irqs"),
}


def prose_of(module: Path) -> Iterator[tuple[int, str]]:
    """(line, text) of every docstring and comment."""
    text = module.read_text()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node, clean=False)
            if docstring:
                yield node.body[0].lineno, docstring
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


@cache
def identifiers() -> frozenset[str]:
    """Every identifier of the code, and every word of its strings that could be one."""
    found: set[str] = set()
    for module in [*MODULES, *(ROOT / "tests").rglob("*.py"), *(ROOT / "examples").glob("*.py")]:
        if PACKAGE not in module.parents and module.name.startswith("test_"):
            continue
        tree = ast.parse(module.read_text())
        docstrings = {
            id(node.body[0].value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
            and node.body
            and isinstance(node.body[0], ast.Expr)
        }
        for node in ast.walk(tree):
            match node:
                case ast.Name(id=name) | ast.arg(arg=name) | ast.Attribute(attr=name):
                    found.add(name)
                case (
                    ast.FunctionDef(name=name)
                    | ast.ClassDef(name=name)
                    | ast.keyword(arg=str(name))
                ):
                    found.add(name)
                case ast.alias(name=name):
                    found.update(name.split("."))
                case ast.Constant(value=str(text)) if id(node) not in docstrings:
                    found.update(re.findall(r"\w+", text))
    return frozenset(found)


@cache
def files_of_source() -> frozenset[str]:
    """The names of Python files that a module may mention without a folder."""
    files = [*MODULES, *(ROOT / "tests").rglob("*.py"), *(ROOT / "examples").glob("*.py")]
    return frozenset(
        {path.name for path in files} | {"path.py"}
    )  # path.py:Class, as users write it


@cache
def members() -> dict[str, set[str]]:
    """What is in each class of src, by the class's name: its own names and those of its bases."""
    own: dict[str, set[str]] = {}
    bases: dict[str, set[str]] = {}
    for module in MODULES:
        for node in ast.walk(ast.parse(module.read_text())):
            if isinstance(node, ast.ClassDef):
                names = own.setdefault(node.name, set())
                bases.setdefault(node.name, set()).update(
                    base.id for base in node.bases if isinstance(base, ast.Name)
                )
                for inner in ast.walk(node):
                    match inner:
                        case ast.FunctionDef(name=name) | ast.Name(id=name, ctx=ast.Store()):
                            names.add(name)
                        case ast.Attribute(value=ast.Name("self"), attr=name):
                            names.add(name)
                        case ast.Constant(value=str(name)):
                            names.add(name)  # __slots__
    for _ in range(4):
        for name, above in bases.items():
            for base in above:
                own[name] |= own.get(base, set())
    return own


def path_exists(path: str, folder: Path) -> bool:
    places = (folder, *folder.parents, ROOT / "tests", PACKAGE)
    return any((place / path).is_file() for place in places)


def dotted_exists(name: str) -> bool:
    parts = name.split(".")
    place = SOURCE
    for at, part in enumerate(parts):
        if (place / part).is_dir():
            place /= part
            continue
        module = place / f"{part}.py"
        if not module.is_file():
            module = place / "__init__.py"
            return part in module.read_text() or part.startswith("__")
        return all(re.search(rf"\b{rest}\b", module.read_text()) for rest in parts[at + 1 :])
    return True


def missing_in(text: str, folder: Path, quoted: re.Pattern[str]) -> Iterator[str]:
    for path in PATH.findall(text):
        known = path_exists(path, folder) if "/" in path else path in files_of_source()
        if not known and ("/" in path or folder.is_relative_to(PACKAGE)):
            yield path
    for name in DOTTED.findall(text):
        if not dotted_exists(name.rstrip(".")):
            yield name
    for name in quoted.findall(text):
        attribute = ATTRIBUTE.fullmatch(name)
        if attribute and attribute[1] in members():
            if attribute[2] not in members()[attribute[1]]:
                yield name
        elif WORD.fullmatch(name) and name not in identifiers() and name not in ELSEWHERE:
            yield name


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_names_in_docstrings_and_comments_exist(module: Path) -> None:
    missing = {
        f"{line}: {name}"
        for line, text in prose_of(module)
        for name in missing_in(text, module.parent, QUOTED)
    }
    assert not missing, sorted(missing)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_names_in_documents_exist(document: Path) -> None:
    text = re.sub(r"^```.*?^```", "", document.read_text(), flags=re.MULTILINE | re.DOTALL)
    missing = set(missing_in(text, document.parent, re.compile(r"`([^`\n]+)`")))
    assert not missing, sorted(missing)
