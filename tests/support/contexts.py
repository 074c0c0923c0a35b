"""The matrix of contexts: the same path calls with and without uvfio, and the cells whose answers differ.

``differences("same", program)`` makes a folder of targets, runs ``context_matrix`` (tests/e2e/programs) natively and
under ``uvfio run``, and compares cell by cell. Under uvfio the paths lead through /dev/vfio and /sys/bus/pci, natively
through host folders at the same depth: all of them lead out again, so the answers must be the same. Both runs get a
folder of their own with the same contents; answers name objects and not inode numbers.

As a script it prints the differences of the contexts that are named, or of all that can be had::

    PYTHONPATH=tests python tests/support/contexts.py [CONTEXT...]
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from support.uvfio_cli import NOBODY, run_uvfio

__all__ = ["CONTEXTS", "ROOT_ONLY", "cells", "differences", "obstacle"]

CONTEXTS = ("same", "umask", "umask-077", "thread")
ROOT_ONLY = (
    "dropped",
    "group",
    "effective",
    "fsuid",
    "no-capabilities",
    "own-mounts",
    "own-mounts-dropped",
    "chroot",
    "thread-dropped",
)
GROUP = 12345
MACHINE = ("/dev/vfio", "/sys/bus/pci")
PATIENCE = 120.0


def host_folders() -> tuple[str, str]:
    """Folders of the host that stand for those of the machine: as deep, on the same file systems, readable by all."""
    beside = [
        entry.path
        for entry in os.scandir("/dev")
        if entry.is_dir(follow_symlinks=False)
        and entry.stat().st_mode & 0o5 == 0o5
        and entry.stat().st_dev == os.stat("/dev").st_dev
        and entry.path != MACHINE[0]
    ]
    devices = next(
        bus for bus in ("cpu", "platform", "workqueue") if Path("/sys/bus", bus).exists()
    )
    return min(beside, default="/dev/pts"), f"/sys/bus/{devices}"


def populate(top: Path, program: Path, dev: str, bus: str) -> None:
    """The targets, in the new folder ``top``. Owners are set if the caller may."""
    for name in ("dir", "locked", "open"):
        (top / name).mkdir(parents=True)
    for name in ("file", "secret", "theirs", "dir/inner", "dir/file", "locked/file"):
        (top / name).write_text(f"{name}\n")
    shutil.copy(program, top / "exe")
    links = {
        "link": "file",
        "dangling": "dir/nothing",
        "loop": "loop",
        "to_dev": dev,
        "to_dev_up": f"{dev}/..",
        "to_bus_relative": os.path.relpath(bus, top),
        "link_to": str(top),
        "link_by_dev": f"{dev}/../..{top}",
        "link_by_bus": f"{os.path.relpath(bus, top)}/../../..{top}",
    }
    for name, text in links.items():
        (top / name).symlink_to(text)
    modes = {"": 0o755, "dir": 0o755, "locked": 0o700, "open": 0o777, "exe": 0o755}
    modes |= {"file": 0o644, "secret": 0o640, "theirs": 0o600, "locked/file": 0o644}
    if os.getuid() == 0:
        os.chown(top / "secret", 0, GROUP)
        os.chown(top / "theirs", NOBODY, NOBODY)
    for name, mode in modes.items():
        (top / name).chmod(mode)
    try:
        os.setxattr(top / "file", "user.colour", b"green")
    except OSError:
        return  # a file system without attributes: both runs are told so


def make_root(root: Path, top: Path, program: Path, dev: str, bus: str) -> None:
    """A root folder for chroot, with the targets at the same path and folders that are named like the machine's."""
    for folder in (*MACHINE, dev, bus):
        (root / folder[1:] / "devices").mkdir(parents=True, exist_ok=True)
    (root / "etc").mkdir()
    for name in ("etc/passwd", "dev/null", "dev/vfio/vfio", "sys/bus/pci/drivers_probe"):
        (root / name).write_text(f"{name} below another root\n")
    populate(root / str(top)[1:], program, dev, bus)


def objects(top: Path) -> str:
    """A line ``MAJOR:MINOR:INODE NAME`` for each object that the answers may name."""
    host = [
        "/",
        "/etc",
        "/etc/passwd",
        "/dev",
        "/dev/null",
        "/proc",
        "/sys",
        "/sys/bus",
        str(top.parent),
    ]
    named = {path: path for path in reversed(host)}
    for folder, _, files in os.walk(top):
        for path in (folder, *(os.path.join(folder, name) for name in files)):
            named[path] = "FOLDER" + path.removeprefix(str(top))
    lines = [""]
    for path, name in named.items():
        about = os.lstat(path)
        device = f"{os.major(about.st_dev)}:{os.minor(about.st_dev)}"
        lines.append(f"{device}:{about.st_ino} {name.replace(str(top), 'FOLDER')}")
    return "\n".join([*lines, ""])


def cells(context: str, program: Path, *, native: bool) -> dict[str, str]:
    """The answers of one run, by ``FORM TARGET OPERATION``."""
    parent = "/tmp" if os.access("/tmp", os.W_OK) else None  # ordinary users must reach it
    dev, bus = host_folders() if native else MACHINE
    top = Path(tempfile.mkdtemp(prefix="uvfio-contexts-", dir=parent))
    try:
        populate(top, program, dev, bus)
        make_root(top / "root", top, program, dev, bus)
        (top / "objects").write_text(objects(top))
        words = [str(program), context, str(top), dev, bus]
        if native:
            done = subprocess.run(
                words, capture_output=True, text=True, check=False, timeout=PATIENCE
            )
            status, stdout, stderr = done.returncode, done.stdout, done.stderr
        else:
            ended = run_uvfio("run", "--", *words, timeout=PATIENCE)
            status, stdout, stderr = ended.status, ended.stdout, ended.stderr
        assert status == 0, f"context {context}: status {status}\n{stdout[-1000:]}\n{stderr}"
        assert not stderr, stderr
    finally:
        shutil.rmtree(top)
    pairs = [line.partition(" = ") for line in stdout.splitlines()]
    found = {cell: answer for cell, _, answer in pairs}
    assert len(found) == len(pairs), Counter(cell for cell, _, _ in pairs).most_common(3)
    return found


def differences(context: str, program: Path) -> list[str]:
    """``CELL: native ANSWER, under uvfio ANSWER`` for each cell whose answers differ."""
    native = cells(context, program, native=True)
    served = cells(context, program, native=False)
    return [
        f"{cell}: native {native.get(cell, 'nothing')}, under uvfio {served.get(cell, 'nothing')}"
        for cell in dict.fromkeys([*native, *served])
        if native.get(cell) != served.get(cell)
    ]


def obstacle(context: str, program: Path) -> str:
    """Why the context cannot be had here; empty if it can."""
    if context in ROOT_ONLY and os.getuid() != 0:
        return "only root may change its rights"
    try:
        cells(context, program, native=True)
    except AssertionError as error:
        return str(error)
    return ""


def main() -> None:
    from e2e import build

    program = build.compile("context_matrix", static=True)
    for context in sys.argv[1:] or (*CONTEXTS, *ROOT_ONLY):
        found = differences(context, program)
        print(f"== {context}: {len(found)} differences")
        print("\n".join(found))


if __name__ == "__main__":
    main()
