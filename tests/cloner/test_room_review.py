"""Faults that a hostile reading found in jobs that wait, for room, their limit or their turn."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from cloner import ENDED, CloneManager, CloneOptions, JobState
from cloner.progress import Progress
from cloner.room import guest_reserve_bytes
from cloner.sharing import UPTAKE_BESIDE_GUESTS, share_level_one
from cloner.steps import BeginCommit, Commit, Step, Unsynced, Work, clone_steps
from cloner.turns import Share
from tests.cloner.test_manager import daemon
from tests.cloner.test_review import Daemon, HeldTime, paused, until
from tests.support.clones import Family, add_clone, drive, make_family, read_all, steps_of
from tests.support.volume_model import ModelLun
from tests.support.volumes import MIB, Workshop, checkpoint, pattern, reclaim, take_snapshot
from wafl import BLOCK_BYTES, PIECEMEAL, NoSpace, SpaceHeld, Volume

SHARE = CloneOptions(share=True)


def fill_to_the_last_block(family: Family) -> None:
    filler = family.volume.create_lun("filler", 8 * MIB, reserved=False)
    with contextlib.suppress(NoSpace):
        for offset in range(0, 8 * MIB, BLOCK_BYTES):
            filler.write(offset, pattern(1, BLOCK_BYTES))


def fill_the_log(family: Family) -> None:
    for number in range(10_000):
        family.clone.set_comment(str(number))


def test_a_job_that_waits_for_room_ends_when_guests_have_left_it_nothing_to_do(workshop: Workshop) -> None:
    async def story(d: Daemon) -> None:
        d.family.unmap(0, d.family.clone.size_bytes)
        await until(lambda: d.manager.status(d.service, "clone").state is JobState.COMPLETED)
        assert d.kinds() == ["started", "paused", "resumed", "completed"]
        assert d.family.reads_right()

    paused(workshop, story)


def test_a_job_that_waits_for_room_goes_on_when_space_is_kept_back_for_its_lun(workshop: Workshop) -> None:
    """The volume's other room is as little as before, and it needs none of it."""

    async def story(d: Daemon) -> None:
        filler, volume = d.family.volume.lun("filler"), d.family.volume
        assert not d.family.clone.reserved
        # Just so much that the reservation is taken, and most of the reserve is used up again.
        filler.unmap(0, 5 * MIB)
        reclaim(volume)
        d.family.clone.set_reserved(True)
        while volume.space().available >= guest_reserve_bytes(volume) + MIB:
            filler.write(filler.used_bytes, pattern(1, BLOCK_BYTES))
        await until(lambda: d.manager.status(d.service, "clone").state is JobState.COMPLETED)
        assert d.family.reads_right()

    paused(workshop, story)


def test_nothing_is_refused_to_a_start_that_was_asked_for_already(workshop: Workshop) -> None:
    """As after a restore: the request came with it, and the log may be full of what was there before, on a full volume
    of which somebody reads what has been freed."""

    async def main() -> None:
        family = make_family(workshop, size_bytes=8 * MIB, log_bytes=32 << 10)
        family.clone.set_clone_requested(True)
        fill_to_the_last_block(family)
        checkpoint(family.volume)
        async with daemon(family) as d:
            with family.volume.held():
                with pytest.raises(SpaceHeld):
                    fill_the_log(family)
                assert d.manager.start(d.service, "clone", force=True).state is JobState.CREATED
            family.volume.destroy_lun("filler")
            d.service.kick_reclaim()
            assert (await d.manager.wait(d.service, "clone")).state is JobState.COMPLETED
            assert family.reads_right()

    asyncio.run(main())


