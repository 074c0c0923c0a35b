"""The files that the machine shows: /dev/vfio, /dev/iommu and sysfs."""
