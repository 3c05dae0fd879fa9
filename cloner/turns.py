"""A gate through which jobs go one chunk at a time, each by its share: start-time fair queueing.

A share's `virtual` time is what it has copied, divided by its weight; the gate lets in whoever has the least.  Who
comes back after a while starts with the time of those who stayed, so nobody saves up for a burst.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(eq=False, slots=True)
class Share:
    weight: int
    virtual: float = 0.0

    def charge(self, cost_bytes: int) -> None:
        self.virtual += cost_bytes / self.weight


class Turns:
    def __init__(self, capacity: Callable[[], int]) -> None:
        self._capacity = capacity
        """How many may be in at once; looked at whenever one leaves or comes."""
        self._waiting: list[tuple[Share, asyncio.Future[None]]] = []
        self._inside = 0
        self._virtual = 0.0
        """Of the share that was let in last."""
        self.rest_until = 0.0
        """Whoever is let in waits for this time before it begins."""

    async def enter(self, share: Share, *, leaving: bool = False) -> None:
        """`leaving` a turn of its own: who asks for the next one before the last is given to somebody else is compared
        with those who wait, so that shares are what they are however few there are."""
        share.virtual = max(share.virtual, self._virtual)
        self._inside -= leaving
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((share, granted))
        self._let_in()
        try:
            await granted
        except asyncio.CancelledError:
            if granted.cancelled():
                self._waiting = [each for each in self._waiting if each[1] is not granted]
            else:
                self.leave()
            raise

    def leave(self) -> None:
        self._inside -= 1
        self._let_in()

    def _let_in(self) -> None:
        waiting = [each for each in self._waiting if not each[1].cancelled()]
        while waiting and self._inside < self._capacity():
            first = min(waiting, key=lambda each: each[0].virtual)
            waiting.remove(first)
            self._inside += 1
            self._virtual = first[0].virtual
            first[1].set_result(None)
        self._waiting = waiting
