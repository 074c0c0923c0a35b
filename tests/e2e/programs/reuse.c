/* SPDX-License-Identifier: MIT */
/*
 * reuse ROUNDS: numbers of tasks are used again at once. In each round a thread
 * makes a call and ends, and a process gets its number (clone3 with set_tid):
 * what this one reads goes into its own memory, what it closes is closed for it
 * alone, and it does not own what its parent owns. Then the process ends, and a
 * thread of the parent gets the number.
 */
#include "session.h"

#include <linux/sched.h>
#include <pthread.h>
#include <sched.h>
#include <sys/syscall.h>

#define CONFIG	(7ULL << 40)

static int group, device;
static unsigned int buffer;

static long clone_as(pid_t number)
{
	struct clone_args arguments = {
		.exit_signal = SIGCHLD,
		.set_tid = (uintptr_t)&number,
		.set_tid_size = 1,
	};
	long pid;

	/* pthread_join returns a moment before the number is free */
	do
		pid = syscall(SYS_clone3, &arguments, sizeof(arguments));
	while (pid < 0 && errno == EEXIST);
	return pid;
}

static void *work(void *number)
{
	unsigned int id = 0;

	*(pid_t *)number = syscall(SYS_gettid);
	if (pread(device, &id, 4, CONFIG) != 4 || id != 0x11e81234)
		die("a thread reads %#x", id);
	return NULL;
}

static void child(void)
{
	if (pread(device, &buffer, 4, CONFIG) != 4 || buffer != 0x11e81234)
		die("the child reads %#x", buffer);
	if (ioctl(group, VFIO_GROUP_GET_IOMMU_FD, 0) != -1 || errno != EPERM)
		die("the child owns what its parent owns");
	close(device);
	if (pread(device, &buffer, 4, CONFIG) != -1 || errno != EBADF)
		die("the child reads what it has closed");
	_exit(0);
}

int main(int argc, char **argv)
{
	int rounds = argc > 1 ? atoi(argv[1]) : 1;

	group = need(open("/dev/vfio/241", O_RDWR));
	need(ioctl(group, VFIO_GROUP_GET_IOMMU_FD, 0));
	device = need(ioctl(group, VFIO_GROUP_GET_DEVICE_FD, "0000:07:00.0"));
	for (int round = 0; round < rounds; round++) {
		pthread_t thread;
		pid_t number = 0;
		long pid;
		int status;

		pthread_create(&thread, NULL, work, &number);
		pthread_join(thread, NULL);
		buffer = 0x5a5a5a5a;
		pid = clone_as(number);
		if (pid == 0)
			child();
		if (pid < 0)
			die("clone3: %s", strerror(errno));
		if (pid != number)
			die("the child has the number %ld instead of %d", pid, number);
		if (waitpid(pid, &status, 0) != pid || status)
			die("the child ended with %#x", status);
		if (buffer != 0x5a5a5a5a)
			die("%#x was written for the child", buffer);
		if (pread(device, &buffer, 4, CONFIG) != 4 || buffer != 0x11e81234)
			die("the parent reads %#x", buffer);
	}
	pass("reuse");
	return 0;
}
