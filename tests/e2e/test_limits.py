"""Few descriptors, many descriptors, little memory to lock: limits that a program may run under."""

from __future__ import annotations

import errno
import os
import resource
from typing import TYPE_CHECKING

import pytest

from support.requirements import require
from support.uvfio_cli import NOBODY, run_uvfio

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from e2e.conftest import Programs


def under(limits: str) -> Sequence[str]:
    """Words that start a program under limits, in the words of the shell's ulimit."""
    return ["sh", "-euc", f'{limits}; exec "$@"', "sh"]


@pytest.mark.parametrize("limit", [64, 256, 511, 512, 1024, 20000])
@pytest.mark.parametrize("whole", [True, False], ids=["whole run", "program"])
def test_descriptors(limit: int, whole: bool, program: Programs) -> None:
    """Below 512 the range of reserved numbers is smaller; above 1024 it stays where select can reach it."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    require(limit <= hard, f"the limit of open files is {hard} here")
    limits = under(f"ulimit -n {limit}")
    driver = program("edu_driver")
    words = [driver] if whole else [*limits, driver]
    done = run_uvfio("run", "--", *words, before=limits if whole else ()).ok()
    assert "all right" in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize("limit", [64, 256, 20000])
@pytest.mark.parametrize(
    "name", ["errors_2011", "exec_child", "fork_noexec", "no_close", "threads", "vmm_2011"]
)
def test_programs_with_few_or_many_descriptors(name: str, limit: int, program: Programs) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    require(limit <= hard, f"the limit of open files is {hard} here")
    run_uvfio("run", "--", program(name), before=under(f"ulimit -n {limit}")).ok()


@pytest.mark.parametrize("limit", [400, 1024])
def test_three_hundred_group_files(limit: int, python: Callable[..., list[str]]) -> None:
    """More than the reserved range holds: the rest get ordinary numbers and work as well."""
    code = """
import fcntl, os, struct
groups = [os.open(f"/dev/vfio/{240 + n % 2}", os.O_RDWR) for n in range(300)]
assert len(set(groups)) == 300
for group in groups:
    assert struct.unpack("=Q", fcntl.ioctl(group, 0x80083B64, bytes(8))) == (1,)
iommu = fcntl.ioctl(groups[-2], 0x3B67)
flags = [struct.unpack("=Q", fcntl.ioctl(group, 0x80083B64, bytes(8)))[0] for group in groups]
assert flags == [3, 1] * 150, flags
device = fcntl.ioctl(groups[0], 0x40083B68, bytearray(b"0000:06:0d.0\\0"), True)
assert os.pread(device, 4, 7 << 40) == b"\\x34\\x12\\xe8\\x11"
os.pwrite(device, b"\\x06\\x00", (7 << 40) + 4)
assert os.pread(device, 4, 0) == b"\\xed\\0\\0\\1"
for fd in groups: os.close(fd)
group = os.open("/dev/vfio/240", os.O_RDWR)
assert struct.unpack("=Q", fcntl.ioctl(group, 0x80083B64, bytes(8))) == (3,)
os.close(iommu); os.close(device)
assert struct.unpack("=Q", fcntl.ioctl(group, 0x80083B64, bytes(8))) == (1,)
print("done")
"""
    done = run_uvfio("run", "--", *python(code), before=under(f"ulimit -n {limit}")).ok()
    assert done.stdout == "done\n"


def test_a_limit_of_the_size_of_files_is_named() -> None:
    done = run_uvfio("run", "--", "true", before=under("ulimit -f 1000"))
    assert done.status == 125
    assert "the limit of the size of files is " in done.stderr
    assert "ulimit -f unlimited" in done.stderr


OPENS_ALL = """
import errno, os, sys
fds = []
try:
    while True: fds.append(os.open("/dev/vfio/240", os.O_RDWR))
except OSError as error:
    print(errno.errorcode[error.errno], 50 < len(fds) < 64)
os.close(fds.pop())
fds.append(os.open("/dev/vfio/241", os.O_RDWR))
"""


def test_no_descriptor_left(python: Callable[..., list[str]]) -> None:
    done = run_uvfio("run", "--", *python(OPENS_ALL), before=under("ulimit -S -n 64")).ok()
    assert done.stdout == "EMFILE True\n"


def test_no_descriptor_left_for_the_supervisor(python: Callable[..., list[str]]) -> None:
    """It needs one for each file; under a hard limit it may be the first that has none: not the program's fault."""
    done = run_uvfio("run", "--", *python(OPENS_ALL), before=under("ulimit -n 64")).ok()
    assert done.stdout == "ENFILE False\n"


