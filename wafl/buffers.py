"""Buffers: the pointer blocks in memory, the generation they belong to, and copy-on-write while a consistency
point is being written.

What this module knows:

- A `Buffer` is one block in memory with typed views of its planes.  Buffers form trees through `parent`, `slot` and
  `children`; at the top of each tree is an `Inode` (wafl.inode), which looks like a buffer with one slot.
- `Core.generation` is the consistency point now being collected.  `Core.own` makes a buffer part of it: it gives
  the block its new place at once, frees the old one, and does the same for all ancestors, so that at any time every
  pointer in memory has its final vbn.  What is not final is the checksum in a pointer to a dirty buffer; the
  checkpoint fills it in, lowest level first.

Rules:

1. A buffer is changed only while `buffer.generation == core.generation`.
2. While generation g is being written (`core.frozen == g`), a buffer with generation g is frozen.  `own` puts a
   copy, with the parent and slot of that moment, into `core.copies` before the live one moves on.  The copy is what
   the checkpoint writes; its checksum goes into the parent's copy, and into the live parent only if that still
   points at the same vbn.
3. A frozen buffer that changes its parent leaves a copy too (so the copy remembers the old place), but no new block is
   taken: until somebody changes it, the block that is about to be written serves both trees.
4. A clean buffer (generation 0) without children may be evicted.  `used` is set while a read map or a write map of a
   LUN refers to it, which also keeps it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from crc32c import crc32c

from wafl.allocator import DATA_RUN_BLOCKS, Allocator
from wafl.device import Device
from wafl.errors import CorruptVolume, DamagedRecord, NoSpace, ReadOnlyVolume, SpaceHeld, VolumeFailed
from wafl.format import BIRTH_PLANE, BLOCK_BYTES, BLOCK_SHIFT, CRC_PLANE, HOLE, POINTERS, VBN_PLANE, ZERO

if TYPE_CHECKING:
    from wafl.inode import Inode
    from wafl.nvlog import Log

DEAD = -1
"""Generation of a buffer that is in no live tree any more."""
CLEAN = 0

ACTIVE, INODE_FILE, VOLUME = 0, 1, 2
"""Strata: files of the active file system; the inode file that points at them; the volume's own files.  A checkpoint
writes them in this order, each lowest level first, because each holds checksums of the one before."""
READ_ONLY = 3
"""Trees inside snapshots."""

MAX_LEVELS = 8
EAGER_WRITES = 16
"""Blocks written for each sync, at most, for hosts to count as eager to have them synced: as databases do."""
EAGER_SYNCS = 16
"""After so many syncs in a run nobody waits for its end to find that."""
EAGER_BLOCKS = 256
"""For them runs are so long, and written out beforehand."""
HELD = "the volume is full, and something that reads it keeps freed blocks: try again"
PIECE_BLOCKS = 2048
"""Preallocation goes by 8 MiB."""

Vector = npt.NDArray[np.uint64]


class PointerMap:
    """256 pointers for reading: what a LUN's read map holds for one MiB."""

    __slots__ = ("crcs", "data", "generation", "vbns")

    def __init__(self, data: bytes | bytearray) -> None:
        self.data = data
        planes = memoryview(data)
        self.vbns = planes[VBN_PLANE].cast("Q")
        self.crcs = planes[CRC_PLANE].cast("I")
        self.generation = DEAD

    def vector(self) -> Vector:
        """The vbn plane as a vector (shares memory)."""
        return np.frombuffer(self.data, "<u8", POINTERS)

    def crc_vector(self) -> npt.NDArray[np.uint32]:
        return np.frombuffer(self.data, "<u4", POINTERS, CRC_PLANE.start)


def _uniform(mark: int) -> PointerMap:
    return PointerMap(np.full(POINTERS, mark, "<u8").tobytes() + bytes(BLOCK_BYTES - VBN_PLANE.stop))


