"""A clone goes on from what is durable: nothing that is there is copied again, and finding out reads little."""

from __future__ import annotations

import asyncio

import pytest

from cloner import CloneOptions, JobState
from tests.cloner.test_estimate import scattered
from tests.cloner.test_manager import Daemon, daemon, started
from tests.support.clones import Family, drive, make_family, steps_of
from tests.support.crash_clones import own_blocks
from tests.support.volumes import MIB, Workshop, pattern
from wafl import BLOCK_BYTES, LEVEL_ONE_BYTES

TIB = 1 << 40
BLOCKS = 700


async def half_a_clone(family: Family) -> None:
    """Until half is copied; then nobody tidies up."""
    d = Daemon(family)
    await started(d.service)
    d.manager.start(d.service, "clone", CloneOptions(limit_bytes_s=64 * BLOCK_BYTES))
    while d.manager.status(d.service, "clone").copied_blocks < BLOCKS // 2:
        await asyncio.sleep(0)
    image = bytes(family.volume.device.image)  # type: ignore[attr-defined]
    await d.manager.close()
    await d.service.stop()
    family.volume.device.image[:] = image  # type: ignore[attr-defined]


@pytest.mark.parametrize("log_bytes", [None, 1 * MIB])
def test_a_clone_that_is_killed_half_way_copies_no_block_twice(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch, log_bytes: int | None
) -> None:
    monkeypatch.setattr("cloner.job.UNSYNCED_FILL_BYTES", 100 * BLOCK_BYTES)
    family = make_family(workshop, 24 * MIB, list(range(BLOCKS)), log_bytes=log_bytes)
    asyncio.run(half_a_clone(family))
    volume = workshop.crash(family.volume)
    again = Family(volume, volume.lun("clone"), family.model)
    before = own_blocks(again.clone)
    assert BLOCKS // 2 - 120 <= len(before) <= BLOCKS // 2 + 20

    async def main() -> None:
        async with daemon(again) as d:
            assert d.manager.restart_requested(d.service) == ["clone"]
            assert (await d.manager.wait(d.service, "clone")).state is JobState.COMPLETED
            data = d.events[-1].data
            assert data["blocks_present"] == len(before)
            assert data["blocks_copied"] == data["blocks_total"] == BLOCKS - len(before)
            assert data["blocks_skipped"] == 0
            now = own_blocks(again.clone)
            assert all(now[block] == vbn for block, vbn in before.items())
            assert again.reads_right()

    asyncio.run(main())


def test_what_a_guest_covers_meanwhile_is_counted_as_skipped(workshop: Workshop) -> None:
    async def main() -> None:
        family = make_family(workshop, 24 * MIB, list(range(BLOCKS)))
        async with daemon(family) as d:
            d.manager.start(d.service, "clone", CloneOptions(limit_bytes_s=64 * BLOCK_BYTES))
            while d.manager.status(d.service, "clone").copied_blocks < 100:
                await asyncio.sleep(0)
            family.write(600 * BLOCK_BYTES, pattern(3, 50 * BLOCK_BYTES))
            family.unmap(650 * BLOCK_BYTES, 50 * BLOCK_BYTES)
            await d.manager.wait(d.service, "clone")
            data = d.events[-1].data
            assert (data["blocks_copied"], data["blocks_skipped"], data["blocks_present"]) == (BLOCKS - 100, 100, 0)
            assert family.reads_right()

    asyncio.run(main())


def test_a_scan_of_sixteen_tebibytes_with_little_in_them_reads_little() -> None:
    """256 MiB of address space in 256 places, in runs and alone; each subtree without data costs nothing."""
    offsets = range(0, 16 * TIB, TIB // 16)
    volume, clone, device = scattered(16 * TIB, offsets)
    looked, index, calls = 0, clone.next_missing(0), 0
    while index is not None:
        calls += 1
        if (plan := clone.plan_fill(index)) is not None:
            looked += 1
            plan.release()
        index = clone.next_missing(index + 1)
    assert looked == len(offsets)
    assert calls == looked
    # For each place: its level-1 block and those above, of which neighbours share the upper ones.
    assert device.reads <= len(offsets) * 3 + 10
    volume.close()


def test_a_gibibyte_of_data_in_sixteen_tebibytes_is_scanned_by_its_level_one_blocks_alone() -> None:
    """1024 level-1 ranges that lie together, as a disk's used part does: one comparison each."""
    volume, clone, device = scattered(16 * TIB, range(5 * TIB, 5 * TIB + (1 << 30), LEVEL_ONE_BYTES))
    device.reads = found = 0
    index = clone.next_missing(0)
    while index is not None:
        found += 1
        index = clone.next_missing(index + 1)
    assert found == 1024
    assert device.reads <= 1024 + 4 + 3 + 10
    volume.close()


def test_a_resumed_scan_compares_what_is_there_and_copies_what_is_not() -> None:
    volume, clone, _ = scattered(16 * TIB, range(0, 512 * LEVEL_ONE_BYTES, LEVEL_ONE_BYTES))
    for index in range(0, 512, 2):
        plan = clone.plan_fill(index)
        assert plan is not None
        clone.install_fill(plan, plan.read())
        plan.release()
    volume.commit_now()
    clone.cool()
    steps, progress = steps_of(volume, clone)
    drive(volume, steps)
    assert progress.copied_blocks == 256
    assert clone.backing is None
    volume.close()
