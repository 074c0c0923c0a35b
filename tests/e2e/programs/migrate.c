/* SPDX-License-Identifier: MIT */
/*
 * A device moves: it runs, its DMA is logged, it is saved while it runs and
 * then stopped; another one of its kind takes its state and goes on, with a
 * transfer that was under way. Wrong data and a killed reader harm nobody.
 *
 *   uvfio run \
 *	-d exerciser@0000:01:00.0,group=7,migration=true,memory=8M,dma_delay=0.3 \
 *	-d exerciser@0000:02:00.0,group=8,migration=true,memory=8M,dma_delay=0.3 \
 *	-d exerciser@0000:03:00.0,group=9,migration=true,memory=64K -- migrate
 */
#include "check.h"

#include <fcntl.h>
#include <linux/vfio.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

/* What headers before Linux 6.2 lack */
#ifndef VFIO_MIGRATION_PRE_COPY
#define VFIO_MIGRATION_PRE_COPY		(1 << 2)
#define VFIO_DEVICE_STATE_PRE_COPY	6
#define VFIO_DEVICE_STATE_PRE_COPY_P2P	7
#define VFIO_DEVICE_FEATURE_MIG_DATA_SIZE 9
#define VFIO_MIG_GET_PRECOPY_INFO	_IO(VFIO_TYPE, VFIO_BASE + 21)
struct vfio_precopy_info {
	__u32 argsz;
	__u32 flags;
	__aligned_u64 initial_bytes;
	__aligned_u64 dirty_bytes;
};
#endif

#define BAR(n)		((off_t)(n) << 40)
#define CONFIG		BAR(7)
#define MEMORY		BAR(2)
#define MEMORY_SIZE	(8u << 20)
#define PORTS		BAR(4)
#define SCRATCH		0x010
#define SCRATCH64	0x020
#define EVENTS		0x028
#define EVENTS_RAISE	0x02c
#define COUNTER		0x030
#define TICK		0x034
#define DMA_ADDRESS	0x080
#define DMA_OFFSET	0x088
#define DMA_LENGTH	0x090
#define DMA_CONTROL	0x094
#define DMA_STATUS	0x098
#define STORE_ADDRESS	0x0a0
#define STORE_VALUE	0x0a8
#define STORE_WIDTH	0x0b0
#define GO_TO_RAM	0x3u
#define INTERRUPT	0x4u
#define VECTOR		5u

#define IOVA		0x100000u
#define PAGES		64u
#define PAGE		4096u
#define STREAM_MAX	(32u << 20)

static unsigned char *ram;

struct device {
	int group;
	int fd;
	int event;
	unsigned char *memory;
};

static void put(const struct device *d, off_t at, uint64_t value, size_t size)
{
	if (need(pwrite(d->fd, &value, size, at)) != (int)size)
		die("pwrite at %#llx", (long long)at);
}

static uint64_t get(const struct device *d, off_t at, size_t size)
{
	uint64_t value = 0;

	if (need(pread(d->fd, &value, size, at)) != (int)size)
		die("pread at %#llx", (long long)at);
	return value;
}

static int feature(const struct device *d, uint32_t flags, void *data, size_t size)
{
	union {
		struct vfio_device_feature head;
		unsigned char room[64];
	} argument = { .head = { .argsz = (uint32_t)(sizeof(argument.head) + size), .flags = flags } };
	int result;

	memcpy(argument.head.data, data, size);
	result = ioctl(d->fd, VFIO_DEVICE_FEATURE, &argument);
	memcpy(data, argument.head.data, size);
	return result;
}

static int set_state(const struct device *d, uint32_t state, int *data_fd)
{
	struct vfio_device_feature_mig_state mig = { .device_state = state, .data_fd = -7 };
	int result = feature(d, VFIO_DEVICE_FEATURE_SET | VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE,
			     &mig, sizeof(mig));

	if (data_fd)
		*data_fd = mig.data_fd;
	else if (mig.data_fd != -1)
		die("a data file that nobody expects: %d", mig.data_fd);
	return result;
}

