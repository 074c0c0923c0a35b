"""The log of DMA writes: what is in it, who may ask for what."""

from __future__ import annotations

import errno

import pytest

from uvfio.core.translation.dma_log import COARSEST, RANGES_MAX, DmaLog, DmaLogger
from uvfio.errors import InvalidArgument, LimitExceeded, VfioError, WrapsAround

PAGE = 4096


class Bench:
    def __init__(self) -> None:
        self.connected: DmaLog | None = None
        self.logger = DmaLogger(self.connect)

    def connect(self, log: DmaLog | None) -> None:
        self.connected = log

    def start(self, *ranges: tuple[int, int], page: int = PAGE) -> DmaLog:
        self.logger.start(page, ranges)
        assert self.connected is not None
        return self.connected

    def report(self, iova: int, length: int, page: int = PAGE) -> list[int]:
        found: list[int] = []
        self.logger.report(iova, length, page, found.extend)
        return sorted(found)


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_pages_are_reported_once(bench: Bench) -> None:
    log = bench.start((0, 16 * PAGE))
    log.mark(PAGE, 1)
    log.mark(3 * PAGE - 1, 2)
    log.mark(3 * PAGE, 8)
    assert bench.report(0, 16 * PAGE) == [1, 2, 3]
    assert bench.report(0, 16 * PAGE) == []


def test_a_log_is_never_so_coarse_that_one_byte_fills_a_large_report(bench: Bench) -> None:
    log = bench.start((0, 1 << 50), page=1 << 50)
    assert log.page_size == COARSEST
    log.mark(5 * COARSEST, 1)
    assert bench.report(0, 1 << 50) == [
        5 * COARSEST // PAGE + page for page in range(COARSEST // PAGE)
    ]


def test_a_report_covers_its_range_only(bench: Bench) -> None:
    log = bench.start((0, 16 * PAGE))
    log.mark(0, 16 * PAGE)
    assert bench.report(4 * PAGE, 2 * PAGE) == [0, 1]
    assert bench.report(3 * PAGE, 4 * PAGE) == [0, 3]
    assert len(bench.report(0, 1 << 40)) == 12


def test_writes_outside_the_ranges_do_not_count(bench: Bench) -> None:
    log = bench.start((8 * PAGE, 2 * PAGE), (2 * PAGE, 2 * PAGE))
    for page in range(16):
        log.mark(page * PAGE + 5, 1)
    assert bench.report(0, 16 * PAGE) == [2, 3, 8, 9]
    log.mark(3 * PAGE + 1, 6 * PAGE)
    assert bench.report(0, 16 * PAGE) == [3, 8, 9]
    log.mark(0, 100 * PAGE)
    assert bench.report(0, 16 * PAGE) == [2, 3, 8, 9]


@pytest.mark.parametrize(("logged", "asked"), [(PAGE, 4 * PAGE), (4 * PAGE, PAGE)])
def test_a_report_may_have_other_pages(bench: Bench, logged: int, asked: int) -> None:
    log = bench.start((0, 16 * PAGE), page=logged)
    log.mark(5 * PAGE, 1)
    assert bench.report(0, 16 * PAGE, asked) == ([1] if asked > logged else [4, 5, 6, 7])
    assert len(log) == 0


def test_half_of_a_page_is_not_forgotten(bench: Bench) -> None:
    log = bench.start((0, 16 * PAGE), page=4 * PAGE)
    log.mark(5 * PAGE, 1)
    assert bench.report(0, 6 * PAGE, PAGE) == [4, 5]
    assert bench.report(6 * PAGE, 2 * PAGE, PAGE) == [0, 1]
    assert bench.report(4 * PAGE, 4 * PAGE, PAGE) == [0, 1, 2, 3]
    assert bench.report(0, 16 * PAGE, PAGE) == []


def test_a_report_that_does_not_arrive_is_not_forgotten(bench: Bench) -> None:
    bench.start((0, PAGE)).mark(0, 1)

    def fail(pages: list[int]) -> None:
        raise VfioError("nobody there")

    with pytest.raises(VfioError, match="nobody there"):
        bench.logger.report(0, PAGE, PAGE, fail)
    assert bench.report(0, PAGE) == [0]


def test_ranges_to_the_end_of_the_space(bench: Bench) -> None:
    top = (1 << 64) - 2 * PAGE
    log = bench.start((top, PAGE))
    log.mark(top + PAGE - 1, 1)
    assert bench.report(top, PAGE) == [0]
    assert bench.report(0, top) == []


def test_one_log_at_a_time(bench: Bench) -> None:
    with pytest.raises(InvalidArgument, match="not being logged"):
        bench.report(0, PAGE)
    first = bench.start((0, PAGE))
    with pytest.raises(InvalidArgument, match="already"):
        bench.start((0, PAGE))
    assert bench.connected is first
    bench.logger.stop()
    assert bench.connected is None
    bench.logger.stop()
    assert bench.start((0, PAGE)) is not first


@pytest.mark.parametrize("page", [0, 1, 2048, 4097, 3 * PAGE])
def test_page_sizes(bench: Bench, page: int) -> None:
    with pytest.raises(InvalidArgument, match="page size"):
        bench.start((0, 12 * PAGE), page=page)
    assert bench.connected is None
    bench.start((0, 12 * PAGE))
    with pytest.raises(InvalidArgument, match="page size"):
        bench.report(0, 12 * PAGE, page)


@pytest.mark.parametrize(
    ("wrong", "condition"),
    [
        ((1, PAGE), InvalidArgument),
        ((0, PAGE + 1), InvalidArgument),
        ((0, 0), InvalidArgument),
        ((5 * PAGE, PAGE), InvalidArgument),
        ((3 * PAGE, 3 * PAGE), InvalidArgument),
        ((0, 16 * PAGE), InvalidArgument),
        (((1 << 64) - PAGE, PAGE), WrapsAround),
        (((1 << 64) - PAGE, 2 * PAGE), WrapsAround),
    ],
)
def test_ranges_that_cannot_be(
    bench: Bench, wrong: tuple[int, int], condition: type[VfioError]
) -> None:
    with pytest.raises(condition):
        bench.start((4 * PAGE, 2 * PAGE), wrong)
    assert bench.logger.log is None
    bench.start((4 * PAGE, 2 * PAGE), (6 * PAGE, PAGE), (3 * PAGE, PAGE))


def test_reports_that_cannot_be(bench: Bench) -> None:
    bench.start((0, PAGE))
    with pytest.raises(WrapsAround):
        bench.report(PAGE, (1 << 64) - PAGE)
    with pytest.raises(InvalidArgument, match="no length"):
        bench.report(0, 0)


def test_the_number_of_ranges() -> None:
    with pytest.raises(InvalidArgument):
        DmaLogger.check_count(0)
    DmaLogger.check_count(RANGES_MAX)
    with pytest.raises(LimitExceeded) as error:
        DmaLogger.check_count(RANGES_MAX + 1)
    assert error.value.errno == errno.E2BIG


def test_many_ranges(bench: Bench) -> None:
    log = bench.start(*((2 * PAGE * n, PAGE) for n in reversed(range(RANGES_MAX))))
    log.mark(0, 2 * PAGE * RANGES_MAX)
    assert bench.report(0, 2 * PAGE * RANGES_MAX) == list(range(0, 2 * RANGES_MAX, 2))
