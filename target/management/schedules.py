"""Scheduled snapshots, in ONTAP's manner: KIND.0 is the newest, and as one is taken the others move up by one.

All of one turn (renames, the new snapshot, what is beyond its count) is one consistency point.  One beyond its count
that something depends on cannot be deleted: it stays, under a name with the time when it was made, and leaves the
rotation.

A turn that is refused (no space, 255 snapshots) leaves the old names and is not tried again before its next time.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from datetime import datetime, tzinfo

from target.management.core import Core, Unit
from target.management.events import Severity
from target.management.policies import Policies, Schedule, Slot, put_policies
from target.management.refusal import refusal_of
from target.management.snapshots import holder_path
from wafl import LimitReached, SnapshotInfo, Volume, WaflError

STEP_BACK_S = 3600
"""A clock set back by more than this makes the schedule begin anew; by less, nothing is taken twice."""


@dataclass(slots=True)
class Turn:
    """What one turn of the rotation did, for the events."""

    kind: str
    deleted: list[str] = field(default_factory=list)
    kept: list[tuple[str, str, list[str]]] = field(default_factory=list)
    """(name before, name now, holders)"""


class Schedules:
    def __init__(self, core: Core) -> None:
        self.core = core
        self._quiet: dict[str, tuple[Schedule, float, float]] = {}
        """Volume -> (schedule, from, until): nothing is due in between."""

    async def look(self, unit: Unit) -> None:
        """Take the snapshot that is due, if one is."""
        schedule = self.core.state.policies_of(unit.name).schedule
        now = self.core.clock()
        if not schedule.wanted or self._is_quiet(unit.name, schedule, now):
            return
        slot = schedule.due(now, self.core.zone)
        if slot is not None:
            await self._turn(unit, slot)
        elif schedule.done_at > now + STEP_BACK_S:
            await self._note_done(unit.name, now)
        else:
            self._quiet[unit.name] = schedule, now, schedule.next(now, self.core.zone) or now

    def _is_quiet(self, volume: str, schedule: Schedule, now: float) -> bool:
        known, start, end = self._quiet.get(volume, (None, 0.0, 0.0))
        return known == schedule and start <= now < end

    async def _note_done(self, volume: str, at: float) -> None:
        policies = self.core.state.policies_of(volume)
        changed: Policies = replace(policies, schedule=replace(policies.schedule, done_at=at))
        await self.core.store.change(lambda cursor: put_policies(cursor, volume, changed))

    async def _turn(self, unit: Unit, slot: Slot) -> None:
        async with self.core.changing:
            if self.core.units.get(unit.name) is not unit:
                return
            # First: a crash may cost one snapshot, and never takes two for one slot.
            await self._note_done(unit.name, slot.at)
            count = self.core.state.policies_of(unit.name).schedule.count(slot.kind)
            if not count:
                return  # changed while the lock was waited for
            try:
                turn = rotate(unit.volume, slot.kind, count, self.core.zone)
                await unit.service.commit()
            except (WaflError, OSError) as error:
                self._failed(unit, slot, error)
                return
            unit.service.kick_reclaim()
        self._tell(unit, turn, count)

    def _failed(self, unit: Unit, slot: Slot, error: Exception) -> None:
        refused = refusal_of(error)
        self.core.events.emit(
            "snapshot.schedule.failed",
            f"the {slot.kind} snapshot of volume {unit.name} was not taken: {refused.message}",
            subject=unit.name,
            severity=Severity.WARNING,
            data={"schedule": slot.kind, "error": refused.name},
        )

    def _tell(self, unit: Unit, turn: Turn, count: int) -> None:
        name, data = unit.name, {"schedule": turn.kind}
        self.core.events.emit(
            "snapshot.created", f"snapshot {turn.kind}.0 of volume {name}, by its schedule",
            subject=f"{name}:{turn.kind}.0", data=data,
        )  # fmt: skip
        for gone in turn.deleted:
            self.core.events.emit(
                "snapshot.deleted", f"snapshot {gone} of volume {name} is gone: its schedule keeps {count}",
                subject=f"{name}:{gone}", data=data,
            )  # fmt: skip
        for old, new, holders in turn.kept:
            paths = [holder_path(unit, holder) for holder in holders]
            self.core.events.emit(
                "snapshot.schedule.kept",
                f"snapshot {old} of volume {name} is beyond the {count} that its schedule keeps, but in use by "
                f"{', '.join(paths)}: it stays as {new}",
                subject=f"{name}:{new}",
                severity=Severity.NOTICE,
                data={**data, "was": old, "holders": paths},
            )


# -- one turn, in memory; the next consistency point makes it durable ----------------------------------------


def rotate(volume: Volume, kind: str, count: int, zone: tzinfo | None) -> Turn:
    """Everything moves up by one, KIND.0 is requested, what is beyond `count` goes.
    Raises what `Volume.request_snapshot` raises, with the old names in place."""
    turn = Turn(kind)
    moved = _move_up(volume, kind)
    try:
        try:
            volume.request_snapshot(f"{kind}.0")
        except LimitReached:
            # What goes anyway makes room for the new one.
            _trim(volume, turn, count, moved, zone, keep=False)
            volume.request_snapshot(f"{kind}.0")
    except Exception:
        _move_down(volume, kind, moved)
        raise
    _trim(volume, turn, count, moved, zone)
    return turn


def _move_up(volume: Volume, kind: str) -> int:
    """Rename KIND.0 to KIND.1 and so on, up to the first number that nobody has.  How many moved."""
    names = {snapshot.name for snapshot in volume.snapshots()}
    top = 0
    while f"{kind}.{top}" in names:
        top += 1
    for number in reversed(range(top)):
        volume.rename_snapshot(f"{kind}.{number}", f"{kind}.{number + 1}")
    return top


def _move_down(volume: Volume, kind: str, moved: int) -> None:
    names = {snapshot.name for snapshot in volume.snapshots()}
    for number in range(moved):
        if f"{kind}.{number + 1}" in names:
            volume.rename_snapshot(f"{kind}.{number + 1}", f"{kind}.{number}")


def _trim(
    volume: Volume, turn: Turn, count: int, moved: int, zone: tzinfo | None, *, keep: bool = True
) -> None:
    """Delete what is beyond the count; with `keep` name it otherwise if something depends on it."""
    for snapshot in volume.snapshots():
        number = number_of(snapshot.name, turn.kind)
        if number is None or number < count:
            continue
        before = f"{turn.kind}.{number - 1}" if 0 < number <= moved else snapshot.name
        if snapshot.busy and keep:
            name = _kept_name(volume, turn.kind, snapshot, zone)
            volume.rename_snapshot(snapshot.name, name)
            turn.kept.append((before, name, snapshot.busy_holders))
        elif not snapshot.busy:
            volume.delete_snapshot(snapshot.name)
            turn.deleted.append(before)


def number_of(name: str, kind: str) -> int | None:
    """3 for `hourly.3`, None for what is not part of the rotation."""
    match = re.fullmatch(rf"{kind}\.(0|[1-9][0-9]{{0,8}})", name)
    return int(match[1]) if match else None


def _kept_name(volume: Volume, kind: str, snapshot: SnapshotInfo, zone: tzinfo | None) -> str:
    made = datetime.fromtimestamp(snapshot.created_at, zone)
    name = f"{kind}.{made:%Y-%m-%d_%H%M}"
    taken = {each.name for each in volume.snapshots()}
    return name if name not in taken else f"{name}.{snapshot.id}"
