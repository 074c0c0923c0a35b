/* SPDX-License-Identifier: MIT */
/*
 * edu, driven from inside the guest: by VFIO, and by UIO with physical addresses.
 *
 * Where the BAR is mapped into the guest, a store takes effect a few milliseconds later, and registers at low
 * offsets are looked at before others. So what a store brings about is waited for, never just read.
 */
#include "check.h"
#include "machine.h"

#include <time.h>

#define EDU_ID		0x00
#define EDU_LIVENESS	0x04
#define EDU_FACTORIAL	0x08
#define EDU_STATUS	0x20	/* bit 0 computing, bit 7 interrupt when it is done */
#define EDU_CAUSES	0x24
#define EDU_RAISE	0x60
#define EDU_ACKNOWLEDGE	0x64
#define EDU_SOURCE	0x80
#define EDU_DESTINATION	0x88
#define EDU_COUNT	0x90
#define EDU_COMMAND	0x98

#define START		1
#define TO_RAM		2
#define RAISE		4
#define BUFFER		0x40000	/* of the DMA engine's own memory */
#define PAGE		4096

/* Wait until a register has the value */
static void await(volatile uint8_t *bar, unsigned int offset, uint32_t value)
{
	struct timespec begin, now;

	clock_gettime(CLOCK_MONOTONIC, &begin);
	while (get32(bar, offset) != value) {
		clock_gettime(CLOCK_MONOTONIC, &now);
		if ((now.tv_sec - begin.tv_sec) * 1000 > PATIENCE)
			die("register %#x is %#x, not %#x", offset, get32(bar, offset), value);
	}
}

/* Wait until all stores have taken effect: the first inversion may be seen in the middle of a look, the second not */
static void settle(volatile uint8_t *bar)
{
	uint32_t value;

	for (value = 1; value <= 2; value++) {
		put32(bar, EDU_LIVENESS, value);
		await(bar, EDU_LIVENESS, ~value);
	}
}

static void start_dma(volatile uint8_t *bar, uint64_t from, uint64_t to, uint64_t count,
		      uint64_t command)
{
	put64(bar, EDU_SOURCE, from);
	put64(bar, EDU_DESTINATION, to);
	put64(bar, EDU_COUNT, count);
	put64(bar, EDU_COMMAND, command | START);
}

static void wait_dma(volatile uint8_t *bar)
{
	while (get32(bar, EDU_COMMAND) & START)
		;
}

static void check_registers(volatile uint8_t *bar)
{
	check_equal("identification", get32(bar, EDU_ID), 0x010000ed);
	put32(bar, EDU_LIVENESS, 0x12345678);
	await(bar, EDU_LIVENESS, ~0x12345678u);
	pass("liveness");
	put32(bar, EDU_FACTORIAL, 10);
	await(bar, EDU_FACTORIAL, 3628800);
	pass("factorial");
}

/* Memory to the device and back: the second half becomes what the first is */
static void check_dma(volatile uint8_t *bar, uint8_t *memory, uint64_t address)
{
	unsigned int i;

	for (i = 0; i < PAGE / 2; i++)
		memory[i] = (uint8_t)(i * 7 + 1);
	memset(memory + PAGE / 2, 0, PAGE / 2);
	start_dma(bar, address, BUFFER, PAGE / 2, 0);
	wait_dma(bar);
	start_dma(bar, BUFFER, address + PAGE / 2, PAGE / 2, TO_RAM);
	wait_dma(bar);
	check("DMA to the device and back", !memcmp(memory, memory + PAGE / 2, PAGE / 2));
}

static void check_msi(struct device *device)
{
	volatile uint8_t *bar = device->bar0;
	int event = irq_event();

	connect_irqs(device, VFIO_PCI_MSI_IRQ_INDEX, &event, 1);
	put32(bar, EDU_STATUS, 0x80);
	settle(bar);
	put32(bar, EDU_FACTORIAL, 12);
	check("factorial by MSI", came(event, PATIENCE));
	check_equal("its value", get32(bar, EDU_FACTORIAL), 479001600);
	check_equal("its cause", get32(bar, EDU_CAUSES), 0x1);
	put32(bar, EDU_ACKNOWLEDGE, 0x1);
	put32(bar, EDU_STATUS, 0);
	await(bar, EDU_CAUSES, 0);
	start_dma(bar, BUFFER, 0x100000, 64, TO_RAM | RAISE);
	check("end of DMA by MSI", came(event, PATIENCE));
	put32(bar, EDU_ACKNOWLEDGE, 0x100);
	await(bar, EDU_CAUSES, 0);
	check("no further MSI", !came(event, QUIET));
	set_irq(device, VFIO_PCI_MSI_IRQ_INDEX, VFIO_IRQ_SET_ACTION_TRIGGER, 0);
	need(close(event));
}

