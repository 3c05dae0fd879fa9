"""SCSI Command and Data-Out off the hot path: RFC 7143 4.2.5, 11.3, 11.7, 11.8.

Everything that hotpath.py does not take comes here and is done by the book.  The functions work on a connection; the
state is the Task's.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from target.iscsi import layouts, limits
from target.iscsi.answers import ReadyToTransfer, answer_to
from target.iscsi.constants import (
    ATTRIBUTE_MASK,
    COMMAND_READ,
    COMMAND_WRITE,
    FINAL,
    INCORRECT_AMOUNT_OF_DATA,
    NO_TAG,
    PROTOCOL_SERVICE_CRC_ERROR,
    UNEXPECTED_UNSOLICITED_DATA,
    WRITE_ERROR,
    RejectReason,
    ScsiStatus,
)
from target.iscsi.errors import PduRejected
from target.iscsi.framing import Pdu
from target.iscsi.ports import Response
from target.iscsi.tasks import Sequence, State, Task

if TYPE_CHECKING:
    from target.iscsi.connection import Connection

_UNPACK_COMMAND = layouts.SCSI_COMMAND.codec.unpack_from
_UNPACK_DATA_OUT = layouts.DATA_OUT.codec.unpack_from
_EMPTY = memoryview(b"")
_PLACED_MASK = 4095
"""`Placing.add` takes multiples of 4096 bytes."""


def scsi_command(connection: Connection, pdu: Pdu) -> None:
    """A SCSI Command whose CmdSN has been taken."""
    _, flags, _, lun, itt, edtl, cmd_sn, _ = _UNPACK_COMMAND(pdu.header)
    session = connection.session
    _refuse_what_cannot_start(connection, pdu, flags, itt)
    cdb = pdu.cdb()
    if len(cdb) > limits.CDB_BYTES:
        raise PduRejected(RejectReason.INVALID_PDU_FIELD, "CDB too long")
    task = Task(
        connection, itt, lun, cdb, flags & ATTRIBUTE_MASK, edtl, cmd_sn, pdu.immediate, bool(flags & COMMAND_WRITE)
    )
    session.begin(task)
    if task.write:
        _start_write(connection, task, pdu, bool(flags & FINAL))
    elif len(pdu.data) or not flags & FINAL:
        fail(connection, task, UNEXPECTED_UNSOLICITED_DATA)
    else:
        execute(connection, task, _EMPTY)


def _refuse_what_cannot_start(connection: Connection, pdu: Pdu, flags: int, itt: int) -> None:
    session = connection.session
    if session.nexus is None:
        raise PduRejected(RejectReason.PROTOCOL_ERROR, "SCSI Command in a discovery session")
    if itt == NO_TAG:
        raise PduRejected(RejectReason.INVALID_PDU_FIELD, "SCSI Command with the reserved tag")
    if itt in session.tasks:
        raise PduRejected(RejectReason.TASK_IN_PROGRESS, f"initiator task tag {itt:#x} is in use")
    if flags & COMMAND_READ and flags & COMMAND_WRITE:
        raise PduRejected(RejectReason.COMMAND_NOT_SUPPORTED, "bidirectional command")
    if pdu.immediate and connection.immediate_outstanding >= limits.IMMEDIATE_COMMANDS:
        raise PduRejected(RejectReason.TOO_MANY_IMMEDIATE, "too many immediate commands")


def _start_write(connection: Connection, task: Task, pdu: Pdu, final: bool) -> None:
    """4.2.5.2: immediate data now, unsolicited data if F is not set, the rest by R2T."""
    given = len(pdu.data)
    rules = connection.rules
    unsolicited_max = min(rules.first_burst, task.edtl)
    if given and not rules.immediate_data:
        task.failure = UNEXPECTED_UNSOLICITED_DATA
    elif not final and rules.initial_r2t:
        # 13.10: the initiator must wait for an R2T; what it sends now is unexpected
        task.failure = UNEXPECTED_UNSOLICITED_DATA
    elif given > unsolicited_max:
        task.failure = INCORRECT_AMOUNT_OF_DATA
    elif not pdu.data_intact:
        _damaged(connection, task, pdu)
    assert connection.session.nexus is not None
    wanted = connection.session.nexus.data_out_length(task.lun, task.cdb)
    task.length = min(task.edtl, wanted, limits.TASK_DATA_BYTES)
    task.received = task.next_offset = given
    if not final and not rules.initial_r2t:
        task.open_unsolicited(given, unsolicited_max)
    if task.complete:
        _all_here(connection, task, pdu.data)
        return
    task.state = State.GATHERING
    if task.length:
        _find_buffer(connection, task, pdu.data, unsolicited_max)
    if task.wants_r2t:
        ask_for_data(connection, task)


def _find_buffer(connection: Connection, task: Task, immediate: memoryview, unsolicited_max: int) -> None:
    """Unsolicited data has to be put somewhere at once; what only R2Ts will bring can wait for memory."""
    session = connection.session
    if task.length == task.edtl >= limits.PLACED_BYTES and not task.failure and connection.rules.data_pdu_in_order:
        session.begin_placing(task)
    if task.placing is not None:
        _take_data(connection, task, 0, immediate)
        return
    if not session.short_of_memory:
        session.allocate_buffer(task, task.length)
    elif immediate or task.sequences:
        session.allocate_buffer(task, min(task.length, unsolicited_max))
    if immediate and task.buffer is not None:
        fit = min(len(immediate), len(task.buffer))
        task.buffer[:fit] = immediate[:fit]


def ask_for_data(connection: Connection, task: Task) -> None:
    """R2Ts up to MaxOutstandingR2T, each for at most MaxBurstLength, once there is memory for all of the data."""
    session = connection.session
    if task.placing is None and (task.buffer is None or len(task.buffer) < task.length):
        if session.short_of_memory:
            session.starve(task)
            return
        session.allocate_buffer(task, task.length)
    while task.wants_r2t and len(task.sequences) < connection.rules.max_outstanding_r2t:
        sequence = task.next_solicited(session.tags.take(), connection.rules.max_burst)
        connection.emit(ReadyToTransfer(task, sequence))


# --- Data-Out


def data_out(connection: Connection, pdu: Pdu) -> None:
    """11.7.  Data for a command that is gone is dropped: it was on its way when the command ended."""
    found = find_sequence(connection, pdu.header)
    if found is None:
        window = connection.session.window
        if window.early:
            window.keep_data(connection, int.from_bytes(pdu.header[16:20], "big"), pdu.encoded(connection.framing))
        return
    task, sequence = found
    _, flags, _, _, _, _, _, data_sn, offset = _UNPACK_DATA_OUT(pdu.header)
    length = len(pdu.data)
    if not pdu.data_intact:
        _damaged(connection, task, pdu)
    if task.check(sequence, data_sn, offset, length):
        _take_data(connection, task, offset, pdu.data)
    data_out_taken(connection, task, sequence, length, bool(flags & FINAL))


def _take_data(connection: Connection, task: Task, offset: int, data: memoryview) -> None:
    if task.placing is not None and _place_next(connection, task, offset, data):
        return
    place = task.place(offset, len(data))
    if place is not None:
        place[:] = data[: len(place)]


def _place_next(connection: Connection, task: Task, offset: int, data: memoryview) -> bool:
    """Put the next data where the medium has room for it.  False: it is not the next, or no whole blocks, or something
    went wrong; then all of the command's data is gathered in a buffer after all."""
    placing = task.placing
    assert placing is not None
    if offset == placing.taken and not len(data) & _PLACED_MASK:
        try:
            placing.add(data)
        except Exception:  # the device server meets it again and says what it is
            pass
        else:
            return True
    _gather_instead(connection, task)
    return False


