/* SPDX-License-Identifier: MIT */
/*
 * A forked child has the files but not the address space: it may use the
 * device, but it is not the owner. The files live until the last process that
 * has them is gone, whichever that is.
 */
#include "session.h"

#include <sys/prctl.h>

static void child_is_not_the_owner(const struct session *s, void *memory)
{
	struct vfio_region_info info = { .len = sizeof(info) };
	int other = s->group;

	check_equal("child: register through the inherited file", reg_read(s, EDU_ID), EDU_ID_VALUE);
	check_ok("child: device ioctl", ioctl(s->device, VFIO_DEVICE_GET_REGION_INFO, &info));
	check_equal("child: GET_FLAGS is for everybody", group_flags(s->group),
		    VFIO_GROUP_FLAGS_VIABLE | VFIO_GROUP_FLAGS_MM_LOCKED);
	check_errno("child: GET_IOMMU_FD", ioctl(s->group, VFIO_GROUP_GET_IOMMU_FD), EPERM);
	check_errno("child: GET_DEVICE_FD", ioctl(s->group, VFIO_GROUP_GET_DEVICE_FD, DEVICE_A),
		    EPERM);
	check_errno("child: MERGE", ioctl(s->group, VFIO_GROUP_MERGE, &other), EPERM);
	check_errno("child: UNMERGE", ioctl(s->group, VFIO_GROUP_UNMERGE, &other), EPERM);
	check_errno("child: unknown request", ioctl(s->group, _IO(';', 199)), EPERM);
	check_errno("child: MAP_DMA", dma_map(s->iommu, memory, 0x200000, PAGE), EPERM);
	check_errno("child: UNMAP_DMA", dma_unmap(s->iommu, 0x100000, PAGE), EPERM);
}

static void inherited(void)
{
	struct session s = session_open(GROUP_A, DEVICE_A);
	void *memory = pages(1);
	pid_t pid;

	need(dma_map(s.iommu, memory, 0x100000, PAGE));
	pid = need(fork());
	if (!pid) {
		child_is_not_the_owner(&s, memory);
		_exit(0);
	}
	wait_ok("child ended well", pid);
	check_equal("parent: register after the child's end", reg_read(&s, EDU_ID), EDU_ID_VALUE);
	check_errno("parent: its mapping is still there", dma_map(s.iommu, memory, 0x100000, PAGE),
		    EBUSY);
	session_close(&s);
	check_equal("released with the parent's files", flags_of(GROUP_A), VFIO_GROUP_FLAGS_VIABLE);
}

static void parent_dies_first(void)
{
	int go[2], pid_pipe[2];
	pid_t owner, heir;
	int group;

	need(pipe(go));
	need(pipe(pid_pipe));
	/* the grandchild becomes ours when its parent is gone, so its end can be awaited */
	need(prctl(PR_SET_CHILD_SUBREAPER, 1));
	owner = need(fork());
	if (!owner) {
		struct session s = session_open(GROUP_A, DEVICE_A);

		heir = need(fork());
		if (!heir) {
			wait_go(go[0]);
			check_equal("heir: register when the owner is dead", reg_read(&s, EDU_ID),
				    EDU_ID_VALUE);
			check_errno("heir: does not inherit the ownership",
				    ioctl(s.group, VFIO_GROUP_GET_IOMMU_FD), EPERM);
			_exit(0);
		}
		need(write(pid_pipe[1], &heir, sizeof(heir)));
		_exit(0);	/* closes nothing */
	}
	if (read(pid_pipe[0], &heir, sizeof(heir)) != sizeof(heir))
		die("no heir");
	wait_ok("owner ended", owner);
	group = need(open_group(GROUP_A));
	check_equal("still locked: the heir has the files", group_flags(group),
		    VFIO_GROUP_FLAGS_VIABLE | VFIO_GROUP_FLAGS_MM_LOCKED);
	check_errno("nobody else gets in", ioctl(group, VFIO_GROUP_GET_IOMMU_FD), EPERM);
	signal_go(go[1]);
	wait_ok("heir ended", heir);
	check_equal("free", group_flags(group), VFIO_GROUP_FLAGS_VIABLE);
	check_ok("the next owner gets in", ioctl(group, VFIO_GROUP_GET_IOMMU_FD));
}

int main(void)
{
	inherited();
	parent_dies_first();
	return 0;
}
