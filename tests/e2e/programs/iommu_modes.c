/* SPDX-License-Identifier: MIT */
/*
 * One device, five ways to its IOMMU: type1, type1v2 (/dev/vfio/vfio), the same through /dev/iommu, and iommufd with
 * the device's own node. iommu_modes MODE ADDRESS; the device is an exerciser. What differs between them is the
 * table "modes" and the functions up to unmap_all.
 */
#define _GNU_SOURCE
#include "check.h"
#include "iommufd.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/vfio.h>
#include <poll.h>
#include <stdbool.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#define must(name, condition)					\
	do {							\
		if (!(condition))				\
			die("%s: %s", name, strerror(errno));	\
	} while (0)

#define PAGE		4096ull
#define CONFIG		((off_t)VFIO_PCI_CONFIG_REGION_INDEX << 40)
#define MEMORY		((off_t)2 << 40)
#define MEMORY_SIZE	(1 << 20)

#define DMA_ADDRESS	0x080
#define DMA_OFFSET	0x088
#define DMA_LENGTH	0x090
#define DMA_CONTROL	0x094
#define DMA_STATUS	0x098
#define GO		1u
#define TO_RAM		2u
#define DONE		1u
#define FAULT		2u

static const struct mode {
	const char *name;
	const char *path;
	int type;		/* 0: no container requests */
} modes[] = {
	{ "type1", "/dev/vfio/vfio", VFIO_TYPE1_IOMMU },
	{ "type1v2", "/dev/vfio/vfio", VFIO_TYPE1v2_IOMMU },
	{ "compat-type1", "/dev/iommu", VFIO_TYPE1_IOMMU },
	{ "compat-type1v2", "/dev/iommu", VFIO_TYPE1v2_IOMMU },
	{ "iommufd", "/dev/iommu", 0 },
};

struct session {
	int iommu, group, device;
	uint32_t ioas, devid;
	char node[128];
};

static const struct mode *mode;
static const char *address;

/* -- what the modes differ in --------------------------------------------------------------------- */

static int open_group(void)
{
	char path[128], target[256];
	ssize_t size;

	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/iommu_group", address);
	size = readlink(path, target, sizeof(target) - 1);
	must("readlink iommu_group", size > 0);
	target[size] = 0;
	snprintf(path, sizeof(path), "/dev/vfio/%.64s", strrchr(target, '/') + 1);
	return open(path, O_RDWR);
}

static void find_node(struct session *s)
{
	char path[128];
	struct dirent *entry;
	DIR *folder;

	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/vfio-dev", address);
	folder = opendir(path);
	must("opendir vfio-dev", folder != NULL);
	while ((entry = readdir(folder)))
		if (strncmp(entry->d_name, "vfio", 4) == 0)
			snprintf(s->node, sizeof(s->node), "%.100s", entry->d_name);
	closedir(folder);
	must("a name in vfio-dev", s->node[0]);
}

static int open_node(struct session *s)
{
	char path[160];

	snprintf(path, sizeof(path), "/dev/vfio/devices/%s", s->node);
	return open(path, O_RDWR);
}

static int bind_device(struct session *s, int device)
{
	struct bind_iommufd bind = { .argsz = sizeof(bind), .iommufd = s->iommu };
	int result = ioctl(device, BIND_IOMMUFD, &bind);

	s->devid = bind.out_devid;
	return result;
}

static int attach(struct session *s, uint32_t pt)
{
	struct attach_pt argument = { .argsz = 12, .pt_id = pt };

	return ioctl(s->device, ATTACH_IOMMUFD_PT, &argument);
}

