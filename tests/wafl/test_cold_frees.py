"""What is freed is read for it, pointers and counts; by a thread, together, and never by the loop that serves hosts."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from tests.support.sleepy_device import SleepyDevice
from tests.support.volumes import MIB, Workshop, checkpoint, pattern, reclaim, take_snapshot
from wafl import Volume, VolumeService
from wafl.allocator import APPLY_FREES
from wafl.format import BLOCK_BYTES, COUNTS, POINTERS
from wafl.holdings import ROWS_AHEAD
from wafl.reclaim import TRIM_SLICE
from wafl.types import Step

LIMIT_S = 60
LEAVES = 200
ROWS = 6
SHARED_BYTES = ROWS * COUNTS * BLOCK_BYTES


def scattered(workshop: Workshop) -> Volume:
    """A LUN of many level-1 blocks, one block of data in each; nothing of it in memory."""
    volume = workshop.format(64 * MIB)
    lun = volume.create_lun("disk", 1 << 40)
    for number in range(LEAVES):
        lun.write((number * 1000 % 4096) * 256 * MIB, pattern(number + 1, BLOCK_BYTES))
    checkpoint(volume)
    return workshop.mount(SleepyDevice(bytearray(volume.device.image)))  # type: ignore[attr-defined]


def shared(workshop: Workshop) -> Volume:
    """Two LUNs with the same blocks, whose counts are many rows."""
    volume = workshop.format(SHARED_BYTES + 64 * MIB)
    lun = volume.create_lun("disk", SHARED_BYTES)
    for at in range(0, SHARED_BYTES, MIB):
        lun.write(at, pattern(at, BLOCK_BYTES) * POINTERS)
    twin, at = volume.create_lun("twin", SHARED_BYTES), 0
    while at < SHARED_BYTES:
        at += twin.share(at, lun, at, SHARED_BYTES - at)
        checkpoint(volume)
    return workshop.mount(SleepyDevice(bytearray(volume.device.image)))  # type: ignore[attr-defined]


def waits(volume: Volume) -> dict[str, int]:
    assert isinstance(volume.device, SleepyDevice)
    return dict(volume.device.waits)


def serve(volume: Volume, scene: Callable[[VolumeService], Awaitable[None]]) -> dict[str, int]:
    """The waits of a scene, while the volume is being served."""

    async def play() -> dict[str, int]:
        service = VolumeService(volume, cp_interval_s=LIMIT_S)
        service.start()
        before = waits(volume)
        async with asyncio.timeout(LIMIT_S):
            await scene(service)
        found = {who: count - before[who] for who, count in waits(volume).items()}
        await service.stop()
        return found

    return asyncio.run(play())


async def until_reclaimed(service: VolumeService) -> None:
    service.kick_reclaim()
    while service.volume.files.zombies:
        await asyncio.sleep(0)


@pytest.mark.parametrize("unmapped", [False, True])
def test_a_tree_that_goes_is_read_many_blocks_at_a_time(workshop: Workshop, unmapped: bool) -> None:
    volume = scattered(workshop)
    if unmapped:
        lun = volume.lun("disk")
        lun.unmap(0, lun.size_bytes)
    else:
        volume.destroy_lun("disk")
    found = serve(volume, until_reclaimed)
    assert found["loop"] == 0
    assert found["thread"] < LEAVES // TRIM_SLICE * 2


def test_counts_of_what_goes_are_read_many_rows_at_a_time(workshop: Workshop) -> None:
    volume = shared(workshop)
    volume.destroy_lun("twin")
    found = serve(volume, until_reclaimed)
    assert found["loop"] == 0
    assert volume.files.references.total == 0


def test_a_freeze_does_not_read_the_counts_of_what_hosts_have_overwritten(workshop: Workshop) -> None:
    volume = shared(workshop)
    twin = volume.lun("twin")
    for at in range(0, SHARED_BYTES, MIB):
        twin.write(at, pattern(7, BLOCK_BYTES))
    total = volume.files.references.total

    async def commit(service: VolumeService) -> None:
        await service.commit()

    found = serve(volume, commit)
    assert found["loop"] == 0
    assert 0 < found["thread"] < ROWS
    assert volume.files.references.total == total - SHARED_BYTES // MIB


def test_what_hosts_free_waits_for_its_counts_without_them(workshop: Workshop) -> None:
    """A new run of blocks puts frees into the map, but none for which the loop would have to read."""
    volume = shared(workshop)
    allocator = volume.core.allocator
    twin = volume.lun("twin")
    for at in range(0, SHARED_BYTES, MIB):
        twin.write(at, pattern(7, BLOCK_BYTES))
    twin.write(0, bytes(pattern(8, BLOCK_BYTES)) * APPLY_FREES)
    before = waits(volume)
    assert not allocator.apply_frees(nowait=True)
    assert len(allocator.freed) > 0
    assert waits(volume) == before
    checkpoint(volume)
    assert not allocator.freed
    assert volume.files.references.total == SHARED_BYTES // BLOCK_BYTES - APPLY_FREES - SHARED_BYTES // MIB + 16


def test_reclaim_by_somebody_in_need_waits_itself(workshop: Workshop) -> None:
    volume = scattered(workshop)
    volume.destroy_lun("disk")
    assert all(step is not Step.READ for step in volume.reclaim())
    assert not volume.files.zombies


def test_a_driver_that_does_not_wait_gets_there_too(workshop: Workshop) -> None:
    volume = scattered(workshop)
    volume.destroy_lun("disk")
    steps = list(volume.reclaim(nowait=True))
    assert Step.READ in steps
    assert not volume.files.zombies
    reclaim(volume)


SNAPSHOTS = ROWS_AHEAD + 2


def overwritten(workshop: Workshop) -> Volume:
    """Snapshots of which each has blocks of its own."""
    volume = workshop.format(64 * MIB)
    lun = volume.create_lun("disk", MIB)
    for number in range(SNAPSHOTS):
        lun.write(0, pattern(number, 16 * BLOCK_BYTES))
        take_snapshot(volume, f"s{number}")
    return volume


def test_maps_of_a_snapshot_that_goes_are_read_together(workshop: Workshop) -> None:
    volume = overwritten(workshop)
    checkpoint(volume)
    volume = workshop.mount(SleepyDevice(bytearray(volume.device.image)))  # type: ignore[attr-defined]
    volume.delete_snapshot("s3")

    async def until_gone(service: VolumeService) -> None:
        service.kick_reclaim()
        while service.volume.snapshots_table.deleting:
            await asyncio.sleep(0)

    found = serve(volume, until_gone)
    assert found["loop"] == 0
    # The inodes of all maps; the pointers of file, map and maps; the rows, in two parts.
    assert 0 < found["thread"] < 2 * SNAPSHOTS


def test_maps_of_a_snapshot_that_goes_while_another_does_are_not_read_by_the_loop(workshop: Workshop) -> None:
    volume = overwritten(workshop)
    checkpoint(volume)
    volume = workshop.mount(SleepyDevice(bytearray(volume.device.image)))  # type: ignore[attr-defined]
    device = volume.device
    assert isinstance(device, SleepyDevice)
    volume.delete_snapshot("s3")
    steps = volume.reclaim(nowait=True)
    before, names = device.waits["loop"], ["s5", "s1"]
    for number, step in enumerate(steps):
        if step is Step.READ:
            device.here |= device.coming  # a thread has waited for it
        elif number and names:  # not at once: the first has been looked at
            asked = device.waits["loop"]
            volume.delete_snapshot(names.pop())  # which asks all younger ones
            before += device.waits["loop"] - asked
    assert not names
    assert device.waits["loop"] == before
    assert "s3" not in {snapshot.name for snapshot in volume.snapshots_table.deleting.values()}
