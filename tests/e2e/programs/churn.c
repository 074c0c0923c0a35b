/* SPDX-License-Identifier: MIT */
/*
 * churn SEED [GROUP ADDRESS]...: use the devices (default: those of the first
 * session.h names) in every way and close everything again, in random order,
 * until somebody kills it. For whoever wants to see it die in the middle.
 */
#include "session.h"

#include <sys/uio.h>

#define PAIRS	8

static uint64_t state;

/* xorshift64*, Vigna */
static unsigned int below(unsigned int limit)
{
	state ^= state >> 12;
	state ^= state << 25;
	state ^= state >> 27;
	return (unsigned int)((state * 2685821657736338717ull >> 32) % limit);
}

/* Map all that can be mapped, store into it; the mappings are the caller's to end */
static unsigned int map_bars(int device, struct iovec *bars)
{
	unsigned int count = 0;

	for (unsigned int index = 0; index < 6; index++) {
		struct vfio_region_info info = { .len = sizeof(info), .index = index };
		unsigned char *bar;

		need(ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &info));
		if (!(info.flags & VFIO_REGION_INFO_FLAG_MMAP))
			continue;
		bar = mmap(NULL, info.size, PROT_READ | PROT_WRITE, MAP_SHARED, device,
			   (off_t)info.offset);
		if (bar == MAP_FAILED)
			die("mmap of BAR %u: %s", index, strerror(errno));
		bar[below((unsigned int)info.size)] = 1;
		bars[count++] = (struct iovec){ bar, info.size };
	}
	return count;
}

static void use(const char *group, const char *address, void *memory)
{
	struct session s = session_open(group, address);
	int event = need(eventfd(0, EFD_NONBLOCK)), copy;
	struct iovec bars[6];
	unsigned int mapped;
	uint64_t iova = 0x100000 + below(16) * 16 * PAGE;
	__u64 flags;

	need(dma_map(s.iommu, memory, iova, (1 + below(15)) * PAGE));
	if (below(2))
		need(set_irq(s.device, VFIO_PCI_MSI_IRQ_INDEX, event));
	else
		need(set_irq(s.device, VFIO_PCI_INTX_IRQ_INDEX, event));
	for (unsigned int i = below(20); i; i--)
		if (get32(s.device, s.config) == ~0u)
			die("no configuration");
	mapped = map_bars(s.device, bars);
	copy = need(dup(s.device));
	need(ioctl(copy, VFIO_DEVICE_GET_FLAGS, &flags));
	if (below(2))
		need(dma_unmap(s.iommu, iova, 16 * PAGE));
	need(close(event));
	session_close(&s);
	need(close(copy));
	while (mapped--)
		need(munmap(bars[mapped].iov_base, bars[mapped].iov_len));
}

int main(int argc, char **argv)
{
	const char *pairs[PAIRS][2] = { { GROUP_A, DEVICE_A }, { GROUP_B, DEVICE_B } };
	unsigned int count = 2;
	int shared = need(memfd_create("memory", MFD_CLOEXEC));
	void *memory[2];

	if (argc < 2 || argc % 2 || argc > 2 + 2 * PAIRS)
		die("usage: churn SEED [GROUP ADDRESS]...");
	state = strtoull(argv[1], NULL, 0) * 0x9e3779b97f4a7c15ull | 1;
	if (argc > 2) {
		count = (unsigned int)(argc - 2) / 2;
		memcpy(pairs, argv + 2, (size_t)count * sizeof(pairs[0]));
	}
	/* one kind of memory is reached by copying, the other by a mapping on the far side */
	memory[0] = pages(16);
	need(ftruncate(shared, 16 * PAGE));
	memory[1] = mmap(NULL, 16 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, shared, 0);
	if (memory[1] == MAP_FAILED)
		die("mmap: %s", strerror(errno));
	puts("ready");
	fflush(stdout);
	for (;;) {
		unsigned int which = below(count);

		use(pairs[which][0], pairs[which][1], memory[below(2)]);
	}
}
