"""Faults that a hostile reading of the volume's code found: each test failed before its fix."""

from __future__ import annotations

import asyncio
import errno
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tests.support.crash_device import CrashDevice, MemoryDevice, Sync
from tests.support.volumes import EPOCH, MIB, Workshop, checkpoint, pattern, reclaim, take_snapshot
from wafl import FileDevice, Lun, NoSpace, Step, Volume, VolumeFailed, VolumeService, WaflError
from wafl.allocator import Allocator, new_bits
from wafl.bits import count, set_range
from wafl.format import (
    MAP_BITS,
)

BLOCK = 4096


def crash_volume() -> tuple[Volume, CrashDevice]:
    made = MemoryDevice(bytearray(16 * MIB))
    Volume.format(made, name="v", now=EPOCH)
    device = CrashDevice(image=made.image)
    return Volume.mount(device), device


def step_to_sync(volume: Volume, number: int = 1) -> None:
    """Drive a consistency point to the place where its driver's `number`th sync is under way."""
    steps = volume.checkpoint()
    for step in steps:
        if step is Step.SYNC:
            number -= 1
            if not number:
                return
            volume.device.sync()


# --- a consistency point taken over while its driver's sync is under way ------------------------------------------


def test_a_consistency_point_taken_over_while_its_first_sync_runs_writes_fsinfo_only_after_a_sync() -> None:
    volume, device = crash_volume()
    volume.create_lun("a", MIB).write(0, pattern(1, BLOCK))
    step_to_sync(volume)
    before = device.journal.position
    volume.commit_now()
    assert isinstance(device.journal.records[before], Sync)


def test_a_consistency_point_taken_over_while_its_second_sync_runs_is_not_durable_before_a_sync() -> None:
    volume, device = crash_volume()
    volume.create_lun("a", MIB).write(0, pattern(1, BLOCK))
    step_to_sync(volume, 2)
    before = device.journal.position
    volume.commit_now()
    assert isinstance(device.journal.records[before], Sync)


class FailingDevice(MemoryDevice):
    """Syncs in the service's thread wait for the gate; those on the volume's thread may fail."""

    def __init__(self, image: bytearray) -> None:
        super().__init__(image)
        self.gate = threading.Event()
        self.gate.set()
        self.main = threading.get_ident()
        self.fail_main = False

    def sync(self) -> None:
        if threading.get_ident() == self.main:
            if self.fail_main:
                raise OSError(errno.EIO, "injected")
        else:
            self.gate.wait(60)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0)


def served(story: Callable[[VolumeService, FailingDevice, list[BaseException]], Awaitable[None]]) -> None:
    async def main() -> None:
        device = FailingDevice(bytearray(16 * MIB))
        Volume.format(device, name="v", now=EPOCH, log_bytes=0)  # each flush is a consistency point
        failures: list[BaseException] = []
        service = VolumeService(Volume.mount(device), cp_interval_s=3600, on_failure=failures.append)
        service.start()
        try:
            await story(service, device, failures)
        finally:
            device.gate.set()
            await service.stop()

    asyncio.run(main())


def test_a_consistency_point_that_fails_elsewhere_fails_the_flushes_that_wait_for_it() -> None:
    async def story(service: VolumeService, device: FailingDevice, failures: list[BaseException]) -> None:
        volume = service.volume
        volume.create_lun("a", MIB).write(0, pattern(1, BLOCK))
        answers: list[BaseException | None] = []
        service.flush(answers.append)
        await until(lambda: volume.running is not None)
        assert volume.running is not None
        assert not volume.running.syncing
        device.fail_main = True
        with pytest.raises(VolumeFailed):
            volume.commit_now()  # what a shortage of space does
        await until(lambda: bool(answers))
        assert isinstance(answers[0], VolumeFailed)
        await until(lambda: bool(failures))

    served(story)


def test_a_failure_outside_the_driver_is_reported_and_fails_those_who_wait_for_the_next_one() -> None:
    async def story(service: VolumeService, device: FailingDevice, failures: list[BaseException]) -> None:
        volume = service.volume
        volume.create_lun("a", MIB).write(0, pattern(1, BLOCK))
        answers: list[BaseException | None] = []
        service.flush(answers.append)
        device.fail_main = True
        with pytest.raises(VolumeFailed):
            volume.commit_now()
        await until(lambda: bool(answers))
        assert isinstance(answers[0], VolumeFailed)
        await until(lambda: bool(failures))

    served(story)


# --- mount --------------------------------------------------------------------------------------------------------


