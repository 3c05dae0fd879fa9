"""An event loop in which nothing is left to chance: one thread, a clock of its own, and every turn can be counted.

What would run in a thread runs on the loop some turns later; the clock jumps to the next timer when nothing else is to
be done.  So a program that awaits is a row of turns, the same in every run, and a test can do something before any one
of them.  With a seed the callbacks of a turn, and how long a thread takes, are shuffled: other orders, each as much
the same in every run.
"""

from __future__ import annotations

import asyncio
import heapq
import random
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import pytest

from wafl.syncs import SyncDone, awaited

T = TypeVar("T")

TURNS = 100_000
"""More than any test needs: a program that never ends fails here."""
THREAD_TURNS = 2
"""What a thread takes; with a seed up to three times that."""


class TickLoop(asyncio.SelectorEventLoop):
    def __init__(self, seed: int | None = None) -> None:
        super().__init__()
        self.turn = 0
        self.before_turn: Callable[[int], None] = lambda turn: None
        self._now = 1000.0
        self._random = None if seed is None else random.Random(seed)

    def time(self) -> float:
        return self._now

    def run_in_executor(self, executor: Any, func: Callable[..., T], *args: Any) -> asyncio.Future[T]:  # type: ignore[override]
        future: asyncio.Future[T] = self.create_future()
        self.after(self._thread_turns(), lambda: self._run(future, func, args))
        return future

    def _run(self, future: asyncio.Future[T], func: Callable[..., T], args: Any) -> None:
        try:
            outcome = func(*args)
        except Exception as error:
            if not future.done():
                future.set_exception(error)
        else:
            if not future.done():
                future.set_result(outcome)

    def _thread_turns(self) -> int:
        return THREAD_TURNS if self._random is None else self._random.randrange(1, 3 * THREAD_TURNS)

    def after(self, turns: int, call: Callable[[], None]) -> None:
        self.call_soon(call if turns <= 1 else lambda: self.after(turns - 1, call))

    def _run_once(self) -> None:
        ready: Any = self._ready  # type: ignore[attr-defined]
        timers: Any = self._scheduled  # type: ignore[attr-defined]
        if not ready:
            while timers and timers[0].cancelled():
                heapq.heappop(timers)._scheduled = False
            assert timers, "nothing is left that could ever happen"
            self._now = max(self._now, timers[0].when())
        self.turn += 1
        assert self.turn < TURNS, "it never ends"
        self.before_turn(self.turn)
        if self._random is not None:
            shuffled = list(ready)
            self._random.shuffle(shuffled)
            ready.clear()
            ready.extend(shuffled)
        super()._run_once()  # type: ignore[misc]


class TurnSync:
    """`wafl.syncs.GroupSync` on the loop itself."""

    def __init__(self, prepare: Callable[[], None], sync: Callable[[], None], thread_name: str) -> None:
        self._prepare, self._sync = prepare, sync
        self._loop: Any = asyncio.get_running_loop()

    def request(self, done: SyncDone) -> None:
        self._prepare()
        self._loop.after(self._loop._thread_turns(), lambda: self._end(done))

    def _end(self, done: SyncDone) -> None:
        try:
            self._sync()
        except OSError as error:
            done(error)
        else:
            done(None)

    async def wait(self) -> None:
        await awaited(self.request)

    async def close(self) -> None:
        pass


def run(
    main: Coroutine[Any, Any, T], before_turn: Callable[[int], None] = lambda turn: None, seed: int | None = None
) -> tuple[T, int]:
    """What `main` gives, and the number of turns it took."""
    loop = TickLoop(seed)
    loop.before_turn = before_turn
    with pytest.MonkeyPatch.context() as patch, asyncio.Runner(loop_factory=lambda: loop) as runner:
        patch.setattr("wafl.service.GroupSync", TurnSync)
        return runner.run(main), loop.turn
