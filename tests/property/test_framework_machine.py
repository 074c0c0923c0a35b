"""The framework against a model that is nothing but the sentences of the specification.

``Model`` has files, groups, sets of groups and owners as plain lists and dictionaries and keeps no counters: whether
something is in use, viable or held is asked from scratch each time. Every rule first asks the model what must
happen (an errno, or the change), then does it to the real thing through system calls of local processes, and
every invariant compares everything that can be seen. A call that is refused must change nothing at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from errno import EBADF, EBUSY, EINVAL, EMFILE, ENODEV, ENOENT, ENOMEM, ENOSPC, ENOTTY, EPERM
from inspect import signature
from random import Random
from typing import Any, Final

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from support.world import (
    PAGE,
    FakeBusDevice,
    World,
    device_fd,
    group_flags,
    iommu_fd,
    map_dma,
    merge,
    name_of,
    unmap_dma,
    unmerge,
)
from uvfio.core.structure.group import Group
from uvfio.core.structure.lifetime import State
from uvfio.core.translation.unit import IommuUnit
from uvfio.doors.local import Process
from uvfio.errors import NoSpace

Key = tuple[str, int]
Errors = set[int]

PLACES: Final[dict[str, tuple[Key, bool]]] = {  # name: (group, coherent)
    "a1": (("pci", 1), True),
    "a2": (("pci", 1), True),
    "b": (("pci", 2), True),
    "c": (("pci", 3), False),
    "d": (("pci", 4), True),
    "e": (("pci", 5), True),
    "p": (("platform", 1), True),
}
NAMES: Final = sorted(PLACES)
KEYS: Final = sorted({key for key, _ in PLACES.values()})
MAX_FILES: Final = 16  # descriptors 3 to 15
MAX_PROCESSES: Final = 4
LOCKED_PAGES: Final = 5


# -- the model -----------------------------------------------------------------------------------


LIVES = {  # of a context, by (a set, in use)
    (False, False): State.CLOSED,
    (False, True): State.OPEN,
    (True, False): State.CLOSED_SET,
    (True, True): State.OPEN_SET,
}


@dataclass(eq=False)
class ModelFile:
    """An open file: who opened it, what it leads to, which (process, fd) lead to it."""

    kind: str  # "group", "iommu", "device"
    opener: int
    group: Key | None = None
    device: str | None = None
    joint: ModelSet | None = None
    merged_through: bool = False
    revoked: bool = False
    refs: set[tuple[int, int]] = field(default_factory=set)
    real: object = None


@dataclass(eq=False)
class ModelSet:
    """Groups that share a context, newest first."""

    groups: list[Key]
    owner: int | None = None
    pages: dict[int, int] = field(default_factory=dict)  # iova page -> process that pays


@dataclass(eq=False)
class ModelGroup:
    minor: int
    node: str
    devices: list[str] = field(default_factory=list)


class Model:
    def __init__(self) -> None:
        self.groups: dict[Key, ModelGroup] = {}
        self.bound: set[str] = set()
        self.gone: set[str] = set()
        self.tainted: set[str] = set()
        self.sets: list[ModelSet] = []
        self.files: list[ModelFile] = []
        self.fds: list[dict[int, ModelFile]] = []
        self.attach_fails: set[str] = set()
        self.get_fails: set[str] = set()

    # questions, asked from scratch

    def added(self, name: str) -> bool:
        return any(name in group.devices for group in self.groups.values())

    def set_of(self, key: Key) -> ModelSet | None:
        return next((s for s in self.sets if key in s.groups), None)

    def its_set(self, file: ModelFile) -> ModelSet:
        assert file.group is not None
        found = self.set_of(file.group)
        assert found is not None
        return found

    def live(self, kind: str) -> Iterator[ModelFile]:
        return (f for f in self.files if f.kind == kind and f.refs and not f.revoked)

    def group_files(self, key: Key) -> list[ModelFile]:
        return [f for f in self.live("group") if f.group == key]

    def device_files(self, key: Key) -> list[ModelFile]:
        names = self.groups[key].devices
        return [f for f in self.live("device") if f.device in names]

    def in_use(self, s: ModelSet) -> bool:
        return any(f.joint is s for f in self.live("iommu")) or any(
            self.device_files(key) for key in s.groups
        )

    def used(self, key: Key) -> bool:
        s = self.set_of(key)
        return s is not None and self.in_use(s)

    def devices(self, s: ModelSet) -> list[str]:
        return [name for key in s.groups for name in self.groups[key].devices]

    def viable(self, key: Key) -> bool:
        names = self.groups[key].devices
        return bool(names) and all(n in self.bound and n not in self.tainted for n in names)

    def locked(self, process: int) -> int:
        return sum(payer == process for s in self.sets for payer in s.pages.values())

    def unviable(self, s: ModelSet) -> Errors:
        """Why nobody may begin to use the set. Two reasons of equal rank: either may be told."""
        errors = {ENODEV for key in s.groups if not self.groups[key].devices}
        names = self.devices(s)
        errors |= {EBUSY for n in names if n not in self.bound or n in self.tainted}
        return errors or {ENODEV for n in names if n in self.gone}

    def cannot_open(self, s: ModelSet) -> Errors:
        if self.in_use(s):
            return self.unviable(s)
        return self.unviable(s) or {ENOSPC for n in self.devices(s) if n in self.attach_fails}

    def could_merge(self, a: Key | None, b: Key | None) -> bool:
        """Whether it is worth trying: the groups exist apart, on one bus, and the second is idle."""
        if a is None or b is None or a[0] != b[0]:
            return False
        s, t = self.set_of(a), self.set_of(b)
        return s is not None and t is not None and s is not t and not self.in_use(t)

    def free_fd(self, process: int) -> int | None:
        free = set(range(3, MAX_FILES)) - set(self.fds[process])
        return min(free, default=None)

    def full(self, process: int) -> Errors:
        return {EMFILE} if self.free_fd(process) is None else set()

    def foreign(self, s: ModelSet, process: int) -> Errors:
        return {EPERM} if s.owner not in (None, process) else set()

    # changes

    def open(self, process: int, file: ModelFile) -> None:
        self.files.append(file)
        self.add_ref(process, file)

    def add_ref(self, process: int, file: ModelFile) -> int:
        fd = self.free_fd(process)
        assert fd is not None
        self.fds[process][fd] = file
        file.refs.add((process, fd))
        return fd

    def close(self, process: int, fd: int) -> None:
        file = self.fds[process].pop(fd)
        file.refs.remove((process, fd))
        if file.refs or file.revoked:
            return
        if file.kind == "group":
            assert file.group is not None
            self.settle(self.set_of(file.group))
            self.collect(file.group)
        elif file.kind == "iommu":
            self.settle(file.joint)
        else:
            assert file.device is not None
            self.settle(self.set_of(PLACES[file.device][0]))

    def settle(self, s: ModelSet | None) -> None:
        """What follows from any close: membership, mappings, ownership, in this order."""
        if s is None:
            return
        for key in list(s.groups):
            held = any(f.opener == s.owner or f.merged_through for f in self.group_files(key))
            if len(s.groups) > 1 and not held and not self.device_files(key):
                self.leave(s, key)
        if not self.in_use(s):
            s.pages.clear()
        if len(s.groups) > 1:
            return
        [key] = s.groups
        for file in self.group_files(key):
            file.merged_through = False
        if not self.in_use(s):
            s.owner = None
            if not self.group_files(key):
                self.sets.remove(s)

    def leave(self, s: ModelSet, key: Key) -> None:
        s.groups.remove(key)
        for file in self.group_files(key):
            file.merged_through = False
        if self.group_files(key):
            self.sets.append(ModelSet([key]))

    def collect(self, key: Key) -> None:
        group = self.groups.get(key)
        if group and not group.devices and not self.group_files(key):
            for s in self.sets:
                assert key not in s.groups
            del self.groups[key]

    def create_group(self, key: Key) -> None:
        taken = {group.minor for group in self.groups.values()}
        nodes = {group.node for group in self.groups.values()}
        node = str(key[1]) if str(key[1]) not in nodes else f"{key[0]}:{key[1]}"
        minor = next(n for n in range(len(taken) + 1) if n not in taken)
        self.groups[key] = ModelGroup(minor, node)

    def remove_device(self, name: str) -> None:
        key = PLACES[name][0]
        self.groups[key].devices.remove(name)
        for state in (self.bound, self.gone, self.tainted):
            state.discard(name)
        self.settle(self.set_of(key))
        self.collect(key)

    def revoke(self, key: Key) -> None:
        s = self.set_of(key)
        for file in self.device_files(key):
            file.revoked = True
        if s is None:
            return
        self.settle(s)
        s = self.set_of(key)
        if s is None:
            return
        if len(s.groups) > 1:
            self.leave(s, key)
        else:
            for file in self.live("iommu"):
                file.revoked |= file.joint is s
        self.settle(s)


# -- the machine ---------------------------------------------------------------------------------

names = st.sampled_from(NAMES)
processes = st.integers(0, MAX_PROCESSES - 1)
choices = st.integers(0, 23)
rarely = st.integers(0, 9).map(lambda n: n == 9)
sometimes = st.integers(0, 2).map(lambda n: n == 2)


class FrameworkMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.model = Model()
        self.units = {True: IommuUnit("one"), False: IommuUnit("two", coherent=False)}
        for name, ((bus, number), coherent) in PLACES.items():
            unit = self.units[coherent]
            self.world.devices[name] = FakeBusDevice(name, number, bus=bus, unit=unit)
        self.buffers: list[int] = []
        self.new_process()
        self.new_process()

    @initialize(
        missing=st.sets(names, max_size=2),
        unbound=st.sets(names, max_size=2),
        opens=st.lists(
            st.tuples(st.sampled_from([0, 0, 1]), st.integers(0, len(KEYS) - 1)),
            min_size=2,
            max_size=10,
        ),
    )
    def begin(self, missing: set[str], unbound: set[str], opens: list[tuple[int, int]]) -> None:
        """Somewhere in the middle of a life, so that short programs reach far."""
        for name in NAMES:
            if name not in missing:
                self.add(name)
                if name not in unbound:
                    self.bind(name)
        for process, which in opens:
            self.open_group(process, which)

    def new_process(self) -> None:
        process = self.world.process(f"p{len(self.buffers)}", memlock=LOCKED_PAGES * PAGE)
        process.max_files = MAX_FILES
        self.buffers.append(process.memory.allocate(16 * PAGE))
        self.model.fds.append({})

    def process(self, index: int) -> tuple[int, Process]:
        index %= len(self.world.processes)
        return index, self.world.processes[index]

    def pick(
        self,
        choice: int,
        kind: str,
        wild: bool,
        better: Callable[[int, ModelFile], bool] = lambda index, file: True,
    ) -> tuple[int, Process, int]:
        """Some process and a descriptor of it: of this kind, or anything, as far as there is one."""
        every = [(i, fd, t[fd]) for i, t in enumerate(self.model.fds) for fd in sorted(t)]
        fitting = [(i, fd, f) for i, fd, f in every if wild or f.kind == kind]
        best = [(i, fd, f) for i, fd, f in fitting if wild or better(i, f)]
        some = [(i, fd) for i, fd, _ in best or fitting] or [(choice % len(self.buffers), 99)]
        index, fd = some[choice % len(some)]
        return index, self.world.processes[index], fd

    def partner(
        self, index: int, fd: int, choice: int, wild: bool, better: Callable[[Key, Key], bool]
    ) -> int:
        """Another descriptor of the process: of another group, or anything."""
        table = self.model.fds[index]
        mine = table.get(fd)
        some = [-1, 99, *sorted(table)]
        own = mine.group if mine else None
        if own and not wild:
            others = [(n, f.group) for n, f in sorted(table.items()) if f.group not in (None, own)]
            best = [n for n, group in others if better(own, group)]
            some = best or [n for n, _ in others] or some
        return some[choice % len(some)]

    def attempt(self, expected: Errors, call: Callable[[], object]) -> object:
        """Do it. If errors are expected, one of them must come and nothing may change."""
        if not expected:
            return call()
        before = self.world.snapshot()
        with pytest.raises(OSError) as caught:
            call()
        told = caught.value
        assert told.errno in expected, f"{told!r}: expected {[name_of(e) for e in expected]}"
        assert self.world.snapshot() == before
        return None

    def wrong_file(self, index: int, fd: int, kind: str) -> Errors:
        """Errors of a call to a descriptor that is closed or leads to another kind of file."""
        file = self.model.fds[index].get(fd)
        if file is None:
            return {EBADF}
        if file.kind == kind:
            return set()
        foreign = self.model.foreign(self.model.its_set(file), index) if file.group else set[int]()
        return foreign or {ENOTTY}

    # the driver's side

    @rule(name=names)
    def add(self, name: str) -> None:
        model, dev = self.model, self.world.devices[name]
        if model.added(name):
            before = self.world.snapshot()
            self.world.framework.add_device(dev, self.world.driver)
            assert self.world.snapshot() == before
            return
        key = PLACES[name][0]
        if key not in model.groups:
            model.create_group(key)
        model.groups[key].devices.insert(0, name)
        if model.used(key) and name in model.attach_fails:
            model.tainted.add(name)
            with pytest.raises(NoSpace):
                self.world.framework.add_device(dev, self.world.driver)
        else:
            self.world.framework.add_device(dev, self.world.driver)

    @rule(name=names)
    def bind(self, name: str) -> None:
        model = self.model
        if not model.added(name):
            errors = {EINVAL}
        elif name in model.gone:
            errors = {ENODEV}
        elif name in model.bound:
            errors = {EBUSY}
        else:
            late = name in model.tainted and model.used(PLACES[name][0])
            errors = {ENOSPC} if late and name in model.attach_fails else set()
        self.attempt(errors, lambda: self.world.bind(name))
        if not errors:
            model.bound.add(name)
            model.tainted.discard(name)
            model.get_fails.discard(name)

    @rule(name=names, really=sometimes)
    def unbind(self, name: str, really: bool) -> None:
        model = self.model
        if not really:
            return
        errors = {EBUSY} if model.used(PLACES[name][0]) else set[int]()
        if name not in model.bound:
            errors = {EINVAL}
        self.attempt(errors, lambda: self.world.unbind(name))
        if not errors:
            self.unbound(name)

    @rule(name=names, really=rarely)
    def unbind_by_force(self, name: str, really: bool) -> None:
        if not really:
            return
        model = self.model
        errors = {EINVAL} if name not in model.bound else set()
        self.attempt(errors, lambda: self.world.unbind(name, revoke=True))
        if not errors:
            if model.used(PLACES[name][0]):
                model.revoke(PLACES[name][0])
            self.unbound(name)

    def unbound(self, name: str) -> None:
        self.model.bound.remove(name)
        if name in self.model.gone:
            self.model.remove_device(name)

    @rule(name=names, really=sometimes)
    def unplug(self, name: str, really: bool) -> None:
        if not really:
            return
        errors = {ENODEV} if not self.model.added(name) else set()
        self.attempt(errors, lambda: self.world.unplug(name))
        if errors:
            return
        if name in self.model.bound:
            self.model.gone.add(name)
        else:
            self.model.remove_device(name)

    @rule(name=names, attach=st.booleans(), really=rarely)
    def sabotage_sometimes(self, name: str, attach: bool, really: bool) -> None:
        if really or name in self.model.attach_fails | self.model.get_fails:
            self.sabotage(name, attach)

    def sabotage(self, name: str, attach: bool) -> None:
        """From now on (or no longer) the IOMMU or the driver refuses the device."""
        if attach:
            self.model.attach_fails ^= {name}
            failing = name in self.model.attach_fails
            self.world.devices[name].attach_error = (
                NoSpace("the IOMMU is full") if failing else None
            )
            return
        bound = self.world.bounds.get(name)
        if bound:
            self.model.get_fails ^= {name}
            if name in self.model.get_fails and name in self.model.bound:
                bound.errors["get"] = NoSpace("no resources")
            else:
                self.model.get_fails.discard(name)
                bound.errors.clear()

    # programs: files

    @rule(p=processes, which=st.integers(0, len(KEYS) - 1), really=sometimes)
    def open_group_sometimes(self, p: int, which: int, really: bool) -> None:
        if really:
            self.open_group(p, which)

    def open_group(self, p: int, which: int) -> None:
        index, process = self.process(p)
        key = KEYS[which]
        group = self.model.groups.get(key)
        errors = self.model.full(index) if group else {ENOENT}
        node = group.node if group else "77"
        self.attempt(errors, lambda: process.open(f"/dev/vfio/{node}"))
        if not errors:
            if self.model.set_of(key) is None:
                self.model.sets.append(ModelSet([key]))
            self.opened(index, ModelFile("group", index, group=key))

    def opened(self, index: int, file: ModelFile) -> None:
        self.model.open(index, file)
        [(_, fd)] = file.refs
        file.real = self.world.processes[index].file(fd)

    @rule(choice=choices)
    def close(self, choice: int) -> None:
        index, process, fd = self.pick(choice, "", wild=True)
        errors = {EBADF} if fd not in self.model.fds[index] else set()
        self.attempt(errors, lambda: process.close(fd))
        if not errors:
            self.model.close(index, fd)

    @rule(choice=choices, to=processes)
    def send(self, choice: int, to: int) -> None:
        """To itself it is dup."""
        index, process, fd = self.pick(choice, "", wild=True)
        receiver, other = self.process(to)
        file = self.model.fds[index].get(fd)
        errors = self.model.full(receiver) if file else {EBADF}
        self.attempt(errors, lambda: process.send(fd, other))
        if file and not errors:
            self.model.add_ref(receiver, file)

    @rule(p=processes)
    def fork(self, p: int) -> None:
        index, process = self.process(p)
        if len(self.buffers) == MAX_PROCESSES:
            return
        child = len(self.buffers)
        self.world.fork(process)
        self.buffers.append(self.buffers[index])
        self.model.fds.append(dict(self.model.fds[index]))
        for fd, file in self.model.fds[child].items():
            file.refs.add((child, fd))

    @rule(p=processes, really=rarely)
    def exit(self, p: int, really: bool) -> None:
        if not really:
            return
        index, process = self.process(p)
        process.exit()
        for fd in list(self.model.fds[index]):
            self.model.close(index, fd)

    # programs: groups

    @rule(choice=choices, second=choices, wild=rarely)
    def merge(self, choice: int, second: int, wild: bool) -> None:
        model = self.model
        fits = model.could_merge
        index, process, fd = self.pick(
            choice,
            "group",
            wild,
            lambda i, f: (
                not model.foreign(model.its_set(f), i)
                and any(fits(f.group, g.group) for g in model.fds[i].values())
            ),
        )
        other = self.partner(index, fd, second, wild, fits)
        errors = self.merge_errors(index, fd, other)
        self.attempt(errors, lambda: merge(process, fd, other))
        if not errors:
            a, b = model.fds[index][fd], model.fds[index][other]
            into, old = model.its_set(a), model.its_set(b)
            model.sets.remove(old)
            into.groups[:0] = old.groups
            into.owner = index
            a.merged_through = b.merged_through = True
            model.settle(into)

    def pair_errors(self, index: int, fd: int, other: int) -> Errors:
        """What MERGE and UNMERGE have in common."""
        model, table = self.model, self.model.fds[index]
        if wrong := self.wrong_file(index, fd, "group"):
            return wrong
        if foreign := model.foreign(model.its_set(table[fd]), index):
            return foreign
        if other < 0:
            return {EINVAL}
        if other not in table:
            return {EBADF}
        same = table[other].kind == "group" and table[other].group == table[fd].group
        return {EINVAL} if table[other].kind != "group" or same else set()

    def merge_errors(self, index: int, fd: int, other: int) -> Errors:
        model = self.model
        if errors := self.pair_errors(index, fd, other):
            return errors
        a, b = model.fds[index][fd], model.fds[index][other]
        assert a.group
        assert b.group
        into, old = model.its_set(a), model.its_set(b)
        if into is old or len(old.groups) > 1 or model.in_use(old) or a.group[0] != b.group[0]:
            return {EINVAL}
        if errors := model.cannot_open(old) or model.cannot_open(into):
            return errors
        coherent = {all(PLACES[n][1] for n in model.devices(s)) for s in (into, old)}
        return {EINVAL} if len(coherent) > 1 else set()

    @rule(choice=choices, second=choices, wild=rarely)
    def unmerge(self, choice: int, second: int, wild: bool) -> None:
        model = self.model
        index, process, fd = self.pick(
            choice,
            "group",
            wild,
            lambda i, f: len(model.its_set(f).groups) > 1 and model.its_set(f).owner == i,
        )

        other = self.partner(
            index, fd, second, wild, lambda a, b: model.set_of(a) is model.set_of(b)
        )
        errors = self.pair_errors(index, fd, other)
        errors = errors or self.unmerge_errors(index, fd, other)
        self.attempt(errors, lambda: unmerge(process, fd, other))
        if not errors:
            leaving = model.fds[index][other]
            assert leaving.group
            s = model.its_set(leaving)
            model.leave(s, leaving.group)
            model.settle(s)

    def unmerge_errors(self, index: int, fd: int, other: int) -> Errors:
        model = self.model
        base, leaving = model.fds[index][fd], model.fds[index][other]
        if model.its_set(base) is not model.its_set(leaving):
            return {EINVAL}
        assert leaving.group
        return {EBUSY} if model.device_files(leaving.group) else set()

    @rule(choice=choices, wild=rarely)
    def get_iommu(self, choice: int, wild: bool) -> None:
        index, process, fd = self.pick(choice, "group", wild)
        model = self.model
        errors = self.wrong_file(index, fd, "group")
        if not errors:
            s = model.its_set(model.fds[index][fd])
            errors = model.foreign(s, index) or model.cannot_open(s) or model.full(index)
        self.attempt(errors, lambda: iommu_fd(process, fd))
        if not errors:
            s.owner = index
            self.opened(index, ModelFile("iommu", index, joint=s))

    @rule(choice=choices, name=names, wild=rarely)
    def get_device(self, choice: int, name: str, wild: bool) -> None:
        index, process, fd = self.pick(choice, "group", wild)
        model = self.model
        errors = self.wrong_file(index, fd, "group")
        if not errors:
            s = model.its_set(model.fds[index][fd])
            if not wild and model.devices(s):
                name = model.devices(s)[choice % len(model.devices(s))]
            errors = model.foreign(s, index) or model.cannot_open(s)
            if not errors and name not in model.devices(s):
                errors = {ENODEV}
            if not errors and name in model.get_fails:
                errors = {ENOSPC}
            errors = errors or model.full(index)
        self.attempt(errors, lambda: device_fd(process, fd, name))
        if not errors:
            s.owner = index
            self.opened(index, ModelFile("device", index, device=name))

    @rule(choice=choices, wild=rarely)
    def get_flags(self, choice: int, wild: bool) -> None:
        index, process, fd = self.pick(choice, "group", wild)
        errors = self.wrong_file(index, fd, "group")
        flags = self.attempt(errors, lambda: group_flags(process, fd))
        if not errors:
            s = self.model.its_set(self.model.fds[index][fd])
            viable = all(self.model.viable(key) for key in s.groups)
            assert flags == viable + 2 * (s.owner is not None)

    # programs: mappings

    @rule(choice=choices, page=st.integers(0, 7), count=st.integers(1, 4), wild=rarely)
    def map(self, choice: int, page: int, count: int, wild: bool) -> None:
        if not wild and not any(self.model.live("iommu")):
            self.get_iommu(choice, wild)
            return
        index, process, fd = self.pick(choice, "iommu", wild)
        model = self.model
        wanted = range(page, page + count)
        errors = self.mapping_errors(index, fd)
        if not errors:
            s = model.fds[index][fd].joint
            assert s
            if s.pages.keys() & set(wanted):
                errors = {EBUSY}
            elif model.locked(index) + count > LOCKED_PAGES:
                errors = {ENOMEM}
        buffer = self.buffers[index] + page * PAGE
        self.attempt(errors, lambda: map_dma(process, fd, page * PAGE, count * PAGE, buffer))
        if not errors:
            assert s
            s.pages |= dict.fromkeys(wanted, index)

    @rule(choice=choices, page=st.integers(0, 7), count=st.integers(0, 5), wild=rarely)
    def unmap(self, choice: int, page: int, count: int, wild: bool) -> None:
        if not wild and not any(self.model.live("iommu")):
            self.get_iommu(choice, wild)
            return
        index, process, fd = self.pick(choice, "iommu", wild)
        errors = self.mapping_errors(index, fd)
        self.attempt(errors, lambda: unmap_dma(process, fd, page * PAGE, count * PAGE))
        if not errors:
            s = self.model.fds[index][fd].joint
            assert s
            for at in range(page, page + count):
                s.pages.pop(at, None)

    def mapping_errors(self, index: int, fd: int) -> Errors:
        if wrong := self.wrong_file(index, fd, "iommu"):
            return wrong
        file = self.model.fds[index][fd]
        if file.revoked:
            return {ENODEV}
        assert file.joint
        return self.model.foreign(file.joint, index)

    # -- what must agree -------------------------------------------------------------------------

    @invariant()
    def everything_agrees(self) -> None:
        self.groups_agree()
        self.devices_agree()
        self.sets_agree()
        self.domains_exist_exactly_while_they_are_used()
        self.mappings_and_accounts_agree()
        self.descriptors_agree()
        self.a_set_of_several_groups_has_an_owner()

    def real_groups(self) -> dict[Key, Group]:
        return {(group.bus, group.number): group for group in self.world.framework.groups}

    def groups_agree(self) -> None:
        seen = {
            key: (g.minor, g.node_name, [d.name for d in g.devices], len(g.opens), g.viable)
            for key, g in self.real_groups().items()
        }
        assert list(seen.items()) == [
            (
                key,
                (
                    g.minor,
                    g.node,
                    g.devices,
                    len(self.model.group_files(key)),
                    self.model.viable(key),
                ),
            )
            for key, g in self.model.groups.items()
        ]

    def devices_agree(self) -> None:
        model = self.model
        for key, group in self.real_groups().items():
            for device in group.devices:
                users = [f for f in model.device_files(key) if f.device == device.name]
                assert device.bound == (device.name in model.bound)
                assert device.gone == (device.name in model.gone)
                assert bool(device.taint) == (device.name in model.tainted)
                assert len(device.opens) == len(users)
                assert device.in_use == bool(users)
                if device.bound:
                    assert self.world.bounds[device.name].enabled == len(users)

    def sets_agree(self) -> None:
        model, groups = self.model, self.real_groups()
        for key, group in groups.items():
            s = model.set_of(key)
            if s is None:
                assert group.iommu is None
                continue
            iommu = group.iommu
            assert iommu is not None
            assert [(g.bus, g.number) for g in iommu.groups] == s.groups
            owner = None if s.owner is None else self.world.processes[s.owner].mm
            assert iommu.owner is owner
            assert iommu.in_use == model.in_use(s)
            assert len(iommu.opens) == sum(f.joint is s for f in model.live("iommu"))
            is_open = any(member.is_open for member in iommu.groups)
            assert is_open == any(model.group_files(k) for k in s.groups)
            assert iommu.state is LIVES[len(s.groups) > 1, model.used(key)]
            for held in group.opens:
                assert held.group is group

    def domains_exist_exactly_while_they_are_used(self) -> None:
        for key, group in self.real_groups().items():
            domain = group.iommu.domain if group.iommu else None
            assert (domain is not None) == self.model.used(key)
            for device in group.devices:
                untouched = device.name in self.model.tainted
                assert self.world.devices[device.name].domain is (None if untouched else domain)
        present = {n for g in self.model.groups.values() for n in g.devices}
        assert all(dev.domain is None for n, dev in self.world.devices.items() if n not in present)

    def mappings_and_accounts_agree(self) -> None:
        for key, group in self.real_groups().items():
            s = self.model.set_of(key)
            if s and group.iommu and group.iommu.domain:
                payers = {p.mm: index for index, p in enumerate(self.world.processes)}
                assert s.pages == {
                    m.first // PAGE + n: payers[m.mm]
                    for m in group.iommu.domain.mappings
                    for n in range(m.size // PAGE)
                }
        for index, process in enumerate(self.world.processes):
            assert process.mm.locked_pages == self.model.locked(index)

    def descriptors_agree(self) -> None:
        for table, process in zip(self.model.fds, self.world.processes, strict=True):
            assert {fd: file.real for fd, file in table.items()} == {
                fd: process.file(fd) for fd in process._fds
            }

    def a_set_of_several_groups_has_an_owner(self) -> None:
        for group in self.world.framework.groups:
            if group.iommu and len(group.iommu.groups) > 1:
                assert group.iommu.owner is not None

    def teardown(self) -> None:
        """When every process is dead nothing is left over, whatever happened before."""
        for process in self.world.processes:
            process.exit()
        for group in self.world.framework.groups:
            assert group.iommu is None
            assert not group.is_open
        assert all(bound.gets == bound.puts for bound in self.world.bounds.values())
        assert all(dev.domain is None for dev in self.world.devices.values())
        assert all(process.mm.locked_pages == 0 for process in self.world.processes)


TestFramework = FrameworkMachine.TestCase
TestFramework.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)


WEIGHTS: Final[dict[str, int]] = {
    "add": 6,
    "bind": 8,
    "unbind": 3,
    "unbind_by_force": 2,
    "unplug": 1,
    "sabotage_sometimes": 1,
    "open_group": 14,
    "close": 12,
    "send": 5,
    "fork": 1,
    "exit": 1,
    "merge": 18,
    "unmerge": 5,
    "get_iommu": 6,
    "get_device": 8,
    "get_flags": 4,
    "map": 10,
    "unmap": 6,
}


def drawn(random: Random, verb: str, model: Model) -> dict[str, Any]:
    """Arguments for a rule. Devices are brought back rather than lost: else all groups end unusable."""
    useful = {
        "add": [n for n in NAMES if not model.added(n)],
        "bind": [n for n in NAMES if model.added(n) and n not in model.bound],
        "unbind": sorted(model.gone),
        "unbind_by_force": sorted(model.gone),
    }.get(verb)
    space: dict[str, Any] = {
        "name": random.choice(useful if useful and random.random() < 0.8 else NAMES),
        "attach": random.random() < 0.5,
        "really": True,
        "p": random.randrange(MAX_PROCESSES),
        "to": random.randrange(MAX_PROCESSES),
        "which": random.randrange(len(KEYS)),
        "choice": random.randrange(1000),
        "second": random.randrange(1000),
        "wild": random.random() < 0.08,
        "page": random.randrange(8),
        "count": random.randrange(1, 5),
    }
    wanted = signature(getattr(FrameworkMachine, verb)).parameters
    return {name: value for name, value in space.items() if name in wanted}


@pytest.mark.parametrize(
    "seed", [*range(24), *(pytest.param(n, marks=pytest.mark.soak) for n in range(24, 500))]
)
def test_long_lives(seed: int) -> None:
    """Short programs find the small mistakes; sets of many groups and old owners need long ones."""
    random = Random(seed)
    machine = FrameworkMachine()
    machine.begin(missing=set(), unbound=set(), opens=[])
    verbs, weights = list(WEIGHTS), list(WEIGHTS.values())
    for verb in random.choices(verbs, weights, k=300):
        arguments = drawn(random, verb, machine.model)
        print(verb, arguments)  # shown when it fails
        getattr(machine, verb)(**arguments)
        machine.everything_agrees()
    machine.teardown()
