"""The small public values of the volume: what a checkpoint asks of its driver, and what the volume reports."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum


class Step(Enum):
    """What a generator of the volume yields."""

    SLICE = "slice"
    """A bounded piece of work is done; others may run before the generator is resumed."""
    READ = "read"
    """The disk has begun to read what comes next.  The driver may wait for it first; resumed at once, the generator
    waits itself."""
    SYNC = "sync"
    """The driver calls `device.sync()`, in any thread, and resumes when it has returned.  Its error is thrown
    into the generator."""


@dataclass(frozen=True, slots=True)
class Backing:
    """What a LUN's holes read through.  The snapshot is named for people only: `snapshot_id` identifies it."""

    snapshot_id: int
    inode: int
    inode_generation: int
    limit_bytes: int
    """Holes from here on read zeros; a multiple of 4096."""
    snapshot_name: str = field(default="", compare=False)
    """Empty if the snapshot is lost."""
    lun_name: str = field(default="", compare=False)
    """The parent's name inside the snapshot."""


@dataclass(frozen=True, slots=True)
class LunRecord:
    """One LUN as a vtoc (the active one or a snapshot's) has it."""

    name: str
    uuid: str
    serial: str
    naa: bytes
    ostype: str
    comment: str
    size_bytes: int
    block_bytes: int
    online: bool
    reserved: bool
    clone_requested: bool
    created_at: float
    inode: int
    inode_generation: int
    used_bytes: int
    backing: Backing | None


@dataclass(frozen=True, slots=True)
class SnapshotInfo:
    id: int
    name: str
    created_at: float
    """Seconds since the epoch."""
    generation: int
    """The consistency point that made it."""
    busy_holders: list[str] = field(default_factory=list)
    """Names of the LUNs that read through it, and `.snapshot/SNAP/LUN` for LUNs inside later snapshots."""

    @property
    def busy(self) -> bool:
        return bool(self.busy_holders)


@dataclass(frozen=True, slots=True)
class RestorePlan:
    """What going back to a snapshot does to a volume's LUNs."""

    restored: list[str]
    """The LUNs that are put back, by their names before."""
    returned: list[str]
    """Only in the snapshot: they come back."""
    destroyed: list[str]
    """Made since."""


@dataclass(frozen=True, slots=True)
class Space:
    """Where a volume's bytes are.  total = active + snapshots + volume_own + freeing + free, and what clones and long
    writes have put down and nothing names yet."""

    total: int
    used: int
    free: int
    """Allocatable now, including `reserved` and `reserved_luns`."""
    available: int
    """What thin LUNs and whatever is new may still use: `free` without `reserved` and `reserved_luns`."""
    active: int
    """In use by the active file system (whether or not a snapshot holds it too)."""
    snapshots: int
    """Held by snapshots only."""
    volume_own: int
    """Label, fsinfo rings, log region, snapshot table, summary."""
    freeing: int
    """Freed, but not allocatable before the next consistency points are durable."""
    reserved: int
    """Kept back so that a consistency point, and what frees space, never lacks room."""
    reserved_luns: int = 0
    """Kept back for what reserved LUNs may still write."""
    overcommitted: int = 0
    """What reserved LUNs may still write and there is no room for (volumes of versions that kept nothing back)."""
    shared: int = 0
    """Saved by sharing: what further pointers would take as blocks of their own; to a whole subtree it is one."""


@dataclass(frozen=True, slots=True)
class SnapshotSpace:
    name: str
    referenced: int
    """Bytes of all blocks the snapshot holds."""
    reclaimable: int
    """Bytes that deleting it would give back: in no other snapshot and not active."""
