"""Migration of a device, version 2: its states, the arcs between them, and what happens on each.

States (``MigrationState``) and what a device may do in them (``core.bus.Activity``)::

    RUNNING      PRE_COPY       everything
    RUNNING_P2P  PRE_COPY_P2P   answer, but start nothing of its own: no DMA, no time passes
    STOP  STOP_COPY  RESUMING   nothing: no interrupt, registers do not answer; memory and configuration space do
    ERROR                       nothing; only a reset leads out

A program sets a state; ``next_state`` gives the next one on the way there, and ``Migration.set_state`` goes from
one to the next. The ways are the kernel's: PRE_COPY and the P2P states exist as the device's flags say
(``MigrationFlag``), a way through one that does not exist leaves it out. From STOP_COPY no way leads to PRE_COPY.

Data flow. Entering STOP_COPY, PRE_COPY or PRE_COPY_P2P from outside opens a ``SavingStream``, which lives as long as
the device is in one of the three; entering RESUMING opens a ``ResumingStream``. Leaving ends it: its file answers Gone.

    RESUMING -> STOP        the device takes the state in; data that are wrong or not whole: ERROR
    PRE_COPY* -> STOP_COPY  the same stream goes on, with what is left
    any other arc           cannot fail, but for the model's own ``save``: then the state is what it was

An arc that fails ends the way: the device is in the last state reached. A state that was refused at once changes
nothing. A reset ends the session and leads to RUNNING; a device that is reset by a write to its configuration
space counts that in ``resets``.

``Migration`` belongs to one open device: it begins RUNNING and its last close ends it. It does not know files, and
calls arrive with the device's lock held.

Behaviour: include/uapi/linux/vfio.h (enum vfio_device_mig_state), drivers/vfio/vfio_main.c
(vfio_mig_get_next_state), drivers/vfio/pci/mlx5/main.c (mlx5vf_pci_set_device_state).
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import TYPE_CHECKING, Final, Protocol, runtime_checkable

from uvfio.core.bus import Activity, Movable
from uvfio.core.migration.stream import ResumingStream, SavingStream
from uvfio.errors import InvalidArgument

if TYPE_CHECKING:
    from uvfio.core.translation.dma_log import DmaLogger

__all__ = [
    "ALL_FLAGS",
    "Migratable",
    "Migration",
    "MigrationDevice",
    "MigrationFlag",
    "MigrationState",
    "next_state",
]

OVERHEAD: Final = 1 << 16
"""Bytes allowed for records, and for the state of a device that runs."""


class MigrationState(IntEnum):
    """The states, with the ABI's numbers."""

    ERROR = 0
    STOP = 1
    RUNNING = 2
    STOP_COPY = 3
    RESUMING = 4
    RUNNING_P2P = 5
    PRE_COPY = 6
    PRE_COPY_P2P = 7


class MigrationFlag(IntFlag):
    """What a device can do, with the ABI's bits. STOP_COPY is the least."""

    STOP_COPY = 1
    P2P = 2
    PRE_COPY = 4


ALL_FLAGS: Final = MigrationFlag.STOP_COPY | MigrationFlag.P2P | MigrationFlag.PRE_COPY

_S = MigrationState
_NEEDS: Final[dict[MigrationState, MigrationFlag]] = {
    _S.STOP: MigrationFlag.STOP_COPY,
    _S.RUNNING: MigrationFlag.STOP_COPY,
    _S.STOP_COPY: MigrationFlag.STOP_COPY,
    _S.RESUMING: MigrationFlag.STOP_COPY,
    _S.RUNNING_P2P: MigrationFlag.STOP_COPY | MigrationFlag.P2P,
    _S.PRE_COPY: MigrationFlag.STOP_COPY | MigrationFlag.PRE_COPY,
    _S.PRE_COPY_P2P: ALL_FLAGS,
}
"""Flags without which a state does not exist. ERROR cannot be set."""

