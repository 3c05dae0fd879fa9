"""Operations on a file's buffer tree: finding level-1 blocks, punching ranges out, burying and trimming subtrees.

Rules:

- A subtree that a punch covers whole is not walked.  Its pointer moves to a *graveyard*, an inode of type ZOMBIE
  with a slot per buried subtree, one graveyard for each (LUN, level); reclaim trims it later.  So UNMAP of any range
  costs the height of the tree, and a crash forgets nothing: the graveyard is a file like any other.
- A graveyard of level-L subtrees keeps subtree k where an ordinary file has its level-L block k; the checker and
  reclaim need no special case for it.
- `blocks` of the LUN's inode counts what is buried until it is trimmed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from wafl.buffers import HOLE_MAP, ZERO_MAP, Buffer, Core, PointerMap
from wafl.errors import CorruptVolume
from wafl.format import BIRTH_PLANE, BLOCK_BYTES, FIRST_DATA_VBN, HOLE, POINTERS, ZERO, height_for
from wafl.inode import Inode, grow_height, node_for_writing

Births = npt.NDArray[np.uint32]

COUNT_LOOKS = 1024
"""Blocks of one level that counting a tree's level-1 blocks reads at most: 256 GiB are counted exactly."""

GraveyardOf = Callable[[Inode, int], Inode]
"""(LUN inode, level of the subtrees) -> the graveyard to use, made if there is none."""


def level_one(core: Core, inode: Inode, index: int, nowait: bool = False) -> PointerMap | None:
    """The level-1 block `index` of the file itself: a Buffer, HOLE_MAP or ZERO_MAP; None only with `nowait`."""
    level = inode.height
    if index >> 8 * (level - 1):
        return HOLE_MAP
    parent: Buffer | Inode = inode
    slot = 0
    while True:
        vbn = parent.vbns[slot]
        if vbn < FIRST_DATA_VBN:
            return ZERO_MAP if vbn else HOLE_MAP
        node = parent.children.get(slot) or core.load(parent, slot, level, nowait)
        if node is None or level == 1:
            return node
        level -= 1
        slot = (index >> 8 * (level - 1)) & (POINTERS - 1)
        parent = node


def absent_leaves(core: Core, inode: Inode, first: int, end: int) -> list[int]:
    """Where those of the level-1 blocks `first` to `end` - 1 lie that are not in memory, ascending; as far as one block
    of level 2 names them."""
    level = inode.height
    if level < 2 or first >> 8 * (level - 1):
        return []
    parent: Buffer | Inode = inode
    slot = 0
    while level > 1:
        if parent.vbns[slot] < FIRST_DATA_VBN:
            return []
        node = parent.children.get(slot) or core.load(parent, slot, level)
        assert node is not None
        level -= 1
        slot = (first >> 8 * (level - 1)) & (POINTERS - 1)
        parent = node
    slots = range(slot, min(slot + end - first, POINTERS))
    return sorted(parent.vbns[each] for each in slots if each not in parent.children
                  and parent.vbns[each] >= FIRST_DATA_VBN)  # fmt: skip


def span_state(core: Core, inode: Inode, index: int) -> tuple[int, int]:
    """(state, level): the mark that covers level-1 index `index` and the level of the slot that holds it, or
    (vbn, 1) where a level-1 block exists.  A slot of level L covers 256**(L-1) level-1 indexes."""
    level = inode.height
    if index >> 8 * (level - 1):
        return HOLE, level
    parent: Buffer | Inode = inode
    slot = 0
    while True:
        vbn = parent.vbns[slot]
        if vbn < FIRST_DATA_VBN or level == 1:
            return vbn, level
        node = parent.children.get(slot) or core.load(parent, slot, level)
        assert node is not None
        level -= 1
        slot = (index >> 8 * (level - 1)) & (POINTERS - 1)
        parent = node


def leaves_at_most(core: Core, inode: Inode) -> int:
    """How many level-1 blocks the file has, or somewhat more: a large tree is only read down to where COUNT_LOOKS
    blocks tell it."""
    parents: list[Buffer | Inode] = [inode]
    level = inode.height
    while True:
        found = [(node, slot) for node in parents for slot in _data_slots(node)]
        if level == 1 or len(found) > COUNT_LOOKS:
            return len(found) << 8 * (level - 1)
        parents = []
        for node, slot in found:
            child = node.children.get(slot) or core.load(node, slot, level)
            assert child is not None
            parents.append(child)
        level -= 1


def _data_slots(node: Buffer | Inode) -> list[int]:
    slots: list[int] = np.flatnonzero(np.array(node.vbns, dtype=np.uint64) >= FIRST_DATA_VBN).tolist()
    return slots


