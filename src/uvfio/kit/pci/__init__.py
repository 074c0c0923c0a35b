"""The parts of a PCI function in silicon: configuration space, BARs, capabilities, interrupts."""
