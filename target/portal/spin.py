"""A bounded spin: for a while after a portal's last traffic the loop looks for more without sleeping.

At queue depth 1 most of a command's time is the processor waking up the process that slept in the poll.  While a
callback is due the loop polls without waiting, whichever loop it is; this keeps one due.  It costs the time of a core
for as long as it goes on, so it is an option of a portal, off unless asked for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import perf_counter

SPIN_MAX_US = 1000


class Spinner:
    """Of one listener, for all of its connections."""

    # Not the loop's clock: uvloop's counts milliseconds, and stands still within a round.
    def __init__(
        self, loop: asyncio.AbstractEventLoop, spin_us: int, clock: Callable[[], float] = perf_counter
    ) -> None:
        self._loop = loop
        self._spin_s = spin_us / 1e6
        self._clock = clock
        self._until = 0.0
        self._turning = False

    def touch(self) -> None:
        """Something was received or sent: look for more from now on."""
        self._until = self._clock() + self._spin_s
        if not self._turning:
            self._turning = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        if self._clock() < self._until:
            self._loop.call_soon(self._turn)
        else:
            self._turning = False
