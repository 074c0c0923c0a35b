/* SPDX-License-Identifier: MIT */
/*
 * Signals during register accesses must neither lose nor repeat one. A write
 * to edu's "raise" register sends one MSI each time it is executed, so the
 * counter of the eventfd is the number of executions.
 *
 * Without SA_RESTART a signal that comes before a call begins makes it fail
 * with EINTR; the call was not executed then, and put32() makes it again.
 */
#include "session.h"

#include <signal.h>
#include <sys/time.h>

#define WRITES	2000

static volatile sig_atomic_t ticks;

static void tick(int number)
{
	(void)number;
	ticks++;
}

static void timer(long us)
{
	struct itimerval interval = { { 0, us }, { 0, us } };

	need(setitimer(ITIMER_REAL, &interval, NULL));
}

static void run(const struct session *s, int event, int flags, const char *how)
{
	struct sigaction action = { .sa_handler = tick, .sa_flags = flags };
	char name[96];
	uint64_t count = 0, wrong = 0;

	need(sigaction(SIGALRM, &action, NULL));
	ticks = 0;
	timer(1000);
	for (uint32_t i = 0; i < WRITES; i++) {
		reg_write(s, EDU_IRQ_RAISE, 1);
		reg_write(s, EDU_LIVENESS, i);
		wrong += reg_read(s, EDU_LIVENESS) != ~i;
	}
	timer(0);
	reg_write(s, EDU_IRQ_ACK, 1);
	if (read(event, &count, 8) != 8)
		die("read of the eventfd: %s", strerror(errno));
	snprintf(name, sizeof(name), "%s: %d writes, each executed once", how, WRITES);
	check_equal(name, count, WRITES);
	snprintf(name, sizeof(name), "%s: every read saw the write before it", how);
	check_equal(name, wrong, 0);
	snprintf(name, sizeof(name), "%s: signals came", how);
	check(name, ticks > 0);
}

/* Requests that make descriptors: a repeated one would leave a file nobody knows of */
static void descriptors(const struct session *s, const char *how)
{
	char name[96];
	int lowest, fd;

	timer(1000);
	lowest = need(dup(0));
	need(close(lowest));
	for (int i = 0; i < 300; i++) {
		do
			fd = ioctl(s->group, VFIO_GROUP_GET_DEVICE_FD, DEVICE_A1);
		while (fd == -1 && errno == EINTR);
		if (fd == -1)
			die("%s: GET_DEVICE_FD: %s", how, strerror(errno));
		while (close(fd) == -1)
			if (errno != EINTR)
				die("%s: close: %s", how, strerror(errno));
	}
	timer(0);
	snprintf(name, sizeof(name), "%s: no descriptor is left over", how);
	fd = need(dup(0));
	check_equal(name, fd, lowest);
	need(close(fd));
}

int main(void)
{
	struct session s = session_open(GROUP_A, DEVICE_A);
	int event = need(eventfd(0, EFD_NONBLOCK));

	need(set_irq(s.device, VFIO_PCI_MSI_IRQ_INDEX, event));
	run(&s, event, SA_RESTART, "SA_RESTART");
	descriptors(&s, "SA_RESTART");
	run(&s, event, 0, "no SA_RESTART");
	descriptors(&s, "no SA_RESTART");
	session_close(&s);
	/* a file that a repeated request left open would hold the lock */
	check_equal("released", flags_of(GROUP_A), VFIO_GROUP_FLAGS_VIABLE);
	return 0;
}
