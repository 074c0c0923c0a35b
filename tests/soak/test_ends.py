"""Runs that end at any moment: by a signal for a process of uvfio, by ``--timeout``, stopped or going on.

No process is left, and no file after the next run. Which process, and when, follows from a number.
"""

from __future__ import annotations

import os
import random
import signal
from typing import TYPE_CHECKING

import pytest

from support.uvfio_cli import Uvfio, run_uvfio

if TYPE_CHECKING:
    from e2e.conftest import Programs

pytestmark = [pytest.mark.soak, pytest.mark.timeout(590)]


def children(pid: int) -> list[int]:
    """Processes that the first thread of ``pid`` has made and not reaped."""
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(word) for word in file.read().split()]


def victim(uvfio: Uvfio, which: str) -> int:
    return uvfio.pid if which == "front" else uvfio.supervisor


@pytest.mark.parametrize("which", ["front", "supervisor"])
def test_kills_of(which: str, program: Programs) -> None:
    """While eight programs make calls, some stopped: whoever waits sees that it did not end well."""
    script = f"for i in 1 2 3 4 5 6 7; do {program('churn')} $i & done; exec {program('churn')} 8"
    chance = random.Random(which)
    for _ in range(60):
        with Uvfio("run", "--", "sh", "-c", script) as uvfio:
            for _ in range(8):
                uvfio.expect("ready\n")
            if chance.random() < 0.3:
                (guard,) = children(uvfio.supervisor)
                for pid in children(guard):
                    os.kill(pid, signal.SIGSTOP)
            os.kill(victim(uvfio, which), signal.SIGKILL)
            uvfio.process.wait(30)
            for left in uvfio.processes():
                uvfio._await_end(left, 30)
            run_uvfio("run", "--", "true", env={"XDG_RUNTIME_DIR": str(uvfio.scratch)}).ok()
            done = uvfio.finish(grace=30)
            assert done.status != 0
            assert "Function not implemented" not in done.stderr


def test_timeouts(program: Programs) -> None:
    for number in range(60):
        seconds = f"0.{20 + number}"
        done = run_uvfio("run", "--timeout", seconds, "--", program("churn"), str(number))
        assert done.status == 124, done.stderr


def test_stops_and_continuations(program: Programs) -> None:
    """A thousand stops in the middle of calls: none of them fails."""
    with Uvfio("run", "--", program("churn"), "1", session=False) as uvfio:
        uvfio.expect("ready\n")
        (guard,) = children(uvfio.supervisor)
        (churn,) = children(guard)
        os.kill(churn, signal.SIGSTOP)
        uvfio.wait_changed(os.WSTOPPED)
        size = uvfio.resident()
        for _ in range(1000):
            os.kill(churn, signal.SIGCONT)
            uvfio.wait_changed(os.WCONTINUED)
            os.kill(churn, signal.SIGSTOP)
            uvfio.wait_changed(os.WSTOPPED)
        assert uvfio.resident() - size < 4 << 10
        os.kill(churn, signal.SIGKILL)
        assert uvfio.finish().status == -signal.SIGKILL
