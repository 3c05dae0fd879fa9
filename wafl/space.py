"""Where a volume's bytes are, for people and for those who decide by it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from wafl.bits import Vbns
from wafl.format import BLOCK_BYTES, TAIL_BLOCKS
from wafl.maps import tree_vbns
from wafl.types import SnapshotSpace, Space

if TYPE_CHECKING:
    from wafl.volume import Volume


def space_of(volume: Volume) -> Space:
    allocator = volume.core.allocator
    allocator.apply_frees()
    unused = allocator.end - allocator.next
    active, free = allocator.active_count - unused, allocator.free + unused
    own = len(own_vbns(volume))
    used = allocator.blocks - free
    return Space(
        total=allocator.blocks * BLOCK_BYTES,
        used=used * BLOCK_BYTES,
        free=free * BLOCK_BYTES,
        available=max(0, free - allocator.floor_guest) * BLOCK_BYTES,
        active=active * BLOCK_BYTES,
        snapshots=(used - active - allocator.freeing - own) * BLOCK_BYTES,
        volume_own=own * BLOCK_BYTES,
        freeing=allocator.freeing * BLOCK_BYTES,
        reserved=min(free, allocator.floor_guest) * BLOCK_BYTES,
    )


def own_vbns(volume: Volume) -> Vbns:
    """Blocks of the volume itself: fixed places, summary and snapshot table."""
    blocks = volume.geometry.blocks
    return np.concatenate([
        np.arange(volume.geometry.head_blocks, dtype=np.uint64),
        np.arange(blocks - TAIL_BLOCKS, blocks, dtype=np.uint64),
        tree_vbns(volume.core, volume.summary.inode),
        tree_vbns(volume.core, volume.snapshots_table.table.inode),
    ])  # fmt: skip


def snapshot_space(volume: Volume, name: str) -> SnapshotSpace:
    """Compares every live snapshot's map: for people, not for a loop.  Raises NoSuchSnapshot."""
    snapshot = volume.snapshots_table.find(name)
    volume.core.allocator.apply_frees()
    alone = volume.background.holdings.only_here(snapshot)
    return SnapshotSpace(name, snapshot.active_blocks * BLOCK_BYTES, alone * BLOCK_BYTES)
