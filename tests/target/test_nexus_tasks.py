"""The nexus: tasks and task management, seen through `ports.Nexus`."""

from __future__ import annotations

import pytest

from target.nexus import Nexus, TargetDevice, lun_field
from tests.support.scsi_host import (
    RESERVE_6,
    TARGET,
    TEST_UNIT_READY,
    UNIT_ATTENTION,
    Host,
    key_asc,
    one_host,
    read_16,
    reserve_out,
    reserve_out_list,
    ten,
    two_hosts,
    unit,
    units,
    write_16,
)

SYNC = ten(0x35, 0, 0)
FUA = 0x08
ABORT_TASK_SET, CLEAR_ACA, CLEAR_TASK_SET, LUN_RESET, WARM_RESET, COLD_RESET, REASSIGN = 2, 3, 4, 5, 6, 7, 8
I_T_NEXUS_RESET = 11
COMPLETE, NO_LUN, NO_REASSIGN, NOT_SUPPORTED = 0, 2, 4, 5
TASK_ABORTED = 0x40


def test_several_tasks_wait_for_one_flush() -> None:
    host, _, store = one_host()
    for _ in range(3):
        assert host.start(SYNC) is None
    store.finish_flushes()
    assert sorted(host.late) == [host.tag - 2, host.tag - 1, host.tag]


def test_abort_task_ends_a_waiting_task_for_good() -> None:
    host, _, store = one_host()
    host.start(SYNC)
    assert host.nexus.abort_task(0, host.tag)
    store.finish_flushes()
    assert not host.late


def test_abort_task_of_nothing_or_on_another_lun_finds_no_task() -> None:
    a, b = units(2)
    host = Host(TargetDevice(TARGET), {0: a, 1: b})
    for lun in (0, 1):
        host.ready(lun)
    host.start(SYNC)
    assert not host.nexus.abort_task(0, 999)
    assert not host.nexus.abort_task(lun_field(1), host.tag)
    assert not host.nexus.abort_task(lun_field(7), host.tag)
    assert host.nexus.abort_task(0, host.tag)


def test_abort_task_set_touches_this_nexus_only() -> None:
    one, two, _, store = two_hosts()
    one.start(SYNC)
    two.start(SYNC)
    assert one.nexus.manage(ABORT_TASK_SET, 0) == COMPLETE
    store.finish_flushes()
    assert not one.late
    assert two.late[two.tag].status == 0


def test_clear_task_set_ends_the_others_with_task_aborted() -> None:
    one, two, _, store = two_hosts()
    one.start(SYNC)
    two.start(SYNC)
    assert one.nexus.manage(CLEAR_TASK_SET, 0) == COMPLETE
    assert not one.late
    assert two.late[two.tag].status == TASK_ABORTED
    store.finish_flushes()
    assert len(two.late) == 1


def test_an_aborted_tag_can_be_used_again_before_the_old_flush_ends() -> None:
    host, _, store = one_host()
    host.start(SYNC)
    host.nexus.abort_task(0, host.tag)
    old, store.flushes = store.flushes, []
    host.tag -= 1
    host.start(SYNC)
    for done in old:
        done(None)
    assert not host.late
    store.finish_flushes()
    assert len(host.late) == 1


@pytest.mark.parametrize("function", [LUN_RESET, WARM_RESET, COLD_RESET])
def test_a_reset_is_told_on_every_path_and_ends_every_task(function: int) -> None:
    one, two, _, store = two_hosts()
    one.start(SYNC)
    two.start(SYNC)
    assert one.nexus.manage(function, 0) == COMPLETE
    assert two.late[two.tag].status == TASK_ABORTED
    store.finish_flushes()
    assert not one.late
    for host in (one, two):
        assert key_asc(host.send(TEST_UNIT_READY)) == (UNIT_ATTENTION, 0x2903)


def test_lun_reset_is_for_one_unit_and_target_reset_for_all_that_are_seen() -> None:
    a, b, c = units(3)
    device = TargetDevice(TARGET)
    one, two = Host(device, {0: a, 1: b}, "iqn.host:a"), Host(device, {0: c}, "iqn.host:b")
    one.ready(0)
    one.ready(1)
    two.ready(0)
    one.nexus.manage(LUN_RESET, 0)
    assert one.send(TEST_UNIT_READY, lun=1).status == 0
    one.nexus.manage(WARM_RESET, 0)
    assert one.send(TEST_UNIT_READY, lun=1).status == 2
    assert two.send(TEST_UNIT_READY).status == 0


