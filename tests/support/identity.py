"""Programs that use numbers again at once: of tasks, and of descriptors."""

from __future__ import annotations

import shutil
import subprocess
import sys

from support.requirements import require

__all__ = ["RACES", "run_in_own_numbers"]

RACES = ("dup2", "taken", "exec")


def run_in_own_numbers(*words: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    """``uvfio WORDS`` as the first process of a PID namespace, where a program may choose numbers of tasks."""
    unshare = shutil.which("unshare")
    require(unshare is not None, "the program unshare is not installed")
    prefix = [str(unshare), "--pid", "--fork", "--mount-proc", "--kill-child"]
    for more in ([], ["--user", "--map-root-user"]):
        tried = subprocess.run([*prefix, *more, "true"], capture_output=True, check=False)
        if tried.returncode == 0:
            command = [*prefix, *more, sys.executable, "-m", "uvfio", *words]
            return subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=timeout
            )
    require(False, f"no PID namespace can be made: {tried.stderr.decode().strip()}")
    raise AssertionError
