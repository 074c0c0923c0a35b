"""System calls that Python's standard library lacks, under their C names.

Each function is the call and nothing else: it raises OSError with the call's name and the errno, and
for ENOSYS the version of Linux that introduced it. Structures and numbers come from
``uvfio.uapi``; those of small interfaces with a single user are next to the function.

What is not here: the two ioctls of the hot path (SECCOMP_IOCTL_NOTIF_RECV and _SEND). ``fcntl.ioctl``
with a bytes object is faster than anything that could be wrapped around it.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
import termios
from ctypes import c_char_p, c_int, c_long, c_size_t, c_uint, c_uint32, c_ulong, c_void_p
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from uvfio.uapi.ioctl import _IOWR
from uvfio.uapi.linux import MREMAP_FIXED, MREMAP_MAYMOVE, PROT_READ, PROT_WRITE
from uvfio.uapi.seccomp import (
    SECCOMP_ADDFD_FLAG_SETFD,
    SECCOMP_FILTER_FLAG_NEW_LISTENER,
    SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV,
    SECCOMP_GET_ACTION_AVAIL,
    SECCOMP_IOCTL_NOTIF_ADDFD,
    SECCOMP_IOCTL_NOTIF_ID_VALID,
    SECCOMP_IOCTL_NOTIF_SET_FLAGS,
    SECCOMP_SET_MODE_FILTER,
    SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP,
    X86_64,
    seccomp_notif_addfd,
    sock_filter,
    sock_fprog,
)

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "Vma",
    "addfd",
    "close_range",
    "effective_capabilities",
    "fallocate",
    "inotify_add_watch",
    "inotify_init1",
    "inotify_rm_watch",
    "kcmp",
    "kernel_release",
    "mmap",
    "move_mapping",
    "munmap",
    "notif_id_valid",
    "openat2",
    "pidfd_getfd",
    "pidfd_open",
    "prctl",
    "procmap_query",
    "readable_bytes",
    "seccomp",
    "seccomp_action_available",
    "set_sync_wake_up",
    "timerfd_create",
    "timerfd_settime",
]

# linux/prctl.h
PR_SET_PDEATHSIG: Final = 1
PR_SET_DUMPABLE: Final = 4
PR_SET_NAME: Final = 15
PR_SET_CHILD_SUBREAPER: Final = 36
PR_SET_NO_NEW_PRIVS: Final = 38
# linux/kcmp.h
KCMP_FILE: Final = 0
KCMP_VM: Final = 1
KCMP_FILES: Final = 2
# linux/capability.h: u32 version; int pid, and twice u32 effective, permitted, inheritable
LINUX_CAPABILITY_VERSION_3: Final = 0x20080522
capability_header: Final = struct.Struct("<Ii")
capability_data: Final = struct.Struct("<6I")
# linux/close_range.h
CLOSE_RANGE_UNSHARE: Final = 1 << 1
CLOSE_RANGE_CLOEXEC: Final = 1 << 2
# linux/falloc.h
FALLOC_FL_KEEP_SIZE: Final = 0x01
# linux/inotify.h. An event is s32 wd; u32 mask; u32 cookie; u32 len; char name[len]
IN_CLOSE_WRITE: Final = 0x00000008
IN_CLOSE_NOWRITE: Final = 0x00000010
IN_Q_OVERFLOW: Final = 0x00004000
IN_IGNORED: Final = 0x00008000
IN_CLOEXEC: Final = os.O_CLOEXEC
IN_NONBLOCK: Final = os.O_NONBLOCK
NO_BYTES: Final = bytes(4)
inotify_event: Final = struct.Struct("<iIII")
# linux/openat2.h: u64 flags; u64 mode; u64 resolve
open_how: Final = struct.Struct("<QQQ")
RESOLVE_NO_XDEV: Final = 0x01
RESOLVE_NO_MAGICLINKS: Final = 0x02
RESOLVE_NO_SYMLINKS: Final = 0x04
RESOLVE_BENEATH: Final = 0x08
RESOLVE_IN_ROOT: Final = 0x10
# linux/timerfd.h. struct itimerspec: s64 interval seconds, nanoseconds; s64 value seconds, nanoseconds
CLOCK_MONOTONIC: Final = 1
TFD_CLOEXEC: Final = os.O_CLOEXEC
TFD_NONBLOCK: Final = os.O_NONBLOCK
TFD_TIMER_ABSTIME: Final = 1 << 0
itimerspec: Final = struct.Struct("<4q")
# linux/fs.h: u64 size, query_flags, query_addr, vma_start, vma_end, vma_flags, vma_page_size, vma_offset,
# inode; u32 dev_major, dev_minor, vma_name_size, build_id_size; u64 vma_name_addr, build_id_addr
procmap_query_struct: Final = struct.Struct("<9Q4I2Q")
PROCMAP_QUERY: Final = _IOWR(ord("f"), 17, procmap_query_struct.size)
PROCMAP_QUERY_VMA_READABLE: Final = 0x01
PROCMAP_QUERY_VMA_WRITABLE: Final = 0x02
PROCMAP_QUERY_VMA_EXECUTABLE: Final = 0x04
PROCMAP_QUERY_VMA_SHARED: Final = 0x08
PROCMAP_QUERY_COVERING_OR_NEXT_VMA: Final = 0x10
PROCMAP_QUERY_FILE_BACKED_VMA: Final = 0x20

_SINCE: Final = {
    "seccomp": "3.17",
    "pidfd_open": "5.3",
    "pidfd_getfd": "5.6",
    "openat2": "5.6",
    "close_range": "5.9",
    "kcmp": "3.5 with CONFIG_KCMP",
}

_libc = ctypes.CDLL(None, use_errno=True)

# (pid, own struct iovec, 1, its struct iovec, 1, 0), as objects of ctypes: arguments that are made once cost nothing.
process_vm_readv: Final = _libc.process_vm_readv
process_vm_writev: Final = _libc.process_vm_writev
process_vm_readv.restype = process_vm_writev.restype = ctypes.c_ssize_t
ONE: Final = c_ulong(1)
NO_FLAGS: Final = c_ulong(0)


def kernel_release() -> tuple[int, int]:
    """Major and minor number of the running kernel; (0, 0) if its release does not begin so."""
    numbers = os.uname().release.replace("-", ".").split(".")[:2]
    if len(numbers) == 2 and numbers[0].isdigit() and numbers[1].isdigit():
        return int(numbers[0]), int(numbers[1])
    return 0, 0


def oserror(call: str, number: int | None = None) -> OSError:
    """The OSError of a call that has just failed, by default with the errno that ctypes kept."""
    if number is None:
        number = ctypes.get_errno()
    text = f"{call}: {os.strerror(number)}"
    if number == errno.ENOSYS and call in _SINCE:
        text = (
            f"{call} is missing: it needs Linux {_SINCE[call]}, this is {os.uname().release}"
            " (or a container's seccomp profile hides it)"
        )
    return OSError(number, text)


def _bind(name: str, *argtypes: Any, number: int | None = None) -> Callable[..., int]:
    """The libc function ``name``, or with ``number`` the system call of that number."""
    function = _libc[name if number is None else "syscall"]
    function.restype = c_int if number is None else c_long
    function.argtypes = argtypes if number is None else (c_long, *argtypes)

    def call(*arguments: object) -> int:
        result: int = function(*arguments) if number is None else function(number, *arguments)
        if result == -1:
            raise oserror(name)
        return result

    return call


_seccomp = _bind("seccomp", c_uint, c_uint, c_char_p, number=X86_64["seccomp"])
_pidfd_open = _bind("pidfd_open", c_int, c_uint, number=X86_64["pidfd_open"])
_pidfd_getfd = _bind("pidfd_getfd", c_int, c_int, c_uint, number=X86_64["pidfd_getfd"])
_openat2 = _bind("openat2", c_int, c_char_p, c_char_p, c_ulong, number=X86_64["openat2"])
_close_range = _bind("close_range", c_uint, c_uint, c_uint, number=X86_64["close_range"])
_kcmp = _bind("kcmp", c_int, c_int, c_int, c_ulong, c_ulong, number=X86_64["kcmp"])
_tgkill = _bind("tgkill", c_int, c_int, c_int, number=X86_64["tgkill"])
_capget = _bind("capget", c_char_p, c_char_p)
_prctl = _bind("prctl", c_int, c_ulong, c_ulong, c_ulong, c_ulong)
_prctl_name = _bind("prctl", c_int, c_char_p, c_ulong, c_ulong, c_ulong)
_inotify_init1 = _bind("inotify_init1", c_int)
_inotify_add_watch = _bind("inotify_add_watch", c_int, c_char_p, c_uint32)
_inotify_rm_watch = _bind("inotify_rm_watch", c_int, c_int)
_fallocate = _bind("fallocate", c_int, c_int, c_long, c_long)
_mmap_libc = _libc.mmap
_mmap_libc.restype = c_void_p
_mmap_libc.argtypes = (c_void_p, c_size_t, c_int, c_int, c_int, c_long)
_timerfd_create = _bind("timerfd_create", c_int, c_int)
_timerfd_settime = _bind("timerfd_settime", c_int, c_int, c_char_p, c_void_p)
_munmap = _bind("munmap", c_void_p, c_size_t)
_mremap_libc = _libc.mremap
_mremap_libc.restype = c_void_p
_mremap_libc.argtypes = (c_void_p, c_size_t, c_size_t, c_int, c_void_p)
_MAP_FAILED = c_void_p(-1).value


def prctl(option: int, argument: int | bytes = 0) -> int:
    """prctl(2) with one argument."""
    if isinstance(argument, bytes):
        return _prctl_name(option, argument, 0, 0, 0)
    return _prctl(option, argument, 0, 0, 0)


def seccomp(filter: bytes) -> int:  # noqa: A002
    """Put the calling thread and its future children under ``filter``; returns the listener (CLOEXEC).

    Sets no_new_privs first, which a filter needs. Notified calls wait killably once they are received
    (SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV): without it every signal makes an operation run twice.

    OSError: EBUSY if a filter with a listener is in force already, EINVAL for an invalid program and for
    kernels before 5.19, EACCES without no_new_privs (seccomp(2), kernel/seccomp.c: seccomp_set_mode_filter).
    """
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    code = ctypes.create_string_buffer(filter, len(filter))
    program = sock_fprog.pack(len(filter) // sock_filter.size, ctypes.addressof(code))
    flags = SECCOMP_FILTER_FLAG_NEW_LISTENER | SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
    return _seccomp(SECCOMP_SET_MODE_FILTER, flags, program)


def seccomp_action_available(action: int) -> bool:
    """Whether the kernel knows the filter verdict ``action`` (SECCOMP_GET_ACTION_AVAIL, Linux 4.14)."""
    try:
        _seccomp(SECCOMP_GET_ACTION_AVAIL, 0, struct.pack("<I", action))
    except OSError as error:
        if error.errno in {errno.EOPNOTSUPP, errno.EINVAL}:
            return False
        raise
    return True


def set_sync_wake_up(listener: int) -> bool:
    """Let the supervisor run on the caller's CPU at once; False where the kernel cannot (before 6.6)."""
    try:
        fcntl.ioctl(listener, SECCOMP_IOCTL_NOTIF_SET_FLAGS, SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP)
    except OSError as error:
        if error.errno == errno.EINVAL:
            return False
        raise
    return True


