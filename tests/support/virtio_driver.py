"""A virtio driver made of bytes: split rings in a memory, and the legacy registers that hand them over.

``Ring`` is the driver's side of one queue; it frees nothing and keeps no order of its own. ``NetDriver`` has the two
queues of a network device on a ``World`` (``model_world``), with real mappings of ``core.domain``.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from support.model_world import World, power_on
from uvfio.core.seams import Mm, Pin
from uvfio.core.translation.domain import Domain
from uvfio.core.translation.rules_2011 import Rules2011
from uvfio.errors import BadAddress
from uvfio.models.virtio.net import VirtioNet
from uvfio.uapi import virtio

if TYPE_CHECKING:
    from collections.abc import Sequence

MEMORY = 1 << 20
RX_RING, TX_RING = 0x10000, 0x20000
RX_BUFFERS, TX_BUFFERS = 0x40000, 0x80000
NEXT, WRITE = virtio.VRING_DESC_F_NEXT, virtio.VRING_DESC_F_WRITE
HEADER = 10


class Memory:
    """The memory of a program. Without ``windows`` devices have to copy."""

    def __init__(self, size: int = MEMORY, windows: bool = True) -> None:
        self.bytes = bytearray(size)
        self.windows = windows
        self.stores: list[tuple[int, int, int]] = []

    def _check(self, address: int, size: int) -> None:
        if not 0 <= address <= address + size <= len(self.bytes):
            raise BadAddress(f"no memory at {address:#x}")

    def read(self, address: int, size: int) -> bytes:
        self._check(address, size)
        return bytes(self.bytes[address : address + size])

    def write(self, address: int, data: bytes) -> None:
        self._check(address, len(data))
        self.bytes[address : address + len(data)] = data

    def store(self, address: int, value: int, width: int) -> None:
        self.stores.append((address, value, width))
        self.write(address, value.to_bytes(width, "little"))

    def view(
        self, address: int, size: int, *, writable: bool = True, cut: object = None
    ) -> memoryview | None:
        self._check(address, size)
        return memoryview(self.bytes)[address : address + size] if self.windows else None

    def exchanged(self, address: int, size: int) -> str:
        return ""

    def mlocked(self) -> int:
        return 0

    def pin(self, address: int, size: int, writable: bool) -> Pin:
        self._check(address, size)
        return Pin(self, size)


def mapped(memory: Memory, size: int = MEMORY) -> Domain:
    """A domain in which iova and address are the same."""
    domain = Domain()
    Rules2011(domain).map(0, size, 0, Mm(memory), None, writable=True)
    return domain


class Ring:
    """The driver's side of a ring of ``size`` entries at ``address``."""

    def __init__(self, memory: Memory, address: int, size: int = 16) -> None:
        self.memory = memory.bytes
        self.address = address
        self.size = size
        self.avail = address + 16 * size
        self.used = (self.avail + 2 * (3 + size) + 4095) & ~4095
        self.made = 0
        self.seen = 0

    def describe(self, slot: int, address: int, length: int, flags: int = 0, link: int = 0) -> None:
        struct.pack_into(
            "<QIHH", self.memory, self.address + 16 * slot, address, length, flags, link
        )

    def offer(self, *heads: int) -> None:
        for head in heads:
            at = self.avail + 4 + 2 * (self.made % self.size)
            struct.pack_into("<H", self.memory, at, head)
            self.made = self.made + 1 & 0xFFFF
        self.set_idx(self.made)

    def set_idx(self, idx: int) -> None:
        struct.pack_into("<H", self.memory, self.avail + 2, idx)

    def refuse_interrupts(self, refused: bool = True) -> None:
        struct.pack_into("<H", self.memory, self.avail, refused)

    @property
    def deaf(self) -> bool:
        """Whether the device wants no notifications."""
        flags: int = struct.unpack_from("<H", self.memory, self.used)[0]
        return bool(flags & virtio.VRING_USED_F_NO_NOTIFY)

    @property
    def used_idx(self) -> int:
        idx: int = struct.unpack_from("<H", self.memory, self.used + 2)[0]
        return idx

    def take_used(self) -> list[tuple[int, int]]:
        """(head, bytes written) of what the device has done since the last call."""
        found = []
        while self.seen != self.used_idx:
            at = self.used + 4 + 8 * (self.seen % self.size)
            found.append(struct.unpack_from("<II", self.memory, at))
            self.seen = self.seen + 1 & 0xFFFF
        return found


class NetDriver:
    """Sends and receives frames through a legacy network device."""

    def __init__(
        self, world: World[VirtioNet], memory: Memory | None = None, *, buffer: int = 2048
    ) -> None:
        self.world = world
        self.memory = memory if memory is not None else Memory()
        self.size = world.model.queue_entries
        self.buffer = buffer
        self.domain = mapped(self.memory, len(self.memory.bytes))
        world.model.attach(self.domain)
        self.start()

    def start(self) -> None:
        """Reset the device and hand over fresh rings, without buffers."""
        write = self.world.write
        write(18, 0, 1)
        self.memory.bytes[:] = bytes(len(self.memory.bytes))
        self.rx = Ring(self.memory, RX_RING, self.size)
        self.tx = Ring(self.memory, TX_RING, self.size)
        write(18, 1, 1)
        write(18, 3, 1)
        write(4, self.world.read(0), 4)
        for queue, ring in enumerate((self.rx, self.tx)):
            write(14, queue, 2)
            write(8, ring.address >> 12, 4)
        write(18, 7, 1)
        self.sent = 0

    def notify(self, queue: int) -> None:
        self.world.write(16, queue, 2)

    def post(self, slots: Sequence[int]) -> None:
        """Give empty buffers to the device."""
        for slot in slots:
            self.rx.describe(slot, RX_BUFFERS + self.buffer * slot, self.buffer, WRITE)
        self.rx.offer(*slots)

    def send(self, *frames: bytes, parts: int = 2) -> None:
        """Queue frames as chains of a header and data (2 parts), or all in one descriptor (1)."""
        for frame in frames:
            head = self.sent * parts % self.size
            at = TX_BUFFERS + 2048 * (self.sent % (self.size // parts))
            self.memory.bytes[at : at + HEADER + len(frame)] = bytes(HEADER) + frame
            if parts == 1:
                self.tx.describe(head, at, HEADER + len(frame))
            else:
                self.tx.describe(head, at, HEADER, NEXT, head + 1)
                self.tx.describe(head + 1, at + HEADER, len(frame))
            self.tx.offer(head)
            self.sent += 1

    def received(self) -> list[bytes]:
        """Frames that came, and their slots posted again."""
        frames, slots = [], []
        for slot, written in self.rx.take_used():
            at = RX_BUFFERS + self.buffer * slot
            assert self.memory.bytes[at : at + HEADER] == bytes(HEADER)
            frames.append(bytes(self.memory.bytes[at + HEADER : at + written]))
            slots.append(slot)
        self.rx.offer(*slots)
        return frames


def net_driver(windows: bool = True, **options: object) -> NetDriver:
    """A network device with 16 entries in each ring and its driver."""
    options.setdefault("queue_entries", 16)
    world = power_on(VirtioNet, bus_reset=False, master=True, **options)
    return NetDriver(world, Memory(windows=windows))
