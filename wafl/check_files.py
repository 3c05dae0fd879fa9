"""What the checker asks of single files: a LUN's private blocks, the bytes behind its end, the reference counts.

Each function says what is wrong, in words.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from wafl.format import BLOCK_BYTES, FIRST_DATA_VBN, MAX_COUNT, POINTERS, Incompat, InodeFlag
from wafl.offline import Fields, Image, Root, Vbns

NUMBERS_SHOWN = 8


def some(numbers: npt.NDArray[np.integer]) -> str:
    """The first of them."""
    shown = ", ".join(str(number) for number in numbers[:NUMBERS_SHOWN].tolist())
    return f"{shown} and {numbers.size - NUMBERS_SHOWN} more" if numbers.size > NUMBERS_SHOWN else shown


def wrong_private(image: Image, inode: Fields, where: str) -> Iterator[str]:
    """The blocks that no snapshot can hold: what is kept back for a reserved LUN goes by their number."""
    has = sum(
        int(np.count_nonzero(node.births[node.data()] > inode["private_since"]))
        for node in image.walk(Root.of(inode), where, lambda vbn, birth: birth > 0) if node.level == 1
    )  # fmt: skip
    counts = inode["private_blocks"]
    if counts > has or (counts < has and inode["flags"] & InodeFlag.EXACT):
        yield f"counts {counts} blocks born after {inode['private_since']} and has {has}"


def shared_private(image: Image, inode: Fields, shared: Vbns, where: str) -> Iterator[str]:
    """Blocks that are `shared` (ascending) and count as the LUN's alone."""
    if not shared.size or not inode["private_blocks"]:
        return
    for node in image.walk(Root.of(inode), where, lambda vbn, birth: birth > 0):
        if node.level == 1:
            young = node.vbns[node.data()][node.births[node.data()] > inode["private_since"]]
            nearest = shared[np.minimum(np.searchsorted(shared, young), len(shared) - 1)]
            if (both := young[nearest == young]).size:
                yield f"counts blocks {some(both)} as its own alone, which are shared"


def wrong_end(image: Image, inode: Fields, where: str) -> Iterator[str]:
    """The bytes of the last block behind the LUN's end are zeros: growing shows them."""
    used = inode["size_bytes"] % BLOCK_BYTES
    if not used:
        return
    last = inode["size_bytes"] // BLOCK_BYTES
    for node in image.walk(Root.of(inode), where):
        i = last - node.first_fbn
        if node.level == 1 and 0 <= i < POINTERS and node.vbns[i] >= FIRST_DATA_VBN:
            block = image.load(int(node.vbns[i]), int(node.crcs[i]), where)
            if block is not None and any(block[used:]):
                yield "bytes behind the end of the LUN are not zeros"


@dataclass(slots=True)
class ReferenceFaults:
    errors: list[str] = field(default_factory=list)
    full: Vbns = field(default_factory=lambda: np.empty(0, np.uint64))
    """Blocks with counts that are full and should not be: they stay in use, named or not."""


def wrong_references(image: Image, inode: Fields | None, again: Vbns, where: str) -> ReferenceFaults:
    """Each block's count is the number of pointers to it beyond the first: `again` has a block for each of those."""
    found = ReferenceFaults()
    if inode is None:
        if again.size:
            found.errors.append(f"blocks {some(np.unique(again))} are reached twice")
        return found
    blocks, counts = image.counts(Root.of(inode), where)
    if not image.label["incompat"] & Incompat.REFERENCE_COUNTS:
        found.errors.append("the label says that there are none")
    every, says, has = aligned(blocks, counts, *np.unique(again, return_counts=True))
    # A count that is full is never lowered, so it may be too high; it may be too low as well.  Where such counts took
    # the place of some that could not be read, nobody knew what those had added to the sum.
    full = (says == MAX_COUNT) & (has < MAX_COUNT)
    found.full = every[full & (every < image.blocks)]
    if not full.any() and (total := int(counts.sum(dtype=np.int64))) != inode["private_blocks"]:
        found.errors.append(f"their sum is {total}, their inode says {inode['private_blocks']}")
    if (wrong := (says != has) & (says != MAX_COUNT)).any():
        first = int(np.flatnonzero(wrong)[0])
        detail = f"block {every[first]} has {says[first]} and is reached {has[first]} times beyond the first"
        found.errors.append(f"wrong for blocks {some(every[wrong])}: {detail}")
    return found


def aligned(
    blocks: Vbns, counts: npt.NDArray[np.integer], others: Vbns, other_counts: npt.NDArray[np.integer]
) -> tuple[Vbns, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Every block of the two lists, both ascending, and its count in either."""
    every = np.union1d(blocks, others)
    one, other = np.zeros(len(every), np.int64), np.zeros(len(every), np.int64)
    one[np.searchsorted(every, blocks)] = counts
    other[np.searchsorted(every, others)] = other_counts
    return every, one, other
