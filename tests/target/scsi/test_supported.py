"""REPORT SUPPORTED OPERATION CODES and TASK MANAGEMENT FUNCTIONS, READ DEFECT DATA."""

from __future__ import annotations

import pytest

from target.scsi.commands import COMMANDS
from tests.support.memory_store import MemoryStore
from tests.support.scsi_host import BAD_CDB_FIELD, key_asc, one_host, report_opcodes


def listed(data: bytes, size: int = 8) -> set[tuple[int, int]]:
    assert int.from_bytes(data[:4], "big") == len(data) - 4
    return {(data[at], int.from_bytes(data[at + 2 : at + 4], "big")) for at in range(4, len(data), size)}


def test_every_command_of_the_table_is_listed() -> None:
    host, _, _ = one_host()
    expected = {(c.cdb.opcode, c.cdb.service_action or 0) for c in COMMANDS}
    assert listed(host.data(host.send(report_opcodes()))) == expected


def test_timeouts_descriptors_follow_when_asked_for() -> None:
    host, _, _ = one_host()
    data = host.data(host.send(report_opcodes(0x80)))
    assert len(listed(data, 20)) == len(COMMANDS)
    assert data[12:14] == b"\x00\x0a"


def test_one_command_is_shown_with_its_usage_map() -> None:
    host, _, _ = one_host()
    data = host.data(host.send(report_opcodes(1, 0x28)))
    assert data == bytes((0, 3, 0, 10)) + bytes.fromhex("2818ffffffff00ffff04")


def test_one_command_with_timeouts_says_so() -> None:
    host, _, _ = one_host()
    data = host.data(host.send(report_opcodes(0x81, 0x28)))
    assert data[1] == 0x83
    assert len(data) == 14 + 12


def test_a_command_that_is_not_there_is_reported_as_that() -> None:
    host, _, _ = one_host()
    assert host.data(host.send(report_opcodes(1, 0xC0))) == bytes((0, 1, 0, 0))


def test_a_service_action_is_asked_for_by_option_2() -> None:
    host, _, _ = one_host()
    data = host.data(host.send(report_opcodes(2, 0x9E, 0x12)))
    assert (data[1], data[4], data[5]) == (3, 0x9E, 0x12)
    assert host.data(host.send(report_opcodes(2, 0x9E, 0x13)))[1] == 1


@pytest.mark.parametrize(("option", "opcode", "action"), [(3, 0x28, 0), (3, 0x9E, 0x10)])
def test_option_3_takes_either(option: int, opcode: int, action: int) -> None:
    host, _, _ = one_host()
    assert host.data(host.send(report_opcodes(option, opcode, action)))[1] == 3


@pytest.mark.parametrize(("option", "opcode"), [(1, 0x9E), (2, 0x28), (4, 0), (7, 0)])
def test_the_wrong_option_for_the_opcode_is_refused(option: int, opcode: int) -> None:
    host, _, _ = one_host()
    assert key_asc(host.send(report_opcodes(option, opcode))) == BAD_CDB_FIELD


def test_unmap_is_not_listed_where_it_is_not_supported() -> None:
    host, _, _ = one_host(MemoryStore(thin=False))
    assert (0x42, 0) not in listed(host.data(host.send(report_opcodes())))
    assert host.data(host.send(report_opcodes(1, 0x42)))[1] == 1


def test_supported_task_management_functions_are_told() -> None:
    host, _, _ = one_host()
    cdb = bytes((0xA3, 0x0D, 0, 0, 0, 0, 0, 0, 0, 64, 0, 0))
    assert host.data(host.send(cdb)) == bytes((0xD8, 0, 0, 0))


def test_those_of_rfc_7144_are_told_where_the_session_has_them() -> None:
    host, _, _ = one_host()
    host.nexus.protocol_level = 2
    cdb = bytes((0xA3, 0x0D, 0, 0, 0, 0, 0, 0, 0, 64, 0, 0))
    assert host.data(host.send(cdb)) == bytes((0xDC, 0x07, 0, 0))


def test_the_extended_form_has_16_bytes() -> None:
    host, _, _ = one_host()
    cdb = bytes((0xA3, 0x0D, 0x80, 0, 0, 0, 0, 0, 0, 64, 0, 0))
    assert host.data(host.send(cdb)) == bytes((0xD8, 0, 0, 12)) + bytes(12)


@pytest.mark.parametrize("cdb", ["37000d00000000000800", "b70d00000000000000080000"])
def test_there_are_no_defects_in_the_format_asked_for(cdb: str) -> None:
    host, _, _ = one_host()
    data = host.data(host.send(bytes.fromhex(cdb)))
    assert data[1] == 0x0D
    assert not any(data[2:])
