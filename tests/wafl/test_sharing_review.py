"""Shared blocks where it is easily wrong: rows that cannot be read, replays that meet damage, errors half-way."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.support.crash_device import MemoryDevice
from tests.support.volumes import EPOCH, MIB, Workshop, checkpoint, errors, pattern, problems, reclaim
from tests.wafl.test_lun import read
from tests.wafl.test_reserve import fill_up
from tests.wafl.test_sharing import share_all
from wafl import BLOCK_BYTES, CorruptVolume, NoSpace, Volume
from wafl.buffers import Buffer, PointerMap
from wafl.references import Grant, References
from wafl.repair import repair
from wafl.tree import level_one

BLOCK = BLOCK_BYTES


def killed(volume: Volume, *, read_only: bool = False) -> MemoryDevice:
    """What a kill leaves, for another mount."""
    return MemoryDevice(bytearray(volume.device.image), read_only=read_only)  # type: ignore[attr-defined]


def spoil(device: MemoryDevice, vbn: int) -> None:
    device.image[vbn * BLOCK + 9] ^= 1


def leaf_of(volume: Volume, name: str, index: int) -> Buffer:
    found = level_one(volume.core, volume.lun(name).inode, index)
    assert isinstance(found, Buffer)
    return found


@pytest.fixture
def volume(workshop: Workshop) -> Volume:
    volume = workshop.format(32 * MIB)
    volume.create_lun("a", 4 * MIB).write(0, pattern(1, 3 * MIB))
    volume.create_lun("b", 4 * MIB).write(0, pattern(2, 3 * MIB))
    checkpoint(volume)
    return volume


# --- counts that cannot be read ---------------------------------------------------------------------------------------


def test_a_volume_goes_on_whatever_is_freed_in_a_lost_row(workshop: Workshop, volume: Volume) -> None:
    """More pointers go there than the sum of all counts."""
    assert volume.lun("b").share(0, volume.lun("a"), 0, BLOCK) == BLOCK
    checkpoint(volume)
    counts = volume.files.references.inode
    assert counts is not None
    rows: PointerMap | None = level_one(volume.core, counts, 0)
    assert rows is not None
    device = killed(volume)
    for vbn in rows.vector().tolist():
        if vbn:
            spoil(device, vbn)
    damaged = workshop.mount(device)
    for seed in range(3, 6):
        damaged.lun("a").write(0, pattern(seed, 3 * MIB))
        checkpoint(damaged)
    assert read(damaged.lun("b"), 0, BLOCK) == pattern(1, BLOCK)
    workshop.abandon(damaged)
    damaged.close()
    repair(device)
    assert problems(device) == []
    again = workshop.mount(device)
    assert read(again.lun("a"), 0, 3 * MIB) == pattern(5, 3 * MIB)
    assert read(again.lun("b"), 0, 2 * BLOCK) == pattern(1, BLOCK) + pattern(2, 2 * BLOCK)[BLOCK:]


# --- errors at the worst moment ---------------------------------------------------------------------------------------


def test_nothing_has_to_be_read_once_counts_have_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even pointers of the source that have left the cache since they were looked at."""
    device = MemoryDevice(bytearray(64 * MIB))
    Volume.format(device, name="v", now=EPOCH, log_bytes=0)
    volume = Volume.mount(device)
    a, b, _ = (volume.create_lun(name, 64 * MIB) for name in "abc")
    for at in range(0, 64 * MIB, MIB):
        a.write(at, pattern(at, BLOCK))
    share_all(b, a, 64 * MIB)  # now the source's pointers need not change to be shared once more
    volume.close()
    device = killed(volume)
    volume = Volume.mount(device, cache_bytes=1)
    use, pread = Grant.use, device.pread

    def fails(offset: int, view: Any) -> None:
        raise OSError("the disk has gone")

    def used(grant: Grant) -> None:
        use(grant)
        device.pread = fails  # type: ignore[method-assign]

    monkeypatch.setattr(Grant, "use", used)
    a, c, done = volume.lun("a"), volume.lun("c"), 0
    while done < 64 * MIB:
        more = c.share(done, a, done, 64 * MIB - done)
        device.pread = pread  # type: ignore[method-assign]
        assert more > 0
        done += more
    volume.close()
    assert problems(device) == []
    assert read(Volume.mount(device).lun("c"), 63 * MIB, BLOCK) == pattern(63 * MIB, BLOCK)


# --- replays ----------------------------------------------------------------------------------------------------------


def test_a_damaged_label_costs_a_volume_that_is_only_read_no_share(volume: Volume) -> None:
    volume.lun("b").share(0, volume.lun("a"), 0, 2 * MIB)
    device = killed(volume, read_only=True)
    device.image[100] ^= 1
    before = bytes(device.image)
    reader = Volume.mount(device, read_only=True)
    assert read(reader.lun("b"), 0, 2 * MIB) == pattern(1, 2 * MIB)
    assert bytes(device.image) == before


def test_a_lost_pointer_block_of_the_lun_costs_a_replay_no_more_than_what_is_below_it(volume: Volume) -> None:
    lost = leaf_of(volume, "b", 1).vbn
    assert volume.lun("b").share(0, volume.lun("a"), 0, 3 * MIB) == 3 * MIB
    device = killed(volume)
    spoil(device, lost)
    b = Volume.mount(device).lun("b")
    assert read(b, 0, MIB) == pattern(1, MIB)
    assert read(b, 2 * MIB, MIB) == pattern(1, 3 * MIB)[2 * MIB :]
    with pytest.raises(CorruptVolume):
        read(b, MIB, BLOCK)


