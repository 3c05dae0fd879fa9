"""Guests first: when hosts are at work a job works in small chunks and rests; it never stops for good."""

from __future__ import annotations

import asyncio

import pytest

from cloner import CloneOptions, JobState
from cloner.copying import copy_level_one
from cloner.guests import (
    BUSY_COMMANDS_S,
    COMMANDS_BETWEEN,
    LONGEST_REST_FOR_WORK_S,
    LONGEST_REST_S,
    LOOK_S,
    QUIET_S,
    REST,
    GuestWatch,
    rest_s,
)
from cloner.progress import Progress
from cloner.steps import UNSYNCED_FILL_BYTES, BeginCommit, Commit, Step, Work, clone_steps
from tests.cloner.test_manager import Daemon, daemon
from tests.support.clones import Family, drive, make_family
from tests.support.volumes import MIB, Workshop, pattern, take_snapshot
from wafl import BLOCK_BYTES, POINTERS, FillPlan


class Hosts:
    def __init__(self) -> None:
        self.commands = 0
        self.now = 100.0

    def watch(self) -> GuestWatch:
        return GuestWatch(lambda: self.commands, lambda: self.now)

    def work(self, commands: int, seconds: float) -> None:
        self.commands += commands
        self.now += seconds


def test_hosts_that_do_nothing_are_not_there() -> None:
    hosts = Hosts()
    hosts.commands = 1_000_000
    watch = hosts.watch()
    hosts.work(0, LOOK_S)
    assert watch.commands_s() == 0


def test_the_rate_is_that_of_the_last_look_and_ends_with_the_commands() -> None:
    hosts = Hosts()
    watch = hosts.watch()
    hosts.work(5, 1.0)
    assert watch.commands_s() == pytest.approx(5)
    hosts.work(5000, 1.0)
    assert watch.commands_s() == pytest.approx(5000)
    hosts.work(0, QUIET_S / 2)
    assert watch.commands_s() == pytest.approx(5000)
    hosts.work(0, QUIET_S / 2)
    assert watch.commands_s() == 0


def test_a_counter_that_goes_back_is_no_work() -> None:
    hosts = Hosts()
    watch = hosts.watch()
    hosts.work(-500, 1.0)
    assert watch.commands_s() == 0


def test_the_counter_is_read_ten_times_a_second_at_most() -> None:
    hosts = Hosts()
    reads = 0

    def commands() -> int:
        nonlocal reads
        reads += 1
        return reads

    watch = GuestWatch(commands, lambda: hosts.now)
    for _ in range(1000):
        hosts.now += 0.001
        watch.commands_s()
    assert reads <= 12


def test_a_rest_is_a_multiple_of_the_work_and_has_an_end() -> None:
    many = 1_000_000
    assert rest_s(0.001, 0) == 0
    assert rest_s(0.0001, many) == pytest.approx(0.0001 * REST)
    assert rest_s(10, many) == LONGEST_REST_FOR_WORK_S


def test_a_rest_beside_slow_hosts_lasts_for_some_hundreds_of_their_commands() -> None:
    for commands_s in (500, 1000, 10_000):
        assert rest_s(0.00001, commands_s) * commands_s == pytest.approx(COMMANDS_BETWEEN)
    assert rest_s(0.00001, BUSY_COMMANDS_S) == LONGEST_REST_S
    # One look at a disk a second is no reason to crawl.
    assert rest_s(0.00001, BUSY_COMMANDS_S / 10) == pytest.approx(LONGEST_REST_S / 10)


@pytest.mark.parametrize("worked_s", [0.0001, 0.0005, 0.001])
def test_hosts_commands_that_meet_a_chunk_are_few(worked_s: float) -> None:
    """Fewer than one in a hundred, so that their p99 is what it was: with room for the consistency points."""
    assert worked_s / (worked_s + rest_s(worked_s, BUSY_COMMANDS_S)) < 0.006


