"""``linux/vfio.h`` of mainline: containers, groups, devices and type 1 IOMMUs, under the names of the header.

Every request is a plain ``_IO``: the struct says its own size in ``argsz``, and grows. ``Ioctl.minsz`` is the
smallest size that Linux accepts. Numbers from 112 on mean different things on different files, so a
request is known only together with the kind of its file. What ``VFIO_DEVICE_FEATURE`` carries is in
``uvfio.uapi.vfio_feature``; the ioctls of /dev/iommu are in ``uvfio.uapi.iommufd``.

Arrays at the end of a struct are not fields. A capability's ``header`` is spelled out as ``id``, ``version``
and ``next``; of two names for one field the first is used. Left out: sPAPR windows and EEH, the channels and
crypto cards of s390, NVLink, regions of graphics cards, the migration region of before Linux 5.18.
"""

import struct
from typing import Final, NamedTuple

from uvfio.uapi.ioctl import _IO, _IOC_NR
from uvfio.uapi.structs import Struct, i32, u8, u16, u32, u64
from uvfio.uapi.vfio_feature import FLAG_NAMES as _FEATURE_FLAG_NAMES
from uvfio.uapi.vfio_feature import vfio_precopy_info

VFIO_API_VERSION: Final = 0
VFIO_TYPE: Final = ord(";")
VFIO_BASE: Final = 100

# Extensions; the kinds of IOMMU among them are arguments of VFIO_SET_IOMMU too
VFIO_TYPE1_IOMMU: Final = 1
VFIO_SPAPR_TCE_IOMMU: Final = 2
VFIO_TYPE1v2_IOMMU: Final = 3
VFIO_DMA_CC_IOMMU: Final = 4
VFIO_EEH: Final = 5
VFIO_TYPE1_NESTING_IOMMU: Final = 6  # never worked; later headers only reserve the number
VFIO_SPAPR_TCE_v2_IOMMU: Final = 7
VFIO_NOIOMMU_IOMMU: Final = 8
VFIO_UNMAP_ALL: Final = 9  # Linux 5.12
VFIO_UPDATE_VADDR: Final = 10  # Linux 5.12


class vfio_info_cap_header(Struct):
    id: u16
    version: u16
    next: u32


# Container file
VFIO_GET_API_VERSION: Final = _IO(VFIO_TYPE, VFIO_BASE + 0)
VFIO_CHECK_EXTENSION: Final = _IO(VFIO_TYPE, VFIO_BASE + 1)
VFIO_SET_IOMMU: Final = _IO(VFIO_TYPE, VFIO_BASE + 2)


# Group file
class vfio_group_status(Struct):
    argsz: u32
    flags: u32


VFIO_GROUP_FLAGS_VIABLE: Final = 1 << 0
VFIO_GROUP_FLAGS_CONTAINER_SET: Final = 1 << 1
VFIO_GROUP_GET_STATUS: Final = _IO(VFIO_TYPE, VFIO_BASE + 3)
VFIO_GROUP_SET_CONTAINER: Final = _IO(VFIO_TYPE, VFIO_BASE + 4)
VFIO_GROUP_UNSET_CONTAINER: Final = _IO(VFIO_TYPE, VFIO_BASE + 5)
VFIO_GROUP_GET_DEVICE_FD: Final = _IO(VFIO_TYPE, VFIO_BASE + 6)


# Device file: what there is
class vfio_device_info(Struct):
    """20 bytes without ``pad``, which came with Linux 6.7; 16 are enough."""

    argsz: u32
    flags: u32
    num_regions: u32
    num_irqs: u32
    cap_offset: u32
    pad: u32


