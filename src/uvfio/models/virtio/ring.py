"""Split rings of virtio: the device's side of one queue.

Theory of operation. A ring is three tables in the program's memory, laid out by ``vring_init`` of
linux/virtio_ring.h::

    address                       descriptors, 16 bytes each: addr, len, flags, next
    behind them                   avail: flags, idx, a ring of heads       written by the driver
    on the next 4096-byte border  used:  flags, idx, a ring of (id, len)   written by the device

The driver puts the head of a chain of descriptors into ``avail`` and increments its ``idx``; from then on the chain
belongs to the device. ``take`` gets such chains, ``push`` writes what became of them into ``used``, ``publish`` makes
all that was pushed visible by one aligned store of ``idx``: a driver that polls beside it sees an entry whole or
not at all. ``untake`` gives back the last chains taken and not pushed.

Two flags save calls. ``listen(False)`` tells the driver not to notify, ``listen(True)`` the opposite, and answers
whether chains came while it was deaf: the flag is stored before ``idx`` is read again, with a full barrier in
between. ``interrupts_wanted`` is the driver's flag the other way round.

Nothing in a ring is trusted. ``BrokenRing`` says what is wrong with it: too many entries, indices beyond the table,
chains that loop, indirect descriptors (not offered), buffers for reading behind buffers for writing. Chains before a
bad one are delivered first. A ring that is not mapped is a ``DmaFault``. After either a device should stop until
its driver resets it.

Byte order is the program's own: legacy virtio. Memory comes from ``DmaWindows``: where it gives a window the tables are
used in place, else they are copied once for each ``take``. Addresses and lengths of a chain are what the driver
wrote; following them can fault.
"""

from __future__ import annotations

import sys
from array import array
from threading import Lock
from typing import TYPE_CHECKING

from uvfio.errors import BrokenRing
from uvfio.uapi.virtio import (
    VIRTIO_PCI_VRING_ALIGN,
    VRING_AVAIL_F_NO_INTERRUPT,
    VRING_DESC_F_INDIRECT,
    VRING_DESC_F_NEXT,
    VRING_DESC_F_WRITE,
    VRING_USED_F_NO_NOTIFY,
    vring_desc,
    vring_size,
    vring_used_elem,
)

if TYPE_CHECKING:
    from uvfio.kit.dma_window import DmaWindows

__all__ = ["Chain", "SplitRing", "fence"]

_DESC = vring_desc.size
_ELEM = vring_used_elem.size
_FLAGS, _IDX, _RING = 0, 1, 2  # half words of avail and used

_NOTHING = memoryview(b"")

_barrier = Lock()

Segment = tuple[int, int]
"""Address and length of a buffer."""


Chain = tuple[int, list[Segment], list[Segment]]
"""One chain of descriptors: its head, the buffers to read, the buffers to write behind them."""


def fence() -> None:
    """A full memory barrier: what a lock is made of. Between a store and a load that must not pass it."""
    with _barrier:
        pass


