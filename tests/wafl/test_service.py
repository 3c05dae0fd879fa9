"""The asyncio driver: flushes in groups, consistency points on time and under pressure, failure for all."""

from __future__ import annotations

import asyncio
import errno
import itertools
import threading
from collections.abc import Awaitable, Callable

import pytest

from tests.support.crash_device import MemoryDevice
from tests.support.volumes import EPOCH, MIB, pattern, problems
from wafl import NameTaken, Volume, VolumeFailed, VolumeService
from wafl.service import RECLAIM_BURST_S, RECLAIM_REST, SLICE_REST_S


class GatedDevice(MemoryDevice):
    """Syncs wait for the gate; counts them."""

    def __init__(self, image: bytearray) -> None:
        super().__init__(image)
        self.gate = threading.Event()
        self.gate.set()
        self.syncs = 0
        self.fail = False
        self.on_sync: Callable[[], None] = lambda: None

    def sync(self) -> None:
        self.on_sync()
        self.gate.wait(60)
        self.syncs += 1
        if self.fail:
            raise OSError(errno.EIO, "injected")
        super().sync()


def made(log_bytes: int) -> tuple[Volume, GatedDevice]:
    device = GatedDevice(bytearray(16 * MIB))
    Volume.format(device, name="v", now=EPOCH, log_bytes=log_bytes)
    return Volume.mount(device), device


def run(story: Callable[[VolumeService, GatedDevice], Awaitable[None]], *, interval: float = 3600.0,
        log_bytes: int = 0) -> Volume:  # fmt: skip
    """Run a story against a served volume, and check the volume afterwards."""

    async def main() -> Volume:
        volume, device = made(log_bytes)
        service = VolumeService(volume, cp_interval_s=interval)
        service.start()
        try:
            await story(service, device)
        finally:
            device.gate.set()
            await service.stop()
        volume.close()
        assert device.fail or problems(device) == []
        return volume

    return asyncio.run(main())


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0)


def test_a_commit_makes_everything_durable() -> None:
    async def story(service: VolumeService, device: GatedDevice) -> None:
        service.volume.create_lun("a", MIB).write(0, pattern(1, MIB))
        await service.commit()
        again = Volume.mount(MemoryDevice(bytearray(device.image)))
        found = bytearray(MIB)
        again.lun("a").read_into(0, memoryview(found))
        assert found == pattern(1, MIB)

    run(story)


def test_a_flush_with_nothing_to_write_makes_no_consistency_point() -> None:
    async def story(service: VolumeService, device: GatedDevice) -> None:
        await service.commit()
        generation = service.volume.generation
        calls: list[BaseException | None] = []
        service.flush(calls.append)
        assert calls == [], "never before returning"
        await until(lambda: bool(calls))
        assert calls == [None]
        assert service.volume.generation == generation

    run(story)


def test_flushes_that_wait_together_share_one_consistency_point() -> None:
    async def story(service: VolumeService, device: GatedDevice) -> None:
        lun = service.volume.create_lun("a", MIB)
        generation = service.volume.generation
        calls: list[BaseException | None] = []
        for number in range(32):
            lun.write(number * 4096, pattern(number, 4096))
            service.flush(calls.append)
        await until(lambda: len(calls) == 32)
        assert service.volume.generation == generation + 1

    run(story)


def test_a_flush_of_data_written_after_the_freeze_waits_for_the_next_consistency_point() -> None:
    async def story(service: VolumeService, device: GatedDevice) -> None:
        lun = service.volume.create_lun("a", MIB)
        device.gate.clear()
        first: list[BaseException | None] = []
        second: list[BaseException | None] = []
        joined: list[BaseException | None] = []
        lun.write(0, pattern(1, 4096))
        service.flush(first.append)
        await until(lambda: service.volume.running is not None)
        service.flush(joined.append)  # nothing new: the one being written has it all
        lun.write(4096, pattern(2, 4096))
        service.flush(second.append)
        started = service.volume.core.frozen
        device.gate.set()
        await until(lambda: bool(first))
        assert joined == [None]
        assert second == []
        assert service.volume.generation == started
        await until(lambda: bool(second))
        assert service.volume.generation == started + 1

    run(story)


def test_guests_go_on_while_a_sync_runs() -> None:
    async def story(service: VolumeService, device: GatedDevice) -> None:
        lun = service.volume.create_lun("a", MIB)
        device.gate.clear()
        waiting = asyncio.create_task(service.commit())
        await until(lambda: service.volume.running is not None)
        for turn in range(50):
            lun.write(turn * 4096, pattern(turn, 4096))
            await asyncio.sleep(0)
        assert not waiting.done()
        device.gate.set()
        await waiting

    run(story)


