"""Migration of a platform device in the hands of vfio-platform.

The state is the silicon's own (``save_state``): there is no configuration space, and nothing of the host's is kept
in the hardware. Events are not saved: they belong to the program, which sets its own on the other side. A level
interrupt that is asserted in the state is asserted on the other side as soon as the state is loaded.

Linux has no migration for vfio-platform; the states, the data file and the log of DMA are those of vfio-pci.

``begin`` makes what an open device has for migration. It does not know streams, states or files.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

from uvfio.core.migration.states import Migration
from uvfio.core.translation.dma_log import DmaLogger

if TYPE_CHECKING:
    from uvfio.core.bus import Activity
    from uvfio.drivers.platform.hardware import MigratableHardware, PlatformHardware

__all__ = ["MigratingPlatform", "begin"]


def begin(hardware: PlatformHardware) -> tuple[Migration, DmaLogger]:
    """For hardware that is ``migratable``."""
    migratable = cast("MigratableHardware", hardware)
    return Migration(MigratingPlatform(migratable)), DmaLogger(migratable.log_dma)


class MigratingPlatform:
    """Implements ``core.migration.states.MigrationDevice``."""

    resets = 0
    """A platform device has no register that resets it behind the driver's back."""

    def __init__(self, hardware: MigratableHardware) -> None:
        self._hardware = hardware

    @property
    def identity(self) -> str:
        """Equal for devices that can take each other's data."""
        return self._hardware.identity

    @property
    def memories(self) -> Mapping[int, memoryview]:
        """The bytes of regions that are plain memory."""
        return self._hardware.memories

    def quiesce(self, activity: Activity) -> None:
        """Restrict the device to ``activity``."""
        self._hardware.quiesce(activity)

    def save(self) -> bytes:
        """The hardware's state. Raises Unsupported for what cannot be saved now."""
        return self._hardware.save_state()

    def load(self, state: bytes) -> None:
        """Take over a state. Raises InvalidArgument if it is not that of such a device."""
        self._hardware.load_state(state)
