"""A path is looked up in the context of the caller: its rights, mask, root, mounts, working folder, open folders.

Paths that lead through the machine's folders and out again name the host's objects; every path call answers for
them what it answers for the same object without uvfio.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support.contexts import CONTEXTS, ROOT_ONLY, differences, obstacle
from support.requirements import require

if TYPE_CHECKING:
    from e2e.conftest import Programs

SHOWN = 60


@pytest.mark.parametrize("context", [*CONTEXTS, *ROOT_ONLY])
def test_every_call_answers_as_without_uvfio(context: str, program: Programs) -> None:
    if context in ROOT_ONLY and os.getuid() != 0:
        pytest.skip("only root may change its rights")
    matrix = Path(program("context_matrix", static=True))
    reason = obstacle(context, matrix)
    require(not reason, reason)
    found = differences(context, matrix)
    assert not found, f"{len(found)} answers differ, the first of them:\n" + "\n".join(
        found[:SHOWN]
    )
