"""Real programs under a supervisor that lets every call go on.

Each test starts the supervisor as a process of its own (``driver.py``), as a user would; its stdout and
stderr are shared by the program and the guard, so the end of both pipes proves that all of them are gone.
"""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from uvfio.doors.run import launch
from uvfio.doors.run import sys as syscalls

if TYPE_CHECKING:
    from collections.abc import Iterator

DRIVER = """
import fcntl, os, sys
from uvfio.doors.run import bpf, launch
from uvfio.uapi import seccomp as s

def serve(launched, limit=None):
    \"\"\"Let calls go on, until the end or for `limit` of them.\"\"\"
    served = 0
    while served != limit:
        try:
            raw = fcntl.ioctl(launched.listener, s.SECCOMP_IOCTL_NOTIF_RECV, bytes(80))
        except (FileNotFoundError, InterruptedError):
            if launched.ended():
                break
            continue
        served += 1
        answer = s.seccomp_notif_resp.pack(int.from_bytes(raw[:8], "little"), 0, 0, 1)
        try:
            fcntl.ioctl(launched.listener, s.SECCOMP_IOCTL_NOTIF_SEND, answer)
        except FileNotFoundError:
            pass  # killed while it waited
    return served

def start(argv=None, **options):
    return launch.launch(argv or sys.argv[1:], os.environ, bpf.build_filter(range(768, 1024)), **options)

def main():
    try:
        launched = start()
    except launch.LaunchError as error:
        sys.stderr.write(f"uvfio: {error} ({error.hint})\\n")
        sys.exit(125)
    serve(launched)
    launch.finish(launched.wait())

if __name__ == "__main__":
    main()
"""

# A program that waits for signals and tells which came. It ends at SIGTERM.
LISTENING = """
import os, signal, sys
every = set(signal.valid_signals()) - {signal.SIGTSTP, signal.SIGCHLD}
signal.pthread_sigmask(signal.SIG_BLOCK, every)
print("ready", os.getpid(), flush=True)
while True:
    number = signal.sigwait(every)
    print(signal.Signals(number).name, flush=True)
    if number == signal.SIGTERM:
        print("pending", sorted(signal.sigpending()), flush=True)
        sys.exit(3)
"""


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("driver") / "driver.py"
    path.write_text(DRIVER)
    return path


