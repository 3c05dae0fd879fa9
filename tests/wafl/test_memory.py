"""What a volume keeps in memory."""

from __future__ import annotations

import gc

from tests.support.volumes import MIB, Workshop, pattern, reclaim, take_snapshot
from tests.wafl.test_lun import read
from wafl.buffers import Buffer

SPAN = 16 * MIB
ROOM = 40
"""Pointer blocks by which one round may differ from another."""


def pointer_blocks() -> int:
    gc.collect()
    return sum(isinstance(each, Buffer) for each in gc.get_objects())


def test_pointer_blocks_that_are_gone_leave_memory_long_before_the_cache_is_full(workshop: Workshop) -> None:
    volume = workshop.format(64 * MIB)
    disk = volume.create_lun("disk", SPAN)

    def age(number: int) -> None:
        """Every level-1 block changes, is kept by a snapshot and by a LUN over it, and both go."""
        for place in range(0, SPAN, MIB):
            disk.write(place, pattern(number, 4096))
        take_snapshot(volume, "now")
        clone = volume.create_lun("clone", backing=("now", "disk"))
        for place in range(0, SPAN, MIB):
            assert read(clone, place, 4096) == pattern(number, 4096)
            clone.write(place + 4096, pattern(number, 4096))
        volume.destroy_lun("clone")
        reclaim(volume)
        volume.delete_snapshot("now")
        reclaim(volume)

    age(0)
    before = pointer_blocks()
    for number in range(1, 10):
        age(number)
    assert volume.core.cached < volume.core.cache_limit // 2
    assert pointer_blocks() <= before + ROOM
