"""Salvage: whatever can still be read comes off a volume that cannot be mounted, and never a wrong byte."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.support.crash_device import MemoryDevice
from tests.support.tampering import Tamper, crc_of
from tests.support.volumes import EPOCH, MIB, checkpoint, pattern, take_snapshot
from wafl import BLOCK_BYTES, Volume, WaflError
from wafl.errors import NoSuchLun, NotAVolume
from wafl.format import ACTIVE_MAP_INODE, LEVEL_ONE_BYTES, POINTERS, VTOC_INODE
from wafl.offline import Image, Root
from wafl.salvage import Salvage, Salvaged
from wafl.tools import COPIED_IN_PART, main

GOLDEN = pattern(1, 300 * BLOCK_BYTES)
CHANGED = pattern(3, 10 * BLOCK_BYTES)
CLONED = pattern(2, BLOCK_BYTES + 512)
ODD = pattern(4, MIB + 512)


def bytes_of() -> dict[str, bytes]:
    """path -> what a LUN of the volume below reads."""
    golden = GOLDEN + bytes(3 * MIB - len(GOLDEN))
    clone = golden[: 5 * BLOCK_BYTES] + CLONED + golden[5 * BLOCK_BYTES + len(CLONED) :]
    return {
        "golden": CHANGED + golden[len(CHANGED) :], "clone": clone, "odd": bytes(MIB) + ODD,
        ".snapshot/base/golden": golden,
    }  # fmt: skip


@pytest.fixture(scope="module")
def whole() -> bytes:
    device = MemoryDevice(bytearray(8 * MIB))
    Volume.format(device, name="vol0", now=EPOCH)
    volume = Volume.mount(device)
    golden = volume.create_lun("golden", 3 * MIB)
    golden.write(0, GOLDEN)
    take_snapshot(volume, "base")
    volume.create_lun("clone", None, backing=("base", "golden")).write(5 * BLOCK_BYTES, CLONED)
    golden.write(0, CHANGED)
    volume.create_lun("odd", 2 * MIB + 512).write(MIB, ODD)
    checkpoint(volume)
    volume.close()
    return bytes(device.image)


@pytest.fixture
def device(whole: bytes) -> MemoryDevice:
    return MemoryDevice(bytearray(whole))


def spoil(device: MemoryDevice, *vbns: int) -> None:
    for vbn in vbns:
        device.image[vbn * BLOCK_BYTES + 8] ^= 1


def copy(device: MemoryDevice, tmp_path: Path, path: str) -> tuple[bytes, Salvaged]:
    found = Salvage(device)
    lun = next(each for each in found.luns() if each.path == path)
    to = tmp_path / "copy.img"
    to.unlink(missing_ok=True)
    done = found.copy(found.find(lun.name, lun.snapshot), to)
    return to.read_bytes(), done


def assert_right_but_for(copied: bytes, wanted: bytes, done: Salvaged) -> None:
    """Every byte is right, or a zero in a stretch that is reported as lost."""
    assert len(copied) == len(wanted)
    expected = bytearray(wanted)
    for offset, length in done.lost:
        assert not any(copied[offset : offset + length])
        expected[offset : offset + length] = bytes(length)
    assert bytes(expected) == copied
    assert done.lost_bytes == sum(length for _, length in done.lost)


@pytest.mark.parametrize("path", sorted(bytes_of()))
def test_all_of_a_whole_volume_comes_off(device: MemoryDevice, tmp_path: Path, path: str) -> None:
    copied, done = copy(device, tmp_path, path)
    assert copied == bytes_of()[path]
    assert not done.lost
    assert (tmp_path / "copy.img").stat().st_blocks * 512 <= done.copied_bytes + 64 * 1024


def of_inode(number: int) -> Callable[[Tamper], list[int]]:
    return lambda tamper: [vbn for vbn, _ in tamper.path(Root.of(tamper.inode(number)), 0)]


def labels(tamper: Tamper) -> list[int]:
    return [0, tamper.image.geometry.second_label]


def newest_fsinfo(tamper: Tamper) -> list[int]:
    return list(tamper.image.geometry.fsinfo_vbns(tamper.fsinfo["generation"]))


def tree(name: str) -> Callable[[Tamper], list[int]]:
    return lambda tamper: [vbn for vbn, _ in tamper.path(Root.of(tamper.fsinfo, f"{name}_"), 0)]


DAMAGE = {
    "active map": of_inode(ACTIVE_MAP_INODE), "summary": tree("summary"), "labels": labels, "fsinfo": newest_fsinfo,
    "map and summary": lambda tamper: [*of_inode(ACTIVE_MAP_INODE)(tamper), *tree("summary")(tamper)],
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_nothing_is_lost_with_what_no_lun_needs(device: MemoryDevice, tmp_path: Path, damage: str) -> None:
    spoil(device, *DAMAGE[damage](Tamper(device)))
    for path, wanted in bytes_of().items():
        copied, done = copy(device, tmp_path, path)
        assert (copied, done.lost) == (wanted, [])


def test_a_lun_that_the_newest_tree_has_lost_is_found_in_an_older_one(device: MemoryDevice, tmp_path: Path) -> None:
    tamper = Tamper(device)
    spoil(device, tamper.path(tamper.ifile, 1)[-1][0])
    found = {lun.path: lun for lun in Salvage(device).luns()}
    assert found["golden"].generation < tamper.fsinfo["generation"]
    assert "the newest one has lost it" in found["golden"].problem
    copied, done = copy(device, tmp_path, "golden")
    # It is what it was at that time, whole.
    assert copied in (bytes_of()["golden"], bytes_of()[".snapshot/base/golden"])
    assert not done.lost


def test_without_the_snapshot_table_a_clone_loses_what_it_read_through(device: MemoryDevice, tmp_path: Path) -> None:
    spoil(device, *tree("snapshot_table")(Tamper(device)))
    copied, done = copy(device, tmp_path, "clone")
    assert_right_but_for(copied, bytes_of()["clone"], done)
    assert done.lost_bytes == 3 * MIB - 2 * BLOCK_BYTES
    copied, done = copy(device, tmp_path, "golden")
    assert (copied, done.lost) == (bytes_of()["golden"], [])


def test_a_lun_whose_vtoc_entry_is_lost_is_listed_by_its_inode(device: MemoryDevice, tmp_path: Path) -> None:
    tamper = Tamper(device)
    number, _ = tamper.lun_root("golden")
    for vbn in newest_fsinfo(tamper):  # keep older ones from helping
        assert vbn
    spoil(device, tamper.path(Root.of(tamper.inode(VTOC_INODE)), 0)[-1][0])
    names = [lun.path for lun in Salvage(device).luns()]
    assert f"inode-{number}" in names
    copied, done = copy(device, tmp_path, f"inode-{number}")
    assert_right_but_for(copied, bytes_of()["golden"], done)
    assert "whether it reads through a snapshot" in Salvage(device).find(f"inode-{number}").problem


def test_a_bad_data_block_costs_that_block_and_a_bad_level_one_block_its_mebibyte(
    device: MemoryDevice, tmp_path: Path
) -> None:
    tamper = Tamper(device)
    spoil(device, tamper.vbn_of("golden", 100))
    copied, done = copy(device, tmp_path, "golden")
    assert done.lost == [(100 * BLOCK_BYTES, BLOCK_BYTES)]
    assert_right_but_for(copied, bytes_of()["golden"], done)
    spoil(device, tamper.path(tamper.lun_root("golden")[1], 0)[-2][0])
    copied, done = copy(device, tmp_path, "golden")
    assert done.lost == [(0, LEVEL_ONE_BYTES)]
    assert_right_but_for(copied, bytes_of()["golden"], done)


def test_the_command_lists_copies_and_says_what_is_missing(device: MemoryDevice, tmp_path: Path) -> None:
    spoil(device, Tamper(device).vbn_of("golden", 100))
    image = tmp_path / "vol0.img"
    image.write_bytes(device.image)

    def run(*arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(main, ["salvage", str(image), *arguments])
        return result.exit_code, result.stdout

    listed = json.loads(run("--list", "--json")[1])
    assert {lun["path"] for lun in listed} == {*bytes_of()}
    assert "golden\t3145728" in run()[1]
    assert run("--lun", "odd", "--to", str(tmp_path / "odd"))[0] == 0
    assert (tmp_path / "odd").read_bytes() == bytes_of()["odd"]
    assert run("--lun", "golden", "--snapshot", "base", "--to", str(tmp_path / "old"))[0] == COPIED_IN_PART
    status, output = run("--lun", "golden", "--to", str(tmp_path / "golden"))
    assert (status, output) == (COPIED_IN_PART, f"lost: bytes {100 * BLOCK_BYTES} to {101 * BLOCK_BYTES - 1}\n")
    assert run("--lun", "golden", "--to", str(tmp_path / "golden"))[0] == 1  # never over a file
    assert run("--lun", "nothing", "--to", str(tmp_path / "x"))[0] == 1
    assert run("--lun", "golden")[0] == 2
    assert image.read_bytes() == bytes(device.image)


def test_nothing_but_an_image_without_any_fsinfo_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotAVolume):
        Salvage(MemoryDevice(bytearray(4 * MIB)))


HOSTILE: dict[str, dict[str, int]] = {
    "height": {"height": 60000}, "size": {"size_bytes": 2**63}, "large": {"size_bytes": 16 << 40, "height": 4},
    "root": {"root_vbn": 2**64 - 1},
}  # fmt: skip


@pytest.mark.parametrize("lie", HOSTILE)
def test_inodes_that_lie_do_no_harm(device: MemoryDevice, tmp_path: Path, lie: str) -> None:
    tamper = Tamper(device)
    tamper.change_inode(tamper.lun("golden")["inode"], **HOSTILE[lie])
    found = Salvage(device)
    try:
        lun = found.find("golden")
        found._layers(lun)
        if lun.size_bytes < MIB * 64:
            found.copy(lun, tmp_path / "copy")
    except WaflError:
        pass


@pytest.mark.parametrize("number", [VTOC_INODE, ACTIVE_MAP_INODE])
def test_tables_of_a_hostile_size_are_not_read(device: MemoryDevice, number: int) -> None:
    Tamper(device).change_inode(number, size_bytes=2**62, height=6)
    Salvage(device).luns()


def test_a_tree_whose_pointers_meet_again_does_not_go_on_for_ever(device: MemoryDevice) -> None:
    tamper = Tamper(device)
    below = tamper.path(tamper.ifile, 0)[-2][0]
    crc = crc_of(tamper.block(below))
    active = tamper.image.map_bits(Root.of(tamper.inode(ACTIVE_MAP_INODE)), "")
    summary = tamper.image.map_bits(Root.of(tamper.fsinfo, "summary_"), "")
    for vbn in (~(active | summary)).nonzero()[0][:5].tolist():
        block = bytearray(BLOCK_BYTES)
        block[:2048] = below.to_bytes(8, "little") * POINTERS
        block[2048:3072] = crc.to_bytes(4, "little") * POINTERS
        tamper.put(vbn, block)
        below, crc = vbn, crc_of(block)
    tamper.write_fsinfo(ifile_root_vbn=below, ifile_root_crc=crc, ifile_height=6)
    reads = []
    pread = device.pread
    device.pread = lambda offset, view: (reads.append(offset), pread(offset, view))  # type: ignore[method-assign,func-returns-value]
    Salvage(device).luns()
    assert len(reads) < 20_000
    Image(device)


def test_a_lun_that_cannot_be_read_says_where_to_look(device: MemoryDevice) -> None:
    tamper = Tamper(device)
    spoil(device, tamper.path(tamper.ifile, 1)[-1][0])
    for slot, fields in tamper.image.slots.items():
        if fields and fields["generation"] != tamper.fsinfo["generation"]:
            device.image[slot * BLOCK_BYTES : (slot + 1) * BLOCK_BYTES] = bytes(BLOCK_BYTES)
    with pytest.raises(NoSuchLun, match="look for it in a snapshot"):
        Salvage(device).find("golden")
