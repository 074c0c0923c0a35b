"""A thousand programs killed in the middle of their work: the supervisor has what it had before, and its size."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.kills import Kills
from support.uvfio_cli import Uvfio, run_uvfio

if TYPE_CHECKING:
    from e2e.conftest import Programs

pytestmark = [pytest.mark.soak, pytest.mark.timeout(590)]

GROWTH = 4 << 10  # KiB that the supervisor may grow while it serves the last 900


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("machine", Kills.MACHINES)
def test_a_thousand_kills(machine: str, seed: int, program: Programs) -> None:
    kills = Kills(machine, program("churn"), program("probe_lock"))
    with Uvfio("run", *kills.options, "--", *kills.words(seed)) as uvfio:
        kills.start(uvfio)
        before = uvfio.resources()
        sizes = []
        for _ in range(10):
            kills.kill(uvfio, 100, timeout=600)
            assert uvfio.resources() == before
            sizes.append(uvfio.resident())
        assert sizes[-1] - sizes[0] < GROWTH, sizes
        uvfio.finish().ok()


def test_a_hundred_deaths_of_the_supervisor(program: Programs) -> None:
    """At whatever moment: the program ends, a message says why, no file and no process is left."""
    import random
    import signal
    import subprocess

    chance = random.Random(7)
    for number in range(100):
        with Uvfio("run", "--", program("churn"), str(number)) as uvfio:
            if chance.random() < 0.5:
                uvfio.expect("ready\n")
            try:
                uvfio.process.wait(chance.uniform(0, 0.3))
            except subprocess.TimeoutExpired:
                uvfio.signal(signal.SIGKILL)
            # a kill before the machine's folder has a guard leaves the folder to the next run
            uvfio.process.wait()
            sweeper = run_uvfio("run", "--", "true", env={"XDG_RUNTIME_DIR": str(uvfio.scratch)})
            assert sweeper.status == 0
            done = uvfio.finish(grace=30)
            assert done.status == -signal.SIGKILL
            assert "Function not implemented" not in done.stderr


@pytest.mark.parametrize("status", range(256))
def test_every_exit_status(status: int) -> None:
    assert run_uvfio("run", "--", "sh", "-c", f"exit {status}").status == status
