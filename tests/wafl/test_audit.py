"""The audit of a consistency point: when maps, counters and trees differ it fails before a byte is written."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tests.support.crash_device import MemoryDevice
from tests.support.volumes import MIB, Workshop, checkpoint, pattern, problems, reclaim, take_snapshot
from tests.wafl.test_lun import read
from wafl import BLOCK_BYTES, Volume, VolumeFailed
from wafl.bits import set_each


def a_block_freed_twice(volume: Volume) -> None:
    volume.lun("a").write(0, pattern(2, BLOCK_BYTES))
    volume.core.allocator.freed.append(volume.core.allocator.freed[0])


def a_free_that_is_lost(volume: Volume) -> None:
    volume.lun("a").write(0, pattern(2, BLOCK_BYTES))
    assert volume.core.allocator.freed.pop()


def a_block_taken_and_never_linked(volume: Volume) -> None:
    volume.lun("a").write(0, pattern(2, BLOCK_BYTES))
    volume.core.allocator.next += 1


def a_pointer_block_taken_and_never_linked(volume: Volume) -> None:
    volume.core.allocator.take_pointer_block()


def a_block_of_the_volume_taken_and_never_linked(volume: Volume) -> None:
    volume.core.allocator.take_own_block()


def a_block_of_another_file_freed(volume: Volume) -> None:
    volume.core.allocator.freed.append(volume.lun("b").read_map(0).vbns[0])  # type: ignore[union-attr]


def a_bit_that_falls_in_the_active_map(volume: Volume) -> None:
    volume.lun("a").write(0, pattern(2, BLOCK_BYTES))
    vbn = volume.lun("b").read_map(0).vbns[0]  # type: ignore[union-attr]
    volume.core.allocator.active[vbn >> 3] ^= 1 << (vbn & 7)


def a_bit_that_rises_in_the_active_map(volume: Volume) -> None:
    volume.lun("a").write(0, pattern(2, BLOCK_BYTES))
    allocator = volume.core.allocator
    allocator.active[-1] ^= 0x40


def a_bit_that_falls_in_the_summary(volume: Volume) -> None:
    volume.request_snapshot("s")
    volume.core.allocator.summary[0] ^= 4


def a_block_in_use_that_counts_as_free(volume: Volume) -> None:
    volume.lun("a").write(0, pattern(2, BLOCK_BYTES))
    allocator = volume.core.allocator
    allocator.busy[volume.lun("b").read_map(0).vbns[0] >> 3] = 0  # type: ignore[union-attr]


def an_inode_that_loses_count(volume: Volume) -> None:
    volume.lun("a").write(0, pattern(2, BLOCK_BYTES))
    volume.lun("a").inode.blocks += 1


SABOTAGE = [
    a_block_freed_twice, a_free_that_is_lost, a_block_taken_and_never_linked, a_pointer_block_taken_and_never_linked,
    a_block_of_the_volume_taken_and_never_linked, a_block_of_another_file_freed, a_bit_that_falls_in_the_active_map,
    a_bit_that_rises_in_the_active_map, a_bit_that_falls_in_the_summary, a_block_in_use_that_counts_as_free,
    an_inode_that_loses_count,
]  # fmt: skip


@pytest.mark.parametrize("sabotage", SABOTAGE, ids=lambda act: act.__name__)
def test_a_consistency_point_whose_books_do_not_balance_is_not_written(
    workshop: Workshop, sabotage: Callable[[Volume], None]
) -> None:
    volume = workshop.format(log_bytes=0)
    for name in ("a", "b"):
        volume.create_lun(name, MIB).write(0, pattern(1, 4 * BLOCK_BYTES))
    checkpoint(volume)
    sabotage(volume)
    device: MemoryDevice = volume.device  # type: ignore[assignment]
    written: list[int] = []
    device.wrote = lambda offset, data: written.append(offset)  # type: ignore[method-assign]
    with pytest.raises(VolumeFailed, match=r"audit: .*mount the volume again") as caught:
        checkpoint(volume)
    assert "\n" not in str(caught.value)
    assert not written
    with pytest.raises(VolumeFailed):
        volume.lun("a").write(0, pattern(3, BLOCK_BYTES))
    workshop.abandon(volume)
    crashed = workshop.mount(MemoryDevice(bytearray(device.image)))
    assert read(crashed.lun("a"), 0, BLOCK_BYTES) == pattern(1, BLOCK_BYTES)
    assert not [found for found in problems(crashed.device) if found.severity > 1]  # type: ignore[arg-type]


def test_everything_that_moves_blocks_keeps_the_books_balanced(workshop: Workshop) -> None:
    volume = workshop.format(32 * MIB)
    golden = volume.create_lun("golden", 300 * MIB)
    for at in range(0, 300 * MIB, 20 * MIB):
        golden.write(at, pattern(at, 3 * BLOCK_BYTES + 512))
    take_snapshot(volume, "base")
    clone = volume.create_lun("clone", backing=("base", "golden"))
    clone.write(MIB, pattern(5, 700))
    plan = clone.plan_fill(0)
    assert plan is not None
    clone.install_fill(plan, plan.read())
    plan.release()
    golden.unmap(0, 256 * MIB)
    checkpoint(volume)
    volume.destroy_lun("golden")  # its graveyard outlives it
    checkpoint(volume)
    volume.resize_lun("clone", 512)
    volume.rename_snapshot("base", "old")
    checkpoint(volume)
    volume.destroy_lun("clone")
    reclaim(volume)
    volume.delete_snapshot("old")
    reclaim(volume)
    assert not volume.reclaim_pending
    volume.audit.check()


def test_counters_that_were_wrong_on_the_disk_do_not_fail_the_volume(workshop: Workshop) -> None:
    volume = workshop.format()
    volume.create_lun("a", MIB).write(0, pattern(1, 4 * BLOCK_BYTES))
    checkpoint(volume)
    volume.lun("a").inode.blocks = 1
    volume.audit.rebase()
    volume.destroy_lun("a")
    reclaim(volume)
    assert volume.failure is None


def test_maps_that_were_replaced_are_counted_again_only_when_told(workshop: Workshop) -> None:
    volume = workshop.format()
    set_each(volume.core.allocator.active, np.array([1000], np.uint64))
    set_each(volume.core.allocator.busy, np.array([1000], np.uint64))
    volume.core.allocator.active_count += 1
    volume.core.allocator.dirty_active.add(0)
    with pytest.raises(VolumeFailed):
        volume.audit.check()
    volume.audit.rebase()
    volume.audit.check()
    workshop.abandon(volume)
