"""Whose rights count: those of the program that calls, never those of the supervisor.

What a path outside the machine's folders means in each kind of call and context is in ``test_context.py``.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support.requirements import require, require_program
from support.uvfio_cli import NOBODY, run_uvfio

if TYPE_CHECKING:
    from e2e.conftest import Programs

DEVICE = "/sys/bus/pci/devices/0000:07:00.0"


def as_root() -> None:
    require(os.getuid() == 0, "only root can drop to another user")


def run_dropped(script: str, before: str = "true") -> list[str]:
    """The lines that ``script`` prints as nobody, in root's run, after ``before`` as root."""
    require_program("setpriv")
    drop = f"setpriv --reuid {NOBODY} --regid {NOBODY} --clear-groups"
    done = run_uvfio("run", "--", "sh", "-c", f"{before}; exec {drop} sh -c '{script}' 2>&1")
    return done.stdout.splitlines()


@pytest.mark.parametrize("m32", [False, True], ids=["x86-64", "i386"])
def test_calls_that_the_program_repeats(m32: bool, program: Programs, tmp_path: Path) -> None:
    """Interrupted, restarted, killed, stopped, from threads, by exec: as if the path were an ordinary one."""
    done = run_uvfio("run", "--", program("repeated", m32=m32), tmp_path).ok()
    lines = done.stdout.splitlines()
    assert len(lines) == 16
    assert [line for line in lines if " ok " not in line] == []
    assert done.stderr == ""


