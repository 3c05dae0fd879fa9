"""RESERVE(6) and persistent reservations."""

from __future__ import annotations

import struct

import pytest

from target.scsi.reservation import ALLOWED, PersistentType
from target.scsi.task import Access
from tests.support.scsi_host import (
    BAD_CDB_FIELD,
    BAD_LIST_FIELD,
    BAD_LIST_LENGTH,
    ILLEGAL,
    RELEASE_6,
    RESERVE_6,
    TEST_UNIT_READY,
    UNIT_ATTENTION,
    Host,
    inquiry,
    key_asc,
    mode_sense_6,
    read_16,
    report_luns,
    request_sense,
    reserve_in,
    reserve_out,
    reserve_out_list,
    ten,
    two_hosts,
    unit,
    write_16,
)

CONFLICT = 0x18
REGISTER, RESERVE, RELEASE, CLEAR, PREEMPT, PREEMPT_AND_ABORT, REGISTER_AND_IGNORE = range(7)
TYPES = list(PersistentType)
WE, EA, WE_RO, EA_RO, WE_AR, EA_AR = TYPES
READ, WRITE = read_16(0, 1), write_16(0, 1)


def out(host: Host, action: int, key: int = 0, new: int = 0, kind: int = 0, flags: int = 0) -> int:
    return host.send(reserve_out(action, kind), reserve_out_list(key, new, flags)).status


def registered(*pairs: tuple[Host, int]) -> None:
    for host, key in pairs:
        assert out(host, REGISTER, new=key) == 0


def keys(host: Host) -> tuple[int, list[int]]:
    data = host.data(host.send(reserve_in(0)))
    generation, length = struct.unpack(">II", data[:8])
    assert length == len(data) - 8
    return generation, list(struct.unpack(f">{length // 8}Q", data[8:]))


def reservation(host: Host) -> tuple[int, int] | None:
    """(key, type)"""
    data = host.data(host.send(reserve_in(1)))
    return None if len(data) == 8 else (int.from_bytes(data[8:16], "big"), data[21])


def write_status(host: Host) -> int:
    return host.send(WRITE, bytes(512)).status


# --- RESERVE(6) ---


def test_reserve_keeps_others_out_until_release() -> None:
    one, two, _, _ = two_hosts()
    assert one.send(RESERVE_6).status == 0
    assert two.send(READ).status == CONFLICT
    assert one.send(READ).status == 0
    assert one.send(RELEASE_6).status == 0
    assert two.send(READ).status == 0


@pytest.mark.parametrize(
    "cdb", [TEST_UNIT_READY, READ, WRITE, mode_sense_6(0x3F), RESERVE_6, ten(0x35, 0, 0), reserve_in(0)]
)
def test_reserve_conflicts_with(cdb: bytes) -> None:
    one, two, _, _ = two_hosts()
    one.send(RESERVE_6)
    assert two.send(cdb, bytes(512)).status == CONFLICT


@pytest.mark.parametrize("cdb", [inquiry(), report_luns(), request_sense(), RELEASE_6])
def test_reserve_lets_pass(cdb: bytes) -> None:
    one, two, _, _ = two_hosts()
    one.send(RESERVE_6)
    assert two.send(cdb).status == 0


def test_release_by_another_releases_nothing() -> None:
    one, two, _, _ = two_hosts()
    one.send(RESERVE_6)
    two.send(RELEASE_6)
    assert two.send(READ).status == CONFLICT


def test_reserve_ends_with_the_session() -> None:
    one, two, _, _ = two_hosts()
    one.send(RESERVE_6)
    one.nexus.close()
    assert two.send(READ).status == 0


def test_reserve_ends_with_a_logical_unit_reset() -> None:
    one, two, _, _ = two_hosts()
    one.send(RESERVE_6)
    assert two.nexus.manage(5, 0) == 0
    two.ready()
    assert two.send(READ).status == 0


def test_reserve_is_refused_while_keys_are_registered() -> None:
    one, two, _, _ = two_hosts()
    registered((two, 1))
    assert one.send(RESERVE_6).status == CONFLICT


# --- registering ---


