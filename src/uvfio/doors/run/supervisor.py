"""The supervisor: receives each trapped call of the programs, looks its handler up, and answers.

Theory of operation
-------------------
One thread, one loop, three steps: RECV, handler, SEND. A handler gets the unpacked notification and returns
the value for the program, or None to let the kernel run the call, or raises OSError. The table of handlers is
``filter/rules.py``, its names resolved. While no timer runs and
no descriptor is watched the thread sleeps in RECV itself; otherwise in the reactor, which waits for the
listener and everything else. Models therefore run between two calls, never beside one.

What may go wrong around a call, and what then happens:

    killed before RECV         RECV fails with ENOENT; next
    killed before SEND         SEND fails with ENOENT; the effect stands, its files are released by their close
    signal with a handler      waits until the answer (WAIT_KILLABLE_RECV): nothing runs twice
    a path leads out of the    the program repeats the call itself, with another path (``session/repeat.py``)
    machine's folders
    a handler has a bug        the program gets EIO, the stack goes to stderr, the loop goes on
    SystemExit and its like    as a bug: no exception of a model ends the run
    no memory for a call       the program gets ENOMEM, one line goes to stderr, the loop goes on
    every program has ended    POLLHUP: release everything, end as the program ended

``serve`` is the hot path: one dictionary lookup for the handler, one for the process, one for
the file, no allocation but the bytes that fcntl returns.

What this does not do: hold the state of a run (``session/session.py``), or answer a call itself (``handlers/``).
"""

from __future__ import annotations

import _thread
import errno
import fcntl
import gc
import os
import resource
from time import monotonic
from typing import TYPE_CHECKING

