"""Which blocks are in use, and which one is next.

Three bit arrays, one bit a block:

- `active`: reachable from the active file system's inode file (the active map);
- `summary`: in use by anything else: a snapshot, or the volume itself (docs/decisions/0002);
- `busy`: active, or summary, or freed since the last durable consistency point.  Allocation looks only at `busy`.

Rules:

- A block whose last bit (active or summary) goes in generation g is put into g's pending list.  It stays busy until
  the consistency point of g is durable and every reader that started earlier has ended (`Readers`).  So each block is
  in at most one list, and none is handed out while any tree that a crash could fall back to reaches it.
- Guest data comes in long runs from the front of a window (one map block's worth of volume), pointer blocks from
  its back: both stay contiguous.
- A window that was written since the mount and is nearly empty again goes before one that was not: its pages are in
  memory and the file has its blocks.  Nearly, so that runs stay long.
- The data run is marked in advance and its unused rest given back at each freeze, so that the frozen active map is
  exact.
- A block that is promised to a fill or a long write is busy and nothing else, until what was written to it becomes the
  active file system's (`fulfil`) or it is given back (`break_promise`): no map on disk ever has it before something
  names it.
- `floor_guest` blocks are kept back from guests, `floor_ops` of them also from what frees space (UNMAP, destroy,
  reclaim): the latter is what one consistency point can need, so it never lacks room.  `reserve` of them are for
  reserved LUNs (wafl.reserve), whose writes go on down to `floor_reserved`.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice

import numpy as np
import numpy.typing as npt

from wafl.bits import Bits, Vbns, are_set, clear_each, clear_range, count, free_runs, set_each, set_range
from wafl.errors import NoSpace, VolumeFailed
from wafl.format import BLOCK_BYTES, MAP_BITS

DATA_RUN_BLOCKS = 2048
"""Blocks taken from a window at a time for guest data: 8 MiB."""
APPLY_FREES = 4096
"""Frees collected before they are put into the active map in one vector operation."""
RELEASE_SLICE = 1024
"""Blocks made allocatable between two yields of a consistency point: a few tenths of a millisecond."""
PROMISE_PIECES = 16
"""Fills that would be cut into more pieces are placed as they are installed, as guests' writes are."""
PROMISE_SHARE = 4
"""A promise is at most a quarter of the room: what is promised must not be what a guest lacks."""
PIECE_ROWS = 64
"""Map rows taken together where all of them are looked at: 256 KiB, which stays in the processor's cache."""
MAP_SHIFT = MAP_BITS.bit_length() - 1
WARM_USED = MAP_BITS // 32
"""A window written since the mount is taken again before others while no more of its blocks than this are in use."""


