"""Task management: RFC 7143 11.5, 11.6, and what each function does to the commands that iSCSI still holds.

The device server manages its own tasks (`Nexus.manage`, `Nexus.abort_task`); commands that are still gathering data
are not there yet, and end here: without a status in the session that asked, with TASK ABORTED in others (TAS=1,
SAM-5 5.3.1), whose hosts would wait for them otherwise.  Answers that were made before go out before the response.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from target.iscsi import commands, pdus
from target.iscsi.answers import Message
from target.iscsi.constants import FINAL, Opcode, RejectReason, TaskFunction, TaskResponse
from target.iscsi.errors import PduRejected
from target.iscsi.framing import Pdu
from target.iscsi.tasks import State

if TYPE_CHECKING:
    from target.iscsi.connection import Connection


def task_management(connection: Connection, pdu: Pdu) -> None:
    """One Task Management Function Request."""
    if connection.session.nexus is None:
        raise PduRejected(RejectReason.PROTOCOL_ERROR, "task management in a discovery session")
    request = pdus.parse_header(pdus.TASK_MANAGEMENT_REQUEST, pdu.header)
    function = request.flags & ~FINAL
    handler = FUNCTIONS.get(function)
    response = handler(connection, request) if handler else TaskResponse.FUNCTION_NOT_SUPPORTED
    connection.emit(Message(Opcode.TASK_MANAGEMENT_RESPONSE, response=response, itt=request.itt))
    if function == TaskFunction.TARGET_COLD_RESET and response == TaskResponse.FUNCTION_COMPLETE:
        _end_all_sessions(connection)


def _abort_task(connection: Connection, request: Any) -> int:
    session = connection.session
    task = session.tasks.get(request.referenced_itt)
    if task is None or task.state is State.ANSWERING:
        # 11.6.1 b: with one connection nothing older than this request can still be on its way
        return TaskResponse.TASK_DOES_NOT_EXIST
    if task.lun != request.lun:
        return TaskResponse.TASK_DOES_NOT_EXIST
    if task.state is State.EXECUTING:
        assert session.nexus is not None
        session.nexus.abort_task(task.lun, task.itt)
    session.counters.aborted += 1
    session.finish(task)
    return TaskResponse.FUNCTION_COMPLETE


def _manage(connection: Connection, request: Any) -> int:
    nexus = connection.session.nexus
    assert nexus is not None
    return nexus.manage(request.flags & ~FINAL, request.lun)


def _task_set(connection: Connection, request: Any) -> int:
    """ABORT TASK SET: this session's tasks of the logical unit."""
    response = _manage(connection, request)
    if response == TaskResponse.FUNCTION_COMPLETE:
        connection.session.drop_tasks(request.lun)
    return response


def _logical_unit(connection: Connection, request: Any) -> int:
    """CLEAR TASK SET, LOGICAL UNIT RESET: every session's tasks of the logical unit."""
    response = _manage(connection, request)
    if response == TaskResponse.FUNCTION_COMPLETE:
        _end_tasks_everywhere(connection, request.lun)
    return response


def _target(connection: Connection, request: Any) -> int:
    response = _manage(connection, request)
    if response == TaskResponse.FUNCTION_COMPLETE:
        _end_tasks_everywhere(connection, None)
    return response


def _end_tasks_everywhere(connection: Connection, lun: int | None) -> None:
    """What iSCSI holds for a logical unit, or for all that this session sees, in every session of the target."""
    session = connection.session
    session.drop_tasks(lun)
    nexus, target = session.nexus, session.target
    assert nexus is not None
    assert target is not None
    for other in list(target.sessions.values()):
        if other is session or other.nexus is None:
            continue
        for task in list(other.tasks.values()):
            if task.state is not State.ANSWERING and nexus.covers(lun, other.nexus, task.lun):
                commands.abort(task)


def _reassign(connection: Connection, request: Any) -> int:
    # 11.5.1: only with error recovery level 2
    return TaskResponse.REASSIGNMENT_NOT_SUPPORTED


def _end_all_sessions(connection: Connection) -> None:
    """11.5.1: a cold reset is a power-on: every session of the target ends.  This one after its response is out."""
    target = connection.session.target
    assert target is not None
    for session in list(target.sessions.values()):
        if session is not connection.session:
            session.close("target cold reset")
    connection.finish_and_close("target cold reset")


FUNCTIONS: dict[int, Callable[[Any, Any], int]] = {
    TaskFunction.ABORT_TASK: _abort_task,
    TaskFunction.ABORT_TASK_SET: _task_set,
    TaskFunction.CLEAR_ACA: _manage,
    TaskFunction.CLEAR_TASK_SET: _logical_unit,
    TaskFunction.LOGICAL_UNIT_RESET: _logical_unit,
    TaskFunction.TARGET_WARM_RESET: _target,
    TaskFunction.TARGET_COLD_RESET: _target,
    TaskFunction.TASK_REASSIGN: _reassign,
}
"""Every function of 11.5.1; any other code is answered "not supported"."""
