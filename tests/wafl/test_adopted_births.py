"""Births in adopted pointer blocks are those of another LUN: nothing is private by them.  And counts that could not be
raised while a disk did not read."""

from __future__ import annotations

import pytest

from tests.support.crash_device import MemoryDevice
from tests.support.volumes import MIB, Workshop, checkpoint, pattern, reclaim, take_snapshot
from tests.wafl.test_adopted_trees import BLOCK, GIB, PLACES, shared_clone
from tests.wafl.test_lun import read
from wafl import Lun, Volume
from wafl.bits import are_set
from wafl.format import COUNTS, POINTERS, REFERENCE_INODE
from wafl.offline import Image, Root
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


def row_on_disk(image: Image, block: int) -> int:
    """Where the row lies that has this block's count."""
    inodes = image.inodes(Root.of(image.fsinfo, "ifile_"), "")
    nodes = image.walk(Root.of(inodes[REFERENCE_INODE]), "")
    row = next(int(node.vbns[block // COUNTS]) for node in nodes if node.level == 1)
    assert row
    return row


def refuse_to_read(device: MemoryDevice, vbn: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pread = device.pread

    def failing(offset: int, view: memoryview) -> None:
        if offset == vbn * BLOCK:
            raise OSError(5, "the disk does not read")
        pread(offset, view)

    monkeypatch.setattr(device, "pread", failing)


def test_counts_that_could_not_be_raised_are_full_when_the_disk_reads_again(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who copies a pointer block cannot be refused: its children have one pointer more, counted or not."""
    volume = workshop.format(32 * MIB)
    golden = volume.create_lun("golden", GIB, reserved=False)
    for at in PLACES:
        golden.write(at, pattern(at, MIB))
    golden.share(900 * MIB, golden, 3 * MIB, BLOCK)
    golden.share(901 * MIB, golden, 300 * MIB, BLOCK)
    checkpoint(volume)
    volume.create_lun("between", 9 * MIB, reserved=False).write(0, pattern(1, 9 * MIB))
    golden.write(3 * MIB, pattern(3 * MIB, BLOCK))  # its pointer blocks are far from its data
    take_snapshot(volume, "s")
    shared_clone(volume, "clone")
    volume.delete_snapshot("s")
    reclaim(volume)
    volume = workshop.remount(volume)
    device: MemoryDevice = volume.device  # type: ignore[assignment]
    image = Image(device)
    inodes = image.inodes(Root.of(image.fsinfo, "ifile_"), "")
    leaf, data = next(
        (node.vbn, int(node.vbns[5]))
        for node in image.walk(Root.of(inodes[volume.lun("golden").inode.number]), "")
        if node.level == 1 and node.first_fbn == 3 * POINTERS
    )
    assert leaf // COUNTS != data // COUNTS
    refuse_to_read(device, row_on_disk(image, data), monkeypatch)
    volume.lun("clone").write(3 * MIB + 9 * BLOCK, pattern(4, BLOCK))
    assert volume.files.references.unfreed < 0
    checkpoint(volume)
    monkeypatch.undo()
    volume = workshop.mount(MemoryDevice(bytearray(device.image)))
    volume.destroy_lun("golden")
    reclaim(volume)
    clone = volume.lun("clone")
    held = clone.load_level_one_buf(3)[0]
    assert are_set(volume.core.allocator.active, held).all()
    assert read(clone, 3 * MIB, 9 * BLOCK) == pattern(3 * MIB, 9 * BLOCK)
    for each in list(workshop._mounted):
        workshop.abandon(each)


def test_counts_that_could_not_be_lowered_are_full_when_the_disk_reads_again(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A block whose last pointer goes then stays in use though nothing names it: nobody may take it for named."""
    volume = workshop.format(32 * MIB)
    golden = volume.create_lun("golden", 4 * MIB, reserved=False)
    golden.write(0, pattern(1, MIB))
    volume.create_lun("copy", 4 * MIB, reserved=False).share(0, golden, 0, MIB)
    checkpoint(volume)
    volume = workshop.remount(volume)
    device: MemoryDevice = volume.device  # type: ignore[assignment]
    references = volume.files.references
    held = volume.lun("copy").load_level_one_buf(0)[0]
    refuse_to_read(device, row_on_disk(Image(device), int(held[0])), monkeypatch)
    volume.lun("golden").unmap(0, 4 * BLOCK)
    checkpoint(volume)
    assert references.unfreed > 0
    monkeypatch.undo()
    volume = workshop.mount(MemoryDevice(bytearray(device.image)))
    assert volume.files.references.grant(held[:1]).most == 0
    assert read(volume.lun("copy"), 0, MIB) == pattern(1, MIB)
    for each in list(workshop._mounted):
        workshop.abandon(each)
