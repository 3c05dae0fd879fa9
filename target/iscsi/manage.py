"""Task management: RFC 7143 11.5, 11.6, RFC 7144 5, and what each function does to the commands that iSCSI still holds.

The device server manages its own tasks (`Nexus.manage`, `Nexus.abort_task`); commands that are still gathering data
are not there yet, and end here when it says that it ended a logical unit's tasks (`Nexus.on_abort`): without a status
in the session that asked, with TASK ABORTED in others (TAS=1, SAM-5 5.3.1), whose hosts would wait for them otherwise.
Answers that were made before go out before the response, also on other connections (fence.py).

4.2.3.3 wants a target to wait for the Data-Out that it has asked for before it ends tasks.  It is dropped when it
comes instead: initiators stop sending, and a reset must not wait for them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from target.iscsi import commands, limits, pdus
from target.iscsi.answers import Message
from target.iscsi.constants import FINAL, Opcode, RejectReason, TaskFunction, TaskResponse
from target.iscsi.errors import PduRejected
from target.iscsi.framing import Pdu
from target.iscsi.tasks import State
from target.iscsi.window import MASK, Held, serial_less

if TYPE_CHECKING:
    from target.iscsi.connection import Connection
    from target.iscsi.session import Session

_NOTHING = bytes(3)

Verdict = tuple[int, bytes]
"""Response code, additional response information."""


def task_management(connection: Connection, pdu: Pdu) -> None:
    """One Task Management Function Request."""
    session = connection.session
    if session.nexus is None:
        raise PduRejected(RejectReason.PROTOCOL_ERROR, "task management in a discovery session")
    request = pdus.parse_header(pdus.TASK_MANAGEMENT_REQUEST, pdu.header)
    function = request.flags & ~FINAL
    if pdu.immediate and function in TASK_SETS and session.window.missing_before(request.cmd_sn):
        _wait(connection, pdu, request.cmd_sn)
        return
    if session.functions_waiting >= limits.FENCED_FUNCTIONS:
        raise PduRejected(RejectReason.TOO_MANY_IMMEDIATE, "too many answers wait for other connections")
    handler = FUNCTIONS.get(function)
    if handler is None or (function in LEVEL_2 and session.level < 2):
        verdict: Verdict = (TaskResponse.FUNCTION_NOT_SUPPORTED, _NOTHING)
    else:
        verdict = handler(connection, request)
    _answer(connection, request.itt, function, verdict)


def _wait(connection: Connection, pdu: Pdu, cmd_sn: int) -> None:
    """4.2.3.3: commands sent before a function that ends a task set belong to the set, by whatever connection they
    are still on their way."""
    functions = connection.session.window.functions
    if len(functions) >= limits.IMMEDIATE_COMMANDS:
        raise PduRejected(RejectReason.TOO_MANY_IMMEDIATE, "too many task management requests wait")
    functions.append(Held(connection, cmd_sn, pdu.encoded(connection.framing)))


def _answer(connection: Connection, itt: int, function: int, verdict: Verdict) -> None:
    response, information = verdict
    session = connection.session

    def send() -> None:
        connection.emit(
            Message(Opcode.TASK_MANAGEMENT_RESPONSE, response=response, information=information, itt=itt)
        )
        if function == TaskFunction.TARGET_COLD_RESET and response == TaskResponse.FUNCTION_COMPLETE:
            _end_all_sessions(connection)

    fenced = function in FENCED and response == TaskResponse.FUNCTION_COMPLETE
    session.respond(connection, send, fenced=fenced, function=True)


def tasks_ended(session: Session, names: Callable[[int], bool], told: bool) -> None:
    """The device server has ended the session's tasks on one logical unit: `Nexus.on_abort`."""
    for task in list(session.tasks.values()):
        if task.state in (State.ANSWERING, State.GONE) or task is session.executing or not names(task.lun):
            continue
        if told:
            commands.abort(task)
        else:
            session.finish(task)
            session.counters.aborted += 1
    session.flushes.ended(names, told)


# --- one task


def _abort_task(connection: Connection, request: Any) -> Verdict:
    session = connection.session
    task = session.tasks.get(request.referenced_itt)
    if task is None:
        found = _plug(session, request)
        return (TaskResponse.FUNCTION_COMPLETE if found else TaskResponse.TASK_DOES_NOT_EXIST), _NOTHING
    if task.state is State.ANSWERING or task.lun != request.lun:
        return TaskResponse.TASK_DOES_NOT_EXIST, _NOTHING
    if task.state is State.EXECUTING:
        assert session.nexus is not None
        session.nexus.abort_task(task.lun, task.itt)
    session.counters.aborted += 1
    session.finish(task)
    return TaskResponse.FUNCTION_COMPLETE, _NOTHING


