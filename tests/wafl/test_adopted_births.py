"""Births in adopted pointer blocks are those of another LUN: nothing is private by them."""

from __future__ import annotations

from tests.support.volumes import MIB, Workshop, checkpoint, pattern, reclaim, take_snapshot
from tests.wafl.test_adopted_trees import BLOCK, GIB, PLACES, shared_clone
from tests.wafl.test_lun import read
from wafl import Lun, Volume
from wafl.recount import Recount


def lone_clone(workshop: Workshop) -> tuple[Volume, Lun]:
    """A clone that adopted subtrees, when everybody else who named them has gone."""
    volume = workshop.format(32 * MIB)
    golden = volume.create_lun("golden", GIB, reserved=False)
    for at in PLACES:
        golden.write(at, pattern(at, MIB))
    take_snapshot(volume, "s")
    clone = shared_clone(volume, "clone")
    volume.destroy_lun("golden")
    volume.delete_snapshot("s")
    reclaim(volume)
    reclaim(volume)
    assert volume.files.references.total == 0
    assert volume.files.reserve.since == 0
    clone.write(0, pattern(1, 10 * BLOCK))
    checkpoint(volume)
    assert clone.inode.private_blocks == 10
    return volume, clone


def test_what_was_adopted_and_is_unmapped_was_not_private(workshop: Workshop) -> None:
    """A pointer block that was adopted has births of another LUN: they say nothing of this one."""
    volume, clone = lone_clone(workshop)
    read(clone, 3 * MIB, MIB)
    clone.unmap(3 * MIB, MIB)
    assert clone.inode.private_blocks == 10
    checkpoint(volume)


def test_what_was_adopted_and_is_unmapped_was_not_counted_by_a_recount(workshop: Workshop) -> None:
    volume, clone = lone_clone(workshop)
    inode = clone.inode
    recount = Recount(inode, 0)
    recount.at, recount.found = 4, 10  # it has come past the range that goes
    read(clone, 3 * MIB, MIB)
    clone.unmap(3 * MIB, MIB)
    while recount.slice(volume.core):
        pass
    assert inode.private_blocks == 10
    checkpoint(volume)
