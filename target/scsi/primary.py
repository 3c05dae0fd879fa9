"""The small commands of SPC-4: TEST UNIT READY, REQUEST SENSE, REPORT LUNS, REPORT TIMESTAMP, and what a LUN
that is not there answers."""

from __future__ import annotations

from collections.abc import Callable

from construct import BytesInteger, Const, GreedyRange, Int8ub, Int16ub, Int32ub, Int64ub, Padding, Struct

from target.scsi.cdb import Cdb, Fields
from target.scsi.cdbs import INQUIRY, REPORT_LUNS, REQUEST_SENSE
from target.scsi.inquiry import EVPD, NO_LOGICAL_UNIT, standard_data, vpd_page
from target.scsi.it_nexus import ITNexus
from target.scsi.sense import NO_SENSE, Asc, Status, illegal, invalid_field
from target.scsi.task import Reply, Task, data_in

DESC = 0x01
MINIMUM_LUN_LIST_BYTES = 16

# SPC-4 6.33
LUN_LIST = Struct("lun_list_length" / Int32ub, Padding(4), "luns" / GreedyRange(Int64ub))


def ready(_: Task) -> Reply:
    """TEST UNIT READY: the router has asked everything there is to ask."""
    return Reply()


def request_sense(task: Task) -> Reply:
    """SPC-4 6.39: reports (and clears) a unit attention, else says whether the unit can be used, always with GOOD."""
    condition = task.itl.take_attention()
    if condition is None:
        condition = task.itl.not_accessible() or task.lu.not_ready() or NO_SENSE
    return data_in(condition.encode(bool(task.fields["flags"] & DESC)), task.fields["allocation_length"])


def report_luns(task: Task) -> Reply:
    reply = _lun_list(task.nexus, task.fields)
    task.nexus.luns_reported()
    return reply


def _lun_list(nexus: ITNexus, fields: Fields) -> Reply:
    if fields["allocation_length"] < MINIMUM_LUN_LIST_BYTES:
        raise invalid_field(6)
    inventory = SELECT_REPORT.get(fields["select_report"])
    if inventory is None:
        raise invalid_field(2)
    luns = inventory(nexus)
    return data_in(LUN_LIST.build({"lun_list_length": 8 * len(luns), "luns": luns}), fields["allocation_length"])


def _no_luns(_: ITNexus) -> list[int]:
    return []


# SPC-4 table 262; there are no well known logical units
SELECT_REPORT: dict[int, Callable[[ITNexus], list[int]]] = {
    0x00: ITNexus.inventory,
    0x01: _no_luns,
    0x02: ITNexus.inventory,
}


# SPC-4 6.38
TIMESTAMP = Struct(
    "timestamp_parameter_data_length" / Const(10, Int16ub),
    "origin" / Const(0x03, Int8ub),  # set by a method other than SET TIMESTAMP
    Padding(1),
    "timestamp" / BytesInteger(6),
    Padding(2),
)


def report_timestamp(task: Task) -> Reply:
    milliseconds = int(task.lu.platform.wall_clock() * 1000)
    return data_in(TIMESTAMP.build({"timestamp": milliseconds}), task.fields["allocation_length"])


# --- a LUN that is not there (SPC-4 6.6.1, 6.33, 6.39; SAM-5 5.11) --------------------------------------------------


def absent_inquiry(_: ITNexus, fields: Fields) -> Reply:
    if not fields["flags"] & EVPD:
        if fields["page_code"]:
            raise invalid_field(2)
        return data_in(standard_data(NO_LOGICAL_UNIT), fields["allocation_length"])
    if fields["page_code"]:
        raise invalid_field(2)
    return data_in(vpd_page(NO_LOGICAL_UNIT, 0, b"\0"), fields["allocation_length"])


def absent_request_sense(_: ITNexus, fields: Fields) -> Reply:
    sense = illegal(Asc.LOGICAL_UNIT_NOT_SUPPORTED).encode(bool(fields["flags"] & DESC))
    return data_in(sense, fields["allocation_length"])


ABSENT: dict[int, tuple[Cdb, Callable[[ITNexus, Fields], Reply]]] = {
    0x03: (REQUEST_SENSE, absent_request_sense),
    0x12: (INQUIRY, absent_inquiry),
}


def absent(nexus: ITNexus, field: int, cdb: bytes) -> Reply:
    """The answer of a LUN that `nexus` does not have; LUN 0 always reports the inventory."""
    if cdb[0] == REPORT_LUNS.opcode and field == 0:
        reply = _lun_list(nexus, REPORT_LUNS.parse(cdb))
        nexus.luns_reported()
        return reply
    row = ABSENT.get(cdb[0])
    if row is None:
        return Reply(Status.CHECK_CONDITION, illegal(Asc.LOGICAL_UNIT_NOT_SUPPORTED).encode())
    declaration, answer = row
    return answer(nexus, declaration.parse(cdb))
