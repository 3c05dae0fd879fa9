"""Fills: copying a backing's blocks into the holes of the active LUN.

spec, Implementation Details: where the active level-1 entry is 0 and the backing's is not, the level-0 buffer is
loaded and marked dirty.  Here that is a plan (made on the volume's thread), a read (any thread) and an install (the
volume's thread again, with a second look at every hole: the guest always wins).

A plan that was given places (`place`) is written by the read already: blocks of its own that no tree names, so nobody
can meet them, and a crash forgets them.  The install then only points at those that are still wanted.  Without places,
where room is short, the data goes through memory, and the install writes it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from wafl.checksums import first_wrong
from wafl.errors import CorruptVolume
from wafl.format import BLOCK_SHIFT, HOLE, LEVEL_ONE_BYTES

if TYPE_CHECKING:
    from wafl.buffers import Vector
    from wafl.device import Bytes
    from wafl.lun import Lun
    from wafl.scan import Slots


class _Scratch(threading.local):
    """What a thread copies through: memory that is used again costs no page faults."""

    def __init__(self) -> None:
        self.view = memoryview(bytearray(LEVEL_ONE_BYTES))


_scratch = _Scratch()


def runs_of(*numbers: Vector | Slots) -> Iterator[tuple[int, int]]:
    """Positions from and to which all of these go up by one: what lies together on the volume, in the LUN, or both."""
    breaks = np.logical_or.reduce([np.diff(each) != 1 for each in numbers])
    return pairwise([0, *(np.flatnonzero(breaks) + 1).tolist(), len(numbers[0])])


class FillPlan:
    """Blocks of one level-1 range to be copied.  `blocks` is their number."""

    def __init__(self, lun: Lun, index: int, slots: Slots) -> None:
        self.lun = lun
        self.index = index
        self.backing = lun.backing
        self.inode = lun.inode
        self.slots = slots
        self.blocks = len(slots)
        vbns, crcs = lun.compute_level_one_buf(index)
        self.vbns: Vector = vbns[slots]
        self.crcs: npt.NDArray[np.uint32] = crcs[slots]
        self.unreadable: int | None = None
        """Position of the block that `read` failed at."""
        self.ahead: list[tuple[int, int]] = []
        """(offset, length) on the device of what `read` is to have read ahead."""
        self.places: Vector | None = None
        """Where each block goes, if that is known before the read."""
        self._unused: npt.NDArray[np.bool_]
        """Of the places, those that nothing names yet."""
        self._unprepared: list[tuple[int, int]] = []
        self._device = lun.core.device
        self._one_writer = lun.core.one_writer
        self._readers = lun.core.allocator.readers
        self._epoch: int | None = self._readers.enter()

    def slot(self, position: int) -> int:
        """In the level-1 buffer."""
        return int(self.slots[position])

    def offset(self, position: int) -> int:
        """In the LUN, in bytes."""
        return (self.index << 8 | self.slot(position)) << BLOCK_SHIFT

    def place(self) -> None:
        """Have the blocks written by the read, if there is room enough."""
        core = self.lun.core
        pieces = core.allocator.promise(self.blocks)
        if pieces is not None:
            self.places = np.concatenate([np.arange(start, end, dtype=np.uint64) for start, end in pieces])
            self._unused = np.ones(self.blocks, np.bool_)
            self._unprepared = [hint for start, end in pieces for hint in core.unprepared(start, end)]

    def read(self) -> bytearray | None:
        """The source blocks, one after the other, verified; None if they are in their places now.  May run in any
        thread.  Raises CorruptVolume, OSError; `unreadable` then says at which block, if it was one of these."""
        data, view = self._memory()
        for offset, length in self.ahead:
            self._device.prefetch(offset, length)
        for low, high in runs_of(self.vbns):
            self._read_run(low, high, view)
        self._verify(view)
        self._write(view)
        return data

    def read_nowait(self) -> tuple[bool, bytearray | None]:
        """Whether it needed no wait for the disk, and what `read` returns; else it is read ahead, and `read` is to be
        called."""
        data, view = self._memory()
        for low, high in runs_of(self.vbns):
            offset, length = int(self.vbns[low]) << BLOCK_SHIFT, (high - low) << BLOCK_SHIFT
            if not self._device.pread_nowait(offset, view[low << BLOCK_SHIFT :][:length]):
                self._device.prefetch(offset, length)
                return False, None
        self._verify(view)
        self._write(view)
        return True, data

    def _memory(self) -> tuple[bytearray | None, memoryview]:
        size = self.blocks << BLOCK_SHIFT
        if self.places is not None:
            return None, _scratch.view[:size]
        data = bytearray(size)
        return data, memoryview(data)

    def _write(self, view: memoryview) -> None:
        if self.places is None:
            return
        for offset, length in self._unprepared:
            self._device.preallocate(offset, length)
        for low, high in runs_of(self.places):
            piece = view[low << BLOCK_SHIFT : high << BLOCK_SHIFT]
            with self._one_writer:
                self._device.pwrite(int(self.places[low]) << BLOCK_SHIFT, (piece,))

    def _verify(self, view: memoryview) -> None:
        wrong = first_wrong(view, self.crcs)
        if wrong is not None:
            self.unreadable, found = wrong
            where = f"backing of LUN {self.lun.name}, byte {self.offset(self.unreadable)}"
            raise CorruptVolume(int(self.vbns[self.unreadable]), int(self.crcs[self.unreadable]), found, where)

    def _read_run(self, low: int, high: int, view: memoryview) -> None:
        try:
            self._device.pread(int(self.vbns[low]) << BLOCK_SHIFT, view[low << BLOCK_SHIFT : high << BLOCK_SHIFT])
        except OSError:
            if high - low == 1:
                self.unreadable = low
                raise
            for position in range(low, high):  # one of them is to blame
                self._read_run(position, position + 1, view)

    def install(self, data: Bytes | None) -> int:
        """Called by `Lun.install_fill`."""
        lun, core = self.lun, self.lun.core
        still = self._still_missing()
        if not len(still):
            return 0
        # A reserved LUN's holes are part of its reserve.
        blocks = len(still) if self.places is None else 0
        core.ensure_for(blocks + 2 * lun.inode.height + 2, reserved=lun.reserved, wait=False)
        lun.leaf(self.index)  # now, so that the data run stays as it is
        if self.places is not None:
            self._point(still, self.places)
        else:
            assert data is not None
            self._install_data(still, memoryview(data))
        return len(still)

    def _still_missing(self) -> Slots:
        """Positions."""
        own, _ = self.lun.load_level_one_buf(self.index)
        return np.flatnonzero(own[self.slots] == HOLE)

    def _point(self, still: Slots, places: Vector) -> None:
        """What was written becomes the LUN's, a stretch of neighbours on both sides at a time."""
        slots, vbns = self.slots[still], places[still]
        for low, high in runs_of(slots, vbns):
            vbn = int(vbns[low])
            self.lun.core.allocator.fulfil(vbn, vbn + high - low)
            self._unused[still[low:high]] = False
            self.lun.install_blocks(self.index, int(slots[low]), vbn, self.crcs[still[low:high]].tolist())

    def _install_data(self, still: Slots, data: memoryview) -> None:
        # Neighbours in the LUN stay neighbours on the volume: one write for each stretch of slots.
        slots = self.slots[still]
        try:
            for low, high in runs_of(slots):
                self._install_stretch(int(slots[low]), int(still[low]), high - low, data)
        finally:
            self.lun.core.allocator.end_exact_run()

    def _install_stretch(self, slot: int, at: int, blocks: int, data: memoryview) -> None:
        lun = self.lun
        allocator = lun.core.allocator
        while blocks:
            if allocator.next == allocator.end:
                lun.core.new_run(blocks if lun.reserved else 0)
            count = min(blocks, allocator.end - allocator.next)
            lun.core.device.pwrite(
                allocator.next << BLOCK_SHIFT, (data[at << BLOCK_SHIFT : (at + count) << BLOCK_SHIFT],)
            )
            lun.install_blocks(self.index, slot, allocator.next, self.crcs[at : at + count].tolist())
            allocator.next += count
            slot, at, blocks = slot + count, at + count, blocks - count

    def release(self) -> None:
        """The reading is over: its blocks may be reused, and places that nothing names.  Idempotent."""
        if self._epoch is None:
            return
        allocator = self.lun.core.allocator
        self._readers.leave(self._epoch)
        self._epoch = None
        allocator.reader_left()
        if self.places is not None:
            unused = self.places[self._unused]
            for low, high in runs_of(unused) if len(unused) else ():
                allocator.break_promise(int(unused[low]), int(unused[high - 1]) + 1)
