"""Compile the C programs of the end-to-end tests, each once.

``compile("threads")`` gives the path of the built program. Builds are kept in build/programs, under a name that
contains a hash of everything the build depends on, so an edited source is built anew and parallel test processes share
what is there. Where that folder cannot be written to, they go to the temporary folder.

Called as a script it builds the programs named, or all, and prints their paths::

    python tests/e2e/build.py [--static] [--m32] [NAME...]
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import stat
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Final

__all__ = ["compile", "missing", "programs"]

ROOT: Final = Path(__file__).resolve().parents[2]
PROGRAMS: Final = ROOT / "tests" / "e2e" / "programs"
INCLUDE: Final = ROOT / "include"
CC: Final = os.environ.get("CC", "gcc")
FLAGS: Final = ("-std=gnu11", "-O2", "-g", "-Wall", "-Wextra", "-Werror", "-pthread")


class BuildError(Exception):
    """The compiler's own words."""


def programs() -> list[str]:
    """Names of all test programs."""
    return sorted(source.stem for source in PROGRAMS.glob("*.c"))


def compile(name: str | Path, *, static: bool = False, m32: bool = False) -> Path:  # noqa: A001
    """The built program ``name`` of tests/e2e/programs, or of any C file given as a path.

    ``static`` and ``m32`` make the variants that an interposed library would miss. BuildError if it does
    not compile; see ``missing`` for what a machine may lack.
    """
    source = name if isinstance(name, Path) else PROGRAMS / f"{name}.c"
    variant = (*(["-static"] if static else []), *(["-m32"] if m32 else []))
    digest = hashlib.sha256(f"{CC} {FLAGS} {variant} {compiler()}".encode())
    for part in (source, *sorted(source.parent.glob("*.h")), *sorted(INCLUDE.rglob("*.h"))):
        digest.update(f"\0{part.name}\0".encode() + part.read_bytes())
    program = cache_directory() / f"{source.stem}-{digest.hexdigest()[:16]}"
    if not program.exists():
        # under another name first: a parallel process must not start half a program
        unfinished = program.with_suffix(f".{os.getpid()}")
        build(source, unfinished, *variant)
        unfinished.replace(program)
    return program


def build(source: Path, program: Path, *flags: str) -> None:
    """One run of the compiler."""
    done = subprocess.run(
        [CC, *FLAGS, *flags, "-I", INCLUDE, "-o", program, source],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise BuildError(done.stderr)


@cache
def missing(*, static: bool = False, m32: bool = False) -> str:
    """Why such programs cannot be built or run here; empty if they can. Made for ``pytest.skip``."""
    if shutil.which(CC) is None:
        return f"no C compiler ({CC})"
    variant = (*(["-static"] if static else []), *(["-m32"] if m32 else []))
    program = cache_directory() / f"probe-{os.getpid()}"
    source = program.with_suffix(".c")
    source.write_text('#include <stdio.h>\nint main(void) { return puts("") < 0; }\n')
    try:
        build(source, program, *variant)
        subprocess.run([program], check=True, capture_output=True)
    except BuildError:
        return f"no C library for {'32-bit' if m32 else ''}{' static' if static else ''} programs"
    except (OSError, subprocess.CalledProcessError) as error:
        return f"such programs do not run here: {error}"
    finally:
        source.unlink()
        program.unlink(missing_ok=True)
    return ""


@cache
def compiler() -> str:
    """The compiler's version."""
    return subprocess.run([CC, "--version"], check=True, capture_output=True, text=True).stdout


@cache
def cache_directory() -> Path:
    """Where builds are kept: ours alone, or programs of somebody else could be waiting there."""
    directory = ROOT / "build" / "programs"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        about = directory.lstat()
        if stat.S_ISDIR(about.st_mode) and about.st_uid == os.getuid():
            directory.chmod(0o755)  # whatever the umask is: other users run what is there
            return directory
    except OSError:
        pass  # the project's folder is read-only, or another user's
    directory = Path(tempfile.mkdtemp(prefix="uvfio-programs-"))
    directory.chmod(0o755)
    return directory


def main() -> None:
    parser = argparse.ArgumentParser(description="Build the end-to-end test programs.")
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--static", action="store_true")
    parser.add_argument("--m32", action="store_true")
    options = parser.parse_args()
    for name in options.names or programs():
        print(compile(name, static=options.static, m32=options.m32))


if __name__ == "__main__":
    main()
