/* SPDX-License-Identifier: MIT */
/* The exerciser, driven from inside the guest by VFIO: what edu does not have. */
#include "check.h"
#include "machine.h"

#define EX_ID		0x000
#define EX_SIZE		0x004
#define EX_SCRATCH	0x010
#define EX_COUNTER	0x030	/* reading clears it */
#define EX_TICK		0x034
#define EX_INTERRUPT	0x040
#define EX_DMA_ADDRESS	0x080
#define EX_DMA_OFFSET	0x088
#define EX_DMA_LENGTH	0x090
#define EX_DMA_CONTROL	0x094	/* bit 0 go, bit 1 to RAM, bit 2 interrupt, bits 15-8 its vector */
#define EX_DMA_STATUS	0x098

#define VECTORS		4
#define IOVA		0x100000
#define LENGTH		8192

static void check_rom(struct device *device)
{
	struct vfio_region_info rom = region_of(device, VFIO_PCI_ROM_REGION_INDEX);
	uint8_t head[2] = { 0 };

	check("there is a ROM", rom.size >= 2048);
	if (pread(device->fd, head, 2, (off_t)rom.offset) != 2)
		die("the ROM: %s", strerror(errno));
	check("it begins as ROMs do", head[0] == 0x55 && head[1] == 0xaa);
}

static void check_ports(struct device *device)
{
	off_t at = (off_t)region_of(device, VFIO_PCI_BAR4_REGION_INDEX).offset;
	uint16_t value = 0x1234;

	if (pwrite(device->fd, &value, 2, at + 2) != 2 || pread(device->fd, &value, 2, at + 2) != 2)
		die("the I/O BAR: %s", strerror(errno));
	check_equal("a port swaps bytes", value, 0x3412);
}

/* The capability of the extended list that has this number, or 0 */
static unsigned int extended_capability(struct device *device, unsigned int wanted)
{
	unsigned int at = PCI_CFG_SPACE_SIZE;
	uint32_t head;

	while (at) {
		if (pread(device->fd, &head, 4, device->config + at) != 4)
			die("configuration space at %#x: %s", at, strerror(errno));
		if (PCI_EXT_CAP_ID(head) == wanted)
			return at;
		at = PCI_EXT_CAP_NEXT(head);
	}
	return 0;
}

static void check_msix(struct device *device, int events[VECTORS])
{
	volatile uint8_t *bar = device->bar0;
	unsigned int i;

	for (i = 0; i < VECTORS; i++)
		events[i] = irq_event();
	connect_irqs(device, VFIO_PCI_MSIX_IRQ_INDEX, events, VECTORS);
	for (i = VECTORS; i-- > 0;) {
		put32(bar, EX_INTERRUPT, i);
		check("a vector of MSI-X comes", came(events[i], PATIENCE));
	}
	for (i = 0; i < VECTORS; i++)
		check("no vector comes twice", !came(events[i], 0));
}

static void check_memory(struct device *device, int event)
{
	volatile uint8_t *bar = device->bar0;
	uint32_t *inside = map_region(device, VFIO_PCI_BAR2_REGION_INDEX);
	uint32_t *outside = mmap(NULL, LENGTH, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	unsigned int i;

	check_equal("size of the memory BAR", get32(bar, EX_SIZE),
		    region_of(device, VFIO_PCI_BAR2_REGION_INDEX).size);
	map_dma(device, outside, IOVA, LENGTH);
	for (i = 0; i < LENGTH / 4; i++)
		inside[i] = i * 2654435761u;
	put64(bar, EX_DMA_ADDRESS, IOVA);
	put64(bar, EX_DMA_OFFSET, 0);
	put32(bar, EX_DMA_LENGTH, LENGTH);
	put32(bar, EX_DMA_CONTROL, 1 | 2 | 4 | 1 << 8);
	check("end of DMA by MSI-X", came(event, PATIENCE));
	check_equal("DMA went well", get32(bar, EX_DMA_STATUS), 1);
	check("what was stored in the BAR is in RAM", !memcmp(inside, outside, LENGTH));
	put32(bar, EX_DMA_STATUS, 1);

	for (i = 0; i < LENGTH / 4; i++)
		outside[i] = ~outside[i];
	put64(bar, EX_DMA_OFFSET, LENGTH);
	put32(bar, EX_DMA_CONTROL, 1 | 4 | 1 << 8);
	check("end of DMA the other way", came(event, PATIENCE));
	check("what was in RAM is in the BAR", !memcmp(inside + LENGTH / 4, outside, LENGTH));
}

void check_exerciser(void)
{
	int events[VECTORS];
	struct device device;
	char address[32];

	find_device(0x1234, 0x0e8e, address);
	device = open_by_vfio(address);
	check_equal("identification", get32(device.bar0, EX_ID), 0x52455845);
	put32(device.bar0, EX_TICK, 3);
	check_equal("reading the counter", get32(device.bar0, EX_COUNTER), 3);
	check_equal("has cleared it, once", get32(device.bar0, EX_COUNTER), 0);
	check_rom(&device);
	check_ports(&device);
	check("serial number in extended configuration space",
	      extended_capability(&device, PCI_EXT_CAP_ID_DSN));
	check_msix(&device, events);
	check_memory(&device, events[1]);

	put32(device.bar0, EX_SCRATCH, 0xfeedface);
	check_equal("scratch", get32(device.bar0, EX_SCRATCH), 0xfeedface);
	need(ioctl(device.fd, VFIO_DEVICE_RESET));
	check_equal("a reset clears it", get32(device.bar0, EX_SCRATCH), 0);
	close_by_vfio(&device);
}