class Busy:
    """Hosts that never rest, as the daemon counts them, and what a job does meanwhile."""

    def __init__(self, family: Family) -> None:
        self.family = family
        self.commands = 0
        self.chunks: list[int] = []

    def count(self) -> int:
        self.commands += 1000
        return self.commands

    def record(self, d: Daemon) -> None:
        lun, read = self.family.clone, None
        plan_fill, install = lun.plan_fill, lun.install_fill

        def planning(index: int, first: int = 0, max_blocks: int = POINTERS) -> object:
            # A read takes a millisecond of the fake clock.
            plan = plan_fill(index, first, max_blocks)
            d.time.now += 0.001
            return plan

        def installing(plan: FillPlan, data: bytes | None) -> int:
            self.chunks.append(plan.blocks)
            return install(plan, data)

        assert read is None
        lun.plan_fill = planning  # type: ignore[method-assign, assignment]
        lun.install_fill = installing  # type: ignore[method-assign, assignment]


def run_beside_hosts(workshop: Workshop, options: CloneOptions) -> tuple[Busy, float, JobState | None]:
    family = make_family(workshop, 24 * MIB, list(range(700)))
    busy = Busy(family)

    async def main() -> tuple[float, JobState | None]:
        async with daemon(family, guest_commands=busy.count) as d:
            busy.record(d)
            d.time.now += 1
            began = d.time.now
            d.manager.start(d.service, "clone", options)
            status = await d.manager.wait(d.service, "clone")
            return d.time.now - began, status.state

    took, state = asyncio.run(main())
    assert family.reads_right()
    return busy, took, state


def test_a_job_beside_busy_hosts_takes_one_range_at_a_time_rests_and_ends(workshop: Workshop) -> None:
    busy, took, state = run_beside_hosts(workshop, CloneOptions())
    assert state is JobState.COMPLETED
    assert max(busy.chunks) <= POINTERS
    work = 0.001 * len(busy.chunks)
    assert took >= work * REST
    # The floor: however busy hosts are, a chunk waits no longer than that.
    assert took <= len(busy.chunks) * (LONGEST_REST_S + 0.002) + 1


def test_a_job_at_full_speed_gives_way_to_nobody(workshop: Workshop) -> None:
    busy, took, state = run_beside_hosts(workshop, CloneOptions(full_speed=True))
    assert state is JobState.COMPLETED
    assert max(busy.chunks) == POINTERS
    assert took < 0.001 * (len(busy.chunks) + 8)


def test_without_hosts_a_job_takes_whole_level_one_ranges(workshop: Workshop) -> None:
    async def main() -> None:
        family = make_family(workshop, 24 * MIB, list(range(700)))
        busy = Busy(family)
        async with daemon(family) as d:
            busy.record(d)
            await d.run(["clone"])
            assert busy.chunks == [256, 256, 188]

    asyncio.run(main())


def test_beside_hosts_less_is_left_unsynced_so_that_their_flushes_are_quick(workshop: Workshop) -> None:
    async def main() -> None:
        commands = 0
        family = make_family(workshop)
        async with daemon(family, guest_commands=lambda: commands) as d:
            d.manager.start(d.service, "clone", CloneOptions(limit_bytes_s=BLOCK_BYTES))
            job = d.manager._active_job(d.service, "clone")
            assert job._unsynced_limit() == UNSYNCED_FILL_BYTES
            commands, d.time.now = 10_000, d.time.now + 1
            assert job._unsynced_limit() < UNSYNCED_FILL_BYTES
            await d.manager.wait(d.service, "clone")

    asyncio.run(main())


