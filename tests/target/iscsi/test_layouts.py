"""The declared PDUs, byte by byte, and the hot layouts that are derived from them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from target.iscsi import layouts, pdus
from target.iscsi.constants import Opcode

headers = st.binary(min_size=48, max_size=48)

# RFC 7143 11.3-11.19: name -> (first byte, bytes); written down a second time, from the figures of the RFC
FIGURES: dict[Opcode, dict[str, tuple[int, int]]] = {
    Opcode.SCSI_COMMAND: {"edtl": (20, 4), "cmd_sn": (24, 4), "exp_stat_sn": (28, 4), "cdb": (32, 16)},
    Opcode.SCSI_RESPONSE: {
        "response": (2, 1), "status": (3, 1), "snack_tag": (20, 4), "stat_sn": (24, 4), "exp_cmd_sn": (28, 4),
        "max_cmd_sn": (32, 4), "exp_data_sn": (36, 4), "bidi_read_residual": (40, 4), "residual": (44, 4),
    },
    Opcode.TASK_MANAGEMENT_REQUEST: {
        "lun": (8, 8), "referenced_itt": (20, 4), "cmd_sn": (24, 4), "exp_stat_sn": (28, 4), "ref_cmd_sn": (32, 4),
        "exp_data_sn": (36, 4),
    },
    Opcode.TASK_MANAGEMENT_RESPONSE: {
        "response": (2, 1), "stat_sn": (24, 4), "exp_cmd_sn": (28, 4), "max_cmd_sn": (32, 4)},
    Opcode.DATA_IN: {
        "status": (3, 1), "lun": (8, 8), "ttt": (20, 4), "stat_sn": (24, 4), "exp_cmd_sn": (28, 4),
        "max_cmd_sn": (32, 4), "data_sn": (36, 4), "buffer_offset": (40, 4), "residual": (44, 4),
    },
    Opcode.DATA_OUT: {
        "lun": (8, 8), "ttt": (20, 4), "exp_stat_sn": (28, 4), "data_sn": (36, 4), "buffer_offset": (40, 4)},
    Opcode.R2T: {
        "lun": (8, 8), "ttt": (20, 4), "stat_sn": (24, 4), "exp_cmd_sn": (28, 4), "max_cmd_sn": (32, 4),
        "r2t_sn": (36, 4), "buffer_offset": (40, 4), "desired_length": (44, 4),
    },
    Opcode.ASYNC_MESSAGE: {
        "lun": (8, 8), "stat_sn": (24, 4), "exp_cmd_sn": (28, 4), "max_cmd_sn": (32, 4), "async_event": (36, 1),
        "async_vcode": (37, 1), "parameter1": (38, 2), "parameter2": (40, 2), "parameter3": (42, 2),
    },
    Opcode.TEXT_REQUEST: {"lun": (8, 8), "ttt": (20, 4), "cmd_sn": (24, 4), "exp_stat_sn": (28, 4)},
    Opcode.TEXT_RESPONSE: {
        "lun": (8, 8), "ttt": (20, 4), "stat_sn": (24, 4), "exp_cmd_sn": (28, 4), "max_cmd_sn": (32, 4)},
    Opcode.LOGIN_REQUEST: {
        "version_max": (2, 1), "version_min": (3, 1), "isid": (8, 6), "tsih": (14, 2), "cid": (20, 2),
        "cmd_sn": (24, 4), "exp_stat_sn": (28, 4),
    },
    Opcode.LOGIN_RESPONSE: {
        "version_max": (2, 1), "version_active": (3, 1), "isid": (8, 6), "tsih": (14, 2), "stat_sn": (24, 4),
        "exp_cmd_sn": (28, 4), "max_cmd_sn": (32, 4), "status_class": (36, 1), "status_detail": (37, 1),
    },
    Opcode.LOGOUT_REQUEST: {"cid": (20, 2), "cmd_sn": (24, 4), "exp_stat_sn": (28, 4)},
    Opcode.LOGOUT_RESPONSE: {
        "response": (2, 1), "stat_sn": (24, 4), "exp_cmd_sn": (28, 4), "max_cmd_sn": (32, 4), "time2wait": (40, 2),
        "time2retain": (42, 2),
    },
    Opcode.SNACK_REQUEST: {
        "lun": (8, 8), "ttt": (20, 4), "exp_stat_sn": (28, 4), "begin_run": (40, 4), "run_length": (44, 4)},
    Opcode.REJECT: {
        "reason": (2, 1), "stat_sn": (24, 4), "exp_cmd_sn": (28, 4), "max_cmd_sn": (32, 4), "data_sn": (36, 4)},
    Opcode.NOP_OUT: {"lun": (8, 8), "ttt": (20, 4), "cmd_sn": (24, 4), "exp_stat_sn": (28, 4)},
    Opcode.NOP_IN: {"lun": (8, 8), "ttt": (20, 4), "stat_sn": (24, 4), "exp_cmd_sn": (28, 4), "max_cmd_sn": (32, 4)},
}  # fmt: skip
COMMON = {"opcode": (0, 1), "flags": (1, 1), "total_ahs_length": (4, 1), "data_segment_length": (5, 3), "itt": (16, 4)}


def _value(raw: bytes, name: str, at: int, size: int) -> int | bytes:
    piece = raw[at : at + size]
    return piece if name in ("isid", "cdb") else int.from_bytes(piece, "big")


def test_every_opcode_has_a_figure() -> None:
    assert set(FIGURES) == set(Opcode) == set(pdus.DECLARATIONS)


@pytest.mark.parametrize("opcode", list(Opcode), ids=lambda o: o.name)
@given(raw=headers)
def test_each_field_is_where_the_rfc_has_it(opcode: Opcode, raw: bytes) -> None:
    parsed = pdus.parse_header(pdus.DECLARATIONS[opcode], raw)
    for name, (at, size) in {**COMMON, **FIGURES[opcode]}.items():
        assert getattr(parsed, name) == _value(raw, name, at, size), name


@pytest.mark.parametrize("opcode", list(Opcode), ids=lambda o: o.name)
def test_bytes_outside_the_fields_are_sent_as_zeros(opcode: Opcode) -> None:
    declaration = pdus.DECLARATIONS[opcode]
    used = {i for at, size in {**COMMON, **FIGURES[opcode], "lun": (8, 8)}.values() for i in range(at, at + size)}
    parsed = pdus.parse_header(declaration, b"\xff" * 48)
    built = pdus.build_header(declaration, **{k: v for k, v in parsed.items() if not k.startswith("_")})
    assert [i for i in range(48) if built[i] and i not in used] == []


@pytest.mark.parametrize("name", list(layouts.HOT))
@given(raw=headers)
def test_the_hot_layouts_read_what_construct_reads(name: str, raw: bytes) -> None:
    declaration, layout = layouts.HOT[name]
    parsed = pdus.parse_header(declaration, raw)
    for field, value in zip(layout.names, layout.codec.unpack(raw), strict=True):
        assert value == _expected(parsed, field), field


@pytest.mark.parametrize("name", list(layouts.HOT))
@given(raw=headers)
def test_the_hot_layouts_write_what_construct_writes(name: str, raw: bytes) -> None:
    declaration, layout = layouts.HOT[name]
    values = dict(zip(layout.names, layout.codec.unpack(raw), strict=True))
    packed = layout.codec.pack(*values.values())
    lengths = values.pop("lengths")
    built = pdus.build_header(
        declaration, **values, total_ahs_length=lengths >> 24, data_segment_length=lengths & 0xFFFFFF
    )
    assert packed == built


@pytest.mark.parametrize("name", list(layouts.BRIEF))
@given(raw=headers)
def test_the_brief_layouts_write_what_construct_writes(name: str, raw: bytes) -> None:
    """Head in front, the fields that are named in their places, zeros everywhere else."""
    declaration, layout = layouts.BRIEF[name]
    values = dict(zip(layout.names, layout.codec.unpack(raw), strict=True))
    packed = layout.codec.pack(*values.values())
    head = values.pop("head").to_bytes(4, "big")
    lengths = values.pop("lengths", 0)
    built = pdus.build_header(
        declaration, **values, total_ahs_length=lengths >> 24, data_segment_length=lengths & 0xFFFFFF
    )
    assert packed == head + built[4:]
    assert head == raw[:4]


def _expected(parsed: Any, field: str) -> Any:
    if field == "lengths":
        return parsed.total_ahs_length << 24 | parsed.data_segment_length
    return getattr(parsed, field)
