"""The states of migration as the uapi header describes them: arcs, and what ways are made of.

Written down from include/uapi/linux/vfio.h independently of ``uvfio.core.migration.states``, which has a table of
next steps. Here a way is the shortest one over the arcs that exist, through states in which no data flow; only from
PRE_COPY to STOP_COPY data may flow all along.
"""

from __future__ import annotations

STOP_COPY, P2P, PRE_COPY = 1, 2, 4
FLAGS = (1, 3, 5, 7)

ALWAYS = {
    ("STOP", "STOP_COPY"),
    ("STOP_COPY", "STOP"),
    ("STOP", "RESUMING"),
    ("RESUMING", "STOP"),
}
WITHOUT_P2P = {("RUNNING", "STOP"), ("STOP", "RUNNING")}
WITH_P2P = {
    ("RUNNING", "RUNNING_P2P"),
    ("RUNNING_P2P", "RUNNING"),
    ("RUNNING_P2P", "STOP"),
    ("STOP", "RUNNING_P2P"),
}
WITH_PRE_COPY = {("RUNNING", "PRE_COPY"), ("PRE_COPY", "RUNNING")}
PRE_COPY_WITHOUT_P2P = {("PRE_COPY", "STOP_COPY")}
PRE_COPY_WITH_P2P = {
    ("PRE_COPY", "PRE_COPY_P2P"),
    ("PRE_COPY_P2P", "PRE_COPY"),
    ("PRE_COPY_P2P", "STOP_COPY"),
    ("PRE_COPY_P2P", "RUNNING_P2P"),
    ("RUNNING_P2P", "PRE_COPY_P2P"),
}
DATA = {"STOP_COPY", "RESUMING", "PRE_COPY", "PRE_COPY_P2P"}


def arcs(flags: int) -> set[tuple[str, str]]:
    """Those of a device with these flags."""
    found = ALWAYS | (WITH_P2P if flags & P2P else WITHOUT_P2P)
    if flags & PRE_COPY:
        found |= WITH_PRE_COPY | (PRE_COPY_WITH_P2P if flags & P2P else PRE_COPY_WITHOUT_P2P)
    return found


def way(current: str, wanted: str, flags: int) -> list[str] | None:
    """The states entered on the way; empty if it is there already, None if there is none."""
    known = arcs(flags)
    states = {state for arc in known for state in arc}
    if current not in states or wanted not in states:
        return None
    if current == "STOP_COPY" and wanted.startswith("PRE_COPY"):
        return None
    ways: list[list[str]] = [[current]]
    seen = {current}
    while ways:
        path = ways.pop(0)
        if path[-1] == wanted:
            return path[1:]
        for start, end in sorted(known):
            inside = end != wanted and end in DATA
            if inside and (current, wanted) == ("PRE_COPY", "STOP_COPY"):
                inside = end != "PRE_COPY_P2P"
            if start == path[-1] and end not in seen and not inside:
                seen.add(end)
                ways.append([*path, end])
    return None
