"""Programs of mainline that reach one device through each of the five kinds of IOMMU interface."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.uvfio_cli import run_uvfio

if TYPE_CHECKING:
    from collections.abc import Callable

    from e2e.conftest import Programs

ADDRESS = "0000:01:00.0"
RUN = ("run", "-d", f"exerciser@{ADDRESS},group=7")
MODES = ["type1", "type1v2", "compat-type1", "compat-type1v2", "iommufd"]


@pytest.mark.parametrize("mode", MODES)
def test_mode(mode: str, program: Programs) -> None:
    done = run_uvfio(*RUN, "--", program("iommu_modes"), mode, ADDRESS).ok()
    assert done.stdout.count("PASS") >= 38
    assert done.stderr == ""


def test_statically_linked(program: Programs) -> None:
    path = program("iommu_modes", static=True)
    run_uvfio(*RUN, "--", path, "iommufd", ADDRESS).ok()


def test_a_trace_names_the_requests(program: Programs) -> None:
    done = run_uvfio(
        *RUN[:1], "--trace", *RUN[1:], "--", program("iommu_modes"), "iommufd", ADDRESS
    )
    lines = done.ok().stderr
    assert 'openat("/dev/iommu") = ' in lines
    assert "</dev/iommu>, IOMMU_IOAS_ALLOC, {flags=0, out_ioas_id=1}) = 0" in lines
    assert f"</dev/vfio/devices/vfio0 {ADDRESS}>, VFIO_DEVICE_BIND_IOMMUFD, {{flags=0, " in lines
    assert "IOMMU_IOAS_MAP, {flags=FIXED_IOVA|WRITEABLE|READABLE, ioas_id=1, " in lines
    assert "VFIO_DEVICE_SET_IRQS, {flags=DATA_EVENTFD|ACTION_TRIGGER, index=MSIX, " in lines
    assert "= -1 EOVERFLOW (iova 0xfffffffffffff000+0x2000 wraps around 2**64)" in lines
    assert f"released /dev/vfio/devices/vfio0 {ADDRESS}" in lines


@pytest.mark.parametrize("mode", ["type1v2", "compat-type1"])
def test_a_trace_of_containers(mode: str, program: Programs) -> None:
    words = (*RUN[:1], "--trace", *RUN[1:], "--", program("iommu_modes"), mode, ADDRESS)
    lines = run_uvfio(*words).ok().stderr
    assert "</dev/vfio/7>, VFIO_GROUP_SET_CONTAINER, [768]) = 0" in lines
    assert "VFIO_IOMMU_MAP_DMA, {flags=READ|WRITE, " in lines


PATHS = """
import os, stat, sys
about = os.stat("/dev/iommu")
assert stat.S_ISCHR(about.st_mode) and about.st_rdev == os.makedev(10, 125), about
for path in ("/dev/iommu/", "/dev/iommu/x"):
    try: os.stat(path)
    except NotADirectoryError: pass
    else: raise AssertionError(path)
assert not os.path.exists("/dev/iommu-not-ours")
assert os.listdir("/dev/vfio/devices") and os.listdir("/sys/class/vfio-dev") == ["vfio0"]
assert open("/sys/class/vfio-dev/vfio0/dev").read() == "510:0\\n"
fd = os.open("/dev/iommu", os.O_RDWR)
assert os.readlink(f"/proc/self/fd/{fd}") == "/dev/iommu"
assert os.fstat(fd).st_rdev == about.st_rdev
"""


def test_the_files_that_programs_look_for(python: Callable[..., list[str]]) -> None:
    run_uvfio(*RUN, "--", *python(PATHS)).ok()


def test_there_are_none_in_2011(python: Callable[..., list[str]]) -> None:
    code = "import os; assert not any(map(os.path.exists, ('/dev/iommu', '/dev/vfio/devices')))"
    run_uvfio("run", "--abi", "2011", "--", *python(code)).ok()
