"""Clone jobs in the event loop: commands, states, events, limits, several at once; on a real volume."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager

import pytest

from cloner import AlreadyCloning, CloneEvent, CloneManager, CloneOptions, DoesNotFit, JobState, NotBacked, NotCloning
from tests.support import tick_loop
from tests.support.clones import GOLDEN_BLOCKS, GOLDEN_BYTES, Family, add_clone, make_family, read_all
from tests.support.crash_device import MemoryDevice
from tests.support.volumes import MIB, Workshop, pattern
from wafl import BLOCK_BYTES, NoSuchLun, VolumeService


class FakeTime:
    """A clock that moves when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def clock(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        await asyncio.sleep(0)


class Daemon:
    """A volume with its service and a manager, as the real one puts them together."""

    def __init__(self, family: Family, **options: object) -> None:
        self.family = family
        self.events: list[CloneEvent] = []
        self.time = FakeTime()
        self.service = VolumeService(family.volume)
        self.manager = CloneManager(
            self.events.append, clock=self.time.clock, sleep=self.time.sleep, **options  # type: ignore[arg-type]
        )

    def kinds(self, lun: str = "clone") -> list[str]:
        return [e.kind.removeprefix("lun.clone.") for e in self.events if e.lun == lun and "progress" not in e.kind]

    async def run(self, names: list[str], limit_bytes_s: int | None = None) -> None:
        for name in names:
            self.manager.start(self.service, name, CloneOptions(limit_bytes_s))
        for name in names:
            await self.manager.wait(self.service, name)


@asynccontextmanager
async def daemon(family: Family, **options: object) -> AsyncIterator[Daemon]:
    running = Daemon(family, **options)
    await started(running.service)
    try:
        yield running
    finally:
        await running.manager.close()
        await running.service.stop()


async def started(service: VolumeService) -> None:
    outcome = service.start()
    if isinstance(outcome, Awaitable):
        await outcome


def test_a_started_clone_completes_and_says_so_once(workshop: Workshop) -> None:
    async def main() -> None:
        async with daemon(make_family(workshop)) as d:
            await d.run(["clone"])
            status = d.manager.status(d.service, "clone")
            assert (status.state, status.percent, status.requested) == (JobState.COMPLETED, 100.0, False)
            assert d.kinds() == ["started", "completed"]
            done = d.events[-1].data
            assert (done["blocks_copied"], done["duration_s"]) == (len(GOLDEN_BLOCKS), round(d.time.now, 3))
            assert d.family.reads_right()

    asyncio.run(main())


def test_progress_events_come_at_tenths_and_in_order(workshop: Workshop) -> None:
    async def main() -> None:
        async with daemon(make_family(workshop)) as d:
            await d.run(["clone"], limit_bytes_s=8 * BLOCK_BYTES)
            tenths = [event.data["percent"] for event in d.events if event.kind == "lun.clone.progress"]
            assert tenths == sorted(set(tenths))
            assert len(tenths) >= 5

    asyncio.run(main())


def test_a_plain_lun_has_nothing_to_clone(workshop: Workshop) -> None:
    async def main() -> None:
        async with daemon(make_family(workshop)) as d:
            with pytest.raises(NotBacked):
                d.manager.start(d.service, "golden")

    asyncio.run(main())


def test_an_unknown_lun_is_refused_by_every_command(workshop: Workshop) -> None:
    async def main() -> None:
        async with daemon(make_family(workshop)) as d:
            for command in (d.manager.start, d.manager.status):
                with pytest.raises(NoSuchLun):
                    command(d.service, "none")
            with pytest.raises(NoSuchLun):
                await d.manager.stop(d.service, "none")

    asyncio.run(main())


def test_a_second_start_is_refused_while_the_first_runs(workshop: Workshop) -> None:
    async def main() -> None:
        async with daemon(make_family(workshop)) as d:
            d.manager.start(d.service, "clone")
            with pytest.raises(AlreadyCloning):
                d.manager.start(d.service, "clone")
            await d.manager.wait(d.service, "clone")

    asyncio.run(main())


def test_stop_without_a_job_is_refused(workshop: Workshop) -> None:
    async def main() -> None:
        async with daemon(make_family(workshop)) as d:
            with pytest.raises(NotCloning):
                await d.manager.stop(d.service, "clone")

    asyncio.run(main())


def test_stop_returns_with_the_worker_quiet_and_a_start_goes_on_from_there(workshop: Workshop) -> None:
    async def main() -> None:
        async with daemon(make_family(workshop)) as d:
            d.manager.start(d.service, "clone", CloneOptions(BLOCK_BYTES))
            while d.manager.status(d.service, "clone").copied_blocks < 5:
                await asyncio.sleep(0)
            status = await d.manager.stop(d.service, "clone")
            assert (status.state, status.requested) == (JobState.STOPPED, False)
            copied = status.copied_blocks
            assert [task for task in asyncio.all_tasks() if task.get_name().startswith("clone-")] == []
            await d.run(["clone"])
            assert d.manager.status(d.service, "clone").copied_blocks == len(GOLDEN_BLOCKS) - copied
            assert d.kinds() == ["started", "stopped", "started", "completed"]

    asyncio.run(main())


def test_stop_at_once_after_start_leaves_the_backing(workshop: Workshop) -> None:
    async def main() -> None:
        async with daemon(make_family(workshop)) as d:
            d.manager.start(d.service, "clone")
            status = await d.manager.stop(d.service, "clone")
            assert status.state in (JobState.STOPPED, JobState.COMPLETED)
            assert (d.family.clone.backing is None) == (status.state is JobState.COMPLETED)

    asyncio.run(main())


def test_a_bandwidth_limit_is_kept(workshop: Workshop) -> None:
    async def main() -> None:
        async with daemon(make_family(workshop)) as d:
            rate = 10 * BLOCK_BYTES
            await d.run(["clone"], limit_bytes_s=rate)
            assert d.time.now >= (len(GOLDEN_BLOCKS) * BLOCK_BYTES) / rate - 1
            assert d.events[-1].data["duration_s"] == round(d.time.now, 3)

    asyncio.run(main())


def test_the_limit_over_all_jobs_is_kept(workshop: Workshop) -> None:
    async def main() -> None:
        family = make_family(workshop)
        add_clone(family.volume, "second")
        async with daemon(family) as d:
            rate = 50 * BLOCK_BYTES
            d.manager.set_overall_limit(rate)
            await d.run(["clone", "second"])
            assert d.time.now >= 1

    asyncio.run(main())


def test_the_limit_over_all_jobs_may_change_while_they_run(workshop: Workshop) -> None:
    async def main() -> None:
        family = make_family(workshop)
        async with daemon(family) as d:
            d.manager.set_overall_limit(1)
            d.manager.start(d.service, "clone")
            while not d.manager.status(d.service, "clone").copied_blocks:
                await asyncio.sleep(0)
            d.manager.set_overall_limit(50 * BLOCK_BYTES)
            await d.manager.wait(d.service, "clone")
            # At the first limit each block takes more than an hour.
            assert d.time.now < 3600

    asyncio.run(main())


def test_jobs_take_turns(workshop: Workshop) -> None:
    async def main() -> None:
        family = make_family(workshop)
        names = ["clone", "b", "c", "d"]
        for name in names[1:]:
            add_clone(family.volume, name)
        async with daemon(family) as d:
            installs: list[str] = []
            for name in names:
                record_installs(family, name, installs)
            await d.run(names, limit_bytes_s=64 * BLOCK_BYTES)
            # In any stretch in which all of them had work, none got more than one chunk ahead of another; two are under
            # way at a time.  (Who comes late to the first round has not been kept waiting.)
            begun = max(installs.index(name) for name in names)
            rounds = min(installs[begun:].count(name) for name in names)
            assert rounds >= 3
            for upto in range(1, rounds * len(names)):
                counts = [installs[begun : begun + upto].count(name) for name in names]
                assert max(counts) - min(counts) <= 3
            for name in names:
                assert read_all(family.volume.lun(name)) == family.golden.read(0, GOLDEN_BYTES)

    tick_loop.run(main())  # threads that take as long as each other: a slow one would put its job behind


def record_installs(family: Family, name: str, installs: list[str]) -> None:
    lun = family.volume.lun(name)
    install = lun.install_fill

    def recording(plan: object, data: bytes) -> int:
        installs.append(name)
        return install(plan, data)  # type: ignore[arg-type]

    lun.install_fill = recording  # type: ignore[method-assign, assignment]


def test_a_job_is_restarted_after_a_crash_and_a_stopped_one_is_not(workshop: Workshop) -> None:
    family = make_family(workshop)
    add_clone(family.volume, "second")

    async def before() -> None:
        d = Daemon(family)
        await started(d.service)
        for name in ("clone", "second"):
            d.manager.start(d.service, name, CloneOptions(BLOCK_BYTES))
        while min(status.copied_blocks for status in d.manager.show()) < 3:
            await asyncio.sleep(0)
        await d.manager.stop(d.service, "second")
        await d.manager.forget(d.service)
        await d.manager.close()
        await d.service.stop()

    async def after(again: Family) -> None:
        async with daemon(again) as d:
            assert d.manager.restart_requested(d.service) == ["clone"]
            await d.manager.wait(d.service, "clone")
            assert d.kinds() == ["restarted", "completed"]
            assert again.reads_right()
            assert d.manager.status(d.service, "second").state is None

    asyncio.run(before())
    volume = workshop.crash(family.volume)
    asyncio.run(after(Family(volume, volume.lun("clone"), family.model)))


def test_forget_leaves_requests_for_the_next_mount(workshop: Workshop) -> None:
    async def main() -> None:
        async with daemon(make_family(workshop)) as d:
            d.manager.start(d.service, "clone", CloneOptions(BLOCK_BYTES))
            while d.manager.status(d.service, "clone").copied_blocks < 3:
                await asyncio.sleep(0)
            await d.manager.forget(d.service)
            assert d.manager.show() == []
            assert d.family.clone.clone_requested

    asyncio.run(main())


def test_a_halted_job_is_quiet_keeps_its_request_and_goes_on_when_started_again(workshop: Workshop) -> None:
    async def main() -> None:
        async with daemon(make_family(workshop)) as d:
            assert await d.manager.halt(d.service, "clone") is None
            d.manager.start(d.service, "clone", CloneOptions(BLOCK_BYTES))
            while d.manager.status(d.service, "clone").copied_blocks < 3:
                await asyncio.sleep(0)
            halted = await d.manager.halt(d.service, "clone")
            assert halted is not None
            assert (halted.state, halted.options.limit_bytes_s) == (JobState.RUNNING, BLOCK_BYTES)
            assert d.manager.status(d.service, "clone").state is JobState.STOPPED
            assert d.family.clone.clone_requested
            assert await d.manager.halt(d.service, "clone") is None
            await d.run(["clone"])
            assert d.family.reads_right()
            with pytest.raises(NoSuchLun):
                await d.manager.halt(d.service, "none")

    asyncio.run(main())


def test_a_damaged_block_fails_the_job_and_keeps_the_backing(workshop: Workshop) -> None:
    async def main() -> None:
        family = make_family(workshop)
        image: bytearray = family.volume.device.image  # type: ignore[attr-defined]
        at = image.index(pattern(GOLDEN_BLOCKS[45] + 1, BLOCK_BYTES))
        image[at + 100] ^= 1
        async with daemon(family) as d:
            await d.run(["clone"])
            status = d.manager.status(d.service, "clone")
            assert status.state is JobState.FAILED
            assert "golden" in status.message or "clone" in status.message
            assert d.kinds() == ["started", "failed"]
            assert family.clone.backing is not None
            image[at + 100] ^= 1
            await d.run(["clone"])
            assert d.manager.status(d.service, "clone").state is JobState.COMPLETED

    asyncio.run(main())


def test_a_destroyed_lun_ends_its_job_and_leaves_the_list(workshop: Workshop) -> None:
    async def main() -> None:
        async with daemon(make_family(workshop)) as d:
            d.manager.start(d.service, "clone", CloneOptions(BLOCK_BYTES))
            while d.manager.status(d.service, "clone").copied_blocks < 3:
                await asyncio.sleep(0)
            d.family.volume.destroy_lun("clone")
            while any(status.state not in (JobState.STOPPED,) for status in d.manager.show()):
                await asyncio.sleep(0)
            assert d.kinds() == ["started", "stopped"]

    asyncio.run(main())


def test_a_volume_that_fails_fails_its_jobs(workshop: Workshop) -> None:
    async def main() -> None:
        family = make_family(workshop)
        before = bytes(family.volume.device.image)  # type: ignore[attr-defined]

        def broken() -> None:
            raise OSError(5, "the disk is gone")

        async with daemon(family) as d:
            family.volume.device.sync = broken  # type: ignore[method-assign]
            await d.run(["clone"])
            assert d.manager.status(d.service, "clone").state is JobState.FAILED
            assert d.kinds() == ["started", "failed"]
        workshop.abandon(family.volume)
        volume = workshop.mount(MemoryDevice(bytearray(before)))
        assert volume.lun("clone").backing is not None

    asyncio.run(main())


def test_a_full_volume_pauses_the_job_which_goes_on_when_there_is_room(workshop: Workshop) -> None:
    async def main() -> None:
        family = make_family(workshop, size_bytes=8 * MIB, blocks=list(range(600)))
        filler = family.volume.create_lun("filler", 8 * MIB)
        async with daemon(family) as d:
            written = 0
            while family.volume.space().available > MIB:
                filler.write(written, pattern(1, MIB // 8))
                written += MIB // 8
                await d.service.commit()
            with pytest.raises(DoesNotFit):
                d.manager.start(d.service, "clone")
            d.manager.start(d.service, "clone", force=True)
            while d.manager.status(d.service, "clone").state is not JobState.PAUSED:
                await asyncio.sleep(0)
            family.volume.destroy_lun("filler")
            d.service.kick_reclaim()
            await d.manager.wait(d.service, "clone")
            assert d.manager.status(d.service, "clone").state is JobState.COMPLETED
            assert d.kinds() == ["started", "paused", "resumed", "completed"]
            (paused,) = (event for event in d.events if event.kind == "lun.clone.paused")
            assert (paused.level, "the volume is full: goes on when" in paused.message) == ("warning", True)
            (resumed,) = (event for event in d.events if event.kind == "lun.clone.resumed")
            assert resumed.message.endswith("there is room again")
            assert family.reads_right()

    asyncio.run(main())
