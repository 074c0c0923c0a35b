"""The data of a migration: what comes out goes in, piece by piece; everything wrong is found."""

from __future__ import annotations

import struct
from zlib import crc32

import pytest

from uvfio.core.migration.stream import (
    BLOCK,
    BYTES,
    END,
    HEAD,
    IDENTITY,
    MAGIC,
    PIECE_MAX,
    RECORD,
    STATE,
    STATE_MAX,
    ZEROS,
    ResumingStream,
    SavingStream,
)
from uvfio.errors import Gone, InvalidArgument, NoData

NAME = "Model 1234:0001"
SIZE = 40 * BLOCK


def memories(fill: bool = False) -> dict[int, memoryview]:
    made = {0: memoryview(bytearray(100)), 2: memoryview(bytearray(SIZE))}
    if fill:
        made[0][:] = bytes(range(100))
        made[2][3 * BLOCK : 5 * BLOCK] = bytes(range(256)) * 32
        made[2][SIZE - 1] = 9
    return made


def drain(stream: SavingStream, position: int = 0, piece: int = 777) -> bytes:
    """Everything up to the end."""
    got = b""
    while data := stream.read(position + len(got), piece):
        got += data
    return got


def drain_live(stream: SavingStream, position: int = 0) -> bytes:
    """Everything there is at the moment."""
    got = b""
    while True:
        try:
            got += stream.read(position + len(got), 5000)
        except NoData:
            return got


def saved(state: bytes = b"state") -> bytes:
    stream = SavingStream(NAME, memories(fill=True))
    stream.finish(state)
    return drain(stream)


def take(data: bytes, piece: int, name: str = NAME) -> tuple[bytes, dict[int, memoryview]]:
    target = memories()
    target[2][:] = b"\xaa" * SIZE
    stream = ResumingStream(name, target)
    for at in range(0, len(data), piece):
        assert stream.write(data[at : at + piece]) == len(data[at : at + piece])
    return stream.finish(), target


@pytest.mark.parametrize("piece", [1, 23, 4096, 1 << 20])
def test_what_comes_out_goes_in(piece: int) -> None:
    state, target = take(saved(), piece)
    source = memories(fill=True)
    assert state == b"state"
    assert target[0] == source[0]
    assert bytes(target[2]) == bytes(source[2])


@pytest.mark.parametrize("piece", [1, 50, 1 << 21])
def test_reads_of_any_size_give_the_same(piece: int) -> None:
    stream = SavingStream(NAME, memories(fill=True))
    stream.finish(b"state")
    assert drain(stream, piece=piece) == saved()


def test_large_memory_goes_in_pieces() -> None:
    memory = memoryview(bytearray(b"\x01" * (3 * PIECE_MAX + 5)))
    stream = SavingStream(NAME, {1: memory})
    stream.finish(b"")
    assert len(stream.read(0, 1000)) == 1000
    assert stream._end < 2 * PIECE_MAX, "memory is read when it is asked for"
    target = memoryview(bytearray(len(memory)))
    resuming = ResumingStream(NAME, {1: target})
    resuming.write(drain(stream, piece=1 << 22))
    assert resuming.finish() == b""
    assert bytes(target) == bytes(memory)


def test_blank_memory_takes_no_room() -> None:
    stream = SavingStream(NAME, memories())
    stream.finish(b"")
    assert len(drain(stream)) < 300


def test_a_read_can_be_repeated_until_the_next_one() -> None:
    stream = SavingStream(NAME, memories(fill=True))
    stream.finish(b"")
    first = stream.read(0, 500)
    assert stream.read(0, 500) == first
    stream.read(500, 5000)
    stream.read(5500, 10)
    with pytest.raises(InvalidArgument, match="position 0 is not between"):
        stream.read(0, 1)


def test_a_device_that_runs_gives_what_changes() -> None:
    source = memories(fill=True)
    stream = SavingStream(NAME, source)
    stream.begin()
    initial, dirty = stream.remaining()
    assert initial > 2 * BLOCK
    assert dirty == 0
    got = drain_live(stream)
    assert len(got) == initial
    assert stream.remaining() == (0, 0)
    source[2][7 * BLOCK] = 1
    source[2][3 * BLOCK : 5 * BLOCK] = bytes(2 * BLOCK)
    source[0][99] = 0
    assert stream.remaining() == (0, 3 * (RECORD.size + BLOCK) + RECORD.size + 100)
    got += drain_live(stream, len(got))
    assert stream.remaining() == (0, 0)
    source[2][8 * BLOCK] = 2
    stream.finish(b"late")
    got += drain(stream, len(got))
    assert stream.read(len(got), 10) == b""
    state, target = take(got, 10000)
    assert state == b"late"
    assert target[0] == source[0]
    assert bytes(target[2]) == bytes(source[2])


