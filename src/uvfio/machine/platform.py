"""The platform bus of a machine: makes the devices that a device tree describes.

What the tree does not say is made up here: a device that was described by its path alone gets regions from the
unit address on and the lowest interrupt numbers that no other device has.

Invariants: no two devices have the same name, and no two have overlapping regions; interrupt numbers may be
shared, as on real boards.

Imported when the first platform device is described.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from uvfio.drivers.platform.driver import VfioPlatformDriver
from uvfio.errors import ConfigError
from uvfio.kit.mistake import make
from uvfio.kit.platform.model import PlatformModel
from uvfio.machine.device_tree import platform_name

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from uvfio.core.bus import BusDevice
    from uvfio.core.seams import Clock, Store
    from uvfio.core.translation.unit import IommuUnit
    from uvfio.drivers.platform.device import VfioPlatformDevice
    from uvfio.machine.spec import DeviceSpec

__all__ = ["PlatformBus"]

FIRST_INTERRUPT = 32  # the first that is shared by all processors, on a GIC


class PlatformBus:
    """The bus and its VFIO driver, which asks ``on_hotplug`` to bind a device plugged into a group in use."""

    def __init__(self, on_hotplug: Callable[[BusDevice], None]) -> None:
        self.driver = VfioPlatformDriver(on_hotplug=on_hotplug)

    def make(
        self,
        spec: DeviceSpec,
        model: type[PlatformModel],
        *,
        beside: Collection[PlatformModel],
        unit: IommuUnit | None,
        clock: Clock,
        store: Store,
    ) -> PlatformModel:
        """The device that ``spec`` describes. ConfigError if it cannot be ``beside`` those that are there."""
        assert spec.address is not None
        resources = spec.resources
        if resources is None:
            try:
                resources = model.default_resources(spec.address, _free_interrupt(beside))
            except ConfigError as wrong:
                raise ConfigError(f"{spec.source}: address {wrong}", wrong.hint) from None
        name = platform_name(resources)
        for other in beside:
            if other.name == name:
                raise ConfigError(
                    f"{spec.source}: the device is called {name}, as the one at {other.path} is",
                    "names are made of the address and the last part of the path",
                )
            for mine in resources.regions:
                for theirs in other.regions:
                    if (
                        mine.address < theirs.address + theirs.size
                        and theirs.address < mine.address + mine.size
                    ):
                        raise ConfigError(
                            f"{resources.where(mine.origin.path)}: reg[{mine.origin.entry}] "
                            f"{mine.address:#x}+{mine.size:#x} overlaps "
                            f"{theirs.address:#x}+{theirs.size:#x} of {theirs.origin.path}"
                        )
        try:
            return make(
                model,
                name,
                resources=resources,
                group=spec.group,
                unit=unit,
                clock=clock,
                store=store,
                options=spec.options,
            )
        except BaseException:
            store.release(name)
            raise

    def probe(self, device: BusDevice) -> VfioPlatformDevice:
        """Give ``device`` to vfio-platform: what the framework binds."""
        assert isinstance(device, PlatformModel)
        return self.driver.probe(device)


def _free_interrupt(beside: Collection[PlatformModel]) -> int:
    """The lowest number above those of all devices."""
    taken = [line.number + 1 for device in beside for line in device.interrupts]
    return max([FIRST_INTERRUPT, *taken])
