"""The first 64 bytes of a function's configuration space (header type 0): which bits exist and can change.

Layout and power-on values of PCI Local Bus 3.0, chapter 6, and PCI Express Base where it differs (no latency
timer). Base address registers size themselves as silicon does: address bits below the size read 0. An enable
bit of the command register exists where there is something to enable.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from uvfio.drivers.pci.hardware import BarKind
from uvfio.kit.pci.bar import power_of_two
from uvfio.uapi import pci

if TYPE_CHECKING:
    from collections.abc import Mapping

    from uvfio.drivers.pci.hardware import Bar
    from uvfio.kit.pci.config import ConfigSpace

__all__ = ["Identity", "define_bars", "define_command", "define_identity", "padded_rom"]

_ROM_LEAST = 2048
_ROM_MOST = 16 << 20


class Identity(Protocol):
    """What the header says about the function; attributes as in ``PciModel``."""

    vendor_id: int
    device_id: int
    revision: int
    class_code: int
    subsystem_vendor_id: int
    subsystem_id: int
    interrupt_pin: int
    multifunction: bool


def define_identity(
    config: ConfigSpace, function: Identity, express: bool, *, virtual: bool = False
) -> None:
    """Everything that neither BARs nor command and status say. ``virtual``: of a virtual function."""
    config.define(pci.PCI_VENDOR_ID, 2, 0xFFFF if virtual else function.vendor_id)
    config.define(pci.PCI_DEVICE_ID, 2, 0xFFFF if virtual else function.device_id)
    config.define(pci.PCI_CLASS_REVISION, 4, function.class_code << 8 | function.revision)
    config.define(pci.PCI_CACHE_LINE_SIZE, 1, 0, writable=0xFF)
    config.define(pci.PCI_LATENCY_TIMER, 1, 0, writable=0 if express else 0xF8)
    config.define(pci.PCI_HEADER_TYPE, 1, 0x80 if function.multifunction else 0)
    config.define(pci.PCI_SUBSYSTEM_VENDOR_ID, 2, function.subsystem_vendor_id)
    config.define(pci.PCI_SUBSYSTEM_ID, 2, function.subsystem_id)
    config.define(pci.PCI_INTERRUPT_LINE, 1, 0, writable=0 if virtual else 0xFF)
    config.define(pci.PCI_INTERRUPT_PIN, 1, 0 if virtual else function.interrupt_pin)


def define_bars(
    config: ConfigSpace, bars: Mapping[int, Bar], start: int = pci.PCI_BASE_ADDRESS_0
) -> None:
    """The base address registers, the first of which is at ``start``."""
    for index, bar in bars.items():
        at = start + 4 * index
        address = (1 << 64) - bar.size
        if bar.kind is BarKind.IO:
            flags = pci.PCI_BASE_ADDRESS_SPACE_IO
        else:
            flags = pci.PCI_BASE_ADDRESS_MEM_PREFETCH if bar.prefetchable else 0
        if bar.kind is BarKind.MEMORY64:
            flags |= pci.PCI_BASE_ADDRESS_MEM_TYPE_64
            config.define(at + 4, 4, 0, writable=address >> 32)
        config.define(at, 4, flags, writable=address & 0xFFFFFFFF)


def define_command(
    config: ConfigSpace, bars: Mapping[int, Bar], rom_size: int, *, virtual: bool = False
) -> None:
    """Command and status, and the ROM's base address register if there is a ROM.

    The I/O bit can be set in any function, as in QEMU's (pci_init_wmask in hw/pci/pci.c); the specification lets
    one without I/O BARs wire it to 0. A virtual function has bus mastering only.
    """
    command = pci.PCI_COMMAND_MASTER
    kinds = {bar.kind for bar in bars.values()}
    if not virtual:
        command |= pci.PCI_COMMAND_PARITY | pci.PCI_COMMAND_IO
        command |= pci.PCI_COMMAND_SERR | pci.PCI_COMMAND_INTX_DISABLE
        if kinds - {BarKind.IO} or rom_size:
            command |= pci.PCI_COMMAND_MEMORY
    config.define(pci.PCI_COMMAND, 2, 0, writable=command)
    errors = pci.PCI_STATUS_PARITY | pci.PCI_STATUS_DETECTED_PARITY
    errors |= pci.PCI_STATUS_SIG_SYSTEM_ERROR | pci.PCI_STATUS_SIG_TARGET_ABORT
    errors |= pci.PCI_STATUS_REC_MASTER_ABORT | pci.PCI_STATUS_REC_TARGET_ABORT
    config.define(pci.PCI_STATUS, 2, 0, w1c=errors)
    if rom_size:
        writable = (1 << 32) - rom_size | pci.PCI_ROM_ADDRESS_ENABLE
        config.define(pci.PCI_ROM_ADDRESS, 4, 0, writable=writable)


def padded_rom(image: bytes) -> bytes:
    """``image`` filled up with 0xff to a size that a ROM BAR can have; empty stays empty. ValueError."""
    if not image:
        return b""
    padded = image.ljust(power_of_two(len(image), _ROM_LEAST), b"\xff")
    if len(padded) > _ROM_MOST:
        raise ValueError(f"a ROM of {len(padded):#x} bytes exceeds {_ROM_MOST:#x}")
    return padded
