"""Faults that the state machine or the crash harness found once, each as a plain test."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.support.sleepy_device import SleepyDevice
from tests.support.volumes import MIB, Workshop, checkpoint, pattern, take_snapshot
from wafl import BLOCK_BYTES, NoSpace, Volume, unmap_is_ready


def test_scattered_writes_do_not_eat_what_is_kept_back_for_consistency_points(workshop: Workshop) -> None:
    """The data run held all that guests may use; pointer blocks then came out of the reserve until none was left."""
    volume = workshop.format(8 * MIB)
    lun = volume.create_lun("a", 400 * MIB)
    reserved = volume.space().reserved
    try:
        for index in range(400):
            lun.write(index * MIB, pattern(index, BLOCK_BYTES))
            assert volume.space().free >= reserved
    except NoSpace:
        pass
    checkpoint(volume)


def test_a_snapshot_is_not_refused_for_the_space_that_the_data_run_holds(workshop: Workshop) -> None:
    """A small volume's data run is all the space there is; it counted as used."""
    volume = workshop.format(4 * MIB)
    volume.create_lun("a", MIB).write(0, pattern(1, BLOCK_BYTES))
    take_snapshot(volume, "s")
    assert [snapshot.name for snapshot in volume.snapshots()] == ["s"]


def test_filling_lowers_the_count_of_missing_blocks(workshop: Workshop) -> None:
    """A fill counted only where a composed level-1 buffer happened to be in memory."""
    volume = workshop.format()
    volume.create_lun("golden", MIB).write(0, pattern(1, 10 * BLOCK_BYTES))
    take_snapshot(volume, "s")
    clone = volume.create_lun("clone", None, backing=("s", "golden"))
    assert clone.missing_blocks() == 10
    plan = clone.plan_fill(0, 0, 4)
    assert plan is not None
    clone.install_fill(plan, plan.read())
    plan.release()
    assert clone.missing_blocks() == 6


def without_waiting(volume: Volume, change: Callable[[], bool]) -> None:
    """Until it is done, the disk reading in between."""
    device = volume.device
    assert isinstance(device, SleepyDevice)
    device.waits["loop"] = 0
    for _ in range(8):
        if change():
            break
        volume.core.cold = None
        device.here |= device.coming
    else:
        raise AssertionError("it is never ready")
    assert device.waits["loop"] == 0


def cold(workshop: Workshop, volume: Volume) -> Volume:
    """None of it is in memory but what a mount reads."""
    checkpoint(volume)
    return workshop.mount(SleepyDevice(bytearray(volume.device.image)))  # type: ignore[attr-defined]


@pytest.mark.parametrize("end_mib", [300, 400])
def test_an_unmap_over_its_backings_limit_asks_for_the_pointers_there(workshop: Workshop, end_mib: int) -> None:
    """Below the limit is ZERO then, behind it HOLE: a pointer block that both have a part of is read."""
    volume = workshop.format(64 * MIB)
    limit = 300 * MIB + 5 * BLOCK_BYTES
    volume.create_lun("golden", limit).write(limit - BLOCK_BYTES, pattern(1, BLOCK_BYTES))
    take_snapshot(volume, "s")
    lun = volume.create_lun("clone", None, backing=("s", "golden"))
    if end_mib > 300:
        volume.resize_lun("clone", end_mib * MIB)
    end = lun.size_bytes
    for number in range(2):
        lun.write(limit - (number + 1) * BLOCK_BYTES, pattern(number + 2, BLOCK_BYTES))
    volume = cold(workshop, volume)
    lun = volume.lun("clone")
    lun.below()  # a snapshot's LUNs are read for the first time: once a mount

    def change() -> bool:
        if ready := unmap_is_ready(lun, MIB, end - MIB):
            lun.unmap(MIB, end - MIB)
        return ready

    without_waiting(volume, change)
    back = bytearray(MIB)
    lun.read_into(end - MIB, memoryview(back))
    assert not any(back)


def test_a_write_up_to_the_end_of_a_lun_reads_nothing_of_its_last_block(workshop: Workshop) -> None:
    """There is nothing behind the end; what a LUN grows by reads zeros."""
    volume = workshop.format()
    volume.create_lun("a", MIB + 1024).write(MIB, pattern(1, 1024))
    volume = cold(workshop, volume)
    lun = volume.lun("a")
    without_waiting(volume, lambda: lun.write(MIB, pattern(2, 1024), nowait=True))
    volume.resize_lun("a", 2 * MIB)
    back = bytearray(BLOCK_BYTES)
    lun.read_into(MIB, memoryview(back))
    assert back == pattern(2, 1024) + bytes(BLOCK_BYTES - 1024)
