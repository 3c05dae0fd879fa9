"""What is lost with a block that cannot be read, in words: which file, which LUN, which of its bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from wafl.format import (
    ACTIVE_MAP_INODE,
    INODE,
    REFERENCE_INODE,
    SNAPSHOT_ENTRY,
    VTOC_ENTRY,
    VTOC_INODE,
    InodeType,
)

BLOCK_BITS_PER_BYTE = 8
COUNT_BYTES = 2
NAMES_SHOWN = 8


@dataclass(frozen=True, slots=True)
class FileName:
    """One file of the volume, as reports call it."""

    kind: str
    """"LUN", "inode file", "vtoc", "active map", "reference counts", "summary", "snapshot table", "freed tree"."""
    snapshot: str = ""
    """The snapshot that it is in; empty for the active file system and the volume's own files."""
    lun: str = ""
    """Path of a LUN within the volume; `.snapshot/SNAP/LUN` inside a snapshot."""
    number: int = 0

    def __str__(self) -> str:
        if self.lun:
            return f"LUN {self.lun}"
        what = f"{self.kind} {self.number}" if self.kind == "freed tree" else self.kind
        return f"{what} of snapshot {self.snapshot}" if self.snapshot else what


def name_of(number: int, kind: int, snapshot: str, luns: Mapping[int, str]) -> FileName:
    """The file with this inode; `luns` is inode -> name, as the vtoc beside it has it."""
    if number == VTOC_INODE:
        return FileName("vtoc", snapshot)
    if number == ACTIVE_MAP_INODE:
        return FileName("active map", snapshot)
    if number == REFERENCE_INODE:
        return FileName("reference counts", snapshot)
    if kind == InodeType.LUN:
        name = luns.get(number, f"inode-{number}")
        return FileName("LUN", snapshot, f".snapshot/{snapshot}/{name}" if snapshot else name, number)
    return FileName("freed tree", snapshot, number=number)


def lost(file: FileName, offset: int, length: int, luns: Mapping[int, str]) -> str:
    """What cannot be read without bytes `offset` to `offset + length - 1` of the file."""
    end = offset + length
    if file.kind == "LUN":
        return f"bytes {offset} to {end - 1}"
    if file.kind == "inode file":
        first, last = offset // INODE.size, (end - 1) // INODE.size
        names = sorted(name for number, name in luns.items() if first <= number <= last)
        return f"inodes {first} to {last}{_named(names)}"
    if file.kind == "vtoc":
        return f"vtoc entries {offset // VTOC_ENTRY.size} to {(end - 1) // VTOC_ENTRY.size}"
    if file.kind == "snapshot table":
        return f"snapshot entries {offset // SNAPSHOT_ENTRY.size} to {(end - 1) // SNAPSHOT_ENTRY.size}"
    if file.kind in ("active map", "summary"):
        per_byte = BLOCK_BITS_PER_BYTE
        return f"the map of blocks {offset * per_byte} to {end * per_byte - 1}; 'wafl check --repair' makes it again"
    if file.kind == "reference counts":
        first, last = offset // COUNT_BYTES, end // COUNT_BYTES
        return f"how often blocks {first} to {last - 1} are shared; 'wafl check --repair' counts again"
    if file.kind in ("label", "fsinfo"):
        return "nothing: it is a spare copy, which 'wafl check --repair' writes again"
    return "blocks that were being given back"


def _named(names: list[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return f", and with them the LUNs {', '.join(names[:NAMES_SHOWN])}{more}"


__all__ = ["FileName", "lost", "name_of"]
