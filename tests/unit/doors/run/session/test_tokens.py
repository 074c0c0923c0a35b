"""Tokens in real hands: each of the ways to let go of a file, and that it counts once."""

from __future__ import annotations

import errno
import gc
import os
import signal
import socket
import struct
import sys
from collections.abc import Iterator

import pytest

from support.puppet import (
    MAP_SHARED,
    PAGE,
    PROT_READ,
    PROT_WRITE,
    Puppet,
    finish,
    open_descriptors,
    start,
)
from support.requirements import require
from uvfio.doors.run.launch.check import scratch_directories
from uvfio.doors.run.linux import syscalls as sc
from uvfio.doors.run.session.polls import Polls
from uvfio.doors.run.session.reactor import Reactor
from uvfio.doors.run.session.tokens import Token, Tokens
from uvfio.errors import NoMemory, NoSpace
from uvfio.fops.file import File

SHIFT = 40


class CountedFile(File):
    """How often it was released."""

    __slots__ = ("releases",)

    def __init__(self, name: str, memory: str | None = None) -> None:
        super().__init__(name)
        self.region_memory = memory
        self.releases = 0

    def _release(self) -> None:
        self.releases += 1


@pytest.fixture(autouse=True)
def _leases_may_be_broken() -> Iterator[None]:
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGIO, before)


@pytest.fixture
def tokens() -> Iterator[Tokens]:
    """They leave no descriptor behind, and none to the garbage collector."""
    folders = scratch_directories()
    require(bool(folders), "no folder can hold tokens; run `uvfio check`")
    reactor = Reactor()
    before = open_descriptors()
    gc.disable()
    try:
        tokens = Tokens(
            folders[0], on_error=reactor.on_error, polls=Polls(reactor, reactor.on_error)
        )
        yield tokens
        tokens.close()
        reactor.close()
        assert open_descriptors() <= before
    finally:
        gc.enable()


class Holder:
    """A process that holds a token, and the file behind it."""

    def __init__(self, tokens: Tokens, file: CountedFile) -> None:
        self.tokens = tokens
        self.file = file
        self.token, fd = tokens.create(file)
        self.puppet, self.process = start(keep=(fd,))
        self.fd = fd  # the same number there
        os.close(fd)

    @property
    def releases(self) -> int:
        self.tokens.drain()
        return self.file.releases

    def end(self) -> None:
        finish(self.puppet, self.process)


@pytest.fixture
def holder(tokens: Tokens) -> Iterator[Holder]:
    holder = Holder(tokens, CountedFile("/dev/vfio/240"))
    assert holder.releases == 0
    yield holder
    holder.end()
    assert holder.releases == 1
    assert len(tokens) == 0


# -- identity ----------------------------------------------------------------------------------------------


def test_a_token_is_found_by_its_inode(tokens: Tokens, holder: Holder) -> None:
    found = os.stat(f"/proc/{holder.puppet.pid}/fd/{holder.fd}")
    assert tokens.find(found.st_dev, found.st_ino) is holder.token
    assert holder.token.file is holder.file
    assert not tokens.is_device(found.st_dev, found.st_ino)
    assert tokens.find(found.st_dev, found.st_ino + 1) is None
    assert len(tokens) == 1
    holder.puppet.must("close", holder.fd)
    tokens.drain()
    assert tokens.find(found.st_dev, found.st_ino) is None


def test_who_is_told(tokens: Tokens) -> None:
    """``on_release`` comes first, while the token still leads to its files."""
    told: list[tuple[Token, list[int]]] = []
    tokens.on_release = lambda token: told.append((token, [f.releases for f in files_of(token)]))
    file = CountedFile("a")
    token, fd = tokens.create(file)
    os.close(fd)
    tokens.drain()
    assert told == [(token, [0])]
    assert file.releases == 1


def files_of(token: Token) -> list[CountedFile]:
    return [file for file in token.files if isinstance(file, CountedFile)]


# -- the last reference ---------------------------------------------------------------------------------------


def test_close(holder: Holder) -> None:
    holder.puppet.must("close", holder.fd)
    assert holder.releases == 1
    assert holder.releases == 1


def test_dup(holder: Holder) -> None:
    copy = holder.puppet.must("dup", holder.fd)
    holder.puppet.must("close", holder.fd)
    assert holder.releases == 0
    holder.puppet.must("close", copy)
    assert holder.releases == 1


