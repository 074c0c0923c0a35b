"""Where and as whom it runs: ordinary users, no home, a run inside a run, programs that hide themselves."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support.requirements import require, require_program
from support.uvfio_cli import NOBODY, python_of, run_uvfio

if TYPE_CHECKING:
    from collections.abc import Callable

    from e2e.conftest import Programs

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture
def nobody() -> int:
    """An ordinary user: nobody if the tests run as root, else whoever runs them."""
    user = NOBODY if os.getuid() == 0 else os.getuid()
    python_of(user)
    return user


# -- an ordinary user ------------------------------------------------------------------------------------


def test_nobody_has_no_rights(nobody: int) -> None:
    """What the tests below are worth."""
    script = "id -u; grep CapEff /proc/self/status; echo ${HOME-unset}"
    done = run_uvfio("run", "--", "sh", "-c", script, user=nobody, env={"HOME": None}).ok()
    assert done.stdout.split() == [str(nobody), "CapEff:", "0000000000000000", "unset"]


@pytest.mark.parametrize("static", [False, True], ids=["dynamic", "static"])
def test_a_driver_of_nobody(static: bool, nobody: int, program: Programs) -> None:
    driver = program("edu_driver", static=static)
    done = run_uvfio("run", "--", driver, user=nobody, env={"HOME": None}).ok()
    assert "all right" in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize(
    "name",
    ["dup_fds", "errors_2011", "exec_child", "fork_noexec", "scm_rights", "threads", "vmm_2011"],
)
def test_a_program_of_nobody(name: str, nobody: int, program: Programs) -> None:
    run_uvfio("run", "--", program(name), user=nobody).ok()


def test_absurd_calls_of_nobody(nobody: int, program: Programs) -> None:
    run_uvfio("run", "--", program("fuzz_ioctl"), "3000", "4", user=nobody).ok()


def test_a_python_driver_of_nobody(nobody: int) -> None:
    driver = EXAMPLES / "edu_driver.py"
    done = run_uvfio("run", "--", *python_of(nobody), driver, user=nobody).ok()
    assert "all right" in done.stdout


def test_check_as_nobody(nobody: int) -> None:
    done = run_uvfio("check", user=nobody)
    assert done.status == 0, done.stdout


def test_an_empty_environment(nobody: int, program: Programs) -> None:
    """Not even PATH: what cron or an init script may give."""
    path = program("probe_lock")
    before = [
        "env",
        "-i",
        *(["PYTHONPATH=" + str(EXAMPLES.parent / "src")] if nobody == NOBODY else []),
    ]
    done = run_uvfio("run", "--", path, user=nobody, before=before)
    assert (done.status, done.stderr) == (0, "")


def test_a_setuid_program_has_no_more_rights_than_others(nobody: int) -> None:
    su = require_program("su")
    require(os.getuid() == 0 and bool(os.stat(su).st_mode & 0o4000), "su is not setuid")
    script = "cp /proc/self/status /dev/stdout | grep NoNewPrivs"
    done = run_uvfio("run", "--", "sh", "-c", script, user=nobody).ok()
    assert done.stdout.split() == ["NoNewPrivs:", "1"]


# -- programs that hide --------------------------------------------------------------------------------------

HIDES = """
import ctypes, fcntl, os
group = os.open("/dev/vfio/240", os.O_RDWR)
ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)
for _ in range(3):
    try:
        print(fcntl.ioctl(group, 0x80083B64, bytes(8)))
    except OSError as error:
        print(os.strerror(error.errno))
