"""A crash at any write leaves the last consistency point whole; and the harness that proves it can see a fault.

Histories are short on purpose: what matters is each write of them, not how many there are.  `LAZYLUN_CRASH_POINTS`
sets how many places to crash each one is tried at (in `make test` a few, in a long run thousands).
"""

from __future__ import annotations

import dataclasses
import os
import random

import pytest

from tests.support.crash_device import CrashDevice, Leftover, MemoryDevice
from tests.support.crash_history import History
from tests.support.crash_stories import STORIES, Story, at_random, plain_writes, restores
from tests.support.crash_trial import judge
from tests.support.volumes import EPOCH, MIB, errors
from wafl import BLOCK_BYTES, NotAVolume, Volume, restore
from wafl.allocator import Allocator
from wafl.bits import are_set
from wafl.filesystem import FileSystem

POINTS = int(os.environ.get("LAZYLUN_CRASH_POINTS", "24"))


def faults(history: History, points: int = POINTS, seed: int = 1) -> list[str]:
    """The verdicts that are not clean, over crash states at `points` places."""
    return judge(history, points, seed)[1]


@pytest.mark.parametrize("tell", STORIES, ids=lambda tell: tell.__name__)
def test_a_crash_leaves_the_last_consistency_point_whole(tell: Story) -> None:
    history = History()
    tell(history)
    assert faults(history) == []


@pytest.mark.parametrize("seed", range(3))
def test_a_crash_in_a_random_history_leaves_the_last_consistency_point_whole(seed: int) -> None:
    history = History()
    at_random(history, random.Random(seed))
    assert faults(history, seed=seed) == []


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


def test_the_harness_catches_a_restore_in_two_consistency_points(monkeypatch: pytest.MonkeyPatch) -> None:
    make = restore._make

    def with_a_consistency_point_in_between(files: FileSystem, moves: restore._Moves, *, rename: bool) -> None:
        for lun in moves.destroyed:
            files.drop_lun(lun)
        history.volume.commit_now()
        make(files, dataclasses.replace(moves, destroyed=[]), rename=rename)

    monkeypatch.setattr(restore, "_make", with_a_consistency_point_in_between)
    history = History()
    restores(history)
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
