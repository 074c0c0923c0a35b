"""Draw the lives of contexts (``uvfio.core.structure.lifetime``) into docs/design.md, between markers.

``python tests/tools/draw_lifetimes.py`` rewrites the page; tests/test_design.py fails while it is stale.
"""

from __future__ import annotations

import re
from pathlib import Path

from uvfio.core.structure.lifetime import (
    LIFE_2011,
    LIFE_CLAIM,
    LIFE_CONTAINER,
    Refusal,
    State,
    Table,
)

__all__ = ["PAGE", "TABLES", "draw", "redraw"]

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "design.md"
TABLES = {"2011": LIFE_2011, "container": LIFE_CONTAINER, "iommufd": LIFE_CLAIM}


def draw(table: Table) -> str:
    """The table as a state diagram of mermaid, and what is refused as a list."""
    lines = ["```mermaid", "stateDiagram-v2", f"    [*] --> {State.EMPTY.name}"]
    states = dict.fromkeys(state for state, _ in table)
    lines += [f"    {state.name}: {state.value}" for state in states]
    arrows: dict[tuple[State, State], list[str]] = {}
    refused: dict[Refusal, list[str]] = {}
    for (state, event), target in table.items():
        if isinstance(target, Refusal):
            refused.setdefault(target, []).append(f"{event.value} ({state.value})")
        elif target is not state:
            arrows.setdefault((state, target), []).append(event.value)
    for (state, target), events in arrows.items():
        lines.append(f"    {state.name} --> {target.name}: {', '.join(events)}")
    lines += ["```", "", "| refused as | condition | event (state) |", "|---|---|---|"]
    for refusal, pairs in refused.items():
        lines.append(f"| {refusal.name} | {refusal.condition.__name__} | {'; '.join(pairs)} |")
    return "\n".join(lines)


def redraw(page: str) -> str:
    """The page with each picture drawn anew. KeyError for a marker without a table."""
    return re.sub(
        r"(<!-- lifetime: (\w+) -->\n).*?(<!-- end -->)",
        lambda found: f"{found[1]}{draw(TABLES[found[2]])}\n{found[3]}",
        page,
        flags=re.DOTALL,
    )


if __name__ == "__main__":
    PAGE.write_text(redraw(PAGE.read_text()))
