"""The filter, run by an interpreter of classic BPF on made-up system calls."""

from __future__ import annotations

import errno
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.bpf import interpret
from uvfio.doors.run.filter.build import build_filter, reserved_range
from uvfio.uapi import seccomp as s

RESERVED = range(768, 1024)
TIB = 1 << 40
AT_FDCWD = -100
ALLOW, NOTIFY = "allow", "notify"
PROGRAM = build_filter(RESERVED)
NO_RANGE = build_filter(range(0))


def verdict(nr: int, *args: int, arch: int = s.AUDIT_ARCH_X86_64, program: bytes = PROGRAM) -> str:
    bits = 64 if arch == s.AUDIT_ARCH_X86_64 else 32
    padded = [value % (1 << bits) for value in args] + [0] * (6 - len(args))
    signed_nr = (nr + (1 << 31)) % (1 << 32) - (1 << 31)
    value = interpret(program, s.seccomp_data.pack(signed_nr, arch, 0, *padded))
    names = {
        s.SECCOMP_RET_ALLOW: ALLOW,
        s.SECCOMP_RET_USER_NOTIF: NOTIFY,
        s.SECCOMP_RET_ERRNO | errno.ENOSYS: "ENOSYS",
    }
    return names[value]


def x86_64(name: str, *args: int, program: bytes = PROGRAM) -> str:
    return verdict(s.X86_64[name], *args, program=program)


def i386(name: str, *args: int, program: bytes = PROGRAM) -> str:
    return verdict(s.I386[name], *args, arch=s.AUDIT_ARCH_I386, program=program)


ALWAYS: list[str] = [
    "open",
    "openat",
    "openat2",
    "creat",
    "stat",
    "lstat",
    "access",
    "faccessat",
    "faccessat2",
    "readlink",
    "readlinkat",
    "statfs",
    "getxattr",
    "lgetxattr",
    "listxattr",
    "llistxattr",
    "chdir",
    "fchdir",
    "getcwd",
    "execve",
    "execveat",
    "ftruncate",
]
CHANGES: list[str] = [
    "chroot", "mkdir", "mkdirat", "mknod", "mknodat", "rmdir", "unlink", "unlinkat", "rename", "renameat",
    "renameat2", "link", "linkat", "symlink", "symlinkat", "chmod", "fchmod", "fchmodat", "fchmodat2", "chown",
    "lchown", "fchown", "fchownat", "utime", "utimes", "futimesat", "utimensat", "truncate", "setxattr",
    "lsetxattr", "fsetxattr", "removexattr", "lremovexattr", "fremovexattr",
    "mlock", "mlock2", "mlockall",
]  # fmt: skip

FD0: list[str] = [
    "read",
    "write",
    "readv",
    "writev",
    "lseek",
    "fstat",
    "close",
    "dup",
    "fcntl",
    "fallocate",
    "fstatfs",
    "fsync",
    "fdatasync",
]
OUTSIDE = [0, 3, 255, 767, 1024, 0x7FFFFFFF, -1, AT_FDCWD]
INSIDE = [768, 769, 900, 1023]


@pytest.mark.parametrize("name", [*ALWAYS, *CHANGES])
def test_path_calls_are_always_notified(name: str) -> None:
    for program in (PROGRAM, NO_RANGE):
        assert x86_64(name, AT_FDCWD, 0x1000, program=program) == NOTIFY
        assert i386(name, AT_FDCWD, 0x1000, program=program) == NOTIFY


@pytest.mark.parametrize(
    "name",
    [
        "stat64",
        "lstat64",
        "statfs64",
        "stat",
        "lstat",
        "chown32",
        "lchown32",
        "fchown32",
        "truncate64",
        "ftruncate64",
        "utimensat_time64",
    ],
)
def test_path_calls_of_i386(name: str) -> None:
    assert i386(name) == NOTIFY


@pytest.mark.parametrize("name", FD0)
def test_calls_on_a_descriptor(name: str) -> None:
    for fd in INSIDE:
        assert x86_64(name, fd) == NOTIFY
        assert i386(name, fd) == NOTIFY
        # int and unsigned int are the low word
        assert x86_64(name, fd | 0xDEAD << 32) == NOTIFY
        assert x86_64(name, fd, program=NO_RANGE) == ALLOW
    for fd in OUTSIDE:
        assert x86_64(name, fd, 900, 900, 900) == ALLOW
        assert i386(name, fd, 900, 900, 900) == ALLOW