@dataclass
class Run:
    """How to start the supervisor."""

    driver: Path
    started: list[subprocess.Popen[str]]

    def command(self, *argv: str) -> list[str]:
        return [sys.executable, str(self.driver), *argv]

    def __call__(self, *argv: str, **options: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*argv), capture_output=True, text=True, timeout=60, check=False, **options
        )

    def script(self, body: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Another supervisor, written with the driver's parts."""
        source = (
            f"import sys; sys.path.insert(0, {str(self.driver.parent)!r})\nfrom driver import *\n"
        )
        return subprocess.run(
            [sys.executable, "-c", source + textwrap.dedent(body)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            **options,
        )

    def start(self, *argv: str, **options: Any) -> subprocess.Popen[str]:
        """Start, with pipes for output; to be read line by line."""
        process = subprocess.Popen(
            self.command(*argv),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )
        self.started.append(process)
        return process


@pytest.fixture
def run(driver: Path) -> Iterator[Run]:
    made = Run(driver, [])
    yield made
    for process in made.started:
        process.kill()
        process.communicate()


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().rstrip("\n")


def python(body: str) -> list[str]:
    return [sys.executable, "-c", textwrap.dedent(body)]


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

    def test_nothing_is_left_open(self, run: Run) -> None:
        done = run.script("""
            launched = start(["true"])
            serve(launched)
            before = set(os.listdir("/proc/self/fd"))
            launched.wait()
            print(len(before - set(os.listdir("/proc/self/fd"))))
        """)
        assert done.stdout == "5\n"  # listener, pidfd, status, commands, news


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

    def test_not_executable(self, run: Run, tmp_path: Path) -> None:
        (tmp_path / "program").write_text("text")
        done = run(str(tmp_path / "program"))
        assert done.returncode == 126
        assert done.stderr == f"uvfio: cannot run {tmp_path}/program: Permission denied\n"
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
        """The program's are those of uvfio, without what the interpreter did to SIGPIPE and SIGXFSZ."""
        command = ["grep", "-E", "^Sig(Blk|Ign|Cgt)", "/proc/self/status"]
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


class TestSignals:
    @pytest.mark.parametrize(
        "number",
        [
            signal.SIGHUP,
            signal.SIGINT,
            signal.SIGQUIT,
            signal.SIGUSR1,
            signal.SIGUSR2,
            signal.SIGWINCH,
            signal.SIGRTMIN,
        ],
    )
    def test_a_signal_for_the_supervisor_reaches_the_program(
        self, run: Run, number: signal.Signals
    ) -> None:
        process = run.start(*python(LISTENING))
        assert line(process).startswith("ready")
        process.send_signal(number)
        assert line(process) == number.name
        process.terminate()
        assert line(process) == "SIGTERM"
        assert line(process) == "pending []"
        assert process.wait(60) == 3

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGUSR1, signal.SIGHUP])
    def test_a_signal_for_the_group_comes_once(self, run: Run, number: signal.Signals) -> None:
        process = run.start(*python(LISTENING), process_group=0)
        assert line(process).startswith("ready")
        for _ in range(3):
            os.killpg(process.pid, number)
            assert line(process) == number.name
        process.terminate()  # passed on after everything before it
        assert line(process) == "SIGTERM"
        assert line(process) == "pending []"
        assert process.wait(60) == 3

    def test_a_group_signal_is_forwarded_to_another_group(self, run: Run) -> None:
        """An interactive shell leaves the group: then it has not got the signal."""
        process = run.start(*python("import os; os.setpgid(0, 0)\n" + LISTENING), process_group=0)
        assert line(process).startswith("ready")
        os.killpg(process.pid, signal.SIGUSR1)
        assert line(process) == "SIGUSR1"
        process.terminate()
        assert line(process) == "SIGTERM"
        assert line(process) == "pending []"

    def test_keys_of_a_terminal(self, run: Run) -> None:
        """Ctrl-C and Ctrl-\\ reach the program once; uvfio survives them."""
        master, slave = os.openpty()

        def controlling_terminal() -> None:
            os.setsid()
            os.close(os.open(os.ttyname(0), os.O_RDWR))  # the first terminal that a leader opens

        process = run.start(*python(LISTENING), stdin=slave, preexec_fn=controlling_terminal)
        os.close(slave)
        try:
            assert line(process).startswith("ready")
            os.write(master, b"\x03")
            assert line(process) == "SIGINT"
            os.write(master, b"\x1c")
            assert line(process) == "SIGQUIT"
            process.terminate()
            assert line(process) == "SIGTERM"
            assert line(process) == "pending []"
            assert process.wait(60) == 3
        finally:
            os.close(master)

    def test_job_control(self, run: Run) -> None:
        """Ctrl-Z stops the program; whoever waits for uvfio sees a stopped job; SIGCONT wakes both."""
        process = run.start(*python(LISTENING), process_group=0)
        assert line(process).startswith("ready")
        for _ in range(2):
            os.killpg(process.pid, signal.SIGTSTP)
            assert stopped(process)
            os.killpg(process.pid, signal.SIGCONT)
            assert line(process) == "SIGCONT"
        process.terminate()
        assert line(process) == "SIGTERM"
        assert line(process) == "pending []"
        assert process.wait(60) == 3

    def test_continuing_uvfio_continues_a_program_in_another_group(self, run: Run) -> None:
        process = run.start(*python("import os; os.setpgid(0, 0)\n" + LISTENING), process_group=0)
        pid = int(line(process).split()[1])
        os.kill(pid, signal.SIGSTOP)
        assert stopped(process)
        process.send_signal(signal.SIGCONT)
        assert line(process) == "SIGCONT"
        process.terminate()
        assert line(process) == "SIGTERM"

    def test_continuing_the_program_continues_uvfio(self, run: Run) -> None:
        process = run.start(*python(LISTENING), process_group=0)
        pid = int(line(process).split()[1])
        os.kill(pid, signal.SIGSTOP)
        assert stopped(process)
        os.kill(pid, signal.SIGCONT)
        assert line(process) == "SIGCONT"
        assert os.WIFCONTINUED(os.waitpid(process.pid, os.WCONTINUED)[1])
        process.terminate()
        assert line(process) == "SIGTERM"
        assert line(process) == "pending []"

    def test_the_thread_wakes_a_main_thread_that_sleeps_through_the_end(self, run: Run) -> None:
        """Kernels before 6.11 do not end a receiving ioctl when the last program has ended."""
        done = run.script("""
            import signal, threading, time
            class Woken(Exception):
                pass
            def handler(number, frame):
                raise Woken
            launched = start(["true"])
            threading.Thread(target=serve, args=(launched,)).start()
            signal.signal(launch.INTERRUPT, handler)
            try:
                time.sleep(60)
            except Woken:
                print("woken", launched.ended())
            signal.signal(launch.INTERRUPT, lambda number, frame: None)
            print(launched.wait())
        """)
        assert done.stdout == "woken True\n0\n"
        assert done.stderr == ""


