"""The supervisor: receives each trapped call of the programs, answers it, and does nothing else.

Theory of operation
-------------------
One thread, one loop, three steps: RECV, handler, SEND. A handler gets the unpacked notification and returns
the value for the program, or None for "let the kernel do it", or raises OSError. While no timer runs and
nobody watches a descriptor the thread sleeps in RECV itself; otherwise in the reactor, which waits for the
listener and everything else. Models therefore run between two calls, never beside one.

What may go wrong around a call, and what then happens:

    killed before RECV         RECV says ENOENT; next
    killed before SEND         SEND says ENOENT; the effect stands, its files are released by their close
    signal with a handler      waits until the answer (WAIT_KILLABLE_RECV): nothing runs twice
    a handler has a bug        the program gets EIO, the trace goes to stderr, the loop goes on
    every program has ended    POLLHUP: release everything, end as the program ended

``receive`` .. ``answer`` is the hot path: one dictionary lookup for the handler, one for the process, one for
the file, no allocation but the bytes that fcntl returns.
"""

from __future__ import annotations

import errno
import fcntl
import gc
import os
import resource
import signal
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TextIO

from uvfio.doors.run.filter.bpf import build_filter, reserved_range
from uvfio.doors.run.handlers.calls import Calls
from uvfio.doors.run.handlers.paths import Paths
from uvfio.doors.run.launch.launch import Launched, LaunchError, launch
from uvfio.doors.run.linux import syscalls as sc
from uvfio.doors.run.linux.memory import Unreadable
from uvfio.doors.run.session.events import FileReleased, RunEnded, RunStarted
from uvfio.doors.run.session.polls import Polls
from uvfio.doors.run.session.processes import Processes
from uvfio.doors.run.session.reactor import Reactor
from uvfio.doors.run.session.tokens import Token, Tokens
from uvfio.doors.run.session.tree import Tree, remove_folder
from uvfio.doors.run.session.waits import Waits
from uvfio.errors import NoMemory, NoSpace, TooManyFiles
from uvfio.fops.file import Deferred
from uvfio.machine.machine import Machine
from uvfio.machine.sysfs.tree import PREFIXES, nodes
from uvfio.uapi.seccomp import (
    AUDIT_ARCH_I386,
    AUDIT_ARCH_X86_64,
    I386,
    SECCOMP_IOCTL_NOTIF_RECV,
    SECCOMP_IOCTL_NOTIF_SEND,
    SECCOMP_USER_NOTIF_FLAG_CONTINUE,
    X86_64,
    seccomp_notif,
    seccomp_notif_resp,
)

if TYPE_CHECKING:
    from uvfio.doors.run.handlers.copies import Copies
    from uvfio.doors.run.observe.control import Control
    from uvfio.doors.run.session.events import RunEvent, RunObserver
    from uvfio.doors.run.session.processes import Process
    from uvfio.fops.file import File
    from uvfio.machine.spec import MachineSpec

__all__ = ["Supervisor", "run"]

Handler = Callable[[tuple[int, ...]], int | None]

EMPTY = bytes(seccomp_notif.size)
SEND_ERRORS = (errno.ENOENT, errno.EINPROGRESS)
INCOMPLETE = -1  # the generation of a tree that lacks files


