"""Structure: groups, devices, contexts, and who holds which of them."""
