"""VPD page 8Fh: what the copy manager can do (SPC-4 7.8.17)."""

from __future__ import annotations

from construct import Const, GreedyRange, Int8ub, Int16ub, Int32ub, Padding, PrefixedArray, Struct

from target.scsi.limits import (
    COPY_STEP_BYTES,
    MAX_COPY_SEGMENT_BYTES,
    MAX_COPY_SEGMENTS,
    MAX_COPY_TARGETS,
    MAX_DESCRIPTOR_LIST_BYTES,
)

BLOCK_TO_BLOCK, IDENTIFICATION = 0x02, 0xE4
"""Segment and CSCD descriptor type codes."""

# SPC-4 7.8.17: each descriptor begins with its type and length, both of two bytes
SUPPORTED_COMMANDS, PARAMETER_DATA, SUPPORTED_DESCRIPTORS, SUPPORTED_CSCD_IDS = 0x0001, 0x0004, 0x0008, 0x000C
GENERAL_COPY_OPERATIONS = 0x8001
EXTENDED_COPY, RECEIVE_COPY_RESULTS = 0x83, 0x84
COPY_PARAMETERS = Struct(
    Padding(4),
    "maximum_cscd_descriptor_count" / Const(MAX_COPY_TARGETS, Int16ub),
    "maximum_segment_descriptor_count" / Const(MAX_COPY_SEGMENTS, Int16ub),
    "maximum_descriptor_list_length" / Const(MAX_DESCRIPTOR_LIST_BYTES, Int32ub),
    "maximum_inline_data_length" / Const(0, Int32ub),
    Padding(8),
)
GENERAL_COPY = Struct(
    "total_concurrent_copies" / Const(0xFF, Int32ub),
    "maximum_identified_concurrent_copies" / Const(0xFF, Int32ub),
    "maximum_segment_length" / Const(MAX_COPY_SEGMENT_BYTES, Int32ub),
    "data_segment_granularity" / Const(COPY_STEP_BYTES.bit_length() - 1, Int8ub),
    "inline_data_granularity" / Const(0, Int8ub),
    Padding(18),
)
COMMANDS = Struct("opcode" / Int8ub, "service_actions" / PrefixedArray(Int8ub, Int8ub))
COMMAND_LIST = GreedyRange(COMMANDS)


def descriptor(kind: int, body: bytes) -> bytes:
    body += bytes(-len(body) % 4)
    return kind.to_bytes(2, "big") + len(body).to_bytes(2, "big") + body


def supported_commands(commands: dict[int, list[int]]) -> bytes:
    listed: bytes = COMMAND_LIST.build([{"opcode": code, "service_actions": acts} for code, acts in commands.items()])
    return descriptor(SUPPORTED_COMMANDS, bytes((len(listed),)) + listed)


def third_party_copy_page() -> bytes:
    return b"".join((
        supported_commands({EXTENDED_COPY: [0x00], RECEIVE_COPY_RESULTS: [0x00, 0x03]}),
        descriptor(PARAMETER_DATA, COPY_PARAMETERS.build({})),
        descriptor(SUPPORTED_DESCRIPTORS, bytes((2, BLOCK_TO_BLOCK, IDENTIFICATION))),
        descriptor(SUPPORTED_CSCD_IDS, bytes(2)),
        descriptor(GENERAL_COPY_OPERATIONS, GENERAL_COPY.build({})),
    ))
