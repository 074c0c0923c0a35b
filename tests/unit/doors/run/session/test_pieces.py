"""Long calls: one piece of one of them per turn, in rotation."""

from __future__ import annotations

from collections.abc import Generator, Iterator

import pytest

from uvfio.core.waiting import Steps
from uvfio.doors.run.session.pieces import LOOK, Pieces
from uvfio.doors.run.session.reactor import Reactor
from uvfio.errors import Busy


@pytest.fixture
def reactor() -> Iterator[Reactor]:
    made = Reactor()
    yield made
    made.close()


class Work:
    """Work of so many pieces, and what is heard of it."""

    def __init__(self, name: str, pieces: int, log: list[str], *, fails: bool = False) -> None:
        self.name, self.pieces, self.log, self.fails = name, pieces, log, fails
        self.told: list[BaseException | None] = []
        self.lives = True
        self.steps = Steps(self._work(), name)

    def _work(self) -> Generator[None, None, int]:
        try:
            for n in range(self.pieces - 1):
                self.log.append(f"{self.name}{n}")
                yield
            if self.fails:
                raise Busy("no")
            self.log.append(f"{self.name} done")
            return 7
        except GeneratorExit:
            self.log.append(f"{self.name} cancelled")
            raise

    def add(self, pieces: Pieces) -> None:
        pieces.add(self.steps, self.told.append, lambda: self.lives)


def test_one_piece_per_turn_in_rotation(reactor: Reactor) -> None:
    pieces, log = Pieces(reactor), list[str]()
    long, short = Work("a", 4, log), Work("b", 2, log)
    long.add(pieces)
    short.add(pieces)
    assert (log, reactor.busy) == ([], True)
    for turn in range(1, 7):
        reactor.run_timers()
        assert (len(log), pieces.done) == (turn, turn)
    assert log == ["a0", "b0", "a1", "b done", "a2", "a done"]
    assert (long.told, short.told, long.steps.value) == ([None], [None], 7)
    assert (len(pieces), reactor.busy) == (0, False)


def test_a_turn_does_the_same_however_many_calls_there_are(reactor: Reactor) -> None:
    pieces, log = Pieces(reactor), list[str]()
    for n in range(100):
        Work(str(n), 50, log).add(pieces)
    for turn in range(1, 300):
        reactor.run_timers()
        assert len(log) == turn


def test_an_error_is_told_and_others_go_on(reactor: Reactor) -> None:
    pieces, log = Pieces(reactor), list[str]()
    bad, good = Work("bad", 1, log, fails=True), Work("good", 2, log)
    bad.add(pieces)
    good.add(pieces)
    for _ in range(3):
        reactor.run_timers()
    assert isinstance(bad.told[0], Busy)
    assert good.told == [None]


def test_a_caller_that_died_ends_its_work(reactor: Reactor) -> None:
    pieces, log = Pieces(reactor), list[str]()
    work = Work("a", 1 << 30, log)
    work.add(pieces)
    reactor.run_timers()
    work.lives = False
    for _ in range(LOOK):
        reactor.run_timers()
    assert log[-1] == "a cancelled"
    assert len(log) <= LOOK + 1
    assert (work.told, len(pieces), reactor.busy) == ([], 0, False)


def test_the_end_of_the_run_cancels(reactor: Reactor) -> None:
    pieces, log = Pieces(reactor), list[str]()
    work = Work("a", 9, log)
    work.add(pieces)
    reactor.run_timers()
    pieces.close()
    assert log == ["a0", "a cancelled"]
    assert (work.told, reactor.busy) == ([], False)
