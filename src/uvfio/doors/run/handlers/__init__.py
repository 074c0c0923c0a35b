"""Answers to the notified system calls."""
