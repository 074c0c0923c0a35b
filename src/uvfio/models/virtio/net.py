"""A legacy virtio network device: queue 0 receives, queue 1 transmits. ``virtio.py`` has the registers.

Features: MAC, STATUS, ANY_LAYOUT, and MTU with option ``mtu``. Configuration (struct virtio_net_config): MAC (6), link
status (2), number of queue pairs (2), MTU (2); a driver may write the MAC, which lasts until a function reset.

Data flow. A frame is taken from the transmit ring, its header of 10 bytes is thrown away (no offload is offered), and
it goes to the *backend*: back into this device (``loopback``), nowhere (``sink``), or to the other end of a ``wire``.
What comes in waits in a backlog of at most ``backlog`` frames for buffers of the driver; more is dropped, as is a frame
that does not fit the next buffer, one of less than 14 or more than 65535 bytes, and one whose bytes are not mapped.
Frames keep their order. Each lost one is in a counter. Frames from a wire are delivered in a turn of their own,
never within the sender's.

Invariants, of the counters: chains taken from the transmit ring are tx_frames + tx_dropped; frames that came in are
rx_frames + rx_dropped + those that still wait.
"""

from __future__ import annotations

from collections import deque
from itertools import islice
from typing import TYPE_CHECKING, Any

from uvfio.kit import DmaFault, Option, not_negative, routing_id, wire
from uvfio.models.virtio.transport import LegacyVirtio
from uvfio.uapi import virtio

if TYPE_CHECKING:
    from uvfio.models.virtio.ring import Segment

__all__ = ["VirtioNet"]

RX, TX = 0, 1
HEADER = bytes(virtio.virtio_net_hdr.size)
SHORTEST = 14  # an Ethernet header
LONGEST = 65535
BURST = 64  # chains in one turn: a notified call waits for no more than this


def _mtu(size: int) -> str:
    return "" if size == 0 or 68 <= size <= 65521 else "is neither 0 nor 68 to 65521"


def _backend(name: str) -> str:
    return "" if name in ("loopback", "sink") else "is neither loopback nor sink"


def _mac(text: str) -> str:
    octets = text.split(":")
    fits = len(octets) == 6 and all(len(o) == 2 and _is_hex(o) for o in octets)
    if text and not fits:
        return "is not six octets like 52:54:00:12:34:56"
    return "is a multicast address" if text and int(octets[0], 16) & 1 else ""


def _is_hex(text: str) -> bool:
    return all(c in "0123456789abcdefABCDEF" for c in text)


