"""Alias of ``uvfio.kit.platform``, under its name of version 0.1. It goes with the next release."""

from __future__ import annotations

from uvfio.kit import platform
from uvfio.kit.platform import *  # noqa: F403 (whatever is there)

__all__ = platform.__all__
