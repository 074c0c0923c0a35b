"""What the author of a platform device imports besides ``uvfio.kit``::

from uvfio.kit.platform import LevelLine, PlatformModel, RegisterRegion
"""

from __future__ import annotations

from uvfio.kit.platform.model import PlatformModel
from uvfio.kit.platform.region import EdgeLine, LevelLine, MemoryRegion, RegisterRegion

__all__ = ["EdgeLine", "LevelLine", "MemoryRegion", "PlatformModel", "RegisterRegion"]
