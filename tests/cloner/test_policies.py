"""Source blocks that cannot be read: said exactly, and never followed by a detach."""

from __future__ import annotations

import asyncio

import pytest

from cloner import CloneOptions, JobState, Policy
from cloner.errors import BadSource, PassedOver
from tests.cloner.test_manager import daemon
from tests.cloner.test_steps import damage
from tests.support.clones import GOLDEN_BLOCKS, GOLDEN_BYTES, Family, drive, make_family, read_all, steps_of
from tests.support.crash_device import MemoryDevice
from tests.support.volumes import Workshop, checkpoint, pattern
from wafl import BLOCK_BYTES, CorruptVolume

IGNORE = CloneOptions(policy=Policy.IGNORE)


def spoil(family: Family, *blocks: int) -> None:
    for block in blocks:
        damage(family.volume, pattern(block + 1, BLOCK_BYTES))


def heal(family: Family, *blocks: int) -> None:
    for block in blocks:
        family.write(block * BLOCK_BYTES, pattern(block + 5000, BLOCK_BYTES))


def own_blocks(family: Family) -> set[int]:
    """What the clone has of its own."""
    found = set()
    for index in range(-(-GOLDEN_BYTES // (256 * BLOCK_BYTES))):
        vbns, _ = family.clone.load_level_one_buf(index)
        found |= {index * 256 + slot for slot, vbn in enumerate(vbns) if vbn > 1}
    return found


@pytest.mark.parametrize("bad", [0, 5, 52, 255, 256, 767])
def test_a_bad_block_is_reported_with_lun_offset_and_snapshot(workshop: Workshop, bad: int) -> None:
    family = make_family(workshop)
    spoil(family, bad)
    steps, _ = steps_of(family.volume, family.clone)
    with pytest.raises(BadSource) as caught:
        drive(family.volume, steps)
    assert caught.value.data == {
        "lun": "clone", "offset": bad * BLOCK_BYTES, "source": "LUN 'golden' of snapshot 'base'", "bad_blocks": 1
    }  # fmt: skip
    assert family.clone.backing is not None
    workshop.abandon(family.volume)


@pytest.mark.parametrize("chunk_blocks", [1, 7, 256, 768])
@pytest.mark.parametrize("bad", [(0,), (5, 6, 7), (39, 50, 52), (255, 256), (0, 10, 261, 767), tuple(GOLDEN_BLOCKS)])
def test_with_the_policy_ignore_all_but_the_bad_blocks_is_copied_and_nothing_detached(
    workshop: Workshop, bad: tuple[int, ...], chunk_blocks: int
) -> None:
    family = make_family(workshop)
    spoil(family, *bad)
    steps, progress = steps_of(family.volume, family.clone, chunk_blocks, ignore_bad=True)
    with pytest.raises(PassedOver) as caught:
        drive(family.volume, steps)
    assert caught.value.data["bad_blocks"] == len(bad)
    assert caught.value.data["offsets"] == [block * BLOCK_BYTES for block in bad][:20]
    assert own_blocks(family) == set(GOLDEN_BLOCKS) - set(bad)
    assert progress.copied_blocks == len(GOLDEN_BLOCKS) - len(bad)
    assert family.clone.backing is not None
    heal(family, *bad)
    again, progress = steps_of(family.volume, family.clone)
    drive(family.volume, again)
    assert progress.copied_blocks == 0
    assert family.clone.backing is None
    assert family.reads_right()
    workshop.abandon(family.volume)


def test_a_bad_block_that_a_guest_heals_meanwhile_is_not_followed_by_a_detach_all_the_same(workshop: Workshop) -> None:
    family = make_family(workshop)
    spoil(family, 3)
    steps, progress = steps_of(family.volume, family.clone, ignore_bad=True)
    with pytest.raises(PassedOver):
        drive(family.volume, steps, lambda n, step: heal(family, 3) if progress.bad_blocks else None)
    assert family.clone.backing is not None
    assert family.reads_right()
    workshop.abandon(family.volume)


def test_a_bad_pointer_block_of_the_source_costs_its_mebibyte(workshop: Workshop) -> None:
    family = make_family(workshop)
    workshop.close(family.volume)
    volume = workshop.mount(family.volume.device)  # type: ignore[arg-type]
    backing = volume.lun("clone").below()
    backing.own_map(0)
    vbn = backing.inode.children[0].vbns[1]
    image: bytearray = volume.device.image  # type: ignore[attr-defined]
    image[vbn * BLOCK_BYTES + 8] ^= 1
    clone = volume.lun("clone")
    with pytest.raises(BadSource) as caught:
        drive(volume, steps_of(volume, clone)[0])
    assert caught.value.data["offset"] == 256 * BLOCK_BYTES
    steps, progress = steps_of(volume, clone, ignore_bad=True)
    with pytest.raises(PassedOver):
        drive(volume, steps)
    assert progress.bad_blocks == 256
    assert {block for block in own_blocks(Family(volume, clone, family.model)) if not 256 <= block < 512} == {
        block for block in GOLDEN_BLOCKS if not 256 <= block < 512
    }
    workshop.abandon(volume)


class Failing(MemoryDevice):
    """Some blocks cannot be read at all."""

    bad: frozenset[bytes] = frozenset()

    def pread(self, offset: int, view: object) -> None:
        flat = memoryview(view).cast("B")  # type: ignore[arg-type]
        super().pread(offset, flat)
        for at in range(0, len(flat), BLOCK_BYTES):
            if bytes(flat[at : at + BLOCK_BYTES]) in self.bad:
                raise OSError(5, "Input/output error")


@pytest.mark.parametrize("bad", [(1,), (0, 39), (255, 256)])
def test_blocks_that_the_disk_cannot_read_are_told_apart_from_their_neighbours(
    workshop: Workshop, bad: tuple[int, ...]
) -> None:
    family = make_family(workshop)
    workshop.close(family.volume)
    device = Failing(family.volume.device.image)  # type: ignore[attr-defined]
    device.bad = frozenset(pattern(block + 1, BLOCK_BYTES) for block in bad)
    volume = workshop.mount(device)
    clone = volume.lun("clone")
    with pytest.raises(BadSource) as caught:
        drive(volume, steps_of(volume, clone)[0])
    assert caught.value.data["offset"] == bad[0] * BLOCK_BYTES
    steps, progress = steps_of(volume, clone, ignore_bad=True)
    with pytest.raises(PassedOver):
        drive(volume, steps)
    assert progress.bad_blocks == len(bad)
    device.bad = frozenset()
    drive(volume, steps_of(volume, clone)[0])
    assert read_all(clone) == family.model.read(0, GOLDEN_BYTES)


def test_a_failed_job_says_why_keeps_its_request_and_goes_on_when_started_again(workshop: Workshop) -> None:
    async def main() -> None:
        family = make_family(workshop)
        spoil(family, 10, 600)
        async with daemon(family) as d:
            for options in (CloneOptions(), IGNORE):
                d.manager.start(d.service, "clone", options)
                status = await d.manager.wait(d.service, "clone")
                assert (status.state, status.requested) == (JobState.FAILED, True)
                assert "'clone'" in status.message
                assert "'base'" in status.message
                assert str(10 * BLOCK_BYTES) in status.message
            assert status.bad_blocks == 2
            failed = [event.data for event in d.events if event.kind == "lun.clone.failed"]
            assert [data["bad_blocks"] for data in failed] == [1, 2]
            assert failed[1]["offsets"] == [10 * BLOCK_BYTES, 600 * BLOCK_BYTES]
            heal(family, 10, 600)
            await d.run(["clone"])
            data = d.events[-1].data
            assert data["blocks_copied"] == 0
            # What a guest writes where the maps are not in memory is only found by the scan.
            assert data["blocks_present"] + data["blocks_skipped"] == len(GOLDEN_BLOCKS)
            assert family.reads_right()
        workshop.abandon(family.volume)

    asyncio.run(main())


def test_a_policy_may_be_changed_while_the_job_runs(workshop: Workshop) -> None:
    async def main() -> None:
        family = make_family(workshop)
        spoil(family, 767)
        async with daemon(family) as d:
            d.manager.start(d.service, "clone", CloneOptions(limit_bytes_s=BLOCK_BYTES))
            d.manager.set_options(d.service, "clone", IGNORE)
            status = await d.manager.wait(d.service, "clone")
            assert status.bad_blocks == 1
            assert "passed over" in status.message or "could not be read" in status.message
        workshop.abandon(family.volume)

    asyncio.run(main())


def test_damage_to_the_luns_own_pointers_is_never_taken_for_nothing_missing(workshop: Workshop) -> None:
    family = make_family(workshop)
    family.write(0, pattern(9, BLOCK_BYTES))
    checkpoint(family.volume)
    workshop.close(family.volume)
    volume = workshop.mount(family.volume.device)  # type: ignore[arg-type]
    clone = volume.lun("clone")
    clone.own_map(0)
    vbn = clone.inode.children[0].vbns[0]
    clone.cool()
    clone.inode.children[0].children.clear()
    volume.device.image[vbn * BLOCK_BYTES + 8] ^= 1  # type: ignore[attr-defined]
    with pytest.raises((BadSource, CorruptVolume)):
        drive(volume, steps_of(volume, clone)[0])
    with pytest.raises(PassedOver):
        drive(volume, steps_of(volume, clone, ignore_bad=True)[0])
    assert clone.backing is not None
    workshop.abandon(volume)
