"""What the end-to-end tests need: a machine on which programs can be run, and programs."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import pytest

from e2e import build
from support.requirements import require
from uvfio.doors.run.launch.check import probe_all

if TYPE_CHECKING:
    from collections.abc import Callable

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


class Programs(Protocol):
    def __call__(self, name: str, *, static: bool = False, m32: bool = False) -> str: ...


@cache
def obstacle() -> str:
    """Why no program can be run here; empty if they can."""
    for probe in probe_all():
        if probe.required and not probe.ok:
            return f"programs cannot be run here: {probe.name}: {probe.detail}"
    return ""


@pytest.fixture(autouse=True)
def _programs_can_be_run() -> None:
    require(not obstacle(), obstacle())


@pytest.fixture
def program() -> Programs:
    """``program("hold", static=True)`` is the path of a test program, or of an example's C file."""

    def path(name: str, *, static: bool = False, m32: bool = False) -> str:
        reason = build.missing(static=static, m32=m32)
        require(not reason, reason)
        source = EXAMPLES / f"{name}.c"
        return str(build.compile(source if source.exists() else name, static=static, m32=m32))

    return path


@pytest.fixture
def python() -> Callable[..., list[str]]:
    """``python(code, *arguments)`` are the words that run ``code``."""
    return lambda code, *words: [sys.executable, "-c", code, *map(str, words)]
