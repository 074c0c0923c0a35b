"""Names and arguments of mainline's ioctls as a trace shows them."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from support.mainline import ALONE, Desk
from uvfio.doors.run.observe.trace_mainline import decode, find, name_of
from uvfio.errors import BadAddress
from uvfio.fops.file import File
from uvfio.uapi import iommufd, vfio
from uvfio.uapi import vfio_feature as features

AT = 0x1000
FEATURE_SET = features.VFIO_DEVICE_FEATURE_SET
FEATURE_GET = features.VFIO_DEVICE_FEATURE_GET


class Kind(File):
    """A file of whatever kind that is no device."""

    __slots__ = ("kind",)

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.kind = kind  # type: ignore[misc]


def memory_of(data: bytes) -> Any:
    def read(address: int, size: int) -> bytes:
        if not AT <= address <= address + size <= AT + len(data):
            raise BadAddress(f"{address:#x}")
        return data[address - AT : address - AT + size]

    return read


def caps(*ids: int, start: int) -> bytes:
    """A chain of capabilities without contents."""
    return b"".join(
        struct.pack("<HHI", number, 1, start + 8 * (at + 1) if at + 1 < len(ids) else 0)
        for at, number in enumerate(ids)
    )


CASES: list[tuple[str, int, bytes, str]] = [
    ("container", vfio.VFIO_GET_API_VERSION, b"", ""),
    (
        "container",
        vfio.VFIO_IOMMU_MAP_DMA,
        struct.pack("<IIQQQ", 32, 3, 0x7F0000001000, 0x100000, 0x2000),
        "{flags=READ|WRITE, vaddr=0x7f0000001000, iova=0x100000, size=0x2000}",
    ),
    (
        "container",
        vfio.VFIO_IOMMU_UNMAP_DMA,
        struct.pack("<IIQQ", 24, 2, 0, 0x3000),
        "{flags=ALL, iova=0, size=0x3000}",
    ),
    (
        "container",
        vfio.VFIO_IOMMU_GET_INFO,
        struct.pack("<IIQII", 48, 3, 0x1000, 24, 0) + caps(2, 3, 1, start=24),
        (
            "{flags=PGSIZES|CAPS, iova_pgsizes=0x1000, cap_offset=0x18, "
            "caps=[MIGRATION, DMA_AVAIL, IOVA_RANGE]}"
        ),
    ),
    (
        "container",
        vfio.VFIO_IOMMU_GET_INFO,
        struct.pack("<IIQ", 16, 1, 0x201000),
        "{flags=PGSIZES, iova_pgsizes=0x201000}",
    ),
    ("container", vfio.VFIO_IOMMU_DIRTY_PAGES, struct.pack("<II", 8, 1), "{flags=START}"),
    (
        "container",
        vfio.VFIO_IOMMU_DIRTY_PAGES,
        struct.pack("<IIQQQQQ", 48, 4, 0x1000, 0x2000, 0x1000, 8, 0x7000),
        (
            "{flags=GET_BITMAP, iova=0x1000, size=0x2000, bitmap_pgsize=0x1000, bitmap_size=0x8, "
            "bitmap_data=0x7000}"
        ),
    ),
    ("group", vfio.VFIO_GROUP_GET_STATUS, struct.pack("<II", 8, 1), "{flags=VIABLE}"),
    ("group", vfio.VFIO_GROUP_SET_CONTAINER, struct.pack("<i", 5), "[5]"),
    ("group", vfio.VFIO_GROUP_GET_DEVICE_FD, b"0000:06:0d.0\0".ljust(64), '"0000:06:0d.0"'),
    (
        "device",
        vfio.VFIO_DEVICE_GET_INFO,
        struct.pack("<5I", 20, 3, 9, 5, 0),
        "{flags=RESET|PCI, num_regions=9, num_irqs=5}",
    ),
    (
        "device",
        vfio.VFIO_DEVICE_GET_REGION_INFO,
        struct.pack("<IIIIQQ", 48, 15, 2, 32, 0x4000, 2 << 40) + caps(1, 3, start=32),
        (
            "{flags=READ|WRITE|MMAP|CAPS, index=BAR2, cap_offset=0x20, size=0x4000, "
            "offset=0x20000000000, caps=[SPARSE_MMAP, MSIX_MAPPABLE]}"
        ),
    ),
    (
        "device",
        vfio.VFIO_DEVICE_GET_IRQ_INFO,
        struct.pack("<IIII", 16, 9, 2, 32),
        "{flags=EVENTFD|NORESIZE, index=MSIX, count=0x20}",
    ),
    (
        "device",
        vfio.VFIO_DEVICE_SET_IRQS,
        struct.pack("<5I2i", 28, 4 | 32, 2, 0, 2, 7, -1),
        "{flags=DATA_EVENTFD|ACTION_TRIGGER, index=MSIX, start=0, count=2, fds=[7, -1]}",
    ),
    (
        "device",
        vfio.VFIO_DEVICE_SET_IRQS,
        struct.pack("<5I2B", 22, 2 | 8, 0, 0, 2, 1, 0),
        "{flags=DATA_BOOL|ACTION_MASK, index=INTX, start=0, count=2, bools=[1, 0]}",
    ),
    (
        "device",
        vfio.VFIO_DEVICE_SET_IRQS,
        struct.pack("<5I", 20, 1 | 32, 7, 0, 0),
        "{flags=DATA_NONE|ACTION_TRIGGER, index=7, start=0, count=0}",
    ),
    (
        "device",
        vfio.VFIO_DEVICE_SET_IRQS,
        struct.pack("<5I20i", 100, 4 | 32, 2, 0, 20, *range(20)),
        (
            "{flags=DATA_EVENTFD|ACTION_TRIGGER, index=MSIX, start=0, count=0x14, "
            f"fds=[{', '.join(map(str, range(16)))}, ...]}}"
        ),
    ),
    (
        "device",
        vfio.VFIO_DEVICE_GET_PCI_HOT_RESET_INFO,
        struct.pack("<III", 28, 0, 2) + struct.pack("<IHBBIHBB", 2, 0, 1, 0, 2, 0, 1, 9),
        "{flags=0, count=2, devices=[0000:01:00.0 in 2, 0000:01:01.1 in 2]}",
    ),
    (
        "device",
        vfio.VFIO_DEVICE_PCI_HOT_RESET,
        struct.pack("<IIIi", 16, 0, 1, 4),
        "{flags=0, count=1, fds=[4]}",
    ),
    (
        "device",
        vfio.VFIO_DEVICE_FEATURE,
        struct.pack("<II", 8, FEATURE_SET | features.VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY),
        "{flags=SET|LOW_POWER_ENTRY}",
    ),
    (
        "device",
        vfio.VFIO_DEVICE_FEATURE,
        struct.pack("<IIIi", 16, FEATURE_GET | features.VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE, 2, 9),
        "{flags=GET|MIG_DEVICE_STATE, device_state=RUNNING, data_fd=9}",
    ),
    ("device", vfio.VFIO_DEVICE_FEATURE, struct.pack("<II", 8, 999), "{flags=999}"),
    (
        "iommufd",
        iommufd.IOMMU_IOAS_MAP,
        struct.pack("<IIIIQQQ", 40, 7, 2, 0, 0x7F0000001000, 0x2000, 0x100000),
        (
            "{flags=FIXED_IOVA|WRITEABLE|READABLE, ioas_id=2, user_va=0x7f0000001000, "
            "length=0x2000, iova=0x100000}"
        ),
    ),
    (
        "iommufd",
        vfio.VFIO_IOMMU_UNMAP_DMA,
        struct.pack("<IIQQ", 24, 0, 0x1000, 0x1000),
        "{flags=0, iova=0x1000, size=0x1000}",
    ),
]


@pytest.fixture
def device() -> File:
    desk = Desk()
    _, _, fd = desk.ready(1, ALONE)
    file = desk.me.file(fd)
    assert isinstance(file, File)
    return file


@pytest.mark.parametrize(
    ("kind", "request_", "data", "text"),
    CASES,
    ids=[f"{name_of(kind, request)}-{at}" for at, (kind, request, *_) in enumerate(CASES)],
)
def test_arguments(kind: str, request_: int, data: bytes, text: str, device: File) -> None:
    file = device if kind == "device" else Kind(kind)
    assert decode(file, request_, memory_of(data), AT) == text


@pytest.mark.parametrize(
    ("kind", "request_"), sorted({(kind, request) for kind, request, *_ in CASES})
)
def test_arguments_that_cannot_be_read(kind: str, request_: int, device: File) -> None:
    known = find(kind, request_)
    assert known is not None
    file = device if kind == "device" else Kind(kind)
    shown = decode(file, request_, memory_of(b""), 0xDEAD000)
    assert shown == ("" if known.argument == "none" else "0xdead000")


@pytest.mark.parametrize("byte", [b"\0", b"\xff"])
def test_every_request_can_be_shown(byte: bytes) -> None:
    """Memory full of ones, or of zeros: whatever stands there, a line comes of it."""

    def read(address: int, size: int) -> bytes:
        return byte * size

    for table in (vfio.IOCTLS, iommufd.IOCTLS):
        for kind, request in table:
            assert isinstance(decode(Kind(kind), request, read, AT), str)


def test_arguments_that_are_numbers() -> None:
    container = Kind("container")
    for request in (vfio.VFIO_CHECK_EXTENSION, vfio.VFIO_SET_IOMMU):
        assert decode(container, request, memory_of(b""), 3) == "VFIO_TYPE1v2_IOMMU"
        assert decode(container, request, memory_of(b""), 77) == "77"


def test_one_number_means_what_its_file_says() -> None:
    number = vfio.VFIO_IOMMU_MAP_DMA
    assert number == vfio.VFIO_DEVICE_PCI_HOT_RESET
    assert name_of("container", number) == name_of("iommufd", number) == "VFIO_IOMMU_MAP_DMA"
    assert name_of("device", number) == "VFIO_DEVICE_PCI_HOT_RESET"
    assert name_of("group", 0x3BFF) == "0x00003bff /* ';', 255 */"
    assert decode(Kind("group"), 0x3BFF, memory_of(b""), 0xBEEF) == "0xbeef"


def test_a_chain_that_goes_in_circles() -> None:
    looped = struct.pack("<IIQII", 32, 3, 0x1000, 24, 0) + struct.pack("<HHI", 1, 1, 24)
    shown = decode(Kind("container"), vfio.VFIO_IOMMU_GET_INFO, memory_of(looped), AT)
    assert shown.count("IOVA_RANGE") == 16
