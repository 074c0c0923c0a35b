"""Reports on stderr of errors that no program can be given: mistakes of uvfio or of a device model. The run goes on.

A report neither raises nor blocks (``linux/output.py``), also without memory and without a free descriptor.
"""

from __future__ import annotations

import os
import sys

from uvfio.doors.run.linux.output import say
from uvfio.doors.run.session.mistakes import Mistakes
from uvfio.errors import ModelMistake

__all__ = ["culprit", "report_bug", "report_end", "report_memory"]

_mistakes = Mistakes()


def report_end() -> None:
    """At the end of a run: report how many mistakes of device models there were, if any. Never raises."""
    line = _mistakes.last_line()
    if line:
        say(line)


def culprit(error: BaseException) -> tuple[str, int, str] | None:
    """File, line and function of the innermost frame that is neither uvfio's nor the standard library's, or None."""
    import uvfio

    inner = (os.path.dirname(uvfio.__file__) + os.sep, os.path.dirname(os.__file__) + os.sep)
    found, trace = None, error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        theirs = not code.co_filename.startswith((*inner, "<frozen"))
        if theirs or "site-packages" in code.co_filename:
            found = code.co_filename, trace.tb_lineno, code.co_name
        trace = trace.tb_next
    return found


def report_bug(where: str, error: BaseException | None = None) -> None:
    """Report an unexpected error (default: the one being handled): where it happened, which code raised it, the stack.

    Code outside the package is named, since the mistake is then likely in a device model. Never raises.
    """
    text = f"uvfio: internal error in {where}\n"
    try:
        import traceback

        error = error or sys.exc_info()[1]
        assert error is not None
        if isinstance(error, ModelMistake):
            say(_mistakes.text(where, error))
            return
        found = culprit(error)
        if found is not None:
            text += (
                f"uvfio: raised in {found[0]}:{found[1]}, which is no part of uvfio: look there "
                "for the mistake of a device model\n"
            )
        if isinstance(error, SystemExit | KeyboardInterrupt | GeneratorExit):
            text += f"uvfio: a model must not raise {type(error).__name__}; the run goes on\n"
        text += "".join(traceback.format_exception(error))
    except (
        BaseException
    ):  # no memory, no descriptor to import the module, an error whose text raises
        text += f"uvfio: {type(error).__name__}; the stack cannot be printed\n"
    say(text)


def report_memory(where: str, error: BaseException) -> None:
    """Report in one line that uvfio had no memory for a call. Never raises."""
    try:
        found = culprit(error)
        at = f" (in {found[0]}:{found[1]})" if found is not None else ""
        say(f"uvfio: no memory for {where}{at}; it gets ENOMEM\n")
    except BaseException:
        say("uvfio: no memory for a call; it gets ENOMEM\n")
