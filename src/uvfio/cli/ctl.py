"""``uvfio ctl``: change the machine of a run that was started with ``--control SOCKET``.

One request, one answer (``doors/run/observe/control.py`` has the protocol); ``status`` prints the answer as a table.
Exit status: 0 done, 1 refused or no run answers at the socket, 2 wrong command line. Interrupting a waiting unbind
(Ctrl-C) cancels it. This module knows nothing about VFIO: the run checks the request.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from uvfio.cli import output
from uvfio.cli.usage import DEVICE_HELP, parser
from uvfio.errors import VfioError

if TYPE_CHECKING:
    import argparse

__all__ = ["ctl"]


class Refused(VfioError):
    """The run refused the request, or no run answers."""


def ctl(words: list[str]) -> int:
    """``uvfio ctl SOCKET VERB ...``"""
    args = _parser().parse_args(words)
    given = {key: value for key, value in vars(args).items() if value is not None}
    request = {key: value for key, value in given.items() if value is not False}
    path, as_json = request.pop("socket"), request.pop("json", False)
    answer = ask(path, request)
    if as_json:
        output.print_json(answer)
    elif args.verb == "status":
        _print_status(answer)
    elif args.verb == "plug":
        print(answer["address"])
    return 0


def _parser() -> argparse.ArgumentParser:
    top = parser("ctl", "change the machine of a running `uvfio run --control SOCKET`", DEVICE_HELP)
    top.add_argument("socket", metavar="SOCKET", help="what was given to --control")
    verbs = top.add_subparsers(dest="verb", metavar="VERB", required=True)
    plug = verbs.add_parser("plug", help="plug a device in; prints its address")
    plug.add_argument("device", metavar="DEVICE")
    unplug = verbs.add_parser("unplug", help="pull a device out, whoever uses it")
    bind = verbs.add_parser("bind", help="give a device to a driver (vfio-pci)")
    unbind = verbs.add_parser("unbind", help="take a device from its driver")
    numvfs = verbs.add_parser("numvfs", help="have so many virtual functions of a physical one")
    for each in (unplug, bind, unbind, numvfs):
        each.add_argument("address", metavar="ADDRESS")
    bind.add_argument("driver", metavar="DRIVER", nargs="?")
    numvfs.add_argument("number", metavar="NUMBER", type=int)
    for each in (unbind, numvfs):
        each.add_argument(
            "--timeout",
            type=float,
            metavar="S",
            help="wait S seconds for its users; 0: do not wait",
        )
        each.add_argument(
            "--revoke", action="store_true", help="take it away from its users after the time-out"
        )
    status = verbs.add_parser("status", help="what is plugged in, open and mapped")
    for each in (plug, unplug, bind, unbind, numvfs, status):
        each.add_argument("--json", action="store_true", help="the answer as JSON")
    return top


def ask(path: str, request: dict[str, Any]) -> dict[str, Any]:
    """Send one request to the run at ``path`` and wait for its answer. Refused."""
    import json
    import socket

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            connection.connect(path)
            connection.sendall(json.dumps(request).encode() + b"\n")
            with connection.makefile("rb") as lines:
                line = lines.readline()
        except OSError as error:
            raise Refused(
                f"no run answers at {path}: {error.strerror or error}",
                "start one with `uvfio run --control " + path + " -- PROGRAM`",
            ) from error
    if not line:
        raise Refused(f"the run at {path} ended before it answered")
    answer: dict[str, Any] = json.loads(line)
    if not answer.get("ok"):
        raise Refused(str(answer.get("error")), str(answer.get("hint") or ""))
    return answer


def _print_status(answer: dict[str, Any]) -> None:
    rows = [
        (
            device["address"],
            str(device["group"]),
            device["driver"] or "-",
            device["model"],
            f"{device['open_files']} open" if device["open_files"] else "",
        )
        for device in answer["machine"]["devices"]
    ]
    output.table(("ADDRESS", "GROUP", "DRIVER", "MODEL", "FILES"), rows)
    for context in answer["run"]["contexts"]:
        owner = context["owner"] or "nobody"
        print(
            f"group {'+'.join(context['groups'])}: owned by {owner}, "
            f"{context['mappings']} mappings, {context['faults']} faults"
        )
    for device in answer["machine"]["devices"]:
        numbers = device.get("statistics")
        if numbers:
            words = ", ".join(f"{name} {value}" for name, value in numbers.items())
            print(f"{device['address']}: {words}")
        if device.get("mistake"):
            print(device["mistake"])
    run = answer["run"]
    print(f"{run['processes']} processes, {run['open_files']} open VFIO files")
