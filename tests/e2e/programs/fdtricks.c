/* SPDX-License-Identifier: MIT */
/* What programs do with descriptors before and after they matter. */
#include "session.h"

#include <sys/stat.h>

#define LOCKED	(VFIO_GROUP_FLAGS_VIABLE | VFIO_GROUP_FLAGS_MM_LOCKED)

static const char *link_of(int fd)
{
	static char target[256];
	char path[64];
	ssize_t length;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	length = readlink(path, target, sizeof(target) - 1);
	if (length < 0)
		die("readlink of %s: %s", path, strerror(errno));
	target[length] = 0;
	return target;
}

static void run_true(const char *name)
{
	pid_t pid = need(fork());

	if (!pid) {
		execl("/bin/true", "true", (char *)NULL);
		_exit(127);
	}
	wait_ok(name, pid);
}

/* A daemon that closed its standard files gets 0, 1 and 2 for others */
static void without_standard_files(void)
{
	int in = need(fcntl(0, F_DUPFD, 40)), out = need(fcntl(1, F_DUPFD, 41));
	int error = need(fcntl(2, F_DUPFD, 42));
	struct session s;
	uint32_t id, vendor;
	int copy, ordinary;

	need(close(0));
	need(close(1));
	need(close(2));
	s = session_open(GROUP_A, DEVICE_A);
	copy = dup(s.device);
	id = get32(copy, s.bar0 + EDU_ID);
	vendor = get32(copy, s.config);
	ordinary = open("/dev/null", O_RDWR);
	close(ordinary);
	close(copy);
	session_close(&s);
	need(dup2(in, 0));
	need(dup2(out, 1));
	need(dup2(error, 2));
	need(close(in));
	need(close(out));
	need(close(error));
	check("copies and other files are made", copy >= 0 && ordinary >= 0);
	check_equal("without 0, 1, 2: register", id, EDU_ID_VALUE);
	check_equal("without 0, 1, 2: configuration", vendor, EDU_VENDOR_DEVICE);
	check_equal("without 0, 1, 2: released", flags_of(GROUP_A), VFIO_GROUP_FLAGS_VIABLE);
}

static void close_ranges(void)
{
	struct session s = session_open(GROUP_A, DEVICE_A);
	uint32_t value;

	need(close_range((unsigned int)s.device, (unsigned int)s.device, 0));
	check_errno("close_range: closed", pread(s.device, &value, 4, s.config), EBADF);
	check_errno("close_range: ioctl", ioctl(s.device, VFIO_DEVICE_RESET), EBADF);
	check_ok("close_range: its neighbour is open", fcntl(s.iommu, F_GETFD));
	check_equal("close_range: still locked by the iommu", group_flags(s.group), LOCKED);
	session_device(&s, DEVICE_A);
	check_equal("the next device file works", reg_read(&s, EDU_ID), EDU_ID_VALUE);
	need(close_range(3, ~0u, 0));
	check_errno("close_range of all: group", fcntl(s.group, F_GETFD), EBADF);
	check_errno("close_range of all: device", pread(s.device, &value, 4, s.config), EBADF);
	check_equal("close_range of all: released", flags_of(GROUP_A), VFIO_GROUP_FLAGS_VIABLE);

	s = session_open(GROUP_A, DEVICE_A);
	need(fcntl(s.device, F_SETFD, 0));
	need(close_range(3, ~0u, CLOSE_RANGE_CLOEXEC));
	check_equal("CLOSE_RANGE_CLOEXEC", need(fcntl(s.device, F_GETFD)), FD_CLOEXEC);
	check_equal("and everything works", reg_read(&s, EDU_ID), EDU_ID_VALUE);
	run_true("a child that execs");
	check_equal("it took nothing along", group_flags(s.group), LOCKED);
	session_close(&s);
	check_equal("released", flags_of(GROUP_A), VFIO_GROUP_FLAGS_VIABLE);
}

static void names(void)
{
	struct session s = session_open(GROUP_A, DEVICE_A);
	struct stat about;
	char path[64];
	int copy, again;

	check("readlink of a group", !strcmp(link_of(s.group), "/dev/vfio/240"));
	check("readlink of an iommu", !strcmp(link_of(s.iommu), "anon_inode:[vfio-iommu]"));
	check("readlink of a device", !strcmp(link_of(s.device), "anon_inode:[vfio-device]"));
	copy = need(dup2(s.device, 20));
	check("readlink of a copy", !strcmp(link_of(copy), "anon_inode:[vfio-device]"));
	need(fstat(s.group, &about));
	check("fstat of a group", S_ISCHR(about.st_mode));

	/* a group has a name, so this opens it once more */
	snprintf(path, sizeof(path), "/proc/self/fd/%d", s.group);
	again = check_ok("open of /proc/self/fd/GROUP", open(path, O_RDWR));
	check_equal("it is the group", group_flags(again), LOCKED);
	need(close(again));
	/* a device has none: there is nothing to open */
	snprintf(path, sizeof(path), "/proc/self/fd/%d", s.device);
	check_errno("open of /proc/self/fd/DEVICE", open(path, O_RDWR), ENXIO);
	check_equal("the device does not mind", reg_read(&s, EDU_ID), EDU_ID_VALUE);
	session_close(&s);
	check_equal("locked by the copy", flags_of(GROUP_A), LOCKED);
	need(close(copy));
	check_equal("released", flags_of(GROUP_A), VFIO_GROUP_FLAGS_VIABLE);
}

/* A number that was a device and is a file: every open file is what the number says now */
static void reused_numbers(void)
{
	char path[] = "/tmp/uvfio-fdtricks-XXXXXX", text[8] = { 0 };
	int file = need(mkstemp(path));

	need(unlink(path));
	need(pwrite(file, "abcd", 4, 0));
	for (int i = 0; i < 50; i++) {
		struct session s = session_open(GROUP_A, DEVICE_A);

		if (reg_read(&s, EDU_ID) != EDU_ID_VALUE)
			die("round %d: wrong register", i);
		need(dup2(file, s.device));
		if (pread(s.device, text, 4, 0) != 4 || memcmp(text, "abcd", 4))
			die("round %d: the device still answers on a number that is a file", i);
		session_close(&s);
	}
	pass("numbers reused");
	check_equal("released", flags_of(GROUP_A), VFIO_GROUP_FLAGS_VIABLE);
}

int main(void)
{
	without_standard_files();
	close_ranges();
	names();
	reused_numbers();
	return 0;
}
