/* SPDX-License-Identifier: MIT */
/* edu is taken away while the guest's VFIO holds it open, and another one comes. */
#include "check.h"
#include "machine.h"

#include <linux/netlink.h>
#include <sys/socket.h>

/* Wait for the kernel's word that `what` ("add", "remove") happened to a PCI device; its address */
static void expect_event(int events, const char *what, char address[32])
{
	char message[8192], wanted[64], *last;
	struct pollfd more = { .fd = events, .events = POLLIN };
	ssize_t length;

	snprintf(wanted, sizeof(wanted), "%s@/devices/pci", what);
	while (need(poll(&more, 1, PATIENCE)) == 1) {
		length = need(recv(events, message, sizeof(message) - 1, 0));
		message[length] = '\0';	/* the headline ends with a zero, lines of facts follow */
		last = strrchr(message, '/');
		if (!strncmp(message, wanted, strlen(wanted)) && strlen(last) == strlen("/0000:00:00.0")) {
			snprintf(address, 32, "%.31s", last + 1);
			return;
		}
	}
	die("no device: %s", what);
}

void check_hotplug(void)
{
	struct sockaddr_nl kernel = { .nl_family = AF_NETLINK, .nl_groups = 1 };
	struct pollfd request = { .events = POLLIN };
	char address[32], gone[32];
	struct device device;
	int events, event;

	events = need(socket(AF_NETLINK, SOCK_DGRAM | SOCK_CLOEXEC, NETLINK_KOBJECT_UEVENT));
	need(bind(events, (struct sockaddr *)&kernel, sizeof(kernel)));
	find_device(0x1234, 0x11e8, address);
	device = open_by_vfio(address);
	check_equal("identification", get32(device.bar0, 0), 0x010000ed);
	event = irq_event();
	connect_irqs(&device, VFIO_PCI_REQ_IRQ_INDEX, &event, 1);
	pass("the guest waits for the device's removal");
	request.fd = event;
	check("the guest's VFIO asks for the device", poll(&request, 1, PATIENCE) == 1);
	need(munmap((void *)device.bar0, region_of(&device, 0).size));
	close_by_vfio(&device);
	expect_event(events, "remove", gone);
	check("the device has gone", !strcmp(gone, address));
	expect_event(events, "add", address);
	write_file("/sys/bus/pci/rescan", "1");	/* returns when it has been added completely */
	pass("a device has come");
	device = open_by_vfio(address);
	check_equal("the other one's identification", get32(device.bar0, 0), 0x010000ed);
	close_by_vfio(&device);
}
