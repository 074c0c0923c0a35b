/* SPDX-License-Identifier: MIT */
/*
 * The main thread ends (pthread_exit) and the others go on: the process is
 * alive, but nothing is found by its number any more, neither its memory nor
 * its descriptors.
 */
#include "session.h"

#include <pthread.h>
#include <sched.h>

static pthread_t leader;

static char state_of_leader(void)
{
	char path[64], text[512] = "";
	int fd;

	snprintf(path, sizeof(path), "/proc/self/task/%d/stat", (int)getpid());
	fd = need(open(path, O_RDONLY));
	if (read(fd, text, sizeof(text) - 1) <= 0)
		die("cannot read %s", path);
	close(fd);
	return strrchr(text, ')')[2];
}

static void *work(void *unused)
{
	unsigned char *memory = pages(2);
	struct session s;
	int event;

	(void)unused;
	pthread_join(leader, NULL);
	while (state_of_leader() != 'Z')
		sched_yield();

	s = session_open(GROUP_A, DEVICE_A);
	check_equal("a register", reg_read(&s, EDU_ID), EDU_ID_VALUE);

	event = need(eventfd(0, EFD_CLOEXEC));
	check_ok("an eventfd is taken", set_irq(s.device, VFIO_PCI_INTX_IRQ_INDEX, event));
	reg_write(&s, EDU_IRQ_RAISE, 1);
	check_equal("an interrupt", event_count(event, 5000), 1);
	reg_write(&s, EDU_IRQ_ACK, 1);

	memset(memory, 0x5a, PAGE);
	check_ok("MAP_DMA", dma_map(s.iommu, memory, 0x100000, 2 * PAGE));
	dma_run(&s, 0x100000, EDU_BUFFER, PAGE, 0);
	dma_run(&s, EDU_BUFFER, 0x100000 + PAGE, PAGE, EDU_DMA_TO_MEMORY);
	check("DMA both ways", !memcmp(memory, memory + PAGE, PAGE));
	session_close(&s);
	exit(0);
}

int main(void)
{
	pthread_t worker;

	leader = pthread_self();
	if (pthread_create(&worker, NULL, work, NULL))
		die("pthread_create");
	pthread_exit(NULL);
}
