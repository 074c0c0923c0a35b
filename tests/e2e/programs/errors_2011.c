/* SPDX-License-Identifier: MIT */
/*
 * Every error of the 2011 ABI that a program can provoke, with the mended
 * behaviour where the proposal's code had a defect: unknown requests are
 * ENOTTY, a request that fails leaves nothing open or owned, ranges do not
 * wrap, indices are looked at.
 *
 * Most checks are rows of tables: a file, a request, an argument, what it gives
 * (0 or an errno). Rows are run in order.
 */
#include "session.h"

#include <linux/capability.h>
#include <sys/resource.h>
#include <sys/syscall.h>

#define VIABLE	VFIO_GROUP_FLAGS_VIABLE
#define LOCKED	(VFIO_GROUP_FLAGS_VIABLE | VFIO_GROUP_FLAGS_MM_LOCKED)
#define CLOSED	998			/* a number that nothing gets */
#define IOVA	0x100000u

/* volatile: the compiler warns of what it sees through */
static void *volatile NOWHERE = (void *)16;	/* in the page that is never mapped */
static void *volatile BEYOND = (void *)-4096L;	/* no program's memory */

struct row {
	const char *name;
	int fd;
	unsigned long request;
	const void *argument;
	int error;
};

static void run(const char *part, const struct row *rows, size_t count)
{
	for (size_t i = 0; i < count; i++) {
		const struct row *row = &rows[i];
		char name[128];
		int result, error;

		errno = 0;
		result = ioctl(row->fd, row->request, row->argument);
		error = result == -1 ? errno : 0;
		snprintf(name, sizeof(name), "%s: %s", part, row->name);
		if (error != row->error)
			die("%s: gave %s, not %s", name, strerrorname_np(error),
			    strerrorname_np(row->error));
		if (result > 0)
			die("%s: the result is %d, not 0", name, result);
		pass(name);
	}
}
#define run_table(part, rows)	run(part, rows, sizeof(rows) / sizeof((rows)[0]))

