"""What `uvfio run` needs of this machine: each thing is tried, not guessed from a version.

``probe_all`` supervises a small child for a moment, as the runner does: filter, listener, an injected
descriptor, memory and descriptors of the child, and reports what worked. Nothing is left behind and
nothing on the machine is changed.

``scratch_problem`` is of use to the runner too: it finds folders for files whose last close must be
detected. Give it the runner's own inotify descriptor: closing one costs the kernel milliseconds.

What this does not do: print. `uvfio check` formats the probes.
"""

from __future__ import annotations

import _socket
import errno
import fcntl
import os
import resource
import select
import signal
import struct
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from uvfio.doors.run.filter.build import build_filter, reserved_range
from uvfio.doors.run.launch.guard import receive_descriptors
from uvfio.doors.run.launch.launch import MINIMUM_KERNEL
from uvfio.doors.run.linux import syscalls
from uvfio.uapi.seccomp import (
    SECCOMP_IOCTL_NOTIF_RECV,
    SECCOMP_IOCTL_NOTIF_SEND,
    SECCOMP_RET_ERRNO,
    SECCOMP_RET_USER_NOTIF,
    X86_64,
    seccomp_notif,
    seccomp_notif_resp,
)

if TYPE_CHECKING:
    from typing import NoReturn

__all__ = ["Probe", "probe_all", "scratch_directories", "scratch_problem"]

CONTAINER_HINT: Final = "in a container: --cap-add SYS_PTRACE"
YAMA: Final = "/proc/sys/kernel/yama/ptrace_scope"
PATIENCE: Final = 5000  # milliseconds: far more than any step takes, so that nothing hangs


@dataclass(frozen=True, slots=True)
class Probe:
    """One thing that was tried. ``hint`` is what to do if it failed; ``required``: without it nothing runs."""

    name: str
    ok: bool
    detail: str
    hint: str = ""
    required: bool = True


def probe_all() -> list[Probe]:
    """Try everything, in the order in which the runner needs it."""
    return [
        _architecture(),
        _kernel(),
        _actions(),
        *_supervision(),
        _scratch(),
        _procmap_query(),
        _descriptor_limit(),
        _yama(),
        _i386(),
    ]


def scratch_problem(directory: str, inotify: int | None = None) -> str:
    """Why ``directory`` cannot hold the files that stand in for VFIO files; "" if it can.

    Such a file has no name, and its last close, in whatever process, must give exactly one inotify event.
    Not every file system has O_TMPFILE, and not every overlay reports closes. ``inotify`` is an idle inotify
    descriptor to use (about 0.1 ms); without one, one is made for the occasion (about 15 ms).
    """
    try:
        token = os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        return f"O_TMPFILE: {os.strerror(error.errno or 0)}"
    opened = [token]
    try:
        if inotify is None:
            opened.append(inotify := syscalls.inotify_init1())
        opened.append(os.open(f"/proc/self/fd/{token}", os.O_PATH | os.O_CLOEXEC))  # pins the inode
        path = b"/proc/self/fd/%d" % token
        watch = syscalls.inotify_add_watch(inotify, path, syscalls.IN_CLOSE_WRITE)
        os.truncate(token, 1 << 41)  # regions are that far apart
        opened.remove(token)
        os.close(token)
        if not syscalls.readable_bytes(inotify):
            return "the last close of a file gives no inotify event"
        events = os.read(inotify, 4096)
        if events != syscalls.inotify_event.pack(watch, syscalls.IN_CLOSE_WRITE, 0, 0):
            return f"the last close of a file gives unexpected inotify events: {events.hex()}"
        os.close(opened.pop())
        if syscalls.readable_bytes(inotify):
            os.read(inotify, 4096)  # IN_IGNORED: without the pin the inode died
    except OSError as error:
        return error.strerror or str(error)
    finally:
        for fd in opened:
            os.close(fd)
    return ""


def scratch_directories(inotify: int | None = None) -> list[str]:
    """Usable directories, the best first: memory before disk, private before shared."""
    return [directory for directory in _candidates() if not scratch_problem(directory, inotify)]


def _candidates() -> list[str]:
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    return [*([runtime] if runtime.startswith("/") else []), "/dev/shm", "/tmp"]


def _architecture() -> Probe:
    machine = os.uname().machine
    return Probe(
        "architecture",
        sys.maxsize > 1 << 32 and machine in {"x86_64", "i686"},
        machine if sys.maxsize > 1 << 32 else f"{machine}, 32-bit Python",
        "programs can be run on x86-64 with a 64-bit Python only; `uvfio.doors.local` works anywhere",
    )


def _kernel() -> Probe:
    release = syscalls.kernel_release()
    return Probe(
        "kernel",
        release >= MINIMUM_KERNEL,
        f"Linux {os.uname().release}",
        "5.19 or later: older ones repeat a system call whenever a signal arrives",
    )


