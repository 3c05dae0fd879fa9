"""Listeners and connections, over real sockets, on asyncio's loop and on uvloop's."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
from typing import Any

import pytest

from target.iscsi import limits
from target.iscsi.constants import Opcode
from target.iscsi.ports import Response
from target.iscsi.registry import Registry
from target.portal import Portal, PortalConfig
from target.portal import transport as transport_module
from target.portal.logs import RateLimited
from target.portal.transport import IscsiTransport
from tests.conftest import unavailable
from tests.support.initiator import READ_10, Initiator, Link, cdb_10, make_host
from tests.support.memory_target import TARGET, one_disk
from tests.support.served_portal import LIMIT_S, Served, SocketLink, each_loop, serve


@each_loop
def test_login_write_read_logout(runner: str) -> None:
    def test(served: Served) -> None:
        initiator = served.initiator()
        assert initiator.login().status_class == 0
        data = bytes(range(256)) * 16
        assert initiator.write(3, data).status == 0
        assert initiator.read(3, 8).data == data
        assert len(served.portal.registry.sessions(TARGET)) == 1
        (reply,) = initiator.numbered(Opcode.LOGOUT_REQUEST)
        assert reply.response == 0
        initiator.link.receive(1)  # type: ignore[attr-defined]
        assert initiator.link.gone  # type: ignore[attr-defined]

    serve(runner, test)


@each_loop
def test_more_is_read_than_socket_and_buffers_hold(runner: str) -> None:
    """A client that sends everything first and reads later: back-pressure, and every byte right in the end."""

    def test(served: Served) -> None:
        served.disk.data[:] = bytes(range(256)) * (len(served.disk.data) // 256)
        initiator = served.initiator()
        initiator.login()
        link: Any = initiator.link
        wire = b""
        for n in range(64):
            cdb = cdb_10(READ_10, 0, 2048).ljust(16, b"\0")
            wire += initiator.encode(Opcode.SCSI_COMMAND, flags=0xC1, itt=1000 + n, edtl=1 << 20, cdb=cdb)
            initiator.cmd_sn += 1
        link.socket.sendall(wire)
        (transport,) = served.portal.connections
        got = {1000 + n: 0 for n in range(64)}
        while sum(got.values()) < 64 << 20:
            for reply in link.receive(1):
                offset = reply.buffer_offset
                assert reply.data == served.disk.data[offset : offset + len(reply.data)]
                got[reply.itt] += len(reply.data)
                assert transport.core.output.held_bytes <= 2 * limits.OUTPUT_BYTES
        assert set(got.values()) == {1 << 20}

    serve(runner, test)


@each_loop
def test_a_flush_is_answered_when_it_is_done(runner: str) -> None:
    def test(served: Served) -> int:
        initiator = served.initiator()
        initiator.login()
        (reply,) = initiator.numbered(Opcode.SCSI_COMMAND, flags=0x81, cdb=bytes((0x35,)) + bytes(15))
        return int(reply.status)

    async def flusher(served: Served) -> None:
        while not served.disk.later:
            await asyncio.sleep(0.001)
        served.disk.later.pop()[1](Response())

    assert serve(runner, test, beside=flusher) == 0


def test_ipv6() -> None:
    def test(served: Served) -> int:
        return int(served.initiator().login().status_class)

    try:
        assert serve("asyncio", test, address="::1") == 0
    except OSError as error:
        unavailable(f"no IPv6 loopback: {error}")


def test_a_wildcard_listener_gives_out_real_addresses() -> None:
    async def run() -> list[str]:
        directory, _ = one_disk()
        portal = Portal(directory, Registry())
        await portal.start("0.0.0.0", 0)
        try:
            return portal.addresses()
        finally:
            await portal.stop()

    addresses = asyncio.run(run())
    assert addresses
    assert not any(a.startswith("0.0.0.0") for a in addresses)


def test_an_address_in_use_is_an_error() -> None:
    async def run() -> None:
        directory, _ = one_disk()
        portal = Portal(directory, Registry())
        _, port = await portal.start("127.0.0.1", 0)
        with pytest.raises(OSError, match="in use"):
            await portal.start("127.0.0.1", port)
        await portal.stop()

    asyncio.run(run())


@each_loop
def test_garbage_ends_one_connection_with_one_line(runner: str, caplog: pytest.LogCaptureFixture) -> None:
    def test(served: Served) -> None:
        bystander = served.initiator()
        bystander.login()
        with socket.create_connection(served.address, timeout=LIMIT_S) as peer:
            peer.sendall(b"GET / HTTP/1.0\r\n\r\n" + bytes(100))
            assert peer.recv(100) == b""
            name = "{}:{}".format(*peer.getsockname())
        assert bystander.read(0, 1).status == 0
        lines = [r.getMessage() for r in caplog.records if name in r.getMessage() and r.levelno >= logging.WARNING]
        assert lines == [f"{name}: connection closed: something other than a Login Request before login"]

    serve(runner, test)


def test_a_refused_login_is_logged_with_its_name(caplog: pytest.LogCaptureFixture) -> None:
    def test(served: Served) -> None:
        assert served.initiator(target=TARGET + ":no").login().status_detail == 3

    serve("asyncio", test)
    (line,) = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert "login of iqn.2026-01.test.host:one refused (status 0203h): no target" in line


def test_a_fault_of_ours_costs_one_connection(caplog: pytest.LogCaptureFixture) -> None:
    def test(served: Served) -> None:
        bystander = served.initiator(isid=b"\x80\0\0\0\0\7")
        bystander.login()
        victim = served.initiator()
        victim.login()
        served.disk.crash = True
        assert victim.numbered(Opcode.SCSI_COMMAND, flags=0x81, cdb=bytes(16)) == []
        assert victim.link.gone  # type: ignore[attr-defined]
        served.disk.crash = False
        assert bystander.read(0, 1).status == 0

    serve("asyncio", test)
    assert "internal error" in caplog.text


def test_answers_whose_promise_cannot_be_kept_do_not_leave() -> None:
    """The log of acknowledged writes could not be written: the host hears nothing, and sends again."""

    def test(served: Served) -> None:
        host = served.initiator()
        host.login()
        before = served.disk.answered
        assert host.read(0, 1).status == 0
        assert served.disk.answered == before + 1
        served.disk.unlogged = OSError("told to")
        assert host.numbered(Opcode.SCSI_COMMAND, flags=0x81, cdb=bytes(16)) == []
        assert host.link.gone  # type: ignore[attr-defined]

    serve("asyncio", test)


def test_a_slow_login_is_ended() -> None:
    def test(served: Served) -> None:
        with socket.create_connection(served.address, timeout=LIMIT_S) as peer:
            peer.sendall(b"\x43")
            assert peer.recv(1) == b""

    serve("asyncio", test, PortalConfig(login_timeout_s=0.05))


def test_a_silent_initiator_is_ended() -> None:
    def test(served: Served) -> None:
        initiator = served.initiator()
        initiator.login()
        (ping,) = initiator.link.receive(1)  # type: ignore[attr-defined]
        assert ping.opcode is Opcode.NOP_IN
        initiator.link.receive(1)  # type: ignore[attr-defined]
        assert initiator.link.gone  # type: ignore[attr-defined]

    serve("asyncio", test, PortalConfig(nop_interval_s=0.05, nop_timeout_s=0.05))


def half_open(address: tuple[str, int], count: int, source: str = "127.0.0.1") -> list[socket.socket]:
    return [socket.create_connection(address, LIMIT_S, (source, 0)) for _ in range(count)]


def is_closed(peer: socket.socket) -> bool:
    """Waits for the end.  Anything but an end would be a time-out."""
    with contextlib.suppress(ConnectionResetError):
        return peer.recv(1) == b""
    return True


def answers(peer: socket.socket) -> bool:
    """The target still talks to it: a wrong PDU is answered by the end, after whatever came before."""
    peer.sendall(b"\x43" + bytes(47))
    return len(peer.recv(48)) == 48


def test_a_flood_of_half_open_logins_drops_the_oldest(caplog: pytest.LogCaptureFixture) -> None:
    def test(served: Served) -> None:
        host = served.initiator()
        host.login()
        peers = half_open(served.address, 4)
        assert [is_closed(peer) for peer in peers[:2]] == [True, True]
        assert [answers(peer) for peer in peers[2:]] == [True, True]
        assert host.read(0, 1).status == 0
        for peer in peers:
            peer.close()

    serve("asyncio", test, PortalConfig(logging_in_max=2))
    assert "the oldest of 3 connections that have not logged in" in caplog.text


def test_a_flood_from_one_source_pushes_nobody_else_out() -> None:
    def test(served: Served) -> None:
        (other,) = half_open(served.address, 1, "127.0.0.2")
        peers = half_open(served.address, 5, "127.0.0.3")
        assert [is_closed(peer) for peer in peers[:3]] == [True, True, True]
        assert [answers(peer) for peer in (other, *peers[3:])] == [True, True, True]
        for peer in (other, *peers):
            peer.close()

    serve("asyncio", test, PortalConfig(logging_in_max=4, logging_in_per_source_max=2))


def test_stopping_tells_initiators_that_the_session_is_dropped() -> None:
    async def run() -> None:
        directory, _ = one_disk()
        portal = Portal(directory, Registry())
        address = await portal.start("127.0.0.1", 0)

        def client() -> None:
            initiator = Initiator(SocketLink(address))
            initiator.login()
            ready.set()
            link: Any = initiator.link
            (message,) = link.receive(1)
            assert (message.opcode, message.async_event, message.parameter2) == (Opcode.ASYNC_MESSAGE, 3, 2)
            link.receive(1)
            assert link.gone

        ready = threading.Event()
        host = asyncio.ensure_future(asyncio.to_thread(client))
        await asyncio.to_thread(ready.wait, LIMIT_S)
        await portal.stop()
        await host

    asyncio.run(run())


def test_reinstatement_closes_the_old_connection() -> None:
    def test(served: Served) -> None:
        old, new = served.initiator(), served.initiator()
        old.login()
        new.login()
        old.link.receive(1)  # type: ignore[attr-defined]
        assert old.link.gone  # type: ignore[attr-defined]
        assert new.read(0, 1).status == 0

    serve("asyncio", test)


def test_stopping_asks_initiators_to_log_out_first() -> None:
    async def run() -> None:
        directory, _ = one_disk()
        portal = Portal(directory, Registry())
        address = await portal.start("127.0.0.1", 0)

        def client() -> None:
            initiator = Initiator(SocketLink(address))
            initiator.login()
            ready.set()
            (message,) = initiator.link.receive(1)  # type: ignore[attr-defined]
            assert (message.opcode, message.async_event) == (Opcode.ASYNC_MESSAGE, 1)
            initiator.numbered(Opcode.LOGOUT_REQUEST)

        ready = threading.Event()
        host = asyncio.ensure_future(asyncio.to_thread(client))
        await asyncio.to_thread(ready.wait, LIMIT_S)
        await portal.stop(logout_time_s=LIMIT_S)
        await host

    asyncio.run(run())


@each_loop
def test_output_buffers_are_used_again(runner: str) -> None:
    def test(served: Served) -> None:
        initiator = served.initiator()
        initiator.login()
        for _ in range(50):
            assert initiator.read(0, 8).status == 0
        (transport,) = served.portal.connections
        assert transport.core.output.held_bytes <= 2 * limits.OUTPUT_BYTES

    serve(runner, test)


def test_a_peer_that_takes_nothing_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Megabytes of answers and then an end: the connection does not hang on them."""
    monkeypatch.setattr(transport_module, "CLOSE_LIMIT_S", 0.1)

    def test(served: Served) -> None:
        initiator = served.initiator()
        initiator.login()
        link: Any = initiator.link
        for n in range(16):
            cdb = cdb_10(READ_10, 0, 2048).ljust(16, b"\0")
            link.socket.sendall(
                initiator.encode(Opcode.SCSI_COMMAND, flags=0xC1, itt=1000 + n, edtl=1 << 20, cdb=cdb)
            )
            initiator.cmd_sn += 1
        ended.wait(LIMIT_S)

    async def disconnect(served: Served) -> None:
        while not any(t.core.blocked for t in served.portal.connections):
            await asyncio.sleep(0.001)
        assert served.portal.registry.disconnect(TARGET) == 1
        while served.portal.connections:
            await asyncio.sleep(0.001)
        ended.set()

    ended = threading.Event()
    serve("asyncio", test, beside=disconnect)


