"""SANITIZE and FORMAT UNIT (SBC-3 5.24, 5.4): what a host may ask for; `erasure` does it.

Cryptographic erase is not offered: nothing is encrypted, so there is no key to change.
"""

from __future__ import annotations

from construct import GreedyBytes, Int8ub, Int16ub, Padding, Struct

from target.scsi.cdb import Fields
from target.scsi.cdbs import SANITIZE_AUSE, SANITIZE_IMMED
from target.scsi.erasure import Plan
from target.scsi.medium import NOT_PRESENT
from target.scsi.sense import CheckCondition, invalid_field, invalid_parameter
from target.scsi.task import NOT_READY, Reply, Task
from target.scsi.unit import LogicalUnit

# SBC-3 5.24.2.2
OVERWRITE = Struct("count" / Int8ub, Padding(1), "pattern_length" / Int16ub, "pattern" / GreedyBytes)
OVERWRITE_HEAD = 4
INVERT, TEST, OVERWRITE_COUNT = 0x80, 0x60, 0x1F

FMTPINFO, LONGLIST, FMTDATA, CMPLST, DEFECT_LIST_FORMAT = 0xC0, 0x20, 0x10, 0x08, 0x07
# SBC-3 5.4.2.1: FOV 80h, DPRY 40h, DCRT 20h, STPF 10h, IP 08h, IMMED 02h
FORMAT_HEADER_BYTES, LONG_FORMAT_HEADER_BYTES = 4, 8
FORMAT_IMMED, FORMAT_REFUSED = 0x02, 0x58


def sanitize_overwrite(task: Task) -> Reply | None:
    return _erase(task, _overwrite_plan(task), immediately=bool(task.fields["service_action"] & SANITIZE_IMMED))


def sanitize_block_erase(task: Task) -> Reply | None:
    _no_parameters(task)
    plan = Plan("sanitize", may_exit=_ause(task))
    return _erase(task, plan, immediately=bool(task.fields["service_action"] & SANITIZE_IMMED))


def sanitize_exit_failure_mode(task: Task) -> Reply:
    _no_parameters(task)
    if not task.lu.erasure.leave_failure():
        raise invalid_field(1, 4)
    return Reply()


def _no_parameters(task: Task) -> None:
    if task.wanted:
        raise invalid_field(7)


def _ause(task: Task) -> bool:
    return bool(task.fields["service_action"] & SANITIZE_AUSE)


def _overwrite_plan(task: Task) -> Plan:
    block = task.lu.block_bytes
    if not OVERWRITE_HEAD < task.wanted <= block + OVERWRITE_HEAD:
        raise invalid_field(7)
    parsed = OVERWRITE.parse(task.parameter_list())
    if parsed.count & TEST:
        raise invalid_parameter(0, 6)
    if not parsed.count & OVERWRITE_COUNT:
        raise invalid_parameter(0, 4)
    if not 0 < parsed.pattern_length <= min(block, len(parsed.pattern)):
        raise invalid_parameter(2)
    pattern = parsed.pattern[: parsed.pattern_length]
    return Plan(
        "sanitize", pattern.hex(), parsed.count & OVERWRITE_COUNT, bool(parsed.count & INVERT), may_exit=_ause(task)
    )


def _erase(task: Task, plan: Plan, immediately: bool) -> Reply | None:
    """IMMED answers as soon as the parameters are known to be good."""
    lu = task.lu
    if not lu.store.online:
        raise NOT_READY
    if not lu.medium.loaded:
        raise NOT_PRESENT
    if immediately:
        lu.erasure.start(plan, lambda _: None)
        return Reply()
    task.put_aside()
    lu.erasure.start(plan, lambda condition: task.finish(_outcome(lu, condition)))
    return None


def _outcome(lu: LogicalUnit, condition: CheckCondition | None) -> Reply:
    return Reply() if condition is None else lu.failed(condition)


# --- FORMAT UNIT ------------------------------------------------------------------------------------------------------


def format_out(fields: Fields, lu: LogicalUnit) -> int:
    if not fields["flags"] & FMTDATA:
        return 0
    return LONG_FORMAT_HEADER_BYTES if fields["flags"] & LONGLIST else FORMAT_HEADER_BYTES


def format_unit(task: Task) -> Reply | None:
    """Every block reads zeros afterwards.  No protection information, no defect lists, no initialization pattern."""
    flags = task.fields["flags"]
    if flags & FMTPINFO:
        raise invalid_field(1, 7)
    if not flags & FMTDATA:
        if flags & (CMPLST | DEFECT_LIST_FORMAT | LONGLIST):
            raise invalid_field(1, 5)
        return _erase(task, Plan("format"), immediately=False)
    header = task.parameter_list()
    if header[0] & 0x07:  # PROTECTION FIELD USAGE
        raise invalid_parameter(0, 2)
    if header[1] & FORMAT_REFUSED:
        raise invalid_parameter(1, 6)
    if any(header[2:]):
        raise invalid_parameter(2)
    return _erase(task, Plan("format"), immediately=bool(header[1] & FORMAT_IMMED))
