"""Where a LUN's blocks live: blocks of its own, its backing's, or nowhere.  For a picture, with bounded work.

A LUN with few pointer blocks is looked at whole.  One of 16 TiB has 64 GiB of them: there, an even choice of the
subtrees that exist stands for their neighbours, and the layout says that it is not exact.  Where nothing is, the upper
levels tell exactly, whatever the size.

Nothing is kept over a yield but counts: each look goes down from the roots as they are then.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wafl.buffers import Buffer, Core, Vector
from wafl.errors import NoSuchLun
from wafl.format import BLOCK_BYTES, BLOCK_SHIFT, FIRST_DATA_VBN, HOLE, POINTERS, ZERO
from wafl.inode import Inode
from wafl.lun import Lun
from wafl.types import Step
from wafl.views import View

MAX_STRETCHES = 4096
EXACT_LOOKS = 4096
"""Places of pointer blocks that are looked at for an exact layout."""
SAMPLE_LOOKS = 1024
"""Level-1 buffers that stand for all others where there are more."""
SLICE_LOOKS = 4
"""Looks between two yields: each may read some blocks of every LUN in the chain."""
PATIENCE = 8
"""What is not in memory is read ahead while others run, so many times; then it is waited for."""

OWN, BACKING = 1, 2
_UNIFORM = {mark: np.full(POINTERS, mark, np.uint64) for mark in (HOLE, ZERO)}

Kinds = npt.NDArray[np.uint8]
Shares = npt.NDArray[np.float64]
"""Own blocks and blocks of the backing."""


@dataclass(frozen=True, slots=True)
class Stretch:
    offset: int
    length: int
    own: int
    """Bytes in blocks of the LUN's own."""
    backing: int
    """Bytes that it reads from its backing.  What is neither reads zeros."""


@dataclass(frozen=True, slots=True)
class Layout:
    size_bytes: int
    exact: bool
    stretches: list[Stretch]


class _TooMany(Exception):
    pass


def lun_layout(lun: Lun, stretches: int) -> Generator[Step, None, Layout]:
    """The LUN in at most so many stretches of about the same length, in slices.
    Raises NoSuchLun if it is destroyed meanwhile, BackingLost, CorruptVolume, OSError."""
    survey = _Survey(lun, stretches, EXACT_LOOKS)
    try:
        yield from survey.look(survey.top, 0, None)
    except _TooMany:
        survey = _Survey(lun, stretches, None)
        yield from survey.look(survey.top, 0, SAMPLE_LOOKS)
    return survey.layout()


