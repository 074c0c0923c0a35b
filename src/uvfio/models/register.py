"""Alias of ``uvfio.kit.register``, under its name of version 0.1. It goes with the next release."""

from __future__ import annotations

from uvfio.kit import register as _there
from uvfio.kit.register import *  # noqa: F403 (whatever is there)

__all__ = _there.__all__
