"""uvfio: VFIO in userspace.

A machine that exists only in a Python process has buses, devices, IOMMU groups and an IOMMU; programs
use its devices through VFIO. Importing this package imports nothing else: take what you need from
``uvfio.machine``, ``uvfio.doors.local``, ``uvfio.models``.
"""

__version__ = "0.1.0"
