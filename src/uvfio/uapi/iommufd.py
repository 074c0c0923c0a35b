"""``linux/iommufd.h``: the ioctls of /dev/iommu, under the header's own names.

Every argument begins with its own size. Linux accepts any size from ``Ioctl.minsz`` on, which is the struct as
it was in its first release: what is missing counts as zero, what is too much has to be zero (E2BIG). A
comment names the release of Linux that a group of names came with. On the same file, Linux answers the container
requests of ``uvfio.uapi.vfio`` too.

``__reserved`` is ``reserved`` here: Python gives names with two underscores another meaning inside classes.
Of the data that belong to one make of IOMMU only those of Intel VT-d are here; the numbers of all are.
"""

import struct
from typing import Final

from uvfio.uapi.ioctl import _IO
from uvfio.uapi.structs import Struct, i32, u8, u16, u32, u64
from uvfio.uapi.vfio import Ioctl
from uvfio.uapi.vfio import ioctl_name as vfio_ioctl_name

IOMMUFD_TYPE: Final = ord(";")
IOMMUFD_CMD_BASE: Final = 0x80

# Linux 6.2
IOMMU_DESTROY: Final = _IO(IOMMUFD_TYPE, 0x80)
IOMMU_IOAS_ALLOC: Final = _IO(IOMMUFD_TYPE, 0x81)
IOMMU_IOAS_ALLOW_IOVAS: Final = _IO(IOMMUFD_TYPE, 0x82)
IOMMU_IOAS_COPY: Final = _IO(IOMMUFD_TYPE, 0x83)
IOMMU_IOAS_IOVA_RANGES: Final = _IO(IOMMUFD_TYPE, 0x84)
IOMMU_IOAS_MAP: Final = _IO(IOMMUFD_TYPE, 0x85)
IOMMU_IOAS_UNMAP: Final = _IO(IOMMUFD_TYPE, 0x86)
IOMMU_OPTION: Final = _IO(IOMMUFD_TYPE, 0x87)
IOMMU_VFIO_IOAS: Final = _IO(IOMMUFD_TYPE, 0x88)
# Linux 6.6
IOMMU_HWPT_ALLOC: Final = _IO(IOMMUFD_TYPE, 0x89)
IOMMU_GET_HW_INFO: Final = _IO(IOMMUFD_TYPE, 0x8A)
# Linux 6.7
IOMMU_HWPT_SET_DIRTY_TRACKING: Final = _IO(IOMMUFD_TYPE, 0x8B)
IOMMU_HWPT_GET_DIRTY_BITMAP: Final = _IO(IOMMUFD_TYPE, 0x8C)
IOMMU_HWPT_INVALIDATE: Final = _IO(IOMMUFD_TYPE, 0x8D)  # Linux 6.8
IOMMU_FAULT_QUEUE_ALLOC: Final = _IO(IOMMUFD_TYPE, 0x8E)  # Linux 6.11
# Linux 6.13
IOMMU_IOAS_MAP_FILE: Final = _IO(IOMMUFD_TYPE, 0x8F)
IOMMU_VIOMMU_ALLOC: Final = _IO(IOMMUFD_TYPE, 0x90)
IOMMU_VDEVICE_ALLOC: Final = _IO(IOMMUFD_TYPE, 0x91)
IOMMU_IOAS_CHANGE_PROCESS: Final = _IO(IOMMUFD_TYPE, 0x92)
IOMMU_VEVENTQ_ALLOC: Final = _IO(IOMMUFD_TYPE, 0x93)  # Linux 6.15
IOMMU_HW_QUEUE_ALLOC: Final = _IO(IOMMUFD_TYPE, 0x94)  # Linux 6.17


class iommu_destroy(Struct):
    size: u32
    id: u32


# I/O address spaces
class iommu_ioas_alloc(Struct):
    size: u32
    flags: u32
    out_ioas_id: u32


class iommu_iova_range(Struct):
    start: u64
    last: u64


