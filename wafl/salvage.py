"""Salvage: finding the LUNs of a volume that cannot be mounted whole, and copying them off.

It stands on `wafl.offline`: nothing but checksummed pointers is believed, and neither maps nor counters are needed.
LUNs are looked for in the newest fsinfo, in its snapshots, and, where those have lost one, in the older consistency
points of the rings (whose blocks may have been used again: their checksums tell).  It never writes to the volume.
What the log holds since the last consistency point is not looked at.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from wafl.checksums import first_wrong
from wafl.device import Device
from wafl.errors import NoSuchLun, NotAVolume
from wafl.format import (
    BLOCK_BYTES,
    CRC_PLANE,
    FIRST_DATA_VBN,
    FSINFO,
    FSINFO_MAGIC,
    HEAD_BLOCKS,
    HEAD_RING_VBN,
    HOLE,
    LABEL,
    LEVEL_ONE_BYTES,
    MAX_CHAIN_DEPTH,
    MAX_HEIGHT,
    MAX_LUN_BYTES,
    POINTERS,
    TAIL_BLOCKS,
    VTOC_INODE,
    ZERO,
    EntryState,
    InodeType,
    decode_text,
)
from wafl.offline import Fields, Image, Root, Vbns, Words

LOST_KEPT = 1000
"""Stretches that a report names; all are counted."""

Flags = npt.NDArray[np.bool_]
Progress = Callable[[int, int], None]
"""(bytes done, bytes in all)"""


class SalvageImage(Image):
    """An image whose labels may both be gone: fsinfo knows the volume's UUID and size too."""

    def _choose_label(self) -> Fields:
        try:
            return super()._choose_label()
        except NotAVolume:
            last = self.device_blocks
            read = {vbn: self._sealed(vbn, FSINFO, FSINFO_MAGIC) for vbn in
                    (*range(HEAD_RING_VBN, HEAD_BLOCKS), *range(last - TAIL_BLOCKS, last))}  # fmt: skip
            found = [slot for vbn, slot in read.items() if slot and slot["vbn"] == vbn]
            if not found:
                raise
            newest = max(found, key=lambda slot: int(slot["generation"]))
            self.trouble("both copies are damaged", "label")
            blank = LABEL.unpack(bytes(BLOCK_BYTES))
            return blank | {"uuid": newest["uuid"], "initial_blocks": newest["volume_blocks"]}


@dataclass(frozen=True, slots=True)
class SalvageLun:
    """A LUN that can be found.  `root` is None if its inode cannot be read."""

    name: str
    snapshot: str
    """The snapshot that it is in; empty for the active file system."""
    size_bytes: int
    generation: int
    """The consistency point in which it was found."""
    root: Root | None
    entry: Fields | None
    """Its vtoc entry, if that can be read."""
    problem: str = ""

    @property
    def path(self) -> str:
        return f".snapshot/{self.snapshot}/{self.name}" if self.snapshot else self.name


@dataclass(slots=True)
class Salvaged:
    """What a copy has and what it lacks."""

    copied_bytes: int = 0
    lost_bytes: int = 0
    lost: list[tuple[int, int]] = field(default_factory=list)
    """(offset, length) of the first LOST_KEPT stretches that could not be read; they are holes in the copy."""

    def lose(self, offset: int, length: int) -> None:
        self.lost_bytes += length
        if self.lost and sum(self.lost[-1]) == offset:
            self.lost[-1] = self.lost[-1][0], self.lost[-1][1] + length
        elif len(self.lost) < LOST_KEPT:
            self.lost.append((offset, length))


@dataclass(frozen=True, slots=True)
class _Layer:
    """One file that a LUN is read through."""

    root: Root | None
    """None: it is lost, and with it all that would be read through it."""
    limit: int
    """Blocks from here on are not looked for below this layer."""


