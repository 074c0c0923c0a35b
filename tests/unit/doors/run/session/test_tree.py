"""The machine's files on disk."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.puppet import machine_of, open_descriptors
from uvfio.doors.run.session.tree import Tree, remove_folder, sweep
from uvfio.machine.machine import Machine
from uvfio.machine.nodes import CharDev, Directory, Link, Node, Text
from uvfio.machine.sysfs.tree import nodes

SMALL: dict[str, Node] = {
    "/dev/vfio": Directory(),
    "/dev/vfio/7": CharDev("pci", 7, 511, 0),
    "/sys/bus/pci": Directory(),
    "/sys/bus/pci/devices": Directory(),
    "/sys/bus/pci/devices/a": Directory(),
    "/sys/bus/pci/devices/a/vendor": Text(b"0x1234\n"),
    "/sys/bus/pci/devices/a/driver": Link("../../drivers/d"),
    "/sys/bus/pci/drivers": Directory(),
    "/sys/bus/pci/drivers/d": Directory(),
    "/sys/bus/pci/drivers/d/a": Link("../../devices/a"),
    "/sys/bus/pci/drivers/d/bind": Text(b"", 0o200),
    "/sys/bus/pci/escape": Link("/etc"),
    "/sys/bus/pci/high": Link("../../../../../../../../../etc/passwd"),
    "/sys/bus/pci/loop": Link("loop"),
}


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Tree]:
    before = open_descriptors()
    tree = Tree(str(tmp_path))
    tree.update(SMALL)
    yield tree
    tree.remove()
    assert open_descriptors() <= before
    assert not list(tmp_path.glob("uvfio-*"))


def listing(root: str) -> dict[str, tuple[int, int]]:
    """Every file below: its inode and the time of its last change."""
    return {
        os.path.join(folder, name): (about.st_ino, about.st_ctime_ns)
        for folder, folders, files in os.walk(root)
        for name in folders + files
        for about in [os.lstat(os.path.join(folder, name))]
    }


# -- what is there -------------------------------------------------------------------------------------


def test_the_folder_shows_the_nodes(tree: Tree) -> None:
    for path, node in SMALL.items():
        real = tree.root + path
        match node:
            case Directory():
                assert stat.S_ISDIR(os.lstat(real).st_mode)
            case Link(target):
                assert os.readlink(real) == target
            case Text(data, mode):
                assert stat.S_IMODE(os.lstat(real).st_mode) == mode
                if mode & 0o400:
                    assert Path(real).read_bytes() == data
            case CharDev():
                assert stat.S_ISREG(os.lstat(real).st_mode)


def test_modes_do_not_depend_on_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        tree = Tree(str(tmp_path))
        tree.update(SMALL)
    finally:
        os.umask(before)
    vendor = os.lstat(f"{tree.root}/sys/bus/pci/devices/a/vendor")
    assert stat.S_IMODE(vendor.st_mode) == 0o444
    tree.remove()


def test_nobody_else_lists_it(tree: Tree) -> None:
    """Programs of other users may have one of its folders as working folder."""
    assert stat.S_IMODE(os.stat(tree.path).st_mode) == 0o711


def test_a_whole_machine(tmp_path: Path) -> None:
    machine = Machine(machine_of())
    tree = Tree(str(tmp_path))
    shown = nodes(machine)
    tree.update(shown)
    for path, node in shown.items():
        found = tree.find(path, follow=not isinstance(node, Link))
        assert found.real == tree.root + path
        assert found.node == (node if isinstance(node, CharDev) else None)
        if isinstance(node, Link):
            assert tree.virtual(tree.find(path).real) is not None  # no link dangles or leads out
    tree.remove()
    machine.close()


# -- changes ---------------------------------------------------------------------------------------------


def test_the_same_again_touches_nothing(tree: Tree) -> None:
    before = listing(tree.root)
    tree.update(dict(reversed(SMALL.items())))
    assert listing(tree.root) == before


def test_only_differences_are_touched(tree: Tree) -> None:
    before = listing(tree.root)
    changed = {
        **SMALL,
        "/sys/bus/pci/devices/a/vendor": Text(b"0x5678\n"),
        "/sys/bus/pci/devices/b": Directory(),
        "/sys/bus/pci/devices/b/vendor": Text(b"0x9abc\n"),
    }
    del changed["/sys/bus/pci/loop"]
    tree.update(changed)
    after = listing(tree.root)
    here = {
        path[len(tree.root) :]
        for path in before.keys() | after.keys()
        if before.get(path) != after.get(path)
    }
    assert here == {
        "/sys/bus/pci",  # its list of names
        "/sys/bus/pci/loop",
        "/sys/bus/pci/devices",
        "/sys/bus/pci/devices/a",
        "/sys/bus/pci/devices/a/vendor",
        "/sys/bus/pci/devices/b",
        "/sys/bus/pci/devices/b/vendor",
    }
    assert Path(tree.find("/sys/bus/pci/devices/a/vendor").real).read_bytes() == b"0x5678\n"
    tree.update(SMALL)
    assert set(listing(tree.root)) == set(before)


def test_a_node_that_becomes_another(tree: Tree) -> None:
    other = CharDev("pci", 8, 511, 1)
    tree.update({**SMALL, "/dev/vfio/7": other})
    assert tree.find("/dev/vfio/7").node == other
    tree.update({**SMALL, "/dev/vfio/7": Text(b"text")})
    assert tree.find("/dev/vfio/7").node is None
    tree.update({path: node for path, node in SMALL.items() if path != "/dev/vfio/7"})
    with pytest.raises(FileNotFoundError):
        tree.find("/dev/vfio/7")
    assert not tree._devices


def test_hot_plug(tmp_path: Path) -> None:
    """Plug and unplug leave the tree as it was."""
    machine = Machine(machine_of())
    tree = Tree(str(tmp_path))
    tree.update(nodes(machine))
    before = set(listing(tree.root))
    machine.plug("edu@0000:08:00.0,group=9")
    tree.update(nodes(machine))
    found = tree.find("/dev/vfio/9").node
    assert found is not None
    assert found.group == 9
    assert Path(tree.find("/sys/bus/pci/drivers/vfio-pci/0000:08:00.0/vendor").real).exists()
    machine.unplug("0000:08:00.0")
    tree.update(nodes(machine))
    assert set(listing(tree.root)) == before
    machine.close()
    tree.remove()


# -- looking up ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "real"),
    [
        ("/", ""),
        ("/dev/vfio", "/dev/vfio"),
        ("/dev/vfio/", "/dev/vfio"),
        ("//dev//vfio/./7", "/dev/vfio/7"),
        ("/sys/bus/pci/devices/a/driver", "/sys/bus/pci/drivers/d"),
        ("/sys/bus/pci/devices/a/driver/a/vendor", "/sys/bus/pci/devices/a/vendor"),
        ("/sys/bus/pci/devices/a/driver/..", "/sys/bus/pci/drivers"),
        ("/sys/bus/pci/devices/a/..", "/sys/bus/pci/devices"),
        ("/sys/../../../dev/vfio/7", "/dev/vfio/7"),
    ],
)
def test_find(tree: Tree, path: str, real: str) -> None:
    found = tree.find(path)
    assert found.real == tree.root + real
    assert tree.virtual(found.real) == (real or "/")


@pytest.mark.parametrize(
    ("path", "number"),
    [
        ("/etc", errno.ENOENT),
        ("/etc/passwd", errno.ENOENT),
        ("/../../etc/passwd", errno.ENOENT),
        ("/sys/bus/pci/escape", errno.ENOENT),
        ("/sys/bus/pci/high", errno.ENOENT),
        ("/sys/bus/pci/loop", errno.ELOOP),
        ("/sys/bus/pci/devices/a/vendor/x", errno.ENOTDIR),
        ("/dev/vfio/7/", errno.ENOTDIR),
        ("/dev/vfio/" + "x" * 256, errno.ENAMETOOLONG),
        ("/dev/vfio/\udcff", errno.ENOENT),
    ],
)
def test_nothing_leads_out(tree: Tree, path: str, number: int) -> None:
    before = open_descriptors()
    with pytest.raises(OSError) as caught:
        tree.find(path)
    assert caught.value.errno == number
    assert open_descriptors() <= before


def test_links_themselves(tree: Tree) -> None:
    for path in ("/sys/bus/pci/devices/a/driver", "/sys/bus/pci/loop", "/sys/bus/pci/escape"):
        found = tree.find(path, follow=False)
        assert found.real == tree.root + path
        assert found.node is None


def test_devices(tree: Tree) -> None:
    assert tree.find("/dev/vfio/7").node == SMALL["/dev/vfio/7"]
    assert tree.find("/dev/vfio/7", follow=False).node == SMALL["/dev/vfio/7"]
    assert tree.find("/dev/vfio").node is None
    assert tree.find("/sys/bus/pci/devices/a/vendor").node is None


@pytest.mark.parametrize("outside", ["/etc", "", "x", "/dev/vfio/7"])
def test_names_outside(tree: Tree, outside: str) -> None:
    assert tree.virtual(outside) is None
    assert tree.virtual(f"{tree.root}x{outside}") is None
    assert tree.virtual(f"{tree.path}/lock") is None


# -- what stays behind ----------------------------------------------------------------------------------------


def abandoned(scratch: Path, name: str = "uvfio-killed") -> Path:
    """The folder of a run that was killed."""
    folder = scratch / name
    (folder / "root" / "dev").mkdir(parents=True)
    (folder / "root" / "dev" / "null").symlink_to("/etc")
    (folder / "lock").touch()
    return folder


def test_a_killed_run_is_swept(tmp_path: Path) -> None:
    folder = abandoned(tmp_path)
    living = Tree(str(tmp_path))
    assert not folder.exists()
    assert Path("/etc/passwd").exists()
    sweep(str(tmp_path))
    Tree(str(tmp_path)).remove()
    assert os.path.isdir(living.root)
    living.remove()


def test_what_is_locked_stays(tmp_path: Path) -> None:
    folder = abandoned(tmp_path)
    with open(folder / "lock", "r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        sweep(str(tmp_path))
        assert (folder / "root" / "dev").is_dir()
    sweep(str(tmp_path))
    assert not folder.exists()


def test_what_is_not_ours_stays(tmp_path: Path) -> None:
    """Another name, a folder without a lock, a link to somebody's folder, a plain file."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    other = abandoned(scratch, "other")
    unlocked = scratch / "uvfio-programs"
    unlocked.mkdir()
    (scratch / "uvfio-file").touch()
    target = abandoned(tmp_path, "target")
    (scratch / "uvfio-link").symlink_to(target)
    sweep(str(scratch))
    assert other.is_dir()
    assert unlocked.is_dir()
    assert (scratch / "uvfio-file").exists()
    assert (target / "root" / "dev").is_dir()