def notif_id_valid(listener: int, id: int) -> bool:  # noqa: A002
    """Whether the notification ``id`` still waits, so that its pid still means the same task."""
    try:
        fcntl.ioctl(listener, SECCOMP_IOCTL_NOTIF_ID_VALID, struct.pack("<Q", id))
    except OSError as error:
        if error.errno == errno.ENOENT:
            return False
        raise
    return True


def addfd(
    listener: int,
    id: int,  # noqa: A002
    srcfd: int,
    newfd: int | None = None,
    cloexec: bool = True,
) -> int:
    """Install a copy of ``srcfd`` in the task of notification ``id``; returns its number there.

    ``newfd`` chooses the number and replaces what is there, as dup2 does; None takes the lowest free one.

    OSError: EBADF if ``srcfd`` is an O_PATH descriptor or ``newfd`` is not below the task's soft
    RLIMIT_NOFILE, EMFILE if no number is free, ENOENT if the task was killed, EINPROGRESS if it is being
    answered (seccomp_unotify(2)).
    """
    flags = 0 if newfd is None else SECCOMP_ADDFD_FLAG_SETFD
    # Only a mutable buffer makes fcntl.ioctl return what the kernel returned.
    argument = bytearray(
        seccomp_notif_addfd.pack(id, flags, srcfd, newfd or 0, os.O_CLOEXEC if cloexec else 0)
    )
    number: int = fcntl.ioctl(listener, SECCOMP_IOCTL_NOTIF_ADDFD, argument, True)
    return number