@pytest.mark.parametrize("peer", ["127.0.0.1", "127.0.0.9"])
def test_discovery_over_loopback_through_a_wildcard_gives_the_address_it_came_by(peer: str) -> None:
    def test(served: Served) -> None:
        address = (peer, served.address[1])
        initiator = Initiator(SocketLink(address), target=None)
        initiator.login()
        (reply,) = initiator.numbered(Opcode.TEXT_REQUEST, b"SendTargets=All\0", ttt=0xFFFFFFFF)
        found = [item for item in reply.data.decode().split("\0") if item.startswith("TargetAddress=")]
        assert found[0] == f"TargetAddress={peer}:{address[1]},1"

    serve("asyncio", test, address="0.0.0.0")


def test_a_peer_that_takes_answers_slowly_is_alive() -> None:
    """It was behind, so that nothing of it was read; then it took what was waiting."""
    directory, _ = one_disk()
    host = make_host(directory)
    initiator = Initiator(Link(host))
    initiator.login()
    loop = asyncio.new_event_loop()
    notices = RateLimited(logging.getLogger("slow"), loop.time)
    transport = IscsiTransport(host, loop, Portal(directory, Registry()), notices)
    transport.core = core = initiator.link.core
    transport.pause_writing()
    core.tick(core.deadline)
    asked_at = core.deadline - host.nop_timeout_s
    core.tick(asked_at + 1)
    transport.resume_writing()
    core.tick(asked_at + host.nop_timeout_s)
    assert core.closing is None
    loop.close()


