"""Shows a volume's structure, for people and for scripts: label, fsinfo, snapshots, LUNs, trees.

It stands on `wafl.offline`, so it shows what is on the device, damaged or not.  `describe` gives plain values
(numbers, text, lists, dicts), `lines` the same as an indented tree.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from wafl.device import Device
from wafl.errors import WaflError
from wafl.format import (
    FIRST_DATA_VBN,
    HOLE,
    VTOC_INODE,
    ZERO,
    EntryState,
    FsinfoFlag,
    InodeType,
    LogPlace,
    VtocFlag,
    decode_text,
)
from wafl.offline import Fields, Image, Root
from wafl.volume_log import read_contents

Described = dict[str, Any]


def describe(device: Device, *, trees: bool = False) -> Described:
    """The volume as plain values; with `trees` also the number of pointers of each kind on each level.
    Raises NotAVolume."""
    troubles: list[str] = []
    image = Image(device, lambda what, where: troubles.append(f"{where}: {what}"))
    fsinfo = image.fsinfo
    described = {
        "label": _label(image),
        "fsinfo": _fsinfo(image),
        "log": _log(image, troubles),
        "active": _view(image, Root.of(fsinfo, "ifile_"), "active", trees),
        "snapshots": [_snapshot(image, entry, trees) for entry in image.snapshots()],
    }
    if trees:
        for name in ("summary", "snapshot_table"):
            described[name] = _tree(image, Root.of(fsinfo, f"{name}_"), name, trees)
    return described | {"unreadable": troubles}


def lines(value: Any, indent: int = 0) -> Iterator[str]:
    """`describe`'s values as an indented tree."""
    pad = "  " * indent
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        if isinstance(inner, dict | list):
            if inner:
                yield f"{pad}{key}:"
                yield from lines(inner, indent + 1)
            else:
                yield f"{pad}{key}: none"
        else:
            yield f"{pad}{key}: {inner}"


def _log(image: Image, troubles: list[str]) -> Described:
    fsinfo = image.fsinfo
    described = {
        "region_start": image.geometry.nvlog_start, "region_blocks": image.geometry.nvlog_blocks,
        "place": fsinfo["log_place"], "seq": fsinfo["log_seq"], "epoch": fsinfo["log_epoch"],
    }  # fmt: skip
    if fsinfo["log_place"] == LogPlace.REGION:
        try:
            contents = read_contents(image.device, None, fsinfo, image.geometry, image.label["uuid"])
        except (WaflError, OSError) as error:
            troubles.append(f"log: {error}")
        else:
            kinds = Counter(record.kind.name.lower() for record in contents.records)
            described |= {"records": dict(kinds), "ended_by": contents.ended_by}
    return described


def _time(microseconds: int) -> str:
    return datetime.fromtimestamp(microseconds / 1e6, UTC).isoformat(timespec="seconds")


def _label(image: Image) -> Described:
    label = image.label
    return {
        "name": decode_text(label["name"]),
        "uuid": str(uuid.UUID(bytes=label["uuid"])),
        "format_version": label["format_version"],
        "features": {name: label[name] for name in ("compat", "ro_compat", "incompat")},
        "initial_blocks": label["initial_blocks"],
        "created": _time(label["created_us"]),
        "valid_copies": [vbn for vbn, copy in image.labels.items() if copy is not None],
    }


def _fsinfo(image: Image) -> Described:
    fsinfo = image.fsinfo
    return {
        "generation": fsinfo["generation"],
        "block": fsinfo["vbn"],
        "written": _time(fsinfo["written_us"]),
        "clean": bool(fsinfo["flags"] & FsinfoFlag.CLEAN),
        **{name: fsinfo[name] for name in ("volume_blocks", "active_blocks", "summary_blocks", "allocation_hint")},
        **{name: fsinfo[name] for name in ("next_inode_generation", "next_snapshot_id")},
        "ring": {vbn: slot["generation"] if slot else None for vbn, slot in image.slots.items()},
    }


def _snapshot(image: Image, entry: Fields, trees: bool) -> Described:
    name = decode_text(entry["name"])
    head: Described = {
        "id": entry["id"],
        "name": name,
        "state": EntryState(entry["state"]).name.lower(),
        "created": _time(entry["created_us"]),
        "generation": entry["generation"],
        "active_blocks": entry["active_blocks"],
    }
    if entry["state"] != EntryState.LIVE:
        return head
    return head | _view(image, Root.of(entry, "ifile_"), f"snapshot {name}", trees)


def _view(image: Image, ifile: Root, where: str, trees: bool) -> Described:
    inodes = image.inodes(ifile, f"{where}, inode file")
    vtoc = image.vtoc(Root.of(inodes[VTOC_INODE]), f"{where}, vtoc") if VTOC_INODE in inodes else []
    return {
        "inode_file": _tree(image, ifile, f"{where}, inode file", trees),
        "inodes": [_inode(image, inode, where, trees) for _, inode in sorted(inodes.items())],
        "luns": [_lun(entry) for entry in vtoc],
    }


def _inode(image: Image, inode: Fields, where: str, trees: bool) -> Described:
    number = inode["number"]
    return {
        "number": number,
        "type": InodeType(inode["type"]).name.lower(),
        "generation": inode["generation"],
        "blocks": inode["blocks"],
        **_tree(image, Root.of(inode), f"{where}, inode {number}", trees),
    }


def _lun(entry: Fields) -> Described:
    flags = VtocFlag(entry["flags"])
    lun: Described = {
        "name": decode_text(entry["name"]),
        "uuid": str(uuid.UUID(bytes=entry["uuid"])),
        "serial": decode_text(entry["serial"]),
        "naa": entry["naa"].hex(),
        "ostype": decode_text(entry["ostype"]),
        "comment": decode_text(entry["comment"]),
        "size_bytes": entry["size_bytes"],
        "block_bytes": entry["block_bytes"],
        "created": _time(entry["created_us"]),
        "flags": [flag.name.lower() for flag in VtocFlag if flag and flag in flags and flag.name],
        "inode": entry["inode"],
        "inode_generation": entry["inode_generation"],
    }
    if entry["backing_snapshot"]:
        names = ("snapshot", "inode", "inode_generation", "limit_bytes")
        lun["backing"] = {name: entry[f"backing_{name}"] for name in names}
        lun["missing_blocks"] = entry["missing_blocks"]
    return lun


def _tree(image: Image, root: Root, where: str, trees: bool) -> Described:
    marks = {HOLE: "hole", ZERO: "zero"}
    tree: Described = {
        "size_bytes": root.size_bytes,
        "height": root.height,
        "root": marks.get(root.vbn, root.vbn),
        "birth": root.birth,
    }
    if trees and root.vbn >= FIRST_DATA_VBN:
        levels: dict[str, dict[str, int]] = {}
        for node in image.walk(root, where):
            level = levels.setdefault(f"level {node.level}", {"buffers": 0, "hole": 0, "zero": 0, "data": 0})
            level["buffers"] += 1
            level["hole"] += int((node.vbns == HOLE).sum())
            level["zero"] += int((node.vbns == ZERO).sum())
            level["data"] += int(node.data().size)
        tree["levels"] = levels
    return tree
