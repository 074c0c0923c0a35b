"""Path calls of a real program: what belongs to the machine, what to the host, and what the program sees."""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from support.puppet import AT_FDCWD, PAGE, Puppet, Stage, open_descriptors
from uvfio.fops.rfc2011.group import GroupFile
from uvfio.machine.nodes import GROUP_MAJOR
from uvfio.uapi import rfc

AT_SYMLINK_NOFOLLOW, AT_EMPTY_PATH = 0x100, 0x1000
PATH_MAX = 4096
DEVICE = b"/sys/bus/pci/devices/0000:07:00.0"
TMPFS, SYSFS = 0x01021994, 0x62656572


@pytest.fixture
def stage() -> Iterator[Stage]:
    before = open_descriptors()
    with Stage() as stage:
        yield stage
    assert open_descriptors() <= before


@pytest.fixture
def puppet(stage: Stage) -> Puppet:
    return stage.puppet


class Found(NamedTuple):
    mode: int
    rdev: int


def facts(puppet: Puppet, path: bytes, *, dirfd: int = AT_FDCWD, flags: int = 0) -> Found | int:
    """What newfstatat says, or minus an errno."""
    at = puppet.buffer(144)
    result = puppet.call("newfstatat", dirfd, path, at, flags)
    raw = puppet.peek(at, 144)
    return result or Found(*struct.unpack_from("<I12xQ", raw, 24))


def mode_of(puppet: Puppet, path: bytes, **how: int) -> int:
    found = facts(puppet, path, **how)
    assert not isinstance(found, int), (path, found)
    return found.mode


def is_device(puppet: Puppet, path: bytes, **how: int) -> bool:
    found = facts(puppet, path, **how)
    return (
        not isinstance(found, int)
        and stat.S_ISCHR(found.mode)
        and os.major(found.rdev) == GROUP_MAJOR
    )


def readlink(puppet: Puppet, path: bytes, size: int = PATH_MAX) -> bytes | int:
    at = puppet.buffer(size)
    result = puppet.call("readlinkat", AT_FDCWD, path, at, size)
    return result if result < 0 else puppet.peek(at, result)


def getcwd(puppet: Puppet) -> bytes:
    at = puppet.buffer(PATH_MAX)
    size = puppet.must("getcwd", at, PATH_MAX)
    text = puppet.peek(at, size)
    assert text.endswith(b"\0")
    return text[:-1]


def content(puppet: Puppet, path: bytes, dirfd: int = AT_FDCWD) -> bytes | int:
    fd = puppet.call("openat", dirfd, path, os.O_RDONLY)
    if fd < 0:
        return fd
    at = puppet.buffer(PATH_MAX)
    size = puppet.must("read", fd, at, PATH_MAX)
    puppet.must("close", fd)
    return puppet.peek(at, size)


# -- which path is it? ---------------------------------------------------------------------------------

SPELLINGS = [
    b"/dev/vfio/241",
    b"//dev/vfio/241",
    b"///dev//vfio///241",
    b"/dev/./vfio/././241",
    b"/./dev/vfio/241",
    b"/dev/vfio/../vfio/241",
    b"/dev/shm/../vfio/241",
    b"/../../dev/vfio/241",
    b"/usr/../dev/vfio/241",
    b"/usr/./../../dev/vfio/241",
    b"/sys/bus/pci/../../../dev/vfio/241",
    b"/sys/bus/pci/drivers/vfio-pci/../../../../../dev/vfio/241",
    b"/proc/../dev/vfio/241",
]


@pytest.mark.parametrize("path", SPELLINGS, ids=bytes.decode)
def test_spellings_of_a_device(stage: Stage, path: bytes) -> None:
    assert is_device(stage.puppet, path)
    fd = stage.puppet.open(path)
    assert isinstance(stage.file(fd), GroupFile)


