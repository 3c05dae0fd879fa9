"""The checker: is every block of a volume reachable exactly as the maps say, or free, and never both?

It walks the active file system and every snapshot on the device, as the last durable consistency point left
them, and compares what it reaches with the active map, each snapshot's own map, the summary and the counters; how
often it reaches a block, with the reference counts beside each map; then the vtocs with the inodes, and every backing
with the snapshot it names.  It never writes, and it never stops at the first fault: each one is a Finding.

    check(device)            a volume that nobody has mounted
    check_volume(volume)     the last durable state of a mounted one, on the volume's thread
    VolumeService.check()    the same in a thread, while hosts go on: what is freed meanwhile is not reused before the
                             check has ended

A snapshot that is being reclaimed is half gone on purpose: its blocks may or may not be in the summary, and only
its record is looked at.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from wafl.check_files import shared_private, some, wrong_end, wrong_private, wrong_references
from wafl.device import Device
from wafl.errors import NotAVolume, WaflError
from wafl.format import (
    ACTIVE_MAP_INODE,
    BLOCK_BYTES,
    FIRST_DATA_VBN,
    FIRST_INODE,
    KNOWN_INCOMPAT,
    MAX_CHAIN_DEPTH,
    REFERENCE_INODE,
    VTOC_INODE,
    EntryState,
    FsinfoFlag,
    InodeType,
    LogPlace,
    decode_text,
)
from wafl.offline import Fields, Image, Node, Root
from wafl.volume_log import read_contents

if TYPE_CHECKING:
    from wafl.volume import Volume

Bits = npt.NDArray[np.bool_]
Vbns = npt.NDArray[np.uint64]

FIXED = {
    VTOC_INODE: InodeType.VTOC, ACTIVE_MAP_INODE: InodeType.ACTIVE_MAP, REFERENCE_INODE: InodeType.REFERENCE_COUNTS,
}  # fmt: skip
"""Files of which no block is ever shared."""


class Severity(IntEnum):
    NOTE = 0
    """Worth knowing; nothing is wrong."""
    WARNING = 1
    """A spare copy is damaged, or space is lost; no data is at risk."""
    ERROR = 2


@dataclass(frozen=True, slots=True)
class Finding:
    severity: Severity
    what: str
    where: str

    def __str__(self) -> str:
        return f"{self.severity.name.lower()}: {self.where}: {self.what}"


class _Stopped(Exception):
    pass


def check(device: Device, *, data: bool = True, stop: Callable[[], str] = lambda: "") -> list[Finding]:
    """All findings about the volume on `device`.  Without `data` only metadata blocks are read.  `stop` is asked now
    and then: a reason ends the check early, with a note that says so.  What the log has is looked at too, but not taken
    into account: the findings are about the last consistency point."""
    return prepare_check(device, data=data, stop=stop, log=True)()


def prepare_check(
    device: Device, *, data: bool = True, stop: Callable[[], str] = lambda: "", log: bool = False
) -> Callable[[], list[Finding]]:
    """Read labels and fsinfo now, at one moment of a mounted volume; the function that does the rest may run in a
    thread, while the volume is `held` (but not with `log`: that is being written)."""
    findings: list[Finding] = []
    try:
        image = Image(device, lambda what, where: findings.append(Finding(Severity.ERROR, what, where)))
    except NotAVolume as error:
        found = [Finding(Severity.ERROR, str(error), "volume")]
        return lambda: found

    def run() -> list[Finding]:
        try:
            _Check(image, findings, data, stop).run()
            if log:
                findings.extend(log_findings(image))
        except _Stopped as reason:
            findings.append(Finding(Severity.NOTE, f"the check was not finished: {reason}", "volume"))
        return findings

    return run


def log_findings(image: Image) -> list[Finding]:
    """What the log region has that a mount would replay."""
    if image.fsinfo["log_place"] == LogPlace.SEPARATE:
        if image.fsinfo["flags"] & FsinfoFlag.CLEAN:
            return []
        return [Finding(Severity.NOTE, "is on a device of its own and was not looked at", "log")]
    try:
        contents = read_contents(image.device, None, image.fsinfo, image.geometry, image.label["uuid"])
    except (WaflError, OSError) as error:
        return [Finding(Severity.ERROR, str(error), "log")]
    found = []
    if contents.records:
        found.append(Finding(Severity.NOTE, f"{len(contents.records)} records for the next mount to replay", "log"))
    if contents.ended_by:
        found.append(Finding(Severity.NOTE, f"ends early: {contents.ended_by}", "log"))
    return found


def check_volume(volume: Volume, *, data: bool = True) -> list[Finding]:
    """The same for the last durable consistency point of a mounted volume, on the volume's own thread."""
    return check(volume.device, data=data)


