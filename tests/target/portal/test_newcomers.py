"""Connections whose first PDU decides where they go: over real sockets, with a second portal as the other process."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest

from target.iscsi import limits
from target.iscsi.constants import Opcode
from target.iscsi.registry import Registry
from target.portal import Portal, PortalConfig
from target.portal.newcomers import Take
from tests.support.initiator import Initiator
from tests.support.memory_target import TARGET, MemoryDirectory, MemoryDisk, one_disk
from tests.support.served_portal import LIMIT_S, RUNNERS, SocketLink, each_loop

ELSEWHERE = TARGET + "-elsewhere"
HALF = b"\x43\x87\0\0\0\0\0\x64" + bytes(40) + b"InitiatorName=iqn."
"""Of a PDU with 100 bytes of data."""


class Served:
    """A portal with a target of its own (TARGET) that gives connections for ELSEWHERE to another portal."""

    def __init__(self, config: PortalConfig | None) -> None:
        here, _ = one_disk(4)
        self.disk = MemoryDisk(bytearray(4 << 20))
        there = MemoryDirectory({ELSEWHERE: self.disk})
        self.portal = Portal(here, Registry(), config, self._route)
        self.other = Portal(there, Registry(), config)
        self.asked: list[str] = []
        self.came_by: list[tuple[str, int]] = []
        self.wait = asyncio.Event()
        self.wait.set()
        self.address = ("", 0)

    async def _route(self, target: str) -> Take | None:
        self.asked.append(target)
        await self.wait.wait()
        return self._take if target == ELSEWHERE else None

    def _take(self, connection: socket.socket, came_by: tuple[str, int], group: int) -> None:
        self.came_by.append(came_by)
        self.other.take(connection.dup(), came_by, group)

    def initiator(self, target: str | None = ELSEWHERE) -> Initiator:
        return Initiator(SocketLink(self.address), target=target)


def serve(runner: str, test: Callable[[Served], Any], config: PortalConfig | None = None) -> None:
    async def main() -> None:
        served = Served(config)
        served.address = await served.portal.start("127.0.0.1", 0, 7)
        served.other.adopt({served.address: 7})
        try:
            await asyncio.wait_for(asyncio.to_thread(test, served), LIMIT_S)
        finally:
            await served.portal.stop()
            await served.other.stop()
            assert not served.portal.connections
            assert not served.other.connections

    RUNNERS[runner](main())


@each_loop
def test_a_login_goes_where_its_target_is(runner: str) -> None:
    def test(served: Served) -> None:
        initiator = served.initiator()
        reply = initiator.login()
        assert reply.status_class == 0
        assert initiator.agreed["TargetPortalGroupTag"] == "7"
        data = bytes(range(256)) * 16
        assert initiator.write(3, data).status == 0
        assert initiator.read(3, 8).data == data
        assert bytes(served.disk.data[3 * 512 :][: len(data)]) == data
        assert (len(served.portal.connections), len(served.other.connections)) == (0, 1)
        assert served.came_by == [("127.0.0.1", 0)]
        initiator.link.close()  # type: ignore[attr-defined]

    serve(runner, test)


@each_loop
def test_a_further_connection_of_a_session_goes_the_same_way(runner: str) -> None:
    def test(served: Served) -> None:
        first = Initiator(SocketLink(served.address), target=ELSEWHERE, keys={"MaxConnections": "2"})
        assert first.login().status_class == 0
        second = first.join(SocketLink(served.address))
        assert second.login().status_class == 0
        (session,) = served.other.registry.sessions()
        assert len(session.connections) == 2

    serve(runner, test)


@each_loop
def test_discovery_and_unknown_targets_stay_here(runner: str) -> None:
    def test(served: Served) -> None:
        discovery = served.initiator(None)
        assert discovery.login().status_class == 0
        (reply,) = discovery.numbered(Opcode.TEXT_REQUEST, b"SendTargets=All\0", ttt=0xFFFFFFFF)
        assert TARGET in reply.text["TargetName"]
        assert served.asked == []
        unknown = served.initiator(TARGET + "-of-nobody")
        assert unknown.login().status_class == 2
        assert served.asked == [TARGET + "-of-nobody"]
        here = served.initiator(TARGET)
        assert here.login().status_class == 0
        assert not served.other.connections

    serve(runner, test)


@each_loop
@pytest.mark.parametrize("piece", [1, 47, 48, 49, 100])
def test_a_first_pdu_may_come_in_pieces(runner: str, piece: int) -> None:
    def test(served: Served) -> None:
        initiator = served.initiator()
        link: Any = initiator.link
        real = link.socket.sendall

        def slowly(data: bytes) -> None:
            for at in range(0, len(data), piece):
                real(data[at : at + piece])
                if at < 3 * piece or len(data) - at <= piece * 2:
                    time.sleep(0.005)

        link.socket = Slow(link.socket, slowly)
        link.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        assert initiator.login().status_class == 0
        assert len(served.other.connections) == 1

    serve(runner, test)


class Slow:
    def __init__(self, real: socket.socket, sendall: Callable[[bytes], None]) -> None:
        self._real = real
        self.sendall = sendall

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


@each_loop
def test_who_says_too_little_is_cut_off_when_a_login_s_time_is_over(
    runner: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)

    def test(served: Served) -> None:
        for sent in (b"", b"\x43", HALF):
            with socket.create_connection(served.address, timeout=LIMIT_S) as connection:
                connection.sendall(sent)
                # what the target has not read is not taken for an end in order
                try:
                    assert connection.recv(1) == b""
                except ConnectionResetError:
                    assert sent

    serve(runner, test, PortalConfig(login_timeout_s=0.3))
    assert sum("login takes too long" in record.getMessage() for record in caplog.records) == 3


@each_loop
def test_a_wait_for_the_other_process_counts_as_login_too(runner: str) -> None:
    def test(served: Served) -> None:
        served.wait.clear()
        initiator = served.initiator()
        initiator.link.expected = 1  # type: ignore[attr-defined]
        with pytest.raises((AssertionError, ConnectionError)):
            initiator.login()

    serve(runner, test, PortalConfig(login_timeout_s=0.3))


@each_loop
@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\n\r\n".ljust(64), bytes(48), b"\x43" + b"\xff" * 47, b"\x43\x87" + bytes(46),
        b"\x43\x87\0\0\0" + (limits.LOGIN_DATA_SEGMENT_BYTES + 1).to_bytes(3, "big") + bytes(40),
        b"\x43\x87\0\0\0\0\0\x08" + bytes(40) + b"\xff\xfe=\0abc",
    ],
)  # fmt: skip
def test_garbage_is_answered_or_closed_as_ever(runner: str, sent: bytes) -> None:
    def test(served: Served) -> None:
        with socket.create_connection(served.address, timeout=LIMIT_S) as connection:
            connection.sendall(sent)
            answer = b""
            try:
                while piece := connection.recv(4096):
                    answer += piece
            except ConnectionResetError:
                pass
            assert not answer or answer[0] == Opcode.LOGIN_RESPONSE
        assert served.initiator().login().status_class == 0

    serve(runner, test)


@each_loop
@pytest.mark.parametrize("sent", [b"", b"\x43", b"\x43" + bytes(30), HALF])
def test_who_goes_before_saying_who_it_wants_is_forgotten(runner: str, sent: bytes) -> None:
    def test(served: Served) -> None:
        with socket.create_connection(served.address, timeout=LIMIT_S) as connection:
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionResetError):  # what it sent was not read
                assert connection.recv(1) == b""
        deadline = time.monotonic() + LIMIT_S
        while served.portal.connections:
            assert time.monotonic() < deadline

    serve(runner, test)


@each_loop
def test_a_flood_of_newcomers_loses_its_own_oldest(runner: str) -> None:
    def test(served: Served) -> None:
        flood = [socket.create_connection(served.address, timeout=LIMIT_S) for _ in range(6)]
        try:
            for connection in flood[:3]:
                assert connection.recv(1) == b""
            assert served.initiator().login().status_class == 0
        finally:
            for connection in flood:
                connection.close()

    serve(runner, test, PortalConfig(logging_in_per_source_max=3))
