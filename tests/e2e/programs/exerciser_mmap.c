/* SPDX-License-Identifier: MIT */
/*
 * A device whose memory is mapped: what the program stores natively the device
 * and pread see, and the other way round. For an "exerciser" at 0000:01:00.0 in
 * group 7, beside nothing else:
 *
 *   uvfio run -d exerciser@0000:01:00.0,group=7 -- exerciser_mmap
 */
#include "session.h"

#define GROUP	"7"
#define DEVICE	"0000:01:00.0"

#define REGS	0	/* BAR numbers */
#define TABLE	1
#define MEMORY	2
#define PORTS	4
#define ROM	6

#define ID		0x000
#define ID_VALUE	0x52455845u	/* "EXER" */
#define MEMORY_SIZE	0x004
#define SCRATCH		0x010
#define SCRATCH64	0x020
#define EVENTS		0x028
#define EVENTS_RAISE	0x02c
#define COUNTER		0x030
#define TICK		0x034
#define INTERRUPT	0x040
#define DMA_ADDRESS	0x080
#define DMA_OFFSET	0x088
#define DMA_LENGTH	0x090
#define DMA_CONTROL	0x094
#define DMA_GO		0x1u
#define DMA_TO_RAM	0x2u
#define DMA_IRQ		0x4u
#define DMA_STATUS	0x098
#define DMA_DONE	0x1u
#define DMA_FAULT	0x2u
#define DMA_RANGE	0x4u
#define STORE_ADDRESS	0x0a0
#define STORE_VALUE	0x0a8
#define STORE_WIDTH	0x0b0

#define IOVA		0x100000u
#define BAR_IOVA	0x8000000u
#define LOCKED	(VFIO_GROUP_FLAGS_VIABLE | VFIO_GROUP_FLAGS_MM_LOCKED)

static struct vfio_region_info region(int device, unsigned int index)
{
	struct vfio_region_info info = { .len = sizeof(info), .index = index };

	need(ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &info));
	return info;
}

static unsigned char *map_memory(int device)
{
	struct vfio_region_info info = region(device, MEMORY);
	void *bar = mmap(NULL, info.size, PROT_READ | PROT_WRITE, MAP_SHARED, device,
			 (off_t)info.offset);

	if (bar == MAP_FAILED)
		die("mmap of the memory BAR: %s", strerror(errno));
	return bar;
}

static uint64_t get64(int device, off_t at)
{
	uint64_t value = 0;

	if (need(pread(device, &value, 8, at)) != 8)
		die("pread of 8 bytes");
	return value;
}

static void put64(int device, off_t at, uint64_t value)
{
	if (need(pwrite(device, &value, 8, at)) != 8)
		die("pwrite of 8 bytes");
}

/* Memory and I/O decoding, bus master; a reset clears them */
static void enable(const struct session *s)
{
	uint16_t command = 0x7;

	need(pwrite(s->device, &command, 2, s->config + 4));
}

static void fill(unsigned char *bytes, size_t count, unsigned int seed)
{
	for (size_t i = 0; i < count; i++)
		bytes[i] = (unsigned char)(i * 13 + (i >> 7) + seed);
}

static unsigned int copy(const struct session *s, uint64_t address, uint64_t offset, uint32_t length,
			 uint32_t control)
{
	reg_write(s, DMA_STATUS, ~0u);
	put64(s->device, s->bar0 + DMA_ADDRESS, address);
	put64(s->device, s->bar0 + DMA_OFFSET, offset);
	reg_write(s, DMA_LENGTH, length);
	reg_write(s, DMA_CONTROL, DMA_GO | control);
	for (int waited = 0; reg_read(s, DMA_CONTROL) & DMA_GO; waited++) {
		if (waited == 5000)
			die("a DMA transfer does not end");
		usleep(1000);
	}
	return reg_read(s, DMA_STATUS);
}

