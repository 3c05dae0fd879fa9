"""QEMU's block layer over libiscsi, and a byte-exact model of a clone that is written while it is cloned."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from tests.support.initiators import download, qemu_io, tool, upload, url
from tests.support.lund import Lund
from tests.support.netns import Namespace

GOLDEN, CLONE = "/vol/vol0/golden", "/vol/vol0/clone"
SIZE_BYTES = 32 << 20
SECTOR = 512

pytestmark = pytest.mark.usefixtures("tools")


def golden_image(path: Path, seed: int) -> bytearray:
    """Data with zeros and unwritten stretches between."""
    rng = random.Random(seed)
    content = bytearray(SIZE_BYTES)
    for _ in range(60):
        length = rng.choice((SECTOR, 4096, 20480, 1 << 20))
        at = rng.randrange((SIZE_BYTES - length) // SECTOR) * SECTOR
        content[at : at + length] = rng.randbytes(length)
    path.write_bytes(content)
    return content


def test_qemu_img_writes_an_image_and_reads_it_back(lund: Lund, namespace: Namespace, tmp_path: Path) -> None:
    lund.add_lun(GOLDEN, SIZE_BYTES)
    content = golden_image(tmp_path / "golden.raw", 1)
    upload(namespace, tmp_path / "golden.raw", url(lund.target()))
    assert download(namespace, url(lund.target()), tmp_path / "back.raw") == content


def test_qemu_img_converts_to_and_from_qcow2_and_knows_the_holes(
    lund: Lund, namespace: Namespace, tmp_path: Path
) -> None:
    """`map` asks GET LBA STATUS; holes of a qcow2 image stay holes of the LUN."""
    lund.add_lun(GOLDEN, SIZE_BYTES)
    raw, image, back = (tmp_path / name for name in ("golden.raw", "golden.qcow2", "back.qcow2"))
    golden_image(raw, 3)
    disk = url(lund.target())
    tool(namespace, ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, image])
    tool(namespace, ["qemu-img", "convert", "-n", "-f", "qcow2", "-O", "raw", image, disk])
    tool(namespace, ["qemu-img", "compare", "-f", "qcow2", "-F", "raw", image, disk])
    extents = json.loads(tool(namespace, ["qemu-img", "map", "-f", "raw", "--output=json", disk]))
    assert sum(extent["length"] for extent in extents) == SIZE_BYTES
    data = sum(extent["length"] for extent in extents if extent["data"])
    assert 0 < data <= lund.get("luns/vol0/golden")["used_bytes"] < SIZE_BYTES
    tool(namespace, ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", disk, back])
    tool(namespace, ["qemu-img", "compare", image, back])


def test_qemu_io_finds_its_patterns_again(lund: Lund, namespace: Namespace) -> None:
    lund.add_lun(GOLDEN, SIZE_BYTES)
    said = qemu_io(
        namespace, url(lund.target()),
        "write -P 0x5a 512 1536", "write -P 0xa5 1M 3M", "write -z 2M 64k", "discard 3M 64k", "flush",
        "read -P 0x5a 512 1536", "read -P 0xa5 1M 1M", "read -P 0 2M 64k", "read -P 0 3M 64k", "read -P 0 0 512",
    )  # fmt: skip
    assert "verification failed" not in said


@pytest.mark.parametrize("seed", [1, 2])
def test_a_clone_written_at_random_while_it_is_cloned_equals_the_model(
    lund: Lund, namespace: Namespace, tmp_path: Path, seed: int
) -> None:
    lund.add_lun(GOLDEN, SIZE_BYTES)
    golden = golden_image(tmp_path / "golden.raw", seed)
    upload(namespace, tmp_path / "golden.raw", url(lund.target()))
    lund.lun("snap", "create", "vol0", "base")
    lund.lun("create", "-b", "/vol/vol0/.snapshot/base/golden", CLONE)
    lund.map(CLONE, lun_id=1)

    model = bytearray(golden)
    rng = random.Random(seed)
    lund.lun("clone", "start", "--limit", "4m", CLONE)
    for _ in range(6):
        commands = [random_command(rng, model) for _ in range(40)]
        qemu_io(namespace, url(lund.target(), 1), *commands, "flush")
    assert download(namespace, url(lund.target(), 1), tmp_path / "during.raw") == model
    lund.wait_for_clone(CLONE)
    lund.lun("snap", "delete", "vol0", "base")
    assert download(namespace, url(lund.target(), 1), tmp_path / "after.raw") == model
    lund.restart()
    assert download(namespace, url(lund.target(), 1), tmp_path / "restarted.raw") == model
    assert download(namespace, url(lund.target(), 0), tmp_path / "golden.back") == golden


def random_command(rng: random.Random, model: bytearray) -> str:
    """One qemu-io command, and its effect on the model."""
    length = rng.choice((SECTOR, 3 * SECTOR, 4096, 12288, 65536, 1 << 20))
    at = rng.randrange((SIZE_BYTES - length) // SECTOR + 1) * SECTOR
    if rng.random() < 0.25:
        model[at : at + length] = bytes(length)
        return f"write -z -u {at} {length}"
    pattern = rng.randrange(1, 256)
    model[at : at + length] = bytes([pattern]) * length
    return f"write -P {pattern} {at} {length}"
