"""``PciModel``: what the author of a PCI device subclasses. It is the function in silicon.

A device is a class: its identity, BARs, capabilities and options are class attributes, its behaviour are
methods hooked to registers (``register.py``). Talking to the world, a model has ``self.dma``, ``self.interrupt()``
and ``self.after()``, and nothing else::

    class Doorbell(PciModel):
        vendor_id, device_id = 0x1234, 0x0001
        regs = RegisterBar(0, DoorbellRegisters)
        capabilities = (Msi(1),)

        @DoorbellRegisters.ring.on_write
        def rung(self, value: int) -> None:
            self.interrupt()

Rules of the silicon:

- An access that arrives is decoded already: ``bar_read`` and ``bar_write`` do not look at the memory and I/O enable
  bits, which the bus checks. In D3hot no BAR answers.
- A DMA fault that a register hook or a timer does not catch ends what that hook was doing, and no more:
  a bus write has been posted long ago. It is recorded by the domain. A read gives ones then.
- Migration (``kit/migration.py``) may quiet the function or stop it; a reset does not change that.
- A reset (FLR by configuration write, D3hot to D0, ``reset``) cancels what ``after`` has pending, restores the
  configuration space, registers and interrupt logic, clears memory BARs that do not say ``keep``, and calls
  ``on_reset``. The attachment to a domain and the sink stay.

Threads: accesses come from one thread at a time, the serving loop's or under the driver's lock. Timers run
on the clock's thread under ``lock``. Accesses do not take it: an order between two locks would be a
deadlock, since an interrupt goes from here into the driver. The driver uses ``lock`` as its own, so there is
one lock for silicon and driver.

It does not know drivers, groups beyond a number, files or programs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar
from zlib import crc32

from uvfio.core.bus import Activity
from uvfio.drivers.pci.hardware import Bar, BarKind, bar_fault
from uvfio.errors import ConfigError, ModelError, NoMemory
from uvfio.kit.migration import Migrating
from uvfio.kit.option import Option, resolve
from uvfio.kit.pci.bar import BarDeclaration, MemoryBar, RegisterBar, power_of_two
from uvfio.kit.pci.capability import (
    AdvancedFeatures,
    Capability,
    Msi,
    MsiX,
    PciExpress,
    PowerManagement,
    place,
)
from uvfio.kit.pci.config import ConfigSpace
from uvfio.kit.pci.dma import PciDma
from uvfio.kit.pci.header import define_bars, define_command, define_identity, padded_rom
from uvfio.kit.pci.interrupt import Interrupts, check_table
from uvfio.kit.pci.sriov import Sriov, follow_control
from uvfio.kit.window import AbsentWindow, CallWindow, MemoryWindow, OverlayWindow, Window
from uvfio.uapi import pci

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from uvfio.core.seams import Clock, Store
    from uvfio.core.translation.unit import IommuUnit
    from uvfio.drivers.pci.hardware import InterruptSink
    from uvfio.kit.register import RegisterMap

__all__ = ["PciModel"]

_ABSENT = AbsentWindow()
_NOTHING: list[Window] = [_ABSENT] * 6
_D0, _D3HOT = 0, 3
_FAST_RESETS = (
    (PciExpress, pci.PCI_EXP_DEVCTL, 2, pci.PCI_EXP_DEVCTL_BCR_FLR),
    (AdvancedFeatures, pci.PCI_AF_CTRL, 1, pci.PCI_AF_CTRL_FLR),
)


class PciModel(Migrating):
    """One PCI function. Implements ``drivers.pci.hardware.PciFunction``.

    Class attributes to set: ``vendor_id`` and ``device_id`` at least. ``class_code`` has three bytes: base class,
    subclass, interface. ``interrupt_pin`` is 1-4 for INTA-INTD, 0 for none. ``rom_image`` is padded to a power
    of two with 0xff.
    """

    vendor_id: ClassVar[int] = 0xFFFF
    device_id: ClassVar[int] = 0xFFFF
    revision: ClassVar[int] = 0
    class_code: ClassVar[int] = 0xFF0000
    subsystem_vendor_id: ClassVar[int] = 0
    subsystem_id: ClassVar[int] = 0
    interrupt_pin: ClassVar[int] = 1
    multifunction: ClassVar[bool] = False
    capabilities: tuple[Capability, ...] = ()
    rom_image: bytes = b""

    bar_declarations: ClassVar[dict[int, BarDeclaration]] = {}
    """The BARs that the class and its bases declare, by index."""
    dma: PciDma
    resets: int = 0
    """How often a write to configuration space has reset the function."""
    callable_later = ("interrupt",)

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        bars: dict[int, BarDeclaration] = {}
        for name, value in cls._declarations().items():
            if isinstance(value, BarDeclaration):
                if not 0 <= value.index <= 5:
                    raise ValueError(
                        f"{cls.__name__}.{name}: BAR must be 0 to 5, not {value.index}"
                    )
                if value.index in bars:
                    other = bars[value.index].name
                    raise ValueError(f"{cls.__name__}.{name}: BAR {value.index} is {other} already")
                bars[value.index] = value
        cls.bar_declarations = dict(sorted(bars.items()))
        maps = {b.registers for b in bars.values() if isinstance(b, RegisterBar)}
        cls._check_hooks(maps, "BARs")

    def __init__(
        self,
        address: str,
        *,
        group: int | None,
        unit: IommuUnit | None,
        clock: Clock,
        store: Store,
        options: Mapping[str, object] = {},
        bus_reset: bool = False,
        physfn: PciModel | None = None,
    ) -> None:
        """Make and power on the function at ``address`` ("0000:06:0d.0").

        ``options`` are the model's own (ConfigError names a wrong one). ``bus_reset``: the function is alone
        behind its bridge, so resetting the bus resets just it; the machine updates the attribute when
        neighbours come and go. ``physfn``: this is a virtual function of that one. ``store`` gives the memory of
        mappable BARs (NoMemory, NoSpace); nothing else is taken before that succeeds.
        """
        cls = type(self)
        if cls.vendor_id == 0xFFFF:
            from uvfio.kit.explain import defined

            wrong = f"{defined(cls)}: {cls.__name__} declares no vendor_id"
            raise ModelError(
                wrong, "set vendor_id and device_id; without, it is a base and no device"
            )
        super().__init__(address, group=group, unit=unit, clock=clock, store=store, options=options)
        self.bus_reset = bus_reset
        self.virtual_functions: list[PciModel] = []
        self._physfn = physfn
        self._decoded = physfn is None
        try:
            self._rom = padded_rom(b"" if physfn else self.build_rom())
            self._caps = self.build_capabilities()
            self._bars = self._bar_facts()
            self.config, self._places = self._config_space()
        except ValueError as wrong:
            raise ConfigError(f"{address}: {cls.__name__}: {wrong}") from wrong
        self.dma = PciDma(address, self.config)
        self.interrupts = Interrupts(self.config, self._placed(Msi), self._placed(MsiX), self._lost)
        self._hook_resets()
        self.config.seal()
        self._stopped: list[Window] = []
        self._mappings = {
            index: (bar.size, bar.polled) for index, bar in self._bars.items() if bar.mappable
        }
        self._take_memory()
        for index in range(6):
            awake, stopped = self._make_windows(index)
            self._answering.append(awake)
            self._stopped.append(stopped)
        self._volatile = tuple(
            index
            for index in self.memories
            if isinstance(declared := self.bar_declarations[index], MemoryBar) and not declared.keep
        )
        self._settle_windows()
        self.on_reset()
        self.is_made = True

    # -- for authors -----------------------------------------------------------------------------

    def build_capabilities(self) -> tuple[Capability, ...]:
        """The capabilities of this instance; override where they depend on options."""
        return self.capabilities

    def build_rom(self) -> bytes:
        """The expansion ROM's image (empty: no ROM); override where it depends on options."""
        return self.rom_image

    def interrupt(self, vector: int = 0) -> None:
        """Send message ``vector`` by MSI-X or MSI if the host enabled one of them, else raise INTx.

        INTx stays up until ``intx(False)``: call that when the program acknowledges. ``interrupt.py`` has the
        rules of masking. In D3hot nothing is sent.
        """
        if self.dma.asleep:
            self.interrupts.lose(vector, "the function is in D3hot")
        else:
            self._polling.settle()
            self.interrupts.send(vector)

    def intx(self, level: bool) -> None:
        """Set the level of the INTx condition, whether or not messages are enabled."""
        self._polling.settle()
        self.interrupts.set_level(level)

    # -- PciFunction -----------------------------------------------------------------------------

    @property
    def bus(self) -> str:
        """The name of the bus: "pci"."""
        return "pci"

    @property
    def physfn(self) -> PciModel | None:
        """The physical function that this virtual one belongs to, or None."""
        return self._physfn

    @property
    def config_size(self) -> int:
        """256 (conventional) or 4096 (PCI Express)."""
        return self.config.size

    @property
    def bars(self) -> Mapping[int, Bar]:
        """Implemented BARs by index 0-5; the upper half of a 64-bit BAR is not listed."""
        return self._bars

    @property
    def virtual_bars(self) -> Mapping[int, Bar]:
        """As ``bars``, of each of its virtual functions; empty for all but physical functions."""
        return {} if self.sriov is None else self.sriov.bars

    @property
    def rom(self) -> bytes:
        """The expansion ROM image, power-of-two size >= 2048, or empty."""
        return self._rom

    @property
    def reset_methods(self) -> tuple[str, ...]:
        """Ways to reset just this function, best first: "flr", "af_flr", "pm", "bus". Empty: none."""
        methods = []
        for cap in self._caps:
            if isinstance(cap, PciExpress) and cap.flr:
                methods.append("flr")
            elif isinstance(cap, AdvancedFeatures):
                methods.append("af_flr")
            elif isinstance(cap, PowerManagement) and cap.soft_reset:
                methods.append("pm")
        methods.sort(key=("flr", "af_flr", "pm").index)
        return (*methods, "bus") if self.bus_reset else tuple(methods)

    @property
    def intx_asserted(self) -> bool:
        """Level of the INTx wire behind the command register's disable bit."""
        return self.interrupts.wire

    def config_read(self, offset: int, size: int) -> int:
        """Physical configuration read of 1, 2 or 4 aligned bytes; ones after ``unplug``."""
        if self._gone:
            return (1 << 8 * size) - 1
        return self.config.read(offset, size)

    def config_write(self, offset: int, value: int, size: int) -> None:
        """Physical configuration write; read-only bits keep their value. Nothing after ``unplug``."""
        if not self._gone:
            self.config.write(offset, value, size)

    bar_read = Migrating._read
    bar_write = Migrating._write
    bar_memory = Migrating._memory

    def show_mappings(self, visible: bool) -> None:
        """Let loads and stores through mappings of BARs answer, or fault. NoMemory, NoSpace."""
        if not self._gone and self._mappings:
            (self._store.show if visible else self._store.hide)(self._name)

    def connect(self, sink: InterruptSink | None) -> None:
        """Deliver interrupts to ``sink``. A wire that is up already is to be seen in ``intx_asserted``."""
        self.interrupts.sink = sink

    def reset(self) -> None:
        """Registers take their power-on values; see ``DeviceModel``. So does an MSI-X table in memory that is kept or
        cleared."""
        with self.lock:
            super().reset()
            self.interrupts.reset_table()

    def renew_memory(self) -> None:
        """As ``DeviceModel.renew_memory``; with an MSI-X table as after a reset, if it is in that memory."""
        super().renew_memory()
        self.interrupts.reset_table()

    def _reset_bus(self) -> None:
        self.config.reset()
        self.dma.asleep = False
        for vf in self.virtual_functions:
            vf.reset()
            vf.decode(False)
        self._settle_windows()
        self.interrupts.reset()

    def _disconnect(self) -> None:
        self._settle_windows()
        self.interrupts.end()
        self.interrupts.sink = None

    # -- facts for people ------------------------------------------------------------------------

    @classmethod
    def describe(cls) -> dict[str, object]:
        """The model as JSON values: identity, BARs with their registers, capabilities, options."""
        bars = [_describe_bar(declared) for declared in cls.bar_declarations.values()]
        for cap in cls.capabilities:
            if isinstance(cap, MsiX) and cap.bar not in cls.bar_declarations:
                made = BarDeclaration(cap.bar, power_of_two(cap.end, 4096), BarKind.MEMORY32)
                made.name = "msix"
                bars.append(_describe_bar(made))
        bars.sort(key=lambda bar: str(bar["index"]))
        facts = {
            "vendor": f"{cls.vendor_id:04x}",
            "device": f"{cls.device_id:04x}",
            "class_code": f"{cls.class_code:06x}",
            "revision": cls.revision,
            "bars": bars,
            "capabilities": [type(cap).__name__ for cap in cls.capabilities],
        }
        return cls.describe_as("pci", facts)

    # -- construction ----------------------------------------------------------------------------

    @classmethod
    def bars_with(cls, options: Mapping[str, object]) -> Mapping[int, Bar]:
        """The BARs that a function of this model has with these options. ConfigError, ValueError."""
        plan = cls.__new__(cls)
        plan.option_values = resolve(cls.option_declarations, options, cls.__name__)
        plan._caps = plan.build_capabilities()
        return plan._bar_facts()

    def _bar_facts(self) -> dict[int, Bar]:
        found: dict[int, Bar] = {}
        for index, declared in self.bar_declarations.items():
            size = declared.size
            if isinstance(size, Option):
                size = size.__get__(self, type(self))
            found[index] = declared.facts(size)
            if isinstance(declared, RegisterBar):
                span = self._map_of(declared).span
                if span > size:
                    raise ValueError(f"BAR {index}: its registers need {span:#x} bytes")
        for cap in self._caps:
            if isinstance(cap, MsiX):
                bar = found.setdefault(cap.bar, Bar(power_of_two(cap.end, 4096)))
                if bar.kind is BarKind.IO or cap.end > bar.size:
                    raise ValueError(f"BAR {cap.bar} cannot hold the MSI-X table: {bar}")
                around = self.bar_declarations.get(cap.bar)
                if isinstance(around, RegisterBar):
                    check_table(cap, around.registers, around.name)
        for index, bar in found.items():
            fault = bar_fault(index, bar, found)
            if fault:
                raise ValueError(f"BAR {index}{fault}")
        return dict(sorted(found.items()))

    def _map_of(self, declared: RegisterBar[Any]) -> type[RegisterMap]:
        """The registers behind the BAR: of a polled one, with the MSI-X table if that is in it."""
        registers: type[RegisterMap] = declared.registers
        for cap in self._caps:
            if isinstance(cap, MsiX) and cap.bar == declared.index and declared.polled:
                from uvfio.kit.pci.msix import with_table

                return with_table(registers, cap)
        return registers

    def _config_space(self) -> tuple[ConfigSpace, dict[type[Capability], int]]:
        express = any(isinstance(cap, PciExpress) for cap in self._caps)
        config = ConfigSpace(pci.PCI_CFG_SPACE_EXP_SIZE if express else pci.PCI_CFG_SPACE_SIZE)
        virtual = self._physfn is not None
        define_identity(config, type(self), express, virtual=virtual)
        if not virtual:
            define_bars(config, self._bars)
        define_command(config, self._bars, len(self._rom), virtual=virtual)
        return config, place(config, self._caps)

    def _placed(self, kind: type[Any]) -> tuple[Any, int] | None:
        """The capability of this class and where it is."""
        for cap in self._caps:
            if isinstance(cap, kind):
                return cap, self._places[kind]
        return None

    def _make_windows(self, index: int) -> tuple[Window, Window]:
        """What answers behind BAR ``index``, and what of it does while the function is stopped."""
        bar = self._bars.get(index)
        if bar is None:
            return _ABSENT, _ABSENT
        window: Window = _ABSENT
        stopped: Window = _ABSENT
        declared = self.bar_declarations.get(index)
        if isinstance(declared, RegisterBar):
            window = self.register_maps[index] = self._map_of(declared)(self)
        elif isinstance(declared, MemoryBar):
            if index not in self.memories:
                try:
                    self.memories[index] = memoryview(bytearray(bar.size))
                except MemoryError as error:
                    raise NoMemory(
                        f"{self.name}: no {bar.size:#x} bytes of memory for BAR {index}",
                        "memory that programs can map takes pages as they are written to",
                    ) from error
            window = stopped = MemoryWindow(self.memories, index)
        msix = self._placed(MsiX)
        if msix is None or msix[0].bar != index:
            return window, stopped
        from uvfio.kit.pci.msix import MemoryTable, RegisterTable

        cap: MsiX = msix[0]
        table = CallWindow(self.interrupts.read_table, self.interrupts.write_table)
        pending = CallWindow(self.interrupts.read_pending)
        parts = (
            (cap.table, cap.table + cap.table_size, table),
            (cap.pba, cap.pba + cap.pba_size, pending),
        )
        awake: Window = OverlayWindow(window, parts)
        if bar.polled:
            awake = window
            self.interrupts.place(RegisterTable(self.register_maps[index], cap.vectors))
        elif bar.mappable:
            place = cap.vectors, cap.table, cap.pba, cap.pba_size
            watch = self._store.watch
            self.interrupts.place(
                MemoryTable(lambda: self.memories[index], *place),
                lambda: watch(self._look_at_table),
            )
        return awake, OverlayWindow(stopped, parts)

    def _look_at_table(self) -> bool:
        with self.lock:
            return self.interrupts.look()

    def _settle_windows(self) -> None:
        if self._gone or self.dma.asleep or not self._decoded:
            self._windows = _NOTHING
        else:
            self._windows = self._stopped if self.activity is Activity.STOPPED else self._answering

    # -- migration -------------------------------------------------------------------------------

    def _bus_identity(self) -> str:
        bars = " ".join(f"{index}:{bar.size:#x}" for index, bar in self.bars.items())
        power_on = crc32(self.config.power_on)
        return f"{self.vendor_id:04x}:{self.device_id:04x} config {power_on:08x} bars {bars}"

    def _save_bus(self) -> Mapping[str, bytes]:
        """ "config": all of configuration space, addresses of the host included; "interrupts": ``Interrupts.save``."""
        return {"config": bytes(self.config.data), "interrupts": self.interrupts.save()}

    def _load_bus(self, sections: Mapping[str, bytes]) -> Callable[[], None]:
        config, interrupts = sections["config"], sections["interrupts"]
        if len(config) != self.config.size:
            raise ValueError(f"configuration space of {len(config)} bytes")
        self.interrupts.load(interrupts)

        def take() -> None:
            self.config.data[:] = config
            self.interrupts.update()

        return take

    def _settle_loaded(self) -> None:
        self._settle_power()

    def _hold_interrupts(self, held: bool) -> None:
        self.interrupts.hold(held)

    # -- resets and power ------------------------------------------------------------------------

    def _hook_resets(self) -> None:
        for kind, offset, size, bit in _FAST_RESETS:
            at = self._places.get(kind)
            if at is not None:
                self.config.on_write(at + offset, self._flr_hook(at + offset, size, bit))
        if PowerManagement in self._places:
            at = self._places[PowerManagement] + pci.PCI_PM_CTRL
            self.config.on_write(at, self._power_written)
        if Sriov in self._places:
            follow_control(self, self._places[Sriov])

    def decode(self, on: bool) -> None:
        """Let the BARs of a virtual function answer, or not."""
        self._decoded = on
        self._settle_windows()

    @property
    def sriov(self) -> Sriov | None:
        """The capability of a physical function."""
        return next((cap for cap in self._caps if isinstance(cap, Sriov)), None)

    def _flr_hook(self, offset: int, size: int, bit: int) -> Callable[[], None]:
        def written() -> None:
            if self.config.get(offset, size) & bit:
                self.resets += 1
                self.reset()  # which clears the bit

        return written

    def _power_written(self) -> None:
        at = self._places[PowerManagement] + pci.PCI_PM_CTRL
        control = self.config.get(at, 2)
        state = control & pci.PCI_PM_CTRL_STATE_MASK
        if state not in (_D0, _D3HOT):  # not supported: the write is completed and discarded
            state = _D3HOT if self.dma.asleep else _D0
            self.config.put(at, 2, control & ~pci.PCI_PM_CTRL_STATE_MASK | state)
        elif state == _D3HOT or not self.dma.asleep or control & pci.PCI_PM_CTRL_NO_SOFT_RESET:
            self._settle_power()
        else:
            self.reset()

    def _settle_power(self) -> None:
        """Sleep, or be awake, as the power management registers say."""
        at = self._places.get(PowerManagement)
        state = self.config.get(at + pci.PCI_PM_CTRL, 2) if at is not None else _D0
        self.dma.asleep = state & pci.PCI_PM_CTRL_STATE_MASK == _D3HOT
        self._settle_windows()


def _describe_bar(declared: BarDeclaration) -> dict[str, object]:
    size = declared.size
    registers = declared.registers.registers if isinstance(declared, RegisterBar) else {}
    return {
        "index": declared.index,
        "name": declared.name,
        "size": size.default if isinstance(size, Option) else size,
        "kind": declared.kind.value,
        "prefetchable": declared.prefetchable,
        "mappable": declared.mappable,
        "mapping": declared.mapping,
        "registers": [register.describe() for register in registers.values()],
    }
