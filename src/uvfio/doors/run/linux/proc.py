"""What /proc tells of a task: its thread group, image, limits and descriptors.

A task is named by its number: the caller knows that the number still means it. OSError of the shortage of descriptors
(EMFILE) is passed on; it tells nothing of the task.
"""

from __future__ import annotations

import errno
import os
import resource
from typing import Final

from uvfio.uapi.linux import AT_RANDOM

__all__ = [
    "SECRET",
    "SPARE",
    "count_open",
    "group_and_parent",
    "image_mark",
    "is_alone",
    "limits",
    "open_flags",
    "scarce",
]

SPARE: Final = 16  # descriptors of our own that are left for what is opened for a moment
SECRET: Final = b"?"  # the mark of an image that cannot be read
GONE: Final = (errno.ENOENT, errno.ESRCH)


def group_and_parent(tid: int) -> tuple[int, int]:
    """The thread group of a task and its parent; a task that is gone stands for itself, without a parent."""
    try:
        text = _read(f"/proc/{tid}/status")
    except OSError as error:
        if error.errno in GONE:
            return tid, 0
        raise
    at = text.index(b"Tgid:")
    tgid = int(text[at + 5 : text.index(b"\n", at)])
    at = text.index(b"PPid:")
    return tgid, int(text[at + 5 : text.index(b"\n", at)])


def image_mark(tid: int) -> bytes:
    """Differs between any two images that a task executes: its auxiliary vector and the 16 random bytes that this leads
    to. Empty if the task has ended, SECRET if its image cannot be read."""
    try:
        auxv = _read(f"/proc/{tid}/auxv")
        fd = os.open(f"/proc/{tid}/mem", os.O_RDONLY | os.O_CLOEXEC)
    except PermissionError:
        return SECRET
    except OSError as error:
        if error.errno in GONE:
            return b""
        raise
    try:
        for at in range(0, len(auxv) - 15, 16):
            if int.from_bytes(auxv[at : at + 8], "little") == AT_RANDOM:
                where = int.from_bytes(auxv[at + 8 : at + 16], "little")
                random = os.pread(fd, 16, where)
                return auxv + random if random else b""  # it has left its memory since
    except OSError as error:
        if error.errno != errno.EIO:  # the program has unmapped it
            raise
    finally:
        os.close(fd)
    return auxv


def is_alone(tgid: int) -> bool:
    """Whether a process has one thread; True for one that has ended."""
    try:
        return os.stat(f"/proc/{tgid}/task").st_nlink == 3
    except OSError:
        return True


def count_open(tid: int) -> int:
    """How many descriptors a task has open; 0 for one that has ended."""
    folder = f"/proc/{tid}/fd"
    try:
        return os.stat(folder).st_size or len(os.listdir(folder))  # the size since Linux 6.2
    except OSError as error:
        if error.errno in GONE:
            return 0
        raise


def open_flags(tid: int, fd: int) -> int:
    """What descriptor ``fd`` of a task was opened with, and O_CLOEXEC as it is now."""
    return int(_read(f"/proc/{tid}/fdinfo/{fd}").partition(b"flags:")[2].split()[0], 8)


def limits(pid: int, name: bytes) -> tuple[int, int]:
    """The soft and the hard limit that /proc/PID/limits calls ``name``. Every user may read it, other than with
    prlimit(2)."""
    soft, hard = _read(f"/proc/{pid}/limits").partition(name)[2].split(None, 2)[:2]
    return _number(soft), _number(hard)


def _number(limit: bytes) -> int:
    return resource.RLIM_INFINITY if limit == b"unlimited" else int(limit)


def _read(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 8192)
    finally:
        os.close(fd)


def scarce(fd: int) -> bool:
    """Whether ``fd``, the lowest that was free, is one of the last that this process can have."""
    return fd >= resource.getrlimit(resource.RLIMIT_NOFILE)[0] - SPARE
