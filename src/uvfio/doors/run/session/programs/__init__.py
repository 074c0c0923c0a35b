"""The programs of a run: which process a task belongs to, what is known of it, and until when."""
