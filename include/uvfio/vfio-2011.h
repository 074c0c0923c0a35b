/* SPDX-License-Identifier: MIT */
/*
 * The user interface of VFIO as proposed in November 2011 ("VFIO Driver core
 * framework", driver version 0.2), for programs that run under uvfio.
 *
 * This is not the interface of mainline kernels: <linux/vfio.h> declares other
 * requests and other structures under partly the same names, so a source file
 * includes one of the two.
 *
 * Three kinds of files:
 *
 *   group   open("/dev/vfio/<number of the IOMMU group>", O_RDWR)
 *   iommu   ioctl(group, VFIO_GROUP_GET_IOMMU_FD)
 *   device  ioctl(group, VFIO_GROUP_GET_DEVICE_FD, "0000:06:0d.0")
 *
 * The first request that needs the IOMMU makes the caller's address space its
 * owner. It stays the owner until the last iommu and device file is closed;
 * with these files all DMA mappings go as well. A program whose address space
 * is another one (also a forked child) gets EPERM for every request on the
 * group except VFIO_GROUP_GET_FLAGS.
 */
#ifndef UVFIO_VFIO_2011_H
#define UVFIO_VFIO_2011_H

#ifdef VFIO_H
#error "<linux/vfio.h> and <uvfio/vfio-2011.h> describe two different interfaces: include one of them"
#endif

#include <linux/ioctl.h>
#include <linux/types.h>

/* ---- group file ------------------------------------------------------- */

/*
 * VFIO_GROUP_GET_FLAGS - state of the group; anybody who has it open may ask
 *
 * VIABLE: every device of the group, and of all groups merged with it, is bound
 * to a VFIO driver. Without it no iommu and no device can be opened (EBUSY).
 * MM_LOCKED: some address space owns the IOMMU; set for the owner, too.
 */
#define VFIO_GROUP_GET_FLAGS			_IOR(';', 100, __u64)
#define VFIO_GROUP_FLAGS_VIABLE			(1 << 0)
#define VFIO_GROUP_FLAGS_MM_LOCKED		(1 << 1)

/*
 * VFIO_GROUP_MERGE - let another group share this group's IOMMU context
 * VFIO_GROUP_UNMERGE - take it out again
 *
 * The argument points to the descriptor of the other group. To be merged, that
 * group may have neither its iommu nor a device open (EINVAL); to be unmerged,
 * no device (EBUSY).
 */
#define VFIO_GROUP_MERGE			_IOW(';', 101, int)
#define VFIO_GROUP_UNMERGE			_IOW(';', 102, int)

/* VFIO_GROUP_GET_IOMMU_FD - no argument; the result is a new descriptor */
#define VFIO_GROUP_GET_IOMMU_FD			_IO(';', 103)

/*
 * VFIO_GROUP_GET_DEVICE_FD - open a device of the group (or of one merged with it)
 *
 * The argument is the string itself, not a pointer to it. The result is a new
 * descriptor; ENODEV if no device has that name. The request encodes the size
 * of a pointer and so has another value in 32-bit programs.
 */
#define VFIO_GROUP_GET_DEVICE_FD		_IOW(';', 104, char *)

/* ---- iommu file ------------------------------------------------------- */

/* VFIO_IOMMU_GET_FLAGS - MAP_ANY: any DMA address can lead to any memory */
#define VFIO_IOMMU_GET_FLAGS			_IOR(';', 105, __u64)
#define VFIO_IOMMU_FLAGS_MAP_ANY		(1 << 0)

/*
 * struct vfio_dma_map - a range of the program's memory as devices see it
 * @len:     size of this structure; not looked at
 * @vaddr:   address in the program (MAP only), page aligned
 * @dmaaddr: address that the devices use, page aligned; chosen by the program
 * @size:    bytes, page aligned and not 0
 * @flags:   VFIO_DMA_MAP_FLAG_WRITE lets devices write, too; reading is implied
 */
