"""uapi.seccomp against the C headers of this machine: values by a compiled program, numbers by cpp."""

from __future__ import annotations

import ctypes
import re
import subprocess
from pathlib import Path

import pytest

from support.requirements import require_program
from uvfio.doors.run.launch import check
from uvfio.doors.run.linux import syscalls
from uvfio.uapi import linux, seccomp


@pytest.fixture(autouse=True)
def _compiler() -> None:
    require_program("gcc")


HEADERS = """
#include <fcntl.h>
#include <stddef.h>
#include <stdio.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <linux/audit.h>
#include <linux/auxvec.h>
#include <linux/capability.h>
#include <linux/close_range.h>
#include <linux/filter.h>
#include <linux/fs.h>
#include <linux/kcmp.h>
#include <linux/limits.h>
#include <linux/magic.h>
#include <sys/uio.h>
#include <linux/openat2.h>
#include <linux/prctl.h>
#include <linux/seccomp.h>
#include <linux/stat.h>
"""


# MAX_RW_COUNT is the kernel's own; glibc's O_LARGEFILE is 0 on x86-64, where each file is large.
NOT_IN_A_HEADER = ("MAX_RW_COUNT", "O_LARGEFILE")


def preprocess(source: str, *flags: str) -> str:
    done = subprocess.run(
        ["gcc", "-E", "-P", *flags, "-"], input=source, capture_output=True, text=True, check=True
    )
    return done.stdout


def constants() -> dict[str, int]:
    found = {
        name: value
        for module in (seccomp, syscalls)
        for name, value in vars(module).items()
        if isinstance(value, int)
        and re.match(
            r"(SECCOMP|BPF|AUDIT|PR|KCMP|CLOSE_RANGE|IN|RESOLVE|PROCMAP)_[A-Z0-9_]+$", name
        )
        and not name.endswith("WRONG_DIR")
    }
    found |= {
        name: value
        for name, value in vars(linux).items()
        if isinstance(value, int) and name not in NOT_IN_A_HEADER
    }
    return found


def test_constants(tmp_path: Path) -> None:
    # One run of the preprocessor tells which the headers have.
    ours = constants()
    assert len(ours) > 50
    text = preprocess(
        HEADERS + "".join(f'#ifdef {name}\n"have {name}"\n#endif\n' for name in ours),
        "-D_GNU_SOURCE",
    )
    names = re.findall(r'"have (\w+)"', text)
    # KCMP_* are an enumeration, which the preprocessor does not see.
    names += [name for name in ours if name.startswith("KCMP_")]
    missing = set(ours) - set(names)
    # Newer than some distributions' headers: Linux 6.6 and 6.11.
    assert all(
        re.match("PROCMAP_|SECCOMP_IOCTL_NOTIF_SET|SECCOMP_USER_NOTIF_FD", m) for m in missing
    )
    body = "".join(f'  printf("{name} %llu\\n", (unsigned long long)({name}));\n' for name in names)
    values = run_c(tmp_path, f"{HEADERS}\nint main(void) {{\n{body}  return 0;\n}}\n")
    for line in values.splitlines():
        name, value = line.split()
        assert int(value) & 0xFFFFFFFF == ours[name] & 0xFFFFFFFF, name


def run_c(tmp_path: Path, source: str) -> str:
    (tmp_path / "a.c").write_text(source)
    subprocess.run(
        ["gcc", "-D_GNU_SOURCE", "-o", str(tmp_path / "a"), str(tmp_path / "a.c")], check=True
    )
    done = subprocess.run([str(tmp_path / "a")], capture_output=True, text=True, check=True)
    return done.stdout


# C struct, its fields in the order in which struct.Struct packs them
LAYOUTS = {
    "seccomp_data": ["nr", "arch", "instruction_pointer", "args"],
    "seccomp_notif": ["id", "pid", "flags", "data"],
    "seccomp_notif_resp": ["id", "val", "error", "flags"],
    "seccomp_notif_addfd": ["id", "flags", "srcfd", "newfd", "newfd_flags"],
    "seccomp_notif_sizes": ["seccomp_notif", "seccomp_notif_resp", "seccomp_data"],
    "sock_filter": ["code", "jt", "jf", "k"],
    "sock_fprog": ["len", "filter"],
}


def test_layouts(tmp_path: Path) -> None:
    body = ""
    for name, fields in LAYOUTS.items():
        body += f'  printf("{name} %zu", sizeof(struct {name}));\n'
        body += "".join(f'  printf(" %zu", offsetof(struct {name}, {f}));\n' for f in fields)
        body += '  printf("\\n");\n'
    body += '  printf("open_how %zu\\n", sizeof(struct open_how));\n'
    body += '  printf("inotify_event %zu\\n", sizeof(struct inotify_event));\n'
    output = run_c(tmp_path, f"{HEADERS}\nint main(void) {{\n{body}  return 0;\n}}\n")
    for line in output.splitlines():
        name, size, *offsets = line.split()
        ours = getattr(seccomp, name, None) or getattr(syscalls, name)
        assert ours.size == int(size), name
        if name == "sock_fprog":
            expected = [0, 8]
        else:
            fields = re.findall(r"\d*[A-Za-z]", ours.format.lstrip("<"))
            fields = [part for f in fields for part in expand(f)]
            expected = [struct_offset(fields, at) for at in range(len(offsets))]
        assert [int(offset) for offset in offsets] == expected[: len(offsets)], name


def expand(field: str) -> list[str]:
    count = int(field[:-1] or 1)
    return [field[-1]] * count


def struct_offset(fields: list[str], at: int) -> int:
    width = {"Q": 8, "q": 8, "I": 4, "i": 4, "H": 2, "B": 1}
    return sum(width[field] for field in fields[:at])


@pytest.mark.parametrize(("flag", "table"), [("-m64", seccomp.X86_64), ("-m32", seccomp.I386)])
def test_system_call_numbers(flag: str, table: dict[str, int]) -> None:
    header = {"-m64": "asm/unistd_64.h", "-m32": "asm/unistd_32.h"}[flag]
    text = preprocess(f"#include <{header}>\n", "-dM")
    theirs = {
        name: int(nr) for name, nr in re.findall(r"^#define __NR_(\w+) (\d+)$", text, re.MULTILINE)
    }
    assert len(theirs) > 300
    newest = max(theirs.values())
    for name, nr in theirs.items():
        if nr <= max(table.values()):
            assert table.get(name) == nr, name
    for name, nr in table.items():
        if nr <= newest and name != "uretprobe":  # filled a hole of the table in Linux 6.11
            assert theirs.get(name) == nr, name


def test_the_kernel_agrees_on_sizes() -> None:
    """SECCOMP_GET_NOTIF_SIZES: what RECV and SEND need at least."""
    sizes = ctypes.create_string_buffer(seccomp.seccomp_notif_sizes.size)
    syscalls._seccomp(seccomp.SECCOMP_GET_NOTIF_SIZES, 0, sizes)
    assert seccomp.seccomp_notif_sizes.unpack(sizes.raw) == (80, 24, 64)


def test_i386_program_is_elf(tmp_path: Path) -> None:
    path = tmp_path / "program"
    path.write_bytes(check._i386_program())
    command = [require_program("readelf"), "-hl", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "ELF32" in done.stdout
    assert "Intel 80386" in done.stdout
