"""``Ioevents``: stores that the host makes for the program whenever an eventfd is signalled (VFIO_DEVICE_IOEVENTFD).

They end with the last close of the device. Behaviour: drivers/vfio/pci/vfio_pci_rdwr.c, vfio_pci_ioeventfd.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from uvfio.errors import NoSpace, NoSuchDevice, Overlap

if TYPE_CHECKING:
    from collections.abc import Callable

    from uvfio.core.seams import Event

__all__ = ["Ioevents"]

IOEVENTS_MAX = 1000


class Ioevents:
    """Stores on demand: (BAR, offset, width, value) -> the event that asks for it."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[tuple[int, int, int, int], tuple[Event, Callable[[], None]]] = {}

    def add(
        self,
        key: tuple[int, int, int, int],
        event: Callable[[], Event],
        store: Callable[[], None],
    ) -> None:
        """Call ``store`` at each signal. Overlap, NoSpace, then what ``event`` raises."""
        if key in self._known:
            raise Overlap("an eventfd does exactly this store already", "remove it with fd -1")
        if len(self._known) >= IOEVENTS_MAX:
            raise NoSpace(f"there are {IOEVENTS_MAX} stores by eventfd, which is the most")
        got = event()
        self._known[key] = got, got.watch(store)

    def remove(self, key: tuple[int, int, int, int]) -> None:
        """NoSuchDevice if there is none."""
        found = self._known.pop(key, None)
        if found is None:
            raise NoSuchDevice("no eventfd does exactly this store")
        _end(found)

    def clear(self) -> None:
        """The device is closed."""
        known, self._known = self._known, {}
        for found in known.values():
            _end(found)


def _end(found: tuple[Event, Callable[[], None]]) -> None:
    event, cancel = found
    cancel()
    event.close()
