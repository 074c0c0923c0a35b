"""Ask a VFIO implementation 495 questions and print its answers: ``case<TAB>answer``.

    probe.py A [B S DRIVER]

A is a device alone in its group, on vfio-pci. B is on vfio-pci as well and shares its group with S, which is on the
host's DRIVER. Devices are those of QEMU's q35 guest that ``linux.tsv`` names, or ones that look like them.

An answer is OK with what the call gave, or the name of the errno. Runs on a real kernel (as root) and under
``uvfio run --abi mainline``; needs the standard library alone. Where a call that later ones rest on fails, the
section goes on with what there is.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import select
import signal
import struct
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

pack, unpack = struct.pack, struct.unpack_from
libc = ctypes.CDLL(None, use_errno=True)
libc.ioctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p]
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [
    *(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
]

# linux/vfio.h and linux/iommufd.h
GET_API_VERSION, CHECK_EXTENSION, SET_IOMMU = range(0x3B64, 0x3B67)
GROUP_GET_STATUS, SET_CONTAINER, UNSET_CONTAINER, GET_DEVICE_FD = range(0x3B67, 0x3B6B)
GET_INFO, REGION_INFO, IRQ_INFO, SET_IRQS, RESET = range(0x3B6B, 0x3B70)
HOT_RESET_INFO, HOT_RESET, IOEVENTFD, FEATURE = 0x3B70, 0x3B71, 0x3B74, 0x3B75
BIND_IOMMUFD, ATTACH, DETACH = 0x3B76, 0x3B77, 0x3B78
IOMMU_GET_INFO, MAP_DMA, UNMAP_DMA, DIRTY_PAGES = 0x3B70, 0x3B71, 0x3B72, 0x3B75
UNKNOWN, UNKNOWN_IOMMU = 0x3B64 + 50, 0x3B64 + 60
DESTROY, IOAS_ALLOC, ALLOW_IOVAS, IOAS_COPY, IOVA_RANGES, IOAS_MAP, IOAS_UNMAP = range(
    0x3B80, 0x3B87
)
OPTION, VFIO_IOAS, HWPT_ALLOC, GET_HW_INFO = range(0x3B87, 0x3B8B)

NONE, BOOL, EVENTFD, MASK, UNMASK, TRIGGER = (1 << bit for bit in range(6))
INTX, MSI, MSIX, ERR, REQ = range(5)
CONFIG = 7 << 40
EDU_RAISE, EDU_ACKNOWLEDGE = 0x60, 0x64
LAST_PAGE = 0xFFFFFFFFFFFFF000

asked: list[str] = []


# -- asking --------------------------------------------------------------------------------------


def name_of(number: int) -> str:
    return errno.errorcode.get(number, str(number))


def case(name: str, call: Callable[..., Any], *args: Any, show: Callable[[Any], Any] = str) -> Any:
    """Make the call, print the answer, and return it (None if it failed)."""
    asked.append(name)
    answer = None
    try:
        answer = call(*args)
        shown = "OK" if answer is None or show is nothing else f"OK {show(answer)}"
    except OSError as error:
        shown = name_of(error.errno or 0)
    except Exception as error:
        shown = f"EXC {type(error).__name__} {error}"
    print(f"{name}\t{shown}", flush=True)
    return answer


def nothing(answer: Any) -> None:
    """What is shown of an answer that says no more than that there is one."""


def hexed(data: bytes) -> str:
    return data.hex()


def open_file(path: str, flags: int = os.O_RDWR) -> int:
    return os.open(path, flags | os.O_CLOEXEC)


def command(fd: int, request: int, value: int = 0) -> int:
    """An ioctl whose argument is a number."""
    result: int = libc.ioctl(fd, request, value)
    if result < 0:
        raise OSError(ctypes.get_errno(), "")
    return result


class Answer:
    """What came back from an ioctl with a struct: its result, and the struct."""

    def __init__(self, result: int, data: bytes) -> None:
        self.result = result
        self.data = data

    def __getitem__(self, layout: str) -> tuple[int, ...]:
        return unpack(layout, self.data)


def ask(fd: int, request: int, data: bytes) -> Answer:
    """An ioctl whose argument is a struct."""
    buffer = ctypes.create_string_buffer(bytes(data), len(data))
    return Answer(command(fd, request, ctypes.addressof(buffer)), buffer.raw)


def ret(answer: Answer) -> str:
    return f"ret={answer.result}"


def write_file(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


# -- containers and groups -----------------------------------------------------------------------


def group_of(device: str) -> int:
    return int(os.path.basename(os.readlink(f"/sys/bus/pci/devices/{device}/iommu_group")))


def status(group: int) -> str:
    return f"flags={ask(group, GROUP_GET_STATUS, pack('II', 8, 0))['II'][1]}"


def set_container(group: int, fd: int) -> int:
    return ask(group, SET_CONTAINER, pack("i", fd)).result


def device_fd(group: int, name: str) -> int:
    return ask(group, GET_DEVICE_FD, name.encode() + b"\0").result


def map_dma(
    fd: int, iova: int, size: int, flags: int = 3, vaddr: int = -1, argsz: int = 32
) -> Answer:
    vaddr = memory if vaddr == -1 else vaddr
    return ask(fd, MAP_DMA, pack("IIQQQ", argsz, flags, vaddr, iova, size))


def unmap_dma(fd: int, iova: int, size: int, flags: int = 0, argsz: int = 24) -> Answer:
    return ask(fd, UNMAP_DMA, pack("IIQQ", argsz, flags, iova, size))


def unmapped(answer: Answer) -> str:
    return f"size={answer['IIQQ'][3]:#x}"


def iommu_info(fd: int, argsz: int, size: int = 0) -> Answer:
    return ask(fd, IOMMU_GET_INFO, pack("II", argsz, 0) + bytes(max(argsz, size, 16) - 8))


def container_without_group() -> int:
    print("## container without group")
    fd = open_file("/dev/vfio/vfio")
    case("container GET_API_VERSION", command, fd, GET_API_VERSION)
    case("container GET_API_VERSION arg=7", command, fd, GET_API_VERSION, 7)
    for number in (*range(13), 999):
        case(f"container no group CHECK_EXTENSION {number}", command, fd, CHECK_EXTENSION, number)
    case("container no group SET_IOMMU type1", command, fd, SET_IOMMU, 1)
    case("container no group SET_IOMMU 99", command, fd, SET_IOMMU, 99)
    case("container no iommu IOMMU_GET_INFO", iommu_info, fd, 24)
    case("container no iommu MAP_DMA", map_dma, fd, 0, 4096)
    case("container no iommu UNMAP_DMA", unmap_dma, fd, 0, 4096)
    case("container unknown ioctl", command, fd, UNKNOWN)
    case("container DEVICE_GET_INFO", ask, fd, GET_INFO, pack("IIIIII", 24, 0, 0, 0, 0, 0))
    case("container read", os.read, fd, 8)
    case("container write", os.write, fd, b"12345678")
    case("container mmap", mmap.mmap, fd, 4096)
    case("container open O_RDONLY", lambda: os.close(open_file("/dev/vfio/vfio", os.O_RDONLY)))
    return fd


def groups(path: str, container: int) -> int:
    print("## group")
    case("group open nonexistent /dev/vfio/9999", open_file, "/dev/vfio/9999")
    group: int = case("group open", open_file, path, show=lambda fd: "fd")
    case("group double open", open_file, path)

    def get_status(argsz: int, flags: int = 0, size: int = 8) -> Answer:
        return ask(group, GROUP_GET_STATUS, pack("II", argsz, flags) + bytes(size - 8))

    def both(answer: Answer) -> tuple[int, ...]:
        return answer["II"]

    case("group GET_STATUS", status, group)
    case("group GET_STATUS argsz=4", get_status, 4)
    case("group GET_STATUS argsz=8 flags=0xff", get_status, 8, 255, show=both)
    case("group GET_STATUS argsz=100", get_status, 100, 0, 100, show=both)
    case("group GET_STATUS NULL", command, group, GROUP_GET_STATUS, 0)
    case("group GET_DEVICE_FD no container", device_fd, group, A)
    case("group GET_DEVICE_FD no container wrong name", device_fd, group, "0000:ff:1f.7")
    case("group UNSET_CONTAINER no container", command, group, UNSET_CONTAINER)
    case("group SET_CONTAINER fd=-1", set_container, group, -1)
    case("group SET_CONTAINER fd=9999", set_container, group, 9999)
    case("group SET_CONTAINER /dev/null", set_container, group, null)
    case("group SET_CONTAINER NULL", command, group, SET_CONTAINER, 0)
    case("group SET_CONTAINER ok", set_container, group, container)
    case("group GET_STATUS with container", status, group)
    case("group SET_CONTAINER twice", set_container, group, container)
    other = open_file("/dev/vfio/vfio")
    case("group SET_CONTAINER second container", set_container, group, other)
    case("group GET_DEVICE_FD container without iommu", device_fd, group, A)
    for number in range(13):
        name = f"container with group CHECK_EXTENSION {number}"
        case(name, command, container, CHECK_EXTENSION, number)
    case("container with group, no iommu IOMMU_GET_INFO", iommu_info, container, 24)
    case("container with group, no iommu MAP_DMA", map_dma, container, 0, 4096)
    for kind in (0, 2, 7, 8, 99):
        case(f"container SET_IOMMU {kind}", command, container, SET_IOMMU, kind)
    case("container SET_IOMMU type1", command, container, SET_IOMMU, 1)
    case("container SET_IOMMU type1 twice", command, container, SET_IOMMU, 1)
    case("container SET_IOMMU v2 after v1", command, container, SET_IOMMU, 3)
    case("group unknown ioctl", command, group, UNKNOWN)
    case("group read", os.read, group, 8)
    return group


# -- DMA -----------------------------------------------------------------------------------------


def iommu_capabilities(fd: int) -> str:
    """The chain behind IOMMU_GET_INFO, in words."""
    data = iommu_info(fd, 4096).data
    (at,) = unpack("I", data, 16)
    found = ""
    while at:
        number, version, following = unpack("HHI", data, at)
        body = ""
        if number == 1:
            (count,) = unpack("I", data, at + 8)
            ranges = [unpack("QQ", data, at + 16 + 16 * n) for n in range(count)]
            body = " ".join(f"{first:#x}-{last:#x}" for first, last in ranges)
        elif number == 2:
            flags, page, most = unpack("IxxxxQQ", data, at + 8)
            body = f"flags={flags:#x} pgsize={page:#x} max={most:#x}"
        elif number == 3:
            body = f"avail={unpack('I', data, at + 8)[0]}"
        found += f"[@{at} id={number} v={version} next={following} {body}]"
        at = following
    return found


def dma(fd: int, version: str) -> None:
    """Mapping rules of type1."""

    def maps(what: str, *args: Any, show: Callable[[Any], Any] = nothing) -> None:
        case(f"{version} MAP {what}", map_dma, fd, *args, show=show)

    def unmaps(what: str, *args: Any, show: Callable[[Any], Any] = nothing) -> None:
        case(f"{version} UNMAP{what}", unmap_dma, fd, *args, show=show)

    def dirty(what: str, data: bytes) -> None:
        case(f"{version} DIRTY_PAGES {what}", ask, fd, DIRTY_PAGES, data, show=nothing)

    def info(answer: Answer) -> str:
        return "argsz={} flags={:#x} pgsizes={:#x} cap={}".format(*answer["IIQI"])

    name = f"{version} IOMMU_GET_INFO"
    case(f"{name} argsz=16", iommu_info, fd, 16, show=lambda answer: answer["IIQ"])
    case(f"{name} argsz=15", iommu_info, fd, 15)
    case(f"{name} argsz=24", iommu_info, fd, 24, show=info)
    case(f"{name} caps", iommu_capabilities, fd)

    maps("ok 0x100000+0x10000", 0x100000, 0x10000, show=ret)
    maps("same again", 0x100000, 0x10000)
    maps("overlap tail", 0x10F000, 0x2000)
    maps("overlap inside", 0x104000, 0x1000)
    maps("covering", 0xF0000, 0x40000)
    maps("adjacent", 0x110000, 0x1000, show=ret)
    maps("iova unaligned", 0x200800, 0x1000)
    maps("vaddr unaligned", 0x200000, 0x1000, 3, memory + 0x800)
    maps("size unaligned", 0x200000, 0x1800)
    maps("size 0", 0x200000, 0)
    maps("flags 0", 0x200000, 0x1000, 0)
    maps("flags 0x80", 0x200000, 0x1000, 0x83)
    maps("flag VADDR(4)", 0x100000, 0x10000, 4)
    maps("argsz=31", 0x200000, 0x1000, 3, memory, 31)
    maps("argsz=64", 0x200000, 0x1000, 3, memory, 64, show=ret)
    maps("iova+size wraps", LAST_PAGE, 0x2000)
    maps("iova last page of 64 bit", LAST_PAGE, 0x1000)
    maps("vaddr wraps", 0x300000, 0x2000, 3, LAST_PAGE)
    maps("reserved 0xfee00000", 0xFEE00000, 0x1000)
    maps("above aperture 1<<52", 1 << 52, 0x1000)
    maps("vaddr unmapped", 0x300000, 0x1000, 3, 0x10000)
    result = "vaddr PROT_READ with {} flag".format
    case(
        f"{version} MAP {result('WRITE')}",
        lambda: map_dma(fd, 0x300000, 0x1000, 3, read_only).result,
    )
    case(
        f"{version} MAP {result('READ')}",
        lambda: map_dma(fd, 0x301000, 0x1000, 1, read_only).result,
    )
    maps("write only", 0x302000, 0x1000, 2, show=ret)
    maps("same vaddr at second iova", 0x310000, 0x1000, show=ret)
    case(f"{version} MAP NULL pointer", command, fd, MAP_DMA, 0)

    unmaps(" not mapped", 0x900000, 0x1000, show=unmapped)
    unmaps(" size 0", 0x100000, 0, show=unmapped)
    unmaps(" unaligned iova", 0x100800, 0x1000)
    unmaps(" unaligned size", 0x100000, 0x1800)
    unmaps(" argsz=23", 0x100000, 0x1000, 0, 23)
    unmaps(" flags=0x80", 0x100000, 0x1000, 0x80)
    bitmap = pack("IIQQQQQ", 48, 1, 0x100000, 0x10000, 4096, 8, memory)
    name = f"{version} UNMAP flags dirty bitmap without dirty on"
    case(name, ask, fd, UNMAP_DMA, bitmap, show=nothing)
    unmaps(" head page of bigger", 0x100000, 0x1000, show=unmapped)
    unmaps(" middle page of bigger", 0x104000, 0x1000, show=unmapped)
    unmaps(" tail page of bigger", 0x10F000, 0x1000, show=unmapped)
    unmaps(" range cutting two", 0x108000, 0x10000, show=unmapped)
    unmaps(" covering several (0..0x400000)", 0, 0x400000, show=unmapped)
    unmaps(" wraps", LAST_PAGE, 0x2000)
    map_dma(fd, 0x100000, 0x2000)
    map_dma(fd, 0x800000, 0x2000)
    unmaps("_ALL with iova/size nonzero", 0x1000, 0x1000, 2)
    unmaps("_ALL", 0, 0, 2, show=unmapped)
    unmaps("_ALL empty", 0, 0, 2, show=unmapped)
    unmaps(" VADDR", 0, 0x1000, 4)

    dirty("start", pack("II", 8, 1))
    dirty("stop", pack("II", 8, 2))
    dirty("get after stop", pack("IIQQQQQ", 48, 4, 0, 4096, 4096, 8, memory))
    dirty("flags 3", pack("II", 8, 3))
    case(f"{version} iommu unknown ioctl", command, fd, UNKNOWN_IOMMU)


# -- the device ----------------------------------------------------------------------------------


class Device:
    """An open device, and its BAR 0, mapped."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.bar: mmap.mmap | None = None
        self.size = 0x100000

    def info(self, argsz: int = 20, room: int = 32) -> tuple[int, ...]:
        return ask(self.fd, GET_INFO, pack("I", argsz) + bytes(room))["IIIII"]

    def region(self, index: int, argsz: int = 32) -> str:
        data = pack("IIII", argsz, 0, index, 0) + bytes(max(argsz, 32))
        found = ask(self.fd, REGION_INFO, data)["IIIIQQ"]
        return "argsz={} flags={:#x} idx={} cap={} size={:#x} off={:#x}".format(*found)

    def irq(self, index: int, argsz: int = 16) -> tuple[int, ...]:
        return ask(self.fd, IRQ_INFO, pack("IIII", argsz, 0, index, 0))["IIII"]

    def read(self, count: int, offset: int) -> bytes:
        return os.pread(self.fd, count, offset)

    def write(self, data: bytes, offset: int) -> int:
        return os.pwrite(self.fd, data, offset)

    def set_irqs(
        self, index: int, flags: int, start: int, count: int, data: bytes = b"", argsz: int = -1
    ) -> int:
        argsz = 20 + len(data) if argsz < 0 else argsz
        return ask(
            self.fd, SET_IRQS, pack("IIIII", argsz, flags, index, start, count) + data
        ).result

    def map_bar(self) -> None:
        self.bar = mmap.mmap(self.fd, self.size)

    def mapped_word(self) -> str:
        """The first word of the mapping."""
        assert self.bar is not None
        return hex(memoryview(self.bar).cast("I")[0])

    def poke(self, offset: int, value: int) -> None:
        """Store into a register, through the mapping."""
        assert self.bar is not None
        memoryview(self.bar).cast("I")[offset // 4] = value

    def unmap_bar(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None


def in_child(call: Callable[[], object]) -> str:
    """Make the call in a child; how that ended."""
    pid = os.fork()
    if pid == 0:
        try:
            call()
        except BaseException:
            os._exit(99)
        os._exit(0)
    end = os.waitpid(pid, 0)[1]
    if os.WIFSIGNALED(end):
        return f"signal {signal.Signals(os.WTERMSIG(end)).name}"
    return f"exit {os.WEXITSTATUS(end)}"


def get_device(group: int, container: int) -> Device:
    print("## device fd")
    for what, name in (
        ("wrong bdf", "0000:ff:1f.7"),
        ("empty", ""),
        ("garbage", "hello"),
        ("short bdf", A[5:]),
        ("bdf + trailing space", f"{A} "),
        ('bdf + " x"', f"{A} x"),
        ('bdf + "x"', f"{A}x"),
    ):
        fd = case(f"group GET_DEVICE_FD {what}", device_fd, group, name, show=lambda fd: "fd>0")
        if fd:
            os.close(fd)
    fd = case("group GET_DEVICE_FD ok", device_fd, group, A, show=lambda fd: "fd>0")

    def flags() -> str:
        link = os.readlink(f"/proc/self/fd/{fd}")
        return f"fl={fcntl.fcntl(fd, fcntl.F_GETFL):#x} cloexec={fcntl.fcntl(fd, fcntl.F_GETFD)} link={link}"

    case("device fd flags", flags)
    second = case("group GET_DEVICE_FD second fd", device_fd, group, A, show=lambda fd: "fd>0")
    if second:
        os.close(second)
    case("group UNSET_CONTAINER device open", command, group, UNSET_CONTAINER)
    case("container SET_IOMMU device open", command, container, SET_IOMMU, 1)
    device = Device(fd)
    for argsz in (20, 24, 15, 16):
        case(f"device GET_INFO argsz={argsz}", device.info, argsz)
    case("device GET_INFO argsz=4096", device.info, 4096, 4096)
    case("device GET_INFO NULL", command, fd, GET_INFO, 0)
    for index in (0, 1, 6, 7, 8, 9, 10, 100, 0xFFFFFFFF):
        case(f"device REGION_INFO {index}", device.region, index)
    case("device REGION_INFO argsz=31", device.region, 0, 31)
    case("device REGION_INFO argsz=4096", device.region, 0, 4096)
    for index in (0, 1, 2, 3, 4, 5, 100):
        case(f"device IRQ_INFO {index}", device.irq, index)
    case("device IRQ_INFO argsz=15", device.irq, 0, 15)
    return device


def accesses(device: Device) -> None:
    print("## read/write/mmap")
    read, write, fd, size = device.read, device.write, device.fd, device.size

    def reads(what: str, count: int, offset: int) -> None:
        case(f"pread {what}", read, count, offset, show=hexed)

    def lengths(what: str, count: int, offset: int) -> None:
        case(f"pread {what}", lambda: len(read(count, offset)))

    reads("config 4@0", 4, CONFIG)
    reads("config 1@0", 1, CONFIG)
    reads("config 8@0", 8, CONFIG)
    reads("config 3@1", 3, CONFIG + 1)
    lengths("config 64@0", 64, CONFIG)
    lengths("config 0@0", 0, CONFIG)
    reads("config at size", 4, CONFIG + 256)
    lengths("config 8@size-4", 8, CONFIG + 252)
    reads("config past", 4, CONFIG + 0x10000)
    lengths("config whole 4096", 4096, CONFIG)
    case("pwrite config vendor id", write, b"\xff\xff", CONFIG)
    reads("config vendor after", 2, CONFIG)
    case("pwrite config BAR0 sizing", write, b"\xff" * 4, CONFIG + 0x10)
    reads("BAR0 sizing", 4, CONFIG + 0x10)
    write(pack("I", 0xFE000000), CONFIG + 0x10)
    reads("BAR0 after 0xfe000000", 4, CONFIG + 0x10)
    reads("command", 2, CONFIG + 4)
    write(b"\0\0", CONFIG + 4)
    reads("BAR0 memory disabled", 4, 0)
    case("pwrite BAR0 memory disabled", write, b"\1\0\0\0", 4)
    device.map_bar()
    case("mmap BAR0 access memory disabled", in_child, device.mapped_word)
    write(b"\6\0", CONFIG + 4)
    case("mmap BAR0 access memory enabled", device.mapped_word)
    for what, count, offset in (("4@0", 4, 0), ("1@0", 1, 0), ("2@0", 2, 0), ("8@0", 8, 0)):
        reads(f"BAR0 {what}", count, offset)
    reads("BAR0 5@0", 5, 0)
    reads("BAR0 4@2", 4, 2)
    reads("BAR0 at end", 4, size)
    lengths("BAR0 8@end-4", 8, size - 4)
    case("pwrite BAR0 at end", write, b"1234", size)
    reads("BAR1 (absent)", 4, 1 << 40)
    reads("ROM (absent)", 4, 6 << 40)
    reads("VGA region", 4, 8 << 40)
    reads("region 9", 4, 9 << 40)
    reads("region 20", 4, 20 << 40)

    def negative() -> str:
        buffer = ctypes.create_string_buffer(4)
        result = libc.pread(fd, buffer, 4, ctypes.c_long(-4))
        return name_of(ctypes.get_errno()) if result == -1 else str(result)

    case("pread negative offset", negative)
    case("device read() with f_pos", lambda: os.read(fd, 4).hex())
    case("device lseek", os.lseek, fd, CONFIG, 0)
    case("device lseek SEEK_END", os.lseek, fd, 0, 2)
    mappings(fd, size)


def map_file(
    fd: int, size: int, offset: int, flags: int = mmap.MAP_SHARED, protection: int = 3
) -> None:
    """mmap, and munmap at once."""
    address = libc.mmap(None, size, protection, flags, fd, offset)
    if address == ctypes.c_void_p(-1).value:
        raise OSError(ctypes.get_errno(), "")
    libc.munmap(ctypes.c_void_p(address), ctypes.c_size_t(size))


def mappings(fd: int, size: int) -> None:
    for what, *args in (
        ("BAR0 whole", size, 0),
        ("BAR0 middle page", 4096, 8192),
        ("BAR0 beyond end", 4096, size),
        ("BAR0 longer than bar", size + 4096, 0),
        ("BAR0 last page + 1", 8192, size - 4096),
        ("BAR0 unaligned offset", 4096, 8),
        ("BAR0 length 100", 100, 0),
        ("BAR0 length 0", 0, 0),
        ("BAR0 MAP_PRIVATE", 4096, 0, mmap.MAP_PRIVATE),
        ("BAR0 PROT_READ", 4096, 0, mmap.MAP_SHARED, 1),
        ("BAR0 PROT_EXEC", 4096, 0, mmap.MAP_SHARED, 5),
        ("BAR0 PROT_NONE", 4096, 0, mmap.MAP_SHARED, 0),
        ("config region", 4096, CONFIG),
        ("BAR1 absent", 4096, 1 << 40),
        ("region 8", 4096, 8 << 40),
        ("region 20", 4096, 20 << 40),
    ):
        case(f"mmap {what}", map_file, fd, *args)


def count_of(event: int) -> int:
    """Read an eventfd that may have nothing to say."""
    if select.select([event], [], [], 0)[0]:
        return os.eventfd_read(event)
    return 0


def interrupts(device: Device, events: list[int]) -> None:
    print("## SET_IRQS")
    fds = [pack("i", event) for event in events]
    set_irqs, connect = device.set_irqs, EVENTFD | TRIGGER

    def sets(what: str, *args: Any) -> None:
        case(f"SET_IRQS {what}", set_irqs, *args)

    def counted(event: int, what: str = "eventfd count") -> None:
        case(f"  {what}", count_of, events[event])

    sets("argsz=19", MSI, connect, 0, 1, fds[0], 19)
    sets("argsz=20 with eventfd data", MSI, connect, 0, 1, fds[0], 20)
    sets("flags=0", MSI, 0, 0, 1, fds[0])
    sets("no action", MSI, EVENTFD, 0, 1, fds[0])
    sets("two actions", MSI, connect | UNMASK, 0, 1, fds[0])
    sets("two data types", MSI, connect | BOOL, 0, 1, fds[0])
    sets("unknown flag", MSI, 0x80, 0, 1)
    sets("index 5", 5, connect, 0, 1, fds[0])
    sets("index 100", 100, connect, 0, 1, fds[0])
    sets("INTx start=1", INTX, connect, 1, 1, fds[0])
    sets("INTx count=2", INTX, connect, 0, 2, fds[0] + fds[1])
    sets("MSI count=2 of 1", MSI, connect, 0, 2, fds[0] + fds[1])
    sets("MSI start=1", MSI, connect, 1, 1, fds[0])
    sets("MSI start huge", MSI, connect, 0xFFFFFFFF, 1, fds[0])
    sets("MSIX count=1 absent", MSIX, connect, 0, 1, fds[0])
    sets("ERR trigger", ERR, connect, 0, 1, fds[0])
    sets("MSI eventfd=9999", MSI, connect, 0, 1, pack("i", 9999))
    sets("MSI eventfd=/dev/null", MSI, connect, 0, 1, pack("i", null))
    sets("MSI eventfd=-1 first", MSI, connect, 0, 1, pack("i", -1))
    sets("MSI disable", MSI, NONE | TRIGGER, 0, 0)
    sets("MSI disable when off", MSI, NONE | TRIGGER, 0, 0)
    sets("MSI DATA_BOOL when off", MSI, BOOL | TRIGGER, 0, 1, b"\1")
    sets("MSI DATA_NONE trigger count1 when off", MSI, NONE | TRIGGER, 0, 1)
    sets("MSI mask", MSI, NONE | MASK, 0, 1)
    sets("MSI unmask", MSI, NONE | UNMASK, 0, 1)
    sets("INTx unmask when off", INTX, NONE | UNMASK, 0, 1)
    sets("INTx mask when off", INTX, NONE | MASK, 0, 1)
    sets("INTx disable when off", INTX, NONE | TRIGGER, 0, 0)
    sets("eventfd count=0", MSI, connect, 0, 0)
    sets("REQ eventfd", REQ, connect, 0, 1, fds[3])
    sets("REQ count=2", REQ, connect, 0, 2, fds[3] + fds[2])
    sets("MSI ok", MSI, connect, 0, 1, fds[0])
    sets("MSI trigger DATA_NONE (loopback)", MSI, NONE | TRIGGER, 0, 1)
    counted(0)
    sets("MSI trigger DATA_BOOL 1", MSI, BOOL | TRIGGER, 0, 1, b"\1")
    counted(0)
    sets("MSI trigger DATA_BOOL 0", MSI, BOOL | TRIGGER, 0, 1, b"\0")
    counted(0)
    device.poke(EDU_RAISE, 1)
    time.sleep(0.3)
    counted(0, "eventfd count after device MSI")
    device.poke(EDU_ACKNOWLEDGE, 1)
    case("pread MSI cap control while enabled", lambda: device.read(2, CONFIG + 0x42).hex())
    sets("INTx while MSI on", INTX, connect, 0, 1, fds[1])
    case("IRQ_INFO INTx while MSI on", device.irq, INTX)
    sets("MSI replace eventfd", MSI, connect, 0, 1, fds[1])
    sets("MSI eventfd=-1 (remove)", MSI, connect, 0, 1, pack("i", -1))
    sets("MSI trigger with no eventfd", MSI, NONE | TRIGGER, 0, 1)
    sets("MSI off", MSI, NONE | TRIGGER, 0, 0)

    sets("INTx ok", INTX, connect, 0, 1, fds[1])
    sets("MSI while INTx on", MSI, connect, 0, 1, fds[0])
    sets("INTx loopback NONE", INTX, NONE | TRIGGER, 0, 1)
    counted(1)
    sets("INTx again with eventfd", INTX, connect, 0, 1, fds[1])
    sets("INTx mask", INTX, NONE | MASK, 0, 1)
    sets("INTx mask BOOL", INTX, BOOL | MASK, 0, 1, b"\1")
    sets("INTx unmask NONE", INTX, NONE | UNMASK, 0, 1)
    sets("INTx unmask eventfd", INTX, EVENTFD | UNMASK, 0, 1, fds[2])
    sets("INTx mask eventfd", INTX, EVENTFD | MASK, 0, 1, fds[2])
    count_of(events[1])
    device.poke(EDU_RAISE, 1)
    time.sleep(0.3)
    counted(1, "INTx eventfd count after raise (level held)")
    set_irqs(INTX, NONE | UNMASK, 0, 1)
    time.sleep(0.3)
    counted(1, "INTx unmask without ack: count")
    device.poke(EDU_ACKNOWLEDGE, 1)
    os.eventfd_write(events[2], 1)
    time.sleep(0.2)
    device.poke(EDU_RAISE, 1)
    time.sleep(0.3)
    counted(1, "INTx after ack + unmask eventfd: count")
    device.poke(EDU_ACKNOWLEDGE, 1)
    sets("INTx off", INTX, NONE | TRIGGER, 0, 0)
    sets("REQ trigger NONE", REQ, NONE | TRIGGER, 0, 1)
    counted(3)
    sets("REQ BOOL 1", REQ, BOOL | TRIGGER, 0, 1, b"\1")
    counted(3)
    case("SET_IRQS NULL", command, device.fd, SET_IRQS, 0)


def other_ioctls(device: Device, event: int) -> None:
    print("## other device ioctls")
    fd = device.fd

    def structs(what: str, request: int, data: bytes) -> None:
        case(f"device {what}", ask, fd, request, data, show=nothing)

    def stores(what: str, flags: int, offset: int, value: int, eventfd: int) -> None:
        structs(
            f"IOEVENTFD {what}", IOEVENTFD, pack("IIQQiI", 32, flags, offset, value, eventfd, 0)
        )

    case("device RESET", command, fd, RESET)
    structs("HOT_RESET_INFO argsz=12", HOT_RESET_INFO, pack("III", 12, 0, 0))
    structs("HOT_RESET argsz=12 count 0", HOT_RESET, pack("III", 12, 0, 0))
    case("device unknown ioctl", command, fd, UNKNOWN)
    stores("bad", 0, 0, 0, -1)
    stores("BAR0+4 32bit", 4, 4, 1, event)
    stores("remove", 4, 4, 1, -1)
    stores("config region", 4, CONFIG + 4, 1, event)
    for number in range(14):
        structs(f"FEATURE probe|get {number}", FEATURE, pack("II", 8, number | 0x50000))
        structs(f"FEATURE probe|set {number}", FEATURE, pack("II", 8, number | 0x60000))
    structs("FEATURE argsz=7", FEATURE, pack("II", 7, 0x50000))
    structs("FEATURE get+set no probe", FEATURE, pack("II", 8, 0x30000))
    structs("FEATURE neither", FEATURE, pack("II", 8, 0))
    structs("GET_STATUS (group ioctl)", GROUP_GET_STATUS, pack("II", 8, 0))


# -- lifetime ------------------------------------------------------------------------------------


def lifetime(path: str, group: int, device: Device, req: int) -> None:
    print("## lifetime")
    fd = device.fd
    device.unmap_bar()
    finished: list[bool] = []

    def unbind() -> None:
        try:
            write_file(f"/sys/bus/pci/devices/{A}/driver/unbind", A)
        except OSError as error:
            print(f"# unbind: {error}", flush=True)
        finished.append(True)

    waiter = threading.Thread(target=unbind, daemon=True)
    waiter.start()
    time.sleep(1.5)
    case(
        "sysfs unbind while device fd open: blocked?",
        lambda: f"finished={bool(finished)} req_eventfd={count_of(req)}",
    )
    case("  GET_INFO during pending unbind", device.info)
    os.close(fd)
    waiter.join(20)
    case("  unbind finished after close", lambda: bool(finished))
    case("group GET_STATUS after unbind", status, group)
    again = case("group GET_DEVICE_FD after unbind", device_fd, group, A)
    if again:
        os.close(again)
    again = case("open group path after unbind", open_file, path)
    if again:
        os.close(again)
    os.close(group)
    case("group node after close", os.path.exists, path)
    try:
        write_file(f"/sys/bus/pci/devices/{A}/driver_override", "vfio-pci")
        write_file("/sys/bus/pci/drivers_probe", A)
    except OSError as error:
        print(f"# rebind: {error}", flush=True)
    time.sleep(0.3)
    case("group node after rebind", os.path.exists, path)

    group, container = open_file(path), open_file("/dev/vfio/vfio")
    set_container(group, container)
    command(container, SET_IOMMU, 3)
    device = Device(device_fd(group, A))
    map_dma(container, 0, 4096)
    os.close(container)
    case("container fd closed first: device GET_INFO", device.info)
    os.close(group)
    case("group fd closed too: device GET_INFO", device.info)
    case("group reopen while device still open", open_file, path)
    os.close(device.fd)
    case("group reopen after device closed", lambda: os.close(open_file(path)))

    group, container = open_file(path), open_file("/dev/vfio/vfio")
    set_container(group, container)
    command(container, SET_IOMMU, 3)
    map_dma(container, 0x100000, 4096)
    os.close(group)
    case("group closed, container open: MAP", map_dma, container, 0x200000, 4096)
    name = "group closed, container open: CHECK_EXTENSION v2"
    case(name, command, container, CHECK_EXTENSION, 3)
    os.close(container)


# -- a group with somebody else in it ------------------------------------------------------------


def bind_to(driver: str, device: str) -> str:
    write_file(f"/sys/bus/pci/devices/{device}/driver_override", driver)
    write_file(f"/sys/bus/pci/drivers/{driver}/bind", device)
    return os.path.basename(os.readlink(f"/sys/bus/pci/devices/{device}/driver"))


def shared_group(b: str, s: str, driver: str) -> None:
    print("## group with an unbound / foreign sibling")
    path = f"/dev/vfio/{group_of(b)}"
    group = case("B: group open, sibling on a host driver", open_file, path, show=lambda fd: "fd")
    case("B: GET_STATUS sibling on host driver", status, group)
    container = open_file("/dev/vfio/vfio")
    case("B: SET_CONTAINER not viable", set_container, group, container)
    try:
        write_file(f"/sys/bus/pci/devices/{s}/driver/unbind", s)
    except OSError as error:
        print(f"# unbind: {error}", flush=True)
    case("B: GET_STATUS sibling unbound", status, group)
    case("B: SET_CONTAINER sibling unbound", set_container, group, container)
    case("B: SET_IOMMU", command, container, SET_IOMMU, 3)
    case("B: GET_DEVICE_FD of unbound sibling", device_fd, group, s)
    fd = case("B: GET_DEVICE_FD", device_fd, group, b, show=lambda fd: "fd")
    fd = -1 if fd is None else fd
    case("B: GET_STATUS", status, group)
    case(f"B: bind sibling to {driver} while device open", bind_to, driver, s)
    case("B: bind sibling to vfio-pci while device open", bind_to, "vfio-pci", s)
    case("B: GET_DEVICE_FD sibling on vfio-pci", lambda: os.close(device_fd(group, s)))

    def resets(what: str, data: bytes) -> None:
        case(f"B: HOT_RESET {what}", ask, fd, HOT_RESET, data, show=nothing)

    def counted() -> tuple[int, ...]:
        return ask(fd, HOT_RESET_INFO, pack("III", 4096, 0, 0) + bytes(4096))["III"]

    case("B: HOT_RESET_INFO argsz=12", ask, fd, HOT_RESET_INFO, pack("III", 12, 0, 0))
    case("B: HOT_RESET_INFO argsz=4096", counted)
    resets("no groups", pack("III", 12, 0, 0))
    resets("own group", pack("IIIi", 16, 0, 1, group))
    resets("bad fd", pack("IIIi", 16, 0, 1, null))
    case("B: device RESET", command, fd, RESET)
    for number in (fd, group, container):
        if number >= 0:
            os.close(number)


# -- iommufd and the devices' own nodes --------------------------------------------------------


class Iommufd:
    """An open /dev/iommu."""

    def __init__(self) -> None:
        self.fd = open_file("/dev/iommu")

    def alloc(self, size: int = 12, flags: int = 0, *more: int) -> int:
        answer = ask(self.fd, IOAS_ALLOC, pack(f"{3 + len(more)}I", size, flags, 0, *more))
        return answer["III"][2]

    def map(
        self, ioas: int, iova: int, size: int, flags: int = 7, vaddr: int = -1, argsz: int = 40
    ) -> int:
        vaddr = odd_memory if vaddr == -1 else vaddr
        argument = pack("IIIIQQQ", argsz, flags, ioas, 0, vaddr, size, iova)
        return ask(self.fd, IOAS_MAP, argument)["IIIIQQQ"][6]

    def unmap(self, ioas: int, iova: int, size: int) -> str:
        return hex(ask(self.fd, IOAS_UNMAP, pack("IIQQ", 24, ioas, iova, size))["IIQQ"][3])

    def copy(self, target: int, source: int, iova: int, size: int, to: int) -> str:
        argument = pack("IIIIQQQ", 40, 7, target, source, size, to, iova)
        return hex(ask(self.fd, IOAS_COPY, argument)["IIIIQQQ"][5])

    def ranges(self, ioas: int, room: int) -> str:
        listed = ctypes.create_string_buffer(16 * 64)
        argument = pack("IIIIQQ", 32, ioas, room, 0, ctypes.addressof(listed), 0)
        answer = ask(self.fd, IOVA_RANGES, argument)
        (count,), (align,) = unpack("I", answer.data, 8), unpack("Q", answer.data, 24)
        shown = [unpack("QQ", listed.raw, 16 * n) for n in range(min(count, room))]
        words = " ".join(f"{first:#x}-{last:#x}" for first, last in shown)
        return f"num={count} align={align:#x} {words}"

    def allow(self, ioas: int, first: int, last: int) -> int:
        listed = ctypes.create_string_buffer(pack("QQ", first, last), 16)
        argument = pack("IIIIQ", 24, ioas, 1, 0, ctypes.addressof(listed))
        return ask(self.fd, ALLOW_IOVAS, argument).result

    def option(self, number: int, thing: int) -> tuple[int, ...]:
        return ask(self.fd, OPTION, pack("IIHHIQ", 24, number, 1, 0, thing, 0))["IIHHIQ"]

    def vfio_ioas(self, op: int, ioas: int = 0) -> Answer:
        return ask(self.fd, VFIO_IOAS, pack("IIHH", 12, ioas, op, 0))

    def destroy(self, thing: int) -> Answer:
        return ask(self.fd, DESTROY, pack("II", 8, thing))

    def alloc_hwpt(self, device: int, ioas: int, flags: int = 0) -> int:
        argument = pack("IIIIIIIIQII", 48, flags, device, ioas, 0, 0, 0, 0, 0, 0, 0)
        return ask(self.fd, HWPT_ALLOC, argument)["IIIIIIIIQ"][4]

    def hw_info(self, device: int) -> tuple[int, ...]:
        return ask(self.fd, GET_HW_INFO, pack("IIIIQIIQ", 40, 0, device, 0, 0, 0, 0, 0))["IIIIQIIQ"]


def address_spaces(iommufd: Iommufd) -> tuple[int, int]:
    """The numbers of two address spaces, the second with addresses that may be chosen."""
    fd, maps, unmaps = iommufd.fd, iommufd.map, iommufd.unmap
    case("iommufd unknown ioctl", command, fd, DESTROY + 0x7E)
    case("iommufd IOAS_ALLOC size=8", iommufd.alloc, 8)
    case("iommufd IOAS_ALLOC flags=1", iommufd.alloc, 12, 1)
    first = iommufd.alloc()
    case("iommufd IOAS_ALLOC id", lambda: first)
    case("iommufd IOAS_ALLOC size=20 trailing zero", iommufd.alloc, 20, 0, 0, 0)
    case("iommufd IOAS_ALLOC size=20 trailing nonzero", iommufd.alloc, 20, 0, 5, 0)
    case("iommufd IOVA_RANGES empty ioas", iommufd.ranges, first, 64)
    case("iommufd IOVA_RANGES bad id", iommufd.ranges, 999, 64)
    case("iommufd IOVA_RANGES n=0", iommufd.ranges, first, 0)

    case("iommufd MAP fixed 0x100000+0x10000", maps, first, 0x100000, 0x10000, show=hex)
    case("iommufd MAP overlap", maps, first, 0x104000, 0x1000)
    case("iommufd MAP fixed unaligned iova", maps, first, 0x200800, 0x1000)
    case("iommufd MAP unaligned va", maps, first, 0x200000, 0x1000, 7, memory + 0x800)
    case("iommufd MAP len 0", maps, first, 0x200000, 0)
    case("iommufd MAP flags 0x80", maps, first, 0x200000, 0x1000, 0x87)
    case("iommufd MAP no perm", maps, first, 0x200000, 0x1000, 1)
    case("iommufd MAP not fixed", maps, first, 0, 0x4000, 6, show=hex)
    case("iommufd MAP bad ioas", maps, 999, 0x200000, 0x1000)
    case("iommufd MAP wraps", maps, first, LAST_PAGE, 0x2000)
    case("iommufd MAP bad va (no device)", maps, first, 0x300000, 0x1000, 7, 0x10000, show=hex)
    case("iommufd MAP size=39", maps, first, 0x400000, 0x1000, 7, memory, 39)
    case("iommufd UNMAP middle", unmaps, first, 0x104000, 0x1000)
    case("iommufd UNMAP head", unmaps, first, 0x100000, 0x1000)
    case("iommufd UNMAP not mapped", unmaps, first, 0x900000, 0x1000)
    case("iommufd UNMAP len 0", unmaps, first, 0x100000, 0)
    case("iommufd UNMAP exact", unmaps, first, 0x100000, 0x10000)
    case("iommufd UNMAP all (0,U64_MAX)", unmaps, first, 0, 2**64 - 1)
    case("iommufd UNMAP all, empty", unmaps, first, 0, 2**64 - 1)

    second = iommufd.alloc()
    maps(first, 0x100000, 0x10000)
    case("iommufd COPY whole", iommufd.copy, second, first, 0x100000, 0x10000, 0x500000)
    case("iommufd COPY part", iommufd.copy, second, first, 0x102000, 0x1000, 0x600000)
    case("iommufd COPY hole", iommufd.copy, second, first, 0x900000, 0x1000, 0x700000)
    case("iommufd COPY overlap", iommufd.copy, second, first, 0x100000, 0x1000, 0x500000)
    case("iommufd ALLOW_IOVAS 0..1G", iommufd.allow, second, 0, 0x3FFFFFFF)
    name = "iommufd MAP outside allowed, not fixed"
    case(name, maps, second, 0, 0x1000, 6, show=hex)
    case("iommufd OPTION rlimit mode get", iommufd.option, 0, 0)
    case("iommufd OPTION huge pages get", iommufd.option, 1, first)
    get = "iommufd VFIO_IOAS get"
    case(get, iommufd.vfio_ioas, 0, show=lambda answer: answer["IIHH"])
    case("iommufd VFIO_IOAS set", iommufd.vfio_ioas, 1, first, show=nothing)
    case(get, iommufd.vfio_ioas, 0, show=lambda answer: answer["IIHH"])
    case("iommufd compat GET_API_VERSION", command, fd, GET_API_VERSION)
    case("iommufd compat CHECK_EXTENSION v2", command, fd, CHECK_EXTENSION, 3)
    case("iommufd compat SET_IOMMU", command, fd, SET_IOMMU, 3)
    return first, second


def own_node(iommufd: Iommufd, first: int, second: int, group_path: str) -> None:
    """A device that is opened by its own node, and page tables for it."""
    name = os.listdir(f"/sys/bus/pci/devices/{A}/vfio-dev")[0]
    fd = case("cdev open", open_file, f"/dev/vfio/devices/{name}", show=lambda fd: "fd")
    case("cdev second open", open_file, f"/dev/vfio/devices/{name}", show=lambda fd: "fd")
    device = Device(fd)

    def attach(page_table: int) -> int:
        return ask(fd, ATTACH, pack("IIII", 16, 0, page_table, 0))["IIII"][2]

    def bind(iommufd: int, flags: int = 0, argsz: int = 24) -> int:
        return ask(fd, BIND_IOMMUFD, pack("IIiIQ", argsz, flags, iommufd, 0, 0))["IIiIQ"][3]

    case("cdev GET_INFO before bind", device.info)
    case("cdev pread before bind", device.read, 4, CONFIG)
    case("cdev mmap before bind", map_file, fd, 4096, 0)
    case("cdev ATTACH before bind", attach, first)
    case("cdev BIND fd=-1", bind, -1)
    case("cdev BIND /dev/null", bind, null)
    case("cdev BIND flags=0x80", bind, iommufd.fd, 0x80)
    case("cdev BIND argsz=8", bind, iommufd.fd, 0, 8)
    number = case("cdev BIND ok", bind, iommufd.fd)
    case("cdev BIND twice", bind, iommufd.fd)
    case("cdev GET_INFO after bind", device.info)
    case("cdev group open while cdev bound", open_file, group_path)
    case("cdev ATTACH bad id", attach, 999)
    case("cdev ATTACH device id as pt", attach, number)
    case("cdev ATTACH ioas", attach, first)
    case("cdev ATTACH again same", attach, first)
    case("cdev ATTACH replace other ioas", attach, second)
    case("cdev ATTACH back", attach, first)
    case("iommufd IOVA_RANGES attached", iommufd.ranges, first, 64)
    case("iommufd MAP reserved 0xfee00000", iommufd.map, first, 0xFEE00000, 0x1000)
    case("iommufd MAP bad va attached", iommufd.map, first, 0x300000, 0x1000, 7, 0x10000)
    case("iommufd MAP ok attached", iommufd.map, first, 0x300000, 0x1000, show=hex)
    case("iommufd DESTROY attached ioas", iommufd.destroy, first)
    case("iommufd DESTROY bad id", iommufd.destroy, 999)
    case("iommufd DESTROY device id", iommufd.destroy, number)
    page_table = case("iommufd HWPT_ALLOC", iommufd.alloc_hwpt, number, first)
    case("iommufd HWPT_ALLOC dirty flag", iommufd.alloc_hwpt, number, first, 2)
    case("iommufd HWPT_ALLOC unknown flag", iommufd.alloc_hwpt, number, first, 0x8000)
    case("iommufd GET_HW_INFO", iommufd.hw_info, number)
    case("cdev ATTACH hwpt", attach, page_table)
    case("cdev DETACH", ask, fd, DETACH, pack("II", 8, 0), show=ret)
    case("cdev DETACH twice", ask, fd, DETACH, pack("II", 8, 0), show=ret)
    case("iommufd DESTROY ioas after detach", iommufd.destroy, second, show=ret)
    case("cdev RESET", command, fd, RESET)
    os.close(iommufd.fd)
    case("cdev GET_INFO after iommufd closed", device.info)
    os.close(fd)


def compatibility(group_path: str) -> None:
    """The container's requests on an iommufd."""
    fd, group = open_file("/dev/iommu"), open_file(group_path)
    case("group SET_CONTAINER with iommufd", set_container, group, fd)
    case("compat SET_IOMMU type1v2", command, fd, SET_IOMMU, 3)
    case("compat MAP", map_dma, fd, 0x100000, 0x4000, show=ret)
    case("compat UNMAP middle (v2)", unmap_dma, fd, 0x101000, 0x1000, show=unmapped)
    name = "compat IOMMU_GET_INFO"
    case(name, iommu_info, fd, 24, show=lambda answer: answer["IIQII"])
    case("compat GET_DEVICE_FD", device_fd, group, A, show=lambda fd: "fd")
    case("compat DIRTY_PAGES start", ask, fd, DIRTY_PAGES, pack("II", 8, 1))
    case("compat UNMAP_ALL", unmap_dma, fd, 0, 0, 2, show=unmapped)


def main() -> None:
    libc.mprotect(ctypes.c_void_p(read_only), 4096, 1)
    print("# kernel", os.uname().release)
    path = f"/dev/vfio/{group_of(A)}"
    container = container_without_group()
    group = groups(path, container)
    print("## DMA, type1 v1")
    dma(container, "v1")
    case("group UNSET_CONTAINER", command, group, UNSET_CONTAINER)
    case("container after UNSET: IOMMU_GET_INFO", iommu_info, container, 16)
    case("group SET_CONTAINER again", set_container, group, container)
    case("container SET_IOMMU v2", command, container, SET_IOMMU, 3)
    print("## DMA, type1 v2")
    dma(container, "v2")
    device = get_device(group, container)
    accesses(device)
    events = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(4)]
    interrupts(device, events)
    other_ioctls(device, events[2])
    lifetime(path, group, device, events[3])
    if len(sys.argv) > 4:
        shared_group(*sys.argv[2:5])
    if os.path.exists("/dev/iommu"):
        print("## iommufd")
        iommufd = Iommufd()
        own_node(iommufd, *address_spaces(iommufd), path)
        compatibility(path)
    print("#", len(asked), "cases")


# Memory that DMA may use, a page that main makes read-only, and a file that has nothing to do with VFIO.
area, small = mmap.mmap(-1, 4 << 20), mmap.mmap(-1, 8192)
memory = (ctypes.addressof(ctypes.c_char.from_buffer(area)) + 4095) & ~4095
odd_memory = (memory + 0x3FFF & ~0x3FFF) + 0x2000  # addresses are chosen aligned as the memory is
read_only = ctypes.addressof(ctypes.c_char.from_buffer(small)) & ~4095
null = os.open("/dev/null", os.O_RDWR)

if __name__ == "__main__":
    A = sys.argv[1]
    main()
