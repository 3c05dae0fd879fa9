"""Single blocks written together are what they would be one by one: bytes, counters, log, space, over a crash."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from tests.support.crash_device import MemoryDevice
from tests.support.volumes import MIB, Workshop, checkpoint, lun_of_kind, pattern
from wafl import Lun, NoSpace, Volume, write_several
from wafl.format import BLOCK_BYTES
from wafl.gather import _write_neighbours
from wafl.nvlog import Log
from wafl.types import Step

SIZE = 4 * MIB
BLOCKS = SIZE // BLOCK_BYTES


class CountingDevice(MemoryDevice):
    """How many buffers each write had."""

    def __init__(self, image: bytearray) -> None:
        super().__init__(image)
        self.lengths: list[int] = []

    def pwrite(self, offset: int, buffers: Any) -> None:
        self.lengths.append(len(buffers))
        super().pwrite(offset, buffers)


def counting(workshop: Workshop, size: int = 64 * MIB, log_bytes: int | None = None) -> tuple[Volume, CountingDevice]:
    device = CountingDevice(bytearray(size))
    Volume.format(device, name="vol0", now=1e9, log_bytes=log_bytes)
    return workshop.mount(device), device


def contents(lun: Lun) -> bytes:
    whole = bytearray(lun.size_bytes)
    lun.read_into(0, memoryview(whole))
    return bytes(whole)


def writes_of(seed: int, count: int) -> list[tuple[int, bytes]]:
    """Anywhere, the same place more than once, now and then a part of a block or several."""
    random = Random(seed)
    found = []
    for number in range(count):
        kind = random.random()
        if kind < 0.9:
            found.append((random.randrange(BLOCKS) * BLOCK_BYTES, pattern(number + 1, BLOCK_BYTES)))
        elif kind < 0.95:
            found.append((random.randrange(BLOCKS * 8 - 1) * 512, pattern(number + 1, 512)))
        else:
            found.append((random.randrange(BLOCKS - 2) * BLOCK_BYTES, pattern(number + 1, 2 * BLOCK_BYTES)))
    return found


def streams_of(seed: int, count: int) -> list[tuple[int, bytes]]:
    """Writes of a few blocks, most of them where the one before ends, over borders of level-1 blocks and of the LUN's
    end; now and then a part of a block."""
    random, found, at = Random(seed), [], 0
    for number in range(count):
        length = random.choice((1, 2, 16, 16, 16, 31, 100)) * BLOCK_BYTES if random.random() < 0.97 else 512
        if random.random() < 0.1 or at + length > SIZE:
            at = random.randrange(BLOCKS - 100) * BLOCK_BYTES
        found.append((at, pattern(number + 1, length)))
        at += length
    return found


def groups(writes: list[tuple[int, bytes]], seed: int) -> list[list[tuple[int, bytes]]]:
    random, found, at = Random(seed), [], 0
    while at < len(writes):
        count = random.randrange(1, 40)
        found.append(writes[at : at + count])
        at += count
    return found


def warm(lun: Lun) -> None:
    """Every level-1 block is this generation's."""
    for at in range(0, SIZE, MIB):
        lun.write(at, bytes(BLOCK_BYTES))


@pytest.mark.parametrize("made", [writes_of, streams_of])
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("kind", ["plain", "reserved", "backed"])
def test_the_same_as_one_by_one(workshop: Workshop, seed: int, kind: str, made: Any) -> None:
    """Bytes, space and counters; also over a crash of the daemon, and with consistency points between."""
    writes, told = made(seed, 300), []
    for together in (True, False):
        volume, _ = counting(workshop)
        volume.batch_log()
        lun = lun_of_kind(volume, kind, SIZE)
        for number, group in enumerate(groups(writes, seed)):
            if together:
                write_several(lun, group)
            else:
                for offset, data in group:
                    lun.write(offset, data)
            if number % 7 == 3:
                checkpoint(volume)
        volume.push_log()
        figures = (lun.used_bytes, lun.private_bytes, lun.missing_blocks(), volume.space().available)
        before = contents(lun)
        volume = workshop.crash(volume)
        assert contents(volume.lun("lun")) == before
        told.append((before, figures))
        workshop.close(volume)
    assert told[0] == told[1]


