"""Tables of requests: what each kind of file answers, and to which extent.

Each class that answers requests has one table, ``REQUESTS``: request number to ``Request``. A row is a handler and a
``Support``: full, partial (what is missing) or refused (errno and reason). Names and argument structs are in ``uapi``
under the same number. The table holds every request that ``uapi`` has for that kind of file: a row without handler is
a request that is refused like an unknown one. ``HANDLERS``, the table of the dispatch, is derived from it when the
class is made, so a request costs one dictionary lookup. The support matrix is derived from it, too
(``fops/support.py``).

``RequestFile`` is a file with such a table. It is the only place where conditions get the errno of an ABI: the table
``ERRNO`` of each ABI's files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple

from uvfio.errors import UnknownCommand, VfioError
from uvfio.fops.file import File

if TYPE_CHECKING:
    from uvfio.core.seams import Task

__all__ = [
    "FULL",
    "Dispatcher",
    "Full",
    "Handler",
    "Partial",
    "Refused",
    "Request",
    "RequestFile",
    "Support",
    "handlers",
]

Handler = Callable[..., int]


class Full(NamedTuple):
    """Everything works that the ABI defines."""


class Partial(NamedTuple):
    """The request works but for ``missing``."""

    missing: str


class Refused(NamedTuple):
    """The request always fails with the errno of this name once its argument is valid, for this reason."""

    errno: str
    reason: str


Support = Full | Partial | Refused
FULL: Final = Full()


class Request(NamedTuple):
    """How a file answers one request. ``handler`` None: like a request that the file does not know."""

    handler: Handler | None
    support: Support = FULL


def handlers(table: Mapping[int, Request]) -> dict[int, Handler]:
    """The handlers of a table: what a dispatch needs of it."""
    return {number: row.handler for number, row in table.items() if row.handler is not None}


class Dispatcher:
    """An object that answers requests by its table. ``kind`` is that of the files that the table is about."""

    __slots__ = ()

    kind: ClassVar[str]
    REQUESTS: ClassVar[Mapping[int, Request]] = {}
    HANDLERS: ClassVar[Mapping[int, Handler]] = {}

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.HANDLERS = handlers(cls.REQUESTS)


class RequestFile(Dispatcher, File):
    """A file whose ioctls are a table."""

    __slots__ = ()

    ERRNO: ClassVar[Mapping[type[VfioError], int]] = {}
    """The errno that conditions have in the file's ABI, where it is not the condition's default."""

    def ioctl(self, task: Task, cmd: int, arg: int) -> int:
        """Answer by the table; a condition gets the errno of the file's ABI."""
        try:
            return self.dispatch(task, cmd, arg)
        except VfioError as error:
            error.errno = self.ERRNO.get(type(error), error.errno)
            raise

    def dispatch(self, task: Task, cmd: int, arg: int) -> int:
        """Call the handler of ``cmd``. Raises UnknownCommand if there is none; else as the handler does."""
        handler = self.HANDLERS.get(cmd)
        if handler is None:
            raise UnknownCommand(f"{self.name} does not know {self.request_name(cmd)}")
        return handler(self, task, arg)

    def request_name(self, cmd: int) -> str:
        """The header's name of a request to this file, or its number."""
        return f"{cmd:#010x}"
