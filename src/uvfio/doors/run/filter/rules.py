"""The table of system calls: the one place that knows which calls a run answers, and what their arguments are.

Everything that treats calls alike derives from ``CALLS``: the filter (``filter/build.py``), the dispatch
(``supervisor.py``), the tracer of copies (``handlers/copies.py``), the trace and the summary (``observe/``). To add a
call, add one row here and one method to ``Paths`` or ``Calls``. A call without a row runs natively.

Columns of a row
----------------
``name``           as in the kernel's tables (``uvfio.uapi.seccomp``: X86_64, I386)
``test``           the test of arguments by which the filter decides; see ``Test``
``handler``        "paths.METHOD" or "calls.METHOD": gets the unpacked notification (``Request``)
``architectures``  BOTH unless given. A row of both has one layout of arguments and structures on both
``descriptors``    which arguments are descriptors. The path of a path call is the argument behind the last one
``offset``         which argument is the file offset, and how it is passed
``copies``         what the call means for a copy of a sysfs file outside the reserved range; see ``Copies``
``shown``          how trace and summary show it; see ``Shown``

Invariants: no two rows have the same name on the same architecture; a handler never reads an argument that the row
gives to something else. Natively run calls on purpose: those that answer the same for the stand-in file and for a
VFIO file (getdents, flock, epoll_ctl, poll, readahead, fgetxattr), and tee and vmsplice, which take pipes only.

What this does not do: test, answer or decode anything but an offset.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal, NamedTuple

from uvfio.uapi.seccomp import AUDIT_ARCH_I386, AUDIT_ARCH_X86_64, I386, X86_64

__all__ = [
    "ARG",
    "BY_KEY",
    "CALLS",
    "INT",
    "Call",
    "Handler",
    "Key",
    "Offset",
    "Request",
    "call_of",
]

Request = tuple[int, ...]
"""struct seccomp_notif, unpacked: id, pid, flags, nr, arch, instruction pointer, six arguments."""

Handler = Callable[[Request], int | None]
"""Returns the value for the program, or None to let the kernel run the call; raises OSError or Deferred."""

Key = tuple[int, int]
"""Number and AUDIT_ARCH of a call: elements 3 and 4 of a ``Request``."""

ARG: Final = 6  # index of the first argument in a Request
INT: Final = 0xFFFFFFFF  # an int or unsigned int argument is the low word

Test = Literal[
    "notify",  # always notified
    "fd",  # one of ``descriptors`` is reserved
    "pio",  # the descriptor is reserved, the offset is in a region above 0, or ``WIDTHS`` bytes are moved
    "piov",  # the descriptor is reserved or the offset is in a region above 0
    "mmap",  # as piov, unless MAP_ANONYMOUS; and with MAP_LOCKED
    "ioctl",  # the request's type is VFIO's, or the descriptor is reserved
    "fstatat",  # a path, or with AT_EMPTY_PATH in argument 3 a reserved descriptor
    "statx",  # the same, with the flags in argument 2
    "fcntl",  # the descriptor is reserved, or F_DUPFD asks for a number that may be
    "close_range",  # the range touches the reserved one
    "unshare",  # CLONE_FILES
]
Copies = Literal[
    "",  # nothing
    "served",  # acts on the open file: the tracer answers it
    "ends",  # may close a descriptor: the tracer tests afterwards whether the thread still has a copy
]
Shown = Literal[
    "",  # not at all
    "ioctl",
    "access",  # (fd, buffer, bytes[, offset])
    "vector",  # (fd, iovec, count[, offset])
    "mmap",
    "open",  # ([dirfd, ]path, ...)
]


class Offset(NamedTuple):
    """Where a call has its file offset."""

    argument: int
    form: Literal[
        "quad", "split", "pages"
    ]  # 64 bits; low and high word in two arguments; number of pages

    def read(self, request: Request) -> int:
        """The offset in bytes, as an unsigned number of 64 bits."""
        value = request[ARG + self.argument]
        if self.form == "quad":
            return value
        if self.form == "split":
            return value & INT | (request[ARG + self.argument + 1] & INT) << 32
        return (value & INT) << PAGE_SHIFT


class Arch(NamedTuple):
    """An architecture: its AUDIT_ARCH number and the numbers of its calls."""

    audit: int
    numbers: dict[str, int]


class Call(NamedTuple):
    """One row; the module's head explains the columns."""

    name: str
    test: Test
    handler: str
    architectures: tuple[Arch, ...]
    descriptors: tuple[int, ...]
    offset: Offset | None
    copies: Copies
    shown: Shown

    def descriptor(self, request: Request) -> int:
        """The first descriptor among the arguments, as an unsigned number."""
        return request[ARG + self.descriptors[0]] & INT

    @property
    def family(self) -> str:
        """The name without its version: pread64 is pread, preadv2 is preadv, openat is open, mmap2 is mmap."""
        if self.shown in ("ioctl", "mmap", "open"):
            return self.shown
        return self.name.removesuffix("64").removesuffix("2")


