"""What a clone would take is said before it is started."""

from __future__ import annotations

import asyncio

import pytest

from cloner import DoesNotFit, estimate
from cloner.estimate import OWN_BLOCKS
from tests.cloner.test_manager import daemon
from tests.support.clones import GOLDEN_BLOCKS, Family, drive, make_family, steps_of
from tests.support.crash_device import MemoryDevice
from tests.support.volumes import MIB, Workshop, checkpoint, pattern, take_snapshot
from wafl import BLOCK_BYTES, Lun, Volume, recount_missing
from wafl.scan import missing_slots
from wafl.tree import level_one


def taken_by_a_clone(family: Family) -> int:
    """Bytes of the volume that the fills really took."""
    checkpoint(family.volume)
    checkpoint(family.volume)
    before = family.volume.space().used
    steps, _ = steps_of(family.volume, family.clone)
    drive(family.volume, steps)
    checkpoint(family.volume)
    return family.volume.space().used - before


def test_what_a_clone_needs_is_never_estimated_too_low_and_not_much_too_high(workshop: Workshop) -> None:
    family = make_family(workshop)
    found = estimate(family.volume, family.clone)
    assert found.missing_blocks == len(GOLDEN_BLOCKS)
    assert found.fits
    taken = taken_by_a_clone(family)
    assert taken <= found.needed_bytes <= taken + (4 + OWN_BLOCKS) * BLOCK_BYTES


def test_a_snapshot_of_the_clone_makes_it_no_dearer_than_estimated(workshop: Workshop) -> None:
    family = make_family(workshop)
    family.write(BLOCK_BYTES, pattern(3, BLOCK_BYTES))
    family.write(2 * MIB, pattern(4, BLOCK_BYTES))
    take_snapshot(family.volume, "middle")
    needed = estimate(family.volume, family.clone).needed_bytes
    assert taken_by_a_clone(family) <= needed


def test_a_clone_of_a_clone_needs_what_both_snapshots_have(workshop: Workshop) -> None:
    family = make_family(workshop)
    family.write(300 * BLOCK_BYTES, pattern(7, 8 * BLOCK_BYTES))
    take_snapshot(family.volume, "middle")
    grandchild = family.volume.create_lun("grandchild", None, backing=("middle", "clone"))
    found = estimate(family.volume, grandchild)
    assert found.missing_blocks == len(GOLDEN_BLOCKS) + 8
    assert taken_by_a_clone(Family(family.volume, grandchild, family.model)) <= found.needed_bytes


def test_what_does_not_fit_is_said(workshop: Workshop) -> None:
    family = make_family(workshop, size_bytes=8 * MIB, blocks=list(range(700)))
    filler = family.volume.create_lun("filler", 8 * MIB)
    filler.write(0, pattern(1, 2 * MIB))
    checkpoint(family.volume)
    found = estimate(family.volume, family.clone)
    assert not found.fits
    assert found.available_bytes < found.needed_bytes
    family.volume.destroy_lun("filler")
    for _ in family.volume.reclaim():
        pass
    # Not allocatable before the next consistency points, but on its way.
    assert estimate(family.volume, family.clone).fits


