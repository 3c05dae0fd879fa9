"""PREVENT ALLOW MEDIUM REMOVAL, START STOP UNIT and what a unit without its medium answers."""

from __future__ import annotations

import pytest

from target.nexus import TargetDevice
from target.scsi.unit import REMOVABLE, WRITE_PROTECTED
from tests.support.scsi_host import (
    BAD_CDB_FIELD,
    DATA_PROTECT,
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
    prevent,
    read_16,
    start_stop,
    ten,
    unit,
    write_16,
)

START, LOEJ, NO_FLUSH, ACTIVE = 1, 2, 4, 0x10
NO_MEDIUM, PREVENTED = (NOT_READY, 0x3A00), (ILLEGAL, 0x5302)


def removable() -> tuple[Host, Host]:
    lu, device = unit(removable=b"1"), TargetDevice(TARGET)
    one, two = (Host(device, {0: lu}, name) for name in ("iqn.host:a", "iqn.host:b"))
    one.ready()
    two.ready()
    return one, two


def test_inquiry_says_whether_the_medium_is_removable() -> None:
    one, _ = removable()
    assert one.data(one.send(inquiry()))[1] == 0x80
    fixed, lu, _ = one_host()
    assert fixed.data(fixed.send(inquiry()))[1] == 0
    lu.switch(REMOVABLE, True)
    assert key_asc(fixed.send(TEST_UNIT_READY)) == (UNIT_ATTENTION, 0x3F03)
    assert fixed.data(fixed.send(inquiry()))[1] == 0x80


@pytest.mark.parametrize("cdb", [TEST_UNIT_READY, read_16(0, 1), write_16(0, 1), ten(0x25, 0, 0), ten(0x35, 0, 0)])
def test_an_ejected_medium_is_not_present(cdb: bytes) -> None:
    one, two = removable()
    assert one.send(start_stop(LOEJ)).status == 0
    assert key_asc(two.send(cdb, bytes(512))) == NO_MEDIUM
    assert one.send(mode_sense_6(0x3F)).status == 0


def test_loading_brings_it_back_and_tells_the_others() -> None:
    one, two = removable()
    one.send(start_stop(LOEJ))
    assert one.send(start_stop(LOEJ | START)).status == 0
    assert one.send(TEST_UNIT_READY).status == 0
    assert key_asc(two.send(TEST_UNIT_READY)) == (UNIT_ATTENTION, 0x2800)


def test_ejecting_closes_the_fast_path() -> None:
    one, two = removable()
    buf, out = memoryview(read_16(0, 1)), memoryview(bytearray(512))
    assert two.nexus.fast_read(0, buf, 0, 512, out) == 512
    one.send(start_stop(LOEJ))
    assert two.nexus.fast_read(0, buf, 0, 512, out) == -1


@pytest.mark.parametrize("move", [LOEJ, LOEJ | START])
def test_prevention_by_one_nexus_binds_all(move: int) -> None:
    one, two = removable()
    assert one.send(prevent(1)).status == 0
    assert key_asc(one.send(start_stop(move))) == PREVENTED
    assert key_asc(two.send(start_stop(move))) == PREVENTED
    two.send(prevent(0))
    assert key_asc(two.send(start_stop(move))) == PREVENTED
    one.send(prevent(0))
    assert two.send(start_stop(move)).status == 0


def test_prevention_ends_with_the_nexus() -> None:
    one, two = removable()
    one.send(prevent(1))
    one.nexus.close()
    assert two.send(start_stop(LOEJ)).status == 0


def test_prevention_ends_with_a_reset() -> None:
    one, two = removable()
    one.send(prevent(1))
    two.nexus.manage(5, 0)
    two.ready()
    assert two.send(start_stop(LOEJ)).status == 0


def test_prevention_is_possible_without_a_medium() -> None:
    one, _ = removable()
    one.send(start_stop(LOEJ))
    assert one.send(prevent(1)).status == 0


@pytest.mark.parametrize("start", [0, START, NO_FLUSH, NO_FLUSH | START])
def test_without_loej_the_medium_stays(start: int) -> None:
    one, _ = removable()
    assert one.send(start_stop(start)).status == 0
    assert one.send(TEST_UNIT_READY).status == 0


@pytest.mark.parametrize("condition", range(1, 16))
def test_a_power_condition_moves_nothing(condition: int) -> None:
    one, _ = removable()
    assert one.send(start_stop(condition << 4 | LOEJ)).status == 0
    assert one.send(TEST_UNIT_READY).status == 0


@pytest.mark.parametrize("start", [LOEJ, LOEJ | START, ACTIVE])
def test_a_fixed_unit_has_nothing_to_move(start: int) -> None:
    host, _, _ = one_host()
    assert key_asc(host.send(start_stop(start))) == BAD_CDB_FIELD


def test_the_administrator_can_write_protect_a_unit() -> None:
    host, lu, _ = one_host(write_protected=b"1")
    assert key_asc(host.send(write_16(0, 1), bytes(512))) == (DATA_PROTECT, 0x2700)
    lu.switch(WRITE_PROTECTED, False)
    assert key_asc(host.send(TEST_UNIT_READY)) == (UNIT_ATTENTION, 0x2A01)
    assert host.send(write_16(0, 1), bytes(512)).status == 0
