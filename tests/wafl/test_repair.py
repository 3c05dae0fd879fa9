"""Repair: what can be derived is made again, nothing else is touched, and a crash in it leaves the volume no worse."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.support.crash_device import CrashDevice, Leftover, MemoryDevice
from tests.support.tampering import Tamper, make_volume
from tests.support.volumes import MIB, errors, pattern, problems
from tests.wafl.test_lun import read
from wafl import BLOCK_BYTES, CannotRepair, Scrub, Volume, WaflError
from wafl.format import ACTIVE_MAP_INODE, VTOC_INODE
from wafl.offline import Image, Root
from wafl.repair import repair
from wafl.tools import main


@pytest.fixture(scope="module")
def whole() -> bytes:
    return bytes(make_volume().image)


@pytest.fixture
def device(whole: bytes) -> MemoryDevice:
    return MemoryDevice(bytearray(whole))


def spoil(device: MemoryDevice, vbn: int) -> None:
    device.image[vbn * BLOCK_BYTES + 9] ^= 1


def contents(device: MemoryDevice) -> dict[str, bytes]:
    """What every LUN reads, in snapshots too."""
    volume = Volume.mount(MemoryDevice(bytearray(device.image)))
    found = {lun.name: read(lun, 0, lun.size_bytes) for lun in volume.luns()}
    for snapshot in volume.snapshots():
        for lun in volume.snapshot_luns(snapshot.name):
            view = volume.snapshot_lun(snapshot.name, lun.name)
            found[f"{snapshot.name}/{lun.name}"] = read(view, 0, view.size_bytes)  # type: ignore[arg-type]
    return found


# -- damage that can be made good: what is done, and a word of what repair says

Damage = Callable[[Tamper], object]


def a_bit_too_many_in_the_active_map(tamper: Tamper) -> None:
    tamper.change_map_bit(tamper.free_vbn())


def a_bit_too_few_in_the_active_map(tamper: Tamper) -> None:
    tamper.change_map_bit(tamper.vbn_of("golden", 3))


def a_bit_too_many_in_the_summary(tamper: Tamper) -> None:
    tamper.change_summary_bit(tamper.free_vbn())


def a_bit_too_few_in_the_summary(tamper: Tamper) -> None:
    tamper.change_summary_bit(tamper.image.geometry.fsinfo_vbns(0)[0])


def an_unreadable_row_of_the_active_map(tamper: Tamper) -> None:
    spoil(tamper.device, tamper.path(Root.of(tamper.inode(ACTIVE_MAP_INODE)), 0)[-1][0])


def an_unreadable_root_of_the_active_map(tamper: Tamper) -> None:
    spoil(tamper.device, tamper.inode(ACTIVE_MAP_INODE)["root_vbn"])


def an_unreadable_row_of_the_summary(tamper: Tamper) -> None:
    spoil(tamper.device, tamper.path(Root.of(tamper.fsinfo, "summary_"), 0)[-1][0])


def an_unreadable_root_of_the_summary(tamper: Tamper) -> None:
    spoil(tamper.device, tamper.fsinfo["summary_root_vbn"])


def a_wrong_count_of_active_blocks(tamper: Tamper) -> None:
    tamper.write_fsinfo(active_blocks=7)


def a_wrong_count_in_the_summary(tamper: Tamper) -> None:
    tamper.write_fsinfo(summary_blocks=7)


def an_inode_that_counts_wrong(tamper: Tamper) -> None:
    tamper.change_inode(tamper.lun("golden")["inode"], blocks=1)


def too_many_private_blocks(tamper: Tamper) -> None:
    number = tamper.lun("golden")["inode"]
    tamper.change_inode(number, private_blocks=tamper.inode(number)["private_blocks"] + 3)


def too_few_private_blocks(tamper: Tamper) -> None:
    number = tamper.lun("golden")["inode"]
    tamper.change_inode(number, private_blocks=tamper.inode(number)["private_blocks"] - 3)


def a_next_generation_that_was_given_out(tamper: Tamper) -> None:
    tamper.write_fsinfo(next_inode_generation=2)


def a_next_snapshot_id_that_was_given_out(tamper: Tamper) -> None:
    tamper.write_fsinfo(next_snapshot_id=1)


def too_few_missing_blocks(tamper: Tamper) -> None:
    tamper.change_lun("clone", missing_blocks=1)


def a_damaged_first_label(tamper: Tamper) -> None:
    spoil(tamper.device, 0)


def a_damaged_second_label(tamper: Tamper) -> None:
    spoil(tamper.device, tamper.image.geometry.second_label)


def a_damaged_copy_of_fsinfo(tamper: Tamper) -> None:
    spoil(tamper.device, tamper.image.geometry.fsinfo_vbns(tamper.fsinfo["generation"])[0])


REPAIRABLE: dict[Damage, str] = {
    a_bit_too_many_in_the_active_map: "active map", a_bit_too_few_in_the_active_map: "active map",
    a_bit_too_many_in_the_summary: "summary", a_bit_too_few_in_the_summary: "summary",
    an_unreadable_row_of_the_active_map: "active map: could not be read",
    an_unreadable_root_of_the_active_map: "active map: could not be read",
    an_unreadable_row_of_the_summary: "summary: could not be read",
    an_unreadable_root_of_the_summary: "summary: could not be read",
    a_wrong_count_of_active_blocks: "active_blocks was 7", a_wrong_count_in_the_summary: "summary_blocks was 7",
    too_many_private_blocks: "as its own alone", too_few_private_blocks: "as its own alone",
    an_inode_that_counts_wrong: "counted 1 data blocks", a_next_generation_that_was_given_out: "next_inode_generation",
    a_next_snapshot_id_that_was_given_out: "next_snapshot_id", too_few_missing_blocks: "missing blocks",
    a_damaged_first_label: "label", a_damaged_second_label: "label", a_damaged_copy_of_fsinfo: "fsinfo",
}  # fmt: skip


@pytest.mark.parametrize("damage", REPAIRABLE, ids=lambda act: act.__name__)
def test_what_can_be_derived_is_made_again(device: MemoryDevice, damage: Damage) -> None:
    before = contents(device)
    damage(Tamper(device))
    damaged = bytes(device.image)
    told = repair(device, dry_run=True)
    assert bytes(device.image) == damaged
    assert repair(device) == told
    assert any(REPAIRABLE[damage] in line for line in told)
    assert problems(device) == []
    assert contents(device) == before
    assert repair(device) == []
    volume = Volume.mount(device)
    volume.lun("golden").write(0, pattern(8, MIB))
    volume.reclaim_now()
    volume.close()
    assert problems(device) == []


def test_a_whole_volume_is_left_alone(device: MemoryDevice, whole: bytes) -> None:
    assert repair(device) == []
    assert bytes(device.image) == whole


def test_several_damages_at_once(device: MemoryDevice) -> None:
    before = contents(device)
    for damage in (a_damaged_second_label, an_unreadable_root_of_the_summary, an_unreadable_row_of_the_active_map):
        damage(Tamper(device))
    repair(device)
    assert problems(device) == []
    assert contents(device) == before


@pytest.mark.parametrize(
    "damage",
    [an_unreadable_root_of_the_active_map, an_unreadable_row_of_the_summary, a_bit_too_few_in_the_active_map,
     a_damaged_copy_of_fsinfo, a_wrong_count_of_active_blocks],
    ids=lambda act: act.__name__,
)  # fmt: skip
def test_a_crash_anywhere_in_a_repair_leaves_the_volume_no_worse(device: MemoryDevice, damage: Damage) -> None:
    before = contents(device)
    damage(Tamper(device))
    crashing = CrashDevice(image=device.image)
    repair(crashing)
    journal = crashing.journal
    for state in journal.states(list(journal.points()), list(Leftover), seed=1):
        left = MemoryDevice(bytearray(state.image))
        repair(left)  # whatever the crash left, repair makes it whole
        assert errors(left) == [], state
        assert contents(left) == before, state


# -- damage that cannot


def a_pointer_block_of_the_inode_file(tamper: Tamper) -> None:
    spoil(tamper.device, tamper.fsinfo["ifile_root_vbn"])


def a_block_of_the_inode_file(tamper: Tamper) -> None:
    spoil(tamper.device, tamper.path(tamper.ifile, 0)[-1][0])


def the_vtoc(tamper: Tamper) -> None:
    spoil(tamper.device, tamper.path(Root.of(tamper.inode(VTOC_INODE)), 0)[-1][0])


def the_snapshot_table(tamper: Tamper) -> None:
    spoil(tamper.device, tamper.path(Root.of(tamper.fsinfo, "snapshot_table_"), 0)[-1][0])


def a_block_that_two_files_reach(tamper: Tamper) -> None:
    _, root = tamper.lun_root("golden")
    number, _ = tamper.lun_root("clone")
    crc = tamper.change_pointer(tamper.lun_root("clone")[1], 5, vbn=tamper.path(root, 20)[-1][0])
    tamper.change_inode(number, root_crc=crc)


def a_lun_and_the_active_map(tamper: Tamper) -> None:
    spoil(tamper.device, tamper.lun_root("golden")[1].vbn)
    an_unreadable_root_of_the_active_map(tamper)


@pytest.mark.parametrize(
    "damage",
    [a_pointer_block_of_the_inode_file, a_block_of_the_inode_file, the_vtoc, the_snapshot_table,
     a_block_that_two_files_reach, a_lun_and_the_active_map],
    ids=lambda act: act.__name__,
)  # fmt: skip
def test_what_cannot_be_derived_is_refused_and_nothing_is_changed(device: MemoryDevice, damage: Damage) -> None:
    damage(Tamper(device))
    damaged = bytes(device.image)
    with pytest.raises(CannotRepair) as caught:
        repair(device)
    assert "\n" not in str(caught.value)
    assert bytes(device.image) == damaged


def test_a_damaged_lun_keeps_all_its_blocks_when_the_counters_are_repaired(device: MemoryDevice) -> None:
    tamper = Tamper(device)
    lost = tamper.lun_root("golden")[1].vbn
    tamper.write_fsinfo(summary_blocks=7)
    spoil(device, lost)
    before = Image(device).map_bits(Root.of(tamper.inode(ACTIVE_MAP_INODE)), "")
    repair(device)
    spoil(device, lost)  # as if the sector came back
    tamper = Tamper(device)
    after = Image(device).map_bits(Root.of(tamper.inode(ACTIVE_MAP_INODE)), "")
    own = {vbn for vbn, _ in tamper.path(Root.of(tamper.inode(ACTIVE_MAP_INODE)), 0)}
    assert after[tamper.vbn_of("golden", 3)]
    assert int((before & ~after).sum()) <= len(own) + 8  # only blocks of the old map and records, which moved
    assert not [line for line in errors(device) if "reachable but not" in line]


def test_a_volume_whose_log_has_records_is_mounted_first(device: MemoryDevice) -> None:
    big = MemoryDevice(bytearray(32 * MIB))
    Volume.format(big, name="vol0")
    volume = Volume.mount(big)
    volume.create_lun("a", MIB).write(0, pattern(1, BLOCK_BYTES))
    crashed = MemoryDevice(bytearray(big.image))
    with pytest.raises(CannotRepair, match="mount the volume once"):
        repair(crashed)
    assert crashed.image == big.image


def test_the_command_repairs_and_then_checks(device: MemoryDevice, tmp_path: Path) -> None:
    a_bit_too_few_in_the_active_map(Tamper(device))
    image = tmp_path / "vol0.img"
    image.write_bytes(device.image)
    run = CliRunner().invoke
    assert run(main, ["check", str(image), "--dry-run"]).exit_code == 2
    tried = run(main, ["check", str(image), "--repair", "--dry-run"])
    assert (tried.exit_code, "would be repaired: active map" in tried.stdout) == (1, True)
    assert image.read_bytes() == bytes(device.image)
    done = run(main, ["check", str(image), "--repair"])
    assert (done.exit_code, "repaired: active map" in done.stdout) == (0, True)
    assert run(main, ["check", str(image)]).exit_code == 0


@pytest.mark.parametrize(
    "values",
    [{"height": 60000}, {"size_bytes": 2**62, "height": 6}, {"root_vbn": 2**63}, {"type": 99}, {"blocks": 2**63}],
)
@pytest.mark.parametrize("number", [VTOC_INODE, ACTIVE_MAP_INODE, 16])
def test_inodes_that_lie_are_refused_or_made_good(device: MemoryDevice, values: dict[str, int], number: int) -> None:
    Tamper(device).change_inode(number, **values)
    with suppress(WaflError):
        repair(device)


def grown() -> MemoryDevice:
    volume = Volume.mount(MemoryDevice(bytearray(make_volume().image)))
    volume.grow(12 * MIB)
    volume.lun("golden").write(0, pattern(3, MIB))
    volume.close()
    device: MemoryDevice = volume.device  # type: ignore[assignment]
    return MemoryDevice(device.image + bytes(MIB))  # and the device is larger still


@pytest.mark.parametrize(
    "damage",
    [None, a_damaged_second_label, an_unreadable_root_of_the_active_map, a_bit_too_many_in_the_summary],
    ids=lambda act: act.__name__ if act else "none",
)
def test_a_volume_that_has_grown_is_repaired_like_any_other(damage: Damage | None) -> None:
    device = grown()
    before = contents(device)
    if damage is None:
        assert repair(device) == []
        return
    damage(Tamper(device))
    assert repair(device)
    assert problems(device) == []
    assert contents(device) == before
    volume = Volume.mount(device)
    done = Scrub(volume)
    while (part := done.plan()) is not None:
        part.read()
        part.release()
    assert not done.bad
    volume.close()
