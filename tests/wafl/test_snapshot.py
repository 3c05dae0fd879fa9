"""Snapshots, and LUNs that read through them."""

from __future__ import annotations

import pytest

from tests.support.volumes import EPOCH, MIB, Workshop, checkpoint, fill_all, pattern, reclaim, take_snapshot
from tests.wafl.test_lun import read
from wafl import (
    BLOCK_BYTES,
    BackingLost,
    ChainTooDeep,
    InvalidName,
    LimitReached,
    NameTaken,
    NoSuchLun,
    NoSuchSnapshot,
    SnapshotBusy,
    Volume,
)
from wafl.format import HOLE, MAX_CHAIN_DEPTH, ZERO


@pytest.fixture
def volume(workshop: Workshop) -> Volume:
    volume = workshop.format(32 * MIB)
    volume.create_lun("golden", 4 * MIB).write(0, pattern(1, 2 * MIB))
    return volume


# --- snapshots --------------------------------------------------------------------------------------------------------


def test_a_snapshot_keeps_what_was_there(workshop: Workshop, volume: Volume) -> None:
    take_snapshot(volume, "s")
    golden = volume.lun("golden")
    golden.write(0, pattern(2, MIB))
    golden.unmap(MIB, MIB)
    checkpoint(volume)
    volume = workshop.remount(volume)
    assert read(volume.snapshot_lun("s", "golden"), 0, 2 * MIB) == pattern(1, 2 * MIB)
    assert [(snap.name, snap.generation, snap.busy) for snap in volume.snapshots()] == [
        ("s", volume.snapshots()[0].generation, False)
    ]


def test_what_is_written_while_a_snapshot_is_being_made_is_not_in_it(volume: Volume) -> None:
    volume.request_snapshot("s")
    golden = volume.lun("golden")
    turn = 0
    for step in volume.checkpoint():
        golden.write(turn * BLOCK_BYTES, pattern(100 + turn, BLOCK_BYTES))
        golden.unmap(MIB + turn * BLOCK_BYTES, BLOCK_BYTES)
        turn += 1
        volume.device.sync()
        assert step
    assert turn > 3
    assert read(volume.snapshot_lun("s", "golden"), 0, 2 * MIB) == pattern(1, 2 * MIB)
    assert read(golden, 0, BLOCK_BYTES) == pattern(100, BLOCK_BYTES)


def test_a_snapshot_asked_for_during_a_consistency_point_is_made_by_the_next(volume: Volume) -> None:
    steps = volume.checkpoint()
    next(steps)
    volume.request_snapshot("s")
    for _ in steps:
        volume.device.sync()
    assert volume.snapshots() == []
    checkpoint(volume)
    assert [snap.name for snap in volume.snapshots()] == ["s"]


def test_several_snapshots_can_be_made_at_once(workshop: Workshop, volume: Volume) -> None:
    for name in ("s1", "s2"):
        volume.request_snapshot(name)
    checkpoint(volume)
    volume.lun("golden").unmap(0, 4 * MIB)
    volume.delete_snapshot("s1")
    volume.reclaim_now()
    assert read(volume.snapshot_lun("s2", "golden"), 0, MIB) == pattern(1, 2 * MIB)[:MIB]


def test_snapshot_names_are_checked_and_ids_never_used_again(workshop: Workshop, volume: Volume) -> None:
    take_snapshot(volume, "s")
    for name in ("", "a/b", "..", "x" * 256, "a\tb"):
        with pytest.raises(InvalidName):
            volume.request_snapshot(name)
    with pytest.raises(NameTaken):
        volume.request_snapshot("s")
    volume.request_snapshot("t")
    with pytest.raises(NameTaken):
        volume.request_snapshot("t")
    checkpoint(volume)
    first = volume.snapshot("t").id
    volume.delete_snapshot("t")
    volume.reclaim_now()
    volume = workshop.remount(volume)
    take_snapshot(volume, "t")
    assert volume.snapshot("t").id > first


def test_the_256th_snapshot_is_refused(workshop: Workshop) -> None:
    volume = workshop.format(64 * MIB)
    for number in range(255):
        volume.request_snapshot(f"s{number}")
        if number % 50 == 0:
            checkpoint(volume)
    with pytest.raises(LimitReached):
        volume.request_snapshot("one more")
    checkpoint(volume)
    volume = workshop.remount(volume)
    assert len(volume.snapshots()) == 255


