"""``VfioDevice``: what a device in the hands of a VFIO driver is, whatever its bus. vfio-pci and vfio-platform
extend it.

Life::

    closed --get--> open        the first get: ``_first_open``; if that raises, the device stays closed
    open --get, put--> open     counted
    open --put--> closed        the last put: ``_last_close``

Regions and interrupts are those of ``_windows`` and ``_interrupts``, which a subclass sets.

Invariants: a ``get`` that fails leaves the device closed; a reset that fails at open or close costs the program its
reset, not the device. One reentrant lock, which is the hardware's own, serialises driver and silicon: calls of
programs, timers of the model and interrupts all take it. Order of locks: device, framework, domain.

This module does not translate file offsets (callers give region and offset), does not decide who may open the device,
and knows no ABI.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from uvfio.errors import Gone, InvalidArgument, VfioError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from uvfio.core.bus import IrqInfo, Region
    from uvfio.core.migration.states import Migration
    from uvfio.core.seams import Event
    from uvfio.core.translation.dma_log import DmaLogger
    from uvfio.drivers.window import Window

__all__ = ["InterruptLogic", "VfioDevice"]


class InterruptLogic(Protocol):
    """What the devices of all buses ask of their interrupts; ``drivers.pci`` and ``drivers.platform`` have one each."""

    def info(self, index: int) -> IrqInfo:
        """Count and kind of interrupt ``index``. Raises InvalidArgument for one that does not exist."""

    def check(self, index: int, count: int) -> None:
        """Refuse what SET_IRQ_EVENTFDS of 2011 refuses before it reads descriptors."""

    def set(self, index: int, events: Sequence[Event]) -> None:
        """Signal ``events`` from interrupt ``index``."""

    def unmask(self, index: int) -> None:
        """Let interrupt ``index`` fire again."""

    def set_unmask_event(self, index: int, event: Event | None) -> None:
        """Let ``event`` unmask interrupt ``index``, or end that with None."""


class VfioDevice:
    """One device of a VFIO driver. See the module's head."""

    regions_hint = ""
    """What the device's regions are, for the hint of an error."""
    _interrupts: InterruptLogic
    _windows: tuple[Window, ...]

    def __init__(self, name: str, lock: Any) -> None:
        """``name`` is the device's on its bus. ``lock`` is the hardware's."""
        self.name = name
        self._lock = lock
        self._opens = 0
        self._requests = 0
        self._reset_failed = False
        self.migration: Migration | None = None
        self.dma_logger: DmaLogger | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name} opens={self._opens}>"

    # Facts

    @property
    def opens(self) -> int:
        """How many ``get`` have no ``put`` yet."""
        return self._opens

    @property
    def requests(self) -> int:
        """The count of the latest request to give the device back; 0 before the first."""
        return self._requests

    @property
    def resettable(self) -> bool:
        """Whether the device has a reset of its own that has not failed at the last open or close."""
        return self._has_reset() and not self._reset_failed

    def region(self, index: int) -> Region:
        """Size and access of region ``index``. Raises InvalidArgument for one that does not exist."""
        return self._window(index).region

    def irq(self, index: int) -> IrqInfo:
        """Count and kind of interrupt ``index``. Raises InvalidArgument for one that does not exist."""
        return self._interrupts.info(index)

    # Life

    def get(self) -> None:
        """Count an open; the first one enables the device. What the hardware raises passes through."""
        with self._lock:
            if not self._opens:
                self._first_open()
            self._opens += 1

    def put(self) -> None:
        """Count a close; the last one quiesces the device. Raises Gone without a matching ``get``."""
        with self._lock:
            self._check_open()
            self._opens -= 1
            if not self._opens:
                self._last_close()

    def request(self, count: int) -> None:
        """Record that the device is wanted back for the ``count``-th time."""
        self._requests = count

    def _check_open(self) -> None:
        """Raises Gone while the device is not open."""
        if not self._opens:
            raise Gone(f"{self.name} is not open")

    def _first_open(self) -> None:
        """Enable the device. If it raises, the device is as it was."""

    def _last_close(self) -> None:
        """Quiesce the device."""

    # Resets

    def _has_reset(self) -> bool:
        """Whether the hardware has a reset of this device alone."""
        return False

    def _reset_hardware(self) -> None:
        """Do that reset."""

    def _try_reset(self) -> None:
        """Reset if there is a way. A reset that fails costs the program its reset, not the device."""
        if self._has_reset():
            try:
                self._reset_hardware()
                self._reset_failed = False
            except VfioError:
                self._reset_failed = True

    # Migration (``core.migration.states.Migratable``)

    def _end_migration(self) -> None:
        """The last close: no session and no log stay, and the hardware runs."""
        migration, self.migration = self.migration, None
        logger, self.dma_logger = self.dma_logger, None
        if logger is not None:
            logger.stop()
        if migration is not None:
            migration.close()

    # Regions

    def mmap(self, index: int, offset: int, size: int) -> memoryview:
        """The memory behind ``size`` bytes at ``offset`` of region ``index``.

        Raises InvalidArgument for a region that cannot be mapped or is smaller than a page, and for a range that is
        not inside.
        """
        return self._window(index).mmap(offset, size)

    def _window(self, index: int) -> Window:
        if not 0 <= index < len(self._windows):
            raise InvalidArgument(
                f"{self.name}: region {index} does not exist",
                self.regions_hint or f"it has {len(self._windows)}",
            )
        return self._windows[index]

    # Interrupts of 2011

    def check_irqs(self, index: int, count: int) -> None:
        """What SET_IRQ_EVENTFDS refuses before it reads descriptors; see ``check`` of the interrupts."""
        self._interrupts.check(index, count)

    def set_irqs(self, index: int, events: Sequence[Event]) -> None:
        """Signal ``events`` from interrupt ``index``; see ``set`` of the interrupts."""
        self._interrupts.set(index, events)

    def unmask_irq(self, index: int) -> None:
        """Let level interrupt ``index`` fire again. Raises InvalidArgument for any other (D32c)."""
        self._interrupts.unmask(index)

    def set_unmask_event(self, index: int, event: Event | None) -> None:
        """Let ``event`` unmask interrupt ``index``, or end that with None."""
        self._interrupts.set_unmask_event(index, event)
