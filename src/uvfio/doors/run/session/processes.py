"""The programs of a run: the process of each task, its descriptors, its ``Mm``.

A notification names a thread by its number, and of that the kernel guarantees one thing: the thread waits until it is
answered. ``Processes.get`` finds its ``Process`` (a dictionary on the hot path). Everything that is remembered from one
call to the next ends with an event that is seen before it is used again:

    what is remembered            until
    thread number -> process      the thread ends: a pidfd, asked after each RECV (``endings.py``); an exec of the
                                  process. Without a pidfd it is asked at each use whether the process has the thread
    process number -> process     the process ends (its pidfd, likewise)
    number -> file (``files``)    a call that may change the number is notified (close, dup2, exec...), and it stays
                                  unknown until that call has returned; the file is released
    whose table is shared         a call that changes a table compares it with those that are cached (kcmp(2))
    ``space``, ``Mm``,            an exec. At first use the Mm is compared with those of others (kcmp(2))
    ``writable``
    ``cwd``                       chdir, fchdir

A call that is continued takes effect after its answer, and other threads call meanwhile. The calling thread's next
call shows that it has returned: ``begins`` notes what it may change and moves the thread from ``by_tid`` to
``returning``, so that ``discover`` sees that call. Until then these numbers are neither cached nor handed out.

An execve may fail, and ends the other threads while they call. It is settled by a caller whose image (the 16 random
bytes that the kernel gives to each, read of the caller itself) is another one, or when each thread that began one has
called again, or has ended without an exec. Until then nothing is cached.

``Process`` implements the ``Task`` seam. Its table of descriptors caches numbers of the reserved range
only: there every change is a trapped call. A process whose descriptor table is shared with another one
caches nothing.

What this does not do: answer calls, or end a process.
"""

from __future__ import annotations

import errno
import os
import resource
from typing import TYPE_CHECKING

from uvfio.core.seams import Mm
from uvfio.doors.run.linux import proc
from uvfio.doors.run.linux import syscalls as sc
from uvfio.doors.run.linux.memory import ProgramMemory, Unreadable, UserMemory
from uvfio.doors.run.session.endings import Endings, scarce
from uvfio.doors.run.session.numbers import free_number
from uvfio.doors.run.session.reactor import EventFd
from uvfio.errors import BadAddress, BadDescriptor, NoSpace
from uvfio.uapi.linux import CAP_IPC_LOCK

if TYPE_CHECKING:
    from collections.abc import Callable

    from uvfio.doors.run.linux.file_memory import FileMemory
    from uvfio.doors.run.session.reactor import Reactor
    from uvfio.doors.run.session.tokens import Token, Tokens
    from uvfio.fops.file import File

__all__ = ["Process", "Processes", "Unreadable"]

PAGES_KEPT = 4096
CHECKS = 64


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
        "parent",
        "pidfd",
        "processes",
        "tgid",
        "tids",
        "trusted",
        "used",
        "virtual_cwd",
    )

    def __init__(self, processes: Processes, tgid: int, parent: int) -> None:
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

    def share_mm(self, other: Process) -> None:
        """A vfork child runs in its parent's memory until it executes something."""
        self._mm = other.mm
        self._space = other.space
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
        if not self._cwd:
            try:
                self._cwd = os.readlink(f"/proc/{self.thread}/cwd")
            except OSError:
                return "/"
        return self._cwd

    def forget_cwd(self) -> None:
        """The program changes its working folder."""
        self._cwd = self.virtual_cwd = ""


