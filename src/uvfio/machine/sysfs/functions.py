"""The files of a PCI function in sysfs that are not plain facts of its identity (drivers/pci/pci-sysfs.c).

What is written and remembered (``numa_node``, ``msi_bus``...) lives in ``Slot.settings`` and goes with the device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from uvfio.core.waiting import Then
from uvfio.errors import Busy, InvalidArgument
from uvfio.machine.facts import capabilities, config_space
from uvfio.machine.spec import NO_DRIVER
from uvfio.machine.sysfs.attributes import parse_unsigned, register
from uvfio.uapi import pci

if TYPE_CHECKING:
    from collections.abc import Callable

    from uvfio.core.waiting import Wait
    from uvfio.kit.pci.model import PciModel
    from uvfio.machine.machine import Machine

__all__: list[str] = []

_DEVICE = "/sys/bus/pci/devices/*"
_SPEEDS = ("Unknown", "2.5", "5.0", "8.0", "16.0", "32.0", "64.0")
_NO_NODE = -1
_DECODES = pci.PCI_COMMAND_IO | pci.PCI_COMMAND_MEMORY


def _capability(function: PciModel, number: int) -> int:
    """Where the capability is, or 0."""
    found = (cap.offset for cap in capabilities(function) if not cap.extended and cap.id == number)
    return next(found, 0)


# -- configuration space -------------------------------------------------------------------------


def load_config(machine: Machine, address: str, offset: int, count: int) -> bytes:
    """pci_read_config: what is inside, nothing beyond the end."""
    return config_space(machine.function(address))[offset : offset + count]


def save_config(machine: Machine, address: str, offset: int, data: bytes) -> int:
    """pci_write_config: what is inside, in aligned pieces of 4, 2 and 1; 0 bytes at the end."""
    function = machine.function(address)
    data = data[: max(function.config_size - offset, 0)]
    at = 0
    while at < len(data):
        left, place = len(data) - at, offset + at
        size = next(n for n in (4, 2, 1) if left >= n and place % n == 0)
        function.config_write(place, int.from_bytes(data[at : at + size], "little"), size)
        at += size
    return len(data)


# -- enable, reset, remove -----------------------------------------------------------------------


def _enabled(machine: Machine, address: str) -> int:
    """How often the function is enabled: by this file, by its driver, by VFIO's while it is open."""
    slot = machine.slot(address)
    vfio = slot.driver == slot.vfio_driver
    by_driver = machine.record(address).in_use if vfio else slot.driver != NO_DRIVER
    return slot.settings.get("enable", 0) + by_driver


def enable(machine: Machine, address: str) -> str:
    return str(_enabled(machine, address))


def set_enable(machine: Machine, address: str, text: str) -> None:
    """enable_store: Busy (EBUSY) with a driver, InvalidArgument (EIO) for one disable too many."""
    value, slot = parse_unsigned(text), machine.slot(address)
    if slot.driver != NO_DRIVER:
        raise Busy(f"{address} is bound to {slot.driver}")
    function = slot.function
    command = function.config_read(pci.PCI_COMMAND, 2)
    count = slot.settings.get("enable", 0)
    if value:
        count += 1
        command |= _DECODES
    elif not count:
        raise InvalidArgument(f"{address} is not enabled", errno=5)
    else:
        count -= 1
        command &= ~pci.PCI_COMMAND_MASTER if not count else ~0
    function.config_write(pci.PCI_COMMAND, command & 0xFFFF, 2)
    slot.settings["enable"] = count


def has_reset(machine: Machine, address: str) -> bool:
    return bool(machine.function(address).reset_methods)


def reset(machine: Machine, address: str, text: str) -> None:
    """reset_store: a function reset around which the host's registers are kept."""
    if parse_unsigned(text) != 1:
        raise InvalidArgument(f"{text.rstrip()} is not 1")
    machine.reset(address)


def reset_method(machine: Machine, address: str) -> str:
    return " ".join(machine.function(address).reset_methods)


def remove(machine: Machine, address: str, text: str) -> Wait | None:
    """remove_store: the driver lets go first, then the device is gone until a rescan."""
    if not parse_unsigned(text):
        return None
    slot = machine.slot(address)
    machine.check_unplug(slot)
    if slot.driver != NO_DRIVER:
        wait = machine.begin_unbind(address)
        if wait is not None:
            return Then(wait, lambda: machine.binding.remove(slot))
    machine.binding.remove(slot)
    return None


# -- settings ------------------------------------------------------------------------------------


