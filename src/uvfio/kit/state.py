"""The state of a PCI function as bytes: what migration takes from one model and gives to another of its kind.

Everything that ``PciModel`` itself keeps is saved here: configuration space, registers, the interrupt logic, what is
still to come (``after``). What a model keeps besides, its ``save`` gives and its ``load`` takes. Memory BARs are not
part of it: whoever migrates moves them.

The bytes are sections, little-endian: u16 length of the name, the name, u32 length of the content, the content::

    config          all of configuration space, addresses of the host included
    registers N     of BAR N: a u64 for each value, in the order of their slots
    interrupts      see ``Interrupts.save``
    calls           a line for each: seconds left, the method's name, its arguments (numbers)
    model           what the model's ``save`` gave

``load`` checks all sections before it changes anything; then the model's own ``load`` may still refuse its part.
InvalidArgument for bytes that are not of such a model. A pending call may only name a method that the model's class
has added to ``PciModel``, or ``interrupt``.
"""

from __future__ import annotations

import struct
from functools import partial
from typing import TYPE_CHECKING, Final
from zlib import crc32

from uvfio.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from uvfio.kit.pci.model import PciModel
    from uvfio.kit.pending import PendingCalls

__all__ = ["identity", "load", "pack", "save", "unpack"]

NAME: Final = struct.Struct("<H")
LENGTH: Final = struct.Struct("<I")


def identity(model: PciModel) -> str:
    """Equal for functions that can take each other's state: class, power-on configuration, BARs, registers."""
    kind = type(model)
    bars = " ".join(f"{index}:{bar.size:#x}" for index, bar in model.bars.items())
    registers = " ".join(
        f"{index}:{len(registers.values)}" for index, registers in model.register_maps.items()
    )
    return (
        f"{kind.__qualname__} {kind.vendor_id:04x}:{kind.device_id:04x} "
        f"config {crc32(model.config.power_on):08x} bars {bars} registers {registers}"
    )


def save(model: PciModel, pending: PendingCalls) -> bytes:
    """The state of a paused model. Unsupported for a pending call that has no name."""
    calls = [(repr(left), name, *map(str, args)) for left, name, args in pending.export()]
    sections = {
        "config": bytes(model.config.data),
        "interrupts": model.interrupts.save(),
        "calls": "\n".join(map(" ".join, calls)).encode(),
        "model": model.save(),
    }
    for index, registers in model.register_maps.items():
        values = registers.values
        sections[f"registers {index}"] = struct.pack(f"<{len(values)}Q", *values)
    return pack(sections)


def load(model: PciModel, pending: PendingCalls, state: bytes) -> None:
    """Take over a state. InvalidArgument; see the module's head."""
    sections = unpack(state)
    try:
        config = sections["config"]
        if len(config) != model.config.size:
            raise ValueError(f"configuration space of {len(config)} bytes")
        values = {
            index: struct.unpack(f"<{len(registers.values)}Q", sections[f"registers {index}"])
            for index, registers in model.register_maps.items()
        }
        calls = [_call(model, line) for line in sections["calls"].decode().splitlines()]
        interrupts, own = sections["interrupts"], sections["model"]
        model.interrupts.load(interrupts)
    except (KeyError, ValueError, struct.error) as wrong:
        raise InvalidArgument(
            f"{model.name}: this is no state of such a device: {wrong}"
        ) from wrong
    model.config.data[:] = config
    for index, found in values.items():
        model.register_maps[index].values[:] = found
    model.interrupts.update()
    pending.cancel_all()
    for seconds, callback in calls:
        model.after(seconds, callback)
    model.load(own)


def pack(sections: Mapping[str, bytes]) -> bytes:
    """Sections as bytes."""
    packed = bytearray()
    for name, content in sections.items():
        packed += NAME.pack(len(name)) + name.encode() + LENGTH.pack(len(content)) + content
    return bytes(packed)


def unpack(packed: bytes) -> dict[str, bytes]:
    """The sections, by name. InvalidArgument if they do not fill ``packed`` exactly."""
    sections: dict[str, bytes] = {}
    at = 0
    try:
        while at < len(packed):
            (size,) = NAME.unpack_from(packed, at)
            name = packed[at + NAME.size : at + NAME.size + size].decode("ascii")
            at += NAME.size + size
            (size,) = LENGTH.unpack_from(packed, at)
            at += LENGTH.size
            if name in sections or at + size > len(packed):
                raise ValueError(f"section {name!r} at byte {at}")
            sections[name] = packed[at : at + size]
            at += size
    except (ValueError, struct.error) as wrong:
        raise InvalidArgument(f"the state of the device makes no sense: {wrong}") from wrong
    return sections


def _call(model: PciModel, line: str) -> tuple[float, Callable[[], None]]:
    """One pending call. ValueError if the model has no such method of its own."""
    from uvfio.kit.pci.model import PciModel

    seconds, name, *arguments = line.split(" ")
    left = float(seconds)
    own = any(name in vars(kind) for kind in type(model).__mro__ if kind not in PciModel.__mro__)
    method = getattr(model, name, None)
    if not (own or name == "interrupt") or not callable(method) or not 0 <= left < 1e9:
        raise ValueError(f"pending call {line!r}")
    return left, partial(method, *map(int, arguments)) if arguments else method
