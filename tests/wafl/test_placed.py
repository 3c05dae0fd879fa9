"""Long writes that are on the volume before they have happened: what `install` makes of them is what `Lun.write` would
have written at that moment, and before it they are nothing to anybody."""

from __future__ import annotations

from random import Random
from typing import Any

import numpy as np
import pytest

from tests.support.crash_device import MemoryDevice
from tests.support.volumes import MIB, Workshop, checkpoint, lun_of_kind, pattern, problems
from wafl import BLOCK_BYTES, CorruptVolume, InvalidSize, Lun, NoSuchLun, PlacedWrite, Volume, place_write
from wafl.bits import are_set
from wafl.placed import PLACED_SHARE

SIZE = 8 * MIB
BLOCKS = SIZE // BLOCK_BYTES


def contents(lun: Lun) -> bytes:
    whole = bytearray(lun.size_bytes)
    lun.read_into(0, memoryview(whole))
    return bytes(whole)


def placed(lun: Lun, offset: int, data: bytes, pieces: int = 64 * 1024) -> PlacedWrite:
    """All of `data` is in its places."""
    write = place_write(lun, offset, len(data))
    assert write is not None
    for at in range(0, len(data), pieces):
        write.add(memoryview(data)[at : at + pieces])
    return write


def vbns(write: PlacedWrite) -> Any:
    return [vbn for start, end in write._places for vbn in range(start, end)]


def prepared(workshop: Workshop, size: int = 128 * MIB) -> tuple[Volume, Lun]:
    volume = workshop.format(size)
    volume.batch_log()
    return volume, volume.create_lun("lun", SIZE)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", ["plain", "reserved", "backed"])
def test_the_same_as_writing_it_at_its_end(workshop: Workshop, seed: int, kind: str) -> None:
    """Bytes, counters and space; several under way at once, ordinary writes, UNMAPs and consistency points between, and
    a crash of the daemon at the end."""
    told = []
    for at_once in (True, False):
        random = Random(seed)
        volume = workshop.format(256 * MIB)
        volume.batch_log()
        lun = lun_of_kind(volume, kind, SIZE)
        under_way: list[tuple[int, bytes, PlacedWrite | None]] = []
        for number in range(150):
            kind_of = random.random()
            if kind_of < 0.4 and len(under_way) < 4:
                length = random.choice((64, 100, 256, 300, 700))
                offset = random.randrange(BLOCKS - length) * BLOCK_BYTES
                data = pattern(number + 1, length * BLOCK_BYTES)
                pieces = random.choice((16, 37, 256)) * BLOCK_BYTES
                under_way.append((offset, data, None if at_once else placed(lun, offset, data, pieces)))
            elif kind_of < 0.8 and under_way:
                offset, data, write = under_way.pop(random.randrange(len(under_way)))
                if random.random() < 0.2:
                    if write is not None:
                        write.drop()
                elif write is None:
                    lun.write(offset, data)
                else:
                    write.install()
                    write.drop()
            elif kind_of < 0.9:
                lun.write(random.randrange(BLOCKS) * BLOCK_BYTES, pattern(number + 5, BLOCK_BYTES))
            elif kind_of < 0.95:
                lun.unmap(random.randrange(BLOCKS - 50) * BLOCK_BYTES, 50 * BLOCK_BYTES)
            else:
                checkpoint(volume)
        for _, _, write in under_way:
            if write is not None:
                write.drop()
        assert volume.core.allocator.promised == 0
        volume.push_log()
        figures = (lun.used_bytes, lun.private_bytes, lun.missing_blocks(), volume.space().active)
        before = contents(lun)
        volume = workshop.crash(volume)
        assert contents(volume.lun("lun")) == before
        told.append((before, figures))
        workshop.close(volume)
    assert told[0] == told[1]