def _gather_instead(connection: Connection, task: Task) -> None:
    placing, session = task.placing, connection.session
    assert placing is not None
    session.allocate_buffer(task, task.length)
    assert task.buffer is not None
    try:
        placing.read_back(task.buffer[: placing.taken])
    except Exception:
        task.failure = task.failure or WRITE_ERROR
    session.end_placing(task)


def _damaged(connection: Connection, task: Task, pdu: Pdu) -> None:
    """7.8: data whose digest does not match is refused at once, and the command fails when all of it has come."""
    connection.session.counters.digest_errors += 1
    task.failure = task.failure or PROTOCOL_SERVICE_CRC_ERROR
    connection.reject(pdu, RejectReason.DATA_DIGEST_ERROR, "data digest does not match")


def find_sequence(connection: Connection, header: memoryview) -> tuple[Task, Sequence] | None:
    """The command and the run that a Data-Out belongs to; None if the command is gone.  Raises PduRejected."""
    _, _, _, lun, itt, ttt, _, _, _ = _UNPACK_DATA_OUT(header)
    session = connection.session
    task = session.tasks.get(itt)
    if task is None or task.state is State.ANSWERING:
        return None
    if task.connection is not connection:
        # 4.2.5.1: a command's data comes by the connection that brought the command
        raise PduRejected(RejectReason.PROTOCOL_ERROR, "Data-Out by another connection than its command's")
    sequence = task.sequences.get(ttt)
    if sequence is None:
        if session.tags.was_given(ttt):
            return None  # of an earlier command with this initiator task tag
        raise PduRejected(RejectReason.INVALID_PDU_FIELD, f"Data-Out with a tag that was not given: {ttt:#x}")
    if ttt != NO_TAG and lun != task.lun:
        raise PduRejected(RejectReason.INVALID_PDU_FIELD, "Data-Out for another LUN than its command's")
    return task, sequence


