"""Which tasks have ended: the one source that decides how long a number of a task may be believed.

The kernel gives a number to another task when the task that had it is gone, and reports neither. A pidfd is bound to
the task and not to its number: it becomes readable before the number is free (kernel/exit.c, exit_notify before
release_task). Therefore

    the number of a watched task means that task, as long as ``settle``, called after a notification was received, has
    not called its ``ended``

holds for a caller: it waits for its answer, so what had its number before it ended before that. One epoll_wait after
each RECV answers for all tasks, whatever their number (0.4 us; a poll of one pidfd costs 0.6, tgkill 1.2).

A thread group is watched by its pidfd, a thread that is not its group's leader by one of PIDFD_THREAD (Linux 6.9).
Where that cannot be had (an older kernel, too many threads, no descriptor) ``thread`` returns False: whoever remembers
the thread has to ask ``syscalls.is_thread`` at each use.

Invariants: of ``limit`` descriptors, ``SPARE`` are left for what is opened for a moment.

What this does not do: remember what a number means (``processes.py``).
"""

from __future__ import annotations

import errno
import os
import resource
import select
from typing import TYPE_CHECKING, Final

from uvfio.doors.run.linux import syscalls as sc
from uvfio.doors.run.linux.proc import scarce

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Endings"]

THREADS: Final = 1024  # that are watched at a time, and a quarter of the descriptors at most
BATCH: Final = 8


class Endings:
    """The tasks that are watched, and ``poll``: the epoll_wait whose answer is empty if none has ended.

    ``make_room`` closes descriptors that can be spared.
    """

    def __init__(self, make_room: Callable[[], None]) -> None:
        self._make_room = make_room
        self._epoll = select.epoll()
        self.poll = self._epoll.poll
        self._watched: dict[int, Callable[[], None]] = {}
        self._threads: dict[int, int] = {}  # their pidfds, by thread

    @property
    def fileno(self) -> int:
        """Readable when a watched task has ended."""
        return self._epoll.fileno()

    def process(self, tgid: int, ended: Callable[[], None]) -> int:
        """Watch a thread group; returns its pidfd, for ``forget``. OSError ESRCH if it is gone, EMFILE if descriptors
        are short."""
        try:
            return self._watch(os.pidfd_open(tgid), ended)
        except OSError as error:
            if error.errno != errno.EMFILE:
                raise
        self._make_room()
        return self._watch(os.pidfd_open(tgid), ended)

    def thread(self, tid: int, ended: Callable[[], None]) -> bool:
        """Watch a thread that is not the leader of its group (idempotent); False where that is not possible."""
        if tid in self._threads:
            return True
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if len(self._threads) >= min(THREADS, limit // 4):
            return False
        try:
            fd = self._watch(os.pidfd_open(tid, sc.PIDFD_THREAD), ended)
        except OSError:
            return False
        self._threads[tid] = fd
        return True

    def forget(self, pidfd: int) -> None:
        """Watch a thread group no more."""
        del self._watched[pidfd]
        self._epoll.unregister(pidfd)
        os.close(pidfd)

    def forget_thread(self, tid: int) -> None:
        """Watch a thread no more (idempotent)."""
        fd = self._threads.pop(tid, None)
        if fd is not None:
            self.forget(fd)

    def settle(self) -> None:
        """Call ``ended`` of each task that has ended."""
        while found := self.poll(0, BATCH):
            for fd, _ in found:
                ended = self._watched.get(fd)
                if ended is not None:
                    ended()

    def close(self) -> None:
        """Watch nothing any more."""
        for tid in list(self._threads):
            self.forget_thread(tid)
        self._epoll.close()

    def _watch(self, fd: int, ended: Callable[[], None]) -> int:
        if scarce(fd):
            os.close(fd)
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        self._watched[fd] = ended
        self._epoll.register(fd, select.EPOLLIN)
        return fd