def test_a_mount_after_a_crash_makes_what_it_found_durable_before_it_builds_on_it() -> None:
    volume, device = crash_volume()
    lun = volume.create_lun("a", 8 * MIB)
    lun.write(0, pattern(1, 8 * MIB))
    checkpoint(volume)
    lun.write(0, pattern(2, 4 * MIB))
    checkpoint(volume)
    lun.write(0, pattern(3, 2 * MIB))
    step_to_sync(volume, 2)  # fsinfo is in the page cache; now the process is killed
    Volume.mount(device)
    assert isinstance(device.journal.records[-1], Sync)


# --- the fast path of writes --------------------------------------------------------------------------------------


def test_a_failed_volume_takes_no_write_even_after_a_read() -> None:
    device = FailingDevice(bytearray(16 * MIB))
    Volume.format(device, name="v", now=EPOCH)
    volume = Volume.mount(device)
    lun = volume.create_lun("a", MIB)
    step_to_sync(volume)
    lun.write(0, pattern(1, BLOCK))  # a pointer block of the next generation
    device.fail_main = True
    with pytest.raises(VolumeFailed):
        volume.commit_now()
    lun.read_into(0, memoryview(bytearray(BLOCK)))
    with pytest.raises(VolumeFailed):
        lun.write(0, pattern(2, BLOCK))


def test_a_destroyed_lun_is_neither_read_nor_written(workshop: Workshop) -> None:
    volume = workshop.format()
    lun = volume.create_lun("a", MIB)
    lun.write(0, pattern(1, BLOCK))
    volume.destroy_lun("a")
    with pytest.raises(WaflError):
        lun.read_into(0, memoryview(bytearray(BLOCK)))
    with pytest.raises(WaflError):
        lun.write(0, pattern(2, BLOCK))


# --- space --------------------------------------------------------------------------------------------------------


def fill_up(lun: Lun) -> None:
    for offset in range(0, lun.size_bytes, BLOCK):
        try:
            lun.write(offset, pattern(offset, BLOCK))
        except NoSpace:
            return


def test_on_a_full_volume_consistency_points_wait_for_readers_and_never_run_out_of_blocks() -> None:
    async def story(service: VolumeService, device: FailingDevice, failures: list[BaseException]) -> None:
        volume = service.volume
        lun = volume.create_lun("a", 16 * MIB)
        fill_up(lun)
        await service.commit()

        async def administer() -> None:
            for turn in range(100):
                lun.set_comment(str(turn))
                await service.commit()

        with volume.held():
            busy = asyncio.create_task(administer())
            await until(lambda: busy.done() or volume.core.allocator.cramped)
            for _ in range(100):
                await asyncio.sleep(0)
            with pytest.raises(NoSpace):
                overwrite(lun)
        await busy
        assert failures == []

    served(story)


def overwrite(lun: Lun) -> None:
    for offset in range(0, lun.size_bytes, BLOCK):
        lun.write(offset, pattern(offset + 1, BLOCK))


@pytest.mark.parametrize("requests", [0, 1, 2])
@pytest.mark.parametrize("durable", [False, True])
@pytest.mark.parametrize("earlier", [False, True])
def test_a_full_volume_of_many_luns_writes_all_their_records_again_and_again(
    workshop: Workshop, requests: int, durable: bool, earlier: bool
) -> None:
    volume = workshop.format()
    luns = [volume.create_lun(f"l{number}", 16 * MIB) for number in range(300)]
    if durable:
        checkpoint(volume)
    if earlier:
        take_snapshot(volume, "earlier")
    for number in range(requests):
        volume.request_snapshot(f"s{number}")
    fill_up(luns[0])
    for turn in range(6):
        for lun in luns:
            lun.set_comment(str(turn))
            lun.inode.touch(volume.core)
        checkpoint(volume)


# --- the allocator ------------------------------------------------------------------------------------------------


def test_a_data_run_given_back_at_a_window_border_does_not_grow_into_the_next_window() -> None:
    active, summary = new_bits(2 * MAP_BITS), new_bits(2 * MAP_BITS)
    set_range(summary, 0, MAP_BITS - 100)
    set_range(summary, MAP_BITS + 200, 2 * MAP_BITS - 100)
    allocator = Allocator(2 * MAP_BITS, active, summary)
    allocator.refill()
    assert (allocator.next, allocator.end) == (MAP_BITS - 100, MAP_BITS), "all that the first window has"
    allocator.take_pointer_block()  # opens the next window
    allocator.give_back_run()
    allocator.refill()
    assert allocator.end == MAP_BITS
    for chunk in range(2):
        assert allocator.chunk_free[chunk] == MAP_BITS - count(allocator.row(allocator.busy, chunk))


# --- reads that fail in the middle of a change --------------------------------------------------------------------