def test_a_snapshot_is_durable_when_its_creation_returns() -> None:
    async def story(service: VolumeService, device: GatedDevice) -> None:
        info = await service.create_snapshot("s")
        assert [snap.id for snap in Volume.mount(MemoryDevice(bytearray(device.image))).snapshots()] == [info.id]
        with pytest.raises(NameTaken):
            await service.create_snapshot("s")

    run(story)


def test_a_change_is_durable_after_the_interval_without_a_flush() -> None:
    async def story(service: VolumeService, device: GatedDevice) -> None:
        generation = service.volume.generation
        service.volume.create_lun("a", MIB)
        await until(lambda: service.volume.generation > generation)

    run(story, interval=0.01)


def test_stopping_writes_what_is_left() -> None:
    async def story(service: VolumeService, device: GatedDevice) -> None:
        service.volume.create_lun("a", MIB)
        await service.stop()
        assert not service.volume.dirty
        with pytest.raises(VolumeFailed):
            await service.commit()

    run(story)


def test_overwriting_more_than_the_volume_holds_goes_on_without_no_space() -> None:
    async def story(service: VolumeService, device: GatedDevice) -> None:
        lun = service.volume.create_lun("a", 4 * MIB)
        for turn in range(100):
            lun.write((turn % 4) * MIB, pattern(turn, MIB))
            await asyncio.sleep(0)

    run(story)


def test_what_is_destroyed_is_reclaimed_in_the_background() -> None:
    async def story(service: VolumeService, device: GatedDevice) -> None:
        lun = service.volume.create_lun("a", 4 * MIB)
        lun.write(0, pattern(1, 4 * MIB))
        await service.create_snapshot("s")
        service.volume.destroy_lun("a")
        service.volume.delete_snapshot("s")
        service.kick_reclaim()
        await until(lambda: service.volume.space().used < MIB)

    run(story)


def test_reclaim_of_an_earlier_run_goes_on_at_the_start() -> None:
    volume, device = made(0)
    volume.create_lun("a", 4 * MIB).write(0, pattern(1, 4 * MIB))
    volume.destroy_lun("a")
    volume.close()

    async def main() -> None:
        again = Volume.mount(device)
        service = VolumeService(again)
        service.start()
        await until(lambda: again.space().used < MIB)
        await service.stop()
        again.close()

    asyncio.run(main())
    assert problems(device) == []


def test_a_failure_fails_everybody_who_waits_and_is_reported_once() -> None:
    async def story(service: VolumeService, device: GatedDevice) -> None:
        reported: list[BaseException] = []
        service.on_failure = reported.append
        lun = service.volume.create_lun("a", MIB)
        device.gate.clear()
        calls: list[BaseException | None] = []
        service.flush(calls.append)
        await until(lambda: service.volume.running is not None)
        lun.write(0, pattern(1, 4096))
        service.flush(calls.append)
        device.fail = True
        device.gate.set()
        await until(lambda: len(calls) == 2)
        assert all(isinstance(error, VolumeFailed) for error in calls)
        assert len(reported) == 1
        with pytest.raises(VolumeFailed):
            await service.commit()
        with pytest.raises(VolumeFailed):
            lun.write(0, pattern(1, 4096))

    run(story)


LOG = 256 << 10


def test_flushes_that_wait_together_share_one_sync_and_need_no_consistency_point() -> None:
    async def story(service: VolumeService, device: GatedDevice) -> None:
        lun = service.volume.create_lun("a", MIB)
        generation, syncs = service.volume.generation, device.syncs
        device.gate.clear()
        calls: list[BaseException | None] = []
        for number in range(32):
            lun.write(number * 4096, pattern(number, 4096))
            service.flush(calls.append)
        device.gate.set()
        await until(lambda: len(calls) == 32)
        assert calls == [None] * 32
        assert device.syncs <= syncs + 2, "the first one's, and one for all others"
        assert service.volume.generation == generation

    run(story, log_bytes=LOG)


def test_a_flush_with_a_log_is_not_served_by_a_sync_that_had_begun() -> None:
    async def story(service: VolumeService, device: GatedDevice) -> None:
        lun = service.volume.create_lun("a", MIB)
        log = service.volume.core.log
        assert log is not None
        await service.durable()
        entered = threading.Event()
        device.on_sync = entered.set
        device.gate.clear()
        first: list[BaseException | None] = []
        second: list[tuple[BaseException | None, int]] = []
        lun.write(0, pattern(1, 4096))
        service.flush(first.append)
        await until(entered.is_set)
        lun.write(4096, pattern(2, 4096))
        seq = log.seq
        service.flush(lambda error: second.append((error, log.durable)))
        before = device.syncs
        device.gate.set()
        await until(lambda: bool(second))
        assert first == [None]
        assert second == [(None, seq)]
        assert device.syncs == before + 2

    run(story, log_bytes=LOG)


