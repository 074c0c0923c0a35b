/* SPDX-License-Identifier: MIT */
/* What the checks of the guest share: finding a device, VFIO inside the guest, interrupts, memory for DMA. */
#ifndef MACHINE_H
#define MACHINE_H

#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/pci_regs.h>
#include <linux/vfio.h>
#include <poll.h>
#include <stdint.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <termios.h>
#include <unistd.h>

#define PATIENCE 20000	/* milliseconds; nothing takes so long unless it never comes */
#define QUIET 100	/* milliseconds in which something that must not come would have come */

/* A device that is open, with its first BAR mapped */
struct device {
	char address[32];
	int container, group, fd;
	volatile uint8_t *bar0;
	off_t config;
};

void write_file(const char *path, const char *text);
void find_device(unsigned int vendor, unsigned int device, char address[32]);
void bind_device(const char *address, const char *driver);

struct device open_by_vfio(const char *address);
struct vfio_region_info region_of(struct device *device, unsigned int index);
void *map_region(struct device *device, unsigned int index);
void map_dma(struct device *device, void *memory, uint64_t iova, size_t size);
void close_by_vfio(struct device *device);

void connect_irqs(struct device *device, unsigned int index, const int *fds, unsigned int count);
void set_irq(struct device *device, unsigned int index, unsigned int action, unsigned int count);
int irq_event(void);
int came(int event, int milliseconds);
void set_command(struct device *device, uint16_t bits);

static inline uint32_t get32(volatile uint8_t *bar, unsigned int offset)
{
	return *(volatile uint32_t *)(bar + offset);
}

static inline void put32(volatile uint8_t *bar, unsigned int offset, uint32_t value)
{
	*(volatile uint32_t *)(bar + offset) = value;
}

static inline void put64(volatile uint8_t *bar, unsigned int offset, uint64_t value)
{
	*(volatile uint64_t *)(bar + offset) = value;
}

void check_edu(void);
void check_edu_uio(void);
void check_exerciser(void);
void check_hotplug(void);

#endif
