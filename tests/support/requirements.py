"""What a test needs from the system it runs on.

On somebody's own computer a test whose requirement is missing is skipped and says why; with CI set it
fails, because there everything has to be there (``.ci/run`` installs it).
"""

from __future__ import annotations

import os
import shutil
import sys

import pytest

__all__ = ["require", "require_program"]


def require(there: bool, reason: str) -> None:
    """Skip unless ``there``; with CI set, fail."""
    if there:
        return
    if os.environ.get("CI"):
        pytest.fail(f"{reason} (CI is set: see .ci/run)", pytrace=False)
    pytest.skip(reason)


def require_program(name: str) -> str:
    """The path of a program: that of the virtual environment, else that of $PATH."""
    mine = os.path.join(os.path.dirname(sys.executable), name)
    found = mine if os.access(mine, os.X_OK) else shutil.which(name)
    require(found is not None, f"the program {name} is not installed")
    assert found is not None
    return found
