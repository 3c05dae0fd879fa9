"""What a change of a LUN, or a walk over it, has to read first: is it in memory?

A change goes in one piece and cannot wait for the disk in the middle without everybody else waiting too.  So whoever is
not to wait asks before: for the pointer blocks on the way down to what changes, for the counts of those that have
several pointers, and for the blocks of which only a part changes.

Rules: asking changes nothing and never fails; what cannot be read counts as ready, for the change itself finds it out
and says it.  If something is missing the disk begins to read all of it that is known by then, not only the first.
Pointers are read before what they point at, so it may take several questions.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from wafl.errors import WaflError
from wafl.format import BLOCK_BYTES, BLOCK_SHIFT, FIRST_DATA_VBN, LEVEL_ONE_BYTES, MAX_HEIGHT, POINTERS
from wafl.scattered import Run
from wafl.views import BLOCK_MASK, SLOT_MASK, View

if TYPE_CHECKING:
    from wafl.buffers import Buffer, Core
    from wafl.inode import Inode
    from wafl.lun import Lun
    from wafl.references import References

WALK_AHEAD, TRIM_AHEAD = 16, 64
"""Level-1 buffers that are read together by whoever walks over a LUN, or frees it."""

RANGES_A_CALL = 16
"""Level-1 ranges that one call that shares goes over: one to four milliseconds."""

_BLOCK = memoryview(bytearray(BLOCK_BYTES))
_FIRST, _LAST = _BLOCK[:1], _BLOCK[1:2]


def write_is_ready(lun: Lun, offset: int, length: int) -> bool:
    """Whether writing the range waits for no disk."""
    end = offset + length
    first, last = offset // LEVEL_ONE_BYTES, (end - 1) // LEVEL_ONE_BYTES
    ready = [_is_owned(lun, index) or _path_is_here(lun, index * POINTERS, 1) for index in range(first, last + 1)]
    return _edges_are_here(lun, offset, end) and all(ready)


def unmap_is_ready(lun: Lun, offset: int, length: int) -> bool:
    """Whether unmapping it does.  Only those pointer blocks are read of which something stays."""
    end = offset + length
    ready = [_edges_are_here(lun, offset, end)]
    first, last = -(-offset // BLOCK_BYTES), end >> BLOCK_SHIFT if end < lun.size_bytes else 0
    limit = lun.backing.limit_bytes >> BLOCK_SHIFT if lun.backing else 0  # ZERO below it, HOLE above
    for edge in (first, last, limit if first < limit <= -(-end // BLOCK_BYTES) else 0):
        cut = next((level for level in range(1, MAX_HEIGHT + 1) if edge % POINTERS**level), None)
        if cut is not None:
            ready.append(_path_is_here(lun, edge, cut))
    return all(ready)


def share_is_ready(lun: Lun, offset: int, source: Lun, source_offset: int, length: int) -> bool:
    """Whether one call of `Lun.share` does: it changes pointers of both, and the counts of what it shares."""
    if source.files is not lun.files:
        return True  # nothing can be shared
    length = min(length, RANGES_A_CALL * LEVEL_ONE_BYTES)
    ready = [write_is_ready(lun, offset, length), write_is_ready(source, source_offset, length)]
    try:
        first, last = source_offset // LEVEL_ONE_BYTES, (source_offset + length - 1) // LEVEL_ONE_BYTES
        maps = [source.read_map(index, nowait=True) for index in range(first, last + 1)]
        vbns = np.concatenate([np.empty(0, np.uint64), *(each.vector() for each in maps if each is not None)])
        ready += [None not in maps, bool(lun.files.references.ready(vbns[vbns >= FIRST_DATA_VBN]).all())]
    except (WaflError, OSError):
        pass
    return all(ready)


def read_is_ready(view: View, offset: int, length: int) -> bool:
    """Whether reading it does, as far as the first and last byte of each stretch tell."""
    try:
        runs = view.runs_nowait(offset, length)
        return runs is not None and (_ends_are_here(view, runs) or view.prefetch(runs))
    except (WaflError, OSError):
        return True


def _walk_is_ready(view: View, index: int) -> bool:
    """Whether level-1 `index` can be looked at; those that come next are read together with it."""
    try:
        if view.read_map(index, nowait=True) is not None:
            return True
        end = min(index + WALK_AHEAD, -(-view.size_bytes // LEVEL_ONE_BYTES))
        for following in range(index + 1, end):
            view.read_map(following, nowait=True)
    except (WaflError, OSError):
        return True
    return False


def trim_is_ready(core: Core, zombie: Inode, counts: References, leaves: int) -> bool:
    """Whether the last level-1 blocks of a tree that goes, so many, are in memory, and the counts of all that they
    name; more of them are read together."""
    try:
        walk = _last_leaves(core, zombie, zombie.height, counts)
        needed = list(islice(walk, leaves))
        vbns = np.concatenate([np.empty(0, np.uint64), *(leaf.vector() for leaf in needed if leaf is not None)])
        ready = bool(counts.ready(vbns[vbns >= FIRST_DATA_VBN]).all()) and None not in needed
        if not ready:
            list(islice(walk, TRIM_AHEAD))
        return ready
    except (WaflError, OSError):
        return True


def _last_leaves(core: Core, parent: Buffer | Inode, level: int, counts: References) -> Iterator[Buffer | None]:
    """Level-1 blocks from the last one on, as far as they are in memory; None for each block that is not, or whose
    count is not."""
    vbns = np.array(parent.vbns, dtype=np.uint64)
    for slot in reversed(np.flatnonzero(vbns >= FIRST_DATA_VBN).tolist()):
        node = parent.children.get(slot) or core.load(parent, slot, level, nowait=True)
        if node is None or not counts.ready(vbns[slot : slot + 1]).all():
            yield None
        elif level == 1:
            yield node
        else:
            yield from _last_leaves(core, node, level - 1, counts)


def ready_extents(view: View, offset: int, length: int) -> Iterator[tuple[int, int, bool]]:
    """As `View.extents`, but they end before what is not in memory."""
    walk = view.extents(offset, length)
    at, end = offset, min(offset + length, view.size_bytes)
    while at < end and _walk_is_ready(view, at // LEVEL_ONE_BYTES):
        extent = next(walk)
        yield extent
        at = extent[0] + extent[1]


def _edges_are_here(lun: Lun, offset: int, end: int) -> bool:
    """Blocks of which the range is only a part are read before they are written."""
    cut = {at >> BLOCK_SHIFT for at in (offset, end) if at & BLOCK_MASK and at < lun.size_bytes}
    ready = [_path_is_here(lun, fbn, 1) and _block_is_here(lun, fbn) for fbn in cut]
    return all(ready)


def _block_is_here(lun: Lun, fbn: int) -> bool:
    try:
        return lun.read_blocks(fbn << BLOCK_SHIFT, _BLOCK, nowait=True)
    except (WaflError, OSError):
        return True


def _is_owned(lun: Lun, index: int) -> bool:
    """By this generation, and so are all blocks above it: the usual case."""
    leaf = lun.own.get(index)
    return leaf is not None and leaf.generation == lun.core.generation


def _path_is_here(lun: Lun, fbn: int, lowest: int) -> bool:
    """The pointer blocks above a block, from the root down to level `lowest`."""
    core, counts = lun.core, lun.files.references
    parent: Buffer | Inode = lun.inode
    level = lun.inode.height
    slot = 0 if not fbn >> 8 * level else -1
    try:
        while level >= lowest and slot >= 0 and parent.vbns[slot] >= FIRST_DATA_VBN:
            node = parent.children.get(slot) or core.load(parent, slot, level, nowait=True)
            if node is None or not (node.generation == core.generation or _counts_are_here(counts, node)):
                return False
            level -= 1
            parent, slot = node, (fbn >> 8 * level) & SLOT_MASK
    except (WaflError, OSError):
        pass
    return True


def _counts_are_here(counts: References, node: Buffer) -> bool:
    """Those that a change of this pointer block asks for (`References.part`)."""
    if counts.inode is None:
        return True
    vbns = node.vector()
    if not counts.ready(np.array([node.vbn], np.uint64)).all():
        return False
    return not counts.is_shared(node.vbn) or bool(counts.ready(vbns[vbns >= FIRST_DATA_VBN]).all())


def _ends_are_here(view: View, runs: list[Run]) -> bool:
    places = [
        (byte, [end]) for vbn, blocks, _ in sorted(runs) if vbn >= FIRST_DATA_VBN
        for byte, end in ((vbn << BLOCK_SHIFT, _FIRST), ((vbn + blocks << BLOCK_SHIFT) - 1, _LAST))
    ]  # fmt: skip
    return view.core.device.preadv_nowait(places)
