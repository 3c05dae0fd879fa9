"""Where a volume's bytes are, for people and for those who decide by it."""

from __future__ import annotations

from collections.abc import Collection, Generator
from typing import TYPE_CHECKING

import numpy as np

from wafl.bits import Vbns
from wafl.format import BLOCK_BYTES, TAIL_BLOCKS
from wafl.holdings import finish
from wafl.maps import tree_vbns
from wafl.types import SnapshotSpace, Space, Step

if TYPE_CHECKING:
    from wafl.volume import Volume


def space_of(volume: Volume) -> Space:
    available = available_bytes(volume)  # which makes all figures the present ones
    allocator, reserve = volume.core.allocator, volume.files.reserve
    unused = allocator.end - allocator.next
    active, free = allocator.active_count - unused, allocator.free + unused
    own = len(own_vbns(volume))
    used = allocator.blocks - free
    luns = reserve.needed()
    own_room = allocator.floor_guest - luns
    return Space(
        total=allocator.blocks * BLOCK_BYTES,
        used=used * BLOCK_BYTES,
        free=free * BLOCK_BYTES,
        available=available,
        active=active * BLOCK_BYTES,
        snapshots=(used - active - allocator.freeing - allocator.promised - own) * BLOCK_BYTES,
        volume_own=own * BLOCK_BYTES,
        freeing=allocator.freeing * BLOCK_BYTES,
        reserved=min(free, own_room) * BLOCK_BYTES,
        reserved_luns=min(max(0, free - own_room), luns) * BLOCK_BYTES,
        overcommitted=reserve.missing_of(luns) * BLOCK_BYTES,
        shared=volume.files.references.total * BLOCK_BYTES,
    )


def available_bytes(volume: Volume) -> int:
    """What thin LUNs and whatever is new may still use, as `Space.available`, at the price of a sum."""
    allocator = volume.core.allocator
    allocator.apply_frees()
    volume.files.reserve.refresh()
    return max(0, allocator.free + allocator.end - allocator.next - allocator.floor_guest) * BLOCK_BYTES


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
    alone = finish(volume.background.holdings.only_here([snapshot]))
    return SnapshotSpace(name, snapshot.active_blocks * BLOCK_BYTES, alone * BLOCK_BYTES)


def snapshot_spaces(volume: Volume) -> Generator[Step, None, list[SnapshotSpace]]:
    """The same for every snapshot, oldest first, in slices.  One that goes meanwhile is left out; what comes or goes
    makes the other figures those of some moment in between."""
    spaces = []
    for snapshot in sorted(volume.snapshots_table.live.values(), key=lambda snapshot: snapshot.id):
        if snapshot.name in volume.snapshots_table.live:
            alone = yield from volume.background.holdings.only_here([snapshot])
            spaces.append(SnapshotSpace(snapshot.name, snapshot.active_blocks * BLOCK_BYTES, alone * BLOCK_BYTES))
    return spaces


def reclaimable_together(volume: Volume, names: Collection[str]) -> Generator[Step, None, int]:
    """Bytes that deleting all of these would give back, in slices.  Raises NoSuchSnapshot."""
    chosen = [volume.snapshots_table.find(name) for name in dict.fromkeys(names)]
    return (yield from volume.background.holdings.only_here(chosen)) * BLOCK_BYTES
