"""Syncs of a device in a thread, shared: all who ask while one runs are served by the next.

fdatasync costs the same for one as for many.  One at a time and no more: the disk orders them anyway.  The thread is
plain: a pool's futures cost as much as a quick sync.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from queue import SimpleQueue

SyncDone = Callable[[BaseException | None], None]


async def awaited(ask: Callable[[SyncDone], None]) -> None:
    """Wait until what `ask` was given is called; raises the error that it is called with."""
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def done(error: BaseException | None) -> None:
        if future.done():
            return
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)

    ask(done)
    await future


class GroupSync:
    """Lives on one event loop."""

    def __init__(self, prepare: Callable[[], None], sync: Callable[[], None], thread_name: str) -> None:
        self._prepare = prepare
        """Called on the loop before each sync."""
        self._sync = sync
        self._loop = asyncio.get_running_loop()
        self._waiting: list[SyncDone] = []
        self._served: list[SyncDone] = []
        """By the sync that is running."""
        self._running = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._wanted: SimpleQueue[bool] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=thread_name, daemon=True)
        self._thread.start()

    @property
    def idle(self) -> bool:
        """No sync runs, and none is asked for."""
        return not self._running

    def request(self, done: SyncDone) -> None:
        """Call `done` after a sync that begins from now on, with its error if it failed; never before returning."""
        self._waiting.append(done)
        if not self._running:
            self._begin()

    async def wait(self) -> None:
        """As `request`; raises the sync's error."""
        await awaited(self.request)

    def _begin(self) -> None:
        self._served, self._waiting = self._waiting, []
        self._running = True
        self._idle.clear()
        try:
            self._prepare()
        except Exception as error:
            self._loop.call_soon(self._ended, error)
        else:
            self._wanted.put(True)

    def _work(self) -> None:
        while self._wanted.get():
            error: BaseException | None = None
            try:
                self._sync()
            except BaseException as found:  # whoever waits is told; the thread goes on
                error = found
            self._loop.call_soon_threadsafe(self._ended, error)

    def _ended(self, error: BaseException | None) -> None:
        served, self._running = self._served, False
        if self._waiting:
            self._begin()
        else:
            self._idle.set()
        for done in served:
            done(error)

    async def close(self) -> None:
        """When the last sync has ended."""
        await self._idle.wait()
        self._wanted.put(False)
        self._thread.join()
