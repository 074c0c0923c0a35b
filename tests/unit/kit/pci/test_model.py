"""``PciModel``: declaration, construction, accesses, timers, power, resets, unplugging."""

from __future__ import annotations

import pytest

from support.model_world import ADDRESS, FakeClock, FakeStore, World, power_on
from uvfio import kit
from uvfio.errors import ConfigError, NoMemory
from uvfio.kit import (
    AdvancedFeatures,
    BarKind,
    MemoryBar,
    Msi,
    MsiX,
    Option,
    PciExpress,
    PciModel,
    PowerManagement,
    Register,
    RegisterBar,
    RegisterMap,
)
from uvfio.models.exerciser import Exerciser, ExerciserRegisters
from uvfio.uapi import pci


class AdderRegisters(RegisterMap):
    a = Register(0x00)
    b = Register(0x04)
    total = Register(0x08, access="ro")
    go = Register(0x0C, access="wo")
    target = Register(0x10, 8, doc="where the sum goes in memory; 0: nowhere")


class Adder(PciModel):
    """Adds two numbers, stores the sum in the program's memory and interrupts."""

    vendor_id, device_id = 0x1234, 0x0ADD
    capabilities = (Msi(),)
    regs = RegisterBar(0, AdderRegisters)

    @AdderRegisters.go.on_write
    def add(self, value: int) -> None:
        self.regs.total = self.regs.a + self.regs.b
        if self.regs.target:
            self.dma.store(self.regs.target, self.regs.total, 4)
        self.interrupt()


class TestSmallDevice:
    def test_it_works(self) -> None:
        world = power_on(Adder)
        world.enable_msi()
        world.write(0x00, 2)
        world.write(0x04, 3)
        world.write(0x10, 0x1000, 8)
        world.write(0x0C, 1)
        assert world.read(0x08) == 5
        assert world.domain.stores == [(0x1000, 5, 4)]
        assert world.sink.take() == [("msi", 0)]

    def test_a_fault_ends_the_hook_and_no_more(self) -> None:
        world = power_on(Adder)
        world.write(0x10, 0xFFFF_0000, 8)
        world.write(0x0C, 1)
        assert [f[4] for f in world.domain.faults] == ["not mapped"]
        assert world.sink.take() == []
        assert world.read(0x08) == 0

    def test_a_fault_in_a_read_gives_ones(self) -> None:
        class Peek(Adder):
            @AdderRegisters.total.on_read
            def peek(self) -> int:
                return self.dma.read(0xFFFF_0000, 1)[0]

        assert power_on(Peek).read(0x08) == 0xFFFF_FFFF

    def test_description(self) -> None:
        described = Adder.describe()
        assert described["class"] == f"{__name__}:Adder"
        assert described["summary"] == (
            "Adds two numbers, stores the sum in the program's memory and interrupts."
        )
        assert (described["vendor"], described["device"]) == ("1234", "0add")
        assert described["capabilities"] == ["Msi"]
        bar = described["bars"][0]  # type: ignore[index]
        assert (bar["index"], bar["size"], bar["kind"]) == (0, 4096, "mem32")
        assert [r["name"] for r in bar["registers"]] == ["a", "b", "total", "go", "target"]
        assert Exerciser.describe()["options"][0] == {  # type: ignore[index]
            "name": "memory",
            "type": "int",
            "default": 1 << 20,
            "help": "bytes of the memory BAR",
        }

    def test_description_has_the_bar_made_for_msix(self) -> None:
        bars = Exerciser.describe()["bars"]
        shown = [(bar["index"], bar["name"], bar["size"]) for bar in bars]  # type: ignore[attr-defined]
        assert shown == [
            (0, "regs", 4096),
            (1, "msix", 4096),
            (2, "ram", 1 << 20),
            (4, "ports", 16),
        ]

    def test_facts_of_the_bus_device(self) -> None:
        model = power_on(Adder).model
        facts = (model.name, model.bus, model.group, model.unit)
        assert facts == (ADDRESS, "pci", 240, None)
        assert repr(model) == f"<Adder {ADDRESS}>"
        assert model.rom == b""


