"""What peers can make the log say: the peer and the reason once, and never more than an allowance."""

from __future__ import annotations

import logging

import pytest

from target.iscsi.constants import Opcode
from target.portal.logs import INFOS, WARNINGS, RateLimited
from tests.support.served_portal import Served, serve


def test_log_lines_of_one_source_are_limited(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    notices = RateLimited(logging.getLogger("limited"), lambda: now)
    for n in range(1000):
        notices.warning("192.0.2.1", "line %d", n)
    notices.warning("192.0.2.2", "another source")
    assert len(caplog.records) == WARNINGS + 1
    now = 61.0
    notices.warning("192.0.2.1", "later")
    assert f"{1000 - WARNINGS} more messages" in caplog.text


def test_lines_that_are_no_warning_are_limited_apart(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    notices = RateLimited(logging.getLogger("limited"), lambda: 0.0)
    for n in range(1000):
        notices.info("192.0.2.1", "line %d", n)
    notices.warning("192.0.2.1", "a warning all the same")
    assert len(caplog.records) == INFOS + 1


def test_logins_without_end_do_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "target.portal")

    def test(served: Served) -> None:
        for _ in range(INFOS):
            host = served.initiator(target=None)
            assert host.login().status_class == 0
            host.link.close()  # type: ignore[attr-defined]

    serve("asyncio", test)
    lines = [record.getMessage() for record in caplog.records]
    assert len([line for line in lines if "logged in" in line or "connection closed" in line]) == INFOS


def test_a_rejected_pdu_is_one_line_a_reason(caplog: pytest.LogCaptureFixture) -> None:
    def test(served: Served) -> str:
        host = served.initiator()
        host.login()
        for opcode in (Opcode.SNACK_REQUEST, Opcode.LOGIN_REQUEST) * 50:
            (reply,) = host.request(opcode, itt=7, immediate=True)
            assert reply.opcode is Opcode.REJECT
        (transport,) = served.portal.connections
        return "{}:{}".format(*transport.peer)

    name = serve("asyncio", test)
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING] == [
        f"{name}: a PDU was rejected (reason 03h): SNACK at error recovery level 0",
        f"{name}: a PDU was rejected (reason 04h): Login Request in full feature phase",
    ]


def test_task_management_without_end_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "target.portal")

    def test(served: Served) -> None:
        host = served.initiator()
        host.login()
        assert host.read(0, 1).status == 0
        before = len(caplog.records)
        for function in (1, 2, 4, 5, 99) * 40:
            flags = 0x80 | function
            host.request(Opcode.TASK_MANAGEMENT_REQUEST, flags=flags, itt=host.next_itt(), immediate=True)
        assert len(caplog.records) == before
        assert host.read(0, 1).status == 0

    serve("asyncio", test)
