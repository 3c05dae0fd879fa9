"""What clone jobs do to LUNs that read through a snapshot: fills and the detach."""

from __future__ import annotations

import pytest

from tests.support.volumes import MIB, Workshop, checkpoint, fill_all, pattern, take_snapshot
from tests.wafl.test_lun import read
from tests.wafl.test_snapshot import volume
from wafl import (
    BLOCK_BYTES,
    LunBusy,
    SnapshotBusy,
    Volume,
)

__all__ = ["volume"]


def test_filling_and_detaching_keeps_every_byte_and_frees_the_snapshot(workshop: Workshop, volume: Volume) -> None:
    take_snapshot(volume, "s")
    clone = volume.create_lun("clone", backing=("s", "golden"))
    clone.write(BLOCK_BYTES, pattern(2, BLOCK_BYTES))
    expected = read(clone, 0, 4 * MIB)
    assert clone.missing_blocks() == 511 or clone.missing_blocks() == 512
    assert fill_all(clone) == 511
    assert not clone.fills_durable
    with pytest.raises(LunBusy):
        clone.detach()
    checkpoint(volume)
    clone.detach()
    assert clone.backing is None
    assert volume.snapshot_usage("s") == ["clone"], "the lock goes only when the detach is durable"
    checkpoint(volume)
    volume.delete_snapshot("s")
    volume.reclaim_now()
    volume.lun("golden").unmap(0, 4 * MIB)
    volume = workshop.remount(volume)
    assert read(volume.lun("clone"), 0, 4 * MIB) == expected


def test_a_lun_that_misses_something_is_not_detached(volume: Volume) -> None:
    take_snapshot(volume, "s")
    clone = volume.create_lun("clone", backing=("s", "golden"))
    plan = clone.plan_fill(0)
    assert plan is not None
    clone.install_fill(plan, plan.read())
    plan.release()
    checkpoint(volume)
    with pytest.raises(LunBusy):
        clone.detach()
    with pytest.raises(LunBusy):
        volume.lun("golden").detach()


def test_a_guest_write_between_plan_and_install_wins(volume: Volume) -> None:
    take_snapshot(volume, "s")
    clone = volume.create_lun("clone", backing=("s", "golden"))
    plan = clone.plan_fill(0, 0, 8)
    assert plan is not None
    data = plan.read()
    clone.write(2 * BLOCK_BYTES, pattern(9, BLOCK_BYTES))
    clone.unmap(4 * BLOCK_BYTES, BLOCK_BYTES)
    clone.write(6 * BLOCK_BYTES + 512, pattern(9, 512))
    expected = read(clone, 0, 8 * BLOCK_BYTES)
    assert clone.install_fill(plan, data) == 5
    plan.release()
    assert read(clone, 0, 8 * BLOCK_BYTES) == expected


def test_a_plan_outlived_by_its_backing_installs_nothing(volume: Volume) -> None:
    take_snapshot(volume, "s")
    clone = volume.create_lun("clone", backing=("s", "golden"))
    plan = clone.plan_fill(1)
    assert plan is not None
    data = plan.read()
    volume.resize_lun("clone", MIB)
    assert clone.install_fill(plan, data) == 0
    volume.destroy_lun("clone")
    assert clone.install_fill(plan, data) == 0
    plan.release()


def test_the_blocks_of_a_plan_are_not_reused_before_its_release(volume: Volume) -> None:
    take_snapshot(volume, "s")
    clone = volume.create_lun("clone", backing=("s", "golden"))
    plan = clone.plan_fill(0)
    assert plan is not None
    volume.destroy_lun("clone")
    volume.lun("golden").unmap(0, 4 * MIB)
    volume.delete_snapshot("s")
    volume.reclaim_now()
    other = volume.create_lun("other", 64 * MIB)
    for turn in range(30):
        other.write(turn * MIB // 2, pattern(turn + 50, MIB // 2))
    assert bytes(plan.read()) == pattern(1, 2 * MIB)[:MIB]
    plan.release()


def test_a_scan_passes_over_what_cannot_be_missing(volume: Volume) -> None:
    volume.create_lun("huge", 16 << 40).write(9 << 40, pattern(3, BLOCK_BYTES))
    take_snapshot(volume, "s")
    clone = volume.create_lun("clone", backing=("s", "huge"))
    assert clone.next_missing(0) == (9 << 40) >> 20
    assert fill_all(clone) == 1
    assert clone.next_missing(0) is None


def test_a_plan_holds_at_most_what_was_asked_for(volume: Volume) -> None:
    take_snapshot(volume, "s")
    clone = volume.create_lun("clone", backing=("s", "golden"))
    plan = clone.plan_fill(0, 10, 7)
    assert plan is not None
    assert plan.blocks == 7
    assert plan.slots.tolist() == list(range(10, 17))
    plan.release()
    plan.release()


def test_clone_requested_and_missing_blocks_survive_a_mount(workshop: Workshop, volume: Volume) -> None:
    take_snapshot(volume, "s")
    clone = volume.create_lun("clone", backing=("s", "golden"))
    clone.set_clone_requested(True)
    plan = clone.plan_fill(0)
    assert plan is not None
    clone.install_fill(plan, plan.read())
    plan.release()
    clone = workshop.remount(volume).lun("clone")
    assert clone.clone_requested
    assert clone.missing_blocks() == 256
    assert clone.fills_durable


def test_a_snapshot_taken_in_the_middle_of_a_clone_inherits_the_dependency(volume: Volume) -> None:
    take_snapshot(volume, "s")
    clone = volume.create_lun("clone", backing=("s", "golden"))
    plan = clone.plan_fill(0)
    assert plan is not None
    clone.install_fill(plan, plan.read())
    plan.release()
    take_snapshot(volume, "middle")
    fill_all(clone)
    checkpoint(volume)
    clone.detach()
    checkpoint(volume)
    assert volume.snapshot_usage("s") == [".snapshot/middle/clone"]
    assert read(volume.snapshot_lun("middle", "clone"), 0, 2 * MIB) == pattern(1, 2 * MIB)
    with pytest.raises(SnapshotBusy):
        volume.delete_snapshot("s")
    volume.delete_snapshot("middle")
    volume.delete_snapshot("s")


def test_writing_behind_the_limit_does_not_lower_the_count_of_missing_blocks(volume: Volume) -> None:
    """The composed buffer is the leaf itself there, and a write counted as one over the backing's data."""
    take_snapshot(volume, "s")
    clone = volume.create_lun("clone", 64 * MIB, backing=("s", "golden"))
    before = clone.missing_blocks()
    for block in range(3):
        read(clone, 60 * MIB + block * BLOCK_BYTES, BLOCK_BYTES)
        clone.write(60 * MIB + block * BLOCK_BYTES, pattern(block, BLOCK_BYTES))
    assert clone.missing_blocks() == before
