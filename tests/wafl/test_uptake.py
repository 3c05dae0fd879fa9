"""Subtrees that only a snapshot names: taken up whole, with all that only it names below them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.support.crash_history import History
from tests.support.crash_share_stories import clones_of_what_only_snapshots_have
from tests.support.sleepy_device import SleepyDevice
from tests.support.volumes import MIB, Workshop, checkpoint, pattern, reclaim, take_snapshot
from tests.wafl.test_adopted_trees import BLOCK, GIB, PLACES, adopt_all, counted_reads, shared_clone, tebibyte, whole
from tests.wafl.test_lun import read
from tests.wafl.test_sharing_safety import fault, without_audit
from wafl import CorruptVolume, Lun, Volume, adopt, uptake
from wafl.format import POINTERS
from wafl.tree import level_one

TIB = 1 << 40


@pytest.fixture
def volume(workshop: Workshop) -> Volume:
    """A snapshot of a LUN of height 3 that has gone."""
    volume = workshop.format(32 * MIB)
    golden = volume.create_lun("golden", GIB)
    for at in PLACES:
        golden.write(at, pattern(at, MIB))
    take_snapshot(volume, "s")
    volume.destroy_lun("golden")
    reclaim(volume)
    return volume


def new_clone(volume: Volume, name: str = "clone") -> Lun:
    return volume.create_lun(name, backing=("s", "golden"))


def test_a_tree_that_only_the_snapshot_has_is_taken_up_by_its_root(volume: Volume) -> None:
    clone = new_clone(volume)
    checkpoint(volume)
    before = volume.core.tree_blocks
    assert adopt_all(clone) == 1
    assert volume.core.tree_blocks - before == 1 + 3 + 4
    assert volume.core.dirty_buffers == 0  # no pointer block of its own
    assert volume.files.references.total == 0
    assert clone.missing_blocks() == 0
    checkpoint(volume)
    clone.detach()
    checkpoint(volume)
    volume.delete_snapshot("s")
    reclaim(volume)
    assert whole(clone)
    clone.write(300 * MIB, pattern(3, BLOCK))
    checkpoint(volume)
    assert read(clone, 300 * MIB + BLOCK, BLOCK) == pattern(300 * MIB, MIB)[BLOCK : 2 * BLOCK]


@pytest.mark.parametrize("most", [1, 2, 3, 5, 8, 64])
def test_a_call_takes_up_no_more_pointer_blocks_than_it_may(
    volume: Volume, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    clone = new_clone(volume)
    read_blocks = 0
    read_whole = uptake._read

    def counted(core: object, blocks: uptake.Pointers) -> uptake.Pointers:
        nonlocal read_blocks
        read_blocks += len(blocks.vbns)
        return read_whole(core, blocks)  # type: ignore[arg-type]

    monkeypatch.setattr(uptake, "_read", counted)
    index, calls = clone.next_missing(0), 0
    while index is not None:
        read_blocks = 0
        assert 1 <= clone.adopt(index, most) <= most
        assert read_blocks <= most * (2 * clone.inode.height)
        index, calls = clone.next_missing(index + 1), calls + 1
    assert calls <= 4
    assert whole(clone)
    checkpoint(volume)
    clone.detach()
    checkpoint(volume)
    volume.delete_snapshot("s")
    reclaim(volume)
    assert whole(clone)


def test_what_the_parent_still_has_below_gets_one_pointer_more(workshop: Workshop) -> None:
    volume = workshop.format(32 * MIB)
    golden = volume.create_lun("golden", GIB)
    for at in PLACES:
        golden.write(at, pattern(at, MIB))
    take_snapshot(volume, "s")
    golden.write(3 * MIB + 7 * BLOCK, pattern(9, BLOCK))  # and its own root, level-2 and level-1 block with it
    golden.unmap(700 * MIB, GIB - 700 * MIB)
    reclaim(volume)
    before = volume.core.allocator.active_count
    clone = new_clone(volume)
    assert adopt_all(clone) == 1
    # The level-2 block at 256 MiB, the level-1 block at 0, and 255 blocks of that at 3 MiB.
    assert volume.files.references.total == 1 + 1 + POINTERS - 1
    # Root, two of level 2, two of level 1, the overwritten block, and what was unmapped.
    assert volume.core.allocator.active_count - before == 1 + 2 + 2 + 1 + POINTERS
    assert whole(clone)
    assert read(golden, 3 * MIB + 7 * BLOCK, BLOCK) == pattern(9, BLOCK)
    checkpoint(volume)
    clone.detach()
    checkpoint(volume)
    volume.delete_snapshot("s")
    volume.destroy_lun("golden")
    reclaim(volume)
    assert whole(clone)


@pytest.mark.parametrize("order", [("one", "two", "s"), ("two", "s", "one"), ("s", "one", "two")])
def test_several_clones_of_a_lun_that_has_gone_give_all_of_it_back(volume: Volume, order: tuple[str, ...]) -> None:
    before = volume.space().active
    for name in ("one", "two"):
        shared_clone(volume, name)
    volume.lun("one").write(3 * MIB, pattern(8, 9 * BLOCK))
    volume.lun("two").unmap(290 * MIB, 20 * MIB)
    for name in order:
        if name == "s":
            volume.delete_snapshot(name)
        else:
            volume.destroy_lun(name)
        reclaim(volume)
        for lun in volume.luns():
            assert read(lun, 700 * MIB, MIB) == pattern(700 * MIB, MIB)
    assert volume.files.references.total == 0
    assert volume.space().active - before <= 4 * BLOCK  # the file of counts


def test_guests_blocks_and_zeros_stay(volume: Volume) -> None:
    clone = new_clone(volume)
    clone.write(3 * MIB + 5 * BLOCK, pattern(6, BLOCK))
    clone.unmap(300 * MIB, MIB)
    adopt_all(clone)
    checkpoint(volume)
    clone.detach()
    wanted = bytearray(pattern(3 * MIB, MIB))
    wanted[5 * BLOCK : 6 * BLOCK] = pattern(6, BLOCK)
    assert read(clone, 3 * MIB, MIB) == bytes(wanted)
    assert read(clone, 300 * MIB, MIB) == bytes(MIB)
    assert read(clone, 700 * MIB, MIB) == pattern(700 * MIB, MIB)
    assert read(clone, 0, MIB) == pattern(0, MIB)


@pytest.mark.parametrize("size", [MIB, 20 * MIB, 3 * GIB])
def test_trees_of_different_heights(workshop: Workshop, size: int) -> None:
    volume = workshop.format(32 * MIB)
    golden = volume.create_lun("golden", GIB)
    golden.write(0, pattern(1, MIB))
    volume.resize_lun("golden", min(size, GIB))
    take_snapshot(volume, "s")
    volume.destroy_lun("golden")
    reclaim(volume)
    clone = new_clone(volume)
    if size > GIB:
        volume.resize_lun("clone", 300 * GIB)
    assert adopt_all(clone) == 1
    checkpoint(volume)
    clone.detach()
    assert read(clone, 0, MIB) == pattern(1, MIB)


def test_a_pointer_block_that_cannot_be_read_costs_its_own_range(workshop: Workshop, volume: Volume) -> None:
    """The others are adopted, and the backing stays."""
    clone = new_clone(volume)
    leaf = level_one(volume.core, clone.below().inode, 3)
    volume.close()
    workshop.abandon(volume)
    volume.device.image[leaf.vbn * BLOCK + 9] ^= 1  # type: ignore[union-attr, attr-defined]
    volume = workshop.mount(volume.device)  # type: ignore[arg-type]
    clone = volume.lun("clone")
    index, failed = clone.next_missing(0), []
    while index is not None:
        try:
            clone.adopt(index)
        except CorruptVolume as error:
            failed.append((index, error.vbn))
        index = clone.next_missing(index + 1)
    assert failed == [(3, leaf.vbn)]
    assert read(clone, 0, MIB) == pattern(0, MIB)
    assert read(clone, 700 * MIB, MIB) == pattern(700 * MIB, MIB)
    with pytest.raises(CorruptVolume):
        clone.read_into(3 * MIB, memoryview(bytearray(BLOCK)))
    assert clone.backing is not None
    workshop.abandon(volume)


def test_what_has_too_many_pointers_below_is_left_to_the_caller(
    volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A block that is in the LUN five times, where none may have more than six pointers."""
    monkeypatch.setattr("wafl.references.MAX_COUNT", 6)
    golden = volume.create_lun("other", MIB)
    golden.write(0, pattern(1, BLOCK))
    for place in range(1, 5):
        golden.share(place * BLOCK, golden, 0, BLOCK)
    take_snapshot(volume, "t")
    clone, second = (volume.create_lun(name, backing=("t", "other")) for name in ("clone", "second"))
    golden.write(9 * BLOCK, pattern(2, BLOCK))  # a root of its own
    checkpoint(volume)
    assert clone.adopt(0) == 0
    volume.destroy_lun("other")
    reclaim(volume)
    assert second.adopt(0) == 1
    checkpoint(volume)
    second.detach()
    assert read(second, 4 * BLOCK, BLOCK) == pattern(1, BLOCK)


