/* SPDX-License-Identifier: MIT */
/*
 * A driver for the first timer of examples/soc.toml, a platform device: what a
 * device tree says about its resources, registers, mapped memory, a level and
 * an edge interrupt, DMA, reset.
 *
 *   platform_timer GROUP DEVICE     "platform:3" "10010000.timer", or the node's path
 */
#include "session.h"

#define NODE	"/soc/timer@10010000"
#define LOG	NODE "/log@10020000"

#define ID		0x00
#define ID_VALUE	0x454d4954u
#define LOAD		0x04
#define VALUE		0x08
#define CONTROL		0x0c
#define RUN		0x01
#define PERIOD_IRQ	0x02
#define OVERFLOW_IRQ	0x04
#define TO_MEMORY	0x08
#define ONE_SHOT	0x10
#define STATUS		0x10
#define ELAPSED		0x1
#define OVERFLOW	0x2
#define PERIOD		0x14
#define EVENTS		0x18
#define ENTRY_ADDRESS	0x20

#define LEVEL	0
#define EDGE	1
#define IOVA	0x100000u

/* struct vfio_dtpath as 64-bit and as 32-bit programs have it, and its two requests */
struct dtpath_64 {
	__u32 len, index;
	__u64 flags, path;
} __attribute__((packed));

struct dtpath_32 {
	__u32 len, index;
	__u64 flags;
	__u32 path;
} __attribute__((packed));

#define GET_DTPATH_64	_IOWR(';', 117, struct dtpath_64)
#define GET_DTPATH_32	_IOWR(';', 117, struct dtpath_32)

static int device;

/* The path of a resource, asked for in three ways that must agree */
static const char *dt_path(__u64 flags, __u32 index)
{
	static char native[PAGE];
	/* below 4 GiB, where the short structure can point */
	char *low = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS
#ifdef MAP_32BIT
			 | MAP_32BIT
#endif
			 , -1, 0);
	struct vfio_dtpath own = { .len = sizeof(own), .index = index, .flags = flags,
				   .path = native };
	struct dtpath_64 wide = { sizeof(wide) + PAGE, index, flags, (uintptr_t)low };
	struct dtpath_32 narrow = { sizeof(narrow) + PAGE, index, flags,
				    (__u32)(uintptr_t)(low + PAGE) };

	if (low == MAP_FAILED)
		die("mmap: %s", strerror(errno));
	need(ioctl(device, VFIO_DEVICE_GET_DTPATH, &own));
	need(ioctl(device, GET_DTPATH_64, &wide));
	need(ioctl(device, GET_DTPATH_32, &narrow));
	if (strcmp(native, low) || strcmp(native, low + PAGE))
		die("three paths: %s, %s, %s", native, low, low + PAGE);
	need(munmap(low, 2 * PAGE));
	return native;
}

static void check_resource(const char *name, __u64 flags, __u32 index, const char *path,
			   __u32 type)
{
	struct vfio_dtindex at = { .len = sizeof(at), .index = index, .flags = flags,
				   .prop_type = 99, .prop_index = 99 };
	const char *found = dt_path(flags, index);

	if (strcmp(found, path))
		die("%s: path %s, not %s", name, found, path);
	need(ioctl(device, VFIO_DEVICE_GET_DTINDEX, &at));
	if (at.prop_type != type || at.prop_index != 0)
		die("%s: property %u, entry %u", name, at.prop_type, at.prop_index);
	pass(name);
}

