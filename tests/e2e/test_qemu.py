"""QEMU's vfio-pci on devices of uvfio: it realizes them, and guests drive them.

The guest is a kernel of the distribution with one program of ours (``guest/``). Where it uses the guest's own VFIO,
each register access, interrupt and DMA mapping goes through VFIO twice: the guest kernel's, and ours below QEMU.
Everything is emulated: neither KVM nor a hardware IOMMU is asked for. UVFIO_QEMU names another QEMU than the system's.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import termios
from functools import cache
from pathlib import Path
from typing import Any, Self

import pytest

from e2e import build
from e2e.guest.image import FOLDER, Kernel, find_kernel, initramfs
from support.requirements import require, require_program
from support.terminal import Terminal
from support.uvfio_cli import NOBODY, Finished, Uvfio, run_uvfio

QEMU = os.environ.get("UVFIO_QEMU", "qemu-system-x86_64")
READY = "VM status: "  # the answer to "info status": all devices are there
BOOT = 150.0  # seconds; a guest takes four when nothing else runs
RUN = ("run", "--memlock", "unlimited")  # a guest's memory is more than an ordinary user may lock
ADDRESS = "0000:06:0d.0"
OTHER = "0000:07:00.0"
EDU = ("-d", f"edu@{ADDRESS}")
EXERCISER = ("-d", f"exerciser@{ADDRESS}")


@pytest.fixture(autouse=True)
def _qemu_is_there() -> None:
    require_program(QEMU)


@cache
def qemu() -> list[str]:
    """QEMU as every test starts it: q35 under TCG, with nothing that was not asked for."""
    machine = (
        "-machine q35,accel=tcg,kernel-irqchip=split -cpu max -m 256 -nodefaults -no-user-config"
    )
    return [QEMU, *machine.split(), "-display", "none", "-no-reboot"]


def stopped(*words: str) -> list[str]:
    """A QEMU that makes its machine, asks for commands on its standard input, and runs nothing."""
    return [*qemu(), "-S", "-monitor", "stdio", *words]


def vfio(address: str = ADDRESS, **options: str) -> list[str]:
    """-device vfio-pci; ``_`` in the name of an option stands for ``-``."""
    named = {"host": address, **{key.replace("_", "-"): value for key, value in options.items()}}
    return ["-device", ",".join(["vfio-pci", *(f"{key}={value}" for key, value in named.items())])]


def guest(checks: str, *, iommu: bool = True) -> list[str]:
    """A QEMU that boots the guest with these checks (``guest/init.c``)."""
    found = find_kernel()
    require(found is not None, f"there is no kernel in {FOLDER}: run tests/e2e/guest/fetch-kernel")
    assert isinstance(found, Kernel)
    reason = build.missing(static=True)
    require(not reason, reason)
    words = f"console=ttyS0 quiet panic=-1 mitigations=off tsc=reliable checks={checks}"
    unit: list[str] = []
    if iommu:
        words += " intel_iommu=on"
        unit = ["-device", "intel-iommu,intremap=on,caching-mode=on"]
    boot = ["-kernel", str(found.image), "-initrd", str(initramfs(found)), "-append", words]
    return [*qemu(), *unit, "-serial", "stdio", "-monitor", "none", *boot]


def passed(done: Finished) -> list[str]:
    """What the guest checked; it must have done all of it."""
    done.ok()
    lines = done.stdout.replace("\r", "").splitlines()
    assert "GUEST DONE" in lines, f"{done.stdout}\n{done.stderr[-3000:]}"
    return [line.removeprefix("PASS ") for line in lines if line.startswith("PASS ")]


# -- without a guest -----------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["edu", "exerciser"])
@pytest.mark.parametrize("bus", ["00", "06"])
def test_realizes(model: str, bus: str) -> None:
    address = f"0000:{bus}:0d.0"
    words = stopped(*vfio(address))
    done = run_uvfio(*RUN, "-d", f"{model}@{address}", "--", *words, input="info pci\nquit\n").ok()
    assert "PCI device 1234:" in done.stdout
    # no bridge is above bus 00, so nothing can reset an edu there
    unable = "no available reset mechanism" in done.stderr
    assert unable == (model == "edu" and bus == "00")


def test_several_devices_of_a_group() -> None:
    """Resetting one needs the whole bus, which QEMU may reset as it has all of the group."""
    both = [*vfio("0000:06:0d.0"), *vfio("0000:06:0d.1")]
    done = run_uvfio(*RUN, "--", *stopped(*both), input="info pci\nquit\n").ok()
    assert done.stdout.count("PCI device 1234:11e8") == 2
    assert "reset" not in done.stderr


def test_a_group_is_used_by_one_qemu() -> None:
    with Uvfio(*RUN, *EDU, "--", *_shell(stopped(*vfio()), stopped(*vfio()))) as uvfio:
        uvfio.expect(READY)
        uvfio.send("next\n")
        uvfio.expect("Device or resource busy", "stderr")
        assert uvfio.finish().status == 1


def _shell(first: list[str], second: list[str]) -> list[str]:
    """Words that start ``first`` and ask whether it is ready, run ``second`` after a line, and end ``first``."""
    script = """
