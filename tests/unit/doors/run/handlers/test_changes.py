"""Calls that change files and folders: refused in the machine, the kernel's everywhere else."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.puppet import AT_FDCWD, Puppet, Stage

DEVICES = b"/sys/bus/pci/devices"
DEVICE = DEVICES + b"/0000:07:00.0"
NODE = b"/dev/vfio/241"
AT_REMOVEDIR = 0x200


@pytest.fixture
def stage() -> Iterator[Stage]:
    with Stage() as stage:
        yield stage


@pytest.fixture
def puppet(stage: Stage) -> Puppet:
    return stage.puppet


def snapshot(stage: Stage) -> list[tuple[str, int, int, int]]:
    """Every file of the tree: name, mode, owner, size."""
    found = []
    for folder, folders, files in os.walk(stage.session.tree.path):
        for name in (*folders, *files):
            path = os.path.join(folder, name)
            status = os.lstat(path)
            found.append((path, status.st_mode, status.st_uid, status.st_size))
    return sorted(found)


REFUSED = [
    ("mkdir", (DEVICES + b"/new", 0o777), errno.EPERM),
    ("mkdir", (DEVICE, 0o777), errno.EEXIST),
    ("mkdir", (DEVICES + b"/none/new", 0o777), errno.ENOENT),
    ("mkdirat", (AT_FDCWD, b"/dev/vfio/new", 0o777), errno.EPERM),
    ("mknod", (b"/dev/vfio/new", stat.S_IFREG, 0), errno.EPERM),
    ("mknodat", (AT_FDCWD, NODE, stat.S_IFREG, 0), errno.EEXIST),
    ("symlink", (b"x", DEVICES + b"/new"), errno.EPERM),
    ("symlinkat", (b"x", AT_FDCWD, DEVICE + b"/vendor"), errno.EEXIST),
    ("rmdir", (b"/dev/vfio",), errno.EPERM),
    ("rmdir", (NODE,), errno.ENOTDIR),
    ("unlink", (NODE,), errno.EPERM),
    ("unlink", (b"/dev/vfio",), errno.EISDIR),
    ("unlink", (b"/dev/vfio/none",), errno.ENOENT),
    ("unlinkat", (AT_FDCWD, DEVICE + b"/driver", 0), errno.EPERM),
    ("unlinkat", (AT_FDCWD, DEVICES, AT_REMOVEDIR), errno.EPERM),
    ("rename", (NODE, b"/dev/vfio/other"), errno.EPERM),
    ("rename", (NODE, b"/tmp/other"), errno.EXDEV),
    ("renameat", (AT_FDCWD, b"/etc/passwd", AT_FDCWD, b"/dev/vfio/passwd"), errno.EXDEV),
    ("renameat2", (AT_FDCWD, b"/dev/vfio/none", AT_FDCWD, b"/dev/vfio/x", 0), errno.ENOENT),
    ("link", (NODE, b"/dev/vfio/vfio2"), errno.EPERM),
    ("link", (NODE, DEVICE + b"/vendor"), errno.EEXIST),
    ("linkat", (AT_FDCWD, NODE, AT_FDCWD, b"/tmp/node", 0), errno.EXDEV),
    ("chroot", (DEVICES,), errno.EPERM),
    ("chmod", (DEVICES, 0), errno.EPERM),
    ("fchmodat", (AT_FDCWD, b"/dev/vfio/none", 0), errno.ENOENT),
    ("lchown", (DEVICE + b"/driver", 1, 1), errno.EPERM),
    ("utime", (NODE, 0), errno.EPERM),
    ("utimensat", (AT_FDCWD, NODE, 0, 0), errno.EPERM),
    ("truncate", (NODE, 0), errno.EINVAL),
    ("truncate", (DEVICES, 0), errno.EISDIR),
    ("setxattr", (NODE, b"user.a", b"b", 1, 0), errno.EOPNOTSUPP),
    ("lremovexattr", (DEVICE + b"/driver", b"user.a"), errno.EOPNOTSUPP),
]


@pytest.mark.parametrize(("call", "arguments", "number"), REFUSED)
def test_refused(stage: Stage, call: str, arguments: tuple[bytes | int, ...], number: int) -> None:
    before = snapshot(stage)
    assert stage.puppet.call(call, *arguments) == -number
    assert snapshot(stage) == before


def test_by_descriptor_and_working_folder(stage: Stage) -> None:
    puppet = stage.puppet
    folder = puppet.open(DEVICES, os.O_RDONLY | os.O_DIRECTORY)
    before = snapshot(stage)
    assert puppet.call("mkdirat", folder, b"new", 0o777) == -errno.EPERM
    assert puppet.call("unlinkat", folder, b"0000:07:00.0", AT_REMOVEDIR) == -errno.EPERM
    assert puppet.call("unlinkat", folder, b"0000:07:00.0/vendor", 0) == -errno.EPERM
    assert puppet.call("renameat", folder, b"0000:07:00.0", folder, b"x") == -errno.EPERM
    assert puppet.call("fchmod", folder, 0) == -errno.EPERM
    assert puppet.call("fchown", folder, 1, 1) == -errno.EPERM
    assert puppet.call("fsetxattr", folder, b"user.a", b"b", 1, 0) == -errno.EOPNOTSUPP
    puppet.must("chdir", DEVICES)
    assert puppet.call("mkdir", b"new", 0o777) == -errno.EPERM
    assert puppet.call("unlink", b"../drivers_probe") == -errno.EPERM
    assert snapshot(stage) == before


def test_by_the_private_name(stage: Stage) -> None:
    puppet, private = stage.puppet, os.fsencode(stage.session.tree.path)
    before = snapshot(stage)
    for path in (private, private + b"/root", private + b"/root/dev", private + b"/lock"):
        assert puppet.call("rename", path, b"/tmp/taken") == -errno.EPERM
        assert puppet.call("chmod", path, 0) == -errno.EPERM
        assert puppet.call("mkdir", path + b"/new", 0) == -errno.EPERM
    assert puppet.call("unlink", private + b"/lock") == -errno.EPERM
    assert puppet.call("unlink", private + b"/root/dev/vfio/241") == -errno.EPERM
    assert puppet.open(private + b"/lock", os.O_RDWR) == -errno.EPERM
    assert puppet.open(private + b"/new", os.O_CREAT | os.O_WRONLY) == -errno.EPERM
    out = b"/dev/vfio/../.." + private
    assert puppet.call("unlink", out + b"/lock") == -errno.EPERM
    assert puppet.call("rename", out, b"/tmp/taken") == -errno.EPERM
    assert puppet.open(out + b"/lock", os.O_RDWR) == -errno.EPERM
    opened = puppet.open(private + b"/root", os.O_RDONLY)
    assert puppet.call("fchmod", opened, 0) == -errno.EPERM
    assert puppet.call("unlinkat", opened, b"dev", AT_REMOVEDIR) == -errno.EPERM
    puppet.must("fchdir", opened)
    assert puppet.call("rmdir", b"sys") == -errno.EPERM
    assert snapshot(stage) == before


def test_the_hosts_files_are_the_kernels(stage: Stage, tmp_path: Path) -> None:
    """By an ordinary path, and by one that leaves the machine's folders."""
    puppet = stage.puppet
    puppet.must("chdir", DEVICES)
    for folder in (os.fsencode(tmp_path), b"/dev/vfio/../.." + os.fsencode(tmp_path)):
        puppet.must("mkdir", folder + b"/new", 0o700)
        puppet.must("rename", folder + b"/new", folder + b"/other")
        puppet.must("symlink", b"/dev/vfio/241", folder + b"/link")
        puppet.must("chmod", folder + b"/other", 0o711)
        assert stat.S_IMODE((tmp_path / "other").stat().st_mode) == 0o711
        assert puppet.call("unlink", folder + b"/other") == -errno.EISDIR
        puppet.must("unlink", folder + b"/link")
        puppet.must("rmdir", folder + b"/other")
        assert puppet.call("rmdir", folder + b"/other") == -errno.ENOENT
    assert list(tmp_path.iterdir()) == []
    assert not stage.session.repeating


def test_the_mode_of_a_node(stage: Stage) -> None:
    puppet = stage.puppet
    real = stage.session.tree.find("/dev/vfio/241").real
    puppet.must("chmod", NODE, 0o4666)
    assert stat.S_IMODE(os.stat(real).st_mode) == 0o666
    fd = puppet.open(NODE)
    puppet.must("fchmod", fd, 0o640)
    assert stat.S_IMODE(os.stat(real).st_mode) == 0o640
    path = puppet.open(NODE, os.O_PATH)
    assert puppet.call("chown", NODE, -1, -1) == 0
    assert puppet.call("fchmodat2", path, b"", 0o600, 0x1000) == 0
    assert stat.S_IMODE(os.stat(real).st_mode) == 0o600
