"""Packed structures against what the kernel writes for the same file."""

from __future__ import annotations

import os
import stat
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.puppet import AT_FDCWD, Puppet, finish, start
from support.requirements import require_program
from uvfio.doors.run.linux.stat import (
    Facts,
    pack_stat,
    pack_stat_32,
    pack_statfs,
    pack_statfs_32,
    pack_statfs_old,
    pack_statx,
)
from uvfio.uapi.linux import SYSFS_MAGIC, TMPFS_MAGIC

STATX_BASIC_STATS = 0x7FF
AT_SYMLINK_NOFOLLOW = 0x100
FILES = ["plain", "folder", "/dev/null", "/dev/shm", "/proc/version", "link", "odd"]


@pytest.fixture(params=FILES)
def path(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Files of several kinds, with facts that cannot be mistaken for others."""
    name = str(request.param)
    if name.startswith("/"):
        return name
    made = tmp_path / name
    if name == "folder":
        made.mkdir(mode=0o711)
        (made / "below").mkdir()
    elif name == "link":
        made.symlink_to("nowhere")
    else:
        made.write_bytes(b"x" * 12345)
        made.chmod(0o4751)
        os.link(made, tmp_path / "second")
        early = -1_500_000_001 if name == "odd" else 1_234_567_890_123_456_789
        os.utime(made, ns=(early, 987_654_321_000_000_001))
    return str(made)


def puppet_of(bits: int) -> Iterator[Puppet]:
    puppet, process = start(bits)
    yield puppet
    finish(puppet, process)


@pytest.fixture(params=[64, 32])
def puppet(request: pytest.FixtureRequest) -> Iterator[Puppet]:
    yield from puppet_of(request.param)


@pytest.fixture
def puppet64() -> Iterator[Puppet]:
    yield from puppet_of(64)


@pytest.fixture
def puppet32() -> Iterator[Puppet]:
    yield from puppet_of(32)


def volatile(path: str) -> bool:
    """Facts that change between two looks."""
    return path.startswith(("/proc", "/dev"))


def without_times(data: bytes, start: int, end: int) -> bytes:
    return data[:start] + bytes(end - start) + data[end:]


def test_stat(puppet64: Puppet, path: str) -> None:
    at = puppet64.buffer(b"\xaa" * 160)
    puppet64.must("newfstatat", AT_FDCWD, path.encode(), at, AT_SYMLINK_NOFOLLOW)
    real = puppet64.peek(at, 160)
    mine = pack_stat(Facts.of(os.lstat(path)))
    assert len(mine) == 144
    if volatile(path):
        mine, real = without_times(mine, 72, 120), without_times(real, 72, 120)
    assert mine == real[:144]
    assert real[144:] == b"\xaa" * 16


def test_stat_32(puppet32: Puppet, path: str) -> None:
    at = puppet32.buffer(b"\xaa" * 112)
    puppet32.must("fstatat64", AT_FDCWD, path.encode(), at, AT_SYMLINK_NOFOLLOW)
    real = puppet32.peek(at, 112)
    mine = pack_stat_32(Facts.of(os.lstat(path)))
    assert len(mine) == 96
    if volatile(path):
        mine, real = without_times(mine, 64, 88), without_times(real, 64, 88)
    # what is between the fields is the kernel's stack or the caller's memory
    assert without_times(mine, 8, 12)[:40] == without_times(real, 8, 12)[:40]
    assert mine[44:] == real[44:96]
    assert real[96:] == b"\xaa" * 16


def test_statx(puppet: Puppet, path: str) -> None:
    at = puppet.buffer(256)
    puppet.must("statx", AT_FDCWD, path.encode(), AT_SYMLINK_NOFOLLOW, STATX_BASIC_STATS, at)
    real = bytearray(puppet.peek(at, 256))
    mine = pack_statx(Facts.of(os.lstat(path)))
    assert len(mine) == 256
    (mask,) = struct.unpack_from("<I", real)
    assert mask & STATX_BASIC_STATS == STATX_BASIC_STATS
    real[0:4] = STATX_BASIC_STATS.to_bytes(4, "little")
    real[8:16] = bytes(8)  # attributes, and below which of them are known
    real[56:64] = bytes(8)
    real[80:96] = bytes(16)  # birth
    real[144:] = bytes(112)  # mount, direct I/O, atomic writes
    if volatile(path):
        real[64:128] = mine[64:128]
    assert mine == bytes(real)


def test_a_device_has_its_number() -> None:
    """What is a device stays one."""
    assert Facts.of(os.stat("/dev/null")).rdev == os.makedev(1, 3)
    assert Facts.of(os.stat("/dev/null"), stat.S_IFCHR | 0o600, os.makedev(511, 7)).rdev == (
        os.makedev(511, 7)
    )


@pytest.mark.parametrize(
    "rdev", [os.makedev(511, 0), os.makedev(511, 300), os.makedev(4095, 1 << 19)]
)
def test_a_file_that_poses_as_a_device(tmp_path: Path, rdev: int) -> None:
    made = tmp_path / "node"
    made.touch()
    mode = stat.S_IFCHR | 0o600
    facts = Facts.of(made.stat(), mode, rdev)
    assert struct.unpack_from("<I", pack_stat(facts), 24)[0] == mode
    assert struct.unpack_from("<Q", pack_stat(facts), 40)[0] == rdev
    assert struct.unpack_from("<I", pack_stat_32(facts), 16)[0] == mode
    assert struct.unpack_from("<Q", pack_stat_32(facts), 32)[0] == rdev
    assert struct.unpack_from("<H", pack_statx(facts), 28)[0] == mode
    assert struct.unpack_from("<II", pack_statx(facts), 128) == (os.major(rdev), os.minor(rdev))


@pytest.mark.parametrize("folder", ["/dev/shm", "/sys", "/"])
def test_statfs(puppet64: Puppet, folder: str) -> None:
    at = puppet64.buffer(b"\xaa" * 136)
    puppet64.must("statfs", folder.encode(), at)
    real = bytearray(puppet64.peek(at, 136))
    mine = pack_statfs(folder, sysfs=folder == "/sys")
    assert len(mine) == 120
    compare(real, mine, ("<q", 0), ("<5Q", 16), ("<2i", 56), ("<Q", 80), folder)


@pytest.mark.parametrize("folder", ["/dev/shm", "/sys", "/"])
def test_statfs_32(puppet32: Puppet, folder: str) -> None:
    at = puppet32.buffer(b"\xaa" * 100)
    puppet32.must("statfs64", folder.encode(), 84, at)
    real = bytearray(puppet32.peek(at, 100))
    mine = pack_statfs_32(folder, sysfs=folder == "/sys")
    assert len(mine) == 84
    compare(real, mine, ("<I", 0), ("<5Q", 8), ("<2i", 48), ("<I", 64), folder)


def test_old_statfs_32(puppet32: Puppet) -> None:
    """``statfs``, whose fields are 32 bits wide."""
    at = puppet32.buffer(b"\xaa" * 80)
    puppet32.must("statfs", b"/sys", at)
    real = bytearray(puppet32.peek(at, 80))
    mine = pack_statfs_old("/sys", sysfs=True)
    assert len(mine) == 64
    compare(real, mine, ("<I", 0), ("<5I", 8), ("<2i", 28), ("<I", 44), "/sys")


def compare(
    real: bytearray,
    mine: bytes,
    magic: tuple[str, int],
    counts: tuple[str, int],
    fsid: tuple[str, int],
    flags: tuple[str, int],
    folder: str,
) -> None:
    """All but the kind of an ordinary folder, free space, which others change, and the id, which we do not give."""
    size = len(mine)
    assert real[size:] == b"\xaa" * 16
    kind = struct.unpack_from(magic[0], mine, magic[1])[0]
    assert kind == (SYSFS_MAGIC if folder == "/sys" else TMPFS_MAGIC)
    masked = [("magic", magic)] * (folder == "/") + [("fsid", fsid)]
    masked += [("counts", counts)] * (folder != "/sys")
    left, right = bytearray(mine), real[:size]
    for _, (form, at) in masked:
        left[at : at + struct.calcsize(form)] = right[at : at + struct.calcsize(form)] = bytes(
            struct.calcsize(form)
        )
    valid = 0x20  # ST_VALID is the kernel's own remark
    form, at = flags
    (real_flags,) = struct.unpack_from(form, right, at)
    struct.pack_into(form, right, at, real_flags & ~valid)
    (my_flags,) = struct.unpack_from(form, left, at)
    struct.pack_into(form, left, at, my_flags & ~valid)
    assert left == right


LAYOUT = """
#include <asm/stat.h>
#include <asm/statfs.h>
#define OFFSET(type, field) __builtin_offsetof(type, field)
_Static_assert(sizeof(STAT) == STAT_SIZE, "stat");
_Static_assert(sizeof(STATFS) == STATFS_SIZE, "statfs");
_Static_assert(OFFSET(STAT, st_mode) == MODE_AT, "mode");
_Static_assert(OFFSET(STAT, st_rdev) == RDEV_AT, "rdev");
_Static_assert(OFFSET(STAT, st_size) == SIZE_AT, "size");
_Static_assert(OFFSET(STAT, st_atime) == TIMES_AT, "times");
"""
NAMES = ("STAT", "STAT_SIZE", "STATFS", "STATFS_SIZE", "MODE_AT", "RDEV_AT", "SIZE_AT", "TIMES_AT")


@pytest.mark.parametrize(
    ("flag", "values"),
    [
        ("-m64", ("struct stat", 144, "struct statfs", 120, 24, 40, 48, 72)),
        ("-m32", ("struct stat64", 96, "struct statfs64", 84, 16, 32, 44, 64)),
    ],
)
def test_the_headers_agree(tmp_path: Path, flag: str, values: tuple[object, ...]) -> None:
    """Sizes and offsets that the tests above rely on, from the kernel's own headers."""
    source = tmp_path / "layout.c"
    source.write_text(LAYOUT)
    defines = [f"-D{name}={value}" for name, value in zip(NAMES, values, strict=True)]
    done = subprocess.run(
        [require_program("gcc"), flag, *defines, "-c", source, "-o", tmp_path / "layout.o"],
        capture_output=True,
        text=True,
        check=False,
    )
    if "No such file or directory" in done.stderr:
        pytest.skip(done.stderr.splitlines()[0])
    assert done.returncode == 0, done.stderr
