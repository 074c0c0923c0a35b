/* SPDX-License-Identifier: MIT */
/*
 * The educational device through a mapping of BAR 0 (the mainline ABI).
 *
 *   edu_mapped GROUP ADDRESS [OTHER]
 *
 * Factorial, interrupts and DMA by loads and stores alone; stores and calls in order; a fork and a second mapping;
 * SIGBUS while memory decoding is off. OTHER is an exerciser in the same group: its memory BAR disappears as well, and
 * its DMA into a BAR that does not answer faults.
 */
#include "check.h"

#include <fcntl.h>
#include <linux/vfio.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>

enum { ID = 0x00, LIVE = 0x04, FACT = 0x08, STATUS = 0x20, CAUSES = 0x24, RAISE = 0x60, ACK = 0x64 };
enum { SOURCE = 0x80, TARGET = 0x88, COUNT = 0x90, COMMAND = 0x98, BUFFER = 0x40000 };

#define CHECK(condition)					\
	do {							\
		if (!(condition))				\
			die("not so: %s (errno: %s)", #condition, strerror(errno)); \
	} while (0)
#define CONFIG ((off_t)7 << 40)
#define LONG_AGO 2.0

static volatile uint8_t *bar;
static size_t bar_size;
static sigjmp_buf back;

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

static uint32_t get(unsigned offset)
{
	return *(volatile uint32_t *)(bar + offset);
}

static void set(unsigned offset, uint32_t value)
{
	*(volatile uint32_t *)(bar + offset) = value;
}

static void set64(unsigned offset, uint64_t value)
{
	*(volatile uint64_t *)(bar + offset) = value;
}

/* Whether the register has this value within two seconds. */
static int becomes(unsigned offset, uint32_t mask, uint32_t value)
{
	double end = now() + LONG_AGO;

	while ((get(offset) & mask) != value)
		if (now() > end)
			return 0;
	return 1;
}

static uint64_t fired(int fd)
{
	struct pollfd wait = { fd, POLLIN, 0 };
	uint64_t count = 0;

	if (poll(&wait, 1, 2000) == 1 && read(fd, &count, 8) != 8)
		count = 0;
	return count;
}

static void on_sigbus(int number)
{
	siglongjmp(back, number);
}

/* 1: the load was a SIGBUS. */
static int faults(volatile uint8_t *at)
{
	if (sigsetjmp(back, 1))
		return 1;
	(void)*(volatile uint32_t *)at;
	return 0;
}

static int set_command(int device, uint16_t command)
{
	return pwrite(device, &command, 2, CONFIG + 4) == 2;
}

static volatile uint8_t *map_region(int device, unsigned index, size_t *size)
{
	struct vfio_region_info info = { .argsz = sizeof info, .index = index };
	void *at;

	CHECK(ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &info) == 0);
	CHECK(info.flags & VFIO_REGION_INFO_FLAG_MMAP);
	*size = info.size;
	at = mmap(NULL, info.size, PROT_READ | PROT_WRITE, MAP_SHARED, device, info.offset);
	CHECK(at != MAP_FAILED);
	return at;
}

static void arithmetic(int device)
{
	uint32_t word;

	CHECK(get(ID) == 0x010000ed);
	CHECK(get(0xc) == 0xffffffff);
	CHECK(get(0x1000) == 0xffffffff);
	CHECK(get(bar_size - 4) == 0xffffffff);
	set(LIVE, 0x12345678);
	CHECK(becomes(LIVE, ~0u, ~0x12345678u));
	set(FACT, 7);
	CHECK(becomes(FACT, ~0u, 5040));
	CHECK(becomes(STATUS, 1, 0));
	set(ID, 1);			/* read-only */
	CHECK(becomes(ID, ~0u, 0x010000ed));
	for (unsigned i = 0; i < 200; i++) {	/* a store, then a call: exactly in this order */
		set(LIVE, i);
		CHECK(pread(device, &word, 4, LIVE) == 4 && word == ~i);
		CHECK(get(LIVE) == ~i);
		word = i + 1000;
		CHECK(pwrite(device, &word, 4, LIVE) == 4 && get(LIVE) == ~word);
	}
}

