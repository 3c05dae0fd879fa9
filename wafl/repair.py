"""Repair: making again what can be derived from the trees.

- Copies of label and fsinfo whose twin is whole are written over in place: they are damaged, nothing can get worse.
- The active map, the reference counts, the summary and all counters are derived from the trees and written by a
  consistency point like any other. Its blocks go to places that neither the trees nor the old maps know, so until its
  fsinfo is durable the volume is what it was.
- A row of a snapshot's own map or counts is written over in place if what the snapshot's trees say fits the checksum in
  the pointer to it: then it is what was there.
- A snapshot that is being deleted and whose map cannot be read has nothing that anybody wants: its entry goes.

Data, pointers, names and what else snapshots have are never changed. Where a pointer block cannot be read nobody knows
what lies below it: then every block of the old map stays in use too, and without an old map the repair refuses.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from crc32c import crc32c

from wafl.allocator import new_bits
from wafl.bits import Bits, Vbns, are_set, count, set_each, set_range
from wafl.check_files import aligned, shared_private
from wafl.device import Device
from wafl.errors import CannotRepair, CorruptVolume
from wafl.format import (
    ACTIVE_MAP_INODE,
    BLOCK_BYTES,
    BLOCK_SHIFT,
    COUNTS,
    FIRST_DATA_VBN,
    FSINFO,
    HEAD_RING_VBN,
    HOLE,
    LABEL,
    MAP_BITS,
    MAX_COUNT,
    REFERENCE_INODE,
    RING_SLOTS,
    VTOC_INODE,
    EntryState,
    FsinfoFlag,
    InodeType,
    LogPlace,
    decode_text,
    seal,
)
from wafl.labels import Superblock, read_superblock
from wafl.maps import MapFile
from wafl.offline import Fields, Image, Root
from wafl.references import COUNT_SHIFT, SLOT_MASK
from wafl.repair_luns import repair_luns
from wafl.volume import Volume
from wafl.volume_log import read_contents

Counts = tuple[Vbns, npt.NDArray[np.int64]]
"""Blocks, ascending, and the count of each."""


@dataclass(slots=True)
class _Truth:
    """What the trees say."""

    active: Bits
    """Without the blocks of the active map itself."""
    summary: Bits
    """Without its own."""
    keep: Bits
    """Everything that any tree or map, old or new, may use: not to be written over."""
    whole_active: Bits
    """With the active map's own blocks: what a right map would have."""
    whole_summary: Bits
    old_active: Bits | None = None
    old_summary: Bits | None = None
    """The maps as they are on the disk; None if they cannot be read."""
    data_blocks: Counter[int] = field(default_factory=Counter)
    """LUN inode -> its data blocks and those of its graveyards."""
    counts: Counts | None = None
    """What the reference counts have to be; None if there are none."""
    old_counts: Counts | None = None
    """What they are; None if they cannot be read, or do not add up."""
    rows: dict[int, tuple[bytes, str]] = field(default_factory=dict)
    """Blocks of snapshots' maps and counts that cannot be read, what was in them, and whose they are."""
    going: dict[int, str] = field(default_factory=dict)
    """id -> name of the snapshots that are being deleted and whose maps cannot be read."""
    shared_young: bool = False
    """Some LUN counts blocks as its own alone that are shared."""
    next_inode_generation: int = 0
    next_snapshot_id: int = 0


def repair(device: Device, *, dry_run: bool = False) -> list[str]:
    """What was done, or with `dry_run` would be, a line each; empty if nothing had to be.
    Raises CannotRepair, NotAVolume, UnsupportedFeature, NoSpace, OSError."""
    image = Image(device)
    _check_log(image)
    done = _repair_copies(image, dry_run)
    try:
        truth = _Survey(image).run()
        superblock = read_superblock(device, read_only=False)
        done += _repair_rows(device, truth, dry_run)
        done += _repair_counters(superblock, truth)
        volume = _Repaired(device, superblock, truth)
        done += _repair_maps(truth) + _repair_snapshots(volume, truth)
        done += repair_luns(volume, truth.data_blocks, shared_young=truth.shared_young)
        if done and not dry_run:
            device.sync()
            volume.commit_now(clean=bool(image.fsinfo["flags"] & FsinfoFlag.CLEAN))
    except CorruptVolume as error:
        raise CannotRepair(f"{error}; 'wafl salvage' may still copy LUNs off") from error
    return done


