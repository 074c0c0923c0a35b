"""Ways in. A door does I/O and nothing else: it has no rule and no state of VFIO."""
