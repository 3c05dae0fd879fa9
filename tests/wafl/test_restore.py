"""Restoring from a snapshot: one LUN, and the whole volume."""

from __future__ import annotations

import uuid

import pytest

from tests.support.clones import read_all
from tests.support.crash_device import CrashDevice, Leftover, MemoryDevice
from tests.support.volumes import EPOCH, MIB, Workshop, checkpoint, pattern, reclaim, take_snapshot
from wafl import (
    BLOCK_BYTES,
    ChainTooDeep,
    InvalidSize,
    Lun,
    NameTaken,
    NoSpace,
    NoSuchLun,
    NoSuchSnapshot,
    ReadOnlyVolume,
    RestorePlan,
    SnapshotBusy,
    Volume,
    restore,
)
from wafl.filesystem import FileSystem
from wafl.format import MAX_CHAIN_DEPTH, VTOC_ENTRY

IDENTITY = ("name", "uuid", "serial", "naa", "comment", "ostype", "slot", "created_us", "online", "reserved")


def identity(lun: Lun) -> dict[str, object]:
    return {field: getattr(lun, field) for field in IDENTITY}


def golden(workshop: Workshop, size_bytes: int = 16 * MIB) -> tuple[Volume, Lun, bytes]:
    """A LUN with a snapshot `base`, and its contents then; changed since."""
    volume = workshop.format(size_bytes)
    lun = volume.create_lun("a", 3 * MIB, comment="the first")
    lun.write(0, pattern(1, 40 * BLOCK_BYTES))
    lun.write(2 * MIB + 512, pattern(2, 5000))
    take_snapshot(volume, "base")
    before = read_all(lun)
    lun.write(0, pattern(3, 20 * BLOCK_BYTES))
    lun.unmap(30 * BLOCK_BYTES, MIB)
    lun.write(MIB, pattern(4, MIB // 2))
    return volume, lun, before


def fill(lun: Lun) -> int:
    filled, index = 0, lun.next_missing(0)
    while index is not None:
        while (plan := lun.plan_fill(index)) is not None:
            filled += lun.install_fill(plan, plan.read())
            plan.release()
        index = lun.next_missing(index + 1)
    return filled


def test_a_restored_lun_is_the_same_lun_with_the_contents_of_the_snapshot(workshop: Workshop) -> None:
    volume, lun, before = golden(workshop)
    lun.set_comment("noted since")
    checkpoint(volume)
    known = identity(lun)
    old = lun.inode
    assert volume.restore("base", "a") == RestorePlan(["a"], [], [])
    assert volume.lun("a") is lun
    assert identity(lun) == known
    assert read_all(lun) == before
    assert (lun.inode.number, lun.inode.generation) != (old.number, old.generation)
    assert lun.backing is not None
    assert (lun.backing.snapshot_name, lun.backing.lun_name) == ("base", "a")
    assert lun.clone_requested
    assert volume.snapshot_usage("base") == ["a"]


def test_a_restore_is_durable_when_it_returns(workshop: Workshop) -> None:
    volume, lun, before = golden(workshop)
    known = identity(lun)
    volume.restore("base", "a")
    volume = workshop.crash(volume)
    assert identity(volume.lun("a")) == known
    assert read_all(volume.lun("a")) == before
    assert volume.lun("a").clone_requested


def test_what_the_lun_had_comes_back_as_space(workshop: Workshop) -> None:
    volume, lun, _ = golden(workshop)
    lun.unmap(0, 8 * BLOCK_BYTES)
    reclaim(volume)
    volume.restore("base", "a")
    reclaim(volume)
    assert lun.used_bytes == 0
    assert volume.files.zombies == {}
    # The snapshot holds the rest; what came since is gone.
    assert volume.space().active < volume.snapshot_space("base").referenced


def test_a_restored_lun_can_be_cloned_and_lets_the_snapshot_go(workshop: Workshop) -> None:
    volume, lun, before = golden(workshop)
    volume.restore("base", "a")
    lun.write(BLOCK_BYTES, pattern(9, 512))
    expected = before[:BLOCK_BYTES] + pattern(9, 512) + before[BLOCK_BYTES + 512 :]
    with pytest.raises(SnapshotBusy):
        volume.delete_snapshot("base")
    assert fill(lun) == 41
    checkpoint(volume)
    lun.detach()
    checkpoint(volume)
    volume.delete_snapshot("base")
    reclaim(volume)
    assert read_all(lun) == expected


def test_a_restore_to_another_size(workshop: Workshop) -> None:
    volume, lun, before = golden(workshop)
    volume.resize_lun("a", 5 * MIB)
    volume.restore("base", "a")
    assert lun.size_bytes == len(before)
    assert read_all(lun) == before
    volume.resize_lun("a", MIB + 512)
    volume.restore("base", "a")
    assert read_all(lun) == before


def test_a_renamed_lun_is_found_by_its_uuid(workshop: Workshop) -> None:
    volume, lun, before = golden(workshop)
    volume.rename_lun("a", "b")
    volume.restore("base", "b")
    assert volume.lun("b") is lun
    assert read_all(lun) == before


def test_another_lun_of_the_same_name_is_not_restored(workshop: Workshop) -> None:
    volume, _, _ = golden(workshop)
    volume.destroy_lun("a")
    volume.create_lun("a", 3 * MIB)
    with pytest.raises(NoSuchLun, match="is another one"):
        volume.restore("base", "a")


def test_a_backed_lun_is_restored_to_a_snapshot_of_itself_or_of_its_past(workshop: Workshop) -> None:
    volume, lun, before = golden(workshop)
    take_snapshot(volume, "later")
    at_later = read_all(lun)
    volume.restore("base", "a")
    lun.write(7 * BLOCK_BYTES, pattern(5, BLOCK_BYTES))
    volume.restore("later", "a")
    assert read_all(lun) == at_later
    assert volume.snapshot_usage("base") == []
    assert volume.snapshot_usage("later") == ["a"]
    volume.restore("base", "a")
    take_snapshot(volume, "backed")
    lun.write(0, pattern(6, BLOCK_BYTES))
    volume.restore("backed", "a")
    assert read_all(lun) == before
    assert volume.snapshot_usage("base") == [".snapshot/backed/a"]


def test_a_fill_that_was_planned_before_a_restore_fills_nothing_after_it(workshop: Workshop) -> None:
    volume, lun, before = golden(workshop)
    take_snapshot(volume, "later")
    at_later = read_all(lun)
    volume.restore("later", "a")
    for target, expected in (("base", before), ("base", before), ("later", at_later)):
        plan = lun.plan_fill(0)
        assert plan is not None
        data = plan.read()
        volume.restore(target, "a")
        assert lun.install_fill(plan, data) == 0
        plan.release()
        assert read_all(lun) == expected


def test_a_read_in_a_thread_keeps_the_old_blocks_from_being_reused(workshop: Workshop) -> None:
    volume, lun, _ = golden(workshop)
    checkpoint(volume)
    take_snapshot(volume, "later")
    volume.restore("later", "a")
    plan = lun.plan_fill(1)
    assert plan is not None
    expected = bytes(plan.read())
    volume.restore("base", "a")
    volume.delete_snapshot("later")
    reclaim(volume)
    other = volume.create_lun("other", 8 * MIB)
    other.write(0, pattern(8, 6 * MIB))
    checkpoint(volume)
    assert plan.read() == expected
    plan.release()


def test_what_cannot_be_restored_is_refused_and_changes_nothing(workshop: Workshop) -> None:
    volume, lun, _ = golden(workshop)
    checkpoint(volume)
    generation, contents = volume.generation, read_all(lun)
    young = volume.create_lun("young", MIB)
    checkpoint(volume)
    with pytest.raises(NoSuchSnapshot):
        volume.restore("none", "a")
    with pytest.raises(NoSuchLun, match="there is no LUN nobody"):
        volume.restore("base", "nobody")
    with pytest.raises(NoSuchLun, match="LUN young is not in snapshot base"):
        volume.restore("base", "young")
    assert volume.generation == generation + 1
    assert read_all(lun) == contents
    assert not young.destroyed
    assert volume.snapshot_usage("base") == []


def test_another_logical_block_size_is_refused(workshop: Workshop) -> None:
    volume, lun, _ = golden(workshop)
    volume.destroy_lun("a")
    volume.create_lun("a", 3 * MIB, block_bytes=4096, uuid=uuid.UUID(lun.uuid))
    with pytest.raises(InvalidSize, match="logical blocks of 4096 bytes and had 512"):
        volume.restore("base", "a")


def test_a_restore_has_the_depth_limit_of_every_backing(workshop: Workshop) -> None:
    volume = workshop.format()
    lun = volume.create_lun("a", MIB)
    lun.write(0, pattern(1, BLOCK_BYTES))
    take_snapshot(volume, "s0")
    for depth in range(1, MAX_CHAIN_DEPTH + 1):
        volume.restore(f"s{depth - 1}", "a")
        take_snapshot(volume, f"s{depth}")
    for wanted in ("a", None):
        with pytest.raises(ChainTooDeep, match="more than 16 snapshots"):
            volume.restore(f"s{MAX_CHAIN_DEPTH}", wanted)
    volume.restore("s3", "a")
    assert read_all(lun)[:BLOCK_BYTES] == pattern(1, BLOCK_BYTES)


def test_a_read_only_volume_is_not_restored(workshop: Workshop) -> None:
    volume, _, _ = golden(workshop)
    volume.core.read_only = True
    with pytest.raises(ReadOnlyVolume):
        volume.restore("base", "a")
    volume.core.read_only = False


def test_a_snapshot_that_was_asked_for_before_a_restore_is_of_before(workshop: Workshop) -> None:
    volume, lun, before = golden(workshop)
    changed = read_all(lun)
    volume.request_snapshot("asked")
    volume.restore("base", "a")
    assert read_all(lun) == before
    found = bytearray(lun.size_bytes)
    volume.snapshot_lun("asked", "a").read_into(0, memoryview(found))
    assert found == changed


def flood(lun: Lun) -> None:
    for at in range(0, lun.size_bytes, MIB // 4):
        try:
            lun.write(at, pattern(at + 1, MIB // 4))
        except NoSpace:
            return
    raise AssertionError("the volume is not full")


def test_a_full_volume_can_go_back_and_has_room_then(workshop: Workshop) -> None:
    volume, lun, before = golden(workshop)
    other = volume.create_lun("other", 32 * MIB)
    flood(other)
    volume.restore("base", "a")
    assert read_all(lun) == before
    volume.restore("base")
    assert read_all(lun) == before
    volume.create_lun("next", 8 * MIB).write(0, pattern(1, 4 * MIB))


def test_a_restore_without_room_is_refused_and_changes_nothing(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume, lun, _ = golden(workshop)
    contents = read_all(lun)
    known = identity(lun)
    checkpoint(volume)
    monkeypatch.setattr(volume.core.allocator, "floor_ops", volume.core.allocator.blocks)
    monkeypatch.setattr(volume.core, "relieve", lambda: False)
    for name in ("a", None):
        with pytest.raises(NoSpace):
            volume.restore("base", name)
    monkeypatch.undo()
    assert read_all(lun) == contents
    assert identity(lun) == known
    assert volume.snapshot_usage("base") == []


# -- the whole volume


def test_a_whole_volume_goes_back(workshop: Workshop) -> None:
    volume = workshop.format()
    kept, lost = volume.create_lun("kept", MIB), volume.create_lun("dir/lost", 2 * MIB, comment="dear")
    kept.write(0, pattern(1, 8192))
    lost.write(MIB, pattern(2, 8192))
    lost.set_serial("my-serial")
    checkpoint(volume)
    take_snapshot(volume, "base")
    known = [identity(lun) | {"size": lun.size_bytes, "data": read_all(lun)} for lun in volume.luns()]
    kept.write(4096, pattern(3, 4096))
    volume.resize_lun("kept", 2 * MIB)
    volume.destroy_lun("dir/lost")
    volume.rename_lun("kept", "dir/lost")
    volume.create_lun("kept", MIB).write(0, pattern(4, 4096))
    take_snapshot(volume, "later")
    plan = RestorePlan(restored=["dir/lost"], returned=["dir/lost"], destroyed=["kept"])
    assert volume.plan_restore("base") == plan
    assert volume.restore("base") == plan
    found = [identity(lun) | {"size": lun.size_bytes, "data": read_all(lun)} for lun in volume.luns()]
    slots = {lun["slot"] for lun in found}
    assert len(slots) == 2
    for lun in (*known, *found):
        del lun["slot"]
    assert found == known
    assert [snapshot.name for snapshot in volume.snapshots()] == ["base", "later"]
    assert volume.lun("kept") is kept
    assert kept.clone_requested
    volume = workshop.crash(volume)
    assert [identity(lun) | {"size": lun.size_bytes, "data": read_all(lun), "slot": 0} for lun in volume.luns()] == [
        lun | {"slot": 0} for lun in known
    ]


def test_a_volume_goes_forward_again_to_a_later_snapshot(workshop: Workshop) -> None:
    volume, lun, before = golden(workshop)
    young = volume.create_lun("young", MIB)
    young.write(0, pattern(5, 4096))
    take_snapshot(volume, "later")
    then = {each.uuid: (each.name, read_all(each)) for each in volume.luns()}
    volume.restore("base")
    assert [each.name for each in volume.luns()] == ["a"]
    assert young.destroyed
    volume.restore("later")
    assert {each.uuid: (each.name, read_all(each)) for each in volume.luns()} == then
    volume.restore("base")
    assert read_all(lun) == before


def test_a_serial_number_that_was_given_away_is_named(workshop: Workshop) -> None:
    volume, lun, _ = golden(workshop)
    gone = volume.create_lun("gone", MIB)
    take_snapshot(volume, "later")
    volume.destroy_lun("gone")
    lun.set_serial(gone.serial)
    with pytest.raises(NameTaken, match="LUN a now has the serial number of gone"):
        volume.restore("later")


def test_a_volume_without_luns_goes_back_to_none(workshop: Workshop) -> None:
    volume = workshop.format()
    take_snapshot(volume, "empty")
    volume.create_lun("a", MIB).write(0, pattern(1, 4096))
    assert volume.restore("empty") == RestorePlan([], [], ["a"])
    assert volume.luns() == []
    reclaim(volume)
    assert volume.files.zombies == {}


def test_more_luns_come_back_than_the_tables_have_room_for(workshop: Workshop) -> None:
    volume = workshop.format()
    for number in range(200):
        volume.create_lun(f"l{number}", MIB).write(0, pattern(number, 4096))
        if number % 20 == 19:
            checkpoint(volume)
    take_snapshot(volume, "many")
    for number in range(200):
        volume.destroy_lun(f"l{number}")
    reclaim(volume)
    assert len(volume.restore("many").returned) == 200
    assert {read_all(lun)[:4096] for lun in volume.luns()} == {pattern(number, 4096) for number in range(200)}


# -- with a log


def crashes_of_a_restore_after_logged_work() -> list[str]:
    """What a crash in a restore leaves that is neither all of before, with what was logged, nor all of after."""
    device = CrashDevice(16 * MIB)
    Volume.format(device, name="crash", now=EPOCH)
    volume = Volume.mount(device)
    for name in ("a", "gone"):
        volume.create_lun(name, MIB).write(0, pattern(1, 8 * BLOCK_BYTES))
    take_snapshot(volume, "base")
    volume.destroy_lun("gone")
    volume.create_lun("young", MIB).write(0, pattern(2, 8 * BLOCK_BYTES))
    volume.lun("a").write(0, pattern(3, 8 * BLOCK_BYTES))
    device.sync()
    before, begun = contents_of(volume), device.journal.position
    volume.restore("base")
    after = contents_of(volume)
    assert before != after
    points = range(begun, device.journal.position + 1)
    found = []
    for state in device.journal.states(points, tuple(Leftover), seed=1):
        contents = contents_of(Volume.mount(MemoryDevice(state.image)))
        if contents not in (before, after):
            found.append(f"{state}: {sorted(contents)}")
    return found


def contents_of(volume: Volume) -> dict[str, bytes]:
    return {lun.name: read_all(lun) for lun in volume.luns()}


def test_a_crash_in_a_restore_leaves_all_of_before_with_what_was_logged_or_all_of_after() -> None:
    assert crashes_of_a_restore_after_logged_work() == []


def test_a_restore_that_logs_its_parts_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    make = restore._make

    def make_and_log(files: FileSystem, moves: restore._Moves, *, rename: bool) -> None:
        make(files, moves, rename=rename)
        assert files.core.log is not None
        for lun in moves.destroyed:
            files.core.log.vtoc(lun.slot, bytes(VTOC_ENTRY.size))

    monkeypatch.setattr(restore, "_make", make_and_log)
    assert crashes_of_a_restore_after_logged_work()
