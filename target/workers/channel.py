"""What a front and one of its workers say to each other: messages over a pair of Unix sockets.

A message is a model of `target.workers.messages` as JSON in one packet (SOCK_SEQPACKET), at most PACKET_BYTES long.
What is longer (a request's body, the settings) goes beside it as a file in memory, whose descriptor the packet carries;
so does the socket of a host.  So the pair holds little whatever is said, and neither side ever waits in a send: what
the kernel does not take at once is queued here, up to QUEUE_LIMIT messages and QUEUE_BYTES beside them.

Messages arrive in the order in which they were sent, and `handle` is awaited for one before the next: who is told of
new settings and then gets a login knows the settings by then.  An end that meets what it does not understand closes.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import logging
import os
import socket
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field

from pydantic import TypeAdapter, ValidationError

from target.management.refusal import Refused
from target.workers.messages import AnyMessage, Message

log = logging.getLogger("lund.workers")

PACKET_BYTES = 32 << 10
PAYLOAD_BYTES = 64 << 20
"""The settings of a daemon with all it may have of everything; bodies have lower limits of their own."""
QUEUE_LIMIT = 1024
"""Messages that the other side has not taken; beyond that it is sick, and nothing more is said to it.  Also those that
have come and wait here; beyond that no more are received."""
QUEUE_BYTES = 2 * PAYLOAD_BYTES
"""What may be beside those messages, either way."""
READ_AT_ONCE = 64
DESCRIPTORS = 2
"""With one packet: the payload, and a host's connection."""
_PARSER: TypeAdapter[AnyMessage] = TypeAdapter(AnyMessage)


class ChannelClosed(Exception):
    """The other side is gone, or has been given up."""


@dataclass(slots=True)
class Received:
    message: AnyMessage
    payload: bytes = b""
    connection: socket.socket | None = None
    """Whoever handles the message closes it."""


@dataclass(slots=True)
class _Outgoing:
    packet: bytes
    payload_bytes: int
    descriptors: list[int] = field(default_factory=list)

    def close(self) -> None:
        for each in self.descriptors:
            os.close(each)
        self.descriptors = []


