"""The log of what guests were told and no consistency point has yet (nvlog).

Two promises hang on it: a crash of the daemon loses nothing acknowledged, because a record is written before the answer
goes out; and a power cut loses nothing flushed, because one sync makes records and data durable together.
docs/format.md, "The log", has the layout; wafl.replay reads it.

Rules:

- A record is appended after the change that it tells of, data written and pointers changed, by whoever made the change.
- It is written at once, or, if `batched`, with all others of a batch of commands by `push`, which whoever answers hosts
  then calls before an answer goes out.  (Not through memory shared with the file: each sync would protect its pages
  again, and the next store then waits for the file system, three times as long as the sync itself.)
- Fills and detaches are never logged (spec: no NVLOG protection); what is neither logged nor a fill (a restore, growth
  of the volume) makes a consistency point before anything else can happen.  So does an UNMAP while the LUN's detach is
  not durable.
- Each freeze goes on in the other half.  If a half is full before that, or a record cannot be written, `overflow` makes
  a consistency point on the spot, and what was to be logged needs no record any more.
- A block that a record names is not reused before the consistency point that makes the record obsolete: it is freed in
  the record's own generation at the earliest (wafl.allocator).
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Callable

from crc32c import crc32c

from wafl.errors import VolumeFailed
from wafl.format import LOG_HEADER, LOG_PUNCH, LOG_SHARE, LOG_SNAPSHOT, LOG_VTOC, LOG_WRITE, EntryState, LogKind

HEADER_BYTES = LOG_HEADER.size
MAX_RECORD_BYTES = 2048
"""The largest is a write of a whole level-1 range or a vtoc entry, little over 1 KiB."""
CHANGE_BYTES = 4 * MAX_RECORD_BYTES
"""A command of an administrator makes no more records than this."""
CHECKPOINT_BYTES = 8 << 20
"""A consistency point is due when this much is in the log: it bounds what a mount has to replay."""

PIECE_BYTES = 1 << 20

_U32 = struct.Struct("<I")
_ONE_BYTES = HEADER_BYTES + LOG_WRITE.size + 8
_ONE = struct.Struct("<I QQ Q QQ I 4x")
"""A write of one block, without the checksum that goes before it: size and kind, seq, durable, slot and number of
blocks, fbn, vbn, crc."""
_ONE_HEAD = LogKind.WRITE << 16 | _ONE_BYTES
_ONE_BLOCK = 1 << 32
assert _ONE.size == _ONE_BYTES - _U32.size

WriteAt = Callable[[int, bytes], None]
"""(offset within the log, data): write it.  Raises OSError."""


def seed_of(uuid: bytes, epoch: int) -> int:
    """What the records' checksums begin with: no other volume's record fits, and none from before the mount."""
    return crc32c(uuid + struct.pack("<Q", epoch))


class Log:
    """The two halves and the place of the next record.  One thread appends."""

    def __init__(self, write: WriteAt, size_bytes: int, seed: int, seq: int, generation: int,
                 overflow: Callable[[], None]) -> None:  # fmt: skip
        self.batched = False
        self.pushed = seq
        """All records up to this one are written."""
        self.half_bytes = half_size(size_bytes)
        self.seq = seq
        """Of the last record."""
        self.durable = seq
        """All records up to this one would survive a power cut."""
        self.written = self.synced = 0
        """Bytes of records since the mount, and how many of them are durable."""
        self.checkpoint_bytes = min(CHECKPOINT_BYTES, self.half_bytes // 2)
        self._seed = seed
        self._write = write
        self._pending = bytearray()
        """Records that are not written yet, up to `at`."""
        self._failed = False
        self._overflow = overflow
        self.switch(generation)

    def switch(self, generation: int) -> None:
        """The freeze: records of `generation` go into the other half.  Raises OSError."""
        try:
            self._write_pending()
        except OSError:
            self._failed = True  # what was to be written is promised by nothing
            raise
        self._start = self.at = (generation & 1) * self.half_bytes
        self._limit = self.at + self.half_bytes

    @property
    def fill_bytes(self) -> int:
        """In the current half."""
        return self.at - self._start

    @property
    def unsynced_bytes(self) -> int:
        """Of records that are not durable: what a sync has to write can be told from them."""
        return self.written + len(self._pending) - self.synced

    @property
    def one_unsynced(self) -> bool:
        """Nothing but a write of one block has to become durable."""
        return self.unsynced_bytes == _ONE_BYTES

    @property
    def nearly_full(self) -> bool:
        """Whether the next change may find no room in the current half."""
        return self._limit - self.at < CHANGE_BYTES

    def has_room(self, blocks: int) -> bool:
        """For so many records of one block each, without a consistency point."""
        return self.at + blocks * _ONE_BYTES <= self._limit

    # --- records ---------------------------------------------------------------------------------------------------

    def write_one(self, slot: int, fbn: int, vbn: int, crc: int) -> None:
        """One block of the LUN in vtoc slot `slot` was written."""
        at = self.at
        end = at + _ONE_BYTES
        if end > self._limit:
            self.do_without()
            return
        seq = self.seq + 1
        record = _ONE.pack(_ONE_HEAD, seq, self.durable, slot | _ONE_BLOCK, fbn, vbn, crc)
        self._pending += _U32.pack(crc32c(record, self._seed)) + record
        self.at, self.seq = end, seq
        if not self.batched:
            self.push()

    def write_each(self, slot: int, fbns: list[int], vbn: int, crcs: list[int]) -> None:
        """Blocks anywhere in the LUN were written to neighbours on the volume; there is room for them (`has_room`)."""
        seq, durable, seed, where = self.seq, self.durable, self._seed, slot | _ONE_BLOCK
        pieces = []
        for fbn, crc in zip(fbns, crcs, strict=True):
            seq += 1
            record = _ONE.pack(_ONE_HEAD, seq, durable, where, fbn, vbn, crc)
            pieces.append(_U32.pack(crc32c(record, seed)))
            pieces.append(record)
            vbn += 1
        self._pending += b"".join(pieces)
        self.at, self.seq = self.at + len(fbns) * _ONE_BYTES, seq
        assert self.at <= self._limit
        if not self.batched:
            self.push()

    def write(self, slot: int, fbn: int, vbn: int, crcs: list[int]) -> None:
        """Neighbours within one level-1 range were written to neighbours on the volume."""
        body = LOG_WRITE.layout.pack(slot, len(crcs), fbn, vbn) + array("I", crcs).tobytes()
        self._append(LogKind.WRITE, body)

    def punch(self, slot: int, first: int, last: int, *, cut: bool) -> None:
        self._append(LogKind.PUNCH, LOG_PUNCH.layout.pack(slot, cut, first, last))

    def share(self, slot: int, fbn: int, source_slot: int, source_fbn: int, blocks: int) -> None:
        self._append(LogKind.SHARE, LOG_SHARE.layout.pack(slot, source_slot, fbn, source_fbn, blocks))

    def vtoc(self, slot: int, entry: bytes) -> None:
        self._append(LogKind.VTOC, LOG_VTOC.layout.pack(slot, 0) + entry)

    def snapshot(self, number: int, state: EntryState, name: str) -> None:
        self._append(LogKind.SNAPSHOT, LOG_SNAPSHOT.pack(id=number, state=int(state), name=name.encode()))

    def _append(self, kind: LogKind, body: bytes) -> None:
        body += bytes(-len(body) % 8)
        end = self.at + HEADER_BYTES + len(body)
        if end > self._limit:
            self.do_without()
            return
        seq = self.seq + 1
        record = LOG_HEADER.layout.pack(0, HEADER_BYTES + len(body), kind, seq, self.durable)[4:] + body
        self._pending += _U32.pack(crc32c(record, self._seed)) + record
        self.at, self.seq = end, seq
        if not self.batched:
            self.push()

    def push(self) -> None:
        """Write what is pending: from now on it survives a crash of the daemon.  Raises VolumeFailed if neither the log
        nor a consistency point could be written, and from then on."""
        if self._failed:
            raise VolumeFailed("the log could not be written, nor a consistency point")
        if self._pending:
            try:
                self._write_pending()
            except OSError:
                self.do_without()
        else:
            self.pushed = self.seq

    def _write_pending(self) -> None:
        data = bytes(self._pending)
        if data:
            self._pending.clear()
            self.written += len(data)
            self._write(self.at - len(data), data)
        self.pushed = self.seq  # who syncs in another thread counts no record that is not there yet

    def do_without(self) -> None:
        """There is no room for the record, or it cannot be written: a consistency point has what it would have said.
        The record's number is used up all the same: a replay that stands on an older consistency point must not pass
        over it."""
        self.seq += 1
        try:
            self._overflow()
        except BaseException:
            self._failed = True
            raise


def write_out(write: WriteAt, size_bytes: int) -> None:
    """Zeros where a new log of `size_bytes` will be written: a sync of what is written into unallocated space of a file
    takes twice as long."""
    half = half_size(size_bytes)
    for start in (0, half):
        for at in range(start, start + min(half, CHECKPOINT_BYTES), PIECE_BYTES):
            write(at, bytes(min(PIECE_BYTES, start + half - at)))


def half_size(size_bytes: int) -> int:
    """Bytes of each half of a log of `size_bytes`."""
    return size_bytes // 2 & ~4095
