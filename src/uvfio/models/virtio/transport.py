"""``LegacyVirtio``: what every legacy virtio device has (PCI revision 0), whatever it does with its queues.

BAR 0, I/O, 64 bytes (linux/virtio_pci.h; Virtio 1.2, 4.1.4.10, the legacy interface):

======  =====  ======  ==================================================================================
offset  bytes  access  meaning
======  =====  ======  ==================================================================================
0       4      ro      features offered
4       4      rw      features that the driver takes
8       4      rw      address of the selected queue, in pages of 4096 bytes; 0 takes the queue away
12      2      ro      entries of the selected queue, 0 if there is none
14      2      rw      selects a queue
16      2      wo      notifies a queue
18      1      rw      status; 0 resets everything on this page
19      1      ro      interrupt cause: bit 0 a queue, bit 1 the configuration; reading clears it and lowers INTx
20      44     rw      while MSI-X is enabled: vector for the configuration (2), for the selected queue (2);
                       then, or else at once, what kind of device it is says what
======  =====  ======  ==================================================================================

BAR 1, with option ``msix``: the MSI-X table.

When the device looks at its rings. A notification is served before the access ends. From then on the device looks by
itself, once in each turn of the serving loop, and the driver need not notify (VRING_USED_F_NO_NOTIFY). After ``poll``
turns in vain it asks for notifications again, looks once more, and sleeps. So a busy driver makes no call at all, an
idle one costs nothing, and no thread is needed. Where waiting does not pay, because the driver wants the same CPU,
the device waits half as long each time, and tries in full only now and then.

A ring that makes no sense, or is not mapped, stops the device: status bit 6 (needs reset) is set, ``stopped_because``
says why, and nothing moves until the driver resets it. The driver's reset, function reset and power-on forget rings
and interrupt vectors; ``counters`` go on.

What a device does with its queues is the subclass's: ``move`` and ``wants_notice``. ``ring.py`` has the rings.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from uvfio.errors import BrokenRing
from uvfio.kit import (
    AdvancedFeatures,
    BarKind,
    Capability,
    DmaFault,
    MsiX,
    Option,
    PciModel,
    Register,
    RegisterArray,
    RegisterBar,
    RegisterMap,
    not_negative,
)
from uvfio.kit.dma_window import DmaWindows
from uvfio.models.virtio.ring import SplitRing
from uvfio.uapi import virtio

if TYPE_CHECKING:
    from uvfio.kit import Timer

__all__ = ["LegacyVirtio", "VirtioRegisters"]

CONFIG_AT = virtio.VIRTIO_MSI_CONFIG_VECTOR  # of the bytes that MSI-X moves
VECTOR_BYTES = 4
ISR_QUEUE = 1  # the header names the other bit only
WORTH_WAITING = 200e-6  # seconds: what takes longer could have been notified
PROBE = 64  # naps from one try of the full patience to the next
OK, NEEDS_RESET = virtio.VIRTIO_CONFIG_S_DRIVER_OK, virtio.VIRTIO_CONFIG_S_NEEDS_RESET


def _power_of_two(size: int) -> str:
    fits = 2 <= size <= 32768 and size & (size - 1) == 0
    return "" if fits else "is not a power of two from 2 to 32768"


def _vectors(count: int) -> str:
    return "" if 0 <= count <= 2048 else "is not 0 to 2048"


class VirtioRegisters(RegisterMap):
    """BAR 0."""

    features = Register(0, access="ro", doc="offered")
    driver_features = Register(4, doc="taken")
    queue_address = Register(8, doc="of the selected queue, in pages")
    queue_size = Register(12, 2, access="ro", doc="of the selected queue, in entries")
    queue_select = Register(14, 2)
    queue_notify = Register(16, 2, access="wo")
    status = Register(
        18, 1, fields={"acknowledge": 0, "driver": 1, "driver_ok": 2, "needs_reset": 6, "failed": 7}
    )
    isr = Register(19, 1, access="ro", fields={"queue": 0, "config": 1}, doc="reading clears it")
    device = RegisterArray(CONFIG_AT, 1, count=44, doc="MSI-X vectors if enabled, configuration")


class LegacyVirtio(PciModel):
    """Base of legacy virtio devices. ``queues`` is how many there are; see the module's head."""

    vendor_id = virtio.PCI_VENDOR_ID_REDHAT_QUMRANET
    subsystem_vendor_id = virtio.PCI_VENDOR_ID_REDHAT_QUMRANET
    capabilities = (MsiX(3, bar=1), AdvancedFeatures())
    queues: ClassVar[int] = 1

    queue_entries = Option(int, 256, "entries of each ring", check=_power_of_two)
    poll = Option(int, 64, "turns in vain before the device sleeps", check=not_negative)
    msix = Option(int, 3, "MSI-X vectors, 0 for no capability and no BAR 1", check=_vectors)

    regs = RegisterBar(0, VirtioRegisters, size=64, kind=BarKind.IO)

    def __init__(self, address: str, **surroundings: Any) -> None:
        self.counters = dict.fromkeys(("notifications", "turns", "interrupts", "stops"), 0)
        self.stopped_because = ""
        super().__init__(address, **surroundings)
        self.memory = DmaWindows(self.dma)

    def build_capabilities(self) -> tuple[Capability, ...]:
        """MSI-X with as many vectors as the option ``msix``, none for 0, and the other capabilities of the
        class."""
        msix = (MsiX(self.msix, bar=1),) if self.msix else ()
        return (*msix, *(cap for cap in self.capabilities if not isinstance(cap, MsiX)))

    # -- for kinds of devices --------------------------------------------------------------------

    def offered(self) -> int:
        """The features, as a set of bits."""
        return 1 << virtio.VIRTIO_F_ANY_LAYOUT

    def configuration(self) -> bytes:
        """What is behind the common registers now."""
        return b""

    def configuration_written(self, index: int, value: int) -> None:
        """The driver wrote one byte of it."""

    def move(self) -> int:
        """Do a bounded amount of work on ``rings``, which may be None; how much it was. BrokenRing, DmaFault."""
        return 0

    def wants_notice(self, queue: int) -> bool:
        """Whether a notification of ``queue`` would be any use while the device sleeps."""
        return True

    def on_reset(self) -> None:
        """The features that are offered; the driver is forgotten."""
        self.regs.features = self.offered()
        self.forget_driver()

    def forget_driver(self) -> None:
        """What writing 0 to the status does: no rings, no causes, no vectors."""
        regs = self.regs
        regs.driver_features = regs.queue_select = regs.isr = 0
        self.intx(False)
        self.rings: list[SplitRing | None] = [None] * self.queues
        self.vectors = [virtio.VIRTIO_MSI_NO_VECTOR] * (self.queues + 1)  # the last: configuration
        self.idle = self.naps = 0
        self.moved_at = 0.0
        self.patience = self.poll
        self.stopped_because = ""
        self.next_turn: Timer | None = None

    def statistics(self) -> dict[str, int]:
        """The counters since the device was made."""
        return dict(self.counters)

    # -- registers -------------------------------------------------------------------------------

    @VirtioRegisters.queue_size.on_read
    def read_queue_size(self) -> int:
        """The size of the selected queue; 0 if there is none."""
        return self.queue_entries if self.regs.queue_select < self.queues else 0

    @VirtioRegisters.queue_address.on_read
    def read_queue_address(self) -> int:
        """The page number of the selected queue; 0 if it is not in use."""
        selected = self.regs.queue_select
        ring = self.rings[selected] if selected < self.queues else None
        return ring.address >> virtio.VIRTIO_PCI_QUEUE_ADDR_SHIFT if ring is not None else 0

    @VirtioRegisters.queue_address.on_write
    def place_queue(self, pages: int) -> None:
        """Put the selected queue at page ``pages``; 0 stops it."""
        if self.regs.queue_select < self.queues:
            address = pages << virtio.VIRTIO_PCI_QUEUE_ADDR_SHIFT
            made = SplitRing(self.memory, address, self.queue_entries) if pages else None
            self.rings[self.regs.queue_select] = made

    @VirtioRegisters.driver_features.on_store
    def take_features(self, old: int, new: int) -> int:
        """The driver accepts features, of those that are offered."""
        return new & self.regs.features

    @VirtioRegisters.status.on_store
    def status_written(self, old: int, new: int) -> int:
        """The driver changes the device status; 0 resets the device."""
        if new == 0:
            if self.next_turn is not None:
                self.next_turn.cancel()
            self.forget_driver()
            return 0
        if new & OK and not old & OK:
            self.look_soon()
        return new | old & NEEDS_RESET

    @VirtioRegisters.isr.on_read
    def read_isr(self) -> int:
        """The interrupt causes, which the read clears; INTx drops."""
        causes = self.regs.isr
        self.regs.isr = 0
        self.intx(False)
        return causes

    @VirtioRegisters.queue_notify.on_write
    def notified(self, queue: int) -> None:
        """The driver has made chains of ``queue`` available."""
        self.counters["notifications"] += 1
        if queue < self.queues:
            self.look()

    @VirtioRegisters.device.on_read
    def read_device(self, index: int) -> int:
        """A byte behind the common registers: of the vectors while MSI-X is enabled, then of the configuration."""
        if self.interrupts.msix_enabled:
            if index < VECTOR_BYTES:
                slot = self._vector_slot(index)
                vector = virtio.VIRTIO_MSI_NO_VECTOR if slot is None else self.vectors[slot]
                known = vector if vector < self.msix else virtio.VIRTIO_MSI_NO_VECTOR
                return known >> 8 * (index & 1) & 0xFF
            index -= VECTOR_BYTES
        config = self.configuration()
        return config[index] if index < len(config) else 0

    @VirtioRegisters.device.on_store
    def write_device(self, index: int, old: int, new: int) -> int:
        """Store a byte behind the common registers; see ``read_device``."""
        if not self.interrupts.msix_enabled:
            self.configuration_written(index, new)
        elif index >= VECTOR_BYTES:
            self.configuration_written(index - VECTOR_BYTES, new)
        else:
            slot, shift = self._vector_slot(index), 8 * (index & 1)
            if slot is not None:
                self.vectors[slot] = self.vectors[slot] & ~(0xFF << shift) | new << shift
        return 0

    def _vector_slot(self, index: int) -> int | None:
        """Where the vector is kept that byte ``index`` belongs to; None for a queue that there is not."""
        if index < 2:
            return self.queues
        return self.regs.queue_select if self.regs.queue_select < self.queues else None

    # -- looking at the rings --------------------------------------------------------------------

    @property
    def running(self) -> bool:
        """Whether a driver has said that it is ready, and its rings have made sense since."""
        return self.regs.status & (OK | NEEDS_RESET) == OK

    def look_soon(self) -> None:
        """In the next turn of the serving loop."""
        if self.next_turn is None:
            self.next_turn = self.after(0, self._turn)

    def _turn(self) -> None:
        self.next_turn = None
        self.counters["turns"] += 1
        self.look()

    def look(self) -> None:
        """Move what is there; look again soon, or go to sleep."""
        if not self.running:
            return
        try:
            self.memory.refresh()
            for ring in self.rings:
                if ring is not None:
                    ring.refresh()
            if self.move():
                now = self.clock.monotonic()
                if self.idle:
                    paid = now - self.moved_at < WORTH_WAITING
                    self.patience = self.poll if paid else self.patience // 2
                self.idle, self.moved_at = 0, now
            else:
                self.idle += 1
            tired = self.idle > self.patience
            late = self._listen(tired)
            if tired:
                self.idle = 0
                self.naps += 1
                self.patience = self.patience // 2 if self.naps % PROBE else self.poll
            if late or not tired:
                self.look_soon()
        except (BrokenRing, DmaFault) as why:
            self.stop(str(why))

    def _listen(self, wanted: bool) -> bool:
        """Ask for notifications, or not. True: they are wanted, and something came before they were."""
        late = False
        for queue, ring in enumerate(self.rings):
            if ring is not None:
                useful = wanted and self.wants_notice(queue)
                late |= ring.listen(useful) and useful
        return late

    def stop(self, why: str) -> None:
        """Until the driver resets the device nothing moves."""
        self.counters["stops"] += 1
        self.stopped_because = why
        self.regs.status |= NEEDS_RESET
        self.config_interrupt()

    # -- interrupts ------------------------------------------------------------------------------

    def queue_interrupt(self, queue: int) -> None:
        """Tell the driver of what was published in ``queue``, if it wants to know. DmaFault."""
        ring = self.rings[queue]
        if ring is not None and ring.interrupts_wanted:
            self._interrupt(self.vectors[queue], ISR_QUEUE)

    def config_interrupt(self) -> None:
        """Tell a driver that is there of a change of configuration or status."""
        if self.regs.status & OK:
            self._interrupt(self.vectors[self.queues], virtio.VIRTIO_PCI_ISR_CONFIG)

    def _interrupt(self, vector: int, cause: int) -> None:
        """By MSI-X if the host enabled it and the driver chose a vector, else by INTx and its cause."""
        if not self.interrupts.msix_enabled:
            self.regs.isr |= cause
            self.intx(True)
        elif vector < self.msix:
            self.interrupt(vector)
        else:
            return
        self.counters["interrupts"] += 1
