/* SPDX-License-Identifier: MIT */
/*
 * A physical function and its virtual functions in the hands of programs of
 * mainline: sriov_numvfs makes and removes them, the VF token decides who may
 * open them. Arguments: the address of an exerciser without virtual functions.
 */
#include "check.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/pci_regs.h>
#include <linux/vfio.h>
#include <stdint.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#define FIRST	"52ac9bff-3a88-4fbd-901a-0d767c3b6c97"
#define SECOND	"88594674-90a0-47a9-aea8-9d9b352ac08a"
#define REGION(index) ((off_t)(index) << 40)

static const unsigned char second[16] = {
	0x88, 0x59, 0x46, 0x74, 0x90, 0xa0, 0x47, 0xa9,
	0xae, 0xa8, 0x9d, 0x9b, 0x35, 0x2a, 0xc0, 0x8a,
};

static const char *pf;
static char vf[64];
static int container;

/* One file of a device: its text, or what writing gives */
static void file_of(char *path, size_t size, const char *device, const char *name)
{
	snprintf(path, size, "/sys/bus/pci/devices/%s/%s", device, name);
}

static long number_in(const char *device, const char *name)
{
	char path[128], text[64] = "";
	int fd;

	file_of(path, sizeof(path), device, name);
	fd = need(open(path, O_RDONLY));
	need(read(fd, text, sizeof(text) - 1));
	need(close(fd));
	return strtol(text, NULL, 0);
}

static int write_to(const char *device, const char *name, const char *text)
{
	char path[128];
	int fd, result, error;

	file_of(path, sizeof(path), device, name);
	fd = need(open(path, O_WRONLY));
	result = write(fd, text, strlen(text));
	error = errno;
	need(close(fd));
	errno = error;
	return result;
}

static const char *link_of(const char *device, const char *name)
{
	static char target[256];
	char path[128];
	int length;

	file_of(path, sizeof(path), device, name);
	length = readlink(path, target, sizeof(target) - 1);
	if (length < 0)
		return NULL;
	target[length] = 0;
	return strrchr(target, '/') ? strrchr(target, '/') + 1 : target;
}

static int open_group(const char *device)
{
	char path[64];

	snprintf(path, sizeof(path), "/dev/vfio/%s", link_of(device, "iommu_group"));
	return need(open(path, O_RDWR));
}

/* A group that is in the container, which has its IOMMU then */
static int join(const char *device, int type)
{
	int group = open_group(device);

	need(ioctl(group, VFIO_GROUP_SET_CONTAINER, &container));
	ioctl(container, VFIO_SET_IOMMU, type);	/* again for the second group: refused */
	return group;
}

static int open_device(int group, const char *device, const char *token)
{
	char text[128];

	snprintf(text, sizeof(text), token ? "%s vf_token=%s" : "%s", device, token);
	return ioctl(group, VFIO_GROUP_GET_DEVICE_FD, text);
}

static int feature(int device, uint32_t flags, size_t size)
{
	char data[8 + sizeof(second)];
	struct vfio_device_feature *about = (void *)data;

	about->argsz = 8 + size;
	about->flags = flags | VFIO_DEVICE_FEATURE_PCI_VF_TOKEN;
	memcpy(about->data, second, sizeof(second));
	return ioctl(device, VFIO_DEVICE_FEATURE, about);
}

/* linux/vfio.h of Linux 6.17 */
struct bind {
	uint32_t argsz, flags;
	int32_t iommufd;
	uint32_t out_devid;
	uint64_t token_uuid_ptr;
};
#define BIND_IOMMUFD	_IO(VFIO_TYPE, VFIO_BASE + 18)
#define BIND_FLAG_TOKEN	1

static void parse(const char *text, unsigned char *uuid)
{
	for (int i = 0; i < 16; i++, text += 2) {
		text += *text == '-';
		sscanf(text, "%2hhx", uuid + i);
	}
}