static void set_up(struct session *s)
{
	struct ioas_alloc alloc = { .size = sizeof(alloc) };

	memset(s, 0, sizeof(*s));
	s->group = -1;
	s->iommu = open(mode->path, O_RDWR);
	must("open the iommu", s->iommu >= 0);
	if (mode->type) {
		s->group = open_group();
		must("open the group", s->group >= 0);
		must("SET_CONTAINER", ioctl(s->group, VFIO_GROUP_SET_CONTAINER, &s->iommu) == 0);
		must("CHECK_EXTENSION", ioctl(s->iommu, VFIO_CHECK_EXTENSION, mode->type) == 1);
		must("SET_IOMMU", ioctl(s->iommu, VFIO_SET_IOMMU, mode->type) == 0);
		s->device = ioctl(s->group, VFIO_GROUP_GET_DEVICE_FD, address);
		must("GET_DEVICE_FD", s->device >= 0);
		return;
	}
	must("IOAS_ALLOC", ioctl(s->iommu, IOAS_ALLOC, &alloc) == 0);
	s->ioas = alloc.out_ioas_id;
	find_node(s);
	s->device = open_node(s);
	must("open the device", s->device >= 0);
	must("BIND", bind_device(s, s->device) == 0);
	must("ATTACH", attach(s, s->ioas) == 0);
}

static void tear_down(struct session *s)
{
	close(s->device);
	if (s->group >= 0)
		close(s->group);
	close(s->iommu);
}

static int map(struct session *s, void *memory, uint64_t iova, uint64_t size)
{
	struct vfio_iommu_type1_dma_map old = {
		.argsz = sizeof(old),
		.flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
		.vaddr = (uintptr_t)memory, .iova = iova, .size = size,
	};
	struct ioas_map native = {
		.size = sizeof(native), .ioas_id = s->ioas,
		.flags = MAP_FIXED_IOVA | MAP_WRITEABLE | MAP_READABLE,
		.user_va = (uintptr_t)memory, .iova = iova, .length = size,
	};

	return mode->type ? ioctl(s->iommu, VFIO_IOMMU_MAP_DMA, &old)
			  : ioctl(s->iommu, IOAS_MAP, &native);
}

static int unmap(struct session *s, uint64_t iova, uint64_t size, uint64_t *done)
{
	struct vfio_iommu_type1_dma_unmap old = { .argsz = sizeof(old), .iova = iova, .size = size };
	struct ioas_unmap native = {
		.size = sizeof(native), .ioas_id = s->ioas, .iova = iova, .length = size,
	};
	int result = mode->type ? ioctl(s->iommu, VFIO_IOMMU_UNMAP_DMA, &old)
				: ioctl(s->iommu, IOAS_UNMAP, &native);

	*done = mode->type ? old.size : native.length;
	return result;
}

static int unmap_all(struct session *s, uint64_t *done)
{
	struct vfio_iommu_type1_dma_unmap old = {
		.argsz = sizeof(old), .flags = VFIO_DMA_UNMAP_FLAG_ALL,
	};
	int result;

	if (!mode->type)
		return unmap(s, 0, UINT64_MAX, done);
	result = ioctl(s->iommu, VFIO_IOMMU_UNMAP_DMA, &old);
	*done = old.size;
	return result;
}

/* -- the device ----------------------------------------------------------------------------------- */

static void put(struct session *s, off_t where, uint64_t value, size_t size)
{
	must("pwrite", pwrite(s->device, &value, size, where) == (ssize_t)size);
}

static uint32_t get(struct session *s, off_t where)
{
	uint32_t value;

	must("pread", pread(s->device, &value, 4, where) == 4);
	return value;
}

/* Let the device copy; the bits of its status, without DONE. */
static uint32_t transfer(struct session *s, uint64_t iova, uint64_t offset, uint32_t size, uint32_t way)
{
	uint32_t status;

	put(s, CONFIG + 4, 0x0006, 2);		/* memory, bus master */
	put(s, DMA_STATUS, 7, 4);
	put(s, DMA_ADDRESS, iova, 8);
	put(s, DMA_OFFSET, offset, 8);
	put(s, DMA_LENGTH, size, 4);
	put(s, DMA_CONTROL, GO | way, 4);
	do {
		status = get(s, DMA_STATUS);
	} while (!status);
	return status & ~DONE;
}

