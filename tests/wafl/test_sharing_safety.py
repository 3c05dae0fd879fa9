"""Shared blocks and crashes, replay, audit, checker and repair; and orders that are wrong on purpose."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tests.support.crash_device import CrashDevice, MemoryDevice
from tests.support.crash_history import History
from tests.support.crash_log import LoggedHistory
from tests.support.crash_share_stories import adopted_clones, shares_and_overwrites, shares_and_snapshots
from tests.support.crash_trial import judge
from tests.support.tampering import Tamper
from tests.support.volumes import EPOCH, MIB, Workshop, checkpoint, errors, pattern, problems, sharing_volume
from tests.wafl.test_lun import read
from wafl import BLOCK_BYTES, CannotRepair, CorruptVolume, DamagedRecord, Volume, VolumeFailed
from wafl.allocator import Allocator
from wafl.buffers import Buffer
from wafl.format import REFERENCE_INODE
from wafl.nvlog import Log
from wafl.offline import Image, Root
from wafl.references import References
from wafl.repair import repair
from wafl.tree import level_one

BLOCK = BLOCK_BYTES
Story = Callable[[History], None]


def fault(history: History, tell: Story = shares_and_overwrites) -> str | None:
    """The first thing that goes wrong: in the story itself, or in what a crash in it leaves."""
    try:
        tell(history)
    except VolumeFailed as error:
        return str(error)
    return next(iter(judge(history, 60, 1)[1]), None)


def without_audit(monkeypatch: pytest.MonkeyPatch, volume: Volume) -> None:
    """Its own guard would notice first."""
    monkeypatch.setattr(volume.audit, "check", lambda: None)


# --- the harness: each sabotage must be caught ------------------------------------------------------------------------


def test_the_harness_catches_a_share_that_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(References, "add", lambda self, blocks, times, rows: None)
    history = History()
    without_audit(monkeypatch, history.volume)
    assert fault(history)


def test_the_harness_catches_a_free_that_ignores_the_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(References, "drop", lambda self, vbns: np.unique(vbns))
    history = History()
    without_audit(monkeypatch, history.volume)
    assert fault(history)


def test_the_audit_stops_a_free_that_ignores_the_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(References, "drop", lambda self, vbns: vbns)
    assert "audit" in (fault(History()) or "")


def test_the_harness_catches_a_share_that_is_not_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Log, "share", lambda self, *what: None)
    assert fault(LoggedHistory())


def test_the_harness_catches_counts_that_are_written_one_consistency_point_late(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clean = References.clean
    before: dict[int, bytes] = {}

    def late(self: References) -> list[object]:
        images = []
        for image in clean(self):
            key = image.leaf.slot << 8 | image.slot
            images.append(image._replace(data=before.get(key, bytes(BLOCK))))
            before[key] = image.data
        return images  # type: ignore[return-value]

    monkeypatch.setattr(References, "clean", late)
    assert fault(History())


def test_the_harness_catches_a_snapshots_block_whose_bit_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Allocator, "activate", lambda self, vbns: None)
    history = History()
    without_audit(monkeypatch, history.volume)
    assert fault(history, through_a_snapshot)


def test_the_harness_catches_a_pointer_block_that_is_freed_though_others_name_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(References, "part", lambda self, buffer: False)
    history = History()
    without_audit(monkeypatch, history.volume)
    assert fault(history, adopted_clones)


def test_the_harness_catches_a_copy_of_a_pointer_block_that_does_not_count_its_children(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(References, "_add_all", lambda self, vbns: None)
    history = History()
    without_audit(monkeypatch, history.volume)
    assert fault(history, adopted_clones)


def test_the_harness_catches_two_copies_that_both_find_a_pointer_block_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pointer goes with the frees, later, as a data block's does."""
    monkeypatch.setattr(References, "let_go", lambda self, vbn: self._core.allocator.freed.append(vbn))
    history = History()
    without_audit(monkeypatch, history.volume)
    assert fault(history, both_part_at_once)


def both_part_at_once(history: History) -> None:
    history.create("golden", 2 * MIB)
    history.write("golden", 0, 10 * BLOCK)
    history.write("golden", MIB, 10 * BLOCK)
    history.checkpoint(snapshot="s")
    history.create_backed("clone", "s", "golden")
    history.adopt("clone")
    history.checkpoint()
    history.write("golden", 0, BLOCK)
    history.write("clone", MIB, BLOCK)
    history.checkpoint()


def through_a_snapshot(history: History) -> None:
    history.create("a", MIB)
    history.create("b", MIB)
    history.write("a", 0, 40 * BLOCK)
    history.checkpoint(snapshot="s")
    history.create_backed("c", "s", "a")
    history.write("a", 0, 40 * BLOCK)
    history.checkpoint()
    history.share("b", 0, "c", 0, 20 * BLOCK)
    history.checkpoint()


