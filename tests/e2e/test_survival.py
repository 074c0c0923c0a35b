"""What must not end the run or its exit status, and how a run is ended that would not end."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from support.uvfio_cli import NOBODY, Uvfio, run_uvfio

MODEL = """
import itertools, sys, threading, time
from uvfio.kit import *

class Regs(RegisterMap):
    exit0 = Register(0x00, access="ro")
    loop = Register(0x04, access="ro")
    sleep = Register(0x08, access="ro")
    lock = Register(0x0c, access="ro")
    in_c = Register(0x10, access="ro")
    swallow = Register(0x14, access="ro")
    late = Register(0x18, access="wo")
    memory = Register(0x1c, access="ro")
    keyboard = Register(0x20, access="ro")
    far = Register(0x24, access="wo")
    nan = Register(0x28, access="wo")
    late_exit = Register(0x2c, access="wo")

class Bad(PciModel):
    vendor_id, device_id = 0x1234, 0x0BAD
    regs = RegisterBar(0, Regs)

    @Regs.exit0.on_read
    def exit_now(self): sys.exit(0)
    @Regs.keyboard.on_read
    def interrupt_now(self): raise KeyboardInterrupt
    @Regs.memory.on_read
    def no_memory(self): raise MemoryError
    @Regs.loop.on_read
    def endless(self):
        print("in", flush=True)
        while True: pass
    @Regs.sleep.on_read
    def asleep(self): print("in", flush=True); time.sleep(1000)
    @Regs.lock.on_read
    def locked(self):
        print("in", flush=True); lock = threading.Lock(); lock.acquire(); lock.acquire()
    @Regs.in_c.on_read
    def in_c(self): print("in", flush=True); return sum(itertools.repeat(0))
    @Regs.swallow.on_read
    def swallows(self):
        print("in", flush=True)
        while True:
            try: time.sleep(1)
            except BaseException: pass
    @Regs.late.on_write
    def later(self, value): self.after(0.001, self.endless)
    @Regs.late_exit.on_write
    def exits_later(self, value): self.after(0.001, sys.exit)
    @Regs.far.on_write
    def far_away(self, value):
        for delay in (3e6, 1e300, float("inf"), -1.0): self.after(delay, int)
    @Regs.nan.on_write
    def not_a_number(self, value): self.after(float("nan"), int)
"""

PROGRAM = """
import errno, fcntl, os, sys, time
group = os.open("/dev/vfio/0", os.O_RDWR)
device = fcntl.ioctl(group, 0x40083B68, bytearray(b"0000:00:01.0\\0"))
os.pwrite(device, b"\\6\\0", (7 << 40) + 4)
def access(number, write=False):
    try:
        os.pwrite(device, bytes(4), number) if write else os.pread(device, 4, number)
    except OSError as error:
        return errno.errorcode[error.errno]
    return "ok"