def _check_log(image: Image) -> None:
    fsinfo = image.fsinfo
    if fsinfo["log_place"] == LogPlace.SEPARATE:
        if not fsinfo["flags"] & FsinfoFlag.CLEAN:
            raise CannotRepair("the volume's log is on a device of its own and may hold records: mount it once first")
    elif records := read_contents(image.device, None, fsinfo, image.geometry, image.label["uuid"]).records:
        raise CannotRepair(f"the log has {len(records)} records to replay: mount the volume once before it is repaired")


# --- spare copies ----------------------------------------------------------------------------------------------------


def _repair_copies(image: Image, dry_run: bool) -> list[str]:
    done: list[str] = []

    def put(vbn: int, block: bytes, what: str) -> None:
        if not dry_run:
            image.device.pwrite(vbn << BLOCK_SHIFT, (block,))
            image.device.sync()
        done.append(f"block {vbn}: {what} written from its twin")

    for vbn, label in image.labels.items():
        if label is None:
            put(vbn, seal(LABEL, **image.label), "label")
    newest = image.fsinfo["generation"]
    for slot in range(RING_SLOTS):
        twins = HEAD_RING_VBN + slot, image.geometry.tail_ring + slot
        for vbn, other in (twins, twins[::-1]):
            fsinfo = image.slots[other]
            # One from before the volume grew has no twin here.
            ours = fsinfo is not None and fsinfo["volume_blocks"] == image.blocks and fsinfo["generation"] <= newest
            if image.slots[vbn] is None and fsinfo is not None and ours:
                put(vbn, seal(FSINFO, **fsinfo | {"vbn": vbn}), f"fsinfo {fsinfo['generation']}")
    return done


# --- what the trees say ----------------------------------------------------------------------------------------------


