"""Whole subtrees with several owners: adopted by one pointer, parted when somebody changes something below it."""

from __future__ import annotations

import numpy as np
import pytest

from tests.support.crash_device import MemoryDevice
from tests.support.volumes import MIB, Workshop, checkpoint, pattern, problems, reclaim, take_snapshot
from tests.wafl.test_lun import read
from wafl import BLOCK_BYTES, Lun, Volume
from wafl.format import POINTERS, REFERENCE_INODE
from wafl.inode import node_for_writing
from wafl.offline import Image, Root
from wafl.repair import repair

BLOCK = BLOCK_BYTES
GIB = 1 << 30


@pytest.fixture
def volume(workshop: Workshop) -> Volume:
    """A LUN of height 3, with data at its beginning, in its middle, and behind it."""
    volume = workshop.format(32 * MIB)
    golden = volume.create_lun("golden", GIB)
    for at in (0, 3 * MIB, 300 * MIB, 700 * MIB):
        golden.write(at, pattern(at, MIB))
    take_snapshot(volume, "s")
    return volume


PLACES = (0, 3 * MIB, 300 * MIB, 700 * MIB)


def shared_clone(volume: Volume, name: str, snapshot: str = "s", parent: str = "golden") -> Lun:
    clone = volume.create_lun(name, backing=(snapshot, parent))
    adopt_all(clone)
    checkpoint(volume)
    clone.detach()
    checkpoint(volume)
    return clone


def adopt_all(clone: Lun) -> int:
    calls, index = 0, clone.next_missing(0)
    while index is not None:
        assert clone.adopt(index)
        calls, index = calls + 1, clone.next_missing(index + 1)
    return calls


def whole(lun: Lun) -> bool:
    return all(read(lun, at, MIB) == pattern(at, MIB) for at in PLACES)


def test_a_tree_that_has_not_changed_is_adopted_by_its_root(volume: Volume) -> None:
    before = volume.space().active
    clone = volume.create_lun("clone", backing=("s", "golden"))
    assert adopt_all(clone) == 1
    checkpoint(volume)
    assert volume.files.references.total == 1
    assert volume.space().active - before <= 4 * BLOCK
    assert whole(clone)
    assert clone.used_bytes == 0
    clone.detach()


def test_below_what_has_changed_the_rest_is_adopted_in_the_largest_pieces(volume: Volume) -> None:
    volume.lun("golden").write(300 * MIB + 5 * BLOCK, pattern(9, BLOCK))
    clone = volume.create_lun("clone", backing=("s", "golden"))
    clone.write(300 * MIB, pattern(8, BLOCK))
    assert adopt_all(clone) == 2  # two level-2 blocks at once, and the blocks of the level-1 buffer that has changed
    assert volume.files.references.total == 2 + POINTERS - 2  # one block is in the snapshot alone, one the clone's own
    clone.write(300 * MIB, pattern(300 * MIB, MIB)[:BLOCK])
    assert whole(clone)


@pytest.mark.parametrize("first", ["golden", "clone"])
@pytest.mark.parametrize("at", [0, 300 * MIB + 8 * BLOCK])
def test_whoever_writes_first_gets_pointer_blocks_of_its_own(volume: Volume, first: str, at: int) -> None:
    clone = shared_clone(volume, "clone")
    luns = {"golden": volume.lun("golden"), "clone": clone}
    second = "clone" if first == "golden" else "golden"
    for number, name in enumerate((first, second), 1):
        luns[name].write(at, pattern(number, BLOCK))
        checkpoint(volume)
        assert read(luns[name], at, BLOCK) == pattern(number, BLOCK)
    assert read(luns[first], at, BLOCK) == pattern(1, BLOCK)
    luns[first].write(700 * MIB, pattern(5, MIB))
    assert read(luns[second], 700 * MIB, MIB) == pattern(700 * MIB, MIB)


@pytest.mark.parametrize("order", [("golden", "one", "two"), ("two", "golden", "one"), ("one", "two", "golden")])
@pytest.mark.parametrize("written", [False, True])
def test_when_the_last_owner_goes_everything_comes_back(
    workshop: Workshop, order: tuple[str, ...], written: bool
) -> None:
    volume = workshop.format(32 * MIB)
    checkpoint(volume)
    volume.create_lun("golden", GIB).write(0, pattern(0, BLOCK))
    volume.destroy_lun("golden")
    reclaim(volume)
    empty = volume.space().active
    golden = volume.create_lun("golden", GIB)
    for at in PLACES:
        golden.write(at, pattern(at, MIB))
    take_snapshot(volume, "s")
    for name in ("one", "two"):
        clone = shared_clone(volume, name)
        if written:
            clone.write(3 * MIB, pattern(7, 9 * BLOCK))
            clone.unmap(290 * MIB, 20 * MIB)
    volume.delete_snapshot("s")
    for name in order:
        assert volume.lun(name).size_bytes == GIB
        volume.destroy_lun(name)
        reclaim(volume)
        for other in volume.luns():
            assert read(other, 700 * MIB, MIB) == pattern(700 * MIB, MIB)
    assert volume.files.references.total == 0
    assert volume.space().active - empty <= 4 * BLOCK  # the file of counts