VFIO_DEVICE_FLAGS_RESET: Final = 1 << 0
VFIO_DEVICE_FLAGS_PCI: Final = 1 << 1
VFIO_DEVICE_FLAGS_PLATFORM: Final = 1 << 2
VFIO_DEVICE_FLAGS_AMBA: Final = 1 << 3
VFIO_DEVICE_FLAGS_CCW: Final = 1 << 4
VFIO_DEVICE_FLAGS_AP: Final = 1 << 5
VFIO_DEVICE_FLAGS_FSL_MC: Final = 1 << 6
VFIO_DEVICE_FLAGS_CAPS: Final = 1 << 7
VFIO_DEVICE_FLAGS_CDX: Final = 1 << 8  # Linux 6.5
VFIO_DEVICE_GET_INFO: Final = _IO(VFIO_TYPE, VFIO_BASE + 7)
VFIO_DEVICE_INFO_CAP_PCI_ATOMIC_COMP: Final = 5  # Linux 6.5


class vfio_device_info_cap_pci_atomic_comp(Struct):
    id: u16
    version: u16
    next: u32
    flags: u32
    reserved: u32


VFIO_PCI_ATOMIC_COMP32: Final = 1 << 0
VFIO_PCI_ATOMIC_COMP64: Final = 1 << 1
VFIO_PCI_ATOMIC_COMP128: Final = 1 << 2


class vfio_region_info(Struct):
    argsz: u32
    flags: u32
    index: u32
    cap_offset: u32
    size: u64
    offset: u64


VFIO_REGION_INFO_FLAG_READ: Final = 1 << 0
VFIO_REGION_INFO_FLAG_WRITE: Final = 1 << 1
VFIO_REGION_INFO_FLAG_MMAP: Final = 1 << 2
VFIO_REGION_INFO_FLAG_CAPS: Final = 1 << 3
VFIO_DEVICE_GET_REGION_INFO: Final = _IO(VFIO_TYPE, VFIO_BASE + 8)
VFIO_REGION_INFO_CAP_SPARSE_MMAP: Final = 1
VFIO_REGION_INFO_CAP_TYPE: Final = 2
VFIO_REGION_INFO_CAP_MSIX_MAPPABLE: Final = 3  # a header and nothing else


class vfio_region_sparse_mmap_area(Struct):
    offset: u64
    size: u64


class vfio_region_info_cap_sparse_mmap(Struct):
    """Followed by ``nr_areas`` of ``vfio_region_sparse_mmap_area``."""

    id: u16
    version: u16
    next: u32
    nr_areas: u32
    reserved: u32


class vfio_region_info_cap_type(Struct):
    id: u16
    version: u16
    next: u32
    type: u32
    subtype: u32


VFIO_REGION_TYPE_PCI_VENDOR_TYPE: Final = 1 << 31
VFIO_REGION_TYPE_PCI_VENDOR_MASK: Final = 0xFFFF
VFIO_REGION_SUBTYPE_INTEL_IGD_OPREGION: Final = 1
VFIO_REGION_SUBTYPE_INTEL_IGD_HOST_CFG: Final = 2
VFIO_REGION_SUBTYPE_INTEL_IGD_LPC_CFG: Final = 3


# Device file: interrupts and reset
class vfio_irq_info(Struct):
    argsz: u32
    flags: u32
    index: u32
    count: u32


VFIO_IRQ_INFO_EVENTFD: Final = 1 << 0
VFIO_IRQ_INFO_MASKABLE: Final = 1 << 1
VFIO_IRQ_INFO_AUTOMASKED: Final = 1 << 2
VFIO_IRQ_INFO_NORESIZE: Final = 1 << 3
VFIO_DEVICE_GET_IRQ_INFO: Final = _IO(VFIO_TYPE, VFIO_BASE + 9)


class vfio_irq_set(Struct):
    """Followed by ``count`` elements: nothing, bytes or ``int``s, as the DATA flag says."""

    argsz: u32
    flags: u32
    index: u32
    start: u32
    count: u32


