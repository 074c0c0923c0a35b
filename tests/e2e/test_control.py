"""``uvfio run --control`` and ``uvfio ctl``: the machine changes under a program that uses it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from support.uvfio_cli import run_uvfio

USER = Path(__file__).parent / "programs" / "control_user.py"
CASES = (
    "status",
    "plug",
    "plug_into_used_group",
    "foreign_driver",
    "unbind_waits",
    "unbind_cancelled",
    "unbind_times_out",
    "revoke_member_of_set",
    "unplug_used",
    "garbage",
)
TWO = ("-d", "exerciser@0000:01:00.0,group=7", "-d", "exerciser@0000:02:00.0,group=8")


@pytest.mark.parametrize("case", CASES)
def test_case(case: str, tmp_path: Path) -> None:
    path = str(tmp_path / "control")
    run_uvfio("run", "--control", path, "--", sys.executable, str(USER), path, case).ok()
    assert not Path(path).exists(), "the socket goes with the run"


def test_revoke_with_mapped_memory(tmp_path: Path) -> None:
    path = str(tmp_path / "control")
    run_uvfio("run", *TWO, "--control", path, "--", sys.executable, str(USER), path, "revoke").ok()


@pytest.mark.parametrize("seed", [1, 2])
def test_random_changes(seed: int, tmp_path: Path) -> None:
    path = str(tmp_path / "control")
    words = [sys.executable, str(USER), path, "random", "200", str(seed)]
    run_uvfio("run", "--control", path, "--", *words).ok()


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(5))
def test_a_thousand_random_changes(seed: int, tmp_path: Path) -> None:
    path = str(tmp_path / "control")
    words = [sys.executable, str(USER), path, "random", "1000", str(seed)]
    run_uvfio("run", "--control", path, "--", *words).ok()


def test_the_command(tmp_path: Path) -> None:
    path = str(tmp_path / "control")
    ctl = f"{sys.executable} -m uvfio ctl {path}"
    script = f"""
        set -e
        {ctl} plug edu@8:0.0,group=9
        {ctl} status | grep -q '0000:08:00.0  9'
        {ctl} unbind 0000:08:00.0 --timeout 1
        {ctl} bind 0000:08:00.0
        ! {ctl} unplug 0000:09:00.0
        {ctl} unplug 8:0.0
        {ctl} status --json
    """
    done = run_uvfio("run", "--control", path, "--", "sh", "-c", script).ok()
    first, _, rest = done.stdout.partition("\n")
    assert first == "0000:08:00.0"
    assert len(json.loads(rest)["machine"]["devices"]) == 3
    assert "the machine has no device 0000:09:00.0" in done.stderr


@pytest.mark.parametrize("mode", ["type1v2", "iommufd", "2011"])
def test_the_owner_of_a_context(mode: str, tmp_path: Path) -> None:
    """The process that opened the container or the iommufd, or, of 2011, whose memory is mapped."""
    path = str(tmp_path / "control")
    words = ("run", *TWO, "--control", path, "--", sys.executable, "-c", OWNER, path, mode)
    pid, owner = run_uvfio(*words).ok().stdout.strip().split(maxsplit=1)
    assert owner == f"group 7: owned by pid {pid}, 0 mappings, 0 faults"


OWNER = """
import fcntl, os, struct, subprocess, sys
path, mode = sys.argv[1:]
if mode == "type1v2":
    group, container = (os.open(f"/dev/vfio/{name}", os.O_RDWR) for name in ("7", "vfio"))
    fcntl.ioctl(group, 0x3B68, struct.pack("<i", container))
elif mode == "iommufd":
    iommufd, device = os.open("/dev/iommu", os.O_RDWR), os.open("/dev/vfio/devices/vfio0", os.O_RDWR)
    fcntl.ioctl(device, 0x3B76, bytearray(struct.pack("<IIiI", 16, 0, iommufd, 0)), True)
else:
    group = os.open("/dev/vfio/7", os.O_RDWR)
    fcntl.ioctl(group, 0x3B67)
done = subprocess.run([sys.executable, "-m", "uvfio", "ctl", path, "status"], capture_output=True, text=True)
print(os.getpid(), *[line for line in done.stdout.splitlines() if line.startswith("group")], done.stderr)
"""


def test_nobody_answers(tmp_path: Path) -> None:
    done = run_uvfio("ctl", str(tmp_path / "none"), "status")
    assert done.status == 1
    assert "no run answers" in done.stderr


def test_path_that_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "control"
    path.write_text("something else")
    done = run_uvfio("run", "--control", str(path), "--", "true")
    assert done.status == 125
    assert "--control" in done.stderr
    assert path.read_text() == "something else"
