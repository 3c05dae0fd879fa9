"""Reading, writing, unmapping and resizing LUNs."""

from __future__ import annotations

import pytest

from tests.support.volumes import MIB, Workshop, checkpoint, pattern, take_snapshot
from wafl import (
    BLOCK_BYTES,
    CorruptVolume,
    InvalidName,
    InvalidSize,
    Lun,
    NameTaken,
    NoSuchLun,
    View,
    Volume,
)

TIB = 1 << 40


def read(lun: View, offset: int, length: int) -> bytes:
    found = bytearray(length)
    lun.read_into(offset, memoryview(found))
    return bytes(found)


@pytest.fixture
def volume(workshop: Workshop) -> Volume:
    return workshop.format(32 * MIB)


@pytest.mark.parametrize("length", [512, 4096, 8192, 5 * 4096 + 512, MIB, 3 * MIB - 1024])
@pytest.mark.parametrize("offset", [0, 512, 4096, MIB - 4096, MIB - 512, 2 * MIB + 3584])
def test_what_was_written_is_read(volume: Volume, offset: int, length: int) -> None:
    lun = volume.create_lun("a", 8 * MIB)
    lun.write(0, pattern(1, 8 * MIB))
    lun.write(offset, pattern(2, length))
    expected = bytearray(pattern(1, 8 * MIB))
    expected[offset : offset + length] = pattern(2, length)
    assert read(lun, 0, 8 * MIB) == expected


def test_what_was_never_written_reads_zeros(volume: Volume) -> None:
    lun = volume.create_lun("a", 16 * TIB)
    assert read(lun, 16 * TIB - 3 * BLOCK_BYTES, 3 * BLOCK_BYTES) == bytes(3 * BLOCK_BYTES)


def test_a_write_at_the_end_of_the_largest_lun_is_read_back_after_a_mount(workshop: Workshop, volume: Volume) -> None:
    lun = volume.create_lun("a", 16 * TIB)
    lun.write(16 * TIB - 8192, pattern(1, 8192))
    volume = workshop.remount(volume)
    assert read(volume.lun("a"), 16 * TIB - 8192, 8192) == pattern(1, 8192)


def test_a_nowait_read_equals_a_waiting_one(volume: Volume) -> None:
    lun = volume.create_lun("a", 4 * MIB)
    lun.write(4096, pattern(1, MIB))
    for offset, length in ((0, 4096), (4096, 4096), (0, MIB), (512, 1024), (MIB - 8192, 16384)):
        view = memoryview(bytearray(length))
        assert lun.read_into_nowait(offset, view)
        assert view == read(lun, offset, length)


def test_reading_and_writing_past_the_end_is_refused(volume: Volume) -> None:
    lun = volume.create_lun("a", BLOCK_BYTES + 512)
    for offset, length in ((BLOCK_BYTES, BLOCK_BYTES), (2 * BLOCK_BYTES, 512), (-512, 512)):
        with pytest.raises(InvalidSize):
            lun.write(offset, bytes(length))
        with pytest.raises(InvalidSize):
            lun.read_into(offset, memoryview(bytearray(length)))
        with pytest.raises(InvalidSize):
            lun.unmap(offset, length)


def test_the_last_partial_block_of_a_lun_is_written_and_read(workshop: Workshop, volume: Volume) -> None:
    lun = volume.create_lun("a", BLOCK_BYTES + 1024)
    lun.write(BLOCK_BYTES, pattern(1, 1024))
    volume = workshop.remount(volume)
    assert read(volume.lun("a"), BLOCK_BYTES, 1024) == pattern(1, 1024)


def test_a_contiguous_write_is_one_run_on_the_device(volume: Volume) -> None:
    lun = volume.create_lun("a", 4 * MIB)
    lun.write(0, pattern(1, 256 << 10))
    vbns, _ = lun.load_level_one_buf(0)
    assert (vbns[1:64] - vbns[:63] == 1).all()


# --- unmap ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [4 * MIB, 300 * MIB, 4 * MIB + 512])
def test_unmap_of_everything_reads_zeros_and_gives_all_back(volume: Volume, size: int) -> None:
    lun = volume.create_lun("a", size)
    lun.write(0, pattern(1, 2 * MIB + 512))
    lun.write(size - 512, pattern(2, 512))
    checkpoint(volume)
    lun.unmap(0, size)
    assert read(lun, 0, 3 * MIB) == bytes(3 * MIB)
    assert read(lun, size - 512, 512) == bytes(512)
    volume.reclaim_now()
    assert lun.used_bytes == 0


