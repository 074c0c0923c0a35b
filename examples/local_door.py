"""A tour of VFIO in one Python process: no program, no root, nothing of the system is touched.

python examples/local_door.py

Every ``# %%`` begins a cell: editors that know them run the file piece by piece. It goes the way that every
VFIO driver goes: group, iommu, device, regions, interrupts, DMA, the end. Two more groups of cells show what
a driver rarely sees: a group that is not viable, and two groups that share an iommu.
"""

# %% Names
from __future__ import annotations

from typing import Any

from uvfio.doors.local import Process
from uvfio.machine.clock import ManualClock
from uvfio.machine.machine import Machine
from uvfio.uapi.rfc import (
    VFIO_DEVICE_GET_FLAGS,
    VFIO_DEVICE_GET_IRQ_INFO,
    VFIO_DEVICE_GET_NUM_IRQS,
    VFIO_DEVICE_GET_NUM_REGIONS,
    VFIO_DEVICE_GET_REGION_INFO,
    VFIO_DEVICE_RESET,
    VFIO_DEVICE_SET_IRQ_EVENTFDS,
    VFIO_DEVICE_UNMASK_IRQ,
    VFIO_DMA_MAP_FLAG_WRITE,
    VFIO_GROUP_GET_DEVICE_FD,
    VFIO_GROUP_GET_FLAGS,
    VFIO_GROUP_GET_IOMMU_FD,
    VFIO_GROUP_MERGE,
    VFIO_GROUP_UNMERGE,
    VFIO_IOMMU_MAP_DMA,
    VFIO_IOMMU_UNMAP_DMA,
    VFIO_PCI_CONFIG_REGION_INDEX,
    VFIO_PCI_INTX_IRQ_INDEX,
    VFIO_PCI_MSI_IRQ_INDEX,
    vfio_dma_map,
    vfio_irq_info,
    vfio_region_info,
)

REGIONS = ("BAR 0", "BAR 1", "BAR 2", "BAR 3", "BAR 4", "BAR 5", "ROM", "config")
IRQS = ("INTx", "MSI", "MSI-X")
IOVA, SIZE = 0x100000, 0x2000  # edu drives 28 address lines: its addresses are below 256 MiB


def number(size: int = 4) -> bytearray:
    """Room for a number that a call answers with."""
    return bytearray(size)


def value(buffer: bytes | bytearray) -> int:
    return int.from_bytes(buffer, "little")


def ints(*values: int) -> bytes:
    """An array of C ints."""
    return b"".join(v.to_bytes(4, "little", signed=True) for v in values)


def says_no(call: Any, *arguments: Any) -> None:
    """Make a call that must fail, and print how."""
    try:
        call(*arguments)
    except OSError as error:
        print(f"  refused: [errno {error.errno}] {error.strerror}")
    else:
        raise AssertionError("this call must fail")


# %% The machine: two functions that the IOMMU cannot tell apart (group 240), one alone (group 241)
events: list[Any] = []
clock = ManualClock()
machine = Machine(clock=clock, observer=events.append)
for slot in machine.slots:
    print(f"{slot.address}  group {slot.function.group}  driver {slot.driver}")

# %% A process of this machine: an address space, a table of descriptors, system calls
me = Process(machine, name="me")
group = me.open("/dev/vfio/240")
flags = number(8)
me.ioctl(group, VFIO_GROUP_GET_FLAGS, flags)
print(f"group flags {value(flags)}: 1 is VIABLE, 2 is MM_LOCKED")

# %% One device without a VFIO driver is enough: nobody may use any device of the group
machine.unbind("0000:06:0d.1")
me.ioctl(group, VFIO_GROUP_GET_FLAGS, flags)
print(f"group flags {value(flags)} after 0000:06:0d.1 lost its driver")
says_no(me.ioctl, group, VFIO_GROUP_GET_IOMMU_FD)
machine.bind("0000:06:0d.1")

# %% The iommu: memory of ours at an address of our choice
iommu = me.ioctl(group, VFIO_GROUP_GET_IOMMU_FD)
vaddr = me.memory.allocate(SIZE)
dma_map = vfio_dma_map(40, vaddr, IOVA, SIZE, VFIO_DMA_MAP_FLAG_WRITE)
me.ioctl(iommu, VFIO_IOMMU_MAP_DMA, dma_map)
print(f"iova {IOVA:#x}+{SIZE:#x} -> vaddr {vaddr:#x}")
says_no(me.ioctl, iommu, VFIO_IOMMU_MAP_DMA, dma_map)

# %% The iommu has an owner now: the address space that opened it. A child has another one
child = me.fork()
says_no(child.ioctl, group, VFIO_GROUP_GET_DEVICE_FD, "0000:06:0d.0")
child.exit()

# %% The device
device = me.ioctl(group, VFIO_GROUP_GET_DEVICE_FD, "0000:06:0d.0")
me.ioctl(device, VFIO_DEVICE_GET_FLAGS, flags)
print(f"device flags {value(flags)}: 1 is PCI, 4 is RESET")

