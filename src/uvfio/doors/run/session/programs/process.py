"""One program of a run: its address space, its descriptors, its working folder. Implements the ``Task`` seam.

What is remembered of it from one call to the next, and until when, is in ``processes.py``, which keeps that true. The
table of descriptors (``files``) caches numbers of the reserved range only: there every change is a trapped call. A
process whose table is shared with another one caches nothing.

What this does not do: find the process of a thread, or notice that one has ended.
"""

from __future__ import annotations

import errno
import os
import resource
from typing import TYPE_CHECKING, Protocol

from uvfio.core.seams import Mm
from uvfio.doors.run.linux import proc
from uvfio.doors.run.linux import syscalls as sc
from uvfio.doors.run.linux.memory import ProgramMemory, Unreadable, UserMemory
from uvfio.doors.run.linux.proc import scarce
from uvfio.doors.run.session.programs.numbers import free_number
from uvfio.doors.run.session.reactor import EventFd
from uvfio.errors import BadAddress, BadDescriptor
from uvfio.uapi.linux import CAP_IPC_LOCK

if TYPE_CHECKING:
    from collections.abc import Callable

    from uvfio.doors.run.linux.file_memory import FileMemory
    from uvfio.doors.run.session.reactor import Reactor
    from uvfio.doors.run.session.tokens import Token, Tokens
    from uvfio.fops.file import File

__all__ = ["CHECKS", "Process"]

PAGES_KEPT = 4096
CHECKS = 64


class Keeper(Protocol):
    """What a process asks of the run (``Processes``)."""

    reactor: Reactor
    tokens: Tokens
    reserved: range
    memlock: int | None
    cachers: set[Process]
    by_tgid: dict[int, Process]
    install: Callable[[Process, File, bool], int]

    def thread_of(self, tgid: int) -> int:
        """A living thread of the process."""

    def find_mm(self, process: Process) -> None:
        """Give it the Mm of a process with the same memory, if there is one."""

    def reclaim(self) -> None:
        """Close descriptors that can be opened again."""


