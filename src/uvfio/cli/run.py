"""``uvfio run``: parse the options, build the description of the machine, call the runner with both.

The options end at ``--`` or before the first word that is no option; the program's own words are not examined. This is
the one verb whose start-up time matters: the options are parsed by hand (importing argparse takes as long as importing
the framework), and nothing is imported that is not needed.

The runner returns the program's wait status. A signal that killed the program is raised again, so that the parent
process sees the same wait status as without ``uvfio run``. Where trace and summary are written is decided here; what is
written is the business of ``doors/run/observe``.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from uvfio.cli.usage import DEVICE_HELP, UsageError, did_you_mean, machine_spec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from uvfio.doors.run.linux.output import Output

__all__ = ["Options", "parse", "run"]

STDERR = "-"
UNLIMITED = (1 << 64) - 1
ABIS = ("auto", "2011", "mainline")
WITH_VALUE = {
    "-m": "--machine",
    "--machine": "--machine",
    "-d": "--device",
    "--device": "--device",
    "--abi": "--abi",
    "--control": "--control",
    "--memlock": "--memlock",
    "--status-fd": "--status-fd",
    "--timeout": "--timeout",
}
OPTIONS = (
    *WITH_VALUE,
    "--trace",
    "--trace-summary",
    "--json",
    "--kill-with-program",
    "--strict",
    "-h",
    "--help",
)

HELP = f"""\
usage: uvfio run [-m MACHINE.toml] [-d DEVICE]... [--abi ABI] [--trace[=FILE]]
                 [--trace-summary] [--json] [--control SOCKET] [--status-fd N]
                 [--memlock SIZE] [--strict] [--timeout SECONDS]
                 [--kill-with-program] [--] PROGRAM [ARG...]

Run a program that finds the machine's devices: /dev/vfio and the sysfs around it.

  -m, --machine MACHINE.toml  the machine described in this file
  -d, --device DEVICE         a device to plug in; may be given again
  --abi auto|2011|mainline    the ABI that programs find (auto: both; each file takes what it is used for)
  --trace[=FILE]              print each call and event, decoded, to stderr or to FILE
  --trace-summary             at the end print how often each call was made, its errors and its time
  --json                      trace and summary as JSON lines
  --control SOCKET            let `uvfio ctl SOCKET` change the machine while the program runs
  --status-fd N               write what happens to descriptor N, as JSON lines
  --memlock SIZE|unlimited    what each program's DMA mappings may lock, instead of its RLIMIT_MEMLOCK
  --strict                    DMA to memory that was exchanged after it was mapped is a fault, said on stderr
  --timeout SECONDS           kill all processes of the run after so long; status 124
  --kill-with-program         when PROGRAM ends, kill the processes that it has started and left
  -h, --help                  this text

{DEVICE_HELP}

Exit status: the program's own. 124: --timeout; 125: uvfio itself failed, or a model's hook did not end and was
ended by a second signal; 126: the program cannot be executed; 127: there is no such program. A program killed by
a signal makes `uvfio run` die of the same signal."""


class Options:
    """What stands before the program, and the program's words."""

    __slots__ = (
        "abi",
        "control",
        "device",
        "help",
        "json",
        "kill_with_program",
        "machine",
        "memlock",
        "program",
        "status_fd",
        "strict",
        "summary",
        "timeout",
        "trace",
    )

    def __init__(self) -> None:
        self.machine: str | None = None
        self.device: list[str] = []
        self.abi = "auto"
        self.trace: str | None = None
        self.summary = False
        self.json = False
        self.control: str | None = None
        self.status_fd: int | None = None
        self.memlock: int | None = None
        self.strict = False
        self.timeout: float | None = None
        self.kill_with_program = False
        self.help = False
        self.program: Sequence[str] = ()


def parse(words: Sequence[str]) -> Options:
    """Take the options off; UsageError for those that make no sense by themselves."""
    options = Options()
    position = 0
    while position < len(words):
        word = words[position]
        if not word.startswith("-") or word == "-":
            break
        position += 1
        if word == "--":
            break
        if word.startswith("--"):
            name, given, value = word.partition("=")
        else:
            name, value = word[:2], word[2:].removeprefix("=")
            given = value
        if name in WITH_VALUE:
            if not given:
                value = words[position] if position < len(words) else "--"
                position += 1
                if value == "--":
                    raise UsageError(f"uvfio run: {name} needs a value", "see `uvfio run --help`")
            _set(options, WITH_VALUE[name], value)
        elif name == "--trace":
            if given and not value:
                hint = "leave the = out to trace to stderr"
                raise UsageError("uvfio run: --trace= names no file", hint)
            options.trace = value or STDERR
            _check_trace(name, value, words[position:])
        elif name not in OPTIONS:
            hint = did_you_mean(name, OPTIONS, "see `uvfio run --help`")
            raise UsageError(f"uvfio run: there is no option {name!r}", hint)
        elif given:
            raise UsageError(
                f"uvfio run: {name} takes no value {value!r}", "see `uvfio run --help`"
            )
        elif name == "--json":
            options.json = True
        elif name == "--kill-with-program":
            options.kill_with_program = True
        elif name == "--trace-summary":
            options.summary = True
        elif name == "--strict":
            options.strict = True
        else:
            options.help = True
    options.program = words[position:]
    return options


