"""The audit of a consistency point: before anything of it is written, the maps are compared with the books.

Three accounts of the same blocks are kept in places that share no code:

- the bits of the maps, counted again at each freeze in the rows that have changed;
- the allocator's running counters, which change where blocks are taken and frees are applied;
- the trees: data blocks as the inodes count them, pointer blocks and map rows as buffers come and go; less what the
  reference counts say is named again.

What is taken and never linked, linked and never taken, freed twice, or dropped from a tree and never freed makes two
of them differ; so does a bit that changes in memory by itself.  Then the consistency point fails and the last one
stays: better no new one than one whose maps give out a block twice.

Cost: a row is 4 KiB, and only rows that have changed are counted.  Whoever replaces maps or trees as a whole calls
`rebase` when all three agree again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from wafl.bits import Bits
from wafl.errors import VolumeFailed
from wafl.format import BLOCK_BYTES

if TYPE_CHECKING:
    from wafl.volume import Volume

PIECE_ROWS = 1024
"""Rows counted at a time: 4 MiB of each map."""

Counts = npt.NDArray[np.int32]


class Audit:
    """The books of one mounted volume."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self.rebase()

    def rebase(self) -> None:
        """Take what is there as the truth to go on from: at mount, and when maps or trees were replaced."""
        allocator = self._volume.core.allocator
        every = np.arange(allocator.chunks)
        self._active, self._summary = _row_counts(allocator.active, every), _row_counts(allocator.summary, every)
        self._offsets = self._balance()

    def check(self) -> None:
        """At the freeze, with every block in its place and the rows not yet clean.  Raises VolumeFailed."""
        allocator = self._volume.core.allocator
        for name, bits, counts, rows, counter in (
            ("active map", allocator.active, self._active, allocator.dirty_active, allocator.active_count),
            ("summary", allocator.summary, self._summary, allocator.dirty_summary, allocator.summary_count),
        ):
            self._check_map(name, bits, counts, rows, counter)
        self._volume.files.references.check()
        for name, was, now in zip(("active file system", "volume's own files"), self._offsets, self._balance(),
                                  strict=True):  # fmt: skip
            if was != now:
                raise _failed(f"{now - was:+} blocks are in use beside those that the trees of the {name} hold")

    def _check_map(self, name: str, bits: Bits, counts: Counts, dirty: set[int], counter: int) -> None:
        allocator = self._volume.core.allocator
        rows = np.fromiter(sorted(dirty), np.intp, len(dirty))
        if len(counts) != allocator.chunks:
            raise _failed(f"the {name} has {allocator.chunks} rows and was counted with {len(counts)}")
        busy, shape = allocator.busy.reshape(-1, BLOCK_BYTES), (-1, BLOCK_BYTES)
        for first in range(0, len(rows), PIECE_ROWS):
            piece = rows[first : first + PIECE_ROWS]
            stray = (bits.reshape(shape)[piece] & ~busy[piece]).any(axis=1)
            if stray.any():
                raise _failed(f"row {piece[stray][0]} of the {name} has blocks that could be given out again")
            counts[piece] = _row_counts(bits, piece)
        total = int(counts.sum(dtype=np.int64))
        if total != counter:
            raise _failed(f"the {name} has {total} blocks, and {counter} by what was taken and freed")

    def _balance(self) -> tuple[int, int]:
        """What the counters have beside the trees: constant, whatever is done.  (active file system, volume)"""
        core, files = self._volume.core, self._volume.files
        allocator = core.allocator
        in_use = allocator.active_count - (allocator.end - allocator.next) - len(allocator.freed)
        in_use += files.references.total - files.references.unfreed  # what the trees name once more, or no longer
        data = sum(inode.blocks for inode in files.inodes.values()) + core.uncounted_data
        own = allocator.summary_count - allocator.shared_count
        return in_use - data - core.tree_blocks, own - core.own_blocks


def _row_counts(bits: Bits, rows: npt.NDArray[np.intp]) -> Counts:
    """Set bits in each of these rows."""
    found = np.empty(len(rows), np.int32)
    shaped = bits.reshape(-1, BLOCK_BYTES)
    for first in range(0, len(rows), PIECE_ROWS):
        piece = rows[first : first + PIECE_ROWS]
        found[first : first + PIECE_ROWS] = np.bitwise_count(shaped[piece].view(np.uint64)).sum(axis=1, dtype=np.int32)
    return found


def _failed(what: str) -> VolumeFailed:
    return VolumeFailed(f"audit: {what}; mount the volume again and run the checker")
