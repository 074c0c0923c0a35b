"""Many absurd calls, many processes, many signals: longer than anybody waits for a test suite."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.uvfio_cli import NOBODY, Uvfio, run_uvfio

if TYPE_CHECKING:
    from e2e.conftest import Programs

pytestmark = [pytest.mark.soak, pytest.mark.timeout(590)]


@pytest.mark.parametrize("seed", range(11, 16))
def test_absurd_calls(seed: int, program: Programs) -> None:
    words = [program("fuzz_ioctl"), "100000", str(seed)]
    done = run_uvfio("run", "--", *words, timeout=1800).ok()
    assert done.stderr == ""


def test_absurd_calls_of_32_bit(program: Programs) -> None:
    words = [program("fuzz_ioctl", m32=True), "100000", "21"]
    run_uvfio("run", "--", *words, timeout=1800).ok()


def test_absurd_calls_of_several_at_once(program: Programs) -> None:
    """They take the devices from each other; afterwards an ordinary driver works."""
    fuzz = program("fuzz_ioctl")
    script = f"for seed in 31 32 33 34; do {fuzz} 30000 $seed >/dev/null 2>&1 & done; wait; {program('edu_driver')}"
    done = run_uvfio("run", "--", "sh", "-c", script, timeout=1800).ok()
    assert "all right" in done.stdout


def test_absurd_calls_of_nobody(program: Programs) -> None:
    words = [program("fuzz_ioctl"), "50000", "41"]
    run_uvfio("run", "--", *words, user=NOBODY, timeout=1800).ok()


@pytest.mark.parametrize(
    "name", ["signals", "threads", "scm_rights", "exec_child", "vfork_child", "fdtricks"]
)
def test_a_hundred_times_the_same_program(name: str, program: Programs) -> None:
    """What depends on who is faster shows in one of them."""
    script = (
        f"read line; for i in $(seq 50); do {program(name)} >/dev/null || exit; done; echo round; "
    )
    with Uvfio("run", "--", "sh", "-c", script * 2 + "read line") as uvfio:
        held = []
        for _ in range(2):
            uvfio.send("go\n")
            uvfio.expect("round\n", timeout=1800)
            held.append(uvfio.resources())
        assert held[0] == held[1]
        uvfio.send("end\n")
        uvfio.finish().ok()


def test_ten_thousand_short_programs() -> None:
    script = "i=0; while [ $i -lt 10000 ]; do /bin/true || exit; i=$((i+1)); done; echo $i"
    done = run_uvfio("run", "--", "sh", "-c", script, timeout=1800).ok()
    assert done.stdout == "10000\n"
