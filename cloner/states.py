"""The states of a clone job and the moves between them.  A move that is not in the table is a bug of ours.

    created --> queued, running
    queued  --> running
    running --> queued, paused, completed
    paused  --> queued, running
    all of these --> failed, stopped

A running job goes back to queued when one that comes before it wants its place.  Completed means: the detach is
durable.  Nothing leaves an end state; starting again makes a new job.
"""

from __future__ import annotations

from enum import StrEnum


class JobState(StrEnum):
    CREATED = "created"
    """Accepted; its request is not durable yet."""
    QUEUED = "queued"
    """As many jobs run as may; goes on by itself."""
    RUNNING = "running"
    PAUSED = "paused"
    """The volume is out of space for fills; goes on by itself."""
    COMPLETED = "completed"
    FAILED = "failed"
    """Stopped by an error; the backing is kept."""
    STOPPED = "stopped"


CUT_SHORT = frozenset({JobState.FAILED, JobState.STOPPED})

LEGAL: dict[JobState, frozenset[JobState]] = {
    JobState.CREATED: CUT_SHORT | {JobState.QUEUED, JobState.RUNNING},
    JobState.QUEUED: CUT_SHORT | {JobState.RUNNING},
    JobState.RUNNING: CUT_SHORT | {JobState.QUEUED, JobState.PAUSED, JobState.COMPLETED},
    JobState.PAUSED: CUT_SHORT | {JobState.QUEUED, JobState.RUNNING},
    JobState.COMPLETED: frozenset(),
    JobState.FAILED: frozenset(),
    JobState.STOPPED: frozenset(),
}

ENDED = frozenset(state for state, onward in LEGAL.items() if not onward)


class IllegalMove(AssertionError):
    pass


def moved(state: JobState, to: JobState) -> JobState:
    """`to`, if the table allows the move."""
    if to not in LEGAL[state]:
        raise IllegalMove(f"clone job: {state} -> {to}")
    return to
