"""The system call wrappers, each on the running kernel."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING

import pytest

from uvfio.doors.run.linux import syscalls as s
from uvfio.uapi import linux
from uvfio.uapi.seccomp import SECCOMP_RET_USER_NOTIF

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def opened() -> Iterator[list[int]]:
    """Descriptors to close."""
    fds: list[int] = []
    yield fds
    for fd in fds:
        os.close(fd)


def cloexec(fd: int) -> bool:
    return not os.get_inheritable(fd)


def test_kernel_release(monkeypatch: pytest.MonkeyPatch) -> None:
    assert s.kernel_release() >= (5, 19)
    real = os.uname()
    for release, expected in (
        ("6.1.0-13-amd64", (6, 1)),
        ("5.19-rc3", (5, 19)),
        ("6.18.44", (6, 18)),
        ("strange", (0, 0)),
    ):
        changed = os.uname_result((real.sysname, real.nodename, release, "", "x86_64"))
        monkeypatch.setattr(os, "uname", lambda changed=changed: changed)
        assert s.kernel_release() == expected


def test_missing_system_call() -> None:
    error = s.oserror("openat2", errno.ENOSYS)
    assert error.errno == errno.ENOSYS
    assert "openat2 is missing: it needs Linux 5.6, this is " in str(error)
    assert "container" in str(error)
    other = s.oserror("kcmp", errno.EPERM)
    assert other.strerror == "kcmp: Operation not permitted"
    assert isinstance(other, PermissionError)


def test_errors_name_the_call() -> None:
    with pytest.raises(OSError, match="prctl: Invalid argument"):
        s.prctl(99999)
    with pytest.raises(ProcessLookupError, match="pidfd_open: No such process"):
        s.pidfd_open(0x3FFFFFFF)
    with pytest.raises(OSError, match="inotify_rm_watch: Bad file descriptor"):
        s.inotify_rm_watch(-1, 1)
    with pytest.raises(OSError, match="close_range: Invalid argument"):
        s.close_range(5, 3)


def test_pidfd(opened: list[int]) -> None:
    opened.append(pidfd := s.pidfd_open(os.getpid()))
    read, write = os.pipe()
    opened += [read, write]
    opened.append(copy := s.pidfd_getfd(pidfd, write))
    assert cloexec(copy)
    assert s.kcmp(os.getpid(), os.getpid(), s.KCMP_FILE, copy, write) == 0
    assert s.kcmp(os.getpid(), os.getpid(), s.KCMP_FILE, read, write) != 0
    assert s.kcmp(os.getpid(), os.getpid(), s.KCMP_VM) == 0
    with pytest.raises(OSError, match="pidfd_getfd: Bad file descriptor"):
        s.pidfd_getfd(pidfd, 0x7FFFFFFF)


def test_openat2(tmp_path: Path, opened: list[int]) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "name").write_text("inside")
    (tmp_path / "link").symlink_to("/etc/name")
    opened.append(root := os.open(tmp_path, os.O_PATH))
    opened.append(fd := s.openat2(root, b"/link", os.O_RDONLY, resolve=s.RESOLVE_IN_ROOT))
    assert os.read(fd, 10) == b"inside"
    assert cloexec(fd)
    opened.append(fd := s.openat2(root, b"../../etc/name", os.O_RDONLY, resolve=s.RESOLVE_IN_ROOT))
    assert os.read(fd, 10) == b"inside"
    with pytest.raises(OSError, match="openat2") as caught:
        s.openat2(root, b"link", os.O_RDONLY, resolve=s.RESOLVE_NO_SYMLINKS)
    assert caught.value.errno == errno.ELOOP


def test_close_range() -> None:
    read, write = os.pipe()
    first = max(read, write) + 100
    for fd in (first, first + 1):
        os.dup2(read, fd)
    s.close_range(first, first + 1)
    for fd in (first, first + 1):
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)
    os.close(read)
    os.close(write)


def test_inotify(opened: list[int]) -> None:
    """The life of a stand-in file: pinned by O_PATH, one event at its last close, then nothing."""
    opened.append(inotify := s.inotify_init1())
    assert cloexec(inotify)
    token = os.open("/dev/shm", os.O_TMPFILE | os.O_RDWR)
    opened.append(os.open(f"/proc/self/fd/{token}", os.O_PATH))
    watch = s.inotify_add_watch(inotify, b"/proc/self/fd/%d" % token, s.IN_CLOSE_WRITE)
    second = os.dup(token)
    os.close(token)
    assert s.readable_bytes(inotify) == 0
    os.close(second)
    assert s.readable_bytes(inotify) == s.inotify_event.size
    assert s.inotify_event.unpack(os.read(inotify, 100)) == (watch, s.IN_CLOSE_WRITE, 0, 0)
    os.close(opened.pop())
    assert s.inotify_event.unpack(os.read(inotify, 100)) == (watch, s.IN_IGNORED, 0, 0)
    with pytest.raises(OSError, match="inotify_rm_watch: Invalid argument"):
        s.inotify_rm_watch(inotify, watch)
    with pytest.raises(BlockingIOError):
        os.read(inotify, 100)


def test_inotify_rm_watch(opened: list[int], tmp_path: Path) -> None:
    opened.append(inotify := s.inotify_init1())
    watch = s.inotify_add_watch(inotify, bytes(tmp_path), s.IN_CLOSE_WRITE)
    s.inotify_rm_watch(inotify, watch)
    assert s.inotify_event.unpack(os.read(inotify, 100)) == (watch, s.IN_IGNORED, 0, 0)


@pytest.mark.skipif(s.kernel_release() < (6, 11), reason="PROCMAP_QUERY is of Linux 6.11")
def test_procmap_query(tmp_path: Path, opened: list[int]) -> None:
    opened.append(maps := os.open("/proc/self/maps", os.O_RDONLY))
    path = tmp_path / "memory"
    path.write_bytes(bytes(3 * 4096))
    opened.append(fd := os.open(path, os.O_RDWR))
    memory = mmap.mmap(fd, 8192, offset=4096)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    found = s.procmap_query(maps, address + 5000)
    assert found is not None
    assert (found.start, found.end, found.offset) == (address, address + 8192, 4096)
    assert found.page_size == 4096
    status = path.stat()
    assert (found.dev, found.inode) == (status.st_dev, status.st_ino)
    assert found.writable
    assert found.shared
    code = ctypes.cast(ctypes.CDLL(None).getpid, ctypes.c_void_p).value
    assert code is not None
    text = s.procmap_query(maps, code)
    assert text is not None
    assert not text.writable
    assert not text.shared
    assert text.flags & s.PROCMAP_QUERY_VMA_EXECUTABLE
    assert s.procmap_query(maps, 0) is None
    assert s.procmap_query(maps, 0x1000) is None


def script(body: str) -> str:
    """Run Python code in a process of its own (filters stay for good); its output."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(body)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stderr == ""
    return done.stdout


