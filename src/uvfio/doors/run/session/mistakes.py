"""The mistakes of device models in one run (``errors.ModelMistake``): the text of a report, and of the last line.

A mistake is reported in full when it happens first; when it happens again it is counted. The last line of a run says
how many there were, since the program may have ended well while a device stood still.

It writes nothing: ``report.py`` does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from uvfio.errors import ModelMistake

__all__ = ["Mistakes"]


class Mistakes:
    """Messages and how often each was seen, in the order of their first time."""

    def __init__(self) -> None:
        self._seen: dict[str, int] = {}

    def text(self, where: str, mistake: ModelMistake) -> str:
        """Count ``mistake``, which happened in ``where`` ("system call 17"). Returns the report, "" the next time."""
        import traceback

        message = str(mistake)
        times = self._seen[message] = self._seen.get(message, 0) + 1
        if times > 1:
            return ""
        hint = f"hint: {mistake.hint}\n" if mistake.hint else ""
        cause = mistake.__cause__
        stack = "" if cause is None else "".join(traceback.format_exception(cause))
        return f"uvfio: {message}\n{hint}uvfio: that was in {where}\n{stack}"

    def last_line(self) -> str:
        """How many there were, and forget them; empty for none."""
        seen, self._seen = self._seen, {}
        if not seen:
            return ""
        total, first = sum(seen.values()), next(iter(seen))
        errors = "1 error" if total == 1 else f"{total} errors"
        return f"uvfio: this run had {errors} of device models; the first: {first}\n"
