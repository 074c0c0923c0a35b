"""One run: its programs, what they have open, and the reactor, the one place that waits."""
