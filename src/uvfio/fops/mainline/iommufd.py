"""/dev/iommu: each open file is a context of numbered objects (``core/structure/iommufd.py``).

Every argument begins with its size. At least the size of its first release is needed (EINVAL), what is missing
behind that counts as zero, and what is too much has to be zero (E2BIG). Answers are as long as the question. The
requests whose numbers lie below are the container's (``iommufd_container.py``).

    condition                     errno             why Linux gives that one
    Unsupported, unknown flags    EOPNOTSUPP        a later release may support it
    NoSuchObject                  ENOENT            a number that is no object, or of another kind
    IovaInUse                     EADDRINUSE        the device and the mappings contradict each other

IOMMUs here have neither nested page tables nor a log of dirty pages, and report no page faults: requests that need
those are refused as by a kernel whose IOMMU has none (IOMMU_FAULT_QUEUE_ALLOC as well, which Linux always grants).

Each handler calls one operation of the core and encodes the answer; checks are in the kernel's order. All are EFAULT
for an argument that is not there, EINVAL for a size that is too small and E2BIG for a tail that is not 0, before the
handler is called, and EFAULT for an answer that cannot be written: nothing has changed then.
Behaviour: drivers/iommu/iommufd/main.c, ioas.c, hw_pagetable.c, device.c (iommufd_get_hw_info).
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, ClassVar, Final

from uvfio.core.seams import Mm
from uvfio.core.structure.iommufd import Assigned, Iommufd
from uvfio.core.translation.area import Backing
from uvfio.core.translation.ioas import Hwpt, Ioas
from uvfio.core.translation.vtd import capabilities, extended_capabilities
from uvfio.core.waiting import Steps
from uvfio.errors import (
    BadAddress,
    InvalidArgument,
    NoSpace,
    NoSuchObject,
    UnknownCommand,
    Unsupported,
    VfioError,
    WrapsAround,
)
from uvfio.fops.file import Deferred
from uvfio.fops.mainline.file import ERRNO, MainlineFile
from uvfio.fops.mainline.iommufd_container import PARTLY_UNMAPPED, ContainerRequests
from uvfio.fops.request import Partial, Refused, Request
from uvfio.fops.wire import PIECE, read_sized, read_u32
from uvfio.uapi import iommufd as uapi
from uvfio.uapi.ioctl import _IOC_NR

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Mapping

    from uvfio.core.seams import Memory, Task
    from uvfio.core.structure.framework import Framework
    from uvfio.uapi.structs import Struct

__all__ = ["IOMMU_NODE", "IommufdFile", "open_iommufd"]

IOMMU_NODE: Final = "/dev/iommu"

FIRST: Final = uapi.IOMMUFD_CMD_BASE
LAST: Final = _IOC_NR(uapi.IOMMU_HW_QUEUE_ALLOC)
CLEARED: Final = 1 << 20  # bytes of an answer that are zeroed in one piece
U64_MAX: Final = (1 << 64) - 1

PROT: Final = uapi.IOMMU_IOAS_MAP_READABLE | uapi.IOMMU_IOAS_MAP_WRITEABLE
MAP_FLAGS: Final = PROT | uapi.IOMMU_IOAS_MAP_FIXED_IOVA
HWPT_FLAGS: Final = uapi.IOMMU_HWPT_ALLOC_PASID
TYPES: Final = (uapi.IOMMU_HW_INFO_TYPE_DEFAULT, uapi.IOMMU_HW_INFO_TYPE_INTEL_VTD)

RLIMIT: Final = Partial(
    "RLIMIT_MODE needs no privilege and changes nothing: locked memory is counted for each process"
)
PLAIN: Final = Partial(
    "no nested page tables, no dirty tracking, no fault queue (EOPNOTSUPP): no IOMMU has them"
)
NO_LOG: Final = Refused("EOPNOTSUPP", "no IOMMU has a log of dirty pages")
NOT_NESTED: Final = Refused("EINVAL", "no IOMMU has nested page tables")
NO_FAULTS: Final = Refused("EOPNOTSUPP", "no IOMMU reports page faults; Linux always grants it")
NO_VIOMMU: Final = Refused("EOPNOTSUPP", "no IOMMU has virtual ones")
NO_PARENT: Final = Refused("ENOENT", "it needs a virtual IOMMU, and there is none")


def open_iommufd(framework: Framework) -> IommufdFile:
    """``open("/dev/iommu")``: a new, empty context."""
    return IommufdFile(framework, framework.open_iommufd())


class IommufdFile(MainlineFile):
    """An open /dev/iommu. Requests of the container go to ``compat``, which acts on the same context."""

    __slots__ = ("compat", "context", "framework")

    context: Iommufd
    framework: Framework

    kind = "iommufd"
    structural = True
    ERRNO: ClassVar[Mapping[type[VfioError], int]] = {**ERRNO, Unsupported: errno.EOPNOTSUPP}

    def __init__(self, framework: Framework, context: Iommufd) -> None:
        super().__init__(IOMMU_NODE)
        self.framework = framework
        self.context = context
        self.compat = ContainerRequests(context)

    def _release(self) -> None:
        self.framework.close_iommufd(self.context)

    def dispatch(self, task: Task, cmd: int, arg: int) -> int:
        """Decode the struct and call the handler.

        EFAULT for the size comes before ENOTTY for an unknown request, EINVAL for a size that is too small before
        E2BIG for a tail that is not 0 (main.c, iommufd_fops_ioctl).
        """
        if not FIRST <= _IOC_NR(cmd) <= LAST:
            handler = self.compat.HANDLERS.get(cmd)
            if handler is None:
                raise UnknownCommand(f"{self.name} does not know {self.request_name(cmd)}")
            return handler(self.compat, task, arg)
        memory = task.memory
        size = read_u32(memory, arg)
        handler = self.HANDLERS.get(cmd)
        if handler is None:
            raise UnknownCommand(f"{self.name} does not know {self.request_name(cmd)}")
        known = uapi.IOCTLS[self.kind, cmd]
        if size < known.minsz:
            raise InvalidArgument(f"size is {size}, at least {known.minsz} are needed")
        layout = known.argument
        assert isinstance(layout, type)
        raw = read_sized(memory, arg, size, len(bytes(layout())))
        return handler(self, task, Call(memory, arg, size), layout.from_bytes(raw))

    def request_name(self, cmd: int) -> str:
        """The header's name of a request to this file, or its number."""
        return uapi.ioctl_name(cmd)

    # -- address spaces ----------------------------------------------------------------------------

    def ioas_alloc(self, task: Task, call: Call, args: uapi.iommu_ioas_alloc) -> int:
        """IOMMU_IOAS_ALLOC: make an address space. EOPNOTSUPP for flags (ioas.c, iommufd_ioas_alloc_ioctl)."""
        _check_zero(flags=args.flags)
        ioas = self.context.new_ioas()
        args.out_ioas_id = self.context.add(ioas)
        return self._respond_or_remove(call, args, ioas)

    def ioas_iova_ranges(self, task: Task, call: Call, args: uapi.iommu_ioas_iova_ranges) -> int:
        """IOMMU_IOAS_IOVA_RANGES: the ranges that can be mapped (iommufd_ioas_iova_ranges).

        EOPNOTSUPP, ENOENT; EMSGSIZE, with the number of ranges, if there is no room for all.
        """
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
        """IOMMU_IOAS_ALLOW_IOVAS: set the ranges in which addresses may be chosen (iommufd_ioas_allow_iovas).

        EOPNOTSUPP, ENOENT, EFAULT for the ranges, then as ``Ioas.allow`` raises.
        """
        _check_zero(reserved=args.reserved)
        ioas = self.context.find(args.ioas_id, Ioas)
        ioas.allow(_ranges(call.memory, args.allowed_iovas, args.num_iovas))
        return 0

    def ioas_map(self, task: Task, call: Call, args: uapi.iommu_ioas_map) -> int:
        """IOMMU_IOAS_MAP: map memory of the caller; answer its address (iommufd_ioas_map).

        EOPNOTSUPP, EOVERFLOW, EINVAL for flags without access, ENOENT, then as ``Ioas.map`` raises.
        """
        _check_zero(reserved=args.reserved)
        ioas = self._space_for(args.ioas_id, args.flags, args.iova, args.length)
        mm, limit = task.mm, task.memlock_limit()
        backing = Backing(mm, bool(args.flags & uapi.IOMMU_IOAS_MAP_WRITEABLE), mm, limit)
        return self._map(ioas, backing, args.user_va, call, args)

    def ioas_map_file(self, task: Task, call: Call, args: uapi.iommu_ioas_map_file) -> int:
        """IOMMU_IOAS_MAP_FILE: map a part of a memory file (iommufd_ioas_map_file).

        As IOMMU_IOAS_MAP, and EBADF for a closed descriptor after those checks.
        """
        ioas = self._space_for(args.ioas_id, args.flags, args.iova, args.length)
        memory = task.file_memory(args.fd)
        writable = bool(args.flags & uapi.IOMMU_IOAS_MAP_WRITEABLE)
        where = Mm(memory, f"file {args.fd}")
        backing = Backing(where, writable, task.mm, task.memlock_limit(), from_file=True)
        return self._map(ioas, backing, args.start, call, args)

    def _space_for(self, number: int, flags: int, *sizes: int) -> Ioas:
        """The address space, after the checks that MAP, MAP_FILE and COPY have in common."""
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
        """IOMMU_IOAS_COPY: map the memory of one address space in another one as well (iommufd_ioas_copy).

        As IOMMU_IOAS_MAP, ENOENT for either address space; then as ``Ioas.copy_from`` and ``Ioas.place`` raise.
        """
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
        """IOMMU_IOAS_UNMAP: unmap whole areas; (0, 2**64 - 1) is everything (iommufd_ioas_unmap).

        The answer is the number of bytes. ENOENT for the address space, EOVERFLOW, then as ``Ioas.unmap`` raises.
        """
        ioas = self.context.find(args.ioas_id, Ioas)
        if args.iova == 0 and args.length == U64_MAX:
            args.length = ioas.unmap_all()
        elif U64_MAX in (args.iova, args.length):
            raise WrapsAround(f"{args.iova:#x}+{args.length:#x} wraps around 2**64")
        else:
            args.length = ioas.unmap(args.iova, args.length)
        return call.respond(args)

    def change_process(self, task: Task, call: Call, args: uapi.iommu_ioas_change_process) -> int:
        """IOMMU_IOAS_CHANGE_PROCESS: locked memory counts for the caller from now on (iommufd_ioas_change_process).

        EOPNOTSUPP; EINVAL if memory other than files is mapped; ENOMEM beyond the caller's limit.
        """
        _check_zero(reserved=args.reserved)
        self.context.change_process(task.mm, task.memlock_limit())
        return 0

    def vfio_ioas(self, task: Task, call: Call, args: uapi.iommu_vfio_ioas) -> int:
        """IOMMU_VFIO_IOAS: get, set or clear the address space of container requests (iommufd_vfio_ioas).

        EOPNOTSUPP; GET: ENODEV if there is none; SET: ENOENT.
        """
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
        """IOMMU_OPTION: RLIMIT_MODE of the file, HUGE_PAGES of an address space (iommufd_option).

        EOPNOTSUPP for an unknown option or operation, ENOENT, EINVAL for a value that is neither 0 nor 1, EBUSY for
        RLIMIT_MODE once there are objects.
        """
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
        """IOMMU_GET_HW_INFO: the registers of an Intel IOMMU, as far as the buffer goes; the rest of it is zeroed.

        EOPNOTSUPP for flags, reserved bytes or another type; ENOENT; EFAULT (device.c, iommufd_get_hw_info). Deferred
        for a buffer of more than ``CLEARED`` bytes.
        """
        memory = call.memory
        if args.flags & ~uapi.IOMMU_HW_INFO_FLAG_INPUT_TYPE or args.reserved or args.reserved_rest:
            raise Unsupported(f"flags {args.flags:#x}, or reserved bytes that are not 0")
        unit = self.context.find(args.dev_id, Assigned).unit
        if args.flags and args.out_data_type not in TYPES:
            raise Unsupported(f"{unit.name} has no information of type {args.out_data_type}")
        about = uapi.iommu_hw_info_vtd(0, 0, capabilities(unit), extended_capabilities(unit))
        raw = bytes(about)
        room = args.data_len
        if room:
            memory.write(args.data_uptr, raw[:room])
        end = min(room, CLEARED)
        _clear(memory, args.data_uptr, len(raw), end)
        args.data_len = len(raw)
        args.out_data_type = uapi.IOMMU_HW_INFO_TYPE_INTEL_VTD
        args.out_max_pasid_log2 = 0
        args.out_capabilities = uapi.IOMMU_HW_CAP_PCI_ATS_NOT_SUPPORTED
        if end == room:
            return call.respond(args)

        def work() -> Generator[None, None, int]:
            for at in range(end, room, CLEARED):
                _clear(memory, args.data_uptr, at, min(at + CLEARED, room))
                yield
            return call.respond(args)

        raise Deferred(Steps(work(), f"clearing {room:#x} bytes"), 0)

    def hwpt_alloc(self, task: Task, call: Call, args: uapi.iommu_hwpt_alloc) -> int:
        """IOMMU_HWPT_ALLOC: make a page table of an address space (hw_pagetable.c, iommufd_hwpt_alloc).

        EOPNOTSUPP for reserved fields, EINVAL for a type that does not suit the length of the data, ENOENT for the
        device, EINVAL for the parent, EOPNOTSUPP for flags and data, then as ``Iommufd.alloc_hwpt`` raises.
        """
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
        """IOMMU_HWPT_SET_DIRTY_TRACKING: EOPNOTSUPP for flags, ENOENT, EOPNOTSUPP: no IOMMU here has a log."""
        if not args.flags & ~uapi.IOMMU_HWPT_DIRTY_TRACKING_ENABLE:
            self.context.find(args.hwpt_id, Hwpt)
        raise Unsupported("the IOMMU keeps no log of dirty pages")

    def get_dirty_bitmap(
        self, task: Task, call: Call, args: uapi.iommu_hwpt_get_dirty_bitmap
    ) -> int:
        """IOMMU_HWPT_GET_DIRTY_BITMAP: EOPNOTSUPP for flags, ENOENT, EOPNOTSUPP: no IOMMU here has a log."""
        if not (args.flags & ~uapi.IOMMU_HWPT_GET_DIRTY_BITMAP_NO_CLEAR or args.reserved):
            self.context.find(args.hwpt_id, Hwpt)
        raise Unsupported("the IOMMU keeps no log of dirty pages")

    def hwpt_invalidate(self, task: Task, call: Call, args: uapi.iommu_hwpt_invalidate) -> int:
        """IOMMU_HWPT_INVALIDATE: answer 0 entries and fail, as there are no nested page tables.

        EOPNOTSUPP for reserved fields, EINVAL for entries without address or size, ENOENT, EINVAL.
        """
        entries, args.entry_num = args.entry_num, 0
        call.respond(args)
        _check_zero(reserved=args.reserved)
        if entries and not (args.data_uptr and args.entry_len):
            raise InvalidArgument(f"{entries} entries of {args.entry_len} bytes are nowhere")
        if args.hwpt_id not in self.context.objects:
            raise NoSuchObject(f"there is no object {args.hwpt_id}")
        raise InvalidArgument(f"object {args.hwpt_id} is no nested page table")

    def fault_queue_alloc(self, task: Task, call: Call, args: uapi.iommu_fault_alloc) -> int:
        """IOMMU_FAULT_QUEUE_ALLOC: EOPNOTSUPP, as no IOMMU here reports page faults."""
        raise Unsupported("the IOMMU reports no page faults")

    def viommu_alloc(self, task: Task, call: Call, args: uapi.iommu_viommu_alloc) -> int:
        """IOMMU_VIOMMU_ALLOC: ENOENT for the device if flags and type are valid; EOPNOTSUPP: there are none."""
        if not args.flags and args.type != uapi.IOMMU_VIOMMU_TYPE_DEFAULT:
            self.context.find(args.dev_id, Assigned)
        raise Unsupported("the IOMMU has no virtual ones")

    def vdevice_alloc(self, task: Task, call: Call, args: uapi.iommu_vdevice_alloc) -> int:
        """IOMMU_VDEVICE_ALLOC: ENOENT for the virtual IOMMU, as there are none."""
        raise NoSuchObject(f"{args.viommu_id} is no virtual IOMMU")

    def veventq_alloc(self, task: Task, call: Call, args: uapi.iommu_veventq_alloc) -> int:
        """IOMMU_VEVENTQ_ALLOC: EOPNOTSUPP, EINVAL for a depth of 0, ENOENT for the virtual IOMMU: there are none."""
        _check_zero(flags=args.flags, reserved=args.reserved)
        if args.type == uapi.IOMMU_VEVENTQ_TYPE_DEFAULT:
            raise Unsupported("queues of type DEFAULT do not exist")
        if not args.veventq_depth:
            raise InvalidArgument("a queue for no events")
        raise NoSuchObject(f"{args.viommu_id} is no virtual IOMMU")

    def hw_queue_alloc(self, task: Task, call: Call, args: uapi.iommu_hw_queue_alloc) -> int:
        """IOMMU_HW_QUEUE_ALLOC: EOPNOTSUPP, EINVAL, EOVERFLOW, ENOENT for the virtual IOMMU: there are none."""
        _check_zero(flags=args.flags)
        if args.type == uapi.IOMMU_HW_QUEUE_TYPE_DEFAULT:
            raise Unsupported("queues of type DEFAULT do not exist")
        if not args.length:
            raise InvalidArgument("a queue without a length")
        if args.nesting_parent_iova + args.length - 1 > U64_MAX:
            raise WrapsAround(f"{args.nesting_parent_iova:#x}+{args.length:#x} wraps around 2**64")
        raise NoSuchObject(f"{args.viommu_id} is no virtual IOMMU")

    def destroy(self, task: Task, call: Call, args: uapi.iommu_destroy) -> int:
        """IOMMU_DESTROY: ENOENT; EBUSY while another object needs it (main.c, iommufd_destroy)."""
        self.context.destroy(args.id)
        return 0

    # -- inner -------------------------------------------------------------------------------------

    def _respond_or_remove(self, call: Call, args: Struct, thing: Ioas | Hwpt) -> int:
        """Answer the number of a new object; remove the object if that fails."""
        try:
            return call.respond(args)
        except BadAddress:
            self.context.remove(thing)
            raise

    REQUESTS: ClassVar[Mapping[int, Request]] = {
        uapi.IOMMU_DESTROY: Request(destroy),
        uapi.IOMMU_IOAS_ALLOC: Request(ioas_alloc),
        uapi.IOMMU_IOAS_ALLOW_IOVAS: Request(ioas_allow_iovas),
        uapi.IOMMU_IOAS_COPY: Request(ioas_copy),
        uapi.IOMMU_IOAS_IOVA_RANGES: Request(ioas_iova_ranges),
        uapi.IOMMU_IOAS_MAP: Request(ioas_map),
        uapi.IOMMU_IOAS_UNMAP: Request(ioas_unmap, PARTLY_UNMAPPED),
        uapi.IOMMU_OPTION: Request(option, RLIMIT),
        uapi.IOMMU_VFIO_IOAS: Request(vfio_ioas),
        uapi.IOMMU_HWPT_ALLOC: Request(hwpt_alloc, PLAIN),
        uapi.IOMMU_GET_HW_INFO: Request(get_hw_info),
        uapi.IOMMU_HWPT_SET_DIRTY_TRACKING: Request(set_dirty_tracking, NO_LOG),
        uapi.IOMMU_HWPT_GET_DIRTY_BITMAP: Request(get_dirty_bitmap, NO_LOG),
        uapi.IOMMU_HWPT_INVALIDATE: Request(hwpt_invalidate, NOT_NESTED),
        uapi.IOMMU_FAULT_QUEUE_ALLOC: Request(fault_queue_alloc, NO_FAULTS),
        uapi.IOMMU_IOAS_MAP_FILE: Request(ioas_map_file),
        uapi.IOMMU_VIOMMU_ALLOC: Request(viommu_alloc, NO_VIOMMU),
        uapi.IOMMU_VDEVICE_ALLOC: Request(vdevice_alloc, NO_PARENT),
        uapi.IOMMU_IOAS_CHANGE_PROCESS: Request(change_process),
        uapi.IOMMU_VEVENTQ_ALLOC: Request(veventq_alloc, NO_PARENT),
        uapi.IOMMU_HW_QUEUE_ALLOC: Request(hw_queue_alloc, NO_PARENT),
    }


