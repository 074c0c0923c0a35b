/* SPDX-License-Identifier: MIT */
/* See machine.h. Whatever fails ends the checks. */
#include "check.h"
#include "machine.h"

void write_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);

	if (fd == -1 || write(fd, text, strlen(text)) != (ssize_t)strlen(text))
		die("\"%s\" into %s: %s", text, path, strerror(errno));
	need(close(fd));
}

static unsigned int read_number(const char *folder, const char *name)
{
	char path[PATH_MAX];
	unsigned int number = 0;
	FILE *file;

	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/%s", folder, name);
	file = fopen(path, "re");
	if (!file || fscanf(file, "%x", &number) != 1)
		die("%s: %s", path, strerror(errno));
	fclose(file);
	return number;
}

void find_device(unsigned int vendor, unsigned int device, char address[32])
{
	DIR *devices = opendir("/sys/bus/pci/devices");
	struct dirent *entry;

	if (!devices)
		die("/sys/bus/pci/devices: %s", strerror(errno));
	while ((entry = readdir(devices))) {
		if (entry->d_name[0] == '.')
			continue;
		if (read_number(entry->d_name, "vendor") == vendor &&
		    read_number(entry->d_name, "device") == device) {
			snprintf(address, 32, "%.31s", entry->d_name);
			closedir(devices);
			return;
		}
	}
	die("the guest has no device %04x:%04x", vendor, device);
}

void bind_device(const char *address, const char *driver)
{
	char path[PATH_MAX];

	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/driver_override", address);
	write_file(path, driver);
	write_file("/sys/bus/pci/drivers_probe", address);
	snprintf(path, sizeof(path), "/sys/bus/pci/drivers/%s/%s", driver, address);
	need(access(path, F_OK));
}

struct device open_by_vfio(const char *address)
{
	struct vfio_group_status status = { .argsz = sizeof(status) };
	struct vfio_device_info info = { .argsz = sizeof(info) };
	char path[PATH_MAX], link[PATH_MAX];
	struct device device = { .fd = -1 };
	ssize_t length;

	bind_device(address, "vfio-pci");
	snprintf(device.address, sizeof(device.address), "%s", address);
	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/iommu_group", address);
	length = need(readlink(path, link, sizeof(link) - 1));
	link[length] = '\0';
	snprintf(path, sizeof(path), "/dev/vfio/%.16s", strrchr(link, '/') + 1);

	device.container = need(open("/dev/vfio/vfio", O_RDWR | O_CLOEXEC));
	device.group = need(open(path, O_RDWR | O_CLOEXEC));
	need(ioctl(device.group, VFIO_GROUP_GET_STATUS, &status));
	check("the guest's group is viable", status.flags & VFIO_GROUP_FLAGS_VIABLE);
	need(ioctl(device.group, VFIO_GROUP_SET_CONTAINER, &device.container));
	need(ioctl(device.container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU));
	device.fd = need(ioctl(device.group, VFIO_GROUP_GET_DEVICE_FD, device.address));
	need(ioctl(device.fd, VFIO_DEVICE_GET_INFO, &info));
	device.config = region_of(&device, VFIO_PCI_CONFIG_REGION_INDEX).offset;
	set_command(&device, PCI_COMMAND_IO | PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
	device.bar0 = map_region(&device, VFIO_PCI_BAR0_REGION_INDEX);
	return device;
}

struct vfio_region_info region_of(struct device *device, unsigned int index)
{
	struct vfio_region_info info = { .argsz = sizeof(info), .index = index };

	need(ioctl(device->fd, VFIO_DEVICE_GET_REGION_INFO, &info));
	return info;
}

void *map_region(struct device *device, unsigned int index)
{
	struct vfio_region_info info = region_of(device, index);
	void *memory = mmap(NULL, info.size, PROT_READ | PROT_WRITE, MAP_SHARED, device->fd,
			    (off_t)info.offset);

	if (memory == MAP_FAILED)
		die("region %u cannot be mapped: %s", index, strerror(errno));
	return memory;
}

void map_dma(struct device *device, void *memory, uint64_t iova, size_t size)
{
	struct vfio_iommu_type1_dma_map map = {
		.argsz = sizeof(map),
		.flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
		.vaddr = (uintptr_t)memory,
		.iova = iova,
		.size = size,
	};

	need(ioctl(device->container, VFIO_IOMMU_MAP_DMA, &map));
}

void close_by_vfio(struct device *device)
{
	need(close(device->fd));
	need(close(device->group));
	need(close(device->container));
}

static void irq_call(struct device *device, unsigned int index, unsigned int flags,
		     unsigned int count, const int *fds)
{
	unsigned char raw[sizeof(struct vfio_irq_set) + 32 * sizeof(int)] = { 0 };
	struct vfio_irq_set *set = (struct vfio_irq_set *)raw;

	set->argsz = sizeof(*set) + (fds ? count * sizeof(int) : 0);
	set->flags = flags;
	set->index = index;
	set->count = count;
	if (fds)
		memcpy(set->data, fds, count * sizeof(int));
	need(ioctl(device->fd, VFIO_DEVICE_SET_IRQS, set));
}

void connect_irqs(struct device *device, unsigned int index, const int *fds, unsigned int count)
{
	irq_call(device, index, VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER, count, fds);
}

void set_irq(struct device *device, unsigned int index, unsigned int action, unsigned int count)
{
	irq_call(device, index, VFIO_IRQ_SET_DATA_NONE | action, count, NULL);
}

int irq_event(void)
{
	return need(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));
}

/* Whether the event has been or is signalled in time; it is not afterwards */
int came(int event, int milliseconds)
{
	struct pollfd wanted = { .fd = event, .events = POLLIN };
	eventfd_t count;

	return need(poll(&wanted, 1, milliseconds)) == 1 && !eventfd_read(event, &count);
}

void set_command(struct device *device, uint16_t bits)
{
	if (pwrite(device->fd, &bits, 2, device->config + PCI_COMMAND) != 2)
		die("the command register: %s", strerror(errno));
}
