"""The filter: which system calls of a program the supervisor sees, as a BPF program made from ``filter/rules.py``.

Theory of operation
-------------------
The kernel runs the program before every system call. A binary search over the call's number leads to a verdict or to
a short test of arguments. BPF sees no memory: what a pointer leads to (a path, the offset of splice) is decided by the
supervisor.

Three kinds of descriptors need three kinds of tests:

- *reserved* ones, where the supervisor puts the files that it serves. Any call that would act on the
  stand-in file natively (read, write, seek, truncate), return what it is (fstat) or change which number
  means what (close, dup) is notified;
- copies that left the reserved range (dup2, SCM_RIGHTS). Only their use distinguishes them from
  other files: ioctls of type ``;``, file offsets of 1 TiB and more (where all regions of a device
  but the first are), and positioned accesses of 1, 2, 4, 8, 16, 32 or 64 bytes, which is what register
  accesses look like;
- everything else, which must run at full speed.

Invariants: arguments that the kernel declares as ``int`` or ``unsigned int`` are compared by their low
word, as the kernel does, whatever is in the high word; a call whose verdict depends on its number alone
is decided by instructions that the kernel can evaluate in advance (nr, arch, jumps, and), so that since
Linux 5.11 it does not run the filter at all (kernel/seccomp.c, seccomp_cache_prepare).

What this does not do: it is not a sandbox. It hides nothing from a program that means to see it:
io_uring operations, i386 ``mmap`` (90, arguments in memory), and paths given to mount and to sockets are not tested.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from uvfio.doors.run.filter.bpf import ARCH, NR, Assembler, high, low
from uvfio.doors.run.filter.rules import BY_KEY, PAGE_SHIFT
from uvfio.uapi.linux import (
    AT_EMPTY_PATH,
    CLONE_FILES,
    F_DUPFD,
    F_DUPFD_CLOEXEC,
    FIGETBSZ,
    FIOASYNC,
    FIOCLEX,
    FIONBIO,
    FIONCLEX,
    MAP_ANONYMOUS,
    MAP_LOCKED,
)
from uvfio.uapi.rfc import VFIO_REGION_SHIFT, VFIO_TYPE
from uvfio.uapi.seccomp import (
    AUDIT_ARCH_I386,
    AUDIT_ARCH_X86_64,
    SECCOMP_RET_ALLOW,
    SECCOMP_RET_ERRNO,
    SECCOMP_RET_USER_NOTIF,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from uvfio.doors.run.filter.rules import Call, Offset

__all__ = ["build_filter", "floor", "reserved_range"]

NEGATIVE: Final = 0x80000000
X32: Final = 0x40000000
WIDTHS: Final = (
    1,
    2,
    4,
    8,
    16,
    32,
    64,
)  # of accesses to registers: what an instruction moves, at most a cache line
OF_EVERY_FILE: Final = (FIONCLEX, FIOCLEX, FIONBIO, FIOASYNC, FIGETBSZ)
FLAGS_ARGUMENT: Final = {"fstatat": 3, "statx": 2}


def _label(call: Call) -> str:
    """The label of the call's test. Calls with one label have the same arguments as far as the test reads them."""
    if call.test == "fd":
        return _descriptors_label(call.descriptors)
    return call.test if call.offset is None else f"{call.test}.{call.offset.form}"


def _descriptors_label(descriptors: tuple[int, ...]) -> str:
    return "fd" + "".join(map(str, descriptors))


def _targets(audit: int) -> dict[int, str]:
    """Numbers of the architecture's calls, and the labels of their tests."""
    return {number: _label(call) for (number, arch), call in BY_KEY.items() if arch == audit}


def _intervals(targets: dict[int, str], x32: bool) -> list[tuple[int, str]]:
    """The whole number space as (first number, test), neighbours with one test merged."""
    intervals = [(0, "allow")]

    def begin(nr: int, test: str) -> None:
        if intervals[-1][0] == nr:
            intervals.pop()
        if not intervals or intervals[-1][1] != test:
            intervals.append((nr, test))

    for nr in sorted(targets):
        begin(nr, targets[nr])
        begin(nr + 1, "allow")
    if x32:
        # Numbers with bit 30 are x32's; the few above without it are unused. The kernel
        # answers ENOSYS to the latter by itself.
        begin(X32, "enosys")
    return intervals