def test_registering_shows_the_key_and_counts_the_generation() -> None:
    one, two, _, _ = two_hosts()
    registered((one, 0xAA), (two, 0xBB))
    assert keys(one) == (2, [0xAA, 0xBB])


def test_registering_again_needs_the_old_key() -> None:
    one, _, _, _ = two_hosts()
    registered((one, 0xAA))
    assert out(one, REGISTER, key=0x99, new=0xCC) == CONFLICT
    assert out(one, REGISTER, key=0xAA, new=0xCC) == 0
    assert keys(one)[1] == [0xCC]


def test_register_and_ignore_needs_no_old_key() -> None:
    one, _, _, _ = two_hosts()
    registered((one, 0xAA))
    assert out(one, REGISTER_AND_IGNORE, key=0x99, new=0xCC) == 0
    assert keys(one)[1] == [0xCC]


def test_an_unregistered_nexus_must_give_key_0() -> None:
    one, _, _, _ = two_hosts()
    assert out(one, REGISTER, key=5, new=6) == CONFLICT


def test_registering_key_0_unregisters() -> None:
    one, _, _, _ = two_hosts()
    registered((one, 0xAA))
    assert out(one, REGISTER, key=0xAA, new=0) == 0
    assert keys(one)[1] == []


def test_a_registration_survives_the_session() -> None:
    one, two, lu, _ = two_hosts()
    registered((one, 0xAA), (two, 0xBB))
    out(one, RESERVE, 0xAA, kind=WE)
    one.nexus.close()
    again = Host(two.nexus.device, {0: lu}, "iqn.host:a")
    again.ready()
    assert write_status(two) == CONFLICT
    assert write_status(again) == 0


def test_another_isid_is_another_nexus() -> None:
    one, _, lu, _ = two_hosts()
    registered((one, 0xAA))
    out(one, RESERVE, 0xAA, kind=WE)
    other = Host(one.nexus.device, {0: lu}, "iqn.host:a", b"\x80zzzzz")
    other.ready()
    assert write_status(other) == CONFLICT


# --- what each type lets pass ---


@pytest.mark.parametrize("kind", TYPES, ids=lambda k: k.name)
@pytest.mark.parametrize("is_registered", [False, True])
def test_the_types_let_pass_what_the_table_says(kind: PersistentType, is_registered: bool) -> None:
    one, two, _, _ = two_hosts()
    registered((one, 1))
    if is_registered:
        registered((two, 2))
    assert out(one, RESERVE, 1, kind=kind) == 0
    holds = is_registered and kind in (WE_AR, EA_AR)
    allowed = {Access.READ, Access.WRITE} if holds else ALLOWED[kind][is_registered]
    assert (two.send(READ).status == 0) is (Access.READ in allowed)
    assert (write_status(two) == 0) is (Access.WRITE in allowed)
    assert (two.send(mode_sense_6(0x3F)).status == 0) is (Access.WRITE in allowed)
    assert two.send(TEST_UNIT_READY).status == 0
    assert two.send(b"\x25").status == 0
    assert (one.send(READ).status, write_status(one)) == (0, 0)


@pytest.mark.parametrize("kind", [WE, EA])
def test_starting_the_unit_is_allowed_and_stopping_it_is_not(kind: PersistentType) -> None:
    one, two, _, _ = two_hosts()
    registered((one, 1))
    out(one, RESERVE, 1, kind=kind)
    assert two.send(bytes((0x1B, 0, 0, 0, 1, 0))).status == 0
    assert two.send(bytes((0x1B, 0, 0, 0, 0, 0))).status == CONFLICT


def test_read_reservation_shows_key_and_type() -> None:
    one, two, _, _ = two_hosts()
    assert reservation(one) is None
    registered((one, 0xAA))
    out(one, RESERVE, 0xAA, kind=EA_RO)
    assert reservation(two) == (0xAA, EA_RO)


def test_an_all_registrants_reservation_shows_key_0() -> None:
    one, _, _, _ = two_hosts()
    registered((one, 0xAA))
    out(one, RESERVE, 0xAA, kind=WE_AR)
    assert reservation(one) == (0, WE_AR)


