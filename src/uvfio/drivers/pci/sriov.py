"""SR-IOV as software sees it: a physical function's capability, the identity of a virtual function, and the VF token.

A physical function (PF) in the hands of a program can disturb the virtual functions (VFs) of other programs. So
while vfio-pci has the PF, an open of a VF needs the PF's *token*, 16 bytes that PF and VF users agree on:

    VF, PF with vfio-pci        the PF's token, or WrongToken
    VF, PF with another driver  no token: InvalidArgument
    PF, a VF is open            the token as it is, or WrongToken
    PF, no VF is open           any token becomes the PF's; none leaves it as it was
    any other function          no token: InvalidArgument

A PF gets a random token when it is bound; it keeps it until it is unbound, across opens and closes.

Does not: make virtual functions (``machine/sriov.py``), or know how a program says a token: behind the name of a device
(``parse_option``), with BIND_IOMMUFD, or by a feature.

Behaviour: drivers/vfio/pci/vfio_pci_core.c (vfio_pci_validate_vf_token, vfio_pci_core_match); drivers/pci/iov.c.
"""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING

from uvfio.errors import InvalidArgument, WrongToken
from uvfio.uapi import pci

if TYPE_CHECKING:
    from uvfio.drivers.pci.hardware import PciFunction

__all__ = [
    "Offspring",
    "Sriov",
    "TokenRule",
    "VfToken",
    "find",
    "identity",
    "index_of",
    "parse_option",
    "resource_at",
    "routing_id",
    "virtual_header",
]

OPTION = "vf_token="
UUID_LEN = 36
_DASHES = (8, 13, 18, 23)
_HEX = frozenset("0123456789abcdefABCDEF")
_ENABLED = pci.PCI_SRIOV_CTRL_VFE | pci.PCI_SRIOV_CTRL_MSE


class Sriov:
    """The SR-IOV capability at ``base`` of ``function``. Numbers are read each time: silicon may change them."""

    __slots__ = ("_base", "_function")

    def __init__(self, function: PciFunction, base: int) -> None:
        self._function = function
        self._base = base

    def _word(self, register: int) -> int:
        return self._function.config_read(self._base + register, 2)

    @property
    def total(self) -> int:
        """How many VFs there can be."""
        return self._word(pci.PCI_SRIOV_TOTAL_VF)

    @property
    def number(self) -> int:
        """How many there are: NumVFs if they are enabled, else 0."""
        return self._word(pci.PCI_SRIOV_NUM_VF) if self.enabled else 0

    @property
    def enabled(self) -> bool:
        """VF Enable."""
        return bool(self._word(pci.PCI_SRIOV_CTRL) & pci.PCI_SRIOV_CTRL_VFE)

    @property
    def first(self) -> int:
        """Routing id of the first VF minus that of the PF."""
        return self._word(pci.PCI_SRIOV_VF_OFFSET)

    @property
    def stride(self) -> int:
        """Distance of the routing ids of two VFs."""
        return self._word(pci.PCI_SRIOV_VF_STRIDE)

    @property
    def device_id(self) -> int:
        """The device id of every VF."""
        return self._word(pci.PCI_SRIOV_VF_DID)

    def bar(self, index: int) -> int:
        """The register VF BAR ``index``."""
        at = self._base + pci.PCI_SRIOV_BAR + 4 * index
        return self._function.config_read(at, 4)

    def set_bar(self, index: int, value: int) -> None:
        """Write VF BAR ``index``."""
        self._function.config_write(self._base + pci.PCI_SRIOV_BAR + 4 * index, value, 4)

    def enable(self, number: int) -> None:
        """Have ``number`` VFs that answer; if there are VFs already, nothing happens."""
        if not self.enabled:
            self._function.config_write(self._base + pci.PCI_SRIOV_NUM_VF, number, 2)
            self._control(_ENABLED, 0)

    def disable(self) -> None:
        """Have none."""
        self._control(0, _ENABLED)
        self._function.config_write(self._base + pci.PCI_SRIOV_NUM_VF, 0, 2)

    def _control(self, on: int, off: int) -> None:
        value = self._word(pci.PCI_SRIOV_CTRL) & ~off | on
        self._function.config_write(self._base + pci.PCI_SRIOV_CTRL, value, 2)


def find(function: PciFunction) -> Sriov | None:
    """The capability of ``function``, if it is a PF."""
    offset, seen = pci.PCI_CFG_SPACE_SIZE, set[int]()
    while pci.PCI_CFG_SPACE_SIZE <= offset < function.config_size and offset not in seen:
        seen.add(offset)
        header = function.config_read(offset, 4)
        if header & 0xFFFF == pci.PCI_EXT_CAP_ID_SRIOV:
            return Sriov(function, offset)
        offset = header >> 20 & ~3
    return None


def identity(function: PciFunction) -> tuple[int, int]:
    """Vendor and device id: of a VF the PF's vendor and what its capability says (pci_iov_scan_device)."""
    physfn = function.physfn
    if physfn is None:
        read = function.config_read
        return read(pci.PCI_VENDOR_ID, 2), read(pci.PCI_DEVICE_ID, 2)
    capability = find(physfn)
    device = capability.device_id if capability else 0xFFFF
    return physfn.config_read(pci.PCI_VENDOR_ID, 2), device


