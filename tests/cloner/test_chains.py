"""Clones of clones, LUNs larger than what they stand on, jobs that have nothing to do: the cases that QEMU tests of its
image streaming, as far as there is such a thing here.
"""

from __future__ import annotations

import asyncio

from cloner import JobState
from tests.cloner.test_manager import daemon
from tests.support.clones import GOLDEN_BLOCKS, GOLDEN_BYTES, Family, drive, make_family, read_all, steps_of
from tests.support.crash_clones import own_blocks
from tests.support.volume_model import ModelLun
from tests.support.volumes import MIB, Workshop, checkpoint, pattern, take_snapshot
from wafl import BLOCK_BYTES, Lun


def chain(workshop: Workshop, length: int) -> tuple[Family, list[tuple[Lun, ModelLun]]]:
    """Each a clone of the one before, with blocks of its own in which it differs."""
    family = make_family(workshop, 48 * MIB)
    links = [(family.clone, family.model)]
    for number in range(1, length):
        lun, model = links[-1]
        for at in (number * 20, number * 20 + 300):
            data = pattern(1000 + number + at, 10 * BLOCK_BYTES)
            lun.write(at * BLOCK_BYTES, data)
            model.write(at * BLOCK_BYTES, data)
        lun.unmap((number * 20 + 12) * BLOCK_BYTES, 3 * BLOCK_BYTES)
        model.unmap((number * 20 + 12) * BLOCK_BYTES, 3 * BLOCK_BYTES)
        take_snapshot(family.volume, f"s{number}")
        child = family.volume.create_lun(f"link{number}", None, backing=(f"s{number}", lun.name))
        links.append((child, model.copy()))
    checkpoint(family.volume)
    return family, links


def right(links: list[tuple[Lun, ModelLun]]) -> bool:
    return all(read_all(lun) == model.read(0, model.size_bytes) for lun, model in links)


def test_afterwards_a_lun_has_blocks_exactly_where_what_it_stood_on_had(workshop: Workshop) -> None:
    family = make_family(workshop)
    golden = own_blocks(family.volume.lun("golden"))
    drive(family.volume, steps_of(family.volume, family.clone)[0])
    assert own_blocks(family.clone).keys() == golden.keys() == set(GOLDEN_BLOCKS)


def test_the_last_of_a_chain_takes_from_every_link_and_leaves_the_others_alone(workshop: Workshop) -> None:
    family, links = chain(workshop, 4)
    before = [own_blocks(lun) for lun, _ in links[:-1]]
    last = links[-1][0]
    drive(family.volume, steps_of(family.volume, last)[0])
    assert last.backing is None
    assert [own_blocks(lun) for lun, _ in links[:-1]] == before
    assert all(lun.backing is not None for lun, _ in links[:-1])
    assert right(links)


def test_one_in_the_middle_of_a_chain_is_cloned_and_its_children_read_the_same(workshop: Workshop) -> None:
    family, links = chain(workshop, 4)
    drive(family.volume, steps_of(family.volume, links[1][0])[0])
    assert links[1][0].backing is None
    assert right(links)


def test_all_links_of_a_chain_are_cloned_at_once(workshop: Workshop) -> None:
    family, links = chain(workshop, 5)

    async def main() -> None:
        async with daemon(family) as d:
            await d.run([lun.name for lun, _ in links])
            assert all(status.state is JobState.COMPLETED for status in d.manager.show())
            assert all(lun.backing is None for lun, _ in links)
            assert right(links)

    asyncio.run(main())
    # With the clones ended nothing holds the snapshots any more but snapshots taken of clones before.
    for number in (4, 3, 2, 1):
        family.volume.delete_snapshot(f"s{number}")
        checkpoint(family.volume)
    family.volume.delete_snapshot("base")
    assert right(links)


def test_a_clone_that_misses_nothing_copies_nothing(workshop: Workshop) -> None:
    family = make_family(workshop)
    family.write(0, pattern(5, GOLDEN_BYTES))
    own = own_blocks(family.clone)
    steps, progress = steps_of(family.volume, family.clone)
    drive(family.volume, steps)
    assert progress.copied_blocks == 0
    assert own_blocks(family.clone) == own
    assert family.clone.backing is None


def test_a_clone_of_an_empty_lun_stays_empty(workshop: Workshop) -> None:
    family = make_family(workshop, blocks=[])
    steps, progress = steps_of(family.volume, family.clone)
    drive(family.volume, steps)
    assert (progress.copied_blocks, progress.total_blocks, progress.percent) == (0, 0, 100.0)
    assert own_blocks(family.clone) == {}
    assert family.reads_right()


def test_a_lun_larger_than_what_it_stands_on_is_cloned_up_to_there(workshop: Workshop) -> None:
    family = make_family(workshop)
    family.volume.resize_lun("clone", 300 * GOLDEN_BYTES)
    family.model.resize(300 * GOLDEN_BYTES)
    far = 299 * GOLDEN_BYTES
    family.write(far, pattern(8, BLOCK_BYTES))
    steps, progress = steps_of(family.volume, family.clone)
    drive(family.volume, steps)
    assert progress.copied_blocks == len(GOLDEN_BLOCKS)
    shown = bytearray(GOLDEN_BYTES)
    for offset in (0, GOLDEN_BYTES, far):
        family.clone.read_into(offset, memoryview(shown))
        assert shown == family.model.read(offset, GOLDEN_BYTES)


def test_a_lun_smaller_than_what_it_stands_on_takes_no_more_than_it_shows(workshop: Workshop) -> None:
    family = make_family(workshop)
    small = family.volume.create_lun("small", 41 * BLOCK_BYTES + 512, backing=("base", "golden"))
    steps, progress = steps_of(family.volume, small)
    drive(family.volume, steps)
    assert progress.copied_blocks <= 41
    assert read_all(small) == family.golden.read(0, 41 * BLOCK_BYTES + 512)
    family.volume.resize_lun("small", GOLDEN_BYTES)
    assert read_all(small)[42 * BLOCK_BYTES :] == bytes(GOLDEN_BYTES - 42 * BLOCK_BYTES)
