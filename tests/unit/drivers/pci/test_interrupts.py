"""drivers.pci.interrupts: INTx, MSI and MSI-X (5.6), with the defects of D32 mended."""

from __future__ import annotations

from threading import RLock

import pytest

from support.pci_function import PM, FakeEvent, FakeFunction, msi, msix
from uvfio.drivers.pci.capabilities import survey
from uvfio.drivers.pci.hardware import Bar
from uvfio.drivers.pci.interrupts import INTX, MSI, MSIX, Interrupts, Mode
from uvfio.errors import Busy, InvalidArgument, NoSuchDevice, VfioError
from uvfio.uapi import pci

DISABLE = pci.PCI_COMMAND_INTX_DISABLE


def make(function: FakeFunction) -> Interrupts:
    interrupts = Interrupts(function, survey(function), RLock())
    interrupts.start()
    function.log.clear()
    return interrupts


@pytest.fixture
def function() -> FakeFunction:
    return FakeFunction()


@pytest.fixture
def irqs(function: FakeFunction) -> Interrupts:
    return make(function)


def events(count: int) -> list[FakeEvent]:
    return [FakeEvent() for _ in range(count)]


def flags(function: FakeFunction, kind: int) -> int:
    return function.word(function.where[kind] + 2)


# IRQ_INFO


def test_info_of_a_full_function(irqs: Interrupts) -> None:
    assert [(i.count, i.level) for i in map(irqs.info, range(3))] == [
        (1, True),
        (8, False),
        (16, False),
    ]


def test_info_of_a_bare_function() -> None:
    irqs = make(FakeFunction(caps=(), pin=0))
    assert [(i.count, i.level) for i in map(irqs.info, range(3))] == [(0, False)] * 3


@pytest.mark.parametrize("index", [3, -1, 1 << 31])
def test_unknown_index_is_invalid(irqs: Interrupts, index: int) -> None:
    for call in (
        lambda: irqs.info(index),
        lambda: irqs.check(index, 1),
        lambda: irqs.set(index, events(1)),
        lambda: irqs.unmask(index),
        lambda: irqs.set_unmask_event(index, FakeEvent()),
    ):
        with pytest.raises(InvalidArgument, match="does not exist"):
            call()


@pytest.mark.parametrize(
    ("log2", "count"), [(0, 1), (1, 2), (2, 4), (3, 8), (5, 32), (6, 32), (7, 32)]
)
def test_d32f_msi_count_is_shifted_correctly(log2: int, count: int) -> None:
    assert make(FakeFunction(caps=(msi(log2),))).info(MSI).count == count


# INTx


def test_intx_fires_and_masks_in_hardware_first(irqs: Interrupts, function: FakeFunction) -> None:
    event = FakeEvent()
    seen: list[int] = []
    event.on_signal = lambda: seen.append(function.word(pci.PCI_COMMAND) & DISABLE)
    irqs.set(INTX, [event])
    function.assert_intx()
    assert event.count == 1
    assert seen == [DISABLE]
    assert irqs.mode is Mode.INTX


def test_intx_stays_masked_until_unmask(irqs: Interrupts, function: FakeFunction) -> None:
    event = FakeEvent()
    irqs.set(INTX, [event])
    function.assert_intx()
    function.assert_intx(False)
    function.assert_intx()
    assert event.count == 1
    irqs.unmask(INTX)
    assert event.count == 2
    function.assert_intx(False)
    irqs.unmask(INTX)
    assert event.count == 2
    assert not function.word(pci.PCI_COMMAND) & DISABLE


def test_intx_already_asserted_fires_when_set(irqs: Interrupts, function: FakeFunction) -> None:
    function.assert_intx()
    event = FakeEvent()
    irqs.set(INTX, [event])
    assert event.count == 1


def test_intx_asserted_before_the_open_fires_when_set(function: FakeFunction) -> None:
    function.assert_intx()
    irqs = make(function)
    event = FakeEvent()
    irqs.set(INTX, [event])
    assert event.count == 1


