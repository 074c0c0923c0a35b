"""The data of one migration: ``SavingStream`` makes it, ``ResumingStream`` takes it in. The format is our own.

A stream is a head of 16 bytes and records, all little-endian. A record is a head of 24 bytes and ``length`` bytes::

    head      8 bytes "UVFIOMIG", u32 version (1), u32 0
    record    u32 kind, u32 index, u64 offset, u64 length, then the payload

    kind      index, offset          length, payload
    IDENTITY  0, 0                   text: which device it is; the first record, and the only one of its kind
    BYTES     of memory ``index``    at most 1 MiB, the bytes that are there
    ZEROS     of memory ``index``    how many zeros are there; no payload
    STATE     0, 0                   at most 16 MiB: everything else, as the driver made it; once
    END       0, bytes before it     4: CRC-32 of everything before this record; the last record

While the device runs (PRE_COPY) a saving stream has the identity and a copy of all memory, which are the *initial*
data, then the blocks of 4096 bytes that have changed since they were put in. ``finish`` adds what changed last, the
state and the end. A stream that is made for a stopped device has it all at once, and reads memory when it is
asked for.

Positions count bytes from the beginning and only go forward. What lies before the position of a read is forgotten
at that read, so a read whose bytes did not reach the program can be repeated.

A resuming stream checks each record as soon as it is whole and puts memory in its place at once; the state is given
out by ``finish``. After the first mistake it takes no more.

Neither knows devices, states or files: memory is a mapping of views, all else is text and bytes.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Final
from zlib import crc32

from uvfio.errors import Gone, InvalidArgument, NoData

__all__ = ["BLOCK", "ResumingStream", "SavingStream"]

MAGIC: Final = b"UVFIOMIG"
VERSION: Final = 1
BLOCK: Final = 4096
PIECE_MAX: Final = 1 << 20
TEXT_MAX: Final = 1 << 16
STATE_MAX: Final = 16 << 20

HEAD: Final = struct.Struct("<8sII")
RECORD: Final = struct.Struct("<IIQQ")
IDENTITY, BYTES, ZEROS, STATE, END = range(1, 6)

_ZEROS: Final = bytes(PIECE_MAX)
_BLANK: Final = _ZEROS[:BLOCK]

Memories = Mapping[int, memoryview]


class SavingStream:
    """See the module's head. ``live``: the device runs, ``finish`` comes later."""

    def __init__(self, identity: str, memories: Memories) -> None:
        self._memories = memories
        self._chunks: deque[bytes] = deque()
        self._start = 0  # position of the first chunk
        self._end = 0  # how much was made so far
        self._position = 0  # up to where it was read
        self._crc = 0
        self._initial = 0  # where the initial data end
        self._sent: dict[int, list[bytes]] | None = None
        self._source: Iterator[None] | None = None
        self._complete = False
        self.closed = False
        text = identity.encode()
        self._emit(HEAD.pack(MAGIC, VERSION, 0))
        self._emit(RECORD.pack(IDENTITY, 0, 0, len(text)) + text)

    def begin(self) -> None:
        """The device runs on: put a copy of all memory in."""
        self._sent = {}
        for index, memory in self._memories.items():
            self._sent[index] = [
                _shared(bytes(memory[at : at + BLOCK])) for at in range(0, len(memory), BLOCK)
            ]
            for at in range(0, len(memory), PIECE_MAX):
                first = at // BLOCK
                self._emit_run(index, at, self._sent[index][first : first + PIECE_MAX // BLOCK])
        self._initial = self._end

    def finish(self, state: bytes) -> None:
        """The device has stopped and ``state`` is what it has besides memory: the rest may be read."""
        if len(state) > STATE_MAX:
            raise InvalidArgument(f"{len(state)} bytes of state are more than {STATE_MAX}")
        self._source = self._rest(state)

    def close(self) -> None:
        """The session is over; reads are Gone from now on, and nothing is kept."""
        self.closed = True
        self._chunks.clear()
        self._sent = self._source = None
        self._memories = {}

    def read(self, position: int, count: int) -> bytes:
        """Up to ``count`` bytes from ``position``; empty at the end of a finished stream.

        NoData while the device runs and nothing new is there, Gone after ``close``, InvalidArgument for a position
        that was left behind.
        """
        if self.closed:
            raise Gone(
                "the data transfer is over: the device has left the state that it belongs to"
            )
        self._forget(position)
        while self._end - position < count and self._more():
            pass
        data = self._take(position - self._start, min(count, self._end - position))
        if count and not data and not self._complete:
            raise NoData("the device runs and has no more data at the moment", "stop it to go on")
        self._position = position + len(data)
        return data

    def remaining(self) -> tuple[int, int]:
        """Bytes not yet read while the device runs: of the initial data, and of what has changed since."""
        initial = max(self._initial - self._position, 0)
        dirty = max(self._end - max(self._position, self._initial), 0)
        return initial, dirty + sum(RECORD.size + len(data) for _, _, data in self._changed())

    # -- inner ---------------------------------------------------------------------------------------

    def _forget(self, position: int) -> None:
        if not self._start <= position <= self._end:
            raise InvalidArgument(
                f"position {position} is not between {self._start} and {self._end}"
            )
        while self._chunks and self._start + len(self._chunks[0]) <= position:
            self._start += len(self._chunks.popleft())

    def _take(self, skip: int, count: int) -> bytes:
        found = []
        for chunk in self._chunks:
            if count <= 0:
                break
            part = chunk[skip : skip + count] if skip or count < len(chunk) else chunk
            found.append(part)
            count -= len(part)
            skip = 0
        return b"".join(found)

    def _more(self) -> bool:
        """Make some more; False if there is nothing."""
        if self._source is not None:
            before = self._end
            for _ in self._source:
                if self._end > before:
                    return True
            self._source, self._complete = None, True
            return self._end > before
        if self._complete or self._end > max(self._position, self._initial):
            return False
        return self._emit_changes()

    def _rest(self, state: bytes) -> Iterator[None]:
        if self._sent is None:
            for index, memory in self._memories.items():
                for at in range(0, len(memory), PIECE_MAX):
                    self._emit_run(index, at, [bytes(memory[at : at + PIECE_MAX])])
                    yield
        else:
            self._emit_changes()
            self._sent = None
            yield
        self._emit(RECORD.pack(STATE, 0, 0, len(state)) + state)
        self._emit(RECORD.pack(END, 0, self._end, 4) + struct.pack("<I", self._crc))

    def _changed(self) -> Iterator[tuple[int, int, bytes]]:
        """Blocks that differ from what was put in: memory, offset, bytes."""
        for index, blocks in (self._sent or {}).items():
            memory = self._memories[index]
            for number, block in enumerate(blocks):
                at = number * BLOCK
                data = bytes(memory[at : at + BLOCK])
                if data != block:
                    yield index, at, data

    def _emit_changes(self) -> bool:
        assert self._sent is not None
        before = self._end
        for index, at, data in list(self._changed()):
            self._sent[index][at // BLOCK] = block = _shared(data)
            self._emit_run(index, at, [block])
        return self._end > before

    def _emit_run(self, index: int, at: int, blocks: list[bytes]) -> None:
        size = sum(map(len, blocks))
        if all(block == _ZEROS[: len(block)] for block in blocks):
            self._emit(RECORD.pack(ZEROS, index, at, size))
            return
        self._emit(RECORD.pack(BYTES, index, at, size))
        for block in blocks:
            self._emit(block)

    def _emit(self, chunk: bytes) -> None:
        self._chunks.append(chunk)
        self._end += len(chunk)
        self._crc = crc32(chunk, self._crc)


def _shared(block: bytes) -> bytes:
    """The same bytes; blank blocks are one object."""
    return _BLANK if block == _BLANK else block


class ResumingStream:
    """See the module's head. ``identity`` and ``memories`` are those of the device that takes the data."""

    def __init__(self, identity: str, memories: Memories) -> None:
        self._identity = identity
        self._memories = memories
        self._buffer = bytearray()
        self._received = 0
        self._crc = 0
        self._known = False
        self._state: bytes | None = None
        self._complete = False
        self._wrong = ""
        self.closed = False

    def close(self) -> None:
        """The session is over; writes are Gone from now on, and nothing is kept."""
        self.closed = True
        self._buffer.clear()
        self._memories = {}

    def write(self, data: bytes) -> int:
        """Take ``data``, which continues what was written before. Gone after ``close``.

        InvalidArgument for data that are wrong or of another device, and for whatever follows such.
        """
        if self.closed:
            raise Gone("the data transfer is over: the device has left RESUMING")
        if self._wrong:
            raise InvalidArgument(self._wrong)
        self._buffer += data
        try:
            while self._step():
                pass
        except InvalidArgument as wrong:
            self._wrong = str(wrong)
            self._buffer.clear()
            raise
        return len(data)

    def finish(self) -> bytes:
        """The state that was in the stream. InvalidArgument if the stream was wrong or is not whole."""
        if self._wrong:
            raise InvalidArgument(self._wrong)
        if not self._complete or self._state is None:
            raise InvalidArgument(
                f"the migration data end after {self._received + len(self._buffer)} bytes, too early"
            )
        return self._state

    # -- inner ---------------------------------------------------------------------------------------

    def _step(self) -> bool:
        """Deal with one record, if it is whole."""
        if not self._received:
            return self._head()
        buffer = self._buffer
        if self._complete:
            if buffer:
                raise InvalidArgument(f"{len(buffer)} bytes follow the end of the migration data")
            return False
        if len(buffer) < RECORD.size:
            return False
        kind, index, offset, length = RECORD.unpack_from(buffer)
        size = RECORD.size + self._check(kind, index, offset, length)
        if len(buffer) < size:
            return False
        raw = bytes(buffer[:size])
        payload = raw[RECORD.size :]
        if kind == IDENTITY:
            self._compare(payload.decode(errors="replace"))
        elif kind == BYTES:
            self._memories[index][offset : offset + length] = payload
        elif kind == ZEROS:
            self._clear(self._memories[index], offset, length)
        elif kind == STATE:
            self._state = payload
        else:
            self._end(offset, int.from_bytes(payload, "little"))
        self._consume(raw)
        return True

    def _head(self) -> bool:
        if len(self._buffer) < HEAD.size:
            return False
        raw = bytes(self._buffer[: HEAD.size])
        magic, version, reserved = HEAD.unpack(raw)
        if magic != MAGIC:
            raise InvalidArgument("these are no migration data of uvfio")
        if version != VERSION or reserved:
            raise InvalidArgument(
                f"migration data of version {version}.{reserved}, this is {VERSION}.0"
            )
        self._consume(raw)
        return True

    def _check(self, kind: int, index: int, offset: int, length: int) -> int:
        """Bytes of the payload. InvalidArgument for a record that cannot be."""
        where = f"record {kind} at byte {self._received}"
        if (kind == IDENTITY) == self._known:
            raise InvalidArgument(f"{where}: the identity comes first, and once")
        if kind in (BYTES, ZEROS):
            memory = self._memories.get(index)
            if memory is None or offset + length > len(memory):
                raise InvalidArgument(
                    f"{where}: {offset:#x}+{length:#x} is not inside memory {index}"
                )
        most = {IDENTITY: TEXT_MAX, BYTES: PIECE_MAX, ZEROS: 1 << 64, STATE: STATE_MAX, END: 4}
        if length > most.get(kind, -1):
            raise InvalidArgument(f"{where}: {length} bytes are not possible")
        if kind == END and (length != 4 or index or self._state is None):
            raise InvalidArgument(f"{where}: an end is not possible here")
        if kind == STATE and self._state is not None:
            raise InvalidArgument(f"{where}: the state comes once")
        return 0 if kind == ZEROS else length

    def _compare(self, theirs: str) -> None:
        if theirs != self._identity:
            raise InvalidArgument(
                f"the migration data are of another device: {theirs}", f"this is {self._identity}"
            )
        self._known = True

    def _end(self, received: int, crc: int) -> None:
        if received != self._received or crc != self._crc:
            raise InvalidArgument(
                f"the migration data were damaged on the way: {self._received} bytes with checksum "
                f"{self._crc:#010x}, sent were {received} with {crc:#010x}"
            )
        self._complete = True

    def _consume(self, raw: bytes) -> None:
        del self._buffer[: len(raw)]
        self._received += len(raw)
        self._crc = crc32(raw, self._crc)

    @staticmethod
    def _clear(memory: memoryview, offset: int, length: int) -> None:
        for at in range(offset, offset + length, PIECE_MAX):
            size = min(PIECE_MAX, offset + length - at)
            memory[at : at + size] = _ZEROS[:size]
