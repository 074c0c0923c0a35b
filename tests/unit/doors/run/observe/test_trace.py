"""What a trace writes for the calls that a program makes, and for events."""

from __future__ import annotations

import contextlib
import io
import json
import os
import struct
from collections.abc import Iterator
from typing import Any

import pytest

from support.puppet import MAP_SHARED, PAGE, PROT_READ, Stage, open_descriptors
from uvfio.core.events import (
    DeviceBound,
    DevicePlugged,
    DeviceRevoked,
    DeviceUnbound,
    DeviceUnplugged,
    Fault,
    GroupAdded,
    Interrupt,
)
from uvfio.doors.run.observe.calls import tap
from uvfio.doors.run.observe.trace import Trace
from uvfio.doors.run.session.events import FileReleased, RunEnded, RunStarted
from uvfio.uapi import rfc

CONFIG = rfc.VFIO_PCI_CONFIG_REGION_INDEX << 40
COMMON = {"call", "pid", "result", "text"}


# -- calls -----------------------------------------------------------------------------------------------


class Traced:
    """A program whose calls are traced."""

    def __init__(self, bits: int, as_json: bool) -> None:
        self.stage = Stage("exerciser@0000:07:00.0,group=7", bits=bits)
        self.puppet = self.stage.puppet
        self.out = io.StringIO()
        tap(self.stage.supervisor.handlers, self.stage.session.emit)
        self.stage.session.watch(Trace(self.stage.session, self.out, as_json=as_json).observe)

    def taken(self) -> list[str]:
        """Lines since the last time."""
        lines = self.out.getvalue().splitlines()
        self.out.seek(0)
        self.out.truncate()
        return lines

    def facts(self) -> dict[str, Any]:
        """The one line since the last time, as JSON."""
        (line,) = self.taken()
        found: dict[str, Any] = json.loads(line)
        return found

    def wide(self, offset: int) -> tuple[int, ...]:
        return (offset,) if self.puppet.bits == 64 else (offset & 0xFFFFFFFF, offset >> 32)


@pytest.fixture(params=[64, 32])
def bits(request: pytest.FixtureRequest) -> int:
    return int(request.param)


def traced(bits: int, as_json: bool) -> Iterator[Traced]:
    before = open_descriptors()
    traced = Traced(bits, as_json)
    yield traced
    traced.stage.close()
    assert open_descriptors() <= before


@pytest.fixture
def text(bits: int) -> Iterator[Traced]:
    yield from traced(bits, False)


@pytest.fixture
def as_json(bits: int) -> Iterator[Traced]:
    yield from traced(bits, True)


def test_lines(text: Traced) -> None:
    puppet = text.puppet
    pid = puppet.pid
    group = puppet.open(b"/dev/vfio/7")
    assert text.taken() == [f'{pid} openat("/dev/vfio/7") = {group}']
    at = puppet.buffer(8)
    puppet.must("ioctl", group, rfc.VFIO_GROUP_GET_FLAGS, at)
    assert text.taken() == [
        f"{pid} ioctl({group}</dev/vfio/7>, VFIO_GROUP_GET_FLAGS, [VIABLE]) = 0"
    ]
    device = text.stage.open_device(b"/dev/vfio/7", b"0000:07:00.0")
    assert text.taken()[-1] == (
        f'{pid} ioctl({device - 2}</dev/vfio/7>, VFIO_GROUP_GET_DEVICE_FD, "0000:07:00.0") = {device}'
    )
    puppet.must("pread64", device, at, 2, *text.wide(CONFIG))
    value = int.from_bytes(puppet.peek(at, 2), "little")
    shown = f"{device}<anon_inode:[vfio-device] 0000:07:00.0>"
    assert text.taken() == [f"{pid} pread({shown}, {value:#x}, 2, region 7 + 0x0) = 2"]
    puppet.must("pwrite64", device, puppet.buffer(b"\x5a"), 1, *text.wide(CONFIG + 0x3C))
    assert text.taken() == [f"{pid} pwrite({shown}, 0x5a, 1, region 7 + 0x3c) = 1"]
    puppet.must("pread64", device, puppet.buffer(100), 100, *text.wide(2 << 40))
    zeros = " ".join(["00"] * 16)
    assert text.taken() == [f"{pid} pread({shown}, {zeros}..., 100, region 2 + 0x0) = 100"]
    puppet.must("close", group)
    for fd in (device, device - 1, device - 2):
        puppet.must("close", fd)
    text.stage.session.settle()
    assert sorted(set(text.taken())) == [
        "released /dev/vfio/7",
        "released anon_inode:[vfio-device] 0000:07:00.0",
        "released anon_inode:[vfio-iommu]",
    ]


