"""Stories for a volume with a log: short, because what matters is each write of them."""

from __future__ import annotations

import random
from collections.abc import Callable

from tests.support.crash_log import LoggedHistory
from tests.support.crash_share_stories import SHARE_STORIES
from tests.support.crash_write_stories import WRITE_STORIES
from tests.support.volumes import MIB
from wafl import BLOCK_BYTES

LogStory = Callable[[LoggedHistory], None]


def writes_and_flushes(history: LoggedHistory) -> None:
    history.create("a", MIB)
    for number in range(6):
        history.write("a", number * BLOCK_BYTES, BLOCK_BYTES)
        history.write("a", 100 * BLOCK_BYTES + 512, 3 * BLOCK_BYTES)
        history.flush()
        history.unmap("a", number * BLOCK_BYTES // 2, 2 * BLOCK_BYTES)
        history.write("a", 0, 30 * BLOCK_BYTES)
    history.checkpoint()
    history.write("a", 5 * BLOCK_BYTES, BLOCK_BYTES)
    history.flush()
    history.write("a", 6 * BLOCK_BYTES, BLOCK_BYTES)


def the_log_wraps(history: LoggedHistory) -> None:
    """Both halves again and again, by consistency points in time and by full halves."""
    history.create("a", MIB)
    for number in range(700):
        history.write("a", number % 250 * BLOCK_BYTES, BLOCK_BYTES)
        if number % 70 == 69:
            history.flush()
        if number % 300 == 150:
            history.checkpoint(lambda number=number: history.write("a", number % 97 * BLOCK_BYTES, BLOCK_BYTES))


def administration(history: LoggedHistory) -> None:
    history.create("a", MIB)
    history.write("a", 0, 40 * BLOCK_BYTES)
    history.checkpoint(snapshot="s")
    history.create_backed("c", "s", "a")
    history.write("c", 3 * BLOCK_BYTES + 512, 1024)
    history.flush()
    history.resize("c", 20 * BLOCK_BYTES + 512)
    history.resize("c", 300 * MIB)
    history.write("c", 200 * MIB, BLOCK_BYTES)
    history.flush()
    history.destroy("a")
    history.create("b", 2 * MIB)
    history.write("b", MIB - BLOCK_BYTES, 2 * BLOCK_BYTES)
    history.resize("b", MIB)
    history.flush()
    history.destroy("c")
    history.delete_snapshot("s")
    history.flush()
    history.reclaim()
    history.create("c", MIB)
    history.write("c", 0, 30 * BLOCK_BYTES)
    history.flush()
    history.checkpoint()
    history.write("c", 0, 30 * BLOCK_BYTES)


def a_clone_under_guests(history: LoggedHistory) -> None:
    history.create("golden", MIB)
    history.write("golden", 0, 40 * BLOCK_BYTES)
    history.checkpoint(snapshot="base")
    history.create_backed("clone", "base", "golden")
    history.write("clone", 2 * BLOCK_BYTES, 5 * BLOCK_BYTES)
    history.flush()
    history.fill("clone")
    history.write("clone", 30 * BLOCK_BYTES, 5 * BLOCK_BYTES)
    history.unmap("clone", 10 * BLOCK_BYTES, 5 * BLOCK_BYTES)
    history.flush()
    history.checkpoint()
    history.detach("clone")
    history.volume.lun("clone").set_clone_requested(False)
    history.write("clone", 7 * BLOCK_BYTES, BLOCK_BYTES)
    history.flush()
    history.checkpoint()
    history.delete_snapshot("base")
    history.flush()
    history.reclaim()
    history.checkpoint()
    history.write("clone", 0, 60 * BLOCK_BYTES)
    history.flush()


def guests_during_consistency_points(history: LoggedHistory) -> None:
    history.create("a", MIB)
    rng = random.Random(4)

    def guest() -> None:
        at = rng.randrange(200)
        history.write("a", at * BLOCK_BYTES, rng.choice([1, 1, 5]) * BLOCK_BYTES)
        if rng.random() < 0.3:
            history.flush()
        if rng.random() < 0.2:
            history.unmap("a", at * BLOCK_BYTES, 9 * BLOCK_BYTES)

    for _ in range(8):
        guest()
        history.checkpoint(guest)
    guest()


def a_nearly_full_volume(history: LoggedHistory) -> None:
    """Every freed block is soon used again, also during consistency points: reuse that comes too early shows."""
    blocks = 780
    history.create("a", 4 * MIB)
    history.write("a", 0, blocks * BLOCK_BYTES)
    rng = random.Random(8)

    def guest() -> None:
        history.write("a", rng.randrange(blocks - 20) * BLOCK_BYTES, rng.choice([1, 8, 20]) * BLOCK_BYTES)
        if rng.random() < 0.3:
            history.flush()

    for _ in range(8):
        for _ in range(3):
            guest()
        history.checkpoint(guest)


LOG_STORIES: list[LogStory] = [
    writes_and_flushes, the_log_wraps, administration, a_clone_under_guests, guests_during_consistency_points,
    a_nearly_full_volume, *SHARE_STORIES, *WRITE_STORIES,
]  # fmt: skip
