"""Progress: never backwards, 100 percent only when the detach is durable."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cloner.progress import UNFINISHED_PERCENT, Progress

BLOCK = 4096


def begun(total: int) -> Progress:
    progress = Progress(BLOCK)
    progress.begin(total, total, 0.0)
    return progress


@given(st.integers(0, 1000), st.lists(st.integers(0, 1200)))
def test_percent_never_goes_back(total: int, counts: list[int]) -> None:
    progress = begun(total)
    last = progress.percent
    for blocks in counts:
        progress.still_missing(blocks)
        assert progress.percent >= last
        assert progress.completed_blocks <= total
        last = progress.percent


def test_everything_filled_is_not_yet_one_hundred_percent() -> None:
    progress = begun(10)
    progress.still_missing(0)
    assert progress.percent == UNFINISHED_PERCENT


def test_a_durable_detach_is_one_hundred_percent() -> None:
    progress = begun(10)
    progress.still_missing(6)
    progress.detached()
    assert (progress.percent, progress.completed_blocks) == (100.0, 10)


def test_the_rate_is_that_of_the_last_seconds() -> None:
    progress = begun(1_000_000)
    for second in range(1, 60):
        progress.copied(1 if second < 30 else 100, float(second))
    assert progress.rate_bytes_s(59.0) == 100 * BLOCK


def test_time_left_is_what_is_missing_over_the_rate() -> None:
    progress = begun(110)
    progress.still_missing(100)
    progress.copied(10, 1.0)
    assert progress.remaining_s(1.0) == 10.0


def test_time_left_is_unknown_without_a_rate() -> None:
    assert begun(10).remaining_s(1.0) is None
