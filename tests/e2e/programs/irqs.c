/* SPDX-License-Identifier: MIT */
/*
 * Interrupts of the mainline ABI. "intx": INTx with a trigger and an unmask event is
 * set up and taken down over and over while two processes share the device and
 * one of them unmasks. "timer": the level and the edge of a platform device.
 *
 *   uvfio run -d exerciser@0000:01:00.0,group=7 -- irqs intx 7 0000:01:00.0 ROUNDS
 *   uvfio run -m examples/soc.toml -- irqs timer platform:3 10010000.timer ROUNDS
 */
#include "check.h"

#include <fcntl.h>
#include <linux/vfio.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>

#define TRIGGER	VFIO_IRQ_SET_ACTION_TRIGGER
#define UNMASK	VFIO_IRQ_SET_ACTION_UNMASK
#define MASK	VFIO_IRQ_SET_ACTION_MASK
#define EVENTFD	VFIO_IRQ_SET_DATA_EVENTFD
#define NONE	VFIO_IRQ_SET_DATA_NONE

static int device;

static int set_irq(uint32_t index, uint32_t flags, int fd, uint32_t count)
{
	union {
		struct vfio_irq_set set;
		unsigned char room[sizeof(struct vfio_irq_set) + 4];
	} irq = { .set = { .argsz = sizeof(irq), .flags = flags, .index = index, .count = count } };

	memcpy(irq.set.data, &fd, 4);
	return ioctl(device, VFIO_DEVICE_SET_IRQS, &irq);
}

static uint32_t get(off_t at)
{
	uint32_t value = 0;

	if (need(pread(device, &value, 4, at)) != 4)
		die("a register");
	return value;
}

static void put(off_t at, uint32_t value)
{
	if (need(pwrite(device, &value, 4, at)) != 4)
		die("a register");
}

static void add(int fd)
{
	uint64_t one = 1;

	if (need(write(fd, &one, 8)) != 8)
		die("an event");
}

/* An event comes within some seconds; how many there were */
static uint64_t await(int fd)
{
	struct pollfd waiting = { .fd = fd, .events = POLLIN };
	uint64_t count;

	if (need(poll(&waiting, 1, 10000)) != 1 || read(fd, &count, 8) != 8)
		die("no interrupt");
	return count;
}

static uint64_t so_far(int fd)
{
	uint64_t count = 0;

	if (read(fd, &count, 8) != 8 && errno != EAGAIN)
		die("an event");
	return count;
}

#define LEVEL_REGISTER	0x44
#define COMMAND		((7ll << 40) + 4)

static void intx(int rounds)
{
	struct vfio_irq_info info = { .argsz = sizeof(info), .index = VFIO_PCI_INTX_IRQ_INDEX };
	int trigger = need(eventfd(0, EFD_NONBLOCK)), unmask = need(eventfd(0, EFD_NONBLOCK));
	uint16_t command = 0x2;
	int status;
	pid_t child;

	need(pwrite(device, &command, 2, COMMAND));
	check_ok("there is", ioctl(device, VFIO_DEVICE_GET_IRQ_INFO, &info));
	check_equal("one INTx", info.count, 1);
	check_equal("that masks itself", info.flags, VFIO_IRQ_INFO_EVENTFD |
		    VFIO_IRQ_INFO_MASKABLE | VFIO_IRQ_INFO_AUTOMASKED);

	/* One after the other */
	need(set_irq(0, EVENTFD | TRIGGER, trigger, 1));
	need(set_irq(0, EVENTFD | UNMASK, unmask, 1));
	check_errno("one unmask event", set_irq(0, EVENTFD | UNMASK, unmask, 1), EBUSY);
	put(LEVEL_REGISTER, 1);
	check_equal("the wire rises", await(trigger), 1);
	put(LEVEL_REGISTER, 1);
	check_equal("it is masked", so_far(trigger), 0);
	add(unmask);
	check_equal("unmasked while it is up", await(trigger), 1);
	need(set_irq(0, NONE | TRIGGER, 0, 0));
	check_equal("dropped", so_far(trigger), 0);
	check_errno("not in use", set_irq(0, NONE | UNMASK, 0, 1), EINVAL);

	/* All at once: the wire stays up, a child unmasks as fast as it can */
	child = need(fork());
	if (!child) {
		for (;;) {
			add(unmask);
			set_irq(0, NONE | UNMASK, 0, 1);	/* fails whenever there is none */
		}
	}
	for (int i = 0; i < rounds; i++) {
		need(set_irq(0, EVENTFD | TRIGGER, trigger, 1));
		if (set_irq(0, EVENTFD | UNMASK, unmask, 1) && errno != EBUSY)
			die("round %d: %s", i, strerror(errno));
		await(trigger);
		set_irq(0, EVENTFD | UNMASK, -1, 1);
		need(set_irq(0, NONE | TRIGGER, 0, 0));
	}
	pass("over and over");
	need(kill(child, SIGKILL));
	need(waitpid(child, &status, 0));
	so_far(trigger);
	so_far(unmask);

	put(LEVEL_REGISTER, 0);
	need(set_irq(0, EVENTFD | TRIGGER, trigger, 1));
	check_equal("quiet", so_far(trigger), 0);
	put(LEVEL_REGISTER, 1);
	check_equal("and it works as before", await(trigger), 1);
}

