"""Giving space back in the background: trees of destroyed and unmapped LUNs, deleted snapshots.

Both are restartable at any point, because what is left to do is on disk: zombie inodes, and snapshot entries in
state DELETING.

Deleting snapshot S, one row (one map block) at a time: a block goes out of the summary if S's map has it and neither
any live snapshot's map nor the volume itself does.  All live snapshots are asked, never only the neighbours: once
blocks can be shared, a block's life is not one unbroken run of snapshots.  A live snapshot with the same map block
(equal vbn) settles a row without reading it.

S's own map and inode file must stay readable until the end, for a crash in the middle starts again with them: the
blocks of these files, of every snapshot being deleted, are put aside and given back together with the entry.  That
list is good only while no snapshot comes; if one does, the pass is done again.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from wafl.allocator import MAP_SHIFT, new_bits
from wafl.bits import Bits, Vbns, are_set, clear_each, positions
from wafl.errors import CorruptVolume, NoSpace
from wafl.format import BLOCK_BYTES, FIRST_DATA_VBN, MAP_BITS, POINTERS
from wafl.inode import Inode
from wafl.maps import read_row, tree_vbns
from wafl.snapshots import Snapshot
from wafl.tree import level_one, trim
from wafl.types import Step

if TYPE_CHECKING:
    from wafl.volume import Volume

TRIM_SLICE = 8
"""Level-1 subtrees freed between two yields."""


def in_row(vbns: Vbns, row: int) -> Vbns:
    """Those of the blocks that the row describes, counted from its first."""
    found: Vbns = vbns[vbns >> MAP_SHIFT == row] - np.uint64(row * MAP_BITS)
    return found


class Reclaim:
    """The background work of one mounted volume."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self._core = volume.core
        self._work: Generator[Step, None, None] | None = None

    @property
    def pending(self) -> bool:
        return bool(self._volume.files.zombies or self._volume.snapshots_table.deleting)

    def run(self) -> Generator[Step, None, None]:
        """Slices until all is done, or until only a consistency point helps on (no room to work in, or a snapshot
        in the making whose map cannot be read yet).  However many run at a time, they share the work: a shortage of
        space may drive it on while somebody else's iteration rests."""
        while self.advance():
            yield Step.SLICE

    def advance(self) -> bool:
        """One slice; False at the end."""
        self._core.check_writable()
        if self._work is None:
            self._work = self._slices()
        try:
            next(self._work)
        except BaseException as error:
            self._work = None
            if isinstance(error, StopIteration):
                return False
            raise
        return True

    def _slices(self) -> Generator[Step, None, None]:
        """What cannot be read keeps its space and holds up nothing else; its error comes at the end."""
        failed: Exception | None = None
        for work in self._works():
            try:
                yield from work
            except (CorruptVolume, OSError) as error:
                failed = failed or error
        if failed is not None:
            raise failed

    def _works(self) -> Iterator[Generator[Step, None, None]]:
        for zombie in list(self._volume.files.zombies.values()):
            yield self._trim_zombie(zombie)
        for snapshot in list(self._volume.snapshots_table.deleting.values()):
            yield self._free_snapshot(snapshot)

    # --- zombies ---------------------------------------------------------------------------------------------------

    def _trim_zombie(self, zombie: Inode) -> Generator[Step, None, None]:
        files = self._volume.files
        # By identity: while this rests, the number of a freed inode may go to another zombie.
        while files.zombies.get(zombie.number) is zombie and self._trim_some(zombie):
            yield Step.SLICE

    def _trim_some(self, zombie: Inode) -> bool:
        """One slice.  False for want of room."""
        files = self._volume.files
        for _ in range(TRIM_SLICE):
            try:
                self._core.ensure(2 * zombie.height + 4, self._core.allocator.floor_ops, wait=False)
            except NoSpace:
                return False
            freed = trim(self._core, zombie)
            if freed is None:
                files.free_inode(zombie)
                return True
            self._account(zombie, freed)
        self._core.allocator.apply_frees()
        return True

    def _account(self, zombie: Inode, freed: int) -> None:
        counted = min(freed, zombie.blocks)
        zombie.blocks -= counted
        owner = self._volume.files.inodes.get(zombie.owner)
        if owner is not None and owner.generation == zombie.owner_generation:
            of_owner = min(freed - counted, owner.blocks)
            owner.blocks -= of_owner
            owner.touch(self._core)
            counted += of_owner
        self._core.uncounted_data -= freed - counted

    # --- snapshots -------------------------------------------------------------------------------------------------

    def _free_snapshot(self, snapshot: Snapshot) -> Generator[Step, None, None]:
        table = self._volume.snapshots_table
        core = self._core
        while True:
            version = table.version
            aside: list[Vbns] = []
            own_map = table.active_map(snapshot)
            for row in self._rows(snapshot, own_map):
                if table.making:
                    return
                gone = self._only_in(snapshot, own_map, row)
                kept = in_row(self._needed_to_restart(), row)
                kept = kept[are_set(gone, kept)]
                aside.append(kept + np.uint64(row * MAP_BITS))
                clear_each(gone, kept)
                now = positions(gone, row * MAP_BITS)
                if len(now):
                    core.allocator.drop_from_summary(now)
                yield Step.SLICE
            if table.making:
                return
            if table.version == version:
                break
        core.forget_tree(own_map)
        last = np.concatenate([np.empty(0, np.uint64), *aside])
        others = self._needed_to_restart(but=snapshot)
        last = last[~np.isin(last, others)]
        if len(last):
            core.allocator.drop_from_summary(last)
        table.drop(snapshot)
        yield Step.SLICE

    def _rows(self, snapshot: Snapshot, own_map: Inode) -> Iterator[int]:
        """Rows that some live snapshot's map does not share as a whole."""
        rows = -(-snapshot.volume_blocks // MAP_BITS)
        for index in range(-(-rows // POINTERS)):
            mine = self._pointers(own_map, index)
            shared = np.zeros(POINTERS, dtype=np.bool_)
            for other in self._live_maps():
                shared |= self._pointers(other, index) == mine
            for slot in np.flatnonzero((mine >= FIRST_DATA_VBN) & ~shared).tolist():
                yield index * POINTERS + slot

    def _pointers(self, inode: Inode, index: int) -> npt.NDArray[np.uint64]:
        found = level_one(self._core, inode, index)
        assert found is not None
        return found.vector()

    def _live_maps(self) -> list[Inode]:
        table = self._volume.snapshots_table
        return [self._map_of(snapshot) for snapshot in table.live.values()]

    def _map_of(self, snapshot: Snapshot) -> Inode:
        if snapshot.map_inode is None:
            snapshot.map_inode = self._volume.snapshots_table.active_map(snapshot)
        return snapshot.map_inode

    def _only_in(self, snapshot: Snapshot, own_map: Inode, row: int) -> Bits:
        """Blocks of this row that the summary holds for snapshots being deleted, and for nothing else."""
        allocator = self._core.allocator
        bits = np.empty(BLOCK_BYTES, dtype=np.uint8)
        read_row(self._core, own_map, row, bits)
        bits &= allocator.row(allocator.summary, row)
        other = np.empty(BLOCK_BYTES, dtype=np.uint8)
        seen: set[int] = set()
        for inode in self._live_maps():
            vbn = int(self._pointers(inode, row >> 8)[row & (POINTERS - 1)])
            if vbn >= FIRST_DATA_VBN and vbn not in seen:
                seen.add(vbn)
                read_row(self._core, inode, row, other)
                bits &= ~other
        clear_each(bits, in_row(self._volume.own_vbns(), row))
        return bits

    def _needed_to_restart(self, but: Snapshot | None = None) -> Vbns:
        """The blocks of inode file and active map of every snapshot being deleted."""
        found = [np.empty(0, np.uint64)]
        for snapshot in self._volume.snapshots_table.deleting.values():
            if snapshot is but:
                continue
            if snapshot.spine is None:
                snapshot.spine = self.spine(snapshot)
            found.append(snapshot.spine)
        return np.concatenate(found)

    def spine(self, snapshot: Snapshot) -> Vbns:
        """The blocks of a snapshot's inode file and active map."""
        return np.concatenate([
            tree_vbns(self._core, snapshot.ifile), tree_vbns(self._core, self._map_of(snapshot)),
        ])  # fmt: skip

    # --- accounts --------------------------------------------------------------------------------------------------

    def whole_map(self, snapshot: Snapshot) -> Bits:
        """A snapshot's whole map."""
        allocator = self._core.allocator
        bits = new_bits(allocator.blocks)
        inode = self._map_of(snapshot)
        for row in range(-(-snapshot.volume_blocks // MAP_BITS)):
            read_row(self._core, inode, row, allocator.row(bits, row))
        return bits

    def only_here(self, snapshot: Snapshot, bits: Bits) -> Bits:
        """What of a snapshot's map would be free without it."""
        alone = bits & ~self._core.allocator.active
        for other in self._volume.snapshots_table.live.values():
            if other is not snapshot:
                alone &= ~self.whole_map(other)
        return alone