struct vfio_dma_map {
	__u64	len;
	__u64	vaddr;
	__u64	dmaaddr;
	__u64	size;
	__u64	flags;
#define VFIO_DMA_MAP_FLAG_WRITE			(1 << 0)
};

/*
 * VFIO_IOMMU_MAP_DMA - EBUSY if any page of the DMA range is mapped already,
 *	EFAULT if the memory is not there (or not writable, with FLAG_WRITE),
 *	ENOMEM beyond RLIMIT_MEMLOCK
 * VFIO_IOMMU_UNMAP_DMA - unmap whatever lies in the DMA range; mappings that
 *	stick out are cut, and a range with nothing in it is no error. Uses
 *	@dmaaddr and @size only.
 */
#define VFIO_IOMMU_MAP_DMA			_IOWR(';', 106, struct vfio_dma_map)
#define VFIO_IOMMU_UNMAP_DMA			_IOWR(';', 107, struct vfio_dma_map)

/* ---- device file ------------------------------------------------------ */

/*
 * Regions are read and written with pread() and pwrite() at
 * vfio_region_info.offset, and mapped with mmap() where their flags allow it.
 */

/*
 * VFIO_DEVICE_GET_FLAGS - what kind of device this is
 *
 * PCI: a PCI function. DT: a device described by a device tree. RESET: it can
 * be reset on its own.
 */
#define VFIO_DEVICE_GET_FLAGS			_IOR(';', 108, __u64)
#define VFIO_DEVICE_FLAGS_PCI			(1 << 0)
#define VFIO_DEVICE_FLAGS_DT			(1 << 1)
#define VFIO_DEVICE_FLAGS_RESET			(1 << 2)

/* VFIO_DEVICE_GET_NUM_REGIONS - regions are numbered from 0; 8 on PCI */
#define VFIO_DEVICE_GET_NUM_REGIONS		_IOR(';', 109, int)

/*
 * struct vfio_region_info - one region of a device
 * @len:    in: size of this structure; 32 leaves @phys out, other values are EINVAL
 * @index:  in: which region
 * @size:   out: bytes; 0 if the device does not have this region
 * @offset: out: where the region begins in the device file
 * @flags:  out: MMAP: mmap() is possible; RO: it cannot be written;
 *          PHYS_VALID: @phys holds an address
 * @phys:   out: physical address, only with PHYS_VALID
 */
struct vfio_region_info {
	__u32	len;
	__u32	index;
	__u64	size;
	__u64	offset;
	__u64	flags;
#define VFIO_REGION_INFO_FLAG_MMAP		(1 << 0)
#define VFIO_REGION_INFO_FLAG_RO		(1 << 1)
#define VFIO_REGION_INFO_FLAG_PHYS_VALID	(1 << 2)
	__u64	phys;
};

#define VFIO_DEVICE_GET_REGION_INFO		_IOWR(';', 110, struct vfio_region_info)

/* VFIO_DEVICE_GET_NUM_IRQS - interrupts are numbered from 0; 3 kinds on PCI */
#define VFIO_DEVICE_GET_NUM_IRQS		_IOR(';', 111, int)

/*
 * struct vfio_irq_info - one interrupt index of a device
 * @len:   in: size of this structure, 16
 * @index: in: which interrupt
 * @count: out: how many vectors it has; 0 if the device does not have it
 * @flags: out: LEVEL: it masks itself when it fires, see VFIO_DEVICE_UNMASK_IRQ
 */
struct vfio_irq_info {
	__u32	len;
	__u32	index;
	__u32	count;
	__u32	flags;
#define VFIO_IRQ_INFO_FLAG_LEVEL		(1 << 0)
};

#define VFIO_DEVICE_GET_IRQ_INFO		_IOWR(';', 112, struct vfio_irq_info)

/*
 * VFIO_DEVICE_SET_IRQ_EVENTFDS - have eventfds signalled by an interrupt
 *
 * The argument points to 2 + n ints (whatever the size in the request says):
 * index, n, and n descriptors of eventfds, one for each vector from 0 on.
 * n = 0 disables the interrupt. PCI has one kind of interrupt enabled at a
 * time: the others are EINVAL until it is disabled.
 */
