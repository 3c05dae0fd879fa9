"""Whether hosts are at work, and how much of the time a clone leaves them.

Measured by a counter of the hosts' commands, looked at ten times a second: nothing is added to a command.  All hosts
count, not only those of the clone's LUN: they share one thread, and mostly one disk.

A polite clone works on one level-1 range at a time over all jobs, in a thread that comes after others, and rests after
each for many times as long as that took, and for some hundreds of the hosts' commands: so fewer than one in a hundred
meets it at all, and their p99 is what it was.  Longer work, because a disk is busy, makes longer rests; so do slow
hosts, of which each chunk meets a command however short it is.

A rest has a longest, so a clone goes on however busy or slow hosts are.
"""

from __future__ import annotations

from collections.abc import Callable

LOOK_S = 0.1
QUIET_S = 0.5
"""Hosts that sent nothing for so long are gone."""
BUSY_COMMANDS_S = 50
"""From so many commands a second on a clone rests as long as it ever does; at fewer, accordingly less."""
REST = 200
"""Times the work: half a hundredth of the time is the clone's."""
LONGEST_REST_FOR_WORK_S = 0.2
"""With a level-1 range after each it is 5 MiB/s."""
COMMANDS_BETWEEN = 400
"""Of the hosts, between two chunks: a chunk may meet one command or make two of them late."""
LONGEST_REST_S = 1.0
"""Beside hosts that send fewer than 400 commands a second."""
NICENESS = 10
"""Of the threads that read and write for clones which give way."""
UNSYNCED_BYTES = 16 << 20
"""What a host's flush may have to write beside its own."""


class GuestWatch:
    """`commands()` is the number of commands that hosts have sent so far."""

    def __init__(self, commands: Callable[[], int], clock: Callable[[], float]) -> None:
        self._commands = commands
        self._clock = clock
        self._count = commands()
        self._looked_at = clock()
        self._seen_at = float("-inf")
        self._rate = 0.0

    def commands_s(self) -> float:
        """Of all hosts; 0: none is at work."""
        now = self._clock()
        passed = now - self._looked_at
        if passed >= LOOK_S:
            count = self._commands()
            new, self._count, self._looked_at = count - self._count, count, now
            if new > 0:
                self._rate, self._seen_at = new / passed, now
        return self._rate if now - self._seen_at < QUIET_S else 0.0


def rest_s(worked_s: float, commands_s: float) -> float:
    """After a chunk."""
    if commands_s <= 0:
        return 0.0
    for_work = min(LONGEST_REST_FOR_WORK_S, worked_s * REST)
    rest = min(LONGEST_REST_S, max(for_work, COMMANDS_BETWEEN / commands_s))
    return rest * min(1.0, commands_s / BUSY_COMMANDS_S)
