"""Reads a volume straight from its device, by the declarations alone: what the checker and the dump stand on.

It shares the format with the mounted volume and nothing else (no buffers, no allocator), so that a fault there
is not repeated here.  It never writes.  What it cannot read it reports through `Image.trouble` and skips.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from crc32c import crc32c

from wafl.device import Device
from wafl.errors import NotAVolume
from wafl.format import (
    BIRTH_PLANE,
    BLOCK_BYTES,
    COUNTS,
    CRC_PLANE,
    FIRST_DATA_VBN,
    FSINFO,
    FSINFO_MAGIC,
    HEAD_BLOCKS,
    HEAD_RING_VBN,
    INODE,
    LABEL,
    LABEL_MAGIC,
    LABEL_VBN,
    MAX_HEIGHT,
    POINTERS,
    RING_SLOTS,
    SNAPSHOT_ENTRY,
    TAIL_BLOCKS,
    VBN_PLANE,
    VTOC_ENTRY,
    EntryState,
    Geometry,
    Record,
    unseal,
)
from wafl.labels import in_its_place

Fields = dict[str, Any]
Vbns = npt.NDArray[np.uint64]
Words = npt.NDArray[np.uint32]

TABLE_BYTES = 256 << 20
"""No table is larger (a million inodes), and no map but that of a volume that asks for it."""

RECORD_NAMES = {INODE: "inodes", VTOC_ENTRY: "entries", SNAPSHOT_ENTRY: "entries"}

Enter = Callable[[int, int], bool]
Trouble = Callable[[str, str], None]
"""(what is wrong, where)"""


@dataclass(frozen=True, slots=True)
class Root:
    """The root pointer of a tree, and how far it reaches."""

    vbn: int
    crc: int
    birth: int
    height: int
    size_bytes: int

    @classmethod
    def of(cls, fields: Fields, prefix: str = "") -> Root:
        return cls(
            fields[f"{prefix}root_vbn"],
            fields[f"{prefix}root_crc"],
            fields[f"{prefix}root_birth"],
            fields[f"{prefix}height"],
            fields[f"{prefix}size_bytes"],
        )

    @property
    def blocks(self) -> int:
        return -(-self.size_bytes // BLOCK_BYTES)


@dataclass(frozen=True, slots=True)
class Node:
    """One pointer block, verified."""

    level: int
    vbn: int
    birth: int
    index: int
    """Its place among the pointer blocks of its level: it covers fbns from `index * 256**level` on."""
    vbns: Vbns
    crcs: Words
    births: Words

    @property
    def first_fbn(self) -> int:
        return self.index * int(POINTERS**self.level)

    def data(self) -> npt.NDArray[np.intp]:
        """Indices of the pointers that name a block."""
        return np.flatnonzero(self.vbns >= FIRST_DATA_VBN)


class Image:
    """A volume as its newest valid fsinfo shows it.  Raises NotAVolume if there is none."""

    def __init__(self, device: Device, trouble: Trouble = lambda what, where: None) -> None:
        self.device = device
        self.trouble = trouble
        self.device_blocks = device.size_bytes // BLOCK_BYTES
        self.label = self._choose_label()
        self.fsinfo = self._choose_fsinfo()
        self.blocks: int = self.fsinfo["volume_blocks"]
        self.geometry = Geometry(self.blocks, self.label["nvlog_blocks"])
        self.labels = {vbn: self._sealed(vbn, LABEL, LABEL_MAGIC) for vbn in (LABEL_VBN, self.geometry.second_label)}
        self.slots = self._ring(HEAD_RING_VBN) | self._ring(self.geometry.tail_ring)
        """vbn -> fsinfo, of both rings; None where there is no valid one of this volume."""
        self._good_crc = np.zeros(self.device_blocks, dtype=np.uint32)
        self._good = np.zeros(self.device_blocks, dtype=bool)

    # -- label and fsinfo

    def _raw(self, vbn: int) -> bytearray | None:
        return self._read(vbn, f"block {vbn}") if 0 <= vbn < self.device_blocks else None

    def _read(self, vbn: int, where: str) -> bytearray | None:
        block = bytearray(BLOCK_BYTES)
        try:
            self.device.pread(vbn * BLOCK_BYTES, block)
        except OSError as error:
            self.trouble(f"block {vbn} cannot be read: {error}", where)
            return None
        return block

    def _sealed(self, vbn: int, record: Record, magic: bytes) -> Fields | None:
        raw = self._raw(vbn)
        return None if raw is None else unseal(record, magic, raw)

    def _choose_label(self) -> Fields:
        # The device may be larger than the volume; the head ring says where that ends.
        head = [self._sealed(vbn, FSINFO, FSINFO_MAGIC) for vbn in range(HEAD_RING_VBN, HEAD_BLOCKS)]
        ends = sorted({slot["volume_blocks"] for slot in head if slot}, reverse=True)
        for vbn in (LABEL_VBN, self.device_blocks - 1, *(end - 1 for end in ends)):
            label = self._sealed(vbn, LABEL, LABEL_MAGIC)
            if label is not None:
                return label
        raise NotAVolume("neither copy of the label is valid")

    def _choose_fsinfo(self) -> Fields:
        """The newest one of the head ring and of every place where its mirror may be."""
        valid = [slot for slot in self._ring(HEAD_RING_VBN).values() if slot]
        for end in {self.device_blocks} | {slot["volume_blocks"] for slot in valid}:
            valid += [slot for slot in self._ring(end - TAIL_BLOCKS).values() if slot]
        if not valid:
            # Hosts' data lies there once the volume has grown, so this place is asked last.
            valid = [slot for slot in self._ring(self.label["initial_blocks"] - TAIL_BLOCKS).values() if slot]
        if not valid:
            raise NotAVolume("no copy of fsinfo is valid")
        newest: Fields = max(valid, key=lambda slot: int(slot["generation"]))
        return newest

    def _ring(self, first: int) -> dict[int, Fields | None]:
        """vbn -> fsinfo of this volume that is in its own place, None where there is none."""
        slots: dict[int, Fields | None] = {}
        for vbn in range(first, first + RING_SLOTS):
            found = self._sealed(vbn, FSINFO, FSINFO_MAGIC)
            slots[vbn] = found if found and found["uuid"] == self.label["uuid"] and in_its_place(found, vbn) else None
        return slots

    # -- blocks

    def load(self, vbn: int, crc: int, where: str) -> bytearray | None:
        """A block that its pointer's checksum vouches for; None (reported) otherwise."""
        if not 0 <= vbn < self.device_blocks:
            self.trouble(f"pointer to block {vbn}, outside the device", where)
            return None
        raw = self._read(vbn, where)
        if raw is None:
            return None
        found = crc32c(raw)
        if found != crc:
            self.trouble(f"block {vbn}: crc32c {found:08x} where the pointer says {crc:08x}", where)
            return None
        return raw

    def walk(self, root: Root, where: str, enter: Enter = lambda vbn, birth: True) -> Iterator[Node]:
        """Every pointer block below `root`, parents first, but for those with all below them that `enter` (with the
        block and the birth in the pointer to it) leaves out."""
        if not 1 <= root.height <= MAX_HEIGHT:
            self.trouble(f"height {root.height}", where)
            return
        if root.vbn >= FIRST_DATA_VBN:
            yield from self._walk(root.height, root.vbn, root.crc, root.birth, 0, where, set(), enter)

    def _walk(self, level: int, vbn: int, crc: int, birth: int, index: int, where: str,
              inner: set[int], enter: Enter) -> Iterator[Node]:  # fmt: skip
        if not enter(vbn, birth):
            return
        # Two ways to one block are damage, and a way to make a walk never end: level after level of them multiplies.
        if level > 1:
            if vbn in inner:
                self.trouble(f"block {vbn} is reached twice", where)
                return
            inner.add(vbn)
        reach = int(POINTERS**level) * BLOCK_BYTES
        what = f"bytes {index * reach} to {(index + 1) * reach - 1} (level {level} buffer {index})"
        raw = self.load(vbn, crc, f"{where}, {what}")
        if raw is None:
            return
        node = Node(
            level,
            vbn,
            birth,
            index,
            np.frombuffer(raw, "<u8", offset=VBN_PLANE.start, count=POINTERS),
            np.frombuffer(raw, "<u4", offset=CRC_PLANE.start, count=POINTERS),
            np.frombuffer(raw, "<u4", offset=BIRTH_PLANE.start, count=POINTERS),
        )
        yield node
        if level == 1:
            return
        for i in node.data().tolist():
            child = int(node.vbns[i]), int(node.crcs[i]), int(node.births[i])
            yield from self._walk(level - 1, *child, index * POINTERS + i, where, inner, enter)

    def verify_data(self, node: Node, where: str) -> None:
        """Check the contents of the blocks that a level-1 buffer names; each block once."""
        for i in node.data().tolist():
            vbn, crc = int(node.vbns[i]), int(node.crcs[i])
            if vbn < self.device_blocks and self._good[vbn] and self._good_crc[vbn] == crc:
                continue
            at = (node.first_fbn + i) * BLOCK_BYTES
            if self.load(vbn, crc, f"{where}, bytes {at} to {at + BLOCK_BYTES - 1}") is not None:
                self._good[vbn], self._good_crc[vbn] = True, crc

    def contents(self, root: Root, where: str, unit: str = "bytes", per_block: int = BLOCK_BYTES) -> bytearray:
        """A whole file (inode file, vtoc, map): holes and what cannot be read are zeros.  `unit` and `per_block` say
        what a block of it holds, for the report of one that is lost."""
        if root.size_bytes > max(self.blocks // 8 + BLOCK_BYTES, TABLE_BYTES):
            self.trouble(f"a table of {root.size_bytes} bytes", where)
            return bytearray()
        data = bytearray(root.blocks * BLOCK_BYTES)
        for node in self.walk(root, where):
            if node.level != 1:
                continue
            for i in node.data().tolist():
                fbn = node.first_fbn + i
                what = f"{unit} {fbn * per_block} to {(fbn + 1) * per_block - 1}"
                block = self.load(int(node.vbns[i]), int(node.crcs[i]), f"{where}, {what}")
                if block is not None and fbn < root.blocks:
                    data[fbn * BLOCK_BYTES : (fbn + 1) * BLOCK_BYTES] = block
        return data

    # -- tables

    def records(self, record: Record, root: Root, where: str) -> list[tuple[int, Fields]]:
        """(slot, fields) of each record of a table that is not all zeros."""
        data = self.contents(root, where, RECORD_NAMES.get(record, "records"), BLOCK_BYTES // record.size)
        used = [at for at in range(0, len(data), record.size) if any(data[at : at + record.size])]
        return [(at // record.size, record.unpack(data, at)) for at in used]

    def inodes(self, ifile: Root, where: str) -> dict[int, Fields]:
        """Inode number -> inode, those in use."""
        return {slot: inode for slot, inode in self.records(INODE, ifile, where) if inode["type"]}

    def vtoc(self, root: Root, where: str) -> list[Fields]:
        entries = self.records(VTOC_ENTRY, root, where)
        return [entry for _, entry in entries if entry["state"] != EntryState.FREE]

    def snapshots(self) -> list[Fields]:
        entries = self.records(SNAPSHOT_ENTRY, Root.of(self.fsinfo, "snapshot_table_"), "snapshot table")
        return [entry for _, entry in entries if entry["state"] != EntryState.FREE]

    def map_bits(self, root: Root, where: str) -> npt.NDArray[np.bool_]:
        """A map file as one bool a block of the volume."""
        data = self.contents(root, where, "the map of blocks", BLOCK_BYTES * 8)
        bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little").view(np.bool_)
        if bits.size < self.blocks:
            bits = np.concatenate([bits, np.zeros(self.blocks - bits.size, bool)])
        return bits

    def counts(self, root: Root, where: str) -> tuple[Vbns, Words]:
        """The reference counts that are not zero: the blocks, ascending, and the count of each."""
        blocks, counts = [np.empty(0, np.uint64)], [np.empty(0, np.uint32)]
        for node in self.walk(root, where):
            for i in node.data().tolist() if node.level == 1 else ():
                first = (node.first_fbn + i) * COUNTS
                what = f"the counts of blocks {first} to {first + COUNTS - 1}"
                block = self.load(int(node.vbns[i]), int(node.crcs[i]), f"{where}, {what}")
                if block is not None:
                    row = np.frombuffer(block, "<u2")
                    here = np.flatnonzero(row)
                    blocks.append(here.astype(np.uint64) + np.uint64(first))
                    counts.append(row[here].astype(np.uint32))
        return np.concatenate(blocks), np.concatenate(counts)

    def counted(self, root: Root, where: str) -> int:
        """The data blocks that an inode counts: those of adopted subtrees are not its own."""
        nodes = self.walk(root, where, lambda vbn, birth: birth > 0)
        return sum(len(node.data()) for node in nodes if node.level == 1)