/* The device's own node, bound to the iommufd `container` */
static int open_alone(const char *device, const char *token)
{
	unsigned char uuid[16];
	struct bind bind = { sizeof(bind), token ? BIND_FLAG_TOKEN : 0, container, 0, (uintptr_t)uuid };
	char path[128], node[300];
	struct dirent *entry;
	DIR *folder;
	int fd, error;

	file_of(path, sizeof(path), device, "vfio-dev");
	folder = opendir(path);
	if (!folder)
		die("%s: %s", path, strerror(errno));
	while ((entry = readdir(folder)) && strncmp(entry->d_name, "vfio", 4))
		;
	if (!entry)
		die("%s is empty", path);
	snprintf(node, sizeof(node), "/dev/vfio/devices/%s", entry->d_name);
	closedir(folder);
	fd = need(open(node, O_RDWR));
	if (token)
		parse(token, uuid);
	if (!ioctl(fd, BIND_IOMMUFD, &bind))
		return fd;
	error = errno;
	need(close(fd));
	errno = error;
	return -1;
}

/* The five ways to DMA; without a type there is no group */
static const struct mode {
	const char *path;
	int type;
} modes[] = {
	{ "/dev/vfio/vfio", VFIO_TYPE1_IOMMU },
	{ "/dev/vfio/vfio", VFIO_TYPE1v2_IOMMU },
	{ "/dev/iommu", VFIO_TYPE1_IOMMU },
	{ "/dev/iommu", VFIO_TYPE1v2_IOMMU },
	{ "/dev/iommu", 0 },
};

static int open_in(const struct mode *mode, const char *device, const char *token, int *group)
{
	*group = mode->type ? join(device, mode->type) : -1;
	return mode->type ? open_device(*group, device, token) : open_alone(device, token);
}

/* The three ways in which a token gets to the PF, and whoever opens the VF says `token` */
enum way { MATCH, CLOSE_EARLY, OVERRIDE };

static void open_with(enum way way, const struct mode *mode, const char *token)
{
	const char *wanted = way == OVERRIDE ? SECOND : FIRST;
	int pf_group, pf_device, vf_group, vf_device;
	struct { uint32_t size, flags, id; } ioas = { .size = 12 };
	pid_t child = need(fork());

	if (child) {
		wait_ok("tokens", child);
		return;
	}
	container = need(open(mode->path, O_RDWR));
	if (!mode->type)
		need(ioctl(container, _IO(VFIO_TYPE, 0x81), &ioas));
	pf_device = need(open_in(mode, pf, FIRST, &pf_group));
	if (way == OVERRIDE)
		need(feature(pf_device, VFIO_DEVICE_FEATURE_SET, 16));
	if (way == CLOSE_EARLY) {
		need(close(pf_device));
		if (mode->type)
			need(close(pf_group));
	}
	if (token && !strcmp(token, wanted)) {
		vf_device = check_ok("the token opens", open_in(mode, vf, token, &vf_group));
		need(close(vf_device));
	} else {
		check_errno("no other token does", open_in(mode, vf, token, &vf_group), EACCES);
	}
	_exit(0);
}

static void tokens_that_are_none(void)
{
	static const char *const bad[] = {
		" vf_token=", " vf_token=52ac9bff", " vf_token=" FIRST "x", " vf_token=" FIRST " vf_token=" FIRST,
		" vf_token=52ac9bff-3a88-4fbd-901a-0d767c3b6c9g", " other",
	};
	int group = join(vf, VFIO_TYPE1_IOMMU);
	char text[160];

	for (unsigned int i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
		snprintf(text, sizeof(text), "%s%s", vf, bad[i]);
		check_errno(bad[i], ioctl(group, VFIO_GROUP_GET_DEVICE_FD, text), EINVAL);
	}
	need(close(group));
}

