"""Which block is next, and when a freed one may be used again."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tests.support.volumes import MIB, Workshop, checkpoint, pattern
from wafl import BLOCK_BYTES, NoSpace, Volume
from wafl.allocator import Allocator, Readers, new_bits, rows_of
from wafl.bits import clear_each, clear_range, count, free_runs, positions, set_each, set_range
from wafl.format import MAP_BITS

RANGES = [(0, 1), (3, 5), (0, 8), (7, 9), (8, 16), (5, 64), (1, 255), (200, 201), (0, 256)]


@pytest.mark.parametrize(("start", "end"), RANGES)
def test_a_range_of_bits_is_set_and_cleared_exactly(start: int, end: int) -> None:
    bits = np.zeros(32, np.uint8)
    set_range(bits, start, end)
    assert positions(bits).tolist() == list(range(start, end))
    full = np.full(32, 0xFF, np.uint8)
    clear_range(full, start, end)
    assert (full ^ bits == 0xFF).all()


def test_bits_that_share_a_byte_are_set_and_cleared_together() -> None:
    bits = np.zeros(32, np.uint8)
    vbns = np.array([1, 2, 7, 8, 250], np.uint64)
    set_each(bits, vbns)
    assert positions(bits).tolist() == vbns.tolist()
    clear_each(bits, vbns[1:3])
    assert positions(bits).tolist() == [1, 8, 250]


def test_free_runs_are_the_gaps_between_set_bits() -> None:
    bits = np.zeros(4, np.uint8)
    set_each(bits, np.array([0, 5, 6, 31], np.uint64))
    assert free_runs(bits, 100) == [(101, 105), (107, 131)]


def test_rows_of_blocks() -> None:
    assert rows_of(np.array([5, MAP_BITS, 7 * MAP_BITS + 3], np.uint64)) == [0, 1, 7]


def allocator(blocks: int = 4096) -> Allocator:
    made = Allocator(blocks, new_bits(blocks), new_bits(blocks))
    set_range(made.active, 0, 16)
    return Allocator(blocks, made.active, made.summary)


def release(made: Allocator) -> None:
    made.give_back_run()
    made.apply_frees()
    made.release(made.freeze_frees())
    while made.release_ripe():
        pass


def test_the_unused_rest_of_a_run_is_not_in_the_map() -> None:
    made = allocator()
    free = made.free
    made.refill()
    made.next += 3
    made.give_back_run()
    assert positions(made.active).tolist() == list(range(19))
    assert made.free == free - 3
    assert made.active_count == 19


def test_pointer_blocks_come_from_the_other_end_than_data() -> None:
    made = allocator()
    made.refill()
    assert made.take_pointer_block() == 4095
    assert made.next == 16


def test_a_freed_block_is_not_handed_out_before_its_consistency_point_is_durable() -> None:
    made = allocator()
    free = made.free
    made.freed.append(5)
    made.apply_frees()
    assert made.free == free
    frozen = made.freeze_frees()
    assert made.free == free
    made.release(frozen)
    assert not made.release_ripe()
    assert made.free == free + 1
    assert 5 not in positions(made.busy)


def test_a_freed_block_waits_for_the_readers_that_started_before() -> None:
    made = allocator()
    free = made.free
    early = made.readers.enter()
    made.freed.append(5)
    release(made)
    late = made.readers.enter()
    assert made.free == free
    made.readers.leave(early)
    made.reader_left()
    assert made.free == free + 1
    made.readers.leave(late)


def test_readers_of_one_epoch_are_counted() -> None:
    readers = Readers()
    first, second = readers.enter(), readers.enter()
    readers.defer([np.array([1], np.uint64)])
    readers.leave(first)
    assert readers.ripe() == []
    readers.leave(second)
    assert len(readers.ripe()) == 1


def test_a_block_freed_by_the_file_system_and_then_by_its_snapshot_is_listed_once() -> None:
    made = allocator()
    made.merge_active_into_summary()
    free = made.free
    made.freed.append(5)
    made.apply_frees()
    made.drop_from_summary(np.array([5, 6], np.uint64))
    release(made)
    assert made.free == free + 1
    assert 6 in positions(made.active)


def test_a_window_that_is_nearly_empty_again_goes_before_one_never_written() -> None:
    made = allocator(5 * MAP_BITS)
    taken = taken_windows(made, 2 * MAP_BITS)
    assert sorted(taken) == [0, 1, 2]
    for vbn in range(16, 2 * MAP_BITS):  # of window 1 everything but what is left of the run
        made.freed.append(vbn)
    release(made)
    assert taken_windows(made, MAP_BITS)[-1] in (0, 1)


def test_a_window_with_more_than_a_little_in_it_does_not_go_before_one_never_written() -> None:
    made = allocator(5 * MAP_BITS)
    taken_windows(made, 2 * MAP_BITS)
    for vbn in range(16, 2 * MAP_BITS):
        if vbn % 16:  # what lives lies scattered: runs would be short
            made.freed.append(vbn)
    release(made)
    assert taken_windows(made, MAP_BITS)[-1] == 3


def taken_windows(made: Allocator, blocks: int) -> list[int]:
    """Windows in the order in which guests' blocks were taken from them, each once."""
    windows: dict[int, None] = {}
    while blocks > 0:
        made.refill()
        windows[made.next // MAP_BITS] = None
        blocks -= made.end - made.next
        made.next = made.end
    return list(windows)


def test_the_window_counts_stay_in_step_with_the_bits() -> None:
    made = allocator(3 * MAP_BITS)
    for _ in range(40):
        made.refill()
        made.next += min(700, made.end - made.next)
        made.take_pointer_block()
        made.freed.append(made.next - 1)
        release(made)
    free = (~made.busy).reshape(made.chunks, BLOCK_BYTES)
    assert [count(row) for row in free] == made.chunk_free.tolist()
    assert made.free == int(made.chunk_free.sum())


def test_the_reserve_is_kept_from_guests() -> None:
    made = allocator()
    made.floor_guest = made.free - 10
    made.refill()
    assert made.end - made.next == 10
    made.next = made.end
    with pytest.raises(NoSpace):
        made.refill()


def attempt(action: Callable[[], object]) -> bool:
    """Do it; False if the volume is full."""
    try:
        action()
    except NoSpace:
        return False
    return True


def fill_up(volume: Volume, name: str = "big") -> int:
    """Write to a LUN until the volume is full; returns the bytes that went in."""
    lun = volume.create_lun(name, 1 << 30)
    offset = 0
    for length in (MIB, BLOCK_BYTES):
        while attempt(lambda at=offset, size=length: lun.write(at, pattern(at, size))):
            offset += length
    return offset


def test_a_full_volume_still_makes_consistency_points_and_unmaps(workshop: Workshop) -> None:
    volume = workshop.format(8 * MIB)
    written = fill_up(volume)
    assert written > 4 * MIB
    for _ in range(3):
        checkpoint(volume)
    lun = volume.lun("big")
    lun.unmap(0, lun.size_bytes)
    assert lun.used_bytes > 0
    volume.reclaim_now()
    assert lun.used_bytes == 0
    fill_up(volume, "again")


def test_overwriting_a_full_volume_goes_on_for_ever(workshop: Workshop) -> None:
    volume = workshop.format(8 * MIB)
    written = fill_up(volume)
    lun = volume.lun("big")
    lun.unmap(written - MIB, MIB)
    for turn in range(40):
        lun.write((turn % 4) * 64 * 1024, pattern(turn, 64 * 1024))
    found = bytearray(64 * 1024)
    lun.read_into(0, memoryview(found))
    assert found == pattern(36, 64 * 1024)


def test_a_full_volume_with_a_snapshot_refuses_writes_and_recovers_when_it_goes(workshop: Workshop) -> None:
    volume = workshop.format(8 * MIB)
    lun = volume.create_lun("a", 4 * MIB)
    lun.write(0, pattern(1, 2 * MIB))
    volume.request_snapshot("s")
    checkpoint(volume)
    other = volume.create_lun("b", 64 * MIB)
    turns = 0
    while attempt(lambda turn=turns: other.write(turn * MIB, pattern(turn, MIB))):
        turns += 1
    assert 1 < turns < 8
    checkpoint(volume)
    for name in [lun.name for lun in volume.luns()]:
        volume.destroy_lun(name)
    volume.delete_snapshot("s")
    volume.reclaim_now()
    assert volume.space().snapshots == 0
    fill_up(volume)


def test_a_snapshot_is_refused_when_the_next_consistency_points_could_lack_room(workshop: Workshop) -> None:
    volume = workshop.format(8 * MIB)
    fill_up(volume)
    turns = 0
    while attempt(lambda turn=turns: volume.request_snapshot(f"s{turn}")):
        checkpoint(volume)
        turns += 1
    assert turns < 50
    checkpoint(volume)
    checkpoint(volume)


def test_space_is_the_same_after_writing_and_destroying(workshop: Workshop) -> None:
    volume = workshop.format(16 * MIB)
    volume.reclaim_now()
    before = volume.space()
    lun = volume.create_lun("a", 8 * MIB)
    lun.write(0, pattern(1, 4 * MIB))
    checkpoint(volume)
    volume.destroy_lun("a")
    volume.reclaim_now()
    after = volume.space()
    assert after.freeing == 0
    # The vtoc has its first blocks now, and the inode file its second.
    assert after.active - before.active <= 3 * BLOCK_BYTES
