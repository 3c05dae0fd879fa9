"""The log: what was acknowledged survives a kill, what was flushed survives a power cut, or the harness sees it."""

from __future__ import annotations

import os
import random

import pytest

from tests.support.crash_device import CrashDevice, Leftover
from tests.support.crash_log import LoggedHistory
from tests.support.crash_log_stories import LOG_STORIES, LogStory, guests_during_consistency_points, writes_and_flushes
from tests.support.crash_stories import at_random
from tests.support.crash_trial import judge
from tests.support.volumes import MIB, Workshop, checkpoint, pattern
from wafl import BLOCK_BYTES, DamagedRecord, Lun, Volume, replay
from wafl.nvlog import Log

POINTS = int(os.environ.get("LAZYLUN_CRASH_POINTS", "24"))


def faults(history: LoggedHistory, points: int = POINTS, seed: int = 1) -> list[str]:
    return judge(history, points, seed)[1]


def first_fault(history: LoggedHistory) -> str | None:
    """Of a sabotaged history."""
    states = history.states(history.some_points(200, 1), 1)
    return next((verdict for state in states if (verdict := history.verdict(state))), None)


@pytest.mark.parametrize("tell", LOG_STORIES, ids=lambda tell: tell.__name__)
def test_a_kill_loses_nothing_acknowledged_and_a_power_cut_nothing_flushed(tell: LogStory) -> None:
    history = LoggedHistory()
    tell(history)
    assert faults(history) == []


@pytest.mark.parametrize("seed", range(3))
def test_a_random_history_loses_nothing_either(seed: int) -> None:
    history = LoggedHistory(size_bytes=6 * MIB)
    rng = random.Random(seed)
    at_random(history, rng)
    assert faults(history, seed=seed) == []


def test_a_crash_during_the_replay_changes_nothing_about_what_is_there() -> None:
    history = LoggedHistory()
    writes_and_flushes(history)
    points = history.some_points(12, 3)
    seen = 0
    for state in history.states(points, 3):
        if state.leftover not in (Leftover.ALL, Leftover.TORN):
            continue
        device = CrashDevice(image=state.image)
        stands_on = Volume.mount(device).generation - 1
        least = history.least(state)
        rng = random.Random(seen)
        chosen = sorted(rng.sample(list(device.journal.points()), 3))
        for again in device.journal.states(chosen, (Leftover.SOME, Leftover.NONE), seed=seen):
            wrong = history.verdict_on(CrashDevice(image=again.image), least, f"{state}, then {again}", stands_on)
            assert wrong is None, wrong
            seen += 1
    assert seen > 50


# -- the harness itself: each sabotaged order must be caught


def test_the_harness_catches_a_flush_that_does_not_sync() -> None:
    history = LoggedHistory(flush_syncs=False)
    writes_and_flushes(history)
    assert "is lost" in (first_fault(history) or "")


def test_the_harness_catches_a_replay_that_trusts_torn_data(monkeypatch: pytest.MonkeyPatch) -> None:
    history = LoggedHistory()
    writes_and_flushes(history)
    monkeypatch.setattr(replay, "_check_data", lambda contents, device: None)
    assert first_fault(history)


def test_the_harness_catches_a_half_that_is_written_over_too_early(monkeypatch: pytest.MonkeyPatch) -> None:
    switch = Log.switch
    monkeypatch.setattr(Log, "switch", lambda self, generation: switch(self, 0))
    history = LoggedHistory()
    guests_during_consistency_points(history)
    assert first_fault(history)


def test_the_harness_catches_writes_that_are_not_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Log, "write", lambda self, slot, fbn, vbn, crcs: None)
    history = LoggedHistory()
    writes_and_flushes(history)
    assert first_fault(history)


# -- single cases


def crash(workshop: Workshop, volume: Volume) -> Volume:
    return workshop.crash(volume)


def fill(lun: Lun, seed: int, length: int = 16 * BLOCK_BYTES) -> bytes:
    data = pattern(seed, length)
    lun.write(0, data)
    return data


def contents(lun: Lun, length: int = 16 * BLOCK_BYTES) -> bytes:
    found = bytearray(length)
    lun.read_into(0, memoryview(found))
    return bytes(found)


def test_what_was_acknowledged_is_there_after_a_kill_and_the_mount_says_so(workshop: Workshop) -> None:
    volume = workshop.format()
    data = fill(volume.create_lun("a", MIB), 1)
    volume = crash(workshop, volume)
    assert contents(volume.lun("a")) == data
    assert any("log records replayed" in line for line in volume.mount_report)
    assert not any("replayed" in line for line in workshop.remount(volume).mount_report)


def test_a_read_only_mount_shows_what_the_log_has_and_leaves_it_there(workshop: Workshop) -> None:
    volume = workshop.format()
    data = fill(volume.create_lun("a", MIB), 1)
    image = bytes(volume.device.image)  # type: ignore[attr-defined]
    for _ in range(2):
        device = CrashDevice(image=image)
        assert contents(Volume.mount(device, read_only=True).lun("a")) == data
        assert device.journal.position == 0


def flip(image: bytearray, offset: int) -> None:
    image[offset] ^= 0xFF


def test_damage_to_what_was_flushed_is_refused_and_never_taken_for_the_end(workshop: Workshop) -> None:
    volume = workshop.format()
    lun = volume.create_lun("a", MIB)
    checkpoint(volume)
    for seed in range(8):
        fill(lun, seed, BLOCK_BYTES)
        volume.sync()
    fill(lun, 9, BLOCK_BYTES)
    start = volume.geometry.nvlog_start * BLOCK_BYTES
    log = volume.core.log
    assert log is not None
    record = start + (log.at - log.fill_bytes) + 2 * 56 + 30
    image = bytearray(volume.device.image)  # type: ignore[attr-defined]
    flip(image, record)
    with pytest.raises(DamagedRecord, match="is damaged, though records up to"):
        Volume.mount(CrashDevice(image=image))


def test_a_torn_tail_that_was_never_flushed_ends_the_log(workshop: Workshop) -> None:
    volume = workshop.format()
    lun = volume.create_lun("a", MIB)
    checkpoint(volume)
    first = fill(lun, 1)
    log = volume.core.log
    assert log is not None
    at = log.at
    fill(lun, 2)
    image = volume.device.image  # type: ignore[attr-defined]
    flip(image, volume.geometry.nvlog_start * BLOCK_BYTES + at + 40)
    volume = crash(workshop, volume)
    assert contents(volume.lun("a")) == first


def test_records_of_an_earlier_mount_never_count_again(workshop: Workshop) -> None:
    """The same place in the log, the same number, another epoch."""
    volume = workshop.format()
    lun = volume.create_lun("a", MIB)
    checkpoint(volume)
    for seed in range(6):
        fill(lun, seed, BLOCK_BYTES)
    last = contents(lun)
    volume = crash(workshop, volume)
    for _ in range(4):
        volume = crash(workshop, volume)
        assert contents(volume.lun("a")) == last
        checkpoint(volume)


def test_a_volume_without_a_log_is_still_one(workshop: Workshop) -> None:
    volume = workshop.format(log_bytes=0)
    assert volume.core.log is None
    fill(volume.create_lun("a", MIB), 1)
    checkpoint(volume)
    fill(volume.lun("a"), 2)
    assert contents(crash(workshop, volume).lun("a")) == pattern(1, 16 * BLOCK_BYTES)
