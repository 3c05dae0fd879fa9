"""Stories of blocks with several pointers, for a volume with a log and for one without."""

from __future__ import annotations

from collections.abc import Callable

from tests.support.crash_history import History
from tests.support.volumes import MIB
from wafl import BLOCK_BYTES

ShareStory = Callable[[History], None]


def shares_and_overwrites(history: History) -> None:
    """Source and destination written over, unmapped and shared on, before and after consistency points."""
    history.create("a", MIB)
    history.create("b", 2 * MIB)
    history.write("a", 0, 40 * BLOCK_BYTES)
    history.share("b", 0, "a", 0, 60 * BLOCK_BYTES)
    history.write("a", 2 * BLOCK_BYTES, 3 * BLOCK_BYTES)
    history.flush()
    history.write("b", 4 * BLOCK_BYTES, 3 * BLOCK_BYTES)
    history.checkpoint(lambda: history.share("b", MIB, "b", 0, 9 * BLOCK_BYTES))
    history.unmap("a", 10 * BLOCK_BYTES, 10 * BLOCK_BYTES)
    history.share("a", 100 * BLOCK_BYTES, "a", 20 * BLOCK_BYTES, 20 * BLOCK_BYTES)
    history.flush()
    history.unmap("b", 12 * BLOCK_BYTES, 10 * BLOCK_BYTES)
    history.share("a", 0, "b", MIB, 9 * BLOCK_BYTES)
    history.checkpoint()
    history.write("a", 0, 200 * BLOCK_BYTES)
    history.flush()
    history.write("b", 0, 60 * BLOCK_BYTES)
    history.checkpoint()


def a_pattern(history: History) -> None:
    """One block all over a LUN, by doubling."""
    history.create("a", MIB)
    history.write("a", 0, BLOCK_BYTES)
    done = BLOCK_BYTES
    while done < MIB:
        done += history.share("a", done, "a", 0, min(done, MIB - done))
        history.flush()
    history.checkpoint(lambda: history.write("a", 3 * BLOCK_BYTES, BLOCK_BYTES))
    history.unmap("a", 10 * BLOCK_BYTES, 100 * BLOCK_BYTES)
    history.checkpoint()
    history.write("a", 0, MIB)
    history.checkpoint()


def shares_and_snapshots(history: History) -> None:
    history.create("a", MIB)
    history.create("b", MIB)
    history.write("a", 0, 40 * BLOCK_BYTES)
    history.share("b", 0, "a", 0, 20 * BLOCK_BYTES)
    history.checkpoint(snapshot="s0")
    history.write("a", 0, 5 * BLOCK_BYTES)
    history.share("b", 100 * BLOCK_BYTES, "a", 0, 40 * BLOCK_BYTES)
    history.checkpoint(snapshot="s1")
    history.delete_snapshot("s0")
    history.write("b", 3 * BLOCK_BYTES, 20 * BLOCK_BYTES)
    history.reclaim()
    history.checkpoint()
    history.destroy("a")
    history.flush()
    history.reclaim()
    history.checkpoint()
    history.write("b", 90 * BLOCK_BYTES, 30 * BLOCK_BYTES)
    history.restore("s1")
    history.share("a", 50 * BLOCK_BYTES, "b", 0, 30 * BLOCK_BYTES)
    history.write("b", 0, 30 * BLOCK_BYTES)
    history.flush()
    history.reclaim()
    history.fill("a")
    history.fill("b")
    history.checkpoint()
    history.detach("a")
    history.detach("b")
    history.checkpoint()
    history.delete_snapshot("s1")
    history.checkpoint()
    history.reclaim()
    history.checkpoint()
    history.write("a", 0, 60 * BLOCK_BYTES)
    history.checkpoint()


def a_clone_is_shared_from_and_into(history: History) -> None:
    """In the middle of its clone job, and across its end."""
    history.create("golden", MIB)
    history.create("other", MIB)
    history.write("golden", 0, 40 * BLOCK_BYTES)
    history.checkpoint(snapshot="base")
    history.create_backed("clone", "base", "golden")
    history.share("other", 0, "clone", 0, 30 * BLOCK_BYTES)
    history.write("golden", 0, 20 * BLOCK_BYTES)
    history.flush()
    history.fill("clone")
    history.share("other", 60 * BLOCK_BYTES, "clone", 10 * BLOCK_BYTES, 60 * BLOCK_BYTES)
    history.share("clone", 5 * BLOCK_BYTES, "golden", 0, 5 * BLOCK_BYTES)
    history.share("clone", 20 * BLOCK_BYTES, "other", 200 * BLOCK_BYTES, 5 * BLOCK_BYTES)
    history.flush()
    history.checkpoint()
    history.detach("clone")
    history.share("clone", 30 * BLOCK_BYTES, "other", 200 * BLOCK_BYTES, 5 * BLOCK_BYTES)
    history.share("other", 100 * BLOCK_BYTES, "clone", 0, 20 * BLOCK_BYTES)
    history.flush()
    history.checkpoint()
    history.destroy("golden")
    history.delete_snapshot("base")
    history.flush()
    history.reclaim()
    history.checkpoint()
    history.write("clone", 0, 60 * BLOCK_BYTES)
    history.destroy("clone")
    history.reclaim()
    history.checkpoint()
    history.write("other", 0, 130 * BLOCK_BYTES)
    history.checkpoint()