/* -- what is tested ------------------------------------------------------------------------------- */

static void mappings(struct session *s, char *memory)
{
	uint64_t done = 0;

	check_ok("map", map(s, memory, 0x100000, 4 * PAGE));
	check_errno("map again", map(s, memory, 0x100000, PAGE), EEXIST);
	memcpy(memory, "from the program", 16);
	check_equal("the device reads", transfer(s, 0x100000, 0, 16, 0), 0);
	check_equal("the device writes", transfer(s, 0x102000, 0, 16, TO_RAM), 0);
	check("the program sees it", memcmp(memory + 2 * PAGE, "from the program", 16) == 0);
	check_ok("unmap", unmap(s, 0x100000, 4 * PAGE, &done));
	check_equal("unmapped bytes", done, 4 * PAGE);
	check_equal("a fault", transfer(s, 0x100000, 0, 16, 0), FAULT);

	check_ok("map one", map(s, memory, 0, PAGE));
	check_ok("map two", map(s, memory, 0x200000, 2 * PAGE));
	check_ok("unmap all", unmap_all(s, &done));
	check_equal("unmapped bytes of all", done, 3 * PAGE);
	check_ok("unmap all of nothing", unmap_all(s, &done));
	check_equal("nothing", done, 0);

	check_errno("map beyond the end", map(s, memory, UINT64_MAX - PAGE + 1, 2 * PAGE), EOVERFLOW);
	check_errno("unmap beyond the end", unmap(s, UINT64_MAX - PAGE + 1, 2 * PAGE, &done), EOVERFLOW);
	check_errno("map no memory", map(s, (void *)0x10000, 0x300000, PAGE), EFAULT);
	check_errno("map what is reserved", map(s, memory, 0xfee00000, PAGE), EINVAL);
}

static void parts(struct session *s, char *memory)
{
	uint64_t done = 0;
	bool compat = !strcmp(mode->path, "/dev/iommu");

	must("map", map(s, memory, 0x100000, 4 * PAGE) == 0);
	if (mode->type == VFIO_TYPE1_IOMMU && compat) {
		check_ok("the area is cut", unmap(s, 0x101000, PAGE, &done));
		check_equal("one page goes", done, PAGE);
		check_ok("the rest goes", unmap(s, 0x100000, 4 * PAGE, &done));
		check_equal("three pages go", done, 3 * PAGE);
		return;
	}
	if (mode->type == VFIO_TYPE1_IOMMU)
		check_ok("nothing begins there", unmap(s, 0x101000, PAGE, &done));
	else
		check_errno("a part", unmap(s, 0x101000, PAGE, &done), compat ? ENOENT : EINVAL);
	check_ok("as a whole", unmap(s, 0x100000, 4 * PAGE, &done));
	check_equal("four pages go", done, 4 * PAGE);
}

static void memory_of_the_device(struct session *s)
{
	bool container = !strcmp(mode->path, "/dev/vfio/vfio");
	uint64_t done;
	char *bar = mmap(NULL, MEMORY_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, s->device, MEMORY);

	check("the BAR is mapped", bar != MAP_FAILED);
	memcpy(bar + 0x100, "in the BAR", 10);
	put(s, MEMORY + 0x200, 0x1234, 4);
	check("both see one memory", *(uint32_t *)(bar + 0x200) == 0x1234);
	if (container) {
		check_ok("map a BAR", map(s, bar, 0x400000, MEMORY_SIZE));
		check_ok("unmap it", unmap(s, 0x400000, MEMORY_SIZE, &done));
	} else {
		check_errno("map a BAR", map(s, bar, 0x400000, MEMORY_SIZE), EFAULT);
		check_errno("map a page of it", map(s, bar + PAGE, 0x400000, PAGE), EFAULT);
	}
	munmap(bar, MEMORY_SIZE);
}

