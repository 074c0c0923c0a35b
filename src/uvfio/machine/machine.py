"""``Machine``: the living host. It owns the framework, the IOMMUs, the VFIO bus drivers and the devices.

Building a machine is plugging its devices one after the other; plugging one later is the same thing.
Each device is added to the framework, whatever its driver, because its driver decides whether its group
may be used:

- driver "vfio-pci" (on the platform bus "vfio-platform"): bound to VFIO;
- driver "none": it has no driver, so its group is not viable;
- any other name: a driver of the host has it, so its group is not viable either.

There are two buses: PCI, and the platform bus, whose devices a device tree describes. What concerns the latter
is in ``machine/platform.py``, imported when the first of them is plugged in.

Invariants: a refused plug, bind or unbind changes nothing. A device is known here exactly while it sits in
its slot: pulling it out forgets it at once, even where the framework still waits for its users. The devices of
a group are behind one IOMMU. A function has a bus reset exactly while it is alone behind a bridge. A virtual
function is there exactly while its physical one has it (``machine/sriov.py``).

Names become files that programs see. Whoever gives a name, a description, a request at the control socket or Python,
it is checked before anything changes: drivers and IOMMUs have letters, digits, "-" and "_", at most 255 of them
(``spec.check_driver``); PCI addresses are numbers (``spec.parse_address``); the path of a node has at most 255
characters, and no part of it is "", "." or ".." (``device_tree.check_path``); an option is one that its model declares.

Structural calls come from one thread at a time (the one that serves the machine); ``unbind`` may wait in a
thread of its own. A machine knows no files and no door: what programs see of it is ``machine/sysfs/tree.py``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from uvfio.core.structure.framework import Framework
from uvfio.core.translation.unit import IommuUnit
from uvfio.core.waiting import Then
from uvfio.drivers.pci.device import VfioPciDevice
from uvfio.drivers.pci.driver import VfioPciDriver
from uvfio.errors import (
    Busy,
    ConfigError,
    InvalidArgument,
    ModelError,
    NoSuchDevice,
    Unsupported,
)
from uvfio.kit.mistake import make
from uvfio.kit.pci.model import PciModel
from uvfio.machine.binding import Binding
from uvfio.machine.clock import ManualClock
from uvfio.machine.firmware import Firmware
from uvfio.machine.given import Given
from uvfio.machine.open import open_node
from uvfio.machine.slot import Slot
from uvfio.machine.spec import (
    NO_DRIVER,
    NO_IOMMU,
    UNIT_NAME,
    DeviceSpec,
    IommuSpec,
    MachineSpec,
    check_driver,
    check_iommu,
    default_machine,
    parse_address,
    place,
)
from uvfio.machine.store import ByteStore
from uvfio.models import catalogue

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from uvfio.core.bus import BoundDevice, BusDevice
    from uvfio.core.events import Observer
    from uvfio.core.seams import Clock, Store, Task
    from uvfio.core.structure.device import Device
    from uvfio.core.waiting import Wait
    from uvfio.fops.file import File
    from uvfio.kit.platform.model import PlatformModel
    from uvfio.machine.given import GivenDevice
    from uvfio.machine.platform import PlatformBus

__all__ = ["Machine"]


class Machine:
    """See the module's head.

    ``Machine()`` is the default machine, ``Machine(spec)`` the one described, and ``Machine(iommu=...,
    devices=[...])`` describes it in place; a device may be a ``DeviceSpec``, a string as for ``-d``, or the class of a
    model. A relative ``path.py:Class`` is relative to ``folder``, by default the current one of the process; a test
    gives ``folder=os.path.dirname(__file__)``.
    ``iommus`` are further IOMMUs by name, for devices that choose one.
    ``clock`` and ``store`` come from the door; in-process defaults keep memory in bytearrays and stand
    still until ``machine.clock.advance(seconds)``. ``observer`` takes the framework's events (``core/events.py``).
    ``processors`` is how many the host has, as sysfs shows it.
    """

    def __init__(
        self,
        spec: MachineSpec | None = None,
        *,
        iommu: IommuSpec | None = None,
        devices: Iterable[GivenDevice] | None = None,
        iommus: Mapping[str, IommuSpec] | None = None,
        clock: Clock | None = None,
        store: Store | None = None,
        observer: Observer | None = None,
        processors: int = 1,
        folder: str = "",
    ) -> None:
        self._given = Given(folder)
        in_place = iommu is not None or devices is not None or iommus is not None
        if spec is not None and in_place:
            raise InvalidArgument(
                "a machine is described either by spec or by iommu and devices, not by both"
            )
        if spec is None and not in_place:
            spec = default_machine()
        elif spec is None:
            described = (self._given.spec(device) for device in devices or ())
            spec = MachineSpec(iommu or IommuSpec(), tuple(described), iommus or {})
        self.clock: Clock = clock if clock is not None else ManualClock()
        self.store: Store = store if store is not None else ByteStore()
        self.processors = processors
        self.iommu = spec.iommu
        self.unit = _unit(UNIT_NAME, spec.iommu)
        self.units = {name: _unit(name, unit) for name, unit in spec.iommus.items()}
        self.framework = Framework(
            allow_unsafe_interrupts=spec.iommu.allow_unsafe_interrupts,
            dma_entry_limit=spec.iommu.dma_entry_limit,
            noiommu=spec.iommu.enable_unsafe_noiommu_mode,
            observer=observer,
            clock=self.clock,
        )
        self.driver = VfioPciDriver(
            on_hotplug=self._bind_hotplugged, enable_sriov=spec.iommu.enable_sriov
        )
        self.binding = Binding(self)
        self._firmware = Firmware()
        self._platform: PlatformBus | None = None
        self._slots: dict[str, Slot] = {}
        try:
            for dev in spec.devices:
                self._plug(dev)
            for dev in spec.devices:
                if dev.numvfs:
                    self._first_numvfs(dev)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Pull everything out (idempotent)."""
        for slot in self.slots:
            if slot.physical is None:
                self.unplug(slot.address)

    # -- questions -------------------------------------------------------------------------------

    @property
    def slots(self) -> tuple[Slot, ...]:
        """Everything plugged in, by address."""
        return tuple(slot for _, slot in sorted(self._slots.items()))

    def slot(self, address: str) -> Slot:
        """The slot at ``address``, or NoSuchDevice: a PCI address in any spelling, a node's path, or a name."""
        name = address if address in self._slots else self._canonical(address)
        found = self._slots.get(name)
        if found is None:
            have = ", ".join(sorted(self._slots)) or "none"
            raise NoSuchDevice(f"the machine has no device {name}", f"its devices: {have}")
        return found

    def _canonical(self, address: str) -> str:
        if address[:1] != "/":
            return parse_address(address)
        paths = {slot.spec.address: name for name, slot in self._slots.items()}
        return paths.get(address, address)

    def function(self, address: str) -> PciModel:
        """The silicon of the PCI function at ``address``, or NoSuchDevice."""
        return self.slot(address).function

    def device(self, address: str) -> PciModel | PlatformModel:
        """The silicon at ``address``, on whatever bus, or NoSuchDevice."""
        return self.slot(address).device

    def record(self, address: str) -> Device:
        """The framework's record of the device at ``address``, or NoSuchDevice."""
        device = self.framework.lookup(self.slot(address).device)
        assert device is not None, "a device in its slot is known to the framework"
        return device

    def open(self, path: str, task: Task, abi: str) -> File:
        """The VFIO file that an open of the device node at ``path`` makes; see ``machine/open.py``."""
        return open_node(self.framework, path, task, abi)

    def look(self) -> None:
        """Take up now what was stored through mappings of registers; a door's calls do that by themselves."""
        self.store.look()

    # -- hot plug --------------------------------------------------------------------------------

    def plug(
        self,
        spec: GivenDevice,
        driver: str | None = None,
    ) -> Slot:
        """Add a device; ``driver`` gets it instead of the one that it was described with. ConfigError, or what its
        model or the framework refuse; then nothing changed."""
        spec = self._given.spec(spec)
        check_iommu(spec, self.units)
        if driver is not None:
            check_driver(driver, spec.bus, spec.source)
        taken = [str(slot.spec.address) for slot in self._slots.values()]
        groups = (group.number for group in self.framework.groups)
        (spec,) = place([spec], taken=taken, groups=groups)
        slot = self._plug(spec, driver)
        if spec.numvfs and driver is None:
            try:
                self._first_numvfs(spec)
            except BaseException:
                self.take_out(slot)
                raise
        return slot

    def _plug(self, spec: DeviceSpec, driver: str | None = None) -> Slot:
        try:
            slot = Slot(spec, self._make(spec))
        except ModelError:
            raise  # names a line of the model already
        except ConfigError as error:  # a model says what is wrong, not in which file
            where = "" if spec.source.startswith("-d") else spec.source
            if where and where not in str(error):
                raise ConfigError(f"{where}: {error}", error.hint) from error
            raise
        return self._insert(slot, driver)

    def put_in(self, spec: DeviceSpec, model: type[PciModel], pf: Slot) -> Slot:
        """Add the virtual function of ``pf`` that ``spec`` describes (for ``machine/sriov.py``)."""
        assert spec.address is not None
        try:
            function = make(
                model,
                spec.address,
                group=spec.group,
                unit=self._unit_for(spec),
                clock=self.clock,
                store=self.store,
                options=spec.options,
                physfn=pf.function,
            )
        except BaseException:
            self.store.release(spec.address)
            raise
        pf.function.virtual_functions.append(function)
        return self._insert(Slot(spec, function, pf))

    def _insert(self, slot: Slot, driver: str | None = None) -> Slot:
        """A device comes into its slot and gets ``driver``, or the one that it was described with."""
        device = slot.device
        device.observed = self.framework
        try:
            if isinstance(device, PciModel):
                self._firmware.set_up(device)
                record = self.framework.add_device(device, self.driver)
            else:
                record = self.framework.add_device(device, self._platform_bus().driver)
            if record.taint:
                raise Busy(record.taint)
            if record.bound:  # by bind_hotplugged: its group is in use
                slot.driver = slot.vfio_driver
            else:
                self._give(slot, slot.spec.driver if driver is None else driver)
        except BaseException:
            self._forget(slot)
            raise
        self._slots[slot.address] = slot
        self.binding.mention(slot.device.bus, slot.spec.driver)
        self._settle_bus(slot)
        return slot

    def _make(self, spec: DeviceSpec) -> PciModel | PlatformModel:
        """The silicon that ``spec`` describes; nothing is left of it if it cannot be made."""
        address = spec.address
        assert address is not None
        unit = self._unit_for(spec)
        model = catalogue.find(spec.model)
        if issubclass(model, PciModel):
            if spec.bus != "pci":
                raise ConfigError(
                    f"{spec.source}: model {spec.model!r} is a PCI function, {address} a node",
                    "its address is SSSS:BB:DD.F",
                )
            try:
                return make(
                    model,
                    address,
                    group=spec.group,
                    unit=unit,
                    clock=self.clock,
                    store=self.store,
                    options=spec.options,
                    bus_reset=_has_bridge(address) and not self._on_bus(address),
                )
            except BaseException:
                self.store.release(address)
                raise
        if spec.bus != "platform":
            raise ConfigError(
                f"{spec.source}: model {spec.model!r} is a platform device and needs a node",
                f"its address is a path: {spec.model}@/soc/device@10010000",
            )
        others = [slot.device for slot in self._slots.values()]
        return self._platform_bus().make(
            spec,
            model,
            beside=[device for device in others if not isinstance(device, PciModel)],
            unit=unit,
            clock=self.clock,
            store=self.store,
        )

    def _unit_for(self, spec: DeviceSpec) -> IommuUnit | None:
        """The IOMMU in front of the device, if any. ConfigError if its group is behind another one."""
        if spec.iommu == NO_IOMMU:
            if any((g.bus, g.number) == (spec.bus, spec.group) for g in self.framework.groups):
                raise ConfigError(
                    f"{spec.source}: group {spec.group} has a device already, and one without an IOMMU "
                    "is alone in its group",
                    "leave the group out",
                )
            return None
        unit = self.unit if spec.iommu is None else self.units[spec.iommu]
        for group in self.framework.groups:
            if (group.bus, group.number) == (spec.bus, spec.group):
                for device in group.devices:
                    behind = device.dev.unit
                    if behind is not unit:
                        raise ConfigError(
                            f"{spec.source}: iommu {unit.name!r} does not fit: group {spec.group} is "
                            f"behind {behind.name if behind else 'none'} ({device.name})",
                            "a group has one IOMMU",
                        )
        return unit

    def _platform_bus(self) -> PlatformBus:
        if self._platform is None:
            from uvfio.machine.platform import PlatformBus

            self._platform = PlatformBus(self._bind_hotplugged)
        return self._platform

    def _on_bus(self, address: str) -> list[Slot]:
        """The functions on the PCI bus of ``address``."""
        bus = address.rpartition(":")[0]
        return [
            slot
            for slot in self._slots.values()
            if isinstance(slot.device, PciModel) and slot.address.rpartition(":")[0] == bus
        ]

    def _settle_bus(self, slot: Slot) -> None:
        """A device came or went: resetting the bus resets a function that is alone there, and no other."""
        if isinstance(slot.device, PciModel) and _has_bridge(slot.address):
            there = self._on_bus(slot.address)
            for neighbour in there:
                neighbour.function.bus_reset = len(there) == 1 and neighbour.physical is None

    def unplug(self, address: str) -> None:
        """Pull a device out, also one in use: its open files answer Gone from then on.

        A physical function takes its virtual ones along. InvalidArgument for one of those.
        """
        slot = self.slot(address)
        self.check_unplug(slot)
        if slot.virtual:
            from uvfio.machine.sriov import destroy

            destroy(self, slot)
        self.take_out(slot)

    @staticmethod
    def check_unplug(slot: Slot) -> None:
        """InvalidArgument for a virtual function: it goes with the others."""
        if slot.physical is not None:
            raise InvalidArgument(
                f"{slot.address} is a virtual function and cannot be pulled out",
                f"it goes with the others of {slot.physical.address}: set their number to 0",
            )

    def take_out(self, slot: Slot) -> None:
        """As ``unplug``, without a question."""
        del self._slots[slot.address]
        self._settle_bus(slot)
        self._forget(slot)

    def _forget(self, slot: Slot) -> None:
        device = slot.device
        record = self.framework.lookup(device)
        if record is not None:
            self.framework.del_device(device)
            if record.bound:
                self.framework.unbind_device(device, revoke=True)
        device.unplug()
        self.binding.forget(slot)
        self._firmware.forget(device.name)
        self.store.release(device.name)

    # -- virtual functions -----------------------------------------------------------------------

    def set_numvfs(
        self,
        address: str,
        number: int,
        timeout: float | None = None,
        revoke: bool = False,
        *,
        interval: float = 10.0,
        cancelled: Callable[[], bool] | None = None,
    ) -> None:
        """Have ``number`` virtual functions of the physical one at ``address``: ``machine/sriov.py`` has the rules.

        Waits for the users of those that go, as ``unbind`` does.
        """
        from uvfio.machine.sriov import begin

        departure = begin(self, self.slot(address), number, timeout, revoke, interval)
        if departure is not None:
            self.framework.wait_for(departure, cancelled)

    def begin_numvfs(
        self,
        address: str,
        number: int,
        timeout: float | None = None,
        revoke: bool = False,
        *,
        interval: float = 10.0,
    ) -> Wait | None:
        """``set_numvfs`` for callers that cannot wait: None if it is done already, or what is to be polled."""
        from uvfio.machine.sriov import begin

        departure = begin(self, self.slot(address), number, timeout, revoke, interval)
        return None if departure is None or departure.poll() else departure

    def _first_numvfs(self, spec: DeviceSpec) -> None:
        from uvfio.machine.sriov import begin_as_described

        begin_as_described(self, spec)

    # -- drivers ---------------------------------------------------------------------------------

    def bind(self, address: str, driver: str | None = None) -> None:
        """Give the device to ``driver`` (default: VFIO's for its bus). Busy while another driver has it."""
        slot = self.slot(address)
        wanted = slot.vfio_driver if driver is None else driver
        try:
            check_driver(wanted, slot.device.bus, slot.address)
        except ConfigError as wrong:
            raise InvalidArgument(str(wrong), wrong.hint) from None
        if wanted == NO_DRIVER:
            raise InvalidArgument(
                "none is not a driver", f"to take the driver away: unbind {slot.address}"
            )
        if slot.driver != NO_DRIVER:
            raise Busy(f"{slot.address} is bound to {slot.driver}", "unbind it first")
        if slot.revoked:
            slot.device.renew_memory()  # its last user may still have it mapped
            slot.revoked = False
        self._give(slot, wanted)

    def unbind(
        self,
        address: str,
        timeout: float | None = None,
        revoke: bool = False,
        *,
        interval: float = 10.0,
        cancelled: Callable[[], bool] | None = None,
    ) -> None:
        """Take the device from its driver; VFIO's waits for its users as ``Framework.unbind_device`` says.

        When vfio-pci loses a physical function its virtual ones go.
        """
        wait = self._departure(address, timeout, revoke, interval)
        if wait is not None:
            self.framework.wait_for(wait, cancelled)

    def begin_unbind(
        self,
        address: str,
        timeout: float | None = None,
        revoke: bool = False,
        *,
        interval: float = 10.0,
    ) -> Wait | None:
        """``unbind`` for callers that cannot wait: None if it is done already, or what is to be polled."""
        wait = self._departure(address, timeout, revoke, interval)
        return None if wait is None or wait.poll() else wait

    def _departure(
        self, address: str, timeout: float | None, revoke: bool, interval: float
    ) -> Wait | None:
        """What has to be waited for until the device has no driver; None if it has none now."""
        slot = self.slot(address)
        if slot.driver == NO_DRIVER:
            raise InvalidArgument(f"{slot.address} is not bound to a driver")
        if slot.driver != slot.vfio_driver:
            self.framework.bind_foreign(slot.device, "")
            self._take(slot, False)
            return None
        release: Wait
        if slot.virtual:
            from uvfio.machine.sriov import leave

            release = leave(self, slot, timeout, revoke, interval)
        else:
            release = self.framework.begin_unbind(
                slot.device, timeout=timeout, revoke=revoke, interval=interval
            )
        return Then(release, lambda: self._take(slot, revoke))

    @staticmethod
    def _take(slot: Slot, revoked: bool) -> None:
        """Record that the device has no driver."""
        slot.driver = NO_DRIVER
        slot.revoked = slot.revoked or revoked

    def reset(self, address: str) -> None:
        """Reset the function as its host does: what a driver set up is kept (pci_reset_function). Unsupported if
        it cannot be reset alone."""
        function = self.slot(address).function
        if not function.reset_methods:
            raise Unsupported(f"{function.name} has no way to be reset alone", errno=25)
        data = self.record(address).data
        (data if isinstance(data, VfioPciDevice) else self.driver.probe(function)).bus_reset()

    def _give(self, slot: Slot, driver: str) -> None:
        if driver == slot.vfio_driver:
            self.framework.bind_device(slot.device, self._probe(slot.device))
        elif driver != NO_DRIVER:
            self.framework.bind_foreign(slot.device, driver)
        self.binding.mention(slot.device.bus, driver)
        slot.driver = driver

    def _bind_hotplugged(self, dev: BusDevice) -> None:
        """The group of a device just plugged in is in use: only VFIO may have it."""
        self.framework.bind_device(dev, self._probe(dev))

    def _probe(self, dev: BusDevice) -> BoundDevice:
        """What the VFIO driver of its bus makes of the device.

        InvalidArgument for one without an IOMMU, unless that is allowed (vfio_group_find_or_alloc).
        """
        if dev.unit is None and not self.framework.noiommu:
            raise InvalidArgument(
                f"{dev.name} is behind no IOMMU, and VFIO does not take it",
                "set enable_unsafe_noiommu_mode = true for a device without DMA",
            )
        if isinstance(dev, PciModel):
            return self.driver.probe(dev)
        return self._platform_bus().probe(dev)

    # -- for people and programs that read -------------------------------------------------------

    def describe(self) -> dict[str, Any]:
        """The machine as JSON values; see ``machine/describe.py``."""
        from uvfio.machine.describe import describe

        return describe(self)


def _has_bridge(address: str) -> bool:
    """Whether the bus of a PCI address is behind a bridge that can reset it: all but the first of a segment."""
    return not address.rpartition(":")[0].endswith(":00")


def _unit(name: str, spec: IommuSpec) -> IommuUnit:
    return IommuUnit(
        name=name,
        interrupt_remapping=spec.interrupt_remapping,
        coherent=spec.coherent,
        page_sizes=spec.page_sizes,
        address_bits=spec.address_bits,
        reserved=spec.reserved,
    )
