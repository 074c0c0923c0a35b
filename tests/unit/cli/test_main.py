"""The command: verbs, usage errors, exit statuses, and where output goes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import uvfio
from uvfio import __version__
from uvfio.cli.main import VERBS, main


def command(*words: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "uvfio", *words],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **(env or {})},
    )


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"uvfio {__version__}\n"


@pytest.mark.parametrize("words", [["-h"], ["--help"], ["help"]])
def test_help_names_every_verb(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 0
    out = capsys.readouterr().out
    assert all(f"  {verb} " in out for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_explains_itself(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help"]) == 0
    text = capsys.readouterr().out
    assert f"uvfio {verb}" in text
    assert main(["help", verb]) == 0
    assert capsys.readouterr().out == text


@pytest.mark.parametrize(
    ("words", "says", "hint"),
    [
        (["lst"], "uvfio: there is no verb 'lst'", "did you mean list?"),
        (["frobnicate"], "uvfio: there is no verb 'frobnicate'", "`uvfio --help`"),
        (["--frobnicate"], "uvfio: there is no option '--frobnicate'", "`uvfio --help`"),
        (
            ["-d", "edu", "run", "true"],
            "uvfio: the option '-d' stands in front of the verb",
            "`uvfio run -d ...`",
        ),
        (
            ["run", "--trace", "no-such-file.txt", "--", "true"],
            "uvfio: run: there is no program 'no-such-file.txt' to trace",
            "--trace=no-such-file.txt",
        ),
        (["serve"], "uvfio: there is no verb 'serve'", "`uvfio --help`"),
        (["list", "--jsn"], "uvfio: list: there is no option '--jsn'", "did you mean --json"),
        (["list", "--js"], "uvfio: list: there is no option '--js'", "--json"),
        (["list", "x"], "uvfio: list: one argument too many: 'x'", "`uvfio list --help`"),
        (["show"], "uvfio: show: the following arguments are required: ADDRESS", "--help"),
        (
            ["list", "-d"],
            "uvfio: list: argument -d/--device: expected one argument",
            "--help",
        ),
        (["list", "-d", "edu,x"], "uvfio: -d 'edu,x': option 'x' is not key=value", "DEVICE ="),
        (["run"], "uvfio: run: no program is given", "PROGRAM"),
        (["run", "-d", "edu", "--"], "uvfio: run: no program is given", "PROGRAM"),
        (["run", "--trase", "x"], "uvfio: run: there is no option '--trase'", "--trace"),
        (
            ["run", "--abi", "2012", "x"],
            "uvfio: run: --abi '2012' is none of auto, 2011, mainline",
            "2011",
        ),
        (["run", "--trace=", "x"], "uvfio: run: --trace= names no file", "stderr"),
        (["run", "--json=1", "x"], "uvfio: run: --json takes no value '1'", "--help"),
        (["run", "-x", "x"], "uvfio: run: there is no option '-x'", "--help"),
        (["run", "-d"], "uvfio: run: -d needs a value", "--help"),
        (["run", "-d", "--", "x"], "uvfio: run: -d needs a value", "--help"),
        (["run", "--json", "x"], "uvfio: run: --json is the form of the trace", "--trace"),
        (["run", "--status-fd", "99", "x"], "uvfio: run: --status-fd 99: that desc", "3>"),
        (
            ["run", "--status-fd", "x", "x"],
            "uvfio: run: --status-fd 'x' is not the number of a descriptor",
            "3>",
        ),
        (["run", "--memlock", "x", "x"], "uvfio: run: --memlock 'x' is not a size", "512M"),
        (["run", "--memlock=-1", "x"], "uvfio: run: --memlock '-1' is not a size", "512M"),
        (
            ["run", "-d", "edu@x", "x"],
            "uvfio: -d 'edu@x': address 'x' is not a PCI address",
            "SSSS",
        ),
    ],
)
def test_usage_errors(
    words: list[str], says: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    first, second = captured.err.splitlines()
    assert first.startswith(says)
    assert second.startswith("hint: ")
    assert hint in second


def test_failures_are_1_and_for_run_125(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    absent = str(tmp_path / "absent.toml")
    assert main(["list", "-m", absent]) == 1
    assert (
        capsys.readouterr().err == f"uvfio: {absent}: cannot be read: No such file or directory\n"
    )
    assert main(["run", "-m", absent, "true"]) == 125
    assert main(["list", "-d", "edx"]) == 1
    assert capsys.readouterr().err.splitlines()[-2:] == [
        "uvfio: model 'edx' is not known",
        "hint: did you mean 'edu'?",
    ]
    trace = str(tmp_path / "absent" / "trace")
    assert main(["run", f"--trace={trace}", "true"]) == 125
    assert capsys.readouterr().err == f"uvfio: {trace}: No such file or directory\n"


def test_a_mistake_of_ours_is_shown_in_full(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from uvfio.cli import main as module

    def broken(verb: str) -> None:
        raise ZeroDivisionError("ours")

    monkeypatch.setattr(module, "_verb", broken)
    assert main(["list"]) == 1
    assert main(["run", "x"]) == 125
    err = capsys.readouterr().err
    assert "ZeroDivisionError: ours" in err
    assert "please report it" in err


def test_a_missing_package_is_one_line_with_the_cure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = tmp_path / "m.toml"
    machine.write_text("")
    monkeypatch.setitem(sys.modules, "msgspec", None)
    monkeypatch.delitem(sys.modules, "uvfio.cli.machinefile", raising=False)
    assert main(["list", "-m", str(machine)]) == 1
    first, second = capsys.readouterr().err.splitlines()
    assert first == "uvfio: the Python package msgspec is not installed"
    assert "pip install msgspec" in second


def test_a_closed_pipe_is_no_traceback() -> None:
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m uvfio models edu | true; exit ${{PIPESTATUS[0]}}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr


def test_as_a_command() -> None:
    done = command("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"uvfio {__version__}\n", "")
    done = command("lst")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "uvfio: there is no verb 'lst'\nhint: did you mean list?\n"


@pytest.mark.parametrize(
    "words", ["list", "models", "models edu", "--help", "--version", "tree --json", "run --help"]
)
def test_a_closed_stdout_is_one_line(words: str) -> None:
    done = subprocess.run(
        ["sh", "-c", f"{sys.executable} -m uvfio {words} >&-"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == "uvfio: stdout: Bad file descriptor\n"
    assert done.returncode == (125 if words.startswith("run") else 1)


def test_a_closed_stderr_leaves_stdout_alone() -> None:
    done = subprocess.run(
        ["sh", "-c", f"{sys.executable} -m uvfio lst 2>&-"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")


def test_every_verb_that_a_text_names_exists() -> None:
    root = Path(uvfio.__file__).parent
    for file in [*root.rglob("*.py"), *(root.parents[1] / "docs").rglob("*.md")]:
        named = re.findall(r"`uvfio ([a-z]+)", file.read_text())
        assert set(named) <= {*VERBS, "help"}, file
