"""A world around the core that a test controls completely: buses, drivers, memories, processes.

``World`` is a framework with everything outside it replaced by fakes that record what happens to them and
fail when they are told to. ``snapshot`` shows the whole observable state as plain data; ``refused`` asserts
that a call fails with one particular error *and* that this state is the same as before.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import Condition
from time import monotonic
from typing import Any, ClassVar, cast

import pytest

from uvfio.core.bus import BoundDevice, BusDevice, DeviceKind, IrqInfo, Region
from uvfio.core.events import FrameworkEvent
from uvfio.core.seams import Event, Mm, Pin, Timer
from uvfio.core.structure.device import Device
from uvfio.core.structure.framework import Framework
from uvfio.core.structure.group import Group, OpenGroup
from uvfio.core.structure.iommu import Iommu
from uvfio.core.translation.domain import Domain
from uvfio.core.translation.unit import IommuUnit
from uvfio.doors.local import Process
from uvfio.errors import BadAddress, InvalidArgument, NoSuchDevice, Unsupported, VfioError
from uvfio.fops.file import File
from uvfio.machine.open import open_node
from uvfio.machine.store import ByteStore
from uvfio.uapi import rfc

PAGE = 4096
UNIT = IommuUnit()

REGISTERS, RAM, ROM, CONFIG = 0, 1, 6, 7
INTX, MSI, MSIX = 0, 1, 2


class SparseMemory:
    """An address space in which every page exists, but for the ``holes``.

    Pages are numbers (address // 4096). ``device`` pages lock nothing when they are pinned, ``read_only``
    ones refuse writes. ``on_pin`` is called in the middle of each ``pin``.
    """

    def __init__(self) -> None:
        self.holes: set[int] = set()
        self.device: set[int] = set()
        self.read_only: set[int] = set()
        self.on_pin: Callable[[], None] = lambda: None
        self.difference = ""
        self.own_locks = 0
        self._bytes: dict[int, int] = {}

    def read(self, address: int, size: int) -> bytes:
        self._check(address, size, self.holes)
        return bytes(self._bytes.get(at, 0) for at in range(address, address + size))

    def write(self, address: int, data: bytes) -> None:
        self._check(address, len(data), self.holes | self.read_only)
        self._bytes.update(enumerate(data, address))

    def store(self, address: int, value: int, width: int) -> None:
        self.write(address, value.to_bytes(width, "little"))

    def view(
        self, address: int, size: int, *, writable: bool = True, cut: object = None
    ) -> memoryview | None:
        return None

    def exchanged(self, address: int, size: int) -> str:
        return self.difference

    def mlocked(self) -> int:
        return self.own_locks

    def pin(self, address: int, size: int, writable: bool) -> Pin:
        self._check(address, size, self.holes | (self.read_only if writable else set()))
        self.on_pin()
        first, last = address // PAGE, (address + size - 1) // PAGE
        return Pin(self, size - PAGE * sum(first <= page <= last for page in self.device))

    @staticmethod
    def _check(address: int, size: int, forbidden: set[int]) -> None:
        first, last = address // PAGE, (address + size - 1) // PAGE
        if any(first <= page <= last for page in forbidden):
            raise BadAddress(f"{address:#x}+{size:#x} is not all there")


class FakeBusDevice:
    """A device of a bus. ``attach_error`` is raised by the next attach, and those after it."""

    def __init__(
        self,
        name: str,
        group: int | None,
        *,
        bus: str = "pci",
        unit: IommuUnit | None = UNIT,
    ) -> None:
        self.name = name
        self.bus = bus
        self.group = group
        self.unit = unit
        self.domain: Domain | None = None
        self.attach_error: Exception | None = None
        self.calls: list[str] = []

    def attach(self, domain: Domain) -> None:
        self.calls.append("attach")
        if self.attach_error:
            raise self.attach_error
        assert self.domain is None, f"{self.name} is attached twice"
        self.domain = domain

    def detach(self) -> None:
        self.calls.append("detach")
        assert self.domain is not None, f"{self.name} is detached twice"
        self.domain = None


class FakeDriver:
    """A VFIO bus driver that matches by equality. ``on_hotplug`` is what it does with a hot-plugged device."""

    def __init__(self, name: str = "vfio-pci") -> None:
        self.name = name
        self.on_hotplug: Callable[[BusDevice], None] = lambda dev: None
        self.hotplugged: list[str] = []

    def match(self, dev: BusDevice, name: str) -> bool:
        return dev.name == name

    def bind_hotplugged(self, dev: BusDevice) -> None:
        self.hotplugged.append(dev.name)
        self.on_hotplug(dev)


class FakeBound:
    """A bound device: registers, mappable RAM, a ROM, 256 bytes of config space, INTx and four MSI vectors.

    ``errors[method]`` is raised by that method. ``on_call(method)`` is called at the start of each.
    """

    SIZES: ClassVar = {REGISTERS: 0x100, RAM: 0x2000, ROM: 0x800, CONFIG: 0x100}

    def __init__(self, name: str = "device") -> None:
        self.name = name
        self.kind = DeviceKind.PCI
        self.resettable = True
        self.num_regions = rfc.VFIO_PCI_NUM_REGIONS
        self.num_irqs = rfc.VFIO_PCI_NUM_IRQS
        self.errors: dict[str, Exception] = {}
        self.on_call: Callable[[str], None] = lambda method: None
        self.calls: list[str] = []
        self.gets = 0
        self.puts = 0
        self.requests: list[int] = []
        self.memory = {index: bytearray(size) for index, size in self.SIZES.items()}
        self.events: dict[int, list[Event]] = {}
        self.unmask_event: Event | None = None

    @property
    def enabled(self) -> int:
        """How many opens the device knows of."""
        return self.gets - self.puts

    def _called(self, method: str) -> None:
        self.calls.append(method)
        self.on_call(method)
        if method in self.errors:
            raise self.errors[method]

    def get(self) -> None:
        self._called("get")
        self.gets += 1

    def put(self) -> None:
        self.puts += 1
        assert self.enabled >= 0, f"{self.name}: put without get"
        self._called("put")

    def region(self, index: int) -> Region:
        self._called("region")
        if not 0 <= index < self.num_regions:
            raise InvalidArgument(f"no region {index}")
        return Region(index, self.SIZES.get(index, 0), writable=index != ROM, mappable=index == RAM)

    def read(self, index: int, offset: int, count: int) -> bytes:
        self._called("read")
        size = self.region(index).size
        if offset > size or not size:
            raise InvalidArgument(f"offset {offset:#x} of region {index}")
        return bytes(self.memory[index][offset : offset + count])

    def write(self, index: int, offset: int, data: bytes) -> int:
        self._called("write")
        region = self.region(index)
        if offset > region.size or not region.size or not region.writable:
            raise InvalidArgument(f"offset {offset:#x} of region {index}")
        taken = data[: region.size - offset]
        self.memory[index][offset : offset + len(taken)] = taken
        return len(taken)

    def mmap(self, index: int, offset: int, size: int) -> memoryview:
        self._called("mmap")
        region = self.region(index)
        if not region.mappable or offset + size > region.size:
            raise InvalidArgument(f"{offset:#x}+{size:#x} of region {index} cannot be mapped")
        return memoryview(self.memory[index])[offset : offset + size]

    def irq(self, index: int) -> IrqInfo:
        self._called("irq")
        if not 0 <= index < self.num_irqs:
            raise InvalidArgument(f"no interrupt {index}")
        return IrqInfo(index, {INTX: 1, MSI: 4}.get(index, 0), level=index == INTX)

    def check_irqs(self, index: int, count: int) -> None:
        self._called("check_irqs")
        if not 0 <= count <= self.irq(index).count:
            raise InvalidArgument(f"{count} vectors of interrupt {index}")

    def set_irqs(self, index: int, events: Sequence[Event]) -> None:
        self._called("set_irqs")
        self.events[index] = list(events)

    def unmask_irq(self, index: int) -> None:
        self._called("unmask_irq")
        if index != INTX:
            raise InvalidArgument(f"interrupt {index} has no mask")

    def set_unmask_event(self, index: int, event: Event | None) -> None:
        self._called("set_unmask_event")
        if index != INTX:
            raise InvalidArgument(f"interrupt {index} has no mask")
        if event is None and self.unmask_event is None:
            raise NoSuchDevice("no unmask event is set")
        self.unmask_event = event

    def reset(self) -> None:
        self._called("reset")
        if not self.resettable:
            raise Unsupported(f"{self.name} cannot be reset")

    def request(self, count: int) -> None:
        self.requests.append(count)
        self._called("request")


class SystemClock:
    """The system's time, for a framework without a machine."""

    def monotonic(self) -> float:
        return monotonic()

    def call_later(self, delay: float, callback: Callable[[], None]) -> Timer:
        raise AssertionError("the framework has no timers")

    def wait(self, condition: Condition, seconds: float) -> None:
        condition.wait(seconds)


class FakeMachine:
    """What the local door needs of a machine."""

    def __init__(self, framework: Framework) -> None:
        self.framework = framework
        self.store = ByteStore()

    def open(self, path: str, task: Process, abi: str) -> File:
        return open_node(self.framework, path, task, abi)

    def look(self) -> None:
        self.store.look()


class World:
    """A framework, the devices plugged into it and the processes that use it. Options are the framework's."""

    def __init__(self, **options: Any) -> None:
        self.events: list[FrameworkEvent] = []
        self.observer_errors: dict[type[FrameworkEvent], Exception] = {}
        clock = options.pop("clock", None) or SystemClock()
        self.framework = Framework(clock=clock, observer=self._observe, **options)
        self.driver = FakeDriver()
        self.machine = FakeMachine(self.framework)
        self.devices: dict[str, FakeBusDevice] = {}
        self.bounds: dict[str, FakeBound] = {}
        self.processes: list[Process] = []

    def _observe(self, event: FrameworkEvent) -> None:
        self.events.append(event)
        if type(event) in self.observer_errors:
            raise self.observer_errors[type(event)]

    # -- the machine's side ----------------------------------------------------------------------

    def plug(
        self,
        name: str,
        group: int | None = 1,
        *,
        bus: str = "pci",
        unit: IommuUnit | None = UNIT,
        bind: bool = True,
    ) -> FakeBusDevice:
        """A new device is added and, unless ``bind`` is false, bound."""
        dev = self.devices[name] = FakeBusDevice(name, group, bus=bus, unit=unit)
        self.framework.add_device(dev, self.driver)
        if bind:
            self.bind(name)
        return dev

    def bind(self, name: str) -> FakeBound:
        """The VFIO driver takes the device."""
        bound = FakeBound(name)
        self.framework.bind_device(self.devices[name], bound)
        self.bounds[name] = bound
        return bound

    def unbind(self, name: str, **how: Any) -> BoundDevice:
        """Without waiting unless told to."""
        return self.framework.unbind_device(self.devices[name], **({"timeout": 0} | how))

    def unplug(self, name: str) -> None:
        self.framework.del_device(self.devices[name])

    def record(self, name: str) -> Device:
        """The framework's record of the device."""
        found = self.framework.lookup(self.devices[name])
        assert found is not None
        return found

    def group(self, number: int, bus: str = "pci") -> Group:
        return self.framework.group(bus, number)

    def iommu(self, number: int, bus: str = "pci") -> Iommu:
        """The context of a group that has one."""
        found = self.group(number, bus).iommu
        assert found is not None
        return found

    # -- the core's users ------------------------------------------------------------------------

    def mm(self, name: str = "mm") -> Mm:
        """An address space without a process, where all memory exists."""
        return Mm(SparseMemory(), name)

    def hold(self, number: int, mm: Mm, bus: str = "pci") -> OpenGroup:
        """An open group, without a file."""
        return self.framework.open_group(self.group(number, bus), mm)

    # -- programs --------------------------------------------------------------------------------

    def process(self, name: str = "program", memlock: int | None = None) -> Process:
        made = Process(cast("Any", self.machine), name=name, memlock=memlock)
        self.processes.append(made)
        return made

    def fork(self, parent: Process) -> Process:
        child = parent.fork()
        self.processes.append(child)
        return child

    # -- what can be seen ------------------------------------------------------------------------

    def snapshot(self) -> dict[str, Any]:
        """The whole observable state. Objects in it stand for their identity."""
        groups = self.framework.groups
        contexts = {id(group.iommu): group.iommu for group in groups if group.iommu}
        return {
            "groups": [_see_group(group) for group in groups],
            "contexts": [_see_iommu(iommu) for iommu in contexts.values()],
            "bus": {name: dev.domain for name, dev in self.devices.items()},
            "enabled": {name: bound.enabled for name, bound in self.bounds.items()},
            "interrupts": {
                name: (dict(bound.events), bound.unmask_event)
                for name, bound in self.bounds.items()
            },
            "registers": {name: bound.memory[REGISTERS][:] for name, bound in self.bounds.items()},
            "descriptors": [
                {fd: opened.file for fd, opened in process._fds.items()}
                for process in self.processes
            ],
            "locked": [process.mm.locked_pages for process in self.processes],
        }


def _see_group(group: Group) -> dict[str, Any]:
    return {
        "id": (group.bus, group.number, group.minor, group.node_name),
        "object": group,
        "viable": group.viable,
        "opens": [(held, held.mm, held.joined) for held in group.opens],
        "iommu": group.iommu,
        "devices": [
            {
                "name": d.name,
                "data": d.data,
                "attached": d.attached,
                "opens": [(opened, opened.data) for opened in d.opens],
                "gone": d.gone,
                "reserved": d.reserved,
                "departing": d.departing,
                "taint": d.taint,
            }
            for d in group.devices
        ],
    }


def _see_iommu(iommu: Iommu) -> dict[str, Any]:
    domain = iommu.domain
    return {
        "object": iommu,
        "owner": iommu.owner,
        "groups": list(iommu.groups),
        "opens": list(iommu.opens),
        "domain": domain,
        "devices": sorted(dev.name for dev in domain.devices) if domain else [],
        "mappings": see_mappings(domain) if domain else [],
        "locked": [(mm, mm.locked_pages) for mm in _payers(iommu)],
    }


def _payers(iommu: Iommu) -> list[Mm]:
    payers = {id(m.mm): m.mm for m in iommu.domain.mappings} if iommu.domain else {}
    if iommu.owner:
        payers[id(iommu.owner)] = iommu.owner
    return list(payers.values())


def see_mappings(domain: Domain) -> list[tuple[int, int, int, bool]]:
    """(iova, bytes, vaddr, writable) of every mapping, in order."""
    return [(m.first, m.size, m.vaddr, m.writable) for m in domain.mappings]


@contextmanager
def same_state(world: World) -> Iterator[None]:
    """The block changes nothing that can be seen."""
    before = world.snapshot()
    yield
    assert world.snapshot() == before


@contextmanager
def refused(
    world: World, expected: int | type[VfioError]
) -> Iterator[pytest.ExceptionInfo[OSError]]:
    """The block fails with this errno (or this condition) and changes nothing that can be seen."""
    before = world.snapshot()
    with pytest.raises(OSError) as caught:
        yield caught
    error = caught.value
    if isinstance(expected, int):
        assert name_of(error.errno) == name_of(expected), error
    else:
        assert type(error) is expected, f"{error!r}: {error}"
    assert world.snapshot() == before


def name_of(number: int | None) -> str:
    """EBUSY for 16."""
    return errno.errorcode.get(number or 0, str(number))


# -- system calls of the 2011 ABI ----------------------------------------------------------------


def group_fd(process: Process, node: int | str) -> int:
    """open("/dev/vfio/NODE")"""
    return process.open(f"/dev/vfio/{node}")


def group_flags(process: Process, group: int) -> int:
    """VFIO_GROUP_GET_FLAGS"""
    return _get(process, group, rfc.VFIO_GROUP_GET_FLAGS, 8)


def merge(process: Process, into: int, other: int) -> None:
    """VFIO_GROUP_MERGE"""
    process.ioctl(into, rfc.VFIO_GROUP_MERGE, rfc.S32.pack(other))


def unmerge(process: Process, base: int, leaving: int) -> None:
    """VFIO_GROUP_UNMERGE"""
    process.ioctl(base, rfc.VFIO_GROUP_UNMERGE, rfc.S32.pack(leaving))


def iommu_fd(process: Process, group: int) -> int:
    """VFIO_GROUP_GET_IOMMU_FD"""
    return process.ioctl(group, rfc.VFIO_GROUP_GET_IOMMU_FD)


def device_fd(process: Process, group: int, name: str) -> int:
    """VFIO_GROUP_GET_DEVICE_FD"""
    return process.ioctl(group, rfc.VFIO_GROUP_GET_DEVICE_FD, name)


def map_dma(
    process: Process, iommu: int, iova: int, size: int, vaddr: int, flags: int = 1, junk: int = 0
) -> None:
    """VFIO_IOMMU_MAP_DMA; ``junk`` goes into ``len``"""
    argument = rfc.DMA_MAP.pack(junk, vaddr, iova, size, flags)
    process.ioctl(iommu, rfc.VFIO_IOMMU_MAP_DMA, argument)


def unmap_dma(process: Process, iommu: int, iova: int, size: int, vaddr: int = 0x123) -> None:
    """VFIO_IOMMU_UNMAP_DMA, with the junk that real clients leave in the other fields"""
    argument = rfc.DMA_MAP.pack(0xDEAD, vaddr, iova, size, 0xBEEF)
    process.ioctl(iommu, rfc.VFIO_IOMMU_UNMAP_DMA, argument)


def _get(process: Process, fd: int, request: int, size: int) -> int:
    answer = bytearray(size)
    process.ioctl(fd, request, answer)
    return int.from_bytes(answer, "little")
