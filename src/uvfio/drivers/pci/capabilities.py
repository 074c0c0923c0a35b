"""What a program may see and change of each PCI capability: tables, and the walk that places them.

One ``Field`` says for some bytes of a structure which bits are *virtual* (live in the driver's copy, the
hardware never sees them), which are *writable* by a program, and which the driver *saves* before the
program gets the device and restores afterwards. A bit that is neither is the hardware's and read-only.

    virtual  writable
       no       no      reads the hardware, writes are dropped
       no      yes      passes through
      yes      yes      plain storage (config.py gives some of it a meaning)
      yes       no      frozen at the value it had when the device was opened

``survey`` walks both capability lists of a function once and answers a ``CapabilityMap``: where everything
is, and one mask per 32-bit word. Bytes that no structure covers are not *known*: they read 0 and take no
writes, because the effect of a write there is unknown. The first 64 bytes are always known.

A capability that has no entry in the tables is visible and read-only from its header to the next structure.
Lists that loop, leave the space or overlap are cut, never followed twice: silicon may be wrong, the driver
must not hang.

Does not: write to the function, or know the values of anything but lists and sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from uvfio.uapi import pci

if TYPE_CHECKING:
    from uvfio.drivers.pci.hardware import PciFunction

__all__ = ["HEADER_FIELDS", "Capability", "CapabilityMap", "Field", "survey"]

ALL = -1  # every bit of the field, whatever its width


@dataclass(frozen=True, slots=True)
class Field:
    """``width`` bytes at ``offset`` of a structure with their three masks (``ALL``: every bit)."""

    offset: int
    width: int
    virtual: int = 0
    writable: int = 0
    saved: int = 0


@dataclass(frozen=True, slots=True)
class Capability:
    """One structure of a function: ``length`` bytes at ``offset``. ``extended``: found beyond byte 255."""

    id: int
    offset: int
    length: int
    extended: bool = False


@dataclass(frozen=True, slots=True)
class CapabilityMap:
    """All structures of one function, and the masks of its space as one integer per 32-bit word.

    ``saved`` lists (offset, width, mask) of what outlives a program, in the order of the space; the command
    register and the BARs are not in it: their restoring has an order of its own.
    """

    capabilities: tuple[Capability, ...]
    known: tuple[int, ...]
    virtual: tuple[int, ...]
    writable: tuple[int, ...]
    saved: tuple[tuple[int, int, int], ...]

    def find(self, cap_id: int) -> int:
        """Offset of the first conventional capability ``cap_id``, or 0."""
        for cap in self.capabilities:
            if cap.id == cap_id and not cap.extended:
                return cap.offset
        return 0


HEADER_FIELDS = (
    Field(pci.PCI_VENDOR_ID, 2, virtual=ALL),
    Field(pci.PCI_DEVICE_ID, 2, virtual=ALL),
    Field(
        pci.PCI_COMMAND,
        2,
        virtual=pci.PCI_COMMAND_IO | pci.PCI_COMMAND_MEMORY | pci.PCI_COMMAND_INTX_DISABLE,
        writable=ALL,
    ),
    Field(pci.PCI_CACHE_LINE_SIZE, 1, writable=ALL, saved=ALL),
    Field(pci.PCI_LATENCY_TIMER, 1, writable=ALL, saved=ALL),
    Field(pci.PCI_BIST, 1, writable=ALL),
    *(
        Field(pci.PCI_BASE_ADDRESS_0 + 4 * n, 4, virtual=ALL, writable=ALL)
        for n in range(pci.PCI_STD_NUM_BARS)
    ),
    Field(pci.PCI_ROM_ADDRESS, 4, virtual=ALL, writable=ALL),
    Field(pci.PCI_INTERRUPT_LINE, 1, virtual=ALL, writable=ALL, saved=ALL),
)

_POWER = (
    # The driver changes the state itself when a program writes it (config.py); power events are the host's.
    # Writing the saved value back must not acknowledge a power event: that bit is cleared by a 1.
    Field(
        pci.PCI_PM_CTRL,
        2,
        writable=0xFFFF
        & ~(pci.PCI_PM_CTRL_STATE_MASK | pci.PCI_PM_CTRL_PME_ENABLE | pci.PCI_PM_CTRL_PME_STATUS),
        saved=0xFFFF & ~pci.PCI_PM_CTRL_PME_STATUS,
    ),
)
_VITAL_PRODUCT_DATA = (
    Field(pci.PCI_VPD_ADDR, 2, writable=ALL),
    Field(pci.PCI_VPD_DATA, 4, writable=ALL),
)
_PCIX = (Field(pci.PCI_X_CMD, 2, writable=ALL, saved=ALL),)
_PCIX_ECC = (*_PCIX, Field(pci.PCI_X_ECC_CSR, 4, writable=ALL))
_EXPRESS = (
    # The reset bit is a request to the driver (config.py), the payload size a matter of the whole bus.
    Field(
        pci.PCI_EXP_DEVCTL,
        2,
        virtual=pci.PCI_EXP_DEVCTL_BCR_FLR | pci.PCI_EXP_DEVCTL_PAYLOAD,
        writable=0xFFFF & ~pci.PCI_EXP_DEVCTL_PHANTOM,
        saved=0xFFFF & ~pci.PCI_EXP_DEVCTL_BCR_FLR,
    ),
)
_EXPRESS_2 = (
    *_EXPRESS,
    Field(
        pci.PCI_EXP_DEVCTL2,
        2,
        writable=0xFFFF & ~pci.PCI_EXP_DEVCTL2_ARI,
        saved=ALL,
    ),
)
_EXPRESS_2_SIZEOF = 60  # from version 2 on every function has all registers, unused ones read 0
_ADVANCED = (Field(pci.PCI_AF_CTRL, 1, virtual=pci.PCI_AF_CTRL_FLR, writable=pci.PCI_AF_CTRL_FLR),)

_UNCORRECTABLE = (
    pci.PCI_ERR_UNC_DLP
    | pci.PCI_ERR_UNC_SURPDN
    | pci.PCI_ERR_UNC_POISON_TLP
    | pci.PCI_ERR_UNC_FCP
    | pci.PCI_ERR_UNC_COMP_TIME
    | pci.PCI_ERR_UNC_COMP_ABORT
    | pci.PCI_ERR_UNC_UNX_COMP
    | pci.PCI_ERR_UNC_RX_OVER
    | pci.PCI_ERR_UNC_MALF_TLP
    | pci.PCI_ERR_UNC_ECRC
    | pci.PCI_ERR_UNC_UNSUP
    | pci.PCI_ERR_UNC_ACSV
    | pci.PCI_ERR_UNC_INTN
    | pci.PCI_ERR_UNC_MCBTLP
    | pci.PCI_ERR_UNC_ATOMEG
    | pci.PCI_ERR_UNC_TLPPRE
)
_CORRECTABLE = (
    pci.PCI_ERR_COR_RCVR
    | pci.PCI_ERR_COR_BAD_TLP
    | pci.PCI_ERR_COR_BAD_DLLP
    | pci.PCI_ERR_COR_REP_ROLL
    | pci.PCI_ERR_COR_REP_TIMER
    | pci.PCI_ERR_COR_ADV_NFAT
    | pci.PCI_ERR_COR_INTERNAL
    | pci.PCI_ERR_COR_LOG_OVER
)
_ERROR_REPORTING = (
    Field(pci.PCI_ERR_UNCOR_STATUS, 4, writable=_UNCORRECTABLE),
    Field(pci.PCI_ERR_UNCOR_MASK, 4, writable=_UNCORRECTABLE, saved=_UNCORRECTABLE),
    Field(pci.PCI_ERR_UNCOR_SEVER, 4, writable=_UNCORRECTABLE, saved=_UNCORRECTABLE),
    Field(pci.PCI_ERR_COR_STATUS, 4, writable=_CORRECTABLE),
    Field(pci.PCI_ERR_COR_MASK, 4, writable=_CORRECTABLE, saved=_CORRECTABLE),
)
_ERROR_REPORTING_SIZEOF = 0x48  # with the TLP prefix log
_POWER_BUDGET = (Field(pci.PCI_PWR_DSR, 1, writable=ALL, saved=ALL),)

# Given a function and the offset of a structure: its length in bytes (None: up to the next structure) and
# its fields.
_Layout = tuple[int | None, tuple[Field, ...]]
_Table = Callable[["PciFunction", int], _Layout]


def _message_fields(function: PciFunction, offset: int) -> _Layout:
    flags = function.config_read(offset + pci.PCI_MSI_FLAGS, 2)
    wide, maskable = flags & pci.PCI_MSI_FLAGS_64BIT, flags & pci.PCI_MSI_FLAGS_MASKBIT
    data = pci.PCI_MSI_DATA_64 if wide else pci.PCI_MSI_DATA_32
    mask = pci.PCI_MSI_MASK_64 if wide else pci.PCI_MSI_MASK_32
    fields = [
        # The low byte; what the device is capable of is not the program's to change.
        Field(
            pci.PCI_MSI_FLAGS,
            1,
            virtual=ALL,
            writable=pci.PCI_MSI_FLAGS_ENABLE | pci.PCI_MSI_FLAGS_QSIZE,
        ),
        Field(pci.PCI_MSI_ADDRESS_LO, 4, virtual=ALL, writable=ALL),
        Field(data, 2, virtual=ALL, writable=ALL),
    ]
    if wide:
        fields.append(Field(pci.PCI_MSI_ADDRESS_HI, 4, virtual=ALL, writable=ALL))
    if maskable:
        fields.append(Field(mask, 4, writable=ALL, saved=ALL))
    return (mask + 8 if maskable else data + 2), tuple(fields)


def _pcix_fields(function: PciFunction, offset: int) -> _Layout:
    if function.config_read(offset + pci.PCI_X_CMD, 2) >> 12 & 3:
        return pci.PCI_CAP_PCIX_SIZEOF_V1, _PCIX_ECC
    return pci.PCI_CAP_PCIX_SIZEOF_V0, _PCIX


def _express_fields(function: PciFunction, offset: int) -> _Layout:
    flags = function.config_read(offset + pci.PCI_EXP_FLAGS, 2)
    if flags & pci.PCI_EXP_FLAGS_VERS >= 2:
        return _EXPRESS_2_SIZEOF, _EXPRESS_2
    if (flags & pci.PCI_EXP_FLAGS_TYPE) >> 4 == pci.PCI_EXP_TYPE_RC_END:
        return pci.PCI_CAP_EXP_RC_ENDPOINT_SIZEOF_V1, _EXPRESS
    return pci.PCI_CAP_EXP_ENDPOINT_SIZEOF_V1, _EXPRESS


def _vendor_fields(function: PciFunction, offset: int) -> _Layout:
    return function.config_read(offset + pci.PCI_CAP_FLAGS, 1), ()


def _vendor_extended(function: PciFunction, offset: int) -> _Layout:
    return function.config_read(offset + pci.PCI_VNDR_HEADER, 4) >> 20, ()


def _fixed(length: int, fields: tuple[Field, ...] = ()) -> _Table:
    return lambda function, offset: (length, fields)


_CONVENTIONAL: Mapping[int, _Table] = {
    pci.PCI_CAP_ID_PM: _fixed(pci.PCI_PM_SIZEOF, _POWER),
    pci.PCI_CAP_ID_AGP: _fixed(pci.PCI_AGP_SIZEOF),
    pci.PCI_CAP_ID_VPD: _fixed(pci.PCI_CAP_VPD_SIZEOF, _VITAL_PRODUCT_DATA),
    pci.PCI_CAP_ID_SLOTID: _fixed(pci.PCI_CAP_SIZEOF),
    pci.PCI_CAP_ID_MSI: _message_fields,
    pci.PCI_CAP_ID_PCIX: _pcix_fields,
    pci.PCI_CAP_ID_VNDR: _vendor_fields,
    pci.PCI_CAP_ID_EXP: _express_fields,
    pci.PCI_CAP_ID_MSIX: _fixed(pci.PCI_CAP_MSIX_SIZEOF),
    pci.PCI_CAP_ID_AF: _fixed(pci.PCI_CAP_AF_SIZEOF, _ADVANCED),
}
_EXTENDED: Mapping[int, _Table] = {
    pci.PCI_EXT_CAP_ID_ERR: _fixed(_ERROR_REPORTING_SIZEOF, _ERROR_REPORTING),
    pci.PCI_EXT_CAP_ID_DSN: _fixed(pci.PCI_EXT_CAP_DSN_SIZEOF),
    pci.PCI_EXT_CAP_ID_PWR: _fixed(pci.PCI_EXT_CAP_PWR_SIZEOF, _POWER_BUDGET),
    pci.PCI_EXT_CAP_ID_VNDR: _vendor_extended,
    pci.PCI_EXT_CAP_ID_ARI: _fixed(pci.PCI_EXT_CAP_ARI_SIZEOF),
    pci.PCI_EXT_CAP_ID_ATS: _fixed(pci.PCI_EXT_CAP_ATS_SIZEOF),
    pci.PCI_EXT_CAP_ID_SRIOV: _fixed(pci.PCI_EXT_CAP_SRIOV_SIZEOF),
    pci.PCI_EXT_CAP_ID_PRI: _fixed(pci.PCI_EXT_CAP_PRI_SIZEOF),
    pci.PCI_EXT_CAP_ID_LTR: _fixed(pci.PCI_EXT_CAP_LTR_SIZEOF),
    pci.PCI_EXT_CAP_ID_PASID: _fixed(pci.PCI_EXT_CAP_PASID_SIZEOF),
    pci.PCI_EXT_CAP_ID_DVSEC: _vendor_extended,
}


def _conventional_list(function: PciFunction) -> dict[int, int]:
    """Offset -> capability id of the conventional list, in list order."""
    found: dict[int, int] = {}
    if not function.config_read(pci.PCI_STATUS, 2) & pci.PCI_STATUS_CAP_LIST:
        return found
    offset = function.config_read(pci.PCI_CAPABILITY_LIST, 1) & ~3
    while offset >= pci.PCI_STD_HEADER_SIZEOF and offset not in found:
        header = function.config_read(offset, 2)
        if header == 0xFFFF:
            break
        found[offset] = header & 0xFF
        offset = header >> 8 & ~3
    return found


def _extended_list(function: PciFunction) -> dict[int, int]:
    """Offset -> capability id of the extended list, in list order."""
    found: dict[int, int] = {}
    if function.config_size <= pci.PCI_CFG_SPACE_SIZE:
        return found
    offset = pci.PCI_CFG_SPACE_SIZE
    while offset >= pci.PCI_CFG_SPACE_SIZE and offset not in found:
        header = function.config_read(offset, 4)
        if header in (0, 0xFFFFFFFF):
            break
        found[offset] = header & 0xFFFF
        offset = header >> 20 & ~3
    return found


def survey(function: PciFunction) -> CapabilityMap:
    """Walk the capability lists of ``function`` and lay out the masks of its configuration space."""
    size = function.config_size
    known = bytearray(size)
    virtual = bytearray(size)
    writable = bytearray(size)
    saved: list[tuple[int, int, int]] = []

    def place(start: int, length: int, fields: tuple[Field, ...]) -> None:
        known[start : start + length] = b"\xff" * length
        for field in fields:
            if field.offset + field.width > length:
                continue  # the structure was cut short
            at, width, every = start + field.offset, field.width, (1 << 8 * field.width) - 1
            virtual[at : at + width] = (field.virtual & every).to_bytes(width, "little")
            writable[at : at + width] = (field.writable & every).to_bytes(width, "little")
            if field.saved:
                saved.append((at, width, field.saved & every))

    place(0, pci.PCI_STD_HEADER_SIZEOF, HEADER_FIELDS)
    capabilities: list[Capability] = []
    for listed, tables, end, extended in (
        (_conventional_list(function), _CONVENTIONAL, pci.PCI_CFG_SPACE_SIZE, False),
        (_extended_list(function), _EXTENDED, size, True),
    ):
        starts = sorted(listed)
        limit = dict(zip(starts, [*starts, end][1:], strict=True))
        for offset, cap_id in listed.items():
            room = limit[offset] - offset
            table = tables.get(cap_id)
            length, fields = table(function, offset) if table else (None, ())
            length = room if length is None else max(4, min(length, room))
            place(offset, length, fields)
            capabilities.append(Capability(cap_id, offset, length, extended))

    return CapabilityMap(
        tuple(capabilities),
        _words(known),
        _words(virtual),
        _words(writable),
        tuple(sorted(saved)),
    )


def _words(data: bytearray) -> tuple[int, ...]:
    return tuple(memoryview(data).cast("I"))
