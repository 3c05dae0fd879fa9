"""What may be asked of a clone job, at its start and while it runs."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Priority(StrEnum):
    LOW = "low"
    NORMAL = "normal"
    HIGH = "high"


WEIGHTS = {Priority.LOW: 1, Priority.NORMAL: 4, Priority.HIGH: 16}
"""Shares of what the jobs at work copy together."""
RANKS = {Priority.HIGH: 0, Priority.NORMAL: 1, Priority.LOW: 2}
"""Who has a place to work first."""


class Policy(StrEnum):
    """What to do about a block of the backing that cannot be read (the names are QEMU's, of its block jobs)."""

    REPORT = "report"
    """End as failed."""
    IGNORE = "ignore"
    """Copy everything else, then end as failed: such a job never detaches."""


@dataclass(frozen=True, slots=True)
class CloneOptions:
    limit_bytes_s: int | None = None
    priority: Priority = Priority.NORMAL
    full_speed: bool = False
    """Give way to nobody."""
    policy: Policy = Policy.REPORT
    share: bool = False
    """Adopt the backing's blocks by pointer instead of copying them."""

    def __post_init__(self) -> None:
        if self.limit_bytes_s is not None and self.limit_bytes_s <= 0:
            raise ValueError("a bandwidth limit must be at least 1 byte a second")


DEFAULTS = CloneOptions()
