"""Drives the steps of one job with asyncio, and keeps its state, limits and events.

Stopping is cooperative: the wish is looked at before every turn and after every wait, so a thread that reads
a plan is never left behind and a stop returns when nothing of the job is under way.  Once the detach has been
made in memory there is no turn any more: completion wins that race.

A turn is one slot of `Shared.slots`, a first-come first-served gate: a job gives its slot back before it
queues for the next, so jobs fill one chunk each in turn.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any

from cloner.errors import CloneError
from cloner.events import CloneEvent, OnEvent
from cloner.progress import CloneStatus, Progress
from cloner.states import ENDED, JobState, moved
from cloner.steps import Commit, Read, Step, Turn, WaitForRoom, Work, clone_steps
from cloner.throttle import TokenBucket
from wafl import BLOCK_BYTES, POINTERS, Lun, NoSuchLun, VolumeFailed, VolumeService, WaflError

log = logging.getLogger("lund.clone")

BACK_OFF_S = 0.005
BACK_OFF_TIMES = 20
"""A clone gives way to waiting guests for 0.1 s a turn at most, so it never starves: 10 MiB/s is its floor."""
ROOM_LOOK_S = 1.0
"""A paused job looks this often whether room was made."""
LIMIT_LOOK_S = 1.0
"""A job that waits for its limit looks this often whether the limit was raised."""
CHUNKS_A_SECOND = 8
"""A limited job fills in chunks small enough for this many turns a second."""
PROGRESS_PERCENT = 10


class Stopped(Exception):
    """Thrown into the steps: the job is not wanted any more."""


@dataclass(slots=True)
class Shared:
    """What all jobs of a manager use."""

    on_event: OnEvent
    clock: Callable[[], float]
    sleep: Callable[[float], Awaitable[None]]
    guests_waiting: Callable[[VolumeService], bool]
    threads: Executor
    slots: asyncio.Semaphore
    overall: TokenBucket
    recent_rates: dict[str, float] = field(default_factory=dict)
    """Bytes a second of the last job of a volume that copied anything, by the volume's UUID."""


