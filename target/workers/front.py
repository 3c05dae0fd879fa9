"""The front's side of the workers: starting them, giving them connections and requests, starting them again.

A worker is there for as long as its volume is registered and has been online since the front's start; while the volume
is offline it keeps the sessions and answers NOT READY.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from target.management.events import Severity
from target.management.refusal import Refused, refusal_of
from target.management.state import VolumeRecord
from target.portal.newcomers import Take
from target.workers import END_LIMIT_S, messages
from target.workers.channel import Channel, ChannelClosed, Received, pair
from target.workers.messages import Answer, Begin, Event, Listening, Login, Request
from target.workers.settings import SharedStore

if TYPE_CHECKING:
    from target.stack import Stack

log = logging.getLogger("lund.workers")

PATIENCE_S = 20.0
"""A worker that has an answer to give, and does not answer a ping within so long, is not waited for."""
START_LIMIT_S = 150.0
"""The same for one that is being started: a machine that starts may have much to do."""
GATHER_S = 10.0
"""Of several workers one that is slower is left out."""
SETTLE_S = 5.0
"""For a worker to take new settings; one that has not is not waited for again until it has."""
SILENT = "its process does not answer"
HOSTS_WAITING = 64
"""Messages waiting for a worker, beyond which it gets no more connections: they would hold the front's descriptors."""
STOP_LIMIT_S = 300.0
"""For a volume's last consistency point; then its log has to do."""
DEATHS, DEATHS_WITHIN_S = 3, 60.0
"""So many in so long, and the volume stays offline."""


@dataclass(eq=False)
class Worker:
    volume: str
    process: asyncio.subprocess.Process
    channel: Channel
    ready: bool = False
    ending: bool = False
    """It is meant to end."""
    silent: bool = False
    """It has not answered in time, and that has been told."""
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    def call(self, message: messages.Message, payload: bytes = b"") -> asyncio.Future[Received]:
        """It has been said when this returns.  Raises Refused."""
        try:
            return self.channel.call(message, payload)
        except ChannelClosed:
            raise self._ended() from None

    async def answered(self, answer: asyncio.Future[Received], patience_s: float = PATIENCE_S) -> Received:
        """However long it takes, as long as the worker shows that it lives.  Raises Refused."""
        try:
            while not (await asyncio.wait([answer], timeout=patience_s))[0]:
                ping = self.channel.call(messages.Ping())
                if not (await asyncio.wait([ping], timeout=patience_s))[0]:
                    raise Refused("worker-silent", f"the process of volume {self.volume} does not answer")
            received = answer.result()
        except ChannelClosed:
            raise self._ended() from None
        assert isinstance(received.message, Answer)
        if received.message.error:
            raise Refused(received.message.error, received.message.message)
        return received

    def _ended(self) -> Refused:
        return Refused(
            "worker-ended", f"the process of volume {self.volume} has ended; see 'lun events', and try again"
        )

    async def request(
        self, method: str, path: str, query: str = "", body: bytes = b"", content_type: str = ""
    ) -> tuple[Answer, bytes]:
        """An HTTP request; its answer, whatever the status.  Raises Refused."""
        if len(path) > messages.TEXT or len(query) > messages.TEXT:
            raise Refused("too-large", f"the request's address has more than {messages.TEXT} bytes")
        request = Request(method=method, path=path, query=query, content_type=content_type[:200])
        received = await self.answered(self.call(request, body))
        assert isinstance(received.message, Answer)
        return received.message, received.payload

    def take(self, connection: socket.socket, came_by: tuple[str, int], group: int) -> None:
        """A host's connection; ours may be closed.  Raises ConnectionError."""
        if self.channel.waiting >= HOSTS_WAITING:
            raise ConnectionAbortedError(f"the process of volume {self.volume} takes nothing")
        try:
            self.channel.send(Login(host=came_by[0], port=came_by[1], group=group), connection=connection)
        except (ChannelClosed, Refused) as error:
            raise ConnectionAbortedError(f"the process of volume {self.volume} takes nothing: {error}") from None


