"""eventfds of a program, and the supervisor's clock: all events but trapped calls.

``Reactor`` is the one place that waits. While no descriptor is watched and no timer runs, the
supervisor blocks in RECV and the reactor costs nothing; otherwise it waits here for the listener and
everything else together. Callbacks run on the supervisor's thread, between two trapped calls.

Timers have the resolution of the clock: one timerfd among the descriptors is set to the earliest of them, since epoll's
own time-out counts whole milliseconds.

An eventfd of the program is held by a copy of its descriptor (pidfd_getfd). It is never read here, so the program
keeps its count: edge-triggered epoll reports its edges.

What this does not do: receive notifications; ``wait_for`` returns when the listener has one.
"""

from __future__ import annotations

import heapq
import os
import select
from collections import deque
from itertools import chain, count
from time import monotonic
from typing import TYPE_CHECKING

from uvfio.doors.run.linux import syscalls as sc
from uvfio.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from threading import Condition

__all__ = ["EventFd", "Reactor", "RunTimer"]

LAST_ALARM = float(1 << 32)  # seconds; a later timer is looked at again then
ONE = (1).to_bytes(8, "little")
EVENTFD_LINK = "anon_inode:[eventfd]"


class RunTimer:
    """A pending call of the reactor."""

    __slots__ = ("callback", "due", "reactor")

    def __init__(self, reactor: Reactor, due: float, callback: Callable[[], None]) -> None:
        self.reactor = reactor
        self.due = due
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        """Do not call (idempotent; nothing happens when it was called already)."""
        if self.callback is not None:
            self.callback = None
            self.reactor.forget_cancelled()


class Reactor:
    """Descriptors and timers. Implements the ``Clock`` seam.

    ``on_error`` is called, inside the ``except``, for a callback that raised: the bug of one model does not stop other
    callbacks. A level-triggered descriptor whose callback raised is not watched any more: it would only raise again.
    """

    def __init__(self, on_error: Callable[[], None] | None = None) -> None:
        self.on_error = on_error or _raise_again
        self._epoll = select.epoll()
        self._alarm = sc.timerfd_create()
        self._epoll.register(self._alarm, select.EPOLLIN | select.EPOLLET)
        self._alarm_at: float | None = None  # None: it has gone off, or was never set
        self._watched: dict[int, Callable[[], None]] = {}
        self._edges: set[int] = set()
        self.timers: list[tuple[float, int, RunTimer]] = []
        self._order = count()
        self._cancelled = 0
        self._posted: deque[Callable[[], None]] = deque()
        self._bell = -1
        self.active = 0  # how many need the wait here
        self.since = 0.0  # when the call or callback that runs now began

    # -- Clock -----------------------------------------------------------------------------------

    def monotonic(self) -> float:
        """The time in seconds (CLOCK_MONOTONIC)."""
        return monotonic()

    def call_later(self, delay: float, callback: Callable[[], None]) -> RunTimer:
        """Call ``callback`` once, ``delay`` seconds from now or later; at once if that is negative, never if it is
        infinite. ValueError if it is not a number."""
        due = monotonic() + delay
        if due != due:  # no order: the heap would lose other timers
            raise ValueError(f"a delay of {delay} s: not a number of seconds")
        timer = RunTimer(self, due, callback)
        heapq.heappush(self.timers, (timer.due, next(self._order), timer))
        return timer

    def wait(self, condition: Condition, seconds: float) -> None:
        """Wait until ``condition`` is notified, ``seconds`` at most."""
        condition.wait(seconds)

    def forget_cancelled(self) -> None:
        """One more timer is cancelled: as soon as they are half of all, none of them is kept."""
        self._cancelled += 1
        if 2 * self._cancelled >= len(self.timers):
            self.timers = [entry for entry in self.timers if entry[2].callback is not None]
            heapq.heapify(self.timers)
            self._cancelled = 0

    # -- waiting ---------------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """Whether the supervisor has to wait here instead of in RECV."""
        return self.active > 0 or bool(self.timers)

    def watch(
        self,
        fd: int,
        callback: Callable[[], None],
        *,
        edge: bool = False,
        wake: bool = True,
        writable: bool = False,
    ) -> Callable[[], None]:
        """Call ``callback`` when ``fd`` is readable, or ``writable``; returns the function that ends it.

        Without ``wake`` the descriptor is polled only when the reactor runs anyway (``poll``): for events that can
        wait until the next call that depends on them.
        """
        event = select.EPOLLOUT if writable else select.EPOLLIN
        self._epoll.register(fd, event | (select.EPOLLET if edge else 0))
        self._watched[fd] = callback
        if edge:
            self._edges.add(fd)
        self.active += wake
        stopped = False

        def stop() -> None:
            nonlocal stopped
            if not stopped:
                stopped = True
                if self._watched.get(fd) is callback:
                    self._forget(fd)
                self.active -= wake

        return stop

    def accept_posts(self) -> Callable[[], None]:
        """From now on other threads may ``post``, and the supervisor waits here because of them, until the function
        that this returns is called."""
        if self._bell < 0:
            self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            self.watch(self._bell, self._run_posted, wake=False)
        self.active += 1
        stopped = False

        def stop() -> None:
            nonlocal stopped
            if not stopped:
                stopped = True
                self.active -= 1

        return stop

    def post(self, callback: Callable[[], None]) -> None:
        """Run ``callback`` on the supervisor's thread, soon. For other threads; see ``accept_posts``."""
        self._posted.append(callback)
        if self._bell >= 0:
            os.write(self._bell, ONE)

    def _run_posted(self) -> None:
        os.read(self._bell, 8)
        while self._posted:
            self.since = monotonic()
            try:
                self._posted.popleft()()
            except BaseException:
                self.on_error()

    def poll(self, timeout: float | None = 0) -> None:
        """Run the callbacks of readable descriptors, after waiting for up to ``timeout`` seconds. No timer runs."""
        for fd, _ in self._epoll.poll(timeout):
            self._call(fd)

    def wait_for(self, fd: int) -> bool:
        """One turn: wait, run what is due; returns whether ``fd`` (watched) is readable."""
        timeout = None
        if self.timers:
            timeout = self._set_alarm(self.timers[0][0])
        ready = False
        for found, _ in self._epoll.poll(timeout):
            if found == fd:
                ready = True
            elif found == self._alarm:
                self._alarm_at = None
            else:
                self._call(found)
        self.run_timers()
        return ready

    def _set_alarm(self, due: float) -> float | None:
        """Let the alarm end the wait at ``due``. Returns the time-out of the wait: 0 if it is past, or None."""
        if due <= monotonic():
            return 0
        due = min(due, LAST_ALARM)
        if due != self._alarm_at:
            sc.timerfd_settime(self._alarm, due)
            self._alarm_at = due
        return None

    def _call(self, fd: int) -> None:
        callback = self._watched.get(fd)
        if callback is None:
            return
        self.since = monotonic()
        try:
            callback()
        except BaseException:
            if fd not in self._edges and self._watched.get(fd) is callback:
                self._forget(fd)
            self.on_error()

    def _forget(self, fd: int) -> None:
        del self._watched[fd]
        self._edges.discard(fd)
        self._epoll.unregister(fd)

    def run_timers(self) -> None:
        """Run the timers that are due now; those that they start wait for the next turn."""
        if not self.timers:
            return
        now, later = monotonic(), next(self._order)
        while self.timers and self.timers[0][0] <= now and self.timers[0][1] < later:
            timer = heapq.heappop(self.timers)[2]
            callback, timer.callback = timer.callback, None
            if callback is None:
                self._cancelled -= 1
                continue
            self.since = monotonic()
            try:
                callback()
            except BaseException:
                self.on_error()

    def close(self) -> None:
        """Close the descriptors of the reactor."""
        self._epoll.close()
        alarm, self._alarm = self._alarm, -1
        if alarm >= 0:
            os.close(alarm)
        bell, self._bell = self._bell, -1
        if bell >= 0:
            os.close(bell)


