"""The seams: everything the core needs from outside, as protocols that each door supplies.

A door (in-process, another process under the runner, a vfio-user socket) implements ``Task``,
``Memory`` and ``Event``; the machine gets its ``Clock`` and its ``Store`` from the door as well. The
core, the drivers and the models never import os, socket, mmap or ctypes: they need nothing that is not here.

``Mm`` is the one concrete class: the identity of an address space. Threads share it; a forked child and
the image after an exec have another one. An iommu context is owned
by one, and locked memory is charged to it, as to ``current->mm`` in the kernel.
"""

from __future__ import annotations

from threading import Condition, Lock
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from uvfio.errors import LimitExceeded

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

__all__ = ["Clock", "Event", "Memory", "Mm", "Pages", "Pin", "Store", "Task", "Timer"]


ENDLESS: Final = 1 << 63
"""From here on a limit in bytes is none."""


class Pages(Protocol):
    """What a DMA mapping was given by ``Memory.pin``: memory, by the virtual address that it had then.

    All methods reach the same bytes. Shared memory stays the memory that it was, whatever the program maps at the
    address later; private memory cannot be held from outside, so what the address leads to is reached. Methods raise
    BadAddress. The memory is given back with the last reference to this object and to its views.
    """

    def read(self, address: int, size: int) -> bytes:
        """Return exactly ``size`` bytes."""

    def write(self, address: int, data: bytes) -> None:
        """Write all of ``data``."""

    def store(self, address: int, value: int, width: int) -> None:
        """Store ``width`` bytes (2, 4 or 8) at an aligned address atomically.

        This hands an entry of a ring over to a driver that polls it.
        """

    def view(
        self,
        address: int,
        size: int,
        *,
        writable: bool = True,
        cut: tuple[str, Callable[[int], None]] | None = None,
    ) -> memoryview | None:
        """Return a zero-copy window on shared memory, or None where there cannot be one.

        A page of the window that is lost later (its file was cut) reads as zeroes, and stores in it reach nobody.
        ``cut`` is a user and a function: the function that was given last for each user is called with the address
        of such a page, at the access that finds it.
        """

    def exchanged(self, address: int, size: int) -> str:
        """Say what the program has at the range now, if it is recognisably not the memory that was pinned; else ""."""


class Pin(NamedTuple):
    """The answer of ``Memory.pin``: the memory, and how many bytes of it are locked (of a device's memory, none)."""

    pages: Pages
    locked: int


class Memory(Protocol):
    """The memory of one address space, by virtual address, as it is now. Methods raise BadAddress."""

    def read(self, address: int, size: int) -> bytes:
        """Return exactly ``size`` bytes."""

    def write(self, address: int, data: bytes) -> None:
        """Write all of ``data``."""

    def pin(self, address: int, size: int, writable: bool) -> Pin:
        """Return the memory of the range for a DMA mapping.

        Raises BadAddress unless every page is mapped readable (and writable, if asked).
        """

    def mlocked(self) -> int:
        """Return how many bytes the program has locked by itself (mlock)."""


