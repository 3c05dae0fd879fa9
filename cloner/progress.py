"""How far a job is: blocks, percent, rate and time left.

Rules.  Completed blocks and percent never go back within a run.  100 percent is for a durable detach.
The total is fixed at the start; what guests overwrite meanwhile counts as done when the scan finds it so.
The time is passed in.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from cloner.options import CloneOptions
from cloner.states import JobState

RATE_WINDOW_S = 10.0
"""The rate is that of the last ten seconds of work."""
UNFINISHED_PERCENT = 99.9
"""The most that is shown before the detach is durable."""
MAX_SAMPLES = 64


class Progress:
    def __init__(self, block_bytes: int) -> None:
        self._block_bytes = block_bytes
        self.total_blocks = 0
        self.completed_blocks = 0
        self.copied_blocks = 0
        """Really filled by this run."""
        self.shares = False
        """Blocks are adopted, and nobody looks at each: what is completed without being copied counts as shared."""
        self.present_blocks = 0
        """What the LUN had of its own when this run began, of what its backing has."""
        self.bad_blocks = 0
        """Passed over, because they could not be read."""
        self._samples: deque[tuple[float, int]] = deque(maxlen=MAX_SAMPLES)
        self._begun = self._durable = False

    def begin(self, missing_blocks: int, backed_blocks: int, now: float) -> None:
        self.total_blocks = missing_blocks
        self.present_blocks = max(0, backed_blocks - missing_blocks)
        self._begun = True
        self._samples.append((now, 0))

    def still_missing(self, blocks: int) -> None:
        """What the LUN still misses, by its own count.  Never backwards."""
        self.completed_blocks = max(self.completed_blocks, self.total_blocks - blocks)

    def copied(self, blocks: int, now: float) -> None:
        """Filled by us.  One sample a quarter second is enough for the rate."""
        self.copied_blocks += blocks
        if self._samples and now - self._samples[-1][0] < RATE_WINDOW_S / (MAX_SAMPLES - 1):
            return
        self._samples.append((now, self.copied_blocks))
        while len(self._samples) > 2 and now - self._samples[1][0] > RATE_WINDOW_S:
            self._samples.popleft()

    def detached(self) -> None:
        """The detach is durable."""
        self.completed_blocks = self.total_blocks
        self._durable = True

    @property
    def shared_blocks(self) -> int:
        return max(0, self.completed_blocks - self.copied_blocks) if self.shares else 0

    @property
    def skipped_blocks(self) -> int:
        """Completed without being copied or shared: guests wrote or unmapped them meanwhile."""
        return max(0, self.completed_blocks - self.copied_blocks - self.shared_blocks)

    @property
    def percent(self) -> float:
        if self._durable:
            return 100.0
        if not self._begun:
            return 0.0
        share = self.completed_blocks / self.total_blocks if self.total_blocks else 1.0
        return min(UNFINISHED_PERCENT, 100.0 * share)

    def rate_bytes_s(self, now: float) -> float:
        if not self._samples:
            return 0.0
        since, before = self._samples[0]
        return (self.copied_blocks - before) * self._block_bytes / (now - since) if now > since else 0.0

    def remaining_s(self, now: float) -> float | None:
        """None while it cannot be told."""
        rate = self.rate_bytes_s(now)
        left = (self.total_blocks - self.completed_blocks) * self._block_bytes
        if left == 0:
            return 0.0
        return left / rate if rate > 0 else None


@dataclass(frozen=True, slots=True)
class CloneStatus:
    """One line of `lun clone show`."""

    volume: str
    lun: str
    lun_uuid: str
    state: JobState | None
    """None: the LUN has no job."""
    requested: bool
    """The clone is wanted, also over a restart."""
    backing: str
    """`.snapshot/SNAP/LUN`, empty once detached."""
    completed_blocks: int
    total_blocks: int
    copied_blocks: int
    shared_blocks: int
    skipped_blocks: int
    present_blocks: int
    bad_blocks: int
    percent: float
    rate_bytes_s: float
    remaining_s: float | None
    options: CloneOptions
    position: int
    """Of the request: the lowest came first."""
    queue_place: int | None
    """How many jobs come before it; None: it is not queued."""
    message: str
    """Why it is paused, failed or stopped."""

    @property
    def path(self) -> str:
        return f"/vol/{self.volume}/{self.lun}"
