"""The programs of a run: the process of each task, its descriptors, its ``Mm``.

A notification names a thread. ``Processes.get`` finds its ``Process`` (a dictionary on the hot path) and
detects three changes that no notification reports:

    fork   a process not seen before; it shares the parent's Mm only while it shares its memory (vfork)
    exec   announced by the trapped execve; the next call of that thread shows whether it happened (the 16
           random bytes that the kernel gives to every image differ). Until then nothing is cached
    exit   a pidfd becomes readable; everything known about the process is forgotten

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
from uvfio.doors.run.linux import syscalls as sc
from uvfio.doors.run.linux.memory import ProgramMemory, Unreadable, UserMemory
from uvfio.doors.run.session.reactor import EventFd
from uvfio.errors import BadAddress, BadDescriptor, VfioError
from uvfio.uapi.linux import AT_RANDOM, CAP_IPC_LOCK

if TYPE_CHECKING:
    from collections.abc import Callable

    from uvfio.doors.run.linux.file_memory import FileMemory
    from uvfio.doors.run.session.reactor import Reactor
    from uvfio.doors.run.session.tokens import Token, Tokens
    from uvfio.fops.file import File

__all__ = ["Process", "Processes", "Unreadable"]

TIDS_KEPT = 1024
PAGES_KEPT = 4096


class Process:
    """One thread group under the filter."""

    __slots__ = (
        "_cwd",
        "_mm",
        "_space",
        "_user",
        "cacheable",
        "complained",
        "exec_mark",
        "exec_tid",
        "files",
        "parent",
        "pidfd",
        "processes",
        "stop_watch",
        "tgid",
        "tids",
        "used",
        "virtual_cwd",
        "writable",
    )

    def __init__(self, processes: Processes, tgid: int, parent: int) -> None:
        self.processes = processes
        self.tgid = tgid
        self.parent = parent
        self.pidfd = -1
        self.stop_watch: Callable[[], None] | None = None
        self.tids: set[int] = {tgid}
        self.files: dict[int, File] = {}
        self.cacheable = True
        self.used = False
        self.complained = False
        self.exec_tid = 0
        self.exec_mark = b""
        self.virtual_cwd = ""
        self.writable: set[int] = set()
        self._cwd = ""
        self._space: ProgramMemory | None = None
        self._user: UserMemory | None = None
        self._mm: Mm | None = None

    @property
    def thread(self) -> int:
        """A thread of the process that is alive: the one that is calling now, else the main thread. The main thread may
        have ended before the others (pthread_exit) and then has no memory and no descriptors."""
        return self.processes.thread_of(self.tgid)

    # -- memory ----------------------------------------------------------------------------------

    @property
    def space(self) -> ProgramMemory:
        """The present address space. Unreadable, BadAddress."""
        space = self._space
        if space is None:
            try:
                space = self._space = ProgramMemory(self.tgid, self.processes.tokens.is_device)
            except PermissionError as error:
                raise Unreadable.because(self.tgid, "read its memory") from error
            except FileNotFoundError as error:
                raise BadAddress(f"process {self.tgid} is gone") from error
        return space

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
            try:
                data = os.pread(self.space.fd, size, address)
            except (OSError, OverflowError) as error:
                if isinstance(error, VfioError):
                    raise
                return b""
            if data or self.used:
                return data
            self._forget_space()  # perhaps bound to the image before an exec
        return b""

    @property
    def mm(self) -> Mm:
        """The caller's address space."""
        self.used = True
        if self._mm is None:
            self._mm = Mm(self.space, f"pid {self.tgid}")
        return self._mm

    def share_mm(self, other: Process) -> None:
        """A vfork child runs in its parent's memory until it executes something."""
        self._mm = other.mm
        self._space = other.space
        self.used = True

    def image_mark(self) -> bytes:
        """Differs between any two images that this process executes."""
        try:
            with open(f"/proc/{self.thread}/auxv", "rb") as file:
                auxv = file.read()
            fd = os.open(f"/proc/{self.thread}/mem", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return b""
        try:
            for at in range(0, len(auxv) - 15, 16):
                if int.from_bytes(auxv[at : at + 8], "little") == AT_RANDOM:
                    where = int.from_bytes(auxv[at + 8 : at + 16], "little")
                    return auxv + os.pread(fd, 16, where)
        except OSError:
            return auxv
        finally:
            os.close(fd)
        return auxv

    def new_image(self) -> None:
        """An exec happened: another address space; close-on-exec descriptors are gone."""
        self.files.clear()
        self._forget_space()
        self._mm = None
        self.used = False
        self.exec_tid = 0
        self.cacheable = True

    def _forget_space(self) -> None:
        self._space = None
        self._user = None
        self.writable.clear()

    def remember_writable(self, page: int) -> None:
        """A write to this page (address >> 12) succeeded with the program's own rights.

        If the program protects the page later, writes to it still succeed: the cost of the fast path.
        """
        if len(self.writable) >= PAGES_KEPT:
            self.writable.clear()
        self.writable.add(page)

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
        self.used = True
        file = token.file
        if fd in self.processes.reserved and self.cacheable and not self.exec_tid:
            self.files[fd] = file
        return file

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
            raise BadDescriptor(f"descriptor {fd} is not open") from error

    @staticmethod
    def open_flags(tid: int, fd: int) -> int:
        """What descriptor ``fd`` of thread ``tid`` was opened with, and O_CLOEXEC as it is now."""
        with open(f"/proc/{tid}/fdinfo/{fd}", "rb") as file:
            return int(file.read().partition(b"flags:")[2].split()[0], 8)

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
        soft, _ = resource.prlimit(self.tgid, resource.RLIMIT_MEMLOCK)
        if soft == resource.RLIM_INFINITY or self._may_lock():
            return None
        return soft

    def _may_lock(self) -> bool:
        try:
            return bool(sc.effective_capabilities(self.thread) >> CAP_IPC_LOCK & 1)
        except OSError:
            return False  # it has ended

    def free_number(self, least: int = 0) -> int | None:
        """The lowest free descriptor of the reserved range that is not below ``least``, or None."""
        reserved, thread = self.processes.reserved, self.thread
        for number in range(max(reserved.start, least), reserved.stop):
            if number not in self.files and not os.path.lexists(f"/proc/{thread}/fd/{number}"):
                return number
        return None

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

    def close(self) -> None:
        """The process is gone."""
        if self.stop_watch:
            self.stop_watch()
            os.close(self.pidfd)
            self.stop_watch = None


class Processes:
    """All processes of the run, by thread.

    ``reserved`` are the numbers of served files; ``install`` gives the caller of the current call a descriptor
    (``Session.install``); ``memlock`` replaces the RLIMIT_MEMLOCK of each program unless None. ``caller`` is the thread
    whose call is being answered.
    """

    def __init__(
        self,
        reactor: Reactor,
        tokens: Tokens,
        reserved: range,
        *,
        install: Callable[[Process, File, bool], int],
        memlock: int | None = None,
    ) -> None:
        self.reactor = reactor
        self.tokens = tokens
        self.reserved = reserved
        self.install = install
        self.memlock = memlock
        self.caller = 0
        self.by_tid: dict[int, Process] = {}
        self.by_tgid: dict[int, Process] = {}
        self._discovered = 0

    def get(self, tid: int) -> Process:
        """The process of thread ``tid``."""
        process = self.by_tid.get(tid)
        return process if process is not None else self.discover(tid)

    def thread_of(self, tgid: int) -> int:
        """A thread of the process ``tgid``: the one that is calling now, or else its main thread."""
        caller = self.caller
        process = self.by_tid.get(caller)
        return caller if process is not None and process.tgid == tgid else tgid

    def discover(self, tid: int) -> Process:
        """A thread not seen yet, or one whose process is between two images."""
        self.reactor.poll(0)  # processes that have ended: their numbers may be in use again
        tgid, parent = self._identify(tid)
        process = self.by_tgid.get(tgid)
        if process is None:
            process = self._enter(tgid, parent)
        elif process.exec_tid and not self._settle_exec(process, tid):
            return process
        if process.pidfd < 0:
            return process  # it is dying; another process may get its number
        process.tids.add(tid)
        self.by_tid[tid] = process
        self._discovered += 1
        if self._discovered % TIDS_KEPT == 0:
            self._forget_threads()
        return process

    def exec_begins(self, process: Process, tid: int) -> None:
        """Thread ``tid`` calls execve; its next call shows whether that succeeded."""
        process.files.clear()
        if not process.used and process.cacheable:
            process.new_image()
            return
        process.exec_tid = tid
        process.exec_mark = process.image_mark()
        self._drop_tids(process)

    def _settle_exec(self, process: Process, tid: int) -> bool:
        """Whether the exec that the process began is known to have succeeded or failed."""
        if process.image_mark() != process.exec_mark:
            process.new_image()
        elif tid == process.exec_tid:
            process.exec_tid = 0  # it failed; the old image goes on
        else:
            return False
        return True

    def exited(self, process: Process) -> None:
        """Forget a process that has ended."""
        self._drop_tids(process)
        self.by_tgid.pop(process.tgid, None)
        process.close()

    def forget_file(self, file: File) -> None:
        """``file`` is released: no number may lead to it any more."""
        for process in self.by_tgid.values():
            for number in [n for n, cached in process.files.items() if cached is file]:
                del process.files[number]

    def close(self) -> None:
        """Forget every process, as if each had ended."""
        for process in list(self.by_tgid.values()):
            self.exited(process)

    def _enter(self, tgid: int, parent: int) -> Process:
        process = Process(self, tgid, parent)
        try:
            process.pidfd = os.pidfd_open(tgid)
        except OSError:
            return process  # it has ended; no answer will reach it
        process.stop_watch = self.reactor.watch(
            process.pidfd, lambda: self.exited(process), wake=False
        )
        mother = self.by_tgid.get(parent)
        if mother is not None:
            process.virtual_cwd = mother.virtual_cwd
            self._inherit(process, mother)
        self.by_tgid[tgid] = process
        return process

    def _inherit(self, process: Process, mother: Process) -> None:
        """Find what a child shares with its parent (clone flags) with kcmp(2)."""
        try:
            if mother.used and sc.kcmp(process.tgid, mother.tgid, sc.KCMP_VM) == 0:
                process.share_mm(mother)
            if sc.kcmp(process.tgid, mother.tgid, sc.KCMP_FILES) == 0:
                self.unshared(process)
                self.unshared(mother)
        except OSError:
            return

    def unshared(self, process: Process) -> None:
        """Cache nothing: the process has several descriptor tables, or shares one with another process."""
        process.cacheable = False
        process.files.clear()

    def _identify(self, tid: int) -> tuple[int, int]:
        """(tgid, parent) from /proc; a task that is gone stands for itself."""
        try:
            with open(f"/proc/{tid}/status", "rb") as file:
                text = file.read()
        except OSError:
            return tid, 0
        at = text.index(b"Tgid:")
        tgid = int(text[at + 5 : text.index(b"\n", at)])
        at = text.index(b"PPid:")
        return tgid, int(text[at + 5 : text.index(b"\n", at)])

    def _drop_tids(self, process: Process) -> None:
        for tid in process.tids:
            self.by_tid.pop(tid, None)
        process.tids.clear()

    def _forget_threads(self) -> None:
        """Thread numbers are used again; main threads are covered by their pidfd."""
        for process in self.by_tgid.values():
            for tid in process.tids - {process.tgid}:
                self.by_tid.pop(tid, None)
            process.tids &= {process.tgid}
