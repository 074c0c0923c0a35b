"""DPDK, unmodified: testpmd probes a legacy virtio device, forwards, and stops; its counters are the model's."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support.requirements import require, require_program
from support.uvfio_cli import NOBODY, Uvfio, run_uvfio

if TYPE_CHECKING:
    from collections.abc import Iterator

A, B = "0000:01:00.0", "0000:01:00.1"
MEMORY = 256 << 20
PATIENCE = 60.0  # it touches 256 MiB before it says anything
PROMPT = "testpmd> "
PREFIX = f"uvfio-{os.getpid()}"
SOURCE = Path(__file__).parent / "dpdk" / "frames.c"
DOCUMENT = Path(__file__).resolve().parents[2] / "docs/howto/dpdk.md"


def eal(*ports: str) -> list[str]:
    """Options of the environment layer: no huge pages, two threads, no files left behind."""
    cores = sorted(os.sched_getaffinity(0))
    words = [word for port in ports for word in ("-a", port)]
    words += ["--no-huge", "--no-shconf", "-m", str(MEMORY >> 20), "--no-telemetry"]
    return [*words, "--file-prefix", PREFIX, "--lcores", f"0@{cores[0]},1@{cores[-1]}"]


def words_of(*ports: str, runtime: Path, options: tuple[str, ...]) -> list[str]:
    """The words that start it. It leaves a socket's folder: below ``runtime``, or for root where it always does."""
    program = require_program("dpdk-testpmd")  # package dpdk-dev
    own = ["--total-num-mbufs=4096", "--nb-cores=1", "--forward-mode=io", *options]
    # without stdbuf its lines would be kept back in a pipe
    begin = ["stdbuf", "-oL", "env", f"XDG_RUNTIME_DIR={runtime}", program]
    return [*begin, *eal(*ports), "--", *own]


def start(
    *ports: str,
    devices: list[str],
    runtime: Path,
    options: tuple[str, ...],
    control: str = "",
    user: int | None = None,
    memlock: str = "unlimited",
) -> Uvfio:
    words = ["run", "--memlock", memlock]
    words += ["--control", control] if control else []
    words += [word for device in devices for word in ("-d", device)]
    command = words_of(*ports, runtime=runtime, options=options)
    return Uvfio(*words, "--", *command, user=user)


def model_counters(control: str) -> dict[str, dict[str, int]]:
    """Statistics of each device, by address."""
    found = json.loads(run_uvfio("ctl", control, "status", "--json").ok().stdout)
    return {dev["address"]: dev["statistics"] for dev in found["machine"]["devices"]}


def port_counters(run: Uvfio, port: int) -> tuple[int, int]:
    """RX and TX packets as testpmd shows them."""
    run.send(f"show port stats {port}\n")
    run.expect(f"NIC statistics for port {port} ")
    shown = run.expect("Throughput")
    rx, tx = re.search(r"RX-packets: (\d+)", shown), re.search(r"TX-packets: (\d+)", shown)
    assert rx is not None
    assert tx is not None
    return int(rx[1]), int(tx[1])


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[Path]:
    """A folder that anybody may use, for what DPDK leaves behind. Root's is where it always is."""
    folder = tmp_path / "runtime"
    folder.mkdir()
    for path in (tmp_path, folder):
        path.chmod(0o777)
    yield folder
    if os.getuid() == 0:
        shutil.rmtree(f"/var/run/dpdk/{PREFIX}", ignore_errors=True)


def test_it_forwards_until_it_is_interrupted(runtime: Path) -> None:
    options = ("--tx-first", "--stats-period", "1")
    with start(A, devices=[f"virtio-net@{A}"], runtime=runtime, options=options) as run:
        run.expect("Port 0: 52:54:00:56:01:00", timeout=PATIENCE)
        run.expect("Port 0 Link up", timeout=PATIENCE)
        for _ in range(2):
            run.expect("NIC statistics for port 0")
        run.signal(signal.SIGINT)
        run.expect("Accumulated forward statistics")
        rx = re.search(r"RX-packets: (\d+)", run.expect("TX-total"))
        assert rx is not None
        assert int(rx[1]) > 32, "frames go round"
        run.expect("Bye...", timeout=PATIENCE)
        done = run.finish().ok()
    assert "Ignore mapping IO port bar(0)" in done.stdout + done.stderr
    wrong = [line for line in done.stderr.lower().splitlines() if "failed" in line]
    assert not [line for line in wrong if "mlockall" not in line]  # which needs a privilege


