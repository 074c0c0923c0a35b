"""The summary of a run: which calls count, under which name, and how they are printed."""

from __future__ import annotations

import io
import json
from types import SimpleNamespace
from typing import Any, cast

import pytest

from uvfio.core.events import (
    DeviceBound,
    DevicePlugged,
    DeviceRequested,
    DeviceUnbound,
    Interrupt,
    InterruptLost,
)
from uvfio.core.translation.domain import DmaCounters
from uvfio.doors.run.filter.rules import Handler, Key
from uvfio.doors.run.observe.calls import tap
from uvfio.doors.run.observe.summary import Summary
from uvfio.doors.run.session.events import FileReleased, RunEvent, RunObserver
from uvfio.errors import BadDescriptor, InvalidArgument
from uvfio.fops.file import File
from uvfio.uapi import rfc, vfio
from uvfio.uapi.seccomp import AUDIT_ARCH_I386, AUDIT_ARCH_X86_64, I386, X86_64


class Mainline(File):
    kind = "container"

    def abi_of(self, cmd: int) -> str:
        return "mainline"


class Run:
    """What is needed of a supervisor: handlers that answer ``answer``, and descriptors 3 (2011) and 4 (mainline)."""

    def __init__(self) -> None:
        self.answer: int | Exception | None = 0
        names = ("ioctl", "pread64", "openat", "mmap", "close")
        self.handlers: dict[Key, Handler] = {
            (X86_64[name], AUDIT_ARCH_X86_64): self._handle for name in names
        }
        self.handlers[I386["ioctl"], AUDIT_ARCH_I386] = self._handle
        counters = DmaCounters()
        counters.read, counters.written, counters.faults = 10, 20, 1
        self.machine = SimpleNamespace(framework=SimpleNamespace(dma_counters=counters))
        self.processes = SimpleNamespace(get=lambda pid: self)
        self.observers: list[RunObserver] = []
        tap(self.handlers, self.emit)

    def emit(self, event: RunEvent) -> None:
        for observer in self.observers:
            observer(event)

    def summary(self, out: io.StringIO, *, as_json: bool = False) -> Summary:
        made = Summary(cast("Any", self), out, as_json=as_json)
        self.observers.append(made.observe)
        return made

    def _handle(self, request: tuple[int, ...]) -> int | None:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def lookup(self, pid: int, fd: int) -> File:
        if fd not in (3, 4):
            raise BadDescriptor(f"{fd}")
        return File("2011") if fd == 3 else Mainline("mainline")

    def call(self, name: str, *arguments: int, arch: int = AUDIT_ARCH_X86_64) -> int | None:
        numbers = X86_64 if arch == AUDIT_ARCH_X86_64 else I386
        number = numbers[name]
        return self.handlers[number, arch]((1, 77, 0, number, arch, 0, *arguments))


def counts(summary: Summary) -> dict[str, tuple[int, int]]:
    return {name: (count.calls, count.errors) for name, count in summary.counts.items()}


@pytest.fixture
def run() -> Run:
    return Run()


def test_ioctls_count_under_the_names_of_their_files(run: Run) -> None:
    summary = run.summary(io.StringIO())
    run.call("ioctl", 3, rfc.VFIO_GROUP_GET_FLAGS)
    run.call("ioctl", 4, vfio.VFIO_SET_IOMMU)
    run.call("ioctl", 9, rfc.VFIO_GROUP_GET_FLAGS, arch=AUDIT_ARCH_I386)
    assert counts(summary) == {"VFIO_GROUP_GET_FLAGS": (2, 0), "VFIO_SET_IOMMU": (1, 0)}


def test_errors_count_and_reach_the_program(run: Run) -> None:
    summary = run.summary(io.StringIO())
    run.answer = InvalidArgument("no")
    with pytest.raises(InvalidArgument):
        run.call("pread64", 3)
    assert counts(summary) == {"pread": (1, 1)}


def test_calls_that_vfio_did_not_answer_do_not_count(run: Run) -> None:
    summary = run.summary(io.StringIO())
    run.answer = None
    assert run.call("openat") is None
    assert counts(summary) == {}
    run.call("mmap")  # the kernel finishes a mapping that was checked
    assert counts(summary) == {"mmap": (1, 0)}


def test_the_table(run: Run) -> None:
    out = io.StringIO()
    summary = run.summary(out)
    run.answer = 5
    assert run.call("pread64", 3) == 5
    irq = Interrupt("a", "MSI", 0)
    lost = InterruptLost("a", "MSI", 0, "bus mastering is off", False)
    masked = InterruptLost("a", "MSI", 0, "the vector is masked", True)
    for event in (FileReleased("x"), irq, irq, lost, masked, DeviceRequested("a", 1)):
        summary.observe(event)
    summary.write()
    head, first, second, dma = out.getvalue().splitlines()
    assert head.split() == ["%", "time", "seconds", "us/call", "calls", "errors", "call"]
    assert first.split()[-2:] == ["1", "pread"]
    assert second.split()[-2:] == ["1", "close"]
    assert dma == "DMA: 10 bytes read, 20 written; 2 interrupts (1 more lost), 1 fault"


def test_json(run: Run) -> None:
    out = io.StringIO()
    summary = run.summary(out, as_json=True)
    run.call("pread64", 3)
    summary.write()
    facts = json.loads(out.getvalue())["summary"]
    assert facts.pop("calls")["pread"].keys() == {"calls", "errors", "seconds"}
    changes = {"plugged": 0, "unplugged": 0, "bound": 0, "unbound": 0}
    assert facts == {
        "dma_read": 10,
        "dma_written": 20,
        "interrupts": 0,
        "interrupts_lost": 0,
        "faults": 1,
        "dma_viewed": 0,
        "exchanged": 0,
        **changes,
    }


@pytest.mark.parametrize("as_json", [False, True])
def test_changes_of_the_machine(run: Run, as_json: bool) -> None:
    out = io.StringIO()
    summary = run.summary(out, as_json=as_json)
    for event in (
        DevicePlugged("a", "pci", "1"),
        DeviceBound("a", "e1000e", "1"),
        DeviceUnbound("a", "e1000e", "1"),
        DeviceBound("a", "vfio-pci", "1"),
    ):
        summary.observe(event)
    summary.write()
    if as_json:
        facts = json.loads(out.getvalue())["summary"]
        assert {"plugged": 1, "unplugged": 0, "bound": 2, "unbound": 1}.items() <= facts.items()
    else:
        assert out.getvalue().endswith("\nDevices: 1 plugged, 0 unplugged, 2 bound, 1 unbound\n")
