"""Starting a program under the filter, guarding it, and finding out whether a system can."""
