"""Path calls: open, stat, access, readlink and their kin, answered where the path belongs to the machine.

Programs make thousands of such calls that are none of our business, so the order is: read the path, look at
its first bytes, let the kernel do it. Only what may lead into the machine's folders is looked at closer:

    absolute, begins with one of our prefixes     ours (after collapsing //, . and ..)
    /proc/self/fd/N, /dev/fd/N of a token          ours
    relative                                       joined to the program's working folder first

A program that changes into one of our folders stays where it is as far as the kernel knows; its relative
paths are answered from the folder it believes to be in. Calls that are not notified (mkdir, rename) would
use the real one: the machine's folders are read-only anyway.

Handlers return a value for the program, None to let the kernel go on, or raise OSError.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

from uvfio.doors.run.handlers.attributes import open_attribute
from uvfio.doors.run.handlers.nodes import group_number, open_node
from uvfio.doors.run.linux.stat import (
    Facts,
    pack_stat,
    pack_stat_32,
    pack_statfs,
    pack_statfs_32,
    pack_statfs_old,
    pack_statx,
)
from uvfio.machine.sysfs.tree import PREFIXES

if TYPE_CHECKING:
    from collections.abc import Callable

    from uvfio.doors.run.session.processes import Process
    from uvfio.doors.run.session.tokens import Token
    from uvfio.doors.run.session.tree import Found
    from uvfio.doors.run.supervisor import Supervisor

__all__ = ["Paths"]

Request = tuple[int, ...]  # struct seccomp_notif, unpacked
ARG = 6  # index of the first argument in a Request

AT_FDCWD = 0xFFFFFF9C  # -100, as the low 32 bits of an argument
AT_SYMLINK_NOFOLLOW = 0x100
AT_EACCESS = 0x200
AT_EMPTY_PATH = 0x1000
PATH_MAX = 4096
ENODATA = errno.ENODATA

MODULES = "/sys/module"  # the host's, but its listing shows the machine's modules as well
WATCHED = (*PREFIXES, MODULES.encode(), b"/proc/", b"/dev/fd/")


class Paths:
    """The handlers, by the kernel's names.

    ``displaced`` belongs to the path that ``interesting`` returned last: the kernel would not resolve it as the
    program means it, because it starts from a folder that exists only here.
    """

    def __init__(self, supervisor: Supervisor) -> None:
        self.supervisor = supervisor
        self.tree = supervisor.tree
        self.displaced = False
        self.by_tid = supervisor.processes.by_tid
        self.discover = supervisor.processes.discover

    # -- which path is it? -----------------------------------------------------------------------

    def interesting(
        self, request: Request, dirfd: int | None, address: int, *, empty: bool = False
    ) -> str | None:
        """The absolute path if it may be ours, else None. BadAddress is the kernel's to find.

        With ``empty`` an empty path means ``dirfd`` itself.
        """
        process = self.by_tid.get(request[1]) or self.discover(request[1])
        self.displaced = False
        seen = process.peek(address)
        if (
            seen[:1] == b"/"
            and not seen.startswith(WATCHED)
            and b"/." not in seen
            and b"//" not in seen
            and b"\0" in seen
        ):
            return None  # nearly all there are; what follows the NUL can only make it look closer
        raw = self._read_path(process, address)
        if raw is None or not (raw or empty):
            return None
        if raw.startswith(b"/"):
            if raw.startswith(WATCHED):
                path = self._clean(raw)
                self.displaced = not self._is_watched(path) and raw.startswith(PREFIXES)
                return path
            if b"/." not in raw and b"//" not in raw:
                return None
            path = self._clean(raw)
        else:
            path = self._join(process, request, dirfd, raw)
        return path if self.displaced or self._is_watched(path) else None

    @staticmethod
    def _read_path(process: Process, address: int) -> bytes | None:
        """The string at ``address``, or None if the kernel would not take it for a path."""
        raw = process.read_some(address, 256)
        end = raw.find(b"\0")
        if end < 0 and len(raw) == 256:
            raw = process.read_some(address, PATH_MAX)
            end = raw.find(b"\0")
        return None if end < 0 else raw[:end]

    @staticmethod
    def _is_watched(path: str) -> bool:
        return path.encode("utf-8", "surrogateescape").startswith(WATCHED)

    def _join(self, process: Process, request: Request, dirfd: int | None, raw: bytes) -> str:
        """A relative path made absolute; "" when it can only be the kernel's."""
        if dirfd is None or dirfd == AT_FDCWD:
            base = process.cwd
            if process.virtual_cwd:
                self.displaced = True
            elif (
                b".." not in raw and not base.startswith(("/dev", "/sys", "/proc")) and base != "/"
            ):
                inside = self.tree.virtual(base)
                if inside is None:
                    return ""
                base = inside
        else:
            try:
                base = os.readlink(f"/proc/{request[1]}/fd/{dirfd}")
            except OSError:
                return ""
            inside = self.tree.virtual(base)
            if inside is not None:
                base = inside
                self.displaced = b".." in raw
            if not raw:
                return base
        path = self._clean(f"{base}/".encode("utf-8", "surrogateescape") + raw)
        if base == MODULES and not self._is_ours(path):
            self.displaced = True  # the listing has no more than names of the host's
        return path

    def _clean(self, raw: bytes) -> str:
        """Without //, . and ..; a slash at the end, which asks for a folder, stays."""
        parts: list[str] = []
        for part in raw.decode("utf-8", "surrogateescape").split("/"):
            if part == "..":
                parts = self._resolve(parts)[:-1]
            elif part not in ("", "."):
                parts.append(part)
        path = "/" + "/".join(parts)
        return path + "/" if parts and raw.endswith((b"/", b"/.")) else path

    def _resolve(self, parts: list[str]) -> list[str]:
        """Where links of the tree lead: ``..`` is the folder above that. OSError as the kernel gives it."""
        path = "/" + "/".join(parts)
        if not self._is_ours(path):
            return parts
        return (self.tree.virtual(self.tree.find(path + "/").real) or path).split("/")[1:]

    @staticmethod
    def _host(process: Process, path: str) -> str:
        """``path`` of the host as this process may say it: what is "self" for the program is not for us."""
        return f"/proc/{process.tgid}{path[10:]}" if path.startswith("/proc/self/") else path

    def _is_ours(self, path: str) -> bool:
        return any(
            path == prefix or path.startswith(prefix + "/") for prefix in self.supervisor.prefixes
        )

    @staticmethod
    def _descriptor(request: Request, path: str) -> tuple[int, int] | None:
        """The task and the number that /proc/self/fd/N means, in any of its forms, /dev/fd/N included."""
        match path.split("/"):
            case ["", "dev", "fd", number]:
                who = "self"
            case ["", "proc", who, "fd", number] | ["", "proc", _, "task", who, "fd", number]:
                pass
            case _:
                return None
        if who in ("self", "thread-self"):
            who = str(request[1])
        if not (path.isascii() and who.isdigit() and number.isdigit()):
            return None
        return int(who), int(number)

    def token_of(self, request: Request, path: str) -> Token | None:
        """The token that a path through /proc means."""
        found = self._descriptor(request, path)
        return None if found is None else self.supervisor.processes.get(request[1]).token(*found)

    # -- open ------------------------------------------------------------------------------------

    def open(self, request: Request) -> int | None:
        return self._open(request, None, request[ARG], request[ARG + 1])

    def creat(self, request: Request) -> int | None:
        flags = os.O_CREAT | os.O_WRONLY | os.O_TRUNC
        return self._open(request, None, request[ARG], flags)

    def openat(self, request: Request) -> int | None:
        return self._open(
            request, request[ARG] & 0xFFFFFFFF, request[ARG + 1], request[ARG + 2] & 0xFFFFFFFF
        )

    def openat2(self, request: Request) -> int | None:
        process = self.supervisor.processes.get(request[1])
        how = process.read_some(request[ARG + 2], 8)
        if len(how) < 8:
            return None
        return self._open(
            request, request[ARG] & 0xFFFFFFFF, request[ARG + 1], int.from_bytes(how, "little")
        )

    def _open(self, request: Request, dirfd: int | None, address: int, flags: int) -> int | None:
        path = self.interesting(request, dirfd, address)
        if path is None:
            return None
        process = self.supervisor.processes.get(request[1])
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
            text = group_number(self.supervisor, path, found, flags)
            if text is not None:
                with text:
                    return self.supervisor.addfd(text.fileno(), None, cloexec)
            made = open_attribute(self.supervisor, found, flags)
            if made is not None:
                return self.supervisor.install(process, made, cloexec)
        if found.node is None or flags & os.O_PATH:
            return self._open_real(found, flags, cloexec)
        if flags & os.O_DIRECTORY:
            raise OSError(errno.ENOTDIR, f"{path} is a device")
        file = open_node(self.supervisor, found.node, process)
        try:
            return self.supervisor.install(process, file, cloexec)
        except BaseException:
            file.release()
            raise

    def _open_real(self, found: Found, flags: int, cloexec: bool) -> int:
        """A folder, a link's target or a text file of the tree: the program gets the real thing."""
        if flags & os.O_ACCMODE != os.O_RDONLY and not flags & os.O_PATH:
            number = errno.EISDIR if os.path.isdir(found.real) else errno.EACCES
            raise OSError(number, f"{self.tree.virtual(found.real)} cannot be written")
        keep = os.O_ACCMODE | os.O_DIRECTORY | os.O_NONBLOCK
        wanted = os.O_RDONLY if flags & os.O_PATH else flags & keep
        fd = os.open(found.real, wanted | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            return self.supervisor.addfd(fd, None, cloexec)
        finally:
            os.close(fd)

    def _open_elsewhere(self, path: str, flags: int, cloexec: bool) -> int | None:
        """A path of the host; it is ours to open only if the kernel would not find it."""
        if not self.displaced:
            return None
        fd = os.open(path, flags & ~os.O_PATH | os.O_CLOEXEC, 0o644)
        try:
            return self.supervisor.addfd(fd, None, cloexec)
        finally:
            os.close(fd)

    def _find(self, path: str, *, follow: bool = True, creating: bool = False) -> Found:
        self.supervisor.settle()
        try:
            return self.tree.find(path, follow=follow)
        except FileNotFoundError:
            if creating:
                raise OSError(
                    errno.EACCES, f"{path}: the machine's folders are read-only"
                ) from None
            raise

    # -- stat and its kin ------------------------------------------------------------------------

    def _facts(self, request: Request, path: str | None, follow: bool) -> Facts | None:
        """What stat of ``path`` says, or None if it is the kernel's to say."""
        if path is None:
            return None
        token = self.token_of(request, path) if follow else None
        if token is not None:
            return self.token_facts(token)
        if not self._is_ours(path):
            if not self.displaced:
                return None
            process = self.supervisor.processes.get(request[1])
            return Facts.of(os.stat(self._host(process, path), follow_symlinks=follow))
        found = self._find(path, follow=follow)
        real = os.lstat(found.real)
        if found.node is None:
            return Facts.of(real)
        rdev = os.makedev(found.node.major, found.node.minor)
        return Facts.of(real, stat.S_IFCHR | found.node.mode, rdev)

    def token_facts(self, token: Token) -> Facts:
        """What fstat of a VFIO file says: a device node's own facts, or those of an anonymous inode."""
        name = token.file.name
        if name.startswith("/"):
            try:
                found = self._find(name)
            except FileNotFoundError:  # the node went, who has it open keeps it
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
        process = self.supervisor.processes.get(request[1])
        process.memory.write(address, pack(facts))  # type: ignore[operator]
        return 0

    def stat(self, request: Request) -> int | None:
        path = self.interesting(request, None, request[ARG])
        return self._give(request, self._facts(request, path, True), request[ARG + 1], pack_stat)

    def lstat(self, request: Request) -> int | None:
        path = self.interesting(request, None, request[ARG])
        return self._give(request, self._facts(request, path, False), request[ARG + 1], pack_stat)

    def stat64(self, request: Request) -> int | None:
        path = self.interesting(request, None, request[ARG])
        return self._give(request, self._facts(request, path, True), request[ARG + 1], pack_stat_32)

    def lstat64(self, request: Request) -> int | None:
        path = self.interesting(request, None, request[ARG])
        facts = self._facts(request, path, False)
        return self._give(request, facts, request[ARG + 1], pack_stat_32)

    def newfstatat(self, request: Request) -> int | None:
        return self._give(request, self._facts_at(request, 3), request[ARG + 2], pack_stat)

    def fstatat64(self, request: Request) -> int | None:
        return self._give(request, self._facts_at(request, 3), request[ARG + 2], pack_stat_32)

    def statx(self, request: Request) -> int | None:
        return self._give(request, self._facts_at(request, 2), request[ARG + 4], pack_statx)

    def _facts_at(self, request: Request, flags_index: int) -> Facts | None:
        """For the *at calls: dirfd, path, flags; an empty path means the descriptor itself."""
        dirfd, flags = request[ARG] & 0xFFFFFFFF, request[ARG + flags_index]
        process = self.supervisor.processes.get(request[1])
        itself = flags & AT_EMPTY_PATH and dirfd in self.supervisor.reserved
        if itself and process.read_some(request[ARG + 1], 1) in (b"\0", b""):
            token = process.token(request[1], dirfd)
            return None if token is None else self.token_facts(token)
        empty = bool(flags & AT_EMPTY_PATH)
        path = self.interesting(request, dirfd, request[ARG + 1], empty=empty)
        return self._facts(request, path, not flags & AT_SYMLINK_NOFOLLOW)

    def access(self, request: Request) -> int | None:
        return self._access(request, None, request[ARG], request[ARG + 1], 0)

    def faccessat(self, request: Request) -> int | None:
        dirfd = request[ARG] & 0xFFFFFFFF
        return self._access(request, dirfd, request[ARG + 1], request[ARG + 2], 0)

    def faccessat2(self, request: Request) -> int | None:
        dirfd = request[ARG] & 0xFFFFFFFF
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
        return self._statfs(request, request[ARG + 1], pack_statfs)

    def statfs_32(self, request: Request) -> int | None:
        return self._statfs(request, request[ARG + 1], pack_statfs_old)

    def statfs64(self, request: Request) -> int | None:
        return self._statfs(request, request[ARG + 2], pack_statfs_32)

    def _statfs(
        self, request: Request, address: int, pack: Callable[[str, bool], bytes]
    ) -> int | None:
        path = self.interesting(request, None, request[ARG])
        if path is None or not self._is_ours(path):
            return None
        found = self._find(path)
        process = self.supervisor.processes.get(request[1])
        process.memory.write(address, pack(found.real, path.startswith("/sys/")))
        return 0

    # -- links, attributes, working folder --------------------------------------------------------

    def readlink(self, request: Request) -> int | None:
        return self._readlink(request, None, ARG)

    def readlinkat(self, request: Request) -> int | None:
        return self._readlink(request, request[ARG] & 0xFFFFFFFF, ARG + 1)

    def _readlink(self, request: Request, dirfd: int | None, at: int) -> int | None:
        path = self.interesting(request, dirfd, request[at])
        if path is None:
            return None
        process = self.supervisor.processes.get(request[1])
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
        size = request[at + 2] & 0xFFFFFFFF
        if not 0 < size < 1 << 31:
            raise OSError(errno.EINVAL, f"buffer of {size} bytes")
        data = os.fsencode(target)[:size]
        process.memory.write(request[at + 1], data)
        return len(data)

    def _tree_link(self, request: Request, path: str) -> str | None:
        """/proc/self/fd/N of a folder or file of the tree, under the name that the program knows."""
        found = self._descriptor(request, path)
        if found is None:
            return None
        try:
            return self.tree.virtual(os.readlink("/proc/{}/fd/{}".format(*found)))
        except OSError:
            return None

    def getxattr(self, request: Request) -> int | None:
        return self._getxattr(request, True)

    def lgetxattr(self, request: Request) -> int | None:
        return self._getxattr(request, False)

    def _getxattr(self, request: Request, follow: bool) -> int | None:
        path = self.interesting(request, None, request[ARG])
        if path is None:
            return None
        if self._is_ours(path):
            self._find(path, follow=follow)
            raise OSError(ENODATA, f"{path} has no extended attributes")
        if not self.displaced:
            return None
        process = self.supervisor.processes.get(request[1])
        name = process.read_some(request[ARG + 1], 256).split(b"\0")[0]
        return self._attributes(
            request, os.getxattr(self._host(process, path), name, follow_symlinks=follow), ARG + 2
        )

    def listxattr(self, request: Request) -> int | None:
        return self._listxattr(request, True)

    def llistxattr(self, request: Request) -> int | None:
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
        process = self.supervisor.processes.get(request[1])
        names = os.listxattr(self._host(process, path), follow_symlinks=follow)
        return self._attributes(request, b"".join(os.fsencode(n) + b"\0" for n in names), ARG + 1)

    def _attributes(self, request: Request, data: bytes, at: int) -> int:
        """Into the buffer whose address and size are arguments ``at``; size 0 asks how much there is."""
        size = request[at + 1]
        if size:
            if len(data) > size:
                raise OSError(errno.ERANGE, f"{len(data)} bytes of attributes")
            self.supervisor.processes.get(request[1]).memory.write(request[at], data)
        return len(data)

    def chdir(self, request: Request) -> int | None:
        process = self.supervisor.processes.get(request[1])
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
        """Whether the kernel is going to refuse to change into it."""
        return not (os.path.isdir(path) and os.access(path, os.X_OK))

    def fchdir(self, request: Request) -> int | None:
        process = self.supervisor.processes.get(request[1])
        folder = b"/proc/%d/fd/%d" % (request[1], request[ARG] & 0xFFFFFFFF)
        if not (process.virtual_cwd and self._no_folder(folder)):
            process.forget_cwd()
        return None

    def getcwd(self, request: Request) -> int | None:
        process = self.supervisor.processes.get(request[1])
        cwd = process.cwd if process.virtual_cwd else self.tree.virtual(process.cwd)
        if not cwd:
            return None
        data = os.fsencode(cwd) + b"\0"
        if len(data) > request[ARG + 1]:
            raise OSError(errno.ERANGE, cwd)
        process.memory.write(request[ARG], data)
        return len(data)

    def execve(self, request: Request) -> int | None:
        processes = self.supervisor.processes
        processes.exec_begins(processes.get(request[1]), request[1])
        return None
