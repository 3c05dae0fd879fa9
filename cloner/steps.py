"""One clone job as a generator of steps: every decision about what to fill, when to sync and when to detach.

It knows the volume and the LUN.  It knows no asyncio, no thread and no clock: it yields a Step, and whoever
drives it carries the step out and sends the outcome, or throws the error, back in.  So a test can put any
guest operation, stop or error between any two steps.

Rules.
- Between the answer to a Read and the install nothing is yielded: `install_fill` looks again at every pointer,
  so what a guest wrote meanwhile stays (spec: the active file system's own blocks win).
- No plan stays open over a yield other than its own Read; a plan keeps freed blocks from being used again, and may
  have places of its own.
- The detach follows a pass over the whole LUN that found nothing, and only when a durable consistency point
  covers every fill, whichever run made it (C2).  The specification's shortcut "nothing was dirtied in this
  pass, so no sync" is unsafe when an earlier, stopped run left fills that are not durable.
- An error ends the job; or, where the policy is to go on, the pass in which it was met: what was passed over is
  never forgotten, and never followed by a detach (C4).

How one level-1 range gets what it misses is the mode's (`Work.fill`): cloner.copying.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

from cloner.errors import PassedOver
from cloner.progress import Progress
from wafl import FillPlan, Lun, NoSuchLun, Volume

UNSYNCED_FILL_BYTES = 64 << 20
"""There is never more that no consistency point covers, so that a guest's flush never pays for more.  One is begun at
half of it, so that a job need not wait for it."""
OFFSETS_KEPT = 20
"""Of blocks that were passed over."""


@dataclass(frozen=True, slots=True)
class Turn:
    """Let guests and other jobs go first, and obey the limits, for `cost_bytes` filled since the last turn."""

    cost_bytes: int
    unlimited_bytes: int = 0
    """What else counts for whose turn it is, but not for the limits."""


@dataclass(frozen=True, slots=True)
class Read:
    """Run `read()` of each of the plans in threads; send back, for each, what it returned or the error it raised."""

    plans: Sequence[FillPlan]


@dataclass(frozen=True, slots=True)
class Commit:
    """Wait for a consistency point that covers everything done so far."""


@dataclass(frozen=True, slots=True)
class BeginCommit:
    """See that a consistency point is under way that covers everything done so far; wait for nothing."""


@dataclass(frozen=True, slots=True)
class WaitForRoom:
    """Pause until the volume has this many bytes free."""

    available_bytes: int


Step = Turn | Read | Commit | BeginCommit | WaitForRoom
Steps = Generator[Step, Any, None]
Outcome = bytearray | Exception | None
"""Of a plan's `read`."""
Filling = Generator[Step, Any, bool]


@dataclass(slots=True)
class Unsynced:
    """Fills of one volume, all its jobs together, that no consistency point covers."""

    filled_bytes: int = 0
    """Ever."""
    begun_bytes: int = 0
    """Of these, what a consistency point that has begun covers."""
    synced_bytes: int = 0
    """Of these, what one that has ended covered."""

    @property
    def bytes(self) -> int:
        return self.filled_bytes - self.synced_bytes

    def begin(self) -> int:
        """A consistency point begins: pass this to `end` when it has ended."""
        self.begun_bytes = self.filled_bytes
        return self.filled_bytes

    def end(self, begun_bytes: int) -> None:
        self.synced_bytes = max(self.synced_bytes, begun_bytes)


@dataclass(slots=True)
class Work:
    """What the steps of one job share."""

    volume: Volume
    lun: Lun
    progress: Progress
    now: Callable[[], float]
    chunk_blocks: Callable[[], int]
    """Blocks to fill at once: small when the job has a low limit, or guests are there; several level-1 ranges at full
    speed."""
    fill: Callable[[Work, int], Filling]
    """Fills what a level-1 range misses; whether it missed anything."""
    ignore_bad: bool = False
    """Go on after a source block that cannot be read."""
    unsynced: Unsynced = field(default_factory=Unsynced)
    unsynced_limit: Callable[[], int] = lambda: UNSYNCED_FILL_BYTES
    bad_offsets: list[int] = field(default_factory=list)
    """Of the first blocks that were passed over."""

    def check_wanted(self) -> None:
        """The LUN may have been destroyed, or its backing dropped, while a step was carried out."""
        if self.volume.lun(self.lun.name) is not self.lun or self.lun.backing is None:
            raise NoSuchLun(self.lun.name)

    @property
    def source(self) -> str:
        """What the LUN reads through, for people."""
        backing = self.lun.backing
        return f"LUN {backing.lun_name!r} of snapshot {backing.snapshot_name!r}" if backing else "its backing"


def clone_steps(work: Work) -> Steps:
    """The whole job.  Returns when the detach is durable; raises what stopped it."""
    yield Commit()  # the request is durable: a crash from here on restarts the job
    yield Turn(0)
    work.check_wanted()
    work.progress.begin(work.lun.missing_blocks(), work.lun.backed_blocks(), work.now())
    while (yield from _misses_something(work)):
        pass
    work.lun.detach()
    work.lun.set_clone_requested(False)
    yield Commit()  # C1: only this makes the detach true, and the snapshot deletable
    work.progress.detached()


def _misses_something(work: Work) -> Filling:
    """One pass.  False: everything is there, and durable, since one pass over one and the same tree and backing: a
    restore needs another."""
    inode, backing = work.lun.inode, work.lun.backing
    if (yield from _pass(work)):
        return True
    while not work.lun.fills_durable:
        yield from commit(work)
    return work.lun.inode is not inode or work.lun.backing != backing


def commit(work: Work) -> Generator[Step, Any, None]:
    yield Commit()
    work.check_wanted()


def sync_now_and_then(work: Work) -> Generator[Step, Any, None]:
    """After a fill."""
    unsynced, limit = work.unsynced, work.unsynced_limit()
    if unsynced.bytes >= limit:
        yield from commit(work)
    elif unsynced.filled_bytes - unsynced.begun_bytes >= limit // 2:
        yield BeginCommit()
        work.check_wanted()


def _pass(work: Work) -> Filling:
    """Scan the whole LUN once; True if anything was found missing."""
    found = False
    index = work.lun.next_missing(0)
    while index is not None:
        found |= yield from work.fill(work, index)
        index = work.lun.next_missing(index + 1)
    if work.progress.bad_blocks:
        raise PassedOver(work.lun.name, work.progress.bad_blocks, work.bad_offsets, work.source)
    return found
