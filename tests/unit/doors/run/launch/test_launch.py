"""Real programs under a supervisor that lets every call go on: how they start and how they end."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any, cast

import pytest

from support.launching import Run, line, python, write_driver
from uvfio.doors.run.launch import launch
from uvfio.doors.run.linux import syscalls

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    made = Run(write_driver(tmp_path_factory.mktemp("driver")))
    yield made
    made.end()


class TestEnd:
    def test_exit_status(self, run: Run) -> None:
        done = run("sh", "-c", "echo out; echo err >&2; exit 7")
        assert (done.returncode, done.stdout, done.stderr) == (7, "out\n", "err\n")

    def test_success_is_silent(self, run: Run) -> None:
        done = run("true")
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

    def test_arguments_and_environment(self, run: Run) -> None:
        done = run(
            "sh", "-c", 'echo "$0|$1|$GREETING"', "a b", "c*", env={**os.environ, "GREETING": "hi"}
        )
        assert done.stdout == "a b|c*|hi\n"

    @pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM", "SIGSEGV", "SIGPIPE", "SIGINT"])
    def test_a_signal_is_raised_again(self, run: Run, name: str) -> None:
        number = signal.Signals[name]
        done = run("sh", "-c", f"kill -{number.value} $$")
        assert done.returncode == -number
        assert done.stderr == ""

    def test_no_core_of_the_supervisor(self, run: Run, tmp_path: Path) -> None:
        def allow_cores() -> None:
            resource.setrlimit(
                resource.RLIMIT_CORE, (resource.getrlimit(resource.RLIMIT_CORE)[1],) * 2
            )

        done = run("sh", "-c", "ulimit -c 0; kill -ABRT $$", cwd=tmp_path, preexec_fn=allow_cores)
        assert done.returncode == -signal.SIGABRT
        assert list(tmp_path.iterdir()) == []

    def test_children_that_outlive_the_program_are_served(self, run: Run) -> None:
        done = run("sh", "-c", "(read x; cat /etc/hostname >/dev/null && echo served) <&3 & exit 4 3<&-",
                   **late_input())  # fmt: skip
        assert (done.returncode, done.stdout) == (4, "served\n")

    def test_no_zombies(self, run: Run) -> None:
        done = run.script("""
            launched = start(["sh", "-c", "for i in 1 2 3; do (true &) & done; wait"])
            serve(launched)
            print(launched.wait())
            try:
                print(os.waitpid(-1, os.WNOHANG))
            except ChildProcessError:
                print("none")
        """)
        assert done.stdout == "0\nnone\n"

    def test_orphans_are_reaped_while_the_program_runs(self, run: Run) -> None:
        done = run(
            *python("""
                import os, subprocess
                orphan = int(subprocess.check_output(["sh", "-c", "sleep 0 >/dev/null & echo $!"]))
                fd = None
                while os.path.exists(f"/proc/{orphan}"):
                    os.sched_yield()
                print("reaped")
            """)
        )
        assert done.stdout == "reaped\n"

    def test_descriptors_are_closed(self, run: Run) -> None:
        done = run.script("""
            launched = start(["true"])
            serve(launched)
            before = set(os.listdir("/proc/self/fd"))
            launched.wait()
            print(len(before - set(os.listdir("/proc/self/fd"))))
        """)
        assert done.stdout == "3\n"  # listener, status, news; the thread keeps pidfd and commands


def late_input() -> dict[str, Any]:
    """Descriptor 3 is a pipe that ends at once: reading it is an event, not a delay."""
    return {"preexec_fn": lambda: os.dup2(os.open("/dev/null", os.O_RDONLY), 3), "close_fds": False}


class TestExec:
    def test_not_found(self, run: Run) -> None:
        done = run("uvfio-no-such-program")
        assert done.returncode == 127
        assert done.stderr == "uvfio: cannot run uvfio-no-such-program: No such file or directory\n"

    def test_path_not_found(self, run: Run, tmp_path: Path) -> None:
        assert run(str(tmp_path / "program")).returncode == 127
        assert run("").returncode == 127

    @pytest.mark.parametrize(("mode", "status"), [(0o644, 126), (0o755, 126)])
    def test_a_python_program_needs_python(
        self, run: Run, tmp_path: Path, mode: int, status: int
    ) -> None:
        """Also one that a shell would take for its own: executable, and without #!."""
        script = tmp_path / "script.py"
        script.write_text("print(1)\n")
        script.chmod(mode)
        done = run(str(script))
        assert done.returncode == status
        assert done.stderr.splitlines()[1] == (
            f"hint: a Python program is run by Python: uvfio run python3 {script}"
        )

    def test_an_interpreter_that_is_not_there(self, run: Run, tmp_path: Path) -> None:
        script = tmp_path / "script"
        script.write_text("#!/nonexistent/interpreter\n")
        script.chmod(0o755)
        done = run(str(script))
        assert done.returncode == 127
        assert "the interpreter" in done.stderr

    def test_not_executable(self, run: Run, tmp_path: Path) -> None:
        (tmp_path / "program").write_text("text")
        done = run(str(tmp_path / "program"))
        assert done.returncode == 126
        assert done.stderr == (
            f"uvfio: cannot run {tmp_path}/program: Permission denied\n"
            f"hint: it is not executable: chmod +x {tmp_path}/program\n"
        )
        assert run(str(tmp_path)).returncode == 126
        assert run(str(tmp_path / "program" / "x")).returncode == 126

    def test_wrong_format(self, run: Run, tmp_path: Path) -> None:
        """A script without #! runs in the shell, as with execvp."""
        program = tmp_path / "program"
        program.write_text('echo "script $1"\n')
        program.chmod(0o755)
        done = run(str(program), "x")
        assert (done.returncode, done.stdout) == (0, "script x\n")

    def test_search(self, run: Run, tmp_path: Path) -> None:
        for directory, mode in (("a", 0o644), ("b", 0o755)):
            (tmp_path / directory).mkdir()
            program = tmp_path / directory / "program"
            program.write_text(f"#!/bin/sh\necho {directory}\n")
            program.chmod(mode)
        path = f"{tmp_path}/none:{tmp_path}/a:{tmp_path}/b"
        assert run("program", env={**os.environ, "PATH": path}).stdout == "b\n"
        done = run("program", env={**os.environ, "PATH": f"{tmp_path}/a:{tmp_path}/none"})
        assert done.returncode == 126
        # An empty element is the working directory; without PATH there is a default.
        here = run("program", env={**os.environ, "PATH": ":/x"}, cwd=tmp_path / "b")
        assert here.stdout == "b\n"
        env = {name: value for name, value in os.environ.items() if name != "PATH"}
        assert run("true", env=env).returncode == 0


