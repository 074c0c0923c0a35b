"""GET_DTPATH and GET_DTINDEX: both layouts, the rules of ``len``, every error in its order."""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable

import pytest

from support.world import PAGE, FakeBound, World, device_fd, group_fd, refused, same_state
from uvfio.core.bus import DeviceKind, DtProperty, ResourceKind
from uvfio.errors import InvalidArgument
from uvfio.uapi import rfc

NOWHERE = 0x10
REGION, IRQ = rfc.VFIO_DTPATH_FLAGS_REGION, rfc.VFIO_DTPATH_FLAGS_IRQ
NODE, CHILD = "/soc/timer@10010000", "/soc/timer@10010000/log@10020000"
LAYOUTS = [
    pytest.param(rfc.VFIO_DEVICE_GET_DTPATH, rfc.DTPATH, id="64"),
    pytest.param(rfc.VFIO_DEVICE_GET_DTPATH_32, rfc.DTPATH_32, id="32"),
]
ORIGINS = {
    (ResourceKind.REGION, 0): (NODE, DtProperty.REG, 0),
    (ResourceKind.REGION, 1): (CHILD, DtProperty.REG, 2),
    (ResourceKind.REGION, 2): (NODE, DtProperty.RANGES, 1),
    (ResourceKind.IRQ, 0): (NODE, DtProperty.INTERRUPTS, 0),
    (ResourceKind.IRQ, 1): (CHILD, DtProperty.INTERRUPT_MAP, 3),
}


