"""Who may be at work: a number of jobs at a time, by priority, first come first served within one.

The first `limit` of all tickets have a place.  So a job with a higher priority takes the place of one with a lower,
and so does a job that comes back (from a pause) if it is the older one; who lost a place waits for the next.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from cloner.options import RANKS, Priority


@dataclass(eq=False, slots=True)
class Ticket:
    position: int
    """Of the request: the lowest came first."""
    priority: Priority
    admitted: asyncio.Event = field(default_factory=asyncio.Event)


class RunQueue:
    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._tickets: set[Ticket] = set()
        self._places: dict[Ticket, int] = {}
        """As of the last `settle`."""

    @property
    def limit(self) -> int:
        return self._limit

    def set_limit(self, limit: int) -> None:
        self._limit = limit
        self.settle()

    def join(self, ticket: Ticket) -> None:
        self._tickets.add(ticket)
        self.settle()

    def leave(self, ticket: Ticket) -> None:
        """Harmless if it is not there."""
        if ticket in self._tickets:
            self._tickets.remove(ticket)
            ticket.admitted.clear()
            self.settle()

    def place(self, ticket: Ticket) -> int | None:
        """How many are to get a place before this one; None: it waits for none."""
        if ticket not in self._tickets or ticket.admitted.is_set():
            return None
        return self._places[ticket] - self._limit

    def settle(self) -> None:
        """After a change, also of a ticket's priority."""
        self._places = {ticket: number for number, ticket in enumerate(self._order())}
        for ticket, number in self._places.items():
            if number >= self._limit:
                ticket.admitted.clear()
            elif not ticket.admitted.is_set():
                ticket.admitted.set()

    def _order(self) -> list[Ticket]:
        return sorted(self._tickets, key=lambda ticket: (RANKS[ticket.priority], ticket.position))