import os, subprocess, sys
half = sys.argv.index(";")
first = subprocess.Popen(sys.argv[1:half], stdin=subprocess.PIPE)
first.stdin.write(b"info status\\n")
first.stdin.flush()
os.read(0, 5)  # "next" and no byte more
status = subprocess.call(sys.argv[half + 1 :])
first.communicate(b"quit\\n")
sys.exit(status)
"""
    return [sys.executable, "-c", script, *first, ";", *second]


def test_two_qemus_with_a_device_each() -> None:
    devices = (*EDU, "-d", f"edu@{OTHER}")
    words = _shell(stopped(*vfio()), stopped(*vfio(OTHER)))
    with Uvfio(*RUN, *devices, "--", *words) as uvfio:
        uvfio.expect(READY)
        uvfio.send("next\ninfo status\n")
        uvfio.expect(READY)
        assert uvfio.finish("quit\n").status == 0


@pytest.mark.parametrize("number", [9, 15])
def test_a_killed_qemu(number: int) -> None:
    """`uvfio run` ends as QEMU does, and leaves nothing behind."""
    words = stopped(*vfio())
    with Uvfio(*RUN, *EXERCISER, "--trace", "--status-fd", "1", "--", *words) as uvfio:
        started = json.loads(uvfio.expect("}\n"))
        uvfio.send("info status\n")
        uvfio.expect(READY)
        os.kill(started["pid"], number)
        done = uvfio.finish()
    assert done.status == (-9 if number == 9 else 0)  # QEMU takes SIGTERM as a request
    assert done.stderr.count("released") == 3, "device, container and group"


def test_daemonize(tmp_path: Path) -> None:
    """The device is served until the daemon ends."""
    monitor = tmp_path / "qmp"
    words = [*qemu(), *vfio(), "-daemonize", *_qmp_server(monitor)]
    with Uvfio(*RUN, *EDU, "--status-fd", "1", "--", *words) as uvfio:
        uvfio.expect("started")
        with Qmp.when_there(monitor, uvfio) as qmp:
            assert qmp.ask("query-status")["running"] is True
            assert uvfio.process.poll() is None
            qmp.ask("quit")
        assert uvfio.finish().status == 0


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("limit", ["4M", "unlimited"])
def test_locked_memory_of_an_ordinary_user(limit: str) -> None:
    words = stopped(*vfio())
    done = run_uvfio("run", *EDU, "--memlock", limit, "--", *words, user=NOBODY, input="quit\n")
    if limit == "unlimited":
        done.ok()
    else:
        assert done.status == 1
        assert "Cannot allocate memory" in done.stderr


def test_terminal() -> None:
    """QEMU makes the terminal raw, so that keys that send signals reach the guest; at the end it is as it was."""
    words = [sys.executable, "-m", "uvfio", *RUN, *EDU, "--", *qemu(), "-S"]
    with Terminal([*words, "-serial", "mon:stdio", *vfio()], os.environ) as terminal:
        before = termios.tcgetattr(terminal.master)
        terminal.type("\x01c")
        terminal.expect("(qemu)")
        assert termios.tcgetattr(terminal.master) != before
        for key in ("", Terminal.INTERRUPT, Terminal.SUSPEND):
            terminal.type(f"{key}info status\r")
            terminal.expect(READY)
        terminal.type("quit\r")
        assert terminal.process.wait(30) == 0
        assert termios.tcgetattr(terminal.master) == before


def test_sandbox() -> None:
    """QEMU's own seccomp filter and ours."""
    denied = ("obsolete", "elevateprivileges", "spawn", "resourcecontrol")
    sandbox = ",".join(["on", *(f"{what}=deny" for what in denied)])
    words = stopped(*vfio(), "-sandbox", sandbox)
    run_uvfio(*RUN, *EDU, "--", *words, input="info pci\nquit\n").ok()


# -- with a guest --------------------------------------------------------------------------------


