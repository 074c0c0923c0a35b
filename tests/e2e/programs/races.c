/* SPDX-License-Identifier: MIT */
/*
 * races KIND ROUNDS: threads change the table of descriptors, or execute another
 * image, while others make calls. After its own call has returned each thread
 * finds what the kernel promises.
 *
 *	dup2	one number is a group and a plain file in turn
 *	taken	F_DUPFD, dup2 and open take numbers of the same range at once
 *	exec	a chain of images, each executed by a thread while others call
 */
#include "session.h"

#include <pthread.h>
#include <stdatomic.h>

#define FIRST	768
#define LAST	1023

static atomic_int done;
static int rounds, plain, keep, number;

static int is_group(int fd)
{
	struct { __u64 flags; } flags;

	return ioctl(fd, VFIO_GROUP_GET_FLAGS, &flags) == 0;
}

static void *ask(void *unused)
{
	while (!done)
		is_group(number);
	return unused;
}

static void dup2_race(void)
{
	pthread_t threads[2];

	keep = need(open("/dev/vfio/241", O_RDWR));
	number = need(fcntl(keep, F_DUPFD, FIRST));
	for (int i = 0; i < 2; i++)
		pthread_create(&threads[i], NULL, ask, NULL);
	for (int i = 0; i < rounds; i++) {
		if (dup2(plain, number) != number)
			die("dup2: %s", strerror(errno));
		if (is_group(number))
			die("round %d: the group answers for a plain file", i);
		if (dup2(keep, number) != number)
			die("dup2: %s", strerror(errno));
		if (!is_group(number))
			die("round %d: a plain file answers for the group", i);
		close(number);
		if (is_group(number))
			die("round %d: the group answers for a closed number", i);
		if (dup3(keep, number, O_CLOEXEC) != number)
			die("dup3: %s", strerror(errno));
	}
	done = 1;
	for (int i = 0; i < 2; i++)
		pthread_join(threads[i], NULL);
}

/* Numbers that the thread takes stay plain files until it closes them. */
static void *take(void *kind)
{
	for (int i = 0; i < rounds; i++) {
		int fd;

		if (kind)
			fd = fcntl(plain, F_DUPFD, i % 3 ? FIRST : FIRST - 60);
		else
			fd = dup2(plain, FIRST + i % 3);
		if (fd < 0)
			die("a copy: %s", strerror(errno));
		if (is_group(fd))
			die("round %d: a group is at %d, where a copy was put", i, fd);
		if (!kind)
			continue;
		if (fcntl(fd, F_GETFD) < 0)
			die("round %d: %d is closed", i, fd);
		close(fd);
	}
	return NULL;
}

static void *open_and_close(void *unused)
{
	for (int i = 0; i < rounds; i++) {
		int fd = open("/dev/vfio/240", O_RDWR);

		if (fd < 0)
			die("open: %s", strerror(errno));
		/* dup2 of another thread may replace one of the first numbers */
		if (fd > FIRST + 2 && !is_group(fd))
			die("round %d: no group is at %d, where it was opened", i, fd);
		if (fd > FIRST + 2)
			close(fd);
	}
	return unused;
}

static void taken_race(void)
{
	pthread_t threads[3];

	for (int i = FIRST - 60; i < FIRST - 2; i++)	/* F_DUPFD reaches the range */
		need(dup2(plain, i));
	pthread_create(&threads[0], NULL, take, NULL);
	pthread_create(&threads[1], NULL, take, (void *)1);
	pthread_create(&threads[2], NULL, open_and_close, NULL);
	for (int i = 0; i < 3; i++)
		pthread_join(threads[i], NULL);
}

static void *hammer(void *unused)
{
	for (;;) {
		int fd = open("/dev/vfio/241", O_RDWR | O_CLOEXEC);

		is_group(keep);
		close(fd);
	}
	return unused;
}

static void *execute(void *unused)
{
	char left[20];
	char *arguments[] = { "races", "exec", left, NULL };

	snprintf(left, sizeof(left), "%d", rounds - 1);
	if (rounds % 3 == 0)
		execv("/nonexistent", arguments);
	for (int i = 0; i < rounds % 5; i++)
		is_group(keep);
	execv("/proc/self/exe", arguments);
	die("exec: %s", strerror(errno));
	return unused;
}

static void exec_race(void)
{
	pthread_t thread;

	/* What an image inherits answers; what was to be closed is closed. */
	for (int fd = FIRST; fd <= FIRST + 20; fd++) {
		int open_here = fcntl(fd, F_GETFD) >= 0;

		if (open_here != is_group(fd))
			die("%d images left: %d is %s", rounds, fd, open_here ? "no group" : "closed");
		if (open_here)
			close(fd);
	}
	if (!rounds)
		return;
	keep = open("/dev/vfio/240", O_RDWR);
	if (keep < 0 || !is_group(keep))
		die("%d images left: open: %s", rounds, strerror(errno));
	for (int i = 0; i < 3; i++)
		pthread_create(&thread, NULL, hammer, NULL);
	pthread_create(&thread, NULL, execute, NULL);
	pause();
}

int main(int argc, char **argv)
{
	const char *kind = argv[1];

	rounds = argc > 2 ? atoi(argv[2]) : 1;
	if (!strcmp(kind, "exec")) {
		exec_race();
	} else {
		plain = need(open("/dev/zero", O_RDONLY));
		strcmp(kind, "dup2") ? taken_race() : dup2_race();
	}
	pass(kind);
	return 0;
}
