"""Log lines and events that a peer can cause, limited: the first few of an interval in full, the others as a number.

A host that logs in and out, or somebody who asks for discovery, a thousand times a second must not fill the log either:
what is no warning has an allowance of its own, so that it never crowds one out.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

WARNINGS, INFOS = 10, 60
"""Of one source in one interval; a host comes back to a few dozen targets at once."""
INTERVAL_S = 60.0
SOURCES = 1000
"""Sources remembered; beyond that they share one allowance."""


class Allowance:
    """So many an interval, for each source.  `report` is told, after the interval, how many there were beyond it."""

    def __init__(self, limit: int, clock: Callable[[], float], report: Callable[[str, int], None]) -> None:
        self._limit = limit
        self._clock = clock
        self._report = report
        self._began = clock()
        self._counts: dict[str, int] = {}

    def take(self, source: str) -> bool:
        now = self._clock()
        if now - self._began >= INTERVAL_S:
            self._began = now
            counts, self._counts = self._counts, {}
            for each, count in counts.items():
                if count > self._limit:
                    self._report(each, count - self._limit)
        key = source if source in self._counts or len(self._counts) < SOURCES else "others"
        count = self._counts[key] = self._counts.get(key, 0) + 1
        return count <= self._limit


class RateLimited:
    """Notices about peers, keyed by where they come from."""

    def __init__(self, log: logging.Logger, clock: Callable[[], float]) -> None:
        self._log = log
        more = "%s: %d more messages like these were not logged"
        self._infos = Allowance(INFOS, clock, lambda source, count: log.info(more, source, count))
        self._warnings = Allowance(WARNINGS, clock, lambda source, count: log.warning(more, source, count))

    def info(self, source: str, message: str, *arguments: object) -> None:
        if self._infos.take(source):
            self._log.info(message, *arguments)

    def warning(self, source: str, message: str, *arguments: object) -> None:
        if self._warnings.take(source):
            self._log.warning(message, *arguments)

    def exception(self, source: str, error: BaseException, message: str, *arguments: object) -> None:
        if self._warnings.take(source):
            self._log.error(message, *arguments, exc_info=error)