_ACTIVITY: Final[dict[MigrationState, Activity]] = {
    _S.RUNNING: Activity.FULL,
    _S.PRE_COPY: Activity.FULL,
    _S.RUNNING_P2P: Activity.QUIET,
    _S.PRE_COPY_P2P: Activity.QUIET,
}  # all others: STOPPED

_LIVE: Final = frozenset({_S.PRE_COPY, _S.PRE_COPY_P2P})
_SAVING: Final = _LIVE | {_S.STOP_COPY}

# Where to go next: by state, (those wanted) -> the next one. What is not listed is reached directly.
_VIA: Final[dict[MigrationState, tuple[tuple[frozenset[MigrationState], MigrationState], ...]]] = {
    _S.STOP: ((frozenset({_S.RUNNING, _S.PRE_COPY, _S.PRE_COPY_P2P}), _S.RUNNING_P2P),),
    _S.RUNNING: (
        (frozenset({_S.STOP, _S.STOP_COPY, _S.RESUMING, _S.PRE_COPY_P2P}), _S.RUNNING_P2P),
    ),
    _S.RUNNING_P2P: (
        (frozenset({_S.PRE_COPY}), _S.RUNNING),
        (frozenset({_S.STOP_COPY, _S.RESUMING}), _S.STOP),
    ),
    _S.PRE_COPY: (
        (frozenset({_S.STOP, _S.RESUMING, _S.RUNNING_P2P}), _S.RUNNING),
        (frozenset({_S.STOP_COPY}), _S.PRE_COPY_P2P),
    ),
    _S.PRE_COPY_P2P: ((frozenset({_S.STOP, _S.RUNNING, _S.RESUMING}), _S.RUNNING_P2P),),
    _S.STOP_COPY: (
        (frozenset({_S.RUNNING, _S.RUNNING_P2P, _S.RESUMING}), _S.STOP),
        (_LIVE, _S.ERROR),
    ),
    _S.RESUMING: (
        (
            frozenset({_S.RUNNING, _S.RUNNING_P2P, _S.PRE_COPY, _S.PRE_COPY_P2P, _S.STOP_COPY}),
            _S.STOP,
        ),
    ),
}


def next_state(current: MigrationState, wanted: int, flags: MigrationFlag) -> MigrationState:
    """The state to enter next on the way from ``current`` to ``wanted``, which is that number in the ABI.

    InvalidArgument for a number that is no state or none of this device, for ERROR, out of ERROR, and from STOP_COPY
    to PRE_COPY (vfio_main.c, vfio_mig_get_next_state).
    """
    goal = _S(wanted) if wanted in _S._value2member_map_ else _S.ERROR
    if not _exists(goal, flags):
        raise InvalidArgument(f"there is no migration state {wanted} with flags {flags:#x}")
    if not _exists(current, flags):  # there is no way into one of the others
        raise InvalidArgument("the device is in ERROR", "VFIO_DEVICE_RESET leads out of it")
    step = _via(current, goal)
    while step is not _S.ERROR and not _exists(step, flags):
        step = _via(step, goal)
    if step is _S.ERROR:
        raise InvalidArgument(
            f"no way leads from {current.name} to {goal.name}", "STOP comes first"
        )
    return step


def _exists(state: MigrationState, flags: MigrationFlag) -> bool:
    needs = _NEEDS.get(state)
    return needs is not None and needs & flags == needs


def _via(current: MigrationState, goal: MigrationState) -> MigrationState:
    for goals, step in _VIA[current]:
        if goal in goals:
            return step
    return goal


class MigrationDevice(Movable, Protocol):
    """What migration asks of a device; its VFIO driver implements it."""

    def save(self) -> bytes:
        """All state but memory. Only while it is stopped. Unsupported for what cannot be saved now."""

    def load(self, state: bytes) -> None:
        """Take over what ``save`` of such a device gave. InvalidArgument if it is not that."""


@runtime_checkable
class Migratable(Protocol):
    """What a ``core.bus.MainlineDevice`` has besides if it may be able to migrate. None: not this one, or not open."""

    migration: Migration | None
    dma_logger: DmaLogger | None