def stopped(process: subprocess.Popen[str]) -> bool:
    return os.WIFSTOPPED(os.waitpid(process.pid, os.WUNTRACED)[1])


BUSY = """
import os, subprocess
print("ready", os.getpid(), flush=True)
subprocess.Popen(["setsid", "sleep", "1000"])
subprocess.Popen(["sh", "-c", "(sleep 1000 &) ; exec sleep 1000"])
while True:
    try:
        open("/etc/hostname").close()
    except OSError as error:
        print("the program saw", error, flush=True)
        raise
"""


def gone(pid: int) -> bool:
    return not os.path.exists(f"/proc/{pid}")


class TestDeath:
    def test_of_the_supervisor(self, run: Run) -> None:
        process = run.start(*python(BUSY))
        pid = int(line(process).split()[1])
        process.kill()
        output, errors = process.communicate(timeout=60)  # both pipes end: nobody is left
        assert output == ""
        expected = f"uvfio: the supervisor (pid {process.pid}) died; ending the program\n"
        assert errors == expected
        assert gone(pid)

    def test_of_a_supervisor_that_owes_an_answer(self, run: Run) -> None:
        """A received notification is not delivered again: the call must block, not fail."""
        done = run.script(
            """
            import signal
            launched = start()
            serve(launched, limit=30)
            fcntl.ioctl(launched.listener, s.SECCOMP_IOCTL_NOTIF_RECV, bytes(80))
            os.kill(os.getpid(), signal.SIGKILL)
            """.replace("start()", f"start({python(BUSY)!r})")
        )
        assert done.returncode == -signal.SIGKILL
        assert "the program saw" not in done.stdout
        assert "died; ending the program" in done.stderr

    def test_of_a_stopped_program(self, run: Run) -> None:
        process = run.start(*python(LISTENING), process_group=0)
        pid = int(line(process).split()[1])
        os.kill(pid, signal.SIGSTOP)
        assert stopped(process)
        process.kill()
        assert "died; ending the program" in process.communicate(timeout=60)[1]
        assert gone(pid)

    def test_cleanup(self, run: Run, tmp_path: Path) -> None:
        tree = tmp_path / "tree"
        tree.mkdir()
        done = run.script(f"""
            import shutil, signal
            launched = start(["sleep", "1000"], cleanup=lambda: shutil.rmtree({str(tree)!r}))
            serve(launched, limit=1)
            os.kill(os.getpid(), signal.SIGKILL)
        """)
        assert done.returncode == -signal.SIGKILL
        assert not tree.exists()

    def test_no_cleanup_by_the_guard_at_an_ordinary_end(self, run: Run, tmp_path: Path) -> None:
        tree = tmp_path / "tree"
        tree.mkdir()
        done = run.script(f"""
            import shutil
            launched = start(["true"], cleanup=lambda: shutil.rmtree({str(tree)!r}))
            serve(launched)
            print(launched.wait())
        """)
        assert done.stdout == "0\n"
        assert tree.exists()

    def test_of_the_supervisor_by_an_exception(self, run: Run) -> None:
        """``kill`` and ``wait`` leave nothing."""
        done = run.script(f"""
            launched = start({python(BUSY)!r})
            try:
                serve(launched, limit=40)
                raise RuntimeError("bug")
            except RuntimeError:
                launched.kill()
                print(os.WTERMSIG(launched.wait()))
            try:
                os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                print("none")
        """)
        assert done.stdout.splitlines()[-2:] == ["9", "none"]
        assert done.stderr == ""

    def test_of_the_guard(self, run: Run) -> None:
        """The supervisor is a subreaper as well: it gets the program and its status."""
        done = run("sh", "-c", "kill -KILL $PPID; while kill -0 $PPID 2>/dev/null &&"
                   " [ $(cut -d' ' -f4 /proc/$$/stat) = $PPID ]; do :; done; echo on; exit 6")  # fmt: skip
        assert (done.returncode, done.stdout) == (6, "on\n")

    def test_of_the_guard_then_kill(self, run: Run) -> None:
        done = run.script("""
            import signal
            launched = start(["sh", "-c", "sleep 1000 & wait"])
            serve(launched, limit=20)
            os.kill(launched.guard, signal.SIGKILL)
            os.waitpid(launched.guard, 0)
            launched.kill()
            print(os.WTERMSIG(launched.wait()))
        """)
        assert done.stdout == "9\n"

    def test_of_the_guard_and_signals(self, run: Run) -> None:
        """Without the guard, signals go to the program directly."""
        process = run.start(*python("import os; parent = os.getppid()\n" + LISTENING))
        pid = int(line(process).split()[1])
        guard = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        watch = os.pidfd_open(guard)
        os.kill(guard, signal.SIGKILL)
        signal.pthread_sigmask(signal.SIG_BLOCK, set())
        wait_readable(watch)
        os.close(watch)
        process.terminate()
        assert line(process) == "SIGTERM"
        assert process.wait(60) == 3


