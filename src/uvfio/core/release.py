"""What happens when an owner must let go: ``unbind_device`` and its policy (review row 15, D23).

A device can be taken from its VFIO driver only while its context is idle. When it is not:

    1. at once: the whole set takes no new users (Gone), so the wait cannot starve
    2. ask: the driver's ``request(n)``, again every ``interval`` seconds with a growing number
    3. wait: until the set is idle, the caller's time-out (Busy), or cancellation (Cancelled)
    4. revoke, only if the caller asks for it, after the time-out or at once without one: the device's
       group leaves its set, its open files answer Gone from then on, mappings of the others stay

A refused unbind changes nothing: the set takes users again. Memory that a program has mapped stays mapped
but leads to a dead device; that is the door's business.
"""

from __future__ import annotations

from threading import Condition, RLock
from time import monotonic
from typing import TYPE_CHECKING, Any

from uvfio.core.iommu import Lifetime
from uvfio.errors import Busy, Cancelled, InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Callable

    from uvfio.core.device import BoundDevice, BusDevice, Device, OpenDevice
    from uvfio.core.group import Group
    from uvfio.core.iommu import Iommu

__all__ = ["ReleaseMixin"]


class ReleaseMixin:
    """The part of the framework that ends use. Its state and lock are the framework's."""

    lock: RLock
    released: Condition

    if TYPE_CHECKING:

        def lookup(self, dev: BusDevice) -> Device | None: ...
        def notify(self, kind: str, **facts: Any) -> None: ...
        def _leave(self, iommu: Iommu, group: Group) -> None: ...
        def _orphan(self, group: Group) -> None: ...
        def _settle(self, iommu: Iommu) -> None: ...
        def close_device(self, opened: OpenDevice) -> None: ...
        def _remove_device(self, device: Device) -> None: ...

    def removable(self, device: Device) -> bool:
        """Whether the device's context is idle (vfio_device_removeable); today: whether it is not open."""
        with self.lock:
            iommu = device.iommu
            if iommu is None:
                return True
            if iommu.lifetime is Lifetime.WITH_HANDLE:
                return not device.in_use
            return not iommu.in_use

    def unbind_device(
        self,
        dev: BusDevice,
        *,
        timeout: float | None = None,
        revoke: bool = False,
        interval: float = 10.0,
        cancelled: Callable[[], bool] | None = None,
    ) -> BoundDevice:
        """Take the device from its VFIO driver and return the driver's data (vfio_unbind_dev).

        ``timeout`` in seconds (None: for ever; 0: do not wait). ``revoke``: after the time-out (or at once,
        with None) take it away from its users. ``cancelled`` is asked whenever something changes and every
        ``interval`` seconds. InvalidArgument if the device is unknown or not bound, Busy, Cancelled.
        """
        with self.lock:
            device = self.lookup(dev)
            if device is None or device.data is None:
                raise InvalidArgument(f"{dev.name} is not bound to a VFIO driver")
            device.departing += 1
        try:
            limit = 0.0 if revoke and timeout is None else timeout
            if not self._wait(device, limit, interval, cancelled):
                if not revoke:
                    users = "+".join(str(g) for g in device.iommu.groups) if device.iommu else ""
                    raise Busy(
                        f"{device.name} is in use (group {users}) and was not released within "
                        f"{timeout} s",
                        "stop the program that uses it, or revoke it",
                    )
                self._revoke(device)
            with self.lock:
                data = device.data
                if data is None:
                    raise InvalidArgument(f"{dev.name} was unbound by somebody else")
                device.data = None
                device.requests = 0
                self._orphan(device.group)
                if device.gone:
                    self._remove_device(device)
                return data
        finally:
            with self.lock:
                device.departing -= 1
                self.released.notify_all()

    def _wait(
        self,
        device: Device,
        timeout: float | None,
        interval: float,
        cancelled: Callable[[], bool] | None,
    ) -> bool:
        """Whether the device became removable in time; its users are asked meanwhile, without the lock."""
        ask_at = monotonic()
        deadline = None if timeout is None else ask_at + timeout
        asked = False
        while True:
            with self.lock:
                if self.removable(device):
                    return True
                now = monotonic()
                if asked:
                    if cancelled and cancelled():
                        raise Cancelled(f"unbinding {device.name} was cancelled")
                    if deadline is not None and now >= deadline:
                        return False
                    if now < ask_at:
                        wake = ask_at if deadline is None else min(ask_at, deadline)
                        self.released.wait(wake - now)
                        continue
                asked, ask_at = True, now + interval
                device.requests += 1
                data, count = device.data, device.requests
            self.notify("request", device=device.name, count=count)
            if data is not None:
                data.request(count)

    def _revoke(self, device: Device) -> None:
        """Take the device's group away from its users; members that merged with it are not disturbed.
        From a container the device alone is taken: its group stays.

        What the users have open is closed for them: an open or close in progress is waited for.
        """
        with self.lock:
            group = device.group
            self.notify("revoke", device=device.name, group=str(group))
            alone = group.iommu is not None and group.iommu.lifetime is Lifetime.WITH_HANDLE
            members = [device] if alone else group.devices
            opens = [opened for member in members for opened in member.opens]
        for opened in opens:
            self.close_device(opened)
        with self.lock:
            iommu = group.iommu
            if iommu is None or alone:
                return
            if len(iommu.groups) > 1:
                self._leave(iommu, group)
            else:
                for handle in iommu.opens:
                    handle.iommu = None
                iommu.opens.clear()
            self._settle(iommu)
