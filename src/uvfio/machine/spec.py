"""What a machine is made of, as data: the IOMMUs' properties and a list of devices.

Three notations lead here: the default machine, ``-d`` strings (parsed in this module) and machine files
(``cli/machinefile.py``). Whatever the notation, the values are checked here, once, and a mistake is a
``ConfigError`` that names the place, the key and the value.

Invariants: a ``MachineSpec`` is complete and consistent. Every device has an address in canonical form
and a group; no two devices share an address; an IOMMU that a device names exists. Nothing here knows whether
a model exists or which options it takes: that is found out when the machine is built.

The address says the bus: SSSS:BB:DD.F is a PCI function, the full path of a device tree node a platform device.

Standard library only, and little of it: this module is on the way of every ``uvfio run``. What concerns device
trees is in ``machine/device_tree.py``, imported when an address is a path.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from uvfio.errors import ConfigError
from uvfio.kit.option import whole_number

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from uvfio.drivers.platform.hardware import Resources

__all__ = [
    "DEFAULT_DRIVER",
    "MAX_NAME",
    "NO_DRIVER",
    "NO_IOMMU",
    "PLATFORM_DRIVER",
    "UNIT_NAME",
    "VFIO_DRIVERS",
    "DeviceSpec",
    "IommuSpec",
    "MachineSpec",
    "check_driver",
    "check_iommu",
    "default_machine",
    "in_folder",
    "parse_address",
    "parse_device",
    "parse_number",
    "parse_size",
    "place",
]

DEFAULT_DRIVER = "vfio-pci"
PLATFORM_DRIVER = "vfio-platform"
VFIO_DRIVERS = {"pci": DEFAULT_DRIVER, "platform": PLATFORM_DRIVER}
NO_DRIVER = "none"

UNIT_NAME = "iommu0"  # of the machine's first IOMMU
NO_IOMMU = "none"  # what a device says that has none
MAX_GROUP = 2**31 - 1  # programs read the number with %d
MAX_NAME = 255  # NAME_MAX of Linux: the names become those of files
_HEX = frozenset("0123456789abcdefABCDEF")
_NAME = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_")
_UNSAID = "\0"  # no driver is named: the VFIO driver of the bus


@dataclass(frozen=True, slots=True)
class IommuSpec:
    """An IOMMU, and the limits of the VFIO in front of it.

    ``reserved`` are inclusive ranges that no mapping may touch. ``source`` is where it was written. Of a
    machine's further IOMMUs the last four properties do not count: they are VFIO's, which is one.
    """

    interrupt_remapping: bool = True
    coherent: bool = True
    page_sizes: tuple[int, ...] = (4 << 10, 2 << 20, 1 << 30)
    address_bits: int = 48
    reserved: tuple[tuple[int, int], ...] = ((0xFEE00000, 0xFEEFFFFF),)
    dma_entry_limit: int = 65535
    allow_unsafe_interrupts: bool = False
    enable_sriov: bool = True
    enable_unsafe_noiommu_mode: bool = False
    source: str = field(default="iommu", compare=False)

    def __post_init__(self) -> None:
        sizes = tuple(sorted(self.page_sizes))
        if not sizes:
            raise _error(self.source, "page_sizes", [], "is empty", "the smallest is usually 4K")
        for size in sizes:
            if size < 4096 or size & (size - 1):
                problem = "is not a power of two of at least 4K"
                raise _error(self.source, "page_sizes", size, problem)
        if len(set(sizes)) != len(sizes):
            raise _error(self.source, "page_sizes", list(sizes), "names a size twice")
        object.__setattr__(self, "page_sizes", sizes)
        _within(self.source, "address_bits", self.address_bits, 32, 64)
        _within(self.source, "dma_entry_limit", self.dma_entry_limit, 1, 2**32 - 1)
        ranges = tuple(sorted(self.reserved))
        end = -1
        for first, last in ranges:
            shown = f"{first:#x}-{last:#x}"
            if not 0 <= first <= last < 2**64:
                problem = "is not a range: first and last address, 64 bits"
                raise _error(self.source, "reserved", shown, problem)
            if first <= end:
                raise _error(self.source, "reserved", shown, "overlaps another reserved range")
            end = last
        object.__setattr__(self, "reserved", ranges)


@dataclass(frozen=True, slots=True)
class DeviceSpec:
    """One device. ``address`` and ``group`` may be None until ``place`` has chosen them.

    An ``address`` that begins with "/" is the path of a device tree node, and the device a platform device;
    ``resources`` are what the tree gives it (None: what its model asks for, from the unit address on).
    ``driver``: by default the VFIO driver of its bus. ``iommu``: one of the machine's named IOMMUs, or "none": there is
    none in front of it. ``numvfs``: how many virtual functions it has from the start.
    ``options`` belong to the model: strings from ``-d``, typed values from a machine file.
    ``source`` is where it was written, for errors; two specs that differ in it only are equal.
    """

    model: str
    address: str | None = None
    group: int | None = None
    driver: str = _UNSAID
    options: Mapping[str, object] = field(default_factory=dict)
    source: str = field(default="", compare=False)
    iommu: str | None = None
    resources: Resources | None = None
    numvfs: int = 0

    @property
    def bus(self) -> str:
        """ "pci" or "platform"."""
        return "platform" if self.address is not None and self.address[:1] == "/" else "pci"

    def __post_init__(self) -> None:
        where = self.source or f"device {self.model!r}"
        object.__setattr__(self, "source", where)
        if not self.model:
            hint = "`uvfio models` lists them; a class of yours is path.py:Class"
            raise _error(where, "model", "", "is empty", hint)
        if self.bus == "platform":
            from uvfio.machine.device_tree import check_path

            check_path(str(self.address), where)
        elif self.address is not None:
            object.__setattr__(self, "address", parse_address(self.address, where))
        if self.group is not None:
            _within(where, "group", self.group, 0, MAX_GROUP)
        _within(where, "numvfs", self.numvfs, 0, 0xFFFF)
        if self.driver == _UNSAID:
            object.__setattr__(self, "driver", VFIO_DRIVERS[self.bus])
        check_driver(self.driver, self.bus, where)


@dataclass(frozen=True, slots=True)
class MachineSpec:
    """A whole machine. Devices without address or group get one; two at one address are an error.

    ``iommus`` are IOMMUs besides ``iommu``, by the name that devices choose them with.
    """

    iommu: IommuSpec = field(default_factory=IommuSpec)
    devices: tuple[DeviceSpec, ...] = ()
    iommus: Mapping[str, IommuSpec] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, unit in self.iommus.items():
            if name in (UNIT_NAME, NO_IOMMU) or not _is_name(name):
                problem = "is not a name for a further IOMMU"
                raise _error(unit.source, "name", name, problem, "letters, digits, - and _")
        for dev in self.devices:
            check_iommu(dev, self.iommus)
        object.__setattr__(self, "devices", place(self.devices))


def check_driver(driver: str, bus: str, source: str = "") -> None:
    """ConfigError unless ``driver`` is "none" or can be a driver of ``bus``, that is the name of a folder in sysfs."""
    own = VFIO_DRIVERS[bus]
    hint = f"{own}, {NO_DRIVER}, or the name of a host driver: letters, digits, - and _"
    if not _is_name(driver):
        raise _error(source, "driver", driver, "is not a driver's name", hint)
    if driver != own and driver in VFIO_DRIVERS.values():
        raise _error(source, "driver", driver, f"does not take devices of the {bus} bus", hint)
    for real in VFIO_DRIVERS.values():
        if driver != real and _letters(driver) == _letters(real):
            raise _error(
                source, "driver", driver, "is not how the driver is spelt", f"write {real}"
            )


def _is_name(text: str) -> bool:
    return 0 < len(text) <= MAX_NAME and _NAME.issuperset(text)


def _letters(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")


def check_iommu(dev: DeviceSpec, names: Iterable[str]) -> None:
    """ConfigError if ``dev`` chooses an IOMMU that is not one of ``names``."""
    if dev.iommu not in (None, NO_IOMMU) and dev.iommu not in names:
        known = ", ".join(names)
        hint = f"there are {known}" if known else f"[iommu.{dev.iommu}] in a machine file makes one"
        raise _error(dev.source, "iommu", dev.iommu, "is not an IOMMU of the machine", hint)


def default_machine() -> MachineSpec:
    """The machine of the RFC's documentation: two functions that share group 240, and one alone in 241."""
    return MachineSpec(
        devices=(
            DeviceSpec("edu", "0000:06:0d.0", 240),
            DeviceSpec("edu", "0000:06:0d.1", 240),
            DeviceSpec("edu", "0000:07:00.0", 241),
        )
    )