class _Survey:
    def __init__(self, lun: Lun, stretches: int, most: int | None) -> None:
        self.lun = lun
        self.size_bytes = lun.size_bytes
        self.blocks = -(-lun.size_bytes // BLOCK_BYTES)
        count = max(1, min(stretches, MAX_STRETCHES, self.blocks))
        self.edges = np.arange(count + 1, dtype=np.int64) * self.blocks // count
        self.found = np.zeros((count, 2))
        self.top = lun.inode.height
        self.exact = True
        self._most = most
        self._looks = 0
        self._layers = _layers(lun)

    def layout(self) -> Layout:
        ends = np.minimum(self.edges * BLOCK_BYTES, self.size_bytes).tolist()
        found = np.rint(self.found * BLOCK_BYTES).astype(np.int64).tolist()
        stretches = []
        for start, end, (own, backing) in zip(ends, ends[1:], found, strict=False):
            # The last block of a LUN may reach beyond its size.
            own = min(own, end - start)
            stretches.append(Stretch(start, end - start, own, min(backing, end - start - own)))
        return Layout(self.size_bytes, self.exact, stretches)

    def look(self, level: int, index: int, looks: int | None) -> Generator[Step, None, Shares]:
        """Count what the block `index` of `level` covers, with about so many looks at level-1 buffers (None: all).
        The shares of its blocks."""
        self._looks += 1
        if self._most is not None and self._looks > self._most:
            raise _TooMany
        if self._looks % SLICE_LOOKS == 0:
            yield from self._pause()
        kinds = None
        for _ in range(PATIENCE):
            if (kinds := self._kinds(level, index, nowait=True)) is not None:
                break
            yield from self._pause()
        if kinds is None:
            kinds = self._kinds(level, index, nowait=False)
            assert kinds is not None
        if level == 1:
            return self._count(index * POINTERS, kinds)
        children = np.flatnonzero(kinds) + index * POINTERS
        chosen = children
        if looks is not None and len(children) > looks:
            self.exact = False
            chosen = children[np.linspace(0, len(children) - 1, looks).round().astype(int)]
        each = None if looks is None else max(1, looks // max(1, len(chosen)))
        shares = np.zeros((len(chosen), 2))
        for number, child in enumerate(chosen.tolist()):
            shares[number] = yield from self.look(level - 1, child, each)
        return self._sum(level, index, children, chosen, shares)

    def _pause(self) -> Generator[Step, None, None]:
        yield Step.SLICE
        if self.lun.destroyed:
            raise NoSuchLun(f"LUN {self.lun.name} has been destroyed")
        self._layers = _layers(self.lun)

    def _kinds(self, level: int, index: int, *, nowait: bool) -> Kinds | None:
        """Of each slot of the block: OWN or BACKING where something is (further down: the first that may have it).
        None only with `nowait`: it is being read ahead."""
        span = POINTERS ** (level - 1)
        starts = (np.arange(POINTERS, dtype=np.int64) + index * POINTERS) * span
        kinds = np.zeros(POINTERS, np.uint8)
        open_ = starts < self.blocks
        for number, (inode, limit) in enumerate(self._layers):
            open_ &= starts < limit
            if not open_.any():
                break
            vbns = pointers_at(self.lun.core, inode, level, index, nowait)
            if vbns is None:
                return None
            kinds[open_ & (vbns >= FIRST_DATA_VBN)] = BACKING if number else OWN
            open_ &= vbns == HOLE
        return kinds

    def _count(self, first: int, kinds: Kinds) -> Shares:
        """The blocks of a level-1 buffer, each into its stretch."""
        blocks = kinds[: max(0, self.blocks - first)]
        where = np.searchsorted(self.edges, first + np.arange(len(blocks)), "right") - 1
        for column, kind in enumerate((OWN, BACKING)):
            self.found[:, column] += np.bincount(where[blocks == kind], minlength=len(self.found))
        shares: Shares = np.array([np.count_nonzero(blocks == kind) / max(1, len(blocks)) for kind in (OWN, BACKING)])
        return shares

    def _sum(self, level: int, index: int, children: npt.NDArray[np.int64], chosen: npt.NDArray[np.int64],
             shares: Shares) -> Shares:  # fmt: skip
        """The shares of a block from those of its children; one that was not looked at is as the nearest that was."""
        span = POINTERS ** (level - 1)
        total: Shares = np.zeros(2)
        nearest = np.searchsorted((chosen[1:] + chosen[:-1]) / 2, children)
        seen = set(chosen.tolist())
        for child, number in zip(children.tolist(), nearest.tolist(), strict=True):
            start, end = child * span, min((child + 1) * span, self.blocks)
            total += shares[number] * (end - start)
            if child not in seen:
                self._spread(start, end, shares[number])
        whole = min((index + 1) * POINTERS * span, self.blocks) - index * POINTERS * span
        total /= max(1, whole)
        return total

    def _spread(self, start: int, end: int, share: Shares) -> None:
        """Blocks start to end - 1 have these shares."""
        low = int(np.searchsorted(self.edges, start, "right")) - 1
        high = int(np.searchsorted(self.edges, end, "left"))
        inside = np.minimum(self.edges[low + 1 : high + 1], end) - np.maximum(self.edges[low:high], start)
        self.found[low:high] += inside[:, None] * share


def _layers(lun: Lun) -> list[tuple[Inode, int]]:
    """The LUN and what it reads through, each with the block from which on it counts no more."""
    view: View = lun
    limit = POINTERS**lun.inode.height
    layers = [(lun.inode, limit)]
    while view.backing is not None:
        limit = min(limit, view.backing.limit_bytes >> BLOCK_SHIFT)
        view = view.below()
        layers.append((view.inode, limit))
    return layers


def pointers_at(core: Core, inode: Inode, level: int, index: int, nowait: bool) -> Vector | None:
    """The pointers that the file's block `index` of `level` has, or would have if it were there.  None only with
    `nowait`."""
    if level > inode.height:
        vector = _UNIFORM[HOLE].copy()
        if index == 0:
            vector[0] = inode.vbns[0]
        return vector
    at = inode.height
    if index >> 8 * (at - level):
        return _UNIFORM[HOLE]
    parent: Buffer | Inode = inode
    slot = 0
    while True:
        vbn = parent.vbns[slot]
        if vbn < FIRST_DATA_VBN:
            return _UNIFORM[vbn]
        node = parent.children.get(slot) or core.load(parent, slot, at, nowait)
        if node is None:
            return None
        if at == level:
            return node.vector()
        at -= 1
        slot = (index >> 8 * (at - level)) & (POINTERS - 1)
        parent = node
