/* SPDX-License-Identifier: MIT */
/*
 * Checks for the test programs: each prints "PASS name" or ends the program
 * with status 1 and a line on stderr that says what was there instead. Output
 * is flushed at once, so that a fork does not print it twice and a kill does
 * not lose it.
 */
#ifndef CHECK_H
#define CHECK_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#define _FILE_OFFSET_BITS 64	/* regions lie beyond 4 GiB, also in 32-bit programs */

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static inline void pass(const char *name)
{
	printf("PASS %s\n", name);
	fflush(stdout);
}

#define die(...)						\
	do {							\
		fprintf(stderr, "FAIL ");			\
		fprintf(stderr, __VA_ARGS__);			\
		fprintf(stderr, " (%s:%d)\n", __FILE__, __LINE__); \
		_exit(1);					\
	} while (0)

/* `condition` must be true */
#define check(name, condition)					\
	do {							\
		errno = 0;					\
		if (!(condition))				\
			die("%s: not so: %s (errno: %s)", name, #condition, strerror(errno)); \
		pass(name);					\
	} while (0)

/* `value` must be `wanted` */
#define check_equal(name, value, wanted)			\
	do {							\
		unsigned long long value_ = (unsigned long long)(value); \
		unsigned long long wanted_ = (unsigned long long)(wanted); \
		if (value_ != wanted_)				\
			die("%s: %s is %#llx, not %#llx", name, #value, value_, wanted_); \
		pass(name);					\
	} while (0)

/* `call` must not return -1; has the value of the call */
#define check_ok(name, call)					\
	__extension__({						\
		long long result_ = (long long)(call);		\
		if (result_ == -1)				\
			die("%s: %s: %s", name, #call, strerror(errno)); \
		pass(name);					\
		(int)result_;					\
	})

/* the same without a line of its own: what has to work before a check can be made */
#define need(call)						\
	__extension__({						\
		long long result_ = (long long)(call);		\
		if (result_ == -1)				\
			die("%s: %s", #call, strerror(errno));	\
		(int)result_;					\
	})

/* `call` must return -1 with `number` in errno */
#define check_errno(name, call, number)				\
	do {							\
		errno = 0;					\
		long long result_ = (long long)(call);		\
		if (result_ != -1)				\
			die("%s: %s gave %lld, not -1 with %s", name, #call, result_, #number); \
		if (errno != (number))				\
			die("%s: %s failed with %s, not %s", name, #call, strerror(errno), \
			    #number);				\
		pass(name);					\
	} while (0)

/* The child must end by itself with status 0 */
static inline void wait_ok(const char *name, pid_t pid)
{
	int status;

	if (waitpid(pid, &status, 0) != pid)
		die("%s: waitpid: %s", name, strerror(errno));
	if (!WIFEXITED(status) || WEXITSTATUS(status))
		die("%s: child ended with wait status %#x", name, status);
	pass(name);
}

/* Two processes take turns over a pipe: one byte is one go-ahead */
static inline void signal_go(int fd)
{
	need(write(fd, "", 1));
}

static inline void wait_go(int fd)
{
	char byte;

	if (read(fd, &byte, 1) != 1)
		die("the other process ended before its turn");
}

#endif /* CHECK_H */