@pytest.mark.parametrize("no_mmap", ["on", "off"])
def test_guest_drives_edu(no_mmap: str) -> None:
    """Registers, MSI, INTx and DMA by the guest's VFIO; an address that the guest did not map stays unreached."""
    words = [*guest("edu"), *vfio(x_no_mmap=no_mmap)]
    done = run_uvfio(*RUN, *EDU, "--trace", "--", *words, timeout=BOOT)
    names = passed(done)
    assert "factorial by MSI" in names
    assert "INTx comes again while its cause stands" in names
    assert "DMA to the device and back" in names
    assert f"dma {ADDRESS} fault iova 0x200000 write: not mapped" in done.stderr
    assert f"irq {ADDRESS} MSI 0" in done.stderr
    assert f"irq {ADDRESS} INTx" in done.stderr


@pytest.mark.parametrize("shared", [False, True])
def test_guest_without_an_iommu(shared: bool) -> None:
    """All of the guest's memory is mapped at its physical addresses."""
    words = [*guest("edu-uio", iommu=False), *vfio(x_no_mmap="on")]
    if shared:
        backend = "memory-backend-memfd,id=ram,size=256M,share=on"
        words += ["-object", backend, "-machine", "memory-backend=ram"]
    names = passed(run_uvfio(*RUN, *EDU, "--", *words, timeout=BOOT))
    assert "DMA to the device and back" in names
    assert "INTx by UIO again" in names


@pytest.mark.parametrize("no_mmap", ["on", "off"])
def test_guest_drives_the_exerciser(no_mmap: str) -> None:
    """MSI-X, ROM, ports, function reset; the memory BAR with loads and stores of the guest's processor."""
    words = [*guest("exerciser"), *vfio(x_no_mmap=no_mmap)]
    done = run_uvfio(*RUN, *EXERCISER, "--trace", "--", *words, timeout=BOOT)
    names = passed(done)
    assert "what was stored in the BAR is in RAM" in names
    assert "a reset clears it" in names
    trapped = [line for line in done.stderr.splitlines() if "region 2 +" in line]
    if no_mmap == "on":
        assert len(trapped) >= 3 * 8192 // 8, "each load and store is a call"
    else:
        assert len(trapped) == 1, "the mapping, and no call after it"
        assert " mmap(" in trapped[0]


def test_hot_unplug_and_plug(tmp_path: Path) -> None:
    """A device that is asked back goes through QEMU and the guest's kernel out of the guest's driver."""
    control, monitor = tmp_path / "control", tmp_path / "qmp"
    port = ("-device", "pcie-root-port,id=slot1,slot=1")
    words = [*guest("hotplug"), *_qmp_server(monitor), *port, *vfio(bus="slot1", x_no_mmap="on")]
    devices = (*EDU, "-d", f"edu@{OTHER}")
    with Uvfio(*RUN, *devices, "--control", control, "--", *words) as uvfio:
        uvfio.expect("the guest waits for the device's removal", timeout=BOOT)
        ctl = [sys.executable, "-m", "uvfio", "ctl", str(control), "unbind", ADDRESS]
        subprocess.run(ctl, check=True, timeout=BOOT)
        uvfio.expect("PASS the device has gone", timeout=BOOT)
        with Qmp.when_there(monitor, uvfio) as qmp:
            facts = {"driver": "vfio-pci", "host": OTHER, "bus": "slot1", "x-no-mmap": True}
            qmp.ask("device_add", **facts)
            done = uvfio.finish(timeout=BOOT)
    assert "the other one's identification" in passed(done)


# -- QEMU's monitor for programs ------------------------------------------------------------------


def _qmp_server(path: Path) -> list[str]:
    return ["-qmp", f"unix:{path},server=on,wait=off"]


class Qmp:
    """A connection to QEMU's monitor, which answers each request with one line; a context manager."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(BOOT)
        self.socket.connect(str(path))
        self.lines = self.socket.makefile("rw")
        assert "QMP" in json.loads(self.lines.readline())
        self.ask("qmp_capabilities")

    @classmethod
    def when_there(cls, path: Path, uvfio: Uvfio) -> Self:
        """Connect once QEMU listens; the socket's appearance is what says so."""
        while not path.is_socket():
            assert uvfio.process.poll() is None, uvfio.text("stderr")
            os.sched_yield()
        return cls(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.lines.close()
        self.socket.close()

    def ask(self, command: str, **arguments: Any) -> Any:
        """The answer; events that come before it are passed over."""
        self.lines.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        self.lines.flush()
        while "event" in (answer := json.loads(self.lines.readline())):
            pass
        assert "return" in answer, answer
        return answer["return"]
