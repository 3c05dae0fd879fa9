"""Which clone jobs there are.  All calls are made on the loop's thread.

A job belongs to a LUN (by its UUID, so renaming one changes nothing); a LUN has one job at most.  An ended job
stays visible until the LUN is cloned again, destroyed, or its volume goes offline.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor

from cloner.errors import AlreadyCloning, DoesNotFit, NotBacked, NotCloning
from cloner.estimate import Estimate, available_for, estimate, fill_bytes
from cloner.events import OnEvent
from cloner.guests import NICENESS, GuestWatch
from cloner.job import GATE_CAPACITY, READERS, Job, Shared, backing_path
from cloner.options import DEFAULTS, CloneOptions
from cloner.progress import CloneStatus
from cloner.queue import RunQueue
from cloner.throttle import TokenBucket
from wafl import Lun, NoSuchLun, VolumeService, WaflError, recount_missing

Remembered = tuple[CloneOptions, int | None]
"""What a request asked for, and its position; None: unknown."""

RUNNING_JOBS = 8
"""Jobs at work at once, unless somebody wants another number: more of them finish no sooner."""
RUNNING_JOBS_MAX = 1000
LOOKS = 1 << 12
"""Level-1 buffers in which something is missing that an estimate compares unasked: some tenths of a second, 4 GiB."""
READ_THREADS = 2 * READERS * GATE_CAPACITY


def no_commands() -> int:
    return 0


class CloneManager:
    """`guest_commands()` is the number of commands that hosts have sent so far: jobs give way while it grows.
    `clock` and `sleep` are for the tests."""

    def __init__(
        self,
        on_event: OnEvent,
        *,
        guest_commands: Callable[[], int] = no_commands,
        running_jobs: int = RUNNING_JOBS,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._shared = Shared(
            on_event=on_event,
            clock=clock,
            sleep=sleep,
            threads=ThreadPoolExecutor(READ_THREADS, thread_name_prefix="clone-read"),
            quiet_threads=ThreadPoolExecutor(
                GATE_CAPACITY, thread_name_prefix="clone-quiet", initializer=os.nice, initargs=(NICENESS,)
            ),
            queue=RunQueue(running_jobs),
            overall=TokenBucket(None, clock()),
            guests=GuestWatch(guest_commands, clock),
        )
        self._jobs: dict[str, Job] = {}
        self._last_position = 0

    # -- commands

    def check_start(self, service: VolumeService, lun_name: str, *, force: bool = False) -> Lun:
        """Raises NoSuchLun, NotBacked, AlreadyCloning, ReadOnlyVolume, VolumeFailed; DoesNotFit unless forced."""
        service.volume.core.check_writable()
        lun = service.volume.lun(lun_name)
        if lun.backing is None:
            raise NotBacked(lun_name)
        old = self._jobs.get(_key(lun))
        if old is not None and old.active:
            raise AlreadyCloning(lun_name)
        if not force:
            self._check_fits(service, lun)
        return lun

    def _check_fits(self, service: VolumeService, lun: Lun) -> None:
        jobs = [job for job in self._jobs.values() if job.active and job.service is service]
        others = [job.lun for job in jobs if not job.options.share]
        promised = sum(fill_bytes(each) for each in others if not each.reserved)
        if lun.reserved or 2 * fill_bytes(lun) + promised <= available_for(service.volume, lun):
            return
        found = estimate(service.volume, lun)
        if found.needed_bytes + promised > found.available_bytes:
            raise DoesNotFit(lun.name, found.needed_bytes + promised, found.available_bytes)

    async def look_closer(self, service: VolumeService, lun_name: str) -> None:
        """Before `check_start`: where a clone seems not to fit, what the LUN misses is counted, for it may be less than
        was known.  Raises NoSuchLun, BackingLost, CorruptVolume, OSError."""
        lun = service.volume.lun(lun_name)
        if not self._seems_to_fit(service, lun):
            await _count(service, lun)

    async def look_and_estimate(self, service: VolumeService, lun_name: str) -> Estimate:
        """`estimate` of what has been counted, if that is no long work or the clone seems not to fit.  Raises
        NoSuchLun, CorruptVolume, BackingLost, OSError."""
        lun = service.volume.lun(lun_name)
        counted = await _count(service, lun, LOOKS)
        if not counted and not self._seems_to_fit(service, lun):
            counted = await _count(service, lun)
        return self.estimate(service, lun.name, counted=counted)

    def _seems_to_fit(self, service: VolumeService, lun: Lun) -> bool:
        try:
            self._check_fits(service, lun)
        except DoesNotFit:
            return False
        return True

    def start(
        self,
        service: VolumeService,
        lun_name: str,
        options: CloneOptions = DEFAULTS,
        *,
        force: bool = False,
        position: int | None = None,
    ) -> CloneStatus:
        """Start cloning, or queue it.  The request is durable with the next consistency point, which the job asks for
        at once.  `position`: of the request, if it was made before.  Raises what `check_start` raises."""
        lun = self.check_start(service, lun_name, force=force or options.share)
        if not lun.clone_requested:  # a restore has asked for it already, and nothing may be refused after one
            lun.set_clone_requested(True)
        return self._launch(service, lun, options, position, "started")

    def next_position(self) -> int:
        """For a request that is to be remembered: it has this place among those of its priority."""
        self._last_position += 1
        return self._last_position

    async def stop(self, service: VolumeService, lun_name: str) -> CloneStatus:
        """Stop, keeping what was filled.  Returns when the worker is quiet and a crash would not restart it;
        if completion won the race the status says completed.  Raises NoSuchLun, NotCloning."""
        lun = service.volume.lun(lun_name)
        job = self._jobs.get(_key(lun))
        if not (job is not None and job.active) and not lun.clone_requested:
            raise NotCloning(lun_name)
        # First the request, then the worker: a crash in between restarts nothing that was asked to stop.
        if lun.clone_requested:
            lun.set_clone_requested(False)
        if job is not None:
            await job.stop()
        await service.durable()
        return self.status(service, lun_name)

    async def halt(self, service: VolumeService, lun_name: str) -> CloneStatus | None:
        """Make the LUN's job quiet and leave the request as it is, for what changes the LUN underneath.  What it was
        doing, or None if it had ended or there was none.  Raises NoSuchLun."""
        job = self._jobs.get(_key(service.volume.lun(lun_name)))
        if job is None or not job.active:
            return None
        status = job.status()
        await job.stop()
        return status

    def set_options(self, service: VolumeService, lun_name: str, options: CloneOptions) -> None:
        """Of a job that has not ended, obeyed from its next chunk on.  Raises NoSuchLun, NotCloning."""
        self._active_job(service, lun_name).set_options(options)

    def set_running_jobs(self, number: int) -> None:
        """Those that are too many wait."""
        if not 1 <= number <= RUNNING_JOBS_MAX:
            raise ValueError(f"1 to {RUNNING_JOBS_MAX} jobs may run at a time")
        self._shared.queue.set_limit(number)

    @property
    def running_jobs(self) -> int:
        return self._shared.queue.limit

    @property
    def overall_limit_bytes_s(self) -> int | None:
        return self._shared.overall.rate_bytes_s

    def set_overall_limit(self, limit_bytes_s: int | None) -> None:
        """All jobs together."""
        self._shared.overall.set_rate(limit_bytes_s, self._shared.clock())

    async def wait(self, service: VolumeService, lun_name: str) -> CloneStatus:
        """The status when the LUN's job has ended.  Raises NoSuchLun, NotCloning (it never had one)."""
        job = self._jobs.get(_key(service.volume.lun(lun_name)))
        if job is None:
            raise NotCloning(lun_name)
        await job.wait()
        return job.status()

    # -- volumes come and go

    def restart_requested(
        self, service: VolumeService, remembered: Callable[[Lun], Remembered] = lambda lun: (DEFAULTS, None)
    ) -> list[str]:
        """After a mount: restart the jobs that were wanted when the volume went away, as they were asked for.  The
        names of their LUNs, in that order."""
        names = []
        wanted = [(lun, *remembered(lun)) for lun in service.volume.luns() if lun.clone_requested]
        for lun, options, position in sorted(wanted, key=lambda each: (each[2] is None, each[2] or 0)):
            if lun.backing is None:
                # Cannot happen by our own doing: detach and request go in one consistency point.
                lun.set_clone_requested(False)
                continue
            self._launch(service, lun, options, position, "restarted")
            names.append(lun.name)
        return names

    async def forget(self, service: VolumeService) -> None:
        """Make the volume's jobs quiet and drop them; requests stay, for the next mount."""
        mine = {key: job for key, job in self._jobs.items() if job.service is service}
        await asyncio.gather(*(job.stop() for job in mine.values()))
        for key in mine:
            self._jobs.pop(key, None)

    async def close(self) -> None:
        for service in {id(job.service): job.service for job in self._jobs.values()}.values():
            await self.forget(service)
        await asyncio.gather(*self._shared.behind)
        for threads in (self._shared.threads, self._shared.quiet_threads):
            threads.shutdown(wait=True)

    # -- questions

    def status(self, service: VolumeService, lun_name: str) -> CloneStatus:
        """Raises NoSuchLun."""
        lun = service.volume.lun(lun_name)
        job = self._jobs.get(_key(lun))
        return job.status() if job is not None else idle_status(service, lun)

    def show(self, service: VolumeService | None = None) -> list[CloneStatus]:
        """All jobs, ended ones too, in the order of their start."""
        self._drop_destroyed()
        return [job.status() for job in self._jobs.values() if service is None or job.service is service]

    def estimate(self, service: VolumeService, lun_name: str, *, counted: bool = False) -> Estimate:
        """What the clone of a LUN would take, or what is left of it.  Raises NoSuchLun, CorruptVolume, BackingLost,
        OSError."""
        lun = service.volume.lun(lun_name)
        job = self._jobs.get(_key(lun))
        rate = job.rate_bytes_s() if job is not None else 0.0
        rate_or_last = rate or self._shared.recent_rates.get(service.volume.uuid)
        return estimate(service.volume, lun, rate_or_last, counted=counted)

    # -- inside

    def _launch(
        self, service: VolumeService, lun: Lun, options: CloneOptions, position: int | None, verb: str
    ) -> CloneStatus:
        self._drop_destroyed()
        if position is None:
            position = self.next_position()
        self._last_position = max(self._last_position, position)
        job = Job(self._shared, service, lun, options, position)
        self._jobs.pop(_key(lun), None)
        self._jobs[_key(lun)] = job
        job.announce(verb)
        job.launch()
        return job.status()

    def _active_job(self, service: VolumeService, lun_name: str) -> Job:
        job = self._jobs.get(_key(service.volume.lun(lun_name)))
        if job is None or not job.active:
            raise NotCloning(lun_name)
        return job

    def _drop_destroyed(self) -> None:
        for key, job in list(self._jobs.items()):
            if not job.active and not _exists(job):
                del self._jobs[key]


