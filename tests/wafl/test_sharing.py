"""Sharing blocks between LUNs by pointer, and the reference counts that keep them (wafl/sharing.py, references.py)."""

from __future__ import annotations

import pytest

from tests.support.crash_device import MemoryDevice
from tests.support.space import lun_figures
from tests.support.volumes import MIB, Workshop, checkpoint, fill_all, pattern, problems, reclaim, take_snapshot
from tests.wafl.test_lun import read
from tests.wafl.test_reserve import exact, fill_up, reads_back, write_whole
from wafl import BLOCK_BYTES, CorruptVolume, InvalidSize, Lun, Volume, references
from wafl.format import HOLE, LABEL, LABEL_MAGIC, ZERO, Incompat, unseal

BLOCK = BLOCK_BYTES
TIB = 1 << 40


@pytest.fixture
def volume(workshop: Workshop) -> Volume:
    volume = workshop.format(32 * MIB)
    volume.create_lun("a", 4 * MIB).write(0, pattern(1, 2 * MIB))
    volume.create_lun("b", 4 * MIB)
    checkpoint(volume)
    return volume


def share_all(lun: Lun, source: Lun, length: int) -> int:
    """From the front on; the calls it took."""
    done = calls = 0
    while done < length:
        more = lun.share(done, source, done, length - done)
        assert more > 0
        done, calls = done + more, calls + 1
    return calls


def incompat(volume: Volume) -> int:
    label = unseal(LABEL, LABEL_MAGIC, volume.device.image[:BLOCK])  # type: ignore[attr-defined]
    assert label is not None
    return int(label["incompat"])


# --- what is shared ---------------------------------------------------------------------------------------------------


def test_a_shared_range_reads_the_same_and_takes_no_data_blocks(workshop: Workshop, volume: Volume) -> None:
    a, b = volume.lun("a"), volume.lun("b")
    before = volume.space().active
    share_all(b, a, 4 * MIB)
    assert read(b, 0, 4 * MIB) == read(a, 0, 4 * MIB) == pattern(1, 2 * MIB) + bytes(2 * MIB)
    checkpoint(volume)
    assert volume.space().active - before <= 12 * BLOCK  # pointer blocks, and a row of counts
    assert volume.files.references.total == 2 * MIB // BLOCK
    volume = workshop.remount(volume)
    assert read(volume.lun("b"), 0, 4 * MIB) == pattern(1, 2 * MIB) + bytes(2 * MIB)
    assert volume.files.references.total == 2 * MIB // BLOCK


@pytest.mark.parametrize("shift", [0, BLOCK, MIB - 3 * BLOCK])
def test_ranges_that_do_not_lie_alike_in_their_level_one_buffers_are_shared_too(volume: Volume, shift: int) -> None:
    a, b = volume.lun("a"), volume.lun("b")
    assert b.share(shift, a, 5 * BLOCK, MIB + 7 * BLOCK) == MIB + 7 * BLOCK
    assert read(b, shift, MIB + 7 * BLOCK) == read(a, 5 * BLOCK, MIB + 7 * BLOCK)
    assert read(b, shift + MIB + 7 * BLOCK, BLOCK) == bytes(BLOCK)


