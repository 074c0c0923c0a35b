"""The filter that decides which system calls of a program the supervisor sees.

Two parts: an assembler for classic BPF with labels, and ``build_filter``, the one program written in it.

Theory of operation
-------------------
The kernel runs the program on ``struct seccomp_data`` (number, architecture, six arguments as 64-bit
values) before every system call. A binary search over the number leads to a verdict or to a short test
of arguments. BPF sees no memory: what a pointer leads to (a path, the offset of splice) decides the
supervisor.

Three kinds of descriptors call for three kinds of tests:

- *reserved* ones, where the supervisor puts the files that it serves. Any call that would act on the
  stand-in file natively (read, write, seek, truncate), tell what it is (fstat) or change which number
  means what (close, dup) is notified;
- copies that left the reserved range (dup2, SCM_RIGHTS). Nothing but their use tells them apart from
  other files: ioctls of type ``;``, file offsets of 1 TiB and more (where the regions of a device
  are, but for the first), and positioned accesses of 1, 2, 4 or 8 bytes, which is what register accesses
  look like;
- everything else, which must run at full speed.

Invariants: arguments that the kernel declares as ``int`` or ``unsigned int`` are compared by their low
word, as the kernel does, whatever is in the high word; a call whose verdict depends on its number alone
is decided by instructions that the kernel can evaluate in advance (nr, arch, jumps, and), so that since
Linux 5.11 it does not run the filter at all (kernel/seccomp.c, seccomp_cache_prepare).

What this does not do: it is not a sandbox. It hides nothing from a program that means to see it:
io_uring operations, i386 ``mmap`` (90, arguments in memory) and paths given to calls that only change
files (unlink, chmod, mount...) are not looked at.
"""

from __future__ import annotations

import errno
from typing import Final

from uvfio.uapi.seccomp import (
    AUDIT_ARCH_I386,
    AUDIT_ARCH_X86_64,
    BPF_ABS,
    BPF_ALU,
    BPF_AND,
    BPF_JA,
    BPF_JEQ,
    BPF_JGE,
    BPF_JMP,
    BPF_JSET,
    BPF_K,
    BPF_LD,
    BPF_MAXINSNS,
    BPF_MISC,
    BPF_RET,
    BPF_TAX,
    BPF_W,
    BPF_X,
    I386,
    SECCOMP_RET_ALLOW,
    SECCOMP_RET_ERRNO,
    SECCOMP_RET_USER_NOTIF,
    X86_64,
    sock_filter,
)

__all__ = ["Assembler", "build_filter", "reserved_range"]

AT_EMPTY_PATH: Final = 0x1000
CLONE_FILES: Final = 0x400
MAP_ANONYMOUS: Final = 0x20
VFIO_TYPE: Final = ord(";")
REGION_SHIFT: Final = 40  # a region's file offset is index << 40 in every ABI served here
PAGE_SHIFT: Final = 12
NEGATIVE: Final = 0x80000000
X32: Final = 0x40000000

NR: Final = 0
ARCH: Final = 4


def low(argument: int) -> int:
    """Offset of the low word of ``seccomp_data.args[argument]``."""
    return 16 + 8 * argument


def high(argument: int) -> int:
    """Offset of the high word of ``seccomp_data.args[argument]``."""
    return 20 + 8 * argument