HOLE_MAP = _uniform(HOLE)
"""Stands for an absent level-1 block under a HOLE."""
ZERO_MAP = _uniform(ZERO)
"""Stands for an absent level-1 block under a ZERO."""
EMPTY = {HOLE: bytes(BLOCK_BYTES), ZERO: bytes(ZERO_MAP.data)}


class Buffer(PointerMap):
    """One block in memory: a pointer block, or a block of records at level 0."""

    __slots__ = ("births", "children", "level", "parent", "slot", "used", "vbn")
    data: bytearray

    def __init__(self, data: bytearray, level: int, parent: Buffer | Inode, slot: int, vbn: int) -> None:
        super().__init__(data)
        self.births = memoryview(data)[BIRTH_PLANE].cast("I")
        self.level = level
        self.parent = parent
        self.slot = slot
        self.vbn = vbn
        self.generation = CLEAN
        self.children: dict[int, Buffer] = {}
        self.used = False

    def inode(self) -> Inode:
        node: Buffer | Inode = self
        while isinstance(node, Buffer):
            node = node.parent
        return node


class FrozenCopy:
    """A frozen buffer as it was when the live one moved on."""

    __slots__ = ("crcs", "data", "parent", "slot", "vbn")

    def __init__(self, buffer: Buffer, data: bytearray) -> None:
        self.data = data
        self.crcs = memoryview(data)[CRC_PLANE].cast("I")
        self.parent = buffer.parent
        self.slot = buffer.slot
        self.vbn = buffer.vbn


DirtyLists = list[list[list[Buffer]]]
"""[stratum][level] -> buffers."""


def _no_dirty() -> DirtyLists:
    return [[[] for _ in range(MAX_LEVELS)] for _ in range(3)]