static int set_irqs(int device, uint32_t flags, uint32_t start, uint32_t count, const int *fds)
{
	char buffer[sizeof(struct vfio_irq_set) + 16 * sizeof(int)] = "";
	struct vfio_irq_set *set = (struct vfio_irq_set *)buffer;

	set->argsz = sizeof(*set) + (fds ? count * sizeof(int) : 0);
	set->flags = flags | VFIO_IRQ_SET_ACTION_TRIGGER;
	set->index = VFIO_PCI_MSIX_IRQ_INDEX;
	set->start = start;
	set->count = count;
	if (fds)
		memcpy(set->data, fds, count * sizeof(int));
	return ioctl(device, VFIO_DEVICE_SET_IRQS, set);
}

static void interrupts(struct session *s)
{
	struct vfio_irq_info info = { .argsz = sizeof(info), .index = VFIO_PCI_MSIX_IRQ_INDEX };
	uint64_t count;
	int fds[16];

	check_ok("IRQ_INFO", ioctl(s->device, VFIO_DEVICE_GET_IRQ_INFO, &info));
	check("there is MSI-X", info.count > 0 && info.count <= 16);
	for (uint32_t n = 0; n < info.count; n++)
		fds[n] = eventfd(0, EFD_NONBLOCK);
	check_ok("enable", set_irqs(s->device, VFIO_IRQ_SET_DATA_EVENTFD, 0, info.count, fds));
	for (uint32_t n = 0; n < info.count; n++) {
		must("trigger", set_irqs(s->device, VFIO_IRQ_SET_DATA_NONE, n, 1, NULL) == 0);
		must("eventfd", read(fds[n], &count, 8) == 8 && count == 1);
	}
	check_ok("disable", set_irqs(s->device, VFIO_IRQ_SET_DATA_NONE, 0, 0, NULL));
	for (uint32_t n = 0; n < info.count; n++)
		close(fds[n]);
}

static void in_a_child(struct session *s, char *shared)
{
	int status = -1;
	pid_t child = fork();

	if (child == 0) {
		uint32_t id = get(s, CONFIG);
		uint64_t done;
		bool ok = (id & 0xffff) == 0x1234 && map(s, shared, 0x700000, PAGE) == 0;
		ok = ok && transfer(s, 0x700000, 0, 16, TO_RAM) == 0;
		ok = ok && unmap(s, 0x700000, PAGE, &done) == 0;
		_exit(ok ? 0 : 1);
	}
	must("waitpid", waitpid(child, &status, 0) == child);
	check_equal("a child uses the descriptors", status, 0);
	check("and the device wrote to its memory", memcmp(shared, "from the program", 16) == 0);
}

/* The device's own node: what it is, and what a second file of it may do. */
static void own_node(struct session *s)
{
	char path[256], text[32] = "", link[64] = "";
	unsigned int major_number, minor_number;
	struct detach_pt detach = { .argsz = sizeof(detach) };
	struct stat about;
	struct session other = *s;
	char *bar;
	int fd;

	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/vfio-dev/%s/dev", address, s->node);
	fd = open(path, O_RDONLY);
	check("its number is in sysfs", fd >= 0 && read(fd, text, sizeof(text) - 1) > 0);
	close(fd);
	must("MAJOR:MINOR", sscanf(text, "%u:%u", &major_number, &minor_number) == 2);
	check_ok("fstat", fstat(s->device, &about));
	check("fstat says the same", S_ISCHR(about.st_mode) &&
	      about.st_rdev == makedev(major_number, minor_number));
	snprintf(path, sizeof(path), "/proc/self/fd/%d", s->device);
	check("readlink", readlink(path, link, sizeof(link) - 1) > 0 && strstr(link, s->node));

	check_errno("the group is busy", open_group(), EBUSY);
	other.device = open_node(&other);
	check("a second file", other.device >= 0);
	check_errno("it cannot be bound", bind_device(&other, other.device), EINVAL);
	check_errno("or mapped", mmap(NULL, PAGE, PROT_READ, MAP_SHARED, other.device, MEMORY), EINVAL);
	check_errno("or read", pread(other.device, text, 4, CONFIG), EINVAL);
	check_ok("the first one detaches", ioctl(s->device, DETACH_IOMMUFD_PT, &detach));
	check_ok("and closes", close(s->device));
	check_ok("now the second one is bound", bind_device(&other, other.device));
	check_ok("and attached", attach(&other, other.ioas));
	bar = mmap(NULL, PAGE, PROT_READ, MAP_SHARED, other.device, MEMORY);
	check("and mapped", bar != MAP_FAILED);
	munmap(bar, PAGE);
	s->device = other.device;
}

