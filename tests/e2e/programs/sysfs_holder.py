"""Hold a device open while somebody unbinds it through sysfs: sysfs_holder.py DEVICE CASE HOW.

CASE: "waits" (until the close), "killed" (who waits), "asked" (by the request interrupt), "removed" (the device's
``remove`` file instead of unbind). HOW: "shell" writes through a copy of the descriptor, "direct" does not.
"""

import ctypes
import os
import select
import struct
import subprocess
import sys

libc = ctypes.CDLL(None, use_errno=True)
GET_DEVICE_FD, SET_CONTAINER, SET_IOMMU, SET_IRQS = 0x3B6A, 0x3B68, 0x3B66, 0x3B6E
REQUEST_INDEX = 4


def ioctl(fd: int, request: int, argument: object) -> int:
    result: int = libc.ioctl(fd, ctypes.c_ulong(request), argument)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def hold(device: str) -> int:
    number = os.path.basename(os.readlink(f"/sys/bus/pci/devices/{device}/iommu_group"))
    group = os.open(f"/dev/vfio/{number}", os.O_RDWR)
    container = os.open("/dev/vfio/vfio", os.O_RDWR)
    ioctl(group, SET_CONTAINER, ctypes.create_string_buffer(struct.pack("i", container)))
    ioctl(container, SET_IOMMU, 3)
    return ioctl(group, GET_DEVICE_FD, ctypes.create_string_buffer(device.encode()))


def hold_and_listen(device: str) -> tuple[int, int]:
    """(device, the eventfd of its request interrupt)"""
    fd, asked = hold(device), os.eventfd(0)
    request = struct.pack("IIIIIi", 24, 0x24, REQUEST_INDEX, 0, 1, asked)
    ioctl(fd, SET_IRQS, ctypes.create_string_buffer(request))
    return fd, asked


def main(device: str, case: str, how: str) -> None:
    folder = f"/sys/bus/pci/devices/{device}"
    fd, asked = hold_and_listen(device)
    file, text = f"{folder}/driver/unbind", device
    if case == "removed":
        file, text = f"{folder}/remove", "1"
    if how == "shell":
        words = ["bash", "-c", f"echo {text} > {file}"]
    else:
        code = "import os, sys; os.write(os.open(sys.argv[1], os.O_WRONLY), sys.argv[2].encode())"
        words = [sys.executable, "-c", code, file, text]
    waiter = subprocess.Popen(words)
    assert select.select([asked], [], [], 20)[0], "nobody asks for the device"
    assert waiter.poll() is None, "it does not wait"
    assert os.path.exists(f"{folder}/driver")
    if case == "killed":
        waiter.kill()
        assert waiter.wait(20) == -9
        assert os.path.exists(f"{folder}/driver"), "an unbind that was given up happened"
        waiter = subprocess.Popen(words)
        assert os.eventfd_read(asked)
    os.close(fd)
    assert waiter.wait(20) == 0
    assert not os.path.exists(f"{folder}/driver")
    assert os.path.exists(folder) == (case != "removed")
    print("PASS")


if __name__ == "__main__":
    main(*sys.argv[1:])
