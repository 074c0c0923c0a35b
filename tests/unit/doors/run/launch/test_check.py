"""The probes on this machine, and what they say where something is missing."""

from __future__ import annotations

import ast
import errno
import os
import resource
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING

import pytest

from support.launching import Run, write_driver
from uvfio.doors.run.launch import check
from uvfio.doors.run.linux import syscalls

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    made = Run(write_driver(tmp_path_factory.mktemp("driver")))
    yield made
    made.end()


PROBE = """
import os, sys
from uvfio.doors.run.launch import check
{change}
before = set(os.listdir("/proc/self/fd"))
probes = check.probe_all()
assert set(os.listdir("/proc/self/fd")) == before
try:
    print(os.waitpid(-1, os.WNOHANG))
except ChildProcessError:
    pass
print([(p.name, p.ok, p.detail, p.hint, p.required) for p in probes])
"""


def probe(change: str = "", command: tuple[str, ...] = ()) -> dict[str, check.Probe]:
    """Run all probes in a process of their own, after ``change``."""
    source = PROBE.format(change=textwrap.dedent(change))
    done = subprocess.run(
        [*command, sys.executable, "-c", source],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stderr == ""
    return {fields[0]: check.Probe(*fields) for fields in ast.literal_eval(done.stdout)}


def test_this_machine() -> None:
    """Tests of the runner need these; what is optional depends on the kernel."""
    probes = probe()
    assert all(p.ok for p in probes.values() if p.required), probes
    assert all(p.detail for p in probes.values())
    assert list(probes) == [
        "architecture",
        "kernel",
        "seccomp",
        "user notification",
        "descriptor injection",
        "program memory",
        "program descriptors",
        "synchronous wake-up",
        "scratch directory",
        "memory map",
        "open files",
        "Yama",
        "32-bit programs",
    ]
    assert probes["synchronous wake-up"].ok == (syscalls.kernel_release() >= (6, 6))
    assert probes["memory map"].ok == (syscalls.kernel_release() >= (6, 11))


def test_inside_a_supervisor(run: Run) -> None:
    source = PROBE.format(change="")
    done = run(sys.executable, "-c", source)
    probes = {fields[0]: check.Probe(*fields) for fields in ast.literal_eval(done.stdout)}
    refused = probes["user notification"]
    assert (refused.ok, refused.detail) == (False, "another supervisor listens already")
    for name in ("descriptor injection", "program memory", "program descriptors"):
        assert (probes[name].ok, probes[name].detail) == (False, "not tried")


def test_few_descriptors() -> None:
    probes = probe("import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (60, 60))")
    assert probes["open files"] == check.Probe(
        "open files",
        False,
        "soft limit 60: no room for a reserved range",
        "`ulimit -n 1024`: read, write and close of served files are recognised by their number",
        required=False,
    )
    assert probes["descriptor injection"].ok
    assert probes["descriptor injection"].detail == "at the lowest number"


def test_many_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (resource.RLIM_INFINITY,) * 2)
    assert check._descriptor_limit().ok


@pytest.mark.parametrize(
    ("call", "name"),
    [
        ("syscalls.addfd", "descriptor injection"),
        ("syscalls.pidfd_getfd", "program descriptors"),
        ("os.pwrite", "program memory"),
    ],
)
def test_one_thing_is_forbidden(call: str, name: str) -> None:
    """Each step fails for itself, as in a container that forbids it."""
    probes = probe(f"""
        def refuse(*arguments):
            raise PermissionError(1, "Operation not permitted")
        check.{call} = refuse
    """)
    assert (probes[name].ok, probes[name].detail) == (False, "Operation not permitted")
    failed = {p.name for p in probes.values() if not p.ok and p.required}
    assert failed == {name}


def test_no_seccomp_actions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(syscalls, "seccomp_action_available", lambda action: False)
    assert check._actions().detail == "no USER_NOTIF, ERRNO"

    def missing(action: int) -> bool:
        raise syscalls.oserror("seccomp", errno.ENOSYS)

    monkeypatch.setattr(syscalls, "seccomp_action_available", missing)
    probe = check._actions()
    assert not probe.ok
    assert "seccomp is missing" in probe.detail


def test_old_kernel_and_other_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    uname = os.uname_result(("Linux", "host", "5.15.0-91-generic", "", "aarch64"))
    monkeypatch.setattr(os, "uname", lambda: uname)
    assert not check._kernel().ok
    assert check._kernel().detail == "Linux 5.15.0-91-generic"
    assert not check._architecture().ok
    assert check._architecture().detail == "aarch64"


def test_scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check.scratch_problem("/proc").startswith("O_TMPFILE: ")
    assert check.scratch_problem(str(tmp_path / "none")) == "O_TMPFILE: No such file or directory"
    inotify = syscalls.inotify_init1()
    try:
        for directory in check.scratch_directories():
            for _ in range(2):
                assert check.scratch_problem(directory, inotify) == ""
                assert syscalls.readable_bytes(inotify) == 0
    finally:
        os.close(inotify)

    usable = check.scratch_directories()
    monkeypatch.setenv("XDG_RUNTIME_DIR", usable[0])
    assert check.scratch_directories()[0] == usable[0]
    monkeypatch.setenv("XDG_RUNTIME_DIR", "relative")
    assert check.scratch_directories() == usable


def no_event(fd: int) -> int:
    return 0


def quota(path: int, length: int) -> None:
    raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))


@pytest.mark.parametrize(
    ("module", "name", "replacement", "text"),
    [
        (syscalls, "readable_bytes", no_event, "the last close of a file gives no inotify event"),
        (os, "truncate", quota, "File too large"),
    ],
)
def test_unusable_scratch(
    monkeypatch: pytest.MonkeyPatch,
    module: object,
    name: str,
    replacement: Callable[..., object],
    text: str,
) -> None:
    directory = check.scratch_directories()[0]
    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(module, name, replacement)
    assert check.scratch_problem(directory) == text
    assert len(os.listdir("/proc/self/fd")) == before
    probe = check._scratch()
    assert not probe.ok
    assert f"/tmp: {text}" in probe.detail or "/tmp: O_TMPFILE" in probe.detail


def test_a_second_event_is_one_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    directory = check.scratch_directories()[0]
    read = os.read
    monkeypatch.setattr(os, "read", lambda fd, size: read(fd, size) * 2)
    assert "unexpected inotify events: 0" in check.scratch_problem(directory)


@pytest.mark.parametrize(
    ("content", "ok", "detail"),
    [
        ("0\n", True, "ptrace_scope 0: no restriction"),
        ("1\n", True, "ptrace_scope 1: descendants only, which suffices"),
        ("2\n", False, "ptrace_scope 2: CAP_SYS_PTRACE only"),
        ("3\n", False, "ptrace_scope 3: nobody"),
        ("7\n", False, "ptrace_scope 7: unknown"),
        ("x\n", False, "ptrace_scope: invalid literal for int() with base 10: 'x\\n'"),
        (None, True, "not in this kernel"),
    ],
)
def test_yama(
    content: str | None, ok: bool, detail: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ptrace_scope"
    if content is not None:
        path.write_text(content)
    monkeypatch.setattr(check, "YAMA", str(path))
    found = check._yama()
    assert (found.ok, found.detail, found.required) == (ok, detail, False)


def test_nothing_heavy_is_imported() -> None:
    code = "import sys, uvfio.doors.run.launch.check; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"rich", "msgspec", "subprocess", "asyncio"} & set(done.stdout.split())
