"""Repair: what LUNs say of themselves is counted again in their trees."""

from __future__ import annotations

from collections.abc import Mapping

from wafl.errors import WaflError
from wafl.lun import Lun
from wafl.recount import Recount
from wafl.scan import missing_slots
from wafl.volume import Volume


def repair_luns(volume: Volume, data_blocks: Mapping[int, int], *, shared_young: bool) -> list[str]:
    """What was wrong.  `data_blocks`: LUN inode -> what its trees have; `shared_young`: blocks that are shared have
    been taken for private ones by their births, which are to say nothing from now on."""
    core, done = volume.core, []
    for lun in volume.luns():
        done += _repair_data_blocks(volume, lun, data_blocks[lun.inode.number])
        done += _repair_missing(volume, lun)
        done += _repair_private(volume, lun)
    if shared_young:
        volume.files.references.shared_through(core.generation)
        volume.snapshots_table.count_shared()
        done.append("LUNs counted shared blocks as their own alone; no block is, up to now")
    volume.audit.rebase()
    return done


def _repair_data_blocks(volume: Volume, lun: Lun, has: int) -> list[str]:
    had = lun.inode.blocks
    if had == has:
        return []
    lun.inode.blocks = has
    lun.inode.touch(volume.core)
    return [f"LUN {lun.name}: counted {had} data blocks and has {has}"]


def _repair_missing(volume: Volume, lun: Lun) -> list[str]:
    try:
        missing = _missing(lun)
    except (WaflError, OSError):
        return []  # its trees cannot be read: the count stays what it was
    had = lun.missing
    if lun.backing is None or had >= missing:
        return []
    lun.missing = missing
    volume.files.touch_lun(lun)
    return [f"LUN {lun.name}: counted {had} missing blocks and misses {missing}"]


def _missing(lun: Lun) -> int:
    """Blocks that a clone of the LUN still has to fill."""
    total, index = 0, 0
    while (found := lun.next_missing(index)) is not None:
        total += len(missing_slots(lun, found))
        index = found + 1
    return total


def _repair_private(volume: Volume, lun: Lun) -> list[str]:
    """Too many would break the promise to reserved LUNs.  Too few are made good by the next mount if the inode says
    that they may be."""
    inode, core = lun.inode, volume.core
    had, since, exact = inode.private_blocks, inode.private_since, inode.private_exact
    count = Recount(inode, since)
    try:
        while count.slice(core):
            pass
    except (WaflError, OSError):
        inode.recount = None
        return []
    if had == inode.private_blocks or (had < inode.private_blocks and not exact):
        inode.set_private(had, since, exact=exact)
        return []
    return [f"LUN {lun.name}: counted {had} blocks as its own alone and has {inode.private_blocks}"]
