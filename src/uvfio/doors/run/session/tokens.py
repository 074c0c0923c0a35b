"""Tokens: the files that programs have open instead of VFIO files, and how their last close is detected.

A token is an unlinked file on tmpfs (or disk). Its inode is the identity of an open VFIO file through dup,
fork and SCM_RIGHTS; mappable regions are its own bytes at ``index << 40``, so the program maps them
natively. The last close or munmap in any process, a kill -9 included, is one inotify event, queued before
the close returns to its caller: ``drain`` before anything that depends on what is open.

Life: ``create`` (an O_PATH pin and a watch are held here) -> ADDFD gives the program the only real descriptor
-> close-write event -> ``drain`` releases the VFIO files behind it and closes the pin. The pin keeps the
inode number from being used again.

An event only means that some open file ended. Devices with mappable regions have one inode for all their
opens, because all must share the bytes; and a program can open any token once more, through /dev/stdin or
/proc/PID/task/TID/fd. A write lease tells whether it was the last: the kernel grants one only to a sole opener.
A token that was still open is tested again at each ``drain``: the second close may give no event of its own.

A token without memory is open for writing alone: a read that the filter does not see (a copy outside the reserved
range) fails with EBADF, and a mapping with EACCES, instead of finding an empty file.

A file that is ``alone`` (one of several opens of a device's node) has a token of its own and no memory. When a
descriptor of it is mapped, that descriptor is exchanged for one of the device's memory (``expose``); the file is then
behind two tokens, and ends with the last of them.

What this does not do: give a program its descriptor (``Session.install``), or decide what a file's end means.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
from typing import TYPE_CHECKING

from uvfio.doors.run.linux import syscalls as sc
from uvfio.doors.run.linux.proc import scarce
from uvfio.doors.run.session.device_memory import DeviceMemory
from uvfio.errors import NoMemory, NoSpace

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from uvfio.doors.run.session.polls import Polls
    from uvfio.fops.file import File

__all__ = ["Token", "Tokens"]


class Token:
    """One inode and the VFIO files behind it. ``position`` is the file position of read(2) and write(2);
    ``memory`` is that of the device, if the inode holds one's."""

    __slots__ = ("files", "key", "memory", "pin", "position", "watch")

    def __init__(self, pin: int, key: tuple[int, int], memory: DeviceMemory | None = None) -> None:
        self.pin = pin
        self.key = key
        self.memory = memory
        self.watch = -1
        self.position = 0
        self.files: list[File] = []

    @property
    def file(self) -> File:
        """The VFIO file to use; equivalent ones when there are several."""
        return self.files[-1]


