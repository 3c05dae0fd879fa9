"""A Platform whose time, turns and disk the test commands."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable, Mapping

from target.scsi.platform import SaveDone

STEPS = 100_000
"""More turns than any test needs: a job that never ends fails here."""


class ManualPlatform:
    def __init__(self, saved: Mapping[str, bytes] | None = None) -> None:
        self.saved: dict[str, bytes] = dict(saved or {})
        """What a restart would find; durable once `finish_saves` was called."""
        self.time = 1000.0
        self.saves: list[tuple[str, bytes, SaveDone]] = []
        self.calls: list[tuple[float, int, Callable[[], None]]] = []
        self.notes: list[str] = []
        self._order = itertools.count()

    def save(self, name: str, value: bytes, done: SaveDone) -> None:
        self.saves.append((name, value, done))

    def finish_saves(self, error: BaseException | None = None) -> None:
        waiting, self.saves = self.saves, []
        for name, value, done in waiting:
            if error is None:
                self.saved[name] = value
            done(error)

    def note(self, kind: str, what: str) -> None:
        self.notes.append(what)

    def call_later(self, delay_s: float, call: Callable[[], None]) -> None:
        heapq.heappush(self.calls, (self.time + delay_s, next(self._order), call))

    def step(self) -> None:
        """One turn of the loop: what comes next, whenever it is due."""
        when, _, call = heapq.heappop(self.calls)
        self.time = max(self.time, when)
        call()

    def run(self) -> None:
        """Turns, saves included, until nothing is left to do."""
        for _ in range(STEPS):
            if self.saves:
                self.finish_saves()
            elif self.calls:
                self.step()
            else:
                return
        raise AssertionError("the work never ends")

    def random_bytes(self, size: int) -> bytes:
        return random.Random(next(self._order)).randbytes(size)

    def now(self) -> float:
        return self.time

    def wall_clock(self) -> float:
        return 1_700_000_000.0 + self.time
