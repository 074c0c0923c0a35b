"""Migration of a PCI function in the hands of vfio-pci: what is saved besides the function's own state.

    part       what                                           on the other side
    config     the copy of configuration space that programs  the bits that a program may write
               see
    function   the silicon's own (``save_state``)             loaded, then the host's part put back: addresses,
                                                              decoding, message interrupts as set there

Events are not saved: they belong to the program, which sets its own on the other side, before or after. An interrupt
that is pending in the function is delivered there once the device runs.

``begin`` makes what an open device has for migration. It does not know streams, states or files.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from uvfio.core.migration.states import Migration
from uvfio.core.translation.dma_log import DmaLogger
from uvfio.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from uvfio.core.bus import Activity
    from uvfio.drivers.pci.config import ConfigSpace
    from uvfio.drivers.pci.hardware import MigratableFunction, PciFunction

__all__ = ["MigratingPci", "begin"]

LENGTH_SIZE = 4


def begin(
    function: PciFunction,
    space: ConfigSpace,
    recover: Callable[[], None],
    settle: Callable[[], None],
) -> tuple[Migration, DmaLogger]:
    """For a function that is ``migratable``. ``recover`` puts the host's part of the hardware state back, ``settle``
    is told when the program's part is there."""
    migratable = cast("MigratableFunction", function)
    device = MigratingPci(migratable, space, recover, settle)
    return Migration(device), DmaLogger(migratable.log_dma)


class MigratingPci:
    """Implements ``core.migration.MigrationDevice``."""

    def __init__(
        self,
        function: MigratableFunction,
        space: ConfigSpace,
        recover: Callable[[], None],
        settle: Callable[[], None],
    ) -> None:
        self._function = function
        self._space = space
        self._recover = recover
        self._settle = settle

    @property
    def identity(self) -> str:
        """Equal for devices that can take each other's data: model, options, layout."""
        return self._function.identity

    @property
    def resets(self) -> int:
        """How often the device was reset by a write to configuration space."""
        return self._function.resets

    @property
    def memories(self) -> Mapping[int, memoryview]:
        """The bytes of BARs that are plain memory, mappable or not."""
        return self._function.memories

    def quiesce(self, activity: Activity) -> None:
        """Restrict the device to ``activity``; resets do not change that. Time that it measures stands still
        meanwhile."""
        self._function.quiesce(activity)

    def save(self) -> bytes:
        """The length of the configuration space's copy (4 bytes), the copy, the function's state."""
        copy = self._space.save()
        return len(copy).to_bytes(LENGTH_SIZE, "little") + copy + self._function.save_state()

    def load(self, state: bytes) -> None:
        """Take over what ``save`` returned for such a device. Raises InvalidArgument. The host's addresses and
        enable bits are restored in any case."""
        end = LENGTH_SIZE + int.from_bytes(state[:LENGTH_SIZE], "little")
        if len(state) < end:
            raise InvalidArgument(f"{len(state)} bytes of state, {end} at least")
        try:
            self._function.load_state(state[end:])
        finally:
            self._recover()
        self._space.load(state[LENGTH_SIZE:end])
        self._settle()
