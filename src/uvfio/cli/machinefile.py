"""Machine files: TOML to ``MachineSpec``.

The shape of the file is two typed structs; msgspec checks it and this module turns its complaint into
one line that names the file, the key and the value. What the values mean is checked by
``machine/spec.py``, as for every other notation.

A relative ``path.py:Class`` is relative to the file, so that a machine file works from any directory.

Imported only when a machine file is given: tomllib and msgspec cost more time than the rest of the start
of a program under ``uvfio run``.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from typing import TYPE_CHECKING, Any

import msgspec

from uvfio.errors import ConfigError
from uvfio.machine.spec import (
    DEFAULT_DRIVER,
    DeviceSpec,
    IommuSpec,
    MachineSpec,
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


class _Device(msgspec.Struct, forbid_unknown_fields=True):
    model: str
    address: str | None = None
    group: int | None = None
    driver: str = DEFAULT_DRIVER
    options: dict[str, Any] = {}


class _Machine(msgspec.Struct, forbid_unknown_fields=True):
    iommu: _Iommu = msgspec.field(default_factory=_Iommu)
    device: list[_Device] = []


_FIELDS: dict[str, tuple[str, ...]] = {
    "": _Machine.__struct_fields__,
    "iommu": _Iommu.__struct_fields__,
    "device": _Device.__struct_fields__,
}


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
    try:
        machine = msgspec.convert(tables, _Machine)
    except msgspec.ValidationError as err:
        raise _explain(str(err), tables, path) from err
    folder = os.path.dirname(path)
    devices = [
        DeviceSpec(
            model=_model(dev.model, folder),
            address=dev.address,
            group=dev.group,
            driver=dev.driver,
            options=dev.options,
            source=f"{path}: device[{index}]",
        )
        for index, dev in enumerate(machine.device)
    ]
    iommu = _iommu(machine.iommu, f"{path}: iommu")
    return MachineSpec(iommu=iommu, devices=(*devices, *more))


def _iommu(table: _Iommu, source: str) -> IommuSpec:
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
    return IommuSpec(**given, source=source)


def _model(model: str, folder: str) -> str:
    file, colon, _ = model.rpartition(":")
    if colon and file.endswith(".py") and not os.path.isabs(file):
        return os.path.join(folder, model)
    return model


def _explain(complaint: str, tables: dict[str, Any], path: str) -> ConfigError:
    """msgspec says "Expected `int`, got `str` - at `$.device[0].group`"; people want the value too."""
    problem, _, at = complaint.partition(" - at ")
    keys = re.findall(r"[^.\[\]$`]+", at)
    name = re.sub(r"^\$\.?", "", at.strip("`"))
    value: Any = tables
    for key in keys:
        try:
            value = value[int(key)] if isinstance(value, list) else value[key]
        except (KeyError, IndexError, TypeError, ValueError):
            value = None
            break
    field = re.search(r"field `([^`]*)`", problem)
    if field is None:
        problem = problem[:1].lower() + problem[1:].replace("`", "").replace(" | null", "")
        return ConfigError(f"{path}: {name} = {_shown(value)}: {problem}")
    key = field[1]
    full = f"{name}.{key}" if name else key
    if "missing" in problem:
        return ConfigError(f"{path}: {full}: this key is required", f'for example {key} = "edu"')
    allowed = _FIELDS[keys[0] if keys else ""]
    close = difflib.get_close_matches(key, allowed, 1)
    hint = f"did you mean {close[0]}?" if close else f"keys here: {', '.join(allowed)}"
    found = value.get(key) if isinstance(value, dict) else None
    return ConfigError(f"{path}: {full} = {_shown(found)}: unknown key", hint)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