def test_a_reserved_lun_fits_whatever_others_have_written(workshop: Workshop) -> None:
    family = make_family(workshop, blocks=list(range(700)))
    family.clone.set_reserved(True)
    filler = family.volume.create_lun("filler", 16 * MIB)
    checkpoint(family.volume)
    while family.volume.space().available > MIB:
        filler.write(filler.used_bytes, pattern(1, MIB // 4))
        checkpoint(family.volume)
    found = estimate(family.volume, family.clone)
    assert found.fits
    assert found.available_bytes >= found.needed_bytes


def test_a_lun_without_backing_needs_nothing(workshop: Workshop) -> None:
    family = make_family(workshop)
    found = estimate(family.volume, family.volume.lun("golden"))
    assert (found.missing_blocks, found.needed_bytes, found.fits, found.seconds) == (0, 0, True, 0.0)


def test_the_time_follows_the_rate_of_the_last_clone(workshop: Workshop) -> None:
    async def main() -> None:
        family = make_family(workshop)
        family.volume.create_lun("second", None, backing=("base", "golden"))
        async with daemon(family) as d:
            assert d.manager.estimate(d.service, "second").seconds is None
            rate = 10 * BLOCK_BYTES
            await d.run(["clone"], limit_bytes_s=rate)
            found = d.manager.estimate(d.service, "second")
            assert found.rate_bytes_s is not None
            assert found.seconds == pytest.approx(len(GOLDEN_BLOCKS) * BLOCK_BYTES / found.rate_bytes_s)
            assert 0.5 * rate <= found.rate_bytes_s <= 2 * rate

    asyncio.run(main())


def discarded_unseen(workshop: Workshop) -> Family:
    """A clone of 700 blocks whose host has discarded nearly all of them before anybody looked at what the backing has;
    with room for the few that are left, and not for all."""
    family = make_family(workshop, size_bytes=8 * MIB, blocks=list(range(700)))
    filler = family.volume.create_lun("filler", 8 * MIB)
    filler.write(0, pattern(1, 2 * MIB))
    volume = workshop.remount(family.volume)
    family = Family(volume, volume.lun("clone"), family.model)
    family.unmap(0, 690 * BLOCK_BYTES)
    checkpoint(volume)
    return family


@pytest.mark.parametrize("estimated", [False, True])
def test_what_guests_have_covered_unseen_is_counted_before_a_clone_is_refused(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch, *, estimated: bool
) -> None:
    async def main() -> None:
        family = discarded_unseen(workshop)
        async with daemon(family) as d:
            assert family.clone.missing_blocks() == 700
            with pytest.raises(DoesNotFit):
                d.manager.check_start(d.service, "clone")
            if estimated:
                monkeypatch.setattr("cloner.manager.LOOKS", 0)  # what does not fit is counted all the same
                found = await d.manager.look_and_estimate(d.service, "clone")
                assert (found.exact, found.missing_blocks, found.fits) == (True, 10, True)
            await d.manager.look_closer(d.service, "clone")
            assert family.clone.missing_blocks() == 10
            await d.run(["clone"])
        assert family.reads_right()

    asyncio.run(main())


def test_a_count_in_slices_is_never_too_low(workshop: Workshop) -> None:
    """Guests cover more between any two slices; and what a restore brings is not counted by what was there before."""
    family = make_family(workshop, blocks=list(range(700)))
    for block, _ in enumerate(recount_missing(family.clone)):
        family.write(block * BLOCK_BYTES, pattern(3, BLOCK_BYTES))
        family.write((699 - block) * BLOCK_BYTES, pattern(3, BLOCK_BYTES))
        still = sum(len(missing_slots(family.clone, index)) for index in range(3))
        assert still <= family.clone.missing_blocks()
    assert still <= family.clone.missing_blocks() <= 700
    counting = recount_missing(family.clone)
    next(counting)
    family.clone.missing = 701
    family.volume.resize_lun("clone", MIB)
    family.clone.missing = 702
    assert list(counting) == []
    assert family.clone.missing == 702
    family.clone.missing = 256
    family.model.resize(MIB)
    assert family.reads_right()


@pytest.mark.parametrize("looks", [1, 100])
def test_an_estimate_counts_what_guests_have_covered_unseen_or_says_that_it_has_not(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch, looks: int
) -> None:
    monkeypatch.setattr("cloner.manager.LOOKS", looks)

    async def main() -> None:
        family = make_family(workshop, blocks=list(range(700)))
        volume = workshop.remount(family.volume)
        clone = volume.lun("clone")
        clone.unmap(3 * BLOCK_BYTES, BLOCK_BYTES)
        clone.unmap(260 * BLOCK_BYTES, 10 * BLOCK_BYTES)
        async with daemon(Family(volume, clone, family.model)) as d:
            assert not d.manager.estimate(d.service, "clone").exact
            found = await d.manager.look_and_estimate(d.service, "clone")
            assert (found.exact, found.missing_blocks) == ((True, 689) if looks > 3 else (False, 700))
            assert found.fits

    asyncio.run(main())


def test_where_pointers_cannot_be_read_an_estimate_is_not_exact(workshop: Workshop) -> None:
    async def main() -> None:
        family = make_family(workshop, blocks=list(range(700)))
        leaf = level_one(family.volume.core, family.clone.below().inode, 1)
        family.volume.close()
        workshop.abandon(family.volume)
        family.volume.device.image[leaf.vbn * BLOCK_BYTES + 9] ^= 1  # type: ignore[union-attr, attr-defined]
        volume = workshop.mount(family.volume.device)  # type: ignore[arg-type]
        async with daemon(Family(volume, volume.lun("clone"), family.model)) as d:
            assert not (await d.manager.look_and_estimate(d.service, "clone")).exact
        workshop.abandon(volume)

    asyncio.run(main())


class CountingDevice(MemoryDevice):
    reads = 0

    def pread(self, offset: int, view: object) -> None:
        self.reads += 1
        super().pread(offset, view)


def scattered(size_bytes: int, offsets: range) -> tuple[Volume, Lun, CountingDevice]:
    """A freshly mounted volume with a backed LUN whose parent has a block at each offset."""
    device = CountingDevice(bytearray(32 * MIB))
    Volume.format(device, name="vol0")
    volume = Volume.mount(device)
    golden = volume.create_lun("golden", size_bytes)
    for offset in offsets:
        golden.write(offset, pattern(1, BLOCK_BYTES))
    take_snapshot(volume, "base")
    volume.create_lun("clone", None, backing=("base", "golden"))
    volume.close()
    volume = Volume.mount(device)
    device.reads = 0
    return volume, volume.lun("clone"), device


def test_an_estimate_of_a_huge_lun_reads_about_a_thousand_blocks_at_most() -> None:
    tib = 1 << 40
    # Each in a level-2 range of its own: more of them than are looked at.
    volume, clone, device = scattered(16 * tib, range(0, 2000 << 28, 1 << 28))
    found = estimate(volume, clone)
    assert device.reads < 100
    assert found.missing_blocks == 2000
    assert 2000 + 2 * 2000 <= found.needed_bytes // BLOCK_BYTES <= 2000 * 5 + OWN_BLOCKS
    volume.close()
