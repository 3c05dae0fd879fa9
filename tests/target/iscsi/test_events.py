"""Async Message, event 0: what an initiator is told of a logical unit before it asks (RFC 7143 11.9)."""

from __future__ import annotations

from target.iscsi import limits
from target.iscsi.constants import NO_TAG, AsyncEvent, Opcode
from tests.support.initiator import Initiator
from tests.target.iscsi.conftest import Bench
from tests.target.iscsi.test_connections import Pair, pair

__all__ = ["pair"]

CAPACITY = bytes.fromhex("700006000000000a000000002a09").ljust(18, b"\0")
LUNS = bytes.fromhex("700006000000000a000000003f0e").ljust(18, b"\0")


def tell(bench: Bench, lun: int, sense: bytes) -> None:
    (nexus,) = bench.disk.nexuses
    assert nexus.on_event is not None
    nexus.on_event(lun, sense)


def test_an_event_carries_the_lun_and_the_sense_data(bench: Bench, session: Initiator) -> None:
    stat_sn = session.link.core.stat_sn
    tell(bench, 3 << 48, CAPACITY)
    (event,) = session.link.take()
    assert (event.opcode, event.itt, event.async_event, event.lun) == (Opcode.ASYNC_MESSAGE, NO_TAG, 0, 3 << 48)
    assert event.data == len(CAPACITY).to_bytes(2, "big") + CAPACITY
    assert (event.stat_sn, session.link.core.stat_sn) == (stat_sn, stat_sn + 1)
    assert session.read(0, 1).status == 0


def test_a_session_of_several_connections_is_told_once(bench: Bench, pair: Pair) -> None:
    tell(bench, 0, LUNS)
    told = [reply for each in pair for reply in each.link.take()]
    assert [reply.async_event for reply in told] == [AsyncEvent.SCSI]


def test_an_event_that_waits_is_not_said_twice(bench: Bench, session: Initiator) -> None:
    """The peer reads nothing: what is kept for it does not grow with what happens."""
    core = session.link.core
    core.wake = lambda: None
    while core.output.room > 200:
        tell(bench, 0, CAPACITY)
    for _ in range(1000):
        tell(bench, 0, CAPACITY)
        tell(bench, 0, LUNS)
    assert len(core.waiting) <= 2
    assert core.output.used <= limits.OUTPUT_BYTES


def test_nobody_is_told_after_the_end(bench: Bench, session: Initiator) -> None:
    (nexus,) = bench.disk.nexuses
    session.link.core.lost("cable pulled")
    assert nexus.on_event is not None
    nexus.on_event(0, LUNS)
    assert session.link.take() == []