def test_intx_guest_mask_is_applied_at_once(irqs: Interrupts, function: FakeFunction) -> None:
    irqs.guest_mask(True)
    event = FakeEvent()
    irqs.set(INTX, [event])
    function.assert_intx()
    assert event.count == 0
    irqs.unmask(INTX)
    assert event.count == 0
    assert function.word(pci.PCI_COMMAND) & DISABLE
    irqs.guest_mask(False)
    assert event.count == 1


def test_intx_on_a_function_before_pci_2_3() -> None:
    function = FakeFunction(has_disable_bit=False)
    irqs = make(function)
    assert irqs.exclusive
    event = FakeEvent()
    irqs.set(INTX, [event])
    function.assert_intx()
    function.assert_intx(False)
    function.assert_intx()
    assert event.count == 1
    irqs.unmask(INTX)
    assert event.count == 2
    assert function.written(pci.PCI_COMMAND) == []


def test_pin_zero_counts_as_pci_2_3() -> None:
    assert not make(FakeFunction(pin=0, has_disable_bit=False)).exclusive


def test_start_clears_intx_disable(function: FakeFunction) -> None:
    function.poke(pci.PCI_COMMAND, DISABLE)
    make(function)
    assert not function.word(pci.PCI_COMMAND) & DISABLE


def test_intx_without_a_line_is_invalid() -> None:
    irqs = make(FakeFunction(pin=0))
    for count in (0, 1):
        with pytest.raises(InvalidArgument, match="no INTx line"):
            irqs.check(INTX, count)


@pytest.mark.parametrize("count", [2, 100, -1])
def test_intx_count_is_checked_before_anything_is_dropped(irqs: Interrupts, count: int) -> None:
    event = FakeEvent()
    irqs.set(INTX, [event])
    with pytest.raises(InvalidArgument, match=f"not {count}"):
        irqs.check(INTX, count)
    assert irqs.mode is Mode.INTX
    assert not event.closed


def test_intx_existing_binding_is_dropped_first_whatever_follows(
    irqs: Interrupts, function: FakeFunction
) -> None:
    event = FakeEvent()
    irqs.set(INTX, [event])
    irqs.check(INTX, 1)
    assert irqs.mode is Mode.NONE
    assert event.closed == 1
    function.assert_intx()
    assert event.count == 0


def test_intx_is_replaced(irqs: Interrupts, function: FakeFunction) -> None:
    first, second = events(2)
    irqs.set(INTX, [first])
    function.assert_intx()
    irqs.set(INTX, [second])
    assert first.closed == 1
    assert (first.count, second.count) == (1, 1)


def test_intx_count_zero_is_always_fine(irqs: Interrupts) -> None:
    irqs.set(INTX, [])
    irqs.set(MSI, events(1))
    irqs.set(INTX, [])
    assert irqs.mode is Mode.MSI


def test_intx_dropped_while_masked_leaves_the_hardware_open(
    irqs: Interrupts, function: FakeFunction
) -> None:
    event = FakeEvent()
    irqs.set(INTX, [event])
    function.assert_intx()
    irqs.set(INTX, [])
    assert not function.word(pci.PCI_COMMAND) & DISABLE
    assert (event.count, event.closed) == (1, 1)


# MSI and MSI-X


def test_msi_programs_the_hardware(irqs: Interrupts, function: FakeFunction) -> None:
    bound = events(3)
    irqs.set(MSI, bound)
    assert flags(function, pci.PCI_CAP_ID_MSI) & 0x71 == 0x21
    assert function.word(pci.PCI_COMMAND) & DISABLE
    assert irqs.msi_vectors == 3
    irqs.msi(2)
    irqs.msi(2)
    irqs.msi(3)
    assert [e.count for e in bound] == [0, 0, 2]
    irqs.set(MSI, [])
    assert flags(function, pci.PCI_CAP_ID_MSI) & 0x71 == 0
    assert not function.word(pci.PCI_COMMAND) & DISABLE
    assert [e.closed for e in bound] == [1, 1, 1]
    irqs.msi(2)
    assert bound[2].count == 2


