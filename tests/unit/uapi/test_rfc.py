"""Tables of the 2011 ABI: complete, consistent with each other. The numbers are tests/abi's business."""

from __future__ import annotations

import ctypes

import pytest

from uvfio.uapi import rfc
from uvfio.uapi.ioctl import _IOC_NR, _IOC_SIZE, _IOC_TYPE
from uvfio.uapi.structs import Struct

PACKERS = {
    rfc.vfio_dma_map: rfc.DMA_MAP,
    rfc.vfio_region_info: rfc.REGION_INFO,
    rfc.vfio_irq_info: rfc.IRQ_INFO,
    rfc.vfio_dtpath: rfc.DTPATH,
    rfc.vfio_dtpath_32: rfc.DTPATH_32,
    rfc.vfio_dtindex: rfc.DTINDEX,
}


def test_there_are_nineteen_ioctls_numbered_100_to_118() -> None:
    assert len({ioctl.name for ioctl in rfc.IOCTLS.values()}) == 19
    assert {_IOC_NR(request) for request in rfc.IOCTLS} == set(range(100, 119))
    assert {_IOC_TYPE(request) for request in rfc.IOCTLS} == {ord(";")}


def test_every_request_of_the_module_is_in_the_table_under_its_name() -> None:
    for request, ioctl in rfc.IOCTLS.items():
        name = ioctl.name if vars(rfc)[ioctl.name] == request else f"{ioctl.name}_32"
        assert vars(rfc)[name] == request


def test_d28_requests_that_encode_a_pointer_have_a_32_bit_number_too() -> None:
    assert rfc.VFIO_GROUP_GET_DEVICE_FD_32 == 0x40043B68
    assert rfc.VFIO_DEVICE_GET_DTPATH_32 == 0xC0143B75
    for request in (rfc.VFIO_GROUP_GET_DEVICE_FD_32, rfc.VFIO_DEVICE_GET_DTPATH_32):
        assert request in rfc.IOCTLS


@pytest.mark.parametrize("request_", rfc.IOCTLS)
def test_the_size_in_a_request_is_that_of_its_struct(request_: int) -> None:
    argument = rfc.IOCTLS[request_].argument
    if isinstance(argument, str):
        assert _IOC_SIZE(request_) in {"none": {0}, "u64*": {8}, "char*": {4, 8}}.get(argument, {4})
    else:
        assert _IOC_SIZE(request_) == ctypes.sizeof(argument)


def test_d29_two_requests_encode_one_int_although_they_take_more() -> None:
    for request in (rfc.VFIO_DEVICE_SET_IRQ_EVENTFDS, rfc.VFIO_DEVICE_SET_UNMASK_IRQ_EVENTFD):
        assert _IOC_SIZE(request) == 4
        assert rfc.IOCTLS[request].argument in ("int[]", "int[2]")


@pytest.mark.parametrize("struct", PACKERS, ids=lambda struct: struct.__name__)
def test_packers_have_the_layout_of_their_struct(struct: type[Struct]) -> None:
    packer = PACKERS[struct]
    values = range(1, len(struct._fields_) + 1)
    assert packer.pack(*values) == bytes(struct(*values))


def test_flags_have_names() -> None:
    known = {ioctl.name for ioctl in rfc.IOCTLS.values()} | {s.__name__ for s in PACKERS}
    for owner, names in rfc.FLAG_NAMES.items():
        assert owner in known
        for bit, name in names.items():
            assert any(
                value == bit for key, value in vars(rfc).items() if key.endswith(f"_{name}")
            ), name


def test_a_request_has_a_name_for_messages() -> None:
    assert rfc.ioctl_name(rfc.VFIO_IOMMU_MAP_DMA) == "VFIO_IOMMU_MAP_DMA"
    assert rfc.ioctl_name(0x3B7F) == "0x00003b7f /* ';', 127 */"
