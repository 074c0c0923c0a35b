"""``--trace``: every call decoded, with the reason of each error; as text and as JSON."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from support.uvfio_cli import run_uvfio

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from e2e.conftest import Programs

ADDRESS = "0x[0-9a-f]+"

READS_IN_A_LOOP = """
import fcntl, os
group = os.open("/dev/vfio/240", os.O_RDWR)
device = fcntl.ioctl(group, 0x40083B68, bytearray(b"0000:06:0d.0\\0"), True)
os.pwrite(device, b"\\x06\\x00", (7 << 40) + 4)
for _ in range(5):
    assert os.pread(device, 4, 0) == b"\\xed\\0\\0\\1"
os.pwrite(device, (0x1234).to_bytes(4, "little"), 4)
os.preadv(device, [bytearray(4)], 4)
"""


def test_a_loop_over_a_register(python: Callable[..., list[str]]) -> None:
    lines = run_uvfio("run", "--trace", "--", *python(READS_IN_A_LOOP)).ok().stderr.splitlines()
    pid = lines[0].split()[0]
    assert pid.isdigit()
    device = f"{pid} pread(769<anon_inode:[vfio-device] 0000:06:0d.0>"
    assert lines[:3] == [
        f'{pid} openat("/dev/vfio/240") = 768',
        f'{pid} ioctl(768</dev/vfio/240>, VFIO_GROUP_GET_DEVICE_FD, "0000:06:0d.0") = 769',
        f"{pid} pwrite(769<anon_inode:[vfio-device] 0000:06:0d.0>, 0x6, 2, region 7 + 0x4) = 2",
    ]
    assert lines[3:8] == [f"{device}, 0x10000ed, 4, region 0 + 0x0) = 4"] * 5
    assert (
        lines[8]
        == f"{pid} pwrite(769<anon_inode:[vfio-device] 0000:06:0d.0>, 0x1234, 4, region 0 + 0x4) = 4"
    )
    assert lines[-2:] == [
        "released anon_inode:[vfio-device] 0000:06:0d.0",
        "released /dev/vfio/240",
    ]


MAINLINE = """
import ctypes, fcntl, mmap, os, struct
group = os.open("/dev/vfio/240", os.O_RDWR)
container = os.open("/dev/vfio/vfio", os.O_RDWR)
fcntl.ioctl(container, 0x3B65, 3)
fcntl.ioctl(group, 0x3B67, bytearray(struct.pack("<II", 8, 0)), True)
fcntl.ioctl(group, 0x3B68, struct.pack("<i", container))
fcntl.ioctl(container, 0x3B66, 3)
device = fcntl.ioctl(group, 0x3B6A, bytearray(b"0000:06:0d.0\\0"), True)
memory = mmap.mmap(-1, 4096)
address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
fcntl.ioctl(container, 0x3B71, struct.pack("<IIQQQ", 32, 3, address, 0x10000, 4096))
try: fcntl.ioctl(container, 0x3B71, struct.pack("<IIQQQ", 32, 1, address, 0x10000, 4096))
except OSError: pass
fcntl.ioctl(container, 0x3B72, bytearray(struct.pack("<IIQQ", 24, 0, 0, 0x100000)), True)
fcntl.ioctl(device, 0x3B6C, bytearray(struct.pack("<IIIIQQ", 32, 0, 7, 0, 0, 0)), True)
event = os.eventfd(0)
fcntl.ioctl(device, 0x3B6E, struct.pack("<5Ii", 24, 4 | 32, 1, 0, 1, event))
os.pwrite(device, b"\\x06\\x00", (7 << 40) + 4)
os.preadv(device, [bytearray(4), bytearray(4)], 0)
os.pwritev(device, [b"\\x34", b"\\x12\\0\\0"], 4)
print(event)
"""


def test_the_calls_of_today(python: Callable[..., list[str]]) -> None:
    words = ["run", "--trace", "--", *python(MAINLINE)]
    done = run_uvfio(*words).ok()
    pid = done.stderr.split()[0]
    lines = [line.removeprefix(f"{pid} ") for line in done.stderr.splitlines()]
    group, container = "768</dev/vfio/240>", "769</dev/vfio/vfio>"
    device = "770<anon_inode:[vfio-device] 0000:06:0d.0>"
    address = re.search(rf"vaddr=({ADDRESS})", done.stderr)
    assert address is not None
    mapped = f"vaddr={address[1]}, iova=0x10000, size=0x1000"
    assert lines[:-3] == [
        'openat("/dev/vfio/240") = 768',
        'openat("/dev/vfio/vfio") = 769',
        f"ioctl({container}, VFIO_CHECK_EXTENSION, VFIO_TYPE1v2_IOMMU) = 1",
        f"ioctl({group}, VFIO_GROUP_GET_STATUS, {{flags=VIABLE}}) = 0",
        f"ioctl({group}, VFIO_GROUP_SET_CONTAINER, [769]) = 0",
        f"ioctl({container}, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU) = 0",
        f'ioctl({group}, VFIO_GROUP_GET_DEVICE_FD, "0000:06:0d.0") = 770',
        f"ioctl({container}, VFIO_IOMMU_MAP_DMA, {{flags=READ|WRITE, {mapped}}}) = 0",
        (
            f"ioctl({container}, VFIO_IOMMU_MAP_DMA, {{flags=READ, {mapped}}}) = -1 EEXIST "
            "(iova 0x10000+0x1000 overlaps mapping 0x10000+0x1000)"
        ),
        f"ioctl({container}, VFIO_IOMMU_UNMAP_DMA, {{flags=0, iova=0, size=0x1000}}) = 0",
        (
            f"ioctl({device}, VFIO_DEVICE_GET_REGION_INFO, {{flags=READ|WRITE, index=CONFIG, "
            "size=0x100, offset=0x70000000000}) = 0"
        ),
        (
            f"ioctl({device}, VFIO_DEVICE_SET_IRQS, {{flags=DATA_EVENTFD|ACTION_TRIGGER, index=MSI, "
            f"start=0, count=1, fds=[{done.stdout.strip()}]}}) = 0"
        ),
        f"pwrite({device}, 0x6, 2, region 7 + 0x4) = 2",
        f"preadv2({device}, 0x10000ed, 8, region 0 + 0x0) = 8",
        f"pwritev2({device}, 0x1234, 4, region 0 + 0x4) = 4",
    ]
    assert lines[-3:] == [
        f"released {name}"
        for name in ("anon_inode:[vfio-device] 0000:06:0d.0", "/dev/vfio/vfio", "/dev/vfio/240")
    ]


def test_a_summary_of_today_s_calls(python: Callable[..., list[str]]) -> None:
    words = ["run", "--trace-summary", "--json", "--", *python(MAINLINE)]
    calls = json.loads(run_uvfio(*words).ok().stderr)["summary"]["calls"]
    assert {name: (of["calls"], of["errors"]) for name, of in calls.items()} == {
        **dict.fromkeys(("VFIO_CHECK_EXTENSION", "VFIO_GROUP_GET_STATUS"), (1, 0)),
        **dict.fromkeys(("VFIO_GROUP_SET_CONTAINER", "VFIO_SET_IOMMU"), (1, 0)),
        **dict.fromkeys(("VFIO_GROUP_GET_DEVICE_FD", "VFIO_DEVICE_GET_REGION_INFO"), (1, 0)),
        **dict.fromkeys(("VFIO_DEVICE_SET_IRQS", "VFIO_IOMMU_UNMAP_DMA"), (1, 0)),
        **dict.fromkeys(("pwrite", "preadv", "pwritev"), (1, 0)),
        "VFIO_IOMMU_MAP_DMA": (2, 1),
        "open": (2, 0),
        "close": (3, 0),
    }


WRONG_CALLS = """
import ctypes, fcntl, mmap, os, struct
def dma(vaddr, iova, size):
    try:
        fcntl.ioctl(iommu, 0xC0283B6A, struct.pack("=QQQQQ", 40, vaddr, iova, size, 1))
    except OSError as error:
        print(error.errno)