def test_jobs_side_by_side_count_what_is_unsynced_together(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cloner.job.UNSYNCED_FILL_BYTES", 64 * BLOCK_BYTES)

    async def main() -> None:
        family = make_family(workshop, 24 * MIB, list(range(512)))
        family.volume.create_lun("second", None, backing=("base", "golden"))
        async with daemon(family) as d:
            for name in ("clone", "second"):
                d.manager.start(d.service, name, CloneOptions(limit_bytes_s=16 * 8 * BLOCK_BYTES))
            unsynced = d.manager._shared.unsynced[family.volume.uuid]
            most = 0
            while any(status.state is not JobState.COMPLETED for status in d.manager.show()):
                most = max(most, unsynced.bytes)
                await asyncio.sleep(0)
            # Each may have one chunk more under way when the line is reached.
            assert 32 * BLOCK_BYTES <= most <= (64 + 2 * 16) * BLOCK_BYTES

    asyncio.run(main())


def test_a_job_goes_on_while_its_consistency_point_is_made(workshop: Workshop) -> None:
    """One is begun at half of what may be unsynced; only at all of it the job waits."""
    family = make_family(workshop, 24 * MIB, list(range(512)))
    progress = Progress(BLOCK_BYTES)
    work = Work(
        family.volume, family.clone, progress, lambda: 0.0, lambda: 8, copy_level_one,
        unsynced_limit=lambda: 64 * BLOCK_BYTES,
    )  # fmt: skip
    copied: list[tuple[type, int]] = []

    def before(number: int, step: Step) -> None:
        if isinstance(step, Commit | BeginCommit):
            copied.append((type(step), progress.copied_blocks))
            work.unsynced.begin()

    drive(family.volume, clone_steps(work), before)
    # Nobody says that one has ended, so it is the limit that the job meets next.
    assert copied[:3] == [(Commit, 0), (BeginCommit, 32), (Commit, 64)]


def test_what_comes_next_is_read_ahead_by_those_in_a_hurry(workshop: Workshop) -> None:
    family = make_family(workshop, 24 * MIB, [*range(200), 600, 767])
    plan = family.clone.plan_fill(0)
    assert plan is not None
    asked: list[tuple[int, int]] = []
    family.volume.device.prefetch = lambda offset, length: asked.append((offset, length))  # type: ignore[method-assign]
    plan.ahead = family.clone.missing_extents(2)
    plan.read()
    plan.release()
    own, _ = family.volume.lun("golden").load_level_one_buf(2)
    vbns = [int(vbn) for vbn in own if vbn > 1]
    # Written one after the other, they lie together.
    assert asked == [(vbns[0] * BLOCK_BYTES, 2 * BLOCK_BYTES)]
    assert family.clone.missing_extents(3) == family.clone.missing_extents(10**6) == []


def test_a_scan_has_the_pointers_that_it_comes_to_read_ahead_each_once(workshop: Workshop) -> None:
    size = 200 * MIB
    volume = workshop.format(64 * MIB)
    golden = volume.create_lun("golden", size)
    for at in range(0, size, MIB):
        golden.write(at, pattern(at, BLOCK_BYTES))
    take_snapshot(volume, "base")
    clone = volume.create_lun("clone", backing=("base", "golden"))
    for at in range(0, size, 2 * MIB):
        clone.write(at, pattern(at + 1, BLOCK_BYTES))
        clone.write(at + BLOCK_BYTES, pattern(at + 2, BLOCK_BYTES))
    volume = workshop.remount(volume)
    clone = volume.lun("clone")
    asked: list[int] = []
    read: list[int] = []

    def prefetch(offset: int, length: int) -> None:
        asked.extend(range(offset // BLOCK_BYTES, (offset + length) // BLOCK_BYTES))

    pread = volume.device.pread
    volume.device.prefetch = prefetch  # type: ignore[method-assign]
    volume.device.pread = lambda offset, view: (read.append(offset // BLOCK_BYTES), pread(offset, view))[1]  # type: ignore[method-assign, func-returns-value]
    index = clone.next_missing(0)
    while index is not None:
        index = clone.next_missing(index + 1)
    leaves = 200 + 100
    assert len(asked) == len(set(asked)) == leaves
    assert set(asked) <= set(read)
    # In memory by now: nobody is asked again.
    asked.clear()
    clone._asked = 0, 0
    while (index := clone.next_missing(0 if index is None else index + 1)) is not None:
        pass
    assert asked == []