async def _count(service: VolumeService, lun: Lun, *most: int) -> bool:
    """What the LUN misses; whether that was counted to the end."""
    if lun.backing is None or service.volume.read_only:
        return False
    counting = recount_missing(lun, *most)
    while True:
        try:
            next(counting)
        except StopIteration as end:
            return bool(end.value)
        await asyncio.sleep(0)


def _key(lun: Lun) -> str:
    return str(lun.uuid)


def _exists(job: Job) -> bool:
    try:
        return str(job.service.volume.lun(job.lun.name).uuid) == _key(job.lun)
    except NoSuchLun:
        return False
    except WaflError:
        return True


def idle_status(service: VolumeService, lun: Lun) -> CloneStatus:
    """Of a LUN without a job."""
    missing = lun.missing_blocks() if lun.backing else 0
    return CloneStatus(
        volume=service.volume.name,
        lun=lun.name,
        lun_uuid=str(lun.uuid),
        state=None,
        requested=lun.clone_requested,
        backing=backing_path(lun),
        completed_blocks=0,
        total_blocks=missing,
        copied_blocks=0,
        shared_blocks=0,
        skipped_blocks=0,
        present_blocks=0,
        bad_blocks=0,
        percent=0.0 if lun.backing else 100.0,
        rate_bytes_s=0.0,
        remaining_s=None,
        options=DEFAULTS,
        position=0,
        queue_place=None,
        message="",
    )