VFIO_IRQ_SET_DATA_NONE: Final = 1 << 0
VFIO_IRQ_SET_DATA_BOOL: Final = 1 << 1
VFIO_IRQ_SET_DATA_EVENTFD: Final = 1 << 2
VFIO_IRQ_SET_ACTION_MASK: Final = 1 << 3
VFIO_IRQ_SET_ACTION_UNMASK: Final = 1 << 4
VFIO_IRQ_SET_ACTION_TRIGGER: Final = 1 << 5
VFIO_IRQ_SET_DATA_TYPE_MASK: Final = 0b000111
VFIO_IRQ_SET_ACTION_TYPE_MASK: Final = 0b111000
VFIO_DEVICE_SET_IRQS: Final = _IO(VFIO_TYPE, VFIO_BASE + 10)
VFIO_DEVICE_RESET: Final = _IO(VFIO_TYPE, VFIO_BASE + 11)

# PCI numbering of regions and interrupts
VFIO_PCI_BAR0_REGION_INDEX: Final = 0
VFIO_PCI_BAR1_REGION_INDEX: Final = 1
VFIO_PCI_BAR2_REGION_INDEX: Final = 2
VFIO_PCI_BAR3_REGION_INDEX: Final = 3
VFIO_PCI_BAR4_REGION_INDEX: Final = 4
VFIO_PCI_BAR5_REGION_INDEX: Final = 5
VFIO_PCI_ROM_REGION_INDEX: Final = 6
VFIO_PCI_CONFIG_REGION_INDEX: Final = 7
VFIO_PCI_VGA_REGION_INDEX: Final = 8
VFIO_PCI_NUM_REGIONS: Final = 9
VFIO_PCI_INTX_IRQ_INDEX: Final = 0
VFIO_PCI_MSI_IRQ_INDEX: Final = 1
VFIO_PCI_MSIX_IRQ_INDEX: Final = 2
VFIO_PCI_ERR_IRQ_INDEX: Final = 3
VFIO_PCI_REQ_IRQ_INDEX: Final = 4
VFIO_PCI_NUM_IRQS: Final = 5


# Device file: what only PCI devices have
class vfio_pci_dependent_device(Struct):
    """``group_id`` is the id of the device in its iommufd (``devid``) if FLAG_DEV_ID is set."""

    group_id: u32
    segment: u16
    bus: u8
    devfn: u8


VFIO_PCI_DEVID_OWNED: Final = 0  # Linux 6.6
VFIO_PCI_DEVID_NOT_OWNED: Final = -1


class vfio_pci_hot_reset_info(Struct):
    """Followed by ``count`` of ``vfio_pci_dependent_device``."""

    argsz: u32
    flags: u32
    count: u32


VFIO_PCI_HOT_RESET_FLAG_DEV_ID: Final = 1 << 0  # Linux 6.6
VFIO_PCI_HOT_RESET_FLAG_DEV_ID_OWNED: Final = 1 << 1
VFIO_DEVICE_GET_PCI_HOT_RESET_INFO: Final = _IO(VFIO_TYPE, VFIO_BASE + 12)


class vfio_pci_hot_reset(Struct):
    """Followed by ``count`` descriptors of group files."""

    argsz: u32
    flags: u32
    count: u32


VFIO_DEVICE_PCI_HOT_RESET: Final = _IO(VFIO_TYPE, VFIO_BASE + 13)


class vfio_device_gfx_plane_info(Struct):
    """``region_index`` is ``dmabuf_id`` for a plane of type DMABUF."""

    argsz: u32
    flags: u32
    drm_plane_type: u32
    drm_format: u32
    drm_format_mod: u64
    width: u32
    height: u32
    stride: u32
    size: u32
    x_pos: u32
    y_pos: u32
    x_hot: u32
    y_hot: u32
    region_index: u32
    reserved: u32


VFIO_GFX_PLANE_TYPE_PROBE: Final = 1 << 0
VFIO_GFX_PLANE_TYPE_DMABUF: Final = 1 << 1
VFIO_GFX_PLANE_TYPE_REGION: Final = 1 << 2
VFIO_DEVICE_QUERY_GFX_PLANE: Final = _IO(VFIO_TYPE, VFIO_BASE + 14)
VFIO_DEVICE_GET_GFX_DMABUF: Final = _IO(VFIO_TYPE, VFIO_BASE + 15)


class vfio_device_ioeventfd(Struct):
    argsz: u32
    flags: u32
    offset: u64
    data: u64
    fd: i32
    reserved: u32


