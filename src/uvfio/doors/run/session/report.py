"""Reports on stderr of errors that no program can be given: bugs of uvfio or of a device model. The run goes on."""

from __future__ import annotations

import os
import sys

from uvfio.doors.run.session.mistakes import Mistakes
from uvfio.errors import ModelMistake

__all__ = ["report_bug", "report_end"]

_mistakes = Mistakes()


def report_end() -> None:
    """At the end of a run: report how many mistakes of device models there were, if any."""
    line = _mistakes.last_line()
    if line:
        sys.stderr.write(line)


def report_bug(where: str, error: BaseException | None = None) -> None:
    """Report an unexpected error (default: the one being handled): where it happened, which code raised it, the stack.

    Code outside the package is named, since the mistake is then likely in a device model.
    """
    import traceback

    import uvfio

    error = error or sys.exc_info()[1]
    assert error is not None
    if isinstance(error, ModelMistake):
        sys.stderr.write(_mistakes.text(where, error))
        return
    sys.stderr.write(f"uvfio: internal error in {where}\n")
    last = traceback.extract_tb(error.__traceback__)[-1]
    if not last.filename.startswith(os.path.dirname(uvfio.__file__)):
        sys.stderr.write(
            f"uvfio: raised in {last.filename}:{last.lineno}, which is no part of uvfio: look there "
            "for the mistake of a device model\n"
        )
    traceback.print_exception(error)