def test_a_peer_that_stops_reading_is_ended_after_the_time_limit(caplog: pytest.LogCaptureFixture) -> None:
    """What it asked for is bounded, and so is how long it is kept."""

    def test(served: Served) -> None:
        initiator = served.initiator()
        initiator.login()
        link: Any = initiator.link
        for n in range(16):
            cdb = cdb_10(READ_10, 0, 2048).ljust(16, b"\0")
            link.socket.sendall(
                initiator.encode(Opcode.SCSI_COMMAND, flags=0xC1, itt=1000 + n, edtl=1 << 20, cdb=cdb)
            )
            initiator.cmd_sn += 1
        ended.wait(LIMIT_S)

    async def until_ended(served: Served) -> None:
        while not served.portal.registry.sessions():
            await asyncio.sleep(0.001)
        while served.portal.registry.sessions():
            await asyncio.sleep(0.001)
        ended.set()

    ended = threading.Event()
    serve("asyncio", test, PortalConfig(nop_interval_s=0.2, nop_timeout_s=0.1), beside=until_ended)
    assert "no answer to NOP-In" in caplog.text


@each_loop
def test_two_connections_of_a_session_wake_each_other(runner: str) -> None:
    """A command that came ahead by one is done when the other brings what was missing; a logout by one ends both."""

    def test(served: Served) -> None:
        one = served.initiator(keys={"MaxConnections": "2"})
        assert one.login().status_class == 0
        two = one.join(SocketLink(served.address))
        assert two.login().status_class == 0
        first: Any = one.link
        second: Any = two.link
        cdb = cdb_10(READ_10, 0, 1).ljust(16, b"\0")
        fields = {"flags": 0xC1, "edtl": 512, "cdb": cdb}
        second.socket.sendall(two.encode(Opcode.SCSI_COMMAND, itt=702, **{**fields, "cmd_sn": one.cmd_sn + 1}))
        while not any(c.core.session.window.early for c in served.portal.connections):
            pass
        (answer,) = one.request(Opcode.SCSI_COMMAND, itt=701, **fields)
        assert answer.itt == 701
        assert [r.itt for r in second.receive(1)] == [702]
        one.cmd_sn += 2
        (info,) = served.portal.registry.sessions(TARGET)
        assert len(info.connections) == 2
        (reply,) = one.numbered(Opcode.LOGOUT_REQUEST)
        assert reply.response == 0
        for link in (first, second):
            link.receive(1)
            assert link.gone

    serve(runner, test)
