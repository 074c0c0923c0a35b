"""uapi.vfio, uapi.vfio_feature and uapi.iommufd against the system's headers, and against typed-out numbers.

A program generated from the tables asks the C compiler for every constant, sizeof and offsetof. Headers are of
one release of Linux and the tables of another, so each question is on a line of its own: a line the compiler
refuses is about something its header does not have. That is right only for names that came later than that
header (``SINCE``); anything else is misspelt and fails. What was not compared is in the reason of a skip, and
is held by the numbers in ``LAYOUTS`` and ``REQUESTS``, which are written by hand.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Final, NamedTuple

import pytest

from support.requirements import require
from uvfio.uapi import iommufd, vfio, vfio_feature
from uvfio.uapi.structs import Struct

CC: Final = os.environ.get("CC", "gcc")
HEADERS: Final[dict[str, tuple[ModuleType, ...]]] = {
    "linux/vfio.h": (vfio, vfio_feature),
    "linux/iommufd.h": (iommufd,),
}
# Of the Python modules only.
NOT_IN_HEADER: Final = {"PCI_VF_TOKEN_SIZE"}
# What the module heads say is left out, and what is no number.
LEFT_OUT: Final = re.compile(
    r"_SPAPR_|_EEH_|_CCW(_|$)|_AP_|NVLINK|_ZPCI_|_API_\w+_STRING|STATE_V1|DEVICE_STATE_(MASK|VALID|IS_|SET_)"
    r"|MIGRATION_DEPRECATED|_GFX(_|$)(?!PLANE|DMABUF)|^_?VFIO_H$|^_UAPI|^IOMMU_TEST|VFIO_RESERVED"
)
STRUCTS_LEFT_OUT: Final = re.compile(
    r"_spapr_|_eeh_|nvlink|_zpci_|gfx_edid|device_migration_info|arm_smmuv3|tegra241|_amd|_selftest"
)

NEWEST: Final = (7, 1)  # the release the tables know
# Linux releases, for what a header may lack. A struct stands for its fields too.
SINCE: Final[dict[str, tuple[int, int]]] = {
    name: since
    for since, names in {
        (6, 2): """
            VFIO_MIGRATION_PRE_COPY VFIO_DEVICE_STATE_PRE_COPY VFIO_DEVICE_STATE_PRE_COPY_P2P
            VFIO_DEVICE_STATE_NR VFIO_MIG_GET_PRECOPY_INFO vfio_precopy_info
            VFIO_DEVICE_FEATURE_MIG_DATA_SIZE vfio_device_feature_mig_data_size
        """,
        (6, 5): """
            VFIO_DEVICE_FLAGS_CDX VFIO_DEVICE_INFO_CAP_PCI_ATOMIC_COMP VFIO_PCI_ATOMIC_COMP32
            VFIO_PCI_ATOMIC_COMP64 VFIO_PCI_ATOMIC_COMP128 vfio_device_info_cap_pci_atomic_comp
        """,
        (6, 6): """
            VFIO_PCI_DEVID_OWNED VFIO_PCI_DEVID_NOT_OWNED VFIO_PCI_HOT_RESET_FLAG_DEV_ID
            VFIO_PCI_HOT_RESET_FLAG_DEV_ID_OWNED
            VFIO_DEVICE_BIND_IOMMUFD VFIO_DEVICE_ATTACH_IOMMUFD_PT VFIO_DEVICE_DETACH_IOMMUFD_PT
            vfio_device_bind_iommufd vfio_device_attach_iommufd_pt vfio_device_detach_iommufd_pt
            IOMMU_HWPT_ALLOC iommu_hwpt_alloc IOMMU_GET_HW_INFO iommu_hw_info iommu_hw_info_vtd
            IOMMU_HW_INFO_TYPE_NONE IOMMU_HW_INFO_TYPE_INTEL_VTD
        """,
        (6, 7): """
            vfio_device_info.pad vfio_device_gfx_plane_info.reserved vfio_device_ioeventfd.reserved
            vfio_iommu_type1_info.pad
            VFIO_DEVICE_FEATURE_BUS_MASTER VFIO_DEVICE_FEATURE_CLEAR_MASTER
            VFIO_DEVICE_FEATURE_SET_MASTER vfio_device_feature_bus_master
            IOMMU_HWPT_ALLOC_NEST_PARENT IOMMU_HWPT_ALLOC_DIRTY_TRACKING IOMMU_HWPT_DATA_NONE
            IOMMU_HWPT_DATA_VTD_S1 IOMMU_VTD_S1_SRE IOMMU_VTD_S1_EAFE IOMMU_VTD_S1_WPE
            iommu_hwpt_vtd_s1 iommu_hwpt_alloc.data_type iommu_hwpt_alloc.data_len
            iommu_hwpt_alloc.data_uptr iommu_hw_info.out_capabilities IOMMU_HW_CAP_DIRTY_TRACKING
            IOMMU_HW_INFO_VTD_ERRATA_772415_SPR17 IOMMU_HWPT_SET_DIRTY_TRACKING
            IOMMU_HWPT_DIRTY_TRACKING_ENABLE iommu_hwpt_set_dirty_tracking
            IOMMU_HWPT_GET_DIRTY_BITMAP IOMMU_HWPT_GET_DIRTY_BITMAP_NO_CLEAR
            iommu_hwpt_get_dirty_bitmap
        """,
        (6, 8): """
            IOMMU_HWPT_INVALIDATE IOMMU_HWPT_INVALIDATE_DATA_VTD_S1 IOMMU_VTD_INV_FLAGS_LEAF
            iommu_hwpt_vtd_s1_invalidate iommu_hwpt_invalidate
        """,
        (6, 11): """
            IOMMU_FAULT_QUEUE_ALLOC IOMMU_HWPT_FAULT_ID_VALID iommu_fault_alloc
            iommu_hwpt_alloc.fault_id iommu_hwpt_alloc.reserved2
            IOMMU_PGFAULT_FLAGS_PASID_VALID IOMMU_PGFAULT_FLAGS_LAST_PAGE IOMMU_PGFAULT_PERM_READ
            IOMMU_PGFAULT_PERM_WRITE IOMMU_PGFAULT_PERM_EXEC IOMMU_PGFAULT_PERM_PRIV
            iommu_hwpt_pgfault IOMMUFD_PAGE_RESP_SUCCESS IOMMUFD_PAGE_RESP_INVALID
            iommu_hwpt_page_response
        """,
        (6, 13): """
            IOMMU_IOAS_MAP_FILE iommu_ioas_map_file IOMMU_VIOMMU_ALLOC iommu_viommu_alloc
            IOMMU_VIOMMU_TYPE_DEFAULT IOMMU_VIOMMU_TYPE_ARM_SMMUV3 IOMMU_VDEVICE_ALLOC
            iommu_vdevice_alloc IOMMU_IOAS_CHANGE_PROCESS iommu_ioas_change_process
            IOMMU_HWPT_DATA_ARM_SMMUV3 IOMMU_HW_INFO_TYPE_ARM_SMMUV3
            IOMMU_VIOMMU_INVALIDATE_DATA_ARM_SMMUV3
        """,
        (6, 15): """
            vfio_device_attach_iommufd_pt.pasid vfio_device_detach_iommufd_pt.pasid
            VFIO_DEVICE_ATTACH_PASID VFIO_DEVICE_DETACH_PASID
            IOMMU_HWPT_ALLOC_PASID IOMMU_HW_CAP_PCI_PASID_EXEC IOMMU_HW_CAP_PCI_PASID_PRIV
            iommu_hw_info.out_max_pasid_log2 iommu_hw_info.reserved iommu_hw_info.reserved_rest
            IOMMU_VEVENTQ_ALLOC IOMMU_VEVENTQ_FLAG_LOST_EVENTS IOMMU_VEVENTQ_TYPE_DEFAULT
            IOMMU_VEVENTQ_TYPE_ARM_SMMUV3 iommufd_vevent_header iommu_veventq_alloc
        """,
        (6, 17): """
            VFIO_DEVICE_BIND_FLAG_TOKEN vfio_device_bind_iommufd.token_uuid_ptr
            iommu_viommu_alloc.data_len iommu_viommu_alloc.reserved iommu_viommu_alloc.data_uptr
            IOMMU_HW_INFO_FLAG_INPUT_TYPE IOMMU_HW_INFO_TYPE_DEFAULT
            IOMMU_HW_INFO_TYPE_TEGRA241_CMDQV IOMMU_VIOMMU_TYPE_TEGRA241_CMDQV
            IOMMU_VEVENTQ_TYPE_TEGRA241_CMDQV IOMMU_HW_QUEUE_ALLOC IOMMU_HW_QUEUE_TYPE_DEFAULT
            IOMMU_HW_QUEUE_TYPE_TEGRA241_CMDQV iommu_hw_queue_alloc
        """,
        (6, 19): """
            VFIO_DEVICE_FEATURE_DMA_BUF vfio_region_dma_range vfio_device_feature_dma_buf
        """,
        (7, 0): "IOMMU_HWPT_DATA_AMD_GUEST IOMMU_HW_INFO_TYPE_AMD",
        (7, 1): """
            VFIO_DEVICE_FEATURE_MIG_PRECOPY_INFOv2 VFIO_PRECOPY_INFO_REINIT
            IOMMU_HW_CAP_PCI_ATS_NOT_SUPPORTED
        """,
    }.items()
    for name in names.split()
}
# Names that later headers no longer have.
GONE: Final = {"VFIO_TYPE1_NESTING_IOMMU"}

# Fields whose Python name is not that of C, beside the headers of capabilities.
C_NAMES: Final = {
    "vfio_iommu_type1_dirty_bitmap_get.bitmap_pgsize": "bitmap.pgsize",
    "vfio_iommu_type1_dirty_bitmap_get.bitmap_size": "bitmap.size",
    "vfio_iommu_type1_dirty_bitmap_get.bitmap_data": "bitmap.data",
    "vfio_device_feature_dma_logging_control.reserved": "__reserved",
    "iommu_hwpt_alloc.reserved2": "__reserved2",
    "iommu_hw_info.reserved": "__reserved[0]",
    "iommu_hw_info.reserved_rest": "__reserved[1]",
}

# Full request values as a program on x86-64 passes them.
REQUESTS: Final = {
    ("container", 0x3B64): "VFIO_GET_API_VERSION",
    ("container", 0x3B65): "VFIO_CHECK_EXTENSION",
    ("container", 0x3B66): "VFIO_SET_IOMMU",
    ("container", 0x3B70): "VFIO_IOMMU_GET_INFO",
    ("container", 0x3B71): "VFIO_IOMMU_MAP_DMA",
    ("container", 0x3B72): "VFIO_IOMMU_UNMAP_DMA",
    ("container", 0x3B73): "VFIO_IOMMU_ENABLE",
    ("container", 0x3B74): "VFIO_IOMMU_DISABLE",
    ("container", 0x3B75): "VFIO_IOMMU_DIRTY_PAGES",
    ("group", 0x3B67): "VFIO_GROUP_GET_STATUS",
    ("group", 0x3B68): "VFIO_GROUP_SET_CONTAINER",
    ("group", 0x3B69): "VFIO_GROUP_UNSET_CONTAINER",
    ("group", 0x3B6A): "VFIO_GROUP_GET_DEVICE_FD",
    ("device", 0x3B6B): "VFIO_DEVICE_GET_INFO",
    ("device", 0x3B6C): "VFIO_DEVICE_GET_REGION_INFO",
    ("device", 0x3B6D): "VFIO_DEVICE_GET_IRQ_INFO",
    ("device", 0x3B6E): "VFIO_DEVICE_SET_IRQS",
    ("device", 0x3B6F): "VFIO_DEVICE_RESET",
    ("device", 0x3B70): "VFIO_DEVICE_GET_PCI_HOT_RESET_INFO",
    ("device", 0x3B71): "VFIO_DEVICE_PCI_HOT_RESET",
    ("device", 0x3B72): "VFIO_DEVICE_QUERY_GFX_PLANE",
    ("device", 0x3B73): "VFIO_DEVICE_GET_GFX_DMABUF",
    ("device", 0x3B74): "VFIO_DEVICE_IOEVENTFD",
    ("device", 0x3B75): "VFIO_DEVICE_FEATURE",
    ("device", 0x3B76): "VFIO_DEVICE_BIND_IOMMUFD",
    ("device", 0x3B77): "VFIO_DEVICE_ATTACH_IOMMUFD_PT",
    ("device", 0x3B78): "VFIO_DEVICE_DETACH_IOMMUFD_PT",
    ("migration", 0x3B79): "VFIO_MIG_GET_PRECOPY_INFO",
    ("iommufd", 0x3B80): "IOMMU_DESTROY",
    ("iommufd", 0x3B81): "IOMMU_IOAS_ALLOC",
    ("iommufd", 0x3B82): "IOMMU_IOAS_ALLOW_IOVAS",
    ("iommufd", 0x3B83): "IOMMU_IOAS_COPY",
    ("iommufd", 0x3B84): "IOMMU_IOAS_IOVA_RANGES",
    ("iommufd", 0x3B85): "IOMMU_IOAS_MAP",
    ("iommufd", 0x3B86): "IOMMU_IOAS_UNMAP",
    ("iommufd", 0x3B87): "IOMMU_OPTION",
    ("iommufd", 0x3B88): "IOMMU_VFIO_IOAS",
    ("iommufd", 0x3B89): "IOMMU_HWPT_ALLOC",
    ("iommufd", 0x3B8A): "IOMMU_GET_HW_INFO",
    ("iommufd", 0x3B8B): "IOMMU_HWPT_SET_DIRTY_TRACKING",
    ("iommufd", 0x3B8C): "IOMMU_HWPT_GET_DIRTY_BITMAP",
    ("iommufd", 0x3B8D): "IOMMU_HWPT_INVALIDATE",
    ("iommufd", 0x3B8E): "IOMMU_FAULT_QUEUE_ALLOC",
    ("iommufd", 0x3B8F): "IOMMU_IOAS_MAP_FILE",
    ("iommufd", 0x3B90): "IOMMU_VIOMMU_ALLOC",
    ("iommufd", 0x3B91): "IOMMU_VDEVICE_ALLOC",
    ("iommufd", 0x3B92): "IOMMU_IOAS_CHANGE_PROCESS",
    ("iommufd", 0x3B93): "IOMMU_VEVENTQ_ALLOC",
    ("iommufd", 0x3B94): "IOMMU_HW_QUEUE_ALLOC",
}
# Size, then where each field begins. All of iommufd.h; of vfio.h what is younger than Linux 6.1.
LAYOUTS: Final = {
    "vfio_precopy_info": (24, "argsz 0 flags 4 initial_bytes 8 dirty_bytes 16"),
    "vfio_device_feature_mig_data_size": (8, "stop_copy_length 0"),
    "vfio_device_feature_bus_master": (4, "op 0"),
    "vfio_region_dma_range": (16, "offset 0 length 8"),
    "vfio_device_feature_dma_buf": (16, "region_index 0 open_flags 4 flags 8 nr_ranges 12"),
    "vfio_device_info_cap_pci_atomic_comp": (16, "id 0 version 2 next 4 flags 8 reserved 12"),
    "vfio_device_info": (
        24,
        "argsz 0 flags 4 num_regions 8 num_irqs 12 cap_offset 16 pad 20",
    ),
    "vfio_device_gfx_plane_info": (
        64,
        (
            "argsz 0 flags 4 drm_plane_type 8 drm_format 12 drm_format_mod 16 width 24 height 28 "
            "stride 32 size 36 x_pos 40 y_pos 44 x_hot 48 y_hot 52 region_index 56 reserved 60"
        ),
    ),
    "vfio_device_ioeventfd": (32, "argsz 0 flags 4 offset 8 data 16 fd 24 reserved 28"),
    "vfio_iommu_type1_info": (24, "argsz 0 flags 4 iova_pgsizes 8 cap_offset 16 pad 20"),
    "vfio_device_bind_iommufd": (24, "argsz 0 flags 4 iommufd 8 out_devid 12 token_uuid_ptr 16"),
    "vfio_device_attach_iommufd_pt": (16, "argsz 0 flags 4 pt_id 8 pasid 12"),
    "vfio_device_detach_iommufd_pt": (12, "argsz 0 flags 4 pasid 8"),
    "iommu_destroy": (8, "size 0 id 4"),
    "iommu_ioas_alloc": (12, "size 0 flags 4 out_ioas_id 8"),
    "iommu_iova_range": (16, "start 0 last 8"),
    "iommu_ioas_iova_ranges": (
        32,
        "size 0 ioas_id 4 num_iovas 8 reserved 12 allowed_iovas 16 out_iova_alignment 24",
    ),
    "iommu_ioas_allow_iovas": (24, "size 0 ioas_id 4 num_iovas 8 reserved 12 allowed_iovas 16"),
    "iommu_ioas_map": (
        40,
        "size 0 flags 4 ioas_id 8 reserved 12 user_va 16 length 24 iova 32",
    ),
    "iommu_ioas_map_file": (40, "size 0 flags 4 ioas_id 8 fd 12 start 16 length 24 iova 32"),
    "iommu_ioas_copy": (
        40,
        "size 0 flags 4 dst_ioas_id 8 src_ioas_id 12 length 16 dst_iova 24 src_iova 32",
    ),
    "iommu_ioas_unmap": (24, "size 0 ioas_id 4 iova 8 length 16"),
    "iommu_ioas_change_process": (8, "size 0 reserved 4"),
    "iommu_option": (24, "size 0 option_id 4 op 8 reserved 10 object_id 12 val64 16"),
    "iommu_vfio_ioas": (12, "size 0 ioas_id 4 op 8 reserved 10"),
    "iommu_hwpt_alloc": (
        48,
        (
            "size 0 flags 4 dev_id 8 pt_id 12 out_hwpt_id 16 reserved 20 data_type 24 data_len 28 "
            "data_uptr 32 fault_id 40 reserved2 44"
        ),
    ),
    "iommu_hwpt_vtd_s1": (24, "flags 0 pgtbl_addr 8 addr_width 16 reserved 20"),
    "iommu_hwpt_set_dirty_tracking": (16, "size 0 flags 4 hwpt_id 8 reserved 12"),
    "iommu_hwpt_get_dirty_bitmap": (
        48,
        "size 0 hwpt_id 4 flags 8 reserved 12 iova 16 length 24 page_size 32 data 40",
    ),
    "iommu_hwpt_vtd_s1_invalidate": (24, "addr 0 npages 8 flags 16 reserved 20"),
    "iommu_hwpt_invalidate": (
        32,
        "size 0 hwpt_id 4 data_uptr 8 data_type 16 entry_len 20 entry_num 24 reserved 28",
    ),
    "iommu_hw_info": (
        40,
        (
            "size 0 flags 4 dev_id 8 data_len 12 data_uptr 16 out_data_type 24 out_max_pasid_log2 28 "
            "reserved 29 reserved_rest 30 out_capabilities 32"
        ),
    ),
    "iommu_hw_info_vtd": (24, "flags 0 reserved 4 cap_reg 8 ecap_reg 16"),
    "iommu_fault_alloc": (16, "size 0 flags 4 out_fault_id 8 out_fault_fd 12"),
    "iommu_hwpt_pgfault": (
        40,
        "flags 0 dev_id 4 pasid 8 grpid 12 perm 16 reserved 20 addr 24 length 32 cookie 36",
    ),
    "iommu_hwpt_page_response": (8, "cookie 0 code 4"),
    "iommu_viommu_alloc": (
        40,
        (
            "size 0 flags 4 type 8 dev_id 12 hwpt_id 16 out_viommu_id 20 data_len 24 reserved 28 "
            "data_uptr 32"
        ),
    ),
    "iommu_vdevice_alloc": (24, "size 0 viommu_id 4 dev_id 8 out_vdevice_id 12 virt_id 16"),
    "iommufd_vevent_header": (8, "flags 0 sequence 4"),
    "iommu_veventq_alloc": (
        32,
        (
            "size 0 flags 4 viommu_id 8 type 12 veventq_depth 16 out_veventq_id 20 out_veventq_fd 24 "
            "reserved 28"
        ),
    ),
    "iommu_hw_queue_alloc": (
        40,
        (
            "size 0 flags 4 viommu_id 8 type 12 index 16 out_hw_queue_id 20 nesting_parent_iova 24 "
            "length 32"
        ),
    ),
}
# Constants that no header here may have.
VALUES: Final = {
    vfio: """
        VFIO_DEVICE_FLAGS_CDX 256 VFIO_DEVICE_INFO_CAP_PCI_ATOMIC_COMP 5 VFIO_PCI_ATOMIC_COMP32 1
        VFIO_PCI_ATOMIC_COMP64 2 VFIO_PCI_ATOMIC_COMP128 4 VFIO_PCI_DEVID_OWNED 0
        VFIO_PCI_DEVID_NOT_OWNED -1 VFIO_PCI_HOT_RESET_FLAG_DEV_ID 1
        VFIO_PCI_HOT_RESET_FLAG_DEV_ID_OWNED 2 VFIO_DEVICE_BIND_FLAG_TOKEN 1
        VFIO_DEVICE_ATTACH_PASID 1 VFIO_DEVICE_DETACH_PASID 1
    """,
    vfio_feature: """
        VFIO_MIGRATION_PRE_COPY 4 VFIO_DEVICE_STATE_PRE_COPY 6 VFIO_DEVICE_STATE_PRE_COPY_P2P 7
        VFIO_DEVICE_STATE_NR 8 VFIO_DEVICE_FEATURE_MIG_DATA_SIZE 9 VFIO_DEVICE_FEATURE_BUS_MASTER 10
        VFIO_DEVICE_FEATURE_CLEAR_MASTER 0 VFIO_DEVICE_FEATURE_SET_MASTER 1
        VFIO_DEVICE_FEATURE_DMA_BUF 11 VFIO_DEVICE_FEATURE_MIG_PRECOPY_INFOv2 12
        VFIO_PRECOPY_INFO_REINIT 1
    """,
    iommufd: """
        IOMMUFD_TYPE 59 IOMMUFD_CMD_BASE 128
        IOMMU_IOAS_MAP_FIXED_IOVA 1 IOMMU_IOAS_MAP_WRITEABLE 2 IOMMU_IOAS_MAP_READABLE 4
        IOMMU_OPTION_RLIMIT_MODE 0 IOMMU_OPTION_HUGE_PAGES 1 IOMMU_OPTION_OP_SET 0
        IOMMU_OPTION_OP_GET 1 IOMMU_VFIO_IOAS_GET 0 IOMMU_VFIO_IOAS_SET 1 IOMMU_VFIO_IOAS_CLEAR 2
        IOMMU_HWPT_ALLOC_NEST_PARENT 1 IOMMU_HWPT_ALLOC_DIRTY_TRACKING 2
        IOMMU_HWPT_FAULT_ID_VALID 4 IOMMU_HWPT_ALLOC_PASID 8
        IOMMU_HWPT_DATA_NONE 0 IOMMU_HWPT_DATA_VTD_S1 1 IOMMU_HWPT_DATA_ARM_SMMUV3 2
        IOMMU_HWPT_DATA_AMD_GUEST 3 IOMMU_VTD_S1_SRE 1 IOMMU_VTD_S1_EAFE 2 IOMMU_VTD_S1_WPE 4
        IOMMU_HWPT_DIRTY_TRACKING_ENABLE 1 IOMMU_HWPT_GET_DIRTY_BITMAP_NO_CLEAR 1
        IOMMU_HWPT_INVALIDATE_DATA_VTD_S1 0 IOMMU_VIOMMU_INVALIDATE_DATA_ARM_SMMUV3 1
        IOMMU_VTD_INV_FLAGS_LEAF 1 IOMMU_HW_INFO_FLAG_INPUT_TYPE 1
        IOMMU_HW_INFO_TYPE_NONE 0 IOMMU_HW_INFO_TYPE_DEFAULT 0 IOMMU_HW_INFO_TYPE_INTEL_VTD 1
        IOMMU_HW_INFO_TYPE_ARM_SMMUV3 2 IOMMU_HW_INFO_TYPE_TEGRA241_CMDQV 3
        IOMMU_HW_INFO_TYPE_AMD 4 IOMMU_HW_CAP_DIRTY_TRACKING 1 IOMMU_HW_CAP_PCI_PASID_EXEC 2
        IOMMU_HW_CAP_PCI_PASID_PRIV 4 IOMMU_HW_CAP_PCI_ATS_NOT_SUPPORTED 8
        IOMMU_HW_INFO_VTD_ERRATA_772415_SPR17 1
        IOMMU_PGFAULT_FLAGS_PASID_VALID 1 IOMMU_PGFAULT_FLAGS_LAST_PAGE 2 IOMMU_PGFAULT_PERM_READ 1
        IOMMU_PGFAULT_PERM_WRITE 2 IOMMU_PGFAULT_PERM_EXEC 4 IOMMU_PGFAULT_PERM_PRIV 8
        IOMMUFD_PAGE_RESP_SUCCESS 0 IOMMUFD_PAGE_RESP_INVALID 1
        IOMMU_VIOMMU_TYPE_DEFAULT 0 IOMMU_VIOMMU_TYPE_ARM_SMMUV3 1
        IOMMU_VIOMMU_TYPE_TEGRA241_CMDQV 2 IOMMU_VEVENTQ_FLAG_LOST_EVENTS 1
        IOMMU_VEVENTQ_TYPE_DEFAULT 0 IOMMU_VEVENTQ_TYPE_ARM_SMMUV3 1
        IOMMU_VEVENTQ_TYPE_TEGRA241_CMDQV 2 IOMMU_HW_QUEUE_TYPE_DEFAULT 0
        IOMMU_HW_QUEUE_TYPE_TEGRA241_CMDQV 1
    """,
}


def constants(*modules: ModuleType) -> dict[str, int]:
    return {
        name: value
        for module in modules
        for name, value in vars(module).items()
        if name.startswith(("VFIO_", "IOMMU")) and isinstance(value, int)
    }


def structs(*modules: ModuleType) -> dict[str, type[Struct]]:
    return {
        name: kind
        for module in modules
        for name, kind in vars(module).items()
        if isinstance(kind, type) and issubclass(kind, Struct) and kind is not Struct
    }


def layout(kind: type[Struct]) -> tuple[int, dict[str, int]]:
    return ctypes.sizeof(kind), {f[0]: getattr(kind, f[0]).offset for f in kind._fields_}


# -- numbers typed out -------------------------------------------------------------------------------


def test_requests_have_the_values_programs_pass() -> None:
    known = {key: ioctl.name for key, ioctl in (vfio.IOCTLS | iommufd.IOCTLS).items()}
    assert known == REQUESTS


@pytest.mark.parametrize("name", LAYOUTS)
def test_layout(name: str) -> None:
    size, text = LAYOUTS[name]
    words = text.split()
    fields = dict(zip(words[::2], map(int, words[1::2]), strict=True))
    assert layout(structs(vfio, vfio_feature, iommufd)[name]) == (size, fields)


@pytest.mark.parametrize("module", VALUES, ids=lambda module: module.__name__)
def test_values(module: ModuleType) -> None:
    words = VALUES[module].split()
    for name, value in zip(words[::2], map(int, words[1::2]), strict=True):
        assert vars(module)[name] == value, name


def test_what_headers_may_lack_is_typed_out() -> None:
    """Nothing in the tables rests on one witness alone."""
    typed = set(LAYOUTS) | set(REQUESTS.values())
    typed |= {word for text in VALUES.values() for word in text.split()[::2]}
    unseen = {name.split(".")[0] for name in SINCE} - typed
    assert not unseen
    assert set(structs(iommufd)) | set(constants(iommufd)) <= typed


# -- the headers of this system ----------------------------------------------------------------------


class Asked(NamedTuple):
    """What one header said: its release, its answers, and what it does not have."""

    release: tuple[int, int]
    answers: dict[str, int]
    absent: list[str]
    macros: set[str]
    structs: set[str]


def compiler(*arguments: str | Path, source: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [CC, "-x", "c", *arguments, "-"],
        input=source,
        text=True,
        capture_output=True,
        check=False,
        env=os.environ | {"LC_ALL": "C"},
    )


def c_field(struct: str, field: str) -> str:
    """The name of a field in C."""
    given = C_NAMES.get(f"{struct}.{field}")
    if given is not None:
        return given
    if field in ("id", "version", "next") and "nfo_" in struct and struct != "vfio_info_cap_header":
        return f"header.{field}"
    if field == "reserved" and struct.startswith("iommu"):
        return "__reserved"
    return field


def ask(header: str, folder: Path) -> Asked:
    modules = HEADERS[header]
    questions = {name: name for name in constants(*modules)}
    for name, kind in structs(*modules).items():
        questions[name] = f"sizeof(struct {name})"
        for field in layout(kind)[1]:
            questions[f"{name}.{field}"] = f"offsetof(struct {name}, {c_field(name, field)})"
    head = [
        "#include <stddef.h>",
        "#include <stdio.h>",
        "#include <linux/version.h>",
        f"#include <{header}>",
        "int main(void) {",
        'printf("release=%d\\n", LINUX_VERSION_CODE);',
    ]

    def program(names: list[str]) -> str:
        lines = [f'printf("{n}=%lld\\n", (long long)({questions[n]}));' for n in names]
        return "\n".join([*head, *lines, "return 0; }", ""])

    names = list(questions)
    tried = compiler("-fsyntax-only", "-fmax-errors=0", source=program(names))
    lines = {int(n) for n in re.findall(r"^<stdin>:(\d+):\d+: error", tried.stderr, re.MULTILINE)}
    absent = [name for at, name in enumerate(names, len(head) + 1) if at in lines]
    built = compiler(
        "-o", folder / "ask", source=program([name for name in names if name not in absent])
    )
    assert built.returncode == 0, built.stderr
    output = subprocess.run([folder / "ask"], check=True, capture_output=True, text=True).stdout
    answers = {key: int(value) for key, value in (line.split("=") for line in output.splitlines())}
    code = answers.pop("release")
    seen = compiler("-E", "-dD", source=f"#include <{header}>\n").stdout
    return Asked(
        (code >> 16, code >> 8 & 0xFF),
        answers,
        absent,
        set(re.findall(r"^#define ((?:_*VFIO|IOMMU)\w+)(?= )", seen, re.MULTILINE)),
        set(re.findall(r"^struct ((?:vfio|iommu)\w+) \{", seen, re.MULTILINE)),
    )


@pytest.fixture(scope="module", params=HEADERS)
def asked(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Asked:
    require(shutil.which(CC) is not None, f"no C compiler ({CC})")
    header: str = request.param
    there = compiler("-E", source=f"#include <{header}>\n").returncode == 0
    if header == "linux/vfio.h":
        require(there, f"no {header} (linux-libc-dev)")
    elif not there:  # younger than the headers of some distributions
        pytest.skip(f"no {header} here; the numbers typed out in this file hold")
    return ask(header, tmp_path_factory.mktemp("header"))


def ours() -> dict[str, int]:
    known = constants(vfio, vfio_feature, iommufd)
    for name, kind in structs(vfio, vfio_feature, iommufd).items():
        size, fields = layout(kind)
        known[name] = size
        known |= {f"{name}.{field}": offset for field, offset in fields.items()}
    return known


def test_python_and_the_header_agree(asked: Asked) -> None:
    known = ours()
    shorter = {name.split(".")[0] for name in asked.absent if "." in name}
    for name, value in asked.answers.items():
        if name not in shorter:  # an older struct has its own size
            assert value & 0xFFFFFFFF == known[name] & 0xFFFFFFFF, name
    assert len(asked.answers) > 50


def test_the_header_lacks_only_what_is_younger(asked: Asked) -> None:
    for name in asked.absent:
        since = SINCE.get(name) or SINCE.get(name.split(".")[0])
        assert name in GONE or since is not None, f"{name}: misspelt?"
        assert since is None or asked.release < since, f"{name}: in Linux since {since}?"


def test_nothing_of_the_header_is_forgotten(asked: Asked) -> None:
    if asked.release > NEWEST:
        pytest.skip(f"the tables are of Linux {NEWEST}, the headers of {asked.release}")
    known = ours()
    macros = {name for name in asked.macros - set(known) if not LEFT_OUT.search(name)}
    found = {name for name in asked.structs - set(known) if not STRUCTS_LEFT_OUT.search(name)}
    assert (macros, found) == (set(), set())


def test_all_was_compared(asked: Asked) -> None:
    if asked.absent:
        release = ".".join(map(str, asked.release))
        whole = [name for name in asked.absent if name.split(".")[0] == name or name in SINCE]
        pytest.skip(f"headers of Linux {release} lack {' '.join(whole)}")