class Supervisor:
    """One run: a machine, the programs that use it, and what connects them."""

    def __init__(
        self, spec: MachineSpec, scratch: str, *, abi: str = "2011", inotify: int | None = None
    ) -> None:
        self.abi = abi
        self.memlock: int | None = None
        self.observers: list[RunObserver] = []
        self.control: Control | None = None
        self.prefixes = tuple(prefix.decode() for prefix in PREFIXES)
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.reserved = reserved_range(soft)
        self.reactor = Reactor(
            lambda: report_bug("a timer or an event; the run goes on without it")
        )
        self.waits = Waits(self.reactor)
        polls = Polls(self.reactor, lambda: report_bug("a store in mapped registers"))
        self.tokens = Tokens(
            scratch,
            self._released,
            on_error=lambda: report_bug("a file that was closed; the run goes on"),
            polls=polls,
            inotify=inotify,
        )
        self.machine = Machine(spec, clock=self.reactor, store=self.tokens)
        self.tree = Tree(scratch)
        self.tree.update(nodes(self.machine, abi))
        self.shown = self.machine.framework.generation
        self.reactor.watch(self.tokens.fileno, self.settle, wake=False)
        self.processes = Processes(self)
        self._copies: Copies | None = None
        self.paths = Paths(self)
        self.calls = Calls(self)
        self.launched: Launched | None = None
        self.listener = -1
        self.current = self.caller = 0
        self.handlers = {**_table(X86_64, self), **_table_32(I386, self)}

    # -- life --------------------------------------------------------------------------------------

    def start(self, argv: Sequence[str], env: dict[str, str]) -> None:
        """Start the program. LaunchError if this machine cannot."""
        folder = self.tree.path
        self.launched = launch(
            argv, env, build_filter(self.reserved), cleanup=lambda: remove_folder(folder)
        )
        self.listener = self.launched.listener
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # some for each program and file
        signal.signal(signal.SIGIO, signal.SIG_IGN)  # a lease of ours may be broken
        self.reactor.watch(self.listener, lambda: None, wake=False)

    def serve(self) -> int:
        """Answer until every program has ended; returns the wait status of the first one."""
        assert self.launched is not None
        launched, reactor = self.launched, self.reactor
        listener, handlers, waits = self.listener, self.handlers, self.waits
        ioctl, unpack, pack = fcntl.ioctl, seccomp_notif.unpack, seccomp_notif_resp.pack
        recv, send = SECCOMP_IOCTL_NOTIF_RECV, SECCOMP_IOCTL_NOTIF_SEND
        go_on = SECCOMP_USER_NOTIF_FLAG_CONTINUE
        while True:
            if reactor.busy:
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
            self.current, self.caller = request[0], request[1]
            try:
                value = handlers[request[3], request[4]](request)
                answer = pack(request[0], value or 0, 0, go_on if value is None else 0)
            except OSError as failure:
                answer = pack(request[0], 0, -(failure.errno or errno.EIO), 0)
                if isinstance(failure, Unreadable):
                    self._report_unreadable(request, failure)
            except Deferred as later:
                self._defer(request, later)
                continue
            except Exception:
                report_bug(f"system call {request[3]} of task {request[1]}; it gets EIO")
                answer = pack(request[0], 0, -errno.EIO, 0)
            try:
                ioctl(listener, send, answer)
            except OSError as error:
                if error.errno not in SEND_ERRORS:
                    raise

    def close(self) -> None:
        """Give everything back: files, groups, descriptors, the folder."""
        self.waits.close()
        if self.control:
            self.control.close()
        self.tokens.release_all()
        self.processes.close()
        self.tokens.close()
        self.tree.remove()
        self.reactor.close()

    def listen(self, path: str) -> None:
        """Serve a control socket at ``path``. ConfigError."""
        from uvfio.doors.run.observe.control import Control

        self.control = Control(self, path)

    def watch(self, observer: RunObserver, *, framework: bool = True) -> None:
        """Call ``observer`` for each event from now on. ``framework=False``: it needs none of the framework's events,
        which are not made before an observer needs them."""
        self.observers.append(observer)
        if framework:
            self.machine.framework.observer = self.emit

    def settle(self) -> None:
        """Release what the programs have let go of; before anything that depends on what is open."""
        self.tokens.drain()
        if self.shown != self.machine.framework.generation:
            self.refresh_tree()

    def refresh_tree(self) -> None:
        """Devices came or went: show the programs the machine as it is now. Without room for the files some are missing
        until there is, which is tried at each ``settle``."""
        before, self.shown = self.shown, self.machine.framework.generation
        try:
            self.tree.update(nodes(self.machine, self.abi))
        except OSError as error:
            self.shown = INCOMPLETE
            if before != INCOMPLETE:
                sys.stderr.write(
                    f"uvfio: files of the machine are missing in {self.tree.root}: {error.strerror}\n"
                    "hint: make room there; they come back by themselves\n"
                )

    @property
    def copies(self) -> Copies:
        """Who follows copies of sysfs files; there from the first one on."""
        if self._copies is None:
            from uvfio.doors.run.handlers.copies import Copies

            self._copies = Copies(self)
        return self._copies

    # -- answers that take a while ---------------------------------------------------------------

    def defer(
        self,
        request: tuple[int, ...],
        later: Deferred,
        answer: Callable[[int, OSError | None], None],
        alive: Callable[[], bool],
    ) -> None:
        """Answer when the wait is over; a caller that is not ``alive`` any more ends it."""

        def finish(error: BaseException | None) -> None:
            self.refresh_tree()
            if error is not None and not isinstance(error, OSError):
                report_bug(f"system call {request[3]} of task {request[1]}, which waited", error)
                error = OSError(errno.EIO, str(error))
            answer(later.value if error is None else 0, error)
            for told in later.answered:
                told(later.value if error is None else error)

        self.waits.add(later.wait, finish, alive)

    def _defer(self, request: tuple[int, ...], later: Deferred) -> None:
        """``defer`` a notification."""
        number = request[0]
        self.defer(
            request,
            later,
            lambda value, error: self._send(number, value, error),
            lambda: sc.notif_id_valid(self.listener, number),
        )

    def _send(self, number: int, value: int, error: OSError | None) -> None:
        failed = 0 if error is None else -(error.errno or errno.EIO)
        try:
            answer = seccomp_notif_resp.pack(number, value, failed, 0)
            fcntl.ioctl(self.listener, SECCOMP_IOCTL_NOTIF_SEND, answer)
        except OSError as lost:
            if lost.errno not in SEND_ERRORS:
                raise

    # -- services for handlers ---------------------------------------------------------------------

    def install(self, process: Process, file: File, cloexec: bool) -> int:
        """Give the caller of the current call a descriptor for ``file``."""
        try:
            token, fd = self.tokens.create(file)
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                raise TooManyFiles("uvfio has no free descriptor", errno=errno.ENFILE) from error
            raise NoMemory(f"cannot make a file for {file.name}: {error.strerror}") from error
        number = process.free_number()
        try:
            given = self.addfd(fd, number, cloexec)
        except BaseException:
            self.tokens.abort(token, fd, file)
            raise
        os.close(fd)
        process.used = True
        if given in self.reserved and process.cacheable and not process.exec_tid:
            process.files[given] = file
        return given

    def expose(self, process: Process, tid: int, number: int, file: File) -> None:
        """Put the memory of the device behind descriptor ``number``, which leads to ``file``, before it is mapped."""
        token = process.token(tid, number)
        if token is None or self.tokens.holds_memory(token):
            return
        flags = process.open_flags(tid, number)
        found = self.tokens.expose(file)
        if found is None:
            return
        memory, fd = found
        try:
            sc.addfd(self.listener, self.current, fd, number, bool(flags & os.O_CLOEXEC))
        except OSError as error:
            self.tokens.abort(memory, fd, file)
            raise NoMemory(f"descriptor {number} cannot be exchanged: {error.strerror}") from error
        os.close(fd)

    def addfd(self, fd: int, number: int | None, cloexec: bool) -> int:
        """Copy a descriptor of ours into the caller of the current call."""
        try:
            return sc.addfd(self.listener, self.current, fd, number, cloexec)
        except OSError as error:
            if error.errno == errno.EBADF and number is not None:  # above the soft limit now
                return self.addfd(fd, None, cloexec)
            if error.errno in (errno.EMFILE, errno.ENFILE):
                raise TooManyFiles("the program has no free descriptor") from error
            if error.errno == errno.ENOENT:
                raise NoSpace("the program was killed during the call") from error
            raise

    # -- events ------------------------------------------------------------------------------------

    def emit(self, event: RunEvent) -> None:
        """Call each observer, in the order in which they were added."""
        for observer in self.observers:
            observer(event)

    def _released(self, token: Token) -> None:
        for file in token.files:
            self.processes.forget_file(file)
            if self.observers:
                self.emit(FileReleased(file.name))

    def _report_unreadable(self, request: tuple[int, ...], failure: Unreadable) -> None:
        """The program sees EPERM everywhere, so somebody should say why; once for each process."""
        process = self.processes.get(request[1])
        if not process.complained:
            process.complained = True
            sys.stderr.write(f"uvfio: {failure}\n")
            if failure.hint:
                sys.stderr.write(f"hint: {failure.hint}\n")


