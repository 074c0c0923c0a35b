"""Trace of the ioctls of the mainline ABIs: names by kind of file, and arguments as strace writes them.

    VFIO_IOMMU_MAP_DMA, {flags=READ|WRITE, vaddr=0x7f1aaae7d000, iova=0x100000, size=0x2000}
    VFIO_DEVICE_SET_IRQS, {flags=DATA_EVENTFD|ACTION_TRIGGER, index=MSIX, start=0, count=2, fds=[7, 8]}
    VFIO_CHECK_EXTENSION, VFIO_TYPE1v2_IOMMU

The twin of ``trace_2011``, with the same three functions. Everything is in tables: requests and their structs in
``uvfio.uapi``, here how a field is written (``FIELDS``), what follows a struct (``TAILS``) and which fields are left
out: a struct's own size (the reason of a refusal names it where it matters) and reserved fields. Fields beyond the size
that the program passes are not shown.

Decoding reads the program's memory and changes nothing; it runs before the call, and again after it where the call
writes an answer. What cannot be read is shown as its address.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from uvfio.core.structure.device import DeviceKind
from uvfio.doors.run.observe.text import SHOWN, Read, flags_text, string_text
from uvfio.fops.mainline.device import DeviceFile
from uvfio.uapi import iommufd, vfio
from uvfio.uapi import vfio_feature as features

if TYPE_CHECKING:
    from uvfio.fops.file import File
    from uvfio.uapi.structs import Struct
    from uvfio.uapi.vfio import Ioctl

__all__ = ["decode", "find", "name_of"]

Values = dict[str, int]
Tail = Callable[[Values, Read, int, int], list[str]]
"""``(fields, read, address, size that the program passes) -> parts``: what follows a struct."""

SIZES: Final = ("argsz", "size")  # names of a first field that holds the size of its struct
SILENT: Final = ("pad", "reserved", "__reserved", "__reserved2")
FLAG_NAMES: Final = vfio.FLAG_NAMES | iommufd.FLAG_NAMES
COMPATIBLE: Final = {"iommufd": "container"}  # files that know the requests of another kind too

REGIONS: Final = ("BAR0", "BAR1", "BAR2", "BAR3", "BAR4", "BAR5", "ROM", "CONFIG", "VGA")
IRQS: Final = ("INTX", "MSI", "MSIX", "ERR", "REQ")
PCI_INDEXES: Final = {
    "vfio_region_info": REGIONS,
    "vfio_irq_info": IRQS,
    "vfio_irq_set": IRQS,
}
CAPABILITIES: Final = {
    "vfio_device_info": {vfio.VFIO_DEVICE_INFO_CAP_PCI_ATOMIC_COMP: "PCI_ATOMIC_COMP"},
    "vfio_region_info": {
        vfio.VFIO_REGION_INFO_CAP_SPARSE_MMAP: "SPARSE_MMAP",
        vfio.VFIO_REGION_INFO_CAP_TYPE: "TYPE",
        vfio.VFIO_REGION_INFO_CAP_MSIX_MAPPABLE: "MSIX_MAPPABLE",
    },
    "vfio_iommu_type1_info": {
        vfio.VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE: "IOVA_RANGE",
        vfio.VFIO_IOMMU_TYPE1_INFO_CAP_MIGRATION: "MIGRATION",
        vfio.VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL: "DMA_AVAIL",
    },
}
CAPABILITIES_MAX: Final = 16


def find(kind: str, request: int) -> Ioctl | None:
    """The request, or None if that kind of file has no such number."""
    for table in (vfio.IOCTLS, iommufd.IOCTLS):
        known = table.get((kind, request)) or table.get((COMPATIBLE.get(kind, ""), request))
        if known is not None:
            return known
    return None


def name_of(kind: str, request: int) -> str:
    """The header's name, or the number and what it is made of."""
    known = find(kind, request)
    return known.name if known else vfio.ioctl_name(kind, request)


def decode(file: File, request: int, read: Read, argument: int) -> str:
    """The argument of an ioctl as text; empty if it takes none."""
    known = find(file.kind, request)
    if known is None:
        return f"{argument:#x}"
    kind = known.argument
    try:
        if isinstance(kind, type):
            return _struct_text(kind, known.minsz, read, argument, pci=_is_pci(file))
        if kind == "none":
            return ""
        if kind == "int":
            return vfio.EXTENSION_NAMES.get(argument, str(argument))
        if kind == "char*":
            return string_text(read, argument)
        return str([vfio.S32.unpack(read(argument, 4))[0]])
    except (OSError, struct.error, ValueError):
        return f"{argument:#x}"


def _is_pci(file: File) -> bool:
    opened = file.opened if isinstance(file, DeviceFile) else None
    return opened is not None and opened.data is not None and opened.data.kind is DeviceKind.PCI


# -- structs ---------------------------------------------------------------------------------------


def _struct_text(kind: type[Struct], least: int, read: Read, address: int, *, pci: bool) -> str:
    """``{field=value, ...}``: the fields within the size that the program passes, and what follows the struct."""
    given = int.from_bytes(read(address, 4), "little")
    size = max(min(given, ctypes.sizeof(kind)), least)
    raw = read(address, size)
    fields = kind.from_bytes(raw.ljust(ctypes.sizeof(kind), b"\0")).as_dict()
    places = {name: getattr(kind, name).offset for name in fields}
    first = next(iter(fields))
    parts = [
        f"{name}={_field_text(kind.__name__, name, value, pci=pci)}"
        for name, value in fields.items()
        if places[name] < size
        and name not in SILENT
        and not (name == first and name in SIZES)
        and not (name == "cap_offset" and not value)
    ]
    tail = TAILS.get(kind.__name__)
    if tail is not None:
        parts += tail(fields, read, address, given)
    elif kind.__name__ in CAPABILITIES:
        parts += _capabilities(kind.__name__, fields, read, address, given)
    return "{" + ", ".join(parts) + "}"