class _Survey:
    """One look at all trees."""

    def __init__(self, image: Image) -> None:
        self._image = image
        self._troubles = 0
        image.trouble = self._trouble
        self._old_summary = self._map(Root.of(image.fsinfo, "summary_"))
        self._rows_seen: set[int] = set()
        """Rows of snapshots' maps and counts: most snapshots share most of them."""

    def _trouble(self, what: str, where: str) -> None:
        self._troubles += 1

    def run(self) -> _Truth:
        image = self._image
        blocks, geometry = image.blocks, image.geometry
        keep, fixed = new_bits(blocks), new_bits(blocks)
        set_range(fixed, 0, geometry.head_blocks)
        set_range(fixed, geometry.tail_ring, blocks)
        summary = fixed.copy()
        for vbns in self._tree(Root.of(image.fsinfo, "snapshot_table_"), "the snapshot table"):
            self._add(summary, vbns, "the snapshot table")
        whole_summary = summary.copy()
        truth = _Truth(new_bits(blocks), summary, keep, new_bits(blocks), whole_summary)
        truth.old_summary = self._old_summary
        self._active(truth)
        for vbns in self._quietly(Root.of(image.fsinfo, "summary_")):
            set_each(truth.whole_summary, vbns)
        for entry in image.snapshots():
            self._snapshot(truth, entry)
        truth.whole_summary |= summary
        truth.keep |= truth.whole_active | truth.whole_summary
        if self._old_summary is not None:
            truth.keep |= self._old_summary
        return truth

    def _tree(self, root: Root, what: str) -> list[Vbns]:
        """The blocks of a tree; raises CannotRepair unless all of it can be read."""
        before = self._troubles
        found = self._quietly(root)
        if self._troubles != before:
            raise CannotRepair(f"{what} cannot be read whole, and nothing says what is lost with it")
        return found

    def _quietly(self, root: Root, walked: set[int] | None = None) -> list[Vbns]:
        """The blocks of a tree as far as it can be read; `_troubles` tells.  What has been `walked` is left out."""

        def enter(vbn: int, birth: int) -> bool:
            if walked is None:
                return True
            new = vbn not in walked
            walked.add(vbn)
            return new

        found: list[Vbns] = [np.array([root.vbn], np.uint64)] if root.vbn >= FIRST_DATA_VBN else []
        for node in self._image.walk(root, "", enter):
            found.append(node.vbns[node.data()])
        limit = self._image.blocks
        inside = [vbns[vbns < limit] for vbns in found]
        self._troubles += sum(map(len, found)) - sum(map(len, inside))
        return inside

    def _map(self, root: Root) -> Bits | None:
        """A map's bits; None unless all of it can be read."""
        before = self._troubles
        data = np.frombuffer(self._image.contents(root, ""), np.uint8)
        bits = new_bits(self._image.blocks)
        if self._troubles != before or len(data) > len(bits):
            return None
        bits[: len(data)] = data
        return bits

    def _add(self, bits: Bits, vbns: Vbns, what: str, again: list[Vbns] | None = None) -> None:
        """What is there already goes into `again`, if blocks may be shared there."""
        blocks, times = np.unique(vbns, return_counts=True)
        more = times - ~are_set(bits, blocks)
        if again is not None:
            again.append(np.repeat(blocks, more))
        elif more.any():
            raise CannotRepair(f"{what} reaches a block that is used twice: repair cannot tell whose it is")
        set_each(bits, blocks)

    def _active(self, truth: _Truth) -> None:
        image = self._image
        ifile = Root.of(image.fsinfo, "ifile_")
        for vbns in self._tree(ifile, "the inode file"):
            self._add(truth.active, vbns, "the inode file")
        inodes = self._inodes(ifile, "the inode file")
        again = [np.empty(0, np.uint64)] if REFERENCE_INODE in inodes else None
        broken, walked = False, set[int]()
        for number, inode in inodes.items():
            self._note_generation(truth, inode)
            before = self._troubles
            trees = self._quietly(Root.of(inode), walked if again is not None else None)
            if number in (ACTIVE_MAP_INODE, REFERENCE_INODE):
                for vbns in trees:
                    set_each(truth.whole_active, vbns)
                continue
            broken |= self._troubles != before
            for vbns in trees:
                self._add(truth.active, vbns, f"inode {number}", None if number == VTOC_INODE else again)
        self._count(truth, inodes)
        if again is not None:
            self._references(truth, inodes, np.concatenate(again), broken=broken)
        old = self._map(Root.of(inodes[ACTIVE_MAP_INODE])) if ACTIVE_MAP_INODE in inodes else None
        if broken:
            if old is None:
                raise CannotRepair("a pointer block cannot be read, and neither can the active map: salvage the LUNs")
            own = truth.whole_active.copy()
            truth.active |= old & ~own
        if (truth.active & (truth.whole_active | truth.summary)).any():
            raise CannotRepair("a file reaches blocks of a map or of the volume: repair cannot tell whose they are")
        truth.whole_active |= truth.active
        truth.old_active = old
        if old is not None:
            truth.keep |= old

    def _references(self, truth: _Truth, inodes: dict[int, Fields], again: Vbns, *, broken: bool) -> None:
        """Where trees are broken, what they reach may have more pointers than are seen."""
        before, inode = self._troubles, inodes[REFERENCE_INODE]
        old, counts = self._image.counts(Root.of(inode), "")
        readable = self._troubles == before
        if readable and int(counts.sum(dtype=np.int64)) == inode["private_blocks"]:
            truth.old_counts = old, counts.astype(np.int64)
        if broken and not readable:
            raise CannotRepair(
                "a pointer block cannot be read, and neither can the reference counts: salvage the LUNs"
            )
        every, has, seen = aligned(old, counts, *np.unique(again, return_counts=True))
        right = np.maximum(has, seen) if broken else seen
        right = np.minimum(right, MAX_COUNT)
        truth.counts = every[right > 0], right[right > 0]
        luns = [each for each in inodes.values() if each["type"] == InodeType.LUN]
        truth.shared_young = any(
            each["private_since"] >= inode["private_since"]
            and any(shared_private(self._image, each, truth.counts[0], ""))
            for each in luns
        )

    def _inodes(self, ifile: Root, what: str) -> dict[int, Fields]:
        before = self._troubles
        found = self._image.inodes(ifile, "")
        if self._troubles != before:
            raise CannotRepair(f"{what} cannot be read whole, and nothing says what is lost with it")
        return found

    def _note_generation(self, truth: _Truth, inode: Fields) -> None:
        truth.next_inode_generation = max(truth.next_inode_generation, inode["generation"] + 1)

    def _count(self, truth: _Truth, inodes: dict[int, Fields]) -> None:
        for number, inode in inodes.items():
            blocks = self._image.counted(Root.of(inode), "")
            owner = inodes.get(inode["owner"])
            if inode["type"] == InodeType.LUN:
                truth.data_blocks[number] += blocks
            elif owner is not None and owner["generation"] == inode["owner_generation"]:
                truth.data_blocks[inode["owner"]] += blocks

    def _snapshot(self, truth: _Truth, entry: Fields) -> None:
        name = f"snapshot {decode_text(entry['name'])}"
        truth.next_snapshot_id = max(truth.next_snapshot_id, entry["id"] + 1)
        before = self._troubles
        ifile = Root.of(entry, "ifile_")
        inodes = self._image.inodes(ifile, "")
        broken = self._troubles != before
        old = self._map(Root.of(inodes[ACTIVE_MAP_INODE])) if ACTIVE_MAP_INODE in inodes else None
        if entry["state"] == EntryState.DELETING:
            # What has been given back already may be in here too: reclaim goes over it again.
            if old is None:
                truth.going[entry["id"]] = name
                return
            truth.summary |= old if self._old_summary is None else old & self._old_summary
            truth.keep |= old
            return
        reached = new_bits(self._image.blocks)
        again: list[Vbns] | None = [np.empty(0, np.uint64)] if REFERENCE_INODE in inodes else None
        walked = set[int]() if again is not None else None
        before = self._troubles
        for root in (ifile, *map(Root.of, inodes.values())):
            for vbns in self._quietly(root, walked):
                self._add(reached, vbns, name, again)
        broken |= self._troubles != before
        for inode in inodes.values():
            self._note_generation(truth, inode)
        if not broken:
            self._rows_of_snapshot(truth, name, inodes, reached if old is None else None, again)
        elif old is None:
            if self._old_summary is None:
                raise CannotRepair(f"{name} cannot be read whole, nor its map, nor the summary")
            reached |= self._old_summary & ~truth.whole_summary
        truth.summary |= reached if old is None else reached | old

    def _rows_of_snapshot(
        self, truth: _Truth, name: str, inodes: dict[int, Fields], reached: Bits | None, again: list[Vbns] | None
    ) -> None:
        """What a snapshot's trees say that is in those rows of its map (None: all of that can be read) and counts that
        cannot be read."""
        if reached is not None and ACTIVE_MAP_INODE in inodes:
            def bits(row: int) -> bytes:
                return reached[row * BLOCK_BYTES : (row + 1) * BLOCK_BYTES].tobytes()

            self._rows(truth, Root.of(inodes[ACTIVE_MAP_INODE]), f"the map of {name}", bits)
        if again is not None:
            blocks, times = np.unique(np.concatenate(again), return_counts=True)

            def counts(row: int) -> bytes:
                here = (blocks >> COUNT_SHIFT) == row
                found = np.zeros(COUNTS, "<u2")
                found[(blocks[here] & SLOT_MASK).astype(np.intp)] = np.minimum(times[here], MAX_COUNT)
                return found.tobytes()

            self._rows(truth, Root.of(inodes[REFERENCE_INODE]), f"the reference counts of {name}", counts)

    def _rows(self, truth: _Truth, root: Root, what: str, derived: Callable[[int], bytes]) -> None:
        for node in self._image.walk(root, ""):
            for slot in node.data().tolist() if node.level == 1 else ():
                vbn, crc = int(node.vbns[slot]), int(node.crcs[slot])
                if vbn >= self._image.blocks or vbn in self._rows_seen:
                    continue
                if self._image.load(vbn, crc, "") is None:
                    row = derived(node.first_fbn + slot)
                    if crc32c(row) != crc:
                        continue
                    truth.rows[vbn] = row, what
                self._rows_seen.add(vbn)


