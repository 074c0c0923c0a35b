"""``Slot``: a place of the machine with a device in it. What is done with slots is ``Machine``'s business.

Invariants, kept by the machine: a slot is known exactly while its device sits in it; ``driver`` is the name of the
device's driver, "none" without one; the slots in ``virtual`` have this one as ``physical``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from uvfio.errors import NoSuchDevice
from uvfio.kit.pci.model import PciModel
from uvfio.machine.spec import NO_DRIVER, VFIO_DRIVERS

if TYPE_CHECKING:
    from uvfio.kit.platform.model import PlatformModel
    from uvfio.machine.spec import DeviceSpec

__all__ = ["Slot"]


class Slot:
    """A device in its slot: its description, the silicon, and its driver.

    ``virtual`` are the virtual functions of a physical one, in their order; ``physical`` is whose this one is.
    """

    __slots__ = ("device", "driver", "physical", "revoked", "settings", "spec", "virtual")

    def __init__(
        self, spec: DeviceSpec, device: PciModel | PlatformModel, physical: Slot | None = None
    ) -> None:
        self.spec = spec
        self.device = device
        self.driver = NO_DRIVER
        self.revoked = False
        self.settings: dict[str, int] = {}  # what was written to files of the device, by name
        self.physical = physical
        self.virtual: list[Slot] = []

    @property
    def address(self) -> str:
        """0000:06:0d.0, or what Linux calls a platform device: 10010000.timer"""
        return self.device.name

    @property
    def function(self) -> PciModel:
        """The silicon of a PCI function. NoSuchDevice if this is a platform device."""
        if not isinstance(self.device, PciModel):
            raise NoSuchDevice(f"{self.address} is no PCI function")
        return self.device

    @property
    def vfio_driver(self) -> str:
        """The name of the VFIO driver for the device's bus."""
        return VFIO_DRIVERS[self.device.bus]
