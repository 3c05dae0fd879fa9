"""Share mode: a clone that adopts its snapshot's blocks by pointer, under guests, damage and want of room."""

from __future__ import annotations

import asyncio

import pytest

from cloner import CloneOptions, JobState
from cloner.errors import BadSource
from cloner.steps import Read
from tests.cloner.test_manager import daemon
from tests.cloner.test_policies import own_blocks, spoil
from tests.cloner.test_races import before_every_step
from tests.support.clones import GOLDEN_BLOCKS, Family, add_clone, drive, make_family, read_all, steps_of
from tests.support.race_guests import ACTS
from tests.support.volumes import MIB, Workshop, checkpoint, pattern
from wafl import BLOCK_BYTES, POINTERS, CorruptVolume
from wafl.tree import level_one

SHARE = CloneOptions(share=True)


def shared(family: Family) -> None:
    steps, _ = steps_of(family.volume, family.clone, share=True)
    drive(family.volume, steps)


def test_a_shared_clone_reads_nothing_takes_no_data_blocks_and_lets_its_snapshot_go(workshop: Workshop) -> None:
    family = make_family(workshop)
    before = family.volume.space().active
    steps, progress = steps_of(family.volume, family.clone, share=True)
    assert Read not in drive(family.volume, steps)
    assert progress.percent == 100.0
    assert family.clone.backing is None
    assert family.volume.space().active - before <= 12 * BLOCK_BYTES
    family.volume.delete_snapshot("base")
    family.volume.lun("golden").write(0, pattern(9, 3 * MIB))
    family.volume.reclaim_now()
    assert family.reads_right()
    family.volume.destroy_lun("golden")
    family.volume.reclaim_now()
    assert family.reads_right()


def test_blocks_that_only_the_snapshot_holds_are_adopted_too(workshop: Workshop) -> None:
    family = make_family(workshop)
    family.volume.destroy_lun("golden")
    family.volume.reclaim_now()
    shared(family)
    family.volume.delete_snapshot("base")
    family.volume.reclaim_now()
    assert family.reads_right()
    family.write(0, pattern(77, MIB))
    assert family.reads_right()


@pytest.mark.parametrize("parent_gone", [False, True])
@pytest.mark.parametrize("name", ACTS)
def test_whatever_happens_before_any_step_the_guests_data_wins(
    name: str, monkeypatch: pytest.MonkeyPatch, *, parent_gone: bool
) -> None:
    monkeypatch.setattr("cloner.sharing.UPTAKE_BESIDE_GUESTS", 1)
    before_every_step(
        name, lambda scene: steps_of(scene.volume, scene.clone, share=True)[0], parent_gone=parent_gone
    )


def test_many_clones_of_one_snapshot_share_its_blocks(workshop: Workshop) -> None:
    family = make_family(workshop)
    others = [add_clone(family.volume, f"clone{number}") for number in range(9)]
    before = family.volume.space().active
    for lun in (family.clone, *others):
        drive(family.volume, steps_of(family.volume, lun, share=True)[0])
    assert family.volume.space().active - before < 60 * BLOCK_BYTES
    others[3].write(0, pattern(8, MIB))
    family.volume.destroy_lun("golden")
    family.volume.destroy_lun("clone")
    family.volume.delete_snapshot("base")
    family.volume.reclaim_now()
    assert read_all(others[0]) == family.golden.read(0, family.golden.size_bytes)
    assert read_all(others[3])[:MIB] == pattern(8, MIB)


