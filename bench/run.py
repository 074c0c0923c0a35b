"""What the runner costs, as ratios, measured side by side on this machine.

::

    python bench/run.py [--uvfio PATH] [--rounds N] [--calls N] [--json]

In every round the candidates take turns, so that a machine that becomes slower for a while is slower for
all, and the best turn of each counts. Ratios are made within a round; their median over the rounds is
what to read.
Absolute times are medians too, and worth less: look at the steal time that is printed with them.

    trapped pread / C floor    the runner's own share of a register read; the floor is bench/floor.c
    mainline / 2011            the same call by the mainline ABI and by that of 2011: bench/abi.c. "device info" is
                               GET_INFO, which reads and writes a struct, and GET_FLAGS, which only writes
    millionth / first          one of the last of a million mappings and one of the first thousand
    umockdev ioctl / pread     the usual way to fake a device, in terms of a trapped read
    unrelated calls            what a program pays that the supervisor has nothing to do with
    gcc -c                     a whole program that opens many files
    uvfio run -- true          start-up, all included
    supervisor peak RSS        VmHWM of the child of `uvfio run` that answers
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).resolve().parent
ROOT: Final = HERE.parent
GROUP, ADDRESS = "240", "0000:06:0d.0"
ABIS: Final = ("2011", "mainline")
MAPPINGS: Final = 1_000_000
TURNS: Final = 3  # how often candidates take turns within a round; the best turn counts
CALLS_OF_PROGRAMS: Final = 3  # gcc and true are run so often in a turn
SMALL_C: Final = """\
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
int main(int argc, char **argv) { return printf("%s\\n", argv[argc - 1]) < 0; }
"""

Timings = dict[str, float]  # median ns per call, by name


class Unavailable(Exception):
    """A candidate that cannot be run here, and why."""


@dataclass
class Bench:
    """The built programs, and how to run them."""

    uvfio: Path
    calls: int
    work: Path
    mappings: int = 0
    skipped: dict[str, str] = field(default_factory=dict)

    def build(self) -> None:
        """Compile everything into the working directory."""
        for name in ("floor", "reader", "unrelated", "umockdev_ioctl"):
            command = ["gcc", "-std=gnu11", "-O2", "-I", str(ROOT / "include")]
            command += ["-o", str(self.work / name), str(HERE / f"{name}.c")]
            subprocess.run(command, check=True)
        for abi in ABIS:
            command = ["gcc", "-std=gnu11", "-O2", "-I", str(ROOT / "include")]
            command += [f'-DSESSION="session_{abi}.h"', "-o", str(self.work / f"abi_{abi}")]
            subprocess.run([*command, str(HERE / "abi.c")], check=True)
        (self.work / "small.c").write_text(SMALL_C)
        limit = f"[iommu]\ndma_entry_limit = {2 * MAPPINGS}\n"
        device = f'[[device]]\naddress = "{ADDRESS}"\nmodel = "edu"\ngroup = {GROUP}\n'
        (self.work / "large.toml").write_text(limit + device)

    # -- candidates ------------------------------------------------------------------------------

    def floor_pread(self) -> float:
        return self._timings([self._at("floor"), self._at("reader"), str(self.calls)])["pread"]

    def trapped_pread(self) -> float:
        command = [self._at("reader"), str(self.calls), GROUP, ADDRESS]
        return self._timings(self._under(command))["pread"]

    def calls_of(self, abi: str) -> Timings:
        """Calls of one interface, by name."""
        command = [self._at(f"abi_{abi}"), "calls", GROUP, ADDRESS, str(self.calls)]
        return self._timings(self._under(command, "--abi", abi))

    def mappings_of(self, abi: str) -> Timings:
        """Many mappings by one interface: of the last 20000 and, as "..., first", of the first thousand."""
        command = [self._at(f"abi_{abi}"), "mappings", GROUP, ADDRESS, str(self.mappings)]
        command = self._under(command, "--abi", abi, "-m", self._at("large.toml"))
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=900)
        found: Timings = {}
        for line in done.stdout.splitlines():
            name, last, first = line.rsplit(maxsplit=2)
            found[name] = float(last)
            if float(first):
                found[f"{name}, first"] = float(first)
        return found

    def umockdev_ioctl(self) -> float:
        if shutil.which("umockdev-run") is None:
            raise Unavailable("umockdev-run is not installed")
        device = str(HERE / "umockdev_ioctl")
        command = ["umockdev-run", "-d", f"{device}.umockdev"]
        command += ["-i", f"/dev/bus/usb/001/002={device}.ioctl", "--"]
        command += [self._at("umockdev_ioctl"), str(self.calls // 10)]
        return self._timings(command)["ioctl"]

    def unrelated(self, *, supervised: bool) -> Timings:
        command = [self._at("unrelated"), self._at("small.c"), str(self.calls)]
        return self._timings(self._under(command) if supervised else command)

    def gcc(self, *, supervised: bool) -> float:
        """Milliseconds of one ``gcc -c``, timed inside, so without the start of the runner."""
        script = (
            "import subprocess, sys, time; start = time.perf_counter()\n"
            f"for _ in range({CALLS_OF_PROGRAMS}): subprocess.run(sys.argv[1:], check=True)\n"
            f"print('gcc', (time.perf_counter() - start) * 1e9 / {CALLS_OF_PROGRAMS}, 0)\n"
        )
        command = [sys.executable, "-I", "-c", script, "gcc", "-c", self._at("small.c"), "-o"]
        command.append(self._at("small.o"))
        return self._timings(self._under(command) if supervised else command)["gcc"] / 1e6

    def start(self) -> float:
        """Milliseconds of ``uvfio run -- true``, the best of a few."""
        times = []
        for _ in range(CALLS_OF_PROGRAMS):
            begun = time.perf_counter()
            subprocess.run(self._under(["true"]), check=True)
            times.append(time.perf_counter() - begun)
        return min(times) * 1000

    def peak_rss(self) -> float:
        """MiB that the supervisor needed at most, serving ``calls`` reads."""
        command = self._under([self._at("reader"), str(self.calls), GROUP, ADDRESS, "hold"])
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdin
            assert process.stdout
            process.stdout.readline()  # it has read, and waits
            front = Path(f"/proc/{process.pid}/task/{process.pid}")
            status = Path(f"/proc/{(front / 'children').read_text().split()[0]}/status").read_text()
            process.stdin.close()
        kilobytes = next(line.split()[1] for line in status.splitlines() if "VmHWM" in line)
        return int(kilobytes) / 1024

    # -- helpers ---------------------------------------------------------------------------------

    def _at(self, name: str) -> str:
        return str(self.work / name)

    def _under(self, command: list[str], *options: str) -> list[str]:
        return [str(self.uvfio), "run", *options, "--", *command]

    def _timings(self, command: list[str]) -> Timings:
        """What a program of this directory printed: lines of name, median, minimum."""
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
        if done.returncode != 0:
            raise Unavailable(f"{' '.join(command)}: status {done.returncode}: {done.stderr}")
        lines = [line.rsplit(maxsplit=2) for line in done.stdout.splitlines()]
        return {name: float(median) for name, median, _ in lines}

    def round(self) -> Timings:
        """All candidates, some turns: name -> value; what cannot be run is left out."""
        found: Timings = {}
        candidates = {
            "floor pread ns": self.floor_pread,
            "trapped pread ns": self.trapped_pread,
            "umockdev ioctl ns": self.umockdev_ioctl,
            "gcc -c ms": lambda: self.gcc(supervised=False),
            "gcc -c supervised ms": lambda: self.gcc(supervised=True),
            "uvfio run -- true ms": self.start,
            "supervisor peak RSS MiB": self.peak_rss,
        }
        for _ in range(TURNS):
            for name, candidate in candidates.items():
                if name in self.skipped:
                    continue
                try:
                    found[name] = min(candidate(), found.get(name, inf))
                except Unavailable as reason:
                    self.skipped[name] = str(reason)
            for abi in ABIS:
                for name, value in self.calls_of(abi).items():
                    key = f"{name}, {abi} ns"
                    found[key] = min(value, found.get(key, inf))
        if self.mappings:
            for abi in ABIS:
                of = self.mappings_of(abi)
                found |= {f"mappings: {name}, {abi} ns": value for name, value in of.items()}
        plain = self.unrelated(supervised=False)
        supervised = self.unrelated(supervised=True)
        found |= {f"{name} ns": value for name, value in plain.items()}
        found |= {f"{name} supervised ns": value for name, value in supervised.items()}
        return found | ratios(found, list(plain))


def ratios(found: Timings, calls: list[str]) -> Timings:
    """What is derived from the values of one round."""
    pairs = (
        {
            "trapped pread / C floor": ("trapped pread ns", "floor pread ns"),
            "umockdev ioctl / trapped pread": ("umockdev ioctl ns", "trapped pread ns"),
            "gcc -c, with / without": ("gcc -c supervised ms", "gcc -c ms"),
        }
        | {
            f"{name}, mainline / 2011": (f"{name}, mainline ns", f"{name}, 2011 ns")
            for name in ("pread", "device info", "region info", "map+unmap")
        }
        | {
            f"{name}, {abi}, millionth / first": (
                f"mappings: {name}, {abi} ns",
                f"mappings: {name}, first, {abi} ns",
            )
            for name in ("map", "unmap")
            for abi in ABIS
        }
        | {f"{name}, with / without": (f"{name} supervised ns", f"{name} ns") for name in calls}
    )
    result = {
        name: found[above] / found[below]
        for name, (above, below) in pairs.items()
        if above in found and below in found
    }
    extra = found["open+close supervised ns"] - found["open+close ns"]
    return result | {"open+close, extra us": extra / 1000}


# -- facts of the machine ----------------------------------------------------------------------------


def ticks() -> tuple[int, int]:
    """Steal time and all time of all CPUs, in clock ticks."""
    with open("/proc/stat") as stat:
        numbers = [int(word) for word in stat.readline().split()[1:9]]
    return numbers[7], sum(numbers)


def facts(uvfio: Path) -> dict[str, str]:
    model = "unknown"
    with open("/proc/cpuinfo") as info:
        for line in info:
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    version = subprocess.run([uvfio, "--version"], capture_output=True, text=True, check=False)
    return {
        "cpu": f"{os.cpu_count()} x {model}",
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "uvfio": version.stdout.strip(),
        "load": " ".join(f"{number:.2f}" for number in os.getloadavg()),
    }


def table(rounds: list[Timings]) -> dict[str, tuple[float, float, float]]:
    """Name -> median, least, greatest over the rounds."""
    result = {}
    for name in rounds[0]:
        values = [found[name] for found in rounds if name in found]
        result[name] = (statistics.median(values), min(values), max(values))
    return result


def print_table(rows: dict[str, tuple[float, float, float]], title: str) -> None:
    if rows:
        print(f"\n{title:<34} {'median':>10} {'least':>10} {'greatest':>10}")
    for name, values in rows.items():
        print(f"{name:<34} " + " ".join(f"{value:>10.2f}" for value in values))


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what the runner costs.")
    parser.add_argument("--uvfio", type=Path, default=ROOT / ".venv" / "bin" / "uvfio")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="at least 5 for ratios")
    parser.add_argument("--calls", type=int, default=20000, metavar="N", help="calls of a round")
    parser.add_argument(
        "--mappings", action="store_true", help="also a million mappings (minutes in each round)"
    )
    parser.add_argument("--json", action="store_true", help="all values of all rounds")
    options = parser.parse_args()
    uvfio = options.uvfio.absolute()
    with tempfile.TemporaryDirectory(prefix="uvfio-bench-") as work:
        bench = Bench(uvfio, options.calls, Path(work), MAPPINGS if options.mappings else 0)
        try:
            bench.build()
            machine = facts(uvfio)
            stolen, passed = ticks()
            rounds = []
            for number in range(options.rounds):
                print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
                rounds.append(bench.round())
        except (OSError, subprocess.CalledProcessError, Unavailable) as error:
            sys.exit(f"bench: {error}")
    stolen, passed = ticks()[0] - stolen, ticks()[1] - passed
    machine["steal"] = f"{100 * stolen / max(passed, 1):.1f} % of all CPU time during the run"
    rows = table(rounds)
    if options.json:
        medians = {name: values[0] for name, values in rows.items()}
        answer = {"machine": machine, "medians": medians, "rounds": rounds}
        print(json.dumps(answer | {"skipped": bench.skipped}, indent=2))
        return
    for name, fact in machine.items():
        print(f"{name:<8} {fact}")
    units = ("ns", "ms", "MiB")
    derived = {name: row for name, row in rows.items() if not name.endswith(units)}
    print_table(derived, "ratios")
    print_table({name: row for name, row in rows.items() if name not in derived}, "values")
    for name, reason in bench.skipped.items():
        print(f"\nnot measured: {name}: {reason.strip()}")


if __name__ == "__main__":
    main()