class Processes:
    """All processes of the run, by thread.

    ``reserved`` are the numbers of served files; ``install`` gives the caller of the current call a descriptor
    (``Session.install``); ``memlock`` replaces the RLIMIT_MEMLOCK of each program unless None. ``caller`` is the thread
    whose call is being answered; ``is_valid`` returns whether it still waits.
    """

    def __init__(
        self,
        reactor: Reactor,
        tokens: Tokens,
        reserved: range,
        *,
        install: Callable[[Process, File, bool], int],
        memlock: int | None = None,
        is_valid: Callable[[], bool] = lambda: True,
    ) -> None:
        self.reactor = reactor
        self.tokens = tokens
        self.reserved = reserved
        self.install = install
        self.memlock = memlock
        self.is_valid = is_valid
        self.endings = Endings(self.reclaim)
        reactor.watch(self.endings.fileno, self.endings.settle, wake=False)
        self.caller = 0
        self.by_tid: dict[int, Process] = {}
        self.by_tgid: dict[int, Process] = {}
        self.cachers: set[Process] = set()
        self.returning: dict[int, Process] = {}
        self._unwatched: dict[int, Process] = {}
        self._found: tuple[int, Process | None] = (0, None)

    def get(self, tid: int) -> Process:
        """The process of thread ``tid``."""
        process = self.by_tid.get(tid)
        return process if process is not None else self.discover(tid)

    def thread_of(self, tgid: int) -> int:
        """A thread of the process ``tgid``: the one that is calling now, or else its main thread."""
        caller = self.caller
        process = self.by_tid.get(caller)
        if process is None and self._found[0] == caller:
            process = self._found[1]
        return caller if process is not None and process.tgid == tgid else tgid

    def discover(self, tid: int) -> Process:
        """The process of a thread that is not in ``by_tid``. NoSpace if the caller was killed meanwhile, so that its
        number may be another's."""
        self.endings.settle()
        process = self.returning.pop(tid, None)
        if process is not None:
            process.changing.pop(tid, None)
            self.by_tid[tid] = process
            return process
        process = self._unwatched.get(tid)
        if process is not None and not sc.is_thread(process.tgid, tid):
            self._thread_ended(process, tid)
            process = None
        if process is None:
            process = self._identify(tid)
        process.changing.pop(tid, None)
        self._found = (tid, process)
        return process

    def _identify(self, tid: int) -> Process:
        tgid, parent = proc.group_and_parent(tid)
        known = self.by_tgid.get(tgid)
        process = known or self._enter(tgid, parent)
        if process.pidfd < 0:
            return process  # it is dying; another process may get its number
        watched = tid == tgid or self.endings.thread(tid, lambda: self._thread_ended(process, tid))
        if tid == self.caller and not self.is_valid():
            if not known:
                self.exited(process)
            elif watched and tid != tgid:
                self._thread_ended(process, tid)
            raise NoSpace(f"task {tid} was killed during its call")
        process.tids.add(tid)
        if process.execs and not self._settle_exec(process, tid):
            return process
        (self.by_tid if watched else self._unwatched)[tid] = process
        return process

    def begins(self, process: Process, tid: int, numbers: range) -> None:
        """Thread ``tid`` makes a call that the kernel runs, and that may change what ``numbers`` mean."""
        self.part(process)
        for number in [n for n in process.files if n in numbers]:
            del process.files[number]
        process.changing[tid] = numbers
        if self.by_tid.pop(tid, None) is not None:
            self.returning[tid] = process

    def exec_begins(self, process: Process, tid: int) -> None:
        """Thread ``tid`` calls execve; what it calls next shows whether that succeeded."""
        process.files.clear()
        if (
            not process.used
            and process.cacheable
            and not process.execs
            and proc.is_alone(process.tgid)
        ):
            process.new_image()  # nobody is left to call before it takes effect
            return
        if not process.execs:
            mark = proc.image_mark(tid)
            if not mark:
                return  # it was killed, and will not execute anything
            process.exec_mark = mark
            process.exec_space = None if mark == proc.SECRET else process.space
        process.execs.add(tid)
        self._drop_tids(process)

    @staticmethod
    def _settle_exec(process: Process, tid: int) -> bool:
        """Whether each exec that a thread of the process began is known to have succeeded or failed."""
        # The others end before an exec takes effect: if the caller's image is the old one after this, these failed.
        ended = {t for t in process.execs if t != tid and not sc.is_thread(process.tgid, t)}
        gone = process.exec_space is not None and process.exec_space.gone
        mark = proc.image_mark(tid)
        if not mark:
            return False  # the caller has been killed
        if gone or mark != process.exec_mark:
            process.new_image()
            return True
        process.execs -= ended | {tid}
        if not process.execs:
            process.exec_mark, process.exec_space = b"", None
        return not process.execs

    def exited(self, process: Process) -> None:
        """Forget a process that has ended."""
        self._drop_tids(process)
        if self._found[1] is process:
            self._found = (0, None)
        self.by_tgid.pop(process.tgid, None)
        if process in self.cachers:
            self.cachers.remove(process)
            for other in self.by_tgid.values():
                other.distinct.discard(process)
        if process.pidfd >= 0:
            self.endings.forget(process.pidfd)
            process.pidfd = -1

    def _thread_ended(self, process: Process, tid: int) -> None:
        """Forget a thread whose number may be in use again."""
        self._drop_tid(process, tid)
        process.tids.discard(tid)
        process.changing.pop(tid, None)

    def reclaim(self) -> None:
        """Close what can be opened again: the memory of processes that do not use VFIO."""
        for process in self.by_tgid.values():
            if not process.used:
                process.forget_space()

    def forget_file(self, file: File) -> None:
        """``file`` is released: no number may lead to it any more."""
        for process in self.by_tgid.values():
            for number in [n for n, cached in process.files.items() if cached is file]:
                del process.files[number]

    def close(self) -> None:
        """Forget every process, as if each had ended."""
        for process in list(self.by_tgid.values()):
            self.exited(process)
        self.endings.close()

    def _enter(self, tgid: int, parent: int) -> Process:
        process = Process(self, tgid, parent)
        try:
            process.pidfd = self.endings.process(tgid, lambda: self.exited(process))
        except OSError as error:
            if error.errno not in (errno.ESRCH, errno.EINVAL):  # number 0: of another namespace
                raise
            return process  # it has ended; no answer will reach it
        mother = self.by_tgid.get(parent)
        if mother is not None:
            process.virtual_cwd = mother.virtual_cwd
            if mother.used and self._same(process, mother, sc.KCMP_VM):
                process.share_mm(mother)
        self.by_tgid[tgid] = process
        return process

    def find_mm(self, process: Process) -> None:
        """Let the process share the Mm of one that has the same memory (clone flags). Which of them made the other does
        not count: a child may have another parent."""
        for other in self.by_tgid.values():
            if other.used and other is not process and self._same(process, other, sc.KCMP_VM):
                process.share_mm(other)
                return

    def part(self, process: Process) -> None:
        """The process is about to change its table of descriptors: those that share it must not cache it."""
        for other in self.cachers - process.distinct - {process}:
            if self._same(process, other, sc.KCMP_FILES):
                self.unshared(process)
                self.unshared(other)
            else:
                process.distinct.add(other)  # for good: tables are shared from a clone on, or never

    def _same(self, process: Process, other: Process, kind: int) -> bool:
        mine = self.thread_of(process.tgid)
        try:
            return sc.kcmp(mine, self._any_thread(other), kind) == 0
        except OSError:
            return False  # one has ended, or they may not be compared (docs/limits.md)

    def _any_thread(self, process: Process) -> int:
        """A thread that is watched, and not the main one if there is another: that one may have ended before it."""
        for tid in process.tids:
            if tid != process.tgid and self.by_tid.get(tid) is process:
                return tid
        return process.tgid

    def unshared(self, process: Process) -> None:
        """Cache nothing: the process has several descriptor tables, or shares one with another process."""
        process.cacheable = False
        process.files.clear()
        self.cachers.discard(process)

    def _drop_tids(self, process: Process) -> None:
        for tid in process.tids:
            self._drop_tid(process, tid)
        process.tids.clear()

    def _drop_tid(self, process: Process, tid: int) -> None:
        for known in (self.by_tid, self.returning, self._unwatched):
            if known.get(tid) is process:
                del known[tid]
        if tid != process.tgid:
            self.endings.forget_thread(tid)