class Call:
    """Where the argument of a request is: its address, and its size as the caller gives it."""

    __slots__ = ("address", "memory", "size")

    def __init__(self, memory: Memory, address: int, size: int) -> None:
        self.memory = memory
        self.address = address
        self.size = size

    def respond(self, args: Struct) -> int:
        """Write the struct back, at most ``size`` bytes. Returns 0. Raises BadAddress."""
        self.memory.write(self.address, bytes(args)[: self.size])
        return 0


def _clear(memory: Memory, address: int, start: int, end: int) -> None:
    """Zero the bytes from ``start`` to ``end`` behind ``address``. Raises BadAddress."""
    for at in range(start, end, PIECE):
        memory.write(address + at, bytes(min(PIECE, end - at)))


def _ranges(memory: Memory, address: int, count: int) -> Iterator[tuple[int, int]]:
    """(first, last) of each range, read piece by piece: ``count`` may be 2**32. Raises BadAddress."""
    size = uapi.IOVA_RANGE.size
    for at in range(0, count * size, PIECE):
        raw = memory.read(address + at, min(PIECE, count * size - at))
        yield from uapi.IOVA_RANGE.iter_unpack(raw)


def _check_zero(**values: int) -> None:
    """Raises Unsupported for a field that is not 0."""
    for name, value in values.items():
        if value:
            raise Unsupported(f"{name} is {value:#x} and must be 0")


def _respond_or_unmap(call: Call, args: Struct, ioas: Ioas, iova: int, size: int) -> int:
    """Answer where memory was mapped; unmap it if that fails."""
    try:
        return call.respond(args)
    except BadAddress:
        ioas.unmap(iova, size)
        raise