VFIO_DEVICE_IOEVENTFD_8: Final = 1 << 0
VFIO_DEVICE_IOEVENTFD_16: Final = 1 << 1
VFIO_DEVICE_IOEVENTFD_32: Final = 1 << 2
VFIO_DEVICE_IOEVENTFD_64: Final = 1 << 3
VFIO_DEVICE_IOEVENTFD_SIZE_MASK: Final = 0xF
VFIO_DEVICE_IOEVENTFD: Final = _IO(VFIO_TYPE, VFIO_BASE + 16)


class vfio_device_feature(Struct):
    """Followed by what the feature needs: ``uvfio.uapi.vfio_feature.FEATURES``."""

    argsz: u32
    flags: u32


VFIO_DEVICE_FEATURE: Final = _IO(VFIO_TYPE, VFIO_BASE + 17)  # Linux 5.7


# Device file opened from /dev/vfio/devices. Linux 6.6
class vfio_device_bind_iommufd(Struct):
    """16 bytes until Linux 6.17, which added ``token_uuid_ptr``."""

    argsz: u32
    flags: u32
    iommufd: i32
    out_devid: u32
    token_uuid_ptr: u64


VFIO_DEVICE_BIND_FLAG_TOKEN: Final = 1 << 0  # Linux 6.17
VFIO_DEVICE_BIND_IOMMUFD: Final = _IO(VFIO_TYPE, VFIO_BASE + 18)


class vfio_device_attach_iommufd_pt(Struct):
    """12 bytes until Linux 6.15, which added ``pasid``."""

    argsz: u32
    flags: u32
    pt_id: u32
    pasid: u32


VFIO_DEVICE_ATTACH_PASID: Final = 1 << 0  # Linux 6.15
VFIO_DEVICE_ATTACH_IOMMUFD_PT: Final = _IO(VFIO_TYPE, VFIO_BASE + 19)


class vfio_device_detach_iommufd_pt(Struct):
    """8 bytes until Linux 6.15, which added ``pasid``."""

    argsz: u32
    flags: u32
    pasid: u32


VFIO_DEVICE_DETACH_PASID: Final = 1 << 0  # Linux 6.15
VFIO_DEVICE_DETACH_IOMMUFD_PT: Final = _IO(VFIO_TYPE, VFIO_BASE + 20)

# Migration data file. Linux 6.2
VFIO_MIG_GET_PRECOPY_INFO: Final = _IO(VFIO_TYPE, VFIO_BASE + 21)


# Container file with a type 1 IOMMU
class vfio_iommu_type1_info(Struct):
    argsz: u32
    flags: u32
    iova_pgsizes: u64
    cap_offset: u32
    pad: u32


VFIO_IOMMU_INFO_PGSIZES: Final = 1 << 0
VFIO_IOMMU_INFO_CAPS: Final = 1 << 1
VFIO_IOMMU_GET_INFO: Final = _IO(VFIO_TYPE, VFIO_BASE + 12)
VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE: Final = 1
VFIO_IOMMU_TYPE1_INFO_CAP_MIGRATION: Final = 2
VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL: Final = 3


class vfio_iova_range(Struct):
    """``end`` is the last address, not the one after it."""

    start: u64
    end: u64


class vfio_iommu_type1_info_cap_iova_range(Struct):
    """Followed by ``nr_iovas`` of ``vfio_iova_range``."""

    id: u16
    version: u16
    next: u32
    nr_iovas: u32
    reserved: u32


class vfio_iommu_type1_info_cap_migration(Struct):
    id: u16
    version: u16
    next: u32
    flags: u32
    pgsize_bitmap: u64
    max_dirty_bitmap_size: u64


class vfio_iommu_type1_info_dma_avail(Struct):
    id: u16
    version: u16
    next: u32
    avail: u32


class vfio_iommu_type1_dma_map(Struct):
    argsz: u32
    flags: u32
    vaddr: u64
    iova: u64
    size: u64


