"""Virtual functions against a model that is nothing but the rules: who may open what, and when they come and go.

The model keeps a number of virtual functions, the physical function's driver and token, and who has what open. Every
step first says which errors are due, then does the real thing; a step that is refused must change nothing that can
be seen, and at the end nothing is left.
"""

from __future__ import annotations

from collections.abc import Callable
from errno import EACCES, EBUSY, EINVAL, ENOENT, ERANGE
from uuid import UUID

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from support.world import name_of
from uvfio.doors.local import Process
from uvfio.drivers.pci.device import VfioPciDevice
from uvfio.drivers.pci.sriov import find
from uvfio.errors import Gone
from uvfio.machine.machine import Machine
from uvfio.machine.sysfs.tree import nodes
from uvfio.uapi import vfio

TOTAL = 3
PF = "0000:06:00.0"
NAMES = (PF, *(f"0000:06:10.{number}" for number in range(TOTAL)))
TOKENS = (None, UUID(int=1), UUID(int=2))
WHO = st.integers(0, TOTAL)
TOKEN = st.sampled_from(TOKENS)


class Sriov(RuleBasedStateMachine):
    """Files of each function: (process, device descriptor)."""

    def __init__(self) -> None:
        super().__init__()
        self.machine = Machine(devices=[f"exerciser@{PF},vfs={TOTAL},memory=4K"])
        self.number = 0
        self.bound = True
        self.token: UUID | None = None  # None: a random one
        self.users: dict[int, tuple[Process, int]] = {}

    # -- the real thing ----------------------------------------------------------------------------

    def picture(self) -> object:
        machine = self.machine
        tokens = [
            data._token.own and (data._token.own.uuid, data._token.own.users)
            for slot in machine.slots
            if isinstance(data := machine.record(slot.address).data, VfioPciDevice)
        ]
        return machine.describe(), nodes(machine, "mainline"), tokens

    def attempt(self, errors: set[int], call: Callable[..., object], *words: object) -> bool:
        """Whether it succeeded, which it must exactly if there are no ``errors``."""
        before = self.picture()
        if not errors:
            call(*words)
            return True
        with pytest.raises(OSError) as caught:
            call(*words)
        assert name_of(caught.value.errno) in map(name_of, errors), caught.value
        assert self.picture() == before
        return False

    def open(self, who: int, token: UUID | None) -> None:
        me = Process(self.machine, abi="mainline")
        try:
            container = me.open("/dev/vfio/vfio")
            group = me.open(f"/dev/vfio/{self.machine.record(NAMES[who]).group.node_name}")
            me.ioctl(group, vfio.VFIO_GROUP_SET_CONTAINER, container.to_bytes(4, "little"))
            me.ioctl(container, vfio.VFIO_SET_IOMMU, vfio.VFIO_TYPE1v2_IOMMU)
            text = NAMES[who] + (f" vf_token={token}" if token else "")
            device = me.ioctl(group, vfio.VFIO_GROUP_GET_DEVICE_FD, text)
        except BaseException:
            me.exit()
            raise
        self.users[who] = me, device

    # -- rules -------------------------------------------------------------------------------------

    @rule(number=st.integers(-1, TOTAL + 1))
    def set_number(self, number: int) -> None:
        errors = set()
        if not 0 <= number <= TOTAL:
            errors = {ERANGE if number > 0 else EINVAL}
        elif number != self.number:
            if not self.bound:
                errors = {ENOENT}
            elif (number and self.number) or (not number and any(self.users.keys() - {0})):
                errors = {EBUSY}
        if self.attempt(errors, self.machine.set_numvfs, PF, number, 0):
            self.number = number

    @initialize(number=st.integers(0, TOTAL), token=TOKEN)
    def begin(self, number: int, token: UUID | None) -> None:
        """Most of what there is to see is seen with virtual functions and a known token."""
        self.set_number(number)
        self.open_one(0, token)

    @rule(who=WHO, token=TOKEN)
    def open_any(self, who: int, token: UUID | None) -> None:
        if who <= self.number and (who or self.bound):  # else there is no such file
            self.open_one(who, token)

    @precondition(lambda self: self.number)
    @rule(data=st.data())
    def open_virtual(self, data: st.DataObject) -> None:
        self.open_one(data.draw(st.integers(1, self.number)), self.token)

    def open_one(self, who: int, token: UUID | None) -> None:
        errors = set()
        if who in self.users:
            errors = {EBUSY}
        elif (who or self.users) and (token is None or token != self.token):
            errors = {EACCES}
        if self.attempt(errors, self.open, who, token) and not who and token:
            self.token = token

    @precondition(lambda self: self.users)
    @rule(data=st.data())
    def close_one(self, data: st.DataObject) -> None:
        who = data.draw(st.sampled_from(sorted(self.users)))
        self.users.pop(who)[0].exit()

    @precondition(lambda self: 0 in self.users)
    @rule(token=st.sampled_from(TOKENS[1:]))
    def set_token(self, token: UUID) -> None:
        me, device = self.users[0]
        flags = (1 << 17).to_bytes(4, "little")
        me.ioctl(device, vfio.VFIO_DEVICE_FEATURE, b"\x18\0\0\0" + flags + token.bytes)
        self.token = token

    @rule(who=WHO)
    def reset(self, who: int) -> None:
        if who in self.users:
            me, device = self.users[who]
            me.ioctl(device, vfio.VFIO_DEVICE_RESET)

    @precondition(lambda self: self.users or not self.number)
    @rule()
    def unbind(self) -> None:
        errors = {EINVAL} if not self.bound else {EBUSY} if self.users else set()
        if self.attempt(errors, self.machine.unbind, PF, 0):
            self.bound, self.number, self.token = False, 0, None

    @rule()
    def bind(self) -> None:
        if self.attempt({EBUSY} if self.bound else set(), self.machine.bind, PF):
            self.bound = True

    @rule()
    def revoke(self) -> None:
        """All virtual functions go, whoever has them."""
        if self.bound and self.number:
            self.machine.set_numvfs(PF, 0, revoke=True)
            self.number = 0
            for who in [who for who in self.users if who]:
                me, device = self.users.pop(who)
                with pytest.raises(Gone):
                    me.pread(device, 4, 0)
                me.exit()

    # -- what is always true -----------------------------------------------------------------------

    @invariant()
    def those_that_are_there(self) -> None:
        names = [slot.address for slot in self.machine.slots]
        assert names == list(NAMES[: self.number + 1])
        capability = find(self.machine.function(PF))
        assert capability is not None
        assert capability.number == self.number
        assert len(self.machine.framework.groups) == self.number + 1
        assert sorted(self.machine.binding.overrides) == names[1:]

    @invariant()
    def open_ones_answer(self) -> None:
        for me, device in self.users.values():
            assert me.pread(device, 4, 0) == b"EXER"
        assert {
            number
            for number, name in enumerate(NAMES[: self.number + 1])
            if self.machine.record(name).in_use
        } == set(self.users)

    def teardown(self) -> None:
        for me, _ in self.users.values():
            me.exit()
        self.machine.close()
        assert not self.machine.framework.groups


TestSriov = Sriov.TestCase
TestSriov.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
