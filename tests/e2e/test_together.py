"""Several programs in one run: one machine, each with its own files."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING

import pytest

from support.uvfio_cli import run_uvfio

if TYPE_CHECKING:
    from collections.abc import Callable

    from e2e.conftest import Programs


def test_two_drivers_at_once(program: Programs) -> None:
    driver = program("edu_driver")
    script = f"""
    {driver} 240 0000:06:0d.0 & first=$!
    {driver} 241 0000:07:00.0 & second=$!
    wait $first && wait $second"""
    done = run_uvfio("run", "--", "sh", "-c", script).ok()
    assert done.stdout.count("all right") == 2
    assert done.stderr == ""


def test_a_pipeline(program: Programs) -> None:
    script = f"{program('edu_driver')} | grep -c factorial | tr 0-9 a-j; ls /dev/vfio | sort | tr '\\n' ,"
    done = run_uvfio("run", "--", "sh", "-c", script).ok()
    assert done.stdout == "d\n240,241,devices,vfio,"


def test_a_driver_after_the_other_in_a_pipeline(program: Programs) -> None:
    """The second one waits for the first by its output alone."""
    script = f"{program('no_close')} | {{ cat >/dev/null; {program('probe_lock')}; }}"
    done = run_uvfio("run", "--", "sh", "-c", script).ok()
    assert done.stdout == "viable=1 locked=0 iommu=ok\n"


def test_fifty_short_programs() -> None:
    script = "i=0; while [ $i -lt 50 ]; do /bin/true || exit; i=$((i+1)); done; echo $i"
    assert run_uvfio("run", "--", "sh", "-c", script).ok().stdout == "50\n"


TREE = """
import os, subprocess, sys
depth, driver = int(sys.argv[1]), sys.argv[2]
assert sorted(os.listdir("/dev/vfio")) == ["240", "241", "devices", "vfio"]
if depth:
    groups = [["240", "0000:06:0d.0"], ["241", "0000:07:00.0"]]
    children = [subprocess.Popen([sys.executable, "-c", sys.argv[3], str(depth - 1), driver, sys.argv[3]])]
    if depth == 2:
        children += [subprocess.Popen([driver, *group], stdout=subprocess.DEVNULL) for group in groups]
    assert [child.wait() for child in children] == [0] * len(children)
print(depth, flush=True)
"""


def test_a_tree_of_python_processes(program: Programs) -> None:
    words = [sys.executable, "-c", TREE, "3", program("edu_driver"), TREE]
    done = run_uvfio("run", "--", *words).ok()
    assert done.stdout.split() == ["0", "1", "2", "3"]


MULTIPROCESSING = """
import multiprocessing, os, sys
def look(number):
    with open(f"/sys/bus/pci/devices/0000:06:0d.{number % 2}/vendor") as file:
        return number, file.read().strip(), os.path.exists("/dev/vfio/240")
if __name__ == "__main__":
    with multiprocessing.get_context(sys.argv[1]).Pool(4) as pool:
        assert pool.map(look, range(100)) == [(n, "0x1234", True) for n in range(100)]
    print("done")
"""


@pytest.mark.parametrize("way", ["fork", "spawn", "forkserver"])
def test_multiprocessing(way: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    script = tmp_path_factory.mktemp("script") / "pool.py"
    script.write_text(MULTIPROCESSING)
    done = run_uvfio("run", "--", sys.executable, script, way).ok()
    assert done.stdout == "done\n"


THREADS = """
import os, sys, threading
errors = []
def work(number):
    for _ in range(60):
        try:
            group = os.open(f"/dev/vfio/{240 + number % 2}", os.O_RDWR)
            os.stat(f"/proc/self/fd/{group}")
            os.listdir("/sys/bus/pci/devices")
            os.close(group)
            os.close(os.open("/etc/passwd", os.O_RDONLY))
        except OSError as error:
            errors.append(error)
threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert not errors, errors
assert len(os.listdir("/proc/self/fd")) == 4
"""


def test_threads_that_open_and_close_at_once(python: Callable[..., list[str]]) -> None:
    run_uvfio("run", "--", *python(THREADS)).ok()


def test_two_runs_have_two_machines(program: Programs) -> None:
    """Each run has its own devices: what one holds is free in the other."""
    from support.uvfio_cli import Uvfio

    with (
        Uvfio("run", "--", program("hold")) as first,
        Uvfio("run", "--", program("hold")) as second,
    ):
        first.expect("ready\n")
        second.expect("ready\n")
        assert first.finish().ok().stdout.endswith("closed\n")
        assert second.finish().ok().stdout.endswith("closed\n")


def test_a_short_run_is_short() -> None:
    """No bound on a shared computer is sharp; this one finds a wait that ends by time-out."""
    times = []
    for _ in range(5):
        begin = time.monotonic()
        run_uvfio("run", "--", "true", env={"PYTHONDONTWRITEBYTECODE": None}).ok()
        times.append(time.monotonic() - begin)
    assert min(times) < 2, times


def test_the_environment_reaches_the_program() -> None:
    done = run_uvfio("run", "--", "sh", "-c", 'echo "$UVFIO_RUN $ODD"', env={"ODD": "a\nb"}).ok()
    assert done.stdout == "1 a\nb\n"


def test_the_working_folder_and_umask_reach_the_program(tmp_path: os.PathLike[str]) -> None:
    script = "pwd; umask; nice"
    words = ["sh", "-c", 'umask 027; exec "$@"', "sh"]
    done = run_uvfio("run", "--", "sh", "-c", script, cwd=tmp_path, before=words).ok()
    assert done.stdout == f"{os.path.realpath(tmp_path)}\n0027\n0\n"


CLOSED_MEANWHILE = """
import errno, fcntl, os, threading
fds, seen = [os.open("/dev/vfio/240", os.O_RDWR)], set()
done = threading.Event()
def ask():
    while not done.is_set():
        try: fcntl.ioctl(fds[0], 0x80083B64, bytearray(8))
        except OSError as error: seen.add(errno.errorcode[error.errno])
askers = [threading.Thread(target=ask) for _ in range(3)]
for asker in askers: asker.start()
for _ in range(1500):
    os.close(fds[0])
    fds[0] = os.open("/dev/vfio/240", os.O_RDWR)
done.set()
for asker in askers: asker.join()
print(seen <= {"EBADF"}, seen)
"""


def test_a_group_that_another_thread_closes_during_a_call(
    python: Callable[..., list[str]],
) -> None:
    """The call comes before the close or after it, never in between."""
    assert run_uvfio("run", "--", *python(CLOSED_MEANWHILE)).ok().stdout.startswith("True")
