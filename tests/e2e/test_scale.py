"""Much memory and many mappings: nothing that is mapped for devices is touched or copied."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from support.requirements import require
from support.uvfio_cli import Uvfio, run_uvfio

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from e2e.conftest import Programs


def test_a_tebibyte_is_mapped_and_nothing_touched(program: Programs) -> None:
    require(os.getuid() == 0, "only root may lock a tebibyte")
    with Uvfio("run", "--", program("huge_guest")) as run:
        run.expect("begun")
        before = run.resident()
        run.send("\n")
        run.expect("mapped")
        assert run.resident() - before < 4096
        done = run.finish("\n").ok()
    assert "PASS unmapped" in done.stdout


MANY = """
import ctypes, fcntl, mmap, os, struct, sys
count = int(sys.argv[1])
group = os.open("/dev/vfio/241", os.O_RDWR)
container = os.open("/dev/vfio/vfio", os.O_RDWR)
fcntl.ioctl(group, 0x3B68, struct.pack("<i", container))
fcntl.ioctl(container, 0x3B66, 3)
memory = mmap.mmap(-1, 4096)
address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
done = 0
try:
    for n in range(count):
        fcntl.ioctl(container, 0x3B71, struct.pack("<IIQQQ", 32, 3, address, 1 << 32 | n << 13, 4096))
        done += 1
except OSError as error:
    print(error.errno)
print(done)
back = bytearray(struct.pack("<IIQQ", 24, 0, 1 << 32, count << 13))
fcntl.ioctl(container, 0x3B72, back)
print(struct.unpack("<IIQQ", back)[3] // 4096)
"""


def test_the_limit_on_mappings_is_the_machine_s(
    python: Callable[..., list[str]], tmp_path: Path
) -> None:
    require(os.getuid() == 0, "only root may lock so much memory")
    machine = tmp_path / "machine.toml"
    machine.write_text(
        '[iommu]\ndma_entry_limit = 70000\n[[device]]\naddress = "0000:07:00.0"\nmodel = "edu"\ngroup = 241\n'
    )
    words = ("-m", str(machine), "--", *python(MANY, 70001))
    assert run_uvfio("run", *words, timeout=120).ok().stdout.split() == ["28", "70000", "70000"]