/* While a VF is open nobody gets the PF without its token */
static void shared_by_two(void)
{
	int pf_group = join(pf, VFIO_TYPE1v2_IOMMU), pf_device, vf_group, vf_device;

	pf_device = check_ok("a token for the PF", open_device(pf_group, pf, FIRST));
	vf_group = join(vf, VFIO_TYPE1v2_IOMMU);
	vf_device = check_ok("the VF with it", open_device(vf_group, vf, FIRST));
	check_errno("VF: not its to set", feature(vf_device, VFIO_DEVICE_FEATURE_SET, 16), ENOTTY);
	check_errno("PF: cannot be got", feature(pf_device, VFIO_DEVICE_FEATURE_GET, 16), EINVAL);
	check_errno("PF: too short", feature(pf_device, VFIO_DEVICE_FEATURE_SET, 15), EINVAL);
	check_ok("PF: can be set", feature(pf_device, VFIO_DEVICE_FEATURE_SET | VFIO_DEVICE_FEATURE_PROBE, 0));
	need(close(pf_device));
	check_errno("PF without it", open_device(pf_group, pf, NULL), EACCES);
	check_errno("PF with another", open_device(pf_group, pf, SECOND), EACCES);
	pf_device = check_ok("PF with it", open_device(pf_group, pf, FIRST));
	need(close(vf_device));
	need(close(pf_device));
	pf_device = check_ok("PF without, once no VF is open", open_device(pf_group, pf, NULL));
	need(close(pf_device));
	need(close(vf_group));
	need(close(pf_group));
}

static uint32_t config(int device, int offset, int size)
{
	uint32_t value = 0;

	if (pread(device, &value, size, REGION(VFIO_PCI_CONFIG_REGION_INDEX) + offset) != size)
		die("config %#x: %s", offset, strerror(errno));
	return value;
}

static void set_config(int device, int offset, uint32_t value, int size)
{
	if (pwrite(device, &value, size, REGION(VFIO_PCI_CONFIG_REGION_INDEX) + offset) != size)
		die("config %#x: %s", offset, strerror(errno));
}

static void set(int device, int offset, uint64_t value, int size)
{
	if (pwrite(device, &value, size, offset) != size)
		die("register %#x: %s", offset, strerror(errno));
}

static uint32_t get(int device, int offset)
{
	uint32_t value;

	if (pread(device, &value, 4, offset) != 4)
		die("register %#x: %s", offset, strerror(errno));
	return value;
}