class Migration:
    """See the module's head."""

    def __init__(self, device: MigrationDevice, flags: MigrationFlag = ALL_FLAGS) -> None:
        self.flags = flags
        self.session: SavingStream | ResumingStream | None = None
        self._device = device
        self._state = _S.RUNNING
        self._activity = Activity.FULL
        self._resets = device.resets

    @property
    def state(self) -> MigrationState:
        """The state that the device is in."""
        if self._resets != self._device.resets:
            self.reset()
        return self._state

    def set_state(self, wanted: int) -> SavingStream | ResumingStream | None:
        """Go to state ``wanted``; the stream that was opened on arrival, if one was.

        InvalidArgument as ``next_state`` says, and for data that the device does not take (it is in ERROR then);
        what the model's ``save`` raises.
        """
        current, opened = self.state, None
        next_state(current, wanted, self.flags)  # refused here, or not at all
        while self._state != wanted:
            opened = self._enter(next_state(self._state, wanted, self.flags))
        return opened

    def data_size(self) -> int:
        """An estimate of the bytes that saving takes from here to the end (MIG_DATA_SIZE)."""
        memory = sum(len(memory) for memory in self._device.memories.values())
        return memory + len(self._save_now()) + OVERHEAD

    def precopy_info(self, stream: SavingStream) -> tuple[int, int]:
        """(initial, dirty) bytes still to be read from ``stream``. InvalidArgument unless in PRE_COPY."""
        if self.state not in _LIVE or stream is not self.session:
            raise InvalidArgument(f"the device is in {self._state.name}, not in PRE_COPY")
        return stream.remaining()

    def reset(self) -> None:
        """The device was reset: it runs, and no data transfer goes on."""
        self._resets = self._device.resets
        self._end_session()
        self._quiesce(_S.RUNNING)
        self._state = _S.RUNNING

    def close(self) -> None:
        """The last close of the device: as a reset, and nothing of the session stays."""
        self.reset()

    # -- inner ---------------------------------------------------------------------------------------

    def _enter(self, step: MigrationState) -> SavingStream | ResumingStream | None:
        """One arc. Whatever fails leaves the state as it is, or ERROR."""
        left = self._state
        opened: SavingStream | ResumingStream | None = None
        if left is _S.RESUMING:
            self._resume()
        before = self._activity
        self._quiesce(step)
        try:
            if step in _SAVING:
                opened = self._save(step, going_on=left in _SAVING)
            else:
                self._end_session()
        except BaseException:
            self._activity = before
            self._device.quiesce(before)
            raise
        if step is _S.RESUMING:
            opened = ResumingStream(self._device.identity, self._device.memories)
        if opened is not None:
            self.session = opened
        self._state = step
        return opened

    def _save(self, step: MigrationState, going_on: bool) -> SavingStream | None:
        stream = self.session
        if not going_on or not isinstance(stream, SavingStream):
            stream = SavingStream(self._device.identity, self._device.memories)
            if step in _LIVE:
                stream.begin()
        if step is _S.STOP_COPY and not stream.closed:
            stream.finish(self._device.save())
        return None if going_on else stream

    def _resume(self) -> None:
        stream = self.session
        assert isinstance(stream, ResumingStream)
        try:
            self._device.load(stream.finish())
        except BaseException as wrong:  # a model may raise anything for data that make no sense
            self._state = _S.ERROR
            self._end_session()
            raise InvalidArgument(
                f"the device does not take the migration data: {wrong}", "reset it"
            ) from wrong

    def _save_now(self) -> bytes:
        return self._device.save() if self._activity is Activity.STOPPED else b""

    def _end_session(self) -> None:
        stream, self.session = self.session, None
        if stream is not None:
            stream.close()

    def _quiesce(self, state: MigrationState) -> None:
        activity = _ACTIVITY.get(state, Activity.STOPPED)
        if activity is not self._activity:
            self._activity = activity
            self._device.quiesce(activity)
