"""The long tests use what the end-to-end tests use."""

from __future__ import annotations

from e2e.conftest import _programs_can_be_run, program, python

__all__ = ["_programs_can_be_run", "program", "python"]
