"""Calls on descriptors: ioctl, pread and pwrite, mmap, close, dup and their kin.

The filter notifies them for the reserved range, and the calls that can only mean VFIO for any descriptor. A
handler looks the file up, calls its method, and copies data; a descriptor that is not ours goes back to the
kernel (None). What changes the table of descriptors is done by the kernel too; here the cache is kept exact.

Reading and writing at the file position is what migration data are made for. Device files have a position too, though
no VFIO program uses it: it starts at 0 and cannot be sought. What was moved before an error counts, as in the kernel.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from uvfio.doors.run.handlers.paths import ARG, Request
from uvfio.doors.run.linux import syscalls as sc
from uvfio.doors.run.linux.stat import pack_stat, pack_stat_32
from uvfio.errors import InvalidArgument
from uvfio.uapi.seccomp import AUDIT_ARCH_I386

if TYPE_CHECKING:
    from collections.abc import Callable

    from uvfio.core.seams import Memory
    from uvfio.doors.run.session.processes import Process
    from uvfio.doors.run.supervisor import Supervisor
    from uvfio.fops.file import File

__all__ = ["Calls"]

F_DUPFD = 0
F_GETFL = 3
O_LARGEFILE = 0o100000
F_DUPFD_CLOEXEC = 1030
PROT_EXEC = 0x4
MAP_TYPE = 0x0F
MAP_PRIVATE = 0x02
UIO_MAXIOV = 1024
PIECE = 1 << 20  # bytes copied at a time
MAX_RW_COUNT = 0x7FFFF000
INT = 0xFFFFFFFF
MINUS_ONE = (1 << 64) - 1


class Calls:
    """The handlers, by the kernel's names."""

    def __init__(self, supervisor: Supervisor) -> None:
        self.supervisor = supervisor
        self.polls = supervisor.tokens.polls
        self.by_tid = supervisor.processes.by_tid
        self.discover = supervisor.processes.discover

    # -- the hot ones ------------------------------------------------------------------------------

    def pread64(self, request: Request) -> int | None:
        process = self.by_tid.get(request[1]) or self.discover(request[1])
        file = process.files.get(request[6]) or process.lookup(request[1], request[6] & INT)
        if file is None:
            return self._not_ours(request)
        if self.polls.active:
            self.polls.look()
        return self.read_at(process, file, request[7], request[8], request[9])

    def pwrite64(self, request: Request) -> int | None:
        process = self.by_tid.get(request[1]) or self.discover(request[1])
        file = process.files.get(request[6]) or process.lookup(request[1], request[6] & INT)
        if file is None:
            return self._not_ours(request)
        if self.polls.active:
            self.polls.look()
        return self.write_at(process, file, request[7], request[8], request[9])

    def ioctl(self, request: Request) -> int | None:
        process = self.by_tid.get(request[1]) or self.discover(request[1])
        file = process.files.get(request[6]) or process.lookup(request[1], request[6] & INT)
        if file is None:
            return self._not_ours(request)
        if self.polls.active:
            self.polls.look()  # what was stored before this call has had its effect
        if file.structural:
            self.supervisor.settle()  # what was closed before this call is closed
            if file.released:  # this very file: by another thread, or a kill, after the call began
                found = process.lookup(request[1], request[6] & INT)
                if found is None:
                    return self._not_ours(request)
                file = found
        return file.ioctl(process, request[7] & INT, request[8])

    def _not_ours(self, request: Request) -> int | None:
        """For the kernel; but a closed number must not become one of ours before the kernel looks at it."""
        fd = request[6] & INT
        closed = f"/proc/{request[1]}/fd/{fd}"
        if fd in self.supervisor.reserved and not os.path.lexists(closed):
            raise OSError(errno.EBADF, f"descriptor {fd} is not open")
        return None

    # -- reading and writing -----------------------------------------------------------------------

    @staticmethod
    def read_at(process: Process, file: File, address: int, count: int, offset: int) -> int:
        """Copy up to ``count`` bytes at ``offset`` of ``file`` into the program."""
        if offset >= 1 << 63:
            raise InvalidArgument("negative offset")
        if count <= PIECE:
            data = file.pread(process, count, offset)
            size = len(data)
            page = address >> 12
            if page in process.writable and (address + size - 1) >> 12 == page:
                # Faster than memory.write, and the same for a page that it could write to before.
                try:
                    if os.pwrite(process.space.fd, data, address) == size:
                        return size
                except OSError:
                    pass
            process.memory.write(address, data)
            if size:
                process.remember_writable(page)
            return size
        done = 0
        count = min(count, MAX_RW_COUNT)
        while done < count:
            try:
                data = file.pread(process, min(PIECE, count - done), offset + done)
                process.memory.write(address + done, data)
            except OSError:
                if done:
                    break
                raise
            done += len(data)
            if len(data) < PIECE:
                break
        return done

    @staticmethod
    def write_at(process: Process, file: File, address: int, count: int, offset: int) -> int:
        """Copy up to ``count`` bytes of the program to ``offset`` of ``file``."""
        if offset >= 1 << 63:
            raise InvalidArgument("negative offset")
        if count <= PIECE:
            return file.pwrite(process, process.memory.read(address, count), offset)
        done = 0
        count = min(count, MAX_RW_COUNT)
        while done < count:
            size = min(PIECE, count - done)
            try:
                data = process.memory.read(address + done, size)
                taken = file.pwrite(process, data, offset + done)
            except OSError:
                if done:
                    break
                raise
            done += taken
            if taken < size:
                break
        return done

    def pread64_32(self, request: Request) -> int | None:
        return self.pread64((*request[:9], request[9] & INT | request[10] << 32, 0, 0))

    def pwrite64_32(self, request: Request) -> int | None:
        return self.pwrite64((*request[:9], request[9] & INT | request[10] << 32, 0, 0))

    def read(self, request: Request) -> int | None:
        return self._sequential(request, self.read_at)

    def write(self, request: Request) -> int | None:
        return self._sequential(request, self.write_at)

    def _sequential(self, request: Request, move: Callable[..., int]) -> int | None:
        found = self._find(request)
        if found is None:
            return None
        process, file = found
        token = process.token(request[1], request[6] & INT)
        if token is None:
            return None
        done = move(process, file.sequential(), request[7], request[8], token.position)
        token.position += done
        return done

    @staticmethod
    def parts(process: Process, address: int, count: int, width: int) -> list[tuple[int, int]]:
        """(address, bytes) of each part of an iovec with words of ``width`` bytes."""
        if count > UIO_MAXIOV:
            raise InvalidArgument(f"{count} parts, at most {UIO_MAXIOV}")
        raw = process.memory.read(address, count * 2 * width)
        words = [int.from_bytes(raw[at : at + width], "little") for at in range(0, len(raw), width)]
        return list(zip(words[::2], words[1::2], strict=True))

    def _vector(
        self, request: Request, move: Callable[..., int], width: int, offset: int | None
    ) -> int | None:
        found = self._find(request)
        if found is None:
            return None
        process, file = found
        token = process.token(request[1], request[6] & INT) if offset is None else None
        file = file.sequential() if offset is None else file
        position = offset if offset is not None else token.position if token else 0
        if file.whole and move == self.write_at:
            whole = bytearray()
            for base, size in self.parts(process, request[7], request[8], width):
                whole += process.memory.read(base, min(size, PIECE - len(whole)))
            done = file.pwrite(process, bytes(whole), position)
            if token is not None:
                token.position += done
            return done
        done = 0
        for base, size in self.parts(process, request[7], request[8], width):
            if not size:
                continue
            try:
                moved = move(process, file, base, size, position + done)
            except OSError:
                if done:
                    break
                raise
            done += moved
            if moved < size:
                break
        if token is not None:
            token.position += done
        return done

    def readv(self, request: Request) -> int | None:
        return self._vector(request, self.read_at, 8, None)

    def writev(self, request: Request) -> int | None:
        return self._vector(request, self.write_at, 8, None)

    def preadv(self, request: Request) -> int | None:
        return self._vector(request, self.read_at, 8, request[9])

    def pwritev(self, request: Request) -> int | None:
        return self._vector(request, self.write_at, 8, request[9])

    def preadv2(self, request: Request) -> int | None:
        """As preadv, but offset -1 is the file position."""
        return self.readv(request) if request[9] == MINUS_ONE else self.preadv(request)

    def pwritev2(self, request: Request) -> int | None:
        return self.writev(request) if request[9] == MINUS_ONE else self.pwritev(request)

    def readv_32(self, request: Request) -> int | None:
        return self._vector(request, self.read_at, 4, None)

    def writev_32(self, request: Request) -> int | None:
        return self._vector(request, self.write_at, 4, None)

    def preadv_32(self, request: Request) -> int | None:
        return self._vector(request, self.read_at, 4, request[9] & INT | request[10] << 32)

    def pwritev_32(self, request: Request) -> int | None:
        return self._vector(request, self.write_at, 4, request[9] & INT | request[10] << 32)

    def preadv2_32(self, request: Request) -> int | None:
        current = request[9] & request[10] & INT == INT
        return self.readv_32(request) if current else self.preadv_32(request)

    def pwritev2_32(self, request: Request) -> int | None:
        current = request[9] & request[10] & INT == INT
        return self.writev_32(request) if current else self.pwritev_32(request)

    # -- mapping -----------------------------------------------------------------------------------

    def mmap(self, request: Request) -> int | None:
        return self._mmap(request, request[11])

    def mmap2(self, request: Request) -> int | None:
        return self._mmap(request, (request[11] & INT) << 12)

    def _mmap(self, request: Request, offset: int) -> int | None:
        process = self.supervisor.processes.get(request[1])
        file = process.lookup(request[1], request[10] & INT)
        if file is None:
            return None
        if request[8] & PROT_EXEC and file.noexec:
            raise OSError(errno.EPERM, "device memory is not for execution")
        size = -(-request[7] // 4096) * 4096
        shared = request[9] & MAP_TYPE != MAP_PRIVATE
        file.mmap(process, size, offset, shared)
        if file.alone:
            self.supervisor.expose(process, request[1], request[10] & INT, file)
        if file.region_memory is not None:
            self.supervisor.tokens.mapped(file.region_memory)
        return None  # allowed: the kernel maps the token's own bytes

    # -- the table of descriptors --------------------------------------------------------------------

    def close(self, request: Request) -> int | None:
        process = self.by_tid.get(request[1]) or self.discover(request[1])
        process.files.pop(request[6] & INT, None)
        return None

    def close_range(self, request: Request) -> int | None:
        process = self.supervisor.processes.get(request[1])
        if request[8] & sc.CLOSE_RANGE_UNSHARE:
            self.supervisor.processes.unshared(process)
        first, last = request[6] & INT, request[7] & INT
        for number in [n for n in process.files if first <= n <= last]:
            del process.files[number]
        return None

    def dup(self, request: Request) -> int | None:
        return self._duplicate(request, 0, False)

    def dup2(self, request: Request) -> int | None:
        process = self.supervisor.processes.get(request[1])
        if request[6] & INT != request[7] & INT:
            if request[7] & INT not in self.supervisor.reserved:
                file = process.lookup(request[1], request[6] & INT)
                if file is not None and file.whole:
                    self.supervisor.copies.follow(process, request[1])
            process.files.pop(request[7] & INT, None)
        return None

    def fcntl(self, request: Request) -> int | None:
        command = request[7] & INT
        if command in (F_DUPFD, F_DUPFD_CLOEXEC):
            return self._duplicate(request, request[8] & INT, command == F_DUPFD_CLOEXEC)
        return self._flags(request) if command == F_GETFL else None

    def _flags(self, request: Request) -> int | None:
        """What a file was opened with. Those that no path leads to were never opened, so not for large sizes."""
        found = self._find(request)
        if found is None or found[1].name.startswith("/"):
            return None
        flags = found[0].open_flags(request[1], request[6] & INT)
        return flags & ~(O_LARGEFILE | os.O_CLOEXEC)

    def _duplicate(self, request: Request, least: int, cloexec: bool) -> int | None:
        """A copy in the reserved range, where the registers of region 0 stay reachable."""
        process = self.supervisor.processes.get(request[1])
        fd = request[6] & INT
        if process.lookup(request[1], fd) is None or not process.cacheable:
            return None
        number = process.free_number(least)
        if number is None or process.pidfd < 0:
            return None
        try:
            copy = process.copy_descriptor(fd)
        except OSError:
            return None
        try:
            return self.supervisor.addfd(copy, number, cloexec)
        finally:
            os.close(copy)

    def unshare(self, request: Request) -> int | None:
        self.supervisor.processes.unshared(self.supervisor.processes.get(request[1]))
        return None

    # -- what a VFIO file cannot do, and its facts ---------------------------------------------------

    def lseek(self, request: Request) -> int | None:
        offset, bits = request[7], 64
        if request[4] == AUDIT_ARCH_I386:
            offset, bits = offset & INT, 32
        return self._seek(request, offset - (offset >> bits - 1 << bits), request[8] & INT)

    def llseek(self, request: Request) -> int | None:
        """_llseek of i386: the offset in two halves, the result in memory."""
        offset = (request[7] & INT) << 32 | request[8] & INT
        place = self._seek(request, offset - (offset >> 63 << 64), request[10] & INT)
        if place is None:
            return None
        self.supervisor.processes.get(request[1]).memory.write(
            request[9], place.to_bytes(8, "little")
        )
        return 0

    def _seek(self, request: Request, offset: int, whence: int) -> int | None:
        found = self._find(request)
        if found is None:
            return None
        process, file = found
        token = process.token(request[1], request[6] & INT)
        if not file.whole or token is None:
            raise OSError(errno.ESPIPE, "a VFIO file has no position to set")
        if whence == os.SEEK_END:
            offset += self.supervisor.paths.token_facts(token).real.st_size
        elif whence == os.SEEK_CUR:
            offset += token.position
        elif whence != os.SEEK_SET:
            raise InvalidArgument(f"whence {whence}")
        if offset < 0:
            raise InvalidArgument(f"position {offset}")
        token.position = offset
        return offset

    def truncate(self, request: Request) -> int | None:
        """Files of sysfs let it pass, and nothing happens (kernfs_iop_setattr)."""
        found = self._find(request)
        if found is None:
            return None
        if not found[1].whole:
            raise OSError(errno.EINVAL, "not possible with a VFIO file")
        return 0

    def not_possible(self, request: Request) -> int | None:
        """Calls that change the contents of a file as a whole: truncate, allocate, sync."""
        return self._refuse(request, errno.EINVAL, "not possible with a VFIO file")

    def cannot_move(self, request: Request) -> int | None:
        """sendfile: either descriptor, out and in, may be ours."""
        return self._refuse(request, errno.EINVAL, "bytes of a VFIO file cannot be moved", 1)

    def cannot_splice(self, request: Request) -> int | None:
        """splice and copy_file_range: in is argument 0, out is argument 2."""
        return self._refuse(request, errno.EINVAL, "bytes of a VFIO file cannot be moved", 2)

    def pass_on(self, request: Request) -> int | None:
        """The token answers for itself."""
        return None

    def not_permitted(self, request: Request) -> int | None:
        return self._refuse(request, errno.EPERM, "the machine's files belong to the machine")

    def fstat(self, request: Request) -> int | None:
        return self._fstat(request, pack_stat)

    def fstat64(self, request: Request) -> int | None:
        return self._fstat(request, pack_stat_32)

    def _fstat(self, request: Request, pack: Callable[..., bytes]) -> int | None:
        process = self.supervisor.processes.get(request[1])
        token = process.token(request[1], request[6] & INT)
        if token is None:
            return None
        memory: Memory = process.memory
        memory.write(request[7], pack(self.supervisor.paths.token_facts(token)))
        return 0

    def _refuse(self, request: Request, number: int, why: str, other: int = 0) -> int | None:
        """Fail if argument 0, or argument ``other``, is a VFIO file."""
        if self._find(request) is None and self._find(request, other) is None:
            return None
        raise OSError(number, why)

    def _find(self, request: Request, argument: int = 0) -> tuple[Process, File] | None:
        if self.polls.active:
            self.polls.look()
        process = self.supervisor.processes.get(request[1])
        file = process.lookup(request[1], request[ARG + argument] & INT)
        return None if file is None else (process, file)
