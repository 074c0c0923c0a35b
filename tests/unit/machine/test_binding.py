"""Which driver takes which device, as the driver core decides it."""

from __future__ import annotations

import pytest

from uvfio.errors import Busy, InvalidArgument, NoSuchDevice, Overlap, VfioError
from uvfio.machine.binding import Binding, Id
from uvfio.machine.machine import Machine
from uvfio.machine.slot import Slot
from uvfio.machine.spec import NO_DRIVER

A, B, FOREIGN = "0000:00:05.0", "0000:02:01.0", "0000:02:02.0"


@pytest.fixture
def machine() -> Machine:
    return Machine(
        devices=[
            f"edu@{A},group=5",
            f"edu@{B},group=6,driver=none",
            f"exerciser@{FOREIGN},group=6,driver=nvme",
        ]
    )


@pytest.fixture
def binding(machine: Machine) -> Binding:
    return machine.binding


def slot(machine: Machine, address: str) -> Slot:
    return machine.slot(address)


def test_drivers_are_the_names_that_were_mentioned(machine: Machine, binding: Binding) -> None:
    assert binding.drivers("pci") == ("vfio-pci", "nvme")
    assert binding.drivers("platform") == ("vfio-platform",)
    machine.bind(B, "e1000")
    machine.unbind(B)
    assert "e1000" in binding.drivers("pci")


def test_a_device_is_named_with_or_without_a_newline(machine: Machine, binding: Binding) -> None:
    assert binding.device("pci", A) is binding.device("pci", f"{A}\n") is slot(machine, A)
    for bus, name in (("pci", "0000:99:00.0"), ("platform", A), ("pci", ""), ("pci", f" {A}")):
        with pytest.raises(NoSuchDevice):
            binding.device(bus, name)


def test_who_matches_without_an_override(machine: Machine, binding: Binding) -> None:
    assert binding.matches("vfio-pci", slot(machine, A))
    assert not binding.matches("nvme", slot(machine, A))
    assert binding.matches("nvme", slot(machine, FOREIGN))
    assert not binding.matches("vfio-pci", slot(machine, B))


def test_an_override_is_the_only_driver(machine: Machine, binding: Binding) -> None:
    binding.override(A, "nvme\n")
    assert binding.matches("nvme", slot(machine, A))
    assert not binding.matches("vfio-pci", slot(machine, A))
    for empty in ("\n", ""):
        binding.override(A, empty)
        assert binding.matches("vfio-pci", slot(machine, A))
    with pytest.raises(InvalidArgument):
        binding.override(A, "x" * 4095)
    assert A not in binding.overrides


def test_binding_needs_a_match_and_a_free_device(machine: Machine, binding: Binding) -> None:
    with pytest.raises(NoSuchDevice):
        binding.attach("vfio-pci", slot(machine, B))
    binding.override(B, "vfio-pci")
    binding.attach("vfio-pci", slot(machine, B))
    assert machine.record(B).bound
    with pytest.raises(Busy):
        binding.attach("vfio-pci", slot(machine, B))


def test_unbinding_is_for_the_driver_that_has_it(machine: Machine, binding: Binding) -> None:
    for driver, address in (("nvme", A), ("vfio-pci", B), ("vfio-pci", FOREIGN)):
        with pytest.raises(NoSuchDevice):
            binding.detach(driver, slot(machine, address))
    assert binding.detach("vfio-pci", slot(machine, A)) is None
    assert binding.detach("nvme", slot(machine, FOREIGN)) is None
    assert slot(machine, A).driver == slot(machine, FOREIGN).driver == NO_DRIVER


def test_probing_offers_a_device_to_everybody(machine: Machine, binding: Binding) -> None:
    binding.probe(slot(machine, B))
    assert slot(machine, B).driver == NO_DRIVER
    machine.unbind(FOREIGN)
    binding.probe(slot(machine, FOREIGN))
    assert slot(machine, FOREIGN).driver == "nvme"
    binding.override(A, "nvme")
    binding.probe(slot(machine, A))
    assert slot(machine, A).driver == "vfio-pci", "who is bound stays so"


def test_a_new_id_takes_what_is_free(machine: Machine, binding: Binding) -> None:
    binding.add_id("vfio-pci", "1234 11e8\n")
    assert slot(machine, B).driver == "vfio-pci"
    assert slot(machine, FOREIGN).driver == "nvme"
    with pytest.raises(Overlap) as caught:
        binding.add_id("vfio-pci", "1234 11e8")
    assert caught.value.errno == 17
    binding.remove_id("vfio-pci", "1234 11e8")
    assert slot(machine, B).driver == "vfio-pci"
    with pytest.raises(NoSuchDevice):
        binding.remove_id("vfio-pci", "1234 11e8")


@pytest.mark.parametrize("text", ["", "1234", "x y", "1234 x"])
def test_ids_that_are_none(machine: Machine, binding: Binding, text: str) -> None:
    for change in (binding.add_id, binding.remove_id):
        with pytest.raises(InvalidArgument):
            change("vfio-pci", text)
    assert not any(binding.ids.values())


def test_an_id_may_ask_for_more(machine: Machine) -> None:
    function = machine.function(A)
    assert Id(0x1234, 0x11E8, 0x1AF4, 0x1100).matches(function)
    assert not Id(0x1234, 0x11E8, 0x1AF5).matches(function)
    assert Id(0x1234, 0x11E8, class_code=0x00FF00, class_mask=0xFFFF00).matches(function)
    assert not Id(0x1234, 0x11E8, class_code=0x020000, class_mask=0xFFFF00).matches(function)
    with pytest.raises(InvalidArgument):
        machine.binding.add_id("vfio-pci", "1 2 3 4 5 6 7")


def test_a_removed_device_comes_back_with_a_rescan(machine: Machine, binding: Binding) -> None:
    with pytest.raises(Busy):
        binding.remove(slot(machine, A))
    machine.unbind(A)
    binding.override(A, "nvme")
    binding.remove(slot(machine, A))
    with pytest.raises(NoSuchDevice):
        machine.slot(A)
    binding.rescan()
    assert slot(machine, A).driver == "vfio-pci"
    assert A not in binding.overrides
    binding.rescan()
    assert len(machine.slots) == 3


def test_without_autoprobe_a_rescan_binds_nobody(machine: Machine, binding: Binding) -> None:
    binding.autoprobe["pci"] = False
    machine.unbind(A)
    binding.remove(slot(machine, A))
    binding.rescan()
    assert slot(machine, A).driver == NO_DRIVER


def test_a_rescan_that_finds_the_place_taken(machine: Machine, binding: Binding) -> None:
    machine.unbind(A)
    binding.remove(slot(machine, A))
    machine.plug(f"exerciser@{A},group=9")
    binding.rescan()
    assert slot(machine, A).spec.model == "exerciser"
    machine.unplug(A)
    binding.rescan()
    assert slot(machine, A).spec.model == "edu"


def test_errors_are_conditions_of_the_house(machine: Machine, binding: Binding) -> None:
    with pytest.raises(VfioError) as caught:
        binding.attach("nvme", slot(machine, A))
    assert caught.value.errno == 19
    assert "driver_override" in caught.value.hint
