"""Two Linux hosts fight over a LUN with SCSI-3 persistent reservations, as the nodes of a cluster do."""

from __future__ import annotations

import pytest

from tests.real.test_daemon_crash import wait_for_session
from tests.support.lund import MIB, Lund, wait_until
from tests.support.openiscsi import OpenIscsi
from tests.support.persistent import CONFLICT, Kind, Node
from tests.support.uml import UmlHost

LUN = "/vol/vol0/quorum"
RESERVATIONS_PREEMPTED, REGISTRATIONS_PREEMPTED = "Reservations preempted", "Registrations preempted"
POWER_ON = "Power on, reset, or bus device reset occurred"
RESERVATIONS_RELEASED = "Reservations released"
WRITE_EXCLUSIVE = (Kind.WRITE_EXCLUSIVE, Kind.WRITE_EXCLUSIVE_REGISTRANTS_ONLY, Kind.WRITE_EXCLUSIVE_ALL_REGISTRANTS)
HOLDER_ONLY = (Kind.WRITE_EXCLUSIVE, Kind.EXCLUSIVE_ACCESS)
ALL_REGISTRANTS = (Kind.WRITE_EXCLUSIVE_ALL_REGISTRANTS, Kind.EXCLUSIVE_ACCESS_ALL_REGISTRANTS)


@pytest.fixture
def nodes(lund: Lund, host: UmlHost, other_host: UmlHost) -> tuple[Node, Node]:
    lund.add_lun(LUN, 64 * MIB)
    return log_in(lund, host, 0xA1), log_in(lund, other_host, 0xB2)


def log_in(lund: Lund, host: UmlHost, key: int) -> Node:
    iscsi = OpenIscsi(host)
    iscsi.login(lund.target())
    return Node(host, iscsi.disk(lund.target()), key)


def test_each_type_lets_in_whom_it_should(nodes: tuple[Node, Node]) -> None:
    """SPC-4 table 43: what a reservation of the first allows the second, as a registrant and without a key."""
    first, second = nodes
    for kind in Kind:
        first.register()
        second.register()
        first.reserve(kind)
        assert second.keys() == [first.key, second.key]
        assert second.holder() == (0 if kind in ALL_REGISTRANTS else first.key), kind
        assert second.refused_to_reserve(
            Kind.EXCLUSIVE_ACCESS if kind == Kind.WRITE_EXCLUSIVE else Kind.WRITE_EXCLUSIVE
        )
        assert first.may_read(), kind
        assert first.may_write(), kind
        assert second.may_write() == (kind not in HOLDER_ONLY), kind
        assert second.may_read() == (kind != Kind.EXCLUSIVE_ACCESS), kind
        second.unregister()
        assert not second.may_write(), kind
        assert second.may_read() == (kind in WRITE_EXCLUSIVE), kind
        first.release(kind)
        assert second.holder() is None
        assert second.may_write()
        first.clear()
        assert first.keys() == []


def test_a_preempted_host_loses_key_and_access_and_is_told(nodes: tuple[Node, Node]) -> None:
    first, second = nodes
    first.register()
    second.register()
    first.reserve(Kind.WRITE_EXCLUSIVE_REGISTRANTS_ONLY)
    assert second.may_write()
    second.preempt(first, Kind.WRITE_EXCLUSIVE_REGISTRANTS_ONLY)
    assert first.attention() == REGISTRATIONS_PREEMPTED
    assert first.attention() == ""
    assert first.keys() == [second.key]
    assert first.holder() == second.key
    assert not first.may_write()
    assert first.may_read()
    # It may come back, and take the LUN in its turn.
    first.register()
    first.preempt(second, Kind.EXCLUSIVE_ACCESS)
    assert second.attention() == REGISTRATIONS_PREEMPTED
    assert not second.may_read()
    assert not second.may_write()
    first.clear()
    assert second.may_write()


def test_preempt_and_abort_ends_the_writes_of_the_other_host(nodes: tuple[Node, Node]) -> None:
    first, second = nodes
    first.register()
    second.register()
    first.reserve(Kind.WRITE_EXCLUSIVE)
    writing = first.write_on()
    before = first.host.writes(first.disk)
    wait_until(lambda: first.host.writes(first.disk) > before, 60, "it writes")
    second.preempt(first, Kind.WRITE_EXCLUSIVE, abort=True)
    ended = writing.wait(check=False)
    assert CONFLICT in ended.err, ended
    assert second.keys() == [second.key]
    assert second.may_write()
    assert not first.may_write()


def test_clear_and_release_are_told_to_the_other_registrants(nodes: tuple[Node, Node]) -> None:
    first, second = nodes
    first.register()
    second.register()
    first.reserve(Kind.EXCLUSIVE_ACCESS_REGISTRANTS_ONLY)
    first.release(Kind.EXCLUSIVE_ACCESS_REGISTRANTS_ONLY)
    assert second.attention() == RESERVATIONS_RELEASED
    assert first.attention() == ""
    first.reserve(Kind.WRITE_EXCLUSIVE)
    second.clear()
    assert first.attention() == RESERVATIONS_PREEMPTED
    assert second.attention() == ""
    assert first.keys() == second.keys() == []
    assert first.may_write()
    assert second.may_write()


@pytest.mark.timeout(400)
def test_reservations_with_aptpl_survive_a_killed_daemon_and_others_do_not(
    lund: Lund, nodes: tuple[Node, Node]
) -> None:
    first, second = nodes
    first.register(aptpl=True)
    second.register(aptpl=True)
    first.reserve(Kind.WRITE_EXCLUSIVE)
    come_back_after_a_kill(lund, nodes)
    assert second.keys() == [first.key, second.key]
    assert second.holder() == first.key
    assert not second.may_write()
    assert first.may_write()
    # The key of a host is good after the restart too: the second may fence the first.
    second.preempt(first, Kind.WRITE_EXCLUSIVE)
    come_back_after_a_kill(lund, nodes)
    assert first.keys() == [second.key]
    assert not first.may_write()
    # The last registration of a host says whether all of them are kept.
    second.clear()
    first.register()
    first.reserve(Kind.WRITE_EXCLUSIVE)
    come_back_after_a_kill(lund, nodes)
    assert first.keys() == []
    assert second.may_write()


def come_back_after_a_kill(lund: Lund, nodes: tuple[Node, Node]) -> None:
    lund.kill()
    lund.start()
    for node in nodes:
        wait_for_session(lund, OpenIscsi(node.host))
        assert node.attention() == POWER_ON
