/* SPDX-License-Identifier: MIT */
/*
 * ways_out [again|images ROUNDS]: calls whose path leads out of the machine's folders,
 * while signals, kills, stops and execs come in between. Without arguments it
 * prints "at rest", reads a number of rounds, and begins again.
 *
 *	again	children are killed in such calls, and others that get their numbers
 *		(clone3 with set_tid) make them, too
 *	images	a thread executes an image while others are in such calls
 */
#define _GNU_SOURCE
#include "check.h"

#include <fcntl.h>
#include <linux/sched.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#define OUT	"/dev/vfio/../.."
#define FILE_OUT	OUT "/etc/passwd"
#define THREADS	8

static int rounds;
static atomic_int hits, left;

static void count(int number)
{
	(void)number;
	hits++;
}

static void once(int i)
{
	struct stat here, there;
	char text[64];
	int fd;

	switch (i % 4) {
	case 0:
		fd = open(FILE_OUT, O_RDONLY | O_CLOEXEC);
		if (fd < 0 || read(fd, text, 1) != 1)
			die("open: %s", strerror(errno));
		close(fd);
		break;
	case 1:
		if (stat(OUT "/dev/null", &there) || stat("/dev/null", &here) || here.st_ino != there.st_ino)
			die("stat: %s", strerror(errno));
		break;
	case 2:
		if (readlink(OUT "/proc/self", text, sizeof(text)) < 1 || atoi(text) != getpid())
			die("readlink: %s", strerror(errno));
		break;
	default:
		if (access(OUT "/nonexistent", F_OK) != -1 || errno != ENOENT)
			die("access: %s", strerror(errno));
	}
}

static void *calls(void *unused)
{
	for (int i = 0; i < rounds; i++)
		once(i);
	left--;
	return unused;
}

static void threads(void)
{
	pthread_t thread[THREADS];

	left = THREADS;
	for (int i = 0; i < THREADS; i++)
		need(-pthread_create(&thread[i], NULL, calls, NULL));
	for (int i = 0; left; i++) {	/* one after the other, as fast as they take it */
		int before = hits;

		if (kill(getpid(), SIGUSR1))
			die("kill: %s", strerror(errno));
		while (hits == before && left)
			sched_yield();
	}
	for (int i = 0; i < THREADS; i++)
		pthread_join(thread[i], NULL);
}

/* A child that makes calls without an end; returns when it has made some. */
static pid_t busy(int some)
{
	int ends[2];
	char byte;
	pid_t child;

	need(pipe2(ends, O_CLOEXEC));
	child = need(fork());
	if (!child)
		for (int i = 0;; i++) {
			once(i);
			if (i == some && write(ends[1], "x", 1) != 1)
				_exit(1);
		}
	close(ends[1]);
	if (read(ends[0], &byte, 1) != 1)
		die("a child ended early");
	close(ends[0]);
	return child;
}

static void killed(int i)
{
	int status;
	pid_t child = busy(i % 5);

	for (int n = 0; n < i * 37 % 2000; n++)
		asm volatile("pause");
	if (i % 3 == 0) {
		need(kill(child, SIGSTOP));
		if (waitpid(child, &status, WUNTRACED) != child || !WIFSTOPPED(status))
			die("no stop but %#x", status);
		need(kill(child, SIGCONT));
		if (waitpid(child, &status, WCONTINUED) != child || !WIFCONTINUED(status))
			die("no continuation but %#x", status);
	}
	need(kill(child, SIGKILL));
	if (waitpid(child, &status, 0) != child || !WIFSIGNALED(status) || WTERMSIG(status) != SIGKILL)
		die("no kill but %#x", status);
}

static void *execute(void *unused)
{
	execl(OUT "/bin/true", "true", NULL);
	die("exec: %s", strerror(errno));
	return unused;
}

/* A thread executes an image while others make calls. */
static void images(int i)
{
	pthread_t thread;
	int status;
	pid_t child = need(fork());

	if (!child) {
		rounds = 1 << 30;
		for (int n = 0; n < 2; n++)
			need(-pthread_create(&thread, NULL, calls, NULL));
		if (i % 2)
			execute(NULL);
		need(-pthread_create(&thread, NULL, execute, NULL));
		calls(NULL);
	}
	if (waitpid(child, &status, 0) != child || status)
		die("an image ended with %#x", status);
}

static void storm(void)
{
	threads();
	for (int i = 0; i < rounds / 4; i++)
		killed(i);
	for (int i = 0; i < rounds / 10; i++)
		images(i);
	for (int i = 0; i < 50; i++)	/* the supervisor forgets who ended at the next call */
		need(access("/dev/vfio/240", F_OK));
}

static void again(int many)
{
	for (int i = 0; i < many; i++) {
		pid_t number = busy(i % 3);
		struct clone_args arguments = {
			.exit_signal = SIGCHLD,
			.set_tid = (uintptr_t)&number,
			.set_tid_size = 1,
		};
		long pid;
		int status;

		need(kill(number, SIGKILL));
		need(waitpid(number, &status, 0));
		do
			pid = syscall(SYS_clone3, &arguments, sizeof(arguments));
		while (pid < 0 && errno == EEXIST);
		if (pid == 0) {
			for (int n = 0; n < 4; n++)
				once(n);
			_exit(0);
		}
		if (pid != number)
			die("clone3 gave %ld: %s", pid, strerror(errno));
		if (waitpid(number, &status, 0) != number || status)
			die("round %d: the next %d ended with %#x", i, number, status);
	}
}

int main(int argc, char **argv)
{
	struct sigaction action = { .sa_handler = count, .sa_flags = SA_RESTART };
	char line[32];

	need(sigaction(SIGUSR1, &action, NULL));
	setvbuf(stdout, NULL, _IONBF, 0);
	if (argc == 3) {
		rounds = atoi(argv[2]);
		if (!strcmp(argv[1], "again"))
			again(rounds);
		for (int i = 0; strcmp(argv[1], "again") && i < rounds; i++)
			images(i);
		pass(argv[1]);
		return 0;
	}
	puts("at rest");
	while (fgets(line, sizeof(line), stdin)) {
		rounds = atoi(line);
		storm();
		puts("at rest");
	}
	return 0;
}
