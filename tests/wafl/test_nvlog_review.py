"""The log where it is easily wrong: records of the past, failures while one is written, what a mount must refuse."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.support.crash_device import MemoryDevice
from tests.support.crash_log import LoggedHistory
from tests.support.crash_log_stories import a_nearly_full_volume
from tests.support.crash_trial import judge
from tests.support.volumes import EPOCH, MIB, checkpoint, pattern, problems, take_snapshot
from wafl import (
    BLOCK_BYTES,
    CorruptVolume,
    DamagedRecord,
    FileDevice,
    Lun,
    NoSpace,
    Volume,
    VolumeFailed,
    VolumeService,
)
from wafl.allocator import Allocator
from wafl.bits import Vbns
from wafl.buffers import Buffer
from wafl.filesystem import pack_lun
from wafl.format import MAX_LUNS, VTOC_ENTRY, EntryState
from wafl.nvlog import Log
from wafl.tree import level_one


def put(lun: Lun, block: int, seed: int, blocks: int = 1) -> None:
    lun.write(block * BLOCK_BYTES, pattern(seed, blocks * BLOCK_BYTES))


def read(lun: Lun, block: int = 0, blocks: int = 1) -> bytes:
    found = bytearray(blocks * BLOCK_BYTES)
    lun.read_into(block * BLOCK_BYTES, memoryview(found))
    return bytes(found)


def clone_whole(lun: Lun) -> None:
    """Fill a LUN that misses something in its first mebibyte only."""
    plan = lun.plan_fill(0)
    assert plan is not None
    lun.install_fill(plan, plan.read())
    plan.release()


def formatted(size_bytes: int = 16 * MIB, log_bytes: int | None = None) -> MemoryDevice:
    device = MemoryDevice(bytearray(size_bytes))
    Volume.format(device, name="v", now=EPOCH, log_bytes=log_bytes)
    return device


def killed(device: MemoryDevice) -> MemoryDevice:
    """What a kill leaves, for another mount."""
    return MemoryDevice(bytearray(device.image))


def test_records_of_another_life_of_the_volume_never_count() -> None:
    """The volume comes back from a copy, the log device does not: same consistency point, same numbers, same places."""
    device, log_device = formatted(), MemoryDevice(bytearray(MIB))
    volume = Volume.mount(device, log_device=log_device)
    put(volume.create_lun("a", MIB), 0, 1, 100)
    volume.close()
    copy = killed(device)
    volume = Volume.mount(device, log_device=log_device)
    for block in range(40):
        put(volume.lun("a"), block, 2)
        volume.sync()
    log_copy = killed(log_device)
    volume = Volume.mount(copy, log_device=log_copy)
    for block in range(200, 210):
        put(volume.lun("a"), block, 3)
    volume = Volume.mount(killed(copy), log_device=killed(log_copy))
    assert read(volume.lun("a"), 0, 100) == pattern(1, 100 * BLOCK_BYTES)
    assert volume.nvlog.replayed == 10


class FailingLog(MemoryDevice):
    """The next record cannot be written."""

    fails = False
    log = range(0)
    """The bytes of its log."""

    def pwrite(self, offset: int, buffers: Sequence[Any]) -> None:
        if self.fails and offset in self.log:
            self.fails = False
            (data,) = buffers
            super().pwrite(offset, [data[: len(data) // 2]])
            raise OSError(errno.EIO, "injected")
        super().pwrite(offset, buffers)


@pytest.mark.parametrize("change", [
    lambda volume: volume.create_lun("b", MIB),
    lambda volume: volume.destroy_lun("a"),
    lambda volume: volume.lun("a").write(0, pattern(2, BLOCK_BYTES)),
    lambda volume: volume.lun("a").write(0, pattern(2, 9 * BLOCK_BYTES)),
    lambda volume: volume.lun("a").unmap(0, MIB),
    lambda volume: volume.resize_lun("a", MIB // 2),
], ids=["create", "destroy", "write one", "write", "unmap", "shrink"])  # fmt: skip
def test_a_record_that_cannot_be_written_is_done_without(change: Callable[[Volume], object]) -> None:
    """What follows in the log stands on it: its number must not be missing, nor what it would have said."""
    device = FailingLog(formatted().image)
    volume = Volume.mount(device)
    geometry = volume.geometry
    device.log = range(geometry.nvlog_start * BLOCK_BYTES, geometry.head_blocks * BLOCK_BYTES)
    put(volume.create_lun("a", MIB), 0, 1, 9)
    device.fails = True
    change(volume)
    assert not device.fails
    for lun in volume.luns():
        put(lun, 100, 3)
    before = [(lun.name, lun.size_bytes, read(lun, 0, 101)) for lun in volume.luns()]
    volume = Volume.mount(killed(device))
    assert [(lun.name, lun.size_bytes, read(lun, 0, 101)) for lun in volume.luns()] == before
    volume.close()
    assert problems(volume.device) == []  # type: ignore[arg-type]


def test_records_that_a_freeze_could_not_write_promise_nothing() -> None:
    """A consistency point that nobody forced: the batch that was under way must not be answered."""
    device = FailingLog(formatted().image)
    volume = Volume.mount(device)
    geometry = volume.geometry
    device.log = range(geometry.nvlog_start * BLOCK_BYTES, geometry.head_blocks * BLOCK_BYTES)
    lun = volume.create_lun("a", MIB)
    volume.batch_log()
    put(lun, 0, 1)
    device.fails = True
    with pytest.raises(VolumeFailed):
        volume.commit_now()
    with pytest.raises(VolumeFailed):
        volume.push_log()


def test_a_shrink_after_a_detach_is_not_replayed_without_it() -> None:
    """Invariants C3 and L2: the limit would stay where it was."""
    volume = Volume.mount(formatted())
    put(volume.create_lun("golden", MIB), 0, 1, 40)
    take_snapshot(volume, "base")
    clone = volume.create_lun("clone", backing=("base", "golden"))
    clone_whole(clone)
    checkpoint(volume)
    clone.detach()
    volume.resize_lun("clone", 10 * BLOCK_BYTES)
    volume.resize_lun("clone", 2 * MIB)
    volume = Volume.mount(killed(volume.device))  # type: ignore[arg-type]
    clone = volume.lun("clone")
    assert clone.backing is None
    assert read(clone, 0, 512) == pattern(1, 10 * BLOCK_BYTES) + bytes(502 * BLOCK_BYTES)
    volume.close()
    assert problems(volume.device) == []  # type: ignore[arg-type]


def test_a_detach_that_did_not_become_durable_is_not_replayed_with_what_was_logged_behind_it() -> None:
    """Invariant C3.  The clone is still wanted, too."""
    volume = Volume.mount(formatted())
    put(volume.create_lun("golden", MIB), 0, 1, 40)
    take_snapshot(volume, "base")
    clone = volume.create_lun("clone", backing=("base", "golden"))
    clone.set_clone_requested(True)
    clone_whole(clone)
    checkpoint(volume)
    clone.detach()
    clone.set_clone_requested(False)
    clone.set_comment("done")
    volume.rename_lun("clone", "whole")
    put(clone, 50, 2)
    volume = Volume.mount(killed(volume.device))  # type: ignore[arg-type]
    clone = volume.lun("whole")
    assert (clone.comment, clone.clone_requested) == ("done", True)
    assert clone.backing is not None
    assert volume.snapshot_usage("base") == ["whole"]
    assert read(clone, 0, 51) == pattern(1, 40 * BLOCK_BYTES) + bytes(10 * BLOCK_BYTES) + pattern(2, BLOCK_BYTES)
    volume.close()
    assert problems(volume.device) == []  # type: ignore[arg-type]


def test_a_replayed_shrink_lowers_the_limit_of_the_backing() -> None:
    """Invariant L2."""
    volume = Volume.mount(formatted())
    put(volume.create_lun("golden", MIB), 0, 1, 40)
    take_snapshot(volume, "base")
    volume.create_lun("clone", backing=("base", "golden"))
    checkpoint(volume)
    volume.resize_lun("clone", 10 * BLOCK_BYTES)
    volume = Volume.mount(killed(volume.device))  # type: ignore[arg-type]
    clone = volume.lun("clone")
    assert clone.backing is not None
    assert clone.backing.limit_bytes == 10 * BLOCK_BYTES
    volume.resize_lun("clone", MIB)
    assert read(clone, 0, 256) == pattern(1, 10 * BLOCK_BYTES) + bytes(246 * BLOCK_BYTES)
    volume.close()
    assert problems(volume.device) == []  # type: ignore[arg-type]


def test_a_flush_of_a_volume_that_is_only_read_is_answered() -> None:
    """What its log has is in memory and nowhere else; nobody is going to write it."""
    volume = Volume.mount(formatted())
    put(volume.create_lun("a", MIB), 0, 1)
    device = killed(volume.device)  # type: ignore[arg-type]

    async def main() -> None:
        service = VolumeService(Volume.mount(device, read_only=True))
        service.start()
        async with asyncio.timeout(60):
            await service.durable()
            await service.commit()
        await service.stop()

    asyncio.run(main())


def test_a_failed_sync_is_told_once_and_fails_everybody_who_waits() -> None:
    told: list[BaseException] = []
    answers: list[BaseException | None] = []

    def broken(error: BaseException) -> None:
        told.append(error)
        raise RuntimeError("injected")

    class Failing(MemoryDevice):
        fails = False

        def sync(self) -> None:
            if self.fails:
                raise OSError(errno.EIO, "injected")

    async def main() -> None:
        device = Failing(formatted().image)
        service = VolumeService(Volume.mount(device), cp_interval_s=3600, on_failure=broken)
        service.start()
        put(service.volume.create_lun("a", MIB), 0, 1)
        device.fails = True
        for _ in range(4):
            service.flush(answers.append)
        async with asyncio.timeout(60):
            while len(answers) < 4:
                await asyncio.sleep(0)
            with pytest.raises(VolumeFailed):
                await service.commit()
        await service.stop()

    asyncio.run(main())
    assert len(told) == 1
    assert all(isinstance(answer, VolumeFailed) for answer in answers)


def test_a_replay_has_room_though_the_detach_is_gone_that_what_it_repeats_stood_on() -> None:
    """On a full volume: unmapping where nothing is costs a LUN without a backing nothing, and one with a backing a
    pointer block each time."""
    volume = Volume.mount(formatted())
    put(volume.create_lun("golden", 1024 * MIB, reserved=False), 0, 1)
    take_snapshot(volume, "base")
    clone = volume.create_lun("clone", backing=("base", "golden"), reserved=False)
    clone_whole(clone)
    hog = volume.create_lun("hog", 1024 * MIB, reserved=False)
    with suppress(NoSpace):
        for block in range(1 << 18):
            put(hog, block, 2)
    checkpoint(volume)
    clone.detach()
    for index in range(1, 500):
        clone.unmap(index * MIB, 8 * BLOCK_BYTES)
    volume = Volume.mount(killed(volume.device))  # type: ignore[arg-type]
    assert read(volume.lun("clone")) == pattern(1, BLOCK_BYTES)
    volume.close()
    assert problems(volume.device) == []  # type: ignore[arg-type]


def test_administration_of_a_full_volume_whose_freed_blocks_are_held_back_does_not_fail_it() -> None:
    """A full log makes a consistency point, which takes blocks that it gets back when no reader holds them."""
    volume = Volume.mount(formatted(4 * MIB, 32 << 10))
    hog, other = (volume.create_lun(name, 64 * MIB, reserved=False) for name in ("hog", "other"))
    with suppress(NoSpace):
        for block in range(1 << 14):
            put(hog, block, 1)
    checkpoint(volume)

    def comment() -> None:
        for number in range(10_000):
            other.set_comment(str(number))

    with volume.held(), pytest.raises(NoSpace, match="try again"):
        comment()
    assert volume.failure is None
    other.set_comment("again")
    volume.close()
    assert problems(volume.device) == []  # type: ignore[arg-type]


def entry_of_another(lun: Lun) -> bytes:
    """A vtoc entry like the LUN's, with name and UUID of its own."""
    fields = VTOC_ENTRY.unpack(pack_lun(lun), 0)
    return VTOC_ENTRY.pack(**fields | {"name": b"other", "uuid": b"another one's id"})


