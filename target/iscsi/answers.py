"""What is sent to an initiator, each kind as an object that writes itself into the output buffer.

`produce` writes as much as fits and says whether it is finished; StatSN and the command window are read when the
bytes are written, so answers that had to wait for room carry the values of that moment, in the right order.
SCSI Response, R2T and Data-In use the struct layouts, the others construct.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from target.iscsi import constants, layouts, pdus
from target.iscsi.constants import FINAL, NO_TAG, Opcode
from target.iscsi.limits import BHS_BYTES
from target.iscsi.ports import DataInFailed, Response
from target.iscsi.tasks import Sequence, State, Task
from target.iscsi.window import MASK

if TYPE_CHECKING:
    from target.iscsi.connection import Connection

_PACK_RESPONSE = layouts.SCSI_RESPONSE.codec.pack_into
_PACK_DATA_IN = layouts.DATA_IN.codec.pack_into
_PACK_R2T = layouts.R2T.codec.pack_into


class Answer(Protocol):
    def produce(self, connection: Connection) -> bool:
        """Write what fits; True when everything is written."""


class Message:
    """A PDU that is not hot: its fields by name, and its data segment."""

    __slots__ = ("counts", "data", "declaration", "fields")

    def __init__(self, opcode: Opcode, data: bytes = b"", counts: bool = True, **fields: Any) -> None:
        self.declaration = pdus.DECLARATIONS[opcode]
        self.fields = {"opcode": opcode, "flags": FINAL, "data_segment_length": len(data), **fields}
        self.data = data
        self.counts = counts
        """False: the PDU shows the next StatSN without using it up (NOP-In that asks, 11.19.1)."""

    def says_what(self, other: Message) -> bool:
        """The same PDU, but for its numbers."""
        return (self.fields, self.data) == (other.fields, other.data)

    def produce(self, connection: Connection) -> bool:
        out, framing = connection.output, connection.framing
        size = framing.encoded_bytes(len(self.data))
        if size > out.room:
            return False
        stat_sn, exp_cmd_sn, max_cmd_sn = connection.numbers(self.counts)
        header = pdus.build_header(
            self.declaration, **self.fields, stat_sn=stat_sn, exp_cmd_sn=exp_cmd_sn, max_cmd_sn=max_cmd_sn
        )
        out.view[out.used : out.used + BHS_BYTES] = header
        start = framing.data_at(out.used)
        out.view[start : start + len(self.data)] = self.data
        out.used = framing.finish(out.view, out.used, len(self.data))
        return True


def residual_of(moved: int, edtl: int) -> tuple[int, int]:
    """(flag, ResidualCount) for a command that moves `moved` bytes where `edtl` were expected: 11.4.5."""
    if moved > edtl:
        return constants.RESIDUAL_OVERFLOW, moved - edtl
    if moved < edtl:
        return constants.RESIDUAL_UNDERFLOW, edtl - moved
    return 0, 0


class ScsiResponse:
    """11.4.  Frees the task's place in the command window as it is written."""

    __slots__ = ("_data_sn", "_edtl", "_flag", "_itt", "_residual", "_sense", "_status", "_task")

    def __init__(
        self, itt: int, edtl: int, response: Response, moved: int, data_sn: int = 0, task: Task | None = None
    ) -> None:
        self._itt = itt
        self._status = response.status
        self._sense = response.sense
        self._flag, self._residual = residual_of(moved, edtl)
        self._data_sn = data_sn
        self._task = task

    def produce(self, connection: Connection) -> bool:
        out, framing, sense = connection.output, connection.framing, self._sense
        length = len(sense) + 2 if sense else 0  # 11.4.7: SenseLength, then the sense data
        if framing.encoded_bytes(length) > out.room:
            return False
        if self._task is not None:
            connection.finish(self._task)
        at = out.used
        _PACK_RESPONSE(
            out.buffer, at, Opcode.SCSI_RESPONSE, FINAL | self._flag, 0, self._status, length, self._itt,
            *connection.numbers(True), self._data_sn, self._residual,
        )  # fmt: skip
        if sense:
            start = framing.data_at(at)
            out.view[start : start + 2] = len(sense).to_bytes(2, "big")
            out.view[start + 2 : start + length] = sense
        out.used = framing.finish(out.view, at, length)
        return True


