"""Copy mode, the specification's own: the blocks that a level-1 range misses are read and written again.

A source block that cannot be read ends the job, or is passed over (`Work.ignore_bad`): the chunk is then cut just
before it, so that every good block is copied.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from cloner.errors import BadSource, FillStuck
from cloner.room import ROOM_BYTES, guest_reserve_bytes, has_room
from cloner.steps import OFFSETS_KEPT, Filling, Read, Step, Turn, WaitForRoom, Work, commit, sync_now_and_then
from wafl import BLOCK_BYTES, LEVEL_ONE_BYTES, POINTERS, CorruptVolume, FillPlan, NoSpace, available_bytes

FRUITLESS_LIMIT = 64
"""Fills in a row, at one place, that changed nothing: guests may win some times, not for ever."""
AHEAD = 4
"""Level-1 ranges, of 1 MiB each: how far ahead the disk reads while one is installed."""
AHEAD_FROM_BLOCKS = POINTERS // 2
"""Only for those in a hurry."""


class Bad(Exception):
    """Block `position` of a plan cannot be read."""

    def __init__(self, position: int) -> None:
        self.position = position


def copy_level_one(work: Work, index: int) -> Filling:
    """Fill what level-1 buffer `index` misses; True if it missed anything."""
    found = False
    filled_bytes = fruitless = first = 0
    most = POINTERS
    while True:
        yield Turn(filled_bytes)
        work.check_wanted()
        filled_bytes = 0
        plan = _plan(work, index, first, min(most, work.chunk_blocks()))
        if plan is None:  # looked at first: a clone that misses nothing needs no room, and its end may make some
            return found
        found = True
        if not has_room(work.volume, work.lun):
            plan.release()
            yield from _leave_guests_their_room(work)
            continue
        try:
            filled = yield from _fill(work, plan)
            most = POINTERS
        except Bad as bad:
            if bad.position:
                most = bad.position
            else:
                _pass_over(work, plan.offset(0), 1)
                first, most = plan.slot(0) + 1, POINTERS
            continue
        fruitless = fruitless + 1 if filled == 0 else 0
        if fruitless > FRUITLESS_LIMIT:
            raise FillStuck(work.lun.name, index)
        filled_bytes = (filled or 0) * BLOCK_BYTES
        work.unsynced.filled_bytes += filled_bytes
        yield from sync_now_and_then(work)


def _plan(work: Work, index: int, first: int, most: int) -> FillPlan | None:
    """What to copy next, or None: nothing, or nothing that can be told."""
    try:
        plan = work.lun.plan_fill(index, first, most)
        if plan is not None and plan.blocks > AHEAD_FROM_BLOCKS:
            plan.ahead = work.lun.missing_extents(index + AHEAD)
        return plan
    except (CorruptVolume, OSError) as error:
        # A pointer block: of the backing, or of the LUN itself.
        offset = index * LEVEL_ONE_BYTES
        if not work.ignore_bad:
            raise BadSource(work.lun.name, offset, work.source, error) from error
        _pass_over(work, offset, POINTERS)
        return None


def _pass_over(work: Work, offset: int, blocks: int) -> None:
    work.progress.bad_blocks += blocks
    if len(work.bad_offsets) < OFFSETS_KEPT:
        work.bad_offsets.append(offset)


def _fill(work: Work, plan: FillPlan) -> Generator[Step, Any, int | None]:
    """Carry out one plan: blocks really filled, or None if there was no space and now may be.
    Raises Bad, BadSource."""
    filled: int | None = None
    try:
        try:
            data = yield Read(plan)
        except (CorruptVolume, OSError) as error:
            if plan.unreadable is None:
                raise
            if work.ignore_bad:
                raise Bad(plan.unreadable) from error
            raise BadSource(work.lun.name, plan.offset(plan.unreadable), work.source, error) from error
        work.check_wanted()
        filled = work.lun.install_fill(plan, data)
    except NoSpace:
        pass
    finally:
        plan.release()
    if filled is None:
        yield from make_room(work)
        return None
    work.progress.still_missing(work.lun.missing_blocks())
    work.progress.copied(filled, work.now())
    return filled


def make_room(work: Work) -> Generator[Step, Any, None]:
    """A consistency point gives back what was freed since the last one; if that is nothing, wait for more."""
    before = available_bytes(work.volume)
    yield from commit(work)
    if available_bytes(work.volume) <= before:
        yield WaitForRoom(before + ROOM_BYTES)
    work.check_wanted()


def _leave_guests_their_room(work: Work) -> Generator[Step, Any, None]:
    yield from commit(work)
    if not has_room(work.volume, work.lun):
        # A little more than the line, so that a job does not pause and resume for every block.
        yield WaitForRoom(guest_reserve_bytes(work.volume) + 2 * ROOM_BYTES)
    work.check_wanted()