def test_dup2_over_it(holder: Holder) -> None:
    holder.puppet.must("dup2", 0, holder.fd)
    assert holder.releases == 1


def test_close_range(holder: Holder) -> None:
    holder.puppet.must("close_range", 3, 1023, 0)
    assert holder.releases == 1


@pytest.mark.parametrize("first", ["parent", "child"])
def test_fork(holder: Holder, first: str) -> None:
    parent, child = holder.puppet, holder.puppet.spawn()
    order = [parent, child] if first == "parent" else [child, parent]
    order[0].must("close", holder.fd)
    assert holder.releases == 0
    order[1].must("close", holder.fd)
    assert holder.releases == 1


def test_a_child_that_exits(holder: Holder) -> None:
    child = holder.puppet.spawn()
    child.exit()
    assert holder.releases == 0
    holder.puppet.must("close", holder.fd)
    assert holder.releases == 1


def test_kill(holder: Holder) -> None:
    child = holder.puppet.spawn()
    os.kill(child.pid, signal.SIGKILL)
    holder.puppet.must("wait4", child.pid, 0, 0, 0)
    assert holder.releases == 0
    os.kill(holder.puppet.pid, signal.SIGKILL)
    holder.process.wait()
    assert holder.releases == 1


@pytest.mark.parametrize("cloexec", [True, False])
def test_exec(holder: Holder, cloexec: bool) -> None:
    f_setfd = 2
    holder.puppet.must("fcntl", holder.fd, f_setfd, int(cloexec))
    assert holder.releases == 0
    assert holder.puppet.execute() == 0
    assert holder.releases == int(cloexec)


def test_in_flight(holder: Holder) -> None:
    """Sent through a socket and closed: it is open while nobody has a descriptor."""
    puppet = holder.puppet
    pair = puppet.buffer(8)
    puppet.must("socketpair", socket.AF_UNIX, socket.SOCK_STREAM, 0, pair)
    sender, receiver = struct.unpack("<2i", puppet.peek(pair, 8))
    byte = puppet.buffer(b"x")
    control = puppet.buffer(
        struct.pack("<QiiiI", 20, socket.SOL_SOCKET, socket.SCM_RIGHTS, holder.fd, 0)
    )
    iovec = puppet.buffer(struct.pack("<QQ", byte, 1))
    header = puppet.buffer(struct.pack("<QQQQQQQ", 0, 0, iovec, 1, control, 24, 0))
    puppet.must("sendmsg", sender, header, 0)
    puppet.must("close", holder.fd)
    puppet.must("close", sender)
    assert holder.releases == 0
    received = puppet.buffer(bytes(24))
    incoming = puppet.buffer(struct.pack("<QQQQQQQ", 0, 0, iovec, 1, received, 24, 0))
    puppet.must("recvmsg", receiver, incoming, 0)
    (fd,) = struct.unpack_from("<i", puppet.peek(received, 24), 16)
    assert holder.releases == 0
    puppet.must("close", fd)
    assert holder.releases == 1


def test_never_received(holder: Holder) -> None:
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    pidfd = os.pidfd_open(holder.puppet.pid)
    copy = sc.pidfd_getfd(pidfd, holder.fd)
    os.close(pidfd)
    socket.send_fds(ends[0], [b"x"], [copy])
    os.close(copy)
    holder.puppet.must("close", holder.fd)
    assert holder.releases == 0
    ends[0].close()
    assert holder.releases == 0
    ends[1].close()
    assert holder.releases == 1


def test_a_mapping_holds_it(holder: Holder) -> None:
    puppet = holder.puppet
    puppet.must("ftruncate", holder.fd, 2 * PAGE)
    again = puppet.must("open", b"/proc/self/task/%d/fd/%d" % (puppet.pid, holder.fd), os.O_RDWR)
    at = puppet.must("mmap", 0, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, again, 0)
    puppet.must("close", again)
    puppet.must("close", holder.fd)
    assert holder.releases == 0
    puppet.must("munmap", at, PAGE)
    assert holder.releases == 0
    puppet.must("munmap", at + PAGE, PAGE)
    assert holder.releases == 1


def test_a_mapping_and_an_exit(holder: Holder) -> None:
    puppet = holder.puppet
    puppet.must("ftruncate", holder.fd, PAGE)
    again = puppet.must("open", b"/proc/self/task/%d/fd/%d" % (puppet.pid, holder.fd), os.O_RDWR)
    puppet.must("mmap", 0, PAGE, PROT_READ, MAP_SHARED, again, 0)
    puppet.must("close", again)
    puppet.must("close", holder.fd)
    assert holder.releases == 0
    puppet.exit()
    assert holder.releases == 1


