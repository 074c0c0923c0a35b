/* SPDX-License-Identifier: MIT */
/*
 * huge_guest [GROUP]: a machine of 1 TiB that has little in it.
 *
 * 4 GiB of memory that nobody has touched are mapped for devices over and over,
 * until a tebibyte and more of I/O addresses lead to them, by the mainline group
 * interface. None of it may be touched by that. Prints "begun" and "mapped", each
 * time waits for a line on stdin, and then unmaps everything at once.
 */
#include "check.h"

#include <fcntl.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include <linux/vfio.h>

#define SIZE	(4UL << 30)
#define MAPS	257

static unsigned char present[SIZE / 4096];

static void wait_for_line(const char *what)
{
	char line[16];

	printf("%s\n", what);
	fflush(stdout);
	check("told to go on", fgets(line, sizeof(line), stdin) != NULL);
}

int main(int argc, char **argv)
{
	struct vfio_iommu_type1_dma_unmap all = {
		.argsz = sizeof(all), .flags = VFIO_DMA_UNMAP_FLAG_ALL,
	};
	unsigned long touched = 0;
	int group, container;
	char path[64];
	void *memory;

	snprintf(path, sizeof(path), "/dev/vfio/%s", argc > 1 ? argv[1] : "241");
	group = need(open(path, O_RDWR));
	container = need(open("/dev/vfio/vfio", O_RDWR));
	need(ioctl(group, VFIO_GROUP_SET_CONTAINER, &container));
	need(ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU));
	memory = mmap(NULL, SIZE, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	check("memory", memory != MAP_FAILED);
	wait_for_line("begun");

	for (uint64_t n = 0; n < MAPS; n++) {
		struct vfio_iommu_type1_dma_map map = {
			.argsz = sizeof(map),
			.flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
			.vaddr = (uint64_t)(uintptr_t)memory,
			.iova = (n + 1) * SIZE, .size = SIZE,
		};

		need(ioctl(container, VFIO_IOMMU_MAP_DMA, &map));
	}
	wait_for_line("mapped");

	need(mincore(memory, SIZE, present));
	for (unsigned long n = 0; n < sizeof(present); n++)
		touched += present[n] & 1;
	check_equal("pages touched", touched, 0);
	need(ioctl(container, VFIO_IOMMU_UNMAP_DMA, &all));
	check_equal("unmapped", all.size, MAPS * SIZE);
	return 0;
}