def test_actions() -> None:
    assert s.seccomp_action_available(SECCOMP_RET_USER_NOTIF)
    assert not s.seccomp_action_available(0x12340000)


SUPERVISED = """
    import fcntl, os, threading
    from uvfio.doors.run.linux import syscalls as s
    from uvfio.doors.run.filter.build import build_filter
    from uvfio.uapi import seccomp as u
    # A filter holds for one thread: the main thread supervises another one of the same process.
    found = []
    ready, done = threading.Event(), threading.Event()
    def program(body):
        def run():
            found.append(s.seccomp(build_filter(range(768, 1024))))
            ready.set()
            try:
                print("program", body())
            except OSError as error:
                print("program", error.strerror)
        threading.Thread(target=run, daemon=True).start()
        ready.wait()
        return found[0]
    def receive(listener):
        raw = fcntl.ioctl(listener, u.SECCOMP_IOCTL_NOTIF_RECV, bytes(80))
        return u.seccomp_notif.unpack(raw)
    def answer(listener, id, value=0, error=0, flags=0):
        fcntl.ioctl(listener, u.SECCOMP_IOCTL_NOTIF_SEND, u.seccomp_notif_resp.pack(id, value, error, flags))
    def end():
        for thread in threading.enumerate():
            if thread is not threading.main_thread():
                thread.join()
"""


def supervised(body: str) -> list[str]:
    return script(textwrap.dedent(SUPERVISED) + textwrap.dedent(body)).splitlines()


