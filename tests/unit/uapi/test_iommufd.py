"""Tables of linux/iommufd.h: complete, consistent with each other. The numbers are tests/abi's business."""

from __future__ import annotations

import ctypes

import pytest

from uvfio.uapi import iommufd, vfio
from uvfio.uapi.ioctl import _IOC_DIR, _IOC_NR, _IOC_SIZE, _IOC_TYPE
from uvfio.uapi.structs import Struct

PACKERS = {
    iommufd.iommu_ioas_map: iommufd.IOAS_MAP,
    iommufd.iommu_ioas_map_file: iommufd.IOAS_MAP_FILE,
    iommufd.iommu_ioas_copy: iommufd.IOAS_COPY,
    iommufd.iommu_ioas_unmap: iommufd.IOAS_UNMAP,
    iommufd.iommu_iova_range: iommufd.IOVA_RANGE,
}
STRUCTS = {
    name: kind
    for name, kind in vars(iommufd).items()
    if isinstance(kind, type) and issubclass(kind, Struct) and kind is not Struct
}
FIRST_SIZES = {  # where a later release made the struct longer, or the end of the first is padding
    "IOMMU_HWPT_ALLOC": (24, 48),
    "IOMMU_GET_HW_INFO": (32, 40),
    "IOMMU_VIOMMU_ALLOC": (24, 40),
    "IOMMU_VEVENTQ_ALLOC": (28, 32),
}


def test_every_request_is_in_the_table_under_its_name() -> None:
    named = {(ioctl.name, request) for (_, request), ioctl in iommufd.IOCTLS.items()}
    assert named == {
        (name, value)
        for name, value in vars(iommufd).items()
        if name.startswith("IOMMU_") and value >> 8 == iommufd.IOMMUFD_TYPE
    }


def test_requests_are_plain_and_numbered_from_128() -> None:
    for (file, request), ioctl in iommufd.IOCTLS.items():
        assert file == ioctl.file == "iommufd"
        assert (_IOC_TYPE(request), _IOC_DIR(request), _IOC_SIZE(request)) == (ord(";"), 0, 0)
    numbers = [_IOC_NR(request) for _, request in iommufd.IOCTLS]
    assert sorted(numbers) == list(range(iommufd.IOMMUFD_CMD_BASE, 0x95))


def test_no_request_is_one_of_vfio() -> None:
    assert not {request for _, request in iommufd.IOCTLS} & {request for _, request in vfio.IOCTLS}


@pytest.mark.parametrize("ioctl", iommufd.IOCTLS.values(), ids=lambda ioctl: ioctl.name)
def test_linux_accepts_the_struct_of_the_first_release(ioctl: vfio.Ioctl) -> None:
    assert isinstance(ioctl.argument, type)
    size = ctypes.sizeof(ioctl.argument)
    assert (ioctl.minsz, size) == FIRST_SIZES.get(ioctl.name, (size, size))
    assert ioctl.argument._fields_[0][0] == "size"
    fields = [getattr(ioctl.argument, field[0]) for field in ioctl.argument._fields_]
    assert ioctl.minsz in [field.offset + field.size for field in fields]


@pytest.mark.parametrize("ioctl", iommufd.IOCTLS.values(), ids=lambda ioctl: ioctl.name)
def test_what_has_an_output_field_is_written_back(ioctl: vfio.Ioctl) -> None:
    assert isinstance(ioctl.argument, type)
    if any(field[0].startswith("out_") for field in ioctl.argument._fields_):
        assert ioctl.output


@pytest.mark.parametrize("struct", PACKERS, ids=lambda struct: struct.__name__)
def test_packers_have_the_layout_of_their_struct(struct: type[Struct]) -> None:
    values = range(1, len(struct._fields_) + 1)
    assert PACKERS[struct].pack(*values) == bytes(struct(*values))


@pytest.mark.parametrize("struct", STRUCTS.values(), ids=lambda struct: struct.__name__)
def test_no_struct_has_a_hole(struct: type[Struct]) -> None:
    """Linux checks reserved fields; a hole would be bytes that nobody can name."""
    end = 0
    for field in struct._fields_:
        place = getattr(struct, field[0])
        assert place.offset == end, field[0]
        end += place.size
    assert ctypes.sizeof(struct) == end


def test_flags_have_names() -> None:
    for owner, names in iommufd.FLAG_NAMES.items():
        assert "flags" in [field[0] for field in STRUCTS[owner]._fields_]
        for bit, name in names.items():
            assert any(
                value == bit and key.endswith(f"_{name}") for key, value in vars(iommufd).items()
            ), f"{owner} {name}"


def test_a_request_has_a_name_for_messages_container_requests_too() -> None:
    assert iommufd.ioctl_name(iommufd.IOMMU_IOAS_MAP) == "IOMMU_IOAS_MAP"
    assert iommufd.ioctl_name(vfio.VFIO_IOMMU_MAP_DMA) == "VFIO_IOMMU_MAP_DMA"
    assert iommufd.ioctl_name(0x3B95) == "0x00003b95 /* ';', 149 */"
