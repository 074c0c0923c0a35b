"""The machine's files on disk: real folders, links and small files that programs may open and list.

``Tree`` writes what ``machine.tree.nodes`` describes into a private folder on tmpfs and answers for paths as
the program gives them. Character devices are empty files there, known by their inode. Paths are resolved by
the kernel (openat2, RESOLVE_IN_ROOT), so links and ``..`` cannot lead out.

The folder is locked while its owner lives; ``sweep`` removes unlocked folders, so what a killed run
leaves is removed by the next one.

What this does not do: decide what is in the tree (``machine/sysfs``), or answer a call.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from typing import TYPE_CHECKING, NamedTuple

from uvfio.doors.run.linux import syscalls as sc
from uvfio.machine.nodes import CharDev, Directory, Link, Text

if TYPE_CHECKING:
    from uvfio.machine.nodes import Node

__all__ = ["Found", "Tree"]

PREFIX = "uvfio-"


class Found(NamedTuple):
    """A file of the tree: its real path, and its device node if it is one."""

    real: str
    node: CharDev | None


class Tree:
    """A folder in ``scratch`` that shows ``nodes``. OSError if it cannot be made."""

    def __init__(self, scratch: str) -> None:
        sweep(scratch)
        self.path = f"{scratch}/{PREFIX}{os.getpid()}-{os.urandom(6).hex()}"
        self._mask = os.umask(0o077)
        os.umask(self._mask & ~0o700)  # the folder must be writable, and be swept by a later run
        os.mkdir(self.path, 0o700)
        try:
            self._begin()
        except OSError:
            remove_folder(self.path)
            raise
        self._nodes: dict[str, Node] = {}
        self._folders: set[str] = set()  # that are there; a system call costs more than the file
        self._devices: dict[int, CharDev] = {}

    def _begin(self) -> None:
        """The lock, and the folder that programs are shown."""
        os.chmod(self.path, 0o711)  # programs of other users have it as working folder
        unlocked = f"{self.path}/unlocked"  # a name that ``sweep`` does not try
        self._lock = os.open(unlocked, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.rename(unlocked, f"{self.path}/lock")
        self.root = f"{self.path}/root"
        os.mkdir(self.root)
        self._root = os.open(self.root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._dev = os.stat(self._root).st_dev

    def update(self, nodes: dict[str, Node]) -> None:
        """Make the folder show ``nodes``; only what changed is touched. OSError: there is no room for all of them; call
        again when there is."""
        for path in sorted(self._nodes, reverse=True):
            if nodes.get(path) != self._nodes[path]:
                self._remove(path)
        for path in sorted(nodes):
            if path not in self._nodes:
                self._add(path, nodes[path])

    def renew(self, path: str, node: Text) -> None:
        """Show ``node`` at ``path``, where another one was. OSError: there is no room for it, the other one stays."""
        if self._nodes[path] != node:
            spare = f"{self.path}/spare"
            self._make(spare, node)
            os.rename(spare, self.root + path)
            self._nodes[path] = node

    def _remove(self, path: str) -> None:
        real = self.root + path
        if isinstance(self._nodes.pop(path), Directory):
            os.rmdir(real)
            self._folders.discard(real)
        else:
            self._devices.pop(os.lstat(real).st_ino, None)
            os.unlink(real)

    def _add(self, path: str, node: Node) -> None:
        real = self.root + path
        folder = real if isinstance(node, Directory) else real.rpartition("/")[0]
        if folder not in self._folders:
            os.makedirs(folder, exist_ok=True)
            self._folders.add(folder)
        if isinstance(node, Link):
            os.symlink(node.target, real)
        elif not isinstance(node, Directory):
            self._make(real, node)
        self._nodes[path] = node

    def _make(self, real: str, node: Text | CharDev) -> None:
        """A new file. Without room for what is in it there is none."""
        data = node.data if isinstance(node, Text) else b""
        fd = os.open(real, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, node.mode)
        try:
            if node.mode & self._mask:
                os.fchmod(fd, node.mode)
            if data:
                os.write(fd, data)
            if isinstance(node, CharDev):
                self._devices[os.fstat(fd).st_ino] = node
        except OSError:
            os.unlink(real)
            raise
        finally:
            os.close(fd)

    def find(self, path: str, *, follow: bool = True, resolve: int = 0) -> Found:
        """The file at the program's absolute ``path``, with the restrictions ``resolve`` (RESOLVE_* of openat2);
        OSError as the kernel would give it."""
        relative = path.lstrip("/").encode("utf-8", "surrogateescape") or b"."
        return self._find(self._root, relative, resolve | sc.RESOLVE_IN_ROOT, follow)

    def find_below(self, folder: str, path: bytes, resolve: int, *, follow: bool = True) -> Found:
        """The file at ``path`` from the program's ``folder``, by openat2 with ``resolve``; OSError as it gives it."""
        start = os.open(self.root + folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return self._find(start, path, resolve, follow)
        finally:
            os.close(start)

    def _find(self, start: int, path: bytes, resolve: int, follow: bool) -> Found:
        flags = os.O_PATH | (0 if follow else os.O_NOFOLLOW)
        fd = sc.openat2(start, path, flags, 0, resolve)
        try:
            real = os.readlink(f"/proc/self/fd/{fd}")
            found = os.stat(fd)
        finally:
            os.close(fd)
        return Found(real, self._device(found))

    def _device(self, found: os.stat_result) -> CharDev | None:
        if not stat.S_ISREG(found.st_mode) or found.st_dev != self._dev:
            return None
        return self._devices.get(found.st_ino)

    def opened(self, link: str) -> Found | None:
        """The device node of the tree that a link of /proc/TID/fd leads to; None for any other file."""
        try:
            node = self._device(os.stat(link))
            return None if node is None else Found(os.readlink(link), node)
        except OSError:
            return None

    def list_beside(self, path: str) -> Found:
        """The tree's folder ``path`` with an empty folder added for each that the host has in its own."""
        real = self.root + path
        for entry in os.scandir(path):
            if entry.is_dir():
                os.makedirs(f"{real}/{entry.name}", exist_ok=True)
        return Found(real, None)

    def virtual(self, real: str) -> str | None:
        """The program's name for a real path inside the folder, or None for one outside."""
        if real == self.root or real.startswith(self.root + "/"):
            return real[len(self.root) :] or "/"
        return None

    def remove(self) -> None:
        """Remove the folder; no error when it is gone."""
        os.close(self._root)
        remove_folder(self.path)
        os.close(self._lock)


def remove_folder(path: str) -> None:
    """rm -r, without following links; files that go meanwhile are ignored."""
    try:
        entries = list(os.scandir(path))
    except OSError:
        return
    for entry in entries:
        try:
            if entry.is_dir(follow_symlinks=False):
                remove_folder(entry.path)
            else:
                os.unlink(entry.path)
        except FileNotFoundError:
            continue
    try:
        os.rmdir(path)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTEMPTY):
            raise


def sweep(scratch: str) -> None:
    """Remove the folders of this user's runs that were killed. ``scratch`` may be shared with other users."""
    for entry in os.scandir(scratch):
        if not entry.name.startswith(PREFIX):
            continue
        try:
            about = entry.stat(follow_symlinks=False)
            if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.geteuid():
                continue
            lock = os.open(f"{entry.path}/lock", os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            remove_folder(entry.path)
        except OSError:
            continue
        finally:
            os.close(lock)