static void device_tree(void)
{
	char path[sizeof(NODE)] = "untouched";
	struct vfio_dtpath at = { .len = sizeof(at) + sizeof(NODE) - 1, .path = path,
				  .flags = VFIO_DTPATH_FLAGS_REGION };
	struct vfio_dtindex index = { .len = sizeof(index), .index = 2,
				      .flags = VFIO_DTINDEX_FLAGS_IRQ };

	check_resource("region 0 stems from the node", VFIO_DTPATH_FLAGS_REGION, 0, NODE,
		       VFIO_DTINDEX_PROP_REG);
	check_resource("region 1 stems from the node below", VFIO_DTPATH_FLAGS_REGION, 1, LOG,
		       VFIO_DTINDEX_PROP_REG);
	check_resource("irq 0 stems from the node", VFIO_DTPATH_FLAGS_IRQ, 0, NODE,
		       VFIO_DTINDEX_PROP_INTERRUPTS);
	check_resource("irq 1 stems from the node below", VFIO_DTPATH_FLAGS_IRQ, 1, LOG,
		       VFIO_DTINDEX_PROP_INTERRUPTS);
	check_errno("a buffer that is a byte short", ioctl(device, VFIO_DEVICE_GET_DTPATH, &at),
		    ENOSPC);
	check_equal("len says what is needed", at.len, sizeof(at) + sizeof(NODE));
	check("nothing was written", !strcmp(path, "untouched"));
	check_ok("a buffer that is just enough", ioctl(device, VFIO_DEVICE_GET_DTPATH, &at));
	check("the path", !strcmp(path, NODE));
	at.flags = VFIO_DTPATH_FLAGS_REGION | VFIO_DTPATH_FLAGS_IRQ;
	check_errno("both flags", ioctl(device, VFIO_DEVICE_GET_DTPATH, &at), EINVAL);
	at.flags = VFIO_DTPATH_FLAGS_IRQ;
	at.path = NULL;
	check_errno("path NULL", ioctl(device, VFIO_DEVICE_GET_DTPATH, &at), EFAULT);
	at.len = sizeof(at) - 1;
	check_errno("len too small", ioctl(device, VFIO_DEVICE_GET_DTPATH, &at), EINVAL);
	check_errno("no such irq", ioctl(device, VFIO_DEVICE_GET_DTINDEX, &index), EINVAL);
}

static void regions(void)
{
	struct vfio_region_info info = { .len = sizeof(info) };
	char end[8];
	int count;

	need(ioctl(device, VFIO_DEVICE_GET_NUM_REGIONS, &count));
	check_equal("two regions", count, 2);
	need(ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &info));
	check_equal("registers have a page", info.size, PAGE);
	check_equal("registers cannot be mapped", info.flags, 0);
	info.index = 1;
	need(ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &info));
	check_equal("the log has a page", info.size, PAGE);
	check_equal("the log can be mapped", info.flags, VFIO_REGION_INFO_FLAG_MMAP);
	info.index = 2;
	check_errno("no third region", ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &info), EINVAL);
	check_equal("reads end at the end", pread(device, end, 8, PAGE - 4), 4);
	check_equal("and there is nothing behind", pread(device, end, 8, PAGE), 0);
	check_errno("nor farther on", pread(device, end, 8, PAGE + 1), EINVAL);
	check_equal("identification", get32(device, ID), ID_VALUE);
	put32(device, ID, 0);
	check_equal("cannot be changed", get32(device, ID), ID_VALUE);
}

static void irqs(void)
{
	struct vfio_irq_info info = { .len = sizeof(info) };
	int count;

	need(ioctl(device, VFIO_DEVICE_GET_NUM_IRQS, &count));
	check_equal("two irqs", count, 2);
	need(ioctl(device, VFIO_DEVICE_GET_IRQ_INFO, &info));
	check("irq 0 is one level interrupt",
	      info.count == 1 && info.flags == VFIO_IRQ_INFO_FLAG_LEVEL);
	info.index = 1;
	need(ioctl(device, VFIO_DEVICE_GET_IRQ_INFO, &info));
	check("irq 1 is one edge interrupt", info.count == 1 && info.flags == 0);
}

static void level_interrupt(int event)
{
	int index = LEVEL, edge = EDGE;
	int unmask = need(eventfd(0, 0));
	uint64_t one = 1;

	put32(device, PERIOD, 2000);
	put32(device, LOAD, 1000000);
	check_ok("eventfd of irq 0", set_irq(device, LEVEL, event));
	put32(device, CONTROL, RUN | PERIOD_IRQ);
	check_equal("a period has passed", event_count(event, 5000), 1);
	check_equal("masked, it fires once", event_count(event, 50), 0);
	check("status and value", (get32(device, STATUS) & ELAPSED) &&
	      get32(device, VALUE) < 1000000);
	need(ioctl(device, VFIO_DEVICE_UNMASK_IRQ, &index));
	check_equal("unmasked without acknowledging, it fires at once", event_count(event, 0), 1);

	put32(device, CONTROL, PERIOD_IRQ);
	put32(device, STATUS, ELAPSED);
	need(ioctl(device, VFIO_DEVICE_UNMASK_IRQ, &index));
	check_equal("acknowledged, it is silent", event_count(event, 20), 0);

	check_ok("unmask eventfd", ioctl(device, VFIO_DEVICE_SET_UNMASK_IRQ_EVENTFD,
					 ((int[]){ LEVEL, unmask })));
	check_errno("a second one", ioctl(device, VFIO_DEVICE_SET_UNMASK_IRQ_EVENTFD,
					  ((int[]){ LEVEL, unmask })), EBUSY);
	put32(device, CONTROL, RUN | PERIOD_IRQ);
	check_equal("the next period", event_count(event, 5000), 1);
	check_equal("masked again", event_count(event, 20), 0);
	need(write(unmask, &one, 8));
	check_equal("unmasked by eventfd", event_count(event, 5000), 1);
	check_ok("end of the unmask eventfd", ioctl(device, VFIO_DEVICE_SET_UNMASK_IRQ_EVENTFD,
						    ((int[]){ LEVEL, -1 })));
	check_errno("an edge has no mask", ioctl(device, VFIO_DEVICE_UNMASK_IRQ, &edge), EINVAL);
	put32(device, CONTROL, 0);
	put32(device, STATUS, ELAPSED);
	check_ok("end of irq 0", set_irq(device, LEVEL, -1));
	need(close(unmask));
}