def test_addfd() -> None:
    """``newfd`` chooses the number."""
    assert supervised("""
        source = os.open("/dev/null", os.O_RDWR)
        listener = program(lambda: [os.open("/uvfio/x", 0) for _ in range(3)])
        assert not os.get_inheritable(listener)
        first = receive(listener)[0]
        assert s.notif_id_valid(listener, first)
        number = s.addfd(listener, first, source, 900)
        print(number, os.get_inheritable(number))
        answer(listener, first, number)
        assert not s.notif_id_valid(listener, first)
        second = receive(listener)[0]
        number = s.addfd(listener, second, source, 901, cloexec=False)
        print(number, os.get_inheritable(number))
        answer(listener, second, number)
        last = receive(listener)[0]
        number = s.addfd(listener, last, source)
        print(number < 900)
        answer(listener, last, 5)
        end()
    """) == ["900 False", "901 True", "True", "program [900, 901, 5]"]


def test_addfd_errors() -> None:
    """Errors of ADDFD that callers rely on."""
    assert supervised("""
        import errno, resource
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        path = os.open("/", os.O_PATH)
        null = os.open("/dev/null", os.O_RDWR)
        listener = program(lambda: os.open("/uvfio/x", 0))
        id = receive(listener)[0]
        for arguments in ((id, path), (id, null, soft), (id + 1000, null)):
            try:
                s.addfd(listener, *arguments)
            except OSError as error:
                print(errno.errorcode[error.errno])
        answer(listener, id, error=-errno.ENODEV)
        end()
    """) == ["EBADF", "EBADF", "ENOENT", "program No such device"]


def test_effective_capabilities() -> None:
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith("CapEff:"))
    assert s.effective_capabilities(os.getpid()) == int(line.split()[1], 16)
    gone = subprocess.Popen(["true"])
    gone.wait()
    with pytest.raises(ProcessLookupError, match="capget"):
        s.effective_capabilities(gone.pid)


def test_sync_wake_up() -> None:
    output = supervised("""
        listener = program(lambda: os.access("/", os.F_OK))
        print(s.set_sync_wake_up(listener))
        answer(listener, receive(listener)[0], flags=u.SECCOMP_USER_NOTIF_FLAG_CONTINUE)
        end()
    """)
    assert output == [str(s.kernel_release() >= (6, 6)), "program True"]


def test_second_listener() -> None:
    assert supervised("""
        listener = program(lambda: s.seccomp(build_filter(range(0))))
        end()
    """) == ["program seccomp: Device or resource busy"]


def test_invalid_filter() -> None:
    assert supervised("""
        try:
            s.seccomp(bytes(8))
        except OSError as error:
            print(error.strerror)
    """) == ["seccomp: Invalid argument"]


# -- mappings --------------------------------------------------------------------------------------------


def test_a_mapping_is_made_moved_and_dropped() -> None:
    size = mmap.PAGESIZE
    first = s.mmap(0, size, linux.MAP_PRIVATE | linux.MAP_ANONYMOUS)
    second = s.mmap(0, size, linux.MAP_PRIVATE | linux.MAP_ANONYMOUS)
    ctypes.memset(first, 7, size)
    s.move_mapping(first, size, second)
    assert ctypes.string_at(second, size) == b"\x07" * size
    assert s.mmap(second, size, linux.MAP_PRIVATE | linux.MAP_ANONYMOUS | linux.MAP_FIXED) == second
    assert ctypes.string_at(second, size) == bytes(size)
    s.munmap(second, size)
    for refused in (
        lambda: s.mmap(0, 0, linux.MAP_PRIVATE | linux.MAP_ANONYMOUS),
        lambda: s.move_mapping(second + 1, size, first),
        lambda: s.munmap(first + 1, size),
    ):
        with pytest.raises(OSError, match=r"^\[Errno 22\] (mmap|mremap|munmap): ") as caught:
            refused()
        assert caught.value.errno == errno.EINVAL


def test_fallocate(tmp_path: Path, opened: list[int]) -> None:
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    opened.append(fd)
    s.fallocate(fd, s.FALLOC_FL_KEEP_SIZE, 4096, 4096)
    assert os.fstat(fd).st_size == 0
    with pytest.raises(OSError, match="fallocate") as caught:
        s.fallocate(fd, s.FALLOC_FL_KEEP_SIZE, 0, 0)
    assert caught.value.errno == errno.EINVAL
