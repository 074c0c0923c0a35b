/* SPDX-License-Identifier: MIT */
/*
 * Files across exec: iommu and device files are close-on-exec; a copy that is
 * not survives and works, but the new image is a stranger to the group.
 */
#include "session.h"

static int open_at(int fd)
{
	return fcntl(fd, F_GETFD) != -1;
}

/* argv: program, mode, group, closed group, iommu, device, kept device */
static int after_exec(char **argv)
{
	int group = atoi(argv[2]), closed = atoi(argv[3]), iommu = atoi(argv[4]);
	int device = atoi(argv[5]), kept = atoi(argv[6]);
	uint32_t value;
	__u64 flags;

	check("exec: a group opened with O_CLOEXEC is closed", !open_at(closed));
	check("exec: iommu is closed", !open_at(iommu));
	check("exec: device is closed", !open_at(device));
	check_errno("exec: pread of the closed device", pread(device, &value, 4, 0), EBADF);
	check_errno("exec: pread of it beyond 4 GiB", pread(device, &value, 4, (off_t)7 << 40),
		    EBADF);
	check_errno("exec: ioctl of the closed device", ioctl(device, VFIO_DEVICE_GET_FLAGS, &flags),
		    EBADF);
	check_errno("exec: ioctl of the closed iommu", ioctl(iommu, VFIO_IOMMU_GET_FLAGS, &flags),
		    EBADF);
	check_equal("exec: register through the kept copy", get32(kept, region_offset(kept, 0)),
		    EDU_ID_VALUE);
	check_equal("exec: configuration through the kept copy",
		    get32(kept, region_offset(kept, 7)), EDU_VENDOR_DEVICE);
	check_equal("exec: the group is locked", group_flags(group),
		    VFIO_GROUP_FLAGS_VIABLE | VFIO_GROUP_FLAGS_MM_LOCKED);
	check_errno("exec: GET_IOMMU_FD", ioctl(group, VFIO_GROUP_GET_IOMMU_FD), EPERM);
	check_errno("exec: GET_DEVICE_FD", ioctl(group, VFIO_GROUP_GET_DEVICE_FD, DEVICE_A), EPERM);
	if (!strcmp(argv[1], "alone")) {
		/* nobody but this image has files: the ownership ends with the last */
		need(close(kept));
		check_equal("exec: free after the last close", group_flags(group),
			    VFIO_GROUP_FLAGS_VIABLE);
		check_ok("exec: the new image can be the owner",
			 ioctl(group, VFIO_GROUP_GET_IOMMU_FD));
	}
	return 0;
}

static void exec_self(const char *program, const char *mode, const struct session *s, int closed,
		      int kept)
{
	char text[5][16];

	snprintf(text[0], 16, "%d", s->group);
	snprintf(text[1], 16, "%d", closed);
	snprintf(text[2], 16, "%d", s->iommu);
	snprintf(text[3], 16, "%d", s->device);
	snprintf(text[4], 16, "%d", kept);
	execl(program, program, mode, text[0], text[1], text[2], text[3], text[4], (char *)NULL);
	die("exec of %s: %s", program, strerror(errno));
}

int main(int argc, char **argv)
{
	struct session s;
	int closed, kept;
	pid_t pid;

	if (argc > 1)
		return after_exec(argv);

	s = session_open(GROUP_A, DEVICE_A);
	check_equal("iommu file is close-on-exec", need(fcntl(s.iommu, F_GETFD)), FD_CLOEXEC);
	check_equal("device file is close-on-exec", need(fcntl(s.device, F_GETFD)), FD_CLOEXEC);
	check_equal("group file is as it was opened", need(fcntl(s.group, F_GETFD)), 0);
	closed = need(open("/dev/vfio/" GROUP_A, O_RDWR | O_CLOEXEC));
	check_equal("group file is as it was opened, O_CLOEXEC", need(fcntl(closed, F_GETFD)),
		    FD_CLOEXEC);

	/* a second file of the device, made inheritable in place */
	kept = need(ioctl(s.group, VFIO_GROUP_GET_DEVICE_FD, DEVICE_A));
	need(fcntl(kept, F_SETFD, 0));
	check_equal("close-on-exec can be taken off", need(fcntl(kept, F_GETFD)), 0);
	pid = need(fork());
	if (!pid)
		exec_self(argv[0], "beside", &s, closed, kept);
	wait_ok("child's image", pid);
	check_equal("parent: device still works", reg_read(&s, EDU_ID), EDU_ID_VALUE);
	check_ok("parent: is still the owner", ioctl(s.group, VFIO_GROUP_GET_IOMMU_FD));

	/* now this very process: dup makes copies without close-on-exec */
	need(close(kept));
	kept = need(dup(s.device));
	check_equal("dup is not close-on-exec", need(fcntl(kept, F_GETFD)), 0);
	exec_self(argv[0], "alone", &s, closed, kept);
}