@pytest.mark.parametrize(
    ("cwd", "path"),
    [
        (b"/", b"dev/vfio/241"),
        (b"/", b"./dev//vfio/241"),
        (b"/dev", b"vfio/241"),
        (b"/dev", b"../dev/vfio/241"),
        (b"/dev/shm", b"../vfio/241"),
        (b"/usr", b"../dev/vfio/241"),
        (b"/tmp", b"../../../../dev/vfio/241"),
        (b"/proc", b"../dev/vfio/241"),
        (b"/dev/vfio", b"241"),
        (b"/dev/vfio/", b"./241"),
        (b"/sys/bus/pci", b"../../../dev/vfio/241"),
        (b"/sys/bus", b"pci/../../../dev/vfio/241"),
    ],
)
def test_relative_paths(stage: Stage, cwd: bytes, path: bytes) -> None:
    stage.puppet.must("chdir", cwd)
    assert is_device(stage.puppet, path)
    assert isinstance(stage.file(stage.puppet.open(path)), GroupFile)


@pytest.mark.parametrize(
    ("folder", "path"),
    [
        (b"/dev/vfio", b"241"),
        (b"/dev/vfio", b"../vfio/241"),
        (b"/dev", b"vfio/241"),
        (b"/", b"dev/vfio/241"),
        (b"/usr", b"../dev/vfio/241"),
        (b"/sys/bus/pci/devices", b"../../../../dev/vfio/241"),
        (b"/tmp", b"/dev/vfio/241"),
    ],
)
def test_paths_from_a_descriptor(stage: Stage, folder: bytes, path: bytes) -> None:
    puppet = stage.puppet
    dirfd = puppet.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    assert dirfd >= 0
    assert is_device(puppet, path, dirfd=dirfd)
    assert isinstance(stage.file(puppet.must("openat", dirfd, path, os.O_RDWR)), GroupFile)


@pytest.mark.parametrize(
    "path", [b"/dev/vfio-other", b"/dev/vfiox/241", b"/sys/bus/pci_express", b"/sys/bus/pci-x/y"]
)
def test_names_that_merely_begin_alike(stage: Stage, path: bytes) -> None:
    """They are the host's, whatever it says."""
    kernel = 0 if os.path.exists(path) else -errno.ENOENT
    assert stage.puppet.call("access", path, os.F_OK) == kernel


@pytest.mark.parametrize(
    "path",
    [b"/dev/null", b"/usr/../dev/null", b"/dev/vfio/../null", b"/sys/bus/pci/../../../dev/null"],
)
def test_paths_that_lead_back_to_the_host(stage: Stage, path: bytes) -> None:
    found = facts(stage.puppet, path)
    assert isinstance(found, Found)
    assert found.rdev == os.makedev(1, 3)
    fd = stage.puppet.open(path)
    assert fd >= 0
    assert stage.file(fd) is None


def test_dots_after_a_link(puppet: Puppet) -> None:
    """The folder above is that of what the link leads to."""
    assert mode_of(puppet, DEVICE + b"/driver/../vfio-pci")
    assert content(puppet, DEVICE + b"/driver/../../devices/0000:07:00.0/vendor") == content(
        puppet, DEVICE + b"/vendor"
    )
    assert facts(puppet, DEVICE + b"/driver/../vendor") == -errno.ENOENT
    assert facts(puppet, DEVICE + b"/nothing/../vendor") == -errno.ENOENT
    assert facts(puppet, DEVICE + b"/vendor/../vendor") == -errno.ENOTDIR


def test_long_paths(stage: Stage) -> None:
    puppet = stage.puppet
    tail = b"vfio/241"
    for size in (255, 256, 257, PATH_MAX - 2, PATH_MAX - 1):
        path = b"/dev/" + b"/" * (size - 5 - len(tail)) + tail
        assert len(path) == size
        assert is_device(puppet, path), size
    for size in (PATH_MAX, PATH_MAX + 1, 2 * PATH_MAX):
        path = b"/dev/" + b"/" * (size - 5 - len(tail)) + tail
        assert facts(puppet, path) == -errno.ENAMETOOLONG
        assert puppet.open(path) == -errno.ENAMETOOLONG
    name = b"/dev/vfio/" + b"x" * 256
    assert facts(puppet, name) == -errno.ENAMETOOLONG