def test_finishing_before_anything_was_read() -> None:
    source = memories(fill=True)
    stream = SavingStream(NAME, source)
    stream.begin()
    source[2][0] = 77
    stream.finish(b"s")
    state, target = take(drain(stream), 100)
    assert state == b"s"
    assert bytes(target[2]) == bytes(source[2])


def test_a_read_of_nothing_is_no_end() -> None:
    stream = SavingStream(NAME, memories())
    stream.begin()
    got = drain_live(stream)
    assert stream.read(len(got), 0) == b""


def test_closed_streams_are_gone() -> None:
    saving = SavingStream(NAME, memories())
    saving.close()
    with pytest.raises(Gone):
        saving.read(0, 1)
    resuming = ResumingStream(NAME, memories())
    resuming.close()
    with pytest.raises(Gone):
        resuming.write(b"x")


def test_too_much_state() -> None:
    with pytest.raises(InvalidArgument, match="more than"):
        SavingStream(NAME, {}).finish(bytes(STATE_MAX + 1))


# -- what is wrong -------------------------------------------------------------------------------


def test_every_damaged_byte_is_found() -> None:
    good = saved()
    for at in [*range(200), *range(200, len(good), 61), *range(len(good) - 60, len(good))]:
        bad = bytearray(good)
        bad[at] ^= 0x40
        with pytest.raises(InvalidArgument):
            take(bytes(bad), 512)


def test_every_cut_is_found() -> None:
    good = saved()
    for size in [*range(120), *range(120, len(good), 97), len(good) - 1]:
        with pytest.raises(InvalidArgument, match="too early"):
            take(good[:size], 4096)


def test_nothing_is_taken_after_a_mistake() -> None:
    stream = ResumingStream(NAME, memories())
    with pytest.raises(InvalidArgument, match="no migration data"):
        stream.write(bytes(16))
    with pytest.raises(InvalidArgument, match="no migration data"):
        stream.write(saved())
    with pytest.raises(InvalidArgument, match="no migration data"):
        stream.finish()


def test_another_device() -> None:
    with pytest.raises(InvalidArgument, match="another device: Model 1234:0001"):
        take(saved(), 4096, name="Model 1234:0002")


def record(kind: int, payload: bytes = b"", index: int = 0, offset: int = 0) -> bytes:
    return RECORD.pack(kind, index, offset, len(payload)) + payload


START = HEAD.pack(MAGIC, 1, 0)
KNOWN = START + record(IDENTITY, NAME.encode())


def ended(data: bytes) -> bytes:
    return data + record(END, struct.pack("<I", crc32(data)), offset=len(data))


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (HEAD.pack(MAGIC, 2, 0), "version 2.0"),
        (HEAD.pack(MAGIC, 1, 1), "version 1.1"),
        (START + record(STATE, b"s"), "identity comes first"),
        (KNOWN + record(IDENTITY, NAME.encode()), "identity comes first"),
        (START + RECORD.pack(IDENTITY, 0, 0, 1 << 40), "not possible"),
        (KNOWN + record(BYTES, b"x", index=1), "not inside memory 1"),
        (KNOWN + record(BYTES, b"xx", index=0, offset=99), "not inside memory 0"),
        (KNOWN + RECORD.pack(ZEROS, 2, 0, SIZE + 1), "not inside memory 2"),
        (KNOWN + RECORD.pack(ZEROS, 2, (1 << 64) - 1, 1), "not inside memory 2"),
        (KNOWN + RECORD.pack(STATE, 0, 0, STATE_MAX + 1), "not possible"),
        (KNOWN + record(STATE) + record(STATE), "comes once"),
        (KNOWN + record(9), "not possible"),
        (ended(KNOWN), "an end is not possible"),
        (ended(KNOWN + record(STATE)) + b"x", "follow the end"),
    ],
)
def test_records_that_cannot_be(data: bytes, why: str) -> None:
    with pytest.raises(InvalidArgument, match=why):
        take(data, len(data))


def test_a_stream_put_together_by_hand() -> None:
    state, target = take(ended(KNOWN + record(STATE, b"s") + RECORD.pack(ZEROS, 2, 0, SIZE)), 7)
    assert state == b"s"
    assert bytes(target[2]) == bytes(SIZE)
