/* SPDX-License-Identifier: MIT */
/*
 * fuzz_ioctl [COUNT [SEED]]: COUNT calls of all kinds with arguments good, bad
 * and absurd; afterwards a normal session must work.
 *
 * The same COUNT and SEED make the same calls. Only the far side is to be shaken:
 * whatever answers come, this program keeps its own memory: valid arguments
 * lie in one arena between pages without access, DMA can only reach another one,
 * and descriptors come from a table, so that standard files stay what they are.
 */
#include "session.h"

#define ARENA_PAGES	16u
#define DMA_PAGES	16u
#define FILES		48

static uint64_t state;
static char *arena;	/* arguments; no access before and behind */
static char *dma_arena;
static int files[FILES];
static unsigned long calls_ok, calls_failed;

/* xorshift64*, Vigna */
static uint64_t next(void)
{
	state ^= state >> 12;
	state ^= state << 25;
	state ^= state >> 27;
	return state * 2685821657736338717ull;
}

static unsigned int below(unsigned int limit)
{
	return (unsigned int)((next() >> 32) % limit);
}

#define pick(array)	((array)[below(sizeof(array) / sizeof((array)[0]))])

static void *guarded(size_t count)
{
	char *memory = mmap(NULL, (count + 2) * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (memory == MAP_FAILED)
		die("mmap: %s", strerror(errno));
	need(mprotect(memory + PAGE, count * PAGE, PROT_READ | PROT_WRITE));
	return memory + PAGE;
}

static long long tally(long long result)
{
	if (result == -1)
		calls_failed++;
	else
		calls_ok++;
	return result;
}

/* ---- descriptors ---- */

/* Keep a new descriptor; an old one makes room */
static void keep(int fd)
{
	int *slot = &files[below(FILES)];

	if (fd < 0)
		return;
	for (int i = 0; i < FILES; i++)
		if (files[i] == fd)
			return;	/* dup2 onto it */
	if (*slot >= 0)
		close(*slot);
	*slot = fd;
}

static int any_file(void)
{
	static const int never[] = { -1, -100, 997, 1 << 20, 0x7fffffff };

	if (below(16) == 0)
		return pick(never);
	for (int tries = 0; tries < 4; tries++) {
		int fd = files[below(FILES)];

		if (fd >= 0)
			return fd;
	}
	return -1;
}

static void open_something(void)
{
	int pair[2];

	switch (below(8)) {
	case 0:
		keep(open("/dev/null", O_RDWR));
		break;
	case 1:
		keep(eventfd(below(4), EFD_NONBLOCK));
		break;
	case 2:
		if (pipe2(pair, O_NONBLOCK) == 0) {
			keep(pair[0]);
			keep(pair[1]);
		}
		break;
	case 3:
	case 4:
		keep(open_group(GROUP_B));
		break;
	default:
		keep(open_group(GROUP_A));
	}
}

/* ---- arguments ---- */

static void *bad_pointer(void)
{
	switch (below(6)) {
	case 0:
		return NULL;
	case 1:
		return (void *)(uintptr_t)(1 + below(4095));
	case 2:	/* a kernel's */
		return (void *)(uintptr_t)0xffff888000000000ull;
	case 3:	/* not canonical */
		return (void *)(uintptr_t)0x8000000000000000ull;
	case 4:
		return arena - 1 - below(64);
	default:
		return arena + ARENA_PAGES * PAGE + below(64);
	}
}

/* Memory that may be written by an answer: at most `size` bytes from there on are the arena's */
static void *argument_place(size_t size)
{
	switch (below(4)) {
	case 0:	/* ends with the last page */
		return arena + ARENA_PAGES * PAGE - size;
	case 1:	/* runs over it, or not aligned */
		return arena + ARENA_PAGES * PAGE - below((unsigned int)size + 1);
	case 2:	/* across two pages */
		return arena + PAGE - below((unsigned int)size + 1);
	default:
		return arena + below(ARENA_PAGES / 2) * PAGE;
	}
}

/* Bytes into the arena, as many as it has there */
static void fill_in(void *place, const void *bytes, size_t size)
{
	size_t room = (size_t)(arena + ARENA_PAGES * PAGE - (char *)place);

	memcpy(place, bytes, size < room ? size : room);
}

static uint64_t odd_number(void)
{
	static const uint64_t numbers[] = {
		0, 1, 2, 7, 8, 16, 32, 40, 4095, 4096, 4097, 0x7fffffff, 0x80000000, 0xffffffff,
		1ull << 32, 1ull << 40, 1ull << 47, 1ull << 48, 1ull << 63, ~0ull, ~0ull << 12,
		0xfee00000,
	};

	return below(4) ? pick(numbers) : next();
}

/* vaddr of a mapping: our DMA arena, or where nothing of this program is */
static uint64_t dma_target(void)
{
	switch (below(6)) {
	case 0:
		return (uintptr_t)bad_pointer() & ~0xfffull;
	case 1:
		return (uintptr_t)dma_arena + below(DMA_PAGES * PAGE);
	case 2:
		return ~0ull << 12;
	default:
		return (uintptr_t)dma_arena + below(DMA_PAGES) * (uint64_t)PAGE;
	}
}

static void *dma_argument(void)
{
	struct vfio_dma_map map;
	uint64_t vaddr = dma_target();
	uint64_t room = (uintptr_t)dma_arena + DMA_PAGES * PAGE - vaddr;
	void *place = argument_place(sizeof(map));

	map.len = next();
	map.vaddr = vaddr;
	map.dmaaddr = below(4) ? below(64) * (uint64_t)PAGE : odd_number();
	map.size = below(4) ? (1 + below(DMA_PAGES)) * (uint64_t)PAGE : odd_number();
	/* never beyond the arena into what may be ours: a device would write there */
	if (room <= DMA_PAGES * PAGE && map.size > room && map.size < 1ull << 46)
		map.size = room;
	map.flags = below(8) ? below(2) : odd_number();
	fill_in(place, &map, sizeof(map));
	return place;
}

static void *numbers_argument(void)
{
	__u32 words[12];
	void *place = argument_place(sizeof(words));

	for (int i = 0; i < 12; i++)
		words[i] = (__u32)odd_number();
	/* mostly something that is looked at: lengths, small indices, counts */
	if (below(4)) {
		static const __u32 lengths[] = { 0, 15, 16, 17, 24, 31, 32, 36, 40, 41 };

		words[0] = pick(lengths);
		words[1] = below(10);
	}
	fill_in(place, words, sizeof(words));
	return place;
}

static void *irq_argument(void)
{
	int words[40];
	void *place = argument_place(sizeof(words));

	words[0] = below(8) ? (int)below(4) : (int)odd_number();
	words[1] = below(8) ? (int)below(3) : (int)odd_number();
	if (below(4) == 0)
		words[1] = any_file();	/* for SET_UNMASK_IRQ_EVENTFD and MERGE */
	for (int i = 2; i < 40; i++)
		words[i] = any_file();
	if (below(3) == 0)
		words[0] = any_file();
	fill_in(place, words, sizeof(words));
	return place;
}

static void *name_argument(void)
{
	static const char *const names[] = {
		DEVICE_A, DEVICE_A, DEVICE_A1, DEVICE_B, DEVICE_B, "", "0000:06:0d", "x",
		"0000:06:0d.0 ", "\xff\xfe", "../../etc",
	};
	const char *name = pick(names);
	char *place = argument_place(strlen(name) + 1);

	if (below(16) == 0) {
		memset(arena, 'n', ARENA_PAGES * PAGE);	/* no end */
		return arena + below(ARENA_PAGES * PAGE);
	}
	fill_in(place, name, strlen(name) + 1);
	return place;
}

static void *any_argument(void)
{
	switch (below(6)) {
	case 0:
		return bad_pointer();
	case 1:
		return dma_argument();
	case 2:
		return irq_argument();
	case 3:
		return name_argument();
	default:
		return numbers_argument();
	}
}

/* ---- calls ---- */

static const unsigned long requests[] = {
	VFIO_GROUP_GET_FLAGS, VFIO_GROUP_MERGE, VFIO_GROUP_UNMERGE, VFIO_GROUP_GET_IOMMU_FD,
	VFIO_GROUP_GET_DEVICE_FD, VFIO_IOMMU_GET_FLAGS, VFIO_IOMMU_MAP_DMA, VFIO_IOMMU_UNMAP_DMA,
	VFIO_DEVICE_GET_FLAGS, VFIO_DEVICE_GET_NUM_REGIONS, VFIO_DEVICE_GET_REGION_INFO,
	VFIO_DEVICE_GET_NUM_IRQS, VFIO_DEVICE_GET_IRQ_INFO, VFIO_DEVICE_SET_IRQ_EVENTFDS,
	VFIO_DEVICE_UNMASK_IRQ, VFIO_DEVICE_SET_UNMASK_IRQ_EVENTFD, VFIO_DEVICE_RESET,
	VFIO_DEVICE_GET_DTPATH, VFIO_DEVICE_GET_DTINDEX,
};

static void *argument_for(unsigned long request)
{
	if (below(8) == 0)
		return any_argument();
	switch (request) {
	case VFIO_IOMMU_MAP_DMA:
	case VFIO_IOMMU_UNMAP_DMA:
		return dma_argument();
	case VFIO_GROUP_GET_DEVICE_FD:
		return name_argument();
	case VFIO_GROUP_MERGE:
	case VFIO_GROUP_UNMERGE:
	case VFIO_DEVICE_SET_IRQ_EVENTFDS:
	case VFIO_DEVICE_UNMASK_IRQ:
	case VFIO_DEVICE_SET_UNMASK_IRQ_EVENTFD:
		return irq_argument();
	case VFIO_DEVICE_GET_DTPATH: {
		struct vfio_dtpath path = { .len = (__u32)odd_number(), .index = below(9),
					    .flags = below(4), .path = argument_place(64) };
		void *place = arena + 2 * PAGE;

		fill_in(place, &path, sizeof(path));
		return place;
	}
	default:
		return numbers_argument();
	}
}

/* Always of type ';': other types would reach other drivers, which are not to be tested */
static unsigned long any_request(void)
{
	unsigned long request = pick(requests);

	switch (below(8)) {
	case 0:	/* the same number, another size or direction */
		return (request & 0xffff) | (unsigned long)(next() & 0xffff0000u);
	case 1:	/* another number */
		return (request & ~0xfful) | below(256);
	case 2:
		return (';' << 8) | below(256);
	default:
		return request;
	}
}

static void fuzz_ioctl(void)
{
	unsigned long request = any_request();
	int result = (int)tally(ioctl(any_file(), request, argument_for(request)));

	if (result > 2)
		keep(result);	/* GET_IOMMU_FD and GET_DEVICE_FD */
}

static off_t any_offset(void)
{
	off_t region = (off_t)below(10) << 40;

	switch (below(6)) {
	case 0:
		return (off_t)odd_number();
	case 1:
		return region + (1 << 20) - below(16);
	case 2:
		return region + 256 - below(16);
	default:
		return region + below(0x100);
	}
}

static void fuzz_regions(void)
{
	static const size_t sizes[] = { 0, 1, 2, 3, 4, 4, 4, 7, 8, 8, 16, 64, 300 };
	size_t size = pick(sizes);
	void *place = below(8) ? argument_place(size ? size : 1) : bad_pointer();
	int fd = any_file();

	if (below(2)) {
		tally(pread(fd, place, size, any_offset()));
		return;
	}
	if (below(2) && (char *)place >= arena && (char *)place < arena + ARENA_PAGES * PAGE) {
		__u64 values[2] = { odd_number(), below(256) * (uint64_t)PAGE };

		fill_in(place, values, sizeof(values));
	}
	tally(pwrite(fd, place, size, any_offset()));
}

static void fuzz_mmap(void)
{
	static const int protections[] = { PROT_NONE, PROT_READ, PROT_READ | PROT_WRITE };
	static const int kinds[] = { MAP_SHARED, MAP_SHARED, MAP_PRIVATE };
	size_t size = (1 + below(300)) * (size_t)PAGE;
	void *mapped = mmap(NULL, size, pick(protections), pick(kinds), any_file(),
			    any_offset() & ~0xfffll);

	tally(mapped == MAP_FAILED ? -1 : 0);
	if (mapped != MAP_FAILED)
		need(munmap(mapped, size));
}

static void fuzz_descriptors(void)
{
	int *slot = &files[below(FILES)];
	int fd = any_file();

	switch (below(6)) {
	case 0:
		keep((int)tally(dup(fd)));
		break;
	case 1:	/* to a number of our own, free or taken by one of ours */
		keep((int)tally(dup2(fd, 200 + (int)below(32))));
		break;
	case 2:
		keep((int)tally(fcntl(fd, F_DUPFD_CLOEXEC, 100)));
		break;
	case 3:
		tally(fcntl(fd, F_GETFL));
		tally(lseek(fd, (off_t)odd_number(), (int)below(3)));
		break;
	default:
		if (*slot >= 0)
			tally(close(*slot));
		*slot = -1;
	}
}

/* ---- afterwards ---- */

static void normal_session(const char *group, const char *address)
{
	struct session s = session_open(group, address);
	int event = need(eventfd(0, EFD_NONBLOCK));
	unsigned char *memory = pages(2);

	check_equal("afterwards: ids", get32(s.device, s.config), EDU_VENDOR_DEVICE);
	check_equal("afterwards: identification", reg_read(&s, EDU_ID), EDU_ID_VALUE);
	reg_write(&s, EDU_LIVENESS, 0x13572468);
	check_equal("afterwards: liveness", reg_read(&s, EDU_LIVENESS), ~0x13572468u);
	reg_write(&s, EDU_IRQ_ACK, ~0u);	/* whatever is left over from before */
	need(set_irq(s.device, VFIO_PCI_MSI_IRQ_INDEX, event));
	reg_write(&s, EDU_IRQ_RAISE, 1);
	check_equal("afterwards: MSI", event_count(event, 5000), 1);
	reg_write(&s, EDU_IRQ_ACK, 1);
	need(set_irq(s.device, VFIO_PCI_MSI_IRQ_INDEX, -1));
	need(dma_map(s.iommu, memory, 0x100000, 2 * PAGE));
	memset(memory, 0xa5, PAGE);
	/* upper halves too are left over: a function that cannot be reset keeps its registers */
	reg_write(&s, EDU_DMA_SOURCE + 4, 0);
	reg_write(&s, EDU_DMA_DESTINATION + 4, 0);
	reg_write(&s, EDU_DMA_COUNT + 4, 0);
	dma_run(&s, 0x100000, EDU_BUFFER, PAGE, 0);
	dma_run(&s, EDU_BUFFER, 0x100000 + PAGE, PAGE, EDU_DMA_TO_MEMORY);
	check("afterwards: DMA", !memcmp(memory, memory + PAGE, PAGE));
	session_close(&s);
	need(close(event));
	need(munmap(memory, 2 * PAGE));
}

int main(int argc, char **argv)
{
	unsigned long count = argc > 1 ? strtoul(argv[1], NULL, 0) : 20000;

	state = argc > 2 ? strtoull(argv[2], NULL, 0) : 1;
	state = state * 0x9e3779b97f4a7c15ull | 1;	/* never 0, and small seeds differ */
	arena = guarded(ARENA_PAGES);
	dma_arena = guarded(DMA_PAGES);
	for (int i = 0; i < FILES; i++)
		files[i] = -1;
	for (int i = 0; i < 12; i++)
		open_something();
	for (unsigned long i = 0; i < count; i++) {
		switch (below(16)) {
		case 0:
			open_something();
			break;
		case 1:
			fuzz_descriptors();
			break;
		case 2:
			fuzz_mmap();
			break;
		case 3:
		case 4:
		case 5:
			fuzz_regions();
			break;
		default:
			fuzz_ioctl();
		}
	}
	for (int i = 0; i < FILES; i++)
		if (files[i] >= 0)
			close(files[i]);
	printf("%lu calls succeeded, %lu failed\n", calls_ok, calls_failed);
	check_equal("afterwards: first group is free", flags_of(GROUP_A), VFIO_GROUP_FLAGS_VIABLE);
	check_equal("afterwards: second group is free", flags_of(GROUP_B), VFIO_GROUP_FLAGS_VIABLE);
	normal_session(GROUP_A, DEVICE_A);
	normal_session(GROUP_A, DEVICE_A1);
	normal_session(GROUP_B, DEVICE_B);
	pass("fuzz_ioctl");
	return 0;
}