class Salvage:
    """One damaged volume.  Raises NotAVolume if no fsinfo at all can be read."""

    def __init__(self, device: Device) -> None:
        self.troubles: list[str] = []
        self.image = SalvageImage(device, self._trouble)
        self._luns: list[SalvageLun] | None = None
        self._snapshots = {entry["id"]: entry for entry in self.image.snapshots() if entry["state"] == EntryState.LIVE}
        self._tables: dict[Root, tuple[dict[int, Fields], list[Fields]]] = {}

    def _trouble(self, what: str, where: str) -> None:
        if len(self.troubles) < LOST_KEPT:
            self.troubles.append(f"{where}: {what}")

    # --- finding ---------------------------------------------------------------------------------------------------

    def luns(self) -> list[SalvageLun]:
        """All that can be found: active ones first, then those in snapshots."""
        if self._luns is None:
            fsinfo = self.image.fsinfo
            found = list(self._in_tree(Root.of(fsinfo, "ifile_"), "", fsinfo["generation"]))
            known = {lun.name for lun in found if lun.root is not None and lun.entry is not None}
            for older in self._older():
                for lun in self._in_tree(Root.of(older, "ifile_"), "", older["generation"]):
                    if lun.root is not None and lun.entry is not None and lun.name not in known:
                        known.add(lun.name)
                        problem = f"as of consistency point {lun.generation}: the newest one has lost it"
                        found = [other for other in found if other.name != lun.name] + [replace(lun, problem=problem)]
            for entry in self._snapshots.values():
                found += self._in_tree(Root.of(entry, "ifile_"), decode_text(entry["name"]), entry["generation"])
            self._luns = found
        return self._luns

    def find(self, name: str, snapshot: str = "") -> SalvageLun:
        """Raises NoSuchLun, also for one whose inode is lost."""
        for lun in self.luns():
            if (lun.name, lun.snapshot) == (name, snapshot):
                if lun.root is None:
                    raise NoSuchLun(f"LUN {lun.path}: {lun.problem}; look for it in a snapshot")
                return lun
        raise NoSuchLun(f"no LUN {name} can be found{f' in snapshot {snapshot}' if snapshot else ''}; see --list")

    def _older(self) -> list[Fields]:
        """Earlier consistency points, the newest first."""
        by_generation = {slot["generation"]: slot for slot in self.image.slots.values() if slot}
        by_generation.pop(self.image.fsinfo["generation"], None)
        return [by_generation[generation] for generation in sorted(by_generation, reverse=True)]

    def _table(self, ifile: Root) -> tuple[dict[int, Fields], list[Fields]]:
        """(inodes, vtoc entries) of a file system, as far as they can be read."""
        if ifile not in self._tables:
            inodes = self.image.inodes(ifile, "inode file")
            vtoc = self.image.vtoc(Root.of(inodes[VTOC_INODE]), "vtoc") if VTOC_INODE in inodes else []
            self._tables[ifile] = inodes, vtoc
        return self._tables[ifile]

    def _in_tree(self, ifile: Root, snapshot: str, generation: int) -> Iterator[SalvageLun]:
        inodes, vtoc = self._table(ifile)
        luns = {number: inode for number, inode in inodes.items() if inode["type"] == InodeType.LUN and _sane(inode)}
        named = set()
        for entry in vtoc:
            inode = luns.get(entry["inode"])
            if inode is not None and inode["generation"] != entry["inode_generation"]:
                inode = None
            named.add(entry["inode"])
            size = min(entry["size_bytes"], MAX_LUN_BYTES)
            problem = "" if inode else "its inode cannot be read"
            root = Root.of(inode) if inode else None
            yield SalvageLun(decode_text(entry["name"]), snapshot, size, generation, root, entry, problem)
        for number in sorted(luns.keys() - named):
            inode = luns[number]
            problem = "its vtoc entry cannot be read: whether it reads through a snapshot is not known"
            yield SalvageLun(
                f"inode-{number}", snapshot, inode["size_bytes"], generation, Root.of(inode), None, problem
            )

    def _layers(self, lun: SalvageLun) -> list[_Layer]:
        """The LUN itself and what it reads through, the nearest first."""
        layers: list[_Layer] = []
        root, entry = lun.root, lun.entry
        for _ in range(MAX_CHAIN_DEPTH + 1):
            if root is not None and entry is None:
                # Nobody knows what its holes read: perhaps a snapshot.
                return [*layers, _Layer(root, ANYWHERE), _Layer(None, 0)]
            limit = entry["backing_limit_bytes"] // BLOCK_BYTES if entry and entry["backing_snapshot"] else 0
            layers.append(_Layer(root, limit))
            if not limit or root is None or entry is None:
                break
            root, entry = self._backing(entry)
        return layers

    def _backing(self, entry: Fields) -> tuple[Root | None, Fields | None]:
        snapshot = self._snapshots.get(entry["backing_snapshot"])
        if snapshot is None:
            return None, None
        inodes, vtoc = self._table(Root.of(snapshot, "ifile_"))
        wanted = entry["backing_inode"], entry["backing_inode_generation"]
        inode = inodes.get(wanted[0])
        if inode is None or inode["generation"] != wanted[1] or not _sane(inode):
            return None, None
        found = (each for each in vtoc if (each["inode"], each["inode_generation"]) == wanted)
        return Root.of(inode), next(found, None)

    # --- copying ---------------------------------------------------------------------------------------------------

    def copy(self, lun: SalvageLun, to: Path, progress: Progress = lambda done, total: None) -> Salvaged:
        """Into a new sparse file; what cannot be read is left out of it.  Raises FileExistsError, OSError."""
        fd = os.open(to, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(fd, lun.size_bytes)
            done = self.copy_to(lun, fd, progress)
            os.fsync(fd)
        finally:
            os.close(fd)
        return done

    def copy_to(self, lun: SalvageLun, fd: int, progress: Progress = lambda done, total: None) -> Salvaged:
        """The same into an open file of the LUN's size that reads zeros."""
        done = Salvaged()
        layers = self._layers(lun)
        readers = [_Leaves(self.image, layer.root) for layer in layers]
        index, end = 0, -(-lun.size_bytes // LEVEL_ONE_BYTES)
        while index < end:
            vbns, crcs, lost, upto = _compose(layers, readers, index)
            self._copy_blocks(lun, fd, done, index, vbns, crcs)
            for low, high in _stretches(lost):
                last = index + 1 if high < POINTERS else min(upto, end)
                stop = (last - 1) * LEVEL_ONE_BYTES + high * BLOCK_BYTES
                start = index * LEVEL_ONE_BYTES + low * BLOCK_BYTES
                done.lose(start, min(stop, lun.size_bytes) - start)
            index = max(index + 1, min(upto, end))
            progress(min(index * LEVEL_ONE_BYTES, lun.size_bytes), lun.size_bytes)
        return done

    def _copy_blocks(self, lun: SalvageLun, fd: int, done: Salvaged, index: int, vbns: Vbns, crcs: Words) -> None:
        slots = np.flatnonzero(vbns >= FIRST_DATA_VBN)
        breaks = (np.flatnonzero((np.diff(slots) != 1) | (np.diff(vbns[slots].astype(np.int64)) != 1)) + 1).tolist()
        for low, high in pairwise([0, *breaks, len(slots)]):
            if low < high:
                first = index * POINTERS + int(slots[low])
                self._copy_run(lun, fd, done, first, vbns[slots[low:high]], crcs[slots[low:high]])

    def _copy_run(self, lun: SalvageLun, fd: int, done: Salvaged, fbn: int, vbns: Vbns, crcs: Words) -> None:
        """Blocks side by side in the LUN and on the volume; the bad ones among them one by one."""
        data = memoryview(bytearray(len(vbns) * BLOCK_BYTES))
        try:
            if int(vbns[-1]) >= self.image.device_blocks:
                raise OSError("outside the device")
            self.image.device.pread(int(vbns[0]) * BLOCK_BYTES, data)
            good = first_wrong(data, crcs) is None
        except OSError:
            good = False
        room = lun.size_bytes - fbn * BLOCK_BYTES
        if room <= 0:
            return
        if good:
            piece = data[: min(len(data), room)]
            os.pwrite(fd, piece, fbn * BLOCK_BYTES)
            done.copied_bytes += len(piece)
        elif len(vbns) == 1:
            done.lose(fbn * BLOCK_BYTES, min(BLOCK_BYTES, room))
            self._trouble(f"block {vbns[0]} cannot be read", f"LUN {lun.path}, byte {fbn * BLOCK_BYTES}")
        else:
            for k in range(len(vbns)):
                self._copy_run(lun, fd, done, fbn + k, vbns[k : k + 1], crcs[k : k + 1])


def _sane(inode: Fields) -> bool:
    return bool(1 <= inode["height"] <= MAX_HEIGHT and inode["size_bytes"] <= MAX_LUN_BYTES)


ANYWHERE = 1 << 62
"""Behind the end of every file."""
LOST = 2**64 - 1
"""In place of a mark: the pointer block that would say what is here cannot be read."""


class _Leaves:
    """The level-1 buffers of one tree, in ascending order; remembers the way to the last one."""

    def __init__(self, image: Image, root: Root | None) -> None:
        self._image = image
        self._root = root
        self._path: dict[int, tuple[int, int, bytearray | None]] = {}
        """level -> (vbn, crc, block)"""

    def at(self, index: int) -> tuple[int, tuple[Vbns, Words] | None, int]:
        """(mark, planes, next): HOLE, ZERO or LOST up to level-1 index `next`; or the planes of a buffer."""
        root = self._root
        if root is None:
            return LOST, None, ANYWHERE
        level, vbn, crc = root.height, root.vbn, root.crc
        if index >> 8 * (level - 1):
            return HOLE, None, ANYWHERE
        while True:
            span = 1 << 8 * (level - 1)
            upto = (index // span + 1) * span
            if vbn < FIRST_DATA_VBN:
                return (ZERO if vbn == ZERO else HOLE), None, upto
            block = self._load(level, vbn, crc, index)
            if block is None:
                return LOST, None, upto
            vbns = np.frombuffer(block, "<u8", POINTERS)
            crcs = np.frombuffer(block, "<u4", POINTERS, CRC_PLANE.start)
            if level == 1:
                return HOLE, (vbns, crcs), index + 1
            level -= 1
            slot = (index >> 8 * (level - 1)) & (POINTERS - 1)
            vbn, crc = int(vbns[slot]), int(crcs[slot])

    def _load(self, level: int, vbn: int, crc: int, index: int) -> bytearray | None:
        known = self._path.get(level)
        if known is None or known[:2] != (vbn, crc):
            where = f"level {level} buffer from byte {index * LEVEL_ONE_BYTES} on"
            known = self._path[level] = vbn, crc, self._image.load(vbn, crc, where)
        return known[2]


def _compose(layers: list[_Layer], readers: list[_Leaves], index: int) -> tuple[Vbns, Words, Flags, int]:
    """(vbns, crcs, lost, next) of level-1 `index`: what is read there, through all layers; `lost` is true where nobody
    knows.  Up to `next` all is the same if it is one mark."""
    fbns = np.arange(index * POINTERS, (index + 1) * POINTERS, dtype=np.int64)
    vbns, crcs = np.zeros(POINTERS, np.uint64), np.zeros(POINTERS, np.uint32)
    lost = np.zeros(POINTERS, np.bool_)
    need = np.ones(POINTERS, np.bool_)
    upto = ANYWHERE
    for layer, reader in zip(layers, readers, strict=True):
        mark, planes, after = reader.at(index)
        upto = min(upto, after)
        if planes is not None:
            vbns[need], crcs[need] = planes[0][need], planes[1][need]
            need &= vbns == HOLE
        elif mark == LOST:
            lost |= need
            break
        elif mark == ZERO:
            vbns[need] = ZERO
            break
        need &= fbns < layer.limit
        if not need.any():
            break
        if layer.limit < (index + 1) * POINTERS or not need.all():
            upto = index + 1
        else:
            upto = min(upto, layer.limit // POINTERS)
    return vbns, crcs, lost, max(upto, index + 1)


def _stretches(flags: Flags) -> list[tuple[int, int]]:
    edges = np.flatnonzero(np.diff(flags.astype(np.int8), prepend=0, append=0)).tolist()
    return list(zip(edges[::2], edges[1::2], strict=True))
