"""What every LUN reads, in the active file system and in every snapshot, worked out from the device alone.

Simple on purpose: every tree is walked, and every chain of backings, with none of the volume's own code but the
record declarations.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from tests.support.volume_model import BLOCK, ZEROS, ModelLun, ModelVolume
from wafl.format import FIRST_DATA_VBN, HOLE, POINTERS, VTOC_INODE, EntryState, decode_text
from wafl.offline import Fields, Image, Root

SMALL_BLOCKS = 1024
"""LUNs up to this size are interesting as a whole; of larger ones the touched blocks, their neighbours, the ends."""


Pointers = dict[int, tuple[int, int]]
"""fbn -> (vbn, crc32c)"""


class Unreadable(AssertionError):
    pass


def _trouble(what: str, where: str) -> None:
    raise Unreadable(f"{where}: {what}")


@dataclass
class View:
    """One file system: inodes by number, vtoc entries by LUN name."""

    snapshot_id: int
    inodes: dict[int, Fields]
    luns: dict[str, Fields] = field(default_factory=dict)


class OfflineReader:
    def __init__(self, device: object) -> None:
        self.image = Image(device, _trouble)  # type: ignore[arg-type]
        self._nodes: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._blocks: dict[tuple[int, int], bytes] = {}
        self._composed: dict[tuple[int, int], Pointers] = {}
        self.active = self._view(0, Root.of(self.image.fsinfo, "ifile_"))
        self.snapshots: dict[str, View] = {}
        for entry in self.image.snapshots():
            if entry["state"] == EntryState.LIVE:
                self.snapshots[decode_text(entry["name"])] = self._view(entry["id"], Root.of(entry, "ifile_"))
        self._by_id = {view.snapshot_id: view for view in self.snapshots.values()}

    @property
    def generation(self) -> int:
        return int(self.image.fsinfo["generation"])

    def _view(self, snapshot_id: int, ifile: Root) -> View:
        inodes = self.image.inodes(ifile, "inode file")
        entries = self.image.vtoc(Root.of(inodes[VTOC_INODE]), "vtoc")
        return View(snapshot_id, inodes, {decode_text(entry["name"]): entry for entry in entries})

    def composed(self, view: View, entry: Fields) -> Pointers:
        """Every block that a host can read of a LUN, through all its backings; what is not here reads zeros."""
        key = view.snapshot_id, entry["inode"]
        if key not in self._composed:
            self._composed[key] = self._compose(view, entry)
        return self._composed[key]

    def _compose(self, view: View, entry: Fields) -> Pointers:
        root = Root.of(view.inodes[entry["inode"]])
        found = self._own(root)
        below = entry["backing_snapshot"]
        if not below:
            return found
        if below not in self._by_id:
            raise Unreadable(f"LUN {decode_text(entry['name'])!r}: backing snapshot {below} is not there")
        parent_view = self._by_id[below]
        parent = next(e for e in parent_view.luns.values() if e["inode"] == entry["backing_inode"])
        limit = entry["backing_limit_bytes"] // BLOCK
        for fbn, pointer in self.composed(parent_view, parent).items():
            if fbn < limit and fbn not in found and self.state(root, fbn) == HOLE:
                found[fbn] = pointer
        return found

    def _own(self, root: Root) -> Pointers:
        """The data blocks of one file's own tree."""
        found: Pointers = {}
        for node in self.image.walk(root, "LUN"):
            if node.level == 1:
                for slot in node.data().tolist():
                    found[node.first_fbn + slot] = int(node.vbns[slot]), int(node.crcs[slot])
        return found

    def state(self, root: Root, fbn: int) -> int:
        """vbn or mark of one block of a file."""
        if fbn >= POINTERS**root.height:
            return HOLE
        vbn, crc = root.vbn, root.crc
        for level in range(root.height, 0, -1):
            if vbn < FIRST_DATA_VBN:
                return vbn
            vbns, crcs = self._node(vbn, crc)
            slot = fbn // POINTERS ** (level - 1) % POINTERS
            vbn, crc = int(vbns[slot]), int(crcs[slot])
        return vbn

    def _node(self, vbn: int, crc: int) -> tuple[np.ndarray, np.ndarray]:
        if vbn not in self._nodes:
            raw = self.image.load(vbn, crc, f"pointer block {vbn}")
            assert raw is not None
            self._nodes[vbn] = np.frombuffer(raw, "<u8", POINTERS), np.frombuffer(raw, "<u4", POINTERS, 2048)
        return self._nodes[vbn]

    def block(self, pointer: tuple[int, int]) -> bytes:
        """The contents of a block, verified."""
        if pointer not in self._blocks:
            raw = self.image.load(*pointer, f"block {pointer[0]}")
            assert raw is not None
            self._blocks[pointer] = bytes(raw)
        return self._blocks[pointer]


def differences(device: object, model: ModelVolume) -> list[str]:
    """How the volume on `device` differs from `model`: names, sizes, backings, bytes."""
    reader = OfflineReader(device)
    found: list[str] = []
    expected = {snapshot.name: snapshot.luns for snapshot in model.snapshots.values()}
    if reader.snapshots.keys() != expected.keys():
        found.append(f"snapshots {sorted(reader.snapshots)}, should be {sorted(expected)}")
    views = [("", reader.active, model.luns)]
    views += [(name, reader.snapshots[name], expected[name]) for name in expected if name in reader.snapshots]
    for name, view, luns in views:
        found += _view_differences(reader, model, f"snapshot {name}: " if name else "", view, luns)
    return found


def _view_differences(
    reader: OfflineReader, model: ModelVolume, where: str, view: View, luns: dict[str, ModelLun]
) -> Iterator[str]:
    if view.luns.keys() != luns.keys():
        yield f"{where}LUNs {sorted(view.luns)}, should be {sorted(luns)}"
    for name in view.luns.keys() & luns.keys():
        entry, lun = view.luns[name], luns[name]
        if entry["size_bytes"] != lun.size_bytes:
            yield f"{where}LUN {name} has {entry['size_bytes']} bytes, should have {lun.size_bytes}"
            continue
        backing = model.snapshots[lun.backing].name if lun.backing in model.snapshots else None
        by_id = {other.snapshot_id: snapshot for snapshot, other in reader.snapshots.items()}
        if by_id.get(entry["backing_snapshot"]) != backing:
            yield f"{where}LUN {name} is backed by {entry['backing_snapshot']}, should be by {backing}"
        if entry["backing_snapshot"] and entry["backing_limit_bytes"] > -(-lun.size_bytes // BLOCK) * BLOCK:
            yield f"{where}LUN {name} has a limit of {entry['backing_limit_bytes']} bytes behind its end"
        mapped = reader.composed(view, entry)
        for fbn in mapped.keys() | lun.blocks.keys():
            end = max(0, min(BLOCK, lun.size_bytes - fbn * BLOCK))
            found = reader.block(mapped[fbn]) if fbn in mapped else ZEROS
            if found[:end] != lun.blocks.get(fbn, ZEROS)[:end]:
                yield f"{where}LUN {name}, block {fbn}: wrong bytes"


def interesting_blocks(lun: ModelLun) -> list[int]:
    blocks = -(-lun.size_bytes // BLOCK)
    if blocks <= SMALL_BLOCKS:
        return list(range(blocks))
    near = {fbn + step for fbn in lun.blocks for step in (-1, 0, 1)} | {0, blocks // 2, blocks - 1}
    return sorted(fbn for fbn in near if 0 <= fbn < blocks)
