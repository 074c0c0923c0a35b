"""A device with everything: memory that programs map, MSI-X, ROM, ports, function reset."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.uvfio_cli import Uvfio, run_uvfio

if TYPE_CHECKING:
    from collections.abc import Callable

    from e2e.conftest import Programs

DEVICE = "exerciser@0000:01:00.0,group=7"


@pytest.mark.parametrize("kind", ["dynamic", "static", "32-bit"])
def test_everything(kind: str, program: Programs) -> None:
    path = program("exerciser_mmap", static=kind == "static", m32=kind == "32-bit")
    done = run_uvfio("run", "-d", DEVICE, "--", path).ok()
    assert done.stdout.count("PASS") > 80
    assert done.stderr == ""


@pytest.mark.parametrize("memory", [4096, 1 << 24])
def test_other_sizes_of_the_memory(memory: int, python: Callable[..., list[str]]) -> None:
    code = """
import fcntl, mmap, os, struct, sys
size = int(sys.argv[1])
group = os.open("/dev/vfio/7", os.O_RDWR)
device = fcntl.ioctl(group, 0x40083B68, bytearray(b"0000:01:00.0\\0"), True)
info = struct.unpack("=IIQQQQ", fcntl.ioctl(device, 0xC0283B6E, struct.pack("=IIQQQQ", 40, 2, 0, 0, 0, 0)))
assert info[2] == size, info
bar = mmap.mmap(device, size, offset=info[3])
bar[-4:] = b"last"
assert os.pread(device, 100, info[3] + size - 4) == b"last"
os.close(device)
assert bar[-4:] == b"last"
"""
    words = python(code, memory)
    run_uvfio("run", "-d", f"{DEVICE},memory={memory}", "--", *words).ok()


MAPPED = """
import fcntl, mmap, os, sys
group = os.open("/dev/vfio/7", os.O_RDWR)
device = fcntl.ioctl(group, 0x40083B68, bytearray(b"0000:01:00.0\\0"), True)
bar = mmap.mmap(device, 1 << 20, offset=2 << 40)
bar[5] = 99
os.close(device)
os.close(group)
print("mapped", flush=True)
sys.stdin.read()
"""


def test_a_mapping_alone_keeps_the_group(
    program: Programs, python: Callable[..., list[str]]
) -> None:
    """Seen by another program, until the process that has the mapping is killed."""
    driver = """
import subprocess, sys
probe, *words = sys.argv[1:]
def look(): return subprocess.run([probe, "7"], check=True, capture_output=True, text=True).stdout.strip()
mapper = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
assert mapper.stdout.readline() == b"mapped\\n"
print(look())
mapper.kill()
mapper.wait()
print(look())
"""
    words = python(driver, program("probe_lock"), *python(MAPPED))
    done = run_uvfio("run", "-d", DEVICE, "--", *words).ok()
    assert done.stdout.splitlines() == [
        "viable=1 locked=1 iommu=EPERM",
        "viable=1 locked=0 iommu=ok",
    ]


def test_what_the_next_program_finds_in_the_memory(python: Callable[..., list[str]]) -> None:
    """A device that can be reset comes to each user as new."""
    script = """
import os, subprocess, sys
subprocess.run([sys.executable, "-c", sys.argv[1]], stdin=subprocess.DEVNULL, check=True)
exec(sys.argv[1].partition("bar[5] = 99")[0])
print(bar[5])
"""
    done = run_uvfio("run", "-d", DEVICE, "--", *python(script, MAPPED)).ok()
    assert done.stdout.split() == ["mapped", "0"]


def test_the_supervisor_keeps_nothing_of_mapped_memory(program: Programs) -> None:
    script = f"while read line; do {program('exerciser_mmap')} >/dev/null || exit; echo round; done"
    with Uvfio("run", "-d", DEVICE, "--", "sh", "-c", script) as uvfio:
        held = []
        for _ in range(3):
            uvfio.send("go\n")
            uvfio.expect("round\n")
            held.append(uvfio.resources())
        assert held[1] == held[0]
        assert held[2] == held[0]
        uvfio.finish().ok()


def test_a_trace_of_mappings(program: Programs) -> None:
    trace = run_uvfio("run", "--trace", "-d", DEVICE, "--", program("exerciser_mmap")).ok().stderr
    assert (
        "mmap(0x100000, 770<anon_inode:[vfio-device] 0000:01:00.0>, region 2 + 0x0) = mapped\n"
        in trace
    )
    assert "region 0 + 0x0) = -1 EINVAL (" in trace
    assert "dma 0000:01:00.0 fault iova 0x110000 write: not mapped" in trace


def test_a_monitor_maps_the_memory_of_a_device(program: Programs) -> None:
    """The sequence of a monitor of 2011, with a device whose own BAR becomes a target of DMA."""
    devices = ["edu@0000:06:0d.0,group=240", "edu@0000:06:0d.1,group=240"]
    devices += ["exerciser@0000:06:0d.2,group=240", "edu@0000:07:00.0,group=241"]
    words = [word for device in devices for word in ("-d", device)]
    done = run_uvfio("run", *words, "--", program("vmm_2011")).ok()
    assert "PASS MAP of the device's own memory" in done.stdout
