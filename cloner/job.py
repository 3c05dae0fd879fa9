"""Drives the steps of one job with asyncio, and keeps its state, limits and events.

Stopping is cooperative: the wish is looked at before every turn and after every wait, so a thread that reads
a plan is never left behind and a stop returns when nothing of the job is under way.  Once the detach has been
made in memory there is no turn any more: completion wins that race.

Before a chunk a job obeys the limits, has a place in the queue (cloner.queue), and has its turn (cloner.turns): one
gate for jobs that give way to guests (cloner.guests), one for those at full speed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any

from cloner import guests
from cloner.copying import copy_level_one
from cloner.errors import CloneError
from cloner.events import CloneEvent, OnEvent
from cloner.guests import GuestWatch, rest_s
from cloner.options import WEIGHTS, CloneOptions, Policy
from cloner.progress import CloneStatus, Progress
from cloner.queue import RunQueue, Ticket
from cloner.sharing import share_level_one
from cloner.states import ENDED, JobState, moved
from cloner.steps import (
    UNSYNCED_FILL_BYTES,
    BeginCommit,
    Commit,
    Outcome,
    Read,
    Step,
    Turn,
    Unsynced,
    WaitForRoom,
    Work,
    clone_steps,
)
from cloner.throttle import TokenBucket
from cloner.turns import Share, Turns
from wafl import (
    BLOCK_BYTES,
    POINTERS,
    FillPlan,
    Lun,
    NoSuchLun,
    VolumeFailed,
    VolumeService,
    WaflError,
    available_bytes,
)

log = logging.getLogger("lund.clone")

LOOK_S = 1.0
"""A job that waits looks this often whether room was made, its limit was raised, its LUN is still there."""
GATE_CAPACITY = 2
"""Chunks under way at once: one can be read while another is installed; more would only add seeks."""
AT_ONCE_BLOCKS = 32
"""So few blocks are copied by the loop itself if they are in memory."""
READERS = 2
"""Threads for the chunk of one job: one waits for the disk while the other writes."""
RANGES = READERS
"""Level-1 ranges in a chunk, while nobody is there to give way to."""
RANGES_BESIDE_GUESTS = 1
"""A chunk of any size holds the loop for nearly as long, once to plan and once to install."""
FULL_SPEED_RANGES = 8
"""Of a job that gives way to nobody."""
FULL_SPEED_UNSYNCED_BYTES = 256 << 20
"""What such a job may leave to the next consistency point: each waits for the disk twice."""
CHUNKS_A_SECOND = 8
"""A limited job fills in chunks small enough for this many turns a second."""
PROGRESS_PERCENT = 10


def read_each(plans: Sequence[FillPlan]) -> list[Outcome]:
    """In a thread."""
    outcomes: list[Outcome] = []
    for plan in plans:
        try:
            outcomes.append(plan.read())
        except Exception as error:
            outcomes.append(error)
    return outcomes


def read_at_once(plan: FillPlan) -> list[Outcome]:
    """Empty if the disk has to be waited for."""
    try:
        done, data = plan.read_nowait()
    except (WaflError, OSError) as error:
        return [error]
    return [data] if done else []


class Stopped(Exception):
    """Thrown into the steps: the job is not wanted any more."""


@dataclass(slots=True)
class Shared:
    """What all jobs of a manager use."""

    on_event: OnEvent
    clock: Callable[[], float]
    sleep: Callable[[float], Awaitable[None]]
    threads: Executor
    quiet_threads: Executor
    """For jobs that give way."""
    queue: RunQueue
    overall: TokenBucket
    guests: GuestWatch
    polite: Turns = field(init=False)
    fast: Turns = field(init=False)
    unsynced: dict[str, Unsynced] = field(default_factory=dict)
    """By the volume's UUID."""
    behind: set[asyncio.Task[None]] = field(default_factory=set)
    """Consistency points that nobody waits for."""
    recent_rates: dict[str, float] = field(default_factory=dict)
    """Bytes a second of the last job of a volume that copied anything, by the volume's UUID."""

    def __post_init__(self) -> None:
        self.polite = Turns(lambda: 1 if self.guests.commands_s() else GATE_CAPACITY)
        self.fast = Turns(lambda: GATE_CAPACITY)


