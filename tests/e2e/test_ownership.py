"""Who owns a group, and that death gives everything back: seen by other programs, and in the supervisor itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.kills import Kills
from support.uvfio_cli import Uvfio, run_uvfio

if TYPE_CHECKING:
    from collections.abc import Callable

    from e2e.conftest import Programs

FREE = "viable=1 locked=0 iommu=ok"
TAKEN = "viable=1 locked=1 iommu=EPERM"

OWNER_DIES = """
import signal, subprocess, sys
hold, probe, way = sys.argv[1:]
def look(group="240"):
    return subprocess.run([probe, group], check=True, capture_output=True, text=True).stdout.strip()
print("before:", look())
owner = subprocess.Popen([hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
assert owner.stdout.readline() == "ready\\n"
print("held:", look())
print("other group:", look("241"))
if way == "close":
    owner.stdin.close()
else:
    owner.send_signal(getattr(signal, way))
owner.wait()
print("after:", look())
"""


@pytest.mark.parametrize("way", ["close", "SIGKILL", "SIGTERM", "SIGSEGV"])
def test_a_group_is_locked_for_others_until_its_owner_ends(
    way: str, program: Programs, python: Callable[..., list[str]]
) -> None:
    words = python(OWNER_DIES, program("hold"), program("probe_lock"), way)
    done = run_uvfio("run", "--", *words).ok()
    assert done.stdout.splitlines() == [
        f"before: {FREE}",
        f"held: {TAKEN}",
        f"other group: {FREE}",
        f"after: {FREE}",
    ]


THIRTY_OWNERS = """
import subprocess, sys
hold, probe = sys.argv[1:]
for _ in range(30):
    owner = subprocess.Popen([hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert owner.stdout.readline() == "ready\\n"
    owner.kill()
    owner.wait()
    seen = subprocess.run([probe], check=True, capture_output=True, text=True).stdout
    assert seen == "viable=1 locked=0 iommu=ok\\n", seen
    owner.stdin.close()
    owner.stdout.close()
"""


def test_a_killed_owner_has_let_go_when_wait_returns(
    program: Programs, python: Callable[..., list[str]]
) -> None:
    run_uvfio("run", "--", *python(THIRTY_OWNERS, program("hold"), program("probe_lock"))).ok()


def test_the_next_owner_gets_the_device_as_new(program: Programs) -> None:
    """A kill while the device is in use must not be seen by whoever comes next."""
    driver = program("edu_driver")
    words = [
        "sh",
        "-c",
        f"timeout -s KILL 0.3 {program('churn')} 5; {driver} && {driver} 241 0000:07:00.0",
    ]
    done = run_uvfio("run", "--", *words).ok()
    assert done.stdout.count("all right") == 2


@pytest.mark.parametrize("machine", Kills.MACHINES)
def test_thirty_kills_at_random_moments_leave_nothing_in_the_supervisor(
    machine: str, program: Programs
) -> None:
    kills = Kills(machine, program("churn"), program("probe_lock"))
    with Uvfio("run", *kills.options, "--", *kills.words(seed=2011)) as uvfio:
        kills.start(uvfio)
        before = uvfio.resources()
        kills.kill(uvfio, 30)
        assert uvfio.resources() == before
        uvfio.finish().ok()


def test_the_supervisor_does_not_grow_with_the_programs_of_a_run(program: Programs) -> None:
    """Processes, threads, files, mappings: what a program brought goes with it."""
    programs = [
        program(name) for name in ("threads", "dup_fds", "scm_rights", "vmm_2011", "vfork_child")
    ]
    script = "while read line; do for p in " + " ".join(programs)
    script += "; do $p >/dev/null || exit; done; echo round; done"
    with Uvfio("run", "--", "sh", "-c", script) as uvfio:
        held = []
        for _ in range(3):
            uvfio.send("go\n")
            uvfio.expect("round\n")
            held.append(uvfio.resources())
        assert held[1] == held[0]
        assert held[2] == held[0]
        uvfio.finish().ok()