class TestDeclaration:
    def test_bar_number(self) -> None:
        with pytest.raises(ValueError, match=r"^Bad.regs: BAR must be 0 to 5, not 6$"):

            class Bad(PciModel):
                regs = RegisterBar(6, AdderRegisters)

    def test_one_bar_twice(self) -> None:
        with pytest.raises(ValueError, match=r"^Bad.more: BAR 0 is regs already$"):

            class Bad(Adder):
                more = MemoryBar(0, 4096)

    def test_hook_on_a_register_of_another_device(self) -> None:
        message = r"^Bad: on_write of register tick, which is in none of its BARs$"
        with pytest.raises(ValueError, match=message):

            class Bad(Adder):
                @ExerciserRegisters.tick.on_write
                def ticked(self, value: int) -> None: ...

    def test_a_subclass_may_replace_a_bar(self) -> None:
        class Wider(Adder):
            regs = RegisterBar(0, AdderRegisters, size=1 << 16)

        assert power_on(Wider).model.bars[0].size == 1 << 16

    def test_kit_names_everything_an_author_needs(self) -> None:
        assert sorted(kit.__all__) == kit.__all__
        assert all(hasattr(kit, name) for name in kit.__all__)


class TestConstruction:
    def test_a_base_is_no_device(self) -> None:
        class Base(PciModel):
            pass

        with pytest.raises(ConfigError, match=r"/test_model.py:\d+: Base declares no vendor_id$"):
            power_on(Base)

    @pytest.mark.parametrize(
        ("attributes", "message"),
        [
            ({"m": MemoryBar(5, 4096)}, "BAR 5 is 64-bit and needs BAR 6 too"),
            (
                {"m": MemoryBar(0, 4096), "n": MemoryBar(1, 4096, kind=BarKind.MEMORY32)},
                "BAR 0 is 64-bit and needs BAR 1 too",
            ),
            ({"m": MemoryBar(0, 5000)}, "BAR 0: size 0x1388 is not a power of two"),
            (
                {"r": RegisterBar(0, ExerciserRegisters, size=16)},
                "BAR 0: its registers need 0xb4 bytes",
            ),
            (
                {"m": MemoryBar(0, 4096), "capabilities": (MsiX(1, bar=0, table=4096),)},
                "BAR 0 cannot hold the MSI-X table",
            ),
            (
                {
                    "r": RegisterBar(0, AdderRegisters),
                    "capabilities": (MsiX(1, bar=0, table=4096),),
                },
                "BAR 0 cannot hold the MSI-X table",
            ),
            ({"capabilities": (Msi(offset=0x41),)}, "Msi.* at 0x41 is unaligned"),
        ],
    )
    def test_what_cannot_be_built(self, attributes: dict[str, object], message: str) -> None:
        bad = type("Bad", (PciModel,), {"vendor_id": 1, "device_id": 2, **attributes})
        with pytest.raises(ConfigError, match=rf"^{ADDRESS}: Bad: {message}"):
            power_on(bad)

    def test_options(self) -> None:
        assert power_on(Exerciser, memory="64K", msi=1).model.memory == 1 << 16
        with pytest.raises(
            ConfigError, match=rf"^{ADDRESS}: Exerciser: memory '5000' is not a power"
        ):
            power_on(Exerciser, memory="5000")
        with pytest.raises(ConfigError, match=rf"^{ADDRESS}: Exerciser: memroy 5 is not an option"):
            power_on(Exerciser, memroy=5)

    def test_store_failure_passes_through(self) -> None:
        class Full(FakeStore):
            def allocate(
                self, device: str, sizes: object, late: object = ()
            ) -> dict[int, memoryview]:
                raise NoMemory("no room")

        with pytest.raises(NoMemory, match=r"^no room$"):
            Exerciser(ADDRESS, group=None, unit=None, clock=FakeClock(), store=Full())

    def test_mappable_memory_is_the_stores(self) -> None:
        world = power_on(Exerciser)
        world.store.allocated[ADDRESS][2][0:4] = b"\1\2\3\4"
        assert world.read(0, bar=2) == 0x04030201
        assert world.model.bar_memory(2) is world.store.allocated[ADDRESS][2]
        with pytest.raises(KeyError):
            world.model.bar_memory(0)

    def test_memory_that_is_not_mappable(self) -> None:
        class Small(PciModel):
            vendor_id, device_id = 1, 2
            ram = MemoryBar(0, 64, kind=BarKind.MEMORY32, mappable=False)

        world = power_on(Small)
        world.write(8, 0x1122, 2)
        assert bytes(world.model.ram[8:10]) == b"\x22\x11"
        assert world.store.allocated == {}

    def test_msix_inside_a_bar_of_registers(self) -> None:
        class Nested(Adder):
            capabilities = (MsiX(2, bar=0, table=0x800),)  # type: ignore[assignment]

        world = power_on(Nested)
        assert world.read(0x80C) == 1
        world.write(0x00, 7)
        assert world.read(0x00) == 7
        world.enable_msix()
        world.write(0x0C, 1)
        assert world.read(0x820) == 1
        world.write(0x80C, 0)
        assert world.sink.take() == [("msix", 0)]

    def test_absent_bar_answers_ones(self) -> None:
        world = power_on(Adder)
        world.write(0, 1, bar=3)
        assert world.read(0, bar=3) == 0xFFFF_FFFF


