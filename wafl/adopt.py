"""Adopting: what a LUN misses of its backing becomes its own by pointer (spec: instead of copying it).

The other way to fill (wafl.fill): no block is read or written but pointers and counts (wafl.references). The same
rules hold: a guest's block and a ZERO stay, nothing is logged, and a detach waits for the consistency point that
covers it. What cannot be adopted, because it has too many pointers already or there is no room for the first counts of
the volume, stays missing: the caller copies it.

Where the LUN has nothing yet and the backing's pointer block is still named by the active file system, that block
itself is adopted, with all that is below it: one count for up to terabytes. The counts below stay as they are, for
they count pointers, and there is none more (wafl.references). What only the snapshot names is adopted block by block,
with pointer blocks of the LUN's own. An adopted subtree is under a pointer with birth 0, and its blocks are not in
the inode's `blocks` until the LUN has a pointer block of its own over them.

The backing's pointer keeps its birth, for a snapshot does not change; the counts' `since` says that what was born up to
that snapshot may be shared.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from wafl.bits import Vbns, are_set
from wafl.buffers import Buffer
from wafl.errors import NoSpace
from wafl.format import FIRST_DATA_VBN, HOLE, POINTERS
from wafl.inode import Inode, node_for_writing
from wafl.scan import Slots, missing_slots
from wafl.tree import span_state

if TYPE_CHECKING:
    from wafl.lun import Lun


def adopt(lun: Lun, index: int) -> bool:
    """Called by `Lun.adopt`."""
    if lun.backing is None or not len(slots := missing_slots(lun, index)):
        return False
    files, core = lun.files, lun.core
    blocks = 2 * lun.inode.height + 2
    if more := files.references.blocks_to_make():
        try:
            core.ensure(blocks + more, core.allocator.floor_guest, wait=False)
        except NoSpace:
            return False
    core.ensure_for(blocks, reserved=lun.reserved, wait=False)
    files.references.make()
    generation = files.snapshot_generation(lun.backing.snapshot_id)
    found = _subtree(lun, index)
    done = _adopt_subtrees(lun, index, *found) if found is not None else _adopt_blocks(lun, index, slots)
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


def _subtree(lun: Lun, index: int) -> tuple[Buffer | Inode, int, int] | None:
    """(node of the backing, slot, level of the block there): the highest pointer block of the backing over `index` that
    can be adopted.  The LUN has a HOLE in its place, and the active file system still names it, so all below it too.
    None: there is none."""
    below, core = lun.below(), lun.core
    assert lun.backing is not None
    if below.backing is not None or lun.backing.limit_bytes < below.size_bytes:
        return None  # what is below may read through to another snapshot, or be cut off
    core.allocator.apply_frees()  # a block that is only waiting to be freed is not named any more
    state, most = span_state(core, lun.inode, index)
    level, slot = below.inode.height, 0
    if state != HOLE or index >> 8 * (level - 1) or index >> 8 * (lun.inode.height - 1):
        return None
    parent: Buffer | Inode = below.inode
    while parent.vbns[slot] >= FIRST_DATA_VBN:
        if level <= most and _can_adopt(lun, np.array([parent.vbns[slot]], np.uint64))[0]:
            return parent, slot, level
        if level == 1:
            return None
        child = parent.children.get(slot) or core.load(parent, slot, level)
        assert child is not None
        level -= 1
        parent, slot = child, (index >> 8 * (level - 1)) & (POINTERS - 1)
    return None


def _can_adopt(lun: Lun, vbns: Vbns) -> npt.NDArray[np.bool_]:
    """Which of these the active file system names and can name once more."""
    can = are_set(lun.core.allocator.active, vbns)
    can[lun.files.references.grant(vbns).most :] = False
    return can


def _adopt_subtrees(lun: Lun, index: int, theirs: Buffer | Inode, slot: int, level: int) -> bool:
    """One pointer more to a pointer block, and to its neighbours below the same node.  Their blocks are in no count of
    the LUN's."""
    core, inode = lun.core, lun.inode
    if level == inode.height:
        first, span = 0, 1 << 8 * level
        inode.touch(core)
        done = _point(lun, inode, np.array([0]), theirs, np.array([slot]))
    else:
        number = index >> 8 * level
        first, span = number << 8 * (level + 1), 1 << 8 * (level + 1)
        mine = node_for_writing(core, inode, level + 1, number)
        slots = np.array([slot])
        if isinstance(theirs, Buffer):
            vbns = theirs.vector()
            missing = np.flatnonzero((mine.vector() == HOLE) & (vbns >= FIRST_DATA_VBN))
            adoptable = missing[_can_adopt(lun, vbns[missing])]
            slots = adoptable if slot in adoptable else slots
        done = _point(lun, mine, slots, theirs, slots)
    lun.forget(lun.own, first, first + span)
    lun.forget(lun.maps, first, first + span)
    lun.filled(0)
    return done


def _point(lun: Lun, mine: Buffer | Inode, slots: Slots, theirs: Buffer | Inode, from_slots: Slots) -> bool:
    grant = lun.files.references.grant(np.array([theirs.vbns[slot] for slot in from_slots.tolist()], np.uint64))
    grant.use()
    for slot, source in list(zip(slots.tolist(), from_slots.tolist(), strict=True))[: grant.most]:
        mine.vbns[slot], mine.crcs[slot], mine.births[slot] = theirs.vbns[source], theirs.crcs[source], 0
    lun.core.tree_blocks += grant.most
    lun.inode.adopted = True
    return grant.most > 0
