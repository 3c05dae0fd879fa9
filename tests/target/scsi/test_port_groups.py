"""REPORT and SET TARGET PORT GROUPS: what multipath asks and says, and what a path can do in each state."""

from __future__ import annotations

import struct

import pytest

from target.nexus import LogicalUnit, TargetDevice
from target.scsi.access_state import AccessState, ChangedBy
from tests.support.memory_store import MemoryStore
from tests.support.scsi_host import (
    BAD_CDB_FIELD,
    BAD_LIST_FIELD,
    BAD_LIST_LENGTH,
    NOT_READY,
    RESERVE_6,
    TARGET,
    TEST_UNIT_READY,
    UNIT_ATTENTION,
    Host,
    inquiry,
    key_asc,
    mode_sense_6,
    one_host,
    platform_of,
    read_16,
    report_luns,
    report_opcodes,
    request_sense,
    reserve_in,
    reserve_out,
    reserve_out_list,
    sense_of,
    ten,
    two_hosts,
    unit,
    write_16,
)

OPTIMIZED, NON_OPTIMIZED, STANDBY, UNAVAILABLE, OFFLINE, TRANSITIONING = 0, 1, 2, 3, 0xE, 0xF
IN_STANDBY, IN_UNAVAILABLE = (NOT_READY, 0x040B), (NOT_READY, 0x040C)
STATE_CHANGED = (UNIT_ATTENTION, 0x2A06)
SUPPORTED = 0x0F
BLOCK = bytes(512)


def rtpg(form: int = 0, length: int = 4096) -> bytes:
    return struct.pack(">BB4xIxB", 0xA3, form << 5 | 0x0A, length, 0)


def stpg(length: int) -> bytes:
    return struct.pack(">BB4xIxB", 0xA4, 0x0A, length, 0)


def states(*wanted: tuple[int, int]) -> bytes:
    return bytes(4) + b"".join(struct.pack(">BxH", state, group) for group, state in wanted)


def groups(data: bytes) -> list[tuple[int, int, int, int, list[int]]]:
    """(state, supported states, group, status code, relative target ports)"""
    found, at = [], 0
    while at < len(data):
        state, supported, group, status, count = struct.unpack(">BBHxBxB", data[at : at + 8])
        ports = struct.unpack(f">{count}I", data[at + 8 : at + 8 + 4 * count])
        found.append((state, supported, group, status, list(ports)))
        at += 8 + 4 * count
    return found


def answer(host: Host, form: int = 0) -> bytes:
    data = host.data(host.send(rtpg(form)))
    assert int.from_bytes(data[:4], "big") == len(data) - 4
    return data[4:]


def set_states(host: Host, *wanted: tuple[int, int]) -> int:
    parameters = states(*wanted)
    return host.send(stpg(len(parameters)), parameters).status


def two_paths(lu: LogicalUnit | None = None) -> tuple[Host, Host, LogicalUnit]:
    """One host that comes by portal groups 1 and 2, and by no other."""
    lu = lu or unit()
    device = TargetDevice(TARGET)
    device.set_target_ports((1, 2))
    paths = [Host(device, {0: lu}), Host(device, {0: lu}, tpgt=2)]
    for path in paths:
        path.ready()
    return paths[0], paths[1], lu


# --- what is reported -------------------------------------------------------------------------------------------------


def test_the_portal_group_is_active_and_optimized() -> None:
    host, _, _ = one_host()
    assert groups(answer(host)) == [(OPTIMIZED, SUPPORTED, 1, 0, [1])]


def test_every_portal_group_is_a_target_port_group() -> None:
    one, two, _ = two_paths()
    assert groups(answer(one)) == [(OPTIMIZED, SUPPORTED, 1, 0, [1]), (OPTIMIZED, SUPPORTED, 2, 0, [2])]
    assert answer(one) == answer(two)


def test_page_83_of_each_path_names_its_own_group() -> None:
    one, two, _ = two_paths()
    assert b"\x51\x95\0\x04\0\0\0\x01" in one.data(one.send(inquiry(0x83)))
    assert b"\x51\x95\0\x04\0\0\0\x02" in two.data(two.send(inquiry(0x83)))


