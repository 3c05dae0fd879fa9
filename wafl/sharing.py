"""Sharing: blocks of one LUN become blocks of another, or of another place of the same, by pointer.

What EXTENDED COPY, ODX and WRITE SAME of a pattern come down to.  Nothing is read and nothing written but pointers and
counts (wafl.references).

Rules:

- All that can fail is done first: looking up the source's pointers, finding room, owning the pointer blocks.  Then
  counts and pointers change in one go.
- A shared block is nobody's private one (wafl.reserve): both pointers have birth 0.  Where the source reads through a
  snapshot its pointer is not its own and stays; then it is the counts' `since` that says so.
- A share is logged by what it says, not by the blocks it found: a replay shares what the source names at that moment
  of the replay, which reads the same (fills are not logged, so it may be another copy of it).
- The checksum goes with the pointer: a damaged block is an error wherever it is read, and never wrong bytes.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from crc32c import crc32c

from wafl.ahead import RANGES_A_CALL
from wafl.buffers import Buffer, PointerMap
from wafl.checksums import Crcs
from wafl.errors import BackingLost, CorruptVolume, InvalidSize, NoSpace
from wafl.format import BLOCK_BYTES, BLOCK_SHIFT, FIRST_DATA_VBN, HOLE, LEVEL_ONE_BYTES, POINTERS, ZERO
from wafl.tree import Births, data_births
from wafl.views import BLOCK_MASK, SLOT_MASK

if TYPE_CHECKING:
    from wafl.bits import Vbns
    from wafl.lun import Lun

LOST_CRC = 0xFFFFFFFF
"""Beside the right checksum of a block it is a wrong one."""


@dataclass(frozen=True, slots=True)
class _Piece:
    """Neighbours within one level-1 range of both LUNs."""

    index: int
    low: int
    source_index: int
    source_low: int
    vbns: Vbns
    """The blocks that the source reads there, or marks (a copy)."""
    crcs: Crcs

    @property
    def data(self) -> Vbns:
        found: Vbns = self.vbns[self.vbns >= FIRST_DATA_VBN]
        return found

    def cut(self, blocks: int) -> _Piece:
        return replace(self, vbns=self.vbns[:blocks], crcs=self.crcs[:blocks])


def share(lun: Lun, offset: int, source: Lun, source_offset: int, length: int) -> int:
    """Called by `Lun.share`."""
    for which, start in ((lun, offset), (source, source_offset)):
        if start < 0 or length < 0 or start + length > which.size_bytes:
            raise InvalidSize(f"{which.name}: bytes {start} to {start + length} are not within {which.size_bytes}")
    overlap = lun is source and abs(offset - source_offset) < length
    if not length or (offset | source_offset | length) & BLOCK_MASK or overlap or source.files is not lun.files:
        return 0
    fbn, source_fbn, blocks = offset >> BLOCK_SHIFT, source_offset >> BLOCK_SHIFT, length >> BLOCK_SHIFT
    try:
        if empty := _empty(source, source_offset, length):
            lun.unmap(offset, empty)
            return empty
        pieces = _plan(fbn, source, source_fbn, blocks)
        _make_room(lun, source, pieces)
        lun.files.references.make()
        done = _share(lun, source, pieces)
    except (NoSpace, CorruptVolume, BackingLost, OSError):
        return 0  # whoever copies will hear of it, and where
    log = lun.core.log
    if done and log is not None:
        if lun.backing is None and not lun.fills_durable:
            log.do_without()  # as for an UNMAP: a replay would find the backing still there
        else:
            log.share(lun.slot, fbn, source.slot, source_fbn, done)
    return done << BLOCK_SHIFT


def _empty(source: Lun, offset: int, length: int) -> int:
    """Bytes from `offset` on that certainly have no data, as the upper levels of the trees tell."""
    at = offset
    for _ in range(RANGES_A_CALL):
        span = source.empty_span(at // LEVEL_ONE_BYTES) if at < offset + length else 0
        if not span:
            break
        at = (at // LEVEL_ONE_BYTES + span) * LEVEL_ONE_BYTES
    return min(at - offset, length)


def _plan(fbn: int, source: Lun, source_fbn: int, blocks: int) -> list[_Piece]:
    """What the source has in `blocks` blocks, or in the first of them: it ends before what is empty or unreadable.
    Raises CorruptVolume, BackingLost, OSError if nothing can be read."""
    pieces: list[_Piece] = []
    at = 0
    while at < blocks and len(pieces) < RANGES_A_CALL:
        low, index = (fbn + at) & SLOT_MASK, (fbn + at) >> 8
        source_low, source_index = (source_fbn + at) & SLOT_MASK, (source_fbn + at) >> 8
        count = min(blocks - at, POINTERS - low, POINTERS - source_low)
        try:
            if at and source.empty_span(source_index):
                break
            pointers = source.read_map(source_index)
        except (CorruptVolume, BackingLost, OSError):
            if at:
                break
            raise
        assert pointers is not None
        here = slice(source_low, source_low + count)
        vbns, crcs = pointers.vector()[here].copy(), pointers.crc_vector()[here].copy()
        pieces.append(_Piece(index, low, source_index, source_low, vbns, crcs))
        at += count
    return pieces


def _make_room(lun: Lun, source: Lun, pieces: list[_Piece]) -> None:
    """For pointer blocks, for what reserved LUNs lose of what was theirs alone, for the counts.  Raises NoSpace."""
    files, core = lun.files, lun.core
    blocks = sum(len(piece.vbns) for piece in pieces)
    trees = 2 * len(pieces) + 2 * (lun.inode.height + source.inode.height) + 4
    both = 2 if lun is source else 1
    more = sum(files.reserve.needed_more(which, both * blocks) for which in {lun, source} if which.reserved)
    needed = trees + more + files.references.blocks_to_make()
    try:
        core.ensure(needed, core.allocator.floor_guest, wait=False)
    except NoSpace:
        files.reserve.refresh()  # what reserved LUNs have written need not be kept back any more
        core.ensure(needed, core.allocator.floor_guest)


def _share(lun: Lun, source: Lun, pieces: list[_Piece]) -> int:
    """The number of blocks, from the front, that could be shared.  Raises CorruptVolume, OSError, nothing changed."""
    files = lun.files
    owns: list[PointerMap] = []
    for piece in pieces:
        try:
            own = source.own_map(piece.source_index)
            assert own is not None
            if len(_young(own, piece)):
                own = source.leaf(piece.source_index)
            lun.leaf(piece.index)
        except (CorruptVolume, OSError):
            if not owns:
                raise
            break
        owns.append(own)  # as it is: what was not owned may be out of the cache when counts have changed
    pieces = pieces[: len(owns)]
    data = np.concatenate([piece.data for piece in pieces])
    before = [(which, files.reserve.needed_by(which)) for which in {lun, source}]
    if not lun.core.read_only:  # else this is a replay, and nothing will ever be given back
        grant = files.references.grant(data)
        pieces = _cut(pieces, grant.most)
        grant.use()
    for piece, own in zip(pieces, owns, strict=False):
        _give(source, piece, own)
        _take(lun, piece)
    for which, needed in before:
        files.reserve.raised(which, needed)
    return sum(len(piece.vbns) for piece in pieces)


def _cut(pieces: list[_Piece], granted: int) -> list[_Piece]:
    """The pieces up to the first block that was not granted."""
    kept = []
    for piece in pieces:
        here = np.flatnonzero(piece.vbns >= FIRST_DATA_VBN)
        if len(here) > granted:
            if here[granted]:
                kept.append(piece.cut(int(here[granted])))
            break
        kept.append(piece)
        granted -= len(here)
    return kept


def _young(own: PointerMap, piece: _Piece) -> Births:
    """Births, those of blocks that the source holds itself and that may count as its own alone."""
    if not isinstance(own, Buffer):
        return np.empty(0, np.uint32)
    births = data_births(own, piece.source_low, piece.source_low + len(piece.vbns))
    young: Births = births[births > 0]
    return young


def _give(source: Lun, piece: _Piece, own: PointerMap) -> None:
    """The source's pointers say that their blocks are shared."""
    here = slice(piece.source_low, piece.source_low + len(piece.vbns))
    if ((own.vector()[here] == HOLE) & (piece.vbns >= FIRST_DATA_VBN)).any():
        assert source.backing is not None
        files = source.files
        files.references.shared_through(files.snapshot_generation(source.backing.snapshot_id))
    young = _young(own, piece)
    if len(young):
        assert isinstance(own, Buffer)
        source.inode.lose_births(piece.source_index, young)
        np.asarray(own.births)[here] = 0


