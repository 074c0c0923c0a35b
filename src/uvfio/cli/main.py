"""The ``uvfio`` command: finds the verb, and turns what goes wrong into one line, a hint and a status.

Status: ``run`` ends as its program ends (a signal is raised again), 125 when uvfio itself failed, 126 and
127 as in a shell; the other verbs 0 or 1; 2 for a command line that makes no sense.

Each verb is a module of its own, imported when it is asked for: a program is started under ``uvfio run``
for every test of a suite, and each time loads what this module imports.
"""

from __future__ import annotations

import errno
import os
import sys
from io import TextIOBase
from typing import TYPE_CHECKING

from uvfio import __version__
from uvfio.cli.usage import HelpShown, UsageError, did_you_mean
from uvfio.doors.run.linux.output import say
from uvfio.errors import ConfigError, VfioError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["EXIT_FAILED", "EXIT_RUN_FAILED", "EXIT_USAGE", "VERBS", "main"]

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_RUN_FAILED = 125
EXIT_INTERRUPTED = 130

VERBS = {
    "run": "run a program that finds the machine's devices",
    "list": "list the machine's devices",
    "tree": "show the devices by IOMMU group",
    "show": "show everything about one device",
    "models": "list the device models, or describe one",
    "ctl": "change the machine of a run that was started with --control",
    "check": "find out whether programs can be run here",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (default: the process's own) and return its exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    failed = EXIT_RUN_FAILED if words[:1] == ["run"] else EXIT_FAILED
    if sys.stdout is None:  # closed by the caller
        sys.stdout = _Closed()
    try:
        status = _dispatch(words)
        sys.stdout.flush()
    except UsageError as err:
        return _complain(err.message, err.hint, EXIT_USAGE)
    except ConfigError as err:
        return _complain(str(err), err.hint, EXIT_USAGE if str(err).startswith("-d ") else failed)
    except VfioError as err:
        return _complain(str(err), err.hint, failed)
    except BrokenPipeError:  # `uvfio list | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return failed
    except OSError as err:
        where = f"{err.filename}: " if err.filename else ""
        return _complain(f"{where}{err.strerror or err}", "", failed)
    except ModuleNotFoundError as err:
        package = (err.name or "").partition(".")[0]
        if package not in ("msgspec", "rich"):
            return _bug(failed)
        hint = f"`make venv` in a checkout, or `{sys.executable} -m pip install {package}`"
        return _complain(f"the Python package {package} is not installed", hint, failed)
    except HelpShown:
        return 0
    except SystemExit as done:  # the command has none: a model that was loaded, reset or asked
        return _model_exit(done, failed)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except Exception:  # a mistake of ours: all the details, and still the right status
        return _bug(failed)
    return status


class _Closed(TextIOBase):
    """What a closed stdout is: a program that prints gets EBADF, as any other does."""

    def write(self, text: str) -> int:
        """Raises OSError."""
        raise OSError(errno.EBADF, os.strerror(errno.EBADF), "stdout")


def _dispatch(words: list[str]) -> int:
    if not words:
        from uvfio.cli.status import show_status

        return show_status()
    verb, *rest = words
    if verb == "--version":
        print(f"uvfio {__version__}")
        return 0
    if verb == "help" and rest and rest[0] in VERBS:
        return _verb(rest[0])(["--help"])
    if verb in ("-h", "--help", "help"):
        print(_help())
        return 0
    if verb not in VERBS:
        kind = "option" if verb.startswith("-") else "verb"
        later = next((word for word in rest if word in VERBS), None)
        if kind == "option" and later is not None:
            hint = f"options stand behind the verb: `uvfio {later} {verb} ...`"
            raise UsageError(f"the option {verb!r} stands in front of the verb", hint)
        raise UsageError(
            f"there is no {kind} {verb!r}",
            did_you_mean(verb, VERBS, "`uvfio --help` lists the verbs"),
        )
    return _verb(verb)(rest)


def _verb(verb: str) -> Callable[[list[str]], int]:
    if verb == "run":
        from uvfio.cli.run import run

        return run
    if verb == "check":
        from uvfio.cli.check import check

        return check
    if verb == "ctl":
        from uvfio.cli.ctl import ctl

        return ctl
    if verb == "models":
        from uvfio.cli.models import models

        return models
    from uvfio.cli import inspect

    return {"list": inspect.list_, "tree": inspect.tree, "show": inspect.show}[verb]


def _help() -> str:
    verbs = "\n".join(f"  {verb:<8}{what}" for verb, what in VERBS.items())
    return (
        "usage: uvfio VERB [OPTION...]\n\n"
        "VFIO in userspace: a machine whose devices are Python, for programs that cannot tell.\n\n"
        f"{verbs}\n\n"
        "`uvfio help VERB` tells more. Exit status: that of the program for `run` (125: uvfio itself\n"
        "failed, 126 and 127 as in a shell), 0 or 1 for the other verbs, 2 for a wrong command line."
    )


def _complain(message: str, hint: str, status: int) -> int:
    message, hint = _one_line(message), _one_line(hint)
    lines = [f"uvfio: {message.removeprefix('uvfio ')}"]  # a verb's own messages begin so
    if hint:
        lines.append(f"hint: {hint}")
    say("\n".join(lines) + "\n")
    return status


def _one_line(text: str) -> str:
    """What a user gave may hold anything: characters that are not printable are escaped."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _model_exit(done: SystemExit, status: int) -> int:
    from uvfio.doors.run.session.report import culprit

    found = culprit(done)
    where = f" in {found[0]}:{found[1]}" if found is not None else ""
    hint = "a model reports an error by an exception of its own"
    return _complain(
        f"SystemExit({done.code!r}) was raised{where}: a model must not end the process",
        hint,
        status,
    )


def _bug(status: int) -> int:
    import traceback

    say(traceback.format_exc())
    return _complain(
        "this is a mistake of uvfio's; please report it with the lines above", "", status
    )