def pidfd_open(pid: int, flags: int = 0) -> int:
    """pidfd_open(2); ESRCH if there is no such process."""
    return _pidfd_open(pid, flags)


PIDFD_THREAD = os.O_EXCL  # pidfd_open(2), since Linux 6.9


def pidfd_getfd(pidfd: int, targetfd: int) -> int:
    """A copy (CLOEXEC) of descriptor ``targetfd`` of another process: pidfd_getfd(2).

    OSError: EBADF if the process has no such descriptor, ESRCH if it is gone, EPERM if this process may
    not ptrace it (another user, non-dumpable, Yama, or a container without CAP_SYS_PTRACE).
    """
    return _pidfd_getfd(pidfd, targetfd, 0)


def openat2(dirfd: int, path: bytes, flags: int, mode: int = 0, resolve: int = 0) -> int:
    """openat2(2); the result is always CLOEXEC."""
    how = open_how.pack(flags | os.O_CLOEXEC, mode, resolve)
    return _openat2(dirfd, path, how, open_how.size)


def close_range(first: int, last: int, flags: int = 0) -> None:
    """close_range(2), both ends included."""
    _close_range(first, last, flags)


def effective_capabilities(pid: int) -> int:
    """The effective capabilities of a task as a bit mask: capget(2). OSError ESRCH if it is gone."""
    answer = ctypes.create_string_buffer(capability_data.size)
    _capget(capability_header.pack(LINUX_CAPABILITY_VERSION_3, pid), answer)
    low, _, _, high, _, _ = capability_data.unpack(answer)
    return int(low | high << 32)