class Ticker(PciModel):
    """Counts what its timers do."""

    vendor_id, device_id = 0x1234, 2
    capabilities = (PowerManagement(), AdvancedFeatures())
    regs = RegisterBar(0, AdderRegisters)
    kept = MemoryBar(2, 4096, keep=True)
    step = Option(int, 1, "what a tick adds")

    def on_reset(self) -> None:
        self.ticks = 0

    def tick(self) -> None:
        self.ticks += self.step


class TestTimers:
    def test_after(self) -> None:
        world = power_on(Ticker, step=5)
        world.model.after(1.0, world.model.tick)
        world.model.after(0, world.model.tick)
        assert world.model.ticks == 0
        world.clock.advance()
        assert world.model.ticks == 5
        world.clock.advance(1.0)
        assert world.model.ticks == 10

    def test_cancel(self) -> None:
        world = power_on(Ticker)
        timer = world.model.after(1.0, world.model.tick)
        timer.cancel()
        timer.cancel()
        world.clock.advance(2.0)
        assert (world.model.ticks, world.clock.waiting) == (0, 0)

    def test_reset_and_unplug_cancel(self) -> None:
        for end in (Ticker.reset, Ticker.unplug):
            world = power_on(Ticker)
            world.model.after(1.0, world.model.tick)
            late = world.clock.timers[0].callback
            end(world.model)
            assert world.clock.waiting == 0
            late()  # a clock that was about to call
            assert world.model.ticks == 0

    def test_callbacks_run_under_the_lock(self) -> None:
        world = power_on(Ticker)
        owned: list[bool] = []
        world.model.after(0, lambda: owned.append(world.model.lock._is_owned()))
        world.clock.advance()
        assert owned == [True]

    def test_a_fault_stays_inside(self) -> None:
        world = power_on(Ticker)
        world.model.after(0, lambda: world.model.dma.write(1 << 40, b"x"))
        world.clock.advance()
        assert len(world.domain.faults) == 1


def dirty(world: World[Ticker]) -> None:
    """Change everything that a reset restores."""
    world.write(0, 0x55)
    world.write(0, 0x66, bar=2)
    world.model.config_write(pci.PCI_BASE_ADDRESS_0, 0xFEB0_0000, 4)
    world.model.config_write(pci.PCI_INTERRUPT_LINE, 9, 1)
    world.model.ticks = 3
    world.model.interrupt()


def is_clean(world: World[Ticker]) -> bool:
    model = world.model
    fresh = power_on(Ticker, master=False).model
    same = model.config.data == fresh.config.data and model.regs.values == fresh.regs.values
    return same and model.ticks == 0 and not model.intx_asserted


