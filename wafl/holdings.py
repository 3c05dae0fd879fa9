"""Which blocks are held by which snapshots, worked out of their maps a piece at a time.

All live snapshots are asked, never only the neighbours (wafl.reclaim says why); but neighbours come first, for they
settle most rows by sharing them as a whole.  Questions that need many blocks of the disk are generators that yield
between them: a live snapshot that is deleted meanwhile makes an answer cautious, one that comes makes it void.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt

from wafl.bits import Bits, Vbns
from wafl.errors import CorruptVolume
from wafl.format import ACTIVE_MAP_INODE, BLOCK_BYTES, FIRST_DATA_VBN, INODE, MAP_BITS, POINTERS
from wafl.inode import Inode
from wafl.maps import read_row, tree_is_here, tree_vbns
from wafl.snapshots import Snapshot
from wafl.tree import level_one
from wafl.types import Step

if TYPE_CHECKING:
    from wafl.volume import Volume

LOOKS = 32
"""Blocks looked at between two yields: under a millisecond when they are in memory."""

ROWS_AHEAD = 4
"""Maps of other snapshots that are read together: mostly the nearest settle a row."""

Until = Callable[[Callable[[], bool]], Iterator[Step]]
"""Rests until something is in memory, as the question tells, or has been asked for often enough."""


def at_once(ready: Callable[[], bool]) -> Iterator[Step]:
    """Whoever reads waits for the disk."""
    return iter(())


Pointers = npt.NDArray[np.uint64]
T = TypeVar("T")


def in_row(vbns: Vbns, row: int) -> Vbns:
    """Those of the blocks, sorted, that the row describes, counted from its first."""
    first, end = np.searchsorted(vbns, np.array([row * MAP_BITS, (row + 1) * MAP_BITS], np.uint64))
    found: Vbns = vbns[first:end] - np.uint64(row * MAP_BITS)
    return found


def among(vbns: Vbns, those: Vbns) -> npt.NDArray[np.bool_]:
    """For each block, whether it is one of `those`, sorted."""
    if not len(those):
        return np.zeros(len(vbns), np.bool_)
    at = np.minimum(np.searchsorted(those, vbns), len(those) - 1)
    found: npt.NDArray[np.bool_] = those[at] == vbns
    return found


class Spines:
    """The blocks that several snapshots need to be read at all, with how many need each.  255 of them have little
    more than one has."""

    def __init__(self) -> None:
        self.of: dict[int, Vbns] = {}
        """Snapshot id -> its blocks."""
        self.vbns: Vbns = np.empty(0, np.uint64)
        """Sorted."""
        self._counts = np.empty(0, np.int32)

    def add(self, number: int, spine: Vbns) -> None:
        self.of[number] = spine
        known = among(spine, self.vbns)
        self._counts[np.searchsorted(self.vbns, spine[known])] += 1
        new = spine[~known]
        vbns = np.concatenate([self.vbns, new])
        order = np.argsort(vbns, kind="stable")
        self.vbns = vbns[order]
        self._counts = np.concatenate([self._counts, np.ones(len(new), np.int32)])[order]

    def remove(self, number: int) -> None:
        self._counts[np.searchsorted(self.vbns, self.of.pop(number))] -= 1
        kept = self._counts > 0
        self.vbns, self._counts = self.vbns[kept], self._counts[kept]


class Holdings:
    """Of one mounted volume."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self._core = volume.core
        self._spines = Spines()
        self._own: tuple[tuple[int, int], Vbns] = ((-1, 0), np.empty(0, np.uint64))

    def map_of(self, snapshot: Snapshot) -> Inode:
        if snapshot.map_inode is None:
            snapshot.map_inode = self._volume.snapshots_table.active_map(snapshot)
        return snapshot.map_inode

    def others(self, snapshot: Snapshot, without: Collection[Snapshot] = ()) -> list[Inode]:
        """The maps of all other live snapshots but those `without`, the nearest first."""
        live = [other for other in self._volume.snapshots_table.live.values() if other not in without]
        near = sorted((other for other in live if other is not snapshot), key=lambda o: abs(o.id - snapshot.id))
        return [self.map_of(other) for other in near]

    def pointers(self, inode: Inode, index: int) -> Pointers:
        found = level_one(self._core, inode, index)
        assert found is not None
        return found.vector()

    # --- what is held by nobody else -------------------------------------------------------------------------------

    def rows(
        self, snapshot: Snapshot, without: Collection[Snapshot] = (), until: Until = at_once
    ) -> Iterator[tuple[int, list[Inode]] | Step]:
        """Each row that no other live snapshot's map (but for those `without`) shares as a whole, with one map for each
        different block that others have there; a Step between two pieces of work."""
        live = self._volume.snapshots_table.live
        yield from until(lambda: self._maps_are_known([snapshot, *live.values()]))
        mine_inode = self.map_of(snapshot)
        for index in range(-(-snapshot.volume_blocks // (MAP_BITS * POINTERS))):
            yield from until(partial(self._pointers_are_here, [mine_inode, *self.others(snapshot, without)], index))
            others = self.others(snapshot, without)
            mine = self.pointers(mine_inode, index)
            left = mine >= FIRST_DATA_VBN
            theirs: list[Pointers] = []
            for other in others:
                if not left.any():
                    break
                theirs.append(self.pointers(other, index))
                left &= theirs[-1] != mine
                if len(theirs) % LOOKS == 0:
                    yield Step.SLICE
            slots = np.flatnonzero(left)
            columns = np.array(theirs, np.uint64).reshape(len(theirs), POINTERS)[:, slots]
            for slot, column in zip(slots.tolist(), columns.T.tolist(), strict=True):
                different: dict[int, Inode] = {}
                for vbn, other in zip(column, others, strict=False):
                    if vbn >= FIRST_DATA_VBN:
                        different.setdefault(vbn, other)
                yield index * POINTERS + slot, list(different.values())
            yield Step.SLICE

    def _maps_are_known(self, snapshots: Sequence[Snapshot]) -> bool:
        """Their inodes; what is not in memory is being read, all of it."""
        bits, number = np.empty(BLOCK_BYTES, dtype=np.uint8), ACTIVE_MAP_INODE // (BLOCK_BYTES // INODE.size)
        return _all_here([
            partial(read_row, self._core, each.ifile, number, bits, nowait=True)
            for each in snapshots if each.map_inode is None
        ])  # fmt: skip

    def _pointers_are_here(self, maps: Sequence[Inode], index: int) -> bool:
        """Those of the maps to their rows."""
        return _all_here([partial(level_one, self._core, each, index, nowait=True) for each in maps])

    def _row_is_here(self, maps: Sequence[Inode], row: int) -> bool:
        bits = np.empty(BLOCK_BYTES, dtype=np.uint8)
        return _all_here([partial(read_row, self._core, each, row, bits, nowait=True) for each in maps])

    def alone(
        self, snapshot: Snapshot, row: int, theirs: list[Inode], until: Until = at_once
    ) -> Generator[Step, None, Bits]:
        """Blocks of the row that the snapshot's map has and none of the maps `theirs`."""
        bits, mine = np.empty(BLOCK_BYTES, dtype=np.uint8), self.map_of(snapshot)
        yield from until(partial(self._row_is_here, [mine, *theirs[:ROWS_AHEAD]], row))
        read_row(self._core, mine, row, bits)
        other_bits = np.empty(BLOCK_BYTES, dtype=np.uint8)
        for looked, other in enumerate(theirs, 1):
            if looked > ROWS_AHEAD and looked % ROWS_AHEAD == 1:
                yield from until(partial(self._row_is_here, theirs[looked - 1 : looked - 1 + ROWS_AHEAD], row))
            read_row(self._core, other, row, other_bits)
            bits &= ~other_bits
            if not bits.any():
                break
            if looked % LOOKS == 0:
                yield Step.SLICE
        return bits

    # --- what must stay readable -----------------------------------------------------------------------------------

    def prepare_spines(self, until: Until = at_once) -> Generator[Step, None, None]:
        """`needed` has little to do after this."""
        for snapshot in list(self._volume.snapshots_table.deleting.values()):
            if snapshot.id not in self._spines.of:
                yield from until(partial(self._spine_is_here, snapshot))
                self._spines.add(snapshot.id, self.spine(snapshot))
                yield Step.SLICE

    def _spine_is_here(self, snapshot: Snapshot) -> bool:
        return tree_is_here(self._core, snapshot.ifile) and self._maps_are_known([snapshot]) and (
            tree_is_here(self._core, self.map_of(snapshot))
        )

    def needed(self, but: Snapshot | None = None) -> Vbns:
        """The blocks of inode file and active map of every snapshot being deleted, sorted."""
        deleting = self._volume.snapshots_table.deleting
        for number in [number for number in self._spines.of if number not in deleting]:
            self._spines.remove(number)
        for snapshot in deleting.values():
            if snapshot.id not in self._spines.of and snapshot is not but:
                self._spines.add(snapshot.id, self.spine(snapshot))
        if but is not None and but.id in self._spines.of:
            self._spines.remove(but.id)
        return self._spines.vbns

    def spine(self, snapshot: Snapshot) -> Vbns:
        """The blocks of a snapshot's inode file and active map, sorted."""
        return np.sort(np.concatenate([
            tree_vbns(self._core, snapshot.ifile), tree_vbns(self._core, self.map_of(snapshot)),
        ]))  # fmt: skip

    def own(self) -> Vbns:
        """The volume's own blocks, sorted."""
        key = self._core.allocator.own_changes, self._core.allocator.blocks
        if self._own[0] != key:
            self._own = key, np.sort(self._volume.own_vbns())
        return self._own[1]

    # --- accounts --------------------------------------------------------------------------------------------------

    def only_here(self, snapshots: Sequence[Snapshot]) -> Generator[Step, None, int]:
        """How many blocks would be free without all of these."""
        allocator = self._core.allocator
        allocator.apply_frees()
        total = 0
        for number, snapshot in enumerate(snapshots):
            # What several of them hold is counted with the last one.
            for found in self.rows(snapshot, snapshots[:number]):
                if not isinstance(found, Step):
                    row, theirs = found
                    bits = (yield from self.alone(snapshot, row, theirs)) & ~allocator.row(allocator.active, row)
                    total += int(np.bitwise_count(bits).sum(dtype=np.int64))
                yield Step.SLICE
        return total


def _all_here(looks: Sequence[Callable[[], object]]) -> bool:
    """All of them are asked; what cannot be read is met by whoever needs it."""
    try:
        answers = [look() for look in looks]
    except (CorruptVolume, OSError):
        return True
    return all(answer is not None and answer is not False for answer in answers)


def finish(work: Generator[Step, None, T]) -> T:
    """All of it, on the spot."""
    while True:
        try:
            next(work)
        except StopIteration as ended:
            found: T = ended.value
            return found
