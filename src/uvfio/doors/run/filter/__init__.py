"""The seccomp filter: which system calls of a program are notified."""
