"""vfio-platform: the VFIO driver for devices that a device tree describes."""
