"""Interrupts of a platform device in the vocabulary of mainline: each index is one wire with one event.

``IrqSets`` adds to ``Interrupts`` the vocabulary of ``core/bus.py``:

             mask, unmask                        trigger with an event         trigger with none or a byte
    level    none, byte; an event each,          replaces the one that is      as the wire would: masks and signals,
             -1 ends it, Busy if there is one    set, -1 drops it; masks stay  nothing while masked; count 0 drops it
    edge     InvalidArgument                     replaces it, -1 drops it      signals; count 0 with none drops it

A mask is this object's own and needs no event: a trigger without one masks too, and the mask stays when events come
and go. All ends with the last close of the device.

A failed call leaves everything as it was. Behaviour: drivers/vfio/platform/vfio_platform_irq.c,
vfio_platform_set_irqs_ioctl and what it calls; drivers/vfio/virqfd.c, vfio_virqfd_enable.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from uvfio.core.bus import IrqAction
from uvfio.core.irq import LevelInterrupt
from uvfio.drivers.platform.interrupts import Interrupts

if TYPE_CHECKING:
    from threading import RLock

    from uvfio.core.bus import EventSource, IrqData
    from uvfio.core.seams import Event
    from uvfio.drivers.platform.hardware import PlatformHardware
    from uvfio.drivers.platform.interrupts import Watches

__all__ = ["IrqSets"]


class IrqSets(Interrupts):
    """See the module's head."""

    def __init__(self, hardware: PlatformHardware, lock: RLock) -> None:
        super().__init__(hardware, lock)
        self._mask_events: Watches = {}

    def stop(self) -> None:
        """As ``Interrupts.stop``; drops the mask events, too."""
        with self._lock:
            for index in tuple(self._mask_events):
                self._unwatch(self._mask_events, index)
            super().stop()

    def apply(self, index: int, action: IrqAction, start: int, count: int, data: IrqData) -> None:
        """``IrqDevice.apply_irqs``."""
        self._check_index(index)
        with self._lock:
            dropping = action is IrqAction.TRIGGER and not count and data is None
            if not dropping and (start, count) != (0, 1):
                raise self._refuse(f"interrupt {index} is one alone, not {count} from {start}")
            if action is not IrqAction.TRIGGER:
                self._mask(index, action, data)
            elif dropping:
                self._connect(index, None)
            elif callable(data):
                self._connect(index, data(0))
            elif data is None or data[0]:
                self._test(index)

    def _connect(self, index: int, event: Event | None) -> None:
        line = self._lines[index]
        if isinstance(line, LevelInterrupt):
            before = line.replace(event)
            if before is not None:
                before.close()
        else:
            for old in line.replace(0, [event]):
                old.close()

    def _test(self, index: int) -> None:
        line = self._lines[index]
        if not isinstance(line, LevelInterrupt):
            line.fire(0)
        elif not line.masked:
            line.mask()
            line.send()

    def _mask(self, index: int, action: IrqAction, data: IrqData) -> None:
        line = self._level(index)
        if callable(data):
            self._connect_mask(index, action, data)
        elif data is None or data[0]:
            if action is IrqAction.MASK:
                line.mask()
            else:
                line.unmask()

    def _connect_mask(self, index: int, action: IrqAction, source: EventSource) -> None:
        line, masking = self._level(index), action is IrqAction.MASK
        known = self._mask_events if masking else self._unmask_events
        event = source(0)
        if event is None:
            if index in known:
                self._unwatch(known, index)
            return
        what, act = ("a mask", line.mask) if masking else ("an unmask", line.unmask)
        try:
            self._watch(known, what, index, event, act)
        except BaseException:
            event.close()
            raise
