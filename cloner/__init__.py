"""Lazy clone jobs: fill a snapshot-backed LUN's holes underneath live I/O, then let its backing go.

    manager = CloneManager(on_event, guest_commands=count)     # one for the daemon; on_event gets CloneEvents
    manager.restart_requested(service)            # after a mount: jobs whose request survived; gives the LUN names
    manager.start(service, "lun1", CloneOptions(limit_bytes_s=50_000_000))
    manager.status(service, "lun1")               # CloneStatus, also for a LUN that has no job (state None)
    manager.show(); manager.show(service)         # CloneStatus of every job, of one volume's jobs
    manager.estimate(service, "lun1")             # Estimate: blocks to copy, space needed and there, time
    await manager.look_and_estimate(service, "lun1")    # the same, of what has been counted, and whether it has
    manager.set_options(service, "lun1", options) # while it runs: limit, priority, full speed, error policy
    manager.set_overall_limit(100_000_000); manager.set_running_jobs(4)
    await manager.wait(service, "lun1")           # CloneStatus once the job has ended
    await manager.stop(service, "lun1")           # returns when the worker is quiet and the stop is durable
    await manager.halt(service, "lun1")           # quiet for a moment, the request stays as it is; then start again
    await manager.forget(service)                 # before the volume goes offline: quiet, requests stay as they are
    await manager.close()                         # the same for all volumes

`service` is a `wafl.VolumeService`; a LUN is named by its name within the volume.  Everything runs on the
loop's thread but `FillPlan.read`, which runs in a thread.

    states.py    job states, and the table of legal moves
    options.py   what may be asked of a job
    steps.py     one job as a generator of steps: every decision, no asyncio, no clock
    copying.py   how one level-1 range is copied
    sharing.py   how it is shared instead: the snapshot's blocks become the LUN's by pointer
    room.py      what is left to guests
    estimate.py  what a clone would take, before it is started
    progress.py  blocks done, rate, time left; never goes back
    throttle.py  the bandwidth limits
    guests.py    whether hosts are at work, and how long to rest
    queue.py     which jobs are at work, which wait
    turns.py     fair shares among those at work
    job.py       drives the steps with asyncio
    manager.py   which jobs there are

Order of a clone's end (DESIGN 5): C1 fills durable, detach durable, lock released, in this order.  C2 the
durable consistency point covers the LUN's last fill, whichever run made it.  C3 neither fills nor the detach
are logged.  C4 no detach after an error was passed over.

A request is kept in the LUN's vtoc entry: `start` sets it (durable with the job's first consistency point),
completion and `stop` clear it, a failure leaves it, so a failed clone is tried once more at the next mount.
"""

from cloner.errors import AlreadyCloning, CloneError, DoesNotFit, NotBacked, NotCloning
from cloner.estimate import Estimate, estimate
from cloner.events import CloneEvent
from cloner.manager import RUNNING_JOBS_MAX, CloneManager
from cloner.options import DEFAULTS, CloneOptions, Policy, Priority
from cloner.progress import CloneStatus
from cloner.states import ENDED, JobState

__all__ = [
    "DEFAULTS",
    "ENDED",
    "RUNNING_JOBS_MAX",
    "AlreadyCloning",
    "CloneError",
    "CloneEvent",
    "CloneManager",
    "CloneOptions",
    "CloneStatus",
    "DoesNotFit",
    "Estimate",
    "JobState",
    "NotBacked",
    "NotCloning",
    "Policy",
    "Priority",
    "estimate",
]
