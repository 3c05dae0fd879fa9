"""One clone job as a generator of steps: every decision about what to fill, when to sync and when to detach.

It knows the volume and the LUN.  It knows no asyncio, no thread and no clock: it yields a Step, and whoever
drives it carries the step out and sends the outcome, or throws the error, back in.  So a test can put any
guest operation, stop or error between any two steps.

Rules.
- Between the answer to a Read and the install nothing is yielded: `install_fill` looks again at every pointer,
  so what a guest wrote meanwhile stays (spec: the active file system's own blocks win).
- No plan stays open over a yield other than its own Read; a plan keeps freed blocks from being used again.
- The detach follows a pass over the whole LUN that found nothing, and only when a durable consistency point
  covers every fill, whichever run made it (C2).  The specification's shortcut "nothing was dirtied in this
  pass, so no sync" is unsafe when an earlier, stopped run left fills that are not durable.
- An error ends the job.  Nothing is ever passed over, so C4 holds by construction.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

from cloner.errors import FillStuck
from cloner.progress import Progress
from cloner.room import ROOM_BYTES, guest_reserve_bytes, has_room
from wafl import BLOCK_BYTES, FillPlan, Lun, NoSpace, NoSuchLun, Volume

UNSYNCED_FILL_BYTES = 64 << 20
"""A consistency point is asked for after this much, so that a guest's flush never pays for more."""
FRUITLESS_LIMIT = 64
"""Fills in a row, at one place, that changed nothing: guests may win some times, not for ever."""


@dataclass(frozen=True, slots=True)
class Turn:
    """Let guests and other jobs go first, and obey the limits, for `cost_bytes` filled since the last turn."""

    cost_bytes: int


@dataclass(frozen=True, slots=True)
class Read:
    """Run `plan.read()` in a thread and send the data back."""

    plan: FillPlan


@dataclass(frozen=True, slots=True)
class Commit:
    """Wait for a consistency point that covers everything done so far."""


@dataclass(frozen=True, slots=True)
class WaitForRoom:
    """Pause until the volume has this many bytes free."""

    available_bytes: int


Step = Turn | Read | Commit | WaitForRoom
Steps = Generator[Step, Any, None]


@dataclass(slots=True)
class Work:
    """What the steps of one job share."""

    volume: Volume
    lun: Lun
    progress: Progress
    now: Callable[[], float]
    chunk_blocks: Callable[[], int]
    """Blocks to fill at once: small when the job has a low limit."""
    unsynced_bytes: int = 0


def clone_steps(work: Work) -> Steps:
    """The whole job.  Returns when the detach is durable; raises what stopped it."""
    yield Commit()  # the request is durable: a crash from here on restarts the job
    yield Turn(0)
    _check_wanted(work)
    work.progress.begin(work.lun.missing_blocks(), work.now())
    while (yield from _pass(work)):
        pass
    # Another pass may be needed only if someone lowered durability meanwhile; a commit covers all fills so far.
    while not work.lun.fills_durable:
        yield Commit()
        _check_wanted(work)
    work.lun.detach()
    work.lun.set_clone_requested(False)
    yield Commit()  # C1: only this makes the detach true, and the snapshot deletable
    work.progress.detached()


def _check_wanted(work: Work) -> None:
    """The LUN may have been destroyed, or its backing dropped, while a step was carried out."""
    if work.volume.lun(work.lun.name) is not work.lun or work.lun.backing is None:
        raise NoSuchLun(work.lun.name)


def _pass(work: Work) -> Generator[Step, Any, bool]:
    """Scan the whole LUN once; True if anything was found missing."""
    found = False
    index = work.lun.next_missing(0)
    while index is not None:
        found |= yield from _fill_level_one(work, index)
        index = work.lun.next_missing(index + 1)
    return found


def _fill_level_one(work: Work, index: int) -> Generator[Step, Any, bool]:
    """Fill what level-1 buffer `index` misses; True if it missed anything."""
    found = False
    filled_bytes = fruitless = 0
    while True:
        yield Turn(filled_bytes)
        _check_wanted(work)
        plan = work.lun.plan_fill(index, 0, work.chunk_blocks())
        if plan is None:  # looked at first: a clone that misses nothing needs no room, and its end may make some
            return found
        found = True
        if not has_room(work.volume, work.lun):
            plan.release()
            yield from _leave_guests_their_room(work)
            filled_bytes = 0
            continue
        filled = yield from _fill(work, plan)
        fruitless = fruitless + 1 if filled == 0 else 0
        if fruitless > FRUITLESS_LIMIT:
            raise FillStuck(work.lun.name, index)
        filled_bytes = (filled or 0) * BLOCK_BYTES
        yield from _sync_now_and_then(work, filled_bytes)


def _fill(work: Work, plan: FillPlan) -> Generator[Step, Any, int | None]:
    """Carry out one plan: blocks really filled, or None if there was no space and now may be."""
    filled: int | None = None
    try:
        data = yield Read(plan)
        _check_wanted(work)
        filled = work.lun.install_fill(plan, data)
    except NoSpace:
        pass
    finally:
        plan.release()
    if filled is None:
        yield from _make_room(work)
        return None
    work.progress.still_missing(work.lun.missing_blocks())
    work.progress.copied(filled, work.now())
    return filled


def _sync_now_and_then(work: Work, filled_bytes: int) -> Generator[Step, Any, None]:
    work.unsynced_bytes += filled_bytes
    if work.unsynced_bytes >= UNSYNCED_FILL_BYTES:
        yield Commit()
        work.unsynced_bytes = 0
        _check_wanted(work)


def _make_room(work: Work) -> Generator[Step, Any, None]:
    """A consistency point gives back what was freed since the last one; if that is nothing, wait for more."""
    before = work.volume.space().available
    yield Commit()
    work.unsynced_bytes = 0
    if work.volume.space().available <= before:
        yield WaitForRoom(before + ROOM_BYTES)
    _check_wanted(work)


def _leave_guests_their_room(work: Work) -> Generator[Step, Any, None]:
    yield Commit()
    work.unsynced_bytes = 0
    if not has_room(work.volume, work.lun):
        # A little more than the line, so that a job does not pause and resume for every block.
        yield WaitForRoom(guest_reserve_bytes(work.volume) + 2 * ROOM_BYTES)
    _check_wanted(work)
