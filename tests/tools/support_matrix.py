"""Write the tables of docs/reference/support.md anew, between the markers: ``make support``.

``expected`` is the page as it has to be; tests/test_support_page.py compares.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from uvfio.fops.support import markdown

PAGE: Final = Path(__file__).resolve().parents[2] / "docs" / "reference" / "support.md"
BEGIN: Final = "<!-- tables: made by `make support`; do not edit -->\n"
END: Final = "<!-- end of tables -->\n"


def expected(page: str) -> str:
    """``page`` with the tables as they are now. Raises ValueError if a marker is missing."""
    head, _, rest = page.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not end:
        raise ValueError(f"the page needs the lines {BEGIN!r} and {END!r}")
    return f"{head}{BEGIN}\n{markdown()}\n{END}{tail}"


if __name__ == "__main__":
    PAGE.write_text(expected(PAGE.read_text()))