def _plug(session: Session, request: Any) -> bool:
    """11.6.1 b: a command that is still on its way, or waits for those before it, counts as received and is never
    done.  False if the CmdSN is not such a one's."""
    window, cmd_sn = session.window, request.ref_cmd_sn
    on_its_way = (cmd_sn - window.exp_cmd_sn) & MASK <= window.credit and serial_less(cmd_sn, request.cmd_sn)
    held = window.early.get(cmd_sn)
    if not on_its_way or (held is not None and held.itt != request.referenced_itt):
        return False
    window.plug(cmd_sn)
    return True


def _query_task(connection: Connection, request: Any) -> Verdict:
    """RFC 7144: is the task there?"""
    task = connection.session.tasks.get(request.referenced_itt)
    there = task is not None and task.lun == request.lun and task.state is not State.ANSWERING
    return _present(connection, request.lun, there)


def _query_task_set(connection: Connection, request: Any) -> Verdict:
    """RFC 7144: is any task of this nexus there?"""
    tasks = connection.session.tasks.values()
    there = any(task.lun == request.lun and task.state is not State.ANSWERING for task in tasks)
    return _present(connection, request.lun, there)


def _present(connection: Connection, lun: int, there: bool) -> Verdict:
    nexus = connection.session.nexus
    assert nexus is not None
    if nexus.attention(lun) is None:
        return TaskResponse.LUN_DOES_NOT_EXIST, _NOTHING
    return (TaskResponse.FUNCTION_SUCCEEDED if there else TaskResponse.FUNCTION_COMPLETE), _NOTHING


def _query_asynchronous_event(connection: Connection, request: Any) -> Verdict:
    """RFC 7144: is there a unit attention to report, and which?"""
    nexus = connection.session.nexus
    assert nexus is not None
    attention = nexus.attention(request.lun)
    if attention is None:
        return TaskResponse.LUN_DOES_NOT_EXIST, _NOTHING
    if not attention:
        return TaskResponse.FUNCTION_COMPLETE, _NOTHING
    return TaskResponse.FUNCTION_SUCCEEDED, attention


# --- many tasks


def _manage(connection: Connection, request: Any) -> Verdict:
    nexus = connection.session.nexus
    assert nexus is not None
    return nexus.manage(request.flags & ~FINAL, request.lun), _NOTHING


def _everything(connection: Connection, request: Any) -> Verdict:
    """TARGET RESET, I_T NEXUS RESET: also what this session addressed to no logical unit.  4.2.3.3: commands that are
    still on their way count as received."""
    session = connection.session
    verdict = _manage(connection, request)
    if verdict[0] == TaskResponse.FUNCTION_COMPLETE:
        session.drop_tasks()
        for ahead in range(session.window.missing_before(request.cmd_sn)):
            session.window.plug((session.window.exp_cmd_sn + ahead) & MASK)
    return verdict


def _reassign(connection: Connection, request: Any) -> Verdict:
    # 11.5.1: only with error recovery level 2
    return TaskResponse.REASSIGNMENT_NOT_SUPPORTED, _NOTHING


def _end_all_sessions(connection: Connection) -> None:
    """11.5.1: a cold reset is a power-on: every session of the target ends.  This one after its response is out."""
    target = connection.session.target
    assert target is not None
    for session in list(target.sessions.values()):
        if session is not connection.session:
            session.close("target cold reset")
    for other in list(connection.session.connections.values()):
        if other is not connection:
            other.close("target cold reset")
    connection.finish_and_close("target cold reset")


FUNCTIONS: dict[int, Callable[[Any, Any], Verdict]] = {
    TaskFunction.ABORT_TASK: _abort_task,
    TaskFunction.ABORT_TASK_SET: _manage,
    TaskFunction.CLEAR_ACA: _manage,
    TaskFunction.CLEAR_TASK_SET: _manage,
    TaskFunction.LOGICAL_UNIT_RESET: _manage,
    TaskFunction.TARGET_WARM_RESET: _everything,
    TaskFunction.TARGET_COLD_RESET: _everything,
    TaskFunction.TASK_REASSIGN: _reassign,
    TaskFunction.QUERY_TASK: _query_task,
    TaskFunction.QUERY_TASK_SET: _query_task_set,
    TaskFunction.I_T_NEXUS_RESET: _everything,
    TaskFunction.QUERY_ASYNCHRONOUS_EVENT: _query_asynchronous_event,
}
"""Every function of RFC 7143 11.5.1 and RFC 7144 5.1; any other code is answered "not supported"."""
LEVEL_2 = frozenset(
    {
        TaskFunction.QUERY_TASK,
        TaskFunction.QUERY_TASK_SET,
        TaskFunction.I_T_NEXUS_RESET,
        TaskFunction.QUERY_ASYNCHRONOUS_EVENT,
    }
)
TASK_SETS = frozenset(
    {TaskFunction.ABORT_TASK_SET, TaskFunction.CLEAR_TASK_SET, TaskFunction.LOGICAL_UNIT_RESET}
)
"""These wait for commands with lower CmdSNs."""
FENCED = TASK_SETS | {TaskFunction.TARGET_WARM_RESET, TaskFunction.TARGET_COLD_RESET, TaskFunction.I_T_NEXUS_RESET}