static uint32_t state_of(const struct device *d)
{
	struct vfio_device_feature_mig_state mig = { .data_fd = 5 };

	need(feature(d, VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE, &mig,
		     sizeof(mig)));
	if (mig.data_fd != -1)
		die("GET gives descriptor %d", mig.data_fd);
	return mig.device_state;
}

static struct device open_device(int container, const char *group, const char *name, bool first)
{
	struct device d;
	uint16_t command = 0x7;

	d.group = need(open(group, O_RDWR));
	need(ioctl(d.group, VFIO_GROUP_SET_CONTAINER, &container));
	if (first)
		need(ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU));
	d.fd = need(ioctl(d.group, VFIO_GROUP_GET_DEVICE_FD, name));
	need(pwrite(d.fd, &command, 2, CONFIG + 4));
	d.memory = NULL;
	d.event = need(eventfd(0, EFD_NONBLOCK));
	return d;
}

static void connect_vector(const struct device *d)
{
	union {
		struct vfio_irq_set set;
		unsigned char room[sizeof(struct vfio_irq_set) + 4 * (VECTOR + 1)];
	} irq;
	int fds[VECTOR + 1];

	memset(fds, -1, sizeof(fds));
	fds[VECTOR] = d->event;
	irq.set = (struct vfio_irq_set){
		.argsz = sizeof(irq.room),
		.flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER,
		.index = VFIO_PCI_MSIX_IRQ_INDEX,
		.count = VECTOR + 1,
	};
	memcpy(irq.set.data, fds, sizeof(fds));
	need(ioctl(d->fd, VFIO_DEVICE_SET_IRQS, &irq));
}

/* The event comes within some seconds; how many there were */
static uint64_t await_event(const struct device *d)
{
	struct pollfd waiting = { .fd = d->event, .events = POLLIN };
	uint64_t count = 0;

	if (need(poll(&waiting, 1, 10000)) != 1 || read(d->event, &count, 8) != 8)
		die("no interrupt");
	return count;
}

static void start_copy(const struct device *d, uint64_t address, uint64_t offset, uint32_t length)
{
	put(d, DMA_STATUS, ~0u, 4);
	put(d, DMA_ADDRESS, address, 8);
	put(d, DMA_OFFSET, offset, 8);
	put(d, DMA_LENGTH, length, 4);
	put(d, DMA_CONTROL, GO_TO_RAM | INTERRUPT | VECTOR << 8, 4);
}

static void dirty(const struct device *d, uint64_t *bitmap)
{
	struct vfio_device_feature_dma_logging_report report = {
		.iova = IOVA, .length = PAGES * PAGE, .page_size = PAGE, .bitmap = (uintptr_t)bitmap,
	};

	*bitmap = 0;
	need(feature(d, VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT, &report,
		     sizeof(report)));
}

static void logging(const struct device *d)
{
	struct vfio_device_feature_dma_logging_range ranges[] = {
		{ IOVA, 32 * PAGE }, { IOVA + 32 * PAGE, 32 * PAGE },
	};
	struct vfio_device_feature_dma_logging_control control = {
		.page_size = PAGE, .num_ranges = 2, .ranges = (uintptr_t)ranges,
	};
	uint64_t bitmap;

	check_ok("logging starts", feature(d, VFIO_DEVICE_FEATURE_SET |
					   VFIO_DEVICE_FEATURE_DMA_LOGGING_START, &control,
					   sizeof(control)));
	check_errno("once", feature(d, VFIO_DEVICE_FEATURE_SET |
				    VFIO_DEVICE_FEATURE_DMA_LOGGING_START, &control,
				    sizeof(control)), EINVAL);
	dirty(d, &bitmap);
	check_equal("nothing was written yet", bitmap, 0);
	start_copy(d, IOVA + 31 * PAGE + 4000, 0, PAGE);
	check_equal("an interrupt ends the transfer", await_event(d), 1);
	put(d, STORE_ADDRESS, IOVA + 40 * PAGE + 8, 8);
	put(d, STORE_VALUE, 0x1122334455667788, 8);
	put(d, STORE_WIDTH, 8, 4);
	check_equal("a store", *(uint64_t *)(void *)(ram + 40 * PAGE + 8), 0x1122334455667788);
	dirty(d, &bitmap);
	check_equal("pages written, across ranges too", bitmap,
		    1ull << 31 | 1ull << 32 | 1ull << 40);
	dirty(d, &bitmap);
	check_equal("reported once", bitmap, 0);
	check_ok("logging stops", feature(d, VFIO_DEVICE_FEATURE_SET |
					  VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP, &control, 0));
}