def test_what_the_filter_does_not_see_fails(holder: Holder) -> None:
    """A copy outside the reserved range, of a file without memory."""
    puppet = holder.puppet
    copy = puppet.must("dup2", holder.fd, 300)
    at = puppet.buffer(256)
    assert puppet.call("read", copy, at, 256) == -errno.EBADF
    assert puppet.call("pread64", copy, at, 256, 0) == -errno.EBADF
    assert puppet.call("mmap", 0, PAGE, PROT_READ, MAP_SHARED, copy, 0) == -errno.EACCES
    puppet.must("close", holder.fd)
    assert holder.releases == 0
    puppet.must("close", copy)
    assert holder.releases == 1


@pytest.mark.parametrize("flags", [os.O_RDWR, os.O_RDONLY])
def test_opened_once_more(holder: Holder, flags: int) -> None:
    """Through /proc the stand-in can be opened behind our back: its close is not the last."""
    puppet = holder.puppet
    again = puppet.must("open", b"/proc/self/task/%d/fd/%d" % (puppet.pid, holder.fd), flags)
    puppet.must("close", again)
    assert holder.releases == 0
    again = puppet.must("open", b"/proc/thread-self/fd/%d" % holder.fd, flags)
    puppet.must("close", holder.fd)
    assert holder.releases == 0
    puppet.must("close", again)
    assert holder.releases == 1


def test_several_at_once(tokens: Tokens) -> None:
    """Equal events are merged by the kernel, those of different files are not."""
    files = [CountedFile(str(n)) for n in range(50)]
    fds = [tokens.create(file)[1] for file in files]
    for fd in fds[::2]:
        os.close(fd)
    tokens.drain()
    assert [file.releases for file in files] == [1, 0] * 25
    for fd in fds[1::2]:
        os.close(fd)
    tokens.drain()
    assert [file.releases for file in files] == [1] * 50
    assert len(tokens) == 0


class Unlisted(dict[tuple[int, int], Token]):
    """Tokens that are found by their key and never gone through one by one."""

    def __iter__(self) -> Iterator[tuple[int, int]]:
        raise AssertionError("a release goes through all tokens")

    keys = values = items = __iter__  # type: ignore[assignment]


def test_a_release_does_not_depend_on_how_many_tokens_there_are(tokens: Tokens) -> None:
    files = [CountedFile(str(n)) for n in range(40)]
    fds = [tokens.create(file)[1] for file in files]
    kept, tokens._tokens = tokens._tokens, Unlisted(tokens._tokens)
    for fd in fds:
        os.close(fd)
    tokens.drain()
    tokens._tokens, left = kept, len(tokens)
    assert (left, [file.releases for file in files]) == (0, [1] * 40)
    kept.clear()


def test_inodes_are_not_used_again_too_soon(tokens: Tokens) -> None:
    """A file that was closed a moment ago is not mistaken for the one that is made now."""
    for n in range(50):
        old, new = CountedFile("old"), CountedFile("new")
        _, fd = tokens.create(old)
        os.close(fd)
        token, fd = tokens.create(new)
        tokens.drain()
        assert (old.releases, new.releases) == (1, 0), n
        assert token.file is new
        os.close(fd)
        tokens.drain()
        assert new.releases == 1


# -- giving fails ---------------------------------------------------------------------------------------------


def test_abort(tokens: Tokens) -> None:
    before = open_descriptors()
    file = CountedFile("a")
    token, fd = tokens.create(file)
    tokens.abort(token, fd, file)
    tokens.drain()
    assert file.releases == 0  # the caller's
    assert len(tokens) == 0
    assert open_descriptors() <= before


def test_abort_of_a_second_open(tokens: Tokens) -> None:
    tokens.allocate("0000:01:00.0", {2: PAGE})
    first, second = (CountedFile(n, "0000:01:00.0") for n in "ab")
    token, fd = tokens.create(first)
    same, other = tokens.create(second)
    assert same is token
    assert token.file is second
    tokens.abort(token, other, second)
    tokens.drain()
    assert (first.releases, second.releases) == (0, 0)
    assert token.file is first
    os.close(fd)
    tokens.drain()
    assert first.releases == 1


