"""What ``VFIO_DEVICE_FEATURE`` carries: features, their payloads, and the states of device migration.

The part of ``linux/vfio.h`` that grows with almost every release, under the header's own names; the rest is
in ``uvfio.uapi.vfio``. A comment names the release of Linux a group of names came with. ``__reserved`` is
``reserved`` here: Python gives names with two underscores another meaning inside classes.
"""

from typing import Final, NamedTuple

from uvfio.uapi.structs import Struct, i32, u32, u64

# Flags of vfio_device_feature: a feature's number in the low half, what to do with it above. Linux 5.7
VFIO_DEVICE_FEATURE_MASK: Final = 0xFFFF
VFIO_DEVICE_FEATURE_GET: Final = 1 << 16
VFIO_DEVICE_FEATURE_SET: Final = 1 << 17
VFIO_DEVICE_FEATURE_PROBE: Final = 1 << 18

VFIO_DEVICE_FEATURE_PCI_VF_TOKEN: Final = 0  # 16 bytes, a UUID
VFIO_DEVICE_FEATURE_MIGRATION: Final = 1  # Linux 5.18
VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE: Final = 2
VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY: Final = 3  # Linux 6.1, as are the next five
VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY_WITH_WAKEUP: Final = 4
VFIO_DEVICE_FEATURE_LOW_POWER_EXIT: Final = 5
VFIO_DEVICE_FEATURE_DMA_LOGGING_START: Final = 6
VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP: Final = 7
VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT: Final = 8
VFIO_DEVICE_FEATURE_MIG_DATA_SIZE: Final = 9  # Linux 6.2
VFIO_DEVICE_FEATURE_BUS_MASTER: Final = 10  # Linux 6.7; for buses whose devices have no such bit
VFIO_DEVICE_FEATURE_DMA_BUF: Final = 11  # Linux 6.19
VFIO_DEVICE_FEATURE_MIG_PRECOPY_INFOv2: Final = 12  # Linux 7.1

PCI_VF_TOKEN_SIZE: Final = 16  # of the payload of PCI_VF_TOKEN, which has no struct


# Migration
class vfio_device_feature_migration(Struct):
    flags: u64


VFIO_MIGRATION_STOP_COPY: Final = 1 << 0
VFIO_MIGRATION_P2P: Final = 1 << 1
VFIO_MIGRATION_PRE_COPY: Final = 1 << 2  # Linux 6.2


class vfio_device_feature_mig_state(Struct):
    device_state: u32
    data_fd: i32


VFIO_DEVICE_STATE_ERROR: Final = 0
VFIO_DEVICE_STATE_STOP: Final = 1
VFIO_DEVICE_STATE_RUNNING: Final = 2
VFIO_DEVICE_STATE_STOP_COPY: Final = 3
VFIO_DEVICE_STATE_RESUMING: Final = 4
VFIO_DEVICE_STATE_RUNNING_P2P: Final = 5
VFIO_DEVICE_STATE_PRE_COPY: Final = 6  # Linux 6.2
VFIO_DEVICE_STATE_PRE_COPY_P2P: Final = 7
VFIO_DEVICE_STATE_NR: Final = 8


class vfio_device_feature_mig_data_size(Struct):
    stop_copy_length: u64


class vfio_precopy_info(Struct):
    """Argument of VFIO_MIG_GET_PRECOPY_INFO on the migration data file. Linux 6.2"""

    argsz: u32
    flags: u32
    initial_bytes: u64
    dirty_bytes: u64


VFIO_PRECOPY_INFO_REINIT: Final = 1 << 0  # Linux 7.1, after MIG_PRECOPY_INFOv2 was set


# Low power
class vfio_device_low_power_entry_with_wakeup(Struct):
    wakeup_eventfd: i32
    reserved: u32


# Logging of DMA writes by the device
class vfio_device_feature_dma_logging_control(Struct):
    """``ranges`` points to ``num_ranges`` of ``vfio_device_feature_dma_logging_range``."""

    page_size: u64
    num_ranges: u32
    reserved: u32
    ranges: u64


class vfio_device_feature_dma_logging_range(Struct):
    iova: u64
    length: u64


class vfio_device_feature_dma_logging_report(Struct):
    """``bitmap`` points to 64-bit words, one bit for ``page_size`` bytes."""

    iova: u64
    length: u64
    page_size: u64
    bitmap: u64


class vfio_device_feature_bus_master(Struct):
    op: u32


VFIO_DEVICE_FEATURE_CLEAR_MASTER: Final = 0
VFIO_DEVICE_FEATURE_SET_MASTER: Final = 1


