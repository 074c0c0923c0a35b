"""SR-IOV in silicon: the capability of a physical function, and what a virtual function is made of.

A physical function (PF) lists ``Sriov(VfClass, total=4)`` among its capabilities. ``VfClass`` is a model like any
other; made with ``physfn=`` it becomes a virtual function (VF), which differs from an ordinary one as the
specification says (SR-IOV 1.1, 3.4):

    vendor, device id       read ffff: software takes the vendor of the PF and the VF Device ID
    command                 bus master is all there is; memory decoding is VF MSE of the PF
    base address registers  read 0: VF n's BAR is the n-th piece of what VF BARx of the PF says
    INTx                    none: the pin is 0

Life: VFs can be enumerated while the PF's VF Enable is set, and their BARs answer while VF MSE is
set besides. A reset of the PF clears both and resets every VF. NumVFs takes writes only while VF Enable is clear.

What it does not do: VFs are not made here. The machine reads VF Enable and makes them
(``machine/sriov.py``), and lists them in ``PciModel.virtual_functions``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from uvfio.drivers.pci.hardware import BarKind
from uvfio.kit.pci.capability import ExtendedCapability
from uvfio.kit.pci.header import define_bars
from uvfio.uapi import pci

if TYPE_CHECKING:
    from collections.abc import Mapping

    from uvfio.drivers.pci.hardware import Bar
    from uvfio.kit.pci.config import ConfigSpace
    from uvfio.kit.pci.model import PciModel

__all__ = ["Sriov", "follow_control"]

MAX_TOTAL = 0xFF
_PAGE_SIZES = 0x553  # 4K, 8K, 64K, 256K, 1M and 4M: those that every function has to support
_CONTROL = (
    pci.PCI_SRIOV_CTRL_VFE | pci.PCI_SRIOV_CTRL_MSE | pci.PCI_SRIOV_CTRL_ARI
)  # what can be switched


class Sriov(ExtendedCapability):
    """``total`` VFs of the model ``vf`` with its ``options``. VF n has the routing id of the PF plus ``first`` plus n
    times ``stride``; ``device_id`` is what software calls them (default: the model's own).

    ValueError if the VFs cannot be so many, have an I/O BAR, or would be somewhere before their PF.
    """

    number = pci.PCI_EXT_CAP_ID_SRIOV
    size = pci.PCI_EXT_CAP_SRIOV_SIZEOF

    def __init__(
        self,
        vf: type[PciModel],
        total: int,
        *,
        first: int = 0x80,
        stride: int = 1,
        device_id: int | None = None,
        options: Mapping[str, object] = {},
        offset: int = 0,
    ) -> None:
        if not 1 <= total <= MAX_TOTAL:
            raise ValueError(f"SR-IOV VFs must be 1 to {MAX_TOTAL}, not {total}")
        if not 1 <= first <= 0xFFFF or not 1 <= stride <= 0xFFFF:
            raise ValueError(f"SR-IOV offset {first} and stride {stride} must be 1 to 65535")
        self.vf = vf
        self.total = total
        self.first = first
        self.stride = stride
        self.device_id = vf.device_id if device_id is None else device_id
        self.options = options
        self.offset = offset
        self.bars: Mapping[int, Bar] = vf.bars_with(options)
        """The BARs of one VF."""
        for index, bar in self.bars.items():
            if bar.kind is BarKind.IO:
                raise ValueError(f"BAR {index} of {vf.__name__} is I/O, which no VF can have")

    def define(self, config: ConfigSpace, base: int) -> None:
        """Define every register after the header (ID and next pointer), at ``base`` in ``config``."""
        config.define(base + pci.PCI_SRIOV_CAP, 4, 0)
        config.define(base + pci.PCI_SRIOV_CTRL, 2, 0, writable=_CONTROL)
        config.define(base + pci.PCI_SRIOV_INITIAL_VF, 2, self.total)
        config.define(base + pci.PCI_SRIOV_TOTAL_VF, 2, self.total)
        config.define(base + pci.PCI_SRIOV_NUM_VF, 2, 0, writable=0xFFFF)
        config.define(base + pci.PCI_SRIOV_VF_OFFSET, 2, self.first)
        config.define(base + pci.PCI_SRIOV_VF_STRIDE, 2, self.stride)
        config.define(base + pci.PCI_SRIOV_VF_DID, 2, self.device_id)
        config.define(base + pci.PCI_SRIOV_SUP_PGSIZE, 4, _PAGE_SIZES)
        config.define(base + pci.PCI_SRIOV_SYS_PGSIZE, 4, 1, writable=_PAGE_SIZES)
        define_bars(config, self.bars, base + pci.PCI_SRIOV_BAR)


def follow_control(function: PciModel, base: int) -> None:
    """Make the VFs of ``function`` follow the registers of its capability at ``base``."""
    config = function.config
    control, number = base + pci.PCI_SRIOV_CTRL, base + pci.PCI_SRIOV_NUM_VF
    needed = pci.PCI_SRIOV_CTRL_VFE | pci.PCI_SRIOV_CTRL_MSE
    kept = 0

    def control_written() -> None:
        nonlocal kept
        kept = config.get(number, 2)
        on = config.get(control, 2) & needed == needed
        for vf in function.virtual_functions:
            vf.decode(on)

    def number_written() -> None:
        if config.get(control, 2) & pci.PCI_SRIOV_CTRL_VFE:
            config.put(number, 2, kept)

    config.on_write(control, control_written)
    config.on_write(number, number_written)
