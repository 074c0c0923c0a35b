"""Virtio devices over PCI, as the legacy interface of the specification has them."""