class iommu_ioas_iova_ranges(Struct):
    """``allowed_iovas`` points to room for ``num_iovas`` of ``iommu_iova_range``."""

    size: u32
    ioas_id: u32
    num_iovas: u32
    reserved: u32
    allowed_iovas: u64
    out_iova_alignment: u64


class iommu_ioas_allow_iovas(Struct):
    """``allowed_iovas`` points to ``num_iovas`` of ``iommu_iova_range``."""

    size: u32
    ioas_id: u32
    num_iovas: u32
    reserved: u32
    allowed_iovas: u64


IOMMU_IOAS_MAP_FIXED_IOVA: Final = 1 << 0
IOMMU_IOAS_MAP_WRITEABLE: Final = 1 << 1
IOMMU_IOAS_MAP_READABLE: Final = 1 << 2


class iommu_ioas_map(Struct):
    size: u32
    flags: u32
    ioas_id: u32
    reserved: u32
    user_va: u64
    length: u64
    iova: u64


class iommu_ioas_map_file(Struct):
    size: u32
    flags: u32
    ioas_id: u32
    fd: i32
    start: u64
    length: u64
    iova: u64


class iommu_ioas_copy(Struct):
    size: u32
    flags: u32
    dst_ioas_id: u32
    src_ioas_id: u32
    length: u64
    dst_iova: u64
    src_iova: u64


class iommu_ioas_unmap(Struct):
    size: u32
    ioas_id: u32
    iova: u64
    length: u64


class iommu_ioas_change_process(Struct):
    size: u32
    reserved: u32


# Options, and the address space that container requests use
IOMMU_OPTION_RLIMIT_MODE: Final = 0
IOMMU_OPTION_HUGE_PAGES: Final = 1
IOMMU_OPTION_OP_SET: Final = 0
IOMMU_OPTION_OP_GET: Final = 1


class iommu_option(Struct):
    size: u32
    option_id: u32
    op: u16
    reserved: u16
    object_id: u32
    val64: u64


IOMMU_VFIO_IOAS_GET: Final = 0
IOMMU_VFIO_IOAS_SET: Final = 1
IOMMU_VFIO_IOAS_CLEAR: Final = 2


class iommu_vfio_ioas(Struct):
    size: u32
    ioas_id: u32
    op: u16
    reserved: u16


# Hardware page tables
IOMMU_HWPT_ALLOC_NEST_PARENT: Final = 1 << 0  # Linux 6.7
IOMMU_HWPT_ALLOC_DIRTY_TRACKING: Final = 1 << 1  # Linux 6.7
IOMMU_HWPT_FAULT_ID_VALID: Final = 1 << 2  # Linux 6.11
IOMMU_HWPT_ALLOC_PASID: Final = 1 << 3  # Linux 6.15

IOMMU_HWPT_DATA_NONE: Final = 0  # Linux 6.7
IOMMU_HWPT_DATA_VTD_S1: Final = 1
IOMMU_HWPT_DATA_ARM_SMMUV3: Final = 2  # Linux 6.13
IOMMU_HWPT_DATA_AMD_GUEST: Final = 3  # Linux 7.0


class iommu_hwpt_alloc(Struct):
    """24 bytes at first; ``data_*`` came with Linux 6.7, ``fault_id`` with 6.11."""

    size: u32
    flags: u32
    dev_id: u32
    pt_id: u32
    out_hwpt_id: u32
    reserved: u32
    data_type: u32
    data_len: u32
    data_uptr: u64
    fault_id: u32
    reserved2: u32


IOMMU_VTD_S1_SRE: Final = 1 << 0
IOMMU_VTD_S1_EAFE: Final = 1 << 1
IOMMU_VTD_S1_WPE: Final = 1 << 2


class iommu_hwpt_vtd_s1(Struct):
    flags: u64
    pgtbl_addr: u64
    addr_width: u32
    reserved: u32


IOMMU_HWPT_DIRTY_TRACKING_ENABLE: Final = 1


class iommu_hwpt_set_dirty_tracking(Struct):
    size: u32
    flags: u32
    hwpt_id: u32
    reserved: u32