def routing_id(name: str) -> int:
    """Bus, device and function number of the address ``name`` in 16 bits."""
    _, bus, rest = name.split(":")
    device, function = rest.split(".")
    return int(bus, 16) << 8 | int(device, 16) << 3 | int(function, 16)


def index_of(function: PciFunction, physfn: PciFunction) -> int:
    """Which of the VFs of ``physfn`` it is (pci_iov_vf_id)."""
    capability = find(physfn)
    if capability is None:
        return 0
    distance = routing_id(function.name) - routing_id(physfn.name) - capability.first
    return distance // capability.stride


def virtual_header(function: PciFunction) -> tuple[int, int]:
    """What a program finds in the header of a VF and the hardware does not have: the word of vendor and device id,
    and the bits of the command register (vfio_config_init)."""
    vendor, device = identity(function)
    return device << 16 | vendor, pci.PCI_COMMAND_MEMORY


def resource_at(capability: Sriov, index: int, *, wide: bool) -> int:
    """The bus address in VF BAR ``index``, where VF 0 has its BAR. ``wide``: it takes two registers."""
    address = capability.bar(index) & pci.PCI_BASE_ADDRESS_MEM_MASK & 0xFFFFFFFF
    return address | capability.bar(index + 1) << 32 if wide else address


class Offspring:
    """The VFs of a PF that vfio-pci has: a reset of the PF takes them along, ``restore`` brings them back."""

    __slots__ = ("_bars", "_function", "number")

    def __init__(self, function: PciFunction) -> None:
        self._function = function
        self._bars: list[int] = []
        self.number = 0

    def keep(self, number: int) -> None:
        """The PF has so many VFs from now on; their addresses are what the hardware says now."""
        self.number = number
        sriov = find(self._function) if number else None
        self._bars = [sriov.bar(index) for index in range(pci.PCI_SRIOV_NUM_BARS)] if sriov else []

    def restore(self) -> None:
        """The PF was reset (pci_restore_iov_state)."""
        sriov = find(self._function) if self.number else None
        if sriov is not None and not sriov.enabled:
            for index, value in enumerate(self._bars):
                sriov.set_bar(index, value)
            sriov.enable(self.number)


class VfToken:
    """A PF's token, and how many of its VFs are open."""

    __slots__ = ("_lock", "users", "uuid")

    def __init__(self) -> None:
        from uuid import uuid4  # takes a while, and few machines have physical functions

        self._lock = Lock()
        self.uuid = uuid4().bytes
        self.users = 0

    def use(self, change: int) -> None:
        """So many VFs more are open; they are opened and closed under locks of their own."""
        with self._lock:
            self.users += change


class TokenRule:
    """What the module's head says, for one bound function. ``own``: it is a PF; ``pf``: the token of its PF."""

    __slots__ = ("_name", "_virtual", "own", "pf")

    def __init__(self, function: PciFunction, pf: VfToken | None) -> None:
        self._name = function.name
        self._virtual = function.physfn is not None
        self.pf = pf
        physical = not self._virtual and find(function) is not None
        self.own = VfToken() if physical else None

    def check(self, token: bytes | None) -> None:
        """Check ``token`` (16 bytes, or None) for an open of the function. Raises WrongToken, InvalidArgument."""
        if self._virtual and self.pf is not None:
            self._match(self.pf, token)
        elif not self._virtual and self.own is not None:
            if self.own.users:
                self._match(self.own, token)
            elif token is not None:
                self.own.uuid = token
        elif token is not None:
            what = "its PF is not bound to vfio-pci" if self._virtual else "it is neither PF nor VF"
            raise InvalidArgument(f"{self._name} takes no VF token: {what}", "open it without one")

    def _match(self, wanted: VfToken, token: bytes | None) -> None:
        if token is None:
            raise WrongToken(
                f"{self._name} needs a VF token", 'say "ADDRESS vf_token=UUID" to GET_DEVICE_FD'
            )
        if token != wanted.uuid:
            raise WrongToken(f"{self._name} was not given its VF token")

    def opened(self) -> None:
        """A VF was opened for the first time."""
        if self.pf is not None:
            self.pf.use(1)

    def closed(self) -> None:
        """A VF was closed for the last time."""
        if self.pf is not None:
            self.pf.use(-1)


def parse_option(name: str, rest: str) -> bytes | None:
    """The token in what follows the device's ``name``: "" or " vf_token=UUID". InvalidArgument."""
    token: bytes | None = None
    rest = rest.lstrip(" ")
    while rest:
        if token is not None or not rest.startswith(OPTION):
            raise InvalidArgument(
                f"{name} does not take the option {rest!r}", "vf_token=UUID is known"
            )
        start = len(OPTION)
        token = _uuid(name, rest[start : start + UUID_LEN])
        rest = rest[start + UUID_LEN :].lstrip(" ")
    return token


def _uuid(name: str, text: str) -> bytes:
    digits = [char for at, char in enumerate(text) if at not in _DASHES]
    dashes = [text[at] for at in _DASHES if at < len(text)]
    if len(text) != UUID_LEN or dashes != ["-"] * 4 or not _HEX.issuperset(digits):
        raise InvalidArgument(f"{name}: {text!r} is not a UUID", "for example 01234567-89ab-...")
    return bytes.fromhex("".join(digits))