def place(
    devices: Iterable[DeviceSpec],
    taken: Sequence[str] = (),
    groups: Iterable[int] = (),
) -> tuple[DeviceSpec, ...]:
    """Give every device an address and a group of its own where it names none.

    Addresses are 0000:00:01.0, 0000:00:02.0 and so on, groups 0, 1 and so on: the lowest that neither
    ``taken`` and ``groups`` nor any of the devices name, on whatever bus.
    """
    devices = tuple(devices)
    seen: dict[str, str] = dict.fromkeys(taken, "")
    for dev in devices:
        if dev.address is None:
            continue
        if dev.address in seen:
            other = seen[dev.address]
            there = f"is where {other} is" if other else "is taken by a device of the machine"
            hint = "leave the address out to get a free one"
            raise _error(dev.source, "address", dev.address, there, hint)
        seen[dev.address] = dev.source
    used_slots = {address.rpartition(".")[0] for address in seen if address[0] != "/"}
    used_groups = {*groups, *(d.group for d in devices if d.group is not None)}
    slots = _free_slots(used_slots)
    number = 0
    placed = []
    for dev in devices:
        address, group = dev.address, dev.group
        if address is None:
            slot = next(slots, None)
            if slot is None:
                hint = "the automatic addresses are those of PCI segment 0000"
                raise _error(dev.source, "address", "", "cannot be chosen: no slot is left", hint)
            address = f"{slot}.0"
        if group is None:
            while number in used_groups:
                number += 1
            used_groups.add(number)
            group = number
        placed.append(replace(dev, address=address, group=group))
    return tuple(placed)


