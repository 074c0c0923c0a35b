"""The ABI of November 2011: ``include/linux/vfio.h`` of the RFC "VFIO Driver core framework" (version 0.2).

Nineteen ioctls of type ``;``, five structs and their flags, under the header's own names. Two requests
encode the size of a pointer and therefore have another number for 32-bit programs (``*_32`` here).
Three requests encode ``int`` although they take an array (SET_IRQ_EVENTFDS, SET_UNMASK_IRQ_EVENTFD).

The header leaves the device-tree property types undefined; ``VFIO_DTINDEX_PROP_*`` are this project's own.
"""

import struct
from typing import Final, NamedTuple

from uvfio.uapi.ioctl import _IO, _IOC_NR, _IOR, _IOW, _IOWR
from uvfio.uapi.structs import Struct, u32, u64

VFIO_TYPE: Final = ord(";")
VFIO_REGION_SHIFT: Final = 40  # a region's file offset is index << 40


class vfio_dma_map(Struct):
    """Argument of MAP_DMA and UNMAP_DMA. ``len`` is uninitialised in real clients: never look at it."""

    len: u64
    vaddr: u64
    dmaaddr: u64
    size: u64
    flags: u64


class vfio_region_info(Struct):
    len: u32
    index: u32
    size: u64
    offset: u64
    flags: u64
    phys: u64


class vfio_irq_info(Struct):
    len: u32
    index: u32
    count: u32
    flags: u32


class vfio_dtpath(Struct):
    """64-bit layout; ``path`` is a pointer."""

    len: u32
    index: u32
    flags: u64
    path: u64


class vfio_dtpath_32(Struct):
    """i386 layout of ``struct vfio_dtpath``: 64-bit members are aligned to 4 there."""

    len: u32
    index: u32
    flags: u64
    path: u32
    _pack_ = 4
    _layout_ = "ms"


class vfio_dtindex(Struct):
    len: u32
    index: u32
    prop_type: u32
    prop_index: u32
    flags: u64


# Group file
VFIO_GROUP_GET_FLAGS: Final = _IOR(VFIO_TYPE, 100, 8)
VFIO_GROUP_FLAGS_VIABLE: Final = 1 << 0
VFIO_GROUP_FLAGS_MM_LOCKED: Final = 1 << 1
VFIO_GROUP_MERGE: Final = _IOW(VFIO_TYPE, 101, 4)
VFIO_GROUP_UNMERGE: Final = _IOW(VFIO_TYPE, 102, 4)
VFIO_GROUP_GET_IOMMU_FD: Final = _IO(VFIO_TYPE, 103)
VFIO_GROUP_GET_DEVICE_FD: Final = _IOW(VFIO_TYPE, 104, 8)
VFIO_GROUP_GET_DEVICE_FD_32: Final = _IOW(VFIO_TYPE, 104, 4)

# Iommu file
VFIO_IOMMU_GET_FLAGS: Final = _IOR(VFIO_TYPE, 105, 8)
VFIO_IOMMU_FLAGS_MAP_ANY: Final = 1 << 0
VFIO_IOMMU_MAP_DMA: Final = _IOWR(VFIO_TYPE, 106, 40)
VFIO_IOMMU_UNMAP_DMA: Final = _IOWR(VFIO_TYPE, 107, 40)
VFIO_DMA_MAP_FLAG_WRITE: Final = 1 << 0

