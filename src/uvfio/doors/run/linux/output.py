"""Lines for people and managers: stderr, the trace, the summary, --status-fd. Writing them changes nothing else.

A line is written or dropped: ``Output.write`` and ``say`` never raise, and they do not block the run, whatever the
descriptor is: closed, on a full disk, a pipe that nobody reads or whose reader left, a terminal that is stopped.

    say       stderr: no patience. The next report that can be written says how many were lost before it
    Output    the reader of a trace may delay the run for ``PATIENCE`` seconds, then lines are dropped until it reads

Invariant: nothing is written through the buffer of ``sys.stderr``, which could raise later. If that is None (descriptor
2 was closed at the start), descriptor 2 may be any file by now, and nothing is written.

What this does not do: decide what is said.
"""

from __future__ import annotations

import errno
import os
import select
import stat
import sys
from time import monotonic
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["PATIENCE", "Output", "Sink", "forget", "say"]

PATIENCE: Final = 2.0  # seconds that one reader may delay the run, until it reads again
PIECE: Final = select.PIPE_BUF  # a pipe that polls as writable takes as much without blocking


class Sink(Protocol):
    """What takes whole lines: an ``Output``, or a text file."""

    def write(self, text: str, /) -> object:
        """Write ``text``."""


class Output:
    """Lines to descriptor ``fd``: ``write`` never raises, and blocks for ``patience`` seconds at most.

    A descriptor that is not read in time is given no more patience until it takes a line. ``on_loss`` is called once,
    with a sentence, when the first line is lost. ``fd`` None: all is lost, without a word.
    """

    def __init__(
        self,
        fd: int | None,
        *,
        patience: float = PATIENCE,
        on_loss: Callable[[str], None] | None = None,
    ) -> None:
        self.fd = fd
        self.lost = 0
        self._patience = patience
        self._on_loss = on_loss
        self._told = False
        self._slow = False
        self._torn = False  # the last line was written in part
        self._poll: select.poll | None = None
        self._own = -1
        if fd is not None:
            self._prepare(fd)

    def _prepare(self, fd: int) -> None:
        """A pipe gets an open file of its own that does not block: the flag of ``fd`` is shared with the program."""
        try:
            mode = os.fstat(fd).st_mode
        except OSError:
            return
        if stat.S_ISREG(mode):
            return
        if stat.S_ISFIFO(mode):
            try:
                flags = os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC
                self.fd = self._own = fd = os.open(f"/proc/self/fd/{fd}", flags)
            except OSError:
                pass  # another user's pipe, or no descriptor: one piece fits when it polls as writable
        self._poll = select.poll()
        self._poll.register(fd, select.POLLOUT)

    def write(self, text: str) -> bool:
        """Write ``text``, whole lines; returns whether all of it was written."""
        if self.fd is None:
            return False
        data = text.encode("utf-8", "backslashreplace")
        if self._torn:
            data = b"\n" + data
        whole, deadline = len(data), 0.0
        try:
            while data:
                if self._poll is not None and not self._poll.poll(0):
                    now = monotonic()
                    deadline = deadline or now + (0.0 if self._slow else self._patience)
                    if now >= deadline or not self._poll.poll((deadline - now) * 1000):
                        self._slow = True
                        return self._lose(whole - len(data), "nobody reads it")
                try:
                    data = data[os.write(self.fd, data[:PIECE]) :]
                except BlockingIOError:  # another writer was quicker
                    if self._poll is None:
                        raise
        except OSError as error:
            if error.errno in (errno.EPIPE, errno.EBADF, errno.ECONNRESET):
                self.fd = None
            return self._lose(whole - len(data), error.strerror or str(error))
        self._torn = self._slow = False
        return True

    def close(self) -> None:
        """Close what was opened for it; ``fd`` itself stays the caller's. Later lines are lost without a word."""
        self.fd = None
        if self._own >= 0:
            os.close(self._own)
            self._own = -1

    def _lose(self, written: int, reason: str) -> bool:
        self._torn = self._torn or written > 0
        self.lost += 1
        if not self._told and self._on_loss is not None:
            self._told = True
            self._on_loss(reason)
        return False


_outputs: dict[int, Output] = {}  # of descriptors that were stderr; one in practice


def say(text: str) -> None:
    """Write whole lines to stderr. Never raises, never blocks."""
    try:
        stream = sys.stderr
        if stream is None:
            return
        try:
            fd = stream.fileno()
        except (OSError, ValueError):  # replaced by an object without a descriptor
            stream.write(text)
            return
        output = _outputs.get(fd)
        if output is None:
            output = _outputs[fd] = Output(fd, patience=0)
        if output.lost:
            text = f"uvfio: {output.lost} earlier reports could not be written here\n{text}"
        if output.write(text):
            output.lost = 0
    except BaseException:
        return  # no memory for the text: there is no other place to say so


def forget() -> None:
    """After a fork, before other descriptors are closed: ``say`` opens what it needs anew."""
    _outputs.clear()
