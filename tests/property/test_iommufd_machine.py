"""Address spaces and page tables against a model that is a dictionary of bytes' owners.

The model knows for each address space which areas are mapped to what, and which devices are attached through which
address space; everything else (what is locked, what is refused) it works out from scratch each time. A refused call
changes nothing; at the end nothing is left.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from support.iommufd import ALL, IommufdDesk
from support.mainline import ALONE, FIRST, PAGE, SECOND, refused

RESERVED = (0x8000, 0x8FFF)
PAGES = 12  # of memory, and more than the addresses that are used
LIMIT = 10  # pages that may be locked
DEVICES = {ALONE: 1, FIRST: 2, SECOND: 2}

addresses = st.integers(0, 15).map(lambda page: page * PAGE)
sizes = st.integers(1, 4).map(lambda pages: pages * PAGE)
odd = st.sampled_from([0, 0, 0, 0, 0x800])


@dataclass
class Space:
    """Areas by their first address: (size, number of the backing, offset in memory)."""

    number: int
    areas: dict[int, tuple[int, int, int]] = field(default_factory=dict)

    def overlapping(self, iova: int, size: int) -> dict[int, tuple[int, int, int]]:
        return {at: a for at, a in self.areas.items() if at < iova + size and iova < at + a[0]}


class IommufdMachine(RuleBasedStateMachine):
    """See the module's head."""

    @initialize()
    def begin(self) -> None:
        from uvfio.machine.spec import IommuSpec

        self.desk = IommufdDesk(iommu=IommuSpec(reserved=(RESERVED,), address_bits=40))
        self.desk.me.memlock = LIMIT * PAGE
        self.memory = self.desk.buffer(PAGES * PAGE)
        self.fd = self.desk.iommufd()
        self.context = self.desk.context(self.fd)
        self.spaces: list[Space] = []
        self.files: dict[str, int] = {}
        self.bound: set[str] = set()
        self.attached: dict[str, Space] = {}
        self.backings = 0

    # -- what the model works out ------------------------------------------------------------------

    def in_use(self, space: Space) -> bool:
        return any(other is space for other in self.attached.values())

    def locked(self, with_: dict[int, list[tuple[int, int]]] | None = None) -> int:
        """Pages that are held: each of a backing once."""
        pages: set[tuple[int, int]] = set()
        for space in self.spaces:
            if self.in_use(space):
                for size, backing, offset in space.areas.values():
                    pages |= {(backing, offset // PAGE + n) for n in range(-(-size // PAGE))}
        for backing, parts in (with_ or {}).items():
            for offset, size in parts:
                pages |= {(backing, offset // PAGE + n) for n in range(-(-size // PAGE))}
        return len(pages)

    def why_not(self, space: Space, iova: int, size: int, offset: int) -> int:
        """What a fixed mapping is refused with, before memory is looked at; 0 if it is not."""
        used = self.in_use(space)
        if used and size % PAGE:
            return errno.EINVAL
        if used and iova % PAGE:
            return errno.EINVAL
        if used and (iova <= RESERVED[1] and iova + size > RESERVED[0]):
            return errno.EINVAL
        if space.overlapping(iova, size):
            return errno.EEXIST
        return errno.EINVAL if used and offset % PAGE else 0

    def pick(self, data: Any, things: Any) -> Any:
        return data.draw(st.sampled_from(sorted(things, key=str)))

    def space(self, data: Any) -> Space | None:
        return data.draw(st.sampled_from(self.spaces)) if self.spaces else None

    # -- address spaces ----------------------------------------------------------------------------

    @rule()
    def new_space(self) -> None:
        if len(self.spaces) < 3:
            self.spaces.append(Space(self.desk.ioas(self.fd)))

    @rule(data=st.data())
    def destroy(self, data: Any) -> None:
        space = self.space(data)
        if space is None:
            return
        if self.in_use(space):
            with refused(self.desk, errno.EBUSY):
                self.desk.destroy(self.fd, space.number)
        else:
            self.desk.destroy(self.fd, space.number)
            self.spaces.remove(space)

    @rule(data=st.data(), iova=addresses, size=sizes, shift=odd, less=odd, page=st.integers(0, 11))
    def map(self, data: Any, iova: int, size: int, shift: int, less: int, page: int) -> None:
        space = self.space(data)
        if space is None:
            return
        iova, size, offset = iova + shift, size - less, page * PAGE
        number = self.why_not(space, iova, size, offset)
        if not number and self.in_use(space):
            if offset + size > PAGES * PAGE:
                number = errno.EFAULT
            elif self.locked({-1: [(offset, size)]}) > LIMIT:
                number = errno.ENOMEM
        arguments = (self.fd, space.number, iova, size, self.memory + offset)
        if number:
            with refused(self.desk, number):
                self.desk.ioas_map(*arguments)
            return
        assert self.desk.ioas_map(*arguments) == iova
        self.backings += 1
        space.areas[iova] = (size, self.backings, offset)

    @rule(data=st.data(), iova=addresses, size=sizes, to=addresses)
    def copy(self, data: Any, iova: int, size: int, to: int) -> None:
        source, target = self.space(data), self.space(data)
        if source is None or target is None:
            return
        pieces: list[tuple[int, int, int]] = []
        at = iova
        while at < iova + size:
            found = source.overlapping(at, 1)
            if not found:
                pieces = []
                break
            first, (length, backing, offset) = found.popitem()
            taken = min(first + length, iova + size) - at
            pieces.append((taken, backing, offset + at - first))
            at += taken
        number = 0 if pieces else errno.ENOENT
        number = number or self.why_not(target, to, size, 0)
        if not number and self.in_use(target):
            if any(offset % PAGE for _, _, offset in pieces):
                number = errno.EINVAL
            held: dict[int, list[tuple[int, int]]] = {}
            for length, backing, offset in pieces:
                held.setdefault(backing, []).append((offset, length))
            if not number and any(o + n > PAGES * PAGE for n, _, o in pieces):
                number = errno.EFAULT
            elif not number and self.locked(held) > LIMIT:
                number = errno.ENOMEM
        arguments = (self.fd, target.number, source.number, iova, size, to)
        if number:
            before = self.desk.snapshot()
            with pytest.raises(OSError) as caught:
                self.desk.copy(*arguments)
            # of several pieces one may not be there while another one is too much
            assert caught.value.errno in {number, errno.ENOMEM, errno.EFAULT}
            assert self.desk.snapshot() == before
            return
        self.desk.copy(*arguments)
        for length, backing, offset in pieces:
            target.areas[to] = (length, backing, offset)
            to += length

    @rule(data=st.data(), iova=addresses, size=sizes)
    def unmap(self, data: Any, iova: int, size: int) -> None:
        space = self.space(data)
        if space is None:
            return
        found = space.overlapping(iova, size)
        whole = all(iova <= at and at + area[0] <= iova + size for at, area in found.items())
        if not found or not whole:
            with refused(self.desk, errno.ENOENT):
                self.desk.ioas_unmap(self.fd, space.number, iova, size)
            return
        done = self.desk.ioas_unmap(self.fd, space.number, iova, size)
        assert done == sum(area[0] for area in found.values())
        for at in found:
            del space.areas[at]

    @rule(data=st.data())
    def unmap_all(self, data: Any) -> None:
        space = self.space(data)
        if space is not None:
            done = self.desk.ioas_unmap(self.fd, space.number, 0, ALL)
            assert done == sum(area[0] for area in space.areas.values())
            space.areas.clear()

    # -- devices -----------------------------------------------------------------------------------

    @rule(name=st.sampled_from(sorted(DEVICES)))
    def open_and_bind(self, name: str) -> None:
        if name not in self.files:
            self.files[name] = self.desk.cdev(name)
        if name in self.bound:
            with refused(self.desk, errno.EINVAL):
                self.desk.bind(self.files[name], self.fd)
        else:
            self.desk.bind(self.files[name], self.fd)
            self.bound.add(name)

    @rule(data=st.data())
    def close(self, data: Any) -> None:
        if self.files:
            name = self.pick(data, self.files)
            self.desk.me.close(self.files.pop(name))
            self.bound.discard(name)
            self.attached.pop(name, None)

    @rule(data=st.data())
    def attach(self, data: Any) -> None:
        space = self.space(data)
        if space is None or not self.bound:
            return
        name = self.pick(data, self.bound)
        members = [
            other for other in self.attached if DEVICES[other] == DEVICES[name] and other != name
        ]
        old = self.attached.get(name)
        numbers = self.attach_refusals(space, name, members)
        before = self.desk.snapshot()
        if numbers:
            with pytest.raises(OSError) as caught:
                self.desk.attach(self.files[name], space.number)
            assert caught.value.errno in numbers, caught.value
            assert self.desk.snapshot() == before
            return
        self.desk.attach(self.files[name], space.number)
        for other in (name, *members):
            if other == name or old is not None:
                self.attached[other] = space

    def attach_refusals(self, space: Space, name: str, members: list[str]) -> set[int]:
        """Why it may be refused; empty if it must not be."""
        numbers: set[int] = set()
        if name not in self.attached and any(self.attached[m] is not space for m in members):
            numbers.add(errno.EINVAL)
        if space.overlapping(RESERVED[0], PAGE):
            numbers.add(errno.EADDRINUSE)
        for at, (size, _, offset) in space.areas.items():
            if (at | size | offset) % PAGE:
                numbers.add(errno.EADDRINUSE)
            if offset + size > PAGES * PAGE:
                numbers.add(errno.EFAULT)
        held: dict[int, list[tuple[int, int]]] = {}
        for size, backing, offset in space.areas.values():
            held.setdefault(backing, []).append((offset, size))
        if not self.in_use(space) and self.locked(held) > LIMIT:
            numbers.add(errno.ENOMEM)
        return numbers

    @rule(data=st.data())
    def detach(self, data: Any) -> None:
        if self.bound:
            name = self.pick(data, self.bound)
            self.desk.detach(self.files[name])
            self.attached.pop(name, None)

    # -- what must be so ---------------------------------------------------------------------------

    @invariant()
    def everything_is_as_the_model_says(self) -> None:
        if not hasattr(self, "desk"):
            return
        assert self.desk.me.mm.locked_pages == self.locked()
        for space in self.spaces:
            ioas = self.context.objects[space.number]
            shown = [(m.first, m.size) for m in ioas.domain.mappings]  # type: ignore[union-attr]
            assert shown == sorted((at, area[0]) for at, area in space.areas.items())
        used = {id(space) for space in self.attached.values()}
        assert len(self.context.objects) == len(self.spaces) + len(self.bound) + len(used)
        for name, group in DEVICES.items():
            record = self.desk.machine.record(name)
            domain = record.iommu.domain if record.iommu else None
            wanted = next((s for n, s in self.attached.items() if DEVICES[n] == group), None)
            if wanted is None:
                assert domain is None
            else:
                ioas = self.context.objects[wanted.number]
                assert domain is ioas.domain  # type: ignore[union-attr]
                assert record.dev in domain.devices

    def teardown(self) -> None:
        if not hasattr(self, "desk"):
            return
        self.desk.me.exit()
        assert self.desk.me.mm.locked_pages == 0
        assert (self.context.objects, self.context.claims) == ({}, [])
        for name in DEVICES:
            record = self.desk.machine.record(name)
            assert (record.iommu, record.opens, record.cdevs) == (None, [], [])
        self.desk.machine.close()


TestIommufd = IommufdMachine.TestCase
TestIommufd.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
