"""The log: what was acknowledged survives a kill, what was flushed survives a power cut, or the harness sees it."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tests.support.crash_device import CrashDevice, Leftover, MemoryDevice, Write
from tests.support.crash_log import LoggedHistory
from tests.support.crash_log_stories import LOG_STORIES, LogStory, guests_during_consistency_points, writes_and_flushes
from tests.support.crash_stories import at_random
from tests.support.crash_trial import judge
from tests.support.crash_write_stories import WRITE_STORIES, long_writes
from tests.support.volumes import EPOCH, MIB, Workshop, checkpoint, pattern, problems
from wafl import (
    BLOCK_BYTES,
    CorruptVolume,
    DamagedRecord,
    FileDevice,
    LogMismatch,
    Lun,
    Volume,
    VolumeFailed,
    check,
    open_log_device,
    replay,
)
from wafl.buffers import Buffer
from wafl.discard import discard_log
from wafl.dump import describe
from wafl.nvlog import Log
from wafl.tools import main
from wafl.tree import level_one

POINTS = int(os.environ.get("LAZYLUN_CRASH_POINTS", "24"))


def faults(history: LoggedHistory, points: int = POINTS, seed: int = 1) -> list[str]:
    return judge(history, points, seed)[1]


def first_fault(history: LoggedHistory) -> str | None:
    """Of a sabotaged history."""
    states = history.states(history.some_points(200, 1), 1)
    return next((verdict for state in states if (verdict := history.verdict(state))), None)


@pytest.mark.parametrize("tell", LOG_STORIES, ids=lambda tell: tell.__name__)
def test_a_kill_loses_nothing_acknowledged_and_a_power_cut_nothing_flushed(tell: LogStory) -> None:
    history = LoggedHistory(batched=tell in WRITE_STORIES)
    tell(history)
    assert faults(history) == []


@pytest.mark.parametrize("seed", range(4))
def test_a_random_history_loses_nothing_either(seed: int) -> None:
    history = LoggedHistory(size_bytes=6 * MIB, batched=seed % 2 == 1)
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


def test_the_harness_catches_an_answer_before_its_record() -> None:
    history = LoggedHistory(batched=True, pushes=False)
    writes_and_flushes(history)
    assert "is lost" in (first_fault(history) or "")


def test_the_harness_catches_a_long_write_that_is_recorded_before_its_data() -> None:
    """Its data reaches the disk only after the next sync."""
    history = LoggedHistory(batched=True)
    history.device.slow = lambda offset, data: len(data) >= 15 * BLOCK_BYTES
    long_writes(history)
    assert first_fault(history)


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


def test_checker_and_dump_say_what_the_log_has(workshop: Workshop) -> None:
    volume = workshop.format()
    lun = volume.create_lun("a", MIB)
    checkpoint(volume)
    fill(lun, 1)
    lun.unmap(0, BLOCK_BYTES)
    assert [str(found) for found in check(volume.device)] == ["note: log: 2 records for the next mount to replay"]
    assert describe(volume.device)["log"]["records"] == {"write": 1, "punch": 1}


def test_a_batch_of_records_is_written_by_a_push_and_before_each_sync(workshop: Workshop) -> None:
    volume = workshop.format()
    lun = volume.create_lun("a", MIB)
    volume.batch_log()
    log, device = volume.core.log, volume.device
    assert log is not None

    def survives() -> bytes:
        return contents(Volume.mount(MemoryDevice(bytearray(device.image))).lun("a"))  # type: ignore[attr-defined]

    first = fill(lun, 1)
    volume.push_log()
    assert survives() == first
    second = fill(lun, 2)
    assert survives() == first
    volume.sync()
    assert log.durable < log.seq, "a sync promises nothing of what is not written yet"
    volume.push_log()
    assert survives() == second
    checkpoint(volume, lambda: fill(lun, 3))  # type: ignore[arg-type,return-value]


def test_a_push_that_fails_with_its_consistency_point_promises_nothing_ever_after() -> None:
    class Broken(MemoryDevice):
        broken = False

        def pwrite(self, offset: int, buffers: Sequence[Any]) -> None:
            if self.broken:
                raise OSError(errno.EIO, "injected")
            super().pwrite(offset, buffers)

    device = Broken(bytearray(16 * MIB))
    Volume.format(device, name="v", now=EPOCH)
    volume = Volume.mount(device)
    lun = volume.create_lun("a", MIB)
    volume.batch_log()
    fill(lun, 1)
    device.broken = True
    for _ in range(2):
        with pytest.raises(VolumeFailed):
            volume.push_log()


@pytest.mark.parametrize("writes_for_each_sync", [1, 64])
def test_space_is_written_out_ahead_for_hosts_that_flush_all_the_time(writes_for_each_sync: int) -> None:
    """A sync of what is written into unallocated space of a file takes twice as long."""
    device = CrashDevice(64 * MIB)
    Volume.format(device, name="v", now=EPOCH)
    volume = Volume.mount(device)
    lun = volume.create_lun("a", 16 * MIB)
    begun = device.journal.position
    for number in range(2500):
        lun.write(number * BLOCK_BYTES, pattern(number, BLOCK_BYTES))
        if number % writes_for_each_sync == 0:
            volume.sync()
    ahead = [
        record for record in device.journal.records[begun:]
        if isinstance(record, Write) and len(record.data) > BLOCK_BYTES and not any(record.data)
    ]  # fmt: skip
    assert bool(ahead) is (writes_for_each_sync == 1)
    assert all(len(record.data) <= MIB for record in ahead)
    assert contents(lun) == b"".join(pattern(number, BLOCK_BYTES) for number in range(16))


# -- a log of its own


class Separate:
    """A volume with its log on a device of its own, both in memory."""

    def __init__(self, log_bytes: int = 256 << 10) -> None:
        self.volume_device = CrashDevice(16 * MIB)
        self.log_device = CrashDevice(log_bytes)
        Volume.format(self.volume_device, name="v", now=EPOCH)

    def mount(self) -> Volume:
        return Volume.mount(self.volume_device, log_device=self.log_device)

    def kill(self) -> Volume:
        self.volume_device = CrashDevice(image=self.volume_device.image)
        self.log_device = CrashDevice(image=self.log_device.image)
        return self.mount()


def test_a_separate_log_keeps_what_was_acknowledged() -> None:
    both = Separate()
    volume = both.mount()
    lun = volume.create_lun("a", MIB)
    region = volume.geometry.nvlog_start * BLOCK_BYTES, volume.geometry.head_blocks * BLOCK_BYTES
    data = fill(lun, 1)
    assert not any(both.volume_device.image[region[0] : region[1]]), "nothing in the volume's own region"
    volume = both.kill()
    assert contents(volume.lun("a")) == data
    volume.close()
    assert problems(both.volume_device) == []


def test_a_volume_whose_log_is_elsewhere_is_not_mounted_without_it() -> None:
    both = Separate()
    fill(both.mount().create_lun("a", MIB), 1)
    with pytest.raises(LogMismatch, match="name it"):
        Volume.mount(CrashDevice(image=both.volume_device.image))
    with pytest.raises(LogMismatch, match="name it"):
        Volume.mount(CrashDevice(image=both.volume_device.image), read_only=True)
    volume = both.kill()
    volume.close()
    # Closed in order, nothing is in it: the log may go back to the volume, or to another device.
    back = Volume.mount(CrashDevice(image=both.volume_device.image))
    assert contents(back.lun("a")) == pattern(1, 16 * BLOCK_BYTES)
    other = Volume.mount(CrashDevice(image=both.volume_device.image), log_device=CrashDevice(256 << 10))
    assert contents(other.lun("a")) == pattern(1, 16 * BLOCK_BYTES)


def test_a_log_of_another_volume_or_with_anything_else_in_it_is_refused_and_left_alone() -> None:
    one, two = Separate(), Separate()
    one.mount().close()
    image = bytes(one.log_device.image)
    strange = CrashDevice(image=image)
    with pytest.raises(LogMismatch, match="another volume"):
        Volume.mount(CrashDevice(image=two.volume_device.image), log_device=strange)
    assert bytes(strange.image) == image
    data = CrashDevice(image=b"precious" + bytes(256 << 10))
    with pytest.raises(LogMismatch, match="holds something that is no log"):
        Volume.mount(CrashDevice(image=two.volume_device.image), log_device=data)
    assert data.journal.position == 0


def test_a_log_file_that_is_too_small_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(bytes(8192))
    with pytest.raises(LogMismatch, match="too small"):
        open_log_device(path)


def test_a_log_in_a_real_file_survives_without_a_close(tmp_path: Path) -> None:
    """Shared memory of the file: what was stored is in it, though nobody wrote or synced."""
    device = FileDevice.open(tmp_path / "v", create_bytes=64 * MIB)
    Volume.format(device, name="v", now=EPOCH)
    volume = Volume.mount(device)
    fill(volume.create_lun("a", MIB), 1)
    again = Volume.mount(MemoryDevice(bytearray((tmp_path / "v").read_bytes())))
    assert contents(again.lun("a")) == pattern(1, 16 * BLOCK_BYTES)
    volume.close()


def test_a_log_that_is_lost_with_its_device_can_be_given_up() -> None:
    both = Separate()
    volume = both.mount()
    lun = volume.create_lun("a", MIB)
    first = fill(lun, 1)
    checkpoint(volume)
    fill(lun, 2)
    volume.sync()
    device = CrashDevice(image=both.volume_device.image)
    with pytest.raises(LogMismatch):
        Volume.mount(device)
    generation = volume.generation
    assert discard_log(device) == generation
    assert problems(device) == []
    assert contents(Volume.mount(device).lun("a")) == first


def test_a_damaged_log_can_be_given_up_by_the_tool_which_asks_first(tmp_path: Path) -> None:
    device = CrashDevice(16 * MIB)
    Volume.format(device, name="v", now=EPOCH)
    volume = Volume.mount(device)
    lun = volume.create_lun("a", MIB)
    first = fill(lun, 1)
    checkpoint(volume)
    log = volume.core.log
    assert log is not None
    at = log.at
    for seed in (2, 3, 4):
        fill(lun, seed)
        volume.sync()
    flip(device.image, volume.geometry.nvlog_start * BLOCK_BYTES + at + 40)
    path = tmp_path / "v"
    path.write_bytes(device.image)
    refused = CliRunner().invoke(main, ["discard-log", str(path)])
    assert refused.exit_code == 1
    assert path.read_bytes() == bytes(device.image)
    done = CliRunner().invoke(main, ["discard-log", "-f", str(path)])
    assert done.exit_code == 0, done.output
    again = Volume.mount(FileDevice.open(path))
    assert contents(again.lun("a")) == first
    again.close()


@pytest.mark.parametrize("read_only", [False, True])
def test_a_bad_pointer_block_costs_the_records_below_it_alone(read_only: bool) -> None:
    device = CrashDevice(16 * MIB)
    Volume.format(device, name="v", now=EPOCH)
    volume = Volume.mount(device)
    for name in ("a", "b"):
        lun = volume.create_lun(name, 4 * MIB)
        lun.write(0, pattern(1, 4 * MIB))
    checkpoint(volume)
    bad = level_one(volume.core, volume.lun("a").inode, 1)
    assert isinstance(bad, Buffer)
    at = bad.vbn * BLOCK_BYTES
    for name in ("a", "b"):
        volume.lun(name).write(MIB, pattern(2, 4 * BLOCK_BYTES))
        volume.lun(name).write(2 * MIB, pattern(3, 4 * BLOCK_BYTES))
    volume.lun("a").unmap(MIB + MIB // 2, BLOCK_BYTES)
    flip(device.image, at + 9)
    volume = Volume.mount(CrashDevice(image=device.image), read_only=read_only)
    lost = [line for line in volume.mount_report if "is lost" in line]
    assert len(lost) == 2
    assert "a, 4 blocks from byte 1048576 on" in lost[0]
    a, b = volume.lun("a"), volume.lun("b")
    for lun, place, seed in ((a, 2 * MIB, 3), (b, MIB, 2), (b, 2 * MIB, 3)):
        found = bytearray(4 * BLOCK_BYTES)
        lun.read_into(place, memoryview(found))
        assert found == pattern(seed, 4 * BLOCK_BYTES)
    with pytest.raises(CorruptVolume):
        a.read_into(MIB, memoryview(bytearray(BLOCK_BYTES)))
    if not read_only:
        checkpoint(volume)
        volume.close()
