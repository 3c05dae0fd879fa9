"""What is done to a volume before the crash: short histories, and ones at random.

Each is told to a `History`, which notes what must be there at every moment.  They are short on purpose: what matters
is each write of them, not how many there are.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from tests.support.crash_history import History
from tests.support.crash_share_stories import SHARE_STORIES
from tests.support.crash_write_stories import WRITE_STORIES
from tests.support.volumes import MIB
from wafl import BLOCK_BYTES, NoSpace

Story = Callable[[History], None]


def plain_writes(history: History) -> None:
    history.create("a", MIB)
    for round_number in range(4):
        history.write("a", 0, 16 * BLOCK_BYTES)
        history.write("a", (5 * round_number + 3) * BLOCK_BYTES + 512, 1024)
        history.unmap("a", (20 + round_number) * BLOCK_BYTES, 3 * BLOCK_BYTES)
        history.checkpoint()


def guests_during_consistency_points(history: History) -> None:
    history.create("a", MIB)
    history.create("b", MIB)
    rng = random.Random(5)
    for _ in range(5):
        history.write("a", 0, 8 * BLOCK_BYTES)
        history.checkpoint(lambda: history.write(rng.choice("ab"), rng.randrange(200) * BLOCK_BYTES, BLOCK_BYTES))
    history.checkpoint()


def snapshots(history: History) -> None:
    history.create("a", MIB)
    for number in range(3):
        history.write("a", number * 7 * BLOCK_BYTES, 20 * BLOCK_BYTES)
        history.checkpoint(snapshot=f"s{number}")
    history.delete_snapshot("s1")
    history.checkpoint()
    history.write("a", 0, 30 * BLOCK_BYTES)
    history.reclaim()
    history.checkpoint()
    history.write("a", 30 * BLOCK_BYTES, 30 * BLOCK_BYTES)
    history.delete_snapshot("s0")
    history.reclaim()
    history.checkpoint()
    history.write("a", 0, 60 * BLOCK_BYTES)
    history.checkpoint()


def lazy_clone(history: History) -> None:
    history.create("golden", MIB)
    history.write("golden", 0, 40 * BLOCK_BYTES)
    history.checkpoint(snapshot="base")
    history.create_backed("clone", "base", "golden")
    history.checkpoint()
    history.write("clone", 2 * BLOCK_BYTES, 5 * BLOCK_BYTES)
    history.unmap("clone", 10 * BLOCK_BYTES, 5 * BLOCK_BYTES)
    history.fill("clone")
    history.checkpoint()
    history.detach("clone")
    history.checkpoint()
    history.destroy("golden")
    history.delete_snapshot("base")
    history.checkpoint()
    history.reclaim()
    history.checkpoint()
    history.create("next", MIB)
    history.write("next", 0, 60 * BLOCK_BYTES)
    history.checkpoint()


def resizes(history: History) -> None:
    history.create("a", MIB + 512)
    history.write("a", 0, 64 * BLOCK_BYTES)
    history.checkpoint(snapshot="s")
    history.create_backed("c", "s", "a")
    history.write("c", 9 * BLOCK_BYTES, BLOCK_BYTES)
    history.checkpoint()
    history.resize("c", 10 * BLOCK_BYTES + 512)
    history.checkpoint()
    history.resize("c", 300 * MIB)
    history.write("c", 280 * MIB, 4 * BLOCK_BYTES)
    history.checkpoint()
    history.resize("a", BLOCK_BYTES)
    history.reclaim()
    history.checkpoint()
    history.destroy("c")
    history.checkpoint()
    history.reclaim()
    history.checkpoint()


def restores(history: History) -> None:
    history.create("a", MIB)
    history.create("gone", MIB)
    history.write("a", 0, 40 * BLOCK_BYTES)
    history.write("gone", 0, 10 * BLOCK_BYTES)
    history.checkpoint(snapshot="base")
    history.write("a", 0, 60 * BLOCK_BYTES)
    history.destroy("gone")
    history.create("young", MIB)
    history.write("young", 0, 20 * BLOCK_BYTES)
    history.checkpoint(snapshot="later")
    history.restore("base", "a")
    history.write("a", 8 * BLOCK_BYTES, BLOCK_BYTES)
    history.fill("a")
    history.reclaim()
    history.checkpoint()
    history.restore("base")
    history.write("gone", 0, 30 * BLOCK_BYTES)
    history.checkpoint()
    history.reclaim()
    history.checkpoint()
    history.restore("later")
    history.write("young", 0, 30 * BLOCK_BYTES)
    history.checkpoint()


def a_nearly_full_volume(history: History) -> None:
    """Every freed block is soon used again: reuse that comes too early shows."""
    history.create("a", 2 * MIB)
    for _ in range(8):
        history.write("a", 0, MIB // 2)
        history.checkpoint()
        history.write("a", MIB, MIB // 2)
        history.checkpoint()


STORIES: list[Story] = [
    plain_writes,
    guests_during_consistency_points,
    snapshots,
    lazy_clone,
    resizes,
    restores,
    a_nearly_full_volume,
    *SHARE_STORIES,
    *WRITE_STORIES,
]


def at_random(history: History, rng: random.Random) -> None:
    """Everything that a host or an administrator may do, in any order, with consistency points in between."""
    history.create("a", MIB)
    for number in range(12):
        for _ in range(rng.randrange(6)):
            _guest(history, rng)
        if rng.random() < 0.3:
            history.flush()
        snapshot = f"s{number}" if rng.random() < 0.3 else None
        between = (lambda: _guest(history, rng)) if rng.random() < 0.5 else None
        if not _fits(lambda between=between, snapshot=snapshot: history.checkpoint(between, snapshot)):
            snapshot = None
        if snapshot and rng.random() < 0.7:
            _fits(lambda number=number, snapshot=snapshot: history.create_backed(f"c{number}", snapshot, "a"))
        _clones(history, rng)
        if rng.random() < 0.3:
            _administrator(history, rng)
        if rng.random() < 0.5:
            history.reclaim()
    history.checkpoint()


def _fits(action: Callable[[], object]) -> bool:
    """Do it, unless the volume is full; then it has changed nothing."""
    try:
        action()
    except NoSpace:
        return False
    return True


def _guest(history: History, rng: random.Random) -> None:
    name = rng.choice(sorted(history.model.luns))
    blocks = history.model.luns[name].size_bytes // BLOCK_BYTES
    at = rng.randrange(blocks)
    length = min(rng.choice([1, 1, 4, 30]), blocks - at) * BLOCK_BYTES
    if rng.random() < 0.2:
        history.unmap(name, at * BLOCK_BYTES, length)
    elif rng.random() < 0.25:
        _share(history, rng, name, at)
    elif rng.random() < 0.3:
        _long_writes(history, rng, name, at, length)
    elif rng.random() < 0.1:
        _together(history, rng, name, blocks)
    else:
        _fits(lambda: history.write(name, at * BLOCK_BYTES, length))


def _long_writes(history: History, rng: random.Random, name: str, at: int, length: int) -> None:
    """One more, more of one, or one to its end."""
    under_way = history.under_way
    if len(under_way) < 2 and (write := history.begin_write(name, at * BLOCK_BYTES, length)) is not None:
        under_way.append(write)
    elif under_way and rng.random() < 0.5:
        history.more_of(under_way[0], 7)
    elif under_way:
        write = under_way.pop(0)
        lun = next((lun for lun in history.volume.luns() if lun is write.placed.lun), None)
        if lun is None or lun.size_bytes < write.offset + len(write.data) or rng.random() < 0.2:
            write.placed.drop()
        else:
            write.name = lun.name
            _fits(lambda: history.end_write(write))


def _together(history: History, rng: random.Random, name: str, blocks: int) -> None:
    if history.volume.space().available > 100 * BLOCK_BYTES:  # or some of them may be done without the others
        places = sorted(rng.sample(range(blocks), min(blocks, 9)))
        history.write_together(name, [(at * BLOCK_BYTES, BLOCK_BYTES) for at in places])


def _share(history: History, rng: random.Random, name: str, at: int) -> None:
    luns = history.model.luns
    source = rng.choice(sorted(luns))
    start = rng.randrange(luns[source].size_bytes // BLOCK_BYTES)
    length = min(rng.choice([1, 4, 30, 300]) * BLOCK_BYTES, luns[name].size_bytes - at * BLOCK_BYTES,
                 luns[source].size_bytes - start * BLOCK_BYTES) // BLOCK_BYTES * BLOCK_BYTES  # fmt: skip
    _fits(lambda: history.share(name, at * BLOCK_BYTES, source, start * BLOCK_BYTES, length))


def _clones(history: History, rng: random.Random) -> None:
    for name, lun in sorted(history.model.luns.items()):
        way = rng.choice([history.fill, history.adopt])
        if lun.backing is not None and rng.random() < 0.4 and _fits(lambda name=name, way=way: way(name)):
            history.checkpoint()
            history.detach(name)
            if rng.random() < 0.5:
                history.comment(name, "whole")


def _administrator(history: History, rng: random.Random) -> None:
    name = rng.choice(sorted(history.model.luns))
    # The volume's word, not the model's: a detach lets go of its snapshot only when it is durable.
    unused = [s.name for s in history.volume.snapshots() if not s.busy]
    what = rng.choice([
        "resize", "resize", "destroy", "delete", "delete", "restore", "restore", "rename", "rename snapshot",
    ])  # fmt: skip
    if what == "delete" and unused:
        history.delete_snapshot(rng.choice(unused))
    elif what == "restore" and history.model.snapshots:
        snapshot = rng.choice(sorted(snapshot.name for snapshot in history.model.snapshots.values()))
        one = history.model.find_in(snapshot, history.model.luns[name]) is not None and rng.random() < 0.5
        _fits(lambda: history.restore(snapshot, name if one else None))
    elif what == "destroy" and name != "a":
        history.destroy(name)
    elif what == "rename" and name != "a":
        history.rename(name, name + "x")
    elif what == "rename snapshot" and history.volume.snapshots():
        old = rng.choice([snapshot.name for snapshot in history.volume.snapshots()])
        history.rename_snapshot(old, old + "x")
    else:
        size = rng.choice([BLOCK_BYTES, 9 * BLOCK_BYTES + 512, MIB // 2, MIB, MIB + 512, 300 * MIB])
        _fits(lambda: history.resize(name, size))
