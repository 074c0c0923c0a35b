"""Writes to sysfs by shells, tools, Python and C: what arrives, what is refused, what waits."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support.requirements import require, require_program
from support.uvfio_cli import Finished, Uvfio, run_uvfio

if TYPE_CHECKING:
    from e2e.conftest import Programs

HOLDER = Path(__file__).parent / "programs" / "sysfs_holder.py"
A = "0000:00:05.0"
ABI = ("run", "-d", f"edu@{A},group=5")
DEVICE = f"/sys/bus/pci/devices/{A}"
VFIO = "/sys/bus/pci/drivers/vfio-pci"


def shell(script: str, name: str = "bash") -> Finished:
    return run_uvfio(*ABI, "--", require_program(name), "-c", script)


@pytest.mark.parametrize("name", ["bash", "dash"])
def test_a_shell_moves_a_device_between_drivers(name: str) -> None:
    script = f"""
        set -e
        echo {A} > {DEVICE}/driver/unbind
        ! test -e {DEVICE}/driver
        ! test -e /dev/vfio/5
        echo hugo > {DEVICE}/driver_override
        echo {A} > /sys/bus/pci/drivers_probe
        ! test -e {DEVICE}/driver
        echo > {DEVICE}/driver_override
        cat {DEVICE}/driver_override
        echo {A} > {VFIO}/bind
        test -c /dev/vfio/5
        basename $(readlink {DEVICE}/driver)
    """
    done = shell(script, name).ok()
    assert done.stdout.split() == ["(null)", "vfio-pci"]
    assert done.stderr == ""


def test_a_shell_is_told_why_a_write_failed() -> None:
    script = f"""
        echo {A} > {VFIO}/bind; echo $?
        echo 0000:99:00.0 > {VFIO}/unbind; echo $?
        echo nonsense > {DEVICE}/uevent; echo $?
        echo 1 > {DEVICE}/vendor; echo $?
        echo 1 > {DEVICE}/none; echo $?
        cat {VFIO}/bind; echo $?
        printf 1 > {DEVICE}/enable; echo $?
    """
    done = shell(script).ok()
    assert done.stdout.split() == ["1"] * 7
    assert [line.rpartition(": ")[2] for line in done.stderr.splitlines()] == [
        "Device or resource busy",
        "No such device",
        "Invalid argument",
        *["Permission denied"] * 3,
        "Device or resource busy",
    ]


@pytest.mark.parametrize(
    "command",
    [
        "/bin/echo WORD > FILE",
        "(echo WORD) > FILE",
        "{ sleep 0; echo WORD; } > FILE",
        "exec 1> FILE; echo WORD",
        "echo WORD | cat > FILE",
        "echo WORD | tee FILE > /dev/null",
        "echo WORD | dd of=FILE 2> /dev/null",
        "echo WORD 1<> FILE",
        "(echo WORD &) > FILE; while ! grep -q WORD FILE; do :; done",
    ],
)
def test_ways_to_write(command: str) -> None:
    file = f"{DEVICE}/driver_override"
    done = shell(f"({command.replace('WORD', 'word').replace('FILE', file)}); cat {file}").ok()
    assert done.stdout == "word\n"


@pytest.mark.parametrize("kind", ["dynamic", "static", "32-bit"])
def test_a_program_in_c(kind: str, program: Programs) -> None:
    words = [program("sysfs_write", static=kind == "static", m32=kind == "32-bit")]
    calls = ("write", "writev", "copy", "copy, writev")
    done = run_uvfio(*ABI, "--", *words, f"{DEVICE}/driver_override", "hugo").ok()
    answers = [*(f"{call}: OK" for call in calls), "copy, lseek: 0", "stdio: OK", "read: hugo"]
    assert done.stderr.splitlines() == answers
    done = run_uvfio(*ABI, "--", *words, f"{VFIO}/bind", A).ok()
    busy = "Device or resource busy"
    answers = [*(f"{call}: {busy}" for call in calls), "copy, lseek: 0", f"stdio: {busy}"]
    assert done.stderr.splitlines() == answers


def test_python_and_its_children(tmp_path: Path) -> None:
    code = f"""
import os, subprocess, threading
path = {f"{DEVICE}/driver_override"!r}
stop = threading.Event()
beside = threading.Thread(target=stop.wait)
beside.start()
def says(text):
    return open(path).read() == text + chr(10)
