"""Alias of ``uvfio.kit.pci.bar``, under its name of version 0.1. It goes with the next release."""

from __future__ import annotations

from uvfio.kit.pci import bar as _there
from uvfio.kit.pci.bar import *  # noqa: F403 (whatever is there)

__all__ = _there.__all__
