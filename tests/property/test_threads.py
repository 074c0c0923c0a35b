"""Eight threads at once: no deadlock, no lost wake-up, and nothing left over.

Each thread makes a bounded number of operations, drawn from its own seed. Refusals are part of the game; any
other exception, a thread that does not come back, or a trace that is left when all programs are dead is
a failure. The interpreter is told to switch threads as often as it can.
"""

from __future__ import annotations

import faulthandler
import sys
import threading
import time
from collections.abc import Callable, Iterator
from random import Random

import pytest

from support.world import (
    PAGE,
    FakeBound,
    SparseMemory,
    World,
    device_fd,
    group_flags,
    iommu_fd,
    map_dma,
    merge,
    unmap_dma,
    unmerge,
)
from uvfio.core.seams import Mm
from uvfio.core.translation.domain import Domain
from uvfio.core.translation.rules_2011 import Rules2011
from uvfio.doors.local import Process
from uvfio.errors import LimitExceeded, VfioError
from uvfio.fops.file import File
from uvfio.fops.rfc2011.device import DeviceFile
from uvfio.fops.rfc2011.iommu import IommuFile

THREADS = 8
OPERATIONS = 2000
PACE = 40  # operations of programs for each one of an administrator
PATIENCE = 60.0  # seconds after which a thread is taken for dead
GROUPS = {1: ("a1", "a2"), 2: ("b",), 3: ("c",)}
NODE = "/dev/vfio/"
DEVICES = [name for names in GROUPS.values() for name in names]


