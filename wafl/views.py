"""The read side of a LUN, active or inside a snapshot: its own tree, and under its holes the backing.

A view keeps two maps from level-1 index to `PointerMap`: `own` (the file's own level-1 blocks) and `maps` (what a
read uses).  Without a backing they are one and the same dict.  With one, `maps` holds *composed* level-1 buffers
(spec: `vdisk_backup_compute_level_one_buf`): own pointer if it is DATA or ZERO, else the backing's below its limit,
else HOLE.  So a read of a snapshot-backed LUN is one look-up, like a plain one.

Rules: whoever changes an own level-1 block keeps the composed one in step or drops it; every block read is checked
against the checksum in its pointer; `nowait` calls change nothing and return False when the disk must be waited for.
Snapshots' trees never change, so their buffers are shared freely.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
from crc32c import crc32c

from wafl.buffers import HOLE_MAP, ZERO_MAP, Buffer, Core, PointerMap
from wafl.checksums import Crcs, first_wrong
from wafl.errors import CorruptVolume, InvalidSize
from wafl.format import BLOCK_BYTES, BLOCK_SHIFT, FIRST_DATA_VBN, HOLE, POINTERS, ZERO
from wafl.inode import Inode
from wafl.scattered import Run, places_of, stretches_of
from wafl.streams import Streams
from wafl.tree import level_one, span_state
from wafl.types import Backing

ZERO_BLOCK = bytes(BLOCK_BYTES)
_PAIR = memoryview(bytearray(2 * BLOCK_BYTES))
_LEFT, _RIGHT = _PAIR[:BLOCK_BYTES], _PAIR[BLOCK_BYTES:]
"""Where small reads that do not begin and end on a block border land first; used within one `nowait` call only."""
ZEROS = memoryview(bytes(256 << 10))
BLOCK_MASK = BLOCK_BYTES - 1
SLOT_MASK = POINTERS - 1

ALL_MARKS = {HOLE: bytes(HOLE_MAP.data[:2048]), ZERO: bytes(ZERO_MAP.data[:2048])}
FEW_BLOCKS = 64
"""Up to so many are split into runs without numpy."""
_POSITIONS = np.arange(POINTERS, dtype=np.uint64)


class View:
    """A LUN's bytes, for reading."""

    def __init__(self, core: Core, inode: Inode, size_bytes: int, name: str, backing: Backing | None,
                 find: Callable[[Backing, bool], View | None]) -> None:  # fmt: skip
        self.core = core
        self.inode = inode
        self.size_bytes = size_bytes
        self.name = name
        self.backing = backing
        self._find = find
        self._below: View | None = None
        self.own: dict[int, PointerMap] = {}
        self.maps: dict[int, PointerMap] = {} if backing else self.own
        self.composed_count = 0
        self._pread = core.device.pread
        self._pread_nowait = core.device.pread_nowait
        self._preadv_nowait = core.device.preadv_nowait
        self._streams = Streams(self)

    # --- maps ------------------------------------------------------------------------------------------------------

    def below(self) -> View:
        """The backing's view.  Raises BackingLost."""
        found = self._below_now(nowait=False)
        assert found is not None
        return found

    def _below_now(self, *, nowait: bool) -> View | None:
        """The same; None only with `nowait`."""
        if self._below is None:
            assert self.backing is not None
            self._below = self._find(self.backing, nowait)
        return self._below

    def own_map(self, index: int, nowait: bool = False) -> PointerMap | None:
        found = self.own.get(index)
        if found is None:
            found = level_one(self.core, self.inode, index, nowait)
            if found is None:
                return None
            if isinstance(found, Buffer):
                found.used = True
            self._bound(self.own)
            self.own[index] = found
        return found

    def read_map(self, index: int, nowait: bool = False) -> PointerMap | None:
        """The composed level-1 buffer; None only with `nowait`."""
        found = self.maps.get(index)
        if found is None:
            found = self._compose(index, nowait)
            if found is not None and self.backing is not None:
                self._bound(self.maps)
                self.maps[index] = found
        return found

    def _compose(self, index: int, nowait: bool) -> PointerMap | None:
        own = self.own_map(index, nowait)
        if own is None and self.backing is not None and (below_view := self._below_now(nowait=nowait)):
            below_view.read_map(index, nowait)  # the disk reads both at once
        if own is None or own is ZERO_MAP or self.backing is None:
            return own
        limit = (self.backing.limit_bytes >> BLOCK_SHIFT) - (index << 8)
        if limit <= 0:
            return own
        holes = own.vector() == HOLE
        if not holes.any():
            return own
        below_view = self._below_now(nowait=nowait)
        below = below_view.read_map(index, nowait) if below_view is not None else None
        if below is None or (own is HOLE_MAP and (limit >= POINTERS or below is HOLE_MAP)):
            return below
        if limit < POINTERS:
            holes &= limit > _POSITIONS
        composed = bytearray(own.data)
        result = PointerMap(composed)
        np.copyto(np.frombuffer(composed, "<u8", POINTERS), below.vector(), where=holes)
        np.copyto(np.frombuffer(composed, "<u4", POINTERS, 2048), below.crc_vector(), where=holes)
        self.core.cached += 1
        self.composed_count += 1
        return result

    def _bound(self, maps: dict[int, PointerMap]) -> None:
        if len(maps) > self.core.cache_limit:
            self.cool()

    def cool(self) -> None:
        """Forget the maps, so that the buffers in them may be evicted."""
        for found in self.own.values():
            if isinstance(found, Buffer):
                found.used = False
        self.own.clear()
        self.maps.clear()
        self.core.cached -= self.composed_count
        self.composed_count = 0

    def empty_span(self, index: int) -> int:
        """How many level-1 indexes from `index` on certainly have no DATA in this view (0: look)."""
        state, level = span_state(self.core, self.inode, index)
        if state >= FIRST_DATA_VBN:
            return 0
        reach = 1 << 8 * (level - 1)
        span = reach - index % reach
        if state == HOLE and self.backing is not None:
            limit = -(-self.backing.limit_bytes // (POINTERS * BLOCK_BYTES)) - index
            if limit > 0:
                # beyond the limit the holes read zeros: nothing is missing in the rest of the span
                below = self.below().empty_span(index)
                return span if below >= limit else min(span, below)
        return span

    # --- reading ---------------------------------------------------------------------------------------------------

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fill `view` from byte `offset`; may wait for the disk.
        Raises CorruptVolume, BackingLost, InvalidSize, OSError."""
        self._read(offset, view, False)

    def read_into_nowait(self, offset: int, view: memoryview) -> bool:
        """Fill `view` if that needs no wait for the disk, else start reading ahead and return False.  `view` is a
        memoryview of bytes ("B")."""
        if len(view) == BLOCK_BYTES and not offset & BLOCK_MASK:
            fbn = offset >> BLOCK_SHIFT
            pointers = self.maps.get(fbn >> 8)
            if pointers is not None and offset < self.size_bytes:
                slot = fbn & SLOT_MASK
                vbn = pointers.vbns[slot]
                if vbn < FIRST_DATA_VBN:
                    view[:] = ZERO_BLOCK
                    return True
                if not self._pread_nowait(vbn << BLOCK_SHIFT, view):
                    self.core.prefetch(vbn << BLOCK_SHIFT, BLOCK_BYTES)
                    return False
                found = crc32c(view)
                if found != pointers.crcs[slot]:
                    raise self._corrupt(vbn, pointers.crcs[slot], found, fbn)
                return True
        elif 0 < len(view) <= BLOCK_BYTES:
            done = self._read_part_nowait(offset, view)
            if done is not None:
                return done
        return self._read(offset, view, True)

    def _read_part_nowait(self, offset: int, view: memoryview) -> bool | None:
        """At most 4 KiB from the middle of one block, or over the border of two that lie side by side: hosts whose
        partitions or records are not aligned do nothing else.  None: take the general way."""
        end = offset + len(view)
        fbn, last = offset >> BLOCK_SHIFT, (end - 1) >> BLOCK_SHIFT
        pointers = self.maps.get(fbn >> 8)
        slot = fbn & SLOT_MASK
        if pointers is None or offset < 0 or end > self.size_bytes or slot + last - fbn > SLOT_MASK:
            return None
        vbns, crcs = pointers.vbns, pointers.crcs
        vbn = vbns[slot]
        two = last > fbn
        if vbn < FIRST_DATA_VBN:
            if two and vbns[slot + 1] >= FIRST_DATA_VBN:
                return None
            view[:] = ZERO_BLOCK[: len(view)]
            return True
        if two and vbns[slot + 1] != vbn + 1:
            return None
        if not self._pread_nowait(vbn << BLOCK_SHIFT, _PAIR if two else _LEFT):
            self.core.prefetch(vbn << BLOCK_SHIFT, (1 + two) * BLOCK_BYTES)
            return False
        if crc32c(_LEFT) != crcs[slot]:
            raise self._corrupt(vbn, crcs[slot], crc32c(_LEFT), fbn)
        if two and crc32c(_RIGHT) != crcs[slot + 1]:
            raise self._corrupt(vbn + 1, crcs[slot + 1], crc32c(_RIGHT), fbn + 1)
        start = offset & BLOCK_MASK
        view[:] = _PAIR[start : start + len(view)]
        return True

    def _read(self, offset: int, view: memoryview, nowait: bool) -> bool:
        length = len(view)
        if offset < 0 or offset + length > self.size_bytes:
            raise InvalidSize(f"{self.name}: bytes {offset} to {offset + length} are not within {self.size_bytes}")
        if not length:
            return True
        if (offset | length) & BLOCK_MASK:
            return self._read_unaligned(offset, view, nowait)
        first, end = offset >> BLOCK_SHIFT, (offset + length) >> BLOCK_SHIFT
        found = self._runs(first, end, nowait)
        if found is None:
            return False
        runs, crcs = found
        if not nowait:
            self._read_runs(runs, view)
        elif not self._read_runs_nowait(runs, view, first):
            return False
        # Stretches without a mark are verified whole, in however many places they lie: where random writes have been,
        # every block is a run of its own.
        verified = 0
        if any(vbn < FIRST_DATA_VBN for vbn, _, _ in runs):
            for vbn, blocks, at in runs:
                if vbn < FIRST_DATA_VBN:
                    self._verify(view, verified, at, runs, crcs, first)
                    verified = at + blocks
                    fill_zeros(view[at << BLOCK_SHIFT : verified << BLOCK_SHIFT])
        self._verify(view, verified, end - first, runs, crcs, first)
        return True

    def _read_runs(self, runs: list[Run], view: memoryview) -> None:
        for vbn, blocks, at in runs:
            if vbn >= FIRST_DATA_VBN:
                self._pread(vbn << BLOCK_SHIFT, view[at << BLOCK_SHIFT : (at + blocks) << BLOCK_SHIFT])

    def _read_runs_nowait(self, runs: list[Run], view: memoryview, first: int) -> bool:
        if len(runs) == 1:
            vbn = runs[0][0]
            here = vbn < FIRST_DATA_VBN or self._pread_nowait(vbn << BLOCK_SHIFT, view)
        else:
            here = self._preadv_nowait(places_of(runs, view))
        if not here:
            self.prefetch(runs)
        if self._streams.known or not here:
            self._streams.note(first, first + (len(view) >> BLOCK_SHIFT), here=here)
        return here

    def _read_unaligned(self, offset: int, view: memoryview, nowait: bool) -> bool:
        start = offset & ~BLOCK_MASK
        end = (offset + len(view) + BLOCK_MASK) & ~BLOCK_MASK
        whole = memoryview(bytearray(end - start))
        # The last block may reach beyond the size: its tail is zero by the LUN's invariant.
        if not self.read_blocks(start, whole, nowait=nowait):
            return False
        view[:] = whole[offset - start : offset - start + len(view)]
        return True

    def read_blocks(self, start: int, whole: memoryview, *, nowait: bool) -> bool:
        """Whole blocks, of which the last may reach beyond the size.  As `read_into`, or as `read_into_nowait`."""
        size, self.size_bytes = self.size_bytes, (self.size_bytes + BLOCK_MASK) & ~BLOCK_MASK
        try:
            return self._read(start, whole, nowait)
        finally:
            self.size_bytes = size

    def widen(self, offset: int, data: memoryview) -> tuple[int, memoryview]:
        """Complete the first and last block with what they hold now; behind the LUN's end that is nothing."""
        start = offset & ~BLOCK_MASK
        end = (offset + len(data) + BLOCK_MASK) & ~BLOCK_MASK
        whole = memoryview(bytearray(end - start))
        if offset & BLOCK_MASK:
            self.read_blocks(start, whole[:BLOCK_BYTES], nowait=False)
        last, cut = end - BLOCK_BYTES, (offset + len(data)) & BLOCK_MASK and offset + len(data) < self.size_bytes
        if cut and (last > start or not offset & BLOCK_MASK):
            self.read_blocks(last, whole[last - start :], nowait=False)
        whole[offset - start : offset - start + len(data)] = data
        return start, whole

    def prefetch(self, runs: list[Run]) -> bool:
        """The disk begins to read them, in its own order.  False, for whoever asked whether they are here."""
        for vbn, blocks in stretches_of(runs):
            self.core.prefetch(vbn << BLOCK_SHIFT, blocks << BLOCK_SHIFT)
        return False

    def runs_nowait(self, offset: int, length: int) -> list[Run] | None:
        """Where the blocks of the range lie; None if that is not in memory."""
        found = self._runs(offset >> BLOCK_SHIFT, (offset + length + BLOCK_MASK) >> BLOCK_SHIFT, True)
        return found and found[0]

    def _runs(self, first: int, end: int, nowait: bool) -> tuple[list[Run], Crcs] | None:
        """The runs of blocks `first` to `end - 1`, and the checksum of each block."""
        if first >> 8 == (end - 1) >> 8:
            pointers = self.maps.get(first >> 8) or self.read_map(first >> 8, nowait)
            if pointers is None:
                return None
            low, high = first & SLOT_MASK, ((end - 1) & SLOT_MASK) + 1
            return split_runs(pointers, low, high), pointers.crc_vector()[low:high]
        return self._runs_over_borders(first, end, nowait)

    def _runs_over_borders(self, first: int, end: int, nowait: bool) -> tuple[list[Run], Crcs] | None:
        runs: list[Run] = []
        crcs: list[Crcs] = []
        fbn = first
        here = True
        while fbn < end:
            pointers = self.read_map(fbn >> 8, nowait)
            if pointers is None:  # the others are asked for at once
                here, fbn = False, (fbn >> 8) + 1 << 8
                continue
            low, high = fbn & SLOT_MASK, min(POINTERS, (fbn & SLOT_MASK) + end - fbn)
            # A copy: what was found first must not change under us when the next map is loaded.
            crcs.append(pointers.crc_vector()[low:high].copy())
            for vbn, blocks, at in split_runs(pointers, low, high):
                _join(runs, vbn, blocks, fbn + at - first)
            fbn += high - low
        return (runs, np.concatenate(crcs)) if here else None

    def _verify(self, view: memoryview, low: int, high: int, runs: list[Run], crcs: Crcs, first: int) -> None:
        """Blocks `low` to `high - 1` of `view`, none of them a mark; its first is block `first` of the LUN."""
        if low == high:
            return
        wrong = first_wrong(view[low << BLOCK_SHIFT : high << BLOCK_SHIFT], crcs[low:high])
        if wrong is not None:
            bad, found = low + wrong[0], wrong[1]
            vbn = next(vbn + bad - at for vbn, blocks, at in runs if at <= bad < at + blocks)
            raise self._corrupt(vbn, int(crcs[bad]), found, first + bad)

    def _corrupt(self, vbn: int, expected: int, found: int, fbn: int) -> CorruptVolume:
        return CorruptVolume(vbn, expected, found, f"LUN {self.name}, byte {fbn << BLOCK_SHIFT}")

    def extents(self, offset: int, length: int) -> Iterator[tuple[int, int, bool]]:
        """(offset, length, mapped) in order, covering the range."""
        at, end = offset, min(offset + length, self.size_bytes)
        while at < end:
            fbn = at >> BLOCK_SHIFT
            skip = self.empty_span(fbn >> 8)
            if skip:
                upto = min(end, ((fbn >> 8) + skip) * POINTERS << BLOCK_SHIFT)
                yield at, upto - at, False
                at = upto
                continue
            pointers = self.read_map(fbn >> 8)
            assert pointers is not None
            flags = pointers.vector()[fbn & SLOT_MASK :] >= FIRST_DATA_VBN
            changes = np.flatnonzero(flags != flags[0])
            blocks = int(changes[0]) if changes.size else len(flags)
            upto = min(end, (fbn + blocks) << BLOCK_SHIFT)
            yield at, upto - at, bool(flags[0])
            at = upto


def split_runs(pointers: PointerMap, low: int, high: int) -> list[Run]:
    """Each stretch of slots low to high - 1 with consecutive vbns, or with marks."""
    count = high - low
    start = pointers.vbns[low]
    if count == 1:
        return [(start, 1, 0)]
    # The common cases, one comparison each: all in one piece, nothing here.
    here = pointers.data[low * 8 : high * 8]
    if start >= FIRST_DATA_VBN:
        if here == np.arange(start, start + count, dtype="<u8").tobytes():
            return [(start, count, 0)]
    elif here == ALL_MARKS[start][: count * 8]:
        return [(start, count, 0)]
    if count <= FEW_BLOCKS:
        return _split_few(pointers.vbns[low:high].tolist())
    vbns = pointers.vector()[low:high]
    data = vbns >= FIRST_DATA_VBN
    joined = np.where(data[1:], vbns[1:] - vbns[:-1] == 1, ~data[:-1]) & (data[1:] == data[:-1])
    begins = np.concatenate(([0], np.flatnonzero(~joined) + 1))
    edges = [*begins.tolist(), count]
    return [(vbn, b - a, a) for vbn, (a, b) in zip(vbns[begins].tolist(), pairwise(edges), strict=True)]


def _split_few(vbns: list[int]) -> list[Run]:
    """The same in a plain loop: faster than the vectors' start-up."""
    runs = []
    begun = 0
    before = vbns[0]
    for at in range(1, len(vbns)):
        vbn = vbns[at]
        data = vbn >= FIRST_DATA_VBN
        if data is not (before >= FIRST_DATA_VBN) or (data and vbn != before + 1):
            runs.append((vbns[begun], at - begun, begun))
            begun = at
        before = vbn
    runs.append((vbns[begun], len(vbns) - begun, begun))
    return runs


def fill_zeros(view: memoryview) -> None:
    length = len(view)
    for at in range(0, length, len(ZEROS)):
        view[at : at + len(ZEROS)] = ZEROS[: length - at]


def _join(runs: list[Run], vbn: int, blocks: int, at: int) -> None:
    """Append a run, or lengthen the last one over the border of two level-1 buffers."""
    if runs:
        last, count, start = runs[-1]
        if (vbn == last + count and last >= FIRST_DATA_VBN) or (vbn < FIRST_DATA_VBN and last < FIRST_DATA_VBN):
            runs[-1] = (last, count + blocks, start)
            return
    runs.append((vbn, blocks, at))
