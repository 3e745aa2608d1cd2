"""Batch sizes chosen by what they cost."""

import pytest

from sdbatch.renderer.sampling.pace import Pace

SIZES = (1, 2, 4, 8, 16, 32)


@pytest.fixture
def pace() -> Pace:
    """Where a pass costs the same up to 8 rows, and for each of more rows twice as much as for 8."""
    pace = Pace(SIZES)
    for size in SIZES:
        pace.took("form", size, 8 if size <= 8 else 2 * size)
    return pace


@pytest.mark.parametrize(("rows", "size"), [(1, 1), (3, 4), (5, 8), (7, 8), (8, 8), (17, 8), (64, 8)])
def test_the_size_that_costs_least_for_a_row_that_waits(pace: Pace, rows: int, size: int) -> None:
    assert pace.best("form", rows) == size


def test_of_another_form_nothing_is_known(pace: Pace) -> None:
    assert [pace.best("other", rows) for rows in (5, 6, 25)] == [4, 8, 32]


def test_one_slow_moment_does_not_count(pace: Pace) -> None:
    pace.took("form", 8, 8)
    pace.took("form", 8, 8)
    pace.took("form", 8, 1000)
    assert pace.best("form", 8) == 8


def test_what_gets_faster_is_noticed(pace: Pace) -> None:
    for _ in range(20):
        pace.took("form", 32, 8)
    assert pace.best("form", 32) == 32


def test_where_memory_ran_out_no_larger_size_is_tried_again(pace: Pace) -> None:
    pace.most = 5
    assert pace.sizes == [1, 2, 4]
    assert pace.best("form", 40) == 4
    pace.most = 0
    assert pace.best("form", 40) == 1
