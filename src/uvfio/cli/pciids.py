"""Names of vendors, devices and classes, from the system's pci.ids if it has one.

The file is read once, and one pass over it finds where each vendor and each class begins; a lookup searches the lines
of one vendor. So 200 devices cost little more than one, whether or not the file knows them. A verb makes one ``PciIds``
for all that it prints. The names are decoration; without the file there are just the numbers. ``$UVFIO_PCI_IDS``
names another file.
"""

from __future__ import annotations

import os
import re

__all__ = ["PciIds"]

TOP = re.compile(rb"\n(?:C )?[0-9a-f]+(?=  )")  # the first line of a vendor or a class
PATHS = ("/usr/share/hwdata/pci.ids", "/usr/share/misc/pci.ids", "/usr/share/pci.ids")


class PciIds:
    """The system's file, read when the first name is asked for. Unknown names are empty strings."""

    def __init__(self, path: str | None = None) -> None:
        given = path or os.environ.get("UVFIO_PCI_IDS")
        self._paths = (given,) if given else PATHS
        self._blocks: dict[bytes, bytes] | None = None

    def vendor(self, vendor: str) -> str:
        """The name of vendor "8086"."""
        return self._name(self._block("", vendor))

    def device(self, vendor: str, device: str) -> str:
        """The name of a vendor's device."""
        block = self._block("", vendor)
        return self._name(self._within(block, f"\t{device}  "))

    def class_(self, code: str) -> str:
        """The name of class code "010802": that of the interface if there is one, else of the class."""
        base = self._block("C ", code[:2])
        sub = self._within(base, f"\t{code[2:4]}  ")
        interface = self._name(self._within(sub, f"\t\t{code[4:6]}  "))
        name = self._name(sub) or self._name(base)
        return f"{name} ({interface})" if interface else name

    def _block(self, kind: str, number: str) -> bytes:
        """The entry's line and the lines below it, or nothing."""
        if self._blocks is None:
            self._blocks = self._pass(self._read())
        return self._blocks.get(f"\n{kind}{number}".encode(), b"")

    @staticmethod
    def _pass(data: bytes) -> dict[bytes, bytes]:
        """The blocks of the file by the beginning of their first line; of two with one number, the first."""
        found: dict[bytes, bytes] = {}
        heads = list(TOP.finditer(data))
        ends = [*(head.start() for head in heads[1:]), len(data)]
        for head, end in zip(heads, ends, strict=False):
            found.setdefault(head[0], data[head.start() : end])
        return found

    @staticmethod
    def _within(data: bytes, prefix: str) -> bytes:
        head = b"\n" + prefix.encode()
        begin = data.find(head)
        if begin < 0:
            return b""
        depth = len(prefix) - len(prefix.lstrip("\t"))
        end = data.find(b"\n", begin + 1)
        while end >= 0 and data.startswith((b"\n" + b"\t" * (depth + 1), b"\n#"), end):
            end = data.find(b"\n", end + 1)
        return data[begin : end if end >= 0 else len(data)]

    @staticmethod
    def _name(block: bytes) -> str:
        line = block.lstrip(b"\n").partition(b"\n")[0]
        return line.partition(b"  ")[2].decode(errors="replace").strip()

    def _read(self) -> bytes:
        for path in self._paths:
            try:
                with open(path, "rb") as file:
                    return b"\n" + file.read()
            except OSError:
                continue
        return b"\n"