VFIO_DMA_MAP_FLAG_READ: Final = 1 << 0
VFIO_DMA_MAP_FLAG_WRITE: Final = 1 << 1
VFIO_DMA_MAP_FLAG_VADDR: Final = 1 << 2  # Linux 5.12
VFIO_IOMMU_MAP_DMA: Final = _IO(VFIO_TYPE, VFIO_BASE + 13)


class vfio_bitmap(Struct):
    """``data`` points to 64-bit words."""

    pgsize: u64
    size: u64
    data: u64


class vfio_iommu_type1_dma_unmap(Struct):
    """Followed by a ``vfio_bitmap`` if GET_DIRTY_BITMAP is set."""

    argsz: u32
    flags: u32
    iova: u64
    size: u64


VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP: Final = 1 << 0
VFIO_DMA_UNMAP_FLAG_ALL: Final = 1 << 1  # Linux 5.12
VFIO_DMA_UNMAP_FLAG_VADDR: Final = 1 << 2
VFIO_IOMMU_UNMAP_DMA: Final = _IO(VFIO_TYPE, VFIO_BASE + 14)
VFIO_IOMMU_ENABLE: Final = _IO(VFIO_TYPE, VFIO_BASE + 15)  # sPAPR alone answers these two
VFIO_IOMMU_DISABLE: Final = _IO(VFIO_TYPE, VFIO_BASE + 16)


class vfio_iommu_type1_dirty_bitmap(Struct):
    """Followed by a ``vfio_iommu_type1_dirty_bitmap_get`` if GET_BITMAP is set."""

    argsz: u32
    flags: u32


class vfio_iommu_type1_dirty_bitmap_get(Struct):
    """``bitmap_*`` are the fields of a ``vfio_bitmap``, ``bitmap`` in C."""

    iova: u64
    size: u64
    bitmap_pgsize: u64
    bitmap_size: u64
    bitmap_data: u64


VFIO_IOMMU_DIRTY_PAGES_FLAG_START: Final = 1 << 0
VFIO_IOMMU_DIRTY_PAGES_FLAG_STOP: Final = 1 << 1
VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP: Final = 1 << 2
VFIO_IOMMU_DIRTY_PAGES: Final = _IO(VFIO_TYPE, VFIO_BASE + 17)

# Hot paths use these instead of the classes
U32: Final = struct.Struct("<I")
S32: Final = struct.Struct("<i")
HEAD: Final = struct.Struct("<II")  # argsz, flags
REGION_INFO: Final = struct.Struct("<IIIIQQ")
IRQ_INFO: Final = struct.Struct("<IIII")
IRQ_SET: Final = struct.Struct("<IIIII")
DMA_MAP: Final = struct.Struct("<IIQQQ")
DMA_UNMAP: Final = struct.Struct("<IIQQ")
BITMAP: Final = struct.Struct("<QQQ")


class Ioctl(NamedTuple):
    """One request: its name, the kind of file it belongs to, and what its argument is.

    ``argument`` is a Struct class, or one of "none", "int" (the argument itself), "int*", "char*". ``output``
    tells whether the kernel writes the argument back; ``minsz`` is the least size a struct may have.
    """

    name: str
    file: str
    argument: type[Struct] | str
    output: bool
    minsz: int = 0


