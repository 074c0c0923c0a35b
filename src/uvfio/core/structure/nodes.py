"""The part of the framework that deals with iommufds and with devices that are opened by their own nodes.

A device that is bound to a VFIO driver has a node, /dev/vfio/devices/vfioN; N is the lowest free number at that
moment. The node can be opened any number of times; one of the files may be bound to an iommufd::

    open --bind_cdev(iommufd)--> bound: the device is open, and an object of the iommufd
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
from typing import TYPE_CHECKING

from uvfio.core.bus import TakesToken
from uvfio.core.structure.container import Containers
from uvfio.core.structure.device import OpenCdev, OpenDevice
from uvfio.errors import Busy, InvalidArgument, NoSuchDevice

if TYPE_CHECKING:
    from uvfio.core.structure.device import Device
    from uvfio.core.structure.group import Group, OpenGroup
    from uvfio.core.structure.iommufd import Iommufd

__all__ = ["Nodes"]


class Nodes(Containers):
    """See the module's head."""

    # -- nodes -----------------------------------------------------------------------------------

    def _add_node(self, device: Device) -> None:
        number = next(number for number in count() if number not in self.nodes)
        self.nodes[number] = device
        self.generation += 1

    def _forget_nodes(self, group: Group) -> None:
        """Remove the nodes of the group's devices without a VFIO driver; their open files are good for closing only."""
        for number, device in list(self.nodes.items()):
            if device.group is group and not device.bound:
                del self.nodes[number]
                self.generation += 1
                for held in device.cdevs:
                    held.gone = True
                device.cdevs.clear()

    # -- iommufds --------------------------------------------------------------------------------

    def open_iommufd(self) -> Iommufd:
        """An empty one (iommufd_fops_open)."""
        from uvfio.core.structure.iommufd import Iommufd

        return Iommufd(self.lock, self._new_domain)

    def close_iommufd(self, iommufd: Iommufd) -> None:
        """Its file is closed; it lives on while devices are bound or groups are in it (iommufd_fops_release)."""
        with self.lock:
            iommufd.file_open = False
            iommufd.settle()

    def join_iommufd(self, held: OpenGroup, iommufd: Iommufd) -> None:
        """Put the group into an iommufd as into a container (vfio_group_ioctl_set_container).

        Order: InvalidArgument if it is in one, NoSuchDevice for an orphan, NotOwner. Whether a driver of the host is
        in the way shows when a device is opened.
        """
        from uvfio.core.structure.claim import claim_for

        with self.lock:
            self.check_no_container(held)
            self._check_orphan(held)
            claim = claim_for(iommufd, held.group, allow_unsafe=self.allow_unsafe_interrupts)
            iommufd.make_compat()
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
        finally:  # even if the model has a bug: else the device could never be unbound again
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

    def bind_cdev(self, held: OpenCdev, iommufd: Iommufd, token: bytes | None) -> int:
        """Open the device for DMA through ``iommufd``; returns its number there (vfio_df_ioctl_bind_iommufd).

        Order: as ``check_cdev``, NoSuchDevice if it lost its driver, what ``check_token`` raises, InvalidArgument
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
            claim = claim_for(iommufd, device.group, allow_unsafe=self.allow_unsafe_interrupts)
            try:
                number = claim.bind(device)
            except BaseException:
                self._settle(claim)
                raise
            opened = OpenDevice(device, data)
            device.opens.append(opened)
        self._start(opened)
        held.opened, held.iommufd = opened, iommufd
        return number

    def unbind_cdev(self, held: OpenCdev) -> None:
        """Undo ``bind_cdev``."""
        opened, held.opened, held.iommufd = held.opened, None, None
        if opened is not None:
            self.close_device(opened)

    def attach_cdev(self, held: OpenCdev, number: int) -> int:
        """Let its DMA go through object ``number`` of its iommufd; see ``Iommufd.attach``."""
        iommufd = self._iommufd_of(held)
        return iommufd.attach(held.device, number)

    def detach_cdev(self, held: OpenCdev) -> None:
        """Its DMA leads nowhere; nothing if it did before."""
        with self.lock:
            self._iommufd_of(held).assigned(held.device).claim.detach(held.device)

    def number_in(self, iommufd: Iommufd, device: Device | None) -> int | None:
        """The number of a device in an iommufd; 0 if it has none and its group belongs to the iommufd, None if not.

        Behaviour: vfio_iommufd_get_dev_id.
        """
        with self.lock:
            for claim in iommufd.claims:
                if device is not None and claim.owns_dma and claim.group is device.group:
                    bound = claim.bound.get(device)
                    return 0 if bound is None else iommufd.number_of(bound)
        return None

    @staticmethod
    def _iommufd_of(held: OpenCdev) -> Iommufd:
        if held.iommufd is None:
            raise InvalidArgument(f"this file of {held.device.name} is not bound to an iommufd")
        return held.iommufd
