"""From one tree on disk to the next, while guests go on; mounting what was left."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support.crash_device import MemoryDevice
from tests.support.volumes import EPOCH, MIB, Workshop, checkpoint, pattern, problems, take_snapshot
from tests.wafl.test_lun import read
from wafl import (
    BLOCK_BYTES,
    FileDevice,
    InvalidSize,
    LimitReached,
    Lun,
    NoSpace,
    NotAVolume,
    ReadOnlyVolume,
    Step,
    UnsupportedFeature,
    Volume,
    VolumeFailed,
    VolumeLocked,
)
from wafl.format import FSINFO, FSINFO_MAGIC, LABEL, LABEL_MAGIC, MAX_GENERATION, seal, unseal


def spread(lun: Lun, seed: int) -> None:
    """One block in each of many level-1 buffers, over more than one level-2 buffer."""
    for index in range(0, lun.size_bytes // MIB, 7):
        lun.write(index * MIB, pattern(seed + index, BLOCK_BYTES))


def expect_spread(lun: Lun, seed: int) -> None:
    for index in range(0, lun.size_bytes // MIB, 7):
        assert read(lun, index * MIB, BLOCK_BYTES) == pattern(seed + index, BLOCK_BYTES)


def test_a_guest_may_change_anything_at_every_step_of_a_consistency_point(workshop: Workshop) -> None:
    volume = workshop.format(64 * MIB, log_bytes=0)
    lun = volume.create_lun("a", 600 * MIB)
    spread(lun, 1)
    checkpoint(volume)
    for seed in range(2, 30):
        spread(lun, seed)
        for turn, step in enumerate(volume.checkpoint()):
            if turn == seed % 7:
                spread(lun, seed + 1000)
            if turn == seed % 5:
                lun.unmap(seed * MIB, 256 * MIB)
            if step is Step.SYNC:
                volume.device.sync()
        crashed = workshop.mount(MemoryDevice(bytearray(volume.device.image)))  # type: ignore[attr-defined]
        expect_spread(crashed.lun("a"), seed)
        workshop.close(crashed)


def test_a_tree_may_grow_and_be_buried_while_it_is_being_written(workshop: Workshop) -> None:
    volume = workshop.format(64 * MIB, log_bytes=0)
    for turn in range(10):
        lun = volume.create_lun("a", 255 * MIB)
        spread(lun, turn)
        steps = volume.checkpoint()
        for _ in range(turn % 4 + 1):
            next(steps)
        volume.resize_lun("a", 1 << 40)
        lun.write(1 << 39, pattern(turn, 4096))
        lun.unmap(MIB, 250 * MIB)
        lun.write(8 * MIB, pattern(turn, 4096))
        volume.destroy_lun("a")
        for _ in volume.reclaim():
            pass
        for _ in steps:
            pass
        crashed = workshop.mount(MemoryDevice(bytearray(volume.device.image)))  # type: ignore[attr-defined]
        found = crashed.lun("a")
        assert found.size_bytes == 255 * MIB
        expect_spread(found, turn)
        workshop.close(crashed)
        volume.reclaim_now()
        assert volume.space().active < MIB


def test_a_consistency_point_with_nothing_to_write_changes_nothing_but_the_generation(workshop: Workshop) -> None:
    volume = workshop.format()
    checkpoint(volume)
    assert not volume.dirty
    used, generation = volume.space().used, volume.generation
    checkpoint(volume)
    assert (volume.space().used, volume.generation) == (used, generation + 1)


def test_every_change_makes_the_volume_dirty_and_a_consistency_point_clean(workshop: Workshop) -> None:
    volume = workshop.format()
    take_snapshot(volume, "s")
    lun = volume.create_lun("a", MIB)
    changes = [
        lambda: None,
        lambda: lun.write(0, bytes(512)),
        lambda: lun.unmap(0, MIB),
        lambda: lun.set_online(False),
        lambda: lun.set_comment("x"),
        lambda: volume.rename_lun("a", "b"),
        lambda: volume.resize_lun("b", 2 * MIB),
        lambda: volume.rename_snapshot("s", "t"),
        lambda: volume.delete_snapshot("t"),
        lambda: volume.request_snapshot("u"),
        lambda: volume.destroy_lun("b"),
    ]
    for change in changes:
        change()
        assert volume.dirty
        checkpoint(volume)
        assert not volume.dirty


def test_a_consistency_point_driven_to_its_end_from_elsewhere_just_ends(workshop: Workshop) -> None:
    volume = workshop.format()
    volume.create_lun("a", MIB).write(0, pattern(1, MIB))
    steps = volume.checkpoint()
    while next(steps) is not Step.SYNC:
        pass
    volume.commit_now()
    assert list(steps) == []
    assert steps.done


def test_two_consistency_points_cannot_be_written_at_once(workshop: Workshop) -> None:
    volume = workshop.format()
    steps = volume.checkpoint()
    next(steps)
    with pytest.raises(RuntimeError):
        next(volume.checkpoint())
    list(steps)


class FailingDevice(MemoryDevice):
    """Writes fail once `broken` is set."""

    broken = False

    def pwrite(self, offset: int, buffers: Sequence[Any]) -> None:
        if self.broken:
            raise OSError(errno.EIO, "injected")
        super().pwrite(offset, buffers)


@pytest.mark.parametrize("steps_before", [1, 3, 5])
def test_a_write_error_fails_the_volume_and_leaves_the_last_consistency_point(
    workshop: Workshop, steps_before: int
) -> None:
    device = FailingDevice(bytearray(16 * MIB))
    Volume.format(device, name="v", now=EPOCH, log_bytes=0)
    volume = Volume.mount(device)
    lun = volume.create_lun("a", MIB)
    lun.write(0, pattern(1, MIB))
    checkpoint(volume)
    lun.write(0, pattern(2, MIB))
    steps = volume.checkpoint()
    for _ in range(steps_before):
        next(steps)
    device.broken = True
    with pytest.raises(VolumeFailed):
        list(steps)
    device.broken = False
    assert volume.failure is not None
    with pytest.raises(VolumeFailed):
        lun.write(0, bytes(4096))
    with pytest.raises(VolumeFailed):
        list(volume.checkpoint())
    assert read(lun, 0, MIB) == pattern(2, MIB)
    again = workshop.mount(MemoryDevice(bytearray(device.image)))
    assert read(again.lun("a"), 0, MIB) == pattern(1, MIB)


def test_a_sync_error_thrown_in_fails_the_volume() -> None:
    device = MemoryDevice(bytearray(16 * MIB))
    Volume.format(device, name="v", now=EPOCH)
    volume = Volume.mount(device)
    before = volume.generation
    volume.create_lun("a", MIB)
    steps = volume.checkpoint()
    while next(steps) is not Step.SYNC:
        pass
    with pytest.raises(VolumeFailed):
        steps.throw(OSError(errno.EIO, "injected"))
    assert volume.generation == before
    volume.close()
    assert problems(device) == []


def test_generations_do_not_wrap(workshop: Workshop) -> None:
    volume = workshop.format()
    volume.create_lun("a", MIB)
    volume.core.generation = MAX_GENERATION
    with pytest.raises(VolumeFailed) as error:
        list(volume.checkpoint())
    assert isinstance(error.value.__cause__, LimitReached)
    workshop.abandon(volume)


# --- mounting ---------------------------------------------------------------------------------------------------------


def damage(device: MemoryDevice, *vbns: int) -> None:
    for vbn in vbns:
        device.image[vbn * BLOCK_BYTES + 100] ^= 0xFF


@pytest.fixture
def image(workshop: Workshop) -> MemoryDevice:
    """A closed volume with a LUN, several consistency points old."""
    volume = workshop.format()
    volume.create_lun("a", MIB).write(0, pattern(1, MIB))
    for _ in range(5):
        checkpoint(volume)
    workshop.close(volume)
    return volume.device  # type: ignore[return-value]


def newest(device: MemoryDevice) -> tuple[int, int]:
    """Blocks of both copies of the newest fsinfo."""
    with_generation = {
        fields["generation"]: vbn
        for vbn in range(1, 9)
        if (fields := unseal(FSINFO, FSINFO_MAGIC, device.image[vbn * BLOCK_BYTES : (vbn + 1) * BLOCK_BYTES]))
    }
    head = with_generation[max(with_generation)]
    return head, device.size_bytes // BLOCK_BYTES - 9 + head - 1


def test_a_volume_closed_in_order_mounts_without_a_word(workshop: Workshop, image: MemoryDevice) -> None:
    assert workshop.mount(image).mount_report == []


@pytest.mark.parametrize("copy", [0, 1])
def test_one_damaged_copy_of_the_newest_fsinfo_is_reported_and_survived(
    workshop: Workshop, image: MemoryDevice, copy: int
) -> None:
    damage(image, newest(image)[copy])
    volume = workshop.mount(image)
    assert any("fsinfo damaged" in line for line in volume.mount_report)
    assert read(volume.lun("a"), 0, MIB) == pattern(1, MIB)
    for _ in range(8):
        checkpoint(volume)  # every slot is written anew


def test_both_copies_damaged_fall_back_to_the_consistency_point_before(workshop: Workshop, image: MemoryDevice) -> None:
    generation = Volume.mount(image, read_only=True).generation
    damage(image, *newest(image))
    assert Volume.mount(image, read_only=True).generation == generation - 1
    volume = workshop.mount(image)
    assert any("fsinfo damaged" in line for line in volume.mount_report)
    for _ in range(8):
        checkpoint(volume)


def test_all_fsinfos_damaged_is_no_volume(image: MemoryDevice) -> None:
    last = image.size_bytes // BLOCK_BYTES
    damage(image, *range(1, 9), *range(last - 9, last - 1))
    with pytest.raises(NotAVolume, match="every fsinfo"):
        Volume.mount(image)


@pytest.mark.parametrize("copy", ["first", "second"])
def test_one_damaged_label_is_reported_and_survived(workshop: Workshop, image: MemoryDevice, copy: str) -> None:
    damage(image, 0 if copy == "first" else image.size_bytes // BLOCK_BYTES - 1)
    volume = Volume.mount(image)
    assert any(f"{copy} label damaged" in line for line in volume.mount_report)
    assert read(volume.lun("a"), 0, MIB) == pattern(1, MIB)


def test_both_labels_damaged_is_no_volume(image: MemoryDevice) -> None:
    damage(image, 0, image.size_bytes // BLOCK_BYTES - 1)
    with pytest.raises(NotAVolume, match="neither label"):
        Volume.mount(image)


@pytest.mark.parametrize("size", [0, 4096, MIB, 4 * MIB])
def test_zeros_are_no_volume(size: int) -> None:
    with pytest.raises(NotAVolume):
        Volume.mount(MemoryDevice(bytearray(size)))


def test_a_cut_off_device_is_refused(image: MemoryDevice) -> None:
    with pytest.raises(NotAVolume, match="the device only"):
        Volume.mount(MemoryDevice(image.image[: 12 * MIB]))


@pytest.mark.parametrize(
    ("field", "value", "read_only", "refused"),
    [
        ("incompat", 4, False, True), ("incompat", 1 << 40, True, True), ("ro_compat", 1, False, True),
        ("ro_compat", 1, True, False), ("compat", 1, False, False), ("format_version", 2, True, True),
    ],
)  # fmt: skip
def test_feature_words_decide_who_may_mount(
    image: MemoryDevice, field: str, value: int, read_only: bool, refused: bool
) -> None:
    fields = unseal(LABEL, LABEL_MAGIC, image.image[:BLOCK_BYTES])
    assert fields is not None
    fields[field] = value
    image.image[:BLOCK_BYTES] = seal(LABEL, **fields)
    if refused:
        with pytest.raises(UnsupportedFeature):
            Volume.mount(image, read_only=read_only)
    else:
        Volume.mount(image, read_only=read_only)


def test_a_read_only_mount_reads_and_writes_nothing(image: MemoryDevice) -> None:
    before = bytes(image.image)
    volume = Volume.mount(image, read_only=True)
    lun = volume.lun("a")
    assert read(lun, 0, MIB) == pattern(1, MIB)
    for change in (
        lambda: lun.write(0, bytes(512)), lambda: lun.unmap(0, MIB), lambda: lun.set_online(False),
        lambda: volume.create_lun("b", MIB), lambda: volume.destroy_lun("a"), lambda: volume.request_snapshot("s"),
        lambda: volume.resize_lun("a", 512),
    ):  # fmt: skip
        with pytest.raises(ReadOnlyVolume):
            change()
    volume.close()
    assert image.image == before


def test_formatting_again_leaves_nothing_of_the_old_volume(workshop: Workshop, image: MemoryDevice) -> None:
    old = Volume.mount(image).uuid
    Volume.format(image, name="new", now=EPOCH)
    volume = workshop.mount(image)
    assert volume.luns() == []
    assert volume.uuid != old
    assert volume.name == "new"


@pytest.mark.parametrize("size", [1 << 20, (1 << 20) + 4096, 2 << 20, 16 << 20, 129 << 20])
def test_volumes_of_odd_sizes_work(workshop: Workshop, size: int) -> None:
    volume = workshop.format(size)
    lun = volume.create_lun("a", MIB)
    lun.write(0, pattern(1, 64 * 1024))
    volume = workshop.remount(volume)
    assert read(volume.lun("a"), 0, 64 * 1024) == pattern(1, 64 * 1024)


def test_a_volume_that_is_too_small_is_refused() -> None:
    with pytest.raises(InvalidSize):
        Volume.format(MemoryDevice(bytearray(MIB - 4096)), name="v", now=EPOCH)


def test_a_sparse_volume_of_a_tebibyte_is_made_and_mounted(tmp_path: Path) -> None:
    path = tmp_path / "volume"
    device = FileDevice.open(path, create_bytes=1 << 40)
    Volume.format(device, name="v", now=EPOCH)
    volume = Volume.mount(device)
    volume.create_lun("a", 1 << 40).write(1 << 39, pattern(1, 4096))
    volume.close()
    volume = Volume.mount(FileDevice.open(path))
    assert read(volume.lun("a"), 1 << 39, 4096) == pattern(1, 4096)
    volume.close()
    assert path.stat().st_blocks * 512 < 48 * MIB, "the log region, and little else"


def test_a_volume_is_locked_against_a_second_opener(tmp_path: Path) -> None:
    path = tmp_path / "volume"
    device = FileDevice.open(path, create_bytes=4 * MIB)
    with pytest.raises(VolumeLocked):
        FileDevice.open(path)
    with pytest.raises(VolumeLocked):
        FileDevice.open(path, read_only=True)
    device.close()
    FileDevice.open(path).close()


def test_creating_over_an_existing_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "volume"
    path.write_bytes(b"precious")
    with pytest.raises(FileExistsError):
        FileDevice.open(path, create_bytes=4 * MIB)
    assert path.read_bytes() == b"precious"


def test_a_directory_is_no_device(tmp_path: Path) -> None:
    with pytest.raises((NotAVolume, IsADirectoryError)):
        FileDevice.open(tmp_path)


def test_a_device_writes_many_buffers_and_reads_them_back(tmp_path: Path) -> None:
    device = FileDevice.open(tmp_path / "volume", create_bytes=16 * MIB)
    blocks = [pattern(n, BLOCK_BYTES) for n in range(2500)]
    device.pwrite(8192, blocks)
    found = bytearray(len(blocks) * BLOCK_BYTES)
    device.pread(8192, found)
    assert found == b"".join(blocks)
    device.prefetch(0, 16 * MIB)
    view = memoryview(bytearray(BLOCK_BYTES))
    assert device.pread_nowait(8192, view)
    assert view == blocks[0]
    with pytest.raises(OSError, match="past the end"):
        device.pread(16 * MIB - 4096, bytearray(8192))
    device.close()


def test_burying_what_is_being_written_takes_no_room(workshop: Workshop) -> None:
    """Each buried level-1 buffer that was frozen once took a block: on a full volume, those of the next freeze."""
    volume = workshop.format(16 * MIB, log_bytes=0)
    lun = volume.create_lun("a", 256 * MIB)
    for index in range(250):
        lun.write(index * MIB, pattern(index, BLOCK_BYTES))
    steps = volume.checkpoint()
    next(steps)
    before = volume.space().free
    lun.unmap(MIB, 248 * MIB)
    assert before - volume.space().free < 12 * BLOCK_BYTES
    for _ in steps:
        pass
    crashed = workshop.mount(MemoryDevice(bytearray(volume.device.image)))  # type: ignore[attr-defined]
    for index in range(250):
        assert read(crashed.lun("a"), index * MIB, BLOCK_BYTES) == pattern(index, BLOCK_BYTES)
    volume.reclaim_now()
    assert lun.used_bytes == 2 * BLOCK_BYTES


def test_what_a_snapshot_keeps_of_the_maps_is_reserved(workshop: Workshop) -> None:
    """Right after a snapshot, consistency points get nothing back for the maps they replace."""
    volume = workshop.format(16 * MIB)
    lun = volume.create_lun("a", 64 * MIB)
    reserved = volume.space().reserved
    take_snapshot(volume, "s")
    assert volume.space().reserved > reserved
    try:
        for block in range(16 * MIB // BLOCK_BYTES):
            lun.write(block * BLOCK_BYTES, pattern(block, BLOCK_BYTES))
    except NoSpace:
        pass
    for turn in range(6):
        lun.set_comment(str(turn))
        checkpoint(volume)
    assert volume.space().free > 0
    volume.delete_snapshot("s")
    volume.reclaim_now()
    assert volume.space().reserved <= reserved + 4 * BLOCK_BYTES