def test_a_renamed_snapshot_keeps_its_luns(workshop: Workshop, volume: Volume) -> None:
    take_snapshot(volume, "s")
    take_snapshot(volume, "u")
    clone = volume.create_lun("clone", backing=("s", "golden"))
    volume.rename_snapshot("s", "t")
    with pytest.raises(NameTaken):
        volume.rename_snapshot("t", "u")
    with pytest.raises(NoSuchSnapshot):
        volume.rename_snapshot("s", "v")
    assert clone.backing is not None
    assert clone.backing.snapshot_name == "t"
    volume = workshop.remount(volume)
    assert read(volume.lun("clone"), 0, 2 * MIB) == pattern(1, 2 * MIB)
    assert volume.lun("clone").backing == clone.backing
    assert volume.snapshot_usage("t") == ["clone"]


def test_a_deleted_snapshot_gives_back_exactly_what_only_it_held(volume: Volume) -> None:
    take_snapshot(volume, "s")
    volume.lun("golden").write(0, pattern(2, MIB))
    checkpoint(volume)
    told = volume.snapshot_space("s")
    before = volume.space()
    assert told.reclaimable == before.snapshots
    assert told.reclaimable >= MIB
    volume.delete_snapshot("s")
    assert volume.snapshots() == []
    volume.reclaim_now()
    after = volume.space()
    assert after.snapshots == 0
    assert before.used - after.used >= told.reclaimable - 8 * BLOCK_BYTES


def test_the_middle_one_of_three_snapshots_can_go(workshop: Workshop, volume: Volume) -> None:
    golden = volume.lun("golden")
    for number in range(3):
        golden.write(number * 8 * BLOCK_BYTES, pattern(10 + number, 16 * BLOCK_BYTES))
        take_snapshot(volume, f"s{number}")
    expected = {name: read(volume.snapshot_lun(name, "golden"), 0, 2 * MIB) for name in ("s0", "s2")}
    volume.delete_snapshot("s1")
    volume.reclaim_now()
    golden.write(0, pattern(99, 2 * MIB))
    volume = workshop.remount(volume)
    for name, data in expected.items():
        assert read(volume.snapshot_lun(name, "golden"), 0, 2 * MIB) == data


def test_deletion_goes_on_after_a_crash_at_any_slice(workshop: Workshop, volume: Volume) -> None:
    golden = volume.lun("golden")
    take_snapshot(volume, "s0")
    golden.write(0, pattern(5, MIB))
    take_snapshot(volume, "s1")
    golden.write(MIB, pattern(6, MIB))
    checkpoint(volume)
    for slices in range(6):
        if slices == 0:
            volume.delete_snapshot("s0")
        if slices == 2:
            volume.delete_snapshot("s1")
        for _, _ in zip(volume.reclaim(), range(slices), strict=False):
            pass
        checkpoint(volume)
        golden.write(2 * MIB, pattern(slices, MIB))
        checkpoint(volume)
        volume = workshop.crash(volume)
        golden = volume.lun("golden")
    volume.reclaim_now()
    assert volume.space().snapshots == 0


def test_a_snapshot_taken_during_a_reclaim_keeps_its_blocks(workshop: Workshop, volume: Volume) -> None:
    take_snapshot(volume, "old")
    volume.lun("golden").write(0, pattern(2, MIB))
    checkpoint(volume)
    volume.delete_snapshot("old")
    slices = volume.reclaim()
    next(slices)
    take_snapshot(volume, "new")
    reclaim(volume)
    volume.lun("golden").unmap(0, 4 * MIB)
    volume.reclaim_now()
    assert read(volume.snapshot_lun("new", "golden"), 0, MIB) == pattern(2, MIB)


def test_two_iterations_of_reclaim_share_the_work(volume: Volume) -> None:
    take_snapshot(volume, "s")
    volume.lun("golden").write(0, pattern(2, MIB))
    volume.delete_snapshot("s")
    resting = volume.reclaim()
    next(resting)
    volume.reclaim_now()
    assert list(resting) == []
    assert not volume.reclaim_pending


def test_a_name_may_be_used_again_while_its_first_snapshot_is_still_being_deleted(workshop: Workshop) -> None:
    volume = workshop.format()
    volume.create_lun("a", MIB).write(0, pattern(1, BLOCK_BYTES))
    take_snapshot(volume, "first")
    take_snapshot(volume, "second")
    volume.delete_snapshot("second")
    volume.rename_snapshot("first", "second")
    checkpoint(volume)
    again = workshop.crash(volume)
    assert [snapshot.name for snapshot in again.snapshots()] == ["second"]
    assert again.reclaim_pending
    reclaim(again)


