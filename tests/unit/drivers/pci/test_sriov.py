"""Who may open a physical or a virtual function, and what vfio-pci makes of the header of the latter."""

from __future__ import annotations

from uuid import UUID

import pytest

from support.model_world import FakeClock, FakeStore
from support.pci_function import FakeFunction
from uvfio.core.bus import TakesToken
from uvfio.drivers.pci.device import VfioPciDevice
from uvfio.drivers.pci.driver import VfioPciDriver
from uvfio.drivers.pci.sriov import Offspring, find, identity, index_of, parse_option, routing_id
from uvfio.errors import Busy, InvalidArgument, UnknownCommand, WrongToken
from uvfio.kit.pci.model import PciModel
from uvfio.models.exerciser import Exerciser, ExerciserVf
from uvfio.uapi import pci

ONE, TWO = UUID(int=1).bytes, UUID(int=2).bytes
TEXT = "01234567-89ab-cdef-0123-456789ABCDEF"


def make(model: type[PciModel], address: str, **how: object) -> PciModel:
    made: PciModel = model(
        address,
        group=1,
        unit=None,
        clock=FakeClock(),
        store=FakeStore(),
        **how,  # type: ignore[arg-type]
    )
    return made


class Family:
    """A physical function and one virtual function, both bound; ``adopted``: the former by vfio-pci when it made
    the latter."""

    def __init__(self, adopted: bool = True) -> None:
        self.driver = VfioPciDriver()
        self.pf = make(Exerciser, "0000:06:00.0", options={"vfs": 2})
        self.parent = self.driver.probe(self.pf)
        capability = find(self.pf)
        assert capability
        capability.enable(1)
        if adopted:
            self.driver.adopt(self.parent, 1)
        self.vf = make(ExerciserVf, "0000:06:10.0", physfn=self.pf)
        self.pf.virtual_functions.append(self.vf)
        self.vf.decode(True)
        self.child = self.driver.probe(self.vf)


@pytest.fixture
def family() -> Family:
    return Family()


# -- the token as text ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rest", "token"),
    [
        ("", None),
        ("   ", None),
        (f" vf_token={TEXT}", UUID(TEXT).bytes),
        (f"  vf_token={TEXT.lower()}  ", UUID(TEXT).bytes),
    ],
)
def test_options(rest: str, token: bytes | None) -> None:
    assert parse_option("x", rest) == token


@pytest.mark.parametrize(
    "rest",
    [
        *(" ", " vf_token", " vf_token=", " vf_token=0123", " VF_TOKEN=" + TEXT, " other=1")[1:],
        *(f" vf_token={TEXT}{more}" for more in ("x", f" vf_token={TEXT}", " y")),
        *(f" vf_token={bad}" for bad in (TEXT.replace("-", "_"), TEXT[:-1] + "g", "-" * 36)),
        f" vf_token={{{TEXT}}}",
    ],
)
def test_options_that_are_refused(rest: str) -> None:
    with pytest.raises(InvalidArgument):
        parse_option("x", rest)


# -- who has to say which token ------------------------------------------------------------------


def test_an_ordinary_function_takes_none() -> None:
    device = VfioPciDevice(FakeFunction())
    assert isinstance(device, TakesToken)
    device.check_token(None)
    with pytest.raises(InvalidArgument, match="neither PF nor VF"):
        device.check_token(ONE)
    with pytest.raises(UnknownCommand):
        device.set_token(None)


def test_a_virtual_function_needs_the_token_of_its_parent(family: Family) -> None:
    for wrong in (None, ONE, bytes(16)):
        with pytest.raises(WrongToken):
            family.child.check_token(wrong)
    family.parent.set_token(ONE)
    family.child.check_token(ONE)
    with pytest.raises(UnknownCommand):
        family.child.set_token(ONE)


def test_a_physical_function_takes_any_while_no_virtual_one_is_open(family: Family) -> None:
    family.parent.check_token(ONE)
    family.child.check_token(ONE)
    family.parent.check_token(None)
    family.child.check_token(ONE)
    family.parent.check_token(TWO)
    family.child.check_token(TWO)


def test_and_needs_its_own_while_one_is(family: Family) -> None:
    family.parent.check_token(ONE)
    family.child.get()
    family.child.get()
    for wrong in (None, TWO):
        with pytest.raises(WrongToken):
            family.parent.check_token(wrong)
    family.parent.check_token(ONE)
    family.child.put()
    with pytest.raises(WrongToken):
        family.parent.check_token(TWO)
    family.child.put()
    family.parent.check_token(TWO)


