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
    ``cwd``                       chdir, fchdir, a second thread: a change that another thread has begun is seen at no
                                  time, so the folder is remembered of a process with one thread only

A call that is continued takes effect after its answer, and other threads call meanwhile. The calling thread's next
call shows that it has returned: ``begins`` notes what it may change and moves the thread from ``by_tid`` to
``returning``, so that ``discover`` sees that call. Until then these numbers are neither cached nor handed out.

An execve may fail, and ends the other threads while they call. It is settled by a caller whose image (the 16 random
bytes that the kernel gives to each, read of the caller itself) is another one, or when each thread that began one has
called again, or has ended without an exec. Until then nothing is cached.

What this does not do: answer calls, or end a process.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from uvfio.doors.run.linux import proc
from uvfio.doors.run.linux import syscalls as sc
from uvfio.doors.run.session.programs.endings import Endings
from uvfio.doors.run.session.programs.process import Process
from uvfio.errors import NoSpace

if TYPE_CHECKING:
    from collections.abc import Callable

    from uvfio.doors.run.session.reactor import Reactor
    from uvfio.doors.run.session.tokens import Tokens
    from uvfio.fops.file import File

__all__ = ["Process", "Processes"]


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
            and not process.locks  # or one that fails would forget it
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