def test_a_path_without_an_end(puppet: Puppet) -> None:
    at = puppet.pages(2)
    puppet.must("munmap", at + PAGE, PAGE)
    puppet.poke(at, b"/dev/vfio/".ljust(PAGE, b"x"))
    assert puppet.call("openat", AT_FDCWD, at, os.O_RDWR) == -errno.ENAMETOOLONG
    assert puppet.call("openat", AT_FDCWD, at + 8, os.O_RDWR) == -errno.EFAULT
    assert puppet.call("openat", AT_FDCWD, at + PAGE - 4, os.O_RDWR) == -errno.EFAULT
    assert puppet.call("openat", AT_FDCWD, 0, os.O_RDWR) == -errno.EFAULT
    assert puppet.call("openat", AT_FDCWD, 1 << 63, os.O_RDWR) == -errno.EFAULT


def test_bytes_that_are_no_text(puppet: Puppet) -> None:
    assert facts(puppet, b"/dev/vfio/\xff\xfe") == -errno.ENOENT
    assert puppet.open(b"/dev/vfio/\xff") == -errno.ENOENT
    assert puppet.open(b"/proc/self/fd/\xc2\xb2") == -errno.ENOENT  # a digit to Python
    assert puppet.open(b"/dev/fd/\xd9\xa3") == -errno.ENOENT


def test_nothing_is_not_a_folder(puppet: Puppet) -> None:
    """An empty path is ENOENT wherever the program is; only AT_EMPTY_PATH makes sense of it."""
    folder = puppet.open(b"/dev/vfio", os.O_RDONLY | os.O_DIRECTORY)
    for _ in range(2):
        assert facts(puppet, b"") == -errno.ENOENT
        assert facts(puppet, b"", dirfd=folder) == -errno.ENOENT
        assert puppet.open(b"") == -errno.ENOENT
        assert puppet.call("openat", folder, b"", os.O_RDONLY) == -errno.ENOENT
        assert puppet.call("access", b"", os.F_OK) == -errno.ENOENT
        assert puppet.call("chdir", b"") == -errno.ENOENT
        assert stat.S_ISDIR(mode_of(puppet, b"", dirfd=folder, flags=AT_EMPTY_PATH))
        puppet.must("chdir", b"/dev/vfio")
    assert getcwd(puppet) == b"/dev/vfio"


# -- open ------------------------------------------------------------------------------------------------


def test_each_open_is_another_file(stage: Stage) -> None:
    first, second = (stage.puppet.open(b"/dev/vfio/241") for _ in range(2))
    assert stage.file(first) is not stage.file(second)
    assert {first, second} <= set(stage.session.reserved)


@pytest.mark.parametrize("call", ["open", "openat", "openat2", "creat"])
def test_ways_to_open(stage: Stage, call: str) -> None:
    puppet, path = stage.puppet, b"/dev/vfio/241"
    how = puppet.buffer(struct.pack("<QQQ", os.O_RDWR, 0, 0))
    fd = {
        "open": lambda: puppet.call("open", path, os.O_RDWR),
        "openat": lambda: puppet.call("openat", AT_FDCWD, path, os.O_RDWR),
        "openat2": lambda: puppet.call("openat2", AT_FDCWD, path, how, 24),
        "creat": lambda: puppet.call("creat", path, 0o600),
    }[call]()
    assert isinstance(stage.file(fd), GroupFile)