def test_a_tebibyte_that_only_the_snapshot_has_is_taken_up_in_a_few_looks(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = workshop.format(64 * MIB)
    tebibyte(volume)
    take_snapshot(volume, "s")
    volume.destroy_lun("tebibyte")
    reclaim(volume)
    volume = workshop.remount(volume)
    assert volume.files.references.total == 0
    clone = volume.create_lun("clone", backing=("s", "tebibyte"))
    reads = counted_reads(volume, monkeypatch)
    assert adopt_all(clone) <= 4
    assert len(reads) < 100
    monkeypatch.undo()
    # Those of level 1 to 3, by their parents.
    assert volume.files.references.total == 2 * (POINTERS - 1) + 15
    checkpoint(volume)
    clone.detach()
    checkpoint(volume)
    volume.delete_snapshot("s")
    reclaim(volume)
    assert read(clone, 777 * GIB + 5 * BLOCK, BLOCK) == pattern(1, MIB)[5 * BLOCK : 6 * BLOCK]
    clone.write(TIB - BLOCK, pattern(3, BLOCK))
    assert read(clone, TIB - 2 * BLOCK, BLOCK) == pattern(1, MIB)[-2 * BLOCK : -BLOCK]


def test_what_was_taken_up_in_many_small_pieces_is_passed_over_at_once(
    volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their parents are the LUN's own: a look at each would take as long as for its blocks."""
    golden = volume.create_lun("wide", 200 * MIB, reserved=False)
    for at in range(0, 200 * MIB, MIB):
        golden.write(at, pattern(at, BLOCK))
    take_snapshot(volume, "t")
    volume.destroy_lun("wide")
    reclaim(volume)
    clone = volume.create_lun("clone", backing=("t", "wide"))
    assert adopt_all(clone) == 200 // adopt.UPTAKE_BLOCKS + 1
    looks = 0
    plain_span = Lun._plain_span

    def counted(self: Lun, index: int) -> int:
        nonlocal looks
        looks += 1
        return plain_span(self, index)

    monkeypatch.setattr(Lun, "_plain_span", counted)
    assert clone.next_missing(0) is None
    assert looks == 1


def in_many_rows(volume: Volume, leaves: int) -> None:
    """LUN "golden": its blocks lie in four rows of counts for each MiB, and all but one for each are the snapshot's,
    too, below pointer blocks that only that has."""
    golden = volume.create_lun("golden", leaves * MIB, reserved=False)
    filler = volume.create_lun("filler", 8 * MIB, reserved=False)
    for at in range(0, leaves * MIB, MIB // 4):
        golden.write(at, pattern(at, MIB // 4))
        filler.write(0, bytes(8 * MIB))
    take_snapshot(volume, "s")
    for at in range(0, leaves * MIB, MIB):
        golden.write(at, pattern(7, BLOCK))


def test_a_call_changes_no_more_rows_of_counts_than_it_may(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where hosts wrote here and there a level-1 block names blocks all over the volume."""
    monkeypatch.setattr(adopt, "ROWS", 1)
    volume = workshop.format(160 * MIB)
    in_many_rows(volume, 4)
    clone = new_clone(volume)
    checkpoint(volume)
    index, costs = clone.next_missing(0), []
    while index is not None:
        cost = clone.adopt(index, 8)
        assert len(volume.files.references.dirty) <= cost <= 8
        costs.append(cost)
        checkpoint(volume)
        index = clone.next_missing(index + 1)
    assert len(costs) > 1
    assert sum(costs) >= 4 * 4
    assert read(clone, 3 * MIB, BLOCK) == pattern(3 * MIB, MIB)[:BLOCK]


def test_rows_that_have_changed_are_not_searched_for_each_that_is_read(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call that changes thousands took seconds."""
    monkeypatch.setattr("wafl.references.ROWS_KEPT", 2)
    volume = workshop.format(160 * MIB)
    in_many_rows(volume, 4)
    clone = new_clone(volume)
    looks: list[object] = []

    class Rows(dict[int, object]):
        def pop(self, row: int, *default: object) -> object:
            looks.append(row)
            return super().pop(row, *default)

    volume.files.references.make()
    volume.files.references._rows = Rows()  # type: ignore[assignment]
    adopt_all(clone)
    rows = len(volume.files.references.dirty)
    assert rows >= 16
    assert len(looks) <= 4 * rows


def test_pointers_are_read_ahead_of_those_that_are_taken_up(workshop: Workshop) -> None:
    volume = workshop.format(64 * MIB)
    golden = volume.create_lun("golden", 512 * MIB, reserved=False)
    for at in range(0, 512 * MIB, MIB):
        golden.write(at, pattern(at, BLOCK))
    take_snapshot(volume, "s")
    volume.create_lun("clone", backing=("s", "golden"))
    volume.destroy_lun("golden")
    reclaim(volume)
    volume = workshop.mount(SleepyDevice(bytearray(volume.device.image)))  # type: ignore[attr-defined]
    device, clone = volume.device, volume.lun("clone")
    assert isinstance(device, SleepyDevice)
    clone.below()
    device.forget()
    waits = []
    index = clone.next_missing(0)
    while index is not None:
        device.here |= device.coming
        before = device.waits["loop"]
        assert clone.adopt(index) == adopt.UPTAKE_BLOCKS
        index = clone.next_missing(index + 1)
        waits.append(device.waits["loop"] - before)
    assert len(waits) == 512 // adopt.UPTAKE_BLOCKS
    # But for the first: its level-2 block has to be read before it tells anything.
    assert waits[1:] == [0] * (len(waits) - 1)


# --- the harness: each sabotage must be caught (test_crash tells the story as it is) ---------------------------------


def test_the_harness_catches_a_subtree_whose_blocks_do_not_get_their_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    take_up = adopt.take_up

    def careless(*what: object) -> uptake.Uptake | None:
        found = take_up(*what)  # type: ignore[arg-type]
        return found and replace(found, pointers=(), tree_blocks=0, data_blocks=0)

    monkeypatch.setattr(adopt, "take_up", careless)
    history = History()
    without_audit(monkeypatch, history.volume)
    assert fault(history, clones_of_what_only_snapshots_have)


def test_the_harness_catches_a_subtree_that_is_taken_up_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the active file system named nothing of it yet."""
    monkeypatch.setattr(uptake, "_unnamed", lambda core, pointers: pointers)
    history = History()
    without_audit(monkeypatch, history.volume)
    assert fault(history, clones_of_what_only_snapshots_have)
