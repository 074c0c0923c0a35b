"""Silicon: device models. They talk to the world only by their registers, DMA and interrupts."""