def test_flags(stage: Stage) -> None:
    puppet = stage.puppet
    node = b"/dev/vfio/241"
    assert isinstance(stage.file(puppet.open(node, os.O_RDWR | os.O_CREAT)), GroupFile)
    assert isinstance(stage.file(puppet.open(node, os.O_RDWR | os.O_NOFOLLOW)), GroupFile)
    assert puppet.open(node, os.O_RDWR | os.O_CREAT | os.O_EXCL) == -errno.EEXIST
    assert puppet.open(node, os.O_RDONLY | os.O_DIRECTORY) == -errno.ENOTDIR
    assert puppet.open(node + b"/", os.O_RDWR) == -errno.ENOTDIR
    assert puppet.open(b"/dev/vfio/9999", os.O_RDWR) == -errno.ENOENT
    assert puppet.open(b"/dev/vfio/9999", os.O_RDWR | os.O_CREAT) == -errno.EACCES
    assert puppet.open(b"/dev/vfio", os.O_RDWR) == -errno.EISDIR
    assert puppet.open(b"/dev/vfio/", os.O_RDONLY | os.O_DIRECTORY) >= 0
    assert puppet.open(DEVICE + b"/driver", os.O_RDONLY | os.O_NOFOLLOW) == -errno.ELOOP
    assert puppet.open(DEVICE + b"/driver", os.O_RDONLY) >= 0
    assert puppet.open(DEVICE + b"/vendor", os.O_RDONLY | os.O_DIRECTORY) == -errno.ENOTDIR
    assert puppet.open(DEVICE + b"/vendor", os.O_RDONLY | os.O_CREAT | os.O_EXCL) == -errno.EEXIST
    pathfd = puppet.open(node, os.O_PATH)
    assert pathfd >= 0
    assert stage.file(pathfd) is None


def test_close_on_exec_is_the_programs_choice(puppet: Puppet) -> None:
    for path in (b"/dev/vfio/241", DEVICE + b"/vendor", b"/dev/vfio/../null"):
        for flags, kept in ((os.O_RDONLY, 0), (os.O_RDONLY | os.O_CLOEXEC, 1)):
            assert puppet.must("fcntl", puppet.open(path, flags), 1) == kept  # F_GETFD


def test_a_failed_open_leaves_nothing(stage: Stage) -> None:
    puppet = stage.puppet
    puppet.open(b"/dev/vfio/none")
    puppet.open(
        b"/dev/vfio/../none"
    )  # the first that the program repeats: the reactor gets its bell
    before = open_descriptors(), len(stage.session.tokens)
    for path in (b"/dev/vfio/none", b"/dev/vfio", b"/dev/vfio/../none", DEVICE + b"/none"):
        assert puppet.open(path, os.O_RDWR) < 0
    assert (open_descriptors(), len(stage.session.tokens)) == before


def test_no_descriptor_is_free(stage: Stage) -> None:
    puppet = stage.puppet
    puppet.open(b"/dev/vfio/none")
    before = open_descriptors(), len(stage.session.tokens)
    limit = puppet.buffer(struct.pack("<QQ", 3, 1 << 20))
    old = puppet.buffer(16)
    puppet.must("prlimit64", 0, 7, 0, old)
    puppet.must("close", 2)
    null = puppet.open(b"/dev/null")
    while null < 2:
        null = puppet.open(b"/dev/null")
    hard = struct.unpack("<QQ", puppet.peek(old, 16))[1]
    puppet.poke(limit, struct.pack("<QQ", null + 1, hard))
    puppet.must("prlimit64", 0, 7, limit, 0)
    assert puppet.open(b"/dev/vfio/241") == -errno.EMFILE
    assert puppet.open(DEVICE + b"/vendor", os.O_RDONLY) == -errno.EMFILE
    assert (open_descriptors(), len(stage.session.tokens)) == before
    puppet.poke(limit, struct.pack("<QQ", null + 2, hard))
    puppet.must("prlimit64", 0, 7, limit, 0)
    assert puppet.open(b"/dev/vfio/241") == stage.session.reserved.start  # above its limit
    assert isinstance(stage.file(stage.session.reserved.start), GroupFile)