static void check_intx(struct device *device)
{
	volatile uint8_t *bar = device->bar0;
	int event = irq_event();

	connect_irqs(device, VFIO_PCI_INTX_IRQ_INDEX, &event, 1);
	put32(bar, EDU_RAISE, 0x6);
	check("INTx", came(event, PATIENCE));
	check("INTx is masked until unmasked", !came(event, QUIET));
	set_irq(device, VFIO_PCI_INTX_IRQ_INDEX, VFIO_IRQ_SET_ACTION_UNMASK, 1);
	check("INTx comes again while its cause stands", came(event, PATIENCE));
	check_equal("INTx: its cause", get32(bar, EDU_CAUSES), 0x6);
	put32(bar, EDU_ACKNOWLEDGE, 0x6);
	await(bar, EDU_CAUSES, 0);
	set_irq(device, VFIO_PCI_INTX_IRQ_INDEX, VFIO_IRQ_SET_ACTION_UNMASK, 1);
	check("INTx is quiet when the cause is gone", !came(event, QUIET));
	put32(bar, EDU_RAISE, 0x8);
	check("INTx a second time", came(event, PATIENCE));
	put32(bar, EDU_ACKNOWLEDGE, 0x8);
	await(bar, EDU_CAUSES, 0);
	set_irq(device, VFIO_PCI_INTX_IRQ_INDEX, VFIO_IRQ_SET_ACTION_TRIGGER, 0);
	need(close(event));
}

void check_edu(void)
{
	uint8_t *memory = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct device device;
	char address[32];
	uint8_t before;

	find_device(0x1234, 0x11e8, address);
	device = open_by_vfio(address);
	check_registers(device.bar0);
	map_dma(&device, memory, 0x100000, PAGE);
	check_dma(device.bar0, memory, 0x100000);
	check_msi(&device);
	before = memory[0];
	start_dma(device.bar0, BUFFER + 1, 0x200000, 64, TO_RAM);
	wait_dma(device.bar0);
	check_equal("DMA to an unmapped address goes nowhere", memory[0], before);
	check_intx(&device);
	close_by_vfio(&device);
}

static uint64_t physical_address(void *memory)
{
	int map = need(open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC));
	uint64_t entry = 0;

	if (pread(map, &entry, 8, (off_t)((uintptr_t)memory / PAGE * 8)) != 8 || !(entry >> 63))
		die("no physical address: %#llx", (unsigned long long)entry);
	need(close(map));
	return (entry & ((1ull << 55) - 1)) * PAGE;
}

void check_edu_uio(void)
{
	uint8_t *memory = mmap(NULL, PAGE, PROT_READ | PROT_WRITE,
			       MAP_PRIVATE | MAP_ANONYMOUS | MAP_LOCKED | MAP_POPULATE, -1, 0);
	char address[32], path[PATH_MAX];
	int config, resource, uio, count;
	volatile uint8_t *bar;
	uint16_t command = PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER;
	struct pollfd wanted;

	find_device(0x1234, 0x11e8, address);
	bind_device(address, "uio_pci_generic");
	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/config", address);
	config = need(open(path, O_RDWR | O_CLOEXEC));
	if (pwrite(config, &command, 2, PCI_COMMAND) != 2)
		die("the command register: %s", strerror(errno));
	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/resource0", address);
	resource = need(open(path, O_RDWR | O_CLOEXEC));
	bar = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_SHARED, resource, 0);
	if (bar == MAP_FAILED)
		die("resource0 cannot be mapped: %s", strerror(errno));
	check_registers(bar);
	check_dma(bar, memory, physical_address(memory));

	uio = need(open("/dev/uio0", O_RDONLY | O_CLOEXEC));
	put32(bar, EDU_RAISE, 0x2);
	wanted = (struct pollfd){ .fd = uio, .events = POLLIN };
	check("INTx by UIO", poll(&wanted, 1, PATIENCE) == 1 && read(uio, &count, 4) == 4);
	if (pread(config, &command, 2, PCI_COMMAND) != 2)
		die("the command register: %s", strerror(errno));
	check("the kernel has disabled INTx", command & PCI_COMMAND_INTX_DISABLE);
	check_equal("INTx by UIO: its cause", get32(bar, EDU_CAUSES), 0x2);
	put32(bar, EDU_ACKNOWLEDGE, 0x2);
	await(bar, EDU_CAUSES, 0);
	command &= ~PCI_COMMAND_INTX_DISABLE;
	need(pwrite(config, &command, 2, PCI_COMMAND));
	check_equal("INTx by UIO is quiet when the cause is gone", poll(&wanted, 1, QUIET), 0);
	put32(bar, EDU_RAISE, 0x4);
	check("INTx by UIO again", poll(&wanted, 1, PATIENCE) == 1 && read(uio, &count, 4) == 4);
	put32(bar, EDU_ACKNOWLEDGE, 0x4);
}
