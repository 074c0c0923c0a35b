"""What the read verbs print: JSON, tables, trees and lists of facts.

For people at a terminal rich draws them; into a pipe or a file they go as plain text that is never cut
to a width, because scripts and bug reports read it. Without rich installed the plain form serves both.
At a terminal that is too narrow nothing is cut either: lines go on below.
``NO_COLOR`` is respected (rich does), and so is a terminal that calls itself dumb.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rich.console import Console
    from rich.tree import Tree as RichTree

__all__ = ["Branch", "facts", "print_json", "size", "table", "tree"]

_LEAST = 12  # columns for the last cells of a table
_UNITS = ((1 << 40, "T"), (1 << 30, "G"), (1 << 20, "M"), (1 << 10, "K"))


class Branch(NamedTuple):
    """A line of a tree and what hangs below it."""

    text: str
    below: Sequence[Branch] = ()


def print_json(value: object) -> None:
    """One JSON value, indented, keys in the order that they have."""
    import json

    print(json.dumps(value, indent=2, ensure_ascii=False))


def size(number: int) -> str:
    """1M for 1048576; exact."""
    for unit, letter in _UNITS:
        if number >= unit and number % unit == 0:
            return f"{number // unit}{letter}"
    return str(number)


def table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Columns; the last one may be as long as it likes.

    At a terminal the last one is wrapped; the others, which identify a thing, stay whole. Where that leaves less than
    ``_LEAST`` columns for the last one, the lines are as in a file and the terminal breaks them.
    """
    rows = list(rows)
    console = _console()
    widths = _widths(headers, rows)
    if console is None:
        print("\n".join(_plain_table(headers, rows)))
        return
    if sum(width + 2 for width in widths[:-1]) + min(widths[-1], _LEAST) > console.width:
        for number, line in enumerate(_plain_table(headers, rows)):
            console.print(line, style="" if number else "bold", soft_wrap=True)
        return
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for number, header in enumerate(headers, 1):
        drawn.add_column(header, no_wrap=number < len(headers), overflow="fold")
    for row in rows:
        drawn.add_row(*(Text(cell) for cell in row))
    console.print(drawn)


def _plain_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    widths = _widths(headers, rows)
    return [
        "  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in (headers, *rows)
    ]


def _widths(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> list[int]:
    return [max(len(line[column]) for line in (headers, *rows)) for column in range(len(headers))]


def tree(root: Branch) -> None:
    """A tree, drawn with lines."""
    console = _console()
    if console is None:
        print("\n".join(_plain_tree(root)))
        return
    from rich.text import Text
    from rich.tree import Tree

    def draw(branch: Branch, onto: RichTree) -> None:
        for below in branch.below:
            draw(below, onto.add(Text(below.text)))

    drawn = Tree(Text(root.text, style="bold"), guide_style="dim")
    draw(root, drawn)
    console.print(drawn)


def _plain_tree(root: Branch) -> list[str]:
    fork, last, line = ("├─ ", "└─ ", "│  ") if _draws_lines() else ("+- ", "`- ", "|  ")
    lines = [root.text]

    def draw(branch: Branch, indent: str) -> None:
        for number, below in enumerate(branch.below, 1):
            end = number == len(branch.below)
            lines.append(indent + (last if end else fork) + below.text)
            draw(below, indent + ("   " if end else line))

    draw(root, "")
    return lines


def _draws_lines() -> bool:
    try:
        "├".encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def facts(title: str, items: Sequence[tuple[str, str | Sequence[str]]]) -> None:
    """A title and ``key  value`` lines; a value may have several lines. Empty ones are left out."""
    given = [(key, [value] if isinstance(value, str) else value) for key, value in items if value]
    width = max((len(key) for key, _ in given), default=0)
    console = _console()
    if console is None:
        print(title)
    else:
        from rich.text import Text

        console.print(Text(title, style="bold"))
    for key, values in given:
        for number, value in enumerate(values):
            name = f"{key if number == 0 else '':<{width}}"
            if console is None:
                print(f"  {name}  {value}".rstrip())
            else:
                console.print(Text.assemble("  ", (name, "cyan"), "  ", value), soft_wrap=True)


def _console() -> Console | None:
    """The console if stdout is a terminal and rich is installed, else None."""
    if not sys.stdout.isatty() or os.environ.get("TERM") == "dumb":
        return None
    try:
        from rich.console import Console
    except ModuleNotFoundError:
        return None
    options: dict[str, Any] = {"highlight": False, "emoji": False, "markup": False}
    return Console(**options)
