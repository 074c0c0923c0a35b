"""include/uvfio/vfio-2011.h, uvfio.uapi.rfc and the numbers of November 2011 agree.

Three witnesses that know nothing of each other: the C header as gcc sees it, the Python tables, and the
request values typed out below. The C side is a program generated from the tables.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Final

import pytest

from support.requirements import require, require_program
from uvfio.uapi import rfc
from uvfio.uapi.structs import Struct

INCLUDE: Final = Path(__file__).parents[2] / "include"
HEADER: Final = INCLUDE / "uvfio" / "vfio-2011.h"
CC: Final = os.environ.get("CC", "gcc")


@pytest.fixture(autouse=True)
def _compiler() -> None:
    require(shutil.which(CC) is not None, f"no C compiler ({CC})")


# What the header of 2011 gives on x86-64; GET_DEVICE_FD and GET_DTPATH encode the size of a pointer.
GOLDEN: Final = {
    "VFIO_GROUP_GET_FLAGS": 0x80083B64,
    "VFIO_GROUP_MERGE": 0x40043B65,
    "VFIO_GROUP_UNMERGE": 0x40043B66,
    "VFIO_GROUP_GET_IOMMU_FD": 0x00003B67,
    "VFIO_GROUP_GET_DEVICE_FD": 0x40083B68,
    "VFIO_IOMMU_GET_FLAGS": 0x80083B69,
    "VFIO_IOMMU_MAP_DMA": 0xC0283B6A,
    "VFIO_IOMMU_UNMAP_DMA": 0xC0283B6B,
    "VFIO_DEVICE_GET_FLAGS": 0x80083B6C,
    "VFIO_DEVICE_GET_NUM_REGIONS": 0x80043B6D,
    "VFIO_DEVICE_GET_REGION_INFO": 0xC0283B6E,
    "VFIO_DEVICE_GET_NUM_IRQS": 0x80043B6F,
    "VFIO_DEVICE_GET_IRQ_INFO": 0xC0103B70,
    "VFIO_DEVICE_SET_IRQ_EVENTFDS": 0x40043B71,
    "VFIO_DEVICE_UNMASK_IRQ": 0x40043B72,
    "VFIO_DEVICE_SET_UNMASK_IRQ_EVENTFD": 0x40043B73,
    "VFIO_DEVICE_RESET": 0x00003B74,
    "VFIO_DEVICE_GET_DTPATH": 0xC0183B75,
    "VFIO_DEVICE_GET_DTINDEX": 0xC0183B76,
}
GOLDEN_32: Final = GOLDEN | {
    "VFIO_GROUP_GET_DEVICE_FD": 0x40043B68,
    "VFIO_DEVICE_GET_DTPATH": 0xC0143B75,
}
GOLDEN_LAYOUTS: Final = {
    "vfio_dma_map": (40, {"len": 0, "vaddr": 8, "dmaaddr": 16, "size": 24, "flags": 32}),
    "vfio_region_info": (
        40,
        {"len": 0, "index": 4, "size": 8, "offset": 16, "flags": 24, "phys": 32},
    ),
    "vfio_irq_info": (16, {"len": 0, "index": 4, "count": 8, "flags": 12}),
    "vfio_dtpath": (24, {"len": 0, "index": 4, "flags": 8, "path": 16}),
    "vfio_dtindex": (
        24,
        {"len": 0, "index": 4, "prop_type": 8, "prop_index": 12, "flags": 16},
    ),
}
# Of the Python module only: how numbers are made, not something a program may rely on.
NOT_IN_HEADER: Final = {"VFIO_TYPE", "VFIO_REGION_SHIFT"}


def constants(bits: int) -> dict[str, int]:
    """Every VFIO_* of the Python module, as a program of ``bits`` bits must see it."""
    names = {k: v for k, v in vars(rfc).items() if k.startswith("VFIO_") and k not in NOT_IN_HEADER}
    for name in [name for name in names if name.endswith("_32")]:
        value = names.pop(name)
        if bits == 32:
            names[name.removesuffix("_32")] = value
    return names


def layouts(bits: int) -> dict[str, tuple[int, dict[str, int]]]:
    """Size and field offsets of every struct of the Python module, under its C name."""
    structs = {k: v for k, v in vars(rfc).items() if isinstance(v, type) and issubclass(v, Struct)}
    del structs["Struct"]
    for name in [name for name in structs if name.endswith("_32")]:
        variant = structs.pop(name)
        if bits == 32:
            structs[name.removesuffix("_32")] = variant
    return {
        name: (
            ctypes.sizeof(cls),
            {field[0]: getattr(cls, field[0]).offset for field in cls._fields_},
        )
        for name, cls in structs.items()
    }


def compiled(tmp_path: Path, source: str, *flags: str, language: str = "c") -> Path:
    """Compile ``source`` with warnings as errors; the compiler's words are the failure message."""
    program = tmp_path / "program"
    warnings = ("-Wall", "-Wextra", "-Werror")
    done = subprocess.run(
        [CC, "-x", language, *warnings, "-I", INCLUDE, *flags, "-o", program, "-"],
        input=source,
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return program


def need_32_bit(tmp_path: Path) -> None:
    program = tmp_path / "probe"
    done = subprocess.run(
        [CC, "-m32", "-x", "c", "-o", program, "-"],
        input='#include <stdio.h>\nint main(void) { return puts("") < 0; }\n',
        text=True,
        capture_output=True,
        check=False,
    )
    require(done.returncode == 0, "no 32-bit C library to compile against (gcc-multilib)")
    try:
        subprocess.run([program], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        require(False, f"32-bit programs do not run here: {error}")


def ask_c(tmp_path: Path, bits: int) -> dict[str, int]:
    """Compile and run a program that prints every constant, sizeof and offsetof."""
    asked = {name: name for name in constants(bits)}
    for name, (_, fields) in layouts(bits).items():
        asked[f"sizeof {name}"] = f"sizeof(struct {name})"
        for field in fields:
            asked[f"{name}.{field}"] = f"offsetof(struct {name}, {field})"
    lines = "".join(
        f'\tprintf("%s=%llu\\n", "{key}", (unsigned long long)({expression}));\n'
        for key, expression in asked.items()
    )
    source = (
        "#include <stddef.h>\n#include <stdio.h>\n#include <uvfio/vfio-2011.h>\n"
        f"int main(void)\n{{\n{lines}\treturn 0;\n}}\n"
    )
    program = compiled(tmp_path, source, f"-m{bits}")
    output = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    return {key: int(value) for key, value in (line.split("=") for line in output.splitlines())}


@pytest.mark.parametrize("bits", [64, 32])
def test_c_and_python_agree(tmp_path: Path, bits: int) -> None:
    if bits == 32:
        need_32_bit(tmp_path)
    expected = constants(bits)
    for name, (size, fields) in layouts(bits).items():
        expected[f"sizeof {name}"] = size
        expected |= {f"{name}.{field}": offset for field, offset in fields.items()}
    assert ask_c(tmp_path, bits) == expected


def test_python_gives_the_numbers_of_2011() -> None:
    assert {name: value for name, value in constants(64).items() if name in GOLDEN} == GOLDEN
    assert {name: value for name, value in constants(32).items() if name in GOLDEN} == GOLDEN_32
    assert layouts(64) == GOLDEN_LAYOUTS


def test_every_request_is_in_the_golden_table() -> None:
    assert set(rfc.IOCTLS) == set(GOLDEN.values()) | set(GOLDEN_32.values())
    for value, entry in rfc.IOCTLS.items():
        assert value in (GOLDEN[entry.name], GOLDEN_32[entry.name])


def test_header_defines_nothing_that_python_does_not_know() -> None:
    defined = set(re.findall(r"#\s*define\s+(VFIO_\w+)", HEADER.read_text()))
    assert defined == set(constants(64))


@pytest.mark.parametrize("bits", [64, 32])
def test_requests_fit_an_unsigned_int(tmp_path: Path, bits: int) -> None:
    """Assertions inside the compiler: no program is run, and a switch finds no value twice."""
    if bits == 32:
        need_32_bit(tmp_path)
    golden = GOLDEN if bits == 64 else GOLDEN_32
    asserts = "".join(
        f'_Static_assert({name} == {value:#010x}u, "{name}");\n' for name, value in golden.items()
    )
    cases = "".join(f"\tcase {name}:\n" for name in golden)
    source = (
        f"#include <uvfio/vfio-2011.h>\n{asserts}"
        f"int main(int argc, char **argv)\n{{\n\t(void)argv;\n\tswitch ((unsigned int)argc) {{\n"
        f"{cases}\t\treturn 1;\n\t}}\n\treturn 0;\n}}\n"
    )
    compiled(tmp_path, source, "-std=c11", f"-m{bits}")


@pytest.mark.parametrize(
    ("language", "flags"),
    [
        ("c", ["-std=c99", "-pedantic"]),
        ("c", ["-std=gnu17", "-pedantic"]),
        ("c++", ["-std=c++11", "-pedantic"]),
        ("c++", ["-std=c++20", "-pedantic"]),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_header_stands_alone(tmp_path: Path, language: str, flags: list[str]) -> None:
    if language == "c++":
        require_program("g++")
    source = (
        "#include <uvfio/vfio-2011.h>\n"
        "#include <uvfio/vfio-2011.h>\n"  # a second time does nothing
        "int main()\n{\n"
        "\tstruct vfio_dma_map map = { sizeof(map), 0, 0, 0, VFIO_DMA_MAP_FLAG_WRITE };\n"
        "\treturn map.len != 40 || VFIO_IOMMU_MAP_DMA == VFIO_IOMMU_UNMAP_DMA;\n}\n"
    )
    if language == "c":
        source = source.replace("main()", "main(void)")
    compiled(tmp_path, source, "-c", *flags, language=language)


@pytest.mark.parametrize(
    "includes",
    [("sys/ioctl.h", "uvfio/vfio-2011.h"), ("uvfio/vfio-2011.h", "sys/ioctl.h")],
    ids=["as-in-2011", "other-order"],
)
def test_programs_of_2011_compile(tmp_path: Path, includes: tuple[str, str]) -> None:
    """In 2011 the header did not include linux/ioctl.h itself; programs did that before."""
    source = "".join(f"#include <{name}>\n" for name in includes) + (
        "int main(void)\n{\n"
        "\tstruct vfio_dma_map map = { .size = 0 };\n"
        "\tstruct vfio_region_info region = { .len = sizeof(region) };\n"
        "\tint eventfds[] = { 0, 1, -1 };\n"
        "\t__u64 flags = 0;\n"
        "\tint group = -1, other = -1, iommu, device;\n\n"
        "\tioctl(group, VFIO_GROUP_GET_FLAGS, &flags);\n"
        "\tif (flags & (VFIO_GROUP_FLAGS_VIABLE | VFIO_GROUP_FLAGS_MM_LOCKED))\n"
        "\t\tioctl(group, VFIO_GROUP_MERGE, &other);\n"
        "\tiommu = ioctl(group, VFIO_GROUP_GET_IOMMU_FD);\n"
        "\tioctl(iommu, VFIO_IOMMU_MAP_DMA, &map);\n"
        '\tdevice = ioctl(group, VFIO_GROUP_GET_DEVICE_FD, "0000:06:0d.0");\n'
        "\tioctl(device, VFIO_DEVICE_GET_REGION_INFO, &region);\n"
        "\treturn ioctl(device, VFIO_DEVICE_SET_IRQ_EVENTFDS, eventfds) == 0;\n}\n"
    )
    compiled(tmp_path, source, "-std=gnu99")


def test_both_interfaces_in_one_file_is_refused(tmp_path: Path) -> None:
    done = subprocess.run(
        [CC, "-x", "c", "-fsyntax-only", "-I", INCLUDE, "-"],
        input="#include <linux/vfio.h>\n#include <uvfio/vfio-2011.h>\n",
        text=True,
        capture_output=True,
        check=False,
        cwd=tmp_path,
    )
    require("linux/vfio.h: No such file" not in done.stderr, "no linux/vfio.h (linux-libc-dev)")
    assert done.returncode != 0
    assert "include one of them" in done.stderr