print("ready", flush=True)
"""

Python = Callable[..., list[str]]


@pytest.fixture
def bad(tmp_path: Path) -> str:
    path = tmp_path / "bad.py"
    path.write_text(MODEL)
    return f"{path}:Bad"


# -- mistakes of a model -----------------------------------------------------------------------------


def test_exceptions_that_end_a_process_end_no_run(bad: str, python: Python) -> None:
    code = f"{PROGRAM}\nprint(access(0), access(0x20), access(0x1c), access(0x2c, True))\n"
    code += "for _ in range(200): os.stat('/dev/vfio/0'); time.sleep(.001)\nsys.exit(7)"
    with Uvfio("run", "-d", bad, "--", *python(code)) as uvfio:
        assert uvfio.process.wait(30) == 7
    text = uvfio.text("stderr")
    assert "EIO EIO ENOMEM ok\n" in uvfio.text("stdout")
    assert "exit_now, on_read of it, failed: SystemExit: 0" in text
    line = MODEL[: MODEL.index("sys.exit(0)")].count("\n") + 1
    assert f"bad.py:{line}" in text, "the line that raised it"
    assert "a timer or an event" in text
    assert "no memory for system call 17" in text


def test_exit_in_a_module_that_is_imported(tmp_path: Path) -> None:
    path = tmp_path / "quits.py"
    path.write_text("import sys\nsys.exit(0)\n")
    for words in (("run", "-d", f"{path}:X", "--", "true"), ("list", "-d", f"{path}:X")):
        done = run_uvfio(*words)
        assert done.status == (125 if words[0] == "run" else 1)
        assert f"{path}:2: it calls sys.exit() when it is imported" in done.stderr


def test_timers_of_any_length(bad: str, python: Python) -> None:
    code = f"{PROGRAM}\nprint(access(0x24, True), access(0x28, True))\nos.stat('/dev/vfio/0')"
    with Uvfio("run", "-d", bad, "--", *python(code)) as uvfio:
        assert uvfio.process.wait(30) == 0
    assert "ok EIO\n" in uvfio.text("stdout")
    assert "a delay of nan s" in uvfio.text("stderr")


# -- hooks without an end ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("register", "name"),
    [(4, "endless"), (8, "asleep"), (0xC, "locked"), (0x10, "in_c"), (0x14, "swallows")],
)
def test_a_hook_without_an_end(register: int, name: str, bad: str, python: Python) -> None:
    """The first signal says which hook it is, the second one ends the run; the program ignores both."""
    code = f"import signal\nfor n in (1, 2, 3, 15): signal.signal(n, signal.SIG_IGN)\n{PROGRAM}"
    with Uvfio("run", "-d", bad, "--", *python(f"{code}access({register})")) as uvfio:
        uvfio.expect("ready\nin\n")
        os.killpg(uvfio.pid, signal.SIGINT)
        if name == "in_c":  # a stack, which may come before or after the hint
            uvfio.expect("this is where:\n", "stderr")
            uvfio.expect(name, "stderr")
        else:
            uvfio.expect("one more signal ends the run", "stderr")
        text = uvfio.text("stderr")
        assert name in text
        assert "bad.py" in text
        if name != "in_c":
            assert "device <Bad 0000:00:01.0> has been running for" in text
        os.killpg(uvfio.pid, signal.SIGTERM)
        done = uvfio.finish()
    assert done.status == 125


def test_a_timer_without_an_end_after_the_program(bad: str, python: Python) -> None:
    code = f"{PROGRAM}access(0x18, True)\nwhile True: os.stat('/dev/vfio/0')"
    with Uvfio("run", "-d", bad, "--timeout", "3", "--", *python(code)) as uvfio:
        done = uvfio.finish()
    assert done.status == 124
    assert "took longer than 3 s" in done.stderr
    assert "Bad.endless" in done.stderr


def test_timeout() -> None:
    done = run_uvfio(
        "run", "--timeout", "1", "--", "sh", "-c", "trap '' TERM; setsid sleep 1000 & wait"
    )
    assert done.status == 124
    assert "took longer than 1 s (--timeout)" in done.stderr
    assert run_uvfio("run", "--timeout", "100", "--", "sh", "-c", "exit 7").status == 7


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "soon", ""])
def test_timeouts_that_are_none(value: str) -> None:
    assert run_uvfio("run", f"--timeout={value}", "--", "true").status == 2


def test_kill_with_program() -> None:
    script = "setsid sleep 1000 & exit 7"
    assert run_uvfio("run", "--kill-with-program", "--", "sh", "-c", script).status == 7


# -- stopped programs, and signals for the group ---------------------------------------------------------


@pytest.mark.parametrize("name", ["STOP", "TSTP", "TTIN", "TTOU"])
def test_a_stopped_program_that_its_child_wakes(name: str, python: Python) -> None:
    """The supervisor serves the child meanwhile; who waits for uvfio sees it stopped and going on."""
    code = f"""
import os, signal, sys
me = os.getpid()
if not os.fork():
    while open(f"/proc/{{me}}/stat").read().rpartition(")")[2].split()[0] != "T": pass
    sys.stdin.readline()
    os.close(os.open("/dev/vfio/240", os.O_RDWR))
    os.kill(me, signal.SIGCONT)
    os._exit(0)
os.kill(me, signal.SIG{name})
os.wait()
print("back")
"""
    with Uvfio("run", "--", *python(code), session=False) as uvfio:
        assert uvfio.wait_changed(os.WSTOPPED).si_code == os.CLD_STOPPED
        uvfio.send("go on\n")
        uvfio.wait_changed(os.WCONTINUED)
        assert uvfio.finish().ok().stdout == "back\n"


def test_signals_for_the_group_that_the_program_handles(python: Python) -> None:
    """Each comes once, and ends nothing."""
    names = [
        "ALRM",
        "VTALRM",
        "PROF",
        "XCPU",
        "XFSZ",
        "IO",
        "USR1",
        "USR2",
        "PIPE",
        "PWR",
        "STKFLT",
        "TRAP",
        "SYS",
        "ABRT",
    ]
    code = f"""