def test_no_watch_is_left(tokens: Tokens, monkeypatch: pytest.MonkeyPatch) -> None:
    before = open_descriptors()

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "max_user_watches")

    monkeypatch.setattr(sc, "inotify_add_watch", full)
    with pytest.raises(OSError):
        tokens.create(CountedFile("a"))
    assert open_descriptors() <= before
    assert len(tokens) == 0


# -- memory of devices -----------------------------------------------------------------------------------------


def test_a_device_and_its_users_have_one_memory(tokens: Tokens) -> None:
    views = tokens.allocate("0000:01:00.0", {2: 2 * PAGE, 4: PAGE})
    assert {index: len(view) for index, view in views.items()} == {2: 2 * PAGE, 4: PAGE}
    assert bytes(views[2]) == bytes(2 * PAGE)
    holder = Holder(tokens, CountedFile("device", "0000:01:00.0"))
    puppet = holder.puppet
    at = puppet.must("mmap", 0, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, holder.fd, 4 << SHIFT)
    views[4][:4] = b"\x01\x02\x03\x04"
    assert puppet.load(at) == 0x04030201
    puppet.store(at + 4, 0x11223344)
    assert bytes(views[4][4:8]) == b"\x44\x33\x22\x11"
    found = os.stat(f"/proc/{puppet.pid}/fd/{holder.fd}")
    assert tokens.is_device(found.st_dev, found.st_ino)
    holder.end()
    assert holder.releases == 1
    assert tokens.is_device(found.st_dev, found.st_ino)  # the device is still there
    assert bytes(views[4][:4]) == b"\x01\x02\x03\x04"


def test_two_opens_of_one_device(tokens: Tokens) -> None:
    """They share an inode: both are released when the last of them goes."""
    tokens.allocate("0000:01:00.0", {2: PAGE})
    first = Holder(tokens, CountedFile("first", "0000:01:00.0"))
    second = Holder(tokens, CountedFile("second", "0000:01:00.0"))
    assert first.token is second.token
    first.puppet.must("close", first.fd)
    assert first.releases == second.releases == 0
    second.puppet.must("mmap", 0, PAGE, PROT_READ, MAP_SHARED, second.fd, 2 << SHIFT)
    second.puppet.must("close", second.fd)
    assert first.releases == second.releases == 0
    second.puppet.exit()
    assert first.releases == second.releases == 1
    third = Holder(tokens, CountedFile("third", "0000:01:00.0"))
    assert third.token is first.token
    third.puppet.must("close", third.fd)
    assert third.releases == 1
    assert first.releases == 1
    for holder in (first, second, third):
        holder.end()


def test_the_lease_is_late(tokens: Tokens, monkeypatch: pytest.MonkeyPatch) -> None:
    """The event is queued before the kernel counts the file as closed: in between, the lease says no."""
    tokens.allocate("0000:01:00.0", {2: PAGE})
    file = CountedFile("device", "0000:01:00.0")
    _, fd = tokens.create(file)
    os.close(fd)
    with monkeypatch.context() as closing:
        closing.setattr(tokens, "_sole_opener", lambda fd: False)
        tokens.drain()
        assert file.releases == 0
    tokens.drain()
    assert file.releases == 1


@pytest.mark.parametrize("order", ["device first", "user first"])
def test_a_device_that_goes(tokens: Tokens, order: str) -> None:
    before = open_descriptors()
    views = tokens.allocate("0000:01:00.0", {2: PAGE})
    file = CountedFile("device", "0000:01:00.0")
    token, fd = tokens.create(file)
    if order == "device first":
        tokens.release("0000:01:00.0")
        assert tokens.is_device(*token.key)  # somebody may have it mapped
        os.close(fd)
        tokens.drain()
    else:
        os.close(fd)
        tokens.drain()
        tokens.release("0000:01:00.0")
    assert file.releases == 1
    assert not tokens.is_device(*token.key)
    del views
    assert open_descriptors() <= before


def test_a_device_that_comes_again(tokens: Tokens) -> None:
    """Unplugged in use, and another one plugged in at its address: they have nothing in common."""
    old_views = tokens.allocate("0000:01:00.0", {2: PAGE})
    old = CountedFile("old", "0000:01:00.0")
    old_token, old_fd = tokens.create(old)
    tokens.release("0000:01:00.0")
    new_views = tokens.allocate("0000:01:00.0", {2: PAGE})
    new = CountedFile("new", "0000:01:00.0")
    new_token, new_fd = tokens.create(new)
    assert new_token is not old_token
    old_views[2][0] = 1
    assert new_views[2][0] == 0
    os.close(old_fd)
    tokens.drain()
    assert (old.releases, new.releases) == (1, 0)
    os.close(new_fd)
    tokens.drain()
    assert new.releases == 1


