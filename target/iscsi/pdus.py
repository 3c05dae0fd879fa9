"""The 48-byte Basic Header Segment of every PDU, declared: RFC 7143 11.3 to 11.19.

These declarations are the documentation, and the parser and builder of everything that is not hot.  The hot PDUs
have struct layouts derived from them (layouts.py).  Flags are whole bytes with masks (constants.py): bit fields
would cost ten times the time and say no more.  Reserved bytes are ignored when received and sent as zeros.
"""

from __future__ import annotations

from typing import Any

from construct import Bytes, Int8ub, Int16ub, Int24ub, Int32ub, Int64ub, Padding, Struct

from target.iscsi.constants import Opcode
from target.iscsi.limits import BHS_BYTES


def _bhs(*middle: Any, lun: Any = None, tail: tuple[Any, ...]) -> Any:
    """A header: opcode and flags, what the PDU puts in bytes 2-3, the lengths, LUN field, ITT, and bytes 20-47."""
    declaration = Struct(
        "opcode" / Int8ub,  # bit 40h: immediate delivery
        "flags" / Int8ub,
        *(middle or (Padding(2),)),
        "total_ahs_length" / Int8ub,  # in 4-byte words
        "data_segment_length" / Int24ub,  # in bytes, padding not counted
        *(lun or ("lun" / Int64ub,)),
        "itt" / Int32ub,
        *tail,
    )
    assert declaration.sizeof() == BHS_BYTES
    return declaration


_NO_LUN = (Padding(8),)
_ISID = ("isid" / Bytes(6), "tsih" / Int16ub)
_WINDOW = ("stat_sn" / Int32ub, "exp_cmd_sn" / Int32ub, "max_cmd_sn" / Int32ub)

# 11.3: flags F 80, R 40, W 20, ATTR 07
SCSI_COMMAND = _bhs(
    tail=("edtl" / Int32ub, "cmd_sn" / Int32ub, "exp_stat_sn" / Int32ub, "cdb" / Bytes(16)),
)
# 11.4: flags 80, o 10, u 08, O 04, U 02
SCSI_RESPONSE = _bhs(
    "response" / Int8ub,
    "status" / Int8ub,
    lun=_NO_LUN,
    tail=(
        "snack_tag" / Int32ub,
        *_WINDOW,
        "exp_data_sn" / Int32ub,
        "bidi_read_residual" / Int32ub,
        "residual" / Int32ub,
    ),
)
# 11.5: flags 80 | function
TASK_MANAGEMENT_REQUEST = _bhs(
    tail=(
        "referenced_itt" / Int32ub,
        "cmd_sn" / Int32ub,
        "exp_stat_sn" / Int32ub,
        "ref_cmd_sn" / Int32ub,
        "exp_data_sn" / Int32ub,
        Padding(8),
    ),
)
# 11.6, and RFC 7144 5.2: additional response information
TASK_MANAGEMENT_RESPONSE = _bhs(
    "response" / Int8ub,
    Padding(1),
    lun=("information" / Bytes(3), Padding(5)),
    tail=(Padding(4), *_WINDOW, Padding(12)),
)
# 11.7: flags F 80, A 40, O 04, U 02, S 01
DATA_IN = _bhs(
    Padding(1),
    "status" / Int8ub,
    tail=(
        "ttt" / Int32ub,
        *_WINDOW,
        "data_sn" / Int32ub,
        "buffer_offset" / Int32ub,
        "residual" / Int32ub,
    ),
)
# 11.7: flags F 80
DATA_OUT = _bhs(
    tail=(
        "ttt" / Int32ub,
        Padding(4),
        "exp_stat_sn" / Int32ub,
        Padding(4),
        "data_sn" / Int32ub,
        "buffer_offset" / Int32ub,
        Padding(4),
    ),
)
# 11.8
R2T = _bhs(
    tail=(
        "ttt" / Int32ub,
        *_WINDOW,
        "r2t_sn" / Int32ub,
        "buffer_offset" / Int32ub,
        "desired_length" / Int32ub,
    ),
)
# 11.9
ASYNC_MESSAGE = _bhs(
    tail=(
        Padding(4),
        *_WINDOW,
        "async_event" / Int8ub,
        "async_vcode" / Int8ub,
        "parameter1" / Int16ub,
        "parameter2" / Int16ub,
        "parameter3" / Int16ub,
        Padding(4),
    ),
)
# 11.10: flags F 80, C 40
TEXT_REQUEST = _bhs(
    tail=("ttt" / Int32ub, "cmd_sn" / Int32ub, "exp_stat_sn" / Int32ub, Padding(16)),
)
# 11.11
TEXT_RESPONSE = _bhs(tail=("ttt" / Int32ub, *_WINDOW, Padding(12)))
# 11.12: flags T 80, C 40, CSG 0C, NSG 03
LOGIN_REQUEST = _bhs(
    "version_max" / Int8ub,
    "version_min" / Int8ub,
    lun=_ISID,
    tail=("cid" / Int16ub, Padding(2), "cmd_sn" / Int32ub, "exp_stat_sn" / Int32ub, Padding(16)),
)
# 11.13
LOGIN_RESPONSE = _bhs(
    "version_max" / Int8ub,
    "version_active" / Int8ub,
    lun=_ISID,
    tail=(Padding(4), *_WINDOW, "status_class" / Int8ub, "status_detail" / Int8ub, Padding(10)),
)
# 11.14: flags 80 | reason
LOGOUT_REQUEST = _bhs(
    lun=_NO_LUN,
    tail=("cid" / Int16ub, Padding(2), "cmd_sn" / Int32ub, "exp_stat_sn" / Int32ub, Padding(16)),
)
# 11.15
LOGOUT_RESPONSE = _bhs(
    "response" / Int8ub,
    Padding(1),
    lun=_NO_LUN,
    tail=(Padding(4), *_WINDOW, Padding(4), "time2wait" / Int16ub, "time2retain" / Int16ub, Padding(4)),
)
# 11.16: flags 80 | type
SNACK_REQUEST = _bhs(
    tail=(
        "ttt" / Int32ub,
        Padding(4),
        "exp_stat_sn" / Int32ub,
        Padding(8),
        "begin_run" / Int32ub,
        "run_length" / Int32ub,
    ),
)
# 11.17: no ITT of its own (FFFFFFFFh), the rejected header is the data
REJECT = _bhs(
    "reason" / Int8ub,
    Padding(1),
    lun=_NO_LUN,
    tail=(Padding(4), *_WINDOW, "data_sn" / Int32ub, Padding(8)),
)
# 11.18
NOP_OUT = _bhs(
    tail=("ttt" / Int32ub, "cmd_sn" / Int32ub, "exp_stat_sn" / Int32ub, Padding(16)),
)
# 11.19
NOP_IN = _bhs(tail=("ttt" / Int32ub, *_WINDOW, Padding(12)))

