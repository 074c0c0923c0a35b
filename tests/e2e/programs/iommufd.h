/* SPDX-License-Identifier: MIT */
/* What programs need of linux/iommufd.h, and of linux/vfio.h since 6.6: older systems have neither. */
#ifndef IOMMUFD_H
#define IOMMUFD_H

#include <stdint.h>
#include <sys/ioctl.h>

#define IOMMUFD_REQUEST(number)		_IO(';', 0x80 + (number))
#define DESTROY				IOMMUFD_REQUEST(0)
#define IOAS_ALLOC			IOMMUFD_REQUEST(1)
#define IOAS_COPY			IOMMUFD_REQUEST(3)
#define IOAS_IOVA_RANGES		IOMMUFD_REQUEST(4)
#define IOAS_MAP			IOMMUFD_REQUEST(5)
#define IOAS_UNMAP			IOMMUFD_REQUEST(6)
#define HWPT_ALLOC			IOMMUFD_REQUEST(9)
#define IOAS_MAP_FILE			IOMMUFD_REQUEST(15)
#define BIND_IOMMUFD			_IO(';', 118)
#define ATTACH_IOMMUFD_PT		_IO(';', 119)
#define DETACH_IOMMUFD_PT		_IO(';', 120)

#define MAP_FIXED_IOVA			1
#define MAP_WRITEABLE			2
#define MAP_READABLE			4

struct bind_iommufd {
	uint32_t argsz, flags;
	int32_t iommufd;
	uint32_t out_devid;
	uint64_t token_uuid_ptr;
};
struct attach_pt {
	uint32_t argsz, flags, pt_id, pasid;
};
struct detach_pt {
	uint32_t argsz, flags;
};
struct destroy {
	uint32_t size, id;
};
struct ioas_alloc {
	uint32_t size, flags, out_ioas_id;
};
struct iova_ranges {
	uint32_t size, ioas_id, num_iovas, reserved;
	uint64_t allowed_iovas, out_iova_alignment;
};
struct ioas_map {
	uint32_t size, flags, ioas_id, reserved;
	uint64_t user_va, length, iova;
};
struct ioas_map_file {
	uint32_t size, flags, ioas_id;
	int32_t fd;
	uint64_t start, length, iova;
};
struct ioas_unmap {
	uint32_t size, ioas_id;
	uint64_t iova, length;
};

#endif
