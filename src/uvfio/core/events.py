"""The framework's events: what happened to a device or a group, one frozen dataclass for each kind.

``FrameworkEvent`` is the union of all of them. An event is a value: it holds names and numbers, never an object of the
framework, so an observer may keep it and cannot change anything through it. (An eventfd is ``core.seams.Event``, and
has nothing to do with these.)

``Framework.observer`` is one callable, ``observer(event)``, or None. It is called on the thread on which the event
happens, and while the locks are held that the event's docstring names. It must not block and must not call an operation
of the framework. What it raises reaches the operation that emits the event; only ``GroupAdded`` is emitted at a place
where the operation can be undone.

An event is emitted exactly once. Without an observer none is made: each place that emits tests ``observer`` first, and
imports this module then, because the definition of a data class costs half a millisecond, which every `uvfio run` would
pay.
``Fault`` is made in any case, because the domain keeps the latest ones, and is only handed on.

``kind`` is the name of the event in a trace; ``facts`` are its fields in the order of the trace. Both are part of the
JSON form (docs/reference/trace.md): fields are added, not renamed or reordered.

This module imports nothing of the core; every other module of it may import this one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Protocol

__all__ = [
    "DeviceBound",
    "DevicePlugged",
    "DeviceRequested",
    "DeviceRevoked",
    "DeviceTainted",
    "DeviceUnbound",
    "DeviceUnplugged",
    "Fault",
    "FrameworkEvent",
    "GroupAdded",
    "GroupRemoved",
    "Interrupt",
    "InterruptLost",
    "MemoryExchanged",
    "Observed",
    "Observer",
    "Unanswered",
]


@dataclass(frozen=True, slots=True)
class _Base:
    """What all events have: a name and their fields as a mapping."""

    kind: ClassVar[str]

    def facts(self) -> dict[str, Any]:
        """Field names and values, in the order of declaration."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True, slots=True)
class GroupAdded(_Base):
    """A group came into being with its first device (``Framework.add_device``).

    Emitted under the framework's lock, when the group is registered and has no device yet. An exception of the observer
    takes the group back and is raised by ``add_device``.
    """

    kind = "group-added"

    group: str
    bus: str
    number: int
    minor: int


@dataclass(frozen=True, slots=True)
class GroupRemoved(_Base):
    """A group went, because it has neither devices nor an open file.

    Emitted under the framework's lock, when the group is not registered any more: by ``Framework.del_device``, by an
    unbind of a device that was pulled out, or by the close of the group's file.
    """

    kind = "group-removed"

    group: str
    bus: str
    number: int


@dataclass(frozen=True, slots=True)
class DeviceTainted(_Base):
    """A device that was plugged into a group in use could not be attached or claimed: the group is not viable.

    Emitted by ``Framework.add_device``, under the framework's lock, after the reason is recorded.
    """

    kind = "taint"

    device: str
    group: str
    reason: str


@dataclass(frozen=True, slots=True)
class DeviceRequested(_Base):
    """An unbind waits for a device in use: its users are requested to release it, for the ``count``-th time.

    Emitted by ``Release.poll`` without a lock, before the driver's ``request(count)`` (vfio_pci_core_request).
    """

    kind = "request"

    device: str
    count: int


@dataclass(frozen=True, slots=True)
class DeviceRevoked(_Base):
    """A device is taken away from its users, because they did not release it.

    Emitted by ``Release.poll`` under the framework's lock, before the first of the open files is closed.
    """

    kind = "revoke"

    device: str
    group: str


@dataclass(frozen=True, slots=True)
class Fault(_Base):
    """A device's access to memory was refused: direction, I/O virtual address, bytes, reason.

    Emitted by ``Domain.fault`` after the fault is recorded and counted. The domain's lock is held when the domain
    itself refuses (``dma_read`` and its like), but not when the model's DMA interface does (bus mastering off, D3hot).
    """

    kind = "fault"

    device: str
    iova: int
    size: int
    write: bool
    reason: str

    def __str__(self) -> str:
        way = "write" if self.write else "read"
        return f"{self.device} {way} iova {self.iova:#x}+{self.size:#x}: {self.reason}"


