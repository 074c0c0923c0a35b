"""Migration version 2: the states of a device, and the stream of its data."""
