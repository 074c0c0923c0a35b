"""The lives of a group's context: states and transitions, as tables.

Everything that affects transitions is in this module. A context owns a ``Life``, which starts in the first state of its
table; ``Life.step`` is the only function that changes the state. A row is (state, event) -> state, or -> ``Refusal``:
the named condition that is raised for an illegal transition. A table is total: it has a row for every pair of its
states and events. A refused event changes nothing.

Three kinds of context have three tables::

    LIFE_2011        ``Iommu``      groups of the RFC: the domain ends with the last iommu or device file
    LIFE_CONTAINER   ``Container``  mainline group interface: the domain ends with the last group
    LIFE_CLAIM       ``Claim``      a group in an iommufd: ends when it is neither joined nor bound

docs/design.md shows the tables as pictures; they are drawn by tests/tools/draw_lifetimes.py.

This module knows no group, device or domain: the contexts make their changes and report them as events. When an event
happens is decided by the framework (``Framework._settle``), and ownership by address spaces is not part of the state.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from uvfio.errors import Busy, InvalidArgument, VfioError

__all__ = [
    "LIFE_2011",
    "LIFE_CLAIM",
    "LIFE_CONTAINER",
    "Event",
    "Life",
    "Refusal",
    "State",
    "Table",
]


class State(Enum):
    """The states of all three lives. The value names the state in pictures."""

    EMPTY = "empty"  # no group

    CLOSED = "closed"  # one group, no domain
    OPEN = "open"  # one group, a domain, an owner
    CLOSED_SET = "closed set"  # several groups, no domain, an owner
    OPEN_SET = "open set"  # several groups, a domain, an owner

    WAITING = "has groups"  # groups, but no IOMMU was chosen yet
    ENABLED = "enabled"  # groups, a domain and the type1 rules
    UNPROTECTED = "enabled without IOMMU"  # groups and no domain, on request

    IDLE = "idle"  # the group is in the context for no reason: it is about to bind, join or leave
    JOINED = "joined"  # the group's file was set on the iommufd
    BOUND = "bound"  # devices of the group are bound to the iommufd: it owns their DMA
    JOINED_BOUND = "joined and bound"
    ENDED = "ended"  # the group has left the iommufd; the claim is not used again


class Event(Enum):
    """What can happen to a context. The value names the event in pictures."""

    ENTER = "a group enters"
    LEAVE = "a group leaves, others stay"
    DISSOLVE = "a group leaves, one stays"
    LEAVE_LAST = "the last group leaves"

    OPEN = "open"
    CLOSE = "close"

    ENABLE = "choose type1"
    ENABLE_UNPROTECTED = "choose noiommu"

    JOIN = "join"
    UNJOIN = "unjoin"
    BIND = "bind a device"
    UNBIND = "unbind a device, others stay"
    UNBIND_LAST = "unbind the last device"


@dataclass(frozen=True, slots=True)
class Refusal:
    """An illegal transition: its name, and the condition that is raised. ``{who}`` in the sentence is the context."""

    name: str
    condition: type[VfioError]
    sentence: str
    hint: str = ""

    def error(self, who: str) -> VfioError:
        """The condition, to be raised."""
        return self.condition(self.sentence.format(who=who), self.hint)


Table = Mapping[tuple[State, Event], State | Refusal]

ALREADY_OPEN = Refusal("already open", InvalidArgument, "{who}: the iommu is open already")
NO_MEMBERS = Refusal("no members", InvalidArgument, "the context has no group")
NOT_MERGED = Refusal("not merged", InvalidArgument, "{who} is not merged with another group")
STILL_MERGED = Refusal("still merged", InvalidArgument, "{who}: other groups are in the context")
STILL_OPEN = Refusal("still open", Busy, "{who}: the iommu is open", "close it first")

NO_GROUP = Refusal(
    "no group", InvalidArgument, "the container has no group", "set it on a group first"
)
HAS_IOMMU = Refusal("has an IOMMU", InvalidArgument, "{who}: the container has an IOMMU already")

JOINED_ALREADY = Refusal(
    "joined already", InvalidArgument, "{who} has a container", "unset it first"
)
NOT_JOINED = Refusal("not joined", InvalidArgument, "{who} has no container", "set one first")
NOT_BOUND = Refusal("not bound", InvalidArgument, "no device of {who} is bound to the iommufd")
STILL_BOUND = Refusal("still bound", Busy, "devices of {who} are bound to the iommufd")
OVER = Refusal("over", InvalidArgument, "the group has left the iommufd")

LIFE_2011: Table = {
    (State.EMPTY, Event.ENTER): State.CLOSED,
    (State.EMPTY, Event.LEAVE): NO_MEMBERS,
    (State.EMPTY, Event.DISSOLVE): NO_MEMBERS,
    (State.EMPTY, Event.LEAVE_LAST): NO_MEMBERS,
    (State.EMPTY, Event.OPEN): NO_MEMBERS,
    (State.EMPTY, Event.CLOSE): State.EMPTY,
    #
    (State.CLOSED, Event.ENTER): State.CLOSED_SET,
    (State.CLOSED, Event.LEAVE): NOT_MERGED,
    (State.CLOSED, Event.DISSOLVE): NOT_MERGED,
    (State.CLOSED, Event.LEAVE_LAST): State.EMPTY,
    (State.CLOSED, Event.OPEN): State.OPEN,
    (State.CLOSED, Event.CLOSE): State.CLOSED,
    #
    (State.OPEN, Event.ENTER): State.OPEN_SET,
    (State.OPEN, Event.LEAVE): NOT_MERGED,
    (State.OPEN, Event.DISSOLVE): NOT_MERGED,
    (State.OPEN, Event.LEAVE_LAST): STILL_OPEN,
    (State.OPEN, Event.OPEN): ALREADY_OPEN,
    (State.OPEN, Event.CLOSE): State.CLOSED,
    #
    (State.CLOSED_SET, Event.ENTER): State.CLOSED_SET,
    (State.CLOSED_SET, Event.LEAVE): State.CLOSED_SET,
    (State.CLOSED_SET, Event.DISSOLVE): State.CLOSED,
    (State.CLOSED_SET, Event.LEAVE_LAST): STILL_MERGED,
    (State.CLOSED_SET, Event.OPEN): State.OPEN_SET,
    (State.CLOSED_SET, Event.CLOSE): State.CLOSED_SET,
    #
    (State.OPEN_SET, Event.ENTER): State.OPEN_SET,
    (State.OPEN_SET, Event.LEAVE): State.OPEN_SET,
    (State.OPEN_SET, Event.DISSOLVE): State.OPEN,
    (State.OPEN_SET, Event.LEAVE_LAST): STILL_MERGED,
    (State.OPEN_SET, Event.OPEN): ALREADY_OPEN,
    (State.OPEN_SET, Event.CLOSE): State.CLOSED_SET,
}

LIFE_CONTAINER: Table = {
    (State.EMPTY, Event.ENTER): State.WAITING,
    (State.EMPTY, Event.LEAVE): NO_GROUP,
    (State.EMPTY, Event.LEAVE_LAST): NO_GROUP,
    (State.EMPTY, Event.ENABLE): NO_GROUP,
    (State.EMPTY, Event.ENABLE_UNPROTECTED): NO_GROUP,
    #
    (State.WAITING, Event.ENTER): State.WAITING,
    (State.WAITING, Event.LEAVE): State.WAITING,
    (State.WAITING, Event.LEAVE_LAST): State.EMPTY,
    (State.WAITING, Event.ENABLE): State.ENABLED,
    (State.WAITING, Event.ENABLE_UNPROTECTED): State.UNPROTECTED,
    #
    (State.ENABLED, Event.ENTER): State.ENABLED,
    (State.ENABLED, Event.LEAVE): State.ENABLED,
    (State.ENABLED, Event.LEAVE_LAST): State.EMPTY,
    (State.ENABLED, Event.ENABLE): HAS_IOMMU,
    (State.ENABLED, Event.ENABLE_UNPROTECTED): HAS_IOMMU,
    #
    (State.UNPROTECTED, Event.ENTER): State.UNPROTECTED,
    (State.UNPROTECTED, Event.LEAVE): State.UNPROTECTED,
    (State.UNPROTECTED, Event.LEAVE_LAST): State.EMPTY,
    (State.UNPROTECTED, Event.ENABLE): HAS_IOMMU,
    (State.UNPROTECTED, Event.ENABLE_UNPROTECTED): HAS_IOMMU,
}

LIFE_CLAIM: Table = {
    (State.EMPTY, Event.ENTER): State.IDLE,
    (State.EMPTY, Event.LEAVE_LAST): NO_MEMBERS,
    (State.EMPTY, Event.JOIN): NO_MEMBERS,
    (State.EMPTY, Event.UNJOIN): NOT_JOINED,
    (State.EMPTY, Event.BIND): NO_MEMBERS,
    (State.EMPTY, Event.UNBIND): NOT_BOUND,
    (State.EMPTY, Event.UNBIND_LAST): NOT_BOUND,
    #
    (State.IDLE, Event.ENTER): STILL_MERGED,
    (State.IDLE, Event.LEAVE_LAST): State.ENDED,
    (State.IDLE, Event.JOIN): State.JOINED,
    (State.IDLE, Event.UNJOIN): NOT_JOINED,
    (State.IDLE, Event.BIND): State.BOUND,
    (State.IDLE, Event.UNBIND): NOT_BOUND,
    (State.IDLE, Event.UNBIND_LAST): NOT_BOUND,
    #
    (State.JOINED, Event.ENTER): STILL_MERGED,
    (State.JOINED, Event.LEAVE_LAST): State.ENDED,
    (State.JOINED, Event.JOIN): JOINED_ALREADY,
    (State.JOINED, Event.UNJOIN): State.IDLE,
    (State.JOINED, Event.BIND): State.JOINED_BOUND,
    (State.JOINED, Event.UNBIND): NOT_BOUND,
    (State.JOINED, Event.UNBIND_LAST): NOT_BOUND,
    #
    (State.BOUND, Event.ENTER): STILL_MERGED,
    (State.BOUND, Event.LEAVE_LAST): STILL_BOUND,
    (State.BOUND, Event.JOIN): State.JOINED_BOUND,
    (State.BOUND, Event.UNJOIN): NOT_JOINED,
    (State.BOUND, Event.BIND): State.BOUND,
    (State.BOUND, Event.UNBIND): State.BOUND,
    (State.BOUND, Event.UNBIND_LAST): State.IDLE,
    #
    (State.JOINED_BOUND, Event.ENTER): STILL_MERGED,
    (State.JOINED_BOUND, Event.LEAVE_LAST): STILL_BOUND,
    (State.JOINED_BOUND, Event.JOIN): JOINED_ALREADY,
    (State.JOINED_BOUND, Event.UNJOIN): State.BOUND,
    (State.JOINED_BOUND, Event.BIND): State.JOINED_BOUND,
    (State.JOINED_BOUND, Event.UNBIND): State.JOINED_BOUND,
    (State.JOINED_BOUND, Event.UNBIND_LAST): State.JOINED,
    #
    (State.ENDED, Event.ENTER): OVER,
    (State.ENDED, Event.LEAVE_LAST): OVER,
    (State.ENDED, Event.JOIN): OVER,
    (State.ENDED, Event.UNJOIN): OVER,
    (State.ENDED, Event.BIND): OVER,
    (State.ENDED, Event.UNBIND): OVER,
    (State.ENDED, Event.UNBIND_LAST): OVER,
}


class Life:
    """The state of one context. ``who`` in ``check`` and ``step`` names the context in a condition."""

    __slots__ = ("_state", "_table")

    def __init__(self, table: Table) -> None:
        self._table = table
        self._state = State.EMPTY

    @property
    def state(self) -> State:
        """The state now."""
        return self._state

    def check(self, event: Event, who: str) -> State:
        """The state that ``event`` would lead to. Raises the named condition if the event is illegal now."""
        target = self._table[self._state, event]
        if isinstance(target, Refusal):
            raise target.error(who)
        return target

    def step(self, event: Event, who: str) -> None:
        """Let ``event`` happen. Raises as ``check``; the state is the same then."""
        self._state = self.check(event, who)