class Event(Protocol):
    """An eventfd, or its equivalent in a door."""

    def signal(self) -> None:
        """Add 1 to the counter. Never blocks; a full counter stays full."""

    def watch(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call ``callback`` after each signal of another party, also for one that is pending already.

        Returns the function that ends the watch (idempotent).
        """

    def abandoned(self) -> bool:
        """Whether every program has closed it, so that no other party can signal it again. May take a while."""

    def close(self) -> None:
        """Drop this reference (idempotent)."""


class Mm:
    """Identity of an address space, with what is charged to it.

    ``locked_pages`` counts the 4096-byte pages that DMA mappings of this owner lock, over all its domains.
    ``abi`` names the interface that its files used last ("" if none was used yet): a hint for files that could be of
    either.
    """

    __slots__ = ("__weakref__", "_lock", "abi", "locked_pages", "memory", "name")

    def __init__(self, memory: Memory, name: str = "") -> None:
        self.memory = memory
        self.name = name
        self.locked_pages = 0
        self.abi = ""
        self._lock = Lock()

    def charge(self, pages: int, limit: int | None, *, mlocked: bool = False) -> None:
        """Count ``pages`` more; ``limit`` is in bytes (None: none). Raises LimitExceeded.

        ``mlocked``: what the program has locked by mlock counts, too, as in ``mm->locked_vm`` of the kernel.
        """
        with self._lock:
            locked = self.locked_pages
            if limit is not None and limit < ENDLESS:
                own = self.memory.mlocked() if mlocked else 0
                if (locked + pages) * 4096 + own > limit:
                    beside = f", and {own:#x} by mlock," if own else ""
                    raise LimitExceeded(
                        f"locking {pages * 4096:#x} bytes more than the {locked * 4096:#x} locked{beside} "
                        f"exceeds RLIMIT_MEMLOCK {limit:#x}",
                        "raise it with ulimit -l",
                    )
            self.locked_pages = locked + pages

    def uncharge(self, pages: int) -> None:
        """Count ``pages`` less."""
        with self._lock:
            self.locked_pages -= pages

    def __repr__(self) -> str:
        return f"<Mm {self.name or hex(id(self))}>"


class Task(Protocol):
    """The caller of a file operation: the kernel's ``current``."""

    @property
    def mm(self) -> Mm:
        """The caller's address space."""

    @property
    def memory(self) -> Memory:
        """The caller's memory with the caller's own rights, for arguments (copy_from_user, copy_to_user).

        ``mm.memory`` is for DMA: it stays bound to that address space when the caller executes another image.
        """

    def file(self, fd: int) -> object:
        """The object behind the caller's ``fd``: one of our files or anything else. BadDescriptor if closed."""

    def install(self, file: object, cloexec: bool) -> int:
        """Give the caller a new descriptor for ``file``. TooManyFiles, NoSpace, NoMemory."""

    def event(self, fd: int) -> Event:
        """A reference of our own to the caller's eventfd. BadDescriptor if closed, InvalidArgument if no eventfd."""

    def file_memory(self, fd: int) -> Memory:
        """The contents of the caller's shared memory file (memfd), by offset, for DMA; a reference of our own.

        BadDescriptor if closed. For any other file, and beyond the end, ``pin`` is InvalidArgument.
        """

    def memlock_limit(self) -> int | None:
        """RLIMIT_MEMLOCK in bytes, or None for a task that no limit binds (CAP_IPC_LOCK, infinity)."""


class Timer(Protocol):
    """A pending call."""

    def cancel(self) -> None:
        """Do not call (idempotent; nothing happens when it was called already)."""


class Clock(Protocol):
    """Time, and calls after a while. Callbacks run on the thread that serves the machine."""

    def monotonic(self) -> float:
        """Seconds."""

    def call_later(self, delay: float, callback: Callable[[], None]) -> Timer:
        """Call ``callback`` once, ``delay`` seconds from now or later."""

    def wait(self, condition: Condition, seconds: float) -> None:
        """Wait until ``condition`` is notified or ``seconds`` of this clock have passed.

        The caller holds the condition's lock, so no callback of ``call_later`` may run inside this call. It may
        return early.
        """


class Store(Protocol):
    """Where the memory of mappable regions lives, so that a program can map the very same bytes.

    What a device does with a view is always right; what a program does is right while the memory is shown.
    """

    def allocate(
        self, device: str, sizes: Mapping[int, int], late: Collection[int] = ()
    ) -> Mapping[int, memoryview]:
        """Zeroed writable memory for regions ``{index: bytes}`` of ``device``. NoMemory, NoSpace.

        Regions in ``late`` get theirs by ``populate``; the view may not be accessed before.
        """

    def populate(self, device: str, index: int) -> None:
        """Give late region ``index`` its memory (idempotent). NoMemory, NoSpace."""

    def clear(self, device: str, index: int) -> None:
        """Let region ``index`` be zero, for programs too."""

    def release(self, device: str) -> None:
        """The device is gone; programs may still have its memory mapped."""

    def hide(self, device: str) -> None:
        """From now on loads and stores of programs in the device's memory fault (SIGBUS); the views and
        what they show stay (idempotent). NoMemory."""

    def show(self, device: str) -> None:
        """Programs see the memory again, with what the views show (idempotent). NoSpace; then it stays hidden."""

    def hidden(self, device: str) -> bool:
        """Whether the device's memory is hidden from programs."""

    def watch(self, look: Callable[[], bool]) -> Callable[[], None]:
        """Programs have registers mapped: call ``look`` every few milliseconds and by ``look()``, on the
        thread that serves the machine, until the function that this returns is called (idempotent).

        ``look`` says whether it found stores; then it is called again sooner.
        """

    def look(self) -> None:
        """Take up now what programs have stored in mapped registers."""