class BadDevice(MemoryDevice):
    """Reads of `bad` blocks fail."""

    def __init__(self, image: bytearray) -> None:
        super().__init__(image)
        self.bad: Callable[[int], bool] = lambda vbn: False

    def pread(self, offset: int, view: bytearray | memoryview) -> None:
        if self.bad(offset // BLOCK):
            raise OSError(errno.EIO, "injected")
        super().pread(offset, view)


def test_a_shrink_that_cannot_read_a_pointer_block_leaves_the_rest_as_it_was(workshop: Workshop) -> None:
    volume = workshop.format()
    volume.create_lun("golden", 3 * MIB).write(0, pattern(1, 3 * MIB))
    take_snapshot(volume, "base")
    volume.create_lun("clone", None, backing=("base", "golden")).write(MIB, pattern(2, BLOCK))
    volume.close()
    workshop.abandon(volume)
    device = BadDevice(volume.device.image)  # type: ignore[attr-defined]
    volume = workshop.mount(device)
    lun = volume.lun("clone")
    device.bad = lambda vbn: True
    with pytest.raises(OSError, match="injected"):
        volume.resize_lun("clone", MIB + 8 * BLOCK)
    device.bad = lambda vbn: False
    found = bytearray(BLOCK)
    lun.read_into(2 * MIB, memoryview(found))
    assert found == pattern(1, 3 * MIB)[2 * MIB : 2 * MIB + BLOCK]


def damaged_zombies(workshop: Workshop) -> tuple[Volume, BadDevice, set[int]]:
    """Two LUNs on disk, the pointer block of the one that was destroyed first unreadable."""
    volume = workshop.format()
    for name in ("a", "b"):
        volume.create_lun(name, MIB).write(0, pattern(1, MIB))
    volume.close()
    workshop.abandon(volume)
    device = BadDevice(volume.device.image)  # type: ignore[attr-defined]
    volume = workshop.mount(device)
    root = volume.lun("a").inode.vbns[0]
    return volume, device, {root}


def test_one_unreadable_tree_does_not_keep_others_from_being_given_back(workshop: Workshop) -> None:
    volume, device, bad = damaged_zombies(workshop)
    device.bad = lambda vbn: vbn in bad
    used = volume.space().used
    volume.destroy_lun("a")
    volume.destroy_lun("b")
    with pytest.raises(OSError, match="injected"):
        reclaim(volume)
    checkpoint(volume)
    checkpoint(volume)
    assert used - volume.space().used >= MIB
    device.bad = lambda vbn: False
    reclaim(volume)
    assert used - volume.space().used >= 2 * MIB


def test_one_damaged_tree_fails_no_write_that_looks_for_room(workshop: Workshop) -> None:
    volume, device, bad = damaged_zombies(workshop)
    device.bad = lambda vbn: vbn in bad
    volume.destroy_lun("a")
    volume.destroy_lun("b")
    lun = volume.create_lun("c", 16 * MIB)
    with pytest.raises(NoSpace):
        lun.write(0, pattern(1, 16 * MIB))
    device.bad = lambda vbn: False


def test_reclaim_goes_on_after_a_read_error(workshop: Workshop) -> None:
    volume, device, bad = damaged_zombies(workshop)

    async def main() -> None:
        service = VolumeService(volume, cp_interval_s=3600)
        service.start()
        device.bad = lambda vbn: vbn in bad
        used = volume.space().used
        volume.destroy_lun("a")
        service.kick_reclaim()
        for _ in range(100):
            await asyncio.sleep(0)
        device.bad = lambda vbn: False
        service.kick_reclaim()
        await until(lambda: used - volume.space().used >= MIB)
        await service.stop()

    asyncio.run(main())


def test_an_answer_that_cannot_be_taken_stops_no_other_and_no_consistency_point() -> None:
    async def story(service: VolumeService, device: FailingDevice, failures: list[BaseException]) -> None:
        def broken(error: BaseException | None) -> None:
            raise RuntimeError("injected")

        answers: list[BaseException | None] = []
        service.volume.create_lun("a", MIB)
        service.flush(broken)
        service.flush(answers.append)
        await until(lambda: bool(answers))
        service.volume.create_lun("b", MIB)
        await service.commit()

    served(story)


# --- the borders of what can be asked for ---------------------------------------------------------------------------


def test_a_file_has_no_byte_beyond_all_offsets(tmp_path: Path) -> None:
    device = FileDevice.open(tmp_path / "v", create_bytes=MIB)
    for offset in (2**63 - BLOCK, 2**63, 2**70):
        with pytest.raises(OSError, match="byte"):
            device.pread(offset, bytearray(BLOCK))
    with pytest.raises(OSError, match="byte"):
        device.pread_nowait(2**63, bytearray(BLOCK))
    device.close()


def test_nothing_can_be_read_anywhere_in_a_lun(workshop: Workshop) -> None:
    lun = workshop.format().create_lun("a", 2 * MIB)
    for offset in (0, 5, MIB, 2 * MIB):
        lun.read_into(offset, memoryview(bytearray()))
        assert lun.read_into_nowait(offset, memoryview(bytearray()))
