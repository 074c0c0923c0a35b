"""Path calls that open, look or move: open, stat, access, readlink, chdir, exec and the like.

Which file a path means is found in ``lookup.py``. For a file of the machine the handler answers, with the rights that
the caller has by the file's mode and owner (``linux/rights.py``). Everything of the host is answered by the kernel, in
the program: as the call stands, or repeated with an equivalent path (``Redirect``). Nothing of the host is opened or
resolved by the supervisor.

A program that changes into one of the machine's folders changes into the tree's own one, so that its children inherit
it. If it cannot, it stays where it is as far as the kernel knows: the folder is its *virtual* working folder, until the
kernel has changed into another one.

Handlers return a value for the program, None to let the kernel run the call, or raise OSError or Redirect. Docstrings
list what a handler answers for a path of the machine; ENOENT, ENOTDIR and ELOOP are as in the kernel, found by it in
the tree. EFAULT for memory that cannot be written; a path that cannot be read is left to the kernel. Unless stated, no
other process is affected.
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
from uvfio.doors.run.linux import syscalls as sc
from uvfio.doors.run.linux.rights import EXECUTE, READ, WRITE, Caller
from uvfio.doors.run.linux.stat import (
    Facts,
    pack_stat,
    pack_stat_32,
    pack_statfs,
    pack_statfs_32,
    pack_statfs_old,
    pack_statx,
)
from uvfio.doors.run.session.redirect import Redirect
from uvfio.uapi.linux import AT_EACCESS, AT_EMPTY_PATH, AT_SYMLINK_NOFOLLOW, O_TMPFILE

if TYPE_CHECKING:
    from collections.abc import Callable

    from uvfio.doors.run.filter.rules import Request
    from uvfio.doors.run.session.programs.process import Process
    from uvfio.doors.run.session.tokens import Token
    from uvfio.doors.run.session.tree import Found

__all__ = ["Paths"]


class Paths(Lookup):
    """The handlers, by the kernel's names."""

    # -- open ------------------------------------------------------------------------------------

    def open(self, request: Request) -> int | None:
        """Open a file of the machine: a descriptor, if there is room in the reserved range.

        EACCES if its mode, owner and group do not allow it, for O_CREAT of a name that does not exist, and for writing
        to a text file; EEXIST for O_CREAT with O_EXCL, EISDIR for writing to a folder, EOPNOTSUPP for O_TMPFILE,
        ENOTDIR for a device with O_DIRECTORY, ENXIO for /proc/self/fd/N of a served file without a path; EMFILE,
        ENFILE, ENOMEM when no descriptor can be made. A device node opens as ``fops`` has it (EBUSY, ENODEV,
        EPERM...): a group or device that another process has open may refuse.
        """
        return self._open(request, None, ARG, request[ARG + 1])

    def creat(self, request: Request) -> int | None:
        """As ``open`` with O_CREAT, O_WRONLY and O_TRUNC."""
        return self._open(request, None, ARG, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)

    def openat(self, request: Request) -> int | None:
        """As ``open``; a relative path begins at a descriptor."""
        return self._open(request, request[ARG] & INT, ARG + 1, request[ARG + 2] & INT)

    def openat2(self, request: Request) -> int | None:
        """As ``openat``, with flags and restrictions (RESOLVE_*) in a struct open_how. EXDEV and ELOOP for a path that
        these do not allow."""
        process = self.session.processes.get(request[1])
        how = process.read_some(request[ARG + 2], sc.open_how.size)
        if len(how) < sc.open_how.size or request[ARG + 3] < sc.open_how.size:
            return None
        flags, _, resolve = sc.open_how.unpack(how)
        return self._open(request, request[ARG] & INT, ARG + 1, flags, resolve)

    def _open(
        self, request: Request, dirfd: int | None, at: int, flags: int, resolve: int = 0
    ) -> int | None:
        follow = not (flags & os.O_NOFOLLOW or (flags & os.O_CREAT and flags & os.O_EXCL))
        if resolve & (sc.RESOLVE_BENEATH | sc.RESOLVE_IN_ROOT):
            place = self.within(request, dirfd, request[at], follow, resolve)
        else:
            place = self.interesting(request, dirfd, request[at], follow=follow)
        if place is None:
            return None
        process = self.session.processes.get(request[1])
        path, cloexec = place.path, bool(flags & os.O_CLOEXEC)
        token = self.token_of(request, place)
        if token is not None:
            path = token.file.name
            if not path.startswith("/"):
                raise OSError(errno.ENXIO, f"{path} cannot be opened again")
        elif path.rstrip("/") == MODULES and not flags & (os.O_ACCMODE | os.O_PATH | os.O_CREAT):
            return self.session.addfd_of(self.tree.list_beside(MODULES).real, flags, cloexec)
        elif not place.ours:
            if place.private and flags & (os.O_ACCMODE | os.O_CREAT | os.O_TRUNC):
                raise OSError(errno.EPERM, f"{path} belongs to the run")
            self.go_elsewhere(place, at - ARG)
            return None
        found = self.find(path, follow=follow, creating=bool(flags & os.O_CREAT), resolve=resolve)
        if flags & os.O_CREAT and flags & os.O_EXCL:
            raise OSError(errno.EEXIST, f"{path} exists")
        if flags & os.O_PATH:
            return self._open_path(process, found, flags, cloexec)
        if flags & os.O_DIRECTORY and not os.path.isdir(found.real):
            raise OSError(errno.ENOTDIR, f"{path} is no folder")
        self._check_open(request, found, flags)
        if found.node is not None:
            node = self.tree.virtual(found.real) or path
            file = self.session.machine.open(node, process, self.session.abi)
            try:
                return self.session.install(process, file, cloexec)
            except BaseException:
                file.release()
                raise
        if not flags & os.O_DIRECTORY:
            text = group_number(self.session, path, found, flags)
            if text is not None:
                with text:
                    return self.session.addfd(text.fileno(), None, cloexec)
            made = open_attribute(self.session, found, flags)
            if made is not None:
                return self.session.install(process, made, cloexec)
        if flags & os.O_ACCMODE != os.O_RDONLY:
            raise OSError(errno.EACCES, f"{self.tree.virtual(found.real)} cannot be written")
        return self.session.addfd_of(found.real, flags, cloexec)

    def _check_open(self, request: Request, found: Found, flags: int) -> None:
        """may_open (fs/namei.c): EISDIR, EOPNOTSUPP, EACCES."""
        writes = flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC
        reads = flags & os.O_ACCMODE != os.O_WRONLY
        real = os.lstat(found.real)
        if flags & O_TMPFILE == O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, "the machine's folders are read-only")
        if stat.S_ISDIR(real.st_mode) and (writes or flags & os.O_CREAT):
            raise OSError(errno.EISDIR, f"{self.tree.virtual(found.real)} is a folder")
        wanted = (READ if reads else 0) | (WRITE if writes else 0)
        if not Caller.of(request[1]).may(real, real.st_mode, wanted):
            raise OSError(
                errno.EACCES,
                f"{self.tree.virtual(found.real)} has mode {stat.S_IMODE(real.st_mode):#o} and "
                f"belongs to user {real.st_uid}",
            )

    def _open_path(self, process: Process, found: Found, flags: int, cloexec: bool) -> int:
        """O_PATH: a descriptor of the tree's own file. A node gets a number of the reserved range, where fstat shows it
        as a device. A link itself (O_NOFOLLOW) cannot be opened: ELOOP."""
        number = None if found.node is None else process.free_number()
        return self.session.addfd_of(found.real, flags & os.O_DIRECTORY, cloexec, number)

    # -- stat and the like ------------------------------------------------------------------------

    def _facts(
        self, request: Request, dirfd: int | None, at: int, follow: bool, empty: bool = False
    ) -> Facts | None:
        """What stat of the path at index ``at`` of the request returns, or None to let the kernel run the call."""
        place = self.interesting(request, dirfd, request[at], follow=follow, empty=empty)
        if place is None:
            return None
        token = self.token_of(request, place)
        if token is not None:
            return self.token_facts(token)
        if not place.ours:
            self.go_elsewhere(place, at - ARG)
            return None
        return self._found_facts(self.find(place.path, follow=follow))

    @staticmethod
    def _found_facts(found: Found) -> Facts:
        real = os.lstat(found.real)
        if found.node is None:
            return Facts.of(real)
        rdev = os.makedev(found.node.major, found.node.minor)
        return Facts.of(real, stat.S_IFCHR | stat.S_IMODE(real.st_mode), rdev)

    def token_facts(self, token: Token) -> Facts:
        """What fstat of a VFIO file returns: a device node's own facts, or those of an anonymous inode."""
        name = token.file.name
        if name.startswith("/"):
            try:
                return self._found_facts(self.find(name))
            except FileNotFoundError:  # the node went; its open files stay
                return Facts.of(os.stat(token.pin), stat.S_IFCHR | 0o600)
        return Facts.of(os.stat(token.pin), 0o600)

    def descriptor_facts(self, request: Request, fd: int) -> Facts | None:
        """What fstat of a descriptor returns if it is a VFIO file, or a device node opened with O_PATH."""
        token = self.session.processes.get(request[1]).token(request[1], fd)
        if token is not None:
            return self.token_facts(token)
        found = self.tree.opened(f"/proc/{request[1]}/fd/{fd}")
        return None if found is None else self._found_facts(found)

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
        facts = self._facts(request, None, ARG, True)
        return self._give(request, facts, request[ARG + 1], pack_stat)

    def lstat(self, request: Request) -> int | None:
        """As ``stat``, of a link itself."""
        facts = self._facts(request, None, ARG, False)
        return self._give(request, facts, request[ARG + 1], pack_stat)

    def stat64(self, request: Request) -> int | None:
        """As ``stat``, with the structure of i386."""
        facts = self._facts(request, None, ARG, True)
        return self._give(request, facts, request[ARG + 1], pack_stat_32)

    def lstat64(self, request: Request) -> int | None:
        """As ``lstat``, with the structure of i386."""
        facts = self._facts(request, None, ARG, False)
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
        empty = bool(flags & AT_EMPTY_PATH)
        if empty and process.read_some(request[ARG + 1], 1) in (b"\0", b""):
            return self.descriptor_facts(request, dirfd)
        return self._facts(request, dirfd, ARG + 1, not flags & AT_SYMLINK_NOFOLLOW, empty)

    def access(self, request: Request) -> int | None:
        """0 if mode, owner and group allow it to the caller's real ids. EACCES; EINVAL for an unknown mode."""
        return self._access(request, None, ARG, request[ARG + 1], 0)

    def faccessat(self, request: Request) -> int | None:
        """As ``access``; a relative path begins at a descriptor."""
        return self._access(request, request[ARG] & INT, ARG + 1, request[ARG + 2], 0)

    def faccessat2(self, request: Request) -> int | None:
        """As ``faccessat``, with flags: AT_SYMLINK_NOFOLLOW, AT_EMPTY_PATH, AT_EACCESS (effective ids)."""
        return self._access(
            request, request[ARG] & INT, ARG + 1, request[ARG + 2], request[ARG + 3]
        )

    def _access(
        self, request: Request, dirfd: int | None, at: int, mode: int, flags: int
    ) -> int | None:
        follow = not flags & AT_SYMLINK_NOFOLLOW
        facts = self._facts(request, dirfd, at, follow, bool(flags & AT_EMPTY_PATH))
        if facts is None:
            return None
        mode &= INT
        if mode & ~7:
            raise OSError(errno.EINVAL, f"access mode {mode:#o}")
        caller = Caller.of(request[1])
        if not flags & AT_EACCESS:
            caller = caller.for_access()
        if mode and not caller.may(facts.real, facts.mode, mode):
            raise OSError(errno.EACCES, f"mode {stat.S_IMODE(facts.mode):#o}")
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
        path = self.own(request, ARG)
        if path is None:
            return None
        found = self.find(path)
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
        place = self.interesting(request, dirfd, request[at], follow=False)
        if place is None:
            return None
        process = self.session.processes.get(request[1])
        target = (
            os.readlink(self.find(place.path, follow=False).real)
            if place.ours
            else self.link_of_proc(request, process, place)
        )
        if target is None:
            self.go_elsewhere(place, at - ARG)
            return None
        size = request[at + 2] & INT
        if not 0 < size < 1 << 31:
            raise OSError(errno.EINVAL, f"buffer of {size} bytes")
        data = os.fsencode(target)[:size]
        process.memory.write(request[at + 1], data)
        return len(data)

    def getxattr(self, request: Request) -> int | None:
        """ENODATA: files of the machine have no extended attributes."""
        return self._getxattr(request, True)

    def lgetxattr(self, request: Request) -> int | None:
        """As ``getxattr``, of a link itself."""
        return self._getxattr(request, False)

    def _getxattr(self, request: Request, follow: bool) -> int | None:
        path = self.own(request, ARG, follow=follow)
        if path is None:
            return None
        self.find(path, follow=follow)
        raise OSError(errno.ENODATA, f"{path} has no extended attributes")

    def listxattr(self, request: Request) -> int | None:
        """0: files of the machine have no extended attributes."""
        return self._listxattr(request, True)

    def llistxattr(self, request: Request) -> int | None:
        """As ``listxattr``, of a link itself."""
        return self._listxattr(request, False)

    def _listxattr(self, request: Request, follow: bool) -> int | None:
        path = self.own(request, ARG, follow=follow)
        if path is None:
            return None
        self.find(path, follow=follow)
        return 0

    # -- the working folder, and another image -----------------------------------------------------

    def chdir(self, request: Request) -> int | None:
        """Change into a folder of the machine, for all threads of the process; ENOTDIR, EACCES without permission to
        search it. Into any other folder the kernel changes."""
        process = self.session.processes.get(request[1])
        place = self.interesting(request, None, request[ARG])
        if place is not None and place.ours:
            self._enter(request, process, self.find(place.path).real)
        paths = {0: os.fsencode(place.path)} if place is not None and place.displaced else {}
        self._leave(request, process, paths)
        return None

    def fchdir(self, request: Request) -> int | None:
        """Left to the kernel; a virtual working folder is forgotten when it has changed into another one."""
        self._leave(request, self.session.processes.get(request[1]), {})
        return None

    def _enter(self, request: Request, process: Process, real: str) -> None:
        """Let the program change into the tree's own folder. It is a virtual one if the program cannot: it is traced,
        or has another root or mount namespace."""
        found = os.lstat(real)
        path = self.tree.virtual(real) or "/"
        if not stat.S_ISDIR(found.st_mode):
            raise OSError(errno.ENOTDIR, f"{path} is no folder")
        if not Caller.of(request[1]).may(found, found.st_mode, EXECUTE):
            raise OSError(errno.EACCES, f"{path} may not be searched")

        def done(result: int) -> int:
            process.forget_cwd()
            if result < 0:
                process.virtual_cwd = path
            return 0

        raise Redirect({0: os.fsencode(real)}, done, lambda: done(-errno.EPERM))

    def _leave(self, request: Request, process: Process, paths: dict[int, bytes]) -> None:
        """Let the kernel change the folder, and forget a virtual one if it does. If the program cannot be traced the
        change is taken for granted."""

        def done(result: int) -> int:
            if result == 0:
                process.forget_cwd()
            return result

        def otherwise() -> None:
            process.forget_cwd()

        if request[1] in self.session.repeating:
            return
        if paths or process.virtual_cwd:
            raise Redirect(paths, done, None if paths else otherwise)
        process.forget_cwd()

    def getcwd(self, request: Request) -> int | None:
        """The working folder, if it is one of the machine's: bytes written, NUL included. ERANGE for a small buffer."""
        process = self.session.processes.get(request[1])
        cwd = process.virtual_cwd or self.shown(process.cwd)
        if not cwd:
            return None
        data = os.fsencode(cwd) + b"\0"
        if len(data) > request[ARG + 1]:
            raise OSError(errno.ERANGE, cwd)
        process.memory.write(request[ARG], data)
        return len(data)

    def execve(self, request: Request) -> int | None:
        """EACCES for a file of the machine. Else left to the kernel; the next call of the thread shows whether the
        image was exchanged."""
        return self._exec(request, None, ARG, True)

    def execveat(self, request: Request) -> int | None:
        """As ``execve``; a relative path begins at a descriptor."""
        follow = not request[ARG + 4] & AT_SYMLINK_NOFOLLOW
        return self._exec(request, request[ARG] & INT, ARG + 1, follow)

    def _exec(self, request: Request, dirfd: int | None, at: int, follow: bool) -> int | None:
        place = self.interesting(request, dirfd, request[at], follow=follow)
        if place is not None:
            if place.ours:
                self.find(place.path, follow=follow)
                raise OSError(errno.EACCES, f"{place.path} is no program")
            self.go_elsewhere(place, at - ARG)  # the repeated call is notified, too
        processes = self.session.processes
        processes.exec_begins(processes.get(request[1]), request[1])
        return None
