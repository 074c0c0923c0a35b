"""Interrupts between a device's wires and a program's events: one level interrupt, a set of edge vectors.

Nothing here knows PCI, eventfds or an ABI. A driver owns these objects, passes them what the hardware does and what the
program requests, and serialises all calls with its device lock (it must be reentrant: the gate and an event may call
back at once).

``LevelInterrupt`` has four bits of state:

    bound    an event is set: the program wants this interrupt
    masked   the driver's mask; set by the interrupt itself when it fires, so that a level that stays high
             does not signal for ever, cleared by ``unmask``
    guest    the mask the program put into the device's own registers (INTx disable)
    wire     the level, as last reported; a wire behind a closed gate reads low, whatever the device wants

    The *gate* is the hardware's switch in front of the wire: open exactly while neither mask is set.

    event in            condition            what happens
    wire(high)          -                    wire = high, then fire if due
    wire(low)           -                    wire = low; nothing is taken back
    bind(event)         not bound            bound, masked = no, gate follows, fire if due
    unbind              -                    not bound, masked = no, gate follows
    replace(event)      -                    another event, or none for a while; fire if due
    mask                -                    masked = yes, gate closes
    unmask              guest                nothing: the program's own mask wins
    unmask              not guest            masked = no, gate follows, fire if due
    guest_mask(yes)     -                    guest = yes, gate closes
    guest_mask(no)      guest                guest = no, masked = no, gate opens, fire if due

    due:   bound and wire and not masked and not guest
    fire:  masked = yes, gate closes, event.signal(), in this order: the program may unmask from inside

Invariants: never due at rest, so nothing is lost and nothing fires twice for one mask/unmask cycle; a
change of the wire that is reported twice, or while no event is bound, changes nothing else.

``EdgeVectors`` are messages: they have no mask and no level here. A message to a vector without an event is
dropped, as it is in hardware when the vector has not been programmed.

What this module does not do: it owns no reference to an event beyond holding it (the caller of ``bind`` closes), it
never drops an event by itself, and it does not know which kinds of interrupt exclude each other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from uvfio.errors import Busy

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from uvfio.core.events import Interrupt, Observed
    from uvfio.core.seams import Event

__all__ = ["EdgeVectors", "LevelInterrupt", "ReportedEvent"]


class LevelInterrupt:
    """One level-triggered interrupt; the table in this module's head is its definition.

    ``gate(open)`` switches the hardware. It is called with the current answer after each step that may
    have changed it and must therefore be idempotent; it may call ``wire`` before it returns.
    """

    __slots__ = ("_event", "_gate", "_guest", "_masked", "_wire")

    def __init__(self, gate: Callable[[bool], None]) -> None:
        self._gate = gate
        self._event: Event | None = None
        self._masked = False
        self._guest = False
        self._wire = False

    @property
    def bound(self) -> bool:
        """Whether an event is set."""
        return self._event is not None

    @property
    def masked(self) -> bool:
        """Whether the driver's mask is set: it fired, or was masked, and was not unmasked since."""
        return self._masked

    @property
    def asserted(self) -> bool:
        """The level of the wire as last reported."""
        return self._wire

    @property
    def open(self) -> bool:
        """Whether neither mask is set: what the gate has to be."""
        return not (self._masked or self._guest)

    def wire(self, asserted: bool) -> None:
        """Report the level that the wire has now."""
        self._wire = asserted
        if asserted:
            self._fire_if_due()

    def bind(self, event: Event) -> None:
        """Signal ``event`` from now on; at once if the wire is high. Raises Busy if an event is bound."""
        if self._event is not None:
            raise Busy("the level interrupt has an event already", "unbind it first")
        self._event = event
        self._masked = False
        self._settle()

    def replace(self, event: Event | None) -> Event | None:
        """Signal ``event`` instead, or nothing (None); masks stay. Returns the event that was bound before, or None."""
        before, self._event = self._event, event
        self._fire_if_due()
        return before

    def mask(self) -> None:
        """Set the driver's mask; the wire keeps its level."""
        self._masked = True
        self._gate(False)

    def send(self) -> bool:
        """Signal regardless of the wire, for a program's self-test; returns whether an event was signalled."""
        if self._event is None or self._guest:
            return False
        self._event.signal()
        return True

    def unbind(self) -> Event | None:
        """Signal no more; returns the event that was bound, or None."""
        event, self._event = self._event, None
        self._masked = False
        self._settle()
        return event

    def unmask(self) -> None:
        """Clear the driver's mask, unless the program's own is set. Fires again if the wire is still high."""
        if not self._guest:
            self._masked = False
            self._settle()

    def guest_mask(self, on: bool) -> None:
        """Report that the program set or cleared the mask in the device's registers."""
        if on != self._guest:
            self._guest = on
            if not on:
                self._masked = False
            self._settle()

    def _settle(self) -> None:
        self._gate(self.open)
        self._fire_if_due()

    def _fire_if_due(self) -> None:
        event = self._event
        if event is not None and self._wire and not self._masked and not self._guest:
            self._masked = True
            self._gate(False)
            event.signal()


class EdgeVectors:
    """A set of message interrupts: vector i signals event i."""

    __slots__ = ("_events",)

    def __init__(self) -> None:
        self._events: tuple[Event | None, ...] = ()

    def __len__(self) -> int:
        return len(self._events)

    def bind(self, events: Sequence[Event | None]) -> None:
        """Signal ``events[i]`` for vector i; None leaves a vector without an event. Raises Busy if some are bound."""
        if self._events:
            raise Busy(f"{len(self._events)} vectors have events already", "unbind them first")
        self._events = tuple(events)

    def replace(self, start: int, events: Sequence[Event | None]) -> tuple[Event, ...]:
        """Bind these from vector ``start`` on; the set grows if need be. Returns the events that they replace."""
        end = start + len(events)
        size = max(len(self._events), end)
        filled = (*self._events, *[None] * (size - len(self._events)))
        before = filled[start:end]
        self._events = (*filled[:start], *events, *filled[end:])
        return tuple(event for event in before if event is not None)

    def unbind(self) -> tuple[Event, ...]:
        """Signal no more; returns the events that were bound."""
        events, self._events = self._events, ()
        return tuple(event for event in events if event is not None)

    def fire(self, vector: int) -> bool:
        """Signal the event of ``vector``; returns whether there was one. Messages for unknown vectors are dropped."""
        if 0 <= vector < len(self._events):
            event = self._events[vector]
            if event is not None:
                event.signal()
                return True
        return False


class ReportedEvent:
    """A program's eventfd, each signal of which is reported to the observer of ``source`` as ``interrupt`` first."""

    __slots__ = ("_event", "_interrupt", "_source")

    def __init__(self, event: Event, source: Observed, interrupt: Interrupt) -> None:
        self._event = event
        self._source = source
        self._interrupt = interrupt

    def signal(self) -> None:
        """Report the interrupt to the observer, if there is one, then signal the eventfd."""
        observer = self._source.observer
        if observer:
            observer(self._interrupt)
        self._event.signal()

    def watch(self, callback: Callable[[], None]) -> Callable[[], None]:
        """As the eventfd's ``watch``; nothing is reported."""
        return self._event.watch(callback)

    def abandoned(self) -> bool:
        """As the eventfd."""
        return self._event.abandoned()

    def close(self) -> None:
        """Close the reference to the eventfd."""
        self._event.close()
