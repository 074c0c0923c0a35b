/* SPDX-License-Identifier: MIT */
/* A device and its container by the mainline group interface, for the programs of this directory. */
#ifndef SESSION_H
#define SESSION_H

#include <linux/vfio.h>

struct session {
	int group, iommu, device;
};

static inline void begin(struct session *s, const char *group, const char *address)
{
	char path[64];

	snprintf(path, sizeof(path), "/dev/vfio/%s", group);
	must(s->group = open(path, O_RDWR));
	must(s->iommu = open("/dev/vfio/vfio", O_RDWR));
	must(ioctl(s->group, VFIO_GROUP_SET_CONTAINER, &s->iommu));
	must(ioctl(s->iommu, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU));
	must(s->device = ioctl(s->group, VFIO_GROUP_GET_DEVICE_FD, address));
}

static inline off_t registers(struct session *s)
{
	struct vfio_region_info region = { .argsz = sizeof(region), .index = 0 };

	must(ioctl(s->device, VFIO_DEVICE_GET_REGION_INFO, &region));
	return (off_t)region.offset;
}

static inline void ask_device(struct session *s)
{
	struct vfio_device_info info = { .argsz = sizeof(info) };

	must(ioctl(s->device, VFIO_DEVICE_GET_INFO, &info));
}

static inline void map(struct session *s, void *at, uint64_t iova, uint64_t size)
{
	struct vfio_iommu_type1_dma_map arg = {
		.argsz = sizeof(arg), .flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
		.vaddr = (uint64_t)(uintptr_t)at, .iova = iova, .size = size,
	};

	must(ioctl(s->iommu, VFIO_IOMMU_MAP_DMA, &arg));
}

static inline void unmap(struct session *s, uint64_t iova, uint64_t size)
{
	struct vfio_iommu_type1_dma_unmap arg = {
		.argsz = sizeof(arg), .iova = iova, .size = size,
	};

	must(ioctl(s->iommu, VFIO_IOMMU_UNMAP_DMA, &arg));
}

#endif /* SESSION_H */
