"""The volume: a write-anywhere file system with snapshots whose files are LUNs.

This package knows no SCSI, no network and nothing of clone jobs.  These names are its interface; every other
package imports them from here and nothing from the modules.
"""

from wafl.adopt import PIECEMEAL
from wafl.ahead import read_is_ready, ready_extents, share_is_ready, unmap_is_ready, write_is_ready
from wafl.atomic import write_atomic
from wafl.check import Finding, Severity, check
from wafl.checkpoint import Checkpoint
from wafl.device import Device, FileDevice
from wafl.errors import (
    BackingLost,
    CannotRepair,
    ChainTooDeep,
    CorruptVolume,
    DamagedRecord,
    InvalidName,
    InvalidSize,
    LimitReached,
    LogMismatch,
    LunBusy,
    NameTaken,
    NoSpace,
    NoSuchLun,
    NoSuchSnapshot,
    NotAVolume,
    ReadOnlyVolume,
    SnapshotBusy,
    SpaceHeld,
    UnsupportedFeature,
    VolumeFailed,
    VolumeLocked,
    WaflError,
)
from wafl.fill import FillPlan
from wafl.format import BLOCK_BYTES, LEVEL_ONE_BYTES, MAX_CHAIN_DEPTH, MAX_LUNS, MAX_SNAPSHOTS, POINTERS
from wafl.gather import write_several
from wafl.layout import MAX_STRETCHES, Layout, Stretch, lun_layout
from wafl.lun import Lun
from wafl.making import create_luns
from wafl.placed import PlacedWrite, place_write
from wafl.scan import recount_missing
from wafl.scrub import BadBlock, Scrub
from wafl.scrub_driver import Pace, drive_scrub
from wafl.service import VolumeService
from wafl.space import available_bytes
from wafl.types import Backing, LunRecord, RestorePlan, SnapshotInfo, SnapshotSpace, Space, Step
from wafl.views import View
from wafl.volume import DEFAULT_CACHE_BYTES, Volume
from wafl.volume_log import claim_log, open_log_device

__all__ = [
    "BLOCK_BYTES",
    "DEFAULT_CACHE_BYTES",
    "LEVEL_ONE_BYTES",
    "MAX_CHAIN_DEPTH",
    "MAX_LUNS",
    "MAX_SNAPSHOTS",
    "MAX_STRETCHES",
    "PIECEMEAL",
    "POINTERS",
    "Backing",
    "BackingLost",
    "BadBlock",
    "CannotRepair",
    "ChainTooDeep",
    "Checkpoint",
    "CorruptVolume",
    "DamagedRecord",
    "Device",
    "FileDevice",
    "FillPlan",
    "Finding",
    "InvalidName",
    "InvalidSize",
    "Layout",
    "LimitReached",
    "LogMismatch",
    "Lun",
    "LunBusy",
    "LunRecord",
    "NameTaken",
    "NoSpace",
    "NoSuchLun",
    "NoSuchSnapshot",
    "NotAVolume",
    "Pace",
    "PlacedWrite",
    "ReadOnlyVolume",
    "RestorePlan",
    "Scrub",
    "Severity",
    "SnapshotBusy",
    "SnapshotInfo",
    "SnapshotSpace",
    "Space",
    "SpaceHeld",
    "Step",
    "Stretch",
    "UnsupportedFeature",
    "View",
    "Volume",
    "VolumeFailed",
    "VolumeLocked",
    "VolumeService",
    "WaflError",
    "available_bytes",
    "check",
    "claim_log",
    "create_luns",
    "drive_scrub",
    "lun_layout",
    "open_log_device",
    "place_write",
    "read_is_ready",
    "ready_extents",
    "recount_missing",
    "share_is_ready",
    "unmap_is_ready",
    "write_atomic",
    "write_is_ready",
    "write_several",
]
