"""A program on strings: a real process under the real filter that makes the system calls a test names.

``Stage`` is a supervisor with a machine and one ``Puppet``. ``puppet.call("openat", AT_FDCWD, b"/dev/vfio/240",
O_RDWR)`` makes the call in the other process while the supervisor's own loop serves it, and returns what the
kernel returned: a value, or minus an errno. Puppets have no C library, so nothing happens besides.

Bytes as an argument are put into the puppet's memory, with a NUL behind them. ``bits=32`` is an i386 program.
"""

from __future__ import annotations

import gc
import hashlib
import os
import select
import signal
import socket
import struct
import subprocess
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self, cast
from unittest import mock

from e2e import build
from support.requirements import require, require_program
from uvfio.doors.run.filter.build import build_filter
from uvfio.doors.run.launch.check import scratch_directories
from uvfio.doors.run.linux import syscalls as sc
from uvfio.doors.run.session.reactor import Reactor
from uvfio.doors.run.session.session import Session
from uvfio.doors.run.supervisor import Supervisor
from uvfio.machine.spec import MachineSpec, default_machine, parse_device
from uvfio.uapi import seccomp as s

if TYPE_CHECKING:
    from uvfio.doors.run.launch.launch import Launched
    from uvfio.doors.run.session.programs.process import Process
    from uvfio.fops.file import File

__all__ = [
    "AT_FDCWD",
    "PAGE",
    "Puppet",
    "Stage",
    "machine_of",
    "open_descriptors",
    "puppet_program",
]

AT_FDCWD: Final = -100
PAGE: Final = 4096
ARENA: Final = 1 << 20
STRINGS: Final = 64 << 10  # of the arena, for the arguments of one call
STACK: Final = 64 << 10
SOURCE: Final = Path(__file__).with_name("puppet.c")
FLAGS: Final = (
    "-nostdlib",
    "-static",
    "-ffreestanding",
    "-fno-pie",
    "-no-pie",
    "-fno-stack-protector",
)
COMMAND: Final = struct.Struct("<8Q")
ANSWER: Final = struct.Struct("<q")
CALL, SPAWN, LOAD, STORE = range(4)
PROT_READ, PROT_WRITE = 1, 2
MAP_SHARED, MAP_PRIVATE, MAP_FIXED, MAP_ANONYMOUS = 1, 2, 0x10, 0x20
CLONE_VM, CLONE_FILES, CLONE_VFORK = 0x100, 0x400, 0x4000


def open_descriptors() -> set[tuple[str, str]]:
    """What this process has open now: (number, what)."""
    found = set()
    for number in os.listdir("/proc/self/fd"):
        try:
            found.add((number, os.readlink(f"/proc/self/fd/{number}")))
        except OSError:
            continue  # the listing's own
    return found


def machine_of(*devices: str) -> MachineSpec:
    """A machine with these devices, written as for ``-d``; without any the default one."""
    if not devices:
        return default_machine()
    return MachineSpec(devices=tuple(parse_device(device) for device in devices))


@cache
def puppet_program(bits: int = 64) -> str:
    """The path of the program; the test is skipped where it cannot be built."""
    require_program("gcc")
    flags = (*FLAGS, "-m32" if bits == 32 else "-m64")
    digest = hashlib.sha256(SOURCE.read_bytes() + repr(flags).encode() + build.compiler().encode())
    program = build.cache_directory() / f"puppet-{digest.hexdigest()[:16]}"
    if not program.exists():
        unfinished = program.with_suffix(f".{os.getpid()}")
        try:
            build.build(SOURCE, unfinished, *flags)
        except build.BuildError as error:
            require(False, f"no {bits}-bit programs can be built: {error}")
        unfinished.replace(program)
    return str(program)


class _Answered(BaseException):
    """The awaited puppet has answered."""


class _StageReactor(Reactor):
    """Waits for a puppet's answer besides; ``answered`` ends the supervisor's loop between two calls."""

    answered = False

    def wait_for(self, fd: int) -> bool:
        ready = super().wait_for(fd)
        if self.answered:
            raise _Answered
        return ready


