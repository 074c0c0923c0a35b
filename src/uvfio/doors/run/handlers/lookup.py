"""Which file the path of a call means: one of the machine's, or one of the host's that the kernel may have to be
given another path for.

Programs make thousands of path calls on other files, so the order is: read the path, compare its first bytes, let the
kernel run the call. Only what may lead into the machine's folders is examined further, component by component:

    absolute, below a prefix of the machine's           the machine's
    relative                                            joined to the folder that it starts from: the working folder,
                                                        or that of a descriptor
    /proc/self/root, cwd, fd/N and a task's; /dev/fd/N  what they lead to, for tasks of this run
    the private folder of ``Tree``, by its own name     the machine's file that it shows

``..`` in a folder of the machine is the folder above it, after links. In a folder of the host that is no ancestor of
the machine's it is the folder above by name: ``X/..`` is where X is. That only matters for paths that come back into
the machine's folders; for all others the kernel gets what the program wrote.

A path of the host is *displaced* if the kernel would not resolve it as the program means it, because it passes through
a folder that exists only here. Its equivalent is absolute, and is what the program wrote from where it left the
machine's folders. The handler lets the program repeat its call with that (``session/repeat.py``).

Invariants: nothing of the host is opened, stat-ed or resolved here; nothing of the program changes; a path that cannot
be read is the kernel's to refuse.

What this does not do: answer a call. ``Paths`` and ``Changes`` do. A link of the host into the machine's folders is
not followed: the kernel resolves it, and finds the host's.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, NamedTuple

from uvfio.doors.run.filter.rules import ARG, INT
from uvfio.doors.run.linux import rights
from uvfio.doors.run.linux import syscalls as sc
from uvfio.doors.run.session.redirect import Redirect
from uvfio.machine.sysfs.tree import PREFIXES
from uvfio.uapi import linux
from uvfio.uapi.linux import PATH_MAX

if TYPE_CHECKING:
    from uvfio.doors.run.filter.rules import Request
    from uvfio.doors.run.session.programs.process import Process
    from uvfio.doors.run.session.session import Session
    from uvfio.doors.run.session.tokens import Token
    from uvfio.doors.run.session.tree import Found

__all__ = ["MODULES", "Lookup", "Place"]

AT_FDCWD = linux.AT_FDCWD & INT  # as the low word of an argument

MODULES = "/sys/module"  # the host's, but its listing shows the machine's modules as well
NAMES = tuple(prefix.decode() for prefix in PREFIXES)
STANDARD = {"stdin": "0", "stdout": "1", "stderr": "2"}  # in /dev: links to /proc/self/fd/N
WATCHED = (*PREFIXES, MODULES.encode(), b"/proc/", b"/dev/fd/", b"/dev/std")
ROOTS = (
    b"dev",
    b"sys",
    b"proc",
)  # a path with .. that has none of these cannot enter the machine's folders


class Place(NamedTuple):
    """What a path means. ``path`` is absolute; a slash at its end, which asks for a folder, stays.

    ``ours``: it is the machine's, ``path`` without ``.``, ``..`` and ``//``. ``displaced``: it is the host's, and the
    kernel needs ``path`` to find it. ``descriptor`` is a task and its descriptor that the path leads to through /proc.
    ``private``: it is in the folder that holds the tree, outside what programs are shown of it.
    """

    path: str
    ours: bool
    displaced: bool = False
    descriptor: tuple[int, int] | None = None
    private: bool = False


class Lookup:
    """Resolves the paths of calls."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.tree = session.tree
        self.by_tid = session.processes.by_tid
        self.discover = session.processes.discover
        self.private = session.tree.path
        self.watched = (*WATCHED, os.fsencode(self.private))
        self.roots = (*ROOTS, os.path.basename(os.fsencode(self.private)))

    # -- which file is it? -----------------------------------------------------------------------

    def interesting(
        self,
        request: Request,
        dirfd: int | None,
        address: int,
        *,
        follow: bool = True,
        empty: bool = False,
    ) -> Place | None:
        """What the path at ``address`` means, or None if the kernel finds it by itself, or cannot read it.

        ``follow``: the call follows a link at the end of the path. With ``empty`` an empty path means ``dirfd`` itself.
        OSError as the kernel would give it for a path through the machine's folders.
        """
        process = self.by_tid.get(request[1]) or self.discover(request[1])
        seen = process.peek(address)
        if (
            seen[:1] == b"/"
            and not seen.startswith(self.watched)
            and b"/." not in seen
            and b"//" not in seen
            and b"\0" in seen
        ):
            return None  # nearly all paths; what follows the NUL can only cause a closer test
        raw = self.read_path(process, address)
        if raw is None or not (raw or empty) or request[1] in self.session.repeating:
            return None
        if raw.startswith(b"/"):
            dotted = b"/." in raw or b"//" in raw
            if not dotted and raw.startswith(PREFIXES):
                path = raw.decode("utf-8", "surrogateescape")
                if _is_named(path):
                    return Place(path, True)
            if not (raw.startswith(self.watched) or (dotted and self._may_enter(raw))):
                return None
            return self._walk(request, process, [], False, raw, follow)
        start = self._start(request, process, dirfd, raw)
        return None if start is None else self._walk(request, process, *start, raw, follow)

    def _may_enter(self, raw: bytes) -> bool:
        """Whether a path with ``.``, ``..`` or ``//`` has a component that leads to the machine's folders."""
        return any(root in raw for root in self.roots)

    @staticmethod
    def read_path(process: Process, address: int) -> bytes | None:
        """The string at ``address``, or None if the kernel would not take it for a path."""
        raw = process.read_some(address, 256)
        end = raw.find(b"\0")
        if end < 0 and len(raw) == 256:
            raw = process.read_some(address, PATH_MAX)
            end = raw.find(b"\0")
        return None if end < 0 else raw[:end]

    def _start(
        self, request: Request, process: Process, dirfd: int | None, raw: bytes
    ) -> tuple[list[str], bool] | None:
        """The folder that a relative path starts from, and whether the kernel takes another one for it. None if the
        path cannot lead into the machine's folders."""
        if dirfd is None or dirfd == AT_FDCWD:
            if process.virtual_cwd:
                return _parts(process.virtual_cwd), True
            base = process.cwd
        else:
            try:
                base = os.readlink(f"/proc/{request[1]}/fd/{dirfd}")
            except OSError:
                return None
        inside = self.shown(base)
        if inside is not None:
            return _parts(inside), True
        above = base == "/" or base.startswith(("/dev", "/sys", "/proc"))
        near = self.private.startswith(base) or base.startswith(self.private)
        if not (above or near or b".." in raw):
            return None
        return _parts(base), False

    def _walk(
        self,
        request: Request,
        process: Process,
        parts: list[str],
        elsewhere: bool,
        raw: bytes,
        follow: bool,
        floor: tuple[int, int] = (0, 0),
    ) -> Place | None:
        """Resolve ``raw`` from the folder ``parts``. ``elsewhere``: the kernel would begin in another folder.

        ``floor`` is for RESOLVE_BENEATH and RESOLVE_IN_ROOT: which of them, and of how many components the folder is
        that the path may not leave.
        """
        names = raw.decode("utf-8", "surrogateescape").split("/")
        # The host's part of the path: the folder that the program named or left to, and what it wrote from there on.
        left, rest = list(parts), 0
        root: list[str] = []  # the program's name of the / of ``parts``: /proc/self/root
        descriptor = None
        resolve, least = floor
        last = max((at for at, name in enumerate(names) if name not in ("", ".")), default=-1)
        slash = last < len(names) - 1
        for at, name in enumerate(names):
            if name in ("", "."):
                continue
            if name == "..":
                if resolve and len(parts) <= least:
                    if resolve & sc.RESOLVE_BENEATH and elsewhere:
                        raise OSError(errno.EXDEV, "the path leaves the folder that it starts from")
                elif self._ours(parts):
                    elsewhere = True
                    parts = self._resolve(parts)[:-1]
                    if not self._ours(parts):
                        left, rest = [*root, *parts], at + 1
                else:
                    parts = parts[:-1]
                continue
            parts = [*parts, name]
            ends = at == last and not slash
            if ends and not follow:
                continue
            if parts[0] in ("proc", "dev"):
                led = self._through_proc(request, process, parts)
                if led is None:
                    continue
                target, moved = led
                if isinstance(target, int):
                    descriptor = (target, moved) if ends else None
                else:
                    root = [] if target else [*root, *parts]
                    parts = target
                    if moved:
                        elsewhere, left, rest = True, list(parts), at + 1
        inside = self.shown("/" + "/".join(parts))
        if inside is not None:
            parts = _parts(inside)
        if self._ours(parts):
            path = "/" + "/".join(parts)
            return Place(path + "/" if slash else path, True)
        known = "/" + "/".join(parts)
        private = self.is_private(known)
        if elsewhere:
            path = "/".join(["", *left[least:], *(n for n in names[rest:] if n)]) or "/"
            path = path + "/" if slash and path != "/" else path
            return Place(path, False, True, private=private)
        if descriptor is not None or private or known.startswith(("/proc/", "/dev/fd/", MODULES)):
            return Place(known, False, False, descriptor, private)
        return None

    def _through_proc(
        self, request: Request, process: Process, parts: list[str]
    ) -> tuple[int, int] | tuple[list[str], bool] | None:
        """What a link of /proc, or of /dev into it, leads to: the task and number of a descriptor, or a folder and
        whether the kernel would go elsewhere. None for anything else."""
        match parts:
            case ["dev", "fd", number]:
                who, kind = "self", "fd"
            case ["dev", name] if name in STANDARD:
                who, kind, number = "self", "fd", STANDARD[name]
            case ["proc", who, "fd" as kind, number] | [
                "proc",
                _,
                "task",
                who,
                "fd" as kind,
                number,
            ]:
                pass
            case ["proc", who, "root" | "cwd" as kind] | [
                "proc",
                _,
                "task",
                who,
                "root" | "cwd" as kind,
            ]:
                number = "0"
            case _:
                return None
        if who in ("self", "thread-self"):
            who = str(request[1])
        if not (who.isascii() and who.isdigit() and number.isascii() and number.isdigit()):
            return None
        if kind == "fd":
            return self._through_descriptor(request[1], int(who), int(number))
        other = self.session.processes.by_tgid.get(int(who))
        if int(who) in (request[1], process.tgid):
            other = process
        if other is None or not self._may_follow(request[1], process, other):
            return None
        if kind == "root":
            return [], False
        inside = self.shown(other.cwd)
        return _parts(inside or other.cwd), bool(other.virtual_cwd) or inside is not None

    @staticmethod
    def _may_follow(tid: int, process: Process, other: Process) -> bool:
        """Whether the caller may follow links of ``other`` in /proc. If not the kernel refuses."""
        return other is process or rights.may_inspect(tid, other.tgid)

    def _through_descriptor(
        self, tid: int, task: int, number: int
    ) -> tuple[int, int] | tuple[list[str], bool]:
        try:
            inside = self.shown(os.readlink(f"/proc/{task}/fd/{number}"))
        except OSError:
            return task, number
        if inside is None or not rights.may_inspect(tid, task):
            return task, number
        return _parts(inside), True

    def _resolve(self, parts: list[str]) -> list[str]:
        """Resolve links of the tree, since ``..`` is the folder above their target. OSError as the kernel gives it."""
        path = "/" + "/".join(parts)
        return _parts(self.tree.virtual(self.tree.find(path + "/").real) or path)

    @staticmethod
    def _ours(parts: list[str]) -> bool:
        return _is_named("/" + "/".join(parts))

    def shown(self, real: str) -> str | None:
        """The program's name for a real path of the tree. None outside, and for the tree's folders above the machine's:
        a program gets there by the private folder's own name only, and does not mean the host's /dev and /sys."""
        inside = self.tree.virtual(real)
        return inside if inside == MODULES or (inside and self._ours(_parts(inside))) else None

    def is_private(self, path: str) -> bool:
        """Whether ``path`` is the folder that holds the tree, or in it."""
        return path == self.private or path.startswith(self.private + "/")

    # -- what handlers do with it ------------------------------------------------------------------

    def token_of(self, request: Request, place: Place) -> Token | None:
        """The token that a path through /proc means. EACCES if the caller may not see the task's descriptors."""
        if place.descriptor is None:
            return None
        token = self.session.processes.get(request[1]).token(*place.descriptor)
        if token is not None and not rights.may_inspect(request[1], place.descriptor[0]):
            raise OSError(errno.EACCES, f"task {place.descriptor[0]} belongs to another user")
        return token

    def own(self, request: Request, at: int, *, follow: bool = True) -> str | None:
        """The machine's path that index ``at`` of the request means; None lets the kernel run the call. Redirect if it
        needs another path."""
        place = self.interesting(request, None, request[at], follow=follow)
        if place is None or place.ours:
            return None if place is None else place.path
        self.go_elsewhere(place, at - ARG)
        return None

    @staticmethod
    def go_elsewhere(place: Place, argument: int) -> None:
        """For a path of the host: None lets the kernel run the call; Redirect if it needs the equivalent path."""
        if place.displaced:
            raise Redirect({argument: os.fsencode(place.path)})

    def link_of_proc(self, request: Request, process: Process, place: Place) -> str | None:
        """What a link of /proc to a served file, or to a file or folder of the tree, shows; None for any other."""
        parts = _parts(place.path)
        if parts[:1] != ["proc"] and parts[:2] != ["dev", "fd"]:
            return None
        led = self._through_proc(request, process, parts)
        if led is None:
            return None
        target, moved = led
        if not isinstance(target, int):
            return "/" + "/".join(target) if moved else None
        token = self.token_of(request, place._replace(descriptor=(target, moved)))
        return None if token is None else token.file.name

    def within(
        self, request: Request, dirfd: int | None, address: int, follow: bool, resolve: int
    ) -> Place | None:
        """``interesting`` for a path that may not leave the folder it starts from (RESOLVE_BENEATH, RESOLVE_IN_ROOT):
        in a folder of the machine the kernel resolves it there. EXDEV if it leaves a folder of the host through one of
        the machine's."""
        process = self.session.processes.get(request[1])
        raw = self.read_path(process, address)
        if not raw:
            return None
        start = self._start(request, process, dirfd, raw)
        if start is None:
            return None
        parts, elsewhere = start
        if elsewhere:
            real = self.tree.find_below("/" + "/".join(parts), raw, resolve, follow=follow).real
            return Place(self.tree.virtual(real) or "/", True)
        if raw.startswith(b"/") and resolve & sc.RESOLVE_BENEATH:
            return None  # EXDEV
        return self._walk(request, process, parts, False, raw, follow, (resolve, len(parts)))

    def find(
        self, path: str, *, follow: bool = True, creating: bool = False, resolve: int = 0
    ) -> Found:
        """The machine's file at ``path``, as it is now. OSError as the kernel would give it; EACCES for a name that
        does not exist when ``creating``."""
        self.session.settle()
        try:
            return self.tree.find(path, follow=follow, resolve=resolve)
        except FileNotFoundError:
            if creating:
                raise OSError(
                    errno.EACCES, f"{path}: the machine's folders are read-only"
                ) from None
            raise


def _is_named(path: str) -> bool:
    """Whether ``path``, without ``.``, ``..`` and ``//``, is one of the machine's names or below it."""
    return path.startswith(NAMES) and any(
        path == name or path.startswith(f"{name}/") for name in NAMES
    )


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part]
