"""``Redirect``: what a handler raises to let the program make its call with other paths (``repeat.py``).

Apart from ``repeat.py``, which loads threads and ptrace, because nearly no run needs those.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["Redirect"]


class Redirect(Exception):
    """Raised by a handler: let the program make the call with other paths.

    ``paths`` maps the number of an argument to the path to use there; empty if only the result is of interest.
    ``done`` is called with the call's result, on the supervisor's thread, before the program goes on; it returns the
    result that the program gets. ``otherwise`` is called instead if the thread cannot be traced: it returns the answer,
    or None to let the kernel run the call as it is. Without it the program gets EPERM.
    """

    def __init__(
        self,
        paths: Mapping[int, bytes],
        done: Callable[[int], int] | None = None,
        otherwise: Callable[[], int | None] | None = None,
    ) -> None:
        super().__init__(paths)
        self.paths = paths
        self.done = done
        self.otherwise = otherwise
