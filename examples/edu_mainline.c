/* SPDX-License-Identifier: MIT */
/*
 * A driver for edu, QEMU's educational PCI device, over the interface of
 * mainline kernels: container, group, device, and registers that are mapped.
 * It would run on Linux with such a device as it is.
 *
 *   gcc -o edu_mainline examples/edu_mainline.c
 *   uvfio run -- ./edu_mainline [ADDRESS]
 *
 * It ends with status 0 if the device did everything right; otherwise with 1
 * and one line that says what went wrong. edu_driver.c is the same for 2011.
 */
#define _FILE_OFFSET_BITS 64	/* regions lie beyond 4 GiB, also in 32-bit programs */

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <linux/vfio.h>

/* The registers of edu, in BAR 0 */
#define EDU_ID			0x00
#define EDU_ID_VALUE		0x010000edu
#define EDU_FACTORIAL		0x08
#define EDU_STATUS		0x20
#define EDU_STATUS_COMPUTING	0x01
#define EDU_IRQ_STATUS		0x24
#define EDU_IRQ_RAISE		0x60
#define EDU_IRQ_ACK		0x64
#define EDU_DMA_SOURCE		0x80
#define EDU_DMA_DESTINATION	0x88
#define EDU_DMA_COUNT		0x90
#define EDU_DMA_COMMAND		0x98
#define EDU_DMA_START		0x01
#define EDU_DMA_TO_MEMORY	0x02
#define EDU_BUFFER		0x40000	/* edu's own memory, a valid address for its DMA only */

#define PCI_COMMAND		0x04
#define PCI_COMMAND_MEMORY	0x002
#define PCI_COMMAND_MASTER	0x004

#define PAGE			4096u
#define IOVA			0x100000u	/* any that is below 256 MiB: edu drives 28 lines */
#define PATIENCE_MS		5000

static volatile uint32_t *registers;

static void __attribute__((noreturn)) fail(const char *what)
{
	fprintf(stderr, "edu_mainline: %s: %s\n", what, strerror(errno));
	exit(1);
}

static int must(int result, const char *what)
{
	if (result < 0)
		fail(what);
	return result;
}

/* Where the kernel says which group a device is in: a link */
static int group_of(const char *address)
{
	char path[128], target[256];
	ssize_t size;

	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/iommu_group", address);
	size = readlink(path, target, sizeof(target) - 1);
	if (size < 0)
		fail(path);
	target[size] = '\0';
	snprintf(path, sizeof(path), "/dev/vfio/%.32s", strrchr(target, '/') + 1);
	printf("group of %-21s %s\n", address, path);
	return must(open(path, O_RDWR | O_CLOEXEC), path);
}

static int open_container(int group)
{
	struct vfio_group_status status = { .argsz = sizeof(status) };
	int container = must(open("/dev/vfio/vfio", O_RDWR | O_CLOEXEC), "/dev/vfio/vfio");

	if (ioctl(container, VFIO_GET_API_VERSION) != VFIO_API_VERSION ||
	    ioctl(container, VFIO_CHECK_EXTENSION, VFIO_TYPE1v2_IOMMU) != 1)
		fail("another version of VFIO");
	must(ioctl(group, VFIO_GROUP_GET_STATUS, &status), "VFIO_GROUP_GET_STATUS");
	if (!(status.flags & VFIO_GROUP_FLAGS_VIABLE))
		fail("a driver of the host has a device of the group");
	must(ioctl(group, VFIO_GROUP_SET_CONTAINER, &container), "VFIO_GROUP_SET_CONTAINER");
	must(ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU), "VFIO_SET_IOMMU");
	return container;
}

static struct vfio_region_info region(int device, unsigned int index)
{
	struct vfio_region_info info = { .argsz = sizeof(info), .index = index };

	must(ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &info), "VFIO_DEVICE_GET_REGION_INFO");
	return info;
}

/* A store has its effect a little later: wait for what it brings about */
static void wait_until(uint32_t reg, uint32_t mask, uint32_t value, const char *what)
{
	for (int waited = 0; (registers[reg / 4] & mask) != value; waited++) {
		if (waited == PATIENCE_MS)
			fail(what);
		usleep(1000);
	}
}

