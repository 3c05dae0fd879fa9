"""The CDB declarations and what is derived from them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from target.scsi import cdbs
from target.scsi.cdb import NACA
from target.scsi.commands import COMMANDS
from target.scsi.sense import Asc, CheckCondition
from target.scsi.task import Command

ROWS = st.sampled_from(COMMANDS)
BYTES = st.binary(min_size=16, max_size=16)


@given(ROWS, BYTES)
def test_the_struct_parser_sees_what_construct_sees(command: Command, raw: bytes) -> None:
    declared = command.cdb.declaration.parse(raw)
    fast = dict(zip(command.cdb.names, command.cdb.struct.unpack_from(raw), strict=True))
    assert fast == {name: declared[name] for name in command.cdb.names}


@given(ROWS, BYTES)
def test_a_bit_outside_the_flags_is_refused_with_its_place(command: Command, raw: bytes) -> None:
    number = int.from_bytes(raw[: command.cdb.length], "big")
    if not number & command.cdb.forbidden:
        command.cdb.parse(raw)
        return
    with pytest.raises(CheckCondition) as refused:
        command.cdb.parse(raw)
    field = refused.value.field
    assert refused.value.asc is Asc.INVALID_FIELD_IN_CDB
    assert field is not None
    assert field.bit is not None
    assert raw[field.byte] & 1 << field.bit


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: c.name)
def test_a_usage_map_begins_with_the_opcode_and_is_as_long_as_the_cdb(command: Command) -> None:
    usage = command.cdb.usage
    assert (usage[0], len(usage)) == (command.cdb.opcode, command.cdb.length)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: c.name)
def test_naca_is_refused_on_every_command(command: Command) -> None:
    cdb = bytearray(16)
    cdb[command.cdb.length - 1] = NACA
    with pytest.raises(CheckCondition):
        command.cdb.parse(bytes(cdb))


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.cdb.service_action is not None], ids=lambda c: c.name)
def test_a_service_action_is_shown_by_its_value(command: Command) -> None:
    assert command.cdb.usage[1] & 0x1F == command.cdb.service_action


def test_read_and_write_share_the_layout_the_fast_path_relies_on() -> None:
    names = ("opcode", "flags", "lba", "length", "control")
    for cdb in (cdbs.READ_10, cdbs.WRITE_10, cdbs.READ_16, cdbs.WRITE_16):
        assert cdb.names == names
    assert cdbs.READ_10.struct.format == cdbs.WRITE_10.struct.format
    assert cdbs.READ_16.struct.format == cdbs.WRITE_16.struct.format


def test_the_usage_map_of_read_10_claims_dpo_and_fua() -> None:
    assert cdbs.READ_10.usage == bytes.fromhex("2818ffffffff00ffff04")
