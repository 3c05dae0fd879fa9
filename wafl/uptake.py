"""Taking up: subtrees that only a snapshot names become the active file system's, by one more pointer to their roots.

A pointer block has the active bit if and only if the active file system reaches it (invariant B1), and whoever reaches
it reaches all below it.  So with the root go all pointer blocks below it that have no such bit, down to where one has:
each of their pointers counts from then on.  A child that the active file system does not name gets its bit by the first
of them.

All pointer blocks in question are read, and verified, before anything changes; they are read past the cache, which has
better things to keep.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wafl.bits import Vbns, are_set
from wafl.buffers import Buffer, Core
from wafl.checksums import Crcs, first_wrong
from wafl.errors import CorruptVolume, DamagedRecord
from wafl.fill import runs_of
from wafl.format import BLOCK_BYTES, BLOCK_SHIFT, CRC_PLANE, FIRST_DATA_VBN, VBN_PLANE
from wafl.inode import Inode


@dataclass(frozen=True, slots=True)
class Pointers:
    vbns: Vbns
    crcs: Crcs

    def first(self, number: int) -> Pointers:
        return Pointers(self.vbns[:number], self.crcs[:number])

    def those(self, which: npt.NDArray[np.bool_] | npt.NDArray[np.intp]) -> Pointers:
        return Pointers(self.vbns[which], self.crcs[which])


@dataclass(frozen=True, slots=True)
class Uptake:
    roots: int | None
    """Of how many, from the front; None: all."""
    blocks: int
    """Pointer blocks that become the active file system's."""
    pointers: Sequence[Vbns]
    """All that these name, as often as they do."""
    tree_blocks: int
    """How many of those are pointer blocks."""
    data_blocks: int


NOTHING = Uptake(None, 0, (), 0, 0)


def pointers_at(parent: Buffer | Inode, slots: list[int]) -> Pointers:
    vbns = np.array([parent.vbns[slot] for slot in slots], np.uint64)
    return Pointers(vbns, np.array([parent.crcs[slot] for slot in slots], np.uint32))


def take_up(core: Core, roots: Pointers, level: int, most: int) -> Uptake | None:
    """What there is to take up with these roots of `level`; None if that is more than `most` pointer blocks.  Frees
    have been applied.  Raises CorruptVolume, OSError."""
    new = _unnamed(core, roots)
    blocks, data_blocks = len(new.vbns), 0
    pointers: list[Vbns] = []
    while len(new.vbns) and blocks <= most:
        children = _read(core, new)
        pointers.append(children.vbns)
        if level == 1:
            data_blocks = len(children.vbns)
            break
        new = _unnamed(core, children)
        blocks += len(new.vbns)
        level -= 1
    if blocks > most:
        return None
    return Uptake(len(roots.vbns), blocks, pointers, sum(map(len, pointers)) - data_blocks, data_blocks)


def _unnamed(core: Core, pointers: Pointers) -> Pointers:
    """Each block once that the active file system does not name, ascending."""
    new = pointers.those(~are_set(core.allocator.active, pointers.vbns))
    _, first = np.unique(new.vbns, return_index=True)
    return new.those(first)


def _read(core: Core, blocks: Pointers) -> Pointers:
    """What these pointer blocks, ascending, name."""
    view = memoryview(bytearray(len(blocks.vbns) << BLOCK_SHIFT))
    data = np.frombuffer(view, np.uint8).reshape(-1, BLOCK_BYTES)
    for low, high in runs_of(blocks.vbns):
        core.device.pread(int(blocks.vbns[low]) << BLOCK_SHIFT, view[low << BLOCK_SHIFT : high << BLOCK_SHIFT])
    if wrong := first_wrong(view, blocks.crcs):
        at, found = wrong
        raise CorruptVolume(int(blocks.vbns[at]), int(blocks.crcs[at]), found, "pointer block of a snapshot")
    vbns = np.ascontiguousarray(data[:, VBN_PLANE]).view("<u8").reshape(-1)
    crcs = np.ascontiguousarray(data[:, CRC_PLANE]).view("<u4").reshape(-1)
    if int(vbns.max()) >= core.allocator.blocks:
        raise DamagedRecord(f"a pointer to block {int(vbns.max())} of {core.allocator.blocks}")
    return Pointers(vbns, crcs).those(vbns >= FIRST_DATA_VBN)
