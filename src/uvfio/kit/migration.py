"""The part of ``PciModel`` that migration uses; implements ``drivers.pci.hardware.MigratableFunction``.

A model takes part by two things: ``migratable`` says so, and ``save`` and ``load`` move what the model keeps in
attributes of its own. Registers, memory, configuration space, interrupts and pending calls are moved anyway.

    activity   pending calls   DMA       register BARs        interrupts   memory, configuration space
    FULL       run             goes out  answer               are sent     answer
    QUIET      stand still     faults    answer               are sent     answer
    STOPPED    stand still     faults    ones; not written    wait         answer; so does the MSI-X table

A mapping of polled registers shows them throughout; what is stored there while the function is STOPPED is wiped.

A register hook that starts DMA of its own while the function is QUIET meets a DmaFault, which the domain records: a
program must not touch a device that it has asked to be quiet.

It does not know streams, states or drivers. Its state is the model's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from uvfio.core.bus import Activity
from uvfio.errors import InvalidArgument

if TYPE_CHECKING:
    from uvfio.core.translation.dma_log import DmaLog
    from uvfio.kit.dma import Dma
    from uvfio.kit.pci.interrupt import Interrupts
    from uvfio.kit.pci.model import PciModel
    from uvfio.kit.pending import PendingCalls
    from uvfio.kit.polled import Polling

__all__ = ["Migrating"]


class Migrating:
    """See the module's head."""

    lock: Any
    dma: Dma
    interrupts: Interrupts
    activity: Activity = Activity.FULL
    resets: int = 0
    """How often a write to configuration space has reset the function."""
    _pending: PendingCalls
    _polling: Polling

    if TYPE_CHECKING:

        def _settle_windows(self) -> None: ...
        def _settle_power(self) -> None: ...

    # -- for authors -----------------------------------------------------------------------------

    @property
    def migratable(self) -> bool:
        """Whether the state can be saved and given to another device; override it: True, or what an option says."""
        return False

    def save(self) -> bytes:
        """What ``on_reset`` sets up, as bytes: state that is neither registers nor memory."""
        return b""

    def load(self, state: bytes) -> None:
        """Take what ``save`` of another one gave; everything else is in place. InvalidArgument if it cannot be."""
        if state:
            raise InvalidArgument(f"{len(state)} bytes of state, this model has none of its own")

    # -- MigratableFunction ----------------------------------------------------------------------

    @property
    def identity(self) -> str:
        from uvfio.kit.state import identity

        return identity(self._model())

    def quiesce(self, activity: Activity) -> None:
        with self.lock:
            self.activity = activity
            self.dma.quiet = activity is not Activity.FULL
            self._settle_windows()
            if activity is Activity.FULL:
                self._pending.resume()
            else:
                self._pending.pause()
            self.interrupts.hold(activity is Activity.STOPPED)

    def log_dma(self, log: DmaLog | None) -> None:
        self.dma.log = log

    def save_state(self) -> bytes:
        from uvfio.kit.state import save

        with self.lock:
            return save(self._model(), self._pending)

    def load_state(self, state: bytes) -> None:
        from uvfio.kit.state import load

        with self.lock:
            load(self._model(), self._pending, state)
            self._settle_power()
            self._polling.refresh()

    def _model(self) -> PciModel:
        return cast("PciModel", self)