def report_bug(where: str, error: BaseException | None = None) -> None:
    """Nobody expected this error (default: the one being handled): say what raised and whose it is; the run goes on."""
    import traceback

    error = error or sys.exc_info()[1]
    assert error is not None
    sys.stderr.write(f"uvfio: internal error in {where}\n")
    last = traceback.extract_tb(error.__traceback__)[-1]
    package = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
    if not last.filename.startswith(package):
        sys.stderr.write(
            f"uvfio: raised in {last.filename}:{last.lineno}, which is no part of uvfio: look there "
            "for the mistake of a device model\n"
        )
    traceback.print_exception(error)


def _table(numbers: dict[str, int], supervisor: Supervisor) -> dict[tuple[int, int], Handler]:
    """Handlers for x86-64, keyed by (number, arch)."""
    paths, calls = supervisor.paths, supervisor.calls
    table: dict[str, Handler] = _common(paths, calls)
    table |= {
        "newfstatat": paths.newfstatat,
        "mmap": calls.mmap,
        "readv": calls.readv,
        "writev": calls.writev,
        "preadv": calls.preadv,
        "pwritev": calls.pwritev,
        "preadv2": calls.preadv2,
        "pwritev2": calls.pwritev2,
        "pread64": calls.pread64,
        "pwrite64": calls.pwrite64,
        "stat": paths.stat,
        "lstat": paths.lstat,
        "fstat": calls.fstat,
    }
    return {(numbers[name], AUDIT_ARCH_X86_64): handler for name, handler in table.items()}


