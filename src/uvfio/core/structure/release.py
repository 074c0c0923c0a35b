"""``unbind_device`` and its policy: how a device is taken back from its users (review row 15, D23).

A device can be taken from its VFIO driver only while its context is idle. When it is not:

    1. at once: the whole set takes no new users (Gone), so the wait cannot starve
    2. request: the driver's ``request(n)``, again every ``interval`` seconds with a growing number
    3. wait: until the set is idle, the caller's time-out (Busy), or cancellation (Cancelled)
    4. revoke, only if the caller asks for it, after the time-out or at once without one: the device's
       group leaves its set, its open files answer Gone from then on, mappings of the others stay

``begin_unbind`` returns the policy as an object to poll, for callers that cannot wait (a supervisor that answers other
calls meanwhile); ``unbind_device`` polls it and waits in between. Time is that of the machine's clock (``Clock``). A
refused unbind changes nothing: the set takes users again.

This module does not touch memory that a program has mapped: it stays mapped, and the door makes its accesses fault.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from uvfio.core.structure.iommu import Lifetime
from uvfio.core.structure.nodes import Nodes
from uvfio.errors import Busy, Cancelled, InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Callable

    from uvfio.core.bus import BoundDevice, BusDevice
    from uvfio.core.structure.device import Device
    from uvfio.core.structure.group import Group
    from uvfio.core.waiting import Wait

__all__ = ["Release", "Releases"]


class Releases(Nodes):
    """The part of the framework that takes devices back from their users."""

    def removable(self, device: Device) -> bool:
        """Whether the device's context is idle (vfio_device_removeable); for a context that
        ends with its handle: whether the device is not open."""
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
        """Poll until it is done, and wait in between. Raises as ``poll``, and Cancelled; then the wait is given up."""
        try:
            while not wait.poll():
                with self.lock:
                    if wait.ready:
                        continue
                    if cancelled and cancelled():
                        raise Cancelled(f"{wait.what} was cancelled")
                    self.clock.wait(self.released, wait.delay())
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
                from uvfio.core.events import DeviceRevoked

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

    def _orphan(self, group: Group) -> None:
        """A device was unbound: if it was the last of its group, the mainline interface takes the group for gone."""
        self._forget_nodes(group)
        if any(device.bound for device in group.devices):
            return
        for held in [held for held in group.opens if held.exclusive]:
            held.orphan = True
            group.opens.remove(held)
        iommu = group.iommu
        if iommu is not None and iommu.lifetime is Lifetime.WITH_HANDLE:
            self._depart(iommu, group)


class Release:
    """One unbind in progress. ``poll`` does the next step, and never waits.

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
        framework: Releases,
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
        self._deadline = None if limit is None else framework.clock.monotonic() + limit
        self._ask_at: float | None = None
        self._open = True
        device.departing += 1

    @property
    def what(self) -> str:
        """ "unbinding" and the address."""
        return f"unbinding {self.device.name}"

    @property
    def ready(self) -> bool:
        """Whether the device is idle, so that the next ``poll`` unbinds it."""
        return self._framework.removable(self.device)

    def poll(self) -> bool:
        """Whether the device is unbound now. Requests are made when they are due, without the lock.
        Busy after the time-out, InvalidArgument if another caller unbound it."""
        try:
            while self._open and not self.ready:
                now = self._framework.clock.monotonic()
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
        """Seconds until the next request or the time-out."""
        due = self._ask_at or 0.0
        if self._deadline is not None:
            due = min(due, self._deadline)
        return max(due - self._framework.clock.monotonic(), 0.0)

    def cancel(self) -> None:
        """Give up; nothing if it is done already."""
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
            from uvfio.core.events import DeviceRequested

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
            if framework.observer:
                framework._emit_unbound(device, device.driver.name)
            framework._orphan(device.group)
            if device.gone:
                framework._remove_device(device)
            self.data = data
            self.cancel()