def test_unmap_of_parts_of_blocks_zeroes_them_and_keeps_the_neighbours(volume: Volume) -> None:
    lun = volume.create_lun("a", MIB)
    lun.write(0, pattern(1, 4 * BLOCK_BYTES))
    lun.unmap(BLOCK_BYTES - 512, 2 * BLOCK_BYTES)
    expected = bytearray(pattern(1, 4 * BLOCK_BYTES))
    expected[BLOCK_BYTES - 512 : 3 * BLOCK_BYTES - 512] = bytes(2 * BLOCK_BYTES)
    assert read(lun, 0, 4 * BLOCK_BYTES) == expected


def test_unmap_of_the_middle_of_the_last_partial_block(volume: Volume) -> None:
    lun = volume.create_lun("a", BLOCK_BYTES + 2048)
    lun.write(BLOCK_BYTES, pattern(1, 2048))
    lun.unmap(BLOCK_BYTES + 512, 512)
    expected = bytearray(pattern(1, 2048))
    expected[512:1024] = bytes(512)
    assert read(lun, BLOCK_BYTES, 2048) == expected


def test_unmap_across_two_half_blocks_with_no_whole_one_between(volume: Volume) -> None:
    lun = volume.create_lun("a", MIB)
    lun.write(0, pattern(1, 2 * BLOCK_BYTES))
    lun.unmap(BLOCK_BYTES - 2048, 4096)
    assert read(lun, BLOCK_BYTES - 2048, 4096) == bytes(4096)
    assert read(lun, 0, BLOCK_BYTES - 2048) == pattern(1, 2 * BLOCK_BYTES)[: BLOCK_BYTES - 2048]


def test_unmap_of_a_huge_range_reads_no_leaf(volume: Volume) -> None:
    lun = volume.create_lun("a", 16 * TIB)
    for index in range(64):
        lun.write(index * 200 * MIB, pattern(index, 4096))
    checkpoint(volume)
    volume.core.cool()
    before = volume.dirty_blocks
    lun.unmap(4096, 16 * TIB - 8192)
    # Both edges of the range down to a leaf, and graveyards: a multiple of the height, whatever the range.
    assert volume.dirty_blocks - before < 60
    assert read(lun, 0, 4096) == pattern(0, 4096)
    assert read(lun, 200 * MIB, 4096) == bytes(4096)
    volume.reclaim_now()
    assert lun.used_bytes == 4096


def test_writing_below_a_zero_of_a_higher_level_expands_it(workshop: Workshop, volume: Volume) -> None:
    parent = volume.create_lun("a", 600 * MIB)
    for place in (0, 100 * MIB, 300 * MIB, 599 * MIB):
        parent.write(place, pattern(place, 4096))
    take_snapshot(volume, "s")
    clone = volume.create_lun("c", backing=("s", "a"))
    clone.unmap(0, 600 * MIB)
    clone.write(100 * MIB + 8192, pattern(9, 4096))
    volume = workshop.remount(volume)
    clone = volume.lun("c")
    assert read(clone, 100 * MIB + 8192, 4096) == pattern(9, 4096)
    for place in (0, 100 * MIB, 300 * MIB, 599 * MIB):
        assert read(clone, place, 4096) == bytes(4096)


def test_unmapped_subtrees_survive_a_crash_in_the_middle_of_their_reclaim(workshop: Workshop, volume: Volume) -> None:
    lun = volume.create_lun("a", 300 * MIB)
    for index in range(0, 300, 3):
        lun.write(index * MIB, pattern(index, 8192))
    checkpoint(volume)
    lun.unmap(MIB, 299 * MIB)
    slices = volume.reclaim()
    next(slices)
    checkpoint(volume)
    volume = workshop.crash(volume)
    assert volume.reclaim_pending
    volume.reclaim_now()
    assert volume.lun("a").used_bytes == 8192


def test_a_destroyed_lun_is_reclaimed_after_a_crash(workshop: Workshop, volume: Volume) -> None:
    volume.create_lun("a", 64 * MIB).write(0, pattern(1, 4 * MIB))
    checkpoint(volume)
    volume.destroy_lun("a")
    checkpoint(volume)
    volume = workshop.crash(volume)
    assert volume.luns() == []
    volume.reclaim_now()
    assert volume.space().active < MIB


