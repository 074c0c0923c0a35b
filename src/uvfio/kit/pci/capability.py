"""Capabilities of a function as facts, and the registers that each one puts into configuration space.

A model lists them: ``capabilities = (PowerManagement(), Msi(4), PciExpress(flr=True))``. ``place`` chains the
conventional ones from 0x40 on and the extended ones from 0x100 on, in the order listed and aligned to 4
bytes; ``offset`` puts one where real hardware has it. Layouts follow PCI Local Bus 3.0, PCI Express Base and
the names of linux/pci_regs.h.

What the registers *do* is not here: interrupts are in ``interrupt.py``, resets and power in ``pci.py``. A value
outside the specification is a ValueError when the capability is made.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, TypeVar

from uvfio.uapi import pci

if TYPE_CHECKING:
    from collections.abc import Sequence

    from uvfio.kit.pci.config import ConfigSpace

__all__ = [
    "AdvancedErrorReporting",
    "AdvancedFeatures",
    "Capability",
    "ExtendedCapability",
    "Msi",
    "MsiX",
    "PciExpress",
    "PowerManagement",
    "RawCapability",
    "RawExtendedCapability",
    "SerialNumber",
    "VendorSpecific",
    "place",
]


C = TypeVar("C", bound="Capability")


class Capability(ABC):
    """Base of the conventional ones. ``number`` is the capability ID, ``size`` its bytes with the header's two,
    ``offset`` where it is, 0 for the next free place. Constant once made.

    Plain classes, not dataclasses: making those takes a millisecond each when the module is imported.
    """

    number: int
    size: int
    offset: int

    def __repr__(self) -> str:
        facts = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__name__}({facts})"

    @abstractmethod
    def define(self, config: ConfigSpace, base: int) -> None:
        """Define every register after the header (ID and next pointer), at ``base`` in ``config``."""


class ExtendedCapability(Capability):
    """Base of the extended ones (PCI Express); the header has four bytes with a version."""

    version = 1


class PowerManagement(Capability):
    """States D0 and D3hot. ``soft_reset``: the way back from D3hot resets the function (No_Soft_Reset = 0),
    which makes "pm" a reset method."""

    number = pci.PCI_CAP_ID_PM
    size = pci.PCI_PM_SIZEOF

    def __init__(self, soft_reset: bool = True, offset: int = 0) -> None:
        self.soft_reset = soft_reset
        self.offset = offset

    def define(self, config: ConfigSpace, base: int) -> None:
        """Define every register after the header (ID and next pointer), at ``base`` in ``config``."""
        config.define(base + pci.PCI_PM_PMC, 2, 3)
        state = 0 if self.soft_reset else pci.PCI_PM_CTRL_NO_SOFT_RESET
        config.define(base + pci.PCI_PM_CTRL, 2, state, writable=pci.PCI_PM_CTRL_STATE_MASK)


class Msi(Capability):
    """Message signalled interrupts: 1, 2, 4 ... 32 ``vectors``; ``maskable`` adds mask and pending bits."""

    number = pci.PCI_CAP_ID_MSI

    def __init__(
        self,
        vectors: int = 1,
        *,
        address64: bool = True,
        maskable: bool = False,
        offset: int = 0,
    ) -> None:
        if vectors not in (1, 2, 4, 8, 16, 32):
            raise ValueError(f"MSI vectors must be 1, 2, 4, 8, 16 or 32, not {vectors}")
        self.vectors = vectors
        self.address64 = address64
        self.maskable = maskable
        self.offset = offset
        self.size = 10 + 4 * address64 + 10 * maskable
        self.mask_at = pci.PCI_MSI_MASK_64 if address64 else pci.PCI_MSI_MASK_32
        """Offset of the mask register in the capability; the pending register follows."""

    def define(self, config: ConfigSpace, base: int) -> None:
        """Define every register after the header (ID and next pointer), at ``base`` in ``config``."""
        flags = (self.vectors.bit_length() - 1) << 1
        if self.address64:
            flags |= pci.PCI_MSI_FLAGS_64BIT
            config.define(base + pci.PCI_MSI_ADDRESS_HI, 4, 0, writable=0xFFFFFFFF)
        if self.maskable:
            flags |= pci.PCI_MSI_FLAGS_MASKBIT
            config.define(base + self.mask_at, 4, 0, writable=(1 << self.vectors) - 1)
        writable = pci.PCI_MSI_FLAGS_ENABLE | pci.PCI_MSI_FLAGS_QSIZE
        config.define(base + pci.PCI_MSI_FLAGS, 2, flags, writable=writable)
        config.define(base + pci.PCI_MSI_ADDRESS_LO, 4, 0, writable=0xFFFFFFFC)
        data = pci.PCI_MSI_DATA_64 if self.address64 else pci.PCI_MSI_DATA_32
        config.define(base + data, 2, 0, writable=0xFFFF)


class MsiX(Capability):
    """MSI-X: 1 to 2048 ``vectors``. The table is in BAR ``bar`` at ``table``, the pending bits at ``pba`` (None:
    right behind). A BAR that the model does not declare is made for them; any other may be registers, polled or not, or
    memory (``msix.py``)."""

    number = pci.PCI_CAP_ID_MSIX
    size = pci.PCI_CAP_MSIX_SIZEOF

    def __init__(
        self, vectors: int, bar: int, table: int = 0, pba: int | None = None, *, offset: int = 0
    ) -> None:
        if not 1 <= vectors <= 2048:
            raise ValueError(f"MSI-X vectors must be 1 to 2048, not {vectors}")
        if not 0 <= bar <= 5:
            raise ValueError(f"MSI-X BAR must be 0 to 5, not {bar}")
        self.vectors = vectors
        self.bar = bar
        self.offset = offset
        self.table = table
        self.table_size = vectors * pci.PCI_MSIX_ENTRY_SIZE
        self.pba = table + self.table_size if pba is None else pba
        self.pba_size = (vectors + 63) // 64 * 8  # whole quad words
        self.end = max(table + self.table_size, self.pba + self.pba_size)
        """The first byte of the BAR behind both."""
        for name, start in (("table", self.table), ("pba", self.pba)):
            if start < 0 or start % 8:
                raise ValueError(f"MSI-X {name} {start:#x} is not a multiple of 8")
        if self.table < self.pba + self.pba_size and self.pba < self.table + self.table_size:
            raise ValueError(f"MSI-X table {self.table:#x} and pba {self.pba:#x} overlap")

    def define(self, config: ConfigSpace, base: int) -> None:
        """Define every register after the header (ID and next pointer), at ``base`` in ``config``."""
        writable = pci.PCI_MSIX_FLAGS_MASKALL | pci.PCI_MSIX_FLAGS_ENABLE
        config.define(base + pci.PCI_MSIX_FLAGS, 2, self.vectors - 1, writable=writable)
        config.define(base + pci.PCI_MSIX_TABLE, 4, self.table | self.bar)
        config.define(base + pci.PCI_MSIX_PBA, 4, self.pba | self.bar)


class PciExpress(Capability):
    """An endpoint, capability version 2. ``speed`` is the generation 1-6, ``width`` the lanes of its link.
    Having it makes the configuration space 4096 bytes; ``flr`` makes "flr" a reset method."""

    number = pci.PCI_CAP_ID_EXP
    size = 60

    def __init__(
        self, flr: bool = True, *, speed: int = 1, width: int = 1, offset: int = 0
    ) -> None:
        if not 1 <= speed <= 6:
            raise ValueError(f"PCI Express speed must be 1 to 6, not {speed}")
        if width not in (1, 2, 4, 8, 12, 16, 32):
            raise ValueError(f"PCI Express width must be 1, 2, 4, 8, 12, 16 or 32, not {width}")
        self.flr = flr
        self.speed = speed
        self.width = width
        self.offset = offset

    def define(self, config: ConfigSpace, base: int) -> None:
        """Define every register after the header (ID and next pointer), at ``base`` in ``config``."""
        link = self.speed | self.width << pci.PCI_EXP_LNKSTA_NLW_SHIFT
        devcap = pci.PCI_EXP_DEVCAP_RBER | (pci.PCI_EXP_DEVCAP_FLR if self.flr else 0)
        control = 0x7FFF & ~(pci.PCI_EXP_DEVCTL_PHANTOM | pci.PCI_EXP_DEVCTL_AUX_PME)
        link_control = (
            pci.PCI_EXP_LNKCTL_ASPMC
            | pci.PCI_EXP_LNKCTL_RCB
            | pci.PCI_EXP_LNKCTL_CCC
            | pci.PCI_EXP_LNKCTL_ES
        )
        config.define(base + pci.PCI_EXP_FLAGS, 2, 2 | pci.PCI_EXP_TYPE_ENDPOINT << 4)
        config.define(base + pci.PCI_EXP_DEVCAP, 4, devcap)
        config.define(
            base + pci.PCI_EXP_DEVCTL,
            2,
            pci.PCI_EXP_DEVCTL_RELAX_EN
            | pci.PCI_EXP_DEVCTL_NOSNOOP_EN
            | pci.PCI_EXP_DEVCTL_READRQ_512B,
            writable=control | (pci.PCI_EXP_DEVCTL_BCR_FLR if self.flr else 0),
        )
        errors = (
            pci.PCI_EXP_DEVSTA_CED
            | pci.PCI_EXP_DEVSTA_NFED
            | pci.PCI_EXP_DEVSTA_FED
            | pci.PCI_EXP_DEVSTA_URD
        )
        config.define(base + pci.PCI_EXP_DEVSTA, 2, 0, w1c=errors)
        config.define(base + pci.PCI_EXP_LNKCAP, 4, link)
        config.define(base + pci.PCI_EXP_LNKCTL, 2, 0, writable=link_control)
        config.define(base + pci.PCI_EXP_LNKSTA, 2, link)
        config.define(base + pci.PCI_EXP_DEVCAP2, 4, pci.PCI_EXP_DEVCAP2_COMP_TMOUT_DIS)
        config.define(base + pci.PCI_EXP_DEVCTL2, 2, 0, writable=pci.PCI_EXP_DEVCTL2_COMP_TMOUT_DIS)
        config.define(base + pci.PCI_EXP_LNKCAP2, 4, (2 << self.speed) - 2)
        config.define(base + pci.PCI_EXP_LNKCTL2, 2, self.speed, writable=pci.PCI_EXP_LNKCTL2_TLS)


class AdvancedFeatures(Capability):
    """Function level reset for conventional PCI; makes "af_flr" a reset method."""

    number = pci.PCI_CAP_ID_AF
    size = pci.PCI_CAP_AF_SIZEOF

    def __init__(self, offset: int = 0) -> None:
        self.offset = offset

    def define(self, config: ConfigSpace, base: int) -> None:
        """Define every register after the header (ID and next pointer), at ``base`` in ``config``."""
        config.define(base + pci.PCI_AF_LENGTH, 1, pci.PCI_CAP_AF_SIZEOF)
        config.define(base + pci.PCI_AF_CAP, 1, pci.PCI_AF_CAP_TP | pci.PCI_AF_CAP_FLR)
        config.define(base + pci.PCI_AF_CTRL, 1, 0, writable=pci.PCI_AF_CTRL_FLR)


class RawCapability(Capability):
    """Any other one: ``body`` is what follows the two bytes of the header, ``writable`` the mask of its bits
    (shorter: the rest is read-only)."""

    def __init__(self, number: int, body: bytes, writable: bytes = b"", *, offset: int = 0) -> None:
        self.number = number
        self.body = body
        self.writable = writable
        self.offset = offset
        self.size = 2 + len(body)

    def define(self, config: ConfigSpace, base: int) -> None:
        """Define every register after the header (ID and next pointer), at ``base`` in ``config``."""
        _define_bytes(config, base + 2, self.body, self.writable)


class VendorSpecific(Capability):
    """ID 09: ``body`` follows the length byte, which is filled in."""

    number = pci.PCI_CAP_ID_VNDR

    def __init__(self, body: bytes, writable: bytes = b"", *, offset: int = 0) -> None:
        self.body = body
        self.writable = writable
        self.offset = offset
        self.size = 3 + len(body)

    def define(self, config: ConfigSpace, base: int) -> None:
        """Define every register after the header (ID and next pointer), at ``base`` in ``config``."""
        config.define(base + pci.PCI_CAP_FLAGS, 1, self.size)
        _define_bytes(config, base + 3, self.body, self.writable)


class AdvancedErrorReporting(ExtendedCapability):
    """AER: status bits clear by writing 1, masks and severities are storage. No error is ever reported."""

    number = pci.PCI_EXT_CAP_ID_ERR
    version = 2
    size = 0x48
    _uncorrectable = 0x003FF030
    _fatal = 0x00062030  # power-on severity, PCI Express Base 7.8.4.4
    _correctable = 0x000031C1

    def __init__(self, offset: int = 0) -> None:
        self.offset = offset

    def define(self, config: ConfigSpace, base: int) -> None:
        """Define every register after the header (ID and next pointer), at ``base`` in ``config``."""
        config.define(base + pci.PCI_ERR_UNCOR_STATUS, 4, 0, w1c=self._uncorrectable)
        config.define(base + pci.PCI_ERR_UNCOR_MASK, 4, 0, writable=self._uncorrectable)
        config.define(base + pci.PCI_ERR_UNCOR_SEVER, 4, self._fatal, writable=self._uncorrectable)
        config.define(base + pci.PCI_ERR_COR_STATUS, 4, 0, w1c=self._correctable)
        config.define(
            base + pci.PCI_ERR_COR_MASK, 4, pci.PCI_ERR_COR_ADV_NFAT, writable=self._correctable
        )
        config.define(base + pci.PCI_ERR_CAP, 4, 0)


class SerialNumber(ExtendedCapability):
    """The 64-bit device serial number."""

    number = pci.PCI_EXT_CAP_ID_DSN
    size = pci.PCI_EXT_CAP_DSN_SIZEOF

    def __init__(self, serial: int, *, offset: int = 0) -> None:
        self.serial = serial
        self.offset = offset

    def define(self, config: ConfigSpace, base: int) -> None:
        """Define every register after the header (ID and next pointer), at ``base`` in ``config``."""
        config.define(base + 4, 8, self.serial)


class RawExtendedCapability(ExtendedCapability):
    """Any other extended one, version 1: ``body`` follows the four bytes of the header."""

    def __init__(self, number: int, body: bytes, writable: bytes = b"", *, offset: int = 0) -> None:
        self.number = number
        self.body = body
        self.writable = writable
        self.offset = offset
        self.size = 4 + len(body)

    def define(self, config: ConfigSpace, base: int) -> None:
        """Define every register after the header (ID and next pointer), at ``base`` in ``config``."""
        _define_bytes(config, base + 4, self.body, self.writable)


def place(config: ConfigSpace, capabilities: Sequence[Capability]) -> dict[type[Capability], int]:
    """Chain and define them; returns where the first of each class is.

    ValueError if they overlap, leave the space, or an extended one has no header at 0x100 to hang on.
    """
    plain = [c for c in capabilities if not isinstance(c, ExtendedCapability)]
    extended = [c for c in capabilities if isinstance(c, ExtendedCapability)]
    where: dict[type[Capability], int] = {}
    previous = pci.PCI_CAPABILITY_LIST
    for cap, base in _addresses(plain, pci.PCI_STD_HEADER_SIZEOF, pci.PCI_CFG_SPACE_SIZE):
        where.setdefault(type(cap), base)
        config.put(previous, 1, base)
        config.define(base, 2, cap.number)
        cap.define(config, base)
        previous = base + pci.PCI_CAP_LIST_NEXT
    if plain:
        status = config.get(pci.PCI_STATUS, 2) | pci.PCI_STATUS_CAP_LIST
        config.put(pci.PCI_STATUS, 2, status)
    found = _addresses(extended, pci.PCI_CFG_SPACE_SIZE, config.size)
    if found and found[0][1] != pci.PCI_CFG_SPACE_SIZE:
        raise ValueError(f"the first extended capability is at {found[0][1]:#x}, not at 0x100")
    for i, (cap, base) in enumerate(found):
        where.setdefault(type(cap), base)
        after = found[i + 1][1] if i + 1 < len(found) else 0
        config.define(base, 4, cap.number | cap.version << 16 | after << 20)
        cap.define(config, base)
    return where


def _addresses(capabilities: Sequence[C], start: int, end: int) -> list[tuple[C, int]]:
    found: list[tuple[C, int]] = []
    lowest = start
    for cap in capabilities:
        base = cap.offset or start
        clash = any(base < at + other.size and at < base + cap.size for other, at in found)
        if clash or base % 4 or not lowest <= base <= end - cap.size:
            raise ValueError(
                f"{cap} at {base:#x} is unaligned, overlaps another or leaves {lowest:#x}-{end:#x}"
            )
        found.append((cap, base))
        start = max(start, (base + cap.size + 3) & ~3)
    return found


def _define_bytes(config: ConfigSpace, base: int, body: bytes, writable: bytes) -> None:
    if len(writable) > len(body):
        raise ValueError(f"a writable mask of {len(writable)} bytes for {len(body)} bytes")
    mask = int.from_bytes(writable, "little")
    config.define(base, len(body), int.from_bytes(body, "little"), writable=mask)
