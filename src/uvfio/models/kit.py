"""Alias of ``uvfio.kit``, under its name of version 0.1. It goes with the next release."""

from __future__ import annotations

from uvfio import kit
from uvfio.kit import *  # noqa: F403 (whatever is there)

__all__ = kit.__all__
