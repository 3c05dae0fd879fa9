"""Labels and fsinfo: finding the newest consistency point, and writing the labels of a new volume.

Each is there twice, at the head and at the tail.  Either copy serves; what was damaged is reported, never passed
over in silence.  A slot that was never written holds zeros and is not damage.

The tail is the volume's, not the device's: a device may be larger than its volume (it was enlarged, and the volume not
yet).  The head ring says where the tail is; where it cannot be read the device's end is looked at, then the place that
the volume had when it was made.  An fsinfo counts only in a place that it gives itself.
"""

from __future__ import annotations

import uuid as uuids
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from wafl.device import Device
from wafl.errors import DamagedRecord, NotAVolume, UnsupportedFeature
from wafl.format import (
    BLOCK_BYTES,
    BLOCK_SHIFT,
    FORMAT_VERSION,
    FSINFO,
    FSINFO_MAGIC,
    HEAD_RING_VBN,
    KNOWN_INCOMPAT,
    KNOWN_RO_COMPAT,
    LABEL,
    LABEL_MAGIC,
    LABEL_VBN,
    MAX_ID,
    MIN_VOLUME_BYTES,
    RING_SLOTS,
    TAIL_BLOCKS,
    FsinfoFlag,
    Geometry,
    Incompat,
    decode_text,
    seal,
    unseal,
)
from wafl.nvlog import write_out


@dataclass(slots=True)
class Superblock:
    """What labels and fsinfo say: where the volume is and which consistency point is its newest."""

    geometry: Geometry
    uuid: uuids.UUID
    name: str
    created_at: float
    fsinfo: dict[str, Any] | None
    """None for a volume about to be made."""
    report: list[str]

    def root(self, which: str) -> dict[str, Any] | None:
        """Fields of one `TreeRoot` of the fsinfo."""
        if self.fsinfo is None:
            return None
        prefix = f"{which}_root_"
        tree = {f"root_{k.removeprefix(prefix)}": v for k, v in self.fsinfo.items() if k.startswith(prefix)}
        return tree | {"height": self.fsinfo[f"{which}_height"], "size_bytes": self.fsinfo[f"{which}_size_bytes"]}


def read_block_at(device: Device, vbn: int) -> bytearray | None:
    """A block, or None where the device ends or cannot read it."""
    if vbn < 0 or (vbn + 1) << BLOCK_SHIFT > device.size_bytes:
        return None
    data = bytearray(BLOCK_BYTES)
    try:
        device.pread(vbn << BLOCK_SHIFT, data)
    except OSError:
        return None
    return data


def read_superblock(device: Device, *, read_only: bool) -> Superblock:
    """Raises NotAVolume, UnsupportedFeature."""
    report: list[str] = []
    label, first = _read_label(device, report)
    _check_features(label, read_only)
    uuid = uuids.UUID(bytes=label["uuid"])
    fsinfo = _newest_fsinfo(device, label, report)
    blocks = fsinfo["volume_blocks"]
    if first and _label_at(device, blocks - 1) is None:
        report.append("second label damaged, the first one used")
    if blocks << BLOCK_SHIFT > device.size_bytes:
        raise NotAVolume(f"the volume has {blocks << BLOCK_SHIFT} bytes, the device only {device.size_bytes}")
    if not fsinfo["flags"] & FsinfoFlag.CLEAN:
        report.append(f"not closed in order; consistency point {fsinfo['generation']} taken up")
    geometry = Geometry(blocks, label["nvlog_blocks"])
    if blocks << BLOCK_SHIFT < MIN_VOLUME_BYTES or geometry.head_blocks > geometry.tail_ring:
        raise NotAVolume(f"{blocks} blocks, {label['nvlog_blocks']} of them for the log, are no volume")
    if max(fsinfo["next_inode_generation"], fsinfo["next_snapshot_id"]) >= MAX_ID:
        raise NotAVolume("the volume's counters cannot be right")
    return Superblock(geometry, uuid, decode_text(label["name"]), label["created_us"] / 1e6, fsinfo, report)


def _read_label(device: Device, report: list[str]) -> tuple[dict[str, Any], bool]:
    """A label, and whether it is the first one."""
    label = _label_at(device, LABEL_VBN)
    if label is not None:
        return label, True
    report.append("first label damaged")
    ends = {fields["volume_blocks"] for fields in _ring_at(device, HEAD_RING_VBN) if fields}
    for end in (device.size_bytes >> BLOCK_SHIFT, *sorted(ends, reverse=True)):
        label = _label_at(device, end - 1)
        if label is not None:
            return label, False
    report.append("second label damaged")
    raise NotAVolume("neither label can be read")


def _label_at(device: Device, vbn: int) -> dict[str, Any] | None:
    block = read_block_at(device, vbn)
    return unseal(LABEL, LABEL_MAGIC, block) if block else None


def _check_features(label: dict[str, Any], read_only: bool) -> None:
    if label["format_version"] != FORMAT_VERSION or label["block_bytes"] != BLOCK_BYTES:
        raise UnsupportedFeature(f"format version {label['format_version']} is not known here")
    unknown = label["incompat"] & ~KNOWN_INCOMPAT
    if unknown:
        raise UnsupportedFeature(f"the volume uses features unknown here (incompatible, bits {unknown:#x})")
    unknown = label["ro_compat"] & ~KNOWN_RO_COMPAT
    if unknown and not read_only:
        raise UnsupportedFeature(f"the volume uses features with which it can only be read (bits {unknown:#x})")


