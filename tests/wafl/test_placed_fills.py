"""Fills that are written before they are installed: their places belong to nobody until the LUN names them."""

from __future__ import annotations

import numpy as np
import pytest

from tests.support.crash_device import MemoryDevice
from tests.support.volumes import MIB, Workshop, checkpoint, pattern, problems, take_snapshot
from wafl import BLOCK_BYTES, FillPlan, Lun, Volume
from wafl.allocator import PROMISE_PIECES, PROMISE_SHARE, Allocator, new_bits
from wafl.bits import are_set, set_each, set_range
from wafl.format import MAP_BITS

BLOCKS = 300


def content(lun: Lun) -> bytes:
    data = bytearray(lun.size_bytes)
    lun.read_into(0, memoryview(data))
    return bytes(data)


def prepared(workshop: Workshop, size_bytes: int = 16 * MIB) -> tuple[Volume, Lun]:
    volume = workshop.format(size_bytes)
    golden = volume.create_lun("golden", BLOCKS * BLOCK_BYTES)
    golden.write(0, pattern(1, BLOCKS * BLOCK_BYTES))
    take_snapshot(volume, "base")
    clone = volume.create_lun("clone", backing=("base", "golden"))
    checkpoint(volume)
    return volume, clone


def placed(clone: Lun, index: int = 0) -> FillPlan:
    plan = clone.plan_fill(index)
    assert plan is not None
    plan.place()
    assert plan.places is not None
    return plan


def test_what_is_written_before_the_install_is_in_no_consistency_point(workshop: Workshop) -> None:
    """A crash before the install finds the last tree whole, and the places free."""
    volume, clone = prepared(workshop)
    plan = placed(clone)
    assert plan.read() is None
    volume.lun("golden").write(0, pattern(2, BLOCK_BYTES))
    checkpoint(volume)
    image = bytearray(volume.device.image)  # type: ignore[attr-defined]
    assert problems(MemoryDevice(bytearray(image))) == []
    crashed = workshop.mount(MemoryDevice(image))
    assert crashed.lun("clone").missing_blocks() == BLOCKS
    assert plan.places is not None
    assert not are_set(crashed.core.allocator.busy, plan.places).any()
    assert content(crashed.lun("clone")) == pattern(1, BLOCKS * BLOCK_BYTES)
    plan.release()


def test_what_guests_left_is_pointed_at_and_the_other_places_come_back(workshop: Workshop) -> None:
    volume, clone = prepared(workshop)
    allocator = volume.core.allocator
    plan = placed(clone)
    plan.read()
    clone.write(2 * BLOCK_BYTES, pattern(9, BLOCK_BYTES))
    clone.unmap(4 * BLOCK_BYTES, BLOCK_BYTES)
    clone.write(255 * BLOCK_BYTES + 512, pattern(9, 512))
    expected = content(clone)
    own = clone.inode.blocks
    assert clone.install_fill(plan, None) == 253
    plan.release()
    assert clone.inode.blocks == own + 253
    assert content(clone) == expected
    assert plan.places is not None
    for bits in (allocator.busy, allocator.active):
        assert np.flatnonzero(~are_set(bits, plan.places)).tolist() == [2, 4, 255]
    assert allocator.promised == 0
    checkpoint(volume)
    assert content(clone) == expected


def test_a_plan_that_is_given_up_gives_its_places_back(workshop: Workshop) -> None:
    volume, clone = prepared(workshop)
    allocator = volume.core.allocator
    before = allocator.free, allocator.chunk_free.tolist(), allocator.busy.tolist()
    plan = placed(clone)
    assert allocator.free == before[0] - plan.blocks
    plan.release()
    plan.release()
    assert (allocator.free, allocator.chunk_free.tolist(), allocator.busy.tolist()) == before
    assert allocator.promised == 0