def test_neighbours_on_the_volume_are_written_in_one_call(workshop: Workshop) -> None:
    volume, device = counting(workshop)
    volume.batch_log()
    lun = volume.create_lun("lun", SIZE)
    warm(lun)
    device.lengths.clear()
    write_several(lun, [(number * 37 % BLOCKS * BLOCK_BYTES, pattern(number, BLOCK_BYTES)) for number in range(32)])
    assert device.lengths == [32]


def test_the_records_of_a_group_are_those_of_single_writes() -> None:
    fbns, crcs, vbn = [7, 700, 3, 1 << 31], [0xFFFFFFFF, 0, 0x1234567, 5], 1 << 40
    logs = []
    for way in ("group", "single", "run"):
        written: list[tuple[int, bytes]] = []
        log = Log(lambda at, data, to=written: to.append((at, data)), 1 * MIB, 77, 9, 1, pytest.fail)  # type: ignore[misc]
        log.batched = True
        log.write_one(2, 11, 12, 13)
        if way == "group":
            log.write_each(5, fbns, vbn, crcs)
        else:
            for number, (fbn, crc) in enumerate(zip(fbns, crcs, strict=True)):
                if way == "single":
                    log.write_one(5, fbn, vbn + number, crc)
                else:
                    log.write(5, fbn, vbn + number, [crc])
        log.write_one(2, 21, 22, 23)
        log.push()
        logs.append((written, log.seq, log.at, log.unsynced_bytes))
    assert logs[0] == logs[1] == logs[2]
    assert len(logs[0][0][0][1]) == logs[0][3] > 0


def test_the_first_after_a_consistency_point_are_written_in_one_call_too(workshop: Workshop) -> None:
    """But for one, which begins a new run of blocks."""
    volume, device = counting(workshop)
    volume.batch_log()
    lun = volume.create_lun("lun", SIZE)
    warm(lun)
    checkpoint(volume)
    device.lengths.clear()
    writes = [(number * 37 % BLOCKS * BLOCK_BYTES, pattern(number, BLOCK_BYTES)) for number in range(32)]
    write_several(lun, writes)
    assert device.lengths == [1, 31]
    for offset, data in writes:
        assert contents(lun)[offset : offset + BLOCK_BYTES] == data


def test_groups_come_between_the_steps_of_a_consistency_point(workshop: Workshop) -> None:
    volume, _ = counting(workshop)
    volume.batch_log()
    lun = volume.create_lun("lun", SIZE)
    warm(lun)
    random, model = Random(5), bytearray(contents(lun))
    for number, step in enumerate(volume.checkpoint()):
        if step is Step.SYNC:
            volume.sync()
        group = [(random.randrange(BLOCKS) * BLOCK_BYTES, pattern(number * 8 + n, BLOCK_BYTES)) for n in range(8)]
        write_several(lun, group)
        for offset, data in group:
            model[offset : offset + BLOCK_BYTES] = data
    assert contents(lun) == model
    volume.push_log()
    volume = workshop.crash(volume)
    assert contents(volume.lun("lun")) == model


def fill_up(volume: Volume, size: int) -> None:
    """A LUN of `size` bytes takes what room there is."""
    filler = volume.create_lun("filler", size, reserved=False)
    with pytest.raises(NoSpace):
        all(filler.write(at, pattern(at, BLOCK_BYTES)) for at in range(0, size, BLOCK_BYTES))


