"""Where a LUN's blocks live: right against a look at every pointer, and bounded for what is too large for that."""

from __future__ import annotations

import random
from collections.abc import Generator

import pytest

from tests.support.volumes import MIB, Workshop, checkpoint, take_snapshot
from wafl import BLOCK_BYTES, Layout, Lun, NoSuchLun, Step, Volume, layout, lun_layout
from wafl.format import FIRST_DATA_VBN

TIB = 1 << 40
BLOCK = b"x" * BLOCK_BYTES


def drawn(lun: Lun, stretches: int) -> Layout:
    return rest(lun_layout(lun, stretches))


def rest(steps: Generator[Step, None, Layout]) -> Layout:
    while True:
        try:
            next(steps)
        except StopIteration as ended:
            found: Layout = ended.value
            return found


def by_hand(lun: Lun, offset: int, length: int) -> tuple[int, int]:
    """Own and backing bytes of a range, from the maps that reads use."""
    own = backing = 0
    for at in range(offset, offset + length, BLOCK_BYTES):
        index, slot = at >> 20, at // BLOCK_BYTES % 256
        mine, seen = lun.own_map(index), lun.read_map(index)
        assert mine is not None
        assert seen is not None
        size = min(BLOCK_BYTES, offset + length - at)
        own += size * (mine.vbns[slot] >= FIRST_DATA_VBN)
        backing += size * (mine.vbns[slot] < FIRST_DATA_VBN <= seen.vbns[slot])
    return own, backing


def agree(lun: Lun, found: Layout) -> None:
    at = 0
    for stretch in found.stretches:
        assert stretch.offset == at
        assert (stretch.own, stretch.backing) == by_hand(lun, at, stretch.length)
        at += stretch.length
    assert at == lun.size_bytes