@pytest.mark.parametrize("name", ["_llseek", "fstat64", "fcntl64", "fstatfs64"])
def test_calls_on_a_descriptor_of_i386(name: str) -> None:
    assert i386(name, 768) == NOTIFY
    assert i386(name, 767) == ALLOW


@pytest.mark.parametrize("name", ["dup2", "dup3", "sendfile"])
def test_calls_on_two_descriptors(name: str) -> None:
    for call in (x86_64, i386):
        assert call(name, 5, 6) == ALLOW
        assert call(name, 900, 6) == NOTIFY
        assert call(name, 5, 1023) == NOTIFY
        assert call(name, 5, 6, 900) == ALLOW
        assert call(name, 900, 900, program=NO_RANGE) == ALLOW


@pytest.mark.parametrize("name", ["splice", "copy_file_range"])
def test_calls_on_the_first_and_third_argument(name: str) -> None:
    for call in (x86_64, i386):
        assert call(name, 5, 900, 6, 900) == ALLOW
        assert call(name, 768, 0, 6, 0) == NOTIFY
        assert call(name, 5, 0, 1023, 0) == NOTIFY


def test_ioctl_by_type_byte() -> None:
    for call in (x86_64, i386):
        assert call("ioctl", 5, 0x3B64) == NOTIFY
        assert call("ioctl", 5, 0xC0283B6A) == NOTIFY
        for request in (0x541B, 0x5401, 0x1, 0xC020660B):  # FIONREAD, TCGETS, FIBMAP, FS_IOC_FIEMAP
            assert call("ioctl", 900, request) == NOTIFY
            assert call("ioctl", 767, request) == ALLOW
        for request in (0x5421, 0x5450, 0x5451, 0x5452, 0x2):
            assert call("ioctl", 900, request) == ALLOW
        assert call("ioctl", 5, 0x3B) == ALLOW
        assert call("ioctl", 5, 0x3B0000) == ALLOW
    assert x86_64("ioctl", 5, 0x3B64 | 0xFFFFFFFF << 32) == NOTIFY  # cmd is an unsigned int


@pytest.mark.parametrize("command", [0, 1030])  # F_DUPFD, F_DUPFD_CLOEXEC
def test_copies_that_may_get_a_reserved_number(command: int) -> None:
    for call in (x86_64, i386):
        for fd in (0, 767, 1024):
            for least in (192, 767, 768, 1023):
                assert call("fcntl", fd, command, least) == NOTIFY
            for least in (0, 10, 191, 1024, 0xFFFFFFFF):
                assert call("fcntl", fd, command, least) == ALLOW
            assert call("fcntl", fd, 3, 800) == ALLOW  # F_GETFL
        assert call("fcntl", 900, command, 0) == NOTIFY


@pytest.mark.parametrize(("name", "flags"), [("newfstatat", 3), ("statx", 2)])
def test_fstat_by_path_calls(name: str, flags: int) -> None:
    def call(dirfd: int, value: int, program: bytes = PROGRAM) -> set[str]:
        args = [dirfd, 0x1000, 0, 0]
        args[flags] = value
        return {
            x86_64(name, *args, program=program),
            i386("fstatat64" if name == "newfstatat" else name, *args, program=program),
        }

    assert call(AT_FDCWD, 0) == {NOTIFY}
    assert call(5, 0x100) == {NOTIFY}
    assert call(5, 0x1000) == {ALLOW}
    assert call(5, 0x1100) == {ALLOW}
    assert call(768, 0x1000) == {NOTIFY}
    assert call(1023, 0x1000) == {NOTIFY}
    assert call(1024, 0x1000) == {ALLOW}
    assert call(AT_FDCWD, 0x1000) == {NOTIFY}  # the path decides
    assert call(900, 0x1000, NO_RANGE) == {ALLOW}
    assert call(AT_FDCWD, 0x1000, NO_RANGE) == {NOTIFY}


@pytest.mark.parametrize("name", ["pread64", "pwrite64"])
@pytest.mark.parametrize(
    ("fd", "count", "offset", "expected"),
    [
        (900, 4096, 0, NOTIFY),
        (768, 0, 0, NOTIFY),
        (5, 4096, 0, ALLOW),
        (5, 4096, TIB - 1, ALLOW),
        (5, 4096, TIB, NOTIFY),
        (5, 4096, 7 * TIB, NOTIFY),
        (5, 4096, (1 << 63) - 1, NOTIFY),
        (5, 4096, -1, ALLOW),
        (5, 4096, -(1 << 63), ALLOW),
        (5, 1, 0, NOTIFY),
        (5, 2, 0, NOTIFY),
        (5, 4, 16, NOTIFY),
        (5, 8, 0xFFFFFFFF, NOTIFY),
        (5, 0, 0, ALLOW),
        (5, 3, 0, ALLOW),
        (5, 16, 0, NOTIFY),
        (5, 64, 0, NOTIFY),
        (5, 128, 0, ALLOW),
        (-1, 24, 0, ALLOW),
    ],
)
def test_positioned_accesses(name: str, fd: int, count: int, offset: int, expected: str) -> None:
    assert x86_64(name, fd, 0x1000, count, offset) == expected
    low, high = offset & 0xFFFFFFFF, offset >> 32 & 0xFFFFFFFF
    assert i386(name, fd, 0x1000, count, low, high) == expected


