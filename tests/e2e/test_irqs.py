"""Interrupts of the mainline ABI under real programs: INTx that two processes race for, a platform device's wires."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support.uvfio_cli import run_uvfio

if TYPE_CHECKING:
    from e2e.conftest import Programs

SOC = Path(__file__).resolve().parents[2] / "examples" / "soc.toml"


@pytest.mark.parametrize("kind", ["dynamic", "static", "32-bit"])
def test_intx(kind: str, program: Programs) -> None:
    irqs = program("irqs", static=kind == "static", m32=kind == "32-bit")
    device = "exerciser@0000:01:00.0,group=7"
    words = ("-d", device, "--", irqs, "intx", "7", "0000:01:00.0", "300")
    done = run_uvfio("run", *words).ok()
    assert done.stdout.splitlines()[-1] == "PASS and it works as before"
    assert done.stderr == ""


@pytest.mark.parametrize("kind", ["dynamic", "static", "32-bit"])
def test_a_platform_device(kind: str, program: Programs) -> None:
    irqs = program("irqs", static=kind == "static", m32=kind == "32-bit")
    words = (
        "-m",
        SOC,
        "--",
        irqs,
        "timer",
        "platform:3",
        "10010000.timer",
        "20",
    )
    done = run_uvfio("run", *words).ok()
    assert done.stdout.splitlines()[-1] == "PASS no event either"
    assert done.stderr == ""


def test_the_trace_names_the_wires(program: Programs) -> None:
    words = ("--trace", "-m", SOC, "--", program("irqs"))
    done = run_uvfio("run", *words, "timer", "platform:3", "10010000.timer", "2").ok()
    assert "irq 10010000.timer irq0" in done.stderr
    assert "irq 10010000.timer irq1" in done.stderr
