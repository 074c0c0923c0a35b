"""drivers.pci.device: opens and closes, regions, reset, and how the parts work together (5.1-5.6)."""

from __future__ import annotations

from threading import Barrier, Thread

import pytest

from support.pci_function import AF, PM, FakeEvent, FakeFunction, express, msi, msix
from uvfio.core.bus import DeviceKind, Region
from uvfio.drivers.pci.device import CONFIG_INDEX, VfioPciDevice
from uvfio.drivers.pci.hardware import Bar, BarKind
from uvfio.errors import DecodingOff, Gone, InvalidArgument, Unsupported, VfioError
from uvfio.uapi import pci

COMMAND = pci.PCI_COMMAND
DECODE = pci.PCI_COMMAND_MEMORY | pci.PCI_COMMAND_IO


@pytest.fixture
def function() -> FakeFunction:
    function = FakeFunction(caps=(PM, msi(), msix(), express()))
    function.poke(0x10, 0xFE000000, 4)
    return function


@pytest.fixture
def device(function: FakeFunction) -> VfioPciDevice:
    device = VfioPciDevice(function)
    device.get()
    function.log.clear()
    return device


def config(device: VfioPciDevice, offset: int, size: int = 2) -> int:
    return int.from_bytes(device.read(CONFIG_INDEX, offset, size), "little")


def configure(device: VfioPciDevice, offset: int, value: int, size: int = 2) -> None:
    assert device.write(CONFIG_INDEX, offset, value.to_bytes(size, "little")) == size


# Facts


def test_facts(device: VfioPciDevice) -> None:
    assert device.kind is DeviceKind.PCI
    assert (device.num_regions, device.num_irqs) == (8, 3)
    assert device.resettable
    assert "0000:06:0d.0" in repr(device)


def test_not_resettable_without_a_method() -> None:
    assert not VfioPciDevice(FakeFunction(reset_methods=())).resettable


def test_regions() -> None:
    device = VfioPciDevice(FakeFunction(rom=bytes(2048), extended=()))
    assert [device.region(n) for n in range(8)] == [
        Region(0, 0x1000),
        Region(1, 0x20),
        Region(2, 1 << 33),
        Region(3, 0),
        Region(4, 0x2000, mappable=True),
        Region(5, 0x100),
        Region(6, 2048, writable=False),
        Region(7, 4096),
    ]
    assert VfioPciDevice(FakeFunction()).region(6) == Region(6, 0)
    assert VfioPciDevice(FakeFunction()).region(7).size == 256


@pytest.mark.parametrize("index", [8, -1, 1 << 20])
def test_unknown_region_is_invalid(device: VfioPciDevice, index: int) -> None:
    for call in (
        lambda: device.region(index),
        lambda: device.read(index, 0, 4),
        lambda: device.write(index, 0, bytes(4)),
        lambda: device.mmap(index, 0, 4096),
    ):
        with pytest.raises(InvalidArgument, match="does not exist"):
            call()


@pytest.mark.parametrize("index", [6, 7])
def test_rom_and_config_cannot_be_mapped(device: VfioPciDevice, index: int) -> None:
    with pytest.raises(InvalidArgument, match="cannot be mapped"):
        device.mmap(index, 0, 4096)


def test_irq_info_is_passed_on(device: VfioPciDevice) -> None:
    assert device.irq(0).level
    with pytest.raises(InvalidArgument):
        device.irq(3)


def test_impossible_silicon_is_refused() -> None:
    with pytest.raises(InvalidArgument):
        VfioPciDevice(FakeFunction(bars={0: Bar(100)}))


# Reading and writing


def test_words_take_the_short_way(device: VfioPciDevice, function: FakeFunction) -> None:
    assert device.write(0, 8, b"\x44\x33\x22\x11") == 4
    assert device.read(0, 8, 4) == b"\x44\x33\x22\x11"
    assert function.log == [("write", 0, 8, 0x11223344, 4), ("read", 0, 8, 4)]


def test_other_lengths_take_the_window(device: VfioPciDevice, function: FakeFunction) -> None:
    device.write(0, 2, b"\x11\x22\x33\x44")
    assert device.read(0, 8, 8) == b"\0" * 8
    assert [entry[0] for entry in function.log] == ["write", "write", "read", "read"]


