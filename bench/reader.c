/* SPDX-License-Identifier: MIT */
/*
 * reader COUNT [GROUP ADDRESS [hold]]: what a register read by pread() costs.
 *
 * Without a group it reads at offset 2^40 of /dev/null: under `floor`, where
 * every such read is answered. With one it opens the device and reads the
 * identification register of edu, and, with "hold", waits for the end of stdin
 * before it ends (so that its supervisor can be looked at).
 */
#define _FILE_OFFSET_BITS 64
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <uvfio/vfio-2011.h>

#include "timing.h"

#define EDU_ID_VALUE	0x010000edu

static void __attribute__((noreturn)) fail(const char *what)
{
	fprintf(stderr, "reader: %s: %s\n", what, strerror(errno));
	exit(1);
}

static void read_one(int fd, off_t at)
{
	uint32_t value;

	if (pread(fd, &value, sizeof(value), at) != sizeof(value))
		fail("pread");
	if (value != EDU_ID_VALUE)
		fail("another value");
}

int main(int argc, char **argv)
{
	struct vfio_region_info region = { .len = sizeof(region) };
	off_t at = (off_t)1 << 40;
	char path[64], byte;
	long count;
	int fd;

	if (argc != 2 && argc != 4 && argc != 5) {
		fprintf(stderr, "usage: reader COUNT [GROUP ADDRESS [hold]]\n");
		return 2;
	}
	count = atol(argv[1]);
	if (argc == 2) {
		fd = open("/dev/null", O_RDONLY);
	} else {
		snprintf(path, sizeof(path), "/dev/vfio/%s", argv[2]);
		fd = open(path, O_RDWR);
		if (fd < 0)
			fail(path);
		fd = ioctl(fd, VFIO_GROUP_GET_DEVICE_FD, argv[3]);
		if (fd < 0)
			fail(argv[3]);
		if (ioctl(fd, VFIO_DEVICE_GET_REGION_INFO, &region))
			fail("REGION_INFO");
		at = (off_t)region.offset;
	}
	if (fd < 0)
		fail("open");
	for (int i = 0; i < 200; i++)
		read_one(fd, at);	/* warm caches, both sides */
	MEASURE("pread", count, read_one(fd, at));
	if (argc == 5)
		while (read(0, &byte, 1) > 0)
			;
	return 0;
}
