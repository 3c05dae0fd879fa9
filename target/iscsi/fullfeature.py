"""What an initiator may send in full feature phase, and who takes it: RFC 7143 11.

The table is the table of contents; handlers that fit in a few lines are here, the others have modules of their own.
A handler raises PduRejected for a PDU that it refuses.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from target.iscsi import commands, manage, pdus
from target.iscsi.answers import Message
from target.iscsi.constants import NO_TAG, LogoutReason, LogoutResponse, Opcode, RejectReason
from target.iscsi.errors import PduRejected
from target.iscsi.framing import Pdu

if TYPE_CHECKING:
    from target.iscsi.connection import Connection


def _intact(handler: Callable[[Connection, Pdu], None]) -> Callable[[Connection, Pdu], None]:
    """For PDUs whose data decides what to do: refuse it when its digest is wrong (7.8)."""

    def checked(connection: Connection, pdu: Pdu) -> None:
        if not pdu.data_intact:
            connection.session.counters.digest_errors += 1
            raise PduRejected(RejectReason.DATA_DIGEST_ERROR, "data digest does not match")
        handler(connection, pdu)

    return checked


def _nop_out(connection: Connection, pdu: Pdu) -> None:
    """11.18: an answer to our question, a question, or just numbers."""
    request = pdus.parse_header(pdus.NOP_OUT, pdu.header)
    if request.itt == NO_TAG:
        connection.fence_passed(request.ttt)
        return
    if request.ttt != NO_TAG:
        raise PduRejected(RejectReason.INVALID_PDU_FIELD, "NOP-Out with both tags")
    data = bytes(pdu.data[: connection.send_data_max])
    connection.emit(Message(Opcode.NOP_IN, data, itt=request.itt, ttt=NO_TAG, lun=request.lun))


def _text(connection: Connection, pdu: Pdu) -> None:
    connection.text(pdu)


def _logout(connection: Connection, pdu: Pdu) -> None:
    """11.14: of this connection, of another one of the session, or of the session."""
    request = pdus.parse_header(pdus.LOGOUT_REQUEST, pdu.header)
    reason = request.flags & 0x7F
    session = connection.session
    response, leaving = _logout_response(connection, reason, request.cid)
    for each in leaving:
        # 11.14: no answer of a command comes after the Logout Response
        session.end_tasks_of(each)
        if each is not connection:
            each.close("logout")
    connection.emit(
        Message(
            Opcode.LOGOUT_RESPONSE,
            itt=request.itt,
            response=response,
            time2wait=session.parameters["DefaultTime2Wait"],
            time2retain=0,  # nothing is kept for a connection that has gone (11.15.4)
        )
    )
    if connection in leaving:
        connection.finish_and_close("logout")


def _logout_response(
    connection: Connection, reason: int, cid: int
) -> tuple[LogoutResponse, list[Connection]]:
    """The answer, and the connections that end with it."""
    connections = connection.session.connections
    if reason == LogoutReason.CLOSE_SESSION:
        return LogoutResponse.SUCCESS, list(connections.values())
    if reason == LogoutReason.CLOSE_CONNECTION:
        if cid not in connections:
            return LogoutResponse.CID_NOT_FOUND, []
        return LogoutResponse.SUCCESS, [connections[cid]]
    if reason == LogoutReason.REMOVE_FOR_RECOVERY:
        return LogoutResponse.RECOVERY_NOT_SUPPORTED, []
    raise PduRejected(RejectReason.INVALID_PDU_FIELD, f"logout reason {reason}")


def _snack(connection: Connection, pdu: Pdu) -> None:
    # 11.16: recovery within a command needs error recovery level 1, which is never negotiated
    raise PduRejected(RejectReason.SNACK_REJECT, "SNACK at error recovery level 0")


def _login_again(connection: Connection, pdu: Pdu) -> None:
    raise PduRejected(RejectReason.PROTOCOL_ERROR, "Login Request in full feature phase")


HANDLERS: dict[int, Callable[[Any, Pdu], None]] = {
    Opcode.NOP_OUT: _intact(_nop_out),
    Opcode.SCSI_COMMAND: commands.scsi_command,
    Opcode.TASK_MANAGEMENT_REQUEST: manage.task_management,
    Opcode.LOGIN_REQUEST: _login_again,
    Opcode.TEXT_REQUEST: _intact(_text),
    Opcode.DATA_OUT: commands.data_out,
    Opcode.LOGOUT_REQUEST: _logout,
    Opcode.SNACK_REQUEST: _snack,
}
"""Any other opcode is answered Reject, "command not supported"."""

SEQUENCED = frozenset(
    {
        Opcode.NOP_OUT,
        Opcode.SCSI_COMMAND,
        Opcode.TASK_MANAGEMENT_REQUEST,
        Opcode.TEXT_REQUEST,
        Opcode.LOGOUT_REQUEST,
    }
)
"""PDUs with a CmdSN, at byte 24 in all of them."""
