"""Fills: copying a backing's blocks into the holes of the active LUN.

spec, Implementation Details: where the active level-1 entry is 0 and the backing's is not, the level-0 buffer is
loaded and marked dirty.  Here that is a plan (made on the volume's thread), a read (any thread) and an install (the
volume's thread again, with a second look at every hole: the guest always wins).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from wafl.checksums import first_wrong
from wafl.errors import CorruptVolume
from wafl.format import BLOCK_BYTES, BLOCK_SHIFT, HOLE

if TYPE_CHECKING:
    from wafl.buffers import Vector
    from wafl.lun import Lun
    from wafl.scan import Slots


def runs_of(vbns: Vector) -> Iterator[tuple[int, int]]:
    """Positions from and to which blocks lie together."""
    return pairwise([0, *(np.flatnonzero(np.diff(vbns) != 1) + 1).tolist(), len(vbns)])


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
        self._device = lun.core.device
        self._readers = lun.core.allocator.readers
        self._epoch: int | None = self._readers.enter()

    def slot(self, position: int) -> int:
        """In the level-1 buffer."""
        return int(self.slots[position])

    def offset(self, position: int) -> int:
        """In the LUN, in bytes."""
        return (self.index << 8 | self.slot(position)) << BLOCK_SHIFT

    def read(self) -> bytearray:
        """The source blocks, one after the other, verified.  May run in any thread.
        Raises CorruptVolume, OSError; `unreadable` then says at which block."""
        data = bytearray(self.blocks * BLOCK_BYTES)
        view = memoryview(data)
        for offset, length in self.ahead:
            self._device.prefetch(offset, length)
        for low, high in self._runs():
            self._read_run(low, high, view)
        self._verify(view)
        return data

    def read_nowait(self) -> bytearray | None:
        """The same, if it needs no wait for the disk; else it is read ahead, and `read` is to be called."""
        data = bytearray(self.blocks * BLOCK_BYTES)
        view = memoryview(data)
        for low, high in self._runs():
            offset, length = int(self.vbns[low]) << BLOCK_SHIFT, (high - low) << BLOCK_SHIFT
            if not self._device.pread_nowait(offset, view[low << BLOCK_SHIFT :][:length]):
                self._device.prefetch(offset, length)
                return None
        self._verify(view)
        return data

    def _runs(self) -> Iterator[tuple[int, int]]:
        return runs_of(self.vbns)

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

    def install(self, data: memoryview) -> int:
        """Called by `Lun.install_fill`."""
        lun, core = self.lun, self.lun.core
        own, _ = lun.load_level_one_buf(self.index)
        still = np.flatnonzero(own[self.slots] == HOLE)
        if not len(still):
            return 0
        # A reserved LUN's holes are part of its reserve.
        core.ensure_for(len(still) + 2 * lun.inode.height + 2, reserved=lun.reserved, wait=False)
        lun.leaf(self.index)  # now, so that the data run stays as it is
        # Neighbours in the LUN stay neighbours on the volume: one write for each stretch of slots.
        slots = self.slots[still]
        edges = [0, *(np.flatnonzero(np.diff(slots) != 1) + 1).tolist(), len(still)]
        try:
            for low, high in pairwise(edges):
                self._install_stretch(int(slots[low]), int(still[low]), high - low, data)
        finally:
            core.allocator.end_exact_run()
        return len(still)

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
        """The reading is over: its blocks may be reused.  Idempotent."""
        if self._epoch is not None:
            self._readers.leave(self._epoch)
            self._epoch = None
            self.lun.core.allocator.reader_left()