def wait_readable(fd: int) -> None:
    import select

    assert select.select([fd], [], [], 60)[0]


class TestKillDescendants:
    def test_all_but_the_given_one(self, run: Run) -> None:
        done = run.script("""
            import subprocess
            tree = subprocess.Popen(
                ["sh", "-c", "setsid sleep 1000 & (sleep 1000 & sleep 1000) & echo ready; wait; echo over"],
                stdout=subprocess.PIPE, text=True)
            assert tree.stdout.readline() == "ready\\n"
            launch.kill_descendants(tree.pid)
            print(tree.communicate())
            print(tree.returncode)
            launch.kill_descendants(os.getpid())
        """)
        assert done.stdout == "('over\\n', None)\n0\n"


class TestRefusal:
    def test_inside_another_supervisor(self, run: Run, driver: Path) -> None:
        done = run(sys.executable, str(driver), "true")
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
            "in a container: --cap-add SYS_PTRACE; else see /proc/sys/kernel/yama/ptrace_scope"
            " (1 or less)",
            "none",
            "True",
        ]

    def test_invalid_filter(self, run: Run) -> None:
        done = run.script("""
            try:
                launch.launch(["true"], os.environ, bytes(8))
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
            launch.launch(["true"], {}, b"")

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
        pid, pidfd = 1234, -1

    program: Any = Program()
    monkeypatch.setattr(syscalls, "pidfd_getfd", no_such_fd)
    monkeypatch.setattr(os, "open", denied)
    refusal = launch._refusal(program)
    assert refusal is not None
    assert "memory of the program is out of reach (/proc/1234/mem: Permission denied)" in str(
        refusal
    )

    def vanished(*arguments: object) -> int:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory")

    monkeypatch.setattr(os, "open", vanished)
    assert launch._refusal(program) is None


def test_imports_are_few() -> None:
    """The way to the program's first instruction is short: nothing heavy is imported."""
    code = (
        "import sys; before = set(sys.modules); import uvfio.doors.run.launch, uvfio.doors.run.bpf;"
        "print(*sorted(set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"subprocess", "socket", "selectors", "threading", "logging", "dataclasses", "inspect",
             "asyncio", "multiprocessing", "argparse", "json", "tempfile", "shutil"}  # fmt: skip
    assert not heavy & set(done.stdout.split())