def test_positioned_access_of_huge_size() -> None:
    """The count is a size_t: 4 GiB and 4 bytes is not a register access."""
    assert x86_64("pread64", 5, 0x1000, 0x100000004, 0) == ALLOW


@pytest.mark.parametrize("name", ["preadv", "pwritev", "preadv2", "pwritev2"])
def test_positioned_vector_accesses(name: str) -> None:
    for fd, count, offset, expected in (
        (900, 1, 0, NOTIFY),
        (5, 1, 0, ALLOW),
        (5, 4, TIB - 1, ALLOW),
        (5, 4, TIB, NOTIFY),
        (5, 4, 7 * TIB + 4, NOTIFY),
        (5, 4, -1, ALLOW),  # the current position, for preadv2
    ):
        # 64-bit kernels take the whole offset from the fourth argument and ignore the fifth.
        assert x86_64(name, fd, 0x1000, count, offset, 0x7FFF) == expected
        low, high = offset & 0xFFFFFFFF, offset >> 32 & 0xFFFFFFFF
        assert i386(name, fd, 0x1000, count, low, high) == expected


def test_mmap() -> None:
    shared, anonymous = 0x01, 0x22
    for flags, fd, offset, expected in (
        (shared, 5, 0, ALLOW),
        (shared, 5, TIB - 4096, ALLOW),
        (shared, 5, TIB, NOTIFY),
        (shared, 5, 15 * TIB, NOTIFY),
        (shared, 768, 0, NOTIFY),
        (shared, 1024, 0, ALLOW),
        (anonymous, -1, 0, ALLOW),
        (anonymous, 900, 2 * TIB, ALLOW),
        (anonymous | 0x2000, -1, 0, NOTIFY),  # MAP_LOCKED
    ):
        assert x86_64("mmap", 0, 4096, 3, flags, fd, offset) == expected
        assert i386("mmap2", 0, 4096, 3, flags, fd, offset >> 12) == expected
    assert x86_64("mmap", 0, 4096, 3, shared, 5, 1 << 63) == ALLOW
    assert i386("mmap", 0x1000) == ALLOW  # its arguments are in memory


@pytest.mark.parametrize(
    ("first", "last", "expected"),
    [
        (3, 0xFFFFFFFF, NOTIFY),
        (0, 767, ALLOW),
        (0, 768, NOTIFY),
        (1023, 1023, NOTIFY),
        (1024, 0xFFFFFFFF, ALLOW),
        (800, 900, NOTIFY),
        (900, 800, ALLOW),
        (2000, 900, ALLOW),
    ],
)
def test_close_range(first: int, last: int, expected: str) -> None:
    assert x86_64("close_range", first, last, 0) == expected
    assert i386("close_range", first, last, 4) == expected
    assert x86_64("close_range", first, last, program=NO_RANGE) == ALLOW


def test_unshare() -> None:
    for call in (x86_64, i386):
        assert call("unshare", 0x400) == NOTIFY
        assert call("unshare", 0x10000400) == NOTIFY
        assert call("unshare", 0x10020000) == ALLOW


def test_everything_else_runs_natively() -> None:
    named = {
        *ALWAYS, *CHANGES, *FD0, "dup2", "dup3", "sendfile", "splice", "copy_file_range", "ioctl", "newfstatat",
        "statx", "pread64", "pwrite64", "preadv", "pwritev", "preadv2", "pwritev2", "mmap",
        "close_range", "unshare",
    }  # fmt: skip
    for name, nr in s.X86_64.items():
        if name not in named:
            assert verdict(nr, 900, 900, 900, 900, 900, 2 * TIB) == ALLOW, name
    for nr in (336, 423, 470, 1000, 0x3FFFFFFF):
        assert verdict(nr, 900) == ALLOW