/* A virtual function is a device: ids, regions, a message, memory */
static void use(void)
{
	int pf_group = join(pf, VFIO_TYPE1v2_IOMMU), pf_device = need(open_device(pf_group, pf, FIRST));
	int group = join(vf, VFIO_TYPE1v2_IOMMU), device = need(open_device(group, vf, FIRST));
	struct vfio_irq_info irq = { .argsz = sizeof(irq), .index = VFIO_PCI_INTX_IRQ_INDEX };
	struct { struct vfio_irq_set set; int32_t fd; } message = {
		{ sizeof(message), VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER,
		  VFIO_PCI_MSIX_IRQ_INDEX, 0, 1 }, need(eventfd(0, 0)),
	};
	char *memory = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	struct vfio_iommu_type1_dma_map map = {
		.argsz = sizeof(map), .flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
		.vaddr = (uintptr_t)memory, .iova = 0x100000, .size = 8192,
	};
	uint64_t told;

	check_equal("vendor", config(device, PCI_VENDOR_ID, 2), 0x1234);
	check_equal("device", config(device, PCI_DEVICE_ID, 2), 0x0e8f);
	check_equal("sysfs says so too", number_in(vf, "device"), 0x0e8f);
	check_equal("pin", config(device, PCI_INTERRUPT_PIN, 1), 0);
	check_ok("INTx", ioctl(device, VFIO_DEVICE_GET_IRQ_INFO, &irq));
	check_equal("there is none", irq.count, 0);
	check_equal("decoding is on", config(device, PCI_COMMAND, 2) & PCI_COMMAND_MEMORY, PCI_COMMAND_MEMORY);
	set_config(device, PCI_COMMAND, 0, 2);
	check_equal("as far as one can see", config(device, PCI_COMMAND, 2) & PCI_COMMAND_MEMORY, 0);
	check_equal("the registers answer anyway", get(device, 0), 0x52455845);
	set_config(device, PCI_BASE_ADDRESS_0, 0xffffffff, 4);
	check_equal("BAR 0 has its size", config(device, PCI_BASE_ADDRESS_0, 4), 0xfffff000);

	set_config(device, PCI_COMMAND, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER, 2);
	need(ioctl(container, VFIO_IOMMU_MAP_DMA, &map));
	need(ioctl(device, VFIO_DEVICE_SET_IRQS, &message));
	strcpy(memory, "from a virtual function");
	set(device, 0x80, map.iova, 8);
	set(device, 0x88, 0, 8);
	set(device, 0x90, 64, 4);
	set(device, 0x94, 1 | 4, 4);
	need(read(message.fd, &told, 8));
	set(device, 0x80, map.iova + 4096, 8);
	set(device, 0x94, 1 | 2 | 4, 4);
	need(read(message.fd, &told, 8));
	check_equal("memory came and went", strcmp(memory + 4096, memory), 0);

	check_ok("a reset of the PF", ioctl(pf_device, VFIO_DEVICE_RESET));
	check_equal("leaves the VFs where they are", get(device, 0), 0x52455845);
	check_equal("as they are after one", get(device, 0x90), 0);
	check_ok("a reset of the VF", ioctl(device, VFIO_DEVICE_RESET));
	check_equal("the VF after it", get(device, 0), 0x52455845);
	need(close(device));
	need(close(group));
	need(close(pf_device));
	need(close(pf_group));
}

int main(int argc, char **argv)
{
	static const char *const tokens[] = { FIRST, SECOND, NULL };
	char too_many[32];

	if (argc != 2)
		die("usage: sriov ADDRESS");
	pf = argv[1];
	check("there can be VFs", number_in(pf, "sriov_totalvfs") >= 2);
	check_equal("and are none", number_in(pf, "sriov_numvfs"), 0);
	snprintf(too_many, sizeof(too_many), "%ld", number_in(pf, "sriov_totalvfs") + 1);
	check_errno("one too many", write_to(pf, "sriov_numvfs", too_many), ERANGE);
	check_errno("no number", write_to(pf, "sriov_numvfs", "many"), EINVAL);
	check("no link yet", !link_of(pf, "virtfn0"));
	check_ok("one", write_to(pf, "sriov_numvfs", "1\n"));
	check_ok("is one", write_to(pf, "sriov_numvfs", "1"));
	check_errno("and not two", write_to(pf, "sriov_numvfs", "2"), EBUSY);
	snprintf(vf, sizeof(vf), "%s", link_of(pf, "virtfn0"));
	check("the VF knows its PF", !strcmp(link_of(vf, "physfn"), pf));
	check("and has its driver", !strcmp(link_of(vf, "driver"), "vfio-pci"));

	for (int mode = 0; mode < 5; mode++)
		for (int way = MATCH; way <= OVERRIDE; way++)
			for (int token = 0; token < 3; token++)
				open_with(way, &modes[mode], tokens[token]);
	container = need(open("/dev/vfio/vfio", O_RDWR));
	tokens_that_are_none();
	shared_by_two();
	use();
	need(close(container));
	check_ok("none again", write_to(pf, "sriov_numvfs", "0"));
	check("the link is gone", !link_of(pf, "virtfn0"));
	check_ok("two", write_to(pf, "sriov_numvfs", "2"));
	check("another link", link_of(pf, "virtfn1"));
	check_ok("and none", write_to(pf, "sriov_numvfs", "0"));
	return 0;
}