class TreeBound(FakeBound):
    """A bound device whose resources stem from a device tree."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.kind = DeviceKind.PLATFORM
        self.origins = dict(ORIGINS)

    def dt_path(self, kind: ResourceKind, index: int) -> str:
        return self._origin(kind, index)[0]

    def dt_index(self, kind: ResourceKind, index: int) -> tuple[DtProperty, int]:
        _, prop, entry = self._origin(kind, index)
        return prop, entry

    def _origin(self, kind: ResourceKind, index: int) -> tuple[str, DtProperty, int]:
        if (kind, index) not in self.origins:
            raise InvalidArgument(f"no {kind} {index}")
        return self.origins[kind, index]


class Desk(World):
    """A platform device, open, and memory for arguments and answers."""

    def __init__(self) -> None:
        super().__init__()
        dev = self.plug("t", 1, bus="platform", bind=False)
        self.tree = TreeBound("t")
        self.bounds["t"] = self.tree
        self.framework.bind_device(dev, self.tree)
        self.me = self.process("me")
        self.device = device_fd(self.me, group_fd(self.me, 1), "t")
        self.arg = self.me.memory.allocate(PAGE)
        self.buffer = self.me.memory.allocate(PAGE)

    def put(self, data: bytes) -> int:
        self.me.memory.write(self.arg, data)
        return self.arg

    def path(self, size: int = 64) -> bytes:
        return self.me.memory.read(self.buffer, size)


@pytest.fixture
def desk() -> Desk:
    return Desk()


def ask(desk: Desk, request: int, layout: struct.Struct, *values: int) -> int:
    return desk.me.ioctl(desk.device, request, desk.put(layout.pack(*values)))


# -- GET_DTPATH ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("request_", "layout"), LAYOUTS)
@pytest.mark.parametrize(
    ("flags", "kind"), [(REGION, ResourceKind.REGION), (IRQ, ResourceKind.IRQ)]
)
@pytest.mark.parametrize("index", [0, 1])
def test_path_of_each_resource(
    desk: Desk, request_: int, layout: struct.Struct, flags: int, kind: ResourceKind, index: int
) -> None:
    assert ask(desk, request_, layout, layout.size, index, flags, desk.buffer) == 0
    expected = ORIGINS[kind, index][0].encode() + b"\0"
    assert desk.path(len(expected)) == expected
    # the argument itself is not changed
    assert layout.unpack(desk.me.memory.read(desk.arg, layout.size)) == (
        layout.size,
        index,
        flags,
        desk.buffer,
    )


@pytest.mark.parametrize(("request_", "layout"), LAYOUTS)
def test_no_byte_behind_the_nul_is_written(
    desk: Desk, request_: int, layout: struct.Struct
) -> None:
    desk.me.memory.write(desk.buffer, b"\xff" * 64)
    ask(desk, request_, layout, layout.size, 0, REGION, desk.buffer)
    assert desk.path(len(NODE) + 2) == NODE.encode() + b"\0\xff"


@pytest.mark.parametrize(("request_", "layout"), LAYOUTS)
def test_len_beyond_the_structure_is_the_size_of_the_buffer(
    desk: Desk, request_: int, layout: struct.Struct
) -> None:
    needed = layout.size + len(NODE) + 1
    assert ask(desk, request_, layout, needed, 0, REGION, desk.buffer) == 0
    desk.me.memory.write(desk.buffer, bytes(64))
    for room in (1, len(NODE)):
        with refused(desk, errno.ENOSPC) as error:
            ask(desk, request_, layout, layout.size + room, 0, REGION, desk.buffer)
        assert f"the buffer {room}" in str(error.value)
        assert int.from_bytes(desk.me.memory.read(desk.arg, 4), "little") == needed
        assert desk.path() == bytes(64)
    # only len was changed
    assert desk.me.memory.read(desk.arg + 4, 12) == layout.pack(0, 0, REGION, 0)[4:16]


def test_the_structure_alone_means_a_page(desk: Desk) -> None:
    long = "/" + "x" * (PAGE - 2)
    desk.tree.origins[ResourceKind.REGION, 0] = (long, DtProperty.REG, 0)
    ask(desk, rfc.VFIO_DEVICE_GET_DTPATH, rfc.DTPATH, 24, 0, REGION, desk.buffer)
    assert desk.path(PAGE) == long.encode() + b"\0"
    desk.tree.origins[ResourceKind.REGION, 0] = (long + "x", DtProperty.REG, 0)
    with refused(desk, errno.ENOSPC):
        ask(desk, rfc.VFIO_DEVICE_GET_DTPATH, rfc.DTPATH, 24, 0, REGION, desk.buffer)
    assert desk.me.memory.read(desk.arg, 4) == (24 + PAGE + 1).to_bytes(4, "little")


@pytest.mark.parametrize(("request_", "layout"), LAYOUTS)
def test_path_null_asks_for_the_size_or_is_efault(
    desk: Desk, request_: int, layout: struct.Struct
) -> None:
    with refused(desk, errno.ENOSPC):
        ask(desk, request_, layout, layout.size + 1, 1, IRQ, 0)
    needed = int.from_bytes(desk.me.memory.read(desk.arg, 4), "little")
    assert needed == layout.size + len(CHILD) + 1
    for address in (0, NOWHERE):
        with refused(desk, errno.EFAULT):
            ask(desk, request_, layout, needed, 1, IRQ, address)


@pytest.mark.parametrize(("request_", "layout"), LAYOUTS)
def test_len_less_than_the_structure(desk: Desk, request_: int, layout: struct.Struct) -> None:
    for length in (0, 4, layout.size - 1):
        with refused(desk, errno.EINVAL) as error:
            ask(desk, request_, layout, length, 0, REGION, desk.buffer)
        assert f"len {length} " in str(error.value)


def test_the_two_layouts_have_limits_of_their_own(desk: Desk) -> None:
    ask(desk, rfc.VFIO_DEVICE_GET_DTPATH_32, rfc.DTPATH_32, 20, 0, REGION, desk.buffer)
    with refused(desk, errno.EINVAL):
        ask(desk, rfc.VFIO_DEVICE_GET_DTPATH, rfc.DTPATH, 20, 0, REGION, desk.buffer)


@pytest.mark.parametrize(("request_", "layout"), LAYOUTS)
@pytest.mark.parametrize("flags", [0, 3, 4, 5, 1 << 32, REGION | 1 << 63])
def test_path_wants_exactly_one_flag(
    desk: Desk, request_: int, layout: struct.Struct, flags: int
) -> None:
    with refused(desk, errno.EINVAL):
        ask(desk, request_, layout, layout.size, 0, flags, desk.buffer)


@pytest.mark.parametrize(("request_", "layout"), LAYOUTS)
@pytest.mark.parametrize(("flags", "index"), [(REGION, 3), (IRQ, 2), (IRQ, 0xFFFFFFFF)])
def test_path_of_an_index_out_of_range(
    desk: Desk, request_: int, layout: struct.Struct, flags: int, index: int
) -> None:
    with refused(desk, errno.EINVAL):
        ask(desk, request_, layout, layout.size, index, flags, desk.buffer)


def test_path_with_a_read_only_argument(desk: Desk) -> None:
    """It is written for ENOSPC only."""
    data = rfc.DTPATH.pack(24, 0, REGION, desk.buffer)
    here = desk.me.memory.place(memoryview(bytearray(data)), writable=False)
    assert desk.me.ioctl(desk.device, rfc.VFIO_DEVICE_GET_DTPATH, here) == 0
    data = rfc.DTPATH.pack(25, 0, REGION, desk.buffer)
    here = desk.me.memory.place(memoryview(bytearray(data)), writable=False)
    with refused(desk, errno.EFAULT):
        desk.me.ioctl(desk.device, rfc.VFIO_DEVICE_GET_DTPATH, here)


# -- GET_DTINDEX ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "index", "prop", "entry"),
    [
        (REGION, 0, rfc.VFIO_DTINDEX_PROP_REG, 0),
        (REGION, 1, rfc.VFIO_DTINDEX_PROP_REG, 2),
        (REGION, 2, rfc.VFIO_DTINDEX_PROP_RANGES, 1),
        (IRQ, 0, rfc.VFIO_DTINDEX_PROP_INTERRUPTS, 0),
        (IRQ, 1, rfc.VFIO_DTINDEX_PROP_INTERRUPT_MAP, 3),
    ],
)
def test_property_and_entry(desk: Desk, flags: int, index: int, prop: int, entry: int) -> None:
    with same_state(desk):
        ask(desk, rfc.VFIO_DEVICE_GET_DTINDEX, rfc.DTINDEX, 24, index, 99, 99, flags)
    answer = rfc.DTINDEX.unpack(desk.me.memory.read(desk.arg, 24))
    assert answer == (24, index, prop, entry, flags)


@pytest.mark.parametrize(
    ("length", "index", "flags"),
    [
        *((length, 0, REGION) for length in (0, 20, 23, 25, 4096)),
        *((24, 0, flags) for flags in (0, 3, 4, 6, 1 << 32)),
        *((24, index, flags) for index, flags in ((3, REGION), (2, IRQ), (0xFFFFFFFF, IRQ))),
    ],
)
def test_index_refusals(desk: Desk, length: int, index: int, flags: int) -> None:
    with refused(desk, errno.EINVAL):
        ask(desk, rfc.VFIO_DEVICE_GET_DTINDEX, rfc.DTINDEX, length, index, 9, 9, flags)
    assert desk.me.memory.read(desk.arg + 8, 8) == rfc.U64.pack(9 << 32 | 9)


def test_index_with_a_read_only_argument(desk: Desk) -> None:
    data = rfc.DTINDEX.pack(24, 0, 0, 0, REGION)
    here = desk.me.memory.place(memoryview(bytearray(data)), writable=False)
    with refused(desk, errno.EFAULT):
        desk.me.ioctl(desk.device, rfc.VFIO_DEVICE_GET_DTINDEX, here)


# -- order of the checks, both -------------------------------------------------------------------

REQUESTS = (
    rfc.VFIO_DEVICE_GET_DTPATH,
    rfc.VFIO_DEVICE_GET_DTPATH_32,
    rfc.VFIO_DEVICE_GET_DTINDEX,
)


def cut(desk: Desk, data: bytes) -> int:
    """The address of ``data`` where nothing is mapped behind it."""
    base = desk.me.memory.allocate(PAGE)
    desk.me.memory.write(base + PAGE - len(data), data)
    return base + PAGE - len(data)


@pytest.mark.parametrize("request_", REQUESTS)
def test_a_device_without_the_flag_has_no_such_request(desk: Desk, request_: int) -> None:
    """Before the argument is looked at."""
    desk.plug("p", 2)
    pci = device_fd(desk.me, group_fd(desk.me, 2), "p")
    with refused(desk, errno.ENOTTY):
        desk.me.ioctl(pci, request_, NOWHERE)


@pytest.mark.parametrize("request_", REQUESTS)
def test_a_device_taken_away_is_gone(desk: Desk, request_: int) -> None:
    desk.unbind("t", revoke=True)
    with refused(desk, errno.ENODEV):
        desk.me.ioctl(desk.device, request_, desk.arg)


@pytest.mark.parametrize("request_", REQUESTS)
@pytest.mark.parametrize(
    ("place", "expected"),
    [
        (lambda desk: NOWHERE, errno.EFAULT),
        (lambda desk: cut(desk, b"\x18\0"), errno.EFAULT),
        (lambda desk: cut(desk, bytes(4)), errno.EINVAL),  # len is wrong, and is looked at first
        (lambda desk: cut(desk, (24).to_bytes(4, "little")), errno.EFAULT),
    ],
    ids=["nowhere", "half a len", "bad len alone", "good len alone"],
)
def test_len_is_judged_before_the_rest_is_read(
    desk: Desk, request_: int, place: Callable[[Desk], int], expected: int
) -> None:
    address = place(desk)
    with refused(desk, expected):
        desk.me.ioctl(desk.device, request_, address)


def test_index_is_judged_before_the_buffer(desk: Desk) -> None:
    with refused(desk, errno.EINVAL):
        ask(desk, rfc.VFIO_DEVICE_GET_DTPATH, rfc.DTPATH, 25, 9, REGION, 0)
    with refused(desk, errno.EINVAL):
        ask(desk, rfc.VFIO_DEVICE_GET_DTPATH, rfc.DTPATH, 25, 0, 0, 0)