def test_what_was_flushed_through_the_log_is_there_after_a_kill() -> None:
    async def story(service: VolumeService, device: GatedDevice) -> None:
        service.volume.create_lun("a", MIB).write(0, pattern(1, MIB))
        generation = service.volume.generation
        await service.durable()
        assert service.volume.generation == generation
        again = Volume.mount(MemoryDevice(bytearray(device.image)))
        found = bytearray(MIB)
        again.lun("a").read_into(0, memoryview(found))
        assert found == pattern(1, MIB)

    run(story, log_bytes=LOG)


def test_a_log_that_fills_starts_a_consistency_point() -> None:
    async def story(service: VolumeService, device: GatedDevice) -> None:
        lun = service.volume.create_lun("a", MIB)
        generation = service.volume.generation
        log = service.volume.core.log
        assert log is not None
        while log.fill_bytes < log.checkpoint_bytes:
            lun.write(0, pattern(1, 4096))
        await until(lambda: service.volume.generation > generation)

    run(story, log_bytes=LOG)


def test_a_sync_that_fails_fails_the_flush_and_the_volume() -> None:
    async def story(service: VolumeService, device: GatedDevice) -> None:
        lun = service.volume.create_lun("a", MIB)
        device.fail = True
        calls: list[BaseException | None] = []
        lun.write(0, pattern(1, 4096))
        service.flush(calls.append)
        await until(lambda: bool(calls))
        assert isinstance(calls[0], VolumeFailed)
        assert service.volume.failure is not None
        service.flush(calls.append)
        await until(lambda: len(calls) == 2)
        assert isinstance(calls[1], VolumeFailed)

    run(story, log_bytes=LOG)


def test_reclaim_rests_so_that_guests_have_most_of_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock by which each slice takes a burst; and not while space is short."""
    rests: list[float] = []
    clock = itertools.count()
    sleep = asyncio.sleep

    async def note(seconds: float) -> None:
        rests.append(seconds)
        await sleep(0)

    async def story(service: VolumeService, device: GatedDevice) -> None:
        for pressed, expected in ((False, RECLAIM_REST * RECLAIM_BURST_S), (True, 0.0)):
            service.volume.create_lun("a", MIB).write(0, pattern(1, MIB))
            await service.create_snapshot("s")
            service.volume.delete_snapshot("s")
            service.volume.destroy_lun("a")
            monkeypatch.setattr(service, "_pressed", lambda pressed=pressed: pressed)
            monkeypatch.setattr("wafl.service.perf_counter", lambda: next(clock) * RECLAIM_BURST_S)
            monkeypatch.setattr(asyncio, "sleep", note)
            await service._reclaim_once()
            monkeypatch.undo()
            assert not service.volume.reclaim_pending
            assert len(rests) > 2
            assert rests == [pytest.approx(expected)] * len(rests)
            rests.clear()

    run(story)


def test_a_consistency_point_rests_between_its_slices_unless_it_is_wanted_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A turn of the loop is no rest: a host that waits for the loop's processor gets it only when the loop sleeps."""
    rests: list[float] = []
    sleep = asyncio.sleep

    async def note(seconds: float) -> None:
        rests.append(seconds)
        await sleep(0)

    async def story(service: VolumeService, device: GatedDevice) -> None:
        for task in service._tasks:
            task.cancel()  # it has consistency points of its own to begin
        lun = service.volume.create_lun("a", MIB)
        monkeypatch.setattr(asyncio, "sleep", note)
        for why in ("nothing", "a waiter", "the next is due", "space", "the end"):
            expected = SLICE_REST_S if why == "nothing" else 0
            lun.write(0, pattern(1, MIB))
            if why == "a waiter":
                service._next.append(lambda error: None)
            monkeypatch.setattr(service, "_due", lambda why=why: why == "the next is due")
            monkeypatch.setattr(service, "_pressed", lambda why=why: why == "space")
            monkeypatch.setattr(service, "_stopping", why == "the end")
            before = service.volume.generation
            await service._checkpoint()
            assert service.volume.generation == before + 1
            assert len(rests) > 3, why
            assert rests == [expected] * len(rests), why
            rests.clear()
        monkeypatch.undo()

    run(story)