def _table_32(numbers: dict[str, int], supervisor: Supervisor) -> dict[tuple[int, int], Handler]:
    """Handlers for i386."""
    paths, calls = supervisor.paths, supervisor.calls
    table: dict[str, Handler] = _common(paths, calls)
    table |= {
        "stat64": paths.stat64,
        "lstat64": paths.lstat64,
        "fstat64": calls.fstat64,
        "fstatat64": paths.fstatat64,
        "statfs": paths.statfs_32,
        "statfs64": paths.statfs64,
        "mmap2": calls.mmap2,
        "readv": calls.readv_32,
        "writev": calls.writev_32,
        "preadv": calls.preadv_32,
        "pwritev": calls.pwritev_32,
        "preadv2": calls.preadv2_32,
        "pwritev2": calls.pwritev2_32,
        "pread64": calls.pread64_32,
        "pwrite64": calls.pwrite64_32,
        "_llseek": calls.llseek,
        "fcntl64": calls.fcntl,
        "ftruncate64": calls.truncate,
        "fchown32": calls.not_permitted,
        "fstatfs64": calls.pass_on,
        "sendfile64": calls.cannot_move,
        "stat": calls.pass_on,
        "lstat": calls.pass_on,
        "fstat": calls.pass_on,
    }
    return {(numbers[name], AUDIT_ARCH_I386): handler for name, handler in table.items()}


