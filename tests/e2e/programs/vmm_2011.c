/* SPDX-License-Identifier: MIT */
/*
 * What a virtual machine monitor of 2011 does with two devices of two groups,
 * call by call: it looks at each device, closes it, merges its group with what
 * it has, opens it again. Its argument structs carry junk where the kernel had
 * no business to look. It ends without closing anything.
 */
#include "session.h"

#include <sys/stat.h>

#define RAM_SIZE	(64 * PAGE)
#define RAM_BASE	0x0u
#define RAM_HIGH	0x800000u
#define JUNK		0xdeadbeefdeadbeefull

struct device {
	const char *address;
	int group;
	int fd;
	struct vfio_region_info regions[VFIO_PCI_NUM_REGIONS];
	void *bars[VFIO_PCI_ROM_REGION_INDEX];	/* where they are mapped */
	int intx;
	int unmask;
};

static char named_buffer[128];

static const char *named(const struct device *d, const char *what)
{
	snprintf(named_buffer, sizeof(named_buffer), "%s: %s", d->address, what);
	return named_buffer;
}

/* The group's number: a plain file in the sysfs of 2011, the name a link leads to later */
static int group_number(const struct device *d)
{
	char path[128], text[256] = { 0 };
	struct stat about;
	int fd;

	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/", d->address);
	check_ok(named(d, "stat of its directory"), stat(path, &about));
	strcat(path, "iommu_group");
	need(lstat(path, &about));
	if (S_ISLNK(about.st_mode)) {
		need(readlink(path, text, sizeof(text) - 1));
		pass(named(d, "iommu_group is a link, as in later kernels"));
		return atoi(strrchr(text, '/') + 1);
	}
	fd = need(open(path, O_RDONLY));
	check(named(d, "iommu_group is a file"), read(fd, text, sizeof(text) - 1) > 0);
	need(close(fd));
	return atoi(text);
}

static void look_at(struct device *d)
{
	__u64 flags = 0;
	int count = 0;

	d->fd = check_ok(named(d, "GET_DEVICE_FD"),
			 ioctl(d->group, VFIO_GROUP_GET_DEVICE_FD, d->address));
	need(ioctl(d->fd, VFIO_DEVICE_GET_FLAGS, &flags));
	check(named(d, "is a PCI device"), flags & VFIO_DEVICE_FLAGS_PCI);
	need(ioctl(d->fd, VFIO_DEVICE_GET_NUM_REGIONS, &count));
	check(named(d, "regions"), count >= VFIO_PCI_NUM_REGIONS);
	need(ioctl(d->fd, VFIO_DEVICE_GET_NUM_IRQS, &count));
	check(named(d, "interrupts"), count >= VFIO_PCI_NUM_IRQS);
	for (unsigned int i = 0; i < VFIO_PCI_NUM_REGIONS; i++) {
		memset(&d->regions[i], 0xee, sizeof(d->regions[i]));
		d->regions[i].len = sizeof(d->regions[i]);
		d->regions[i].index = i;
		need(ioctl(d->fd, VFIO_DEVICE_GET_REGION_INFO, &d->regions[i]));
		if (d->regions[i].len != 40 || d->regions[i].index != i || d->regions[i].phys)
			die("%s: region %u: len, index or phys is wrong", d->address, i);
	}
	pass(named(d, "REGION_INFO"));
}

static int open_checked(const struct device *d)
{
	char text[16];
	int group;

	snprintf(text, sizeof(text), "%d", group_number(d));
	group = need(open_group(text));
	check_equal(named(d, "group is viable and free"), group_flags(group),
		    VFIO_GROUP_FLAGS_VIABLE);
	return group;
}

/* All of RAM, with what an uninitialised struct holds in len */
static int map_ram(int iommu, const char *vaddr, uint64_t at, uint64_t size)
{
	struct vfio_dma_map map = {
		.len = JUNK,
		.vaddr = (uintptr_t)vaddr,
		.dmaaddr = at,
		.size = size,
		.flags = VFIO_DMA_MAP_FLAG_WRITE,
	};

	return ioctl(iommu, VFIO_IOMMU_MAP_DMA, &map);
}

static int unmap_ram(int iommu, uint64_t at, uint64_t size)
{
	struct vfio_dma_map map = {
		.len = JUNK,
		.vaddr = 0x1234567,
		.dmaaddr = at,
		.size = size,
		.flags = JUNK,
	};

	return ioctl(iommu, VFIO_IOMMU_UNMAP_DMA, &map);
}