class Job:
    def __init__(
        self, shared: Shared, service: VolumeService, lun: Lun, options: CloneOptions, position: int
    ) -> None:
        self._shared = shared
        self.service = service
        self.lun = lun
        self.options = options
        self.state = JobState.CREATED
        self.message = ""
        self.progress = Progress(BLOCK_BYTES)
        self.ticket = Ticket(position, options.priority)
        self._share = Share(WEIGHTS[options.priority])
        self._bucket = TokenBucket(options.limit_bytes_s, shared.clock())
        self._unwanted = asyncio.Event()
        self._ended = asyncio.Event()
        self._gate: Turns | None = None
        """Where it has its turn just now."""
        self._turn_at = 0.0
        self._next_percent = PROGRESS_PERCENT
        self._started_at = shared.clock()
        self._task: asyncio.Task[None] | None = None
        self._work = Work(
            service.volume, lun, self.progress, shared.clock, self._chunk_blocks,
            share_level_one if options.share else copy_level_one,
            options.policy is Policy.IGNORE, shared.unsynced.setdefault(service.volume.uuid, Unsynced()),
            self._unsynced_limit,
        )  # fmt: skip
        self._carry_out: dict[type, Callable[[Any], Awaitable[object]]] = {
            Turn: self._turn,
            Read: self._read,
            Commit: self._commit,
            BeginCommit: self._begin_commit,
            WaitForRoom: self._wait_for_room,
        }

    # -- what the manager calls

    def launch(self) -> None:
        self._shared.queue.join(self.ticket)
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

    def set_options(self, options: CloneOptions) -> None:
        """Obeyed from the next chunk on."""
        if options.limit_bytes_s != self.options.limit_bytes_s:
            self._bucket.set_rate(options.limit_bytes_s, self._shared.clock())
        self.options = options
        self._work.ignore_bad = options.policy is Policy.IGNORE
        self._share.weight = WEIGHTS[options.priority]
        self.ticket.priority = options.priority
        self._shared.queue.settle()

    def rate_bytes_s(self) -> float:
        """0 unless it is at work."""
        return self.progress.rate_bytes_s(self._shared.clock()) if self.state is JobState.RUNNING else 0.0

    def status(self) -> CloneStatus:
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
            shared_blocks=self.progress.shared_blocks,
            skipped_blocks=self.progress.skipped_blocks,
            present_blocks=self.progress.present_blocks,
            bad_blocks=self.progress.bad_blocks,
            percent=self.progress.percent,
            rate_bytes_s=self.rate_bytes_s(),
            remaining_s=self.progress.remaining_s(self._shared.clock()) if running else None,
            options=self.options,
            position=self.ticket.position,
            queue_place=self._shared.queue.place(self.ticket) if self.state is JobState.QUEUED else None,
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
            self._end(JobState.FAILED, str(error), **getattr(error, "data", {}))
        except Exception as error:
            log.exception("clone of %s", self.lun.name)
            self._end(JobState.FAILED, f"internal error: {error!r}")
        else:
            self._end(JobState.COMPLETED, "")
        finally:
            self._leave_turn()
            self._shared.queue.leave(self.ticket)
            self._ended.set()

    async def _drive(self) -> None:
        steps = clone_steps(self._work)
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
        self._share.charge(step.cost_bytes + step.unlimited_bytes)
        self._tell_progress()
        await self._take_place()
        wait_s = self._wait_s(step.cost_bytes)
        if wait_s > 0:
            self._leave_turn()
            await self._obey_limits(wait_s)
        await self._nap(0)
        await self._take_turn()
        self._check_wanted()

    async def _obey_limits(self, wait_s: float) -> None:
        await self._nap(min(wait_s, LOOK_S))
        while (wait_s := min(wait_s - LOOK_S, self._wait_s(0))) > 0:
            self._check_alive()
            await self._take_place()
            await self._nap(min(wait_s, LOOK_S))

    def _wait_s(self, cost_bytes: int) -> float:
        now = self._shared.clock()
        return max(self._bucket.take(cost_bytes, now), self._shared.overall.take(cost_bytes, now))

    async def _take_place(self) -> None:
        admitted = self.ticket.admitted
        while not admitted.is_set():
            self._leave_turn()
            if self.state is not JobState.QUEUED:
                self._move(JobState.QUEUED)
            self._check_alive()
            await self._nap(LOOK_S, admitted)
        if self.state is not JobState.RUNNING:
            self._move(JobState.RUNNING)

    async def _take_turn(self) -> None:
        gate = self._shared.fast if self.options.full_speed else self._shared.polite
        if self._gate is not gate:
            self._leave_turn()
        leaving, self._gate = self._gate is gate, None
        if leaving:
            self._rest_after(gate)
        await gate.enter(self._share, leaving=leaving)
        self._gate = gate
        now = self._shared.clock()
        if gate.rest_until > now:  # too short to be woken from
            await self._shared.sleep(gate.rest_until - now)
        self._turn_at = self._shared.clock()

    def _leave_turn(self) -> None:
        gate, self._gate = self._gate, None
        if gate is not None:
            self._rest_after(gate)
            gate.leave()

    def _rest_after(self, gate: Turns) -> None:
        if gate is self._shared.polite:
            now = self._shared.clock()
            gate.rest_until = now + rest_s(now - self._turn_at, self._shared.guests.commands_s())

    async def _read(self, step: Read) -> list[Outcome]:
        plans = step.plans
        # What is in memory is read sooner than a thread is woken.
        if len(plans) == 1 and plans[0].blocks <= AT_ONCE_BLOCKS:
            outcomes = read_at_once(plans[0])
            if outcomes:
                await asyncio.sleep(0)
                return outcomes
        loop = asyncio.get_running_loop()
        shares = [plans[first::READERS] for first in range(min(READERS, len(plans)))]
        threads = self._shared.quiet_threads if self._gives_way else self._shared.threads
        reading = [loop.run_in_executor(threads, read_each, share) for share in shares]
        try:
            await asyncio.shield(asyncio.gather(*reading))
        finally:
            # Cancelled (the loop is being torn down): no plan must be released under the thread that reads it.
            await asyncio.wait(reading)
        outcomes = [None] * len(plans)
        for first, each in enumerate(reading):
            outcomes[first::READERS] = each.result()
        return outcomes

    async def _commit(self, step: Commit) -> None:
        self._leave_turn()
        begun = self._work.unsynced.begin()
        await self.service.commit()
        self._work.unsynced.end(begun)

    async def _begin_commit(self, step: BeginCommit) -> None:
        task = asyncio.create_task(self._commit_behind(self._work.unsynced.begin()))
        self._shared.behind.add(task)
        task.add_done_callback(self._shared.behind.discard)

    async def _commit_behind(self, begun: int) -> None:
        with contextlib.suppress(VolumeFailed):  # whoever waits for the next one is told
            await self.service.commit()
            self._work.unsynced.end(begun)

    async def _wait_for_room(self, step: WaitForRoom) -> None:
        self._leave_turn()
        self._shared.queue.leave(self.ticket)
        wanted = -(-step.available_bytes >> 20)
        self._move(JobState.PAUSED, f"the volume is full: goes on when {wanted} MiB are available")
        self._tell("paused", self.message)
        why, reserved = "there is room again", self.lun.reserved
        while available_bytes(self.service.volume) < step.available_bytes:
            self._check_alive()
            if self.lun.misses_nothing():  # its end may be what makes room
                why = "guests have left nothing to copy"
                break
            if self.lun.reserved and not reserved:
                why = "space is kept back for the LUN now"
                break
            await self._nap(LOOK_S)
        self._tell("resumed", why)
        self._shared.queue.join(self.ticket)
        await self._take_place()

    def _check_alive(self) -> None:
        """There is something to wait for."""
        if self.lun.destroyed or self.lun.backing is None:
            raise NoSuchLun(self.lun.name)
        failure = self.service.volume.failure
        if failure is not None:
            raise VolumeFailed(f"the volume has failed: {failure}")

    async def _nap(self, seconds: float, *events: asyncio.Event) -> None:
        """Sleep, until one of the events, or until the job is not wanted any more."""
        self._check_wanted()
        if seconds <= 0:
            await asyncio.sleep(0)
        else:
            waits: list[asyncio.Future[Any]] = [asyncio.ensure_future(self._shared.sleep(seconds))]
            waits += [asyncio.ensure_future(event.wait()) for event in (self._unwanted, *events)]
            try:
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for each in waits:
                    each.cancel()
        self._check_wanted()

    def _check_wanted(self) -> None:
        if self._unwanted.is_set():
            raise Stopped

    @property
    def _gives_way(self) -> bool:
        return not self.options.full_speed and self._shared.guests.commands_s() > 0

    def _chunk_blocks(self) -> int:
        ranges = FULL_SPEED_RANGES if self.options.full_speed else RANGES_BESIDE_GUESTS if self._gives_way else RANGES
        limits = (self.options.limit_bytes_s, self._shared.overall.rate_bytes_s)
        of_limits = [limit // (CHUNKS_A_SECOND * BLOCK_BYTES) for limit in limits if limit is not None]
        return max(1, min([ranges * POINTERS, *of_limits]))

    def _unsynced_limit(self) -> int:
        if self.options.full_speed:
            return FULL_SPEED_UNSYNCED_BYTES
        return guests.UNSYNCED_BYTES if self._gives_way else UNSYNCED_FILL_BYTES

    # -- state and events

    def _move(self, to: JobState, message: str = "") -> None:
        self.state = moved(self.state, to)
        self.message = message

    def _end(self, to: JobState, message: str, **details: object) -> None:
        if rate := self.rate_bytes_s():
            self._shared.recent_rates[self.service.volume.uuid] = rate
        self._move(to, message)
        data: dict[str, object] = {
            "blocks_copied": self.progress.copied_blocks,
            "blocks_shared": self.progress.shared_blocks,
            "blocks_skipped": self.progress.skipped_blocks,
            "blocks_present": self.progress.present_blocks,
            "blocks_total": self.progress.total_blocks,
            "duration_s": round(self._shared.clock() - self._started_at, 3),
        }
        done = f"{self.progress.copied_blocks} blocks copied"
        if self.options.share:
            done = f"{self.progress.shared_blocks} blocks shared, {done}"
        text = message or f"cloned: {done}, the backing snapshot is released"
        self._tell(to.value, text, **data, **details)

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
