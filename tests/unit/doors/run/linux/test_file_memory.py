"""Memory files in real hands: what devices read and write, and that shortening a file harms nobody."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from uvfio.doors.run.linux.file_memory import FileMemory
from uvfio.errors import BadAddress, InvalidArgument

SIZE = 8192


@pytest.fixture
def fd() -> Iterator[int]:
    fd = os.memfd_create("memory", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, SIZE)
    yield fd
    os.close(fd)


@pytest.fixture
def memory(fd: int) -> FileMemory:
    return FileMemory(os.dup(fd))


def test_bytes(fd: int, memory: FileMemory) -> None:
    memory.write(4090, b"across pages")
    assert os.pread(fd, 12, 4090) == b"across pages"
    assert memory.read(4090, 12) == b"across pages"
    for width in (2, 4, 8):
        memory.store(64, 1 << 8 * width - 1, width)
        assert os.pread(fd, width, 64) == (1 << 8 * width - 1).to_bytes(width, "little")
    memory.view(100, 5)[:] = b"view!"
    assert os.pread(fd, 5, 100) == b"view!"


def test_what_can_be_given_to_a_device(fd: int, memory: FileMemory, tmp_path: Path) -> None:
    assert memory.pin(0, SIZE, True).locked == SIZE
    with pytest.raises(InvalidArgument, match="beyond the end"):
        memory.pin(4096, SIZE, False)
    with pytest.raises(InvalidArgument, match="no memfd"):
        FileMemory(os.dup(fd), usable=False).pin(0, 4096, False)
    event = FileMemory(os.eventfd(0))
    with pytest.raises(InvalidArgument, match="no memfd"):
        event.pin(0, 1, False)


def test_a_file_that_became_shorter(fd: int, memory: FileMemory) -> None:
    memory.store(4096, 1, 8)
    os.ftruncate(fd, 4096)
    for call in (
        lambda: memory.read(4096, 8),
        lambda: memory.write(4096, b"12345678"),
        lambda: memory.store(4096, 1, 8),
        lambda: memory.view(4090, 8),
    ):
        with pytest.raises(BadAddress):
            call()
    assert os.fstat(fd).st_size == 4096


def test_a_file_that_must_not_change(fd: int, memory: FileMemory) -> None:
    import fcntl

    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    with pytest.raises(BadAddress, match="cannot write"):
        memory.write(0, b"x")
    with pytest.raises(BadAddress, match="cannot map"):
        memory.view(0, 1)


def test_its_descriptor_goes_with_it(fd: int) -> None:
    copy = os.dup(fd)
    memory = FileMemory(copy)
    del memory
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(copy)
