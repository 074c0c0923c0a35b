"""Drives the adder: an ordinary program that knows nothing of uvfio."""

import fcntl
import os
import struct

VFIO_GROUP_GET_DEVICE_FD, VFIO_DEVICE_SET_IRQ_EVENTFDS = 0x40083B68, 0x40043B71
BAR0, CONFIG = 0 << 40, 7 << 40  # where regions 0 and 7 begin in the device file
MSI = 1

group = os.open("/dev/vfio/0", os.O_RDWR)
device = fcntl.ioctl(group, VFIO_GROUP_GET_DEVICE_FD, bytearray(b"0000:00:01.0\0"))
done = os.eventfd(0)
fcntl.ioctl(device, VFIO_DEVICE_SET_IRQ_EVENTFDS, struct.pack("=3i", MSI, 1, done))
os.pwrite(device, struct.pack("<H", 0x006), CONFIG + 4)  # memory space and bus master on

os.pwrite(device, struct.pack("<I", 2), BAR0 + 0x0)
os.pwrite(device, struct.pack("<I", 40), BAR0 + 0x4)
os.pwrite(device, struct.pack("<I", 1), BAR0 + 0xC)
os.eventfd_read(done)  # sleeps until the interrupt
print("2 + 40 =", *struct.unpack("<I", os.pread(device, 4, BAR0 + 0x8)))
