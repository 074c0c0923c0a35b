"""The legacy virtio interface as data: virtio_pci.h, virtio_ring.h, virtio_config.h and virtio_net.h of linux/.

Names and values are those of the headers, restricted to what a legacy network device (PCI revision 0) and its
split rings have. Legacy virtio is in the byte order of the guest, which here is the program: structures are
native.
"""

import struct
from typing import Final

# PCI identity, Virtio 1.2, 5.1 and 4.1.2
PCI_VENDOR_ID_REDHAT_QUMRANET: Final = 0x1AF4
VIRTIO_TRANS_ID_NET: Final = 0x1000
VIRTIO_ID_NET: Final = 1

# Registers of the I/O BAR
VIRTIO_PCI_HOST_FEATURES: Final = 0
VIRTIO_PCI_GUEST_FEATURES: Final = 4
VIRTIO_PCI_QUEUE_PFN: Final = 8
VIRTIO_PCI_QUEUE_NUM: Final = 12
VIRTIO_PCI_QUEUE_SEL: Final = 14
VIRTIO_PCI_QUEUE_NOTIFY: Final = 16
VIRTIO_PCI_STATUS: Final = 18
VIRTIO_PCI_ISR: Final = 19
VIRTIO_MSI_CONFIG_VECTOR: Final = 20
VIRTIO_MSI_QUEUE_VECTOR: Final = 22
VIRTIO_MSI_NO_VECTOR: Final = 0xFFFF
VIRTIO_PCI_ISR_CONFIG: Final = 0x2
VIRTIO_PCI_QUEUE_ADDR_SHIFT: Final = 12
VIRTIO_PCI_VRING_ALIGN: Final = 4096

# Device status
VIRTIO_CONFIG_S_ACKNOWLEDGE: Final = 0x01
VIRTIO_CONFIG_S_DRIVER: Final = 0x02
VIRTIO_CONFIG_S_DRIVER_OK: Final = 0x04
VIRTIO_CONFIG_S_FEATURES_OK: Final = 0x08
VIRTIO_CONFIG_S_NEEDS_RESET: Final = 0x40
VIRTIO_CONFIG_S_FAILED: Final = 0x80

# Features, as bit numbers
VIRTIO_NET_F_MTU: Final = 3
VIRTIO_NET_F_MAC: Final = 5
VIRTIO_NET_F_MRG_RXBUF: Final = 15
VIRTIO_NET_F_STATUS: Final = 16
VIRTIO_NET_F_CTRL_VQ: Final = 17
VIRTIO_F_ANY_LAYOUT: Final = 27
VIRTIO_RING_F_INDIRECT_DESC: Final = 28
VIRTIO_RING_F_EVENT_IDX: Final = 29

VIRTIO_NET_S_LINK_UP: Final = 1

# Split rings
VRING_DESC_F_NEXT: Final = 1
VRING_DESC_F_WRITE: Final = 2
VRING_DESC_F_INDIRECT: Final = 4
VRING_USED_F_NO_NOTIFY: Final = 1
VRING_AVAIL_F_NO_INTERRUPT: Final = 1

vring_desc: Final = struct.Struct("=QIHH")
"""addr, len, flags, next"""

vring_used_elem: Final = struct.Struct("=II")
"""id, len"""

virtio_net_hdr: Final = struct.Struct("=BBHHHH")
"""flags, gso_type, hdr_len, gso_size, csum_start, csum_offset"""

virtio_net_config: Final = struct.Struct("=6sHHH")
"""mac, status, max_virtqueue_pairs, mtu"""


def vring_size(num: int, align: int = VIRTIO_PCI_VRING_ALIGN) -> int:
    """Bytes of a ring of ``num`` entries, as the function of linux/virtio_ring.h has it."""
    used = (num * vring_desc.size + 2 * (3 + num) + align - 1) & ~(align - 1)
    return used + 2 * 3 + num * vring_used_elem.size
