"""The volume: format, mount, and the one object that everything else of a mounted volume hangs from.

All calls run on one thread and none waits in the middle of a change.  Durability is the driver's: it iterates
`checkpoint()` and calls `device.sync()` where that asks for it (wafl.service does it for asyncio; `commit_now` does it
on the spot).
"""

from __future__ import annotations

import threading
import time
import uuid as uuids
from collections.abc import Callable, Collection, Generator
from contextlib import AbstractContextManager, suppress
from time import perf_counter
from typing import TYPE_CHECKING

from wafl import restore
from wafl.allocator import Allocator, new_bits
from wafl.audit import Audit
from wafl.bits import Vbns, set_range
from wafl.buffers import VOLUME, Core
from wafl.checkpoint import Checkpoint
from wafl.device import Device
from wafl.errors import CorruptVolume, DamagedRecord, LunBusy
from wafl.filesystem import FileSystem, check_lun_size
from wafl.format import (
    BLOCK_BYTES,
    BLOCK_SHIFT,
    TAIL_BLOCKS,
    Geometry,
    Incompat,
    InodeType,
    encode_text,
    plan_geometry,
)
from wafl.grow import grow
from wafl.inode import Inode
from wafl.labels import Superblock, add_feature, read_superblock, wipe, write_labels
from wafl.lun import Lun
from wafl.making import find_parent, make_lun
from wafl.maps import MapFile
from wafl.reclaim import Reclaim
from wafl.snapshots import Snapshot, SnapshotTable
from wafl.space import own_vbns, reclaimable_together, snapshot_space, snapshot_spaces, space_of
from wafl.types import LunRecord, RestorePlan, SnapshotInfo, SnapshotSpace, Space, Step
from wafl.views import View
from wafl.volume_log import VolumeLog

if TYPE_CHECKING:
    from wafl.check import Finding

DEFAULT_CACHE_BYTES = 256 << 20
SYNCS_REMEMBERED = 8
SLOW_SYNC_S = 0.001
RELIEF_SLICES = 64
"""Reclaim slices that a shortage of space runs on the spot before it tries another consistency point."""


