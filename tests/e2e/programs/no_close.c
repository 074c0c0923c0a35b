/* SPDX-License-Identifier: MIT */
/* Death releases everything: by return, by _exit, by a signal. Ends with all files open itself. */
#include "session.h"

#include <signal.h>

static void hold_everything(void)
{
	struct session s = session_open(GROUP_A, DEVICE_A);
	void *memory = pages(16);
	int event = need(eventfd(0, 0));

	need(dma_map(s.iommu, memory, 0x100000, 16 * PAGE));
	need(set_irq(s.device, VFIO_PCI_MSI_IRQ_INDEX, event));
	need(ioctl(s.group, VFIO_GROUP_GET_DEVICE_FD, DEVICE_A1));
}

static void dies(const char *name, int how)
{
	int status;
	pid_t pid = need(fork());

	if (!pid) {
		hold_everything();
		if (how)
			raise(how);
		_exit(0);
	}
	need(waitpid(pid, &status, 0));
	if (how ? !WIFSIGNALED(status) || WTERMSIG(status) != how : status != 0)
		die("%s: wait status %#x", name, status);
	check_equal(name, flags_of(GROUP_A), VFIO_GROUP_FLAGS_VIABLE);
}

int main(void)
{
	dies("free after _exit", 0);
	dies("free after SIGKILL", SIGKILL);
	dies("free after SIGABRT", SIGABRT);
	hold_everything();
	pass("everything is open at the end");
	return 0;
}
