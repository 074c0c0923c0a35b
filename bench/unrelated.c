/* SPDX-License-Identifier: MIT */
/*
 * unrelated FILE COUNT: what ordinary calls cost, to be run with and without a
 * supervisor. Only the last three are looked at by it: any open could be one of
 * its own, and a small positioned read looks like a register access.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "timing.h"

static void must(long result)
{
	if (result < 0) {
		fprintf(stderr, "unrelated: %s\n", strerror(errno));
		exit(1);
	}
}

int main(int argc, char **argv)
{
	char buffer[4096];
	struct stat about;
	int pipes[2], fd, zero, waiting;
	long count;

	if (argc != 3) {
		fprintf(stderr, "usage: unrelated FILE COUNT\n");
		return 2;
	}
	count = atol(argv[2]);
	must(pipe(pipes));
	must(fd = open(argv[1], O_RDONLY));
	must(zero = open("/dev/zero", O_RDONLY));
	MEASURE("getppid", count, must(syscall(SYS_getppid)));
	MEASURE("pipe write+read", count, must(write(pipes[1], buffer, 64)); must(read(pipes[0], buffer, 64)));
	MEASURE("read", count, must(read(zero, buffer, 64)));
	MEASURE("pread 4096", count, must(pread(fd, buffer, sizeof(buffer), 0)));
	MEASURE("ioctl", count, must(ioctl(pipes[0], FIONREAD, &waiting)));
	MEASURE("fstat", count, must(fstat(fd, &about)));
	MEASURE("pread 4", count / 20, must(pread(fd, buffer, 4, 0)));
	MEASURE("stat", count / 20, must(stat(argv[1], &about)));
	MEASURE("open+close", count / 20, must(close(open(argv[1], O_RDONLY))));
	return 0;
}
