/* SPDX-License-Identifier: MIT */
/*
 * A driver for edu, QEMU's educational PCI device, over the VFIO interface
 * of 2011: every request that a PCI driver needs, in the order it needs them.
 *
 *   gcc -Iinclude -o edu_driver examples/edu_driver.c
 *   uvfio run -- ./edu_driver [GROUP [ADDRESS]]
 *
 * It ends with status 0 if the device did everything right; otherwise with 1
 * and one line that says what went wrong.
 */
#define _FILE_OFFSET_BITS 64	/* regions lie beyond 4 GiB, also in 32-bit programs */

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <uvfio/vfio-2011.h>

/* The registers of edu, in region 0 */
#define EDU_ID			0x00
#define EDU_ID_VALUE		0x010000edu
#define EDU_LIVENESS		0x04	/* reads back the complement of what was written */
#define EDU_FACTORIAL		0x08
#define EDU_STATUS		0x20
#define EDU_STATUS_COMPUTING	0x01
#define EDU_STATUS_IRQ		0x80	/* interrupt when a factorial is ready */
#define EDU_IRQ_STATUS		0x24
#define EDU_IRQ_FACTORIAL	0x001
#define EDU_IRQ_DMA		0x100
#define EDU_IRQ_RAISE		0x60
#define EDU_IRQ_ACK		0x64
#define EDU_DMA_SOURCE		0x80
#define EDU_DMA_DESTINATION	0x88
#define EDU_DMA_COUNT		0x90
#define EDU_DMA_COMMAND		0x98
#define EDU_DMA_START		0x01	/* reads 0 again when the transfer is over */
#define EDU_DMA_TO_MEMORY	0x02
#define EDU_DMA_IRQ		0x04
#define EDU_BUFFER		0x40000	/* edu's own memory, a valid address for its DMA only */
#define EDU_BUFFER_SIZE		4096

#define EDU_VENDOR_DEVICE	0x11e81234u

/* PCI configuration space */
#define PCI_ID			0x00
#define PCI_COMMAND		0x04
#define PCI_COMMAND_MEMORY	0x002
#define PCI_COMMAND_MASTER	0x004
#define PCI_COMMAND_NO_INTX	0x400

/*
 * edu drives 28 address lines, so its DMA addresses are below 256 MiB. Within
 * that they are the driver's choice.
 */
#define IOVA			0x0100000u
#define IOVA_NOT_MAPPED		0x0800000u
#define MEMORY_SIZE		(2 * EDU_BUFFER_SIZE)

#define PATIENCE_MS		5000	/* for what must happen */
#define SILENCE_MS		50	/* for what must not */

struct edu {
	int group;
	int iommu;
	int device;
	uint64_t flags;
	uint64_t bar0;		/* offset of region 0 in the device file */
	uint64_t config;	/* offset of configuration space */
	unsigned char *memory;
};

static void __attribute__((format(printf, 1, 2), noreturn)) fail(const char *format, ...)
{
	va_list arguments;

	fflush(stdout);
	fprintf(stderr, "edu_driver: ");
	va_start(arguments, format);
	vfprintf(stderr, format, arguments);
	va_end(arguments);
	fprintf(stderr, "\n");
	exit(1);
}

static void __attribute__((format(printf, 2, 3))) step(const char *what, const char *format, ...)
{
	va_list arguments;

	printf("%-40s ", what);
	va_start(arguments, format);
	vprintf(format, arguments);
	va_end(arguments);
	printf("\n");
}

static void ok(const char *what)
{
	step(what, "ok");
}

/* An ioctl that must succeed */
static int request_named(int fd, unsigned long request, void *argument, const char *name)
{
	int result = ioctl(fd, request, argument);

	if (result < 0)
		fail("%s: %s", name, strerror(errno));
	return result;
}
#define request(fd, number, argument) request_named(fd, number, argument, #number)

/* ---- registers ---- */