PAGE_SHIFT: Final = 12
ON_X86_64: Final = (Arch(AUDIT_ARCH_X86_64, X86_64),)
ON_I386: Final = (Arch(AUDIT_ARCH_I386, I386),)
BOTH: Final = ON_X86_64 + ON_I386
QUAD: Final = Offset(3, "quad")
SPLIT: Final = Offset(3, "split")


def _call(
    name: str,
    test: Test,
    handler: str,
    architectures: tuple[Arch, ...] = BOTH,
    *,
    fds: tuple[int, ...] = (),
    offset: Offset | None = None,
    copies: Copies = "",
    shown: Shown = "",
) -> Call:
    return Call(name, test, handler, architectures, fds, offset, copies, shown)


def _pair(
    name: str, test: Test, *, shown: Shown, offsets: tuple[Offset | None, Offset | None]
) -> tuple[Call, Call]:
    """The rows of an access whose i386 form has words of 4 bytes: the handler there is ``METHOD_32``."""
    wide, narrow = offsets
    handler = f"calls.{name}"
    served: Copies = "served"
    return (
        Call(name, test, handler, ON_X86_64, (0,), wide, served, shown),
        Call(name, test, f"{handler}_32", ON_I386, (0,), narrow, served, shown),
    )


CALLS: Final[tuple[Call, ...]] = (
    # opening, and what a path leads to
    _call("open", "notify", "paths.open", shown="open"),
    _call("creat", "notify", "paths.creat"),
    _call("openat", "notify", "paths.openat", fds=(0,), shown="open"),
    _call("openat2", "notify", "paths.openat2", fds=(0,), shown="open"),
    _call("stat", "notify", "paths.stat", ON_X86_64),
    _call("lstat", "notify", "paths.lstat", ON_X86_64),
    _call("stat", "notify", "calls.pass_on", ON_I386),
    _call("lstat", "notify", "calls.pass_on", ON_I386),
    _call("stat64", "notify", "paths.stat64", ON_I386),
    _call("lstat64", "notify", "paths.lstat64", ON_I386),
    _call("newfstatat", "fstatat", "paths.newfstatat", ON_X86_64, fds=(0,)),
    _call("fstatat64", "fstatat", "paths.fstatat64", ON_I386, fds=(0,)),
    _call("statx", "statx", "paths.statx", fds=(0,)),
    _call("access", "notify", "paths.access"),
    _call("faccessat", "notify", "paths.faccessat", fds=(0,)),
    _call("faccessat2", "notify", "paths.faccessat2", fds=(0,)),
    _call("readlink", "notify", "paths.readlink"),
    _call("readlinkat", "notify", "paths.readlinkat", fds=(0,)),
    _call("statfs", "notify", "paths.statfs", ON_X86_64),
    _call("statfs", "notify", "paths.statfs_32", ON_I386),
    _call("statfs64", "notify", "paths.statfs64", ON_I386),
    _call("getxattr", "notify", "paths.getxattr"),
    _call("lgetxattr", "notify", "paths.lgetxattr"),
    _call("listxattr", "notify", "paths.listxattr"),
    _call("llistxattr", "notify", "paths.llistxattr"),
    _call("chdir", "notify", "paths.chdir"),
    _call("fchdir", "notify", "paths.fchdir", fds=(0,)),
    _call("getcwd", "notify", "paths.getcwd"),
    _call("chroot", "notify", "changes.chroot"),
    _call("execve", "notify", "paths.execve", copies="ends"),
    _call("execveat", "notify", "paths.execveat", fds=(0,), copies="ends"),
    # changing what a path leads to
    *(_call(name, "notify", f"changes.{name}") for name in ("mkdir", "mknod", "rmdir", "unlink")),
    *(_call(name, "notify", f"changes.{name}") for name in ("rename", "link", "symlink")),
    *(
        _call(name, "notify", f"changes.{name}", fds=(0,))
        for name in ("mkdirat", "mknodat", "unlinkat")
    ),
    *(
        _call(name, "notify", f"changes.{name}", fds=(0, 2))
        for name in ("renameat", "renameat2", "linkat")
    ),
    _call("symlinkat", "notify", "changes.symlinkat", fds=(1,)),
    _call("chmod", "notify", "changes.chmod"),
    _call("fchmod", "notify", "changes.fchmod", fds=(0,)),
    _call("fchmodat", "notify", "changes.fchmodat", fds=(0,)),
    _call("fchmodat2", "notify", "changes.fchmodat2", fds=(0,)),
    *(_call(name, "notify", f"changes.{name}", ON_X86_64) for name in ("chown", "lchown")),
    *(_call(name, "notify", f"changes.{name}_16", ON_I386) for name in ("chown", "lchown")),
    *(_call(f"{name}32", "notify", f"changes.{name}", ON_I386) for name in ("chown", "lchown")),
    _call("fchown", "notify", "changes.fchown", ON_X86_64, fds=(0,)),
    _call("fchown", "notify", "changes.fchown_16", ON_I386, fds=(0,)),
    _call("fchown32", "notify", "changes.fchown", ON_I386, fds=(0,)),
    _call("fchownat", "notify", "changes.fchownat", fds=(0,)),
    *(_call(name, "notify", "changes.times") for name in ("utime", "utimes")),
    _call("futimesat", "notify", "changes.futimesat", fds=(0,)),
    _call("utimensat", "notify", "changes.utimensat", fds=(0,)),
    _call("utimensat_time64", "notify", "changes.utimensat", ON_I386, fds=(0,)),
    _call("truncate", "notify", "changes.truncate"),
    _call("truncate64", "notify", "changes.truncate", ON_I386),
    *(_call(name, "notify", "changes.xattr") for name in ("setxattr", "removexattr")),
    *(_call(name, "notify", "changes.lxattr") for name in ("lsetxattr", "lremovexattr")),
    *(_call(name, "notify", "changes.fxattr", fds=(0,)) for name in ("fsetxattr", "fremovexattr")),
    # what an open file does
    _call("ioctl", "ioctl", "calls.ioctl", fds=(0,), shown="ioctl"),
    _call("read", "fd", "calls.read", fds=(0,), copies="served", shown="access"),
    _call("write", "fd", "calls.write", fds=(0,), copies="served", shown="access"),
    *_pair("readv", "fd", shown="vector", offsets=(None, None)),
    *_pair("writev", "fd", shown="vector", offsets=(None, None)),
    *_pair("pread64", "pio", shown="access", offsets=(QUAD, SPLIT)),
    *_pair("pwrite64", "pio", shown="access", offsets=(QUAD, SPLIT)),
    *_pair("preadv", "piov", shown="vector", offsets=(QUAD, SPLIT)),
    *_pair("pwritev", "piov", shown="vector", offsets=(QUAD, SPLIT)),
    *_pair("preadv2", "piov", shown="vector", offsets=(QUAD, SPLIT)),
    *_pair("pwritev2", "piov", shown="vector", offsets=(QUAD, SPLIT)),
    _call(
        "mmap", "mmap", "calls.mmap", ON_X86_64, fds=(4,), offset=Offset(5, "quad"), shown="mmap"
    ),
    _call(
        "mmap2", "mmap", "calls.mmap2", ON_I386, fds=(4,), offset=Offset(5, "pages"), shown="mmap"
    ),
    *(_call(name, "notify", "calls.mlock") for name in ("mlock", "mlock2", "mlockall")),
    # its position, size and facts
    _call("lseek", "fd", "calls.lseek", fds=(0,), copies="served"),
    _call("_llseek", "fd", "calls.llseek", ON_I386, fds=(0,), copies="served"),
    _call("fstat", "fd", "calls.fstat", ON_X86_64, fds=(0,), copies="served"),
    _call("fstat", "fd", "calls.pass_on", ON_I386, fds=(0,), copies="served"),
    _call("fstat64", "fd", "calls.fstat64", ON_I386, fds=(0,), copies="served"),
    _call("fstatfs", "fd", "calls.pass_on", fds=(0,)),
    _call("fstatfs64", "fd", "calls.pass_on", ON_I386, fds=(0,)),
    _call("ftruncate", "notify", "calls.ftruncate", fds=(0,), copies="served"),
    _call("ftruncate64", "notify", "calls.ftruncate", ON_I386, fds=(0,), copies="served"),
    _call("fallocate", "fd", "calls.not_possible", fds=(0,)),
    _call("fsync", "fd", "calls.not_possible", fds=(0,), copies="served"),
    _call("fdatasync", "fd", "calls.not_possible", fds=(0,), copies="served"),
    # bytes from one file to another
    _call("sendfile", "fd", "calls.cannot_move", fds=(0, 1), copies="served"),
    _call("sendfile64", "fd", "calls.cannot_move", ON_I386, fds=(0, 1), copies="served"),
    _call("splice", "fd", "calls.cannot_splice", fds=(0, 2), copies="served"),
    _call("copy_file_range", "fd", "calls.cannot_splice", fds=(0, 2), copies="served"),
    # the table of descriptors
    _call("close", "fd", "calls.close", fds=(0,), copies="ends"),
    _call("close_range", "close_range", "calls.close_range", copies="ends"),
    _call("dup", "fd", "calls.dup", fds=(0,)),
    _call("dup2", "fd", "calls.dup2", fds=(0, 1), copies="ends"),
    _call("dup3", "fd", "calls.dup2", fds=(0, 1), copies="ends"),
    _call("fcntl", "fcntl", "calls.fcntl", fds=(0,), copies="ends"),
    _call("fcntl64", "fcntl", "calls.fcntl", ON_I386, fds=(0,), copies="ends"),
    _call("unshare", "unshare", "calls.unshare"),
)

BY_KEY: Final[dict[Key, Call]] = {
    (arch.numbers[call.name], arch.audit): call for call in CALLS for arch in call.architectures
}


def call_of(request: Request) -> Call:
    """The row of the call that is notified."""
    return BY_KEY[request[3], request[4]]