static void prepare(struct device *d)
{
	for (uint32_t i = 0; i < 4; i++)
		put(d, SCRATCH + 4 * i, 0x01020304u * (i + 1), 4);
	put(d, SCRATCH64, 0xfedcba9876543210, 8);
	put(d, EVENTS_RAISE, 0xa5, 4);
	put(d, TICK, 77, 4);
	for (int i = 0; i < 256; i++) {
		put(d, PORTS, (uint64_t)i, 1);
		put(d, PORTS + 1, (uint64_t)(255 - i), 1);
	}
	put(d, CONFIG + 0x3c, 11, 1);		/* interrupt line */
	put(d, CONFIG + 0x10, 0xfe000000, 4);	/* where the program puts BAR 0 */
	for (uint32_t i = 0; i < MEMORY_SIZE / 2; i++)	/* the rest stays blank */
		d->memory[i] = (unsigned char)(i * 7 + (i >> 9));
}

static void compare(const struct device *d, const unsigned char *config,
		    const unsigned char *memory)
{
	unsigned char now[4096];

	for (uint32_t i = 0; i < 4; i++)
		check_equal("scratch", get(d, SCRATCH + 4 * i, 4), 0x01020304u * (i + 1));
	check_equal("scratch of 64 bits", get(d, SCRATCH64, 8), 0xfedcba9876543210);
	check_equal("events", get(d, EVENTS, 4), 0xa5);
	check_equal("counter", get(d, COUNTER, 4), 77);
	for (int i = 0; i < 256; i++) {
		put(d, PORTS, (uint64_t)i, 1);
		if (get(d, PORTS + 1, 1) != (uint64_t)(255 - i))
			die("byte %d of the table", i);
	}
	pass("the table");
	if (need(pread(d->fd, now, sizeof(now), CONFIG)) != (int)sizeof(now))
		die("configuration space");
	for (size_t i = 0; i < sizeof(now); i++)
		if (now[i] != config[i])
			die("configuration byte %#zx is %#x, not %#x", i, now[i], config[i]);
	pass("configuration space");
	check("memory", memcmp(d->memory, memory, MEMORY_SIZE) == 0);
}

/* Read until `end`: 0 is the end of the stream, else an errno. Pieces of `piece` bytes */
static size_t read_until(int fd, unsigned char *stream, size_t size, size_t piece, int end)
{
	for (;;) {
		ssize_t done = read(fd, stream + size, piece);

		if (done <= 0) {
			if ((done ? errno : 0) != end)
				die("after %zu bytes: %s", size, strerror(errno));
			return size;
		}
		size += (size_t)done;
		if (size + piece > STREAM_MAX)
			die("the stream does not end");
	}
}

