"""The base of platform models: declarations, resources, regions, lines, reset, unplug."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from support.model_world import FakeClock, FakeStore
from support.platform_world import NAME, PATH, World, power_on
from uvfio.core.bus import DtProperty
from uvfio.core.events import FrameworkEvent, InterruptLost
from uvfio.drivers.platform.hardware import Origin, PlatformInterrupt, PlatformRegion, Resources
from uvfio.errors import ConfigError, DmaFault
from uvfio.kit.option import Option
from uvfio.kit.platform.model import PlatformModel
from uvfio.kit.platform.region import EdgeLine, LevelLine, MemoryRegion, RegisterRegion
from uvfio.kit.register import Register, RegisterMap

if TYPE_CHECKING:
    from uvfio.drivers.platform.hardware import PlatformHardware


class BlockRegisters(RegisterMap):
    go = Register(0x00, access="wo")
    where = Register(0x08, 8)
    scratch = Register(0x10, reset=7)
    fetch = Register(0x14, access="ro")


class Block(PlatformModel):
    """A block with one of everything."""

    compatible = ("acme,block",)
    speed = Option(int, 9, "how fast")

    ram = MemoryRegion(1, 8192, node="part")
    rom = MemoryRegion(2, 4096, writable=False, keep=True)
    regs = RegisterRegion(0, BlockRegisters)
    done = LevelLine(0)
    tick = EdgeLine(1, node="part")
    error = LevelLine(2, node="other")

    def on_reset(self) -> None:
        self.resets = getattr(self, "resets", -1) + 1

    @BlockRegisters.go.on_write
    def started(self, value: int) -> None:
        self.dma.write(self.regs.where, b"done")
        self.done.set(True)

    @BlockRegisters.fetch.on_read
    def fetched(self) -> int:
        return int.from_bytes(self.dma.read(self.regs.where, 4), "little")


@pytest.fixture
def world() -> World[Block]:
    return power_on(Block)


# -- declarations --------------------------------------------------------------------------------


def test_declarations_are_sorted_and_inherited() -> None:
    class Better(Block):
        compatible = ("acme,better",)
        extra = RegisterRegion(3, BlockRegisters)

    assert [r.name for r in Better.region_declarations] == ["regs", "ram", "rom", "extra"]
    assert [li.name for li in Block.line_declarations] == ["done", "tick", "error"]
    assert list(Better.option_declarations) == ["speed"]


def test_numbers_begin_at_0_and_have_no_gaps() -> None:
    with pytest.raises(ValueError, match=r"Gap: region numbers are 0, 1 and so on.*not \[1\]"):
        type("Gap", (PlatformModel,), {"regs": MemoryRegion(1, 4096)})
    with pytest.raises(ValueError, match=r"Twice: interrupt numbers .*not \[0, 0\]"):
        type("Twice", (PlatformModel,), {"a": LevelLine(0), "b": EdgeLine(0)})


def test_hooks_need_a_region_with_the_register() -> None:
    with pytest.raises(ValueError, match="on_write of register go, which is in none"):

        class Lost(PlatformModel):
            @BlockRegisters.go.on_write
            def started(self, value: int) -> None: ...


@pytest.mark.parametrize("size", [0, -4, 3, 4097])
def test_sizes_are_multiples_of_4(size: int) -> None:
    with pytest.raises(ValueError, match="is no multiple of 4"):
        MemoryRegion(0, size)


def test_registers_need_room() -> None:
    with pytest.raises(ValueError, match="size 0x10 is no multiple of 4 of at least 0x18"):
        RegisterRegion(0, BlockRegisters, size=0x10)
    assert RegisterRegion(0, BlockRegisters).size == 4096
    assert RegisterRegion(0, BlockRegisters, size=0x18).size == 0x18


def test_describe() -> None:
    about = Block.describe()
    assert about["bus"] == "platform"
    assert about["compatible"] == ["acme,block"]
    assert about["summary"] == "A block with one of everything."
    regions = about["regions"]
    assert isinstance(regions, list)
    assert [(r["kind"], r["size"], r["mappable"], r["node"]) for r in regions] == [
        ("registers", 4096, False, ""),
        ("memory", 8192, True, "part"),
        ("memory", 4096, False, ""),
    ]
    assert regions[0]["registers"][0]["name"] == "go"
    assert about["interrupts"] == [
        {"index": 0, "name": "done", "trigger": "level", "node": ""},
        {"index": 1, "name": "tick", "trigger": "edge", "node": "part"},
        {"index": 2, "name": "error", "trigger": "level", "node": "other"},
    ]


# -- resources -----------------------------------------------------------------------------------


def test_default_resources() -> None:
    made = Block.default_resources(PATH, 50)
    assert [(r.origin.path, r.origin.entry, r.address, r.size) for r in made.regions] == [
        (PATH, 0, 0x10010000, 0x1000),
        (f"{PATH}/part@10011000", 0, 0x10011000, 0x2000),
        (PATH, 1, 0x10013000, 0x1000),
    ]
    assert [(i.origin.path, i.origin.entry, i.number, i.level) for i in made.interrupts] == [
        (PATH, 0, 50, True),
        (f"{PATH}/part@10011000", 0, 51, False),
        (f"{PATH}/other", 0, 52, True),
    ]
    Block.check_resources(made)


@pytest.mark.parametrize("path", ["/soc/block", "/soc/block@", "/soc/block@xyz", "/soc@1/block"])
def test_regions_need_a_unit_address(path: str) -> None:
    with pytest.raises(ConfigError, match="has no unit address"):
        Block.default_resources(path)


def test_without_regions_no_address_is_needed() -> None:
    class Wire(PlatformModel):
        compatible = ("acme,wire",)
        line = EdgeLine(0)

    assert Wire.default_resources("/wire").interrupts[0].number == 32
    assert power_on(Wire, Wire.default_resources("/wire")).model.path == "/wire"


def with_(**changes: object) -> Resources:
    return replace(Block.default_resources(PATH), source="m.toml", **changes)  # type: ignore[arg-type]


REGIONS = Block.default_resources(PATH).regions
LINES = Block.default_resources(PATH).interrupts
SMALL = PlatformRegion(Origin(f"{PATH}/part@1", DtProperty.REG, 4), 0x1000, 4096)
EDGE = PlatformInterrupt(Origin(f"{PATH}/other", DtProperty.INTERRUPTS, 3), 5, False)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (
            with_(regions=REGIONS[:2]),
            f'm.toml: device_tree."{PATH}": reg: model Block has 3 (regs, ram, rom), the node and those',
        ),
        (with_(regions=(*REGIONS, SMALL)), "reg: model Block has 3 (regs, ram, rom)"),
        (with_(regions=()), "give 0"),
        (with_(interrupts=LINES[:1]), "interrupts: model Block has 3 (done, tick, error)"),
        (
            with_(regions=(REGIONS[0], SMALL, REGIONS[2])),
            f'm.toml: device_tree."{PATH}/part@1": reg[4] size 0x1000 is too small: region 1 (ram) of',
        ),
        (
            with_(interrupts=(*LINES[:2], EDGE)),
            f"m.toml: device_tree.\"{PATH}/other\": interrupts[3] 'edge' does not fit: interrupt 2 (error)",
        ),
    ],
)
def test_resources_that_do_not_fit(given: Resources, says: str) -> None:
    store = FakeStore()
    with pytest.raises(ConfigError) as error:
        Block(NAME, resources=given, group=1, unit=None, clock=FakeClock(), store=store)
    assert says in str(error.value)
    assert store.allocated == {}


def test_larger_regions_are_given_as_they_are() -> None:
    big = tuple(replace(region, size=0x10000) for region in REGIONS)
    world = power_on(Block, with_(regions=big))
    assert [region.size for region in world.model.regions] == [0x10000] * 3
    assert world.read(0x8000) == 0  # behind the registers
    assert len(world.model.ram) == 0x10000


def test_only_whole_pages_can_be_mapped() -> None:
    odd = replace(REGIONS[1], address=0x10011800)
    world = power_on(Block, with_(regions=(REGIONS[0], odd, REGIONS[2])))
    assert [region.mappable for region in world.model.regions] == [False] * 3
    assert world.store.allocated == {}
    world.write(0x10, 5, region=1)
    assert world.model.ram[0x10] == 5
    with pytest.raises(KeyError):
        world.model.memory(1)


def test_a_base_is_no_device() -> None:
    class Base(PlatformModel):
        pass

    with pytest.raises(ConfigError, match="Base declares no compatible string"):
        power_on(Base)


def test_options() -> None:
    assert power_on(Block, speed="0x10").model.speed == 16
    with pytest.raises(ConfigError, match="10010000.block: Block: sped 1 is not an option"):
        power_on(Block, sped=1)


# -- hardware ------------------------------------------------------------------------------------


def test_it_is_platform_hardware(world: World[Block]) -> None:
    hardware: PlatformHardware = world.model
    assert (hardware.name, hardware.bus, hardware.path) == (NAME, "platform", PATH)
    assert (hardware.group, hardware.unit) == (3, None)
    assert [(r.mappable, r.writable) for r in hardware.regions] == [
        (False, True),
        (True, True),
        (False, False),
    ]
    assert hardware.memory(1) is world.store.allocated[NAME][1]
    assert repr(world.model) == f"<Block {NAME}>"


def test_memory_is_the_same_by_access_and_by_view(world: World[Block]) -> None:
    world.model.ram[8:12] = b"abcd"
    assert world.read(8, region=1) == int.from_bytes(b"abcd", "little")
    world.write(0x1FF8, 1 << 63, 8, region=1)
    assert world.model.memory(1)[0x1FFF] == 0x80


def test_lines_tell_of_changes_only(world: World[Block]) -> None:
    world.model.done.set(True)
    world.model.done.set(True)
    world.model.tick.pulse()
    world.model.tick.pulse()
    assert world.sink.take() == [(0, True), (1, True), (1, True)]
    assert [world.model.asserted(index) for index in range(3)] == [True, False, False]
    world.model.connect(None)
    world.model.done.set(False)
    world.model.tick.pulse()
    assert world.sink.take() == []
    assert not world.model.asserted(0)


def test_lines_that_reach_no_program_are_reported(world: World[Block]) -> None:
    model, told = world.model, list[FrameworkEvent]()

    class Source:
        observer = told.append

    class Deaf:
        def irq(self, index: int, asserted: bool) -> bool:
            return False

    model.observed = Source()
    model.done.set(True)
    model.tick.pulse()
    assert told == []
    model.connect(Deaf())
    model.done.set(False)
    model.done.set(True)
    model.tick.pulse()
    no_event = "the program has set no eventfd for it"
    done, tick = (
        InterruptLost(model.name, "done", 0, no_event, True),
        InterruptLost(model.name, "tick", 1, no_event, False),
    )
    assert told == [done, tick]
    model.connect(None)
    model.tick.pulse()
    assert told[2:] == [InterruptLost(model.name, "tick", 1, "no driver uses the device", False)]


def test_dma_goes_out_while_attached(world: World[Block]) -> None:
    world.write(0x08, 0x2000, 8)
    world.write(0x00, 1)
    assert world.domain.memory[0x2000:0x2004] == b"done"
    assert world.read(0x14) == int.from_bytes(b"done", "little")
    world.model.detach()
    with pytest.raises(DmaFault, match="attached to no domain"):
        world.model.dma.read(0, 4)


def test_a_fault_ends_the_access_and_no_more(world: World[Block]) -> None:
    world.write(0x08, 1 << 40, 8)
    world.write(0x00, 1)
    assert world.sink.take() == []
    assert world.read(0x14) == 0xFFFFFFFF
    assert len(world.domain.faults) == 2


# -- time, reset, unplug -------------------------------------------------------------------------


def test_after(world: World[Block]) -> None:
    done: list[float] = []
    world.model.after(2.0, lambda: done.append(world.clock.now))
    world.model.after(1.0, lambda: done.append(-1)).cancel()
    world.model.after(1.5, lambda: world.model.dma.write(1 << 40, b"x"))  # faults, and that is that
    world.clock.advance(5)
    assert done == [5.0]


def test_reset(world: World[Block]) -> None:
    model = world.model
    model.ram[:4] = model.rom[:4] = b"data"
    world.write(0x10, 5)
    model.done.set(True)
    model.after(1, lambda: pytest.fail("it was cancelled"))
    world.sink.take()
    model.reset()
    world.clock.advance(2)
    assert world.read(0x10) == 7
    assert (bytes(model.ram[:4]), bytes(model.rom[:4])) == (bytes(4), b"data")
    assert world.sink.take() == [(0, False)]
    assert model.resets == 1
    assert model.dma.domain is not None


def test_renewed_memory_is_other_memory(world: World[Block]) -> None:
    old = world.model.memory(1)
    old[0] = 1
    world.model.renew_memory()
    assert world.store.released == [NAME]
    assert world.model.memory(1) is not old
    assert world.read(0, 1, region=1) == 0
    old[4] = 9
    assert world.read(4, 1, region=1) == 0


def test_unplug(world: World[Block]) -> None:
    world.model.after(1, lambda: pytest.fail("it was cancelled"))
    world.model.unplug()
    world.model.unplug()
    world.clock.advance(2)
    world.model.tick.pulse()
    world.write(0x10, 5)
    assert [world.read(0x10, region=index) for index in range(3)] == [0xFFFFFFFF] * 3
    assert world.sink.take() == []
    assert world.store.released == [NAME]
    with pytest.raises(DmaFault):
        world.model.dma.write(0, b"x")


# -- polled registers ----------------------------------------------------------------------------


class BellRegisters(RegisterMap):
    ring = Register(0x0, access="wo")
    count = Register(0x4, access="ro")
    computed = Register(0x8, access="ro")


class Bell(PlatformModel):
    """Counts, in registers that programs map."""

    compatible = ("test,bell",)
    regs = RegisterRegion(0, BellRegisters, mapped="polled")
    irq = LevelLine(0)

    @BellRegisters.ring.on_write
    def rung(self, value: int) -> None:
        self.regs.count += 1
        self.irq.set(True)

    @BellRegisters.computed.on_read
    def twice(self) -> int:
        return 2 * self.regs.count


def test_polled_registers() -> None:
    bell = power_on(Bell)
    assert (bell.model.regions[0].mappable, bell.model.regions[0].polled) == (True, True)
    assert (bell.store.late, bell.store.looks) == ({NAME: {0}}, [])
    words = bell.model.memory(0).cast("I")
    for n in (1, 2):
        words[0] = 1
        bell.store.look()
        assert (words[0], words[1], words[2]) == (0, n, 2 * n)
    assert bell.sink.take() == [(0, True)]
    bell.model.reset()
    assert (words[1], words[2]) == (0, 0)
    words[0] = 1
    bell.model.end_mappings()
    assert (bell.model.regs.count, bell.store.looks) == (1, [])
    bell.model.memory(0)
    bell.model.renew_memory()
    assert bell.store.looks == []
    bell.model.memory(0)
    bell.model.unplug()
    assert bell.store.looks == []


def test_polled_registers_beside_whole_pages_are_registers() -> None:
    resources = Bell.default_resources(PATH)
    odd = replace(resources.regions[0], address=0x10010800)
    bell = power_on(Bell, replace(resources, regions=(odd,)))
    assert not bell.model.regions[0].mappable
    assert bell.store.allocated == {}
    bell.write(0, 1)
    assert bell.read(4) == 1
