"""ptrace(2) on x86-64, for tracers that follow system calls. Each function raises OSError with the kernel's errno.

The calling thread must be the tracer, and the tracee stopped but for PTRACE_SEIZE and PTRACE_INTERRUPT.
"""

from __future__ import annotations

import ctypes
import os
import signal
import struct
from typing import Final

from uvfio.uapi.seccomp import AUDIT_ARCH_I386, AUDIT_ARCH_X86_64

__all__ = [
    "event_message",
    "ptrace",
    "registers",
    "set_register",
    "set_registers",
    "set_signal_mask",
    "signal_mask",
    "syscall_info",
]

# linux/ptrace.h, and user_regs_struct of x86-64 (27 words) from asm/user_64.h
PTRACE_GETREGS: Final = 12
PTRACE_SETREGS: Final = 13
PTRACE_DETACH: Final = 17
PTRACE_SYSCALL: Final = 24
PTRACE_GETEVENTMSG: Final = 0x4201
PTRACE_SEIZE: Final = 0x4206
PTRACE_INTERRUPT: Final = 0x4207
PTRACE_LISTEN: Final = 0x4208
PTRACE_GETSIGMASK: Final = 0x420A
PTRACE_SETSIGMASK: Final = 0x420B
PTRACE_GET_SYSCALL_INFO: Final = 0x420E
OPTIONS: Final = 0x1 | 0x2 | 0x4 | 0x8 | 0x10  # TRACESYSGOOD, FORK, VFORK, CLONE, EXEC
ONE_CALL: Final = 0x1 | 0x10  # TRACESYSGOOD, EXEC: for a tracer that follows no child
EVENTS_OF_BIRTH: Final = (1, 2, 3)
EVENT_EXEC: Final = 4
EVENT_STOP: Final = 128
ENTRY, EXIT = 1, 2
REGISTERS: Final = struct.Struct("<27Q")
RAX, ORIG_RAX, RIP = 10, 15, 16
ARGUMENTS: Final = {  # where a call has its arguments, by AUDIT_ARCH
    AUDIT_ARCH_X86_64: (14, 13, 12, 7, 9, 8),  # rdi rsi rdx r10 r8 r9
    AUDIT_ARCH_I386: (5, 11, 12, 13, 14, 4),  # ebx ecx edx esi edi ebp
}
CALL_BYTES: Final = (
    2  # of the instructions syscall and int 0x80; the kernel restarts calls by going back over them
)
SYSCALL_STOP: Final = signal.SIGTRAP | 0x80
WALL, WNOTHREAD = 0x40000000, 0x20000000  # linux/wait.h
SYSCALL_INFO: Final = struct.Struct("<B3xIQQ7Q")

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long


def ptrace(request: int, tid: int, address: int = 0, data: object = 0) -> None:
    """The call itself. ESRCH for a thread that is gone or not stopped, EPERM for one with another tracer."""
    if _libc.ptrace(request, tid, address, data) < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"ptrace: {os.strerror(number)}")


def event_message(tid: int) -> int:
    """The message of the event that stopped ``tid``: for one of EVENTS_OF_BIRTH, the new thread (GETEVENTMSG)."""
    message = ctypes.c_ulong()
    ptrace(PTRACE_GETEVENTMSG, tid, 0, ctypes.addressof(message))
    return message.value


def syscall_info(tid: int) -> tuple[int, int, int, int, list[int]]:
    """(ENTRY or EXIT, AUDIT_ARCH, instruction pointer, number, arguments) of a stopped call. At EXIT number and
    arguments mean nothing (ptrace_syscall_info)."""
    buffer = ctypes.create_string_buffer(SYSCALL_INFO.size)
    ptrace(PTRACE_GET_SYSCALL_INFO, tid, SYSCALL_INFO.size, ctypes.addressof(buffer))
    kind, arch, ip, _, number, *arguments = SYSCALL_INFO.unpack(buffer.raw)
    return kind, arch, ip, number, arguments


def registers(tid: int) -> list[int]:
    """The 27 registers of a stopped thread, as an x86-64 tracer sees them (user_regs_struct)."""
    buffer = ctypes.create_string_buffer(REGISTERS.size)
    ptrace(PTRACE_GETREGS, tid, 0, ctypes.addressof(buffer))
    return list(REGISTERS.unpack(buffer.raw))


def set_registers(tid: int, values: list[int]) -> None:
    """Set all registers of a stopped thread."""
    buffer = ctypes.create_string_buffer(REGISTERS.pack(*values), REGISTERS.size)
    ptrace(PTRACE_SETREGS, tid, 0, ctypes.addressof(buffer))


def set_register(tid: int, which: int, value: int) -> None:
    """Set one register (RAX, ORIG_RAX) of a stopped thread."""
    values = registers(tid)
    values[which] = value
    set_registers(tid, values)


def signal_mask(tid: int) -> int:
    """The signals that a stopped thread blocks, as a mask of 64 bits."""
    mask = ctypes.c_uint64()
    ptrace(PTRACE_GETSIGMASK, tid, 8, ctypes.addressof(mask))
    return mask.value


def set_signal_mask(tid: int, mask: int) -> None:
    """Let a stopped thread block the signals of ``mask``; SIGKILL and SIGSTOP are never blocked."""
    value = ctypes.c_uint64(mask)
    ptrace(PTRACE_SETSIGMASK, tid, 8, ctypes.addressof(value))
