"""The channel between a front and a worker: over a real pair of sockets, both ends in one loop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import uvloop

from target.management.refusal import Refused
from target.workers import channel as channel_module
from target.workers.channel import PACKET_BYTES, PAYLOAD_BYTES, Channel, ChannelClosed, Received, pair
from target.workers.messages import Answer, Change, Login, Message, Ping, Request, SettingsNow, Stop

LIMIT_S = 20.0
each_loop = pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])


class Ends:
    """Two channels; what the second one hears is kept."""

    def __init__(self) -> None:
        ours, theirs = pair()
        self.heard: list[Received] = []
        self.answer: Callable[[Received], Awaitable[None]] | None = None
        self.a = Channel(ours, self._nothing)
        self.raw = theirs
        self.b = Channel(theirs, self._hear)

    async def _nothing(self, received: Received) -> None:
        raise AssertionError(received)

    async def _hear(self, received: Received) -> None:
        self.heard.append(received)
        if self.answer is not None:
            await self.answer(received)

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(LIMIT_S):
            while not condition():
                await asyncio.sleep(0.001)


def both(run: Any, scene: Callable[[Ends], Awaitable[None]]) -> None:
    async def main() -> None:
        ends = Ends()
        try:
            await scene(ends)
        finally:
            ends.a.close()
            ends.b.close()

    run(asyncio.sleep(0))  # uvloop's first loop opens what it never closes
    before = open_files()
    run(main())
    assert open_files() <= before, "descriptors are left over"


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@each_loop
def test_messages_arrive_whole_and_in_order_with_what_belongs_to_them(run: Any) -> None:
    async def scene(ends: Ends) -> None:
        host, other = socket.socketpair()
        payload = os.urandom(3 << 20)
        ends.a.send(SettingsNow(), payload)
        ends.a.send(Login(host="::1", port=3260, group=2), connection=host)
        ends.a.send(Request(method="PUT", path="/v1/x", query="a=b", content_type=""), b"{}")
        host.close()
        await ends.until(lambda: len(ends.heard) == 3)
        first, second, third = ends.heard
        assert (first.message.kind, first.payload, first.connection) == ("settings", payload, None)
        assert second.message == Login(host="::1", port=3260, group=2)
        assert second.connection is not None
        second.connection.sendall(b"through it")
        assert other.recv(100) == b"through it"
        assert not second.connection.get_inheritable()
        second.connection.close()
        other.close()
        assert third.payload == b"{}"

    both(run, scene)


@each_loop
def test_answers_find_their_questions_in_any_order(run: Any) -> None:
    async def scene(ends: Ends) -> None:
        async def later(received: Received) -> None:
            if len(ends.heard) == 3:
                for each in reversed(ends.heard):
                    ends.b.send(Answer(id=each.message.id), each.payload * 2)

        ends.answer = later
        asked = [ends.a.call(Change(), bytes([number])) for number in (1, 2, 3)]
        answers = await asyncio.wait_for(asyncio.gather(*asked), LIMIT_S)
        assert [each.payload for each in answers] == [b"\1\1", b"\2\2", b"\3\3"]

    both(run, scene)


@each_loop
def test_a_handler_is_done_before_the_next_message_is_looked_at(run: Any) -> None:
    async def scene(ends: Ends) -> None:
        order: list[str] = []

        async def slow(received: Received) -> None:
            order.append(f"begin {received.message.kind}")
            await asyncio.sleep(0.01)
            order.append(f"end {received.message.kind}")

        ends.answer = slow
        ends.a.send(SettingsNow(), b"x")
        ends.a.send(Stop())
        await ends.until(lambda: len(order) == 4)
        assert order == ["begin settings", "end settings", "begin stop", "end stop"]

    both(run, scene)


@each_loop
def test_a_side_that_takes_nothing_holds_nobody_up_and_is_given_up_at_a_limit(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel_module, "QUEUE_LIMIT", 40)

    async def main() -> None:
        ours, theirs = pair()
        channel = Channel(ours, _ignore)
        sent = 0
        with contextlib.suppress(Refused):
            while sent < 100_000:
                channel.send(SettingsNow(), b"x")
                sent += 1
        assert 40 <= sent < 100_000
        heard: list[Received] = []

        async def hear(received: Received) -> None:
            heard.append(received)

        other = Channel(theirs, hear)
        async with asyncio.timeout(LIMIT_S):
            while len(heard) < sent:
                await asyncio.sleep(0.001)
        channel.close()
        other.close()

    run(main())


async def _ignore(received: Received) -> None:
    del received


@each_loop
def test_who_waits_for_an_answer_hears_that_the_other_side_is_gone(run: Any) -> None:
    async def scene(ends: Ends) -> None:
        asked = ends.a.call(Ping())
        await ends.until(lambda: bool(ends.heard))
        ends.b.close()
        with pytest.raises(ChannelClosed):
            await asyncio.wait_for(asked, LIMIT_S)
        with pytest.raises(ChannelClosed):
            ends.a.send(Ping())

    both(run, scene)


@each_loop
@pytest.mark.parametrize(
    "packet",
    [
        b"not JSON", b"{}", b'{"kind": "unknown"}', b'{"kind": "ping", "more": 1}', b"[" * 20_000,
        b'{"kind": "settings", "payload": true}', b'{"kind": "ping", "id": -1}', bytes(PACKET_BYTES + 1),
    ],
)  # fmt: skip
def test_what_is_not_understood_closes_the_channel(run: Any, packet: bytes) -> None:
    async def main() -> None:
        ours, theirs = pair()
        channel = Channel(ours, _ignore)
        theirs.send(packet)
        await asyncio.wait_for(asyncio.wait([channel.closed]), LIMIT_S)
        assert theirs.recv(1) == b""
        theirs.close()

    run(main())


@each_loop
def test_what_is_too_large_is_not_sent(run: Any) -> None:
    async def scene(ends: Ends) -> None:
        long: list[tuple[Message, bytes]] = [
            (Answer(message="é" * (PACKET_BYTES // 2)), b""), (SettingsNow(), bytes(PAYLOAD_BYTES + 1)),
        ]  # fmt: skip
        for message, payload in long:
            with pytest.raises(Refused, match="too-large"):
                ends.a.send(message, payload)
        ends.a.send(Stop())
        await ends.until(lambda: [each.message.kind for each in ends.heard] == ["stop"])

    both(run, scene)


@each_loop
def test_a_question_to_one_that_has_just_gone_is_answered_at_once(run: Any) -> None:
    async def main() -> None:
        ours, theirs = pair()
        channel = Channel(ours, None)  # type: ignore[arg-type]
        theirs.close()
        with pytest.raises(ChannelClosed):
            async with asyncio.timeout(LIMIT_S):
                await channel.call(Ping())
        with pytest.raises(ChannelClosed):
            channel.call(Ping())

    run(main())


@each_loop
def test_a_host_for_whom_no_descriptor_is_left_is_the_only_one_who_suffers(run: Any) -> None:
    async def scene(ends: Ends) -> None:
        host, other = socket.socketpair()
        limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        try:
            ends.a.send(Login(host="::1", port=3260, group=2), connection=host)
            free = os.dup(host.fileno())
            os.close(free)
            resource.setrlimit(resource.RLIMIT_NOFILE, (free, most))
            await ends.until(lambda: len(ends.heard) == 1)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, most))
        assert ends.heard[0].connection is None
        host.close()
        assert other.recv(1) == b""  # it is told
        other.close()
        ends.a.send(Ping())
        await ends.until(lambda: len(ends.heard) == 2)

    both(run, scene)


@each_loop
@pytest.mark.parametrize(
    ("packet", "connection"),
    [(b'{"kind": "login", "host": "h", "port": 1, "group": 1}', False), (b'{"kind": "ping", "id": 1}', True)],
    ids=["no connection", "no login"],
)
def test_a_descriptor_that_is_no_host_s_closes_the_channel_and_is_closed(
    run: Any, packet: bytes, connection: bool
) -> None:
    async def scene(ends: Ends) -> None:
        with open("/dev/null", "rb") as file, socket.socket() as host:
            socket.send_fds(ends.a._socket, [packet], [host.fileno() if connection else file.fileno()])
        await asyncio.wait_for(asyncio.wait([ends.b.closed]), LIMIT_S)
        assert ends.heard == []

    both(run, scene)


@each_loop
def test_what_waits_beside_the_messages_is_limited_on_either_side(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel_module, "QUEUE_BYTES", 10_000)

    async def scene(ends: Ends) -> None:
        busy = asyncio.Event()
        payload = bytes(4_000)

        async def hold(received: Received) -> None:
            await busy.wait()

        ends.answer = hold
        sent = 0
        with contextlib.suppress(Refused):
            while sent < 100_000:
                ends.a.send(SettingsNow(), payload)
                sent += 1
        assert sent < 100_000
        assert ends.a.waiting == 2
        await ends.until(lambda: ends.b._paused)
        assert ends.b._arrived.qsize() <= 3
        busy.set()
        await ends.until(lambda: len(ends.heard) == sent)
        assert ends.a._out_bytes == ends.b._arrived_bytes == 0

    both(run, scene)
