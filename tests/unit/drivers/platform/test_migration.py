"""Migration of platform devices: by the driver, and by the features of their device files."""

from __future__ import annotations

import errno
import struct
from pathlib import Path

import pytest

from support.mainline import Desk, refused
from uvfio.core.bus import Activity
from uvfio.doors.local import Process
from uvfio.machine.machine import Machine
from uvfio.uapi import vfio
from uvfio.uapi import vfio_feature as features

MODEL = '''
"""A counter that counts by itself, for migration."""

from uvfio.kit import Option, Register, RegisterMap
from uvfio.kit.platform import LevelLine, MemoryRegion, PlatformModel, RegisterRegion


class Registers(RegisterMap):
    value = Register(0x0)
    start = Register(0x4, access="wo")


class Counter(PlatformModel):
    """Counts once a second after a write to start; interrupts at 3."""

    compatible = ("acme,counter",)
    moves = Option(bool, True, "whether it migrates")
    regs = RegisterRegion(0, Registers)
    ram = MemoryRegion(1, 4096)
    done = LevelLine(0)

    def on_reset(self):
        self.own = 0

    @property
    def migratable(self):
        return self.moves

    @Registers.start.on_write
    def begin(self, value):
        self.own = value
        self.after(1, self.tick)

    def tick(self):
        self.regs.value += 1
        self.done.set(self.regs.value >= 3)
        self.after(1, self.tick)

    def save(self):
        return self.own.to_bytes(4, "little")

    def load(self, state):
        self.own = int.from_bytes(state, "little")
'''

GET, SET, PROBE = (
    features.VFIO_DEVICE_FEATURE_GET,
    features.VFIO_DEVICE_FEATURE_SET,
    features.VFIO_DEVICE_FEATURE_PROBE,
)
STATE = features.VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE
STOP, RUNNING, STOP_COPY, RESUMING = 1, 2, 3, 4
RAM = 1 << 40
TRIGGER_EVENT = 32 | 4


class Bench(Desk):
    """Two counters that migrate and one that does not."""

    def __init__(self, model: Path) -> None:
        places = ("/soc/a@10000000", "/soc/b@20000000", "/soc/c@30000000")
        self.machine = Machine(
            devices=[
                f"{model}:Counter@{places[0]},group=1",
                f"{model}:Counter@{places[1]},group=2",
                f"{model}:Counter@{places[2]},group=3,moves=false",
            ]
        )
        self.framework = self.machine.framework
        self.me = Process(self.machine, name="me", abi="mainline")
        self.processes = [self.me]
        groups = [self.me.open(f"/dev/vfio/{n}") for n in (1, 2, 3)]
        self.box = self.container(*groups)
        names = ("10000000.a", "20000000.b", "30000000.c")
        self.a, self.b, self.c = (
            self.device(group, name) for group, name in zip(groups, names, strict=True)
        )

    def feature(self, fd: int, flags: int, data: bytes = b"") -> bytes:
        argument = bytearray(vfio.HEAD.pack(8 + len(data), flags) + data)
        self.me.ioctl(fd, vfio.VFIO_DEVICE_FEATURE, argument)
        return bytes(argument[8:])

    def go(self, fd: int, state: int) -> int:
        answer = self.feature(fd, SET | STATE, struct.pack("<Ii", state, 99))
        return int(struct.unpack("<Ii", answer)[1])

    def value(self, fd: int) -> int:
        return int(struct.unpack("<I", self.me.pread(fd, 4, 0))[0])


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    model = tmp_path / "counter.py"
    model.write_text(MODEL)
    return Bench(model)


def test_the_state_moves_to_another_device(bench: Bench) -> None:
    me, clock = bench.me, bench.machine.clock
    me.pwrite(bench.a, struct.pack("<I", 0x77), 4)
    me.pwrite(bench.a, b"memory", RAM)
    clock.advance(2)  # type: ignore[attr-defined]
    assert bench.value(bench.a) == 2
    data = bench.go(bench.a, STOP_COPY)
    clock.advance(5)  # type: ignore[attr-defined]
    stream = b"".join(iter(lambda: me.read(data, 1 << 16), b""))
    fd, event = bench.event()
    bench.set_irqs(bench.b, 0, TRIGGER_EVENT, data=struct.pack("<i", fd))
    into = bench.go(bench.b, RESUMING)
    assert me.write(into, stream) == len(stream)
    me.close(into)
    bench.go(bench.b, RUNNING)
    assert bench.value(bench.b) == 2, "time stood still while it was stopped"
    assert me.pread(bench.b, 6, RAM) == b"memory"
    assert bench.machine.device("20000000.b").own == 0x77  # type: ignore[union-attr]
    assert event.take() == 0
    clock.advance(1)  # type: ignore[attr-defined]
    assert bench.value(bench.b) == 3
    assert event.take() == 1


def test_an_interrupt_that_is_up_is_up_on_the_other_side(bench: Bench) -> None:
    me = bench.me
    me.pwrite(bench.a, struct.pack("<I", 1), 4)
    bench.machine.clock.advance(3)  # type: ignore[attr-defined]
    data = bench.go(bench.a, STOP_COPY)
    stream = b"".join(iter(lambda: me.read(data, 1 << 16), b""))
    fd, event = bench.event()
    bench.set_irqs(bench.b, 0, TRIGGER_EVENT, data=struct.pack("<i", fd))
    me.write(bench.go(bench.b, RESUMING), stream)
    bench.go(bench.b, RUNNING)
    assert event.take() == 1


def test_data_of_another_kind_are_refused(bench: Bench) -> None:
    into = bench.go(bench.b, RESUMING)
    with pytest.raises(OSError) as refusal:
        bench.me.write(into, b"nonsense" * 8)
    assert refusal.value.errno == errno.EINVAL
    assert bench.value(bench.b) != 2


def test_a_model_that_does_not_take_part_has_no_such_feature(bench: Bench) -> None:
    for number in features.FEATURES:
        with refused(bench, errno.ENOTTY):
            bench.feature(bench.c, PROBE | GET | number)


def test_what_only_pci_has_stays_refused(bench: Bench) -> None:
    for number in set(features.FEATURES) - set(features.MIGRATION_FEATURES):
        with refused(bench, errno.ENOTTY):
            bench.feature(bench.a, PROBE | SET | number)


def test_the_last_close_ends_the_session(bench: Bench) -> None:
    bench.go(bench.a, STOP)
    model = bench.machine.device("10000000.a")
    seen = [model.activity]
    bench.me.close(bench.a)
    seen.append(model.activity)
    assert seen == [Activity.STOPPED, Activity.FULL]


def test_a_reset_ends_the_session(bench: Bench) -> None:
    bench.go(bench.a, STOP)
    bench.me.ioctl(bench.a, vfio.VFIO_DEVICE_RESET)
    state = bench.feature(bench.a, GET | STATE, bytes(8))
    assert struct.unpack("<Ii", state)[0] == RUNNING
    assert bench.machine.device("10000000.a").activity is Activity.FULL