@pytest.fixture(autouse=True)
def restless() -> Iterator[None]:
    """As many switches between threads as possible."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def run_together(*bodies: Callable[[], None]) -> None:
    """Run all of them at once, to their end. Their exceptions are ours."""
    failures: list[BaseException] = []
    start = threading.Barrier(len(bodies))

    def guarded(body: Callable[[], None]) -> None:
        try:
            start.wait(PATIENCE)
            body()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(body,), daemon=True) for body in bodies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    if any(thread.is_alive() for thread in threads):
        faulthandler.dump_traceback(all_threads=True)
        pytest.fail("a thread is stuck; the stacks are on standard error")
    if failures:
        raise failures[0]


class Pace:
    """Lets an administrator do something when programs have done enough, and all the rest at their end."""

    def __init__(self) -> None:
        self._permits = threading.Semaphore(0)

    def program_did(self, operations: int) -> None:
        if operations % PACE == 0:
            self._permits.release()

    def program_ended(self) -> None:
        self._permits.release(OPERATIONS)

    def wait(self) -> None:
        assert self._permits.acquire(timeout=PATIENCE)


class Program:
    """One program, driven by one thread."""

    def __init__(self, world: World, seed: int, pace: Pace) -> None:
        self.pace = pace
        self.process = world.process(f"program {seed}", memlock=64 * PAGE)
        self.buffer = self.process.memory.allocate(16 * PAGE)
        self.random = Random(seed)
        self.done = 0
        self.verbs: list[tuple[Callable[[Process], object], int]] = [
            (self.open_group, 16),
            (self.close, 12),
            (lambda p: iommu_fd(p, self.group()), 6),
            (self.open_device, 16),
            (lambda p: merge(p, self.group(), self.group()), 8),
            (lambda p: unmerge(p, self.group(), self.group()), 4),
            (lambda p: group_flags(p, self.group()), 2),
            (lambda p: map_dma(p, self.fd(IommuFile), self.iova(), PAGE, self.buffer), 8),
            (lambda p: unmap_dma(p, self.fd(IommuFile), self.iova(), 4 * PAGE), 6),
            (lambda p: p.pread(self.fd(DeviceFile), 4, 0), 16),
            (lambda p: p.exit(), 1),
        ]

    def fd(self, kind: type[File] = File) -> int:
        table = self.process._fds
        return self.random.choice([fd for fd in table if isinstance(table[fd].file, kind)] or [99])

    def group(self) -> int:
        table = self.process._fds
        files = {fd: table[fd].file for fd in table}
        groups = [fd for fd, f in files.items() if isinstance(f, File) and f.name.startswith(NODE)]
        return self.random.choice(groups or [99])

    def iova(self) -> int:
        return self.random.randrange(16) * PAGE

    def open_group(self, process: Process) -> None:
        process.open(f"/dev/vfio/{self.random.choice(list(GROUPS))}")

    def open_device(self, process: Process) -> None:
        fd = self.group()
        file = process.file(fd)
        assert isinstance(file, File)
        number = int(file.name.removeprefix(NODE))
        device_fd(process, fd, self.random.choice(GROUPS[number]))

    def close(self, process: Process) -> None:
        process.close(self.fd())

    def __call__(self) -> None:
        verbs, weights = zip(*self.verbs, strict=True)
        for count, verb in enumerate(self.random.choices(verbs, weights, k=OPERATIONS)):
            try:
                verb(self.process)
                self.done += 1
            except VfioError:
                pass
            self.pace.program_did(count)
        self.process.exit()
        self.pace.program_ended()


def watch(bound: FakeBound) -> None:
    """A device that is used must be enabled, from the beginning of a call to its end."""

    def on_call(method: str) -> None:
        for _ in range(3):
            time.sleep(0)  # let somebody else run, here of all places
            if method not in ("get", "put", "request"):
                assert bound.enabled > 0, f"{method} of a device that is not enabled"

    bound.on_call = on_call


class Administrator:
    """Takes devices away and brings them back, politely (it waits as long as it takes) or not."""

    def __init__(self, world: World, names: list[str], seed: int, pace: Pace) -> None:
        self.world = world
        self.pace = pace
        self.names = names
        self.random = Random(seed)
        self.bounds: list[FakeBound] = []

    def __call__(self) -> None:
        for _ in range(OPERATIONS // PACE * 3):
            self.pace.wait()
            name = self.random.choice(self.names)
            how = self.random.choice(["wait", "wait", "now", "revoke", "pull"])
            try:
                if how == "wait":
                    self.world.unbind(name, timeout=None, interval=3600.0)
                elif how == "now":
                    self.world.unbind(name)
                elif how == "revoke":
                    self.world.unbind(name, revoke=True)
                else:
                    self.world.unplug(name)
                    self.world.unbind(name, revoke=True)
            except VfioError:
                pass
            self.restore(name)

    def restore(self, name: str) -> None:
        try:
            self.world.framework.add_device(self.world.devices[name], self.world.driver)
            bound = self.world.bind(name)
            watch(bound)
            self.bounds.append(bound)
        except VfioError:
            pass


def check_nothing_is_left(world: World, *administrators: Administrator) -> None:
    framework = world.framework
    for group in framework.groups:
        assert group.iommu is None
        assert not group.is_open
        for device in group.devices:
            assert not device.in_use
            assert not device.attached
            assert device.departing == device.gone == 0
    everything = [bound for each in administrators for bound in each.bounds]
    for bound in [*world.bounds.values(), *everything]:
        assert bound.gets == bound.puts
    for dev in world.devices.values():
        assert dev.domain is None
    for process in world.processes:
        assert process.mm.locked_pages == 0
    minors = [group.minor for group in framework.groups]
    assert len(set(minors)) == len(minors)


@pytest.mark.parametrize("seed", range(4))
def test_programs_and_administrators_leave_nothing_behind(seed: int) -> None:
    world = World()
    for number, names in GROUPS.items():
        for name in names:
            world.plug(name, number)
            watch(world.bounds[name])
    pace = Pace()
    administrators = [
        Administrator(world, ["a1", "b"], seed, pace),
        Administrator(world, ["a2", "c"], seed + 1, pace),
    ]
    programs = [Program(world, 10 * seed + n, pace) for n in range(THREADS - len(administrators))]
    run_together(*programs, *administrators)
    assert all(program.done > OPERATIONS // 10 for program in programs), "refusals only"
    check_nothing_is_left(world, *administrators)
    for name in DEVICES:
        administrators[0].restore(name)
    for number in GROUPS:
        assert world.group(number).viable


@pytest.mark.parametrize("seed", range(2))
def test_every_waiting_unbind_is_woken(seed: int) -> None:
    """Each waiter would look again by itself only after an hour."""
    world = World()
    for number, names in GROUPS.items():
        for name in names:
            world.plug(name, number)

    def churn(name: str) -> Callable[[], None]:
        def body() -> None:
            for _ in range(OPERATIONS // PACE):
                pace.wait()
                world.unbind(name, timeout=None, interval=3600.0)
                world.bind(name)

        return body

    pace = Pace()
    programs = [Program(world, 100 * seed + n, pace) for n in range(THREADS - len(DEVICES))]
    run_together(*programs, *map(churn, DEVICES))
    check_nothing_is_left(world)


def test_domains_of_one_owner_never_exceed_its_limit_together() -> None:
    memory = SparseMemory()
    owner = Mm(memory, "owner")
    limit = 10
    seen: list[int] = []
    memory.on_pin = lambda: seen.append(owner.locked_pages)

    def user(seed: int) -> Callable[[], None]:
        def body() -> None:
            random, domain = Random(seed), Domain()
            for n in range(OPERATIONS):
                pages = random.randrange(1, 5)
                try:
                    Rules2011(domain).map(
                        n << 20, pages * PAGE, 0, owner, limit * PAGE, writable=True
                    )
                except LimitExceeded:
                    Rules2011(domain).unmap(0, n << 20)
            domain.close()

        return body

    run_together(*(user(seed) for seed in range(THREADS)))
    assert owner.locked_pages == 0
    assert max(seen) <= limit


def test_one_domain_serves_maps_unmaps_and_accesses_at_once() -> None:
    domain, memory = Domain(), SparseMemory()
    owner = Mm(memory, "owner")

    def mapper(page: int) -> Callable[[], None]:
        def body() -> None:
            for _ in range(OPERATIONS):
                Rules2011(domain).map(page * PAGE, PAGE, page * PAGE, owner, None, writable=True)
                domain.dma_write("edu", page * PAGE, page.to_bytes(4, "little"))
                assert domain.dma_read("edu", page * PAGE, 4) == page.to_bytes(4, "little")
                assert Rules2011(domain).unmap(page * PAGE, PAGE) == PAGE

        return body

    run_together(*(mapper(page) for page in range(THREADS)))
    assert len(domain.mappings) == 0
    assert domain.fault_count == 0
    assert owner.locked_pages == 0
