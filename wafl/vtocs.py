"""Reading the vtocs inside snapshots.

A snapshot never changes, and neighbours share most of their vtoc's blocks: what is worked out of a block is kept by the
block's place and birth, which no other block ever has together.  So 255 snapshots of 1,000 LUNs cost what differs
between them.  Everything here is derived and may be forgotten at any time.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from crc32c import crc32c

from wafl.buffers import Buffer, Core
from wafl.errors import CorruptVolume
from wafl.format import BLOCK_BYTES, BLOCK_SHIFT, FIRST_DATA_VBN, POINTERS, VTOC_ENTRY, EntryState, decode_text
from wafl.inode import Inode
from wafl.maps import read_row, tree_is_here
from wafl.tree import level_one

Dependencies = dict[int, list[str]]
"""snapshot id -> names of the LUNs of one vtoc that read through it."""
Named = tuple[tuple[int, str], ...]
"""(snapshot id, name of the LUN that reads through it)"""

BLOCKS_KEPT = 65536
"""Blocks whose findings are kept: as many as 255 vtocs of 1,000 LUNs have if they share none.  Most keep an empty
tuple, so this is some 10 MiB at the very most."""
BACKING_AT, NAME_AT = VTOC_ENTRY.offset_of("backing_snapshot"), VTOC_ENTRY.offset_of("name")
_STATE, _BACKING = struct.Struct("<I"), struct.Struct("<Q")
_INODE = struct.Struct("<I4xQ")
INODE_AT = VTOC_ENTRY.offset_of("inode")
PLACES = range(0, BLOCK_BYTES, VTOC_ENTRY.size)

Place = tuple[int, int]
"""(block of the vtoc, offset in it)"""


def read_block(core: Core, inode: Inode, fbn: int) -> bytearray:
    """A level-0 block of any file, verified; zeros for a HOLE."""
    pointers = level_one(core, inode, fbn >> 8)
    assert pointers is not None
    slot = fbn & (POINTERS - 1)
    vbn, data = pointers.vbns[slot], bytearray(BLOCK_BYTES)
    if vbn >= FIRST_DATA_VBN:
        core.device.pread(vbn << BLOCK_SHIFT, data)
        found = crc32c(data)
        if found != pointers.crcs[slot]:
            raise CorruptVolume(vbn, pointers.crcs[slot], found, f"inode {inode.number}, block {fbn}")
    return data


def blocks_are_here(core: Core, inode: Inode, fbns: Iterable[int]) -> bool:
    """Whether `read_block` of each waits for no disk; what is missing is being read, all of it."""
    block = np.empty(BLOCK_BYTES, np.uint8)
    ready = [read_row(core, inode, fbn, block, nowait=True) for fbn in fbns]
    return all(ready)


def file_is_here(core: Core, inode: Inode) -> bool:
    """The same of all its blocks."""
    return tree_is_here(core, inode) and blocks_are_here(core, inode, range(inode.size_bytes // BLOCK_BYTES))


class Vtocs:
    """Of all snapshots of one mounted volume."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._named: dict[tuple[int, int], Named] = {}
        """(vbn, birth) of a vtoc block -> what its LUNs read through."""
        self._places: tuple[int, dict[tuple[int, int], Place]] = (0, {})
        """Of one snapshot: (inode, generation) -> where the vtoc entry is."""

    def entries(self, vtoc: Inode) -> list[dict[str, Any]]:
        """The fields of every LUN's entry."""
        found = [VTOC_ENTRY.unpack(block, at) for _, block in self._blocks(vtoc) for at in _live(block)]
        self._core.forget_tree(vtoc)
        return found

    def dependencies(self, vtoc: Inode) -> Dependencies:
        found: Dependencies = {}
        for fbn in range(vtoc.size_bytes // BLOCK_BYTES):
            pointers = level_one(self._core, vtoc, fbn >> 8)
            if isinstance(pointers, Buffer):
                slot = fbn & (POINTERS - 1)
                key = pointers.vbns[slot], pointers.births[slot]
                named = self._named.get(key)
                if named is None:
                    if len(self._named) >= BLOCKS_KEPT:
                        self._named.clear()
                    named = self._named[key] = _named(read_block(self._core, vtoc, fbn))
                for number, name in named:
                    found.setdefault(number, []).append(name)
        self._core.forget_tree(vtoc)
        return found

    def entry(self, snapshot_id: int, vtoc: Inode, inode: int, generation: int) -> dict[str, Any] | None:
        """The entry of the LUN with this inode, or None.  Several of one snapshot in a row cost one block each."""
        if self._places[0] != snapshot_id:
            places = {
                _INODE.unpack_from(block, at + INODE_AT): (fbn, at)
                for fbn, block in self._blocks(vtoc)
                for at in _live(block)
            }
            self._places = snapshot_id, places
        place = self._places[1].get((inode, generation))
        if place is None:
            return None
        fbn, at = place
        fields = VTOC_ENTRY.unpack(read_block(self._core, vtoc, fbn), at)
        self._core.forget_tree(vtoc)
        return fields

    def _blocks(self, vtoc: Inode) -> Iterator[tuple[int, bytearray]]:
        for fbn in range(vtoc.size_bytes // BLOCK_BYTES):
            yield fbn, read_block(self._core, vtoc, fbn)


def _live(block: bytearray) -> Iterator[int]:
    """Where entries in use begin."""
    return (at for at in PLACES if _STATE.unpack_from(block, at)[0] == EntryState.LIVE)


def _named(block: bytearray) -> Named:
    found = ((_BACKING.unpack_from(block, at + BACKING_AT)[0], at + NAME_AT) for at in _live(block))
    return tuple((number, decode_text(bytes(block[at : at + 256]))) for number, at in found if number)
