"""The tables of lives, and every pair of state and event, done to contexts: legal ones lead where the table says,
illegal ones raise the condition of the table and change nothing."""

from __future__ import annotations

import ast
from collections import deque
from pathlib import Path

import pytest

from support.world import FakeBound, FakeBusDevice, FakeDriver, World
from uvfio.core.structure import lifetime
from uvfio.core.structure.claim import Claim
from uvfio.core.structure.container import Container
from uvfio.core.structure.device import Device
from uvfio.core.structure.group import Group
from uvfio.core.structure.iommu import Iommu
from uvfio.core.structure.iommufd import Iommufd
from uvfio.core.structure.lifetime import (
    LIFE_2011,
    LIFE_CLAIM,
    LIFE_CONTAINER,
    Event,
    Life,
    Refusal,
    State,
    Table,
)
from uvfio.core.translation.domain import Domain
from uvfio.core.translation.unit import IommuUnit
from uvfio.errors import VfioError

TABLES = {"2011": LIFE_2011, "container": LIFE_CONTAINER, "claim": LIFE_CLAIM}
PAIRS = [(name, *pair) for name, table in TABLES.items() for pair in table]
LEAVING = (Event.LEAVE, Event.DISSOLVE, Event.LEAVE_LAST)


def path_to(table: Table, state: State) -> list[Event]:
    """The shortest sequence of legal events from the first state to ``state``."""
    known: dict[State, list[Event]] = {State.EMPTY: []}
    queue = deque([State.EMPTY])
    while queue:
        here = queue.popleft()
        for (start, event), target in table.items():
            if start is here and isinstance(target, State) and target not in known:
                known[target] = [*known[here], event]
                queue.append(target)
    return known[state]


# -- the tables ----------------------------------------------------------------------------------


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_a_table_has_a_row_for_every_pair(table: Table) -> None:
    states = {state for state, _ in table}
    events = {event for _, event in table}
    assert len(table) == len(states) * len(events)
    assert {target for target in table.values() if isinstance(target, State)} <= states


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_every_state_can_be_reached(table: Table) -> None:
    for state in {state for state, _ in table}:
        path_to(table, state)


def test_every_refusal_has_a_name_of_its_own_and_is_used() -> None:
    named = {value.name: value for value in vars(lifetime).values() if isinstance(value, Refusal)}
    used = {
        t.name: t for table in TABLES.values() for t in table.values() if isinstance(t, Refusal)
    }
    assert named == used
    assert len({id(refusal) for refusal in used.values()}) == len(used)


def test_only_lifetime_changes_a_state_and_only_iommu_places_a_group() -> None:
    folder = Path(lifetime.__file__).parent
    for module in folder.glob("*.py"):
        for node in ast.walk(ast.parse(module.read_text())):
            if not isinstance(node, ast.Attribute) or not isinstance(node.ctx, ast.Store):
                continue
            if node.attr in ("_state", "state", "life"):
                assert module.name in ("lifetime.py", "iommu.py"), module
            if node.attr == "iommu" and ast.unparse(node.value) == "group":
                assert module.name == "iommu.py", module


def test_a_refused_step_leaves_the_state() -> None:
    life = Life(LIFE_CONTAINER)
    with pytest.raises(VfioError, match="the container has no group") as caught:
        life.step(Event.ENABLE, "group 1")
    assert caught.value.hint == "set it on a group first"
    assert life.state is State.EMPTY


# -- contexts ------------------------------------------------------------------------------------


class Bench:
    """A context, and events that really happen to it."""

    context: Iommu

    def __init__(self, unit: IommuUnit | None) -> None:
        self.unit = unit
        self.count = 0

    def group(self) -> Group:
        """A new group of two bound devices."""
        self.count += 1
        group = Group("pci", self.count, 0, str(self.count))
        for name in "ab":
            dev = FakeBusDevice(f"{self.count}{name}", self.count, unit=self.unit)
            device = Device(dev, FakeDriver(), group)
            device.data = FakeBound(device.name)
            group.devices.append(device)
        return group

    def do(self, event: Event) -> None:
        """Let it happen; an event that no call can be at this point is put to the table itself."""
        context = self.context
        if event is Event.ENTER:
            context.attach_group(self.group())
        elif event in LEAVING:
            if event is Event.LEAVE and len(context.groups) in (1, 2) and self.may_be_several:
                context.attach_group(self.group())
            if context.groups and context._leaving() is event:
                context.detach_group(context.groups[-1])
            else:
                context.life.step(event, "group 1")
        else:
            self.act(event)

    @property
    def may_be_several(self) -> bool:
        """Whether to add a group is a legal way to have several here, without another state."""
        return self.context.life._table[self.context.state, Event.ENTER] is self.context.state

    def act(self, event: Event) -> None:
        raise AssertionError(event)

    def facts(self) -> list[object]:
        """All that a refused event must not change."""
        context = self.context
        devices = [d for group in context.groups for d in group.devices]
        return [
            *(context.state, context.domain, context.owner, list(context.groups)),
            [(group.iommu, group.devices_in_use) for group in context.groups],
            [(d.name, d.attached) for d in devices],
        ]

    def check(self) -> None:
        """State and facts agree."""
        raise AssertionError


