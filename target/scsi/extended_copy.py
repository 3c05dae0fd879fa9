"""EXTENDED COPY(LID1) and RECEIVE COPY RESULTS (SPC-4 6.4, 6.17 - 6.22): block to block, inside one target.

A copy source or destination is named by a designator of page 83h and looked up among the logical units that the nexus
sees.  The command ends when the data is written (in the cache, like any write); its outcome is kept per I_T_L nexus
and list identifier.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from construct import (
    Bytes,
    Const,
    GreedyBytes,
    Int8ub,
    Int16ub,
    Int32ub,
    Int64ub,
    Padding,
    Prefixed,
    PrefixedArray,
    Struct,
)

from target.scsi.copying import Copier, Segment
from target.scsi.inquiry import ASCII, BINARY, NAA, T10_VENDOR_ID, t10_vendor_id
from target.scsi.limits import (
    COPY_STEP_BYTES,
    MAX_COPY_SEGMENT_BYTES,
    MAX_COPY_SEGMENTS,
    MAX_COPY_TARGETS,
    MAX_DESCRIPTOR_LIST_BYTES,
)
from target.scsi.sense import Asc, CheckCondition, SenseKey, Status, illegal, invalid_field, invalid_parameter
from target.scsi.task import Access, Reply, Task, data_in
from target.scsi.third_party import BLOCK_TO_BLOCK, IDENTIFICATION
from target.scsi.unit import ITLNexus

# SPC-4 6.4.3
PARAMETERS = Struct(
    "list_identifier" / Int8ub,
    "flags" / Int8ub,
    "cscd_list_length" / Int16ub,
    Padding(4),
    "segment_list_length" / Int32ub,
    "inline_data_length" / Int32ub,
)
LIST_ID_USAGE, DISCARD, NO_LIST_ID = 0x18, 0x10, 0x18

# SPC-4 6.4.5.2
CSCD = Struct(
    "type" / Int8ub,
    "peripheral_device_type" / Int8ub,
    Padding(2),
    "code_set" / Int8ub,
    "designator_type" / Int8ub,
    Padding(1),
    "designator_length" / Int8ub,
    "designator" / Bytes(20),
    "pad" / Int8ub,
    Padding(3),
)
CSCD_BYTES = CSCD.sizeof()

DC = 0x02
# SPC-4 6.4.6.4
SEGMENT = Struct(
    "type" / Int8ub,
    "flags" / Int8ub,
    "descriptor_length" / Const(0x18, Int16ub),
    "source" / Int16ub,
    "destination" / Int16ub,
    Padding(2),
    "blocks" / Int16ub,
    "source_lba" / Int64ub,
    "destination_lba" / Int64ub,
)
SEGMENT_HEAD = 4

# SPC-4 6.18
COPY_STATUS = Struct(
    "available_data" / Const(8, Int32ub),
    "status" / Int8ub,
    "segments_processed" / Int16ub,
    "transfer_count_units" / Const(0, Int8ub),  # bytes
    "transfer_count" / Int32ub,
)
IN_PROGRESS, DONE, DONE_WITH_ERRORS = 0, 1, 2
SNLID = 0x01
# SPC-4 6.21
OPERATING_PARAMETERS = Struct(
    "available_data" / Int32ub,
    "flags" / Const(SNLID, Int8ub),
    Padding(3),
    "maximum_cscd_descriptor_count" / Const(MAX_COPY_TARGETS, Int16ub),
    "maximum_segment_descriptor_count" / Const(MAX_COPY_SEGMENTS, Int16ub),
    "maximum_descriptor_list_length" / Const(MAX_DESCRIPTOR_LIST_BYTES, Int32ub),
    "maximum_segment_length" / Const(MAX_COPY_SEGMENT_BYTES, Int32ub),
    "maximum_inline_data_length" / Const(0, Int32ub),
    "held_data_limit" / Const(0, Int32ub),
    "maximum_stream_device_transfer_size" / Const(0, Int32ub),
    Padding(2),
    "total_concurrent_copies" / Const(0xFF, Int16ub),
    "maximum_concurrent_copies" / Const(0xFF, Int8ub),
    "data_segment_granularity" / Const(COPY_STEP_BYTES.bit_length() - 1, Int8ub),
    "inline_data_granularity" / Const(0, Int8ub),
    "held_data_granularity" / Const(0, Int8ub),
    Padding(3),
    "implemented_descriptors" / PrefixedArray(Int8ub, Int8ub),
)


# SPC-4 6.22
FAILURE_DETAILS = Struct(
    Padding(52),
    "extended_copy_command_status" / Int8ub,
    Padding(1),
    "sense_data" / Prefixed(Int16ub, GreedyBytes),
)


@dataclass
class CopyOutcome:
    """What RECEIVE COPY RESULTS tells of a list identifier."""

    status: int = IN_PROGRESS
    segments: int = 0
    bytes_copied: int = 0
    sense: bytes = b""
    """Of a segment that failed, until it has been told."""
    cancel: Callable[[], None] | None = None
    """Ends the copy while it goes on."""

    @property
    def going_on(self) -> bool:
        return self.status == IN_PROGRESS


def aborted(asc: Asc = Asc.NO_ADDITIONAL_SENSE) -> CheckCondition:
    return CheckCondition(SenseKey.COPY_ABORTED, asc)


# --- EXTENDED COPY ----------------------------------------------------------------------------------------------------


def extended_copy(task: Task) -> Reply | None:
    if not task.wanted:
        return Reply()
    parameters = task.parameter_list(PARAMETERS.sizeof())
    head = PARAMETERS.parse(parameters)
    _check_lengths(head, len(parameters))
    at = PARAMETERS.sizeof()
    middle = at + head.cscd_list_length
    targets = _targets(task, parameters[at:middle])
    descriptors = list(_segment_descriptors(parameters[middle : middle + head.segment_list_length]))
    list_id = _list_identifier(task, head)
    segments = [_segment(each, targets) for each in descriptors]
    if not segments:
        return Reply()
    outcome = CopyOutcome()

    def wanted() -> bool:
        if not task.waiting and outcome.going_on:  # aborted by task management: nobody is answered
            outcome.status = DONE_WITH_ERRORS
        return outcome.going_on

    copier = Copier(segments, wanted, lambda ended, condition: _ended(task, outcome, ended, condition))
    outcome.cancel = lambda: _ended(task, outcome, copier, aborted())
    if list_id is not None:
        task.itl.copies[list_id] = outcome
    task.put_aside()
    copier.start()
    return None


def _check_lengths(head: Any, length: int) -> None:
    lists = head.cscd_list_length + head.segment_list_length
    if head.inline_data_length:
        raise illegal(Asc.INLINE_DATA_LENGTH_EXCEEDED)
    if lists > MAX_DESCRIPTOR_LIST_BYTES or PARAMETERS.sizeof() + lists > length:
        raise illegal(Asc.PARAMETER_LIST_LENGTH_ERROR)
    if head.cscd_list_length % CSCD_BYTES:
        raise invalid_parameter(2)
    if head.cscd_list_length > MAX_COPY_TARGETS * CSCD_BYTES:
        raise illegal(Asc.TOO_MANY_TARGET_DESCRIPTORS)


def _list_identifier(task: Task, head: Any) -> int | None:
    """Under which the outcome is kept, if it is wanted (SPC-4 6.4.3.2)."""
    usage = head.flags & LIST_ID_USAGE
    if usage == NO_LIST_ID:
        if head.list_identifier:
            raise invalid_parameter(0)
        return None
    if (known := task.itl.copies.get(head.list_identifier)) is not None and known.going_on:
        raise illegal(Asc.OPERATION_IN_PROGRESS)
    return None if usage == DISCARD else int(head.list_identifier)


def _targets(task: Task, descriptors: memoryview) -> list[ITLNexus | None]:
    """The logical unit of each CSCD descriptor, or None if this nexus sees no such one."""
    found = []
    for at in range(0, len(descriptors), CSCD_BYTES):
        if descriptors[at] != IDENTIFICATION:
            raise illegal(Asc.UNSUPPORTED_TARGET_DESCRIPTOR_TYPE_CODE)
        cscd = CSCD.parse(descriptors[at : at + CSCD_BYTES])
        found.append(_find(task, cscd.code_set & 0x0F, cscd.designator_type & 0x3F, cscd))
    return found


def _find(task: Task, code_set: int, kind: int, cscd: Any) -> ITLNexus | None:
    designator = cscd.designator[: cscd.designator_length]
    for itl in task.nexus.itls.values():
        if designator == {(BINARY, NAA): itl.lu.store.naa, (ASCII, T10_VENDOR_ID): t10_vendor_id(itl.lu)}.get(
            (code_set, kind)
        ):
            return itl
    return None


def _segment_descriptors(descriptors: memoryview) -> Iterator[Any]:
    at, count = 0, 0
    while at < len(descriptors):
        if descriptors[at] != BLOCK_TO_BLOCK:
            raise illegal(Asc.UNSUPPORTED_SEGMENT_DESCRIPTOR_TYPE_CODE)
        size = SEGMENT.sizeof()
        if at + size > len(descriptors) or int.from_bytes(descriptors[at + 2 : at + 4], "big") != size - SEGMENT_HEAD:
            raise illegal(Asc.PARAMETER_LIST_LENGTH_ERROR)
        count += 1
        if count > MAX_COPY_SEGMENTS:
            raise illegal(Asc.TOO_MANY_SEGMENT_DESCRIPTORS)
        yield SEGMENT.parse(descriptors[at : at + size])
        at += size


def _segment(described: Any, targets: list[ITLNexus | None]) -> Segment:
    """The descriptor as offsets, checked like a READ and a WRITE of this nexus."""
    source = _usable(targets, described.source, Access.READ)
    destination = _usable(targets, described.destination, Access.WRITE)
    counted = destination if described.flags & DC else source
    length = described.blocks << counted.lu.shift
    if length % source.lu.block_bytes or length % destination.lu.block_bytes:
        raise aborted(Asc.UNEXPECTED_INEXACT_SEGMENT)
    for itl, lba in ((source, described.source_lba), (destination, described.destination_lba)):
        if lba + (length >> itl.lu.shift) > itl.lu.blocks:
            raise aborted()
    return Segment(
        source.lu, described.source_lba << source.lu.shift,
        destination.lu, described.destination_lba << destination.lu.shift,
        length,
    )  # fmt: skip


def _usable(targets: list[ITLNexus | None], index: int, access: Access) -> ITLNexus:
    if index >= len(targets):
        raise aborted(Asc.UNREACHABLE_COPY_TARGET)
    itl = targets[index]
    if itl is None:
        raise aborted(Asc.COPY_TARGET_DEVICE_NOT_REACHABLE)
    protected = access is Access.WRITE and itl.lu.write_protected
    if not itl.allows(access) or protected or (itl.not_accessible() or itl.lu.not_ready()) is not None:
        raise aborted(Asc.THIRD_PARTY_DEVICE_FAILURE)
    return itl


def _ended(task: Task, outcome: CopyOutcome, copier: Copier, condition: CheckCondition | None) -> None:
    outcome.segments, outcome.bytes_copied = copier.segments_done, copier.bytes_done
    outcome.status = DONE if condition is None else DONE_WITH_ERRORS
    if condition is None:
        task.finish(Reply())
        return
    # The error of the segment, as the copy manager's own
    reply = task.lu.failed(CheckCondition(SenseKey.COPY_ABORTED, condition.asc, copier.segments_done))
    outcome.sense = reply.sense
    task.finish(reply)


# --- RECEIVE COPY RESULTS ---------------------------------------------------------------------------------------------


def _outcome(task: Task) -> CopyOutcome:
    outcome = task.itl.copies.get(task.fields["list_identifier"])
    if outcome is None:
        raise invalid_field(2)
    return outcome


def copy_data(task: Task) -> Reply:
    """SPC-4 6.19: no segment type that is supported holds data for the host."""
    _outcome(task)
    return data_in(bytes(4), task.fields["allocation_length"])


def failure_details(task: Task) -> Reply:
    """SPC-4 6.22.  Told once, as the standard has it."""
    outcome = _outcome(task)
    sense, outcome.sense = outcome.sense, b""
    details = b""
    if sense:
        details = FAILURE_DETAILS.build({"extended_copy_command_status": Status.CHECK_CONDITION, "sense_data": sense})
    return data_in(len(details).to_bytes(4, "big") + details, task.fields["allocation_length"])


def copy_status(task: Task) -> Reply:
    outcome = _outcome(task)
    built = COPY_STATUS.build({
        "status": outcome.status,
        "segments_processed": outcome.segments,
        "transfer_count": min(outcome.bytes_copied, 0xFFFFFFFF),
    })
    return data_in(built, task.fields["allocation_length"])


def operating_parameters(task: Task) -> Reply:
    codes = [BLOCK_TO_BLOCK, IDENTIFICATION]
    built = OPERATING_PARAMETERS.build({"available_data": 40 + len(codes), "implemented_descriptors": codes})
    return data_in(built, task.fields["allocation_length"])
