"""Map files: the active map (a file of the active file system, so each snapshot has its own) and the summary.

A map file's level-0 blocks are rows of a bit array that is in memory whole; they have no buffers.  A row without a
set bit may be a HOLE.  Its pointer blocks stay in memory, so a freeze never waits for the disk.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from crc32c import crc32c

from wafl.bits import Bits, Vbns
from wafl.buffers import VOLUME, Buffer, Core
from wafl.errors import CorruptVolume
from wafl.format import BLOCK_BYTES, BLOCK_SHIFT, FIRST_DATA_VBN, POINTERS
from wafl.inode import Inode, node_for_writing, tree_blocks
from wafl.tree import level_one


class RowImage(NamedTuple):
    """One frozen row on its way to the disk."""

    leaf: Buffer
    slot: int
    vbn: int
    data: bytes


def read_row(core: Core, inode: Inode, row: int, into: Bits, *, nowait: bool = False) -> bool:
    """Read row `row` of any map file, a snapshot's too, into `into`; zeros for a HOLE.  False if `nowait` and the disk
    would have to be waited for."""
    pointers = level_one(core, inode, row >> 8, nowait)
    if pointers is None:
        return False
    slot = row & (POINTERS - 1)
    vbn = pointers.vbns[slot]
    if vbn < FIRST_DATA_VBN:
        into[:] = 0
        return True
    if not nowait:
        core.device.pread(vbn << BLOCK_SHIFT, into.data)
    elif not core.device.pread_nowait(vbn << BLOCK_SHIFT, into.data):
        core.prefetch(vbn << BLOCK_SHIFT, BLOCK_BYTES)
        return False
    found = crc32c(into.data)
    if found != pointers.crcs[slot]:
        raise CorruptVolume(vbn, pointers.crcs[slot], found, f"map inode {inode.number}, row {row}")
    return True


class MapFile:
    """The active map or the summary of a mounted volume."""

    def __init__(self, core: Core, inode: Inode) -> None:
        self.core = core
        self.inode = inode
        inode.pinned = True

    def load(self, bits: Bits) -> None:
        """Read the whole map (and with it every pointer block) into `bits`."""
        rows = len(bits) // BLOCK_BYTES
        for index in range(-(-rows // POINTERS)):
            pointers = level_one(self.core, self.inode, index)
            assert pointers is not None
            for slot in np.flatnonzero(pointers.vector() >= FIRST_DATA_VBN).tolist():
                row = index * POINTERS + slot
                read_row(self.core, self.inode, row, bits[row * BLOCK_BYTES : (row + 1) * BLOCK_BYTES])

    def assign(self, rows: Iterable[int]) -> None:
        """Give each row a new place in this generation, which may dirty other rows."""
        core, allocator = self.core, self.core.allocator
        volume_own = self.inode.stratum == VOLUME
        for row in rows:
            leaf = node_for_writing(core, self.inode, 1, row >> 8)
            slot = row & (POINTERS - 1)
            old = leaf.vbns[slot]
            leaf.vbns[slot] = allocator.take_own_block() if volume_own else allocator.take_pointer_block()
            leaf.births[slot] = core.generation
            if old >= FIRST_DATA_VBN:
                if volume_own:
                    allocator.free_own(old)
                else:
                    allocator.freed.append(old)
            elif volume_own:
                core.own_blocks += 1
            else:
                core.tree_blocks += 1

    def images(self, bits: Bits, rows: set[int]) -> list[RowImage]:
        """Copies of the rows as they are now, with their new places."""
        images = []
        for row in rows:
            leaf = node_for_writing(self.core, self.inode, 1, row >> 8)
            slot = row & (POINTERS - 1)
            data = bits[row * BLOCK_BYTES : (row + 1) * BLOCK_BYTES].tobytes()
            images.append(RowImage(leaf, slot, leaf.vbns[slot], data))
        return images

    def growth(self) -> int:
        """Blocks that the file may still grow by: a row is a HOLE until a block in it is used."""
        return tree_blocks(self.core.allocator.chunks) - len(self.block_vbns())

    def block_vbns(self) -> Vbns:
        """The vbns of all blocks of the file."""
        return tree_vbns(self.core, self.inode)


def count_older(core: Core, inode: Inode, generation: int) -> int:
    """Rows of a map file that were written in `generation` or before."""
    total = 0
    for index in range(-(-inode.size_bytes // BLOCK_BYTES // POINTERS)):
        pointers = level_one(core, inode, index)
        if isinstance(pointers, Buffer):
            births = np.asarray(pointers.births)
            total += int(((births <= generation) & (pointers.vector() >= FIRST_DATA_VBN)).sum())
    return total


def tree_vbns(core: Core, inode: Inode, leaf_level: int = 0) -> Vbns:
    """The vbns of all blocks of a file from its root down to `leaf_level`."""
    found: list[Vbns] = [np.array([v for v in inode.vbns if v >= FIRST_DATA_VBN], dtype=np.uint64)]
    nodes: list[Buffer | Inode] = [inode]
    for level in range(inode.height, leaf_level, -1):
        below: list[Buffer | Inode] = []
        for node in nodes:
            for slot, vbn in enumerate(node.vbns):
                if vbn >= FIRST_DATA_VBN:
                    child = node.children.get(slot) or core.load(node, slot, level)
                    assert child is not None
                    below.append(child)
                    vbns = child.vector()
                    found.append(vbns[vbns >= FIRST_DATA_VBN])
        nodes = below
    return np.concatenate(found)


def tree_is_here(core: Core, inode: Inode) -> bool:
    """Whether the pointer blocks of a file are in memory; what is not is being read, a level at a time."""
    nodes: list[Buffer | Inode] = [inode]
    try:
        for level in range(inode.height, 0, -1):
            below = [
                node.children.get(slot) or core.load(node, slot, level, nowait=True)
                for node in nodes for slot, vbn in enumerate(node.vbns) if vbn >= FIRST_DATA_VBN
            ]  # fmt: skip
            nodes = [node for node in below if node is not None]
            if len(nodes) < len(below):
                return False
    except (CorruptVolume, OSError):  # met by whoever needs it
        pass
    return True