with open(path, "w") as file:
    file.write("one")
assert says("one")
with open(path, "w") as file:
    subprocess.run(["echo", "two"], stdout=file, check=True)
assert says("two")
saved = os.dup(1)
file = os.open(path, os.O_WRONLY)
os.dup2(file, 1)
os.write(1, b"three")
assert says("three")
os.dup2(saved, 1)
os.close(file)
file = os.open({f"{VFIO}/bind"!r}, os.O_WRONLY)
try:
    os.write(file, b"0000:99:00.0")
except OSError as error:
    print(error.strerror)
file = os.open({f"{DEVICE}/config"!r}, os.O_RDWR)
assert os.pread(file, 4, 0) == bytes.fromhex("3412e811")
assert os.pwrite(file, b"\\x06\\x00", 4) == 2
assert os.lseek(file, 0, os.SEEK_END) == 256 and os.read(file, 4) == b""
assert os.lseek(file, 4, os.SEEK_SET) == 4 and os.read(file, 2) == b"\\x06\\x00"
stop.set()
"""
    done = run_uvfio(*ABI, "--", sys.executable, "-c", code).ok()
    assert (done.stdout, done.stderr) == ("No such device\n", "")


@pytest.mark.parametrize("case", ["waits", "killed", "asked", "removed"])
@pytest.mark.parametrize("how", ["shell", "direct"])
def test_unbinding_a_device_in_use(case: str, how: str) -> None:
    done = run_uvfio(*ABI, "--", sys.executable, str(HOLDER), A, case, how).ok()
    assert done.stdout == "PASS\n"


def test_parts_are_written_where_the_position_is() -> None:
    program = f"""
import os
fd = os.open("{DEVICE}/config", os.O_RDWR)
os.lseek(fd, 0x3C, os.SEEK_SET)
print(os.writev(fd, [b"\\x05"]), os.lseek(fd, 0, os.SEEK_CUR), os.pread(fd, 1, 0x3C).hex())
os.lseek(fd, 0x04, os.SEEK_SET)
print(os.writev(fd, [b"\\x06", b"\\x04"]), os.lseek(fd, 0, os.SEEK_CUR), os.pread(fd, 2, 0x04).hex())
"""
    done = run_uvfio(*ABI, "--", sys.executable, "-c", program).ok()
    assert done.stdout.splitlines() == ["1 61 05", "2 6 0604"]


def test_new_id_and_rescan() -> None:
    script = f"""
        set -e
        echo 1 > {DEVICE}/remove
        ls /sys/bus/pci/devices | wc -l
        echo 1 > /sys/bus/pci/rescan
        readlink {DEVICE}/driver
        echo {A} > {VFIO}/unbind
        echo 1234 11e8 > {VFIO}/new_id
        readlink {DEVICE}/driver
        echo 1234 11e8 > {VFIO}/remove_id
        ! echo 1234 11e8 > {VFIO}/remove_id
        ! echo 1234 > {VFIO}/new_id
    """
    done = shell(script).ok()
    assert done.stdout.split() == ["0", *["../../../../bus/pci/drivers/vfio-pci"] * 2]


def test_a_program_that_somebody_traces_is_refused_the_copy() -> None:
    """Nothing written is lost: the shell is told that the file cannot be its standard output."""
    strace = require_program("strace")
    script = f"echo x > {DEVICE}/driver_override; cat {DEVICE}/driver_override"
    words = (strace, "-f", "-o", "/dev/null", "-e", "trace=none", "bash", "-c", script)
    done = run_uvfio(*ABI, "--", *words).ok()
    assert done.stdout == "(null)\n"
    assert "Device or resource busy" in done.stderr


def test_trace_tells_of_writes() -> None:
    script = f"echo {A} > {VFIO}/bind; true"
    done = run_uvfio("run", "--trace", *ABI[1:], "--", "bash", "-c", script).ok()
    (line,) = [line for line in done.stderr.splitlines() if " write(1<" in line]
    assert f"write(1<{VFIO}/bind>" in line
    assert "EBUSY" in line


def test_who_waits_outlives_a_signal_and_the_user_of_the_device() -> None:
    """As in the kernel: an unbind that waits is not interrupted, and is done when the user of the device ends."""
    code = f"""
