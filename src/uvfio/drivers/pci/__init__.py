"""vfio-pci: gives a program a PCI function without letting it harm its neighbours."""