def _take(lun: Lun, piece: _Piece) -> None:
    """The pointers of the LUN become the source's."""
    leaf, low, high = lun.leaf(piece.index), piece.low, piece.low + len(piece.vbns)
    first = piece.index << 8
    lun.covered(leaf, piece.index, low, high)
    old = leaf.vector()[low:high]
    gone = old[old >= FIRST_DATA_VBN]
    lun.core.allocator.freed.frombytes(gone.tobytes())
    lun.inode.lose_births(piece.index, data_births(leaf, low, high))
    data = piece.vbns >= FIRST_DATA_VBN
    lun.inode.blocks += int(np.count_nonzero(data)) - len(gone)
    limit = lun.backing.limit_bytes >> BLOCK_SHIFT if lun.backing is not None else 0
    below = np.arange(first + low, first + high) < limit
    old[:] = np.where(data, piece.vbns, np.where(below, np.uint64(ZERO), np.uint64(HOLE)))
    leaf.crc_vector()[low:high] = np.where(data, piece.crcs, 0)
    np.asarray(leaf.births)[low:high] = 0
    if lun.maps is not lun.own:
        lun.forget(lun.maps, first + low, first + high)


# --- replay ----------------------------------------------------------------------------------------------------------


def replay_share(lun: Lun, fbn: int, source: Lun, source_fbn: int, blocks: int) -> None:
    """A logged share.  What cannot be read of the source cannot be read of the LUN either: it must not show what was
    there before.  Raises CorruptVolume, with the rest done, and OSError."""
    lun.files.references.make()
    failed: CorruptVolume | None = None
    while blocks:
        done = min(blocks, POINTERS - (fbn & SLOT_MASK), POINTERS - (source_fbn & SLOT_MASK))
        try:
            shared = _share(lun, source, _plan(fbn, source, source_fbn, blocks))
            done = shared or 1
            if not shared:
                _copy(lun, fbn, source, source_fbn)
        except CorruptVolume as error:
            failed = failed or error
            with suppress(CorruptVolume):  # if the LUN's own pointers are lost, it shows nothing either
                _lose(lun, fbn, done)
        fbn, source_fbn, blocks = fbn + done, source_fbn + done, blocks - done
    if failed is not None:
        raise failed


