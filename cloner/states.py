"""The states of a clone job and the moves between them.  A move that is not in the table is a bug of ours.

    created --> running --> completed
       |        ^  |  \\--> failed
       |        |  v  \\--> stopped
       |       paused --> failed, stopped
       \\--> failed, stopped

Completed means: the detach is durable.  Nothing leaves an end state; starting again makes a new job.
"""

from __future__ import annotations

from enum import StrEnum


class JobState(StrEnum):
    CREATED = "created"
    """Accepted; its request is not durable yet."""
    RUNNING = "running"
    PAUSED = "paused"
    """The volume is out of space for fills; goes on by itself."""
    COMPLETED = "completed"
    FAILED = "failed"
    """Stopped by an error; the backing is kept."""
    STOPPED = "stopped"


LEGAL: dict[JobState, frozenset[JobState]] = {
    JobState.CREATED: frozenset({JobState.RUNNING, JobState.FAILED, JobState.STOPPED}),
    JobState.RUNNING: frozenset({JobState.PAUSED, JobState.COMPLETED, JobState.FAILED, JobState.STOPPED}),
    JobState.PAUSED: frozenset({JobState.RUNNING, JobState.FAILED, JobState.STOPPED}),
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