def _free_slots(used: set[str]) -> Iterator[str]:
    for bus in range(256):
        for slot in range(0 if bus else 1, 32):  # 0000:00:00 is the host bridge's
            name = f"0000:{bus:02x}:{slot:02x}"
            if name not in used:
                yield name


def parse_address(text: str, source: str = "") -> str:
    """``[SSSS:]BB:DD.F`` in hexadecimal, leading zeros optional, in canonical form."""
    head, dot, function = text.partition(".")
    parts = head.split(":")
    if len(parts) == 2:
        parts.insert(0, "0")
    widths = (4, 2, 2)
    if (
        dot
        and len(parts) == 3
        and len(function) == 1
        and function in "01234567"
        and all(
            0 < len(part) <= width and _HEX.issuperset(part)
            for part, width in zip(parts, widths, strict=True)
        )
    ):
        segment, bus, slot = (int(part, 16) for part in parts)
        if slot < 32:
            return f"{segment:04x}:{bus:02x}:{slot:02x}.{function}"
        problem = f"has device number {slot:#x}: a bus has 0x20 of them"
    else:
        problem = "is not a PCI address"
    raise _error(source, "address", text, problem, "write SSSS:BB:DD.F, for example 0000:06:0d.0")


def parse_device(text: str) -> DeviceSpec:
    """``MODEL[@ADDRESS][,group=N][,driver=NAME][,iommu=NAME][,numvfs=N][,key=value...]``; ``,,`` is a comma in a
    value."""
    source = f"-d {text!r}"
    first, *rest = _split(text)
    model, at, address = _split_address(first)
    if at and not address:
        raise _error(
            source, "address", "", "is empty", "write MODEL@SSSS:BB:DD.F or leave out the @"
        )
    known: dict[str, str] = {}
    options: dict[str, object] = {}
    for item in rest:
        key, equals, value = item.partition("=")
        key = key.strip()
        if not equals or not key:
            problem = "is not key=value" if item else "is empty"
            raise _error(source, "option", item, problem, "DEVICE = MODEL[@ADDRESS][,key=value...]")
        if key in ("model", "address"):
            hint = "write MODEL@ADDRESS at the beginning"
            raise _error(source, key, value, "has a place of its own", hint)
        target = known if key in ("group", "driver", "iommu", "numvfs") else options
        if key in target:
            raise _error(source, key, value, "is given twice")
        target[key] = value
    group = parse_number(known["group"], source, "group") if "group" in known else None
    return DeviceSpec(
        model=model,
        address=address if at else None,
        group=group,
        driver=known.get("driver", _UNSAID),
        options=options,
        source=source,
        iommu=known.get("iommu"),
        numvfs=parse_number(known.get("numvfs", 0), source, "numvfs"),
    )


