"""Share mode: a level-1 range gets what it misses by pointer, nothing is read or copied.

What cannot be shared (a block that has too many pointers already, pointers that cannot be read, no room) goes the way
of copy mode, which knows how to wait, to report, and to pass over. """

from __future__ import annotations

from cloner.copying import copy_level_one
from cloner.steps import Filling, Turn, Work
from wafl import BackingLost, CorruptVolume, NoSpace

RANGES_A_TURN = 16
"""Level-1 ranges between two turns: about a millisecond, mostly of looking at pointers."""


def share_level_one(work: Work, index: int) -> Filling:
    """What level-1 buffer `index` and some behind it miss becomes the LUN's; True if it missed anything."""
    yield Turn(0)
    work.check_wanted()
    lun, found = work.lun, False
    for at in range(index, min(index + RANGES_A_TURN, lun.level_one_count)):
        try:
            blocks = lun.adopt(at)
        except (NoSpace, CorruptVolume, BackingLost, OSError):
            break
        if blocks:
            found = True
            work.progress.shared_blocks += blocks
            work.progress.still_missing(lun.missing_blocks())
    rest = yield from copy_level_one(work, index)
    return found or rest