#define TIMER_LOAD	0x04
#define TIMER_CONTROL	0x0c
#define TIMER_STATUS	0x10
#define TIMER_PERIOD	0x14
#define RUN		0x1
#define PERIOD_IRQ	0x2
#define OVERFLOW_IRQ	0x4

static void timer(int rounds)
{
	struct vfio_irq_info info = { .argsz = sizeof(info), .index = 0 };
	struct vfio_device_info about = { .argsz = sizeof(about) };
	int level = need(eventfd(0, EFD_NONBLOCK)), edge = need(eventfd(0, EFD_NONBLOCK));
	int unmask = need(eventfd(0, EFD_NONBLOCK)), mask = need(eventfd(0, EFD_NONBLOCK));

	need(ioctl(device, VFIO_DEVICE_GET_INFO, &about));
	check_equal("it can be reset", about.flags,
		    VFIO_DEVICE_FLAGS_PLATFORM | VFIO_DEVICE_FLAGS_RESET);
	check_equal("two interrupts", about.num_irqs, 2);
	need(ioctl(device, VFIO_DEVICE_GET_IRQ_INFO, &info));
	check_equal("a level", info.flags, VFIO_IRQ_INFO_EVENTFD | VFIO_IRQ_INFO_MASKABLE |
		    VFIO_IRQ_INFO_AUTOMASKED);
	info.index = 1;
	need(ioctl(device, VFIO_DEVICE_GET_IRQ_INFO, &info));
	check_equal("an edge", info.flags, VFIO_IRQ_INFO_EVENTFD);
	check_equal("one of it", info.count, 1);

	check_ok("the level has an event", set_irq(0, EVENTFD | TRIGGER, level, 1));
	check_ok("the edge, too", set_irq(1, EVENTFD | TRIGGER, edge, 1));
	check_errno("an edge has no mask", set_irq(1, NONE | MASK, 0, 1), EINVAL);
	check_errno("there are two", set_irq(2, NONE | TRIGGER, 0, 0), EINVAL);
	check_ok("a test", set_irq(1, NONE | TRIGGER, 0, 1));
	check_equal("arrives", await(edge), 1);

	put(TIMER_PERIOD, 1000);
	put(TIMER_LOAD, 2);
	put(TIMER_CONTROL, RUN | PERIOD_IRQ | OVERFLOW_IRQ);
	for (int i = 0; i < rounds; i++) {
		await(level);
		put(TIMER_STATUS, 1);
		need(set_irq(0, NONE | UNMASK, 0, 1));
	}
	pass("period by period");
	check("and overflows", await(edge) > 0);
	check_ok("unmasked by an event", set_irq(0, EVENTFD | UNMASK, unmask, 1));
	check_ok("masked by another", set_irq(0, EVENTFD | MASK, mask, 1));
	for (int i = 0; i < rounds; i++) {
		await(level);
		put(TIMER_STATUS, 1);
		add(unmask);
	}
	pass("the same by events");
	/* When an event is heard cannot be seen: some periods may pass before the first one is */
	for (int i = 0;; i++) {
		if (i == 100)
			die("an event does not mask");
		put(TIMER_CONTROL, 0);
		put(TIMER_STATUS, 1);
		need(set_irq(0, NONE | UNMASK, 0, 1));
		so_far(level);
		so_far(edge);
		add(mask);
		put(TIMER_CONTROL, RUN | PERIOD_IRQ | OVERFLOW_IRQ);
		await(edge);
		if (!so_far(level))
			break;
	}
	await(edge);
	check_equal("nothing while masked", so_far(level), 0);
	add(unmask);
	check("and again", await(level) > 0);

	check_ok("reset", ioctl(device, VFIO_DEVICE_RESET));
	check_equal("it stands still", get(TIMER_CONTROL), 0);
	so_far(edge);
	put(TIMER_CONTROL, RUN | OVERFLOW_IRQ);
	check("events survive", await(edge) > 0);
	check_ok("no more", set_irq(1, NONE | TRIGGER, 0, 0));
	check_ok("no event either", set_irq(0, EVENTFD | TRIGGER, -1, 1));
}

int main(int argc, char **argv)
{
	int container = need(open("/dev/vfio/vfio", O_RDWR)), group;
	char path[64];

	if (argc != 5)
		die("intx|timer GROUP DEVICE ROUNDS");
	snprintf(path, sizeof(path), "/dev/vfio/%s", argv[2]);
	group = need(open(path, O_RDWR));
	need(ioctl(group, VFIO_GROUP_SET_CONTAINER, &container));
	need(ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU));
	device = need(ioctl(group, VFIO_GROUP_GET_DEVICE_FD, argv[3]));
	if (strcmp(argv[1], "intx") == 0)
		intx(atoi(argv[4]));
	else
		timer(atoi(argv[4]));
	return 0;
}