def numa_node(machine: Machine, address: str) -> str:
    return str(machine.slot(address).settings.get("numa_node", _NO_NODE))


def set_numa_node(machine: Machine, address: str, text: str) -> None:
    """numa_node_store: the machine has node 0; -1 is none. InvalidArgument for others."""
    node = _NO_NODE if text.removesuffix("\n") == str(_NO_NODE) else parse_unsigned(text)
    if node not in (_NO_NODE, 0):
        raise InvalidArgument(f"there is no node {node}", "0 is the only one, -1 none")
    machine.slot(address).settings["numa_node"] = node


def _register_flag(name: str, default: int) -> None:
    """A file that remembers whether it is 0."""

    def show(machine: Machine, address: str) -> str:
        return str(machine.slot(address).settings.get(name, default))

    def store(machine: Machine, address: str, text: str) -> None:
        machine.slot(address).settings[name] = int(parse_unsigned(text) != 0)

    register(f"{_DEVICE}/{name}", show=show, store=store)


# -- facts ---------------------------------------------------------------------------------------


def power_state(machine: Machine, address: str) -> str:
    """D0 to D3hot, as the power management capability says."""
    function = machine.function(address)
    at = _capability(function, pci.PCI_CAP_ID_PM)
    if not at:
        return "D0" if _enabled(machine, address) else "unknown"
    state = function.config_read(at + pci.PCI_PM_CTRL, 2) & pci.PCI_PM_CTRL_STATE_MASK
    return ("D0", "D1", "D2", "D3hot")[state]


def local_cpus(machine: Machine, address: str) -> str:
    """All processors of the host, as a mask in words of 32 bits (%*pb)."""
    count = machine.processors
    words: list[str] = []
    while count > 0:
        bits = min(count, 32)
        words.append(f"{(1 << bits) - 1:0{-(-bits // 4)}x}")
        count -= 32
    return ",".join(reversed(words))


def local_cpulist(machine: Machine, address: str) -> str:
    """All processors of the host, as a list of ranges (%*pbl)."""
    last = machine.processors - 1
    return f"0-{last}" if last else "0"


def has_link(machine: Machine, address: str) -> bool:
    return bool(_capability(machine.function(address), pci.PCI_CAP_ID_EXP))


def _link(register_: int, size: int) -> Callable[[Machine, str], int]:
    def read(machine: Machine, address: str) -> int:
        function = machine.function(address)
        at = _capability(function, pci.PCI_CAP_ID_EXP)
        return function.config_read(at + register_, size)

    return read


def _register_link(kind: str, read: Callable[[Machine, str], int]) -> None:
    def speed(machine: Machine, address: str) -> str:
        value = read(machine, address) & 0xF
        return f"{_SPEEDS[value]} GT/s PCIe" if 0 < value < len(_SPEEDS) else "Unknown"

    def width(machine: Machine, address: str) -> str:
        return str(read(machine, address) >> pci.PCI_EXP_LNKSTA_NLW_SHIFT & 0x3F)

    register(f"{_DEVICE}/{kind}_link_speed", show=speed, exists=has_link)
    register(f"{_DEVICE}/{kind}_link_width", show=width, exists=has_link)


def _constant(text: str) -> Callable[[Machine, str], str]:
    return lambda machine, address: text


register(f"{_DEVICE}/config", load=load_config, save=save_config)
register(f"{_DEVICE}/enable", show=enable, store=set_enable)
register(f"{_DEVICE}/reset", store=reset, exists=has_reset)
register(f"{_DEVICE}/reset_method", show=reset_method, exists=has_reset)
register(f"{_DEVICE}/remove", store=remove)
register(f"{_DEVICE}/numa_node", show=numa_node, store=set_numa_node)
_register_flag("msi_bus", 1)
_register_flag("broken_parity_status", 0)
_register_flag("d3cold_allowed", 1)
register(f"{_DEVICE}/power_state", show=power_state)
register(f"{_DEVICE}/local_cpus", show=local_cpus)
register(f"{_DEVICE}/local_cpulist", show=local_cpulist)
register(f"{_DEVICE}/dma_mask_bits", show=_constant("32"))
register(f"{_DEVICE}/consistent_dma_mask_bits", show=_constant("32"))
register(f"{_DEVICE}/ari_enabled", show=_constant("0"))
_register_link("max", _link(pci.PCI_EXP_LNKCAP, 4))
_register_link("current", _link(pci.PCI_EXP_LNKSTA, 2))