#define VFIO_DEVICE_SET_IRQ_EVENTFDS		_IOW(';', 113, int)

/*
 * VFIO_DEVICE_UNMASK_IRQ - the device was served, a LEVEL interrupt may fire
 * again. The argument points to its index. If the device still asserts the
 * line it fires at once.
 */
#define VFIO_DEVICE_UNMASK_IRQ			_IOW(';', 114, int)

/*
 * VFIO_DEVICE_SET_UNMASK_IRQ_EVENTFD - unmask by signalling an eventfd
 *
 * The argument points to two ints: index and descriptor. A negative descriptor
 * ends it (ENODEV if there was none), a second one is EBUSY.
 */
#define VFIO_DEVICE_SET_UNMASK_IRQ_EVENTFD	_IOW(';', 115, int)

/* VFIO_DEVICE_RESET - no argument; EINVAL without VFIO_DEVICE_FLAGS_RESET */
#define VFIO_DEVICE_RESET			_IO(';', 116)

/*
 * struct vfio_dtpath - which device tree node a resource comes from
 * @len:   in: size of this structure, plus the size of the buffer at @path if that
 *         is not a page; out with ENOSPC: what is needed
 * @index: in: number of the region or interrupt
 * @flags: in: exactly one of REGION and IRQ says what @index counts
 * @path:  in: where to put the full path, with its NUL
 *
 * The proposal leaves open how large the buffer is. uvfio's rule: len minus
 * sizeof(struct vfio_dtpath) bytes, or a page if that is 0.
 */
struct vfio_dtpath {
	__u32	len;
	__u32	index;
	__u64	flags;
#define VFIO_DTPATH_FLAGS_REGION		(1 << 0)
#define VFIO_DTPATH_FLAGS_IRQ			(1 << 1)
	char	*path;
};

/* Encodes a pointer in its structure: another value in 32-bit programs */
#define VFIO_DEVICE_GET_DTPATH			_IOWR(';', 117, struct vfio_dtpath)

/*
 * struct vfio_dtindex - which property of that node, and which entry of it
 * @len:        in: size of this structure, 24
 * @index:      in: number of the region or interrupt
 * @prop_type:  out: one of VFIO_DTINDEX_PROP_*
 * @prop_index: out: number of the entry within the property
 * @flags:      in: exactly one of REGION and IRQ says what @index counts
 */
struct vfio_dtindex {
	__u32	len;
	__u32	index;
	__u32	prop_type;
	__u32	prop_index;
	__u64	flags;
#define VFIO_DTINDEX_FLAGS_REGION		(1 << 0)
#define VFIO_DTINDEX_FLAGS_IRQ			(1 << 1)
};

#define VFIO_DEVICE_GET_DTINDEX			_IOWR(';', 118, struct vfio_dtindex)

/* ---- added by uvfio ---------------------------------------------------- */

/* Values of prop_type. The proposal never said; these are this project's own. */
#define VFIO_DTINDEX_PROP_REG			0
#define VFIO_DTINDEX_PROP_RANGES		1
#define VFIO_DTINDEX_PROP_INTERRUPTS		2
#define VFIO_DTINDEX_PROP_INTERRUPT_MAP		3

/*
 * How PCI devices number their regions and interrupts. The proposal's PCI
 * driver does it this way without giving names; the names are those of later kernels.
 */
#define VFIO_PCI_BAR0_REGION_INDEX		0
#define VFIO_PCI_ROM_REGION_INDEX		6
#define VFIO_PCI_CONFIG_REGION_INDEX		7
#define VFIO_PCI_NUM_REGIONS			8
#define VFIO_PCI_INTX_IRQ_INDEX			0
#define VFIO_PCI_MSI_IRQ_INDEX			1
#define VFIO_PCI_MSIX_IRQ_INDEX			2
#define VFIO_PCI_NUM_IRQS			3

#endif /* UVFIO_VFIO_2011_H */