IOMMU_HWPT_GET_DIRTY_BITMAP_NO_CLEAR: Final = 1


class iommu_hwpt_get_dirty_bitmap(Struct):
    """``data`` points to 64-bit words, one bit for ``page_size`` bytes."""

    size: u32
    hwpt_id: u32
    flags: u32
    reserved: u32
    iova: u64
    length: u64
    page_size: u64
    data: u64


IOMMU_HWPT_INVALIDATE_DATA_VTD_S1: Final = 0  # Linux 6.8
IOMMU_VIOMMU_INVALIDATE_DATA_ARM_SMMUV3: Final = 1  # Linux 6.13
IOMMU_VTD_INV_FLAGS_LEAF: Final = 1 << 0


class iommu_hwpt_vtd_s1_invalidate(Struct):
    addr: u64
    npages: u64
    flags: u32
    reserved: u32


class iommu_hwpt_invalidate(Struct):
    """``data_uptr`` points to ``entry_num`` entries of ``entry_len`` bytes."""

    size: u32
    hwpt_id: u32
    data_uptr: u64
    data_type: u32
    entry_len: u32
    entry_num: u32
    reserved: u32


# What the IOMMU of a device can do
IOMMU_HW_INFO_FLAG_INPUT_TYPE: Final = 1 << 0  # Linux 6.17
IOMMU_HW_INFO_TYPE_NONE: Final = 0
IOMMU_HW_INFO_TYPE_DEFAULT: Final = 0  # Linux 6.17
IOMMU_HW_INFO_TYPE_INTEL_VTD: Final = 1
IOMMU_HW_INFO_TYPE_ARM_SMMUV3: Final = 2  # Linux 6.13
IOMMU_HW_INFO_TYPE_TEGRA241_CMDQV: Final = 3  # Linux 6.17
IOMMU_HW_INFO_TYPE_AMD: Final = 4  # Linux 7.0
IOMMU_HW_CAP_DIRTY_TRACKING: Final = 1 << 0  # Linux 6.7
IOMMU_HW_CAP_PCI_PASID_EXEC: Final = 1 << 1  # Linux 6.15
IOMMU_HW_CAP_PCI_PASID_PRIV: Final = 1 << 2  # Linux 6.15
IOMMU_HW_CAP_PCI_ATS_NOT_SUPPORTED: Final = 1 << 3  # Linux 7.1


class iommu_hw_info(Struct):
    """32 bytes at first, with all of ``reserved``; ``out_capabilities`` came with Linux 6.7.

    ``out_data_type`` is ``in_data_type`` on the way in. ``reserved`` and ``reserved_rest`` are the three
    bytes ``__reserved[3]``, four before Linux 6.15 added ``out_max_pasid_log2``.
    """

    size: u32
    flags: u32
    dev_id: u32
    data_len: u32
    data_uptr: u64
    out_data_type: u32
    out_max_pasid_log2: u8
    reserved: u8
    reserved_rest: u16
    out_capabilities: u64


IOMMU_HW_INFO_VTD_ERRATA_772415_SPR17: Final = 1 << 0  # Linux 6.7


class iommu_hw_info_vtd(Struct):
    flags: u32
    reserved: u32
    cap_reg: u64
    ecap_reg: u64


# Page faults. Linux 6.11
class iommu_fault_alloc(Struct):
    size: u32
    flags: u32
    out_fault_id: u32
    out_fault_fd: u32


IOMMU_PGFAULT_FLAGS_PASID_VALID: Final = 1 << 0
IOMMU_PGFAULT_FLAGS_LAST_PAGE: Final = 1 << 1
IOMMU_PGFAULT_PERM_READ: Final = 1 << 0
IOMMU_PGFAULT_PERM_WRITE: Final = 1 << 1
IOMMU_PGFAULT_PERM_EXEC: Final = 1 << 2
IOMMU_PGFAULT_PERM_PRIV: Final = 1 << 3


class iommu_hwpt_pgfault(Struct):
    """What is read from the file of a fault queue."""

    flags: u32
    dev_id: u32
    pasid: u32
    grpid: u32
    perm: u32
    reserved: u32
    addr: u64
    length: u32
    cookie: u32


