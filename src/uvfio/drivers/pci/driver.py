"""``VfioPciDriver``: the bus driver vfio-pci, as the framework knows it.

Of virtual functions it knows which physical function was in its own hands when they were made: their tokens depend on
it, and its driver is theirs (vfio_pci_bus_notifier).

It takes endpoints only: bridges are never bound, and never hinder a group either. The header type is
compared without the multi-function bit, which says something about the slot and not about the function.

Does not: bind anything by itself. The machine calls ``probe`` and hands the result to the framework; for a
device that was plugged into a group in use the framework calls ``bind_hotplugged``, which calls the
``on_hotplug`` of the constructor.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from uvfio.core.bus import TakesToken
from uvfio.drivers.pci.device import VfioPciDevice
from uvfio.drivers.pci.sriov import find, parse_option
from uvfio.errors import Busy, Unsupported
from uvfio.uapi import pci

if TYPE_CHECKING:
    from collections.abc import Callable

    from uvfio.core.bus import BoundDevice, BusDevice
    from uvfio.drivers.pci.hardware import PciFunction

__all__ = ["VfioPciDriver"]


class VfioPciDriver:
    """Implements ``core.bus.VfioDriver``. ``on_hotplug(dev)`` has to bind ``dev`` before it returns.

    ``enable_sriov``: whether it makes virtual functions of a physical one that it has (the module's parameter).
    """

    def __init__(
        self,
        on_hotplug: Callable[[BusDevice], None] | None = None,
        *,
        enable_sriov: bool = True,
    ) -> None:
        self._on_hotplug = on_hotplug
        self.enable_sriov = enable_sriov
        self._parents: dict[str, VfioPciDevice] = {}

    @property
    def name(self) -> str:
        """As in sysfs."""
        return "vfio-pci"

    def match(self, dev: BusDevice, name: str) -> bool:
        """Whether ``name`` is exactly the address of ``dev`` ("0000:06:0d.0")."""
        return dev.name == name

    def match_with_options(self, dev: BusDevice, text: str, data: BoundDevice) -> bool:
        """As ``match``, with options behind the address: "0000:06:0d.0 vf_token=UUID" (vfio_pci_core_match).

        InvalidArgument for an option that is unknown or does not suit, WrongToken (``sriov.TokenRule``).
        """
        if not text.startswith(dev.name):
            return False
        rest = text[len(dev.name) :]
        if rest[:1] not in ("", " "):
            return False
        token = parse_option(dev.name, rest)
        if isinstance(data, TakesToken):
            data.check_token(token)
        return True

    def probe(self, function: PciFunction) -> VfioPciDevice:
        """Take ``function``: what the framework binds.

        Unsupported for anything but an endpoint (D31), Busy for a physical function that has virtual ones: they
        may be in use, and were not made by vfio-pci (vfio_pci_core_register_device).
        """
        header = function.config_read(pci.PCI_HEADER_TYPE, 1) & pci.PCI_HEADER_TYPE_MASK
        if header != pci.PCI_HEADER_TYPE_NORMAL:
            raise Unsupported(
                f"{function.name} has header type {header}",
                "vfio-pci takes endpoints only, a bridge stays with the host",
            )
        sriov = find(function)
        if sriov is not None and sriov.number:
            raise Busy(
                f"{function.name} has {sriov.number} virtual functions",
                "write 0 to its sriov_numvfs first",
            )
        parent = self._parents.get(function.physfn.name) if function.physfn else None
        return VfioPciDevice(function, parent)

    def adopt(self, parent: VfioPciDevice, number: int) -> None:
        """``parent`` has so many virtual functions from now on: they are taken care of, their tokens are its."""
        parent.offspring.keep(number)
        if number:
            self._parents[parent.function.name] = parent
        else:
            self._parents.pop(parent.function.name, None)

    def bind_hotplugged(self, dev: BusDevice) -> None:
        """Bind to ``dev``, plugged into a group in use. Unsupported without ``on_hotplug``."""
        if self._on_hotplug is None:
            raise Unsupported(f"{self.name} cannot take {dev.name} by itself", "bind it by hand")
        self._on_hotplug(dev)