"""


def test_a_program_that_makes_itself_unreadable_is_told(nobody: int) -> None:
    """One clear message, not one per call."""
    done = run_uvfio("run", "--", *python_of(nobody), "-c", HIDES, user=nobody).ok()
    assert done.stdout == "Operation not permitted\n" * 3
    (complaint,) = done.stderr.splitlines()
    assert complaint.startswith("uvfio: process ")
    assert "PR_SET_DUMPABLE" in complaint


def test_root_sees_programs_that_hide(python: Callable[..., list[str]]) -> None:
    require(os.getuid() == 0, "only root may look")
    done = run_uvfio("run", "--", *python(HIDES)).ok()
    assert done.stdout == f"{bytes([1, *bytes(7)])!r}\n" * 3
    assert done.stderr == ""


def test_an_executable_that_cannot_be_read(nobody: int, program: Programs, tmp_path: Path) -> None:
    require(os.getuid() == 0, "only root can make a file that its user cannot read")
    hidden = Path("/tmp") / f"e2e-hidden-{os.getpid()}"
    hidden.write_bytes(Path(program("probe_lock")).read_bytes())
    hidden.chmod(0o711)
    try:
        done = run_uvfio("run", "--", hidden, user=nobody)
        assert done.status != 0
        complaints = [line for line in done.stderr.splitlines() if line.startswith("uvfio: ")]
        assert len(complaints) == 1, done.stderr
        assert "its executable is not readable" in complaints[0]
        run_uvfio("run", "--", hidden).ok()  # root reads everything
    finally:
        hidden.unlink()


# -- places --------------------------------------------------------------------------------------------------


def test_a_run_inside_a_run(program: Programs) -> None:
    done = run_uvfio("run", "--", *python_of(), "-m", "uvfio", "run", "--", program("probe_lock"))
    assert (done.status, done.stdout) == (125, "")
    complaint, *hints = done.stderr.splitlines()
    assert complaint.startswith("uvfio: another supervisor listens")
    assert [hint.startswith("hint: ") for hint in hints] == [True]


def test_other_verbs_inside_a_run() -> None:
    done = run_uvfio("run", "--", *python_of(), "-m", "uvfio", "list").ok()
    assert "0000:06:0d.0" in done.stdout


def test_a_program_with_a_filter_of_its_own(python: Callable[..., list[str]]) -> None:
    """Sandboxes: a second filter without a listener is welcome."""
    code = """
import ctypes, os, struct
program = struct.pack("HBBI", 6, 0, 0, 0x7FFF0000)  # allow everything
buffer = ctypes.create_string_buffer(program, 8)
fprog = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", 1, ctypes.addressof(buffer)), 16)
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(22, 2, fprog, 0, 0) == 0, ctypes.get_errno()
assert sorted(os.listdir("/dev/vfio")) == ["240", "241", "devices", "vfio"]
"""
    run_uvfio("run", "--", *python(code)).ok()


def test_a_read_only_working_folder_that_is_gone(tmp_path: Path, program: Programs) -> None:
    """The working folder of uvfio need not exist any more."""
    gone = tmp_path / "gone"
    gone.mkdir()
    script = f'cd {gone} && rmdir {gone} && exec "$@"'
    run_uvfio("run", "--", program("probe_lock"), before=["sh", "-c", script, "sh"]).ok()


def test_no_folder_of_its_own(program: Programs) -> None:
    """Without XDG_RUNTIME_DIR the runner finds another place."""
    for value in (None, "/no/such/folder", "relative", ""):
        run_uvfio("run", "--", program("probe_lock"), env={"XDG_RUNTIME_DIR": value}).ok()


@pytest.mark.parametrize(
    "wrapper", [["unshare", "-Ur"], ["setpriv", "--no-new-privs"], ["nice"], ["setsid", "-w"]]
)
def test_wrappers(wrapper: list[str], program: Programs, nobody: int) -> None:
    require_program(wrapper[0])
    if wrapper[0] == "unshare":
        require(os.path.exists("/proc/self/ns/user"), "no user namespaces")
    done = run_uvfio("run", "--", program("edu_driver"), user=nobody, before=wrapper)
    if wrapper[0] == "unshare" and "unshare:" in done.stderr:
        require(False, done.stderr)
    assert "all right" in done.ok().stdout
    run_uvfio("run", "--", *wrapper, program("edu_driver"), user=nobody).ok()
