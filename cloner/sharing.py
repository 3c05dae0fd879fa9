"""Share mode: a level-1 range gets what it misses by pointer, nothing is read or copied.

What cannot be shared (a block that has too many pointers already, pointers that cannot be read) goes the way of copy
mode, which knows how to report it, and to pass over it.  So does what a reserved LUN has no room to share: a copy comes
out of its reserve.  Others wait for room, and share then.
"""

from __future__ import annotations

from contextlib import suppress

from cloner.copying import copy_level_one, make_room
from cloner.steps import Filling, Turn, Work, sync_now_and_then
from wafl import BLOCK_BYTES, LEVEL_ONE_BYTES, PIECEMEAL, POINTERS, BackingLost, CorruptVolume, NoSpace

UPTAKE_A_TURN = 64
"""Pointer blocks taken up between two turns, or a quarter as many level-1 ranges adopted block by block: one or two
milliseconds, mostly of looking at pointers."""
UPTAKE_BESIDE_GUESTS = 16
COST_BYTES = LEVEL_ONE_BYTES // 32
"""What each counts for whose turn it is: sharing a range block by block takes about an eighth of the time of copying
it."""


def share_level_one(work: Work, index: int) -> Filling:
    """What level-1 buffer `index` and some behind it miss becomes the LUN's; True if it missed anything."""
    work.progress.shares = True
    found = False
    while True:
        most = UPTAKE_A_TURN if work.chunk_blocks() > POINTERS else UPTAKE_BESIDE_GUESTS
        yield Turn(0, most * COST_BYTES)
        work.check_wanted()
        try:
            found |= _share(work, index, most)
            break
        except NoSpace:
            if work.lun.reserved:
                break
        yield from make_room(work)
    yield from sync_now_and_then(work)
    rest = yield from copy_level_one(work, index, alone=True)  # what is behind it can perhaps be shared
    return found or rest


def _share(work: Work, index: int, most: int) -> bool:
    """Whether anything was missing and is there now.  Raises NoSpace."""
    lun, found = work.lun, False
    at: int | None = index
    with suppress(CorruptVolume, BackingLost, OSError):
        while at is not None and most > 0:
            cost = lun.adopt(at, most)
            if cost:
                found = True
                work.unsynced.filled_bytes += BLOCK_BYTES  # the pointers to what is shared
            most -= cost or PIECEMEAL
            at = lun.next_missing(at + 1)
    work.progress.still_missing(lun.missing_blocks())
    return found
