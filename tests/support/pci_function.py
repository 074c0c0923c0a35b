"""A PCI function made of bytes, and an event that counts: what the tests of vfio-pci drive.

``FakeFunction`` is as dumb as silicon can be: a byte per config register, a mask of what hardware lets be
written, registers that store, an interrupt request that the INTX_DISABLE bit gates. Everything the driver
does to it is in ``log``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from threading import RLock
from typing import TYPE_CHECKING

from uvfio.drivers.pci.hardware import Bar, BarKind, InterruptSink
from uvfio.uapi import pci

if TYPE_CHECKING:
    from uvfio.core.translation.domain import Domain
    from uvfio.core.translation.unit import IommuUnit

DEFAULT_BARS: Mapping[int, Bar] = {
    0: Bar(0x1000),
    1: Bar(0x20, BarKind.IO),
    2: Bar(1 << 33, BarKind.MEMORY64, prefetchable=True),
    4: Bar(0x2000, mappable=True),
    5: Bar(0x100, mappable=True),
}

# Conventional capabilities of the default function: (id, body after the two header bytes, writable bits)
Body = tuple[int, bytes, bytes]
PM: Body = (pci.PCI_CAP_ID_PM, bytes(6), bytes([0, 0, 3, 1, 0, 0]))


def msi(log2: int = 3, *, wide: bool = True, maskable: bool = True) -> Body:
    """An MSI capability for 2**log2 vectors."""
    flags = log2 << 1 | (0x80 if wide else 0) | (0x100 if maskable else 0)
    rest = (10 if wide else 6) + (10 if maskable else 0)
    writable = bytes([0x71, 0]) + b"\xff" * (10 if wide else 6)
    writable += (bytes(2) + b"\xff" * 4 + bytes(4)) if maskable else b""
    return pci.PCI_CAP_ID_MSI, flags.to_bytes(2, "little") + bytes(rest), writable


def msix(entries: int = 16, bir: int = 0, offset: int = 0x800) -> Body:
    """An MSI-X capability with its table in BAR ``bir``."""
    body = (entries - 1).to_bytes(2, "little")
    body += (offset | bir).to_bytes(4, "little") + (offset + 0x400 | bir).to_bytes(4, "little")
    return pci.PCI_CAP_ID_MSIX, body, bytes([0, 0xC0]) + bytes(8)


def express(version: int = 2, length: int = 58) -> Body:
    """A PCI Express endpoint capability, function level reset included."""
    body = bytearray(length)
    body[0] = version
    body[2:6] = pci.PCI_EXP_DEVCAP_FLR.to_bytes(4, "little")
    writable = bytearray(length)
    writable[6:8] = b"\xff\x7f"
    if length > 40:
        writable[38:40] = b"\xff\xff"
    return pci.PCI_CAP_ID_EXP, bytes(body), bytes(writable)


VPD: Body = (pci.PCI_CAP_ID_VPD, bytes(6), b"\xff" * 6)
AF: Body = (pci.PCI_CAP_ID_AF, bytes([6, 3, 0, 0]), bytes(4))
PCIX: Body = (pci.PCI_CAP_ID_PCIX, bytes(6), b"\x7f\0\0\0\0\0")
VENDOR: Body = (pci.PCI_CAP_ID_VNDR, bytes([8, 1, 2, 3, 4, 5]), b"\xff" * 6)
STRANGE: Body = (0x7E, bytes([0xA1, 0xA2, 0xA3, 0xA4, 0xA5, 0xA6]), b"\xff" * 6)

# Extended capabilities: (id, body after the four header bytes, writable bits)
AER: Body = (pci.PCI_EXT_CAP_ID_ERR, bytes(0x44), b"\xff" * 0x14 + bytes(0x30))
SERIAL: Body = (pci.PCI_EXT_CAP_ID_DSN, bytes(range(1, 9)), bytes(8))
POWER_BUDGET: Body = (pci.PCI_EXT_CAP_ID_PWR, bytes(12), b"\xff" + bytes(11))


class FakeFunction:
    """Implements ``PciFunction``."""

    def __init__(
        self,
        *,
        name: str = "0000:06:0d.0",
        bars: Mapping[int, Bar] = DEFAULT_BARS,
        rom: bytes = b"",
        pin: int = 1,
        caps: tuple[Body, ...] = (PM, msi(), msix()),
        extended: tuple[Body, ...] | None = None,
        reset_methods: tuple[str, ...] = ("flr",),
        has_disable_bit: bool = True,
        header_type: int = 0,
    ) -> None:
        self.lock = RLock()
        self.name = name
        self.bus = "pci"
        self.group: int | None = 1
        self.unit: IommuUnit | None = None
        self.physfn: FakeFunction | None = None
        self.virtual_bars: Mapping[int, Bar] = {}
        self.bars = bars
        self.rom = rom
        self.reset_methods = reset_methods
        self.config_size = 256 if extended is None else 4096
        self.log: list[tuple[object, ...]] = []
        self.sink: InterruptSink | None = None
        self.request = False
        self.resets = 0
        self.fail: dict[str, Exception] = {}
        self.where: dict[int, int] = {}
        self.memory = {n: bytearray(bar.size) for n, bar in bars.items() if bar.mappable}
        self.registers: dict[tuple[int, int], int] = {}
        self._initial = bytearray(self.config_size)
        self._writable = bytearray(self.config_size)
        self._build(pin, caps, extended or (), header_type, has_disable_bit)
        self.config = bytearray(self._initial)
        self._wire = False

    def _build(
        self,
        pin: int,
        caps: tuple[Body, ...],
        extended: tuple[Body, ...],
        header_type: int,
        has_disable_bit: bool,
    ) -> None:
        config, writable = self._initial, self._writable
        config[0:4] = bytes.fromhex("34121111")
        config[8:12] = bytes.fromhex("0100ff00")
        config[pci.PCI_HEADER_TYPE] = header_type
        config[0x2C:0x30] = bytes.fromhex("efbeadde")
        config[pci.PCI_INTERRUPT_PIN] = pin
        writable[4:6] = b"\xff\x07" if has_disable_bit else b"\xff\x03"
        writable[0x0C:0x0E] = b"\xff\xff"
        writable[pci.PCI_INTERRUPT_LINE] = 0xFF
        writable[0x10:0x28] = b"\xff" * 24
        writable[0x30:0x34] = b"\xff" * 4
        for index, bar in self.bars.items():
            kind = {BarKind.IO: 1, BarKind.MEMORY64: 4}.get(bar.kind, 0)
            config[0x10 + 4 * index] = kind | (8 if bar.prefetchable else 0)
        pointer, at = pci.PCI_CAPABILITY_LIST, 0x40
        for cap_id, body, mask in caps:
            config[pci.PCI_STATUS] = pci.PCI_STATUS_CAP_LIST
            config[pointer] = at
            config[at] = cap_id
            config[at + 2 : at + 2 + len(body)] = body
            writable[at + 2 : at + 2 + len(mask)] = mask
            self.where[cap_id] = at
            pointer, at = at + 1, (at + 2 + len(body) + 3) & ~3
        last, at = 0, 0x100
        for cap_id, body, mask in extended:
            if last:
                header = int.from_bytes(config[last : last + 4], "little") | at << 20
                config[last : last + 4] = header.to_bytes(4, "little")
            config[at : at + 4] = (1 << 16 | cap_id).to_bytes(4, "little")
            config[at + 4 : at + 4 + len(body)] = body
            writable[at + 4 : at + 4 + len(mask)] = mask
            self.where[0x10000 | cap_id] = at
            last, at = at, (at + 4 + len(body) + 3) & ~3

    def attach(self, domain: Domain) -> None:
        raise AssertionError("the driver does not attach")

    def detach(self) -> None:
        raise AssertionError("the driver does not detach")

    # Configuration space

    def word(self, offset: int, size: int = 2) -> int:
        """A physical register, unlogged."""
        return int.from_bytes(self.config[offset : offset + size], "little")

    def poke(self, offset: int, value: int, size: int = 2) -> None:
        """Change a physical register as the hardware itself would, unlogged."""
        self.config[offset : offset + size] = value.to_bytes(size, "little")

    def config_read(self, offset: int, size: int) -> int:
        assert size in (1, 2, 4)
        assert offset % size == 0
        assert offset + size <= self.config_size
        return self.word(offset, size)

    def config_write(self, offset: int, value: int, size: int) -> None:
        assert size in (1, 2, 4)
        assert offset % size == 0
        assert 0 <= value < 1 << 8 * size
        if "config_write" in self.fail:
            raise self.fail.pop("config_write")
        self.log.append(("config", offset, value, size))
        for n, byte in enumerate(value.to_bytes(size, "little"), offset):
            mask = self._writable[n]
            self.config[n] = self.config[n] & ~mask | byte & mask
        express_at = self.where.get(pci.PCI_CAP_ID_EXP)
        if express_at is not None:
            high = express_at + pci.PCI_EXP_DEVCTL + 1
            if offset <= high < offset + size and value >> 8 * (high - offset) & 0x80:
                self.reset()
        self._update_wire()

    def written(self, offset: int) -> list[tuple[int, int]]:
        """(value, size) of all physical writes to ``offset`` so far."""
        return [
            (entry[2], entry[3])
            for entry in self.log
            if entry[0] == "config" and entry[1] == offset
            if isinstance(entry[2], int) and isinstance(entry[3], int)
        ]

    # BARs

    def bar_read(self, index: int, offset: int, size: int) -> int:
        self.log.append(("read", index, offset, size))
        return self.registers.get((index, offset), 0) & (1 << 8 * size) - 1

    def bar_write(self, index: int, offset: int, value: int, size: int) -> None:
        self.log.append(("write", index, offset, value, size))
        self.registers[index, offset] = value

    def bar_memory(self, index: int) -> memoryview:
        return memoryview(self.memory[index])

    def show_mappings(self, visible: bool) -> None:
        if "show_mappings" in self.fail:
            raise self.fail.pop("show_mappings")
        self.log.append(("show_mappings", visible))

    def end_mappings(self) -> None:
        if "end_mappings" in self.fail:
            raise self.fail.pop("end_mappings")
        self.log.append(("end_mappings",))

    # Interrupts

    @property
    def intx_asserted(self) -> bool:
        return self._wire

    def assert_intx(self, on: bool = True) -> None:
        """The device wants (or no longer wants) attention."""
        self.request = on
        self.config[pci.PCI_STATUS] = (
            self.config[pci.PCI_STATUS] & ~pci.PCI_STATUS_INTERRUPT | on << 3
        )
        self._update_wire()

    def _update_wire(self) -> None:
        level = self.request and not self.word(pci.PCI_COMMAND) & pci.PCI_COMMAND_INTX_DISABLE
        if level != self._wire:
            self._wire = level
            if self.sink is not None:
                self.sink.intx(level)

    def connect(self, sink: InterruptSink | None) -> None:
        self.log.append(("connect", sink is not None))
        self.sink = sink

    def reset(self) -> None:
        if "reset" in self.fail:
            raise self.fail.pop("reset")
        self.log.append(("reset",))
        self.resets += 1
        self.config[:] = self._initial
        self.registers.clear()
        self.request = False
        self._update_wire()


class FakeEvent:
    """Implements ``Event``."""

    def __init__(self) -> None:
        self.count = 0
        self.pending = False
        self.closed = 0
        self.left = False
        self.fail_watch: Exception | None = None
        self.on_signal: Callable[[], None] | None = None
        self._callbacks: list[Callable[[], None]] = []

    def signal(self) -> None:
        assert not self.closed
        self.count += 1
        if self.on_signal is not None:
            self.on_signal()

    def watch(self, callback: Callable[[], None]) -> Callable[[], None]:
        if self.fail_watch is not None:
            raise self.fail_watch
        self._callbacks.append(callback)
        if self.pending:
            self.pending = False
            callback()

        def cancel() -> None:
            if callback in self._callbacks:
                self._callbacks.remove(callback)

        return cancel

    def abandoned(self) -> bool:
        return self.left

    @property
    def watched(self) -> bool:
        return bool(self._callbacks)

    def kick(self) -> None:
        """Somebody else signals."""
        for callback in list(self._callbacks):
            callback()

    def close(self) -> None:
        self.closed += 1