# --- LUNs that read through a snapshot --------------------------------------------------------------------------------


def test_a_backed_lun_reads_the_snapshot_and_keeps_its_own_writes(workshop: Workshop, volume: Volume) -> None:
    take_snapshot(volume, "s")
    clone = volume.create_lun("clone", backing=("s", "golden"))
    volume.lun("golden").write(0, pattern(3, 2 * MIB))
    assert read(clone, 0, 2 * MIB) == pattern(1, 2 * MIB)
    clone.write(512, pattern(4, 512))
    clone.write(MIB, pattern(5, 8192))
    clone.unmap(MIB + 65536, 65536)
    expected = bytearray(pattern(1, 2 * MIB))
    expected[512:1024] = pattern(4, 512)
    expected[MIB : MIB + 8192] = pattern(5, 8192)
    expected[MIB + 65536 : MIB + 131072] = bytes(65536)
    assert read(clone, 0, 2 * MIB) == expected
    volume = workshop.remount(volume)
    assert read(volume.lun("clone"), 0, 2 * MIB) == expected
    assert read(volume.lun("clone"), 2 * MIB, 2 * MIB) == bytes(2 * MIB)


def test_unmap_below_the_limit_leaves_zero_and_never_a_hole(volume: Volume) -> None:
    take_snapshot(volume, "s")
    clone = volume.create_lun("clone", 8 * MIB, backing=("s", "golden"))
    clone.write(0, pattern(2, 4096))
    clone.unmap(0, 4 * BLOCK_BYTES)
    own, _ = clone.load_level_one_buf(0)
    assert own[:5].tolist() == [ZERO] * 4 + [HOLE]
    clone.unmap(0, 8 * MIB)
    for index in range(4):
        assert set(clone.load_level_one_buf(index)[0].tolist()) == {ZERO}
    assert set(clone.load_level_one_buf(4)[0].tolist()) == {HOLE}
    assert clone.next_missing(0) is None


def test_a_lun_larger_than_its_parent_reads_zeros_behind_the_limit(workshop: Workshop, volume: Volume) -> None:
    volume.create_lun("odd", MIB + 512).write(0, pattern(7, MIB + 512))
    take_snapshot(volume, "s")
    clone = volume.create_lun("clone", 3 * MIB, backing=("s", "odd"))
    assert read(clone, 0, 2 * MIB) == pattern(7, MIB + 512) + bytes(MIB - 512)
    clone.write(MIB + 512, pattern(8, 512))
    expected = pattern(7, MIB + 512)[MIB:] + pattern(8, 512) + bytes(512)
    assert read(workshop.remount(volume).lun("clone"), MIB, 1536) == expected


@pytest.mark.parametrize("size", [512, BLOCK_BYTES + 1024, MIB])
def test_a_lun_smaller_than_its_parent_does_not_show_the_rest_when_it_grows(volume: Volume, size: int) -> None:
    take_snapshot(volume, "s")
    clone = volume.create_lun("clone", size, backing=("s", "golden"))
    assert read(clone, 0, size) == pattern(1, 2 * MIB)[:size]
    volume.resize_lun("clone", 4 * MIB)
    assert read(clone, 0, 2 * MIB) == pattern(1, 2 * MIB)[:size] + bytes(2 * MIB - size)


def test_shrinking_a_backed_lun_lowers_the_limit_for_good(workshop: Workshop, volume: Volume) -> None:
    take_snapshot(volume, "s")
    volume.create_lun("clone", backing=("s", "golden"))
    volume.resize_lun("clone", MIB + 512)
    volume = workshop.remount(volume)
    volume.resize_lun("clone", 4 * MIB)
    clone = volume.lun("clone")
    assert read(clone, 0, 2 * MIB) == pattern(1, 2 * MIB)[: MIB + 512] + bytes(MIB - 512)
    assert clone.backing is not None
    assert clone.backing.limit_bytes == MIB + BLOCK_BYTES


