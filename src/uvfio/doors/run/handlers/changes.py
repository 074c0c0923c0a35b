"""Path calls that change a file or a folder: mkdir, unlink, rename, link, chmod, chown, utime, truncate and the like.

Folders and links of the machine cannot be changed, as in sysfs: nothing can be made, removed or renamed there, by
whichever name, descriptor or working folder a program reaches them. The mode and owner of a file or device node can,
with the kernel's rights (``linux/rights.py``): root of a run hands a device to an ordinary user by chown, as udev and
libvirt do. They last as long as the file is there.

For a path of the host each handler returns None, or lets the program repeat the call with an equivalent path
(``Redirect``). Docstrings list what is answered for a path of the machine. Errors of lookup (ENOENT, ENOTDIR, ELOOP)
come first, as in the kernel. No other process is affected unless stated.

What this does not do: mount, AF_UNIX sockets, and calls that take a path inside a structure.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

from uvfio.doors.run.filter.rules import ARG, INT
from uvfio.doors.run.linux.rights import EXECUTE, WRITE, Caller
from uvfio.doors.run.session.redirect import Redirect
from uvfio.uapi.linux import (
    AT_EMPTY_PATH,
    AT_REMOVEDIR,
    AT_SYMLINK_FOLLOW,
    AT_SYMLINK_NOFOLLOW,
)

if TYPE_CHECKING:
    from uvfio.doors.run.filter.rules import Request
    from uvfio.doors.run.handlers.lookup import Place
    from uvfio.doors.run.handlers.paths import Paths
    from uvfio.doors.run.session.session import Session

__all__ = ["Changes"]

READ_ONLY = "the machine's folders cannot be changed"
TIMES = "times of the machine's files cannot be set"
INT_16 = 0xFFFF


class Changes:
    """The handlers, by the kernel's names."""

    def __init__(self, session: Session, paths: Paths) -> None:
        self.session = session
        self.tree = session.tree
        self.paths = paths

    # -- which file --------------------------------------------------------------------------------

    def _place(self, request: Request, dirfd: int | None, at: int, *, follow: bool) -> Place | None:
        """What the path at index ``at`` of the request means, if that is no file which the kernel finds by itself."""
        place = self.paths.interesting(request, dirfd, request[at], follow=follow)
        if place is None or place.ours:
            return place
        if place.descriptor is not None:
            found = self._by_descriptor(request, place.descriptor)
            return None if found is None else place._replace(path=found, ours=True)
        if place.private:
            raise OSError(errno.EPERM, f"{place.path} belongs to the run")
        return place if place.displaced else None

    def _own(self, request: Request, dirfd: int | None, at: int, *, follow: bool) -> str | None:
        """The machine's path, empty for a VFIO file without one; None lets the kernel run the call. Redirect if it
        needs another path."""
        place = self._place(request, dirfd, at, follow=follow)
        if place is None or place.ours:
            return None if place is None else place.path
        self.paths.go_elsewhere(place, at - ARG)
        return None

    def _by_descriptor(self, request: Request, descriptor: tuple[int, int]) -> str | None:
        """The path of the machine's file behind a task's descriptor; empty for a VFIO file without one; None for any
        other file. EPERM for one in the folder that holds the tree."""
        task, number = descriptor
        token = self.session.processes.get(request[1]).token(task, number)
        if token is not None:
            return token.file.name if token.file.name.startswith("/") else ""
        try:
            real = os.readlink(f"/proc/{task}/fd/{number}")
        except OSError:
            return None
        shown = self.paths.shown(real)
        if shown is None and self.paths.is_private(real):
            raise OSError(errno.EPERM, f"{real} belongs to the run")
        return shown

    def _may_change(self, request: Request, folder: str) -> None:
        """EACCES if the caller may not write to the machine's ``folder``; ENOENT if there is none."""
        real = self.paths.find(folder).real
        found = os.lstat(real)
        if not stat.S_ISDIR(found.st_mode):
            raise OSError(errno.ENOTDIR, f"{folder} is no folder")
        if not Caller.of(request[1]).may(found, found.st_mode, WRITE | EXECUTE):
            raise OSError(errno.EACCES, f"{folder} belongs to user {found.st_uid}")

    def _exists(self, path: str) -> bool:
        try:
            self.paths.find(path, follow=False)
        except FileNotFoundError:
            return False
        return True

    # -- names: make, remove, rename ---------------------------------------------------------------

    def _make(self, request: Request, dirfd: int | None, at: int) -> int | None:
        path = self._own(request, dirfd, at, follow=False)
        if path is None:
            return None
        path = path.rstrip("/")
        self.paths.find(_folder(path))
        if self._exists(path):
            raise OSError(errno.EEXIST, f"{path} exists")
        self._may_change(request, _folder(path))
        raise OSError(errno.EPERM, READ_ONLY)

    def _remove(
        self, request: Request, dirfd: int | None, at: int, folder_wanted: bool
    ) -> int | None:
        path = self._own(request, dirfd, at, follow=False)
        if path is None:
            return None
        is_folder = stat.S_ISDIR(os.lstat(self.paths.find(path, follow=False).real).st_mode)
        self._may_change(request, _folder(path.rstrip("/")))
        if folder_wanted and not is_folder:
            raise OSError(errno.ENOTDIR, f"{path} is no folder")
        if is_folder and not folder_wanted:
            raise OSError(errno.EISDIR, f"{path} is a folder")
        raise OSError(errno.EPERM, READ_ONLY)

    def mkdir(self, request: Request) -> int | None:
        """EEXIST, EACCES without permission to write to the folder, else EPERM."""
        return self._make(request, None, ARG)

    def mkdirat(self, request: Request) -> int | None:
        """As ``mkdir``; a relative path begins at a descriptor."""
        return self._make(request, request[ARG] & INT, ARG + 1)

    def mknod(self, request: Request) -> int | None:
        """As ``mkdir``."""
        return self._make(request, None, ARG)

    def mknodat(self, request: Request) -> int | None:
        """As ``mkdir``; a relative path begins at a descriptor."""
        return self._make(request, request[ARG] & INT, ARG + 1)

    def symlink(self, request: Request) -> int | None:
        """As ``mkdir``. The target is text: it may name a file of the machine."""
        return self._make(request, None, ARG + 1)

    def symlinkat(self, request: Request) -> int | None:
        """As ``symlink``; a relative path begins at a descriptor."""
        return self._make(request, request[ARG + 1] & INT, ARG + 2)

    def rmdir(self, request: Request) -> int | None:
        """ENOTDIR for a file, EACCES without permission to write to the folder, else EPERM."""
        return self._remove(request, None, ARG, True)

    def unlink(self, request: Request) -> int | None:
        """EISDIR for a folder, EACCES without permission to write to the folder, else EPERM."""
        return self._remove(request, None, ARG, False)

    def unlinkat(self, request: Request) -> int | None:
        """As ``unlink``, or with AT_REMOVEDIR as ``rmdir``."""
        folder = bool(request[ARG + 2] & AT_REMOVEDIR)
        return self._remove(request, request[ARG] & INT, ARG + 1, folder)

    def _two(
        self,
        request: Request,
        old: tuple[int | None, int],
        new: tuple[int | None, int],
        *,
        follow: bool,
        moves: bool,
    ) -> int | None:
        """rename and link. EXDEV between the machine and the host."""
        first = self._place(request, *old, follow=follow)
        second = self._place(request, *new, follow=False)
        places = [(first, old[1]), (second, new[1])]
        ours = [place.path.rstrip("/") for place, _ in places if place is not None and place.ours]
        if not ours:
            paths = {
                at - ARG: os.fsencode(place.path)
                for place, at in places
                if place is not None and place.displaced
            }
            if paths:
                raise Redirect(paths)
            return None
        if first is not None and first.ours:
            self.paths.find(first.path, follow=follow)
        if second is not None and second.ours:
            self.paths.find(_folder(second.path.rstrip("/")))
        if len(ours) == 1:
            raise OSError(errno.EXDEV, f"{ours[0]} is on another file system")
        if not moves and self._exists(ours[1]):
            raise OSError(errno.EEXIST, f"{ours[1]} exists")
        for path in ours if moves else ours[1:]:
            self._may_change(request, _folder(path))
        raise OSError(errno.EPERM, READ_ONLY)

    def rename(self, request: Request) -> int | None:
        """EXDEV between the machine and the host, EACCES without permission to write to the folders, else EPERM."""
        return self._two(request, (None, ARG), (None, ARG + 1), follow=False, moves=True)

    def renameat(self, request: Request) -> int | None:
        """As ``rename``; relative paths begin at descriptors."""
        old, new = (request[ARG] & INT, ARG + 1), (request[ARG + 2] & INT, ARG + 3)
        return self._two(request, old, new, follow=False, moves=True)

    def renameat2(self, request: Request) -> int | None:
        """As ``renameat``, whatever the flags."""
        return self.renameat(request)

    def link(self, request: Request) -> int | None:
        """As ``rename``; EEXIST."""
        return self._two(request, (None, ARG), (None, ARG + 1), follow=False, moves=False)

    def linkat(self, request: Request) -> int | None:
        """As ``link``; relative paths begin at descriptors."""
        old, new = (request[ARG] & INT, ARG + 1), (request[ARG + 2] & INT, ARG + 3)
        itself = request[ARG + 4] & AT_EMPTY_PATH and self._is_empty(request, ARG + 1)
        if itself and self._by_descriptor(request, (request[1], request[ARG] & INT)) is not None:
            raise OSError(errno.EXDEV, "a file of the machine is on another file system")
        follow = bool(request[ARG + 4] & AT_SYMLINK_FOLLOW)
        return self._two(request, old, new, follow=follow, moves=False)

    def chroot(self, request: Request) -> int | None:
        """EPERM: a folder of the machine cannot be a root."""
        path = self._own(request, None, ARG, follow=True)
        if path is None:
            return None
        self.paths.find(path)
        raise OSError(errno.EPERM, f"{path} cannot be a root")

    # -- mode and owner ----------------------------------------------------------------------------

    def chmod(self, request: Request) -> int | None:
        """Set the mode of a file or node, for all programs. EPERM without being its owner, and for a folder."""
        return self._chmod(request, None, ARG, request[ARG + 1], True)

    def fchmodat(self, request: Request) -> int | None:
        """As ``chmod``; a relative path begins at a descriptor."""
        return self._chmod(request, request[ARG] & INT, ARG + 1, request[ARG + 2], True)

    def fchmodat2(self, request: Request) -> int | None:
        """As ``fchmodat``, with flags. EOPNOTSUPP for a link itself."""
        flags, dirfd = request[ARG + 3], request[ARG] & INT
        if flags & AT_EMPTY_PATH and self._is_empty(request, ARG + 1):
            return self._chmod_open(request, dirfd, request[ARG + 2])
        follow = not flags & AT_SYMLINK_NOFOLLOW
        return self._chmod(request, dirfd, ARG + 1, request[ARG + 2], follow)

    def fchmod(self, request: Request) -> int | None:
        """As ``chmod``, of an open file. EPERM for a VFIO file without a path."""
        return self._chmod_open(request, request[ARG] & INT, request[ARG + 1])

    def _chmod_open(self, request: Request, fd: int, mode: int) -> int | None:
        path = self._by_descriptor(request, (request[1], fd))
        return None if path is None else self._set_mode(request, path, mode, True)

    def _chmod(
        self, request: Request, dirfd: int | None, at: int, mode: int, follow: bool
    ) -> int | None:
        path = self._own(request, dirfd, at, follow=follow)
        if path is None:
            return None
        return self._set_mode(request, path, mode, follow)

    def _set_mode(self, request: Request, path: str, mode: int, follow: bool) -> int:
        real, found = self._changeable(path, follow)
        if stat.S_ISLNK(found.st_mode):
            raise OSError(errno.EOPNOTSUPP, f"{path} is a link")
        if not Caller.of(request[1]).owns(found):
            raise OSError(errno.EPERM, f"{path} belongs to user {found.st_uid}")
        os.chmod(real, mode & 0o777)
        return 0

    def _changeable(self, path: str, follow: bool) -> tuple[str, os.stat_result]:
        """The tree's file at ``path`` and its facts. EPERM for a folder, and for what has no path (empty)."""
        if not path:
            raise OSError(errno.EPERM, "the file has no path whose mode could be changed")
        real = self.paths.find(path, follow=follow).real
        found = os.lstat(real)
        if stat.S_ISDIR(found.st_mode):
            raise OSError(errno.EPERM, READ_ONLY)
        return real, found

    def _is_empty(self, request: Request, at: int) -> bool:
        process = self.session.processes.get(request[1])
        return process.read_some(request[at], 1) in (b"\0", b"")

    def chown(self, request: Request) -> int | None:
        """Set owner and group of a file or node, for all programs; -1 leaves one. EPERM without CAP_CHOWN, or to give
        the group to one of the caller's; for a folder; and if the user who runs uvfio may not."""
        return self._chown(request, None, ARG, request[ARG + 1 : ARG + 3], True)

    def lchown(self, request: Request) -> int | None:
        """As ``chown``, of a link itself: EPERM."""
        return self._chown(request, None, ARG, request[ARG + 1 : ARG + 3], False)

    def chown_16(self, request: Request) -> int | None:
        """As ``chown``, with ids of 16 bits."""
        return self._chown(request, None, ARG, _wide(request[ARG + 1 : ARG + 3]), True)

    def lchown_16(self, request: Request) -> int | None:
        """As ``lchown``, with ids of 16 bits."""
        return self._chown(request, None, ARG, _wide(request[ARG + 1 : ARG + 3]), False)

    def fchownat(self, request: Request) -> int | None:
        """As ``chown``, with flags; a relative path begins at a descriptor."""
        flags, dirfd = request[ARG + 4], request[ARG] & INT
        ids = request[ARG + 2 : ARG + 4]
        if flags & AT_EMPTY_PATH and self._is_empty(request, ARG + 1):
            return self._chown_open(request, dirfd, ids)
        return self._chown(request, dirfd, ARG + 1, ids, not flags & AT_SYMLINK_NOFOLLOW)

    def fchown(self, request: Request) -> int | None:
        """As ``chown``, of an open file. EPERM for a VFIO file without a path."""
        return self._chown_open(request, request[ARG] & INT, request[ARG + 1 : ARG + 3])

    def fchown_16(self, request: Request) -> int | None:
        """As ``fchown``, with ids of 16 bits."""
        return self._chown_open(request, request[ARG] & INT, _wide(request[ARG + 1 : ARG + 3]))

    def _chown_open(self, request: Request, fd: int, ids: tuple[int, ...]) -> int | None:
        path = self._by_descriptor(request, (request[1], fd))
        return None if path is None else self._set_owner(request, path, ids, True)

    def _chown(
        self, request: Request, dirfd: int | None, at: int, ids: tuple[int, ...], follow: bool
    ) -> int | None:
        path = self._own(request, dirfd, at, follow=follow)
        if path is None:
            return None
        return self._set_owner(request, path, ids, follow)

    def _set_owner(self, request: Request, path: str, ids: tuple[int, ...], follow: bool) -> int:
        uid, gid = (-1 if number & INT == INT else number & INT for number in ids)
        real, found = self._changeable(path, follow)
        if stat.S_ISLNK(found.st_mode) or not Caller.of(request[1]).may_give(found, uid, gid):
            raise OSError(errno.EPERM, f"{path} belongs to user {found.st_uid}")
        os.chown(real, uid, gid)
        return 0

    # -- times, size, attributes -------------------------------------------------------------------

    def _refuse(
        self, request: Request, dirfd: int | None, at: int, number: int, why: str, *, follow: bool
    ) -> int | None:
        """``number`` for a file of the machine that exists."""
        path = self._own(request, dirfd, at, follow=follow)
        if path is None:
            return None
        if path:
            self.paths.find(path, follow=follow)
        raise OSError(number, why)

    def times(self, request: Request) -> int | None:
        """utime and utimes. EPERM: the machine's files have the times of the run."""
        return self._refuse(request, None, ARG, errno.EPERM, TIMES, follow=True)

    def futimesat(self, request: Request) -> int | None:
        """As ``times``; a relative path begins at a descriptor. Without a path nothing is done for a served file."""
        return self._times_at(request, 0)

    def utimensat(self, request: Request) -> int | None:
        """As ``futimesat``, with flags."""
        return self._times_at(request, request[ARG + 3])

    def _times_at(self, request: Request, flags: int) -> int | None:
        dirfd = request[ARG] & INT
        if not request[ARG + 1]:
            if self._by_descriptor(request, (request[1], dirfd)) is None:
                return None
            return 0  # what touch(1) does after it has opened the file
        follow = not flags & AT_SYMLINK_NOFOLLOW
        return self._refuse(request, dirfd, ARG + 1, errno.EPERM, TIMES, follow=follow)

    def truncate(self, request: Request) -> int | None:
        """0 for a file of sysfs that the caller may write (kernfs_iop_setattr lets it pass); EACCES, EISDIR for a
        folder, EINVAL for a device node."""
        if request[ARG + 1] >> 63:
            return None  # EINVAL
        path = self._own(request, None, ARG, follow=True)
        if path is None:
            return None
        if not path:
            raise OSError(errno.EINVAL, "not possible with a VFIO file")
        found = self.paths.find(path)
        real = os.lstat(found.real)
        if stat.S_ISDIR(real.st_mode):
            raise OSError(errno.EISDIR, f"{path} is a folder")
        if found.node is not None:
            raise OSError(errno.EINVAL, f"{path} is a device")
        if not Caller.of(request[1]).may(real, real.st_mode, WRITE):
            raise OSError(errno.EACCES, f"{path} may not be written")
        return 0

    def xattr(self, request: Request) -> int | None:
        """setxattr and removexattr. EOPNOTSUPP: files of the machine have no extended attributes."""
        return self._refuse(request, None, ARG, errno.EOPNOTSUPP, "no attributes", follow=True)

    def lxattr(self, request: Request) -> int | None:
        """As ``xattr``, of a link itself."""
        return self._refuse(request, None, ARG, errno.EOPNOTSUPP, "no attributes", follow=False)

    def fxattr(self, request: Request) -> int | None:
        """As ``xattr``, of an open file."""
        if self._by_descriptor(request, (request[1], request[ARG] & INT)) is None:
            return None
        raise OSError(errno.EOPNOTSUPP, "files of the machine have no extended attributes")


def _folder(path: str) -> str:
    return path.rpartition("/")[0] or "/"


def _wide(ids: tuple[int, ...]) -> tuple[int, ...]:
    """Ids of 16 bits as such of 32: all ones stay all ones (low2highuid of include/linux/highuid.h)."""
    return tuple(INT if number & INT_16 == INT_16 else number & INT_16 for number in ids)