@pytest.mark.parametrize("when", ["before the install", "after the install"])
def test_a_consistency_point_has_it_from_the_install_on(workshop: Workshop, when: str) -> None:
    volume, lun = prepared(workshop)
    lun.write(0, pattern(1, MIB))
    write = placed(lun, 0, pattern(2, MIB))
    if when == "after the install":
        write.install()
    checkpoint(volume)
    image = bytearray(volume.device.image)  # type: ignore[attr-defined]
    assert problems(MemoryDevice(bytearray(image))) == []
    crashed = workshop.mount(MemoryDevice(image))
    busy = are_set(crashed.core.allocator.busy, np.array(vbns(write), np.uint64))
    assert busy.all() if when == "after the install" else not busy.any()
    assert contents(crashed.lun("lun"))[:MIB] == pattern(2 if when == "after the install" else 1, MIB)
    write.drop()


def test_a_guest_may_install_at_every_step_of_a_consistency_point(workshop: Workshop) -> None:
    volume, lun = prepared(workshop)
    lun.write(0, pattern(1, SIZE))
    writes = [placed(lun, (number % 8) * MIB, pattern(number + 10, MIB)) for number in range(12)]
    done = []

    def between() -> None:
        if writes:
            write = writes.pop(0)
            write.install()
            done.append(write)

    checkpoint(volume, between)
    while writes:
        between()
    assert [contents(lun)[at : at + MIB] for at in range(0, SIZE, MIB)] == [
        pattern((at + 8 if at < 4 else at) + 10, MIB) for at in range(8)
    ]
    volume.push_log()
    before = contents(lun)
    assert contents(workshop.crash(volume).lun("lun")) == before


def test_nobody_else_is_given_its_blocks(workshop: Workshop) -> None:
    volume, lun = prepared(workshop)
    write = placed(lun, 0, pattern(1, MIB))
    other = volume.create_lun("other", 32 * MIB)
    for turn in range(3):
        other.write(0, pattern(turn + 2, 32 * MIB))
        checkpoint(volume)
    write.install()
    assert contents(lun)[:MIB] == pattern(1, MIB)
    assert contents(other) == pattern(4, 32 * MIB)


def test_what_is_dropped_is_free_at_once(workshop: Workshop) -> None:
    volume, lun = prepared(workshop)
    allocator = volume.core.allocator
    lun.write(0, pattern(1, MIB))
    free, space = allocator.free, volume.space()
    write = place_write(lun, 0, 2 * MIB)
    assert write is not None
    write.add(pattern(3, MIB))
    assert allocator.free == free - 512
    assert volume.space().snapshots == space.snapshots, "it is nobody's"
    write.drop()
    write.drop()
    assert (allocator.free, allocator.promised) == (free, 0)
    assert volume.space() == space
    assert contents(lun)[:MIB] == pattern(1, MIB)


def test_readers_see_nothing_of_it_before(workshop: Workshop) -> None:
    _, lun = prepared(workshop)
    write = placed(lun, MIB, pattern(1, MIB))
    assert not any(contents(lun))
    back = memoryview(bytearray(MIB))
    write.read_back(back)
    assert back == pattern(1, MIB)
    write.install()
    assert contents(lun)[MIB : 2 * MIB] == pattern(1, MIB)


def test_what_is_had_back_is_verified(workshop: Workshop) -> None:
    volume, lun = prepared(workshop)
    write = placed(lun, 0, pattern(1, MIB))
    volume.device.image[vbns(write)[7] * BLOCK_BYTES] ^= 1  # type: ignore[attr-defined]
    with pytest.raises(CorruptVolume, match="a write of lun"):
        write.read_back(memoryview(bytearray(MIB)))
    write.drop()


def test_a_log_without_room_makes_its_consistency_points_between_records(workshop: Workshop) -> None:
    """Its freeze may find no block in the map that nothing names."""
    volume = workshop.format(128 * MIB, log_bytes=36 * 1024)
    volume.batch_log()
    lun = volume.create_lun("lun", SIZE)
    generation = volume.core.generation
    for turn in range(12):
        placed(lun, 0, pattern(turn + 1, SIZE)).install()
    assert volume.core.generation > generation + 1
    volume.push_log()
    assert contents(workshop.crash(volume).lun("lun")) == pattern(12, SIZE)