# Device file
VFIO_DEVICE_GET_FLAGS: Final = _IOR(VFIO_TYPE, 108, 8)
VFIO_DEVICE_FLAGS_PCI: Final = 1 << 0
VFIO_DEVICE_FLAGS_DT: Final = 1 << 1
VFIO_DEVICE_FLAGS_RESET: Final = 1 << 2
VFIO_DEVICE_GET_NUM_REGIONS: Final = _IOR(VFIO_TYPE, 109, 4)
VFIO_DEVICE_GET_REGION_INFO: Final = _IOWR(VFIO_TYPE, 110, 40)
VFIO_REGION_INFO_FLAG_MMAP: Final = 1 << 0
VFIO_REGION_INFO_FLAG_RO: Final = 1 << 1
VFIO_REGION_INFO_FLAG_PHYS_VALID: Final = 1 << 2
VFIO_DEVICE_GET_NUM_IRQS: Final = _IOR(VFIO_TYPE, 111, 4)
VFIO_DEVICE_GET_IRQ_INFO: Final = _IOWR(VFIO_TYPE, 112, 16)
VFIO_IRQ_INFO_FLAG_LEVEL: Final = 1 << 0
VFIO_DEVICE_SET_IRQ_EVENTFDS: Final = _IOW(VFIO_TYPE, 113, 4)
VFIO_DEVICE_UNMASK_IRQ: Final = _IOW(VFIO_TYPE, 114, 4)
VFIO_DEVICE_SET_UNMASK_IRQ_EVENTFD: Final = _IOW(VFIO_TYPE, 115, 4)
VFIO_DEVICE_RESET: Final = _IO(VFIO_TYPE, 116)
VFIO_DEVICE_GET_DTPATH: Final = _IOWR(VFIO_TYPE, 117, 24)
VFIO_DEVICE_GET_DTPATH_32: Final = _IOWR(VFIO_TYPE, 117, 20)
VFIO_DTPATH_FLAGS_REGION: Final = 1 << 0
VFIO_DTPATH_FLAGS_IRQ: Final = 1 << 1
VFIO_DEVICE_GET_DTINDEX: Final = _IOWR(VFIO_TYPE, 118, 24)
VFIO_DTINDEX_FLAGS_REGION: Final = 1 << 0
VFIO_DTINDEX_FLAGS_IRQ: Final = 1 << 1
VFIO_DTINDEX_PROP_REG: Final = 0
VFIO_DTINDEX_PROP_RANGES: Final = 1
VFIO_DTINDEX_PROP_INTERRUPTS: Final = 2
VFIO_DTINDEX_PROP_INTERRUPT_MAP: Final = 3

# PCI numbering of regions and interrupts in this ABI
VFIO_PCI_BAR0_REGION_INDEX: Final = 0
VFIO_PCI_ROM_REGION_INDEX: Final = 6
VFIO_PCI_CONFIG_REGION_INDEX: Final = 7
VFIO_PCI_NUM_REGIONS: Final = 8
VFIO_PCI_INTX_IRQ_INDEX: Final = 0
VFIO_PCI_MSI_IRQ_INDEX: Final = 1
VFIO_PCI_MSIX_IRQ_INDEX: Final = 2
VFIO_PCI_NUM_IRQS: Final = 3

# Hot paths use these instead of the classes
U64: Final = struct.Struct("<Q")
S32: Final = struct.Struct("<i")
DMA_MAP: Final = struct.Struct("<QQQQQ")
REGION_INFO: Final = struct.Struct("<IIQQQQ")
IRQ_INFO: Final = struct.Struct("<IIII")
DTPATH: Final = struct.Struct("<IIQQ")
DTPATH_32: Final = struct.Struct("<IIQI")
DTINDEX: Final = struct.Struct("<IIIIQ")


class Ioctl(NamedTuple):
    """One request: its name, the kind of file it belongs to, and what its argument is.

    ``argument`` is a Struct class, or one of "none", "u64*", "int*", "int[]" (count in element 1),
    "int[2]", "char*". ``output`` tells whether the kernel writes the argument back.
    """

    name: str
    file: str
    argument: type[Struct] | str
    output: bool