IOMMUFD_PAGE_RESP_SUCCESS: Final = 0
IOMMUFD_PAGE_RESP_INVALID: Final = 1


class iommu_hwpt_page_response(Struct):
    """What is written to the file of a fault queue."""

    cookie: u32
    code: u32


# Virtual IOMMUs
IOMMU_VIOMMU_TYPE_DEFAULT: Final = 0  # Linux 6.13
IOMMU_VIOMMU_TYPE_ARM_SMMUV3: Final = 1
IOMMU_VIOMMU_TYPE_TEGRA241_CMDQV: Final = 2  # Linux 6.17


class iommu_viommu_alloc(Struct):
    """24 bytes until Linux 6.17, which added ``data_len`` and ``data_uptr``."""

    size: u32
    flags: u32
    type: u32
    dev_id: u32
    hwpt_id: u32
    out_viommu_id: u32
    data_len: u32
    reserved: u32
    data_uptr: u64


class iommu_vdevice_alloc(Struct):
    size: u32
    viommu_id: u32
    dev_id: u32
    out_vdevice_id: u32
    virt_id: u64


IOMMU_VEVENTQ_FLAG_LOST_EVENTS: Final = 1 << 0  # Linux 6.15
IOMMU_VEVENTQ_TYPE_DEFAULT: Final = 0
IOMMU_VEVENTQ_TYPE_ARM_SMMUV3: Final = 1
IOMMU_VEVENTQ_TYPE_TEGRA241_CMDQV: Final = 2  # Linux 6.17


class iommufd_vevent_header(Struct):
    flags: u32
    sequence: u32


class iommu_veventq_alloc(Struct):
    size: u32
    flags: u32
    viommu_id: u32
    type: u32
    veventq_depth: u32
    out_veventq_id: u32
    out_veventq_fd: u32
    reserved: u32


IOMMU_HW_QUEUE_TYPE_DEFAULT: Final = 0  # Linux 6.17
IOMMU_HW_QUEUE_TYPE_TEGRA241_CMDQV: Final = 1


class iommu_hw_queue_alloc(Struct):
    size: u32
    flags: u32
    viommu_id: u32
    type: u32
    index: u32
    out_hw_queue_id: u32
    nesting_parent_iova: u64
    length: u64


# Hot paths use these instead of the classes
IOAS_MAP: Final = struct.Struct("<IIIIQQQ")
IOAS_MAP_FILE: Final = struct.Struct("<IIIiQQQ")
IOAS_COPY: Final = struct.Struct("<IIIIQQQ")
IOAS_UNMAP: Final = struct.Struct("<IIQQ")
IOVA_RANGE: Final = struct.Struct("<QQ")


def _iommufd(name: str, argument: type[Struct], output: bool, minsz: int) -> Ioctl:
    return Ioctl(name, "iommufd", argument, output, minsz)


