"""``VfioPlatformDevice``: one platform device in the hands of vfio-platform.

Life: closed -> (first ``get``) open -> ... -> (last ``put``) closed.

    first get    try a reset; listen to the interrupts
    reset        the hardware's own; the events stay
    last put     mappings over; interrupts off, events dropped; reset

A platform device has no switch in front of its DMA: the reset at the end stops it, and one without a reset
goes on until the framework takes it off its domain, which follows.

Regions are read, written and mapped by the rules of ``drivers/window.py``. Region and interrupt numbers are
positions in the device's resources, and ``dt_path`` and ``dt_index`` say which entry of the device tree each
of them is.

Invariants: a ``get`` that fails leaves the device closed; a ``put`` finishes whatever the hardware raises on
the way. One reentrant lock serialises everything; interrupts take it too.

Does not: translate file offsets (callers give region and offset), or decide who may open the device.
"""

from __future__ import annotations

from threading import RLock
from typing import TYPE_CHECKING

from uvfio.core.bus import DeviceKind, DtProperty, IrqInfo, Region, ResourceKind
from uvfio.drivers.platform.irqset import IrqSets
from uvfio.drivers.window import PAGE_SIZE, MemoryWindow, PolledWindow, RegisterWindow, Window
from uvfio.errors import Gone, InvalidArgument, Unsupported, VfioError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from uvfio.core.bus import IrqAction, IrqData
    from uvfio.core.seams import Event
    from uvfio.drivers.platform.hardware import Origin, PlatformHardware

__all__ = ["VfioPlatformDevice"]