def loads(volume: Volume, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one with each pointer block that is read."""
    counted: list[int] = []
    load = volume.core.load

    def count(parent: object, slot: int, level: int, nowait: bool = False) -> object:
        counted.append(level)
        return load(parent, slot, level, nowait)  # type: ignore[arg-type]

    monkeypatch.setattr(volume.core, "load", count)
    return counted


@pytest.mark.parametrize("seed", range(8))
def test_it_is_what_the_pointers_say_over_a_chain_with_zeros_and_a_limit(workshop: Workshop, seed: int) -> None:
    rng = random.Random(seed)
    volume = workshop.format(32 * MIB)
    lun = volume.create_lun("l0", 3 * MIB - 512)
    for depth in range(3):
        for _ in range(40):
            block = rng.randrange(0, lun.size_bytes // BLOCK_BYTES)
            lun.write(block * BLOCK_BYTES, BLOCK * rng.choice((1, 1, 5)) if block < 700 else BLOCK)
        lun.unmap(rng.randrange(0, MIB), rng.randrange(1, MIB))
        take_snapshot(volume, f"s{depth}")
        lun = volume.create_lun(f"l{depth + 1}", None, backing=(f"s{depth}", f"l{depth}"))
        lun.resize(rng.choice((2 * MIB + 8192, 260 * MIB, 3 * MIB)))
    checkpoint(volume)
    lun.write(MIB, BLOCK)
    for stretches in (1, 7, 100):
        found = drawn(lun, stretches)
        assert found.exact
        agree(lun, found)
    assert len(drawn(lun, 10**9).stretches) <= min(layout.MAX_STRETCHES, -(-lun.size_bytes // BLOCK_BYTES))


def test_a_lun_with_a_part_of_a_block_at_its_end(workshop: Workshop) -> None:
    lun = workshop.format().create_lun("a", BLOCK_BYTES + 512)
    lun.write(BLOCK_BYTES, b"x" * 512)
    found = drawn(lun, 9).stretches
    assert [(stretch.length, stretch.own, stretch.backing) for stretch in found] == [(BLOCK_BYTES, 0, 0), (512, 512, 0)]


def test_a_sparse_lun_of_16_tib_is_exact_and_costs_what_is_in_it(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = workshop.format(32 * MIB)
    lun = volume.create_lun("big", 16 * TIB, reserved=False)
    places = [n * (TIB // 4) + 12345 * BLOCK_BYTES for n in range(64)]
    for place in places:
        lun.write(place, BLOCK)
    take_snapshot(volume, "s")
    backed = volume.create_lun("backed", None, backing=("s", "big"))
    backed.write(places[0], BLOCK)
    backed.unmap(places[1], BLOCK_BYTES)
    volume = workshop.remount(volume)
    counted = loads(volume, monkeypatch)
    found = drawn(volume.lun("backed"), 64)
    assert found.exact
    assert [(s.own, s.backing) for s in found.stretches[:2]] == [(BLOCK_BYTES, 0), (0, 0)]
    assert all((s.own, s.backing) == (0, BLOCK_BYTES) for s in found.stretches[2:])
    # three levels below the root, of two LUNs, at each place at most
    assert len(counted) < 64 * 3 * 2 + 10


def test_what_is_too_large_is_sampled_within_its_bounds(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = workshop.format(160 * MIB)
    lun = volume.create_lun("full", 100 * MIB, reserved=False)
    for at in range(0, 80 * MIB, MIB):
        lun.write(at, BLOCK * (256 if at < 40 * MIB else 128))
    volume = workshop.remount(volume)
    counted = loads(volume, monkeypatch)
    monkeypatch.setattr(layout, "EXACT_LOOKS", 20)
    monkeypatch.setattr(layout, "SAMPLE_LOOKS", 10)
    found = drawn(volume.lun("full"), 10)
    assert not found.exact
    assert len(counted) <= 20 + 1 + 10
    own = [stretch.own / stretch.length for stretch in found.stretches]
    # what is not there is exact, what is there is as its neighbours are
    assert own[8:] == [0, 0]
    assert own[:4] == [1] * 4
    assert all(0.4 < share <= 1 for share in own[4:8])
    assert min(own[4:8]) == pytest.approx(0.5)


def test_guests_come_in_between_and_a_lun_that_goes_is_an_error(workshop: Workshop) -> None:
    volume = workshop.format(64 * MIB)
    lun = volume.create_lun("a", 40 * MIB, reserved=False)
    for at in range(0, 40 * MIB, MIB):
        lun.write(at, BLOCK)
    steps = lun_layout(lun, 10)
    next(steps)
    volume.destroy_lun("a")
    with pytest.raises(NoSuchLun):
        next(steps)


def test_a_restore_in_between_is_seen_from_there_on(workshop: Workshop) -> None:
    volume = workshop.format(64 * MIB)
    lun = volume.create_lun("a", 40 * MIB, reserved=False)
    for at in range(0, 40 * MIB, MIB):
        lun.write(at, BLOCK)
    take_snapshot(volume, "s")
    steps = lun_layout(lun, 1)
    next(steps)
    volume.restore("s", "a")
    (one,) = rest(steps).stretches
    assert one.own + one.backing == 40 * BLOCK_BYTES
    assert one.own > 0
    assert one.backing > 0


def test_a_slow_disk_is_read_ahead_while_others_run_and_at_last_waited_for(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = workshop.format(64 * MIB)
    lun = volume.create_lun("a", 4 * MIB, reserved=False)
    for at in range(0, 4 * MIB, MIB):
        lun.write(at, BLOCK)
    volume = workshop.remount(volume)
    asked: list[int] = []

    def never(offset: int, view: object) -> bool:
        asked.append(offset)
        return False

    monkeypatch.setattr(volume.device, "pread_nowait", never)
    lun = volume.lun("a")
    steps = lun_layout(lun, 4)
    for _ in range(layout.PATIENCE):
        next(steps)
    # the same block again and again, and nothing waited for
    assert len(set(asked)) == 1
    assert [stretch.own for stretch in rest(steps).stretches] == [BLOCK_BYTES] * 4
    assert len(set(asked)) == 5
