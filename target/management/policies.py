"""What an administrator has laid down for a volume: thresholds, autodelete, the snapshot schedule.

Plain values and their calendar.  The store keeps them, one row a volume; a volume without a row has the defaults.
`space_watch`, `autodelete` and `schedules` act on them.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta, tzinfo
from typing import NamedTuple

from target.management.refusal import Refused
from wafl import MAX_SNAPSHOTS

MAX_THRESHOLDS = 8
MAX_PREFIXES = 32
KINDS = ("weekly", "nightly", "hourly")
"""First what counts most: where two fall on the same time, or were missed together, the first is taken."""
SUNDAY = 6
LOOK_BACK_DAYS = 8
"""A weekly slot lies at most seven days back."""


@dataclass(frozen=True, slots=True)
class Autodelete:
    enabled: bool = False
    trigger_percent: int = 95
    target_percent: int = 80
    prefixes: tuple[str, ...] = tuple(f"{kind}." for kind in reversed(KINDS))
    """Only snapshots whose names begin with one of these are ever deleted; "" is every snapshot."""

    def check(self) -> None:
        """Raises Refused."""
        if not 1 <= self.target_percent < self.trigger_percent <= 100:
            raise Refused(
                "invalid-argument",
                f"autodelete begins at a trigger of up to 100 % and ends at a lower target, not {self.trigger_percent} "
                f"and {self.target_percent}",
            )
        if not 1 <= len(self.prefixes) <= MAX_PREFIXES:
            raise Refused("invalid-argument", f"autodelete needs 1 to {MAX_PREFIXES} prefixes; '' is every snapshot")

    def covers(self, snapshot: str) -> bool:
        return snapshot.startswith(self.prefixes)


class Slot(NamedTuple):
    at: float
    """Seconds since the epoch."""
    kind: str


@dataclass(frozen=True, slots=True)
class Schedule:
    """How many snapshots of each kind are kept, and when they are taken, by the local wall clock: weekly on Sunday at
    0:00, nightly at 0:00, hourly at `hours`."""

    weekly: int = 0
    nightly: int = 0
    hourly: int = 0
    hours: tuple[int, ...] = tuple(range(24))
    done_at: float = 0.0
    """Slots up to this time are done with."""

    @property
    def wanted(self) -> bool:
        return bool(self.weekly or self.nightly or self.hourly)

    def count(self, kind: str) -> int:
        return {"weekly": self.weekly, "nightly": self.nightly, "hourly": self.hourly}[kind]

    def check(self) -> None:
        """Raises Refused."""
        if self.weekly + self.nightly + self.hourly > MAX_SNAPSHOTS:
            raise Refused("invalid-argument", f"a volume holds {MAX_SNAPSHOTS} snapshots; keep fewer of each kind")
        if self.hourly and not self.hours:
            raise Refused("invalid-argument", "hourly snapshots need hours, as in 8@8,12,16,20")

    def slots(self, day: date, zone: tzinfo | None) -> Iterator[Slot]:
        """Those of one day, in order."""
        hours = set(self.hours) if self.hourly else set()
        midnight = ""
        if self.weekly and day.weekday() == SUNDAY:
            midnight = "weekly"
        elif self.nightly:
            midnight = "nightly"
        elif 0 in hours:
            midnight = "hourly"
        if midnight:
            yield Slot(datetime.combine(day, time(), zone).timestamp(), midnight)
        for hour in sorted(hours - {0}):
            yield Slot(datetime.combine(day, time(hour), zone).timestamp(), "hourly")

    def due(self, now: float, zone: tzinfo | None) -> Slot | None:
        """What to take now: of all slots missed since `done_at` the kind that counts most, at the newest time."""
        today = datetime.fromtimestamp(now, zone).date()
        missed = [
            slot
            for back in range(LOOK_BACK_DAYS)
            for slot in self.slots(today - timedelta(back), zone)
            if self.done_at < slot.at <= now
        ]
        if not missed:
            return None
        return Slot(max(slot.at for slot in missed), min((slot.kind for slot in missed), key=KINDS.index))

    def next(self, now: float, zone: tzinfo | None) -> float | None:
        """When the next one is taken."""
        today = datetime.fromtimestamp(now, zone).date()
        coming = (slot.at for ahead in range(LOOK_BACK_DAYS) for slot in self.slots(today + timedelta(ahead), zone))
        after = max(now, self.done_at)
        return next((at for at in coming if at > after), None)


@dataclass(frozen=True, slots=True)
class Policies:
    thresholds: tuple[int, ...] = (80, 95, 98)
    """Percent of the volume full, ascending."""
    autodelete: Autodelete = field(default_factory=Autodelete)
    schedule: Schedule = field(default_factory=Schedule)


DEFAULTS = Policies()


def check_thresholds(levels: list[int]) -> tuple[int, ...]:
    """Ascending, each once.  Raises Refused."""
    if len(levels) > MAX_THRESHOLDS or not all(1 <= level <= 100 for level in levels):
        raise Refused("invalid-argument", f"thresholds are up to {MAX_THRESHOLDS} numbers from 1 to 100 (percent)")
    return tuple(sorted(set(levels)))


# -- in the store ------------------------------------------------------------------------------------------

SCHEMA = """
    CREATE TABLE volume_policy (
        volume TEXT PRIMARY KEY REFERENCES volume ON DELETE CASCADE,
        thresholds TEXT NOT NULL,
        autodelete INTEGER NOT NULL,
        trigger_percent INTEGER NOT NULL,
        target_percent INTEGER NOT NULL,
        prefixes TEXT NOT NULL,
        weekly INTEGER NOT NULL,
        nightly INTEGER NOT NULL,
        hourly INTEGER NOT NULL,
        hours TEXT NOT NULL,
        done_at REAL NOT NULL
    ) STRICT;
"""


def put_policies(cursor: sqlite3.Cursor, volume: str, policies: Policies) -> None:
    autodelete, schedule = policies.autodelete, policies.schedule
    cursor.execute(
        "INSERT OR REPLACE INTO volume_policy VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            volume, json.dumps(policies.thresholds), autodelete.enabled, autodelete.trigger_percent,
            autodelete.target_percent, json.dumps(autodelete.prefixes), schedule.weekly, schedule.nightly,
            schedule.hourly, json.dumps(schedule.hours), schedule.done_at,
        ),
    )  # fmt: skip


def read_policies(cursor: sqlite3.Cursor) -> dict[str, Policies]:
    return {
        volume: Policies(
            tuple(json.loads(thresholds)),
            Autodelete(bool(enabled), trigger, target, tuple(json.loads(prefixes))),
            Schedule(weekly, nightly, hourly, tuple(json.loads(hours)), done_at),
        )
        for volume, thresholds, enabled, trigger, target, prefixes, weekly, nightly, hourly, hours, done_at in (
            cursor.execute("SELECT * FROM volume_policy ORDER BY volume")
        )
    }