def data_out_taken(connection: Connection, task: Task, sequence: Sequence, length: int, final: bool) -> None:
    """What follows once a Data-Out has been put in its place."""
    task.took(sequence, length, final or (not task.failure and _at_end(sequence, length)))
    if task.complete:
        _all_here(connection, task, _EMPTY)
    elif task.wants_r2t:
        ask_for_data(connection, task)


def _at_end(sequence: Sequence, length: int) -> bool:
    """A solicited run is over with its last byte, should the initiator forget the F bit."""
    return sequence.ttt != NO_TAG and length > 0 and sequence.offset + length >= sequence.end


def _all_here(connection: Connection, task: Task, immediate: memoryview) -> None:
    if task.failure:
        fail(connection, task, task.failure)
    elif task.placing is not None:
        _end_placed(connection, task)
    elif task.buffer is not None:
        execute(connection, task, task.buffer)
    else:
        execute(connection, task, immediate[: task.length])


def _end_placed(connection: Connection, task: Task) -> None:
    """All of it is on the medium: now it happens, or it is executed like any other."""
    session = connection.session
    assert session.nexus is not None
    assert task.placing is not None
    if session.nexus.end_write(task.lun, task.placing):
        session.counters.writes += 1
        session.counters.written_bytes += task.length
        complete(task, Response(wanted=task.length))
        return
    _gather_instead(connection, task)
    _all_here(connection, task, _EMPTY)


# --- execution


def execute(connection: Connection, task: Task, data: memoryview) -> None:
    """Hand the command to the device server."""
    session = connection.session
    counters = session.counters
    if task.write:
        counters.writes += 1
        counters.written_bytes += len(data)
    else:
        counters.others += 1
    task.state = State.EXECUTING
    assert session.nexus is not None
    session.executing = task
    response = session.nexus.execute(task.lun, task.cdb, task.attribute, data, task.itt, partial(_done, task))
    session.executing = None
    if response is not None:
        complete(task, response)
    elif task.state is State.EXECUTING:
        # the contract of `execute`: the data is not looked at any more
        session.free_buffer(task)


def _done(task: Task, response: Response) -> None:
    """The device server finished later."""
    if task.state is State.EXECUTING:
        complete(task, response)
        task.connection.wake()


def complete(task: Task, response: Response) -> None:
    """Answer a command that is finished."""
    if task.state is State.GONE:
        return  # the command itself ended the nexus, or a reset swept it away
    connection = task.connection
    session = connection.session
    task.state = State.ANSWERING
    session.free_buffer(task)
    if not task.write and response.length:
        session.counters.reads += 1
        session.counters.read_bytes += min(response.length, task.edtl)
    if session.fence is None and not response.fenced:
        _answer(task, response)
    else:
        session.respond(connection, partial(_answer, task, response), fenced=response.fenced)


def _answer(task: Task, response: Response) -> None:
    # a connection that has ended meanwhile took its tasks along
    if task.state is not State.GONE:
        task.connection.emit(answer_to(task.itt, task.edtl, task.write, response, task))


def abort(task: Task) -> None:
    """Another session's task management function ended the command: its host is told (SAM-5 5.3.1, TAS=1)."""
    task.connection.session.counters.aborted += 1
    if task.state is State.STARVED:
        task.connection.session.starved.remove(task)
    task.sequences.clear()
    complete(task, Response(status=ScsiStatus.TASK_ABORTED))
    task.connection.wake()


def fail(connection: Connection, task: Task, sense: bytes) -> None:
    """CHECK CONDITION made by the transport itself (11.4.7.2)."""
    connection.session.counters.aborted += 1
    complete(task, Response(status=ScsiStatus.CHECK_CONDITION, sense=sense))

