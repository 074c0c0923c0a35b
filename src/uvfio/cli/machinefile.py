"""Machine files: TOML to ``MachineSpec``.

The shape of the file is a few typed structs; msgspec checks it and this module turns its complaint into
one line that names the file, the key and the value. Tables whose names the file chooses (``[iommu.NAME]``,
``[device_tree."/PATH"]``) are checked one by one, because msgspec does not say which of them is wrong. What
the values mean is checked by ``machine/spec.py`` and ``machine/device_tree.py``, as for every other notation.

A relative ``path.py:Class`` is relative to the file, so that a machine file works from any directory.

Imported only when a machine file is given: tomllib and msgspec cost more time than the rest of the start
of a program under ``uvfio run``.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from uvfio.errors import ConfigError
from uvfio.machine.spec import (
    DeviceSpec,
    IommuSpec,
    MachineSpec,
    in_folder,
    parse_number,
    parse_size,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["load", "parse"]


class _Iommu(msgspec.Struct, forbid_unknown_fields=True):
    interrupt_remapping: bool | None = None
    coherent: bool | None = None
    page_sizes: list[str | int] | None = None
    address_bits: int | None = None
    reserved: list[tuple[str | int, str | int]] | None = None
    dma_entry_limit: int | None = None
    allow_unsafe_interrupts: bool | None = None
    enable_sriov: bool | None = None
    enable_unsafe_noiommu_mode: bool | None = None


class _Unit(msgspec.Struct, forbid_unknown_fields=True):
    """A further IOMMU; what it does not say is as in ``_Iommu``."""

    interrupt_remapping: bool | None = None
    coherent: bool | None = None
    page_sizes: list[str | int] | None = None
    address_bits: int | None = None
    reserved: list[tuple[str | int, str | int]] | None = None


class _Device(msgspec.Struct, forbid_unknown_fields=True):
    model: str
    address: str | None = None
    group: int | None = None
    driver: str | None = None
    iommu: str | None = None
    numvfs: int = 0
    options: dict[str, Any] = {}


class _Node(msgspec.Struct, forbid_unknown_fields=True):
    model: str | None = None
    group: int | None = None
    driver: str | None = None
    iommu: str | None = None
    options: dict[str, Any] | None = None
    reg: list[tuple[str | int, str | int]] = []
    interrupts: list[tuple[str | int, str]] = []


class _Machine(msgspec.Struct, forbid_unknown_fields=True):
    iommu: _Iommu = msgspec.field(default_factory=_Iommu)
    device: list[_Device] = []
    device_tree: dict[str, Any] = {}


_FIELDS: dict[str, tuple[str, ...]] = {
    "iommu": _Iommu.__struct_fields__,
    "device": _Device.__struct_fields__,
}
T = TypeVar("T", bound=msgspec.Struct)


def load(path: str, more: Iterable[DeviceSpec] = ()) -> MachineSpec:
    """Read the machine file at ``path``; ``more`` devices are plugged after those of the file."""
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as err:
        raise ConfigError(f"{path}: cannot be read: {err.strerror}") from err
    return parse(data, path, more)


def parse(data: bytes, path: str, more: Iterable[DeviceSpec] = ()) -> MachineSpec:
    """``data`` is the text of the machine file; ``path`` names it in errors and is where it lies."""
    try:
        tables = tomllib.loads(data.decode())
    except UnicodeDecodeError as err:
        raise ConfigError(f"{path}: is not UTF-8 text (byte {err.start})") from err
    except tomllib.TOMLDecodeError as err:
        raise ConfigError(f"{path}: is not TOML: {err}") from err
    units = _take_units(tables)
    machine = _convert(tables, _Machine, path)
    folder = os.path.dirname(path)
    devices = [
        DeviceSpec(
            model=in_folder(dev.model, folder),
            address=dev.address,
            group=dev.group,
            options=dev.options,
            source=f"{path}: device[{index}]",
            iommu=dev.iommu,
            numvfs=dev.numvfs,
            **_said(dev),
        )
        for index, dev in enumerate(machine.device)
    ]
    if machine.device_tree:
        devices += _device_tree(machine.device_tree, path, folder)
    iommu = IommuSpec(**_given(machine.iommu, f"{path}: iommu"), source=f"{path}: iommu")
    iommus = {name: _unit(name, table, iommu, path) for name, table in units.items()}
    return MachineSpec(iommu=iommu, devices=(*devices, *more), iommus=iommus)


def _said(dev: _Device) -> dict[str, Any]:
    """The driver, if one is named; the default is that of the bus."""
    return {} if dev.driver is None else {"driver": dev.driver}


def _take_units(tables: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Take the tables ``[iommu.NAME]`` out of ``tables``. A property's name is never one of an IOMMU."""
    iommu = tables.get("iommu")
    if not isinstance(iommu, dict):
        return {}
    names = [name for name, value in iommu.items() if isinstance(value, dict)]
    names = [name for name in names if name not in _Iommu.__struct_fields__]
    return {name: iommu.pop(name) for name in names}