def test_the_folder_of_another_user_stays(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a folder away")
    folder = abandoned(tmp_path)
    os.chown(folder, 65534, 65534)
    sweep(str(tmp_path))
    assert (folder / "lock").exists()


def test_a_run_that_starts_is_not_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At no moment is there a lock file that nobody holds."""
    real_flock = fcntl.flock
    seen: list[bool] = []

    def flock(fd: int, operation: int) -> None:
        if operation == fcntl.LOCK_EX | fcntl.LOCK_NB and not seen:
            seen.append(True)
            sweep(str(tmp_path))  # another run starts just now
        real_flock(fd, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    tree = Tree(str(tmp_path))
    assert seen
    assert os.path.isdir(tree.root)
    tree.remove()


def test_removing_twice(tmp_path: Path) -> None:
    tree = Tree(str(tmp_path))
    tree.update(SMALL)
    remove_folder(tree.path)  # as a guard does
    remove_folder(tree.path)
    tree.remove()
    assert not list(tmp_path.iterdir())


def test_a_scratch_that_cannot_be_written(tmp_path: Path) -> None:
    before = open_descriptors()
    with pytest.raises(FileNotFoundError):
        Tree(str(tmp_path / "missing"))
    assert open_descriptors() <= before


def test_without_room_what_is_missing_comes_later(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    vendor, more = "/sys/bus/pci/devices/a/vendor", "/sys/bus/pci/devices/a/device"
    grown = SMALL | {more: Text(b"0x5678\n")}

    def full(fd: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        for _ in range(2):
            with pytest.raises(OSError, match="No space"):
                tree.update(grown)
            with pytest.raises(OSError, match="No space"):
                tree.renew(vendor, Text(b"0x4321\n"))
    assert Path(tree.root + vendor).read_bytes() == b"0x1234\n"
    assert not Path(tree.root + more).exists()
    tree.update(grown)
    tree.renew(vendor, Text(b"0x4321\n"))
    assert Path(tree.root + more).read_bytes() == b"0x5678\n"
    assert Path(tree.root + vendor).read_bytes() == b"0x4321\n"