class Volume:
    """A mounted volume.  Make one with `format` or `mount`."""

    def __init__(self, device: Device, superblock: Superblock, *, read_only: bool, cache_bytes: int,
                 clock: Callable[[], float], log_device: Device | None = None) -> None:  # fmt: skip
        self.device = device
        self.superblock = superblock
        self.geometry: Geometry = superblock.geometry
        self.uuid_bytes = superblock.uuid.bytes
        self.uuid = str(superblock.uuid)
        self.name = superblock.name
        self.running: Checkpoint | None = None
        """The consistency point being written."""
        self.closed = False
        self._sync_lock = threading.Lock()
        self._sync_error: OSError | None = None
        self.sync_s = 0.0
        """What a sync takes of late, on an average that forgets, and to which none counts for more than SLOW_SYNC_S."""
        self.on_flush_ahead: Callable[[], object] = lambda: None
        """Set by the driver: `begin_write_back` is worth calling once the answer is out."""
        self._clock = clock
        blocks = self.geometry.blocks
        fsinfo = superblock.fsinfo
        generation = fsinfo["generation"] if fsinfo else 0
        self.core = Core(
            device, Allocator(blocks, new_bits(blocks), new_bits(blocks)), generation + 1,
            read_only=read_only, cache_bytes=cache_bytes,
        )  # fmt: skip
        self.core.cool = self._cool
        self.core.relieve = self._relieve
        self.files = FileSystem(self.core, superblock.root("ifile"), fsinfo["next_inode_generation"] if fsinfo else 2)
        self.snapshots_table = SnapshotTable(
            self.core, self.files, superblock.root("snapshot_table"), fsinfo["next_snapshot_id"] if fsinfo else 1
        )
        self.background = Reclaim(self)
        self.nvlog = VolumeLog(self, log_device)
        self.files.references.announce = lambda: add_feature(
            device, self.geometry, Incompat.REFERENCE_COUNTS, self.sync
        )  # fmt: skip
        self._relieving = False
        if fsinfo:
            self._load()
        else:
            self._make()
        self.files.summary = self.summary
        self.snapshots_table.count_shared()
        self.audit = Audit(self)
        self.superblock.report.extend(self.files.reserve.report())

    # --- making and mounting ---------------------------------------------------------------------------------------

    @classmethod
    def format(cls, device: Device, *, name: str, uuid: uuids.UUID | None = None, now: float | None = None,
               log_bytes: int | None = None) -> None:  # fmt: skip
        """Make an empty volume over the whole device, with a log region of the usual size, or of `log_bytes` (0: none).
        Raises InvalidSize, InvalidName."""
        encode_text(name, "volume name")
        geometry = plan_geometry(device.size_bytes, log_bytes)
        created = time.time() if now is None else now
        superblock = Superblock(geometry, uuid or uuids.uuid4(), name, created, None, [])
        # Nothing of an earlier volume may look valid at any moment: wipe first, the label last.
        wipe(device, geometry)
        volume = cls(device, superblock, read_only=False, cache_bytes=1 << 20, clock=lambda: created)
        volume.commit_now(clean=True)
        write_labels(device, superblock)

    @classmethod
    def mount(cls, device: Device, *, read_only: bool = False, cache_bytes: int = DEFAULT_CACHE_BYTES,
              clock: Callable[[], float] = time.time, log_device: Device | None = None) -> Volume:  # fmt: skip
        """Take up the newest consistency point and what the log has since: in the volume's log region, or on a
        `log_device` of its own.  Raises NotAVolume, UnsupportedFeature, CorruptVolume, OSError."""
        superblock = read_superblock(device, read_only=read_only)
        if not read_only:
            # A killed process may have left this fsinfo in the page cache alone, and what it freed is used again from
            # now on: after a power cut the disk must not know an older one only.
            device.sync()
        volume = cls(device, superblock, read_only=read_only, cache_bytes=cache_bytes, clock=clock,
                     log_device=log_device)  # fmt: skip
        volume.nvlog.take_up()
        return volume

    def _make(self) -> None:
        allocator = self.core.allocator
        head, blocks = self.geometry.head_blocks, self.geometry.blocks
        for start, end in ((0, head), (blocks - TAIL_BLOCKS, blocks)):
            set_range(allocator.summary, start, end)
            set_range(allocator.busy, start, end)
        self.core.allocator.take_stock(0)
        self.core.allocator.dirty_summary = {0, self.core.allocator.chunks - 1}
        self.files.make(self.core.allocator.chunks)
        self.summary = MapFile(self.core, self._summary_inode(None))

    def _load(self) -> None:
        allocator = self.core.allocator
        fsinfo = self.superblock.fsinfo
        assert fsinfo is not None
        self.summary = MapFile(self.core, self._summary_inode(self.superblock.root("summary")))
        self.summary.load(allocator.summary)
        self.snapshots_table.load()
        self.files.load()
        self.files.active_map.load(allocator.active)
        self.files.references.open()
        self.core.allocator.take_stock(fsinfo["allocation_hint"])
        counts = self.core.allocator.active_count, self.core.allocator.summary_count
        if counts != (fsinfo["active_blocks"], fsinfo["summary_blocks"]):
            raise DamagedRecord(f"the maps have {counts} blocks in use, which is not what fsinfo says")

    def _summary_inode(self, root: dict[str, int] | None) -> Inode:
        if root is None:
            rows = self.core.allocator.chunks
            return Inode(0, InodeType.FREE, 0, rows * BLOCK_BYTES, VOLUME)
        return Inode.from_root(0, InodeType.FREE, root, VOLUME)

    def close(self) -> None:
        """A last consistency point, then the device is closed."""
        if self.closed:
            return
        try:
            if not self.core.read_only and self.core.failure is None:
                self.commit_now(clean=True)
        finally:
            self.closed = True
            self.core.read_only = True
            self._cool()
            self.nvlog.close()
            self.device.close()

    # --- state -----------------------------------------------------------------------------------------------------

    @property
    def size_bytes(self) -> int:
        return self.geometry.blocks * BLOCK_BYTES

    @property
    def generation(self) -> int:
        """The last durable consistency point."""
        return self.core.durable

    @property
    def mount_report(self) -> list[str]:
        """What the mount found damaged or had to work around."""
        return list(self.superblock.report)

    @property
    def read_only(self) -> bool:
        return self.core.read_only

    @property
    def failure(self) -> BaseException | None:
        return self.core.failure

    @property
    def dirty(self) -> bool:
        """Whether there will be something to write that is in no consistency point yet (never, where only read)."""
        changed = self.files.dirty or self.snapshots_table.dirty or bool(self.core.allocator.dirty_summary)
        return changed and not self.core.read_only

    @property
    def dirty_blocks(self) -> int:
        """Pointer blocks changed since the last freeze."""
        return self.core.dirty_buffers

    def now_us(self) -> int:
        return int(self._clock() * 1e6)

    def fail(self, error: BaseException) -> None:
        """Take no more changes.  Reads go on."""
        if self.core.failure is None:
            self.core.failure = error
        # The fast path of writes looks only at the maps, which reads fill again, and at the data run.
        self._cool()
        self.core.allocator.give_back_run()

    def _cool(self) -> None:
        for lun in self.files.luns.values():
            lun.cool()
        self.snapshots_table.cool()

    # --- consistency points ----------------------------------------------------------------------------------------

    def checkpoint(self) -> Checkpoint:
        """A generator-like object that writes one consistency point; see `Step` for what its driver does."""
        return Checkpoint(self)

    def commit_now(self, *, clean: bool = False) -> None:
        """Finish the consistency point that is being written, if any, and make another of all that has changed
        since, waiting for the disk here."""
        if (running := self.running) is not None:
            if running.syncing:
                # Its driver's sync is under way in a thread, or about to be: nobody may go on before one has ended.
                self._sync_for(running)
            self._drive(running)
        self._drive(Checkpoint(self, clean=clean))

    def _drive(self, checkpoint: Checkpoint) -> None:
        for step in checkpoint:
            if step is Step.SYNC:
                self._sync_for(checkpoint)

    def _sync_for(self, checkpoint: Checkpoint) -> None:
        try:
            self.sync()
        except OSError as error:
            checkpoint.throw(error)

    def sync(self) -> None:
        """`device.sync()`, from any thread, one at a time; what the log has by then is durable.  The kernel tells of a
        failed write-back once: whoever asks after that hears of it here."""
        with self._sync_lock:
            if self._sync_error is not None:
                raise self._sync_error
            log = self.core.log
            seq, written = (log.pushed, log.written) if log is not None else (0, 0)
            began = perf_counter()
            try:
                self.device.sync()
                self.nvlog.sync()
            except OSError as error:
                self._sync_error = error
                raise
            took = perf_counter() - began
            self.sync_s += (min(took, SLOW_SYNC_S) - self.sync_s) / SYNCS_REMEMBERED
            self.core.syncs += 1
            if log is not None:
                log.durable, log.synced = max(log.durable, seq), written

    def batch_log(self) -> None:
        """From now on what is done survives a crash of the daemon from the next `push_log` on, no sooner."""
        if self.core.log is not None:
            self.core.log.batched = True

    def push_log(self) -> None:
        """What was done so far survives a crash of the daemon.  Raises VolumeFailed, from then on at every call."""
        log = self.core.log
        if log is not None:
            more = log.pushed != log.seq
            log.push()
            if more and self.core.eager and log.one_unsynced:
                self.on_flush_ahead()

    def begin_write_back(self) -> None:
        """A host is about to flush the one block that it has written, as it always does: the disk begins with it, and
        with its record, so that the flush waits for less."""
        log, last = self.core.log, self.core.allocator.next - 1
        if log is not None and log.one_unsynced and last > 0:
            self.device.begin_write_back(last << BLOCK_SHIFT)
            self.nvlog.begin_write_back()

    def reclaim(self, *, nowait: bool = False) -> Generator[Step, None, None]:
        """Slices of background work: freed trees, deleted snapshots.  Ends when nothing is left, or when only a
        consistency point helps on.  `nowait`: the driver waits for the disk (Step.READ)."""
        return self.background.run(nowait=nowait)

    @property
    def reclaim_pending(self) -> bool:
        return self.background.pending

    def reclaim_now(self) -> None:
        """All background work, on the spot, with the consistency points it takes."""
        while True:
            for _ in self.reclaim():
                pass
            self.commit_now()
            if not self.background.pending:
                break
        self.commit_now()

    def _relieve(self) -> bool:
        """Room is short: reclaim a little, and make what is freed allocatable.  A stall, but not a false 'full'."""
        allocator = self.core.allocator
        if self._relieving or self.core.read_only or self.core.failure is not None:
            return False
        allocator.apply_frees()
        if allocator.cramped or not (allocator.freeing or self.background.pending or self.running is not None):
            return False
        before = allocator.free - allocator.reserve
        self._relieving = True
        try:
            more = self._run_reclaim(RELIEF_SLICES)
            self.commit_now()
            if not more and allocator.free - allocator.reserve <= before:
                self.commit_now()
        finally:
            self._relieving = False
        return more or allocator.free - allocator.reserve > before

    def _run_reclaim(self, slices: int) -> bool:
        """True if it went all the way and there may be more."""
        # A damaged tree keeps its space; it must not fail the write that looked for room.
        with suppress(CorruptVolume, OSError):
            return all(self.background.advance() for _ in range(slices))
        return False

    # --- LUNs ------------------------------------------------------------------------------------------------------

    def lun(self, name: str) -> Lun:
        """Raises NoSuchLun."""
        return self.files.lun(name)

    def luns(self) -> list[Lun]:
        return sorted(self.files.luns.values(), key=lambda lun: lun.name)

    def create_lun(self, name: str, size_bytes: int | None = None, *, ostype: str = "linux",
                   reserved: bool | None = None, comment: str = "", backing: tuple[str, str] | None = None,
                   block_bytes: int | None = None, uuid: uuids.UUID | None = None) -> Lun:  # fmt: skip
        """A new LUN: empty, or reading through `backing` (snapshot name, LUN name in it), whose size and logical
        block size it then has unless others are given.  Takes the same short time whatever the size.  Without
        `reserved` a LUN has its parent's setting, and one without a parent is not reserved.
        Raises InvalidName, NameTaken, InvalidSize, LimitReached, NoSpace, NoSuchSnapshot, NoSuchLun, ChainTooDeep."""
        self._check_writable()
        parent = None if backing is None else find_parent(self, name, backing)
        return make_lun(self, name, size_bytes, parent=parent, ostype=ostype, reserved=reserved, comment=comment,
                        block_bytes=block_bytes, uuid=uuid)  # fmt: skip

    def destroy_lun(self, name: str) -> None:
        """Gone at once; its blocks come back in the background."""
        self._check_writable()
        self.files.destroy_lun(name)

    def rename_lun(self, old: str, new: str) -> None:
        self._check_writable()
        self.files.rename_lun(old, new)

    def resize_lun(self, name: str, size_bytes: int) -> None:
        """Grow (reads zeros) or shrink (what is cut off is gone for good).  Raises InvalidSize, NoSpace."""
        self._check_writable()
        lun = self.lun(name)
        check_lun_size(size_bytes, lun.block_bytes)
        if size_bytes != lun.size_bytes:
            lun.resize(size_bytes)

    def _check_writable(self) -> None:
        self.core.check_changeable()
        if self.closed:
            raise LunBusy("the volume is closed")

    # --- snapshots -------------------------------------------------------------------------------------------------

    def request_snapshot(self, name: str) -> None:
        """The next consistency point makes it.  Raises InvalidName, NameTaken, LimitReached, NoSpace."""
        self._check_writable()
        if self.snapshots_table.request(name):
            self.commit_now()

    def snapshots(self) -> list[SnapshotInfo]:
        """Durable snapshots, oldest first."""
        holders = self.snapshots_table.all_holders()
        found = sorted(self.snapshots_table.live.values(), key=lambda snap: snap.id)
        return [self._info(snap, holders[snap.id]) for snap in found]

    def snapshot_names(self) -> set[str]:
        """Of the durable snapshots."""
        return set(self.snapshots_table.live)

    def snapshot(self, name: str) -> SnapshotInfo:
        """Raises NoSuchSnapshot."""
        snapshot = self.snapshots_table.find(name)
        return self._info(snapshot, self.snapshots_table.holders(snapshot))

    def _info(self, snapshot: Snapshot, holders: list[str]) -> SnapshotInfo:
        return SnapshotInfo(snapshot.id, snapshot.name, snapshot.created_us / 1e6, snapshot.generation, holders)

    def delete_snapshot(self, name: str) -> None:
        """Gone at once; its blocks come back in the background.  Raises NoSuchSnapshot, SnapshotBusy."""
        self._check_writable()
        self.snapshots_table.delete(name)

    def rename_snapshot(self, old: str, new: str) -> None:
        self._check_writable()
        self.snapshots_table.rename(old, new)

    def snapshot_luns(self, name: str) -> list[LunRecord]:
        return self.snapshots_table.lun_records(name)

    def snapshot_lun(self, name: str, lun_name: str) -> View:
        """A LUN inside a snapshot, for reading."""
        return self.snapshots_table.view(name, lun_name)

    def snapshot_usage(self, name: str) -> list[str]:
        """What keeps the snapshot busy."""
        return self.snapshots_table.holders(self.snapshots_table.find(name))

    def snapshot_space(self, name: str) -> SnapshotSpace:
        """Reads every live snapshot's map: for people, not for a loop."""
        return snapshot_space(self, name)

    def snapshot_spaces(self) -> Generator[Step, None, list[SnapshotSpace]]:
        """The same for every snapshot, oldest first, in slices."""
        return snapshot_spaces(self)

    def reclaimable_together(self, names: Collection[str]) -> Generator[Step, None, int]:
        """Bytes that deleting all of these snapshots would give back, in slices.  Raises NoSuchSnapshot."""
        return reclaimable_together(self, names)

    def plan_restore(self, snapshot: str, lun: str | None = None) -> RestorePlan:
        """What `restore` would do.  Raises what it raises but NoSpace."""
        return restore.plan(self, snapshot, lun)

    def restore(self, snapshot: str, lun: str | None = None) -> RestorePlan:
        """Put one LUN, or all of the volume, back to what the snapshot has.  Durable on return: waits for the disk.
        Raises NoSuchSnapshot, NoSuchLun, ChainTooDeep, InvalidSize, NameTaken, NoSpace, VolumeFailed."""
        self._check_writable()
        return restore.restore(self, snapshot, lun)

    # --- space -----------------------------------------------------------------------------------------------------

    def space(self) -> Space:
        """Where the volume's bytes are."""
        return space_of(self)

    def grow(self, size_bytes: int) -> None:
        """More blocks at the end, durable on return (wafl.grow).  Raises InvalidSize, OSError, VolumeFailed."""
        self._check_writable()
        grow(self, size_bytes)

    def own_vbns(self) -> Vbns:
        """Blocks of the volume itself: fixed places, summary and snapshot table."""
        return own_vbns(self)

    def held(self) -> AbstractContextManager[None]:
        """While this is held, no block of the last durable consistency point is reused: a thread may read it."""
        return self.core.allocator.held()

    def check(self) -> list[Finding]:
        """The checker's findings on this mounted volume, as of its last durable consistency point.  May run in a
        thread while the volume is `held`."""
        from wafl.check import check  # it stands on the format alone and never on this module: not at the head

        return check(self.device)
