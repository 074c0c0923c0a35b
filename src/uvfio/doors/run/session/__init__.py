"""One run: its programs, what they hold, and the one place that waits."""