static void interrupts(int device, int fd)
{
	char raw[sizeof(struct vfio_irq_set) + 4];
	struct vfio_irq_set *irqs = (void *)raw;
	double slowest = 0;

	irqs->argsz = sizeof raw;
	irqs->flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER;
	irqs->index = VFIO_PCI_MSI_IRQ_INDEX;
	irqs->start = 0;
	irqs->count = 1;
	memcpy(irqs->data, &fd, 4);
	CHECK(ioctl(device, VFIO_DEVICE_SET_IRQS, irqs) == 0);
	for (int i = 0; i < 50; i++) {	/* the same value each time */
		double start = now();

		set(RAISE, 2);
		CHECK(fired(fd) == 1);
		if (now() - start > slowest)
			slowest = now() - start;
		CHECK(get(CAUSES) == 2);
		CHECK(becomes(RAISE, ~0u, ~0u));
		set(ACK, 2);
		CHECK(becomes(CAUSES, ~0u, 0));
		CHECK(becomes(ACK, ~0u, ~0u));
		if (i % 10 == 0)
			usleep(7000);	/* until the supervisor looks less often */
	}
	printf("slowest %.1f ms\n", slowest * 1e3);
	set(STATUS, 0x80);
	CHECK(becomes(STATUS, 0x80, 0x80));
	set(FACT, 5);
	CHECK(fired(fd) == 1);
	CHECK(get(FACT) == 120 && get(CAUSES) == 1);
	set(ACK, 1);
	CHECK(becomes(CAUSES, ~0u, 0));
}

static void dma(int container, uint8_t *memory)
{
	struct vfio_iommu_type1_dma_map map = { .argsz = sizeof map, .vaddr = (uintptr_t)memory };

	map.flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE;
	map.iova = 0x100000;
	map.size = 0x1000;
	CHECK(ioctl(container, VFIO_IOMMU_MAP_DMA, &map) == 0);
	strcpy((char *)memory, "through a mapping");
	set64(SOURCE, 0x100000);
	set64(TARGET, BUFFER);
	set64(COUNT, 32);
	set64(COMMAND, 1);
	CHECK(becomes(COMMAND, 1, 0));
	set64(SOURCE, BUFFER);
	set64(TARGET, 0x100800);
	set64(COMMAND, 3);
	CHECK(becomes(COMMAND, 1, 0));
	CHECK(!strcmp((char *)memory + 0x800, "through a mapping"));
}

static void sharing(int device)
{
	volatile uint8_t *mine = bar;
	size_t size;
	int status;
	pid_t child = fork();

	if (child == 0) {	/* the inherited mapping, and one of its own */
		set(LIVE, 77);
		if (!becomes(LIVE, ~0u, ~77u))
			_exit(1);
		bar = map_region(device, 0, &size);
		_exit(get(LIVE) == ~77u && (set(LIVE, 78), becomes(LIVE, ~0u, ~78u)) ? 0 : 2);
	}
	CHECK(waitpid(child, &status, 0) == child && status == 0);
	CHECK(get(LIVE) == ~78u);
	bar = map_region(device, 0, &size);
	CHECK(bar != mine && get(LIVE) == ~78u);
	set(LIVE, 79);
	CHECK(becomes(LIVE, ~0u, ~79u));
	CHECK(*(volatile uint32_t *)(mine + LIVE) == ~79u);
	CHECK(munmap((void *)bar, size) == 0);
	bar = mine;
}

static void decoding(int device)
{
	uint32_t word;
	uint16_t command;

	CHECK(pread(device, &command, 2, CONFIG + 4) == 2);
	set(LIVE, 1234);
	CHECK(set_command(device, command & ~2));	/* the store was before */
	CHECK(faults(bar) && faults(bar + LIVE) && faults(bar + bar_size - 4));
	CHECK(pread(device, &word, 4, LIVE) == -1 && errno == EIO);
	CHECK(pwrite(device, (void *)bar, 4, CONFIG + 0x3c) == -1 && errno == EFAULT);
	CHECK(set_command(device, command | 2));
	CHECK(get(LIVE) == ~1234u && get(ID) == 0x010000ed && get(0x1000) == 0xffffffff);
	set(LIVE, 4321);
	CHECK(becomes(LIVE, ~0u, ~4321u));
	for (int i = 0; i < 20; i++) {
		CHECK(set_command(device, command & ~2) && faults(bar + LIVE));
		CHECK(set_command(device, command | 2) && get(LIVE) == ~4321u);
	}
}

