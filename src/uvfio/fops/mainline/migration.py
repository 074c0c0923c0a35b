"""Migration and DMA logging by VFIO_DEVICE_FEATURE, and the file that migration data go through.

A handler gets the device file, the caller, the flags, the address of the feature's data and how many bytes are there.
A device that does not migrate has none of these features: UnknownCommand, but InvalidArgument for MIG_PRECOPY_INFOv2.

``DataFile`` is what ``data_fd`` leads to. It has a position and no other: ``pread`` and ``pwrite`` are ESPIPE. It is
open for one direction, the other is EBADF. Its calls take the device's lock. Closing it ends nothing: the session lasts
until the device leaves the state that it belongs to, and a stream that was written to the end is taken by the device
whether the file is open or not. What a closed file would have given is dropped.

``device_state`` is written back with ``data_fd`` -1 before anything happens, so that a caller that cannot be answered
is refused (BadAddress) while nothing has changed; the kernel loses the transfer there.

Behaviour: drivers/vfio/vfio_main.c (vfio_ioctl_device_feature_mig_device_state, _migration_data_size,
_logging_start, _logging_report; lib iova_bitmap.c), drivers/vfio/pci/mlx5/main.c (mlx5vf_save_read,
mlx5vf_resume_write, mlx5vf_precopy_ioctl).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from errno import ESPIPE
from typing import TYPE_CHECKING, ClassVar, Final

from uvfio.core.migration.states import Migratable, Migration, MigrationFlag
from uvfio.core.migration.stream import ResumingStream, SavingStream
from uvfio.errors import BadDescriptor, InvalidArgument, UnknownCommand
from uvfio.fops.file import File
from uvfio.fops.rfc2011.group import install
from uvfio.fops.wire import ModernFile, read_struct
from uvfio.uapi import vfio
from uvfio.uapi import vfio_feature as features

if TYPE_CHECKING:
    from uvfio.core.seams import Memory, Task
    from uvfio.core.structure.device import Device
    from uvfio.core.translation.dma_log import DmaLogger
    from uvfio.fops.mainline.device import DeviceFile

__all__ = ["HANDLERS", "DataFile"]

GET: Final = features.VFIO_DEVICE_FEATURE_GET
SET: Final = features.VFIO_DEVICE_FEATURE_SET

STATE: Final = struct.Struct("<Ii")  # device_state, data_fd
U64: Final = struct.Struct("<Q")
CONTROL: Final = struct.Struct("<QIIQ")  # page_size, num_ranges, reserved, ranges
RANGE: Final = struct.Struct("<QQ")  # iova, length
REPORT: Final = struct.Struct("<QQQQ")  # iova, length, page_size, bitmap
PRECOPY: Final = struct.Struct("<IIQQ")  # argsz, flags, initial_bytes, dirty_bytes


# -- the data file -----------------------------------------------------------------------------------


class _Flow(File):
    """The data file for ``read`` and ``write``, which go through it in order."""

    __slots__ = ("_file",)

    def __init__(self, file: DataFile) -> None:
        super().__init__(file.name)
        self._file = file

    def pread(self, task: Task, count: int, offset: int) -> bytes:
        stream = self._file.stream
        with self._file.device.lock:
            if not isinstance(stream, SavingStream):
                raise BadDescriptor("the data file of RESUMING is for writing")
            return stream.read(offset, count)

    def pwrite(self, task: Task, data: bytes, offset: int) -> int:
        stream = self._file.stream
        with self._file.device.lock:
            if not isinstance(stream, ResumingStream):
                raise BadDescriptor("the data file of a device that is saved is for reading")
            return stream.write(data)


class DataFile(ModernFile):
    """An open migration data file."""

    __slots__ = ("_flow", "device", "migration", "stream")

    kind = "migration"

    def __init__(
        self, device: Device, migration: Migration, stream: SavingStream | ResumingStream
    ) -> None:
        super().__init__("anon_inode:[vfio-migration]")
        self.device = device
        self.migration = migration
        self.stream = stream
        self._flow = _Flow(self)

    def sequential(self) -> File:
        return self._flow

    def pread(self, task: Task, count: int, offset: int) -> bytes:
        raise InvalidArgument("migration data have no other position than the next", errno=ESPIPE)

    def pwrite(self, task: Task, data: bytes, offset: int) -> int:
        raise InvalidArgument("migration data have no other position than the next", errno=ESPIPE)

    def ioctl(self, task: Task, cmd: int, arg: int) -> int:
        with self.device.lock:
            return super().ioctl(task, cmd, arg)

    def dispatch(self, task: Task, cmd: int, arg: int) -> int:
        if isinstance(self.stream, ResumingStream):
            raise UnknownCommand("the data file of RESUMING has no ioctls")
        return super().dispatch(task, cmd, arg)

    def get_precopy_info(self, task: Task, arg: int) -> int:
        """VFIO_MIG_GET_PRECOPY_INFO: how much is left to read while the device runs."""
        assert isinstance(self.stream, SavingStream)
        argsz, _, _, _ = PRECOPY.unpack(read_struct(task.memory, arg, PRECOPY.size))
        initial, dirty = self.migration.precopy_info(self.stream)
        task.memory.write(arg, PRECOPY.pack(argsz, 0, initial, dirty))
        return 0

    def _release(self) -> None:
        if isinstance(self.stream, SavingStream):
            with self.device.lock:
                self.stream.close()

    COMMANDS: ClassVar[dict[int, Callable[..., int]]] = {
        vfio.VFIO_MIG_GET_PRECOPY_INFO: get_precopy_info,
    }


# -- migration ---------------------------------------------------------------------------------------


def get_flags(file: DeviceFile, task: Task, flags: int, data: int, given: int) -> int:
    """MIGRATION: what the device can do."""
    migration = _migration(file, "VFIO_DEVICE_FEATURE_MIGRATION")
    if file.checked(flags, given, GET, U64.size):
        task.memory.write(data, U64.pack(migration.flags))
    return 0


def device_state(file: DeviceFile, task: Task, flags: int, data: int, given: int) -> int:
    """MIG_DEVICE_STATE: which it is, or go there; arriving where data flow gives their descriptor."""
    migration = _migration(file, "VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE")
    if not file.checked(flags, given, GET | SET, STATE.size):
        return 0
    memory = task.memory
    wanted, _ = STATE.unpack(memory.read(data, STATE.size))
    if flags & GET:
        memory.write(data, STATE.pack(migration.state, -1))
        return 0
    memory.write(data, STATE.pack(wanted, -1))
    stream = migration.set_state(wanted)
    if stream is not None:
        fd = install(task, DataFile(file.device, migration, stream))
        memory.write(data, STATE.pack(wanted, fd))
    return 0


def data_size(file: DeviceFile, task: Task, flags: int, data: int, given: int) -> int:
    """MIG_DATA_SIZE: an estimate of what STOP_COPY gives."""
    migration = _migration(file, "VFIO_DEVICE_FEATURE_MIG_DATA_SIZE")
    if file.checked(flags, given, GET, U64.size):
        task.memory.write(data, U64.pack(migration.data_size()))
    return 0


def precopy_info(file: DeviceFile, task: Task, flags: int, data: int, given: int) -> int:
    """MIG_PRECOPY_INFOv2: from now on ``flags`` of the answer count. They are 0: data never begin anew."""
    migration = _migration_of(file)
    if migration is None or MigrationFlag.PRE_COPY not in migration.flags:
        raise InvalidArgument(f"{file.device.name} does not migrate while it runs")
    file.checked(flags, given, SET, 0)
    return 0


def _migration(file: DeviceFile, what: str) -> Migration:
    migration = _migration_of(file)
    if migration is None:
        raise UnknownCommand(f"{file.device.name} has no {what}", "its model does not migrate")
    return migration


def _migration_of(file: DeviceFile) -> Migration | None:
    device: object = file.mainline
    return device.migration if isinstance(device, Migratable) else None


# -- logging of DMA ----------------------------------------------------------------------------------


def logging_start(file: DeviceFile, task: Task, flags: int, data: int, given: int) -> int:
    """DMA_LOGGING_START: answers the page size, which is what was asked for or less."""
    logger = _logger(file, "VFIO_DEVICE_FEATURE_DMA_LOGGING_START")
    if not file.checked(flags, given, SET, CONTROL.size):
        return 0
    raw = task.memory.read(data, CONTROL.size)
    page_size, count, _, ranges = CONTROL.unpack(raw)
    logger.check_count(count)
    task.memory.write(data, raw)  # who cannot be answered is refused now
    asked = RANGE.iter_unpack(task.memory.read(ranges, count * RANGE.size))
    task.memory.write(data, U64.pack(logger.start(page_size, asked)))
    return 0


def logging_stop(file: DeviceFile, task: Task, flags: int, data: int, given: int) -> int:
    """DMA_LOGGING_STOP."""
    logger = _logger(file, "VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP")
    if file.checked(flags, given, SET, 0):
        logger.stop()
    return 0


def logging_report(file: DeviceFile, task: Task, flags: int, data: int, given: int) -> int:
    """DMA_LOGGING_REPORT: set a bit for each page written since the last one. Bits are never cleared."""
    logger = _logger(file, "VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT")
    if not file.checked(flags, given, GET, REPORT.size):
        return 0
    memory = task.memory
    iova, length, page_size, bitmap = REPORT.unpack(memory.read(data, REPORT.size))

    def deliver(pages: list[int]) -> None:
        last = (length - 1) // page_size // 64
        _set_bits(memory, bitmap, pages, ends=(0, last))

    logger.report(iova, length, page_size, deliver)
    return 0


def _set_bits(memory: Memory, bitmap: int, bits: list[int], ends: tuple[int, int]) -> None:
    """Set ``bits`` in the 64-bit words at ``bitmap``. BadAddress, also if the words at its ends are not there."""
    words = dict.fromkeys(ends, 0)
    for bit in bits:
        word, shift = divmod(bit, 64)
        words[word] = words.get(word, 0) | 1 << shift
    changed = []
    for first, masks in _runs(words):
        at, size = bitmap + U64.size * first, U64.size * len(masks)
        old = int.from_bytes(memory.read(at, size), "little")
        new = int.from_bytes(struct.pack(f"<{len(masks)}Q", *masks), "little")
        changed.append((at, (old | new).to_bytes(size, "little")))
    for at, raw in changed:
        memory.write(at, raw)


def _runs(words: dict[int, int]) -> list[tuple[int, list[int]]]:
    """Words that follow each other, together: (the first one's number, all of them)."""
    runs: list[tuple[int, list[int]]] = []
    for number in sorted(words):
        if runs and runs[-1][0] + len(runs[-1][1]) == number:
            runs[-1][1].append(words[number])
        else:
            runs.append((number, [words[number]]))
    return runs


def _logger(file: DeviceFile, what: str) -> DmaLogger:
    device: object = file.mainline
    if not isinstance(device, Migratable) or device.dma_logger is None:
        raise UnknownCommand(f"{file.device.name} has no {what}", "its model does not migrate")
    return device.dma_logger


HANDLERS: Final[dict[int, Callable[..., int]]] = {
    features.VFIO_DEVICE_FEATURE_MIGRATION: get_flags,
    features.VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE: device_state,
    features.VFIO_DEVICE_FEATURE_DMA_LOGGING_START: logging_start,
    features.VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP: logging_stop,
    features.VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT: logging_report,
    features.VFIO_DEVICE_FEATURE_MIG_DATA_SIZE: data_size,
    features.VFIO_DEVICE_FEATURE_MIG_PRECOPY_INFOv2: precopy_info,
}
