"""When somebody looks for stores."""

from __future__ import annotations

from support.model_world import FakeClock
from uvfio.doors.run.session.polls import LONGEST, SHORTEST, Polls


class Looker:
    """Finds what it is told to, and counts."""

    def __init__(self, *found: bool) -> None:
        self.found = list(found)
        self.looks = 0

    def __call__(self) -> bool:
        self.looks += 1
        return self.found.pop(0) if self.found else False


def never() -> None:
    raise AssertionError("nothing raised")


def test_nobody_no_timer() -> None:
    clock = FakeClock()
    polls = Polls(clock, never)
    assert not polls.active
    assert not polls.look()
    stop = polls.watch(Looker())
    assert clock.waiting == 1
    stop()
    stop()
    assert clock.waiting == 0
    assert not polls.active


def test_seldom_when_idle_and_soon_after_a_store() -> None:
    clock, looker = FakeClock(), Looker(False, False, False, False, True)
    polls = Polls(clock, never)
    polls.watch(looker)
    waits = []
    for _ in range(8):
        wait = min(timer.due for timer in clock.timers if not timer.cancelled) - clock.now
        waits.append(round(wait, 6))
        clock.advance(wait)
    assert waits == [SHORTEST, 0.001, 0.002, LONGEST, LONGEST, SHORTEST, 0.001, 0.002]
    assert LONGEST < 0.005
    assert looker.looks == 8


def test_one_timer_for_all() -> None:
    clock, one, two = FakeClock(), Looker(), Looker(True)
    polls = Polls(clock, never)
    stop = polls.watch(one)
    polls.watch(two)
    assert clock.waiting == 1
    assert polls.look()
    assert (one.looks, two.looks) == (1, 1)
    stop()
    clock.advance(LONGEST)
    assert one.looks == 1
    assert two.looks > 1


def test_a_bug_of_one_is_not_the_others() -> None:
    clock, said, good = FakeClock(), [], Looker()
    polls = Polls(clock, lambda: said.append("bug"))

    def bad() -> bool:
        raise RuntimeError("a bug")

    polls.watch(bad)
    polls.watch(good)
    clock.advance(SHORTEST)
    assert said == ["bug"]
    assert good.looks == 1
    assert clock.waiting == 1


def test_the_last_may_go_while_looking() -> None:
    clock = FakeClock()
    polls = Polls(clock, never)

    def look() -> bool:
        stop()
        return True

    stop = polls.watch(look)
    clock.advance(SHORTEST)
    assert clock.waiting == 0
    looker = Looker()
    polls.watch(looker)
    clock.advance(SHORTEST)
    assert looker.looks == 1
