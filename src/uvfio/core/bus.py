"""What today's ABIs ask of a bound device beyond the operations of 2011 (``core/structure/device.py``).

``ModernDevice`` is the seam: a VFIO driver implements it in addition to ``BoundDevice``. ``IrqDevice`` is the part of
it about interrupts; a device with that alone has regions, information and interrupts and no more. Everything is in
terms of regions, interrupts and events; which ioctl it comes from is none of a driver's business.

``SET_IRQS`` in one vocabulary: an *action* on ``count`` interrupts from ``start``, and *data* that says for which of
them: all (None), those whose byte is not 0 (bytes), or what event each is connected with (``EventSource``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from uvfio.core.seams import Event
    from uvfio.core.structure.device import BusDevice

__all__ = [
    "Activity",
    "Dependent",
    "EventSource",
    "IrqAction",
    "IrqData",
    "IrqDevice",
    "ModernDevice",
    "Movable",
    "TakesToken",
]

EventSource = Callable[[int], "Event | None"]
"""The program's event for the n-th interrupt of a call, or None where it gave -1. Asking gives a reference of our own
and may fail (BadDescriptor, InvalidArgument), so a driver asks after all other checks."""

IrqData = bytes | EventSource | None


class Activity(Enum):
    """What a device may do by itself while it migrates (``core/migration/states.py``).

    FULL: everything. QUIET: answer, but start nothing: no DMA, no time passes. STOPPED: nothing; its memory and its
    configuration space answer.
    """

    FULL = "full"
    QUIET = "quiet"
    STOPPED = "stopped"


class Movable(Protocol):
    """What silicon and its driver have in common for migration."""

    @property
    def identity(self) -> str:
        """Equal for devices that can take each other's data: model, options, layout."""

    @property
    def resets(self) -> int:
        """How often the device was reset by a write to configuration space."""

    @property
    def memories(self) -> Mapping[int, memoryview]:
        """The bytes of BARs that are plain memory, mappable or not."""

    def quiesce(self, activity: Activity) -> None:
        """From now on it does this and no more; resets do not change that. Time that it measures stands still
        meanwhile."""


class IrqAction(Enum):
    """What shall happen to interrupts."""

    MASK = "mask"
    UNMASK = "unmask"
    TRIGGER = "trigger"


@dataclass(frozen=True, slots=True)
class Dependent:
    """A device that is reset with another one, and where it sits."""

    dev: BusDevice
    segment: int
    bus: int
    devfn: int


@runtime_checkable
class TakesToken(Protocol):
    """A bound device that may want to know more than a program's right to its group before it is opened.

    A device that is none of these takes no token."""

    def check_token(self, token: bytes | None) -> None:
        """Let in who says ``token``, 16 bytes, or nothing. WrongToken; InvalidArgument for one too many."""

    def set_token(self, token: bytes | None) -> None:
        """From now on this one has to be said. UnknownCommand for a device that has none; None only asks."""


@runtime_checkable
class IrqDevice(Protocol):
    """Interrupts as today's programs set them. Calls arrive with the device's lock held."""

    def irq_count(self, index: int) -> int:
        """How many interrupts there are of this kind; InvalidArgument for a kind that does not exist."""

    def irq_resizable(self, index: int) -> bool:
        """Whether a set of these may grow while it is in use."""

    def apply_irqs(
        self, index: int, action: IrqAction, start: int, count: int, data: IrqData
    ) -> None:
        """Do ``action``. The range is inside ``irq_count``. UnknownCommand for what the kind cannot do at all,
        InvalidArgument for what it cannot do now, NoVectors, what an ``EventSource`` raises."""


@runtime_checkable
class ModernDevice(IrqDevice, Protocol):
    """See the module's head. Calls arrive with the device's lock held."""

    def load(self, index: int, offset: int, count: int) -> bytes:
        """Read; registers with accesses of up to 8 bytes.

        InvalidArgument outside of a region, BadAddress outside of configuration space, DecodingOff where the
        program has switched the region off. Fewer bytes than ``count`` at the end of a region.
        """

    def store(self, index: int, offset: int, data: bytes) -> int:
        """Write; as ``load``. How many bytes were taken."""

    def set_ioevent(
        self, index: int, offset: int, width: int, value: int, event: Callable[[], Event] | None
    ) -> None:
        """Each signal of the event stores ``value``; None ends what exactly these arguments began.

        InvalidArgument for places that cannot have one, Overlap if there is one, NoSuchDevice if there is none to
        end, NoSpace for too many, then what getting the event raises.
        """

    def reset_scope(self, others: Iterable[BusDevice]) -> list[Dependent] | None:
        """Which of ``others`` are reset with this device when its bus is; None if its bus cannot be."""

    def bus_reset(self) -> None:
        """The bus is being reset, and this device with it: its state is back as it was afterwards."""

    def enter_low_power(self, wakeup: Event | None) -> None:
        """The program needs the device no more for a while. InvalidArgument if it said so already."""

    def leave_low_power(self) -> None:
        """It needs it again; nothing if it never said it did not."""