@dataclass(frozen=True, slots=True)
class MemoryExchanged(_Base):
    """The memory at ``vaddr`` is not that which was mapped for DMA at ``iova``: unmapped, moved, or mapped anew.

    A kernel has pinned the pages, so that devices go on with memory that the program does not have any more.
    ``reason`` tells what was there and what is there now. Emitted by ``Domain``, with its lock held, once for each
    mapping, when an access, an unmap or a refused map finds it.
    """

    kind = "exchanged"

    iova: int
    size: int
    vaddr: int
    reason: str

    def __str__(self) -> str:
        return (
            f"iova {self.iova:#x}+{self.size:#x} was mapped for DMA, and its memory was exchanged afterwards: "
            f"{self.reason}"
        )


@dataclass(frozen=True, slots=True)
class Interrupt(_Base):
    """An interrupt signals the program's eventfd. ``irq`` names the index (``MSI-X``), ``vector`` is the subindex.

    Emitted by ``ReportedEvent.signal`` before the eventfd's counter grows, under the device's lock. The event is made
    when the program sets the eventfd, and the same object is emitted for each signal.
    """

    kind = "irq"

    device: str
    irq: str
    vector: int


@dataclass(frozen=True, slots=True)
class InterruptLost(_Base):
    """A device raised an interrupt that no eventfd of the program is signalled for, and why.

    ``pending``: it is sent once the reason is gone (a mask, a level without an eventfd); otherwise it is lost.
    ``irq`` and ``vector`` as in ``Interrupt``. Emitted by the model, on the thread of its access or timer.
    """

    kind = "irq-lost"

    device: str
    irq: str
    vector: int
    reason: str
    pending: bool


@dataclass(frozen=True, slots=True)
class Unanswered(_Base):
    """A program's access to a region was complete, but ``count`` bytes of it from ``offset`` on had no answer: memory
    decoding is off, so they read as ones or were lost, or the region ends before them.

    Emitted by the device file of 2011, under the device's lock, before the call is answered. The mainline ABIs answer
    with an error instead.
    """

    kind = "unanswered"

    device: str
    region: int
    offset: int
    count: int
    write: bool
    reason: str


@dataclass(frozen=True, slots=True)
class DevicePlugged(_Base):
    """A device is known to the framework and in its group (``Framework.add_device``); it has no driver yet.

    Emitted under the framework's lock, after ``GroupAdded`` if the group is new. A device that is refused afterwards
    leaves with ``DeviceUnplugged``.
    """

    kind = "plug"

    device: str
    bus: str
    group: str


@dataclass(frozen=True, slots=True)
class DeviceUnplugged(_Base):
    """The bus lost a device (``Framework.del_device``), which may be in use still.

    Emitted under the framework's lock, before the group goes (``GroupRemoved``).
    """

    kind = "unplug"

    device: str
    group: str


@dataclass(frozen=True, slots=True)
class DeviceBound(_Base):
    """A driver has the device: VFIO's (``Framework.bind_device``) or one of the host (``bind_foreign``).

    Emitted under the framework's lock.
    """

    kind = "bind"

    device: str
    driver: str
    group: str


@dataclass(frozen=True, slots=True)
class DeviceUnbound(_Base):
    """A driver has let go of the device: an unbind is done (``Release.poll``), or a driver of the host left.

    Emitted under the framework's lock, before what goes with it is removed.
    """

    kind = "unbind"

    device: str
    driver: str
    group: str


FrameworkEvent = (
    GroupAdded
    | GroupRemoved
    | DeviceTainted
    | DeviceRequested
    | DeviceRevoked
    | Fault
    | MemoryExchanged
    | Interrupt
    | InterruptLost
    | Unanswered
    | DevicePlugged
    | DeviceUnplugged
    | DeviceBound
    | DeviceUnbound
)  # fmt: skip

Observer = Callable[[FrameworkEvent], None]


class Observed(Protocol):
    """What emits events: the framework, for modules below it."""

    @property
    def observer(self) -> Observer | None:
        """The callable that takes the events, or None."""
