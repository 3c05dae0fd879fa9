"""Share mode: a level-1 range gets what it misses by pointer, nothing is read or copied.

What cannot be shared (a block that has too many pointers already, pointers that cannot be read) goes the way of copy
mode, which knows how to report it, and to pass over it.  So does what a reserved LUN has no room to share: a copy comes
out of its reserve.  Others wait for room, and share then.
"""

from __future__ import annotations

from contextlib import suppress

from cloner.copying import copy_level_one, make_room
from cloner.steps import Filling, Turn, Work, sync_now_and_then
from wafl import BLOCK_BYTES, LEVEL_ONE_BYTES, POINTERS, BackingLost, CorruptVolume, NoSpace

RANGES_A_TURN = 16
"""Level-1 ranges between two turns: one or two milliseconds, mostly of looking at pointers."""
RANGES_BESIDE_GUESTS = 4
RANGE_COST_BYTES = LEVEL_ONE_BYTES // 8
"""What a range counts for whose turn it is: sharing takes about an eighth of the time of copying."""


def share_level_one(work: Work, index: int) -> Filling:
    """What level-1 buffer `index` and some behind it miss becomes the LUN's; True if it missed anything."""
    work.progress.shares = True
    found = False
    while True:
        ranges = RANGES_A_TURN if work.chunk_blocks() > POINTERS else RANGES_BESIDE_GUESTS
        yield Turn(0, ranges * RANGE_COST_BYTES)
        work.check_wanted()
        try:
            found |= _share(work, index, ranges)
            break
        except NoSpace:
            if work.lun.reserved:
                break
        yield from make_room(work)
    yield from sync_now_and_then(work)
    rest = yield from copy_level_one(work, index, alone=True)  # what is behind it can perhaps be shared
    return found or rest


def _share(work: Work, index: int, ranges: int) -> bool:
    """Whether anything was missing and is there now.  Raises NoSpace."""
    lun, found = work.lun, False
    at: int | None = index
    with suppress(CorruptVolume, BackingLost, OSError):
        for _ in range(ranges):
            if at is None:
                break
            if lun.adopt(at):
                found = True
                work.unsynced.filled_bytes += BLOCK_BYTES  # the pointers to what is shared
            at = lun.next_missing(at + 1)
    work.progress.still_missing(lun.missing_blocks())
    return found
