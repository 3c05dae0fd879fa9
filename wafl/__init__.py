"""The volume: a write-anywhere file system with snapshots whose files are LUNs.

This package knows no SCSI, no network and nothing of clone jobs.  These names are its interface; every other
package imports them from here and nothing from the modules.
"""

from wafl.device import Device, FileDevice
from wafl.errors import (
    BackingLost,
    ChainTooDeep,
    CorruptVolume,
    InvalidName,
    InvalidSize,
    LimitReached,
    LunBusy,
    NameTaken,
    NoSpace,
    NoSuchLun,
    NoSuchSnapshot,
    NotAVolume,
    ReadOnlyVolume,
    SnapshotBusy,
    UnsupportedFeature,
    VolumeFailed,
    VolumeLocked,
    WaflError,
)
from wafl.format import BLOCK_BYTES, LEVEL_ONE_BYTES, MAX_CHAIN_DEPTH, MAX_LUNS, MAX_SNAPSHOTS, POINTERS
from wafl.types import Backing, LunRecord, SnapshotInfo, SnapshotSpace, Space, Step

__all__ = [
    "BLOCK_BYTES",
    "LEVEL_ONE_BYTES",
    "MAX_CHAIN_DEPTH",
    "MAX_LUNS",
    "MAX_SNAPSHOTS",
    "POINTERS",
    "Backing",
    "BackingLost",
    "ChainTooDeep",
    "CorruptVolume",
    "Device",
    "FileDevice",
    "InvalidName",
    "InvalidSize",
    "LimitReached",
    "LunBusy",
    "LunRecord",
    "NameTaken",
    "NoSpace",
    "NoSuchLun",
    "NoSuchSnapshot",
    "NotAVolume",
    "ReadOnlyVolume",
    "SnapshotBusy",
    "SnapshotInfo",
    "SnapshotSpace",
    "Space",
    "Step",
    "UnsupportedFeature",
    "VolumeFailed",
    "VolumeLocked",
    "WaflError",
]
