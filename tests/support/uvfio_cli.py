"""The ``uvfio`` command as a test uses it: started in a session of its own, and looked at when it has ended.

``run_uvfio("run", "--", program)`` waits for the end; ``Uvfio(...)`` is the same with a grip on it while it
runs. Each command gets a scratch folder of its own (by XDG_RUNTIME_DIR, where the runner looks first), so
commands that run at the same time do not see each other. After each one it is checked that

    no process is left of its session, nor any that inherited its environment
    nothing is left in its scratch folder
    nothing on stderr speaks of an internal error

A command that takes longer than it may is killed with all its processes, and the test fails with its output.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self

from support.requirements import require

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["NOBODY", "Finished", "Uvfio", "python_of", "run_uvfio"]

SOURCE = Path(__file__).resolve().parents[2] / "src"
NOBODY = 65534
PATIENCE = 30.0
MARK = "UVFIO_TEST_MARK"
INTERNAL = ("internal error", "mistake of uvfio", "of device models; the first")


@dataclass(frozen=True, slots=True)
class Finished:
    """How a command ended. ``status`` is negative for a signal, as in ``subprocess``."""

    status: int
    stdout: str
    stderr: str

    def ok(self) -> Finished:
        """Itself, if the status is 0; the test fails with the output if not."""
        assert self.status == 0, f"status {self.status}\n{self.stdout}\n{self.stderr}"
        return self


@cache
def python_of(user: int | None = None) -> tuple[str, ...]:
    """Words that start a Python with uvfio as ``user``; the interpreter of the tests may be out of its reach."""
    if user is None or user == os.getuid():
        return (sys.executable,)
    for python in (sys.executable, "/usr/bin/python3", "/usr/local/bin/python3"):
        words = ("env", f"PYTHONPATH={SOURCE}", python)
        code = "import sys, uvfio.cli.run; sys.exit(sys.version_info < (3, 11))"
        done = subprocess.run(
            [*words, "-c", code],
            cwd="/",
            capture_output=True,
            check=False,
            user=user,
            group=user,
            extra_groups=[],
        )
        if done.returncode == 0:
            return words
    require(False, f"user {user} can start no Python 3.11 that reads {SOURCE}")
    raise AssertionError


class Uvfio:
    """``uvfio WORDS`` while it runs; a context manager.

    ``before`` stands before the command (``["setpriv", ...]``). ``user`` is an ordinary user's number. With
    ``env`` the variables are added to those of the tests; None takes one away. ``session=False`` puts it in a
    process group of the tests' own session: job control works only there.
    """

    def __init__(
        self,
        *words: str | os.PathLike[str],
        env: Mapping[str, str | None] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        user: int | None = None,
        before: Sequence[str] = (),
        session: bool = True,
        pass_fds: Sequence[int] = (),
        stdin: int | IO[Any] = subprocess.PIPE,
        stdout: int | IO[Any] = subprocess.PIPE,
    ) -> None:
        shared = Path("/dev/shm")
        where = shared if os.access(shared, os.W_OK | os.X_OK) else None
        self.scratch = Path(tempfile.mkdtemp(prefix="e2e-", dir=where))
        self.mark = f"{MARK}={uuid.uuid4()}".encode()
        other: dict[str, Any] = {}
        if user is not None and user != os.getuid():
            os.chown(self.scratch, user, user)
            other = {"user": user, "group": user, "extra_groups": []}
        name, _, value = self.mark.decode().partition("=")
        variables: dict[str, str | None] = {
            **os.environ,
            "XDG_RUNTIME_DIR": str(self.scratch),
            name: value,
            **(env or {}),
        }
        self.process = subprocess.Popen(
            [*before, *python_of(user), "-m", "uvfio", *(os.fspath(word) for word in words)],
            env={key: value for key, value in variables.items() if value is not None},
            cwd="/" if user is not None and cwd is None else cwd,
            stdin=stdin,
            stdout=stdout,
            stderr=subprocess.PIPE,
            pass_fds=pass_fds,
            start_new_session=session,
            process_group=None if session else 0,
            **other,
        )
        self.pid = self.process.pid
        self.session = self.pid if session else 0
        self._news = threading.Condition()
        self._output = {"stdout": bytearray(), "stderr": bytearray()}
        self._open = set()
        self._seen = {"stdout": 0, "stderr": 0}
        self._readers = []
        for name, stream in (("stdout", self.process.stdout), ("stderr", self.process.stderr)):
            if stream is not None:
                self._open.add(name)
                reader = threading.Thread(target=self._read, args=(name, stream), daemon=True)
                reader.start()
                self._readers.append(reader)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.end()

    # -- while it runs -----------------------------------------------------------------------------

    def _read(self, name: str, stream: IO[bytes]) -> None:
        with stream:
            while chunk := os.read(stream.fileno(), 65536):
                with self._news:
                    self._output[name] += chunk
                    self._news.notify_all()
        with self._news:
            self._open.discard(name)
            self._news.notify_all()

    def text(self, name: str = "stdout") -> str:
        """Everything it has written so far."""
        with self._news:
            return self._output[name].decode("utf-8", "replace")

    def expect(self, text: str, name: str = "stdout", timeout: float = PATIENCE) -> str:
        """Wait until ``text`` comes behind what was expected before; returns what was there up to its end."""
        wanted = text.encode()
        output, deadline = self._output[name], time.monotonic() + timeout
        with self._news:
            while (at := output.find(wanted, self._seen[name])) < 0:
                left = deadline - time.monotonic()
                if name not in self._open or left <= 0:
                    why = "does not come" if left <= 0 else "did not come before the end"
                    raise AssertionError(f"{text!r} {why}\n{self._report()}")
                self._news.wait(left)
            begin, end = self._seen[name], at + len(wanted)
            self._seen[name] = end
            return output[begin:end].decode("utf-8", "replace")

    def send(self, text: str) -> None:
        """Write to its stdin."""
        assert self.process.stdin is not None
        self.process.stdin.write(text.encode())
        self.process.stdin.flush()

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait_changed(self, options: int, timeout: float = PATIENCE) -> os.waitid_result:
        """The next stop or continuation (``os.WSTOPPED``, ``os.WCONTINUED``) of the command."""
        found: list[os.waitid_result | None] = []
        waiter = threading.Thread(
            target=lambda: found.append(os.waitid(os.P_PID, self.pid, options)), daemon=True
        )
        waiter.start()
        waiter.join(timeout)
        assert found, f"it neither stops nor goes on\n{self._report()}"
        assert found[0] is not None
        return found[0]

    @property
    def supervisor(self) -> int:
        """Its process that answers calls: the child of the front, which is the command itself."""
        (child,) = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return int(child)

    def resident(self) -> int:
        """KiB of memory that the supervisor has now."""
        status = Path(f"/proc/{self.supervisor}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0])

    def resources(self) -> Counter[str]:
        """What the supervisor holds: descriptors and mappings by kind, threads, children, files in its folder.

        Exact only while no program makes a call: compare what it says at two moments when all of them wait.
        """
        held: Counter[str] = Counter()
        supervisor = self.supervisor
        for fd in os.listdir(f"/proc/{supervisor}/fd"):
            with contextlib.suppress(FileNotFoundError):
                held["descriptor " + _kind(os.readlink(f"/proc/{supervisor}/fd/{fd}"))] += 1
        held["threads"] = len(os.listdir(f"/proc/{supervisor}/task"))
        for line in Path(f"/proc/{supervisor}/maps").read_text().splitlines():
            fields = line.split(None, 5)
            if len(fields) == 6 and fields[1].endswith("s"):
                held["mapping " + _kind(fields[5])] += 1
        for path in self.scratch.rglob("*"):
            held["file " + _kind(str(path.relative_to(self.scratch)))] += 1
        return held

    # -- its end -----------------------------------------------------------------------------------

    def finish(self, input: str = "", timeout: float = PATIENCE, grace: float = 0) -> Finished:  # noqa: A002
        """Give it ``input`` and the end of its stdin, wait for its end, and check what it left.

        With ``grace`` processes of its own may take so many seconds to end: for whoever kills the supervisor.
        """
        deadline = time.monotonic() + timeout
        writer = threading.Thread(target=self._close_stdin, args=(input,), daemon=True)
        writer.start()
        try:
            self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it does not end\n{self._report()}") from None
        for left in self.processes():
            self._await_end(left, grace)
        left_over = self._describe(self.processes())
        for thread in (writer, *self._readers):
            thread.join(max(deadline - time.monotonic(), 1))
            assert not thread.is_alive(), f"its output stays open\n{self._report()}"
        done = Finished(self.process.returncode, self.text("stdout"), self.text("stderr"))
        assert not left_over, f"processes are left:\n{left_over}\n{self._report()}"
        files = [str(path) for path in self.scratch.rglob("*")]
        assert not files, f"files are left: {files}\n{self._report()}"
        for words in INTERNAL:
            assert words not in done.stderr, done.stderr
        return done

    def _close_stdin(self, text: str) -> None:
        stdin = self.process.stdin
        if stdin is not None and not stdin.closed:
            with contextlib.suppress(BrokenPipeError):
                stdin.write(text.encode())
            with contextlib.suppress(BrokenPipeError):
                stdin.close()

    def end(self) -> None:
        """Kill what still runs, remove what is left."""
        for _ in range(100):
            processes = self.processes()
            if self.process.poll() is None:
                self.process.kill()
            elif not processes:
                break
            for pid in processes:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if self.process.returncode is None:
                self.process.wait(PATIENCE)
            for pid in processes:
                self._await_end(pid, 1)
        if self.process.stdin is not None:
            with contextlib.suppress(OSError):
                self.process.stdin.close()
        for reader in self._readers:
            reader.join(5)
        shutil.rmtree(self.scratch, ignore_errors=True)

    def processes(self) -> list[int]:
        """Living processes that it started, without itself."""
        return [pid for pid in _all_processes() if pid != self.pid and self._is_mine(pid)]

    def _is_mine(self, pid: int) -> bool:
        try:
            fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
            if fields[0] in (b"Z", b"X"):
                return False
            if self.session and int(fields[3]) == self.session:
                return True
            return self.mark in Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            return False

    @staticmethod
    def _await_end(pid: int, seconds: float) -> None:
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            return
        try:
            poller = select.poll()
            poller.register(pidfd, select.POLLIN)
            poller.poll(seconds * 1000)
        finally:
            os.close(pidfd)

    @staticmethod
    def _describe(pids: Sequence[int]) -> str:
        lines = []
        for pid in pids:
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
                state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
                where = Path(f"/proc/{pid}/wchan").read_text()
                lines.append(f"{pid} {state} {where} {words}")
        return "\n".join(lines)

    def _report(self) -> str:
        processes = self._describe([self.pid, *self.processes()])
        return "\n".join(
            [
                f"-- stdout\n{self.text('stdout')}",
                f"-- stderr\n{self.text('stderr')}",
                "--",
                processes,
            ]
        )


def _kind(name: str) -> str:
    """A name without what differs from one file of a kind to the next."""
    return re.sub(r"uvfio-\w+", "uvfio-*", re.sub(r"\b\d+\b", "N", name))


def _all_processes() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdigit())


def run_uvfio(
    *words: str | os.PathLike[str],
    input: str = "",  # noqa: A002
    timeout: float = PATIENCE,
    grace: float = 0,
    **options: Any,
) -> Finished:
    """Run ``uvfio WORDS`` to its end; ``options`` are those of ``Uvfio``."""
    with Uvfio(*words, **options) as uvfio:
        return uvfio.finish(input, timeout, grace)
