"""Fixtures that all tests share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.requirements import require_program as _require_program

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def require_program() -> Callable[[str], str]:
    """``require_program("gcc")`` is its path; without it the test is skipped, or fails if CI is set."""
    return _require_program
