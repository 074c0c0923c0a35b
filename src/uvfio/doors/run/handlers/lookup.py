"""Which path a call means, and whether it may be the machine's.

Programs make thousands of path calls on other files, so the order is: read the path, compare its
first bytes, let the kernel run the call. Only what may lead into the machine's folders is examined further:

    absolute, begins with a prefix of the machine's     the machine's (after collapsing //, . and ..)
    /proc/self/fd/N, /dev/fd/N of a token               the machine's
    relative                                            joined to the program's working folder first

Invariants: nothing of the program changes; a path that cannot be read is the kernel's to refuse.

What this does not do: answer a call. ``Paths`` does.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from uvfio.doors.run.filter.rules import INT
from uvfio.machine.sysfs.tree import PREFIXES
from uvfio.uapi import linux
from uvfio.uapi.linux import PATH_MAX

if TYPE_CHECKING:
    from uvfio.doors.run.filter.rules import Request
    from uvfio.doors.run.session.processes import Process
    from uvfio.doors.run.session.session import Session
    from uvfio.doors.run.session.tokens import Token
    from uvfio.doors.run.session.tree import Found

__all__ = ["MODULES", "Lookup"]

AT_FDCWD = linux.AT_FDCWD & INT  # as the low word of an argument

MODULES = "/sys/module"  # the host's, but its listing shows the machine's modules as well
NAMES = tuple(prefix.decode() for prefix in PREFIXES)
WATCHED = (*PREFIXES, MODULES.encode(), b"/proc/", b"/dev/fd/")


class Lookup:
    """Resolves the paths of calls.

    ``displaced`` belongs to the path that ``interesting`` returned last: the kernel would not resolve it as the
    program means it, because it starts from a folder that exists only here.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self.tree = session.tree
        self.displaced = False
        self.by_tid = session.processes.by_tid
        self.discover = session.processes.discover

    # -- which path is it? -----------------------------------------------------------------------

    def interesting(
        self, request: Request, dirfd: int | None, address: int, *, empty: bool = False
    ) -> str | None:
        """The absolute path if it may be the machine's, else None: also for one that cannot be read.

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
            return None  # nearly all paths; what follows the NUL can only cause a closer test
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
        """A relative path made absolute; "" when it cannot be the machine's."""
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
        """Resolve links of the tree, since ``..`` is the folder above their target. OSError as the kernel gives it."""
        path = "/" + "/".join(parts)
        if not self._is_ours(path):
            return parts
        return (self.tree.virtual(self.tree.find(path + "/").real) or path).split("/")[1:]

    @staticmethod
    def _host(process: Process, path: str) -> str:
        """``path`` of the host as it is here: /proc/self of the program is another process for the supervisor."""
        return f"/proc/{process.tgid}{path[10:]}" if path.startswith("/proc/self/") else path

    def _is_ours(self, path: str) -> bool:
        return any(path == prefix or path.startswith(prefix + "/") for prefix in NAMES)

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
        return None if found is None else self.session.processes.get(request[1]).token(*found)

    def _find(self, path: str, *, follow: bool = True, creating: bool = False) -> Found:
        self.session.settle()
        try:
            return self.tree.find(path, follow=follow)
        except FileNotFoundError:
            if creating:
                raise OSError(
                    errno.EACCES, f"{path}: the machine's folders are read-only"
                ) from None
            raise