def test_short_way_obeys_the_ends(device: VfioPciDevice) -> None:
    assert device.read(0, 0x1000, 4) == b""
    assert device.write(0, 0x1000, bytes(4)) == 0
    with pytest.raises(InvalidArgument):
        device.read(0, 0x1004, 4)
    with pytest.raises(InvalidArgument):
        device.read(1, 0x20, 4)
    with pytest.raises(InvalidArgument):
        device.read(3, 0, 4)
    with pytest.raises(InvalidArgument):
        device.read(6, 0, 4)


def test_plain_memory(device: VfioPciDevice, function: FakeFunction) -> None:
    device.write(4, 0x10, b"abcd")
    assert device.read(4, 0x10, 4) == b"abcd"
    assert bytes(device.mmap(4, 0, 0x1000)[0x10:0x14]) == b"abcd"
    assert function.log == []


# First get


def test_first_get_resets_enables_and_listens(function: FakeFunction) -> None:
    device = VfioPciDevice(function)
    assert function.log == []
    device.get()
    assert function.resets == 1
    assert function.sink is device.interrupts
    assert function.word(COMMAND) & DECODE == DECODE
    assert function.word(0x10, 4) == 0xFE000000
    assert config(device, COMMAND) == DECODE


def test_get_without_reset_method_does_not_reset() -> None:
    function = FakeFunction(reset_methods=())
    VfioPciDevice(function).get()
    assert function.resets == 0


def test_reset_that_fails_at_get_costs_the_reset_only(function: FakeFunction) -> None:
    function.fail["reset"] = VfioError("stuck")
    device = VfioPciDevice(function)
    device.get()
    assert not device.resettable
    assert device.opens == 1
    device.put()
    assert device.resettable


def test_decoding_is_enabled_for_what_there_is() -> None:
    function = FakeFunction(bars={0: Bar(0x20, BarKind.IO)})
    VfioPciDevice(function).get()
    assert function.word(COMMAND) == pci.PCI_COMMAND_IO


def test_a_failed_get_changes_nothing(function: FakeFunction) -> None:
    function.poke(COMMAND, pci.PCI_COMMAND_SERR)
    before = bytes(function.config)
    function.fail["config_write"] = VfioError("dead bus")
    device = VfioPciDevice(function)
    with pytest.raises(VfioError, match="dead bus"):
        device.get()
    assert bytes(function.config) == before
    assert device.opens == 0
    assert function.sink is None
    with pytest.raises(Gone):
        device.read(CONFIG_INDEX, 0, 4)
    device.get()
    assert device.opens == 1


def test_further_gets_only_count(device: VfioPciDevice, function: FakeFunction) -> None:
    device.get()
    device.get()
    assert device.opens == 3
    assert function.log == []


# Last put


def test_only_the_last_put_closes(device: VfioPciDevice, function: FakeFunction) -> None:
    device.get()
    device.put()
    assert function.log == []
    device.put()
    assert function.resets == 2
    assert function.sink is None


def test_put_without_get_is_refused(function: FakeFunction) -> None:
    device = VfioPciDevice(function)
    with pytest.raises(Gone):
        device.put()
    assert device.opens == 0
    assert function.log == []


def test_last_put_restores_the_hardware() -> None:
    function = FakeFunction(caps=(PM, msi(), msix(), express()), reset_methods=())
    function.poke(COMMAND, pci.PCI_COMMAND_SERR)
    function.poke(0x10, 0xFE000000, 4)
    before = bytes(function.config)
    device = VfioPciDevice(function)
    device.get()
    configure(device, COMMAND, 0x7)
    configure(device, function.where[pci.PCI_CAP_ID_PM] + pci.PCI_PM_CTRL, 3)
    configure(device, function.where[pci.PCI_CAP_ID_EXP] + pci.PCI_EXP_DEVCTL, 0x7C00)
    configure(device, pci.PCI_CACHE_LINE_SIZE, 0x1010)
    configure(device, pci.PCI_INTERRUPT_LINE, 7, 1)
    configure(device, 0x10, 0, 4)
    device.set_irqs(1, [FakeEvent(), FakeEvent()])
    device.put()
    message = function.where[pci.PCI_CAP_ID_MSI] + pci.PCI_MSI_ADDRESS_LO
    function.poke(message, 0, 4)  # leftovers of a disabled capability mean nothing
    assert bytes(function.config) == before