def test_msi_narrow_capability() -> None:
    function = FakeFunction(caps=(msi(2, wide=False, maskable=False),))
    irqs = make(function)
    irqs.set(MSI, events(4))
    assert flags(function, pci.PCI_CAP_ID_MSI) & 0x71 == 0x21
    start = function.where[pci.PCI_CAP_ID_MSI]
    assert function.word(start + pci.PCI_MSI_ADDRESS_LO, 4) >> 20 == 0xFEE


def test_msix_programs_the_hardware(irqs: Interrupts, function: FakeFunction) -> None:
    bound = events(2)
    irqs.set(MSIX, bound)
    assert flags(function, pci.PCI_CAP_ID_MSIX) & 0xC000 == 0x8000
    assert irqs.msi_vectors == 0
    irqs.msix(1)
    assert [e.count for e in bound] == [0, 1]
    irqs.set(MSIX, [])
    assert flags(function, pci.PCI_CAP_ID_MSIX) & 0xC000 == 0
    irqs.msix(1)
    assert bound[1].count == 1


def test_msix_table_is_unmasked_for_the_vectors_set(
    irqs: Interrupts, function: FakeFunction
) -> None:
    irqs.set(MSIX, events(2))
    control = [function.registers[0, 0x800 + 16 * n + 12] for n in range(16)]
    assert control == [0, 0] + [1] * 14
    assert function.registers[0, 0x800] >> 20 == 0xFEE


def test_msix_is_masked_as_a_whole_while_the_table_is_written(
    irqs: Interrupts, function: FakeFunction
) -> None:
    irqs.set(MSIX, events(1))
    at = function.where[pci.PCI_CAP_ID_MSIX] + 2
    assert [value for value, _ in function.written(at)] == [0xC00F, 0x800F]


def test_messages_of_the_other_kind_are_dropped(irqs: Interrupts) -> None:
    bound = events(1)
    irqs.msi(0)
    irqs.set(MSI, bound)
    irqs.msix(0)
    assert bound[0].count == 0
    irqs.set(MSI, [])
    irqs.set(MSIX, bound2 := events(1))
    irqs.msi(0)
    assert bound2[0].count == 0


@pytest.mark.parametrize("index", [MSI, MSIX])
def test_messages_cannot_be_reconfigured_without_dropping(irqs: Interrupts, index: int) -> None:
    bound = events(2)
    irqs.set(index, bound)
    for count in (1, 2, 3):
        with pytest.raises(InvalidArgument, match="in use"):
            irqs.check(index, count)
        with pytest.raises(InvalidArgument):
            irqs.set(index, events(count))
    assert not any(e.closed for e in bound)
    irqs.set(index, [])
    irqs.set(index, events(1))


@pytest.mark.parametrize("index", [MSI, MSIX])
def test_messages_not_in_use_cannot_be_dropped(irqs: Interrupts, index: int) -> None:
    with pytest.raises(InvalidArgument, match="nothing to drop"):
        irqs.check(index, 0)
    with pytest.raises(InvalidArgument, match="-1"):
        irqs.check(index, -1)


@pytest.mark.parametrize(("index", "count"), [(MSI, 9), (MSI, 33), (MSIX, 17), (MSIX, 4096)])
def test_not_enough_vectors_is_invalid(irqs: Interrupts, index: int, count: int) -> None:
    bound = events(count)
    with pytest.raises(InvalidArgument, match=f"vectors, not {count}"):
        irqs.set(index, bound)
    assert irqs.mode is Mode.NONE
    assert not any(e.closed for e in bound)


@pytest.mark.parametrize("index", [MSI, MSIX])
def test_absent_capability_has_no_vectors(index: int) -> None:
    irqs = make(FakeFunction(caps=(PM,)))
    with pytest.raises(InvalidArgument, match="has 0"):
        irqs.set(index, events(1))


