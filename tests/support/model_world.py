"""The world around a device model, made of fakes: clock, store, domain, interrupt sink.

``power_on(Edu, dma_mask=0xff)`` is a function in a slot, attached to a domain with 1 MiB of memory at iova 0,
bus mastering on, its sink connected; ``World`` has the parts.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from threading import Condition
from typing import TYPE_CHECKING, Generic, TypeVar, cast

from uvfio.errors import DmaFault
from uvfio.kit.pci.model import PciModel
from uvfio.uapi import pci

if TYPE_CHECKING:
    from uvfio.core.translation.domain import Domain

P = TypeVar("P", bound=PciModel)
ADDRESS = "0000:06:0d.0"
MEMORY_SIZE = 1 << 20


class FakeTimer:
    """A pending call of ``FakeClock``."""

    def __init__(self, due: float, callback: Callable[[], None]) -> None:
        self.due = due
        self.callback = callback
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class FakeClock:
    """Time that stands still until ``advance``."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timers: list[FakeTimer] = []

    def monotonic(self) -> float:
        return self.now

    def call_later(self, delay: float, callback: Callable[[], None]) -> FakeTimer:
        timer = FakeTimer(self.now + delay, callback)
        self.timers.append(timer)
        return timer

    def wait(self, condition: Condition, seconds: float) -> None:
        """Nothing that a model does waits."""
        raise AssertionError(f"wait on {condition} for {seconds} s")

    @property
    def waiting(self) -> int:
        """The number of calls that are still to come."""
        return sum(not timer.cancelled for timer in self.timers)

    def advance(self, seconds: float = 0.0) -> None:
        """Let time pass and make the calls that fall due, in order, those they ask for as well."""
        self.now += seconds
        while due := [t for t in self.timers if t.due <= self.now]:
            timer = min(due, key=lambda t: t.due)
            self.timers.remove(timer)
            if not timer.cancelled:
                timer.callback()


class FakeStore:
    """Plain memory."""

    def __init__(self) -> None:
        self.allocated: dict[str, dict[int, memoryview]] = {}
        self.released: list[str] = []
        self.late: dict[str, set[int]] = {}
        self.hidden_devices: list[str] = []
        self.looks: list[Callable[[], bool]] = []

    def allocate(
        self, device: str, sizes: Mapping[int, int], late: Collection[int] = ()
    ) -> Mapping[int, memoryview]:
        found = {index: memoryview(bytearray(size)) for index, size in sizes.items()}
        self.allocated[device] = found
        self.late[device] = set(late)
        return found

    def populate(self, device: str, index: int) -> None:
        self.late[device].discard(index)

    def hide(self, device: str) -> None:
        self.hidden_devices.append(device)

    def show(self, device: str) -> None:
        self.hidden_devices.remove(device)

    def hidden(self, device: str) -> bool:
        return device in self.hidden_devices

    def watch(self, look: Callable[[], bool]) -> Callable[[], None]:
        self.looks.append(look)
        return lambda: self.looks.remove(look)

    def look(self) -> None:
        for look in tuple(self.looks):
            look()

    def clear(self, device: str, index: int) -> None:
        memory = self.allocated[device][index]
        memory[:] = bytes(len(memory))

    def release(self, device: str) -> None:
        self.released.append(device)


class FakeDomain:
    """Memory at iova 0; ``read_only`` and ``holes`` are sets of 4096-byte page numbers."""

    def __init__(self, size: int = MEMORY_SIZE) -> None:
        self.memory = bytearray(size)
        self.read_only: set[int] = set()
        self.holes: set[int] = set()
        self.faults: list[tuple[str, int, int, bool, str]] = []
        self.stores: list[tuple[int, int, int]] = []

    def dma_read(self, requester: str, iova: int, size: int) -> bytes:
        self._check(requester, iova, size, False)
        return bytes(self.memory[iova : iova + size])

    def dma_write(self, requester: str, iova: int, data: bytes) -> None:
        self._check(requester, iova, len(data), True)
        self.memory[iova : iova + len(data)] = data

    def dma_store(self, requester: str, iova: int, value: int, width: int) -> None:
        self._check(requester, iova, width, True)
        self.stores.append((iova, value, width))
        self.memory[iova : iova + width] = value.to_bytes(width, "little")

    def dma_view(
        self, requester: str, iova: int, size: int, *, writable: bool = True
    ) -> memoryview | None:
        self._check(requester, iova, size, True)
        return memoryview(self.memory)[iova : iova + size]

    def fault(self, device: str, iova: int, size: int, write: bool, reason: str) -> DmaFault:
        self.faults.append((device, iova, size, write, reason))
        return DmaFault(f"dma fault: {device} iova {iova:#x}+{size:#x}: {reason}")

    def _check(self, requester: str, iova: int, size: int, write: bool) -> None:
        end = iova + size
        pages = set(range(iova >> 12, min(end, len(self.memory)) + 4095 >> 12)) if size else set()
        if end > len(self.memory) or pages & self.holes:
            raise self.fault(requester, iova, size, write, "not mapped")
        if write and pages & self.read_only:
            raise self.fault(requester, iova, size, write, "mapped read-only")