class TestInheritance:
    def test_dispositions_and_mask(self, run: Run) -> None:
        """The program's are those of uvfio, without what the interpreter did to SIGPIPE and SIGXFSZ.

        Both are started by a path: from Python 3.13 on, subprocess calls posix_spawn then, which leaves the two
        signals of the C library's threads ignored.
        """
        grep = shutil.which("grep")
        assert grep is not None
        command = [grep, "-E", "^Sig(Blk|Ign|Cgt)", "/proc/self/status"]
        native = subprocess.run(command, capture_output=True, text=True, check=True)
        assert run(*command).stdout == native.stdout

    def test_ignored_and_blocked_signals_stay_so(self, run: Run) -> None:
        command = ["grep", "-E", "^Sig(Blk|Ign|Cgt)", "/proc/self/status"]

        def prepare() -> None:
            for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
                signal.signal(number, signal.SIG_IGN)
            signal.pthread_sigmask(signal.SIG_SETMASK, {signal.SIGUSR1, signal.SIGTERM})

        native = subprocess.run(
            command, capture_output=True, text=True, check=True, preexec_fn=prepare
        )
        assert "0000000000004200" in native.stdout
        assert run(*command, preexec_fn=prepare).stdout == native.stdout

    def test_descriptors(self, run: Run) -> None:
        """Standard streams, what was passed on purpose, and ls's own."""
        read, write = os.pipe()
        try:
            done = run("ls", "/proc/self/fd", pass_fds=[read])
        finally:
            os.close(read)
            os.close(write)
        numbers = {int(name) for name in done.stdout.split()}
        assert {0, 1, 2, read} < numbers
        assert len(numbers) == 5

    def test_a_pipe_ends_when_the_program_closes_it(self, run: Run) -> None:
        read, write = os.pipe()
        process = run.start(
            *python(f"""
                import os, signal
                os.close({write})
                print("closed", flush=True)
                signal.pause()
            """),
            pass_fds=[write],
        )
        os.close(write)
        assert line(process) == "closed"
        assert os.read(read, 1) == b""
        os.close(read)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == -signal.SIGTERM


