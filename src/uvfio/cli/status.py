"""``uvfio`` without a verb: whether programs can be run here, the default machine, and the verbs.

The status of a run is another thing: ``uvfio ctl SOCKET status`` (``cli/ctl.py``).
"""

from __future__ import annotations

from uvfio import __version__
from uvfio.cli import output
from uvfio.cli.inspect import picture

__all__ = ["show_status"]


def show_status() -> int:
    """Print the status; the exit status is 0 in any case."""
    from uvfio.cli.main import VERBS
    from uvfio.doors.run.launch.check import probe_all
    from uvfio.machine.machine import Machine

    missing = next((probe for probe in probe_all() if probe.required and not probe.ok), None)
    if missing is None:
        print(f"uvfio {__version__}: programs can be run here")
    else:
        print(f"uvfio {__version__}: programs cannot be run here: {missing.name}: {missing.detail}")
        print("`uvfio check` tells what to do about it")
    print("\nThe default machine (-m and -d describe others):\n")
    output.tree(picture(Machine().describe()))
    print("\nusage: uvfio VERB [OPTION...]; `uvfio VERB --help` tells more\n")
    for verb, what in VERBS.items():
        print(f"  {verb:<8}{what}")
    return 0
