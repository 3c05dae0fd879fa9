"""Sequential reads of what is not in memory: what comes next is read ahead, and nothing else is."""

from __future__ import annotations

from itertools import pairwise
from random import Random

import pytest

from tests.support.sleepy_device import SleepyDevice
from tests.support.volumes import MIB, Workshop, checkpoint, pattern, take_snapshot
from wafl import CorruptVolume, Lun
from wafl.format import BLOCK_BYTES, POINTERS
from wafl.streams import MOST, STREAMS

SIZE = 16 * MIB
PIECE = 64 << 10
KERNEL_BYTES = 2 * MIB


def cold(workshop: Workshop, kind: str) -> Lun:
    """A LUN none of whose data is in memory; its neighbours lie as `kind` says."""
    volume = workshop.format(96 * MIB)
    lun = volume.create_lun("disk", SIZE)
    for at in range(0, SIZE, MIB):
        lun.write(at, pattern(at, MIB))
    checkpoint(volume)
    if kind == "half":
        take_snapshot(volume, "base")
        lun = volume.create_lun("half", backing=("base", "disk"))
        for at in range(0, SIZE, 2 * BLOCK_BYTES):
            lun.write(at, pattern(at + 1, BLOCK_BYTES))
    elif kind == "aged":
        places = list(range(0, SIZE, BLOCK_BYTES))
        Random(1).shuffle(places)
        for at in places:
            lun.write(at, pattern(at + 1, BLOCK_BYTES))
    elif kind == "jump":
        lun.write(SIZE // 2 + 7 * BLOCK_BYTES, pattern(1, BLOCK_BYTES))
    checkpoint(volume)
    lun = workshop.mount(SleepyDevice(bytearray(volume.device.image))).lun(lun.name)  # type: ignore[attr-defined]
    for index in range(SIZE // MIB):
        lun.read_map(index)
    device_of(lun).forget()
    return lun


def device_of(lun: Lun) -> SleepyDevice:
    assert isinstance(lun.core.device, SleepyDevice)
    return lun.core.device


def read(lun: Lun, at: int, length: int = PIECE) -> int:
    """As a session does it: again when the disk has read.  How often it had to wait."""
    device, view = device_of(lun), memoryview(bytearray(length))
    for waits in range(10):
        if lun.read_into_nowait(at, view):
            return waits
        device.here |= device.coming
    raise AssertionError("never here")


@pytest.mark.parametrize("kernel_bytes", [0, KERNEL_BYTES])
@pytest.mark.parametrize("kind", ["plain", "half", "aged"])
def test_a_stream_hardly_waits(workshop: Workshop, kind: str, kernel_bytes: int) -> None:
    """Each wait brings all that was asked for; by one read at a time, or by eight."""
    lun = cold(workshop, kind)
    device_of(lun).read_ahead_bytes = kernel_bytes
    waits = sum(read(lun, at) for at in range(0, SIZE // 2, PIECE))
    assert waits < SIZE // 2 // PIECE // 4
    assert len(device_of(lun).asked) <= (SIZE // 2 // BLOCK_BYTES + MOST) * 3 // 2, "with what lies between"


def test_what_comes_in_another_order_is_a_stream_too(workshop: Workshop) -> None:
    lun = cold(workshop, "plain")
    order = list(range(0, SIZE, PIECE))
    for first in range(0, len(order), 8):
        eight = order[first : first + 8]
        Random(first).shuffle(eight)
        order[first : first + 8] = eight
    assert sum(read(lun, at) for at in order) < SIZE // PIECE // 4


def test_several_streams_go_side_by_side(workshop: Workshop) -> None:
    lun = cold(workshop, "plain")
    starts = [number * SIZE // STREAMS for number in range(STREAMS)]
    waits = sum(read(lun, start + at) for at in range(0, SIZE // STREAMS, PIECE) for start in starts)
    assert waits < SIZE // PIECE // 2


def places_of(lun: Lun) -> list[int]:
    """Where each block of the LUN lies."""
    return [int(vbn) for index in range(SIZE // MIB) for vbn in lun.read_map(index).vbns]  # type: ignore[union-attr]


def asked_ahead(lun: Lun) -> set[int]:
    """Blocks of the volume that were asked for before somebody read them, while all of the LUN is read in order."""
    device, places = device_of(lun), places_of(lun)
    ahead: set[int] = set()
    for at in range(0, SIZE, PIECE):
        begun = len(device.asked)
        read(lun, at)
        ahead |= set(device.asked[begun:]) - set(places[at // BLOCK_BYTES : (at + PIECE) // BLOCK_BYTES])
    return ahead


def test_what_lies_side_by_side_is_left_to_a_kernel_that_reads_far_ahead(workshop: Workshop) -> None:
    lun = cold(workshop, "plain")
    places = places_of(lun)
    assert places == list(range(places[0], places[0] + len(places)))
    device_of(lun).read_ahead_bytes = KERNEL_BYTES
    assert not asked_ahead(lun)


def test_a_kernel_that_reads_but_a_little_ahead_is_helped(workshop: Workshop) -> None:
    lun = cold(workshop, "plain")
    device_of(lun).read_ahead_bytes = 128 << 10
    assert len(asked_ahead(lun)) > SIZE // BLOCK_BYTES // 2


def test_where_the_kernel_would_read_the_wrong_blocks_the_right_ones_are_asked_for(workshop: Workshop) -> None:
    lun = cold(workshop, "jump")
    places = places_of(lun)
    jumps = {here for before, here in pairwise(places) if here != before + 1}
    assert 2 <= len(jumps) < 8
    device_of(lun).read_ahead_bytes = KERNEL_BYTES
    ahead = asked_ahead(lun)
    assert jumps <= ahead
    assert len(ahead) <= len(jumps) * POINTERS, "no further than to the border of a level-1 block"


def test_reads_anywhere_ask_for_nothing_more(workshop: Workshop) -> None:
    lun = cold(workshop, "plain")
    places = [place * 3 * MIB // 2 for place in range(SIZE * 2 // 3 // MIB)]
    Random(2).shuffle(places)
    for at in places:
        read(lun, at)
    assert len(device_of(lun).asked) == len(places) * PIECE // BLOCK_BYTES


def test_it_is_never_further_ahead_than_it_may_be_nor_beyond_the_end(workshop: Workshop) -> None:
    lun = cold(workshop, "plain")
    places = {int(vbn): index * POINTERS + slot for index in range(SIZE // MIB)
              for slot, vbn in enumerate(lun.read_map(index).vbns)}  # type: ignore[union-attr]  # fmt: skip
    for at in range(0, SIZE, PIECE):
        read(lun, at)
        furthest = max(places[block] for block in device_of(lun).asked)
        assert furthest < (at + PIECE) // BLOCK_BYTES + MOST
    assert furthest == SIZE // BLOCK_BYTES - 1


@pytest.mark.parametrize("kernel_bytes", [0, KERNEL_BYTES])
def test_what_is_in_memory_is_not_asked_for(workshop: Workshop, kernel_bytes: int) -> None:
    lun = cold(workshop, "plain")
    device = device_of(lun)
    device.read_ahead_bytes = kernel_bytes
    for at in range(0, 4 * PIECE, PIECE):
        read(lun, at)
    device.here |= set(range(device.size_bytes // BLOCK_BYTES))
    asked = len(device.asked)
    for at in range(4 * PIECE, SIZE, PIECE):
        assert not read(lun, at)
    assert len(device.asked) == asked
    assert not lun._streams.known, "forgotten"


def test_nobody_waits_for_what_is_read_ahead(workshop: Workshop) -> None:
    """The wait of a read that is put aside is for its own blocks."""
    lun = cold(workshop, "plain")
    for at in range(0, 4 * PIECE, PIECE):
        read(lun, at)
    device_of(lun).forget()
    lun.core.cold = None
    at = 4 * PIECE
    assert not lun.read_into_nowait(at, memoryview(bytearray(PIECE)))
    own = {int(vbn) for vbn in lun.read_map(0).vbns[at // BLOCK_BYTES : (at + PIECE) // BLOCK_BYTES]}  # type: ignore[union-attr]
    assert lun.core.cold is not None
    assert lun.core.cold // BLOCK_BYTES in own


def test_damage_ahead_is_told_to_whoever_reads_it(workshop: Workshop) -> None:
    lun = cold(workshop, "plain")
    lun.cool()
    volume_core = lun.core
    index = 3
    leaf = lun.inode.children[0].vbns[index]
    device_of(lun).image[leaf * BLOCK_BYTES] ^= 1
    volume_core.forget_tree(lun.inode)
    for at in range(0, index * MIB, PIECE):
        read(lun, at)
    with pytest.raises(CorruptVolume):
        read(lun, index * MIB)
    device_of(lun).image[leaf * BLOCK_BYTES] ^= 1
