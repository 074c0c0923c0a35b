"""Programs that are killed at random moments while they use devices, one after the other in one run.

A driver program runs inside: on request it starts ``churn``, kills it after a random time, and asks
``probe_lock`` whether every group is free. Between two requests it waits for its input, and so does
everything else: the moment to look at what the supervisor holds.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from support.uvfio_cli import Uvfio

__all__ = ["Kills"]

DRIVER = """
import os, random, select, subprocess, sys

seed, churn, probe, *pairs = sys.argv[1:]
chance = random.Random(int(seed))

def kill_one():
    churning = subprocess.Popen([churn, str(chance.randrange(1 << 30)), *pairs], stdout=subprocess.PIPE)
    pidfd = os.pidfd_open(churning.pid)
    if chance.random() < 0.7:
        churning.stdout.read(1)  # else it may not even have begun
    select.select([pidfd], [], [], chance.uniform(0, 0.02))
    if churning.poll() is not None:
        sys.exit(f"churn ended by itself: {churning.returncode}")
    churning.kill()
    churning.wait()
    churning.stdout.close()
    os.close(pidfd)
    for group in pairs[::2]:
        seen = subprocess.run([probe, group], check=True, capture_output=True, text=True).stdout
        if seen != "viable=1 locked=0 iommu=ok\\n":
            sys.exit(f"group {group} after a kill: {seen}")

print("at rest", flush=True)
for line in sys.stdin:
    for _ in range(int(line)):
        kill_one()
    print("at rest", flush=True)
"""


class Kills:
    """A run of the driver on one of ``MACHINES``."""

    MACHINES: ClassVar[dict[str, dict[str, str]]] = {
        "edu": {"240": "edu@0000:06:0d.0", "241": "edu@0000:07:00.0"},
        "exerciser": {"240": "edu@0000:06:0d.0", "7": "exerciser@0000:01:00.0"},
    }

    def __init__(self, machine: str, churn: str, probe_lock: str) -> None:
        self.machine = self.MACHINES[machine]
        self.churn = churn
        self.probe_lock = probe_lock

    @property
    def options(self) -> list[str]:
        """Options of ``uvfio run`` that describe the machine."""
        return [
            word
            for group, device in self.machine.items()
            for word in ("-d", f"{device},group={group}")
        ]

    def words(self, seed: int) -> list[str]:
        """The driver's command line."""
        pairs = [
            word
            for group, device in self.machine.items()
            for word in (group, device.partition("@")[2])
        ]
        return [sys.executable, "-c", DRIVER, str(seed), self.churn, self.probe_lock, *pairs]

    def start(self, uvfio: Uvfio) -> None:
        """Wait for the driver, and make the supervisor do everything once: afterwards it holds what it keeps."""
        uvfio.expect("at rest\n")
        self.kill(uvfio, 3)

    def kill(self, uvfio: Uvfio, count: int, timeout: float = 60) -> None:
        """Kill ``count`` programs, one by one."""
        uvfio.send(f"{count}\n")
        uvfio.expect("at rest\n", timeout=timeout)