@pytest.mark.parametrize("forge", [
    lambda log, lun: log.write(lun.slot, 1, 2**64 - 1, [1]),
    lambda log, lun: log.write(lun.slot, 1, 2**64 - 100, [1] * 200),
    lambda log, lun: log.write(lun.slot, 1, 2**52, [1]),
    lambda log, lun: log.write(lun.slot, 1, 0, [1]),
    lambda log, lun: log.write(lun.slot, 2**64 - 1, 1000, [1]),
    lambda log, lun: log.write(2**32 - 1, 1, 1000, [1]),
    lambda log, lun: log.punch(lun.slot, 2**64 - 2, 2**64 - 1, cut=True),
    lambda log, lun: log.vtoc(2**32 - 1, entry_of_another(lun)),
    lambda log, lun: log.vtoc(MAX_LUNS, entry_of_another(lun)),
    lambda log, lun: log.vtoc(lun.slot, entry_of_another(lun)),
    lambda log, lun: log.snapshot(7, EntryState.LIVE, "s"),
], ids=["last block", "beyond all numbers", "beyond the end", "label", "last fbn", "no LUN", "punch", "last slot",
        "slot 1000", "taken slot", "snapshot"])  # fmt: skip
def test_a_record_that_fits_its_checksum_and_says_what_cannot_be_is_a_named_error(
    forge: Callable[[Log, Lun], None],
) -> None:
    volume = Volume.mount(formatted())
    lun = volume.create_lun("a", MIB)
    checkpoint(volume)
    log = volume.core.log
    assert log is not None
    forge(log, lun)
    log.durable = log.seq
    put(lun, 0, 1)
    with pytest.raises(DamagedRecord):
        Volume.mount(killed(volume.device))  # type: ignore[arg-type]


