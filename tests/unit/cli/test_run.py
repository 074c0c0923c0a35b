"""``uvfio run``: where our words end and the program's begin, and what the runner is told."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from uvfio.cli import run as module
from uvfio.cli.main import main
from uvfio.cli.run import parse
from uvfio.cli.usage import UsageError
from uvfio.machine.spec import default_machine

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("words", "program"),
    [
        ("prog", "prog"),
        ("prog -d x --trace -- y", "prog -d x --trace -- y"),
        ("-- prog", "prog"),
        ("-- -d x", "-d x"),
        ("-- -- prog", "-- prog"),
        ("-d edu prog a b", "prog a b"),
        ("-d edu -- prog a b", "prog a b"),
        ("-dedu prog", "prog"),
        ("-d=edu prog", "prog"),
        ("--device=edu prog", "prog"),
        ("--device edu prog", "prog"),
        ("-d prog prog -- -d", "prog -- -d"),
        ("--trace prog", "prog"),
        ("--trace=file prog", "prog"),
        ("--trace --json -d edu prog -d serial", "prog -d serial"),
        ("--status-fd 3 prog --help", "prog --help"),
        ("- x", "- x"),
        ("--", ""),
        ("", ""),
    ],
)
def test_where_the_program_begins(words: str, program: str) -> None:
    assert module.parse(words.split()).program == program.split()


def test_what_the_options_say() -> None:
    words = "-m a -mb --machine=c -d x -dy --device z --device=v=w --abi=2011 --trace=f --json"
    options = module.parse([*words.split(), "--status-fd=3", "prog"])
    assert options.machine == "c"
    assert options.device == ["x", "y", "z", "v=w"]
    assert (options.abi, options.trace, options.json, options.status_fd) == ("2011", "f", True, 3)
    options = module.parse(["--trace", "prog"])
    assert (options.machine, options.device, options.trace) == (None, [], module.STDERR)
    assert (options.abi, options.json, options.status_fd) == ("auto", False, None)


def test_help_names_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--help"]) == 0
    out = capsys.readouterr().out
    assert all(option in out for option in module.OPTIONS)


class Runner:
    """Stands for the runner: remembers what it was told, returns what it is told."""

    def __init__(self, status: int = 0) -> None:
        self.status = status
        self.program: list[str] = []
        self.spec: Any = None
        self.options: dict[str, Any] = {}
        self.timeouts: list[float | None] = []

    def __call__(self, spec: Any, program: list[str], front: Any, **options: Any) -> int:
        self.spec, self.program, self.options = spec, program, options
        return self.status


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> Runner:
    from uvfio.doors.run import supervisor
    from uvfio.doors.run.launch import front

    stand_in = Runner()
    monkeypatch.setattr(supervisor, "run", stand_in)
    monkeypatch.setattr(front, "split", stand_in.timeouts.append)
    return stand_in


def test_what_the_runner_is_told(runner: Runner) -> None:
    assert main(["run", "prog", "--", "-x"]) == 0
    assert runner.program == ["prog", "--", "-x"]
    assert runner.spec == default_machine()
    assert runner.options == {
        "trace": None,
        "trace_json": False,
        "summary": None,
        "status_fd": None,
        "abi": "auto",
        "control": None,
        "memlock": None,
        "strict": False,
        "kill_with_program": False,
    }
    assert runner.timeouts == [None]


def test_machine_file_and_devices_together(runner: Runner, tmp_path: Path) -> None:
    path = tmp_path / "m.toml"
    path.write_text('[iommu]\naddress_bits = 39\n[[device]]\nmodel = "edu"\n')
    assert main(["run", "-m", str(path), "-d", "edu@0:1.0", "--abi=2011", "prog"]) == 0
    assert runner.spec.iommu.address_bits == 39
    assert [dev.address for dev in runner.spec.devices] == ["0000:00:02.0", "0000:00:01.0"]
    assert main(["run", "-d", "edu", "prog"]) == 0
    assert [dev.address for dev in runner.spec.devices] == ["0000:00:01.0"]


def test_trace(runner: Runner, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--trace", "prog"]) == 0
    runner.options["trace"].write("a line\n")
    assert capfd.readouterr().err == "a line\n"
    path = tmp_path / "trace"
    assert main(["run", f"--trace={path}", "--json", "prog"]) == 0
    runner.options["trace"].write("a line\n")
    assert path.read_text() == "a line\n", "each line at once"
    assert runner.options["trace_json"] is True
    assert not os.get_inheritable(runner.options["trace"].fd)
    os.close(runner.options["trace"].fd)


def test_status_fd_and_control(runner: Runner) -> None:
    assert main(["run", "--status-fd", "2", "--control", "/tmp/ctl", "prog"]) == 0
    assert runner.options["status_fd"] == 2
    assert runner.options["control"] == "/tmp/ctl"


@pytest.mark.parametrize(
    ("value", "limit"),
    [("4096", 4096), ("512M", 512 << 20), ("0", 0), ("unlimited", module.UNLIMITED)],
)
def test_memlock(runner: Runner, value: str, limit: int) -> None:
    assert main(["run", "--memlock", value, "prog"]) == 0
    assert runner.options["memlock"] == limit
    assert main(["run", "prog"]) == 0
    assert runner.options["memlock"] is None


def test_the_programs_status_is_ours(runner: Runner) -> None:
    runner.status = 7 << 8
    assert main(["run", "prog"]) == 7


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV, signal.SIGINT])
def test_the_programs_signal_is_ours(number: signal.Signals) -> None:
    code = (
        "import uvfio.doors.run.supervisor as supervisor; from uvfio.cli.main import main\n"
        f"supervisor.run = lambda *a, **k: {int(number)}\n"
        "main(['run', 'prog'])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True)
    assert done.returncode == -number
    assert done.stderr == b""


def test_a_summary_goes_where_the_trace_goes(
    runner: Runner, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    main(["run", "--trace-summary", "--", "true"])
    runner.options["summary"].write("a table\n")
    assert capfd.readouterr().err == "a table\n"
    main(["run", f"--trace={tmp_path / 'out'}", "--trace-summary", "--json", "--", "true"])
    assert runner.options["summary"] is runner.options["trace"]
    assert runner.options["trace_json"] is True
    os.close(runner.options["trace"].fd)


def test_strict(runner: Runner) -> None:
    assert main(["run", "--strict", "prog"]) == 0
    assert runner.options["strict"] is True


@pytest.mark.parametrize(
    ("abi", "hint"), [("foo", "mainline"), ("mainlin", "did you mean mainline?"), ("", "2011")]
)
def test_an_unknown_abi_names_all(abi: str, hint: str) -> None:
    with pytest.raises(UsageError) as error:
        parse(["--abi=" + abi, "true"])
    assert "auto, 2011, mainline" in error.value.message
    assert hint in error.value.hint