class FakeSink:
    """Remembers what it was told: ``("intx", True)``, ``("msi", 3)``, ``("msix", 7)``."""

    def __init__(self) -> None:
        self.events: list[tuple[str, int]] = []

    def intx(self, asserted: bool) -> bool:
        self.events.append(("intx", asserted))
        return True

    def msi(self, vector: int) -> bool:
        self.events.append(("msi", vector))
        return True

    def msix(self, vector: int) -> bool:
        self.events.append(("msix", vector))
        return True

    def take(self) -> list[tuple[str, int]]:
        """What came since the last call."""
        events, self.events = self.events, []
        return events


class World(Generic[P]):
    """A powered-on model with its surroundings, and short names for what tests do to it."""

    def __init__(self, model: P, clock: FakeClock, store: FakeStore) -> None:
        self.model = model
        self.clock = clock
        self.store = store
        self.domain = FakeDomain()
        self.sink = FakeSink()
        model.attach(cast("Domain", self.domain))
        model.connect(self.sink)

    def read(self, offset: int, size: int = 4, bar: int = 0) -> int:
        return self.model.bar_read(bar, offset, size)

    def write(self, offset: int, value: int, size: int = 4, bar: int = 0) -> None:
        self.model.bar_write(bar, offset, value, size)

    def capability(self, number: int) -> int:
        """Where the capability with this ID is, found by walking the list as a driver does."""
        at = self.model.config_read(pci.PCI_CAPABILITY_LIST, 1)
        while at and self.model.config_read(at, 1) != number:
            at = self.model.config_read(at + 1, 1)
        return at

    def capabilities(self) -> dict[int, int]:
        """Every conventional capability: ID and offset, in the order of the list."""
        found = {}
        at = self.model.config_read(pci.PCI_CAPABILITY_LIST, 1)
        while at:
            found[self.model.config_read(at, 1)] = at
            at = self.model.config_read(at + 1, 1)
        return found

    def command(self, bits: int) -> None:
        self.model.config_write(pci.PCI_COMMAND, bits, 2)

    def enable_msi(self, log2: int = 0) -> int:
        """Enable MSI with 2**log2 vectors; returns the offset of the capability."""
        at = self.capability(pci.PCI_CAP_ID_MSI)
        self.model.config_write(at + pci.PCI_MSI_FLAGS, log2 << 4 | pci.PCI_MSI_FLAGS_ENABLE, 2)
        return at

    def enable_msix(self, flags: int = pci.PCI_MSIX_FLAGS_ENABLE) -> int:
        """Set the MSI-X flags; returns the offset of the capability."""
        at = self.capability(pci.PCI_CAP_ID_MSIX)
        self.model.config_write(at + pci.PCI_MSIX_FLAGS, flags, 2)
        return at


def power_on(
    kind: type[P], *, bus_reset: bool = False, master: bool = True, **options: object
) -> World[P]:
    """A function of class ``kind`` at ``ADDRESS`` in a world of its own."""
    clock, store = FakeClock(), FakeStore()
    model = kind(
        ADDRESS,
        group=240,
        unit=None,
        clock=clock,
        store=store,
        options=options,
        bus_reset=bus_reset,
    )
    world = World(model, clock, store)
    if master:
        world.command(pci.PCI_COMMAND_MASTER | pci.PCI_COMMAND_MEMORY)
    return world
