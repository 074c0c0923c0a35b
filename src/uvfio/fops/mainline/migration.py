"""Migration and DMA logging by VFIO_DEVICE_FEATURE, and the file that migration data go through.

A handler gets the device, the driver's interface (None for devices of other buses than PCI) and the call. A device
that does not migrate has none of these features: ENOTTY, but EINVAL for MIG_PRECOPY_INFOv2.

``DataFile`` is the file behind ``data_fd``. It is a stream: ``pread`` and ``pwrite`` are ESPIPE. It is open for one
direction, the other one is EBADF. Its calls take the device's lock. Its close ends nothing: the transfer lasts until
the device leaves the state that it belongs to, and the device takes a stream that was written to the end whether the
file is open or not. Data that were not read from a closed file are dropped.

``device_state`` is written back with ``data_fd`` -1 before anything happens, so that EFAULT is raised while nothing has
changed; the kernel loses the transfer there.

Behaviour: drivers/vfio/vfio_main.c (vfio_ioctl_device_feature_mig_device_state, _migration_data_size,
_logging_start, _logging_report; lib iova_bitmap.c), drivers/vfio/pci/mlx5/main.c (mlx5vf_save_read,
mlx5vf_resume_write, mlx5vf_precopy_ioctl).
"""

from __future__ import annotations

import struct
from errno import ESPIPE
from typing import TYPE_CHECKING, ClassVar, Final

from uvfio.core.migration.states import Migratable, Migration, MigrationFlag
from uvfio.core.migration.stream import ResumingStream, SavingStream
from uvfio.errors import BadDescriptor, InvalidArgument, UnknownCommand
from uvfio.fops.file import File, install
from uvfio.fops.mainline.feature import GET, SET, FeatureCall
from uvfio.fops.mainline.file import MainlineFile
from uvfio.fops.request import Handler, Request
from uvfio.fops.wire import read_struct
from uvfio.uapi import vfio
from uvfio.uapi import vfio_feature as features

if TYPE_CHECKING:
    from collections.abc import Mapping

    from uvfio.core.seams import Memory, Task
    from uvfio.core.structure.device import Device
    from uvfio.core.translation.dma_log import DmaLogger

__all__ = ["HANDLERS", "DataFile"]

STATE: Final = struct.Struct("<Ii")  # device_state, data_fd
U64: Final = struct.Struct("<Q")
CONTROL: Final = struct.Struct("<QIIQ")  # page_size, num_ranges, reserved, ranges
RANGE: Final = struct.Struct("<QQ")  # iova, length
REPORT: Final = struct.Struct("<QQQQ")  # iova, length, page_size, bitmap
PRECOPY: Final = struct.Struct("<IIQQ")  # argsz, flags, initial_bytes, dirty_bytes


# -- the data file -----------------------------------------------------------------------------------


class _Flow(File):
    """The data file as ``read`` and ``write`` use it, which take the stream in order."""

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


class DataFile(MainlineFile):
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

    @property
    def device_name(self) -> str:
        """The device whose state flows."""
        return self.device.name

    def sequential(self) -> File:
        """The flow of data: ``read`` and ``write`` have no other position than the next byte."""
        return self._flow

    def pread(self, task: Task, count: int, offset: int) -> bytes:
        """ESPIPE."""
        raise InvalidArgument("migration data have no other position than the next", errno=ESPIPE)

    def pwrite(self, task: Task, data: bytes, offset: int) -> int:
        """ESPIPE."""
        raise InvalidArgument("migration data have no other position than the next", errno=ESPIPE)

    def ioctl(self, task: Task, cmd: int, arg: int) -> int:
        """Answer under the device's lock."""
        with self.device.lock:
            return super().ioctl(task, cmd, arg)

    def dispatch(self, task: Task, cmd: int, arg: int) -> int:
        """Call the handler of ``cmd``. Raises UnknownCommand for all requests while RESUMING."""
        if isinstance(self.stream, ResumingStream):
            raise UnknownCommand("the data file of RESUMING has no ioctls")
        return super().dispatch(task, cmd, arg)

    def get_precopy_info(self, task: Task, arg: int) -> int:
        """VFIO_MIG_GET_PRECOPY_INFO: bytes left to read while the device runs (mlx5vf_precopy_ioctl).

        ENOTTY for the file of RESUMING; EFAULT, EINVAL for ``argsz`` below 24 or outside of PRE_COPY.
        """
        assert isinstance(self.stream, SavingStream)
        argsz, _, _, _ = PRECOPY.unpack(read_struct(task.memory, arg, PRECOPY.size))
        initial, dirty = self.migration.precopy_info(self.stream)
        task.memory.write(arg, PRECOPY.pack(argsz, 0, initial, dirty))
        return 0

    def _release(self) -> None:
        if isinstance(self.stream, SavingStream):
            with self.device.lock:
                self.stream.close()

    REQUESTS: ClassVar[Mapping[int, Request]] = {
        vfio.VFIO_MIG_GET_PRECOPY_INFO: Request(get_precopy_info),
    }


# -- migration ---------------------------------------------------------------------------------------


def get_flags(device: Device, driver: object, call: FeatureCall) -> int:
    """MIGRATION: the flags of what the device can do. ENOTTY; EINVAL as ``FeatureCall.check``; EFAULT."""
    migration = _migration(device, driver, "VFIO_DEVICE_FEATURE_MIGRATION")
    if call.check(GET, U64.size):
        call.task.memory.write(call.data, U64.pack(migration.flags))
    return 0


