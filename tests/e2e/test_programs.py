"""Unmodified C programs drive the machine's devices: each checks itself and says what was wrong."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support.requirements import require
from support.uvfio_cli import python_of, run_uvfio

if TYPE_CHECKING:
    from e2e.conftest import Programs

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
DEVICES = {"240": "0000:06:0d.0", "241": "0000:07:00.0"}
# Programs that need no argument and no machine of their own
SELF_CONTAINED = (
    *("chdir_paths", "dup_fds", "errors_2011", "exec_child", "fdtricks", "fork_noexec", "no_close"),
    *("leader_ends", "opens", "scm_rights", "signals", "threads", "vfork_child", "vmm_2011"),
)


@pytest.mark.parametrize("name", SELF_CONTAINED)
def test_dynamic(name: str, program: Programs) -> None:
    done = run_uvfio("run", "--", program(name)).ok()
    assert "PASS" in done.stdout
    if name == "errors_2011":  # it exceeds its RLIMIT_MEMLOCK
        said, hint = done.stderr.splitlines()
        assert said.startswith("uvfio: locking ")
        assert "--memlock SIZE" in hint
    else:
        assert done.stderr == ""


@pytest.mark.parametrize("name", ["dup_fds", "errors_2011", "fork_noexec", "signals", "threads"])
def test_static(name: str, program: Programs) -> None:
    """Nothing depends on a library that could be replaced."""
    run_uvfio("run", "--", program(name, static=True)).ok()


@pytest.mark.parametrize("name", ["dup_fds", "errors_2011", "fork_noexec"])
def test_32_bit(name: str, program: Programs) -> None:
    run_uvfio("run", "--", program(name, m32=True)).ok()


@pytest.mark.parametrize("group", DEVICES)
@pytest.mark.parametrize("kind", ["dynamic", "static", "32-bit"])
def test_example_driver_in_c(kind: str, group: str, program: Programs) -> None:
    driver = program("edu_driver", static=kind == "static", m32=kind == "32-bit")
    done = run_uvfio("run", "--", driver, group, DEVICES[group]).ok()
    assert done.stdout.splitlines()[-1].split() == ["edu_driver", "all", "right"]
    assert done.stderr == ""


@pytest.mark.parametrize("device", DEVICES.values())
@pytest.mark.parametrize("kind", ["dynamic", "static", "32-bit"])
def test_example_driver_of_mainline(kind: str, device: str, program: Programs) -> None:
    driver = program("edu_mainline", static=kind == "static", m32=kind == "32-bit")
    done = run_uvfio("run", "--", driver, device).ok()
    assert done.stdout.splitlines()[-1].split() == ["edu_mainline", "all", "right"]
    assert done.stderr == ""


@pytest.mark.parametrize("group", DEVICES)
def test_example_driver_in_python(group: str) -> None:
    driver = EXAMPLES / "edu_driver.py"
    require(driver.exists(), "examples/edu_driver.py is not there")
    done = run_uvfio("run", "--", *python_of(), driver, group, DEVICES[group]).ok()
    assert "all right" in done.stdout
    assert done.stderr == ""


def test_hold_releases_at_the_end_of_its_input(program: Programs) -> None:
    done = run_uvfio("run", "--", program("hold"), input="a line\n").ok()
    assert done.stdout == "ready\nclosed\n"


def test_a_free_group_looks_free(program: Programs) -> None:
    done = run_uvfio("run", "--", program("probe_lock"), "241").ok()
    assert done.stdout == "viable=1 locked=0 iommu=ok\n"


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_absurd_calls(seed: int, program: Programs) -> None:
    """5000 calls with arguments good, bad and absurd; then an ordinary session works."""
    done = run_uvfio("run", "--", program("fuzz_ioctl"), "5000", str(seed)).ok()
    counted = re.search(r"(\d+) calls succeeded, (\d+) failed", done.stdout)
    assert counted is not None
    assert min(map(int, counted.groups())) > 450
    assert done.stderr == ""


def test_absurd_calls_are_the_same_each_time(program: Programs) -> None:
    first, second = (
        run_uvfio("run", "--", program("fuzz_ioctl"), "500", "9").ok().stdout for _ in range(2)
    )
    assert first == second