def test_two_ports_on_a_wire_and_their_counters(runtime: Path) -> None:
    control = str(runtime / "control")
    devices = [f"virtio-net@{address},wire=w" for address in (A, B)]
    with start(A, B, devices=devices, runtime=runtime, options=("-i",), control=control) as run:
        run.expect(PROMPT, timeout=PATIENCE)
        run.send("start tx_first\n")
        run.expect(PROMPT, timeout=PATIENCE)
        while min(port_counters(run, port)[0] for port in (0, 1)) < 1000:
            pass
        run.send("stop\nset fwd rxonly\nstart\n")
        run.expect("rxonly packet forwarding - ports=2", timeout=PATIENCE)
        while True:  # until what was under way has arrived
            (rx0, tx0), (rx1, tx1) = (port_counters(run, port) for port in (0, 1))
            if (rx0, rx1) == (tx1, tx0):
                break
        found = model_counters(control)
        for address, rx, tx in ((A, rx0, tx0), (B, rx1, tx1)):
            mine = found[address]
            assert (mine["rx_frames"], mine["tx_frames"]) == (rx, tx)
            assert (mine["rx_bytes"], mine["tx_bytes"]) == (64 * rx, 64 * tx)
            assert mine["rx_dropped"] == mine["tx_dropped"] == mine["stops"] == 0
        run.send("stop\nquit\n")
        run.expect("Bye...", timeout=PATIENCE)
        run.finish().ok()


@pytest.mark.skipif(os.getuid() != 0, reason="an ordinary user runs the other tests already")
def test_an_ordinary_user(runtime: Path) -> None:
    options = ("-i",)
    with start(
        A, devices=[f"virtio-net@{A}"], runtime=runtime, options=options, user=NOBODY
    ) as run:
        run.expect(PROMPT, timeout=PATIENCE)
        run.send("start tx_first\n")
        run.expect(PROMPT, timeout=PATIENCE)
        while port_counters(run, 0)[0] < 100:
            pass
        run.send("stop\nquit\n")
        run.expect("Bye...", timeout=PATIENCE)
        run.finish().ok()


def test_the_first_command_of_the_document(runtime: Path) -> None:
    """As an ordinary user, whose limit of locked memory is small: it finds its port and frames go round."""
    user = NOBODY if os.getuid() == 0 else None
    command = re.search(r"^\$ uvfio (run .*)$", DOCUMENT.read_text(), re.MULTILINE)
    assert command is not None
    words = shlex.split(command[1])
    at = words.index("--") + 1
    words[at] = require_program(words[at])
    begin = ["env", f"XDG_RUNTIME_DIR={runtime}", "stdbuf", "-oL"]
    words = [
        *words[:at],
        *begin,
        words[at],
        "--no-shconf",
        f"--file-prefix={PREFIX}",
        *words[at + 1 :],
    ]
    with Uvfio(*words, user=user) as run:
        run.expect("Port 0 Link up", timeout=PATIENCE)
        for _ in range(2):
            run.expect("NIC statistics for port 0", timeout=PATIENCE)
        run.signal(signal.SIGINT)
        run.expect("Bye...", timeout=PATIENCE)
        run.finish().ok()


def test_without_the_right_to_lock_memory(runtime: Path) -> None:
    """What an ordinary user meets first: the limit is honoured, and DPDK goes on without the device."""
    user = NOBODY if os.getuid() == 0 else None
    device, options = f"virtio-net@{A}", ("-i",)
    with start(
        A, devices=[device], runtime=runtime, options=options, user=user, memlock="1M"
    ) as run:
        run.expect("DMA remapping failed, error 12", "stderr", timeout=PATIENCE)
        run.expect(PROMPT, timeout=PATIENCE)
        run.send("quit\n")
        run.expect("Bye...", timeout=PATIENCE)
        run.finish().ok()


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program of dpdk/frames.c."""
    for tool in ("gcc", "pkg-config"):
        require_program(tool)
    asked = subprocess.run(
        ["pkg-config", "--cflags", "--libs", "libdpdk"], capture_output=True, text=True, check=False
    )
    require(
        asked.returncode == 0, f"libdpdk is not installed (package libdpdk-dev): {asked.stderr}"
    )
    program = tmp_path_factory.mktemp("dpdk") / "frames"
    flags = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Wno-unused-parameter"]
    subprocess.run(["gcc", *flags, SOURCE, "-o", program, *asked.stdout.split()], check=True)
    return program


@pytest.mark.parametrize("options", ["", ",msix=0", ",poll=0", ",queue_entries=128"])
def test_every_byte_of_every_frame(frames: Path, runtime: Path, options: str) -> None:
    device = f"virtio-net@{A}{options}"
    words = ["env", f"XDG_RUNTIME_DIR={runtime}", str(frames), *eal(A), "--", "20000"]
    begin = ["run", "--memlock", "unlimited"]
    done = run_uvfio(*begin, "-d", device, "--", *words, timeout=PATIENCE).ok()
    assert "20000 frames, 0 wrong, 20000 sent, 20000 received\n" in done.stdout
