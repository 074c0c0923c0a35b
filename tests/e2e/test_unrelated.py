"""Programs that have nothing to do with VFIO do what they always do; those that look at the machine see it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.requirements import require_program
from support.uvfio_cli import run_uvfio


def alike(*words: str, cwd: Path | None = None, code: int = 0) -> str:
    """Run the program with and without uvfio: same status, same output."""
    natively = subprocess.run(words, cwd=cwd, capture_output=True, text=True, check=False)
    done = run_uvfio("run", "--", *words, cwd=cwd)
    assert natively.returncode == code, natively.stderr
    assert (done.status, done.stdout, done.stderr) == (code, natively.stdout, natively.stderr)
    return done.stdout


def sh(script: str, cwd: Path | None = None) -> str:
    return run_uvfio("run", "--", "sh", "-euc", script, cwd=cwd).ok().stdout


# -- the host ------------------------------------------------------------------------------------------


def test_a_compiler(tmp_path: Path) -> None:
    gcc = require_program("gcc")
    (tmp_path / "a.c").write_text(
        '#include <stdio.h>\nint main(void) { return puts("built") < 0; }\n'
    )
    run_uvfio("run", "--", gcc, "-c", "a.c", cwd=tmp_path).ok()
    first = (tmp_path / "a.o").read_bytes()
    subprocess.run([gcc, "-c", "a.c"], cwd=tmp_path, check=True)
    assert (tmp_path / "a.o").read_bytes() == first
    assert sh(f"{gcc} -o program a.o && ./program", tmp_path) == "built\n"


def test_git(tmp_path: Path) -> None:
    require_program("git")
    script = """
    git init -q . && git config user.name me && git config user.email me@example.com
    echo text >file && git add file && git commit -qm first && echo more >>file && mkdir -p a/b && touch a/b/c"""
    subprocess.run(["sh", "-euc", script], cwd=tmp_path, check=True, capture_output=True)
    assert " M file" in alike("git", "status", "--porcelain", cwd=tmp_path)
    alike("git", "log", "--stat", "-p", cwd=tmp_path)
    sh("git checkout -q -b other && git commit -qam second && git gc -q", tmp_path)
    alike("git", "status", "--porcelain", cwd=tmp_path)


def test_python_imports() -> None:
    code = "import asyncio, ctypes, email, http.client, json, sqlite3, ssl, unittest, xml.dom; print(len(json.__all__))"
    alike(sys.executable, "-c", code)


def test_tar(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for number in range(30):
        (source / f"file {number}").write_text(f"{number}\n" * number)
    (source / "link").symlink_to("file 3")
    sh(
        "tar -cf a.tar source && mkdir out && tar -xf a.tar -C out && diff -r source out/source",
        tmp_path,
    )
    assert os.readlink(tmp_path / "out" / "source" / "link") == "file 3"


def test_find() -> None:
    count = int(alike("sh", "-c", "find /usr/include /etc -type f 2>/dev/null | wc -l"))
    assert count > 10


def test_what_does_not_exist() -> None:
    alike("sh", "-c", "cat /no/such/file; ls /sys/no-such; test -e /dev/no-such", code=1)


def test_the_rest_of_dev_and_sys_is_the_host_s() -> None:
    alike(
        "sh",
        "-c",
        "ls /sys /sys/class/net; cat /proc/version; stat -c '%F %t %T' /dev/null /dev/zero",
    )
    alike("sh", "-c", "cd /sys/class && pwd && cd .. && pwd && ls -d kernel")
    alike(
        sys.executable,
        "-c",
        "import os; print(os.path.realpath('/proc/self/cwd/../../dev/./null'))",
    )


def test_files_of_the_program_s_own(tmp_path: Path) -> None:
    """Calls on descriptors that have nothing to do with the reserved ones."""
    code = """
import fcntl, mmap, os, socket, tempfile
with tempfile.TemporaryFile() as file:
    file.write(bytes(range(256)) * 64); file.flush()
    high = fcntl.fcntl(file, fcntl.F_DUPFD, 900)
    assert os.pread(high, 4, 256) == bytes(range(4)) and os.lseek(high, 5, 0) == 5
    assert os.read(high, 2) == bytes([5, 6]) and os.fstat(high).st_size == 1 << 14
    assert os.pwrite(high, b"x", 1 << 41) == 1 and os.pread(high, 2, 1 << 41) == b"x"
    os.ftruncate(high, 1 << 14)
    assert mmap.mmap(high, 4096, offset=4096)[3] == 3
    other = os.dup(high); os.dup2(high, 1000); os.close(1000); os.close(other); os.close(high)