def test_a_group_that_comes_is_told_and_reported() -> None:
    host, _, _ = one_host()
    assert host.data(host.send(inquiry()))[6] & 0x10 == 0
    host.nexus.device.set_target_ports((1, 7))
    assert key_asc(host.send(TEST_UNIT_READY)) == STATE_CHANGED
    assert key_asc(host.send(TEST_UNIT_READY)) == (UNIT_ATTENTION, 0x3F03)
    assert host.data(host.send(inquiry()))[6] & 0x10
    assert [group for _, _, group, _, _ in groups(answer(host))] == [1, 7]


def test_a_nexus_keeps_its_own_group_when_the_last_portal_of_it_goes() -> None:
    _, two, _ = two_paths()
    two.nexus.device.set_target_ports((1,))
    two.ready()
    assert [group for _, _, group, _, _ in groups(answer(two))] == [1, 2]


def test_the_extended_form_has_a_header() -> None:
    host, _, _ = one_host()
    data = answer(host, form=1)
    assert data[:4] == bytes((0x10, 0, 0, 0))
    assert groups(data[4:]) == [(OPTIMIZED, SUPPORTED, 1, 0, [1])]


@pytest.mark.parametrize("form", [2, 7])
def test_other_forms_are_refused(form: int) -> None:
    host, _, _ = one_host()
    assert key_asc(host.send(rtpg(form))) == BAD_CDB_FIELD


def test_a_reservation_does_not_stand_against_the_report() -> None:
    one, two, _, _ = two_hosts()
    one.send(RESERVE_6)
    assert two.send(rtpg()).status == 0


# --- what is set ------------------------------------------------------------------------------------------------------


def test_a_host_sets_the_state_of_a_group() -> None:
    one, two, _ = two_paths()
    assert set_states(one, (2, NON_OPTIMIZED)) == 0
    assert groups(answer(one)) == [(OPTIMIZED, SUPPORTED, 1, 0, [1]), (NON_OPTIMIZED, SUPPORTED, 2, 1, [2])]
    assert key_asc(two.send(TEST_UNIT_READY)) == STATE_CHANGED
    assert two.send(write_16(0, 1), BLOCK).status == 0


def test_several_groups_change_at_once() -> None:
    one, two, _ = two_paths()
    assert set_states(one, (1, STANDBY), (2, NON_OPTIMIZED)) == 0
    two.ready()
    assert [state for state, *_ in groups(answer(two))] == [STANDBY, NON_OPTIMIZED]


def test_everybody_but_the_one_who_asked_is_told() -> None:
    one, two, lu = two_paths()
    other = Host(one.nexus.device, {0: lu}, "iqn.host:b", tpgt=2)
    other.ready()
    set_states(one, (2, STANDBY))
    assert one.send(TEST_UNIT_READY).status == 0
    assert key_asc(two.send(TEST_UNIT_READY)) == STATE_CHANGED
    assert key_asc(other.send(TEST_UNIT_READY)) == STATE_CHANGED


def test_the_administrators_change_is_told_to_everybody() -> None:
    one, two, lu = two_paths()
    assert lu.set_access({2: AccessState.STANDBY}, ChangedBy.TARGET)
    assert key_asc(one.send(TEST_UNIT_READY)) == STATE_CHANGED
    assert key_asc(two.send(TEST_UNIT_READY)) == STATE_CHANGED
    assert groups(answer(one))[1][3] == 2


def test_a_state_that_is_there_already_is_no_change() -> None:
    one, two, lu = two_paths()
    assert set_states(one, (1, OPTIMIZED), (2, OPTIMIZED)) == 0
    assert two.send(TEST_UNIT_READY).status == 0
    assert platform_of(lu).notes == []


def test_the_answer_comes_when_a_crash_would_not_undo_it() -> None:
    one, _, lu = two_paths()
    parameters = states((2, STANDBY))
    assert one.start(stpg(len(parameters)), parameters) is None
    assert not one.late
    platform_of(lu).finish_saves()
    assert one.late[one.tag].status == 0
    again = LogicalUnit(MemoryStore(), platform_of(lu))
    after, other, _ = two_paths(again)
    assert groups(answer(after))[1] == (STANDBY, SUPPORTED, 2, 1, [2])
    assert key_asc(other.send(TEST_UNIT_READY)) == IN_STANDBY


