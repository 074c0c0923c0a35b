"""Memory that a device uses while its driver maps, unmaps, replaces, truncates and inherits it.

The model reads, writes and views at each access, and keeps one view from one access to the next. What it cannot reach
is a ``DmaFault``; no access ends the supervisor, and no mapping of it stays.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.storm import storm
from support.uvfio_cli import Uvfio

if TYPE_CHECKING:
    from pathlib import Path

    from e2e.conftest import Programs

pytestmark = [pytest.mark.soak, pytest.mark.timeout(590)]

MODEL = """
from uvfio.kit import *

class Regs(RegisterMap):
    address = Register(0x00)
    use = Register(0x08, access="wo")

class User(PciModel):
    vendor_id, device_id = 0x1234, 0x0DAD
    regs = RegisterBar(0, Regs)
    kept = None

    @Regs.use.on_write
    def used(self, how):
        at, size = self.regs.address, 256 << how
        if self.kept is not None:
            self.kept[:16] = bytes(self.kept[16:32])
            self.kept = None
        for attempt in (self.read, self.write, self.store, self.look):
            try:
                attempt(at, size)
            except (DmaFault, InvalidArgument):
                pass

    def read(self, at, size):
        assert len(self.dma.read(at, size)) == size

    def write(self, at, size):
        self.dma.write(at, bytes(size))

    def store(self, at, size):
        self.dma.store(at & ~7, size, 8)

    def look(self, at, size):
        seen = self.dma.view(at, size)
        if seen is not None:
            seen[0] = seen[size - 1]
            self.kept = seen
"""


@pytest.mark.parametrize("seed", [1, 2])
def test_memory_under_a_device(seed: int, program: Programs, tmp_path: Path) -> None:
    model = tmp_path / "user.py"
    model.write_text(MODEL)
    device = f"{model}:User@0000:01:00.0,group=7"
    words = [program("dma_storm"), "7", "0000:01:00.0", str(seed)]
    with Uvfio("run", "-d", device, "--", *words) as uvfio:
        storm(uvfio, 100_000, warm=5000)
        uvfio.finish().ok()