def test_nobody_else_is_given_a_promised_block(workshop: Workshop) -> None:
    volume, clone = prepared(workshop)
    allocator = volume.core.allocator
    plan = placed(clone)
    plan.read()
    hungry = volume.create_lun("hungry", 32 * MIB)
    written = 0
    while allocator.free + allocator.end - allocator.next - allocator.floor_guest > 64:
        hungry.write(written, pattern(written + 7, BLOCK_BYTES))
        written += BLOCK_BYTES
    assert clone.install_fill(plan, None) == 256
    plan.release()
    assert written > 4 * MIB
    assert content(clone) == pattern(1, BLOCKS * BLOCK_BYTES)
    assert content(hungry)[:MIB] == b"".join(pattern(at + 7, BLOCK_BYTES) for at in range(0, MIB, BLOCK_BYTES))


def test_where_room_is_short_the_data_goes_through_memory(workshop: Workshop) -> None:
    volume, clone = prepared(workshop, 8 * MIB)
    allocator = volume.core.allocator
    hungry = volume.create_lun("hungry", 32 * MIB)
    at = 0
    while (allocator.free + allocator.end - allocator.next - allocator.floor_guest) // PROMISE_SHARE >= 256:
        hungry.write(at, pattern(3, BLOCK_BYTES))
        at += BLOCK_BYTES
    plan = clone.plan_fill(0)
    assert plan is not None
    plan.place()
    assert plan.places is None
    assert clone.install_fill(plan, plan.read()) == 256
    plan.release()
    assert content(clone) == pattern(1, BLOCKS * BLOCK_BYTES)


def test_space_counts_what_is_promised_as_nobodys(workshop: Workshop) -> None:
    volume, clone = prepared(workshop)
    before = volume.space()
    plan = placed(clone)
    space = volume.space()
    assert (space.snapshots, space.active) == (before.snapshots, before.active)
    assert space.free == before.free - 256 * BLOCK_BYTES
    plan.release()
    assert volume.space() == before


def test_a_bad_source_block_leaves_nothing_behind(workshop: Workshop) -> None:
    volume, clone = prepared(workshop)
    free = volume.core.allocator.free
    image: bytearray = volume.device.image  # type: ignore[attr-defined]
    plan = placed(clone)
    image[int(plan.vbns[77]) * BLOCK_BYTES] ^= 1
    with pytest.raises(Exception, match="backing of LUN clone"):
        plan.read()
    assert plan.unreadable == 77
    plan.release()
    assert volume.core.allocator.free == free
    image[int(plan.vbns[77]) * BLOCK_BYTES] ^= 1


def test_a_promise_in_pieces_or_over_a_border_is_kept_and_broken_exactly() -> None:
    made = Allocator(2 * MAP_BITS, new_bits(2 * MAP_BITS), new_bits(2 * MAP_BITS))
    set_range(made.active, 0, MAP_BITS - 100)
    set_each(made.active, np.arange(MAP_BITS - 100, MAP_BITS, 10, dtype=np.uint64))
    made = Allocator(2 * MAP_BITS, made.active, made.summary, hint=0)
    made._window = -1
    made._runs.clear()
    made._open_window()
    before = made.free, made.chunk_free.tolist()
    places = made.promise(20)
    assert places is not None
    assert sum(end - start for start, end in places) == 20 == made.promised
    for start, end in places:
        made.break_promise(start, end)
    assert (made.free, made.chunk_free.tolist(), made.promised) == (*before, 0)

    # Two windows that meet: each counts its own.
    made._mark_busy(MAP_BITS - 9, MAP_BITS)
    made._mark_busy(MAP_BITS, MAP_BITS + 5)
    made.promised = 14
    made.fulfil(MAP_BITS - 9, MAP_BITS + 1)
    assert made.dirty_active >= {0, 1}
    made.break_promise(MAP_BITS + 1, MAP_BITS + 5)
    assert made.promised == 0
    assert [int(free) for free in made.chunk_free] == [before[1][0] - 9, before[1][1] - 1]


def test_places_all_over_the_volume_are_not_promised() -> None:
    made = Allocator(MAP_BITS, new_bits(MAP_BITS), new_bits(MAP_BITS))
    set_each(made.active, np.arange(0, MAP_BITS, 2, dtype=np.uint64))
    made = Allocator(MAP_BITS, made.active, made.summary)
    free = made.free
    assert made.promise(PROMISE_PIECES + 1) is None
    assert (made.free, made.promised) == (free, 0)
    assert made.promise(PROMISE_PIECES) is not None