def path_to(core: Core, inode: Inode, index: int, levels: int) -> Iterator[tuple[Buffer | Inode, int]]:
    """(node, slot) of the pointers on the way down to level-1 `index`, from that to its block of level `levels` on; a
    mark ends it."""
    level = inode.height
    parent: Buffer | Inode = inode
    slot = 0 if not index >> 8 * (level - 1) else -1
    while level and slot >= 0:
        if level <= levels:
            yield parent, slot
        if parent.vbns[slot] < FIRST_DATA_VBN or level == 1:
            return
        node = parent.children.get(slot) or core.load(parent, slot, level)
        assert node is not None
        level -= 1
        slot = (index >> 8 * (level - 1)) & (POINTERS - 1)
        parent = node


def young_leaf(core: Core, inode: Inode, index: int, since: int) -> tuple[int, Births] | None:
    """The first level-1 block at `index` or behind it that was written after generation `since`: its index, and the
    births of the blocks it names.  A child is never younger than its parent, so older subtrees are passed over."""
    return _young_below(core, inode, inode.height, 0, index, since)


def _young_below(
    core: Core, node: Buffer | Inode, level: int, base: int, index: int, since: int
) -> tuple[int, Births] | None:
    """Below the slots of `node`, whose children are of `level` and cover level-1 indexes from `base` on."""
    reach = 1 << 8 * (level - 1)
    young = (np.array(node.vbns, dtype=np.uint64) >= FIRST_DATA_VBN) & (np.array(node.births) > since)
    for slot in np.flatnonzero(young).tolist():
        first = base + slot * reach
        if first + reach <= index:
            continue
        child = node.children.get(slot) or core.load(node, slot, level)
        assert child is not None
        if level == 1:
            return first, data_births(child)
        found = _young_below(core, child, level - 1, first, index, since)
        if found is not None:
            return found
    return None


def data_births(leaf: Buffer, low: int = 0, high: int = POINTERS) -> Births:
    """Births of the blocks that slots low to high - 1 name (a copy)."""
    births: Births = np.frombuffer(leaf.data, "<u4", POINTERS, BIRTH_PLANE.start)[low:high]
    return births[leaf.vector()[low:high] >= FIRST_DATA_VBN]


def index_of(leaf: Buffer) -> int:
    """Which level-1 block of its file this is."""
    index, unit = 0, 1
    node: Buffer | Inode = leaf
    while isinstance(node, Buffer):
        if isinstance(node.parent, Buffer):
            index += node.slot * unit
        unit *= POINTERS
        node = node.parent
    return index


