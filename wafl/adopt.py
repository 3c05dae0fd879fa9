"""Adopting: what a LUN misses of its backing becomes its own by pointer (spec: instead of copying it).

The other way to fill (wafl.fill): no block is read or written but pointers and counts (wafl.references). The same
rules hold: a guest's block and a ZERO stay, nothing is logged, and a detach waits for the consistency point that
covers it. What cannot be adopted, because it has too many pointers already or there is no room for the first counts of
the volume, stays missing: the caller copies it.

The backing's pointer keeps its birth, for a snapshot does not change; the counts' `since` says that what was born up to
that snapshot may be shared.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from wafl.errors import NoSpace
from wafl.scan import missing_slots

if TYPE_CHECKING:
    from wafl.lun import Lun


def adopt(lun: Lun, index: int) -> int:
    """Called by `Lun.adopt`."""
    if lun.backing is None:
        return 0
    slots = missing_slots(lun, index)
    if not len(slots):
        return 0
    files, core = lun.files, lun.core
    vbns, crcs = lun.compute_level_one_buf(index)
    vbns, crcs = vbns[slots], crcs[slots]
    blocks = 2 * lun.inode.height + 2
    if more := files.references.blocks_to_make():
        try:
            core.ensure(blocks + more, core.allocator.floor_guest, wait=False)
        except NoSpace:
            return 0
    core.ensure_for(blocks, reserved=lun.reserved, wait=False)
    files.references.make()
    leaf = lun.leaf(index)
    grant = files.references.grant(vbns)
    here = slots[: grant.most]
    grant.use()
    files.references.shared_through(files.snapshot_generation(lun.backing.snapshot_id))
    leaf.vector()[here] = vbns[: grant.most]
    leaf.crc_vector()[here] = crcs[: grant.most]
    np.asarray(leaf.births)[here] = 0
    lun.inode.blocks += len(here)
    lun.forget(lun.maps, index << 8, (index + 1) << 8)
    lun.filled(len(here))
    return len(here)
