"""Registers that programs have mapped: what they see, and when a store takes effect."""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING, Any

import pytest

from support.model_world import ADDRESS, FakeStore, World, power_on
from uvfio.core.bus import Activity
from uvfio.drivers.pci.hardware import Bar, BarKind
from uvfio.errors import DmaFault, ModelMistake, NoSpace
from uvfio.kit.pci.bar import RegisterBar
from uvfio.kit.pci.model import PciModel
from uvfio.kit.platform.region import RegisterRegion
from uvfio.kit.polled import TRIES, MappedRegisters
from uvfio.kit.register import Register, RegisterArray, RegisterMap
from uvfio.models.edu import Edu

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SPARE = 0x20


class Regs(RegisterMap):
    """Offsets 0x0 to 0x40; 0x20 to 0x2f is a gap."""

    plain = Register(0x00)
    fixed = Register(0x04, access="ro", reset=0x1234)
    bell = Register(0x08, access="wo")
    seen = Register(0x0C, access="ro")
    wide = Register(0x10, 8)
    whole = Register(0x18, 8, widths=(8,))
    small = RegisterArray(0x30, 2, count=2)
    byte = Register(0x34, 1)
    halves = Register(0x38, 8, widths=(4,))


class Device(PciModel):
    """Remembers its writes; ``level`` is read through a hook."""

    vendor_id, device_id = 0x1234, 0x0001
    regs = RegisterBar(0, Regs, size=0x2000, mapped="polled")

    def on_reset(self) -> None:
        self.log: list[tuple[str, int]] = []
        self.level = 0

    @Regs.bell.on_write
    def rung(self, value: int) -> None:
        self.log.append(("bell", value))
        if value == 0xBAD:
            raise DmaFault("posted")
        if value == 0xB06:
            raise RuntimeError("a bug")

    @Regs.wide.on_write
    def widened(self, value: int) -> None:
        self.log.append(("wide", value))

    @Regs.whole.on_write
    def filled(self, value: int) -> None:
        self.log.append(("whole", value))

    @Regs.plain.on_store
    def invert(self, old: int, new: int) -> int:
        self.log.append(("plain", new))
        return ~new

    @Regs.seen.on_read
    def measure(self) -> int:
        if self.level < 0:
            raise DmaFault("nothing there")
        return self.level


class Program:
    """A device with its BAR mapped, and loads and stores."""

    def __init__(self) -> None:
        self.world: World[Device] = power_on(Device)
        self.model = self.world.model
        self.bar = self.model.bar_memory(0)

    def load(self, offset: int, size: int = 4) -> int:
        return int.from_bytes(self.bar[offset : offset + size], "little")

    def store(self, offset: int, value: int, size: int = 4) -> None:
        self.bar[offset : offset + size] = value.to_bytes(size, "little")

    def look(self) -> bool:
        return any(look() for look in self.world.store.looks)


@pytest.fixture
def program() -> Program:
    return Program()


# -- what the mapping shows ---------------------------------------------------------------------------


def test_it_shows_what_a_call_would_read(program: Program) -> None:
    for offset in range(0, 0x40, 8):
        size = 8 if offset in (0x10, 0x18) else 4
        for at in range(offset, offset + 8, size):
            assert program.load(at, size) == program.world.read(at, size), hex(at)
    assert program.load(0x1FFC) == program.world.read(0x1FFC) == 0


def test_every_change_is_there_at_once(program: Program) -> None:
    model, regs = program.model, program.model.regs
    regs.plain = 5
    assert program.load(0) == 5
    regs.update(Regs.fixed)
    small = regs.small  # kept from before, too
    small[1] = 0xBEEF
    assert program.load(0x32, 2) == 0xBEEF
    regs.halves = 0x1_0000_0002
    assert program.load(0x38, 8) == 0x1_0000_0002
    program.world.write(0x10, 7, 8)
    assert program.load(0x10, 8) == 7
    model.reset()
    assert (program.load(0), program.load(4), program.load(0x10, 8)) == (0, 0x1234, 0)


