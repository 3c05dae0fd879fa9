"""Writes that are on the volume before they happen, or that come together: for volumes with a log and without."""

from __future__ import annotations

import random
from collections.abc import Callable

from tests.support.crash_history import History, OnItsWay
from tests.support.volumes import MIB
from wafl import BLOCK_BYTES

Story = Callable[[History], None]


def _begun(history: History, name: str, block: int, blocks: int, here: int) -> OnItsWay:
    write = history.begin_write(name, block * BLOCK_BYTES, blocks * BLOCK_BYTES)
    assert write is not None
    history.more_of(write, here)
    return write


def long_writes(history: History) -> None:
    """One happens, one comes to nothing and somebody else gets its blocks, one is on its way at the end."""
    history.create("a", 2 * MIB)
    history.write("a", 0, 50 * BLOCK_BYTES)
    history.checkpoint()
    # All of them before the next data run, which has all the room of a small volume.
    first = _begun(history, "a", 244, 25, 10)  # over two level-1 ranges
    never = _begun(history, "a", 10, 20, 15)
    second = _begun(history, "a", 0, 25, 25)
    last = _begun(history, "a", 200, 15, 5)
    history.checkpoint(snapshot="s")
    history.write("a", 250 * BLOCK_BYTES, 5 * BLOCK_BYTES)
    history.flush()
    history.more_of(first, 10)
    never.placed.drop()
    history.write("a", 100 * BLOCK_BYTES, 50 * BLOCK_BYTES)
    history.end_write(first)
    history.flush()
    history.checkpoint()
    history.end_write(second)
    history.flush()
    history.more_of(last, 9)
    history.delete_snapshot("s")
    history.reclaim()
    history.checkpoint()
    history.more_of(last, 1)
    history.checkpoint()


def long_writes_during_consistency_points(history: History) -> None:
    history.create("a", 2 * MIB)
    rng = random.Random(9)
    under_way: list[OnItsWay] = []

    def guest() -> None:
        what = rng.random()
        if what < 0.4 and len(under_way) < 2:
            write = history.begin_write("a", rng.randrange(450) * BLOCK_BYTES, rng.choice([8, 30, 60]) * BLOCK_BYTES)
            under_way.extend([write] if write else [])
        elif what < 0.6 and under_way:
            history.more_of(under_way[0], 5)
        elif what < 0.8 and under_way:
            history.end_write(under_way.pop(0))
        elif under_way and what < 0.85:
            under_way.pop().placed.drop()
        else:
            history.write("a", rng.randrange(500) * BLOCK_BYTES, BLOCK_BYTES)

    for _ in range(6):
        for _ in range(4):
            guest()
        if rng.random() < 0.5:
            history.flush()
        history.checkpoint(guest)


def writes_together(history: History) -> None:
    """Single blocks, neighbours, and both after a consistency point, when their level-1 blocks are nobody's yet."""
    history.create("a", 2 * MIB)
    block = BLOCK_BYTES
    scattered = [(number * 37 % 512 * block, block) for number in range(12)]
    neighbours = [((40 + 4 * number) * block, 4 * block) for number in range(8)]
    for turn in range(3):
        history.write_together("a", scattered)
        history.write_together("a", neighbours)
        if turn == 1:
            history.checkpoint(lambda: history.write_together("a", scattered[:5]))
        history.flush()
        history.write_together("a", [*neighbours[:3], *scattered[8:]])
        history.checkpoint(snapshot="s" if turn == 0 else None)
    history.write_together("a", scattered)


WRITE_STORIES: list[Story] = [long_writes, long_writes_during_consistency_points, writes_together]
