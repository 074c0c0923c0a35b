"""C structs as typed Python classes, laid out by ctypes exactly as the compiler does.

A class body is the layout::

    class vfio_irq_info(Struct):
        len: u32
        index: u32

``sizeof(vfio_irq_info)`` and ``vfio_irq_info.len.offset`` then agree with C, ``from_bytes`` and
``bytes(x)`` convert, and type checkers see ``int`` fields. The machines that uvfio supports are
little-endian. Files that declare structs must not use ``from __future__ import annotations``: the
annotations are read when the class is made.
"""

import ctypes
from typing import TYPE_CHECKING, Annotated, Any, Self, dataclass_transform, get_args

if TYPE_CHECKING:
    from _ctypes import _PyCStructType
else:
    _PyCStructType = type(ctypes.Structure)

__all__ = ["Struct", "i32", "s64", "u8", "u16", "u32", "u64"]

u8 = Annotated[int, ctypes.c_uint8]
u16 = Annotated[int, ctypes.c_uint16]
u32 = Annotated[int, ctypes.c_uint32]
u64 = Annotated[int, ctypes.c_uint64]
i32 = Annotated[int, ctypes.c_int32]
s64 = Annotated[int, ctypes.c_int64]


@dataclass_transform(kw_only_default=False)
class _StructMeta(_PyCStructType):
    if TYPE_CHECKING:
        _fields_: list[tuple[str, Any]]

    def __init__(cls, name: str, bases: tuple[type, ...], body: dict[str, Any]) -> None:
        """Set the fields. Annotations are read from the class: from Python 3.14 on its body has none."""
        super().__init__(name, bases, body)
        kinds = {field: get_args(kind) for field, kind in cls.__annotations__.items()}
        fields = [(field, words[1]) for field, words in kinds.items() if words]
        if fields:
            cls._fields_ = fields


class Struct(ctypes.Structure, metaclass=_StructMeta):
    """Base of all ABI structs."""

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Decode ``data``, which must be exactly ``sizeof(cls)`` bytes; else ValueError."""
        if len(data) != ctypes.sizeof(cls):
            raise ValueError(f"{cls.__name__} is {ctypes.sizeof(cls)} bytes, not {len(data)}")
        return cls.from_buffer_copy(data)

    def as_dict(self) -> dict[str, int]:
        """Field names and values in the order of the layout."""
        return {field[0]: getattr(self, field[0]) for field in self._fields_}

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({', '.join(f'{k}={v:#x}' for k, v in self.as_dict().items())})"
        )
