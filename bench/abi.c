/* SPDX-License-Identifier: MIT */
/*
 * abi calls GROUP ADDRESS COUNT: what the calls of one interface cost.
 * abi mappings GROUP ADDRESS COUNT: what COUNT mappings of a page cost, and to
 * be rid of them one by one and all at once. Prints name, ns, ns, in parts: the
 * first thousand and the last.
 *
 * Compiled once with SESSION="session_2011.h" and once with
 * "session_mainline.h"; what is measured is the same text.
 */
#define _GNU_SOURCE
#define _FILE_OFFSET_BITS 64
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "timing.h"

static void must(long result)
{
	if (result < 0) {
		fprintf(stderr, "abi: %s\n", strerror(errno));
		exit(1);
	}
}

#include SESSION

#define PAGE	4096UL
#define IOVA	(4UL << 30)
#define PART	1000

static void measure_calls(struct session *s, char *page, long count)
{
	uint32_t value;
	off_t at = registers(s);

	for (int i = 0; i < 200; i++) {	/* warm caches, both sides */
		must(pread(s->device, &value, 4, at));
		ask_device(s);
		registers(s);
		map(s, page, IOVA, PAGE);
		unmap(s, IOVA, PAGE);
	}
	MEASURE("pread", count, must(pread(s->device, &value, 4, at)));
	MEASURE("device info", count, ask_device(s));
	MEASURE("region info", count, registers(s));
	MEASURE("map+unmap", count / 2, (map(s, page, IOVA, PAGE), unmap(s, IOVA, PAGE)));
}

/* The n-th mapping: every other page, so that neighbours are never joined */
static uint64_t place(long n)
{
	return IOVA + (uint64_t)n * 2 * PAGE;
}

static void one(struct session *s, char *page, long n, int unmapping)
{
	if (unmapping)
		unmap(s, place(n), PAGE);
	else
		map(s, page, place(n), PAGE);
}

/* ns of each: of the first PART, and of the last 20 PARTs (or as many as there are) */
static void all(struct session *s, char *page, long count, const char *name, int unmapping)
{
	long tail = count - 20 * PART > PART ? count - 20 * PART : PART;
	double begun = now_ns(), first = 0, late = 0;

	for (long n = 0; n < count; n++) {
		if (n == PART)
			first = now_ns() - begun;
		if (n == tail)
			late = now_ns();
		one(s, page, n, unmapping);
	}
	printf("%s %.1f %.1f\n", name, (now_ns() - late) / (double)(count - tail), first / PART);
	fflush(stdout);
}

static void measure_mappings(struct session *s, char *page, long count)
{
	double begun;

	all(s, page, 2 * PART, "warm", 0);	/* caches, both sides */
	unmap(s, IOVA, place(2 * PART) - IOVA);
	all(s, page, count, "map", 0);
	all(s, page, count, "unmap", 1);
	all(s, page, count, "map again", 0);
	begun = now_ns();
	unmap(s, IOVA, place(count) - IOVA);
	printf("unmap all %.1f 0\n", (now_ns() - begun) / (double)count);
}

int main(int argc, char **argv)
{
	struct session s;
	char *page;
	long count;

	if (argc != 5) {
		fprintf(stderr, "usage: abi calls|mappings GROUP ADDRESS COUNT\n");
		return 2;
	}
	count = atol(argv[4]);
	begin(&s, argv[2], argv[3]);
	page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (page == MAP_FAILED)
		must(-1);
	if (!strcmp(argv[1], "calls"))
		measure_calls(&s, page, count);
	else
		measure_mappings(&s, page, count);
	return 0;
}