static size_t save(struct device *d, unsigned char *stream, unsigned char *config,
		   unsigned char *memory, int *fd)
{
	struct vfio_precopy_info info = { .argsz = sizeof(info) };
	void *volatile nowhere = (void *)16;
	uint64_t estimate = 0;
	size_t size;

	need(feature(d, VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_MIG_DATA_SIZE, &estimate, 8));
	check_ok("the device runs on", set_state(d, VFIO_DEVICE_STATE_PRE_COPY, fd));
	check_ok("how much there is", ioctl(*fd, VFIO_MIG_GET_PRECOPY_INFO, &info));
	check("half of the memory, at least", info.initial_bytes > MEMORY_SIZE / 2 &&
	      info.dirty_bytes == 0);
	size = read_until(*fd, stream, 0, 3u << 20, ENOMSG);
	check_equal("all of it came", size, info.initial_bytes);
	d->memory[5 * PAGE + 1] ^= 0xff;
	d->memory[MEMORY_SIZE - 1] = 0x42;
	need(ioctl(*fd, VFIO_MIG_GET_PRECOPY_INFO, &info));
	check("two blocks have changed", info.initial_bytes == 0 &&
	      info.dirty_bytes >= 2 * PAGE && info.dirty_bytes < 3 * PAGE);
	size = read_until(*fd, stream, size, 1000, ENOMSG);
	check_equal("registers answer", get(d, SCRATCH, 4), 0x01020304u);
	d->memory[6 * PAGE] ^= 0xff;

	need(pread(d->fd, config, 4096, CONFIG));
	start_copy(d, IOVA, 5 * PAGE, PAGE);
	check_ok("it stops", set_state(d, VFIO_DEVICE_STATE_STOP_COPY, NULL));
	memcpy(memory, d->memory, MEMORY_SIZE);
	check_equal("registers do not answer", get(d, SCRATCH, 4), 0xffffffff);
	check_errno("it does not run", ioctl(*fd, VFIO_MIG_GET_PRECOPY_INFO, &info), EINVAL);
	check_errno("no other position", pread(*fd, memory, 1, 0), ESPIPE);
	check_errno("no seeking", lseek(*fd, 0, SEEK_SET), ESPIPE);
	check_errno("one direction", write(*fd, "", 1), EBADF);
	check_errno("into nowhere", read(*fd, nowhere, 100), EFAULT);
	size = read_until(*fd, stream, size, 4u << 20, 0);
	check("about as estimated", size < estimate + 4 * PAGE);
	return size;
}

/* Write it in pieces of `piece` bytes; the errno of the write that failed */
static int write_all(int fd, const unsigned char *stream, size_t size, size_t piece)
{
	while (size) {
		ssize_t done = write(fd, stream, size < piece ? size : piece);

		if (done < 0)
			return errno;
		stream += done;
		size -= (size_t)done;
	}
	return 0;
}

static void resume(struct device *d, const unsigned char *stream, size_t size)
{
	struct vfio_precopy_info info = { .argsz = sizeof(info) };
	int fd;

	check_ok("ready for data", set_state(d, VFIO_DEVICE_STATE_RESUMING, &fd));
	check_errno("nothing to ask", ioctl(fd, VFIO_MIG_GET_PRECOPY_INFO, &info), ENOTTY);
	check_errno("the other direction", read(fd, &info, 1), EBADF);
	check_equal("all is taken", write_all(fd, stream, 1001, 10), 0);
	check_equal("large pieces too", write_all(fd, stream + 1001, size - 1001, 5u << 20), 0);
	check_ok("it was whole", set_state(d, VFIO_DEVICE_STATE_STOP, NULL));
	check_errno("the session is over", write(fd, "", 1), ENODEV);
	need(close(fd));
	connect_vector(d);
}

static void refuse(const char *name, struct device *d, const unsigned char *stream, size_t size)
{
	int fd;

	need(set_state(d, VFIO_DEVICE_STATE_RESUMING, &fd));
	write_all(fd, stream, size, 1u << 20);
	check_errno(name, set_state(d, VFIO_DEVICE_STATE_RUNNING, NULL), EINVAL);
	check_equal("an error", state_of(d), VFIO_DEVICE_STATE_ERROR);
	check_errno("for good", set_state(d, VFIO_DEVICE_STATE_STOP, NULL), EINVAL);
	check_ok("but for a reset", ioctl(d->fd, VFIO_DEVICE_RESET));
	check_equal("which lets it run", state_of(d), VFIO_DEVICE_STATE_RUNNING);
	put(d, CONFIG + 4, 0x7, 2);
	put(d, SCRATCH, 5, 4);
	check_equal("it works", get(d, SCRATCH, 4), 5);
	need(close(fd));
}

