"""The checker: clean volumes give no finding, and each kind of damage is found and named.

Damage is done to the image of a volume that has everything: LUNs, a snapshot, a clone, a shrunk LUN's graveyard, a
snapshot being deleted.  The blocks' checksums are made right again (`reseal`) so that the checker has to notice the
contradiction itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import nullcontext

import pytest

from tests.support.crash_device import MemoryDevice
from tests.support.tampering import Tamper, make_volume
from tests.support.volumes import MIB, checkpoint, pattern, problems, run_steps
from wafl import BLOCK_BYTES, Volume, VolumeService
from wafl.check import Finding, Severity, check, check_volume, prepare_check
from wafl.format import (
    ACTIVE_MAP_INODE,
    VTOC_INODE,
    EntryState,
    seal,
)
from wafl.offline import Image, Root


@pytest.fixture(scope="module")
def whole() -> bytes:
    return bytes(make_volume().image)


@pytest.fixture
def device(whole: bytes) -> MemoryDevice:
    return MemoryDevice(bytearray(whole))


# -- whole volumes


def test_a_whole_volume_has_no_findings(device: MemoryDevice) -> None:
    assert check(device) == []


def test_a_mounted_volume_can_be_checked_with_changes_under_way(device: MemoryDevice) -> None:
    volume = Volume.mount(device)
    volume.lun("golden").write(0, pattern(9, 50 * BLOCK_BYTES))
    assert check_volume(volume) == []
    found: list[list[Finding]] = []
    run_steps(volume, volume.checkpoint(), lambda: found.append([f for f in volume.check() if f.severity > 1]))
    assert found
    assert not any(found)


def test_the_checker_writes_nothing(device: MemoryDevice, whole: bytes) -> None:
    check(device)
    assert bytes(device.image) == whole


# -- damage, one kind each: what is done, and a word of the finding

DAMAGE: dict[str, tuple[Callable[[Tamper], object], str]] = {}


def damage(word: str) -> Callable[[Callable[[Tamper], object]], Callable[[Tamper], object]]:
    def add(act: Callable[[Tamper], object]) -> Callable[[Tamper], object]:
        DAMAGE[act.__name__] = act, word
        return act

    return add


@damage("crc32c")
def a_flipped_bit_in_data(tamper: Tamper) -> None:
    tamper.device.image[tamper.vbn_of("golden", 3) * BLOCK_BYTES + 99] ^= 4


@damage("crc32c")
def a_flipped_bit_in_a_pointer_block(tamper: Tamper) -> None:
    _, root = tamper.lun_root("golden")
    tamper.device.image[tamper.path(root, 0)[0][0] * BLOCK_BYTES + 2050] ^= 4


@damage("reachable but not in the active map")
def a_block_that_the_active_map_lacks(tamper: Tamper) -> None:
    tamper.change_map_bit(tamper.vbn_of("golden", 3))


@damage("in the active map but not reachable")
def a_block_that_the_active_map_has_for_nothing(tamper: Tamper) -> None:
    tamper.change_map_bit(tamper.free_vbn())


@damage("in it and nothing uses them")
def a_block_that_the_summary_has_for_nothing(tamper: Tamper) -> None:
    tamper.change_summary_bit(tamper.free_vbn())


@damage("in use but not in it")
def a_snapshots_block_that_the_summary_lacks(tamper: Tamper) -> None:
    tamper.change_summary_bit(tamper.vbn_of("golden", 200))


@damage("in use but not in it")
def the_volumes_own_block_that_the_summary_lacks(tamper: Tamper) -> None:
    tamper.change_summary_bit(tamper.fsinfo["snapshot_table_root_vbn"])


@damage("reached twice")
def a_block_with_two_fathers(tamper: Tamper) -> None:
    number, root = tamper.lun_root("golden")
    tamper.change_inode(number, root_crc=tamper.change_pointer(root, 3, vbn=tamper.vbn_of("golden", 4)))


@damage("where no data can be")
def a_pointer_to_the_label(tamper: Tamper) -> None:
    number, root = tamper.lun_root("golden")
    tamper.change_inode(number, root_crc=tamper.change_pointer(root, 3, vbn=2))


@damage("younger than itself")
def a_child_from_the_future(tamper: Tamper) -> None:
    number, root = tamper.lun_root("golden")
    tamper.change_inode(number, root_crc=tamper.change_pointer(root, 3, birth=1 << 30))


@damage("behind the end of the file")
def data_behind_the_end(tamper: Tamper) -> None:
    number, _ = tamper.lun_root("golden")
    tamper.change_inode(number, size_bytes=100 * BLOCK_BYTES)


@damage("behind the end of the LUN are not zeros")
def a_tail_that_is_not_zero(tamper: Tamper) -> None:
    number, root = tamper.lun_root("golden")
    tamper.change_inode(number, size_bytes=root.size_bytes - 512)
    tamper.change_inode(number, size_bytes=299 * BLOCK_BYTES + 512)


@damage("data blocks and has")
def a_wrong_count_of_blocks(tamper: Tamper) -> None:
    number, _ = tamper.lun_root("golden")
    tamper.change_inode(number, blocks=7)


@damage("calls itself")
def an_inode_with_another_number(tamper: Tamper) -> None:
    number, _ = tamper.lun_root("golden")
    tamper.change_inode(number, number=number + 9)


@damage("was never given out")
def an_inode_generation_from_the_future(tamper: Tamper) -> None:
    number, _ = tamper.lun_root("golden")
    tamper.change_inode(number, generation=1 << 40)


@damage("does not belong here")
def an_unknown_type_of_inode(tamper: Tamper) -> None:
    number, _ = tamper.lun_root("golden")
    tamper.change_inode(number, type=1)


@damage("differs from the inode's")
def a_size_that_the_inode_does_not_have(tamper: Tamper) -> None:
    tamper.change_lun("golden", size_bytes=MIB)


@damage("is not a LUN's")
def a_lun_without_an_inode(tamper: Tamper) -> None:
    tamper.change_lun("golden", inode=900)


@damage("the vtoc does not name")
def a_lun_that_the_vtoc_forgot(tamper: Tamper) -> None:
    tamper.change_lun("golden", state=int(EntryState.FREE))


@damage("is there 2 times")
def two_luns_of_one_name(tamper: Tamper) -> None:
    tamper.change_lun("golden", name=b"clone")


@damage("is there 2 times")
def two_luns_of_one_uuid(tamper: Tamper) -> None:
    tamper.change_lun("golden", uuid=tamper.lun("clone")["uuid"])


@damage("is not there")
def a_backing_snapshot_that_is_gone(tamper: Tamper) -> None:
    tamper.change_lun("clone", backing_snapshot=77)


@damage("is not there")
def a_backing_inode_that_is_gone(tamper: Tamper) -> None:
    tamper.change_lun("clone", backing_inode=99)


@damage("is not there")
def a_backing_inode_of_another_generation(tamper: Tamper) -> None:
    tamper.change_lun("clone", backing_inode_generation=99)


@damage("not a whole number of blocks")
def a_limit_within_a_block(tamper: Tamper) -> None:
    tamper.change_lun("clone", backing_limit_bytes=512)


@damage("blocks born after")
def more_private_blocks_than_there_are(tamper: Tamper) -> None:
    number, _ = tamper.lun_root("golden")
    tamper.change_inode(number, private_blocks=1000, flags=0)


@damage("blocks born after")
def fewer_private_blocks_than_there_are(tamper: Tamper) -> None:
    number, _ = tamper.lun_root("golden")
    tamper.change_inode(number, private_blocks=0, private_since=0, flags=1)


@damage("active_blocks is")
def a_wrong_count_of_active_blocks(tamper: Tamper) -> None:
    tamper.write_fsinfo(active_blocks=5)


@damage("summary_blocks is")
def a_wrong_count_of_summary_blocks(tamper: Tamper) -> None:
    tamper.write_fsinfo(summary_blocks=5)


@damage("its record counts")
def a_wrong_count_in_a_snapshots_record(tamper: Tamper) -> None:
    tamper.change_snapshot("base", active_blocks=5)


@damage("was never given out")
def a_snapshot_id_from_the_future(tamper: Tamper) -> None:
    tamper.write_fsinfo(next_snapshot_id=1)


@damage("has not been")
def a_snapshot_of_a_later_consistency_point(tamper: Tamper) -> None:
    tamper.change_snapshot("base", generation=1 << 20)


@damage("this copy of the label is damaged")
def a_damaged_first_label(tamper: Tamper) -> None:
    tamper.device.image[20] ^= 1


@damage("this copy of the label is damaged")
def a_damaged_second_label(tamper: Tamper) -> None:
    tamper.device.image[-BLOCK_BYTES + 20] ^= 1


@damage("this copy of fsinfo")
def a_damaged_copy_of_fsinfo(tamper: Tamper) -> None:
    tamper.device.image[tamper.fsinfo["vbn"] * BLOCK_BYTES + 300] ^= 1


@damage("unknown incompatible features")
def a_feature_nobody_knows(tamper: Tamper) -> None:
    from wafl.format import LABEL

    for vbn in tamper.image.labels:
        tamper.put(vbn, seal(LABEL, **tamper.image.label | {"incompat": 1 << 40}))


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_found_and_named(device: MemoryDevice, name: str) -> None:
    act, word = DAMAGE[name]
    act(Tamper(device))
    found = [str(finding) for finding in check(device)]
    assert any(word in line for line in found), found or "no finding"


def test_a_spare_copy_that_is_damaged_is_a_warning(device: MemoryDevice) -> None:
    a_damaged_second_label(Tamper(device))
    assert [finding.severity for finding in problems(device)] == [Severity.WARNING]


def test_what_is_no_volume_is_one_error(device: MemoryDevice) -> None:
    (finding,) = check(MemoryDevice(bytearray(MIB)))
    assert finding.severity is Severity.ERROR


def test_any_damaged_block_is_reported_and_nothing_raises(device: MemoryDevice, whole: bytes) -> None:
    """One flipped bit in each block of the active file system: the checker says something, whatever it is."""
    image = Image(device)
    in_use = image.map_bits(Root.of(image.inodes(Root.of(image.fsinfo, "ifile_"), "")[ACTIVE_MAP_INODE]), "")
    for vbn in in_use.nonzero()[0].tolist():
        device.image[vbn * BLOCK_BYTES + vbn % BLOCK_BYTES] ^= 1
        assert check(device), f"block {vbn}"
        device.image[vbn * BLOCK_BYTES + vbn % BLOCK_BYTES] ^= 1
    assert bytes(device.image) == whole




# -- while the volume is in use


class BusyDevice(MemoryDevice):
    """Guests write, and consistency points are made, between the reads of a check."""

    def __init__(self, image: bytearray, blocks: int) -> None:
        super().__init__(image)
        self.blocks = blocks
        """How much is overwritten each time."""
        self.reads = -1
        self.volume: Volume | None = None

    def pread(self, offset: int, view: object) -> None:
        super().pread(offset, view)
        if self.volume is None or self.reads < 0:
            return
        self.reads += 1
        if self.reads % 10 == 0:
            volume, self.volume = self.volume, None
            volume.lun("golden").write(0, pattern(self.reads, self.blocks * BLOCK_BYTES))
            for _ in range(3):
                checkpoint(volume)
            self.volume = volume


def check_while_busy(whole: bytes, hold: bool) -> list[Finding]:
    device = BusyDevice(bytearray(whole), blocks=5 if hold else 100)
    device.volume = volume = Volume.mount(device)
    with volume.held() if hold else nullcontext():
        run = prepare_check(device)
        device.reads = 0
        findings = run()
        device.reads = -1
    return findings


def test_a_check_that_holds_its_blocks_finds_nothing_while_hosts_go_on(whole: bytes) -> None:
    assert check_while_busy(whole, hold=True) == []


def test_a_check_that_does_not_hold_its_blocks_would_see_them_reused(whole: bytes) -> None:
    assert check_while_busy(whole, hold=False)


def test_the_service_checks_in_a_thread_and_gives_the_blocks_back(device: MemoryDevice) -> None:
    async def main() -> None:
        volume = Volume.mount(device)
        service = VolumeService(volume)
        service.start()
        checking = asyncio.ensure_future(service.check())
        for round_number in range(5):
            volume.lun("golden").write(0, pattern(round_number, 5 * BLOCK_BYTES))
            await service.commit()
        assert await checking == []
        await service.commit()
        assert volume.space().freeing == 0
        await service.stop()
        volume.close()

    asyncio.run(main())


def test_a_check_ends_with_a_note_when_space_gets_short(device: MemoryDevice) -> None:
    (note,) = check(device, stop=lambda: "hosts need the space")
    assert (note.severity, note.what) == (Severity.NOTE, "the check was not finished: hosts need the space")


def test_a_damaged_block_is_named_with_its_file_its_lun_and_what_is_lost(device: MemoryDevice) -> None:
    tamper = Tamper(device)
    _, golden = tamper.lun_root("golden")
    vtoc = Root.of(tamper.inode(VTOC_INODE))
    active_map = Root.of(tamper.inode(ACTIVE_MAP_INODE))
    for vbn, where in (
        (tamper.path(golden, 0)[-2][0], f"(LUN 'golden'), bytes 0 to {MIB - 1} (level 1"),
        (tamper.path(golden, 20)[-1][0], f"(LUN 'golden'), bytes {20 * BLOCK_BYTES} to {21 * BLOCK_BYTES - 1}"),
        (tamper.path(tamper.ifile, 1)[-1][0], "active file system, inode file, inodes 16 to 31"),
        (tamper.path(vtoc, 0)[-1][0], "active file system, vtoc, entries 0 to 3"),
        (tamper.path(active_map, 0)[-1][0], "active file system, active map, the map of blocks 0 to 32767"),
    ):  # fmt: skip
        damaged = MemoryDevice(bytearray(device.image))
        damaged.image[vbn * BLOCK_BYTES + 8] ^= 1
        found = [str(finding) for finding in check(damaged) if "crc32c" in finding.what]
        assert any(where in text for text in found), (where, found)
