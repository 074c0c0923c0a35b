"""``uvfio check``: can programs be run on this system, and if not, what is missing?

The runner knows what it needs and how to try it; this prints what it found. Exits with 1 when something
that every program needs is missing.
"""

from __future__ import annotations

from uvfio.cli import output
from uvfio.cli.usage import add_json, parser

__all__ = ["check"]


def check(words: list[str]) -> int:
    """``uvfio check``"""
    options = parser("check", "find out whether programs can be run here")
    add_json(options)
    args = options.parse_args(words)

    from uvfio.doors.run.launch.check import probe_all

    found = probe_all()
    works = all(probe.ok for probe in found if probe.required)
    if args.json:
        output.print_json(
            {
                "works": works,
                "probes": [
                    {
                        "name": probe.name,
                        "ok": probe.ok,
                        "required": probe.required,
                        "detail": probe.detail,
                        "hint": probe.hint,
                    }
                    for probe in found
                ],
            }
        )
        return 0 if works else 1
    rows = []
    for probe in found:
        state = "ok" if probe.ok else "MISSING" if probe.required else "without"
        rows.append((state, probe.name, probe.detail))
        if not probe.ok and probe.hint:
            rows.append(("", "", f"hint: {probe.hint}"))
    output.table(("", "NEEDED", "FOUND"), rows)
    print("programs can be run here" if works else "programs cannot be run here")
    return 0 if works else 1
