"""What a trace writes for the ioctls of 2011, for arguments made up."""

from __future__ import annotations

import ctypes
import struct
from typing import Any

import pytest

from support.puppet import PAGE
from uvfio.doors.run.observe.trace_2011 import decode, find, name_of
from uvfio.errors import BadAddress
from uvfio.fops.file import File
from uvfio.uapi import rfc

AT = 0x1000
FILE = File("any")


def memory_of(data: bytes, at: int = AT) -> Any:
    """``read`` of a memory that holds ``data`` at ``at`` and nothing else."""

    def read(address: int, size: int) -> bytes:
        if not at <= address <= address + size <= at + len(data):
            raise BadAddress(f"{address:#x}")
        return data[address - at : address - at + size]

    return read


NAME = b"0000:06:0d.0\0".ljust(64, b"x")
CASES: dict[int, tuple[bytes, str]] = {
    rfc.VFIO_GROUP_GET_FLAGS: (struct.pack("<Q", 3), "[VIABLE|MM_LOCKED]"),
    rfc.VFIO_GROUP_MERGE: (struct.pack("<i", 5), "[5]"),
    rfc.VFIO_GROUP_UNMERGE: (struct.pack("<i", -1), "[-1]"),
    rfc.VFIO_GROUP_GET_IOMMU_FD: (b"", ""),
    rfc.VFIO_GROUP_GET_DEVICE_FD: (NAME, '"0000:06:0d.0"'),
    rfc.VFIO_GROUP_GET_DEVICE_FD_32: (NAME, '"0000:06:0d.0"'),
    rfc.VFIO_IOMMU_GET_FLAGS: (struct.pack("<Q", 1), "[MAP_ANY]"),
    rfc.VFIO_IOMMU_MAP_DMA: (
        struct.pack("<5Q", 0xDEAD, 0x7F0000001000, 0x2000, 0x3000, 1),
        "{vaddr=0x7f0000001000, dmaaddr=0x2000, size=0x3000, flags=WRITE}",
    ),
    rfc.VFIO_IOMMU_UNMAP_DMA: (
        struct.pack("<5Q", 40, 0, 0x2000, 0x1000, 0),
        "{vaddr=0, dmaaddr=0x2000, size=0x1000, flags=0}",
    ),
    rfc.VFIO_DEVICE_GET_FLAGS: (struct.pack("<Q", 13), "[PCI|RESET|0x8]"),
    rfc.VFIO_DEVICE_GET_NUM_REGIONS: (struct.pack("<i", 8), "[8]"),
    rfc.VFIO_DEVICE_GET_REGION_INFO: (
        struct.pack("<IIQQQQ", 40, 2, 0x4000, 2 << 40, 5, 0),
        "{len=0x28, index=2, size=0x4000, offset=0x20000000000, flags=MMAP|PHYS_VALID, phys=0}",
    ),
    rfc.VFIO_DEVICE_GET_NUM_IRQS: (struct.pack("<i", 3), "[3]"),
    rfc.VFIO_DEVICE_GET_IRQ_INFO: (
        struct.pack("<IIII", 16, 0, 1, 1),
        "{len=0x10, index=0, count=1, flags=LEVEL}",
    ),
    rfc.VFIO_DEVICE_SET_IRQ_EVENTFDS: (struct.pack("<4i", 1, 2, 7, 8), "[1, 2, 7, 8]"),
    rfc.VFIO_DEVICE_UNMASK_IRQ: (struct.pack("<i", 0), "[0]"),
    rfc.VFIO_DEVICE_SET_UNMASK_IRQ_EVENTFD: (struct.pack("<2i", 0, -1), "[0, -1]"),
    rfc.VFIO_DEVICE_RESET: (b"", ""),
    rfc.VFIO_DEVICE_GET_DTPATH: (
        struct.pack("<IIQQ", 24, 0, 1, 0x1234),
        "{len=0x18, index=0, flags=REGION, path=0x1234}",
    ),
    rfc.VFIO_DEVICE_GET_DTPATH_32: (
        struct.pack("<IIQI", 20, 0, 2, 0x1234),
        "{len=0x14, index=0, flags=IRQ, path=0x1234}",
    ),
    rfc.VFIO_DEVICE_GET_DTINDEX: (
        struct.pack("<IIIIQ", 24, 1, 2, 3, 3),
        "{len=0x18, index=1, prop_type=2, prop_index=3, flags=REGION|IRQ}",
    ),
}


def test_no_ioctl_is_missing() -> None:
    assert set(CASES) == set(rfc.IOCTLS)
    assert len({rfc.IOCTLS[request].name for request in CASES}) == 19


@pytest.mark.parametrize(
    "request_", CASES, ids=lambda request: f"{rfc.ioctl_name(request)}-{request:x}"
)
def test_arguments(request_: int) -> None:
    data, text = CASES[request_]
    assert decode(FILE, request_, memory_of(data), AT) == text
    kind = rfc.IOCTLS[request_].argument
    if isinstance(kind, type):
        assert len(data) == ctypes.sizeof(kind)


@pytest.mark.parametrize(
    "request_", CASES, ids=lambda request: f"{rfc.ioctl_name(request)}-{request:x}"
)
def test_arguments_that_cannot_be_read(request_: int) -> None:
    """The address is shown instead; a trace never makes a call fail."""
    none = rfc.IOCTLS[request_].argument == "none"
    assert decode(FILE, request_, memory_of(b""), 0xDEAD000) == ("" if none else "0xdead000")


def test_unknown_requests() -> None:
    assert decode(FILE, 0x12345678, memory_of(b""), 0xBEEF) == "0xbeef"


def test_a_name_at_the_end_of_memory() -> None:
    text = b"0000:06:0d.0\0"
    for beyond, data in ((0, text), (4, text.ljust(64, b"x"))):
        at = 2 * PAGE - len(text) + beyond  # to the last byte of a page, or across its end
        shown = decode(FILE, rfc.VFIO_GROUP_GET_DEVICE_FD, memory_of(data, at), at)
        assert shown == '"0000:06:0d.0"'


@pytest.mark.parametrize(
    ("count", "present", "text"),
    [
        (0, 0, "[0, 0]"),
        (-5, 0, "[0, -5]"),
        (16, 16, str([0, 16, *range(16)])),
        (1000, 16, str([0, 1000, *range(16)])),
        (1 << 30, 16, str([0, 1 << 30, *range(16)])),
        (2, 1, hex(AT)),
    ],
)
def test_lists(count: int, present: int, text: str) -> None:
    data = struct.pack(f"<{2 + present}i", 0, count, *range(present))
    assert decode(FILE, rfc.VFIO_DEVICE_SET_IRQ_EVENTFDS, memory_of(data), AT) == text


def test_names_are_those_of_the_header_for_every_kind_of_file() -> None:
    for kind in ("", "group", "device"):
        assert name_of(kind, rfc.VFIO_GROUP_MERGE) == "VFIO_GROUP_MERGE"
        assert find(kind, rfc.VFIO_GROUP_MERGE) is rfc.IOCTLS[rfc.VFIO_GROUP_MERGE]
    assert find("group", 0x12345678) is None
    assert name_of("group", 0xC0283B99) == "0xc0283b99 /* ';', 153 */"