def _newest_fsinfo(device: Device, label: dict[str, Any], report: list[str]) -> dict[str, Any]:
    """The valid fsinfo of the highest generation, from either ring."""
    found: dict[int, dict[str, Any]] = {}
    bad: list[int] = []
    _scan_ring(device, HEAD_RING_VBN, label["uuid"], found, bad)
    blocks = found[max(found)]["volume_blocks"] if found else 0
    ends = {device.size_bytes >> BLOCK_SHIFT} | {fields["volume_blocks"] for fields in found.values()}
    for end in sorted(ends, key=lambda end: end != blocks):
        before = len(found)
        damaged: list[int] = []
        _scan_ring(device, end - TAIL_BLOCKS, label["uuid"], found, damaged)
        if end == blocks or len(found) > before:
            bad += damaged
    if not found:
        # Last, because hosts' data is there if the volume has grown.
        _scan_ring(device, label["initial_blocks"] - TAIL_BLOCKS, label["uuid"], found, [])
    if not found:
        raise NotAVolume("no consistency point can be read: every fsinfo is damaged")
    newest = found[max(found)]
    if bad:
        report.append(
            f"fsinfo damaged in block {', '.join(map(str, bad))}; "
            f"generation {newest['generation']} taken from block {newest['vbn']}"
        )
    return newest


def _scan_ring(device: Device, ring: int, uuid: bytes, found: dict[int, dict[str, Any]], bad: list[int]) -> None:
    for vbn, fields in enumerate(_ring_at(device, ring), ring):
        if fields and fields["uuid"] == uuid:
            found.setdefault(fields["generation"], fields)
        elif fields != {}:
            bad.append(vbn)


def _ring_at(device: Device, ring: int) -> list[dict[str, Any] | None]:
    """The fsinfos of a ring that are in their own places; None for what is damaged, nothing in it for zeros."""
    slots: list[dict[str, Any] | None] = []
    for vbn in range(ring, ring + RING_SLOTS):
        block = read_block_at(device, vbn)
        fields = unseal(FSINFO, FSINFO_MAGIC, block) if block else None
        if fields is not None and not in_its_place(fields, vbn):
            fields = None
        slots.append({} if block is not None and not any(block) else fields)
    return slots


def in_its_place(fsinfo: dict[str, Any], vbn: int) -> bool:
    """Whether a valid fsinfo found in block `vbn` belongs there."""
    return fsinfo["vbn"] == vbn and vbn in Geometry(fsinfo["volume_blocks"], 0).fsinfo_vbns(fsinfo["generation"])


def log_region(geometry: Geometry) -> tuple[int, int]:
    """(first byte, bytes) of the log region."""
    return geometry.nvlog_start << BLOCK_SHIFT, geometry.nvlog_blocks << BLOCK_SHIFT


def wipe(device: Device, geometry: Geometry) -> None:
    """Remove every label and fsinfo of an earlier volume, durably, and prepare the log."""
    zeros = bytes(BLOCK_BYTES)
    device.pwrite(0, [zeros] * (HEAD_RING_VBN + RING_SLOTS))
    device.pwrite(geometry.tail_ring << BLOCK_SHIFT, [zeros] * TAIL_BLOCKS)
    base, size = log_region(geometry)
    write_out(lambda offset, data: device.pwrite(base + offset, (data,)), size)
    device.sync()


def write_labels(device: Device, superblock: Superblock) -> None:
    """The last act of making a volume."""
    geometry = superblock.geometry
    block = seal(
        LABEL, magic=LABEL_MAGIC, format_version=FORMAT_VERSION, block_bytes=BLOCK_BYTES,
        incompat=int(Incompat.LOG_RECORDS if geometry.nvlog_blocks else Incompat.NONE),
        uuid=superblock.uuid.bytes, initial_blocks=geometry.blocks, created_us=int(superblock.created_at * 1e6),
        nvlog_start=geometry.nvlog_start if geometry.nvlog_blocks else 0, nvlog_blocks=geometry.nvlog_blocks,
        name=superblock.name.encode(),
    )  # fmt: skip
    device.pwrite(geometry.second_label << BLOCK_SHIFT, (block,))
    device.pwrite(LABEL_VBN, (block,))
    device.sync()


def add_feature(device: Device, geometry: Geometry, feature: Incompat, sync: Callable[[], None]) -> None:
    """The labels get a feature word's bit, one after the other, before anything is written that needs it; and what a
    crash in the middle of this, or damage, has left of one is written anew from the other.
    Raises DamagedRecord, OSError."""
    places = geometry.second_label, LABEL_VBN
    labels = [unseal(LABEL, LABEL_MAGIC, read_block_at(device, vbn) or b"") for vbn in places]
    whole = [label for label in labels if label is not None]
    if not whole:
        raise DamagedRecord("neither label can be read")
    features = int(feature)
    for label in whole:
        features |= label["incompat"]
    wanted = whole[-1] | {"incompat": features}
    if labels == [wanted, wanted]:
        return
    for vbn in places:
        device.pwrite(vbn << BLOCK_SHIFT, (seal(LABEL, **wanted),))
        sync()