# --- writing it ------------------------------------------------------------------------------------------------------


class _Repaired(Volume):
    """A volume that has its maps from the survey, and writes both anew."""

    def __init__(self, device: Device, superblock: Superblock, truth: _Truth) -> None:
        self._truth = truth
        super().__init__(device, superblock, read_only=False, cache_bytes=64 << 20, clock=time.time)

    def _load(self) -> None:
        core, allocator, truth = self.core, self.core.allocator, self._truth
        fsinfo = self.superblock.fsinfo
        assert fsinfo is not None
        self.summary = MapFile(core, self._summary_inode(None))
        self.snapshots_table.load()
        self.files.load()
        inode = self.files.inodes[ACTIVE_MAP_INODE]
        inode.vbns[0], inode.crcs[0], inode.births[0] = HOLE, 0, 0
        inode.touch(core)
        counted = self.files.references.rebuild(*truth.counts) if truth.counts is not None else 0
        allocator.active[:], allocator.summary[:] = truth.active, truth.summary
        allocator.take_stock(fsinfo["allocation_hint"])
        allocator.busy |= truth.keep
        used = np.bitwise_count(allocator.busy.reshape(-1, BLOCK_BYTES)).sum(axis=1, dtype=np.int32)
        allocator.chunk_free[:] = MAP_BITS - used
        allocator.free = int(allocator.chunk_free.sum(dtype=np.int64))
        for bits, dirty in (
            (allocator.active, allocator.dirty_active), (allocator.summary, allocator.dirty_summary)
        ):  # fmt: skip
            dirty.update(np.flatnonzero(bits.reshape(-1, BLOCK_BYTES).any(axis=1)).tolist())
        rows = len(allocator.dirty_active) + len(allocator.dirty_summary) + counted
        core.ensure(2 * rows + 64, 0, wait=False)


