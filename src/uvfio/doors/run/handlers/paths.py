"""Path calls: open, stat, access, readlink and the like, answered where the path belongs to the machine.

Which paths these are is in ``lookup.py``. A program that changes into one of the machine's folders stays where it is
as far as the kernel knows; its relative paths are answered from the folder it believes to be in. Calls that are not
notified (mkdir, rename) would use the real one: the machine's folders are read-only anyway.

Handlers return a value for the program, None to let the kernel run the call, or raise OSError. Docstrings list what a
handler answers for a path of the machine; for all other paths it is None, unless the program is in a folder that
exists only here: then the call is made on the host's path and its errno passed on. ENOENT, ENOTDIR and ELOOP are as in
the kernel, found by it in the tree. EFAULT for memory that cannot be written; a path that cannot be read is left to
the kernel. Unless stated, no other process is affected.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

from uvfio.doors.run.filter.rules import ARG, INT
from uvfio.doors.run.handlers.attributes import open_attribute
from uvfio.doors.run.handlers.iommu_group import group_number
from uvfio.doors.run.handlers.lookup import MODULES, Lookup
from uvfio.doors.run.linux.stat import (
    Facts,
    pack_stat,
    pack_stat_32,
    pack_statfs,
    pack_statfs_32,
    pack_statfs_old,
    pack_statx,
)
from uvfio.uapi.linux import AT_EMPTY_PATH, AT_SYMLINK_NOFOLLOW

if TYPE_CHECKING:
    from collections.abc import Callable

    from uvfio.doors.run.filter.rules import Request
    from uvfio.doors.run.session.tokens import Token
    from uvfio.doors.run.session.tree import Found

__all__ = ["Paths"]


class Paths(Lookup):
    """The handlers, by the kernel's names."""

    # -- open ------------------------------------------------------------------------------------

    def open(self, request: Request) -> int | None:
        """Open a file of the machine: a descriptor, if there is room in the reserved range.

        EEXIST for O_CREAT with O_EXCL, EACCES for O_CREAT of a name that does not exist and for writing to a text file,
        EISDIR for writing to a folder, ENOTDIR for a device with O_DIRECTORY, ENXIO for /proc/self/fd/N of a served
        file without a path; EMFILE, ENFILE, ENOMEM when no descriptor can be made. A device node opens as ``fops`` has
        it (EBUSY, ENODEV, EPERM...): a group or device that another process has open may refuse. An attribute is
        refused as the machine has it (EACCES).
        """
        return self._open(request, None, request[ARG], request[ARG + 1])

    def creat(self, request: Request) -> int | None:
        """As ``open`` with O_CREAT, O_WRONLY and O_TRUNC."""
        flags = os.O_CREAT | os.O_WRONLY | os.O_TRUNC
        return self._open(request, None, request[ARG], flags)

    def openat(self, request: Request) -> int | None:
        """As ``open``; a relative path begins at a descriptor."""
        return self._open(request, request[ARG] & INT, request[ARG + 1], request[ARG + 2] & INT)

    def openat2(self, request: Request) -> int | None:
        """As ``openat``, with flags in a struct open_how."""
        process = self.session.processes.get(request[1])
        how = process.read_some(request[ARG + 2], 8)
        if len(how) < 8:
            return None
        return self._open(
            request, request[ARG] & INT, request[ARG + 1], int.from_bytes(how, "little")
        )

    def _open(self, request: Request, dirfd: int | None, address: int, flags: int) -> int | None:
        path = self.interesting(request, dirfd, address)
        if path is None:
            return None
        process = self.session.processes.get(request[1])
        cloexec = bool(flags & os.O_CLOEXEC)
        token = self.token_of(request, path)
        if token is not None:
            path = token.file.name
            if not path.startswith("/"):
                raise OSError(errno.ENXIO, f"{path} cannot be opened again")
        if path.rstrip("/") == MODULES and not flags & (os.O_ACCMODE | os.O_PATH):
            return self._open_real(self.tree.list_beside(MODULES), flags, cloexec)
        if not self._is_ours(path):
            return self._open_elsewhere(self._host(process, path), flags, cloexec)
        found = self._find(
            path, follow=not flags & os.O_NOFOLLOW, creating=bool(flags & os.O_CREAT)
        )
        if flags & os.O_CREAT and flags & os.O_EXCL:
            raise OSError(errno.EEXIST, f"{path} exists")
        if found.node is None and not flags & (os.O_PATH | os.O_DIRECTORY):
            text = group_number(self.session, path, found, flags)
            if text is not None:
                with text:
                    return self.session.addfd(text.fileno(), None, cloexec)
            made = open_attribute(self.session, found, flags)
            if made is not None:
                return self.session.install(process, made, cloexec)
        if found.node is None or flags & os.O_PATH:
            return self._open_real(found, flags, cloexec)
        if flags & os.O_DIRECTORY:
            raise OSError(errno.ENOTDIR, f"{path} is a device")
        node = self.tree.virtual(found.real) or path
        file = self.session.machine.open(node, process, self.session.abi)
        try:
            return self.session.install(process, file, cloexec)
        except BaseException:
            file.release()
            raise

    def _open_real(self, found: Found, flags: int, cloexec: bool) -> int:
        """A folder, a link's target or a text file of the tree: the program gets a descriptor of the real file."""
        if flags & os.O_ACCMODE != os.O_RDONLY and not flags & os.O_PATH:
            number = errno.EISDIR if os.path.isdir(found.real) else errno.EACCES
            raise OSError(number, f"{self.tree.virtual(found.real)} cannot be written")
        keep = os.O_ACCMODE | os.O_DIRECTORY | os.O_NONBLOCK
        wanted = os.O_RDONLY if flags & os.O_PATH else flags & keep
        fd = os.open(found.real, wanted | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            return self.session.addfd(fd, None, cloexec)
        finally:
            os.close(fd)

    def _open_elsewhere(self, path: str, flags: int, cloexec: bool) -> int | None:
        """A path of the host: opened here only if the kernel would not find it."""
        if not self.displaced:
            return None
        fd = os.open(path, flags & ~os.O_PATH | os.O_CLOEXEC, 0o644)
        try:
            return self.session.addfd(fd, None, cloexec)
        finally:
            os.close(fd)

    # -- stat and the like ------------------------------------------------------------------------

    def _facts(self, request: Request, path: str | None, follow: bool) -> Facts | None:
        """What stat of ``path`` returns, or None to let the kernel run the call."""
        if path is None:
            return None
        token = self.token_of(request, path) if follow else None
        if token is not None:
            return self.token_facts(token)
        if not self._is_ours(path):
            if not self.displaced:
                return None
            process = self.session.processes.get(request[1])
            return Facts.of(os.stat(self._host(process, path), follow_symlinks=follow))
        found = self._find(path, follow=follow)
        real = os.lstat(found.real)
        if found.node is None:
            return Facts.of(real)
        rdev = os.makedev(found.node.major, found.node.minor)
        return Facts.of(real, stat.S_IFCHR | found.node.mode, rdev)

    def token_facts(self, token: Token) -> Facts:
        """What fstat of a VFIO file returns: a device node's own facts, or those of an anonymous inode."""
        name = token.file.name
        if name.startswith("/"):
            try:
                found = self._find(name)
            except FileNotFoundError:  # the node went; its open files stay
                return Facts.of(os.stat(token.pin), stat.S_IFCHR | 0o600)
            real = os.stat(found.real)
            if found.node is None:
                return Facts.of(real)
            rdev = os.makedev(found.node.major, found.node.minor)
            return Facts.of(real, stat.S_IFCHR | found.node.mode, rdev)
        return Facts.of(os.stat(token.pin), 0o600)

    def _give(
        self, request: Request, facts: Facts | None, address: int, pack: object
    ) -> int | None:
        if facts is None:
            return None
        process = self.session.processes.get(request[1])
        process.memory.write(address, pack(facts))  # type: ignore[operator]
        return 0

    def stat(self, request: Request) -> int | None:
        """The facts of the file that a path leads to: a device node is a character device with its own number."""
        path = self.interesting(request, None, request[ARG])
        return self._give(request, self._facts(request, path, True), request[ARG + 1], pack_stat)

    def lstat(self, request: Request) -> int | None:
        """As ``stat``, of a link itself."""
        path = self.interesting(request, None, request[ARG])
        return self._give(request, self._facts(request, path, False), request[ARG + 1], pack_stat)

    def stat64(self, request: Request) -> int | None:
        """As ``stat``, with the structure of i386."""
        path = self.interesting(request, None, request[ARG])
        return self._give(request, self._facts(request, path, True), request[ARG + 1], pack_stat_32)

    def lstat64(self, request: Request) -> int | None:
        """As ``lstat``, with the structure of i386."""
        path = self.interesting(request, None, request[ARG])
        facts = self._facts(request, path, False)
        return self._give(request, facts, request[ARG + 1], pack_stat_32)

    def newfstatat(self, request: Request) -> int | None:
        """As ``stat`` or ``lstat``; with AT_EMPTY_PATH as fstat of the descriptor."""
        return self._give(request, self._facts_at(request, 3), request[ARG + 2], pack_stat)

    def fstatat64(self, request: Request) -> int | None:
        """As ``newfstatat``, with the structure of i386."""
        return self._give(request, self._facts_at(request, 3), request[ARG + 2], pack_stat_32)

    def statx(self, request: Request) -> int | None:
        """As ``newfstatat``, with the basic fields of struct statx, whichever the mask has."""
        return self._give(request, self._facts_at(request, 2), request[ARG + 4], pack_statx)

    def _facts_at(self, request: Request, flags_index: int) -> Facts | None:
        """Facts for a call with dirfd, path and flags; an empty path means the descriptor itself."""
        dirfd, flags = request[ARG] & INT, request[ARG + flags_index]
        process = self.session.processes.get(request[1])
        itself = flags & AT_EMPTY_PATH and dirfd in self.session.reserved
        if itself and process.read_some(request[ARG + 1], 1) in (b"\0", b""):
            token = process.token(request[1], dirfd)
            return None if token is None else self.token_facts(token)
        empty = bool(flags & AT_EMPTY_PATH)
        path = self.interesting(request, dirfd, request[ARG + 1], empty=empty)
        return self._facts(request, path, not flags & AT_SYMLINK_NOFOLLOW)

    def access(self, request: Request) -> int | None:
        """0 if the mode allows it. EACCES for X_OK of a file without it and W_OK of a read-only one; EINVAL for
        an unknown mode.

        Device nodes and readable files are open to each user: uid and gid are not compared.
        """
        return self._access(request, None, request[ARG], request[ARG + 1], 0)

    def faccessat(self, request: Request) -> int | None:
        """As ``access``; a relative path begins at a descriptor."""
        dirfd = request[ARG] & INT
        return self._access(request, dirfd, request[ARG + 1], request[ARG + 2], 0)

    def faccessat2(self, request: Request) -> int | None:
        """As ``faccessat``, with flags: AT_SYMLINK_NOFOLLOW and AT_EMPTY_PATH. AT_EACCESS makes no difference."""
        dirfd = request[ARG] & INT
        return self._access(request, dirfd, request[ARG + 1], request[ARG + 2], request[ARG + 3])

    def _access(
        self, request: Request, dirfd: int | None, address: int, mode: int, flags: int
    ) -> int | None:
        path = self.interesting(request, dirfd, address, empty=bool(flags & AT_EMPTY_PATH))
        facts = self._facts(request, path, not flags & AT_SYMLINK_NOFOLLOW)
        if facts is None or path is None:
            return None
        if mode & ~7:
            raise OSError(errno.EINVAL, f"access mode {mode:#o}")
        if mode & os.X_OK and not facts.mode & 0o111:
            raise OSError(errno.EACCES, path)
        if mode & os.W_OK and self._is_ours(path) and not facts.mode & 0o222:
            raise OSError(errno.EACCES, path)
        return 0

    def statfs(self, request: Request) -> int | None:
        """The file system of the tree, with the type of sysfs below /sys and of tmpfs elsewhere."""
        return self._statfs(request, request[ARG + 1], pack_statfs)

    def statfs_32(self, request: Request) -> int | None:
        """As ``statfs``, with the structure of i386; counts that do not fit are the largest that does."""
        return self._statfs(request, request[ARG + 1], pack_statfs_old)

    def statfs64(self, request: Request) -> int | None:
        """As ``statfs``, with the structure of i386 that has 64-bit counts. Its size argument is not checked."""
        return self._statfs(request, request[ARG + 2], pack_statfs_32)

    def _statfs(
        self, request: Request, address: int, pack: Callable[[str, bool], bytes]
    ) -> int | None:
        path = self.interesting(request, None, request[ARG])
        if path is None or not self._is_ours(path):
            return None
        found = self._find(path)
        process = self.session.processes.get(request[1])
        process.memory.write(address, pack(found.real, path.startswith("/sys/")))
        return 0

    # -- links, attributes, working folder --------------------------------------------------------

    def readlink(self, request: Request) -> int | None:
        """The target of a link; for /proc/self/fd/N the name of a served file or a file of the tree: bytes written.

        EINVAL for a buffer size of 0 or of 2 GiB and more, and for a file that is no link.
        """
        return self._readlink(request, None, ARG)

    def readlinkat(self, request: Request) -> int | None:
        """As ``readlink``; a relative path begins at a descriptor."""
        return self._readlink(request, request[ARG] & INT, ARG + 1)

    def _readlink(self, request: Request, dirfd: int | None, at: int) -> int | None:
        path = self.interesting(request, dirfd, request[at])
        if path is None:
            return None
        process = self.session.processes.get(request[1])
        token = self.token_of(request, path)
        if token is not None:
            target = token.file.name
        elif path in ("/proc/self/cwd", f"/proc/{process.tgid}/cwd") and process.virtual_cwd:
            target = process.virtual_cwd
        elif not self._is_ours(path):
            fd_link = self._tree_link(request, path)
            if fd_link is None:
                if not self.displaced:
                    return None
                fd_link = os.readlink(self._host(process, path))
            target = fd_link
        else:
            target = os.readlink(self._find(path, follow=False).real)
        size = request[at + 2] & INT
        if not 0 < size < 1 << 31:
            raise OSError(errno.EINVAL, f"buffer of {size} bytes")
        data = os.fsencode(target)[:size]
        process.memory.write(request[at + 1], data)
        return len(data)

    def _tree_link(self, request: Request, path: str) -> str | None:
        """The target of /proc/self/fd/N for a folder or file of the tree, under the name that the program knows."""
        found = self._descriptor(request, path)
        if found is None:
            return None
        try:
            return self.tree.virtual(os.readlink("/proc/{}/fd/{}".format(*found)))
        except OSError:
            return None

    def getxattr(self, request: Request) -> int | None:
        """ENODATA: files of the machine have no extended attributes."""
        return self._getxattr(request, True)

    def lgetxattr(self, request: Request) -> int | None:
        """As ``getxattr``, of a link itself."""
        return self._getxattr(request, False)

    def _getxattr(self, request: Request, follow: bool) -> int | None:
        path = self.interesting(request, None, request[ARG])
        if path is None:
            return None
        if self._is_ours(path):
            self._find(path, follow=follow)
            raise OSError(errno.ENODATA, f"{path} has no extended attributes")
        if not self.displaced:
            return None
        process = self.session.processes.get(request[1])
        name = process.read_some(request[ARG + 1], 256).split(b"\0")[0]
        return self._attributes(
            request, os.getxattr(self._host(process, path), name, follow_symlinks=follow), ARG + 2
        )

    def listxattr(self, request: Request) -> int | None:
        """0: files of the machine have no extended attributes. ERANGE for a host's list that is too long."""
        return self._listxattr(request, True)

    def llistxattr(self, request: Request) -> int | None:
        """As ``listxattr``, of a link itself."""
        return self._listxattr(request, False)

    def _listxattr(self, request: Request, follow: bool) -> int | None:
        path = self.interesting(request, None, request[ARG])
        if path is None:
            return None
        if self._is_ours(path):
            self._find(path, follow=follow)
            return 0
        if not self.displaced:
            return None
        process = self.session.processes.get(request[1])
        names = os.listxattr(self._host(process, path), follow_symlinks=follow)
        return self._attributes(request, b"".join(os.fsencode(n) + b"\0" for n in names), ARG + 1)

    def _attributes(self, request: Request, data: bytes, at: int) -> int:
        """Write to the buffer whose address and size are at ``at`` of the request; size 0 only returns the length."""
        size = request[at + 1]
        if size:
            if len(data) > size:
                raise OSError(errno.ERANGE, f"{len(data)} bytes of attributes")
            self.session.processes.get(request[1]).memory.write(request[at], data)
        return len(data)

    def chdir(self, request: Request) -> int | None:
        """Remember a folder of the machine as working folder of the process, for all its threads; ENOTDIR, ENOENT.

        For any other folder the kernel changes into it, and the remembered one is forgotten unless it will refuse.
        """
        process = self.session.processes.get(request[1])
        path = self.interesting(request, None, request[ARG])
        if path is not None and self._is_ours(path):
            real = self._find(path).real
            path = self.tree.virtual(real) or path
        elif path is None or not self.displaced:
            raw = self._read_path(process, request[ARG])
            if raw and not (process.virtual_cwd and self._no_folder(raw)):
                process.forget_cwd()
            return None
        else:
            real = path = path.rstrip("/") or "/"  # out of the machine's folders by a relative path
        if not os.path.isdir(real):
            raise OSError(errno.ENOTDIR if os.path.lexists(real) else errno.ENOENT, path)
        process.forget_cwd()
        process.virtual_cwd = path
        return 0

    @staticmethod
    def _no_folder(path: bytes) -> bool:
        """Whether the kernel will refuse to change into it."""
        return not (os.path.isdir(path) and os.access(path, os.X_OK))

    def fchdir(self, request: Request) -> int | None:
        """Left to the kernel; the remembered folder is forgotten unless the kernel will refuse."""
        process = self.session.processes.get(request[1])
        folder = b"/proc/%d/fd/%d" % (request[1], request[ARG] & INT)
        if not (process.virtual_cwd and self._no_folder(folder)):
            process.forget_cwd()
        return None

    def getcwd(self, request: Request) -> int | None:
        """The working folder, if it is one of the machine's: bytes written, NUL included. ERANGE for a small buffer."""
        process = self.session.processes.get(request[1])
        cwd = process.cwd if process.virtual_cwd else self.tree.virtual(process.cwd)
        if not cwd:
            return None
        data = os.fsencode(cwd) + b"\0"
        if len(data) > request[ARG + 1]:
            raise OSError(errno.ERANGE, cwd)
        process.memory.write(request[ARG], data)
        return len(data)

    def execve(self, request: Request) -> int | None:
        """Left to the kernel; the next call of the thread shows whether the image was exchanged."""
        processes = self.session.processes
        processes.exec_begins(processes.get(request[1]), request[1])
        return None