def test_an_open_that_fails_does_not_count(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise InvalidArgument("on purpose")

    with monkeypatch.context() as patched:
        patched.setattr(family.vf, "config_write", fail)
        with pytest.raises(InvalidArgument):
            family.child.get()
    family.parent.check_token(ONE)


def test_tokens_are_random_and_live_as_long_as_the_binding() -> None:
    first, second = Family(), Family()
    seen = {family.parent._token.own.uuid for family in (first, second) if family.parent._token.own}
    assert len(seen) == 2


def test_a_parent_with_another_driver() -> None:
    child = Family(adopted=False).child
    child.check_token(None)
    with pytest.raises(InvalidArgument, match="not bound to vfio-pci"):
        child.check_token(ONE)


def test_match_asks_the_device(family: Family) -> None:
    match = family.driver.match_with_options
    family.parent.check_token(UUID(TEXT).bytes)
    assert match(family.vf, f"0000:06:10.0 vf_token={TEXT}", family.child)
    with pytest.raises(WrongToken):
        match(family.vf, "0000:06:10.0", family.child)
    assert not match(family.vf, "0000:06:10.01", family.child)
    assert not match(family.vf, "0000:06:10", family.child)


def test_a_physical_function_with_virtual_ones_is_not_taken(family: Family) -> None:
    with pytest.raises(Busy, match="has 1 virtual functions"):
        family.driver.probe(family.pf)


# -- the virtual function in the hands of vfio-pci -----------------------------------------------


def test_ids_and_command_are_made_up(family: Family) -> None:
    family.child.get()
    read, write = family.child.read, family.child.write
    assert read(7, 0, 4) == bytes.fromhex("34128f0e")
    assert read(7, pci.PCI_COMMAND, 2) == bytes([pci.PCI_COMMAND_MEMORY, 0])
    write(7, pci.PCI_COMMAND, bytes(2))
    assert read(7, pci.PCI_COMMAND, 2) == bytes(2)
    assert family.child.load(0, 0, 4) == b"EXER"
    write(7, pci.PCI_BASE_ADDRESS_2, b"\xff" * 8)
    assert read(7, pci.PCI_BASE_ADDRESS_2, 8) == bytes.fromhex("0c00f0ffffffffff")
    assert [family.child.irq(index).count for index in range(3)] == [0, 4, 8]
    family.child.put()


def test_mappings_stay_without_memory_decoding(
    family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, bool]] = []
    for function in (family.pf, family.vf):
        name = function.name
        show = lambda on, name=name: seen.append((name, on))  # noqa: E731
        monkeypatch.setattr(function, "show_mappings", show)
    for device in (family.parent, family.child):
        device.get()
        device.store(7, pci.PCI_COMMAND, bytes(2))
    assert seen == [("0000:06:00.0", False)]


def test_the_parent_restores_what_its_reset_takes(family: Family) -> None:
    capability = find(family.pf)
    assert capability
    capability.set_bar(0, 0xC0000000)
    family.driver.adopt(family.parent, 1)
    family.parent.get()
    family.child.get()
    family.parent.reset()
    assert capability.number == 1
    assert capability.bar(0) == 0xC0000000
    assert family.child.load(0, 0, 4) == b"EXER"
    family.parent.put()
    assert capability.number == 1
    family.child.put()


def test_a_reset_nobody_announced_is_repaired_with_decoding(family: Family) -> None:
    family.parent.get()
    family.pf.reset()
    capability = find(family.pf)
    assert capability
    assert capability.number == 0
    family.parent.write(7, pci.PCI_COMMAND, bytes([pci.PCI_COMMAND_MEMORY, 0]))
    assert capability.number == 1
    family.parent.put()


def test_nothing_is_restored_without_virtual_functions(family: Family) -> None:
    capability = find(family.pf)
    assert capability
    family.driver.adopt(family.parent, 0)
    capability.disable()
    offspring = Offspring(family.pf)
    offspring.restore()
    assert not capability.enabled


# -- places --------------------------------------------------------------------------------------


def test_places(family: Family) -> None:
    assert routing_id("0000:06:10.3") == 0x683
    assert index_of(family.vf, family.pf) == 0
    assert index_of(make(ExerciserVf, "0000:06:10.5", physfn=family.pf), family.pf) == 5
    assert identity(family.vf) == (0x1234, 0x0E8F)
    assert identity(family.pf) == (0x1234, 0x0E8E)
    assert find(FakeFunction()) is None