import os, select, signal, sys
sys.path.insert(0, {str(HOLDER.parent)!r})
import sysfs_holder
asked = sysfs_holder.hold_and_listen({A!r})[1]
signal.signal(signal.SIGINT, lambda *_: print("interrupted", flush=True))
child = os.fork()
if child == 0:
    os.closerange(3, 1024)
    file = os.open("{VFIO}/unbind", os.O_WRONLY)
    print("wrote", os.write(file, b"{A}"), flush=True)
    os._exit(0)
assert select.select([asked], [], [], 20)[0]
os.kill(child, signal.SIGINT)
print("parent ends", flush=True)
os._exit(0)
"""
    done = run_uvfio(*ABI, "--", sys.executable, "-c", code).ok()
    assert done.stdout.splitlines()[0] == "parent ends"
    assert sorted(done.stdout.splitlines()[1:]) == ["interrupted", "wrote 12"]


def test_modules_of_vfio() -> None:
    script = """
        set -e
        test -d /sys/module/vfio; test -d /sys/module/vfio_pci
        cat /sys/module/vfio/parameters/enable_unsafe_noiommu_mode
        cat /sys/module/vfio_iommu_type1/parameters/dma_entry_limit
        echo 7 > /sys/module/vfio_iommu_type1/parameters/dma_entry_limit
        cat /sys/module/vfio_iommu_type1/parameters/dma_entry_limit
        echo Y > /sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts
        cat /sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts
        readlink -f /sys/bus/pci/drivers/vfio-pci/module
        readlink -f /sys/class/vfio/5
        cat /sys/kernel/iommu_groups/5/reserved_regions
    """
    done = shell(script).ok()
    assert done.stdout.splitlines() == [
        "N",
        "65535",
        "7",
        "Y",
        "/sys/module/vfio_pci",
        "/sys/devices/virtual/vfio/5",
        "0x00000000fee00000 0x00000000feefffff msi",
    ]


def test_a_listing_of_modules_shows_the_hosts_too() -> None:
    code = """
import os
host = set(HOST)
ours = {"vfio", "vfio_iommu_type1", "vfio_pci", "vfio_pci_core", "vfio_platform"}
names = os.listdir("/sys/module")
assert host | ours == set(names), (host | ours) ^ set(names)
folder = os.open("/sys/module/", os.O_RDONLY | os.O_DIRECTORY)
def inside(name):
    return sorted(os.listdir(os.open(name, os.O_RDONLY, dir_fd=folder)))
some = next(name for name in sorted(host) if not name.startswith("vfio") and os.listdir(f"/sys/module/{name}"))
assert inside(some) == sorted(os.listdir(f"/sys/module/{some}")) != []
assert inside("vfio_pci") == ["drivers", "initstate", "parameters"]
assert os.stat("vfio", dir_fd=folder).st_mode == os.stat("/sys/module/vfio").st_mode
assert [entry.is_dir() for entry in os.scandir("/sys/module")] == [True] * len(names)
print("PASS")
"""
    require(os.path.isdir("/sys/module"), "the host has no /sys/module")
    code = code.replace("HOST", repr(os.listdir("/sys/module")))
    assert run_uvfio(*ABI, "--", sys.executable, "-c", code).ok().stdout == "PASS\n"


def test_platform_devices() -> None:
    device = "/sys/bus/platform/devices/10010000.timer"
    script = f"""
        set -e
        echo 10010000.timer > {device}/driver/unbind
        ! test -e {device}/driver
        echo vfio-platform > {device}/driver_override
        echo 10010000.timer > /sys/bus/platform/drivers_probe
        basename $(readlink {device}/driver)
    """
    words = ("run", "-d", "timer@/soc/timer@10010000", "--", "bash", "-c", script)
    assert run_uvfio(*words).ok().stdout == "vfio-platform\n"


def test_files_belong_to_who_runs_the_program() -> None:
    if os.geteuid() != 0:
        pytest.skip("only root starts programs as somebody else")
    script = f"echo hugo > {DEVICE}/driver_override && cat {DEVICE}/driver_override"
    with Uvfio(*ABI, "--", "bash", "-c", script, user=65534) as run:
        assert run.finish().ok().stdout == "hugo\n"