class Punch:
    """One range of one file becomes HOLE or ZERO."""

    def __init__(self, core: Core, inode: Inode, mark: int, graveyard_of: GraveyardOf, *, go_on: bool = False) -> None:
        """`go_on`: past damaged pointer blocks: what is below one cannot be read, whatever it was to become."""
        self.core = core
        self.inode = inode
        self.mark = mark
        self.graveyard_of = graveyard_of
        self.go_on = go_on
        self.damage: CorruptVolume | None = None
        """The first that it went on past."""

    def run(self, low: int, high: int) -> None:
        """Blocks low to high - 1."""
        inode = self.inode
        capacity = POINTERS**inode.height
        high = min(high, capacity)
        if low >= high:
            return
        if (low, high) == (0, capacity):
            self._clear_slots(inode, 0, 1, inode.height)
            inode.set_private(0, inode.private_since)
            return
        self._punch_part(inode, 0, inode.height, low, high)

    def _punch(self, node: Buffer, low: int, high: int) -> None:
        """Blocks low to high - 1 relative to what `node` covers."""
        if node.level == 1:
            self._punch_leaf(node, low, high)
            return
        span = POINTERS ** (node.level - 1)
        first, last = low // span, -(-high // span)
        if low % span or (first == last - 1 and high % span):
            self._punch_part(node, first, node.level - 1, low - first * span, min(high - first * span, span))
            first += 1
        if first < last and high % span:
            last -= 1
            self._punch_part(node, last, node.level - 1, 0, high - last * span)
        if first < last:
            self._clear_slots(node, first, last, node.level - 1)

    def _punch_part(self, parent: Buffer | Inode, slot: int, level: int, low: int, high: int) -> None:
        try:
            child = self._enter(parent, slot, level)
        except CorruptVolume as error:
            if not self.go_on:
                raise
            self.damage = self.damage or error
            return
        if child is not None:
            self._punch(child, low, high)

    def _enter(self, parent: Buffer | Inode, slot: int, level: int) -> Buffer | None:
        """The child to punch in part, or None if it reads as wanted already."""
        state = parent.vbns[slot]
        # Only ranges without a backing become HOLE, and there ZERO reads the same.
        if state == self.mark or (state == ZERO and self.mark == HOLE):
            return None
        if state < FIRST_DATA_VBN:
            return self.core.create(parent, slot, level, state)
        return parent.children.get(slot) or self.core.load(parent, slot, level)

    def _punch_leaf(self, leaf: Buffer, low: int, high: int) -> None:
        if not self._differs(leaf.vector()[low:high]):
            return
        self.core.own(leaf)
        vbns = leaf.vector()[low:high]
        data = vbns[vbns >= FIRST_DATA_VBN]
        self.core.allocator.freed.frombytes(data.tobytes())
        self.inode.lose_births(index_of(leaf), data_births(leaf, low, high))
        self.inode.blocks -= len(data)
        self.inode.touch(self.core)
        self._write_marks(leaf, low, high)

    def _lose_below(self, node: Buffer | Inode, slot: int, level: int) -> None:
        """A whole subtree goes, which is not read for it: fewer blocks are private."""
        inode, child, birth = self.inode, node.children.get(slot), node.births[slot]
        if not birth:
            return  # adopted: the births in it are another LUN's, and nothing in it is private
        if level == 1 and child is not None:
            inode.lose_births(index_of(child), data_births(child))
        elif birth > inode.private_since:
            inode.lose_private(POINTERS**level, exact=False)
        elif inode.recount is not None and birth > inode.recount.since:
            inode.recount = None

    def _differs(self, vbns: np.ndarray[tuple[int, ...], np.dtype[np.uint64]]) -> bool:
        return bool((vbns != ZERO).any() if self.mark == ZERO else (vbns >= FIRST_DATA_VBN).any())

    def _write_marks(self, node: Buffer, low: int, high: int) -> None:
        node.vector()[low:high] = self.mark
        node.crc_vector()[low:high] = 0
        np.asarray(node.births)[low:high] = 0

    def _clear_slots(self, node: Buffer | Inode, first: int, last: int, level: int) -> None:
        """Slots that are covered whole: bury the subtrees, set the marks."""
        vbns = np.array(node.vbns[first:last], dtype=np.uint64)
        if not self._differs(vbns):
            return
        self.core.own(node)
        slots = (np.flatnonzero(vbns >= FIRST_DATA_VBN) + first).tolist()
        if slots:
            graveyard = self.graveyard_of(self.inode, level)
            for slot in slots:
                self._bury(node, slot, graveyard, level)
        if isinstance(node, Buffer):
            self._write_marks(node, first, last)
        else:
            self._set_slot(node, 0, self.mark, 0, 0)

    def _bury(self, node: Buffer | Inode, slot: int, graveyard: Inode, level: int) -> None:
        """Move one subtree.  Each step leaves pointer and graveyard consistent, whatever a later one meets."""
        core = self.core
        self._lose_below(node, slot, level)
        at = graveyard.size_bytes // (BLOCK_BYTES * POINTERS**level)
        grow_height(core, graveyard, max(level + 1, height_for((at + 1) * POINTERS**level)))
        grave = node_for_writing(core, graveyard, level + 1, at >> 8)
        child = node.children.get(slot)
        if child is not None:
            core.settle(child)
        place = at & (POINTERS - 1)
        self._set_slot(grave, place, node.vbns[slot], node.crcs[slot], node.births[slot])
        self._set_slot(node, slot, self.mark, 0, 0)
        if child is not None:
            core.reparent(child, grave, place)
        graveyard.size_bytes = (at + 1) * BLOCK_BYTES * POINTERS**level

    @staticmethod
    def _set_slot(node: Buffer | Inode, slot: int, vbn: int, crc: int, birth: int) -> None:
        node.vbns[slot], node.crcs[slot], node.births[slot] = vbn, crc, birth


def trim(core: Core, zombie: Inode, is_shared: Callable[[int], bool], let_go: Callable[[int], None]) -> int | None:
    """Free the last level-1 subtree of a zombie, or let go of a subtree that others name too.  Returns the number of
    data blocks that the inode has less by its own count, None when the tree is empty.  Needs room for the tree's height
    twice."""
    parent: Buffer | Inode = zombie
    slot, level = 0, zombie.height
    if zombie.vbns[0] < FIRST_DATA_VBN:
        return None
    counted = True
    while True:
        counted = counted and parent.births[slot] != 0
        shared = is_shared(parent.vbns[slot])
        if shared and not counted:
            core.own(parent)
            core.leave(parent, slot, let_go)
            return 0
        node = parent.children.get(slot) or core.load(parent, slot, level)
        assert node is not None
        if shared and level > 1:
            core.own(node)  # the inode counts what is below: so it is given back piece by piece
        vbns = node.vector()
        slots = np.flatnonzero(vbns >= FIRST_DATA_VBN)
        if shared and level == 1:
            core.own(parent)
            core.leave(parent, slot, let_go)
            core.uncounted_data += len(slots)
            return len(slots)
        if level == 1:
            core.allocator.freed.frombytes(vbns[slots].tobytes())
        elif len(slots):
            parent, slot, level = node, int(slots[-1]), level - 1
            continue
        core.own(parent)
        core.discard(node)
        parent.vbns[slot] = HOLE
        parent.crcs[slot] = parent.births[slot] = 0
        if level > 1 or counted:
            return len(slots)
        core.uncounted_data -= len(slots)
        return 0
