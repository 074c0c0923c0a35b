"""Names of vendors, devices and classes, from the system's pci.ids if it has one.

The file is searched and not parsed: a lookup costs a fraction of reading it into tables, and a verb makes
a few. The names are decoration; without the file there are just the numbers. ``$UVFIO_PCI_IDS`` names
another file.
"""

from __future__ import annotations

import os

__all__ = ["PciIds"]

PATHS = ("/usr/share/hwdata/pci.ids", "/usr/share/misc/pci.ids", "/usr/share/pci.ids")


class PciIds:
    """The system's file, read when the first name is asked for. Unknown names are empty strings."""

    def __init__(self, path: str | None = None) -> None:
        given = path or os.environ.get("UVFIO_PCI_IDS")
        self._paths = (given,) if given else PATHS
        self._data: bytes | None = None

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
        """The entry's line and the indented lines below it, or nothing."""
        return self._within(self._read(), f"{kind}{number}  ")

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
        if self._data is None:
            self._data = b"\n"
            for path in self._paths:
                try:
                    with open(path, "rb") as file:
                        self._data = b"\n" + file.read()
                    break
                except OSError:
                    continue
        return self._data
