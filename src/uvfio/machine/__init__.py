"""The emulated host: buses, functions, IOMMU, drivers, and the tree of files that it shows."""