def test_where_room_is_short_it_is_one_by_one_and_still_the_same(workshop: Workshop) -> None:
    volume, _ = counting(workshop, size=16 * MIB)
    volume.batch_log()
    lun = volume.create_lun("lun", SIZE, reserved=True)
    warm(lun)
    fill_up(volume, 16 * MIB)
    for turn in range(4):
        checkpoint(volume)
        writes = [(number * 37 % BLOCKS * BLOCK_BYTES, pattern(turn + number, BLOCK_BYTES)) for number in range(200)]
        for first in range(0, 200, 20):
            write_several(lun, writes[first : first + 20])
        found = contents(lun)
        assert all(found[offset : offset + BLOCK_BYTES] == data for offset, data in writes)
        checkpoint(volume)
        data = pattern(turn, MIB)
        for first in range(0, SIZE, MIB):
            write_several(lun, [(first + at, data[at : at + 128 * 1024]) for at in range(0, MIB, 128 * 1024)])
        assert contents(lun) == data * 4


def test_a_full_volume_has_no_level_one_block_for_neighbours(workshop: Workshop) -> None:
    """What is kept back for consistency points stays there, and whoever writes one by one is told that it is full."""
    volume, device = counting(workshop, size=16 * MIB)
    volume.batch_log()
    lun = volume.create_lun("lun", SIZE, reserved=False)
    warm(lun)
    fill_up(volume, 64 * MIB)
    allocator = volume.core.allocator
    leaf = lun.own.get(1)
    assert leaf is None or leaf.generation != volume.core.generation
    before = allocator.free, allocator.end - allocator.next
    device.lengths.clear()
    group = [(MIB + place, pattern(place, BLOCK_BYTES)) for place in range(0, 64 * BLOCK_BYTES, BLOCK_BYTES)]
    assert _write_neighbours(lun, group, 0) == 0
    assert (allocator.free, allocator.end - allocator.next) == before
    assert device.lengths == []
    with pytest.raises(NoSpace):
        write_several(lun, group)


def test_neighbours_are_one_write_and_one_record(workshop: Workshop) -> None:
    volume, device = counting(workshop)
    volume.batch_log()
    lun = volume.create_lun("lun", SIZE)
    warm(lun)
    device.lengths.clear()
    assert volume.core.log is not None
    seq = volume.core.log.seq
    data = pattern(7, MIB + 64 * 1024)
    write_several(lun, [(at, data[at : at + 64 * 1024]) for at in range(0, len(data), 64 * 1024)])
    assert device.lengths == [16, 1], "the seventeenth is in the next level-1 block"
    assert volume.core.log.seq == seq + 2
    assert contents(lun)[: len(data)] == data


def test_neighbours_make_the_level_one_block_their_own(workshop: Workshop) -> None:
    """After a consistency point none has to go ahead for that; the very first begins a new run of blocks."""
    volume, device = counting(workshop)
    volume.batch_log()
    lun = volume.create_lun("lun", SIZE)
    warm(lun)
    checkpoint(volume)
    device.lengths.clear()
    data = pattern(7, 2 * MIB)
    write_several(lun, [(at, data[at : at + 256 * 1024]) for at in range(0, len(data), 256 * 1024)])
    assert device.lengths == [1, 3, 4]
    assert contents(lun)[: len(data)] == data


@pytest.mark.parametrize("kind", ["plain", "reserved", "backed"])
def test_long_neighbours_between_the_steps_of_a_consistency_point(workshop: Workshop, kind: str) -> None:
    """Level-1 blocks that the consistency point is writing are made anew by them, and not lost to it."""
    volume, _ = counting(workshop)
    volume.batch_log()
    lun = lun_of_kind(volume, kind, SIZE)
    warm(lun)
    random, model = Random(5), bytearray(contents(lun))
    for number, step in enumerate(volume.checkpoint()):
        if step is Step.SYNC:
            volume.sync()
        start = random.randrange(BLOCKS - 256) * BLOCK_BYTES
        data = pattern(number, MIB)
        group = [(start + at, data[at : at + 256 * 1024]) for at in range(0, MIB, 256 * 1024)]
        write_several(lun, group)
        model[start : start + MIB] = data
    assert contents(lun) == model
    volume.push_log()
    volume = workshop.crash(volume)
    assert contents(volume.lun("lun")) == model


