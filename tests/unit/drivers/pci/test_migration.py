"""drivers.pci.migration: what the bytes of a device are, and in which order another one takes them over."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import pytest

from uvfio.core.bus import Activity
from uvfio.drivers.pci.migration import MigratingPci
from uvfio.errors import InvalidArgument


class Parts:
    """The function and its configuration space: everything that happens to them, in order."""

    identity, resets = "edu 1", 3

    def __init__(self) -> None:
        self.log: list[object] = []
        self.wrong = False
        self.memories: Mapping[int, memoryview] = {2: memoryview(bytearray(8))}
        space = type("Space", (), {"save": lambda _: b"CONFIG", "load": self._loader("space")})()
        self.device = MigratingPci(
            cast("Any", self), space, lambda: self.log.append("recover"), self._settled
        )

    def _loader(self, name: str) -> Any:
        return lambda _, state: self.log.append((name, bytes(state)))

    def _settled(self) -> None:
        self.log.append("settle")

    def quiesce(self, activity: Activity) -> None:
        self.log.append(activity)

    def save_state(self) -> bytes:
        return b"function"

    def load_state(self, state: bytes) -> None:
        self.log.append(("function", bytes(state)))
        if self.wrong:
            raise InvalidArgument("no state of mine")


def test_the_state_is_a_length_the_configuration_and_the_functions_own() -> None:
    assert Parts().device.save() == b"\6\0\0\0CONFIGfunction"


def test_loading_puts_the_hosts_part_back_before_the_programs_part() -> None:
    parts = Parts()
    parts.device.load(parts.device.save())
    assert parts.log == [("function", b"function"), "recover", ("space", b"CONFIG"), "settle"]


@pytest.mark.parametrize("state", [b"", b"\1\0", b"\6\0\0\0CONFI", b"\xff" * 8])
def test_bytes_that_end_too_early_reach_nobody(state: bytes) -> None:
    parts = Parts()
    with pytest.raises(InvalidArgument):
        parts.device.load(state)
    assert parts.log == []


def test_a_function_that_refuses_still_gets_the_hosts_part_back() -> None:
    parts = Parts()
    parts.wrong = True
    with pytest.raises(InvalidArgument, match="no state of mine"):
        parts.device.load(b"\6\0\0\0CONFIGother")
    assert parts.log == [("function", b"other"), "recover"]


def test_the_rest_is_the_functions() -> None:
    parts = Parts()
    device = parts.device
    assert (device.identity, device.resets, device.memories) == ("edu 1", 3, parts.memories)
    device.quiesce(Activity.QUIET)
    assert parts.log == [Activity.QUIET]
