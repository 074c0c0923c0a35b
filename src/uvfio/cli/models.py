"""``uvfio models``: which device models there are, and everything about one.

``Model.describe`` is what is printed; the text of the model's module, which is its data sheet, is added for
people. Before that the model is plugged into a machine of its own and reset, with the defaults of its options, so that
everything that `uvfio run` would refuse is found here.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from uvfio.cli import output
from uvfio.cli.usage import add_json, parser

if TYPE_CHECKING:
    from uvfio.kit.pci.model import PciModel
    from uvfio.kit.platform.model import PlatformModel

__all__ = ["models"]


def models(words: list[str]) -> int:
    """``uvfio models [NAME]``"""
    options = parser(
        "models",
        "list the device models, or describe one",
        "A model of yours is named package.module:Class or path.py:Class, here as in -d.",
    )
    options.add_argument("name", metavar="NAME", nargs="?", help="the model to describe")
    add_json(options)
    args = options.parse_args(words)

    from uvfio.models import catalogue

    if args.name is not None:
        model = catalogue.find(args.name)
        _try(model)
        if args.json:
            output.print_json({"name": args.name, "doc": _doc(model), **model.describe()})
        else:
            _show(args.name, model)
        return 0
    found = {name: model.describe() for name, model in catalogue.builtin().items()}
    if args.json:
        output.print_json([{"name": name, **about} for name, about in found.items()])
        return 0
    output.table(
        ("MODEL", "ID", "BUS", "WHAT"),
        [
            (name, _id(about), str(about["bus"]), str(about["summary"]))
            for name, about in found.items()
        ],
    )
    return 0


def _try(model: type[PciModel | PlatformModel]) -> None:
    """Make a device of it, and reset it. Raises what `run` would refuse, ModelError for what the reset does."""
    from uvfio.errors import ModelError, ModelMistake
    from uvfio.machine.machine import Machine

    machine = Machine(devices=[model])
    try:
        (slot,) = machine.slots
        slot.device.reset()
    except ModelMistake as mistake:
        raise ModelError(str(mistake), mistake.hint) from mistake
    finally:
        machine.close()


def _show(name: str, model: type[PciModel | PlatformModel]) -> None:
    about: dict[str, Any] = model.describe()
    own: list[tuple[str, str | list[str]]]
    if about["bus"] == "pci":
        own = [
            ("id", _id(about)),
            ("class", about["class_code"]),
            ("revision", f"{about['revision']:02x}"),
            ("BARs", [_region(bar) for bar in about["bars"]]),
            ("capabilities", ", ".join(about["capabilities"])),
        ]
    else:
        own = [
            ("compatible", about["compatible"]),
            ("regions", [_region(region) for region in about["regions"]] or "none"),
            ("interrupts", [_line(line) for line in about["interrupts"]] or "none"),
            ("reset", "yes" if about["resettable"] else "none"),
        ]
    output.facts(
        f"{name}: {about['summary']}",
        [
            ("bus", about["bus"]),
            *own,
            ("Python", about["class"]),
            ("options", [_option(option) for option in about["options"]] or "none"),
        ],
    )
    regions = about["bars"] if about["bus"] == "pci" else about["regions"]
    for region in regions:
        if region["registers"]:
            print(f"\nregisters of {region['name']}:")
            output.table(
                ("OFFSET", "SIZE", "NAME", "ACCESS", "RESET", "FIELDS AND USE"),
                [_register(register) for register in region["registers"]],
            )
    doc = _doc(model)
    if doc:
        print(f"\n{doc}")


def _id(about: dict[str, Any]) -> str:
    """What drivers recognise the device by."""
    if about["bus"] == "pci":
        return f"{about['vendor']}:{about['device']}"
    return str(about["compatible"][0])


def _line(line: dict[str, Any]) -> str:
    below = f", from node {line['node']}" if line["node"] else ""
    return f"{line['index']}: {line['name']} ({line['trigger']}{below})"


def _region(bar: dict[str, Any]) -> str:
    parts = [bar["kind"]]
    if bar.get("node"):
        parts.append(f"from node {bar['node']}")
    if bar.get("prefetchable"):
        parts.append("prefetchable")
    if bar["mappable"]:
        parts.append(f"can be mapped ({bar['mapping']})")
    if bar["registers"]:
        parts.append(f"{len(bar['registers'])} registers")
    return f"{bar['index']}: {bar['name']}, {output.size(bar['size'])} ({', '.join(parts)})"


def _register(register: dict[str, Any]) -> tuple[str, ...]:
    name = register["name"]
    if register["count"] > 1:
        name += f"[{register['count']}]"
        if register["stride"] != register["size"]:
            name += f" every {register['stride']:#x}"
    fields = [
        f"{field} {msb}:{lsb}" if msb != lsb else f"{field} {lsb}"
        for field, (msb, lsb) in register["fields"].items()
    ]
    use = "; ".join(part for part in (", ".join(fields), register["doc"]) if part)
    where, size = f"{register['offset']:#x}", str(register["size"])
    return where, size, name, register["access"], f"{register['reset']:#x}", use


def _option(option: dict[str, Any]) -> str:
    default = option["default"]
    shown = hex(default) if isinstance(default, int) and default > 0xFFFF else repr(default)
    return f"{option['name']}={shown} ({option['type']}): {option['help']}"


def _doc(model: type[PciModel | PlatformModel]) -> str:
    import inspect

    text = inspect.getdoc(sys.modules[model.__module__])
    return text or (inspect.getdoc(model) if model.__doc__ else "") or ""
