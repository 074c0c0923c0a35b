"""Translation: address spaces, their mappings, and the IOMMU hardware that translates."""
