"""A program that uses /dev/iommu and devices' own nodes, and everything that can be seen of them.

``IommufdDesk`` is a ``Desk`` whose snapshots have the iommufds too. Numbers of objects are what the ioctls answer.
"""

from __future__ import annotations

import struct
from typing import Any

from support.mainline import ALONE, Desk
from uvfio.core.structure.iommufd import Iommufd
from uvfio.core.translation.area import Area
from uvfio.core.translation.ioas import Hwpt, Ioas
from uvfio.doors.local import Process
from uvfio.fops.mainline.iommufd import IommufdFile
from uvfio.uapi import iommufd as uapi
from uvfio.uapi import vfio

__all__ = ["ALL", "FIXED", "IommufdDesk", "R", "W"]

FIXED, W, R = (
    uapi.IOMMU_IOAS_MAP_FIXED_IOVA,
    uapi.IOMMU_IOAS_MAP_WRITEABLE,
    uapi.IOMMU_IOAS_MAP_READABLE,
)
ALL = (1 << 64) - 1


class IommufdDesk(Desk):
    """See the module's head. Calls go through ``me`` unless another process is given."""

    # -- /dev/iommu --------------------------------------------------------------------------------

    def iommufd(self, process: Process | None = None) -> int:
        return (process or self.me).open("/dev/iommu")

    def context(self, fd: int, process: Process | None = None) -> Iommufd:
        file = (process or self.me).file(fd)
        assert isinstance(file, IommufdFile)
        return file.context

    def ask(self, fd: int, request: int, layout: str, *values: int) -> tuple[int, ...]:
        """An ioctl whose struct begins with its size, which is that of ``layout`` (behind the size)."""
        raw = bytearray(struct.pack("<I" + layout, struct.calcsize("<I" + layout), *values))
        self.me.ioctl(fd, request, raw)
        return struct.unpack("<I" + layout, raw)[1:]

    def ioas(self, fd: int) -> int:
        return self.ask(fd, uapi.IOMMU_IOAS_ALLOC, "II", 0, 0)[1]

    def ioas_map(
        self, fd: int, ioas: int, iova: int, size: int, vaddr: int, flags: int = FIXED | W | R
    ) -> int:
        argument = (flags, ioas, 0, vaddr, size, iova)
        return self.ask(fd, uapi.IOMMU_IOAS_MAP, "IIIQQQ", *argument)[5]

    def map_file(
        self, fd: int, ioas: int, iova: int, size: int, file: int, start: int, flags: int = 7
    ) -> int:
        argument = (flags, ioas, file, start, size, iova)
        return self.ask(fd, uapi.IOMMU_IOAS_MAP_FILE, "IIiQQQ", *argument)[5]

    def ioas_unmap(self, fd: int, ioas: int, iova: int, size: int) -> int:
        return self.ask(fd, uapi.IOMMU_IOAS_UNMAP, "IQQ", ioas, iova, size)[2]

    def copy(
        self, fd: int, target: int, source: int, iova: int, size: int, to: int, flags: int = 7
    ) -> int:
        argument = (flags, target, source, size, to, iova)
        return self.ask(fd, uapi.IOMMU_IOAS_COPY, "IIIQQQ", *argument)[4]

    def ranges(self, fd: int, ioas: int, room: int = 16) -> tuple[list[tuple[int, int]], int]:
        """(what can be mapped, alignment)"""
        at = self.me.memory.allocate(16 * max(room, 1))
        answer = self.ask(fd, uapi.IOMMU_IOAS_IOVA_RANGES, "IIIQQ", ioas, room, 0, at, 0)
        raw = self.me.memory.read(at, 16 * answer[1])
        return list(uapi.IOVA_RANGE.iter_unpack(raw)), answer[4]

    def allow(self, fd: int, ioas: int, *spans: tuple[int, int]) -> None:
        at = self.me.memory.allocate(16 * max(len(spans), 1))
        self.me.memory.write(at, b"".join(uapi.IOVA_RANGE.pack(*span) for span in spans))
        self.ask(fd, uapi.IOMMU_IOAS_ALLOW_IOVAS, "IIIQ", ioas, len(spans), 0, at)

    def option(self, fd: int, option: int, op: int, thing: int = 0, value: int = 0) -> int:
        return self.ask(fd, uapi.IOMMU_OPTION, "IHHIQ", option, op, 0, thing, value)[4]

    def vfio_ioas(self, fd: int, op: int, ioas: int = 0) -> int:
        return self.ask(fd, uapi.IOMMU_VFIO_IOAS, "IHH", ioas, op, 0)[0]

    def destroy(self, fd: int, number: int) -> None:
        self.ask(fd, uapi.IOMMU_DESTROY, "I", number)

    def hwpt(self, fd: int, device: int, parent: int, flags: int = 0, kind: int = 0) -> int:
        argument = (flags, device, parent, 0, 0, kind, 8 * (kind != 0), 0, 0, 0)
        return self.ask(fd, uapi.IOMMU_HWPT_ALLOC, "IIIIIIIQII", *argument)[3]

    # -- devices -----------------------------------------------------------------------------------

    def cdev(self, name: str = ALONE, process: Process | None = None) -> int:
        nodes = self.framework.nodes.items()
        number = next(number for number, device in nodes if device.name == name)
        return (process or self.me).open(f"/dev/vfio/devices/vfio{number}")

    def bind(self, device: int, fd: int, flags: int = 0, token: int = 0, argsz: int = 24) -> int:
        answer = bytearray(struct.pack("<IIiIQ", argsz, flags, fd, 0, token))
        self.me.ioctl(device, vfio.VFIO_DEVICE_BIND_IOMMUFD, answer)
        found: int = struct.unpack("<IIiIQ", answer)[3]
        return found

    def attach(self, device: int, number: int) -> int:
        return self.ask(device, vfio.VFIO_DEVICE_ATTACH_IOMMUFD_PT, "II", 0, number)[1]

    def detach(self, device: int) -> None:
        self.ask(device, vfio.VFIO_DEVICE_DETACH_IOMMUFD_PT, "I", 0)

    def attached(self, name: str = ALONE) -> tuple[int, int, int]:
        """(iommufd, address space, device), the device attached."""
        fd = self.iommufd()
        ioas = self.ioas(fd)
        device = self.cdev(name)
        self.bind(device, fd)
        self.attach(device, ioas)
        return fd, ioas, device

    # -- what can be seen --------------------------------------------------------------------------

    def snapshot(self) -> object:
        files = [opened.file for process in self.processes for opened in process._fds.values()]
        contexts = [describe(file.context) for file in files if isinstance(file, IommufdFile)]
        nodes = {n: (device.name, list(device.cdevs)) for n, device in self.framework.nodes.items()}
        return super().snapshot(), contexts, nodes


def describe(context: Iommufd) -> object:
    """Everything that a context is made of."""
    things = []
    for number, thing in context.objects.items():
        facts: Any = None
        if isinstance(thing, Ioas):
            areas = [
                (area.first, area.last, area.vaddr, area.backing, area.backing.locked)
                for area in thing.domain.mappings
                if isinstance(area, Area)
            ]
            facts = areas, thing.reserved, thing.allowed, thing.large_pages, list(thing.hwpts)
        elif isinstance(thing, Hwpt):
            facts = thing.users, thing.auto
        things.append((number, thing, facts))
    claims = [
        (claim, claim.joined, claim.hwpt, dict(claim.bound), list(claim.attached), claim.domain)
        for claim in context.claims
    ]
    return things, claims, context.compat, context.per_process
