"""Reference counts: how often the active file system names a block beyond the first time.

A block's count is the number of pointers to it in all trees of the active file system, less one.  Most blocks have
one pointer, so the file (inode 3) is sparse: a row, one block of it, has the counts of 2048 blocks, and a row of
zeros is a HOLE.  A volume that never shared anything has no such file, and pays nothing for it.

Rules:

- A pointer that goes is put into `Allocator.freed` like any other.  `drop` takes it off the count when the frees are
  applied, and only a block whose last pointer has gone loses its bit.  Until then the count has it: count = pointers
  + frees not applied - 1.  So it does not matter whether a block is shared once more before or after.
- A block that only a snapshot holds has no pointer: its bit is not set, and sharing it sets the bit (`add`).
- Rows are read when they are needed and kept for a while; a changed one is in memory until its consistency point is
  durable.  Which rows there are is always known, and so are the pointer blocks above them.
- Room for all rows of the volume is kept back once the file exists (FileSystem.set_reserve): counting never fails.
- A pointer block that has several pointers is never changed in place, as none is.  Its children have one pointer, it.
  Who changes something below it gets a copy of it (`part`): then each child has one more.
- A count that is full is never lowered again: only copies of pointer blocks fill one, and by how much nobody knows.
- A row that cannot be read counts as too many: none of its blocks is freed or shared again until a repair has counted
  anew.  Space is lost by that, never data.  If one of its counts has to change, all become full, on the disk too.
- `since` is the generation up to which a pointer's birth does not tell that its block is one LUN's alone: it may have
  been shared through a snapshot (wafl.reserve).  What is shared by a LUN's own pointers gets birth 0 instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, KeysView
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from wafl.bits import Vbns, are_set
from wafl.buffers import Buffer, Core
from wafl.errors import CorruptVolume, DamagedRecord, VolumeFailed
from wafl.format import (
    BLOCK_BYTES,
    COUNTS,
    FIRST_DATA_VBN,
    HOLE,
    MAX_COUNT,
    POINTERS,
    REFERENCE_INODE,
    InodeType,
    height_for,
)
from wafl.inode import Inode, grow_height, node_for_writing, tree_blocks
from wafl.maps import RowImage, read_row
from wafl.tree import level_one

if TYPE_CHECKING:
    from wafl.filesystem import FileSystem

Row = npt.NDArray[np.uint16]

ROWS_KEPT = 4096
"""Rows kept in memory that have not changed: 16 MiB."""
COUNT_SHIFT = COUNTS.bit_length() - 1
SLOT_MASK = np.uint64(COUNTS - 1)
COUNTED, LOST = 1, 2
"""What is known of a row: it has counts; it cannot be read."""


class References:
    """The counts of a mounted volume."""

    def __init__(self, core: Core, files: FileSystem) -> None:
        self._core = core
        self._files = files
        self.inode: Inode | None = None
        self._flags = np.zeros(0, np.uint8)
        """One a row: 0, COUNTED or LOST."""
        self._rows: dict[int, Row] = {}
        """In memory, those used last at the end."""
        self._dirty: dict[int, int] = {}
        """Rows changed since the last freeze, with their sums before."""
        self._written: dict[int, int] = {}
        """Row -> the consistency point that it was last frozen in, while that may not be durable."""
        self._booked = 0
        """What was added and dropped in rows since the last freeze."""
        self.unfreed = 0
        """Pointers that have gone since the mount and were not counted off, less those that came and were not counted:
        where rows cannot be read, or counts are full."""
        self.shares = 0
        """How often blocks have been shared since the mount."""
        self.announce: Callable[[], None] = lambda: None
        """Set by the volume: makes durable that there may be counts, before there are any.  Raises OSError."""

    # --- making, mounting, growing ---------------------------------------------------------------------------------

    def open(self) -> None:
        """At mount.  Raises CorruptVolume, DamagedRecord, OSError."""
        inode = self._files.inodes.get(REFERENCE_INODE)
        if inode is None:
            return
        if inode.type is not InodeType.REFERENCE_COUNTS:
            raise DamagedRecord(f"inode {REFERENCE_INODE} is not of the type REFERENCE_COUNTS")
        if inode.size_bytes != self.rows * BLOCK_BYTES:
            raise DamagedRecord("the reference counts are not as many as the volume has blocks")
        self._take(inode)
        for index in range(-(-self.rows // POINTERS)):
            pointers = level_one(self._core, inode, index)
            assert pointers is not None
            here = self._flags[index * POINTERS : (index + 1) * POINTERS]
            here[:] = (pointers.vector() >= FIRST_DATA_VBN)[: len(here)]

    def rebuild(self, blocks: Vbns, counts: npt.NDArray[np.int64]) -> int:
        """Repair: these counts, and none of what the file has.  The number of rows to be written."""
        inode = self._files.inodes[REFERENCE_INODE]
        inode.type = InodeType.REFERENCE_COUNTS
        inode.size_bytes, inode.height = self.rows * BLOCK_BYTES, height_for(self.rows)
        inode.vbns[0], inode.crcs[0], inode.births[0] = HOLE, 0, 0
        inode.private_blocks = 0
        self._take(inode)
        at = 0
        for row, here in by_row(blocks):
            found = np.zeros(COUNTS, "<u2")
            self._changing(row, found)
            found[(here & SLOT_MASK).astype(np.intp)] = counts[at : at + len(here)]
            at += len(here)
        self._book(int(counts.sum()))
        inode.touch(self._core)
        return len(self._dirty)

    def make(self) -> None:
        """The file, empty, if there is none.  The caller has made sure of the room (`blocks_to_make`).
        Raises OSError, with nothing changed."""
        if self.inode is None:
            if not self._core.read_only:
                self.announce()
            inode = Inode(REFERENCE_INODE, InodeType.REFERENCE_COUNTS, 1, self.rows * BLOCK_BYTES)
            self._files.inodes[REFERENCE_INODE] = inode
            inode.touch(self._core)
            self._take(inode)
            self._files.set_reserve()

    def _take(self, inode: Inode) -> None:
        self.inode = inode
        inode.pinned = True
        self._flags = np.zeros(self.rows, np.uint8)
        self._core.allocator.last_pointers = self.drop
        self._core.allocator.counts_ready = self.ready
        self._core.part = self.part

    def grow(self) -> None:
        """The volume has more blocks."""
        if self.inode is not None:
            more = np.zeros(self.rows - len(self._flags), np.uint8)
            self._flags = np.concatenate([self._flags, more])
            grow_height(self._core, self.inode, height_for(self.rows))
            self.inode.size_bytes = self.rows * BLOCK_BYTES

    # --- figures ---------------------------------------------------------------------------------------------------

    @property
    def rows(self) -> int:
        """That the whole volume asks for."""
        return -(-self._core.allocator.blocks // COUNTS)

    @property
    def total(self) -> int:
        """The sum of all counts: blocks that sharing saves."""
        return self.inode.private_blocks if self.inode is not None else 0

    @property
    def since(self) -> int:
        """Blocks born up to this generation may be shared, whatever their pointers' births say."""
        return self.inode.private_since if self.inode is not None else 0

    def shared_through(self, generation: int) -> None:
        """Blocks of the snapshot made in `generation` are being shared."""
        assert self.inode is not None
        if self.inode.private_since < generation:
            self.inode.private_since = generation
            self.inode.touch(self._core)

    def blocks_to_make(self) -> int:
        """What has to be free, beside all that is kept back, for the file to be made: by so much more is kept then."""
        return 4 * tree_blocks(self.rows) if self.inode is None else 0

    def room(self) -> int:
        """What a consistency point may need for the counts: every row anew, and once more what the file may still
        grow by."""
        if self.inode is None:
            return 0
        return 2 * tree_blocks(self.rows) - (int(np.count_nonzero(self._flags)) - len(self._dirty))

    def shared_room(self) -> int:
        """How much of the file a snapshot may keep when it is written anew."""
        if self.inode is None:
            return 0
        return int(np.count_nonzero(self._flags)) + tree_blocks(self.rows) - self.rows

    def shared_room_after_snapshot(self) -> int:
        """The same of one that is to be made."""
        return tree_blocks(self.rows) if self.inode is not None else 0

    # --- rows ------------------------------------------------------------------------------------------------------

    def _row(self, row: int) -> Row | None:
        """The counts of a row; None if they cannot be read."""
        found = self._rows.pop(row, None)
        if found is None:
            if self._flags[row] == LOST:
                return None
            found = np.zeros(COUNTS, "<u2")
            if self._flags[row]:
                assert self.inode is not None
                try:
                    read_row(self._core, self.inode, row, found.view(np.uint8))
                except (CorruptVolume, OSError):
                    self._flags[row] = LOST
                    return None
            self._evict()
        self._rows[row] = found
        return found

    def ready(self, vbns: Vbns) -> npt.NDArray[np.bool_]:
        """Of which of these blocks the counts are in memory, or need not be; the disk begins to read the others."""
        if self.inode is None:
            return np.ones(len(vbns), np.bool_)
        rows = (vbns >> COUNT_SHIFT).astype(np.intp)
        counted = np.unique(rows[self._flags[rows] == COUNTED])
        missing = [row for row in counted.tolist() if row not in self._rows and not self._load_now(row)]
        return ~np.isin(rows, missing)

    def _load_now(self, row: int) -> bool:
        """Take a row that is in memory, if it is; what cannot be read is met by whoever needs it."""
        assert self.inode is not None
        found = np.zeros(COUNTS, "<u2")
        try:
            if not read_row(self._core, self.inode, row, found.view(np.uint8), nowait=True):
                return False
        except (CorruptVolume, OSError):
            return True
        self._evict()
        self._rows[row] = found
        return True

    def _evict(self) -> None:
        """Rows that are as on the disk go, those used longest ago first; not all that have changed are looked at."""
        kept = max(min(ROWS_KEPT, self._core.cache_limit), len(self._dirty))
        for _ in range(min(len(self._rows) - kept + 1, 64)):
            row = next(iter(self._rows))
            found = self._rows.pop(row)
            if row in self._dirty or self._written.get(row, 0) > self._core.durable:
                self._rows[row] = found
            else:
                self._written.pop(row, None)

    def _changing(self, row: int, counts: Row) -> None:
        if row not in self._dirty:
            self._dirty[row] = int(counts.sum(dtype=np.int64))
        self._flags[row] = COUNTED
        self._rows[row] = counts

    # --- counting --------------------------------------------------------------------------------------------------

    def drop(self, vbns: Vbns) -> Vbns:
        """One pointer to each of these (several to one: several times) has gone.  Those whose last one it was."""
        counted = self._flags[(vbns >> COUNT_SHIFT).astype(np.intp)] != 0
        if not counted.any():
            return vbns
        gone = [vbns[~counted]]
        blocks, times = np.unique(vbns[counted], return_counts=True)
        at = 0
        for row, here in by_row(blocks):
            gone.append(self._drop_in(row, here, times[at : at + len(here)]))
            at += len(here)
        return np.concatenate(gone)

    def _drop_in(self, row: int, blocks: Vbns, times: npt.NDArray[np.intp]) -> Vbns:
        counts = self._row(row)
        if counts is None:
            self._fill(row)
            self.unfreed += int(times.sum())
            return blocks[:0]
        slots = (blocks & SLOT_MASK).astype(np.intp)
        have = counts[slots].astype(np.int64)
        full = have == MAX_COUNT
        self.unfreed += int(times[full].sum())
        times = np.where(full, 0, times)
        taken = np.minimum(have, times)
        if taken.any():
            self._changing(row, counts)
            counts[slots] = have - taken
            self._book(-int(taken.sum()))
        # One that is freed more often than it has pointers stays in as often: the audit will see it.
        return np.repeat(blocks, times - taken)

    def _book(self, change: int) -> None:
        assert self.inode is not None
        self._booked += change
        self.inode.private_blocks += change
        self.inode.touch(self._core)

    def grant(self, vbns: Vbns) -> Grant:
        """How many of these, from the front, can have one more pointer each (several to one: several times)."""
        blocks, first, times = np.unique(vbns, return_index=True, return_counts=True)
        rows: dict[int, Row] = {}
        most = len(vbns)
        # Most have no counts in their rows, and get one pointer.
        asked = np.flatnonzero((self._flags[(blocks >> COUNT_SHIFT).astype(np.intp)] != 0) | (times >= MAX_COUNT))
        at = 0
        for row, here in by_row(blocks[asked]):
            which = asked[at : at + len(here)]
            counts = self._row(row)
            if counts is None:
                full = np.ones(len(here), np.bool_)
            else:
                rows[row] = counts
                full = counts[(here & SLOT_MASK).astype(np.intp)] + times[which] >= MAX_COUNT
            if full.any():
                most = min(most, int(first[which][full].min()))
            at += len(here)
        if most < len(vbns):
            blocks, times = np.unique(vbns[:most], return_counts=True)
        return Grant(self, most, blocks, times, rows)

    def rows_for(self, vbns: Vbns) -> int:
        """Rows read or changed for one more pointer to each."""
        rows = (vbns >> COUNT_SHIFT).astype(np.intp)
        return len(np.unique(rows[self._flags[rows].astype(np.bool_) | are_set(self._core.allocator.active, vbns)]))

    def add(self, blocks: Vbns, times: npt.NDArray[np.intp], rows: dict[int, Row]) -> None:
        """So many more pointers to each of these blocks (`Grant.use`)."""
        allocator = self._core.allocator
        active = are_set(allocator.active, blocks)
        allocator.activate(blocks[~active])
        more = times - ~active
        blocks, more = blocks[more > 0], more[more > 0]
        at = 0
        for row, here in by_row(blocks):
            extra = more[at : at + len(here)]
            counts = rows[row] if row in rows else self._row(row)
            assert counts is not None
            self._changing(row, counts)
            counts[(here & SLOT_MASK).astype(np.intp)] += extra.astype(np.uint16)
            self._book(int(extra.sum()))
            at += len(here)

    # --- pointer blocks --------------------------------------------------------------------------------------------

    def is_shared(self, vbn: int) -> bool:
        """Whether a block has more pointers than one, or may have."""
        row = vbn >> COUNT_SHIFT
        if self.inode is None or not self._flags[row]:
            return False
        counts = self._row(row)
        return counts is None or bool(counts[vbn & (COUNTS - 1)])

    def part(self, buffer: Buffer) -> bool:
        """A pointer block of the active file system is about to get a place of its own.  If others name the old one,
        that stays with all that it names, and each of its children gets one pointer more.  Children of what was
        adopted have been adopted: their births say so from now on."""
        inode, parent, old = buffer.inode(), buffer.parent, buffer.vbn
        if inode.type not in (InodeType.LUN, InodeType.ZOMBIE):
            return False
        adopted, shared = not parent.births[buffer.slot], self.is_shared(old)
        if not (adopted or shared):
            return False
        core, vbns = self._core, buffer.vector()
        children = vbns[vbns >= FIRST_DATA_VBN]
        if adopted:
            np.asarray(buffer.births)[:] = 0
        if shared:
            self.let_go(old)
            self._add_all(children)
        if buffer.level > 1:
            core.tree_blocks += shared * len(children)
        elif adopted:
            inode.blocks += len(children)
            core.uncounted_data -= 0 if shared else len(children)
        else:
            core.uncounted_data += len(children)
        return shared

    def let_go(self, vbn: int) -> None:
        """One pointer to a shared pointer block goes, and at once: whoever asks next must not count it."""
        counts = self._row(vbn >> COUNT_SHIFT)
        if counts is None:
            self._fill(vbn >> COUNT_SHIFT)
        if counts is None or counts[vbn & (COUNTS - 1)] == MAX_COUNT:
            self.unfreed += 1
            return
        self._changing(vbn >> COUNT_SHIFT, counts)
        counts[vbn & (COUNTS - 1)] -= 1
        self._book(-1)

    def _add_all(self, vbns: Vbns) -> None:
        """One more pointer to each of these, which have one: a count that is full stays so."""
        blocks, times = np.unique(vbns, return_counts=True)
        at = 0
        for row, here in by_row(blocks):
            more, added = times[at : at + len(here)], 0
            counts = self._row(row)
            if counts is None:
                self._fill(row)
            else:
                self._changing(row, counts)
                slots = (here & SLOT_MASK).astype(np.intp)
                have = counts[slots].astype(np.int64)
                counts[slots] = right = np.minimum(have + more, MAX_COUNT)
                added = int((right - have).sum())
                self._book(added)
            self.unfreed -= int(more.sum()) - added
            at += len(here)

    def _fill(self, row: int) -> None:
        """Counts that had to change and cannot be read are full from now on, until a repair: the disk may read them
        again one day.  Then they would be too low, or stand for a block that nothing names and nobody must adopt.
        Blocks that are not in use have no pointer: they are counted when they are used again."""
        if self._core.read_only:
            return
        allocator, first = self._core.allocator, row << COUNT_SHIFT
        bits = np.unpackbits(allocator.active[first // 8 : (first + COUNTS) // 8], bitorder="little")
        bits[max(allocator.next - first, 0) : max(allocator.end - first, 0)] = 0  # the data run is marked in advance
        self._changing(row, bits * np.uint16(MAX_COUNT))

    # --- in a consistency point ------------------------------------------------------------------------------------

    @property
    def dirty(self) -> KeysView[int]:
        """Rows that have changed."""
        return self._dirty.keys()

    def assign(self, rows: set[int]) -> None:
        """Give each row a new place in this generation, or none if it has become zero."""
        core = self._core
        for row in rows:
            assert self.inode is not None
            leaf = node_for_writing(core, self.inode, 1, row >> 8)
            slot = row & (POINTERS - 1)
            old = leaf.vbns[slot]
            if self._rows[row].any():
                leaf.vbns[slot], leaf.births[slot] = core.allocator.take_pointer_block(), core.generation
                core.tree_blocks += 1
            else:
                leaf.vbns[slot], leaf.crcs[slot], leaf.births[slot] = HOLE, 0, 0
            if old >= FIRST_DATA_VBN:
                core.allocator.freed.append(old)
                core.tree_blocks -= 1

    def check(self) -> None:
        """For the audit: the rows have changed by what was booked.  Raises VolumeFailed."""
        now = sum(int(self._rows[row].sum(dtype=np.int64)) for row in self._dirty)
        if now - sum(self._dirty.values()) != self._booked:
            raise VolumeFailed("audit: the reference counts are not what was added and dropped; run the checker")

    def clean(self) -> list[RowImage]:
        """The freeze: copies of the rows that have changed, with their new places; now no longer dirty."""
        images = []
        for row in self._dirty:
            assert self.inode is not None
            leaf = node_for_writing(self._core, self.inode, 1, row >> 8)
            slot = row & (POINTERS - 1)
            vbn = leaf.vbns[slot]
            if vbn >= FIRST_DATA_VBN:
                images.append(RowImage(leaf, slot, vbn, self._rows[row].tobytes()))
                self._written[row] = self._core.generation
            else:
                del self._rows[row]
                self._written.pop(row, None)
                self._flags[row] = 0
        self._dirty.clear()
        self._booked = 0
        return images

    def settle(self) -> None:
        """Before the inode is packed: where nothing is shared any more, births tell everything again."""
        if self.inode is not None and self.inode.private_since and not self._flags.any():
            self.inode.private_since = 0
            self.inode.touch(self._core)


class Grant:
    """Blocks that may be shared.  Good until something else happens to the volume."""

    def __init__(
        self, references: References, most: int, blocks: Vbns, times: npt.NDArray[np.intp], rows: dict[int, Row]
    ) -> None:
        self._references = references
        self._what = blocks, times, rows
        self.most = most
        """Of those asked for, from the front."""

    def use(self) -> None:
        """They are named once more each."""
        self._references.shares += 1
        self._references.add(*self._what)


def by_row(vbns: Vbns) -> Iterator[tuple[int, Vbns]]:
    """Sorted blocks, row by row."""
    if len(vbns):
        rows = vbns >> COUNT_SHIFT
        edges = [0, *(np.flatnonzero(np.diff(rows)) + 1).tolist(), len(vbns)]
        for low, high in pairwise(edges):
            yield int(rows[low]), vbns[low:high]