def test_of_a_large_log_device_no_more_is_used_than_a_mount_can_read_in_a_moment(tmp_path: Path) -> None:
    path = tmp_path / "log"
    volume = Volume.mount(formatted(), log_device=FileDevice.open(path, create_bytes=1 << 40))
    assert path.stat().st_blocks * 512 <= 65 * MIB
    volume.close()


def test_the_harness_catches_blocks_that_are_used_again_too_early(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the consistency point that frees them is durable: records of before still name them."""
    freeze_frees = Allocator.freeze_frees

    def too_early(allocator: Allocator) -> list[Vbns]:
        allocator.release(freeze_frees(allocator))
        while allocator.release_ripe():
            pass
        return []

    monkeypatch.setattr(Allocator, "freeze_frees", too_early)
    history = LoggedHistory()
    a_nearly_full_volume(history)
    assert "blocks that are in use" in " ".join(judge(history, 24, 1)[1])


# --- replays that meet a bad disk -------------------------------------------------------------------------------------


def unmapped_over_level_ones(size_bytes: int) -> tuple[MemoryDevice, list[int]]:
    """A LUN whose blocks 128 to 896 of 1,024 were unmapped since a consistency point; where its level-1 blocks are."""
    device = formatted(size_bytes)
    volume = Volume.mount(device)
    lun = volume.create_lun("a", 4 * MIB)
    put(lun, 0, 1, 1024)
    checkpoint(volume)
    places = [found.vbn for index in range(4) if isinstance(found := level_one(volume.core, lun.inode, index), Buffer)]
    lun.unmap(128 * BLOCK_BYTES, 768 * BLOCK_BYTES)
    assert len(places) == 4
    return device, places


@pytest.mark.parametrize("bad", [0, 3])
def test_a_bad_pointer_block_costs_a_replayed_unmap_no_more_than_what_is_below_it(bad: int) -> None:
    device, places = unmapped_over_level_ones(32 * MIB)
    device.image[places[bad] * BLOCK_BYTES + 9] ^= 1
    volume = Volume.mount(killed(device))
    assert any("is lost" in line for line in volume.mount_report)
    lun = volume.lun("a")
    for first, blocks in ((128, 128), (256, 512), (768, 128)):
        if first // 256 == bad:
            with pytest.raises(CorruptVolume):
                read(lun, first, blocks)
        else:
            assert not any(read(lun, first, blocks)), first


def test_a_disk_that_fails_for_a_moment_does_not_mount_without_a_record() -> None:
    class Moody(MemoryDevice):
        bad = -1

        def pread(self, offset: int, view: Any) -> None:
            if offset == self.bad:
                raise OSError(errno.EIO, "injected")
            super().pread(offset, view)

    image, places = unmapped_over_level_ones(32 * MIB)
    device = Moody(bytearray(image.image))
    device.bad = places[0] * BLOCK_BYTES
    with pytest.raises(OSError, match="cannot be replayed"):
        Volume.mount(device)
    assert device.image == image.image
    device.bad = -1
    assert not any(read(Volume.mount(device).lun("a"), 128, 768))


def test_an_error_that_tells_of_another_gives_its_advice_once() -> None:
    told = str(DamagedRecord(f"log record 7 cannot be replayed: {DamagedRecord('a pointer to block 9 of 8', 3)}"))
    assert told == "log record 7 cannot be replayed: a pointer to block 9 of 8: run the checker"
