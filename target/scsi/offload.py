"""POPULATE TOKEN, WRITE USING TOKEN and RECEIVE ROD TOKEN INFORMATION (SBC-3 5.7, 5.55; SPC-4 6.29): offloaded copies.

Windows asks for a token of what it is to copy, has it written elsewhere, and asks how that went.  Outcomes are kept per
I_T_L nexus and list identifier.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from construct import Bytes, GreedyBytes, Int8ub, Int16ub, Int32ub, Int64ub, Padding, Prefixed, Struct

from target.scsi.copying import Copier, Segment
from target.scsi.limits import (
    DEFAULT_TOKEN_S,
    MAX_TOKEN_BYTES,
    MAX_TOKEN_OUTCOMES,
    MAX_TOKEN_RANGES,
    MAX_TOKEN_S,
)
from target.scsi.sense import Asc, CheckCondition, SenseKey, illegal, invalid_field, invalid_parameter, lba_out_of_range
from target.scsi.task import Reply, Task, data_in
from target.scsi.tokens import ACCESS_UPON_REFERENCE, BLOCK_ZERO, TOKEN_BYTES, Range, Token
from target.scsi.unit import LogicalUnit

RANGE = Struct("lba" / Int64ub, "blocks" / Int32ub, Padding(4))
RANGE_BYTES = RANGE.sizeof()
# SBC-3 5.7.2
POPULATE_TOKEN = Struct(
    "data_length" / Int16ub,
    "flags" / Int8ub,
    Padding(1),
    "inactivity_timeout" / Int32ub,
    "rod_type" / Int32ub,
    Padding(2),
    "range_descriptor_length" / Int16ub,
)
RTV = 0x02
# SBC-3 5.55.2
WRITE_USING_TOKEN = Struct(
    "data_length" / Int16ub,
    "flags" / Int8ub,
    Padding(5),
    "offset_into_rod" / Int64ub,
    "rod_token" / Bytes(TOKEN_BYTES),
    Padding(6),
    "range_descriptor_length" / Int16ub,
)
DEL_TKN, IMMED = 0x02, 0x01

# SPC-4 6.29
ROD_TOKEN_INFORMATION = Struct(
    "service_action" / Int8ub,
    "copy_operation_status" / Int8ub,
    "operation_counter" / Int16ub,
    "estimated_status_update_delay" / Int32ub,
    "extended_copy_completion_status" / Int8ub,
    "length_of_sense_data_field" / Int8ub,
    "sense_data_length" / Int8ub,
    "transfer_count_units" / Int8ub,
    "transfer_count" / Int64ub,
    "segments_processed" / Int16ub,
    Padding(6),
)
LOGICAL_BLOCKS = 0xF1
DONE, DONE_WITH_ERRORS, IN_FOREGROUND, IN_BACKGROUND, TERMINATED = 0x01, 0x02, 0x11, 0x12, 0x60
UPDATE_DELAY_MS = 100
TOKEN_DESCRIPTORS = Prefixed(Int32ub, GreedyBytes)
ABORTED_BY_COMMAND = CheckCondition(SenseKey.COPY_ABORTED, Asc.NO_ADDITIONAL_SENSE)
POPULATE_TOKEN_ACTION, WRITE_USING_TOKEN_ACTION = 0x10, 0x11


@dataclass
class Outcome:
    """What RECEIVE ROD TOKEN INFORMATION tells of a list identifier."""

    service_action: int
    status: int = DONE
    blocks: int = 0
    condition: CheckCondition | None = None
    token: bytes = b""
    cancel: Callable[[], None] | None = None
    """Ends the copy while it goes on."""

    @property
    def going_on(self) -> bool:
        return self.status in (IN_FOREGROUND, IN_BACKGROUND)


def _remember(task: Task, outcome: Outcome) -> Outcome:
    outcomes = task.itl.token_outcomes
    outcomes.pop(task.fields["list_identifier"], None)
    while len(outcomes) >= MAX_TOKEN_OUTCOMES:
        del outcomes[next(iter(outcomes))]
    outcomes[task.fields["list_identifier"]] = outcome
    return outcome


def _check_identifier(task: Task) -> None:
    known = task.itl.token_outcomes.get(task.fields["list_identifier"])
    if known is not None and known.going_on:
        raise illegal(Asc.OPERATION_IN_PROGRESS)


# --- ranges -----------------------------------------------------------------------------------------------------------


def _ranges(task: Task, parameters: memoryview, head: Any, size: int) -> list[Range]:
    """The block device range descriptors as bytes, checked; without the empty ones."""
    length = head.range_descriptor_length
    if length % RANGE_BYTES or not length:
        raise invalid_parameter(size - 2)
    if head.data_length < size - 2 + length or size + length > len(parameters):
        raise illegal(Asc.PARAMETER_LIST_LENGTH_ERROR)
    if length > MAX_TOKEN_RANGES * RANGE_BYTES:
        raise illegal(Asc.TOO_MANY_SEGMENT_DESCRIPTORS)
    lu = task.lu
    found = [RANGE.parse(parameters[at : at + RANGE_BYTES]) for at in range(size, size + length, RANGE_BYTES)]
    if any(each.lba + each.blocks > lu.blocks for each in found):
        raise lba_out_of_range()
    ranges = [(each.lba << lu.shift, each.blocks << lu.shift) for each in found if each.blocks]
    _check_overlap(ranges, size)
    if sum(length for _, length in ranges) > MAX_TOKEN_BYTES:
        raise invalid_parameter(size)
    return ranges


def _check_overlap(ranges: Sequence[Range], at: int) -> None:
    end = 0
    for start, length in sorted(ranges):
        if start < end:
            raise invalid_parameter(at)
        end = start + length


# --- the commands -----------------------------------------------------------------------------------------------------


def populate_token(task: Task) -> Reply:
    """A token costs nothing to make, so IMMED changes nothing."""
    if not task.wanted:
        return Reply()
    _check_identifier(task)
    size = POPULATE_TOKEN.sizeof()
    parameters = task.parameter_list(size)
    head = POPULATE_TOKEN.parse(parameters)
    ranges = _ranges(task, parameters, head, size)
    if head.flags & RTV and head.rod_type != ACCESS_UPON_REFERENCE:
        raise invalid_parameter(8)
    if head.inactivity_timeout > MAX_TOKEN_S:
        raise invalid_parameter(4)
    token = task.nexus.tokens.create(task.lu, ranges, head.inactivity_timeout or DEFAULT_TOKEN_S)
    blocks = token.length >> task.lu.shift
    _remember(task, Outcome(POPULATE_TOKEN_ACTION, blocks=blocks, token=token.encoded))
    return Reply()


def write_using_token(task: Task) -> Reply | None:
    if not task.wanted:
        return Reply()
    _check_identifier(task)
    size = WRITE_USING_TOKEN.sizeof()
    parameters = task.parameter_list(size)
    head = WRITE_USING_TOKEN.parse(parameters)
    ranges = _ranges(task, parameters, head, size)
    if int.from_bytes(head.rod_token[:4], "big") == BLOCK_ZERO:
        return _write_zeros(task, ranges)
    token = task.nexus.tokens.use(head.rod_token)
    segments = _segments(task.lu, token, head.offset_into_rod, ranges)
    if head.flags & DEL_TKN:
        task.nexus.tokens.delete(token)
    return _copy(task, segments, immediately=bool(head.flags & IMMED))


def _write_zeros(task: Task, ranges: Sequence[Range]) -> Reply:
    """The well-known token that stands for zeros (SBC-3 4.26): nothing has to be read."""
    for start, length in ranges:
        task.lu.store.unmap(start, length)
    _remember(task, Outcome(WRITE_USING_TOKEN_ACTION, blocks=sum(length for _, length in ranges) >> task.lu.shift))
    return Reply()


def _segments(lu: LogicalUnit, token: Token, offset_into_rod: int, ranges: Sequence[Range]) -> list[Segment]:
    """OFFSET INTO ROD counts blocks of the logical unit that is written."""
    offset = offset_into_rod << lu.shift
    if offset + sum(length for _, length in ranges) > token.length or offset % token.lu.block_bytes:
        raise invalid_parameter(8)
    segments = []
    for start, length in ranges:
        at = start
        for source, part in token.slices(offset, length):
            if (source | part) % token.lu.block_bytes or (at | part) % lu.block_bytes:
                raise invalid_parameter(WRITE_USING_TOKEN.sizeof())
            segments.append(Segment(token.lu, source, lu, at, part))
            at += part
        offset += length
    return segments


def _copy(task: Task, segments: list[Segment], immediately: bool) -> Reply | None:
    if not segments:
        _remember(task, Outcome(WRITE_USING_TOKEN_ACTION))
        return Reply()
    outcome = _remember(task, Outcome(WRITE_USING_TOKEN_ACTION, IN_BACKGROUND if immediately else IN_FOREGROUND))
    lu, itl = task.lu, task.itl

    def over(copier: Copier, condition: CheckCondition | None, status: int = DONE_WITH_ERRORS) -> None:
        outcome.blocks = copier.bytes_done >> lu.shift
        outcome.status = DONE if condition is None else status
        outcome.condition = condition and CheckCondition(SenseKey.COPY_ABORTED, condition.asc)
        if not immediately:
            task.finish(Reply() if outcome.condition is None else lu.failed(outcome.condition))

    def wanted() -> bool:
        if outcome.going_on and not (itl in lu.itls if immediately else task.waiting):
            outcome.status = TERMINATED
        return outcome.going_on

    copier = Copier(segments, wanted, over)
    outcome.cancel = lambda: over(copier, ABORTED_BY_COMMAND, TERMINATED)
    copier.start()
    if immediately:
        return Reply()
    task.put_aside()
    return None


def copy_information(task: Task) -> bytes:
    """What RECEIVE COPY STATUS(LID4) and RECEIVE ROD TOKEN INFORMATION begin with, after the length."""
    outcome = task.itl.token_outcomes.get(task.fields["list_identifier"])
    if outcome is None:
        raise invalid_field(2)
    sense = b"" if outcome.condition is None else outcome.condition.encode(task.lu.modes.descriptor_sense)
    body: bytes = ROD_TOKEN_INFORMATION.build({
        "service_action": outcome.service_action,
        "copy_operation_status": outcome.status,
        "operation_counter": 1,
        "estimated_status_update_delay": UPDATE_DELAY_MS if outcome.going_on else 0,
        "extended_copy_completion_status": 0x02 if sense else 0,
        "length_of_sense_data_field": len(sense),
        "sense_data_length": len(sense),
        "transfer_count_units": LOGICAL_BLOCKS,
        "transfer_count": outcome.blocks,
        "segments_processed": 0,
    })
    return body + sense


def rod_token_information(task: Task) -> Reply:
    body = copy_information(task)
    token = task.itl.token_outcomes[task.fields["list_identifier"]].token
    # SPC-4 6.29.6: ID FOR CREATING ROD CSCD DESCRIPTOR is not for a token that was made this way
    body += TOKEN_DESCRIPTORS.build(bytes(2) + token if token else b"")
    return data_in(len(body).to_bytes(4, "big") + body, task.fields["allocation_length"])
