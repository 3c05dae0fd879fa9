"""Reads of less than a block, or over the border of two: the short way gives what the general way gives."""

from __future__ import annotations

import pytest

from tests.support.volumes import MIB, Workshop, checkpoint, pattern, take_snapshot
from wafl import CorruptVolume, Lun

SECTOR = 512


def lun_with_every_kind_of_neighbour(workshop: Workshop) -> tuple[Lun, bytes]:
    """A backed LUN: own block beside own, beside the backing's, beside ZERO, and far from its neighbour on disk."""
    volume = workshop.format()
    parent = volume.create_lun("parent", MIB)
    parent.write(0, pattern(1, 64 << 10))
    take_snapshot(volume, "s")
    lun = volume.create_lun("lun", None, backing=("s", "parent"))
    model = bytearray(pattern(1, 64 << 10) + bytes(MIB - (64 << 10)))
    for block in (9, 3, 4):
        model[block << 12 : (block + 1) << 12] = pattern(block, 4096)
        lun.write(block << 12, pattern(block, 4096))
    lun.unmap(6 << 12, 4096)
    model[6 << 12 : 7 << 12] = bytes(4096)
    checkpoint(volume)
    return lun, bytes(model)


@pytest.mark.parametrize("length", [SECTOR, 1024, 4096 - SECTOR, 4096])
def test_a_short_read_is_right_at_every_sector(workshop: Workshop, length: int) -> None:
    lun, model = lun_with_every_kind_of_neighbour(workshop)
    lun.read_into(0, memoryview(bytearray(MIB)))
    for offset in range(0, 80 << 10, SECTOR):
        view = memoryview(bytearray(b"\xee" * length))
        assert lun.read_into_nowait(offset, view)
        assert bytes(view) == model[offset : offset + length], offset


def test_a_short_read_at_the_very_end_is_right(workshop: Workshop) -> None:
    volume = workshop.format()
    lun = volume.create_lun("lun", MIB - SECTOR)
    lun.write(0, pattern(5, MIB - SECTOR))
    view = memoryview(bytearray(3 * SECTOR))
    assert lun.read_into_nowait(MIB - 4 * SECTOR, view)
    assert bytes(view) == pattern(5, MIB - SECTOR)[-3 * SECTOR :]


@pytest.mark.parametrize("bad_block", [0, 1])
def test_a_short_read_over_a_damaged_block_is_an_error(workshop: Workshop, bad_block: int) -> None:
    volume = workshop.format()
    lun = volume.create_lun("lun", MIB)
    lun.write(0, pattern(7, 8192))
    lun.read_into(0, memoryview(bytearray(8192)))
    vbn = lun.load_level_one_buf(0)[0][bad_block]
    good = bytearray(4096)
    volume.device.pread(int(vbn) << 12, good)
    volume.device.pwrite((int(vbn) << 12) + 100, [b"damage"])
    with pytest.raises(CorruptVolume):
        lun.read_into_nowait(SECTOR, memoryview(bytearray(4096)))
    volume.device.pwrite(int(vbn) << 12, [good])
