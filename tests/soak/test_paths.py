"""Paths that lead out of the machine's folders, from many threads and processes that are signalled, stopped and killed.

Each such call has a tracer for a moment (``session/repeat.py``): none is left, nor what it held.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support.identity import run_in_own_numbers
from support.storm import storm
from support.uvfio_cli import NOBODY, Uvfio

if TYPE_CHECKING:
    from e2e.conftest import Programs

pytestmark = [pytest.mark.soak, pytest.mark.timeout(590)]


@pytest.mark.parametrize("user", [None, NOBODY])
def test_ways_out(user: int | None, program: Programs) -> None:
    with Uvfio("run", "--", program("ways_out"), user=user) as uvfio:
        storm(uvfio, 2000)
        for pid in uvfio.processes():
            assert "TracerPid:\t0\n" in Path(f"/proc/{pid}/status").read_text()
        uvfio.finish().ok()


def test_numbers_of_tasks_that_were_killed_on_the_way(program: Programs) -> None:
    """Whoever gets the number of a thread that died in a repeated call is not taken for it."""
    done = run_in_own_numbers("run", "--", program("ways_out"), "again", "5000", timeout=580)
    assert (done.returncode, done.stdout, done.stderr) == (0, "PASS again\n", "")