static uint32_t read32(const struct edu *edu, uint64_t at)
{
	uint32_t value;

	if (pread(edu->device, &value, sizeof(value), (off_t)at) != sizeof(value))
		fail("read of 4 bytes at %#llx: %s", (unsigned long long)at, strerror(errno));
	return le32toh(value);	/* regions are little-endian on every host */
}

static void write32(const struct edu *edu, uint64_t at, uint32_t value)
{
	value = htole32(value);
	if (pwrite(edu->device, &value, sizeof(value), (off_t)at) != sizeof(value))
		fail("write of 4 bytes at %#llx: %s", (unsigned long long)at, strerror(errno));
}

static uint32_t edu_read(const struct edu *edu, uint32_t reg)
{
	return read32(edu, edu->bar0 + reg);
}

static void edu_write(const struct edu *edu, uint32_t reg, uint32_t value)
{
	write32(edu, edu->bar0 + reg, value);
}

/* Wait until none of `bits` is set in `reg` */
static void edu_wait_clear(const struct edu *edu, uint32_t reg, uint32_t bits, const char *what)
{
	for (int waited = 0; edu_read(edu, reg) & bits; waited++) {
		if (waited == PATIENCE_MS)
			fail("%s: not finished after %d ms", what, PATIENCE_MS);
		usleep(1000);
	}
}

static void expect(uint32_t got, uint32_t wanted, const char *what)
{
	if (got != wanted)
		fail("%s: got %#x, not %#x", what, got, wanted);
}

/* ---- interrupts ---- */

static int make_eventfd(void)
{
	int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);

	if (fd < 0)
		fail("eventfd: %s", strerror(errno));
	return fd;
}

/* How many interrupts arrived on `fd` within `ms` milliseconds (until the first one) */
static uint64_t interrupts(int fd, int ms)
{
	struct pollfd wait = { .fd = fd, .events = POLLIN };
	uint64_t count = 0;
	int ready = poll(&wait, 1, ms);

	if (ready < 0)
		fail("poll: %s", strerror(errno));
	if (ready && read(fd, &count, sizeof(count)) != sizeof(count))
		fail("read of an eventfd: %s", strerror(errno));
	return count;
}

static void expect_interrupt(int fd, const char *what)
{
	uint64_t count = interrupts(fd, PATIENCE_MS);

	if (count != 1)
		fail("%s: %llu interrupts, not 1", what, (unsigned long long)count);
}

static void expect_silence(int fd, const char *what)
{
	if (interrupts(fd, SILENCE_MS))
		fail("%s: an interrupt that must not be", what);
}

/* Signal `eventfd` on vector 0 of interrupt `index`; -1 disables the interrupt */
static void set_interrupt(const struct edu *edu, int index, int eventfd)
{
	int argument[3] = { index, eventfd >= 0, eventfd };

	request(edu->device, VFIO_DEVICE_SET_IRQ_EVENTFDS, argument);
}

static void unmask_intx(const struct edu *edu)
{
	int index = VFIO_PCI_INTX_IRQ_INDEX;

	request(edu->device, VFIO_DEVICE_UNMASK_IRQ, &index);
}

/* ---- the steps ---- */

static void open_group(struct edu *edu, const char *number)
{
	char path[64];
	__u64 flags;

	snprintf(path, sizeof(path), "/dev/vfio/%s", number);
	edu->group = open(path, O_RDWR | O_CLOEXEC);
	if (edu->group < 0)
		fail("%s: %s", path, strerror(errno));
	step("open group", "%s", path);

	request(edu->group, VFIO_GROUP_GET_FLAGS, &flags);
	if (!(flags & VFIO_GROUP_FLAGS_VIABLE))
		fail("group %s is not viable: a device in it has no VFIO driver", number);
	if (flags & VFIO_GROUP_FLAGS_MM_LOCKED)
		fail("group %s is in use by another program", number);
	ok("group is viable and free");
}

