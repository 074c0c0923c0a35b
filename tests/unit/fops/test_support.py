"""fops.support: what the matrix says is what files answer. The page is tests/test_support_page.py's."""

from __future__ import annotations

import errno
import struct

import pytest

from support.iommufd import IommufdDesk
from support.mainline import ALONE, Desk, refused
from uvfio.fops.request import Refused
from uvfio.fops.support import Row, markdown, rows
from uvfio.uapi import iommufd, vfio

REFUSED = {(row.section, row.file, row.number): row for row in rows()}
REFUSED = {key: row for key, row in REFUSED.items() if isinstance(row.support, Refused)}


def number_of(row: Row) -> int:
    assert isinstance(row.support, Refused)
    found: int = getattr(errno, row.support.errno)
    return found


def those(section: str, file: str) -> list[Row]:
    found = [row for (where, kind, _), row in REFUSED.items() if (where, kind) == (section, file)]
    assert found, (section, file)
    return found


def test_nothing_of_2011_is_refused() -> None:
    assert not [row for row in REFUSED.values() if row.abi == "2011"]


def test_refusals_of_the_container() -> None:
    desk = Desk()
    container, _, _ = desk.ready()
    for row in those("mainline: container", "/dev/vfio/vfio"):
        with refused(desk, number_of(row)):
            desk.me.ioctl(container, row.number)


def test_refusals_of_container_requests_to_an_iommufd() -> None:
    desk = IommufdDesk()
    fd = desk.iommufd()
    for row in those("mainline: container", "/dev/iommu"):
        with refused(desk, number_of(row)):
            desk.me.ioctl(fd, row.number)


def test_refusals_of_devices() -> None:
    desk = IommufdDesk()
    _, _, device = desk.ready()
    for row in those("mainline: device", "from a group"):
        with refused(desk, number_of(row)):
            desk.me.ioctl(device, row.number)
    for row in those("mainline: VFIO_DEVICE_FEATURE", "device"):
        flags = row.number | 1 << 18
        with refused(desk, number_of(row)):
            desk.me.ioctl(device, vfio.VFIO_DEVICE_FEATURE, struct.pack("<II", 8, flags))


def test_refusals_of_devices_by_their_own_node() -> None:
    desk = IommufdDesk()
    _, _, device = desk.attached()
    for row in those("mainline: device", "/dev/vfio/devices/vfioN"):
        with refused(desk, number_of(row)):
            desk.me.ioctl(device, row.number)


def test_refusals_of_an_iommufd_whose_argument_is_valid() -> None:
    desk = IommufdDesk()
    fd = desk.iommufd()
    ioas, device = desk.ioas(fd), desk.cdev(ALONE)
    number = desk.bind(device, fd)
    hwpt = desk.hwpt(fd, number, ioas)
    valid = {
        iommufd.IOMMU_HWPT_SET_DIRTY_TRACKING: ("III", 0, hwpt, 0),
        iommufd.IOMMU_HWPT_GET_DIRTY_BITMAP: ("IIIQQQQ", hwpt, 0, 0, 0, 4096, 4096, 0),
        iommufd.IOMMU_HWPT_INVALIDATE: ("IQIIII", hwpt, 0, 0, 0, 0, 0),
        iommufd.IOMMU_FAULT_QUEUE_ALLOC: ("III", 0, 0, 0),
        iommufd.IOMMU_VIOMMU_ALLOC: ("IIIIIIIQ", 0, 1, number, hwpt, 0, 0, 0, 0),
        iommufd.IOMMU_VDEVICE_ALLOC: ("IIIQ", 1, number, 0, 0),
        iommufd.IOMMU_VEVENTQ_ALLOC: ("IIIIIII", 0, 1, 1, 1, 0, 0, 0),
        iommufd.IOMMU_HW_QUEUE_ALLOC: ("IIIIIQQ", 0, 1, 1, 0, 0, 0, 4096),
    }
    found = those("mainline: iommufd", "/dev/iommu")
    assert {row.number for row in found} == valid.keys()
    for row in found:
        layout, *values = valid[row.number]
        assert isinstance(layout, str)
        with refused(desk, number_of(row)):
            desk.ask(fd, row.number, layout, *(int(value) for value in values))


def test_a_cell_says_what_is_missing_or_why() -> None:
    page = markdown()
    assert "| `VFIO_IOMMU_MAP_DMA` (0x3b71) | full | full |" in page
    assert "partial: no PASIDs (EOPNOTSUPP): no device has them" in page
    assert "ENOENT: it needs a virtual IOMMU, and there is none" in page
    assert "`VFIO_DEVICE_FEATURE_DMA_BUF` (11) | ENOTTY: as in a kernel" in page


@pytest.mark.parametrize("key", REFUSED)
def test_every_refusal_is_of_a_section_that_is_tried(key: tuple[str, str, int]) -> None:
    assert key[:2] in {
        ("mainline: container", "/dev/vfio/vfio"),
        ("mainline: container", "/dev/iommu"),
        ("mainline: device", "from a group"),
        ("mainline: device", "/dev/vfio/devices/vfioN"),
        ("mainline: VFIO_DEVICE_FEATURE", "device"),
        ("mainline: iommufd", "/dev/iommu"),
    }
