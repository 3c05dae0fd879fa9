"""Making LUNs: one, or many from one parent at once.

One is a record in the log.  Many are all there after a crash, or none: nothing of them is logged, they are in memory,
then in one consistency point, and nobody comes in between (as a restore, wafl.restore).
"""

from __future__ import annotations

import uuid as uuids
from collections.abc import Sequence
from typing import TYPE_CHECKING

from wafl.errors import ChainTooDeep, InvalidSize, LimitReached, NameTaken
from wafl.filesystem import check_lun_size
from wafl.format import MAX_CHAIN_DEPTH, MAX_LUNS, check_lun_name
from wafl.identity import identities, new_identity
from wafl.lun import Lun
from wafl.reserve import NEW_LUN_BLOCKS
from wafl.types import Backing, LunRecord

if TYPE_CHECKING:
    from wafl.volume import Volume

Parent = tuple[Backing, LunRecord, int]
"""What a LUN reads through, its parent's record, the blocks that it misses at most."""


def make_lun(
    volume: Volume, name: str, size_bytes: int | None, *, parent: Parent | None, ostype: str, reserved: bool | None,
    comment: str, block_bytes: int | None = None, uuid: uuids.UUID | None = None,
    taken: set[str | bytes] | None = None,
) -> Lun:  # fmt: skip
    """`Volume.create_lun`, with the backing looked up.  `taken`: identities of all LUNs, where many are made."""
    found, missing, parent_bytes = None, 0, 0
    if parent is not None:
        found, record, missing = parent
        parent_bytes = record.size_bytes
        size_bytes = parent_bytes if size_bytes is None else size_bytes
        block_bytes = block_bytes or record.block_bytes
        reserved = record.reserved if reserved is None else reserved
    if size_bytes is None:
        raise InvalidSize("a LUN without a backing needs a size")
    block_bytes = block_bytes or 512
    check_lun_size(size_bytes, block_bytes)
    # A smaller clone: its last block must end in zeros, so it is made full size and shrunk.
    full = found.limit_bytes if found is not None and size_bytes < parent_bytes else size_bytes
    taken = identities(volume.files.luns.values()) if taken is None else taken
    uuid, serial, naa = new_identity(taken, uuid)
    lun = volume.files.create_lun(
        name, full, uuid=uuid, serial=serial, naa=naa, ostype=ostype, reserved=bool(reserved), comment=comment,
        block_bytes=block_bytes, created_us=volume.now_us(), backing=found, missing=missing,
    )  # fmt: skip
    if full != size_bytes:
        try:
            lun.resize(size_bytes)
        except Exception:
            volume.files.destroy_lun(name)
            raise
    return lun


def find_parent(volume: Volume, name: str, backing: tuple[str, str]) -> Parent:
    """What a LUN made from (snapshot name, LUN name in it) would read through.
    Raises NoSuchSnapshot, NoSuchLun, ChainTooDeep."""
    parent = volume.snapshots_table.backing_for(*backing)
    if volume.snapshots_table.depth(parent[0]) > MAX_CHAIN_DEPTH:
        raise ChainTooDeep(name, MAX_CHAIN_DEPTH)
    return parent


def create_luns(
    volume: Volume, names: Sequence[str], backing: tuple[str, str], *, ostype: str = "linux",
    reserved: bool | None = None, comment: str = "",
) -> list[Lun]:  # fmt: skip
    """One LUN of each name, all made from the same LUN in a snapshot, as `Volume.create_lun` makes one.  All of them or
    none, over a crash too.  Durable on return: waits for the disk.
    Raises what `Volume.create_lun` raises, having made none, and VolumeFailed."""
    core, files = volume.core, volume.files
    core.check_changeable()
    if not names:
        return []
    parent = find_parent(volume, names[0], backing)
    if len(set(names)) < len(names):
        raise NameTaken("a name is there twice")
    for name in names:
        check_lun_name(name)
        if name in files.luns:
            raise NameTaken(f"there is a LUN {name} already")
    if len(files.luns) + len(names) > MAX_LUNS:
        raise LimitReached(f"a volume holds {MAX_LUNS} LUNs, and has {len(files.luns)}: no room for {len(names)} more")
    _check_room(volume, len(names), parent[1], reserved)
    log, relieve = core.log, core.relieve
    # Until all are there: no record, and no consistency point to make room.
    core.log, core.relieve = None, lambda: False
    made: list[Lun] = []
    taken = identities(files.luns.values())
    try:
        for name in names:
            made.append(
                make_lun(volume, name, None, parent=parent, ostype=ostype, reserved=reserved, comment=comment,
                         taken=taken)
            )  # fmt: skip
    except BaseException:
        for lun in made:
            files.destroy_lun(lun.name)
        raise
    finally:
        core.log, core.relieve = log, relieve
    if log is not None:
        log.do_without()
    else:
        volume.commit_now()
    return made


def _check_room(volume: Volume, count: int, parent: LunRecord, reserved: bool | None) -> None:
    reserve = volume.files.reserve
    blocks = (count + 1) * NEW_LUN_BLOCKS
    if parent.reserved if reserved is None else reserved:
        blocks += count * reserve.needed_by_new(parent.size_bytes) + reserve.first_working_room()
    reserve.check_room(
        blocks, f"space for {count} LUNs",
        "make fewer, make them with -o noreserve, delete a snapshot or a LUN, or grow the volume",
    )  # fmt: skip
