"""models.state: sections as bytes, who can take whose state, and that a wrong one changes nothing."""

from __future__ import annotations

import pytest

from support.model_world import World, power_on
from uvfio.errors import InvalidArgument, Unsupported
from uvfio.kit import MemoryBar, PciModel, Register, RegisterBar, RegisterMap
from uvfio.kit.pending import PendingCalls
from uvfio.kit.state import pack, unpack


class Registers(RegisterMap):
    value = Register(0x0)
    other = Register(0x8)


class Model(PciModel):
    """A number, which grows by itself later."""

    vendor_id, device_id = 0x1234, 0x7777
    regs = RegisterBar(0, Registers)
    total = 0

    def grow(self, by: int = 1) -> None:
        self.total += by

    def save(self) -> bytes:
        return bytes([self.total])

    def load(self, state: bytes) -> None:
        (self.total,) = state


class Other(Model):
    ram = MemoryBar(1, 4096)


def pending(world: World[Model]) -> PendingCalls:
    (found,) = (v for v in vars(world.model).values() if isinstance(v, PendingCalls))
    return found


def see(world: World[Model]) -> object:
    model = world.model
    registers = list(model.regs.values)
    return bytes(model.config.data), registers, model.total, pending(world).export()


@pytest.fixture
def world() -> World[Model]:
    return power_on(Model)


# -- sections ------------------------------------------------------------------------------------


def test_sections_come_back_as_they_went() -> None:
    sections = {"config": b"\0\1", "registers 0": b"", "model": b"x" * 70000}
    assert unpack(pack(sections)) == sections
    assert unpack(b"") == {}
    assert pack({"a": b"xy"}) == b"\1\0a\2\0\0\0xy"


@pytest.mark.parametrize(
    "packed",
    [
        b"\1",
        b"\1\0a\2\0\0",
        b"\1\0a\2\0\0\0x",
        b"\1\0\xff\0\0\0\0",
        2 * b"\1\0a\0\0\0\0",
        b"\1\0a\0\0\0\0\0",
    ],
)
def test_bytes_that_are_no_sections(packed: bytes) -> None:
    with pytest.raises(InvalidArgument, match="makes no sense"):
        unpack(packed)


# -- state ---------------------------------------------------------------------------------------


def test_another_function_of_the_kind_takes_a_state_over(world: World[Model]) -> None:
    model = world.model
    model.regs.value, model.total = 0x1234, 7
    model.after(2.0, model.grow)
    other = power_on(Model)
    other.model.after(1.0, other.model.grow)
    other.model.load_state(model.save_state())
    assert see(other) == see(world)
    assert [name for _, name, _ in pending(other).export()] == ["grow"]


@pytest.mark.parametrize(
    ("section", "content"),
    [
        ("config", b"short"),
        ("registers 0", bytes(9)),
        ("interrupts", b"?"),
        ("calls", b"soon grow"),
        ("calls", b"1.0 unknown"),
        ("calls", b"1.0 reset"),
        ("calls", b"1.0 total"),
        ("calls", b"-1.0 grow"),
        ("calls", b"nan grow"),
        ("calls", b"1.0 grow x"),
        ("calls", b"\xff"),
    ],
)
def test_a_wrong_section_changes_nothing(world: World[Model], section: str, content: bytes) -> None:
    donor = power_on(Model)
    donor.model.regs.value, donor.model.total = 5, 5
    sections = unpack(donor.model.save_state())
    before = see(world)
    with pytest.raises(InvalidArgument, match="no state of such a device"):
        world.model.load_state(pack(sections | {section: content}))
    assert see(world) == before


def test_a_missing_section_changes_nothing(world: World[Model]) -> None:
    sections = unpack(world.model.save_state())
    before = see(world)
    for name in sections:
        rest = {other: content for other, content in sections.items() if other != name}
        with pytest.raises(InvalidArgument):
            world.model.load_state(pack(rest))
        assert see(world) == before


def test_a_call_without_a_name_cannot_be_saved(world: World[Model]) -> None:
    world.model.after(1.0, lambda: None)
    with pytest.raises(Unsupported):
        world.model.save_state()


def test_the_identity_tells_functions_apart_that_cannot_take_each_others_state() -> None:
    world = power_on(Model)
    before = world.model.identity
    world.model.regs.value, world.model.total = 9, 9
    world.model.config_write(0x3C, 0x55, 1)
    assert world.model.identity == before == power_on(Model).model.identity
    assert power_on(Other).model.identity != before
