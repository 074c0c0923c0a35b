"""The guard with real programs: signals, job control, and the death of each of the three processes."""

from __future__ import annotations

import os
import select
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support.launching import Run, line, python, write_driver

if TYPE_CHECKING:
    from collections.abc import Iterator

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


@pytest.fixture
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    made = Run(write_driver(tmp_path_factory.mktemp("driver")))
    yield made
    made.end()


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
            signal.SIGPWR,
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

    def test_an_urgent_signal_for_the_supervisor_disturbs_nothing(self, run: Run) -> None:
        """The supervisor has a handler for it."""
        process = run.start(*python(LISTENING))
        os.kill(parent(parent(int(line(process).split()[1]))), signal.SIGURG)
        process.terminate()
        assert line(process) == "SIGTERM"
        assert process.wait(60) == 3

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGUSR1, signal.SIGHUP])
    def test_a_signal_for_the_group_comes_once(self, run: Run, number: signal.Signals) -> None:
        process = run.start(*python(LISTENING), process_group=0)
        guard = parent(int(line(process).split()[1]))
        for _ in range(3):
            os.killpg(process.pid, number)
            assert line(process) == number.name
            await_not_pending(guard, number)
        process.terminate()
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

    def test_a_main_thread_that_sleeps_through_the_end_is_woken(self, run: Run) -> None:
        """Before Linux 6.11 RECV does not return when the last program has ended.

        A listener whose program idles stands in for that. The interruption is an InterruptedError whether
        or not fcntl.ioctl repeats interrupted calls.
        """
        done = run.script("""
            import signal, threading
            from uvfio.doors.run.linux import syscalls
            announce, told = os.pipe()
            idle = os.fork()
            if idle == 0:
                os.write(told, bytes([syscalls.seccomp(build.build_filter(range(0)))]))
                signal.pause()
            number = os.read(announce, 1)[0]
            silent = syscalls.pidfd_getfd(os.pidfd_open(idle), number)

            launched = start(["true"])
            threading.Thread(target=serve, args=(launched,)).start()
            try:
                fcntl.ioctl(silent, s.SECCOMP_IOCTL_NOTIF_RECV, bytes(80))
            except InterruptedError:
                print("woken", launched.ended())
            print(launched.wait())
            os.kill(idle, signal.SIGKILL)
        """)
        assert done.stdout == "woken True\n0\n"
        assert done.stderr == ""


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def await_not_pending(pid: int, number: int) -> None:
    """The guard has judged the signal."""
    while True:
        status = Path(f"/proc/{pid}/status").read_text()
        pending = int(status.partition("ShdPnd:")[2].split()[0], 16)
        if not pending >> (number - 1) & 1:
            return
        os.sched_yield()


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
            serve(launched, limit=6)
            os.kill(launched.guard, signal.SIGKILL)
            os.waitpid(launched.guard, 0)
            launched.kill()
            print(os.WTERMSIG(launched.wait()))
        """)
        assert done.stdout == "9\n"

    def test_of_the_guard_and_signals(self, run: Run) -> None:
        """Without the guard, signals go to the program directly."""
        process = run.start(*python(LISTENING))
        pid = int(line(process).split()[1])
        guard = parent(pid)
        watch = os.pidfd_open(guard)
        os.kill(guard, signal.SIGKILL)
        assert select.select([watch], [], [], 60)[0]
        os.close(watch)
        process.terminate()
        assert line(process) == "SIGTERM"
        assert process.wait(60) == 3


class TestKillDescendants:
    def test_all_but_the_given_one(self, run: Run) -> None:
        done = run.script("""
            import subprocess
            tree = subprocess.Popen(
                ["sh", "-c", "setsid sleep 1000 & (sleep 1000 & echo ready; exec sleep 1000) & wait; echo over"],
                stdout=subprocess.PIPE, text=True)
            assert tree.stdout.readline() == "ready\\n"
            launch.kill_descendants(tree.pid)
            print(tree.communicate())
            print(tree.returncode)
            launch.kill_descendants(os.getpid())
        """)
        assert done.stdout == "('over\\n', None)\n0\n"
