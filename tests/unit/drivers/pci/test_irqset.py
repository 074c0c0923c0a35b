"""drivers.pci.irqset: interrupts in the vocabulary of mainline; what is refused changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from threading import RLock

import pytest

from support.pci_function import FakeEvent, FakeFunction
from uvfio.core.bus import EventSource, IrqAction, IrqData
from uvfio.drivers.pci.capabilities import survey
from uvfio.drivers.pci.interrupts import INTX, MSI, MSIX, Mode
from uvfio.drivers.pci.irqset import ERR, REQ, IrqSets
from uvfio.errors import BadDescriptor, Busy, InvalidArgument, NoVectors, UnknownCommand, VfioError

MASK, UNMASK, TRIGGER = IrqAction.MASK, IrqAction.UNMASK, IrqAction.TRIGGER


class Bench:
    """A function with all kinds of interrupts, and the events that were handed out for it, in order."""

    def __init__(self) -> None:
        self.function = FakeFunction()
        self.irqs = IrqSets(self.function, survey(self.function), RLock())
        self.irqs.start()
        self.given: list[FakeEvent] = []

    def events(self, wanted: str) -> EventSource:
        """For each letter an event; "-": none, "!": a descriptor that is closed."""

        def source(at: int) -> FakeEvent | None:
            if wanted[at] == "!":
                raise BadDescriptor("closed")
            if wanted[at] == "-":
                return None
            self.given.append(FakeEvent())
            return self.given[-1]

        return source

    def connect(self, index: int, wanted: str, start: int = 0) -> list[FakeEvent]:
        before = len(self.given)
        self.irqs.apply(index, TRIGGER, start, len(wanted), self.events(wanted))
        return self.given[before:]

    def see(self) -> object:
        states = [(event.count, event.closed, event.watched) for event in self.given]
        return self.irqs._mode, bytes(self.function.config), dict(self.irqs._single), states

    def refused(self, condition: type[VfioError], call: Callable[[], object]) -> None:
        before = self.see()
        with pytest.raises(VfioError) as caught:
            call()
        assert type(caught.value) is condition, caught.value
        assert self.see() == before

    def refuses(
        self,
        condition: type[VfioError],
        index: int,
        action: IrqAction,
        start: int,
        count: int,
        data: IrqData,
    ) -> None:
        self.refused(condition, lambda: self.irqs.apply(index, action, start, count, data))


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_how_many_there_are_and_which_sets_may_grow(bench: Bench) -> None:
    assert [bench.irqs.count(index) for index in range(5)] == [1, 8, 16, 1, 1]
    assert [bench.irqs.resizable(index) for index in range(5)] == [False, False, True, False, False]
    bench.refused(InvalidArgument, lambda: bench.irqs.count(-1))
    bench.refused(InvalidArgument, lambda: bench.irqs.count(5))


@pytest.mark.parametrize("index", [MSI, MSIX, ERR, REQ])
@pytest.mark.parametrize("action", [MASK, UNMASK])
def test_only_intx_can_be_masked(bench: Bench, index: int, action: IrqAction) -> None:
    bench.refuses(UnknownCommand, index, action, 0, 1, None)


# -- INTx ----------------------------------------------------------------------------------------


def test_intx_begins_with_an_event_and_ends_with_none(bench: Bench) -> None:
    for data in (None, b"\1"):
        bench.refuses(InvalidArgument, INTX, TRIGGER, 0, 1, data)
        bench.refuses(InvalidArgument, INTX, MASK, 0, 1, data)
    (event,) = bench.connect(INTX, "e")
    assert bench.irqs._mode is Mode.INTX
    bench.irqs.apply(INTX, TRIGGER, 0, 1, None)
    bench.irqs.apply(INTX, TRIGGER, 0, 1, b"\0")
    assert event.count == 1
    bench.irqs.apply(INTX, TRIGGER, 0, 0, None)
    assert (bench.irqs._mode, event.closed) == (Mode.NONE, 1)


def test_another_event_takes_the_place_of_the_first(bench: Bench) -> None:
    (first,) = bench.connect(INTX, "e")
    (second,) = bench.connect(INTX, "e")
    bench.irqs.apply(INTX, TRIGGER, 0, 1, b"\1")
    assert (first.closed, first.count, second.count) == (1, 0, 1)
    assert bench.connect(INTX, "-") == []
    assert second.closed == 1
    bench.irqs.apply(INTX, TRIGGER, 0, 1, None)
    assert bench.irqs._mode is Mode.INTX


@pytest.mark.parametrize(("start", "count"), [(1, 1), (0, 2), (0, 0), (1, 0)])
def test_intx_is_one(bench: Bench, start: int, count: int) -> None:
    bench.refuses(InvalidArgument, INTX, TRIGGER, start, count, bench.events("ee"))
    bench.connect(INTX, "e")
    for action in (MASK, UNMASK):
        bench.refuses(InvalidArgument, INTX, action, start, count, None)


def test_no_event_can_mask_but_one_can_unmask(bench: Bench) -> None:
    bench.connect(INTX, "e")
    bench.refuses(UnknownCommand, INTX, MASK, 0, 1, bench.events("e"))
    bench.irqs.apply(INTX, UNMASK, 0, 1, bench.events("e"))
    assert bench.given[-1].watched
    bench.irqs.apply(INTX, UNMASK, 0, 1, bench.events("-"))
    assert (bench.given[-1].watched, bench.given[-1].closed) == (False, 1)


def test_an_unmask_event_that_cannot_be_watched_is_given_back(bench: Bench) -> None:
    bench.connect(INTX, "e")
    failing = FakeEvent()
    failing.fail_watch = InvalidArgument("no")
    with pytest.raises(InvalidArgument):
        bench.irqs.apply(INTX, UNMASK, 0, 1, lambda at: failing)
    assert failing.closed == 1


# -- messages ------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", [MSI, MSIX])
def test_vectors_begin_with_events_and_are_fired_by_hand(bench: Bench, index: int) -> None:
    first, third = bench.connect(index, "e-e", start=1)
    bench.irqs.apply(index, TRIGGER, 0, 4, None)
    assert (first.count, third.count) == (1, 1)
    bench.irqs.apply(index, TRIGGER, 1, 3, b"\0\1\1")
    assert (first.count, third.count) == (1, 2)
    bench.irqs.apply(index, TRIGGER, 0, 0, None)
    assert bench.irqs._mode is Mode.NONE
    assert (first.closed, third.closed) == (1, 1)


@pytest.mark.parametrize("index", [MSI, MSIX])
def test_vectors_that_are_not_in_use(bench: Bench, index: int) -> None:
    for data in (None, b"\1"):
        bench.refuses(InvalidArgument, index, TRIGGER, 0, 1, data)
    bench.refuses(NoVectors, index, TRIGGER, 0, 0, bench.events(""))


@pytest.mark.parametrize(("used", "other"), [(INTX, MSI), (MSI, MSIX), (MSIX, INTX), (MSI, INTX)])
def test_one_kind_at_a_time(bench: Bench, used: int, other: int) -> None:
    bench.connect(used, "e")
    bench.refuses(InvalidArgument, other, TRIGGER, 0, 1, bench.events("e"))
    bench.irqs.apply(used, TRIGGER, 0, 0, None)
    bench.connect(other, "e")


@pytest.mark.parametrize("index", [MSI, MSIX])
def test_a_closed_descriptor_among_many_leaves_no_event_behind(bench: Bench, index: int) -> None:
    with pytest.raises(BadDescriptor):
        bench.connect(index, "ee!e")
    assert bench.irqs._mode is Mode.NONE
    assert [event.closed for event in bench.given] == [1, 1]
    first, second = bench.connect(index, "ee")
    with pytest.raises(BadDescriptor):
        bench.connect(index, "e!")
    assert (first.closed, second.closed, bench.given[-1].closed) == (0, 0, 1)


@pytest.mark.parametrize(("index", "wanted"), [(MSI, "ee"), (MSIX, "ee")])
def test_a_function_that_cannot_be_programmed_leaves_no_event_behind(
    bench: Bench, index: int, wanted: str
) -> None:
    bench.function.fail["config_write"] = InvalidArgument("no")
    with pytest.raises(InvalidArgument):
        bench.connect(index, wanted)
    assert bench.irqs._mode is Mode.NONE
    assert [event.closed for event in bench.given] == [1] * len(wanted)
    bench.connect(index, wanted)


@pytest.mark.parametrize("index", [MSI, MSIX])
def test_nor_one_whose_hardware_refuses_again(
    bench: Bench, index: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(offset: int, value: int, size: int) -> None:
        raise InvalidArgument("no")

    monkeypatch.setattr(bench.function, "config_write", refuse)
    with pytest.raises(InvalidArgument):
        bench.connect(index, "ee")
    assert [event.closed for event in bench.given] == [1, 1]


def test_msi_cannot_grow_and_msix_can(bench: Bench) -> None:
    first, second = bench.connect(MSI, "ee")
    bench.refuses(InvalidArgument, MSI, TRIGGER, 1, 2, bench.events("ee"))
    (replaced,) = bench.connect(MSI, "e", start=1)
    assert (first.closed, second.closed, replaced.closed) == (0, 1, 0)
    bench.irqs.apply(MSI, TRIGGER, 0, 0, None)
    (low,) = bench.connect(MSIX, "e")
    (high,) = bench.connect(MSIX, "e", start=9)
    bench.irqs.apply(MSIX, TRIGGER, 0, 10, None)
    assert (low.count, high.count) == (1, 1)


# -- events of the host --------------------------------------------------------------------------


@pytest.mark.parametrize("index", [ERR, REQ])
def test_a_single_event_is_set_tested_replaced_and_dropped(bench: Bench, index: int) -> None:
    bench.refuses(InvalidArgument, index, TRIGGER, 0, 1, None)
    bench.refuses(InvalidArgument, index, TRIGGER, 0, 0, bench.events(""))
    bench.refuses(InvalidArgument, index, TRIGGER, 0, 0, b"")
    (first,) = bench.connect(index, "e")
    bench.irqs.apply(index, TRIGGER, 0, 1, None)
    bench.irqs.apply(index, TRIGGER, 0, 1, b"\1")
    bench.irqs.apply(index, TRIGGER, 0, 1, b"\0")
    assert first.count == 2
    (second,) = bench.connect(index, "e")
    assert (first.closed, second.closed) == (1, 0)
    bench.irqs.apply(index, TRIGGER, 0, 0, None)
    assert second.closed == 1
    (third,) = bench.connect(index, "e")
    bench.connect(index, "-")
    assert third.closed == 1


def test_a_request_reaches_who_wants_to_be_told(bench: Bench) -> None:
    bench.irqs.signal_request()
    (event,) = bench.connect(REQ, "e")
    bench.connect(ERR, "e")
    bench.irqs.signal_request()
    assert [event.count for event in bench.given] == [1, 0]
    assert event is bench.given[0]


def test_stop_gives_all_events_back(bench: Bench) -> None:
    for index, wanted in ((ERR, "e"), (REQ, "e"), (MSIX, "eee")):
        bench.connect(index, wanted)
    bench.irqs.stop()
    assert [event.closed for event in bench.given] == [1] * 5
    assert bench.irqs._mode is Mode.NONE


# -- the unmask event --------------------------------------------------------------------------------


def unmask_by(bench: Bench) -> FakeEvent:
    bench.irqs.apply(INTX, UNMASK, 0, 1, bench.events("x"))
    return bench.given[-1]


def test_the_unmask_event_goes_with_intx() -> None:
    bench = Bench()
    for _ in range(2):
        bench.connect(INTX, "x")
        event = unmask_by(bench)
        assert event.watched
        bench.irqs.apply(INTX, TRIGGER, 0, 0, None)
        assert (event.watched, event.closed) == (False, 1)


def test_the_unmask_event_stays_with_another_event_of_intx() -> None:
    bench = Bench()
    bench.connect(INTX, "x")
    event = unmask_by(bench)
    for wanted in ("x", "-", "x"):
        bench.connect(INTX, wanted)
        assert event.watched


def test_there_is_one_unmask_event_while_its_program_has_it() -> None:
    bench = Bench()
    bench.connect(INTX, "x")
    event = unmask_by(bench)
    with pytest.raises(Busy):
        unmask_by(bench)
    assert (event.watched, bench.given[-1].closed) == (True, 1)
    event.left = True
    assert unmask_by(bench).watched
    assert (event.watched, event.closed) == (False, 1)


def test_intx_that_cannot_be_dropped_has_no_unmask_event_left() -> None:
    bench = Bench()
    bench.connect(INTX, "x")
    event = unmask_by(bench)
    bench.function.assert_intx()
    bench.function.fail["config_write"] = VfioError("no")
    with pytest.raises(VfioError):
        bench.irqs.apply(INTX, TRIGGER, 0, 0, None)
    assert (event.watched, event.closed, bench.irqs.mode) == (False, 1, Mode.NONE)
