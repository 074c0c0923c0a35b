"""Unmodified programs and platform devices: the machine of examples/soc.toml."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support.uvfio_cli import Uvfio, run_uvfio

if TYPE_CHECKING:
    from e2e.conftest import Programs

SOC = Path(__file__).resolve().parents[2] / "examples" / "soc.toml"
NAME, NODE = "10010000.timer", "/soc/timer@10010000"


@pytest.mark.parametrize("kind", ["dynamic", "static", "32-bit"])
@pytest.mark.parametrize("device", [NAME, NODE])
def test_timer(kind: str, device: str, program: Programs) -> None:
    driver = program("platform_timer", static=kind == "static", m32=kind == "32-bit")
    done = run_uvfio("run", "-m", SOC, "--", driver, "platform:3", device).ok()
    assert done.stdout.splitlines()[-1] == "PASS the log is empty"
    assert done.stderr == ""


def test_the_pci_function_of_the_same_group_number_works(program: Programs) -> None:
    driver = program("edu_driver")
    done = run_uvfio("run", "-m", SOC, "--", driver, "3", "0000:01:00.0").ok()
    assert "all right" in done.stdout


def test_trace_tells_of_interrupts(program: Programs) -> None:
    driver = program("platform_timer")
    done = run_uvfio("run", "-m", SOC, "--trace", "--", driver, "platform:3", NAME).ok()
    assert f"irq {NAME} irq0" in done.stderr
    assert f"irq {NAME} irq1" in done.stderr
    assert "VFIO_DEVICE_GET_DTPATH" in done.stderr
    assert "ENOSPC (the path has 20 bytes, the buffer 19)" in done.stderr


SYSFS = """
import os, sys
folder = "/sys/bus/platform/devices/10010000.timer"
print(sorted(os.listdir("/sys/bus/platform/devices")))
print(sorted(os.listdir(folder)))
print(open(folder + "/iommu_group").read().strip())
print(os.path.basename(os.readlink(folder + "/driver")))
print(open(folder + "/of_node/compatible", "rb").read())
print(open(folder + "/of_node/log@10020000/reg", "rb").read().hex())
print(sorted(os.listdir("/sys/kernel/iommu_groups/platform:3/devices")))
print(os.stat("/dev/vfio/platform:3").st_mode >> 12)
sys.stdout.write(open(folder + "/uevent").read())
"""


ENTRIES = (
    "driver",
    "driver_override",
    "iommu",
    "iommu_group",
    "modalias",
    "of_node",
    "subsystem",
    "uevent",
)


def test_sysfs(python: Callable[..., list[str]]) -> None:
    done = run_uvfio("run", "-m", SOC, "--", *python(SYSFS)).ok()
    assert done.stdout.splitlines() == [
        "['10010000.timer', '10030000.timer']",
        str([*ENTRIES, "vfio-dev"]),
        "platform:3",
        "vfio-platform",
        r"b'uvfio,timer-1.0\x00uvfio,timer\x00'",
        "00000000100200000000000000001000",
        "['10010000.timer']",
        "2",
        "DRIVER=vfio-platform",
        "OF_NAME=timer",
        "OF_FULLNAME=/soc/timer@10010000",
        "OF_COMPATIBLE_0=uvfio,timer-1.0",
        "OF_COMPATIBLE_1=uvfio,timer",
        "OF_COMPATIBLE_N=2",
        "MODALIAS=of:NtimerT(null)Cuvfio,timer-1.0Cuvfio,timer",
    ]


WAIT_FOR_DEVICES = """
import os, sys
for line in sys.stdin:
    groups = set(os.listdir("/dev/vfio")) - {"devices", "vfio"}
    print(sorted(os.listdir("/sys/bus/platform/devices")), sorted(groups), flush=True)
"""


def test_hot_plug(tmp_path: Path, python: Callable[..., list[str]]) -> None:
    control = tmp_path / "control"
    words = ("run", "-d", "edu@6:d.0,group=3", "--control", str(control), "--")
    with Uvfio(*words, *python(WAIT_FOR_DEVICES)) as uvfio:
        uvfio.send("\n")
        uvfio.expect("[] ['3']\n")
        plug = f"timer@{NODE},group=3,period=5"
        assert run_uvfio("ctl", control, "plug", plug).ok().stdout == f"{NAME}\n"
        uvfio.send("\n")
        uvfio.expect("['10010000.timer'] ['3', 'platform:3']\n")
        run_uvfio("ctl", control, "unbind", NODE).ok()
        status = json.loads(run_uvfio("ctl", control, "status", "--json").ok().stdout)
        (timer,) = (dev for dev in status["machine"]["devices"] if dev["bus"] == "platform")
        assert (timer["driver"], timer["options"]) == (None, {"period": "5"})
        run_uvfio("ctl", control, "bind", NAME).ok()
        run_uvfio("ctl", control, "unplug", NAME).ok()
        uvfio.send("\n")
        uvfio.expect("[] ['3']\n")
        uvfio.finish().ok()