def _search(asm: Assembler, name: str, intervals: list[tuple[int, str]]) -> None:
    """A binary search for the accumulator. Leaves jump, since tests are farther than 255 away."""
    if len(intervals) == 1:
        asm.jump(intervals[0][1])
        return
    middle = len(intervals) // 2
    right = f"{name}.{intervals[middle][0]}"
    asm.jge(intervals[middle][0], right)
    _search(asm, name, intervals[:middle])
    asm.label(right)
    _search(asm, name, intervals[middle:])


def _reserved(asm: Assembler, reserved: range, argument: int, then: str, other: str | None) -> None:
    """Go to ``then`` if the descriptor ``argument`` is in the reserved range."""
    if not reserved:
        if other is not None:
            asm.jump(other)
        return
    after = f"after.{len(asm)}"
    asm.load(low(argument))
    asm.jge(reserved.start, None, other or after)
    asm.jge(reserved.stop, other or after, then)
    asm.label(after)


def _far(asm: Assembler, offset: Offset, other: str | None) -> None:
    """Notify if the offset is 1 TiB or more, by the word that holds its upper part.

    Offsets are signed but for the page number of mmap2. A negative one is an error (or, for preadv2,
    "the current position"): the kernel handles it.
    """
    word, shift = {
        "quad": (high(offset.argument), 32),
        "split": (low(offset.argument + 1), 32),
        "pages": (low(offset.argument), PAGE_SHIFT),
    }[offset.form]
    after = f"after.{len(asm)}"
    asm.load(word)
    if shift == 32:
        asm.jge(NEGATIVE, other or after)
    asm.jge(1 << (VFIO_REGION_SHIFT - shift), "notify", other or after)
    asm.label(after)


def _tests(asm: Assembler, reserved: range, calls: Iterable[Call]) -> None:
    """The tests of arguments that ``calls`` need, each once, each ending in "notify" or "allow"."""
    written = {"notify"}
    # A test of several descriptors goes on with the test of the first one alone, which is the last of them here.
    for call in sorted(calls, key=lambda call: call.descriptors, reverse=True):
        label = _label(call)
        if label not in written:
            written.add(label)
            asm.label(label)
            _test(asm, reserved, call)


def _test(asm: Assembler, reserved: range, call: Call) -> None:
    if call.test == "ioctl":
        _request(asm, reserved)
    elif call.test == "fd":
        first, *others = call.descriptors
        for other in others:
            _reserved(asm, reserved, other, "notify", _descriptors_label((first,)))
        if not others:
            _reserved(asm, reserved, first, "notify", "allow")
    elif call.test in FLAGS_ARGUMENT:
        # fstat of C libraries is fstatat(fd, "", AT_EMPTY_PATH). A descriptor below zero is AT_FDCWD, where
        # the path decides after all.
        asm.load(low(FLAGS_ARGUMENT[call.test]))
        asm.jset(AT_EMPTY_PATH, None, "notify")
        asm.load(low(call.descriptors[0]))
        asm.jge(NEGATIVE, "notify")
        _reserved(asm, reserved, call.descriptors[0], "notify", "allow")
    elif call.test == "fcntl":
        _duplicates(asm, reserved)
    elif call.test == "close_range":
        _range(asm, reserved)
    elif call.test == "unshare":
        asm.load(low(0))
        asm.jset(CLONE_FILES, "notify", "allow")
    else:
        _access(asm, reserved, call)


def _request(asm: Assembler, reserved: range) -> None:
    """ioctl: VFIO's requests of any descriptor; of a reserved one all but those that act on every kind of file."""
    asm.load(low(1))
    asm.mask(0xFF00)
    asm.jeq(VFIO_TYPE << 8, "notify")
    _reserved(asm, reserved, 0, "ioctl.reserved", "allow")
    asm.label("ioctl.reserved")
    asm.load(low(1))
    for request in OF_EVERY_FILE:
        asm.jeq(request, "allow")
    asm.jump("notify")


