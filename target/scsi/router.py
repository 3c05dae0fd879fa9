"""The task router and device server: one command from its CDB to its Reply, through the command table.

The order of the checks is: logical unit there, unit attention, command known, CDB good, access state of the port,
reservation, write protection, ready, range, then the handler.  Whatever a host sends ends in a Reply, at once or by
`done`.
"""

from __future__ import annotations

from target.scsi import cold
from target.scsi.access_state import NOT_ACCESSIBLE
from target.scsi.cdb import CDB_BYTES, Fields
from target.scsi.commands import COMMANDS
from target.scsi.it_nexus import ITNexus, lun_field
from target.scsi.limits import MAX_PARAMETER_LIST_BYTES
from target.scsi.medium import NOT_PRESENT
from target.scsi.primary import absent
from target.scsi.reservation import ReservationConflict
from target.scsi.sense import (
    Asc,
    CheckCondition,
    SenseKey,
    Status,
    illegal,
    invalid_field,
    lba_out_of_range,
)
from target.scsi.store import StoreError
from target.scsi.task import Access, Command, NotInMemory, Reply, ReplyDone, Task, store_failure
from target.scsi.unit import LogicalUnit

SERVICE_ACTION_MASK = 0x1F
AFTER_ABORTS = (
    Asc.BUS_DEVICE_RESET_FUNCTION_OCCURRED,
    Asc.I_T_NEXUS_LOSS_OCCURRED,
    Asc.RESERVATIONS_PREEMPTED,
    Asc.REGISTRATIONS_PREEMPTED,
)
"""Unit attentions that tell of commands that are no more."""


def _index() -> dict[int, Command | dict[int, Command]]:
    index: dict[int, Command | dict[int, Command]] = {}
    for command in COMMANDS:
        if command.cdb.service_action is None:
            index[command.cdb.opcode] = command
        else:
            actions = index.setdefault(command.cdb.opcode, {})
            assert isinstance(actions, dict)
            actions[command.cdb.service_action] = command
    return index


OPCODES = _index()


def lookup(cdb: bytes, lu: LogicalUnit) -> Command:
    """The table's row for a CDB, or CheckCondition."""
    row = OPCODES.get(cdb[0])
    if isinstance(row, dict):
        row = row.get(cdb[1] & SERVICE_ACTION_MASK)
        if row is None:
            raise invalid_field(1, 4)
    if row is None or (row.supported is not None and not row.supported(lu)):
        raise illegal(Asc.INVALID_COMMAND_OPERATION_CODE)
    return row


def perform(
    nexus: ITNexus, field: int, cdb: bytes, data_out: memoryview, tag: int, done: ReplyDone, *, in_place: bool = False
) -> Reply | None:
    """Execute one command.  A Reply, or None: then it is in `nexus.tasks` until `done` is called.  `in_place`: what
    came before it is done before it, and nothing that comes behind."""
    if len(cdb) < CDB_BYTES:
        cdb = cdb.ljust(CDB_BYTES, b"\0")
    itl = nexus.find(field)
    if itl is None:
        return _absent(nexus, field, cdb)
    if in_place:
        cold.finish(itl.lu)
    try:
        row = OPCODES.get(cdb[0])
        if itl.attentions and (row is None or isinstance(row, dict) or row.blocked_by_attention):
            attention = itl.take_attention()
            if attention is not None:
                raise attention
        task = Task(nexus, itl, lookup(cdb, itl.lu), data_out, tag, done)
    except CheckCondition as condition:
        return _refused(itl.lu, condition, 0)
    task.patient = in_place
    return _attempt(task, cdb)


def _attempt(task: Task, cdb: bytes) -> Reply | None:
    lu = task.lu
    try:
        reply = _checked(task, cdb)
    except NotInMemory:
        cold.put_aside(task, lambda: _attempt_again(task, cdb))
        return _attempt(task, cdb) if task.patient else None
    except CheckCondition as condition:
        return _refused(lu, condition, _taken(task))
    except StoreError as error:
        return _refused(lu, store_failure(error, lu.block_bytes), _taken(task))
    except ReservationConflict:
        return Reply(Status.RESERVATION_CONFLICT)
    if reply is not None:
        reply.fenced = task.command.fenced
        reply.wanted = task.wanted
    return reply


