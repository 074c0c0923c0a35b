"""``Iommufd``: one open /dev/iommu: numbered objects, and the groups whose DMA it owns.

Objects have the lowest free number from 1 on, and three kinds::

    Ioas        an address space (core/translation/ioas.py)
    Hwpt        a page table of an address space, for devices behind one IOMMU. ``auto``: made because a device
                was attached to an address space, and gone with the last one that is
    Assigned    a device that is bound to this iommufd

    Assigned --attached to--> Hwpt --translates--> Ioas

An object that another one uses cannot be destroyed, and neither can a device: closing its file unbinds it. All page
tables of an address space translate the same, so they share its one ``Domain``; what a page table adds is the reach of
its IOMMU and that memory is held.

A program may make as many objects as it likes: what an operation costs does not depend on their number.

``claims`` are its groups (``core/structure/claim.py``). It lives while its file is open or it has one of
them; at its end everything is unmapped. Changes happen under the framework's lock, mappings under that of their
domain.

Behaviour: drivers/iommu/iommufd/main.c, hw_pagetable.c, ioas.c (iommufd_ioas_change_process).
"""

from __future__ import annotations

from heapq import heappop, heappush
from typing import TYPE_CHECKING, TypeVar

from uvfio.core.translation.area import Area
from uvfio.core.translation.ioas import Hwpt, Ioas
from uvfio.errors import Busy, InvalidArgument, NoSuchDevice, NoSuchObject, Unsupported

if TYPE_CHECKING:
    from collections.abc import Callable
    from threading import RLock

    from uvfio.core.seams import Mm
    from uvfio.core.structure.claim import Claim
    from uvfio.core.structure.device import Device
    from uvfio.core.translation.domain import Domain
    from uvfio.core.translation.unit import IommuUnit

__all__ = ["Assigned", "Iommufd"]


class Assigned:
    """A bound device. Its file needs it: ``users`` is 1."""

    __slots__ = ("claim", "device", "unit", "users")

    def __init__(self, device: Device, unit: IommuUnit, claim: Claim) -> None:
        self.device = device
        self.unit = unit
        self.claim = claim
        self.users = 1


Object = Ioas | Hwpt | Assigned
ObjectT = TypeVar("ObjectT", bound=Object)


