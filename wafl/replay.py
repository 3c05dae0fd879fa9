"""Reading the log at a mount: which records count, and what the last consistency point becomes with them.

Reading and applying are apart: `read_log` needs the device and the fsinfo only (the checker uses it too), `apply` needs
the mounted volume.  Nothing here writes to the device; the consistency point that a mount makes afterwards does.

The end of the log (docs/format.md): a record that is torn, or whose data is, ends it, unless a later one says that it
had been durable: then the log is damaged, and nobody may go on as if nothing had been lost.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from crc32c import crc32c

from wafl.bits import Vbns
from wafl.checksums import of_blocks
from wafl.device import Device
from wafl.errors import CorruptVolume, DamagedRecord
from wafl.filesystem import inode_fields
from wafl.format import (
    BLOCK_BYTES,
    BLOCK_SHIFT,
    LOG_HEADER,
    LOG_PUNCH,
    LOG_SHARE,
    LOG_SNAPSHOT,
    LOG_VTOC,
    LOG_WRITE,
    MAX_LUNS,
    POINTERS,
    VTOC_ENTRY,
    EntryState,
    InodeType,
    LogKind,
    decode_text,
    height_for,
)
from wafl.inode import grow_height
from wafl.lun import Lun
from wafl.nvlog import HEADER_BYTES, MAX_RECORD_BYTES, half_size
from wafl.sharing import replay_share

if TYPE_CHECKING:
    from wafl.volume import Volume

BODY_BYTES = {
    LogKind.WRITE: LOG_WRITE.size,
    LogKind.PUNCH: LOG_PUNCH.size,
    LogKind.VTOC: LOG_VTOC.size + VTOC_ENTRY.size,
    LogKind.SNAPSHOT: LOG_SNAPSHOT.size,
    LogKind.SHARE: LOG_SHARE.size,
}
"""Bytes that a record of the kind has behind its header at least."""
STEP = 8
"""Records are aligned to this."""


class LogRecord(NamedTuple):
    seq: int
    kind: LogKind
    durable: int
    body: memoryview


class LoggedWrite(NamedTuple):
    slot: int
    fbn: int
    vbn: int
    crcs: list[int]


@dataclass(slots=True)
class LogContents:
    """What a log holds beyond a consistency point."""

    records: list[LogRecord] = field(default_factory=list)
    ended_by: str = ""
    """Why the log ends where it does, if by something torn."""

    @property
    def last_seq(self) -> int:
        return self.records[-1].seq if self.records else 0


ReadAt = Callable[[int, int], memoryview]
"""(offset within the log, length) -> bytes."""


def read_log(read: ReadAt, size_bytes: int, *, seed: int, seq: int, generation: int, device: Device) -> LogContents:
    """The valid records behind record `seq` of a log of `size_bytes`, written after the freeze of the consistency point
    before `generation`.  Raises DamagedRecord where something that was durable is not there."""
    half = half_size(size_bytes)
    contents = LogContents()
    halves: list[tuple[memoryview, int]] = []
    for number in (generation & 1, 1 - (generation & 1)):
        data = read(number * half, half)
        end = _read_half(data, seed, contents.records, contents.records[-1].seq if contents.records else seq)
        halves.append((data, end))
    _check_end(contents, halves, seed, seq)
    _check_data(contents, device)
    return contents


def _read_half(data: memoryview, seed: int, records: list[LogRecord], seq: int) -> int:
    """Add the records of one half that go on from `seq`; the offset where they end."""
    at = 0
    while (record := _record_at(data, at, seed)) is not None and record.seq == seq + 1:
        records.append(record)
        seq += 1
        at += HEADER_BYTES + len(record.body)
    return at


def _record_at(data: memoryview, at: int, seed: int) -> LogRecord | None:
    if at + HEADER_BYTES > len(data):
        return None
    crc, size, kind, seq, durable = LOG_HEADER.layout.unpack_from(data, at)
    if not HEADER_BYTES < size <= min(MAX_RECORD_BYTES, len(data) - at) or size % STEP or not 1 <= kind <= len(LogKind):
        return None
    if crc32c(data[at + 4 : at + size], seed) != crc:
        return None
    body = data[at + HEADER_BYTES : at + size]
    if len(body) < BODY_BYTES[LogKind(kind)]:
        raise DamagedRecord(f"log record {seq} is too short")
    return LogRecord(seq, LogKind(kind), durable, body)


def _check_end(contents: LogContents, halves: list[tuple[memoryview, int]], seed: int, seq: int) -> None:
    """Whether something behind the end says that more had been durable."""
    last = contents.last_seq or seq
    for data, end in halves:
        words = np.frombuffer(data, "<u8")[end // STEP :]
        numbers = words[1:-1].view("<i8")
        # Records of one log are fewer than its words: most of what is not a record goes here.
        for index in np.flatnonzero((numbers > last) & (numbers <= last + 2 * len(data))).tolist():
            record = _record_at(data, end + index * STEP, seed)
            if record is None:
                continue
            if record.durable > last:
                raise DamagedRecord(
                    f"log record {last + 1} is damaged, though records up to {record.durable} had been flushed"
                )
            contents.ended_by = f"record {last + 1} is torn and was never flushed"


def _check_data(contents: LogContents, device: Device) -> None:
    """Cut the log where the data of a write is not there.  What was durable when a later record was written is."""
    durable = max((record.durable for record in contents.records), default=0)
    for index, record in enumerate(contents.records):
        if record.kind is not LogKind.WRITE or record.seq <= durable:
            continue
        write = parse_write(record)
        data = bytearray(len(write.crcs) * BLOCK_BYTES)
        try:
            device.pread(write.vbn << BLOCK_SHIFT, data)
            whole = of_blocks(memoryview(data)) == write.crcs
        except OSError as error:
            raise DamagedRecord(f"the data of log record {record.seq} cannot be read ({error})", write.vbn) from error
        if not whole:
            contents.ended_by = f"the data of record {record.seq} is torn and was never flushed"
            del contents.records[index:]
            return


def parse_write(record: LogRecord) -> LoggedWrite:
    slot, blocks, fbn, vbn = LOG_WRITE.layout.unpack_from(record.body)
    room = (len(record.body) - LOG_WRITE.size) // 4
    if not 1 <= blocks <= min(room, POINTERS - fbn % POINTERS):
        raise DamagedRecord(f"log record {record.seq} writes {blocks} blocks")
    return LoggedWrite(slot, fbn, vbn, record.body[LOG_WRITE.size :].cast("I")[:blocks].tolist())


def apply(volume: Volume, contents: LogContents) -> list[str]:
    """Make the records part of the volume in memory; what of them is lost because a block of the volume cannot be read.
    Raises DamagedRecord."""
    replay = _Replay(volume)
    replay.run(contents.records)
    return replay.lost


class _Replay:
    def __init__(self, volume: Volume) -> None:
        self.volume = volume
        self.files = volume.files
        self.luns: dict[int, Lun] = {lun.slot: lun for lun in volume.files.luns.values()}
        self.lost: list[str] = []

    def run(self, records: list[LogRecord]) -> None:
        writes = {record.seq: parse_write(record) for record in records if record.kind is LogKind.WRITE}
        self.claim(list(writes.values()))
        kinds: dict[LogKind, Callable[[LogRecord], None]] = {
            LogKind.WRITE: lambda record: self.write(record.seq, writes[record.seq]),
            LogKind.PUNCH: self.punch,
            LogKind.VTOC: self.vtoc,
            LogKind.SNAPSHOT: self.snapshot,
            LogKind.SHARE: self.share,
        }
        for record in records:
            try:
                kinds[record.kind](record)
            except DamagedRecord:
                raise
            except CorruptVolume as error:
                self.pass_over(record, writes.get(record.seq), error)
            except OSError as error:
                # Not damage: the disk may give tomorrow what it refuses today, without this record.
                text = f"log record {record.seq} cannot be replayed: {error}; mount again, or from a copy of the disk"
                raise OSError(error.errno, text) from error
        self.volume.core.allocator.apply_frees()

    def pass_over(self, record: LogRecord, write: LoggedWrite | None, error: Exception) -> None:
        """A bad pointer block costs what is below it, in one LUN; that cannot be read without the record either."""
        slot = int.from_bytes(record.body[:4], "little")
        where = self.luns[slot].name if slot in self.luns else f"vtoc slot {slot}"
        if write is not None:
            self.volume.core.allocator.freed.extend(range(write.vbn, write.vbn + len(write.crcs)))
            where += f", {len(write.crcs)} blocks from byte {write.fbn << BLOCK_SHIFT} on"
        self.lost.append(f"log record {record.seq} ({where}) is lost: {error}")

    def claim(self, writes: list[LoggedWrite]) -> None:
        """Mark every block that a record names before any other is taken."""
        if not writes:
            return
        geometry = self.volume.geometry
        if any(not geometry.head_blocks <= write.vbn <= geometry.tail_ring - len(write.crcs) for write in writes):
            raise DamagedRecord("a log record names blocks where no data can be")
        starts = np.array([write.vbn for write in writes], np.uint64)
        ends = starts + np.array([len(write.crcs) for write in writes], np.uint64)
        vbns: Vbns = np.concatenate([np.arange(*pair, dtype=np.uint64) for pair in zip(starts, ends, strict=True)])
        if not self.volume.core.allocator.claim(vbns):
            raise DamagedRecord("a log record names blocks that are in use")

    def lun(self, record: LogRecord, slot: int) -> Lun:
        lun = self.luns.get(slot)
        if lun is None:
            raise DamagedRecord(f"log record {record.seq} is about a LUN in vtoc slot {slot}, where none is")
        return lun

    def write(self, seq: int, write: LoggedWrite) -> None:
        lun = self.luns.get(write.slot)
        if lun is None or (write.fbn + len(write.crcs) - 1) << BLOCK_SHIFT >= lun.size_bytes:
            raise DamagedRecord(f"log record {seq} writes where no LUN is")
        lun.point_at(write.fbn, write.vbn, write.crcs)

    def punch(self, record: LogRecord) -> None:
        slot, cut, first, last = LOG_PUNCH.layout.unpack_from(record.body)
        lun = self.lun(record, slot)
        if not first < last <= -(-lun.size_bytes // BLOCK_BYTES):
            raise DamagedRecord(f"log record {record.seq} unmaps blocks {first} to {last}")
        try:
            damage = lun.replay_punch(first, last, cut=bool(cut))
        except CorruptVolume as error:
            # Not of the LUN itself: what it unmapped can still be read.
            raise DamagedRecord(f"log record {record.seq} cannot be replayed: {error}") from error
        if damage is not None:
            raise damage

    def share(self, record: LogRecord) -> None:
        slot, source_slot, fbn, source_fbn, blocks = LOG_SHARE.layout.unpack_from(record.body)
        lun, source = self.lun(record, slot), self.lun(record, source_slot)
        inside = all(
            0 < blocks <= (which.size_bytes >> BLOCK_SHIFT) - first
            for which, first in ((lun, fbn), (source, source_fbn))
        )
        if not inside or (lun is source and abs(fbn - source_fbn) < blocks):
            raise DamagedRecord(f"log record {record.seq} shares {blocks} blocks")
        replay_share(lun, fbn, source, source_fbn, blocks)

    def vtoc(self, record: LogRecord) -> None:
        """The LUN of a slot was made, changed or destroyed."""
        (slot, _) = LOG_VTOC.layout.unpack_from(record.body)
        fields = VTOC_ENTRY.unpack(record.body, LOG_VTOC.size)
        lun = self.luns.get(slot)
        if fields["state"] != EntryState.LIVE:
            self.files.destroy_lun(self.lun(record, slot).name)
            del self.luns[slot]
            return
        if slot >= MAX_LUNS:
            raise DamagedRecord(f"log record {record.seq} makes a LUN in vtoc slot {slot}")
        if self.files.luns.get(decode_text(fields["name"]), lun) is not lun:
            raise DamagedRecord(f"log record {record.seq} makes a LUN whose name is taken")
        if lun is None:
            # The record's own inode does not count: reclaim is not logged, so another number may be free now.
            inode = self.files.new_inode(InodeType.LUN, fields["size_bytes"])
            lun = self.files.lun_from(slot, fields | inode_fields(inode))
            self.luns[slot] = self.files.luns[lun.name] = lun
        elif lun.uuid_bytes != fields["uuid"]:
            raise DamagedRecord(f"log record {record.seq} is about another LUN than the one in vtoc slot {slot}")
        else:
            grow_height(self.volume.core, lun.inode, height_for(-(-fields["size_bytes"] // BLOCK_BYTES)))
            self.change(lun, self.files.lun_from(slot, fields | inode_fields(lun.inode)))
        self.files.touch_lun(lun)

    def change(self, lun: Lun, logged: Lun) -> None:
        """The LUN becomes what the entry says, but for the backing: only its limit can have fallen.  A detach that no
        consistency point has made durable did not happen, and the clone is still wanted (invariant C3)."""
        del self.files.luns[lun.name]
        for what in ("name", "serial", "ostype", "comment", "online", "reserved", "size_bytes"):
            setattr(lun, what, getattr(logged, what))
        self.files.luns[lun.name] = lun
        lun.inode.size_bytes = lun.size_bytes
        lun.inode.touch(self.volume.core)
        if lun.backing is None or logged.backing is not None:
            lun.clone_requested = logged.clone_requested
        if lun.backing is not None and logged.backing is not None:
            lun.lower_limit(logged.backing.limit_bytes)

    def snapshot(self, record: LogRecord) -> None:
        fields = LOG_SNAPSHOT.unpack(record.body)
        table = self.volume.snapshots_table
        snapshot = table.by_id.get(fields["id"])
        if snapshot is None:
            raise DamagedRecord(f"log record {record.seq} is about a snapshot that is not there")
        if fields["state"] == EntryState.DELETING:
            table.delete(snapshot.name)
        else:
            table.rename(snapshot.name, decode_text(fields["name"]))
