"""Observers of a run: trace, summary, status; and the control socket, by which another program changes the machine.

The first three consume the events of ``session/events.py`` and nothing else. ``text`` < ``trace_2011``,
``trace_mainline`` < ``calls`` < ``trace``, ``summary``; ``status`` < ``control``.
"""