def test_a_job_that_shares_waits_for_room_and_shares_then(workshop: Workshop) -> None:
    async def main() -> None:
        family = make_family(workshop, size_bytes=8 * MIB, blocks=list(range(600)))
        other = add_clone(family.volume, "other")
        drive(family.volume, steps_of(family.volume, other, share=True)[0])  # now there are counts
        fill_to_the_last_block(family)
        checkpoint(family.volume)
        fill = family.volume.lun("filler")
        with contextlib.suppress(NoSpace):
            for offset in range(4 * MIB, 8 * MIB, BLOCK_BYTES):
                fill.write(offset, pattern(1, BLOCK_BYTES))
        async with daemon(family) as d:
            d.manager.start(d.service, "clone", SHARE)
            await until(lambda: d.manager.status(d.service, "clone").state is JobState.PAUSED)
            fill.unmap(0, 3 * MIB // 2)
            await until(lambda: d.manager.status(d.service, "clone").state is JobState.COMPLETED)
            status = d.manager.status(d.service, "clone")
            assert (status.copied_blocks, status.shared_blocks) == (0, 600)
            assert family.reads_right()

    asyncio.run(main())


def test_a_reserved_clone_that_shares_takes_its_own_reserve_when_there_is_no_other_room(workshop: Workshop) -> None:
    family = make_family(workshop, size_bytes=16 * MIB, blocks=list(range(600)))
    family.clone.set_reserved(True)
    fill_to_the_last_block(family)
    checkpoint(family.volume)
    drive(family.volume, steps_of(family.volume, family.clone, share=True)[0])  # raises where it would wait for room
    assert family.clone.backing is None
    family.write(0, pattern(5, 3 * MIB))
    assert family.reads_right()


def test_what_others_share_takes_no_room_from_a_clone_that_copies(workshop: Workshop) -> None:
    async def main() -> None:
        family = make_family(workshop, size_bytes=8 * MIB, blocks=list(range(600)))
        other = add_clone(family.volume, "other")
        filler = family.volume.create_lun("filler", 8 * MIB)
        written = 0
        while family.volume.space().available > 15 * MIB // 4:  # for one copy, not for two
            filler.write(written, pattern(1, BLOCK_BYTES))
            written += BLOCK_BYTES
        checkpoint(family.volume)
        async with daemon(family) as d:
            d.manager.start(d.service, "clone", SHARE)
            d.manager.start(d.service, "other")
            for name in ("clone", "other"):
                assert (await d.manager.wait(d.service, name)).state is JobState.COMPLETED
            assert read_all(other) == family.model.read(0, family.model.size_bytes)

    asyncio.run(main())


@pytest.mark.parametrize("broken", [True, False])
def test_a_job_that_waits_for_its_limit_sees_that_there_is_nothing_to_wait_for(
    workshop: Workshop, broken: bool
) -> None:
    async def main() -> None:
        time = HeldTime()
        family = make_family(workshop)
        async with daemon(family) as d:
            manager = CloneManager(lambda event: None, clock=time.clock, sleep=time.sleep)
            manager.start(d.service, "clone", CloneOptions(1))
            await until(lambda: len(time.asked) > 3)
            looked = len(time.asked)
            if broken:
                family.volume.fail(OSError("injected"))
            else:
                family.volume.destroy_lun("clone")
            await until(lambda: len(time.asked) > looked + 3 or all(each.state in ENDED for each in manager.show()))
            ended = [status.state for status in manager.show()]
            assert ended == ([JobState.FAILED] if broken else [])
            await manager.close()

    asyncio.run(main())


def test_without_room_for_the_first_counts_nothing_is_adopted(workshop: Workshop) -> None:
    family = make_family(workshop, size_bytes=8 * MIB, blocks=list(range(600)))
    fill_to_the_last_block(family)
    assert family.clone.adopt(0) == 0
    assert family.reads_right()


def sparse(workshop: Workshop) -> Volume:
    """With a snapshot of a LUN that has one block in each of 64 level-1 ranges."""
    volume = workshop.format(16 * MIB)
    golden = volume.create_lun("golden", 64 * MIB, reserved=False)
    for offset in range(0, 64 * MIB, MIB):
        golden.write(offset, pattern(offset, BLOCK_BYTES))
    take_snapshot(volume, "base")
    volume.destroy_lun("golden")
    volume.reclaim_now()
    return volume


def test_pointers_to_what_is_shared_are_limited_while_no_consistency_point_has_them(workshop: Workshop) -> None:
    volume = sparse(workshop)
    lun = add_clone(volume, "clone")
    for offset in range(0, 64 * MIB, MIB):  # so that each range has to be adopted by itself
        lun.write(offset + BLOCK_BYTES, pattern(1, BLOCK_BYTES))
    checkpoint(volume)
    unsynced, most = Unsynced(), 0
    work = Work(
        volume, lun, Progress(BLOCK_BYTES), lambda: 0.0, lambda: 256, share_level_one, unsynced=unsynced,
        unsynced_limit=lambda: 8 * BLOCK_BYTES,
    )  # fmt: skip

    def look(number: int, step: Step) -> None:
        nonlocal most
        most = max(most, volume.dirty_blocks)
        if isinstance(step, Commit | BeginCommit):
            unsynced.end(unsynced.begin())

    drive(volume, clone_steps(work), look)
    assert lun.backing is None
    assert most <= 8 + UPTAKE_BESIDE_GUESTS // PIECEMEAL + 8


def test_jobs_that_share_pay_for_their_turns_as_one_that_copies_does(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    paid: dict[Share, int] = {}
    charge = Share.charge

    def counted(share: Share, cost_bytes: int) -> None:
        paid[share] = paid.get(share, 0) + cost_bytes
        charge(share, cost_bytes)

    monkeypatch.setattr(Share, "charge", counted)

    async def main() -> None:
        volume = sparse(workshop)
        clones = [add_clone(volume, name) for name in ("one", "two", "copy")]
        family = Family(volume, clones[0], ModelLun(0))
        async with daemon(family) as d:
            for lun in clones[:2]:
                d.manager.start(d.service, lun.name, SHARE)
            d.manager.start(d.service, "copy")
            for lun in clones:
                assert (await d.manager.wait(d.service, lun.name)).state is JobState.COMPLETED

    asyncio.run(main())
    assert len(paid) == 3
    # else it would always be their turn
    assert all(paid.values())
