"""Log lines that a peer can cause, limited: the first few of an interval in full, the others as a number."""

from __future__ import annotations

import logging
from collections.abc import Callable

LINES = 10
"""Lines of one source in one interval."""
INTERVAL_S = 60.0
SOURCES = 1000
"""Sources remembered; beyond that they share one allowance."""


class RateLimited:
    """Warnings about peers, keyed by where they come from."""

    def __init__(self, log: logging.Logger, clock: Callable[[], float]) -> None:
        self._log = log
        self._clock = clock
        self._began = clock()
        self._counts: dict[str, int] = {}

    def warning(self, source: str, message: str, *arguments: object) -> None:
        if self._allowed(source):
            self._log.warning(message, *arguments)

    def exception(self, source: str, error: BaseException, message: str, *arguments: object) -> None:
        if self._allowed(source):
            self._log.error(message, *arguments, exc_info=error)

    def _allowed(self, source: str) -> bool:
        now = self._clock()
        if now - self._began >= INTERVAL_S:
            self._report()
            self._began = now
        key = source if source in self._counts or len(self._counts) < SOURCES else "others"
        count = self._counts[key] = self._counts.get(key, 0) + 1
        return count <= LINES

    def _report(self) -> None:
        for source, count in self._counts.items():
            if count > LINES:
                self._log.warning("%s: %d more messages like these were not logged", source, count - LINES)
        self._counts.clear()
