"""Copy mode, the specification's own: the blocks that a level-1 range misses are read and written again.

A job in a hurry copies several ranges at once (`Work.chunk_blocks`), in as many plans, so that the disk and both
processors are at work all the time.  What goes wrong with any but the first is met again when that one comes first.

A source block that cannot be read ends the job, or is passed over (`Work.ignore_bad`): the chunk is then cut just
before it, so that every good block is copied.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import suppress
from typing import Any

from cloner.errors import BadSource, FillStuck
from cloner.room import ROOM_BYTES, guest_reserve_bytes, has_room
from cloner.steps import (
    OFFSETS_KEPT,
    Filling,
    Outcome,
    Read,
    Step,
    Turn,
    WaitForRoom,
    Work,
    commit,
    sync_now_and_then,
)
from wafl import (
    BLOCK_BYTES,
    LEVEL_ONE_BYTES,
    POINTERS,
    BackingLost,
    CorruptVolume,
    FillPlan,
    NoSpace,
    available_bytes,
)

FRUITLESS_LIMIT = 64
"""Fills in a row, at one place, that changed nothing: guests may win some times, not for ever."""
AHEAD = 4
"""Level-1 ranges, of 1 MiB each: how far ahead the disk reads while some are copied, beside as many as these."""
AHEAD_FROM_BLOCKS = POINTERS // 2
"""Only for those in a hurry."""


class Bad(Exception):
    """Block `position` of a plan cannot be read."""

    def __init__(self, position: int) -> None:
        self.position = position


def copy_level_one(work: Work, index: int, *, alone: bool = False) -> Filling:
    """Fill what level-1 buffer `index` misses, and unless it is `alone` as many behind it as a chunk has; True if it
    missed anything."""
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
            filled = yield from _fill(work, [plan, *([] if alone or first else _plans_behind(work, index))])
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
        yield from sync_now_and_then(work)


def _plan(work: Work, index: int, first: int, most: int) -> FillPlan | None:
    """What to copy next, or None: nothing, or nothing that can be told."""
    try:
        return _look_ahead(work, work.lun.plan_fill(index, first, most))
    except (CorruptVolume, OSError) as error:
        # A pointer block: of the backing, or of the LUN itself.
        offset = index * LEVEL_ONE_BYTES
        if not work.ignore_bad:
            raise BadSource(work.lun.name, offset, work.source, error) from error
        _pass_over(work, offset, POINTERS)
        return None


def _look_ahead(work: Work, plan: FillPlan | None) -> FillPlan | None:
    if plan is not None and plan.blocks > AHEAD_FROM_BLOCKS:
        ranges = work.chunk_blocks() // POINTERS
        with suppress(BackingLost):  # who comes there will be told
            plan.ahead = work.lun.missing_extents(plan.index + ranges + AHEAD - 1)
    return plan


def _plans_behind(work: Work, index: int) -> list[FillPlan]:
    """For whole level-1 ranges behind `index`, as far as a chunk goes and all is well."""
    plans: list[FillPlan] = []
    with suppress(CorruptVolume, BackingLost, OSError):
        for number in range(2, work.chunk_blocks() // POINTERS + 1):
            at = work.lun.next_missing(index + 1)
            if at is None or not has_room(work.volume, work.lun, number):
                break
            plan, index = _look_ahead(work, work.lun.plan_fill(at)), at
            if plan is not None:
                plans.append(plan)
    return plans


def _pass_over(work: Work, offset: int, blocks: int) -> None:
    work.progress.bad_blocks += blocks
    if len(work.bad_offsets) < OFFSETS_KEPT:
        work.bad_offsets.append(offset)


def _fill(work: Work, plans: Sequence[FillPlan]) -> Generator[Step, Any, int | None]:
    """Carry out plans: blocks really filled, or None if there was no space and now may be.
    Raises Bad, BadSource, of the first one."""
    try:
        for plan in plans:
            plan.place()
        outcomes = yield Read(plans)
        work.check_wanted()
        filled = _install(work, plans, outcomes)
        if isinstance(outcomes[0], Exception):
            _judge(work, plans[0], outcomes[0])
    finally:
        for plan in plans:
            plan.release()
    if filled is None:
        yield from make_room(work)
    return filled


def _install(work: Work, plans: Sequence[FillPlan], outcomes: Sequence[Outcome]) -> int | None:
    """Blocks filled; None if there was no room for one plan."""
    filled: int | None = None
    with suppress(NoSpace):
        for plan, outcome in zip(plans, outcomes, strict=True):
            if not isinstance(outcome, Exception):
                filled = (filled or 0) + work.lun.install_fill(plan, outcome)
    if filled is not None:
        work.unsynced.filled_bytes += filled * BLOCK_BYTES
        work.progress.still_missing(work.lun.missing_blocks())
        work.progress.copied(filled, work.now())
    return filled


def _judge(work: Work, plan: FillPlan, error: Exception) -> None:
    """What to do about a plan that could not be read, or its blocks not be written."""
    if plan.unreadable is None or not isinstance(error, CorruptVolume | OSError):
        raise error
    if work.ignore_bad:
        raise Bad(plan.unreadable) from error
    raise BadSource(work.lun.name, plan.offset(plan.unreadable), work.source, error) from error


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