class Job:
    def __init__(self, shared: Shared, service: VolumeService, lun: Lun, limit_bytes_s: int | None) -> None:
        self._shared = shared
        self.service = service
        self.lun = lun
        self.state = JobState.CREATED
        self.message = ""
        self.progress = Progress(BLOCK_BYTES)
        self._bucket = TokenBucket(limit_bytes_s, shared.clock())
        self._unwanted = asyncio.Event()
        self._ended = asyncio.Event()
        self._has_slot = False
        self._next_percent = PROGRESS_PERCENT
        self._started_at = shared.clock()
        self._task: asyncio.Task[None] | None = None
        self._carry_out: dict[type, Callable[[Any], Awaitable[object]]] = {
            Turn: self._turn,
            Read: self._read,
            Commit: self._commit,
            WaitForRoom: self._wait_for_room,
        }

    # -- what the manager calls

    def launch(self) -> None:
        self._task = asyncio.create_task(self._run(), name=f"clone-{self.lun.name}")

    @property
    def active(self) -> bool:
        return self.state not in ENDED

    async def stop(self) -> None:
        """Return when the worker is quiet, however it ended."""
        self._unwanted.set()
        await self._ended.wait()

    async def wait(self) -> None:
        await self._ended.wait()

    def set_limit(self, limit_bytes_s: int | None) -> None:
        self._bucket.set_rate(limit_bytes_s, self._shared.clock())

    def rate_bytes_s(self) -> float:
        """0 unless it is at work."""
        return self.progress.rate_bytes_s(self._shared.clock()) if self.state is JobState.RUNNING else 0.0

    def status(self) -> CloneStatus:
        now = self._shared.clock()
        running = self.state is JobState.RUNNING
        return CloneStatus(
            volume=self.service.volume.name,
            lun=self.lun.name,
            lun_uuid=str(self.lun.uuid),
            state=self.state,
            requested=self.lun.clone_requested,
            backing=backing_path(self.lun),
            completed_blocks=self.progress.completed_blocks,
            total_blocks=self.progress.total_blocks,
            copied_blocks=self.progress.copied_blocks,
            percent=self.progress.percent,
            rate_bytes_s=self.rate_bytes_s(),
            remaining_s=self.progress.remaining_s(now) if running else None,
            limit_bytes_s=self._bucket.rate_bytes_s,
            message=self.message,
        )

    # -- the worker

    async def _run(self) -> None:
        try:
            await self._drive()
        except Stopped:
            self._end(JobState.STOPPED, "stopped on request")
        except NoSuchLun:
            self._end(JobState.STOPPED, "the LUN was destroyed, or its backing was dropped by someone else")
        except (WaflError, CloneError, OSError) as error:
            self._end(JobState.FAILED, str(error))
        except Exception as error:
            log.exception("clone of %s", self.lun.name)
            self._end(JobState.FAILED, f"internal error: {error!r}")
        else:
            self._end(JobState.COMPLETED, "")
        finally:
            self._leave_slot()
            self._ended.set()

    async def _drive(self) -> None:
        work = Work(self.service.volume, self.lun, self.progress, self._shared.clock, self._chunk_blocks)
        steps = clone_steps(work)
        outcome: object = None
        error: Exception | None = None
        with contextlib.closing(steps):
            while True:
                try:
                    step: Step = steps.send(outcome) if error is None else steps.throw(error)
                except StopIteration:
                    return
                outcome = error = None
                try:
                    outcome = await self._carry_out[type(step)](step)
                except Exception as caught:
                    error = caught

    async def _turn(self, step: Turn) -> None:
        self._leave_slot()
        if self.state is JobState.CREATED:
            self._move(JobState.RUNNING)
        self._tell_progress()
        wait_s = self._wait_s(step.cost_bytes)
        await self._nap(min(wait_s, LIMIT_LOOK_S))
        while (wait_s := min(wait_s - LIMIT_LOOK_S, self._wait_s(0))) > 0:
            await self._nap(min(wait_s, LIMIT_LOOK_S))
        for _ in range(BACK_OFF_TIMES):
            if not self._shared.guests_waiting(self.service):
                break
            await self._nap(BACK_OFF_S)
        await self._shared.slots.acquire()
        self._has_slot = True
        self._check_wanted()

    def _wait_s(self, cost_bytes: int) -> float:
        now = self._shared.clock()
        return max(self._bucket.take(cost_bytes, now), self._shared.overall.take(cost_bytes, now))

    async def _read(self, step: Read) -> object:
        loop = asyncio.get_running_loop()
        reading = loop.run_in_executor(self._shared.threads, step.plan.read)
        try:
            return await asyncio.shield(reading)
        finally:
            # Cancelled (the loop is being torn down): the plan must not be released under the reading thread.
            if not reading.done():
                await asyncio.wait([reading])

    async def _commit(self, step: Commit) -> None:
        self._leave_slot()
        await self.service.commit()

    async def _wait_for_room(self, step: WaitForRoom) -> None:
        self._leave_slot()
        self._move(JobState.PAUSED, f"the volume is full: goes on when {step.available_bytes >> 10} KiB are free")
        self._tell("paused", self.message)
        while self.service.volume.space().available < step.available_bytes:
            self._check_room_would_help()
            await self._nap(ROOM_LOOK_S)
        self._move(JobState.RUNNING)
        self._tell("resumed", "there is room again")

    def _check_room_would_help(self) -> None:
        if self.lun.destroyed or self.lun.backing is None:
            raise NoSuchLun(self.lun.name)
        failure = self.service.volume.failure
        if failure is not None:
            raise VolumeFailed(f"the volume has failed: {failure}")

    async def _nap(self, seconds: float) -> None:
        """Sleep, or until the job is not wanted any more."""
        self._check_wanted()
        if seconds <= 0:
            await asyncio.sleep(0)
        else:
            sleeping = asyncio.ensure_future(self._shared.sleep(seconds))
            waking = asyncio.ensure_future(self._unwanted.wait())
            try:
                await asyncio.wait([sleeping, waking], return_when=asyncio.FIRST_COMPLETED)
            finally:
                sleeping.cancel()
                waking.cancel()
        self._check_wanted()

    def _check_wanted(self) -> None:
        if self._unwanted.is_set():
            raise Stopped

    def _leave_slot(self) -> None:
        if self._has_slot:
            self._has_slot = False
            self._shared.slots.release()

    def _chunk_blocks(self) -> int:
        limit = self._bucket.rate_bytes_s
        if limit is None:
            return POINTERS
        return max(1, min(POINTERS, limit // (CHUNKS_A_SECOND * BLOCK_BYTES)))

    # -- state and events

    def _move(self, to: JobState, message: str = "") -> None:
        self.state = moved(self.state, to)
        self.message = message

    def _end(self, to: JobState, message: str) -> None:
        if rate := self.rate_bytes_s():
            self._shared.recent_rates[self.service.volume.uuid] = rate
        self._move(to, message)
        data: dict[str, object] = {
            "blocks_copied": self.progress.copied_blocks,
            "blocks_total": self.progress.total_blocks,
            "duration_s": round(self._shared.clock() - self._started_at, 3),
        }
        text = message or f"cloned: {self.progress.copied_blocks} blocks copied, the backing snapshot is released"
        self._tell(to.value, text, **data)

    def _tell_progress(self) -> None:
        percent = self.progress.percent
        if self.progress.total_blocks and percent >= self._next_percent:
            tenth = int(percent) // PROGRESS_PERCENT * PROGRESS_PERCENT
            self._next_percent = tenth + PROGRESS_PERCENT
            self._tell("progress", f"{tenth} percent", percent=tenth)

    def _tell(self, verb: str, message: str, **data: object) -> None:
        volume, lun = self.service.volume.name, self.lun.name
        text = f"clone of /vol/{volume}/{lun}: {message}"
        self._shared.on_event(CloneEvent(f"lun.clone.{verb}", volume, lun, text, data))

    def announce(self, verb: str) -> None:
        """started or restarted"""
        self._tell(verb, f"{verb}, from {backing_path(self.lun)}", backing=backing_path(self.lun))


def backing_path(lun: Lun) -> str:
    backing = lun.backing
    return f".snapshot/{backing.snapshot_name}/{backing.lun_name}" if backing else ""
