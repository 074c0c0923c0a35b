"""Programs of both interfaces on one machine, as `uvfio run` gives it to them when nobody says anything."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from support.uvfio_cli import run_uvfio

if TYPE_CHECKING:
    from e2e.conftest import Programs

FOLDER = "/sys/bus/pci/devices/0000:06:0d.0"

IOMMU_GROUP = f"""
import errno, os, stat
group = "{FOLDER}/iommu_group"
assert os.path.basename(os.readlink(group)) == "240"
assert stat.S_ISLNK(os.lstat(group).st_mode) and os.path.isdir(group)
assert open(group).read() == "240\\n"
assert sorted(os.listdir(group)) == ["devices", "reserved_regions", "type"]
assert open(group + "/type").read() == "DMA\\n"
folder = os.open(group, os.O_RDONLY | os.O_DIRECTORY)
assert "devices" in os.listdir(folder)
os.chdir("{FOLDER}")
assert open("iommu_group").read() == "240\\n"
for flags, wanted in ((os.O_RDWR, errno.EISDIR), (os.O_NOFOLLOW, errno.ELOOP)):
    try:
        os.open(group, flags)
    except OSError as error:
        assert error.errno == wanted, error
    else:
        raise AssertionError(flags)
"""


def test_iommu_group_is_a_link_and_a_file(python: Callable[..., list[str]]) -> None:
    run_uvfio("run", "--", *python(IOMMU_GROUP)).ok()


def test_with_one_interface_it_is_one_thing(python: Callable[..., list[str]]) -> None:
    code = f"import os; os.open('{FOLDER}/iommu_group', os.O_RDONLY | os.O_DIRECTORY)"
    run_uvfio("run", "--abi", "mainline", "--", *python(code)).ok()
    assert run_uvfio("run", "--abi", "2011", "--", *python(code)).status == 1
    code = f"open('{FOLDER}/iommu_group').read()"
    run_uvfio("run", "--abi", "2011", "--", *python(code)).ok()
    assert run_uvfio("run", "--abi", "mainline", "--", *python(code)).status == 1


def test_both_in_one_run(program: Programs) -> None:
    """One after the other, on the same machine: a driver of 2011, and one of mainline by three ways."""
    device = "0000:07:00.0"
    modes = f"{program('iommu_modes')} {{}} {device}"
    script = f"{program('edu_driver')} && " + " && ".join(
        modes.format(mode) for mode in ("type1v2", "compat-type1", "iommufd")
    )
    words = ("-d", "edu@0000:06:0d.0,group=240", "-d", f"exerciser@{device},group=8")
    run_uvfio("run", *words, "--", "sh", "-c", script).ok()
