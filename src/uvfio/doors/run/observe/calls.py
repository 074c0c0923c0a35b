"""The system calls that observers see: which they are, and how they become events.

``CALLS`` is the one table of the observed calls: the form of the arguments, the name in a summary, the argument that is
the file descriptor. Trace and summary take all they know about system calls from it.

``tap`` replaces the handlers of these calls by wrappers that emit ``CallEntry`` before and ``CallExit`` after the
handler (the kernel's tracepoints raw_syscalls:sys_enter and sys_exit). A run without trace and summary is not tapped:
its handlers are the bare ones. The wrapper passes on what the handler returns or raises, unchanged.

A request's name and decoding depend on the ABI of the file: ``decoder`` returns the module for it.
"""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from uvfio.doors.run.observe import trace_2011, trace_mainline
from uvfio.doors.run.session.events import CallEntry, CallExit
from uvfio.fops.file import Deferred
from uvfio.uapi.seccomp import AUDIT_ARCH_I386, AUDIT_ARCH_X86_64, I386, X86_64

if TYPE_CHECKING:
    from collections.abc import Callable

    from uvfio.doors.run.observe.text import Read
    from uvfio.doors.run.session.events import RunObserver
    from uvfio.doors.run.supervisor import Handler, Supervisor
    from uvfio.fops.file import File
    from uvfio.uapi import rfc, vfio

    Request = tuple[int, ...]

__all__ = ["CALLS", "Call", "Decoder", "decoder", "tap"]

ARG: Final = 6  # the first argument in an unpacked notification


class Call(NamedTuple):
    """One call: the form of its arguments, its name in a summary, the index of its descriptor (-1: it has none)."""

    form: str
    shown: str
    descriptor: int

    def fd(self, request: Request) -> int:
        """The descriptor that the call is made on, as an unsigned number."""
        return request[ARG + self.descriptor] & 0xFFFFFFFF


CALLS: Final = {
    "ioctl": Call("ioctl", "ioctl", 0),
    "pread64": Call("access", "pread", 0),
    "pwrite64": Call("access", "pwrite", 0),
    "read": Call("access", "read", 0),
    "write": Call("access", "write", 0),
    "readv": Call("vector", "readv", 0),
    "writev": Call("vector", "writev", 0),
    "preadv": Call("vector", "preadv", 0),
    "pwritev": Call("vector", "pwritev", 0),
    "preadv2": Call("vector", "preadv", 0),
    "pwritev2": Call("vector", "pwritev", 0),
    "mmap": Call("mmap", "mmap", 4),
    "mmap2": Call("mmap", "mmap", 4),
    "open": Call("open", "open", -1),
    "openat": Call("open", "open", 0),
    "openat2": Call("open", "open", 0),
}


class Decoder(Protocol):
    """What ``trace_2011`` and ``trace_mainline`` have."""

    def find(self, kind: str, request: int) -> rfc.Ioctl | vfio.Ioctl | None:
        """The request of that kind of file, or None if it is unknown."""

    def name_of(self, kind: str, request: int) -> str:
        """The header's name, or the number and what it is made of."""

    def decode(self, file: File, request: int, read: Read, argument: int) -> str:
        """The argument of an ioctl as text; empty if it takes none."""


def decoder(file: File | None, request: int) -> Decoder:
    """The decoder of ``request`` for ``file``; that of 2011 if the file is not known any more."""
    if file is not None and file.abi_of(request) == "mainline":
        return trace_mainline
    return trace_2011


def tap(supervisor: Supervisor) -> None:
    """Emit events for the calls of the table from now on. To be called once, before the first call."""
    for arch, numbers in ((AUDIT_ARCH_X86_64, X86_64), (AUDIT_ARCH_I386, I386)):
        for name in CALLS:
            key = (numbers.get(name, -1), arch)
            handler = supervisor.handlers.get(key)
            if handler is not None:
                supervisor.handlers[key] = _tapped(name, handler, supervisor.emit)


def _tapped(name: str, handler: Handler, emit: RunObserver) -> Handler:
    def tapped(request: Request) -> int | None:
        entry = CallEntry(name, request)
        emit(entry)
        begun = perf_counter()
        try:
            value = handler(request)
        except Deferred as later:
            later.answered.append(_answered(entry, emit))
            raise
        except Exception as error:
            emit(CallExit(entry, None, error, perf_counter() - begun))
            raise
        emit(CallExit(entry, value, None, perf_counter() - begun))
        return value

    return tapped


def _answered(entry: CallEntry, emit: RunObserver) -> Callable[[int | OSError], None]:
    def answered(answer: int | OSError) -> None:
        if isinstance(answer, OSError):
            emit(CallExit(entry, None, answer, None))
        else:
            emit(CallExit(entry, answer, None, None))

    return answered
