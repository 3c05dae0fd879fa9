"""Going back to a snapshot, one LUN or all of them, while hosts have them open.

A LUN that is restored stays the same object with the same identity, name, vtoc slot and settings: sessions and maps
notice nothing but its contents.  It gets a new inode, empty, that reads through the LUN as the snapshot has it, so it
takes the same short time whatever the size; what it had becomes a zombie that reclaim trims.  A clone job then fills
it and lets the snapshot go: the request for that is part of the restore.

Rules:

- A LUN is found in the snapshot by its UUID.  Another LUN that had its name then is another LUN.
- Everything that can be refused is refused before the first change.
- Nothing of it is logged: it is in memory, then in a consistency point, and nobody comes in between.  A crash leaves
  all of it or none.
"""

from __future__ import annotations

import uuid as uuids
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from wafl.errors import ChainTooDeep, InvalidSize, NameTaken, NoSuchLun
from wafl.filesystem import FileSystem, backing_fields, backing_from, inode_fields
from wafl.format import BLOCK_BYTES, INODE, MAX_CHAIN_DEPTH, MAX_LUNS, VTOC_ENTRY, InodeType, VtocFlag, decode_text
from wafl.inode import Inode
from wafl.lun import Lun
from wafl.snapshots import Snapshot
from wafl.types import Backing, RestorePlan

if TYPE_CHECKING:
    from wafl.volume import Volume


@dataclass(frozen=True, slots=True)
class _Source:
    """A LUN in the snapshot."""

    fields: dict[str, Any]
    """Its vtoc entry."""
    backing: Backing
    missing: int

    @property
    def name(self) -> str:
        return decode_text(self.fields["name"])

    @property
    def size_bytes(self) -> int:
        return int(self.fields["size_bytes"])


@dataclass(frozen=True, slots=True)
class _Moves:
    restored: list[tuple[Lun, _Source]]
    returned: list[_Source]
    destroyed: list[Lun]

    def plan(self) -> RestorePlan:
        return RestorePlan(
            restored=[lun.name for lun, _ in self.restored],
            returned=[source.name for source in self.returned],
            destroyed=[lun.name for lun in self.destroyed],
        )


def plan(volume: Volume, snapshot_name: str, lun_name: str | None) -> RestorePlan:
    """What `restore` would do; changes nothing.  Raises what it raises but NoSpace."""
    return _moves(volume, snapshot_name, lun_name).plan()


def restore(volume: Volume, snapshot_name: str, lun_name: str | None) -> RestorePlan:
    """Put one LUN back, or the whole volume: LUNs of the snapshot are as they were, name and size too, those that
    are gone come back with their identity, those made since are destroyed.  Durable on return.
    Raises NoSuchSnapshot, NoSuchLun, ChainTooDeep, InvalidSize, NameTaken, NoSpace, VolumeFailed."""
    if volume.snapshots_table.requested:
        volume.commit_now()  # what was asked for before is of before
    moves = _moves(volume, snapshot_name, lun_name)
    made = len(moves.restored) + len(moves.returned)
    core = volume.core
    core.ensure(
        2 * _blocks(made, INODE.size) + 2 * _blocks(len(moves.returned), VTOC_ENTRY.size) + 16,
        core.allocator.floor_ops,
    )
    _check_reserve(volume, moves)
    done = moves.plan()
    _make(volume.files, moves, rename=lun_name is None)
    volume.commit_now()
    return done


def _check_reserve(volume: Volume, moves: _Moves) -> None:
    """A restored LUN owns nothing at first: if it is reserved, all of it is kept back."""
    reserve = volume.files.reserve
    after = sum(
        reserve.needed_by_new(source.size_bytes)
        for lun, source in [*moves.restored, *((None, source) for source in moves.returned)]
        if (lun.reserved if lun is not None else VtocFlag.RESERVED in VtocFlag(source.fields["flags"]))
    )
    going = [*(lun for lun, _ in moves.restored), *moves.destroyed]
    before = sum(reserve.needed_by(lun) for lun in going if lun.reserved)
    # What no snapshot holds of that which goes is given back.
    more = after - before - sum(lun.inode.private_blocks for lun in going)
    if more > 0:
        reserve.check_room(
            more, "space for all of what is restored",
            "disable reservations, delete a snapshot or a LUN, or grow the volume",
        )  # fmt: skip