class Assembler:
    """Classic BPF with labels.

    ``jeq``, ``jge`` and ``jset`` compare the accumulator with a constant and go to ``then`` or ``other``;
    None is the next instruction. Conditional jumps reach 255 instructions and no jump goes back:
    ``assemble`` raises ValueError for one that would, for a label that is missing or defined twice (the
    latter at once), and for a program longer than the kernel takes.
    """

    __slots__ = ("_code", "_labels")

    def __init__(self) -> None:
        self._code: list[tuple[int, int, str | None, str | None]] = []
        self._labels: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._code)

    def label(self, name: str) -> None:
        """Name the next instruction."""
        if name in self._labels:
            raise ValueError(f"label {name} is defined twice")
        self._labels[name] = len(self._code)

    def load(self, offset: int) -> None:
        """A = the 32-bit word at ``offset`` of ``struct seccomp_data``."""
        self._code.append((BPF_LD | BPF_W | BPF_ABS, offset, None, None))

    def mask(self, bits: int) -> None:
        """A = A & ``bits``."""
        self._code.append((BPF_ALU | BPF_AND | BPF_K, bits, None, None))

    def tax(self) -> None:
        """X = A."""
        self._code.append((BPF_MISC | BPF_TAX, 0, None, None))

    def ret(self, verdict: int) -> None:
        self._code.append((BPF_RET | BPF_K, verdict, None, None))

    def jump(self, target: str) -> None:
        """Go to ``target``, however far."""
        self._code.append((BPF_JMP | BPF_JA, 0, target, target))

    def jeq(self, value: int, then: str | None = None, other: str | None = None) -> None:
        self._code.append((BPF_JMP | BPF_JEQ | BPF_K, value, then, other))

    def jge(self, value: int, then: str | None = None, other: str | None = None) -> None:
        self._code.append((BPF_JMP | BPF_JGE | BPF_K, value, then, other))

    def jset(self, bits: int, then: str | None = None, other: str | None = None) -> None:
        self._code.append((BPF_JMP | BPF_JSET | BPF_K, bits, then, other))

    def jge_x(self, then: str | None = None, other: str | None = None) -> None:
        """Compare with X instead of a constant."""
        self._code.append((BPF_JMP | BPF_JGE | BPF_X, 0, then, other))

    def assemble(self) -> bytes:
        """The program as an array of ``struct sock_filter``."""
        if not 0 < len(self._code) <= BPF_MAXINSNS:
            raise ValueError(
                f"{len(self._code)} instructions; the kernel takes 1 to {BPF_MAXINSNS}"
            )
        out = bytearray()
        for at, (code, k, then, other) in enumerate(self._code):
            if code == BPF_JMP | BPF_JA:
                out += sock_filter.pack(code, 0, 0, self._distance(at, then, BPF_MAXINSNS))
            else:
                jt = self._distance(at, then, 255)
                jf = self._distance(at, other, 255)
                out += sock_filter.pack(code, jt, jf, k)
        return bytes(out)

    def _distance(self, at: int, target: str | None, reach: int) -> int:
        if target is None:
            return 0
        if target not in self._labels:
            raise ValueError(f"label {target} is not defined")
        distance = self._labels[target] - at - 1
        if not 0 <= distance <= reach:
            raise ValueError(f"label {target} is {distance} instructions from {at}; reach {reach}")
        return distance


# Which test each call goes to. A call that is not named runs natively.
#
# "fd0" also holds fsync and fdatasync: the stand-in file syncs, a VFIO file answers EINVAL. Calls that
# answer the same for both (getdents, flock, epoll_ctl, poll, readahead, fgetxattr) stay native.
# sendfile, splice and copy_file_range would move the stand-in's bytes: they are notified if either end
# is reserved. tee and vmsplice take pipes only and stay native.
_BOTH: Final = {
    "notify": "open openat openat2 creat stat lstat access faccessat faccessat2 readlink"
    " readlinkat statfs getxattr lgetxattr listxattr llistxattr chdir fchdir getcwd execve execveat",
    "statx": "statx",
    "ioctl": "ioctl",
    "unshare": "unshare",
    "close_range": "close_range",
    "fd0": "read write readv writev lseek fstat close dup fcntl ftruncate fallocate fchmod fchown"
    " fstatfs fsync fdatasync",
    "fd01": "dup2 dup3 sendfile",
    "fd02": "splice copy_file_range",
}
_X86_64: Final = {
    "fstatat": "newfstatat",
    "pio64": "pread64 pwrite64",
    "piov64": "preadv pwritev preadv2 pwritev2",
    "mmap64": "mmap",
}
_I386: Final = {
    "notify": "stat64 lstat64 statfs64",
    "fstatat": "fstatat64",
    "fd0": "_llseek fstat64 fcntl64 ftruncate64 fchown32 fstatfs64",
    "fd01": "sendfile64",
    "pio32": "pread64 pwrite64",
    "piov32": "preadv pwritev preadv2 pwritev2",
    "mmap32": "mmap2",
}


