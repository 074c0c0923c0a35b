"""The runner: unmodified programs under seccomp user notification."""
