"""GET_DTPATH and GET_DTINDEX of the 2011 ABI: which device tree node a region or an interrupt stems from.

The RFC has these requests in its header and in no driver, and leaves their details open. The rules here are
this project's own; include/uvfio/vfio-2011.h states them for C.

``len`` of ``struct vfio_dtpath`` is the size of the structure plus that of the buffer behind ``path``. The size of
the structure alone means a buffer of one page, as for the name in GET_DEVICE_FD. Both kinds of caller are
served: the structure has 24 bytes, in 32-bit programs 20, and the request says which.

Order of the checks, GET_DTPATH: ENOTTY (the device has no flag DT) before the argument is looked at; EFAULT for
``len``; EINVAL if it is less than the structure; EFAULT for the rest; EINVAL unless exactly one of REGION and IRQ is
set; EINVAL for an index out of range; ENOSPC if the path with its NUL does not fit, with ``len`` set to what
would (EFAULT if it cannot be); EFAULT if ``path`` is NULL or does not lead to memory. So ``len`` one more than the
structure and ``path`` NULL asks for the size.

GET_DTINDEX: ENOTTY; EFAULT for ``len``; EINVAL if it is not 24; EFAULT for the rest; EINVAL for flags and index as
above; EFAULT if the answer cannot be written.

The module is loaded with the first such request to a device that has the flag.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from uvfio.core.bus import DtProperty, ResourceKind
from uvfio.errors import BadAddress, InvalidArgument, NoSpace
from uvfio.fops.wire import PAGE_SIZE, read_u32
from uvfio.uapi import rfc

if TYPE_CHECKING:
    from struct import Struct

    from uvfio.core.bus import DeviceTree
    from uvfio.core.seams import Memory

__all__ = ["get_dtindex", "get_dtpath"]

# GET_DTINDEX has the same two bits
KINDS: Final = {
    rfc.VFIO_DTPATH_FLAGS_REGION: ResourceKind.REGION,
    rfc.VFIO_DTPATH_FLAGS_IRQ: ResourceKind.IRQ,
}
PROPERTIES: Final = {
    DtProperty.REG: rfc.VFIO_DTINDEX_PROP_REG,
    DtProperty.RANGES: rfc.VFIO_DTINDEX_PROP_RANGES,
    DtProperty.INTERRUPTS: rfc.VFIO_DTINDEX_PROP_INTERRUPTS,
    DtProperty.INTERRUPT_MAP: rfc.VFIO_DTINDEX_PROP_INTERRUPT_MAP,
}


def get_dtpath(device: DeviceTree, memory: Memory, arg: int, layout: Struct) -> int:
    """VFIO_DEVICE_GET_DTPATH; ``layout`` is that of the caller's ``struct vfio_dtpath``."""
    length = read_u32(memory, arg)
    if length < layout.size:
        raise InvalidArgument(f"len {length} of vfio_dtpath is less than {layout.size}")
    _, index, flags, path = layout.unpack(memory.read(arg, layout.size))
    text = device.dt_path(_kind(flags), index).encode("utf-8", "surrogateescape") + b"\0"
    room = length - layout.size or PAGE_SIZE
    if len(text) > room:
        needed = layout.size + len(text)
        memory.write(arg, needed.to_bytes(4, "little"))
        raise NoSpace(
            f"the path has {len(text)} bytes, the buffer {room}", f"len must be {needed} at least"
        )
    if not path:
        raise BadAddress("path is NULL")
    memory.write(path, text)
    return 0


def get_dtindex(device: DeviceTree, memory: Memory, arg: int) -> int:
    """VFIO_DEVICE_GET_DTINDEX: see the module's head for the order of the checks."""
    length = read_u32(memory, arg)
    if length != rfc.DTINDEX.size:
        raise InvalidArgument(f"len {length} of vfio_dtindex is not {rfc.DTINDEX.size}")
    _, index, _, _, flags = rfc.DTINDEX.unpack(memory.read(arg, length))
    prop, entry = device.dt_index(_kind(flags), index)
    memory.write(arg, rfc.DTINDEX.pack(length, index, PROPERTIES[prop], entry, flags))
    return 0


def _kind(flags: int) -> ResourceKind:
    """Raises InvalidArgument unless exactly one of the two bits is set."""
    kind = KINDS.get(flags)
    if kind is None:
        raise InvalidArgument(f"flags {flags:#x} are not exactly one of REGION (1) and IRQ (2)")
    return kind
