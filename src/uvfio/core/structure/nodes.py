"""The part of the framework that deals with iommufds and with devices that are opened by their own nodes.

A device that a VFIO driver has has a node, /dev/vfio/devices/vfioN; N is the lowest free number when it is bound to
the driver. The node can be opened any number of times; one of the files may be bound to an iommufd::

    open --bind_cdev(context)--> bound: the device is open, and an object of the context
                                   | attach, detach: which page table its DMA goes through
                                   +--last close--> detached, unbound

The two ways to a device exclude each other: a group's file cannot be opened while a device of the group is bound
by its own file, nor can a device be bound while the group's file is open. A group's file may join an iommufd
(``join_iommufd``) as it joins a container; its devices are then bound when they are first opened.

An open file of a node keeps the device with its driver, bound or not (``Device.cdevs``).

A refused call changes nothing. Behaviour: drivers/vfio/device_cdev.c, drivers/vfio/iommufd.c, drivers/vfio/group.c.
"""

from __future__ import annotations

from itertools import count
from threading import Condition, RLock
from typing import TYPE_CHECKING

from uvfio.core.bus import TakesToken
from uvfio.core.structure.device import OpenCdev, OpenDevice
from uvfio.errors import Busy, InvalidArgument, NoSuchDevice

if TYPE_CHECKING:
    from uvfio.core.structure.device import Device
    from uvfio.core.structure.group import Group, OpenGroup
    from uvfio.core.structure.iommu import Iommu
    from uvfio.core.structure.iommufd import Iommufd
    from uvfio.core.translation.domain import Domain

__all__ = ["CdevMixin"]


class CdevMixin:
    """See the module's head. Its state and lock are the framework's; ``nodes`` are devices by the N of their node."""

    lock: RLock
    released: Condition
    allow_unsafe_interrupts: bool
    nodes: dict[int, Device]
    generation: int

    if TYPE_CHECKING:

        def _new_domain(self) -> Domain: ...
        def _settle(self, iommu: Iommu) -> None: ...
        def _start(self, opened: OpenDevice) -> None: ...
        def _check_orphan(self, held: OpenGroup) -> None: ...
        def check_no_container(self, held: OpenGroup) -> None: ...
        def close_device(self, opened: OpenDevice) -> None: ...

    # -- nodes -----------------------------------------------------------------------------------

    def _add_node(self, device: Device) -> None:
        number = next(number for number in count() if number not in self.nodes)
        self.nodes[number] = device
        self.generation += 1

    def _forget_nodes(self, group: Group) -> None:
        """Nodes of devices without a VFIO driver go, and who has one open has nothing."""
        for number, device in list(self.nodes.items()):
            if device.group is group and not device.bound:
                del self.nodes[number]
                self.generation += 1
                for held in device.cdevs:
                    held.gone = True
                device.cdevs.clear()

    # -- iommufds --------------------------------------------------------------------------------

    def open_iommufd(self) -> Iommufd:
        """An empty context (iommufd_fops_open)."""
        from uvfio.core.structure.iommufd import Iommufd

        return Iommufd(self.lock, self._new_domain)

    def close_iommufd(self, context: Iommufd) -> None:
        """Its file is closed; it lives on while devices are bound or groups are in it (iommufd_fops_release)."""
        with self.lock:
            context.file_open = False
            context.settle()

    def join_iommufd(self, held: OpenGroup, context: Iommufd) -> None:
        """Put the group into an iommufd as into a container (vfio_group_ioctl_set_container).

        Order: InvalidArgument if it is in one, NoSuchDevice for an orphan, NotOwner. Whether a driver of the host is
        in the way shows when a device is opened.
        """
        from uvfio.core.structure.claim import claim_for

        with self.lock:
            self.check_no_container(held)
            self._check_orphan(held)
            claim = claim_for(context, held.group, allow_unsafe=self.allow_unsafe_interrupts)
            context.make_compat()
            claim.join()

    # -- a device's own file ---------------------------------------------------------------------

    def open_cdev(self, number: int) -> OpenCdev:
        """Open the node vfio``number`` (vfio_device_fops_cdev_open). NoSuchDevice if there is none."""
        with self.lock:
            device = self.nodes.get(number)
            if device is None:
                raise NoSuchDevice(f"there is no device node vfio{number}")
            held = OpenCdev(device)
            device.cdevs.append(held)
            return held

    def close_cdev(self, held: OpenCdev) -> None:
        """Close it: what is bound is unbound."""
        try:
            if held.opened is not None:
                self.close_device(held.opened)
        finally:  # also if the model has a bug: or nobody could unbind the device ever again
            with self.lock:
                if not held.gone:
                    held.device.cdevs.remove(held)
                self.released.notify_all()

    def check_cdev(self, held: OpenCdev) -> None:
        """Busy while the group's file is open, InvalidArgument if the file is bound already."""
        group = held.device.group
        with self.lock:
            if group.is_open:
                raise Busy(f"group {group} is open", "a device is opened by its group or by itself")
            if held.opened is not None:
                raise InvalidArgument(f"this file of {held.device.name} is bound already")

    def bind_cdev(self, held: OpenCdev, context: Iommufd, token: bytes | None) -> int:
        """Open the device for DMA through ``context``; returns its number there (vfio_df_ioctl_bind_iommufd).

        Order: as ``check_cdev``, NoSuchDevice if it lost its driver, what the device says to ``token``, InvalidArgument
        if it is bound by another file, what ``Claim.check_bind`` raises, NotOwner, what the driver's ``get`` raises.
        """
        from uvfio.core.structure.claim import claim_for

        device = held.device
        with self.lock:
            self.check_cdev(held)
            data = device.data
            if held.gone or data is None:
                raise NoSuchDevice(f"{device.name} lost its VFIO driver")
            if isinstance(data, TakesToken):
                data.check_token(token)
            elif token is not None:
                raise InvalidArgument(f"{device.name} takes no token")
            if device.in_use:
                raise InvalidArgument(f"{device.name} is open through another file")
            claim = claim_for(context, device.group, allow_unsafe=self.allow_unsafe_interrupts)
            try:
                number = claim.bind(device)
            except BaseException:
                self._settle(claim)
                raise
            opened = OpenDevice(device, data)
            device.opens.append(opened)
        self._start(opened)
        held.opened, held.context = opened, context
        return number

    def unbind_cdev(self, held: OpenCdev) -> None:
        """Undo ``bind_cdev``."""
        opened, held.opened, held.context = held.opened, None, None
        if opened is not None:
            self.close_device(opened)

    def attach_cdev(self, held: OpenCdev, number: int) -> int:
        """Let its DMA go through object ``number`` of its context; see ``Iommufd.attach``."""
        context = self._context_of(held)
        return context.attach(held.device, number)

    def detach_cdev(self, held: OpenCdev) -> None:
        """Its DMA leads nowhere; nothing if it did before."""
        with self.lock:
            self._context_of(held).assigned(held.device).claim.detach(held.device)

    def number_in(self, context: Iommufd, device: Device | None) -> int | None:
        """The number of a device in a context; 0 if it has none and its group belongs to the context, None if not.

        Behaviour: vfio_iommufd_get_dev_id.
        """
        with self.lock:
            for claim in context.claims:
                if device is not None and claim.owns_dma and claim.group is device.group:
                    bound = claim.bound.get(device)
                    return 0 if bound is None else context.number_of(bound)
        return None

    @staticmethod
    def _context_of(held: OpenCdev) -> Iommufd:
        if held.context is None:
            raise InvalidArgument(f"this file of {held.device.name} is not bound to an iommufd")
        return held.context
