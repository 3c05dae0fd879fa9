"""The scrub: reads every block in use of a mounted volume and compares it with its checksum, in small slices, beside
the guests.

    scrub = Scrub(volume)
    while (part := scrub.plan()) is not None:      on the volume's thread
        try:
            part.read()                            in any thread
        finally:
            part.release()                         on the volume's thread

How it stays out of the way, and still sees everything:

- A slice walks the last durable consistency point on the device itself, from fsinfo down; it shares nothing with the
  mounted volume but the promise that blocks freed meanwhile are not reused before `release`. Between slices nothing
  is held: what was freed comes back.
- The next slice finds its place again by (view, inode, level-1 index) in whatever is the newest tree by then. The
  active file system comes first, then the snapshots by their ids, those made meanwhile too: a block goes from the
  active file system into snapshots, so none that was there at the start, and still is, slips through. Where blocks are
  shared, one may also go to a place that has been looked at, from a snapshot or from another LUN: then the active file
  system and the younger snapshots are looked at once more.
- Each block is read once, whoever shares it: a bit says that it has been verified. A pointer block gets its bit when
  all below it has been read and was good, so a snapshot costs no more than what differs in it. Only blocks born
  before the scrub began have bits: a place that is used again meanwhile holds a younger one. A pointer with birth 0
  does not tell: behind it a pointer block is read again, but not what is below it; so is a data block that was bad.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from crc32c import crc32c

from wafl.allocator import new_bits
from wafl.bits import Vbns, are_set, set_each
from wafl.checksums import Crcs, first_wrong
from wafl.errors import CorruptVolume, DamagedRecord
from wafl.format import (
    BIRTH_PLANE,
    BLOCK_BYTES,
    BLOCK_SHIFT,
    CRC_PLANE,
    FIRST_DATA_VBN,
    FSINFO,
    FSINFO_MAGIC,
    INODE,
    LEVEL_ONE_BYTES,
    MAX_HEIGHT,
    POINTERS,
    SNAPSHOT_ENTRY,
    VBN_PLANE,
    VTOC_ENTRY,
    VTOC_INODE,
    EntryState,
    Record,
    decode_text,
    unseal,
)
from wafl.labels import read_block_at
from wafl.losses import FileName, lost, name_of
from wafl.offline import Fields, Image, Root

if TYPE_CHECKING:
    from wafl.volume import Volume

Births = npt.NDArray[np.uint32]

SLICE_BYTES = 4 << 20
"""Read in one slice, at most a level-1 buffer more."""
SLICE_LOOKS = 512
"""Subtrees and files looked at in one slice."""
BAD_KEPT = 1000
"""Bad blocks kept with their places; more are counted."""
TREE_VISITS = 300
"""A damaged subtree is entered from each view that shares it (256 of them at most), and not much more often."""
RECORD_BLOCKS = 1 << 16
"""Blocks of a table that are read at most: a million inodes."""

PASSES = 4
"""Over the active file system, at most: one over which nothing is shared is the last."""

OWN_FILES, ACTIVE_VIEW = -1, 0
"""Views: the volume's own files, the active file system; a snapshot is its id."""


@dataclass(frozen=True, slots=True)
class BadBlock:
    """One place that cannot be read."""

    vbn: int
    error: str
    file: str
    lun: str
    """Path within the volume of the LUN that has lost data; empty for metadata."""
    offset: int
    length: int
    """Bytes of the file that are lost with it."""
    lost: str

    def __str__(self) -> str:
        return f"block {self.vbn} of {self.file}: {self.error}; lost: {self.lost}"


@dataclass(frozen=True, slots=True)
class _File:
    number: int
    generation: int
    name: FileName
    root: Root


@dataclass(frozen=True, slots=True)
class _View:
    """The files of one file system, in the order of their numbers, and which inode is which LUN."""

    files: list[_File]
    luns: dict[int, str]