def _common(paths: Paths, calls: Calls) -> dict[str, Handler]:
    return {
        "open": paths.open,
        "creat": paths.creat,
        "openat": paths.openat,
        "openat2": paths.openat2,
        "statx": paths.statx,
        "access": paths.access,
        "faccessat": paths.faccessat,
        "faccessat2": paths.faccessat2,
        "readlink": paths.readlink,
        "readlinkat": paths.readlinkat,
        "statfs": paths.statfs,
        "getxattr": paths.getxattr,
        "lgetxattr": paths.lgetxattr,
        "listxattr": paths.listxattr,
        "llistxattr": paths.llistxattr,
        "chdir": paths.chdir,
        "fchdir": paths.fchdir,
        "getcwd": paths.getcwd,
        "execve": paths.execve,
        "execveat": paths.execve,
        "ioctl": calls.ioctl,
        "unshare": calls.unshare,
        "close": calls.close,
        "close_range": calls.close_range,
        "dup": calls.dup,
        "dup2": calls.dup2,
        "dup3": calls.dup2,
        "fcntl": calls.fcntl,
        "read": calls.read,
        "write": calls.write,
        "lseek": calls.lseek,
        "ftruncate": calls.truncate,
        "fallocate": calls.not_possible,
        "fsync": calls.not_possible,
        "fdatasync": calls.not_possible,
        "sendfile": calls.cannot_move,
        "splice": calls.cannot_splice,
        "copy_file_range": calls.cannot_splice,
        "fchmod": calls.not_permitted,
        "fchown": calls.not_permitted,
        "fstatfs": calls.pass_on,
    }


def run(
    spec: MachineSpec,
    argv: Sequence[str],
    *,
    trace: TextIO | None = None,
    trace_json: bool = False,
    summary: TextIO | None = None,
    status_fd: int | None = None,
    abi: str = "2011",
    control: str | None = None,
    memlock: int | None = None,
    env: dict[str, str] | None = None,
) -> int:
    """Run ``argv`` on the machine; returns its wait status (for ``launch.finish``).

    ``trace`` gets a line per VFIO call. ``status_fd`` gets JSON lines: started, ended.
    ``summary`` gets a table of all calls at the end. ``control`` is the path of a control socket.
    ``memlock`` is the number of bytes that a program's DMA mappings may lock (None: its RLIMIT_MEMLOCK). LaunchError
    and the conditions of a bad machine are raised before anything runs.
    """
    from uvfio.doors.run.launch.check import scratch_directories

    if status_fd is not None and status_fd > 2:
        os.set_inheritable(status_fd, False)  # ours alone; the program has 0, 1 and 2 too
    inotify = sc.inotify_init1()
    folders = scratch_directories(inotify)
    if not folders:
        raise LaunchError(
            "no folder can hold unlinked files with close events",
            "tried $XDG_RUNTIME_DIR, /dev/shm and /tmp; run `uvfio check`",
        )
    supervisor = Supervisor(spec, folders[0], abi=abi, inotify=inotify)
    supervisor.memlock = memlock
    counted = None
    try:
        if trace is not None:
            from uvfio.doors.run.observe.trace import Trace

            supervisor.watch(Trace(supervisor, trace, as_json=trace_json).observe)
        if summary is not None:
            from uvfio.doors.run.observe.summary import Summary

            counted = Summary(supervisor, summary, as_json=trace_json)
            supervisor.watch(counted.observe)
        if trace is not None or summary is not None:
            from uvfio.doors.run.observe.calls import tap

            tap(supervisor)
        if status_fd is not None:
            from uvfio.doors.run.observe.status import StatusLines

            supervisor.watch(StatusLines(status_fd).observe, framework=False)
        if control is not None:
            supervisor.listen(control)
        supervisor.start(argv, {**(os.environ if env is None else env), "UVFIO_RUN": "1"})
        assert supervisor.launched is not None
        supervisor.emit(RunStarted(supervisor.launched.pid))
        gc.freeze()  # what is there now stays to the end; collections need not look at it
        gc.callbacks.append(_keep_survivors)
        try:
            status = supervisor.serve()
        except BaseException:
            supervisor.launched.kill()
            supervisor.launched.wait()
            raise
        supervisor.emit(RunEnded(status))
        return status
    finally:
        if _keep_survivors in gc.callbacks:
            gc.callbacks.remove(_keep_survivors)
        supervisor.close()
        if counted is not None:
            counted.write()


def _keep_survivors(phase: str, info: dict[str, int]) -> None:
    """Let no collection look twice at what a full one has left: with a million mappings each full collection would
    keep a program waiting for a fifth of a second. What is frozen still goes with its last reference."""
    if phase == "stop" and info["generation"] == 2:
        gc.freeze()