/* The last `size` bytes of two pages whose mapping has a third, beyond the end of its file */
static void *at_edge(size_t size)
{
	static char *edge;

	if (!edge) {
		int file = need(memfd_create("edge", 0));
		char *start;

		need(ftruncate(file, 2 * PAGE));
		start = mmap(NULL, 3 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
		if (start == MAP_FAILED)
			die("mmap: %s", strerror(errno));
		need(close(file));
		edge = start + 2 * PAGE;
	}
	return edge - size;
}

static int an_ordinary_file(void)
{
	static int fd = -1;

	if (fd == -1)
		fd = need(open("/dev/null", O_RDWR));
	return fd;
}

static void open_errors(void)
{
	check_errno("open: a group that does not exist", open("/dev/vfio/4711", O_RDWR), ENOENT);
}

static void no_file_operations(const char *kind, int fd)
{
	char name[64], byte = 0;

#define of_kind(what) (snprintf(name, sizeof(name), "%s: %s", kind, what), name)
	check_errno(of_kind("read"), read(fd, &byte, 1), EINVAL);
	check_errno(of_kind("write"), write(fd, &byte, 1), EINVAL);
	check_errno(of_kind("pread"), pread(fd, &byte, 1, 0), EINVAL);
	check_errno(of_kind("pwrite"), pwrite(fd, &byte, 1, 0), EINVAL);
	check_errno(of_kind("pread beyond 4 GiB"), pread(fd, &byte, 1, (off_t)7 << 40), EINVAL);
	errno = 0;
	if (mmap(NULL, PAGE, PROT_READ, MAP_SHARED, fd, 0) != MAP_FAILED || errno != ENODEV)
		die("%s: mmap: %s", kind, strerror(errno));
	pass(of_kind("mmap"));
}

static void group_errors(void)
{
	int group = need(open_group(GROUP_A)), other = need(open_group(GROUP_B));
	int minus = -1, closed = CLOSED, null = an_ordinary_file();
	char *unterminated = at_edge(16), *too_long = at_edge(2 * PAGE);
	struct row before[] = {
		{ "GET_FLAGS to nowhere", group, VFIO_GROUP_GET_FLAGS, NOWHERE, EFAULT },
		{ "GET_FLAGS beyond memory", group, VFIO_GROUP_GET_FLAGS, BEYOND, EFAULT },
		{ "GET_DEVICE_FD of nowhere", group, VFIO_GROUP_GET_DEVICE_FD, NOWHERE, EFAULT },
		{ "GET_DEVICE_FD, name runs off the edge", group, VFIO_GROUP_GET_DEVICE_FD,
		  unterminated, EFAULT },
		{ "GET_DEVICE_FD, no NUL within a page", group, VFIO_GROUP_GET_DEVICE_FD, too_long,
		  EINVAL },
		{ "GET_DEVICE_FD of another group's device", group, VFIO_GROUP_GET_DEVICE_FD,
		  DEVICE_B, ENODEV },
		{ "GET_DEVICE_FD of no device", group, VFIO_GROUP_GET_DEVICE_FD, "0000:06:0d",
		  ENODEV },
		{ "GET_DEVICE_FD of an empty name", group, VFIO_GROUP_GET_DEVICE_FD, "", ENODEV },
		{ "GET_FLAGS across the edge", group, VFIO_GROUP_GET_FLAGS, at_edge(4), EFAULT },
		{ "MERGE of nowhere", group, VFIO_GROUP_MERGE, NOWHERE, EFAULT },
		{ "MERGE of -1", group, VFIO_GROUP_MERGE, &minus, EINVAL },
		{ "MERGE of a closed number", group, VFIO_GROUP_MERGE, &closed, EBADF },
		{ "MERGE of an ordinary file", group, VFIO_GROUP_MERGE, &null, EINVAL },
		{ "MERGE of itself", group, VFIO_GROUP_MERGE, &group, EINVAL },
		{ "UNMERGE of nowhere", group, VFIO_GROUP_UNMERGE, NOWHERE, EFAULT },
		{ "UNMERGE of -1", group, VFIO_GROUP_UNMERGE, &minus, EINVAL },
		{ "UNMERGE of a closed number", group, VFIO_GROUP_UNMERGE, &closed, EBADF },
		{ "UNMERGE of an ordinary file", group, VFIO_GROUP_UNMERGE, &null, EINVAL },
		{ "UNMERGE of itself", group, VFIO_GROUP_UNMERGE, &group, EINVAL },
		{ "UNMERGE of a stranger", group, VFIO_GROUP_UNMERGE, &other, EINVAL },
		{ "unknown request", group, _IO(';', 199), NULL, ENOTTY },
		{ "an iommu's request", group, VFIO_IOMMU_MAP_DMA, NULL, ENOTTY },
		{ "a device's request", group, VFIO_DEVICE_RESET, NULL, ENOTTY },
	};

	memset(too_long, 'x', 2 * PAGE);
	run_table("group", before);
	check_equal("group: nothing of it left an owner", group_flags(group), VIABLE);
	check_equal("group: nor in the other", group_flags(other), VIABLE);
	no_file_operations("group", group);
	need(close(group));
	need(close(other));
}

static void merge_errors(void)
{
	struct session a = session_open(GROUP_A, DEVICE_A);
	int group = need(open_group(GROUP_B)), copy = need(dup(group)), fd;
	struct row kinds[] = {
		{ "MERGE of an iommu file", a.group, VFIO_GROUP_MERGE, &a.iommu, EINVAL },
		{ "MERGE of a device file", a.group, VFIO_GROUP_MERGE, &a.device, EINVAL },
		{ "UNMERGE of an iommu file", a.group, VFIO_GROUP_UNMERGE, &a.iommu, EINVAL },
	};
	struct row used[] = {
		{ "MERGE of a group in use", a.group, VFIO_GROUP_MERGE, &group, EINVAL },
	};
	struct row merged[] = {
		{ "MERGE", a.group, VFIO_GROUP_MERGE, &group, 0 },
		{ "MERGE of a member", a.group, VFIO_GROUP_MERGE, &group, EINVAL },
		{ "MERGE of the set into its member", group, VFIO_GROUP_MERGE, &a.group, EINVAL },
		{ "MERGE of a group by a copy of itself", group, VFIO_GROUP_MERGE, &copy, EINVAL },
	};
	struct row unmerge_busy[] = {
		{ "UNMERGE with a device open", a.group, VFIO_GROUP_UNMERGE, &group, EBUSY },
	};
	struct row unmerge[] = {
		{ "UNMERGE", a.group, VFIO_GROUP_UNMERGE, &group, 0 },
		{ "UNMERGE twice", a.group, VFIO_GROUP_UNMERGE, &group, EINVAL },
	};

	run_table("merge", kinds);
	fd = need(ioctl(group, VFIO_GROUP_GET_IOMMU_FD));
	run_table("merge: its iommu is open", used);
	need(close(fd));
	fd = need(ioctl(group, VFIO_GROUP_GET_DEVICE_FD, DEVICE_B));
	run_table("merge: its device is open", used);
	need(close(fd));
	check_equal("merge: refused ones leave no owner", group_flags(group), VIABLE);
	run_table("merge", merged);
	check_equal("merge: the member is owned", group_flags(group), LOCKED);
	fd = check_ok("merge: a member's device by the other group",
		      ioctl(a.group, VFIO_GROUP_GET_DEVICE_FD, DEVICE_B));
	run_table("merge", unmerge_busy);
	need(close(fd));
	run_table("merge", unmerge);
	check_equal("merge: unmerged is unowned", group_flags(group), VIABLE);
	check_errno("merge: its device is gone from the set",
		    ioctl(a.group, VFIO_GROUP_GET_DEVICE_FD, DEVICE_B), ENODEV);
	session_close(&a);
	need(close(group));
	need(close(copy));
	check_equal("merge: all released", flags_of(GROUP_A), VIABLE);
}

/* Somebody else asks: EPERM comes before every look at the argument */
static void owner_errors(void)
{
	struct session s = session_open(GROUP_A, DEVICE_A);
	pid_t pid = need(fork());

	if (!pid) {
		int group = need(open_group(GROUP_A));
		struct row rows[] = {
			{ "GET_FLAGS to nowhere", group, VFIO_GROUP_GET_FLAGS, NOWHERE, EFAULT },
			{ "MERGE of nowhere", group, VFIO_GROUP_MERGE, NOWHERE, EPERM },
			{ "UNMERGE of nowhere", group, VFIO_GROUP_UNMERGE, NOWHERE, EPERM },
			{ "GET_IOMMU_FD", group, VFIO_GROUP_GET_IOMMU_FD, NULL, EPERM },
			{ "GET_DEVICE_FD of nowhere", group, VFIO_GROUP_GET_DEVICE_FD, NOWHERE,
			  EPERM },
			{ "GET_DEVICE_FD of no device", group, VFIO_GROUP_GET_DEVICE_FD, "none",
			  EPERM },
			{ "unknown request", group, _IO(';', 199), NULL, EPERM },
		};

		check_equal("not the owner: flags", group_flags(group), LOCKED);
		run_table("not the owner", rows);
		_exit(0);
	}
	wait_ok("not the owner", pid);
	session_close(&s);
}

/* No descriptor left: what the request opened is closed again */
static void descriptor_errors(void)
{
	struct rlimit limit;
	int group = need(open_group(GROUP_A)), first = -1, last = -1, fd;

	need(getrlimit(RLIMIT_NOFILE, &limit));
	if (limit.rlim_cur > 1024) {
		limit.rlim_cur = 1024;
		need(setrlimit(RLIMIT_NOFILE, &limit));
	}
	while ((fd = dup(an_ordinary_file())) != -1) {
		if (first == -1)
			first = fd;
		last = fd;
	}
	if (errno != EMFILE)
		die("dup: %s", strerror(errno));
	check_errno("no descriptor left: GET_IOMMU_FD", ioctl(group, VFIO_GROUP_GET_IOMMU_FD),
		    EMFILE);
	check_errno("no descriptor left: GET_DEVICE_FD",
		    ioctl(group, VFIO_GROUP_GET_DEVICE_FD, DEVICE_A), EMFILE);
	check_errno("no descriptor left: open", open("/dev/vfio/" GROUP_B, O_RDWR), EMFILE);
	check_equal("no descriptor left: nothing is open or owned", group_flags(group), VIABLE);
	for (fd = first; fd <= last; fd++)
		if (fd != group && fd != an_ordinary_file())
			close(fd);
	fd = check_ok("with descriptors again", ioctl(group, VFIO_GROUP_GET_IOMMU_FD));
	need(close(fd));
	need(close(group));
}

static void iommu_errors(void)
{
	struct session s = session_open(GROUP_A, DEVICE_A);
	char *memory = pages(8), *read_only = pages(1), *hole = pages(2);
	uint64_t at = (uintptr_t)memory;
	const uint64_t write = VFIO_DMA_MAP_FLAG_WRITE, top = 0xfffffffffffff000u;

	need(mprotect(read_only, PAGE, PROT_READ));
	need(munmap(hole + PAGE, PAGE));

#define dma(...)	(&(struct vfio_dma_map){ __VA_ARGS__ })
#define MAP(...)	s.iommu, VFIO_IOMMU_MAP_DMA, dma(40, __VA_ARGS__)
#define UNMAP(...)	s.iommu, VFIO_IOMMU_UNMAP_DMA, dma(40, __VA_ARGS__)
	struct row rows[] = {
		{ "GET_FLAGS to nowhere", s.iommu, VFIO_IOMMU_GET_FLAGS, NOWHERE, EFAULT },
		{ "MAP of nowhere", s.iommu, VFIO_IOMMU_MAP_DMA, NOWHERE, EFAULT },
		{ "MAP, argument across the edge", s.iommu, VFIO_IOMMU_MAP_DMA, at_edge(36), EFAULT },
		{ "MAP, vaddr not aligned", MAP(at + 8, IOVA, PAGE, write), EINVAL },
		{ "MAP, dmaaddr not aligned", MAP(at, IOVA + 8, PAGE, write), EINVAL },
		{ "MAP, size not aligned", MAP(at, IOVA, PAGE + 8, write), EINVAL },
		{ "MAP, size 0", MAP(at, IOVA, 0, write), EINVAL },
		{ "MAP, unknown flag", MAP(at, IOVA, PAGE, 1ull << 63 | write), EINVAL },
		{ "MAP, dmaaddr wraps", MAP(at, top, 2 * PAGE, write), EINVAL },
		{ "MAP, vaddr wraps", MAP(top, IOVA, 2 * PAGE, write), EINVAL },
		{ "MAP, all of it wraps", MAP(at, IOVA, top, write), EINVAL },
		{ "MAP, nothing at vaddr", MAP(PAGE, IOVA, PAGE, write), EFAULT },
		{ "MAP, a hole in vaddr", MAP((uintptr_t)hole, IOVA, 2 * PAGE, write), EFAULT },
		{ "MAP, the part before the hole", MAP((uintptr_t)hole, IOVA, PAGE, write), 0 },
		{ "UNMAP of it", UNMAP(0, IOVA, PAGE, 0), 0 },
		{ "MAP for writing of what cannot be written",
		  MAP((uintptr_t)read_only, IOVA, PAGE, write), EFAULT },
		{ "MAP for reading of it", MAP((uintptr_t)read_only, IOVA, PAGE, 0), 0 },
		{ "UNMAP of it, junk vaddr and flags", UNMAP(12345, IOVA, PAGE, ~0ull), 0 },
		{ "MAP with junk in len", s.iommu, VFIO_IOMMU_MAP_DMA,
		  dma(~0ull, at, IOVA, 4 * PAGE, write), 0 },
		{ "MAP of the same again", MAP(at, IOVA, 4 * PAGE, write), EBUSY },
		{ "MAP inside it", MAP(at + 4 * PAGE, IOVA + PAGE, PAGE, write), EBUSY },
		{ "MAP over its end", MAP(at, IOVA + 3 * PAGE, 2 * PAGE, write), EBUSY },
		{ "MAP over its begin", MAP(at, IOVA - PAGE, 2 * PAGE, write), EBUSY },
		{ "MAP around it", MAP(at, IOVA - PAGE, 6 * PAGE, write), EBUSY },
		{ "MAP behind it", MAP(at + 4 * PAGE, IOVA + 4 * PAGE, PAGE, write), 0 },
		{ "UNMAP of nowhere", s.iommu, VFIO_IOMMU_UNMAP_DMA, NOWHERE, EFAULT },
		{ "UNMAP, dmaaddr not aligned", UNMAP(0, IOVA + 8, PAGE, 0), EINVAL },
		{ "UNMAP, size not aligned", UNMAP(0, IOVA, 8, 0), EINVAL },
		{ "UNMAP that wraps", UNMAP(0, top, 2 * PAGE, 0), EINVAL },
		{ "UNMAP of size 0", UNMAP(0, IOVA + PAGE, 0, 0), 0 },
		{ "UNMAP of what is not mapped", UNMAP(0, IOVA + 64 * PAGE, 4 * PAGE, 0), 0 },
		{ "UNMAP of a middle", UNMAP(0, IOVA + PAGE, PAGE, 0), 0 },
		{ "MAP in the gap", MAP(at, IOVA + PAGE, PAGE, write), 0 },
		{ "MAP in the gap again", MAP(at, IOVA + PAGE, PAGE, write), EBUSY },
		{ "UNMAP of everything, with holes", UNMAP(0, 0, 1 << 30, 0), 0 },
		{ "UNMAP of nothing", UNMAP(0, 0, 1 << 30, 0), 0 },
		{ "unknown request", s.iommu, _IO(';', 199), NULL, ENOTTY },
		{ "a group's request", s.iommu, VFIO_GROUP_GET_FLAGS, NULL, ENOTTY },
		{ "a device's request", s.iommu, VFIO_DEVICE_RESET, NULL, ENOTTY },
	};
	run_table("iommu", rows);
	no_file_operations("iommu", s.iommu);
	session_close(&s);
}

/* The limit on locked memory binds whoever has no CAP_IPC_LOCK; in a child, for it is for ever */
static void memlock_errors(void)
{
	pid_t pid = need(fork());

	if (!pid) {
		struct __user_cap_header_struct header = { _LINUX_CAPABILITY_VERSION_3, 0 };
		struct __user_cap_data_struct sets[2];
		struct rlimit limit = { 16 * PAGE, 16 * PAGE };
		struct session s;
		char *memory = pages(32);

		need(syscall(SYS_capget, &header, sets));
		sets[0].effective &= ~(1u << CAP_IPC_LOCK);
		sets[0].permitted &= ~(1u << CAP_IPC_LOCK);
		need(syscall(SYS_capset, &header, sets));
		need(setrlimit(RLIMIT_MEMLOCK, &limit));
		s = session_open(GROUP_A, DEVICE_A);
		check_errno("memlock: more than the limit", dma_map(s.iommu, memory, IOVA, 17 * PAGE),
			    ENOMEM);
		check_ok("memlock: the refused one is not there",
			 dma_map(s.iommu, memory, IOVA, 10 * PAGE));
		check_errno("memlock: more than is left",
			    dma_map(s.iommu, memory + 10 * PAGE, IOVA + 10 * PAGE, 7 * PAGE),
			    ENOMEM);
		check_ok("memlock: what is left",
			 dma_map(s.iommu, memory + 10 * PAGE, IOVA + 10 * PAGE, 6 * PAGE));
		check_errno("memlock: overlap is said before the limit",
			    dma_map(s.iommu, memory, IOVA, 32 * PAGE), EBUSY);
		need(dma_unmap(s.iommu, IOVA, 7 * PAGE));
		check_ok("memlock: unmapped is uncharged",
			 dma_map(s.iommu, memory + 16 * PAGE, IOVA + 16 * PAGE, 7 * PAGE));
		session_close(&s);
		s = session_open(GROUP_A, DEVICE_A);
		check_ok("memlock: closing uncharges all", dma_map(s.iommu, memory, IOVA, 16 * PAGE));
		_exit(0);
	}
	wait_ok("memlock", pid);
}

static void device_errors(void)
{
	struct session s = session_open(GROUP_A, DEVICE_A);
	int null = an_ordinary_file(), event = need(eventfd(0, EFD_NONBLOCK));
	__u32 *len_at_edge = at_edge(4);
	int *irq_at_edge = at_edge(8);

#define region(length, number)	s.device, VFIO_DEVICE_GET_REGION_INFO, \
	&(struct vfio_region_info){ .len = length, .index = number }
#define irq(length, number)	s.device, VFIO_DEVICE_GET_IRQ_INFO, \
	&(struct vfio_irq_info){ .len = length, .index = number }
#define eventfds(...)	s.device, VFIO_DEVICE_SET_IRQ_EVENTFDS, (int[]){ __VA_ARGS__ }
#define unmask(...)	s.device, VFIO_DEVICE_UNMASK_IRQ, (int[]){ __VA_ARGS__ }
#define unmask_event(...) s.device, VFIO_DEVICE_SET_UNMASK_IRQ_EVENTFD, (int[]){ __VA_ARGS__ }
	struct row info[] = {
		{ "GET_FLAGS to nowhere", s.device, VFIO_DEVICE_GET_FLAGS, NOWHERE, EFAULT },
		{ "GET_NUM_REGIONS to nowhere", s.device, VFIO_DEVICE_GET_NUM_REGIONS, NOWHERE,
		  EFAULT },
		{ "GET_NUM_IRQS to nowhere", s.device, VFIO_DEVICE_GET_NUM_IRQS, BEYOND, EFAULT },
		{ "REGION_INFO of nowhere", s.device, VFIO_DEVICE_GET_REGION_INFO, NOWHERE, EFAULT },
		{ "REGION_INFO, len 0", region(0, 0), EINVAL },
		{ "REGION_INFO, len 31", region(31, 0), EINVAL },
		{ "REGION_INFO, len 32", region(32, 0), 0 },
		{ "REGION_INFO, len 40", region(40, 0), 0 },
		{ "REGION_INFO, len 41", region(41, 0), EINVAL },
		{ "REGION_INFO, last index", region(40, 7), 0 },
		{ "REGION_INFO, index 8", region(40, 8), EINVAL },
		{ "REGION_INFO, index -1", region(40, ~0u), EINVAL },
		{ "IRQ_INFO of nowhere", s.device, VFIO_DEVICE_GET_IRQ_INFO, NOWHERE, EFAULT },
		{ "IRQ_INFO, len 0", irq(0, 0), EINVAL },
		{ "IRQ_INFO, len 15", irq(15, 0), EINVAL },
		{ "IRQ_INFO, len 17", irq(17, 0), EINVAL },
		{ "IRQ_INFO, len 16", irq(16, 0), 0 },
		{ "IRQ_INFO, last index", irq(16, 2), 0 },
		{ "IRQ_INFO, index 3", irq(16, 3), EINVAL },
		{ "GET_DTPATH of a PCI device", s.device, VFIO_DEVICE_GET_DTPATH,
		  &(struct vfio_dtpath){ .len = 24, .flags = VFIO_DTPATH_FLAGS_REGION }, ENOTTY },
		{ "GET_DTINDEX of a PCI device", s.device, VFIO_DEVICE_GET_DTINDEX,
		  &(struct vfio_dtindex){ .len = 24, .flags = VFIO_DTINDEX_FLAGS_REGION }, ENOTTY },
		{ "unknown request", s.device, _IO(';', 199), NULL, ENOTTY },
		{ "a group's request", s.device, VFIO_GROUP_GET_FLAGS, NULL, ENOTTY },
		{ "an iommu's request", s.device, VFIO_IOMMU_MAP_DMA, NULL, ENOTTY },
		{ "RESET of a function that has none", s.device, VFIO_DEVICE_RESET, NULL, EINVAL },
	};
	struct row edge_good_len[] = {
		{ "REGION_INFO runs off the edge", s.device, VFIO_DEVICE_GET_REGION_INFO,
		  len_at_edge, EFAULT },
	};
	struct row edge_bad_len[] = {
		{ "REGION_INFO, bad len before the edge", s.device, VFIO_DEVICE_GET_REGION_INFO,
		  len_at_edge, EINVAL },
		{ "SET_IRQ_EVENTFDS, index alone", s.device, VFIO_DEVICE_SET_IRQ_EVENTFDS,
		  len_at_edge, EFAULT },
	};
	struct row irqs[] = {
		{ "SET_IRQ_EVENTFDS of nowhere", s.device, VFIO_DEVICE_SET_IRQ_EVENTFDS, NOWHERE,
		  EFAULT },
		{ "SET_IRQ_EVENTFDS, index 3", eventfds(3, 1, event), EINVAL },
		{ "SET_IRQ_EVENTFDS, index -1", eventfds(-1, 0), EINVAL },
		{ "INTx, 2 vectors", eventfds(0, 2, event, event), EINVAL },
		{ "INTx, -1 vectors", eventfds(0, -1, event), EINVAL },
		{ "INTx, descriptor -1", eventfds(0, 1, -1), EINVAL },
		{ "INTx, closed descriptor", eventfds(0, 1, CLOSED), EBADF },
		{ "INTx, no eventfd", eventfds(0, 1, null), EINVAL },
		{ "INTx, a device as eventfd", eventfds(0, 1, s.device), EINVAL },
		{ "INTx, drop what is not set", eventfds(0, 0), 0 },
		{ "MSI, drop what is not set", eventfds(1, 0), EINVAL },
		{ "MSI, 2 vectors of 1", eventfds(1, 2, event, event), EINVAL },
		{ "MSI, -1 vectors", eventfds(1, -1, event), EINVAL },
		{ "MSI, closed descriptor", eventfds(1, 1, CLOSED), EBADF },
		{ "MSI, no eventfd", eventfds(1, 1, null), EINVAL },
		{ "MSI-X, drop what is not set", eventfds(2, 0), EINVAL },
		{ "MSI-X of a device without", eventfds(2, 1, event), EINVAL },
		{ "INTx", eventfds(0, 1, event), 0 },
		{ "MSI beside INTx", eventfds(1, 1, event), EINVAL },
		{ "INTx, drop", eventfds(0, 0), 0 },
		{ "MSI", eventfds(1, 1, event), 0 },
		{ "INTx beside MSI", eventfds(0, 1, event), EINVAL },
		{ "MSI twice", eventfds(1, 1, event), EINVAL },
		{ "MSI, drop", eventfds(1, 0), 0 },
		{ "MSI, drop twice", eventfds(1, 0), EINVAL },
		{ "UNMASK_IRQ of nowhere", s.device, VFIO_DEVICE_UNMASK_IRQ, NOWHERE, EFAULT },
		{ "UNMASK_IRQ of MSI", unmask(1), EINVAL },
		{ "UNMASK_IRQ, index -1", unmask(-1), EINVAL },
		{ "UNMASK_IRQ with nothing masked", unmask(0), 0 },
		{ "unmask eventfd of nowhere", s.device, VFIO_DEVICE_SET_UNMASK_IRQ_EVENTFD, NOWHERE,
		  EFAULT },
		{ "unmask eventfd, index alone", s.device, VFIO_DEVICE_SET_UNMASK_IRQ_EVENTFD,
		  len_at_edge, EFAULT },
		{ "unmask eventfd of MSI", unmask_event(1, event), EINVAL },
		{ "unmask eventfd, end what is not set", unmask_event(0, -1), ENODEV },
		{ "unmask eventfd, closed descriptor", unmask_event(0, CLOSED), EBADF },
		{ "unmask eventfd, no eventfd", unmask_event(0, null), EINVAL },
		{ "unmask eventfd", unmask_event(0, event), 0 },
		{ "unmask eventfd twice", unmask_event(0, event), EBUSY },
		{ "unmask eventfd, end", unmask_event(0, -1), 0 },
		{ "unmask eventfd, end twice", unmask_event(0, -1), ENODEV },
	};
	struct row irq_edge[] = {
		{ "INTx, descriptors beyond the edge", s.device, VFIO_DEVICE_SET_IRQ_EVENTFDS,
		  irq_at_edge, EFAULT },
	};

	run_table("device", info);
	*len_at_edge = 40;
	run_table("device", edge_good_len);
	*len_at_edge = 0;
	run_table("device", edge_bad_len);
	run_table("device", irqs);
	irq_at_edge[0] = VFIO_PCI_INTX_IRQ_INDEX;
	irq_at_edge[1] = 1;
	run_table("device", irq_edge);
	irq_at_edge[0] = VFIO_PCI_MSI_IRQ_INDEX;
	run_table("device, MSI", irq_edge);
	need(close(event));
	session_close(&s);

	s = session_open(GROUP_B, DEVICE_B);
	__u64 flags = 0;

	need(ioctl(s.device, VFIO_DEVICE_GET_FLAGS, &flags));
	check("a device alone on its bus has RESET", flags & VFIO_DEVICE_FLAGS_RESET);
	check_ok("and can be reset", ioctl(s.device, VFIO_DEVICE_RESET));
	session_close(&s);
}

static struct vfio_region_info region_of(int device, unsigned int index)
{
	struct vfio_region_info info = { .len = sizeof(info), .index = index };

	need(ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &info));
	return info;
}