def test_failures_have_reasons(text: Traced) -> None:
    puppet = text.puppet
    assert puppet.open(b"/dev/vfio/999") < 0
    (line,) = text.taken()
    assert line.startswith(f'{puppet.pid} openat("/dev/vfio/999") = -1 ENOENT (')
    group = puppet.open(b"/dev/vfio/7")
    text.taken()
    puppet.call("ioctl", group, rfc.VFIO_GROUP_MERGE, puppet.buffer(struct.pack("<i", 0)))
    (line,) = text.taken()
    assert line == (
        f"{puppet.pid} ioctl({group}</dev/vfio/7>, VFIO_GROUP_MERGE, [0]) = "
        "-1 EINVAL (descriptor 0 is not an open VFIO group)"
    )
    puppet.call("ioctl", group, rfc.VFIO_GROUP_GET_FLAGS, 8)
    (line,) = text.taken()
    assert "= -1 EFAULT (cannot write 8 bytes at 0x8)" in line


def test_what_is_not_vfio_is_not_traced(text: Traced) -> None:
    puppet = text.puppet
    puppet.must("close", puppet.open(b"/dev/null"))
    puppet.open(b"/nonexistent")
    fd = puppet.must("memfd_create", b"plain", 0)
    number = text.stage.session.reserved[50]
    puppet.must("dup2", fd, number)
    puppet.must("write", number, puppet.buffer(b"x"), 1)
    puppet.call("ioctl", number, rfc.VFIO_DEVICE_RESET, 0)
    assert text.taken() == []


def test_a_trace_changes_nothing(text: Traced) -> None:
    """Bytes that are no text, lines in paths, arguments that do not exist."""
    puppet = text.puppet
    assert puppet.open(b"/dev/vfio/\xff\xfe") == -2
    assert puppet.open(b'/dev/vfio/a\nb\x1b[2J"') == -2
    lines = text.taken()
    assert len(lines) == 2
    assert all(line.isascii() and line.isprintable() for line in lines)
    assert puppet.call("openat", -100, 8, os.O_RDWR) == -14
    group = puppet.open(b"/dev/vfio/7")
    assert puppet.call("ioctl", group, 0x3BFF, 0) == -25
    assert puppet.call("ioctl", group, rfc.VFIO_GROUP_GET_DEVICE_FD, 8) < 0


@pytest.mark.parametrize("json_lines", [True, False])
def test_nobody_reads_it(json_lines: bool) -> None:
    """A closed pipe at the other end is not the program's business."""
    with Stage() as stage:
        reader, writer = os.pipe()
        os.close(reader)
        with contextlib.suppress(BrokenPipeError), open(writer, "w", buffering=1) as out:
            tap(stage.supervisor.handlers, stage.session.emit)
            stage.session.watch(Trace(stage.session, out, as_json=json_lines).observe)
            fd = stage.puppet.open(b"/dev/vfio/241")
            assert fd >= 0
            at = stage.puppet.buffer(8)
            assert stage.puppet.call("ioctl", fd, rfc.VFIO_GROUP_GET_FLAGS, at) == 0
            stage.puppet.must("close", fd)
            stage.session.settle()