def in_folder(model: str, folder: str) -> str:
    """``model`` as it is written in ``folder``: a relative path.py:Class is relative to that."""
    file, colon, _ = model.rpartition(":")
    if folder and colon and file.endswith(".py") and not file.startswith("/"):
        return f"{folder.rstrip('/')}/{model}" if folder != "/" else f"/{model}"
    return model


def _split_address(text: str) -> tuple[str, str, str]:
    """Model, "@" if there is an address, and the address. Paths of files and of nodes may have an @ in them."""
    at = text.find("@/")
    while at >= 0:
        model = text[:at]
        if "/" not in model or ":" in model:  # a name, or a class in a file: not the folder "me@"
            return model, "@", text[at + 1 :]
        at = text.find("@/", at + 1)
    model, found, address = text.rpartition("@")
    return (text, "", "") if not found or "/" in address else (model, found, address)


def _split(text: str) -> list[str]:
    pieces = [""]
    rest = text
    while True:
        head, comma, rest = rest.partition(",")
        pieces[-1] += head
        if not comma:
            return pieces
        if rest.startswith(","):
            pieces[-1] += ","
            rest = rest[1:]
        else:
            pieces.append("")


def parse_number(value: object, source: str, key: str) -> int:
    """A whole number: an int, or a string in decimal or with 0x."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str):
        try:
            return int(value, 16 if value[:2].lower() == "0x" else 10)
        except ValueError:
            pass
    raise _error(source, key, value, "is not a number", "decimal, or hexadecimal with 0x")


def parse_size(value: object, source: str, key: str) -> int:
    """A number of bytes: an int, or a string with the unit K, M, G or T (powers of 1024)."""
    if isinstance(value, str):
        size = whole_number(value)
        if size is not None:
            return size
        raise _error(source, key, value, "is not a size", 'for example "4K", "2M", "1G" or 4096')
    return parse_number(value, source, key)


def _within(source: str, key: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise _error(source, key, value, f"is out of range, {low} to {high}")


def _error(source: str, key: str, value: object, problem: str, hint: str = "") -> ConfigError:
    prefix = f"{source}: " if source else ""
    text = repr(value)
    shown = (
        "" if value == "" else f" {text}" if len(text) <= 80 else f" {text[:60]}... ({len(text)})"
    )
    return ConfigError(f"{prefix}{key}{shown} {problem}", hint)
