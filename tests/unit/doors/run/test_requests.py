"""One number, several meanings: which one it is depends on the file."""

from __future__ import annotations

import pytest

from support.iommufd import IommufdDesk
from support.mainline import ALONE
from uvfio.doors.run.requests import request_of
from uvfio.fops.file import File
from uvfio.uapi import iommufd, rfc, vfio


def names(desk: IommufdDesk, fd: int, *requests: int) -> list[str]:
    file = desk.me.file(fd)
    assert isinstance(file, File)
    return [request_of(file, request).name for request in requests]


def test_files_of_today() -> None:
    desk = IommufdDesk()
    fd, _, device = desk.attached()
    assert names(desk, fd, iommufd.IOMMU_IOAS_MAP, vfio.VFIO_IOMMU_MAP_DMA) == [
        "IOMMU_IOAS_MAP",
        "VFIO_IOMMU_MAP_DMA",
    ]
    assert names(desk, device, vfio.VFIO_IOMMU_MAP_DMA, vfio.VFIO_DEVICE_BIND_IOMMUFD) == [
        "VFIO_DEVICE_PCI_HOT_RESET",
        "VFIO_DEVICE_BIND_IOMMUFD",
    ]
    known = request_of(desk.me.file(fd), iommufd.IOMMU_IOAS_MAP)  # type: ignore[arg-type]
    assert (known.sized, known.output) == (True, True)
    assert request_of(desk.me.file(fd), 0x3BFF).argument is None  # type: ignore[arg-type]
    assert request_of(desk.me.file(device), 0x3BFF).argument is None  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("abi", "wanted"), [("mainline", "VFIO_GROUP_GET_STATUS"), ("auto", "VFIO_GROUP_GET_IOMMU_FD")]
)
def test_a_group_that_has_not_decided(abi: str, wanted: str) -> None:
    desk = IommufdDesk(abi)
    group = desk.group(1)
    assert names(desk, group, vfio.VFIO_GROUP_GET_STATUS) == [wanted]
    assert names(desk, group, vfio.VFIO_GROUP_SET_CONTAINER, rfc.VFIO_GROUP_MERGE) == [
        "VFIO_GROUP_SET_CONTAINER",
        "VFIO_GROUP_MERGE",
    ]


def test_a_group_that_has_decided() -> None:
    desk = IommufdDesk("auto")
    container, group, _ = desk.ready(name=ALONE)
    assert names(desk, group, vfio.VFIO_GROUP_GET_STATUS) == ["VFIO_GROUP_GET_STATUS"]
    assert names(desk, container, vfio.VFIO_IOMMU_MAP_DMA) == ["VFIO_IOMMU_MAP_DMA"]


def test_no_file_is_one_of_2011() -> None:
    assert request_of(None, rfc.VFIO_GROUP_MERGE).name == "VFIO_GROUP_MERGE"