def _repair_rows(device: Device, truth: _Truth, dry_run: bool) -> list[str]:
    """In place: it is what the checksum in each pointer to them stands for."""
    for vbn, (row, _) in () if dry_run else truth.rows.items():
        device.pwrite(vbn << BLOCK_SHIFT, (row,))
    return [f"block {vbn}: a row of {what} written again" for vbn, (_, what) in truth.rows.items()]


def _repair_snapshots(volume: Volume, truth: _Truth) -> list[str]:
    for number in truth.going:
        volume.snapshots_table.drop(volume.snapshots_table.deleting[number])
    return [f"{name}: its map could not be read; it was being deleted, and is gone" for name in truth.going.values()]


def _repair_counters(superblock: Superblock, truth: _Truth) -> list[str]:
    fsinfo: dict[str, Any] | None = superblock.fsinfo
    assert fsinfo is not None
    done = []
    for name, least in (
        ("next_inode_generation", truth.next_inode_generation), ("next_snapshot_id", truth.next_snapshot_id),
    ):  # fmt: skip
        if fsinfo[name] < least:
            done.append(f"fsinfo: {name} was {fsinfo[name]} and is {least}")
            fsinfo[name] = least
    for name, bits in (("active_blocks", truth.whole_active), ("summary_blocks", truth.whole_summary)):
        if fsinfo[name] != count(bits):
            done.append(f"fsinfo: {name} was {fsinfo[name]} where the trees have {count(bits)}; counted again")
    return done


def _repair_maps(truth: _Truth) -> list[str]:
    done = []
    for name, old, right in (
        ("active map", truth.old_active, truth.whole_active), ("summary", truth.old_summary, truth.whole_summary),
    ):  # fmt: skip
        if old is None:
            done.append(f"{name}: could not be read; made again")
        elif differ := count(old ^ right):
            done.append(f"{name}: {differ} blocks were wrong; made again")
    if truth.counts is not None and truth.old_counts is None:
        done.append("reference counts: could not be read, or did not add up; made again")
    elif truth.counts is not None and truth.old_counts is not None:
        _, was, is_right = aligned(*truth.old_counts, *truth.counts)
        if differ := int(np.count_nonzero(was != is_right)):
            done.append(f"reference counts: {differ} blocks were wrong; made again")
    return done