class Tokens:
    """All tokens of a run, in unlinked files of ``folder``. Implements the ``Store`` seam.

    ``on_release(token)`` is called before the files of a token are released. ``on_error`` is called, inside the
    ``except``, for a file whose release raises: the bug of one model is no failure of the call that comes next.
    ``polls`` polls mapped registers for stores. ``inotify`` is an idle inotify descriptor to use and
    close. OSError if ``folder`` cannot hold unlinked files.
    """

    def __init__(
        self,
        folder: str,
        on_release: Callable[[Token], None] | None = None,
        *,
        on_error: Callable[[], None],
        polls: Polls,
        inotify: int | None = None,
    ) -> None:
        self.folder = folder
        self.on_release = on_release
        self.on_error = on_error
        self.polls = polls
        self._inotify = sc.inotify_init1() if inotify is None else inotify
        self._news = select.poll()  # costs a third of FIONREAD
        self._news.register(self._inotify, select.POLLIN)
        self._tokens: dict[tuple[int, int], Token] = {}
        self._watches: dict[int, Token] = {}
        self._closing: dict[Token, None] = {}  # closed by a program; a set, in order
        self._behind: dict[File, int] = {}  # how many times a file is behind tokens
        self._memory: dict[str, Token] = {}
        self._memory_keys: set[tuple[int, int]] = set()

    @property
    def fileno(self) -> int:
        """The descriptor that becomes readable when a token was closed."""
        return self._inotify

    def __len__(self) -> int:
        return len(self._tokens)

    def find(self, dev: int, inode: int) -> Token | None:
        """The token behind an inode of the program, or None for an ordinary file."""
        return self._tokens.get((dev, inode))

    def is_device(self, dev: int, inode: int) -> bool:
        """Whether the inode holds a device's memory."""
        return (dev, inode) in self._memory_keys

    # -- making and giving ------------------------------------------------------------------------

    def create(self, file: File) -> tuple[Token, int]:
        """A token for ``file`` and the descriptor to give away; close it when the program has its copy."""
        memory = None if file.alone else self._memory.get(file.region_memory or "")
        token = memory or self._new_token()
        return token, self._give(token, file)

    def expose(self, file: File) -> tuple[Token, int] | None:
        """As ``create``, for a file that is alone: the token of its device's memory. None without such memory."""
        token = self._memory.get(file.region_memory or "")
        return None if token is None else (token, self._give(token, file))

    def holds_memory(self, token: Token) -> bool:
        """Whether a device's memory is in it."""
        return token.memory is not None

    def _give(self, token: Token, file: File) -> int:
        path, fd = f"/proc/self/fd/{token.pin}", -1
        mode = os.O_WRONLY if token.memory is None else os.O_RDWR
        try:
            fd = os.open(path, mode | os.O_CLOEXEC)
            if token.watch < 0:
                token.watch = sc.inotify_add_watch(self._inotify, path.encode(), sc.IN_CLOSE_WRITE)
                self._watches[token.watch] = token
        except OSError:
            if fd >= 0:
                os.close(fd)
            if token.memory is None:
                os.close(token.pin)
            raise
        token.files.append(file)
        self._behind[file] = self._behind.get(file, 0) + 1
        self._tokens[token.key] = token
        return fd

    def abort(self, token: Token, fd: int, file: File) -> None:
        """Undo ``create`` after an error; the caller releases ``file``."""
        token.files.remove(file)
        self._leave(file)
        if not token.files:
            self._closing.pop(token, None)
            self._unwatch(token)
            del self._tokens[token.key]
        os.close(fd)
        if not token.files and token.memory is None:
            os.close(token.pin)

    def _new_token(self) -> Token:
        made = os.open(self.folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            pin = os.open(f"/proc/self/fd/{made}", os.O_PATH | os.O_CLOEXEC)
        finally:
            os.close(made)
        if scarce(pin):  # the number of ``made`` may do
            kept = fcntl.fcntl(pin, fcntl.F_DUPFD_CLOEXEC, 0)
            os.close(pin)
            pin = kept
        if scarce(pin):
            os.close(pin)
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        found = os.stat(pin)
        return Token(pin, (found.st_dev, found.st_ino))

    # -- learning of closes -----------------------------------------------------------------------

    def drain(self) -> None:
        """Release the files whose last reference went. Cheap when nothing happened."""
        while self._news.poll(0):
            data = os.read(self._inotify, 65536)
            at = 0
            while at < len(data):
                watch, mask, _, length = sc.inotify_event.unpack_from(data, at)
                at += sc.inotify_event.size + length
                if mask & sc.IN_Q_OVERFLOW:
                    self._closing |= dict.fromkeys(self._tokens.values())
                token = self._watches.get(watch)
                if token is not None and mask & sc.IN_CLOSE_WRITE:
                    self._closing[token] = None
        for token in list(self._closing):
            if self._unused(token):
                self._release(token)

    def release_all(self) -> None:
        """Every program has ended: release the remaining tokens (an event may be late)."""
        self.drain()
        for token in list(self._tokens.values()):
            self._release(token)

    def _leave(self, file: File) -> bool:
        """``file`` is behind one token less; returns whether that was the last."""
        left = self._behind.pop(file) - 1
        if left:
            self._behind[file] = left
        return not left

    def _release(self, token: Token) -> None:
        token.files = [file for file in token.files if self._leave(file)]
        if self.on_release:
            self.on_release(token)
        self._closing.pop(token, None)
        self._unwatch(token)
        del self._tokens[token.key]
        files, token.files = token.files, []
        if token.memory is None:
            os.close(token.pin)
        elif token not in self._memory.values():
            self._forget_memory(token)  # its device went before its users
        for file in files:
            try:
                file.release()
            except BaseException:
                self.on_error()
        if token.memory is not None:
            token.memory.unmapped()

    def _unwatch(self, token: Token) -> None:
        if token.watch >= 0:
            self._watches.pop(token.watch, None)
            try:
                sc.inotify_rm_watch(self._inotify, token.watch)
            except OSError as error:
                if error.errno != errno.EINVAL:  # the kernel removed it with the inode
                    raise
            token.watch = -1

    def _unused(self, token: Token) -> bool:
        """Whether no process has the token open or mapped."""
        if token.memory is not None:
            return self._sole_opener(token.memory.fd)
        probe = os.open(f"/proc/self/fd/{token.pin}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return self._sole_opener(probe)
        finally:
            os.close(probe)

    @staticmethod
    def _sole_opener(fd: int) -> bool:
        try:
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        except OSError as error:
            if error.errno == errno.EAGAIN:
                return False
            raise
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        return True

    # -- memory of mappable regions (Store) ---------------------------------------------------------

    def allocate(
        self, device: str, sizes: Mapping[int, int], late: Collection[int] = ()
    ) -> Mapping[int, memoryview]:
        """Zeroed writable memory for regions ``{index: bytes}`` of ``device``. NoMemory, NoSpace."""
        total = sum(sizes.values())
        with _Short(device, f"no {total} bytes of region memory in {self.folder}"):
            memory = DeviceMemory(self.folder, sizes, late)
            try:
                pin = os.open(f"/proc/self/fd/{memory.fd}", os.O_PATH | os.O_CLOEXEC)
            except OSError:
                memory.close()
                raise
        found = os.stat(pin)
        token = Token(pin, (found.st_dev, found.st_ino), memory)
        self._memory[device] = token
        self._memory_keys.add(token.key)
        return dict(memory.views)

    def populate(self, device: str, index: int) -> None:
        """Give late region ``index`` its memory (idempotent). NoMemory, NoSpace."""
        with _Short(device, f"no room for region {index} in {self.folder}"):
            self._of(device).populate(index)

    def mapped(self, device: str) -> None:
        """A program maps some of the device's memory. NoMemory if it cannot be hidden as it has to be."""
        with _Short(device, "its memory cannot be hidden"):
            self._of(device).mapped()

    def clear(self, device: str, index: int) -> None:
        """Let region ``index`` be zero; costs what was touched."""
        self._of(device).clear(index)

    def hide(self, device: str) -> None:
        """From now on loads and stores of programs in the device's memory fault (SIGBUS); the views and what they
        show stay (idempotent). NoMemory."""
        with _Short(device, "its memory cannot be hidden"):
            self._of(device).hide()

    def show(self, device: str) -> None:
        """Programs see the memory again, with what the views show (idempotent). NoSpace; then it stays hidden."""
        with _Short(device, f"no room for its memory in {self.folder}"):
            self._of(device).show()

    def hidden(self, device: str) -> bool:
        """Whether the device's memory is hidden from programs."""
        return self._of(device).hidden

    def watch(self, look: Callable[[], bool]) -> Callable[[], None]:
        """Programs have registers mapped: call ``look`` every few milliseconds and by ``look()``, on the thread that
        serves the machine, until the function that this returns is called (idempotent)."""
        return self.polls.watch(look)

    def look(self) -> None:
        """Take up now what programs have stored in mapped registers."""
        self.polls.look()

    def _of(self, device: str) -> DeviceMemory:
        memory = self._memory[device].memory
        assert memory is not None
        return memory

    def release(self, device: str) -> None:
        """The device is gone; programs may still have its memory mapped."""
        token = self._memory.pop(device, None)
        if token is not None and not token.files:
            self._forget_memory(token)

    def _forget_memory(self, token: Token) -> None:
        self._memory_keys.discard(token.key)
        os.close(token.pin)
        if token.memory is not None:
            token.memory.close()

    def close(self) -> None:
        """Release all tokens and memory, and close the inotify descriptor."""
        self.release_all()
        for device in list(self._memory):
            self.release(device)
        os.close(self._inotify)


class _Short:
    """Turn OSError into a condition: NoSpace for a full file system, else NoMemory.

    A class, since a generator's frame and the error that it handles refer to each other: the frames of the refused
    operation, and with them the device's memory, would stay until the garbage collector comes.
    """

    __slots__ = ("_device", "_what")

    def __init__(self, device: str, what: str) -> None:
        self._device = device
        self._what = what

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, OSError):
            condition = NoSpace if error.errno == errno.ENOSPC else NoMemory
            raise condition(f"{self._device}: {self._what}") from error
