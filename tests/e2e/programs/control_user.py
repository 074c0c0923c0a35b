"""A program of a run that also holds the run's control socket: it uses devices and takes them away.

    uvfio run --control SOCKET -m MACHINE -- python control_user.py SOCKET CASE

Being both sides makes the order of things exact: nothing here waits for a time to pass. Ends with status 0
if everything that the case claims is true.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import mmap
import os
import random
import socket
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from uvfio.uapi import rfc

BAR0, CONFIG = 0, 7 << 40
EDU_ID, LIVENESS = 0x010000ED, 4


class Control:
    """A connection to the control socket."""

    def __init__(self, path: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(path)
        self.lines = self.socket.makefile("rb")

    def send(self, verb: str, **facts: Any) -> None:
        self.socket.sendall(json.dumps({"verb": verb, **facts}).encode() + b"\n")

    def answer(self) -> dict[str, Any]:
        line = self.lines.readline()
        assert line, "the run hung up"
        answer: dict[str, Any] = json.loads(line)
        return answer

    def ask(self, verb: str, **facts: Any) -> dict[str, Any]:
        self.send(verb, **facts)
        return self.answer()

    def must(self, verb: str, **facts: Any) -> dict[str, Any]:
        answer = self.ask(verb, **facts)
        assert answer["ok"], answer
        return answer

    def refused(self, name: str, verb: str, **facts: Any) -> str:
        answer = self.ask(verb, **facts)
        assert not answer["ok"], answer
        assert answer["errno"] == name, answer
        return str(answer["error"])

    def quiet(self) -> bool:
        """Whether no answer has come. Another connection's round trip comes first, so that it could have."""
        other = Control(PATH)
        other.must("status")
        other.close()
        self.socket.setblocking(False)
        try:
            return not self.socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        finally:
            self.socket.setblocking(True)

    def close(self) -> None:
        self.lines.close()
        self.socket.close()