# --- resize -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("small", [512, BLOCK_BYTES, BLOCK_BYTES + 512, MIB + 1024])
def test_shrink_then_grow_reads_zeros(workshop: Workshop, volume: Volume, small: int) -> None:
    lun = volume.create_lun("a", 4 * MIB)
    lun.write(0, pattern(1, 4 * MIB))
    checkpoint(volume)
    volume.resize_lun("a", small)
    volume.resize_lun("a", 300 * MIB)
    volume = workshop.remount(volume)
    lun = volume.lun("a")
    assert read(lun, 0, 4 * MIB) == pattern(1, 4 * MIB)[:small] + bytes(4 * MIB - small)
    volume.reclaim_now()
    assert lun.used_bytes == -(-small // BLOCK_BYTES) * BLOCK_BYTES


def test_growing_over_a_height_keeps_what_is_there(workshop: Workshop, volume: Volume) -> None:
    lun = volume.create_lun("a", MIB)
    lun.write(0, pattern(1, MIB))
    volume.resize_lun("a", 2 * TIB)
    lun.write(TIB, pattern(2, 4096))
    volume = workshop.remount(volume)
    lun = volume.lun("a")
    assert read(lun, 0, MIB) == pattern(1, MIB)
    assert read(lun, TIB, 4096) == pattern(2, 4096)


def test_a_size_of_half_a_logical_block_or_none_is_refused(volume: Volume) -> None:
    volume.create_lun("a", MIB)
    for size in (0, -512, 513, 32 * TIB):
        with pytest.raises(InvalidSize):
            volume.resize_lun("a", size)
        with pytest.raises(InvalidSize):
            volume.create_lun("b", size)
    with pytest.raises(InvalidSize):
        volume.create_lun("b", 512, block_bytes=4096)
    assert [lun.name for lun in volume.luns()] == ["a"]


# --- names and attributes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "/a", "a/", "a//b", "a/..", ".snapshot/x", "x" * 256, "a\n", " a", "\ud800"])
def test_a_bad_lun_name_is_refused(volume: Volume, name: str) -> None:
    with pytest.raises(InvalidName):
        volume.create_lun(name, MIB)


def test_a_lun_name_of_255_bytes_of_utf8_survives_a_mount(workshop: Workshop, volume: Volume) -> None:
    name = "ü" * 127 + "x"
    volume.create_lun(name, MIB)
    assert [lun.name for lun in workshop.remount(volume).luns()] == [name]


def test_a_taken_name_is_refused_and_a_lun_is_no_directory(volume: Volume) -> None:
    volume.create_lun("a/b", MIB)
    for name in ("a/b", "a", "a/b/c"):
        with pytest.raises(NameTaken):
            volume.create_lun(name, MIB)


def test_identity_survives_rename_and_mount(workshop: Workshop, volume: Volume) -> None:
    lun = volume.create_lun("a", MIB, comment="of ours", ostype="windows", reserved=False, block_bytes=4096)
    identity = (lun.uuid, lun.serial, lun.naa, lun.comment, lun.ostype, lun.reserved, lun.block_bytes, lun.created_at)
    volume.rename_lun("a", "b/c")
    volume.lun("b/c").set_online(False)
    volume = workshop.remount(volume)
    lun = volume.lun("b/c")
    assert identity == (
        lun.uuid, lun.serial, lun.naa, lun.comment, lun.ostype, lun.reserved, lun.block_bytes, lun.created_at,
    )  # fmt: skip
    assert not lun.online
    with pytest.raises(NoSuchLun):
        volume.lun("a")


def test_names_of_luns_are_locally_assigned_and_differ(volume: Volume) -> None:
    luns = [volume.create_lun(f"l{n}", MIB) for n in range(50)]
    assert {lun.naa[0] >> 4 for lun in luns} == {3}
    assert len({lun.naa for lun in luns}) == len({lun.serial for lun in luns}) == 50


def test_an_inode_number_used_again_has_another_generation(workshop: Workshop, volume: Volume) -> None:
    first = volume.create_lun("a", MIB).inode
    volume.destroy_lun("a")
    volume.reclaim_now()
    volume = workshop.remount(volume)
    second = volume.create_lun("a", MIB).inode
    assert second.number == first.number
    assert second.generation > first.generation


def test_a_destroyed_lun_takes_no_more_writes(volume: Volume) -> None:
    lun = volume.create_lun("a", MIB)
    lun.write(0, pattern(1, 4096))
    volume.destroy_lun("a")
    for write in (lambda: lun.write(0, pattern(2, 4096)), lambda: lun.set_online(False), lambda: lun.unmap(0, 4096)):
        with pytest.raises(NoSuchLun):
            write()


# --- extents, damage --------------------------------------------------------------------------------------------------


def joined(lun: Lun, offset: int, length: int) -> list[tuple[int, int, bool]]:
    found: list[tuple[int, int, bool]] = []
    for at, size, mapped in lun.extents(offset, length):
        if found and found[-1][2] == mapped:
            found[-1] = (found[-1][0], found[-1][1] + size, mapped)
        else:
            found.append((at, size, mapped))
    return found


def test_extents_tell_mapped_from_unmapped_over_a_huge_lun(volume: Volume) -> None:
    lun = volume.create_lun("a", 16 * TIB)
    lun.write(TIB, pattern(1, 8192))
    assert joined(lun, 0, 16 * TIB) == [
        (0, TIB, False), (TIB, 8192, True), (TIB + 8192, 15 * TIB - 8192, False),
    ]  # fmt: skip
    assert joined(lun, TIB + 4608, 8192) == [(TIB + 4608, 3584, True), (TIB + 8192, 4608, False)]


def test_a_damaged_data_block_is_an_error_that_names_block_and_place(workshop: Workshop, volume: Volume) -> None:
    lun = volume.create_lun("a", MIB)
    lun.write(0, pattern(1, 16384))
    vbn = int(lun.load_level_one_buf(0)[0][2])
    volume.device.pwrite(vbn * BLOCK_BYTES + 17, [b"\0\0"])
    for length in (4096, 8192):
        with pytest.raises(CorruptVolume) as error:
            read(lun, 8192, length)
        assert error.value.vbn == vbn
        assert "LUN a, byte 8192" in str(error.value)
    with pytest.raises(CorruptVolume):
        lun.read_into_nowait(8192, memoryview(bytearray(4096)))
    with pytest.raises(CorruptVolume):
        lun.write(8192 + 512, bytes(512))
    assert read(lun, 0, 8192) == pattern(1, 16384)[:8192]
    lun.write(8192, pattern(3, 4096))
    assert read(lun, 8192, 4096) == pattern(3, 4096)
    workshop.close(volume)


def test_a_damaged_pointer_block_is_an_error(workshop: Workshop, volume: Volume) -> None:
    lun = volume.create_lun("a", MIB)
    lun.write(0, pattern(1, 4096))
    checkpoint(volume)
    root = lun.inode.vbns[0]
    volume.device.pwrite(root * BLOCK_BYTES, [b"\xff"])
    volume = workshop.crash(volume)
    with pytest.raises(CorruptVolume) as error:
        read(volume.lun("a"), 0, 4096)
    assert error.value.vbn == root
    workshop.abandon(volume)


def test_a_small_cache_gives_the_same_bytes(workshop: Workshop) -> None:
    volume = workshop.format(64 * MIB)
    lun = volume.create_lun("a", 1 << 40)
    step = (1 << 40) // 500
    places = [n * step // 4096 * 4096 for n in range(500)]
    for place in places:
        lun.write(place, pattern(place, 4096))
    checkpoint(volume)
    volume.core.cache_limit = 64
    for _ in range(2):
        for place in places:
            assert read(lun, place, 4096) == pattern(place, 4096)
            lun.write(place, pattern(place + 1, 4096))
            lun.write(place, pattern(place, 4096))
            if place % 13 == 0:
                checkpoint(volume)
    assert volume.core.cached < 2000


def test_a_resting_reclaim_does_not_take_a_new_zombie_for_one_it_has_finished(volume: Volume) -> None:
    """The new graveyard got the inode number of the LUN just reclaimed, and was freed with all that was in it."""
    volume.create_lun("a", 4 * MIB)
    lun = volume.create_lun("b", 4 * MIB)
    checkpoint(volume)
    volume.destroy_lun("a")
    slices = volume.reclaim()
    next(slices)
    lun.write(2 * MIB, pattern(1, BLOCK_BYTES))
    lun.unmap(MIB, 3 * MIB)
    for _ in slices:
        pass
    volume.reclaim_now()
    assert lun.used_bytes == 0
