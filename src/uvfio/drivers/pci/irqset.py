"""Interrupts of a PCI function in the vocabulary of mainline: ranges, holes, masks, and tests of themselves.

``IrqSets`` adds to ``Interrupts`` the vocabulary of ``core/bus.py`` and two kinds that are no interrupts of the
function at all, single events of the host: 3 ERR (a bus error) and 4 REQ (the device is wanted back).

    kind       mask, unmask             trigger with an event          trigger with none or a byte
    INTx       none, byte;              first one enables, later ones  signals as the wire would, masks
               unmask by event too      replace it; -1 leaves none     stay; count 0 with none disables
    MSI(-X)    UnknownCommand           first one enables start+count  signals; count 0 with none disables
                                        vectors; later ones replace
    ERR, REQ   UnknownCommand           replaces it; -1 drops it       signals; count 0 with none drops it

The unmask event goes with INTx (vfio_intx_disable).

One kind of INTx, MSI and MSI-X is in use at a time. MSI cannot grow while it is in use, MSI-X can.

A failed call leaves everything as it was. Behaviour: drivers/vfio/pci/vfio_pci_intrs.c,
vfio_pci_set_irqs_ioctl and what it calls.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from uvfio.core.bus import IrqAction
from uvfio.drivers.pci.interrupts import INTX, MSI, MSIX, Interrupts, Mode
from uvfio.errors import NoVectors, UnknownCommand

if TYPE_CHECKING:
    from threading import RLock

    from uvfio.core.bus import EventSource, IrqData
    from uvfio.core.seams import Event
    from uvfio.drivers.pci.capabilities import CapabilityMap
    from uvfio.drivers.pci.hardware import PciFunction

__all__ = ["ERR", "NUM_IRQ_KINDS", "REQ", "IrqSets"]

ERR, REQ = 3, 4
NUM_IRQ_KINDS = 5
_SINGLE = {ERR: "ERR", REQ: "REQ"}


class IrqSets(Interrupts):
    """See the module's head."""

    def __init__(self, function: PciFunction, layout: CapabilityMap, lock: RLock) -> None:
        super().__init__(function, layout, lock)
        self._single: dict[int, Event] = {}

    def stop(self) -> None:
        """As ``Interrupts.stop``; drops the events for ERR and REQ, too."""
        with self._lock:
            single, self._single = self._single, {}
            try:
                super().stop()
            finally:
                for event in single.values():
                    event.close()

    def count(self, index: int) -> int:
        """How many there are. InvalidArgument for a kind that does not exist."""
        if index in _SINGLE:
            return 1
        if not 0 <= index < ERR:
            raise self._refuse(
                f"interrupt {index} does not exist", "0 INTx, 1 MSI, 2 MSI-X, 3 ERR, 4 REQ"
            )
        return self.info(index).count

    def resizable(self, index: int) -> bool:
        """Whether vectors may be added to those in use."""
        return index == MSIX and self.count(MSIX) > 0

    def signal_request(self) -> None:
        """The device is wanted back: signal the program's event for that, if it has set one."""
        with self._lock:
            event = self._single.get(REQ)
            if event is not None:
                event.signal()

    def apply(self, index: int, action: IrqAction, start: int, count: int, data: IrqData) -> None:
        """``MainlineDevice.apply_irqs``."""
        with self._lock:
            if index == INTX:
                if action is IrqAction.TRIGGER:
                    self._trigger_level(start, count, data)
                else:
                    self._mask_level(action, start, count, data)
            elif action is not IrqAction.TRIGGER:
                raise UnknownCommand(f"{self._function.name}: only INTx can be masked")
            elif index in _SINGLE:
                self._trigger_single(index, count, data)
            else:
                self._trigger_messages(index, start, count, data)

    # INTx

    def _trigger_level(self, start: int, count: int, data: IrqData) -> None:
        active = self._mode is Mode.INTX
        if active and not count and data is None:
            try:
                self._drop_unmask_event()
            finally:
                self._drop()
            return
        if not active and self._mode is not Mode.NONE:
            raise self._in_use(INTX)
        self._check_one(start, count)
        if callable(data):
            self._connect_level(data)
        elif not active:
            raise self._refuse("INTx is not in use", "give it an eventfd first")
        elif data is None or data[0]:
            self._level.send()

    def _connect_level(self, source: EventSource) -> None:
        event = source(0)
        if self._mode is Mode.INTX:
            before = self._level.replace(event)
            if before is not None:
                before.close()
            return
        self._mode = Mode.INTX
        try:
            self._program()
        except BaseException:
            self._mode = Mode.NONE
            if event is not None:
                event.close()
            self._program()
            raise
        if event is not None:
            self._level.bind(event)

    def _mask_level(self, action: IrqAction, start: int, count: int, data: IrqData) -> None:
        if self._mode is not Mode.INTX:
            raise self._refuse("INTx is not in use", "give it an eventfd first")
        self._check_one(start, count)
        if callable(data):
            if action is IrqAction.MASK:
                raise UnknownCommand(f"{self._function.name}: no eventfd can mask INTx")
            self._connect_unmask(data)
        elif data is None or data[0]:
            if action is IrqAction.MASK:
                self._level.mask()
            else:
                self._level.unmask()

    def _connect_unmask(self, source: EventSource) -> None:
        event = source(0)
        if event is None:
            self._drop_unmask_event()
            return
        try:
            self.set_unmask_event(INTX, event)
        except BaseException:
            event.close()
            raise

    def _check_one(self, start: int, count: int) -> None:
        if (start, count) != (0, 1):
            raise self._refuse(f"INTx is interrupt 0 alone, not {count} from {start}")

    # Messages

    def _trigger_messages(self, index: int, start: int, count: int, data: IrqData) -> None:
        active = self._mode.value == index
        if active and not count and data is None:
            self._drop()
            return
        if not active and self._mode is not Mode.NONE:
            raise self._in_use(index)
        if callable(data):
            if active:
                self._replace_messages(index, start, count, data)
            else:
                self._enable_messages(index, start, count, data)
            return
        if not active:
            raise self._refuse("these messages are not in use", "give them eventfds first")
        for at in range(count):
            if data is None or data[at]:
                self._vectors.fire(start + at)

    def _enable_messages(self, index: int, start: int, count: int, source: EventSource) -> None:
        if start + count == 0:
            raise NoVectors(f"{self._function.name}: no vector of interrupt {index} is wanted")
        events = self._ask(source, count)
        self._mode = Mode(index)
        try:
            self._vectors.bind([*[None] * start, *events])
            self._program()
        except BaseException:
            self._mode = Mode.NONE
            self._vectors.unbind()
            _close(events)
            self._program()
            raise

    def _replace_messages(self, index: int, start: int, count: int, source: EventSource) -> None:
        size = len(self._vectors)
        if index == MSI and start + count > size:
            raise self._refuse(
                f"MSI has {size} vectors in use, {start + count} are wanted", "switch it off first"
            )
        events = self._ask(source, count)
        before = self._vectors.replace(start, events)
        if len(self._vectors) > size:
            self._program()
        _close(before)

    @staticmethod
    def _ask(source: EventSource, count: int) -> list[Event | None]:
        events: list[Event | None] = []
        try:
            events.extend(source(at) for at in range(count))
        except BaseException:
            _close(events)
            raise
        return events

    # Events of the host

    def _trigger_single(self, index: int, count: int, data: IrqData) -> None:
        event = self._single.get(index)
        if callable(data):
            if not count:
                raise self._refuse(f"{_SINGLE[index]}: no eventfd is given")
            wanted = data(0)
            if wanted is None:
                self._single.pop(index, None)
            else:
                self._single[index] = wanted
            if event is not None:
                event.close()
        elif data is not None:
            if not count:
                raise self._refuse(f"{_SINGLE[index]}: no byte is given")
            if data[0] and event is not None:
                event.signal()
        elif event is None:
            raise self._refuse(f"{_SINGLE[index]} is not in use", "give it an eventfd first")
        elif count:
            event.signal()
        else:
            del self._single[index]
            event.close()


def _close(events: list[Event | None] | tuple[Event, ...]) -> None:
    for event in events:
        if event is not None:
            event.close()
