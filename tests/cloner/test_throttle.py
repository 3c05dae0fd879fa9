"""The token bucket, with the time passed in."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cloner.throttle import BURST_S, TokenBucket


def test_without_a_limit_nothing_waits() -> None:
    assert TokenBucket(None, 0.0).take(1 << 40, 0.0) == 0.0


def test_a_cost_is_waited_for_at_the_limit() -> None:
    assert TokenBucket(1000, 0.0).take(500, 0.0) == 0.5


def test_an_idle_bucket_saves_up_a_short_burst_only() -> None:
    assert TokenBucket(1000, 0.0).take(1000, 100.0) == 1.0 - BURST_S


def test_a_limit_that_is_taken_away_forgets_the_debt() -> None:
    bucket = TokenBucket(10, 0.0)
    bucket.take(1_000_000, 0.0)
    bucket.set_rate(None, 1.0)
    assert bucket.take(1, 1.0) == 0.0


@given(st.lists(st.integers(0, 1 << 20), min_size=1), st.integers(1, 1 << 22))
def test_obeying_the_waits_keeps_the_limit(costs: list[int], rate: int) -> None:
    bucket = TokenBucket(rate, 0.0)
    now = 0.0
    for cost in costs:
        now += bucket.take(cost, now)
    assert sum(costs) <= rate * (now + BURST_S) * 1.000001 + 1