def _check_trace(name: str, file: str, rest: Sequence[str]) -> None:
    """``--trace FILE -- PROGRAM``: FILE would be the program, so say how a file is named, if it cannot be one."""
    import shutil

    if file or len(rest) < 3 or rest[1] != "--" or rest[0].startswith("-"):
        return
    if shutil.which(rest[0]) is None:
        hint = f"a file is named with =: {name}={rest[0]}"
        raise UsageError(f"uvfio run: there is no program {rest[0]!r} to trace", hint)


def _set(options: Options, name: str, value: str) -> None:
    if name == "--machine":
        options.machine = value
    elif name == "--device":
        options.device.append(value)
    elif name == "--abi":
        if value not in ABIS:
            hint = did_you_mean(
                value, ABIS, "auto, the default, takes programs of 2011 and of mainline"
            )
            raise UsageError(f"uvfio run: --abi {value!r} is none of {', '.join(ABIS)}", hint)
        options.abi = value
    elif name == "--control":
        if not value:
            hint = "a path at which a socket can be made"
            raise UsageError("uvfio run: --control names no socket", hint)
        options.control = value
    elif name == "--timeout":
        options.timeout = _seconds(value)
    elif name == "--memlock":
        options.memlock = _memlock(value)
    else:
        if not value.isdecimal():
            hint = "open it in the shell: --status-fd 3 3>status"
            raise UsageError(
                f"uvfio run: --status-fd {value!r} is not the number of a descriptor", hint
            )
        options.status_fd = int(value)


def _seconds(value: str) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < float("inf"):
        hint = "a number of seconds above 0, for example 30 or 0.5"
        raise UsageError(f"uvfio run: --timeout {value!r} is not a time", hint)
    return seconds


def _memlock(value: str) -> int:
    from uvfio.errors import ConfigError
    from uvfio.machine.spec import parse_size

    if value == "unlimited":
        return UNLIMITED
    try:
        size = parse_size(value, "", "--memlock")
    except ConfigError:
        size = -1
    if size < 0:
        hint = "a number of bytes, for example 512M, or unlimited"
        raise UsageError(f"uvfio run: --memlock {value!r} is not a size", hint)
    return min(size, UNLIMITED)


def run(words: list[str]) -> int:
    """Run the verb. Does not return if the program was killed by a signal."""
    options = parse(words)
    if options.help:
        print(HELP)
        return 0
    _check(options)
    spec = machine_spec(options.machine, options.device)
    trace = _open_trace(options.trace)

    from uvfio.doors.run.launch.front import finish, split
    from uvfio.doors.run.supervisor import run as run_program

    status = run_program(
        spec,
        options.program,
        split(options.timeout),
        trace=trace,
        trace_json=options.json,
        summary=(trace or _open_trace(STDERR)) if options.summary else None,
        status_fd=options.status_fd,
        control=options.control,
        memlock=options.memlock,
        strict=options.strict,
        kill_with_program=options.kill_with_program,
        abi=options.abi,
    )
    if os.WIFSIGNALED(status):
        finish(status)
    return os.waitstatus_to_exitcode(status)


def _check(options: Options) -> None:
    if not options.program:
        hint = "uvfio run [OPTION...] [--] PROGRAM [ARG...]"
        raise UsageError("uvfio run: no program is given", hint)
    if options.json and options.trace is None and not options.summary:
        raise UsageError(
            "uvfio run: --json is the form of the trace", "give --trace or --trace-summary as well"
        )
    if options.status_fd is not None:
        try:
            os.fstat(options.status_fd)
        except (OSError, OverflowError):
            hint = "open it in the shell: --status-fd 3 3>status"
            raise UsageError(
                f"uvfio run: --status-fd {options.status_fd}: that descriptor is not open", hint
            ) from None


def _open_trace(where: str | None) -> Output | None:
    """Where trace and summary go; each line at once, so that a run that is killed leaves all of them."""
    from uvfio.doors.run.linux.output import Output, say

    if where is None:
        return None
    if where == STDERR:
        fd, name = None if sys.stderr is None else sys.stderr.fileno(), "stderr"
    else:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        fd, name = os.open(where, flags, 0o666), where
    return Output(
        fd, on_loss=lambda why: say(f"uvfio: lines of the trace are lost ({name}: {why})\n")
    )