def test_keys_of_a_call(as_json: Traced) -> None:
    puppet = as_json.puppet
    group = puppet.open(b"/dev/vfio/7")
    facts = as_json.facts()
    assert set(facts) == COMMON | {"path"}
    assert facts["path"] == "/dev/vfio/7"
    assert facts["result"] == group
    assert facts["pid"] == puppet.pid
    puppet.must("ioctl", group, rfc.VFIO_GROUP_GET_FLAGS, puppet.buffer(8))
    facts = as_json.facts()
    assert set(facts) == COMMON | {"fd", "file", "command", "argument"}
    assert facts["command"] == "VFIO_GROUP_GET_FLAGS"
    assert facts["argument"] == "[VIABLE]"
    assert (facts["fd"], facts["file"]) == (group, "/dev/vfio/7")
    puppet.call("ioctl", group, rfc.VFIO_GROUP_MERGE, puppet.buffer(struct.pack("<i", -1)))
    facts = as_json.facts()
    assert set(facts) == COMMON | {"fd", "file", "command", "argument", "errno", "reason"}
    assert (facts["result"], facts["errno"]) == (-1, "EINVAL")
    assert facts["reason"] == "-1 is no descriptor"


def test_keys_of_an_access(as_json: Traced) -> None:
    puppet = as_json.puppet
    device = as_json.stage.open_device(b"/dev/vfio/7", b"0000:07:00.0")
    as_json.taken()
    at = puppet.buffer(b"\x01\x02\x03\x04")
    puppet.must("pwrite64", device, at, 4, *as_json.wide((2 << 40) + 8))
    facts = as_json.facts()
    file = {"fd", "file", "device"}
    assert set(facts) == COMMON | file | {"offset", "region", "count", "data"}
    assert (facts["call"], facts["device"]) == ("pwrite", "0000:07:00.0")
    assert (facts["offset"], facts["region"], facts["count"]) == ((2 << 40) + 8, 2, 4)
    assert facts["data"] == "0x4030201"
    assert facts["result"] == 4
    puppet.must("read", device, at, 4)
    facts = as_json.facts()
    assert facts["call"] == "read"
    assert set(facts) == COMMON | file | {"count", "data"}  # a position is not an argument
    wide = puppet.bits == 64
    name, offset = ("mmap", 2 << 40) if wide else ("mmap2", (2 << 40) >> 12)
    mapped = puppet.must(name, 0, PAGE, PROT_READ, MAP_SHARED, device, offset)
    facts = as_json.facts()
    assert set(facts) == COMMON | file | {"offset", "region", "size"}
    assert (facts["call"], facts["offset"], facts["size"]) == ("mmap", 2 << 40, PAGE)
    assert facts["region"] == 2
    assert facts["result"] is None  # the kernel chooses where
    puppet.must("munmap", mapped, PAGE)
    puppet.must("close", device)
    as_json.stage.session.settle()
    facts = as_json.facts()
    assert facts == {
        "event": "released",
        "file": "anon_inode:[vfio-device]",
        "device": "0000:07:00.0",
    }


def test_events() -> None:
    with Stage() as stage:
        out = io.StringIO()
        trace = Trace(stage.session, out)
        fault = Fault("a", 0x9000, 4, True, "not mapped")
        for event in (
            fault,
            Interrupt("a", "INTx", 0),
            Interrupt("a", "MSI", 3),
            DeviceRevoked("a", "7"),
            GroupAdded("7", "pci", 7, 1),
            DevicePlugged("a", "pci", "7"),
            DeviceBound("a", "vfio-pci", "7"),
            DeviceUnbound("a", "vfio-pci", "7"),
            DeviceUnplugged("a", "7"),
            FileReleased("anon_inode:[vfio-device]", "a"),
            FileReleased("/dev/vfio/7"),
            RunStarted(5),
            RunEnded(0),
        ):
            trace.observe(event)
        assert out.getvalue().splitlines() == [
            "dma a fault iova 0x9000 write: not mapped",
            "irq a INTx",
            "irq a MSI 3",
            "revoke device=a group=7",
            "group-added group=7 bus=pci number=7 minor=1",
            "plug device=a bus=pci group=7",
            "bind device=a driver=vfio-pci group=7",
            "unbind device=a driver=vfio-pci group=7",
            "unplug device=a group=7",
            "released anon_inode:[vfio-device] a",
            "released /dev/vfio/7",
        ]
        out = io.StringIO()
        Trace(stage.session, out, as_json=True).observe(fault)
        assert out.getvalue() == (
            '{"event": "fault", "device": "a", "iova": 36864, "size": 4, "write": true, '
            '"reason": "not mapped"}\n'
        )
