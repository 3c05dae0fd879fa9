"""Long work as a thing of its own: an operation has a state, progress, an outcome; it can be waited for and
cancelled.

    running --> done | failed | cancelled          (nothing leaves an end state)

An operation lives as long as the daemon; what must survive a restart (a clone that was asked for) is kept by
whoever does the work.  The last FINISHED_KEPT finished ones stay readable.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from target.management.refusal import Refused, refusal_of

log = logging.getLogger("lund.operation")

FINISHED_KEPT = 256
RUNNING_LIMIT = 1024


class OperationState(StrEnum):
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(eq=False)
class Operation:
    id: str
    kind: str
    subject: str
    created_at: float
    state: OperationState = OperationState.RUNNING
    completed: int = 0
    total: int = 0
    message: str = ""
    result: dict[str, Any] = field(default_factory=dict)
    error: Refused | None = None
    finished_at: float | None = None
    finished: asyncio.Event = field(default_factory=asyncio.Event, repr=False)
    task: asyncio.Task[None] | None = field(default=None, repr=False)

    @property
    def percent(self) -> float:
        if self.state is OperationState.DONE:
            return 100.0
        # 100 is for the end: until then the work may still have its last, durable step before it.
        return min(99.9, 100.0 * self.completed / self.total) if self.total else 0.0

    def progress(self, completed: int, total: int) -> None:
        """Progress never goes back."""
        self.completed = max(self.completed, completed)
        self.total = max(total, self.completed)


Work = Callable[[Operation], Awaitable[dict[str, Any] | None]]


class Operations:
    def __init__(self, clock: Callable[[], float] = time.time, prefix: str = "") -> None:
        """`prefix`: of the ids."""
        self._clock = clock
        self._prefix = prefix
        self._next = 1
        self._all: dict[str, Operation] = {}

    def start(self, kind: str, subject: str, work: Work) -> Operation:
        """Run `work` in a task.  It ends the operation by returning a result, or by raising."""
        if sum(op.state is OperationState.RUNNING for op in self._all.values()) >= RUNNING_LIMIT:
            raise Refused("too-many-operations", f"{RUNNING_LIMIT} operations are running; wait for some to finish")
        operation = Operation(f"{self._prefix}{self._next}", kind, subject, self._clock())
        self._next += 1
        self._all[operation.id] = operation
        operation.task = asyncio.create_task(_run(operation, work), name=f"operation-{operation.id}")
        # A callback, because a task that is cancelled before its first step never enters its coroutine.
        operation.task.add_done_callback(lambda task: self._ended(operation, task))
        return operation

    def _ended(self, operation: Operation, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            operation.state = OperationState.CANCELLED
        elif (error := task.exception()) is None:
            operation.state = OperationState.DONE
        else:
            if not isinstance(error, Refused):
                log.error("%s of %s failed", operation.kind, operation.subject, exc_info=error)
            operation.error = refusal_of(error)
            operation.state = OperationState.FAILED
        operation.finished_at = self._clock()
        operation.finished.set()
        self._forget_old()

    def _forget_old(self) -> None:
        finished = [op for op in self._all.values() if op.state is not OperationState.RUNNING]
        for operation in finished[:-FINISHED_KEPT]:
            del self._all[operation.id]

    def list(self) -> list[Operation]:
        return list(self._all.values())

    def get(self, operation_id: str) -> Operation:
        try:
            return self._all[operation_id]
        except KeyError:
            raise Refused("no-such-operation", f"there is no operation {operation_id[:40]!r}") from None

    def knows(self, operation: Operation) -> bool:
        """Whether it can still be asked for."""
        return operation.id in self._all

    async def wait(self, operation_id: str, timeout_s: float) -> Operation:
        """The operation when it has ended, or as it is after `timeout_s`."""
        operation = self.get(operation_id)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(operation.finished.wait(), timeout_s)
        return operation

    async def cancel(self, operation_id: str) -> Operation:
        """Ask it to stop and wait until it has; an operation that has ended stays as it is."""
        operation = self.get(operation_id)
        if operation.state is OperationState.RUNNING and operation.task is not None:
            operation.task.cancel()
            await operation.finished.wait()
        return operation

    async def close(self) -> None:
        """Cancel everything and wait for the ends."""
        for operation in list(self._all.values()):
            await self.cancel(operation.id)


async def _run(operation: Operation, work: Work) -> None:
    operation.result = await work(operation) or {}
