"""Space figures by brute force: every tree on the device is walked, no counter is believed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from wafl.format import ACTIVE_MAP_INODE, POINTERS, REFERENCE_INODE, VTOC_INODE, EntryState, VtocFlag, decode_text
from wafl.offline import Image, Root

BLOCK = 4096


@dataclass
class LunFigures:
    size_blocks: int
    data_blocks: int
    private_blocks: int
    """Those that no snapshot on the device can hold, and no other pointer."""
    reserved: bool
    height: int

    @property
    def needed(self) -> int:
        """What is kept back for it, by the rule of docs/operating.md, written out once more."""
        if not self.reserved:
            return 0
        total = self.size_blocks - self.private_blocks
        span = 1
        for _ in range(self.height):
            span *= POINTERS
            total += -(-self.size_blocks // span) - -(-self.private_blocks // span)
        return total


def lun_figures(device: object) -> dict[str, LunFigures]:
    """Of every LUN, as of the last consistency point."""
    image = Image(device)  # type: ignore[arg-type]
    newest = max((entry["generation"] for entry in image.snapshots()), default=0)
    inodes = image.inodes(Root.of(image.fsinfo, "ifile_"), "inode file")
    if REFERENCE_INODE in inodes:
        newest = max(newest, inodes[REFERENCE_INODE]["private_since"])
    figures = {}
    for entry in image.vtoc(Root.of(inodes[VTOC_INODE]), "vtoc"):
        inode = inodes[entry["inode"]]
        data = private = 0
        for node in image.walk(Root.of(inode), "LUN"):
            if node.level == 1:
                data += len(node.data())
        # The births in what was adopted are another LUN's.
        for node in image.walk(Root.of(inode), "LUN", lambda vbn, birth: birth > 0):
            if node.level == 1:
                private += int(np.count_nonzero(node.births[node.data()] > newest))
        figures[decode_text(entry["name"])] = LunFigures(
            -(-entry["size_bytes"] // BLOCK), data, private, bool(entry["flags"] & VtocFlag.RESERVED), inode["height"]
        )
    return figures


def snapshot_maps(image: Image) -> dict[str, np.ndarray]:
    """One bool a block, of each live snapshot."""
    maps = {}
    for entry in image.snapshots():
        if entry["state"] == EntryState.LIVE:
            inodes = image.inodes(Root.of(entry, "ifile_"), "inode file")
            maps[decode_text(entry["name"])] = image.map_bits(Root.of(inodes[ACTIVE_MAP_INODE]), "its map")
    return maps