# %% Its regions
count = number()
me.ioctl(device, VFIO_DEVICE_GET_NUM_REGIONS, count)
region = vfio_region_info(40, 0, 0, 0, 0, 0)
for index in range(value(count)):
    region = vfio_region_info(40, index, 0, 0, 0, 0)
    me.ioctl(device, VFIO_DEVICE_GET_REGION_INFO, region)
    if region.size:
        print(f"  {REGIONS[index]:<7} {region.size:#9x} bytes at {region.offset:#x}")
config = VFIO_PCI_CONFIG_REGION_INDEX << 40
assert region.offset == config

# %% Its interrupts
me.ioctl(device, VFIO_DEVICE_GET_NUM_IRQS, count)
for index in range(value(count)):
    irq = vfio_irq_info(16, index, 0, 0)
    me.ioctl(device, VFIO_DEVICE_GET_IRQ_INFO, irq)
    print(f"  {IRQS[index]:<6} {irq.count}{' level' if irq.flags else ''}")


# %% Configuration space and registers: region 0 is BAR 0 and begins at 0
def read(register: int) -> int:
    return value(me.pread(device, 4, register))


def write(register: int, word: int) -> None:
    me.pwrite(device, word.to_bytes(4, "little"), register)


print(f"vendor and device: {value(me.pread(device, 4, config)):#010x}")
me.pwrite(device, (0x006).to_bytes(2, "little"), config + 4)  # memory space, bus master
write(0x04, 0x12345678)
print(f"identification {read(0x00):#x}, liveness {read(0x04):#x}")

# %% A computation. This machine's clock stands still until we move it: no race, no sleep
write(0x08, 10)
print(f"status {read(0x20)} while it computes")
clock.advance(0)
print(f"status {read(0x20)}, 10! = {read(0x08)}")

# %% INTx is a level: it fires once, and again after the unmask if nobody acknowledged
event = me.eventfd()
fired = me.event(event)
me.ioctl(device, VFIO_DEVICE_SET_IRQ_EVENTFDS, ints(VFIO_PCI_INTX_IRQ_INDEX, 1, event))
write(0x60, 0x2)
write(0x60, 0x4)
print(f"INTx fired {fired.take()} time for two causes")
me.ioctl(device, VFIO_DEVICE_UNMASK_IRQ, ints(VFIO_PCI_INTX_IRQ_INDEX))
print(f"and {fired.take()} time more when unmasked too early")
write(0x64, 0x6)
me.ioctl(device, VFIO_DEVICE_UNMASK_IRQ, ints(VFIO_PCI_INTX_IRQ_INDEX))
print(f"and {fired.take()} times after the acknowledge")
me.ioctl(device, VFIO_DEVICE_SET_IRQ_EVENTFDS, ints(VFIO_PCI_INTX_IRQ_INDEX, 0))


# %% DMA: to the device and back, to the other page of the mapping
def dma(source: int, destination: int, size: int, command: int) -> None:
    write(0x80, source)
    write(0x88, destination)
    write(0x90, size)
    write(0x98, command | 1)
    clock.advance(0)


me.memory.write(vaddr, b"to the device and back")
dma(IOVA, 0x40000, 0x1000, 0)
dma(0x40000, IOVA + 0x1000, 0x1000, 2)
print(me.memory.read(vaddr + 0x1000, 22).decode())

# %% DMA to an address that is not mapped: nothing happens but a fault
events.clear()
dma(0x40000, 0x800000, 0x1000, 2)
for happened in events:
    print(f"{happened.kind}: {happened.facts()}")

# %% MSI is a message: no level, no mask, one for each cause. DMA can end with one
me.ioctl(device, VFIO_DEVICE_SET_IRQ_EVENTFDS, ints(VFIO_PCI_MSI_IRQ_INDEX, 1, event))
write(0x60, 0x2)
write(0x60, 0x4)
print(f"MSI fired {fired.take()} times for two causes")
dma(IOVA, 0x40000, 0x1000, 4)
print(f"and {fired.take()} time for the transfer")
me.ioctl(device, VFIO_DEVICE_SET_IRQ_EVENTFDS, ints(VFIO_PCI_MSI_IRQ_INDEX, 0))

# %% This function shares its bus and has no function level reset, so it cannot be reset alone
says_no(me.ioctl, device, VFIO_DEVICE_RESET)

# %% Another group joins: one iommu, one set of mappings. Its device is reached through either file
other = me.open("/dev/vfio/241")
me.ioctl(group, VFIO_GROUP_MERGE, ints(other))
second = me.ioctl(group, VFIO_GROUP_GET_DEVICE_FD, "0000:07:00.0")
me.ioctl(second, VFIO_DEVICE_RESET)  # alone behind its bridge: the bus is reset
print("0000:07:00.0 opened through group 240, and reset")
says_no(me.ioctl, group, VFIO_GROUP_UNMERGE, ints(other))
me.close(second)
me.ioctl(group, VFIO_GROUP_UNMERGE, ints(other))
me.close(other)

# %% The end: the last of device and iommu gives up mappings and ownership
me.ioctl(iommu, VFIO_IOMMU_UNMAP_DMA, vfio_dma_map(40, 0, IOVA, SIZE, 0))
me.close(device)
me.close(iommu)
me.ioctl(group, VFIO_GROUP_GET_FLAGS, flags)
print(f"group flags {value(flags)} at the end: viable, owned by nobody")
me.exit()
machine.close()
