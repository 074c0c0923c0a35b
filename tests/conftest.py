"""Fixtures that all tests share."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

from support.requirements import require_program as _require_program

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def require_program() -> Callable[[str], str]:
    """``require_program("gcc")`` is its path; without it the test is skipped, or fails if CI is set."""
    return _require_program


def pytest_configure() -> None:
    """Programs inherit ignored signals, as under nohup or in the background of a shell: tests send all of them."""
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
        if signal.getsignal(number) is signal.SIG_IGN:
            default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            signal.signal(number, default)
