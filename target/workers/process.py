"""A worker process: one volume, its sessions, its clones and its part of the API.  Started by `target.workers.front`.

It runs what a daemon of one process runs (`target.stack`).  It has no portal: connections come by the channel.  It has
no management socket: requests come by the channel too, and go through the same application.  It writes no settings.
"""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from target.logs import start_logging
from target.management import serving
from target.management.clone_settings import LIMIT, RUNNING
from target.management.events import Event as Happening
from target.management.events import EventLog, Severity, put_in_log
from target.management.iscsi import Listener
from target.management.names import PortalAddress
from target.management.operations import Operations
from target.management.refusal import Refused, refusal_of
from target.management.state import AdminState
from target.stack import Stack, loop_factory, room_for_connections
from target.workers import END_LIMIT_S, TRACE_SIGNAL, messages
from target.workers.asgi import body_once, whole_answer
from target.workers.channel import Channel, ChannelClosed, Received
from target.workers.messages import Answer, Begin, Listening, Login, PortalsNow, Request
from target.workers.settings import CopiedStore

log = logging.getLogger("lund.workers")

CUT_SHORT = 70
"""Exit status: it was."""


class ToldEvents(EventLog):
    """Events are numbered and kept by the front; what matters is in the log whatever becomes of that."""

    def __init__(self, tell: Callable[[messages.Event], None]) -> None:
        super().__init__()
        self._tell = tell

    def emit(
        self,
        kind: str,
        message: str,
        *,
        subject: str = "",
        severity: Severity = Severity.INFO,
        logged: bool = False,
        data: Mapping[str, Any] | None = None,
    ) -> Happening:
        if not logged:
            put_in_log(kind, message, severity)
        told = dict(data or {})
        self._tell(messages.Event(event=kind, message=message, subject=subject, severity=severity, data=told))
        return Happening(0, time.time(), kind, severity, subject, message, told)