def test_a_clone_of_a_clone_reads_through_both(workshop: Workshop, volume: Volume) -> None:
    take_snapshot(volume, "s1")
    first = volume.create_lun("first", backing=("s1", "golden"))
    first.write(BLOCK_BYTES, pattern(2, BLOCK_BYTES))
    first.unmap(3 * BLOCK_BYTES, BLOCK_BYTES)
    take_snapshot(volume, "s2")
    second = volume.create_lun("second", backing=("s2", "first"))
    second.write(5 * BLOCK_BYTES, pattern(3, BLOCK_BYTES))
    first.write(0, pattern(4, 2 * MIB))
    expected = bytearray(pattern(1, 2 * MIB))
    for block, seed in ((1, 2), (5, 3)):
        expected[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES] = pattern(seed, BLOCK_BYTES)
    expected[3 * BLOCK_BYTES : 4 * BLOCK_BYTES] = bytes(BLOCK_BYTES)
    volume = workshop.remount(volume)
    assert read(volume.lun("second"), 0, 2 * MIB) == expected
    with pytest.raises(SnapshotBusy) as error:
        volume.delete_snapshot("s1")
    assert set(error.value.holders) == {"first", ".snapshot/s2/first"}
    fill_all(volume.lun("second"))
    assert read(volume.lun("second"), 0, 2 * MIB) == expected


def test_a_chain_has_a_depth_limit(volume: Volume) -> None:
    name = "golden"
    for depth in range(MAX_CHAIN_DEPTH):
        take_snapshot(volume, f"s{depth}")
        lun = volume.create_lun(f"c{depth}", backing=(f"s{depth}", name))
        lun.write(depth * BLOCK_BYTES, pattern(100 + depth, BLOCK_BYTES))
        name = lun.name
    take_snapshot(volume, "last")
    with pytest.raises(ChainTooDeep):
        volume.create_lun("too deep", backing=("last", name))
    for depth in range(MAX_CHAIN_DEPTH):
        assert read(volume.lun(name), depth * BLOCK_BYTES, BLOCK_BYTES) == pattern(100 + depth, BLOCK_BYTES)


def test_a_backing_that_is_not_there_is_refused_and_one_that_is_lost_is_an_error(
    workshop: Workshop, volume: Volume
) -> None:
    take_snapshot(volume, "s")
    with pytest.raises(NoSuchSnapshot):
        volume.create_lun("clone", backing=("t", "golden"))
    with pytest.raises(NoSuchLun):
        volume.create_lun("clone", backing=("s", "none"))
    clone = volume.create_lun("clone", backing=("s", "golden"))
    clone.write(0, pattern(2, BLOCK_BYTES))
    checkpoint(volume)
    del volume.snapshots_table.by_id[volume.snapshot("s").id]
    volume.snapshots_table._views.clear()
    clone._below = None
    clone.cool()
    with pytest.raises(BackingLost):
        read(clone, 0, BLOCK_BYTES)
    clone.write(BLOCK_BYTES, pattern(3, BLOCK_BYTES))
    workshop.abandon(volume)


def test_a_snapshot_is_busy_while_anything_reads_through_it(volume: Volume) -> None:
    take_snapshot(volume, "s")
    volume.create_lun("clone", backing=("s", "golden"))
    take_snapshot(volume, "t")
    assert volume.snapshots()[0].busy_holders == ["clone", ".snapshot/t/clone"]
    volume.destroy_lun("clone")
    assert volume.snapshot_usage("s") == [".snapshot/t/clone"]
    volume.delete_snapshot("t")
    volume.delete_snapshot("s")
    volume.reclaim_now()


def test_a_backed_lun_of_a_terabyte_costs_nothing_to_make(volume: Volume) -> None:
    volume.create_lun("huge", 1 << 40).write(1 << 39, pattern(3, BLOCK_BYTES))
    take_snapshot(volume, "s")
    before = volume.space().used
    clone = volume.create_lun("clone", backing=("s", "huge"))
    assert volume.space().used == before
    assert read(clone, 1 << 39, BLOCK_BYTES) == pattern(3, BLOCK_BYTES)


def test_the_luns_in_a_snapshot_are_listed(volume: Volume) -> None:
    golden = volume.lun("golden")
    take_snapshot(volume, "s")
    volume.create_lun("clone", backing=("s", "golden"))
    take_snapshot(volume, "t")
    records = {record.name: record for record in volume.snapshot_luns("t")}
    assert records.keys() == {"golden", "clone"}
    assert records["golden"].uuid == golden.uuid
    assert records["golden"].used_bytes == 2 * MIB
    assert records["golden"].created_at >= EPOCH
    backing = records["clone"].backing
    assert backing is not None
    assert (backing.snapshot_name, backing.lun_name) == ("s", "golden")
