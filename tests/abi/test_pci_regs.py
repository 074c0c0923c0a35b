"""Every constant of uapi.pci against linux/pci_regs.h, as the C compiler sees it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from support.requirements import require, require_program
from uvfio.uapi import pci

HEADER = Path("/usr/include/linux/pci_regs.h")
NAMES = sorted(name for name in vars(pci) if name.startswith("PCI_"))


@pytest.fixture(scope="module")
def header_values(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    require_program("gcc")
    require(HEADER.exists(), f"{HEADER} is not installed (package linux-libc-dev)")
    folder = tmp_path_factory.mktemp("pci_regs")
    lines = ["#include <stdio.h>", "#include <linux/pci_regs.h>", "int main(void) {"]
    for name in NAMES:
        # Not every header has every name: those of later kernels are left out by the older ones.
        lines += [
            f"#ifdef {name}",
            f'printf("{name} %lu\\n", (unsigned long)({name}) & 0xffffffffUL);',
            "#endif",
        ]
    lines += ["return 0;", "}"]
    source, program = folder / "regs.c", folder / "regs"
    source.write_text("\n".join(lines) + "\n")
    subprocess.run(["gcc", "-Wall", "-Werror", "-o", program, source], check=True)
    output = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    return {name: int(value) for name, value in (line.split() for line in output.splitlines())}


def test_values_agree_with_the_header(header_values: dict[str, int]) -> None:
    ours = {name: getattr(pci, name) for name in header_values}
    assert ours == header_values


def test_the_header_knows_nearly_all_names(header_values: dict[str, int]) -> None:
    unknown = set(NAMES) - set(header_values)
    assert len(unknown) <= len(NAMES) // 20, f"misspelt or renamed: {sorted(unknown)}"