def test_whoever_writes_leaves_the_other_as_it_was(volume: Volume) -> None:
    a, b = volume.lun("a"), volume.lun("b")
    share_all(b, a, 2 * MIB)
    a.write(0, pattern(2, 9 * BLOCK))
    b.write(4 * BLOCK, pattern(3, 9 * BLOCK + 512))
    b.unmap(MIB, MIB // 2)
    checkpoint(volume)
    assert read(a, 0, 2 * MIB) == pattern(2, 9 * BLOCK) + pattern(1, 2 * MIB)[9 * BLOCK :]
    assert read(b, 0, 4 * BLOCK) == pattern(1, 4 * BLOCK)
    assert read(b, 4 * BLOCK, 9 * BLOCK + 512) == pattern(3, 9 * BLOCK + 512)
    assert read(b, MIB, MIB) == bytes(MIB // 2) + pattern(1, 2 * MIB)[MIB + MIB // 2 :]


def test_the_last_pointer_gives_the_block_back(volume: Volume) -> None:
    before = volume.space().active
    b, c = volume.lun("b"), volume.create_lun("c", 4 * MIB)
    for lun in (b, c):
        share_all(lun, volume.lun("a"), 2 * MIB)
    c.share(2 * MIB, c, 0, 2 * MIB)
    for name in ("a", "c"):
        volume.destroy_lun(name)
        reclaim(volume)
    assert read(b, 0, 2 * MIB) == pattern(1, 2 * MIB)
    assert volume.files.references.total == 0
    volume.destroy_lun("b")
    reclaim(volume)
    assert volume.space().active < before - 2 * MIB


def test_several_pointers_to_one_block_go_in_one_batch(volume: Volume) -> None:
    a, b = volume.lun("a"), volume.lun("b")
    for place in range(3):
        assert b.share(place * BLOCK, a, 0, BLOCK) == BLOCK
    checkpoint(volume)
    b.write(0, pattern(2, 3 * BLOCK))
    a.write(0, pattern(3, BLOCK))
    checkpoint(volume)
    assert volume.files.references.total == 0


def test_a_block_freed_and_shared_again_in_one_generation_stays(volume: Volume) -> None:
    """Its free is not applied yet when a snapshot's reader shares it."""
    take_snapshot(volume, "s")
    c = volume.create_lun("c", backing=("s", "a"))
    volume.lun("a").write(0, pattern(2, MIB))
    assert volume.lun("b").share(0, c, 0, MIB) == MIB
    checkpoint(volume)
    assert volume.files.references.total == 0
    volume.destroy_lun("c")
    volume.delete_snapshot("s")
    reclaim(volume)
    assert read(volume.lun("b"), 0, MIB) == pattern(1, MIB)


def test_one_call_makes_any_empty_range_empty(volume: Volume) -> None:
    big, other = (volume.create_lun(name, TIB) for name in ("big", "other"))
    other.write(5 * MIB, pattern(4, BLOCK))
    assert other.share(0, big, 0, TIB) == TIB
    assert read(other, 5 * MIB, BLOCK) == bytes(BLOCK)
    other.write(TIB - MIB, pattern(4, BLOCK))
    assert share_all(big, other, TIB) < 40
    assert read(big, TIB - MIB, BLOCK) == pattern(4, BLOCK)


def test_one_call_does_bounded_work(workshop: Workshop) -> None:
    volume = workshop.format(64 * MIB)
    a, b = (volume.create_lun(name, 256 * MIB) for name in ("a", "b"))
    for at in range(0, 256 * MIB, MIB):
        a.write(at, pattern(at, BLOCK))
    assert b.share(0, a, 0, 256 * MIB) == 16 * MIB
    assert share_all(b, a, 256 * MIB) == 16


def test_holes_become_zeros_below_the_limit_of_a_backing(volume: Volume) -> None:
    take_snapshot(volume, "s")
    c = volume.create_lun("c", backing=("s", "a"))
    assert c.share(0, volume.lun("b"), 0, MIB) == MIB  # empty
    b = volume.lun("b")
    b.write(0, pattern(5, BLOCK))
    assert c.share(MIB, b, 0, MIB) == MIB  # one block and no more
    assert read(c, 0, 2 * MIB) == bytes(MIB) + pattern(5, BLOCK) + bytes(MIB - BLOCK)
    assert set(c.load_level_one_buf(1)[0][1:].tolist()) == {ZERO}
    assert b.share(2 * MIB, c, 0, 2 * MIB) > 0
    assert HOLE in b.load_level_one_buf(2)[0]
    assert fill_all(c) == 0


# --- where it cannot be -----------------------------------------------------------------------------------------------


def test_what_cannot_be_shared_is_left_to_the_caller(workshop: Workshop, volume: Volume) -> None:
    a, b = volume.lun("a"), volume.lun("b")
    elsewhere = workshop.format(16 * MIB).create_lun("a", 4 * MIB)
    for offset, source, start, length in (
        (512, a, 0, BLOCK), (0, a, 512, BLOCK), (0, a, 0, 512), (0, a, 0, 0), (0, elsewhere, 0, BLOCK),
        (0, b, 0, BLOCK), (BLOCK, b, 0, 2 * BLOCK), (0, b, BLOCK, 2 * BLOCK),
    ):  # fmt: skip
        assert b.share(offset, source, start, length) == 0
    for offset, start, length in ((4 * MIB, 0, BLOCK), (0, 4 * MIB, BLOCK), (-BLOCK, 0, BLOCK), (0, 0, 8 * MIB)):
        with pytest.raises(InvalidSize):
            b.share(offset, a, start, length)
    assert volume.files.references.inode is None
    assert incompat(volume) & Incompat.REFERENCE_COUNTS == 0


def test_a_block_has_no_more_pointers_than_can_be_counted(volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(references, "MAX_COUNT", 4)  # one is kept for counts that are full
    a, b = volume.lun("a"), volume.lun("b")
    for place in range(3):
        assert b.share(place * 4 * BLOCK, a, BLOCK, BLOCK) == BLOCK
    assert b.share(MIB, a, BLOCK, BLOCK) == 0
    assert b.share(MIB, a, 0, 4 * BLOCK) == BLOCK  # up to the one that has too many
    assert b.share(MIB + BLOCK, b, 0, 9 * BLOCK) == 0
    b.write(0, pattern(2, BLOCK))
    checkpoint(volume)
    assert b.share(MIB + BLOCK, a, BLOCK, BLOCK) == BLOCK


def test_a_full_volume_has_no_room_for_counts(workshop: Workshop) -> None:
    volume = workshop.format(8 * MIB, log_bytes=0)
    a, b = (volume.create_lun(name, 16 * MIB) for name in ("a", "b"))
    fill_up(a, BLOCK)
    assert b.share(0, a, 0, MIB) == 0
    assert volume.files.references.inode is None
    assert read(b, 0, MIB) == bytes(MIB)


def test_the_label_says_so_before_the_first_block_is_shared(workshop: Workshop, volume: Volume) -> None:
    assert incompat(volume) == Incompat.LOG_RECORDS or incompat(volume) == 0
    volume.lun("b").share(0, volume.lun("a"), 0, BLOCK)
    assert incompat(volume) & Incompat.REFERENCE_COUNTS
    volume = workshop.crash(volume)
    assert read(volume.lun("b"), 0, BLOCK) == (pattern(1, BLOCK) if volume.nvlog.replayed else bytes(BLOCK))


# --- damage -----------------------------------------------------------------------------------------------------------


def test_a_damaged_block_is_an_error_on_both_sides(workshop: Workshop, volume: Volume) -> None:
    a, b = volume.lun("a"), volume.lun("b")
    share_all(b, a, MIB)
    vbn = a.read_map(0).vbns[3]  # type: ignore[union-attr]
    volume.device.image[vbn * BLOCK + 7] ^= 1  # type: ignore[attr-defined]
    for lun in (a, b):
        with pytest.raises(CorruptVolume):
            read(lun, 3 * BLOCK, BLOCK)
        lun.write(3 * BLOCK, pattern(6, BLOCK))
        assert read(lun, 0, 4 * BLOCK) == pattern(1, 3 * BLOCK) + pattern(6, BLOCK)


def test_what_a_lost_row_counts_is_neither_freed_nor_shared_again(workshop: Workshop, volume: Volume) -> None:
    share_all(volume.lun("b"), volume.lun("a"), 2 * MIB)
    checkpoint(volume)
    leaf = references.level_one(volume.core, volume.files.references.inode, 0)  # type: ignore[attr-defined]
    places = [int(vbn) for vbn in leaf.vector() if vbn]
    volume.close()
    device = MemoryDevice(bytearray(volume.device.image))  # type: ignore[attr-defined]
    for vbn in places:
        device.image[vbn * BLOCK + 7] ^= 1
    damaged = workshop.mount(device)
    active = damaged.space().active
    a, b = damaged.lun("a"), damaged.lun("b")
    assert b.share(2 * MIB, a, 0, BLOCK) == 0
    a.write(0, pattern(7, MIB))
    checkpoint(damaged)
    assert read(b, 0, 2 * MIB) == pattern(1, 2 * MIB)
    assert damaged.space().active >= active + MIB
    assert any("reference counts" in str(finding) for finding in problems(device))
    workshop.abandon(damaged)


def test_rows_come_back_from_the_disk_as_they_were(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More rows than are kept: each is written, forgotten and read again."""
    monkeypatch.setattr(references, "ROWS_KEPT", 1)
    volume = workshop.format(64 * MIB)
    a, b = (volume.create_lun(name, 40 * MIB) for name in ("a", "b"))
    write_whole(a, 1, MIB)
    share_all(b, a, 40 * MIB)
    for round_number in range(4):
        for at in range(round_number * BLOCK, 40 * MIB, 5 * MIB):
            (a if at % 2 else b).write(at, pattern(at, BLOCK))
        checkpoint(volume, lambda: read(a, 0, BLOCK))
        assert b.share(0, a, 39 * MIB, MIB) == MIB
        assert len(volume.files.references._rows) < 10
    volume.destroy_lun("a")
    reclaim(volume)


# --- reservations -----------------------------------------------------------------------------------------------------


def test_a_reserved_lun_whose_blocks_are_shared_can_still_be_written_whole(workshop: Workshop) -> None:
    volume = workshop.format()
    kept = volume.create_lun("kept", 4 * MIB, reserved=True)
    thin = volume.create_lun("thin", 64 * MIB)
    write_whole(kept, 1)
    share_all(thin, kept, 4 * MIB)
    assert exact(volume)
    fill = volume.create_lun("filler", 64 * MIB)
    fill_up(fill, BLOCK)
    for seed in (2, 3):
        write_whole(kept, seed)
        assert reads_back(kept, seed)
    assert reads_back(thin, 1, BLOCK) is False  # beyond 4 MiB it reads zeros
    assert read(thin, 0, BLOCK) == pattern(1, BLOCK)


def test_sharing_out_of_a_reserved_lun_needs_the_room_that_it_promises(workshop: Workshop) -> None:
    volume = workshop.format(8 * MIB, log_bytes=0)
    kept = volume.create_lun("kept", 4 * MIB, reserved=True)
    thin = volume.create_lun("thin", 64 * MIB)
    write_whole(kept, 1)
    done = 0
    while more := thin.share(done, kept, done, 8 * BLOCK):
        done += more
    assert MIB < done < 4 * MIB
    write_whole(kept, 2)
    assert reads_back(kept, 2)
    assert exact(volume)


def test_what_was_shared_through_a_snapshot_is_nobodys_alone_when_that_has_gone(
    workshop: Workshop,
) -> None:
    volume = workshop.format(32 * MIB)
    kept = volume.create_lun("kept", 4 * MIB, reserved=True)
    write_whole(kept, 1)
    take_snapshot(volume, "s")
    through = volume.create_lun("through", backing=("s", "kept"), reserved=False)
    other = volume.create_lun("other", 4 * MIB)
    share_all(other, through, 4 * MIB)
    volume.destroy_lun("through")
    volume.delete_snapshot("s")
    reclaim(volume)
    volume.reclaim_now()
    assert kept.private_bytes == 0
    assert lun_figures(volume.device)["kept"].private_blocks == 0
    assert exact(volume)
    write_whole(kept, 2)
    assert exact(volume)
    volume.destroy_lun("other")
    volume.reclaim_now()
    volume.commit_now()
    assert volume.files.references.since == 0  # nothing is shared: births tell everything again
    volume.reclaim_now()
    assert kept.private_bytes == 4 * MIB
    assert exact(volume)


def test_counts_grow_with_the_volume(workshop: Workshop) -> None:
    volume = workshop.format(8 * MIB, log_bytes=0)
    a, b = volume.create_lun("a", 2 * MIB), volume.create_lun("b", 40 * MIB)
    write_whole(a, 1, MIB)
    share_all(b, a, 2 * MIB)
    volume.grow(64 * MIB)
    write_whole(a, 2, MIB)
    for at in range(2 * MIB, 40 * MIB, MIB):
        b.write(at, pattern(at, MIB))
    assert a.share(0, b, 38 * MIB, 2 * MIB) == 2 * MIB
    volume = workshop.remount(volume)
    assert read(volume.lun("a"), MIB, MIB) == pattern(39 * MIB, MIB)
    assert read(volume.lun("b"), MIB, MIB) == pattern(1 + MIB, MIB)
