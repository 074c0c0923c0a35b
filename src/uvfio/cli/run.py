"""``uvfio run``: cut the command line in two, describe the machine, hand both to the runner.

The words before the program are ours and are parsed; the program's own words are never looked at. This
is the one verb whose start-up time matters, so nothing is imported here that it does not need.

The runner returns the program's wait status. A signal that killed the program is raised again, so that
whoever started us sees what he would see without us.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

from uvfio.cli.usage import DEVICE_HELP, UsageError, add_machine, machine_spec, parser

if TYPE_CHECKING:
    import argparse
    from typing import TextIO

__all__ = ["cut", "run"]

STDERR = "-"

EPILOG = f"""\
{DEVICE_HELP}

Exit status: the program's own. 125: uvfio itself failed; 126: the program cannot be executed; 127: there
is no such program. A program killed by a signal makes `uvfio run` die of the same signal."""


def cut(words: list[str], with_value: set[str]) -> tuple[list[str], list[str]]:
    """Our words and the program's: cut at ``--``, else before the first word that is no option of ours.

    ``with_value``: the options whose value is the next word.
    """
    position = 0
    while position < len(words):
        word = words[position]
        if word == "--":
            return words[:position], words[position + 1 :]
        if not word.startswith("-") or word == "-":
            break
        position += 2 if word in with_value else 1
    return words[:position], words[position:]


def run(words: list[str]) -> int:
    """Run the verb. Does not return if the program was killed by a signal."""
    options, with_value = _parser()
    ours, program = cut(words, with_value)
    args = options.parse_args(ours)
    if not program:
        raise UsageError(
            "uvfio run: no program is given", "uvfio run [OPTION...] [--] PROGRAM [ARG...]"
        )
    _check(args)
    spec = machine_spec(args)
    trace = _open_trace(args.trace)

    from uvfio.doors.run.launch import finish
    from uvfio.doors.run.supervisor import run as run_program

    try:
        status = run_program(
            spec,
            program,
            trace=trace,
            trace_json=args.json,
            status_fd=args.status_fd,
            abi="2011" if args.abi == "auto" else args.abi,
        )
    finally:
        if trace is not None:
            trace.flush()
    if os.WIFSIGNALED(status):
        finish(status)
    return os.waitstatus_to_exitcode(status)


def _parser() -> tuple[argparse.ArgumentParser, set[str]]:
    options = parser("run", "run a program that finds the machine's devices", EPILOG)
    options.usage = (
        "uvfio run [-m MACHINE.toml] [-d DEVICE]... [--abi ABI] [--trace[=FILE]] [--json]\n"
        "                 [--status-fd N] [--] PROGRAM [ARG...]"
    )
    actions = add_machine(options)
    actions.append(
        options.add_argument(
            "--abi",
            choices=("auto", "2011", "mainline"),
            default="auto",
            help="the ABI of files that are not decided yet, and of sysfs (auto: 2011)",
        )
    )
    options.add_argument(
        "--trace",
        metavar="FILE",
        nargs="?",
        const=STDERR,
        help="print each call and event, decoded, to stderr or to FILE",
    )
    options.add_argument("--json", action="store_true", help="the trace as JSON lines")
    actions.append(
        options.add_argument(
            "--status-fd",
            metavar="N",
            type=int,
            help="write what happens to descriptor N, JSON lines",
        )
    )
    return options, {name for action in actions for name in action.option_strings}


def _check(args: Any) -> None:
    if args.abi == "mainline":
        raise UsageError(
            "uvfio run: --abi mainline: this version speaks the ABI of 2011 only",
            "leave --abi out, or say --abi 2011",
        )
    if args.json and args.trace is None:
        raise UsageError("uvfio run: --json is the form of the trace", "give --trace as well")
    if args.status_fd is not None:
        try:
            os.fstat(args.status_fd)
        except (OSError, OverflowError):
            hint = "open it in the shell: --status-fd 3 3>status"
            raise UsageError(
                f"uvfio run: --status-fd {args.status_fd}: that descriptor is not open", hint
            ) from None


def _open_trace(where: str | None) -> TextIO | None:
    if where is None:
        return None
    if where == STDERR:
        return sys.stderr
    return open(where, "w", encoding="utf-8", errors="backslashreplace")
