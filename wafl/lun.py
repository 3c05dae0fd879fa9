"""The write side of an active LUN: writes, UNMAP, size changes, and what a clone job asks of it.

Invariants kept here (docs/invariants.md numbers them):

- While the LUN has a backing, no block below its limit ever goes back to HOLE: UNMAP leaves ZERO.
- Shrinking lowers the limit for good; what is cut off becomes HOLE above the limit and reads zeros after growth.
- Bytes of the last block behind the LUN's size are zero.
- A guest write is in the volume, data and pointers, when `write` returns; a fill never replaces anything but a HOLE.

One call is one state change: nothing here waits or yields between the first change and the last.
"""

from __future__ import annotations

import dataclasses
import uuid as uuids
from array import array
from typing import TYPE_CHECKING

import numpy as np
from crc32c import crc32c

from wafl.adopt import UPTAKE_BLOCKS, adopt
from wafl.ahead import write_is_ready
from wafl.buffers import Buffer, PointerMap
from wafl.checksums import of_blocks
from wafl.device import Bytes
from wafl.errors import CorruptVolume, InvalidSize, LunBusy, NoSpace, NoSuchLun
from wafl.fill import FillPlan
from wafl.format import (
    BIRTH_PLANE,
    BLOCK_BYTES,
    BLOCK_SHIFT,
    CRC_PLANE,
    FIRST_DATA_VBN,
    HOLE,
    POINTERS,
    ZERO,
    encode_text,
    height_for,
)
from wafl.inode import Inode, grow_height, node_for_writing
from wafl.scan import Scan, missing_slots
from wafl.sharing import share
from wafl.tree import Punch
from wafl.types import Backing
from wafl.views import BLOCK_MASK, SLOT_MASK, ZERO_BLOCK

if TYPE_CHECKING:
    from wafl.files import Files

CRC_AT, BIRTH_AT = CRC_PLANE.start, BIRTH_PLANE.start
PIECE_BLOCKS = 32
"""What a reserved LUN writes at a time when room is short: with pointer blocks it fits into the least that is kept."""


