"""Who flushes often gets short runs that are written out beforehand, and does not wait for the end of a long one."""

from __future__ import annotations

import pytest

from tests.support.volumes import MIB, Workshop, pattern
from wafl import Lun, Volume
from wafl.allocator import DATA_RUN_BLOCKS
from wafl.buffers import EAGER_BLOCKS, EAGER_SYNCS, EAGER_WRITES
from wafl.format import BLOCK_BYTES

SIZE = 16 * MIB


def begun(workshop: Workshop) -> tuple[Volume, Lun]:
    """At the beginning of a long run."""
    volume = workshop.format(256 * MIB)
    lun = volume.create_lun("lun", SIZE, reserved=False)
    lun.write(0, pattern(1, BLOCK_BYTES))
    volume.core.syncs = 0
    assert left(volume) > DATA_RUN_BLOCKS // 2
    return volume, lun


def left(volume: Volume) -> int:
    return volume.core.allocator.end - volume.core.allocator.next


def flush(volume: Volume, lun: Lun, turn: int, blocks: int) -> None:
    for number in range(blocks):
        place = (turn * blocks + number) * BLOCK_BYTES % SIZE
        lun.write(place, pattern(turn + number, BLOCK_BYTES))
    volume.sync()
    volume.core.synced()


@pytest.mark.parametrize("blocks", [1, EAGER_WRITES - 1])
def test_who_flushes_often_gets_a_run_that_is_written_out(workshop: Workshop, blocks: int) -> None:
    volume, lun = begun(workshop)
    for turn in range(EAGER_SYNCS - 1):
        flush(volume, lun, turn, blocks)
        assert left(volume) > EAGER_BLOCKS, "not yet"
    flush(volume, lun, EAGER_SYNCS, blocks)
    assert left(volume) == 0, "what was left of the long run has been given back"
    before = volume.core.allocator.free
    lun.write(0, pattern(5, BLOCK_BYTES))
    assert left(volume) == EAGER_BLOCKS - 1
    assert volume.core.allocator.free == before - EAGER_BLOCKS
    zeros = bytearray(BLOCK_BYTES)
    volume.device.pread(volume.core.allocator.next * BLOCK_BYTES, zeros)
    assert not any(zeros)
    for turn in range(EAGER_SYNCS):
        flush(volume, lun, turn, 1)
        assert left(volume) > 0, "a short one is used up"


def test_who_writes_much_between_flushes_keeps_the_long_runs(workshop: Workshop) -> None:
    volume, lun = begun(workshop)
    for turn in range(EAGER_SYNCS + 4):
        flush(volume, lun, turn, 2 * EAGER_WRITES)
    assert left(volume) > EAGER_BLOCKS
