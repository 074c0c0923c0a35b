"""``VfioPciDriver``: the bus driver vfio-pci, as the framework knows it.

It takes endpoints only: bridges are never bound, and never hinder a group either. The header type is
compared without the multi-function bit, which says something about the slot and not about the function.

Does not: bind anything by itself. The machine calls ``probe`` and hands the result to the framework; for a
device that was plugged into a group in use the framework asks ``claim``, which passes on to whoever built
the driver.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from uvfio.drivers.pci.device import VfioPciDevice
from uvfio.errors import InvalidArgument, Unsupported
from uvfio.uapi import pci

if TYPE_CHECKING:
    from uvfio.core.device import BusDevice
    from uvfio.drivers.pci.hardware import PciFunction

__all__ = ["VfioPciDriver"]


class VfioPciDriver:
    """Implements ``core.device.VfioDriver``. ``on_claim(dev)`` has to bind ``dev`` before it returns."""

    def __init__(self, on_claim: Callable[[BusDevice], None] | None = None) -> None:
        self._on_claim = on_claim

    @property
    def name(self) -> str:
        """As in sysfs."""
        return "vfio-pci"

    def match(self, dev: BusDevice, name: str) -> bool:
        """Whether ``name`` is exactly the address of ``dev`` ("0000:06:0d.0")."""
        return dev.name == name

    def match_with_options(self, dev: BusDevice, text: str) -> bool:
        """As ``match``, with options behind the address: "0000:06:0d.0 vf_token=UUID" (vfio_pci_core_match).

        InvalidArgument for any option: an unknown one, and a token too, because these devices neither are
        virtual functions nor have some.
        """
        if not text.startswith(dev.name):
            return False
        rest = text[len(dev.name) :]
        if rest[:1] not in ("", " "):
            return False
        option = rest.strip(" ")
        if option:
            raise InvalidArgument(
                f"{dev.name} does not take the option {option!r}",
                "vf_token=UUID is for virtual functions and those that have some",
            )
        return True

    def probe(self, function: PciFunction) -> VfioPciDevice:
        """Take ``function``: what the framework binds. Unsupported for anything but an endpoint (D31)."""
        header = function.config_read(pci.PCI_HEADER_TYPE, 1) & pci.PCI_HEADER_TYPE_MASK
        if header != pci.PCI_HEADER_TYPE_NORMAL:
            raise Unsupported(
                f"{function.name} has header type {header}",
                "vfio-pci takes endpoints only, a bridge stays with the host",
            )
        return VfioPciDevice(function)

    def claim(self, dev: BusDevice) -> None:
        """Bind to ``dev``, plugged into a group in use. Unsupported if nobody said how to."""
        if self._on_claim is None:
            raise Unsupported(f"{self.name} cannot take {dev.name} by itself", "bind it by hand")
        self._on_claim(dev)
