"""Writes that come together: single blocks to places all over a LUN, or neighbours that make up one long write.

The places may be scattered, but on the volume the blocks lie side by side: their data goes there in one call, where a
page of the cache costs a quarter of what it costs alone.  Then each pointer is set as `Lun.write` does it.  Neighbours
have their pointers set together too, and one record in the log: 16 writes of 64 KiB cost little more than one of 1 MiB.

Rules: data before pointers, and nothing between them, a consistency point least of all.  So only blocks are taken
together whose level-1 blocks this generation owns, which is seen to before anything is written; and only as many as
the log has room for.  The others go by `Lun.write`, in their turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import numpy as np
from crc32c import crc32c

from wafl.ahead import write_is_ready
from wafl.buffers import PointerMap
from wafl.checksums import of_blocks
from wafl.device import Bytes
from wafl.errors import NoSpace
from wafl.format import BLOCK_BYTES, BLOCK_SHIFT, FIRST_DATA_VBN, POINTERS
from wafl.lun import Lun
from wafl.views import BLOCK_MASK, SLOT_MASK

Writes = Sequence[tuple[int, Bytes]]
LONG_BYTES = 128 << 10
"""Where one of several has to wait for the disk, all are done again: such long ones find that out before the first."""


def write_several(lun: Lun, writes: Writes) -> bool:
    """`lun.write` each (offset, data), in order.  False if one of them would have to wait for the disk; then, as where
    it raises what that raises, some of them are written."""
    at, owned = 0, False
    if len(writes[0][1]) >= LONG_BYTES:
        ready = [write_is_ready(lun, offset, len(data)) for offset, data in writes]
        if not all(ready):
            return False
    while at < len(writes):
        taken = _write_together(lun, writes, at) or _write_neighbours(lun, writes, at)
        if not taken and not owned:
            _own_leaves(lun, writes[at:])
            owned = True
            continue
        if not taken and not lun.write(*writes[at], nowait=True):
            return False
        at += taken or 1
    return True


def _own_leaves(lun: Lun, writes: Writes) -> None:
    """After a consistency point each level-1 block is to be made this generation's once: those of whole blocks at once,
    if there is room for that without a consistency point.  Raises what `lun.write` raises but NoSpace."""
    core = lun.core
    indices = {
        offset >> 20 for offset, data in writes
        if len(data) == BLOCK_BYTES and not offset & BLOCK_MASK and offset + BLOCK_BYTES <= lun.size_bytes
        and ((leaf := lun.own.get(offset >> 20)) is None or leaf.generation != core.generation)
    }  # fmt: skip
    if len(indices) > 1:
        lun.check_changeable()
        with suppress(NoSpace):
            core.ensure_for(len(writes) + len(indices) * (2 * lun.inode.height + 2), reserved=lun.reserved, wait=False)
            for index in indices:
                if write_is_ready(lun, index << 20, BLOCK_BYTES):  # the others are asked for together
                    lun.leaf(index)


def _write_together(lun: Lun, writes: Writes, first: int) -> int:
    """How many from `first` on were written in one call; 0: the next is none for it."""
    core = lun.core
    allocator, log, vbn = core.allocator, core.log, core.allocator.next
    most = min(len(writes) - first, allocator.end - vbn)
    if most < 2 or (log is not None and not (log.batched and log.has_room(most))):
        return 0
    leaves: list[PointerMap] = []
    fbns: list[int] = []
    datas: list[Bytes] = []
    leaf_at, generation, last = lun.own.get, core.generation, lun.size_bytes - BLOCK_BYTES
    for offset, data in writes[first : first + most]:
        leaf = leaf_at(offset >> 20)
        if leaf is None or leaf.generation != generation or len(data) != BLOCK_BYTES:
            break
        if offset & BLOCK_MASK or offset > last:
            break
        leaves.append(leaf)
        fbns.append(offset >> BLOCK_SHIFT)
        datas.append(data)
    count = len(leaves)
    if count < 2:
        return 0
    core.device.pwrite(vbn << BLOCK_SHIFT, datas)
    allocator.next = vbn + count
    crcs = list(map(crc32c, datas))
    _point(lun, leaves, fbns, vbn, crcs)
    if log is not None:
        log.write_each(lun.slot, fbns, vbn, crcs)
    return count


def _write_neighbours(lun: Lun, writes: Writes, first: int) -> int:
    """How many from `first` on, each where the one before ends, were written as one; 0: the next is none for it."""
    core, start = lun.core, writes[first][0]
    if start & BLOCK_MASK or not _has_neighbour(lun, writes, first) or not _owns_leaf(lun, start >> 20):
        return 0
    allocator, log, vbn = core.allocator, core.log, core.allocator.next  # now: a leaf may shorten the run
    most = min(start + ((allocator.end - vbn) << BLOCK_SHIFT), ((start >> 20) + 1) << 20, lun.size_bytes)
    datas: list[Bytes] = []
    end = start
    for offset, data in writes[first:]:
        if offset != end or len(data) & BLOCK_MASK or end + len(data) > most:
            break
        datas.append(data)
        end += len(data)
    blocks = (end - start) >> BLOCK_SHIFT
    if len(datas) < 2 or (log is not None and not (log.batched and log.has_room(blocks))):
        return 0
    core.device.pwrite(vbn << BLOCK_SHIFT, datas)
    allocator.next = vbn + blocks
    crcs = [crc for data in datas for crc in of_blocks(memoryview(data))]
    lun.point_at(start >> BLOCK_SHIFT, vbn, crcs)
    if log is not None:
        log.write(lun.slot, start >> BLOCK_SHIFT, vbn, crcs)
    return len(datas)


def _has_neighbour(lun: Lun, writes: Writes, first: int) -> bool:
    if first + 1 == len(writes):
        return False
    offset, data = writes[first]
    end = offset + len(data)
    return writes[first + 1][0] == end and offset >> 20 == end >> 20 and end < lun.size_bytes


def _owns_leaf(lun: Lun, index: int) -> bool:
    """Whether level-1 block `index` is this generation's, or was made so: it waited for no disk, and there is room for
    that and all of its blocks without a consistency point."""
    core, leaf = lun.core, lun.own.get(index)
    if leaf is not None and leaf.generation == core.generation:
        return True
    lun.check_changeable()
    if not write_is_ready(lun, index << 20, BLOCK_BYTES):
        return False
    try:
        core.ensure_for(POINTERS + 2 * lun.inode.height + 2, reserved=lun.reserved, wait=False)
    except NoSpace:
        return False
    lun.leaf(index)
    return True


def _point(lun: Lun, leaves: list[PointerMap], fbns: list[int], vbn: int, crcs: list[int]) -> None:
    """Blocks that were written from `vbn` on become the LUN's, as `Lun.write` does it with one."""
    inode, generation, freed = lun.inode, lun.core.generation, lun.core.allocator.freed
    private_since, composed = inode.private_since, lun.maps is not lun.own
    for leaf, fbn, crc in zip(leaves, fbns, crcs, strict=True):
        slot = fbn & SLOT_MASK
        vbns, births = leaf.vbns, leaf.births  # type: ignore[attr-defined]
        old = vbns[slot]
        vbns[slot] = vbn
        leaf.crcs[slot] = crc
        if births[slot] <= private_since:
            inode.private_blocks += 1
            if inode.recount is not None:
                inode.recount.replaced(fbn >> 8, np.asarray(births[slot : slot + 1]))
        births[slot] = generation
        if composed:
            lun.keep_composed(leaf, fbn >> 8, slot, old, vbn, crc)
        if old >= FIRST_DATA_VBN:
            freed.append(old)
        else:
            inode.blocks += 1
        vbn += 1
