/* SPDX-License-Identifier: MIT */
/* A device and its IOMMU by the interface of 2011, for the programs of this directory. */
#ifndef SESSION_H
#define SESSION_H

#include <uvfio/vfio-2011.h>

struct session {
	int group, iommu, device;
};

static inline void begin(struct session *s, const char *group, const char *address)
{
	char path[64];

	snprintf(path, sizeof(path), "/dev/vfio/%s", group);
	must(s->group = open(path, O_RDWR));
	must(s->iommu = ioctl(s->group, VFIO_GROUP_GET_IOMMU_FD));
	must(s->device = ioctl(s->group, VFIO_GROUP_GET_DEVICE_FD, address));
}

static inline off_t registers(struct session *s)
{
	struct vfio_region_info region = { .len = sizeof(region), .index = 0 };

	must(ioctl(s->device, VFIO_DEVICE_GET_REGION_INFO, &region));
	return (off_t)region.offset;
}

static inline void ask_device(struct session *s)
{
	uint64_t flags;

	must(ioctl(s->device, VFIO_DEVICE_GET_FLAGS, &flags));
}

static inline void map(struct session *s, void *at, uint64_t iova, uint64_t size)
{
	struct vfio_dma_map arg = {
		.len = sizeof(arg), .vaddr = (uint64_t)(uintptr_t)at, .dmaaddr = iova,
		.size = size, .flags = VFIO_DMA_MAP_FLAG_WRITE,
	};

	must(ioctl(s->iommu, VFIO_IOMMU_MAP_DMA, &arg));
}

static inline void unmap(struct session *s, uint64_t iova, uint64_t size)
{
	struct vfio_dma_map arg = { .len = sizeof(arg), .dmaaddr = iova, .size = size };

	must(ioctl(s->iommu, VFIO_IOMMU_UNMAP_DMA, &arg));
}

#endif /* SESSION_H */