a, b = socket.socketpair()
socket.send_fds(a, [b"x"], [0, 1, 2])
_, fds, _, _ = socket.recv_fds(b, 1, 3)
assert len(fds) == 3
os.closerange(3, 5000)
print("done")
"""
    alike(sys.executable, "-c", code, cwd=tmp_path)


# -- the machine -----------------------------------------------------------------------------------------


def test_ls_of_the_machine() -> None:
    done = run_uvfio("run", "--", "ls", "-la", "/dev", "/dev/vfio", "/sys/bus/pci/devices").ok()
    assert done.stderr == ""
    for name in ("240", "241", "0000:06:0d.0", "0000:06:0d.1", "0000:07:00.0"):
        assert name in done.stdout
    listing = sh("ls -l /dev/vfio")
    kinds = {line.split()[-1]: line[0] for line in listing.splitlines()[1:]}
    assert kinds == {"240": "c", "241": "c", "devices": "d", "vfio": "c"}


def test_stat_of_a_group() -> None:
    assert sh("stat -c %F /dev/vfio/240") == "character special file\n"
    assert sh("stat -L -c %F /dev/vfio/240 /dev/vfio") == "character special file\ndirectory\n"
    assert sh("stat -f -c %T /sys/bus/pci/devices") == "sysfs\n"


@pytest.mark.parametrize(
    ("test", "holds"),
    [
        ("-e /dev/vfio/240", True),
        ("-c /dev/vfio/240", True),
        ("-f /dev/vfio/240", False),
        ("-b /dev/vfio/240", False),
        ("-d /dev/vfio", True),
        ("-e /dev/vfio/999", False),
        ("-r /dev/vfio/240", True),
        ("-w /dev/vfio/240", True),
        ("-x /dev/vfio/240", False),
        ("-L /sys/bus/pci/devices/0000:06:0d.0/driver", True),
        ("-d /sys/bus/pci/devices/0000:06:0d.0/driver/", True),
        ("-r /sys/bus/pci/devices/0000:06:0d.0/vendor", True),
    ],
)
def test_test(test: str, holds: bool) -> None:
    done = run_uvfio("run", "--", "test", *test.split())
    assert done.status == (0 if holds else 1)


def test_readlink_and_realpath() -> None:
    device = sh("readlink -f /sys/bus/pci/devices/0000:06:0d.0").strip()
    assert device.endswith("/0000:06:0d.0")
    assert sh(f"cat {device}/vendor") == "0x1234\n"
    driver = sh("realpath /sys/bus/pci/devices/0000:06:0d.0/driver").strip()
    assert driver == "/sys/bus/pci/drivers/vfio-pci"
    assert (
        sh("readlink -f /dev/vfio/../vfio/240; realpath /dev/./vfio//241")
        == "/dev/vfio/240\n/dev/vfio/241\n"
    )
    code = "import os; print(os.path.realpath('/sys/bus/pci/drivers/vfio-pci/0000:06:0d.0/driver'))"
    done = run_uvfio("run", "--", sys.executable, "-c", code).ok()
    assert done.stdout == "/sys/bus/pci/drivers/vfio-pci\n"


def test_sysfs_files() -> None:
    device = "/sys/bus/pci/devices/0000:06:0d.0"
    assert sh(f"cd {device} && cat vendor device iommu_group") == "0x1234\n0x11e8\n240\n"
    assert sh(f"grep -H . {device}/vendor {device}/class").count("0x") == 2
    assert sh(f"od -An -tx1 -N4 {device}/config").split() == ["34", "12", "e8", "11"]
    assert (
        sh(f"tail -c +1 {device}/vendor; head -c 3 {device}/device; wc -c <{device}/vendor")
        == "0x1234\n0x17\n"
    )
    refused = run_uvfio("run", "--", "sh", "-c", f"echo x >{device}/new")
    assert refused.status != 0
    assert "Permission denied" in refused.stderr or "Read-only" in refused.stderr


def test_globs() -> None:
    assert sh("echo /dev/vfio/24*") == "/dev/vfio/240 /dev/vfio/241\n"
    assert sh("cat /sys/bus/pci/devices/*/vendor").split() == ["0x1234"] * 3
    assert sh("cd /sys/bus/pci/devices && echo *.1") == "0000:06:0d.1\n"


def test_walking_through_the_machine() -> None:
    found = sh(
        "find /sys/bus/pci/devices/ /dev/vfio -print; find /sys/bus/pci -name iommu_group -follow | wc -l"
    )
    assert "/dev/vfio/240" in found
    code = "import os; print(sum(len(files) for _, _, files in os.walk('/sys/bus/pci', followlinks=False)) > 20)"
    assert run_uvfio("run", "--", sys.executable, "-c", code).ok().stdout == "True\n"


def test_changing_into_the_machine() -> None:
    assert sh("cd /dev/vfio && ls && cd .. && pwd") == "240\n241\ndevices\nvfio\n/dev\n"
    assert sh("cd /dev/vfio && pwd && /bin/pwd") == "/dev/vfio\n/dev/vfio\n"
    assert (
        sh("cd /sys/bus/pci/devices/0000:06:0d.0 && cat vendor ../0000:07:00.0/iommu_group")
        == "0x1234\n241\n"
    )
    assert (
        sh("cd /dev/vfio && test -c ./240 && cd ../../tmp && /bin/pwd && ls -d /dev/vfio")
        == "/tmp\n/dev/vfio\n"
    )
    code = "import os; os.chdir('/sys/kernel/iommu_groups'); print(os.getcwd(), sorted(os.listdir('.')))"
    done = run_uvfio("run", "--", sys.executable, "-c", code).ok()
    assert done.stdout == "/sys/kernel/iommu_groups ['240', '241']\n"


def test_a_program_started_inside_the_machine_s_folders() -> None:
    assert (
        sh("cd /dev/vfio && sh -c 'cd ..; pwd' && sh -c 'ls; exec /bin/pwd'")
        == "/dev\n240\n241\ndevices\nvfio\n/dev/vfio\n"
    )


def test_names_that_only_begin_like_ours() -> None:
    alike(
        "sh",
        "-c",
        "test -e /dev/vfio-x; ls /dev/vfiox; ls /sys/bus/pcix /sys/bus/pci-x; true",
        code=0,
    )


@pytest.mark.parametrize(
    "path", ["/dev/vfio/", "/dev/vfio/.", "//dev/vfio", "/dev//vfio//", "/dev/../dev/vfio"]
)
def test_spellings(path: str) -> None:
    assert sh(f"ls {path}") == "240\n241\ndevices\nvfio\n"


def test_a_file_is_no_folder() -> None:
    done = run_uvfio(
        "run", "--", "ls", "/dev/vfio/240/", "/sys/bus/pci/devices/0000:06:0d.0/vendor/x"
    )
    assert done.status == 2
    assert done.stderr.count("Not a directory") == 2


def test_the_host_seen_from_the_machine_s_folders(tmp_path: Path) -> None:
    """Relative paths that lead out are the host's, whatever the call."""
    (tmp_path / "file").write_text("text")
    (tmp_path / "link").symlink_to("file")
    up = "../.." + str(tmp_path)
    code = f"""
import errno, os
os.chdir("/dev/vfio")
assert open("{up}/file").read() == "text" and os.readlink("{up}/link") == "file"
assert os.stat("{up}/link").st_size == 4 and os.lstat("{up}/link").st_size == 4
assert os.path.islink("{up}/link") and os.access("{up}/file", os.R_OK) and os.listdir("{up}")
assert os.listxattr("{up}/file") == os.listxattr("{tmp_path}/file")
try: os.getxattr("{up}/file", "user.none")
except OSError as error: assert error.errno == errno.ENODATA, error
assert open("../../proc/self/cmdline").read() == open("/proc/self/cmdline").read()
assert os.stat("../../proc/self/fd/../..").st_ino
os.chdir("..")
assert os.getcwd() == "/dev" and os.path.exists("null") and os.stat("vfio/240")
os.chdir("./vfio/"); os.chdir("../")
assert os.getcwd() == "/dev", os.getcwd()
os.chdir("/")
assert os.getcwd() == "/" and os.path.exists("dev/vfio/240")
"""
    run_uvfio("run", "--", sys.executable, "-c", code).ok()
