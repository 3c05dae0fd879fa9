"""Whether hosts are at work, and how much of the time a clone leaves them.

Measured by a counter of the hosts' commands, looked at ten times a second: nothing is added to a command.  All hosts
count, not only those of the clone's LUN: they share one thread, and mostly one disk.

A polite clone works in small chunks while hosts are there, one chunk at a time over all jobs, and rests after each:

- a multiple of the time that it took: longer work, because a disk is busy, makes longer rests;
- so long that few of the hosts' commands meet a chunk at all: with one command under way at a time each chunk delays
  one, and fewer than one in a hundred must be.

A rest has a longest, so a clone goes on however busy hosts are.
"""

from __future__ import annotations

from collections.abc import Callable

LOOK_S = 0.1
QUIET_S = 0.5
"""Hosts that sent nothing for so long are gone."""
BUSY_COMMANDS_S = 50
"""From so many commands a second on a clone rests as long as it ever does; at fewer, accordingly less."""
REST = 4
"""Times the work: a fifth of the time is the clone's."""
COMMANDS_A_CHUNK = 300
"""Not more than one chunk in so many commands, as far as the longest rest allows: it holds them up twice, once to plan
and read, once to install."""
LONGEST_REST_S = 0.02
CHUNK_BLOCKS = 32
"""128 KiB: smaller ones cost nearly as much time each.  With the longest rests it is 6 MiB/s."""
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
    pressure = min(1.0, commands_s / BUSY_COMMANDS_S)
    return min(LONGEST_REST_S, pressure * max(worked_s * REST, COMMANDS_A_CHUNK / commands_s))