@pytest.mark.parametrize(
    "form",
    [
        "/proc/self/fd/%d",
        "/proc/thread-self/fd/%d",
        "/dev/fd/%d",
        "/proc/%PID/fd/%d",
        "/proc/self/task/%PID/fd/%d",
    ],
)
def test_a_descriptor_by_its_name(stage: Stage, form: str) -> None:
    """Opening it is opening the device again; it says what it is."""
    puppet = stage.puppet
    fd = puppet.open(b"/dev/vfio/241")
    path = (form.replace("%PID", str(puppet.pid)) % fd).encode()
    assert readlink(puppet, path) == b"/dev/vfio/241"
    assert is_device(puppet, path)
    again = puppet.open(path)
    assert isinstance(stage.file(again), GroupFile)
    assert stage.file(again) is not stage.file(fd)
    iommu = puppet.must("ioctl", fd, rfc.VFIO_GROUP_GET_IOMMU_FD, 0)
    nameless = (form.replace("%PID", str(puppet.pid)) % iommu).encode()
    assert readlink(puppet, nameless) == b"anon_inode:[vfio-iommu]"
    assert puppet.open(nameless) == -errno.ENXIO
    other = puppet.open(b"/dev/null")
    plain = (form.replace("%PID", str(puppet.pid)) % other).encode()
    assert readlink(puppet, plain) == b"/dev/null"
    missing = (form.replace("%PID", str(puppet.pid)) % 999).encode()
    assert puppet.open(missing) == -errno.ENOENT


def test_folders_of_the_machine_by_descriptor(puppet: Puppet) -> None:
    folder = puppet.open(DEVICE, os.O_RDONLY | os.O_DIRECTORY)
    assert readlink(puppet, b"/proc/self/fd/%d" % folder) == DEVICE
    assert content(puppet, b"vendor", folder) == content(puppet, DEVICE + b"/vendor")
    at = puppet.buffer(PATH_MAX)
    names = puppet.peek(at, puppet.must("getdents64", folder, at, PATH_MAX))
    for name in (b"vendor\0", b"device\0", b"driver\0"):
        assert name in names


# -- stat and its kin ------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["stat", "lstat", "newfstatat", "fstat"])
def test_a_device_is_a_character_device(stage: Stage, call: str) -> None:
    puppet = stage.puppet
    node = b"/dev/vfio/241"
    fd = puppet.open(node)
    at = puppet.buffer(144)
    if call == "fstat":
        puppet.must(call, fd, at)
    elif call == "newfstatat":
        puppet.must(call, fd, b"", at, AT_EMPTY_PATH)
    else:
        puppet.must(call, node, at)
    raw = puppet.peek(at, 144)
    assert struct.unpack_from("<I", raw, 24)[0] == stat.S_IFCHR | 0o600
    (rdev,) = struct.unpack_from("<Q", raw, 40)
    where = stage.session.machine.framework.groups
    assert os.major(rdev) == GROUP_MAJOR
    assert os.minor(rdev) in {group.minor for group in where if group.number == 241}
    assert content(puppet, b"/sys/class/vfio/241/dev") == b"%d:%d\n" % (GROUP_MAJOR, os.minor(rdev))


def test_statx(puppet: Puppet) -> None:
    at = puppet.buffer(256)
    puppet.must("statx", AT_FDCWD, b"/dev/vfio/241", 0, 0x7FF, at)
    raw = puppet.peek(at, 256)
    assert struct.unpack_from("<H", raw, 28)[0] == stat.S_IFCHR | 0o600
    assert struct.unpack_from("<I", raw, 128)[0] == GROUP_MAJOR


def test_links_and_what_they_lead_to(puppet: Puppet) -> None:
    link = DEVICE + b"/driver"
    assert stat.S_ISDIR(mode_of(puppet, link))
    assert stat.S_ISLNK(mode_of(puppet, link, flags=AT_SYMLINK_NOFOLLOW))
    target = readlink(puppet, link)
    assert isinstance(target, bytes)
    assert os.path.normpath(DEVICE + b"/" + target) == b"/sys/bus/pci/drivers/vfio-pci"
    assert readlink(puppet, link, 5) == target[:5]
    assert readlink(puppet, DEVICE) == -errno.EINVAL
    assert readlink(puppet, DEVICE + b"/none") == -errno.ENOENT
    assert puppet.call("readlinkat", AT_FDCWD, link, puppet.buffer(8), 0) == -errno.EINVAL