def test_what_is_unmapped_of_an_adopted_tree_goes_from_this_lun_alone(volume: Volume) -> None:
    clone = shared_clone(volume, "clone")
    clone.unmap(0, 512 * MIB)
    checkpoint(volume)
    reclaim(volume)
    assert read(clone, 300 * MIB, MIB) == bytes(MIB)
    assert read(clone, 700 * MIB, MIB) == pattern(700 * MIB, MIB)
    assert whole(volume.lun("golden"))
    volume.lun("golden").unmap(0, GIB)
    reclaim(volume)
    assert read(clone, 700 * MIB, MIB) == pattern(700 * MIB, MIB)


@pytest.mark.parametrize("size", [MIB, 20 * MIB, 3 * GIB])
def test_trees_of_different_heights(workshop: Workshop, size: int) -> None:
    """A LUN that has shrunk keeps its height, its clone has that of its size; and a clone may have grown."""
    volume = workshop.format(32 * MIB)
    golden = volume.create_lun("golden", GIB)
    golden.write(0, pattern(1, MIB))
    volume.resize_lun("golden", min(size, GIB))
    take_snapshot(volume, "s")
    clone = volume.create_lun("clone", backing=("s", "golden"))
    if size > GIB:
        volume.resize_lun("clone", 300 * GIB)
    assert adopt_all(clone) == 1
    checkpoint(volume)
    clone.detach()
    golden.write(0, pattern(2, MIB))
    clone.write(5 * BLOCK, pattern(3, BLOCK))
    assert read(clone, 0, 5 * BLOCK) == pattern(1, 5 * BLOCK)
    assert read(clone, 5 * BLOCK, BLOCK) == pattern(3, BLOCK)


def test_a_clone_of_a_shared_clone(workshop: Workshop, volume: Volume) -> None:
    clone = shared_clone(volume, "clone")
    clone.write(0, pattern(3, MIB))
    take_snapshot(volume, "t")
    grandchild = volume.create_lun("grandchild", backing=("t", "clone"))
    assert grandchild.missing_blocks() >= 4 * POINTERS  # never too low, though the clone counts none of it as its own
    adopt_all(grandchild)
    checkpoint(volume)
    grandchild.detach()
    for name in ("golden", "clone"):
        volume.destroy_lun(name)
    checkpoint(volume)
    for name in ("s", "t"):
        volume.delete_snapshot(name)
    reclaim(volume)
    volume = workshop.remount(volume)
    grandchild = volume.lun("grandchild")
    assert read(grandchild, 0, MIB) == pattern(3, MIB)
    assert read(grandchild, 700 * MIB, MIB) == pattern(700 * MIB, MIB)


def test_a_tree_that_only_waits_to_be_freed_is_not_adopted_whole(volume: Volume) -> None:
    """The active map still has its blocks, and nothing names them any more."""
    volume.lun("golden").write(3 * MIB, pattern(8, MIB))
    clone = volume.create_lun("clone", backing=("s", "golden"))
    adopt_all(clone)
    checkpoint(volume)
    clone.detach()
    checkpoint(volume)
    volume.delete_snapshot("s")
    reclaim(volume)
    assert whole(clone)


