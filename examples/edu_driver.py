"""A driver for edu, QEMU's educational PCI device, over the VFIO interface of 2011.

An ordinary program: the standard library, the numbers of the interface, nothing of uvfio::

    uvfio run -- python3 examples/edu_driver.py [GROUP [ADDRESS]]

It ends with status 0 if the device did everything right.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import select
import struct
import sys
import time

# The 2011 interface: ioctls of type ';' (direction, size of the argument, type, number)
VFIO_GROUP_GET_FLAGS = 0x80083B64
VFIO_GROUP_FLAGS_VIABLE, VFIO_GROUP_FLAGS_MM_LOCKED = 1, 2
VFIO_GROUP_GET_IOMMU_FD = 0x00003B67
VFIO_GROUP_GET_DEVICE_FD = 0x40003B68 | struct.calcsize("P") << 16
VFIO_IOMMU_GET_FLAGS = 0x80083B69
VFIO_IOMMU_FLAGS_MAP_ANY = 1
VFIO_IOMMU_MAP_DMA = 0xC0283B6A
VFIO_IOMMU_UNMAP_DMA = 0xC0283B6B
VFIO_DMA_MAP_FLAG_WRITE = 1
VFIO_DEVICE_GET_FLAGS = 0x80083B6C
VFIO_DEVICE_FLAGS_PCI, VFIO_DEVICE_FLAGS_DT, VFIO_DEVICE_FLAGS_RESET = 1, 2, 4
VFIO_DEVICE_GET_NUM_REGIONS = 0x80043B6D
VFIO_DEVICE_GET_REGION_INFO = 0xC0283B6E
VFIO_DEVICE_GET_NUM_IRQS = 0x80043B6F
VFIO_DEVICE_GET_IRQ_INFO = 0xC0103B70
VFIO_IRQ_INFO_FLAG_LEVEL = 1
VFIO_DEVICE_SET_IRQ_EVENTFDS = 0x40043B71
VFIO_DEVICE_UNMASK_IRQ = 0x40043B72
VFIO_DEVICE_RESET = 0x00003B74

DMA_MAP = struct.Struct("=QQQQQ")  # len, vaddr, dmaaddr, size, flags
REGION_INFO = struct.Struct("=IIQQQQ")  # len, index, size, offset, flags, phys
IRQ_INFO = struct.Struct("=IIII")  # len, index, count, flags
REGIONS = ("BAR 0", "BAR 1", "BAR 2", "BAR 3", "BAR 4", "BAR 5", "ROM", "config")
IRQS = ("INTx", "MSI", "MSI-X")
INTX, MSI = 0, 1

# Registers of edu in BAR 0
EDU_ID, EDU_LIVENESS, EDU_FACTORIAL = 0x00, 0x04, 0x08
EDU_STATUS, EDU_STATUS_COMPUTING, EDU_STATUS_IRQ = 0x20, 0x01, 0x80
EDU_IRQ_STATUS, EDU_IRQ_RAISE, EDU_IRQ_ACK = 0x24, 0x60, 0x64
EDU_IRQ_FACTORIAL, EDU_IRQ_DMA = 0x001, 0x100
EDU_DMA_SOURCE, EDU_DMA_DESTINATION, EDU_DMA_COUNT, EDU_DMA_COMMAND = 0x80, 0x88, 0x90, 0x98
EDU_DMA_START, EDU_DMA_TO_MEMORY, EDU_DMA_IRQ = 1, 2, 4
EDU_BUFFER, EDU_BUFFER_SIZE = 0x40000, 4096  # the device's own memory, for its DMA only

# edu drives 28 address lines: its DMA addresses are below 256 MiB
IOVA, IOVA_NOT_MAPPED = 0x100000, 0x800000
PATIENCE = 5.0  # seconds, for what must happen
SILENCE = 0.05  # for what must not


def step(what: str, result: object = "ok") -> None:
    print(f"{what:<40} {result}", flush=True)


def expect(got: object, wanted: object, what: str) -> None:
    if got != wanted:
        sys.exit(f"edu_driver: {what}: got {got!r}, not {wanted!r}")


def get_number(fd: int, request: int, code: str) -> int:
    """An ioctl that answers with one number."""
    answer = fcntl.ioctl(fd, request, bytes(struct.calcsize(code)))
    number: int = struct.unpack(code, answer)[0]
    return number


class Eventfd:
    """An eventfd that an interrupt signals."""

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def count(self, seconds: float) -> int:
        """How often it was signalled; waits for the first."""
        ready, _, _ = select.select([self.fd], [], [], seconds)
        return os.eventfd_read(self.fd) if ready else 0

    def expect_one(self, what: str) -> None:
        expect(self.count(PATIENCE), 1, f"interrupts: {what}")

    def expect_none(self, what: str) -> None:
        expect(self.count(SILENCE), 0, f"interrupts: {what}")


class Edu:
    """The open device with its registers."""

    def __init__(self, group: int, address: str) -> None:
        # The argument is the string itself. A mutable buffer, because only then the result of the
        # call comes back, the descriptor; with bytes it would be the buffer.
        name = bytearray(address.encode() + b"\0")
        self.fd: int = fcntl.ioctl(group, VFIO_GROUP_GET_DEVICE_FD, name, True)
        step("open device", address)
        self.flags = get_number(self.fd, VFIO_DEVICE_GET_FLAGS, "=Q")
        expect(self.flags & VFIO_DEVICE_FLAGS_PCI, VFIO_DEVICE_FLAGS_PCI, "flag PCI")
        step("device flags", "PCI" + " RESET" * bool(self.flags & VFIO_DEVICE_FLAGS_RESET))
        self.bar0 = self.config = 0

    # -- what it consists of --

    def list_regions(self) -> None:
        count = get_number(self.fd, VFIO_DEVICE_GET_NUM_REGIONS, "=i")
        expect(count >= len(REGIONS), True, "at least 8 regions")
        step("regions", count)
        offsets = []
        for index, name in enumerate(REGIONS):
            asked = REGION_INFO.pack(REGION_INFO.size, index, 0, 0, 0, 0)
            answer = fcntl.ioctl(self.fd, VFIO_DEVICE_GET_REGION_INFO, asked)
            _, _, size, offset, flags, _ = REGION_INFO.unpack(answer)
            marks = " MMAP" * (flags & 1) + " RO" * (flags >> 1 & 1)
            print(f"  {name:<8} size {size:#9x}  offset {offset:#14x} {marks}")
            offsets.append(offset)
        self.bar0, self.config = offsets[0], offsets[7]

    def list_irqs(self) -> None:
        count = get_number(self.fd, VFIO_DEVICE_GET_NUM_IRQS, "=i")
        expect(count >= len(IRQS), True, "at least 3 interrupts")
        step("interrupts", count)
        vectors, levels = [], []
        for index, name in enumerate(IRQS):
            asked = IRQ_INFO.pack(IRQ_INFO.size, index, 0, 0)
            answer = fcntl.ioctl(self.fd, VFIO_DEVICE_GET_IRQ_INFO, asked)
            _, _, number, flags = IRQ_INFO.unpack(answer)
            print(f"  {name:<8} vectors {number} {' LEVEL' * (flags & VFIO_IRQ_INFO_FLAG_LEVEL)}")
            vectors.append(number)
            levels.append(flags & VFIO_IRQ_INFO_FLAG_LEVEL)
        expect((vectors[INTX], levels[INTX]), (1, 1), "one level-triggered INTx")
        expect(vectors[MSI] > 0, True, "MSI")

    # -- registers --

    def read(self, register: int) -> int:
        return int.from_bytes(os.pread(self.fd, 4, self.bar0 + register), "little")

    def write(self, register: int, value: int) -> None:
        os.pwrite(self.fd, value.to_bytes(4, "little"), self.bar0 + register)

    def wait_clear(self, register: int, bits: int, what: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while self.read(register) & bits:
            expect(time.monotonic() < deadline, True, f"{what} finished in time")
            time.sleep(0.001)

    def enable(self) -> None:
        """Answer to memory accesses, do DMA, use INTx."""
        ids = struct.unpack("<HH", os.pread(self.fd, 4, self.config))
        expect(ids, (0x1234, 0x11E8), "vendor and device id")
        step("configuration space", "1234:11e8")
        command = int.from_bytes(os.pread(self.fd, 2, self.config + 4), "little")
        command = (command | 0x006) & ~0x400
        os.pwrite(self.fd, command.to_bytes(2, "little"), self.config + 4)
        expect(os.pread(self.fd, 2, self.config + 4), command.to_bytes(2, "little"), "command")
        step("enable memory and bus master")

    def identify(self) -> None:
        expect(self.read(EDU_ID), 0x010000ED, "identification")
        step("identification", "0x10000ed")
        self.write(EDU_LIVENESS, 0x12345678)
        expect(self.read(EDU_LIVENESS), 0xEDCBA987, "liveness")
        step("liveness")

    # -- work --

    def factorial_polled(self) -> None:
        self.write(EDU_STATUS, 0)
        self.write(EDU_FACTORIAL, 10)
        self.wait_clear(EDU_STATUS, EDU_STATUS_COMPUTING, "factorial")
        expect(self.read(EDU_FACTORIAL), 3628800, "factorial of 10")
        step("factorial, polled", "10! = 3628800")

    def factorial_by_interrupt(self, event: Eventfd, n: int, wanted: int) -> None:
        self.write(EDU_STATUS, EDU_STATUS_IRQ)
        self.write(EDU_FACTORIAL, n)
        event.expect_one("factorial")
        expect(self.read(EDU_IRQ_STATUS), EDU_IRQ_FACTORIAL, "interrupt status")
        self.write(EDU_IRQ_ACK, EDU_IRQ_FACTORIAL)
        self.write(EDU_STATUS, 0)
        expect(self.read(EDU_FACTORIAL), wanted, f"factorial of {n}")

    def dma(self, source: int, destination: int, command: int) -> None:
        self.write(EDU_DMA_SOURCE, source)
        self.write(EDU_DMA_DESTINATION, destination)
        self.write(EDU_DMA_COUNT, EDU_BUFFER_SIZE)
        self.write(EDU_DMA_COMMAND, EDU_DMA_START | command)

    def dma_polled(self, source: int, destination: int, command: int) -> None:
        self.dma(source, destination, command)
        self.wait_clear(EDU_DMA_COMMAND, EDU_DMA_START, "DMA")

    # -- interrupts --

    def set_irq(self, index: int, event: Eventfd | None) -> None:
        """Signal ``event`` on vector 0; None disables the interrupt."""
        fds = [event.fd] if event else []
        argument = struct.pack(f"={2 + len(fds)}i", index, len(fds), *fds)
        fcntl.ioctl(self.fd, VFIO_DEVICE_SET_IRQ_EVENTFDS, argument)

    def unmask_intx(self) -> None:
        fcntl.ioctl(self.fd, VFIO_DEVICE_UNMASK_IRQ, struct.pack("=i", INTX))


def open_group(number: str) -> int:
    path = f"/dev/vfio/{number}"
    group = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    step("open group", path)
    flags = get_number(group, VFIO_GROUP_GET_FLAGS, "=Q")
    expect(flags & VFIO_GROUP_FLAGS_VIABLE, VFIO_GROUP_FLAGS_VIABLE, "flag VIABLE")
    expect(flags & VFIO_GROUP_FLAGS_MM_LOCKED, 0, "flag MM_LOCKED")
    step("group is viable and free")
    return group


def map_memory(group: int, memory: mmap.mmap) -> int:
    iommu = fcntl.ioctl(group, VFIO_GROUP_GET_IOMMU_FD)
    flags = get_number(iommu, VFIO_IOMMU_GET_FLAGS, "=Q")
    expect(flags & VFIO_IOMMU_FLAGS_MAP_ANY, VFIO_IOMMU_FLAGS_MAP_ANY, "flag MAP_ANY")
    step("open iommu, maps any address")
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    argument = DMA_MAP.pack(DMA_MAP.size, address, IOVA, len(memory), VFIO_DMA_MAP_FLAG_WRITE)
    fcntl.ioctl(iommu, VFIO_IOMMU_MAP_DMA, argument)
    step("map memory for DMA", f"iova {IOVA:#x}, {len(memory)} bytes")
    return iommu


def use_intx(edu: Edu) -> None:
    event = Eventfd()
    edu.set_irq(INTX, event)
    event.expect_none("while the device is quiet")
    step("INTx enabled")
    edu.write(EDU_IRQ_RAISE, 0x2)
    event.expect_one("INTx")
    expect(edu.read(EDU_IRQ_STATUS), 0x2, "interrupt status")
    edu.write(EDU_IRQ_RAISE, 0x4)
    event.expect_none("while INTx is masked")
    step("INTx fires once and is masked")
    edu.unmask_intx()
    event.expect_one("unmasked while asserted")
    edu.write(EDU_IRQ_ACK, 0x6)
    edu.unmask_intx()
    event.expect_none("unmasked after the acknowledge")
    step("INTx unmask")
    edu.factorial_by_interrupt(event, 5, 120)
    edu.unmask_intx()
    step("factorial, by INTx", "5! = 120")
    edu.set_irq(INTX, None)
    edu.write(EDU_IRQ_RAISE, 0x1)
    event.expect_none("after INTx was dropped")
    edu.write(EDU_IRQ_ACK, 0x1)
    step("INTx dropped")
    os.close(event.fd)


def use_dma(edu: Edu, memory: mmap.mmap) -> None:
    size = EDU_BUFFER_SIZE
    pattern = os.urandom(size)
    memory[:size], memory[size:] = pattern, bytes(size)
    edu.dma_polled(IOVA, EDU_BUFFER, 0)
    edu.dma_polled(EDU_BUFFER, IOVA + size, EDU_DMA_TO_MEMORY)
    expect(memory[:size] == pattern, True, "source unchanged")
    expect(memory[size:] == pattern, True, "same bytes back")
    step("DMA to the device and back", f"{size} bytes, same content")
    memory[:] = before = os.urandom(len(memory))
    edu.dma_polled(EDU_BUFFER, IOVA_NOT_MAPPED, EDU_DMA_TO_MEMORY)
    edu.dma_polled(EDU_BUFFER, IOVA + len(memory), EDU_DMA_TO_MEMORY)
    expect(memory[:] == before, True, "memory untouched by DMA to an unmapped address")
    step("DMA to an unmapped address goes nowhere")


def use_msi(edu: Edu) -> None:
    event = Eventfd()
    edu.set_irq(MSI, event)
    step("MSI enabled")
    for _ in range(3):
        edu.write(EDU_IRQ_RAISE, 0x2)
        event.expect_one("MSI")
    edu.write(EDU_IRQ_ACK, 0x2)
    event.expect_none("after the acknowledge")
    step("MSI fires every time")
    edu.factorial_by_interrupt(event, 12, 479001600)
    step("factorial, by MSI", "12! = 479001600")
    edu.dma(IOVA, EDU_BUFFER, EDU_DMA_IRQ)
    event.expect_one("DMA")
    expect(edu.read(EDU_IRQ_STATUS), EDU_IRQ_DMA, "interrupt status")
    edu.write(EDU_IRQ_ACK, EDU_IRQ_DMA)
    step("DMA, by MSI")
    edu.set_irq(MSI, None)
    edu.write(EDU_IRQ_RAISE, 0x1)
    event.expect_none("after MSI was dropped")
    edu.write(EDU_IRQ_ACK, 0x1)
    step("MSI dropped")
    os.close(event.fd)


def reset(edu: Edu) -> None:
    if not edu.flags & VFIO_DEVICE_FLAGS_RESET:
        try:
            fcntl.ioctl(edu.fd, VFIO_DEVICE_RESET)
        except OSError as error:
            expect(errno.errorcode[error.errno or 0], "EINVAL", "reset without flag RESET")
        else:
            sys.exit("edu_driver: a device without flag RESET was reset")
        step("reset", "this device cannot be reset alone (EINVAL), as its flags say")
        return
    fcntl.ioctl(edu.fd, VFIO_DEVICE_RESET)
    edu.enable()
    expect(edu.read(EDU_LIVENESS), 0, "liveness register after a reset")
    edu.identify()
    step("reset")


def finish(group: int, iommu: int, edu: Edu, memory: mmap.mmap) -> None:
    argument = DMA_MAP.pack(DMA_MAP.size, 0, IOVA, len(memory), 0)
    fcntl.ioctl(iommu, VFIO_IOMMU_UNMAP_DMA, argument)
    before = memory[:]
    edu.dma_polled(EDU_BUFFER, IOVA, EDU_DMA_TO_MEMORY)
    expect(memory[:] == before, True, "memory untouched by DMA after the unmap")
    step("unmap memory")
    os.close(edu.fd)
    os.close(iommu)
    flags = get_number(group, VFIO_GROUP_GET_FLAGS, "=Q")
    expect(flags, VFIO_GROUP_FLAGS_VIABLE, "group flags after everything was closed")
    os.close(group)
    step("close")


def main() -> None:
    if len(sys.argv) > 3 or any(word.startswith("-") for word in sys.argv[1:]):
        print("usage: edu_driver.py [GROUP [ADDRESS]]", file=sys.stderr)
        sys.exit(2)
    number, address = (*sys.argv[1:], *("240", "0000:06:0d.0")[len(sys.argv) - 1 :])
    memory = mmap.mmap(-1, 2 * EDU_BUFFER_SIZE)
    try:
        group = open_group(number)
        iommu = map_memory(group, memory)
        edu = Edu(group, address)
        edu.list_regions()
        edu.list_irqs()
        edu.enable()
        edu.identify()
        edu.factorial_polled()
        use_intx(edu)
        use_dma(edu, memory)
        use_msi(edu)
        reset(edu)
        finish(group, iommu, edu, memory)
    except OSError as error:
        where = error.filename or "a call to VFIO"
        print(f"edu_driver: {where}: {error.strerror}", file=sys.stderr)
        sys.exit(1)
    step("edu_driver", "all right")


if __name__ == "__main__":
    main()