def kcmp(pid1: int, pid2: int, kind: int, index1: int = 0, index2: int = 0) -> int:
    """0 if both tasks share the object that ``kind`` names (KCMP_FILE, KCMP_VM...): kcmp(2)."""
    return _kcmp(pid1, pid2, kind, index1, index2)


def is_thread(tgid: int, tid: int) -> bool:
    """Whether the number ``tid`` is that of a thread of the thread group ``tgid``: tgkill(2) with signal 0."""
    try:
        _tgkill(tgid, tid, 0)
    except OSError as error:
        return error.errno == errno.EPERM  # it was found, and must not be signalled
    return True


def inotify_init1(flags: int = IN_CLOEXEC | IN_NONBLOCK) -> int:
    return _inotify_init1(flags)


def inotify_add_watch(fd: int, path: bytes, mask: int) -> int:
    """The watch descriptor; ENOSPC when fs.inotify.max_user_watches is used up."""
    return _inotify_add_watch(fd, path, mask)


def inotify_rm_watch(fd: int, wd: int) -> None:
    """EINVAL if the watch is gone already, as it is after the last close of an unlinked file."""
    _inotify_rm_watch(fd, wd)


def fallocate(fd: int, mode: int, offset: int, size: int) -> None:
    """fallocate(2): ENOSPC, or EOPNOTSUPP where the file system cannot."""
    _fallocate(fd, mode, offset, size)


