"""REPORT SUPPORTED OPERATION CODES and TASK MANAGEMENT FUNCTIONS (SPC-4 6.35, 6.36), READ DEFECT DATA (SBC-3 5.12).

The answers are read off the command table, so they cannot differ from what is executed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from construct import Const, GreedyBytes, Int8ub, Int16ub, Int32ub, Padding, Prefixed, Struct

from target.scsi.sense import invalid_field
from target.scsi.task import Command, Reply, Task, data_in

# SPC-4 6.35.2
COMMAND_DESCRIPTOR = Struct(
    "opcode" / Int8ub,
    Padding(1),
    "service_action" / Int16ub,
    Padding(1),
    "flags" / Int8ub,
    "cdb_length" / Int16ub,
)
SERVACTV, CTDP = 0x01, 0x02
# SPC-4 6.35.4; no time is promised for any command
TIMEOUTS = Struct(
    "length" / Const(10, Int16ub), Padding(1), "command_specific" / Int8ub, "nominal" / Int32ub, "recommended" / Int32ub
)
NO_TIMEOUTS: bytes = TIMEOUTS.build({"command_specific": 0, "nominal": 0, "recommended": 0})
ALL_COMMANDS = Prefixed(Int32ub, GreedyBytes)
# SPC-4 6.35.3
ONE_COMMAND = Struct(Padding(1), "support" / Int8ub, "usage" / Prefixed(Int16ub, GreedyBytes))
ONE_CTDP = 0x80
NOT_SUPPORTED, SUPPORTED = 1, 3

RCTD = 0x80

# SPC-4 6.36: ABORT TASK, ABORT TASK SET, CLEAR TASK SET, LOGICAL UNIT RESET
ATS_ATSS_CTSS_LURS = 0xD8
# QUERY TASK; QUERY ASYNCHRONOUS EVENT, QUERY TASK SET, I_T NEXUS RESET
QTS, QAES_QTSS_ITNRS = 0x04, 0x07
RFC_7144 = 2
REPD = 0x80


def report_opcodes(task: Task, commands: Iterable[Command]) -> Reply:
    options = task.fields["options"]
    here = [c for c in commands if c.supported is None or c.supported(task.lu)]
    report = REPORTING_OPTIONS.get(options & 0x07)
    if report is None:
        raise invalid_field(2, 2)
    return data_in(report(task, here, bool(options & RCTD)), task.fields["allocation_length"])


def _all(_: Task, commands: list[Command], timeouts: bool) -> bytes:
    descriptors = b""
    for command in sorted(commands, key=lambda c: (c.cdb.opcode, c.cdb.service_action or 0)):
        has_action = command.cdb.service_action is not None
        descriptors += COMMAND_DESCRIPTOR.build({
            "opcode": command.cdb.opcode,
            "service_action": command.cdb.service_action or 0,
            "flags": (SERVACTV if has_action else 0) | (CTDP if timeouts else 0),
            "cdb_length": command.cdb.length,
        })
        if timeouts:
            descriptors += NO_TIMEOUTS
    built: bytes = ALL_COMMANDS.build(descriptors)
    return built


def _without_action(task: Task, commands: list[Command], timeouts: bool) -> bytes:
    found = _of_opcode(task, commands)
    if any(c.cdb.service_action is not None for c in found):
        raise invalid_field(3)
    return _one(found, timeouts)


def _with_action(task: Task, commands: list[Command], timeouts: bool) -> bytes:
    found = _of_opcode(task, commands)
    if any(c.cdb.service_action is None for c in found):
        raise invalid_field(3)
    return _one([c for c in found if c.cdb.service_action == task.fields["requested_service_action"]], timeouts)


def _either(task: Task, commands: list[Command], timeouts: bool) -> bytes:
    action = task.fields["requested_service_action"]
    return _one([c for c in _of_opcode(task, commands) if (c.cdb.service_action or 0) == action], timeouts)


def _of_opcode(task: Task, commands: list[Command]) -> list[Command]:
    return [c for c in commands if c.cdb.opcode == task.fields["requested_opcode"]]


def _one(found: list[Command], timeouts: bool) -> bytes:
    if not found:
        built: bytes = ONE_COMMAND.build({"support": NOT_SUPPORTED, "usage": b""})
        return built
    support = SUPPORTED | (ONE_CTDP if timeouts else 0)
    built = ONE_COMMAND.build({"support": support, "usage": found[0].cdb.usage})
    return built + NO_TIMEOUTS if timeouts else built


REPORTING_OPTIONS: dict[int, Callable[[Task, list[Command], bool], bytes]] = {
    0: _all,
    1: _without_action,
    2: _with_action,
    3: _either,
}


def report_tmfs(task: Task) -> Reply:
    extended = bool(task.fields["options"] & REPD)
    more = task.nexus.protocol_level >= RFC_7144
    functions = (ATS_ATSS_CTSS_LURS | QTS, QAES_QTSS_ITNRS) if more else (ATS_ATSS_CTSS_LURS, 0)
    data = bytes((*functions, 0, 12 if extended else 0))
    return data_in(data + bytes(12) if extended else data, task.fields["allocation_length"])


# --- READ DEFECT DATA: lists that are always empty ------------------------------------------------------------------


def read_defect_data_10(task: Task) -> Reply:
    head = bytes((0, task.fields["format"], 0, 0))
    return data_in(head, task.fields["allocation_length"])


def read_defect_data_12(task: Task) -> Reply:
    head = bytes((0, task.fields["format"])) + bytes(6)
    return data_in(head, task.fields["allocation_length"])