def _access(asm: Assembler, reserved: range, call: Call) -> None:
    """Calls with a file offset: pio, piov and mmap."""
    assert call.offset is not None
    if call.test == "mmap":
        asm.load(low(3))
        asm.jset(MAP_LOCKED, "notify")
        asm.jset(MAP_ANONYMOUS, "allow")
    _reserved(asm, reserved, call.descriptors[0], "notify", None)
    if call.test != "pio":
        _far(asm, call.offset, "allow")
        return
    _far(asm, call.offset, None)
    asm.load(high(2))
    asm.jeq(0, None, "allow")
    asm.load(low(2))
    for width in WIDTHS[:-1]:
        asm.jeq(width, "notify")
    asm.jeq(WIDTHS[-1], "notify", "allow")


def _duplicates(asm: Assembler, reserved: range) -> None:
    """fcntl of any descriptor that may take a number of the range; of a reserved descriptor all commands."""
    if not reserved:
        asm.jump("allow")
        return
    _reserved(asm, reserved, 0, "notify", None)
    asm.load(low(1))
    asm.jeq(F_DUPFD, "duplicate")
    asm.jeq(F_DUPFD_CLOEXEC, None, "allow")
    asm.label("duplicate")
    asm.load(low(2))
    asm.jge(floor(reserved), None, "allow")
    asm.jge(reserved.stop, "allow", "notify")


def _range(asm: Assembler, reserved: range) -> None:
    if not reserved:
        asm.jump("allow")
        return
    asm.load(low(0))
    asm.jge(reserved.stop, "allow")
    asm.tax()
    asm.load(low(1))
    asm.jge(reserved.start, None, "allow")
    asm.jge_x("notify", "allow")  # else the arguments are the wrong way round: EINVAL


def floor(reserved: range) -> int:
    """F_DUPFD is notified from this number on: it may give one of ``reserved``. Shells and libraries ask for smaller
    ones, and reach the range only when everything between is taken."""
    return reserved.start // 4


def reserved_range(soft_limit: int) -> range:
    """Where served files go in a program whose soft RLIMIT_NOFILE is ``soft_limit``; may be empty.

    Below 1024, since ``FD_SET`` writes past its set above that; below the limit, since a descriptor cannot
    be installed there; and not below 256, where programs choose numbers themselves (shells: 10 and up, 255).
    Under a smaller limit it is the upper half, as far as there are numbers that shells leave alone.
    """
    stop = min(soft_limit, 1024)
    if stop >= 512:
        return range(stop - 256, stop)
    if stop < 64:
        return range(0)
    below, above = range(stop // 2, min(stop, 255)), range(256, stop)
    return max(below, above, key=len)


def build_filter(reserved: range) -> bytes:
    """The filter for a program whose served files get the descriptors of ``reserved``.

    An empty range is allowed: then only calls that their use identifies are notified. Returns an array of
    ``struct sock_filter``; raises ValueError for a range with a step or outside 0..2^31.
    """
    if reserved.step != 1 or not 0 <= reserved.start <= reserved.stop <= NEGATIVE:
        raise ValueError(f"{reserved} is not a range of descriptors")
    asm = Assembler()
    asm.load(ARCH)
    asm.jeq(AUDIT_ARCH_X86_64, "x86_64")
    asm.jeq(AUDIT_ARCH_I386, "i386.arch")
    asm.ret(SECCOMP_RET_ALLOW)
    asm.label("i386.arch")
    asm.jump("i386")
    asm.label("x86_64")
    asm.load(NR)
    _search(asm, "x86_64", _intervals(_targets(AUDIT_ARCH_X86_64), x32=True))
    asm.label("i386")
    asm.load(NR)
    _search(asm, "i386", _intervals(_targets(AUDIT_ARCH_I386), x32=False))
    _tests(asm, reserved, BY_KEY.values())
    asm.label("notify")
    asm.ret(SECCOMP_RET_USER_NOTIF)
    asm.label("allow")
    asm.ret(SECCOMP_RET_ALLOW)
    asm.label("enosys")
    asm.ret(SECCOMP_RET_ERRNO | errno.ENOSYS)
    return asm.assemble()
