"""Device trees as machine files describe them: nodes, what they give to devices, what Linux calls those.

A node with a model is a device. A node without one gives its resources to the device above it: to the nearest
node on its path that has a model. Regions and interrupts of a device are numbered in tree order: its own
node first, then the nodes below in the order of the file, each with all that is below it.

Addresses are the host's physical ones; there are no ``ranges`` that translate them on the way up.

Imported when a device tree is described, or an address is a path.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from uvfio.core.bus import DtProperty
from uvfio.drivers.platform.hardware import Origin, PlatformInterrupt, PlatformRegion, Resources
from uvfio.errors import ConfigError
from uvfio.machine.spec import MAX_NAME, DeviceSpec, parse_number, parse_size

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

__all__ = ["NodeSpec", "check_path", "devices", "platform_name"]

_NAME = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789,._+-")
_LONGEST = 31  # characters of a node's name, without the unit address
_TRIGGERS = {"level": True, "edge": False}


class NodeSpec(NamedTuple):
    """What is written about one node. ``reg`` has (address, size), ``interrupts`` (number, "level" or "edge")."""

    model: str | None = None
    group: int | None = None
    driver: str | None = None
    iommu: str | None = None
    options: Mapping[str, object] | None = None
    reg: Sequence[tuple[str | int, str | int]] = ()
    interrupts: Sequence[tuple[str | int, str]] = ()


def check_path(path: str, source: str = "") -> None:
    """ConfigError unless ``path`` is the full path of a node ("/soc/timer@10010000")."""
    prefix = f"{source}: " if source else ""
    if len(path) > MAX_NAME:
        raise ConfigError(
            f"{prefix}address {path[:60]!r}... has {len(path)} characters",
            f"a path has at most {MAX_NAME}, because the name of the device is made of it",
        )
    parts = path.split("/")
    for part in parts[1:]:
        name, at, unit = part.partition("@")
        if (
            not 0 < len(name) <= _LONGEST
            or name in (".", "..")
            or not _NAME.issuperset(name)
            or (at and (not unit or not _NAME.issuperset(unit)))
        ):
            raise ConfigError(
                f"{prefix}address {path!r} is not the path of a device tree node: {part!r}",
                "for example /soc/timer@10010000",
            )


def devices(nodes: Mapping[str, NodeSpec], source: str) -> list[DeviceSpec]:
    """The devices that the nodes describe, in tree order. ``source`` names the file. ConfigError."""
    for path in nodes:
        where = f'{source}: device_tree."{path}"'
        if not path.startswith("/"):
            raise ConfigError(f"{where}: the path does not begin with /", "for example /soc/timer")
        check_path(path, where)
    regions: dict[str, list[PlatformRegion]] = {}
    interrupts: dict[str, list[PlatformInterrupt]] = {}
    for path in _tree_order(nodes):
        node, where = nodes[path], f'{source}: device_tree."{path}"'
        owner = _owner(path, nodes)
        if owner is None:
            _refuse_resources(node, where)
            continue
        if node.model is None:
            _refuse_device_keys(node, where)
        else:
            regions[path], interrupts[path] = [], []
        regions[owner] += _regions(node, path, where)
        interrupts[owner] += _interrupts(node, path, where)
    return [
        _device(
            path,
            nodes[path],
            Resources(path, tuple(regions[path]), tuple(interrupts[path]), source),
        )
        for path in regions
    ]


def platform_name(resources: Resources) -> str:
    """What Linux calls the device (of_device_make_bus_id in drivers/of/platform.c).

    The address of the node's first ``reg`` entry and its name: "10010000.timer". Without such an entry the
    names on the way to the root: "soc:timer".
    """
    *above, name = resources.path.strip("/").split("/")
    for region in resources.regions:
        origin = region.origin
        if origin.path == resources.path and origin.prop is DtProperty.REG and not origin.entry:
            return f"{region.address:x}.{name.partition('@')[0]}"
    return ":".join([*above, name])


def _device(path: str, node: NodeSpec, resources: Resources) -> DeviceSpec:
    assert node.model is not None
    said: dict[str, Any] = {} if node.driver is None else {"driver": node.driver}
    return DeviceSpec(
        model=node.model,
        address=path,
        group=node.group,
        options=node.options or {},
        source=resources.where(path),
        iommu=node.iommu,
        resources=resources,
        **said,
    )


def _tree_order(nodes: Mapping[str, NodeSpec]) -> Iterator[str]:
    """The paths, each node before what is below it, neighbours in the order of the file."""
    children: dict[str, dict[str, None]] = {}
    for path in nodes:
        above = ""
        for part in path[1:].split("/"):
            below = f"{above}/{part}"
            children.setdefault(above, {})[below] = None
            above = below

    def walk(at: str) -> Iterator[str]:
        if at in nodes:
            yield at
        for below in children.get(at, ()):
            yield from walk(below)

    return walk("")


def _owner(path: str, nodes: Mapping[str, NodeSpec]) -> str | None:
    """The nearest node on the way up that has a model; the node itself if it has one."""
    while path:
        node = nodes.get(path)
        if node is not None and node.model is not None:
            return path
        path = path.rpartition("/")[0]
    return None


def _regions(node: NodeSpec, path: str, where: str) -> list[PlatformRegion]:
    found = []
    for entry, (first, bytes_) in enumerate(node.reg):
        key = f"reg[{entry}]"
        address = parse_number(first, where, f"{key} address")
        size = parse_size(bytes_, where, f"{key} size")
        if not 0 <= address < address + size <= 1 << 64:
            raise ConfigError(
                f"{where}: {key} {address:#x}+{size:#x} is not a range of 64-bit addresses"
            )
        found.append(PlatformRegion(Origin(path, DtProperty.REG, entry), address, size))
    return found


def _interrupts(node: NodeSpec, path: str, where: str) -> list[PlatformInterrupt]:
    found = []
    for entry, (input_, trigger) in enumerate(node.interrupts):
        key = f"interrupts[{entry}]"
        number = parse_number(input_, where, key)
        if not 0 <= number < 1 << 32:
            raise ConfigError(f"{where}: {key} {number} is out of range, 0 to {(1 << 32) - 1}")
        if trigger not in _TRIGGERS:
            raise ConfigError(f"{where}: {key} {trigger!r} is neither 'level' nor 'edge'")
        origin = Origin(path, DtProperty.INTERRUPTS, entry)
        found.append(PlatformInterrupt(origin, number, _TRIGGERS[trigger]))
    return found


def _refuse_resources(node: NodeSpec, where: str) -> None:
    for key, given in (("reg", node.reg), ("interrupts", node.interrupts)):
        if given:
            raise ConfigError(
                f"{where}: {key} belongs to no device",
                "give this node a model, or one above it",
            )
    _refuse_device_keys(node, where)


def _refuse_device_keys(node: NodeSpec, where: str) -> None:
    for key in ("group", "driver", "iommu", "options"):
        if getattr(node, key) is not None:
            raise ConfigError(
                f"{where}: {key} = {getattr(node, key)!r} is for devices, and this node has no model",
                "give it to the node with the model",
            )
