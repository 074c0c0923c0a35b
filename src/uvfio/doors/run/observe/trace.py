"""``--trace``: one line per VFIO call, as strace writes it, and what strace cannot know.

    1234 openat("/dev/vfio/240") = 768
    1234 ioctl(768</dev/vfio/240>, VFIO_GROUP_GET_FLAGS, [VIABLE]) = 0
    1234 ioctl(769<anon_inode:[vfio-iommu]>, VFIO_IOMMU_MAP_DMA, {...}) = -1 EBUSY (iova 0x1000+0x1000 overlaps ...)
    0000:06:0d.0 fault: write iova 0x9000+0x4: not mapped

Arguments are decoded by the tables that decode the calls: those of 2011 here, by ``uvfio.uapi.rfc``, today's in
``trace_modern``; the file says which of the two its requests are. With ``as_json`` every line is a
JSON object with the same facts. Tracing wraps the handlers of a supervisor; without it they are not touched.
"""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING, Any, TextIO

from uvfio.core.events import Fault, Interrupt
from uvfio.doors.run.handlers.paths import ARG, Request
from uvfio.doors.run.observe import trace_mainline as trace_modern
from uvfio.doors.run.observe.text import SHOWN, Read, flags_text, string_text
from uvfio.doors.run.session.events import FileReleased, RunEnded, RunStarted
from uvfio.errors import VfioError
from uvfio.fops.file import Deferred
from uvfio.uapi import rfc
from uvfio.uapi.seccomp import AUDIT_ARCH_I386, AUDIT_ARCH_X86_64, I386, X86_64

if TYPE_CHECKING:
    from collections.abc import Callable

    from uvfio.doors.run.session.events import RunEvent
    from uvfio.doors.run.session.processes import Process
    from uvfio.doors.run.supervisor import Handler, Supervisor
    from uvfio.fops.file import File
    from uvfio.uapi.structs import Struct

__all__ = ["Trace", "decode_argument"]

INT = 0xFFFFFFFF
NODES = ("/dev/vfio", "/dev/iommu")
VECTORS = ("readv", "writev", "preadv", "pwritev", "preadv2", "pwritev2")


def decode_argument(request: int, read: Read, address: int) -> str:
    """The argument of an ioctl of 2011 as text; ``read(address, size)`` gives the program's memory."""
    known = rfc.IOCTLS.get(request)
    if known is None:
        return f"{address:#x}"
    kind = known.argument
    try:
        if isinstance(kind, type):
            return _decode_struct(kind, read(address, struct_size(kind)))
        if kind == "none":
            return ""
        if kind == "char*":
            return string_text(read, address)
        if kind == "u64*":
            value = rfc.U64.unpack(read(address, 8))[0]
            return f"[{flags_text(value, rfc.FLAG_NAMES.get(known.name, {}))}]"
        if kind == "int[2]":
            return str(list(struct.unpack("<2i", read(address, 8))))
        if kind == "int[]":
            head = struct.unpack("<2i", read(address, 8))
            count = max(0, min(head[1], SHOWN))
            return str([*head, *struct.unpack(f"<{count}i", read(address + 8, 4 * count))])
        return str([rfc.S32.unpack(read(address, 4))[0]])
    except (OSError, struct.error, ValueError):
        return f"{address:#x}"


def struct_size(kind: type[Struct]) -> int:
    import ctypes

    return ctypes.sizeof(kind)


def _decode_struct(kind: type[Struct], raw: bytes) -> str:
    parts = []
    names = rfc.FLAG_NAMES.get(kind.__name__, {})
    for field, value in kind.from_bytes(raw).as_dict().items():
        if field == "flags":
            parts.append(f"flags={flags_text(value, names)}")
        elif kind is rfc.vfio_dma_map and field == "len":
            continue  # junk in real programs
        else:
            parts.append(f"{field}={value:#x}" if value > 9 else f"{field}={value}")
    return "{" + ", ".join(parts) + "}"