static void region_errors(void)
{
	struct session s = session_open(GROUP_A, DEVICE_A);
	int fd = s.device;
	off_t bar0 = s.bar0, config = s.config, none = region_offset(fd, 1);
	off_t rom = region_offset(fd, 6), no_region = config + ((off_t)1 << 40);
	off_t bar0_end = bar0 + (off_t)region_of(fd, 0).size;
	off_t config_end = config + (off_t)region_of(fd, 7).size;
	uint64_t value = 0;

	check_equal("region: BAR 1 is not there", region_of(fd, 1).size, 0);
	check_equal("region: at the end of a BAR", need(pread(fd, &value, 4, bar0_end)), 0);
	check_errno("region: beyond the end of a BAR", pread(fd, &value, 4, bar0_end + 4), EINVAL);
	check_equal("region: over the end of a BAR", need(pread(fd, &value, 8, bar0_end - 4)), 4);
	check_equal("region: no bytes", need(pread(fd, &value, 0, bar0)), 0);
	check_errno("region: a BAR that is not there", pread(fd, &value, 4, none), EINVAL);
	check_errno("region: write to one", pwrite(fd, &value, 4, none), EINVAL);
	check_errno("region: ROM without an image", pread(fd, &value, 4, rom), EINVAL);
	check_errno("region: write to a ROM", pwrite(fd, &value, 4, rom), EINVAL);
	check_equal("region: at the end of configuration", need(pread(fd, &value, 4, config_end)), 0);
	check_errno("region: beyond it", pread(fd, &value, 4, config_end + 4), EINVAL);
	check_equal("region: over it", need(pread(fd, &value, 4, config_end - 2)), 2);
	check_errno("region: number 8", pread(fd, &value, 4, no_region), EINVAL);
	check_errno("region: write to number 8", pwrite(fd, &value, 4, no_region), EINVAL);
	check_errno("region: read to nowhere", pread(fd, NOWHERE, 4, bar0), EFAULT);
	check_errno("region: write from nowhere", pwrite(fd, NOWHERE, 4, bar0 + EDU_LIVENESS), EFAULT);
	check_errno("region: configuration to nowhere", pread(fd, NOWHERE, 4, config), EFAULT);
	check_errno("region: configuration from nowhere", pwrite(fd, BEYOND, 4, config), EFAULT);
	check_errno("region: seek", lseek(fd, 0, SEEK_SET), ESPIPE);
	check_equal("region: the ids take writes", need(pwrite(fd, &value, 4, config)), 4);
	check_equal("region: and ignore them", get32(fd, config), EDU_VENDOR_DEVICE);

#define check_no_mmap(name, flags, offset)						\
	do {										\
		errno = 0;								\
		if (mmap(NULL, PAGE, PROT_READ | PROT_WRITE, flags, fd, offset) != MAP_FAILED) \
			die("%s: it was mapped", name);					\
		if (errno != EINVAL)							\
			die("%s: %s", name, strerror(errno));				\
		pass(name);								\
	} while (0)
	check_no_mmap("mmap: private", MAP_PRIVATE, bar0);
	check_no_mmap("mmap: configuration", MAP_SHARED, config);
	check_no_mmap("mmap: ROM", MAP_SHARED, rom);
	check_no_mmap("mmap: a BAR that is not there", MAP_SHARED, none);
	check_no_mmap("mmap: region 8", MAP_SHARED, no_region);
	if (!(region_of(fd, 0).flags & VFIO_REGION_INFO_FLAG_MMAP))
		check_no_mmap("mmap: a BAR without MMAP", MAP_SHARED, bar0);
	check_no_mmap("mmap: beyond a BAR", MAP_SHARED, bar0_end);
	session_close(&s);
}

