"""What happens when an owner must let go: ``unbind_device`` and its policy (review row 15, D23).

A device can be taken from its VFIO driver only while its context is idle. When it is not:

    1. at once: the whole set takes no new users (Gone), so the wait cannot starve
    2. ask: the driver's ``request(n)``, again every ``interval`` seconds with a growing number
    3. wait: until the set is idle, the caller's time-out (Busy), or cancellation (Cancelled)
    4. revoke, only if the caller asks for it, after the time-out or at once without one: the device's
       group leaves its set, its open files answer Gone from then on, mappings of the others stay

``begin_unbind`` is the rule as a thing that is polled, for callers that cannot wait (a supervisor that answers
others meanwhile); ``unbind_device`` polls it and waits in between. A refused unbind changes nothing: the set takes
users again. Memory that a program has mapped stays mapped
but leads to a dead device; that is the door's business.
"""

from __future__ import annotations

from threading import Condition, RLock
from time import monotonic
from typing import TYPE_CHECKING

from uvfio.core.events import DeviceRequested, DeviceRevoked
from uvfio.core.structure.iommu import Lifetime
from uvfio.errors import Busy, Cancelled, InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Callable

    from uvfio.core.events import Observer
    from uvfio.core.structure.device import BoundDevice, BusDevice, Device, OpenDevice
    from uvfio.core.structure.group import Group
    from uvfio.core.structure.iommu import Iommu
    from uvfio.core.waiting import Wait

__all__ = ["Release", "ReleaseMixin"]


class ReleaseMixin:
    """The part of the framework that ends use. Its state and lock are the framework's."""

    lock: RLock
    released: Condition
    observer: Observer | None

    if TYPE_CHECKING:

        def lookup(self, dev: BusDevice) -> Device | None: ...
        def _leave(self, iommu: Iommu, group: Group) -> None: ...
        def _orphan(self, group: Group) -> None: ...
        def _settle(self, iommu: Iommu) -> None: ...
        def close_device(self, opened: OpenDevice) -> None: ...
        def _remove_device(self, device: Device) -> None: ...

    def removable(self, device: Device) -> bool:
        """Whether the device's context is idle (vfio_device_removeable); today: whether it is not open."""
        with self.lock:
            iommu = device.iommu
            if device.cdevs:
                return False
            if iommu is None:
                return True
            if iommu.lifetime is Lifetime.WITH_HANDLE:
                return not device.in_use
            return not iommu.in_use

    def begin_unbind(
        self,
        dev: BusDevice,
        *,
        timeout: float | None = None,
        revoke: bool = False,
        interval: float = 10.0,
    ) -> Release:
        """Start to take the device from its VFIO driver; what is returned has to be polled until it is done, or
        cancelled. InvalidArgument if the device is unknown or not bound."""
        with self.lock:
            device = self.lookup(dev)
            if device is None or device.data is None:
                raise InvalidArgument(f"{dev.name} is not bound to a VFIO driver")
            return Release(self, device, timeout, revoke, interval)

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
        release = self.begin_unbind(dev, timeout=timeout, revoke=revoke, interval=interval)
        self.wait_for(release, cancelled)
        assert release.data is not None
        return release.data

    def wait_for(self, wait: Wait, cancelled: Callable[[], bool] | None = None) -> None:
        """Poll until it is done, and sleep in between. What ``poll`` raises, and Cancelled; then it is given up."""
        try:
            while not wait.poll():
                with self.lock:
                    if wait.ready:
                        continue
                    if cancelled and cancelled():
                        raise Cancelled(f"{wait.what} was cancelled")
                    self.released.wait(wait.delay())
        finally:
            wait.cancel()

    def _revoke(self, device: Device) -> None:
        """Take the device's group away from its users; members that merged with it are not disturbed.
        From a container the device alone is taken: its group stays.

        What the users have open is closed for them: an open or close in progress is waited for.
        """
        with self.lock:
            group = device.group
            if self.observer:
                self.observer(DeviceRevoked(device.name, str(group)))
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


class Release:
    """One unbind that is going on. ``poll`` does the next thing, and never waits.

    State: asking (the set takes no new users) -> done (``data`` is the driver's data), or ended by an error of
    ``poll`` or by ``cancel``: the set takes users again. Poll whenever something was closed (``released`` of the
    framework), and after ``delay`` seconds in any case.
    """

    __slots__ = (
        "_ask_at",
        "_deadline",
        "_framework",
        "_interval",
        "_limit",
        "_open",
        "_revoke",
        "data",
        "device",
    )

    def __init__(
        self,
        framework: ReleaseMixin,
        device: Device,
        timeout: float | None,
        revoke: bool,
        interval: float,
    ) -> None:
        self._limit = limit = 0.0 if revoke and timeout is None else timeout
        self.device = device
        self.data: BoundDevice | None = None
        self._framework = framework
        self._revoke = revoke
        self._interval = interval
        self._deadline = None if limit is None else monotonic() + limit
        self._ask_at: float | None = None
        self._open = True
        device.departing += 1

    @property
    def what(self) -> str:
        return f"unbinding {self.device.name}"

    @property
    def ready(self) -> bool:
        return self._framework.removable(self.device)

    def poll(self) -> bool:
        """Whether the device is unbound now. Its users are asked when it is time to, without the lock.
        Busy after the time-out, InvalidArgument if somebody else unbound it."""
        try:
            while self._open and not self.ready:
                now = monotonic()
                if (
                    self._ask_at is not None
                    and self._deadline is not None
                    and now >= self._deadline
                ):
                    self._time_out()
                    break
                if self._ask_at is not None and now < self._ask_at:
                    return False
                self._ask(now)
            self._finish()
        except BaseException:
            self.cancel()
            raise
        return True

    def delay(self) -> float:
        """Seconds until there is something to do although nothing was closed."""
        due = self._ask_at or 0.0
        if self._deadline is not None:
            due = min(due, self._deadline)
        return max(due - monotonic(), 0.0)

    def cancel(self) -> None:
        """Give up; nothing happens when it is done already."""
        with self._framework.lock:
            if self._open:
                self._open = False
                self.device.departing -= 1
                self._framework.released.notify_all()

    def _ask(self, now: float) -> None:
        device = self.device
        with self._framework.lock:
            self._ask_at = now + self._interval
            device.requests += 1
            data, count = device.data, device.requests
        if self._framework.observer:
            self._framework.observer(DeviceRequested(device.name, count))
        if data is not None:
            data.request(count)

    def _time_out(self) -> None:
        device = self.device
        if not self._revoke:
            users = "+".join(str(g) for g in device.iommu.groups) if device.iommu else ""
            raise Busy(
                f"{device.name} is in use (group {users}) and was not released within "
                f"{self._limit} s",
                "stop the program that uses it, or revoke it",
            )
        self._framework._revoke(device)

    def _finish(self) -> None:
        device, framework = self.device, self._framework
        with framework.lock:
            if not self._open:
                return
            data = device.data
            if data is None:
                raise InvalidArgument(f"{device.name} was unbound by somebody else")
            device.data = None
            device.requests = 0
            framework._orphan(device.group)
            if device.gone:
                framework._remove_device(device)
            self.data = data
            self.cancel()