static void realize(struct device *d)
{
	unsigned char config[256];
	off_t at = (off_t)d->regions[VFIO_PCI_CONFIG_REGION_INDEX].offset;
	off_t bar0 = (off_t)d->regions[0].offset;
	uint32_t word, sized;
	uint16_t command;
	int event;

	check_equal(named(d, "256 bytes of configuration"), need(pread(d->fd, config, 256, at)), 256);
	check(named(d, "ids"), config[0] == 0x34 && config[1] == 0x12 && config[2] == 0xe8);
	check(named(d, "it has an interrupt pin"), config[0x3d] == 1);
	check(named(d, "it has capabilities"), config[6] & 0x10);
	/* size a BAR the way firmware does */
	need(pread(d->fd, &word, 4, at + 0x10));
	sized = ~0u;
	need(pwrite(d->fd, &sized, 4, at + 0x10));
	sized = get32(d->fd, at + 0x10);
	need(pwrite(d->fd, &word, 4, at + 0x10));
	check_equal(named(d, "BAR 0 is sized by writing ones"), ~(sized & ~0xfu) + 1,
		    d->regions[0].size);
	check_equal(named(d, "and takes its address back"), get32(d->fd, at + 0x10), word);
	for (int i = 0; i < VFIO_PCI_ROM_REGION_INDEX; i++) {
		void *bar;

		if (!(d->regions[i].flags & VFIO_REGION_INFO_FLAG_MMAP))
			continue;
		bar = mmap(NULL, d->regions[i].size, PROT_READ | PROT_WRITE, MAP_SHARED, d->fd,
			   (off_t)d->regions[i].offset);
		check(named(d, "mmap of a BAR"), bar != MAP_FAILED);
		d->bars[i] = bar;
	}
	command = 0x6;
	need(pwrite(d->fd, &command, 2, at + 4));

	event = need(eventfd(0, EFD_NONBLOCK));
	d->intx = event;
	d->unmask = need(eventfd(0, EFD_NONBLOCK));
	check_ok(named(d, "INTx"), set_irq(d->fd, VFIO_PCI_INTX_IRQ_INDEX, event));
	check_ok(named(d, "UNMASK_IRQ"), ioctl(d->fd, VFIO_DEVICE_UNMASK_IRQ, (int[]){ 0 }));
	check_ok(named(d, "unmask eventfd"), ioctl(d->fd, VFIO_DEVICE_SET_UNMASK_IRQ_EVENTFD,
						   (int[]){ 0, d->unmask }));
	if (ioctl(d->fd, VFIO_DEVICE_RESET) == -1 && errno != EINVAL)
		die("%s: RESET: %s", d->address, strerror(errno));
	need(pwrite(d->fd, &command, 2, at + 4));
	put32(d->fd, bar0 + EDU_IRQ_RAISE, 1);
	check_equal(named(d, "an interrupt"), event_count(event, 5000), 1);
	/* end of interrupt, by ioctl: still asserted, so it comes again */
	need(ioctl(d->fd, VFIO_DEVICE_UNMASK_IRQ, (int[]){ 0 }));
	check_equal(named(d, "unmasked while asserted"), event_count(event, 5000), 1);
	/* by eventfd, which is served when the other side gets to it */
	need(eventfd_write(d->unmask, 1));
	check_equal(named(d, "unmasked by eventfd"), event_count(event, 5000), 1);
	put32(d->fd, bar0 + EDU_IRQ_ACK, 1);
	need(ioctl(d->fd, VFIO_DEVICE_UNMASK_IRQ, (int[]){ 0 }));
	check_equal(named(d, "quiet after the acknowledge"), event_count(event, 30), 0);
}

/* The guest's driver has the device copy a page within RAM */
static void unmap_bars(struct device *d)
{
	for (int i = 0; i < VFIO_PCI_ROM_REGION_INDEX; i++) {
		if (d->bars[i])
			need(munmap(d->bars[i], d->regions[i].size));
		d->bars[i] = NULL;
	}
}

static void dma_works(const struct device *d, unsigned char *ram)
{
	struct session s = { .device = d->fd, .bar0 = (off_t)d->regions[0].offset };

	for (unsigned int i = 0; i < PAGE; i++)
		ram[i] = (unsigned char)(i * 7 + (i >> 8) + (unsigned char)d->fd);
	memset(ram + 8 * PAGE, 0, PAGE);
	dma_run(&s, RAM_BASE, EDU_BUFFER, PAGE, 0);
	dma_run(&s, EDU_BUFFER, RAM_HIGH + 8 * PAGE, PAGE, EDU_DMA_TO_MEMORY);
	check(named(d, "DMA through the shared mappings"), !memcmp(ram, ram + 8 * PAGE, PAGE));
}

