"""Models that fail in each hook with each kind of exception, ten thousand times: the run goes on, and stays small."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from support.storm import storm
from support.uvfio_cli import Uvfio

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.soak, pytest.mark.timeout(590)]

KINDS = (
    "ValueError('no')",
    "KeyError(1)",
    "OSError(5, 'no')",
    "MemoryError()",
    "RecursionError('deep')",
    "SystemExit(0)",
    "SystemExit('text')",
    "GeneratorExit()",
    "StopIteration(1)",
    "InvalidArgument('no')",
    "DmaFault('no')",
    "UnicodeDecodeError('utf-8', b'', 0, 1, 'no')",
    "ExceptionGroup('several', [ValueError(1), KeyError(2)])",
    "Own()",
    "None",
)

MODEL = f"""
from uvfio.kit import *

class Own(Exception):
    def __str__(self): raise ValueError("no text")

KINDS = [{", ".join(f"lambda: {kind}" for kind in KINDS)}]

class Regs(RegisterMap):
    kind = Register(0x00)
    reads = Register(0x04, access="ro")
    writes = Register(0x08, access="wo")
    stores = Register(0x0c)
    later = Register(0x10, access="wo")

class Bad(PciModel):
    vendor_id, device_id = 0x1234, 0x0BAD
    capabilities = (Msi(1),)
    regs = RegisterBar(0, Regs)

    def fail(self):
        error = KINDS[self.regs.kind % len(KINDS)]()
        if error is not None:
            raise error

    @Regs.reads.on_read
    def at_read(self): self.fail()
    @Regs.writes.on_write
    def at_write(self, value): self.fail()
    @Regs.stores.on_store
    def at_store(self, old, new): self.fail()
    @Regs.later.on_write
    def at_a_time(self, value): self.after(0, self.fail)
    def on_reset(self):
        if self.is_made and getattr(self, "regs", None) is not None: self.fail()
"""

PROGRAM = """
import fcntl, os, struct, sys
group = os.open("/dev/vfio/0", os.O_RDWR)
device = fcntl.ioctl(group, 0x40083B68, bytearray(b"0000:00:01.0\\0"))
os.pwrite(device, struct.pack("<H", 6), (7 << 40) + 4)
RESET = 0x3B74

def attempt(hook):
    try:
        if hook == 1:
            os.pread(device, 4, 4)
        elif hook < 5:
            os.pwrite(device, bytes(4), 4 * hook)
        else:
            fcntl.ioctl(device, RESET)
            os.pwrite(device, struct.pack("<H", 6), (7 << 40) + 4)
    except OSError:
        return 1
    return 0

print("at rest", flush=True)
for line in sys.stdin:
    failed = 0
    for n in range(int(line)):
        try:
            os.pwrite(device, struct.pack("<I", n // 5 % KINDS), 0)
        except OSError as error:
            sys.exit(f"round {n}: the device stands still: {error}")
        failed += attempt(1 + n % 5)
    if failed < int(line) // 3:
        sys.exit(f"only {failed} of {line} accesses failed")
    print("at rest", flush=True)
"""


def test_each_kind_of_exception_in_each_hook(tmp_path: Path) -> None:
    model = tmp_path / "bad.py"
    model.write_text(MODEL)
    program = PROGRAM.replace("KINDS", str(len(KINDS)))
    with Uvfio("run", "-d", f"{model}:Bad", "--", sys.executable, "-c", program) as uvfio:
        storm(uvfio, 50_000, warm=500)
        assert uvfio.process.stdin is not None
        uvfio.process.stdin.close()
        uvfio.expect("this run had", "stderr")
        assert uvfio.process.wait(30) == 0
        text = uvfio.text("stderr")
    assert "internal error" not in text
    reports = [line for line in text.splitlines() if "no memory for system call" not in line]
    assert sum(map(len, reports)) < 1 << 18, "a mistake is reported once"
