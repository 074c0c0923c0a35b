"""The legacy virtio interface as data: sizes of its structures and of a ring."""

from __future__ import annotations

import pytest

from uvfio.uapi import virtio


def test_structures_have_the_sizes_of_the_headers() -> None:
    structures = (virtio.vring_desc, virtio.vring_used_elem, virtio.virtio_net_hdr)
    assert [structure.size for structure in structures] == [16, 8, 10]
    assert virtio.virtio_net_config.size == 12


@pytest.mark.parametrize(
    ("num", "align", "size"),
    [
        (1, 4096, 4096 + 6 + 8),
        (256, 4096, 2 * 4096 + 6 + 2048),  # 4096 of descriptors, 518 of what is available
        (4, 4, 80 + 6 + 32),  # 78 before the used ring, rounded up
    ],
)
def test_size_of_a_ring(num: int, align: int, size: int) -> None:
    assert virtio.vring_size(num, align) == size
