"""``Migrating``: a device model whose state can be moved to another one of its kind.

A model takes part by two things: ``migratable`` is True, and ``save`` and ``load`` move what the model keeps in
attributes of its own. Registers, memory, what the bus keeps and pending calls are moved anyway.

    activity   pending calls   DMA       registers            interrupts   memory, configuration space
    FULL       run             goes out  answer               are sent     answer
    QUIET      stand still     faults    answer               are sent     answer
    STOPPED    stand still     faults    ones; not written    wait         answer; so does the MSI-X table

A mapping of polled registers shows them throughout; what is stored there while the device is STOPPED is wiped.

A register hook that starts DMA of its own while the device is QUIET meets a DmaFault, which the domain records: the
program has asked the device to be quiet and must not start it.

The state of a model is bytes: sections, little-endian: u16 length of the name, the name, u32 length of the content, the
content::

    registers N     of region N: a u64 for each value, in the order of their slots
    calls           a line for each: seconds left, the method's name, its arguments (numbers)
    model           what the model's ``save`` returned
    others          what the bus keeps: ``_save_bus``

Memory is not part of it: the driver moves it. ``load_state`` checks all sections before it changes anything; then
the model's own ``load`` may still refuse its part. A pending call may only name a method that the model's own class has
added to those of the kit, or one of ``callable_later``.

It does not know streams, states of migration or drivers.
"""

from __future__ import annotations

import struct
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from uvfio.core.bus import Activity
from uvfio.errors import InvalidArgument
from uvfio.kit.model import DeviceModel
from uvfio.kit.state import pack, unpack

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from uvfio.core.translation.dma_log import DmaLog

__all__ = ["Migrating"]


class Migrating(DeviceModel):
    """See the module's head."""

    activity: Activity = Activity.FULL
    callable_later: ClassVar[tuple[str, ...]] = ()
    """Methods of the kit that a pending call may name."""

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

    # -- Movable ---------------------------------------------------------------------------------

    @property
    def identity(self) -> str:
        """Equal for devices that can take each other's state: class, what the bus shows, regions, registers."""
        registers = " ".join(
            f"{index}:{len(registers.values)}" for index, registers in self.register_maps.items()
        )
        return f"{type(self).__qualname__} {self._bus_identity()} registers {registers}"

    def quiesce(self, activity: Activity) -> None:
        """Do no more than ``activity`` allows, from now on."""
        with self.lock:
            self.activity = activity
            self.dma.quiet = activity is not Activity.FULL
            self._settle_windows()
            if activity is Activity.FULL:
                self._pending.resume()
            else:
                self._pending.pause()
            self._hold_interrupts(activity is Activity.STOPPED)

    def log_dma(self, log: DmaLog | None) -> None:
        """Mark each DMA write in ``log``, or stop that."""
        self.dma.log = log

    def save_state(self) -> bytes:
        """All but memory, while not FULL. Unsupported for a pending call that has no name."""
        with self.lock:
            calls = [
                (repr(left), name, *map(str, args)) for left, name, args in self._pending.export()
            ]
            sections = {
                **self._save_bus(),
                "calls": "\n".join(map(" ".join, calls)).encode(),
                "model": self.save(),
            }
            for index, registers in self.register_maps.items():
                values = registers.values
                sections[f"registers {index}"] = struct.pack(f"<{len(values)}Q", *values)
            return pack(sections)

    def load_state(self, state: bytes) -> None:
        """Take over a state. InvalidArgument for bytes that are not the state of such a model."""
        with self.lock:
            sections = unpack(state)
            try:
                values = {
                    index: struct.unpack(
                        f"<{len(registers.values)}Q", sections[f"registers {index}"]
                    )
                    for index, registers in self.register_maps.items()
                }
                calls = [self._call(line) for line in sections["calls"].decode().splitlines()]
                own = sections["model"]
                take_bus = self._load_bus(sections)
            except (KeyError, ValueError, struct.error) as wrong:
                raise InvalidArgument(
                    f"{self.name}: this is no state of such a device: {wrong}"
                ) from wrong
            for index, found in values.items():
                self.register_maps[index].values[:] = found
            take_bus()
            self._pending.cancel_all()
            for seconds, callback in calls:
                self.after(seconds, callback)
            self.load(own)
            self._settle_loaded()
            self._polling.refresh()

    def _call(self, line: str) -> tuple[float, Callable[[], None]]:
        """One pending call. ValueError if the model has no such method of its own."""
        seconds, name, *arguments = line.split(" ")
        left = float(seconds)
        own = any(
            name in vars(kind)
            for kind in type(self).__mro__
            if not kind.__module__.startswith("uvfio.kit.") and kind is not object
        )
        method = getattr(self, name, None)
        allowed = own or name in self.callable_later
        if not allowed or not callable(method) or not 0 <= left < 1e9:
            raise ValueError(f"pending call {line!r}")
        return left, partial(method, *map(int, arguments)) if arguments else method

    # -- what the bus adds -----------------------------------------------------------------------

    def _bus_identity(self) -> str:
        """What ``identity`` states of the bus's side of the device."""
        return ""

    def _save_bus(self) -> Mapping[str, bytes]:
        """Sections for what the bus keeps of the device."""
        return {}

    def _load_bus(self, sections: Mapping[str, bytes]) -> Callable[[], None]:
        """Check those sections (KeyError, ValueError, struct.error) and return what takes them over."""
        return lambda: None

    def _settle_windows(self) -> None:
        """Make ``_windows`` what answers in this state and activity."""

    def _settle_loaded(self) -> None:
        """Everything is loaded: let power and windows follow."""

    def _hold_interrupts(self, held: bool) -> None:
        """Interrupts wait, or those that waited are sent."""
