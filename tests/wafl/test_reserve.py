"""Space reservations: a reserved LUN may always write every one of its blocks (wafl/reserve.py)."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.support.crash_device import MemoryDevice
from tests.support.space import lun_figures
from tests.support.volumes import MIB, Workshop, checkpoint, pattern, problems, reclaim, take_snapshot
from wafl import BLOCK_BYTES, Lun, NoSpace, Volume
from wafl.format import LEVEL_ONE_BYTES
from wafl.reserve import size_text

STEPS = [BLOCK_BYTES, 8 * BLOCK_BYTES, MIB]


def fill_up(lun: Lun, step: int = 8 * BLOCK_BYTES) -> int:
    """Write until the volume is full; the bytes written."""
    for offset in range(0, lun.size_bytes, step):
        try:
            lun.write(offset, pattern(offset, step))
        except NoSpace:
            return offset
    raise AssertionError("the volume never was full")


def write_whole(lun: Lun, seed: int = 0, step: int = BLOCK_BYTES) -> None:
    for offset in range(0, lun.size_bytes, step):
        lun.write(offset, pattern(seed + offset, min(step, lun.size_bytes - offset)))


def reads_back(lun: Lun, seed: int = 0, step: int = BLOCK_BYTES) -> bool:
    for offset in range(0, lun.size_bytes, step):
        found = bytearray(min(step, lun.size_bytes - offset))
        lun.read_into(offset, memoryview(found))
        if found != pattern(seed + offset, len(found)):
            return False
    return True


def needed(volume: Volume) -> int:
    volume.files.reserve.refresh()
    return volume.files.reserve.needed()


def exact(volume: Volume) -> bool:
    """Whether what is kept back is what brute force finds, after a consistency point."""
    checkpoint(volume)
    return needed(volume) == sum(figures.needed for figures in lun_figures(volume.device).values())


# --- the promise --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("other_step", [BLOCK_BYTES, 8 * BLOCK_BYTES])
def test_a_reserved_lun_can_be_written_whole_when_others_have_filled_the_volume(
    workshop: Workshop, step: int, other_step: int
) -> None:
    volume = workshop.format()
    lun = volume.create_lun("kept", 4 * MIB, reserved=True)
    thin = volume.create_lun("thin", 64 * MIB)
    assert fill_up(thin, other_step) > 5 * MIB
    write_whole(lun, 1, step)
    assert reads_back(lun, 1, step)
    write_whole(lun, 2, step)  # and overwritten
    assert reads_back(lun, 2, step)
    with pytest.raises(NoSpace):
        thin.write(32 * MIB, bytes(MIB))
    assert exact(volume)


@pytest.mark.parametrize("step", STEPS)
def test_a_reserved_lun_can_be_overwritten_whole_after_a_snapshot(workshop: Workshop, step: int) -> None:
    volume = workshop.format()
    lun = volume.create_lun("kept", 4 * MIB, reserved=True)
    write_whole(lun)
    take_snapshot(volume, "s")
    fill_up(volume.create_lun("thin", 64 * MIB))
    write_whole(lun, 3, step)
    write_whole(lun, 4, step)
    assert reads_back(lun, 4, step)
    assert exact(volume)


def test_two_reserved_luns_do_not_write_each_others_reserve(workshop: Workshop) -> None:
    volume = workshop.format()
    luns = [volume.create_lun(name, 3 * MIB, reserved=True) for name in "ab"]
    fill_up(volume.create_lun("thin", 64 * MIB))
    for seed in range(3):
        write_whole(luns[0], seed)
    write_whole(luns[1], 9)
    assert reads_back(luns[0], 2)
    assert reads_back(luns[1], 9)


def test_what_a_run_still_has_is_not_taken_from_a_new_reservation(workshop: Workshop) -> None:
    """A thin LUN's short path takes blocks of a run unasked: a reservation that needs them takes the run away."""
    volume = workshop.format()
    thin = volume.create_lun("thin", 64 * MIB)
    thin.write(0, pattern(1, BLOCK_BYTES))
    allocator = volume.core.allocator
    room = volume.space().available - 40 * BLOCK_BYTES
    lun = volume.create_lun("kept", room - allocator.margin * BLOCK_BYTES - MIB // 4, reserved=True)
    fill_up(thin, BLOCK_BYTES)
    write_whole(lun, 5)
    assert reads_back(lun, 5)


def test_a_write_that_fails_leaves_nothing_of_the_reserve_to_others(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = workshop.format()
    lun = volume.create_lun("kept", 4 * MIB, reserved=True)
    fill_up(volume.create_lun("thin", 64 * MIB), BLOCK_BYTES)
    checkpoint(volume)
    lun.write(0, pattern(1, BLOCK_BYTES))  # its leaf is there

    def broken(offset: int, buffers: object) -> None:
        raise OSError(5, "injected")

    with monkeypatch.context() as patch:
        patch.setattr(lun, "_pwrite", broken)
        with pytest.raises(OSError, match="injected"):
            lun.write(BLOCK_BYTES, pattern(1, 16 * BLOCK_BYTES))
    assert volume.core.allocator.next == volume.core.allocator.end
    write_whole(lun, 1)


def test_what_a_reserved_lun_has_written_is_not_kept_back_any_more(workshop: Workshop) -> None:
    """Others get it without a consistency point."""
    volume = workshop.format()
    lun = volume.create_lun("kept", 6 * MIB, reserved=True)
    thin = volume.create_lun("thin", 64 * MIB)
    thin.write(0, pattern(1, 2 * MIB))
    write_whole(lun)
    generation = volume.generation
    thin.write(2 * MIB, pattern(1, 4 * MIB))
    assert volume.generation == generation


def test_what_is_unmapped_is_kept_back_at_once(workshop: Workshop) -> None:
    volume = workshop.format()
    lun = volume.create_lun("kept", 4 * MIB, reserved=True)
    write_whole(lun)
    assert needed(volume) == 0
    floor = volume.core.allocator.floor_guest
    lun.unmap(MIB, 2 * MIB)
    assert volume.core.allocator.floor_guest >= floor + 2 * 256


def test_a_reserved_lun_finds_its_room_behind_work_that_makes_none(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = workshop.format()
    old = volume.create_lun("old", 4 * MIB)
    write_whole(old)
    take_snapshot(volume, "s")
    lun = volume.create_lun("kept", 4 * MIB, reserved=True)
    write_whole(lun, 0, MIB)
    fill_up(volume.create_lun("thin", 64 * MIB))
    checkpoint(volume)
    volume.destroy_lun("old")  # the snapshot holds all of it
    lun.unmap(0, lun.size_bytes)
    monkeypatch.setattr("wafl.volume.RELIEF_SLICES", 1)
    monkeypatch.setattr("wafl.reclaim.TRIM_SLICE", 1)
    write_whole(lun, 1, MIB)
    assert reads_back(lun, 1, MIB)


def test_an_unmap_of_a_reserved_lun_keeps_what_it_gives_back(workshop: Workshop) -> None:
    volume = workshop.format()
    lun = volume.create_lun("kept", 4 * MIB, reserved=True)
    write_whole(lun)
    thin = volume.create_lun("thin", 64 * MIB)
    fill_up(thin)
    lun.unmap(0, 4 * MIB)
    reclaim(volume)
    with pytest.raises(NoSpace):
        thin.write(32 * MIB, bytes(4 * MIB))
    write_whole(lun, 8)
    assert reads_back(lun, 8)


def test_a_reserved_lun_is_written_at_once_after_an_unmap_on_a_full_volume(workshop: Workshop) -> None:
    """What it unmapped is still on its way back: the write drives that on, however much work it is."""
    volume = workshop.format(64 * MIB)
    lun = volume.create_lun("kept", 40 * MIB, reserved=True)
    write_whole(lun, 0, MIB)
    fill_up(volume.create_lun("thin", 64 * MIB))
    lun.unmap(0, lun.size_bytes)
    write_whole(lun, 1, MIB)
    assert reads_back(lun, 1, MIB)


def test_a_clone_of_a_reserved_lun_draws_on_its_reserve(workshop: Workshop) -> None:
    volume = workshop.format()
    write_whole(volume.create_lun("parent", 2 * MIB), 7)
    take_snapshot(volume, "s")
    lun = volume.create_lun("kept", backing=("s", "parent"), reserved=True)
    fill_up(volume.create_lun("thin", 64 * MIB))
    index = lun.next_missing(0)
    while index is not None:
        plan = lun.plan_fill(index)
        assert plan is not None
        lun.install_fill(plan, plan.read())
        plan.release()
        index = lun.next_missing(index + 1)
    checkpoint(volume)
    lun.detach()
    assert reads_back(lun, 7)
    write_whole(lun, 8)
    assert exact(volume)


def test_a_clone_of_a_thin_lun_leaves_the_reserve_alone(workshop: Workshop) -> None:
    volume = workshop.format()
    write_whole(volume.create_lun("parent", 2 * MIB), 7)
    take_snapshot(volume, "s")
    clone = volume.create_lun("thin", backing=("s", "parent"))
    kept = volume.create_lun("kept", 4 * MIB, reserved=True)
    fill_up(volume.create_lun("filler", 64 * MIB))
    plan = clone.plan_fill(0)
    assert plan is not None
    with pytest.raises(NoSpace):
        clone.install_fill(plan, plan.read())
    plan.release()
    write_whole(kept, 1)


# --- refused, and nothing changed -----------------------------------------------------------------------------------


def refused(volume: Volume, action: Callable[[], object], what: str) -> None:
    before = volume.space(), needed(volume)
    with pytest.raises(NoSpace) as refusal:
        action()
    assert "more than there is" in str(refusal.value)
    assert what in str(refusal.value)
    assert (volume.space(), needed(volume)) == before


def test_a_reserved_lun_that_does_not_fit_is_refused(workshop: Workshop) -> None:
    volume = workshop.format()
    refused(volume, lambda: volume.create_lun("big", 64 * MIB, reserved=True), "noreserve")
    assert volume.luns() == []
    volume.create_lun("big", 64 * MIB)


def test_the_largest_reserved_lun_that_is_not_refused_can_be_written(workshop: Workshop) -> None:
    volume = workshop.format()
    for blocks in range(4000, 0, -1):
        try:
            lun = volume.create_lun("big", blocks * BLOCK_BYTES, reserved=True)
        except NoSpace:
            continue
        break
    assert blocks > 3000
    for seed in range(3):
        write_whole(lun, seed)
    assert reads_back(lun, 2)


def test_a_reservation_that_does_not_fit_is_not_enabled(workshop: Workshop) -> None:
    volume = workshop.format()
    lun = volume.create_lun("big", 64 * MIB)
    refused(volume, lambda: lun.set_reserved(True), "space for all of LUN big")
    assert not lun.reserved


def test_a_reservation_is_enabled_by_what_the_lun_still_lacks(workshop: Workshop) -> None:
    volume = workshop.format()
    lun = volume.create_lun("half", 10 * MIB)
    write_whole(lun)
    lun.set_reserved(True)  # all of it is there already
    assert needed(volume) == 0
    lun.set_reserved(False)
    lun.set_reserved(True)
    assert exact(volume)


def test_a_reserved_lun_grows_only_as_far_as_there_is_room(workshop: Workshop) -> None:
    volume = workshop.format()
    lun = volume.create_lun("kept", 4 * MIB, reserved=True)
    refused(volume, lambda: volume.resize_lun("kept", 64 * MIB), "at its new size")
    assert lun.size_bytes == 4 * MIB
    volume.resize_lun("kept", 8 * MIB)
    fill_up(volume.create_lun("thin", 64 * MIB))
    write_whole(lun, 2)
    assert exact(volume)


def test_a_snapshot_needs_room_for_all_that_reserved_luns_hold(workshop: Workshop) -> None:
    volume = workshop.format()
    lun = volume.create_lun("kept", 9 * MIB, reserved=True)
    write_whole(lun)
    checkpoint(volume)
    refused(volume, lambda: volume.request_snapshot("s"), "disable the reservation")
    checkpoint(volume)
    assert volume.snapshots() == []
    lun.set_reserved(False)
    take_snapshot(volume, "s")


def test_a_snapshot_that_only_just_fits_is_made_before_a_reserved_lun_writes_on(workshop: Workshop) -> None:
    """What it wrote between the request and the consistency point would be needed twice."""
    volume = workshop.format()
    lun = volume.create_lun("kept", 8 * MIB, reserved=True)
    while not volume.snapshots():
        try:
            volume.request_snapshot("s")
        except NoSpace:
            volume.resize_lun("kept", lun.size_bytes - 16 * BLOCK_BYTES)
    assert lun.size_bytes > 6 * MIB
    for seed in range(3):
        write_whole(lun, seed)
    assert reads_back(lun, 2)


def test_a_lun_is_restored_only_if_all_of_it_can_be_kept_back(workshop: Workshop) -> None:
    volume = workshop.format()
    lun = volume.create_lun("kept", 5 * MIB, reserved=True)
    write_whole(lun)
    take_snapshot(volume, "s")
    thin = volume.create_lun("thin", 64 * MIB)
    fill_up(thin)
    volume.resize_lun("kept", MIB)
    reclaim(volume)
    fill_up(thin)
    refused(volume, lambda: volume.restore("s", "kept"), "all of what is restored")
    assert lun.size_bytes == MIB
    volume.destroy_lun("thin")
    reclaim(volume)
    volume.restore("s", "kept")
    assert reads_back(lun)
    write_whole(lun, 1)


# --- what raises and lowers it ---------------------------------------------------------------------------------------


def test_a_snapshot_raises_the_reserve_to_the_full_size_and_its_deletion_lowers_it(workshop: Workshop) -> None:
    volume = workshop.format()
    lun = volume.create_lun("kept", 4 * MIB, reserved=True)
    write_whole(lun)
    assert needed(volume) == 0
    take_snapshot(volume, "old")
    full = needed(volume)
    assert full >= lun.size_bytes // BLOCK_BYTES
    lun.write(0, pattern(1, MIB))
    take_snapshot(volume, "new")
    lun.write(MIB, pattern(2, MIB))
    volume.delete_snapshot("new")
    assert needed(volume) == full - 258, "not before its blocks are given back"
    reclaim(volume)
    assert needed(volume) == full - 515, "what was written since the older one is counted"
    volume.delete_snapshot("old")
    reclaim(volume)
    assert needed(volume) == 0
    assert exact(volume)


def test_a_recount_is_exact_whatever_is_written_meanwhile(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wafl.recount.SLICE_LEAVES", 1)
    volume = workshop.format(64 * MIB)
    lun = volume.create_lun("kept", 24 * MIB, reserved=True)
    for name in ("old", "new"):
        for index in range(0, 24, 2):
            lun.write(index * MIB, pattern(index, MIB // 2))
        take_snapshot(volume, name)
    volume.delete_snapshot("new")
    place = 0
    for _ in volume.reclaim():
        lun.write(place % 24 * MIB, pattern(place, 3 * BLOCK_BYTES))
        lun.write((place + 5) % 24 * MIB + 4 * BLOCK_BYTES, pattern(place, BLOCK_BYTES))
        lun.unmap((place + 7) % 24 * MIB + 8 * BLOCK_BYTES, 9 * BLOCK_BYTES)
        place += 7
    assert not volume.files.reserve.counting
    assert exact(volume)


def test_an_unmap_in_the_middle_of_a_recount_never_makes_the_reserve_too_low(workshop: Workshop) -> None:
    volume = workshop.format(64 * MIB)
    lun = volume.create_lun("kept", 16 * MIB, reserved=True)
    for name in ("old", "new"):
        write_whole(lun, 1, MIB)
        take_snapshot(volume, name)
    volume.delete_snapshot("new")
    for number, _ in enumerate(volume.reclaim()):
        lun.unmap(number % 16 * MIB, MIB)
        checkpoint(volume)
        figures = lun_figures(volume.device)["kept"]
        assert needed(volume) >= figures.needed
    volume.reclaim_now()
    assert exact(volume)


def test_an_unmap_of_what_is_not_in_memory_is_counted_later(workshop: Workshop) -> None:
    volume = workshop.format(64 * MIB)
    lun = volume.create_lun("kept", 24 * MIB, reserved=True)
    write_whole(lun, 1, MIB)
    volume = workshop.remount(volume)
    lun = volume.lun("kept")
    lun.unmap(3 * LEVEL_ONE_BYTES, 5 * LEVEL_ONE_BYTES)
    assert needed(volume) >= 5 * 257
    volume.reclaim_now()
    assert exact(volume)


def test_the_reserve_is_the_same_after_a_mount(workshop: Workshop) -> None:
    volume = workshop.format()
    lun = volume.create_lun("kept", 4 * MIB, reserved=True)
    lun.write(0, pattern(1, MIB))
    take_snapshot(volume, "s")
    lun.write(MIB, pattern(2, MIB))
    before = needed(volume)
    volume = workshop.remount(volume)
    assert needed(volume) == before
    assert not volume.files.reserve.counting
    assert exact(volume)


def test_a_lun_that_an_older_version_wrote_is_counted_after_the_mount(workshop: Workshop) -> None:
    """It leaves zeros in the fields it does not know: until the count the reserve is too high, never too low."""
    volume = workshop.format()
    lun = volume.create_lun("kept", 4 * MIB, reserved=True)
    lun.write(0, pattern(1, MIB))
    take_snapshot(volume, "s")
    lun.write(MIB, pattern(2, MIB))
    lun.inode.set_private(0, 0, exact=False)
    lun.inode.touch(volume.core)
    volume = workshop.remount(volume)
    assert needed(volume) >= 4 * 256
    assert volume.reclaim_pending
    reclaim(volume)
    assert exact(volume)


def test_a_volume_that_is_over_committed_mounts_and_says_so(workshop: Workshop) -> None:
    volume = workshop.format()
    lun = volume.create_lun("big", 64 * MIB)
    lun.write(0, pattern(1, MIB))
    lun._change("reserved", True)  # an older version looked at no room
    volume = workshop.remount(volume)
    (note,) = volume.mount_report
    assert "space-reserved LUNs may need" in note
    assert volume.space().available == 0
    lun = volume.lun("big")
    lun.write(MIB, pattern(2, 4 * MIB))  # while there is room
    with pytest.raises(NoSpace):
        volume.create_lun("thin", MIB)
    lun.set_reserved(False)
    volume.create_lun("thin", MIB)


def test_a_damaged_level_one_block_ends_the_recount_and_nothing_else(workshop: Workshop) -> None:
    volume = workshop.format()
    lun = volume.create_lun("kept", 4 * MIB, reserved=True)
    write_whole(lun)
    take_snapshot(volume, "s")
    lun.write(0, pattern(1, MIB))
    lun.write(MIB, pattern(1, MIB))
    checkpoint(volume)
    vbn = lun.inode.children[0].vbns[0]
    device = volume.device
    assert isinstance(device, MemoryDevice)
    lun.inode.set_private(0, 0, exact=False)
    lun.inode.touch(volume.core)
    volume.close()
    assert problems(device) == []
    device = MemoryDevice(bytearray(device.image))
    device.image[vbn * BLOCK_BYTES] ^= 1
    volume = workshop.mount(device)
    workshop.abandon(volume)
    with pytest.raises(Exception, match=f"block {vbn}"):
        reclaim(volume)
    assert not volume.reclaim_pending
    assert needed(volume) >= 4 * 256


def test_sizes_in_refusals_are_never_rounded_to_nothing() -> None:
    assert size_text(1) == "4.0 KiB"
    assert size_text(256) == "1.0 MiB"
    assert size_text(3 * 2**28) == "3.0 TiB"


def test_a_lun_made_from_a_snapshot_has_its_parents_reservation(workshop: Workshop) -> None:
    volume = workshop.format()
    volume.create_lun("kept", 2 * MIB, reserved=True)
    volume.create_lun("thin", 2 * MIB)
    take_snapshot(volume, "s")
    assert volume.create_lun("kept2", backing=("s", "kept")).reserved
    assert not volume.create_lun("thin2", backing=("s", "thin")).reserved
    assert not volume.create_lun("kept3", backing=("s", "kept"), reserved=False).reserved
