"""docs/design.md: its pictures are those of the tables."""

from __future__ import annotations

import re

from tools.draw_lifetimes import PAGE, TABLES, redraw


def test_the_pictures_of_lives_are_current() -> None:
    page = PAGE.read_text()
    assert re.findall(r"<!-- lifetime: (\w+) -->", page) == list(TABLES)
    assert redraw(page) == page, "run python tests/tools/draw_lifetimes.py"
