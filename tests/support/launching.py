"""Start programs under a supervisor that lets every call go on.

The supervisor is a process of its own (``driver.py``), as a user would start it; its stdout and stderr are
shared by the program and the guard, so the end of both pipes proves that all of them are gone.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

DRIVER = """
import fcntl, os, sys
from uvfio.doors.run.filter import build
from uvfio.doors.run.launch import front, launch
from uvfio.uapi import seccomp as s

def serve(launched, limit=None):
    \"\"\"Let calls go on, until the end or for `limit` of them.\"\"\"
    served = 0
    while served != limit:
        try:
            raw = fcntl.ioctl(launched.listener, s.SECCOMP_IOCTL_NOTIF_RECV, bytes(80))
        except (FileNotFoundError, InterruptedError):
            if launched.ended():
                break
            continue
        served += 1
        answer = s.seccomp_notif_resp.pack(int.from_bytes(raw[:8], "little"), 0, 0, 1)
        try:
            fcntl.ioctl(launched.listener, s.SECCOMP_IOCTL_NOTIF_SEND, answer)
        except FileNotFoundError:
            pass  # killed while it waited
    return served

def start(argv=None, **options):
    allowed = build.build_filter(range(768, 1024))
    return launch.launch(argv or sys.argv[1:], os.environ, allowed, front.split(), **options)

def main():
    try:
        launched = start()
    except launch.LaunchError as error:
        sys.stderr.write(f"uvfio: {error} ({error.hint})\\n")
        sys.exit(125)
    serve(launched)
    launch.finish(launched.wait())

if __name__ == "__main__":
    main()
"""


@dataclass
class Run:
    """How to start the supervisor."""

    driver: Path  # of a directory that lasts
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def command(self, *argv: str) -> list[str]:
        return [sys.executable, str(self.driver), *argv]

    def __call__(self, *argv: str, **options: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*argv), capture_output=True, text=True, timeout=60, check=False, **options
        )

    def script(self, body: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Another supervisor, written with the driver's parts."""
        source = (
            f"import sys; sys.path.insert(0, {str(self.driver.parent)!r})\nfrom driver import *\n"
        )
        return subprocess.run(
            [sys.executable, "-c", source + textwrap.dedent(body)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            **options,
        )

    def start(self, *argv: str, **options: Any) -> subprocess.Popen[str]:
        """Start, with pipes for output; to be read line by line."""
        process = subprocess.Popen(
            self.command(*argv),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )
        self.started.append(process)
        return process

    def end(self) -> None:
        """Kill what is left."""
        for process in self.started:
            process.kill()
            process.communicate()


def write_driver(directory: Path) -> Path:
    path = directory / "driver.py"
    path.write_text(DRIVER)
    return path


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().rstrip("\n")


def python(body: str) -> list[str]:
    return [sys.executable, "-c", textwrap.dedent(body)]