static void run(void)
{
	struct device a = { .address = DEVICE_A }, b = { .address = DEVICE_B };
	unsigned char *ram = pages(RAM_SIZE / PAGE);
	int iommu, other;
	__u64 flags = 0;

	/* the first device: its group is the base of what follows */
	a.group = open_checked(&a);
	look_at(&a);
	need(close(a.fd));
	check_equal("closing the device gives up the group", group_flags(a.group),
		    VFIO_GROUP_FLAGS_VIABLE);
	look_at(&a);
	iommu = check_ok("GET_IOMMU_FD", ioctl(a.group, VFIO_GROUP_GET_IOMMU_FD));
	need(ioctl(iommu, VFIO_IOMMU_GET_FLAGS, &flags));
	check("maps any address", flags & VFIO_IOMMU_FLAGS_MAP_ANY);
	check_ok("UNMAP of what was never mapped", unmap_ram(iommu, RAM_BASE, RAM_SIZE));
	check_ok("MAP of RAM", map_ram(iommu, (char *)ram, RAM_BASE, RAM_SIZE));
	check_ok("MAP of the same RAM elsewhere", map_ram(iommu, (char *)ram, RAM_HIGH, RAM_SIZE));
	check_errno("MAP over it", map_ram(iommu, (char *)ram, RAM_BASE + PAGE, PAGE), EBUSY);
	/* so it remaps single pages */
	check_ok("UNMAP of one page", unmap_ram(iommu, RAM_BASE + PAGE, PAGE));
	check_ok("MAP of one page", map_ram(iommu, (char *)ram + PAGE, RAM_BASE + PAGE, PAGE));
	{
		/* a third device of the group, if the machine has one: its own memory as a DMA target */
		int third = ioctl(a.group, VFIO_GROUP_GET_DEVICE_FD, "0000:06:0d.2");

		for (unsigned int i = 0; third >= 0 && i < 6; i++) {
			struct vfio_region_info r = { .len = sizeof(r), .index = i };
			void *bar;

			check_ok("REGION_INFO", ioctl(third, VFIO_DEVICE_GET_REGION_INFO, &r));
			if (!(r.flags & VFIO_REGION_INFO_FLAG_MMAP))
				continue;
			bar = mmap(NULL, r.size, PROT_READ | PROT_WRITE, MAP_SHARED, third,
				   (off_t)r.offset);
			check("mmap of the device's own memory", bar != MAP_FAILED);
			check_ok("MAP of the device's own memory",
				 map_ram(iommu, bar, 0x4000000, r.size));
		}
		if (third >= 0)
			need(close(third));
	}
	realize(&a);
	dma_works(&a, ram);

	/* the second device joins */
	b.group = open_checked(&b);
	look_at(&b);
	other = b.group;
	check_errno("MERGE while its device is open", ioctl(a.group, VFIO_GROUP_MERGE, &other),
		    EINVAL);
	need(close(b.fd));
	check_ok("MERGE after it was closed", ioctl(a.group, VFIO_GROUP_MERGE, &other));
	look_at(&b);
	realize(&b);
	dma_works(&b, ram);
	dma_works(&a, ram);

	/* unplug it, plug it again */
	check_ok("unplug: INTx off", set_irq(b.fd, VFIO_PCI_INTX_IRQ_INDEX, -1));
	need(ioctl(b.fd, VFIO_DEVICE_SET_UNMASK_IRQ_EVENTFD, (int[]){ 0, -1 }));
	check_errno("UNMERGE while its device is open", ioctl(a.group, VFIO_GROUP_UNMERGE, &other),
		    EBUSY);
	need(close(b.fd));
	check_errno("UNMERGE while its BAR is mapped", ioctl(a.group, VFIO_GROUP_UNMERGE, &other),
		    EBUSY);
	unmap_bars(&b);
	check_ok("UNMERGE", ioctl(a.group, VFIO_GROUP_UNMERGE, &other));
	check_equal("the unmerged group is free", group_flags(b.group), VFIO_GROUP_FLAGS_VIABLE);
	need(close(b.group));
	dma_works(&a, ram);
	b.group = open_checked(&b);
	look_at(&b);
	need(close(b.fd));
	other = b.group;
	check_ok("MERGE again", ioctl(a.group, VFIO_GROUP_MERGE, &other));
	look_at(&b);
	realize(&b);
	dma_works(&b, ram);
}

int main(void)
{
	pid_t pid = need(fork());

	if (!pid) {
		run();
		_exit(0);	/* closes nothing */
	}
	wait_ok("the monitor ended", pid);
	check_equal("its death released the first group", flags_of(GROUP_A),
		    VFIO_GROUP_FLAGS_VIABLE);
	check_equal("and the second", flags_of(GROUP_B), VFIO_GROUP_FLAGS_VIABLE);
	run();
	pass("a second monitor, in this process");
	return 0;
}
