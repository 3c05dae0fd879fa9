"""What the nexus tells the transport by itself, and which answers it wants to be fenced (RFC 7143 11.9, 4.2.2.3.3)."""

from __future__ import annotations

import pytest

from target.nexus import Nexus, TargetDevice, lun_field
from tests.support.memory_store import MemoryStore
from tests.support.scsi_host import (
    TARGET,
    TEST_UNIT_READY,
    Host,
    key_asc,
    one_host,
    reserve_out,
    reserve_out_list,
    sense_of,
    two_hosts,
    unit,
)

CAPACITY, LUNS = (6, 0x2A09), (6, 0x3F0E)


def events_of(nexus: Nexus) -> list[tuple[int, tuple[int, int]]]:
    """(LUN, sense) of what is told from now on."""
    heard: list[tuple[int, tuple[int, int]]] = []
    nexus.on_event = lambda lun, sense: heard.append((lun, sense_of(sense)))
    return heard


def test_a_resize_is_told_to_every_nexus_under_its_own_lun() -> None:
    device = TargetDevice(TARGET)
    lu = unit()
    one, two = Host(device, {0: lu}), Host(device, {5: lu}, "iqn.host:b")
    first, second = events_of(one.nexus), events_of(two.nexus)
    lu.capacity_changed()
    assert (first, second) == ([(0, CAPACITY)], [(lun_field(5), CAPACITY)])


def test_the_unit_attention_of_an_event_stays_pending() -> None:
    host, lu, _ = one_host()
    events_of(host.nexus)
    lu.capacity_changed()
    assert key_asc(host.send(TEST_UNIT_READY)) == CAPACITY


def test_a_restore_to_another_size_is_told_as_a_resize() -> None:
    host, lu, _ = one_host()
    heard = events_of(host.nexus)
    lu.contents_changed(resized=False)
    assert heard == []
    lu.contents_changed(resized=True)
    assert heard == [(0, CAPACITY)]


def test_another_store_of_another_size_is_told_as_a_resize() -> None:
    host, lu, store = one_host()
    heard = events_of(host.nexus)
    lu.replace_store(MemoryStore(store.size_bytes))
    assert heard == []
    lu.replace_store(MemoryStore(2 * store.size_bytes))
    assert heard == [(0, CAPACITY)]


def test_a_change_of_the_inventory_is_told_once_whatever_the_number_of_luns() -> None:
    units = {i: unit(MemoryStore(serial=f"S{i}", naa=bytes([0x30, *bytes(6), i]))) for i in range(4)}
    host = Host(TargetDevice(TARGET), {i: units[i] for i in range(3)})
    heard = events_of(host.nexus)
    host.nexus.set_map(units)
    assert heard == [(0, LUNS)]
    host.nexus.set_map(units)
    assert len(heard) == 1
    host.nexus.set_map({3: units[3]})
    host.nexus.set_map({})
    host.nexus.set_map(units)
    assert heard[1:] == [(lun_field(3), LUNS), (0, LUNS), (0, LUNS)]


# --- fences


def registered(one: Host, two: Host) -> None:
    for host, key in ((one, 1), (two, 2)):
        host.send(reserve_out(0), reserve_out_list(0, key))


@pytest.mark.parametrize(("action", "fenced"), [(4, False), (5, True)])
def test_preempt_and_abort_is_fenced_and_preempt_is_not(action: int, fenced: bool) -> None:
    one, two, _, _ = two_hosts()
    registered(one, two)
    answer = one.send(reserve_out(action, 1), reserve_out_list(1, 2))
    assert (answer.status, answer.fenced) == (0, fenced)


def test_a_unit_attention_that_tells_of_aborted_commands_is_fenced() -> None:
    one, two, lu, _ = two_hosts()
    registered(one, two)
    one.send(reserve_out(5, 1), reserve_out_list(1, 2))
    answer = two.send(TEST_UNIT_READY)
    assert (key_asc(answer), answer.fenced) == ((6, 0x2A05), True)
    one.nexus.manage(5, 0)
    assert two.send(TEST_UNIT_READY).fenced
    assert not two.send(TEST_UNIT_READY).fenced
    two.nexus.manage(11, 0)
    assert two.send(TEST_UNIT_READY).fenced
    lu.capacity_changed()
    answer = two.send(TEST_UNIT_READY)
    assert (key_asc(answer), answer.fenced) == (CAPACITY, False)