# --- replay -----------------------------------------------------------------------------------------------------------


def crashed_with_a_share(spoil_source: bool) -> tuple[Volume, CrashDevice]:
    device = CrashDevice(16 * MIB)
    Volume.format(device, name="v", now=EPOCH)
    volume = Volume.mount(device)
    a, b = volume.create_lun("a", 4 * MIB), volume.create_lun("b", 4 * MIB)
    a.write(0, pattern(1, 2 * MIB))
    b.write(0, pattern(2, 2 * MIB))
    checkpoint(volume)
    bad = level_one(volume.core, a.inode, 1)
    assert isinstance(bad, Buffer)
    at = bad.vbn * BLOCK
    assert b.share(0, a, 0, 2 * MIB) == 2 * MIB
    if spoil_source:
        device.image[at + 9] ^= 1
    return volume, CrashDevice(image=device.image)


@pytest.mark.parametrize("read_only", [False, True])
def test_a_share_is_there_after_a_kill(read_only: bool) -> None:
    _, device = crashed_with_a_share(False)
    volume = Volume.mount(device, read_only=read_only)
    assert read(volume.lun("b"), 0, 4 * MIB) == pattern(1, 2 * MIB) + bytes(2 * MIB)
    volume.close()
    assert read_only or problems(device) == []


@pytest.mark.parametrize("read_only", [False, True])
def test_what_a_replay_cannot_read_of_the_source_is_an_error_and_never_what_was_there_before(read_only: bool) -> None:
    _, device = crashed_with_a_share(True)
    volume = Volume.mount(device, read_only=read_only)
    assert any("is lost" in line for line in volume.mount_report)
    b = volume.lun("b")
    assert read(b, 0, MIB) == pattern(1, MIB)
    for at in range(MIB, 2 * MIB, BLOCK):
        with pytest.raises(CorruptVolume):
            read(b, at, BLOCK)
    if not read_only:
        b.write(MIB, pattern(3, MIB))
        assert read(b, 0, 2 * MIB) == pattern(1, MIB) + pattern(3, MIB)
        checkpoint(volume)
        volume.close()
        assert all("a" in line for line in errors(device))


@pytest.mark.parametrize(
    "what", [(0, 99, 0, 0, 1), (99, 0, 0, 0, 1), (0, 1, 0, 0, 0), (0, 1, 1 << 40, 0, 1), (0, 1, 0, 1023, 2),
             (0, 0, 0, 1, 2), (0, 1, 0, 0, 1 << 63)],
)  # fmt: skip
def test_a_record_that_shares_what_cannot_be_is_refused(what: tuple[int, int, int, int, int]) -> None:
    volume, _ = crashed_with_a_share(False)
    slot, source_slot, fbn, source_fbn, blocks = what
    assert volume.core.log is not None
    volume.core.log.share(slot, fbn, source_slot, source_fbn, blocks)
    device: MemoryDevice = volume.device  # type: ignore[assignment]
    with pytest.raises(DamagedRecord):
        Volume.mount(MemoryDevice(bytearray(device.image)))


