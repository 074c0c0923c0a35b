"""Calls on descriptors: ioctl, pread and pwrite, mmap, close, dup and the like.

The filter notifies them for the reserved range, and calls that can only mean VFIO for any descriptor. A
handler looks the file up, calls its method, and copies data; a descriptor that is not of uvfio goes back to the
kernel (None). Changes to the table of descriptors are made by the kernel too; here the cache is kept exact.

Errors that a file's method raises (``uvfio.fops``) reach the program as they are; docstrings list those that the
handler adds. EFAULT for memory that the caller cannot read or write is one of each that copies data. What was moved
before an error counts, as in the kernel.

Reading and writing at the file position is used for migration data. Device files have a position too, though
no VFIO program uses it: it starts at 0 and cannot be set. It belongs to the token, so all descriptors of the open file
share it, in other processes too.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from uvfio.doors.run.filter.rules import ARG, INT, PAGE_SHIFT, SPLIT
from uvfio.doors.run.handlers.transfer import finish, read_piece, transfer, write_piece
from uvfio.doors.run.linux import proc
from uvfio.doors.run.linux import syscalls as sc
from uvfio.doors.run.linux.stat import pack_stat, pack_stat_32
from uvfio.doors.run.session.programs.numbers import may_reach
from uvfio.errors import InvalidArgument
from uvfio.fops.wire import REGISTERS_STRIDE
from uvfio.uapi.linux import (
    F_DUPFD,
    F_DUPFD_CLOEXEC,
    F_GETFL,
    MAP_ANONYMOUS,
    MAP_LOCKED,
    MAP_PRIVATE,
    MAP_TYPE,
    O_LARGEFILE,
    PROT_EXEC,
    UIO_MAXIOV,
)
from uvfio.uapi.rfc import VFIO_TYPE
from uvfio.uapi.seccomp import AUDIT_ARCH_I386

if TYPE_CHECKING:
    from collections.abc import Callable

    from uvfio.core.seams import Memory
    from uvfio.doors.run.filter.rules import Handler, Key, Request
    from uvfio.doors.run.handlers.copies import Copies
    from uvfio.doors.run.handlers.paths import Paths
    from uvfio.doors.run.handlers.transfer import Move, Work
    from uvfio.doors.run.session.programs.process import Process
    from uvfio.doors.run.session.session import Session
    from uvfio.doors.run.session.tokens import Token
    from uvfio.fops.file import File

__all__ = ["Calls"]

PIECE = 1 << 20  # bytes of one write to a sysfs file
SMALL = REGISTERS_STRIDE  # what one piece takes of any file
MINUS_ONE = (1 << 64) - 1


class Calls:
    """The handlers, by the kernel's names. ``handlers`` is the table of all of them, for the tracer of copies.

    The three hot ones and ``close`` look process and file up in place: a function call costs a tenth of the lookup.
    """

    def __init__(self, session: Session, paths: Paths, handlers: dict[Key, Handler]) -> None:
        self.session = session
        self.paths = paths
        self.handlers = handlers
        self.polls = session.tokens.polls
        self.by_tid = session.processes.by_tid
        self.discover = session.processes.discover
        self._copies: Copies | None = None

    @property
    def copies(self) -> Copies:
        """The tracer of copies of sysfs files; loaded with the first copy."""
        if self._copies is None:
            from uvfio.doors.run.handlers.copies import Copies

            self._copies = Copies(self.session, self.handlers)
        return self._copies

    # -- the hot ones ------------------------------------------------------------------------------

    def pread64(self, request: Request) -> int | None:
        """Read at an offset: the bytes moved. EINVAL for a negative offset, EFAULT; else as the file's ``pread``.

        Reading a register may have side effects in the device, which all its users see.
        """
        process = self.by_tid.get(request[1]) or self.discover(request[1])
        file = process.files.get(request[6]) or process.lookup(request[1], request[6] & INT)
        if file is None:
            return self._not_ours(request)
        if self.polls.active:
            self.polls.look()
        return self.read_at(process, file, request[7], request[8], request[9])

    def pwrite64(self, request: Request) -> int | None:
        """Write at an offset: the bytes taken. EINVAL for a negative offset, EFAULT; else as the file's ``pwrite``.

        A device acts on the write before the answer; interrupts that it raises reach any process with the eventfd.
        """
        process = self.by_tid.get(request[1]) or self.discover(request[1])
        file = process.files.get(request[6]) or process.lookup(request[1], request[6] & INT)
        if file is None:
            return self._not_ours(request)
        if self.polls.active:
            self.polls.look()
        return self.write_at(process, file, request[7], request[8], request[9])

    def ioctl(self, request: Request) -> int | None:
        """A VFIO request: its result, with the errno that the file's ``ioctl`` gives; may be Deferred. ENOTTY for any
        other request.

        Before a *structural* request (one on a group, container or iommufd) everything that any process has closed is
        released, so that the request finds it closed.
        """
        process = self.by_tid.get(request[1]) or self.discover(request[1])
        file = process.files.get(request[6]) or process.lookup(request[1], request[6] & INT)
        if file is None:
            return self._not_ours(request)
        if request[7] >> 8 & 0xFF != VFIO_TYPE:
            return self._no_request(request, file)
        if self.polls.active:
            self.polls.look()  # what was stored before this call has had its effect
        if file.structural:
            self.session.settle()  # what was closed before this call is closed
            if file.released:  # this very file: by another thread, or a kill, after the call began
                found = process.lookup(request[1], request[6] & INT)
                if found is None:
                    return self._not_ours(request)
                file = found
        return file.ioctl(process, request[7] & INT, request[8])

    @staticmethod
    def _no_request(request: Request, file: File) -> int | None:
        """FIONREAD and the like, which the kernel would answer for the token: ENOTTY, as for any file without them.
        Those of sysfs are plain files to the kernel, too."""
        if file.whole:
            return None
        raise OSError(errno.ENOTTY, f"{file.name} has no request {request[7] & INT:#x}")

    def _not_ours(self, request: Request) -> int | None:
        """Let the kernel run the call. EBADF for a closed number of the reserved range: it must not become a
        served file before the kernel looks it up."""
        fd = request[6] & INT
        closed = f"/proc/{request[1]}/fd/{fd}"
        if fd in self.session.reserved and not os.path.lexists(closed):
            raise OSError(errno.EBADF, f"descriptor {fd} is not open")
        return None

    # -- reading and writing -----------------------------------------------------------------------

    @staticmethod
    def read_at(process: Process, file: File, address: int, count: int, offset: int) -> int:
        """Copy up to ``count`` bytes at ``offset`` of ``file`` into the program; Deferred for more than one piece."""
        if offset >= 1 << 63:
            raise InvalidArgument("negative offset")
        if count <= SMALL or count <= file.stride(offset):
            data = file.pread(process, count, offset)
            size = len(data)
            page = address >> PAGE_SHIFT
            left = process.trusted.get(page)
            if left and (address + size - 1) >> PAGE_SHIFT == page:
                # Faster than memory.write, and the same for a page that the program can write to.
                try:
                    if os.pwrite(process.space.fd, data, address) == size:
                        process.trusted[page] = left - 1
                        return size
                except OSError:
                    pass
            process.memory.write(address, data)
            process.checked(page)
            return size
        work = transfer(process, file, read_piece, ((address, count),), offset)
        return finish(work, f"reading {count:#x} bytes of {file.name}")

    @staticmethod
    def write_at(process: Process, file: File, address: int, count: int, offset: int) -> int:
        """Copy up to ``count`` bytes of the program to ``offset`` of ``file``; Deferred for more than one piece."""
        if offset >= 1 << 63:
            raise InvalidArgument("negative offset")
        if count <= SMALL or count <= file.stride(offset):
            return file.pwrite(process, process.memory.read(address, count), offset)
        work = transfer(process, file, write_piece, ((address, count),), offset)
        return finish(work, f"writing {count:#x} bytes of {file.name}")

    def pread64_32(self, request: Request) -> int | None:
        """As ``pread64``; the offset is in two words."""
        return self.pread64((*request[:9], SPLIT.read(request), 0, 0))

    def pwrite64_32(self, request: Request) -> int | None:
        """As ``pwrite64``; the offset is in two words."""
        return self.pwrite64((*request[:9], SPLIT.read(request), 0, 0))

    def read(self, request: Request) -> int | None:
        """Read at the file position and advance it, for all holders of the file: the bytes moved. As ``pread``."""
        return self._sequential(request, read_piece)

    def write(self, request: Request) -> int | None:
        """Write at the file position and advance it, for all holders of the file: the bytes taken. As ``pwrite``."""
        return self._sequential(request, write_piece)

    def _sequential(self, request: Request, move: Move) -> int | None:
        found = self._find(request)
        if found is None:
            return None
        process, file = found
        token = process.token(request[1], request[6] & INT)
        if token is None:
            return None
        if not request[8]:  # what refuses to be read or written does so also without a byte
            return move(process, file.sequential(), request[7], 0, token.position)
        work = transfer(
            process, file.sequential(), move, ((request[7], request[8]),), token.position
        )
        return finish(_advance(token, work), f"moving {request[8]:#x} bytes of {file.name}")

    @staticmethod
    def parts(process: Process, address: int, count: int, width: int) -> list[tuple[int, int]]:
        """(address, bytes) of each part of an iovec with words of ``width`` bytes."""
        if count > UIO_MAXIOV:
            raise InvalidArgument(f"{count} parts, at most {UIO_MAXIOV}")
        raw = process.memory.read(address, count * 2 * width)
        words = [int.from_bytes(raw[at : at + width], "little") for at in range(0, len(raw), width)]
        return list(zip(words[::2], words[1::2], strict=True))

    def _vector(self, request: Request, move: Move, width: int, offset: int | None) -> int | None:
        found = self._find(request)
        if found is None:
            return None
        process, file = found
        token = process.token(request[1], request[6] & INT) if offset is None else None
        file = file.sequential() if offset is None else file
        position = offset if offset is not None else token.position if token else 0
        if file.whole and move is write_piece:
            whole = bytearray()
            for base, size in self.parts(process, request[7], request[8], width):
                whole += process.memory.read(base, min(size, PIECE - len(whole)))
            done = file.pwrite(process, bytes(whole), position)
            if token is not None:
                token.position += done
            return done
        if position >= 1 << 63:
            raise InvalidArgument("negative offset")
        parts = self.parts(process, request[7], request[8], width)
        work = transfer(process, file, move, parts, position)
        if token is not None:
            work = _advance(token, work)
        return finish(work, f"moving {len(parts)} parts of {file.name}")

    def readv(self, request: Request) -> int | None:
        """``read`` into several parts. EINVAL for more than 1024 of them (UIO_MAXIOV)."""
        return self._vector(request, read_piece, 8, None)

    def writev(self, request: Request) -> int | None:
        """``write`` of several parts; a sysfs file gets them as one. EINVAL for more than 1024 of them."""
        return self._vector(request, write_piece, 8, None)

    def preadv(self, request: Request) -> int | None:
        """``pread64`` into several parts; the position stays. EINVAL for more than 1024 of them."""
        return self._vector(request, read_piece, 8, request[9])

    def pwritev(self, request: Request) -> int | None:
        """``pwrite64`` of several parts; a sysfs file gets them as one. EINVAL for more than 1024 of them."""
        return self._vector(request, write_piece, 8, request[9])

    def preadv2(self, request: Request) -> int | None:
        """As preadv, but offset -1 is the file position."""
        return self.readv(request) if request[9] == MINUS_ONE else self.preadv(request)

    def pwritev2(self, request: Request) -> int | None:
        """As ``pwritev``, but offset -1 is the file position. Flags are ignored."""
        return self.writev(request) if request[9] == MINUS_ONE else self.pwritev(request)

    def readv_32(self, request: Request) -> int | None:
        """As ``readv``; an iovec has words of 4 bytes."""
        return self._vector(request, read_piece, 4, None)

    def writev_32(self, request: Request) -> int | None:
        """As ``writev``; an iovec has words of 4 bytes."""
        return self._vector(request, write_piece, 4, None)

    def preadv_32(self, request: Request) -> int | None:
        """As ``preadv``; words of 4 bytes, the offset in two of them."""
        return self._vector(request, read_piece, 4, SPLIT.read(request))

    def pwritev_32(self, request: Request) -> int | None:
        """As ``pwritev``; words of 4 bytes, the offset in two of them."""
        return self._vector(request, write_piece, 4, SPLIT.read(request))

    def preadv2_32(self, request: Request) -> int | None:
        """As ``preadv2``; words of 4 bytes, the offset in two of them."""
        current = SPLIT.read(request) == MINUS_ONE
        return self.readv_32(request) if current else self.preadv_32(request)

    def pwritev2_32(self, request: Request) -> int | None:
        """As ``pwritev2``; words of 4 bytes, the offset in two of them."""
        current = SPLIT.read(request) == MINUS_ONE
        return self.writev_32(request) if current else self.pwritev_32(request)

    # -- mapping -----------------------------------------------------------------------------------

    def mmap(self, request: Request) -> int | None:
        """Check a mapping of device memory; the kernel then maps the token's own bytes.

        EPERM for PROT_EXEC, else as the file's ``mmap``. The descriptor may be exchanged for one of the device's memory
        (``Session.expose``). Stores through the mapping are seen by all processes that map the region.
        """
        return self._mmap(request, request[11])

    def mmap2(self, request: Request) -> int | None:
        """As ``mmap``; the offset is a number of pages."""
        return self._mmap(request, (request[11] & INT) << PAGE_SHIFT)

    def _mmap(self, request: Request, offset: int) -> int | None:
        process = self.session.processes.get(request[1])
        if request[9] & MAP_LOCKED:
            process.begins_to_lock()
        if request[9] & MAP_ANONYMOUS:
            return None
        file = process.lookup(request[1], request[10] & INT)
        if file is None:
            return None
        if request[8] & PROT_EXEC and file.noexec:
            raise OSError(errno.EPERM, "device memory is not for execution")
        size = -(-request[7] // 4096) * 4096
        shared = request[9] & MAP_TYPE != MAP_PRIVATE
        file.mmap(process, size, offset, shared)
        if file.alone:
            self.session.expose(process, request[1], request[10] & INT, file)
        if file.region_memory is not None:
            self.session.tokens.mapped(file.region_memory)
        return None  # allowed: the kernel maps the token's own bytes

    def mlock(self, request: Request) -> int | None:
        """mlock, mlock2 and mlockall: left to the kernel. What the program locks counts with its DMA mappings."""
        self.session.processes.get(request[1]).begins_to_lock()
        return None

    # -- the table of descriptors --------------------------------------------------------------------

    def close(self, request: Request) -> int | None:
        """Forget the cached number; the kernel closes it. The file is released when its last holder anywhere closes."""
        process = self.by_tid.get(request[1]) or self.discover(request[1])
        fd = request[6] & INT
        self.session.processes.begins(process, request[1], range(fd, fd + 1))
        return None

    def close_range(self, request: Request) -> int | None:
        """Forget the cached numbers; the kernel closes them. With CLOSE_RANGE_UNSHARE nothing is cached any more: the
        caller's thread has a table of its own from now on."""
        process = self.session.processes.get(request[1])
        if request[8] & sc.CLOSE_RANGE_UNSHARE:
            self.session.processes.unshared(process)
        numbers = range(request[6] & INT, (request[7] & INT) + 1)
        self.session.processes.begins(process, request[1], numbers)
        return None

    def dup(self, request: Request) -> int | None:
        """A copy in the reserved range, if there is room; else the kernel's, which only its use identifies."""
        return self._duplicate(request, 0, False)

    def dup2(self, request: Request) -> int | None:
        """dup2 and dup3: forget the target's cached number; the kernel copies.

        EBUSY for a sysfs file that leaves the reserved range while the program is traced by another tracer: what
        is written to the copy would be lost (``handlers/copies.py``).
        """
        process = self.session.processes.get(request[1])
        if request[6] & INT != request[7] & INT:
            if request[7] & INT not in self.session.reserved:
                file = process.lookup(request[1], request[6] & INT)
                if file is not None and file.whole:
                    self.copies.follow(process, request[1])
            target = request[7] & INT
            self.session.processes.begins(process, request[1], range(target, target + 1))
        return None

    def fcntl(self, request: Request) -> int | None:
        """F_DUPFD and F_DUPFD_CLOEXEC as ``dup``, of any file if its number may be a reserved one; F_GETFL with the
        flags that the file was opened with. Other commands (locks, F_SETFL, F_GETFD...) act on the token: the kernel
        runs them."""
        command = request[7] & INT
        if command in (F_DUPFD, F_DUPFD_CLOEXEC):
            return self._duplicate(request, request[8] & INT, command == F_DUPFD_CLOEXEC)
        return self._flags(request) if command == F_GETFL else None

    def _flags(self, request: Request) -> int | None:
        """F_GETFL: what a file was opened with, for reading and writing whatever its token is. A file without a path
        was never opened, hence no O_LARGEFILE."""
        found = self._find(request)
        if found is None:
            return None
        flags = proc.open_flags(request[1], request[6] & INT) & ~(os.O_ACCMODE | os.O_CLOEXEC)
        return (flags if found[1].name.startswith("/") else flags & ~O_LARGEFILE) | os.O_RDWR

    def _duplicate(self, request: Request, least: int, cloexec: bool) -> int | None:
        """A copy of a VFIO file in the reserved range, where the registers of region 0 stay reachable; of any other
        file only if its number is to be there. What the kernel does instead may end in the range."""
        processes, tid = self.session.processes, request[1]
        process, reserved = processes.get(tid), self.session.reserved
        fd = request[6] & INT
        ours = process.lookup(tid, fd) is not None
        if not ours and least < reserved.start and not may_reach(tid, reserved, least):
            return None
        if (ours and process.cacheable) or least in reserved:
            processes.part(process)
            number = process.free_number(least)
            if number is not None:
                given = self._copy_to(process, fd, number, cloexec, least in reserved)
                if given is not None:
                    return given
        processes.begins(process, tid, range(max(least, reserved.start), reserved.stop))
        return None

    def _copy_to(
        self, process: Process, fd: int, number: int, cloexec: bool, exactly: bool
    ) -> int | None:
        """Make the free ``number`` a copy of ``fd``; None where only the kernel can (or has to refuse)."""
        try:
            copy = process.copy_descriptor(fd)
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                raise
            return None
        try:
            return self.session.addfd(copy, number, cloexec, exactly=exactly)
        except OSError as error:
            if error.errno != errno.EBADF:  # above the soft limit now, or O_PATH
                raise
            return None
        finally:
            os.close(copy)

    def unshare(self, request: Request) -> int | None:
        """CLONE_FILES: the calling thread gets a table of its own, so no descriptor of the process is cached now."""
        self.session.processes.unshared(self.session.processes.get(request[1]))
        return None

    # -- what a VFIO file cannot do, and its facts ---------------------------------------------------

    def lseek(self, request: Request) -> int | None:
        """Set the position of a sysfs file, for all its holders: the new position.

        ESPIPE for other VFIO files; EINVAL for an unknown whence or a position below 0.
        """
        offset, bits = request[7], 64
        if request[4] == AUDIT_ARCH_I386:
            offset, bits = offset & INT, 32
        return self._seek(request, offset - (offset >> bits - 1 << bits), request[8] & INT)

    def llseek(self, request: Request) -> int | None:
        """_llseek of i386: as ``lseek``, the offset in two words, high first, the result in memory; EFAULT."""
        offset = (request[7] & INT) << 32 | request[8] & INT
        place = self._seek(request, offset - (offset >> 63 << 64), request[10] & INT)
        if place is None:
            return None
        self.session.processes.get(request[1]).memory.write(request[9], place.to_bytes(8, "little"))
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
            offset += self.paths.token_facts(token).real.st_size
        elif whence == os.SEEK_CUR:
            offset += token.position
        elif whence != os.SEEK_SET:
            raise InvalidArgument(f"whence {whence}")
        if offset < 0:
            raise InvalidArgument(f"position {offset}")
        token.position = offset
        return offset

    def ftruncate(self, request: Request) -> int | None:
        """Nothing, for a sysfs file (kernfs_iop_setattr lets it pass); EINVAL for other VFIO files.

        Notified for each descriptor: the memory of a device is in the file, and a copy outside the reserved range
        would cut it for all that map it.
        """
        found = self._find(request)
        if found is None:
            return None
        if not found[1].whole:
            raise OSError(errno.EINVAL, "not possible with a VFIO file")
        return 0

    def not_possible(self, request: Request) -> int | None:
        """fallocate, fsync, fdatasync: EINVAL for a VFIO file."""
        return self._refuse(request, errno.EINVAL, "not possible with a VFIO file")

    def cannot_move(self, request: Request) -> int | None:
        """sendfile: EINVAL if either descriptor is a VFIO file."""
        return self._refuse(request, errno.EINVAL, "bytes of a VFIO file cannot be moved", 1)

    def cannot_splice(self, request: Request) -> int | None:
        """splice and copy_file_range: EINVAL if the source (argument 0) or the target (argument 2) is a VFIO file."""
        return self._refuse(request, errno.EINVAL, "bytes of a VFIO file cannot be moved", 2)

    def pass_on(self, request: Request) -> int | None:
        """The kernel answers for the token: fstatfs, and i386 calls with structures too narrow for its numbers."""
        return None

    def fstat(self, request: Request) -> int | None:
        """The facts of a device node, or those of an anonymous inode for other VFIO files. EFAULT."""
        return self._fstat(request, pack_stat)

    def fstat64(self, request: Request) -> int | None:
        """As ``fstat``, with the structure of i386."""
        return self._fstat(request, pack_stat_32)

    def _fstat(self, request: Request, pack: Callable[..., bytes]) -> int | None:
        facts = self.paths.descriptor_facts(request, request[6] & INT)
        if facts is None:
            return None
        memory: Memory = self.session.processes.get(request[1]).memory
        memory.write(request[7], pack(facts))
        return 0

    def _refuse(self, request: Request, number: int, why: str, other: int = 0) -> int | None:
        """Fail if argument 0, or argument ``other``, is a VFIO file."""
        if self._find(request) is None and self._find(request, other) is None:
            return None
        raise OSError(number, why)

    def _find(self, request: Request, argument: int = 0) -> tuple[Process, File] | None:
        if self.polls.active:
            self.polls.look()
        process = self.session.processes.get(request[1])
        file = process.lookup(request[1], request[ARG + argument] & INT)
        return None if file is None else (process, file)


def _advance(token: Token, work: Work) -> Work:
    """``work``, after which the file position is behind what was moved."""
    done = yield from work
    token.position += done
    return done
