"""``PlatformModel``: what the author of a platform device subclasses. It is the device in silicon.

A device is a class: its compatible strings, regions, interrupt lines and options are class attributes, its
behaviour are methods hooked to registers (``register.py``). Talking to the world, a model has ``self.dma``, its lines
and ``self.after()``, and nothing else::

    class Doorbell(PlatformModel):
        compatible = ("acme,doorbell",)
        regs = RegisterRegion(0, DoorbellRegisters)
        rings = EdgeLine(0)

        @DoorbellRegisters.ring.on_write
        def rung(self, value: int) -> None:
            self.rings.pulse()

Where it sits and which interrupts it has is not the model's to say: a device tree gives it ``Resources``, which
must fit what the class declares (same numbers of regions and interrupts, same triggers, sizes large enough).
``default_resources`` makes up a tree for machines that do not describe one.

Rules of the silicon:

- Behind the end of its registers a larger region reads 0 and ignores writes.
- DMA goes out while the device is attached to a domain; there is no other gate.
- A DMA fault that a register hook or a timer does not catch ends what that hook was doing, and no more. A
  read gives ones then.
- A reset cancels what ``after`` has pending, restores registers, drops the lines to low, clears memory regions
  that do not say ``keep``, and calls ``on_reset``. The attachment to a domain and the sink stay.

Threads: as for ``PciModel``. It does not know drivers, groups beyond a number, files or programs.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from uvfio.core.bus import Activity, DtProperty
from uvfio.drivers.platform.hardware import Origin, PlatformInterrupt, PlatformRegion, Resources
from uvfio.errors import ConfigError, ModelError
from uvfio.kit.dma import PlainDma
from uvfio.kit.migration import Migrating
from uvfio.kit.platform.region import (
    PAGE,
    EdgeLine,
    EdgeWire,
    LevelLine,
    LevelWire,
    LineDeclaration,
    MemoryRegion,
    RegionDeclaration,
    RegisterRegion,
)
from uvfio.kit.window import AbsentWindow, MemoryWindow

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from uvfio.core.seams import Clock, Store
    from uvfio.core.translation.unit import IommuUnit
    from uvfio.drivers.platform.hardware import InterruptSink
    from uvfio.kit.register import RegisterMap
    from uvfio.kit.window import Window

__all__ = ["EdgeLine", "LevelLine", "MemoryRegion", "PlatformModel", "RegisterRegion"]

_ABSENT = AbsentWindow()


class PlatformModel(Migrating):
    """One platform device. Implements ``drivers.platform.hardware.PlatformHardware``.

    Class attributes to set: ``compatible``, most specific first, at least one. ``resettable`` False: there is no
    way to reset it from outside (the machine can still power it off and on).
    """

    compatible: ClassVar[tuple[str, ...]] = ()
    resettable: bool = True

    region_declarations: ClassVar[tuple[RegionDeclaration, ...]] = ()
    """The regions that the class and its bases declare, by number."""
    line_declarations: ClassVar[tuple[LineDeclaration, ...]] = ()
    """The interrupt lines that the class and its bases declare, by number."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        found = cls._declarations().values()
        regions = [value for value in found if isinstance(value, RegionDeclaration)]
        lines = [value for value in found if isinstance(value, LineDeclaration)]
        for what, numbers in (
            ("region", [declared.index for declared in regions]),
            ("interrupt", [declared.index for declared in lines]),
        ):
            if sorted(numbers) != list(range(len(numbers))):
                raise ValueError(
                    f"{cls.__name__}: {what} numbers are 0, 1 and so on, each once, not {numbers}"
                )
        cls.region_declarations = tuple(sorted(regions, key=lambda declared: declared.index))
        cls.line_declarations = tuple(sorted(lines, key=lambda declared: declared.index))
        maps = {region.registers for region in regions if isinstance(region, RegisterRegion)}
        cls._check_hooks(maps, "regions")

    def __init__(
        self,
        name: str,
        *,
        resources: Resources,
        group: int | None,
        unit: IommuUnit | None,
        clock: Clock,
        store: Store,
        options: Mapping[str, object] = {},
    ) -> None:
        """Make and power on the device that Linux calls ``name`` ("10010000.timer").

        ConfigError: ``resources`` do not fit, or one of ``options`` is wrong. ``store`` gives the memory of
        mappable regions (NoMemory, NoSpace); nothing else is taken before that succeeds.
        """
        cls = type(self)
        if not cls.compatible:
            from uvfio.kit.explain import defined

            wrong = f"{defined(cls)}: {cls.__name__} declares no compatible string"
            raise ModelError(wrong, "set compatible; without, it is a base and no device")
        super().__init__(name, group=group, unit=unit, clock=clock, store=store, options=options)
        self.check_resources(resources)
        self.path = resources.path
        self._sink: InterruptSink | None = None
        self.dma = PlainDma(name)
        self._interrupts = resources.interrupts
        self._regions = tuple(
            replace(
                given,
                mappable=_can_be_mapped(declared, given),
                polled=declared.polled,
                writable=_writable(declared),
            )
            for declared, given in zip(self.region_declarations, resources.regions, strict=True)
        )
        self.wires: dict[int, LevelWire | EdgeWire] = {
            line.index: (LevelWire if line.level else EdgeWire)(line.index, self._tell)
            for line in self.line_declarations
        }
        self._mappings = {
            index: (region.size, region.polled)
            for index, region in enumerate(self._regions)
            if region.mappable
        }
        self._take_memory()
        self._answering += [self._window(declared) for declared in self.region_declarations]
        self._volatile = tuple(
            declared.index
            for declared in self.region_declarations
            if isinstance(declared, MemoryRegion) and not declared.keep
        )
        self.on_reset()
        self.is_made = True

    @property
    def bus(self) -> str:
        """The name of the bus: "platform"."""
        return "platform"

    # -- PlatformHardware ------------------------------------------------------------------------

    @property
    def regions(self) -> tuple[PlatformRegion, ...]:
        """The regions, by number."""
        return self._regions

    @property
    def interrupts(self) -> tuple[PlatformInterrupt, ...]:
        """The interrupts, by number."""
        return self._interrupts

    def asserted(self, index: int) -> bool:
        """The level of interrupt ``index``; False for an edge interrupt."""
        wire = self.wires[index]
        return isinstance(wire, LevelWire) and wire.level

    read = Migrating._read
    write = Migrating._write
    memory = Migrating._memory

    def connect(self, sink: InterruptSink | None) -> None:
        """Deliver interrupts to ``sink``. A wire that is high already is to be seen with ``asserted``."""
        self._sink = sink

    # -- migration -------------------------------------------------------------------------------

    def _settle_windows(self) -> None:
        if self._gone:
            self._windows = [_ABSENT] * len(self._answering)
        elif self.activity is Activity.STOPPED:
            self._windows = [
                _ABSENT if isinstance(declared, RegisterRegion) else window
                for declared, window in zip(self.region_declarations, self._answering, strict=True)
            ]
        else:
            self._windows = self._answering

    def _bus_identity(self) -> str:
        regions = " ".join(f"{region.size:#x}" for region in self._regions)
        return f"{' '.join(self.compatible)} regions {regions} lines {len(self.wires)}"

    def _save_bus(self) -> Mapping[str, bytes]:
        """ "lines": a byte for each interrupt, 1 for a level interrupt that is asserted."""
        return {"lines": bytes(self.asserted(index) for index in self.wires)}

    def _load_bus(self, sections: Mapping[str, bytes]) -> Callable[[], None]:
        lines = sections["lines"]
        if len(lines) != len(self.wires) or not set(lines) <= {0, 1}:
            raise ValueError(f"{len(lines)} bytes of interrupt lines")

        def take() -> None:
            for wire, level in zip(self.wires.values(), lines, strict=True):
                if isinstance(wire, LevelWire):
                    wire.set(bool(level))

        return take

    # -- inner -----------------------------------------------------------------------------------

    def _reset_bus(self) -> None:
        for wire in self.wires.values():
            if isinstance(wire, LevelWire):
                wire.set(False)

    def _disconnect(self) -> None:
        self._settle_windows()
        self._sink = None

    # -- for the machine -------------------------------------------------------------------------

    @classmethod
    def default_resources(cls, path: str, first_interrupt: int = 32) -> Resources:
        """A device tree made up for the node at ``path``: regions from its unit address on, page by page, interrupts
        from ``first_interrupt`` on, child nodes as the declarations name them.

        ConfigError if the model has regions and the path no unit address ("/soc/timer@10010000").
        """
        base = path.rpartition("/")[2].partition("@")[2]
        try:
            address = int(base or "0", 16)
        except ValueError:
            address = -1
        if address < 0 or (not base and cls.region_declarations):
            raise ConfigError(
                f"{path} has no unit address for the regions of model {cls.__name__}",
                "write a hexadecimal address at its end: /soc/timer@10010000",
            )
        nodes: dict[str, str] = {"": path}
        entries: dict[tuple[str, DtProperty], int] = {}

        def origin(node: str, prop: DtProperty) -> Origin:
            unit = f"@{address:x}" if prop is DtProperty.REG else ""
            at = nodes.setdefault(node, f"{path}/{node}{unit}")
            entry = entries.get((at, prop), 0)
            entries[at, prop] = entry + 1
            return Origin(at, prop, entry)

        regions = []
        for region in cls.region_declarations:
            made = origin(region.node, DtProperty.REG)
            regions.append(PlatformRegion(made, address, region.size))
            address += -(-region.size // PAGE) * PAGE
        interrupts = [
            PlatformInterrupt(
                origin(line.node, DtProperty.INTERRUPTS), first_interrupt + line.index, line.level
            )
            for line in cls.line_declarations
        ]
        return Resources(path, tuple(regions), tuple(interrupts))

    @classmethod
    def check_resources(cls, given: Resources) -> None:
        """ConfigError with the node and the key, unless ``given`` is what the class declares."""
        for key, needed, have in (
            ("reg", cls.region_declarations, given.regions),
            ("interrupts", cls.line_declarations, given.interrupts),
        ):
            if len(needed) != len(have):
                names = ", ".join(declared.name for declared in needed) or "none"
                raise ConfigError(
                    f"{given.where(given.path)}: {key}: model {cls.__name__} has {len(needed)} "
                    f"({names}), the node and those below it give {len(have)}",
                    "`uvfio models` shows what a model needs",
                )
        for region, place in zip(cls.region_declarations, given.regions, strict=True):
            if place.size < region.least:
                raise ConfigError(
                    f"{given.where(place.origin.path)}: reg[{place.origin.entry}] size "
                    f"{place.size:#x} is too small: region {region.index} ({region.name}) of model "
                    f"{cls.__name__} needs {region.least:#x}"
                )
        for line, wire in zip(cls.line_declarations, given.interrupts, strict=True):
            if line.level != wire.level:
                kinds = ("edge", "level")
                raise ConfigError(
                    f"{given.where(wire.origin.path)}: interrupts[{wire.origin.entry}] "
                    f"{kinds[wire.level]!r} does not fit: interrupt {line.index} ({line.name}) of "
                    f"model {cls.__name__} is {kinds[line.level]}"
                )

    # -- facts for people ------------------------------------------------------------------------

    @classmethod
    def describe(cls) -> dict[str, object]:
        """The model as JSON values: compatible strings, regions with their registers, interrupts, options."""
        facts = {
            "compatible": list(cls.compatible),
            "regions": [region.describe() for region in cls.region_declarations],
            "interrupts": [line.describe() for line in cls.line_declarations],
            "resettable": cls.resettable,
        }
        return cls.describe_as("platform", facts)

    # -- inner -----------------------------------------------------------------------------------

    def _tell(self, index: int, asserted: bool) -> None:
        self._polling.settle()
        reached = self._sink is not None and self._sink.irq(index, asserted)
        if asserted and not reached:
            line = self.line_declarations[index]
            known = self._sink is not None
            reason = (
                "the program has set no eventfd for it" if known else "no driver uses the device"
            )
            self._lost(line.name, index, reason, line.level)

    def _window(self, declared: RegionDeclaration) -> Window:
        index = declared.index
        if isinstance(declared, RegisterRegion):
            registers: RegisterMap = declared.registers(self)
            self.register_maps[index] = registers
            return registers
        if index not in self.memories:
            self.memories[index] = memoryview(bytearray(self._regions[index].size))
        return MemoryWindow(self.memories, index)


def _can_be_mapped(declared: RegionDeclaration, given: PlatformRegion) -> bool:
    """Only whole pages can be: a part of one would show what is beside it."""
    return declared.mappable and given.address % PAGE == given.size % PAGE == 0


def _writable(declared: RegionDeclaration) -> bool:
    return not isinstance(declared, MemoryRegion) or declared.writable