class EventFd:
    """A reference to an eventfd of the program. InvalidArgument if ``fd`` is another kind of file.

    Takes over ``fd``. ``holders`` gives the processes that may have it, the likely ones.
    """

    __slots__ = ("_holders", "_reactor", "_space", "_stop", "fd")

    def __init__(
        self, fd: int, reactor: Reactor, holders: Callable[[], Iterable[int]] = tuple
    ) -> None:
        self.fd = fd
        self._holders = holders
        self._reactor = reactor
        self._stop: Callable[[], None] | None = None
        if os.readlink(f"/proc/self/fd/{fd}") != EVENTFD_LINK:
            os.close(fd)
            self.fd = -1
            raise InvalidArgument("the descriptor is not an eventfd")
        self._space = select.poll()
        self._space.register(fd, select.POLLOUT)

    def signal(self) -> None:
        """Add 1; a counter at its maximum stays there, as eventfd_signal leaves it."""
        if self.fd >= 0 and self._space.poll(0):
            os.write(self.fd, ONE)

    def watch(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call ``callback`` after each signal of another party, also for one that is pending already."""
        self._stop = self._reactor.watch(self.fd, callback, edge=True)
        return self._stop

    def abandoned(self) -> bool:
        """Whether no other process has it open. The reference here keeps the kernel from telling (EPOLLHUP), so the
        descriptors of processes are looked through: those of its programs first, then all. One that is on its way in
        a message of a socket is not found."""
        number = eventfd_number("self", str(self.fd))
        known = [str(pid) for pid in self._holders()]
        others = (name for name in os.listdir("/proc") if name.isdigit())
        return not any(_has_eventfd(pid, number) for pid in chain(known, others))

    def close(self) -> None:
        """Drop this reference (idempotent)."""
        if self.fd >= 0:
            if self._stop:
                self._stop()
            os.close(self.fd)
            self.fd = -1

    def __del__(self) -> None:
        self.close()


def eventfd_number(pid: str, fd: str) -> int:
    """The number of the eventfd behind a descriptor: descriptors of one eventfd have the same. OSError."""
    with open(f"/proc/{pid}/fdinfo/{fd}", "rb") as file:
        return int(file.read().partition(b"eventfd-id:")[2].split()[0])


def _has_eventfd(pid: str, number: int) -> bool:
    if pid == str(os.getpid()):
        return False
    try:
        for fd in os.listdir(f"/proc/{pid}/fd"):
            try:
                link = os.readlink(f"/proc/{pid}/fd/{fd}")
                if link == EVENTFD_LINK and eventfd_number(pid, fd) == number:
                    return True
            except OSError:
                continue  # closed meanwhile
    except OSError:
        pass  # it has ended, or is another user's
    return False


def _raise_again() -> None:
    """The default ``on_error``: the error goes to the caller of the turn."""
    raise  # noqa: PLE0704