import os, signal
took = []
for name in {names}: signal.signal(getattr(signal, "SIG" + name), lambda n, f: took.append(n))
print("ready", flush=True)
while len(took) < {len(names)}: signal.pause()
print(len(took), os.path.exists("/dev/vfio/240"))
"""
    with Uvfio("run", "--", *python(code)) as uvfio:
        uvfio.expect("ready\n")
        for name in names:
            os.killpg(uvfio.pid, getattr(signal, "SIG" + name))
        assert uvfio.finish().status == 0
    assert f"{len(names)} True\n" in uvfio.text("stdout")


def test_the_death_of_the_supervisor_alone(python: Python) -> None:
    with Uvfio(
        "run", "--", *python("print('ready', flush=True)\nwhile True: open('/dev/null')")
    ) as uvfio:
        uvfio.expect("ready\n")
        (child,) = Path(f"/proc/{uvfio.pid}/task/{uvfio.pid}/children").read_text().split()
        os.kill(int(child), signal.SIGKILL)
        done = uvfio.finish()
    assert done.status == -signal.SIGKILL
    assert done.stderr == f"uvfio: the supervisor (pid {child}) died; ending the program\n"


# -- readers that leave -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words", [["--trace"], ["--trace-summary"], ["--trace=/dev/full"], ["--status-fd", "2"]]
)
@pytest.mark.parametrize("stderr", ["2>/dev/full", "2>&-", "2>/dev/null"])
def test_the_exit_status_survives_its_readers(words: list[str], stderr: str) -> None:
    if stderr == "2>&-" and "--status-fd" in words:
        pytest.skip("refused at the start")
    done = run_uvfio(
        "run",
        *words,
        *("--", "sh", "-c", "head -c0 /dev/vfio/240; exit 7"),
        before=["sh", "-c", f'exec "$@" {stderr}', "sh"],
    )
    assert done.status == 7


def test_nobody_reads_the_trace() -> None:
    """A full pipe delays the run once, for two seconds; then lines are dropped."""
    reader, writer = os.pipe()
    try:
        done = run_uvfio(
            *("run", "--trace", "--", "sh", "-c"),
            "for i in $(seq 900); do head -c0 /dev/vfio/240; done 2>/dev/null; exit 7",
            before=["bash", "-c", f'exec "$@" 2>&{writer}', "bash"],
            pass_fds=[writer],
            timeout=60,
        )
    finally:
        os.close(writer)
        os.close(reader)
    assert done.status == 7


def test_the_trace_of_a_run_that_is_killed(tmp_path: Path, python: Python) -> None:
    path = tmp_path / "trace"
    code = "import os\nos.open('/dev/vfio/240', 2)\nprint('ready', flush=True)\nos.read(0, 1)"
    with Uvfio("run", f"--trace={path}", "--", *python(code)) as uvfio:
        uvfio.expect("ready\n")
        assert 'openat("/dev/vfio/240")' in path.read_text()
        uvfio.finish("x").ok()


def test_a_refusal_for_memlock_is_said_once(python: Python) -> None:
    code = """
import errno, fcntl, mmap, os, struct, ctypes
group = os.open("/dev/vfio/240", os.O_RDWR)
container = os.open("/dev/vfio/vfio", os.O_RDWR)
fcntl.ioctl(group, 0x3B68, struct.pack("i", container))
fcntl.ioctl(container, 0x3B66, 1)
memory = mmap.mmap(-1, 1 << 20)
at = ctypes.addressof(ctypes.c_char.from_buffer(memory))
for iova in (0, 1 << 30):
    try:
        fcntl.ioctl(container, 0x3B71, struct.pack("IIQQQ", 32, 3, at, iova, 1 << 20))
    except OSError as error:
        print(errno.errorcode[error.errno])
"""
    done = run_uvfio("run", "--memlock", "64K", "--", *python(code)).ok()
    assert done.stdout == "ENOMEM\nENOMEM\n"
    assert done.stderr.count("RLIMIT_MEMLOCK") == 1
    assert "ulimit -l" in done.stderr


def test_an_empty_name_of_the_socket() -> None:
    done = run_uvfio("run", "--control", "", "--", "true")
    assert done.status == 2
    assert "names no socket" in done.stderr


def test_a_hostile_umask() -> None:
    for _ in range(2):
        command = ["sh", "-c", 'umask 0277; exec "$@"', "sh"]
        run_uvfio("run", "--", "test", "-e", "/dev/vfio/240", before=command, user=NOBODY).ok()


def test_names_of_options_are_escaped() -> None:
    done = run_uvfio("run", "-d", "edu,a\nb\x1b=1", "--", "true")
    assert done.status != 0
    assert r"'a\nb\x1b' '1' is not an option" in done.stderr


IGNORES_CHILDREN = "import os, signal, sys; signal.signal(17, signal.SIG_IGN); os.execvp(sys.argv[1], sys.argv[1:])"


def test_a_caller_that_ignores_the_end_of_children(python: Python) -> None:
    """Children of such a process leave no status; the program sees the signal ignored, as natively."""
    code = "import signal, sys; sys.exit(7 if signal.getsignal(17) == signal.SIG_IGN else 1)"
    done = run_uvfio("run", "--", *python(code), before=python(IGNORES_CHILDREN))
    assert done.status == 7