SPARE_PARTS = 64


def short_of_space(volume: Volume) -> str:
    """Why a check of a mounted volume should end: it keeps freed blocks from being used, and they are needed.
    For any thread: reads a few numbers and changes nothing."""
    allocator = volume.core.allocator
    spare = allocator.free + allocator.end - allocator.next - allocator.floor_guest
    short = allocator.freeing and spare < allocator.blocks // SPARE_PARTS
    return "hosts need the space that it keeps from being used again" if short else ""


@dataclass(slots=True)
class _View:
    """One file system: the active one, or a snapshot's."""

    where: str
    snapshot_id: int
    generation: int
    ifile: Root
    inodes: dict[int, Fields]
    vtoc: list[Fields]
    reached: Bits
    map: Bits
    spare: Vbns | slice
    """Blocks that may be in the map for their counts' sake alone."""

    def let_go(self) -> _View:
        """The maps of 255 snapshots are not kept at once."""
        self.reached = self.map = np.zeros(0, bool)
        return self


class _Check:
    def __init__(self, image: Image, findings: list[Finding], data: bool, stop: Callable[[], str]) -> None:
        self.stop = stop
        self.image = image
        self.findings = findings
        self.data = data
        self.blocks = image.blocks
        self.own = np.zeros(self.blocks, bool)
        geometry = image.geometry
        self.own[: geometry.head_blocks] = True
        self.own[geometry.tail_ring :] = True
        self.first_free_vbn = geometry.head_blocks
        self.end_vbn = geometry.tail_ring
        self.names: dict[int, str] = {}
        self.walked: set[int] = set()
        self.shares = False
        self.luns: dict[int, str] = {}
        """inode -> LUN, of the view that is being looked at."""

    def say(self, severity: Severity, what: str, where: str) -> None:
        self.findings.append(Finding(severity, what, where))

    def wrong(self, what: str, where: str) -> None:
        self.say(Severity.ERROR, what, where)

    def all_wrong(self, found: Iterable[str], where: str) -> None:
        for what in found:
            self.wrong(what, where)

    # -- the order of work

    def run(self) -> None:
        self.check_copies()
        if self.blocks > self.image.device_blocks:
            self.wrong(f"{self.blocks} blocks on a device of {self.image.device_blocks}", "fsinfo")
            return
        table = self.image.snapshots()
        self.names = {entry["id"]: decode_text(entry["name"]) for entry in table}
        own_trees = self.own.copy()
        for name in ("summary", "snapshot_table"):
            root = Root.of(self.image.fsinfo, f"{name}_")
            self.walk(root, name.replace("_", " "), own_trees, self.image.fsinfo["generation"])
        self.own = own_trees
        self.must = self.own.copy()
        views = [self.view_of_snapshot(entry) for entry in table if entry["state"] == EntryState.LIVE]
        active = self.active_view()
        self.check_snapshot_table(table)
        self.check_active(active)
        self.check_summary([entry for entry in table if entry["state"] == EntryState.DELETING])
        for view in (active, *views):
            self.check_vtoc(view)
            self.check_backings(view, {other.snapshot_id: other for other in views})

    # -- label, fsinfo

    def check_copies(self) -> None:
        for vbn, label in self.image.labels.items():
            if label is None:
                self.say(Severity.WARNING, "this copy of the label is damaged", f"block {vbn}")
            elif label != self.image.label:
                self.say(Severity.WARNING, "the copies of the label differ", f"block {vbn}")
        if unknown := self.image.label["incompat"] & ~KNOWN_INCOMPAT:
            self.wrong(f"unknown incompatible features {unknown:#x}", "label")
        generation = self.image.fsinfo["generation"]
        newest = {vbn for vbn, slot in self.image.slots.items() if slot and slot["generation"] == generation}
        for vbn in set(self.image.geometry.fsinfo_vbns(generation)) - newest:
            self.say(Severity.WARNING, f"this copy of fsinfo {generation} is missing or damaged", f"block {vbn}")

    # -- trees

    def walk(self, root: Root, where: str, reached: Bits, generation: int, again: list[Vbns] | None = None) -> int:
        """Mark every block of a tree in `reached`; the number of data blocks in it.  What is reached more than once is
        wrong, or goes into `again`, as often as it is too often."""
        count = 0
        if root.vbn >= FIRST_DATA_VBN:
            self.mark(np.array([root.vbn], np.uint64), where, reached, again)
        if root.birth > generation:
            self.wrong(f"root born in {root.birth}, after consistency point {generation}", where)
        enter = (lambda vbn, birth: True) if again is None else self.not_walked
        for node in self.image.walk(root, where, enter):
            if reason := self.stop():
                raise _Stopped(reason)
            children = node.data()
            self.mark(node.vbns[children], f"{where}, below block {node.vbn}", reached, again)
            self.check_node(node, root, where)
            if node.level == 1:
                count += children.size
                if self.data:
                    self.image.verify_data(node, where)
        return count

    def not_walked(self, vbn: int, birth: int) -> bool:
        """A pointer block that several trees of a file system name is walked once."""
        if vbn in self.walked:
            return False
        self.walked.add(vbn)
        return True

    def mark(self, vbns: Vbns, where: str, reached: Bits, again: list[Vbns] | None) -> None:
        inside = (vbns >= self.first_free_vbn) & (vbns < self.end_vbn)
        if not inside.all():
            self.wrong(f"pointers to {some(vbns[~inside])}, where no data can be", where)
            vbns = vbns[inside]
        blocks, times = np.unique(vbns, return_counts=True)
        more = times - ~reached[blocks]
        if more.any():
            twice = np.repeat(blocks, more)
            if again is None:
                self.wrong(f"blocks {some(twice)} are reached twice", where)
            else:
                again.append(twice)
        reached[blocks] = True

    def check_node(self, node: Node, root: Root, where: str) -> None:
        children = node.data()
        if node.birth and (node.births[children] > node.birth).any():
            self.wrong(f"block {node.vbn} has children younger than itself", where)
        # A shrunk file may keep pointer blocks behind its end, but no data.
        if node.level == 1 and (children >= root.blocks - node.first_fbn).any():
            self.wrong(f"block {node.vbn} points at data behind the end of the file", where)

    # -- file systems

    def active_view(self) -> _View:
        fsinfo = self.image.fsinfo
        return self.view("active file system", 0, fsinfo["generation"], Root.of(fsinfo, "ifile_"))

    def view_of_snapshot(self, entry: Fields) -> _View:
        where = f"snapshot {decode_text(entry['name'])!r}"
        view = self.view(where, entry["id"], entry["generation"], Root.of(entry, "ifile_"))
        self.compare(view, "in the snapshot's map")
        if (count := int(view.map.sum())) != entry["active_blocks"]:
            self.wrong(f"its record counts {entry['active_blocks']} blocks, its map {count}", where)
        self.must |= view.map
        return view.let_go()

    def view(self, where: str, snapshot_id: int, generation: int, ifile: Root) -> _View:
        reached = np.zeros(self.blocks, bool)
        self.walk(ifile, f"{where}, inode file", reached, generation)
        inodes = self.image.inodes(ifile, f"{where}, inode file")
        vtoc: list[Fields] = []
        bits = np.zeros(self.blocks, bool)
        if VTOC_INODE in inodes:
            vtoc = self.image.vtoc(Root.of(inodes[VTOC_INODE]), f"{where}, vtoc")
        self.luns = {entry["inode"]: decode_text(entry["name"]) for entry in vtoc}
        again: list[Vbns] = [np.empty(0, np.uint64)]
        self.shares, self.walked = REFERENCE_INODE in inodes, set()
        counts = {
            number: self.check_inode(number, inode, where, reached, generation, again)
            for number, inode in sorted(inodes.items())
        }
        self.check_counts(inodes, counts, where)
        counts_where = f"{where}, reference counts"
        found = wrong_references(self.image, inodes.get(REFERENCE_INODE), np.concatenate(again), counts_where)
        # Nobody goes by a snapshot's counts, and what it holds beyond its trees, for want of some, goes with it.
        excused = bool(snapshot_id and found.full.size)
        spare = slice(None) if excused else found.full
        self.all_wrong(() if excused else found.errors, counts_where)
        if found.full.size:
            what = f"full for blocks {some(found.full)}: they are not given back before a repair"
            self.say(Severity.NOTE if excused else Severity.WARNING, what, counts_where)
        if not snapshot_id and REFERENCE_INODE in inodes:
            self.check_shared(inodes, np.unique(np.concatenate(again)))
        if ACTIVE_MAP_INODE in inodes:
            bits = self.image.map_bits(Root.of(inodes[ACTIVE_MAP_INODE]), f"{where}, active map")
            if bits[self.blocks :].any():
                self.wrong("bits behind the end of the volume", f"{where}, active map")
            bits = bits[: self.blocks]
        else:
            self.wrong("there is no active map", where)
        return _View(where, snapshot_id, generation, ifile, inodes, vtoc, reached, bits, spare)

    def check_inode(
        self, number: int, inode: Fields, where: str, reached: Bits, generation: int, again: list[Vbns]
    ) -> int:
        """The inode's fields and its tree; the number of data blocks in it."""
        here = self.inode_name(number, where)
        if inode["number"] != number:
            self.wrong(f"calls itself {inode['number']}", here)
        if inode["generation"] >= self.image.fsinfo["next_inode_generation"]:
            self.wrong(f"generation {inode['generation']} was never given out", here)
        wanted = (FIXED[number],) if number in FIXED else (InodeType.LUN, InodeType.ZOMBIE)
        if inode["type"] not in wanted or (number not in FIXED and number < FIRST_INODE):
            self.wrong(f"type {inode['type']} does not belong here", here)
        count = self.walk(Root.of(inode), here, reached, generation, None if number in FIXED else again)
        if number not in FIXED and self.shares:
            count = self.image.counted(Root.of(inode), here)
        if inode["type"] == InodeType.LUN:
            self.all_wrong(wrong_private(self.image, inode, here), here)
        if self.data and inode["type"] == InodeType.LUN:
            self.all_wrong(wrong_end(self.image, inode, here), here)
        return count

    def check_counts(self, inodes: dict[int, Fields], counts: dict[int, int], where: str) -> None:
        """A LUN counts its own data blocks and those that wait in its graveyards."""
        buried: Counter[tuple[int, int]] = Counter()
        for number, inode in inodes.items():
            if inode["type"] == InodeType.ZOMBIE and inode["owner"]:
                buried[inode["owner"], inode["owner_generation"]] += counts[number]
        for number, inode in inodes.items():
            has = counts[number] + buried[number, inode["generation"]]
            if inode["type"] == InodeType.LUN and inode["blocks"] != has:
                self.wrong(f"counts {inode['blocks']} data blocks and has {has}", self.inode_name(number, where))

    def check_shared(self, inodes: dict[int, Fields], shared: Vbns) -> None:
        """No LUN counts a shared block as its own alone."""
        since = inodes[REFERENCE_INODE]["private_since"]
        for number, inode in inodes.items():
            # An older figure says nothing: nothing is private until it has been counted anew.
            if inode["type"] == InodeType.LUN and inode["private_since"] >= since:
                here = self.inode_name(number, "active file system")
                self.all_wrong(shared_private(self.image, inode, shared, here), here)

    def inode_name(self, number: int, where: str) -> str:
        named = f" (LUN {self.luns[number]!r})" if number in self.luns else ""
        return f"{where}, inode {number}{named}"

    # -- maps and counters

    def compare(self, view: _View, mapped: str) -> None:
        unmapped, unreached = view.reached & ~view.map, view.map & ~view.reached
        unreached[view.spare] = False
        for bits, yes, no in ((unmapped, "reachable", mapped), (unreached, mapped, "reachable")):
            if bits.any():
                self.wrong(f"blocks {some(np.flatnonzero(bits))} are {yes} but not {no}", view.where)

    def check_active(self, active: _View) -> None:
        self.compare(active, "in the active map")
        self.check_counter("active_blocks", active.map)
        if (both := active.map & self.own).any():
            self.wrong(f"blocks {some(np.flatnonzero(both))} are the volume's own and in use", active.where)

    def check_summary(self, deleting: list[Fields]) -> None:
        bits = self.image.map_bits(Root.of(self.image.fsinfo, "summary_"), "summary")[: self.blocks]
        must, may = self.must, self.must.copy()
        for entry in deleting:
            may |= self.map_of_deleting(entry)
        if (lacking := must & ~bits).any():
            self.wrong(f"blocks {some(np.flatnonzero(lacking))} are in use but not in it", "summary")
        if (extra := bits & ~may).any():
            self.wrong(f"blocks {some(np.flatnonzero(extra))} are in it and nothing uses them", "summary")
        self.check_counter("summary_blocks", bits)

    def map_of_deleting(self, entry: Fields) -> Bits:
        where = f"snapshot {decode_text(entry['name'])!r} (being deleted)"
        inodes = self.image.inodes(Root.of(entry, "ifile_"), where)
        if ACTIVE_MAP_INODE not in inodes:
            self.wrong("its map is gone before its record", where)
            return np.zeros(self.blocks, bool)
        return self.image.map_bits(Root.of(inodes[ACTIVE_MAP_INODE]), where)[: self.blocks]

    def check_counter(self, name: str, bits: Bits) -> None:
        if (count := int(bits.sum())) != self.image.fsinfo[name]:
            self.wrong(f"{name} is {self.image.fsinfo[name]}, the map has {count}", "fsinfo")

    # -- tables

    def check_snapshot_table(self, table: list[Fields]) -> None:
        where = "snapshot table"
        self.unique((entry["id"] for entry in table), "snapshot id", where)
        live = [entry for entry in table if entry["state"] == EntryState.LIVE]
        self.unique((decode_text(entry["name"]) for entry in live), "snapshot name", where)
        for entry in table:
            here = f"{where}, {decode_text(entry['name'])!r}"
            if entry["id"] >= self.image.fsinfo["next_snapshot_id"]:
                self.wrong(f"id {entry['id']} was never given out", here)
            if entry["generation"] > self.image.fsinfo["generation"]:
                self.wrong(f"made by consistency point {entry['generation']}, which has not been", here)

    def check_vtoc(self, view: _View) -> None:
        where = f"{view.where}, vtoc"
        self.unique((decode_text(entry["name"]) for entry in view.vtoc), "LUN name", where)
        self.unique((str(uuid.UUID(bytes=entry["uuid"])) for entry in view.vtoc), "LUN UUID", where)
        self.unique((entry["naa"].hex() for entry in view.vtoc), "LUN NAA", where)
        self.unique((entry["inode"] for entry in view.vtoc), "inode", where)
        for entry in view.vtoc:
            self.check_entry(view, entry)
        luns = {number for number, inode in view.inodes.items() if inode["type"] == InodeType.LUN}
        for number in sorted(luns - {entry["inode"] for entry in view.vtoc}):
            self.wrong(f"inode {number} is a LUN that the vtoc does not name", where)

    def check_entry(self, view: _View, entry: Fields) -> None:
        where = f"{view.where}, LUN {decode_text(entry['name'])!r}"
        inode = view.inodes.get(entry["inode"])
        if inode is None or inode["type"] != InodeType.LUN:
            self.wrong(f"inode {entry['inode']} is not a LUN's", where)
            return
        for key, of_inode in (("inode_generation", "generation"), ("size_bytes", "size_bytes")):
            if entry[key] != inode[of_inode]:
                self.wrong(f"{key} {entry[key]} differs from the inode's {inode[of_inode]}", where)

    def unique(self, values: Iterable[object], what: str, where: str) -> None:
        for value, count in Counter(values).items():
            if count > 1:
                self.wrong(f"{what} {value} is there {count} times", where)

    # -- backings

    def check_backings(self, view: _View, snapshots: dict[int, _View]) -> None:
        for entry in view.vtoc:
            where = f"{view.where}, LUN {decode_text(entry['name'])!r}"
            seen = {view.snapshot_id}
            here, depth = entry, 0
            while here["backing_snapshot"]:
                if here["backing_limit_bytes"] % BLOCK_BYTES:
                    self.wrong(f"limit {here['backing_limit_bytes']} is not a whole number of blocks", where)
                parent = self.parent_of(here, snapshots, where)
                if parent is None:
                    break
                depth += 1
                if here["backing_snapshot"] in seen or depth > MAX_CHAIN_DEPTH:
                    self.wrong(f"its chain of backings is circular or deeper than {MAX_CHAIN_DEPTH}", where)
                    break
                seen.add(here["backing_snapshot"])
                here = parent

    def parent_of(self, entry: Fields, snapshots: dict[int, _View], where: str) -> Fields | None:
        """The vtoc entry, inside its backing snapshot, of what a LUN reads through."""
        view = snapshots.get(entry["backing_snapshot"])
        if view is None:
            self.wrong(f"its backing, snapshot {entry['backing_snapshot']}, is not there", where)
            return None
        for parent in view.vtoc:
            if (parent["inode"], parent["inode_generation"]) == (
                entry["backing_inode"],
                entry["backing_inode_generation"],
            ):
                return parent
        self.wrong(f"its backing, inode {entry['backing_inode']} in {view.where}, is not there", where)
        return None