def new_bits(blocks: int) -> Bits:
    """An empty map of whole map blocks."""
    return np.zeros(-(-blocks // MAP_BITS) * BLOCK_BYTES, dtype=np.uint8)


def rows_of(vbns: Vbns) -> list[int]:
    """The map rows that describe these blocks."""
    if not len(vbns):
        return []
    # bincount, because np.unique sorts: 30 ms for 64 Ki blocks against 0.3.
    return np.flatnonzero(np.bincount((vbns >> MAP_SHIFT).astype(np.intp))).tolist()


class Readers:
    """Reads that run in threads: blocks freed while one runs stay busy until it has ended."""

    def __init__(self) -> None:
        self.epoch = 0
        self._open: dict[int, int] = {}
        self._deferred: deque[tuple[int, list[Vbns]]] = deque()

    def enter(self) -> int:
        self._open[self.epoch] = self._open.get(self.epoch, 0) + 1
        return self.epoch

    def leave(self, epoch: int) -> None:
        self._open[epoch] -= 1
        if not self._open[epoch]:
            del self._open[epoch]

    @property
    def holding(self) -> bool:
        """Whether something freed waits for a reader."""
        return bool(self._deferred)

    def defer(self, freed: list[Vbns]) -> None:
        """`freed` becomes allocatable once all readers of this epoch and earlier ones have left."""
        self._deferred.append((self.epoch, freed))
        self.epoch += 1

    def ripe(self) -> list[Vbns]:
        """Takes out what no reader can be using any more."""
        oldest = min(self._open, default=self.epoch)
        out: list[Vbns] = []
        while self._deferred and self._deferred[0][0] < oldest:
            out += self._deferred.popleft()[1]
        return out


class Allocator:
    """The volume's block maps in memory.  `next` and `end` are the current data run, read by the write path."""

    def __init__(self, blocks: int, active: Bits, summary: Bits, hint: int = 0) -> None:
        self.blocks = blocks
        self.active = active
        self.summary = summary
        self.busy = np.zeros_like(active)
        self.chunks = len(active) // BLOCK_BYTES
        self.chunk_free: np.ndarray[tuple[int], np.dtype[np.int32]] = np.empty(self.chunks, np.int32)
        self.free = self.active_count = self.summary_count = 0
        self._unmerged: set[int] = set()
        """Rows in which the summary may lack an active block: a snapshot has to look at these only."""
        self._window = -1
        self._warm = np.zeros(self.chunks, dtype=np.bool_)
        """Windows written since the mount."""
        self.shared_count = 0
        """Of `summary_count`: what snapshots have brought and taken away since the mount (wafl.audit)."""
        self.own_changes = 0
        """Changes with the set of the volume's own blocks."""
        self.freeing = self.promised = 0
        """The second: blocks that are busy because a fill, or a long write, writes to them."""
        self.dirty_active: set[int] = set()
        self.dirty_summary: set[int] = set()
        self.readers = Readers()
        self.next = self.end = 0
        self._exact = False
        """The data run comes out of the reserve of a reserved LUN."""
        self.floor_guest = self.floor_reserved = self.floor_ops = 0
        self.margin = 0
        """Room above `floor_ops` for what is under way: half of it is for reserved LUNs' writes, all for what frees."""
        self.reserve = 0
        self.freed = array("Q")
        """Freed by the active file system, bits not yet cleared.  The write path appends."""
        self.last_pointers: Callable[[Vbns], Vbns] | None = None
        self.counts_ready: Callable[[Vbns], npt.NDArray[np.bool_]] | None = None
        """Set where blocks can be shared: what of freed blocks nothing names; of which that is known at once."""
        self._pending: list[Vbns] = []
        self._ripe: deque[Vbns] = deque()
        self._runs: deque[tuple[int, int]] = deque()
        self._look_at_arrays()
        self.take_stock(hint)

    def take_stock(self, hint: int) -> None:
        """The maps have been read: count what is in them.  A piece at a time, for they may be as large as memory."""
        for first in range(0, self.chunks, PIECE_ROWS):
            rows = slice(first, min(first + PIECE_ROWS, self.chunks))
            piece = slice(rows.start * BLOCK_BYTES, rows.stop * BLOCK_BYTES)
            busy = np.bitwise_or(self.active[piece], self.summary[piece], out=self.busy[piece])
            if self.blocks < piece.stop * 8:
                set_range(self.busy, self.blocks, piece.stop * 8)
            used = np.bitwise_count(busy.reshape(-1, BLOCK_BYTES)).sum(axis=1, dtype=np.int32)
            self.chunk_free[rows] = MAP_BITS - used
        self.free = int(self.chunk_free.sum(dtype=np.int64))
        self.active_count, self.summary_count = count(self.active), count(self.summary)
        self._unmerged = set(np.flatnonzero(self.chunk_free < MAP_BITS).tolist())
        self._window = min(hint // MAP_BITS, self.chunks - 1) - 1

    # --- taking ----------------------------------------------------------------------------------------------------

    def refill(self, reserved: int = 0, most: int = DATA_RUN_BLOCKS) -> None:
        """Start a new data run of at most `most` blocks.  A reserved LUN asks for `reserved` blocks and gets no more
        than that when only its reserve is left: the rest of a run is anybody's.  Raises NoSpace, nothing changed."""
        assert self.next == self.end
        if len(self.freed) >= APPLY_FREES:
            self.apply_frees(nowait=True)
        most = min(most, self.free - self.floor_guest)
        self._exact = most < 1
        if self._exact:
            most = min(reserved, self.free - self.floor_reserved)
        if most < 1:
            raise NoSpace
        if not self._runs:
            self._open_window()
        start, end = self._runs.popleft()
        if end - start > most:
            self._runs.appendleft((start + most, end))
            end = start + most
        set_range(self.active, start, end)
        self._mark_busy(start, end)
        self.active_count += end - start
        self.dirty_active.update(range(start // MAP_BITS, (end - 1) // MAP_BITS + 1))
        self.next, self.end = start, end

    def end_exact_run(self) -> None:
        """What a reserved LUN got out of its reserve and did not use, because a write failed, goes back."""
        if self._exact:
            self._exact = False
            self.give_back_run()

    def give_back_run(self) -> None:
        """Unmark the unused rest of the data run."""
        start, end = self.next, self.end
        if start < end:
            clear_range(self.active, start, end)
            clear_range(self.busy, start, end)
            self.active_count -= end - start
            self.free += end - start
            self.chunk_free[start // MAP_BITS] += end - start
            # Never over a window's border: a run is counted in the window in which it begins.
            if self._runs and self._runs[0][0] == end and end % MAP_BITS:
                end = self._runs.popleft()[1]
            self._runs.appendleft((start, end))
        self.next = self.end = 0

    def promise(self, blocks: int) -> list[tuple[int, int]] | None:
        """(start, end) of places for `blocks`, to be written in a thread; None if they would be many, or room is
        short."""
        if (self.free - self.floor_guest) // PROMISE_SHARE < blocks:
            return None
        if not self._runs:
            self._open_window()
        pieces, left = 0, blocks
        for start, end in islice(self._runs, PROMISE_PIECES):
            pieces, left = pieces + 1, left - (end - start)
            if left <= 0:
                break
        if left > 0:
            return None
        places = [self._runs.popleft() for _ in range(pieces)]
        if left:
            start, end = places[-1]
            places[-1] = start, end + left
            self._runs.appendleft((end + left, end))
        for start, end in places:
            self._mark_busy(start, end)
        self.promised += blocks
        return places

    def fulfil(self, start: int, end: int) -> None:
        """Promised blocks become the active file system's."""
        set_range(self.active, start, end)
        self.active_count += end - start
        self.promised -= end - start
        self.dirty_active.update(range(start // MAP_BITS, (end - 1) // MAP_BITS + 1))

    def break_promise(self, start: int, end: int) -> None:
        """Promised blocks that nothing names become allocatable: at once, for no tree on disk ever had them."""
        clear_range(self.busy, start, end)
        self.free += end - start
        self.promised -= end - start
        for chunk in range(start // MAP_BITS, (end - 1) // MAP_BITS + 1):
            self.chunk_free[chunk] += min(end, (chunk + 1) * MAP_BITS) - max(start, chunk * MAP_BITS)

    def claim(self, vbns: Vbns) -> bool:
        """Take these very blocks for the active file system (a replay).  False, and nothing taken, if one is in use."""
        if are_set(self.busy, vbns).any() or len(np.unique(vbns)) != len(vbns):
            return False
        for bits in (self.active, self.busy):
            set_each(bits, vbns)
        self.free -= len(vbns)
        self.active_count += len(vbns)
        self.chunk_free -= np.bincount((vbns >> MAP_SHIFT).astype(np.intp), minlength=self.chunks).astype(np.int32)
        self.dirty_active.update(rows_of(vbns))
        return True

    def activate(self, vbns: Vbns) -> None:
        """The active file system takes up blocks that only snapshots hold."""
        set_each(self.active, vbns)
        self.active_count += len(vbns)
        self.dirty_active.update(rows_of(vbns))

    def take_pointer_block(self) -> int:
        """A block of the active file system for metadata."""
        if self.free <= self.floor_guest and self.next < self.end:
            # What is kept back is for consistency points: the data run gets shorter (its blocks are marked already).
            self.end -= 1
            return self.end
        vbn = self._take_back()
        self._active_bytes[vbn >> 3] |= 1 << (vbn & 7)
        self.active_count += 1
        self.dirty_active.add(vbn // MAP_BITS)
        return vbn

    def take_own_block(self) -> int:
        """A block of the volume itself (snapshot table, summary)."""
        vbn = self._take_back()
        self._summary_bytes[vbn >> 3] |= 1 << (vbn & 7)
        self.summary_count += 1
        self.own_changes += 1
        self.dirty_summary.add(vbn // MAP_BITS)
        return vbn

    def _take_back(self) -> int:
        if not self._runs:
            self._open_window()
        start, end = self._runs.pop()
        vbn = end - 1
        if start < vbn:
            self._runs.append((start, vbn))
        self._busy_bytes[vbn >> 3] |= 1 << (vbn & 7)
        self.free -= 1
        self._chunk_free_cells[vbn // MAP_BITS] -= 1
        return vbn

    def _open_window(self) -> None:
        """Go on to the next map block's worth of volume, passing over those that are much fuller than the best."""
        best = int(self.chunk_free.max())
        if best == 0:
            # The reserve makes this impossible; if it happens all the same, nothing more may be written.
            raise VolumeFailed("no block is left for a consistency point")
        good = np.flatnonzero(self._warm & (self.chunk_free >= MAP_BITS - WARM_USED))
        if not good.size:
            good = np.flatnonzero(self.chunk_free >= max(1, best // 4))
        after = good[good > self._window]
        self._window = int(after[0] if after.size else good[0])
        self._warm[self._window] = True
        at = self._window * BLOCK_BYTES
        self._runs.extend(free_runs(self.busy[at : at + BLOCK_BYTES], self._window * MAP_BITS))

    def _mark_busy(self, start: int, end: int) -> None:
        set_range(self.busy, start, end)
        self.free -= end - start
        self._chunk_free_cells[start // MAP_BITS] -= end - start  # a run never leaves its window

    # --- what is kept back -----------------------------------------------------------------------------------------

    def set_floors(self, ops: int, margin: int) -> None:
        """What one consistency point can need, and the room above that."""
        self.floor_ops, self.margin = ops, margin
        self._set_floors()

    def set_reserve(self, blocks: int) -> None:
        self.reserve = blocks
        self._set_floors()

    def _set_floors(self) -> None:
        self.floor_reserved = self.floor_ops + self.margin // 2
        self.floor_guest = self.floor_ops + self.margin + self.reserve
        if self.reserve and self.free < self.floor_guest:
            self.give_back_run()  # it may be what is kept back from now on, and whoever writes first would take it

    def floor_for(self, *, reserved: bool, frees: bool) -> int:
        """For a write of a LUN, or an UNMAP, which `frees`."""
        if reserved:
            return self.floor_ops if frees else self.floor_reserved
        return self.floor_ops + self.reserve if frees else self.floor_guest

    # --- giving back -----------------------------------------------------------------------------------------------

    def apply_frees(self, *, nowait: bool = False) -> bool:
        """Put the collected frees of the active file system into the map.  With `nowait` those for which the disk
        would have to be waited for are left, and then it returns False."""
        if not self.freed:
            return True
        vbns = np.array(self.freed, dtype=np.uint64)
        del self.freed[:]
        if nowait and self.counts_ready is not None:
            ready = self.counts_ready(vbns)
            self.freed.frombytes(vbns[~ready].tobytes())
            vbns = vbns[ready]
        if self.last_pointers is not None:
            vbns = self.last_pointers(vbns)
        clear_each(self.active, vbns)
        self.active_count -= len(vbns)
        self.dirty_active.update(rows_of(vbns))
        # What a snapshot still holds is listed by whoever takes it out of the summary.
        self._list(vbns[~are_set(self.summary, vbns)])
        return not self.freed

    def free_own(self, vbn: int) -> None:
        """Free a block of the volume itself."""
        self._summary_bytes[vbn >> 3] &= 0xFF ^ (1 << (vbn & 7))
        self.summary_count -= 1
        self.own_changes += 1
        self.dirty_summary.add(vbn // MAP_BITS)
        self._list(np.array([vbn], dtype=np.uint64))

    def drop_from_summary(self, vbns: Vbns) -> int:
        """Snapshots hold these no longer.  Returns how many become free (the others are still active)."""
        self.apply_frees()
        clear_each(self.summary, vbns)
        self.summary_count -= len(vbns)
        self.shared_count -= len(vbns)
        self.dirty_summary.update(rows_of(vbns))
        gone = vbns[~are_set(self.active, vbns)]
        self._list(gone)
        return len(gone)

    def _list(self, vbns: Vbns) -> None:
        if len(vbns):
            self.freeing += len(vbns)
            self._pending.append(vbns)

    def merge_active_into_summary(self) -> None:
        """A snapshot is made: all that is active is now in use by something else too."""
        all_rows = np.sort(np.fromiter(self._unmerged | self.dirty_active | self.dirty_summary, dtype=np.intp))
        self._unmerged.clear()
        active, summary = (bits.reshape(self.chunks, BLOCK_BYTES) for bits in (self.active, self.summary))
        for first in range(0, len(all_rows), PIECE_ROWS):
            rows = all_rows[first : first + PIECE_ROWS]
            new = active[rows] & ~summary[rows]
            changed = new.any(axis=1)
            if changed.any():
                summary[rows] |= new
                added = count(new)
                self.summary_count += added
                self.shared_count += added
                self.dirty_summary.update(rows[changed].tolist())

    def clean(self) -> tuple[set[int], set[int]]:
        """The freeze: (rows of the active map, rows of the summary) that have changed, now no longer dirty."""
        rows = self.dirty_active, self.dirty_summary
        self._unmerged |= self.dirty_active | self.dirty_summary
        self.dirty_active, self.dirty_summary = set(), set()
        return rows

    def freeze_frees(self) -> list[Vbns]:
        """What this generation freed: the list to pass to `release` once it is durable."""
        frozen, self._pending = self._pending, []
        small = [vbns for vbns in frozen if len(vbns) < APPLY_FREES]
        joined = [np.concatenate(small)] if small else []
        return joined + [vbns for vbns in frozen if len(vbns) >= APPLY_FREES]

    def release(self, frozen: list[Vbns]) -> None:
        """The generation that freed these blocks is durable.  Call `release_ripe` until it says no."""
        self.readers.defer(frozen)

    def release_ripe(self, most: int = RELEASE_SLICE) -> bool:
        """Make allocatable what no reader holds back, about `most` blocks of it.  True if more is ready."""
        self._ripe.extend(self.readers.ripe())
        while self._ripe and most > 0:
            vbns = self._ripe.popleft()
            most -= len(vbns)
            clear_each(self.busy, vbns)
            self.free += len(vbns)
            self.freeing -= len(vbns)
            self.chunk_free += np.bincount((vbns >> MAP_SHIFT).astype(np.intp), minlength=self.chunks)
        return bool(self._ripe)

    @contextmanager
    def held(self) -> Iterator[None]:
        """One reader more."""
        epoch = self.readers.enter()
        try:
            yield
        finally:
            self.readers.leave(epoch)
            self.reader_left()

    def reader_left(self) -> None:
        """What only that reader held back becomes allocatable."""
        while self.release_ripe():
            pass

    # --- growing ---------------------------------------------------------------------------------------------------

    def grow(self, blocks: int, own: int) -> None:
        """The volume has `blocks` blocks from now on, the last `own` of them for itself; the other new ones are free.
        There must be no data run."""
        assert self.next == self.end
        assert blocks - self.blocks >= own
        first = self.blocks // MAP_BITS
        more = np.zeros(len(new_bits(blocks)) - len(self.active), dtype=np.uint8)
        maps = self.active, self.summary, self.busy
        self.active, self.summary, self.busy = (np.concatenate([bits, more]) for bits in maps)
        end = len(self.busy) * 8
        clear_range(self.busy, self.blocks, end)
        set_range(self.busy, blocks - own, end)
        set_range(self.summary, blocks - own, blocks)
        self.chunks = len(self.active) // BLOCK_BYTES
        free = np.zeros(self.chunks, dtype=np.int32)
        free[:first] = self.chunk_free[:first]
        rows = self.busy.reshape(self.chunks, BLOCK_BYTES)[first:]
        free[first:] = MAP_BITS - np.bitwise_count(rows).sum(axis=1, dtype=np.int32)
        self.chunk_free = free
        self._warm = np.concatenate([self._warm, np.zeros(self.chunks - len(self._warm), np.bool_)])
        self.free += blocks - own - self.blocks
        self.summary_count += own
        self.dirty_summary.update(range((blocks - own) // MAP_BITS, self.chunks))
        self.blocks = blocks
        self._look_at_arrays()

    def _look_at_arrays(self) -> None:
        self._active_bytes = memoryview(self.active.data)
        self._summary_bytes = memoryview(self.summary.data)
        self._busy_bytes = memoryview(self.busy.data)
        self._chunk_free_cells = memoryview(self.chunk_free.data)

    # --- questions -------------------------------------------------------------------------------------------------

    def row(self, bits: Bits, chunk: int) -> Bits:
        return bits[chunk * BLOCK_BYTES : (chunk + 1) * BLOCK_BYTES]

    @property
    def cramped(self) -> bool:
        """Too little is free for another consistency point, because readers hold back what the last ones freed."""
        return self.readers.holding and self.free + self.end - self.next < self.floor_ops

    @property
    def hint(self) -> int:
        return max(self._window, 0) * MAP_BITS
