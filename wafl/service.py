"""The asyncio driver of a mounted volume: consistency points on a timer, on demand and under pressure, flushes
answered in groups, reclaim in the gaps.

Rules:

- Everything but `device.sync()` runs on the event loop's thread; syncs run in one thread of the service's own, one at a
  time, and whoever waits while one runs shares the next (wafl.syncs).
- With a log a flush needs a sync that begins after it was asked for.
- What is not logged (snapshots, fills, detaches), and every flush of a volume without a log, needs a consistency point
  whose freeze comes after it was asked for.  If nothing has changed since the last freeze, the one being written will
  do; if none is being written, it is done.
- A failed consistency point fails everybody who waits, now and later, and is reported once through `on_failure`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING

from wafl.checkpoint import Checkpoint
from wafl.errors import VolumeFailed, WaflError
from wafl.syncs import GroupSync, awaited
from wafl.types import SnapshotInfo, Step
from wafl.volume import Volume

if TYPE_CHECKING:
    from wafl.check import Finding
    from wafl.nvlog import Log

log = logging.getLogger(__name__)

FlushDone = Callable[[BaseException | None], None]

DIRTY_LIMIT_BLOCKS = 8192
"""Changed pointer blocks (32 MiB) that start a consistency point before its time."""
PRESSURE_SHARE = 4
"""A consistency point starts early when 1/4 of what is available waits only for one to become allocatable."""
COUNT_TRIES = 4
"""How often counts are read ahead of a freeze.  Others may need more meanwhile; it waits for the last few itself."""
PRESSURE_CHECK_S = 0.25
READER_LOOK_S = 0.01
"""On a full volume a consistency point waits for the readers that hold back freed blocks: how often it looks."""
SLICE_REST_S = 0.001
"""Between two slices that a consistency point writes the loop sleeps, if nobody waits for it.  Else it is at work for
milliseconds without a pause, and a host's process that the scheduler has put behind it on the same processor waits for
all of them, whatever the loop would do for it in between."""
HERE_BYTES = 2048
"""A sync of no more than so many bytes of records, those of 32 blocks one by one or of two long writes, ..."""
HERE_S = 0.0005
"""... where syncs take no longer than this may be waited for on the loop, if nobody else wants anything."""
RECLAIM_BURST_S = 0.001
"""Reclaim keeps the loop for this long at a time, or for one slice if that is longer: guests wait no longer for it."""
RECLAIM_REST = 3
"""Then it rests this many times as long as it has worked: it has a quarter of the loop's time, and all of it when space
is short."""


class VolumeService:
    """Drives one volume on the running event loop."""

    def __init__(self, volume: Volume, *, cp_interval_s: float = 10.0, dirty_limit: int = DIRTY_LIMIT_BLOCKS,
                 on_failure: Callable[[BaseException], None] | None = None) -> None:  # fmt: skip
        self.volume = volume
        self.cp_interval_s = cp_interval_s
        self.dirty_limit = dirty_limit
        self.on_failure = on_failure
        self._next: list[FlushDone] = []
        """Wait for the next freeze."""
        self._current: list[FlushDone] = []
        """Wait for the consistency point being written."""
        self._wake = asyncio.Event()
        self._reclaim_wanted = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._syncs: GroupSync | None = None
        self._reads: GroupSync | None = None
        self._cold_at = 0
        self._checks: set[asyncio.Future[list[Finding]]] = set()
        self._stopping = False
        self._forced = False
        """A consistency point is wanted though its time has not come."""
        self._failed = False
        """It has been told."""
        self._reported: set[str] = set()
        self._last_start = 0.0

    # --- life ------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Call on the loop that is to drive the volume."""
        self._syncs = GroupSync(self.volume.push_log, self.volume.sync, f"sync-{self.volume.name}")
        self._reads = GroupSync(self._take_cold, self._read_cold, f"read-{self.volume.name}")
        loop = asyncio.get_running_loop()
        self._last_start = loop.time()
        if self.volume.read_only:
            return
        self.volume.on_flush_ahead = partial(loop.call_soon, self.volume.begin_write_back)
        self._tasks = [
            asyncio.create_task(self._drive(), name=f"checkpoints-{self.volume.name}"),
            asyncio.create_task(self._reclaim(), name=f"reclaim-{self.volume.name}"),
        ]
        if self.volume.reclaim_pending:
            self.kick_reclaim()

    async def stop(self) -> None:
        """A last consistency point if one is needed; the volume stays mounted (close it afterwards)."""
        self._stopping = True
        self.volume.on_flush_ahead = lambda: None
        self._wake.set()
        for task in self._tasks[1:]:
            task.cancel()
        if self._checks:
            await asyncio.wait(self._checks)
        results = await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        for result in results:
            if isinstance(result, Exception):
                log.error("volume %s: %s", self.volume.name, result)
        self._fail_all(VolumeFailed("the volume is being closed"))
        if self._syncs is not None:
            await self._syncs.close()
            self._syncs = None
        if self._reads is not None:
            await self._reads.close()
            self._reads = None

    # --- requests --------------------------------------------------------------------------------------------------

    def flush(self, done: FlushDone) -> None:
        """Call `done` once everything that hosts wrote and administrators changed so far is durable, or with the error;
        never before returning."""
        log = self.volume.core.log
        if log is None or self._syncs is None or self.volume.failure is not None:
            self._request(done)
        elif log.durable >= log.seq:
            asyncio.get_running_loop().call_soon(done, None)
        else:
            self._syncs.request(lambda error: self._flushed(done, error))

    def when_durable(self, done: FlushDone, here: bool = False) -> bool:
        """As `flush`, but True, and `done` is not called, if it is durable.  `here`: nobody else wants anything of the
        loop, so a sync that is likely to be quick is done on the spot: a thread would cost more than the sync."""
        log, syncs = self.volume.core.log, self._syncs
        if log is not None and syncs is not None and self.volume.failure is None:
            if log.durable >= log.seq:
                return True
            if here and syncs.idle and self._quick(log):
                return self._sync_here(done)
        self.flush(done)
        return False

    def _quick(self, log: Log) -> bool:
        volume = self.volume
        return volume.running is None and log.unsynced_bytes <= HERE_BYTES and volume.sync_s <= HERE_S

    def _sync_here(self, done: FlushDone) -> bool:
        try:
            self.volume.push_log()
            self.volume.sync()
        except (OSError, WaflError) as error:
            asyncio.get_running_loop().call_soon(self._flushed, done, error)
            return False
        self.volume.core.synced()
        return True

    def _flushed(self, done: FlushDone, error: BaseException | None) -> None:
        if error is None:
            self.volume.core.synced()
        else:
            self._report(error)
        self._answer([done], None if error is None else VolumeFailed(f"the volume has failed: {error}"))

    def when_warm(self, done: Callable[[], None]) -> bool:
        """Reads that did not want to wait have met what is not in memory, and the disk has begun to read it: call
        `done`, later, when the last of that is there.  False: there is nothing to wait for."""
        if self.volume.core.cold is None or self._reads is None:
            return False
        self._reads.request(lambda _: done())
        return True

    def _take_cold(self) -> None:
        core = self.volume.core
        if core.cold is not None:
            self._cold_at, core.cold = core.cold, None

    def _read_cold(self) -> None:
        """In the thread.  One read for a whole batch: each call of a thread costs the loop more than a read does, and
        the disk does what it was asked for more or less in turn.  Its outcome is of no interest: who wants the data
        reads it again."""
        self.volume.device.pread(self._cold_at, bytearray(1))

    async def _until_read(self) -> None:
        """The disk has read the last that it was asked for, or failed to: whoever reads it hears of that."""
        reads = self._reads
        if reads is not None and self.volume.core.cold is not None:
            await awaited(lambda done: reads.request(lambda _: done(None)))

    async def _read_counts(self) -> None:
        """A freeze needs the counts of all that was freed, and must not wait for the disk."""
        for _ in range(COUNT_TRIES):
            if self.volume.core.allocator.apply_frees(nowait=True):
                return
            await self._until_read()

    async def durable(self) -> None:
        """As `flush`: for what the log has.  Raises VolumeFailed."""
        await awaited(self.flush)

    async def commit(self) -> None:
        """Everything changed so far, logged or not, is durable on return.  Raises VolumeFailed."""
        await awaited(self._request)

    def _request(self, done: FlushDone) -> None:
        """Call `done` when a consistency point has everything changed so far."""
        volume = self.volume
        if volume.failure is not None or self._syncs is None:
            error = VolumeFailed(f"the volume has failed: {volume.failure or 'it is not being served'}")
            asyncio.get_running_loop().call_soon(done, error)
        elif volume.dirty:
            self._next.append(done)
            self._wake.set()
        elif volume.running is not None and not volume.running.done:
            self._current.append(done)
        else:
            asyncio.get_running_loop().call_soon(done, None)

    async def create_snapshot(self, name: str) -> SnapshotInfo:
        """Made and durable on return.  Raises what `Volume.request_snapshot` raises, and VolumeFailed."""
        self.volume.request_snapshot(name)
        await self.commit()
        return self.volume.snapshot(name)

    async def check(self, *, data: bool = True) -> list[Finding]:
        """The checker's findings on the last durable consistency point, from a thread, while hosts go on.  Blocks
        freed meanwhile are kept from being used again; when that makes space short the check ends with a note."""
        # Here, not at the top: the checker is a tool on top of the volume.
        from wafl.check import prepare_check, short_of_space

        def stop() -> str:
            return "the volume goes offline" if self._stopping else short_of_space(self.volume)

        with self.volume.held():
            checking = asyncio.ensure_future(
                asyncio.to_thread(prepare_check(self.volume.device, data=data, stop=stop))
            )
            self._checks.add(checking)
            try:
                return await asyncio.shield(checking)
            finally:
                # Cancelled or not: the thread must have ended before its blocks may be used again.
                await asyncio.wait([checking])
                self._checks.discard(checking)

    def kick_reclaim(self) -> None:
        """There is something to reclaim (after destroy, delete, shrink, UNMAP).  Harmless otherwise."""
        self._reclaim_wanted.set()

    # --- consistency points ----------------------------------------------------------------------------------------

    async def _drive(self) -> None:
        while True:
            stopping = self._stopping
            if self._due() or (stopping and self.volume.dirty):
                await self._checkpoint()
                if self.volume.failure is not None:
                    return
            elif stopping:
                return
            else:
                await self._wait()

    def _due(self) -> bool:
        volume = self.volume
        if self._next or volume.failure is not None:
            return True
        if not volume.dirty:
            return False
        if self._forced:
            return True
        late = asyncio.get_running_loop().time() - self._last_start >= self.cp_interval_s
        log = volume.core.log
        full = log is not None and log.fill_bytes >= log.checkpoint_bytes
        return late or full or volume.dirty_blocks >= self.dirty_limit or self._pressed()

    def _pressed(self) -> bool:
        allocator = self.volume.core.allocator
        waiting = allocator.freeing + len(allocator.freed)
        return waiting > 64 and waiting * PRESSURE_SHARE > allocator.free - allocator.floor_guest

    async def _wait(self) -> None:
        timer = asyncio.get_running_loop().call_later(min(PRESSURE_CHECK_S, self.cp_interval_s), self._wake.set)
        try:
            await self._wake.wait()
        finally:
            timer.cancel()
        self._wake.clear()

    async def _checkpoint(self) -> None:
        self._last_start = asyncio.get_running_loop().time()
        self._current, self._next = self._next, []
        self._forced = False
        try:
            while self.volume.core.allocator.cramped:
                await asyncio.sleep(READER_LOOK_S)
            # A shortage of space makes consistency points elsewhere: they may have failed there.
            self.volume.core.check_writable()
            if self.volume.dirty:
                await self._read_counts()
                if not self._hurried():
                    await asyncio.sleep(SLICE_REST_S)
                    await self._read_counts()
                await self._run(self.volume.checkpoint())
        except BaseException as error:
            self._report(error)
            if not isinstance(error, Exception):
                raise
            return
        done, self._current = self._current, []
        self._answer(done, None)
        if self.volume.reclaim_pending:
            self._reclaim_wanted.set()

    async def _run(self, checkpoint: Checkpoint) -> None:
        assert self._syncs is not None
        written = False
        for step in checkpoint:
            if step is Step.SLICE:
                # What was freed is wanted soon: its pages are in memory.
                await asyncio.sleep(0 if written or self._hurried() else SLICE_REST_S)
                continue
            written = True
            try:
                await self._syncs.wait()
            except OSError as error:
                if checkpoint.done:
                    raise
                checkpoint.throw(error)

    def _hurried(self) -> bool:
        """Somebody waits for the consistency point being written, or for space, or the next one is due already."""
        return bool(self._current) or self._stopping or self._pressed() or self._due()

    def _report(self, error: BaseException) -> None:
        self.volume.fail(error)
        self._fail_all(error)
        if self._failed or not isinstance(error, Exception):
            return
        self._failed = True
        log.error("volume %s: %s", self.volume.name, error)
        if self.on_failure is not None:
            try:
                self.on_failure(error)
            except Exception:  # whoever waits for a flush hears of the failure all the same
                log.exception("volume %s: telling of its failure", self.volume.name)

    def _fail_all(self, error: BaseException) -> None:
        waiting, self._current, self._next = self._current + self._next, [], []
        self._answer(waiting, error)

    def _answer(self, waiting: list[FlushDone], error: BaseException | None) -> None:
        for call in waiting:
            try:
                call(error)
            except Exception:  # one that is broken must not stop the others, nor the next consistency points
                log.exception("volume %s: answering a flush", self.volume.name)

    # --- reclaim ---------------------------------------------------------------------------------------------------

    async def _reclaim(self) -> None:
        while True:
            await self._reclaim_wanted.wait()
            self._reclaim_wanted.clear()
            try:
                await self._reclaim_once()
            except (WaflError, OSError) as error:
                # A damaged block in a tree that goes: its space stays taken until it can be read.
                if str(error) not in self._reported:
                    self._reported.add(str(error))
                    log.error("volume %s: reclaim: %s", self.volume.name, error)

    async def _reclaim_once(self) -> None:
        # Not the loop's clock: that may stand still within one round.
        began = perf_counter()
        for step in self.volume.reclaim(nowait=True):
            if step is Step.READ:
                await self._until_read()
                began = perf_counter()
                continue
            worked = perf_counter() - began
            if worked < RECLAIM_BURST_S:
                continue
            if self._due():
                self._wake.set()
            await asyncio.sleep(0 if self._pressed() else RECLAIM_REST * worked)
            began = perf_counter()
        # What was freed becomes allocatable; and if anything is left, only this helps on (it kicks reclaim again).
        self._forced = True
        self._wake.set()
