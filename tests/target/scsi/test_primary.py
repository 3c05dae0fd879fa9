"""TEST UNIT READY, REQUEST SENSE, REPORT LUNS, LOG SENSE, PREVENT ALLOW, unit attentions, LUNs that are not there."""

from __future__ import annotations

import pytest

from target.nexus import TargetDevice
from target.scsi.sense import Asc
from tests.support.memory_store import MemoryStore
from tests.support.scsi_host import (
    BAD_CDB_FIELD,
    BAD_OPCODE,
    ILLEGAL,
    NOT_READY,
    TARGET,
    TEST_UNIT_READY,
    UNIT_ATTENTION,
    Host,
    inquiry,
    key_asc,
    mode_sense_6,
    one_host,
    read_16,
    report_luns,
    request_sense,
    sense_of,
    two_hosts,
    unit,
)

NO_SUCH_LUN = (ILLEGAL, 0x2500)


def fresh() -> Host:
    return Host(TargetDevice(TARGET), {0: unit()})


def lun_list(host: Host, lun: int = 0, select: int = 0) -> list[int]:
    data = host.data(host.send(report_luns(select), lun=lun))
    assert int.from_bytes(data[:4], "big") == len(data) - 8
    return [int.from_bytes(data[at : at + 8], "big") >> 48 for at in range(8, len(data), 8)]


# --- unit attentions ---


def test_the_first_command_of_a_nexus_reports_power_on_once() -> None:
    host = fresh()
    assert key_asc(host.send(TEST_UNIT_READY)) == (UNIT_ATTENTION, 0x2900)
    assert host.send(TEST_UNIT_READY).status == 0


@pytest.mark.parametrize("cdb", [inquiry(), report_luns()], ids=["INQUIRY", "REPORT LUNS"])
def test_a_unit_attention_neither_blocks_nor_is_cleared_by(cdb: bytes) -> None:
    host = fresh()
    assert host.send(cdb).status == 0
    assert key_asc(host.send(TEST_UNIT_READY)) == (UNIT_ATTENTION, 0x2900)


def test_request_sense_returns_the_unit_attention_and_clears_it() -> None:
    host = fresh()
    assert sense_of(host.data(host.send(request_sense()))) == (UNIT_ATTENTION, 0x2900)
    assert host.send(TEST_UNIT_READY).status == 0


def test_a_unit_attention_comes_before_an_unknown_operation_code() -> None:
    host = fresh()
    assert key_asc(host.send(b"\xff")) == (UNIT_ATTENTION, 0x2900)
    assert key_asc(host.send(b"\xff")) == BAD_OPCODE


def test_several_unit_attentions_are_reported_one_by_one_in_order() -> None:
    host, lu, _ = one_host()
    lu.capacity_changed()
    lu.threshold_reached()
    assert key_asc(host.send(TEST_UNIT_READY)) == (UNIT_ATTENTION, 0x2A09)
    assert key_asc(host.send(TEST_UNIT_READY)) == (UNIT_ATTENTION, 0x3807)
    assert host.send(TEST_UNIT_READY).status == 0


def test_the_same_unit_attention_is_pending_once() -> None:
    host, lu, _ = one_host()
    lu.capacity_changed()
    lu.capacity_changed()
    host.send(TEST_UNIT_READY)
    assert host.send(TEST_UNIT_READY).status == 0


def test_a_reset_replaces_what_was_pending() -> None:
    host, lu, _ = one_host()
    lu.capacity_changed()
    lu.reset()
    assert key_asc(host.send(TEST_UNIT_READY)) == (UNIT_ATTENTION, 0x2903)
    assert host.send(TEST_UNIT_READY).status == 0


def test_a_resize_is_told_to_every_nexus() -> None:
    one, two, lu, store = two_hosts()
    store.size_bytes *= 2
    lu.capacity_changed()
    for host in (one, two):
        assert key_asc(host.send(TEST_UNIT_READY)) == (UNIT_ATTENTION, 0x2A09)
        assert host.data(host.send(b"\x25"))[:4] == (4095).to_bytes(4, "big")


def test_other_contents_of_the_same_identity_are_no_unit_attention() -> None:
    host, lu, _ = one_host()
    lu.replace_store(MemoryStore())
    assert host.send(TEST_UNIT_READY).status == 0


def test_another_identity_and_size_are_told() -> None:
    host, lu, _ = one_host()
    lu.replace_store(MemoryStore(2 << 20, serial="other"))
    assert key_asc(host.send(TEST_UNIT_READY)) == (UNIT_ATTENTION, 0x3F03)
    assert key_asc(host.send(TEST_UNIT_READY)) == (UNIT_ATTENTION, 0x2A09)


# --- readiness ---


@pytest.mark.parametrize("cdb", [TEST_UNIT_READY, read_16(0, 1), b"\x25", b"\x35"])
def test_an_offline_unit_is_not_ready(cdb: bytes) -> None:
    host, _, store = one_host()
    store.online = False
    assert key_asc(host.send(cdb)) == (NOT_READY, 0x0403)


@pytest.mark.parametrize("cdb", [inquiry(), inquiry(0x83), report_luns(), mode_sense_6(0x3F)])
def test_an_offline_unit_still_says_what_it_is(cdb: bytes) -> None:
    host, _, store = one_host()
    store.online = False
    assert host.send(cdb).status == 0


def test_request_sense_of_an_offline_unit_says_not_ready_with_good_status() -> None:
    host, _, store = one_host()
    store.online = False
    assert sense_of(host.data(host.send(request_sense()))) == (NOT_READY, 0x0403)