class Channel:
    def __init__(self, ours: socket.socket, handle: Callable[[Received], Awaitable[None]]) -> None:
        """Takes the socket over.  `closed` is done when the other side is gone."""
        self._loop = asyncio.get_running_loop()
        ours.setblocking(False)
        self._socket = ours
        self._handle = handle
        self._out: deque[_Outgoing] = deque()
        self._out_bytes = 0
        self._arrived: asyncio.Queue[Received] = asyncio.Queue()
        self._arrived_bytes = 0
        self._answers: dict[int, asyncio.Future[Received]] = {}
        self._last_id = 0
        self._paused = False
        self.closed: asyncio.Future[None] = self._loop.create_future()
        self._loop.add_reader(ours.fileno(), self._readable)
        self._task = self._loop.create_task(self._work())

    # -- saying

    @property
    def waiting(self) -> int:
        """Messages that the kernel has not taken: the other side has not for a while."""
        return len(self._out)

    def send(self, message: Message, payload: bytes = b"", connection: socket.socket | None = None) -> None:
        """Raises ChannelClosed, Refused (the other side takes nothing), OSError.  The caller closes the connection."""
        if self.closed.done():
            raise ChannelClosed
        message.payload = bool(payload)
        outgoing = _Outgoing(message.model_dump_json().encode(), len(payload))
        if len(outgoing.packet) > PACKET_BYTES or len(payload) > PAYLOAD_BYTES:
            raise Refused("too-large", f"a message of {len(outgoing.packet)} and {len(payload)} bytes is too large")
        if len(self._out) >= QUEUE_LIMIT or self._out_bytes + len(payload) > QUEUE_BYTES:
            raise Refused("worker-busy", f"the other process has not taken the last {len(self._out)} messages")
        try:
            if payload:
                outgoing.descriptors.append(_in_memory(payload))
            if connection is not None:
                outgoing.descriptors.append(os.dup(connection.fileno()))
        except BaseException:
            outgoing.close()
            raise
        self._out.append(outgoing)
        self._out_bytes += len(payload)
        if len(self._out) == 1:
            self._flush()

    def _flush(self) -> None:
        while self._out:
            first = self._out[0]
            try:
                socket.send_fds(self._socket, [first.packet], first.descriptors, socket.MSG_NOSIGNAL)
            except (BlockingIOError, InterruptedError):
                self._loop.add_writer(self._socket.fileno(), self._flush)
                return
            except OSError as error:
                self.close(f"sending failed: {error}")
                return
            self._out_bytes -= first.payload_bytes
            self._out.popleft().close()
        self._loop.remove_writer(self._socket.fileno())

    def call(self, message: Message, payload: bytes = b"") -> asyncio.Future[Received]:
        """Say something that is answered: an `Answer`, or ChannelClosed.  Raises what `send` raises."""
        self._last_id += 1
        message.id = number = self._last_id
        # Before it is said: saying it may find that the other side is gone, which ends every question.
        future = self._answers[number] = self._loop.create_future()
        future.add_done_callback(lambda _: self._answers.pop(number, None))
        try:
            self.send(message, payload)
        except BaseException:
            future.cancel()
            raise
        return future

    # -- hearing

    def _readable(self) -> None:
        for _ in range(READ_AT_ONCE):
            try:
                received = self._receive()
            except (BlockingIOError, InterruptedError):
                return
            except ConnectionResetError:
                received = None  # killed, with something unread
            except (OSError, ValidationError, ValueError) as error:
                self.close(f"not understood: {error}")
                return
            if received is None:
                self.close("")
                return
            self._arrived.put_nowait(received)
            self._arrived_bytes += len(received.payload)
            if self._arrived.qsize() >= QUEUE_LIMIT or self._arrived_bytes >= QUEUE_BYTES:
                self._paused = True
                self._loop.remove_reader(self._socket.fileno())
                return

    def _receive(self) -> Received | None:
        space = socket.CMSG_SPACE(DESCRIPTORS * array.array("i").itemsize)
        packet, ancillary, flags, _ = self._socket.recvmsg(PACKET_BYTES, space, socket.MSG_CMSG_CLOEXEC)
        with _descriptors(ancillary) as descriptors:
            if not packet:
                return None
            if flags & socket.MSG_TRUNC:
                raise ValueError("a message is longer than allowed")
            received = Received(_PARSER.validate_json(packet))
            if flags & socket.MSG_CTRUNC and received.message.kind != "login":
                # A host's connection is lost if this process has no descriptor left for it, and nothing else is.
                raise ValueError("not all descriptors of a message have come")
            if received.message.payload:
                if not descriptors:
                    raise ValueError("a payload is missing")
                received.payload = _contents(descriptors.pop(0))
            if descriptors and received.message.kind != "login":
                raise ValueError("a connection came with a message that has none")
            if descriptors:
                received.connection = socket.socket(fileno=descriptors[0])
                descriptors.pop(0)
            return received

    async def _work(self) -> None:
        while True:
            received = await self._arrived.get()
            self._arrived_bytes -= len(received.payload)
            if self._paused and self._arrived.empty():
                self._paused = False
                self._loop.add_reader(self._socket.fileno(), self._readable)
            if received.message.kind == "answer":
                future = self._answers.get(received.message.id)
                if future is not None and not future.done():
                    future.set_result(received)
                continue
            try:
                await self._handle(received)
            except Exception:
                log.exception("handling %r failed", received.message.kind)

    def close(self, reason: str = "") -> None:
        """Nothing more is said or heard; who waits for an answer gets ChannelClosed."""
        if self.closed.done():
            return
        if reason:
            log.error("the channel between lund's processes is closed: %s", reason)
        self._loop.remove_reader(self._socket.fileno())
        self._loop.remove_writer(self._socket.fileno())
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        while self._out:
            self._out.popleft().close()
        self._task.cancel()
        while not self._arrived.empty():
            received = self._arrived.get_nowait()
            if received.connection is not None:
                received.connection.close()
        for future in list(self._answers.values()):
            if not future.done():
                future.set_exception(ChannelClosed())
                future.exception()  # whoever waits gets it; if nobody does, it is no news
        self.closed.set_result(None)


def pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def _in_memory(payload: bytes) -> int:
    descriptor = os.memfd_create("lund", os.MFD_CLOEXEC)
    try:
        view = memoryview(payload)
        while view:
            view = view[os.write(descriptor, view) :]
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _contents(descriptor: int) -> bytes:
    try:
        size = os.fstat(descriptor).st_size
        if size > PAYLOAD_BYTES:
            raise ValueError(f"a payload has {size} bytes")
        contents = os.pread(descriptor, size, 0)
        if len(contents) != size:
            raise ValueError("a payload is shorter than it was said to be")
        return contents
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> Iterator[list[int]]:
    """Those that came; what is left of them at the end is closed."""
    found = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            found.frombytes(data[: len(data) - len(data) % found.itemsize])
    left = list(found)
    try:
        yield left
    finally:
        for each in left:
            os.close(each)
