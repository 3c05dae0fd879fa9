"""The scrub where blocks are shared: they go to places that have been looked at, and births do not tell their age."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tests.support.volumes import MIB, Workshop, checkpoint, pattern, reclaim, take_snapshot
from tests.wafl.test_adopted_trees import adopt_all, shared_clone
from tests.wafl.test_scrub import counted_reads, data_vbn, spoil
from wafl import BLOCK_BYTES, Scrub, Volume, scrub
from wafl.bits import set_each

BLOCK = BLOCK_BYTES


@pytest.fixture
def volume(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> Volume:
    monkeypatch.setattr(scrub, "SLICE_BYTES", 1)
    volume = workshop.format(32 * MIB)
    volume.create_lun("a", 4 * MIB, reserved=False)
    volume.create_lun("b", 4 * MIB, reserved=False).write(0, pattern(1, 2 * MIB))
    take_snapshot(volume, "s")
    return volume


def run(
    volume: Volume, when: Callable[[Scrub], bool] = lambda done: True, act: Callable[[], None] = lambda: None
) -> Scrub:
    """`act` between two slices, once, as soon as `when` says so."""
    done, acted = Scrub(volume), False
    while (part := done.plan()) is not None:
        part.read()
        part.release()
        if not acted and when(done):
            act()
            acted = True
    assert acted
    return done


def number_of(volume: Volume, name: str) -> int:
    return volume.lun(name).inode.number


def test_a_block_that_is_adopted_from_a_snapshot_meanwhile_is_not_missed(volume: Volume, workshop: Workshop) -> None:
    bad = data_vbn(volume, "b", 300)
    volume.lun("b").write(0, pattern(2, 2 * MIB))  # only the snapshot has it now
    clone = volume.create_lun("clone", backing=("s", "b"))
    checkpoint(volume)
    spoil(volume, bad)

    def adopt() -> None:
        adopt_all(clone)
        checkpoint(volume)
        clone.detach()
        checkpoint(volume)
        volume.delete_snapshot("s")
        reclaim(volume)

    done = run(volume, lambda done: done._view > scrub.ACTIVE_VIEW, adopt)
    assert {(found.vbn, found.lun, found.offset) for found in done.bad} == {(bad, "clone", 300 * BLOCK)}
    workshop.abandon(volume)


def test_a_block_that_goes_to_a_lun_that_was_looked_at_is_not_missed(volume: Volume, workshop: Workshop) -> None:
    volume.delete_snapshot("s")
    reclaim(volume)
    bad = data_vbn(volume, "b", 300)
    spoil(volume, bad)
    assert number_of(volume, "a") < number_of(volume, "b")

    def move() -> None:
        assert volume.lun("a").share(0, volume.lun("b"), 0, 2 * MIB) == 2 * MIB
        volume.destroy_lun("b")
        reclaim(volume)

    done = run(volume, lambda done: done._view == scrub.ACTIVE_VIEW and done._file > number_of(volume, "a"), move)
    assert {(found.vbn, found.lun, found.offset) for found in done.bad} == {(bad, "a", 300 * BLOCK)}
    assert done.bad_count == 1
    workshop.abandon(volume)


def test_what_is_shared_again_and_again_ends_the_scrub_all_the_same(volume: Volume) -> None:
    turn = iter(range(1, 1 << 20))
    done = Scrub(volume)
    slices = 0
    while (part := done.plan()) is not None:
        part.read()
        part.release()
        slices += 1
        assert slices < 1000
        at = next(turn) % 512 * BLOCK
        volume.lun("a").share(at, volume.lun("b"), at, BLOCK)
        checkpoint(volume)
    assert not done.bad


def test_a_bad_block_is_told_once_however_often_it_is_met(volume: Volume, workshop: Workshop) -> None:
    bad = data_vbn(volume, "b", 300)
    spoil(volume, bad)

    def share() -> None:
        assert volume.lun("a").share(MIB, volume.lun("b"), MIB, MIB) == MIB
        checkpoint(volume)

    done = run(volume, lambda done: done._view > scrub.ACTIVE_VIEW, share)
    assert sorted((found.lun, found.offset) for found in done.bad) == [
        (".snapshot/s/b", 300 * BLOCK), ("a", 300 * BLOCK), ("b", 300 * BLOCK),
    ]  # fmt: skip
    assert done.bad_count == 3
    workshop.abandon(volume)


def test_a_snapshot_with_the_root_of_the_active_file_system_has_its_own_names(
    volume: Volume, workshop: Workshop
) -> None:
    spoil(volume, data_vbn(volume, "b", 300))
    assert {found.lun for found in run(volume).bad} == {"b", ".snapshot/s/b"}
    workshop.abandon(volume)


def test_a_place_that_was_bad_and_is_used_again_is_not_called_bad(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pointers to what is shared do not say how old it is."""
    monkeypatch.setattr(scrub, "SLICE_BYTES", 1)
    volume = workshop.format(8 * MIB)
    b, c, d = (volume.create_lun(name, 8 * MIB, reserved=False) for name in "bcd")
    b.write(0, pattern(1, 3 * MIB))
    for lun in (c, d):
        lun.write(0, pattern(2, BLOCK))
    checkpoint(volume)
    bad = data_vbn(volume, "b", 300)
    spoil(volume, bad)

    def use_again() -> None:
        b.unmap(0, 8 * MIB)
        reclaim(volume)
        for at in range(0, 8 * MIB, BLOCK):
            c.write(at, pattern(9, BLOCK))
            if data_vbn(volume, "c", at // BLOCK) == bad:
                assert d.share(at, c, at, BLOCK) == BLOCK
                break
        checkpoint(volume)

    done = run(volume, lambda done: bool(done.bad), use_again)
    assert {found.lun for found in done.bad} == {"b"}
    assert {data_vbn(volume, name, fbn) for name in "cd" for fbn in range(2048)} >= {bad}


def test_a_pointer_block_in_a_place_that_was_seen_is_read_if_it_may_be_young(
    volume: Volume, workshop: Workshop
) -> None:
    golden = volume.create_lun("golden", 4 * MIB, reserved=False)
    golden.write(0, pattern(5, 2 * MIB))
    take_snapshot(volume, "t")
    bad = data_vbn(volume, "golden", 300)
    clone = shared_clone(volume, "clone", "t")
    root = int(clone.inode.vbns[0])
    assert not clone.inode.births[0]
    volume.destroy_lun("golden")
    volume.delete_snapshot("t")
    reclaim(volume)
    spoil(volume, bad)
    done = Scrub(volume)
    set_each(done._seen, np.array([root], np.uint64))  # something that lay there when the scrub began was good
    while (part := done.plan()) is not None:
        part.read()
        part.release()
    assert {(found.lun, found.offset) for found in done.bad} == {("clone", 300 * BLOCK)}
    workshop.abandon(volume)


def test_what_clones_have_adopted_is_read_once(workshop: Workshop) -> None:
    volume = workshop.format(32 * MIB)
    golden = volume.create_lun("golden", 64 * MIB, reserved=False)
    for at in range(0, 64 * MIB, 2 * MIB):
        golden.write(at, pattern(at, 40 * BLOCK))
    take_snapshot(volume, "s")
    for number in range(20):
        clone = shared_clone(volume, f"clone{number}")
        clone.write(2 * number * MIB, pattern(number, BLOCK))
    volume.delete_snapshot("s")
    reclaim(volume)
    reads = counted_reads(volume)
    done = run(volume)
    assert not done.bad
    assert {reads[data_vbn(volume, "golden", fbn)] for fbn in range(5, 40)} == {1}
    assert max(reads.values()) < 60
