"""VPD page 8Fh: what the copy manager can do (SPC-4 7.8.17)."""

from __future__ import annotations

from construct import Const, GreedyRange, Int8ub, Int16ub, Int32ub, Int64ub, Padding, PrefixedArray, Struct

from target.scsi.limits import (
    COPY_STEP_BYTES,
    DEFAULT_TOKEN_S,
    MAX_COPY_SEGMENT_BYTES,
    MAX_COPY_SEGMENTS,
    MAX_COPY_TARGETS,
    MAX_DESCRIPTOR_LIST_BYTES,
    MAX_TOKEN_BYTES,
    MAX_TOKEN_RANGES,
    MAX_TOKEN_S,
    OPTIMAL_TOKEN_BYTES,
)
from target.scsi.tokens import ACCESS_UPON_REFERENCE

BLOCK_TO_BLOCK, IDENTIFICATION = 0x02, 0xE4
"""Segment and CSCD descriptor type codes."""

# SPC-4 7.8.17: each descriptor begins with its type and length, both of two bytes
SUPPORTED_COMMANDS, PARAMETER_DATA, SUPPORTED_DESCRIPTORS, SUPPORTED_CSCD_IDS = 0x0001, 0x0004, 0x0008, 0x000C
GENERAL_COPY_OPERATIONS = 0x8001
BLOCK_ROD_LIMITS, ROD_TOKEN_FEATURES, SUPPORTED_ROD_TYPES = 0x0000, 0x0106, 0x0108
EXTENDED_COPY, RECEIVE_COPY_RESULTS = 0x83, 0x84
# SBC-3 6.6.6
BLOCK_LIMITS = Struct(
    Padding(6),
    "maximum_range_descriptors" / Const(MAX_TOKEN_RANGES, Int16ub),
    "maximum_inactivity_timeout" / Const(MAX_TOKEN_S, Int32ub),
    "default_inactivity_timeout" / Const(DEFAULT_TOKEN_S, Int32ub),
    "maximum_token_transfer_size" / Int64ub,  # in blocks
    "optimal_transfer_count" / Int64ub,
)
# SPC-4 7.8.17.8
TOKEN_FEATURES = Struct(
    "remote_tokens" / Const(0, Int8ub),
    Padding(11),
    "minimum_token_lifetime" / Const(0, Int32ub),
    "maximum_token_lifetime" / Const(0, Int32ub),
    "maximum_token_inactivity_timeout" / Const(MAX_TOKEN_S, Int32ub),
    Padding(18),
    "device_type_specific_length" / Const(48, Int16ub),
    "device_type" / Const(0, Int8ub),
    Padding(1),
    "descriptor_length" / Const(44, Int16ub),
    Padding(2),
    "optimal_block_rod_length_granularity" / Const(0, Int16ub),
    "maximum_bytes_in_block_rod" / Const(MAX_TOKEN_BYTES, Int64ub),
    "optimal_bytes_in_block_rod_transfer" / Const(OPTIMAL_TOKEN_BYTES, Int64ub),
    "optimal_bytes_to_token_per_segment" / Const(OPTIMAL_TOKEN_BYTES, Int64ub),
    "optimal_bytes_from_token_per_segment" / Const(OPTIMAL_TOKEN_BYTES, Int64ub),
    Padding(8),
)
# SPC-4 7.8.17.10
TOKEN_IN, TOKEN_OUT = 0x02, 0x01
ROD_TYPES = Struct(
    Padding(2),
    "rod_type_descriptors_length" / Const(64, Int16ub),
    "rod_type" / Const(ACCESS_UPON_REFERENCE, Int32ub),
    "flags" / Const(TOKEN_IN | TOKEN_OUT, Int8ub),
    Padding(1),
    "preference_indicator" / Const(0x8000, Int16ub),
    Padding(56),
)
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


def third_party_copy_page(block_bytes: int) -> bytes:
    return b"".join((
        descriptor(BLOCK_ROD_LIMITS, BLOCK_LIMITS.build({
            "maximum_token_transfer_size": MAX_TOKEN_BYTES // block_bytes,
            "optimal_transfer_count": OPTIMAL_TOKEN_BYTES // block_bytes,
        })),
        supported_commands({
            EXTENDED_COPY: [0x00, 0x10, 0x11, 0x1C],
            RECEIVE_COPY_RESULTS: [0x00, 0x01, 0x03, 0x04, 0x05, 0x07],
        }),
        descriptor(PARAMETER_DATA, COPY_PARAMETERS.build({})),
        descriptor(SUPPORTED_DESCRIPTORS, bytes((2, BLOCK_TO_BLOCK, IDENTIFICATION))),
        descriptor(SUPPORTED_CSCD_IDS, bytes(2)),
        descriptor(ROD_TOKEN_FEATURES, TOKEN_FEATURES.build({})),
        descriptor(SUPPORTED_ROD_TYPES, ROD_TYPES.build({})),
        descriptor(GENERAL_COPY_OPERATIONS, GENERAL_COPY.build({})),
    ))
