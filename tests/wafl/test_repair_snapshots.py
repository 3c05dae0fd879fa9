"""Repair of what snapshots have of their own: rows of maps and counts; and snapshots made while counts could not be
read."""

from __future__ import annotations

import pytest

from tests.support.crash_device import CrashDevice, Leftover, MemoryDevice
from tests.support.volumes import MIB, Workshop, checkpoint, errors, pattern, problems, sharing_volume
from tests.wafl.test_repair import contents, spoil
from wafl import BLOCK_BYTES, Volume
from wafl.format import ACTIVE_MAP_INODE, COUNTS, FIRST_DATA_VBN, REFERENCE_INODE, EntryState, decode_text
from wafl.offline import Fields, Image, Root
from wafl.repair import repair

BLOCK = BLOCK_BYTES


@pytest.fixture(scope="module")
def image() -> bytes:
    """Shared blocks in two snapshots, one of which is being deleted."""
    device, volume = sharing_volume(8 * MIB, log_bytes=0)
    a, b = volume.lun("a"), volume.lun("b")
    volume.request_snapshot("going")
    checkpoint(volume)
    b.write(MIB, pattern(3, 7 * BLOCK))
    a.unmap(0, 20 * BLOCK)
    checkpoint(volume)
    volume.delete_snapshot("going")
    volume.close()
    assert problems(device) == []
    return bytes(device.image)


@pytest.fixture
def device(image: bytes) -> MemoryDevice:
    return MemoryDevice(bytearray(image))


def snapshot(device: MemoryDevice, name: str) -> dict[int, Fields]:
    """The inodes of a snapshot."""
    image = Image(device)
    entry = next(entry for entry in image.snapshots() if decode_text(entry["name"]) == name)
    return image.inodes(Root.of(entry, "ifile_"), "")


def rows(device: MemoryDevice, inode: Fields) -> list[int]:
    """The blocks of a file below its level-1 blocks."""
    nodes = Image(device).walk(Root.of(inode), "")
    return [vbn for node in nodes if node.level == 1 for vbn in node.vbns[node.vbns >= FIRST_DATA_VBN].tolist()]


@pytest.mark.parametrize(("number", "word"), [(ACTIVE_MAP_INODE, "map"), (REFERENCE_INODE, "reference counts")])
def test_a_row_of_a_snapshot_that_cannot_be_read_is_written_again(
    device: MemoryDevice, image: bytes, number: int, word: str
) -> None:
    before = contents(device)
    damaged = rows(device, snapshot(device, "s")[number])
    assert damaged
    for vbn in damaged:
        spoil(device, vbn)
    assert errors(device)
    told = repair(device, dry_run=True)
    assert errors(device)
    assert repair(device) == told
    assert sum(f"a row of the {word} of snapshot s written again" in line for line in told) == len(damaged)
    assert problems(device) == []
    for vbn in damaged:
        assert device.image[vbn * BLOCK : (vbn + 1) * BLOCK] == image[vbn * BLOCK : (vbn + 1) * BLOCK]
    assert contents(device) == before
    assert repair(device) == []
    volume = Volume.mount(device)
    volume.delete_snapshot("s")
    volume.reclaim_now()
    volume.close()
    assert problems(device) == []


@pytest.mark.parametrize("number", [ACTIVE_MAP_INODE, REFERENCE_INODE])
def test_a_crash_while_a_row_is_written_leaves_no_more_damage(device: MemoryDevice, number: int) -> None:
    before = contents(device)
    for vbn in rows(device, snapshot(device, "s")[number]):
        spoil(device, vbn)
    crashing = CrashDevice(image=device.image)
    repair(crashing)
    journal = crashing.journal
    for state in journal.states(list(journal.points()), list(Leftover), seed=1):
        left = MemoryDevice(bytearray(state.image))
        repair(left)
        assert problems(left) == [], state
        assert contents(left) == before, state