def test_request_sense_without_anything_pending_is_no_sense() -> None:
    host, _, _ = one_host()
    assert sense_of(host.data(host.send(request_sense()))) == (0, 0)


def test_request_sense_gives_descriptor_format_on_request() -> None:
    host, _, _ = one_host()
    assert host.data(host.send(request_sense(descriptor=True)))[0] == 0x72


# --- REPORT LUNS ---


def test_report_luns_lists_the_map_ascending_in_the_addressing_for_their_size() -> None:
    host = Host(TargetDevice(TARGET), {i: unit() for i in (300, 7, 0, 255)})
    assert lun_list(host) == [0, 7, 255, 0x4000 | 300]


@pytest.mark.parametrize(("select", "expected"), [(0, [0]), (1, []), (2, [0])])
def test_select_report_knows_no_well_known_units(select: int, expected: list[int]) -> None:
    assert lun_list(fresh(), select=select) == expected


def test_an_unknown_select_report_is_an_error() -> None:
    assert key_asc(fresh().send(report_luns(select=3))) == BAD_CDB_FIELD


def test_an_allocation_length_under_16_is_an_error() -> None:
    assert key_asc(fresh().send(report_luns(length=15))) == BAD_CDB_FIELD


def test_lun_0_reports_luns_even_if_nothing_is_mapped() -> None:
    assert lun_list(Host(TargetDevice(TARGET), {})) == []


def test_lun_0_that_is_not_mapped_reports_the_others() -> None:
    assert lun_list(Host(TargetDevice(TARGET), {5: unit()})) == [5]


def test_report_luns_clears_the_inventory_attention_of_every_unit() -> None:
    units = {i: unit() for i in range(3)}
    host = Host(TargetDevice(TARGET), {0: units[0], 1: units[1]})
    for lun in (0, 1):
        host.ready(lun)
    host.nexus.set_map(units)
    assert lun_list(host) == [0, 1, 2]
    for lun in (0, 1):
        assert host.send(TEST_UNIT_READY, lun=lun).status == 0


# --- a LUN that is not there ---


def test_inquiry_of_an_absent_lun_says_nothing_can_be_there() -> None:
    data = fresh()
    assert data.data(data.send(inquiry(), lun=9))[0] == 0x7F


def test_vpd_of_an_absent_lun_lists_page_00_only() -> None:
    host = fresh()
    assert host.data(host.send(inquiry(0), lun=9)) == b"\x7f\0\0\1\0"
    assert key_asc(host.send(inquiry(0x83), lun=9)) == BAD_CDB_FIELD


def test_request_sense_of_an_absent_lun_is_good_and_says_so() -> None:
    host = fresh()
    assert sense_of(host.data(host.send(request_sense(), lun=9))) == NO_SUCH_LUN


@pytest.mark.parametrize("cdb", [TEST_UNIT_READY, read_16(0, 1), report_luns(), b"\xff"])
def test_any_other_command_to_an_absent_lun_fails(cdb: bytes) -> None:
    assert key_asc(fresh().send(cdb, lun=9)) == NO_SUCH_LUN


def test_a_lun_may_be_spelled_in_flat_addressing() -> None:
    host = fresh()
    response = host.nexus.execute(0x4000 << 48, inquiry().ljust(16, b"\0"), 1, memoryview(b""), 1, lambda r: None)
    assert response is not None
    assert response.data[0] == 0


@pytest.mark.parametrize("field", [0xC101 << 48, 1, 0x0100 << 48, (1 << 64) - 1])
def test_other_forms_of_lun_name_nothing(field: int) -> None:
    host = fresh()
    response = host.nexus.execute(field, bytes(16), 1, memoryview(b""), 1, lambda r: None)
    assert response is not None
    assert key_asc(response) == NO_SUCH_LUN


# --- the rest ---


def test_an_unknown_operation_code_is_refused() -> None:
    host, _, _ = one_host()
    assert key_asc(host.send(b"\xc0")) == BAD_OPCODE


def test_an_unknown_service_action_is_refused_at_its_field() -> None:
    host, _, _ = one_host()
    assert key_asc(host.send(b"\x9e\x1f")) == BAD_CDB_FIELD


def test_naca_is_refused() -> None:
    host, _, _ = one_host()
    assert key_asc(host.send(bytes((0, 0, 0, 0, 0, 4)))) == BAD_CDB_FIELD


@pytest.mark.parametrize(("prevent", "good"), [(0, True), (1, True), (2, False), (3, False)])
def test_prevent_allow_knows_its_two_values(prevent: int, good: bool) -> None:
    host, _, _ = one_host()
    assert (host.send(bytes((0x1E, 0, 0, 0, prevent, 0))).status == 0) is good


def test_report_timestamp_tells_the_time_in_milliseconds() -> None:
    host, lu, _ = one_host()
    data = host.data(host.send(bytes.fromhex("a30f000000000000000c0000")))
    assert (data[:4], data[10:]) == (b"\0\x0a\x03\0", b"\0\0")
    assert int.from_bytes(data[4:10], "big") == int(lu.platform.wall_clock() * 1000)


def test_every_code_that_can_be_pending_fits_the_queue() -> None:
    host, lu, _ = one_host()
    for asc in Asc:
        if asc >> 8 in (0x2A, 0x38, 0x3F):
            lu.establish(asc)
    assert len(host.nexus.itls[0].attentions) == sum(asc >> 8 in (0x2A, 0x38, 0x3F) for asc in Asc)