class TestRefusal:
    def test_inside_another_supervisor(self, run: Run) -> None:
        done = run(sys.executable, str(run.driver), "true")
        assert done.returncode == 125
        assert done.stderr.startswith(
            "uvfio: another supervisor listens to this process's system calls already (uvfio run"
        )

    def test_out_of_reach(self, run: Run) -> None:
        """As in a container without CAP_SYS_PTRACE; nothing is left running."""
        done = run.script("""
            import errno, signal
            def refuse(pidfd, fd):
                raise OSError(errno.EPERM, "pidfd_getfd: Operation not permitted")
            before = signal.pthread_sigmask(signal.SIG_BLOCK, set())
            launch.syscalls.pidfd_getfd = refuse
            try:
                start(["true"])
            except launch.LaunchError as error:
                print(error.errno, error)
                print(error.hint)
            try:
                os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                print("none")
            print(signal.pthread_sigmask(signal.SIG_BLOCK, set()) == before)
        """)
        assert done.stdout.splitlines() == [
            "1 descriptors of the program are out of reach (pidfd_getfd: Operation not permitted)",
            launch.PTRACE_HINT,
            "none",
            "True",
        ]

    def test_invalid_filter(self, run: Run) -> None:
        done = run.script("""
            try:
                launch.launch(["true"], os.environ, bytes(8), front.split())
            except launch.LaunchError as error:
                print(error)
            try:
                os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                print("none")
        """)
        assert done.stdout.splitlines() == [
            "the kernel does not offer seccomp user notification (Invalid argument)",
            "none",
        ]

    @pytest.mark.parametrize(
        ("release", "machine", "text"),
        [
            ("5.18.19", "x86_64", "this is Linux 5.18.19; running programs needs 5.19 or later"),
            ("4.4.0-x", "x86_64", "this is Linux 4.4.0-x;"),
            ("6.1.0", "aarch64", "this machine is aarch64; programs can be run on x86-64 only"),
        ],
    )
    def test_kernels(
        self, monkeypatch: pytest.MonkeyPatch, release: str, machine: str, text: str
    ) -> None:
        uname = os.uname_result(("Linux", "host", release, "", machine))
        monkeypatch.setattr(os, "uname", lambda: uname)
        with pytest.raises(launch.LaunchError, match=text):
            launch.launch(["true"], {}, b"", cast("Any", None))

    @pytest.mark.parametrize(
        ("message", "number", "text"),
        [
            (b"", errno.ENOTSUP, "ended before it could be supervised"),
            (
                launch._MESSAGE.pack(b"F", errno.EAGAIN),
                errno.EAGAIN,
                "no process could be made: Resource temporarily unavailable",
            ),
            (launch._MESSAGE.pack(b"S", errno.EBUSY), errno.EBUSY, "another supervisor listens"),
            (launch._MESSAGE.pack(b"S", errno.ENOSYS), errno.ENOSYS, "does not offer seccomp"),
            (launch._MESSAGE.pack(b"S", errno.EACCES), errno.EACCES, "the filter was refused"),
        ],
    )
    def test_reasons(self, message: bytes, number: int, text: str) -> None:
        error = launch._failure(message)
        assert error.errno == number
        assert text in str(error)


def test_memory_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*arguments: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    def no_such_fd(pidfd: int, fd: int) -> int:
        raise OSError(errno.EBADF, "Bad file descriptor")

    class Program:
        pid, pidfd = os.getpid(), -1  # some process that is well alive

    program: Any = Program()
    monkeypatch.setattr(syscalls, "pidfd_getfd", no_such_fd)
    monkeypatch.setattr(os, "open", denied)
    refusal = launch._refusal(program)
    assert refusal is not None
    text = f"memory of the program is out of reach (/proc/{os.getpid()}/mem: Permission denied)"
    assert text in str(refusal)

    def vanished(*arguments: object) -> int:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory")

    monkeypatch.setattr(os, "open", vanished)
    assert launch._refusal(program) is None

    child = os.fork()
    if not child:
        os._exit(0)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)  # a zombie: its memory is nobody's
    program.pid = child
    monkeypatch.setattr(os, "open", denied)
    assert launch._refusal(program) is None
    os.waitpid(child, 0)


def test_imports_are_few() -> None:
    """The way to the program's first instruction is short: nothing heavy is imported.

    What ctypes itself imports does not count: threading, from Python 3.14 on.
    """
    code = (
        "import ctypes, sys; before = set(sys.modules); "
        "import uvfio.doors.run.launch.launch, uvfio.doors.run.filter.build;"
        "print(*sorted(set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"subprocess", "socket", "selectors", "threading", "logging", "dataclasses", "inspect",
             "asyncio", "multiprocessing", "argparse", "json", "tempfile", "shutil"}  # fmt: skip
    assert not heavy & set(done.stdout.split())