def test_long_ones_are_not_begun_if_one_has_to_wait(workshop: Workshop) -> None:
    """They will all be done again."""
    volume, _ = counting(workshop)
    warm(volume.create_lun("lun", SIZE))
    checkpoint(volume)
    device = CountingDevice(bytearray(volume.device.image))  # type: ignore[attr-defined]
    volume = workshop.mount(device)
    volume.batch_log()
    lun = volume.lun("lun")
    before = pattern(1, 256 * 1024)
    lun.write(0, before)
    device.lengths.clear()
    device.cold = True
    data = pattern(2, 256 * 1024)
    group = [(0, data[: 128 * 1024]), (128 * 1024, data[128 * 1024 :]), (2 * MIB, data[: 128 * 1024])]
    assert not write_several(lun, group)
    device.cold = False
    assert device.lengths == []
    assert contents(lun)[: 256 * 1024] == before
    assert write_several(lun, group)
    assert contents(lun)[: 256 * 1024] == data


def test_the_last_of_several_to_one_place_stays(workshop: Workshop) -> None:
    volume, device = counting(workshop)
    volume.batch_log()
    lun = volume.create_lun("lun", SIZE)
    warm(lun)
    used = lun.used_bytes
    device.lengths.clear()
    write_several(lun, [(0, pattern(number, BLOCK_BYTES)) for number in range(1, 6)])
    assert device.lengths == [5]
    assert contents(lun)[:BLOCK_BYTES] == pattern(5, BLOCK_BYTES)
    assert lun.used_bytes == used
    checkpoint(volume)


def test_a_log_without_room_makes_its_consistency_point_between_writes(workshop: Workshop) -> None:
    """Its freeze may find no block that is written and not pointed at."""
    volume, _ = counting(workshop, log_bytes=36 * 1024)
    volume.batch_log()
    lun = volume.create_lun("lun", SIZE)
    wanted = bytearray(SIZE)
    generation = volume.core.generation
    for seed in range(40):
        group = [(offset, data) for offset, data in writes_of(seed, 60) if len(data) == BLOCK_BYTES]
        write_several(lun, group)
        for offset, data in group:
            wanted[offset : offset + BLOCK_BYTES] = data
    assert volume.core.generation > generation, "the log was full more than once"
    assert contents(lun) == wanted
    volume.push_log()
    volume = workshop.crash(volume)
    assert contents(volume.lun("lun")) == wanted


def test_a_full_volume_refuses_what_has_no_room_and_keeps_what_was_there(workshop: Workshop) -> None:
    volume, _ = counting(workshop, 16 * MIB)
    volume.batch_log()
    lun = volume.create_lun("lun", 64 * MIB)
    written: dict[int, bytes] = {}
    full = False
    for first in range(0, 64 * MIB, 32 * BLOCK_BYTES):
        group = [(first + at * BLOCK_BYTES, pattern(first + at, BLOCK_BYTES)) for at in range(32)]
        try:
            write_several(lun, group)
        except NoSpace:
            full = True
            break
        written.update(group)
    assert full
    piece = memoryview(bytearray(BLOCK_BYTES))
    for offset, data in written.items():
        lun.read_into(offset, piece)
        assert piece == data


def test_a_device_that_cannot_write_changes_nothing(workshop: Workshop) -> None:
    volume, device = counting(workshop)
    volume.batch_log()
    lun = volume.create_lun("lun", SIZE)
    warm(lun)
    write_several(lun, [(number * BLOCK_BYTES, pattern(number, BLOCK_BYTES)) for number in range(8)])
    before, figures = contents(lun), (lun.used_bytes, volume.core.allocator.next)

    def broken(offset: int, buffers: Any) -> None:
        raise OSError("no disk")

    working, device.pwrite = device.pwrite, broken  # type: ignore[method-assign]
    with pytest.raises(OSError, match="no disk"):
        write_several(lun, [(number * BLOCK_BYTES, pattern(99, BLOCK_BYTES)) for number in range(8)])
    device.pwrite = working  # type: ignore[method-assign]
    assert contents(lun) == before
    assert (lun.used_bytes, volume.core.allocator.next) == figures
