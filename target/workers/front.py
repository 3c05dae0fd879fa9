"""The front's side of the workers: starting them, giving them connections and requests, starting them again.

A worker is there for as long as its volume is registered and has been online since the front's start; while the volume
is offline it keeps the sessions and answers NOT READY.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import sys
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from target.management.events import Severity
from target.management.refusal import Refused, refusal_of
from target.management.state import VolumeRecord
from target.portal.newcomers import Take
from target.workers import END_LIMIT_S, TRACE_SIGNAL, messages
from target.workers.channel import Channel, ChannelClosed, Received, pair
from target.workers.messages import Answer, Begin, Event, Listening, Login, Request
from target.workers.settings import SharedStore
from target.workers.watchdog import DEATHS, DEATHS_WITHIN_S, HUNG_S, Deaths, until_hung

if TYPE_CHECKING:
    from target.stack import Stack

log = logging.getLogger("lund.workers")

GATHER_S = 10.0
"""Of several workers one that is slower is left out."""
SETTLE_S = 5.0
"""For a worker to take new settings; one that has not is not waited for again until it has."""
SILENT = "its process does not answer"
HOSTS_WAITING = 64
"""Messages waiting for a worker, beyond which it gets no more connections: they would hold the front's descriptors."""
STOP_LIMIT_S = 300.0
"""For a volume's last consistency point; then its log has to do."""
GONE_S = END_LIMIT_S
"""For one that is on its way out; one whose disk does not answer the kernel cannot even be killed."""
TRACE_S = 1.0
"""For a hung process to write down where it is."""


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
    hung: bool = False
    """It was killed for that."""
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    def call(self, message: messages.Message, payload: bytes = b"") -> asyncio.Future[Received]:
        """It has been said when this returns.  Raises Refused."""
        try:
            return self.channel.call(message, payload)
        except ChannelClosed:
            raise self._ended() from None

    async def answered(self, answer: asyncio.Future[Received]) -> Received:
        """However long it takes: one that hangs is killed (`target.workers.watchdog`).  Raises Refused."""
        try:
            received = await answer
        except ChannelClosed:
            raise self._ended() from None
        assert isinstance(received.message, Answer)
        if received.message.error:
            raise Refused(received.message.error, received.message.message)
        return received

    def kill(self) -> None:
        """Safe at any time: its log has everything."""
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()

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
        self._deaths: defaultdict[str, Deaths] = defaultdict(Deaths)
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
                await self._until_gone(worker)
            if self.of(record.name) is None:
                await self._start(record.name)

    async def _start(self, volume: str) -> None:
        self._check_not_stopping()
        worker = await self._spawn(volume)
        try:
            config, directory = self._front.config, str(self._front.core.directory)
            begin = Begin(volume=volume, directory=directory, config=config, portals=self._portals())
            async with self._store.sharing:
                image = await self._store.image()
                self._check_not_stopping()  # `stop` ends those that it finds
                self._all[volume] = worker
                begun = worker.call(begin, image)
            await worker.answered(begun)
        except BaseException:
            # It has said why it cannot serve, or says nothing.  One that died is `_watch`'s.
            worker.ending = worker.ending or not worker.channel.closed.done()
            worker.channel.close()
            await self._until_gone(worker)
            raise
        worker.ready = not worker.ending
        text = f"volume {volume} is served by process {worker.process.pid}"
        self._front.events.emit("volume.worker.started", text, subject=volume, data={"pid": worker.process.pid})

    async def _until_gone(self, worker: Worker) -> None:
        """Whoever brings a volume online holds what other volumes' changes wait for.  Raises Refused."""
        try:
            async with asyncio.timeout(GONE_S):
                await worker.gone.wait()
        except TimeoutError:
            who = f"process {worker.process.pid} of volume {worker.volume}"
            raise Refused("worker-silent", f"{who} does not end, perhaps its disk hangs; try again later") from None

    def _check_not_stopping(self) -> None:
        if self._stopping:
            raise Refused("shutting-down", "the daemon is stopping; try again when it is back")

    async def _spawn(self, volume: str) -> Worker:
        ours, theirs = pair()
        try:
            with theirs:
                kept = (theirs.fileno(),) if self._lock is None else (theirs.fileno(), self._lock)
                process = await asyncio.create_subprocess_exec(
                    sys.executable, "-P", "-m", "target.workers.process", str(theirs.fileno()), volume,
                    stdin=asyncio.subprocess.DEVNULL, pass_fds=kept, env=_environment(),
                )  # fmt: skip
        except BaseException:
            ours.close()
            raise
        worker: Worker
        channel = Channel(ours, lambda received: self._handle(worker, received))
        worker = Worker(volume, process, channel)
        self._run(self._watch(worker))
        self._run(self._guard(worker))
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

    async def gather_all(self, path: str) -> dict[str, bytes]:
        """The same for what would be decided wrongly without one of them.  Raises Refused."""
        asked = self.serving
        answers = await self.gather(path)
        for worker in asked:
            if worker.volume not in answers or answers[worker.volume][0].status >= 400:
                raise Refused(
                    "worker-silent", f"the process of volume {worker.volume} does not answer; try again in a minute"
                )
        return {volume: body for volume, (_, body) in answers.items()}

    async def sessions(self) -> list[tuple[str, str]]:
        bodies = await self.gather_all("/v1/iscsi/sessions")
        return [(each["initiator"], each["target"]) for body in bodies.values() for each in json.loads(body)]

    # -- ends

    async def _watch(self, worker: Worker) -> None:
        exited = asyncio.ensure_future(worker.process.wait())
        ended: list[asyncio.Future[Any]] = [exited, worker.channel.closed]
        await asyncio.wait(ended, return_when=asyncio.FIRST_COMPLETED)
        if not exited.done():
            # It ends by itself, and a thread of its own sees to that; this is for one that is not even scheduled.
            await asyncio.wait([exited], timeout=2 * END_LIMIT_S)
            if not exited.done():
                worker.kill()
        code = await exited
        worker.channel.close()
        worker.ready = False
        if self._all.get(worker.volume) is worker:
            del self._all[worker.volume]
        worker.gone.set()
        if not worker.ending and not self._stopping:
            await self._died(worker, code)

    async def _guard(self, worker: Worker) -> None:
        try:
            await until_hung(worker.channel)
        except ChannelClosed:
            return
        who = f"the process of volume {worker.volume} ({worker.process.pid})"
        text = f"{who} has not answered for {HUNG_S:g} s and is killed; where it was is in the log"
        self._front.events.emit("volume.worker.hung", text, subject=worker.volume, severity=Severity.ERROR)
        worker.hung, worker.ready = True, False
        with contextlib.suppress(ProcessLookupError):
            worker.process.send_signal(TRACE_SIGNAL)
            await asyncio.sleep(TRACE_S)
        worker.kill()
        # Whoever waits for it has waited enough; if its disk hangs, even this end takes its time.
        worker.channel.close()

    async def _died(self, worker: Worker, code: int) -> None:
        volume, core = worker.volume, self._front.core
        record = core.state.volumes.get(volume)
        too_many = self._deaths[volume].too_many(time.monotonic(), hung=worker.hung)
        text = f"the process of volume {volume} ({worker.process.pid}) {_how(code)}"
        if record is None or not record.online:
            self._front.events.emit("volume.worker.died", text, subject=volume, severity=Severity.WARNING)
        elif not too_many:
            text += "; it is started again and replays the volume's log"
            self._front.events.emit("volume.worker.died", text, subject=volume, severity=Severity.WARNING)
            await self._front.services.volumes.try_mount(record)
        else:
            del self._deaths[volume]
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
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def _end(self, worker: Worker) -> None:
        if not worker.ready and not worker.ending:
            worker.kill()  # it is being started: it has nothing yet to bring to an end
        worker.ending = True
        worker.ready = False  # nobody is sent to it any more
        with contextlib.suppress(ChannelClosed, Refused):
            worker.channel.send(messages.Stop())
        try:
            async with asyncio.timeout(STOP_LIMIT_S):
                await worker.gone.wait()
        except TimeoutError:
            log.error("the process of volume %s does not end and is killed", worker.volume)
            worker.kill()
            await worker.gone.wait()

    def _run(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _environment() -> dict[str, str]:
    """What this process imports, from an installation or from a source tree, its workers import."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(os.path.abspath(each) for each in sys.path)}


def _how(code: int) -> str:
    return f"was killed by signal {-code} ({signal.strsignal(-code)})" if code < 0 else f"ended with status {code}"
