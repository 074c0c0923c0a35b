"""A platform device made of bytes: what the tests of vfio-platform drive."""

from __future__ import annotations

from threading import RLock
from typing import TYPE_CHECKING

from uvfio.core.bus import DtProperty
from uvfio.drivers.platform.hardware import (
    InterruptSink,
    Origin,
    PlatformInterrupt,
    PlatformRegion,
)

if TYPE_CHECKING:
    from uvfio.core.translation.domain import Domain
    from uvfio.core.translation.unit import IommuUnit

NODE = "/soc/block@1000"
CHILD = f"{NODE}/part@2000"


def region(
    entry: int, size: int, *, path: str = NODE, writable: bool = True, mappable: bool = False
) -> PlatformRegion:
    origin = Origin(path, DtProperty.REG, entry)
    return PlatformRegion(origin, 0x1000 * (entry + 1), size, writable, mappable)


def line(entry: int, level: bool, *, path: str = NODE) -> PlatformInterrupt:
    return PlatformInterrupt(Origin(path, DtProperty.INTERRUPTS, entry), 40 + entry, level)


REGIONS = (
    region(0, 0x100),
    region(1, 0x2000, mappable=True),
    region(0, 0x800, path=CHILD, mappable=True),
    region(1, 0x1000, path=CHILD, writable=False, mappable=True),
)
LINES = (line(0, True), line(1, False), line(0, True, path=CHILD))


class FakePlatform:
    """Implements ``PlatformHardware``. ``fail[method]`` is raised by that method; ``log`` has every access."""

    def __init__(
        self,
        *,
        regions: tuple[PlatformRegion, ...] = REGIONS,
        interrupts: tuple[PlatformInterrupt, ...] = LINES,
        resettable: bool = True,
    ) -> None:
        self.lock = RLock()
        self.name = "1000.block"
        self.bus = "platform"
        self.path = NODE
        self.group: int | None = 1
        self.unit: IommuUnit | None = None
        self.regions = regions
        self.interrupts = interrupts
        self.resettable = resettable
        self.sink: InterruptSink | None = None
        self.levels = dict.fromkeys(range(len(interrupts)), False)
        self.memories = [bytearray(r.size) for r in regions]
        self.log: list[tuple[object, ...]] = []
        self.fail: dict[str, Exception] = {}

    def _called(self, *what: object) -> None:
        self.log.append(what)
        failure = self.fail.get(str(what[0]))
        if failure is not None:
            raise failure

    def attach(self, domain: Domain) -> None:
        pass

    def detach(self) -> None:
        pass

    def asserted(self, index: int) -> bool:
        self._called("asserted", index)
        return self.levels[index]

    def read(self, index: int, offset: int, size: int) -> int:
        self._called("read", index, offset, size)
        return int.from_bytes(self.memories[index][offset : offset + size], "little")

    def write(self, index: int, offset: int, value: int, size: int) -> None:
        self._called("write", index, offset, value, size)
        self.memories[index][offset : offset + size] = value.to_bytes(size, "little")

    def memory(self, index: int) -> memoryview:
        return memoryview(self.memories[index])

    def end_mappings(self) -> None:
        self._called("end_mappings")

    def connect(self, sink: InterruptSink | None) -> None:
        self._called("connect", sink is not None)
        self.sink = sink

    def reset(self) -> None:
        self._called("reset")

    def wire(self, index: int, level: bool) -> None:
        """The device moves a wire."""
        self.levels[index] = level
        if self.sink is not None:
            self.sink.irq(index, level)