@dataclass(frozen=True, slots=True)
class _Pointers:
    """A run of pointers to data blocks, as planes."""

    vbns: Vbns
    crcs: Crcs
    fbns: npt.NDArray[np.int64]


class _Pause(Exception):
    """The slice has had its share."""


class ScrubSlice:
    """A part of the pass: see the module."""

    def __init__(self, read: Callable[[], None], volume: Volume) -> None:
        self.read = read
        self._allocator = volume.core.allocator
        self._epoch: int | None = self._allocator.readers.enter()

    def release(self) -> None:
        """The reading is over: freed blocks may be used again.  Idempotent."""
        if self._epoch is not None:
            self._allocator.readers.leave(self._epoch)
            self._epoch = None
            self._allocator.reader_left()


class Scrub:
    """One pass over one mounted volume.  Attributes are for reading."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self._device = volume.device
        self.bad: list[BadBlock] = []
        """The first BAD_KEPT."""
        self.bad_count = 0
        self.verified_bytes = 0
        """Read and compared; a block that several share counts once."""
        self.done = False
        self.start_generation = volume.core.durable
        allocator = volume.core.allocator
        self.total_bytes = (allocator.blocks - allocator.free) * BLOCK_BYTES
        """In use at the start: an estimate of the work."""
        self._blocks = allocator.blocks
        self._seen = new_bits(self._blocks)
        self._told: set[tuple[int, FileName, int]] = set()
        """The places in `bad`."""
        self._errors: dict[int, str] = {}
        """vbn -> what is wrong with it, of those that are kept."""
        self._visits: dict[int, int] = {}
        """Pointer blocks without a bit -> how often they were entered."""
        self._fsinfo: Fields = {}
        self._view, self._file, self._generation, self._index = OWN_FILES, 0, 0, 0
        """Where to go on."""
        self._passes = 1
        self._shares = volume.files.references.shares
        """As the last pass over the active file system began."""
        self._done_snapshot = 0
        """The youngest snapshot that was looked at."""
        self._entered: dict[int, tuple[int, int]] = {}
        """level -> (vbn, crc) of the pointer block that was entered at its beginning."""
        self._whole: dict[int, bool] = {}
        """level -> nothing below it was bad so far."""
        self._bytes_left = self._looks_left = 0
        self._worked = False
        """This slice has brought the pass on."""
        self._opened: tuple[tuple[int, Root], _View] | None = None
        self._table: tuple[Root, dict[int, Fields]] | None = None
        self._check_copies()

    # --- on the volume's thread ------------------------------------------------------------------------------------

    def _check_copies(self) -> None:
        """Both labels, and all copies of fsinfo: a few blocks."""
        image = Image(self._device)
        needed = self._volume.geometry.fsinfo_vbns(self.start_generation)
        for vbn, label in image.labels.items():
            if label is None:
                self._report(vbn, "damaged", FileName("label"), 0, BLOCK_BYTES, {})
        for vbn, slot in image.slots.items():
            if slot is None and (vbn in needed or any(read_block_at(self._device, vbn) or b"?")):
                self._report(vbn, "damaged", FileName("fsinfo"), 0, BLOCK_BYTES, {})

    def plan(self) -> ScrubSlice | None:
        """The next slice, None at the end.  Raises CorruptVolume if no copy of fsinfo can be read back, OSError."""
        if self.done:
            return None
        core = self._volume.core
        self._blocks = core.allocator.blocks
        self._seen.resize(max(len(self._seen), len(new_bits(self._blocks))), refcheck=False)
        vbns = self._volume.geometry.fsinfo_vbns(core.durable)
        for vbn in vbns:
            block = read_block_at(self._device, vbn)
            found = unseal(FSINFO, FSINFO_MAGIC, block) if block else None
            if found is not None and found["generation"] == core.durable:
                self._fsinfo = found
                return ScrubSlice(self._read, self._volume)
        raise DamagedRecord(f"no copy of fsinfo {core.durable} can be read back", vbns[0])

    # --- in any thread: from view to view, from file to file --------------------------------------------------------

    def _read(self) -> None:
        self._bytes_left, self._looks_left, self._worked = SLICE_BYTES, SLICE_LOOKS, False
        try:
            while not self.done:
                view = self._open_view()
                for file in view.files if view else ():
                    if file.number >= self._file:
                        self._walk_file(file, view.luns if view else {})
                self._next_view()
        except _Pause:
            return

    def _next_view(self) -> None:
        self._done_snapshot = max(self._done_snapshot, self._view)
        later = [number for number in (ACTIVE_VIEW, *self._snapshots()) if number > self._view]
        if self._view == ACTIVE_VIEW:
            later = [number for number in later if number > self._done_snapshot]
        shares = self._volume.files.references.shares
        if not later and shares != self._shares and self._passes < PASSES:
            later = [ACTIVE_VIEW]
            self._passes, self._shares = self._passes + 1, shares
        if later:
            self._view, self._file, self._generation, self._index = min(later), 0, 0, 0
        else:
            self.done = True

    def _snapshots(self) -> dict[int, Fields]:
        root = Root.of(self._fsinfo, "snapshot_table_")
        if self._table is None or self._table[0] != root:
            entries = self._records(SNAPSHOT_ENTRY, root)
            self._table = root, {entry["id"]: entry for _, entry in entries if entry["state"] == EntryState.LIVE}
        return self._table[1]

    def _open_view(self) -> _View | None:
        """None if the snapshot has gone."""
        if self._view == OWN_FILES:
            own = [
                _File(number, 0, FileName(name.replace("_", " ")), Root.of(self._fsinfo, f"{name}_"))
                for number, name in enumerate(("snapshot_table", "summary"))
            ]
            return _View(own, {})
        fields = self._fsinfo if self._view == ACTIVE_VIEW else self._snapshots().get(self._view)
        if fields is None:
            return None
        root = Root.of(fields, "ifile_")
        # A snapshot made just now has the root of the active file system, and other names.
        if self._opened is None or self._opened[0] != (self._view, root):
            snapshot = "" if self._view == ACTIVE_VIEW else decode_text(fields["name"])
            self._opened = (self._view, root), self._list_files(root, snapshot)
        return self._opened[1]

    def _list_files(self, ifile: Root, snapshot: str) -> _View:
        inodes = {number: fields for number, fields in self._records(INODE, ifile) if fields["type"]}
        luns: dict[int, str] = {}
        if VTOC_INODE in inodes:
            entries = self._records(VTOC_ENTRY, Root.of(inodes[VTOC_INODE]))
            luns = {entry["inode"]: decode_text(entry["name"]) for _, entry in entries if entry["state"]}
        files = [_File(0, 0, FileName("inode file", snapshot), ifile)]
        files += [
            _File(number, fields["generation"], name_of(number, fields["type"], snapshot, luns), Root.of(fields))
            for number, fields in sorted(inodes.items())
            if number
        ]
        return _View(files, luns)

    def _records(self, record: Record, root: Root) -> Iterator[tuple[int, Fields]]:
        """The records of a table that can be read; what cannot be is reported when the table itself is walked."""
        per_block = BLOCK_BYTES // record.size
        for fbn, block in table_blocks(self._load, root):
            for k in range(per_block):
                yield fbn * per_block + k, record.unpack(block, k * record.size)

    # --- in any thread: one tree -----------------------------------------------------------------------------------

    def _walk_file(self, file: _File, luns: dict[int, str]) -> None:
        start = 0
        if (file.number, file.generation) == (self._file, self._generation):
            start = self._index
        else:
            self._file, self._generation, self._index = file.number, file.generation, 0
            self._entered.clear()
        root = file.root
        if not 1 <= root.height <= MAX_HEIGHT:
            self._report(root.vbn, f"a tree of height {root.height}", file.name, 0, root.size_bytes, luns)
        elif root.vbn >= FIRST_DATA_VBN:
            self._visit(file, luns, root.height, (root.vbn, root.crc, root.birth), 0, start)
        self._file, self._generation, self._index = file.number + 1, 0, 0
        self._entered.clear()

    def _visit(self, file: _File, luns: dict[int, str], level: int, pointer: tuple[int, int, int], index: int,
               start: int) -> bool:  # fmt: skip
        """One pointer block and all below it, from level-1 index `start` on.  Whether nothing in it is bad."""
        vbn, crc, birth = pointer
        span = POINTERS ** (level - 1)
        old, visits = birth <= self.start_generation, self._visits.get(vbn, 0)
        self._looks_left -= 1
        if self._worked and (self._bytes_left <= 0 or self._looks_left <= 0):
            self._index = max(start, index * span)
            raise _Pause
        seen = old and vbn < self._blocks and bool(are_set(self._seen, np.array([vbn], np.uint64))[0])
        seen = seen and (birth > 0 or visits >= TREE_VISITS)
        self._worked |= seen or level == 1
        if seen:
            return True
        if visits >= TREE_VISITS:
            return False
        try:
            block = self._load(vbn, crc)
        except (CorruptVolume, OSError) as error:
            self._report(vbn, str(error), file.name, index * span * LEVEL_ONE_BYTES, span * LEVEL_ONE_BYTES, luns)
            return False
        self._bytes_left -= BLOCK_BYTES
        self.verified_bytes += BLOCK_BYTES
        if start <= index * span:
            self._entered[level], self._whole[level] = (vbn, crc), True
        vbns, crcs, births = planes(block)
        slots = np.flatnonzero(vbns >= FIRST_DATA_VBN)
        if level == 1:
            fbns = index * POINTERS + slots
            good = self._read_data(file, luns, _Pointers(vbns[slots], crcs[slots], fbns), births[slots])
            self._whole[level] &= good
        else:
            below = span // POINTERS
            for slot in slots.tolist():
                child = index * POINTERS + slot
                if (child + 1) * below > start:
                    places = int(vbns[slot]), int(crcs[slot]), int(births[slot])
                    if not self._visit(file, luns, level - 1, places, child, start):
                        self._whole[level] = False
        complete = self._entered.get(level) == (vbn, crc) and self._whole[level]
        if complete and old:
            set_each(self._seen, np.array([vbn], np.uint64))
        if not (complete and old and birth):
            self._visits[vbn] = visits + 1
        return complete

    def _load(self, vbn: int, crc: int) -> bytearray:
        """A verified block.  Raises CorruptVolume, OSError."""
        if vbn >= self._blocks:
            raise DamagedRecord(f"a pointer to block {vbn} of {self._blocks}", vbn)
        block = bytearray(BLOCK_BYTES)
        self._device.pread(vbn << BLOCK_SHIFT, block)
        if (found := crc32c(block)) != crc:
            raise CorruptVolume(vbn, crc, found)
        return block

    def _read_data(self, file: _File, luns: dict[int, str], data: _Pointers, births: Births) -> bool:
        """The blocks that a level-1 buffer points at, those that nobody has verified yet.  Whether all are good."""
        inside = data.vbns < self._blocks
        old = births <= self.start_generation
        todo = inside.copy()
        todo[inside] = ~(old[inside] & are_set(self._seen, data.vbns[inside]))
        if self._passes > 1:
            todo &= old  # what is younger than the scrub is looked at once, if at all
        good = bool(inside.all())
        for k in np.flatnonzero(~inside).tolist():
            self._bad_data(file, luns, data, k, f"a pointer to block {data.vbns[k]} of {self._blocks}")
        for k in np.flatnonzero(inside & ~todo).tolist() if self._errors else ():
            if (error := self._errors.get(int(data.vbns[k]))) is not None:
                if not births[k]:
                    todo[k] = True
                    continue
                self._bad_data(file, luns, data, k, error)
                good = False
        which = np.flatnonzero(todo)
        which = which[np.argsort(data.vbns[which], kind="stable")]
        vbns = data.vbns[which]
        edges = [0, *(np.flatnonzero(np.diff(vbns) != 1) + 1).tolist(), len(which)]
        for low, high in pairwise(edges):
            if low < high:
                good &= self._read_run(file, luns, data, which[low:high])
        set_each(self._seen, data.vbns[which[old[which]]])
        return good

    def _read_run(self, file: _File, luns: dict[int, str], data: _Pointers, run: npt.NDArray[np.intp]) -> bool:
        """Blocks that lie side by side."""
        piece = memoryview(bytearray(len(run) * BLOCK_BYTES))
        self._bytes_left -= len(piece)
        try:
            self._device.pread(int(data.vbns[run[0]]) << BLOCK_SHIFT, piece)
        except OSError as error:
            if len(run) > 1:
                each = [self._read_run(file, luns, data, run[k : k + 1]) for k in range(len(run))]
                return all(each)
            self._bad_data(file, luns, data, int(run[0]), str(error))
            return False
        self.verified_bytes += len(piece)
        at, good = 0, True
        while (wrong := first_wrong(piece[at << BLOCK_SHIFT :], data.crcs[run[at:]])) is not None:
            k = int(run[at + wrong[0]])
            self._bad_data(file, luns, data, k, f"crc32c {wrong[1]:08x} where the pointer says {data.crcs[k]:08x}")
            at, good = at + wrong[0] + 1, False
        return good

    # --- reports ---------------------------------------------------------------------------------------------------

    def _bad_data(self, file: _File, luns: dict[int, str], data: _Pointers, k: int, error: str) -> None:
        offset = int(data.fbns[k]) * BLOCK_BYTES
        if len(self._errors) < BAD_KEPT:
            self._errors[int(data.vbns[k])] = error
        self._report(int(data.vbns[k]), error, file.name, offset, BLOCK_BYTES, luns)

    def _report(self, vbn: int, error: str, file: FileName, offset: int, length: int, luns: dict[int, str]) -> None:
        if (place := (vbn, file, offset)) in self._told:
            return
        self.bad_count += 1
        if len(self.bad) < BAD_KEPT:
            self._told.add(place)
            what = lost(file, offset, length, luns)
            self.bad.append(BadBlock(vbn, error, str(file), file.lun, offset, length, what))


def planes(block: bytearray) -> tuple[Vbns, Crcs, Births]:
    """(vbns, checksums, births) of a pointer block."""
    return (
        np.frombuffer(block, "<u8", POINTERS, VBN_PLANE.start), np.frombuffer(block, "<u4", POINTERS, CRC_PLANE.start),
        np.frombuffer(block, "<u4", POINTERS, BIRTH_PLANE.start),
    )  # fmt: skip


def table_blocks(load: Callable[[int, int], bytearray], root: Root) -> Iterator[tuple[int, bytearray]]:
    """(fbn, block) of a table, as far as it can be read, RECORD_BLOCKS at most."""
    left = RECORD_BLOCKS + RECORD_BLOCKS // POINTERS

    def below(level: int, vbn: int, crc: int, index: int) -> Iterator[tuple[int, bytearray]]:
        nonlocal left
        left -= 1
        try:
            block = load(vbn, crc)
        except (CorruptVolume, OSError):
            return
        if not level:
            yield index, block
            return
        vbns, crcs, _ = planes(block)
        for slot in np.flatnonzero(vbns >= FIRST_DATA_VBN).tolist():
            if left <= 0:
                return
            yield from below(level - 1, int(vbns[slot]), int(crcs[slot]), index * POINTERS + slot)

    if 1 <= root.height <= MAX_HEIGHT and root.vbn >= FIRST_DATA_VBN:
        yield from below(root.height, root.vbn, root.crc, 0)