DECLARATIONS: dict[Opcode, Any] = {
    Opcode.NOP_OUT: NOP_OUT,
    Opcode.SCSI_COMMAND: SCSI_COMMAND,
    Opcode.TASK_MANAGEMENT_REQUEST: TASK_MANAGEMENT_REQUEST,
    Opcode.LOGIN_REQUEST: LOGIN_REQUEST,
    Opcode.TEXT_REQUEST: TEXT_REQUEST,
    Opcode.DATA_OUT: DATA_OUT,
    Opcode.LOGOUT_REQUEST: LOGOUT_REQUEST,
    Opcode.SNACK_REQUEST: SNACK_REQUEST,
    Opcode.NOP_IN: NOP_IN,
    Opcode.SCSI_RESPONSE: SCSI_RESPONSE,
    Opcode.TASK_MANAGEMENT_RESPONSE: TASK_MANAGEMENT_RESPONSE,
    Opcode.LOGIN_RESPONSE: LOGIN_RESPONSE,
    Opcode.TEXT_RESPONSE: TEXT_RESPONSE,
    Opcode.DATA_IN: DATA_IN,
    Opcode.LOGOUT_RESPONSE: LOGOUT_RESPONSE,
    Opcode.R2T: R2T,
    Opcode.ASYNC_MESSAGE: ASYNC_MESSAGE,
    Opcode.REJECT: REJECT,
}


def parse_header(declaration: Any, header: bytes | memoryview) -> Any:
    """The fields of one 48-byte header as attributes."""
    return declaration.parse(bytes(header[:BHS_BYTES]))


def build_header(declaration: Any, **fields: Any) -> bytes:
    """A 48-byte header; fields that are not given are zero (FINAL and tags are the caller's business)."""
    values: dict[str, Any] = {"isid": bytes(6), "cdb": bytes(16), "information": bytes(3)}
    values.update({name: 0 for name in _names(declaration) if name not in values})
    values.update(fields)
    return bytes(declaration.build(values))


def _names(declaration: Any) -> tuple[str, ...]:
    return tuple(sub.name for sub in declaration.subcons if sub.name)
