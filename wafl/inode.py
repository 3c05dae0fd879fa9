"""Inodes in memory, and files of fixed records (inode file, vtoc, snapshot table).

An `Inode` is the head of a buffer tree and looks like a buffer with one slot, so that tree code has one case.
Record files are small (a thousand LUNs are 250 blocks) and stay in memory whole: a freeze never waits for the disk.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from wafl.buffers import ACTIVE, INODE_FILE, READ_ONLY, VOLUME, Buffer, Core
from wafl.errors import DamagedRecord
from wafl.format import (
    BLOCK_BYTES,
    COUNTS,
    HOLE,
    INODE,
    MAP_BITS,
    MAX_HEIGHT,
    MAX_LUN_BYTES,
    MAX_LUNS,
    MAX_VOLUME_BYTES,
    POINTERS,
    VTOC_ENTRY,
    ZERO,
    InodeFlag,
    InodeType,
    Record,
    height_for,
)

if TYPE_CHECKING:
    from wafl.recount import Recount

SIZE_LIMITS = {
    InodeType.VTOC: MAX_LUNS * VTOC_ENTRY.size,
    InodeType.ACTIVE_MAP: MAX_VOLUME_BYTES // MAP_BITS,
    InodeType.REFERENCE_COUNTS: MAX_VOLUME_BYTES // COUNTS,
    InodeType.LUN: MAX_LUN_BYTES,
}
"""Bytes.  A graveyard has none: its size is that of the subtrees in it."""


class Inode:
    """One file: its tree's root pointer, its height and its counters."""

    __slots__ = (
        "adopted",
        "births", "blocks", "children", "crcs", "generation", "height", "number", "owner", "owner_generation",
        "pinned", "private_blocks", "private_exact", "private_since", "recount", "size_bytes", "stratum", "type",
        "vbns",
    )  # fmt: skip

    def __init__(self, number: int, kind: InodeType, generation: int, size_bytes: int, stratum: int = ACTIVE) -> None:
        self.number = number
        self.type = kind
        self.generation = generation
        self.size_bytes = size_bytes
        self.height = height_for(-(-size_bytes // BLOCK_BYTES))
        self.blocks = 0
        """DATA blocks (level 0) of a LUN, with those of its graveyards that are not yet reclaimed."""
        self.adopted = False
        """Its tree may have adopted subtrees, which are not in `blocks`."""
        self.owner = self.owner_generation = 0
        """Of a graveyard: the LUN inode whose blocks it holds."""
        self.recount: Recount | None = None
        self.set_private(0, 0)
        self.vbns = [HOLE]
        self.crcs = [0]
        self.births = [0]
        self.children: dict[int, Buffer] = {}
        self.stratum = stratum
        self.pinned = False

    def touch(self, core: Core) -> None:
        """The inode changed: its record is written by the next consistency point."""
        if self.stratum == ACTIVE:
            core.dirty_inodes[self] = None

    def set_private(self, blocks: int, since: int, *, exact: bool = True) -> None:
        """Of a LUN: `blocks` of its DATA blocks were born after generation `since`, or more if not `exact`.  Kept up
        to date by whoever changes pointers; a recount that is under way is given up."""
        self.private_blocks = blocks
        self.private_since = since
        self.private_exact = exact
        self.recount = None

    def gain_private(self, index: int, births: npt.NDArray[np.uint32]) -> None:
        """Pointers of level-1 `index`, with these births (0: a mark), are about to name new blocks."""
        self.private_blocks += int(np.count_nonzero(births <= self.private_since))
        if self.recount is not None:
            self.recount.replaced(index, births)

    def lose_private(self, blocks: int, *, exact: bool) -> None:
        """So many private blocks are the LUN's no longer, or fewer if not `exact`."""
        self.private_blocks = max(0, self.private_blocks - blocks)
        if not exact:
            self.private_exact = False
            self.recount = None

    def lose_births(self, index: int, births: npt.NDArray[np.uint32]) -> None:
        """Blocks of level-1 `index` with these births are not the LUN's any more, or not its alone."""
        self.lose_private(int(np.count_nonzero(births > self.private_since)), exact=True)
        if self.recount is not None:
            self.recount.lost(index, births)

    def record(self) -> bytes:
        return INODE.pack(
            number=self.number,
            type=int(self.type),
            height=self.height,
            generation=self.generation,
            size_bytes=self.size_bytes,
            blocks=self.blocks,
            root_vbn=self.vbns[0],
            root_crc=self.crcs[0],
            root_birth=self.births[0],
            owner=self.owner,
            owner_generation=self.owner_generation,
            flags=int(InodeFlag.EXACT) * self.private_exact | int(InodeFlag.ADOPTED) * self.adopted,
            private_blocks=self.private_blocks,
            private_since=self.private_since,
        )

    @classmethod
    def from_record(cls, fields: dict[str, Any], stratum: int = ACTIVE) -> Inode:
        try:
            kind = InodeType(fields["type"])
        except ValueError:
            raise DamagedRecord(f"inode {fields['number']} has the unknown type {fields['type']}") from None
        inode = cls(fields["number"], kind, fields["generation"], fields["size_bytes"], stratum)
        inode.height = fields["height"] if kind is not InodeType.FREE else 1
        inode._check(SIZE_LIMITS.get(kind))
        inode.blocks = fields["blocks"]
        inode.owner, inode.owner_generation = fields["owner"], fields["owner_generation"]
        exact = bool(fields["flags"] & InodeFlag.EXACT)
        inode.adopted = bool(fields["flags"] & InodeFlag.ADOPTED)
        inode.set_private(fields["private_blocks"], fields["private_since"], exact=exact)
        inode.vbns, inode.crcs, inode.births = [fields["root_vbn"]], [fields["root_crc"]], [fields["root_birth"]]
        return inode

    @classmethod
    def from_root(cls, number: int, kind: InodeType, root: dict[str, Any], stratum: int) -> Inode:
        """A tree whose root an fsinfo or a snapshot entry holds (fields of `format.TreeRoot`)."""
        inode = cls(number, kind, 0, root["size_bytes"], stratum)
        inode.height = root["height"]
        inode._check(SIZE_LIMITS[InodeType.ACTIVE_MAP])
        inode.vbns, inode.crcs, inode.births = [root["root_vbn"]], [root["root_crc"]], [root["root_birth"]]
        return inode

    def _check(self, limit: int | None) -> None:
        """Nothing that follows this tree goes on for ever, or reads beside it."""
        height, size = self.height, self.size_bytes
        if not 1 <= height <= MAX_HEIGHT or size > POINTERS**height * BLOCK_BYTES or (limit and size > limit):
            raise DamagedRecord(f"inode {self.number} cannot have height {height} and {size} bytes")

    def root(self) -> dict[str, int]:
        """Fields of `format.TreeRoot`."""
        return {
            "root_vbn": self.vbns[0],
            "root_crc": self.crcs[0],
            "root_birth": self.births[0],
            "height": self.height,
            "size_bytes": self.size_bytes,
        }


def grow_height(core: Core, inode: Inode, height: int) -> None:
    """Put new roots above the old one until the tree has `height`."""
    while inode.height < height:
        if inode.vbns[0] != HOLE:
            _new_root(core, inode)
        inode.height += 1
    inode.touch(core)


def _new_root(core: Core, inode: Inode) -> None:
    old = inode.children.get(0)
    if old is not None:
        core.settle(old)
    vbn, crc, birth = inode.vbns[0], inode.crcs[0], inode.births[0]
    inode.vbns[0] = HOLE
    inode.children.pop(0, None)
    root = core.create(inode, 0, inode.height + 1, HOLE)
    root.vbns[0], root.crcs[0], root.births[0] = vbn, crc, birth
    if old is not None:
        old.parent, old.slot = root, 0
        root.children[0] = old


def node_for_writing(core: Core, inode: Inode, level: int, index: int) -> Buffer:
    """The level-`level` block number `index` of the tree, made if absent, owned by this generation."""
    parent: Buffer | Inode = inode
    slot, at = 0, inode.height
    while True:
        state = parent.vbns[slot]
        node = parent.children.get(slot)
        if node is None:
            node = core.create(parent, slot, at, state) if state in (HOLE, ZERO) else core.load(parent, slot, at)
            assert node is not None
        if at == level:
            core.own(node)
            return node
        at -= 1
        slot = (index >> 8 * (at - level)) & (POINTERS - 1)
        parent = node


class RecordFile:
    """A file of fixed records, all its blocks in memory."""

    def __init__(self, core: Core, inode: Inode, record: Record) -> None:
        self.core = core
        self.inode = inode
        self.record = record
        self.per_block = BLOCK_BYTES // record.size
        self.blocks: list[Buffer] = []
        inode.pinned = True

    @property
    def capacity(self) -> int:
        return len(self.blocks) * self.per_block

    def load(self) -> None:
        """Read all of it."""
        for fbn in range(self.inode.size_bytes // BLOCK_BYTES):
            level_one = load_path(self.core, self.inode, fbn >> 8)
            block = self.core.load(level_one, fbn & 255, 0)
            assert block is not None
            self.blocks.append(block)

    def records(self) -> Iterator[tuple[int, dict[str, Any]]]:
        for index in range(self.capacity):
            block = self.blocks[index // self.per_block]
            yield index, self.record.unpack(block.data, index % self.per_block * self.record.size)

    def block_for(self, index: int) -> Buffer:
        """The block of record `index`, owned by this generation; the file grows to reach it."""
        number = index // self.per_block
        while number >= len(self.blocks):
            self._append()
        block = self.blocks[number]
        self.core.own(block)
        return block

    def put(self, index: int, data: bytes) -> None:
        at = self.place(index)
        self.block_for(index).data[at : at + self.record.size] = data

    def place(self, index: int) -> int:
        """Offset of record `index` in its block."""
        return index % self.per_block * self.record.size

    def _append(self) -> None:
        fbn = len(self.blocks)
        grow_height(self.core, self.inode, height_for(fbn + 1))
        level_one = node_for_writing(self.core, self.inode, 1, fbn >> 8)
        block = Buffer(bytearray(BLOCK_BYTES), 0, level_one, fbn & 255, 0)
        level_one.children[fbn & 255] = block
        self.core.own(block)
        self.blocks.append(block)
        self.inode.size_bytes = len(self.blocks) * BLOCK_BYTES
        self.inode.touch(self.core)

    def tree_blocks(self, extra: int = 0) -> int:
        """Blocks of the whole tree if the file grows by `extra`."""
        return tree_blocks(len(self.blocks) + extra)


def load_path(core: Core, inode: Inode, index: int) -> Buffer:
    """The level-1 block `index` of a tree that has one there."""
    parent: Buffer | Inode = inode
    slot = 0
    for level in range(inode.height, 0, -1):
        node = parent.children.get(slot) or core.load(parent, slot, level)
        assert node is not None
        if level == 1:
            return node
        slot = (index >> 8 * (level - 2)) & (POINTERS - 1)
        parent = node
    raise DamagedRecord(f"inode {inode.number} has no tree")


def tree_blocks(leaves: int) -> int:
    """Blocks of a full tree of `leaves` leaves, the leaves with it."""
    total = level = max(leaves, 1)
    while True:
        level = -(-level // POINTERS)
        total += level
        if level == 1:
            return total


__all__ = ["ACTIVE", "INODE_FILE", "READ_ONLY", "VOLUME", "Inode", "RecordFile", "grow_height", "node_for_writing"]