def _actions() -> Probe:
    hint = "the kernel needs CONFIG_SECCOMP_FILTER"
    try:
        missing = [
            name
            for name, action in (
                ("USER_NOTIF", SECCOMP_RET_USER_NOTIF),
                ("ERRNO", SECCOMP_RET_ERRNO),
            )
            if not syscalls.seccomp_action_available(action)
        ]
    except OSError as error:
        return Probe("seccomp", False, str(error.strerror), hint)
    return Probe("seccomp", not missing, f"no {', '.join(missing)}" if missing else "filters", hint)


class _Trial:
    """A child under the runner's filter that opens a file and reads a link, both served from here."""

    PATH: Final = b"/uvfio/check"
    LINK: Final = b"it works"

    def __init__(self) -> None:
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self.reserved = reserved_range(1024 if soft == resource.RLIM_INFINITY else soft)
        self.chosen = self.reserved.start if self.reserved else None
        self.failed: dict[str, str] = {}
        self.wake_up = False
        self.said = ""

    def run(self) -> None:
        """Afterwards ``failed`` holds a reason for each step that failed: listener, addfd, memory, getfd."""
        here, there = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
        pid = os.fork()
        if pid == 0:
            self._child(there)
        there.close()
        here.settimeout(PATIENCE / 1000)
        opened: list[int] = []
        try:
            data, opened = receive_descriptors(here, 4, 1)
            if not opened:
                number = int.from_bytes(data, "little")
                self.failed["listener"] = os.strerror(number) if data else "the child died"
                if number == errno.EBUSY:
                    self.failed["listener"] = "another supervisor listens already"
                return
            self.wake_up = syscalls.set_sync_wake_up(opened[0])
            opened.append(os.pidfd_open(pid))
            self._serve(*opened)
            self.said = here.recv(256).decode()
        except (OSError, TimeoutError) as error:
            self.failed.setdefault("listener", str(error.strerror or error))
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            for fd in opened:
                os.close(fd)
            here.close()

    def _child(self, there: _socket.socket) -> NoReturn:
        try:
            try:
                listener = syscalls.seccomp(build_filter(self.reserved))
            except OSError as error:
                there.send((error.errno or 0).to_bytes(4, "little"))
                os._exit(1)
            rights = (_socket.SOL_SOCKET, _socket.SCM_RIGHTS, struct.pack("i", listener))
            there.sendmsg([bytes(4)], [rights])
            try:
                fd = os.open(self.PATH, os.O_RDONLY)
                link = os.readlink(self.PATH).decode()
            except OSError as error:
                there.send(str(error).encode())
            else:
                there.send(f"{fd} {link}".encode())
        finally:
            os._exit(0)

    def _serve(self, listener: int, pidfd: int) -> None:
        served = False
        poller = select.poll()
        poller.register(listener, select.POLLIN)
        while any(event & select.POLLIN for _, event in poller.poll(PATIENCE)):
            try:
                request = fcntl.ioctl(listener, SECCOMP_IOCTL_NOTIF_RECV, bytes(seccomp_notif.size))
            except InterruptedError:
                continue
            except FileNotFoundError:
                return
            notification, pid, _, nr, _, _, *arguments = seccomp_notif.unpack(request)
            value, error = 0, -errno.ENOENT
            if nr in {X86_64["openat"], X86_64["open"]}:
                number = self._inject(listener, notification)
                if number is not None:
                    value, error = number, 0
                    self._copy(pidfd, number)
            elif nr in {X86_64["readlink"], X86_64["readlinkat"]}:
                at = nr == X86_64["readlinkat"]
                if self._exchange(pid, arguments[at], arguments[at + 1]):
                    value, error = len(self.LINK), 0
                served = True
            answer = seccomp_notif_resp.pack(notification, value, error, 0)
            fcntl.ioctl(listener, SECCOMP_IOCTL_NOTIF_SEND, answer)
            if served:
                return

    def _inject(self, listener: int, notification: int) -> int | None:
        source, sink = os.pipe()
        try:
            number = syscalls.addfd(listener, notification, source, self.chosen)
        except OSError as error:
            self.failed["addfd"] = os.strerror(error.errno or 0)
            return None
        finally:
            os.close(source)
            os.close(sink)
        if self.chosen not in {None, number}:
            self.failed["addfd"] = f"it got number {number} instead of {self.chosen}"
        return number

    def _copy(self, pidfd: int, number: int) -> None:
        try:
            os.close(syscalls.pidfd_getfd(pidfd, number))
        except OSError as error:
            self.failed["getfd"] = os.strerror(error.errno or 0)

    def _exchange(self, pid: int, path: int, buffer: int) -> bool:
        try:
            memory = os.open(f"/proc/{pid}/mem", os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            self.failed["memory"] = os.strerror(error.errno or 0)
            return False
        try:
            found = os.pread(memory, len(self.PATH), path)
            if found != self.PATH:
                self.failed["memory"] = f"a path reads {found!r} instead of {self.PATH!r}"
            return os.pwrite(memory, self.LINK, buffer) == len(self.LINK)
        except OSError as error:
            self.failed["memory"] = os.strerror(error.errno or 0)
            return False
        finally:
            os.close(memory)


def _supervision() -> list[Probe]:
    trial = _Trial()
    trial.run()
    failed = trial.failed
    if not failed and trial.said.partition(" ")[2] != trial.LINK.decode():
        failed["listener"] = f"the child saw {trial.said!r}"
    skipped = "not tried" if "listener" in failed else ""

    def step(name: str, key: str, detail: str, hint: str) -> Probe:
        reason = failed.get(key, skipped)
        return Probe(name, not reason, reason or detail, hint)

    yama = f"{CONTAINER_HINT}; or Yama forbids it, see below"
    return [
        step(
            "user notification",
            "listener",
            "system calls of a child can be answered",
            "uvfio run cannot run inside uvfio run or another supervisor of system calls",
        ),
        step(
            "descriptor injection",
            "addfd",
            f"at number {trial.chosen}" if trial.chosen is not None else "at the lowest number",
            "SECCOMP_IOCTL_NOTIF_ADDFD needs Linux 5.9",
        ),
        step("program memory", "memory", "/proc/PID/mem can be read and written", yama),
        step("program descriptors", "getfd", "pidfd_getfd", yama),
        Probe(
            "synchronous wake-up",
            trial.wake_up,
            skipped or ("yes" if trial.wake_up else "no"),
            "Linux 6.6 has it; without it a register access takes about twice as long",
            required=False,
        ),
    ]


def _scratch() -> Probe:
    problems = {directory: scratch_problem(directory) for directory in _candidates()}
    usable = [directory for directory, problem in problems.items() if not problem]
    unusable = [f"{directory}: {problem}" for directory, problem in problems.items() if problem]
    detail = "; ".join([*usable[:1], *unusable])
    return Probe(
        "scratch directory",
        bool(usable),
        detail,
        "one of $XDG_RUNTIME_DIR, /dev/shm and /tmp must be a writable tmpfs or disk file system",
    )


def _procmap_query() -> Probe:
    fd = os.open("/proc/self/maps", os.O_RDONLY | os.O_CLOEXEC)
    try:
        # An address that is certainly mapped: the page of a live object.
        found = syscalls.procmap_query(fd, id(fd))
        ok, detail = found is not None, "PROCMAP_QUERY"
    except OSError:
        ok, detail = False, "no PROCMAP_QUERY, /proc/PID/maps is read instead"
    finally:
        os.close(fd)
    return Probe("memory map", ok, detail, "Linux 6.11 has it; DMA mappings are faster", False)


def _descriptor_limit() -> Probe:
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    reserved = reserved_range(1024 if soft == resource.RLIM_INFINITY else soft)
    if reserved:
        detail = f"soft limit {soft}, served files at {reserved.start}..{reserved.stop - 1}"
    else:
        detail = f"soft limit {soft}: no room for a reserved range"
    hint = "`ulimit -n 1024`: read, write and close of served files are recognised by their number"
    return Probe("open files", bool(reserved), detail, hint, required=False)


def _yama() -> Probe:
    try:
        with open(YAMA, encoding="ascii") as file:
            scope = int(file.read())
    except FileNotFoundError:
        return Probe("Yama", True, "not in this kernel", required=False)
    except (OSError, ValueError) as error:
        return Probe("Yama", False, f"ptrace_scope: {error}", required=False)
    meaning = (
        "no restriction",
        "descendants only, which suffices",
        "CAP_SYS_PTRACE only",
        "nobody",
    )
    return Probe(
        "Yama",
        scope < 2,
        f"ptrace_scope {scope}: {meaning[scope] if 0 <= scope < len(meaning) else 'unknown'}",
        "sysctl kernel.yama.ptrace_scope=1 (3 lasts until the next boot), or run as root if it is 2",
        required=False,
    )


def _i386_program() -> bytes:
    """An ELF file of 93 bytes: mov eax, 1; xor ebx, ebx; int 0x80 (exit 0)."""
    code = bytes.fromhex("b801000000 31db cd80")
    base, head = 0x08048000, 52 + 32
    ident = b"\x7fELF\x01\x01\x01" + bytes(9)
    header = struct.pack("<HHIIIIIHHHHHH", 2, 3, 1, base + head, 52, 0, 0, 52, 32, 1, 40, 0, 0)
    size = head + len(code)
    segment = struct.pack("<IIIIIIII", 1, 0, base, base, size, size, 5, 0x1000)
    return ident + header + segment + code


def _i386() -> Probe:
    hint = "the kernel needs CONFIG_IA32_EMULATION (and ia32_emulation=1)"
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            program = os.memfd_create("uvfio-check-i386", os.MFD_CLOEXEC)
            os.write(program, _i386_program())
            os.execve(program, ["uvfio-check-i386"], {})
        except OSError as error:
            os.write(write, os.strerror(error.errno or 0).encode())
        finally:
            os._exit(1)
    os.close(write)
    with open(read, encoding="utf-8") as file:
        reason = file.read()
    status = os.waitpid(pid, 0)[1]
    if status != 0 and not reason:
        reason = f"a test program ended with wait status {status}"
    return Probe("32-bit programs", status == 0, reason or "i386", hint, required=False)
