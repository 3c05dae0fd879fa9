"""Blocks that lie all over the volume, read in few calls.

Where every second block of a LUN is its own and the others are its backing's, no two neighbours of the LUN are
neighbours on the volume; in the order of the volume both kinds are.  So stretches are taken in that order, those that
join, or nearly so, in one call with a buffer for each, and what lies between goes where nobody looks: reading a block
more costs less than another call.
"""

from __future__ import annotations

from wafl.device import IOV_MAX, Places
from wafl.format import BLOCK_BYTES, BLOCK_SHIFT, FIRST_DATA_VBN

Run = tuple[int, int, int]
"""(vbn or mark, number of blocks, position in blocks): a stretch that one preadv or one zero fill serves."""

GAP_BLOCKS = 1
"""Between two stretches that are read in one call."""
BUFFERS = IOV_MAX - 1
_NOWHERE = memoryview(bytearray(GAP_BLOCKS * BLOCK_BYTES))


def places_of(runs: list[Run], view: memoryview) -> Places:
    """What has to be read to fill `view`, in the order of the volume; marks are left out."""
    places: Places = []
    buffers: list[memoryview] = []
    end = -1
    for vbn, blocks, at in sorted(runs):
        if vbn < FIRST_DATA_VBN:
            continue
        piece = view[at << BLOCK_SHIFT : (at + blocks) << BLOCK_SHIFT]
        gap = vbn - end
        if 0 <= gap <= GAP_BLOCKS and len(buffers) < BUFFERS:
            if gap:
                buffers.append(_NOWHERE)
            buffers.append(piece)
        else:
            buffers = [piece]
            places.append((vbn << BLOCK_SHIFT, buffers))
        end = vbn + blocks
    return places


def stretches_of(runs: list[Run]) -> list[tuple[int, int]]:
    """(vbn, blocks) of what `places_of` reads of them, what lies between included, in the order of the volume."""
    found: list[tuple[int, int]] = []
    for vbn, blocks, _ in sorted(runs):
        if vbn < FIRST_DATA_VBN:
            continue
        if found and vbn - sum(found[-1]) <= GAP_BLOCKS:
            start, before = found[-1]
            found[-1] = start, max(before, vbn + blocks - start)
        else:
            found.append((vbn, blocks))
    return found