class Bench2011(Bench):
    def __init__(self, unit: IommuUnit | None) -> None:
        super().__init__(unit)
        self.context = Iommu(Domain)
        self.mm = World().mm()

    def act(self, event: Event) -> None:
        if event is Event.OPEN:
            self.context.open(self.mm)
        else:
            assert event is Event.CLOSE
            self.context.close()

    def check(self) -> None:
        groups, opened = min(len(self.context.groups), 2), self.context.domain is not None
        assert (
            self.context.state
            is {
                (0, False): State.EMPTY,
                (1, False): State.CLOSED,
                (1, True): State.OPEN,
                (2, False): State.CLOSED_SET,
                (2, True): State.OPEN_SET,
            }[groups, opened]
        )


class BenchContainer(Bench):
    context: Container

    def __init__(self, unit: IommuUnit | None) -> None:
        super().__init__(unit)
        self.context = Container(Domain)

    def do(self, event: Event) -> None:
        super().do(event)
        if event is Event.LEAVE_LAST:
            self.context.close()

    def act(self, event: Event) -> None:
        if event is Event.ENABLE:
            self.context.enable(2)
        else:
            assert event is Event.ENABLE_UNPROTECTED
            self.context.enable_without()

    def check(self) -> None:
        container = self.context
        assert (container.state is State.EMPTY) == (not container.groups)
        assert (container.state is State.ENABLED) == (container.domain is not None)
        assert (container.type1 is None) == (container.domain is None)
        assert container.enabled == (container.state in (State.ENABLED, State.UNPROTECTED))


class BenchClaim(Bench):
    context: Claim

    def __init__(self, unit: IommuUnit | None) -> None:
        super().__init__(unit)
        self.iommufd = Iommufd(World().framework.lock, Domain)
        self.member = super().group()
        self.context = Claim(self.iommufd, self.member, allow_unsafe=False)

    def group(self) -> Group:
        return self.member

    def act(self, event: Event) -> None:
        claim = self.context
        free = [d for d in self.member.devices if d not in claim.bound]
        match event:
            case Event.JOIN:
                claim.join()
            case Event.UNJOIN:
                claim.depart(self.member)
            case Event.BIND:
                claim.bind(free[0])
            case _ if not claim.bound:
                claim.life.step(event, "group 1")
            case Event.UNBIND:
                claim.bind(free[0])
                claim.unbind(free[0])
            case _:
                assert event is Event.UNBIND_LAST
                claim.unbind(next(iter(claim.bound)))

    def check(self) -> None:
        claim = self.context
        assert (claim.state in (State.EMPTY, State.ENDED)) == (not claim.groups)
        assert claim.owns_dma == bool(claim.bound)
        bound = list(self.iommufd.objects.values())
        assert len(bound) == len(claim.bound)


BENCHES = {"2011": Bench2011, "container": BenchContainer, "claim": BenchClaim}


@pytest.mark.parametrize(
    ("life", "state", "event"), PAIRS, ids=lambda part: getattr(part, "name", part)
)
def test_contexts_live_as_the_tables_say(life: str, state: State, event: Event) -> None:
    table, path = TABLES[life], path_to(TABLES[life], state)
    bare = Event.ENABLE_UNPROTECTED in path or (
        event is Event.ENABLE_UNPROTECTED and Event.ENABLE not in path
    )
    bench = BENCHES[life](None if bare else IommuUnit())
    for step in path:
        bench.do(step)
        bench.check()
    assert bench.context.state is state
    before, target = bench.facts(), table[state, event]
    if isinstance(target, State):
        bench.do(event)
        assert bench.context.state is target
        bench.check()
        return
    with pytest.raises(VfioError) as caught:
        bench.do(event)
    who = bench.context._names()
    assert type(caught.value) is target.condition
    expected = (target.sentence.format(who=who), target.sentence.format(who="group 1"))
    assert (str(caught.value) in expected, caught.value.hint) == (True, target.hint)
    assert bench.facts() == before
