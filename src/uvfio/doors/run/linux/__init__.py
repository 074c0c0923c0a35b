"""What Python's standard library lacks of Linux: system calls, stat structures, other processes' memory."""