/* Memory first: a device that is reset into a working state may start DMA at once */
static void map_memory(struct edu *edu)
{
	struct vfio_dma_map map = {
		.len = sizeof(map),
		.dmaaddr = IOVA,
		.size = MEMORY_SIZE,
		.flags = VFIO_DMA_MAP_FLAG_WRITE,
	};
	__u64 flags;

	edu->iommu = request(edu->group, VFIO_GROUP_GET_IOMMU_FD, NULL);
	request(edu->iommu, VFIO_IOMMU_GET_FLAGS, &flags);
	if (!(flags & VFIO_IOMMU_FLAGS_MAP_ANY))
		fail("the IOMMU cannot map any address anywhere");
	ok("open iommu, maps any address");

	edu->memory = mmap(NULL, MEMORY_SIZE, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (edu->memory == MAP_FAILED)
		fail("mmap: %s", strerror(errno));
	map.vaddr = (uintptr_t)edu->memory;
	request(edu->iommu, VFIO_IOMMU_MAP_DMA, &map);
	step("map memory for DMA", "iova %#x, %d bytes", IOVA, MEMORY_SIZE);
}

static void open_device(struct edu *edu, char *address)
{
	edu->device = request(edu->group, VFIO_GROUP_GET_DEVICE_FD, address);
	step("open device", "%s", address);

	request(edu->device, VFIO_DEVICE_GET_FLAGS, &edu->flags);
	if (!(edu->flags & VFIO_DEVICE_FLAGS_PCI))
		fail("%s is not a PCI device", address);
	step("device flags", "PCI%s%s", edu->flags & VFIO_DEVICE_FLAGS_DT ? " DT" : "",
	     edu->flags & VFIO_DEVICE_FLAGS_RESET ? " RESET" : "");
}

static void list_regions(struct edu *edu)
{
	static const char *const names[VFIO_PCI_NUM_REGIONS] = {
		"BAR 0", "BAR 1", "BAR 2", "BAR 3", "BAR 4", "BAR 5", "ROM", "config",
	};
	int count;

	request(edu->device, VFIO_DEVICE_GET_NUM_REGIONS, &count);
	if (count < VFIO_PCI_NUM_REGIONS)
		fail("only %d regions", count);
	step("regions", "%d", count);
	for (int i = 0; i < count; i++) {
		struct vfio_region_info info = { .len = sizeof(info), .index = (__u32)i };

		request(edu->device, VFIO_DEVICE_GET_REGION_INFO, &info);
		printf("  %-8s size %#9llx  offset %#14llx %s%s%s\n",
		       i < VFIO_PCI_NUM_REGIONS ? names[i] : "?", info.size, info.offset,
		       info.flags & VFIO_REGION_INFO_FLAG_MMAP ? " MMAP" : "",
		       info.flags & VFIO_REGION_INFO_FLAG_RO ? " RO" : "",
		       info.flags & VFIO_REGION_INFO_FLAG_PHYS_VALID ? " PHYS_VALID" : "");
		if (i == VFIO_PCI_BAR0_REGION_INDEX) {
			if (info.size < EDU_BUFFER + EDU_BUFFER_SIZE)
				fail("BAR 0 is too small for edu");
			edu->bar0 = info.offset;
		} else if (i == VFIO_PCI_CONFIG_REGION_INDEX) {
			if (info.size < 256)
				fail("configuration space is too small");
			edu->config = info.offset;
		}
	}
}

static void list_irqs(struct edu *edu)
{
	static const char *const names[VFIO_PCI_NUM_IRQS] = { "INTx", "MSI", "MSI-X" };
	int count;

	request(edu->device, VFIO_DEVICE_GET_NUM_IRQS, &count);
	if (count < VFIO_PCI_NUM_IRQS)
		fail("only %d interrupts", count);
	step("interrupts", "%d", count);
	for (int i = 0; i < count; i++) {
		struct vfio_irq_info info = { .len = sizeof(info), .index = (__u32)i };

		request(edu->device, VFIO_DEVICE_GET_IRQ_INFO, &info);
		printf("  %-8s vectors %u %s\n", i < VFIO_PCI_NUM_IRQS ? names[i] : "?", info.count,
		       info.flags & VFIO_IRQ_INFO_FLAG_LEVEL ? " LEVEL" : "");
		if (i == VFIO_PCI_INTX_IRQ_INDEX)
			if (info.count != 1 || !(info.flags & VFIO_IRQ_INFO_FLAG_LEVEL))
				fail("edu has one level-triggered INTx");
		if (i == VFIO_PCI_MSI_IRQ_INDEX && !info.count)
			fail("edu has MSI");
	}
}

static void enable(struct edu *edu)
{
	uint16_t command;

	expect(read32(edu, edu->config + PCI_ID), EDU_VENDOR_DEVICE, "vendor and device id");
	step("configuration space", "1234:11e8");

	/* 16 bits only: writing 32 would clear the status bits above */
	if (pread(edu->device, &command, 2, (off_t)(edu->config + PCI_COMMAND)) != 2)
		fail("read of the command register: %s", strerror(errno));
	command |= htole16(PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
	command &= htole16((uint16_t)~PCI_COMMAND_NO_INTX);
	if (pwrite(edu->device, &command, 2, (off_t)(edu->config + PCI_COMMAND)) != 2)
		fail("write of the command register: %s", strerror(errno));
	if ((read32(edu, edu->config + PCI_COMMAND) & 0xffff) != le16toh(command))
		fail("the command register did not take %#x", le16toh(command));
	ok("enable memory and bus master");
}

static void identify(struct edu *edu)
{
	expect(edu_read(edu, EDU_ID), EDU_ID_VALUE, "identification");
	step("identification", "%#x", EDU_ID_VALUE);

	edu_write(edu, EDU_LIVENESS, 0x12345678);
	expect(edu_read(edu, EDU_LIVENESS), ~0x12345678u, "liveness");
	ok("liveness");
}

static void factorial_polled(struct edu *edu)
{
	edu_write(edu, EDU_STATUS, 0);
	edu_write(edu, EDU_FACTORIAL, 10);
	edu_wait_clear(edu, EDU_STATUS, EDU_STATUS_COMPUTING, "factorial");
	expect(edu_read(edu, EDU_FACTORIAL), 3628800, "factorial of 10");
	step("factorial, polled", "10! = 3628800");
}

/* Compute with an interrupt at the end; the caller acknowledges it to the host */
static void factorial_by_interrupt(struct edu *edu, int eventfd, uint32_t n, uint32_t wanted)
{
	edu_write(edu, EDU_STATUS, EDU_STATUS_IRQ);
	edu_write(edu, EDU_FACTORIAL, n);
	expect_interrupt(eventfd, "factorial");
	expect(edu_read(edu, EDU_IRQ_STATUS), EDU_IRQ_FACTORIAL, "interrupt status");
	edu_write(edu, EDU_IRQ_ACK, EDU_IRQ_FACTORIAL);
	edu_write(edu, EDU_STATUS, 0);
	expect(edu_read(edu, EDU_FACTORIAL), wanted, "factorial");
}

static void use_intx(struct edu *edu)
{
	int event = make_eventfd();

	set_interrupt(edu, VFIO_PCI_INTX_IRQ_INDEX, event);
	expect_silence(event, "INTx while the device is quiet");
	ok("INTx enabled");

	edu_write(edu, EDU_IRQ_RAISE, 0x2);
	expect_interrupt(event, "INTx");
	expect(edu_read(edu, EDU_IRQ_STATUS), 0x2, "interrupt status");
	/* It masked itself when it fired, so a second cause changes nothing... */
	edu_write(edu, EDU_IRQ_RAISE, 0x4);
	expect_silence(event, "INTx while masked");
	ok("INTx fires once and is masked");

	/* ...and unmasking before the device is content fires it again */
	unmask_intx(edu);
	expect_interrupt(event, "INTx unmasked while asserted");
	edu_write(edu, EDU_IRQ_ACK, 0x6);
	unmask_intx(edu);
	expect_silence(event, "INTx unmasked after the acknowledge");
	ok("INTx unmask");

	factorial_by_interrupt(edu, event, 5, 120);
	unmask_intx(edu);
	step("factorial, by INTx", "5! = 120");

	set_interrupt(edu, VFIO_PCI_INTX_IRQ_INDEX, -1);
	edu_write(edu, EDU_IRQ_RAISE, 0x1);
	expect_silence(event, "INTx after it was dropped");
	edu_write(edu, EDU_IRQ_ACK, 0x1);
	ok("INTx dropped");
	close(event);
}

static void dma(struct edu *edu, uint32_t source, uint32_t destination, uint32_t count,
		uint32_t command)
{
	edu_write(edu, EDU_DMA_SOURCE, source);
	edu_write(edu, EDU_DMA_DESTINATION, destination);
	edu_write(edu, EDU_DMA_COUNT, count);
	edu_write(edu, EDU_DMA_COMMAND, EDU_DMA_START | command);
}

static void dma_polled(struct edu *edu, uint32_t source, uint32_t destination, uint32_t command)
{
	dma(edu, source, destination, EDU_BUFFER_SIZE, command);
	edu_wait_clear(edu, EDU_DMA_COMMAND, EDU_DMA_START, "DMA");
}

/* A pattern without a period that a shifted or repeated transfer could hide in */
static void fill(unsigned char *at, size_t size, uint32_t seed)
{
	for (size_t i = 0; i < size; i++) {
		seed = seed * 1664525u + 1013904223u;
		at[i] = (unsigned char)(seed >> 24);
	}
}

static void use_dma(struct edu *edu)
{
	unsigned char *there = edu->memory, *back = edu->memory + EDU_BUFFER_SIZE;
	unsigned char before[MEMORY_SIZE];

	fill(there, EDU_BUFFER_SIZE, 1);
	memset(back, 0, EDU_BUFFER_SIZE);
	dma_polled(edu, IOVA, EDU_BUFFER, 0);
	dma_polled(edu, EDU_BUFFER, IOVA + EDU_BUFFER_SIZE, EDU_DMA_TO_MEMORY);
	fill(before, EDU_BUFFER_SIZE, 1);
	if (memcmp(there, before, EDU_BUFFER_SIZE))
		fail("DMA to the device changed its source");
	if (memcmp(back, before, EDU_BUFFER_SIZE))
		fail("DMA brought other bytes back than it took");
	step("DMA to the device and back", "%d bytes, same content", EDU_BUFFER_SIZE);

	/* The IOMMU is what makes this harmless: no mapping, no access */
	fill(edu->memory, MEMORY_SIZE, 2);
	memcpy(before, edu->memory, MEMORY_SIZE);
	dma_polled(edu, EDU_BUFFER, IOVA_NOT_MAPPED, EDU_DMA_TO_MEMORY);
	/* Nor one page behind the mapping */
	dma_polled(edu, EDU_BUFFER, IOVA + MEMORY_SIZE, EDU_DMA_TO_MEMORY);
	if (memcmp(edu->memory, before, MEMORY_SIZE))
		fail("DMA to an address that is not mapped changed memory");
	expect(edu_read(edu, EDU_ID), EDU_ID_VALUE, "identification after a DMA fault");
	ok("DMA to an unmapped address goes nowhere");
}

static void use_msi(struct edu *edu)
{
	int event = make_eventfd();

	set_interrupt(edu, VFIO_PCI_MSI_IRQ_INDEX, event);
	ok("MSI enabled");

	/* A message, not a level: no mask, and each cause gives one */
	for (int i = 0; i < 3; i++) {
		edu_write(edu, EDU_IRQ_RAISE, 0x2);
		expect_interrupt(event, "MSI");
	}
	edu_write(edu, EDU_IRQ_ACK, 0x2);
	expect_silence(event, "MSI after the acknowledge");
	ok("MSI fires every time");

	factorial_by_interrupt(edu, event, 12, 479001600);
	step("factorial, by MSI", "12! = 479001600");

	dma(edu, IOVA, EDU_BUFFER, EDU_BUFFER_SIZE, EDU_DMA_IRQ);
	expect_interrupt(event, "DMA");
	expect(edu_read(edu, EDU_IRQ_STATUS), EDU_IRQ_DMA, "interrupt status");
	edu_write(edu, EDU_IRQ_ACK, EDU_IRQ_DMA);
	expect(edu_read(edu, EDU_DMA_COMMAND) & EDU_DMA_START, 0, "DMA after its interrupt");
	ok("DMA, by MSI");

	set_interrupt(edu, VFIO_PCI_MSI_IRQ_INDEX, -1);
	edu_write(edu, EDU_IRQ_RAISE, 0x1);
	expect_silence(event, "MSI after it was dropped");
	edu_write(edu, EDU_IRQ_ACK, 0x1);
	ok("MSI dropped");
	close(event);
}

static void reset(struct edu *edu)
{
	int result = ioctl(edu->device, VFIO_DEVICE_RESET);

	if (!(edu->flags & VFIO_DEVICE_FLAGS_RESET)) {
		if (result == 0 || errno != EINVAL)
			fail("reset of a device without flag RESET: %s",
			     result ? strerror(errno) : "succeeded");
		step("reset", "this device cannot be reset alone (EINVAL), as its flags say");
		return;
	}
	if (result < 0)
		fail("VFIO_DEVICE_RESET: %s", strerror(errno));
	enable(edu);
	expect(edu_read(edu, EDU_LIVENESS), 0, "liveness register after a reset");
	identify(edu);
	ok("reset");
}

static void finish(struct edu *edu)
{
	struct vfio_dma_map map = { .len = sizeof(map), .dmaaddr = IOVA, .size = MEMORY_SIZE };
	unsigned char before[MEMORY_SIZE];
	__u64 flags;

	request(edu->iommu, VFIO_IOMMU_UNMAP_DMA, &map);
	memcpy(before, edu->memory, MEMORY_SIZE);
	dma_polled(edu, EDU_BUFFER, IOVA, EDU_DMA_TO_MEMORY);
	if (memcmp(edu->memory, before, MEMORY_SIZE))
		fail("DMA reached memory after it was unmapped");
	ok("unmap memory");

	/* The last of device and iommu gives up the ownership, the group stays open */
	if (close(edu->device) || close(edu->iommu))
		fail("close: %s", strerror(errno));
	request(edu->group, VFIO_GROUP_GET_FLAGS, &flags);
	if (flags != VFIO_GROUP_FLAGS_VIABLE)
		fail("group flags are %#llx after everything was closed", flags);
	if (close(edu->group))
		fail("close: %s", strerror(errno));
	munmap(edu->memory, MEMORY_SIZE);
	ok("close");
}

int main(int argc, char **argv)
{
	static char default_address[] = "0000:06:0d.0";
	struct edu edu;

	if (argc > 3 || (argc > 1 && argv[1][0] == '-')) {
		fprintf(stderr, "usage: edu_driver [GROUP [ADDRESS]]\n");
		return 2;
	}
	memset(&edu, 0, sizeof(edu));
	open_group(&edu, argc > 1 ? argv[1] : "240");
	map_memory(&edu);
	open_device(&edu, argc > 2 ? argv[2] : default_address);
	list_regions(&edu);
	list_irqs(&edu);
	enable(&edu);
	identify(&edu);
	factorial_polled(&edu);
	use_intx(&edu);
	use_dma(&edu);
	use_msi(&edu);
	reset(&edu);
	finish(&edu);
	step("edu_driver", "all right");
	return 0;
}
