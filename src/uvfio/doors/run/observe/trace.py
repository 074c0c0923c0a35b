"""``--trace``: one line per VFIO call, as strace writes it, and one per event of the framework.

    1234 openat("/dev/vfio/240") = 768
    1234 ioctl(768</dev/vfio/240>, VFIO_GROUP_GET_FLAGS, [VIABLE]) = 0
    1234 ioctl(769<anon_inode:[vfio-iommu]>, VFIO_IOMMU_MAP_DMA, {...}) = -1 EBUSY (iova 0x1000+0x1000 overlaps ...)
    1234 pread(770<anon_inode:[vfio-device] 0000:06:0d.0>, 0x10, 4, region 0 + 0x8) = 4
    dma 0000:06:0d.0 fault iova 0x9000 write: not mapped

``Trace.observe`` consumes the events of a run (``session/events.py``) and nothing else; calls become events by
``calls.tap``. Arguments of an ioctl are decoded by ``trace_2011`` or ``trace_mainline``, according to the ABI of the
file. They are decoded before the call, since the call may overwrite them or close the file, and again after it where
the call writes an answer. With ``as_json`` each line is a JSON object with the same facts. The name of a device's
file is the same for all devices, so the device's own name stands beside it.

A trace never makes a call fail: an argument that cannot be read is shown as its address, and lines that cannot be
written are lost, with one line on stderr (``linux/output.py``).
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from uvfio.core.events import Fault, Interrupt, MemoryExchanged
from uvfio.doors.run.filter.rules import ARG, INT, call_of
from uvfio.doors.run.handlers.calls import MINUS_ONE, Calls
from uvfio.doors.run.handlers.lookup import Lookup
from uvfio.doors.run.observe.calls import decoder
from uvfio.doors.run.observe.text import SHOWN
from uvfio.doors.run.session.events import (
    CallEntry,
    CallExit,
    FileReleased,
    RunEnded,
    RunStarted,
)
from uvfio.errors import VfioError
from uvfio.uapi.rfc import VFIO_REGION_SHIFT
from uvfio.uapi.seccomp import AUDIT_ARCH_I386

if TYPE_CHECKING:
    from collections.abc import Callable

    from uvfio.core.events import FrameworkEvent
    from uvfio.doors.run.filter.rules import Call, Request
    from uvfio.doors.run.linux.output import Sink
    from uvfio.doors.run.session.events import RunEvent
    from uvfio.doors.run.session.programs.process import Process
    from uvfio.doors.run.session.session import Session
    from uvfio.fops.file import File

__all__ = ["Trace"]

NODES = ("/dev/vfio", "/dev/iommu")
REGION_MASK = (1 << VFIO_REGION_SHIFT) - 1

Facts = dict[str, Any]


class Trace:
    """Write a line to ``out`` for each call that VFIO answers and for each event.

    Calls are seen if ``calls.tap`` was called for the table of handlers.
    """

    def __init__(self, session: Session, out: Sink, *, as_json: bool = False) -> None:
        self.processes = session.processes
        self.paths = Lookup(session)
        self.out = out
        self.as_json = as_json
        self._forms: dict[str, Callable[[Call, Request, int | None], Facts | None]] = {
            "ioctl": self._ioctl,
            "access": self._access,
            "vector": self._vector,
            "mmap": self._mmap,
            "open": self._open,
        }
        self._before: WeakKeyDictionary[CallEntry, Facts] = WeakKeyDictionary()

    def observe(self, event: RunEvent) -> None:
        """Write a line for an answered call, an event of the framework or a released file."""
        if isinstance(event, CallEntry):
            before = self._describe(event, None)
            if before is not None:
                self._before[event] = before
        elif isinstance(event, CallExit):
            facts = self._before.pop(event.entry, None)
            if facts is not None:
                self._exit(event, facts)
        elif not isinstance(event, RunStarted | RunEnded):
            self._happened(event)

    # -- calls -------------------------------------------------------------------------------------

    def _describe(self, entry: CallEntry, value: int | None) -> Facts | None:
        """The call as facts, before it and (with its ``value``) after it; None if it is not VFIO's."""
        call = call_of(entry.request)
        return self._forms[call.shown](call, entry.request, value)

    def _exit(self, event: CallExit, facts: Facts) -> None:
        request = event.entry.request
        value, error = event.value, event.error
        mapping = call_of(request).shown == "mmap"
        if error is None:
            if value is None and not mapping:
                return  # the kernel executes it: no call of VFIO
            facts |= self._describe(event.entry, value) or {}
        elif not isinstance(error, OSError):
            error = OSError(errno.EIO, f"{type(error).__name__}: {error}")
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
            text += f"{value:#x}" if mapping else str(value)
        self._line(text)

    def _find(self, call: Call, request: Request) -> tuple[Process, File] | None:
        try:
            process = self.processes.get(request[1])
            file = process.lookup(request[1], call.descriptor(request))
        except OSError:
            return None
        return None if file is None else (process, file)

    def _ioctl(self, call: Call, request: Request, value: int | None) -> Facts | None:
        found = self._find(call, request)
        if found is None:
            return None
        process, file = found
        command = request[7] & INT
        read, at = process.memory.read, request[8]
        abi = decoder(file, command)
        known = abi.find(file.kind, command)
        if value is not None and (known is None or not known.output):
            return {}
        command_name = abi.name_of(file.kind, command)
        argument = abi.decode(file, command, read, at)
        inner = f"{request[6] & INT}<{_shown(file)}>, {command_name}" + (
            f", {argument}" if argument else ""
        )
        return {
            "call": "ioctl",
            "fd": request[6] & INT,
            **_names(file),
            "command": command_name,
            "argument": argument,
            "text": f"ioctl({inner})",
        }

    def _access(self, call: Call, request: Request, value: int | None) -> Facts | None:
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

    def _vector(self, call: Call, request: Request, value: int | None) -> Facts | None:
        """An access with several parts is shown as one, with the data of all of them."""
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
        where, places = ("position", {}) if offset is None else _place(file, offset)
        return {
            "call": name,
            "fd": fd,
            **_names(file),
            **places,
            "count": count,
            "data": data,
            "text": f"{name}({fd}<{_shown(file)}>, {data or hex(request[7])}, {count}, {where})",
        }

    def _mmap(self, call: Call, request: Request, value: int | None) -> Facts | None:
        found = self._find(call, request)
        if found is None:
            return None
        _, file = found
        assert call.offset is not None
        fd = call.descriptor(request)
        where, places = _place(file, call.offset.read(request))
        return {
            "call": "mmap",
            "fd": fd,
            **_names(file),
            **places,
            "size": request[7],
            "text": f"mmap({request[7]:#x}, {fd}<{_shown(file)}>, {where})",
        }

    def _open(self, call: Call, request: Request, value: int | None) -> Facts | None:
        name, at = call.name, ARG + len(call.descriptors)
        dirfd = call.descriptor(request) if call.descriptors else None
        try:
            place = self.paths.interesting(request, dirfd, request[at])
        except OSError:
            return None
        if place is None or not place.path.startswith(NODES):
            return None
        path = place.path
        return {"call": name, "path": path, "text": f'{name}("{path}")'}

    # -- events ------------------------------------------------------------------------------------

    def _happened(self, event: FrameworkEvent | FileReleased) -> None:
        if isinstance(event, FileReleased):
            kind, facts = "released", {"file": event.file}
            if event.device is not None:
                facts["device"] = event.device
        else:
            kind, facts = event.kind, event.facts()
        if self.as_json:
            self._json({"event": kind, **facts})
            return
        if isinstance(event, FileReleased):
            text = f"released {event.file}" + (f" {event.device}" if event.device else "")
        elif isinstance(event, Fault):
            way = "write" if event.write else "read"
            text = f"dma {event.device} fault iova {event.iova:#x} {way}: {event.reason}"
        elif isinstance(event, MemoryExchanged):
            text = f"dma exchanged iova {event.iova:#x}+{event.size:#x}: {event.reason}"
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
        """Write one line. Characters that are not printable are escaped: a path may hold anything."""
        if not text.isprintable():
            text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
        self.out.write(text + "\n")


def _data_text(raw: bytes) -> str:
    if len(raw) in (1, 2, 4, 8):
        return f"{int.from_bytes(raw, 'little'):#x}"
    return raw.hex(" ")


def _names(file: File) -> Facts:
    """The file in JSON: its name, and the device's if that does not tell."""
    device = file.device_name
    return {"file": file.name} if device is None else {"file": file.name, "device": device}


def _shown(file: File) -> str:
    """The same as text."""
    return " ".join(_names(file).values())


def _place(file: File, offset: int) -> tuple[str, Facts]:
    """The position as text and in JSON; that of a device file is a region and an offset in it."""
    if file.region_memory is None:
        return f"offset {offset:#x}", {"offset": offset}
    region = offset >> VFIO_REGION_SHIFT
    return f"region {region} + {offset & REGION_MASK:#x}", {"offset": offset, "region": region}