class Iommufd:
    """See the module's head. ``compat`` is the address space that requests of the container's ABI mean. ``opener`` is
    the name of the address space that opened it, for people.

    ``per_process``: locked memory is to be counted for each process and not for each user. Here a process is the
    only thing that it can be counted for, so the choice is remembered and changes nothing.
    """

    __slots__ = (
        "_assigned",
        "_free",
        "_numbers",
        "claims",
        "compat",
        "file_open",
        "lock",
        "new_domain",
        "objects",
        "opener",
        "per_process",
    )

    def __init__(self, lock: RLock, new_domain: Callable[[], Domain]) -> None:
        self.lock = lock
        self.new_domain = new_domain
        self.objects: dict[int, Object] = {}
        self._numbers: dict[Object, int] = {}
        self._assigned: dict[Device, Assigned] = {}
        self._free: list[int] = []  # a heap: numbers below the highest that were given back
        self.claims: list[Claim] = []
        self.compat: Ioas | None = None
        self.file_open = True
        self.per_process = False
        self.opener = ""

    # -- objects ---------------------------------------------------------------------------------

    def find(self, number: int, kind: type[ObjectT]) -> ObjectT:
        """The object, or NoSuchObject; also if it is of another kind."""
        found = self.objects.get(number)
        if not isinstance(found, kind):
            known = "nothing" if found is None else f"an object of kind {type(found).__name__}"
            raise NoSuchObject(f"{number} is {known}, not {kind.__name__}")
        return found

    def number_of(self, thing: Object) -> int:
        """The number of an object that is there."""
        return self._numbers[thing]

    def add(self, thing: Object) -> int:
        """Give an object a number."""
        with self.lock:
            number = heappop(self._free) if self._free else len(self.objects) + 1
            self.objects[number] = thing
            self._numbers[thing] = number
            if isinstance(thing, Assigned):
                self._assigned[thing.device] = thing
            return number

    def destroy(self, number: int) -> None:
        """Destroy an object (iommufd_destroy). NoSuchObject, Busy while another object or a device uses it."""
        with self.lock:
            found = self.objects.get(number)
            if found is None:
                raise NoSuchObject(f"there is no object {number}")
            if found.users:
                raise Busy(f"object {number} is in use")
            self.remove(found)

    def remove(self, thing: Object) -> None:
        """Forget an object that nothing uses."""
        number = self._numbers.pop(thing)
        del self.objects[number]
        if self.objects:
            heappush(self._free, number)
        else:
            self._free.clear()
        if isinstance(thing, Assigned):
            del self._assigned[thing.device]
        elif isinstance(thing, Hwpt):
            thing.ioas.remove_hwpt(thing)
        elif isinstance(thing, Ioas):
            if self.compat is thing:
                self.compat = None
            thing.close()

    # -- address spaces --------------------------------------------------------------------------

    def new_ioas(self) -> Ioas:
        """An empty address space; ``add`` numbers it."""
        return Ioas(self.new_domain())

    def compat_ioas(self) -> Ioas:
        """The address space of the container's ABI, or NoSuchDevice."""
        if self.compat is None:
            raise NoSuchDevice(
                "there is no address space for container requests",
                "VFIO_GROUP_SET_CONTAINER makes one, IOMMU_VFIO_IOAS chooses one",
            )
        return self.compat

    def make_compat(self) -> None:
        """Make the address space of the container's ABI, if there is none (iommufd_vfio_compat_ioas_create)."""
        with self.lock:
            if self.compat is None:
                self.compat = self.new_ioas()
                self.add(self.compat)

    def count_by_process(self, on: bool) -> None:
        """Choose how locked memory is counted. Busy as soon as there are objects."""
        with self.lock:
            if self.objects:
                raise Busy("there are objects already", "choose before the first one is made")
            self.per_process = on

    def change_process(self, mm: Mm, limit: int | None) -> None:
        """Charge all memory to ``mm``, within ``limit`` (iommufd_ioas_change_process).

        InvalidArgument if any is not a file's, LimitExceeded.
        """
        with self.lock:
            spaces = [thing for thing in self.objects.values() if isinstance(thing, Ioas)]
            areas = [area for ioas in spaces for area in ioas.domain.mappings]
            backings = dict.fromkeys(area.backing for area in areas if isinstance(area, Area))
            for backing in backings:
                if not backing.from_file:
                    raise InvalidArgument("memory of a process is mapped", "map files only")
            moving = [backing for backing in backings if backing.payer is not mm]
            mm.charge(sum(backing.locked for backing in moving), limit)
            for backing in moving:
                backing.payer.uncharge(backing.locked)
                backing.payer, backing.limit = mm, limit

    # -- page tables -----------------------------------------------------------------------------

    def new_hwpt(self, ioas: Ioas, unit: IommuUnit, *, auto: bool = False) -> Hwpt:
        """A page table for devices behind ``unit``, with a number. What ``Ioas.add_hwpt`` raises."""
        with self.lock:
            hwpt = Hwpt(ioas, unit, auto=auto)
            ioas.add_hwpt(hwpt)
            self.add(hwpt)
            return hwpt

    def alloc_hwpt(self, device: int, parent: int) -> Hwpt:
        """A page table of an address space, for a bound device (iommufd_hwpt_alloc).

        NoSuchObject for the device, InvalidArgument for a parent that is not there or has no page tables,
        Unsupported for a page table as parent: no IOMMU here nests them.
        """
        with self.lock:
            unit = self.find(device, Assigned).unit
            found = self.objects.get(parent)
            if isinstance(found, Hwpt):
                raise Unsupported("a page table cannot be nested in another one")
            if not isinstance(found, Ioas):
                raise InvalidArgument(f"object {parent} is no address space")
            return self.new_hwpt(found, unit)

    def attach(self, device: Device, number: int) -> int:
        """Let a bound device use a page table, or one of an address space; returns the page table's number.

        NoSuchObject, InvalidArgument for another kind of object, then what ``Claim.attach`` raises.
        """
        with self.lock:
            target = self.objects.get(number)
            if target is None:
                raise NoSuchObject(f"there is no object {number}")
            if isinstance(target, Assigned):
                raise InvalidArgument(f"object {number} is a device")
            claim = self.assigned(device).claim
            return self.number_of(claim.attach(device, target))

    def assigned(self, device: Device) -> Assigned:
        """The object of a bound device. InvalidArgument if it is not bound to this iommufd."""
        found = self._assigned.get(device)
        if found is not None:
            return found
        raise InvalidArgument(f"{device.name} is not bound to this iommufd")

    # -- life ------------------------------------------------------------------------------------

    def settle(self) -> None:
        """End, if its file is closed and it has no claims."""
        with self.lock:
            if self.file_open or self.claims:
                return
            for kind in (Hwpt, Ioas):
                for thing in list(self.objects.values()):
                    if isinstance(thing, kind):
                        self.remove(thing)
