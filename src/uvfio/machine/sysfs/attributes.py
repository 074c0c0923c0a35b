"""Files of sysfs whose contents are made, or that take writes: what a read shows and what a write means.

An ``Attribute`` belongs to a folder: one that there is once ("/sys/bus/pci"), or one of many, where "*" stands for
the name ("/sys/bus/pci/devices/*"). It is made by one line::

    register("/sys/bus/pci/devices/*/msi_bus", show=msi_bus, store=set_msi_bus)

``show(machine, name)`` gives the text without the newline at its end, ``store(machine, name, text)`` does what a
write of ``text`` (one write(2), with its newline) asks for, and ``exists(machine, name)`` says whether this one has
the file. From that follow the permissions: 0644, 0444 without ``store``, 0200 without ``show``. ``load`` and ``save``
in their place make a file of bytes with positions (``config``).

A store raises what the program shall see. If what it asks for takes a while (a device must be released first) it
returns a ``Wait``: the door polls it, and answers the write when it is over.

Nothing here knows a door, or what is open. Data flow: ``machine/sysfs/tree.py`` lists the files (``shown``), a door
finds what is behind a path (``find``) and calls it. After a store the tree may differ: the door writes it anew.

The attributes themselves: ``drivers.py`` (buses and drivers), ``functions.py`` (PCI functions), ``host.py``
(modules, groups), ``sriov.py``. They register when they are imported, which ``tree.py`` does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from uvfio.errors import InvalidArgument, VfioError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from uvfio.core.waiting import Wait
    from uvfio.machine.machine import Machine

__all__ = [
    "Attribute",
    "Bound",
    "Refused",
    "find",
    "parse_bool",
    "parse_unsigned",
    "register",
    "shown",
]

PAGE = 4096  # what one read shows and one write takes, at most
_MAX_UNSIGNED = 2**64 - 1
_DIGITS = "0123456789abcdef"


class Refused(VfioError):
    """The file is there, and may not be opened for this (EACCES)."""

    default_errno = 13


class Attribute(NamedTuple):
    """See the module's head. ``load`` and ``save`` take a position and a count, or a position and bytes."""

    show: Callable[[Machine, str], str] | None = None
    store: Callable[[Machine, str, str], Wait | None] | None = None
    exists: Callable[[Machine, str], bool] | None = None
    load: Callable[[Machine, str, int, int], bytes] | None = None
    save: Callable[[Machine, str, int, bytes], int] | None = None

    @property
    def mode(self) -> int:
        """Permission bits."""
        readable, writable = self.show or self.load, self.store or self.save
        return (0o444 if readable else 0) | (0o200 if writable else 0)


_folders: dict[str, dict[str, Attribute]] = {}


def register(
    path: str,
    *,
    show: Callable[[Machine, str], str] | None = None,
    store: Callable[[Machine, str, str], Wait | None] | None = None,
    exists: Callable[[Machine, str], bool] | None = None,
    load: Callable[[Machine, str, int, int], bytes] | None = None,
    save: Callable[[Machine, str, int, bytes], int] | None = None,
) -> None:
    """Have a file of this path; the last folder may be "*". ValueError for a second one."""
    folder, _, name = path.rpartition("/")
    if name in _folders.setdefault(folder, {}):
        raise ValueError(f"{path} is registered twice")
    _folders[folder][name] = Attribute(show, store, exists, load, save)


class Bound(NamedTuple):
    """The attribute of one folder of one machine. Its methods are what a file can do."""

    path: str
    attribute: Attribute
    machine: Machine
    name: str

    @property
    def mode(self) -> int:
        """The permissions of the file."""
        return self.attribute.mode

    @property
    def positioned(self) -> bool:
        """Whether it is a file of bytes, where every access has a position."""
        return self.attribute.load is not None

    def check_open(self, reads: bool, writes: bool) -> None:
        """Refused if it cannot be read or written: sysfs asks that of root, too (kernfs_fop_open)."""
        if reads and not self.mode & 0o444:
            raise Refused(f"{self.path} cannot be read")
        if writes and not self.mode & 0o200:
            raise Refused(f"{self.path} cannot be written")

    def text(self) -> bytes:
        """All of its contents now; nothing for a file that is only written."""
        if self.attribute.load:
            return self.attribute.load(self.machine, self.name, 0, PAGE)
        if self.attribute.show is None:
            return b""
        return f"{self.attribute.show(self.machine, self.name)}\n".encode("utf-8", "replace")[:PAGE]

    def read(self, offset: int, count: int) -> bytes:
        """Part of the contents."""
        if self.attribute.load:
            return self.attribute.load(self.machine, self.name, offset, count)
        return self.text()[offset : offset + count]

    def write(self, offset: int, data: bytes) -> tuple[int, Wait | None]:
        """One write(2): how many bytes are taken, and what has to be waited for before that is true.

        The position counts for files of bytes only, as in sysfs_kf_write; so does a write of nothing.
        """
        if self.attribute.save:
            return self.attribute.save(self.machine, self.name, offset, data), None
        if self.attribute.store is None:
            raise Refused(f"{self.path} cannot be written")
        taken = data[:PAGE]
        if not taken:
            return 0, None
        text = taken.split(b"\0")[0].decode("utf-8", "replace")
        return len(taken), self.attribute.store(self.machine, self.name, text)


def find(machine: Machine, path: str) -> Bound | None:
    """The attribute at the real ``path`` (no links in it), or None for any other file."""
    folder, _, file = path.rpartition("/")
    name = ""
    table = _folders.get(folder)
    if table is None:
        parent, _, name = folder.rpartition("/")
        table = _folders.get(f"{parent}/*")
    found = table.get(file) if table else None
    if found is None or (found.exists and not found.exists(machine, name)):
        return None
    return Bound(path, found, machine, name)


def shown(machine: Machine, folder: str, name: str = "") -> Iterator[Bound]:
    """The attributes that the folder has: ``folder`` as registered, ``name`` what "*" stands for."""
    place = f"{folder[:-1]}{name}" if folder[-1] == "*" else folder
    for file, attribute in _folders.get(folder, {}).items():
        if attribute.exists is None or attribute.exists(machine, name):
            yield Bound(f"{place}/{file}", attribute, machine, name)


def parse_unsigned(text: str) -> int:
    """kstrtoul with base 0: decimal, 0x..., 0..., one newline at the end. InvalidArgument."""
    digits = text.removesuffix("\n").removeprefix("+")
    base = 10
    if digits[:2].lower() == "0x":
        digits, base = digits[2:], 16
    elif digits[:1] == "0" and len(digits) > 1:
        digits, base = digits[1:], 8
    try:
        if not set(digits.lower()) <= set(_DIGITS[:base]):
            raise ValueError  # also what int() would take for a prefix or a separator
        value = int(digits, base)
    except ValueError:
        raise InvalidArgument(f"{text.rstrip()!r} is not a number") from None
    if value > _MAX_UNSIGNED:
        raise InvalidArgument(f"{text.rstrip()} does not fit 64 bits", errno=34)
    return value


def parse_bool(text: str) -> bool:
    """kstrtobool: the first letter counts (yes, true, enabled), of "on" and "off" the second. InvalidArgument."""
    first = text[:1].lower()
    if first in ("y", "t", "e", "1") or text[:2].lower() == "on":
        return True
    if first in ("n", "f", "d", "0") or text[:2].lower() == "of":
        return False
    raise InvalidArgument(f"{text.rstrip()!r} is neither yes nor no", "Y and N are")
