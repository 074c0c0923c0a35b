"""A hundred thousand times: numbers of tasks and descriptors that are used again while others make calls."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.identity import RACES, run_in_own_numbers
from support.uvfio_cli import run_uvfio

if TYPE_CHECKING:
    from e2e.conftest import Programs

pytestmark = [pytest.mark.soak, pytest.mark.timeout(590)]

ROUNDS = "100000"


def test_numbers_of_tasks(program: Programs) -> None:
    done = run_in_own_numbers("run", "--", program("reuse"), ROUNDS, timeout=3000)
    assert (done.returncode, done.stdout, done.stderr) == (0, "PASS reuse\n", "")


PIECES = {"exec": 4}  # an image costs ten milliseconds; a piece may take ten minutes


@pytest.mark.parametrize(
    ("kind", "rounds"),
    [
        pytest.param(kind, int(ROUNDS) // PIECES.get(kind, 1), id=f"{kind}-{piece}")
        for kind in RACES
        for piece in range(1, PIECES.get(kind, 1) + 1)
    ],
)
def test_races(kind: str, rounds: int, program: Programs) -> None:
    done = run_uvfio("run", "--", program("races"), kind, str(rounds), timeout=3000).ok()
    assert (done.stdout, done.stderr) == (f"PASS {kind}\n", "")
