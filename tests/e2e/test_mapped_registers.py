"""Registers behind mmap: programs that load and store, and cannot tell."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.uvfio_cli import run_uvfio

if TYPE_CHECKING:
    from e2e.conftest import Programs

EDU, OTHER = "0000:00:05.0", "0000:00:06.0"
SECTIONS = ["arithmetic", "interrupts", "dma", "sharing", "decoding", "neighbour", "end"]


@pytest.mark.parametrize("kind", ["dynamic", "static", "32-bit"])
def test_edu_by_loads_and_stores(kind: str, program: Programs) -> None:
    path = program("edu_mapped", static=kind == "static", m32=kind == "32-bit")
    devices = ["-d", f"edu@{EDU},group=5", "-d", f"exerciser@{OTHER},group=5"]
    done = run_uvfio("run", *devices, "--", path, "5", EDU, OTHER).ok()
    passed = [line.removeprefix("PASS ") for line in done.stdout.splitlines() if "PASS" in line]
    assert passed == SECTIONS
    assert done.stderr == ""
