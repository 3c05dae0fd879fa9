"""The hot path: plain reads and writes of a batch, straight from one buffer into the other (DESIGN 6.2).

A plain command is in order, unaddressed by anything special, and done by the device server in one call (`fast_read`,
`fast_read_pieces`, `fast_write`).  It costs one unpack, one call, one pack: no object, no log, no state outside the
locals of `run`.  Everything else goes to `dispatch` of the connection, with the locals written back and read again
after.  A READ that the device server cannot do at once (a disk wait, most likely; it has begun to read ahead) is
put aside until the rest of the batch is done; SIMPLE and untagged tasks may be reordered (SAM-5 8.6), and whatever
is not such a SCSI Command waits for what was put aside.  It counts against the command window all the while.

Length of `run`: one loop, because a call costs more than what most of its branches do.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from crc32c import crc32c

from target.iscsi import layouts
from target.iscsi.constants import DATA_IN_STATUS, FINAL, NO_TAG, Opcode
from target.iscsi.errors import FormatError
from target.iscsi.window import MASK

if TYPE_CHECKING:
    from target.iscsi.connection import Connection

_UNPACK = layouts.SCSI_COMMAND.codec.unpack_from
_PACK_DATA_IN = layouts.DATA_IN.codec.pack_into
_PACK_ONLY_DATA_IN = layouts.ONLY_DATA_IN.codec.pack_into
_PACK_GOOD = layouts.GOOD_RESPONSE.codec.pack_into
_DIGEST = struct.Struct("<I")
_UNPACK_DIGEST = _DIGEST.unpack_from
_PACK_DIGEST = _DIGEST.pack_into

# whole flag bytes of SCSI Command: F and R, F and W, with attribute untagged or SIMPLE
_PLAIN_READS = frozenset((0xC0, 0xC1))
_PLAIN_WRITES = frozenset((0xA0, 0xA1))
# operation codes of READ(6), (10), (16), (12): worth putting aside
_READ_CODES = frozenset((0x08, 0x28, 0x88, 0xA8))
# ORDERED, HEAD OF QUEUE, ACA (11.3.1): what came before them comes first
_ORDERED = 0x06
# F alone, untagged or SIMPLE, and the operation codes of SYNCHRONIZE CACHE(10), (16)
_PLAIN_OTHERS = frozenset((0x80, 0x81))
_FLUSH_CODES = frozenset((0x35, 0x91))
_BLOCK_MASK = 0x1FF
GATHERED_WRITES = 64
"""Writes that came together are given to the device server together, so many at most."""
_COMMAND = int(Opcode.SCSI_COMMAND)
_DATA_IN = int(Opcode.DATA_IN)
_FINAL_WITH_STATUS = FINAL | DATA_IN_STATUS
# opcode, flags, and two bytes that are zero with GOOD
_DATA_IN_HEAD = Opcode.DATA_IN << 24 | _FINAL_WITH_STATUS << 16
_GOOD_HEAD = Opcode.SCSI_RESPONSE << 24 | FINAL << 16


def run(c: Connection) -> None:
    """Take every whole PDU of the receive buffer, until it is used up or the output is full.  Raises FormatError."""
    session, rx, out, framing = c.session, c.rx, c.output, c.framing
    window, tasks, nexus, view = session.window, session.tasks, session.nexus, rx.view
    header_digest, data_digest = framing.header_digest, framing.data_digest
    bhs = 52 if header_digest else 48
    trailer = 4 if data_digest else 0
    read_max, write_max = c.plain_read_max, c.plain_write_max
    fast_read = nexus.fast_read if nexus is not None else None
    fast_write = nexus.fast_write if nexus is not None else None
    buffer, answers, room = out.buffer, out.view, out.size - trailer
    reads = read_bytes = writes = written_bytes = 0
    aside: list[int] = []
    flushes: list[int] = []
    nonsense: FormatError | None = None

    pos, end, at = rx.start, rx.end, out.used
    expected, credit, stat_sn = window.exp_cmd_sn, window.credit, c.stat_sn
    held = window.early or window.functions or window.frozen
    plain = fast_read is not None and not held and credit >= 0
    gather = True

    while end - pos >= bhs:
        opcode, flags, lengths, lun, itt, edtl, cmd_sn, _ = _UNPACK(view, pos)
        if header_digest and lengths < 0x1000000 and crc32c(view[pos : pos + 48]) != _UNPACK_DIGEST(view, pos + 48)[0]:
            nonsense = FormatError("header digest does not match")
            break

        if opcode == _COMMAND and cmd_sn == expected and plain and itt not in tasks:
            if flags in _PLAIN_READS and not lengths and edtl and not edtl & 3:
                if edtl <= read_max:
                    data_at = at + bhs
                    data_end = data_at + edtl
                    if data_end > room:
                        c.blocked = True
                        break
                    if fast_read(lun, view, pos + 32, edtl, answers[data_at:data_end]) == edtl:  # type: ignore[misc]
                        expected = (expected + 1) & MASK
                        _PACK_ONLY_DATA_IN(
                            buffer, at, _DATA_IN_HEAD, edtl, itt, NO_TAG, stat_sn, expected, (expected + credit) & MASK
                        )
                        if header_digest:
                            _PACK_DIGEST(buffer, at + 48, crc32c(answers[at : at + 48]))
                        if data_digest:
                            _PACK_DIGEST(buffer, data_end, crc32c(answers[data_at:data_end]))
                        stat_sn = (stat_sn + 1) & MASK
                        at = data_end + trailer
                        pos += bhs
                        reads += 1
                        read_bytes += edtl
                        continue
                elif pieces := places(c, edtl, at, bhs, trailer):
                    after = pieces[-1][1] + trailer
                    if after > out.size:
                        c.blocked = True
                        break
                    views = [answers[begin:finish] for begin, finish, _ in pieces]
                    if nexus.fast_read_pieces(lun, view, pos + 32, edtl, views):  # type: ignore[union-attr]
                        expected = (expected + 1) & MASK
                        answer_in_pieces(c, itt, pieces, stat_sn, expected, (expected + credit) & MASK)
                        stat_sn = (stat_sn + 1) & MASK
                        at = after
                        pos += bhs
                        reads += 1
                        read_bytes += edtl
                        continue
                if credit > 0 and view[pos + 32] in _READ_CODES:
                    expected = (expected + 1) & MASK
                    credit -= 1
                    window.outstanding += 1
                    aside.append(pos)
                    pos += bhs
                    continue
            elif flags in _PLAIN_WRITES and 0 < lengths == edtl <= write_max and not edtl & 3:
                data_at = pos + bhs
                data_end = data_at + edtl
                if data_end + trailer > end:
                    break
                if at + bhs > room:
                    c.blocked = True
                    break
                after = data_end + trailer
                if gather and end - after >= bhs + edtl and view[after + 1] in _PLAIN_WRITES:
                    most = min(GATHERED_WRITES, (room - at) // bhs)
                    itts, cdbs, datas, after = _writes_from(c, pos, expected, lun, bhs, trailer, most)
                    gather = len(itts) > 1 and nexus.fast_writes(lun, view, cdbs, datas)  # type: ignore[union-attr]
                    if gather:
                        for itt in itts:
                            expected = (expected + 1) & MASK
                            _PACK_GOOD(buffer, at, _GOOD_HEAD, itt, stat_sn, expected, (expected + credit) & MASK)
                            if header_digest:
                                _PACK_DIGEST(buffer, at + 48, crc32c(answers[at : at + 48]))
                            stat_sn = (stat_sn + 1) & MASK
                            at += bhs
                        pos = after
                        writes += len(itts)
                        written_bytes += sum(map(len, datas))
                        continue
                data = view[data_at:data_end]
                if (not data_digest or crc32c(data) == _UNPACK_DIGEST(view, data_end)[0]) and fast_write(  # type: ignore[misc]
                    lun, view, pos + 32, data
                ):
                    expected = (expected + 1) & MASK
                    _PACK_GOOD(buffer, at, _GOOD_HEAD, itt, stat_sn, expected, (expected + credit) & MASK)
                    if header_digest:
                        _PACK_DIGEST(buffer, at + 48, crc32c(answers[at : at + 48]))
                    stat_sn = (stat_sn + 1) & MASK
                    at += bhs
                    pos = data_end + trailer
                    writes += 1
                    written_bytes += edtl
                    continue

            elif (
                flags in _PLAIN_OTHERS and not lengths and not edtl and view[pos + 32] in _FLUSH_CODES and credit > 0
                and nexus.fast_flush(lun, view, pos + 32)  # type: ignore[union-attr]
            ):  # fmt: skip
                expected = (expected + 1) & MASK
                credit -= 1
                window.outstanding += 1
                flushes.append(pos)
                pos += bhs
                continue

        try:
            size = framing.size(view, pos)
        except FormatError as error:
            nonsense = error
            break
        if end - pos < size:
            break
        out.used, window.exp_cmd_sn, c.stat_sn = at, expected, stat_sn
        if (aside or session.cold.waiting) and (opcode != _COMMAND or flags & _ORDERED):
            session.cold.put_aside(c, aside)
            session.cold.finish()
        if (flushes or session.flushes.waiting) and opcode != _COMMAND:
            if flushes:
                session.flushes.ask(c, flushes, here=False)
            session.flushes.finish()
        try:
            c.dispatch(view, pos)
        except FormatError as error:
            nonsense = error
        pos += size
        at, expected, credit, stat_sn = out.used, window.exp_cmd_sn, window.credit, c.stat_sn
        held = window.early or window.functions or window.frozen
        plain = fast_read is not None and not held and credit >= 0
        if c.waiting or not c.full_feature or nonsense is not None:
            c.blocked = True
            break

    rx.start = pos
    out.used, window.exp_cmd_sn, c.stat_sn = at, expected, stat_sn
    counters = session.counters
    counters.reads += reads
    counters.read_bytes += read_bytes
    counters.writes += writes
    counters.written_bytes += written_bytes
    if reads or writes or flushes:
        c.heard()
    c.crowded = reads > 0 and reads + writes + len(flushes) > 1
    if flushes:
        alone = not (reads or writes or aside or pos < end) and window.outstanding == len(flushes)
        session.flushes.ask(c, flushes, here=alone and c.host.alone(c.now))
    if aside:
        session.cold.put_aside(c, aside)
        session.cold.wait()
    if nonsense is not None:  # now that what came before has been counted: other connections may go on
        raise nonsense


def _writes_from(
    c: Connection, pos: int, expected: int, lun: int, bhs: int, trailer: int, most: int
) -> tuple[list[int], list[int], list[memoryview], int]:
    """Plain writes to one LUN that have come one behind the other from `pos` on: their tags, where their CDBs
    are, their data, and where the last one ends."""
    view, end, tasks = c.rx.view, c.rx.end, c.session.tasks
    header_digest, data_digest = c.framing.header_digest, c.framing.data_digest
    longest = c.plain_write_max
    itts: list[int] = []
    cdbs: list[int] = []
    datas: list[memoryview] = []
    while len(itts) < most and end - pos >= bhs:
        opcode, flags, lengths, to, itt, edtl, cmd_sn, _ = _UNPACK(view, pos)
        if opcode != _COMMAND or cmd_sn != expected or to != lun or flags not in _PLAIN_WRITES or itt in tasks:
            break
        data_at = pos + bhs
        data_end = data_at + edtl
        if not 0 < lengths == edtl <= longest or edtl & 3 or data_end + trailer > end:
            break
        data = view[data_at:data_end]
        if header_digest and crc32c(view[pos : pos + 48]) != _UNPACK_DIGEST(view, pos + 48)[0]:
            break
        if data_digest and crc32c(data) != _UNPACK_DIGEST(view, data_end)[0]:
            break
        itts.append(itt)
        cdbs.append(pos + 32)
        datas.append(data)
        expected = (expected + 1) & MASK
        pos = data_end + trailer
    return itts, cdbs, datas, pos


def places(c: Connection, edtl: int, at: int, bhs: int, trailer: int) -> list[tuple[int, int, int]]:
    """Where the data of a READ goes that takes several Data-In: (begin, end, flags) of each.  Empty: not even an empty
    output buffer holds it, or its pieces would not be whole blocks."""
    longest, max_burst = c.plain_read_max, c.max_burst
    if edtl <= longest:
        return [(at + bhs, at + bhs + edtl, _FINAL_WITH_STATUS)]
    count = -(-edtl // longest) + edtl // max_burst
    if (longest | max_burst) & _BLOCK_MASK or edtl + count * (bhs + trailer) > c.output.size:
        return []
    pieces = []
    done = 0
    while done < edtl:
        # 13.13: a sequence ends at MaxBurstLength
        length = min(longest, edtl - done, max_burst - done % max_burst)
        done += length
        begin = at + bhs
        at = begin + length
        pieces.append((begin, at, _FINAL_WITH_STATUS if done == edtl else 0 if done % max_burst else FINAL))
        at += trailer
    return pieces


def answer_in_pieces(
    c: Connection, itt: int, pieces: list[tuple[int, int, int]], stat_sn: int, expected: int, max_cmd_sn: int
) -> None:
    """The headers and digests around data that is in its places."""
    buffer, answers, framing = c.output.buffer, c.output.view, c.framing
    bhs = 52 if framing.header_digest else 48
    offset = 0
    for data_sn, (begin, end, flags) in enumerate(pieces):
        at = begin - bhs
        # 11.7.3: StatSN is reserved without the S bit
        _PACK_DATA_IN(
            buffer, at, _DATA_IN, flags, 0, end - begin, 0, itt, NO_TAG, stat_sn if flags & DATA_IN_STATUS else 0,
            expected, max_cmd_sn, data_sn, offset, 0,
        )  # fmt: skip
        if framing.header_digest:
            _PACK_DIGEST(buffer, at + 48, crc32c(answers[at : at + 48]))
        if framing.data_digest:
            _PACK_DIGEST(buffer, end, crc32c(answers[begin:end]))
        offset += end - begin
