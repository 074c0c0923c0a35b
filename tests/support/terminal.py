"""A terminal with a shell in it: what a person types, and what then appears."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import time
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

__all__ = ["Terminal"]


class Terminal:
    """``command`` on a pseudo-terminal that is the controlling one of its session; a context manager."""

    INTERRUPT, QUIT, SUSPEND = "\x03", "\x1c", "\x1a"

    def __init__(self, command: Sequence[str], env: Mapping[str, str]) -> None:
        self.master, slave = pty.openpty()
        try:
            # setsid --ctty makes its stdin the controlling terminal; no Python runs between fork and exec
            self.process = subprocess.Popen(
                ["setsid", "--ctty", *command], stdin=slave, stdout=slave, stderr=slave, env=env
            )
        finally:
            os.close(slave)
        self.seen = b""
        self._expected = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self.master)  # hangs up
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def expect(self, text: str, timeout: float = 30) -> str:
        """Wait until ``text`` appears behind what was expected before; returns what was there up to its end."""
        deadline = time.monotonic() + timeout
        while (at := self.seen.find(text.encode(), self._expected)) < 0:
            ready, _, _ = select.select([self.master], [], [], max(deadline - time.monotonic(), 0))
            try:
                chunk = os.read(self.master, 4096) if ready else b""
            except OSError:  # EIO: nobody has the terminal open any more
                chunk = b""
            assert chunk, f"{text!r} does not appear:\n{self.seen.decode('utf-8', 'replace')}"
            self.seen += chunk
        begin, self._expected = self._expected, at + len(text.encode())
        return self.seen[begin : self._expected].decode("utf-8", "replace")
