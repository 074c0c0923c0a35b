"""Everything that the author of a model imports, in one place::

    from uvfio.kit import PciModel, Register, RegisterBar, RegisterMap

The names live in the modules around this one, which state their rules; nothing is defined here.

Devices of the platform bus are made of registers and options as well, and of what ``uvfio.kit.platform`` has
besides: it is not part of this module, so that PCI models do not load it. Nor are ``uvfio.kit.dma_window`` (DMA for
devices that make millions of accesses) and ``uvfio.kit.wire`` (wires between network devices).
"""

from __future__ import annotations

from uvfio.core.seams import Timer
from uvfio.drivers.pci.hardware import BarKind
from uvfio.drivers.pci.sriov import routing_id
from uvfio.errors import DmaFault, InvalidArgument
from uvfio.kit.option import Option, not_negative
from uvfio.kit.pci.bar import MemoryBar, RegisterBar
from uvfio.kit.pci.capability import (
    AdvancedErrorReporting,
    AdvancedFeatures,
    Capability,
    Msi,
    MsiX,
    PciExpress,
    PowerManagement,
    RawCapability,
    RawExtendedCapability,
    SerialNumber,
    VendorSpecific,
)
from uvfio.kit.pci.model import PciModel
from uvfio.kit.pci.sriov import Sriov
from uvfio.kit.register import Register, RegisterArray, RegisterMap

__all__ = [
    "AdvancedErrorReporting",
    "AdvancedFeatures",
    "BarKind",
    "Capability",
    "DmaFault",
    "InvalidArgument",
    "MemoryBar",
    "Msi",
    "MsiX",
    "Option",
    "PciExpress",
    "PciModel",
    "PowerManagement",
    "RawCapability",
    "RawExtendedCapability",
    "Register",
    "RegisterArray",
    "RegisterBar",
    "RegisterMap",
    "SerialNumber",
    "Sriov",
    "Timer",
    "VendorSpecific",
    "not_negative",
    "routing_id",
]