memory = mmap.mmap(-1, 16 * 4096)
address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
group = os.open("/dev/vfio/240", os.O_RDWR)
iommu = fcntl.ioctl(group, 0x3B67)
dma(address, 0x10000, 0x4000)
dma(address, 0x11000, 0x1000)
dma(address, 0x20001, 0x1000)
dma(0x1000, 0x20000, 0x1000)
for name in (b"0000:07:00.0", b"nothing"):
    try: fcntl.ioctl(group, 0x40083B68, bytearray(name + b"\\0"))
    except OSError: pass
try: fcntl.ioctl(iommu, 0x3BFF)
except OSError: pass
try: os.open("/dev/vfio/999", os.O_RDWR)
except OSError: pass
"""


def test_a_wrong_call_shows_its_reason(python: Callable[..., list[str]]) -> None:
    trace = run_uvfio("run", "--trace", "--", *python(WRONG_CALLS)).ok().stderr
    wrong = [line.partition(" = ") for line in trace.splitlines() if " = -1 " in line]
    overlap, unaligned, unmapped, foreign, nothing, unknown, absent = wrong
    assert re.search(
        rf"VFIO_IOMMU_MAP_DMA, {{vaddr={ADDRESS}, dmaaddr=0x11000, size=0x1000, flags=WRITE}}",
        overlap[0],
    )
    assert overlap[2] == "-1 EBUSY (iova 0x11000+0x1000 overlaps mapping 0x10000+0x4000)"
    assert unaligned[2].startswith("-1 EINVAL (")
    assert "0x20001" in unaligned[2]
    assert unmapped[2] == "-1 EFAULT (nothing is mapped at 0x1000)"
    assert foreign[2].startswith("-1 ENODEV (")
    assert "0000:07:00.0" in foreign[2]
    assert nothing[2].startswith("-1 ENODEV (")
    assert unknown[2].startswith("-1 ENOTTY (")
    assert "3bff" in unknown[2]
    assert '"/dev/vfio/999"' in absent[0]
    assert absent[2].startswith("-1 ENOENT (")


def test_interrupts_and_faults(program: Programs) -> None:
    trace = run_uvfio("run", "--trace", "--", program("edu_driver")).ok().stderr
    assert "irq 0000:06:0d.0 INTx\n" in trace
    assert "irq 0000:06:0d.0 MSI 0\n" in trace
    assert "dma 0000:06:0d.0 fault iova 0x800000 write: not mapped\n" in trace
    assert re.search(r"VFIO_GROUP_GET_FLAGS, \[VIABLE\]\) = 0", trace)


def test_who_is_not_the_owner(program: Programs) -> None:
    """What the program never learns from EPERM."""
    trace = run_uvfio("run", "--trace", "--", program("fork_noexec")).ok().stderr
    refused = [line for line in trace.splitlines() if "EPERM" in line]
    assert refused
    assert all("(" in line.partition("EPERM")[2] for line in refused)
    pids = {line.split()[0] for line in trace.splitlines() if "ioctl(" in line}
    assert len(pids) >= 3, "a line says which process made the call"


def test_into_a_file(program: Programs, tmp_path: Path) -> None:
    file = tmp_path / "trace"
    done = run_uvfio("run", f"--trace={file}", "--", program("probe_lock")).ok()
    assert done.stderr == ""
    assert done.stdout == "viable=1 locked=0 iommu=ok\n"
    assert "= 0\n" in file.read_text()


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    done = run_uvfio("run", f"--trace={tmp_path}/no/such", "--", "true")
    assert done.status == 125
    assert str(tmp_path) in done.stderr


def test_the_trace_of_programs_that_do_nothing_is_empty() -> None:
    assert (
        run_uvfio("run", "--trace", "--", "sh", "-c", "ls /etc >/dev/null; echo x").ok().stderr
        == ""
    )


KEYS = {
    "openat": {"call", "path", "text", "pid", "result"},
    "ioctl": {"call", "fd", "file", "command", "argument", "text", "pid", "result"},
    "pread": {"call", "fd", "file", "offset", "data", "text", "pid", "result"},
    "pwrite": {"call", "fd", "file", "offset", "data", "text", "pid", "result"},
}
FAILED = {"errno", "reason"}


def test_json(program: Programs) -> None:
    """Other people's scripts read this: keys may be added, not renamed."""
    done = run_uvfio("run", "--trace", "--json", "--", program("edu_driver")).ok()
    records = [json.loads(line) for line in done.stderr.splitlines()]
    calls = [record for record in records if "call" in record]
    assert {record["call"] for record in calls} == set(KEYS)
    for record in calls:
        wanted = KEYS[record["call"]] | (FAILED if record["result"] == -1 else set())
        assert wanted <= record.keys(), record
    events = {record["event"] for record in records if "event" in record}
    assert {"released", "fault"} <= events
    assert all(("call" in record) != ("event" in record) for record in records)
    failed = [record for record in calls if record["result"] == -1]
    assert {(record["command"], record["errno"]) for record in failed} == {
        ("VFIO_DEVICE_RESET", "EINVAL")
    }


