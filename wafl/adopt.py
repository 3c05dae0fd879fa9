"""Adopting: what a LUN misses of its backing becomes its own by pointer (spec: instead of copying it).

The other way to fill (wafl.fill): no block is read or written but pointers and counts (wafl.references). The same
rules hold: a guest's block and a ZERO stay, nothing is logged, and a detach waits for the consistency point that
covers it. What cannot be adopted, because it has too many pointers already or there is no room for the first counts of
the volume, stays missing: the caller copies it.

Where the LUN has nothing yet, a pointer block of the backing is adopted with all that is below it:

- If the active file system still names it, by one count for up to terabytes. The counts below stay as they are, for
  they count pointers, and there is none more (wafl.references).
- If only the snapshot names it, it becomes the active file system's (wafl.uptake): its bit and those of all that only
  the snapshot names below it are set, and what the active file system names too has one pointer more. So all of
  these have to be read, and a call takes no more than a few.

What is left goes block by block, with pointer blocks of the LUN's own: where guests have written. An adopted subtree is
under a pointer with birth 0, and its blocks are not in the inode's `blocks` until the LUN has a pointer block of its
own over them.

The backing's pointer keeps its birth, for a snapshot does not change; the counts' `since` says that what was born up to
that snapshot may be shared.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from wafl.bits import are_set
from wafl.buffers import Buffer
from wafl.errors import CorruptVolume, NoSpace
from wafl.format import FIRST_DATA_VBN, HOLE, POINTERS
from wafl.inode import Inode, node_for_writing
from wafl.scan import Slots, missing_slots
from wafl.tree import span_state
from wafl.uptake import NOTHING, Pointers, Uptake, pointers_at, take_up

if TYPE_CHECKING:
    from wafl.lun import Lun

UPTAKE_BLOCKS = 64
"""Pointer blocks that a call takes up at most: about a millisecond."""
PIECEMEAL = 4
"""What is adopted block by block counts as so many."""
ROWS = 16
"""So many rows of counts cost more than a pointer block: random writes put each block of a LUN into another row."""


@dataclass(frozen=True, slots=True)
class _Subtree:
    """Of the backing, with a HOLE in its place in the LUN."""

    parent: Buffer | Inode
    slot: int
    level: int
    """Of the block that is named there."""
    named: bool
    """By the active file system."""


def adopt(lun: Lun, index: int, most: int) -> int:
    """Called by `Lun.adopt`."""
    if lun.backing is None or not len(slots := missing_slots(lun, index)):
        return 0
    files, core = lun.files, lun.core
    blocks = 2 * lun.inode.height + 2
    if more := files.references.blocks_to_make():
        try:
            core.ensure(blocks + more, core.allocator.floor_guest, wait=False)
        except NoSpace:
            return 0
    core.ensure_for(blocks, reserved=lun.reserved, wait=False)
    files.references.make()
    generation = files.snapshot_generation(lun.backing.snapshot_id)
    found = _subtree(lun, index, most)
    done = _adopt_subtrees(lun, index, found, most) if found is not None else 0
    done = done or PIECEMEAL * _adopt_blocks(lun, index, slots)
    files.references.shared_through(generation)
    return done


def _adopt_blocks(lun: Lun, index: int, slots: Slots) -> bool:
    """The missing blocks of one level-1 range."""
    vbns, crcs = lun.compute_level_one_buf(index)
    vbns, crcs = vbns[slots], crcs[slots]
    leaf = lun.leaf(index)
    grant = lun.files.references.grant(vbns)
    here = slots[: grant.most]
    grant.use()
    leaf.vector()[here] = vbns[: grant.most]
    leaf.crc_vector()[here] = crcs[: grant.most]
    np.asarray(leaf.births)[here] = 0
    lun.inode.blocks += len(here)
    lun.forget(lun.maps, index << 8, (index + 1) << 8)
    lun.filled(len(here))
    return len(here) > 0


def _subtree(lun: Lun, index: int, most: int) -> _Subtree | None:
    """The highest pointer block of the backing over `index` that can be adopted; None: there is none."""
    below, core = lun.below(), lun.core
    assert lun.backing is not None
    if below.backing is not None or lun.backing.limit_bytes < below.size_bytes:
        return None  # what is below may read through to another snapshot, or be cut off
    core.allocator.apply_frees()  # a block that is only waiting to be freed is not named any more
    state, highest = span_state(core, lun.inode, index)
    level, slot = below.inode.height, 0
    if state != HOLE or index >> 8 * (level - 1) or index >> 8 * (lun.inode.height - 1):
        return None
    parent: Buffer | Inode = below.inode
    while parent.vbns[slot] >= FIRST_DATA_VBN:
        if level <= highest and (found := _whole(lun, parent, slot, level, most)):
            return found
        if level == 1:
            return None
        child = parent.children.get(slot) or core.load(parent, slot, level)
        assert child is not None
        level -= 1
        parent, slot = child, (index >> 8 * (level - 1)) & (POINTERS - 1)
    return None


def _whole(lun: Lun, parent: Buffer | Inode, slot: int, level: int, most: int) -> _Subtree | None:
    """The subtree at `slot`, if it can be adopted as such."""
    pointer = pointers_at(parent, [slot])
    if are_set(lun.core.allocator.active, pointer.vbns)[0]:
        can = lun.files.references.grant(pointer.vbns).most > 0
        return _Subtree(parent, slot, level, named=True) if can else None
    if level > 1:
        with suppress(CorruptVolume, OSError):  # told when its turn comes
            uptake = take_up(lun.core, pointer, level, most)
            if uptake is not None and _rows(lun, pointer, uptake) <= ROWS * most:
                return _Subtree(parent, slot, level, named=False)
        return None
    return _Subtree(parent, slot, level, named=False)


def _adopt_subtrees(lun: Lun, index: int, found: _Subtree, most: int) -> int:
    """One pointer more to a pointer block, and to neighbours of it below the same node; what that cost, 0 if it could
    not be done."""
    core, inode, level = lun.core, lun.inode, found.level
    mine: Buffer | Inode = inode
    slots = from_slots = [found.slot]
    if level == inode.height:
        first, span, slots = 0, 1 << 8 * level, [0]
        inode.touch(core)
    else:
        number = index >> 8 * level
        first, span = number << 8 * (level + 1), 1 << 8 * (level + 1)
        mine = node_for_writing(core, inode, level + 1, number)
        if isinstance(found.parent, Buffer):
            slots = from_slots = _neighbours(lun, mine, found, most)
    pointers = pointers_at(found.parent, from_slots)
    uptake = NOTHING if found.named else _take_up(lun, pointers, level, most)
    slots = slots[: uptake.roots]
    grant = lun.files.references.grant(np.concatenate([pointers.vbns[: uptake.roots], *uptake.pointers]))
    if not found.named and grant.most < len(slots) + uptake.tree_blocks + uptake.data_blocks:
        return 0
    cost = max(1, uptake.blocks, _rows(lun, pointers, uptake) // ROWS)
    grant.use()
    _point(mine, slots[: grant.most], pointers)
    core.tree_blocks += min(len(slots), grant.most) + uptake.tree_blocks
    core.uncounted_data += uptake.data_blocks
    inode.adopted = True
    lun.forget(lun.own, first, first + span)
    lun.forget(lun.maps, first, first + span)
    lun.filled(uptake.data_blocks)
    return cost


def _neighbours(lun: Lun, mine: Buffer, found: _Subtree, most: int) -> list[int]:
    """The slot that was found and others behind it that can be adopted with it."""
    assert isinstance(found.parent, Buffer)
    if not found.named and found.level > 1:
        return [found.slot]
    vbns = found.parent.vector()
    missing = np.flatnonzero((mine.vector() == HOLE) & (vbns >= FIRST_DATA_VBN))
    missing = missing[missing >= found.slot]
    alike = missing[are_set(lun.core.allocator.active, vbns[missing]) == found.named]
    slots: list[int] = (alike if found.named else alike[:most]).tolist()
    return slots


def _take_up(lun: Lun, pointers: Pointers, level: int, most: int) -> Uptake:
    """Of all of these; of the first if some cannot be read; of some if there are too many counts."""
    number = len(pointers.vbns)
    while number > 1:
        rows = 0
        with suppress(CorruptVolume, OSError):
            if uptake := take_up(lun.core, pointers.first(number), level, most):
                rows = _rows(lun, pointers, uptake)
                if rows <= ROWS * most:
                    return uptake
        number = min(number - 1, number * ROWS * most // rows) if rows else 1
    uptake = take_up(lun.core, pointers.first(1), level, most)
    assert uptake is not None
    return uptake


def _rows(lun: Lun, pointers: Pointers, uptake: Uptake) -> int:
    """Rows of counts that this reads or changes."""
    return lun.files.references.rows_for(np.concatenate([pointers.vbns[: uptake.roots], *uptake.pointers]))


def _point(mine: Buffer | Inode, slots: list[int], pointers: Pointers) -> None:
    for slot, vbn, crc in zip(slots, pointers.vbns.tolist(), pointers.crcs.tolist(), strict=False):
        mine.vbns[slot], mine.crcs[slot], mine.births[slot] = vbn, crc, 0