def _field_text(struct_name: str, name: str, value: int, *, pci: bool) -> str:
    write = FIELDS.get((struct_name, name))
    if write is not None:
        return write(value)
    if name == "flags":
        return flags_text(value, FLAG_NAMES.get(struct_name, {}))
    names = PCI_INDEXES.get(struct_name, ()) if pci and name == "index" else ()
    if 0 <= value < len(names):
        return names[value]
    return f"{value:#x}" if value > 9 else str(value)


def _feature_flags(flags: int) -> str:
    """``SET|LOW_POWER_ENTRY``: the operation and the feature."""
    number = flags & features.VFIO_DEVICE_FEATURE_MASK
    known = features.FEATURES.get(number)
    name = known.name.removeprefix("VFIO_DEVICE_FEATURE_") if known else str(number)
    asked = flags & ~features.VFIO_DEVICE_FEATURE_MASK
    return (flags_text(asked, FLAG_NAMES["vfio_device_feature"]) + "|" if asked else "") + name


FIELDS: Final[dict[tuple[str, str], Callable[[int], str]]] = {
    ("vfio_device_feature", "flags"): _feature_flags,
    ("vfio_device_feature_mig_state", "device_state"): lambda value: features.STATE_NAMES.get(
        value, str(value)
    ),
}


# -- what follows a struct -------------------------------------------------------------------------


def _list(read: Read, address: int, count: int, letter: str) -> str:
    shown = max(0, min(count, SHOWN))
    form = struct.Struct(f"<{shown}{letter}")
    words = [str(value) for value in form.unpack(read(address, form.size))] if shown else []
    return "[" + ", ".join(words + ["..."] * (count > shown)) + "]"


def _interrupts(fields: Values, read: Read, address: int, given: int) -> list[str]:
    behind = address + ctypes.sizeof(vfio.vfio_irq_set)
    if fields["flags"] & vfio.VFIO_IRQ_SET_DATA_EVENTFD:
        return ["fds=" + _list(read, behind, fields["count"], "i")]
    if fields["flags"] & vfio.VFIO_IRQ_SET_DATA_BOOL:
        return ["bools=" + _list(read, behind, fields["count"], "B")]
    return []


def _groups(fields: Values, read: Read, address: int, given: int) -> list[str]:
    behind = address + ctypes.sizeof(vfio.vfio_pci_hot_reset)
    return ["fds=" + _list(read, behind, fields["count"], "i")]


def _dependents(fields: Values, read: Read, address: int, given: int) -> list[str]:
    one = struct.Struct("<IHBB")
    at = address + ctypes.sizeof(vfio.vfio_pci_hot_reset_info)
    room = max(0, (given - ctypes.sizeof(vfio.vfio_pci_hot_reset_info)) // one.size)
    shown = min(fields["count"], room, SHOWN)
    found = one.iter_unpack(read(at, shown * one.size)) if shown else ()
    words = [
        f"{segment:04x}:{bus:02x}:{devfn >> 3:02x}.{devfn & 7} in {group}"
        for group, segment, bus, devfn in found
    ]
    return ["devices=[" + ", ".join(words) + "]"]


def _feature_data(fields: Values, read: Read, address: int, given: int) -> list[str]:
    known = features.FEATURES.get(fields["flags"] & features.VFIO_DEVICE_FEATURE_MASK)
    behind = ctypes.sizeof(vfio.vfio_device_feature)
    if known is None or not isinstance(known.payload, type):
        return []
    size = ctypes.sizeof(known.payload)
    if fields["flags"] & features.VFIO_DEVICE_FEATURE_PROBE or given < behind + size:
        return []
    values = known.payload.from_bytes(read(address + behind, size)).as_dict()
    return [
        f"{name}={_field_text(known.payload.__name__, name, value, pci=False)}"
        for name, value in values.items()
        if name not in SILENT
    ]


def _bitmap_of_range(fields: Values, read: Read, address: int, given: int) -> list[str]:
    if not fields["flags"] & vfio.VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP:
        return []
    kind = vfio.vfio_iommu_type1_dirty_bitmap_get
    raw = read(address + ctypes.sizeof(vfio.vfio_iommu_type1_dirty_bitmap), ctypes.sizeof(kind))
    return [f"{name}={value:#x}" for name, value in kind.from_bytes(raw).as_dict().items()]


def _capabilities(
    struct_name: str, fields: Values, read: Read, address: int, given: int
) -> list[str]:
    """The names in the capability chain of an answer. Before the call the program's own bytes are there: the length of
    the chain is bounded, and links outside the buffer end it."""
    names = CAPABILITIES[struct_name]
    found: list[str] = []
    at = fields["cap_offset"]
    while at and at + 8 <= given and len(found) < CAPABILITIES_MAX:
        number, _, at = struct.unpack("<HHI", read(address + at, 8))
        found.append(names.get(number, str(number)))
    return ["caps=[" + ", ".join(found) + "]"] if found else []


TAILS: Final[dict[str, Tail]] = {
    "vfio_irq_set": _interrupts,
    "vfio_pci_hot_reset": _groups,
    "vfio_pci_hot_reset_info": _dependents,
    "vfio_device_feature": _feature_data,
    "vfio_iommu_type1_dirty_bitmap": _bitmap_of_range,
}
