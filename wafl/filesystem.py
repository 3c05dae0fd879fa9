"""The active file system: inode file, vtoc, LUNs, zombies, and the active map as a file.

Everything here changes in memory at once and reaches the disk with the next consistency point: `freeze` packs the
changed vtoc entries and inodes into their record files and gives every changed block its place.
"""

from __future__ import annotations

import uuid as uuids
from collections.abc import Callable
from typing import Any

from wafl.buffers import ACTIVE, INODE_FILE, Core
from wafl.errors import DamagedRecord, InvalidSize, LimitReached, NameTaken, NoSuchLun, NotAVolume
from wafl.format import (
    ACTIVE_MAP_INODE,
    BLOCK_BYTES,
    FIRST_INODE,
    INODE,
    MAX_LUN_BYTES,
    MAX_LUNS,
    POINTERS,
    VTOC_ENTRY,
    VTOC_INODE,
    EntryState,
    InodeType,
    VtocFlag,
    check_lun_name,
    decode_text,
    encode_text,
)
from wafl.inode import Inode, RecordFile, tree_blocks
from wafl.lun import Lun
from wafl.maps import MapFile, count_older
from wafl.references import References
from wafl.reserve import Reserve
from wafl.types import Backing, LunRecord
from wafl.views import View

LOGICAL_BLOCK_BYTES = (512, 4096)
GROWTH_BLOCKS = 2
"""Blocks by which a record file may grow between two looks at the reserve."""