def test_no_room_for_a_device(tokens: Tokens) -> None:
    before = open_descriptors()
    space = os.statvfs(tokens.folder)
    too_much = (space.f_bfree + 1000) * space.f_frsize
    with pytest.raises((NoSpace, NoMemory), match=str(too_much)) as caught:
        tokens.allocate("0000:01:00.0", {2: too_much})
    assert caught.value.errno in (errno.ENOSPC, errno.ENOMEM)
    assert os.statvfs(tokens.folder).f_bfree > space.f_bfree // 2  # and nothing is kept
    assert open_descriptors() <= before
    tokens.release("0000:01:00.0")  # harmless
    assert tokens.allocate("0000:01:00.0", {2: PAGE})


def test_memory_is_hidden_shown_and_taken_late(
    tokens: Tokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the file can do is the business of its own tests; here, that a refusal is a condition.

    No refusal keeps the memory: ``tokens`` finds every descriptor closed without the garbage collector.
    """
    name = "0000:01:00.0"
    views = tokens.allocate(name, {0: PAGE, 2: PAGE}, late=[0])
    tokens.populate(name, 0)
    views[0][0] = 1
    tokens.mapped(name)
    tokens.hide(name)
    assert tokens.hidden(name)
    assert views[0][0] == 1

    def full(*arguments: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr(sc, "fallocate", full)
        with pytest.raises(NoSpace, match=f"{name}: no room for its memory"):
            tokens.show(name)
    assert tokens.hidden(name)
    tokens.show(name)
    assert not tokens.hidden(name)
    with monkeypatch.context() as patch:
        patch.setattr(sc, "mmap", full)
        with pytest.raises(NoSpace, match=f"{name}: its memory cannot be hidden"):
            tokens.hide(name)
    assert not tokens.hidden(name)


def test_no_room_for_a_late_region(tokens: Tokens, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    tokens.allocate("0000:01:00.0", {0: PAGE}, late=[0])
    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        with pytest.raises(NoSpace, match="no room for region 0"):
            tokens.populate("0000:01:00.0", 0)
    tokens.populate("0000:01:00.0", 0)


def test_a_folder_that_is_gone(tokens: Tokens) -> None:
    tokens.folder = "/nonexistent"
    with pytest.raises(NoMemory, match="0000:01:00.0"):
        tokens.allocate("0000:01:00.0", {2: PAGE})
    with pytest.raises(FileNotFoundError):
        tokens.create(CountedFile("a"))


# -- too many events ---------------------------------------------------------------------------------------------


def test_the_queue_overflows(tokens: Tokens, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every token is asked; those in use stay."""
    tokens.allocate("0000:01:00.0", {2: PAGE})
    files = [CountedFile(str(n)) for n in range(6)]
    files += [CountedFile("shared", "0000:01:00.0")]
    made = [tokens.create(file) for file in files]
    kept = made[3][1]
    for _, fd in made:
        if fd != kept:
            os.close(fd)
    lost = sc.readable_bytes(tokens.fileno)
    assert lost
    real = os.read

    def overflow(fd: int, size: int) -> bytes:
        real(fd, size)
        return sc.inotify_event.pack(-1, sc.IN_Q_OVERFLOW, 0, 0)

    with monkeypatch.context() as broken:
        broken.setattr(os, "read", overflow)
        tokens.drain()
    assert [file.releases for file in files] == [1, 1, 1, 0, 1, 1, 1]
    os.close(kept)
    tokens.drain()
    assert files[3].releases == 1


def test_a_real_overflow(tokens: Tokens) -> None:
    """More closes than the kernel's queue holds; consecutive equal events would be merged, so take turns."""
    with open("/proc/sys/fs/inotify/max_queued_events", encoding="ascii") as file:
        limit = int(file.read())
    if limit > 20_000:
        pytest.skip(f"the queue holds {limit} events")
    files = [CountedFile(str(n)) for n in range(3)]
    made = [tokens.create(file) for file in files]
    paths = [f"/proc/self/fd/{token.pin}" for token, _ in made[:2]]
    for n in range(limit + 10):
        os.close(os.open(paths[n & 1], os.O_RDWR))
    os.close(made[2][1])  # its event is lost
    tokens.drain()
    assert [file.releases for file in files] == [0, 0, 1]
    for _, fd in made[:2]:
        os.close(fd)


def test_everything_is_released_at_the_end() -> None:
    reactor = Reactor()
    before = open_descriptors()
    tokens = Tokens(
        scratch_directories()[0], on_error=reactor.on_error, polls=Polls(reactor, reactor.on_error)
    )
    tokens.allocate("0000:01:00.0", {2: PAGE})
    files = [CountedFile("plain"), CountedFile("device", "0000:01:00.0")]
    fds = [tokens.create(file)[1] for file in files]
    tokens.close()
    assert [file.releases for file in files] == [1, 1]
    for fd in fds:
        os.close(fd)
    assert open_descriptors() <= before
    reactor.close()


def test_a_file_whose_release_raises_is_no_failure_of_the_others() -> None:
    """The bug of a model, whose reset at the last close raises."""

    class Broken(CountedFile):
        __slots__ = ()

        def _release(self) -> None:
            super()._release()
            raise ZeroDivisionError("a bug")

    reactor, told = Reactor(), []
    tokens = Tokens(
        scratch_directories()[0],
        on_error=lambda: told.append(sys.exc_info()[0]),
        polls=Polls(reactor, reactor.on_error),
    )
    files = [Broken("broken"), CountedFile("sound")]
    for file in files:
        os.close(tokens.create(file)[1])
    tokens.drain()
    assert [file.releases for file in files] == [1, 1]
    assert told == [ZeroDivisionError]
    assert len(tokens) == 0
    tokens.close()
    reactor.close()


def test_a_token_that_cannot_be_opened_leaves_no_descriptor(
    tokens: Tokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, real = open_descriptors(), os.open

    def full(path: str, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_ACCMODE == os.O_WRONLY and path.startswith("/proc/self/fd/"):
            raise OSError(errno.EMFILE, "no descriptor is left")
        return real(path, flags, mode)

    monkeypatch.setattr(os, "open", full)
    with pytest.raises(OSError, match="no descriptor"):
        tokens.create(CountedFile("plain"))
    monkeypatch.undo()
    assert open_descriptors() == before


def test_a_puppet_is_a_process() -> None:
    """What these tests stand on."""
    puppet, process = start()
    assert isinstance(puppet, Puppet)
    assert puppet.call("getpid") == process.pid
    finish(puppet, process)


# -- files that are alone ------------------------------------------------------------------------------------


class LoneFile(CountedFile):
    """One of several opens of a node."""

    __slots__ = ()

    alone = True


def test_files_that_are_alone_have_tokens_of_their_own(tokens: Tokens) -> None:
    tokens.allocate("device", {2: PAGE})
    one, two = LoneFile("/dev/a", "device"), LoneFile("/dev/a", "device")
    (first, fd), (second, other) = tokens.create(one), tokens.create(two)
    assert first is not second
    assert not tokens.holds_memory(first)
    os.close(fd)
    tokens.drain()
    assert (one.releases, two.releases) == (1, 0)
    os.close(other)
    tokens.drain()
    assert two.releases == 1
    tokens.release("device")


@pytest.mark.parametrize("first", ["its own", "the memory's"])
def test_a_file_behind_two_tokens_ends_with_the_last_of_them(tokens: Tokens, first: str) -> None:
    told: list[list[str]] = []
    tokens.on_release = lambda token: told.append([file.name for file in token.files])
    tokens.allocate("device", {2: PAGE})
    file = LoneFile("/dev/a", "device")
    _, fd = tokens.create(file)
    exposed = tokens.expose(file)
    assert exposed is not None
    memory, mapped = exposed
    assert tokens.holds_memory(memory)
    assert memory.file is file
    order = (fd, mapped) if first == "its own" else (mapped, fd)
    os.close(order[0])
    tokens.drain()
    assert (file.releases, told) == (0, [[]])
    os.close(order[1])
    tokens.drain()
    assert (file.releases, told) == (1, [[], ["/dev/a"]])
    assert len(tokens) == 0
    tokens.release("device")


def test_a_device_without_memory_exposes_nothing(tokens: Tokens) -> None:
    assert tokens.expose(LoneFile("/dev/a", "device")) is None
