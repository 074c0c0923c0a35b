"""Wires between the network devices of one machine.

A wire has a name and two ends. ``join`` plugs a device into a free end, ``leave`` pulls it out. The carrier is up while
both ends are taken; an end is told when that changes. ``send`` puts frames into the other end's hands at once; what
they do with them, and when, is their business.

A machine is told from another by its clock, of which each has one: two machines of one process may both have a wire
"a". A wire without devices is forgotten.

It has no speed, no delay and no memory; it neither loses, repeats nor reorders anything.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol
from weakref import WeakKeyDictionary

from uvfio.errors import ConfigError

if TYPE_CHECKING:
    from uvfio.core.seams import Clock

__all__ = ["End", "Wire", "join"]

_wires: WeakKeyDictionary[Clock, dict[str, Wire]] = WeakKeyDictionary()


class End(Protocol):
    """A device that may be plugged in."""

    @property
    def name(self) -> str:
        """Its address."""

    def arrived(self, frames: list[bytes]) -> None:
        """These came in, in this order. Called inside the sender's register access or timer."""

    def carrier_changed(self) -> None:
        """A device was plugged into the other end, or pulled out."""


class Wire:
    """One wire of a machine."""

    def __init__(self, name: str, wires: dict[str, Wire]) -> None:
        self.name = name
        self.ends: list[End] = []
        self._wires = wires

    @property
    def carrier(self) -> bool:
        """Whether a device is at each end."""
        return len(self.ends) == 2

    def send(self, sender: End, frames: list[bytes]) -> bool:
        """Whether there is another end; it has the frames then."""
        for end in self.ends:
            if end is not sender:
                end.arrived(frames)
                return True
        return False

    def leave(self, end: End) -> None:
        """Pull ``end`` out (idempotent)."""
        if end in self.ends:
            self.ends.remove(end)
            for other in self.ends:
                other.carrier_changed()
            if not self.ends:
                self._wires.pop(self.name, None)


def join(clock: Clock, name: str, end: End) -> Wire:
    """Plug ``end`` into the wire ``name`` of the machine with this clock. ConfigError if both ends are taken."""
    wires = _wires.setdefault(clock, {})
    wire = wires.get(name) or Wire(name, wires)
    if wire.carrier:
        ends = " and ".join(taken.name for taken in wire.ends)
        raise ConfigError(f"{end.name}: wire {name!r} is taken at both ends: {ends}")
    wires[name] = wire
    wire.ends.append(end)
    for other in wire.ends[:-1]:
        other.carrier_changed()
    return wire
