/* SPDX-License-Identifier: MIT */
/*
 * umockdev_ioctl COUNT: what an ioctl costs that umockdev emulates, the usual way
 * to give a program a device that is not there:
 *
 *   umockdev-run -d umockdev_ioctl.umockdev -i /dev/bus/usb/001/002=umockdev_ioctl.ioctl \
 *       -- ./umockdev_ioctl 5000
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/usbdevice_fs.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "timing.h"

static void ask(int fd)
{
	struct usbdevfs_connectinfo info = { 0 };

	if (ioctl(fd, USBDEVFS_CONNECTINFO, &info) || info.devnum != 11) {
		fprintf(stderr, "umockdev_ioctl: %s\n", strerror(errno));
		exit(1);
	}
}

int main(int argc, char **argv)
{
	long count = argc > 1 ? atol(argv[1]) : 5000;
	int fd = open("/dev/bus/usb/001/002", O_RDWR);

	if (fd < 0) {
		fprintf(stderr, "umockdev_ioctl: open: %s\n", strerror(errno));
		return 1;
	}
	for (int i = 0; i < 200; i++)
		ask(fd);
	MEASURE("ioctl", count, ask(fd));
	return 0;
}
