"""The `wafl` command, on real files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests.support.volumes import MIB, checkpoint, pattern, take_snapshot
from wafl import BLOCK_BYTES, FileDevice, Volume
from wafl.tools import main


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A volume with a LUN, a snapshot and a clone."""
    path = tmp_path / "vol0.img"
    assert run("mkfs", path, "--size", "8m").exit_code == 0
    volume = Volume.mount(FileDevice.open(path))
    volume.create_lun("dir/golden", MIB, comment="the first").write(0, pattern(1, 20 * BLOCK_BYTES))
    take_snapshot(volume, "base")
    volume.create_lun("clone", None, backing=("base", "dir/golden"))
    checkpoint(volume)
    volume.close()
    return path


def test_mkfs_makes_a_volume_of_the_size_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "new.img"
    result = run("mkfs", path, "--size", "4m", "--name", "vol7")
    assert result.exit_code == 0
    assert path.stat().st_size == 4 * MIB
    device = FileDevice.open(path, read_only=True)
    assert Volume.mount(device, read_only=True).name == "vol7"
    device.close()


def test_mkfs_refuses_to_create_over_a_file(image: Path) -> None:
    result = run("mkfs", image, "--size", "4m")
    assert (result.exit_code, result.output) == (
        1, f"wafl: {image} is there already; without --size it is used as it is\n"
    )  # fmt: skip


def test_mkfs_of_what_is_not_there_asks_for_a_size(tmp_path: Path) -> None:
    result = run("mkfs", tmp_path / "new.img")
    assert result.exit_code == 2
    assert "--size" in result.output


def test_mkfs_refuses_to_format_a_volume_without_force(image: Path) -> None:
    before = image.read_bytes()
    assert run("mkfs", image).exit_code == 1
    assert image.read_bytes() == before


def test_mkfs_with_force_formats_a_volume_again(image: Path) -> None:
    assert run("mkfs", image, "--force").exit_code == 0
    assert json.loads(run("dump", image, "--json").output)["active"]["luns"] == []


def test_mkfs_that_is_refused_leaves_no_file(tmp_path: Path) -> None:
    path = tmp_path / "tiny.img"
    assert run("mkfs", path, "--size", "10k").exit_code == 1
    assert not path.exists()


@pytest.mark.parametrize("size", ["4x", "", "m", "-1m", "1.5g"])
def test_a_size_that_is_none_is_a_usage_error(tmp_path: Path, size: str) -> None:
    assert run("mkfs", tmp_path / "x", f"--size={size}").exit_code == 2


def test_check_of_a_whole_volume_says_clean(image: Path) -> None:
    result = run("check", image)
    assert (result.exit_code, result.output.split()[-1]) == (0, "clean")


def test_check_of_a_damaged_volume_names_the_block_and_fails(image: Path) -> None:
    data = bytearray(image.read_bytes())
    at = data.index(pattern(1, BLOCK_BYTES))
    data[at + 17] ^= 1
    image.write_bytes(data)
    result = run("check", image, "--json")
    findings = json.loads(result.output)
    assert result.exit_code == 1
    assert any(f"block {at // BLOCK_BYTES}:" in finding["what"] for finding in findings)


def test_check_of_metadata_only_does_not_read_lun_data(image: Path) -> None:
    data = bytearray(image.read_bytes())
    data[data.index(pattern(1, BLOCK_BYTES)) + 17] ^= 1
    image.write_bytes(data)
    assert run("check", "--metadata-only", image).exit_code == 0


def test_check_of_what_is_no_volume_fails_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "zeros"
    path.write_bytes(bytes(MIB))
    result = run("check", path)
    assert result.exit_code == 1
    assert "label" in result.output
    assert result.output.endswith(": 1 error\n")


def test_a_volume_in_use_is_refused_by_every_command(image: Path) -> None:
    device = FileDevice.open(image)
    try:
        for command in (["check"], ["dump"], ["mkfs", "--force"]):
            result = run(*command, image)
            assert result.exit_code == 1
            assert "volume-locked" in result.output
    finally:
        device.close()


def test_dump_shows_luns_snapshots_and_backings(image: Path) -> None:
    dumped = json.loads(run("dump", image, "--json").output)
    luns = {lun["name"]: lun for lun in dumped["active"]["luns"]}
    assert luns.keys() == {"dir/golden", "clone"}
    assert luns["dir/golden"]["comment"] == "the first"
    (snapshot,) = dumped["snapshots"]
    assert snapshot["name"] == "base"
    assert [lun["name"] for lun in snapshot["luns"]] == ["dir/golden"]
    assert luns["clone"]["backing"]["snapshot"] == snapshot["id"]
    assert dumped["unreadable"] == []


def test_dump_for_people_is_the_same_as_lines(image: Path) -> None:
    text = run("dump", image).output
    assert "name: dir/golden" in text
    assert "name: base" in text


def test_dump_of_trees_counts_pointers(image: Path) -> None:
    dumped = json.loads(run("dump", image, "--trees", "--json").output)
    golden = next(lun for lun in dumped["active"]["luns"] if lun["name"] == "dir/golden")
    inode = next(inode for inode in dumped["active"]["inodes"] if inode["number"] == golden["inode"])
    assert inode["levels"]["level 1"] == {"buffers": 1, "hole": 236, "zero": 0, "data": 20}