def test_last_put_stops_the_bus_master_first() -> None:
    function = FakeFunction(reset_methods=())
    device = VfioPciDevice(function)
    device.get()
    configure(device, COMMAND, 7)
    function.log.clear()
    device.put()
    assert function.log[:2] == [("end_mappings",), ("config", COMMAND, 3, 2)]
    assert not function.word(COMMAND) & pci.PCI_COMMAND_MASTER


def test_last_put_leaves_the_bus_master_off_even_if_it_was_on() -> None:
    function = FakeFunction()
    function.poke(COMMAND, pci.PCI_COMMAND_MASTER)
    device = VfioPciDevice(function)
    device.get()
    device.put()
    assert function.word(COMMAND) == 0


def test_last_put_drops_the_virtual_space(device: VfioPciDevice) -> None:
    configure(device, pci.PCI_INTERRUPT_LINE, 7, 1)
    configure(device, 0x14, 0xE000, 4)
    device.put()
    with pytest.raises(Gone):
        device.read(CONFIG_INDEX, 0, 4)
    device.get()
    assert config(device, pci.PCI_INTERRUPT_LINE, 1) == 0
    assert config(device, 0x14, 4) == 1


def test_last_put_drops_the_events(device: VfioPciDevice, function: FakeFunction) -> None:
    event, unmask = FakeEvent(), FakeEvent()
    device.set_irqs(0, [event])
    device.set_unmask_event(0, unmask)
    device.put()
    assert (event.closed, unmask.closed) == (1, 1)
    function.assert_intx()
    assert event.count == 0


def test_put_finishes_when_the_reset_fails(device: VfioPciDevice, function: FakeFunction) -> None:
    function.fail["reset"] = VfioError("stuck")
    device.put()
    assert device.opens == 0
    assert function.word(COMMAND) == 0


def test_put_finishes_when_the_bus_fails(device: VfioPciDevice, function: FakeFunction) -> None:
    event = FakeEvent()
    device.set_irqs(0, [event])
    resets = function.resets
    function.fail["config_write"] = VfioError("dead bus")
    with pytest.raises(VfioError, match="dead bus"):
        device.put()
    assert device.opens == 0
    assert function.word(COMMAND) == 0
    assert (event.closed, function.sink, function.resets) == (1, None, resets + 1)