@pytest.mark.parametrize("function", [ABORT_TASK_SET, CLEAR_TASK_SET, LUN_RESET])
def test_a_function_on_an_absent_lun_says_so(function: int) -> None:
    host, _, _ = one_host()
    assert host.nexus.manage(function, lun_field(5)) == NO_LUN


@pytest.mark.parametrize(
    ("function", "response"),
    [(CLEAR_ACA, NOT_SUPPORTED), (REASSIGN, NO_REASSIGN), (0, NOT_SUPPORTED), (200, NOT_SUPPORTED)],
)
def test_other_functions_are_not_supported(function: int, response: int) -> None:
    host, _, _ = one_host()
    assert host.nexus.manage(function, 0) == response


def test_a_write_that_waits_for_durability_has_been_written() -> None:
    host, _, store = one_host()
    assert host.start(write_16(0, 1, FUA), b"f" * 512) is None
    assert store.contents(0, 512) == b"f" * 512


def test_the_same_unit_under_two_luns_is_one_unit() -> None:
    lu = units(1)[0]
    host = Host(TargetDevice(TARGET), {0: lu, 1: lu})
    for lun in (0, 1):
        host.ready(lun)
    host.send(write_16(0, 1), b"s" * 512, lun=0)
    assert host.data(host.send(read_16(0, 1), lun=1)) == b"s" * 512
    assert isinstance(host.nexus, Nexus)


def listening(nexus: Nexus) -> list[tuple[list[int], bool]]:
    """What the transport is told: (LUNs whose tasks ended, told?)."""
    heard: list[tuple[list[int], bool]] = []
    nexus.on_abort = lambda names, told: heard.append(([n for n in range(8) if names(lun_field(n))], told))
    return heard


@pytest.mark.parametrize("function", [CLEAR_TASK_SET, LUN_RESET])
def test_the_transport_hears_of_the_same_logical_unit_only_whatever_its_lun_is(function: int) -> None:
    """A reset of one host's LUN 0 is nothing to another host whose LUN 0 is another logical unit."""
    device = TargetDevice(TARGET)
    one, two = unit(), unit()
    mine = device.open_nexus("iqn.2000-01.com.example:a", b"\0\0\0\0\0\1", {0: one})
    other = device.open_nexus("iqn.2000-01.com.example:b", b"\0\0\0\0\0\2", {0: two, 5: one})
    ours, theirs = listening(mine), listening(other)
    assert mine.manage(function, lun_field(0)) == COMPLETE
    assert (ours, theirs) == ([([0], False)], [([5], True)])
    assert mine.manage(ABORT_TASK_SET, lun_field(0)) == COMPLETE
    assert (len(ours), len(theirs)) == (2, 1)
    assert other.manage(WARM_RESET, 0) == COMPLETE
    assert theirs[1:] == [([0], False), ([5], False)]
    assert ours[2:] == [([0], True)]


def test_preempt_and_abort_is_heard_by_the_transport_of_the_preempted_nexus() -> None:
    one, two, _, _ = two_hosts()
    for host, key in ((one, 1), (two, 2)):
        host.send(reserve_out(0), reserve_out_list(0, key))
    ours, theirs = listening(one.nexus), listening(two.nexus)
    one.send(reserve_out(5, 1), reserve_out_list(1, 2))
    assert (ours, theirs) == ([], [([0], True)])


def test_i_t_nexus_reset_is_a_nexus_loss_on_every_unit_of_this_nexus_alone() -> None:
    one, two, lu, store = two_hosts()
    one.send(RESERVE_6)
    one.start(SYNC)
    heard = listening(one.nexus)
    assert one.nexus.manage(I_T_NEXUS_RESET, 0) == COMPLETE
    store.finish_flushes()
    assert not one.late
    assert heard == [([0], False)]
    assert lu.reservations.unit_holder is None
    assert key_asc(one.send(TEST_UNIT_READY)) == (UNIT_ATTENTION, 0x2907)
    assert two.send(TEST_UNIT_READY).status == 0


def test_a_pending_unit_attention_is_told_without_being_reported() -> None:
    one, _two, lu, _ = two_hosts()
    assert one.nexus.attention(0) == b""
    assert one.nexus.attention(lun_field(7)) is None
    lu.capacity_changed()
    assert one.nexus.attention(0) == bytes((0x16, 0x2A, 0x09))
    lu.threshold_reached()
    assert one.nexus.attention(0) == bytes((0x26, 0x2A, 0x09))
    assert key_asc(one.send(TEST_UNIT_READY)) == (UNIT_ATTENTION, 0x2A09)
