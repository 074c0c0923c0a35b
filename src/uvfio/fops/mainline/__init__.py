"""The files of the mainline ABIs: container and group, device nodes, iommufd."""