def test_where_it_cannot_be_it_is_refused(workshop: Workshop) -> None:
    volume, lun = prepared(workshop)
    allocator = volume.core.allocator
    assert place_write(lun, 512, MIB) is None
    assert place_write(lun, 0, MIB + 512) is None
    assert place_write(lun, SIZE - MIB, 2 * MIB) is None
    assert place_write(lun, 0, 0) is None
    room = (allocator.free - allocator.floor_guest) // PLACED_SHARE
    under_way = []
    while (write := place_write(lun, 0, SIZE)) is not None:
        under_way.append(write)
    assert 0 < allocator.promised <= room, "a peer that takes its time does not keep the room from others"
    for write in under_way:
        write.drop()
    volume.fail(OSError("told to"))
    assert place_write(lun, 0, MIB) is None
    workshop.abandon(volume)


def test_a_lun_that_became_smaller_or_is_gone_takes_none_of_it(workshop: Workshop) -> None:
    volume, lun = prepared(workshop)
    write = placed(lun, SIZE - MIB, pattern(1, MIB))
    other = placed(lun, 0, pattern(2, MIB))
    volume.resize_lun("lun", SIZE - 4096)
    with pytest.raises(InvalidSize):
        write.install()
    write.drop()
    volume.destroy_lun("lun")
    with pytest.raises(NoSuchLun):
        other.install()
    other.drop()
    assert volume.core.allocator.promised == 0


def test_a_disk_that_fails_in_the_middle_leaves_the_books_in_order(workshop: Workshop) -> None:
    """A pointer block that cannot be read, half-way through an install: what came before it is the LUN's, the rest is
    given back."""
    volume, lun = prepared(workshop)
    lun.write(0, pattern(1, 2 * MIB))
    checkpoint(volume)
    write = placed(lun, 0, pattern(2, 2 * MIB))
    taking = lun.leaf

    def leaf(index: int) -> Any:
        if index == 1:
            raise OSError("no disk")
        return taking(index)

    lun.leaf = leaf  # type: ignore[method-assign]
    with pytest.raises(OSError, match="no disk"):
        write.install()
    back = memoryview(bytearray(2 * MIB))
    write.read_back(back)
    assert back == pattern(2, 2 * MIB)
    write.drop()
    del lun.leaf
    assert volume.core.allocator.promised == 0
    assert contents(lun)[: 2 * MIB] == pattern(2, MIB) + pattern(1, 2 * MIB)[MIB:]
    checkpoint(volume)


def test_its_places_may_be_several_stretches(workshop: Workshop) -> None:
    """Each record names one, within one level-1 block."""
    volume, lun = prepared(workshop)
    allocator = volume.core.allocator
    places, gaps = [], []
    for blocks in (3, 100, 300, 197):
        for kept, count in ((places, blocks), (gaps, 5)):
            found = allocator.promise(count)
            assert found is not None
            kept += found
    write = PlacedWrite(lun, 200 * BLOCK_BYTES, places)
    data = pattern(1, 600 * BLOCK_BYTES)
    for at in range(0, len(data), 37 * BLOCK_BYTES):
        write.add(data[at : at + 37 * BLOCK_BYTES])
    back = memoryview(bytearray(len(data)))
    write.read_back(back)
    assert back == data
    assert volume.core.log is not None
    seq = volume.core.log.seq
    write.install()
    assert volume.core.log.seq - seq == 7
    for gap in gaps:
        allocator.break_promise(*gap)
    assert contents(lun)[200 * BLOCK_BYTES :][: len(data)] == data
    volume.push_log()
    assert contents(workshop.crash(volume).lun("lun"))[200 * BLOCK_BYTES :][: len(data)] == data
