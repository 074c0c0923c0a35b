/* SPDX-License-Identifier: MIT */
/*
 * probe_lock [GROUP]: one line about how somebody else sees the group:
 * "viable=1 locked=0 iommu=ok", with the name of the errno instead of "ok".
 */
#include "session.h"

int main(int argc, char **argv)
{
	const char *number = argc > 1 ? argv[1] : GROUP_A;
	int group = open_group(number);
	const char *result = "ok";
	uint64_t flags;

	if (group == -1)
		die("/dev/vfio/%s: %s", number, strerror(errno));
	flags = group_flags(group);
	if (ioctl(group, VFIO_GROUP_GET_IOMMU_FD) == -1)
		result = strerrorname_np(errno);
	printf("viable=%d locked=%d iommu=%s\n", !!(flags & VFIO_GROUP_FLAGS_VIABLE),
	       !!(flags & VFIO_GROUP_FLAGS_MM_LOCKED), result);
	return 0;
}