class Workers:
    """`Elsewhere` (target.management.core)."""

    def __init__(self, store: SharedStore, lock: int | None = None) -> None:
        """`lock`: the descriptor of the state directory's lock, which workers hold too."""
        self._store = store
        self._lock = lock
        self._front: Stack
        self._all: dict[str, Worker] = {}
        self._mounting: dict[str, asyncio.Lock] = {}
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._deaths: dict[str, list[float]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = False
        store.share = self._share

    def attach(self, front: Stack) -> None:
        self._front = front
        front.core.elsewhere = self

    @property
    def serving(self) -> list[Worker]:
        return [each for each in self._all.values() if each.ready]

    def of(self, volume: str) -> Worker | None:
        worker = self._all.get(volume)
        return worker if worker is not None and worker.ready else None

    @contextlib.asynccontextmanager
    async def turn(self, volume: str) -> AsyncIterator[None]:
        """Whoever makes a volume, destroys it or takes it on or offline, is alone with it; a start that is under way
        is over."""
        async with self._turns.setdefault(volume, asyncio.Lock()):
            await self._started(volume)
            yield

    # -- hosts

    async def route(self, target: str) -> Take | None:
        """A login to a volume whose worker is being started waits for it."""
        nodename, _, volume = target.rpartition(":")
        if nodename != self._front.core.state.nodename:
            return None
        await self._started(volume)
        worker = self.of(volume)
        return None if worker is None else worker.take

    async def _started(self, volume: str) -> None:
        lock = self._mounting.get(volume)
        if lock is not None and lock.locked():
            async with lock:
                pass

    # -- starting

    async def mount(self, record: VolumeRecord) -> None:
        async with self._mounting.setdefault(record.name, asyncio.Lock()):
            worker = self._all.get(record.name)
            if worker is not None and not worker.ready:
                await worker.gone.wait()
            if self.of(record.name) is None:
                await self._start(record.name)

    async def _start(self, volume: str) -> None:
        if self._stopping:
            raise Refused("shutting-down", "the daemon is stopping; try again when it is back")
        worker = await self._spawn(volume)
        try:
            config, directory = self._front.config, str(self._front.core.directory)
            begin = Begin(volume=volume, directory=directory, config=config, portals=self._portals())
            async with self._store.sharing:
                image = await self._store.image()
                self._all[volume] = worker
                begun = worker.call(begin, image)
            await worker.answered(begun, START_LIMIT_S)
        except BaseException:
            # It has said why it cannot serve, or says nothing.  One that died is `_watch`'s.
            worker.ending = worker.ending or not worker.channel.closed.done()
            worker.channel.close()
            await worker.gone.wait()
            raise
        worker.ready = True
        text = f"volume {volume} is served by process {worker.process.pid}"
        self._front.events.emit("volume.worker.started", text, subject=volume, data={"pid": worker.process.pid})

    async def _spawn(self, volume: str) -> Worker:
        ours, theirs = pair()
        try:
            with theirs:
                kept = (theirs.fileno(),) if self._lock is None else (theirs.fileno(), self._lock)
                process = await asyncio.create_subprocess_exec(
                    sys.executable, "-P", "-m", "target.workers.process", str(theirs.fileno()), volume,
                    stdin=asyncio.subprocess.DEVNULL, pass_fds=kept,
                )  # fmt: skip
        except BaseException:
            ours.close()
            raise
        worker: Worker
        channel = Channel(ours, lambda received: self._handle(worker, received))
        worker = Worker(volume, process, channel)
        self._run(self._watch(worker))
        return worker

    # -- what a worker says

    async def _handle(self, worker: Worker, received: Received) -> None:
        if received.message.kind == "event":
            told = Event.model_validate_json(received.payload)
            self._front.events.emit(
                told.event, told.message, subject=told.subject, severity=Severity(told.severity), logged=True,
                data=told.data,
            )  # fmt: skip
        elif received.message.kind == "change":
            self._run(self._change(worker, received.message.id, received.payload))
        else:
            worker.channel.close(f"volume {worker.volume}: {received.message.kind!r} is not for a front")

    async def _change(self, worker: Worker, number: int, statements: bytes) -> None:
        answer = Answer(id=number)
        try:
            await self._store.apply(statements)
        except Exception as error:
            refused = refusal_of(error)
            if refused.name == "internal":
                log.error("a change for volume %s has failed", worker.volume, exc_info=error)
            answer.error, answer.message = refused.name, refused.message[: messages.TEXT]
        try:
            worker.channel.send(answer)
        except ChannelClosed:
            pass
        except (Refused, OSError) as error:
            worker.channel.close(f"volume {worker.volume} cannot be answered: {error}")

    # -- telling all

    def _share(self, image: bytes) -> Awaitable[None]:
        asked = []
        for worker in self._all.values():
            try:
                asked.append((worker, worker.channel.call(messages.SettingsNow(), image)))
            except ChannelClosed:
                pass
            except (Refused, OSError) as error:
                # Without them it would let in hosts that it must not; its next process has them.
                worker.channel.close(f"volume {worker.volume} cannot be told the settings: {error}")
        return self._settled(asked)

    async def _settled(self, asked: Sequence[tuple[Worker, asyncio.Future[Received]]]) -> None:
        waiting = [future for worker, future in asked if not worker.silent]
        if waiting:
            await asyncio.wait(waiting, timeout=SETTLE_S)
        for worker, future in asked:
            if not future.done() and not worker.silent:
                self._is_silent(worker)
                future.add_done_callback(partial(self._speaks_again, worker))

    def _is_silent(self, worker: Worker) -> None:
        worker.silent = True
        who = f"the process of volume {worker.volume} ({worker.process.pid})"
        text = f"{who} does not answer; what is changed now it will know later"
        self._front.events.emit("volume.worker.silent", text, subject=worker.volume, severity=Severity.WARNING)

    def _speaks_again(self, worker: Worker, future: asyncio.Future[Received]) -> None:
        worker.silent = False

    def portals_changed(self) -> None:
        told = messages.PortalsNow(portals=self._portals())
        for worker in self._all.values():
            with contextlib.suppress(ChannelClosed, Refused):
                worker.channel.send(told)

    def _portals(self) -> list[Listening]:
        return [
            Listening(
                host=each.wanted.host, port=each.wanted.port, actual_port=each.actual.port if each.actual else None,
                group=each.group, fixed=each.fixed, problem=each.problem,
            )
            for each in self._front.services.iscsi.listeners.values()
        ]  # fmt: skip

    # -- asking all

    async def gather(self, path: str, query: str = "") -> dict[str, tuple[Answer, bytes]]:
        """GET it from every worker: the answers that have come in time, by volume."""
        found: dict[str, tuple[Answer, bytes]] = {}
        problems = self._front.core.problems

        async def ask(worker: Worker) -> None:
            try:
                async with asyncio.timeout(GATHER_S):
                    found[worker.volume] = await worker.request("GET", path, query)
            except (Refused, TimeoutError):
                problems[worker.volume] = SILENT
            else:
                if problems.get(worker.volume) == SILENT:
                    del problems[worker.volume]

        await asyncio.gather(*(ask(worker) for worker in self.serving))
        return found

    async def sessions(self) -> list[tuple[str, str]]:
        answers = await self.gather("/v1/iscsi/sessions")
        return [(each["initiator"], each["target"]) for _, body in answers.values() for each in json.loads(body)]

    # -- ends

    async def _watch(self, worker: Worker) -> None:
        exited = asyncio.ensure_future(worker.process.wait())
        ended: list[asyncio.Future[Any]] = [exited, worker.channel.closed]
        await asyncio.wait(ended, return_when=asyncio.FIRST_COMPLETED)
        if not exited.done():
            # It ends by itself, and a thread of its own sees to that; this is for one that is not even scheduled.
            await asyncio.wait([exited], timeout=2 * END_LIMIT_S)
            if not exited.done():
                worker.process.kill()
        code = await exited
        worker.channel.close()
        worker.ready = False
        if self._all.get(worker.volume) is worker:
            del self._all[worker.volume]
        worker.gone.set()
        if not worker.ending and not self._stopping:
            await self._died(worker, code)

    async def _died(self, worker: Worker, code: int) -> None:
        volume, core = worker.volume, self._front.core
        record = core.state.volumes.get(volume)
        now = time.monotonic()
        recent = [each for each in self._deaths.get(volume, []) if now - each < DEATHS_WITHIN_S]
        self._deaths[volume] = [*recent, now]
        text = f"the process of volume {volume} ({worker.process.pid}) {_how(code)}"
        if record is None or not record.online:
            self._front.events.emit("volume.worker.died", text, subject=volume, severity=Severity.WARNING)
        elif len(self._deaths[volume]) < DEATHS:
            text += "; it is started again and replays the volume's log"
            self._front.events.emit("volume.worker.died", text, subject=volume, severity=Severity.WARNING)
            await self._front.services.volumes.try_mount(record)
        else:
            self._deaths[volume].clear()
            text += f", as did {DEATHS - 1} before it within {DEATHS_WITHIN_S:g} s: the volume stays offline; "
            text += f"look at the log, then 'lun vol online {volume}'"
            core.problems[volume] = text
            self._front.events.emit("volume.worker.given-up", text, subject=volume, severity=Severity.ERROR)

    async def retire(self, volume: str) -> None:
        """Its volume is no more."""
        worker = self._all.get(volume)
        if worker is not None:
            await self._end(worker)
        self._mounting.pop(volume, None)
        self._deaths.pop(volume, None)

    async def stop(self) -> None:
        """All volumes are closed on return."""
        self._stopping = True
        await asyncio.gather(*(self._end(worker) for worker in list(self._all.values())))
        for task in list(self._tasks):
            await asyncio.wait([task])

    async def _end(self, worker: Worker) -> None:
        worker.ending = True
        worker.ready = False  # nobody is sent to it any more
        with contextlib.suppress(ChannelClosed, Refused):
            worker.channel.send(messages.Stop())
        try:
            async with asyncio.timeout(STOP_LIMIT_S):
                await worker.gone.wait()
        except TimeoutError:
            log.error("the process of volume %s does not end and is killed; its log has everything", worker.volume)
            worker.process.kill()
            await worker.gone.wait()

    def _run(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _how(code: int) -> str:
    return f"was killed by signal {-code} ({signal.strsignal(-code)})" if code < 0 else f"ended with status {code}"
