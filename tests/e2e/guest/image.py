"""What QEMU boots in these tests: a kernel of the distribution and an initramfs of our own.

The kernel is an unpacked package (``fetch-kernel`` beside this file makes one in build/guest)::

    build/guest/boot/vmlinuz-VERSION
    build/guest/lib/modules/VERSION/kernel/...

The initramfs holds one static program, /init (``init.c``), and the modules that it loads, in the order in which
they depend on each other. ``initramfs()`` makes it once and keeps it under a name that contains a hash of
everything it is made of. Nothing here needs root: the archive (cpio, "newc": Documentation/driver-api/early-userspace/
buffer-format.rst) is written as bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import lzma
import os
import re
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

from e2e import build

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["FOLDER", "Kernel", "find_kernel", "initramfs"]

HERE: Final = Path(__file__).resolve().parent
FOLDER: Final = Path(os.environ.get("UVFIO_GUEST") or build.ROOT / "build" / "guest")
SOURCES: Final = tuple(
    HERE / f"{name}.c" for name in ("init", "machine", "edu", "exerciser", "hotplug")
)
MODULES: Final = ("vfio_iommu_type1", "vfio-pci", "uio_pci_generic")
CONSOLE: Final = (5, 1)


@dataclass(frozen=True, slots=True)
class Kernel:
    """An unpacked kernel package."""

    image: Path
    modules: Path

    def needed(self, *names: str) -> dict[str, bytes]:
        """These modules and those they need, unpacked, by name; each behind what it needs.

        A name that is in no file is part of the kernel itself: there is nothing to load.
        """
        files = {_module_name(file.name): file for file in self.modules.rglob("*.ko*")}
        found: dict[str, bytes] = {}

        def add(name: str) -> None:
            if name in files and name not in found:
                content = _unpacked(files[name])
                for other in _depends(content):
                    add(other)
                found[name] = content

        for name in names:
            add(_module_name(name))
        return found


def _module_name(file: str) -> str:
    return file.partition(".")[0].replace("-", "_")


def _depends(module: bytes) -> list[str]:
    """What its own description (the section .modinfo) says that it needs."""
    words = re.search(rb"\0depends=([^\0]+)\0", module)
    return [_module_name(name) for name in words[1].decode().split(",")] if words else []


def _unpacked(module: Path) -> bytes:
    content = module.read_bytes()
    return lzma.decompress(content) if module.suffix == ".xz" else content


def find_kernel() -> Kernel | None:
    """The kernel that ``fetch-kernel`` has left, or None."""
    for image in sorted(FOLDER.glob("boot/vmlinuz-*"), reverse=True):
        version = image.name.removeprefix("vmlinuz-")
        for libraries in ("lib", "usr/lib"):
            modules = FOLDER / libraries / "modules" / version
            if modules.is_dir():
                return Kernel(image, modules)
    return None


@cache
def initramfs(kernel: Kernel) -> Path:
    """The archive for ``kernel``. BuildError if /init does not compile."""
    modules = kernel.needed(*MODULES)
    sources = [*SOURCES, *HERE.glob("*.h"), *build.PROGRAMS.glob("check.h"), Path(__file__)]
    digest = hashlib.sha256(f"{build.CC} {build.FLAGS} {build.compiler()}".encode())
    for part in sorted(sources):
        digest.update(part.read_bytes())
    for name, content in modules.items():
        digest.update(name.encode() + content)
    found = build.cache_directory() / f"initramfs-{digest.hexdigest()[:16]}"
    if not found.exists():
        with tempfile.TemporaryDirectory() as scratch:
            program = Path(scratch) / "init"
            others = [str(source) for source in SOURCES[1:]]
            build.build(SOURCES[0], program, "-static", "-I", str(build.PROGRAMS), *others)
            content = archive(program.read_bytes(), modules)
        # under another name first: a parallel process must not boot half an archive
        unfinished = found.with_suffix(f".{os.getpid()}")
        unfinished.write_bytes(content)
        unfinished.replace(found)
    return found


def archive(init: bytes, modules: Mapping[str, bytes]) -> bytes:
    """The bytes of an initramfs with ``init`` and ``modules``, which are loaded in this order."""
    parts = [
        _entry("dev", 0o040755),
        _entry("dev/console", 0o020600, device=CONSOLE),
        _entry("init", 0o100755, init),
        _entry("modules", 0o040755),
        _entry("modules/list", 0o100644, "".join(f"{name}\n" for name in modules).encode()),
        *(_entry(f"modules/{name}", 0o100644, content) for name, content in modules.items()),
        _entry("TRAILER!!!", 0),
    ]
    return b"".join(parts)


def _entry(name: str, mode: int, content: bytes = b"", device: tuple[int, int] = (0, 0)) -> bytes:
    """One file: thirteen numbers of eight hexadecimal digits, name, content, each part padded to four bytes."""
    raw = name.encode() + b"\0"
    inode = int.from_bytes(hashlib.sha256(raw).digest()[:4], "big")
    numbers = (inode, mode, 0, 0, 1, 0, len(content), 0, 0, *device, len(raw), 0)
    head = b"070701" + b"".join(b"%08X" % number for number in numbers) + raw
    return head + bytes(-len(head) % 4) + content + bytes(-len(content) % 4)


def main() -> None:
    parser = argparse.ArgumentParser(description="Print the paths of the kernel and the initramfs.")
    parser.parse_args()
    kernel = find_kernel()
    if kernel is None:
        raise SystemExit(f"there is no kernel in {FOLDER}: run {HERE / 'fetch-kernel'}")
    print(kernel.image, initramfs(kernel))


if __name__ == "__main__":
    main()
