"""Asynchronous Messages: what the target says without being asked (RFC 7143 11.9)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from target.iscsi.answers import Message
from target.iscsi.constants import NO_TAG, AsyncEvent, Opcode

if TYPE_CHECKING:
    from target.iscsi.connection import Connection


def logout_request(connection: Connection, time_s: int) -> None:
    """Event 1: please log out within `time_s` seconds."""
    _say(connection, _message(AsyncEvent.LOGOUT_REQUEST, parameter3=time_s))


def drop(connection: Connection, event: AsyncEvent, cid: int = 0) -> None:
    """Events 2 and 3: the connection `cid`, or the session, is being ended from this side."""
    time2wait = int(connection.session.parameters["DefaultTime2Wait"])
    _say(connection, _message(event, parameter1=cid, parameter2=time2wait))


def scsi_event(connection: Connection, lun: int, sense: bytes) -> None:
    """Event 0, with sense data (11.9.4).  One that waits already is not said twice: the peer may not be reading."""
    message = _message(AsyncEvent.SCSI, len(sense).to_bytes(2, "big") + sense, lun=lun)
    if not any(isinstance(each, Message) and message.says_what(each) for each in connection.waiting):
        _say(connection, message)


def _message(event: AsyncEvent, data: bytes = b"", **fields: Any) -> Message:
    return Message(Opcode.ASYNC_MESSAGE, data, itt=NO_TAG, async_event=event, **fields)


def _say(connection: Connection, message: Message) -> None:
    connection.emit(message)
    connection.wake()