static void registers(const struct session *s)
{
	check_equal("identification", reg_read(s, ID), ID_VALUE);
	check_equal("size of the memory BAR", reg_read(s, MEMORY_SIZE),
		    region(s->device, MEMORY).size);
	for (uint32_t i = 0; i < 4; i++)
		reg_write(s, SCRATCH + 4 * i, 0x01020304u * (i + 1));
	check_equal("two scratch registers at once", get64(s->device, s->bar0 + SCRATCH),
		    0x0204060801020304u);
	put64(s->device, s->bar0 + SCRATCH64, 0x1122334455667788u);
	check_equal("half of a 64-bit register", reg_read(s, SCRATCH64 + 4), 0x11223344);
	reg_write(s, EVENTS_RAISE, 0xff);
	reg_write(s, EVENTS, 0x0f);
	check_equal("bits written as 1 are cleared", reg_read(s, EVENTS), 0xf0);
	reg_write(s, TICK, 5);
	reg_write(s, TICK, 6);
	check_equal("a counter", reg_read(s, COUNTER), 11);
	check_equal("is cleared by reading", reg_read(s, COUNTER), 0);
	check("registers are not for mmap", !(region(s->device, REGS).flags &
					      VFIO_REGION_INFO_FLAG_MMAP));
}

static void mapped_memory(const struct session *s, unsigned char *bar)
{
	struct vfio_region_info info = region(s->device, MEMORY);
	off_t at = (off_t)info.offset;
	unsigned char *other, buffer[512];
	uint64_t *words = (uint64_t *)bar;

	check("the memory BAR is for mmap", info.flags & VFIO_REGION_INFO_FLAG_MMAP);
	fill(bar, info.size, 1);
	need(pread(s->device, buffer, sizeof(buffer), at + 3 * PAGE + 5));
	check("pread sees what was stored", !memcmp(buffer, bar + 3 * PAGE + 5, sizeof(buffer)));
	memset(buffer, 0xc3, sizeof(buffer));
	need(pwrite(s->device, buffer, sizeof(buffer), at + (off_t)info.size - 512));
	check("a load sees what pwrite wrote", !memcmp(bar + info.size - 512, buffer, 512));
	check_equal("over the end", need(pread(s->device, buffer, 512, at + (off_t)info.size - 8)), 8);
	__atomic_store_n(&words[9], 0x1234567812345678u, __ATOMIC_SEQ_CST);
	check_equal("an atomic add", __atomic_add_fetch(&words[9], 1, __ATOMIC_SEQ_CST),
		    0x1234567812345679u);
	check_equal("pread of it", get64(s->device, at + 72), 0x1234567812345679u);

	other = mmap(NULL, PAGE, PROT_READ, MAP_SHARED, s->device, at + 5 * PAGE);
	check("a second mapping, of one page", other != MAP_FAILED);
	bar[5 * PAGE + 17] = 0x99;
	check_equal("shows the same", other[17], 0x99);
	need(munmap(other, PAGE));
	errno = 0;
	check("mmap beyond the BAR", mmap(NULL, PAGE, PROT_READ, MAP_SHARED, s->device,
					  at + (off_t)info.size) == MAP_FAILED);
	check("mmap of more than the BAR", mmap(NULL, info.size + PAGE, PROT_READ, MAP_SHARED,
						s->device, at) == MAP_FAILED);
	check("mmap of registers", mmap(NULL, PAGE, PROT_READ, MAP_SHARED, s->device, s->bar0) ==
	      MAP_FAILED);
	check("private mmap", mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE, s->device, at) == MAP_FAILED);
	bar = mremap(bar, info.size, info.size, MREMAP_MAYMOVE | MREMAP_FIXED,
		     mmap(NULL, info.size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	check("mremap moves the mapping", bar != MAP_FAILED);
	check_equal("and what it shows", bar[5 * PAGE + 17], 0x99);
	need(munmap(bar, info.size));
}

/* Between the device's memory and the program's: private pages, and shared ones of a file */
static void dma(const struct session *s, unsigned char *bar)
{
	size_t size = 16 * PAGE;
	int file = need(memfd_create("ram", 0));
	unsigned char *kinds[2], *memory;

	kinds[0] = pages(16);
	need(ftruncate(file, (off_t)size));
	kinds[1] = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	if (kinds[1] == MAP_FAILED)
		die("mmap: %s", strerror(errno));
	for (unsigned int kind = 0; kind < 2; kind++) {
		const char *name = kind ? "shared memory" : "private memory";
		char text[64];

#define of(what) (snprintf(text, sizeof(text), "%s: %s", name, what), text)
		memory = kinds[kind];
		check_ok(of("MAP"), dma_map(s->iommu, memory, IOVA, size));
		fill(memory, size, kind + 20);
		memset(bar, 0, size + PAGE);
		check_equal(of("DMA to the device"), copy(s, IOVA, PAGE / 2, (uint32_t)size, 0),
			    DMA_DONE);
		check(of("every byte came"), !memcmp(bar + PAGE / 2, memory, size));
		check(of("no other"), !bar[PAGE / 2 - 1] && !bar[PAGE / 2 + size]);
		fill(bar + 64 * PAGE, PAGE + 3, kind + 30);
		check_equal(of("DMA from the device"),
			    copy(s, IOVA + PAGE + 1, 64 * PAGE, PAGE + 3, DMA_TO_RAM), DMA_DONE);
		check(of("every byte went"), !memcmp(bar + 64 * PAGE, memory + PAGE + 1, PAGE + 3));
		check_equal(of("beyond what is mapped"),
			    copy(s, IOVA + size - 8, 0, 16, DMA_TO_RAM), DMA_DONE | DMA_FAULT);
		check_equal(of("beyond the BAR"),
			    copy(s, IOVA, region(s->device, MEMORY).size - 4, 8, 0),
			    DMA_DONE | DMA_RANGE);
		put64(s->device, s->bar0 + STORE_ADDRESS, IOVA + 4 * PAGE + 8);
		put64(s->device, s->bar0 + STORE_VALUE, 0xa1b2c3d4e5f60718u);
		memset(memory + 4 * PAGE, 0, 32);
		reg_write(s, STORE_WIDTH, 4);
		check_equal(of("a store of 4 bytes"), *(uint64_t *)(memory + 4 * PAGE + 8), 0xe5f60718u);
		reg_write(s, STORE_WIDTH, 8);
		check_equal(of("a store of 8"), *(uint64_t *)(memory + 4 * PAGE + 8),
			    0xa1b2c3d4e5f60718u);
		check_ok(of("UNMAP"), dma_unmap(s->iommu, IOVA, size));
		check_equal(of("DMA after that"), copy(s, IOVA, 0, 8, 0), DMA_DONE | DMA_FAULT);
	}
	need(close(file));
	need(munmap(kinds[0], size));
	need(munmap(kinds[1], size));
}

/* The device reads its own memory by DMA, as peers do */
static void dma_of_the_bar(const struct session *s, unsigned char *bar)
{
	struct vfio_region_info info = region(s->device, MEMORY);

	check_ok("MAP of the mapped BAR", dma_map(s->iommu, bar, BAR_IOVA, info.size));
	fill(bar, PAGE, 77);
	check_equal("DMA from BAR to BAR", copy(s, BAR_IOVA, 32 * PAGE, PAGE, 0), DMA_DONE);
	check("every byte", !memcmp(bar, bar + 32 * PAGE, PAGE));
	check_ok("UNMAP of it", dma_unmap(s->iommu, BAR_IOVA, info.size));
}

static void msix(const struct session *s)
{
	struct vfio_irq_info info = { .len = sizeof(info), .index = VFIO_PCI_MSIX_IRQ_INDEX };
	int argument[2 + 64] = { VFIO_PCI_MSIX_IRQ_INDEX };
	int count;

	need(ioctl(s->device, VFIO_DEVICE_GET_IRQ_INFO, &info));
	count = (int)info.count;
	check("MSI-X vectors", count == 8);
	argument[1] = count;
	for (int i = 0; i < count; i++)
		argument[2 + i] = need(eventfd(0, EFD_NONBLOCK));
	check_ok("MSI-X", ioctl(s->device, VFIO_DEVICE_SET_IRQ_EVENTFDS, argument));
	for (int i = 0; i < count; i++)
		for (int times = 0; times <= i; times++)
			reg_write(s, INTERRUPT, (uint32_t)i);
	for (int i = 0; i < count; i++)
		check_equal("each vector to its own eventfd", event_count(argument[2 + i], 5000),
			    i + 1);
	reg_write(s, INTERRUPT, (uint32_t)count);
	for (int i = 0; i < count; i++)
		if (event_count(argument[2 + i], 0))
			die("vector %d of %d signals %d", count, count, i);
	pass("a vector that there is not goes nowhere");
	check_equal("DMA with an interrupt when it is done",
		    copy(s, IOVA, 0, 0, DMA_IRQ | 3u << 8), DMA_DONE);
	check_equal("on the vector that was asked for", event_count(argument[2 + 3], 5000), 1);
	argument[1] = 0;
	check_ok("MSI-X off", ioctl(s->device, VFIO_DEVICE_SET_IRQ_EVENTFDS, argument));
	reg_write(s, INTERRUPT, 0);
	check_equal("nothing after that", event_count(argument[2], 0), 0);
	for (int i = 0; i < count; i++)
		need(close(argument[2 + i]));
	check_errno("the MSI-X table BAR is not for mmap",
		    (intptr_t)mmap(NULL, PAGE, PROT_READ, MAP_SHARED, s->device,
				   (off_t)region(s->device, TABLE).offset), EINVAL);
}

static void rom(const struct session *s)
{
	struct vfio_region_info info = region(s->device, ROM);
	unsigned char image[4096], sum = 0;
	int vendor;

	check_equal("the ROM's size", info.size, 2048);
	check("it is read-only", info.flags & VFIO_REGION_INFO_FLAG_RO);
	check_equal("pread of the ROM", need(pread(s->device, image, sizeof(image), (off_t)info.offset)),
		    2048);
	check("its signature", image[0] == 0x55 && image[1] == 0xaa);
	vendor = image[0x18] + 4;
	check("the ids in it", image[vendor] == 0x34 && image[vendor + 1] == 0x12);
	for (int i = 0; i < 2048; i++)
		sum = (unsigned char)(sum + image[i]);
	check_equal("its checksum", sum, 0);
	check_errno("pwrite of the ROM", pwrite(s->device, image, 4, (off_t)info.offset), EINVAL);
}

static void ports(const struct session *s)
{
	off_t at = (off_t)region(s->device, PORTS).offset;
	uint8_t byte;
	uint16_t swapped = 0x1234;

	check_equal("the I/O BAR's size", region(s->device, PORTS).size, 16);
	for (int i = 0; i < 256; i++) {
		uint8_t pair[2] = { (uint8_t)i, (uint8_t)(i ^ 0x5a) };

		need(pwrite(s->device, &pair[0], 1, at));
		need(pwrite(s->device, &pair[1], 1, at + 1));
	}
	byte = 77;
	need(pwrite(s->device, &byte, 1, at));
	need(pread(s->device, &byte, 1, at + 1));
	check_equal("a byte of the port's table", byte, 77 ^ 0x5a);
	need(pwrite(s->device, &swapped, 2, at + 2));
	need(pread(s->device, &swapped, 2, at + 2));
	check_equal("a word, swapped", swapped, 0x3412);
	check_equal("a port that counts its reads", get32(s->device, at + 4), 1);
	check_equal("each of them", get32(s->device, at + 4), 2);
	check_errno("over the end of the ports", pread(s->device, &swapped, 2, at + 15), EINVAL);
}

static void reset(const struct session *s, unsigned char *bar)
{
	uint64_t flags = 0;

	need(ioctl(s->device, VFIO_DEVICE_GET_FLAGS, &flags));
	check("the flag RESET", flags & VFIO_DEVICE_FLAGS_RESET);
	fill(bar, PAGE, 3);
	reg_write(s, SCRATCH, 0x77);
	check_ok("RESET", ioctl(s->device, VFIO_DEVICE_RESET));
	enable(s);
	check_equal("registers are as new", reg_read(s, SCRATCH), 0);
	check("and so is the mapped memory", !bar[0] && !bar[1] && !bar[PAGE - 1]);
	bar[0] = 42;
	check_equal("the mapping is still the device's", get32(s->device,
		    (off_t)region(s->device, MEMORY).offset), 42);
}

/* The mapping is a reference as good as the descriptor */
static void mapping_outlives_descriptor(void)
{
	struct session s = session_open(GROUP, DEVICE);
	unsigned char *bar = map_memory(s.device);
	size_t size = region(s.device, MEMORY).size;
	int group;
	pid_t pid;

	enable(&s);
	bar[123] = 0x77;
	session_close(&s);
	check_equal("files closed, mapping kept: the group is locked", flags_of(GROUP), LOCKED);
	bar[124] = 0x78;
	check("the memory is still there", bar[123] == 0x77 && bar[124] == 0x78);
	/* half of it is as good as all */
	need(munmap(bar, size / 2));
	check_equal("half of it unmapped", flags_of(GROUP), LOCKED);
	pid = need(fork());
	if (!pid) {
		group = need(open_group(GROUP));
		check_errno("a child is not the owner", ioctl(group, VFIO_GROUP_GET_IOMMU_FD), EPERM);
		_exit(0);
	}
	wait_ok("child with the mapping", pid);
	check_equal("the child's copy of the mapping went with it", flags_of(GROUP), LOCKED);
	need(munmap(bar + size / 2, size / 2));
	check_equal("nothing mapped: the group is free", flags_of(GROUP), VFIO_GROUP_FLAGS_VIABLE);
}

static void opened_twice(void)
{
	struct session s = session_open(GROUP, DEVICE);
	int second = need(ioctl(s.group, VFIO_GROUP_GET_DEVICE_FD, DEVICE));
	unsigned char *bar, *again;

	enable(&s);
	bar = map_memory(s.device);
	again = map_memory(second);
	bar[1000] = 0x66;
	check_equal("both files map the same memory", again[1000], 0x66);
	reg_write(&s, SCRATCH, 0xabcd);
	check_equal("and have the same registers", get32(second, s.bar0 + SCRATCH), 0xabcd);
	need(close(s.device));
	check_equal("the second file works without the first", get32(second, s.bar0 + ID), ID_VALUE);
	again[1001] = 0x67;
	check_equal("so does the mapping of the first", bar[1001], 0x67);
	need(munmap(bar, region(second, MEMORY).size));
	check_equal("and of the second", get32(second, (off_t)region(second, MEMORY).offset + 1000) &
		    0xffff, 0x6766);
	need(close(s.iommu));
	need(munmap(again, region(second, MEMORY).size));
	check_equal("one file is left: locked", group_flags(s.group), LOCKED);
	need(close(second));
	check_equal("none: free", group_flags(s.group), VFIO_GROUP_FLAGS_VIABLE);
	need(close(s.group));
}

int main(void)
{
	struct session s = session_open(GROUP, DEVICE);
	unsigned char *bar = map_memory(s.device);

	enable(&s);
	registers(&s);
	mapped_memory(&s, bar);
	bar = map_memory(s.device);
	dma(&s, bar);
	dma_of_the_bar(&s, bar);
	msix(&s);
	rom(&s);
	ports(&s);
	reset(&s, bar);
	need(munmap(bar, region(s.device, MEMORY).size));
	session_close(&s);
	check_equal("released", flags_of(GROUP), VFIO_GROUP_FLAGS_VIABLE);
	mapping_outlives_descriptor();
	opened_twice();
	mapping_outlives_descriptor();
	return 0;
}
