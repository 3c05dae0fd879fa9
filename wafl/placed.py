"""Long writes whose data goes to the volume as it arrives, before all of it is there.

Gathering a MiB in memory first costs its copy, and by the time it is written no cache has it any more.  So the write
gets its blocks in advance (`Allocator.promise`): no tree names them, nobody else is given them, and a crash forgets
them.  What arrives is written there and its checksums kept; when the last of it is there, `install` points the LUN at
all of it, as if it had been written at that moment, and the log gets its records then.  Until then the write has not
happened: readers find what was there before, and `drop` gives the blocks back.
"""

from __future__ import annotations

import numpy as np

from wafl.checksums import first_wrong, of_blocks
from wafl.device import Bytes
from wafl.errors import CorruptVolume, InvalidSize, NoSuchLun
from wafl.format import BLOCK_SHIFT, POINTERS
from wafl.lun import Lun
from wafl.views import BLOCK_MASK, SLOT_MASK

PLACED_SHARE = 8
"""All that is placed and not installed is at most an eighth of the room: how long it takes is for the peer to say."""


def place_write(lun: Lun, offset: int, length: int) -> PlacedWrite | None:
    """A write of `length` bytes at `offset` whose data comes in pieces; None where it has to be written at once: parts
    of blocks, little room, a volume that takes no changes."""
    core = lun.core
    allocator, blocks = core.allocator, length >> BLOCK_SHIFT
    if (offset | length) & BLOCK_MASK or not blocks or offset + length > lun.size_bytes:
        return None
    if core.failure is not None or core.read_only:
        return None
    if (allocator.promised + blocks) * PLACED_SHARE > allocator.free - allocator.floor_guest:
        return None
    places = allocator.promise(blocks)
    if places is None:
        return None
    for start, end in places:
        for hint in core.unprepared(start, end):
            core.device.preallocate(*hint)
    return PlacedWrite(lun, offset, places)


class PlacedWrite:
    """One write on its way.  Ends with `install`, `drop`, or both in this order."""

    def __init__(self, lun: Lun, offset: int, places: list[tuple[int, int]]) -> None:
        self.lun = lun
        self.offset = offset
        self.taken = 0
        """Bytes that have been added."""
        self._fbn = offset >> BLOCK_SHIFT
        self._places = places
        self._blocks = sum(end - start for start, end in places)
        self._crcs: list[int] = []
        self._installed = 0

    def add(self, data: Bytes) -> None:
        """The bytes that come next, whole blocks.  In the volume on return.  Raises OSError."""
        view = memoryview(data)
        assert not len(view) & BLOCK_MASK
        assert self.taken + len(view) <= self._blocks << BLOCK_SHIFT
        first, at = self.taken >> BLOCK_SHIFT, 0
        for vbn, blocks in self._stretches(first, first + (len(view) >> BLOCK_SHIFT)):
            piece = view[at : at + (blocks << BLOCK_SHIFT)]
            self.lun.core.device.pwrite(vbn << BLOCK_SHIFT, (piece,))
            self._crcs += of_blocks(piece)
            at += len(piece)
        self.taken += len(view)

    def read_back(self, view: memoryview) -> None:
        """What was added, from the first byte on.  Raises OSError, CorruptVolume."""
        at = 0
        for vbn, blocks in self._stretches(0, len(view) >> BLOCK_SHIFT):
            piece = view[at : at + (blocks << BLOCK_SHIFT)]
            self.lun.core.device.pread(vbn << BLOCK_SHIFT, piece)
            first = at >> BLOCK_SHIFT
            expected = np.array(self._crcs[first : first + blocks], np.uint32)
            if (wrong := first_wrong(piece, expected)) is not None:
                index, found = wrong
                raise CorruptVolume(vbn + index, int(expected[index]), found, f"a write of {self.lun.name}")
            at += len(piece)

    def install(self) -> None:
        """All has been added: it becomes the LUN's.  Raises NoSpace, InvalidSize, NoSuchLun, ReadOnlyVolume,
        VolumeFailed, CorruptVolume, OSError; then a part of it may be the LUN's, as after a write that failed."""
        lun = self.lun
        core = lun.core
        assert self.taken == self._blocks << BLOCK_SHIFT
        core.check_changeable()
        if lun.destroyed:
            raise NoSuchLun(f"LUN {lun.name} has been destroyed")
        if (self._fbn + self._blocks) << BLOCK_SHIFT > lun.size_bytes:
            raise InvalidSize(f"{lun.name} has become smaller than a write that had begun")
        core.ensure_for(self._blocks // POINTERS + 2 + 2 * lun.inode.height, reserved=lun.reserved)
        for vbn, blocks in self._stretches(0, self._blocks):
            self._install(vbn, blocks)

    def _install(self, vbn: int, blocks: int) -> None:
        lun = self.lun
        core, fbn, first = lun.core, self._fbn + self._installed, self._installed
        lun.leaf(fbn >> 8)  # what can fail comes first
        core.allocator.fulfil(vbn, vbn + blocks)
        self._installed += blocks
        crcs = self._crcs[first : first + blocks]
        lun.point_at(fbn, vbn, crcs)
        if core.log is not None:
            core.log.write(lun.slot, fbn, vbn, crcs)

    def drop(self) -> None:
        """What is not the LUN's is nobody's again.  Idempotent."""
        left, self._installed = self._stretches(self._installed, self._blocks), self._blocks
        for vbn, blocks in left:
            self.lun.core.allocator.break_promise(vbn, vbn + blocks)

    def _stretches(self, first: int, last: int) -> list[tuple[int, int]]:
        """(vbn, blocks) of each stretch of the blocks first to last - 1 that is one on the volume and within one
        level-1 block of the LUN."""
        found = []
        base = 0
        for start, end in self._places:
            at, stop = max(first, base), min(last, base + end - start)
            while at < stop:
                blocks = min(stop - at, POINTERS - (self._fbn + at & SLOT_MASK))
                found.append((start + at - base, blocks))
                at += blocks
            base += end - start
        return found