static void dma(uint32_t from, uint32_t to, uint32_t command)
{
	registers[EDU_DMA_SOURCE / 4] = from;
	registers[EDU_DMA_DESTINATION / 4] = to;
	registers[EDU_DMA_COUNT / 4] = PAGE;
	registers[EDU_DMA_COMMAND / 4] = EDU_DMA_START | command;
	wait_until(EDU_DMA_COMMAND, EDU_DMA_START, 0, "a DMA transfer does not end");
}

/* MSI on an eventfd */
static int connect_interrupt(int device)
{
	char room[sizeof(struct vfio_irq_set) + sizeof(int)] __attribute__((aligned(8)));
	struct vfio_irq_set *set = (struct vfio_irq_set *)room;
	int event = must(eventfd(0, EFD_CLOEXEC), "eventfd");

	*set = (struct vfio_irq_set){
		.argsz = sizeof(room),
		.flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER,
		.index = VFIO_PCI_MSI_IRQ_INDEX,
		.count = 1,
	};
	memcpy(set->data, &event, sizeof(event));
	must(ioctl(device, VFIO_DEVICE_SET_IRQS, set), "VFIO_DEVICE_SET_IRQS");
	return event;
}

int main(int argc, char **argv)
{
	const char *address = argc > 1 ? argv[1] : "0000:07:00.0";
	int group = group_of(address), container = open_container(group), device, event;
	struct vfio_region_info bar, config;
	struct pollfd wait = { .events = POLLIN };
	unsigned char *memory;
	uint16_t command;

	memory = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED)
		fail("mmap of memory");
	must(ioctl(container, VFIO_IOMMU_MAP_DMA, &(struct vfio_iommu_type1_dma_map){
		.argsz = sizeof(struct vfio_iommu_type1_dma_map),
		.flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
		.vaddr = (uintptr_t)memory,
		.iova = IOVA,
		.size = 2 * PAGE,
	}), "VFIO_IOMMU_MAP_DMA");

	device = must(ioctl(group, VFIO_GROUP_GET_DEVICE_FD, address), "VFIO_GROUP_GET_DEVICE_FD");
	config = region(device, VFIO_PCI_CONFIG_REGION_INDEX);
	if (pread(device, &command, 2, (off_t)config.offset + PCI_COMMAND) != 2)
		fail("read of the command register");
	command |= PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER;
	if (pwrite(device, &command, 2, (off_t)config.offset + PCI_COMMAND) != 2)
		fail("write of the command register");

	bar = region(device, VFIO_PCI_BAR0_REGION_INDEX);
	if (!(bar.flags & VFIO_REGION_INFO_FLAG_MMAP))
		fail("BAR 0 cannot be mapped");
	registers = mmap(NULL, (size_t)bar.size, PROT_READ | PROT_WRITE, MAP_SHARED, device,
			 (off_t)bar.offset);
	if (registers == MAP_FAILED)
		fail("mmap of BAR 0");
	if (registers[EDU_ID / 4] != EDU_ID_VALUE)
		fail("this is not edu");
	printf("registers                              mapped, %llu KiB\n",
	       (unsigned long long)bar.size >> 10);

	registers[EDU_FACTORIAL / 4] = 10;
	wait_until(EDU_FACTORIAL, ~0u, 3628800, "10! is not computed");
	printf("factorial                              10! = 3628800\n");

	event = connect_interrupt(device);
	registers[EDU_IRQ_RAISE / 4] = 1;
	wait.fd = event;
	if (poll(&wait, 1, PATIENCE_MS) != 1)
		fail("no interrupt");
	registers[EDU_IRQ_ACK / 4] = 1;
	wait_until(EDU_IRQ_STATUS, ~0u, 0, "the interrupt is not acknowledged");
	printf("interrupt                              MSI\n");

	for (unsigned int n = 0; n < PAGE; n++)
		memory[n] = (unsigned char)(n * 7);
	dma(IOVA, EDU_BUFFER, 0);
	dma(EDU_BUFFER, IOVA + PAGE, EDU_DMA_TO_MEMORY);
	if (memcmp(memory, memory + PAGE, PAGE))
		fail("DMA changed the bytes");
	printf("DMA                                    %u bytes there and back\n", PAGE);
	printf("edu_mainline                           all right\n");
	return 0;
}