def test_what_has_too_many_pointers_already_is_copied(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    family = make_family(workshop)
    monkeypatch.setattr("wafl.references.MAX_COUNT", 1)
    steps, progress = steps_of(family.volume, family.clone, share=True)
    drive(family.volume, steps)
    assert progress.copied_blocks == len(GOLDEN_BLOCKS)
    assert family.reads_right()


def test_ranges_behind_one_that_must_be_copied_are_shared(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also by a job that copies several ranges at once."""
    monkeypatch.setattr("cloner.sharing.UPTAKE_A_TURN", 1)
    family = make_family(workshop)
    adopt = family.clone.adopt
    family.clone.adopt = lambda index, most: index > 0 and adopt(index, most)  # type: ignore[method-assign]
    steps, progress = steps_of(family.volume, family.clone, 3 * POINTERS, share=True)
    drive(family.volume, steps)
    first = [block for block in GOLDEN_BLOCKS if block < POINTERS]
    assert (progress.copied_blocks, progress.shared_blocks) == (len(first), len(GOLDEN_BLOCKS) - len(first))
    assert family.reads_right()


def test_a_damaged_block_is_adopted_and_is_an_error_when_it_is_read(workshop: Workshop) -> None:
    family = make_family(workshop)
    spoil(family, 5)
    shared(family)
    assert family.clone.backing is None
    with pytest.raises(CorruptVolume):
        family.clone.read_into(5 * BLOCK_BYTES, memoryview(bytearray(BLOCK_BYTES)))
    family.write(5 * BLOCK_BYTES, pattern(4, BLOCK_BYTES))
    assert family.reads_right()
    workshop.abandon(family.volume)


def test_pointers_that_cannot_be_read_end_the_job_with_the_backing_kept(workshop: Workshop) -> None:
    family = make_family(workshop)
    leaf = level_one(family.volume.core, family.clone.below().inode, 1)
    family.volume.destroy_lun("golden")
    family.volume.reclaim_now()
    family.volume.close()
    device = family.volume.device
    device.image[leaf.vbn * BLOCK_BYTES + 9] ^= 1  # type: ignore[union-attr, attr-defined]
    volume = workshop.mount(device)  # type: ignore[arg-type]
    steps, _ = steps_of(volume, volume.lun("clone"), share=True)
    with pytest.raises(BadSource):
        drive(volume, steps)
    assert volume.lun("clone").backing is not None
    workshop.abandon(volume)
    workshop.abandon(family.volume)


def test_a_crash_at_any_commit_leaves_a_clone_that_goes_on(workshop: Workshop) -> None:
    family = make_family(workshop)
    shared_after = own_blocks(family)
    assert shared_after == set()
    family.clone.adopt(0)
    crashed = workshop.crash(family.volume)
    clone = crashed.lun("clone")
    assert clone.backing is not None
    drive(crashed, steps_of(crashed, clone, share=True)[0])
    checkpoint(crashed)
    assert read_all(clone) == family.model.read(0, family.model.size_bytes)


def test_the_manager_says_what_was_shared(workshop: Workshop) -> None:
    async def main() -> None:
        async with daemon(make_family(workshop)) as d:
            d.manager.start(d.service, "clone", SHARE)
            status = await d.manager.wait(d.service, "clone")
            assert status.state is JobState.COMPLETED
            data = d.events[-1].data
            assert (data["blocks_copied"], data["blocks_shared"]) == (0, len(GOLDEN_BLOCKS))
            assert d.family.reads_right()

    asyncio.run(main())


def test_a_clone_that_shares_needs_no_room_for_what_it_shares(workshop: Workshop) -> None:
    async def main() -> None:
        family = make_family(workshop, size_bytes=8 * MIB, log_bytes=0)
        filler = family.volume.create_lun("filler", 16 * MIB)
        at = 0
        while family.volume.space().available > 100 * BLOCK_BYTES:
            filler.write(at, pattern(at, BLOCK_BYTES))
            at += BLOCK_BYTES
        async with daemon(family) as d:
            d.manager.start(d.service, "clone", SHARE)
            status = await d.manager.wait(d.service, "clone")
            assert (status.state, status.shared_blocks) == (JobState.COMPLETED, len(GOLDEN_BLOCKS))
            assert family.reads_right()

    asyncio.run(main())
