"""Pages that are lost: those that are protected are mended or covered, others end the process as ever."""

from __future__ import annotations

import ctypes
import gc
import mmap
import os
import signal
import weakref
from collections.abc import Callable, Iterator

import pytest

from uvfio.doors.run.linux import sigbus

PAGE = 4096
SIZE = 8 * PAGE


class Shared:
    """A file of this process, mapped, and cut at will."""

    def __init__(self, mend: Callable[[int], bool] | None = None) -> None:
        self.fd = os.memfd_create("shared")
        weakref.finalize(self, os.close, self.fd)
        os.ftruncate(self.fd, SIZE)
        self.map = mmap.mmap(self.fd, SIZE)
        self.at = ctypes.addressof(ctypes.c_char.from_buffer(self.map))
        if mend is not None:
            sigbus.protect(self.map, self.at, SIZE, mend)


@pytest.fixture(autouse=True)
def action() -> Iterator[None]:
    """pytest's own handler of SIGBUS is back afterwards."""
    yield
    assert signal.getsignal(signal.SIGBUS) in (signal.SIG_DFL, None)


def ends(call: Callable[[], object]) -> int:
    """How a child that makes the call ends: 0, or the signal."""
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGBUS, signal.SIG_DFL)
        sigbus._kept.clear()  # set again, with the default as what was there before
        try:
            call()
        finally:
            os._exit(0)
    return os.WTERMSIG(os.waitpid(pid, 0)[1])


def test_a_page_that_nobody_mends_is_covered() -> None:
    met: list[int] = []

    def refuse(at: int) -> bool:
        met.append(at)
        return False

    shared = Shared(refuse)
    view = memoryview(shared.map)
    view[5] = view[PAGE] = 1
    os.ftruncate(shared.fd, PAGE)
    assert view[5] == 1
    assert view[PAGE : PAGE + 4].cast("I")[0] == 0
    view[PAGE] = 2
    assert view[PAGE] == 2
    assert met == [shared.at + PAGE]
    assert bytes(view[PAGE + 1 :]) == bytes(7 * PAGE - 1)
    assert met == [shared.at + n * PAGE for n in range(1, 8)]
    os.ftruncate(shared.fd, SIZE)
    assert os.pread(shared.fd, 1, PAGE) == b"\0"


def test_a_page_that_is_mended_is_used() -> None:
    shared: Shared

    def grow(_: int) -> bool:
        os.ftruncate(shared.fd, SIZE)
        return True

    shared = Shared(grow)
    os.ftruncate(shared.fd, 0)
    shared.map[3 * PAGE] = 7
    assert os.pread(shared.fd, 1, 3 * PAGE) == b"\7"


def cut_and_look(shared: Shared) -> None:
    os.ftruncate(shared.fd, 0)
    shared.map[0]


def test_other_faults_end_the_process() -> None:
    def unprotected() -> None:
        cover = Shared(lambda _: False)
        cut_and_look(cover)
        cut_and_look(Shared())

    def released() -> None:
        shared = Shared(lambda _: False)
        again = mmap.mmap(shared.fd, SIZE)
        del shared.map
        gc.collect()
        os.ftruncate(shared.fd, 0)
        again[0]

    def sent() -> None:
        cut_and_look(Shared(lambda _: False))
        os.kill(os.getpid(), signal.SIGBUS)

    def failing(_: int) -> bool:
        raise OSError("no memory")

    assert ends(lambda: cut_and_look(Shared(lambda _: False))) == 0
    assert ends(unprotected) == signal.SIGBUS
    assert ends(released) == signal.SIGBUS
    assert ends(sent) == signal.SIGBUS
    assert ends(lambda: cut_and_look(Shared(failing))) == signal.SIGBUS
