"""Every name of uapi.virtio against the kernel's headers, as the C compiler sees them."""

from __future__ import annotations

import ctypes
import struct
import subprocess
from pathlib import Path

import pytest

from support.requirements import require, require_program
from uvfio.uapi import virtio

HEADERS = ("virtio_pci.h", "virtio_ring.h", "virtio_config.h", "virtio_net.h", "virtio_ids.h")
NUMBERS = sorted(name for name in vars(virtio) if name.startswith(("VIRTIO_", "VRING_")))
STRUCTS = ("vring_desc", "vring_used_elem", "virtio_net_hdr")
SIZES = (2, 256, 1024, 32768)
NOT_THERE = {"VIRTIO_TRANS_ID_NET"}  # of Linux 6.2: older headers lack it


@pytest.fixture(scope="module")
def header_values(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    require_program("gcc")
    for header in HEADERS:
        path = Path("/usr/include/linux") / header
        require(path.exists(), f"{path} is not installed (package linux-libc-dev)")
    folder = tmp_path_factory.mktemp("virtio")
    lines = ["#include <stdio.h>", *(f"#include <linux/{header}>" for header in HEADERS)]
    lines.append("int main(void) {")
    for name in NUMBERS:
        if name in NOT_THERE:
            lines.append(f"#ifdef {name}")
        lines.append(f'printf("{name} %llu\\n", (unsigned long long)({name}));')
        if name in NOT_THERE:
            lines.append("#endif")
    lines += [f'printf("{kind} %zu\\n", sizeof(struct {kind}));' for kind in STRUCTS]
    lines += [f'printf("size-{size} %u\\n", vring_size({size}, 4096));' for size in SIZES]
    lines += ["return 0;", "}"]
    source, program = folder / "values.c", folder / "values"
    source.write_text("\n".join(lines) + "\n")
    subprocess.run(["gcc", "-Wall", "-Werror", "-o", program, source], check=True)
    output = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    return {name: int(value) for name, value in (line.split() for line in output.splitlines())}


def test_numbers(header_values: dict[str, int]) -> None:
    ours = {name: getattr(virtio, name) for name in NUMBERS}
    theirs = {name: header_values[name] for name in NUMBERS if name in header_values}
    assert theirs == {name: value for name, value in ours.items() if name in theirs}
    assert set(ours) - set(theirs) <= NOT_THERE


def test_structures(header_values: dict[str, int]) -> None:
    for kind in STRUCTS:
        layout = getattr(virtio, kind)
        assert isinstance(layout, struct.Struct)
        assert layout.size == header_values[kind]


def test_sizes_of_rings(header_values: dict[str, int]) -> None:
    for size in SIZES:
        assert virtio.vring_size(size) == header_values[f"size-{size}"]


def test_structures_are_native() -> None:
    assert virtio.vring_desc.pack(1, 2, 3, 4) == bytes(ctypes.c_uint64(1)) + bytes(
        ctypes.c_uint32(2)
    ) + bytes(ctypes.c_uint16(3)) + bytes(ctypes.c_uint16(4))