def test_no_reset_changes_a_state() -> None:
    one, two, _ = two_paths()
    set_states(one, (2, STANDBY))
    one.nexus.manage(5, 0)
    two.nexus.reset()
    one.ready()
    assert groups(answer(one))[1][0] == STANDBY


def test_other_units_keep_their_states() -> None:
    device = TargetDevice(TARGET)
    host = Host(device, {0: unit(), 1: unit(MemoryStore(serial="S1", naa=bytes.fromhex("3000000000000002")))})
    for lun in (0, 1):
        host.ready(lun)
    set_states(host, (1, STANDBY))
    assert key_asc(host.send(TEST_UNIT_READY)) == IN_STANDBY
    assert host.send(TEST_UNIT_READY, lun=1).status == 0


def test_an_administrator_hears_of_it() -> None:
    one, _, lu = two_paths()
    set_states(one, (2, STANDBY))
    assert platform_of(lu).notes == ["iqn.host:a sets target port group 2 standby"]


@pytest.mark.parametrize("state", [4, OFFLINE, TRANSITIONING])
def test_a_state_that_is_not_supported_changes_nothing(state: int) -> None:
    one, two, _ = two_paths()
    parameters = states((1, NON_OPTIMIZED), (2, state))
    assert key_asc(one.send(stpg(len(parameters)), parameters)) == BAD_LIST_FIELD
    assert [state for state, *_ in groups(answer(one))] == [OPTIMIZED, OPTIMIZED]
    assert two.send(TEST_UNIT_READY).status == 0


@pytest.mark.parametrize("group", [0, 3, 0xFFFF])
def test_a_group_that_is_not_there_is_refused(group: int) -> None:
    one, _, _ = two_paths()
    parameters = states((group, STANDBY))
    assert key_asc(one.send(stpg(len(parameters)), parameters)) == BAD_LIST_FIELD


@pytest.mark.parametrize("length", [1, 3, 5, 7, 9])
def test_a_list_that_ends_in_the_middle_is_refused(length: int) -> None:
    one, _, _ = two_paths()
    assert key_asc(one.send(stpg(length), states((1, STANDBY), (2, STANDBY))[:length])) == BAD_LIST_LENGTH


@pytest.mark.parametrize("length", [0, 4])
def test_a_list_without_descriptors_changes_nothing(length: int) -> None:
    one, _, _ = two_paths()
    assert one.send(stpg(length), bytes(length)).status == 0


def test_a_reservation_of_another_nexus_stands_against_setting() -> None:
    one, two, _, _ = two_hosts()
    one.send(RESERVE_6)
    parameters = states((1, STANDBY))
    assert two.send(stpg(len(parameters)), parameters).status == 0x18


def test_setting_a_state_is_told_by_report_supported_operation_codes() -> None:
    host, _, _ = one_host()
    assert host.data(host.send(report_opcodes(options=3, opcode=0xA4, action=0x0A)))[1] & 7 == 3


# --- what a path can do -----------------------------------------------------------------------------------------------

def name_of(value: object) -> str:
    return value if isinstance(value, str) else ""


PASSIVE = [
    ("INQUIRY", inquiry(), b""),
    ("REPORT LUNS", report_luns(), b""),
    ("REQUEST SENSE", request_sense(), b""),
    ("REPORT TARGET PORT GROUPS", rtpg(), b""),
]
IN_STANDBY_TOO = [
    ("MODE SENSE", mode_sense_6(0x0A), b""),
    ("LOG SENSE", struct.pack(">BBBB3xHB", 0x4D, 0, 0, 0, 255, 0), b""),
    ("PERSISTENT RESERVE IN", reserve_in(0), b""),
    ("PERSISTENT RESERVE OUT", reserve_out(0), reserve_out_list(0, 1)),
    ("READ CAPACITY", ten(0x25, 0, 0), b""),
]
ACTIVE_ONLY = [
    ("TEST UNIT READY", TEST_UNIT_READY, b""),
    ("READ", read_16(0, 1), b""),
    ("WRITE", write_16(0, 1), BLOCK),
    ("SYNCHRONIZE CACHE", ten(0x35, 0, 0), b""),
    ("RESERVE", RESERVE_6, b""),
]


def path_in(state: int) -> tuple[Host, Host]:
    """The path in that state, and a good one."""
    one, two, _ = two_paths()
    set_states(one, (2, state))
    two.ready()
    return two, one


