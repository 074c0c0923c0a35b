"""The system calls that observers see: which they are, and how they become events.

They are the rows of ``filter/rules.py`` whose column ``shown`` is not empty. Trace and summary take all they know about
system calls from that table.

``tap`` replaces the handlers of these calls by wrappers that emit ``CallEntry`` before and ``CallExit`` after the
handler (the kernel's tracepoints raw_syscalls:sys_enter and sys_exit). A run without trace and summary is not tapped:
its handlers are the bare ones. The wrapper passes on what the handler returns or raises, unchanged.

A request's name and decoding depend on the ABI of the file: ``decoder`` returns the module for it.
"""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, Protocol

from uvfio.doors.run.filter.rules import BY_KEY
from uvfio.doors.run.observe import trace_2011, trace_mainline
from uvfio.doors.run.session.events import CallEntry, CallExit
from uvfio.doors.run.session.redirect import Redirect
from uvfio.fops.file import Deferred

if TYPE_CHECKING:
    from collections.abc import Callable

    from uvfio.doors.run.filter.rules import Handler, Key, Request
    from uvfio.doors.run.observe.text import Read
    from uvfio.doors.run.session.events import RunObserver
    from uvfio.fops.file import File
    from uvfio.uapi import rfc, vfio

__all__ = ["Decoder", "decoder", "tap"]


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


def tap(handlers: dict[Key, Handler], emit: RunObserver) -> None:
    """Call ``emit`` for the shown calls from now on. To be called once, before the first call."""
    for key, handler in handlers.items():
        if BY_KEY[key].shown:
            handlers[key] = _tapped(BY_KEY[key].name, handler, emit)


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
        except Redirect:
            raise  # the program repeats the call, which is observed then
        except BaseException as error:
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
