"""Tables of linux/vfio.h: complete, consistent with each other. The numbers are tests/abi's business."""

from __future__ import annotations

import ctypes
from types import ModuleType

import pytest

from uvfio.uapi import rfc, vfio, vfio_feature
from uvfio.uapi.ioctl import _IOC_DIR, _IOC_NR, _IOC_SIZE, _IOC_TYPE
from uvfio.uapi.structs import Struct

PACKERS = {
    vfio.vfio_group_status: vfio.HEAD,
    vfio.vfio_device_feature: vfio.HEAD,
    vfio.vfio_region_info: vfio.REGION_INFO,
    vfio.vfio_irq_info: vfio.IRQ_INFO,
    vfio.vfio_irq_set: vfio.IRQ_SET,
    vfio.vfio_iommu_type1_dma_map: vfio.DMA_MAP,
    vfio.vfio_iommu_type1_dma_unmap: vfio.DMA_UNMAP,
    vfio.vfio_bitmap: vfio.BITMAP,
}
STRUCTS = {
    name: kind
    for module in (vfio, vfio_feature)
    for name, kind in vars(module).items()
    if isinstance(kind, type) and issubclass(kind, Struct) and kind is not Struct
}


def requests(module: ModuleType) -> dict[str, int]:
    """Constants that are ioctl requests: no flag or index has ';' in its second byte."""
    return {
        name: value
        for name, value in vars(module).items()
        if name.startswith("VFIO_") and isinstance(value, int) and value >> 8 == vfio.VFIO_TYPE
    }


def test_every_request_is_in_the_table_under_its_name() -> None:
    named = {(ioctl.name, request) for (_, request), ioctl in vfio.IOCTLS.items()}
    assert named == set(requests(vfio).items())
    assert not requests(vfio_feature)


def test_requests_are_plain_and_numbered_from_100() -> None:
    for (file, request), ioctl in vfio.IOCTLS.items():
        assert file == ioctl.file
        assert (_IOC_TYPE(request), _IOC_DIR(request), _IOC_SIZE(request)) == (ord(";"), 0, 0)
    assert {_IOC_NR(request) for _, request in vfio.IOCTLS} == set(range(100, 122))


def test_six_numbers_mean_different_things_on_a_container_and_a_device() -> None:
    container = {request for file, request in vfio.IOCTLS if file == "container"}
    device = {request for file, request in vfio.IOCTLS if file == "device"}
    assert container & device == set(range(0x3B70, 0x3B76))
    assert vfio.ioctl_name("container", 0x3B71) == "VFIO_IOMMU_MAP_DMA"
    assert vfio.ioctl_name("device", 0x3B71) == "VFIO_DEVICE_PCI_HOT_RESET"


def test_a_request_has_a_name_for_messages_only_on_its_file() -> None:
    assert vfio.ioctl_name("group", vfio.VFIO_GROUP_GET_STATUS) == "VFIO_GROUP_GET_STATUS"
    assert vfio.ioctl_name("device", vfio.VFIO_GROUP_GET_STATUS) == "0x00003b67 /* ';', 103 */"
    assert vfio.ioctl_name("group", 0x3B7F) == "0x00003b7f /* ';', 127 */"


def test_two_requests_have_the_value_of_a_request_of_2011() -> None:
    mainline = {request for _, request in vfio.IOCTLS}
    assert mainline & set(rfc.IOCTLS) == {0x3B67, 0x3B74}


@pytest.mark.parametrize("key", vfio.IOCTLS, ids=lambda key: f"{key[0]}-{key[1]:#x}")
def test_arguments_are_of_a_known_kind(key: tuple[str, int]) -> None:
    ioctl = vfio.IOCTLS[key]
    if isinstance(ioctl.argument, str):
        assert ioctl.argument in ("none", "int", "int*", "char*")
        assert (ioctl.minsz, ioctl.output) == (0, False)
    else:
        assert 8 <= ioctl.minsz <= ctypes.sizeof(ioctl.argument)
        assert ioctl.argument._fields_[0][0] == "argsz"
        assert ioctl.argument._fields_[1][0] == "flags"


@pytest.mark.parametrize("key", vfio.IOCTLS, ids=lambda key: f"{key[0]}-{key[1]:#x}")
def test_the_least_size_ends_where_a_field_ends(key: tuple[str, int]) -> None:
    ioctl = vfio.IOCTLS[key]
    if isinstance(ioctl.argument, str):
        return
    fields = [getattr(ioctl.argument, field[0]) for field in ioctl.argument._fields_]
    assert ioctl.minsz in [field.offset + field.size for field in fields]


@pytest.mark.parametrize("struct", PACKERS, ids=lambda struct: struct.__name__)
def test_packers_have_the_layout_of_their_struct(struct: type[Struct]) -> None:
    values = range(1, len(struct._fields_) + 1)
    assert PACKERS[struct].pack(*values) == bytes(struct(*values))


def test_flags_have_names() -> None:
    constants = vars(vfio) | vars(vfio_feature)
    for owner, names in vfio.FLAG_NAMES.items():
        assert owner in STRUCTS
        assert "flags" in [field[0] for field in STRUCTS[owner]._fields_]
        for bit, name in names.items():
            assert any(value == bit and key.endswith(name) for key, value in constants.items()), (
                f"{owner} {name}"
            )


def test_interrupt_masks_cover_their_flags() -> None:
    data, action = vfio.VFIO_IRQ_SET_DATA_TYPE_MASK, vfio.VFIO_IRQ_SET_ACTION_TYPE_MASK
    assert data & action == 0
    assert data | action == sum(vfio.FLAG_NAMES["vfio_irq_set"])


def test_extensions_have_their_names() -> None:
    for value, name in vfio.EXTENSION_NAMES.items():
        assert vars(vfio)[name] == value
    assert list(vfio.EXTENSION_NAMES) == list(range(1, 11))


def test_features_are_numbered_without_a_gap_under_their_names() -> None:
    assert list(vfio_feature.FEATURES) == list(range(13))
    for value, feature in vfio_feature.FEATURES.items():
        assert vars(vfio_feature)[feature.name] == value
        assert feature.get or feature.set


@pytest.mark.parametrize(
    "feature", vfio_feature.FEATURES.values(), ids=lambda feature: feature.name
)
def test_a_feature_needs_all_of_its_payload(feature: vfio_feature.Feature) -> None:
    if isinstance(feature.payload, str):
        assert feature.minsz == {"none": 0, "uuid": 16}[feature.payload]
    else:
        assert feature.minsz == ctypes.sizeof(feature.payload)


def test_feature_numbers_and_operations_share_a_word() -> None:
    operations = (
        vfio_feature.VFIO_DEVICE_FEATURE_GET
        | vfio_feature.VFIO_DEVICE_FEATURE_SET
        | vfio_feature.VFIO_DEVICE_FEATURE_PROBE
    )
    assert operations & vfio_feature.VFIO_DEVICE_FEATURE_MASK == 0
    assert operations == sum(vfio.FLAG_NAMES["vfio_device_feature"])


def test_states_of_migration_have_their_names() -> None:
    assert list(vfio_feature.STATE_NAMES) == list(range(vfio_feature.VFIO_DEVICE_STATE_NR))
    for value, name in vfio_feature.STATE_NAMES.items():
        assert vars(vfio_feature)[f"VFIO_DEVICE_STATE_{name}"] == value