def test_bad_addresses_for_answers(puppet: Puppet) -> None:
    constant = puppet.pages(1, 1)
    node = b"/dev/vfio/241"
    for at in (8, 1 << 63, constant):
        assert puppet.call("newfstatat", AT_FDCWD, node, at, 0) == -errno.EFAULT
        assert puppet.call("statx", AT_FDCWD, node, 0, 0x7FF, at) == -errno.EFAULT
        assert puppet.call("readlinkat", AT_FDCWD, DEVICE + b"/driver", at, 64) == -errno.EFAULT
        assert puppet.call("statfs", b"/dev/vfio", at) == -errno.EFAULT


def test_access(puppet: Puppet) -> None:
    node = b"/dev/vfio/241"
    assert puppet.call("access", node, os.F_OK) == 0
    assert puppet.call("access", node, os.R_OK | os.W_OK) == 0
    assert puppet.call("faccessat", AT_FDCWD, node, os.X_OK) == -errno.EACCES
    assert puppet.call("faccessat2", AT_FDCWD, DEVICE, os.X_OK, 0) == 0
    read_only = 0 if os.geteuid() == 0 else -errno.EACCES  # as of any file of mode 0444
    assert puppet.call("access", DEVICE + b"/vendor", os.W_OK) == read_only
    assert puppet.call("access", node, 8) == -errno.EINVAL
    assert puppet.call("access", node + b"x", os.F_OK) == -errno.ENOENT
    assert puppet.call("access", node + b"/x", os.F_OK) == -errno.ENOTDIR


def test_kinds_of_file_systems(puppet: Puppet) -> None:
    at = puppet.buffer(120)
    for path, kind in ((DEVICE, SYSFS), (b"/dev/vfio", TMPFS)):
        puppet.must("statfs", path, at)
        assert struct.unpack("<q", puppet.peek(at, 8))[0] == kind
    assert puppet.call("statfs", DEVICE + b"/none", at) == -errno.ENOENT


def test_extended_attributes(puppet: Puppet) -> None:
    at = puppet.buffer(64)
    for call in ("getxattr", "lgetxattr"):
        assert puppet.call(call, b"/dev/vfio/241", b"user.x", at, 64) == -errno.ENODATA
        assert puppet.call(call, b"/dev/vfio/none", b"user.x", at, 64) == -errno.ENOENT
    for call in ("listxattr", "llistxattr"):
        assert puppet.call(call, b"/dev/vfio/241", at, 64) == 0


def test_every_file_of_a_device_can_be_read(stage: Stage) -> None:
    real = Path(stage.session.tree.root + DEVICE.decode())
    for file in real.iterdir():
        path = DEVICE + b"/" + file.name.encode()
        if file.is_file():
            readable = file.stat().st_mode & 0o444
            wanted = file.read_bytes() if readable else -errno.EACCES
            assert content(stage.puppet, path) == wanted, path


# -- the working folder ----------------------------------------------------------------------------------


def test_in_and_out(puppet: Puppet) -> None:
    outside = os.getcwdb()
    puppet.must("chdir", DEVICE)
    assert getcwd(puppet) == DEVICE
    assert readlink(puppet, b"/proc/self/cwd") == DEVICE
    assert content(puppet, b"vendor") == content(puppet, DEVICE + b"/vendor")
    puppet.must("chdir", b"../0000:06:0d.0")
    assert getcwd(puppet) == b"/sys/bus/pci/devices/0000:06:0d.0"
    puppet.must("chdir", b"driver")
    assert getcwd(puppet) == b"/sys/bus/pci/drivers/vfio-pci"
    puppet.must("chdir", b"..")
    assert getcwd(puppet) == b"/sys/bus/pci/drivers"
    puppet.must("chdir", b"../../../../usr")
    assert getcwd(puppet) == b"/usr"
    assert facts(puppet, b"bin")
    puppet.must("chdir", outside)
    assert getcwd(puppet) == outside
    assert readlink(puppet, b"/proc/self/cwd") == outside


