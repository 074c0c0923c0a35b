/* SPDX-License-Identifier: MIT */
/* Every way to copy a descriptor gives the same open file; the last copy closed ends it. */
#include "session.h"

#define LOCKED	(VFIO_GROUP_FLAGS_VIABLE | VFIO_GROUP_FLAGS_MM_LOCKED)

struct copy {
	const char *how;
	int fd;
};

static void use_device(const struct copy *copy, const struct session *s)
{
	char name[64];
	__u64 flags = 0;
	uint32_t pattern = 0x5a5a0000u + (uint32_t)copy->fd;

#define named(what) (snprintf(name, sizeof(name), "%s: %s", copy->how, what), name)
	check_equal(named("register"), get32(copy->fd, s->bar0 + EDU_ID), EDU_ID_VALUE);
	put32(copy->fd, s->bar0 + EDU_LIVENESS, pattern);
	check_equal(named("register written"), get32(copy->fd, s->bar0 + EDU_LIVENESS), ~pattern);
	check_equal(named("configuration"), get32(copy->fd, s->config), EDU_VENDOR_DEVICE);
	check_ok(named("ioctl"), ioctl(copy->fd, VFIO_DEVICE_GET_FLAGS, &flags));
	check(named("flags"), flags & VFIO_DEVICE_FLAGS_PCI);
}

static void device_copies(void)
{
	struct session s = session_open(GROUP_A, DEVICE_A);
	struct copy copies[] = {
		{ .how = "dup" },
		{ .how = "dup2 to 20" },
		{ .how = "dup3 to 21" },
		{ .how = "F_DUPFD from 30" },
		{ .how = "F_DUPFD_CLOEXEC from 31" },
		{ .how = "dup of a copy" },
		{ .how = "dup2 of a copy to 22" },
	};
	size_t count = sizeof(copies) / sizeof(copies[0]);
	uint32_t value;

	copies[0].fd = need(dup(s.device));
	copies[1].fd = need(dup2(s.device, 20));
	copies[2].fd = need(dup3(s.device, 21, O_CLOEXEC));
	copies[3].fd = need(fcntl(s.device, F_DUPFD, 30));
	copies[4].fd = need(fcntl(s.device, F_DUPFD_CLOEXEC, 31));
	copies[5].fd = need(dup(20));
	copies[6].fd = need(dup2(copies[3].fd, 22));
	check("F_DUPFD counts from its argument", copies[3].fd >= 30 && copies[4].fd >= 31);
	check_equal("dup3 with O_CLOEXEC", need(fcntl(21, F_GETFD)), FD_CLOEXEC);
	check_equal("F_DUPFD_CLOEXEC", need(fcntl(copies[4].fd, F_GETFD)), FD_CLOEXEC);
	check_equal("F_DUPFD", need(fcntl(copies[3].fd, F_GETFD)), 0);
	check_equal("dup2 onto itself", need(dup2(s.device, s.device)), s.device);
	for (size_t i = 0; i < count; i++)
		use_device(&copies[i], &s);
	need(close(s.device));
	need(close(s.iommu));
	check_errno("the original is closed", pread(s.device, &value, 4, s.config), EBADF);
	for (size_t i = 0; i < count; i++)
		use_device(&copies[i], &s);
	for (size_t i = 0; i + 1 < count; i++) {
		need(close(copies[i].fd));
		if (flags_of(GROUP_A) != LOCKED)
			die("released with %zu copies open", count - 1 - i);
	}
	use_device(&copies[count - 1], &s);
	check_equal("locked while one copy is open", flags_of(GROUP_A), LOCKED);
	need(close(copies[count - 1].fd));
	check_equal("the last close releases", flags_of(GROUP_A), VFIO_GROUP_FLAGS_VIABLE);
	need(close(s.group));
}

static void replaced(void)
{
	struct session s = session_open(GROUP_A, DEVICE_A);
	int null = need(open("/dev/null", O_RDWR));
	uint32_t value = 0;

	need(close(s.iommu));
	need(dup2(s.device, 20));
	need(close(s.device));
	need(dup2(null, 20));
	check_equal("dup2 over the last copy releases", flags_of(GROUP_A), VFIO_GROUP_FLAGS_VIABLE);
	check_equal("what replaced it is what answers", need(pread(20, &value, 4, 0)), 0);
	check_errno("and knows no VFIO", ioctl(20, VFIO_DEVICE_RESET), ENOTTY);
	need(close(20));
	need(close(null));

	/* the same on the number that the device file was given itself */
	session_device(&s, DEVICE_A);
	null = need(open("/dev/null", O_RDWR));
	need(dup2(null, s.device));
	check_equal("dup2 over the device releases", flags_of(GROUP_A), VFIO_GROUP_FLAGS_VIABLE);
	check_equal("its number is another file now", need(pread(s.device, &value, 4, s.bar0)), 0);
	need(close(s.device));
	need(close(null));
	need(close(s.group));
}

static void iommu_and_group_copies(void)
{
	struct session s = session_open(GROUP_A, DEVICE_A);
	int iommu = need(dup(s.iommu)), group = need(dup2(s.group, 25));
	void *memory = pages(1);

	session_close(&s);
	check_ok("MAP_DMA through a copy", dma_map(iommu, memory, 0x100000, PAGE));
	check_equal("GET_FLAGS through a copy", group_flags(group), LOCKED);
	session_device(&(struct session){ .group = group }, DEVICE_A1);
	pass("GET_DEVICE_FD through a copy");
	check_ok("UNMAP_DMA through a copy", dma_unmap(iommu, 0x100000, PAGE));
	need(close(iommu));
	check_equal("locked by the device", group_flags(group), LOCKED);
}

int main(void)
{
	device_copies();
	replaced();
	iommu_and_group_copies();
	return 0;
}