class VfioPlatformDevice:
    """Implements ``core.bus.BoundDevice`` and ``DeviceTree`` for one ``PlatformHardware``."""

    def __init__(self, hardware: PlatformHardware) -> None:
        self.hardware = hardware
        self._lock = RLock()
        self._opens = 0
        self._requests = 0
        self._reset_failed = False
        self._interrupts = IrqSets(hardware, self._lock)
        self._windows = tuple(_window(hardware, index) for index in range(len(hardware.regions)))

    def __repr__(self) -> str:
        return f"<VfioPlatformDevice {self.hardware.name} opens={self._opens}>"

    # Facts

    @property
    def kind(self) -> DeviceKind:
        """PLATFORM."""
        return DeviceKind.PLATFORM

    @property
    def resettable(self) -> bool:
        """Whether the device has a reset that has not been seen failing."""
        return self.hardware.resettable and not self._reset_failed

    @property
    def num_regions(self) -> int:
        return len(self._windows)

    @property
    def num_irqs(self) -> int:
        return len(self._interrupts)

    @property
    def opens(self) -> int:
        """How many ``get`` have no ``put`` yet."""
        return self._opens

    @property
    def requests(self) -> int:
        """The count of the latest request to give the device back; 0 before the first."""
        return self._requests

    def region(self, index: int) -> Region:
        """Size and access of region ``index``. InvalidArgument for one that does not exist."""
        return self._window(index).region

    def irq(self, index: int) -> IrqInfo:
        """Kind of interrupt ``index``. InvalidArgument for one that does not exist."""
        return self._interrupts.info(index)

    # Device tree

    def dt_path(self, kind: ResourceKind, index: int) -> str:
        """Full path of the node that region or interrupt ``index`` stems from. InvalidArgument for no such index."""
        return self._origin(kind, index).path

    def dt_index(self, kind: ResourceKind, index: int) -> tuple[DtProperty, int]:
        """Property of that node and entry of it. InvalidArgument for no such index."""
        origin = self._origin(kind, index)
        return origin.prop, origin.entry

    def _origin(self, kind: ResourceKind, index: int) -> Origin:
        if kind is ResourceKind.REGION:
            self._window(index)
            return self.hardware.regions[index].origin
        self._interrupts.info(index)
        return self.hardware.interrupts[index].origin

    # Life

    def get(self) -> None:
        """Count an open; the first one enables the device. What the hardware raises passes through."""
        with self._lock:
            if not self._opens:
                self._try_reset()
                try:
                    self._interrupts.start()
                except BaseException:
                    self._interrupts.stop()
                    raise
            self._opens += 1

    def put(self) -> None:
        """Count a close; the last one quiesces the device. Gone without a matching ``get``."""
        with self._lock:
            if not self._opens:
                raise Gone(f"{self.hardware.name} is not open")
            self._opens -= 1
            if not self._opens:
                try:
                    self.hardware.end_mappings()  # which takes the last stores
                finally:
                    self._quiesce()

    def _quiesce(self) -> None:
        try:
            self._interrupts.stop()
        finally:
            self._try_reset()

    def reset(self) -> None:
        """Reset the device. Unsupported if it has no way to be reset; else what the hardware raises."""
        with self._lock:
            if not self.hardware.resettable:
                raise Unsupported(f"{self.hardware.name} has no reset", "see VFIO_DEVICE_GET_FLAGS")
            if not self._opens:
                raise Gone(f"{self.hardware.name} is not open")
            self.hardware.reset()

    def request(self, count: int) -> None:
        """Record that somebody wants the device back for the ``count``-th time."""
        self._requests = count

    def _try_reset(self) -> None:
        """Reset if there is a way. A reset that fails costs the program its reset, not the device."""
        if self.hardware.resettable:
            try:
                self.hardware.reset()
                self._reset_failed = False
            except VfioError:
                self._reset_failed = True

    # Regions

    def read(self, index: int, offset: int, count: int) -> bytes:
        """Up to ``count`` bytes at ``offset`` of region ``index``; fewer only at its end.

        InvalidArgument for a region that does not exist or an offset behind its end.
        """
        with self._lock:
            return self._window(index).read(offset, count)

    def write(self, index: int, offset: int, data: bytes) -> int:
        """How many bytes of ``data`` were written at ``offset`` of region ``index``.

        InvalidArgument as ``read``, and for a region that is read-only.
        """
        with self._lock:
            return self._window(index).write(offset, data)

    def mmap(self, index: int, offset: int, size: int) -> memoryview:
        """The memory behind ``size`` bytes at ``offset`` of region ``index``.

        InvalidArgument for regions that are no plain, writable memory or smaller than a page, and for
        ranges that are not inside.
        """
        return self._window(index).mmap(offset, size)

    def _window(self, index: int) -> Window:
        if not 0 <= index < len(self._windows):
            raise InvalidArgument(
                f"{self.hardware.name}: region {index} does not exist",
                f"it has {len(self._windows)}",
            )
        return self._windows[index]

    # Interrupts

    def check_irqs(self, index: int, count: int) -> None:
        """What SET_IRQ_EVENTFDS refuses before it looks at descriptors; see ``Interrupts.check``."""
        self._interrupts.check(index, count)

    def set_irqs(self, index: int, events: Sequence[Event]) -> None:
        """Signal ``events`` from interrupt ``index``; see ``Interrupts.set``."""
        self._interrupts.set(index, events)

    def unmask_irq(self, index: int) -> None:
        """Let level interrupt ``index`` fire again; see ``Interrupts.unmask``."""
        self._interrupts.unmask(index)

    def set_unmask_event(self, index: int, event: Event | None) -> None:
        """Let ``event`` unmask interrupt ``index``, or end that; see ``Interrupts.set_unmask_event``."""
        self._interrupts.set_unmask_event(index, event)

    # Interrupts as today's programs set them (``core.bus.IrqDevice``)

    def irq_count(self, index: int) -> int:
        """1. InvalidArgument for an interrupt that does not exist."""
        return self._interrupts.info(index).count

    def irq_resizable(self, index: int) -> bool:
        """No: each is one wire."""
        return False

    def apply_irqs(
        self, index: int, action: IrqAction, start: int, count: int, data: IrqData
    ) -> None:
        """See ``IrqSets.apply``."""
        self._interrupts.apply(index, action, start, count, data)


def _window(hardware: PlatformHardware, index: int) -> Window:
    given = hardware.regions[index]
    # A program that maps a region can write it, whatever it asked for: the pages are its own to use.
    mappable = given.mappable and given.writable and given.size >= PAGE_SIZE
    region = Region(index, given.size, writable=given.writable, mappable=mappable)
    if mappable and given.polled:
        return PolledWindow(hardware.name, region, hardware.read, hardware.write, hardware.memory)
    if mappable:
        return MemoryWindow(hardware.name, region, hardware.memory)
    return RegisterWindow(hardware.name, region, hardware.read, hardware.write)