def test_reserving_again_with_the_same_type_is_good_and_with_another_conflicts() -> None:
    one, _, _, _ = two_hosts()
    registered((one, 1))
    assert out(one, RESERVE, 1, kind=WE) == 0
    assert out(one, RESERVE, 1, kind=WE) == 0
    assert out(one, RESERVE, 1, kind=EA) == CONFLICT


def test_reserving_needs_the_registered_key() -> None:
    one, _, _, _ = two_hosts()
    assert out(one, RESERVE, 1, kind=WE) == CONFLICT
    registered((one, 1))
    assert out(one, RESERVE, 2, kind=WE) == CONFLICT


# --- release ---


@pytest.mark.parametrize(("kind", "told"), [(WE, False), (EA, False), (WE_RO, True), (EA_RO, True), (WE_AR, True)])
def test_release_tells_those_who_shared_it(kind: PersistentType, told: bool) -> None:
    one, two, _, _ = two_hosts()
    registered((one, 1), (two, 2))
    out(one, RESERVE, 1, kind=kind)
    assert out(one, RELEASE, 1, kind=kind) == 0
    assert one.send(TEST_UNIT_READY).status == 0
    response = two.send(TEST_UNIT_READY)
    assert (response.status == 2) is told
    if told:
        assert key_asc(response) == (UNIT_ATTENTION, 0x2A04)
    assert reservation(one) is None


def test_release_of_another_type_is_an_error() -> None:
    one, _, _, _ = two_hosts()
    registered((one, 1))
    out(one, RESERVE, 1, kind=WE)
    response = one.send(reserve_out(RELEASE, EA), reserve_out_list(1))
    assert key_asc(response) == (ILLEGAL, 0x2604)


def test_release_by_a_registrant_that_does_not_hold_it_changes_nothing() -> None:
    one, two, _, _ = two_hosts()
    registered((one, 1), (two, 2))
    out(one, RESERVE, 1, kind=WE)
    assert out(two, RELEASE, 2, kind=WE) == 0
    assert reservation(one) == (1, WE)


def test_unregistering_the_holder_releases_and_tells_the_others_only() -> None:
    one, two, _, _ = two_hosts()
    registered((one, 1), (two, 2))
    out(one, RESERVE, 1, kind=EA_RO)
    assert out(one, REGISTER, 1, 0) == 0
    assert one.send(TEST_UNIT_READY).status == 0
    assert key_asc(two.send(TEST_UNIT_READY)) == (UNIT_ATTENTION, 0x2A04)
    assert reservation(two) is None


def test_an_all_registrants_reservation_ends_with_the_last_registration() -> None:
    one, two, _, _ = two_hosts()
    registered((one, 1), (two, 2))
    out(one, RESERVE, 1, kind=WE_AR)
    out(one, REGISTER, 1, 0)
    assert reservation(two) == (0, WE_AR)
    out(two, REGISTER, 2, 0)
    assert reservation(two) is None


# --- clear and preempt ---


def test_clear_removes_everything_and_tells_the_others() -> None:
    one, two, _, _ = two_hosts()
    registered((one, 1), (two, 2))
    out(one, RESERVE, 1, kind=WE)
    assert out(two, CLEAR, 2) == 0
    assert key_asc(one.send(TEST_UNIT_READY)) == (UNIT_ATTENTION, 0x2A03)
    assert keys(two)[1] == []
    assert reservation(two) is None


def test_preempt_takes_the_reservation_over() -> None:
    one, two, _, _ = two_hosts()
    registered((one, 1), (two, 2))
    out(one, RESERVE, 1, kind=WE)
    assert out(two, PREEMPT, 2, 1, kind=EA) == 0
    assert key_asc(one.send(TEST_UNIT_READY)) == (UNIT_ATTENTION, 0x2A05)
    assert reservation(two) == (2, EA)
    assert one.send(READ).status == CONFLICT
    assert keys(two)[1] == [2]


def test_preempt_of_a_key_that_holds_nothing_removes_its_registrations() -> None:
    one, two, _, _ = two_hosts()
    registered((one, 1), (two, 2))
    out(one, RESERVE, 1, kind=WE)
    assert out(one, PREEMPT, 1, 2, kind=WE) == 0
    assert keys(one)[1] == [1]
    assert reservation(one) == (1, WE)
    assert key_asc(two.send(TEST_UNIT_READY)) == (UNIT_ATTENTION, 0x2A05)