def test_values_kept_over_a_mapping_stay_the_registers() -> None:
    world = power_on(Device)
    small = world.model.regs.small
    bar = world.model.bar_memory(0)
    small[0] = 3
    assert world.model.regs.small[0] == bar[0x30] == 3
    world.model.end_mappings()
    small[0] = 4
    assert world.model.regs.small[0] == 4


def test_supplied_values_are_shown_by_each_look_and_before_an_interrupt(program: Program) -> None:
    model = program.model
    model.level = 7
    assert program.load(0x0C) == 0
    assert not program.look()
    assert program.load(0x0C) == 7
    model.level = 8
    model.interrupt()
    assert program.load(0x0C) == 8
    model.level = 9
    model.intx(False)
    assert program.load(0x0C) == 9
    model.level = -1
    program.look()
    assert program.load(0x0C) == 0xFFFF_FFFF == program.world.read(0x0C)


def test_absent_bytes_read_as_the_map_says() -> None:
    world = power_on(Edu)
    bar = world.model.bar_memory(0)
    assert bytes(bar[0x0C:0x20]) == b"\xff" * 20
    assert bytes(bar[0xA0:]) == b"\xff" * ((1 << 20) - 0xA0)


# -- stores ---------------------------------------------------------------------------------------------


def test_a_store_takes_effect_as_a_call_would(program: Program) -> None:
    program.store(0, 5)
    assert program.model.log == []
    assert program.look()
    assert program.model.log == [("plain", 5)]
    assert program.load(0) == 0xFFFF_FFFA
    assert not program.look()
    program.store(4, 1)
    assert program.look()
    assert program.load(4) == 0x1234


def test_the_same_value_is_noticed_twice_where_it_cannot_be_read(program: Program) -> None:
    for _ in range(3):
        program.store(8, 9)
        assert program.look()
        assert program.load(8) == 0
    assert program.model.log == [("bell", 9)] * 3


@pytest.mark.parametrize("by", ["read", "write"])
def test_a_call_comes_after_the_store_before_it(program: Program, by: str) -> None:
    program.store(8, 1)
    if by == "read":
        assert program.world.read(8) == 0
    else:
        program.world.write(8, 2)
    assert program.model.log[0] == ("bell", 1)
    assert not program.look()


def test_stores_between_two_looks_are_taken_by_ascending_offset(program: Program) -> None:
    program.store(0x10, 3, 8)
    program.store(8, 2)
    program.store(0, 1)
    program.look()
    assert [name for name, _ in program.model.log] == ["plain", "bell", "wide"]


@pytest.mark.parametrize(
    ("stored", "written"),
    [
        (0x1_0000_0002, [("wide", 0x1_0000_0002)]),
        (0x2_AAAA_AAAA, [("wide", 0x2_AAAA_AAAA)]),
        (0x5_BBBB_BBBB, [("wide", 0x5_BBBB_BBBB)]),
    ],
)
def test_half_of_a_wide_register(
    program: Program, stored: int, written: list[tuple[str, int]]
) -> None:
    program.model.regs.wide = 0x2_BBBB_BBBB
    sizes = []
    write = program.model.regs.write

    def record(offset: int, value: int, size: int) -> None:
        sizes.append((offset, size))
        write(offset, value, size)

    object.__setattr__(program.model.regs, "write", record)
    program.store(0x10, stored, 8)
    program.look()
    assert program.model.log == written
    same = (stored ^ 0x2_BBBB_BBBB) & 0xFFFF_FFFF == 0, stored >> 32 == 2
    assert sizes == [(0x14, 4) if same[0] else (0x10, 4) if same[1] else (0x10, 8)]


def test_half_of_a_register_that_takes_only_all_of_it(program: Program) -> None:
    program.store(0x1C, 1)
    program.look()
    assert program.model.log == [("whole", 1 << 32)]


def test_a_register_that_takes_no_access_so_wide_is_two(program: Program) -> None:
    program.store(0x38, 0x1_0000_0002, 8)
    assert program.look()
    assert program.model.regs.halves == program.load(0x38, 8) == 0x1_0000_0002