_Row = tuple[str, type[Struct] | str, bool, int]
_CONTAINER: Final[dict[int, _Row]] = {
    VFIO_GET_API_VERSION: ("VFIO_GET_API_VERSION", "none", False, 0),
    VFIO_CHECK_EXTENSION: ("VFIO_CHECK_EXTENSION", "int", False, 0),
    VFIO_SET_IOMMU: ("VFIO_SET_IOMMU", "int", False, 0),
    VFIO_IOMMU_GET_INFO: ("VFIO_IOMMU_GET_INFO", vfio_iommu_type1_info, True, 16),
    VFIO_IOMMU_MAP_DMA: ("VFIO_IOMMU_MAP_DMA", vfio_iommu_type1_dma_map, False, 32),
    VFIO_IOMMU_UNMAP_DMA: ("VFIO_IOMMU_UNMAP_DMA", vfio_iommu_type1_dma_unmap, True, 24),
    VFIO_IOMMU_ENABLE: ("VFIO_IOMMU_ENABLE", "none", False, 0),
    VFIO_IOMMU_DISABLE: ("VFIO_IOMMU_DISABLE", "none", False, 0),
    VFIO_IOMMU_DIRTY_PAGES: ("VFIO_IOMMU_DIRTY_PAGES", vfio_iommu_type1_dirty_bitmap, False, 8),
}
_GROUP: Final[dict[int, _Row]] = {
    VFIO_GROUP_GET_STATUS: ("VFIO_GROUP_GET_STATUS", vfio_group_status, True, 8),
    VFIO_GROUP_SET_CONTAINER: ("VFIO_GROUP_SET_CONTAINER", "int*", False, 0),
    VFIO_GROUP_UNSET_CONTAINER: ("VFIO_GROUP_UNSET_CONTAINER", "none", False, 0),
    VFIO_GROUP_GET_DEVICE_FD: ("VFIO_GROUP_GET_DEVICE_FD", "char*", False, 0),
}
_DEVICE: Final[dict[int, _Row]] = {
    VFIO_DEVICE_GET_INFO: ("VFIO_DEVICE_GET_INFO", vfio_device_info, True, 16),
    VFIO_DEVICE_GET_REGION_INFO: ("VFIO_DEVICE_GET_REGION_INFO", vfio_region_info, True, 32),
    VFIO_DEVICE_GET_IRQ_INFO: ("VFIO_DEVICE_GET_IRQ_INFO", vfio_irq_info, True, 16),
    VFIO_DEVICE_SET_IRQS: ("VFIO_DEVICE_SET_IRQS", vfio_irq_set, False, 20),
    VFIO_DEVICE_RESET: ("VFIO_DEVICE_RESET", "none", False, 0),
    VFIO_DEVICE_GET_PCI_HOT_RESET_INFO: (
        "VFIO_DEVICE_GET_PCI_HOT_RESET_INFO",
        vfio_pci_hot_reset_info,
        True,
        12,
    ),
    VFIO_DEVICE_PCI_HOT_RESET: ("VFIO_DEVICE_PCI_HOT_RESET", vfio_pci_hot_reset, False, 12),
    VFIO_DEVICE_QUERY_GFX_PLANE: (
        "VFIO_DEVICE_QUERY_GFX_PLANE",
        vfio_device_gfx_plane_info,
        True,
        60,
    ),
    VFIO_DEVICE_GET_GFX_DMABUF: ("VFIO_DEVICE_GET_GFX_DMABUF", "int*", False, 0),
    VFIO_DEVICE_IOEVENTFD: ("VFIO_DEVICE_IOEVENTFD", vfio_device_ioeventfd, False, 28),
    VFIO_DEVICE_FEATURE: ("VFIO_DEVICE_FEATURE", vfio_device_feature, True, 8),
    VFIO_DEVICE_BIND_IOMMUFD: ("VFIO_DEVICE_BIND_IOMMUFD", vfio_device_bind_iommufd, True, 16),
    VFIO_DEVICE_ATTACH_IOMMUFD_PT: (
        "VFIO_DEVICE_ATTACH_IOMMUFD_PT",
        vfio_device_attach_iommufd_pt,
        True,
        12,
    ),
    VFIO_DEVICE_DETACH_IOMMUFD_PT: (
        "VFIO_DEVICE_DETACH_IOMMUFD_PT",
        vfio_device_detach_iommufd_pt,
        False,
        8,
    ),
}
_MIGRATION: Final[dict[int, _Row]] = {
    VFIO_MIG_GET_PRECOPY_INFO: ("VFIO_MIG_GET_PRECOPY_INFO", vfio_precopy_info, True, 24),
}
_FILES: Final = {
    "container": _CONTAINER,
    "group": _GROUP,
    "device": _DEVICE,
    "migration": _MIGRATION,
}
IOCTLS: Final[dict[tuple[str, int], Ioctl]] = {
    (file, request): Ioctl(name, file, argument, output, minsz)
    for file, table in _FILES.items()
    for request, (name, argument, output, minsz) in table.items()
}