def _attempt_again(task: Task, cdb: bytes) -> Reply | None:
    """A command that waited for the disk.  It may not be what it was any more: it is checked as if it came now."""
    if task.itl not in task.lu.itls:
        return _absent(task.nexus, lun_field(task.itl.lun), cdb)
    return _attempt(task, cdb)


def _refused(lu: LogicalUnit, condition: CheckCondition, wanted: int) -> Reply:
    reply = lu.failed(condition)
    reply.fenced = condition.key is SenseKey.UNIT_ATTENTION and condition.asc in AFTER_ABORTS
    reply.wanted = wanted
    return reply


def _taken(task: Task) -> int:
    """Of a command that failed: the Data-Out that had been taken, so that the residual tells the truth."""
    return min(task.wanted, len(task.data_out))


def _absent(nexus: ITNexus, field: int, cdb: bytes) -> Reply:
    try:
        return absent(nexus, field, cdb)
    except CheckCondition as condition:
        return Reply(Status.CHECK_CONDITION, condition.encode())


def _checked(task: Task, cdb: bytes) -> Reply | None:
    command, lu = task.command, task.lu
    fields = task.fields = command.cdb.parse(cdb)
    if task.itl.access_state > command.worst_access:
        raise NOT_ACCESSIBLE[task.itl.access_state]
    access = command.access
    if not isinstance(access, Access):
        access = access(fields)
    if not task.itl.allows(access):
        raise ReservationConflict
    if command.writes and lu.write_protected:
        raise _write_protected(lu)
    obstacle = _obstacle(command, lu)
    if obstacle is not None:
        raise obstacle
    if command.extent is not None:
        task.extent = _extent(command, fields, lu)
    if command.data_out is not None:
        task.wanted = _wanted(command, fields, lu)
        if command.exact and len(task.data_out) != task.wanted:
            raise invalid_field(LENGTH_AT.get(command.cdb.length, 4))
    return command.handler(task)


def _write_protected(lu: LogicalUnit) -> CheckCondition:
    software = not (lu.store.read_only or lu.read_only)
    asc = Asc.LOGICAL_UNIT_SOFTWARE_WRITE_PROTECTED if software else Asc.WRITE_PROTECTED
    return CheckCondition(SenseKey.DATA_PROTECT, asc)


def _obstacle(command: Command, lu: LogicalUnit) -> CheckCondition | None:
    """The state of the unit that the command cannot be executed in."""
    if lu.erasure.running and not command.while_erasing:
        return lu.erasure.condition
    if not command.needs_ready:
        return None
    condition = lu.not_ready()
    return None if condition is NOT_PRESENT and not command.needs_medium else condition


def _extent(command: Command, fields: Fields, lu: LogicalUnit) -> tuple[int, int]:
    """The range, inside the capacity and the command's limit."""
    assert command.extent is not None
    lba, blocks = command.extent(fields)
    if lba >= lu.blocks or lba + blocks > lu.blocks:
        raise lba_out_of_range()
    over_bytes = command.limit_bytes is not None and blocks << lu.shift > command.limit_bytes
    if over_bytes or (command.limit_blocks is not None and blocks > command.limit_blocks):
        raise invalid_field(LENGTH_AT.get(command.cdb.length, 4))
    return lba, blocks


LENGTH_AT = {10: 7, 12: 6, 16: 10}
"""Where TRANSFER LENGTH is, for the field pointer."""


def _wanted(command: Command, fields: Fields, lu: LogicalUnit) -> int:
    assert command.data_out is not None
    wanted = command.data_out(fields, lu)
    if command.extent is None and wanted > MAX_PARAMETER_LIST_BYTES:
        raise illegal(Asc.PARAMETER_LIST_LENGTH_ERROR)
    return wanted


def data_out_length(nexus: ITNexus, field: int, cdb: bytes) -> int:
    """Bytes of Data-Out that the command will take; 0 if none, or if it will fail whatever comes."""
    itl = nexus.find(field)
    if itl is None:
        return 0
    try:
        cdb = cdb.ljust(CDB_BYTES, b"\0")
        command = lookup(cdb, itl.lu)
        if command.data_out is None:
            return 0
        fields = command.cdb.parse(cdb)
        if command.extent is not None:
            _extent(command, fields, itl.lu)
        return _wanted(command, fields, itl.lu) + (itl.lu.block_bytes if command.exact else 0)
    except CheckCondition:
        return 0