/* A memory file: the device reaches it without anybody having it mapped. */
static void file(struct session *s)
{
	struct ioas_map_file argument = {
		.size = sizeof(argument), .ioas_id = s->ioas, .start = PAGE, .length = PAGE,
		.flags = MAP_WRITEABLE | MAP_READABLE,
	};
	char text[16] = "";
	uint64_t done;
	int fd = memfd_create("memory", 0);

	must("ftruncate", ftruncate(fd, 2 * PAGE) == 0);
	argument.fd = fd;
	check_ok("map a file where there is room", ioctl(s->iommu, IOAS_MAP_FILE, &argument));
	check_equal("room is behind the first page", argument.iova, PAGE);
	check_equal("the device writes to it", transfer(s, argument.iova, 0, 16, TO_RAM), 0);
	check("the file has it", pread(fd, text, 16, PAGE) == 16 && !strcmp(text, "seen by both"));
	argument.start = 2 * PAGE;
	check_errno("beyond the end", ioctl(s->iommu, IOAS_MAP_FILE, &argument), EINVAL);
	argument.start = 0;
	argument.fd = s->device;
	check_errno("a device is no memory", ioctl(s->iommu, IOAS_MAP_FILE, &argument), EINVAL);
	close(fd);
	check_ok("unmap the file", unmap(s, PAGE, PAGE, &done));
}

/* A copy of the descriptor from before the first mapping: both are one file. */
static void copies(struct session *s)
{
	int copy = dup(s->device);
	char *one = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, s->device, MEMORY);
	char *two = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, copy, MEMORY);

	check("both are mapped", one != MAP_FAILED && two != MAP_FAILED);
	strcpy(one, "seen by both");
	check("to one memory", strcmp(two, "seen by both") == 0);
	check_ok("one is closed", close(s->device));
	s->device = copy;
	check_equal("the other works", get(s, CONFIG) & 0xffff, 0x1234);
	munmap(one, PAGE);
	munmap(two, PAGE);
}

static void leave_everything_open(void)
{
	pid_t child = fork();
	int status = -1;

	if (child == 0) {
		struct session s;
		char *memory = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

		set_up(&s);
		must("map", map(&s, memory, 0x100000, PAGE) == 0);
		must("mmap", mmap(NULL, PAGE, PROT_READ, MAP_SHARED, s.device, MEMORY) != MAP_FAILED);
		_exit(0);
	}
	must("waitpid", waitpid(child, &status, 0) == child);
	check_equal("a process leaves everything open", status, 0);
}

int main(int argc, char **argv)
{
	struct session s;
	char *memory, *shared;

	must("arguments", argc == 3);
	address = argv[2];
	for (size_t n = 0; n < sizeof(modes) / sizeof(*modes); n++)
		if (strcmp(modes[n].name, argv[1]) == 0)
			mode = &modes[n];
	must("a mode", mode != NULL);
	memory = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	shared = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	must("mmap", memory != MAP_FAILED && shared != MAP_FAILED);

	leave_everything_open();
	set_up(&s);
	check("the next one has the device", s.device >= 0);
	mappings(&s, memory);
	parts(&s, memory);
	in_a_child(&s, shared);
	copies(&s);
	memory_of_the_device(&s);
	interrupts(&s);
	if (!mode->type) {
		file(&s);
		own_node(&s);
	}
	tear_down(&s);
	set_up(&s);
	check("and again", s.device >= 0);
	tear_down(&s);
	return 0;
}