def test_small_registers(program: Program) -> None:
    program.store(0x32, 0xABCD, 2)
    program.store(0x34, 0x77, 1)
    program.look()
    assert program.model.regs.small[1] == 0xABCD
    assert program.model.regs.byte == 0x77


def test_a_store_beside_the_registers_does_nothing_and_goes(program: Program) -> None:
    before = list(program.model.regs.values)
    program.store(SPARE, 5)
    program.store(0x1000, 5)
    assert program.look()
    assert program.model.regs.values == before
    assert program.load(SPARE) == 0
    assert not program.look()
    assert program.load(0x1000) == 5  # beyond the last register: nobody looks there
    program.model.reset()
    assert program.load(0x1000) == 0


def test_a_store_that_the_model_meets_is_not_lost(program: Program) -> None:
    program.store(0x10, 0x11, 8)
    program.model.regs.wide = 0x22
    assert program.load(0x10, 8) == 0x11
    program.look()
    assert program.model.regs.wide == 0x11


def test_a_reset_forgets_what_nobody_has_looked_at(program: Program) -> None:
    program.store(8, 1)
    program.model.reset()
    assert program.load(8) == 0
    assert not program.look()
    assert program.model.log == []


def test_a_fault_of_the_hook_ends_the_hook(program: Program) -> None:
    program.store(8, 0xBAD)
    assert program.look()
    assert not program.look()
    assert program.load(8) == 0


def test_a_bug_is_raised_once(program: Program) -> None:
    program.store(8, 0xB06)
    with pytest.raises(RuntimeError, match="a bug"):
        program.look()
    assert program.load(8) == 0
    assert not program.look()
    program.store(8, 1)
    assert program.look()


def test_asleep_nothing_answers() -> None:
    program = Program()
    program.model._windows = [*[program.model._windows[1]] * 6]
    program.store(8, 1)
    assert program.look()
    assert program.model.log == []
    assert program.load(8) == 0


# -- the order of stores -------------------------------------------------------------------------------


class Doorbells(RegisterMap):
    """Addresses on both sides of the doorbells."""

    low = Register(0x00)
    bell = Register(0x08, access="wo")
    second = Register(0x0C)
    high = Register(0x10)
    restart = Register(0x18, access="wo")
    last = Register(0x20, access="wo")
    picky = Register(0x28)


class Ordered(PciModel):
    """Remembers what a doorbell's hook finds."""

    vendor_id, device_id = 0x1234, 0x0002
    regs = RegisterBar(0, Doorbells, mapped="polled")
    more = RegisterBar(1, Regs, mapped="polled")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.found: list[tuple[object, ...]] = []
        super().__init__(*args, **kwargs)

    @Doorbells.bell.on_write
    def rung(self, value: int) -> None:
        self.found.append((value, self.regs.low, self.regs.high, self.more.plain))
        if value == 0xB06:
            raise RuntimeError("a bug")

    @Doorbells.second.on_write
    def rung_too(self, value: int) -> None:
        self.found.append(("second", value))

    @Doorbells.restart.on_write
    def restarted(self, value: int) -> None:
        self.found.append(("restart", value))
        self.reset()

    @Doorbells.last.on_write
    def rung_last(self, value: int) -> None:
        self.found.append(("last", value))
        if value == 0xB06:
            raise RuntimeError("another bug")

    @Doorbells.picky.on_store
    def choose(self, old: int, new: int) -> int:
        raise ValueError(f"not {new}")


class Storing:
    """A program that stores while the device looks: ``steps`` are made in the middle of the copies, one in each."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, middle: int = 8) -> None:
        self.model = power_on(Ordered).model
        self.words = [self.model.bar_memory(index).cast("I") for index in (0, 1)]
        self.steps: Iterator[Callable[[], object]] = iter(())
        self.copies = 0
        copy = MappedRegisters.copy

        def torn(mapped: MappedRegisters) -> bytes:
            self.copies += 1
            before = copy(mapped)
            next(self.steps, int)()
            return before[:middle] + copy(mapped)[middle:]

        monkeypatch.setattr(MappedRegisters, "copy", torn)

    def store(self, register: Register, value: int) -> None:
        self.words[0][register.offset // 4] = value

    def look(self) -> bool:
        return self.model._polling.look()


def test_a_doorbell_is_never_found_before_the_addresses_stored_before_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The copy that finds the doorbell first has missed the address at the lower offset."""
    program = Storing(monkeypatch)

    def ring() -> None:
        program.store(Doorbells.low, 7)
        program.store(Doorbells.bell, 1)

    program.steps = iter([ring])
    assert program.look()
    assert program.model.found == [(1, 7, 0, 0)]