/* Memory that is there, but not for the program: neither for those who act in its name */
static void protection_errors(void)
{
	struct session s = session_open(GROUP_A, DEVICE_A);
	char *read_only = pages(1), *none = pages(1);
	struct row rows[] = {
		{ "answer to read-only memory", s.group, VFIO_GROUP_GET_FLAGS, read_only, EFAULT },
		{ "answer to PROT_NONE", s.group, VFIO_GROUP_GET_FLAGS, none, EFAULT },
		{ "name in PROT_NONE", s.group, VFIO_GROUP_GET_DEVICE_FD, none, EFAULT },
		{ "struct in PROT_NONE", s.iommu, VFIO_IOMMU_UNMAP_DMA, none, EFAULT },
		{ "answer to a read-only struct", s.device, VFIO_DEVICE_GET_NUM_IRQS, read_only,
		  EFAULT },
	};

	strcpy(none, DEVICE_A);
	memset(read_only, 0x77, PAGE);
	need(mprotect(none, PAGE, PROT_NONE));
	need(mprotect(read_only, PAGE, PROT_READ));
	run_table("protection", rows);
	check_errno("protection: register to read-only memory", pread(s.device, read_only, 4, s.bar0),
		    EFAULT);
	check_errno("protection: register to PROT_NONE", pread(s.device, none, 4, s.bar0), EFAULT);
	check_errno("protection: register from PROT_NONE",
		    pwrite(s.device, none, 4, s.bar0 + EDU_LIVENESS), EFAULT);
	check_errno("protection: configuration to read-only memory",
		    pread(s.device, read_only, 4, s.config), EFAULT);
	for (size_t i = 0; i < PAGE; i++)
		if (read_only[i] != 0x77)
			die("protection: read-only memory was changed");
	pass("protection: read-only memory is unchanged");
	session_close(&s);
}

int main(void)
{
	open_errors();
	group_errors();
	merge_errors();
	owner_errors();
	iommu_errors();
	memlock_errors();
	device_errors();
	region_errors();
	descriptor_errors();
	protection_errors();
	check_equal("everything released", flags_of(GROUP_A), VIABLE);
	check_equal("everything released, other group", flags_of(GROUP_B), VIABLE);
	return 0;
}