class VirtioNet(LegacyVirtio):
    """A legacy virtio network device (1af4:1000), as DPDK drives it through I/O ports."""

    device_id = virtio.VIRTIO_TRANS_ID_NET
    class_code = 0x020000
    subsystem_id = virtio.VIRTIO_ID_NET
    queues = 2

    backend = Option(str, "loopback", "where frames go: loopback or sink", check=_backend)
    wire = Option(
        str, "", "name of a wire to another virtio-net of the machine, instead of backend"
    )
    mac = Option(str, "", "Ethernet address; empty: made from the PCI address", check=_mac)
    mtu = Option(int, 0, "largest payload that the driver is told; 0: not told", check=_mtu)
    backlog = Option(int, 1024, "frames that wait for buffers to receive", check=not_negative)

    def __init__(self, address: str, **surroundings: Any) -> None:
        self.line: wire.Wire | None = None
        super().__init__(address, **surroundings)
        kinds = ("tx_frames", "tx_bytes", "tx_dropped", "rx_frames", "rx_bytes", "rx_dropped")
        self.counters = {**dict.fromkeys(kinds, 0), **self.counters}
        if self.wire:
            self.line = wire.join(self.clock, self.wire, self)

    def offered(self) -> int:
        """Those of every device, MAC, STATUS, and MTU if the option ``mtu`` is not 0."""
        net = 1 << virtio.VIRTIO_NET_F_MAC | 1 << virtio.VIRTIO_NET_F_STATUS
        return super().offered() | net | (self.mtu > 0) << virtio.VIRTIO_NET_F_MTU

    def on_reset(self) -> None:
        """The MAC address of the option, then as the base."""
        self.address_bytes = self._power_on_mac()
        super().on_reset()

    def forget_driver(self) -> None:
        """As the base; frames that wait for buffers are dropped."""
        super().forget_driver()
        self.waiting: deque[bytes] = deque()

    def unplug(self) -> None:
        """As the base; the wire loses this end."""
        super().unplug()
        if self.line is not None:
            self.line.leave(self)

    # -- configuration and link ------------------------------------------------------------------

    def configuration(self) -> bytes:
        """``struct virtio_net_config`` now."""
        link = virtio.VIRTIO_NET_S_LINK_UP if self.link_up else 0
        return virtio.virtio_net_config.pack(bytes(self.address_bytes), link, 1, self.mtu)

    def configuration_written(self, index: int, value: int) -> None:
        """The driver may write the MAC address; other bytes do not change."""
        if index < len(self.address_bytes):
            self.address_bytes[index] = value

    @property
    def link_up(self) -> bool:
        """A wire needs a device at its other end."""
        return self.line.carrier if self.line is not None else not self.wire

    def carrier_changed(self) -> None:
        """Interrupt the driver for a change of configuration, in a turn of this device."""
        self.after(0, self.config_interrupt)

    def arrived(self, frames: list[bytes]) -> None:
        """Frames from the wire: kept, and delivered in a turn of this device."""
        if self.running:
            self._keep(frames)
            self.look_soon()
        else:
            self.counters["rx_dropped"] += len(frames)

    # -- frames ----------------------------------------------------------------------------------

    def move(self) -> int:
        """Transmit, then deliver what was received; returns how much was done. BrokenRing, DmaFault."""
        return self.transmit() + self.deliver()

    def wants_notice(self, queue: int) -> bool:
        """Fresh buffers are news only while frames wait for them."""
        return queue == TX or len(self.waiting) > 0

    def transmit(self) -> int:
        """Send a burst; returns how many chains were taken. BrokenRing, DmaFault."""
        ring = self.rings[TX]
        chains = ring.take(BURST) if ring is not None else []
        if ring is None or not chains:
            return 0
        done: list[int] = []
        plain: list[Segment] = []
        frames: list[bytes] = []
        for head, out, _ in chains:
            done += (head, 0)
            if len(out) == 2 and out[0][1] == len(HEADER) and SHORTEST <= out[1][1] <= LONGEST:
                plain.append(out[1])
                continue
            frames += self.memory.read_all(plain)
            plain.clear()
            frames += self._gather(out)
        frames += self.memory.read_all(plain)
        ring.push(done)
        ring.publish()
        counters = self.counters
        counters["tx_dropped"] += len(chains) - len(frames)
        if self.line is not None:
            if not self.line.send(self, frames):
                counters["tx_dropped"] += len(frames)
                frames = []
        elif self.backend == "loopback":
            self._keep(frames)
        counters["tx_frames"] += len(frames)
        counters["tx_bytes"] += sum(map(len, frames))
        self.queue_interrupt(TX)
        return len(chains)

    def _gather(self, out: list[Segment]) -> list[bytes]:
        """The frame in a chain of any layout without its header, or nothing if it cannot be sent."""
        size = sum(part for _, part in out) - len(HEADER)
        if not SHORTEST <= size <= LONGEST:
            return []
        try:
            read = self.memory.read
            return [b"".join([read(at, part) for at, part in out if part])[len(HEADER) :]]
        except DmaFault:
            return []  # recorded by the domain

    def _keep(self, frames: list[bytes]) -> None:
        room = self.backlog - len(self.waiting)
        if room < len(frames):
            self.counters["rx_dropped"] += len(frames) - room
            frames = frames[:room]
        self.waiting.extend(frames)

    def deliver(self) -> int:
        """Put what waits into the driver's buffers; returns how many frames that ended. BrokenRing, DmaFault."""
        ring, waiting = self.rings[RX], self.waiting
        chains = ring.take(min(BURST, len(waiting))) if ring is not None and waiting else []
        if ring is None or not chains:
            return 0
        done: list[int] = []
        write = self.memory.write
        used = frames = size = 0
        for frame in islice(waiting, len(chains)):
            data = HEADER + frame
            head, _, into = chains[used]
            written = len(data)
            try:
                if len(into) == 1 and written <= into[0][1]:
                    write(into[0][0], data)
                elif not self._scatter(into, data):
                    continue  # too small: the buffer is for the next one
                frames += 1
                size += len(frame)
            except DmaFault:  # recorded by the domain; the buffer goes back empty
                written = 0
            done += (head, written)
            used += 1
        for _ in chains:
            waiting.popleft()
        ring.untake(len(chains) - used)
        counters = self.counters
        counters["rx_frames"] += frames
        counters["rx_bytes"] += size
        counters["rx_dropped"] += len(chains) - frames
        if used:
            ring.push(done)
            ring.publish()
            self.queue_interrupt(RX)
        return len(chains)

    def _scatter(self, into: list[Segment], data: bytes) -> bool:
        """Write ``data`` to the buffers of a chain, or nothing if they are too small. DmaFault."""
        if len(data) > sum(size for _, size in into):
            return False
        at = 0
        for address, size in into:
            part = data[at : at + size]
            if part:
                self.memory.write(address, part)
            at += size
        return True

    def _power_on_mac(self) -> bytearray:
        if self.mac:
            return bytearray.fromhex(self.mac.replace(":", ""))
        return bytearray(b"\x52\x54\x00\x56") + routing_id(self.name).to_bytes(2, "big")
