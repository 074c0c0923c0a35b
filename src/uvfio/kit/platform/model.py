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
from threading import RLock
from typing import TYPE_CHECKING, Any, ClassVar

from uvfio.core.bus import DtProperty
from uvfio.drivers.platform.hardware import Origin, PlatformInterrupt, PlatformRegion, Resources
from uvfio.errors import ConfigError, DmaFault
from uvfio.kit.dma import PlainDma
from uvfio.kit.option import Option, resolve
from uvfio.kit.pci.bar import AbsentWindow, MemoryWindow, Window
from uvfio.kit.pending import PendingCalls
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
from uvfio.kit.polled import Polling
from uvfio.kit.register import RegisterMap, hooks_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from uvfio.core.seams import Clock, Store, Timer
    from uvfio.core.translation.domain import Domain
    from uvfio.core.translation.unit import IommuUnit
    from uvfio.drivers.platform.hardware import InterruptSink

__all__ = ["EdgeLine", "LevelLine", "MemoryRegion", "PlatformModel", "RegisterRegion"]

_ABSENT = AbsentWindow()


class PlatformModel:
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
    option_declarations: ClassVar[dict[str, Option[Any]]] = {}
    """The options that the class and its bases declare, by name."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        attributes: dict[str, object] = {}
        for base in reversed(cls.__mro__):
            attributes.update(vars(base))
        found = attributes.values()
        regions = [value for value in found if isinstance(value, RegionDeclaration)]
        lines = [value for value in found if isinstance(value, LineDeclaration)]
        cls.option_declarations = {k: v for k, v in attributes.items() if isinstance(v, Option)}
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
        known = {register for m in maps for register in m.registers.values()}
        for register, kind in hooks_of(cls):
            if register not in known:
                raise ValueError(
                    f"{cls.__name__}: on_{kind} of register {register.name}, "
                    "which is in none of its regions"
                )

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
            raise ConfigError(f"{cls.__name__} declares no compatible string", "it is a base")
        self.option_values = resolve(self.option_declarations, options, f"{name}: {cls.__name__}")
        self.check_resources(resources)
        self.lock: Any = RLock()
        self.clock = clock
        self.path = resources.path
        self._name = name
        self._group = group
        self._unit = unit
        self._store = store
        self._pending = PendingCalls(self)
        self._sink: InterruptSink | None = None
        self._gone = False
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
        self.register_maps: dict[int, RegisterMap] = {}
        self.memories: dict[int, memoryview] = {}
        self._windows: list[Window] = []
        self._polling = Polling(self, store, self._windows, self.write)
        self._take_memory()
        self._windows += [self._window(declared) for declared in self.region_declarations]
        self.on_reset()

    # -- for authors -----------------------------------------------------------------------------

    def on_reset(self) -> None:
        """Set the attributes of your own to their power-on values; called when made and at each reset."""

    def after(self, seconds: float, callback: Callable[[], None]) -> Timer:
        """Call ``callback`` once, ``seconds`` from now or later, unless a reset or unplug comes first.

        0 means: when the serving loop comes around, never within this call.
        """
        return self._pending.after(seconds, callback)

    # -- BusDevice -------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        return self._name

    @property
    def bus(self) -> str:
        return "platform"

    @property
    def group(self) -> int | None:
        return self._group

    @property
    def unit(self) -> IommuUnit | None:
        return self._unit

    def attach(self, domain: Domain) -> None:
        self.dma.domain = domain

    def detach(self) -> None:
        self.dma.domain = None

    # -- PlatformHardware ------------------------------------------------------------------------

    @property
    def regions(self) -> tuple[PlatformRegion, ...]:
        return self._regions

    @property
    def interrupts(self) -> tuple[PlatformInterrupt, ...]:
        return self._interrupts

    def asserted(self, index: int) -> bool:
        """The level of interrupt ``index``; False for an edge interrupt."""
        wire = self.wires[index]
        return isinstance(wire, LevelWire) and wire.level

    def read(self, index: int, offset: int, size: int) -> int:
        try:
            return self._windows[index].read(offset, size)
        except DmaFault:
            return (1 << 8 * size) - 1

    def write(self, index: int, offset: int, value: int, size: int) -> None:
        try:
            self._windows[index].write(offset, value, size)
        except DmaFault:
            pass  # recorded; the write was posted

    def memory(self, index: int) -> memoryview:
        """The bytes of a mappable region; a polled one is mapped from now on. KeyError for any other."""
        region = self._regions[index]
        if not region.mappable:
            raise KeyError(index)
        return self._polling.start(index) if region.polled else self.memories[index]

    def end_mappings(self) -> None:
        self._polling.stop()

    def connect(self, sink: InterruptSink | None) -> None:
        """Deliver interrupts to ``sink``. A wire that is high already is to be seen with ``asserted``."""
        self._sink = sink

    def reset(self) -> None:
        with self.lock:
            self._pending.cancel_all()
            for registers in self.register_maps.values():
                registers.reset()
            for wire in self.wires.values():
                if isinstance(wire, LevelWire):
                    wire.set(False)
            for declared in self.region_declarations:
                if isinstance(declared, MemoryRegion) and not declared.keep:
                    memory = self.memories[declared.index]
                    memory[:] = bytes(len(memory))
            self.on_reset()
            self._polling.refresh()

    # -- for the machine -------------------------------------------------------------------------

    def renew_memory(self) -> None:
        """Give mappable regions other, zeroed memory: what a program still has mapped leads nowhere from now on."""
        self._polling.stop()
        self._store.release(self._name)
        self._take_memory()

    def unplug(self) -> None:
        """The device is gone: nothing answers, nothing is sent. Its memory goes back to the store."""
        with self.lock:
            if self._gone:
                return
            self._gone = True
            self._pending.cancel_all()
            self._windows = [_ABSENT] * len(self._windows)
            self._polling.end()
            self.dma.domain = None
            self._sink = None
            if any(region.mappable for region in self._regions):
                self._store.release(self._name)

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
        return {
            "class": f"{cls.__module__}:{cls.__qualname__}",
            "bus": "platform",
            "summary": (cls.__doc__ or "").strip().partition("\n")[0],
            "compatible": list(cls.compatible),
            "regions": [region.describe() for region in cls.region_declarations],
            "interrupts": [line.describe() for line in cls.line_declarations],
            "resettable": cls.resettable,
            "options": [option.describe() for option in cls.option_declarations.values()],
        }

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._name}>"

    # -- inner -----------------------------------------------------------------------------------

    def _tell(self, index: int, asserted: bool) -> None:
        self._polling.settle()
        if self._sink is not None:
            self._sink.irq(index, asserted)

    def _take_memory(self) -> None:
        mappable = {
            index: region.size for index, region in enumerate(self._regions) if region.mappable
        }
        if mappable:
            late = [index for index in mappable if self._regions[index].polled]
            found = self._store.allocate(self._name, mappable, late)
            self._polling.shadows.update((index, found[index]) for index in late)
            self.memories.update((i, memory) for i, memory in found.items() if i not in late)

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
