"""``--trace``: one line per VFIO call, as strace writes it, and what strace cannot know.

    1234 openat("/dev/vfio/240") = 768
    1234 ioctl(768</dev/vfio/240>, VFIO_GROUP_GET_FLAGS, [VIABLE]) = 0
    1234 ioctl(769<anon_inode:[vfio-iommu]>, VFIO_IOMMU_MAP_DMA, {...}) = -1 EBUSY (iova 0x1000+0x1000 overlaps ...)
    0000:06:0d.0 fault: write iova 0x9000+0x4: not mapped

Arguments are decoded by the tables that decode the calls: those of 2011 here, by ``uvfio.uapi.rfc``, today's in
``trace_modern``; the file says which of the two its requests are. With ``as_json`` every line is a
JSON object with the same facts. Tracing wraps entries of the table of handlers; without it they are not touched.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TextIO

from uvfio.core.events import Fault, Interrupt
from uvfio.doors.run.filter.rules import ARG, BY_KEY, INT, Call
from uvfio.doors.run.handlers.calls import MINUS_ONE, Calls
from uvfio.doors.run.handlers.lookup import Lookup
from uvfio.doors.run.observe import trace_mainline as trace_modern
from uvfio.doors.run.observe.text import SHOWN, Read, flags_text, string_text
from uvfio.doors.run.session.events import FileReleased, RunEnded, RunStarted
from uvfio.errors import VfioError
from uvfio.fops.file import Deferred
from uvfio.uapi import rfc
from uvfio.uapi.rfc import VFIO_REGION_SHIFT
from uvfio.uapi.seccomp import AUDIT_ARCH_I386

if TYPE_CHECKING:
    from uvfio.doors.run.filter.rules import Handler, Key, Request
    from uvfio.doors.run.session.events import RunEvent
    from uvfio.doors.run.session.processes import Process
    from uvfio.doors.run.session.session import Session
    from uvfio.fops.file import File
    from uvfio.uapi.structs import Struct

__all__ = ["Trace", "decode_argument"]

NODES = ("/dev/vfio", "/dev/iommu")
REGION_MASK = (1 << VFIO_REGION_SHIFT) - 1

Describe = Callable[[Call, "Request", "int | None"], "dict[str, Any] | None"]
"""``(call, request, value) -> facts``: before the call (value None) and after it; None for a call that is not shown."""


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
    """Writes to ``out``; wraps the entries of ``handlers`` on creation."""

    def __init__(
        self,
        session: Session,
        handlers: dict[Key, Handler],
        out: TextIO,
        *,
        as_json: bool = False,
    ) -> None:
        self.processes = session.processes
        self.paths = Lookup(session)
        self.out = out
        self.as_json = as_json
        describe: dict[str, Describe] = {
            "ioctl": self._ioctl,
            "access": self._access,
            "vector": self._vector,
            "mmap": self._mmap,
            "open": self._open,
        }
        for key, handler in handlers.items():
            call = BY_KEY[key]
            if call.shown:
                handlers[key] = self._wrap(call, handler, describe[call.shown])

    # -- calls -------------------------------------------------------------------------------------

    def _wrap(self, call: Call, handler: Handler, describe: Describe) -> Handler:
        def answered(before: dict[str, Any], request: Request, answer: int | OSError) -> None:
            if isinstance(answer, OSError):
                self._finish(before, request, describe, call, error=answer)
            else:
                self._finish(before, request, describe, call, value=answer)

        def traced(request: Request) -> int | None:
            before = describe(call, request, None)
            try:
                value = handler(request)
            except OSError as error:
                if before is not None:
                    self._finish(before, request, describe, call, error=error)
                raise
            except Deferred as later:
                if before is not None:
                    later.answered.append(lambda answer: answered(before, request, answer))
                raise
            except Exception as bug:
                if before is not None:
                    seen = OSError(errno.EIO, f"{type(bug).__name__}: {bug}")
                    self._finish(before, request, describe, call, error=seen)
                raise
            if before is not None and (value is not None or call.shown == "mmap"):
                self._finish(before, request, describe, call, value=value)
            return value

        return traced

    def _finish(
        self,
        facts: dict[str, Any],
        request: Request,
        describe: Describe,
        call: Call,
        *,
        value: int | None = None,
        error: OSError | None = None,
    ) -> None:
        if error is None:
            facts |= describe(call, request, value) or {}
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
            text += f"{value:#x}" if call.shown == "mmap" else str(value)
        self._line(text)

    def _find(self, call: Call, request: Request) -> tuple[Process, File] | None:
        try:
            process = self.processes.get(request[1])
            file = process.lookup(request[1], request[ARG + call.descriptors[0]] & INT)
        except OSError:
            return None
        return None if file is None else (process, file)

    def _ioctl(self, call: Call, request: Request, value: int | None) -> dict[str, Any] | None:
        found = self._find(call, request)
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
            command_name = trace_modern.name_of(file.kind, command)
            argument = trace_modern.decode(file, command, read, at)
        else:
            command_name = rfc.ioctl_name(command)
            argument = decode_argument(command, read, at)
        inner = f"{request[6] & INT}<{file.name}>, {command_name}" + (
            f", {argument}" if argument else ""
        )
        return {
            "call": "ioctl",
            "fd": request[6] & INT,
            "file": file.name,
            "command": command_name,
            "argument": argument,
            "text": f"ioctl({inner})",
        }

    def _access(self, call: Call, request: Request, value: int | None) -> dict[str, Any] | None:
        found = self._find(call, request)
        if found is None:
            return None
        process, _ = found
        name = call.family
        raw: bytes | None = None
        if name.endswith("write") or value is not None:
            size = request[8] if name.endswith("write") else value or 0
            raw = process.read_some(request[7], min(size, SHOWN))
            more = size > SHOWN
        offset = None if call.offset is None else call.offset.read(request)
        data = "" if raw is None else _data_text(raw) + "..." * more
        return self._access_facts(request, found, name, data, request[8], offset)

    def _vector(self, call: Call, request: Request, value: int | None) -> dict[str, Any] | None:
        """An access with several parts: shown as one, with what all of them hold."""
        found = self._find(call, request)
        if found is None:
            return None
        process, _ = found
        name, width = call.name, 4 if request[4] == AUDIT_ARCH_I386 else 8
        try:
            parts = Calls.parts(process, request[7], request[8], width)
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
        offset = None if call.offset is None else call.offset.read(request)
        if name.endswith("2") and offset == MINUS_ONE:
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
            where = f"region {offset >> VFIO_REGION_SHIFT} + {offset & REGION_MASK:#x}"
        return {
            "call": name,
            "fd": fd,
            "file": file.name,
            **({} if offset is None else {"offset": offset}),
            "data": data,
            "text": f"{name}({fd}<{file.name}>, {data or hex(request[7])}, {count}, {where})",
        }

    def _mmap(self, call: Call, request: Request, value: int | None) -> dict[str, Any] | None:
        found = self._find(call, request)
        if found is None:
            return None
        _, file = found
        assert call.offset is not None
        fd, offset = request[ARG + call.descriptors[0]] & INT, call.offset.read(request)
        where = f"region {offset >> VFIO_REGION_SHIFT} + {offset & REGION_MASK:#x}"
        return {
            "call": "mmap",
            "fd": fd,
            "file": file.name,
            "offset": offset,
            "size": request[7],
            "text": f"mmap({request[7]:#x}, {fd}<{file.name}>, {where})",
        }

    def _open(self, call: Call, request: Request, value: int | None) -> dict[str, Any] | None:
        name, at = call.name, ARG + len(call.descriptors)
        dirfd = request[ARG] & INT if call.descriptors else None
        try:
            path = self.paths.interesting(request, dirfd, request[at])
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
