"""The table of system calls: that its rows agree with themselves and with the kernel's tables."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import uvfio
from uvfio.doors.run.filter.rules import ARG, BY_KEY, CALLS, Offset
from uvfio.uapi.seccomp import AUDIT_ARCH_I386, AUDIT_ARCH_X86_64, I386, X86_64

RUN = Path(uvfio.__file__).parent / "doors" / "run"


def keys(*names: str) -> set[tuple[int, int]]:
    tables = ((X86_64, AUDIT_ARCH_X86_64), (I386, AUDIT_ARCH_I386))
    return {(numbers[n], arch) for numbers, arch in tables for n in names if n in numbers}


def test_each_call_has_one_row() -> None:
    assert len(BY_KEY) == sum(len(call.architectures) for call in CALLS)


def test_a_row_names_its_call() -> None:
    for (number, arch), call in BY_KEY.items():
        assert (X86_64 if arch == AUDIT_ARCH_X86_64 else I386)[call.name] == number


def test_columns_agree() -> None:
    for call in CALLS:
        assert (call.offset is not None) == (call.test in ("pio", "piov", "mmap")), call.name
        if call.test in ("fd", "pio", "piov", "mmap", "fstatat", "statx"):
            assert call.descriptors, call.name
        if call.copies == "served" or call.shown not in ("", "open"):
            assert call.descriptors, call.name
        if call.shown == "open":
            assert call.descriptors in ((), (0,)), call.name


def test_what_means_something_for_a_copy() -> None:
    served = {key for key, call in BY_KEY.items() if call.copies == "served"}
    assert served == keys(
        *("read", "write", "readv", "writev", "pread64", "pwrite64", "preadv", "pwritev"),
        *("preadv2", "pwritev2", "lseek", "_llseek", "fstat", "fstat64", "ftruncate"),
        *("ftruncate64", "fsync", "fdatasync", "sendfile", "sendfile64", "splice"),
        "copy_file_range",
    )
    assert {key for key, call in BY_KEY.items() if call.copies == "ends"} == keys(
        *("close", "close_range", "dup2", "dup3", "fcntl", "fcntl64", "execve", "execveat")
    )


def test_families() -> None:
    assert {call.family for call in CALLS if call.shown} == {
        *("ioctl", "open", "mmap", "read", "write", "readv", "writev"),
        *("pread", "pwrite", "preadv", "pwritev"),
    }


@pytest.mark.parametrize(
    ("offset", "arguments", "expected"),
    [
        (Offset(3, "quad"), (0, 0, 0, 1 << 63, 7, 0), 1 << 63),
        (Offset(3, "split"), (0, 0, 0, 9 << 32 | 1, 2, 0), 2 << 32 | 1),
        (Offset(3, "split"), (0, 0, 0, 1, 5 << 32 | 2, 0), 2 << 32 | 1),
        (Offset(5, "pages"), (0, 0, 0, 0, 0, 1 << 32 | 0xFFFFFFFF), 0xFFFFFFFF << 12),
    ],
)
def test_offsets(offset: Offset, arguments: tuple[int, ...], expected: int) -> None:
    assert offset.read((*[0] * ARG, *arguments)) == expected


def test_no_other_module_lists_calls() -> None:
    """Three names of calls in one expression are a list of them; `launch` knows the calls of its trial child."""
    names = {call.name for call in CALLS} - {
        "access",
        "ioctl",
        "mmap",
        "open",
        "read",
        "stat",
        "write",
    }
    for module in RUN.rglob("*.py"):
        if module.name in ("rules.py", "check.py"):
            continue
        for node in ast.walk(ast.parse(module.read_text())):
            if isinstance(node, ast.List | ast.Set | ast.Dict | ast.Tuple):
                words = {
                    word
                    for leaf in ast.walk(node)
                    if isinstance(leaf, ast.Constant) and isinstance(leaf.value, str)
                    for word in leaf.value.split()
                }
                in_all = module.name == "syscalls.py"  # the wrappers that it exports
                assert in_all or len(words & names) < 3, (module, node.lineno, words & names)


def test_ctypes_libraries_are_loaded_in_linux_alone() -> None:
    package = Path(uvfio.__file__).parent
    users = {
        module.relative_to(package).as_posix()
        for module in package.rglob("*.py")
        if any(
            "CDLL" in (getattr(node, "id", ""), getattr(node, "attr", ""))
            for node in ast.walk(ast.parse(module.read_text()))
        )
    }
    assert users == {
        f"doors/run/linux/{name}.py" for name in ("file_memory", "ptrace", "sigbus", "syscalls")
    }