def _unit(name: str, table: dict[str, Any], above: IommuSpec, path: str) -> IommuSpec:
    """The IOMMU ``[iommu.NAME]``: what the table says, and the rest as ``above``."""
    where = f"iommu.{name}"
    source = f"{path}: {where}"
    return replace(above, **_given(_convert(table, _Unit, path, where), source), source=source)


def _given(table: _Iommu | _Unit, source: str) -> dict[str, Any]:
    """The properties that the table sets, as ``IommuSpec`` takes them."""
    given: dict[str, Any] = {
        name: getattr(table, name)
        for name in table.__struct_fields__
        if getattr(table, name) is not None
    }
    if table.page_sizes is not None:
        sizes = (parse_size(size, source, "page_sizes") for size in table.page_sizes)
        given["page_sizes"] = tuple(sizes)
    if table.reserved is not None:
        given["reserved"] = tuple(
            (parse_number(first, source, "reserved"), parse_number(last, source, "reserved"))
            for first, last in table.reserved
        )
    return given


def _device_tree(tables: dict[str, Any], path: str, folder: str) -> list[DeviceSpec]:
    from uvfio.machine.device_tree import NodeSpec, devices

    nodes = {}
    for name, table in tables.items():
        node = _convert(table, _Node, path, f'device_tree."{name}"')
        values = {key: getattr(node, key) for key in NodeSpec._fields}
        if node.model is not None:
            values["model"] = in_folder(node.model, folder)
        nodes[name] = NodeSpec(**values)
    return devices(nodes, path)


def _convert(table: Any, kind: type[T], path: str, where: str = "") -> T:
    """``table``, which is at ``where`` in the file, as a ``kind``. ConfigError."""
    try:
        return msgspec.convert(table, kind)
    except msgspec.ValidationError as err:
        raise _explain(str(err), table, kind, path, where) from err


def _explain(
    complaint: str, table: Any, kind: type[msgspec.Struct], path: str, where: str
) -> ConfigError:
    """msgspec says "Expected `int`, got `str` - at `$.device[0].group`"; people want the value too."""
    problem, _, at = complaint.partition(" - at ")
    keys = re.findall(r"[^.\[\]$`]+", at)
    inside = re.sub(r"^\$\.?", "", at.strip("`"))
    name = f"{where}.{inside}" if where and inside else where or inside
    value: Any = table
    for key in keys:
        try:
            value = value[int(key)] if isinstance(value, list) else value[key]
        except (KeyError, IndexError, TypeError, ValueError):
            value = None
            break
    field = re.search(r"field `([^`]*)`", problem)
    if field is None:
        table, tables = f"[{name}]", f"[[{name}]]"
        if "." not in name and "expected array, got object" in problem.lower().replace("`", ""):
            wrong = f"{path}: {table} is one table, and there may be several"
            return ConfigError(wrong, f"write {tables}")
        if "." not in name and "expected object, got array" in problem.lower().replace("`", ""):
            return ConfigError(f"{path}: {tables} is a list, and there is one", f"write {table}")
        problem = problem[:1].lower() + problem[1:].replace("`", "").replace(" | null", "")
        return ConfigError(f"{path}: {name} = {_shown(value)}: {problem}")
    key = field[1]
    full = f"{name}.{key}" if name else key
    if "missing" in problem:
        return ConfigError(f"{path}: {full}: this key is required", f'for example {key} = "edu"')
    allowed = _FIELDS[keys[0]] if keys else kind.__struct_fields__
    close = difflib.get_close_matches(key, allowed, 1)
    hint = f"did you mean {close[0]}?" if close else f"keys here: {', '.join(allowed)}"
    found = value.get(key) if isinstance(value, dict) else None
    return ConfigError(f"{path}: {full} = {_shown(found)}: unknown key", hint)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