class Lun(Scan):
    """An active LUN.  Attributes are for reading; the `set_` methods change them."""

    def __init__(
        self, files: Files, inode: Inode, name: str, uuid: uuids.UUID, *, serial: str, naa: bytes, size_bytes: int,
        block_bytes: int, ostype: str, comment: str, created_us: int, slot: int, backing: Backing | None,
        online: bool = True, reserved: bool = True, clone_requested: bool = False, missing: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(files.core, inode, size_bytes, name, backing, files.find_view)
        self.files = files
        self._pwrite = files.core.device.pwrite
        self.uuid = str(uuid)
        self.uuid_bytes = uuid.bytes
        self.serial = serial
        self.naa = naa
        self.block_bytes = block_bytes
        self.ostype = ostype
        self.comment = comment
        self.created_us = created_us
        self.slot = slot  # index in the vtoc
        self.online = online
        self.reserved = reserved
        self.clone_requested = clone_requested
        self.missing = missing
        self.destroyed = False

    @property
    def created_at(self) -> float:
        return self.created_us / 1e6

    @property
    def used_bytes(self) -> int:
        """Bytes in blocks of its own (what is unmapped counts until reclaim has freed it)."""
        return self.inode.blocks * BLOCK_BYTES

    @property
    def private_bytes(self) -> int:
        """Bytes in blocks that no snapshot can hold; until a recount that is due has ended, or more."""
        return self.inode.private_blocks * BLOCK_BYTES

    @property
    def kept_bytes(self) -> int:
        """Kept back for what may still be written to it: nothing unless it is reserved."""
        return self.files.reserve.needed_by(self) * BLOCK_BYTES if self.reserved else 0

    # --- administration --------------------------------------------------------------------------------------------

    def set_online(self, online: bool) -> None:
        self._change("online", online)

    def set_reserved(self, reserved: bool) -> None:
        """Keep room for all of its blocks from now on, or no longer.  Raises NoSpace."""
        self.check_changeable()
        if reserved and not self.reserved:
            self.files.reserve.check_enabled(self)
        self._change("reserved", reserved)
        self.files.reserve.refresh()

    def set_clone_requested(self, requested: bool) -> None:
        self._change("clone_requested", requested)

    def set_comment(self, comment: str) -> None:
        encode_text(comment, "comment")
        self._change("comment", comment)

    def set_serial(self, serial: str) -> None:
        if not encode_text(serial, "serial number", 31):
            raise InvalidSize("a serial number has 1 to 31 bytes")
        self._change("serial", serial)

    def _change(self, field: str, value: object) -> None:
        self.check_changeable()
        if getattr(self, field) != value:
            setattr(self, field, value)
            self.files.touch_lun(self)
            self.files.log_lun(self)

    def check_changeable(self) -> None:
        self.core.check_changeable()
        if self.destroyed:
            raise NoSuchLun(f"LUN {self.name} has been destroyed")

    # --- writing ---------------------------------------------------------------------------------------------------

    def write(self, offset: int, data: Bytes, nowait: bool = False) -> bool:
        """Write `data` at byte `offset`.  In the volume, not yet durable, on return.  With `nowait` False, and nothing
        is changed, if the disk would have to be waited for: it begins to read.
        Raises NoSpace, InvalidSize, ReadOnlyVolume, VolumeFailed, OSError; CorruptVolume and BackingLost when a
        block is changed in part."""
        if len(data) == BLOCK_BYTES and not offset & BLOCK_MASK:
            core = self.core
            allocator = core.allocator
            index = offset >> 20
            leaf = self.own.get(index)
            vbn = allocator.next
            if (leaf is not None and leaf.generation == core.generation and vbn < allocator.end
                    and offset + BLOCK_BYTES <= self.size_bytes):  # fmt: skip
                self._pwrite(vbn << BLOCK_SHIFT, (data,))
                allocator.next = vbn + 1
                slot = (offset >> BLOCK_SHIFT) & SLOT_MASK
                pointers = leaf.vbns
                old = pointers[slot]
                pointers[slot] = vbn
                leaf.crcs[slot] = crc = crc32c(data)
                births = leaf.births  # type: ignore[attr-defined]
                inode = self.inode
                if births[slot] <= inode.private_since:  # a mark, or what a snapshot may hold
                    inode.private_blocks += 1
                    if inode.recount is not None:
                        inode.recount.replaced(index, np.asarray(births[slot : slot + 1]))
                births[slot] = core.generation
                if self.maps is not self.own:
                    self.keep_composed(leaf, index, slot, old, vbn, crc)
                if old >= FIRST_DATA_VBN:
                    allocator.freed.append(old)
                else:
                    inode.blocks += 1
                if core.log is not None:
                    core.log.write_one(self.slot, offset >> BLOCK_SHIFT, vbn, crc)
                return True
        return self._write(offset, data, nowait)

    def keep_composed(self, leaf: PointerMap, index: int, slot: int, old: int, vbn: int, crc: int) -> None:
        composed = self.maps.get(index)
        # Where the backing adds nothing, the composed buffer is the leaf itself.
        if composed is not None and composed is not leaf:
            if old == HOLE and composed.vbns[slot] >= FIRST_DATA_VBN and self.missing:
                self.missing -= 1
            composed.vbns[slot] = vbn
            composed.crcs[slot] = crc

    def _write(self, offset: int, data: Bytes, nowait: bool) -> bool:
        self.check_changeable()
        length = len(data)
        if offset < 0 or offset + length > self.size_bytes:
            raise InvalidSize(f"{self.name}: bytes {offset} to {offset + length} are not within {self.size_bytes}")
        if nowait and not write_is_ready(self, offset, length):
            return False
        view = memoryview(data)
        if (offset | length) & BLOCK_MASK:
            offset, view = self.widen(offset, view)
        self._write_blocks(offset >> BLOCK_SHIFT, view)
        return True

    def _write_blocks(self, fbn: int, data: memoryview) -> None:
        core, allocator = self.core, self.core.allocator
        left = len(data) >> BLOCK_SHIFT
        trees = (left // POINTERS + 2) + 2 * self.inode.height
        try:
            core.ensure_for(left + trees, reserved=self.reserved)
        except NoSpace:
            if not self.reserved or left <= PIECE_BLOCKS:
                raise
            # Overwriting takes before it gives back, and there is not that much room at once.
            for first in range(0, left, PIECE_BLOCKS):
                piece = data[first << BLOCK_SHIFT : (first + PIECE_BLOCKS) << BLOCK_SHIFT]
                self._write_blocks(fbn + first, piece)
            return
        try:
            if left == 1 and (fbn + 1) << BLOCK_SHIFT <= self.size_bytes:
                self.leaf(fbn >> 8)
                if allocator.next == allocator.end:
                    core.new_run(self.reserved)
                self.write(fbn << BLOCK_SHIFT, data)  # which lacked one of these two
            else:
                self.place_blocks(fbn, data)
        finally:
            allocator.end_exact_run()

    def place_blocks(self, fbn: int, data: memoryview) -> None:
        core, allocator = self.core, self.core.allocator
        left, at = len(data) >> BLOCK_SHIFT, 0
        while left:
            # The leaf first: when space is short its place comes out of the data run.
            leaf = self.leaf(fbn >> 8)
            if allocator.next == allocator.end:
                core.new_run(left if self.reserved else 0)
            low = fbn & SLOT_MASK
            blocks = min(left, POINTERS - low, allocator.end - allocator.next)
            piece = data[at : at + (blocks << BLOCK_SHIFT)]
            self._pwrite(allocator.next << BLOCK_SHIFT, (piece,))
            vbn, crcs = allocator.next, of_blocks(piece)
            self._install(leaf, fbn >> 8, low, vbn, crcs)
            allocator.next += blocks
            if core.log is not None:
                core.log.write(self.slot, fbn, vbn, crcs)
            fbn, left, at = fbn + blocks, left - blocks, at + (blocks << BLOCK_SHIFT)

    def leaf(self, index: int) -> Buffer:
        """The level-1 block, made if absent, owned by this generation."""
        found = self.own.get(index)
        if isinstance(found, Buffer) and found.generation == self.core.generation:
            return found
        leaf = node_for_writing(self.core, self.inode, 1, index)
        if found is not leaf:
            # The composed buffer may have been the backing's own, or a uniform one.
            if self.maps is not self.own:
                self.maps.pop(index, None)
            leaf.used = True
            self.own[index] = leaf
        return leaf

    def _install(self, leaf: Buffer, index: int, low: int, vbn: int, crcs: list[int]) -> None:
        """Point slots from `low` on at the blocks from `vbn` on, and free what they pointed at."""
        blocks = len(crcs)
        high = low + blocks
        composed = self.covered(leaf, index, low, high)
        data = leaf.data
        # Vectors and raw bytes: a list of 256 integers costs as much as all else here together.
        old = np.frombuffer(data, "<u8", blocks, 8 * low)
        if np.minimum.reduce(old) < FIRST_DATA_VBN:
            old = old[old >= FIRST_DATA_VBN]
        self.core.allocator.freed.frombytes(old.tobytes())
        self.inode.blocks += blocks - len(old)
        self.inode.gain_private(index, np.asarray(leaf.births[low:high]))
        vbns = np.arange(vbn, vbn + blocks, dtype="<u8").tobytes()
        sums = array("I", crcs).tobytes()
        data[8 * low : 8 * high] = vbns
        data[CRC_AT + 4 * low : CRC_AT + 4 * high] = sums
        data[BIRTH_AT + 4 * low : BIRTH_AT + 4 * high] = self.core.generation.to_bytes(4, "little") * blocks
        if composed is not None and composed is not leaf:
            data = composed.data  # type: ignore[assignment]
            data[8 * low : 8 * high] = vbns
            data[CRC_AT + 4 * low : CRC_AT + 4 * high] = sums

    def covered(self, leaf: PointerMap, index: int, low: int, high: int) -> PointerMap | None:
        """Pointers of slots low to high - 1 are about to change: what of the backing shows there will not be missing
        any more.  The composed buffer, if there is one."""
        composed = self.maps.get(index) if self.maps is not self.own else None
        if composed is not None and self.missing:
            covered = (leaf.vector()[low:high] == HOLE) & (composed.vector()[low:high] >= FIRST_DATA_VBN)
            self.missing = max(0, self.missing - int(covered.sum()))
        return composed

    def point_at(self, fbn: int, vbn: int, crcs: list[int]) -> None:
        """Blocks from `fbn` on, within one level-1 range, are those from `vbn` on, which are marked and written."""
        self._install(self.leaf(fbn >> 8), fbn >> 8, fbn & SLOT_MASK, vbn, crcs)

    def install_blocks(self, index: int, low: int, vbn: int, crcs: list[int]) -> None:
        """A fill's blocks, already written, become the LUN's."""
        self._fill_generation = self.core.generation
        self._install(self.leaf(index), index, low, vbn, crcs)

    def share(self, offset: int, source: Lun, source_offset: int, length: int) -> int:
        """Make `length` bytes at `offset` the same blocks as those of `source` at its `source_offset`, both LUNs of one
        volume; holes become holes.  Returns how many bytes from the front have been done: bounded work a call, and 0
        where it cannot be done (a part of a block, ranges that overlap, too many pointers to a block, no room): then
        the caller copies.  Raises InvalidSize, ReadOnlyVolume, VolumeFailed, CorruptVolume, OSError."""
        self.check_changeable()
        return share(self, offset, source, source_offset, length)

    # --- unmapping and resizing ------------------------------------------------------------------------------------

    def unmap(self, offset: int, length: int) -> None:
        """Make the range read zeros and give back every whole block in it.
        Raises NoSpace, InvalidSize, ReadOnlyVolume, VolumeFailed, OSError."""
        self.check_changeable()
        end = offset + length
        if offset < 0 or end > self.size_bytes:
            raise InvalidSize(f"{self.name}: bytes {offset} to {end} are not within {self.size_bytes}")
        first = -(-offset // BLOCK_BYTES)
        last = -(-end // BLOCK_BYTES) if end == self.size_bytes else end // BLOCK_BYTES
        if first > last:  # inside one block
            self._zero_part(offset, end)
            return
        self._zero_part(offset, min(first << BLOCK_SHIFT, end))
        self._zero_part(last << BLOCK_SHIFT, end)
        if first < last:
            self._punch(first, last)

    def _zero_part(self, start: int, end: int) -> None:
        """Zeros into a part of one block, unless it reads zeros already."""
        if start >= end:
            return
        fbn = start >> BLOCK_SHIFT
        pointers = self.read_map(fbn >> 8)
        assert pointers is not None
        if pointers.vbns[fbn & SLOT_MASK] >= FIRST_DATA_VBN:
            self.write(start, ZERO_BLOCK[: end - start])

    def _punch(self, first: int, last: int, *, cut: bool = False) -> None:
        """Blocks first to last - 1 read zeros.  `cut`: the limit falls to `first`, so ZERO may go beyond it."""
        core = self.core
        core.ensure_for(8 * self.inode.height + 16, reserved=self.reserved, frees=True)
        self._make_empty(first, last, cut=cut)
        if core.log is None:
            return
        if self.backing is None and not self.fills_durable:
            # A replay would find the backing still there, and might lack the room for ZEROs where these are HOLEs.
            core.log.do_without()
        else:
            core.log.punch(self.slot, first, last, cut=cut)

    def replay_punch(self, first: int, last: int, *, cut: bool) -> CorruptVolume | None:
        """A logged UNMAP or shrink, but for what is below damaged pointer blocks of the LUN: the first one's error."""
        return self._make_empty(first, last, cut=cut, go_on=True)

    def _make_empty(self, first: int, last: int, *, cut: bool, go_on: bool = False) -> CorruptVolume | None:
        core, inode = self.core, self.inode
        limit = self.backing.limit_bytes >> BLOCK_SHIFT if self.backing else 0
        if last == -(-self.size_bytes // BLOCK_BYTES):
            last = POINTERS**inode.height  # nothing lies behind: whole subtrees go, none is left half empty
            if cut and first < limit:
                limit = last
        needed = self.files.reserve.needed_by(self)
        graveyard_of = self.files.graveyard_of
        zero, hole = (Punch(core, inode, mark, graveyard_of, go_on=go_on) for mark in (ZERO, HOLE))
        try:
            zero.run(first, min(last, limit))
            hole.run(max(first, limit), last)
        finally:
            self.forget(self.own, first, last)
            self.forget(self.maps, first, last)
            self.files.reserve.raised(self, needed)
        return zero.damage or hole.damage

    def forget(self, maps: dict[int, PointerMap], first: int, last: int) -> None:
        low, high = first >> 8, (last - 1) >> 8
        few = high - low < len(maps)
        for index in list(range(low, high + 1)) if few else [k for k in maps if low <= k <= high]:
            found = maps.pop(index, None)
            if maps is self.own and isinstance(found, Buffer):
                found.used = False

    def resize(self, size_bytes: int) -> None:
        """Set the size, which the volume has checked.  What is cut off is gone, also below the backing's limit."""
        self.check_changeable()
        core = self.core
        if size_bytes < self.size_bytes:
            self._shrink(size_bytes)
        else:
            self.files.reserve.check_size(self, size_bytes)
            grow_height(core, self.inode, height_for(-(-size_bytes // BLOCK_BYTES)))
        self.size_bytes = self.inode.size_bytes = size_bytes
        self.inode.touch(core)
        self.files.touch_lun(self)
        self.files.reserve.refresh()
        self.files.log_lun(self)

    def _shrink(self, size_bytes: int) -> None:
        old_end = -(-self.size_bytes // BLOCK_BYTES)
        end = -(-size_bytes // BLOCK_BYTES)
        if size_bytes & BLOCK_MASK:
            # Materialise the last block with a zero tail: the limit is whole blocks, and the tail must not come back.
            self._zero_part(size_bytes, min(end << BLOCK_SHIFT, self.size_bytes))
        # The limit falls last: if a pointer block cannot be read here, what is not cut off yet still reads as before.
        if end < old_end:
            self._punch(end, old_end, cut=True)
        self.lower_limit(end << BLOCK_SHIFT)

    def lower_limit(self, limit_bytes: int) -> None:
        """Never up again (invariant L2)."""
        backing = self.backing
        if backing is not None and backing.limit_bytes > limit_bytes:
            self.replace_backing(dataclasses.replace(backing, limit_bytes=limit_bytes))
            self.missing = min(self.missing, limit_bytes >> BLOCK_SHIFT)

    def replace_backing(self, backing: Backing | None) -> None:
        """Another limit, another name of the same backing, or none (the caller marks the vtoc entry)."""
        self.backing = backing
        self.cool()
        self.maps = self.own if backing is None else {}
        if backing is None:
            self._below = None

    def become(self, inode: Inode, backing: Backing, missing: int) -> None:
        """Restored: these are the LUN's contents from now on, and they are to be cloned (the caller sees to the old
        ones)."""
        self.replace_backing(backing)
        self._below = None
        self.inode, self.size_bytes, self.missing = inode, inode.size_bytes, missing
        self._fill_generation = self._complete = 0
        self.clone_requested = True
        self.files.touch_lun(self)

    # --- for the cloner --------------------------------------------------------------------------------------------

    def plan_fill(self, index: int, first: int = 0, max_blocks: int = POINTERS) -> FillPlan | None:
        """What to copy in level-1 `index` from slot `first` on, at most `max_blocks`; None: nothing is missing.
        The plan keeps its source blocks from being reused until `release`."""
        if self.backing is None:
            return None
        slots = missing_slots(self, index)
        slots = slots[slots >= first]
        if not len(slots):
            if not first and index <= self._complete:
                self._complete = max(self._complete, index + 1)
            return None
        return FillPlan(self, index, slots[:max_blocks])

    def install_fill(self, plan: FillPlan, data: Bytes | None) -> int:
        """Install what `plan.read()` has read and returned wherever the LUN still has a HOLE.  Returns the blocks
        filled; 0 if backing or tree are not the plan's any more.  Never logged (spec: no NVLOG protection).
        Raises NoSpace (at once, without a consistency point of its own), ReadOnlyVolume, VolumeFailed."""
        self.core.check_writable()
        if self.destroyed or self.backing is None or self.backing != plan.backing or self.inode is not plan.inode:
            return 0
        missing = self.missing
        filled = plan.install(data)
        if filled:
            # All of these were missing, whether or not a composed buffer was there to tell.
            self.missing = max(0, missing - filled)
            self.files.touch_lun(self)
        return filled

    def adopt(self, index: int, most: int = UPTAKE_BLOCKS) -> int:
        """Make what level-1 `index` misses, or whole subtrees from there on, the LUN's own by pointer; what it cost, in
        pointer blocks, of which it is to take up `most`; 0: nothing was adopted. What then is still missing has to be
        copied. Never logged. Raises NoSpace (at once), ReadOnlyVolume, VolumeFailed, CorruptVolume, BackingLost,
        OSError."""
        self.core.check_writable()
        return adopt(self, index, most) if not self.destroyed else 0

    def filled(self, blocks: int) -> None:
        """So many of its holes have been filled with what the backing has."""
        self._fill_generation = self.core.generation
        self.missing = max(0, self.missing - blocks)
        self.files.touch_lun(self)

    def detach(self) -> None:
        """Drop the backing: nothing is missing and every fill is durable, else LunBusy.  The snapshot stays busy
        until the next consistency point has made it durable (DESIGN 5, C1 and C2)."""
        self.check_changeable()
        backing = self.backing
        if backing is None:
            raise LunBusy(f"LUN {self.name} has no backing")
        if not self.fills_durable:
            raise LunBusy(f"LUN {self.name}: the last fills are not durable yet")
        while (index := self.next_missing(self._complete)) is not None:
            if len(missing_slots(self, index)):
                raise LunBusy(f"LUN {self.name} still misses blocks of its backing")
            self._complete = index + 1
        self.files.linger(self, backing)
        self.replace_backing(None)
        self._fill_generation = self.core.generation
        self.missing = 0
        self.files.touch_lun(self)
