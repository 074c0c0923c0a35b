"""The configuration space that a program sees.

Every bit comes from one of two places, as the tables of ``capabilities.py`` say: the *copy*, taken from the
hardware when the device is opened and the program's own from then on, or the hardware. Accesses of any length are
cut into the largest naturally aligned pieces of 4, 2 and 1 bytes, so that a register that a program writes
as a whole reaches the hardware as a whole. Bytes without a bit that a program may change are never written
to the hardware, not even with their own value: status bits that a 1 clears live next to control bits.

Some bits of the copy mean something:

    command, MEMORY and IO    switching decoding on while the hardware has it off reveals a reset
                              without notice; ``recover`` brings the hardware back before the write
    command, INTX_DISABLE     the program's own mask of the level interrupt
    DEVCTL and AF, FLR        a function reset by the driver, which saves and restores what the hardware loses; the bit
                              reads 0, and does nothing if the capability does not have the reset
    PM control, state         a change of the power state by the driver, which saves on the way to D3hot and restores
                              on the way to D0; the bits read the hardware
    BARs, ROM                 normalised by ``bars.py`` after each write
    MSI flags                 the enable bit reads 0 while no vectors are set; the number of vectors that the
                              device is capable of reads as what was set; the number enabled is limited to that

What a function refuses of the last two is not told to the program: the write is complete (vfio_exp_config_write,
vfio_af_config_write, vfio_pm_config_write in drivers/vfio/pci/vfio_pci_config.c).

A virtual function's hardware has no ids and no memory enable bit: the copy starts with those that it goes by.

Nothing that a program writes here enables a message interrupt in the hardware, moves a BAR or switches
decoding off.

Does not: know when it is made and dropped (``device.py``), or deliver interrupts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from uvfio.drivers.pci.sriov import virtual_header
from uvfio.drivers.window import width_at
from uvfio.errors import InvalidArgument
from uvfio.uapi import pci

if TYPE_CHECKING:
    from uvfio.drivers.pci.bars import BarRegisters
    from uvfio.drivers.pci.capabilities import CapabilityMap
    from uvfio.drivers.pci.hardware import PciFunction

__all__ = ["ConfigSpace", "FunctionControl", "GuestInterrupts", "log2_ceil"]

_LANES = (0, 0xFF, 0xFFFF, 0, 0xFFFFFFFF)  # by width
_COMMAND_WORD = pci.PCI_COMMAND >> 2
_FLAGS_SHIFT = 8 * pci.PCI_MSI_FLAGS  # of the MSI flags' low byte in the capability's first word
_QMASK_SHIFT, _QSIZE_SHIFT = 1, 4
_MOST_VECTORS = 5  # the logarithm; larger values are reserved


class GuestInterrupts(Protocol):
    """What the configuration space has to do with interrupts."""

    @property
    def msi_vectors(self) -> int:
        """How many MSI vectors are set; 0: MSI is not in use."""

    def guest_mask(self, on: bool) -> None:
        """The program set or cleared INTX_DISABLE."""


class FunctionControl(Protocol):
    """What a write to configuration space makes the driver do with the whole function."""

    def recover(self) -> None:
        """The hardware turns out to have been reset: give it back what the host put there."""

    def reset_by_config(self) -> None:
        """The program asks for a function reset. What the function refuses is dropped."""

    def set_power_state(self, state: int) -> None:
        """The program asks for power state D0 to D3hot (0 to 3). What cannot be is dropped."""


def log2_ceil(count: int) -> int:
    """The exponent of the smallest power of two that is at least ``count`` (1 or more)."""
    return (count - 1).bit_length()


class ConfigSpace:
    """The virtual configuration space of one open device. ``control`` is the driver's hand on the function."""

    __slots__ = (
        "_bars",
        "_control",
        "_copy",
        "_flr",
        "_function",
        "_interrupts",
        "_known",
        "_msi_word",
        "_power",
        "_size",
        "_virtual",
        "_writable",
    )

    def __init__(
        self,
        function: PciFunction,
        layout: CapabilityMap,
        bars: BarRegisters,
        interrupts: GuestInterrupts,
        control: FunctionControl,
    ) -> None:
        self._function = function
        self._known = layout.known
        self._virtual = layout.virtual
        self._writable = layout.writable
        self._bars = bars
        self._interrupts = interrupts
        self._control = control
        self._size = function.config_size
        msi = layout.find(pci.PCI_CAP_ID_MSI)
        self._msi_word = msi >> 2 if msi else -1
        power = layout.find(pci.PCI_CAP_ID_PM)
        self._power = power + pci.PCI_PM_CTRL if power else -1
        self._flr = _reset_bits(function, layout)
        self._copy = [
            function.config_read(4 * word, 4) & virtual if virtual else 0
            for word, virtual in enumerate(layout.virtual)
        ]
        if function.physfn is not None:
            self._copy[0], command = virtual_header(function)
            self._copy[_COMMAND_WORD] |= command
        for offset in range(0, pci.PCI_STD_HEADER_SIZEOF, 4):
            register = bars.index_of(offset)
            if register is not None:
                self._copy[offset >> 2] = bars.virtual(register, self._copy[offset >> 2])

    @property
    def command(self) -> int:
        """The command register's MEMORY, IO and INTX_DISABLE bits as the program has set them."""
        return self._copy[_COMMAND_WORD] & 0xFFFF

    def save(self) -> bytes:
        """The copy: 4 bytes for each word."""
        return b"".join(word.to_bytes(4, "little") for word in self._copy)

    def load(self, saved: bytes) -> None:
        """Take over what the program of another such space had written. InvalidArgument for another size."""
        if len(saved) != 4 * len(self._copy):
            raise InvalidArgument(
                f"{self._function.name}: {len(saved)} bytes of configuration space are saved, it has "
                f"{4 * len(self._copy)}"
            )
        for word, own in enumerate(self._copy):
            soft = self._virtual[word] & self._writable[word]
            value = int.from_bytes(saved[4 * word : 4 * word + 4], "little")
            copy = own & ~soft | value & soft
            register = self._bars.index_of(word << 2)
            self._copy[word] = copy if register is None else self._bars.virtual(register, copy)
        self._interrupts.guest_mask(bool(self.command & pci.PCI_COMMAND_INTX_DISABLE))

    def read(self, offset: int, count: int) -> bytes:
        """Up to ``count`` bytes; fewer at the end of the space. InvalidArgument beyond the end."""
        if count == 4 and not offset & 3 and offset < self._size:
            return self._load(offset, 4).to_bytes(4, "little")
        end = self._end(offset, count)
        answer = bytearray()
        while offset < end:
            width = width_at(offset, end - offset)
            answer += self._load(offset, width).to_bytes(width, "little")
            offset += width
        return bytes(answer)

    def write(self, offset: int, data: bytes) -> int:
        """How many bytes of ``data`` were taken, effective or not; fewer than all at the end of the space.

        InvalidArgument beyond the end.
        """
        start, end = offset, self._end(offset, len(data))
        while offset < end:
            width = width_at(offset, end - offset)
            at = offset - start
            self._store(offset, width, int.from_bytes(data[at : at + width], "little"))
            offset += width
        return end - start

    def _end(self, offset: int, count: int) -> int:
        if not 0 <= offset <= self._size:
            raise InvalidArgument(
                f"{self._function.name}: offset {offset:#x} is beyond the {self._size} bytes of config space"
            )
        return min(offset + count, self._size)

    def _load(self, pos: int, width: int) -> int:
        word, shift, lanes = pos >> 2, (pos & 3) << 3, _LANES[width]
        known = self._known[word] >> shift & lanes
        if not known:
            return 0
        virtual = self._virtual[word] >> shift & lanes
        value = self._present(word) >> shift & virtual if virtual else 0
        if virtual != lanes:
            value |= self._function.config_read(pos, width) & known & ~virtual
        return value

    def _present(self, word: int) -> int:
        """The copy of ``word`` as a program may see it."""
        value = self._copy[word]
        if word != self._msi_word:
            return value
        flags = value >> _FLAGS_SHIFT & 0xFFFF
        capable = min((flags & pci.PCI_MSI_FLAGS_QMASK) >> _QMASK_SHIFT, _MOST_VECTORS)
        enabled = (flags & pci.PCI_MSI_FLAGS_QSIZE) >> _QSIZE_SHIFT
        vectors = self._interrupts.msi_vectors
        if vectors:
            capable = log2_ceil(vectors)
        else:
            flags &= ~pci.PCI_MSI_FLAGS_ENABLE
        flags &= ~(pci.PCI_MSI_FLAGS_QMASK | pci.PCI_MSI_FLAGS_QSIZE)
        flags |= capable << _QMASK_SHIFT | min(enabled, capable) << _QSIZE_SHIFT
        return value & ~(0xFFFF << _FLAGS_SHIFT) | flags << _FLAGS_SHIFT

    def _store(self, pos: int, width: int, value: int) -> None:
        word, shift, lanes = pos >> 2, (pos & 3) << 3, _LANES[width]
        writable = self._writable[word] >> shift & lanes
        if not writable and pos != self._power:
            return
        virtual = self._virtual[word] >> shift & lanes
        if word == _COMMAND_WORD:
            self._before_command(value << shift)
        hard = writable & ~virtual
        if hard:
            self._store_hard(pos, width, value, hard)
        if pos == self._power:
            self._control.set_power_state(value & pci.PCI_PM_CTRL_STATE_MASK)
        soft = writable & virtual
        if not soft:
            return
        copy = self._copy[word] & ~(soft << shift) | (value & soft) << shift
        register = self._bars.index_of(word << 2)
        self._copy[word] = copy if register is None else self._bars.virtual(register, copy)
        if word == _COMMAND_WORD:
            self._interrupts.guest_mask(bool(copy & pci.PCI_COMMAND_INTX_DISABLE))
        elif word in self._flr:
            bit, able = self._flr[word]
            if copy & bit:
                self._copy[word] = copy & ~bit
                if able:
                    self._control.reset_by_config()

    def _store_hard(self, pos: int, width: int, value: int, hard: int) -> None:
        """Write the bits ``hard`` to the hardware, without touching a byte that has none of them."""
        if width > 1:
            half = width >> 1
            split = half << 3
            low, high = hard & _LANES[half], hard >> split
            if not low or not high or (width == 4 and not _every_byte(hard)):
                if low:
                    self._store_hard(pos, half, value & _LANES[half], low)
                if high:
                    self._store_hard(pos + half, half, value >> split, high)
                return
        value &= hard
        if hard != _LANES[width]:
            value |= self._function.config_read(pos, width) & ~hard
        self._function.config_write(pos, value, width)

    def _before_command(self, written: int) -> None:
        wanted = written & self._bars.decode
        if wanted and wanted & ~self._function.config_read(pci.PCI_COMMAND, 2):
            self._control.recover()


def _reset_bits(function: PciFunction, layout: CapabilityMap) -> dict[int, tuple[int, bool]]:
    """By word: the bit that asks for a function reset, and whether the capability says that there is one."""
    found = {}
    express, advanced = layout.find(pci.PCI_CAP_ID_EXP), layout.find(pci.PCI_CAP_ID_AF)
    if express:
        able = function.config_read(express + pci.PCI_EXP_DEVCAP, 4) & pci.PCI_EXP_DEVCAP_FLR
        found[express + pci.PCI_EXP_DEVCTL >> 2] = pci.PCI_EXP_DEVCTL_BCR_FLR, bool(able)
    if advanced:
        both = pci.PCI_AF_CAP_TP | pci.PCI_AF_CAP_FLR
        able = function.config_read(advanced + pci.PCI_AF_CAP, 1) & both
        found[advanced + pci.PCI_AF_CTRL >> 2] = pci.PCI_AF_CTRL_FLR, able == both
    return found


def _every_byte(mask: int) -> bool:
    return bool(mask & 0xFF and mask & 0xFF00 and mask & 0xFF0000 and mask & 0xFF000000)
