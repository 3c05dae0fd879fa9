"""Counting a LUN's private blocks anew, in slices, while hosts go on writing.

A block is *private* if no snapshot can hold it: it was written after the newest one was made, and its pointer's birth
says so (docs/format.md).  The write path keeps the number up to date by looking at the birth of each pointer that it
replaces (`Inode.private_blocks`).  A recount is due when the newest snapshot has gone, when an older version of this
program wrote the inode, and after an UNMAP that cut off subtrees without looking into them.  Until it has ended the
number is too low, never too high.

One pass goes from the first level-1 block to the last.  What lies behind it is in `found`, and whoever changes a
pointer there says so (`replaced`, `lost`); what lies before it will be counted when it gets there.  So the sum is exact
at the end, however much was written meanwhile.  Subtrees that are older than the newest snapshot are not read.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from wafl.buffers import Core
from wafl.inode import Inode
from wafl.tree import young_leaf

SLICE_LEAVES = 16
"""Level-1 blocks read between two yields."""

Births = npt.NDArray[np.uint32]


class Recount:
    """One pass over one LUN.  `Inode.recount` points to it until it has ended or is given up."""

    def __init__(self, inode: Inode, since: int) -> None:
        self.inode = inode
        self.since = since
        """Blocks born later are private."""
        self.at = 0
        """Level-1 index that it has come to."""
        self.found = 0
        inode.recount = self

    def replaced(self, index: int, births: Births) -> None:
        """Pointers of level-1 `index` with these births (0: a mark) now name new blocks."""
        if index < self.at:
            self.found += int(np.count_nonzero(births <= self.since))

    def lost(self, index: int, births: Births) -> None:
        """Blocks of level-1 `index` with these births are no longer the LUN's."""
        if index < self.at:
            self.found -= int(np.count_nonzero(births > self.since))

    def slice(self, core: Core) -> bool:
        """Go on a little; False at the end of the pass.  Raises CorruptVolume, OSError."""
        inode = self.inode
        for _ in range(SLICE_LEAVES):
            leaf = young_leaf(core, inode, self.at, self.since)
            if leaf is None:
                inode.set_private(self.found, self.since)
                inode.touch(core)
                return False
            index, births = leaf
            self.found += int(np.count_nonzero(births > self.since))
            self.at = index + 1
        return True
