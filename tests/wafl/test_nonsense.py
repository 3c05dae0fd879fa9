"""Records that fit their checksums and say what cannot be: each is a named error, and costs nothing else."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.support.crash_device import MemoryDevice
from tests.support.volumes import EPOCH, MIB, checkpoint, pattern, reclaim, take_snapshot
from wafl import DamagedRecord, Volume, WaflError
from wafl.format import (
    FSINFO,
    FSINFO_MAGIC,
    LABEL,
    LABEL_MAGIC,
    InodeType,
    Record,
    seal,
    unseal,
)

BLOCK = 4096
HUGE = 2**63


def sealed_again(image: bytearray, record: Record, magic: bytes, **fields: int) -> None:
    """Change fields in every copy of the label or of fsinfo."""
    blocks = len(image) // BLOCK
    for vbn in (*range(9), *range(blocks - 9, blocks)):
        at = vbn * BLOCK
        found = unseal(record, magic, image[at : at + BLOCK])
        if found is not None:
            del found["crc"]
            image[at : at + BLOCK] = seal(record, **(found | fields))


def damaged(change: Callable[[Volume], None]) -> MemoryDevice:
    """A volume closed after `change` put nonsense into its records."""
    device = MemoryDevice(bytearray(4 * MIB))
    Volume.format(device, name="v", now=EPOCH)
    volume = Volume.mount(device)
    volume.create_lun("a", MIB).write(0, pattern(1, MIB))
    take_snapshot(volume, "s")
    change(volume)
    checkpoint(volume)
    return device


FSINFO_NONSENSE = [
    *(("volume_blocks", value) for value in (0, 1, 8, 200, HUGE)),
    *((f"{tree}_height", value) for tree in ("ifile", "summary", "snapshot_table") for value in (0, 7, 2**32 - 1)),
    *((f"{tree}_size_bytes", 2 * HUGE - 1) for tree in ("ifile", "summary", "snapshot_table")),
    *((f"{tree}_root_vbn", value) for tree in ("ifile", "summary") for value in (0, 1, 1024, HUGE)),
    ("ifile_size_bytes", 0), ("next_inode_generation", 2 * HUGE - 1), ("next_snapshot_id", HUGE),
    ("active_blocks", 0), ("summary_blocks", 5),
]  # fmt: skip


@pytest.mark.parametrize(("field", "value"), FSINFO_NONSENSE)
def test_nonsense_in_fsinfo_is_a_named_error(field: str, value: int) -> None:
    device = damaged(lambda volume: None)
    sealed_again(device.image, FSINFO, FSINFO_MAGIC, **{field: value})
    with pytest.raises(WaflError):
        Volume.mount(device)


@pytest.mark.parametrize("value", [1010, 2**31, HUGE])
def test_nonsense_in_the_label_is_a_named_error(value: int) -> None:
    device = damaged(lambda volume: None)
    sealed_again(device.image, LABEL, LABEL_MAGIC, nvlog_blocks=value)
    with pytest.raises(WaflError):
        Volume.mount(device)


def set_inode(volume: Volume, at: int, **fields: object) -> None:
    inode = volume.files.inodes[at]
    for name, value in fields.items():
        setattr(inode, name, value)
    inode.touch(volume.core)


def set_lun(volume: Volume, **fields: object) -> None:
    lun = volume.lun("a")
    for name, value in fields.items():
        setattr(lun, name, value)
    volume.files.touch_lun(lun)


def twice(volume: Volume) -> None:
    volume.create_lun("b", MIB).inode = volume.lun("a").inode


RECORD_NONSENSE: dict[str, Callable[[Volume], None]] = {
    "inode without a height": lambda volume: set_inode(volume, 16, height=0),
    "inode of a great height": lambda volume: set_inode(volume, 16, height=60000),
    "inode larger than its tree": lambda volume: set_inode(volume, 16, size_bytes=HUGE),
    "inode of no type": lambda volume: set_inode(volume, 16, type=1000),
    "vtoc that never ends": lambda volume: set_inode(volume, 1, size_bytes=BLOCK << 16, height=3),
    "active map of another size": lambda volume: set_inode(volume, 2, size_bytes=0),
    "LUN larger than its tree": lambda volume: set_lun(volume, size_bytes=16 << 40),
    "LUN without a size": lambda volume: set_lun(volume, size_bytes=0),
    "LUN with odd blocks": lambda volume: set_lun(volume, block_bytes=3),
    "LUN whose inode is no LUN": lambda volume: set_inode(volume, 16, type=InodeType.ZOMBIE),
    "inode of two LUNs": twice,
}


@pytest.mark.parametrize("what", RECORD_NONSENSE)
def test_nonsense_in_a_record_is_a_named_error(what: str) -> None:
    with pytest.raises(WaflError):
        Volume.mount(damaged(RECORD_NONSENSE[what]))


@pytest.mark.parametrize("vbn", [1024, 2**40, 2**52, 2**64 - 1])
def test_a_pointer_beyond_the_volume_is_neither_followed_nor_freed(vbn: int) -> None:
    def change(volume: Volume) -> None:
        lun = volume.lun("a")
        lun.write(0, pattern(2, BLOCK))
        leaf = lun.own[0]
        leaf.vbns[5] = vbn

    volume = Volume.mount(damaged(change))
    lun = volume.lun("a")
    with pytest.raises(DamagedRecord):
        lun.read_into(5 * BLOCK, memoryview(bytearray(BLOCK)))
    with pytest.raises(DamagedRecord):
        lun.unmap(0, MIB // 2)
    volume.destroy_lun("a")
    with pytest.raises(DamagedRecord):
        reclaim(volume)
    checkpoint(volume)
