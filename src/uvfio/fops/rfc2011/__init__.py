"""The files of the 2011 ABI: group, iommu, device."""