/* A process that is killed while it reads leaves nothing behind */
static void killed_reader(const struct device *d)
{
	int ready[2], status, fd;
	char byte;
	pid_t child;

	need(pipe(ready));
	child = need(fork());
	if (!child) {
		need(set_state(d, VFIO_DEVICE_STATE_STOP_COPY, &fd));
		need(read(fd, &byte, 1));
		signal_go(ready[1]);
		pause();
		_exit(0);
	}
	wait_go(ready[0]);
	need(kill(child, SIGKILL));
	need(waitpid(child, &status, 0));
	check_equal("the state stays", state_of(d), VFIO_DEVICE_STATE_STOP_COPY);
	check_ok("and can be left", set_state(d, VFIO_DEVICE_STATE_RUNNING, NULL));
	check_ok("for the next one", set_state(d, VFIO_DEVICE_STATE_STOP_COPY, &fd));
	check_equal("who reads", read(fd, &byte, 1), 1);
	need(set_state(d, VFIO_DEVICE_STATE_RUNNING, NULL));
	need(close(fd));
}

int main(void)
{
	int container = need(open("/dev/vfio/vfio", O_RDWR)), data;
	struct device source = open_device(container, "/dev/vfio/7", "0000:01:00.0", true);
	struct device target = open_device(container, "/dev/vfio/8", "0000:02:00.0", false);
	struct device other = open_device(container, "/dev/vfio/9", "0000:03:00.0", false);
	unsigned char *stream = malloc(STREAM_MAX), *memory = malloc(MEMORY_SIZE), config[4096];
	struct vfio_iommu_type1_dma_map map = {
		.argsz = sizeof(map), .flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
		.iova = IOVA, .size = PAGES * PAGE,
	};
	uint64_t flags = 0, count;
	size_t size;

	ram = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	map.vaddr = (uintptr_t)ram;
	need(ioctl(container, VFIO_IOMMU_MAP_DMA, &map));
	source.memory = mmap(NULL, MEMORY_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, source.fd, MEMORY);
	target.memory = mmap(NULL, MEMORY_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, target.fd, MEMORY);
	if (ram == MAP_FAILED || source.memory == MAP_FAILED || target.memory == MAP_FAILED || !stream ||
	    !memory)
		die("no memory");

	need(feature(&source, VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_MIGRATION, &flags, 8));
	check_equal("flags", flags,
		    VFIO_MIGRATION_STOP_COPY | VFIO_MIGRATION_P2P | VFIO_MIGRATION_PRE_COPY);
	check_equal("it runs", state_of(&source), VFIO_DEVICE_STATE_RUNNING);
	connect_vector(&source);
	prepare(&source);
	logging(&source);

	size = save(&source, stream, config, memory, &data);
	resume(&target, stream, size);
	memset(ram, 0, PAGE);
	check_errno("a transfer that is under way waits", read(target.event, &count, 8), EAGAIN);
	check_ok("it goes on", set_state(&target, VFIO_DEVICE_STATE_RUNNING, NULL));
	check_equal("with the transfer", await_event(&target), 1);
	check("which was made", memcmp(ram, memory + 5 * PAGE, PAGE) == 0);
	compare(&target, config, memory);

	check_ok("the first one goes on too", set_state(&source, VFIO_DEVICE_STATE_RUNNING, NULL));
	check_equal("with its own", await_event(&source), 1);
	check_errno("its data are gone", read(data, stream, 1), ENODEV);
	compare(&source, config, memory);

	refuse("data of another device", &other, stream, size);
	refuse("half of the data", &target, stream, size / 2);
	stream[size / 2] ^= 1;
	refuse("damaged data", &target, stream, size);
	refuse("no data", &target, stream, 0);
	killed_reader(&source);
	return 0;
}