def test_all_changes_are_stored_before_the_first_hook(monkeypatch: pytest.MonkeyPatch) -> None:
    program = Storing(monkeypatch)
    program.store(Doorbells.high, 9)
    program.store(Doorbells.low, 8)
    program.words[1][0] = ~5 & 0xFFFF_FFFF
    program.store(Doorbells.second, 3)
    program.store(Doorbells.bell, 1)
    assert program.look()
    assert program.model.found == [(1, 8, 9, ~5 & 0xFFFF_FFFF), ("second", 3)]


def test_the_order_holds_between_two_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    """The doorbell is in BAR 0, which is copied first, the address in BAR 1; and the other way round."""
    program = Storing(monkeypatch, middle=0)

    def ring() -> None:
        program.words[1][0] = 7
        program.store(Doorbells.bell, 1)

    program.steps = iter([ring])
    program.look()
    assert program.model.found == [(1, 0, 0, 7)]

    def ring_with_both() -> None:
        program.store(Doorbells.low, 6)
        ring()

    program.steps = iter([int, ring_with_both])
    program.store(Doorbells.second, 1)
    program.look()
    assert program.model.found[1:] == [(1, 6, 0, 7), ("second", 1)]


def test_tries_are_bounded_and_one_moving_register_is_followed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    program = Storing(monkeypatch)
    numbers = count(1)
    program.steps = iter(lambda: lambda: program.store(Doorbells.high, next(numbers)), None)
    program.store(Doorbells.low, 3)
    assert program.look()
    assert program.copies == 2 * (TRIES + 2)
    assert program.model.regs.low == 3
    assert 0 < program.model.regs.high < program.words[0][4]


