"""An assembler for classic BPF with labels; ``filter/build.py`` writes the program of the runner with it.

The kernel runs such a program on ``struct seccomp_data``: number, architecture and six arguments as 64-bit values.
Words are loaded by their offset in it (``NR``, ``ARCH``, ``low``, ``high``).

What this does not do: know a system call, or optimise.
"""

from __future__ import annotations

from typing import Final

from uvfio.uapi.seccomp import (
    BPF_ABS,
    BPF_ALU,
    BPF_AND,
    BPF_JA,
    BPF_JEQ,
    BPF_JGE,
    BPF_JMP,
    BPF_JSET,
    BPF_K,
    BPF_LD,
    BPF_MAXINSNS,
    BPF_MISC,
    BPF_RET,
    BPF_TAX,
    BPF_W,
    BPF_X,
    sock_filter,
)

__all__ = ["ARCH", "NR", "Assembler", "high", "low"]

NR: Final = 0
ARCH: Final = 4


def low(argument: int) -> int:
    """Offset of the low word of ``seccomp_data.args[argument]``."""
    return 16 + 8 * argument


def high(argument: int) -> int:
    """Offset of the high word of ``seccomp_data.args[argument]``."""
    return 20 + 8 * argument


class Assembler:
    """Classic BPF with labels.

    ``jeq``, ``jge`` and ``jset`` compare the accumulator with a constant and go to ``then`` or ``other``;
    None is the next instruction. Conditional jumps reach 255 instructions and no jump goes back:
    ``assemble`` raises ValueError for one that would, for a label that is missing or defined twice (the
    latter at once), and for a program longer than the kernel takes.
    """

    __slots__ = ("_code", "_labels")

    def __init__(self) -> None:
        self._code: list[tuple[int, int, str | None, str | None]] = []
        self._labels: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._code)

    def label(self, name: str) -> None:
        """Name the next instruction."""
        if name in self._labels:
            raise ValueError(f"label {name} is defined twice")
        self._labels[name] = len(self._code)

    def load(self, offset: int) -> None:
        """A = the 32-bit word at ``offset`` of ``struct seccomp_data``."""
        self._code.append((BPF_LD | BPF_W | BPF_ABS, offset, None, None))

    def mask(self, bits: int) -> None:
        """A = A & ``bits``."""
        self._code.append((BPF_ALU | BPF_AND | BPF_K, bits, None, None))

    def tax(self) -> None:
        """X = A."""
        self._code.append((BPF_MISC | BPF_TAX, 0, None, None))

    def ret(self, verdict: int) -> None:
        """End with ``verdict``."""
        self._code.append((BPF_RET | BPF_K, verdict, None, None))

    def jump(self, target: str) -> None:
        """Go to ``target``, however far."""
        self._code.append((BPF_JMP | BPF_JA, 0, target, target))

    def jeq(self, value: int, then: str | None = None, other: str | None = None) -> None:
        """Compare: A == ``value``."""
        self._code.append((BPF_JMP | BPF_JEQ | BPF_K, value, then, other))

    def jge(self, value: int, then: str | None = None, other: str | None = None) -> None:
        """Compare: A >= ``value``, unsigned."""
        self._code.append((BPF_JMP | BPF_JGE | BPF_K, value, then, other))

    def jset(self, bits: int, then: str | None = None, other: str | None = None) -> None:
        """Test: A & ``bits`` is not 0."""
        self._code.append((BPF_JMP | BPF_JSET | BPF_K, bits, then, other))

    def jge_x(self, then: str | None = None, other: str | None = None) -> None:
        """Compare with X instead of a constant."""
        self._code.append((BPF_JMP | BPF_JGE | BPF_X, 0, then, other))

    def assemble(self) -> bytes:
        """The program as an array of ``struct sock_filter``."""
        if not 0 < len(self._code) <= BPF_MAXINSNS:
            raise ValueError(
                f"{len(self._code)} instructions; the kernel takes 1 to {BPF_MAXINSNS}"
            )
        out = bytearray()
        for at, (code, k, then, other) in enumerate(self._code):
            if code == BPF_JMP | BPF_JA:
                out += sock_filter.pack(code, 0, 0, self._distance(at, then, BPF_MAXINSNS))
            else:
                jt = self._distance(at, then, 255)
                jf = self._distance(at, other, 255)
                out += sock_filter.pack(code, jt, jf, k)
        return bytes(out)

    def _distance(self, at: int, target: str | None, reach: int) -> int:
        if target is None:
            return 0
        if target not in self._labels:
            raise ValueError(f"label {target} is not defined")
        distance = self._labels[target] - at - 1
        if not 0 <= distance <= reach:
            raise ValueError(f"label {target} is {distance} instructions from {at}; reach {reach}")
        return distance
