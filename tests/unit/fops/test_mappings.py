"""Mappings of mainline's device file: what polled registers say of themselves, and when memory does not answer."""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Iterator

import pytest

from support.mainline import Desk, refused
from uvfio.doors.local import Process
from uvfio.errors import BadAddress, NoMemory
from uvfio.machine.machine import Machine
from uvfio.uapi import pci, rfc, vfio
from uvfio.uapi import vfio_feature as features

MEMORY = pci.PCI_COMMAND_MEMORY
RAM = 2 << 40
EDU = "0000:06:0d.0"
LIVE = 4


@pytest.fixture
def desk() -> Iterator[Desk]:
    desk = Desk()
    yield desk
    for process in desk.processes:
        process.exit()


def power(desk: Desk, device: int, state: int) -> None:
    at = desk.config(device, pci.PCI_CAPABILITY_LIST, 1)
    while desk.config(device, at, 1) != pci.PCI_CAP_ID_PM:
        at = desk.config(device, at + 1, 1)
    desk.set_config(device, at + pci.PCI_PM_CTRL, state)


def decode(desk: Desk, device: int, on: bool) -> None:
    command = desk.config(device, pci.PCI_COMMAND)
    desk.set_config(device, pci.PCI_COMMAND, command & ~MEMORY | MEMORY * on)


def sleep(desk: Desk, device: int, on: bool) -> None:
    number = (
        features.VFIO_DEVICE_FEATURE_LOW_POWER_EXIT
        if on
        else features.VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY
    )
    flags = number | features.VFIO_DEVICE_FEATURE_SET
    desk.me.ioctl(device, vfio.VFIO_DEVICE_FEATURE, vfio.HEAD.pack(8, flags))


def wake(desk: Desk, device: int, on: bool) -> None:
    power(desk, device, 0 if on else 3)


@pytest.mark.parametrize("switch", [decode, sleep, wake])
def test_memory_that_does_not_answer(desk: Desk, switch: Callable[[Desk, int, bool], None]) -> None:
    _, _, device = desk.ready()
    at = desk.me.mmap_at(device, 4096, RAM)
    desk.me.memory.write(at, b"here")
    for _ in range(2):
        switch(desk, device, False)
        with pytest.raises(BadAddress, match="does not answer"):
            desk.me.memory.read(at, 4)
        switch(desk, device, True)
        assert desk.me.memory.read(at, 4) == (b"here" if switch is not wake else bytes(4))
        desk.me.memory.write(at, b"here")
    decode(desk, device, False)
    desk.me.ioctl(device, vfio.VFIO_DEVICE_RESET)
    with pytest.raises(BadAddress):
        desk.me.memory.read(at, 4)
    desk.me.munmap(at)
    desk.me.close(device)
    assert not desk.machine.store.hidden("0000:00:01.0")


def test_dma_into_it_faults_and_it_cannot_be_mapped_for_dma(desk: Desk) -> None:
    container, _, device = desk.ready()
    at = desk.me.mmap_at(device, 4096, RAM)
    desk.map(container, 0x10000, 4096, at)
    dma = desk.machine.function("0000:00:01.0").dma
    desk.set_config(device, pci.PCI_COMMAND, MEMORY | pci.PCI_COMMAND_MASTER)
    dma.write(0x10000, b"peer")
    assert desk.me.memory.read(at, 4) == b"peer"
    decode(desk, device, False)
    with pytest.raises(OSError, match="0x10000"):
        dma.write(0x10000, b"gone")
    desk.unmap(container, 0x10000, 4096)
    with refused(desk, errno.EFAULT):
        desk.map(container, 0x10000, 4096, at)


def test_what_fails_to_hide_says_so(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, device = desk.ready()

    def full(name: str) -> None:
        raise NoMemory("no room for a copy")

    monkeypatch.setattr(desk.machine.store, "hide", full)
    with pytest.raises(NoMemory):
        decode(desk, device, False)
    monkeypatch.undo()
    decode(desk, device, False)
    assert desk.machine.store.hidden("0000:00:01.0")


@pytest.fixture
def edu() -> Process:
    return Process(Machine(), abi="mainline")


def opened(me: Process) -> int:
    container, group = me.open("/dev/vfio/vfio"), me.open("/dev/vfio/240")
    me.ioctl(group, vfio.VFIO_GROUP_SET_CONTAINER, struct.pack("<i", container))
    me.ioctl(container, vfio.VFIO_SET_IOMMU, vfio.VFIO_TYPE1v2_IOMMU)
    return me.ioctl(group, vfio.VFIO_GROUP_GET_DEVICE_FD, EDU)


def word(me: Process, device: int, offset: int) -> int:
    return int.from_bytes(me.pread(device, 4, offset), "little")


def test_polled_registers_through_the_local_door(edu: Process) -> None:
    device = opened(edu)
    answer = bytearray(vfio.REGION_INFO.pack(32, 0, 0, 0, 0, 0))
    edu.ioctl(device, vfio.VFIO_DEVICE_GET_REGION_INFO, answer)
    assert vfio.REGION_INFO.unpack(answer)[1] == 7  # read, write, mmap
    bar = edu.mmap(device, 4096, 0).cast("I")
    assert bar[0] == 0x010000ED
    bar[1] = 5
    assert word(edu, device, LIVE) == 0xFFFF_FFFA == bar[1]
    bar[1] = 6
    edu.machine.look()
    assert bar[1] == 0xFFFF_FFF9
    bar[1] = 7
    answer = bytearray(vfio.REGION_INFO.pack(32, 0, 7, 0, 0, 0))
    edu.ioctl(device, vfio.VFIO_DEVICE_GET_REGION_INFO, answer)
    assert bar[1] == 0xFFFF_FFF8
    edu.exit()
    bar[1] = 8
    edu.machine.look()
    assert bar[1] == 8  # but nobody looks any more


def test_the_flag_of_2011() -> None:
    me = Process(Machine())
    group = me.open("/dev/vfio/240")
    me.ioctl(group, rfc.VFIO_GROUP_GET_IOMMU_FD)
    device = me.ioctl(group, rfc.VFIO_GROUP_GET_DEVICE_FD, EDU)
    answer = bytearray(rfc.REGION_INFO.pack(40, 0, 0, 0, 0, 0))
    me.ioctl(device, rfc.VFIO_DEVICE_GET_REGION_INFO, answer)
    assert rfc.REGION_INFO.unpack(answer)[4] == rfc.VFIO_REGION_INFO_FLAG_MMAP
    at = me.mmap_at(device, 4096, 0)
    me.memory.write(at + LIVE, (9).to_bytes(4, "little"))
    assert word(me, device, LIVE) == 0xFFFF_FFF6
    me.pwrite(device, b"\0\0", (7 << 40) + pci.PCI_COMMAND)  # says nothing of decoding in 2011
    assert me.memory.read(at, 4) == b"\xed\0\0\1"
    me.exit()
