"""What can be read off a PCI function: identity, resources, capabilities, interrupts.

Everything comes from the function's *physical* configuration space, which is what the bus shows, and
from its BARs' sizes. The tree of files and the read verbs of the command line are made of these facts.

Nothing here changes a function or knows its driver.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from uvfio.drivers.pci import sriov
from uvfio.drivers.pci.hardware import BarKind
from uvfio.uapi import pci

if TYPE_CHECKING:
    from uvfio.drivers.pci.hardware import Bar, PciFunction

__all__ = [
    "Capability",
    "Identity",
    "Resource",
    "capabilities",
    "config_space",
    "identity",
    "interrupts",
    "resources",
]

# linux/ioport.h, as /sys/bus/pci/devices/*/resource shows them
IORESOURCE_IO = 0x0000_0100
IORESOURCE_MEM = 0x0000_0200
IORESOURCE_PREFETCH = 0x0000_2000
IORESOURCE_READONLY = 0x0000_4000
IORESOURCE_SIZEALIGN = 0x0004_0000
IORESOURCE_MEM_64 = 0x0010_0000
IORESOURCE_UNSET = 0x2000_0000

ROM_RESOURCE = 6
IOV_RESOURCES = 7  # the first of six


class Identity(NamedTuple):
    """The numbers that say what a function is. ``class_code`` has 24 bits."""

    vendor: int
    device: int
    subsystem_vendor: int
    subsystem_device: int
    class_code: int
    revision: int

    @property
    def modalias(self) -> str:
        """The string that drivers are looked up by."""
        base, sub, interface = self.class_code.to_bytes(3, "big")
        return (
            f"pci:v{self.vendor:08X}d{self.device:08X}"
            f"sv{self.subsystem_vendor:08X}sd{self.subsystem_device:08X}"
            f"bc{base:02X}sc{sub:02X}i{interface:02X}"
        )


class Resource(NamedTuple):
    """BAR ``number`` 0-5, the expansion ROM, 6, or 7-12 for BAR 0-5 of all virtual functions of this one.

    ``start`` 0: the firmware found no room for it.
    """

    number: int
    start: int
    size: int
    flags: int
    kind: str
    prefetchable: bool = False
    mappable: bool = False
    polled: bool = False


class Capability(NamedTuple):
    """An entry of a capability list. ``name`` is that of ``linux/pci_regs.h`` without its prefix."""

    offset: int
    id: int
    name: str
    extended: bool = False


@cache
def _names(prefix: str) -> dict[int, str]:
    return {
        value: name[len(prefix) :] for name, value in vars(pci).items() if name.startswith(prefix)
    }


def config_space(function: PciFunction) -> bytes:
    """All of the physical configuration space."""
    words = (function.config_read(offset, 4) for offset in range(0, function.config_size, 4))
    return b"".join(word.to_bytes(4, "little") for word in words)


def identity(function: PciFunction) -> Identity:
    """Vendor, device, subsystem and class."""
    read = function.config_read
    class_revision = read(pci.PCI_CLASS_REVISION, 4)
    vendor, device = sriov.identity(function)
    return Identity(
        vendor=vendor,
        device=device,
        subsystem_vendor=read(pci.PCI_SUBSYSTEM_VENDOR_ID, 2),
        subsystem_device=read(pci.PCI_SUBSYSTEM_ID, 2),
        class_code=class_revision >> 8,
        revision=class_revision & 0xFF,
    )


def resources(function: PciFunction) -> tuple[Resource, ...]:
    """Implemented BARs, the ROM if there is one, and what a physical function has for its virtual ones."""
    if function.physfn is not None:
        return _virtual_resources(function, function.physfn)
    found = []
    for index, bar in sorted(function.bars.items()):
        register = pci.PCI_BASE_ADDRESS_0 + 4 * index
        low = function.config_read(register, 4)
        if bar.kind is BarKind.IO:
            start = low & pci.PCI_BASE_ADDRESS_IO_MASK
            flags = IORESOURCE_IO | pci.PCI_BASE_ADDRESS_SPACE_IO
        else:
            start = low & pci.PCI_BASE_ADDRESS_MEM_MASK
            flags = _memory_flags(bar)
            if bar.kind is BarKind.MEMORY64:
                start |= function.config_read(register + 4, 4) << 32
        flags |= IORESOURCE_SIZEALIGN if start else IORESOURCE_UNSET
        found.append(
            Resource(
                index,
                start,
                bar.size,
                flags,
                bar.kind.value,
                bar.prefetchable,
                bar.mappable,
                bar.polled,
            )
        )
    found += _resources_for_virtual(function)
    if function.rom:
        start = function.config_read(pci.PCI_ROM_ADDRESS, 4) & pci.PCI_ROM_ADDRESS_MASK
        flags = IORESOURCE_MEM | IORESOURCE_PREFETCH | IORESOURCE_READONLY
        flags |= IORESOURCE_SIZEALIGN if start else IORESOURCE_UNSET
        found.append(Resource(ROM_RESOURCE, start, len(function.rom), flags, "rom"))
    return tuple(found)


def _memory_flags(bar: Bar) -> int:
    flags = IORESOURCE_MEM
    if bar.kind is BarKind.MEMORY64:
        flags |= IORESOURCE_MEM_64 | pci.PCI_BASE_ADDRESS_MEM_TYPE_64
    if bar.prefetchable:
        flags |= IORESOURCE_PREFETCH | pci.PCI_BASE_ADDRESS_MEM_PREFETCH
    return flags


def _resources_for_virtual(physfn: PciFunction) -> list[Resource]:
    """The ranges in VF BARs: each is as large as all virtual functions' together."""
    found = []
    capability = sriov.find(physfn)
    for index, bar in physfn.virtual_bars.items() if capability else ():
        assert capability is not None
        start = sriov.resource_at(capability, index, wide=bar.kind is BarKind.MEMORY64)
        flags = _memory_flags(bar) | (IORESOURCE_SIZEALIGN if start else IORESOURCE_UNSET)
        size, kind = bar.size * capability.total, "vf " + bar.kind.value
        found.append(Resource(IOV_RESOURCES + index, start, size, flags, kind, bar.prefetchable))
    return found