def test_counts_that_are_full_are_never_lowered_and_repair_counts_again(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = workshop.format(32 * MIB)
    golden = volume.create_lun("golden", GIB)
    golden.write(0, pattern(1, BLOCK))
    for place in range(1, 5):
        golden.share(place * BLOCK, golden, 0, BLOCK)
    checkpoint(volume)
    monkeypatch.setattr("wafl.references.MAX_COUNT", 6)
    monkeypatch.setattr("wafl.check_files.MAX_COUNT", 6)
    take_snapshot(volume, "s")
    clone = shared_clone(volume, "clone")
    clone.write(MIB - BLOCK, pattern(2, BLOCK))  # a level-1 buffer of its own: its five pointers fill the count
    checkpoint(volume)
    assert [str(finding) for finding in problems(volume.device)] == []  # type: ignore[arg-type]
    for name in ("golden", "clone"):
        volume.lun(name).unmap(0, 5 * BLOCK)
    volume.delete_snapshot("s")
    reclaim(volume)
    volume.close()
    device: MemoryDevice = volume.device  # type: ignore[assignment]
    (found,) = problems(device)
    assert "full for blocks" in found.what
    assert any("reference counts" in line for line in repair(device))
    assert problems(device) == []
    workshop.abandon(volume)


def test_what_a_clone_of_a_shared_clone_has_already_is_not_told_too_low(volume: Volume) -> None:
    shared_clone(volume, "clone")
    take_snapshot(volume, "t")
    again = volume.create_lun("again", backing=("t", "clone"))
    assert again.backed_blocks() == again.missing_blocks() >= 4 * POINTERS


def test_a_pointer_block_whose_count_cannot_be_read_is_treated_as_shared(workshop: Workshop, volume: Volume) -> None:
    shared_clone(volume, "clone")
    volume.delete_snapshot("s")
    reclaim(volume)
    volume = workshop.remount(volume)
    device = MemoryDevice(bytearray(volume.device.image))  # type: ignore[attr-defined]
    image = Image(device)
    root = Root.of(image.inodes(Root.of(image.fsinfo, "ifile_"), "")[REFERENCE_INODE])
    for node in image.walk(root, ""):
        for vbn in node.vbns[node.data()].tolist() if node.level == 1 else ():
            device.image[vbn * BLOCK + 9] ^= 1
    volume = workshop.mount(device)
    clone, golden = volume.lun("clone"), volume.lun("golden")
    clone.write(300 * MIB, pattern(4, MIB))
    checkpoint(volume)
    golden.unmap(0, GIB)
    volume.reclaim_now()
    volume.create_lun("filler", 8 * MIB).write(0, pattern(5, 8 * MIB))
    assert read(clone, 700 * MIB, MIB) == pattern(700 * MIB, MIB)
    assert read(clone, 0, MIB) == pattern(0, MIB)
    workshop.abandon(volume)


# --- a tebibyte -------------------------------------------------------------------------------------------------------


def tebibyte(volume: Volume) -> Lun:
    """A LUN of 1 TiB, all of it mapped: one level-1 buffer, 256 pointers to it in one level-2 buffer, and so on."""
    lun, core, references = volume.create_lun("tebibyte", 1 << 40), volume.core, volume.files.references
    lun.write(0, pattern(1, MIB))
    references.make()
    checkpoint(volume)
    for level, children in ((2, POINTERS), (3, POINTERS), (4, 16)):
        node = node_for_writing(core, lun.inode, level, 0)
        vbn, crc = node.vbns[0], node.crcs[0]
        references.grant(np.full(children - 1, vbn, np.uint64)).use()
        core.tree_blocks += children - 1
        node.vector()[1:children], node.crc_vector()[1:children] = vbn, crc
        lun.inode.adopted = True
        checkpoint(volume)
    lun.cool()
    return lun


def counted_reads(volume: Volume, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Where the volume reads its device, from now on."""
    offsets: list[int] = []
    pread = volume.device.pread

    def counted(offset: int, view: memoryview) -> None:
        offsets.append(offset)
        pread(offset, view)

    monkeypatch.setattr(volume.device, "pread", counted)
    return offsets


def test_a_tebibyte_is_shared_in_a_few_looks(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = workshop.format(64 * MIB)
    lun = tebibyte(volume)
    assert read(lun, 777 * GIB + 5 * BLOCK, BLOCK) == pattern(1, MIB)[5 * BLOCK : 6 * BLOCK]
    take_snapshot(volume, "s")
    lun.write(500 * GIB, pattern(2, BLOCK))  # so that its root is another one now
    volume = workshop.remount(volume)
    clone = volume.create_lun("clone", backing=("s", "tebibyte"))
    reads = counted_reads(volume, monkeypatch)
    assert adopt_all(clone) <= 4
    checkpoint(volume)
    clone.detach()
    checkpoint(volume)
    assert len(reads) < 100
    monkeypatch.undo()
    assert read(clone, 500 * GIB, BLOCK) == pattern(1, BLOCK)
    assert read(volume.lun("tebibyte"), 500 * GIB, BLOCK) == pattern(2, BLOCK)
    clone.write((1 << 40) - BLOCK, pattern(3, BLOCK))
    assert read(clone, (1 << 40) - 2 * BLOCK, BLOCK) == pattern(1, MIB)[-2 * BLOCK : -BLOCK]