def mmap(
    address: int, size: int, flags: int, fd: int = -1, offset: int = 0, *, writable: bool = True
) -> int:
    """mmap(2), readable, and ``writable``; the address. With MAP_FIXED what was mapped there is gone."""
    protection = PROT_READ | PROT_WRITE if writable else PROT_READ
    found: int = _mmap_libc(address, size, protection, flags, fd, offset)
    if found == _MAP_FAILED:
        raise oserror("mmap")
    return found


def munmap(address: int, size: int) -> None:
    """munmap(2)."""
    _munmap(address, size)


def move_mapping(source: int, size: int, target: int) -> None:
    """Move the mapping at ``source`` to ``target``, in place of what is there: mremap(2) with MREMAP_FIXED."""
    flags = MREMAP_MAYMOVE | MREMAP_FIXED
    if _mremap_libc(source, size, size, flags, target) == _MAP_FAILED:
        raise oserror("mremap")


def readable_bytes(fd: int) -> int:
    """How much ``read`` would return (FIONREAD): ten times cheaper than a read that fails with EAGAIN."""
    answer = fcntl.ioctl(fd, termios.FIONREAD, NO_BYTES)
    return int.from_bytes(bytes(answer), "little")


class Vma(NamedTuple):
    """One line of /proc/PID/maps. ``flags`` is a set of PROCMAP_QUERY_VMA_*."""

    start: int
    end: int
    flags: int
    page_size: int
    offset: int
    dev: int
    inode: int

    @property
    def writable(self) -> bool:
        """Whether the area may be written."""
        return bool(self.flags & PROCMAP_QUERY_VMA_WRITABLE)

    @property
    def shared(self) -> bool:
        """Whether the area is shared."""
        return bool(self.flags & PROCMAP_QUERY_VMA_SHARED)


def procmap_query(maps_fd: int, address: int) -> Vma | None:
    """The mapping that covers ``address`` in the process whose /proc/PID/maps is open as ``maps_fd``.

    None if nothing is mapped there. OSError: ENOTTY before Linux 6.11, ESRCH if the process is gone
    (fs/proc/task_mmu.c, do_procmap_query). ``dev`` compares with ``st_dev``, except on file systems that
    give subvolumes device numbers of their own (btrfs).
    """
    query = bytearray(
        procmap_query_struct.pack(
            procmap_query_struct.size, 0, address, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0
        )
    )
    try:
        fcntl.ioctl(maps_fd, PROCMAP_QUERY, query, True)
    except OSError as error:
        if error.errno == errno.ENOENT:
            return None
        raise
    answer = procmap_query_struct.unpack(query)
    start, end, flags, page_size, offset, inode, major, minor = answer[3:11]
    return Vma(start, end, flags, page_size, offset, os.makedev(major, minor), inode)


def timerfd_create() -> int:
    """A descriptor that is readable when its time has come (CLOCK_MONOTONIC)."""
    return _timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK)


def timerfd_settime(fd: int, seconds: float) -> None:
    """Let ``fd`` become readable once, when CLOCK_MONOTONIC shows ``seconds``; at once if that is past."""
    whole = int(seconds)
    nanoseconds = min(int((seconds - whole) * 1e9) + 1, 999_999_999)  # never early, never 0 (off)
    value = itimerspec.pack(0, 0, whole, nanoseconds)
    _timerfd_settime(fd, TFD_TIMER_ABSTIME, value, None)


def read_memory(mem: int, address: int, size: int) -> bytes | None:
    """``size`` bytes at ``address`` through a descriptor of /proc/PID/mem, or None if not all of them are there."""
    try:
        data = os.pread(mem, size, address)
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        return None
    return data if len(data) == size else None


def write_memory(mem: int, address: int, data: bytes) -> bool:
    """Write ``data`` at ``address`` through a descriptor of /proc/PID/mem; whether all of it could be."""
    try:
        return os.pwrite(mem, data, address) == len(data)
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        return False
