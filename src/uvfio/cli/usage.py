"""Command lines: the parser that all verbs but ``run`` use, and the options that describe a machine.

A mistake is a ``UsageError`` with a hint; ``main`` prints it and exits with 2. argparse is imported when
a parser is built.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable

    from uvfio.machine.spec import MachineSpec

__all__ = [
    "HelpShown",
    "UsageError",
    "add_json",
    "add_machine",
    "did_you_mean",
    "machine_spec",
    "parser",
]

DEVICE_HELP = """\
DEVICE = MODEL[@ADDRESS][,group=N][,driver=NAME][,iommu=NAME][,numvfs=N][,key=value...]
  MODEL    a built-in model (`uvfio models`), package.module:Class, or path.py:Class
  ADDRESS  SSSS:BB:DD.F; the next free one if absent. For a platform device the path of its device
           tree node: timer@/soc/timer@10010000
  group    IOMMU group; one of its own if absent
  driver   vfio-pci or vfio-platform (the default), none, or the name of a host driver that owns the device
  iommu    one of the IOMMUs that the machine file names, or none
  numvfs   virtual functions that it has from the start
  key      an option of the model; a comma in a value is written twice
Without -m and -d there is a small default machine: 0000:06:0d.0 and 0000:06:0d.1 (edu) in group 240,
0000:07:00.0 (edu) in group 241."""


class HelpShown(SystemExit):
    """A parser has printed its help; there is nothing else to do. Any other SystemExit is a mistake of a model."""


class UsageError(Exception):
    """The command line makes no sense."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


def did_you_mean(word: str, known: Iterable[str], otherwise: str = "") -> str:
    """A hint with the known word that is closest to ``word``."""
    import difflib

    close = difflib.get_close_matches(word, list(known), 1)
    return f"did you mean {close[0]}?" if close else otherwise


def parser(verb: str, what: str, epilog: str = "") -> argparse.ArgumentParser:
    """An empty parser for ``uvfio VERB``."""
    import argparse

    class Parser(argparse.ArgumentParser):
        def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
            """Raises HelpShown: ``error`` is the only other way out."""
            raise HelpShown(status)

        def error(self, message: str) -> NoReturn:
            """Raises UsageError, with a hint, instead of ending the process."""
            hint = f"see `{self.prog} --help`"
            if message.startswith("unrecognized arguments: "):
                word = message.split()[2]
                message = f"{self.prog}: there is no option {word!r}"
                if not word.startswith("-"):
                    message = f"{self.prog}: one argument too many: {word!r}"
                hint = did_you_mean(word.partition("=")[0], self._option_string_actions, hint)
            else:
                message = f"{self.prog}: {message}"
            raise UsageError(message, hint)

    return Parser(
        prog=f"uvfio {verb}",
        description=what[:1].upper() + what[1:] + ".",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def add_machine(to: argparse.ArgumentParser) -> None:
    """The options -m and -d."""
    to.add_argument(
        "-m", "--machine", metavar="MACHINE.toml", help="the machine described in this file"
    )
    to.add_argument(
        "-d",
        "--device",
        metavar="DEVICE",
        action="append",
        default=[],
        help="a device to plug in; may be given again",
    )


def add_json(to: argparse.ArgumentParser) -> None:
    """The option --json."""
    to.add_argument("--json", action="store_true", help="JSON instead of text")


def machine_spec(file: str | None, devices: Iterable[str]) -> MachineSpec:
    """What -m and -d describe together, or the default machine without both."""
    from uvfio.machine.spec import MachineSpec, default_machine, parse_device

    described = tuple(parse_device(text) for text in devices)
    if file is not None:
        from uvfio.cli.machinefile import load

        return load(file, described)
    return MachineSpec(devices=described) if described else default_machine()
