"""Signals and exits: whoever started ``uvfio run`` sees what he would see of the program alone."""

from __future__ import annotations

import json
import os
import select
import shlex
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support.requirements import require_program
from support.terminal import Terminal
from support.uvfio_cli import Uvfio, run_uvfio

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from e2e.conftest import Programs

NAMED = (
    *("HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2"),
    *("PIPE", "ALRM", "TERM", "XCPU", "XFSZ", "SYS", "RTMIN", "RTMAX"),
)

# -- how a program ends ------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [0, 1, 2, 3, 63, 124, 125, 126, 127, 128, 130, 137, 254, 255])
def test_the_exit_status_is_the_program_s(status: int) -> None:
    done = run_uvfio("run", "--", "sh", "-c", f"exit {status}")
    assert (done.status, done.stdout, done.stderr) == (status, "", "")


@pytest.mark.parametrize("name", NAMED)
def test_the_signal_that_killed_the_program_kills_uvfio(name: str) -> None:
    number = getattr(signal, f"SIG{name}")
    done = run_uvfio("run", "--", "sh", "-c", f"ulimit -c 0; kill -{int(number)} $$")
    assert (done.status, done.stdout, done.stderr) == (-number, "", "")


def test_a_shell_says_128_and_the_signal() -> None:
    script = f"{shlex.quote(sys.executable)} -m uvfio run -- sh -c 'kill -TERM $$'; echo $?"
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["143"]


def test_a_program_that_is_not_there() -> None:
    done = run_uvfio("run", "--", "no-such-program-anywhere")
    assert done.status == 127
    assert done.stderr == "uvfio: cannot run no-such-program-anywhere: No such file or directory\n"


