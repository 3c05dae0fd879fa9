"""Deleting snapshots when a volume gets too full, oldest first, until it has fallen to its target.

Off unless an administrator turns it on.  Never deleted: a snapshot that something depends on, and one whose name begins
with none of the policy's prefixes.  One is deleted at a time, and the next only when the space of the last is back:
what is on its way must not cost another snapshot.
"""

from __future__ import annotations

from dataclasses import dataclass

from target.management.core import Core, Unit
from target.management.events import Severity
from target.management.policies import Autodelete
from target.management.space_watch import percent_full
from wafl import SnapshotInfo, Space


@dataclass(slots=True)
class Round:
    """From the trigger to the target."""

    deleted: int = 0
    waiting: str = ""
    """Deleted, its space not yet back."""
    held_bytes: int = 0
    """What snapshots alone held before."""
    stuck: bool = False
    """It was said that nothing can be deleted."""


class Autodeletion:
    def __init__(self, core: Core) -> None:
        self.core = core
        self._rounds: dict[str, Round] = {}

    def busy(self, volume: str) -> bool:
        """Whether it is at work on a volume."""
        return volume in self._rounds

    def forget(self, names: set[str]) -> None:
        """Keep only these volumes."""
        self._rounds = {name: each for name, each in self._rounds.items() if name in names}

    async def look(self, unit: Unit, space: Space) -> None:
        """One step, if there is one to take."""
        policy = self.core.state.policies_of(unit.name).autodelete
        percent = percent_full(space)
        now = self._rounds.get(unit.name)
        if not policy.enabled or (now is None and percent < policy.trigger_percent):
            self._rounds.pop(unit.name, None)
            return
        now = self._rounds.setdefault(unit.name, Round())
        if unit.volume.reclaim_pending:
            return
        self._came_back(unit, now, space)
        if percent > policy.target_percent:
            await self._delete_one(unit, policy, now, space)
            return
        del self._rounds[unit.name]
        self.core.events.emit(
            "snapshot.autodelete.done",
            f"volume {unit.name} is {percent:.1f} % full after {now.deleted} snapshots were deleted",
            subject=unit.name,
            severity=Severity.NOTICE,
            data={"deleted": now.deleted, "percent": round(percent, 1)},
        )

    def _came_back(self, unit: Unit, now: Round, space: Space) -> None:
        if not now.waiting:
            return
        freed = max(0, now.held_bytes - space.snapshots)
        self.core.events.emit(
            "snapshot.autodelete.freed",
            f"deleting snapshot {now.waiting} of volume {unit.name} gave back {freed} bytes",
            subject=f"{unit.name}:{now.waiting}",
            severity=Severity.NOTICE,
            data={"freed_bytes": freed},
        )
        now.waiting = ""

    async def _delete_one(self, unit: Unit, policy: Autodelete, now: Round, space: Space) -> None:
        percent = percent_full(space)
        async with self.core.changing:
            if self.core.units.get(unit.name) is not unit:
                return
            victim = oldest(unit.volume.snapshots(), policy)
            if victim is None:
                self._say_stuck(unit, now, policy, percent)
                return
            unit.volume.delete_snapshot(victim.name)
            now.deleted, now.waiting, now.held_bytes, now.stuck = now.deleted + 1, victim.name, space.snapshots, False
            await unit.service.commit()
            unit.service.kick_reclaim()
        self.core.events.emit(
            "snapshot.autodelete.deleted",
            f"snapshot {victim.name} of volume {unit.name} was deleted to make room: the volume is {percent:.1f} % "
            f"full, autodelete goes from {policy.trigger_percent} % down to {policy.target_percent} %",
            subject=f"{unit.name}:{victim.name}",
            severity=Severity.NOTICE,
            data={"percent": round(percent, 1), "created_at": victim.created_at},
        )

    def _say_stuck(self, unit: Unit, now: Round, policy: Autodelete, percent: float) -> None:
        if now.stuck:
            return
        now.stuck = True
        shown = ", ".join(repr(prefix) for prefix in policy.prefixes)
        self.core.events.emit(
            "snapshot.autodelete.stuck",
            f"volume {unit.name} is {percent:.1f} % full and no snapshot can be deleted: none that begins with {shown} "
            f"is without holders; see 'lun snap list {unit.name}'",
            subject=unit.name,
            severity=Severity.WARNING,
            data={"percent": round(percent, 1)},
        )


def oldest(snapshots: list[SnapshotInfo], policy: Autodelete) -> SnapshotInfo | None:
    """The next one to delete.  `snapshots` is in the order in which they were made."""
    return next((each for each in snapshots if policy.covers(each.name) and not each.busy), None)
