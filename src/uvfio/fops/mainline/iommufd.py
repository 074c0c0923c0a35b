"""/dev/iommu: each open file is a context of numbered objects (``core/structure/iommufd.py``).

Every argument begins with its size. At least the size of its first release is needed (EINVAL), what is missing
behind that counts as zero, and what is too much has to be zero (E2BIG). Answers are as long as the question. The
ioctls whose numbers lie below are the container's (``fops/mainline/iommufd_container.py``).

    condition                     errno             why Linux gives that one
    Unsupported, unknown flags    EOPNOTSUPP        the ABI may learn it later
    NoSuchObject                  ENOENT            a number that is no object, or of another kind
    IovaInUse                     EADDRINUSE        the device and the mappings contradict each other

IOMMUs here have neither nested page tables nor a log of dirty pages, and report no page faults: what needs those is
refused as by a kernel whose IOMMU has none (IOMMU_FAULT_QUEUE_ALLOC as well, which Linux grants always).

Each ioctl decodes its argument, calls one operation of the core and encodes the answer, in the kernel's order.
Behaviour: drivers/iommu/iommufd/main.c, ioas.c, hw_pagetable.c, device.c (iommufd_get_hw_info).
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, ClassVar, Final

from uvfio.core.seams import Mm
from uvfio.core.structure.iommufd import Assigned, Hwpt, Iommufd
from uvfio.core.translation.ioas import Backing, Ioas
from uvfio.core.translation.vtd import capabilities, extended_capabilities
from uvfio.errors import (
    BadAddress,
    InvalidArgument,
    NoSpace,
    NoSuchObject,
    UnknownCommand,
    Unsupported,
    WrapsAround,
)
from uvfio.fops.file import File
from uvfio.fops.mainline.iommufd_container import CompatFile
from uvfio.fops.wire import PIECE, read_sized
from uvfio.uapi import iommufd as uapi
from uvfio.uapi.ioctl import _IOC_NR

if TYPE_CHECKING:
    from uvfio.core.seams import Memory, Task
    from uvfio.core.structure.framework import Framework
    from uvfio.uapi.structs import Struct

__all__ = ["IOMMU_NODE", "IommufdFile", "context_of", "open_iommufd"]

IOMMU_NODE: Final = "/dev/iommu"

FIRST: Final = uapi.IOMMUFD_CMD_BASE
LAST: Final = _IOC_NR(uapi.IOMMU_HW_QUEUE_ALLOC)
U64_MAX: Final = (1 << 64) - 1

PROT: Final = uapi.IOMMU_IOAS_MAP_READABLE | uapi.IOMMU_IOAS_MAP_WRITEABLE
MAP_FLAGS: Final = PROT | uapi.IOMMU_IOAS_MAP_FIXED_IOVA
HWPT_FLAGS: Final = uapi.IOMMU_HWPT_ALLOC_PASID
TYPES: Final = (uapi.IOMMU_HW_INFO_TYPE_DEFAULT, uapi.IOMMU_HW_INFO_TYPE_INTEL_VTD)


def open_iommufd(framework: Framework) -> IommufdFile:
    """``open("/dev/iommu")``: a new, empty context."""
    return IommufdFile(framework, framework.open_iommufd())


def context_of(framework: Framework, file: object, fd: int) -> Iommufd:
    """The context behind a descriptor, or InvalidArgument as EBADFD."""
    found = file.face(IommufdFile) if isinstance(file, File) else None
    if found is None or found.framework is not framework:
        raise InvalidArgument(f"descriptor {fd} is no iommufd", errno=errno.EBADFD)
    return found.context


class IommufdFile(CompatFile):
    """An open /dev/iommu."""

    __slots__ = ("framework",)

    kind = "iommufd"
    structural = True

    def __init__(self, framework: Framework, context: Iommufd) -> None:
        super().__init__(IOMMU_NODE)
        self.framework = framework
        self.context = context

    def _release(self) -> None:
        self.framework.close_iommufd(self.context)

    def ioctl(self, task: Task, cmd: int, arg: int) -> int:
        try:
            return super().ioctl(task, cmd, arg)
        except Unsupported as error:
            error.errno = errno.EOPNOTSUPP
            raise

    def dispatch(self, task: Task, cmd: int, arg: int) -> int:
        if not FIRST <= _IOC_NR(cmd) <= LAST:
            return super().dispatch(task, cmd, arg)
        memory = task.memory
        size = int.from_bytes(memory.read(arg, 4), "little")
        handler = self.COMMANDS.get(cmd)
        if handler is None:
            raise UnknownCommand(f"{self.name} does not know {uapi.ioctl_name(cmd)}")
        known = uapi.IOCTLS[self.kind, cmd]
        if size < known.minsz:
            raise InvalidArgument(f"size is {size}, at least {known.minsz} are needed")
        layout = known.argument
        assert isinstance(layout, type)
        raw = read_sized(memory, arg, size, len(bytes(layout())))
        return handler(self, task, Call(memory, arg, size), layout.from_bytes(raw))

    # -- address spaces ----------------------------------------------------------------------------

    def ioas_alloc(self, task: Task, call: Call, args: uapi.iommu_ioas_alloc) -> int:
        """IOMMU_IOAS_ALLOC."""
        _check_zero(flags=args.flags)
        ioas = self.context.new_ioas()
        args.out_ioas_id = self.context.add(ioas)
        return self._respond_or_remove(call, args, ioas)

    def ioas_iova_ranges(self, task: Task, call: Call, args: uapi.iommu_ioas_iova_ranges) -> int:
        """IOMMU_IOAS_IOVA_RANGES: what can be mapped; EMSGSIZE, and how many, if there is no room for all."""
        _check_zero(reserved=args.reserved)
        ioas = self.context.find(args.ioas_id, Ioas)
        room, windows = args.num_iovas, ioas.windows()
        listed = b"".join(uapi.IOVA_RANGE.pack(*window) for window in windows[:room])
        if listed:
            call.memory.write(args.allowed_iovas, listed)
        args.num_iovas, args.out_iova_alignment = len(windows), ioas.granule
        call.respond(args)
        if len(windows) > room:
            raise NoSpace(
                f"there are {len(windows)} ranges, the room is for {room}", errno=errno.EMSGSIZE
            )
        return 0

    def ioas_allow_iovas(self, task: Task, call: Call, args: uapi.iommu_ioas_allow_iovas) -> int:
        """IOMMU_IOAS_ALLOW_IOVAS: where addresses may be chosen."""
        _check_zero(reserved=args.reserved)
        ioas = self.context.find(args.ioas_id, Ioas)
        ioas.allow(_ranges(call.memory, args.allowed_iovas, args.num_iovas))
        return 0

    def ioas_map(self, task: Task, call: Call, args: uapi.iommu_ioas_map) -> int:
        """IOMMU_IOAS_MAP: memory of the caller."""
        _check_zero(reserved=args.reserved)
        ioas = self._space_for(args.ioas_id, args.flags, args.iova, args.length)
        mm, limit = task.mm, task.memlock_limit()
        backing = Backing(mm, bool(args.flags & uapi.IOMMU_IOAS_MAP_WRITEABLE), mm, limit)
        return self._map(ioas, backing, args.user_va, call, args)

    def ioas_map_file(self, task: Task, call: Call, args: uapi.iommu_ioas_map_file) -> int:
        """IOMMU_IOAS_MAP_FILE: a part of a memory file."""
        ioas = self._space_for(args.ioas_id, args.flags, args.iova, args.length)
        memory = task.file_memory(args.fd)
        writable = bool(args.flags & uapi.IOMMU_IOAS_MAP_WRITEABLE)
        where = Mm(memory, f"file {args.fd}")
        backing = Backing(where, writable, task.mm, task.memlock_limit(), from_file=True)
        return self._map(ioas, backing, args.start, call, args)

    def _space_for(self, number: int, flags: int, *sizes: int) -> Ioas:
        """What the three ways to map check first."""
        if flags & ~MAP_FLAGS:
            raise Unsupported(f"flags {flags:#x} has unknown bits")
        if U64_MAX in sizes:
            raise WrapsAround(f"{U64_MAX:#x} is no address and no size")
        if not flags & PROT:
            raise InvalidArgument(f"flags {flags:#x} have neither READABLE nor WRITEABLE")
        return self.context.find(number, Ioas)

    @staticmethod
    def _map(
        ioas: Ioas,
        backing: Backing,
        address: int,
        call: Call,
        args: uapi.iommu_ioas_map | uapi.iommu_ioas_map_file,
    ) -> int:
        flags, size = args.flags, args.length
        args.iova = ioas.map(
            backing,
            address,
            size,
            args.iova if flags & uapi.IOMMU_IOAS_MAP_FIXED_IOVA else None,
            readable=bool(flags & uapi.IOMMU_IOAS_MAP_READABLE),
            writable=bool(flags & uapi.IOMMU_IOAS_MAP_WRITEABLE),
        )
        return _respond_or_unmap(call, args, ioas, args.iova, size)

    def ioas_copy(self, task: Task, call: Call, args: uapi.iommu_ioas_copy) -> int:
        """IOMMU_IOAS_COPY: what is mapped in one address space becomes mapped in another one, too."""
        flags, size = args.flags, args.length
        source = self._space_for(args.src_ioas_id, flags, size, args.src_iova, args.dst_iova)
        target = self.context.find(args.dst_ioas_id, Ioas)
        args.dst_iova = target.place(
            target.copy_from(source, args.src_iova, size),
            args.dst_iova if flags & uapi.IOMMU_IOAS_MAP_FIXED_IOVA else None,
            readable=bool(flags & uapi.IOMMU_IOAS_MAP_READABLE),
            writable=bool(flags & uapi.IOMMU_IOAS_MAP_WRITEABLE),
        )
        return _respond_or_unmap(call, args, target, args.dst_iova, size)

    def ioas_unmap(self, task: Task, call: Call, args: uapi.iommu_ioas_unmap) -> int:
        """IOMMU_IOAS_UNMAP: whole areas; (0, 2**64 - 1) is everything. Answers how many bytes."""
        ioas = self.context.find(args.ioas_id, Ioas)
        if args.iova == 0 and args.length == U64_MAX:
            args.length = ioas.unmap_all()
        elif U64_MAX in (args.iova, args.length):
            raise WrapsAround(f"{args.iova:#x}+{args.length:#x} wraps around 2**64")
        else:
            args.length = ioas.unmap(args.iova, args.length)
        return call.respond(args)

    def change_process(self, task: Task, call: Call, args: uapi.iommu_ioas_change_process) -> int:
        """IOMMU_IOAS_CHANGE_PROCESS: the caller pays for what is locked."""
        _check_zero(reserved=args.reserved)
        self.context.change_process(task.mm, task.memlock_limit())
        return 0

    def vfio_ioas(self, task: Task, call: Call, args: uapi.iommu_vfio_ioas) -> int:
        """IOMMU_VFIO_IOAS: which address space container requests mean."""
        _check_zero(reserved=args.reserved)
        context = self.context
        if args.op == uapi.IOMMU_VFIO_IOAS_GET:
            args.ioas_id = context.number_of(context.compat_ioas())
            return call.respond(args)
        if args.op == uapi.IOMMU_VFIO_IOAS_SET:
            context.compat = context.find(args.ioas_id, Ioas)
        elif args.op == uapi.IOMMU_VFIO_IOAS_CLEAR:
            context.compat = None
        else:
            raise Unsupported(f"op {args.op} is not GET, SET or CLEAR")
        return 0

    # -- options -----------------------------------------------------------------------------------

    def option(self, task: Task, call: Call, args: uapi.iommu_option) -> int:
        """IOMMU_OPTION: RLIMIT_MODE of the file, HUGE_PAGES of an address space."""
        _check_zero(reserved=args.reserved)
        if args.option_id == uapi.IOMMU_OPTION_RLIMIT_MODE:
            _check_zero(object_id=args.object_id)
            get: Callable[[], int] = lambda: self.context.per_process  # noqa: E731
            put: Callable[[bool], None] = self.context.count_by_process
        elif args.option_id == uapi.IOMMU_OPTION_HUGE_PAGES:
            ioas = self.context.find(args.object_id, Ioas)
            get, put = lambda: ioas.large_pages, ioas.use_large_pages
        else:
            raise Unsupported(f"there is no option {args.option_id}")
        if args.op == uapi.IOMMU_OPTION_OP_SET:
            if args.val64 > 1:
                raise InvalidArgument(f"value {args.val64} is neither 0 nor 1")
            put(bool(args.val64))
        elif args.op == uapi.IOMMU_OPTION_OP_GET:
            args.val64 = get()
        else:
            raise Unsupported(f"op {args.op} is neither SET nor GET")
        return call.respond(args)

    # -- devices and page tables -------------------------------------------------------------------

    def get_hw_info(self, task: Task, call: Call, args: uapi.iommu_hw_info) -> int:
        """IOMMU_GET_HW_INFO, as Intel's IOMMUs answer; the buffer is filled as far as it goes."""
        memory = call.memory
        if args.flags & ~uapi.IOMMU_HW_INFO_FLAG_INPUT_TYPE or args.reserved or args.reserved_rest:
            raise Unsupported(f"flags {args.flags:#x}, or reserved bytes that are not 0")
        unit = self.context.find(args.dev_id, Assigned).unit
        if args.flags and args.out_data_type not in TYPES:
            raise Unsupported(f"{unit.name} has no information of type {args.out_data_type}")
        about = uapi.iommu_hw_info_vtd(0, 0, capabilities(unit), extended_capabilities(unit))
        raw = bytes(about)
        if args.data_len:
            memory.write(args.data_uptr, raw[: args.data_len])
        for at in range(len(raw), args.data_len, PIECE):
            memory.write(args.data_uptr + at, bytes(min(PIECE, args.data_len - at)))
        args.data_len = len(raw)
        args.out_data_type = uapi.IOMMU_HW_INFO_TYPE_INTEL_VTD
        args.out_max_pasid_log2 = 0
        args.out_capabilities = uapi.IOMMU_HW_CAP_PCI_ATS_NOT_SUPPORTED
        return call.respond(args)

    def hwpt_alloc(self, task: Task, call: Call, args: uapi.iommu_hwpt_alloc) -> int:
        """IOMMU_HWPT_ALLOC: a page table of an address space."""
        _check_zero(reserved=args.reserved, reserved2=args.reserved2)
        if (args.data_type == uapi.IOMMU_HWPT_DATA_NONE) != (args.data_len == 0):
            raise InvalidArgument(f"{args.data_len} bytes of data of type {args.data_type}")
        self.context.find(args.dev_id, Assigned)
        if args.pt_id not in self.context.objects:
            raise InvalidArgument(f"there is no object {args.pt_id}")
        if args.flags & ~HWPT_FLAGS or args.data_type != uapi.IOMMU_HWPT_DATA_NONE:
            raise Unsupported(f"no IOMMU here has page tables with flags {args.flags:#x}")
        hwpt = self.context.alloc_hwpt(args.dev_id, args.pt_id)
        args.out_hwpt_id = self.context.number_of(hwpt)
        return self._respond_or_remove(call, args, hwpt)

    def set_dirty_tracking(
        self, task: Task, call: Call, args: uapi.iommu_hwpt_set_dirty_tracking
    ) -> int:
        """IOMMU_HWPT_SET_DIRTY_TRACKING: no IOMMU here has a log."""
        if not args.flags & ~uapi.IOMMU_HWPT_DIRTY_TRACKING_ENABLE:
            self.context.find(args.hwpt_id, Hwpt)
        raise Unsupported("the IOMMU keeps no log of dirty pages")

    def get_dirty_bitmap(
        self, task: Task, call: Call, args: uapi.iommu_hwpt_get_dirty_bitmap
    ) -> int:
        """IOMMU_HWPT_GET_DIRTY_BITMAP: no IOMMU here has a log."""
        if not (args.flags & ~uapi.IOMMU_HWPT_GET_DIRTY_BITMAP_NO_CLEAR or args.reserved):
            self.context.find(args.hwpt_id, Hwpt)
        raise Unsupported("the IOMMU keeps no log of dirty pages")

    def hwpt_invalidate(self, task: Task, call: Call, args: uapi.iommu_hwpt_invalidate) -> int:
        """IOMMU_HWPT_INVALIDATE: there are no nested page tables. Answers that nothing was done."""
        entries, args.entry_num = args.entry_num, 0
        call.respond(args)
        _check_zero(reserved=args.reserved)
        if entries and not (args.data_uptr and args.entry_len):
            raise InvalidArgument(f"{entries} entries of {args.entry_len} bytes are nowhere")
        if args.hwpt_id not in self.context.objects:
            raise NoSuchObject(f"there is no object {args.hwpt_id}")
        raise InvalidArgument(f"object {args.hwpt_id} is no nested page table")

    def fault_queue_alloc(self, task: Task, call: Call, args: uapi.iommu_fault_alloc) -> int:
        """IOMMU_FAULT_QUEUE_ALLOC: no IOMMU here reports page faults."""
        raise Unsupported("the IOMMU reports no page faults")

    def viommu_alloc(self, task: Task, call: Call, args: uapi.iommu_viommu_alloc) -> int:
        """IOMMU_VIOMMU_ALLOC: no IOMMU here has virtual ones."""
        if not args.flags and args.type != uapi.IOMMU_VIOMMU_TYPE_DEFAULT:
            self.context.find(args.dev_id, Assigned)
        raise Unsupported("the IOMMU has no virtual ones")

    def vdevice_alloc(self, task: Task, call: Call, args: uapi.iommu_vdevice_alloc) -> int:
        """IOMMU_VDEVICE_ALLOC: needs a virtual IOMMU, and there are none."""
        raise NoSuchObject(f"{args.viommu_id} is no virtual IOMMU")

    def veventq_alloc(self, task: Task, call: Call, args: uapi.iommu_veventq_alloc) -> int:
        """IOMMU_VEVENTQ_ALLOC: needs a virtual IOMMU, and there are none."""
        _check_zero(flags=args.flags, reserved=args.reserved)
        if args.type == uapi.IOMMU_VEVENTQ_TYPE_DEFAULT:
            raise Unsupported("queues of type DEFAULT do not exist")
        if not args.veventq_depth:
            raise InvalidArgument("a queue for no events")
        raise NoSuchObject(f"{args.viommu_id} is no virtual IOMMU")

    def hw_queue_alloc(self, task: Task, call: Call, args: uapi.iommu_hw_queue_alloc) -> int:
        """IOMMU_HW_QUEUE_ALLOC: needs a virtual IOMMU, and there are none."""
        _check_zero(flags=args.flags)
        if args.type == uapi.IOMMU_HW_QUEUE_TYPE_DEFAULT:
            raise Unsupported("queues of type DEFAULT do not exist")
        if not args.length:
            raise InvalidArgument("a queue without a length")
        if args.nesting_parent_iova + args.length - 1 > U64_MAX:
            raise WrapsAround(f"{args.nesting_parent_iova:#x}+{args.length:#x} wraps around 2**64")
        raise NoSuchObject(f"{args.viommu_id} is no virtual IOMMU")

    def destroy(self, task: Task, call: Call, args: uapi.iommu_destroy) -> int:
        """IOMMU_DESTROY."""
        self.context.destroy(args.id)
        return 0

    # -- inner -------------------------------------------------------------------------------------

    def _respond_or_remove(self, call: Call, args: Struct, thing: Ioas | Hwpt) -> int:
        """The caller learns the number of what it made, or it is gone again."""
        try:
            return call.respond(args)
        except BadAddress:
            self.context.remove(thing)
            raise

    COMMANDS: ClassVar[dict[int, Callable[..., int]]] = {
        uapi.IOMMU_DESTROY: destroy,
        uapi.IOMMU_IOAS_ALLOC: ioas_alloc,
        uapi.IOMMU_IOAS_ALLOW_IOVAS: ioas_allow_iovas,
        uapi.IOMMU_IOAS_COPY: ioas_copy,
        uapi.IOMMU_IOAS_IOVA_RANGES: ioas_iova_ranges,
        uapi.IOMMU_IOAS_MAP: ioas_map,
        uapi.IOMMU_IOAS_UNMAP: ioas_unmap,
        uapi.IOMMU_OPTION: option,
        uapi.IOMMU_VFIO_IOAS: vfio_ioas,
        uapi.IOMMU_HWPT_ALLOC: hwpt_alloc,
        uapi.IOMMU_GET_HW_INFO: get_hw_info,
        uapi.IOMMU_HWPT_SET_DIRTY_TRACKING: set_dirty_tracking,
        uapi.IOMMU_HWPT_GET_DIRTY_BITMAP: get_dirty_bitmap,
        uapi.IOMMU_HWPT_INVALIDATE: hwpt_invalidate,
        uapi.IOMMU_FAULT_QUEUE_ALLOC: fault_queue_alloc,
        uapi.IOMMU_IOAS_MAP_FILE: ioas_map_file,
        uapi.IOMMU_VIOMMU_ALLOC: viommu_alloc,
        uapi.IOMMU_VDEVICE_ALLOC: vdevice_alloc,
        uapi.IOMMU_IOAS_CHANGE_PROCESS: change_process,
        uapi.IOMMU_VEVENTQ_ALLOC: veventq_alloc,
        uapi.IOMMU_HW_QUEUE_ALLOC: hw_queue_alloc,
    }


class Call:
    """Where an argument is, and how large the caller says it is."""

    __slots__ = ("address", "memory", "size")

    def __init__(self, memory: Memory, address: int, size: int) -> None:
        self.memory = memory
        self.address = address
        self.size = size

    def respond(self, args: Struct) -> int:
        """Write the struct back, as much as the caller knows of it; returns 0."""
        self.memory.write(self.address, bytes(args)[: self.size])
        return 0


def _ranges(memory: Memory, address: int, count: int) -> Iterator[tuple[int, int]]:
    """(first, last) of each range, read as it is asked for: a program may say that there are billions. BadAddress."""
    size = uapi.IOVA_RANGE.size
    for at in range(0, count * size, PIECE):
        raw = memory.read(address + at, min(PIECE, count * size - at))
        yield from uapi.IOVA_RANGE.iter_unpack(raw)


def _check_zero(**values: int) -> None:
    for name, value in values.items():
        if value:
            raise Unsupported(f"{name} is {value:#x} and must be 0")


def _respond_or_unmap(call: Call, args: Struct, ioas: Ioas, iova: int, size: int) -> int:
    """The caller learns what was mapped, or it is not."""
    try:
        return call.respond(args)
    except BadAddress:
        ioas.unmap(iova, size)
        raise
