"""Numbers of tasks and descriptors mean what the kernel says, also when they are used again at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.identity import RACES, run_in_own_numbers
from support.uvfio_cli import run_uvfio

if TYPE_CHECKING:
    from e2e.conftest import Programs


def test_numbers_of_tasks_that_are_used_again(program: Programs) -> None:
    done = run_in_own_numbers("run", "--", program("reuse"), "50")
    assert (done.returncode, done.stdout, done.stderr) == (0, "PASS reuse\n", "")


@pytest.mark.parametrize("kind", RACES)
def test_races(kind: str, program: Programs) -> None:
    done = run_uvfio("run", "--", program("races"), kind, "100" if kind == "exec" else "2000").ok()
    assert (done.stdout, done.stderr) == (f"PASS {kind}\n", "")