def test_nothing_is_taken_while_several_registers_move(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which of them was stored first cannot be told; the next look takes them."""
    program = Storing(monkeypatch)
    numbers = count(1)

    def ring() -> None:
        program.store(Doorbells.low, n := next(numbers))
        program.store(Doorbells.bell, n)

    program.steps = iter(lambda: ring, None)
    assert program.look()
    assert program.model.found == []
    assert program.copies == 2 * (TRIES + 2)
    program.steps = iter(())
    assert program.look()
    last = next(numbers) - 1
    assert program.model.found == [(last, last, 0, 0)]


def test_a_reset_by_a_hook_drops_the_hooks_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """They would find registers that the reset has wiped."""
    program = Storing(monkeypatch)
    for register in (Doorbells.low, Doorbells.bell, Doorbells.restart, Doorbells.last):
        program.store(register, 1)
    program.look()
    assert program.model.found == [(1, 1, 0, 0), ("restart", 1)]
    assert not program.look()


def test_a_hook_that_raises_loses_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    program = Storing(monkeypatch)
    program.store(Doorbells.bell, 0xB06)
    program.store(Doorbells.second, 2)
    program.store(Doorbells.picky, 3)
    with pytest.raises(RuntimeError, match="a bug"):
        program.look()
    with pytest.raises(ModelMistake, match="register picky: .*choose, on_store of it, .*not 3"):
        program.look()
    assert program.model.found[1:] == [("second", 2)]
    assert program.words[0][Doorbells.picky.offset // 4] == 0
    assert not program.look()
    program.store(Doorbells.bell, 0xB06)
    program.store(Doorbells.last, 0xB06)
    with pytest.raises(ExceptionGroup) as both:
        program.model.end_mappings()
    assert [str(error.__cause__) for error in both.value.exceptions] == ["a bug", "another bug"]
    assert type(program.model.regs.values) is list


# -- the life of a mapping --------------------------------------------------------------------------------


def test_without_a_mapping_nobody_looks_and_no_page_is_taken() -> None:
    world = power_on(Device)
    assert world.store.looks == []
    assert world.store.late[ADDRESS] == {0}
    assert type(world.model.regs.values) is list
    world.model.bar_memory(0)
    world.model.bar_memory(0)
    assert len(world.store.looks) == 1
    assert world.store.late[ADDRESS] == set()


def test_the_end_takes_the_last_store(program: Program) -> None:
    program.store(8, 1)
    program.model.end_mappings()
    assert program.model.log == [("bell", 1)]
    assert program.world.store.looks == []
    assert type(program.model.regs.values) is list
    program.store(8, 2)
    program.world.write(0, 1)
    assert program.model.log[-1] == ("plain", 1)
    program.model.end_mappings()


def test_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(store: FakeStore, device: str, index: int) -> None:
        raise NoSpace("full")

    monkeypatch.setattr(FakeStore, "populate", full)
    world = power_on(Device)
    with pytest.raises(NoSpace):
        world.model.bar_memory(0)
    assert world.store.looks == []
    assert world.read(4) == 0x1234


def test_other_memory_for_the_next_user(program: Program) -> None:
    program.model.renew_memory()
    program.store(8, 1)
    assert program.world.store.looks == []
    assert program.model.bar_memory(0) is not program.bar
    assert not program.look()


def test_unplugged(program: Program) -> None:
    program.store(8, 1)
    program.model.unplug()
    assert program.model.log == []
    assert program.world.store.looks == []
    with pytest.raises(KeyError):
        program.model.bar_memory(0)
    assert program.world.store.looks == []
    program.model.show_mappings(False)
    assert program.world.store.hidden_devices == []


def test_a_look_inside_a_look_is_none() -> None:
    regs = Regs()
    seen = []

    def write(offset: int, value: int, size: int) -> None:
        seen.append(mapped.look())
        regs.write(offset, value, size)

    memory = memoryview(bytearray(4096))
    mapped = MappedRegisters(regs, memory, write)
    memory[0] = 1
    assert mapped.look()
    assert seen == [False]


# -- declarations -----------------------------------------------------------------------------------------


class Sticky(RegisterMap):
    status = Register(0, access="w1c")


@pytest.mark.parametrize("declare", [RegisterBar, RegisterRegion])
def test_what_cannot_be_polled_is_refused(declare: type) -> None:
    with pytest.raises(ValueError, match=r"^(BAR|region) 1: Sticky.status is w1c and cannot"):
        declare(1, Sticky, mapped="polled")
    with pytest.raises(ValueError, match=r"^(BAR|region) 1: mapped must be 'polled' or empty"):
        declare(1, Regs, mapped="exact")
    assert not declare(1, Sticky).mappable


def test_ports_cannot_be_mapped() -> None:
    with pytest.raises(ValueError, match=r"^BAR 4: ports cannot be mapped$"):
        RegisterBar(4, Regs, kind=BarKind.IO, mapped="polled")


def test_the_facts() -> None:
    assert power_on(Device).model.bars[0] == Bar(0x2000, mappable=True, polled=True)
    assert Device.bar_declarations[0].mapping == "polled"
    region = RegisterRegion(0, Regs, mapped="polled")
    assert (region.describe()["mappable"], region.describe()["mapping"]) == (True, "polled")


def test_another_ones_state_is_shown() -> None:
    """What migration moves are the registers, not the shadow."""
    one, two = power_on(Edu, migration=True), power_on(Edu, migration=True)
    assert one.model.memories == {}
    one.write(4, 5)
    words = two.model.bar_memory(0).cast("I")
    words[1] = 99
    one.model.quiesce(Activity.STOPPED)
    two.model.quiesce(Activity.STOPPED)
    two.model.load_state(one.model.save_state())
    assert words[1] == 0xFFFF_FFFA
    words[1] = 7
    two.store.look()
    assert words[1] == 0xFFFF_FFFA  # stopped
    two.model.quiesce(Activity.FULL)
    words[1] = 7
    two.store.look()
    assert words[1] == 0xFFFF_FFF8 == two.read(4)