@pytest.mark.parametrize(
    ("used", "asked"),
    [(INTX, MSI), (INTX, MSIX), (MSI, INTX), (MSI, MSIX), (MSIX, INTX), (MSIX, MSI)],
)
def test_d32b_one_mode_at_a_time(irqs: Interrupts, used: int, asked: int) -> None:
    bound = events(1)
    irqs.set(used, bound)
    with pytest.raises(InvalidArgument, match="in use"):
        irqs.check(asked, 1)
    with pytest.raises(InvalidArgument, match="in use"):
        irqs.set(asked, events(1))
    if asked != INTX:
        with pytest.raises(InvalidArgument):
            irqs.check(asked, 0)
    assert irqs.mode.value == used
    assert not bound[0].closed


# Unmasking


@pytest.mark.parametrize("index", [MSI, MSIX])
def test_d32c_unmask_validates_index(irqs: Interrupts, index: int) -> None:
    with pytest.raises(InvalidArgument, match="cannot be masked"):
        irqs.unmask(index)


def test_unmask_is_harmless_without_intx(irqs: Interrupts) -> None:
    irqs.unmask(INTX)
    irqs.set(MSI, events(1))
    irqs.unmask(INTX)


def test_unmask_while_messages_are_used_leaves_intx_disabled(
    irqs: Interrupts, function: FakeFunction
) -> None:
    irqs.set(MSI, events(1))
    irqs.guest_mask(True)
    irqs.guest_mask(False)
    irqs.unmask(INTX)
    assert function.word(pci.PCI_COMMAND) & DISABLE


@pytest.mark.parametrize("index", [MSI, MSIX])
def test_d32d_unmask_event_validates_index(irqs: Interrupts, index: int) -> None:
    event = FakeEvent()
    with pytest.raises(InvalidArgument, match="cannot be masked"):
        irqs.set_unmask_event(index, event)
    assert not event.watched


def test_unmask_event_acts_like_unmask(irqs: Interrupts, function: FakeFunction) -> None:
    event, unmask = events(2)
    irqs.set(INTX, [event])
    irqs.set_unmask_event(INTX, unmask)
    function.assert_intx()
    unmask.kick()
    assert event.count == 2


def test_unmask_event_pending_at_set_counts(irqs: Interrupts, function: FakeFunction) -> None:
    event, unmask = events(2)
    irqs.set(INTX, [event])
    function.assert_intx()
    unmask.pending = True
    irqs.set_unmask_event(INTX, unmask)
    assert event.count == 2


def test_unmask_event_set_twice_is_busy(irqs: Interrupts) -> None:
    first, second = events(2)
    irqs.set_unmask_event(INTX, first)
    with pytest.raises(Busy):
        irqs.set_unmask_event(INTX, second)
    assert first.watched
    assert not second.watched
    assert not first.closed
    assert not second.closed


def test_unmask_event_not_set_is_enodev(irqs: Interrupts) -> None:
    with pytest.raises(NoSuchDevice) as refused:
        irqs.set_unmask_event(INTX, None)
    assert refused.value.errno == 19


def test_unmask_event_is_unhooked_when_the_call_returns(irqs: Interrupts) -> None:
    unmask = FakeEvent()
    irqs.set_unmask_event(INTX, unmask)
    irqs.set_unmask_event(INTX, None)
    assert not unmask.watched
    assert unmask.closed == 1
    irqs.set_unmask_event(INTX, FakeEvent())


def test_unmask_event_survives_dropping_intx(irqs: Interrupts) -> None:
    event, unmask = events(2)
    irqs.set(INTX, [event])
    irqs.set_unmask_event(INTX, unmask)
    irqs.set(INTX, [])
    assert unmask.watched


def test_an_unmask_event_that_its_program_closed_does_not_count(irqs: Interrupts) -> None:
    first, second = events(2)
    irqs.set_unmask_event(INTX, first)
    first.left = True
    irqs.set_unmask_event(INTX, second)
    assert (first.watched, first.closed, second.watched) == (False, 1, True)
    second.left = True
    with pytest.raises(NoSuchDevice):
        irqs.set_unmask_event(INTX, None)
    assert (second.watched, second.closed) == (False, 1)


