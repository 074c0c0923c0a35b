/* SPDX-License-Identifier: MIT */
/* The few calls that open and use an edu device over the 2011 ABI. */
#ifndef SESSION_H
#define SESSION_H

#include "check.h"

#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include <uvfio/vfio-2011.h>

/* The default machine: two functions share group 240, a third is alone in 241 */
#define GROUP_A		"240"
#define DEVICE_A	"0000:06:0d.0"
#define DEVICE_A1	"0000:06:0d.1"
#define GROUP_B		"241"
#define DEVICE_B	"0000:07:00.0"

#define EDU_ID			0x00
#define EDU_ID_VALUE		0x010000edu
#define EDU_LIVENESS		0x04
#define EDU_IRQ_STATUS		0x24
#define EDU_IRQ_RAISE		0x60
#define EDU_IRQ_ACK		0x64
#define EDU_DMA_SOURCE		0x80
#define EDU_DMA_DESTINATION	0x88
#define EDU_DMA_COUNT		0x90
#define EDU_DMA_COMMAND		0x98
#define EDU_DMA_START		0x01
#define EDU_DMA_TO_MEMORY	0x02
#define EDU_BUFFER		0x40000
#define EDU_VENDOR_DEVICE	0x11e81234u

#define PAGE	4096u

struct session {
	int group;
	int iommu;
	int device;
	off_t bar0;
	off_t config;
};

static inline int open_group(const char *number)
{
	char path[64];

	snprintf(path, sizeof(path), "/dev/vfio/%s", number);
	return open(path, O_RDWR);
}

static inline uint64_t group_flags(int group)
{
	__u64 flags;

	need(ioctl(group, VFIO_GROUP_GET_FLAGS, &flags));
	return flags;
}

/* The flags as somebody sees them who opens the group now */
static inline uint64_t flags_of(const char *number)
{
	int group = need(open_group(number));
	uint64_t flags = group_flags(group);

	need(close(group));
	return flags;
}

static inline off_t region_offset(int device, unsigned int index)
{
	struct vfio_region_info info = { .len = sizeof(info), .index = index };

	need(ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &info));
	return (off_t)info.offset;
}

/* 4 bytes at `at`; whatever is not a full answer ends the program */
static inline uint32_t get32(int device, off_t at)
{
	uint32_t value = 0;
	ssize_t got;

	do
		got = pread(device, &value, 4, at);
	while (got == -1 && errno == EINTR);	/* a signal came before the call began */
	if (got != 4)
		die("pread(%d, 4 bytes, %#llx) gave %zd: %s", device, (long long)at, got,
		    strerror(errno));
	return value;
}

static inline void put32(int device, off_t at, uint32_t value)
{
	ssize_t put;

	do
		put = pwrite(device, &value, 4, at);
	while (put == -1 && errno == EINTR);
	if (put != 4)
		die("pwrite(%d, 4 bytes, %#llx) gave %zd: %s", device, (long long)at, put,
		    strerror(errno));
}

static inline uint32_t reg_read(const struct session *s, uint32_t reg)
{
	return get32(s->device, s->bar0 + reg);
}

static inline void reg_write(const struct session *s, uint32_t reg, uint32_t value)
{
	put32(s->device, s->bar0 + reg, value);
}

/* Open a device of an open group; memory and bus master are enabled */
static inline void session_device(struct session *s, const char *address)
{
	uint16_t command = 0x6;

	s->device = need(ioctl(s->group, VFIO_GROUP_GET_DEVICE_FD, address));
	s->bar0 = region_offset(s->device, VFIO_PCI_BAR0_REGION_INDEX);
	s->config = region_offset(s->device, VFIO_PCI_CONFIG_REGION_INDEX);
	need(pwrite(s->device, &command, 2, s->config + 4));
}

static inline struct session session_open(const char *number, const char *address)
{
	struct session s;

	s.group = need(open_group(number));
	s.iommu = need(ioctl(s.group, VFIO_GROUP_GET_IOMMU_FD));
	session_device(&s, address);
	return s;
}

static inline void session_close(struct session *s)
{
	need(close(s->device));
	need(close(s->iommu));
	need(close(s->group));
}

static inline int dma_map(int iommu, const void *vaddr, uint64_t iova, uint64_t size)
{
	struct vfio_dma_map map = {
		.len = sizeof(map),
		.vaddr = (uintptr_t)vaddr,
		.dmaaddr = iova,
		.size = size,
		.flags = VFIO_DMA_MAP_FLAG_WRITE,
	};

	return ioctl(iommu, VFIO_IOMMU_MAP_DMA, &map);
}

static inline int dma_unmap(int iommu, uint64_t iova, uint64_t size)
{
	struct vfio_dma_map map = { .len = sizeof(map), .dmaaddr = iova, .size = size };

	return ioctl(iommu, VFIO_IOMMU_UNMAP_DMA, &map);
}

static inline void *pages(size_t count)
{
	void *memory = mmap(NULL, count * PAGE, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (memory == MAP_FAILED)
		die("mmap: %s", strerror(errno));
	return memory;
}

/* Have the device copy; returns when it is done */
static inline void dma_run(const struct session *s, uint32_t from, uint32_t to, uint32_t count,
			   uint32_t command)
{
	reg_write(s, EDU_DMA_SOURCE, from);
	reg_write(s, EDU_DMA_DESTINATION, to);
	reg_write(s, EDU_DMA_COUNT, count);
	reg_write(s, EDU_DMA_COMMAND, EDU_DMA_START | command);
	for (int waited = 0; reg_read(s, EDU_DMA_COMMAND) & EDU_DMA_START; waited++) {
		if (waited == 5000)
			die("a DMA transfer does not end");
		usleep(1000);
	}
}

/* Signal `event` on vector 0 of interrupt `index`; -1 disables it */
static inline int set_irq(int device, int index, int event)
{
	int argument[3] = { index, event >= 0, event };

	return ioctl(device, VFIO_DEVICE_SET_IRQ_EVENTFDS, argument);
}

/* What the eventfd has counted, waiting up to `ms` milliseconds for the first; else 0 */
static inline uint64_t event_count(int event, int ms)
{
	struct pollfd wait = { .fd = event, .events = POLLIN };
	uint64_t count = 0;

	if (need(poll(&wait, 1, ms)) == 1 && read(event, &count, 8) != 8)
		die("read of an eventfd: %s", strerror(errno));
	return count;
}

#endif /* SESSION_H */