class Trace:
    """Writes to ``out``; put between a supervisor and its handlers on creation."""

    def __init__(self, supervisor: Supervisor, out: TextIO, *, as_json: bool = False) -> None:
        self.supervisor = supervisor
        self.out = out
        self.as_json = as_json
        describe = {
            "ioctl": self._ioctl,
            "pread64": self._access,
            "pwrite64": self._access,
            "read": self._access,
            "write": self._access,
            "mmap": self._mmap,
            "mmap2": self._mmap,
            "openat": self._open,
            "open": self._open,
            "openat2": self._open,
            **dict.fromkeys(VECTORS, self._vector),
        }
        for arch, numbers in ((AUDIT_ARCH_X86_64, X86_64), (AUDIT_ARCH_I386, I386)):
            for name, method in describe.items():
                key = (numbers.get(name, -1), arch)
                if key in supervisor.handlers:
                    handler = supervisor.handlers[key]
                    supervisor.handlers[key] = self._wrap(name, handler, method)

    # -- calls -------------------------------------------------------------------------------------

    def _wrap(
        self, name: str, handler: Handler, describe: Callable[..., dict[str, Any] | None]
    ) -> Handler:
        def answered(before: dict[str, Any], request: Request, answer: int | OSError) -> None:
            if isinstance(answer, OSError):
                self._finish(before, request, describe, name, error=answer)
            else:
                self._finish(before, request, describe, name, value=answer)

        def traced(request: Request) -> int | None:
            before = describe(name, request, None)
            try:
                value = handler(request)
            except OSError as error:
                if before is not None:
                    self._finish(before, request, describe, name, error=error)
                raise
            except Deferred as later:
                if before is not None:
                    later.answered.append(lambda answer: answered(before, request, answer))
                raise
            except Exception as bug:
                if before is not None:
                    seen = OSError(errno.EIO, f"{type(bug).__name__}: {bug}")
                    self._finish(before, request, describe, name, error=seen)
                raise
            if before is not None and (value is not None or name in ("mmap", "mmap2")):
                self._finish(before, request, describe, name, value=value)
            return value

        return traced

    def _finish(
        self,
        facts: dict[str, Any],
        request: Request,
        describe: Callable[..., dict[str, Any] | None],
        name: str,
        *,
        value: int | None = None,
        error: OSError | None = None,
    ) -> None:
        if error is None:
            facts |= describe(name, request, value) or {}
        facts["pid"] = request[1]
        facts["result"] = value if error is None else -1
        if error is not None:
            facts["errno"] = errno.errorcode.get(error.errno or 0, str(error.errno))
            facts["reason"] = str(error) if isinstance(error, VfioError) else error.strerror
        if self.as_json:
            self._json(facts)
            return
        text = f"{request[1]} {facts['text']} = "
        if error is not None:
            text += f"-1 {facts['errno']} ({facts['reason']})"
        elif value is None:
            text += "mapped"
        else:
            text += f"{value:#x}" if name.startswith("mmap") else str(value)
        self._line(text)

    def _find(self, request: Request) -> tuple[Process, File] | None:
        try:
            process = self.supervisor.processes.get(request[1])
            at = ARG + 4 if request[3] in (9, 192) else ARG
            file = process.lookup(request[1], request[at] & INT)
        except OSError:
            return None
        return None if file is None else (process, file)

    def _ioctl(self, name: str, request: Request, value: int | None) -> dict[str, Any] | None:
        found = self._find(request)
        if found is None:
            return None
        process, file = found
        command = request[7] & INT
        read, at = process.memory.read, request[8]
        modern = file.abi_of(command) == "mainline"
        known = trace_modern.find(file.kind, command) if modern else rfc.IOCTLS.get(command)
        if value is not None and (known is None or not known.output):
            return {}
        if modern:
            call = trace_modern.name_of(file.kind, command)
            argument = trace_modern.decode(file, command, read, at)
        else:
            call = rfc.ioctl_name(command)
            argument = decode_argument(command, read, at)
        inner = f"{request[6] & INT}<{file.name}>, {call}" + (f", {argument}" if argument else "")
        return {
            "call": "ioctl",
            "fd": request[6] & INT,
            "file": file.name,
            "command": call,
            "argument": argument,
            "text": f"ioctl({inner})",
        }

    def _access(self, name: str, request: Request, value: int | None) -> dict[str, Any] | None:
        found = self._find(request)
        if found is None:
            return None
        process, _ = found
        name = name.removesuffix("64")
        raw: bytes | None = None
        if name.endswith("write") or value is not None:
            size = request[8] if name.endswith("write") else value or 0
            raw = process.read_some(request[7], min(size, SHOWN))
            more = size > SHOWN
        offset = None
        if name.startswith("p"):
            offset = request[9]
            if request[4] == AUDIT_ARCH_I386:
                offset = offset & INT | (request[10] & INT) << 32
        data = "" if raw is None else _data_text(raw) + "..." * more
        return self._access_facts(request, found, name, data, request[8], offset)

    def _vector(self, name: str, request: Request, value: int | None) -> dict[str, Any] | None:
        """An access with several parts: shown as one, with what all of them hold."""
        found = self._find(request)
        if found is None:
            return None
        process, _ = found
        narrow = request[4] == AUDIT_ARCH_I386
        try:
            width = 4 if narrow else 8
            parts = self.supervisor.calls.parts(process, request[7], request[8], width)
        except OSError:
            parts = []
        total = sum(size for _, size in parts)
        data = ""
        if "write" in name or value is not None:
            left = size = total if "write" in name else value or 0
            raw = b""
            for base, length in parts:
                taken = min(length, left, SHOWN - len(raw))
                raw += process.read_some(base, taken) if taken else b""
                left -= taken
            data = _data_text(raw) + "..." * (size > SHOWN)
        offset = None
        if name.startswith("p"):
            offset = request[9]
            if narrow:
                offset = offset & INT | (request[10] & INT) << 32
            if name.endswith("2") and offset == (1 << 64) - 1:
                offset = None  # the file position
        return self._access_facts(request, found, name, data, total, offset)

    @staticmethod
    def _access_facts(
        request: Request,
        found: tuple[Process, File],
        name: str,
        data: str,
        count: int,
        offset: int | None,
    ) -> dict[str, Any]:
        fd, file = request[6] & INT, found[1]
        where = "position"
        if offset is not None:
            where = f"region {offset >> 40} + {offset & ((1 << 40) - 1):#x}"
        return {
            "call": name,
            "fd": fd,
            "file": file.name,
            **({} if offset is None else {"offset": offset}),
            "data": data,
            "text": f"{name}({fd}<{file.name}>, {data or hex(request[7])}, {count}, {where})",
        }

    def _mmap(self, name: str, request: Request, value: int | None) -> dict[str, Any] | None:
        found = self._find(request)
        if found is None:
            return None
        _, file = found
        offset = request[11] if name == "mmap" else request[11] << 12
        where = f"region {offset >> 40} + {offset & ((1 << 40) - 1):#x}"
        return {
            "call": "mmap",
            "fd": request[10] & INT,
            "file": file.name,
            "offset": offset,
            "size": request[7],
            "text": f"mmap({request[7]:#x}, {request[10] & INT}<{file.name}>, {where})",
        }

    def _open(self, name: str, request: Request, value: int | None) -> dict[str, Any] | None:
        at = ARG if name == "open" else ARG + 1
        dirfd = None if name == "open" else request[ARG] & INT
        try:
            path = self.supervisor.paths.interesting(request, dirfd, request[at])
        except OSError:
            return None
        if path is None or not path.startswith(NODES):
            return None
        return {"call": name, "path": path, "text": f'{name}("{path}")'}

    # -- events ------------------------------------------------------------------------------------

    def observe(self, event: RunEvent) -> None:
        """Write a line for an event of the framework or a released file."""
        if isinstance(event, RunStarted | RunEnded):
            return
        if isinstance(event, FileReleased):
            kind, facts = "released", {"file": event.file}
        else:
            kind, facts = event.kind, event.facts()
        if self.as_json:
            self._json({"event": kind, **facts})
            return
        if isinstance(event, FileReleased):
            text = f"released {event.file}"
        elif isinstance(event, Fault):
            way = "write" if event.write else "read"
            text = f"dma {event.device} fault iova {event.iova:#x} {way}: {event.reason}"
        elif isinstance(event, Interrupt):
            vector = "" if event.irq == "INTx" else f" {event.vector}"
            text = f"irq {event.device} {event.irq}{vector}"
        else:
            text = f"{kind} " + " ".join(f"{key}={value}" for key, value in facts.items())
        self._line(text)

    def _json(self, facts: dict[str, Any]) -> None:
        import json

        self._line(json.dumps(facts))

    def _line(self, text: str) -> None:
        """One line, whatever a program put into a path. What it sees does not depend on who reads this."""
        if not text.isprintable():
            text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
        try:
            self.out.write(text + "\n")
        except OSError:
            return  # nobody reads it any more, or the disk is full


def _data_text(raw: bytes) -> str:
    if len(raw) in (1, 2, 4, 8):
        return f"{int.from_bytes(raw, 'little'):#x}"
    return raw.hex(" ")
