"""A device moves to another one of its kind, under a program that knows nothing of uvfio."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.uvfio_cli import run_uvfio

if TYPE_CHECKING:
    from collections.abc import Callable

    from e2e.conftest import Programs

MOVES = "migration=true,memory=8M,dma_delay=1"
DEVICES = (
    f"exerciser@0000:01:00.0,group=7,{MOVES}",
    f"exerciser@0000:02:00.0,group=8,{MOVES}",
    "exerciser@0000:03:00.0,group=9,migration=true,memory=64K",
)


@pytest.mark.parametrize("kind", ["dynamic", "static", "32-bit"])
def test_a_device_moves(kind: str, program: Programs) -> None:
    path = program("migrate", static=kind == "static", m32=kind == "32-bit")
    devices = [word for device in DEVICES for word in ("-d", device)]
    done = run_uvfio("run", *devices, "--", path).ok()
    assert done.stdout.count("PASS") > 80
    assert done.stderr == ""


VECTORS = """
import fcntl, mmap, os, struct
container = os.open("/dev/vfio/vfio", os.O_RDWR)
group = os.open("/dev/vfio/7", os.O_RDWR)
fcntl.ioctl(group, 0x3B68, struct.pack("<i", container))
fcntl.ioctl(container, 0x3B66, 3)
device = fcntl.ioctl(group, 0x3B6A, bytearray(b"0000:01:00.0\\0"), True)
def state(number):
    answer = fcntl.ioctl(device, 0x3B75, struct.pack("<IIIi", 16, 2 | 1 << 17, number, -1))
    return struct.unpack("<IIIi", answer)[3]
memory = mmap.mmap(device, 8 << 20, offset=2 << 40)
memory[:] = bytes(range(1, 65)) * (1 << 17)
fd = state(3)
first, second = bytearray(5), bytearray(3 << 20)
assert os.readv(fd, [first, second]) == len(first) + len(second)
copy = os.dup(fd)
rest = b""
while piece := os.read(copy, 1 << 22):
    rest += piece
stream = bytes(first) + bytes(second) + rest
assert os.fstat(fd).st_size == 0
os.close(copy)
os.close(fd)
state(2)
fd = state(4)
assert os.writev(fd, [stream[:7], stream[7:9], stream[9:]]) == len(stream)
assert state(1) == -1
for call in (lambda: os.read(fd, 1), lambda: os.pread(fd, 1, 0), lambda: os.preadv(fd, [bytearray(9)], 0)):
    try:
        call()
    except OSError as error:
        print(error.errno)
"""


def test_vectors_and_duplicates(python: Callable[..., list[str]]) -> None:
    """readv and writev go on where read and write ended; a duplicate shares the position."""
    words = python(VECTORS)
    done = run_uvfio("run", "-d", DEVICES[0], "--", *words).ok()
    assert done.stdout.split() == ["9", "29", "29"]  # EBADF, ESPIPE, ESPIPE