def _virtual_resources(function: PciFunction, physfn: PciFunction) -> tuple[Resource, ...]:
    """The piece of each of those ranges that is this virtual function's (pci_iov_add_virtfn)."""
    number = sriov.index_of(function, physfn)
    found = []
    for whole in _resources_for_virtual(physfn):
        bar = function.bars[whole.number - IOV_RESOURCES]
        start = whole.start + number * bar.size if whole.start else 0
        index, kind, mappable = whole.number - IOV_RESOURCES, bar.kind.value, bar.mappable
        flags = _memory_flags(bar) | (0 if start else IORESOURCE_UNSET)
        found.append(Resource(index, start, bar.size, flags, kind, bar.prefetchable, mappable))
    return tuple(found)


def capabilities(function: PciFunction) -> tuple[Capability, ...]:
    """Both lists, in order. A list that runs in a circle or out of the space ends there."""
    read = function.config_read
    found: list[Capability] = []
    seen: set[int] = set()
    if read(pci.PCI_STATUS, 2) & pci.PCI_STATUS_CAP_LIST:
        names = _names("PCI_CAP_ID_")
        offset = read(pci.PCI_CAPABILITY_LIST, 1) & ~3
        while offset >= pci.PCI_STD_HEADER_SIZEOF and offset not in seen:
            seen.add(offset)
            number = read(offset + pci.PCI_CAP_LIST_ID, 1)
            found.append(Capability(offset, number, names.get(number, f"{number:#04x}")))
            offset = read(offset + pci.PCI_CAP_LIST_NEXT, 1) & ~3
    offset = pci.PCI_CFG_SPACE_SIZE if function.config_size > pci.PCI_CFG_SPACE_SIZE else 0
    names = _names("PCI_EXT_CAP_ID_")
    while pci.PCI_CFG_SPACE_SIZE <= offset < function.config_size and offset not in seen:
        seen.add(offset)
        header = read(offset, 4)
        if header in (0, 0xFFFFFFFF):
            break
        number = header & 0xFFFF
        found.append(Capability(offset, number, names.get(number, f"{number:#06x}"), extended=True))
        offset = header >> 20 & ~3
    return tuple(found)


def interrupts(function: PciFunction) -> dict[str, int]:
    """How many interrupts of each kind the function has: intx (0 or 1), msi, msix."""
    counts = {"intx": int(function.config_read(pci.PCI_INTERRUPT_PIN, 1) != 0), "msi": 0, "msix": 0}
    for capability in capabilities(function):
        if capability.extended:
            continue
        if capability.id == pci.PCI_CAP_ID_MSI:
            flags = function.config_read(capability.offset + pci.PCI_MSI_FLAGS, 2)
            counts["msi"] = 1 << ((flags & pci.PCI_MSI_FLAGS_QMASK) >> 1)
        elif capability.id == pci.PCI_CAP_ID_MSIX:
            flags = function.config_read(capability.offset + pci.PCI_MSIX_FLAGS, 2)
            counts["msix"] = (flags & pci.PCI_MSIX_FLAGS_QSIZE) + 1
    return counts