def device_state(device: Device, driver: object, call: FeatureCall) -> int:
    """MIG_DEVICE_STATE: GET the state, or SET it; a state in which data are transferred answers their descriptor.

    ENOTTY; EINVAL as ``FeatureCall.check``; EFAULT; then as ``Migration.set_state`` raises; EMFILE.
    """
    migration = _migration(device, driver, "VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE")
    if not call.check(GET | SET, STATE.size):
        return 0
    memory, data = call.task.memory, call.data
    wanted, _ = STATE.unpack(memory.read(data, STATE.size))
    if call.flags & GET:
        memory.write(data, STATE.pack(migration.state, -1))
        return 0
    memory.write(data, STATE.pack(wanted, -1))
    stream = migration.set_state(wanted)
    if stream is not None:
        fd = install(call.task, DataFile(device, migration, stream))
        memory.write(data, STATE.pack(wanted, fd))
    return 0


def data_size(device: Device, driver: object, call: FeatureCall) -> int:
    """MIG_DATA_SIZE: an estimate of the bytes that STOP_COPY gives. ENOTTY; EINVAL; EFAULT."""
    migration = _migration(device, driver, "VFIO_DEVICE_FEATURE_MIG_DATA_SIZE")
    if call.check(GET, U64.size):
        call.task.memory.write(call.data, U64.pack(migration.data_size()))
    return 0


def precopy_info(device: Device, driver: object, call: FeatureCall) -> int:
    """MIG_PRECOPY_INFOv2: the caller reads ``flags`` of GET_PRECOPY_INFO from now on. They are 0: no data begin anew.

    EINVAL for a device without PRE_COPY.
    """
    migration = _migration_of(driver)
    if migration is None or MigrationFlag.PRE_COPY not in migration.flags:
        raise InvalidArgument(f"{device.name} does not migrate while it runs")
    call.check(SET, 0)
    return 0


def _migration(device: Device, driver: object, what: str) -> Migration:
    migration = _migration_of(driver)
    if migration is None:
        raise UnknownCommand(f"{device.name} has no {what}", "its model does not migrate")
    return migration


def _migration_of(driver: object) -> Migration | None:
    return driver.migration if isinstance(driver, Migratable) else None


# -- logging of DMA ----------------------------------------------------------------------------------


def logging_start(device: Device, driver: object, call: FeatureCall) -> int:
    """DMA_LOGGING_START: answer the page size of the log, which is the size asked for or less.

    ENOTTY; EINVAL as ``FeatureCall.check``; EFAULT; then as ``DmaLogger.check_count`` and ``DmaLogger.start`` raise.
    """
    logger = _logger(device, driver, "VFIO_DEVICE_FEATURE_DMA_LOGGING_START")
    if not call.check(SET, CONTROL.size):
        return 0
    memory, data = call.task.memory, call.data
    raw = memory.read(data, CONTROL.size)
    page_size, count, _, ranges = CONTROL.unpack(raw)
    logger.check_count(count)
    memory.write(data, raw)  # EFAULT before the log begins
    asked = RANGE.iter_unpack(memory.read(ranges, count * RANGE.size))
    memory.write(data, U64.pack(logger.start(page_size, asked)))
    return 0


def logging_stop(device: Device, driver: object, call: FeatureCall) -> int:
    """DMA_LOGGING_STOP: forget the log. ENOTTY; EINVAL as ``FeatureCall.check``."""
    logger = _logger(device, driver, "VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP")
    if call.check(SET, 0):
        logger.stop()
    return 0


def logging_report(device: Device, driver: object, call: FeatureCall) -> int:
    """DMA_LOGGING_REPORT: set a bit for each page written since the last report. Bits are never cleared.

    ENOTTY; EINVAL as ``FeatureCall.check``; EFAULT; then as ``DmaLogger.report`` raises.
    """
    logger = _logger(device, driver, "VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT")
    if not call.check(GET, REPORT.size):
        return 0
    memory = call.task.memory
    iova, length, page_size, bitmap = REPORT.unpack(memory.read(call.data, REPORT.size))

    def deliver(pages: list[int]) -> None:
        last = (length - 1) // page_size // 64
        _set_bits(memory, bitmap, pages, ends=(0, last))

    logger.report(iova, length, page_size, deliver)
    return 0


def _set_bits(memory: Memory, bitmap: int, bits: list[int], ends: tuple[int, int]) -> None:
    """Set ``bits`` in the 64-bit words at ``bitmap``. BadAddress, also if the words at ``ends`` are not there."""
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
    """Runs of adjacent words: (number of the first one, all of them)."""
    runs: list[tuple[int, list[int]]] = []
    for number in sorted(words):
        if runs and runs[-1][0] + len(runs[-1][1]) == number:
            runs[-1][1].append(words[number])
        else:
            runs.append((number, [words[number]]))
    return runs


def _logger(device: Device, driver: object, what: str) -> DmaLogger:
    if not isinstance(driver, Migratable) or driver.dma_logger is None:
        raise UnknownCommand(f"{device.name} has no {what}", "its model does not migrate")
    return driver.dma_logger


HANDLERS: Final[dict[int, Handler]] = {
    features.VFIO_DEVICE_FEATURE_MIGRATION: get_flags,
    features.VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE: device_state,
    features.VFIO_DEVICE_FEATURE_DMA_LOGGING_START: logging_start,
    features.VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP: logging_stop,
    features.VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT: logging_report,
    features.VFIO_DEVICE_FEATURE_MIG_DATA_SIZE: data_size,
    features.VFIO_DEVICE_FEATURE_MIG_PRECOPY_INFOv2: precopy_info,
}
