"""Classic BPF, interpreted as the kernel does it: what a filter decides."""

from __future__ import annotations

import struct

import pytest

from uvfio.uapi import seccomp as s

__all__ = ["interpret"]


def interpret(program: bytes, data: bytes) -> int:
    """Run classic BPF as kernel/seccomp.c does; fails on anything its verifier would refuse."""
    code = list(s.sock_filter.iter_unpack(program))
    assert 0 < len(code) <= s.BPF_MAXINSNS
    a = x = pc = steps = 0
    while True:
        steps += 1
        assert steps <= len(code), "it jumps back"
        op, jt, jf, k = code[pc]
        pc += 1
        match op:
            case 0x20:  # LD W ABS
                assert k % 4 == 0
                assert k <= 60
                (a,) = struct.unpack_from("<I", data, k)
            case 0x54:  # ALU AND K
                a &= k
            case 0x07:  # MISC TAX
                x = a
            case 0x06:  # RET K
                return int(k)
            case 0x05:  # JMP JA
                pc += k
            case 0x15 | 0x35 | 0x45 | 0x3D:
                taken = {0x15: a == k, 0x35: a >= k, 0x45: bool(a & k), 0x3D: a >= x}[op]
                pc += jt if taken else jf
            case _:
                pytest.fail(f"instruction {op:#x}")