def errno_of(call: Callable[..., object], *arguments: object) -> str:
    """The name of the error that the call gives; empty for none."""
    try:
        call(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return ""


def fails(number: int, call: Callable[..., object], *arguments: object) -> None:
    found = errno_of(call, *arguments)
    assert found == errno.errorcode[number], f"{found or 'success'}, not {errno.errorcode[number]}"


def open_group(number: int) -> int:
    return os.open(f"/dev/vfio/{number}", os.O_RDWR)


def get_device(group: int, address: str) -> int:
    name = bytearray(address.encode() + b"\0")
    fd: int = fcntl.ioctl(group, rfc.VFIO_GROUP_GET_DEVICE_FD, name, True)
    return fd


def get_iommu(group: int) -> int:
    return fcntl.ioctl(group, rfc.VFIO_GROUP_GET_IOMMU_FD)


def flags(group: int) -> int:
    value = bytearray(8)
    fcntl.ioctl(group, rfc.VFIO_GROUP_GET_FLAGS, value, True)
    return int.from_bytes(value, "little")


def map_dma(iommu: int, memory: mmap.mmap, iova: int) -> None:
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    request = rfc.DMA_MAP.pack(40, address, iova, len(memory), rfc.VFIO_DMA_MAP_FLAG_WRITE)
    fcntl.ioctl(iommu, rfc.VFIO_IOMMU_MAP_DMA, request)


def merge(group: int, other: int) -> None:
    fcntl.ioctl(group, rfc.VFIO_GROUP_MERGE, struct.pack("<i", other))


def register(device: int, offset: int = 0) -> int:
    return int.from_bytes(os.pread(device, 4, offset), "little")


def alive(device: int) -> bool:
    return register(device) == EDU_ID


def case_status(control: Control) -> None:
    group = open_group(240)
    iommu = get_iommu(group)
    map_dma(iommu, mmap.mmap(-1, 8192), 0x10000)
    run = control.must("status")["run"]
    assert run["open_files"] == 2, run
    (context,) = run["contexts"]
    assert context["groups"] == ["240"], context
    assert context["mappings"] == 1, context
    os.close(iommu)
    os.close(group)
    run = control.must("status")["run"]
    assert run["open_files"] == 0, run
    assert run["contexts"] == [], run


def case_plug(control: Control) -> None:
    assert not os.path.exists("/dev/vfio/9")
    answer = control.must("plug", device="edu@0000:08:00.0,group=9")
    assert answer["address"] == "0000:08:00.0"
    assert Path("/sys/bus/pci/devices/0000:08:00.0/iommu_group").read_text() == "9\n"
    group = open_group(9)
    assert alive(get_device(group, "0000:08:00.0"))
    control.refused("EINVAL", "plug", device="edu@0000:08:00.0")
    control.refused("EINVAL", "plug", device="nosuchmodel")
    control.must("unplug", address="0000:08:00.0")
    assert not os.path.exists("/sys/bus/pci/devices/0000:08:00.0")
    control.refused("ENODEV", "unplug", address="0000:08:00.0")


def case_plug_into_used_group(control: Control) -> None:
    """Review row 12: the new device is attached, bound at once, and nobody else's."""
    group = open_group(240)
    iommu = get_iommu(group)
    memory = mmap.mmap(-1, 4096)
    memory[:4] = b"\x11\x22\x33\x44"
    map_dma(iommu, memory, 0x100000)
    control.must("plug", device="edu@0000:06:0d.2,group=240")
    assert flags(group) & rfc.VFIO_GROUP_FLAGS_VIABLE
    device = get_device(group, "0000:06:0d.2")
    os.pwrite(device, struct.pack("<H", 6), CONFIG + 4)
    for offset, value in ((0x80, 0x100000), (0x88, 0x40000), (0x90, 4), (0x98, 1)):
        os.pwrite(device, struct.pack("<I", value), offset)
    while register(device, 0x98) & 1:
        pass
    assert os.pread(device, 4, 0x98) == bytes(4)
    for offset, value in ((0x80, 0x40000), (0x88, 0x100800), (0x90, 4), (0x98, 3)):
        os.pwrite(device, struct.pack("<I", value), offset)
    while register(device, 0x98) & 1:
        pass
    assert memory[0x800:0x804] == b"\x11\x22\x33\x44", "the mappings of the group apply to it"


def case_foreign_driver(control: Control) -> None:
    """Review row 12: a device of a used group is VFIO's, whatever driver it was meant for."""
    group = open_group(240)
    device = get_device(group, "0000:06:0d.0")
    control.must("plug", device="edu@0000:06:0d.3,group=240,driver=some-net")
    devices = control.must("status")["machine"]["devices"]
    assert [d["driver"] for d in devices if d["address"] == "0000:06:0d.3"] == ["vfio-pci"]
    control.refused("EBUSY", "bind", address="0000:06:0d.3", driver="some-net")
    assert alive(get_device(group, "0000:06:0d.3"))
    assert alive(device)
    control.must("unplug", address="0000:06:0d.3")
    assert flags(group) & rfc.VFIO_GROUP_FLAGS_VIABLE
    os.close(device)
    control.must("unbind", address="0000:06:0d.1")
    assert not flags(group) & rfc.VFIO_GROUP_FLAGS_VIABLE
    fails(errno.EBUSY, get_iommu, group)
    control.must("bind", address="0000:06:0d.1", driver="some-net")
    assert not flags(group) & rfc.VFIO_GROUP_FLAGS_VIABLE
    control.must("unbind", address="0000:06:0d.1")
    control.must("bind", address="0000:06:0d.1")
    control.refused("EBUSY", "bind", address="0000:06:0d.1")
    assert alive(get_device(group, "0000:06:0d.0"))


def case_unbind_waits(control: Control) -> None:
    """Row 15: refuse new users, wait, finish when the last one goes."""
    group = open_group(240)
    device = get_device(group, "0000:06:0d.0")
    error = control.refused("EBUSY", "unbind", address="0000:06:0d.1", timeout=0)
    assert "in use" in error, error
    assert alive(device)
    control.send("unbind", address="0000:06:0d.0")
    assert control.quiet()
    fails(errno.ENODEV, get_device, group, "0000:06:0d.1")
    fails(errno.ENODEV, get_iommu, group)
    assert alive(device), "who has it keeps it"
    os.close(device)
    assert control.answer() == {"ok": True}
    fails(errno.EBUSY, get_device, group, "0000:06:0d.1")
    control.must("bind", address="0000:06:0d.0")
    assert alive(get_device(group, "0000:06:0d.0"))


def case_unbind_cancelled(control: Control) -> None:
    group = open_group(240)
    device = get_device(group, "0000:06:0d.0")
    other = Control(PATH)
    other.send("unbind", address="0000:06:0d.0")
    assert other.quiet()
    fails(errno.ENODEV, get_iommu, group)
    other.close()
    while errno_of(get_iommu, group) == "ENODEV":
        control.must("status")  # a round trip for the waiter to notice
    os.close(get_iommu(group))
    assert alive(device)


def case_unbind_times_out(control: Control) -> None:
    group = open_group(240)
    device = get_device(group, "0000:06:0d.0")
    control.refused("EBUSY", "unbind", address="0000:06:0d.0", timeout=0.05)
    assert alive(device)
    assert alive(get_device(group, "0000:06:0d.0"))


def case_revoke(control: Control) -> None:
    """Calls say ENODEV, mappings stay readable but dead, other groups go on."""
    group, other = open_group(7), open_group(8)
    device, bystander = get_device(group, "0000:01:00.0"), get_device(other, "0000:02:00.0")
    iommu = get_iommu(group)
    offset = bar_memory(device)
    window = mmap.mmap(device, 4096, offset=offset)
    window[:4] = b"mine"
    event = os.eventfd(0)
    fcntl.ioctl(device, rfc.VFIO_DEVICE_SET_IRQ_EVENTFDS, struct.pack("<3i", 0, 1, event))
    control.must("unbind", address="0000:01:00.0", revoke=True)
    fails(errno.ENODEV, os.pread, device, 4, 0)
    fails(errno.ENODEV, os.pwrite, device, b"abcd", 0)
    fails(errno.ENODEV, fcntl.ioctl, device, rfc.VFIO_DEVICE_RESET)
    fails(errno.ENODEV, map_dma, iommu, mmap.mmap(-1, 4096), 0x1000)
    fails(errno.ENODEV, lambda: mmap.mmap(device, 4096, offset=offset))
    window[4:8] = b"live"
    assert len(window[:8]) == 8, "the mapping does not fault"
    assert os.pread(bystander, 4, 0)
    control.must("bind", address="0000:01:00.0")
    again = get_device(group, "0000:01:00.0")
    assert os.pread(again, 8, offset) == bytes(8), "what the first user kept is another memory"
    window[:4] = b"dead"
    assert os.pread(again, 4, offset) == bytes(4)
    fails(errno.ENODEV, os.pread, device, 4, 0)
    for fd in (device, iommu, again, group):
        os.close(fd)
    window.close()
    run = control.must("status")["run"]
    assert run["open_files"] == 2, run


def case_revoke_member_of_set(control: Control) -> None:
    """The set's other members keep their devices and mappings."""
    a, b = open_group(240), open_group(241)
    merge(a, b)
    iommu = get_iommu(a)
    mine, taken = get_device(a, "0000:06:0d.0"), get_device(b, "0000:07:00.0")
    map_dma(iommu, mmap.mmap(-1, 4096), 0x1000)
    control.must("unbind", address="0000:07:00.0", revoke=True)
    fails(errno.ENODEV, os.pread, taken, 4, 0)
    assert alive(mine)
    map_dma(iommu, mmap.mmap(-1, 4096), 0x2000)
    contexts = control.must("status")["run"]["contexts"]
    assert [c["mappings"] for c in contexts if c["groups"] == ["240"]] == [2], contexts


def case_unplug_used(control: Control) -> None:
    group = open_group(241)
    device = get_device(group, "0000:07:00.0")
    control.must("unplug", address="0000:07:00.0")
    fails(errno.ENODEV, os.pread, device, 4, 0)
    fails(errno.ENODEV, get_device, group, "0000:07:00.0")
    assert not flags(group) & rfc.VFIO_GROUP_FLAGS_VIABLE, "an empty group is not viable (D13)"
    os.close(device)
    os.close(group)
    control.must("status")
    assert not os.path.exists("/dev/vfio/241")
    control.must("plug", device="edu@0000:07:00.0,group=241")
    assert alive(get_device(open_group(241), "0000:07:00.0"))


def case_garbage(control: Control) -> None:
    for line in (b"no json\n", b"[1]\n", b'{"verb": 5}\n', b'{"verb": "plug"}\n', b"{}\n"):
        control.socket.sendall(line)
        assert not control.answer()["ok"]
    for facts in ({"timeout": -1}, {"timeout": "soon"}, {"address": 3}):
        wrong = {"address": "0000:06:0d.0", **facts}
        assert not control.ask("unbind", **wrong)["ok"]
    control.must("status")
    flood = Control(PATH)
    flood.socket.sendall(b"x" * 200_000)
    try:
        while flood.lines.readline():
            pass
    except ConnectionResetError:
        pass
    control.must("status")


def case_random(control: Control, rounds: int = 100, seed: int = 1) -> None:
    """Plug, unplug, bind, unbind and use at random; at the end everything is as before."""
    dice = random.Random(seed)
    before = control.must("status")["run"]
    spare = {f"0000:20:{slot:02x}.0": 100 + slot % 3 for slot in range(6)}
    plugged: set[str] = set()
    held: list[int] = []
    refusals = 0
    for _ in range(rounds):
        address = dice.choice(sorted(spare))
        what = dice.randrange(8)
        if what == 0 and address not in plugged:
            answer = control.ask("plug", device=f"edu@{address},group={spare[address]}")
            if answer["ok"]:
                plugged.add(address)
        elif what == 1 and address in plugged:
            control.must("unplug", address=address)
            plugged.remove(address)
        elif what == 2:
            answer = control.ask("unbind", address=address, timeout=0, revoke=dice.random() < 0.3)
            refusals += not answer["ok"]
        elif what == 3:
            refusals += not control.ask("bind", address=address)["ok"]
        elif what in (4, 5):
            found = errno_of(take, held, spare[address], address)
            assert found in ("", "ENOENT", "ENODEV", "EBUSY"), found
        elif held:
            fd = held.pop(dice.randrange(len(held)))
            if what == 6:
                assert errno_of(os.pread, fd, 4, 0) in ("", "ENODEV", "EINVAL")
            os.close(fd)
    for fd in held:
        os.close(fd)
    for address in sorted(plugged):
        control.must("unplug", address=address)
    after = control.must("status")["run"]
    for key in ("open_files", "contexts", "descriptors", "threads"):
        assert after[key] == before[key], (key, before[key], after[key])
    assert sorted(os.listdir("/dev/vfio")) == ["240", "241", "devices", "vfio"]
    print(f"{rounds} rounds, {refusals} refusals")


def take(held: list[int], number: int, address: str) -> None:
    """Open a group and a device of it; what could be opened is in ``held``."""
    held.append(open_group(number))
    held.append(get_device(held[-1], address))


def bar_memory(device: int) -> int:
    """The offset of the region that can be mapped."""
    for index in range(6):
        info = bytearray(rfc.REGION_INFO.pack(40, index, 0, 0, 0, 0))
        fcntl.ioctl(device, rfc.VFIO_DEVICE_GET_REGION_INFO, info, True)
        _, _, _, offset, kinds, _ = rfc.REGION_INFO.unpack(info)
        if kinds & rfc.VFIO_REGION_INFO_FLAG_MMAP:
            return int(offset)
    raise AssertionError("no region can be mapped")


PATH = sys.argv[1]

if __name__ == "__main__":
    globals()[f"case_{sys.argv[2]}"](Control(PATH), *map(int, sys.argv[3:]))