EXTENSION_NAMES: Final[dict[int, str]] = {
    VFIO_TYPE1_IOMMU: "VFIO_TYPE1_IOMMU",
    VFIO_SPAPR_TCE_IOMMU: "VFIO_SPAPR_TCE_IOMMU",
    VFIO_TYPE1v2_IOMMU: "VFIO_TYPE1v2_IOMMU",
    VFIO_DMA_CC_IOMMU: "VFIO_DMA_CC_IOMMU",
    VFIO_EEH: "VFIO_EEH",
    VFIO_TYPE1_NESTING_IOMMU: "VFIO_TYPE1_NESTING_IOMMU",
    VFIO_SPAPR_TCE_v2_IOMMU: "VFIO_SPAPR_TCE_v2_IOMMU",
    VFIO_NOIOMMU_IOMMU: "VFIO_NOIOMMU_IOMMU",
    VFIO_UNMAP_ALL: "VFIO_UNMAP_ALL",
    VFIO_UPDATE_VADDR: "VFIO_UPDATE_VADDR",
}

FLAG_NAMES: Final[dict[str, dict[int, str]]] = _FEATURE_FLAG_NAMES | {
    "vfio_group_status": {1: "VIABLE", 2: "CONTAINER_SET"},
    "vfio_device_info": dict(
        zip(
            (1 << bit for bit in range(9)),
            ("RESET", "PCI", "PLATFORM", "AMBA", "CCW", "AP", "FSL_MC", "CAPS", "CDX"),
            strict=True,
        )
    ),
    "vfio_device_info_cap_pci_atomic_comp": {1: "COMP32", 2: "COMP64", 4: "COMP128"},
    "vfio_region_info": {1: "READ", 2: "WRITE", 4: "MMAP", 8: "CAPS"},
    "vfio_irq_info": {1: "EVENTFD", 2: "MASKABLE", 4: "AUTOMASKED", 8: "NORESIZE"},
    "vfio_irq_set": {
        VFIO_IRQ_SET_DATA_NONE: "DATA_NONE",
        VFIO_IRQ_SET_DATA_BOOL: "DATA_BOOL",
        VFIO_IRQ_SET_DATA_EVENTFD: "DATA_EVENTFD",
        VFIO_IRQ_SET_ACTION_MASK: "ACTION_MASK",
        VFIO_IRQ_SET_ACTION_UNMASK: "ACTION_UNMASK",
        VFIO_IRQ_SET_ACTION_TRIGGER: "ACTION_TRIGGER",
    },
    "vfio_pci_hot_reset_info": {1: "DEV_ID", 2: "DEV_ID_OWNED"},
    "vfio_device_gfx_plane_info": {1: "PROBE", 2: "DMABUF", 4: "REGION"},
    "vfio_device_ioeventfd": {1: "8", 2: "16", 4: "32", 8: "64"},
    "vfio_device_bind_iommufd": {1: "TOKEN"},
    "vfio_device_attach_iommufd_pt": {1: "PASID"},
    "vfio_device_detach_iommufd_pt": {1: "PASID"},
    "vfio_iommu_type1_info": {1: "PGSIZES", 2: "CAPS"},
    "vfio_iommu_type1_dma_map": {1: "READ", 2: "WRITE", 4: "VADDR"},
    "vfio_iommu_type1_dma_unmap": {1: "GET_DIRTY_BITMAP", 2: "ALL", 4: "VADDR"},
    "vfio_iommu_type1_dirty_bitmap": {1: "START", 2: "STOP", 4: "GET_BITMAP"},
}


def ioctl_name(file: str, request: int) -> str:
    """The header's name of ``request`` on that kind of file, or ``_IOC(...)``-like text."""
    known = IOCTLS.get((file, request))
    return known.name if known else f"{request:#010x} /* ';', {_IOC_NR(request)} */"
