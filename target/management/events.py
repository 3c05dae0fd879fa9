"""What happened, numbered: a bounded ring that clients can follow, and syslog for what matters.

Sequence numbers only grow, over restarts too: the store hands out blocks of them, so a restart leaves a gap
but never repeats a number.  NOTICE (completions), WARNING and ERROR also go to the log, and from there to
syslog and stderr.  Emit on the loop's thread only.  No event carries a secret.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

log = logging.getLogger("lund.event")

RING_EVENTS = 4096
"""What a follower that comes late can still read; older events are gone from memory (syslog keeps its own)."""


class Severity(IntEnum):
    """The numbers are those of `logging`."""

    INFO = logging.INFO
    NOTICE = logging.INFO + 5
    WARNING = logging.WARNING
    ERROR = logging.ERROR


logging.addLevelName(Severity.NOTICE, "NOTICE")


@dataclass(frozen=True, slots=True)
class Event:
    seq: int
    time: float
    """Seconds since 1970, UTC."""
    kind: str
    """`lun.clone.completed`: subject class first, as ONTAP's EMS names are."""
    severity: Severity
    subject: str
    message: str
    data: dict[str, Any] = field(default_factory=dict)


def put_in_log(kind: str, message: str, severity: Severity) -> None:
    """If it matters enough."""
    if severity >= Severity.NOTICE:
        log.log(severity, "%s: %s", kind, message)


class EventLog:
    """The ring.  `numbers` yields the sequence numbers, `clock` the time of day."""

    def __init__(self, numbers: Iterator[int] | None = None, clock: Callable[[], float] = time.time) -> None:
        self._numbers = numbers if numbers is not None else itertools.count(1)
        self._clock = clock
        self._ring: deque[Event] = deque(maxlen=RING_EVENTS)
        self._changed = asyncio.Event()
        self.counts: dict[tuple[str, str], int] = {}
        """(kind, severity) -> how many since the start, for the metrics."""
        self._closed = False

    def emit(
        self,
        kind: str,
        message: str,
        *,
        subject: str = "",
        severity: Severity = Severity.INFO,
        logged: bool = False,
        data: Mapping[str, Any] | None = None,
    ) -> Event:
        """`logged`: the log has it already."""
        event = Event(next(self._numbers), self._clock(), kind, severity, subject, message, dict(data or {}))
        self._ring.append(event)
        key = kind, severity.name.lower()
        self.counts[key] = self.counts.get(key, 0) + 1
        if not logged:
            put_in_log(kind, message, severity)
        # Followers wait on the old Event; setting it wakes all of them once, and the next wait is on a new one.
        self._changed.set()
        self._changed = asyncio.Event()
        return event

    @property
    def last_seq(self) -> int:
        return self._ring[-1].seq if self._ring else 0

    def since(self, seq: int) -> list[Event]:
        """Events with a number above `seq` that are still in the ring."""
        newest_first = itertools.takewhile(lambda event: event.seq > seq, reversed(self._ring))
        return list(newest_first)[::-1]

    async def follow(self, seq: int) -> AsyncIterator[Event]:
        """Events above `seq`, those to come included, until `close`.  A follower that is slower than the ring
        loses the oldest ones and can tell from the numbers; it costs no memory."""
        while True:
            changed = self._changed
            for event in self.since(seq):
                seq = event.seq
                yield event
            if self._closed:
                return
            await changed.wait()

    def close(self) -> None:
        """End all followers: the daemon is stopping."""
        self._closed = True
        self._changed.set()


class EventHandler(logging.Handler):
    """Makes events of the warnings that another part of the daemon logs (refused logins, for one)."""

    def __init__(self, events: EventLog, kind: str) -> None:
        super().__init__(logging.WARNING)
        self._events = events
        self._kind = kind

    def emit(self, record: logging.LogRecord) -> None:
        severity = Severity.ERROR if record.levelno >= logging.ERROR else Severity.WARNING
        self._events.emit(self._kind, record.getMessage(), severity=severity, logged=True)
