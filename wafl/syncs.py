"""Syncs of a device in a thread, shared: all who ask while one runs are served by the next.

fdatasync costs the same for one as for many.  One at a time and no more: the disk orders them anyway.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

SyncDone = Callable[[BaseException | None], None]


class GroupSync:
    """Lives on one event loop."""

    def __init__(self, prepare: Callable[[], None], sync: Callable[[], None], thread_name: str) -> None:
        self._prepare = prepare
        """Called on the loop before each sync."""
        self._sync = sync
        self._loop = asyncio.get_running_loop()
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=thread_name)
        self._waiting: list[SyncDone] = []
        self._running: asyncio.Future[None] | None = None

    def request(self, done: SyncDone) -> None:
        """Call `done` after a sync that begins from now on, with its error if it failed; never before returning."""
        self._waiting.append(done)
        if self._running is None:
            self._begin()

    async def wait(self) -> None:
        """As `request`; raises the sync's error."""
        future: asyncio.Future[None] = self._loop.create_future()

        def done(error: BaseException | None) -> None:
            if future.done():
                return
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)

        self.request(done)
        await future

    def _begin(self) -> None:
        served, self._waiting = self._waiting, []
        try:
            self._prepare()
            self._running = self._loop.run_in_executor(self._executor, self._sync)
        except Exception as error:
            self._running = self._loop.create_future()
            self._running.set_exception(error)
        self._running.add_done_callback(lambda future: self._ended(future, served))

    def _ended(self, future: asyncio.Future[None], served: list[SyncDone]) -> None:
        self._running = None
        if self._waiting:
            self._begin()
        error = asyncio.CancelledError() if future.cancelled() else future.exception()
        for done in served:
            done(error)

    async def close(self) -> None:
        """When the last sync has ended."""
        while self._running is not None:
            await asyncio.wait([self._running])
            await asyncio.sleep(0)
        self._executor.shutdown()