# Regions as a dma-buf
class vfio_region_dma_range(Struct):
    offset: u64
    length: u64


class vfio_device_feature_dma_buf(Struct):
    """Followed by ``nr_ranges`` of ``vfio_region_dma_range``."""

    region_index: u32
    open_flags: u32
    flags: u32
    nr_ranges: u32


class Feature(NamedTuple):
    """One feature: its name, what follows ``vfio_device_feature``, and what may be done with it.

    ``payload`` is a Struct class, "uuid", or "none". ``minsz`` is how many bytes have to follow the head for
    GET and SET; a probe needs none.
    """

    name: str
    payload: type[Struct] | str
    minsz: int
    get: bool
    set: bool


FEATURES: Final[dict[int, Feature]] = {
    VFIO_DEVICE_FEATURE_PCI_VF_TOKEN: Feature(
        "VFIO_DEVICE_FEATURE_PCI_VF_TOKEN", "uuid", PCI_VF_TOKEN_SIZE, False, True
    ),
    VFIO_DEVICE_FEATURE_MIGRATION: Feature(
        "VFIO_DEVICE_FEATURE_MIGRATION", vfio_device_feature_migration, 8, True, False
    ),
    VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE: Feature(
        "VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE", vfio_device_feature_mig_state, 8, True, True
    ),
    VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY: Feature(
        "VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY", "none", 0, False, True
    ),
    VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY_WITH_WAKEUP: Feature(
        "VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY_WITH_WAKEUP",
        vfio_device_low_power_entry_with_wakeup,
        8,
        False,
        True,
    ),
    VFIO_DEVICE_FEATURE_LOW_POWER_EXIT: Feature(
        "VFIO_DEVICE_FEATURE_LOW_POWER_EXIT", "none", 0, False, True
    ),
    VFIO_DEVICE_FEATURE_DMA_LOGGING_START: Feature(
        "VFIO_DEVICE_FEATURE_DMA_LOGGING_START",
        vfio_device_feature_dma_logging_control,
        24,
        False,
        True,
    ),
    VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP: Feature(
        "VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP", "none", 0, False, True
    ),
    VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT: Feature(
        "VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT",
        vfio_device_feature_dma_logging_report,
        32,
        True,
        False,
    ),
    VFIO_DEVICE_FEATURE_MIG_DATA_SIZE: Feature(
        "VFIO_DEVICE_FEATURE_MIG_DATA_SIZE", vfio_device_feature_mig_data_size, 8, True, False
    ),
    VFIO_DEVICE_FEATURE_BUS_MASTER: Feature(
        "VFIO_DEVICE_FEATURE_BUS_MASTER", vfio_device_feature_bus_master, 4, False, True
    ),
    VFIO_DEVICE_FEATURE_DMA_BUF: Feature(
        "VFIO_DEVICE_FEATURE_DMA_BUF", vfio_device_feature_dma_buf, 16, True, False
    ),
    VFIO_DEVICE_FEATURE_MIG_PRECOPY_INFOv2: Feature(
        "VFIO_DEVICE_FEATURE_MIG_PRECOPY_INFOv2", "none", 0, False, True
    ),
}

MIGRATION_FEATURES: Final = (
    VFIO_DEVICE_FEATURE_MIGRATION,
    VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE,
    VFIO_DEVICE_FEATURE_DMA_LOGGING_START,
    VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP,
    VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT,
    VFIO_DEVICE_FEATURE_MIG_DATA_SIZE,
    VFIO_DEVICE_FEATURE_MIG_PRECOPY_INFOv2,
)
"""Those of devices that migrate."""

STATE_NAMES: Final[dict[int, str]] = {
    VFIO_DEVICE_STATE_ERROR: "ERROR",
    VFIO_DEVICE_STATE_STOP: "STOP",
    VFIO_DEVICE_STATE_RUNNING: "RUNNING",
    VFIO_DEVICE_STATE_STOP_COPY: "STOP_COPY",
    VFIO_DEVICE_STATE_RESUMING: "RESUMING",
    VFIO_DEVICE_STATE_RUNNING_P2P: "RUNNING_P2P",
    VFIO_DEVICE_STATE_PRE_COPY: "PRE_COPY",
    VFIO_DEVICE_STATE_PRE_COPY_P2P: "PRE_COPY_P2P",
}

FLAG_NAMES: Final[dict[str, dict[int, str]]] = {
    "vfio_device_feature": {1 << 16: "GET", 1 << 17: "SET", 1 << 18: "PROBE"},
    "vfio_device_feature_migration": {1: "STOP_COPY", 2: "P2P", 4: "PRE_COPY"},
    "vfio_precopy_info": {1: "REINIT"},
}