/* An exerciser: memory BAR 2, and DMA from it to wherever. */
static void neighbour(int container, int edu, int device)
{
	struct vfio_iommu_type1_dma_map map = { .argsz = sizeof map, .vaddr = (uintptr_t)bar };
	struct vfio_iommu_type1_dma_unmap unmap = { .argsz = sizeof unmap, .iova = 0x200000, .size = 4096 };
	volatile uint8_t *memory;
	uint64_t wide;
	uint32_t word;
	uint16_t command, other;
	size_t size;

	memory = map_region(device, 2, &size);
	for (size_t at = 0; at < size; at += 4096)
		*(volatile uint32_t *)(memory + at) = at + 1;
	CHECK(pread(device, &other, 2, CONFIG + 4) == 2);
	CHECK(set_command(device, other & ~2));
	CHECK(faults(memory) && faults(memory + size - 4) && !faults(bar));
	CHECK(set_command(device, other | 6));
	for (size_t at = 0; at < size; at += 4096)
		CHECK(*(volatile uint32_t *)(memory + at) == at + 1);

	map.flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE;
	map.iova = 0x200000;
	map.size = 4096;
	CHECK(ioctl(container, VFIO_IOMMU_MAP_DMA, &map) == 0);
	*(volatile uint32_t *)memory = 99;		/* to be stored into edu's liveness register */
	wide = 0x200000 + LIVE;
	CHECK(pwrite(device, &wide, 8, 0x80) == 8);
	wide = 0;
	CHECK(pwrite(device, &wide, 8, 0x88) == 8);
	word = 4;
	CHECK(pwrite(device, &word, 4, 0x90) == 4);
	word = 3;
	CHECK(pwrite(device, &word, 4, 0x94) == 4);
	CHECK(becomes(LIVE, ~0u, ~99u));
	CHECK(pread(device, &word, 4, 0x98) == 4 && word == 1);
	word = 7;
	CHECK(pwrite(device, &word, 4, 0x98) == 4);

	CHECK(pread(edu, &command, 2, CONFIG + 4) == 2);
	CHECK(set_command(edu, command & ~2));
	word = 3;
	CHECK(pwrite(device, &word, 4, 0x94) == 4);
	do
		CHECK(pread(device, &word, 4, 0x94) == 4);
	while (word & 1);
	CHECK(pread(device, &word, 4, 0x98) == 4 && word & 2);	/* a fault, and we are here to see it */
	CHECK(ioctl(container, VFIO_IOMMU_UNMAP_DMA, &unmap) == 0);
	CHECK(ioctl(container, VFIO_IOMMU_MAP_DMA, &map) == -1 && errno == EFAULT);
	CHECK(set_command(edu, command | 2));
	CHECK(get(LIVE) == ~99u);
}

int main(int argc, char **argv)
{
	char path[64];
	uint8_t *memory;
	int container, group, device, fd;
	uint16_t command;

	if (argc < 3)
		return 2;
	signal(SIGBUS, on_sigbus);
	snprintf(path, sizeof path, "/dev/vfio/%s", argv[1]);
	container = open("/dev/vfio/vfio", O_RDWR);
	group = open(path, O_RDWR);
	CHECK(container >= 0 && group >= 0);
	CHECK(ioctl(group, VFIO_GROUP_SET_CONTAINER, &container) == 0);
	CHECK(ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU) == 0);
	device = ioctl(group, VFIO_GROUP_GET_DEVICE_FD, argv[2]);
	CHECK(device >= 0);
	bar = map_region(device, 0, &bar_size);
	memory = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	fd = eventfd(0, 0);
	CHECK(pread(device, &command, 2, CONFIG + 4) == 2);
	CHECK(set_command(device, command | 4));	/* bus master: DMA and messages */
	arithmetic(device);
	pass("arithmetic");
	interrupts(device, fd);
	pass("interrupts");
	dma(container, memory);
	pass("dma");
	sharing(device);
	pass("sharing");
	decoding(device);
	pass("decoding");
	if (argc > 3) {
		int other = ioctl(group, VFIO_GROUP_GET_DEVICE_FD, argv[3]);

		CHECK(other >= 0);
		neighbour(container, device, other);
		pass("neighbour");
	}
	set(RAISE, 4);		/* and end: the last store counts too */
	CHECK(close(device) == 0);
	CHECK(munmap((void *)bar, bar_size) == 0);
	CHECK(close(group) == 0 && close(container) == 0);
	CHECK(fired(fd) == 1);
	pass("end");
	return 0;
}