def test_json_into_a_file(program: Programs, tmp_path: Path) -> None:
    file = tmp_path / "trace"
    run_uvfio("run", f"--trace={file}", "--json", "--", program("errors_2011")).ok()
    records = [json.loads(line) for line in file.read_text().splitlines()]
    reasons = {
        record["errno"]: record["reason"] for record in records if record.get("result") == -1
    }
    assert {
        "EBUSY",
        "EINVAL",
        "EFAULT",
        "EPERM",
        "ENODEV",
        "ENOTTY",
        "EBADF",
        "ENOENT",
        "EMFILE",
    } <= reasons.keys()
    assert all(reasons.values())


def test_a_traced_program_behaves_the_same(program: Programs, tmp_path: Path) -> None:
    for name in ("dup_fds", "exec_child", "scm_rights", "threads"):
        run_uvfio("run", f"--trace={tmp_path}/trace", "--", program(name)).ok()


def test_a_traced_32_bit_program(program: Programs) -> None:
    trace = run_uvfio("run", "--trace", "--", program("edu_driver", m32=True)).ok().stderr
    assert 'VFIO_GROUP_GET_DEVICE_FD, "0000:06:0d.0") = ' in trace
    assert "pread(" in trace
    assert "0x10000ed, 4, region 0 + 0x0) = 4" in trace


def test_absurd_calls_are_traced(program: Programs, tmp_path: Path) -> None:
    file = tmp_path / "trace"
    run_uvfio("run", f"--trace={file}", "--json", "--", program("fuzz_ioctl"), "2000", "5").ok()
    records = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(records) > 1000