class ReadyToTransfer:
    """11.8.  Shows the next StatSN without using it up."""

    __slots__ = ("_sequence", "_task")

    def __init__(self, task: Task, sequence: Sequence) -> None:
        self._task = task
        self._sequence = sequence

    def produce(self, connection: Connection) -> bool:
        out, framing = connection.output, connection.framing
        if self._task.state is State.GONE:
            return True
        if framing.encoded_bytes(0) > out.room:
            return False
        task, sequence = self._task, self._sequence
        _PACK_R2T(
            out.buffer, out.used, Opcode.R2T, FINAL, 0, task.lun, task.itt, sequence.ttt, *connection.numbers(False),
            task.r2t_sn, sequence.offset, sequence.end - sequence.offset,
        )  # fmt: skip
        task.r2t_sn += 1
        out.used = framing.finish(out.view, out.used, 0)
        return True


class DataIn:
    """11.7: all Data-In PDUs of one command, the status in the last one if it is GOOD (phase collapse)."""

    __slots__ = ("_at", "_data_sn", "_edtl", "_itt", "_response", "_task", "_total")

    def __init__(self, itt: int, edtl: int, response: Response, task: Task | None = None) -> None:
        self._itt = itt
        self._edtl = edtl
        self._response = response
        self._total = min(response.length, edtl)
        self._at = 0
        self._data_sn = 0
        self._task = task

    def produce(self, connection: Connection) -> bool:
        while self._at < self._total:
            if self._task is not None and self._task.state is State.GONE:
                return True
            length = min(connection.send_data_max, self._total - self._at)
            # 13.13: a sequence ends at MaxBurstLength
            length = min(length, connection.max_burst - self._at % connection.max_burst)
            if connection.framing.encoded_bytes(length) > connection.output.room:
                return False
            try:
                self._segment(connection, length)
            except DataInFailed as failed:
                self._response, self._total = failed.response, self._at
                return self._status_apart(connection)
        return self._status_rides or self._status_apart(connection)

    @property
    def _status_rides(self) -> bool:
        return self._response.status == 0 and not self._response.sense

    def _segment(self, connection: Connection, length: int) -> None:
        out, framing, response, offset = connection.output, connection.framing, self._response, self._at
        at = out.used
        start = framing.data_at(at)
        piece = out.view[start : start + length]
        if response.reader is not None:
            response.reader(offset, piece)
        else:
            piece[:] = response.data[offset : offset + length]
        end = offset + length
        last = end == self._total
        flags = FINAL if last or end % connection.max_burst == 0 else 0
        residual = 0
        if last and self._status_rides:
            flag, residual = residual_of(response.length, self._edtl)
            flags |= constants.DATA_IN_STATUS | flag
            if self._task is not None:
                connection.finish(self._task)
            numbers = connection.numbers(True)
        else:
            # 11.7.3: StatSN is reserved without the S bit
            numbers = (0, *connection.numbers(False)[1:])
        _PACK_DATA_IN(
            out.buffer, at, Opcode.DATA_IN, flags, 0, length, 0, self._itt, NO_TAG, *numbers, self._data_sn, offset,
            residual,
        )  # fmt: skip
        out.used = framing.finish(out.view, at, length)
        self._at = end
        self._data_sn = (self._data_sn + 1) & MASK

    def _status_apart(self, connection: Connection) -> bool:
        moved = self._response.length if self._status_rides else self._at
        return ScsiResponse(self._itt, self._edtl, self._response, moved, self._data_sn, self._task).produce(
            connection
        )


def answer_to(itt: int, edtl: int, write: bool, response: Response, task: Task | None = None) -> Answer:
    """The answer to a finished SCSI command."""
    if response.length and edtl and not write:
        return DataIn(itt, edtl, response, task)
    moved = response.wanted if write else response.length
    return ScsiResponse(itt, edtl, response, moved, task.r2t_sn if task is not None else 0, task)
