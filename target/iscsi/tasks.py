"""SCSI commands that are not answered yet, and the Data-Out they gather: RFC 7143 4.2.5.2, 11.7, 11.8.

A command that can be answered while its PDU is looked at never becomes a Task.  A Task gathers unsolicited data, then
asks for the rest with R2Ts, then waits for the device server.  The rules of order are here; sending is not.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum, auto
from typing import TYPE_CHECKING

from target.iscsi import limits
from target.iscsi.buffers import Memory
from target.iscsi.constants import (
    INCORRECT_AMOUNT_OF_DATA,
    NO_TAG,
    PROTOCOL_SERVICE_CRC_ERROR,
)

if TYPE_CHECKING:
    from target.iscsi.connection import Connection
    from target.iscsi.ports import Placing


class State(Enum):
    GATHERING = auto()
    """Data-Out is on its way."""
    STARVED = auto()
    """Waits for other commands to give their buffers back before its first R2T."""
    EXECUTING = auto()
    """In the device server."""
    ANSWERING = auto()
    """The response is made and waits for room in the output."""
    GONE = auto()
    """Answered or aborted; a late `done` finds this and does nothing."""


class Sequence:
    """One run of Data-Out PDUs: the unsolicited one (tag FFFFFFFFh) or the answer to one R2T."""

    __slots__ = ("data_sn", "end", "offset", "pieces", "ttt")

    def __init__(self, ttt: int, offset: int, end: int, pieces: Pieces | None = None) -> None:
        self.ttt = ttt
        self.offset = offset
        """Where it begins, and one on with each byte taken."""
        self.end = end
        self.data_sn = 0
        self.pieces = pieces
        """Only with DataPDUInOrder=No."""

    def fits(self, offset: int, length: int) -> bool:
        """Is this the Data-Out that comes next, or (in any order) one that is missing?"""
        if self.pieces is not None:
            return self.pieces.missing(offset, offset + length)
        return offset == self.offset and offset + length <= self.end


class Pieces:
    """What of a run has come, in any order (13.18, DataPDUInOrder=No): each byte once."""

    def __init__(self, start: int, end: int) -> None:
        self._missing = [(start, end)]
        self._next = (start, start)

    def missing(self, start: int, end: int) -> bool:
        """None of it is here, and taking it leaves no more gaps than are kept track of."""
        self._next = start, end
        if start == end:
            return True
        gaps = limits.DATA_OUT_GAPS
        return len(self._missing) < gaps and any(low <= start and end <= high for low, high in self._missing)

    def take(self) -> None:
        """What was asked for last is here."""
        start, end = self._next
        if start == end:
            return
        left = ((low, high, low <= start and end <= high) for low, high in self._missing)
        pieces = [part for low, high, hit in left for part in (((low, start), (end, high)) if hit else ((low, high),))]
        self._missing = [(low, high) for low, high in pieces if low < high]


class Task:
    """One SCSI command in progress."""

    __slots__ = (
        "attribute", "buffer", "cdb", "cmd_sn", "connection", "edtl", "failure", "immediate", "itt", "length", "lun",
        "next_offset", "pinned", "placing", "pooled", "r2t_sn", "received", "sequences", "state", "write",
    )  # fmt: skip

    def __init__(
        self, connection: Connection, itt: int, lun: int, cdb: bytes, attribute: int, edtl: int, cmd_sn: int,
        immediate: bool, write: bool,
    ) -> None:  # fmt: skip
        self.connection = connection
        self.itt = itt
        self.lun = lun
        self.cdb = cdb
        self.attribute = attribute
        self.edtl = edtl
        self.cmd_sn = cmd_sn
        self.immediate = immediate
        self.write = write
        self.state = State.EXECUTING
        self.buffer: memoryview | None = None
        self.pooled: Memory | None = None
        self.placing: Placing | None = None
        """Where the data goes as it comes; then there is no buffer."""
        self.pinned = False
        """Bytes are being received into the buffer at this moment."""
        self.length = 0
        """Bytes of Data-Out that the command takes; what EDTL has beyond is thrown away."""
        self.received = 0
        self.next_offset = 0
        """Where the next R2T begins."""
        self.r2t_sn = 0
        self.sequences: dict[int, Sequence] = {}
        """Runs of Data-Out that are under way, by target transfer tag."""
        self.failure = b""
        """Sense data with which the command ends once the initiator has sent what it was going to send."""

    @property
    def complete(self) -> bool:
        """Nothing more can come: every run has ended and (unless it failed) all data is here."""
        return not self.sequences and (bool(self.failure) or self.received >= self.length)

    def open_unsolicited(self, offset: int, limit: int) -> None:
        self.sequences[NO_TAG] = self._sequence(NO_TAG, offset, limit)

    def next_solicited(self, ttt: int, max_burst: int) -> Sequence:
        end = min(self.next_offset + max_burst, self.length)
        sequence = self.sequences[ttt] = self._sequence(ttt, self.next_offset, end)
        self.next_offset = end
        return sequence

    def _sequence(self, ttt: int, start: int, end: int) -> Sequence:
        in_order = self.connection.rules.data_pdu_in_order
        return Sequence(ttt, start, end, None if in_order else Pieces(start, end))

    def check(self, sequence: Sequence, data_sn: int, offset: int, length: int) -> bool:
        """Is this Data-Out the one that comes next?  If not, the command will fail (RFC 7143 7.8, level 0)."""
        # 13.19: with DataSequenceInOrder=Yes R2Ts are answered in their order; what comes in another is taken as well
        if data_sn != sequence.data_sn:
            self.failure = self.failure or PROTOCOL_SERVICE_CRC_ERROR
        elif not sequence.fits(offset, length):
            self.failure = self.failure or INCORRECT_AMOUNT_OF_DATA
        return not self.failure

    def place(self, offset: int, length: int) -> memoryview | None:
        """Where the data of a Data-Out goes: shorter than `length` if the command takes less."""
        if self.buffer is None or offset >= self.length:
            return None
        return self.buffer[offset : min(offset + length, self.length)]

    def took(self, sequence: Sequence, length: int, final: bool) -> None:
        """A Data-Out of the sequence was taken (or thrown away, if the command failed)."""
        if sequence.pieces is not None and not self.failure:
            sequence.pieces.take()
        sequence.data_sn += 1
        sequence.offset += length
        self.received += length
        if not final:
            return
        del self.sequences[sequence.ttt]
        # 11.7.1: the initiator says that it has sent all that was asked for
        if sequence.ttt == NO_TAG:
            self.next_offset = sequence.offset
        elif sequence.offset < sequence.end:
            self.failure = self.failure or INCORRECT_AMOUNT_OF_DATA

    @property
    def wants_r2t(self) -> bool:
        return not self.failure and NO_TAG not in self.sequences and self.next_offset < self.length

    def release(self) -> Memory | None:
        """The buffer to be used again, if there is one."""
        pooled, self.pooled, self.buffer = self.pooled, None, None
        return pooled


class TransferTags:
    """Target transfer tags of one session: never FFFFFFFFh, used round."""

    __slots__ = ("_given", "_next")

    def __init__(self) -> None:
        self._next = 1
        self._given = 0

    def take(self) -> int:
        tag = self._next
        self._next = 1 if tag == NO_TAG - 1 else tag + 1
        self._given += 1
        return tag

    def was_given(self, tag: int) -> bool:
        """Has this tag been given out at all?  A Data-Out with a tag that was not is a protocol error, one for a
        command that has ended meanwhile is not."""
        return tag not in (0, NO_TAG) and (self._given >= NO_TAG or tag < self._next)


def iter_lun(tasks: dict[int, Task], lun: int | None) -> Iterator[Task]:
    """The tasks of one logical unit, or all; safe against removal while iterating."""
    return (task for task in list(tasks.values()) if lun is None or task.lun == lun)