def _targets(numbers: dict[str, int], *tables: dict[str, str]) -> dict[int, str]:
    """System call number to test."""
    return {
        numbers[name]: test
        for table in tables
        for test, names in table.items()
        for name in names.split()
    }


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
        # Numbers with bit 30 are x32's; the few above that have not got it are nobody's. The kernel
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


def _far(asm: Assembler, word: int, shift: int, other: str | None) -> None:
    """Notify if the offset, whose part from bit ``shift`` up is in ``word``, is 1 TiB or more.

    Offsets are signed but for the page number of mmap2. A negative one is an error (or, for preadv2,
    "the current position"): the kernel's business.
    """
    after = f"after.{len(asm)}"
    asm.load(word)
    if shift == 32:
        asm.jge(NEGATIVE, other or after)
    asm.jge(1 << (REGION_SHIFT - shift), "notify", other or after)
    asm.label(after)


def _tests(asm: Assembler, reserved: range) -> None:
    """The tests of arguments, each ending in "notify" or "allow"."""
    asm.label("ioctl")
    asm.load(low(1))
    asm.mask(0xFF00)
    asm.jeq(VFIO_TYPE << 8, "notify", "allow")

    asm.label("fd02")
    _reserved(asm, reserved, 2, "notify", "fd0")
    asm.label("fd01")
    _reserved(asm, reserved, 1, "notify", "fd0")
    asm.label("fd0")
    _reserved(asm, reserved, 0, "notify", "allow")

    # fstat of C libraries is fstatat(fd, "", AT_EMPTY_PATH). A descriptor below zero is AT_FDCWD, where
    # the path says what is meant after all.
    for test, flags in (("fstatat", 3), ("statx", 2)):
        asm.label(test)
        asm.load(low(flags))
        asm.jset(AT_EMPTY_PATH, None, "notify")
        asm.load(low(0))
        asm.jge(NEGATIVE, "notify")
        _reserved(asm, reserved, 0, "notify", "allow")

    # offset: argument 3, on i386 split into 3 and 4
    for test, word in (("pio64", high(3)), ("pio32", low(4))):
        asm.label(test)
        _reserved(asm, reserved, 0, "notify", None)
        _far(asm, word, 32, None)
        asm.load(high(2))
        asm.jeq(0, None, "allow")
        asm.load(low(2))
        for width in (1, 2, 4):
            asm.jeq(width, "notify")
        asm.jeq(8, "notify", "allow")
    for test, word in (("piov64", high(3)), ("piov32", low(4))):
        asm.label(test)
        _reserved(asm, reserved, 0, "notify", None)
        _far(asm, word, 32, "allow")

    for test, word, shift in (
        ("mmap64", high(5), 32),
        ("mmap32", low(5), PAGE_SHIFT),
    ):
        asm.label(test)
        asm.load(low(3))
        asm.jset(MAP_ANONYMOUS, "allow")
        _reserved(asm, reserved, 4, "notify", None)
        _far(asm, word, shift, "allow")

    asm.label("close_range")
    if reserved:
        asm.load(low(0))
        asm.jge(reserved.stop, "allow")
        asm.tax()
        asm.load(low(1))
        asm.jge(reserved.start, None, "allow")
        asm.jge_x("notify", "allow")  # else the arguments are the wrong way round: EINVAL
    else:
        asm.jump("allow")

    asm.label("unshare")
    asm.load(low(0))
    asm.jset(CLONE_FILES, "notify", "allow")


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

    An empty range is allowed: then only what is recognised by its use is notified. Returns an array of
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
    _search(asm, "x86_64", _intervals(_targets(X86_64, _BOTH, _X86_64), x32=True))
    asm.label("i386")
    asm.load(NR)
    _search(asm, "i386", _intervals(_targets(I386, _BOTH, _I386), x32=False))
    _tests(asm, reserved)
    asm.label("notify")
    asm.ret(SECCOMP_RET_USER_NOTIF)
    asm.label("allow")
    asm.ret(SECCOMP_RET_ALLOW)
    asm.label("enosys")
    asm.ret(SECCOMP_RET_ERRNO | errno.ENOSYS)
    return asm.assemble()
