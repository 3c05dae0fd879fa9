"""Struct layouts of the hot PDUs, derived at import from the construct declarations.

construct takes 24-133 us for a 48-byte header, struct 0.25 us, so the hot path uses these and nothing else does.
They cannot drift from pdus.py because they are made from it; tests/target/iscsi/test_layouts.py holds both equal
on arbitrary headers.  TotalAHSLength (8 bits) and DataSegmentLength (24 bits) are one 32-bit word here,
`lengths`: struct has no 24-bit integer, and "no AHS" is the plain case anyway.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import Any

from construct import Bytes, BytesInteger, FormatField

from target.iscsi import pdus

_LENGTHS = ("total_ahs_length", "data_segment_length")
_CODES = re.compile(r"\d*[a-zA-Z]")


@dataclass(frozen=True)
class Layout:
    """A struct and the names of its fields in order."""

    codec: struct.Struct
    names: tuple[str, ...]


def derive(declaration: Any, skip: tuple[str, ...] = ()) -> Layout:
    """The layout of a flat big-endian declaration.  Fields in `skip`, and reserved bytes, are pad bytes."""
    codes: list[str] = []
    names: list[str] = []
    for sub in declaration.subcons:
        kind, size = sub.subcon, sub.sizeof()
        if sub.name is None or sub.name in skip:
            codes.append(f"{size}x")
        elif sub.name == "data_segment_length":
            assert isinstance(kind, BytesInteger)
            assert (names[-1], codes[-1]) == ("total_ahs_length", "B")
            codes[-1], names[-1] = "I", "lengths"
        elif isinstance(kind, FormatField):
            assert kind.fmtstr[0] == ">"
            codes.append(kind.fmtstr[1])
            names.append(sub.name)
        else:
            assert isinstance(kind, Bytes)
            codes.append(f"{size}s")
            names.append(sub.name)
    codec = struct.Struct(">" + "".join(codes))
    assert codec.size == declaration.sizeof()
    return Layout(codec, tuple(names))


def brief(declaration: Any, *names: str) -> Layout:
    """The same with the first four bytes as one number, `head`, and of the other fields only these: the rest is zeros.
    To pack a field takes 25 ns, and most fields of the answer to a plain command are constant."""
    wanted = {*names, *(_LENGTHS if "lengths" in names else ())}
    rest = derive(declaration, tuple(sub.name for sub in declaration.subcons if sub.name not in wanted))
    codes, head = _CODES.findall(rest.codec.format), 4
    while head:
        head -= struct.calcsize(">" + codes.pop(0))
    return Layout(struct.Struct(">I" + "".join(codes)), ("head", *rest.names))


SCSI_COMMAND = derive(pdus.SCSI_COMMAND, skip=("cdb",))
"""opcode flags lengths lun itt edtl cmd_sn exp_stat_sn; the CDB stays where it is, at byte 32."""
SCSI_RESPONSE = derive(pdus.SCSI_RESPONSE, skip=("snack_tag", "bidi_read_residual"))
"""opcode flags response status lengths itt stat_sn exp_cmd_sn max_cmd_sn exp_data_sn residual."""
DATA_IN = derive(pdus.DATA_IN)
"""opcode flags status lengths lun itt ttt stat_sn exp_cmd_sn max_cmd_sn data_sn buffer_offset residual."""
DATA_OUT = derive(pdus.DATA_OUT)
"""opcode flags lengths lun itt ttt exp_stat_sn data_sn buffer_offset."""
R2T = derive(pdus.R2T)
"""opcode flags lengths lun itt ttt stat_sn exp_cmd_sn max_cmd_sn r2t_sn buffer_offset desired_length."""

GOOD_RESPONSE = brief(pdus.SCSI_RESPONSE, "itt", "stat_sn", "exp_cmd_sn", "max_cmd_sn")
"""head itt stat_sn exp_cmd_sn max_cmd_sn: nothing but a status."""
ONLY_DATA_IN = brief(pdus.DATA_IN, "lengths", "itt", "ttt", "stat_sn", "exp_cmd_sn", "max_cmd_sn")
"""head lengths itt ttt stat_sn exp_cmd_sn max_cmd_sn: all the data of a command, with its status."""

HOT = {
    "SCSI_COMMAND": (pdus.SCSI_COMMAND, SCSI_COMMAND),
    "SCSI_RESPONSE": (pdus.SCSI_RESPONSE, SCSI_RESPONSE),
    "DATA_IN": (pdus.DATA_IN, DATA_IN),
    "DATA_OUT": (pdus.DATA_OUT, DATA_OUT),
    "R2T": (pdus.R2T, R2T),
}
BRIEF = {"SCSI_RESPONSE": (pdus.SCSI_RESPONSE, GOOD_RESPONSE), "DATA_IN": (pdus.DATA_IN, ONLY_DATA_IN)}
