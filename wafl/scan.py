"""Scanning a LUN for what it still misses of its backing, one comparison of two level-1 buffers at a time.

spec, Implementation Details: where the active level-1 entry is 0 and the backing's is not, something is missing.  A LUN
that misses nothing in some range never misses anything there again: below the limit nothing goes back to HOLE.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from wafl.buffers import Buffer, Vector
from wafl.errors import CorruptVolume, WaflError
from wafl.fill import runs_of
from wafl.format import BLOCK_SHIFT, FIRST_DATA_VBN, HOLE, LEVEL_ONE_BYTES, POINTERS, ZERO
from wafl.tree import absent_leaves, leaves_at_most, path_to, span_state
from wafl.views import View

if TYPE_CHECKING:
    from wafl.lun import Lun

SCAN_STEP = 64
"""Level-1 buffers that one `next_missing` compares before it lets others run."""
COMPARISON = 16
"""What a comparison counts as, beside a look at the upper levels of the trees."""

EXTENTS_AHEAD = 16

POINTERS_AHEAD = 256
"""Level-1 blocks that are read ahead of a scan, half of them at a time: twice what `adopt` takes up in a call."""

RECOUNT_LOOKS = 1 << 16
"""Level-1 buffers that a recount compares at most: 64 GiB of what is missing."""

Slots = npt.NDArray[np.intp]


class Scan(View):
    """The reading half of what a clone job asks of a LUN."""

    _complete = 0
    """All level-1 indexes below this one are known to miss nothing (they never miss anything again)."""
    _asked = 0, 0
    """The level-1 indexes whose pointers are read ahead: from, to."""
    _fill_generation = 0
    missing = 0

    @property
    def fills_durable(self) -> bool:
        """Whether a durable consistency point covers the last fill, whichever run made it, and the detach."""
        return self._fill_generation <= self.core.durable

    @property
    def level_one_count(self) -> int:
        """Level-1 indexes that a scan has to look at."""
        end = self.backing.limit_bytes if self.backing else self.size_bytes
        return -(-end // LEVEL_ONE_BYTES)

    def missing_blocks(self) -> int:
        """Blocks still to fill: exact from the start, never too low, too high by what guests covered unseen."""
        return self.missing if self.backing is not None else 0

    def load_level_one_buf(self, index: int) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint32]]:
        """(vbns, crcs) of the active side's own level-1 buffer: what it really has, holes included."""
        found = self.own_map(index)
        assert found is not None
        return found.vector(), found.crc_vector()

    def compute_level_one_buf(self, index: int) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint32]]:
        """(vbns, crcs) of the backing's composed level-1 buffer (spec: vdisk_backup_compute_level_one_buf).
        Entries at and beyond the limit do not count."""
        found = self.below().read_map(index)
        assert found is not None
        return found.vector(), found.crc_vector()

    def backed_blocks(self) -> int:
        """Blocks that the backing has at most, chains and all, as its files count them.  What they adopted is in no
        count: it may be anything.  Raises BackingLost."""
        if self.backing is None:
            return 0
        blocks, most = 0, self.backing.limit_bytes >> BLOCK_SHIFT
        below: View = self
        while below.backing is not None:
            below = below.below()
            blocks += most if below.inode.adopted else below.inode.blocks
        return min(blocks, most)

    def fill_blocks_at_most(self) -> int:
        """Blocks that filling all that is missing takes, pointer blocks included.  Raises CorruptVolume, BackingLost,
        OSError."""
        missing, leaves = self.missing_blocks(), 0
        below: View = self
        while missing and below.backing is not None:
            below = below.below()
            leaves += leaves_at_most(self.core, below.inode)
        leaves = min(leaves, missing, self.level_one_count)
        total, reach = missing, self.level_one_count
        for _ in range(self.inode.height):
            total += min(leaves, reach)
            reach = -(-reach // POINTERS)
        return total

    def next_missing(self, index: int) -> int | None:
        """The next level-1 index from `index` on where something may be missing, or None.  Whole subtrees that
        cannot miss anything are passed over; after SCAN_STEP comparisons, or as much work, the index reached is
        returned unseen.  So is one whose pointers cannot be read: `plan_fill` says why.  Raises BackingLost."""
        if self.backing is None:
            return None
        start, end = index, self.level_one_count
        left = SCAN_STEP * COMPARISON
        with suppress(CorruptVolume, OSError):
            while index < end and left > 0:
                left -= 1
                span = self._plain_span(index)
                if not span:
                    self._read_pointers_ahead(index)
                    left -= COMPARISON - 1
                    if len(missing_slots(self, index)):
                        break
                    span = 1
                index += span
        if start <= self._complete:
            self._complete = max(self._complete, min(index, end))
        return index if index < end else None

    def _read_pointers_ahead(self, index: int) -> None:
        """The disk begins to read the level-1 blocks, of the LUN and of what it reads through, that a scan comes to
        next: one by one, each would be waited for."""
        low, high = self._asked
        if low <= index <= high - POINTERS_AHEAD // 2:
            return
        first, end = high if low <= index <= high else index, index + POINTERS_AHEAD
        self._asked = index, end
        with suppress(WaflError, OSError):  # whoever comes to it finds what is wrong
            view: View = self
            while True:
                self._begin_reading(absent_leaves(self.core, view.inode, first, end))
                if view.backing is None:
                    break
                view = view.below()

    def _begin_reading(self, vbns: list[int]) -> None:
        """These blocks, ascending."""
        for low, high in runs_of(np.array(vbns, np.uint64)) if vbns else ():
            self.core.device.prefetch(vbns[low] << BLOCK_SHIFT, (high - low) << BLOCK_SHIFT)

    def misses_nothing(self) -> bool:
        """As far as one step of a scan tells that goes on where the last one ended: False may mean, not yet known.
        Raises BackingLost."""
        return self.next_missing(self._complete) is None

    def missing_extents(self, index: int) -> list[tuple[int, int]]:
        """(offset, length) on the device of what level-1 `index` misses, to be read ahead; the first few, and nothing
        that cannot be told.  Raises BackingLost."""
        if self.backing is None or index >= self.level_one_count:
            return []
        with suppress(CorruptVolume, OSError):
            if self._plain_span(index):
                return []
            vbns = self.compute_level_one_buf(index)[0][missing_slots(self, index)]
            runs = list(islice(runs_of(vbns), EXTENTS_AHEAD)) if len(vbns) else []
            return [(int(vbns[low]) << BLOCK_SHIFT, (high - low) << BLOCK_SHIFT) for low, high in runs]
        return []

    def _plain_span(self, index: int) -> int:
        """Level-1 indexes from `index` on that miss nothing, as far as the trees' upper levels tell; 0: compare."""
        if self.inode.adopted and (same := self._same_span(index)):
            return same
        state, level = span_state(self.core, self.inode, index)
        if state >= FIRST_DATA_VBN:
            return 0
        reach = 1 << 8 * (level - 1)
        span = reach - index % reach
        return span if state == ZERO else min(span, self.below().empty_span(index))

    def _same_span(self, index: int) -> int:
        """Level-1 indexes from `index` on that are below one and the same pointer block on both sides, or beside that
        one below others of which the upper levels tell that nothing is missing; 0: compare."""
        below = self.below()
        if below.backing is not None:
            return 0
        levels = min(self.inode.height, below.inode.height)
        own, others = path_to(self.core, self.inode, index, levels), path_to(self.core, below.inode, index, levels)
        for level, (mine, slot), (theirs, other) in zip(range(levels, 0, -1), own, others, strict=False):
            if mine.vbns[slot] == theirs.vbns[other] >= FIRST_DATA_VBN:
                alike = 1
                if isinstance(mine, Buffer) and isinstance(theirs, Buffer):
                    alike = _nothing_missing(mine.vector()[slot:], theirs.vector()[slot:])
                reach = 1 << 8 * (level - 1)
                return alike * reach - index % reach
        return 0


def _nothing_missing(mine: Vector, theirs: Vector) -> int:
    """Of how many slots, from the first, it is plain without looking below."""
    plain = (theirs < FIRST_DATA_VBN) | (mine == theirs) | (mine == ZERO)
    return len(plain) if plain.all() else int(plain.argmin())


def missing_slots(lun: Scan, index: int) -> Slots:
    """Slots of level-1 `index` where the active side is HOLE and the backing, below its limit, is DATA."""
    assert lun.backing is not None
    limit = (lun.backing.limit_bytes >> BLOCK_SHIFT) - (index << 8)
    if limit <= 0:
        return np.empty(0, np.intp)
    own, _ = lun.load_level_one_buf(index)
    holes = own == HOLE
    if not holes.any():
        return np.empty(0, np.intp)
    backing, _ = lun.compute_level_one_buf(index)
    return np.flatnonzero((holes & (backing >= FIRST_DATA_VBN))[:limit])


def recount_missing(lun: Lun, most: int = RECOUNT_LOOKS) -> Generator[None, None, bool]:
    """Count again what a LUN misses, in slices: `missing_blocks` is too high by what guests have covered unseen.
    Returns whether all was counted: `missing_blocks` is then right, but for what guests covered meanwhile; it gives up
    after `most` level-1 buffers in which something is missing, and where pointers cannot be read.  Raises
    BackingLost."""
    inode, backing = lun.inode, lun.backing
    index, count, exact = lun.next_missing(0), 0, True
    for _ in range(most):
        if index is None:
            # What is covered meanwhile may be counted, never the other way round.
            if count < lun.missing:
                lun.missing = count
                lun.files.touch_lun(lun)
            return exact
        try:
            count += len(missing_slots(lun, index))
        except (CorruptVolume, OSError):
            count, exact = count + POINTERS, False
        yield
        if lun.destroyed or lun.inode is not inode or lun.backing != backing:
            return False
        index = lun.next_missing(index + 1)
    return False
