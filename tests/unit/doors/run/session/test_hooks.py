"""What a thread is doing, in words."""

from __future__ import annotations

import threading
from collections.abc import Callable

from uvfio.doors.run.session.hooks import describe
from uvfio.doors.run.session.reactor import Reactor
from uvfio.kit.register import Register, RegisterMap


class Regs(RegisterMap):
    """A map with a hook."""

    status = Register(0x4, access="ro")


def during(work: Callable[[Callable[[], None]], object]) -> str | None:
    """``describe`` for a thread that is in ``work``, which calls its argument."""
    inside, leave = threading.Event(), threading.Event()

    def pause() -> None:
        inside.set()
        leave.wait()

    thread = threading.Thread(target=work, args=(pause,))
    thread.start()
    try:
        inside.wait()
        assert thread.ident is not None
        return describe(thread.ident)
    finally:
        leave.set()
        thread.join()


def hook(pause: Callable[[], None]) -> None:
    pause()


def test_a_function_that_is_not_ours() -> None:
    text = during(hook)
    assert text is not None
    assert "pause" in text
    assert f"({__file__}:" in text


def test_a_thread_that_has_ended_and_one_that_waits() -> None:
    assert describe(1) is None
    reactor = Reactor()
    seen: list[str | None] = []
    me = threading.get_ident()

    def ask() -> None:
        await_idle(me, seen)
        reactor.post(lambda: None)

    reactor.accept_posts()
    asker = threading.Thread(target=ask)
    asker.start()
    reactor.wait_for(-1)
    asker.join()
    reactor.close()
    assert seen[-1] is None


def await_idle(thread: int, seen: list[str | None]) -> None:
    while True:
        seen.append(describe(thread))
        if seen[-1] is None:
            return
