"""Fixtures that all tests share, and the folder of a test run.

Whatever the tests write goes to one folder below the temporary folder, which is removed when they have passed. After a
failure it stays, and its name is printed. It is TMPDIR of the tests and of all that they start, and the base of
``tmp_path`` unless ``--basetemp`` names another one. Builds are kept in the project's build folder (e2e/build.py).
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support.requirements import require_program as _require_program

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def require_program() -> Callable[[str], str]:
    """``require_program("gcc")`` is its path; without it the test is skipped, or fails if CI is set."""
    return _require_program


SCRATCH = pytest.StashKey[Path]()
FAILED = pytest.StashKey[bool]()


def pytest_configure(config: pytest.Config) -> None:
    """Programs inherit ignored signals, as under nohup or in the background of a shell: tests send all of them."""
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
        if signal.getsignal(number) is signal.SIG_IGN:
            default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            signal.signal(number, default)
    if not hasattr(config, "workerinput"):  # a worker of xdist has the controller's folder
        _make_scratch(config)


def _make_scratch(config: pytest.Config) -> None:
    scratch = Path(tempfile.mkdtemp(prefix="uvfio-tests-"))
    scratch.chmod(0o755)  # other users run programs of it
    config.stash[SCRATCH] = scratch
    config.stash[FAILED] = False
    os.environ["TMPDIR"] = tempfile.tempdir = str(scratch)
    if config.option.basetemp is None:
        config.option.basetemp = str(scratch / "pytest")


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if SCRATCH in session.config.stash:
        session.config.stash[FAILED] = exitstatus == pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    if config.stash.get(FAILED, False):
        terminalreporter.write_line(f"what the tests wrote is in {config.stash[SCRATCH]}")


def pytest_unconfigure(config: pytest.Config) -> None:
    if SCRATCH in config.stash and not config.stash[FAILED]:
        for folder, _, _ in os.walk(config.stash[SCRATCH]):
            if not os.path.islink(folder):
                os.chmod(folder, 0o700)  # a test may have made one that cannot be read
        shutil.rmtree(config.stash[SCRATCH])
