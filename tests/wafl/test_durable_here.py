"""A quick sync is waited for on the loop when nobody else wants anything; in every other case by a thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest

from tests.support.volumes import MIB, pattern
from tests.wafl.test_service import LOG, GatedDevice, run, until
from wafl import Volume, VolumeFailed, VolumeService
from wafl.service import HERE_BYTES, HERE_S

BLOCK = 4096


class Flusher:
    """Asks as the device server does, and keeps what came of it."""

    def __init__(self, service: VolumeService, device: GatedDevice) -> None:
        self.service, self.device = service, device
        self.calls: list[BaseException | None] = []
        self.threads: list[threading.Thread] = []
        self.written: list[int] = []
        """How far the log was written when each sync began."""
        device.on_sync = self._syncs

    def _syncs(self) -> None:
        self.threads.append(threading.current_thread())
        log = self.service.volume.core.log
        self.written.append(log.pushed if log is not None else -1)

    def ask(self, *, here: bool = True) -> bool:
        return self.service.when_durable(self.calls.append, here)

    @property
    def on_the_loop(self) -> list[bool]:
        return [thread is threading.main_thread() for thread in self.threads]


def ready(service: VolumeService) -> Callable[[int], None]:
    """A LUN whose records are written by batches; a function that writes to it."""
    lun = service.volume.create_lun("a", MIB)
    service.volume.batch_log()
    service.volume.sync_s = 0.0  # whatever else the machine has to do
    return lambda number: lun.write(number * BLOCK, pattern(number + 1, BLOCK))


def test_a_quick_sync_is_done_on_the_spot_with_the_records_before_it() -> None:
    async def story(service: VolumeService, device: GatedDevice) -> None:
        write = ready(service)
        await service.durable()
        service.volume.sync_s = 0.0
        log = service.volume.core.log
        assert log is not None
        flusher = Flusher(service, device)
        write(1)
        assert log.pushed < log.seq
        assert flusher.ask()
        assert (flusher.on_the_loop, flusher.written) == ([True], [log.seq])
        assert log.durable == log.seq
        assert flusher.ask(), "nothing is new"
        assert len(flusher.threads) == 1
        assert flusher.calls == []
        again = Volume.mount(type(device)(bytearray(device.image)))
        found = bytearray(BLOCK)
        again.lun("a").read_into(BLOCK, memoryview(found))
        assert found == pattern(2, BLOCK)

    run(story, log_bytes=LOG)


@pytest.mark.parametrize("why", ["others want something", "syncs are slow", "much is to be written"])
def test_what_may_keep_the_loop_is_left_to_the_thread(why: str) -> None:
    async def story(service: VolumeService, device: GatedDevice) -> None:
        write = ready(service)
        await service.durable()
        flusher = Flusher(service, device)
        for number in range(HERE_BYTES // 48 if why == "much is to be written" else 1):
            write(number)
        if why == "syncs are slow":
            service.volume.sync_s = 2 * HERE_S
        assert not flusher.ask(here=why != "others want something")
        assert flusher.calls == [], "never before returning"
        await until(lambda: bool(flusher.calls))
        assert (flusher.calls, flusher.on_the_loop) == ([None], [False])

    run(story, log_bytes=LOG)


def test_a_sync_that_runs_and_a_consistency_point_are_not_waited_for() -> None:
    async def story(service: VolumeService, device: GatedDevice) -> None:
        write = ready(service)
        await service.durable()
        flusher = Flusher(service, device)
        device.gate.clear()
        write(1)
        assert not flusher.ask(here=False)
        write(2)
        assert not flusher.ask()
        device.gate.set()
        await until(lambda: len(flusher.calls) == 2)
        device.gate.clear()
        point = asyncio.ensure_future(service.commit())
        await until(lambda: service.volume.running is not None)
        write(3)
        assert not flusher.ask()
        device.gate.set()
        await point
        await until(lambda: len(flusher.calls) == 3)
        assert not any(flusher.on_the_loop)

    run(story, log_bytes=LOG)


def test_slow_syncs_are_remembered_and_a_single_one_is_forgiven() -> None:
    async def story(service: VolumeService, device: GatedDevice) -> None:
        volume = service.volume
        volume.sync_s = 0.0
        slow = threading.Event()

        def pause() -> None:
            slow.wait(0.005)

        device.on_sync = pause
        volume.sync()
        assert 0 < volume.sync_s < HERE_S
        for _ in range(20):
            volume.sync()
        assert volume.sync_s > HERE_S
        slow.set()

    run(story, log_bytes=LOG)


def test_a_sync_that_fails_on_the_spot_fails_the_flush_and_the_volume() -> None:
    async def story(service: VolumeService, device: GatedDevice) -> None:
        write = ready(service)
        await service.durable()
        flusher = Flusher(service, device)
        device.fail = True
        write(1)
        assert not flusher.ask()
        assert flusher.calls == [], "never before returning"
        await until(lambda: bool(flusher.calls))
        assert isinstance(flusher.calls[0], VolumeFailed)
        assert service.volume.failure is not None
        assert not flusher.ask()
        await until(lambda: len(flusher.calls) == 2)
        assert isinstance(flusher.calls[1], VolumeFailed)

    run(story, log_bytes=LOG)


def test_without_a_log_it_takes_a_consistency_point() -> None:
    async def story(service: VolumeService, device: GatedDevice) -> None:
        write = ready(service)
        flusher = Flusher(service, device)
        generation = service.volume.generation
        write(1)
        assert not flusher.ask()
        await until(lambda: bool(flusher.calls))
        assert flusher.calls == [None]
        assert service.volume.generation == generation + 1
        assert not any(flusher.on_the_loop)

    run(story)