def test_relative_paths_from_the_machines_folders_to_the_host(puppet: Puppet) -> None:
    puppet.must("chdir", b"/sys/bus/pci")
    found = facts(puppet, b"../../../dev/null")
    assert isinstance(found, Found)
    assert found.rdev == os.makedev(1, 3)
    assert content(puppet, b"../../../proc/version") == Path("/proc/version").read_bytes()
    assert puppet.open(b"../../../nonexistent") == -errno.ENOENT


def test_a_chdir_that_fails_changes_nothing(puppet: Puppet) -> None:
    puppet.must("chdir", b"/sys/bus/pci/devices")
    for path, why in (
        (b"/nonexistent", errno.ENOENT),
        (b"/dev/null", errno.ENOTDIR),
        (b"nonexistent", errno.ENOENT),
        (b"0000:07:00.0/vendor", errno.ENOTDIR),
        (b"/dev/vfio/241", errno.ENOTDIR),
        (b"../../../../nonexistent", errno.ENOENT),
    ):
        assert puppet.call("chdir", path) == -why, path
        assert getcwd(puppet) == b"/sys/bus/pci/devices", path
        assert facts(puppet, b"0000:07:00.0/vendor")
    assert puppet.call("chdir", 8) == -errno.EFAULT
    assert puppet.call("fchdir", 999) == -errno.EBADF
    assert puppet.call("fchdir", puppet.open(b"/dev/null")) == -errno.ENOTDIR
    assert getcwd(puppet) == b"/sys/bus/pci/devices"


def test_fchdir(puppet: Puppet) -> None:
    inside = puppet.open(DEVICE, os.O_RDONLY | os.O_DIRECTORY)
    outside = puppet.open(b"/usr", os.O_RDONLY | os.O_DIRECTORY)
    puppet.must("fchdir", inside)
    assert getcwd(puppet) == DEVICE
    assert isinstance(content(puppet, b"vendor"), bytes)
    assert mode_of(puppet, b"../../../../../dev/vfio")
    puppet.must("chdir", b"..")
    assert getcwd(puppet) == b"/sys/bus/pci/devices"
    puppet.must("fchdir", outside)
    assert getcwd(puppet) == b"/usr"


def test_getcwd_in_a_small_buffer(puppet: Puppet) -> None:
    puppet.must("chdir", DEVICE)
    at = puppet.buffer(256)
    assert puppet.call("getcwd", at, len(DEVICE)) == -errno.ERANGE
    assert puppet.must("getcwd", at, len(DEVICE) + 1) == len(DEVICE) + 1
    assert puppet.call("getcwd", 8, 256) == -errno.EFAULT


# -- i386 ------------------------------------------------------------------------------------------------


def test_32_bit_programs() -> None:
    with Stage(bits=32) as stage:
        puppet = stage.puppet
        fd = puppet.open(b"/dev/vfio/241")
        assert isinstance(stage.file(fd), GroupFile)
        at = puppet.buffer(96)
        for call in ("stat64", "lstat64"):
            puppet.must(call, b"/dev/vfio/241", at)
            assert struct.unpack_from("<I", puppet.peek(at, 96), 16)[0] == stat.S_IFCHR | 0o600
        puppet.must("fstatat64", AT_FDCWD, b"/dev/vfio/241", at, 0)
        puppet.must("fstat64", fd, at)
        assert struct.unpack_from("<I", puppet.peek(at, 96), 16)[0] == stat.S_IFCHR | 0o600
        small = puppet.buffer(b"\xaa" * 128)
        puppet.must("statfs", DEVICE, small)
        assert struct.unpack("<I", puppet.peek(small, 4))[0] == SYSFS
        assert puppet.peek(small + 64, 64) == b"\xaa" * 64  # the old structure ends here
        puppet.must("statfs64", DEVICE, 84, small)
        assert puppet.peek(small + 84, 44) == b"\xaa" * 44
        assert getcwd(puppet) == os.getcwdb()
        assert readlink(puppet, DEVICE + b"/driver", 3) == b"../"