def test_more_processes_than_descriptors(python: Callable[..., list[str]]) -> None:
    """The supervisor holds two or three for each process: its own limit is not the program's."""
    code = """
import os
ready, report = os.pipe()
wait, go = os.pipe()
children = []
for _ in range(200):
    child = os.fork()
    if not child:
        os.close(go)
        group = os.open("/dev/vfio/241", os.O_RDWR)
        os.write(report, b"x")
        os.read(wait, 1)
        os._exit(0 if os.path.exists(f"/proc/self/fd/{group}") and os.path.exists("/etc/passwd") else 1)
    children.append(child)
for _ in children: assert os.read(ready, 1) == b"x"
os.close(go)
assert [os.waitpid(child, 0)[1] for child in children] == [0] * 200
print("done")
"""
    done = run_uvfio("run", "--", *python(code), before=under("ulimit -S -n 256")).ok()
    assert done.stdout == "done\n"


CLOSES = """
import os, sys
for fd in range(3, 1024):
    try: os.close(fd)
    except OSError: pass
os.closerange(3, 1 << 16)
os.execv(sys.argv[1], sys.argv[1:])
"""


def test_a_program_that_closes_everything_first(
    program: Programs, python: Callable[..., list[str]]
) -> None:
    """As daemons do: nothing of uvfio is among what they inherit."""
    for words in (python(CLOSES, program("edu_driver")), python(CLOSES, program("dup_fds"))):
        run_uvfio("run", "--", *words).ok()


def test_what_a_program_inherits(python: Callable[..., list[str]]) -> None:
    """0, 1, 2 and what the caller left open for it; nothing of uvfio's own."""
    readable, writable = os.pipe()
    code = "import os; print([fd for fd in range(1024) if os.path.lexists(f'/proc/self/fd/{fd}')])"
    try:
        done = run_uvfio("run", "--", *python(code), pass_fds=[writable]).ok()
        assert done.stdout == f"{sorted([0, 1, 2, writable])}\n"
    finally:
        os.close(readable)
        os.close(writable)


def test_lowering_the_limit_while_files_are_open(python: Callable[..., list[str]]) -> None:
    """The reserved numbers are then above the limit: open files work, new ones get such numbers all the same."""
    code = """
import fcntl, os, resource
group = os.open("/dev/vfio/240", os.O_RDWR)
assert group >= 256
resource.setrlimit(resource.RLIMIT_NOFILE, (100, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
device = fcntl.ioctl(group, 0x40083B68, bytearray(b"0000:06:0d.0\\0"), True)
assert device >= 256
assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 100
os.pwrite(device, b"\\x06\\x00", (7 << 40) + 4)
assert os.pread(device, 4, 0) == b"\\xed\\0\\0\\1"
os.close(group)
os.close(device)
print(os.open("/dev/vfio/240", os.O_RDWR) >= 256)
"""
    assert run_uvfio("run", "--", *python(code)).ok().stdout == "True\n"


MAPS = """
import ctypes, errno, fcntl, mmap, os, struct, sys
def dma(iova, size):
    argument = struct.pack("=QQQQQ", 40, address, iova, size, 1)
    try: fcntl.ioctl(iommu, 0xC0283B6A, argument)
    except OSError as error: return errno.errorcode[error.errno]
    return "ok"
memory = mmap.mmap(-1, 1 << 20)
address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
group = os.open("/dev/vfio/240", os.O_RDWR)
iommu = fcntl.ioctl(group, 0x3B67)
print(dma(0, 1 << 20), dma(0, 60 << 10), dma(1 << 20, 8 << 10), dma(1 << 20, 4 << 10))
"""


def test_locked_memory_of_an_ordinary_user(python: Callable[..., list[str]]) -> None:
    """64 KiB: the first is too large, the second fits, the third exceeds what is left, the fourth fills it."""
    from support.uvfio_cli import python_of

    user = NOBODY if os.getuid() == 0 else os.getuid()
    words = [*python_of(user), "-c", MAPS]
    done = run_uvfio("run", "--", *words, user=user, before=under("ulimit -l 64")).ok()
    assert done.stdout.split() == ["ENOMEM", "ok", "ENOMEM", "ok"]


def test_locked_memory_of_root(python: Callable[..., list[str]]) -> None:
    require(os.getuid() == 0, "only root has CAP_IPC_LOCK")
    done = run_uvfio("run", "--", *python(MAPS), before=under("ulimit -l 64")).ok()
    assert done.stdout.split() == ["ok", "EBUSY", "ok", "EBUSY"]


def test_little_address_space(program: Programs) -> None:
    """Enough for Python, not for extravagance."""
    run_uvfio("run", "--", program("edu_driver"), before=under("ulimit -v 1000000")).ok()


def test_no_place_for_the_machine_s_files(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A file size limit of 0: the supervisor cannot make its files; it says so, and nothing is left."""
    done = run_uvfio("run", "--", "true", before=under("ulimit -f 0"))
    assert done.status == 125, done
    assert done.stderr.startswith("uvfio: ")
    assert os.strerror(errno.EFBIG) in done.stderr or "folder" in done.stderr