class TestResets:
    def test_methods(self) -> None:
        class None_(PciModel):
            vendor_id, device_id = 1, 2

        class Slow(None_):
            capabilities = (PowerManagement(soft_reset=False), PciExpress(flr=False))

        class All(None_):
            capabilities = (PowerManagement(), AdvancedFeatures(), PciExpress())

        assert power_on(None_).model.reset_methods == ()
        assert power_on(None_, bus_reset=True).model.reset_methods == ("bus",)
        assert power_on(Slow).model.reset_methods == ()
        assert power_on(All, bus_reset=True).model.reset_methods == ("flr", "af_flr", "pm", "bus")

    def test_reset(self) -> None:
        world = power_on(Ticker)
        dirty(world)
        world.model.reset()
        assert is_clean(world)
        assert world.sink.take() == [("intx", True), ("intx", False)]
        assert world.read(0, bar=2) == 0x66  # this memory says keep
        world.command(pci.PCI_COMMAND_MASTER)
        world.model.dma.write(0, b"x")  # still attached

    def test_memory_is_cleared_unless_kept(self) -> None:
        world = power_on(Exerciser)
        world.write(0x8000, 1, bar=2)
        world.model.reset()
        assert world.read(0x8000, bar=2) == 0

    def test_af_flr(self) -> None:
        world = power_on(Ticker)
        dirty(world)
        at = world.capability(pci.PCI_CAP_ID_AF)
        world.model.config_write(at + pci.PCI_AF_CTRL, pci.PCI_AF_CTRL_FLR, 1)
        assert is_clean(world)

    def test_express_flr(self) -> None:
        world = power_on(Exerciser)
        world.write(0x010, 7)
        at = world.capability(pci.PCI_CAP_ID_EXP) + pci.PCI_EXP_DEVCTL
        world.model.config_write(at, 0x2810, 2)
        assert world.read(0x010) == 7
        world.model.config_write(at, 0x2810 | pci.PCI_EXP_DEVCTL_BCR_FLR, 2)
        assert world.read(0x010) == 0
        assert world.model.config_read(at, 2) == 0x2810
        assert world.model.config_read(pci.PCI_COMMAND, 2) == 0

    def test_d3hot_and_back(self) -> None:
        world = power_on(Ticker)
        at = world.capability(pci.PCI_CAP_ID_PM) + pci.PCI_PM_CTRL
        dirty(world)
        world.model.config_write(at, 3, 2)
        assert world.read(0) == 0xFFFF_FFFF
        world.write(0, 1)
        world.sink.take()
        world.model.intx(False)
        world.model.interrupt()
        assert world.sink.take() == [("intx", False)]
        assert world.model.config_read(at, 2) == 3
        world.model.config_write(at, 0, 2)
        assert is_clean(world)
        assert world.read(0) == 0

    def test_d3hot_without_soft_reset_keeps_everything(self) -> None:
        class Keeper(Ticker):
            capabilities = (PowerManagement(soft_reset=False),)  # type: ignore[assignment]

        world = power_on(Keeper)
        world.write(0, 0x55)
        at = world.capability(pci.PCI_CAP_ID_PM) + pci.PCI_PM_CTRL
        world.model.config_write(at, 3, 2)
        assert world.read(0) == 0xFFFF_FFFF
        world.model.config_write(at, 0, 2)
        assert world.read(0) == 0x55
        assert world.model.config_read(pci.PCI_COMMAND, 2) & pci.PCI_COMMAND_MASTER

    def test_states_that_do_not_exist_are_discarded(self) -> None:
        world = power_on(Ticker)
        at = world.capability(pci.PCI_CAP_ID_PM) + pci.PCI_PM_CTRL
        world.model.config_write(at, 1, 2)
        assert world.model.config_read(at, 2) == 0
        world.model.config_write(at, 3, 2)
        world.model.config_write(at, 2, 2)
        assert world.model.config_read(at, 2) == 3


class TestUnplug:
    def test_nothing_answers(self) -> None:
        world = power_on(Exerciser)
        world.model.unplug()
        world.model.unplug()
        assert world.store.released == [ADDRESS]
        assert world.read(0) == 0xFFFF_FFFF
        assert world.model.config_read(0, 4) == 0xFFFF_FFFF
        world.command(0x7)
        world.write(0x40, 0)
        assert world.sink.take() == []
        world.model.reset()
        assert world.read(0) == 0xFFFF_FFFF

    def test_without_mappable_memory_the_store_is_not_asked(self) -> None:
        world = power_on(Adder)
        world.model.unplug()
        assert world.store.released == []