def test_preempt_of_an_unknown_key_conflicts() -> None:
    one, _, _, _ = two_hosts()
    registered((one, 1))
    assert out(one, PREEMPT, 1, 77, kind=WE) == CONFLICT


def test_preempt_of_key_0_takes_an_all_registrants_reservation_over() -> None:
    one, two, _, _ = two_hosts()
    registered((one, 1), (two, 2))
    out(one, RESERVE, 1, kind=EA_AR)
    assert out(two, PREEMPT, 2, 0, kind=WE) == 0
    assert reservation(two) == (2, WE)
    assert keys(two)[1] == [2]


def test_preempt_of_key_0_is_otherwise_an_error() -> None:
    one, _, _, _ = two_hosts()
    registered((one, 1))
    response = one.send(reserve_out(PREEMPT, WE), reserve_out_list(1, 0))
    assert key_asc(response) == BAD_LIST_FIELD


def test_preempt_and_abort_ends_the_victims_tasks() -> None:
    one, two, _, store = two_hosts()
    registered((one, 1), (two, 2))
    assert one.start(ten(0x35, 0, 0)) is None
    assert out(two, PREEMPT_AND_ABORT, 2, 1, kind=WE) == 0
    assert one.late[one.tag].status == 0x40
    store.finish_flushes()


def test_plain_preempt_leaves_the_victims_tasks() -> None:
    one, two, _, store = two_hosts()
    registered((one, 1), (two, 2))
    assert one.start(ten(0x35, 0, 0)) is None
    assert out(two, PREEMPT, 2, 1, kind=WE) == 0
    store.finish_flushes()
    assert one.late[one.tag].status == 0


# --- parameters ---


@pytest.mark.parametrize("length", [0, 23, 25])
def test_a_parameter_list_of_another_length_is_refused(length: int) -> None:
    one, _, _, _ = two_hosts()
    assert key_asc(one.send(reserve_out(REGISTER, length=length), bytes(length))) == BAD_LIST_LENGTH


@pytest.mark.parametrize("kind", [0, 2, 4, 9, 0x11])
def test_a_bad_scope_or_type_is_refused(kind: int) -> None:
    one, _, _, _ = two_hosts()
    registered((one, 1))
    assert key_asc(one.send(reserve_out(RESERVE, kind), reserve_out_list(1))) == BAD_CDB_FIELD


@pytest.mark.parametrize("cdb", [reserve_in(action) for action in range(4, 32)], ids=lambda c: hex(c[1]))
def test_other_service_actions_of_persistent_reserve_in_fail(cdb: bytes) -> None:
    one, _, _, _ = two_hosts()
    assert key_asc(one.send(cdb)) == BAD_CDB_FIELD


def test_capabilities_list_all_six_types() -> None:
    one, _, _, _ = two_hosts()
    data = one.data(one.send(reserve_in(2)))
    assert len(data) == 8
    mask = int.from_bytes(data[4:6], "little")
    assert {kind for kind in range(16) if mask & 1 << kind} == set(PersistentType)


def test_full_status_names_each_nexus() -> None:
    one, two, _, _ = two_hosts()
    registered((one, 1), (two, 2))
    out(one, RESERVE, 1, kind=WE)
    data = one.data(one.send(reserve_in(3)))
    assert int.from_bytes(data[4:8], "big") == len(data) - 8
    assert b"iqn.host:a,i,0x806162636465\0" in data
    assert b"iqn.host:b,i,0x806162636465\0" in data
    assert (data[20], data[21]) == (1, WE)


def test_reservations_are_of_one_unit_only() -> None:
    one, two, lu, _ = two_hosts()
    other = unit()
    two.nexus.set_map({0: lu, 1: other})
    two.ready(0)
    two.ready(1)
    registered((one, 1))
    out(one, RESERVE, 1, kind=EA)
    assert two.send(READ, lun=1).status == 0
    assert two.send(READ, lun=0).status == CONFLICT