def test_a_fifo_blocks_its_reader_only(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    script = f"cat /dev/vfio/../..{fifo} & read x < {DEVICE}/vendor; echo $x; echo through > {fifo}; wait"
    done = run_uvfio("run", "--", "sh", "-c", script).ok()
    assert done.stdout.split() == ["0x1234", "through"]


def test_a_dropped_program_has_no_rights_of_root(tmp_path: Path) -> None:
    as_root()
    secret = tmp_path / "secret"
    secret.write_text("of root")
    secret.chmod(0o600)
    tmp_path.chmod(0o711)
    lines = run_dropped(
        f"cat /dev/vfio/../..{secret}; touch /dev/vfio/../..{tmp_path}/new; cd /sys/bus/pci;"
        f" cat ../../..{secret}; mkdir ../../..{tmp_path}/made; echo end"
    )
    assert len(lines) == 5
    assert all("ermission denied" in line for line in lines[:4]), lines
    assert sorted(os.listdir(tmp_path)) == ["secret"]


def test_modes_and_owners_count(tmp_path: Path) -> None:
    as_root()
    script = (
        "for f in /dev/vfio/240 /dev/iommu; do { exec 3<>$f; } 2>/dev/null || echo no $f; done;"
        "{ exec 3<>/dev/vfio/vfio; } && echo yes;"
        f"{{ echo 1 > {DEVICE}/reset; }} 2>/dev/null || echo no reset;"
        f"{{ exec 3<>{DEVICE}/config; }} 2>/dev/null || echo no config;"
        f"cat {DEVICE}/vendor; test -w {DEVICE}/reset || echo not writable"
    )
    shell = f"bash -c '{script}'"
    lines = run_dropped(shell.replace("'", '"').replace("$", "\\$"))
    assert lines == [
        "no /dev/vfio/240", "no /dev/iommu", "yes", "no reset", "no config", "0x1234", "not writable",
    ]  # fmt: skip


def test_a_node_is_handed_over_by_its_owner(tmp_path: Path) -> None:
    """As udev and libvirt do it; nobody may do it by himself."""
    as_root()
    opened = "exec 3<>/dev/vfio/240 && echo opened"
    assert run_dropped(opened, "chown nobody /dev/vfio/240") == ["opened"]
    assert run_dropped(opened, "chmod 666 /dev/vfio/240") == ["opened"]
    lines = run_dropped(
        "chmod 666 /dev/vfio/240; chown nobody /dev/vfio/240; stat -c %a:%u /dev/vfio/240"
    )
    assert lines[-1] == "600:0"
    assert all("Operation not permitted" in line for line in lines[:-1])


def test_descriptors_of_another_user(program: Programs) -> None:
    as_root()
    drop = f"setpriv --reuid {NOBODY} --regid {NOBODY} --clear-groups"
    script = (
        "exec 9<>/dev/vfio/vfio; n=$(ls -l /proc/$$/fd | grep /dev/vfio/vfio | sed 's/.* \\([0-9]*\\) ->.*/\\1/');"
        f'{drop} sh -c "readlink /proc/$$/fd/$n; {{ exec 3<>/proc/$$/fd/$n; }} && echo opened"; true'
    )
    done = run_uvfio("run", "--", "bash", "-c", script)
    assert "opened" not in done.stdout
    assert "ermission denied" in done.stderr


def test_the_working_folder_of_another_user() -> None:
    as_root()
    drop = f"setpriv --reuid {NOBODY} --regid {NOBODY} --clear-groups"
    script = (
        "cd /sys/bus/pci; exec 5< devices; "
        f'{drop} sh -c "ls /proc/$$/cwd /proc/$$/root /proc/$$/fd/5 /proc/$$/cwd/devices"; true'
    )
    done = run_uvfio("run", "--", "bash", "-c", script)
    assert done.stdout == ""
    assert done.stderr.count("Permission denied") == 4


def test_the_machine_cannot_be_removed() -> None:
    """By no name, descriptor or working folder; natively root gets EPERM, too."""
    script = (
        "rm -rf /dev/vfio /sys/bus/pci/devices /sys/class/vfio; cd /sys/bus/pci; rm -rf devices;"
        " mkdir made; mv devices other; ln -s x y; touch new; rmdir devices; cd /;"
        " P=$(echo $XDG_RUNTIME_DIR/uvfio-*-*); rm -rf $P; cd $XDG_RUNTIME_DIR; rm -rf uvfio-*-*; cd /;"
        " for p in $P; do chmod 0 $p $p/root; rm -rf $p/root/dev; touch $p/x; mv $p/root $p/r; done;"
        " exec 2>&1; ls /dev/vfio /sys/bus/pci/devices; cat /sys/bus/pci/devices/*/vendor; pwd"
    )
    done = run_uvfio("run", "--", "sh", "-c", script)
    assert done.stdout.split() == [
        "/dev/vfio:", "240", "241", "devices", "vfio",
        "/sys/bus/pci/devices:", "0000:06:0d.0", "0000:06:0d.1", "0000:07:00.0",
        "0x1234", "0x1234", "0x1234", "/",
    ]  # fmt: skip


def test_the_host_is_not_reached_through_the_tree() -> None:
    """The tree's own /dev is not the host's: what is removed there is not removed here."""
    script = (
        "for d in $XDG_RUNTIME_DIR/uvfio-*-*/root/dev; do cd $d; ls; rm -f null; done; ls /dev/null"
    )
    done = run_uvfio("run", "--", "sh", "-c", script)
    assert "null" not in done.stdout.splitlines()[:-1]
    assert done.stdout.splitlines()[-1] == "/dev/null"


def test_a_debugged_program_is_told(tmp_path: Path) -> None:
    """The only tracer that a thread can have is taken: EPERM with the reason, and everything else works."""
    require_program("strace")
    script = "cat /dev/vfio/../../etc/passwd; cd /sys/bus/pci; pwd; cd /usr; pwd"
    done = run_uvfio("run", "--", "strace", "-f", "-o", tmp_path / "out", "sh", "-c", script)
    assert done.stdout.split() == ["/sys/bus/pci", "/usr"]
    assert "cannot be led out of the machine's folders" in done.stderr


def test_images_that_are_executed_while_threads_are_led_out(program: Programs) -> None:
    """The exec waits for the tracers of the other threads, and the next tracer's SEIZE for the exec."""
    assert (
        run_uvfio("run", "--", program("ways_out"), "images", "300").ok().stdout == "PASS images\n"
    )