class SplitRing:
    """A ring of ``size`` entries (a power of two up to 32768) at ``address``, new: nothing taken, nothing used."""

    __slots__ = (
        "__weakref__",
        "_avail",
        "_changes",
        "_deaf",
        "_desc",
        "_memory",
        "_used_half",
        "_used_word",
        "address",
        "size",
        "taken",
        "used",
    )

    def __init__(self, memory: DmaWindows, address: int, size: int) -> None:
        self._memory = memory
        self.address = address
        self.size = size
        self.taken = 0
        """Chains taken, modulo 65536."""
        self.used = 0
        """Chains pushed, modulo 65536."""
        self._deaf = False
        self._changes = -1
        self._desc: memoryview | None = None
        memory.add_user(self)

    def forget(self) -> None:
        """Give up the tables that ``refresh`` found."""
        self._changes = -1
        self._desc = None
        self._avail = self._used_half = self._used_word = _NOTHING

    @property
    def _avail_at(self) -> int:
        return self.address + _DESC * self.size

    @property
    def _used_at(self) -> int:
        end = self._avail_at + 2 * (3 + self.size)
        return (end + VIRTIO_PCI_VRING_ALIGN - 1) & ~(VIRTIO_PCI_VRING_ALIGN - 1)

    def refresh(self) -> None:
        """After ``DmaWindows.refresh``: look at the tables where they are now."""
        memory = self._memory
        if self._changes == memory.changes:
            return
        self._changes = memory.changes
        self._desc = None
        size = vring_size(self.size)
        whole = memory.view(self.address, size)
        if whole is None:
            return
        avail, used = self._avail_at - self.address, self._used_at - self.address
        self._avail = whole[avail : avail + 2 * (2 + self.size)].cast("H")
        self._used_half = whole[used : used + 4].cast("H")
        self._used_word = whole[used : used + 4 + _ELEM * self.size].cast("I")
        self._desc = whole[: _DESC * self.size]

    # -- chains to the device --------------------------------------------------------------------

    @property
    def waiting(self) -> int:
        """How many chains the driver has made available and that are not taken yet. BrokenRing, DmaFault."""
        idx = self._avail[_IDX] if self._desc is not None else self._half(self._avail_at + 2)
        waiting: int = idx - self.taken & 0xFFFF
        if waiting > self.size:
            raise BrokenRing(
                f"ring {self.address:#x}: avail idx {idx} is {waiting} ahead, it has {self.size} entries"
            )
        return waiting

    def take(self, limit: int) -> list[Chain]:
        """Up to ``limit`` chains, oldest first. BrokenRing, DmaFault."""
        count = min(self.waiting, limit)
        chains: list[Chain] = []
        if not count:
            return chains
        table: memoryview | bytes
        if self._desc is not None:
            avail, table = self._avail, self._desc
        else:
            read = self._memory.read
            avail = memoryview(read(self._avail_at, 2 * (2 + self.size))).cast("H")
            table = read(self.address, _DESC * self.size)
        size, unpack = self.size, vring_desc.unpack_from
        begin = _RING + (self.taken & size - 1)
        heads = avail[begin : begin + count].tolist()
        if len(heads) < count:  # the ring's end
            heads += avail[_RING : _RING + count - len(heads)].tolist()
        try:
            for head in heads:
                if head < size:  # the two shapes that network drivers use, without a call
                    address, length, flags, following = unpack(table, head * _DESC)
                    if flags == VRING_DESC_F_WRITE:
                        chains.append((head, [], [(address, length)]))
                        continue
                    if flags == VRING_DESC_F_NEXT and following < size:
                        second, more, flags, _ = unpack(table, following * _DESC)
                        if flags == 0:
                            chains.append((head, [(address, length), (second, more)], []))
                            continue
                chains.append(self._walk(table, head))
        except BrokenRing:
            if not chains:
                raise
        self.taken = self.taken + len(chains) & 0xFFFF
        return chains

    def untake(self, count: int) -> None:
        """The last ``count`` chains taken are to be taken again."""
        self.taken = self.taken - count & 0xFFFF

    def _walk(self, table: memoryview | bytes, head: int) -> Chain:
        size, unpack = self.size, vring_desc.unpack_from
        out: list[Segment] = []
        into: list[Segment] = []
        at, left = head, size
        while at < size:
            address, length, flags, following = unpack(table, at * _DESC)
            if flags & VRING_DESC_F_WRITE:
                into.append((address, length))
            elif into:
                raise self._broken(head, "a buffer to read follows one to write")
            else:
                out.append((address, length))
            if flags & VRING_DESC_F_INDIRECT:
                raise self._broken(head, "indirect descriptors were not offered")
            if not flags & VRING_DESC_F_NEXT:
                return head, out, into
            left -= 1
            if not left:
                raise self._broken(head, "it loops")
            at = following
        raise self._broken(head, f"descriptor {at} does not exist, there are {size}")

    def _broken(self, head: int, why: str) -> BrokenRing:
        return BrokenRing(f"ring {self.address:#x}: the chain at {head}: {why}")

    # -- chains back to the driver ---------------------------------------------------------------

    def push(self, done: list[int]) -> None:
        """Chains that are done: head, bytes written to it, head, bytes written, ... DmaFault."""
        size = self.size
        begin = self.used & size - 1
        room = 2 * (size - begin)
        for slot, part in ((begin, done[:room]), (0, done[room:])):
            if not part:
                continue
            if self._desc is not None:
                at = 1 + 2 * slot
                self._used_word[at : at + len(part)] = array("I", part)
            else:
                self._memory.write(self._used_at + 4 + _ELEM * slot, array("I", part).tobytes())
        self.used = self.used + len(done) // 2 & 0xFFFF

    def publish(self) -> None:
        """Hand over all that was pushed. DmaFault."""
        if self._desc is not None:
            self._used_half[_IDX] = self.used
        else:
            self._memory.store(self._used_at + 2, self.used, 2)

    # -- notifications --------------------------------------------------------------------------

    def listen(self, wanted: bool) -> bool:
        """Whether the driver shall notify. True: there are chains waiting. BrokenRing, DmaFault."""
        if self._deaf is wanted:
            self._deaf = not wanted
            flags = 0 if wanted else VRING_USED_F_NO_NOTIFY
            if self._desc is not None:
                self._used_half[_FLAGS] = flags
            else:
                self._memory.store(self._used_at, flags, 2)
            fence()
        return self.waiting > 0

    @property
    def interrupts_wanted(self) -> bool:
        """Whether the driver wants to be interrupted for what was just published. DmaFault."""
        fence()
        flags = self._avail[_FLAGS] if self._desc is not None else self._half(self._avail_at)
        return not flags & VRING_AVAIL_F_NO_INTERRUPT

    def _half(self, address: int) -> int:
        return int.from_bytes(self._memory.read(address, 2), sys.byteorder)