_ALL: Final = {
    IOMMU_DESTROY: _iommufd("IOMMU_DESTROY", iommu_destroy, False, 8),
    IOMMU_IOAS_ALLOC: _iommufd("IOMMU_IOAS_ALLOC", iommu_ioas_alloc, True, 12),
    IOMMU_IOAS_ALLOW_IOVAS: _iommufd("IOMMU_IOAS_ALLOW_IOVAS", iommu_ioas_allow_iovas, False, 24),
    IOMMU_IOAS_COPY: _iommufd("IOMMU_IOAS_COPY", iommu_ioas_copy, True, 40),
    IOMMU_IOAS_IOVA_RANGES: _iommufd("IOMMU_IOAS_IOVA_RANGES", iommu_ioas_iova_ranges, True, 32),
    IOMMU_IOAS_MAP: _iommufd("IOMMU_IOAS_MAP", iommu_ioas_map, True, 40),
    IOMMU_IOAS_UNMAP: _iommufd("IOMMU_IOAS_UNMAP", iommu_ioas_unmap, True, 24),
    IOMMU_OPTION: _iommufd("IOMMU_OPTION", iommu_option, True, 24),
    IOMMU_VFIO_IOAS: _iommufd("IOMMU_VFIO_IOAS", iommu_vfio_ioas, True, 12),
    IOMMU_HWPT_ALLOC: _iommufd("IOMMU_HWPT_ALLOC", iommu_hwpt_alloc, True, 24),
    IOMMU_GET_HW_INFO: _iommufd("IOMMU_GET_HW_INFO", iommu_hw_info, True, 32),
    IOMMU_HWPT_SET_DIRTY_TRACKING: _iommufd(
        "IOMMU_HWPT_SET_DIRTY_TRACKING", iommu_hwpt_set_dirty_tracking, False, 16
    ),
    IOMMU_HWPT_GET_DIRTY_BITMAP: _iommufd(
        "IOMMU_HWPT_GET_DIRTY_BITMAP", iommu_hwpt_get_dirty_bitmap, False, 48
    ),
    IOMMU_HWPT_INVALIDATE: _iommufd("IOMMU_HWPT_INVALIDATE", iommu_hwpt_invalidate, True, 32),
    IOMMU_FAULT_QUEUE_ALLOC: _iommufd("IOMMU_FAULT_QUEUE_ALLOC", iommu_fault_alloc, True, 16),
    IOMMU_IOAS_MAP_FILE: _iommufd("IOMMU_IOAS_MAP_FILE", iommu_ioas_map_file, True, 40),
    IOMMU_VIOMMU_ALLOC: _iommufd("IOMMU_VIOMMU_ALLOC", iommu_viommu_alloc, True, 24),
    IOMMU_VDEVICE_ALLOC: _iommufd("IOMMU_VDEVICE_ALLOC", iommu_vdevice_alloc, True, 24),
    IOMMU_IOAS_CHANGE_PROCESS: _iommufd(
        "IOMMU_IOAS_CHANGE_PROCESS", iommu_ioas_change_process, False, 8
    ),
    IOMMU_VEVENTQ_ALLOC: _iommufd("IOMMU_VEVENTQ_ALLOC", iommu_veventq_alloc, True, 28),
    IOMMU_HW_QUEUE_ALLOC: _iommufd("IOMMU_HW_QUEUE_ALLOC", iommu_hw_queue_alloc, True, 40),
}
IOCTLS: Final[dict[tuple[str, int], Ioctl]] = {
    (ioctl.file, request): ioctl for request, ioctl in _ALL.items()
}

FLAG_NAMES: Final[dict[str, dict[int, str]]] = {
    "iommu_ioas_map": {1: "FIXED_IOVA", 2: "WRITEABLE", 4: "READABLE"},
    "iommu_ioas_map_file": {1: "FIXED_IOVA", 2: "WRITEABLE", 4: "READABLE"},
    "iommu_ioas_copy": {1: "FIXED_IOVA", 2: "WRITEABLE", 4: "READABLE"},
    "iommu_hwpt_alloc": {1: "NEST_PARENT", 2: "DIRTY_TRACKING", 4: "FAULT_ID_VALID", 8: "PASID"},
    "iommu_hwpt_vtd_s1": {1: "SRE", 2: "EAFE", 4: "WPE"},
    "iommu_hwpt_vtd_s1_invalidate": {1: "LEAF"},
    "iommu_hwpt_set_dirty_tracking": {1: "ENABLE"},
    "iommu_hwpt_get_dirty_bitmap": {1: "NO_CLEAR"},
    "iommu_hw_info": {1: "INPUT_TYPE"},
    "iommu_hw_info_vtd": {1: "ERRATA_772415_SPR17"},
    "iommu_hwpt_pgfault": {1: "PASID_VALID", 2: "LAST_PAGE"},
    "iommufd_vevent_header": {1: "LOST_EVENTS"},
}


def ioctl_name(request: int) -> str:
    """The header's name of ``request`` on /dev/iommu, container requests included, or a number."""
    known = _ALL.get(request)
    return known.name if known else vfio_ioctl_name("container", request)