class Core:
    """What all trees of one mounted volume share."""

    def __init__(
        self, device: Device, allocator: Allocator, generation: int, *, read_only: bool, cache_bytes: int
    ) -> None:
        self.device = device
        self.allocator = allocator
        self.generation = generation
        self.frozen = 0
        self.durable = generation - 1
        """The last consistency point that would survive a power cut."""
        self.copies: dict[Buffer, FrozenCopy] = {}
        self.dirty: DirtyLists = _no_dirty()
        self.dirty_inodes: dict[Inode, None] = {}
        self.dirty_buffers = 0
        self.tree_blocks = self.own_blocks = 0
        """Blocks but data blocks that the trees of the active file system, and of the volume, have won since the mount
        (wafl.audit)."""
        self.uncounted_data = 0
        """Data blocks, since the mount, of graveyards whose LUN is gone: no inode counts them."""
        self.read_only = read_only
        self.log: Log | None = None
        """Set by the volume when it has replayed what an earlier mount left."""
        self.failure: BaseException | None = None
        self.relieve: Callable[[], bool] = lambda: False
        """Set by the volume: does what may free blocks at once; False if nothing was left to do."""
        self.recheck_reserve: Callable[[], bool] = lambda: False
        """Set by the file system: adds up what is kept back for reserved LUNs; True if that is less than before."""
        self.cool: Callable[[], None] = lambda: None
        """Set by the volume: empties all read and write maps, so that their buffers may be evicted."""
        self.cold: int | None = None
        """The last byte of the device that the disk was asked to read; None: nothing since it was waited for."""
        self.one_writer = Lock()
        """Threads that write for clones hold it.  A file has one writer at a time; who waits in the kernel spins."""
        self.syncs = 0
        """Since the last data run began."""
        self._run_blocks = DATA_RUN_BLOCKS
        self.eager = False
        """Hosts have what they write synced almost at once."""
        self._prepared = bytearray(allocator.blocks // PIECE_BLOCKS + 1)
        """Pieces of the device that this mount has preallocated."""
        self.cache_limit = max(64, cache_bytes // (BLOCK_BYTES + 1024))
        self.cached = 0
        self._lukewarm = False
        self._evict_above = self.cache_limit * 7 // 8
        self._queue: OrderedDict[Buffer, None] = OrderedDict()
        """Pointer blocks in memory, the oldest first; a dead one is not among them."""
        self.part: Callable[[Buffer], bool] = lambda buffer: False
        """Set where blocks can be shared: a pointer block gets a place of its own; True if the old one stays, because
        others name it too (wafl.references)."""

    # --- state -----------------------------------------------------------------------------------------------------

    def check_writable(self) -> None:
        if self.failure is not None:
            raise VolumeFailed(f"the volume takes no changes since a write failed: {self.failure}")
        if self.read_only:
            raise ReadOnlyVolume("the volume is mounted read-only")

    def check_changeable(self) -> None:
        """Before a change that the log will have.  Raises what `check_writable` raises; NoSpace while neither the log
        has room for it nor the volume for a consistency point instead."""
        self.check_writable()
        if self.log is not None and self.log.nearly_full and self.allocator.cramped:
            raise SpaceHeld(HELD)

    def ensure(self, blocks: int, floor: int, *, wait: bool = True) -> None:
        """Room for `blocks` more above `floor`, or NoSpace.  With `wait` a shortage is first met by a consistency
        point on the spot (it makes freed blocks allocatable): a stall, but not a false 'full'."""
        allocator = self.allocator
        # The rest of the data run is as good as free: it is what guests take next, and a freeze gives it back.
        while allocator.free + allocator.end - allocator.next - blocks < floor:
            if not (wait and self.relieve()):
                raise self._full(blocks + floor - allocator.free - allocator.end + allocator.next)

    def _full(self, short: int) -> NoSpace:
        """So many blocks are missing."""
        held = self.allocator.readers.holding and self.allocator.freeing >= short
        return SpaceHeld(HELD) if held else NoSpace()

    def ensure_for(self, blocks: int, *, reserved: bool, frees: bool = False, wait: bool = True) -> None:
        """Room for a LUN's write of `blocks`, or for an UNMAP that takes so many and `frees` more, or NoSpace."""
        allocator = self.allocator
        while True:
            short = blocks + allocator.floor_for(reserved=reserved, frees=frees) - allocator.free
            if short <= allocator.end - allocator.next:
                return
            # What reserved LUNs have written of their reserve need not be kept back any more.
            if not (self.recheck_reserve() or (wait and self.relieve())):
                raise self._full(short - allocator.end + allocator.next)

    def synced(self) -> None:
        """A host's flush was answered.  Who flushes so often has not to wait for the end of a long run that is not
        written out, where each sync takes twice as long."""
        allocator = self.allocator
        left = allocator.end - allocator.next
        used = self._run_blocks - left
        if not self.eager and left > EAGER_BLOCKS and self.syncs >= EAGER_SYNCS and used <= EAGER_WRITES * self.syncs:
            self.eager = True
            allocator.give_back_run()

    def new_run(self, reserved: int = 0) -> None:
        """The next run of blocks for data; a reserved LUN says how many it needs now.  A file allocates them in large
        pieces, each once: a write into one is then a quarter cheaper than into a hole."""
        allocator = self.allocator
        if allocator.end:  # a run that a freeze has cut short says nothing about hosts
            self.eager = self.syncs * EAGER_WRITES >= self._run_blocks
        allocator.refill(reserved, EAGER_BLOCKS if self.eager else DATA_RUN_BLOCKS)
        self.syncs, self._run_blocks = 0, allocator.end - allocator.next
        if self.eager and self._run_blocks >= EAGER_BLOCKS // 4:
            self._write_out(allocator.next, self._run_blocks)
            return
        for offset, length in self.unprepared(allocator.next, allocator.end):
            self.device.preallocate(offset, length)

    def unprepared(self, start: int, end: int) -> list[tuple[int, int]]:
        """(offset, length) of the pieces of the device around these blocks that nobody has preallocated; the caller
        does."""
        found = []
        for piece in range(start // PIECE_BLOCKS, (end - 1) // PIECE_BLOCKS + 1):
            if not self._prepared[piece]:
                self._prepared[piece] = 1
                length = min(PIECE_BLOCKS, self.allocator.blocks - piece * PIECE_BLOCKS)
                found.append((piece * PIECE_BLOCKS << BLOCK_SHIFT, length << BLOCK_SHIFT))
        return found

    def _write_out(self, vbn: int, blocks: int) -> None:
        """Zeros where data will be: syncing what is written into unallocated space of a file takes twice as long."""
        with suppress(OSError):  # a hint only: the write itself reports what is wrong
            self.device.pwrite(vbn << BLOCK_SHIFT, (bytes(blocks << BLOCK_SHIFT),))

    def prepare_anew(self, old_blocks: int) -> None:
        """The device has grown: what is new, the piece at the old end with it, is not preallocated."""
        del self._prepared[old_blocks // PIECE_BLOCKS :]
        self._prepared.extend(bytes(self.allocator.blocks // PIECE_BLOCKS + 1 - len(self._prepared)))

    def swap_dirty(self) -> DirtyLists:
        """The freeze: hand over the dirty lists and begin the next generation."""
        lists, self.dirty = self.dirty, _no_dirty()
        self.dirty_buffers = 0
        self.frozen = self.generation
        self.generation += 1
        return lists

    # --- making and changing ---------------------------------------------------------------------------------------

    def own(self, node: Buffer | Inode) -> None:
        """Make `node` and its ancestors part of the generation now being collected."""
        if not isinstance(node, Buffer):
            node.touch(self)
            return
        generation = self.generation
        if node.generation == generation:
            return
        if node.generation:
            self._keep_copy(node)
        parent, slot, inode = node.parent, node.slot, node.inode()
        self.own(parent)
        allocator = self.allocator
        old = node.vbn
        if inode.stratum == VOLUME:
            new = allocator.take_own_block()
            if old:
                allocator.free_own(old)
            else:
                self.own_blocks += 1
        else:
            new = allocator.take_pointer_block()
            if not old:
                self.tree_blocks += 1
            elif not self.part(node):
                allocator.freed.append(old)
        node.vbn = parent.vbns[slot] = new
        parent.births[slot] = node.generation = generation
        self.dirty[inode.stratum][node.level].append(node)
        self.dirty_buffers += 1

    def _keep_copy(self, buffer: Buffer) -> None:
        if buffer.generation == self.frozen and buffer not in self.copies:
            self.copies[buffer] = FrozenCopy(buffer, bytearray(buffer.data))

    def create(self, parent: Buffer | Inode, slot: int, level: int, mark: int) -> Buffer:
        """A new pointer block full of `mark` in a slot that holds no block."""
        buffer = Buffer(bytearray(EMPTY[mark]), level, parent, slot, 0)
        self.own(buffer)
        parent.children[slot] = buffer
        self._admit(buffer)
        return buffer

    def reparent(self, buffer: Buffer, parent: Buffer | Inode, slot: int) -> None:
        """Move a buffer in memory (the caller moves the pointer).  Call `settle` before."""
        del buffer.parent.children[buffer.slot]
        buffer.parent, buffer.slot = parent, slot
        parent.children[slot] = buffer

    def settle(self, buffer: Buffer) -> None:
        """Before a buffer changes its parent: rule 3."""
        if self.frozen:
            self._keep_copy(buffer)

    def discard(self, buffer: Buffer) -> None:
        """The block leaves the live tree: free it; the caller has owned the parent and clears its slot."""
        if self.frozen and buffer.generation == self.frozen and buffer not in self.copies:
            self.copies[buffer] = FrozenCopy(buffer, buffer.data)
        elif buffer.generation == self.generation:
            self.dirty_buffers -= 1
        self.allocator.freed.append(buffer.vbn)
        self.tree_blocks -= 1
        buffer.generation = DEAD
        if buffer.parent.children.pop(buffer.slot, None) is not None and buffer.level > 0:
            self._dismiss(buffer)

    def leave(self, parent: Buffer | Inode, slot: int, let_go: Callable[[int], None]) -> None:
        """The block in this slot, which others name too, leaves this tree with all below it; the caller has owned the
        parent."""
        child = parent.children.get(slot)
        if child is not None:
            self.forget_tree(child)
            child.generation = DEAD
            del parent.children[slot]
            self._dismiss(child)
        let_go(parent.vbns[slot])
        self.tree_blocks -= 1
        parent.vbns[slot] = HOLE
        parent.crcs[slot] = parent.births[slot] = 0

    def forget_tree(self, node: Buffer | Inode) -> None:
        """Drop all buffers below `node` from memory (a tree inside a snapshot that goes)."""
        for child in node.children.values():
            self.forget_tree(child)
            child.generation = DEAD
            if child.level > 0:
                self._dismiss(child)
        node.children.clear()

    # --- reading ---------------------------------------------------------------------------------------------------

    def prefetch(self, offset: int, length: int) -> None:
        """The disk begins to read what a `nowait` call did not find."""
        self.device.prefetch(offset, length)
        self.cold = offset + length - 1

    def load(self, parent: Buffer | Inode, slot: int, level: int, nowait: bool = False) -> Buffer | None:
        """Read and verify the child block at `slot`; None if `nowait` and the disk would have to be waited for."""
        vbn, expected = parent.vbns[slot], parent.crcs[slot]
        blocks = self.allocator.blocks
        if vbn >= blocks:
            raise DamagedRecord(f"a pointer to block {vbn} of {blocks}", vbn)
        data = bytearray(BLOCK_BYTES)
        offset = vbn << BLOCK_SHIFT
        if not nowait:
            self.device.pread(offset, data)
        elif not self.device.pread_nowait(offset, data):
            self.prefetch(offset, BLOCK_BYTES)
            return None
        found = crc32c(data)
        if found != expected:
            number = parent.number if not isinstance(parent, Buffer) else parent.inode().number
            raise CorruptVolume(vbn, expected, found, f"inode {number}, level-{level} block")
        buffer = Buffer(data, level, parent, slot, vbn)
        # Once for all: whoever reads, frees or follows these pointers later need not look.
        if level and int(buffer.vector().max()) >= blocks:
            raise DamagedRecord(f"block {vbn} points beyond the volume's {blocks} blocks", vbn)
        parent.children[slot] = buffer
        if level:
            self._admit(buffer)
        return buffer

    def _admit(self, buffer: Buffer) -> None:
        self.cached += 1
        self._queue[buffer] = None
        if self.cached > self._evict_above:
            self._evict()

    def _dismiss(self, buffer: Buffer) -> None:
        self.cached -= 1
        self._queue.pop(buffer, None)

    def _evict(self) -> None:
        """Second chance: at 7/8 of the limit every map is emptied; at the limit, what came back into no map goes."""
        if not self._lukewarm:
            self._lukewarm = True
            self._evict_above = self.cache_limit
            self.cool()
            return
        goal = self.cache_limit * 3 // 4
        # Not the newest: whoever loaded it is still at work on it.
        for _ in range(len(self._queue) - 1):
            if self.cached <= goal:
                break
            self._evict_oldest()
        self._lukewarm = False
        # If dirty buffers fill the cache, look again only after some more have come.
        self._evict_above = max(self.cache_limit * 7 // 8, self.cached + self.cache_limit // 16)

    def _evict_oldest(self) -> None:
        buffer, _ = self._queue.popitem(last=False)
        if buffer.parent.children.get(buffer.slot) is not buffer:
            return
        if buffer.generation or buffer.children or buffer.used or buffer.inode().pinned:
            self._queue[buffer] = None
            return
        del buffer.parent.children[buffer.slot]
        self.cached -= 1