def shares_on_a_nearly_full_volume(history: History) -> None:
    """What is freed is soon used again: a block that is given back though somebody names it shows."""
    blocks = 400
    history.create("a", 2 * MIB)
    history.create("b", 2 * MIB)
    history.write("a", 0, blocks * BLOCK_BYTES)
    for number in range(8):
        at = 50 * number * BLOCK_BYTES % ((blocks - 60) * BLOCK_BYTES)
        history.share("b", at, "a", at, 50 * BLOCK_BYTES)
        history.write("a", at, 30 * BLOCK_BYTES)
        history.checkpoint(lambda at=at: history.write("a", at + 30 * BLOCK_BYTES, BLOCK_BYTES))  # type: ignore[misc]
        history.write("b", at, 10 * BLOCK_BYTES)
        history.write("b", MIB + number * 16 * BLOCK_BYTES, 16 * BLOCK_BYTES)
        history.flush()
        history.checkpoint()


def adopted_clones(history: History) -> None:
    """Clones that take their snapshot's blocks by pointer, under guests; then snapshot, parent and one of them go."""
    history.create("golden", 3 * MIB)
    history.write("golden", 0, 40 * BLOCK_BYTES)
    history.write("golden", MIB, 40 * BLOCK_BYTES)
    history.write("golden", 2 * MIB, 10 * BLOCK_BYTES)
    history.checkpoint(snapshot="base")
    history.write("golden", 0, 5 * BLOCK_BYTES)
    for name in ("one", "two"):
        history.create_backed(name, "base", "golden")
    history.write("one", 2 * BLOCK_BYTES, 5 * BLOCK_BYTES)
    history.unmap("two", MIB + 10 * BLOCK_BYTES, 5 * BLOCK_BYTES)
    history.flush()
    history.adopt("one")
    history.checkpoint(lambda: history.write("one", MIB, BLOCK_BYTES))
    history.adopt("two")
    history.write("golden", MIB, 5 * BLOCK_BYTES)
    history.unmap("two", 0, 20 * BLOCK_BYTES)
    history.flush()
    history.checkpoint()
    history.detach("one")
    history.detach("two")
    history.checkpoint()
    history.delete_snapshot("base")
    history.checkpoint()
    history.reclaim()
    history.checkpoint(snapshot="later")
    history.destroy("golden")
    history.reclaim()
    history.checkpoint()
    history.create_backed("three", "later", "one")
    history.adopt("three")
    history.checkpoint()
    history.detach("three")
    history.destroy("one")
    history.checkpoint()
    history.reclaim()
    history.delete_snapshot("later")
    history.write("three", 0, 60 * BLOCK_BYTES)
    history.reclaim()
    history.checkpoint()
    history.write("two", 0, MIB)
    history.destroy("three")
    history.reclaim()
    history.checkpoint()


def clones_of_what_only_snapshots_have(history: History) -> None:
    """The parent was overwritten in part, unmapped, destroyed: clones take up what the snapshot has of it."""
    history.create("golden", 3 * MIB)
    for offset in range(0, 3 * MIB, MIB):
        history.write("golden", offset, 20 * BLOCK_BYTES)
    history.checkpoint(snapshot="base")
    history.write("golden", 3 * BLOCK_BYTES, 5 * BLOCK_BYTES)
    history.unmap("golden", MIB, MIB)
    history.reclaim()
    history.create_backed("one", "base", "golden")
    history.create_backed("two", "base", "golden")
    history.write("two", 2 * MIB, BLOCK_BYTES)
    history.checkpoint()
    history.adopt("one")
    history.checkpoint(lambda: history.adopt("two"))
    history.write("one", MIB, 3 * BLOCK_BYTES)
    history.write("golden", 2 * MIB, BLOCK_BYTES)
    history.checkpoint()
    history.detach("one")
    history.detach("two")
    history.checkpoint()
    history.destroy("golden")
    history.reclaim()
    history.create_backed("three", "base", "golden")
    history.destroy("one")
    history.checkpoint(lambda: history.adopt("three"))
    history.reclaim()
    history.checkpoint()
    history.detach("three")
    history.checkpoint()
    history.delete_snapshot("base")
    history.reclaim()
    history.checkpoint()
    history.write("three", 0, 3 * MIB)
    history.checkpoint()
    history.destroy("two")
    history.reclaim()
    history.checkpoint()


SHARE_STORIES: list[ShareStory] = [
    shares_and_overwrites, a_pattern, shares_and_snapshots, a_clone_is_shared_from_and_into,
    shares_on_a_nearly_full_volume, adopted_clones,
    clones_of_what_only_snapshots_have,
]  # fmt: skip
