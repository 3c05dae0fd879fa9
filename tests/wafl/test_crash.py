"""A crash at any write leaves the last consistency point whole; and the harness that proves it can see a fault.

Histories are short on purpose: what matters is each write of them, not how many there are.  `LAZYLUN_CRASH_POINTS`
sets how many places to crash each one is tried at (in `make test` a few, in a long run thousands).
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable

import pytest

from tests.support.crash_device import CrashDevice, Leftover, MemoryDevice
from tests.support.crash_history import History
from tests.support.volumes import EPOCH, MIB, errors
from wafl import BLOCK_BYTES, NotAVolume, Volume
from wafl.allocator import Allocator
from wafl.bits import are_set

POINTS = int(os.environ.get("LAZYLUN_CRASH_POINTS", "24"))


def faults(history: History, points: int = POINTS, seed: int = 1) -> list[str]:
    """The verdicts that are not clean, over crash states at `points` places."""
    states = history.states(history.some_points(points, seed), seed)
    return [verdict for state in states if (verdict := history.verdict(state))]


# -- histories


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


def a_nearly_full_volume(history: History) -> None:
    """Every freed block is soon used again: reuse that comes too early shows."""
    history.create("a", 2 * MIB)
    for _ in range(8):
        history.write("a", 0, MIB // 2)
        history.checkpoint()
        history.write("a", MIB, MIB // 2)
        history.checkpoint()


HISTORIES: list[Callable[[History], None]] = [
    plain_writes,
    guests_during_consistency_points,
    snapshots,
    lazy_clone,
    resizes,
    a_nearly_full_volume,
]


@pytest.mark.parametrize("tell", HISTORIES, ids=lambda tell: tell.__name__)
def test_a_crash_leaves_the_last_consistency_point_whole(tell: Callable[[History], None]) -> None:
    history = History()
    tell(history)
    assert faults(history) == []


@pytest.mark.parametrize("seed", range(3))
def test_a_crash_in_a_random_history_leaves_the_last_consistency_point_whole(seed: int) -> None:
    history = History()
    random_history(history, random.Random(seed))
    assert faults(history, seed=seed) == []


def random_history(history: History, rng: random.Random) -> None:
    history.create("a", MIB)
    moves = [0]

    def guest() -> None:
        moves[0] += 1
        name = rng.choice(sorted(history.model.luns))
        lun = history.model.luns[name]
        blocks = lun.size_bytes // BLOCK_BYTES
        at = rng.randrange(blocks)
        length = min(rng.choice([1, 1, 4, 30]), blocks - at) * BLOCK_BYTES
        if rng.random() < 0.2:
            history.unmap(name, at * BLOCK_BYTES, length)
        else:
            history.write(name, at * BLOCK_BYTES, length)

    for number in range(12):
        for _ in range(rng.randrange(6)):
            guest()
        snapshot = f"s{number}" if rng.random() < 0.3 else None
        history.checkpoint(guest if rng.random() < 0.5 else None, snapshot)
        if snapshot and rng.random() < 0.7:
            history.create_backed(f"c{number}", snapshot, "a")
        for name, lun in sorted(history.model.luns.items()):
            if lun.backing is not None and rng.random() < 0.4:
                history.fill(name)
                history.checkpoint()
                history.detach(name)
        free = [s.name for s in history.model.snapshots.values() if not history.model.holders(s.name)]
        if free and rng.random() < 0.5:
            history.delete_snapshot(rng.choice(sorted(free)))
        if rng.random() < 0.5:
            history.reclaim()
    history.checkpoint()


def test_a_crash_during_format_leaves_no_volume_or_a_whole_one() -> None:
    device = CrashDevice(2 * MIB)
    Volume.format(device, name="new", now=EPOCH)
    for state in device.journal.states(device.journal.points(), tuple(Leftover), seed=3):
        made = MemoryDevice(state.image)
        try:
            volume = Volume.mount(made)
        except NotAVolume:
            assert state.point < device.journal.position, "formatting had ended"
            continue
        assert volume.luns() == []
        assert errors(made) == [], str(state)


# -- the harness itself: each sabotaged order must be caught


def test_the_harness_catches_fsinfo_before_data() -> None:
    history = History(skip_sync=lambda number: number == 1)
    plain_writes(history)
    assert faults(history)


def test_the_harness_catches_syncs_that_do_nothing() -> None:
    history = History()
    history.device.lose_syncs = True
    plain_writes(history)
    assert faults(history)


def test_the_harness_catches_fills_that_a_detach_did_not_wait_for() -> None:
    """The data of fills is still on its way when the consistency point of the detach says it is there."""
    history = History()
    history.create("golden", MIB)
    history.write("golden", 0, 40 * BLOCK_BYTES)
    history.checkpoint(snapshot="base")
    history.create_backed("clone", "base", "golden")
    history.checkpoint()
    history.device.slow = lambda offset, data: True
    history.fill("clone")
    history.device.slow = None
    history.checkpoint()
    history.detach("clone")
    history.checkpoint()
    assert faults(history)


def test_the_harness_catches_a_detach_with_blocks_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    history = History()
    history.create("golden", MIB)
    history.write("golden", 0, 40 * BLOCK_BYTES)
    history.checkpoint(snapshot="base")
    clone = history.create_backed("clone", "base", "golden")
    monkeypatch.setattr(type(clone), "next_missing", lambda self, index: None)
    history.detach("clone")
    history.checkpoint()
    assert faults(history)


def test_the_harness_catches_freed_blocks_that_are_reused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    apply_frees = Allocator.apply_frees

    def free_at_once(self: Allocator) -> None:
        apply_frees(self)
        at_once, self._pending = self._pending, []
        self.release([vbns[~are_set(self.summary, vbns)] for vbns in at_once])
        self.release_ripe()

    history = History(size_bytes=2 * MIB)
    history.create("a", MIB)
    history.write("a", 0, MIB)
    history.checkpoint()
    monkeypatch.setattr(Allocator, "apply_frees", free_at_once)
    for number in range(24):
        history.write("a", number % 4 * MIB // 4, MIB // 4)
        history.volume.space()  # puts the frees into the maps
        if number % 8 == 7:
            history.checkpoint()
    monkeypatch.undo()
    assert faults(history)