def test_d24_opens_do_not_race(function: FakeFunction) -> None:
    device = VfioPciDevice(function)
    barrier = Barrier(4)

    def open_and_close() -> None:
        barrier.wait()
        for _ in range(50):
            device.get()
            device.put()

    threads = [Thread(target=open_and_close) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert device.opens == 0
    assert function.sink is None
    assert function.resets % 2 == 0


# Reset


def test_reset_without_support(function: FakeFunction) -> None:
    device = VfioPciDevice(FakeFunction(reset_methods=()))
    device.get()
    with pytest.raises(Unsupported) as refused:
        device.reset()
    assert refused.value.errno == 22


def test_reset_of_a_closed_device_is_refused(function: FakeFunction) -> None:
    with pytest.raises(Gone):
        VfioPciDevice(function).reset()
    assert function.resets == 0


def test_reset_passes_the_error_on(device: VfioPciDevice, function: FakeFunction) -> None:
    function.fail["reset"] = VfioError("stuck", errno=5)
    with pytest.raises(VfioError) as refused:
        device.reset()
    assert refused.value.errno == 5
    assert function.word(COMMAND) & DECODE == DECODE


def test_reset_keeps_the_virtual_space_and_the_events(
    device: VfioPciDevice, function: FakeFunction
) -> None:
    event = FakeEvent()
    configure(device, 0x10, 0xD0000000, 4)
    configure(device, pci.PCI_INTERRUPT_LINE, 5, 1)
    device.set_irqs(0, [event])
    device.reset()
    assert config(device, 0x10, 4) == 0xD0000000
    assert config(device, pci.PCI_INTERRUPT_LINE, 1) == 5
    function.assert_intx()
    assert event.count == 1


def test_reset_puts_the_hardware_back_as_it_was_just_before(
    device: VfioPciDevice, function: FakeFunction
) -> None:
    control = function.where[pci.PCI_CAP_ID_EXP] + pci.PCI_EXP_DEVCTL
    configure(device, COMMAND, 7)
    configure(device, control, 0x2810)
    device.set_irqs(2, [FakeEvent()])
    before = bytes(function.config)
    device.reset()
    assert bytes(function.config) == before


def test_a_hidden_reset_is_repaired_when_decoding_is_enabled(
    device: VfioPciDevice, function: FakeFunction
) -> None:
    events = [FakeEvent(), FakeEvent()]
    device.set_irqs(1, list(events))
    flags = function.where[pci.PCI_CAP_ID_MSI] + pci.PCI_MSI_FLAGS
    function.reset()  # by setpci, or by itself
    assert function.word(0x10, 4) == 0
    assert not function.word(flags) & 1
    # Lazily: nothing happens before the program switches decoding on.
    configure(device, pci.PCI_LATENCY_TIMER, 1, 1)
    assert function.word(0x10, 4) == 0
    function.log.clear()
    configure(device, COMMAND, 6)
    assert function.word(0x10, 4) == 0xFE000000
    assert function.log[0] == ("config", 0x10, 0xFE000000, 4)
    assert function.word(COMMAND) & 7 == 7
    assert function.word(flags) & 1
    assert function.sink is not None
    function.sink.msi(1)
    assert events[1].count == 1


# Resets and power states by configuration space


class Sleeper(FakeFunction):
    """The way from D3hot to D0 resets it (No_Soft_Reset is 0)."""

    def config_write(self, offset: int, value: int, size: int) -> None:
        control = self.where[pci.PCI_CAP_ID_PM] + pci.PCI_PM_CTRL
        asleep = self.word(control) & 3
        super().config_write(offset, value, size)
        if asleep and not self.word(control) & 3 and not self.word(control) & 8:
            self.reset()


@pytest.fixture
def sleeper() -> Sleeper:
    sleeper = Sleeper(caps=(PM, msi(), msix(), express(), AF))
    sleeper.poke(0x10, 0xFE000000, 4)
    return sleeper


def _in_use(function: FakeFunction) -> tuple[VfioPciDevice, list[FakeEvent]]:
    device = VfioPciDevice(function)
    device.get()
    configure(device, COMMAND, 0x146)
    configure(device, function.where[pci.PCI_CAP_ID_EXP] + pci.PCI_EXP_DEVCTL, 0x2810)
    events = [FakeEvent(), FakeEvent()]
    device.set_irqs(2, list(events))
    return device, events


def _power(function: FakeFunction) -> int:
    return function.where[pci.PCI_CAP_ID_PM] + pci.PCI_PM_CTRL


@pytest.mark.parametrize("way", [pci.PCI_CAP_ID_EXP, pci.PCI_CAP_ID_AF])
def test_reset_by_a_capability_loses_nothing(sleeper: Sleeper, way: int) -> None:
    device, events = _in_use(sleeper)
    before, resets = bytes(sleeper.config), sleeper.resets
    if way == pci.PCI_CAP_ID_EXP:
        configure(device, sleeper.where[way] + pci.PCI_EXP_DEVCTL, 0xA810)
    else:
        configure(device, sleeper.where[way] + pci.PCI_AF_CTRL, 1, 1)
    assert sleeper.resets == resets + 1
    assert bytes(sleeper.config) == before
    assert config(device, COMMAND) == 0x146
    assert sleeper.sink is not None
    sleeper.sink.msix(1)
    assert events[1].count == 1


def test_reset_by_a_capability_that_fails_is_not_told(sleeper: Sleeper) -> None:
    device, _ = _in_use(sleeper)
    before, sleeper.fail["reset"] = bytes(sleeper.config), VfioError("no", errno=5)
    configure(device, sleeper.where[pci.PCI_CAP_ID_EXP] + pci.PCI_EXP_DEVCTL, 0xA810)
    assert bytes(sleeper.config) == before


def test_sleep_and_back_loses_nothing(sleeper: Sleeper) -> None:
    device, events = _in_use(sleeper)
    before, resets = bytes(sleeper.config), sleeper.resets
    configure(device, _power(sleeper), 3)
    assert config(device, _power(sleeper)) & 3 == 3
    configure(device, COMMAND, 0x2)  # what is written in D3hot is lost as well
    configure(device, _power(sleeper), 0)
    assert sleeper.resets == resets + 1
    assert bytes(sleeper.config) == before
    assert sleeper.sink is not None
    sleeper.sink.msix(0)
    assert events[0].count == 1


def test_sleep_that_keeps_the_state_restores_nothing() -> None:
    keeper = Sleeper(caps=(PM, msi(), msix(), express()))
    keeper.poke(_power(keeper), pci.PCI_PM_CTRL_NO_SOFT_RESET)
    keeper._initial[:] = keeper.config
    device, _ = _in_use(keeper)
    configure(device, _power(keeper), 3)
    configure(device, pci.PCI_CACHE_LINE_SIZE, 7, 1)
    configure(device, _power(keeper), 0)
    assert config(device, pci.PCI_CACHE_LINE_SIZE, 1) == 7


def test_states_that_a_function_does_not_have_are_not_entered(sleeper: Sleeper) -> None:
    device, _ = _in_use(sleeper)
    configure(device, _power(sleeper), 1)
    assert config(device, _power(sleeper)) & 3 == 0
    configure(device, _power(sleeper), 3)
    configure(device, _power(sleeper), 2)
    assert config(device, _power(sleeper)) & 3 == 3


def test_a_function_with_light_sleep_enters_it() -> None:
    light = PM[0], pci.PCI_PM_CAP_D1.to_bytes(2, "little") + bytes(4), PM[2]
    function = Sleeper(caps=(light, msi(), msix(), express()))
    device, _ = _in_use(function)
    for wanted, now in ((2, 0), (1, 1), (3, 3), (1, 3), (0, 0)):
        configure(device, _power(function), wanted)
        assert config(device, _power(function)) & 3 == now


def test_a_physical_function_with_virtual_ones_does_not_sleep(sleeper: Sleeper) -> None:
    device, _ = _in_use(sleeper)
    device.offspring.number = 2
    configure(device, _power(sleeper), 3)
    assert config(device, _power(sleeper)) & 3 == 0
    device.offspring.number = 0
    configure(device, _power(sleeper), 3)
    device.offspring.number = 2
    configure(device, _power(sleeper), 0)
    assert config(device, _power(sleeper)) & 3 == 0


@pytest.mark.parametrize("way", ["reset", "capability", "bus"])
def test_a_reset_wakes_the_function_and_keeps_what_it_had(sleeper: Sleeper, way: str) -> None:
    device, events = _in_use(sleeper)
    before = bytes(sleeper.config)
    configure(device, _power(sleeper), 3)
    if way == "capability":
        configure(device, sleeper.where[pci.PCI_CAP_ID_EXP] + pci.PCI_EXP_DEVCTL, 0xA810)
    else:
        (device.reset if way == "reset" else device.bus_reset)()
    assert bytes(sleeper.config) == before
    assert sleeper.sink is not None
    sleeper.sink.msix(1)
    assert events[1].count == 1


def test_a_close_in_d3hot_leaves_nothing_to_restore(sleeper: Sleeper) -> None:
    first = bytes(sleeper.config)
    device, _ = _in_use(sleeper)
    configure(device, _power(sleeper), 3)
    device.put()
    assert bytes(sleeper.config) == first
    device.get()
    configure(device, COMMAND, 0x142)
    configure(device, _power(sleeper), 0)
    assert config(device, COMMAND) == 0x142


# Configuration space and interrupts together


def test_guest_intx_disable_masks_and_unmasks(
    device: VfioPciDevice, function: FakeFunction
) -> None:
    event = FakeEvent()
    device.check_irqs(0, 1)
    device.set_irqs(0, [event])
    configure(device, COMMAND, 0x403)
    function.assert_intx()
    device.unmask_irq(0)
    assert event.count == 0
    configure(device, COMMAND, 0x003)
    assert event.count == 1


def test_the_drivers_mask_does_not_show(device: VfioPciDevice, function: FakeFunction) -> None:
    device.set_irqs(0, [FakeEvent()])
    function.assert_intx()
    assert function.word(COMMAND) & pci.PCI_COMMAND_INTX_DISABLE
    assert not config(device, COMMAND) & pci.PCI_COMMAND_INTX_DISABLE


def test_msi_capability_follows_set_irqs(device: VfioPciDevice, function: FakeFunction) -> None:
    flags = function.where[pci.PCI_CAP_ID_MSI] + pci.PCI_MSI_FLAGS
    configure(device, flags, 0x31, 1)
    assert config(device, flags, 1) == 0x80 | 3 << 4 | 3 << 1
    device.set_irqs(1, [FakeEvent(), FakeEvent()])
    assert config(device, flags, 1) == 0x80 | 1 << 4 | 1 << 1 | 1
    device.set_irqs(1, [])
    assert not config(device, flags, 1) & 1


def test_msix_enable_shows_the_hardware(device: VfioPciDevice, function: FakeFunction) -> None:
    flags = function.where[pci.PCI_CAP_ID_MSIX] + pci.PCI_MSIX_FLAGS
    configure(device, flags, 0x8000)
    assert not config(device, flags) & 0x8000
    device.set_irqs(2, [FakeEvent()])
    assert config(device, flags) & 0x8000


def test_requests_are_recorded(device: VfioPciDevice) -> None:
    assert device.requests == 0
    device.request(1)
    device.request(2)
    assert device.requests == 2


def test_a_last_store_that_raises_does_not_keep_the_device_going() -> None:
    function = FakeFunction(reset_methods=())
    device = VfioPciDevice(function)
    device.get()
    configure(device, COMMAND, 7)
    function.fail["end_mappings"] = RuntimeError("a bug")
    with pytest.raises(RuntimeError):
        device.put()
    assert not function.word(COMMAND) & pci.PCI_COMMAND_MASTER
    assert function.sink is None


# An MSI-X table in a BAR that programs map


def test_a_table_in_memory_is_hidden_from_mainline_and_shown_in_mappings() -> None:
    function = FakeFunction(
        bars={0: Bar(0x2000, mappable=True)}, caps=(PM, msi(), msix(offset=0x808), express())
    )
    device = VfioPciDevice(function)
    device.get()
    configure(device, COMMAND, 2)
    assert device.region(0) == Region(0, 0x2000, mappable=True, msix_table=True)
    function.memory[0][0x800:0x910] = bytes([1]) * 0x110
    assert device.load(0, 0x804, 12) == b"\1" * 4 + b"\xff" * 8
    assert device.load(0, 0x904, 8) == b"\xff" * 4 + b"\1" * 4
    assert device.store(0, 0x804, b"\2" * 12) == 12
    assert bytes(function.memory[0][0x804:0x810]) == b"\2" * 4 + b"\1" * 8
    function.log.clear()
    assert device.write(0, 0x808, b"\3" * 4) == 4  # 2011 does not hide it
    assert function.log == [("write", 0, 0x808, 0x03030303, 4)]
    assert device.mmap(0, 0, 0x1000)[0x808] == 1


# Decoding, by the interface of 2011


def test_a_region_that_is_not_decoded_does_not_answer(sleeper: Sleeper) -> None:
    device = VfioPciDevice(sleeper)
    device.get()
    assert device.read(0, 0, 4) == bytes(4), "decoding is on when a device is opened"
    configure(device, COMMAND, pci.PCI_COMMAND_MASTER)
    sleeper.log.clear()
    for region, size in ((0, 0x1000), (2, 1 << 33), (4, 0x2000)):
        for offset, count, inside in ((0, 4, 4), (size - 4, 8, 4), (size, 4, 0), (8, 3, 3)):
            with pytest.raises(DecodingOff) as reading:
                device.read(region, offset, count)
            with pytest.raises(DecodingOff) as writing:
                device.write(region, offset, bytes(count))
            assert (reading.value.inside, writing.value.inside) == (inside, inside)
        with pytest.raises(InvalidArgument):
            device.read(region, size + 1, 4)
    with pytest.raises(InvalidArgument, match="not implemented"):
        device.read(3, 0, 4)
    assert sleeper.log == []
    assert device.write(1, 0, b"1234") == 4, "ports answer always"
    configure(device, COMMAND, pci.PCI_COMMAND_MEMORY)
    assert device.read(0, 0, 4) == bytes(4)


@pytest.mark.parametrize("way", ["D0", "reset", "reopen"])
def test_a_sleeping_function_answers_again_when_it_is_awake(sleeper: Sleeper, way: str) -> None:
    device, _ = _in_use(sleeper)
    configure(device, _power(sleeper), 3)
    with pytest.raises(DecodingOff, match="D3hot"):
        device.read(0, 0, 4)
    if way == "D0":
        configure(device, _power(sleeper), 0)
    elif way == "reset":
        device.reset()
    else:
        device.put()
        device.get()
    assert device.read(0, 0, 4) == bytes(4)
