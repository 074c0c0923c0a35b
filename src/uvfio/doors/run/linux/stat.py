"""What stat, statx and statfs write into a program's memory, on x86-64 and i386.

Layouts: arch/x86/include/uapi/asm/stat.h, include/uapi/linux/stat.h, include/uapi/asm-generic/statfs.h.
The facts come from a real file; kind, permissions and device number may be replaced, which is how a plain
file of the machine's tree becomes a character device.
"""

from __future__ import annotations

import os
import struct
from typing import NamedTuple

from uvfio.uapi.linux import SYSFS_MAGIC, TMPFS_MAGIC

__all__ = [
    "Facts",
    "pack_stat",
    "pack_stat_32",
    "pack_statfs",
    "pack_statfs_32",
    "pack_statfs_old",
    "pack_statx",
]

STAT_64 = struct.Struct("<QQQIIIIQqqq6q3q")
STAT_32 = struct.Struct("<QIIIIIIQIqIQ6IQ")
STATX_TIME = struct.Struct("<qIi")
STATX_BASIC_STATS = 0x7FF
NS = 1_000_000_000


class Facts(NamedTuple):
    """A stat result with the kind, permissions and device number that the program shall see."""

    real: os.stat_result
    mode: int
    rdev: int

    @classmethod
    def of(cls, real: os.stat_result, mode: int | None = None, rdev: int | None = None) -> Facts:
        """``real`` with what is not None replaced."""
        return cls(
            real, real.st_mode if mode is None else mode, real.st_rdev if rdev is None else rdev
        )


def pack_stat(facts: Facts) -> bytes:
    """``struct stat`` of x86-64, 144 bytes."""
    st = facts.real
    times = [
        part for ns in (st.st_atime_ns, st.st_mtime_ns, st.st_ctime_ns) for part in divmod(ns, NS)
    ]
    return STAT_64.pack(
        st.st_dev,
        st.st_ino,
        st.st_nlink,
        facts.mode,
        st.st_uid,
        st.st_gid,
        0,
        facts.rdev,
        st.st_size,
        st.st_blksize,
        st.st_blocks,
        *times,
        0,
        0,
        0,
    )


def pack_stat_32(facts: Facts) -> bytes:
    """``struct stat64`` of i386, 96 bytes."""
    st = facts.real
    times = [
        part & 0xFFFFFFFF
        for ns in (st.st_atime_ns, st.st_mtime_ns, st.st_ctime_ns)
        for part in divmod(ns, NS)
    ]
    return STAT_32.pack(
        st.st_dev,
        0,
        st.st_ino & 0xFFFFFFFF,
        facts.mode,
        st.st_nlink,
        st.st_uid,
        st.st_gid,
        facts.rdev,
        0,
        st.st_size,
        st.st_blksize,
        st.st_blocks,
        *times,
        st.st_ino,
    )


def pack_statx(facts: Facts) -> bytes:
    """``struct statx``, 256 bytes, with the basic fields."""
    st = facts.real
    head = struct.pack(
        "<IIQIIIHHQQQQ",
        STATX_BASIC_STATS,
        st.st_blksize,
        0,
        st.st_nlink,
        st.st_uid,
        st.st_gid,
        facts.mode,
        0,
        st.st_ino,
        st.st_size,
        st.st_blocks,
        0,
    )
    times = b"".join(
        STATX_TIME.pack(*divmod(ns, NS), 0)
        for ns in (st.st_atime_ns, 0, st.st_ctime_ns, st.st_mtime_ns)
    )
    devices = struct.pack(
        "<IIII",
        os.major(facts.rdev),
        os.minor(facts.rdev),
        os.major(st.st_dev),
        os.minor(st.st_dev),
    )
    return (head + times + devices).ljust(256, b"\0")


def pack_statfs(path: str, sysfs: bool) -> bytes:
    """``struct statfs`` of x86-64, 120 bytes."""
    fs = os.statvfs(path)
    magic = SYSFS_MAGIC if sysfs else TMPFS_MAGIC
    return struct.pack(
        "<qqQQQQQQqqq4q",
        magic,
        fs.f_bsize,
        fs.f_blocks,
        fs.f_bfree,
        fs.f_bavail,
        fs.f_files,
        fs.f_ffree,
        0,
        fs.f_namemax,
        fs.f_frsize,
        fs.f_flag,
        0,
        0,
        0,
        0,
    )


def pack_statfs_32(path: str, sysfs: bool) -> bytes:
    """``struct statfs64`` of i386, 84 bytes."""
    fs = os.statvfs(path)
    magic = SYSFS_MAGIC if sysfs else TMPFS_MAGIC
    return struct.pack(
        "<IIQQQQQQIII4I",
        magic,
        fs.f_bsize,
        fs.f_blocks,
        fs.f_bfree,
        fs.f_bavail,
        fs.f_files,
        fs.f_ffree,
        0,
        fs.f_namemax,
        fs.f_frsize,
        fs.f_flag,
        0,
        0,
        0,
        0,
    )


def pack_statfs_old(path: str, sysfs: bool) -> bytes:
    """``struct statfs`` of i386, 64 bytes. Counts that do not fit are the largest that does."""
    fs = os.statvfs(path)
    counts = (fs.f_blocks, fs.f_bfree, fs.f_bavail, fs.f_files, fs.f_ffree)
    return struct.pack(
        "<16I",
        SYSFS_MAGIC if sysfs else TMPFS_MAGIC,
        fs.f_bsize,
        *(min(value, 0xFFFFFFFF) for value in counts),
        0,
        0,
        fs.f_namemax,
        fs.f_frsize,
        fs.f_flag,
        0,
        0,
        0,
        0,
    )
