"""The support matrix: what each file of each ABI answers, read from the tables of requests.

``SECTIONS`` lists the tables; each section has one column for each kind of file that has its requests. ``rows`` gives
the cells, ``markdown`` the tables of docs/reference/support.md. Nothing here is written by hand but the titles.

No door imports this module: it loads the files of both ABIs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

from uvfio.fops.file import ABI_2011, MAINLINE
from uvfio.fops.mainline.cdev import CdevFile
from uvfio.fops.mainline.container import ContainerFile
from uvfio.fops.mainline.device import DeviceFile
from uvfio.fops.mainline.group import GroupFile
from uvfio.fops.mainline.iommufd import IommufdFile
from uvfio.fops.mainline.iommufd_container import ContainerRequests
from uvfio.fops.mainline.migration import DataFile
from uvfio.fops.request import Full, Partial, Request, Support
from uvfio.fops.rfc2011.device import DeviceFile as RfcDeviceFile
from uvfio.fops.rfc2011.group import GroupFile as RfcGroupFile
from uvfio.fops.rfc2011.iommu import IommuFile
from uvfio.uapi import iommufd, rfc, vfio, vfio_feature

__all__ = ["SECTIONS", "Row", "Section", "markdown", "rows"]

Table = Mapping[int, Request]


class Section(NamedTuple):
    """One table of the page: ``names`` are the requests that the header has, ``columns`` the files by their titles."""

    abi: str
    title: str
    names: Mapping[int, str]
    columns: Mapping[str, Table]


class Row(NamedTuple):
    """One cell: how the file ``file`` of ``abi`` answers request ``number``."""

    abi: str
    section: str
    file: str
    number: int
    name: str
    support: Support


def _rfc(kind: str) -> dict[int, str]:
    return {number: known.name for number, known in rfc.IOCTLS.items() if known.file == kind}


def _mainline(kind: str) -> dict[int, str]:
    tables = (vfio.IOCTLS, iommufd.IOCTLS)
    return {n: known.name for table in tables for (k, n), known in table.items() if k == kind}


FEATURES: Final = {number: known.name for number, known in vfio_feature.FEATURES.items()}

SECTIONS: Final = (
    Section(ABI_2011, "2011: group", _rfc("group"), {"/dev/vfio/N": RfcGroupFile.REQUESTS}),
    Section(ABI_2011, "2011: iommu", _rfc("iommu"), {"iommu": IommuFile.REQUESTS}),
    Section(ABI_2011, "2011: device", _rfc("device"), {"device": RfcDeviceFile.REQUESTS}),
    Section(
        MAINLINE,
        "mainline: container",
        _mainline("container"),
        {"/dev/vfio/vfio": ContainerFile.REQUESTS, "/dev/iommu": ContainerRequests.REQUESTS},
    ),
    Section(MAINLINE, "mainline: group", _mainline("group"), {"/dev/vfio/N": GroupFile.REQUESTS}),
    Section(
        MAINLINE,
        "mainline: device",
        _mainline("device"),
        {"from a group": DeviceFile.REQUESTS, "/dev/vfio/devices/vfioN": CdevFile.REQUESTS},
    ),
    Section(
        MAINLINE,
        "mainline: VFIO_DEVICE_FEATURE",
        FEATURES,
        {"device": DeviceFile.FEATURES},
    ),
    Section(
        MAINLINE, "mainline: migration data", _mainline("migration"), {"data_fd": DataFile.REQUESTS}
    ),
    Section(
        MAINLINE, "mainline: iommufd", _mainline("iommufd"), {"/dev/iommu": IommufdFile.REQUESTS}
    ),
)


def rows() -> Iterator[Row]:
    """Every cell of the matrix, section by section. A header's request that a table lacks is a KeyError."""
    for section in SECTIONS:
        for number, name in section.names.items():
            for file, table in section.columns.items():
                support = table[number].support
                yield Row(section.abi, section.title, file, number, name, support)


def markdown() -> str:
    """The tables of docs/reference/support.md."""
    parts = []
    for section in SECTIONS:
        cells: dict[str, list[str]] = {}
        number = str if section.names is FEATURES else hex
        for row in rows():
            if row.section == section.title:
                request = f"`{row.name}` ({number(row.number)})"
                cells.setdefault(request, []).append(_text(row.support))
        lines = [
            f"## {section.title}",
            "",
            f"| Request | {' | '.join(section.columns)} |",
            "|---" * (1 + len(section.columns)) + "|",
            *(f"| {request} | {' | '.join(texts)} |" for request, texts in cells.items()),
        ]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _text(support: Support) -> str:
    if isinstance(support, Full):
        return "full"
    if isinstance(support, Partial):
        return f"partial: {support.missing}"
    return f"{support.errno}: {support.reason}"
