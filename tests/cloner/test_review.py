"""Faults that a hostile reading of the clone jobs found: each test failed before its fix."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import pytest

from cloner import CloneManager, CloneOptions, JobState
from tests.cloner.test_manager import Daemon, daemon
from tests.support.clones import Family, drive, make_family, steps_of
from tests.support.volumes import MIB, Workshop, pattern
from wafl import BLOCK_BYTES, NoSpace


def paused(workshop: Workshop, story: Callable[[Daemon], Awaitable[None]]) -> None:
    """Run a story with a job that waits for room on a full volume."""

    async def main() -> None:
        family = make_family(workshop, size_bytes=8 * MIB, blocks=list(range(600)))
        fill(family)
        async with daemon(family) as d:
            d.manager.start(d.service, "clone", force=True)
            async with asyncio.timeout(20):
                while d.manager.status(d.service, "clone").state is not JobState.PAUSED:
                    await asyncio.sleep(0)
            await story(d)

    asyncio.run(main())


def fill(family: Family) -> None:
    filler = family.volume.create_lun("filler", 8 * MIB)
    with contextlib.suppress(NoSpace):
        for offset in range(0, 8 * MIB, MIB // 8):
            filler.write(offset, pattern(1, MIB // 8))


async def until(condition: Callable[[], bool]) -> None:
    """Blocks are read in a thread: turns of the loop say nothing about how long that takes."""
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0)


def test_a_destroyed_lun_ends_a_job_that_waits_for_room(workshop: Workshop) -> None:
    async def story(d: Daemon) -> None:
        d.family.volume.destroy_lun("clone")
        await until(lambda: not d.manager.show())
        assert d.kinds() == ["started", "paused", "stopped"]

    paused(workshop, story)


def test_a_failed_volume_fails_a_job_that_waits_for_room(workshop: Workshop) -> None:
    async def story(d: Daemon) -> None:
        d.family.volume.fail(OSError("injected"))
        await until(lambda: d.manager.status(d.service, "clone").state is JobState.FAILED)

    paused(workshop, story)


def test_a_clone_that_misses_nothing_needs_no_room(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wafl.scan.SCAN_STEP", 1)
    family = make_family(workshop, size_bytes=8 * MIB, blocks=list(range(600)))
    for block in range(600):
        family.write(block * BLOCK_BYTES, pattern(block + 7, BLOCK_BYTES))
    fill(family)
    steps, _ = steps_of(family.volume, family.clone)
    drive(family.volume, steps)  # raises where it would wait for room
    assert family.clone.backing is None


class HeldTime:
    """A sleep lasts until it is let go."""

    def __init__(self) -> None:
        self.asked: list[float] = []
        self.now = 0.0

    def clock(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.asked.append(seconds)
        if seconds > 1:
            await asyncio.Event().wait()
        self.now += seconds
        await asyncio.sleep(0)


def test_a_limit_that_is_lifted_is_felt_within_a_second(workshop: Workshop) -> None:
    async def main() -> None:
        time = HeldTime()
        family = make_family(workshop)
        async with daemon(family) as d:
            manager = CloneManager(lambda event: None, clock=time.clock, sleep=time.sleep)
            manager.start(d.service, "clone", CloneOptions(1))
            await until(lambda: len(time.asked) > 3)
            manager.set_options(d.service, "clone", CloneOptions())
            async with asyncio.timeout(20):
                status = await manager.wait(d.service, "clone")
            assert status.state is JobState.COMPLETED
            await manager.close()

    asyncio.run(main())