static void edge_interrupt(int event)
{
	check_ok("eventfd of irq 1", set_irq(device, EDGE, event));
	put32(device, LOAD, 0);
	put32(device, PERIOD, 1000);
	put32(device, CONTROL, RUN | OVERFLOW_IRQ);
	for (int count = 0; count < 3; count++)	/* nobody unmasks it */
		if (!event_count(event, 5000))
			die("edge %d does not come", count);
	pass("edges do not mask themselves");
	put32(device, CONTROL, 0);
	check("overflow", get32(device, STATUS) & OVERFLOW);
	put32(device, STATUS, OVERFLOW | ELAPSED);
	check_equal("acknowledged", get32(device, STATUS), 0);
}

static void mapped_log(int iommu)
{
	off_t at = region_offset(device, 1);
	volatile uint32_t *log = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, device, at);
	char *memory = pages(1);
	uint32_t entry[4], events = get32(device, EVENTS);

	if (log == MAP_FAILED)
		die("mmap of region 1: %s", strerror(errno));
	check_equal("the log counts events", log[0], events);
	check_equal("an entry has its number", log[4 + (events - 1) % 255 * 4 + 3], events);
	log[1023] = 0x12345678;
	check_equal("memory written is memory read", get32(device, at + PAGE - 4), 0x12345678);

	check_ok("map memory", dma_map(iommu, memory, IOVA, PAGE));
	put32(device, ENTRY_ADDRESS, IOVA + 64);
	put32(device, ENTRY_ADDRESS + 4, 0);
	put32(device, LOAD, 0);
	put32(device, CONTROL, RUN | TO_MEMORY | ONE_SHOT);
	for (int waited = 0; !*(volatile uint32_t *)(memory + 64 + 12); waited++) {
		if (waited == 5000)
			die("no entry comes");
		usleep(1000);
	}
	memcpy(entry, memory + 64, 16);
	check_equal("the entry in memory", entry[3], events + 1);
	check_equal("says what happened", entry[2], ELAPSED | OVERFLOW);
	check("is that of the log",
	      !memcmp(entry, (const char *)log + 16 + events % 255 * 16, 16));
	check_equal("one shot: it stands", get32(device, CONTROL), TO_MEMORY | ONE_SHOT);

	check_ok("reset", ioctl(device, VFIO_DEVICE_RESET));
	check_equal("registers are as new", get32(device, CONTROL), 0);
	check_equal("period is the option's", get32(device, PERIOD), 1000);
	check("the log is empty", log[0] == 0 && log[1023] == 0);
	need(munmap((void *)log, PAGE));
}

int main(int argc, char **argv)
{
	int group, iommu, event = need(eventfd(0, 0));
	__u64 flags;

	if (argc != 3)
		die("usage: platform_timer GROUP DEVICE");
	group = check_ok("open group", open_group(argv[1]));
	check_equal("group", group_flags(group), VFIO_GROUP_FLAGS_VIABLE);
	iommu = check_ok("iommu", ioctl(group, VFIO_GROUP_GET_IOMMU_FD));
	check_errno("no such device", ioctl(group, VFIO_GROUP_GET_DEVICE_FD, "10010000.tinker"),
		    ENODEV);
	device = check_ok("device", ioctl(group, VFIO_GROUP_GET_DEVICE_FD, argv[2]));
	need(ioctl(device, VFIO_DEVICE_GET_FLAGS, &flags));
	check_equal("flags", flags, VFIO_DEVICE_FLAGS_DT | VFIO_DEVICE_FLAGS_RESET);
	device_tree();
	regions();
	irqs();
	level_interrupt(event);
	edge_interrupt(event);
	mapped_log(iommu);
	need(close(device));
	need(close(iommu));
	need(close(group));
	return 0;
}