def test_a_program_that_cannot_be_executed(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("#!/bin/sh\n")
    done = run_uvfio("run", "--", file)
    assert done.status == 126
    assert done.stderr.splitlines() == [
        f"uvfio: cannot run {file}: Permission denied",
        f"hint: it is not executable: chmod +x {file}",
    ]


def test_a_script_without_an_interpreter_line(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("exit 9\n")
    file.chmod(0o755)
    assert run_uvfio("run", "--", file).status == 9


def test_a_script_whose_interpreter_is_missing(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("#!/no/such/interpreter\n")
    file.chmod(0o755)
    assert run_uvfio("run", "--", file).status == 127


def test_a_bad_machine_file(tmp_path: Path) -> None:
    machine = tmp_path / "machine.toml"
    machine.write_text('[[device]]\nmodel = "edu"\nadress = "0000:06:0d.0"\n')
    done = run_uvfio("run", "-m", machine, "--", "true")
    assert (done.status, done.stdout) == (125, "")
    assert str(machine) in done.stderr
    assert "adress" in done.stderr


def test_a_machine_file_that_is_not_there(tmp_path: Path) -> None:
    done = run_uvfio("run", "-m", tmp_path / "none.toml", "--", "true")
    assert (done.status, done.stdout) == (125, "")
    assert len(done.stderr.splitlines()) <= 2


@pytest.mark.parametrize(
    "words", [["--no-such-option"], [], ["-d"], ["-d", "edu,group=x", "--", "true"]]
)
def test_a_command_line_that_makes_no_sense(words: list[str]) -> None:
    done = run_uvfio("run", *words)
    assert (done.status, done.stdout) == (2, "")
    assert done.stderr.startswith("uvfio: ")


# -- signals to uvfio ----------------------------------------------------------------------------------

COUNTS_SIGNALS = """
import collections, os, signal, sys
got = collections.Counter()
def take(number, frame):
    got[signal.Signals(number).name] += 1
    os.write(1, b"took\\n")  # the next signal may come while this one is being told
for name in sys.argv[1:]:
    signal.signal(getattr(signal, name), take)
print("ready", flush=True)
while line := os.read(0, 100):
    print(sorted(got.items()), flush=True)
sys.exit(7)
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT", "SIGQUIT", "SIGUSR1", "SIGUSR2"])
def test_a_signal_to_uvfio_reaches_the_program_once(
    name: str, python: Callable[..., list[str]]
) -> None:
    with Uvfio("run", "--", *python(COUNTS_SIGNALS, name)) as uvfio:
        uvfio.expect("ready\n")
        uvfio.signal(getattr(signal, name))
        uvfio.expect("took\n")
        uvfio.send("\n")
        uvfio.expect(f"[('{name}', 1)]\n")
        assert uvfio.finish().status == 7


def test_sigterm_ends_a_program_that_does_not_expect_it(program: Programs) -> None:
    with Uvfio("run", "--", program("hold")) as uvfio:
        uvfio.expect("ready\n")
        uvfio.signal(signal.SIGTERM)
        assert uvfio.process.wait(60) == -signal.SIGTERM
        assert uvfio.finish().stderr == ""


def test_a_signal_to_the_process_group_reaches_the_program_once(
    python: Callable[..., list[str]],
) -> None:
    """What Ctrl-C does, and ``kill -- -PGID``: uvfio has it too, and must not pass it on."""
    with Uvfio("run", "--", *python(COUNTS_SIGNALS, "SIGINT", "SIGTERM")) as uvfio:
        uvfio.expect("ready\n")
        for name in ("SIGINT", "SIGTERM"):
            os.killpg(uvfio.pid, getattr(signal, name))
            uvfio.expect("took\n")
        uvfio.send("\n")
        uvfio.expect("[('SIGINT', 1), ('SIGTERM', 1)]\n")
        assert uvfio.finish().status == 7


def test_a_signal_while_registers_are_accessed(program: Programs) -> None:
    """The program is in the middle of a call most of the time; it ends all the same, and at once."""
    with Uvfio("run", "--", program("churn"), "1") as uvfio:
        uvfio.expect("ready\n")
        uvfio.signal(signal.SIGTERM)
        assert uvfio.process.wait(60) == -signal.SIGTERM
        uvfio.finish()


def test_what_is_ignored_stays_ignored() -> None:
    """nohup: a program inherits what uvfio was started with."""
    script = "grep -E '^Sig(Ign|Blk)' /proc/self/status"
    natively = subprocess.run(
        ["sh", "-c", f"trap '' HUP USR1; {script}"], capture_output=True, text=True, check=True
    ).stdout
    done = run_uvfio(
        "run", "--", "sh", "-c", script, before=["sh", "-c", "trap '' HUP USR1; exec \"$@\"", "sh"]
    ).ok()
    assert done.stdout == natively


# -- stop and go on ------------------------------------------------------------------------------------


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_stop_and_continue(python: Callable[..., list[str]]) -> None:
    """SIGTSTP to the group stops the program, then uvfio; SIGCONT wakes both."""
    code = "import os\nprint(os.getpid(), flush=True)\nwhile os.read(0, 1): print('goes on', flush=True)"
    with Uvfio("run", "--", *python(code), session=False) as uvfio:
        pid = int(uvfio.expect("\n"))
        for _ in range(3):
            os.killpg(uvfio.pid, signal.SIGTSTP)
            stopped = uvfio.wait_changed(os.WSTOPPED)
            assert stopped.si_code == os.CLD_STOPPED
            assert state_of(pid) == "T"
            os.killpg(uvfio.pid, signal.SIGCONT)
            uvfio.wait_changed(os.WCONTINUED)
            uvfio.send("x")
            uvfio.expect("goes on\n")
        assert uvfio.finish().ok().stderr == ""


def test_a_program_that_stops_itself(python: Callable[..., list[str]]) -> None:
    code = "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)\nprint(os.path.exists('/dev/vfio/240'))"
    with Uvfio("run", "--", *python(code), session=False) as uvfio:
        uvfio.wait_changed(os.WSTOPPED)
        uvfio.signal(signal.SIGCONT)
        assert uvfio.finish().ok().stdout == "True\n"


def test_a_stopped_supervisor_only_delays(program: Programs) -> None:
    with Uvfio(
        "run", "--", "sh", "-c", f"read line; exec {program('dup_fds')}", session=False
    ) as uvfio:
        uvfio.signal(signal.SIGSTOP)
        uvfio.wait_changed(os.WSTOPPED)
        uvfio.send("go\n")
        uvfio.signal(signal.SIGCONT)
        uvfio.finish().ok()


# -- at a terminal -------------------------------------------------------------------------------------


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    """An interactive shell, in which ``uvfio`` is ours; at its end nothing is left in the scratch folder."""
    shell = require_program("bash")
    require_program("setsid")
    with tempfile.TemporaryDirectory(prefix="e2e-", dir="/dev/shm") as scratch:
        env = {
            **os.environ,
            "PS1": "$ ",
            "TERM": "dumb",
            "XDG_RUNTIME_DIR": scratch,
            "HOME": str(tmp_path),
        }
        with Terminal([shell, "--norc", "--noprofile", "--noediting", "-i"], env) as terminal:
            terminal.expect("$ ")
            terminal.type(
                f'uvfio() {{ {shlex.quote(sys.executable)} -m uvfio "$@"; }}; stty -echo\n'
            )
            terminal.expect("$ ")
            yield terminal
            terminal.type("exit\n")
            terminal.process.wait(30)
        assert os.listdir(scratch) == []


def test_control_c(terminal: Terminal, program: Programs) -> None:
    terminal.type(f"uvfio run -- {program('hold')}\n")
    terminal.expect("ready")
    terminal.type(Terminal.INTERRUPT)
    terminal.expect("$ ")
    terminal.type("echo status $?\n")
    assert "status 130" in terminal.expect("$ ")


def test_control_c_for_a_program_that_handles_it(terminal: Terminal, tmp_path: Path) -> None:
    script = tmp_path / "counts.py"
    script.write_text(COUNTS_SIGNALS)
    terminal.type(f"uvfio run -- {sys.executable} {script} SIGINT; echo status $?\n")
    terminal.expect("ready")
    terminal.type(Terminal.INTERRUPT)
    terminal.expect("took")
    terminal.type("\n")
    terminal.expect("[('SIGINT', 1)]")
    terminal.type("\x04")
    terminal.expect("status 7")


def test_control_z_and_fg(terminal: Terminal, program: Programs) -> None:
    """Stopped and continued as a job; the program answers before it is stopped, as only then it is in front."""
    terminal.type(f"uvfio run -- sh -c '{program('probe_lock')}; exec cat'\n")
    terminal.expect("viable")
    for number in range(3):
        terminal.type(f"line {number}\n")
        terminal.expect(f"line {number}")
        terminal.type(Terminal.SUSPEND)
        terminal.expect("Stopped")
        terminal.expect("$ ")
        terminal.type("jobs\n")
        terminal.expect("Stopped")
        terminal.expect("$ ")
        terminal.type("fg\n")
    terminal.type("last line\n")
    terminal.expect("last line")
    terminal.type("\x04")
    terminal.expect("$ ")
    terminal.type("echo status $?\n")
    terminal.expect("status 0")


def test_a_background_job(terminal: Terminal, program: Programs) -> None:
    terminal.type(f"uvfio run -- {program('probe_lock')} &\n")
    terminal.expect("viable=1 locked=0 iommu=ok")
    terminal.type("wait; echo status $?\n")
    terminal.expect("status 0")


# -- the death of the supervisor -------------------------------------------------------------------------

DIED = "uvfio: the supervisor (pid {}) died; ending the program\n"


def test_kill_of_the_supervisor_while_the_program_waits(program: Programs) -> None:
    with Uvfio("run", "--", program("hold")) as uvfio:
        uvfio.expect("ready\n")
        uvfio.signal(signal.SIGKILL)
        for left in uvfio.processes():
            uvfio._await_end(left, 30)  # before its input ends
        done = uvfio.finish(grace=30)
        assert done.status == -signal.SIGKILL
        assert done.stderr == DIED.format(uvfio.pid)
        assert done.stdout == "ready\n", "it was killed, it did not close"


@pytest.mark.parametrize("delay", [0.001, 0.003, 0.01, 0.03, 0.1])
def test_kill_of_the_supervisor_while_registers_are_accessed(
    delay: float, program: Programs
) -> None:
    """No call of the program may fail because of it: it ends without having seen anything."""
    with Uvfio("run", "--", program("churn"), "1") as uvfio:
        uvfio.expect("ready\n")
        with pytest.raises(subprocess.TimeoutExpired):
            uvfio.process.wait(delay)
        uvfio.signal(signal.SIGKILL)
        done = uvfio.finish(grace=30)
        assert done.stderr == DIED.format(uvfio.pid)


def test_kill_of_the_supervisor_of_many_processes(program: Programs) -> None:
    script = f"for i in 1 2 3 4; do {program('churn')} $i & done; setsid {program('hold')} 241 0000:07:00.0; wait"
    with Uvfio("run", "--", "sh", "-c", script) as uvfio:
        uvfio.expect("ready\n")
        uvfio.signal(signal.SIGKILL)
        assert uvfio.finish(grace=30).stderr.endswith(DIED.format(uvfio.pid))


# -- more than the program itself -------------------------------------------------------------------------

DAEMON = """
import os, sys, time
if os.fork():
    os._exit(3)
os.setsid()
if os.fork():
    os._exit(0)
os.read(0, 1)  # the program has ended meanwhile
print("daemon sees", sorted(os.listdir("/dev/vfio")), flush=True)
os._exit(9)
"""


def test_a_run_lasts_until_the_last_process_ends(python: Callable[..., list[str]]) -> None:
    """The status is the first program's; a daemon that it leaves behind keeps its devices."""
    readable, writable = os.pipe()
    with (
        os.fdopen(readable) as status,
        Uvfio(
            "run", "--status-fd", str(writable), "--", *python(DAEMON), pass_fds=[writable]
        ) as uvfio,
    ):
        os.close(writable)
        started = json.loads(status.readline())
        assert started["event"] == "started"
        assert wait_gone(started["pid"])
        assert uvfio.process.poll() is None
        uvfio.send("x")
        done = uvfio.finish()
        assert (done.status, done.stdout) == (3, "daemon sees ['240', '241', 'devices', 'vfio']\n")
        ended = json.loads(status.readline())
        assert ended == {"event": "ended", "status": 3 << 8}
        assert status.read() == ""


def test_the_status_may_go_to_stderr() -> None:
    done = run_uvfio("run", "--status-fd", "2", "--", "sh", "-c", "echo words >&2; exit 4")
    first, words, last = done.stderr.splitlines()
    assert json.loads(first)["event"] == "started"
    assert words == "words"
    assert json.loads(last) == {"event": "ended", "status": 4 << 8}


def test_the_status_descriptor_is_not_the_program_s(python: Callable[..., list[str]]) -> None:
    readable, writable = os.pipe()
    code = "import os, sys\ntry: os.fstat(int(sys.argv[1]))\nexcept OSError: print('closed')"
    words = ["run", "--status-fd", str(writable), "--", *python(code, writable)]
    assert run_uvfio(*words, pass_fds=[writable]).ok().stdout == "closed\n"
    os.close(writable)
    with os.fdopen(readable) as status:
        assert len(status.readlines()) == 2


def wait_gone(pid: int) -> bool:
    """Wait until the process has ended (it may be gone already)."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([pidfd], [], [], 60)[0])
    finally:
        os.close(pidfd)


def test_stdin_reaches_the_program() -> None:
    text = "".join(f"line {number}\n" for number in range(20000))
    assert run_uvfio("run", "--", "cat", input=text).ok().stdout == text


def test_a_reader_that_leaves_ends_the_program() -> None:
    with Uvfio("run", "--", "yes") as uvfio:
        uvfio.expect("y\n")
        assert uvfio.process.stdout is not None
    readable, writable = os.pipe()
    with Uvfio("run", "--", "yes", stdout=writable) as uvfio:
        os.close(writable)
        assert os.read(readable, 4) == b"y\ny\n"
        os.close(readable)
        done = uvfio.finish()
        assert (done.status, done.stderr) == (-signal.SIGPIPE, "")


def test_closed_standard_files() -> None:
    script = 'exec "$@" 0<&- 1>&-'
    done = run_uvfio("run", "--", "sh", "-c", "exit 5", before=["sh", "-c", script, "sh"])
    assert (done.status, done.stderr) == (5, "")