class Process:
    """One thread group under the filter."""

    __slots__ = (
        "_checks",
        "_cwd",
        "_mm",
        "_space",
        "_user",
        "cacheable",
        "changing",
        "complained",
        "distinct",
        "exec_mark",
        "exec_space",
        "execs",
        "files",
        "locks",
        "parent",
        "pidfd",
        "processes",
        "tgid",
        "tids",
        "trusted",
        "used",
        "virtual_cwd",
    )

    def __init__(self, processes: Keeper, tgid: int, parent: int) -> None:
        self.processes = processes
        self.tgid = tgid
        self.parent = parent
        self.pidfd = -1
        self.tids: set[int] = {tgid}
        self.files: dict[int, File] = {}
        self.cacheable = True
        self.distinct: set[Process] = set()  # of those that cache: they have another table
        self.used = False
        self.complained = False
        self.changing: dict[int, range] = {}  # by thread: the numbers that its call may change
        self.execs: set[int] = set()  # the threads in an execve
        self.exec_mark = b""
        self.exec_space: ProgramMemory | None = None
        self.locks = False
        self.virtual_cwd = ""
        self.trusted: dict[int, int] = {}
        self._checks: dict[int, int] = {}
        self._cwd = ""
        self._space: ProgramMemory | None = None
        self._user: UserMemory | None = None
        self._mm: Mm | None = None

    @property
    def thread(self) -> int:
        """The thread that is calling now, else the main one. That may have ended before the others (pthread_exit), and
        has no memory and no descriptors then."""
        return self.processes.thread_of(self.tgid)

    # -- memory ----------------------------------------------------------------------------------

    @property
    def space(self) -> ProgramMemory:
        """The present address space. Unreadable, BadAddress."""
        space = self._space
        if space is None:
            try:
                space = self._space = self._open_space()
                space.locks = self.locks
            except PermissionError as error:
                raise Unreadable.because(self.tgid, "read its memory") from error
            except FileNotFoundError as error:
                raise BadAddress(f"process {self.tgid} is gone") from error
        return space

    def _open_space(self) -> ProgramMemory:
        is_device = self.processes.tokens.is_device
        try:
            space = ProgramMemory(self.tgid, is_device)
            if not scarce(space.fd):
                return space
            del space
        except OSError as error:
            if error.errno != errno.EMFILE:
                raise
        self.processes.reclaim()
        return ProgramMemory(self.tgid, is_device)

    @property
    def memory(self) -> UserMemory:
        """The memory as the process itself may use it."""
        if self._user is None:
            tgid, processes = self.tgid, self.processes  # no cycle: it must end with us
            self._user = UserMemory(tgid, self.space, lambda: processes.thread_of(tgid))
        return self._user

    def peek(self, address: int) -> bytes:
        """Up to 256 bytes at ``address``, or nothing if one read does not give them."""
        if self._space is None:
            return b""
        try:
            return os.pread(self._space.fd, 256, address)
        except (OSError, OverflowError):
            return b""

    def read_some(self, address: int, size: int) -> bytes:
        """Up to ``size`` bytes, as far as they are mapped; empty for none."""
        for _ in range(2):
            space = self.space
            try:
                data = os.pread(space.fd, size, address)
            except (OSError, OverflowError):
                return b""
            if data or self.used:
                return data
            self.forget_space()  # perhaps bound to the image before an exec
        return b""

    @property
    def mm(self) -> Mm:
        """The caller's address space."""
        if not self.used:
            self.use()
        if self._mm is None:
            self._mm = Mm(self.space, f"pid {self.tgid}")
        return self._mm

    def begins_to_lock(self) -> None:
        """The image calls mlock(2) or its kin: from now on what it has locked is read where it counts."""
        self.locks = True
        if self._space is not None:
            self._space.locks = True

    def share_mm(self, other: Process) -> None:
        """A vfork child runs in its parent's memory until it executes something."""
        self._mm = other.mm
        self._space = other.space
        self.locks = other.locks
        self.used = True

    def use(self) -> None:
        """The process uses VFIO from now on."""
        self.used = True
        if self._mm is None:
            self.processes.find_mm(self)

    def new_image(self) -> None:
        """An exec happened: another address space; close-on-exec descriptors are gone."""
        self.files.clear()
        self.forget_space()
        self.locks = False
        self._mm = None
        self.used = False
        self.execs.clear()
        self.exec_mark, self.exec_space = b"", None
        self.changing.clear()
        self.cacheable = True

    def forget_space(self) -> None:
        """Open the present address space again at its next use."""
        self._space = None
        self._user = None
        self.trusted.clear()
        self._checks.clear()

    def checked(self, page: int) -> None:
        """A write to this page (address >> 12) succeeded with the program's own rights.

        After ``CHECKS`` of them the next ``CHECKS`` are made without asking for rights, and so on. A program that takes
        the right to write from a page that it used that often still gets up to ``CHECKS`` answers there.
        """
        if len(self._checks) >= PAGES_KEPT:
            self._checks.clear()
            self.trusted.clear()
        checks = self._checks[page] = self._checks.get(page, 0) + 1
        if checks >= CHECKS:
            self.trusted[page] = CHECKS

    # -- descriptors (Task) ------------------------------------------------------------------------

    def file(self, fd: int) -> object:
        """The VFIO file behind ``fd``, or for any other file its name in /proc. Raises BadDescriptor if it is
        closed."""
        found = self.lookup(self.thread, fd)
        if found is not None:
            return found
        try:
            return os.readlink(f"/proc/{self.thread}/fd/{fd}")
        except OSError as error:
            raise BadDescriptor(f"descriptor {fd} is not open") from error

    def token(self, tid: int, fd: int) -> Token | None:
        """The token behind a descriptor, from /proc; None for any other file. Unreadable."""
        try:
            found = os.stat(f"/proc/{tid}/fd/{fd}")
        except PermissionError as error:
            raise Unreadable.because(self.tgid, "see its descriptors") from error
        except OSError:
            return None
        return self.processes.tokens.find(found.st_dev, found.st_ino)

    def lookup(self, tid: int, fd: int) -> File | None:
        """The VFIO file behind descriptor ``fd`` of thread ``tid``, or None for anything else."""
        file = self.files.get(fd)
        if file is not None:
            return file
        token = self.token(tid, fd)
        if token is None or not token.files:
            return None
        file = token.file
        self.cache(fd, file)
        return file

    def cache(self, fd: int, file: File) -> None:
        """Remember what ``fd`` means, if each change of it will be seen."""
        if not self.used:
            self.use()
        if (
            fd in self.processes.reserved
            and self.cacheable
            and not self.execs
            and not self.is_changing(fd)
        ):
            self.processes.cachers.add(self)
            self.files[fd] = file

    def is_changing(self, fd: int) -> bool:
        """Whether a call that may change what ``fd`` means has been answered and may not have returned."""
        for tid, numbers in list(self.changing.items()):
            if fd in numbers:
                if sc.is_thread(self.tgid, tid):
                    return True
                del self.changing[tid]
        return False

    def install(self, file: object, cloexec: bool) -> int:
        """Give the caller a new descriptor for ``file``. TooManyFiles, NoSpace, NoMemory."""
        return self.processes.install(self, file, cloexec)  # type: ignore[arg-type]

    def event(self, fd: int) -> EventFd:
        """A reference of our own to the caller's eventfd. BadDescriptor if closed, InvalidArgument if no eventfd."""
        return EventFd(self._take(fd), self.processes.reactor, self.processes.by_tgid.keys)

    def _take(self, fd: int) -> int:
        """``copy_descriptor``, with conditions for errors."""
        try:
            return self.copy_descriptor(fd)
        except OSError as error:
            if error.errno in (errno.EPERM, errno.EACCES):
                raise Unreadable(
                    f"cannot take descriptor {fd} of process {self.tgid}: {error.strerror}",
                    "run `uvfio check`; containers need --cap-add SYS_PTRACE",
                ) from error
            if error.errno not in (errno.EBADF, errno.ESRCH):
                raise
            raise BadDescriptor(f"descriptor {fd} is not open") from error

    def copy_descriptor(self, fd: int) -> int:
        """A copy here of the process's descriptor ``fd``; OSError as pidfd_getfd(2) gives it."""
        thread = self.thread
        try:
            return sc.pidfd_getfd(self.pidfd, fd)
        except OSError as error:
            if error.errno not in (errno.EBADF, errno.ESRCH) or thread == self.tgid:
                raise
            by_thread = os.pidfd_open(thread, sc.PIDFD_THREAD)
        try:
            return sc.pidfd_getfd(by_thread, fd)
        finally:
            os.close(by_thread)

    def file_memory(self, fd: int) -> FileMemory:
        """The file behind ``fd`` as memory; a VFIO file cannot be used so. Raises BadDescriptor."""
        from uvfio.doors.run.linux.file_memory import FileMemory

        ours = self.lookup(self.thread, fd) is not None
        return FileMemory(self._take(fd), usable=not ours)

    def memlock_limit(self) -> int | None:
        """The run's ``--memlock``, else the program's RLIMIT_MEMLOCK in bytes; None without a limit (infinity,
        CAP_IPC_LOCK)."""
        if self.processes.memlock is not None:
            return self.processes.memlock
        try:
            soft, _ = resource.prlimit(self.tgid, resource.RLIMIT_MEMLOCK)
        except PermissionError:  # of another user, and this one has no CAP_SYS_RESOURCE
            if self._may_lock():
                return None
            soft, _ = proc.limits(self.tgid, b"Max locked memory")
        if soft == resource.RLIM_INFINITY or self._may_lock():
            return None
        return soft

    def _may_lock(self) -> bool:
        try:
            return bool(sc.effective_capabilities(self.thread) >> CAP_IPC_LOCK & 1)
        except OSError:
            return False  # it has ended

    def free_number(self, least: int = 0) -> int | None:
        """A free descriptor of the reserved range, not below ``least`` (``numbers.py``); None if there is none."""
        return free_number(self, self.thread, self.processes.reserved, least)

    # -- paths -------------------------------------------------------------------------------------

    @property
    def cwd(self) -> str:
        """The folder that relative paths start from, as the program sees it."""
        if self.virtual_cwd:
            return self.virtual_cwd
        if self._cwd:
            return self._cwd
        try:
            cwd = os.readlink(f"/proc/{self.thread}/cwd")
        except OSError:
            return "/"
        if len(self.tids) == 1:  # another thread may be changing it, after its call was passed on
            self._cwd = cwd
        return cwd

    def forget_cwd(self) -> None:
        """The program changes its working folder."""
        self._cwd = self.virtual_cwd = ""