from uvfio.doors.run.filter.build import build_filter
from uvfio.doors.run.filter.rules import BY_KEY, Handler, Key
from uvfio.doors.run.handlers.calls import Calls
from uvfio.doors.run.handlers.paths import Paths
from uvfio.doors.run.launch.launch import Launched, LaunchError, launch
from uvfio.doors.run.linux import syscalls as sc
from uvfio.doors.run.linux.memory import Unreadable
from uvfio.doors.run.session.hooks import describe
from uvfio.doors.run.session.redirect import Redirect
from uvfio.doors.run.session.report import report_bug, report_end, report_memory
from uvfio.doors.run.session.session import SEND_ERRORS, Session, negative_errno
from uvfio.doors.run.session.tree import remove_folder
from uvfio.errors import LimitExceeded
from uvfio.fops.file import Deferred
from uvfio.uapi.seccomp import (
    SECCOMP_IOCTL_NOTIF_RECV,
    SECCOMP_IOCTL_NOTIF_SEND,
    SECCOMP_USER_NOTIF_FLAG_CONTINUE,
    seccomp_notif,
    seccomp_notif_resp,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from uvfio.doors.run.filter.rules import Request
    from uvfio.doors.run.handlers.changes import Changes
    from uvfio.doors.run.launch.front import Front
    from uvfio.doors.run.linux.output import Sink
    from uvfio.doors.run.observe.control import Control
    from uvfio.machine.spec import MachineSpec

__all__ = ["Supervisor", "run"]

EMPTY = bytes(seccomp_notif.size)
SHORTAGE = (errno.EMFILE, errno.ENFILE)


class Supervisor:
    """The loop of one run. ``handlers`` is the table that it uses; observers may wrap its entries before ``serve``."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.control: Control | None = None
        self.launched: Launched | None = None
        self.handlers: dict[Key, Handler] = {}
        self.paths = Paths(session)
        self.calls = Calls(session, self.paths, self.handlers)
        self._changes: Changes | None = None
        owners = {"paths": self.paths, "calls": self.calls}
        for key, call in BY_KEY.items():
            owner, method = call.handler.split(".")
            self.handlers[key] = (
                getattr(owners[owner], method) if owner in owners else self._changing(method)
            )

    @property
    def changes(self) -> Changes:
        """The handlers of calls that change files; loaded with the first such call."""
        if self._changes is None:
            from uvfio.doors.run.handlers.changes import Changes

            self._changes = Changes(self.session, self.paths)
        return self._changes

    def _changing(self, method: str) -> Handler:
        def changing(request: Request) -> int | None:
            value: int | None = getattr(self.changes, method)(request)
            return value

        return changing

    def start(
        self,
        argv: Sequence[str],
        env: dict[str, str],
        front: Front,
        *,
        kill_with_program: bool = False,
    ) -> None:
        """Start the program. LaunchError if this machine cannot."""
        session, folder = self.session, self.session.tree.path
        socket = self.control.path if self.control else None
        self.launched = launch(
            argv,
            env,
            build_filter(session.reserved),
            front,
            kill_with_program=kill_with_program,
            cleanup=lambda: _remove(folder, socket),
        )
        main = _thread.get_ident()

        def inspect() -> tuple[float, str] | None:
            text = describe(main)
            return None if text is None else (session.reactor.since, text)

        self.launched.inspect = inspect
        session.listener = self.launched.listener
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # some for each program and file
        session.reactor.watch(session.listener, lambda: None, wake=False)

    def serve(self) -> int:
        """Answer until every program has ended; returns the wait status of the first one."""
        assert self.launched is not None
        session, launched, handlers = self.session, self.launched, self.handlers
        listener, reactor, waits = session.listener, session.reactor, session.waits
        processes = session.processes
        ended, settle = processes.endings.poll, processes.endings.settle
        ioctl, unpack, pack = fcntl.ioctl, seccomp_notif.unpack, seccomp_notif_resp.pack
        recv, send = SECCOMP_IOCTL_NOTIF_RECV, SECCOMP_IOCTL_NOTIF_SEND
        go_on, now = SECCOMP_USER_NOTIF_FLAG_CONTINUE, monotonic
        while True:
            if reactor.active or reactor.timers:
                if waits.owed:
                    waits.poll()
                if not reactor.wait_for(listener):
                    continue
            try:
                request = unpack(ioctl(listener, recv, EMPTY))
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.EINTR):
                    if launched.ended():
                        return launched.wait()
                    continue
                raise
            session.current, processes.caller = request[0], request[1]
            if ended(0, 1):
                settle()  # before a number of a task is believed
            reactor.since = now()
            try:
                value = handlers[request[3], request[4]](request)
                answer = pack(request[0], value or 0, 0, go_on if value is None else 0)
            except OSError as failure:
                if failure.errno in SHORTAGE:
                    failure = session.own_shortage(failure)
                answer = pack(request[0], 0, negative_errno(failure), 0)
                if isinstance(failure, Unreadable | LimitExceeded):
                    session.report_refusal(request[1], failure)
            except Deferred as later:
                session.defer_notification(request, later)
                continue
            except Redirect as wanted:
                session.redirect(request, wanted)
                continue
            except MemoryError as failure:
                report_memory(f"system call {request[3]} of task {request[1]}", failure)
                answer = pack(request[0], 0, -errno.ENOMEM, 0)
            except BaseException:
                report_bug(f"system call {request[3]} of task {request[1]}; it gets EIO")
                answer = pack(request[0], 0, -errno.EIO, 0)
            try:
                ioctl(listener, send, answer)
            except OSError as error:
                if error.errno not in SEND_ERRORS:
                    raise

    def listen(self, path: str) -> None:
        """Serve a control socket at ``path``. ConfigError if a socket cannot be made there."""
        from uvfio.doors.run.observe.control import Control

        self.control = Control(self.session, path)

    def close(self) -> None:
        """End what waits, the control socket and the session."""
        self.session.waits.close()
        self.session.pieces.close()
        if self.control:
            self.control.close()
        self.session.close()


def run(
    spec: MachineSpec,
    argv: Sequence[str],
    front: Front,
    *,
    trace: Sink | None = None,
    trace_json: bool = False,
    summary: Sink | None = None,
    status_fd: int | None = None,
    abi: str = "2011",
    control: str | None = None,
    memlock: int | None = None,
    strict: bool = False,
    kill_with_program: bool = False,
    env: dict[str, str] | None = None,
) -> int:
    """Run ``argv`` on the machine; returns its wait status (for ``launch.finish``).

    ``front`` is what ``launch.front.split`` returned. With ``kill_with_program`` the run ends with its first process.
    ``trace`` gets a line per VFIO call. ``status_fd`` gets JSON lines: started, ended.
    ``summary`` gets a table of all calls at the end. ``control`` is the path of a control socket.
    ``memlock`` is the number of bytes that a program's DMA mappings may lock (None: its RLIMIT_MEMLOCK).
    ``strict``: DMA to memory that was exchanged after it was mapped is a fault. LaunchError
    and the conditions of a bad machine are raised before anything runs.
    """
    from uvfio.doors.run.launch.check import scratch_directories

    if status_fd is not None and status_fd > 2:
        os.set_inheritable(
            status_fd, False
        )  # for this process alone; the program has 0, 1 and 2 too
    inotify = sc.inotify_init1()
    folders = scratch_directories(inotify)
    size = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    if not folders and size != resource.RLIM_INFINITY:
        raise LaunchError(
            f"no folder can hold region memory: the limit of the size of files is {size} bytes, and the files are "
            "sparse ones of terabytes",
            "raise it before uvfio run: ulimit -f unlimited",
        )
    if not folders:
        raise LaunchError(
            "no folder can hold unlinked files with close events",
            "tried $XDG_RUNTIME_DIR, /dev/shm and /tmp; run `uvfio check`",
        )
    session = Session(spec, folders[0], abi=abi, inotify=inotify, memlock=memlock, strict=strict)
    supervisor = Supervisor(session)
    counted = None
    try:
        if trace is not None:
            from uvfio.doors.run.observe.trace import Trace

            session.watch(Trace(session, trace, as_json=trace_json).observe)
        if summary is not None:
            from uvfio.doors.run.observe.summary import Summary

            counted = Summary(session, summary, as_json=trace_json)
            session.watch(counted.observe)
        if trace is not None or summary is not None:
            from uvfio.doors.run.observe.calls import tap

            tap(supervisor.handlers, session.emit)
        if status_fd is not None:
            from uvfio.doors.run.observe.status import StatusLines

            session.watch(StatusLines(status_fd).observe, framework=False)
        if control is not None:
            supervisor.listen(control)
        env = {**(os.environ if env is None else env), "UVFIO_RUN": "1"}
        supervisor.start(argv, env, front, kill_with_program=kill_with_program)
        assert supervisor.launched is not None
        if session.observers:
            from uvfio.doors.run.session.events import RunStarted

            session.emit(RunStarted(supervisor.launched.pid))
        gc.freeze()  # what exists now stays to the end; collections can skip it
        gc.callbacks.append(_keep_survivors)
        try:
            status = supervisor.serve()
        except BaseException:
            supervisor.launched.kill()
            supervisor.launched.wait()
            raise
        if session.observers:
            from uvfio.doors.run.session.events import RunEnded

            session.emit(RunEnded(status))
        return status
    finally:
        if _keep_survivors in gc.callbacks:
            gc.callbacks.remove(_keep_survivors)
        supervisor.close()
        if counted is not None:
            counted.write()
        report_end()


def _remove(folder: str, socket: str | None) -> None:
    """What a supervisor that is killed leaves."""
    remove_folder(folder)
    if socket is not None:
        try:
            os.unlink(socket)
        except OSError:
            pass  # gone already


def _keep_survivors(phase: str, info: dict[str, int]) -> None:
    """Freeze what a full collection has left: with a million mappings each further one would delay a program by a
    fifth of a second. A frozen object is still freed with its last reference."""
    if phase == "stop" and info["generation"] == 2:
        gc.freeze()
