"""Growing a mounted volume: everything that depends on its size follows."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

import pytest

import wafl.grow
from tests.support.crash_device import MemoryDevice
from tests.support.volumes import EPOCH, MIB, Workshop, checkpoint, errors, pattern, problems, reclaim, take_snapshot
from wafl import BLOCK_BYTES, FileDevice, InvalidSize, NoSpace, ReadOnlyVolume, View, Volume, VolumeFailed, check
from wafl.format import HEAD_BLOCKS, HEAD_RING_VBN, MAX_VOLUME_BYTES, TAIL_BLOCKS
from wafl.offline import Image

ROW = 128 * MIB
"""What one row of a map describes."""


def read(lun: View, offset: int, length: int) -> bytes:
    found = bytearray(length)
    lun.read_into(offset, memoryview(found))
    return bytes(found)


# -- what is larger afterwards


@pytest.mark.parametrize(
    ("before", "after"),
    [(16 * MIB, 17 * MIB), (16 * MIB, 300 * MIB), (ROW, ROW + MIB), (ROW - MIB, ROW), (130 * MIB, 2 * ROW)],
)
def test_a_grown_volume_is_clean_and_takes_more(workshop: Workshop, before: int, after: int) -> None:
    volume = workshop.format(before)
    lun = volume.create_lun("a", MIB)
    lun.write(0, pattern(1, MIB))
    was = volume.space()
    volume.grow(after)
    assert volume.size_bytes == volume.space().total == after
    # But for what the larger maps keep back, and a new row of each of them.
    assert volume.space().free - was.free == pytest.approx(after - before, abs=64 * BLOCK_BYTES)
    assert problems(volume.device) == []  # type: ignore[arg-type]
    again = workshop.remount(volume)
    assert again.size_bytes == after
    assert read(again.lun("a"), 0, MIB) == pattern(1, MIB)


def test_a_full_volume_grows_and_can_be_filled_to_its_new_end(workshop: Workshop) -> None:
    volume = workshop.format(9 * MIB)
    lun = volume.create_lun("a", 64 * MIB)
    fill(volume)
    volume.grow(20 * MIB)
    lun.write(40 * MIB, pattern(2, 8 * MIB))
    fill(volume)
    assert volume.space().available < 64 * BLOCK_BYTES
    assert read(workshop.remount(volume).lun("a"), 40 * MIB, 8 * MIB) == pattern(2, 8 * MIB)


def test_the_place_of_the_old_tail_is_used_by_guests(workshop: Workshop) -> None:
    volume = workshop.format(9 * MIB)
    old_tail = volume.geometry.tail_ring
    volume.create_lun("a", 64 * MIB)
    fill(volume)
    volume.grow(11 * MIB)
    fill(volume)
    checkpoint(volume)
    image = Image(volume.device)
    assert not image.device.image[old_tail * BLOCK_BYTES :][: TAIL_BLOCKS * BLOCK_BYTES].startswith(bytes(16))


def fill(volume: Volume) -> None:
    """Write to the LUN until the volume takes no more."""
    with suppress(NoSpace):
        for at in range(0, volume.lun("a").size_bytes, BLOCK_BYTES):
            volume.lun("a").write(at, pattern(at, BLOCK_BYTES))


def test_the_maps_grow_a_level(tmp_path: Path) -> None:
    """Beyond 256 rows (32 GiB) a map needs two levels of pointer blocks."""
    path = tmp_path / "v.img"
    with closing(FileDevice.open(path, create_bytes=31 << 30)) as device:
        Volume.format(device, name="v")
    volume = Volume.mount(FileDevice.open(path))
    volume.create_lun("a", MIB).write(0, pattern(1, MIB))
    take_snapshot(volume, "old")
    volume.grow(40 << 30)
    assert path.stat().st_size == 40 << 30
    volume.lun("a").write(0, pattern(2, MIB))
    take_snapshot(volume, "new")
    volume.delete_snapshot("old")
    reclaim(volume)
    volume.close()
    with closing(FileDevice.open(path, read_only=True)) as device:
        assert check(device) == []


def test_a_volume_grows_many_times(workshop: Workshop) -> None:
    volume = workshop.format(8 * MIB)
    lun = volume.create_lun("a", 64 * MIB)
    for step in range(8):
        lun.write(step * MIB, pattern(step, MIB))
        volume.grow(volume.size_bytes + MIB + step * BLOCK_BYTES)
        volume = workshop.remount(volume) if step % 3 == 2 else volume
        lun = volume.lun("a")
    for step in range(8):
        assert read(lun, step * MIB, MIB) == pattern(step, MIB)


# -- snapshots


def test_snapshots_keep_the_size_that_the_volume_had(workshop: Workshop) -> None:
    volume = workshop.format(16 * MIB)
    lun = volume.create_lun("a", 200 * MIB)
    lun.write(0, pattern(1, MIB))
    take_snapshot(volume, "small")
    volume.grow(ROW + 16 * MIB)
    lun.write(0, pattern(2, 2 * MIB))
    take_snapshot(volume, "large")
    sizes = {entry["name"].rstrip(b"\0"): entry["volume_blocks"] for entry in Image(volume.device).snapshots()}
    assert sizes == {b"small": 16 * MIB // BLOCK_BYTES, b"large": (ROW + 16 * MIB) // BLOCK_BYTES}
    assert read(volume.snapshot_lun("small", "a"), 0, MIB) == pattern(1, MIB)


@pytest.mark.parametrize("order", ["small first", "large first"])
def test_snapshots_from_both_sides_of_a_growth_give_everything_back(workshop: Workshop, order: str) -> None:
    volume = workshop.format(16 * MIB)
    lun = volume.create_lun("a", 200 * MIB)
    lun.write(0, pattern(1, MIB))
    take_snapshot(volume, "small")
    volume.grow(ROW + 16 * MIB)
    lun.write(0, pattern(2, 2 * MIB))
    take_snapshot(volume, "large")
    for name in ("small", "large") if order == "small first" else ("large", "small"):
        assert volume.snapshot_space(name).referenced > MIB
        volume.delete_snapshot(name)
        reclaim(volume)
        assert errors(volume.device) == []  # type: ignore[arg-type]
    assert volume.space().snapshots == 0


def test_a_lun_made_from_a_snapshot_before_the_growth_is_cloned_after_it(workshop: Workshop) -> None:
    volume = workshop.format(9 * MIB)
    volume.create_lun("golden", 4 * MIB).write(0, pattern(1, 3 * MIB))
    take_snapshot(volume, "base")
    clone = volume.create_lun("clone", backing=("base", "golden"))
    volume.grow(32 * MIB)
    index = clone.next_missing(0)
    while index is not None:
        while (plan := clone.plan_fill(index)) is not None:
            clone.install_fill(plan, plan.read())
            plan.release()
        index = clone.next_missing(index + 1)
    checkpoint(volume)
    clone.detach()
    checkpoint(volume)
    volume.delete_snapshot("base")
    reclaim(volume)
    assert read(clone, 0, 3 * MIB) == pattern(1, 3 * MIB)


def test_a_volume_goes_back_to_a_snapshot_from_before_the_growth_and_keeps_its_size(workshop: Workshop) -> None:
    volume = workshop.format(16 * MIB)
    volume.create_lun("a", 8 * MIB, reserved=False).write(0, pattern(1, 3 * MIB))
    take_snapshot(volume, "small")
    volume.grow(ROW + 16 * MIB)
    volume.lun("a").write(MIB, pattern(2, 4 * MIB))
    volume.restore("small", None)
    again = workshop.remount(volume)
    assert again.size_bytes == ROW + 16 * MIB
    assert read(again.lun("a"), 0, 4 * MIB) == pattern(1, 3 * MIB) + bytes(MIB)


# -- together with what else goes on


def test_a_volume_grows_in_the_middle_of_a_consistency_point(workshop: Workshop) -> None:
    volume = workshop.format(16 * MIB)
    lun = volume.create_lun("a", 8 * MIB)
    lun.write(0, pattern(1, MIB))
    steps = volume.checkpoint()
    next(steps)
    lun.write(MIB, pattern(2, MIB))
    volume.grow(32 * MIB)
    assert list(steps) == []
    assert volume.running is None
    again = workshop.crash(volume)
    assert again.size_bytes == 32 * MIB
    assert read(again.lun("a"), MIB, MIB) == pattern(2, MIB)


def test_readers_keep_the_old_tail_busy_until_they_leave(workshop: Workshop) -> None:
    volume = workshop.format(9 * MIB)
    with volume.held():
        volume.grow(11 * MIB)
        freeing = volume.space().freeing
        assert freeing >= TAIL_BLOCKS * BLOCK_BYTES
    assert volume.space().freeing <= freeing - TAIL_BLOCKS * BLOCK_BYTES


# -- refusals


def test_what_is_refused_changes_nothing(workshop: Workshop) -> None:
    volume = workshop.format(16 * MIB)
    generation, image = volume.generation, bytes(volume.device.image)  # type: ignore[attr-defined]
    for size, word in (
        (16 * MIB, "at least"), (16 * MIB + BLOCK_BYTES, "at least"), (8 * MIB, "cannot shrink"),
        (MAX_VOLUME_BYTES + MIB, "at most"), (0, "cannot shrink"),
    ):  # fmt: skip
        with pytest.raises(InvalidSize, match=word):
            volume.grow(size)
    assert (volume.generation, bytes(volume.device.image)) == (generation, image)  # type: ignore[attr-defined]


def test_a_volume_for_reading_does_not_grow(workshop: Workshop) -> None:
    volume = workshop.format(16 * MIB)
    device = MemoryDevice(bytearray(volume.device.image))  # type: ignore[attr-defined]
    with pytest.raises(ReadOnlyVolume):
        Volume.mount(device, read_only=True).grow(32 * MIB)
    assert device.size_bytes == 16 * MIB


def test_a_write_error_in_the_middle_fails_the_volume_and_leaves_the_old_one(workshop: Workshop) -> None:
    volume = workshop.format(16 * MIB)
    volume.create_lun("a", MIB).write(0, pattern(1, MIB))
    checkpoint(volume)
    syncs = 0

    def sync() -> None:
        nonlocal syncs
        syncs += 1
        if syncs == 3:  # the first of the consistency point that holds the new size
            raise OSError(5, "the disk is gone")

    volume.device.sync = sync  # type: ignore[method-assign]
    with pytest.raises(VolumeFailed):
        volume.grow(32 * MIB)
    workshop.abandon(volume)
    left = workshop.mount(MemoryDevice(bytearray(volume.device.image)))  # type: ignore[attr-defined]
    assert left.size_bytes == 16 * MIB
    assert read(left.lun("a"), 0, MIB) == pattern(1, MIB)


# -- a device that is larger than its volume


@pytest.mark.parametrize("damage", ["none", "head label", "head ring", "tail", "end of the device"])
def test_a_volume_smaller_than_its_device_is_found_and_checked(workshop: Workshop, damage: str) -> None:
    volume = workshop.format(16 * MIB)
    volume.create_lun("a", MIB).write(0, pattern(1, MIB))
    workshop.close(volume)
    image = bytearray(volume.device.image)  # type: ignore[attr-defined]
    end = len(image)
    image += pattern(9, 4 * MIB)
    places = {
        "none": (0, 0), "head label": (0, 1), "head ring": (HEAD_RING_VBN, HEAD_BLOCKS),
        "tail": (end // BLOCK_BYTES - TAIL_BLOCKS, end // BLOCK_BYTES),
        "end of the device": (len(image) // BLOCK_BYTES - TAIL_BLOCKS, len(image) // BLOCK_BYTES),
    }  # fmt: skip
    first, last = places[damage]
    image[first * BLOCK_BYTES : last * BLOCK_BYTES] = pattern(8, (last - first) * BLOCK_BYTES)
    device = MemoryDevice(image)
    assert errors(device) == []
    assert bool(problems(device)) == (damage in ("head label", "head ring", "tail"))
    mounted = Volume.mount(device)
    assert mounted.size_bytes == 16 * MIB
    assert read(mounted.lun("a"), 0, MIB) == pattern(1, MIB)
    assert bool(mounted.mount_report) == (damage in ("head label", "head ring", "tail"))
    mounted.grow(20 * MIB)
    mounted.close()
    assert {str(finding.severity.name) for finding in check(device)} <= {"WARNING"}


@pytest.mark.parametrize("damage", ["head", "tail"])
def test_either_end_of_a_grown_volume_suffices(workshop: Workshop, damage: str) -> None:
    volume = workshop.format(16 * MIB)
    volume.create_lun("a", 8 * MIB).write(0, pattern(1, MIB))
    volume.grow(32 * MIB)
    image = bytearray(volume.device.image)  # type: ignore[attr-defined]
    lost = slice(0, HEAD_BLOCKS * BLOCK_BYTES) if damage == "head" else slice(-TAIL_BLOCKS * BLOCK_BYTES, None)
    image[lost] = bytes(len(image[lost]))
    mounted = Volume.mount(MemoryDevice(image))
    assert mounted.size_bytes == 32 * MIB
    assert read(mounted.lun("a"), 0, MIB) == pattern(1, MIB)


def test_a_consistency_point_of_the_past_is_never_found_at_the_old_end(workshop: Workshop) -> None:
    """Head gone, device enlarged once more: nothing says where the tail is, and that is said."""
    volume = workshop.format(16 * MIB)
    volume.grow(32 * MIB)
    image = bytearray(volume.device.image) + bytes(MIB)  # type: ignore[attr-defined]
    image[BLOCK_BYTES : HEAD_BLOCKS * BLOCK_BYTES] = bytes((HEAD_BLOCKS - 1) * BLOCK_BYTES)
    with pytest.raises(wafl.NotAVolume):
        Volume.mount(MemoryDevice(image))


def test_a_copy_of_fsinfo_in_the_wrong_place_does_not_count(workshop: Workshop) -> None:
    """A guest that keeps an image of the volume on the volume itself may have one lie anywhere."""
    volume = workshop.format(16 * MIB)
    generation = volume.generation
    image = bytearray(volume.device.image)  # type: ignore[attr-defined]
    newest = bytes(image[(HEAD_RING_VBN + generation % 8) * BLOCK_BYTES :][:BLOCK_BYTES])
    image[HEAD_RING_VBN * BLOCK_BYTES : HEAD_BLOCKS * BLOCK_BYTES] = newest * 8
    mounted = Volume.mount(MemoryDevice(image), read_only=True)
    assert mounted.generation == generation
    assert any("damaged" in line for line in mounted.mount_report)


# -- files and block devices


def test_a_file_is_made_larger(tmp_path: Path) -> None:
    path = tmp_path / "v.img"
    with closing(FileDevice.open(path, create_bytes=8 * MIB)) as device:
        Volume.format(device, name="v")
    volume = Volume.mount(FileDevice.open(path))
    volume.grow(24 * MIB)
    assert path.stat().st_size == volume.device.size_bytes == 24 * MIB
    volume.close()
    again = Volume.mount(FileDevice.open(path))
    assert again.size_bytes == 24 * MIB
    again.close()


def test_a_file_too_large_for_its_file_system_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "v.img"
    with closing(FileDevice.open(path, create_bytes=8 * MIB)) as device:
        Volume.format(device, name="v")

    def ftruncate(fd: int, size: int) -> None:
        raise OSError(27, "File too large")

    volume = Volume.mount(FileDevice.open(path))
    monkeypatch.setattr("os.ftruncate", ftruncate)
    with pytest.raises(InvalidSize, match="File too large"):
        volume.grow(24 * MIB)
    assert volume.size_bytes == path.stat().st_size == 8 * MIB
    volume.close()


def test_a_block_device_must_be_larger_already(tmp_path: Path) -> None:
    path = tmp_path / "v.img"
    with closing(FileDevice.open(path, create_bytes=8 * MIB)) as device:
        Volume.format(device, name="v")
    with path.open("r+b") as file:
        device = FileDevice(file.fileno(), 8 * MIB, is_file=False)
        volume = Volume.mount(device)
        with pytest.raises(InvalidSize, match="enlarge it first"):
            volume.grow(24 * MIB)
        file.truncate(24 * MIB)
        volume.grow(20 * MIB)
        volume.commit_now()
        assert (volume.size_bytes, device.size_bytes, path.stat().st_size) == (20 * MIB, 24 * MIB, 24 * MIB)
        assert check(device) == []


def test_a_real_block_device_grows(tmp_path: Path, need: Callable[[str, bool], None]) -> None:
    need("losetup", shutil.which("losetup") is not None)
    path = tmp_path / "disk.img"
    with path.open("wb") as file:
        file.truncate(8 * MIB)
    attached = subprocess.run(["losetup", "-f", "--show", path], capture_output=True, text=True, check=False)
    need(f"a loop device ({attached.stderr.strip()})", attached.returncode == 0)
    loop = attached.stdout.strip()
    try:
        with closing(FileDevice.open(loop)) as device:
            Volume.format(device, name="v", now=EPOCH)
        volume = Volume.mount(FileDevice.open(loop))
        volume.create_lun("a", MIB).write(0, pattern(1, MIB))
        with pytest.raises(InvalidSize, match="enlarge it first"):
            volume.grow(16 * MIB)
        with path.open("r+b") as file:
            file.truncate(16 * MIB)
        subprocess.run(["losetup", "-c", loop], check=True)
        volume.grow(16 * MIB)
        volume.close()
        with closing(FileDevice.open(loop, read_only=True)) as device:
            assert check(device) == []
            assert Volume.mount(device, read_only=True).size_bytes == 16 * MIB
    finally:
        subprocess.run(["losetup", "-d", loop], check=True)
