"""A program of the mainline ABIs on a machine of real models: system calls in one line each, and all that it sees.

``Desk`` has an exerciser alone in group 1, two more on a bus of their own in group 2 and an edu that a driver of
the host has in group 3. ``refused`` asserts an errno *and* that nothing that can be seen has changed.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from support.world import name_of
from uvfio.doors.local import LocalEvent, Process
from uvfio.drivers.pci.device import VfioPciDevice
from uvfio.machine.machine import Machine
from uvfio.uapi import vfio

PAGE = 4096
NOWHERE = 0x10  # an address that leads to no memory
ALONE = "0000:00:01.0"
FIRST, SECOND = "0000:01:00.0", "0000:01:01.0"
FOREIGN = "0000:00:02.0"
RW = vfio.VFIO_DMA_MAP_FLAG_READ | vfio.VFIO_DMA_MAP_FLAG_WRITE
CONFIG = 7 << 40


class Desk:
    """See the module's head. ``me`` is the program; ``abi`` what its /dev/vfio looks like."""

    def __init__(self, abi: str = "mainline", **options: Any) -> None:
        self.machine = Machine(
            devices=[
                f"exerciser@{ALONE},group=1",
                f"exerciser@{FIRST},group=2",
                f"exerciser@{SECOND},group=2",
                f"edu@{FOREIGN},group=3,driver=nvme",
            ],
            **options,
        )
        self.framework = self.machine.framework
        self.me = Process(self.machine, name="me", abi=abi)
        self.processes = [self.me]

    # -- the container and groups ------------------------------------------------------------------

    def container(self, *groups: int, version: int | None = 2) -> int:
        """A container with these group descriptors in it; ``version`` None: without an IOMMU."""
        fd = self.me.open("/dev/vfio/vfio")
        for group in groups:
            self.set_container(group, fd)
        if version is not None:
            kind = vfio.VFIO_TYPE1_IOMMU if version == 1 else vfio.VFIO_TYPE1v2_IOMMU
            self.me.ioctl(fd, vfio.VFIO_SET_IOMMU, kind)
        return fd

    def group(self, number: int) -> int:
        return self.me.open(f"/dev/vfio/{number}")

    def set_container(self, group: int, container: int) -> None:
        self.me.ioctl(group, vfio.VFIO_GROUP_SET_CONTAINER, struct.pack("<i", container))

    def status(self, group: int) -> int:
        answer = bytearray(vfio.HEAD.pack(8, 0))
        self.me.ioctl(group, vfio.VFIO_GROUP_GET_STATUS, answer)
        flags: int = vfio.HEAD.unpack(answer)[1]
        return flags

    def device(self, group: int, name: str) -> int:
        return self.me.ioctl(group, vfio.VFIO_GROUP_GET_DEVICE_FD, name)

    def ready(self, number: int = 1, name: str = ALONE) -> tuple[int, int, int]:
        """(container, group, device), all open."""
        group = self.group(number)
        container = self.container(group)
        return container, group, self.device(group, name)

    # -- memory ------------------------------------------------------------------------------------

    def buffer(self, size: int = PAGE, *, writable: bool = True) -> int:
        return self.me.memory.allocate(size, writable=writable)

    def map(
        self, fd: int, iova: int, size: int, vaddr: int, flags: int = RW, argsz: int = 32
    ) -> None:
        argument = vfio.DMA_MAP.pack(argsz, flags, vaddr, iova, size)
        self.me.ioctl(fd, vfio.VFIO_IOMMU_MAP_DMA, argument)

    def unmap(self, fd: int, iova: int, size: int, flags: int = 0, argsz: int = 24) -> int:
        """How many bytes were unmapped."""
        argument = bytearray(vfio.DMA_UNMAP.pack(argsz, flags, iova, size))
        self.me.ioctl(fd, vfio.VFIO_IOMMU_UNMAP_DMA, argument)
        done: int = vfio.DMA_UNMAP.unpack(argument)[3]
        return done

    # -- the device --------------------------------------------------------------------------------

    def bound(self, name: str = ALONE) -> VfioPciDevice:
        data = self.machine.record(name).data
        assert isinstance(data, VfioPciDevice)
        return data

    def region(self, device: int, index: int, argsz: int = 32) -> tuple[int, ...]:
        """(argsz, flags, index, cap_offset, size, offset)"""
        answer = bytearray(vfio.REGION_INFO.pack(argsz, 0, index, 0, 0, 0))
        self.me.ioctl(device, vfio.VFIO_DEVICE_GET_REGION_INFO, answer)
        return vfio.REGION_INFO.unpack(answer)

    def irq(self, device: int, index: int, argsz: int = 16) -> tuple[int, ...]:
        """(argsz, flags, index, count)"""
        answer = bytearray(vfio.IRQ_INFO.pack(argsz, 0, index, 0))
        self.me.ioctl(device, vfio.VFIO_DEVICE_GET_IRQ_INFO, answer)
        return vfio.IRQ_INFO.unpack(answer)

    def set_irqs(
        self,
        device: int,
        index: int,
        flags: int,
        start: int = 0,
        count: int = 1,
        data: bytes = b"",
        argsz: int | None = None,
    ) -> None:
        size = vfio.IRQ_SET.size + len(data) if argsz is None else argsz
        argument = vfio.IRQ_SET.pack(size, flags, index, start, count) + data
        self.me.ioctl(device, vfio.VFIO_DEVICE_SET_IRQS, argument)

    def event(self) -> tuple[int, LocalEvent]:
        """An eventfd and the event behind it."""
        fd = self.me.eventfd()
        found = self.me.file(fd)
        assert isinstance(found, LocalEvent)
        return fd, found

    def config(self, device: int, offset: int, size: int = 2) -> int:
        return int.from_bytes(self.me.pread(device, size, CONFIG + offset), "little")

    def set_config(self, device: int, offset: int, value: int, size: int = 2) -> None:
        self.me.pwrite(device, value.to_bytes(size, "little"), CONFIG + offset)

    # -- what can be seen --------------------------------------------------------------------------

    def snapshot(self) -> object:
        """The whole observable state. Objects in it stand for their identity."""
        groups = []
        for group in self.framework.groups:
            iommu = group.iommu
            domain = iommu.domain if iommu else None
            mappings = (
                [(m.first, m.last, m.vaddr, m.stale) for m in domain.mappings] if domain else []
            )
            devices = [(d.name, d.data, list(d.opens), d.attached) for d in group.devices]
            opens = [(held, held.exclusive, held.orphan) for held in group.opens]
            groups.append((str(group), opens, iommu, domain, mappings, devices))
        descriptors = [
            {fd: opened.file for fd, opened in process._fds.items()} for process in self.processes
        ]
        locked = [process.mm.locked_pages for process in self.processes]
        modes = [
            (slot.address, data.interrupts.mode, data.opens)
            for slot in self.machine.slots
            if isinstance(data := self.machine.record(slot.address).data, VfioPciDevice)
        ]
        return groups, descriptors, locked, modes


@contextmanager
def refused(desk: Desk, number: int) -> Iterator[pytest.ExceptionInfo[OSError]]:
    """The block fails with this errno and changes nothing that can be seen."""
    before = desk.snapshot()
    with pytest.raises(OSError) as caught:
        yield caught
    assert name_of(caught.value.errno) == name_of(number), caught.value
    assert desk.snapshot() == before