class Worker:
    def __init__(self, ours: socket.socket) -> None:
        self.store = CopiedStore(self._ask_for_change)
        self.stopping = asyncio.Event()
        self.channel = Channel(ours, self._handle)
        self.channel.closed.add_done_callback(lambda _: self.stopping.set())
        self._stack: Stack | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._handlers: dict[str, Callable[[Received], Awaitable[None]]] = {
            "begin": self._begin,
            "settings": self._settings,
            "portals": self._portals,
            "login": self._login,
            "request": self._request,
            "ping": self._ping,
            "stop": self._stop,
        }

    @property
    def stack(self) -> Stack:
        assert self._stack is not None, "nothing is asked before `begin`"
        return self._stack

    # -- what the front says

    async def _handle(self, received: Received) -> None:
        await self._handlers[received.message.kind](received)

    async def _begin(self, received: Received) -> None:
        begin = received.message
        assert isinstance(begin, Begin)
        start_logging(begin.config.log.level, syslog=begin.config.log.syslog)
        await self.store.take(received.payload)
        events, operations = ToldEvents(self._tell), Operations(prefix=f"{begin.volume}.")
        self._stack = Stack(Path(begin.directory), begin.config, self.store, events, operations)
        self._stack.services.iscsi.adopt([_listener(each) for each in begin.portals])
        self._stack.apply_settings()
        # Not here: mounting may change settings, and the answer to that comes after this message.
        self._run(begin.id, self._mount(begin.volume))

    async def _mount(self, volume: str) -> tuple[Answer, bytes]:
        await self.stack.services.volumes.mount(self.store.state.volume(volume))
        self.stack.settle()
        return Answer(), b""

    async def _settings(self, received: Received) -> None:
        before = self.store.state
        try:
            await self.store.take(received.payload)
        except Exception:
            # With the old ones it would let in hosts that it must not.
            log.exception("the settings cannot be read: this process ends, and the next one gets them")
            self.channel.close()
            return
        if self._stack is not None:
            _settings_changed(self._stack, before)
        self._say(received.message.id, Answer())

    async def _portals(self, received: Received) -> None:
        assert isinstance(received.message, PortalsNow)
        self.stack.services.iscsi.adopt([_listener(each) for each in received.message.portals])

    async def _login(self, received: Received) -> None:
        login = received.message
        assert isinstance(login, Login)
        if received.connection is not None:
            self.stack.portal.take(received.connection, (login.host, login.port), login.group)

    async def _request(self, received: Received) -> None:
        assert isinstance(received.message, Request)
        self._run(received.message.id, self._answer_request(received.message, received.payload))

    async def _answer_request(self, request: Request, body: bytes) -> tuple[Answer, bytes]:
        # The address is given on byte by byte: the front has chosen this process by the same path.
        path = request.path.encode("latin-1")
        kind = request.content_type.encode("latin-1")
        scope: dict[str, Any] = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "scheme": "http",
            "method": request.method, "path": unquote(request.path), "raw_path": path, "root_path": "",
            "query_string": request.query.encode("latin-1"), "headers": [(b"content-type", kind)] if kind else [],
        }  # fmt: skip
        status, said, content = await whole_answer(self.stack.app, scope, body_once(body))
        return Answer(status=status, content_type=said[:200]), content

    async def _ping(self, received: Received) -> None:
        self._say(received.message.id, Answer())

    async def _stop(self, _received: Received) -> None:
        self.stopping.set()

    # -- what is said to it

    def _run(self, number: int, work: Awaitable[tuple[Answer, bytes]]) -> None:
        task = asyncio.ensure_future(self._answer(number, work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, number: int, work: Awaitable[tuple[Answer, bytes]]) -> None:
        try:
            answer, body = await work
            self._say(number, answer, body)
        except Exception as error:
            refused = refusal_of(error)
            if refused.name == "internal":
                log.error("a question of the front has failed", exc_info=error)
            self._say(number, Answer(error=refused.name, message=refused.message[: messages.TEXT]))

    def _say(self, number: int, answer: Answer, body: bytes = b"") -> None:
        answer.id = number
        try:
            self.channel.send(answer, body)
        except ChannelClosed:
            log.info("an answer came too late: the front has gone")

    def _tell(self, event: messages.Event) -> None:
        try:
            self.channel.send(messages.Happened(), event.model_dump_json().encode())
        except (ChannelClosed, Refused, OSError) as error:
            log.info("event %s was not told: %s", event.event, error)

    async def _ask_for_change(self, statements: bytes) -> None:
        try:
            received = await self.channel.call(messages.Change(), statements)
        except ChannelClosed:
            raise Refused("shutting-down", "the daemon is stopping; try again when it is back") from None
        answer = received.message
        assert isinstance(answer, Answer)
        if answer.error:
            raise Refused(answer.error, answer.message)

    # -- its life

    async def live(self) -> None:
        await self.stopping.wait()
        if self._stack is not None:
            await self._stack.end([self._stack.housekeeping.stop, *self._stack.ending()])
        self.channel.close()


def _settings_changed(stack: Stack, before: AdminState) -> None:
    """Somebody changed them, perhaps this process: then it has done all of this itself, and nothing happens twice."""
    now = stack.core.state
    if now.nodename != before.nodename:
        serving.rename_targets(stack.core)
    if any(now.settings.get(name) != before.settings.get(name) for name in (LIMIT, RUNNING)):
        stack.apply_settings()
    serving.tell_maps(stack.core, before)


def _listener(portal: Listening) -> Listener:
    actual = None if portal.actual_port is None else PortalAddress(portal.host, portal.actual_port)
    return Listener(PortalAddress(portal.host, portal.port), portal.group, portal.fixed, actual, portal.problem)


def end_without_front(channel: int) -> None:
    """In a thread: whatever the loop is doing, the process does not outlive its front for long."""
    poll = select.poll()
    poll.register(channel, 0)
    poll.poll()
    time.sleep(END_LIMIT_S)
    os._exit(CUT_SHORT)


async def _main(ours: socket.socket) -> None:
    watched = os.dup(ours.fileno())
    threading.Thread(target=end_without_front, args=(watched,), name="front", daemon=True).start()
    await Worker(ours).live()


def main() -> int:
    # A service manager and a terminal signal all processes; the front says when it is time.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    if sys.stderr is not None:
        faulthandler.enable()
        faulthandler.register(TRACE_SIGNAL)
    room_for_connections()
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(_main(socket.socket(fileno=int(sys.argv[1]))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