class _Running:
    """What the loop asks of a launched program."""

    def __init__(self, listener: int, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._poller = select.poll()
        self._poller.register(listener, 0)

    def ended(self) -> bool:
        return bool(self._poller.poll(0))

    def wait(self) -> int:
        """Its filter goes before its files do."""
        return self._process.wait() << 8


class Puppet:
    """One thread of a program that does as it is told."""

    def __init__(
        self, stage: Stage | None, pid: int, control: socket.socket, descriptor: int, bits: int
    ) -> None:
        self.stage = stage
        self.pid = pid
        self.control = control
        self.descriptor = descriptor  # its own number of the other end
        self.bits = bits
        self.numbers = s.X86_64 if bits == 64 else s.I386
        self.arena = 0
        self.children: list[Puppet] = []
        self._strings = 0
        self._next = STRINGS

    # -- its memory, seen from outside --------------------------------------------------------------

    def poke(self, address: int, data: bytes) -> None:
        fd = os.open(f"/proc/{self.pid}/mem", os.O_RDWR)
        try:
            assert os.pwrite(fd, data, address) == len(data)
        finally:
            os.close(fd)

    def peek(self, address: int, size: int) -> bytes:
        fd = os.open(f"/proc/{self.pid}/mem", os.O_RDONLY)
        try:
            data = os.pread(fd, size, address)
            assert len(data) == size
            return data
        finally:
            os.close(fd)

    def buffer(self, data: bytes | int) -> int:
        """The address of so many bytes, or of a copy of ``data``, for as long as the image lives."""
        size = data if isinstance(data, int) else len(data)
        address = self.arena + self._next
        self._next += (size + 63) & ~63
        assert self._next <= ARENA
        if isinstance(data, bytes):
            self.poke(address, data)
        return address

    def pages(self, count: int, protection: int = PROT_READ | PROT_WRITE) -> int:
        """Private anonymous memory of its own."""
        flags = MAP_PRIVATE | MAP_ANONYMOUS
        at = self.must(self._mmap, 0, count * PAGE, protection, flags, -1, 0)
        return at % (1 << self.bits)  # i386 answers are sign-extended

    @property
    def _mmap(self) -> str:
        return "mmap" if self.bits == 64 else "mmap2"

    # -- strings ---------------------------------------------------------------------------------------

    def send(self, operation: int, number: int, *arguments: int | bytes) -> None:
        """Give a command; ``answer`` waits for what comes of it."""
        self._strings = 0
        words = []
        for argument in arguments:
            if isinstance(argument, bytes):
                address = self.arena + self._strings
                self._strings += (len(argument) + 16) & ~15
                assert self._strings <= STRINGS
                self.poke(address, argument + b"\0")
                argument = address
            words.append(argument % (1 << 64))
        self.control.send(COMMAND.pack(operation, number, *words, *[0] * (6 - len(words))))

    def answer(self) -> int:
        """The result of the command; meanwhile the supervisor serves."""
        if self.stage is not None:
            self.stage.serve(self.control)
        data = self.control.recv(ANSWER.size)
        assert len(data) == ANSWER.size, "the puppet died"
        value: int = ANSWER.unpack(data)[0]
        return value

    def start(self, name: str, *arguments: int | bytes) -> None:
        """Begin the system call ``name`` and do not wait."""
        self.send(CALL, self.numbers[name], *arguments)

    def call(self, name: str, *arguments: int | bytes) -> int:
        """The system call ``name``: its value, or minus an errno."""
        self.start(name, *arguments)
        return self.answer()

    def must(self, name: str, *arguments: int | bytes) -> int:
        """As ``call``; it must succeed."""
        value = self.call(name, *arguments)
        assert not -4096 < value < 0, f"{name}: {os.strerror(-value)}"
        return value

    def open(self, path: bytes, flags: int = os.O_RDWR) -> int:
        """open(2): a descriptor, or minus an errno."""
        return self.call("openat", AT_FDCWD, path, flags)

    def load(self, address: int) -> int:
        """A load of 32 bits by the program itself."""
        self.send(LOAD, 0, address)
        return self.answer()

    def store(self, address: int, value: int) -> None:
        """A store of 32 bits by the program itself."""
        self.send(STORE, 0, address, value)
        self.answer()

    # -- processes and threads ---------------------------------------------------------------------------

    def spawn(self, flags: int = 0) -> Puppet:
        """clone(2) with ``flags``. After CLONE_VFORK the parent waits: take its ``answer`` later."""
        pair = self.buffer(8)
        self.must("socketpair", socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, pair)
        mine, its = struct.unpack("<2i", self.peek(pair, 8))
        pidfd = os.pidfd_open(self.pid)
        try:
            control = socket.socket(fileno=sc.pidfd_getfd(pidfd, mine))
        finally:
            os.close(pidfd)
        self.must("close", mine)
        stack = self.pages(STACK // PAGE) + STACK if flags & CLONE_VM else 0
        self.send(SPAWN, 0, flags | signal.SIGCHLD, stack, its)
        child = Puppet(self.stage, 0, control, its, self.bits)
        self.children.append(child)
        child.arena, child._next = self.arena, self._next
        if flags & CLONE_VM:  # a half of what is left for each
            child._next = self._next + (ARENA - self._next) // 2
        if not flags & CLONE_VFORK:
            child.pid = self.answer()
            assert child.pid > 0
        else:
            child.pid = child.call("getpid")
        return child

    def execute(self, path: bytes | None = None) -> int:
        """execve(2) of the puppet itself, or of ``path``. 0, or minus an errno."""
        program = puppet_program(self.bits).encode() if path is None else path
        number = b"%d" % self.descriptor
        width = self.bits // 8
        texts = [self.buffer(text + b"\0") for text in (program, number)]
        vector = self.buffer(b"".join(at.to_bytes(width, "little") for at in [*texts, 0]))
        value = self.call("execve", program, vector, vector + 2 * width)
        if not -4096 < value < 0:
            self._begin(value)
            return 0
        return value

    def _begin(self, arena: int) -> None:
        self.arena = arena % (1 << self.bits)
        self._next = STRINGS

    def exit(self) -> None:
        """End the process and wait until it is gone."""
        pidfd = os.pidfd_open(self.pid)
        try:
            self.start("exit_group", 0)
            if self.stage is not None:
                self.stage.serve(pidfd)
            else:
                select.select([pidfd], [], [])
        finally:
            os.close(pidfd)


def start(bits: int = 64, keep: tuple[int, ...] = ()) -> tuple[Puppet, subprocess.Popen[bytes]]:
    """A puppet under no filter, with the descriptors ``keep``; ``finish`` it."""
    mine, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with its:
        process = subprocess.Popen([puppet_program(bits)], stdin=its.fileno(), pass_fds=keep)
    puppet = Puppet(None, process.pid, mine, 0, bits)
    puppet._begin(puppet.answer())
    return puppet, process


def finish(puppet: Puppet, process: subprocess.Popen[bytes]) -> None:
    """Kill it and what it spawned, whatever they do."""
    family = [puppet]
    for member in family:
        family += member.children
        member.control.close()
        if member is not puppet:
            try:
                os.kill(member.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
    process.kill()
    process.wait()


class Stage:
    """A supervisor with a machine, and a puppet under its filter."""

    def __init__(self, *devices: str, bits: int = 64, abi: str = "2011") -> None:
        folders = scratch_directories()
        require(bool(folders), "no folder can hold tokens; run `uvfio check`")
        self._sigio = signal.signal(signal.SIGIO, signal.SIG_IGN)  # as Supervisor.start does
        with mock.patch("uvfio.doors.run.session.session.Reactor", _StageReactor):
            self.session = Session(machine_of(*devices), folders[0], abi=abi)
        self.supervisor = Supervisor(self.session)
        self.reactor = cast(_StageReactor, self.session.reactor)
        self.listener = -1
        self.puppet, self._process = start(bits)
        self._enlist(self.puppet)

    def _enlist(self, puppet: Puppet) -> None:
        """Put the puppet under the filter."""
        code = build_filter(self.session.reserved)
        at = puppet.buffer(code)
        width = puppet.bits // 8
        count = len(code) // s.sock_filter.size
        program = puppet.buffer(count.to_bytes(width, "little") + at.to_bytes(width, "little"))
        puppet.must("prctl", sc.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        flags = s.SECCOMP_FILTER_FLAG_NEW_LISTENER | s.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
        theirs = puppet.call("seccomp", s.SECCOMP_SET_MODE_FILTER, flags, program)
        require(theirs >= 0, f"seccomp: {os.strerror(-theirs)} (run `uvfio check`)")
        pidfd = os.pidfd_open(puppet.pid)
        try:
            self.listener = sc.pidfd_getfd(pidfd, theirs)
        finally:
            os.close(pidfd)
        puppet.must("close", theirs)
        self.session.listener = self.listener
        self.supervisor.launched = cast("Launched", _Running(self.listener, self._process))
        self.reactor.watch(self.listener, lambda: None, wake=False)
        puppet.stage = self

    def serve(self, awaited: socket.socket | int) -> None:
        """Run the supervisor's loop until ``awaited`` can be read."""

        def note() -> None:
            self.reactor.answered = True

        fd = awaited if isinstance(awaited, int) else awaited.fileno()
        self.reactor.answered = False
        stop = self.reactor.watch(fd, note)
        try:
            self.supervisor.serve()
        except _Answered:
            return
        finally:
            stop()

    @property
    def process(self) -> Process:
        """What the supervisor knows of the puppet."""
        return self.session.processes.get(self.puppet.pid)

    def file(self, fd: int, puppet: Puppet | None = None) -> File | None:
        """The VFIO file behind a descriptor of a puppet."""
        pid = (puppet or self.puppet).pid
        return self.session.processes.get(pid).lookup(pid, fd)

    def open_device(self, group: bytes = b"/dev/vfio/241", name: bytes = b"0000:07:00.0") -> int:
        """A device file in the puppet (its group and iommu files as well)."""
        from uvfio.uapi import rfc

        puppet = self.puppet
        fd = puppet.must("openat", AT_FDCWD, group, os.O_RDWR)
        puppet.must("ioctl", fd, rfc.VFIO_GROUP_GET_IOMMU_FD, 0)
        size = (
            rfc.VFIO_GROUP_GET_DEVICE_FD if puppet.bits == 64 else rfc.VFIO_GROUP_GET_DEVICE_FD_32
        )
        return puppet.must("ioctl", fd, size, name)

    def close(self) -> None:
        """Kill the puppets and close the supervisor."""
        finish(self.puppet, self._process)
        self.supervisor.close()
        del self.supervisor, self.session, self.reactor
        gc.collect()  # a machine holds itself, and with it the memory of its devices
        if self.listener >= 0:
            os.close(self.listener)
        signal.signal(signal.SIGIO, self._sigio)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
