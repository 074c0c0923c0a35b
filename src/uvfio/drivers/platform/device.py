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

from contextlib import ExitStack
from typing import TYPE_CHECKING

from uvfio.core.bus import DeviceKind, DtProperty, Region, ResourceKind
from uvfio.drivers.life import VfioDevice
from uvfio.drivers.platform.irqset import IrqSets
from uvfio.drivers.window import PAGE_SIZE, MemoryWindow, PolledWindow, RegisterWindow, Window
from uvfio.errors import Unsupported

if TYPE_CHECKING:
    from uvfio.core.bus import IrqAction, IrqData
    from uvfio.drivers.platform.hardware import Origin, PlatformHardware

__all__ = ["VfioPlatformDevice"]


class VfioPlatformDevice(VfioDevice):
    """Implements ``core.bus.BoundDevice`` and ``DeviceTree`` for one ``PlatformHardware``."""

    def __init__(self, hardware: PlatformHardware) -> None:
        super().__init__(hardware.name, hardware.lock)
        self.hardware = hardware
        self._interrupts: IrqSets = IrqSets(hardware, self._lock)
        self._windows = tuple(_window(hardware, index) for index in range(len(hardware.regions)))

    # Facts

    @property
    def kind(self) -> DeviceKind:
        """PLATFORM."""
        return DeviceKind.PLATFORM

    @property
    def num_regions(self) -> int:
        """How many regions the device has."""
        return len(self._windows)

    @property
    def num_irqs(self) -> int:
        """How many interrupts the device has."""
        return len(self._interrupts)

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

    def _first_open(self) -> None:
        self._try_reset()
        try:
            self._interrupts.start()
            if getattr(self.hardware, "migratable", False):
                from uvfio.drivers.platform.migration import begin

                self.migration, self.dma_logger = begin(self.hardware)
        except BaseException:
            self._interrupts.stop()
            raise

    def _last_close(self) -> None:
        try:
            self.hardware.end_mappings()  # which takes the last stores
        finally:
            self._quiesce()

    def _quiesce(self) -> None:
        with ExitStack() as rest:  # from the last line up, each whatever the ones before it raise
            rest.callback(self._try_reset)
            rest.callback(self._end_migration)
            rest.callback(self._interrupts.stop)

    def _has_reset(self) -> bool:
        return self.hardware.resettable

    def _reset_hardware(self) -> None:
        self.hardware.reset()

    def reset(self) -> None:
        """Reset the device. Unsupported if it has no way to be reset; else what the hardware raises."""
        with self._lock:
            if not self.hardware.resettable:
                raise Unsupported(f"{self.hardware.name} has no reset", "see VFIO_DEVICE_GET_FLAGS")
            self._check_open()
            self._reset_hardware()
            if self.migration is not None:
                self.migration.reset()

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

    # Interrupts

    # Interrupts of mainline (``core.bus.IrqDevice``)

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
