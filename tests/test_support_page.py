"""docs/reference/support.md is the tables of requests, and those are complete."""

from __future__ import annotations

import errno
from collections import Counter

import pytest

from tools.support_matrix import BEGIN, END, PAGE, expected
from uvfio.fops.file import ABI_2011, MAINLINE
from uvfio.fops.mainline.migration import HANDLERS
from uvfio.fops.request import Partial, Refused
from uvfio.fops.support import SECTIONS, Section, rows
from uvfio.uapi import iommufd, rfc, vfio, vfio_feature


def test_the_page_is_not_stale() -> None:
    page = PAGE.read_text()
    assert page == expected(page), "make support"


def test_a_page_without_markers_is_refused() -> None:
    for page in ("", BEGIN, END):
        with pytest.raises(ValueError, match="needs the lines"):
            expected(page)


def test_every_request_of_the_headers_is_in_one_section_of_its_abi() -> None:
    tables = [section for section in SECTIONS if not section.title.endswith("FEATURE")]
    found = {
        abi: Counter(number for s in tables if s.abi == abi for number in s.names)
        for abi in (ABI_2011, MAINLINE)
    }
    assert found[ABI_2011] == Counter(rfc.IOCTLS.keys())
    assert found[MAINLINE] == Counter(number for _, number in (*vfio.IOCTLS, *iommufd.IOCTLS))
    features = [s for s in SECTIONS if s not in tables]
    assert [list(s.names) for s in features] == [list(vfio_feature.FEATURES)]


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.title)
def test_every_table_has_what_the_header_has_and_no_more(section: Section) -> None:
    for file, table in section.columns.items():
        assert table.keys() == section.names.keys(), file


def test_every_reason_is_a_text_and_every_errno_a_name() -> None:
    for row in rows():
        if isinstance(row.support, Partial):
            assert row.support.missing, row
        if isinstance(row.support, Refused):
            assert row.support.reason, row
            assert hasattr(errno, row.support.errno), row


def test_a_row_without_handler_is_refused_like_an_unknown_request() -> None:
    for section in SECTIONS:
        for file, table in section.columns.items():
            for number, row in table.items():
                if row.handler is None:
                    support = row.support
                    assert isinstance(support, Refused), (file, number)
                    assert support.errno == "ENOTTY", (file, number)


def test_the_features_of_migration_are_those_that_are_handled() -> None:
    assert set(HANDLERS) == set(vfio_feature.MIGRATION_FEATURES)
