/* SPDX-License-Identifier: MIT */
/* Threads share the address space: all of them are the owner, and calls of several are served at once. */
#include "session.h"

#include <pthread.h>
#include <stdatomic.h>

#define THREADS	8
#define ROUNDS	250

static struct session session;
static unsigned char *memory;
static atomic_int wrong;
static atomic_long done;

static void expect(int good)
{
	if (!good)
		atomic_fetch_add(&wrong, 1);
}

static void *work(void *argument)
{
	int me = (int)(intptr_t)argument;
	unsigned char *mine = memory + me * 4 * PAGE;
	uint64_t iova = 0x100000 + (uint64_t)me * 0x10000;

	for (int i = 0; i < ROUNDS; i++) {
		int device = session.device;

		expect(get32(device, session.bar0 + EDU_ID) == EDU_ID_VALUE);
		expect(dma_map(session.iommu, mine, iova, 4 * PAGE) == 0);
		expect(dma_map(session.iommu, mine, iova + PAGE, PAGE) == -1 && errno == EBUSY);
		expect(get32(device, session.config) == EDU_VENDOR_DEVICE);
		expect(dma_unmap(session.iommu, iova, 4 * PAGE) == 0);
		if (me % 4 == 0) {
			/* descriptors that come and go beside the others' calls */
			int other = ioctl(session.group, VFIO_GROUP_GET_DEVICE_FD, DEVICE_A1);

			expect(other >= 0);
			expect(get32(other, region_offset(other, 0)) == EDU_ID_VALUE);
			expect(close(other) == 0);
		}
		atomic_fetch_add(&done, 1);
	}
	return NULL;
}

int main(void)
{
	pthread_t threads[THREADS];

	session = session_open(GROUP_A, DEVICE_A);
	memory = pages(THREADS * 4);
	for (int i = 0; i < THREADS; i++)
		if (pthread_create(&threads[i], NULL, work, (void *)(intptr_t)i))
			die("pthread_create");
	for (int i = 0; i < THREADS; i++)
		pthread_join(threads[i], NULL);
	check_equal("every round was run", done, THREADS * ROUNDS);
	check_equal("no call went wrong", wrong, 0);
	check_ok("all ranges are free again", dma_map(session.iommu, memory, 0x100000, 32 * PAGE));
	session_close(&session);
	check_equal("released", flags_of(GROUP_A), VFIO_GROUP_FLAGS_VIABLE);
	return 0;
}