def _blocks(records: int, record_bytes: int) -> int:
    return -(-records * record_bytes // BLOCK_BYTES)


# --- what is to be done, and whether it can be -----------------------------------------------------------------------


def _moves(volume: Volume, snapshot_name: str, lun_name: str | None) -> _Moves:
    table, luns = volume.snapshots_table, volume.files.luns
    snapshot = table.find(snapshot_name)
    entries = {str(uuids.UUID(bytes=fields["uuid"])): fields for fields in table.entries(snapshot)}

    def source_of(uuid: str) -> _Source:
        return _Source(entries[uuid], *table.backing_of(snapshot, entries[uuid]))

    if lun_name is not None:
        lun = volume.lun(lun_name)
        if lun.uuid not in entries:
            raise NoSuchLun(_why_missing(lun, snapshot, entries.values()))
        moves = _Moves([(lun, source_of(lun.uuid))], [], [])
    else:
        present = {lun.uuid for lun in luns.values()}
        moves = _Moves(
            [(lun, source_of(lun.uuid)) for lun in volume.luns() if lun.uuid in entries],
            sorted((source_of(uuid) for uuid in entries if uuid not in present), key=lambda source: source.name),
            [lun for lun in volume.luns() if lun.uuid not in entries],
        )
        _check_identities(moves, snapshot)
    for lun, source in moves.restored:
        if lun.block_bytes != source.fields["block_bytes"]:
            raise InvalidSize(
                f"{lun.name} has logical blocks of {lun.block_bytes} bytes and had {source.fields['block_bytes']} in "
                f"snapshot {snapshot.name}: make a LUN from the snapshot instead"
            )
    for source in [*(source for _, source in moves.restored), *moves.returned]:
        if 1 + table.depth(backing_from(source.fields)) > MAX_CHAIN_DEPTH:
            raise ChainTooDeep(source.name, MAX_CHAIN_DEPTH)
    return moves


def _why_missing(lun: Lun, snapshot: Snapshot, entries: Iterable[dict[str, Any]]) -> str:
    if any(decode_text(fields["name"]) == lun.name for fields in entries):
        return (f"the LUN {lun.name} in snapshot {snapshot.name} is another one, which has been destroyed since: "
                "make a LUN from the snapshot instead")  # fmt: skip
    return f"LUN {lun.name} is not in snapshot {snapshot.name}"


def _check_identities(moves: _Moves, snapshot: Snapshot) -> None:
    """The serial number of a LUN can be changed: one that comes back may find its own taken."""
    taken = {value: lun for lun, _ in moves.restored for value in (lun.serial, lun.naa)}
    for source in moves.returned:
        for value in (decode_text(source.fields["serial"]), source.fields["naa"]):
            if value in taken:
                raise NameTaken(
                    f"LUN {taken[value].name} now has the serial number of {source.name} in snapshot {snapshot.name}: "
                    "change it first"
                )


# --- doing it --------------------------------------------------------------------------------------------------------


def _make(files: FileSystem, moves: _Moves, *, rename: bool) -> None:
    """In memory, all of it: nothing here can fail."""
    for lun in moves.destroyed:
        files.drop_lun(lun)
    if rename:
        # All names are the snapshot's now, so no two can be in each other's way.
        files.luns.clear()
        for lun, source in moves.restored:
            lun.name = source.name
            files.luns[lun.name] = lun
    for lun, source in moves.restored:
        old, backing = lun.inode, lun.backing
        if backing is not None:
            files.linger(lun, backing)
        lun.become(_inode(files, source), source.backing, source.missing)
        files.retire(old)
    slots = iter(sorted(set(range(MAX_LUNS)) - {lun.slot for lun in files.luns.values()}))
    for source in moves.returned:
        lun = _returned(files, source, next(slots))
        files.luns[lun.name] = lun
        files.touch_lun(lun)
    files.set_reserve()
    files.reserve.refresh()


def _inode(files: FileSystem, source: _Source) -> Inode:
    return files.new_inode(InodeType.LUN, source.size_bytes)


def _returned(files: FileSystem, source: _Source, slot: int) -> Lun:
    return files.lun_from(slot, source.fields | inode_fields(_inode(files, source)) | backing_fields(source.backing) | {
        "flags": source.fields["flags"] | VtocFlag.CLONE_REQUESTED, "missing_blocks": source.missing,
    })  # fmt: skip
