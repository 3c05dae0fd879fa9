"""A job at full speed copies several level-1 ranges at once, each in a plan of its own."""

from __future__ import annotations

import asyncio

import pytest

from cloner import CloneOptions, JobState
from cloner.errors import BadSource
from cloner.job import FULL_SPEED_RANGES, FULL_SPEED_UNSYNCED_BYTES, RANGES
from cloner.steps import Read, Step
from tests.cloner.test_manager import daemon
from tests.cloner.test_policies import heal, own_blocks, spoil
from tests.cloner.test_steps import StopHere
from tests.support.clones import GOLDEN_BLOCKS, drive, make_family, steps_of
from tests.support.volumes import MIB, Workshop, checkpoint
from wafl import BLOCK_BYTES, POINTERS, BackingLost

THREE_RANGES = 3 * POINTERS


def test_ranges_that_miss_something_are_read_together(workshop: Workshop) -> None:
    family = make_family(workshop)
    together: list[list[int]] = []

    def before(number: int, step: Step) -> None:
        if isinstance(step, Read):
            together.append([plan.index for plan in step.plans])

    steps, progress = steps_of(family.volume, family.clone, THREE_RANGES)
    drive(family.volume, steps, before)
    assert together == [[0, 1, 2]]
    assert progress.copied_blocks == len(GOLDEN_BLOCKS)
    assert family.reads_right()


def test_a_bad_block_behind_the_first_range_is_reported_when_its_range_comes_first(workshop: Workshop) -> None:
    family = make_family(workshop)
    spoil(family, 260, 600)
    steps, progress = steps_of(family.volume, family.clone, THREE_RANGES)
    with pytest.raises(BadSource) as caught:
        drive(family.volume, steps)
    assert caught.value.data["offset"] == 260 * BLOCK_BYTES
    assert own_blocks(family) == {block for block in GOLDEN_BLOCKS if not 256 <= block < 768}
    assert progress.copied_blocks == len(own_blocks(family))
    heal(family, 260, 600)
    checkpoint(family.volume)
    again, _ = steps_of(family.volume, family.clone, THREE_RANGES)
    drive(family.volume, again)
    assert family.reads_right()
    workshop.abandon(family.volume)


def test_what_was_filled_beside_a_bad_block_counts_as_unsynced(workshop: Workshop) -> None:
    """The first range fails, those behind it are there: a consistency point has to cover them before any detach."""
    family = make_family(workshop)
    spoil(family, 3)
    steps, progress = steps_of(family.volume, family.clone, THREE_RANGES)
    with pytest.raises(BadSource):
        drive(family.volume, steps)
    assert progress.copied_blocks == len([block for block in GOLDEN_BLOCKS if block >= POINTERS])
    assert not family.clone.fills_durable
    workshop.abandon(family.volume)


def test_no_more_ranges_are_begun_than_there_is_room_for(workshop: Workshop) -> None:
    family = make_family(workshop, 24 * MIB, list(range(700)))
    hungry = family.volume.create_lun("hungry", 64 * MIB)
    steps, _ = steps_of(family.volume, family.clone, THREE_RANGES)
    together: list[int] = []

    def before(number: int, step: Step) -> None:
        if isinstance(step, Read):
            together.append(len(step.plans))
            raise StopHere
        # As long as one range has room and two have not.
        while family.volume.space().available >= family.volume.size_bytes // 64 + 2 * MIB:
            hungry.write(hungry.used_bytes, b"x" * BLOCK_BYTES)

    with pytest.raises(StopHere):
        drive(family.volume, steps, before)
    steps.close()
    assert together == [1]
    assert family.reads_right()


def test_a_job_that_gives_way_takes_one_range_and_one_at_full_speed_several(workshop: Workshop) -> None:
    async def main() -> None:
        commands = 0
        family = make_family(workshop)
        async with daemon(family, guest_commands=lambda: commands) as d:
            d.manager.start(d.service, "clone", CloneOptions(limit_bytes_s=BLOCK_BYTES))
            job = d.manager._active_job(d.service, "clone")
            for limit, blocks in ((None, FULL_SPEED_RANGES * POINTERS), (8 * MIB, POINTERS), (BLOCK_BYTES, 1)):
                d.manager.set_options(d.service, "clone", CloneOptions(limit_bytes_s=limit, full_speed=True))
                assert job._chunk_blocks() == blocks
            assert job._unsynced_limit() == FULL_SPEED_UNSYNCED_BYTES
            d.manager.set_options(d.service, "clone", CloneOptions())
            assert job._chunk_blocks() == RANGES * POINTERS
            commands, d.time.now = 10_000, d.time.now + 1
            assert job._chunk_blocks() == POINTERS
            assert (await d.manager.wait(d.service, "clone")).state is JobState.COMPLETED

    asyncio.run(main())


def test_a_backing_that_is_lost_further_on_holds_no_blocks_back(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plan that nobody releases would keep all that is freed from being used again."""
    family = make_family(workshop, blocks=[*range(3 * POINTERS)])

    def lost(index: int) -> list[tuple[int, int]]:
        raise BackingLost("the backing of the backing")

    monkeypatch.setattr(family.clone, "missing_extents", lost)
    steps, _ = steps_of(family.volume, family.clone, RANGES)
    drive(family.volume, steps)
    assert family.reads_right()
    assert not family.volume.core.allocator.readers._open
