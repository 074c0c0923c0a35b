"""The device file of the mainline ABIs for a platform device: what it has, and what only PCI functions have."""

from __future__ import annotations

import errno
import struct

import pytest

from support.mainline import Desk, refused
from uvfio.doors.local import Process
from uvfio.machine.machine import Machine
from uvfio.uapi import vfio
from uvfio.uapi import vfio_feature as features

NONE, EVENTFD, MASK, TRIGGER = 1, 4, 8, 32


class Bench(Desk):
    def __init__(self) -> None:
        self.machine = Machine(devices=["timer@/soc/timer@10010000,group=3"])
        self.framework = self.machine.framework
        self.me = Process(self.machine, abi="mainline")
        self.processes = [self.me]
        (group,) = self.framework.groups
        self.grp = self.me.open(f"/dev/vfio/{group.node_name}")
        self.box = self.container(self.grp)
        self.dev = self.device(self.grp, "10010000.timer")


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_interrupts(bench: Bench) -> None:
    level = vfio.VFIO_IRQ_INFO_MASKABLE | vfio.VFIO_IRQ_INFO_AUTOMASKED
    assert bench.irq(bench.dev, 0) == (16, vfio.VFIO_IRQ_INFO_EVENTFD | level, 0, 1)
    assert bench.irq(bench.dev, 1) == (16, vfio.VFIO_IRQ_INFO_EVENTFD, 1, 1)
    fd, event = bench.event()
    for index in (0, 1):
        bench.set_irqs(bench.dev, index, EVENTFD | TRIGGER, data=struct.pack("<i", fd))
        bench.set_irqs(bench.dev, index, NONE | TRIGGER)
    assert event.take() == 2


@pytest.mark.parametrize(
    ("index", "flags", "start", "count", "number"),
    [
        (2, NONE | TRIGGER, 0, 1, errno.EINVAL),
        (1, NONE | MASK, 0, 1, errno.EINVAL),
        (0, NONE | TRIGGER, 1, 1, errno.EINVAL),
        (0, NONE | TRIGGER, 0, 2, errno.EINVAL),
        (0, NONE | MASK | TRIGGER, 0, 1, errno.ENOTTY),
        (0, NONE, 0, 1, errno.ENOTTY),
        (0, TRIGGER, 0, 1, errno.EINVAL),
    ],
)
def test_what_cannot_be_set(
    bench: Bench, index: int, flags: int, start: int, count: int, number: int
) -> None:
    with refused(bench, number):
        bench.set_irqs(bench.dev, index, flags, start, count)


def test_a_bad_descriptor(bench: Bench) -> None:
    for fd, number in ((900, errno.EBADF), (bench.dev, errno.EINVAL)):
        with refused(bench, number):
            bench.set_irqs(bench.dev, 0, EVENTFD | TRIGGER, data=struct.pack("<i", fd))


def test_what_only_pci_has(bench: Bench) -> None:
    for request in (
        vfio.VFIO_DEVICE_GET_PCI_HOT_RESET_INFO,
        vfio.VFIO_DEVICE_PCI_HOT_RESET,
        vfio.VFIO_DEVICE_IOEVENTFD,
    ):
        with refused(bench, errno.ENOTTY):
            bench.me.ioctl(bench.dev, request, struct.pack("<I", 64) + bytes(60))
    for number in features.FEATURES:
        for way in (1 << 16, 1 << 17):
            with refused(bench, errno.ENOTTY):
                argument = vfio.HEAD.pack(8, number | way | 1 << 18)
                bench.me.ioctl(bench.dev, vfio.VFIO_DEVICE_FEATURE, argument)


def test_reset(bench: Bench) -> None:
    bench.me.pwrite(bench.dev, b"\5\0\0\0", 4)
    assert bench.me.ioctl(bench.dev, vfio.VFIO_DEVICE_RESET) == 0
    assert bench.me.pread(bench.dev, 4, 4) == bytes(4)
