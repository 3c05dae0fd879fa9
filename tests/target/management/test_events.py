"""Events: numbered, bounded, followed."""

from __future__ import annotations

import asyncio
import itertools
import logging

import pytest

from target.management import events
from target.management.events import EventLog, Severity


def test_numbers_grow_and_since_leaves_out_what_was_seen() -> None:
    log = EventLog(itertools.count(7))
    for word in ("a", "b", "c"):
        log.emit("x.y", word)
    assert [(e.seq, e.message) for e in log.since(7)] == [(8, "b"), (9, "c")]
    assert log.last_seq == 9


def test_the_ring_forgets_the_oldest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "RING_EVENTS", 3)
    log = EventLog()
    for _ in range(5):
        log.emit("x.y", "z")
    assert [e.seq for e in log.since(0)] == [3, 4, 5]


def test_completions_and_warnings_go_to_the_log_and_information_does_not(caplog: pytest.LogCaptureFixture) -> None:
    log = EventLog()
    with caplog.at_level(logging.DEBUG):
        log.emit("a.info", "i")
        log.emit("a.done", "d", severity=Severity.NOTICE)
        log.emit("a.warning", "w", severity=Severity.WARNING)
    assert [(r.levelname, r.getMessage()) for r in caplog.records] == [
        ("NOTICE", "a.done: d"),
        ("WARNING", "a.warning: w"),
    ]


def test_a_follower_sees_old_and_new_events_once_each_until_the_log_closes() -> None:
    async def run() -> list[int]:
        log = EventLog()
        log.emit("x.y", "before")
        seen = []

        async def follow() -> None:
            async for event in log.follow(0):
                seen.append(event.seq)

        task = asyncio.create_task(follow())
        await asyncio.sleep(0)
        log.emit("x.y", "one")
        log.emit("x.y", "two")
        await asyncio.sleep(0)
        log.emit("x.y", "three")
        log.close()
        await task
        return seen

    assert asyncio.run(run()) == [1, 2, 3, 4]
