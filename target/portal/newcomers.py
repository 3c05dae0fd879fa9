"""Connections whose first PDU has not come yet, where that decides which process serves them.

The PDU is looked at and left in the socket (MSG_PEEK), so nothing of the protocol has happened when the connection
changes hands.  As long as a part of it is missing the socket counts as unreadable (SO_RCVLOWAT): who sends a byte a
second costs a wake-up, and no turning of the loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Awaitable, Callable

from target.iscsi.first_login import bytes_wanted, target_of

log = logging.getLogger("target.portal")

Take = Callable[[socket.socket, tuple[str, int], int], None]
"""(connection, the listener as it was asked for, portal group tag): another process has it now; ours may be closed."""
Route = Callable[[str], Awaitable[Take | None]]
"""By a target's name; None: it is served here, or refused here."""

ACCEPT_PAUSE_S = 1.0
"""After the machine had no descriptor or no memory for a connection."""
ACCEPTED_AT_ONCE = 64
TCP_ESTABLISHED = 1
"""In the first byte of struct tcp_info."""
AGAIN_S = 0.05
"""A socket that is readable before all of the PDU is there has come to its end, or will be looked at again."""


class Acceptor:
    """A listener whose connections are not given to a protocol at once."""

    def __init__(self, listener: socket.socket, arrived: Callable[[socket.socket], None]) -> None:
        self._listener = listener
        self._arrived = arrived
        self._loop = asyncio.get_running_loop()
        self._listen()

    def _listen(self) -> None:
        if self._listener.fileno() >= 0:
            self._loop.add_reader(self._listener.fileno(), self._ready)

    def _ready(self) -> None:
        for _ in range(ACCEPTED_AT_ONCE):
            try:
                connection, _peer = self._listener.accept()
            except (BlockingIOError, ConnectionAbortedError, InterruptedError):
                return
            except OSError as error:
                log.warning("connections cannot be accepted for a moment: %s", error)
                self._loop.remove_reader(self._listener.fileno())
                self._loop.call_later(ACCEPT_PAUSE_S, self._listen)
                return
            connection.setblocking(False)
            self._arrived(connection)

    def close(self) -> None:
        self._loop.remove_reader(self._listener.fileno())
        self._listener.close()


class Newcomer:
    """A connection that has not said whom it wants."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.peer: tuple[str, int] = ("", 0)
        with contextlib.suppress(OSError):
            self.peer = connection.getpeername()[:2]
        self.task: asyncio.Task[None] | None = None

    @property
    def name(self) -> str:
        host, port = self.peer
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def shed(self, reason: str) -> None:
        """Make room for others."""
        self.abort(reason)

    def abort(self, _reason: str) -> None:
        if self.task is not None:
            self.task.cancel()


async def target_wanted(connection: socket.socket) -> str | None:
    """The target that the first PDU names, as soon as it is there.  Raises OSError; waits for ever."""
    seen = b""
    try:
        while (wanted := bytes_wanted(seen)) > len(seen):
            seen = await _peek(connection, wanted)
            if len(seen) < wanted:
                return None  # its end has come: whoever takes it meets that too
    finally:
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
    return target_of(seen)


async def _peek(connection: socket.socket, count: int) -> bytes:
    """The first `count` bytes, or fewer if the peer has ended the stream."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, count)
    waited = False
    while True:
        try:
            seen = connection.recv(count, socket.MSG_PEEK)
        except BlockingIOError:
            pass
        else:
            if len(seen) == count or not seen or (waited and _ended(connection)):
                return seen
            if waited:
                await asyncio.sleep(AGAIN_S)
        await _readable(connection)
        waited = True


def _ended(connection: socket.socket) -> bool:
    """The peer sends no more: everything it has sent is there, and an end behind it."""
    return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != TCP_ESTABLISHED


async def _readable(connection: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()

    def now() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(connection.fileno(), now)
    try:
        await ready
    finally:
        loop.remove_reader(connection.fileno())
