"""Interrupts of a platform device: one wire per index, each with an event of its own.

    level   core.irq.LevelInterrupt   masked when it fires, unmasked by UNMASK_IRQ or the unmask event of its index
    edge    core.irq.EdgeVectors      never masked; an edge that comes while no event is set is lost

The rules are those of INTx in vfio-pci, per index: an index takes 0 or 1 events, a
call that is accepted drops the event that is set, whatever follows. Indexes do not exclude each other. A
level interrupt is masked in this object alone, which is what disabling a line at the host's interrupt
controller amounts to: the device itself has no switch.

A mask or unmask event whose eventfd the program has closed does not count (virqfd_wakeup in drivers/vfio/virqfd.c).

Invariants: a failed set leaves nothing bound; each event that was taken over is closed exactly once, when it
is dropped. All methods take the device's lock, hardware may call from any thread.

Does not: read the program's descriptors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from uvfio.core.bus import IrqInfo
from uvfio.core.irq import EdgeVectors, LevelInterrupt
from uvfio.errors import Busy, InvalidArgument, NoSuchDevice

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from threading import RLock

    from uvfio.core.seams import Event
    from uvfio.drivers.platform.hardware import PlatformHardware

    Watches = dict[int, tuple[Event, Callable[[], None]]]
    """By interrupt: an event, and how to end the watch on it."""

__all__ = ["Interrupts"]


def _no_gate(is_open: bool) -> None:
    """The wire has no switch in the device."""


class Interrupts:
    """The interrupts of one open or closed device. It is the hardware's ``InterruptSink``."""

    def __init__(self, hardware: PlatformHardware, lock: RLock) -> None:
        self._hardware = hardware
        self._lock = lock
        self._lines: tuple[LevelInterrupt | EdgeVectors, ...] = tuple(
            LevelInterrupt(_no_gate) if line.level else EdgeVectors()
            for line in hardware.interrupts
        )
        self._infos = tuple(
            IrqInfo(index, 1, level=line.level, name=f"irq{index}")
            for index, line in enumerate(hardware.interrupts)
        )
        self._unmask_events: Watches = {}

    # What there is

    def __len__(self) -> int:
        return len(self._lines)

    def info(self, index: int) -> IrqInfo:
        """What interrupt ``index`` is. InvalidArgument for an unknown one."""
        self._check_index(index)
        return self._infos[index]

    # Life of the device

    def start(self) -> None:
        """The device is being opened: listen to the hardware."""
        with self._lock:
            self._hardware.connect(self)
            for index, line in enumerate(self._lines):
                if isinstance(line, LevelInterrupt):
                    line.wire(self._hardware.asserted(index))

    def stop(self) -> None:
        """The device is being closed: drop every event, listen no more."""
        with self._lock:
            try:
                for index in tuple(self._unmask_events):
                    self._unwatch(self._unmask_events, index)
                for index in range(len(self._lines)):
                    self._drop(index)
            finally:
                for line in self._lines:
                    if isinstance(line, LevelInterrupt):
                        line.wire(False)
                self._hardware.connect(None)

    # What a program asks

    def check(self, index: int, count: int) -> None:
        """Refuse what SET_IRQ_EVENTFDS refuses before it looks at descriptors; drop the event that is set.

        InvalidArgument for an unknown index, and for another count than 0 and 1.
        """
        self._check_index(index)
        if not 0 <= count <= 1:
            raise self._refuse(f"interrupt {index} is one interrupt, not {count}")
        with self._lock:
            self._drop(index)

    def set(self, index: int, events: Sequence[Event]) -> None:
        """Signal ``events[0]`` from interrupt ``index``; none: drop what is set. Errors as ``check``.

        The event is taken over on success only.
        """
        with self._lock:
            self.check(index, len(events))
            if events:
                line = self._lines[index]
                try:
                    if isinstance(line, LevelInterrupt):
                        line.bind(events[0])
                    else:
                        line.bind(events)
                except BaseException:
                    line.unbind()
                    raise

    def unmask(self, index: int) -> None:
        """The level interrupt may fire again, and does if its wire is still high.

        InvalidArgument for an unknown index, and for an edge interrupt.
        """
        line = self._level(index)
        with self._lock:
            line.unmask()

    def set_unmask_event(self, index: int, event: Event | None) -> None:
        """Let each signal of ``event`` unmask level interrupt ``index``, also one that is pending; None ends that.

        InvalidArgument as ``unmask``, Busy if one is set, NoSuchDevice (ENODEV) if there is none to end.
        The event is taken over on success only.
        """
        line = self._level(index)
        with self._lock:
            if event is None:
                self._forget_abandoned(self._unmask_events, index)
                if index not in self._unmask_events:
                    raise NoSuchDevice(
                        f"{self._hardware.name}: interrupt {index} has no unmask event"
                    )
                self._unwatch(self._unmask_events, index)
            else:
                self._watch(self._unmask_events, "an unmask", index, event, line.unmask)

    # What the hardware tells (InterruptSink)

    def irq(self, index: int, asserted: bool) -> bool:
        """A level changed, or an edge came. Returns whether an event is set for it."""
        with self._lock:
            line = self._lines[index]
            if isinstance(line, LevelInterrupt):
                line.wire(asserted)
                return line.bound
            return asserted and line.fire(0)

    # Inner

    def _drop(self, index: int) -> None:
        bound = self._lines[index].unbind()
        for event in bound if isinstance(bound, tuple) else (bound,):
            if event is not None:
                event.close()

    def _watch(
        self, known: Watches, what: str, index: int, event: Event, action: Callable[[], None]
    ) -> None:
        """Let each signal of ``event`` do ``action``. Busy if interrupt ``index`` has such an event."""
        self._forget_abandoned(known, index)
        if index in known:
            raise Busy(
                f"{self._hardware.name}: interrupt {index} has {what} event already",
                "unset it with fd -1",
            )

        def act() -> None:
            with self._lock:
                action()

        known[index] = event, event.watch(act)

    def _forget_abandoned(self, known: Watches, index: int) -> None:
        if index in known and known[index][0].abandoned():
            self._unwatch(known, index)

    @staticmethod
    def _unwatch(known: Watches, index: int) -> None:
        event, cancel = known.pop(index)
        cancel()
        event.close()

    def _level(self, index: int) -> LevelInterrupt:
        self._check_index(index)
        line = self._lines[index]
        if not isinstance(line, LevelInterrupt):
            raise self._refuse(
                f"interrupt {index} cannot be masked: it is an edge", "level interrupts can"
            )
        return line

    def _check_index(self, index: int) -> None:
        if not 0 <= index < len(self._lines):
            raise self._refuse(f"interrupt {index} does not exist", f"it has {len(self._lines)}")

    def _refuse(self, why: str, hint: str = "") -> InvalidArgument:
        return InvalidArgument(f"{self._hardware.name}: {why}", hint)
