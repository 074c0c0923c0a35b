"""The reactor and eventfds, with real descriptors."""

from __future__ import annotations

import errno
import os
import select
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from time import monotonic

import pytest

from support.puppet import open_descriptors
from uvfio.doors.run.linux import syscalls as sc
from uvfio.doors.run.session.reactor import EventFd, Reactor
from uvfio.errors import InvalidArgument

FULL = (1 << 64) - 2  # the most an eventfd holds


@pytest.fixture
def reactor() -> Iterator[Reactor]:
    reactor = Reactor()
    yield reactor
    reactor.close()


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for fd in ends:
        os.close(fd)


def turn(reactor: Reactor) -> None:
    """One turn that waits for what is due."""
    reactor.wait_for(-1)


def readable(fd: int) -> bool:
    return bool(select.select([fd], [], [], 0)[0])


# -- timers -------------------------------------------------------------------------------------------------


def test_timers_run_in_the_order_they_fall_due(reactor: Reactor) -> None:
    order: list[str] = []
    for delay, name in ((0.003, "third"), (0.001, "first"), (0.002, "second")):
        reactor.call_later(delay, lambda name=name: order.append(name))  # type: ignore[misc]
    while reactor.busy:
        turn(reactor)
    assert order == ["first", "second", "third"]


def test_timers_of_one_moment_run_in_the_order_they_were_set(
    reactor: Reactor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("uvfio.doors.run.session.reactor.monotonic", lambda: 5.0)
    order: list[int] = []
    for number in range(20):
        reactor.call_later(0, lambda number=number: order.append(number))  # type: ignore[misc]
    reactor.run_timers()
    assert order == list(range(20))


def test_no_timer_runs_early(reactor: Reactor) -> None:
    ran: list[float] = []
    start = reactor.monotonic()
    reactor.call_later(0.02, lambda: ran.append(reactor.monotonic()))
    reactor.run_timers()
    assert not ran
    while not ran:
        turn(reactor)
    assert ran[0] - start >= 0.02


def test_timers_have_the_resolution_of_the_clock(
    reactor: Reactor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """epoll's own time-out counts milliseconds: it is 0 or absent, and the alarm is set to the moment itself."""
    alarms: list[float] = []
    settime = sc.timerfd_settime

    def record(fd: int, seconds: float) -> None:
        alarms.append(seconds)
        settime(fd, seconds)

    monkeypatch.setattr(sc, "timerfd_settime", record)
    waits: list[float | None] = []
    epoll = reactor._epoll

    class Waits:
        def poll(self, timeout: float | None) -> list[tuple[int, int]]:
            waits.append(timeout)
            return epoll.poll(timeout)

        close = epoll.close

    reactor._epoll = Waits()  # type: ignore[assignment]
    ran: list[float] = []
    timers = [reactor.call_later(delay, lambda: ran.append(monotonic())) for delay in (0.002, 5e-5)]
    while len(ran) < 2:
        turn(reactor)
    assert set(waits) <= {0, None}
    dues = sorted(timer.due for timer in timers)
    assert [at for at in alarms if at not in dues] == []
    assert all(at >= due for at, due in zip(ran, dues, strict=True))


def test_the_alarm_is_set_anew_only_for_another_moment(
    reactor: Reactor, pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    alarms: list[float] = []
    monkeypatch.setattr(sc, "timerfd_settime", lambda fd, seconds: alarms.append(seconds))
    read, write = pipe
    reactor.watch(read, lambda: None)
    os.write(write, b"1")
    later = reactor.call_later(1000, lambda: None)
    for _ in range(3):
        assert reactor.wait_for(read)
    sooner = reactor.call_later(500, lambda: None)
    assert reactor.wait_for(read)
    sooner.cancel()
    assert reactor.wait_for(read)
    assert alarms == [later.due, sooner.due, later.due]


@pytest.mark.parametrize("delay", [2**31 / 1000, 1e12, 1e300])
def test_a_timer_may_be_as_late_as_it_likes(
    reactor: Reactor, pipe: tuple[int, int], delay: float
) -> None:
    read, write = pipe
    reactor.watch(read, lambda: None)
    os.write(write, b"1")
    reactor.call_later(delay, lambda: None)
    assert reactor.wait_for(read)
    assert reactor.busy


def test_polling_runs_no_timer(reactor: Reactor) -> None:
    ran: list[int] = []
    reactor.call_later(0, lambda: ran.append(1))
    reactor.poll(0)
    assert not ran
    turn(reactor)
    assert ran == [1]


def test_a_cancelled_timer_does_not_run(reactor: Reactor) -> None:
    ran: list[str] = []
    timer = reactor.call_later(0, lambda: ran.append("cancelled"))
    reactor.call_later(0, lambda: ran.append("other"))
    timer.cancel()
    timer.cancel()
    turn(reactor)
    assert ran == ["other"]
    timer.cancel()  # long after


def test_a_timer_can_cancel_one_that_is_due_as_well(reactor: Reactor) -> None:
    ran: list[str] = []

    def cancel() -> None:
        second.cancel()

    reactor.call_later(0, cancel)
    second = reactor.call_later(0, lambda: ran.append("second"))
    while reactor.busy:
        turn(reactor)
    assert not ran


def test_a_timer_runs_once_and_may_start_another(
    reactor: Reactor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a timer starts waits for the next turn: a model cannot keep the supervisor from its listener."""
    monkeypatch.setattr("uvfio.doors.run.session.reactor.monotonic", lambda: 5.0)
    ran: list[int] = []

    def again() -> None:
        ran.append(len(ran))
        reactor.call_later(0, again)

    reactor.call_later(0, again)
    for expected in range(1, 4):
        reactor.run_timers()
        assert len(ran) == expected


def test_cancelled_timers_are_forgotten(reactor: Reactor) -> None:
    """A watchdog that is always stopped in time neither keeps the supervisor busy nor fills its memory."""
    for _ in range(10_000):
        reactor.call_later(3600, lambda: None).cancel()
    assert not reactor.busy
    keep = [reactor.call_later(3600 + n, lambda: None) for n in range(10)]
    for _ in range(10_000):
        reactor.call_later(1800, lambda: None).cancel()
    assert len(reactor.timers) < 100
    assert reactor.busy
    for timer in keep:
        timer.cancel()
        timer.cancel()
    assert not reactor.busy


def test_cancelling_keeps_the_order_of_the_others(
    reactor: Reactor, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 5.0
    monkeypatch.setattr("uvfio.doors.run.session.reactor.monotonic", lambda: now)
    order: list[int] = []
    timers = [
        reactor.call_later((n * 7) % 50, lambda n=n: order.append((n * 7) % 50))  # type: ignore[misc]
        for n in range(50)
    ]
    for timer in timers[::3] + timers[1::3]:
        timer.cancel()
    now += 50
    reactor.run_timers()
    assert order == sorted((n * 7) % 50 for n in range(2, 50, 3))


# -- descriptors ----------------------------------------------------------------------------------------------


def test_busy_is_what_makes_the_supervisor_wait_here(
    reactor: Reactor, pipe: tuple[int, int]
) -> None:
    other = os.dup(pipe[0])
    assert not reactor.busy
    quiet = reactor.watch(pipe[0], lambda: None, wake=False)
    assert not reactor.busy
    loud = reactor.watch(other, lambda: None)
    assert reactor.busy
    assert reactor.active == 1
    loud()
    loud()
    quiet()
    assert reactor.active == 0
    assert not reactor.busy
    reactor.call_later(0, lambda: None)
    assert reactor.busy
    turn(reactor)
    assert not reactor.busy
    os.close(other)


def test_a_watch_that_failed_counts_for_nothing(reactor: Reactor, pipe: tuple[int, int]) -> None:
    stop = reactor.watch(pipe[0], lambda: None)
    with pytest.raises(FileExistsError):
        reactor.watch(pipe[0], lambda: None)
    with pytest.raises(PermissionError), open("/dev/null") as always_ready:
        reactor.watch(always_ready.fileno(), lambda: None)
    stop()
    assert not reactor.busy


def test_a_level_is_seen_until_it_is_gone(reactor: Reactor, pipe: tuple[int, int]) -> None:
    seen: list[int] = []
    reactor.watch(pipe[0], lambda: seen.append(1))
    os.write(pipe[1], b"xy")
    reactor.poll(0)
    reactor.poll(0)
    assert len(seen) == 2
    os.read(pipe[0], 2)
    reactor.poll(0)
    assert len(seen) == 2


def test_an_edge_is_seen_once(reactor: Reactor, pipe: tuple[int, int]) -> None:
    seen: list[int] = []
    reactor.watch(pipe[0], lambda: seen.append(1), edge=True)
    os.write(pipe[1], b"x")
    reactor.poll(0)
    reactor.poll(0)
    assert len(seen) == 1
    os.write(pipe[1], b"y")
    reactor.poll(0)
    assert len(seen) == 2


def test_a_callback_may_end_another_watch(reactor: Reactor, pipe: tuple[int, int]) -> None:
    """Both descriptors are ready in the same turn; what was ended is not called any more."""
    other = os.dup(pipe[0])
    ended: list[str] = []
    stops: dict[str, Callable[[], None]] = {}
    for name, partner, fd in (("a", "b", pipe[0]), ("b", "a", other)):

        def end(name: str = name, partner: str = partner) -> None:
            ended.append(name)
            stops[partner]()

        stops[name] = reactor.watch(fd, end)
    os.write(pipe[1], b"x")
    reactor.poll(0)
    assert len(ended) == 1
    os.close(other)


def test_waiting_for_the_listener(reactor: Reactor, pipe: tuple[int, int]) -> None:
    event = os.eventfd(0)
    seen: list[str] = []
    reactor.watch(pipe[0], lambda: seen.append("never"), wake=False)  # its reader is another

    def take() -> None:
        seen.append(f"event {os.eventfd_read(event)}")

    reactor.watch(event, take)
    os.eventfd_write(event, 1)
    assert not reactor.wait_for(pipe[0])
    assert seen == ["event 1"]
    os.write(pipe[1], b"x")
    reactor.call_later(0, lambda: seen.append("timer"))
    assert reactor.wait_for(pipe[0])
    assert seen == ["event 1", "timer"]
    os.close(event)


@pytest.mark.parametrize("edge", [False, True])
def test_a_callback_that_raises_harms_no_other(edge: bool, pipe: tuple[int, int]) -> None:
    told: list[str] = []
    reactor = Reactor(lambda: told.append(repr(sys.exc_info()[1])))

    def broken() -> None:
        raise LookupError("a model")

    first, second = pipe[0], os.dup(pipe[0])
    calls: list[str] = []
    stop = reactor.watch(first, broken, edge=edge)
    reactor.watch(second, lambda: calls.append("called"))
    os.write(pipe[1], b"x")
    reactor.poll()
    assert (told, calls) == (["LookupError('a model')"], ["called"])
    os.write(pipe[1], b"x")  # what is seen as a level would raise for ever
    reactor.poll()
    assert len(told) == (2 if edge else 1)
    assert len(calls) == 2
    stop()
    stop()
    assert reactor.active == 1
    reactor.watch(first, lambda: calls.append("again"))
    reactor.poll()
    assert "again" in calls
    reactor.close()
    os.close(second)


def test_other_threads_post(reactor: Reactor) -> None:
    reactor.accept_posts()
    reactor.accept_posts()
    assert reactor.busy
    where: list[int] = []
    thread = threading.Thread(
        target=lambda: reactor.post(lambda: where.append(threading.get_ident()))
    )
    thread.start()
    while not where:
        turn(reactor)
    thread.join()
    assert where == [threading.get_ident()]


def test_a_posted_call_that_raises_harms_no_other() -> None:
    told: list[object] = []
    reactor = Reactor(lambda: told.append(sys.exc_info()[0]))
    reactor.accept_posts()
    reactor.post(lambda: told.remove("nothing"))
    reactor.post(lambda: told.append("next"))
    turn(reactor)
    assert told == [ValueError, "next"]
    reactor.close()


# -- eventfds ---------------------------------------------------------------------------------------------------


@pytest.fixture
def fd() -> Iterator[int]:
    """The program's descriptor."""
    fd = os.eventfd(0, os.EFD_CLOEXEC)
    yield fd
    os.close(fd)


def test_signals_add_up(reactor: Reactor, fd: int) -> None:
    event = EventFd(os.dup(fd), reactor)
    for _ in range(3):
        event.signal()
    assert os.eventfd_read(fd) == 3
    assert not readable(fd)


def test_a_full_counter_stays_full(reactor: Reactor, fd: int) -> None:
    event = EventFd(os.dup(fd), reactor)
    os.eventfd_write(fd, FULL - 1)
    event.signal()
    event.signal()  # would block
    event.signal()
    assert os.eventfd_read(fd) == FULL
    event.signal()
    assert os.eventfd_read(fd) == 1


def test_a_semaphore_is_an_eventfd(reactor: Reactor) -> None:
    fd = os.eventfd(0, os.EFD_SEMAPHORE | os.EFD_NONBLOCK)
    event = EventFd(os.dup(fd), reactor)
    event.signal()
    event.signal()
    assert [os.eventfd_read(fd) for _ in range(2)] == [1, 1]
    os.close(fd)


@pytest.mark.parametrize("kind", ["pipe", "file", "memfd", "directory"])
def test_anything_else_is_refused_and_closed(reactor: Reactor, kind: str) -> None:
    before = open_descriptors()
    made = {
        "pipe": lambda: os.pipe()[1],
        "file": lambda: os.open("/dev/null", os.O_RDWR),
        "memfd": lambda: os.memfd_create("eventfd"),
        "directory": lambda: os.open("/", os.O_RDONLY),
    }[kind]()
    with pytest.raises(InvalidArgument, match="not an eventfd") as caught:
        EventFd(made, reactor)
    assert caught.value.errno == errno.EINVAL
    left = open_descriptors() - before
    for number, _ in left:
        os.close(int(number))
    assert len(left) == (kind == "pipe")  # its reading end was never given away


def test_a_watch_sees_each_signal(reactor: Reactor, fd: int) -> None:
    """And takes none: the counter is the program's."""
    seen: list[int] = []
    event = EventFd(os.dup(fd), reactor)
    event.watch(lambda: seen.append(1))
    reactor.poll(0)
    assert not seen
    for expected in range(1, 4):
        os.eventfd_write(fd, 1)
        reactor.poll(0)
        reactor.poll(0)
        assert len(seen) == expected
    assert os.eventfd_read(fd) == 3
    reactor.poll(0)
    assert len(seen) == 3
    event.close()


def test_a_watch_sees_one_that_was_pending(reactor: Reactor, fd: int) -> None:
    os.eventfd_write(fd, 1)
    event = EventFd(os.dup(fd), reactor)
    seen: list[int] = []
    event.watch(lambda: seen.append(1))
    reactor.poll(0)
    assert len(seen) == 1
    assert os.eventfd_read(fd) == 1
    event.close()


def test_a_watch_can_be_ended_and_begun_again(reactor: Reactor, fd: int) -> None:
    event = EventFd(os.dup(fd), reactor)
    seen: list[str] = []
    stop = event.watch(lambda: seen.append("first"))
    stop()
    stop()
    assert not reactor.busy
    event.watch(lambda: seen.append("second"))
    os.eventfd_write(fd, 1)
    reactor.poll(0)
    assert seen == ["second"]
    event.close()
    stop()
    assert not reactor.busy


def test_closing_twice(reactor: Reactor, fd: int) -> None:
    before = open_descriptors()
    event = EventFd(os.dup(fd), reactor)
    event.watch(lambda: None)
    event.close()
    assert open_descriptors() <= before
    assert not reactor.busy
    reused = os.dup(fd)  # very likely the same number
    event.close()
    event.signal()
    assert not readable(reused)
    os.close(reused)


def test_a_forgotten_eventfd_is_closed(reactor: Reactor, fd: int) -> None:
    before = open_descriptors()
    event = EventFd(os.dup(fd), reactor)
    event.signal()
    del event
    assert open_descriptors() <= before


def test_the_reactor_closes_what_it_opened() -> None:
    before = open_descriptors()
    reactor = Reactor()
    reactor.accept_posts()
    reactor.close()
    assert open_descriptors() <= before


@pytest.mark.parametrize("delay", [1e300, 3e6, float("inf"), 1 << 40])
def test_a_timer_beyond_the_reach_of_epoll(delay: float) -> None:
    """The wait is cut to what epoll can count; the timer stays."""
    reactor = Reactor()
    reactor.call_later(delay, lambda: pytest.fail("too early"))
    ready = os.eventfd(1)
    reactor.watch(ready, lambda: None)
    assert reactor.wait_for(ready)
    assert reactor.busy
    os.close(ready)
    reactor.close()


def test_delays_that_are_no_time() -> None:
    reactor = Reactor()
    with pytest.raises(ValueError, match="nan"):
        reactor.call_later(float("nan"), lambda: None)
    assert not reactor.busy
    done: list[int] = []
    reactor.call_later(-5, lambda: done.append(1))
    reactor.run_timers()
    assert done == [1], "a negative delay is none"
    reactor.close()


@pytest.mark.parametrize("error", [SystemExit(0), KeyboardInterrupt(), GeneratorExit()])
def test_no_exception_of_a_callback_gets_out(error: BaseException) -> None:
    errors: list[type[BaseException] | None] = []
    reactor = Reactor(lambda: errors.append(sys.exc_info()[0]))

    def fail() -> None:
        raise error

    reactor.call_later(0, fail)
    ready = os.eventfd(1)
    stop = reactor.watch(ready, fail)
    reactor.wait_for(-1)
    stop()
    assert errors == [type(error)] * 2
    os.close(ready)
    reactor.close()


# -- who has an eventfd --------------------------------------------------------------------------------


def test_an_eventfd_is_abandoned_when_no_other_process_has_it(reactor: Reactor) -> None:
    """Also not one that nobody has told of; another eventfd of it does not count."""
    fd = os.eventfd(0)
    event = EventFd(os.dup(fd), reactor)
    reading, writing = os.pipe()
    child = subprocess.Popen(
        [sys.executable, "-c", f"import os; os.eventfd(0); os.read({reading}, 1)"],
        pass_fds=(fd, reading),
    )
    os.close(fd)
    assert not event.abandoned()
    os.write(writing, b"x")
    child.wait()
    for end in (reading, writing):
        os.close(end)
    assert event.abandoned()
    event.close()


def test_the_likely_holders_are_looked_at_first(
    reactor: Reactor, monkeypatch: pytest.MonkeyPatch
) -> None:
    fd = os.eventfd(0)
    event = EventFd(os.dup(fd), reactor, lambda: (os.getppid(), 1))
    looked: list[str] = []

    def has(pid: str, number: int) -> bool:
        looked.append(pid)
        return pid == "1"

    monkeypatch.setattr("uvfio.doors.run.session.reactor._has_eventfd", has)
    assert not event.abandoned()
    assert looked == [str(os.getppid()), "1"]
    event.close()
    os.close(fd)
