"""Interrupts and configuration space under arbitrary programs and arbitrary silicon.

``IntxMachine`` drives the whole chain (configuration space, interrupts, level machine, a function whose
wire lies behind INTX_DISABLE) against a model that is nothing but the sentences of the specification. The
second part throws arbitrary writes at configuration space and looks for a bit of the hardware that changed
although no program may change it.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from support.pci_function import (
    AER,
    AF,
    PM,
    POWER_BUDGET,
    SERIAL,
    VPD,
    FakeEvent,
    FakeFunction,
    express,
    msi,
    msix,
)
from uvfio.drivers.pci.capabilities import survey
from uvfio.drivers.pci.device import CONFIG_INDEX, VfioPciDevice
from uvfio.errors import Busy, InvalidArgument, NoSuchDevice
from uvfio.uapi import pci


@dataclass
class Naive:
    """What a program may expect: plain facts, no state machine."""

    bound: bool = False
    masked: bool = False
    guest: bool = False
    request: bool = False
    unmask_set: bool = False
    messages: int = 0  # index of the message kind in use
    signals: int = 0

    def settle(self) -> None:
        if self.bound and self.request and not self.masked and not self.guest:
            self.masked = True
            self.signals += 1


class IntxMachine(RuleBasedStateMachine):
    """Level, masks and events of INTx, with MSI and MSI-X getting in the way."""

    @initialize(has_disable_bit=st.booleans())
    def open(self, has_disable_bit: bool) -> None:
        self.function = FakeFunction(has_disable_bit=has_disable_bit)
        self.device = VfioPciDevice(self.function)
        self.device.get()
        self.naive = Naive()
        self.event = FakeEvent()
        self.unmask_event = FakeEvent()
        self.dropped = 0
        self.has_disable_bit = has_disable_bit

    def snapshot(self) -> tuple[object, ...]:
        irqs = self.device.interrupts
        level = irqs._level
        return (
            irqs.mode,
            level.bound,
            level.masked,
            level._guest,
            irqs.msi_vectors,
            self.event.count,
            self.event.closed,
            self.unmask_event.watched,
            bytes(self.function.config),
            self.device.read(CONFIG_INDEX, 0, 256),
        )

    def refused(self, index: int, count: int) -> None:
        """The call is refused and nothing changed."""
        before = self.snapshot()
        given_events = [FakeEvent() for _ in range(count)]
        with pytest.raises(InvalidArgument):
            self.device.set_irqs(index, given_events)
        assert self.snapshot() == before
        assert not any(event.closed for event in given_events)

    @rule()
    def set_intx(self) -> None:
        if self.naive.messages:
            self.refused(0, 1)
            return
        old = self.event if self.naive.bound else None
        self.event = FakeEvent()
        self.naive.signals = 0
        self.naive.bound, self.naive.masked = True, False
        self.naive.settle()
        self.device.set_irqs(0, [self.event])
        assert old is None or old.closed == 1

    @rule()
    def drop_intx(self) -> None:
        self.device.set_irqs(0, [])
        if self.naive.bound:
            assert self.event.closed == 1
            self.naive.bound = self.naive.masked = False

    @rule(count=st.integers(2, 5))
    def set_too_many_intx(self, count: int) -> None:
        self.refused(0, count)

    @rule(index=st.sampled_from([1, 2]), count=st.integers(1, 20))
    def set_messages(self, index: int, count: int) -> None:
        if self.naive.bound or self.naive.messages or count > (8 if index == 1 else 16):
            self.refused(index, count)
            return
        self.device.set_irqs(index, [FakeEvent() for _ in range(count)])
        self.naive.messages = index

    @rule(index=st.sampled_from([1, 2]))
    def drop_messages(self, index: int) -> None:
        if self.naive.messages != index:
            self.refused(index, 0)
            return
        self.device.set_irqs(index, [])
        self.naive.messages = 0

    @rule(on=st.booleans())
    def request(self, on: bool) -> None:
        self.naive.request = on
        self.naive.settle()
        self.function.assert_intx(on)

    @rule()
    def unmask(self) -> None:
        if not self.naive.guest:
            self.naive.masked = False
            self.naive.settle()
        self.device.unmask_irq(0)

    @rule(index=st.sampled_from([-1, 1, 2, 3]))
    def unmask_another(self, index: int) -> None:
        before = self.snapshot()
        with pytest.raises(InvalidArgument):
            self.device.unmask_irq(index)
        assert self.snapshot() == before

    @rule(on=st.booleans())
    def guest_mask(self, on: bool) -> None:
        if self.naive.guest and not on:
            self.naive.masked = False
        self.naive.guest = on
        self.naive.settle()
        self.device.write(CONFIG_INDEX, pci.PCI_COMMAND + 1, bytes([4 if on else 0]))

    @rule(pending=st.booleans())
    def set_unmask_event(self, pending: bool) -> None:
        if self.naive.unmask_set:
            before = self.snapshot()
            with pytest.raises(Busy):
                self.device.set_unmask_event(0, FakeEvent())
            assert self.snapshot() == before
            return
        self.unmask_event = FakeEvent()
        self.unmask_event.pending = pending
        self.naive.unmask_set = True
        if pending and not self.naive.guest:
            self.naive.masked = False
            self.naive.settle()
        self.device.set_unmask_event(0, self.unmask_event)

    @rule()
    def end_unmask_event(self) -> None:
        if not self.naive.unmask_set:
            before = self.snapshot()
            with pytest.raises(NoSuchDevice):
                self.device.set_unmask_event(0, None)
            assert self.snapshot() == before
            return
        self.device.set_unmask_event(0, None)
        assert self.unmask_event.closed == 1
        self.naive.unmask_set = False

    @precondition(lambda self: self.naive.unmask_set)
    @rule()
    def kick_unmask_event(self) -> None:
        if not self.naive.guest:
            self.naive.masked = False
            self.naive.settle()
        self.unmask_event.kick()

    @rule()
    def reset(self) -> None:
        self.naive.request = False
        self.device.reset()

    @rule()
    def reopen(self) -> None:
        if self.naive.bound:
            assert not self.event.closed
        self.device.put()
        assert self.function.sink is None
        assert self.event.closed or not self.naive.bound
        self.device.get()
        # The device is reset at both ends.
        self.naive = Naive(signals=self.naive.signals)

    @invariant()
    def agrees(self) -> None:
        naive, irqs = self.naive, self.device.interrupts
        assert irqs._level.bound == naive.bound
        assert irqs._level.masked == naive.masked
        assert irqs._level._guest == naive.guest
        assert self.event.count == naive.signals
        assert (irqs.mode.value or 0) == naive.messages
        command = self.function.word(pci.PCI_COMMAND)
        if self.has_disable_bit:
            closed = naive.masked or naive.guest or bool(naive.messages)
            assert bool(command & pci.PCI_COMMAND_INTX_DISABLE) == closed
        seen = self.device.read(CONFIG_INDEX, pci.PCI_COMMAND, 2)
        assert bool(seen[1] & 4) == naive.guest


TestIntxMachine = IntxMachine.TestCase
TestIntxMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


CAPS = (PM, msi(), msix(), VPD, express(), AF)
EXTENDED = (AER, SERIAL, POWER_BUDGET)

writes = st.lists(
    st.tuples(
        st.one_of(st.integers(0, 0x100), st.integers(0x100, 0x200), st.integers(0, 4096)),
        st.binary(min_size=1, max_size=9),
    ),
    max_size=30,
)


@given(writes=writes)
@settings(max_examples=200, deadline=None)
def test_config_writes_never_change_what_is_the_hosts(writes: list[tuple[int, bytes]]) -> None:
    function = FakeFunction(caps=CAPS, extended=EXTENDED, rom=bytes(2048))
    function.poke(0x10, 0xFE000000, 4)
    layout = survey(function)
    device = VfioPciDevice(function)
    device.get()
    # Everything is writable in this silicon from here on: only the driver protects it.
    function._writable[:] = b"\xff" * function.config_size
    function.where.pop(pci.PCI_CAP_ID_EXP)  # no reset by a stray bit: the registers are the subject
    before = bytes(function.config)
    for offset, data in writes:
        taken = device.write(CONFIG_INDEX, offset, data)
        assert taken == min(len(data), function.config_size - offset)
    after = function.config
    for word, (virtual, writable) in enumerate(zip(layout.virtual, layout.writable, strict=True)):
        allowed = writable & ~virtual
        if word == pci.PCI_COMMAND >> 2:
            allowed |= pci.PCI_COMMAND_INTX_DISABLE  # the driver's, following the program's
        if 4 * word == layout.find(pci.PCI_CAP_ID_PM) + pci.PCI_PM_CTRL:
            allowed |= pci.PCI_PM_CTRL_STATE_MASK  # so is this
        was = int.from_bytes(before[4 * word : 4 * word + 4], "little")
        now = int.from_bytes(after[4 * word : 4 * word + 4], "little")
        assert (was ^ now) & ~allowed == 0, f"word {4 * word:#x}: {was:#010x} -> {now:#010x}"


@given(writes=writes)
@settings(max_examples=100, deadline=None)
def test_what_is_read_has_the_size_and_type_of_the_silicon(
    writes: list[tuple[int, bytes]],
) -> None:
    function = FakeFunction(caps=CAPS, extended=EXTENDED, rom=bytes(2048))
    device = VfioPciDevice(function)
    device.get()
    read_only = {0: device.read(7, 0, 4), 8: device.read(7, 8, 4), 0x2C: device.read(7, 0x2C, 4)}
    for offset, data in writes:
        device.write(CONFIG_INDEX, offset, data)
    for offset, data in read_only.items():
        assert device.read(7, offset, 4) == data
    bars = [int.from_bytes(device.read(7, n, 4), "little") for n in range(0x10, 0x28, 4)]
    assert bars[0] & 0xFFF == 0
    assert bars[1] & 0x1F == 1
    assert bars[2] == 0xC
    assert bars[3] & 1 == 0
    assert bars[4] & 0x1FFF == 0
    assert bars[5] & 0xFF == 0
    whole = device.read(7, 0, 4096)
    assert b"".join(device.read(7, n, 1) for n in range(4096)) == whole
