"""Memory of a file that another process can cut: an access behind the file's end does not end the supervisor.

The kernel answers such an access with SIGBUS, for which Python has no usable handler: one of the ``signal`` module runs
after the instruction, which is then repeated for ever. The handler here is set with sigaction(2), so it runs before the
instruction is repeated, and makes the page accessible: the owner of the area does that (``mend``), or the page is
covered with zeroed memory that nobody else sees. The access then goes on.

Invariants: only faults in an area that was given to ``protect`` are handled, others have the effect that they had
before, which is the end of the process as a rule. The handler is set with the first area. It runs on the thread that
faults, inside of a load or store; ``mend`` may run any Python code, but it must not wait for a lock that another thread
holds.
"""

from __future__ import annotations

import ctypes
import os
import signal
import weakref
from typing import TYPE_CHECKING, Final

from uvfio.doors.run.linux import syscalls as sc
from uvfio.uapi.linux import MAP_ANONYMOUS, MAP_FIXED, MAP_PRIVATE

if TYPE_CHECKING:
    import mmap
    from collections.abc import Callable

__all__ = ["cover", "present", "protect"]

SA_SIGINFO: Final = 4
SA_NODEFER: Final = 0x40000000
SI_CODE: Final = 8  # siginfo_t: s32 signo, errno, code; padding; void *addr
SI_ADDR: Final = 16


class _Action(ctypes.Structure):
    """struct sigaction of the C library on x86-64."""

    _fields_ = (
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_ubyte * 128),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    )


_byte = ctypes.c_char()
_sigaction = ctypes.CDLL(None, use_errno=True).sigaction
_sigaction.argtypes = (ctypes.c_int, ctypes.POINTER(_Action), ctypes.POINTER(_Action))
_Handler = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)

_areas: dict[int, tuple[int, Callable[[int], bool], weakref.ref[mmap.mmap]]] = {}
_before = _Action()
_kept: list[object] = []  # the handler, as long as the process lives


def protect(owner: mmap.mmap, address: int, size: int, mend: Callable[[int], bool]) -> None:
    """Call ``mend(address)`` for an access in the area that has no page, as long as ``owner``, which unmaps it, lives.

    It returns whether the access can be repeated; otherwise the page is covered. ``mend`` must not refer to ``owner``.
    """
    if not _kept:
        handler = _Handler(_on_fault)
        action = _Action(
            handler=ctypes.cast(handler, ctypes.c_void_p), flags=SA_SIGINFO | SA_NODEFER
        )
        if _sigaction(signal.SIGBUS, action, _before) < 0:
            raise sc.oserror("sigaction")
        _kept.append(handler)
    end = weakref.ref(owner, lambda _: _areas.pop(address, None))
    _areas[address] = (address + size, mend, end)


def present(address: int) -> bool:
    """Whether the byte at ``address`` of this process can be read. No signal is sent if it cannot."""
    ours = (ctypes.c_uint64 * 2)(ctypes.addressof(_byte), 1)  # struct iovec
    theirs = (ctypes.c_uint64 * 2)(address, 1)
    pid = ctypes.c_int(os.getpid())
    return bool(sc.process_vm_readv(pid, ours, sc.ONE, theirs, sc.ONE, sc.NO_FLAGS) == 1)


def cover(address: int, size: int) -> None:
    """Put zeroed memory of this process over what is mapped in the range. OSError."""
    sc.mmap(address, size, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED)


def _on_fault(number: int, info: int, _context: int) -> None:
    address = ctypes.c_uint64.from_address(info + SI_ADDR).value
    if ctypes.c_int.from_address(info + SI_CODE).value > 0 and _mended(address):
        return
    _sigaction(number, _before, None)  # the repeated access meets what was there before
    if ctypes.c_int.from_address(info + SI_CODE).value <= 0:
        os.kill(os.getpid(), number)  # it was sent, and is sent again


def _mended(address: int) -> bool:
    for start, (end, mend, _) in list(_areas.items()):
        if start <= address < end:
            try:
                if not mend(address):
                    page = address & -4096
                    cover(page, 4096)
            except OSError:
                return False
            return True
    return False
