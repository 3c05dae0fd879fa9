"""Bandwidth limits: a token bucket that may go into debt.  The time is passed in."""

from __future__ import annotations

BURST_S = 0.25
"""Of the rate: how much an idle bucket saves up.  Short, so that a limit is felt at once."""


class TokenBucket:
    """`take` never refuses: it says how long to wait afterwards, so that one fill may exceed the burst."""

    def __init__(self, rate_bytes_s: int | None, now: float) -> None:
        self._rate = rate_bytes_s
        self._tokens = 0.0
        self._at = now

    @property
    def rate_bytes_s(self) -> int | None:
        return self._rate

    def set_rate(self, rate_bytes_s: int | None, now: float) -> None:
        """None: no limit.  A debt from before is kept in seconds, not in bytes, only as far as the new rate asks."""
        self._rate = rate_bytes_s
        self._tokens = min(self._tokens, 0.0) if rate_bytes_s else 0.0
        self._at = now

    def take(self, cost_bytes: int, now: float) -> float:
        """Account for `cost_bytes`; seconds to wait before the next ones."""
        if self._rate is None:
            return 0.0
        self._tokens = min(self._tokens + (now - self._at) * self._rate, self._rate * BURST_S)
        self._at = now
        self._tokens -= cost_bytes
        return max(0.0, -self._tokens / self._rate)