def test_d32e_a_failed_set_leaves_nothing_busy(irqs: Interrupts) -> None:
    bad = FakeEvent()
    bad.fail_watch = InvalidArgument("not an eventfd")
    with pytest.raises(InvalidArgument, match="not an eventfd"):
        irqs.set_unmask_event(INTX, bad)
    assert not bad.closed
    irqs.set_unmask_event(INTX, FakeEvent())


def test_d32e_unmask_event_is_removed_at_device_close(irqs: Interrupts) -> None:
    unmask = FakeEvent()
    irqs.set_unmask_event(INTX, unmask)
    irqs.stop()
    assert not unmask.watched
    assert unmask.closed == 1


# Failures and life


@pytest.mark.parametrize("index", [INTX, MSI, MSIX])
def test_d32a_a_failed_set_leaves_nothing_bound(
    irqs: Interrupts, function: FakeFunction, index: int
) -> None:
    bound = events(1)
    function.assert_intx()
    function.fail["config_write"] = VfioError("no")
    with pytest.raises(VfioError, match="no"):
        irqs.set(index, bound)
    assert irqs.mode is Mode.NONE
    assert not bound[0].closed
    assert not flags(function, pci.PCI_CAP_ID_MSI) & 1
    assert not flags(function, pci.PCI_CAP_ID_MSIX) & 0x8000
    irqs.msi(0)
    irqs.msix(0)
    again = events(1)
    irqs.set(index, again)
    assert irqs.mode.value == index


@pytest.mark.parametrize(
    ("bars", "cap"),
    [
        ({}, msix(16, bir=0)),
        ({0: Bar(0x1000)}, msix(16, bir=2)),
        ({0: Bar(0x1000)}, msix(129, offset=0x800)),
    ],
)
def test_a_table_outside_its_bar_is_refused(
    bars: dict[int, Bar], cap: tuple[int, bytes, bytes]
) -> None:
    function = FakeFunction(bars=bars, caps=(cap,))
    irqs = make(function)
    with pytest.raises(InvalidArgument, match="MSI-X table"):
        irqs.set(MSIX, events(1))
    assert irqs.mode is Mode.NONE
    assert not flags(function, pci.PCI_CAP_ID_MSIX) & 0xC000


@pytest.mark.parametrize("index", [INTX, MSI, MSIX])
def test_stop_drops_everything(irqs: Interrupts, function: FakeFunction, index: int) -> None:
    bound = events(1)
    irqs.set(index, bound)
    irqs.guest_mask(True)
    irqs.stop()
    assert bound[0].closed == 1
    assert irqs.mode is Mode.NONE
    assert function.sink is None
    assert not function.word(pci.PCI_COMMAND) & DISABLE
    assert not flags(function, pci.PCI_CAP_ID_MSI) & 1
    assert not flags(function, pci.PCI_CAP_ID_MSIX) & 0x8000
    irqs.start()
    fresh = FakeEvent()
    irqs.set(INTX, [fresh])
    function.assert_intx()
    assert fresh.count == 1


@pytest.mark.parametrize("index", [MSI, MSIX])
def test_reprogram_after_a_reset(irqs: Interrupts, function: FakeFunction, index: int) -> None:
    bound = events(2)
    irqs.set(index, bound)
    before = (flags(function, pci.PCI_CAP_ID_MSI), flags(function, pci.PCI_CAP_ID_MSIX))
    function.reset()
    assert before != (flags(function, pci.PCI_CAP_ID_MSI), flags(function, pci.PCI_CAP_ID_MSIX))
    irqs.reprogram()
    assert before == (flags(function, pci.PCI_CAP_ID_MSI), flags(function, pci.PCI_CAP_ID_MSIX))
    if index == MSIX:
        assert function.registers[0, 0x800 + 16 + 12] == 0