@pytest.mark.parametrize("read_only", [False, True])
def test_a_replay_that_cannot_count_once_more_copies(
    volume: Volume, monkeypatch: pytest.MonkeyPatch, read_only: bool
) -> None:
    """Where nothing is written it need not count."""
    volume.lun("b").share(0, volume.lun("a"), 0, 2 * MIB)
    monkeypatch.setattr("wafl.references.MAX_COUNT", 0)
    again = Volume.mount(killed(volume, read_only=read_only), read_only=read_only)
    assert read(again.lun("b"), 0, 2 * MIB) == pattern(1, 2 * MIB)


def test_a_block_that_a_replay_can_neither_share_nor_copy_is_an_error(
    volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the only one: what lies behind it is copied."""
    bad = leaf_of(volume, "a", 0).vbns[3]
    volume.lun("b").share(0, volume.lun("a"), 0, MIB)
    device = killed(volume)
    spoil(device, bad)
    monkeypatch.setattr("wafl.references.MAX_COUNT", 0)
    b = Volume.mount(device).lun("b")
    assert read(b, 0, 3 * BLOCK) == pattern(1, 3 * BLOCK)
    assert read(b, 4 * BLOCK, MIB - 4 * BLOCK) == pattern(1, MIB)[4 * BLOCK :]
    with pytest.raises(CorruptVolume):
        read(b, 3 * BLOCK, BLOCK)


@pytest.mark.parametrize("read_only", [False, True])
def test_a_full_volume_mounts_though_a_replay_loses_something(workshop: Workshop, read_only: bool) -> None:
    """What is lost takes one block, not as many as were shared."""
    volume = workshop.format(8 * MIB, log_bytes=128 << 10)
    a, b, filler = (volume.create_lun(name, 16 * MIB) for name in ("a", "b", "filler"))
    a.write(0, pattern(1, 2 * MIB))
    b.share(3 * MIB, a, 0, BLOCK)
    fill_up(filler, BLOCK)
    filler.unmap(0, 40 * BLOCK)
    reclaim(volume)
    lost = leaf_of(volume, "a", 1).vbn
    assert b.share(0, a, 0, 2 * MIB) == 2 * MIB
    device = killed(volume, read_only=read_only)
    spoil(device, lost)
    again = Volume.mount(device, read_only=read_only)
    b = again.lun("b")
    assert read(b, 0, MIB) == pattern(1, MIB)
    for at in range(MIB, 2 * MIB, BLOCK):
        with pytest.raises(CorruptVolume):
            read(b, at, BLOCK)
    if not read_only:
        b.write(MIB, pattern(3, 2 * BLOCK))
        again.close()
        assert read(Volume.mount(device).lun("b"), MIB, 2 * BLOCK) == pattern(3, 2 * BLOCK)
        assert not any("reference counts" in line for line in errors(device))


def full_volume_with_a_share(workshop: Workshop, blocks: int) -> MemoryDevice:
    """What a kill leaves."""
    volume = workshop.format(8 * MIB, log_bytes=128 << 10)
    a, b, filler = (volume.create_lun(name, 16 * MIB) for name in ("a", "b", "filler"))
    a.write(0, pattern(1, 2 * MIB))
    b.share(3 * MIB, a, 0, BLOCK)
    fill_up(filler, BLOCK)
    filler.unmap(0, 20 * BLOCK)
    reclaim(volume)
    assert b.share(0, a, 0, blocks * BLOCK) == blocks * BLOCK
    allocator = volume.core.allocator
    assert allocator.free < allocator.floor_guest + 20
    return killed(volume)


def refuse_grants(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if every block had too many pointers."""
    none = np.empty(0, np.uint64)
    monkeypatch.setattr(References, "grant", lambda self, vbns: Grant(self, 0, none, none.astype(np.intp), {}))


def test_a_replay_that_copies_has_room_on_a_full_volume(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    device = full_volume_with_a_share(workshop, 45)
    refuse_grants(monkeypatch)
    volume = workshop.mount(device)
    assert volume.nvlog.replayed == 1
    b = volume.lun("b")
    assert read(b, 0, 45 * BLOCK) == pattern(1, 45 * BLOCK)
    b.unmap(0, MIB)


def test_a_replay_that_copies_more_than_there_is_room_for_says_what_to_do(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = full_volume_with_a_share(workshop, 200)
    refuse_grants(monkeypatch)
    before = bytes(device.image)
    with pytest.raises(NoSpace, match="read only"):
        Volume.mount(device)
    volume = Volume.mount(MemoryDevice(bytearray(before), read_only=True), read_only=True)
    assert read(volume.lun("b"), 0, 200 * BLOCK) == pattern(1, 200 * BLOCK)
    monkeypatch.undo()
    again = workshop.mount(device)  # nothing that the refused mount has written counts
    assert read(again.lun("b"), 0, 200 * BLOCK) == pattern(1, 200 * BLOCK)


def test_a_lun_without_a_backing_adopts_nothing(volume: Volume) -> None:
    assert volume.lun("a").adopt(0) == 0
