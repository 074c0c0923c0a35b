"""The assembler: labels, reach of jumps, size."""

from __future__ import annotations

import pytest

from support.bpf import interpret
from uvfio.doors.run.filter.bpf import Assembler
from uvfio.uapi import seccomp as s


class TestAssembler:
    def test_labels(self) -> None:
        asm = Assembler()
        asm.load(0)
        asm.jeq(7, "seven")
        asm.jump("end")
        asm.label("seven")
        asm.ret(70)
        asm.label("end")
        asm.ret(1)
        program = asm.assemble()
        assert len(program) == 8 * len(asm) == 40
        assert interpret(program, s.seccomp_data.pack(7, 0, 0, *[0] * 6)) == 70
        assert interpret(program, s.seccomp_data.pack(8, 0, 0, *[0] * 6)) == 1

    def test_reach(self) -> None:
        def program(distance: int, far: bool) -> bytes:
            asm = Assembler()
            if far:
                asm.jump("end")
            else:
                asm.jset(1, "end")
            for _ in range(distance):
                asm.mask(1)
            asm.label("end")
            asm.ret(0)
            return asm.assemble()

        program(255, far=False)
        program(3000, far=True)
        with pytest.raises(ValueError, match="label end is 256 instructions from 0; reach 255"):
            program(256, far=False)

    def test_no_way_back(self) -> None:
        asm = Assembler()
        asm.label("begin")
        asm.jump("begin")
        with pytest.raises(ValueError, match="label begin is -1 instructions"):
            asm.assemble()

    def test_label_twice(self) -> None:
        asm = Assembler()
        asm.label("here")
        with pytest.raises(ValueError, match="label here is defined twice"):
            asm.label("here")

    def test_label_missing(self) -> None:
        asm = Assembler()
        asm.jge(1, "nowhere")
        with pytest.raises(ValueError, match="label nowhere is not defined"):
            asm.assemble()

    def test_size(self) -> None:
        asm = Assembler()
        with pytest.raises(ValueError, match="0 instructions"):
            asm.assemble()
        for _ in range(4097):
            asm.ret(0)
        with pytest.raises(ValueError, match="4097 instructions"):
            asm.assemble()