def test_a_replay_copies_what_has_too_many_pointers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fills are not logged: a replay may find the backing's block where the share found the fill's."""
    _, device = crashed_with_a_share(False)
    monkeypatch.setattr("wafl.references.MAX_COUNT", 0)
    volume = Volume.mount(device)
    assert read(volume.lun("b"), 0, 2 * MIB) == pattern(1, 2 * MIB)
    volume.close()
    assert problems(device) == []


# --- audit, checker, repair -------------------------------------------------------------------------------------------


def shared_volume() -> MemoryDevice:
    """Two LUNs and a snapshot that has shared blocks too."""
    device, volume = sharing_volume(16 * MIB)
    volume.close()
    assert problems(device) == []
    return device


def count_of(tamper: Tamper, vbn: int) -> int:
    blocks, counts = tamper.image.counts(Root.of(tamper.inode(REFERENCE_INODE)), "")
    return int(counts[np.flatnonzero(blocks == vbn)[0]])


def change_count(tamper: Tamper, vbn: int, count: int) -> None:
    root = Root.of(tamper.inode(REFERENCE_INODE))
    tamper.change_inode(REFERENCE_INODE, root_crc=tamper.change_file(root, 2 * vbn, count.to_bytes(2, "little")))


def one_count_too_high(tamper: Tamper) -> None:
    vbn = tamper.vbn_of("a", 8)
    change_count(tamper, vbn, count_of(tamper, vbn) + 1)


def one_count_too_low(tamper: Tamper) -> None:
    change_count(tamper, tamper.vbn_of("a", 8), 0)


def a_count_where_nothing_is_shared(tamper: Tamper) -> None:
    change_count(tamper, tamper.free_vbn(), 5)


def a_wrong_sum(tamper: Tamper) -> None:
    tamper.change_inode(REFERENCE_INODE, private_blocks=3)


def an_unreadable_row(tamper: Tamper) -> None:
    at = tamper.path(Root.of(tamper.inode(REFERENCE_INODE)), 0)[-1][0]
    tamper.device.image[at * BLOCK + 9] ^= 1


def an_unreadable_root(tamper: Tamper) -> None:
    tamper.device.image[tamper.inode(REFERENCE_INODE)["root_vbn"] * BLOCK + 9] ^= 1


DAMAGES = [one_count_too_high, one_count_too_low, a_count_where_nothing_is_shared, a_wrong_sum, an_unreadable_row,
           an_unreadable_root]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda act: act.__name__)
def test_wrong_counts_are_found_and_counted_again(damage: Callable[[Tamper], None]) -> None:
    device = shared_volume()
    before = {name: read(Volume.mount(device, read_only=True).lun(name), 0, 4 * MIB) for name in "ab"}
    damage(Tamper(device))
    assert any("reference counts" in line for line in errors(device))
    assert any("reference counts" in line for line in repair(device))
    assert problems(device) == []
    assert repair(device) == []
    volume = Volume.mount(device)
    assert {name: read(volume.lun(name), 0, 4 * MIB) for name in "ab"} == before
    volume.destroy_lun("a")
    volume.reclaim_now()
    assert read(volume.lun("b"), 0, 4 * MIB) == before["b"]
    volume.close()
    assert problems(device) == []


def test_a_block_that_counts_as_one_luns_alone_though_it_is_shared_is_found_and_made_good() -> None:
    device = shared_volume()
    tamper = Tamper(device)
    number, root = tamper.lun_root("a")
    private = tamper.inode(number)["private_blocks"]
    young = tamper.image.fsinfo["generation"] - 1
    crc = tamper.change_pointer(root, 8, birth=young)
    tamper.change_inode(number, root_crc=crc, private_blocks=private + 1)
    assert any("as its own alone, which are shared" in line for line in errors(device))
    assert any("shared blocks as their own alone" in line for line in repair(device))
    assert not [line for line in errors(device) if "snapshot 's'" not in line]  # it had the pointer block, too
    assert not any("alone" in line for line in repair(device))


def test_a_broken_tree_never_makes_a_count_lower() -> None:
    """What is below the pointer block that cannot be read may be what shares the others."""
    device = shared_volume()
    tamper = Tamper(device)
    vbn = tamper.vbn_of("a", 8)
    had = count_of(tamper, vbn)
    leaf = tamper.path(tamper.lun_root("b")[1], 0)[-2][0]
    device.image[leaf * BLOCK + 9] ^= 1
    tamper.write_fsinfo(summary_blocks=7)
    repair(device)
    assert count_of(Tamper(device), vbn) == had


def test_a_broken_tree_and_unreadable_counts_are_more_than_repair_can_tell() -> None:
    device = shared_volume()
    tamper = Tamper(device)
    leaf = tamper.path(tamper.lun_root("b")[1], 0)[-2][0]
    an_unreadable_row(tamper)
    device.image[leaf * BLOCK + 9] ^= 1
    damaged = bytes(device.image)
    with pytest.raises(CannotRepair):
        repair(device)
    assert bytes(device.image) == damaged


def test_a_count_that_changes_by_itself_in_memory_is_not_written(workshop: Workshop) -> None:
    volume = workshop.format(16 * MIB)
    a, b = volume.create_lun("a", MIB), volume.create_lun("b", MIB)
    a.write(0, pattern(1, MIB))
    b.share(0, a, 0, MIB)
    row = volume.files.references._rows[0]
    row[np.flatnonzero(row)[0]] = 9
    with pytest.raises(VolumeFailed, match="reference counts"):
        checkpoint(volume)
    workshop.abandon(volume)


@pytest.mark.parametrize("tell", [shares_and_overwrites, shares_and_snapshots])
def test_the_counts_of_every_consistency_point_are_those_of_its_trees(tell: Story) -> None:
    history = History()
    tell(history)
    image = Image(history.device)
    inodes = image.inodes(Root.of(image.fsinfo, "ifile_"), "")
    _, counts = image.counts(Root.of(inodes[REFERENCE_INODE]), "")
    assert int(counts.sum()) == inodes[REFERENCE_INODE]["private_blocks"]
    assert errors(history.device) == []