class FileSystem:
    """The active file system of a mounted volume."""

    def __init__(self, core: Core, root: dict[str, Any] | None, next_inode_generation: int) -> None:
        self.core = core
        self.next_inode_generation = next_inode_generation
        root = root or {"root_vbn": 0, "root_crc": 0, "root_birth": 0, "height": 1, "size_bytes": 0}
        self.ifile = RecordFile(core, Inode.from_root(0, InodeType.FREE, root, INODE_FILE), INODE)
        self.inodes: dict[int, Inode] = {}
        self.freed_inodes: set[int] = set()
        """Numbers whose record has to be cleared by the next consistency point."""
        self.zombies: dict[int, Inode] = {}
        self.luns: dict[str, Lun] = {}
        self.dirty_luns: dict[int, Lun | None] = {}
        """vtoc slot -> its LUN, or None if the entry goes."""
        self.graveyards: dict[tuple[int, int, int], Inode] = {}
        """(owner number, owner generation, level) -> graveyard."""
        self.snapshot_table_blocks = 0
        self._shared_blocks = 0
        self._will_share = False
        self._map_growth = 0
        self.references = References(core, self)
        self.summary: MapFile
        """Set by the volume."""
        self.reserve = Reserve(core, self)
        core.recheck_reserve = self.reserve.refresh
        self.find_view: Callable[[Backing, bool], View | None]
        self.linger: Callable[[Lun, Backing], None]
        self.snapshot_name: Callable[[int], str]
        """id -> name, "" if there is none."""
        self.snapshot_generation: Callable[[int], int]
        """id of a snapshot that is there -> the consistency point that made it.  The snapshot table sets these four."""

    # --- mounting and making ---------------------------------------------------------------------------------------

    def make(self, rows: int) -> None:
        """The fixed inodes of a new volume with an active map of `rows` rows."""
        self.ifile.block_for(0)
        for number, kind, size in (
            (VTOC_INODE, InodeType.VTOC, 0),
            (ACTIVE_MAP_INODE, InodeType.ACTIVE_MAP, rows * BLOCK_BYTES),
        ):
            inode = Inode(number, kind, 1, size)
            self.inodes[number] = inode
            inode.touch(self.core)
        self._open_fixed_files()

    def load(self) -> None:
        """Read inode file and vtoc.  Active map and reference counts are loaded by the volume."""
        self.ifile.load()
        for number, fields in self.ifile.records():
            if fields["type"] != InodeType.FREE:
                inode = Inode.from_record(fields)
                if inode.number != number:
                    raise DamagedRecord(f"inode {number} says that it is inode {inode.number}")
                self.inodes[number] = inode
        for number, kind in ((VTOC_INODE, InodeType.VTOC), (ACTIVE_MAP_INODE, InodeType.ACTIVE_MAP)):
            if number not in self.inodes or self.inodes[number].type is not kind:
                raise DamagedRecord(f"inode {number} is not of the type {kind.name}")
        if self.inodes[ACTIVE_MAP_INODE].size_bytes != self.core.allocator.chunks * BLOCK_BYTES:
            raise DamagedRecord("the active map is not as large as the volume asks")
        self._open_fixed_files()
        self.vtoc.load()
        taken: set[int] = set()
        for slot, fields in self.vtoc.records():
            if fields["state"] == EntryState.LIVE:
                lun = self.lun_from(slot, fields)
                if lun.name in self.luns or lun.inode.number in taken:
                    raise DamagedRecord(f"the vtoc has {lun.name}, or its inode, twice")
                taken.add(lun.inode.number)
                self.luns[lun.name] = lun
        for inode in self.inodes.values():
            if inode.type is InodeType.ZOMBIE:
                self.zombies[inode.number] = inode

    def _open_fixed_files(self) -> None:
        self.vtoc = RecordFile(self.core, self.inodes[VTOC_INODE], VTOC_ENTRY)
        self.active_map = MapFile(self.core, self.inodes[ACTIVE_MAP_INODE])

    def lun_from(self, slot: int, fields: dict[str, Any]) -> Lun:
        """The LUN of a vtoc entry.  Raises NotAVolume, DamagedRecord."""
        flags = VtocFlag(fields["flags"])
        inode = self.inodes.get(fields["inode"])
        if inode is None or inode.generation != fields["inode_generation"]:
            raise NotAVolume(f"the vtoc names inode {fields['inode']}, which is not there: run the checker")
        check_entry(fields, inode)
        return Lun(
            self, inode, decode_text(fields["name"]), uuids.UUID(bytes=fields["uuid"]),
            serial=decode_text(fields["serial"]), naa=fields["naa"], size_bytes=fields["size_bytes"],
            block_bytes=fields["block_bytes"], ostype=decode_text(fields["ostype"]),
            comment=decode_text(fields["comment"]), created_us=fields["created_us"], slot=slot,
            backing=backing_from(fields, self.snapshot_name(fields["backing_snapshot"])),
            online=VtocFlag.ONLINE in flags, reserved=VtocFlag.RESERVED in flags,
            clone_requested=VtocFlag.CLONE_REQUESTED in flags, missing=fields["missing_blocks"],
        )  # fmt: skip

    # --- LUNs ------------------------------------------------------------------------------------------------------

    def lun(self, name: str) -> Lun:
        try:
            return self.luns[name]
        except KeyError:
            raise NoSuchLun(f"there is no LUN {name}") from None

    def check_new_name(self, name: str) -> None:
        check_lun_name(name)
        if name in self.luns:
            raise NameTaken(f"there is a LUN {name} already")
        above = [name[:at] for at, char in enumerate(name) if char == "/"]
        below = name + "/"
        clash = [each for each in above if each in self.luns] or [each for each in self.luns if each.startswith(below)]
        if clash:
            raise NameTaken(f"{name} and the LUN {clash[0]} cannot both exist: a LUN is not a directory")

    def create_lun(self, name: str, size_bytes: int, *, uuid: uuids.UUID, serial: str, naa: bytes, ostype: str,
                   reserved: bool, comment: str, block_bytes: int, created_us: int, backing: Backing | None,
                   missing: int) -> Lun:  # fmt: skip
        self.check_new_name(name)
        check_lun_size(size_bytes, block_bytes)
        encode_text(comment, "comment")
        encode_text(ostype, "ostype", 31)
        if len(self.luns) >= MAX_LUNS:
            raise LimitReached(f"a volume holds {MAX_LUNS} LUNs")
        self.reserve.check_new(name, size_bytes, reserved=reserved)
        inode = self.new_inode(InodeType.LUN, size_bytes)
        lun = Lun(
            self, inode, name, uuid, serial=serial, naa=naa, size_bytes=size_bytes, block_bytes=block_bytes,
            ostype=ostype, comment=comment, created_us=created_us, slot=self._free_slot(), backing=backing,
            reserved=reserved, missing=missing,
        )  # fmt: skip
        self.luns[name] = lun
        self.touch_lun(lun)
        self.set_reserve()
        self.reserve.refresh()
        self.log_lun(lun)
        return lun

    def _free_slot(self) -> int:
        used = {lun.slot for lun in self.luns.values()}
        return next(slot for slot in range(MAX_LUNS) if slot not in used)

    def rename_lun(self, old: str, new: str) -> None:
        lun = self.lun(old)
        if old == new:
            return
        del self.luns[old]
        try:
            self.check_new_name(new)
        except Exception:
            self.luns[old] = lun
            raise
        lun.name = new
        self.luns[new] = lun
        self.touch_lun(lun)
        self.log_lun(lun)

    def destroy_lun(self, name: str) -> Lun:
        """The LUN is gone at once; its inode becomes a zombie that reclaim trims."""
        lun = self.lun(name)
        self.drop_lun(lun)
        if self.core.log is not None:
            self.core.log.vtoc(lun.slot, bytes(VTOC_ENTRY.size))
        return lun

    def drop_lun(self, lun: Lun) -> None:
        del self.luns[lun.name]
        lun.destroyed = True
        lun.size_bytes = 0  # whoever still has the object reads and writes nothing that is on its way out
        lun.cool()
        self.dirty_luns[lun.slot] = None
        self.retire(lun.inode)
        self.reserve.refresh()

    def retire(self, inode: Inode) -> None:
        """No LUN has this inode any more: reclaim trims it."""
        inode.type = InodeType.ZOMBIE
        self.zombies[inode.number] = inode
        inode.touch(self.core)

    def touch_lun(self, lun: Lun) -> None:
        if not lun.destroyed:
            self.dirty_luns[lun.slot] = lun

    def log_lun(self, lun: Lun) -> None:
        if self.core.log is not None:
            self.core.log.vtoc(lun.slot, pack_lun(lun))

    # --- inodes ----------------------------------------------------------------------------------------------------

    def new_inode(self, kind: InodeType, size_bytes: int) -> Inode:
        number = next(n for n in range(FIRST_INODE, 1 << 20) if n not in self.inodes)
        inode = Inode(number, kind, self.next_inode_generation, size_bytes)
        self.next_inode_generation += 1
        inode.set_private(0, self.reserve.since)
        self.inodes[number] = inode
        self.freed_inodes.discard(number)
        inode.touch(self.core)
        self.set_reserve()
        return inode

    def free_inode(self, inode: Inode) -> None:
        """An empty zombie goes."""
        del self.inodes[inode.number]
        self.core.uncounted_data += inode.blocks
        self.zombies.pop(inode.number, None)
        self.core.dirty_inodes.pop(inode, None)
        self.freed_inodes.add(inode.number)
        self.graveyards = {key: grave for key, grave in self.graveyards.items() if grave is not inode}

    def graveyard_of(self, inode: Inode, level: int) -> Inode:
        key = (inode.number, inode.generation, level)
        grave = self.graveyards.get(key)
        if grave is None:
            grave = self.new_inode(InodeType.ZOMBIE, 0)
            grave.owner, grave.owner_generation = inode.number, inode.generation
            self.graveyards[key] = self.zombies[grave.number] = grave
        return grave

    # --- freezing --------------------------------------------------------------------------------------------------

    @property
    def dirty(self) -> bool:
        core = self.core
        return bool(core.dirty_buffers or core.dirty_inodes or self.dirty_luns or self.freed_inodes
                    or core.allocator.freed or self.references.dirty)  # fmt: skip

    def freeze(self) -> None:
        """Pack what changed, and give every changed block of the active file system its place: the active map
        describes its own new blocks too, so places are given until no further row changes (each row moves at most
        once, so this ends)."""
        core, allocator = self.core, self.core.allocator
        self.references.settle()
        for slot, lun in self.dirty_luns.items():
            self.vtoc.put(slot, bytes(VTOC_ENTRY.size) if lun is None else pack_lun(lun))
        self.dirty_luns.clear()
        for number in self.freed_inodes:
            self.ifile.put(number, bytes(INODE.size))
        self.freed_inodes.clear()
        moved: set[int] = set()
        counted: set[int] = set()
        self.inodes[ACTIVE_MAP_INODE].touch(core)
        while True:
            for inode in list(core.dirty_inodes):
                self.ifile.block_for(inode.number)
            allocator.apply_frees()
            counts, rows = self.references.dirty - counted, allocator.dirty_active - moved
            if not (counts or rows):
                break
            self.references.assign(counts)
            counted |= counts
            self.active_map.assign(rows)
            moved |= rows
        for inode in core.dirty_inodes:
            self.ifile.put(inode.number, inode.record())
        core.dirty_inodes.clear()

    def count_shared(self, newest: int | None, *, requested: bool) -> None:
        """How many blocks of the active map, inode file and vtoc a snapshot may share: their next version will not give
        them back.  `newest` is the generation of the newest snapshot, None if there is none.  A snapshot that is
        requested shares the versions of the next consistency point too: the one after that gets none of them back."""
        self._map_growth = self.active_map.growth() + self.summary.growth()
        self._shared_blocks = 0
        self._will_share = requested
        if newest is not None:
            rows = count_older(self.core, self.active_map.inode, newest)
            inner = tree_blocks(self.core.allocator.chunks) - self.core.allocator.chunks
            self._shared_blocks = rows + inner + self.ifile.tree_blocks() + self.vtoc.tree_blocks()
            self._shared_blocks += self.references.shared_room()
        self.set_reserve()
        self.reserve.follow(newest or 0, wanted=requested)

    def set_reserve(self) -> None:
        """What one consistency point can need at most: every row of maps and counts with its tree, and the record
        files. Of that it gets back what it replaces; what it takes for good is kept back once more, so that the next
        one has as much: what these files grow by, and what replaces versions that a snapshot keeps."""
        allocator = self.core.allocator
        maps = 2 * tree_blocks(allocator.chunks) + self._map_growth
        inode_blocks = -(-(max(self.inodes, default=0) + 1) // self.ifile.per_block)
        vtoc_blocks = -(-(max((lun.slot for lun in self.luns.values()), default=0) + 1) // self.vtoc.per_block)
        records = shared = 0
        for blocks, file in ((inode_blocks, self.ifile), (vtoc_blocks, self.vtoc)):
            to = max(blocks, len(file.blocks)) + GROWTH_BLOCKS
            records += new_and_grown(len(file.blocks), to)
            shared += tree_blocks(to)
        shared += tree_blocks(allocator.chunks) + self.references.shared_room_after_snapshot()
        shared = shared if self._will_share else 0
        table = new_and_grown(self.snapshot_table_blocks, self.snapshot_table_blocks + GROWTH_BLOCKS)
        ops = maps + records + table + self._shared_blocks + shared + self.references.room()
        allocator.set_floors(ops, max(64, min(4096, allocator.blocks // 256)))


def new_and_grown(blocks: int, to: int) -> int:
    """Blocks to write a file of `blocks` anew as one of `to`, and once more what it grows by."""
    return 2 * tree_blocks(to) - (tree_blocks(blocks) if blocks else 0)


def check_lun_size(size_bytes: int, block_bytes: int) -> None:
    if block_bytes not in LOGICAL_BLOCK_BYTES:
        raise InvalidSize(f"logical blocks have 512 or 4096 bytes, not {block_bytes}")
    if size_bytes <= 0 or size_bytes % block_bytes:
        raise InvalidSize(f"the size of a LUN is a positive multiple of {block_bytes}, not {size_bytes}")
    if size_bytes > MAX_LUN_BYTES:
        raise InvalidSize(f"a LUN has at most {MAX_LUN_BYTES} bytes, not {size_bytes}")


def check_entry(fields: dict[str, Any], inode: Inode) -> None:
    """Whether a vtoc entry and its inode can belong together.  Raises DamagedRecord."""
    size, limit = fields["size_bytes"], fields["backing_limit_bytes"]
    try:
        check_lun_size(size, fields["block_bytes"])
        fits = size <= POINTERS**inode.height * BLOCK_BYTES and inode.type is InodeType.LUN
    except InvalidSize:
        fits = False
    if not fits or limit > MAX_LUN_BYTES or limit % BLOCK_BYTES:
        raise DamagedRecord(f"the vtoc entry of {decode_text(fields['name'])} does not fit its inode")


def backing_from(fields: dict[str, Any], snapshot_name: str = "") -> Backing | None:
    if not fields["backing_snapshot"]:
        return None
    return Backing(
        fields["backing_snapshot"], fields["backing_inode"], fields["backing_inode_generation"],
        fields["backing_limit_bytes"], snapshot_name, decode_text(fields["backing_name"]),
    )  # fmt: skip


def pack_lun(lun: Lun) -> bytes:
    flags = VtocFlag.NONE
    for value, flag in (
        (lun.online, VtocFlag.ONLINE), (lun.reserved, VtocFlag.RESERVED),
        (lun.clone_requested, VtocFlag.CLONE_REQUESTED),
    ):  # fmt: skip
        if value:
            flags |= flag
    backing = lun.backing
    return VTOC_ENTRY.pack(
        state=int(EntryState.LIVE), flags=int(flags), inode=lun.inode.number, block_bytes=lun.block_bytes,
        inode_generation=lun.inode.generation, size_bytes=lun.size_bytes, created_us=lun.created_us,
        uuid=lun.uuid_bytes, naa=lun.naa, serial=lun.serial.encode(), ostype=lun.ostype.encode(),
        name=lun.name.encode(), comment=lun.comment.encode(),
        missing_blocks=lun.missing, **(backing_fields(backing) if backing else {}),
    )  # fmt: skip


def backing_fields(backing: Backing) -> dict[str, Any]:
    """Those of a vtoc entry; `backing_from` reads them."""
    return {
        "backing_snapshot": backing.snapshot_id,
        "backing_inode": backing.inode,
        "backing_inode_generation": backing.inode_generation,
        "backing_limit_bytes": backing.limit_bytes,
        "backing_name": backing.lun_name.encode(),
    }


def inode_fields(inode: Inode) -> dict[str, int]:
    """Those of a vtoc entry, for an entry that is to have another inode than it says."""
    return {"inode": inode.number, "inode_generation": inode.generation}


def lun_record(fields: dict[str, Any], used_bytes: int, backing: Backing | None) -> LunRecord:
    """A vtoc entry as a public record."""
    flags = VtocFlag(fields["flags"])
    return LunRecord(
        name=decode_text(fields["name"]), uuid=str(uuids.UUID(bytes=fields["uuid"])),
        serial=decode_text(fields["serial"]), naa=fields["naa"], ostype=decode_text(fields["ostype"]),
        comment=decode_text(fields["comment"]), size_bytes=fields["size_bytes"], block_bytes=fields["block_bytes"],
        online=VtocFlag.ONLINE in flags, reserved=VtocFlag.RESERVED in flags,
        clone_requested=VtocFlag.CLONE_REQUESTED in flags, created_at=fields["created_us"] / 1e6,
        inode=fields["inode"], inode_generation=fields["inode_generation"], used_bytes=used_bytes, backing=backing,
    )  # fmt: skip


__all__ = ["ACTIVE", "FileSystem", "backing_from", "lun_record", "pack_lun"]
