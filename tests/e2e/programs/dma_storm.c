/* SPDX-License-Identifier: MIT */
/*
 * dma_storm GROUP ADDRESS SEED: memory is mapped for a device, unmapped, taken
 * away, truncated and inherited, in random order, while the device reads, writes
 * and views it, and a thread changes the address space all the time. Register 0
 * of the device is an address, register 8 makes it use a page there. Prints "at
 * rest", reads a number of rounds, and begins again.
 */
#include "session.h"

#include <pthread.h>
#include <stdatomic.h>
#include <sys/wait.h>

#define SLOTS	16
#define SIZE	(4 * PAGE)

static uint64_t state;
static atomic_int done;
static unsigned char *area;	/* SLOTS ranges of SIZE bytes */
static int file;

/* xorshift64*, Vigna */
static unsigned int below(unsigned int limit)
{
	state ^= state >> 12;
	state ^= state << 25;
	state ^= state >> 27;
	return (unsigned int)((state * 2685821657736338717ull >> 32) % limit);
}

static void place(unsigned int slot, unsigned int kind)
{
	unsigned char *at = area + slot * SIZE;
	int flags = MAP_FIXED | (kind == 2 ? MAP_SHARED : MAP_PRIVATE);

	if (kind == 0)
		flags |= MAP_ANONYMOUS;
	if (mmap(at, SIZE, PROT_READ | PROT_WRITE, flags, kind ? file : -1, kind ? (off_t)slot * SIZE : 0) != at)
		die("mmap: %s", strerror(errno));
}

static void *change(void *unused)
{
	for (unsigned int i = 0; !done; i++) {
		unsigned int slot = i % (SLOTS / 2);	/* the other half is the storm's */

		place(slot, i / 7 % 3);
		munmap(area + slot * SIZE + PAGE, PAGE);
		need(ftruncate(file, i % 5 * 3 * PAGE));
		need(ftruncate(file, SLOTS * SIZE));
		mprotect(area + slot * SIZE, PAGE, i % 2 ? PROT_READ : PROT_NONE);
	}
	return unused;
}

static void use(const struct session *s, unsigned int slot)
{
	uint64_t iova = 0x100000 + slot * SIZE + below(SIZE);

	reg_write(s, 0, (uint32_t)iova);
	reg_write(s, 8, 1 + below(3));
}

static void storm(const struct session *s, int rounds)
{
	pthread_t thread;

	done = 0;
	need(-pthread_create(&thread, NULL, change, NULL));
	for (int i = 0; i < rounds; i++) {
		unsigned int slot = below(SLOTS);
		uint64_t iova = 0x100000 + slot * SIZE;
		pid_t child;
		int status;

		switch (below(12)) {
		case 0: case 1: case 2:
			dma_map(s->iommu, area + slot * SIZE, iova, (1 + below(4)) * PAGE);
			break;
		case 3: case 4:
			dma_unmap(s->iommu, iova, (1 + below(8)) * PAGE);
			break;
		case 5:
			place(SLOTS / 2 + slot / 2, below(3));
			break;
		case 6:
			munmap(area + (SLOTS / 2 + slot / 2) * SIZE, SIZE);
			break;
		case 7:
			if (below(16))
				break;
			child = need(fork());
			if (!child) {
				use(s, slot);
				dma_unmap(s->iommu, iova, SIZE);
				use(s, slot);
				_exit(0);
			}
			use(s, slot);
			if (waitpid(child, &status, 0) != child || status)
				die("a child ended with %#x", status);
			break;
		default:
			use(s, slot);
		}
	}
	done = 1;
	pthread_join(thread, NULL);
	for (unsigned int slot = 0; slot < SLOTS; slot++) {
		dma_unmap(s->iommu, 0x100000 + slot * SIZE, SIZE);
		place(slot, 0);
	}
}

int main(int argc, char **argv)
{
	struct session s;
	char line[32];

	if (argc != 4)
		die("usage: dma_storm GROUP ADDRESS SEED");
	state = strtoull(argv[3], NULL, 0) * 0x9e3779b97f4a7c15ull | 1;
	file = need(memfd_create("storm", MFD_CLOEXEC));
	need(ftruncate(file, SLOTS * SIZE));
	area = pages(SLOTS * SIZE / PAGE);
	s = session_open(argv[1], argv[2]);
	setvbuf(stdout, NULL, _IONBF, 0);
	puts("at rest");
	while (fgets(line, sizeof(line), stdin)) {
		storm(&s, atoi(line));
		puts("at rest");
	}
	session_close(&s);
	return 0;
}
