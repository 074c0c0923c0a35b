"""The files of physical functions in sysfs: how many virtual functions there can be, and how many there are.

A physical function has ``virtfnN`` links besides, and a virtual one ``physfn``; those are in ``machine/sysfs/tree.py``.
Behaviour: drivers/pci/iov.c, sriov_pf_dev_attrs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from uvfio.drivers.pci.sriov import find
from uvfio.errors import InvalidArgument
from uvfio.machine.sysfs.attributes import parse_bool, parse_unsigned, register

if TYPE_CHECKING:
    from collections.abc import Callable

    from uvfio.core.waiting import Wait
    from uvfio.drivers.pci.sriov import Sriov
    from uvfio.machine.machine import Machine

__all__: list[str] = []

_DEVICE = "/sys/bus/pci/devices/*"
_AUTOPROBE = "sriov_drivers_autoprobe"
_U16 = 0xFFFF


def physical(machine: Machine, address: str) -> bool:
    return find(machine.function(address)) is not None


def numvfs(machine: Machine, address: str) -> str:
    return str(len(machine.slot(address).virtual))


def set_numvfs(machine: Machine, address: str, text: str) -> Wait | None:
    """sriov_numvfs_store: InvalidArgument for what is no number of 16 bits, then what ``begin_numvfs`` refuses."""
    try:
        number = parse_unsigned(text)
    except InvalidArgument as error:
        error.errno = InvalidArgument.default_errno
        raise
    if number > _U16:
        raise InvalidArgument(f"{number} does not fit 16 bits")
    return machine.begin_numvfs(address, number)


def autoprobe(machine: Machine, address: str) -> str:
    return str(machine.slot(address).settings.get(_AUTOPROBE, 1))


def set_autoprobe(machine: Machine, address: str, text: str) -> None:
    """Remembered. It concerns no VF of vfio-pci: those have an override, which counts (pci_device_can_probe)."""
    machine.slot(address).settings[_AUTOPROBE] = int(parse_bool(text))


def _register_fact(name: str, fact: Callable[[Sriov], str]) -> None:
    def show(machine: Machine, address: str) -> str:
        sriov = find(machine.function(address))
        return fact(sriov) if sriov else ""

    register(f"{_DEVICE}/{name}", show=show, exists=physical)


_register_fact("sriov_totalvfs", lambda sriov: str(sriov.total))
register(f"{_DEVICE}/sriov_numvfs", show=numvfs, store=set_numvfs, exists=physical)
_register_fact("sriov_offset", lambda sriov: str(sriov.first))
_register_fact("sriov_stride", lambda sriov: str(sriov.stride))
_register_fact("sriov_vf_device", lambda sriov: f"{sriov.device_id:x}")
register(f"{_DEVICE}/{_AUTOPROBE}", show=autoprobe, store=set_autoprobe, exists=physical)
