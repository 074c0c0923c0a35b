/* SPDX-License-Identifier: MIT */
/*
 * A device that no IOMMU serves: its group is called noiommu-N, its container
 * maps nothing, and its DMA leads nowhere. Arguments: the addresses of an
 * exerciser without an IOMMU (group 5) and of one with (group 6).
 */
#include "check.h"

#include <fcntl.h>
#include <linux/pci_regs.h>
#include <linux/vfio.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#define CONFIG ((off_t)VFIO_PCI_CONFIG_REGION_INDEX << 40)

static uint64_t get(int device, off_t offset, int size)
{
	uint64_t value = 0;

	if (pread(device, &value, size, offset) != size)
		die("read %#llx: %s", (long long)offset, strerror(errno));
	return value;
}

static void set(int device, off_t offset, uint64_t value, int size)
{
	if (pwrite(device, &value, size, offset) != size)
		die("write %#llx: %s", (long long)offset, strerror(errno));
}

int main(int argc, char **argv)
{
	struct vfio_group_status status = { .argsz = sizeof(status) };
	struct vfio_iommu_type1_info info = { .argsz = sizeof(info) };
	struct vfio_iommu_type1_dma_map map = {
		.argsz = sizeof(map), .flags = VFIO_DMA_MAP_FLAG_READ, .iova = 0x1000, .size = 4096,
	};
	int container, other, group, ordinary, device;
	char letter = 0;
	int fd;

	if (argc != 3)
		die("usage: noiommu ADDRESS ORDINARY");
	fd = need(open("/sys/module/vfio/parameters/enable_unsafe_noiommu_mode", O_RDONLY));
	check("the parameter", read(fd, &letter, 1) == 1 && letter == 'Y');
	need(close(fd));

	container = need(open("/dev/vfio/vfio", O_RDWR));
	other = need(open("/dev/vfio/vfio", O_RDWR));
	check_equal("extension", ioctl(container, VFIO_CHECK_EXTENSION, VFIO_NOIOMMU_IOMMU), 1);
	check_errno("no groups", ioctl(container, VFIO_SET_IOMMU, VFIO_NOIOMMU_IOMMU), EINVAL);
	check_errno("not by its number", open("/dev/vfio/5", O_RDWR), ENOENT);
	group = check_ok("but by its name", open("/dev/vfio/noiommu-5", O_RDWR));
	ordinary = check_ok("another", open("/dev/vfio/6", O_RDWR));
	check_ok("status", ioctl(group, VFIO_GROUP_GET_STATUS, &status));
	check_equal("viable", status.flags, VFIO_GROUP_FLAGS_VIABLE);
	check_ok("join", ioctl(group, VFIO_GROUP_SET_CONTAINER, &container));
	check_errno("they do not mix", ioctl(ordinary, VFIO_GROUP_SET_CONTAINER, &container), EPERM);
	check_ok("join another", ioctl(ordinary, VFIO_GROUP_SET_CONTAINER, &other));
	check_equal("type1 is none of it", ioctl(container, VFIO_CHECK_EXTENSION, VFIO_TYPE1_IOMMU), 0);
	check_equal("nor it of type1", ioctl(other, VFIO_CHECK_EXTENSION, VFIO_NOIOMMU_IOMMU), 0);
	check_errno("type1", ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1_IOMMU), ENODEV);
	check_errno("too early", ioctl(group, VFIO_GROUP_GET_DEVICE_FD, argv[1]), EINVAL);
	check_ok("none", ioctl(container, VFIO_SET_IOMMU, VFIO_NOIOMMU_IOMMU));
	check_errno("once", ioctl(container, VFIO_SET_IOMMU, VFIO_NOIOMMU_IOMMU), EINVAL);
	check_errno("with an IOMMU", ioctl(other, VFIO_SET_IOMMU, VFIO_NOIOMMU_IOMMU), ENODEV);
	check_ok("that is type1's", ioctl(other, VFIO_SET_IOMMU, VFIO_TYPE1_IOMMU));
	map.vaddr = (uintptr_t)mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	check_errno("no information", ioctl(container, VFIO_IOMMU_GET_INFO, &info), ENOTTY);
	check_errno("no mapping", ioctl(container, VFIO_IOMMU_MAP_DMA, &map), ENOTTY);

	device = check_ok("the device", ioctl(group, VFIO_GROUP_GET_DEVICE_FD, argv[1]));
	check_equal("its registers", get(device, 0, 4), 0x52455845);
	set(device, CONFIG + PCI_COMMAND, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER, 2);
	set(device, 0xa0, map.vaddr, 8);
	set(device, 0xb0, 4, 4);
	check_equal("its DMA is a fault", get(device, 0x98, 4), 2);
	check_errno("in use", ioctl(group, VFIO_GROUP_UNSET_CONTAINER), EBUSY);
	need(close(device));
	check_ok("out", ioctl(group, VFIO_GROUP_UNSET_CONTAINER));
	check_errno("nothing is left", ioctl(container, VFIO_SET_IOMMU, VFIO_NOIOMMU_IOMMU), EINVAL);
	return 0;
}
