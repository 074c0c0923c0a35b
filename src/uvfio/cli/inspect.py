"""``uvfio list``, ``tree`` and ``show``: build the machine that is described, and print what it is.

Everything printed comes from ``Machine.describe``; ``--json`` prints that itself. Names of vendors,
devices and classes are added from the system's pci.ids and are never part of the JSON.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from uvfio.cli import output
from uvfio.cli.pciids import PciIds
from uvfio.cli.usage import DEVICE_HELP, add_json, add_machine, machine_spec, parser

if TYPE_CHECKING:
    from collections.abc import Sequence

    from uvfio.machine.machine import Machine

    Facts = Sequence[tuple[str, str | Sequence[str]]]

__all__ = ["list_", "show", "tree"]

_NO_IOMMU = "no IOMMU: DMA leads nowhere"
_KINDS = {
    "mem32": "memory, 32 bits",
    "mem64": "memory, 64 bits",
    "io": "I/O ports",
    "rom": "expansion ROM",
    "vf mem32": "memory, 32 bits, of all VFs",
    "vf mem64": "memory, 64 bits, of all VFs",
}


def list_(words: list[str]) -> int:
    """``uvfio list``"""
    machine, args = _machine("list", "list the machine's devices", words)
    devices: list[dict[str, Any]] = machine.describe()["devices"]
    if args.json:
        output.print_json(devices)
        return 0
    names = PciIds()
    output.table(
        ("ADDRESS", "GROUP", "DRIVER", "ID", "MODEL", "NAME"),
        [
            (
                dev["address"],
                str(dev["group"]),
                dev["driver"] or "-",
                _id(dev),
                dev["model"],
                _name(dev, names) + _in_brackets(_kin(dev)),
            )
            for dev in devices
        ],
    )
    return 0


def tree(words: list[str]) -> int:
    """``uvfio tree``"""
    machine, args = _machine("tree", "show the devices by IOMMU group", words)
    about = machine.describe()
    if args.json:
        output.print_json(about)
        return 0
    output.tree(picture(about))
    return 0


def picture(about: dict[str, Any]) -> output.Branch:
    """What ``Machine.describe`` returned, as a tree of IOMMUs, groups and devices."""
    names = PciIds()
    devices: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for dev in about["devices"]:
        devices.setdefault((dev["bus"], dev["group"]), []).append(dev)
    iommus = [
        output.Branch(
            f"{iommu['name']}: {_iommu(iommu)}",
            [
                _picture_of_group(group, devices, names)
                for group in about["groups"]
                if group["iommu"] == iommu["name"]
            ],
        )
        for iommu in about["iommus"]
    ]
    alone = [
        _picture_of_group(group, devices, names) for group in about["groups"] if not group["iommu"]
    ]
    if alone:
        iommus.append(output.Branch(_NO_IOMMU, alone))
    return iommus[0] if len(iommus) == 1 else output.Branch("machine", iommus)


def _picture_of_group(
    group: dict[str, Any], devices: dict[tuple[str, int], list[dict[str, Any]]], names: PciIds
) -> output.Branch:
    return output.Branch(
        f"group {group['number']}: {group['node']}, {_state(group)}",
        [
            output.Branch(
                f"{dev['address']}  {_id(dev)}  {dev['model']}, driver {dev['driver'] or 'none'}"
                + _in_brackets(_name(dev, names))
                + _in_brackets(_kin(dev))
            )
            for dev in devices.get((group["bus"], group["number"]), ())
        ],
    )


def show(words: list[str]) -> int:
    """``uvfio show ADDRESS``"""
    machine, args = _machine("show", "show everything about one device", words, address=True)
    slot = machine.slot(args.address)
    about = machine.describe()
    dev = next(d for d in about["devices"] if d["address"] == slot.address)
    group = next(
        g for g in about["groups"] if (g["bus"], g["number"]) == (dev["bus"], dev["group"])
    )
    iommu = next((unit for unit in about["iommus"] if unit["name"] == dev["iommu"]), None)
    if args.json:
        output.print_json({"device": dev, "group": group, "iommu": iommu})
        return 0
    names = PciIds()
    options = ", ".join(f"{key}={value}" for key, value in dev["options"].items())
    before, after = _function(dev, names) if dev["bus"] == "pci" else _platform_device(dev)
    output.facts(
        f"{dev['address']}  {dev['model']}" + _in_brackets(_name(dev, names)),
        [
            *before,
            ("options", options),
            ("driver", dev["driver"] or "none"),
            ("group", f"{group['number']}: {group['node']}, {_state(group)}"),
            ("with", [other for other in group["devices"] if other != dev["address"]]),
            ("iommu", f"{iommu['name']}: {_iommu(iommu)}" if iommu else _NO_IOMMU),
            *after,
            ("reset", ", ".join(dev["reset_methods"]) or "none"),
        ],
    )
    return 0


def _function(dev: dict[str, Any], names: PciIds) -> tuple[Facts, Facts]:
    """What only a PCI function has: identity, resources, capabilities."""
    return [
        ("id", _id(dev) + _in_brackets(_name(dev, names))),
        ("subsystem", _subsystem(dev, names)),
        ("class", dev["class"] + _in_brackets(names.class_(dev["class"]))),
        ("revision", f"{dev['revision']:02x}"),
        ("sriov", _sriov(dev)),
        ("physfn", dev["physfn"] or ""),
    ], [
        ("config", f"{dev['config_size']} bytes"),
        ("regions", [_region(resource) for resource in dev["resources"]]),
        ("capabilities", [_capability(cap) for cap in dev["capabilities"]]),
        ("interrupts", _interrupts(dev["interrupts"]) or "none"),
    ]


def _platform_device(dev: dict[str, Any]) -> tuple[Facts, Facts]:
    """What only a platform device has."""
    lines = [
        f"{line['index']}: {line['number']}, {line['trigger']} ({_origin(line)})"
        for line in dev["interrupt_lines"]
    ]
    return [
        ("node", dev["node"]),
        ("compatible", dev["compatible"]),
    ], [
        ("regions", [_platform_region(resource) for resource in dev["resources"]] or "none"),
        ("interrupts", lines or "none"),
    ]


def _machine(
    verb: str, what: str, words: list[str], *, address: bool = False
) -> tuple[Machine, Any]:
    options = parser(verb, what, DEVICE_HELP)
    if address:
        options.add_argument(
            "address",
            metavar="ADDRESS",
            help="0000:06:0d.0; of a platform device its name or the path of its node",
        )
    add_machine(options)
    add_json(options)
    args = options.parse_args(words)
    spec = machine_spec(args.machine, args.device)

    from uvfio.machine.machine import Machine

    return Machine(spec), args


def _id(dev: dict[str, Any]) -> str:
    """What drivers recognise the device by."""
    return f"{dev['vendor']}:{dev['device']}" if dev["bus"] == "pci" else dev["compatible"][0]


def _name(dev: dict[str, Any], names: PciIds) -> str:
    if dev["bus"] != "pci":
        return str(dev["node"])
    vendor = names.vendor(dev["vendor"])
    device = names.device(dev["vendor"], dev["device"])
    return f"{vendor} {device}".strip() or names.class_(dev["class"])


def _kin(dev: dict[str, Any]) -> str:
    """How a physical and a virtual function belong together."""
    if dev["bus"] != "pci":
        return ""
    if dev["physfn"]:
        return f"VF of {dev['physfn']}"
    return f"PF, {dev['sriov']['numvfs']} of {dev['sriov']['totalvfs']} VFs" if dev["sriov"] else ""


def _sriov(dev: dict[str, Any]) -> list[str]:
    """How many virtual functions there are and can be, and which."""
    about = dev["sriov"]
    if not about:
        return []
    return [f"{about['numvfs']} of {about['totalvfs']} virtual functions", *about["vfs"]]


def _subsystem(dev: dict[str, Any], names: PciIds) -> str:
    if dev["subsystem_vendor"] == "0000":
        return ""
    numbers = f"{dev['subsystem_vendor']}:{dev['subsystem_device']}"
    return numbers + _in_brackets(names.vendor(dev["subsystem_vendor"]))


def _in_brackets(text: str) -> str:
    return f" ({text})" if text else ""


def _state(group: dict[str, Any]) -> str:
    if group["viable"]:
        return "viable"
    return str(group["not_viable_because"] or "not viable")


def _iommu(about: dict[str, Any]) -> str:
    parts = [
        f"{about['address_bits']} bits",
        "pages " + " ".join(output.size(size) for size in about["page_sizes"]),
        "coherent" if about["coherent"] else "not coherent",
    ]
    if about["interrupt_remapping"]:
        parts.append("interrupt remapping")
    elif about["allow_unsafe_interrupts"]:
        parts.append("no interrupt remapping (allowed)")
    else:
        parts.append("no interrupt remapping: VFIO refuses its devices")
    return ", ".join(parts)


def _region(resource: dict[str, Any]) -> str:
    name = "ROM" if resource["kind"] == "rom" else f"BAR {resource['index']}"
    if resource["kind"].startswith("vf "):
        name = f"VF BAR {resource['index'] - 7}"
    kind = _KINDS[resource["kind"]]
    if resource["prefetchable"]:
        kind += ", prefetchable"
    if resource["mappable"]:
        kind += f", can be mapped ({resource['mapping']})"
    where = f"at {resource['start']:#x}" if resource["start"] else "without an address"
    return f"{name}: {output.size(resource['size'])} {where} ({kind})"


def _platform_region(resource: dict[str, Any]) -> str:
    mapping = f", can be mapped ({resource['mapping']})" if resource["mappable"] else ""
    kind = resource["kind"] + mapping
    where = f"{output.size(resource['size'])} at {resource['start']:#x}"
    return f"{resource['index']}: {where} ({kind}; {_origin(resource)})"


def _origin(resource: dict[str, Any]) -> str:
    return f"{resource['node']} {resource['property']}[{resource['entry']}]"


def _capability(cap: dict[str, Any]) -> str:
    return f"{cap['offset']:#x}: {cap['name']}" + (" (extended)" if cap["extended"] else "")


def _interrupts(counts: dict[str, int]) -> str:
    parts = ["INTx"] if counts["intx"] else []
    for name, key in (("MSI", "msi"), ("MSI-X", "msix")):
        if counts[key]:
            parts.append(f"{name} {counts[key]}")
    return ", ".join(parts)
