/* SPDX-License-Identifier: MIT */
/*
 * The only program of the guest that test_qemu.py boots, and its first process:
 * file systems, kernel modules, the checks of one device, power off. The kernel
 * hands on "checks=NAME" of its command line as an environment variable:
 *
 *   edu         edu through the guest's own VFIO, behind the guest's own IOMMU
 *   edu-uio     edu through uio_pci_generic; DMA by physical addresses
 *   exerciser   the exerciser through the guest's own VFIO
 *   hotplug     edu is removed while it is open, and another one comes
 *
 * The checks run in a child: one that fails ends the child, and the guest says
 * so on its console and switches itself off all the same.
 */
#include "check.h"
#include "machine.h"

#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/syscall.h>

static void mount_at(const char *type, const char *at)
{
	mkdir(at, 0755);
	need(mount(type, at, type, 0, NULL));
}

/* Load what the list names; the order is that of the dependencies */
static void load_modules(void)
{
	FILE *list = fopen("/modules/list", "re");
	char name[256], path[300];
	int fd;

	if (!list)
		die("/modules/list: %s", strerror(errno));
	while (fscanf(list, "%255s", name) == 1) {
		snprintf(path, sizeof(path), "/modules/%s", name);
		fd = need(open(path, O_RDONLY | O_CLOEXEC));
		if (syscall(SYS_finit_module, fd, "", 0) && errno != EEXIST)
			die("%s: %s", name, strerror(errno));
		need(close(fd));
	}
	fclose(list);
}

static int run_checks(void)
{
	static const struct {
		const char *name;
		void (*run)(void);
	} known[] = {
		{ "edu", check_edu },
		{ "edu-uio", check_edu_uio },
		{ "exerciser", check_exerciser },
		{ "hotplug", check_hotplug },
	};
	const char *wanted = getenv("checks");
	size_t i;

	load_modules();
	for (i = 0; i < sizeof(known) / sizeof(*known); i++) {
		if (wanted && !strcmp(wanted, known[i].name)) {
			known[i].run();
			return 0;
		}
	}
	die("there are no checks=%s", wanted ? wanted : "");
}

int main(void)
{
	int status = -1;
	pid_t child;

	mount_at("proc", "/proc");
	mount_at("sysfs", "/sys");
	mount_at("devtmpfs", "/dev");
	child = need(fork());
	if (!child)
		_exit(run_checks());
	need(waitpid(child, &status, 0));
	printf("GUEST %s\n", status ? "FAILED" : "DONE");
	fflush(stdout);
	tcdrain(STDOUT_FILENO);
	sync();
	reboot(RB_POWER_OFF);
	return 1;
}