IOCTLS: Final[dict[int, Ioctl]] = {
    VFIO_GROUP_GET_FLAGS: Ioctl("VFIO_GROUP_GET_FLAGS", "group", "u64*", True),
    VFIO_GROUP_MERGE: Ioctl("VFIO_GROUP_MERGE", "group", "int*", False),
    VFIO_GROUP_UNMERGE: Ioctl("VFIO_GROUP_UNMERGE", "group", "int*", False),
    VFIO_GROUP_GET_IOMMU_FD: Ioctl("VFIO_GROUP_GET_IOMMU_FD", "group", "none", False),
    VFIO_GROUP_GET_DEVICE_FD: Ioctl("VFIO_GROUP_GET_DEVICE_FD", "group", "char*", False),
    VFIO_GROUP_GET_DEVICE_FD_32: Ioctl("VFIO_GROUP_GET_DEVICE_FD", "group", "char*", False),
    VFIO_IOMMU_GET_FLAGS: Ioctl("VFIO_IOMMU_GET_FLAGS", "iommu", "u64*", True),
    VFIO_IOMMU_MAP_DMA: Ioctl("VFIO_IOMMU_MAP_DMA", "iommu", vfio_dma_map, False),
    VFIO_IOMMU_UNMAP_DMA: Ioctl("VFIO_IOMMU_UNMAP_DMA", "iommu", vfio_dma_map, False),
    VFIO_DEVICE_GET_FLAGS: Ioctl("VFIO_DEVICE_GET_FLAGS", "device", "u64*", True),
    VFIO_DEVICE_GET_NUM_REGIONS: Ioctl("VFIO_DEVICE_GET_NUM_REGIONS", "device", "int*", True),
    VFIO_DEVICE_GET_REGION_INFO: Ioctl(
        "VFIO_DEVICE_GET_REGION_INFO", "device", vfio_region_info, True
    ),
    VFIO_DEVICE_GET_NUM_IRQS: Ioctl("VFIO_DEVICE_GET_NUM_IRQS", "device", "int*", True),
    VFIO_DEVICE_GET_IRQ_INFO: Ioctl("VFIO_DEVICE_GET_IRQ_INFO", "device", vfio_irq_info, True),
    VFIO_DEVICE_SET_IRQ_EVENTFDS: Ioctl("VFIO_DEVICE_SET_IRQ_EVENTFDS", "device", "int[]", False),
    VFIO_DEVICE_UNMASK_IRQ: Ioctl("VFIO_DEVICE_UNMASK_IRQ", "device", "int*", False),
    VFIO_DEVICE_SET_UNMASK_IRQ_EVENTFD: Ioctl(
        "VFIO_DEVICE_SET_UNMASK_IRQ_EVENTFD", "device", "int[2]", False
    ),
    VFIO_DEVICE_RESET: Ioctl("VFIO_DEVICE_RESET", "device", "none", False),
    VFIO_DEVICE_GET_DTPATH: Ioctl("VFIO_DEVICE_GET_DTPATH", "device", vfio_dtpath, True),
    VFIO_DEVICE_GET_DTPATH_32: Ioctl("VFIO_DEVICE_GET_DTPATH", "device", vfio_dtpath_32, True),
    VFIO_DEVICE_GET_DTINDEX: Ioctl("VFIO_DEVICE_GET_DTINDEX", "device", vfio_dtindex, True),
}

FLAG_NAMES: Final[dict[str, dict[int, str]]] = {
    "VFIO_GROUP_GET_FLAGS": {1: "VIABLE", 2: "MM_LOCKED"},
    "VFIO_IOMMU_GET_FLAGS": {1: "MAP_ANY"},
    "VFIO_DEVICE_GET_FLAGS": {1: "PCI", 2: "DT", 4: "RESET"},
    "vfio_dma_map": {1: "WRITE"},
    "vfio_region_info": {1: "MMAP", 2: "RO", 4: "PHYS_VALID"},
    "vfio_irq_info": {1: "LEVEL"},
    "vfio_dtpath": {1: "REGION", 2: "IRQ"},
    "vfio_dtpath_32": {1: "REGION", 2: "IRQ"},
    "vfio_dtindex": {1: "REGION", 2: "IRQ"},
}


def ioctl_name(request: int) -> str:
    """The header's name of ``request``, or ``_IOC(...)``-like text for an unknown one."""
    known = IOCTLS.get(request)
    return known.name if known else f"{request:#010x} /* ';', {_IOC_NR(request)} */"