def _copy(lun: Lun, fbn: int, source: Lun, source_fbn: int) -> None:
    """One block: there are too many pointers to the one that the source reads without the fills that were lost.  Where
    guests have no room left it comes out of what is kept back for work under way.  Raises NoSpace."""
    data = memoryview(bytearray(BLOCK_BYTES))
    source.read_into(source_fbn << BLOCK_SHIFT, data)
    core = lun.core
    lun.leaf(fbn >> 8)
    if core.allocator.free <= core.allocator.floor_reserved:
        raise NoSpace("the volume has no room to copy what was shared: mount it to be read only, and copy its LUNs")
    vbn = core.allocator.take_pointer_block()
    core.device.pwrite(vbn << BLOCK_SHIFT, (data,))
    lun.point_at(fbn, vbn, [crc32c(data)])


def _lose(lun: Lun, fbn: int, blocks: int) -> None:
    """Blocks within one level-1 range become one block with a checksum that does not fit: reading them is an error,
    writing heals.  However full the volume is."""
    core, references = lun.core, lun.files.references
    while blocks:
        lun.leaf(fbn >> 8)
        vbn = core.allocator.take_pointer_block()
        block = bytearray(BLOCK_BYTES)
        core.device.pread(vbn << BLOCK_SHIFT, block)
        grant = references.grant(np.full(blocks - 1, vbn, np.uint64))
        grant.use()
        vbns = np.full(1 + grant.most, vbn, np.uint64)
        crcs = np.full(len(vbns), crc32c(block) ^ LOST_CRC, np.uint32)
        _take(lun, _Piece(fbn >> 8, fbn & SLOT_MASK, 0, 0, vbns, crcs))
        fbn, blocks = fbn + len(vbns), blocks - len(vbns)
