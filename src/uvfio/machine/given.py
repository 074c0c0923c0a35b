"""A device as Python gives it to a machine: a description, a string as for ``-d``, or the class of a model.

A relative ``path.py:Class`` in a string is relative to the folder that the machine was given, or else to the current
folder of the process. A platform model that is given as a class gets a node behind those that were given before it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from uvfio.kit.pci.model import PciModel
from uvfio.machine.spec import DeviceSpec, in_folder, parse_device
from uvfio.models import catalogue

if TYPE_CHECKING:
    from uvfio.kit.platform.model import PlatformModel

    GivenDevice = DeviceSpec | str | type[PciModel | PlatformModel]

__all__ = ["Given"]

FIRST_ADDRESS = 0x10000000
STEP = 0x10000


class Given:
    """What one machine was given; ``folder`` is that of relative paths, empty for the current one."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._next_address = FIRST_ADDRESS

    def spec(self, device: GivenDevice) -> DeviceSpec:
        """The description of ``device``. ConfigError."""
        if isinstance(device, DeviceSpec):
            return device
        if isinstance(device, str):
            spec = parse_device(device)
            return replace(spec, model=in_folder(spec.model, self._folder))
        name = catalogue.name_of(device)
        if issubclass(device, PciModel):
            return DeviceSpec(name)
        address = self._next_address
        size = sum(region.size for region in device.region_declarations)
        self._next_address += max(-(-size // STEP), 1) * STEP
        return DeviceSpec(name, f"/soc/device@{address:x}")
