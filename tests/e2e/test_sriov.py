"""Programs that make virtual functions and use them, and programs that use a device without an IOMMU."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support.uvfio_cli import run_uvfio

if TYPE_CHECKING:
    from e2e.conftest import Programs

PF, VF = "0000:06:00.0", "0000:06:10.0"
MACHINE = ("-d", f"exerciser@{PF},vfs=4")
VARIANTS = pytest.mark.parametrize("kind", ["dynamic", "static", "32-bit"])


@VARIANTS
def test_tokens_and_virtual_functions(kind: str, program: Programs) -> None:
    """Three ways to give a token, three tokens, five ways to DMA; then the device itself."""
    built = program("sriov", static=kind == "static", m32=kind == "32-bit")
    done = run_uvfio("run", *MACHINE, "--", built, PF).ok()
    assert done.stdout.count("PASS the token opens") == 15
    assert done.stdout.count("PASS no other token does") == 30
    assert done.stdout.splitlines()[-1] == "PASS and none"
    assert done.stderr == ""


def test_a_shell_makes_them() -> None:
    script = f"""
        cd /sys/bus/pci/devices/{PF} || exit
        cat sriov_totalvfs
        echo 5 > sriov_numvfs || echo "not five"
        echo 2 > sriov_numvfs && cat sriov_numvfs && ls -d virtfn*
        cat virtfn1/device virtfn1/driver_override virtfn1/physfn/device
        echo 1 > sriov_numvfs || echo "not one"
        ls /dev/vfio | tr '\\n' ' '
        echo 0 > sriov_numvfs && ls /dev/vfio | tr '\\n' ' '
    """
    done = run_uvfio("run", *MACHINE, "--", "bash", "-c", script).ok()
    assert done.stdout.split() == [
        *("4", "not", "five", "2", "virtfn0", "virtfn1", "0x0e8f", "vfio-pci", "0x0e8e"),
        *("not", "one", "0", "1", "2", "devices", "vfio", "0", "devices", "vfio"),
    ]
    assert "Numerical result out of range" in done.stderr
    assert "Device or resource busy" in done.stderr


USER = """
import fcntl, os, struct, sys, threading
from uvfio.uapi import vfio
pf, vf, uuid = sys.argv[1:4]
container = os.open("/dev/vfio/vfio", os.O_RDWR)
def attach(name):
    group = os.open("/dev/vfio/" + os.path.basename(
        os.readlink(f"/sys/bus/pci/devices/{name}/iommu_group")), os.O_RDWR)
    fcntl.ioctl(group, vfio.VFIO_GROUP_SET_CONTAINER, struct.pack("i", container))
    return group
def open_device(group, name):
    text = bytearray(f"{name} vf_token={uuid}".encode() + b"\\0")
    return fcntl.ioctl(group, vfio.VFIO_GROUP_GET_DEVICE_FD, text)
groups = [attach(pf), attach(vf)]
fcntl.ioctl(container, vfio.VFIO_SET_IOMMU, vfio.VFIO_TYPE1v2_IOMMU)
os.close(open_device(groups[0], pf))
device = open_device(groups[1], vf)
asked = os.eventfd(0)
irq = struct.pack("IIIIIi", 24, 0x24, 4, 0, 1, asked)
fcntl.ioctl(device, vfio.VFIO_DEVICE_SET_IRQS, irq)
def remove():
    with open(f"/sys/bus/pci/devices/{pf}/sriov_numvfs", "w") as file:
        file.write("0")
writer = threading.Thread(target=remove)
writer.start()
os.eventfd_read(asked)
assert writer.is_alive()
assert os.pread(device, 4, 0) == b"EXER"
os.close(device)
writer.join()
assert not os.path.exists(f"/sys/bus/pci/devices/{vf}")
print("gone")
"""


def test_a_write_waits_for_who_has_one_open() -> None:
    """The write of 0 asks the user of a virtual function, and ends when it has let go."""
    uuid = "01234567-89ab-cdef-0123-456789abcdef"
    words = ("run", *MACHINE[:-1], f"exerciser@{PF},vfs=4,numvfs=2", "--")
    done = run_uvfio(*words, sys.executable, "-c", USER, PF, VF, uuid).ok()
    assert done.stdout == "gone\n"


def test_from_outside(tmp_path: Path) -> None:
    """``uvfio ctl`` makes and removes them; ``status`` tells of them."""
    path = str(tmp_path / "control")
    ctl = f"{shlex.quote(sys.executable)} -m uvfio ctl {shlex.quote(path)}"
    script = f"""
        {ctl} numvfs {PF} 5 || echo "not five"
        {ctl} numvfs {PF} 2 && ls /sys/bus/pci/devices
        {ctl} status --json
        {ctl} numvfs {PF} 0 --timeout 0 && ls /sys/bus/pci/devices
    """
    done = run_uvfio("run", "--control", path, *MACHINE, "--", "bash", "-c", script).ok()
    first, _, rest = done.stdout.partition("{")
    status, _, last = rest.rpartition("}")
    assert first.split() == ["not", "five", PF, VF, "0000:06:10.1"]
    assert last.split() == [PF]
    devices = json.loads("{" + status + "}")["machine"]["devices"]
    assert [dev["physfn"] for dev in devices] == [None, PF, PF]
    assert "can have 4 virtual functions, not 5" in done.stderr


@pytest.mark.parametrize("verb", ["list", "tree"])
def test_people_see_who_belongs_to_whom(verb: str) -> None:
    done = run_uvfio(verb, "-d", f"exerciser@{PF},vfs=4,numvfs=1").ok()
    assert "(PF, 1 of 4 VFs)" in done.stdout
    assert f"(VF of {PF})" in done.stdout


def test_show_lists_them() -> None:
    machine = ("-d", f"exerciser@{PF},vfs=4,numvfs=2")
    text = run_uvfio("show", PF, *machine).ok().stdout
    assert "2 of 4 virtual functions" in text
    assert "VF BAR 0: 16K" in text
    assert f"physfn        {PF}" in run_uvfio("show", VF, *machine).ok().stdout


BARE = f"""
[iommu]
enable_unsafe_noiommu_mode = true
[[device]]
model = "exerciser"
address = "{PF}"
group = 5
iommu = "none"
[[device]]
model = "exerciser"
address = "0000:07:00.0"
group = 6
"""


@VARIANTS
def test_a_device_without_an_iommu(kind: str, program: Programs, tmp_path: Path) -> None:
    machine = tmp_path / "machine.toml"
    machine.write_text(BARE)
    built = program("noiommu", static=kind == "static", m32=kind == "32-bit")
    words = ("run", "-m", str(machine), "--", built, PF, "0000:07:00.0")
    done = run_uvfio(*words).ok()
    assert done.stdout.splitlines()[-1] == "PASS nothing is left"
    tree = run_uvfio("tree", "-m", str(machine)).ok().stdout
    assert "no IOMMU: DMA leads nowhere" in tree
    assert "no IOMMU" in run_uvfio("show", PF, "-m", str(machine)).ok().stdout