def test_a_row_whose_contents_do_not_fit_its_checksum_is_left(device: MemoryDevice) -> None:
    """Where the snapshot's trees say something else, nobody knows what was there."""
    inodes = snapshot(device, "s")
    (row,) = rows(device, inodes[ACTIVE_MAP_INODE])
    leaf = next(node.vbn for node in Image(device).walk(Root.of(inodes[ACTIVE_MAP_INODE]), "") if node.level == 1)
    device.image[leaf * BLOCK + 2048] ^= 1  # the checksum in the pointer to the row
    before = device.image[row * BLOCK : (row + 1) * BLOCK]
    repair(device)
    assert device.image[row * BLOCK : (row + 1) * BLOCK] == before


@pytest.mark.parametrize("part", ["map", "root of the map", "inode file"])
def test_a_snapshot_that_was_being_deleted_and_has_no_map_any_more_is_gone(device: MemoryDevice, part: str) -> None:
    before = contents(device)
    image = Image(device)
    entry = next(entry for entry in image.snapshots() if entry["state"] == EntryState.DELETING)
    inode = snapshot(device, "going")[ACTIVE_MAP_INODE]
    spoil(device, {
        "map": rows(device, inode)[0], "root of the map": inode["root_vbn"], "inode file": entry["ifile_root_vbn"],
    }[part])  # fmt: skip
    crashing = CrashDevice(image=device.image)
    assert any("snapshot going" in line and "gone" in line for line in repair(crashing))
    journal = crashing.journal
    for state in journal.states(list(journal.points()), list(Leftover), seed=1):
        left = MemoryDevice(bytearray(state.image))
        repair(left)
        assert problems(left) == [], state
        assert contents(left) == before, state
    assert [decode_text(entry["name"]) for entry in Image(crashing).snapshots()] == ["s"]
    used = Volume.mount(crashing).space()
    whole = Volume.mount(MemoryDevice(bytearray(image.device.image)))  # type: ignore[attr-defined]
    assert used.snapshots <= whole.space().snapshots


def test_snapshots_made_while_counts_cannot_be_read_are_whole_after_a_repair(
    workshop: Workshop, device: MemoryDevice
) -> None:
    """Also those that hold what could not be freed then."""
    (row,) = rows(device, Image(device).inodes(Root.of(Image(device).fsinfo, "ifile_"), "")[REFERENCE_INODE])
    spoil(device, row)
    volume = workshop.mount(device)
    a, b = volume.lun("a"), volume.lun("b")
    a.write(0, pattern(4, BLOCK))
    b.unmap(0, 3 * BLOCK)
    volume.core.allocator.apply_frees()
    assert volume.files.references.unfreed
    a.write(9 * BLOCK, pattern(6, 30 * BLOCK))
    volume.request_snapshot("with blocks that nothing names")
    checkpoint(volume)
    a.write(0, pattern(5, BLOCK))  # nobody knows whether its pointer block is shared: what that names counts one more
    volume.request_snapshot("with counts that are too high")
    checkpoint(volume)
    workshop.abandon(volume)
    volume.close()
    before = contents(device)
    told = [str(finding) for finding in problems(device)]
    assert any("warning" in line and "full for blocks" in line for line in told)
    repair(device)
    assert problems(device) == []
    assert contents(device) == before
    again = workshop.mount(device)
    for name in sorted(again.snapshot_names()):
        again.delete_snapshot(name)
    for lun in list(again.luns()):
        again.destroy_lun(lun.name)
    again.reclaim_now()
    assert again.space().active <= 16 * BLOCK


def test_counts_of_blocks_that_are_not_in_use_do_not_become_full(workshop: Workshop, device: MemoryDevice) -> None:
    """What takes their places later comes back like anything else."""
    (row,) = rows(device, Image(device).inodes(Root.of(Image(device).fsinfo, "ifile_"), "")[REFERENCE_INODE])
    spoil(device, row)
    volume = workshop.mount(device)
    references = volume.files.references
    volume.lun("a").write(20 * BLOCK, pattern(4, BLOCK))
    checkpoint(volume)
    lost = references.unfreed
    assert lost
    new = volume.create_lun("new", MIB)
    for seed in range(3):
        new.write(0, pattern(seed, MIB))
        checkpoint(volume)
    assert int(new.load_level_one_buf(0)[0].min()) < COUNTS
    assert references.unfreed - lost < 8  # pointer blocks, whose first places count as shared
    workshop.abandon(volume)