def test_architectures() -> None:
    aarch64 = 0xC00000B7
    assert verdict(s.X86_64["openat"], arch=aarch64) == ALLOW
    # One number, two meanings: 5 is fstat here and open there.
    assert verdict(5, 3) == ALLOW
    assert verdict(5, 3, arch=s.AUDIT_ARCH_I386) == NOTIFY
    assert verdict(s.X86_64["read"] | 0x40000000) == "ENOSYS"
    assert verdict(514 | 0x40000000, 5, 0x3B64) == "ENOSYS"  # x32 ioctl
    assert verdict(-1) == "ENOSYS"


def test_it_fits_the_kernel() -> None:
    assert len(PROGRAM) % 8 == 0
    assert len(PROGRAM) // 8 < 600
    # The last instruction must return, and jumps stay inside.
    code = list(s.sock_filter.iter_unpack(PROGRAM))
    assert code[-1][0] == s.BPF_RET
    for at, (op, jt, jf, k) in enumerate(code):
        if op == s.BPF_JMP | s.BPF_JA:
            assert at + 1 + k < len(code)
        elif op & 7 == s.BPF_JMP:
            assert max(jt, jf) + at + 1 < len(code)


def test_unconditional_verdicts_need_no_argument() -> None:
    """The kernel skips the filter for calls that it can decide from nr and arch (since 5.11)."""

    def loads(nr: int, arch: int) -> set[int]:
        code = list(s.sock_filter.iter_unpack(PROGRAM))
        data = s.seccomp_data.pack(nr, arch, 0, *[0] * 6)
        seen: set[int] = set()
        a = pc = 0
        while True:
            op, jt, jf, k = code[pc]
            pc += 1
            if op == 0x06:
                return seen
            if op == 0x20:
                seen.add(k)
                (a,) = struct.unpack_from("<I", data, k)
            elif op == 0x05:
                pc += k
            else:
                pc += jt if (a == k if op == 0x15 else a >= k) else jf

    for name in ("getppid", "futex", "poll", "rt_sigaction", "brk", "munmap"):
        assert loads(s.X86_64[name], s.AUDIT_ARCH_X86_64) == {0, 4}, name
    for name in ("getppid", "futex", "poll", "rt_sigaction", "brk", "munmap"):
        assert loads(s.I386[name], s.AUDIT_ARCH_I386) == {0, 4}, name


descriptors = st.one_of(
    st.sampled_from([*OUTSIDE, *INSIDE]), st.integers(-(1 << 31), (1 << 31) - 1)
)


@given(
    reserved=st.tuples(st.integers(0, 2000), st.integers(0, 300)).map(
        lambda p: range(p[0], p[0] + p[1])
    ),
    fd=descriptors,
    count=st.one_of(st.integers(0, 16), st.integers(0, (1 << 64) - 1)),
    offset=st.one_of(
        st.sampled_from([0, TIB - 1, TIB, -1]), st.integers(-(1 << 63), (1 << 63) - 1)
    ),
)
def test_pread_is_what_the_rule_says(reserved: range, fd: int, count: int, offset: int) -> None:
    expected = fd in reserved or offset >= TIB or count in {1, 2, 4, 8, 16, 32, 64}
    got = x86_64("pread64", fd, 0, count, offset, program=build_filter(reserved))
    assert got == (NOTIFY if expected else ALLOW)


@given(
    reserved=st.tuples(st.integers(0, 2000), st.integers(0, 300)).map(
        lambda p: range(p[0], p[0] + p[1])
    ),
    first=st.integers(0, 2500),
    last=st.one_of(st.integers(0, 2500), st.just(0xFFFFFFFF)),
)
def test_close_range_is_what_the_rule_says(reserved: range, first: int, last: int) -> None:
    meets = bool(range(max(first, reserved.start), min(last + 1, reserved.stop)))
    got = x86_64("close_range", first, last, program=build_filter(reserved))
    assert got == (NOTIFY if meets else ALLOW)


@pytest.mark.parametrize(
    "reserved", [range(0, 10, 2), range(-1, 5), range(5, 3), range((1 << 31) + 1)]
)
def test_bad_ranges(reserved: range) -> None:
    with pytest.raises(ValueError, match="is not a range of descriptors"):
        build_filter(reserved)


@pytest.mark.parametrize(
    ("soft", "expected"),
    [
        (63, range(0)),
        (64, range(32, 64)),
        (256, range(128, 255)),
        (300, range(150, 255)),
        (511, range(256, 511)),
        (512, range(256, 512)),
        (1023, range(767, 1023)),
        (1024, RESERVED),
        (1048576, RESERVED),
    ],
)
def test_reserved_range(soft: int, expected: range) -> None:
    assert reserved_range(soft) == expected
