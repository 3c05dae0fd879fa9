"""Whether hosts are at work, and how much of the time a clone leaves them.

Measured by a counter of the hosts' commands, looked at ten times a second: nothing is added to a command.  All hosts
count, not only those of the clone's LUN: they share one thread, and mostly one disk.

A polite clone works in small chunks while hosts are there, one chunk at a time over all jobs, and rests after each a
multiple of the time that it took: longer work, because a disk is busy, makes longer rests.  A rest has a longest, so
a clone goes on however busy hosts are.
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
LONGEST_REST_S = 0.02
CHUNK_BLOCKS = 16
"""Filling 64 KiB keeps the volume's thread for less than a host's command takes; with rests of 20 ms it is 3 MiB/s."""
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
        self._pressure = 0.0

    def pressure(self) -> float:
        """0: no host is at work; 1: they are busy."""
        now = self._clock()
        passed = now - self._looked_at
        if passed >= LOOK_S:
            count = self._commands()
            new, self._count, self._looked_at = count - self._count, count, now
            if new > 0:
                self._pressure = min(1.0, new / passed / BUSY_COMMANDS_S)
                self._seen_at = now
        return self._pressure if now - self._seen_at < QUIET_S else 0.0


def rest_s(worked_s: float, pressure: float) -> float:
    return min(LONGEST_REST_S, worked_s * REST * pressure)
