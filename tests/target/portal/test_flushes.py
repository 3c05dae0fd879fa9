"""Flushes over real sockets: answered as soon as they may be, and who is told that nobody else waits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from target.iscsi.constants import FINAL, Opcode
from target.portal import portal as portal_module
from tests.support.initiator import READ_10, Initiator, cdb_10
from tests.support.served_portal import Served, each_loop, serve

SYNCHRONIZE_CACHE = bytes((0x35,)).ljust(16, b"\0")
LONG_AGO = -1e9


def flush(initiator: Initiator) -> int:
    (reply,) = initiator.numbered(Opcode.SCSI_COMMAND, flags=FINAL | 1, edtl=0, cdb=SYNCHRONIZE_CACHE)
    assert reply.opcode is Opcode.SCSI_RESPONSE
    return int(reply.status)


async def answer(served: Served, count: int, each: Callable[[bool], None]) -> None:
    """Let so many flushes be durable, each a moment after it was asked for."""
    for _ in range(count):
        while not served.disk.flushers:
            await asyncio.sleep(0.001)
        each(served.disk.flushers[0][1])
        served.disk.flushed()


@each_loop
def test_flushes_are_answered_when_all_is_durable(runner: str) -> None:
    def test(served: Served) -> None:
        served.disk.flushers = []
        initiator = served.initiator()
        initiator.login()
        assert [flush(initiator) for _ in range(5)] == [0] * 5
        served.disk.durable = True
        assert [flush(initiator) for _ in range(5)] == [0] * 5
        assert initiator.write(0, bytes(512)).status == 0

    serve(runner, test, beside=lambda served: answer(served, 5, lambda here: None))


@each_loop
def test_a_connection_is_alone_until_another_one_receives_something(
    runner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(portal_module, "ALONE_S", 3600.0)
    alone: list[bool] = []

    def test(served: Served) -> None:
        served.disk.flushers = []
        one, other = served.initiator(), served.initiator(name="iqn.2026-01.test.host:two")
        one.login()
        other.login()
        other.numbered(Opcode.NOP_OUT)
        flush(one)
        served.portal.busy_since = LONG_AGO
        flush(one)
        other.numbered(Opcode.NOP_OUT)
        flush(one)

    serve(runner, test, beside=lambda served: answer(served, 3, alone.append))
    assert alone == [False, True, False]


@each_loop
def test_who_reads_several_together_is_not_alone(runner: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some of them would wait for the flush that comes next."""
    monkeypatch.setattr(portal_module, "ALONE_S", 3600.0)
    alone: list[bool] = []

    def test(served: Served) -> None:
        served.disk.flushers = []
        initiator = served.initiator()
        initiator.login()
        initiator.read(0, 1)
        served.portal.busy_since = LONG_AGO
        initiator.read(0, 1)
        flush(initiator)
        wire = b""
        for _ in range(2):
            wire += initiator.encode(
                Opcode.SCSI_COMMAND, flags=FINAL | 0x41, itt=initiator.next_itt(), edtl=512,
                cdb=cdb_10(READ_10, 0, 1).ljust(16, b"\0"),
            )  # fmt: skip
            initiator.cmd_sn += 1
        replies = initiator.link.send(wire)
        while len(replies) < 2:
            replies += initiator.link.receive(1)  # type: ignore[attr-defined]
        flush(initiator)

    serve(runner, test, beside=lambda served: answer(served, 2, alone.append))
    assert alone == [True, False]
