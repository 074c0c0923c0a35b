/* SPDX-License-Identifier: MIT */
/*
 * hold [GROUP [ADDRESS]]: take the group, map memory, print "ready", and keep
 * everything until stdin ends (then close it, "closed", status 0) or a kill.
 */
#include "session.h"

int main(int argc, char **argv)
{
	struct session s = session_open(argc > 1 ? argv[1] : GROUP_A,
					argc > 2 ? argv[2] : DEVICE_A);
	void *memory = pages(4);
	char buffer[256];
	ssize_t got;

	need(dma_map(s.iommu, memory, 0x100000, 4 * PAGE));
	puts("ready");
	fflush(stdout);
	do
		got = read(0, buffer, sizeof(buffer));
	while (got > 0 || (got == -1 && errno == EINTR));
	need(dma_unmap(s.iommu, 0x100000, 4 * PAGE));
	session_close(&s);
	puts("closed");
	return 0;
}
