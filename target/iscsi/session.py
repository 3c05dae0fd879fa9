"""One session: the I_T nexus as iSCSI sees it (RFC 7143 4.4.1, 6.3).

Owns the command window, the tasks, and the way into the device server; knows its connections but not how they talk.
A task belongs to the connection that brought it (4.2.5.1): its data and its answer go that way and no other, and it
ends with it.  The window, the tags and the nexus are the session's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from target.iscsi import announce as announcing
from target.iscsi import limits
from target.iscsi.buffers import BufferPool
from target.iscsi.cold import ColdReads
from target.iscsi.constants import AsyncEvent
from target.iscsi.fence import Deferred, Fence
from target.iscsi.flushes import Flushes
from target.iscsi.keys import Value
from target.iscsi.ports import Nexus
from target.iscsi.tasks import State, Task, TransferTags, iter_lun
from target.iscsi.window import CommandWindow

if TYPE_CHECKING:
    from target.iscsi.connection import Connection
    from target.iscsi.registry import Target


@dataclass(slots=True)
class Counters:
    """What management shows of a session."""

    reads: int = 0
    writes: int = 0
    others: int = 0
    read_bytes: int = 0
    written_bytes: int = 0
    rejects: int = 0
    digest_errors: int = 0
    aborted: int = 0


@dataclass(frozen=True)
class ConnectionInfo:
    cid: int
    peer: str
    local: str
    header_digest: str
    data_digest: str


@dataclass(frozen=True)
class SessionInfo:
    """A session as management lists it."""

    target: str | None
    """None: a discovery session."""
    tsih: int
    isid: str
    initiator: str
    initiator_alias: str
    chap_name: str
    opened_at: float
    """On the clock of the loop."""
    connections: tuple[ConnectionInfo, ...]
    parameters: dict[str, Value]
    counters: dict[str, int]
    tasks: int
    """Commands in progress."""


@dataclass(frozen=True)
class Identity:
    """Who logged in, and as what."""

    initiator: str
    isid: bytes
    target: str | None
    tpgt: int
    alias: str = ""
    chap_name: str = ""


@dataclass(eq=False)
class Session:
    """Created by the registry when a leading login ends well."""

    identity: Identity
    tsih: int
    opened_at: float
    pool: BufferPool
    window: CommandWindow
    parameters: dict[str, Value]
    target: Target | None = None
    nexus: Nexus | None = None
    connections: dict[int, Connection] = field(default_factory=dict)
    tasks: dict[int, Task] = field(default_factory=dict)
    counters: Counters = field(default_factory=Counters)
    tags: TransferTags = field(default_factory=TransferTags)
    executing: Task | None = None
    """What the device server does at this moment: no reset that it causes ends it."""
    data_bytes: int = 0
    """Of Data-Out that R2Ts may be outstanding for."""
    placed_bytes: int = 0
    """Of them, what goes to the medium as it comes and needs no buffer."""
    starved: list[Task] = field(default_factory=list)
    fence: Fence | None = None
    """The answer that must be seen in its place on all connections, while it is not."""
    deferred: deque[Deferred] = field(default_factory=deque)
    """Answers that wait for the fence, in their order."""
    cold: ColdReads = field(init=False)
    flushes: Flushes = field(init=False)
    closed: bool = False

    def __post_init__(self) -> None:
        self.cold = ColdReads(self)
        self.flushes = Flushes(self)

    @property
    def discovery(self) -> bool:
        return self.identity.target is None

    # --- tasks

    def begin(self, task: Task) -> None:
        self.tasks[task.itt] = task
        if task.immediate:
            task.connection.immediate_outstanding += 1
        else:
            self.window.outstanding += 1

    def finish(self, task: Task) -> None:
        """The task is answered or dropped: its places are free again."""
        if task.state is State.GONE:
            return
        if task.state is State.STARVED:
            self.starved.remove(task)
        task.state = State.GONE
        if self.tasks.get(task.itt) is task:
            del self.tasks[task.itt]
        if task.immediate:
            task.connection.immediate_outstanding -= 1
        else:
            self.window.outstanding -= 1
        self.free_buffer(task)

    @property
    def short_of_memory(self) -> bool:
        """No further command may have its whole Data-Out in memory."""
        return self.data_bytes >= limits.SESSION_DATA_BYTES

    @property
    def gathering(self) -> bool:
        """There are buffers that Data-Out may go straight into."""
        return self.data_bytes > self.placed_bytes

    def allocate_buffer(self, task: Task, length: int) -> None:
        """A buffer for the first `length` bytes of the command's data; what is there already is taken along."""
        old, before = task.buffer, task.pooled
        task.pooled = self.pool.take(length)
        task.buffer = memoryview(task.pooled)[:length]
        self.data_bytes += len(task.pooled)
        if before is not None and old is not None:
            task.buffer[: len(old)] = old
            self.data_bytes -= len(before)
            self.pool.give(before)

    def begin_placing(self, task: Task) -> None:
        """Let the command's data go to the medium as it comes, where that can be."""
        if self.short_of_memory or self.nexus is None:
            return
        task.placing = self.nexus.begin_write(task.lun, task.cdb, task.length)
        if task.placing is not None:
            self.data_bytes += task.length
            self.placed_bytes += task.length

    def end_placing(self, task: Task) -> None:
        """It has happened, or will not."""
        placing, task.placing = task.placing, None
        if placing is not None:
            self.data_bytes -= task.length
            self.placed_bytes -= task.length
            placing.drop()

    def starve(self, task: Task) -> None:
        """The command waits for memory before its first R2T."""
        task.state = State.STARVED
        self.starved.append(task)

    def free_buffer(self, task: Task) -> None:
        self.end_placing(task)
        pooled = task.release()
        if pooled is not None:
            self.data_bytes -= len(pooled)
            if not task.pinned:
                self.pool.give(pooled)
        while self.starved and not self.short_of_memory:
            waiting = self.starved.pop(0)
            waiting.state = State.GATHERING
            self.allocate_buffer(waiting, waiting.length)
            waiting.connection.ask_for_data(waiting)
            waiting.connection.wake()

    def drop_tasks(self, lun: int | None = None) -> int:
        """Silently drop the tasks that iSCSI holds for a logical unit, or all: the device server's own are its own
        business.  Answers already made go out."""
        dropped = 0
        for task in iter_lun(self.tasks, lun):
            if task.state is not State.ANSWERING:
                self.finish(task)
                dropped += 1
        self.counters.aborted += dropped
        return dropped

    # --- answers

    def respond(
        self, connection: Connection, send: Callable[[], None], *, fenced: bool = False, function: bool = False
    ) -> None:
        """Send the answer to a command or a task management request, in its turn (4.2.2.3).  With one connection
        TCP keeps the order."""
        answer = Deferred(connection, send, fenced, function)
        if self.fence is not None:
            self.deferred.append(answer)
        elif fenced and len(self.connections) > 1:
            self.window.frozen = True
            self.fence = Fence(answer, self._fence_over)
            self.fence.begin()
        else:
            send()

    def _fence_over(self) -> None:
        self.fence = None
        self.window.frozen = False
        while self.deferred and self.fence is None:
            answer = self.deferred.popleft()
            if answer.connection.full_feature:
                self.respond(answer.connection, answer.send, fenced=answer.fenced, function=answer.function)
                answer.connection.wake()
        if self.fence is None:
            self.catch_up()

    @property
    def functions_waiting(self) -> int:
        """Answers to task management that wait for a fence, their own or another."""
        waiting = sum(answer.function for answer in self.deferred)
        return waiting + (self.fence is not None and self.fence.answer.function)

    def tell_event(self, lun: int, sense: bytes) -> None:
        """11.9.1, event 0: a SCSI event, by one connection."""
        for connection in self.connections.values():
            if connection.full_feature:
                announcing.scsi_event(connection, lun, sense)
                return

    # --- connections

    @property
    def level(self) -> int:
        """What iSCSIProtocolLevel was agreed on (RFC 7144 7.1.1)."""
        return int(self.parameters["iSCSIProtocolLevel"])

    def catch_up(self, current: Connection | None = None) -> None:
        """Do what waited for CmdSNs that have come meanwhile, on the connections that it came by."""
        while not self.closed and (held := self.window.next_held()) is not None:
            held.connection.take_held(held)
            if held.connection is not current:
                held.connection.wake()

    def end_tasks_of(self, connection: Connection) -> None:
        """4.2.5.1: what a connection brought ends with it, silently: there is no way left to answer."""
        for task in list(self.tasks.values()):
            if task.connection is not connection:
                continue
            if task.state is State.EXECUTING and self.nexus is not None:
                self.nexus.abort_task(task.lun, task.itt)
            self.finish(task)
            self.counters.aborted += 1
        self.window.forget(connection)
        self.cold.forget(connection)
        self.flushes.forget(connection)

    def leave(self, connection: Connection, reason: str, announce: bool) -> None:
        """A connection has ended.  `announce`: it was this side's doing, and the others are told (11.9.1, event 2)."""
        if self.connections.get(connection.cid) is not connection:
            self._leave_fence(connection)  # another one took its place
            return
        del self.connections[connection.cid]
        # DefaultTime2Retain=0: without connections the session is over
        if not self.connections:
            self.close(reason)
            return
        self.end_tasks_of(connection)
        self._leave_fence(connection)
        if announce:
            teller = next(iter(self.connections.values()))
            announcing.drop(teller, AsyncEvent.CONNECTION_DROP, connection.cid)
        self.catch_up()

    def _leave_fence(self, connection: Connection) -> None:
        if self.fence is not None:
            self.fence.gone(connection)

    # --- life

    def drop(self, reason: str) -> None:
        """End the session from this side: its initiator is told (11.9.1, event 3) before the connections close."""
        for connection in list(self.connections.values()):
            announcing.drop(connection, AsyncEvent.SESSION_DROP)
            connection.finish_and_close(reason)
            connection.wake()
        self.connections.clear()
        self.close(reason)

    def close(self, reason: str) -> None:
        """The session ends: nexus loss for SCSI, every connection closes.  Safe to call twice."""
        if self.closed:
            return
        self.closed = True
        self.starved.clear()
        self.deferred.clear()
        self.fence = None
        for task in list(self.tasks.values()):
            self.finish(task)
        if self.nexus is not None:
            self.nexus.close()
        if self.target is not None:
            self.target.forget(self)
        for connection in list(self.connections.values()):
            connection.close(reason)
        self.connections.clear()

    def info(self) -> SessionInfo:
        """What management lists."""
        identity = self.identity
        counters: dict[str, Any] = asdict(self.counters)
        return SessionInfo(
            target=identity.target,
            tsih=self.tsih,
            isid=identity.isid.hex(),
            initiator=identity.initiator,
            initiator_alias=identity.alias,
            chap_name=identity.chap_name,
            opened_at=self.opened_at,
            connections=tuple(c.info() for c in self.connections.values()),
            parameters=dict(self.parameters),
            counters=counters,
            tasks=len(self.tasks),
        )
