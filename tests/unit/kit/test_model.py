"""What models of both buses have in common: options, life, pending calls, state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from uvfio.core.bus import Activity
from uvfio.errors import ConfigError, DmaFault, InvalidArgument
from uvfio.kit import MemoryBar, Option, PciModel, Register, RegisterBar, RegisterMap
from uvfio.kit.platform import LevelLine, MemoryRegion, PlatformModel, RegisterRegion
from uvfio.machine.clock import ManualClock
from uvfio.machine.store import ByteStore


class Registers(RegisterMap):
    value = Register(0x0, reset=7)
    go = Register(0x4, access="wo")


class Common:
    """The behaviour that both models below share."""

    resets_seen: int
    total = 0

    def on_reset(self) -> None:
        self.resets_seen = getattr(self, "resets_seen", 0) + 1

    def grow(self, by: int = 1) -> None:
        self.total += by

    def save(self) -> bytes:
        return bytes([self.total])

    def load(self, state: bytes) -> None:
        (self.total,) = state


class Card(Common, PciModel):
    """On PCI."""

    vendor_id, device_id = 0x1234, 0x7788
    size = Option(int, 3, "a number")
    regs = RegisterBar(0, Registers)
    ram = MemoryBar(2, 4096)
    kept = MemoryBar(4, 4096, keep=True)


class Block(Common, PlatformModel):
    """On the platform bus."""

    compatible = ("acme,block",)
    size = Option(int, 3, "a number")
    regs = RegisterRegion(0, Registers)
    ram = MemoryRegion(1, 4096)
    kept = MemoryRegion(2, 4096, keep=True)
    busy = LevelLine(0)


Make = Callable[..., Any]


def card(**how: Any) -> Card:
    how = {"group": 1, "unit": None, "clock": ManualClock(), "store": ByteStore(), **how}
    return Card("0000:01:00.0", **how)


def block(**how: Any) -> Block:
    resources = Block.default_resources("/soc/block@10000000")
    how = {"group": 1, "unit": None, "clock": ManualClock(), "store": ByteStore(), **how}
    return Block("10000000.block", resources=resources, **how)


both = pytest.mark.parametrize("make", [card, block], ids=["pci", "platform"])


def read(model: Any, offset: int = 0) -> int:
    access = model.bar_read if isinstance(model, Card) else model.read
    found = access(0, offset, 4)
    assert isinstance(found, int)
    return found


@both
def test_options_are_checked_before_anything_is_taken(make: Make) -> None:
    store = ByteStore()
    with pytest.raises(ConfigError, match="size"):
        make(options={"size": "many"}, store=store)
    assert store.devices == ()
    assert make(options={"size": 4}).size == 4


@both
def test_reset(make: Make) -> None:
    model = make()
    assert model.resets_seen == 1
    model.regs.value = 9
    model.ram[:2] = model.kept[:2] = b"ab"
    model.after(1, lambda: pytest.fail("it was cancelled"))
    model.reset()
    model.clock.advance(2)
    assert model.regs.value == 7
    assert (bytes(model.ram[:2]), bytes(model.kept[:2])) == (b"\0\0", b"ab")
    assert model.resets_seen == 2


@both
def test_unplug_ends_everything_once(make: Make) -> None:
    model = make()
    model.after(1, lambda: pytest.fail("it was cancelled"))
    assert model._store.devices == (model.name,)
    model.unplug()
    model.unplug()
    model.clock.advance(2)
    assert read(model) == 0xFFFFFFFF
    assert model._store.devices == ()
    with pytest.raises(DmaFault):
        model.dma.read(0, 4)


@both
def test_renewed_memory_is_zeroed_and_another(make: Make) -> None:
    model = make()
    before = model.ram
    before[0] = 1
    model.renew_memory()
    assert (model.ram[0], before[0]) == (0, 1)


@both
def test_stopped_registers_do_not_answer_and_memory_does(make: Make) -> None:
    model = make()
    model.after(1, model.grow)
    model.quiesce(Activity.STOPPED)
    model.clock.advance(5)
    assert (read(model), model.total) == (0xFFFFFFFF, 0)
    memory = model.bar_read if isinstance(model, Card) else model.read
    assert memory(2 if isinstance(model, Card) else 1, 0, 4) == 0
    model.quiesce(Activity.FULL)
    model.clock.advance(0.5)
    assert (read(model), model.total) == (7, 0)
    model.clock.advance(0.5)
    assert model.total == 1


@both
def test_a_quiet_device_sends_no_dma(make: Make) -> None:
    model = make()
    model.quiesce(Activity.QUIET)
    assert not model.dma.direct
    assert model.dma._closed()
    model.quiesce(Activity.FULL)
    assert "P2P" not in model.dma._closed()


@both
def test_the_state_goes_to_another_of_the_kind(make: Make) -> None:
    model, other = make(), make()
    model.regs.value, model.total = 0x55, 3
    model.after(2, model.grow)
    other.after(1, lambda: pytest.fail("it was replaced"))
    if isinstance(model, Block):
        model.busy.set(True)
    assert other.identity == model.identity
    other.load_state(model.save_state())
    assert (other.regs.value, other.total) == (0x55, 3)
    other.clock.advance(2)
    assert other.total == 4
    if isinstance(other, Block):
        assert other.busy.level


@both
def test_a_state_that_is_none_changes_nothing(make: Make) -> None:
    model, donor = make(), make()
    donor.regs.value, donor.total = 1, 1
    state = donor.save_state()
    for wrong in (b"?", b"", state[:-1], state.replace(b"registers 0", b"registers 9")):
        with pytest.raises(InvalidArgument):
            model.load_state(wrong)
        assert (model.regs.value, model.total) == (7, 0)
    with pytest.raises(InvalidArgument):
        (block if make is card else card)().load_state(state)


def test_hooks_of_registers_that_are_nowhere_are_refused() -> None:
    class Other(RegisterMap):
        lost = Register(0)

    for base, where in ((Card, "BARs"), (Block, "regions")):
        with pytest.raises(ValueError, match=f"which is in none of its {where}"):
            type(
                "Wrong",
                (base,),
                {"hook": Other.lost.on_write(lambda self, value: None), "__module__": __name__},
            )


@pytest.mark.parametrize(("model", "bus"), [(Card, "pci"), (Block, "platform")])
def test_description(model: type[Card | Block], bus: str) -> None:
    about = model.describe()
    assert (about["bus"], about["class"]) == (bus, f"{__name__}:{model.__name__}")
    assert list(about)[:3] == ["class", "bus", "summary"]
    assert list(about)[-1] == "options"