@pytest.mark.parametrize(("name", "cdb", "data"), [*PASSIVE, *IN_STANDBY_TOO], ids=name_of)
def test_a_path_in_standby_does(name: str, cdb: bytes, data: bytes) -> None:
    path, _ = path_in(STANDBY)
    assert path.send(cdb, data).status == 0


@pytest.mark.parametrize(("name", "cdb", "data"), ACTIVE_ONLY, ids=name_of)
def test_a_path_in_standby_does_not(name: str, cdb: bytes, data: bytes) -> None:
    path, good = path_in(STANDBY)
    assert key_asc(path.send(cdb, data)) == IN_STANDBY
    assert good.send(cdb, data).status == 0


@pytest.mark.parametrize(("name", "cdb", "data"), PASSIVE, ids=name_of)
def test_an_unavailable_path_does(name: str, cdb: bytes, data: bytes) -> None:
    path, _ = path_in(UNAVAILABLE)
    assert path.send(cdb, data).status == 0


@pytest.mark.parametrize(("name", "cdb", "data"), [*IN_STANDBY_TOO, *ACTIVE_ONLY], ids=name_of)
def test_an_unavailable_path_does_not(name: str, cdb: bytes, data: bytes) -> None:
    path, _ = path_in(UNAVAILABLE)
    assert key_asc(path.send(cdb, data)) == IN_UNAVAILABLE


@pytest.mark.parametrize("state", [STANDBY, UNAVAILABLE])
def test_a_path_that_is_closed_can_be_opened_by_itself(state: int) -> None:
    path, _ = path_in(state)
    assert set_states(path, (2, OPTIMIZED)) == 0
    assert path.send(write_16(0, 1), BLOCK).status == 0


@pytest.mark.parametrize(("state", "expected"), [(STANDBY, IN_STANDBY), (UNAVAILABLE, IN_UNAVAILABLE)])
def test_request_sense_says_why_a_path_cannot_be_used(state: int, expected: tuple[int, int]) -> None:
    path, _ = path_in(state)
    assert sense_of(path.data(path.send(request_sense()))) == expected


def test_only_through_an_unavailable_path_is_the_device_not_connected() -> None:
    path, good = path_in(UNAVAILABLE)
    assert path.data(path.send(inquiry()))[0] == path.data(path.send(inquiry(0x83)))[0] == 0x20
    assert good.data(good.send(inquiry()))[0] == 0


@pytest.mark.parametrize("state", [STANDBY, UNAVAILABLE])
def test_the_fast_path_is_closed_and_opened_with_the_state(state: int) -> None:
    path, good = path_in(state)
    out = memoryview(bytearray(512))
    cdb = memoryview(read_16(0, 1))
    assert path.nexus.fast_read(0, cdb, 0, 512, out) == -1
    assert not path.nexus.fast_write(0, memoryview(write_16(0, 1)), 0, memoryview(BLOCK))
    set_states(good, (2, NON_OPTIMIZED))
    path.ready()
    assert path.nexus.fast_read(0, cdb, 0, 512, out) == 512


def test_a_copy_needs_an_active_path_to_both_ends() -> None:
    """EXTENDED COPY through a path that is good for one unit and in standby for the other."""
    source, destination = unit(), unit(MemoryStore(serial="S1", naa=bytes.fromhex("3000000000000002")))
    host = Host(TargetDevice(TARGET), {0: source, 1: destination})
    for lun in (0, 1):
        host.ready(lun)
    naa = [lu.store.naa for lu in (source, destination)]
    cscds = b"".join(struct.pack(">BB2xBBxB20sB3x", 0xE4, 0, 1, 3, len(each), each.ljust(20, b"\0"), 0) for each in naa)
    segment = struct.pack(">BBHHH2xHQQ", 0x02, 0, 0x18, 0, 1, 1, 0, 0)
    parameters = struct.pack(">BBH4xII", 1, 0, len(cscds), len(segment), 0) + cscds + segment
    copy = struct.pack(">BB8xIxB", 0x83, 0, len(parameters), 0)
    assert host.send(copy, parameters).status == 0
    destination.set_access({1: AccessState.STANDBY}, ChangedBy.TARGET)
    host.ready(1)
    assert key_asc(host.send(copy, parameters)) == (0xA, 0x0D01)
