"""``VfioPlatformDriver``: the bus driver vfio-platform, as the framework knows it.

A program names a device by what Linux calls it ("10010000.timer", as in /sys/bus/platform/devices) or by the full
path of its node ("/soc/timer@10010000").

Does not: bind anything by itself. The machine calls ``probe`` and hands the result to the framework; for a
device that was plugged into a group in use the framework calls ``bind_hotplugged``, which calls the
``on_hotplug`` of the constructor.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from uvfio.drivers.platform.device import VfioPlatformDevice
from uvfio.errors import Unsupported

if TYPE_CHECKING:
    from collections.abc import Callable

    from uvfio.core.bus import BusDevice
    from uvfio.drivers.platform.hardware import PlatformHardware

__all__ = ["VfioPlatformDriver"]


class VfioPlatformDriver:
    """Implements ``core.bus.VfioDriver``. ``on_hotplug(dev)`` has to bind ``dev`` before it returns."""

    def __init__(self, on_hotplug: Callable[[BusDevice], None] | None = None) -> None:
        self._on_hotplug = on_hotplug

    @property
    def name(self) -> str:
        """As in sysfs."""
        return "vfio-platform"

    def match(self, dev: BusDevice, name: str) -> bool:
        """Whether ``name`` is exactly the name of ``dev``, or the path of its node."""
        return name == dev.name or (name.startswith("/") and name == getattr(dev, "path", None))

    def probe(self, hardware: PlatformHardware) -> VfioPlatformDevice:
        """Take ``hardware``: what the framework binds."""
        return VfioPlatformDevice(hardware)

    def bind_hotplugged(self, dev: BusDevice) -> None:
        """Bind to ``dev``, plugged into a group in use. Unsupported without ``on_hotplug``."""
        if self._on_hotplug is None:
            raise Unsupported(f"{self.name} cannot take {dev.name} by itself", "bind it by hand")
        self._on_hotplug(dev)
