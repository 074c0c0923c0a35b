/* SPDX-License-Identifier: MIT */
/*
 * vfork and posix_spawn: the child borrows the address space until it execs,
 * so until then it is the owner, with files of its own.
 */
#include "session.h"

#include <spawn.h>

extern char **environ;

static struct {
	ssize_t read;
	uint32_t value;
	int iommu;
	__u64 flags;
	int map;
} volatile borrowed;

static void spawn_true(const char *name)
{
	char *argv[] = { (char[]){ "true" }, NULL };
	pid_t pid;

	if (posix_spawn(&pid, "/bin/true", NULL, NULL, argv, environ))
		die("%s: posix_spawn", name);
	wait_ok(name, pid);
}

static void vfork_and_read(const struct session *s)
{
	pid_t pid = need(vfork());
	int status;

	if (!pid)
		_exit(get32(s->device, s->bar0 + EDU_ID) != EDU_ID_VALUE);
	need(waitpid(pid, &status, 0));
	if (status)
		die("vfork child: wait status %#x", status);
}

int main(void)
{
	struct session s = session_open(GROUP_A, DEVICE_A);
	void *memory = pages(1);
	pid_t pid;

	pid = need(vfork());
	if (!pid) {
		uint32_t value = 0;
		__u64 flags = 0;

		borrowed.read = pread(s.device, &value, 4, s.bar0 + EDU_ID);
		borrowed.value = value;
		ioctl(s.group, VFIO_GROUP_GET_FLAGS, &flags);
		borrowed.flags = flags;
		borrowed.iommu = ioctl(s.group, VFIO_GROUP_GET_IOMMU_FD);
		borrowed.map = dma_map(s.iommu, memory, 0x100000, PAGE);
		_exit(0);
	}
	wait_ok("vfork child", pid);
	check_equal("vfork child: pread", borrowed.read, 4);
	check_equal("vfork child: register", borrowed.value, EDU_ID_VALUE);
	check_equal("vfork child: group flags", borrowed.flags,
		    VFIO_GROUP_FLAGS_VIABLE | VFIO_GROUP_FLAGS_MM_LOCKED);
	check("vfork child: is the owner", borrowed.iommu >= 0);
	check_equal("vfork child: MAP_DMA", borrowed.map, 0);
	check_errno("its mapping is the owner's", dma_map(s.iommu, memory, 0x100000, PAGE), EBUSY);

	pid = need(vfork());
	if (!pid) {
		execl("/bin/true", "true", (char *)NULL);
		_exit(127);
	}
	wait_ok("vfork and exec", pid);
	spawn_true("posix_spawn");
	for (int i = 0; i < 20; i++)
		vfork_and_read(&s);
	pass("twenty vfork children");
	check_equal("parent: device still works", reg_read(&s, EDU_ID), EDU_ID_VALUE);
	check_ok("parent: is still the owner", dma_unmap(s.iommu, 0x100000, PAGE));
	session_close(&s);
	check_equal("no child kept a file", flags_of(GROUP_A), VFIO_GROUP_FLAGS_VIABLE);
	return 0;
}
