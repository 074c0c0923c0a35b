"""Programs of today that reach one device through each of the five kinds of IOMMU interface."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.uvfio_cli import run_uvfio

if TYPE_CHECKING:
    from e2e.conftest import Programs

ADDRESS = "0000:01:00.0"
RUN = ("run", "--abi", "mainline", "-d", f"exerciser@{ADDRESS},group=7")
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
    assert "</dev/iommu>, IOMMU_IOAS_ALLOC, {size=0xc, flags=0, out_ioas_id=1}) = 0" in lines
    assert "</dev/vfio/devices/vfio0>, VFIO_DEVICE_BIND_IOMMUFD, {argsz=0x18, flags=0, " in lines
    assert "IOMMU_IOAS_MAP, {size=0x28, flags=FIXED_IOVA|WRITEABLE|READABLE, ioas_id=1, " in lines
    assert "VFIO_DEVICE_SET_IRQS, {argsz=" in lines
    assert "= -1 EOVERFLOW (iova 0xfffffffffffff000+0x2000 wraps around 2**64)" in lines
    assert "released /dev/vfio/devices/vfio0" in lines


@pytest.mark.parametrize("mode", ["type1v2", "compat-type1"])
def test_a_trace_of_containers(mode: str, program: Programs) -> None:
    words = (*RUN[:1], "--trace", *RUN[1:], "--", program("iommu_modes"), mode, ADDRESS)
    lines = run_uvfio(*words).ok().stderr
    assert "</dev/vfio/7>, VFIO_GROUP_SET_CONTAINER, [768]) = 0" in lines
    assert "VFIO_IOMMU_MAP_DMA, {argsz=0x20, flags=READ|WRITE, " in lines
