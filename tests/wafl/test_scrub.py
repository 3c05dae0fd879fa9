"""The scrub: every block in use is read once, whatever changes meanwhile, and a bad one is named with its place."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable

import pytest

from tests.support.crash_device import MemoryDevice
from tests.support.tampering import Tamper
from tests.support.volumes import MIB, Workshop, checkpoint, pattern, reclaim, take_snapshot
from tests.wafl.test_check import device, whole
from wafl import BLOCK_BYTES, Pace, Scrub, Volume, drive_scrub, scrub
from wafl.bits import positions
from wafl.format import POINTERS

__all__ = ["device", "whole"]


def run(volume: Volume, between: Callable[[], None] = lambda: None) -> Scrub:
    done = Scrub(volume)
    while (part := done.plan()) is not None:
        part.read()
        part.release()
        between()
    return done


def data_vbn(volume: Volume, lun: str, fbn: int) -> int:
    pointers = volume.lun(lun).read_map(fbn >> 8)
    assert pointers is not None
    return int(pointers.vbns[fbn & 255])


def spoil(volume: Volume, vbn: int) -> None:
    image = volume.device.image  # type: ignore[attr-defined]
    image[vbn * BLOCK_BYTES + 77] ^= 1


def populate(volume: Volume) -> None:
    golden = volume.create_lun("golden", 700 * MIB)
    golden.write(0, pattern(1, 500 * BLOCK_BYTES))
    golden.write(600 * MIB, pattern(2, 3 * BLOCK_BYTES))
    take_snapshot(volume, "base")
    clone = volume.create_lun("clone", backing=("base", "golden"))
    clone.write(5 * BLOCK_BYTES, pattern(3, BLOCK_BYTES + 512))
    golden.write(0, pattern(4, 10 * BLOCK_BYTES))
    checkpoint(volume)


@pytest.fixture
def volume(workshop: Workshop) -> Volume:
    made = workshop.format(32 * MIB)
    populate(made)
    return made


def counted_reads(volume: Volume) -> Counter[int]:
    """vbn -> how often it is read from now on."""
    reads: Counter[int] = Counter()
    pread = volume.device.pread

    def counting(offset: int, view: memoryview | bytearray) -> None:
        reads.update(range(offset // BLOCK_BYTES, (offset + len(view)) // BLOCK_BYTES))
        pread(offset, view)

    volume.device.pread = counting  # type: ignore[method-assign]
    return reads


def test_every_block_in_use_is_read_and_a_whole_volume_has_no_bad_one(volume: Volume) -> None:
    reads = counted_reads(volume)
    done = run(volume)
    assert done.done
    assert not done.bad
    allocator = volume.core.allocator
    own = {*range(volume.geometry.head_blocks), *range(volume.geometry.tail_ring, volume.geometry.blocks)}
    in_use = set(positions(allocator.active | allocator.summary).tolist()) - own
    assert in_use - set(reads) == set()
    assert done.verified_bytes == len(in_use) * BLOCK_BYTES


def test_what_snapshots_share_is_read_once(workshop: Workshop) -> None:
    volume = workshop.format(32 * MIB)
    lun = volume.create_lun("a", 64 * MIB)
    lun.write(0, pattern(1, 1000 * BLOCK_BYTES))
    for number in range(20):
        take_snapshot(volume, f"s{number}")
        lun.write(number * BLOCK_BYTES, pattern(number, BLOCK_BYTES))
    checkpoint(volume)
    reads = counted_reads(volume)
    done = run(volume)
    assert not done.bad
    shared = [data_vbn(volume, "a", fbn) for fbn in range(100, 1000)]
    assert {reads[vbn] for vbn in shared} == {1}
    # The tables of each snapshot are read once to find its files and once as blocks of their own.
    assert max(reads.values()) < 60


@pytest.mark.parametrize("slice_bytes", [BLOCK_BYTES, 4 << 20])
def test_a_bad_data_block_is_named_with_every_lun_and_offset(
    volume: Volume, workshop: Workshop, monkeypatch: pytest.MonkeyPatch, slice_bytes: int
) -> None:
    monkeypatch.setattr(scrub, "SLICE_BYTES", slice_bytes)
    spoil(volume, data_vbn(volume, "golden", 300))
    spoil(volume, data_vbn(volume, "clone", 5))
    done = run(volume)
    assert {(bad.lun, bad.offset) for bad in done.bad} == {
        ("golden", 300 * BLOCK_BYTES), (".snapshot/base/golden", 300 * BLOCK_BYTES), ("clone", 5 * BLOCK_BYTES),
    }  # fmt: skip
    assert done.bad_count == 3
    assert all("crc32c" in bad.error for bad in done.bad)
    workshop.abandon(volume)


def test_damaged_metadata_is_named_with_what_is_lost(device: MemoryDevice) -> None:
    tamper = Tamper(device)
    _, golden = tamper.lun_root("golden")
    for vbn, file, length, lost in (
        (tamper.path(golden, 0)[-2][0], "LUN golden", MIB, f"bytes 0 to {MIB - 1}"),
        (tamper.path(tamper_root(tamper, 1), 0)[-1][0], "vtoc", BLOCK_BYTES, "vtoc entries 0 to 3"),
        (tamper.path(tamper.ifile, 1)[-1][0], "inode file", BLOCK_BYTES,
         "inodes 16 to 31, and with them the LUNs clone, golden, odd"),
    ):  # fmt: skip
        mounted = Volume.mount(MemoryDevice(bytearray(device.image)))
        spoil(mounted, vbn)
        told = {bad.vbn: bad for bad in run(mounted).bad if not bad.file.endswith("of snapshot base")}
        assert (told[vbn].file, told[vbn].length, told[vbn].lost) == (file, length, lost)


def tamper_root(tamper: Tamper, number: int) -> scrub.Root:
    return scrub.Root.of(tamper.inode(number))


def test_a_damaged_spare_copy_is_reported(volume: Volume, workshop: Workshop) -> None:
    spoil(volume, volume.geometry.second_label)
    spoil(volume, volume.geometry.fsinfo_vbns(volume.generation)[1])
    done = run(volume)
    assert {bad.file for bad in done.bad} == {"label", "fsinfo"}
    workshop.abandon(volume)


def test_a_block_that_moves_into_a_snapshot_meanwhile_is_not_missed(
    volume: Volume, workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scrub, "SLICE_BYTES", 1)
    bad = data_vbn(volume, "golden", 480)
    spoil(volume, bad)
    turn = iter(range(10_000))

    def guests() -> None:
        number = next(turn)
        if number == 1:
            take_snapshot(volume, "late")
        if number in (2, 5):
            volume.lun("golden").write(0, pattern(number, 500 * BLOCK_BYTES))
            checkpoint(volume)

    done = run(volume, guests)
    assert {found.vbn for found in done.bad} == {bad}
    workshop.abandon(volume)


def test_everything_may_change_between_two_slices(volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scrub, "SLICE_BYTES", 1)
    turn = iter(range(10_000))

    def guests() -> None:
        number = next(turn)
        if number > 60:
            return
        kind = number % 6
        if kind == 0:
            volume.create_lun(f"new{number}", 3 * MIB).write(number * 512, pattern(number, MIB))
        elif kind == 1:
            take_snapshot(volume, f"s{number}")
        elif kind == 2:
            volume.lun("golden").unmap(0, 64 * MIB)
        elif kind == 3:
            volume.destroy_lun(f"new{number - 3}")
        elif kind == 4:
            volume.delete_snapshot(f"s{number - 3}")
        else:
            reclaim(volume)
        checkpoint(volume)

    done = run(volume, guests)
    assert done.done
    assert not done.bad


def test_freed_blocks_come_back_between_two_slices(volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scrub, "SLICE_BYTES", 1)
    done = Scrub(volume)
    part = done.plan()
    assert part is not None
    volume.destroy_lun("golden")
    reclaim(volume)
    held = volume.space().freeing
    assert held
    part.read()
    part.release()
    assert volume.space().freeing == 0


def test_a_tree_whose_pointers_meet_again_does_not_go_on_for_ever(device: MemoryDevice) -> None:
    tamper = Tamper(device)
    number, root = tamper.lun_root("golden")
    below = tamper.path(root, 0)[-2][0]
    # Six levels, each block of which points 256 times at the next, and a bad block at the end: 256**5 ways to it.
    tamper.device.image[tamper.vbn_of("golden", 3) * BLOCK_BYTES] ^= 1
    crc = scrub.crc32c(tamper.block(below))
    for vbn in free_blocks(tamper, 5):
        block = bytearray(BLOCK_BYTES)
        block[:2048] = below.to_bytes(8, "little") * POINTERS
        block[2048:3072] = crc.to_bytes(4, "little") * POINTERS
        tamper.put(vbn, block)
        below, crc = vbn, scrub.crc32c(block)
    tamper.change_inode(number, root_vbn=below, root_crc=crc, height=6)
    mounted = Volume.mount(device)
    reads = counted_reads(mounted)
    done = run(mounted)
    assert done.bad
    assert sum(reads.values()) < 1_000_000


def free_blocks(tamper: Tamper, count: int) -> list[int]:
    active = tamper.image.map_bits(scrub.Root.of(tamper.inode(2)), "")
    summary = tamper.image.map_bits(scrub.Root.of(tamper.fsinfo, "summary_"), "")
    return [int(vbn) for vbn in (~(active | summary)).nonzero()[0][:count]]


def test_an_unreadable_stretch_costs_its_blocks_alone(volume: Volume, workshop: Workshop) -> None:
    broken = {data_vbn(volume, "golden", 50) * BLOCK_BYTES, data_vbn(volume, "golden", 51) * BLOCK_BYTES}
    pread = volume.device.pread

    def failing(offset: int, view: memoryview | bytearray) -> None:
        if any(offset <= at < offset + len(view) for at in broken):
            raise OSError(5, "Input/output error")
        pread(offset, view)

    volume.device.pread = failing  # type: ignore[method-assign]
    done = run(volume)
    assert sorted(bad.offset for bad in done.bad if bad.lun == "golden") == [50 * BLOCK_BYTES, 51 * BLOCK_BYTES]
    volume.device.pread = pread  # type: ignore[method-assign]
    assert not run(volume).bad
    workshop.remount(volume)


def test_the_driver_keeps_to_its_limit_and_leaves_no_thread_behind(volume: Volume) -> None:
    async def drive() -> tuple[Scrub, list[int]]:
        rests: list[float] = []
        seen: list[int] = []
        done = Scrub(volume)
        real_sleep = asyncio.sleep

        async def sleep(seconds: float) -> None:
            rests.append(seconds)
            await real_sleep(0)

        asyncio.sleep = sleep  # type: ignore[assignment]
        try:
            await drive_scrub(done, Pace(1 << 20), lambda: seen.append(done.verified_bytes))
        finally:
            asyncio.sleep = real_sleep
        # At a mebibyte a second the rests make up for nearly all of the reading.
        assert sum(rests) > done.verified_bytes / (1 << 20) / 2
        return done, seen

    done, seen = asyncio.run(drive())
    assert done.done
    assert seen == sorted(seen)


def test_a_volume_may_grow_between_two_slices(volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scrub, "SLICE_BYTES", 1)
    turn = iter(range(10_000))

    def guests() -> None:
        if next(turn) == 2:
            volume.grow(300 * MIB)
            volume.create_lun("new", 64 * MIB).write(0, pattern(9, 40 * MIB))
            checkpoint(volume)

    assert not run(volume, guests).bad
