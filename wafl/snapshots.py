"""Snapshots: the table of kept roots, reading inside them, and who depends on whom.

A snapshot is the inode file's root at one consistency point.  Making one is an entry in that consistency point;
deleting one is a change of state, and reclaim (wafl.reclaim) does the rest.  Locks are derived, never counted: a
snapshot is busy while a vtoc, the active one or a live snapshot's, names it as a backing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from wafl.buffers import READ_ONLY, VOLUME, Core
from wafl.errors import (
    BackingLost,
    CorruptVolume,
    DamagedRecord,
    LimitReached,
    NameTaken,
    NoSuchLun,
    NoSuchSnapshot,
    SnapshotBusy,
)
from wafl.filesystem import FileSystem, backing_from, check_entry, lun_record
from wafl.format import (
    ACTIVE_MAP_INODE,
    BLOCK_BYTES,
    INODE,
    MAX_CHAIN_DEPTH,
    MAX_ID,
    MAX_SNAPSHOTS,
    SNAPSHOT_ENTRY,
    VTOC_INODE,
    EntryState,
    InodeType,
    check_snapshot_name,
    decode_text,
)
from wafl.inode import Inode, RecordFile
from wafl.lun import Lun
from wafl.types import Backing, LunRecord
from wafl.views import View
from wafl.vtocs import Dependencies, Vtocs, blocks_are_here, file_is_here, read_block


@dataclass(slots=True, eq=False)
class Snapshot:
    id: int
    name: str
    created_us: int
    generation: int
    volume_blocks: int
    active_blocks: int
    ifile: Inode
    slot: int
    """Index in the snapshot table."""
    state: EntryState = EntryState.LIVE
    dependencies: Dependencies | None = None
    """Of its vtoc, once read."""
    map_inode: Inode | None = None
    """Its active map, once read."""

    def record(self) -> bytes:
        root = {f"ifile_{key}": value for key, value in self.ifile.root().items()}
        return SNAPSHOT_ENTRY.pack(
            state=int(self.state), id=self.id, created_us=self.created_us, generation=self.generation,
            volume_blocks=self.volume_blocks, active_blocks=self.active_blocks, name=self.name.encode(), **root,
        )  # fmt: skip

    @classmethod
    def from_record(cls, slot: int, fields: dict[str, Any]) -> Snapshot:
        root = {key.removeprefix("ifile_"): value for key, value in fields.items() if key.startswith("ifile_")}
        if fields["state"] not in (EntryState.LIVE, EntryState.DELETING) or not 0 < fields["id"] < MAX_ID:
            raise DamagedRecord(f"entry {slot} of the snapshot table")
        return cls(
            fields["id"], decode_text(fields["name"]), fields["created_us"], fields["generation"],
            fields["volume_blocks"], fields["active_blocks"], Inode.from_root(0, InodeType.FREE, root, READ_ONLY),
            slot, EntryState(fields["state"]),
        )  # fmt: skip


class SnapshotTable:
    """All snapshots of a mounted volume."""

    def __init__(self, core: Core, files: FileSystem, root: dict[str, Any] | None, next_id: int) -> None:
        root = root or {"root_vbn": 0, "root_crc": 0, "root_birth": 0, "height": 1, "size_bytes": 0}
        self.core = core
        self.files = files
        self.table = RecordFile(core, Inode.from_root(0, InodeType.FREE, root, VOLUME), SNAPSHOT_ENTRY)
        self.next_id = next_id
        self.live: dict[str, Snapshot] = {}
        self.by_id: dict[int, Snapshot] = {}
        self.deleting: dict[int, Snapshot] = {}
        self.requested: list[str] = []
        self.making: list[Snapshot] = []
        """In the consistency point that is being written."""
        self.arrivals = 0
        """Changes when a snapshot comes: reclaim starts a pass again when it differs."""
        self._dirty: dict[int, Snapshot | None] = {}
        self.vtocs = Vtocs(core)
        self._views: dict[tuple[int, int, int], View] = {}
        self._lingering: list[tuple[int, int, str]] = []
        files.find_view = self._look_for_view
        files.linger = self.linger
        files.snapshot_name = lambda number: self.by_id[number].name if number in self.by_id else ""
        files.snapshot_generation = lambda number: self.by_id[number].generation

    def load(self) -> None:
        self.table.load()
        for slot, fields in self.table.records():
            if fields["state"] == EntryState.FREE:
                continue
            snapshot = Snapshot.from_record(slot, fields)
            if snapshot.volume_blocks > self.core.allocator.blocks:
                raise DamagedRecord(f"snapshot {snapshot.name} is of a volume of {snapshot.volume_blocks} blocks")
            # The name of one that is being deleted may belong to another by now.
            taken = snapshot.state is EntryState.LIVE and snapshot.name in self.live
            if taken or snapshot.id in self.by_id or snapshot.id in self.deleting:
                raise DamagedRecord(f"snapshot {snapshot.name} (id {snapshot.id}) is there twice")
            if snapshot.state is EntryState.DELETING:
                self.deleting[snapshot.id] = snapshot
            else:
                self._enlist(snapshot)
        self.files.snapshot_table_blocks = len(self.table.blocks)

    def _enlist(self, snapshot: Snapshot) -> None:
        self.live[snapshot.name] = self.by_id[snapshot.id] = snapshot
        self.arrivals += 1

    def find(self, name: str) -> Snapshot:
        try:
            return self.live[name]
        except KeyError:
            raise NoSuchSnapshot(f"there is no snapshot {name}") from None

    # --- requests --------------------------------------------------------------------------------------------------

    def request(self, name: str) -> bool:
        """The next consistency point makes it; True if that must come at once, before anybody writes.
        Raises InvalidName, NameTaken, LimitReached, NoSpace."""
        check_snapshot_name(name)
        self._check_free(name)
        if len(self.live) + len(self.making) + len(self.requested) >= MAX_SNAPSHOTS:
            raise LimitReached(f"a volume holds {MAX_SNAPSHOTS} snapshots")
        # The snapshot keeps the present maps: the next consistency point gets nothing back for its new ones.
        blocks = (2 + len(self.requested)) * self.core.allocator.floor_ops
        at_once = self.files.reserve.check_snapshot(name, blocks)
        self.requested.append(name)
        self.count_shared()
        return at_once

    def _check_free(self, name: str) -> None:
        if name in self.live or name in self.requested or any(made.name == name for made in self.making):
            raise NameTaken(f"there is a snapshot {name} already")

    def rename(self, old: str, new: str) -> None:
        snapshot = self.find(old)
        if old == new:
            return
        check_snapshot_name(new)
        self._check_free(new)
        del self.live[old]
        snapshot.name = new
        self.live[new] = snapshot
        self._changed(snapshot)
        for lun in self.files.luns.values():
            if lun.backing is not None and lun.backing.snapshot_id == snapshot.id:
                backing = lun.backing
                lun.backing = Backing(
                    backing.snapshot_id, backing.inode, backing.inode_generation, backing.limit_bytes, new,
                    backing.lun_name,
                )  # fmt: skip

    def delete(self, name: str) -> None:
        """Gone for everybody at once; reclaim gives its blocks back.  Raises SnapshotBusy naming every holder."""
        snapshot = self.find(name)
        holders = self.holders(snapshot)
        if holders:
            raise SnapshotBusy(name, holders)
        del self.live[name], self.by_id[snapshot.id]
        snapshot.state = EntryState.DELETING
        self.deleting[snapshot.id] = snapshot
        self._changed(snapshot)
        for key in [key for key in self._views if key[0] == snapshot.id]:
            view = self._views.pop(key)
            view.cool()
            self.core.forget_tree(view.inode)

    def _changed(self, snapshot: Snapshot) -> None:
        self._dirty[snapshot.slot] = snapshot
        if self.core.log is not None:
            self.core.log.snapshot(snapshot.id, snapshot.state, snapshot.name)

    def drop(self, snapshot: Snapshot) -> None:
        """Reclaim has given back all its blocks: the entry goes."""
        del self.deleting[snapshot.id]
        self._dirty[snapshot.slot] = None
        self.files.reserve.follow(self.newest_generation() or 0, wanted=bool(self.requested))
        self.core.forget_tree(snapshot.ifile)
        if snapshot.map_inode is not None:
            self.core.forget_tree(snapshot.map_inode)

    # --- in a consistency point ------------------------------------------------------------------------------------

    @property
    def dirty(self) -> bool:
        return bool(self._dirty or self.requested)

    def count_shared(self) -> None:
        self.files.count_shared(self.newest_generation(), requested=bool(self.requested))

    def newest_generation(self) -> int | None:
        """Of the newest snapshot that holds blocks; None if there is none."""
        held = [*self.live.values(), *self.making, *self.deleting.values()]
        return max((snapshot.generation for snapshot in held), default=None)

    def freeze(self, created_us: int) -> None:
        """Pack changed entries, and make the requested snapshots of the file system just frozen."""
        for slot, snapshot in self._dirty.items():
            self.table.put(slot, bytes(SNAPSHOT_ENTRY.size) if snapshot is None else snapshot.record())
        self._dirty.clear()
        if not self.requested:
            return
        allocator = self.core.allocator
        allocator.merge_active_into_summary()
        dependencies = self._active_dependencies()
        used = {snap.slot for snap in [*self.live.values(), *self.deleting.values()]}
        for name in self.requested:
            slot = next(n for n in range(len(used) + 1) if n not in used)
            used.add(slot)
            root = Inode.from_root(0, InodeType.FREE, self.files.ifile.inode.root(), READ_ONLY)
            snapshot = Snapshot(
                self.next_id, name, created_us, self.core.generation, allocator.blocks, allocator.active_count, root,
                slot, dependencies=dependencies,
            )  # fmt: skip
            self.next_id += 1
            self.table.put(slot, snapshot.record())
            self.making.append(snapshot)
        self.requested.clear()
        self.files.snapshot_table_blocks = len(self.table.blocks)

    def made(self) -> None:
        """The consistency point is durable."""
        for snapshot in self.making:
            self._enlist(snapshot)
        self.making.clear()
        durable = self.core.durable
        self._lingering = [entry for entry in self._lingering if entry[0] > durable]

    # --- who depends on whom ---------------------------------------------------------------------------------------

    def linger(self, lun: Lun, backing: Backing) -> None:
        self._lingering.append((self.core.generation, backing.snapshot_id, lun.name))

    def _active_dependencies(self) -> Dependencies:
        found: Dependencies = {}
        for lun in self.files.luns.values():
            if lun.backing is not None:
                found.setdefault(lun.backing.snapshot_id, []).append(lun.name)
        return found

    def holders(self, snapshot: Snapshot) -> list[str]:
        """Everything that reads through the snapshot: LUNs by name, LUNs in snapshots as `.snapshot/SNAP/LUN`."""
        return self._holders(snapshot, self._active_dependencies())

    def all_holders(self) -> dict[int, list[str]]:
        """`holders` of every live snapshot, by its id."""
        active = self._active_dependencies()
        return {snapshot.id: self._holders(snapshot, active) for snapshot in self.live.values()}

    def _holders(self, snapshot: Snapshot, active: Dependencies) -> list[str]:
        names = dict.fromkeys(active.get(snapshot.id, ()))
        names |= dict.fromkeys(name for _, number, name in self._lingering if number == snapshot.id)
        for other in [*self.live.values(), *self.making]:
            # Only younger snapshots can name it.
            found = self.dependencies(other).get(snapshot.id) if other.id > snapshot.id else None
            if found:
                names |= dict.fromkeys(f".snapshot/{other.name}/{name}" for name in found)
        return list(names)

    def dependencies(self, snapshot: Snapshot) -> Dependencies:
        if snapshot.dependencies is None:
            snapshot.dependencies = self.vtocs.dependencies(self.inode(snapshot, VTOC_INODE))
        return snapshot.dependencies

    # --- reading inside a snapshot ---------------------------------------------------------------------------------

    def inode(self, snapshot: Snapshot, number: int) -> Inode:
        """An inode as the snapshot has it (a new object at each call)."""
        per_block = BLOCK_BYTES // INODE.size
        block = read_block(self.core, snapshot.ifile, number // per_block)
        fields = INODE.unpack(block, number % per_block * INODE.size)
        inode = Inode.from_record(fields, READ_ONLY)
        inode.number = number
        return inode

    def active_map(self, snapshot: Snapshot) -> Inode:
        return self.inode(snapshot, ACTIVE_MAP_INODE)

    def entries(self, snapshot: Snapshot) -> list[dict[str, Any]]:
        """The LUNs in its vtoc."""
        return self.vtocs.entries(self.inode(snapshot, VTOC_INODE))

    def lun_records(self, name: str) -> list[LunRecord]:
        snapshot = self.find(name)
        records = []
        for fields in self.entries(snapshot):
            inode = self.inode(snapshot, fields["inode"])
            backing = backing_from(fields, self.files.snapshot_name(fields["backing_snapshot"]))
            records.append(lun_record(fields, inode.blocks * BLOCK_BYTES, backing))
        return sorted(records, key=lambda record: record.name)

    def backing_for(self, snapshot_name: str, lun_name: str) -> tuple[Backing, LunRecord, int]:
        """What a new LUN made from a LUN in a snapshot reads through, the parent's record, and the blocks that are
        missing from the new LUN at most."""
        snapshot = self.find(snapshot_name)
        for fields in self.entries(snapshot):
            if decode_text(fields["name"]) == lun_name:
                break
        else:
            raise NoSuchLun(f"there is no LUN {lun_name} in snapshot {snapshot_name}")
        backing, missing = self.backing_of(snapshot, fields)
        below = backing_from(fields)
        return backing, lun_record(fields, self.inode(snapshot, fields["inode"]).blocks * BLOCK_BYTES, below), missing

    def backing_of(self, snapshot: Snapshot, fields: dict[str, Any]) -> tuple[Backing, int]:
        """What a LUN made from this vtoc entry of the snapshot reads through, and the blocks that are missing from
        such a LUN at most."""
        limit = -(-fields["size_bytes"] // BLOCK_BYTES) * BLOCK_BYTES
        backing = Backing(
            snapshot.id, fields["inode"], fields["inode_generation"], limit, snapshot.name, decode_text(fields["name"])
        )
        below = fields["missing_blocks"] if fields["backing_snapshot"] else 0
        inode = self.inode(snapshot, fields["inode"])
        return backing, limit // BLOCK_BYTES if inode.adopted else min(inode.blocks + below, limit // BLOCK_BYTES)

    def find_view(self, backing: Backing) -> View:
        """The view of a LUN inside a snapshot; one for all that read through it.  Raises BackingLost."""
        key = (backing.snapshot_id, backing.inode, backing.inode_generation)
        view = self._views.get(key)
        if view is None:
            snapshot = self.by_id.get(backing.snapshot_id)
            if snapshot is None:
                raise BackingLost(f"the backing snapshot (id {backing.snapshot_id}) is not there")
            view = self._views[key] = self._open_view(snapshot, backing)
        return view

    def _open_view(self, snapshot: Snapshot, backing: Backing) -> View:
        inode = self.inode(snapshot, backing.inode)
        if inode.type is not InodeType.LUN or inode.generation != backing.inode_generation:
            raise BackingLost(f"snapshot {snapshot.name} has no inode {backing.inode} of that generation")
        vtoc = self.inode(snapshot, VTOC_INODE)
        fields = self.vtocs.entry(snapshot.id, vtoc, backing.inode, backing.inode_generation)
        if fields is None:
            raise BackingLost(f"snapshot {snapshot.name} has no LUN with inode {backing.inode}")
        name = f".snapshot/{snapshot.name}/{decode_text(fields['name'])}"
        check_entry(fields, inode)
        below = backing_from(fields, self.files.snapshot_name(fields["backing_snapshot"]))
        return View(self.core, inode, fields["size_bytes"], name, below, self._look_for_view)

    def _look_for_view(self, backing: Backing, nowait: bool) -> View | None:
        """`find_view`; None if `nowait` and it would have to wait for the disk, which begins to read."""
        key = (backing.snapshot_id, backing.inode, backing.inode_generation)
        if nowait and key not in self._views and not self._is_here(backing):
            return None
        return self.find_view(backing)

    def _is_here(self, backing: Backing) -> bool:
        """What `_open_view` reads: two inodes, and all of the vtoc."""
        snapshot, per_block = self.by_id.get(backing.snapshot_id), BLOCK_BYTES // INODE.size
        try:
            return snapshot is None or (
                blocks_are_here(self.core, snapshot.ifile, [VTOC_INODE // per_block, backing.inode // per_block])
                and file_is_here(self.core, self.inode(snapshot, VTOC_INODE))
            )
        except (CorruptVolume, OSError):
            return True  # whoever needs it is told

    def view(self, snapshot_name: str, lun_name: str) -> View:
        """For reading a LUN inside a snapshot."""
        return self.find_view(self.backing_for(snapshot_name, lun_name)[0])

    def depth(self, backing: Backing | None) -> int:
        """Snapshots that a LUN with this backing stands on."""
        depth = 0
        while backing is not None and depth <= MAX_CHAIN_DEPTH:
            depth += 1
            backing = self.find_view(backing).backing
        return depth

    def cool(self) -> None:
        for view in self._views.values():
            view.cool()
