"""Snapshots on their way out: the LUNs that hold one are cloned, then it is deleted.

The wish is kept with the settings, by what no other snapshot has (id and time, never the name), so it outlives
restarts, renames and the volume's time offline.

Rules.
- The clones are asked for first, then the wish is kept, then the answer goes out: a wish that is found after a crash
  has its clones, and one that a person has stopped since stays stopped.
- No LUN is made from such a snapshot, and none is restored from it: it would hold it anew.
- A clone that failed or was stopped is not started again from here.  The wish waits and says why; asking once more
  starts it.  A later snapshot that has such a LUN in it is waited for too.
- The deletion is durable before the wish is forgotten.
"""

from __future__ import annotations

import functools
import json
import sqlite3
import time
from collections.abc import Callable
from typing import Any

from target.management import models
from target.management.clone_models import CloneStart
from target.management.clones import Clones, options_of
from target.management.core import Core, Unit
from target.management.events import Severity
from target.management.families import SNAPSHOT, by_snapshot, luns_text
from target.management.refusal import Refused, one_line
from target.management.snapshots import Snapshots, delete_snapshot, holder_path
from target.management.store import set_setting
from target.management.wishes import Wish, key_of, wish_for, wishes_of
from wafl import BLOCK_BYTES, Lun, NoSuchLun, SnapshotInfo, WaflError

NAMED = 5
"""Of what an event says."""
UNDER_WAY = ("created", "queued", "running", "paused")


class Departures:
    def __init__(
        self, core: Core, clones: Clones, snapshots: Snapshots, clock: Callable[[], float] = time.time
    ) -> None:
        self.core = core
        self.clones = clones
        self.snapshots = snapshots
        self._clock = clock
        self._refused: dict[str, str] = {}
        """LUN UUID -> why its clone could not be started."""
        self._looked: dict[tuple[str, int], tuple[int, int]] = {}
        """(volume UUID, snapshot id) -> consistency point and number of snapshots when later ones were found to hold
        it."""
        self._said: dict[tuple[str, int], str] = {}
        """(volume UUID, snapshot id) -> what was last said to stand in its way."""
        snapshots.departure = self.status

    # -- asked for ---------------------------------------------------------------------------------------

    async def ask(self, volume: str, name: str, wanted: CloneStart) -> models.Snapshot | None:
        """Delete the snapshot as soon as its LUNs are cloned, in the way that is wanted where no clone is under way.
        None: nothing holds it, and it is gone."""
        async with self.core.changing:
            unit = self.core.unit(volume)
            snapshot = unit.snapshot(name)
            unit.volume.core.check_writable()
            if not snapshot.busy_holders:
                await self._delete(unit, snapshot)
                return None
            luns = _luns(unit, snapshot)
            await self._start(unit, luns, wanted)
            await unit.service.durable()
            known = wish_for(self.core.state, unit.volume.uuid, snapshot)
            wish = known or Wish(snapshot.id, snapshot.created_at, self._clock())
            await self._keep(unit.volume.uuid, add=wish)
        self._said.pop((unit.volume.uuid, snapshot.id), None)
        self._event(unit, snapshot.name, "started", f"goes when {_counted(snapshot, luns)}")
        return self.snapshots.get(volume, snapshot.name)

    async def _start(self, unit: Unit, luns: list[Lun], wanted: CloneStart) -> None:
        idle = [lun for lun in luns if self.core.clones.status(unit.service, lun.name).state not in UNDER_WAY]
        refused = await self.clones.ask_all(unit, idle, options_of(wanted), force=wanted.force)
        for lun in luns:
            self._refused.pop(str(lun.uuid), None)
        self._refused.update({uuid: error.message for uuid, error in refused.items()})

    async def cancel(self, volume: str, name: str) -> models.Snapshot:
        """The snapshot stays; clones that run go on."""
        async with self.core.changing:
            unit = self.core.unit(volume)
            snapshot = unit.snapshot(name)
            wish = wish_for(self.core.state, unit.volume.uuid, snapshot)
            if wish is None:
                raise Refused("not-leaving", f"snapshot {name} of volume {volume} is not on its way out")
            await self._keep(unit.volume.uuid, drop=[wish])
        self._event(unit, snapshot.name, "cancelled", "stays")
        return self.snapshots.get(volume, snapshot.name)

    async def destroyed(self, uuid: str) -> None:
        """A volume is gone."""
        await self.core.store.change(
            lambda cursor: cursor.execute("DELETE FROM setting WHERE name = ?", (key_of(uuid),))
        )
        for kept in (self._looked, self._said):
            for key in [key for key in kept if key[0] == uuid]:
                del kept[key]

    # -- looking -----------------------------------------------------------------------------------------

    def status(self, unit: Unit, snapshot: SnapshotInfo) -> models.Departure | None:
        """What a snapshot that is on its way out waits for."""
        wish = wish_for(self.core.state, unit.volume.uuid, snapshot)
        if wish is None:
            return None
        return models.Departure(
            asked_at=wish.asked_at,
            missing_bytes=sum(lun.missing_blocks() for lun in _luns(unit, snapshot)) * BLOCK_BYTES,
            waits_for=self._waits(unit, snapshot.busy_holders),
        )

    def _waits(self, unit: Unit, holders: list[str]) -> list[models.DepartureWait]:
        luns, snapshots = by_snapshot(holders)
        found = [self._wait(unit, name) for name in luns]
        for name, held in snapshots.items():
            why = f"has {luns_text(len(held))} of it from before: 'lun snap delete {unit.name} {name}'"
            found.append(models.DepartureWait(path=f"/vol/{unit.name}/{SNAPSHOT}{name}", stuck=True, why=why))
        return found

    def _wait(self, unit: Unit, name: str) -> models.DepartureWait:
        path = holder_path(unit, name)
        try:
            lun = unit.volume.lun(name)
        except NoSuchLun:
            lun = None
        if lun is None or lun.backing is None:
            return models.DepartureWait(path=path, stuck=False, why="it has let go; the next consistency point says so")
        job = self.core.clones.status(unit.service, lun.name)
        if job.state in UNDER_WAY:
            self._refused.pop(str(lun.uuid), None)  # started since
            why = f"its clone is {job.state}, {job.percent:.1f} %{': ' + job.message if job.message else ''}"
            return models.DepartureWait(path=path, stuck=False, why=why)
        refused = self._refused.get(str(lun.uuid))
        if job.state == "failed":
            why = f"its clone failed: {one_line(job.message)}"
        elif refused:
            why = f"its clone could not be started: {refused}"
        else:
            why = f"its clone is stopped: 'lun clone start {path}'"
        return models.DepartureWait(path=path, stuck=True, why=why)

    # -- doing it ----------------------------------------------------------------------------------------

    async def look(self, unit: Unit) -> None:
        """Delete what nothing holds any more.  Once a second: of volumes without a wish it costs nothing, and of others
        little while LUNs hold on."""
        wishes = wishes_of(self.core.state, unit.volume.uuid)
        if not wishes:
            return
        held: dict[int, list[Lun]] = {}
        for lun in unit.volume.luns():
            if lun.backing is not None:
                held.setdefault(lun.backing.snapshot_id, []).append(lun)
        for wish in wishes:
            if wish.id in held:
                self._say_once(unit, wish, self._stuck(unit, held[wish.id]))
            else:
                await self._look_closely(unit, wish)

    async def _look_closely(self, unit: Unit, wish: Wish) -> None:
        """No LUN holds it, but a later snapshot may: asked again when something has changed."""
        key, now = (unit.volume.uuid, wish.id), (unit.volume.generation, len(unit.volume.snapshot_names()))
        if self._looked.get(key) == now:
            return
        snapshot = _find(unit, wish)
        if snapshot is not None and snapshot.busy_holders:
            self._looked[key] = now
            waits = self._waits(unit, snapshot.busy_holders)
            self._say_once(unit, wish, _some([f"{each.path} {each.why}" for each in waits if each.stuck]))
            return
        try:
            await self._settle(unit, wish)
        except (WaflError, OSError) as error:
            self._say_once(unit, wish, one_line(error))

    async def _settle(self, unit: Unit, wish: Wish) -> None:
        async with self.core.changing:
            # Others have had their turn meanwhile.
            if self.core.units.get(unit.name) is not unit or wish not in wishes_of(self.core.state, unit.volume.uuid):
                return
            snapshot = _find(unit, wish)
            if snapshot is not None:
                if snapshot.busy_holders:
                    return
                await self._delete(unit, snapshot)
            await self._keep(unit.volume.uuid, drop=[wish])
        self._said.pop((unit.volume.uuid, wish.id), None)
        self._looked.pop((unit.volume.uuid, wish.id), None)

    async def _delete(self, unit: Unit, snapshot: SnapshotInfo) -> None:
        await delete_snapshot(self.core, unit, snapshot.name)
        self._event(unit, snapshot.name, "completed", "is gone: nothing depended on it any more")

    def _stuck(self, unit: Unit, luns: list[Lun]) -> str:
        """Which do not let go by themselves, once no other is under way."""
        waits = [self._wait(unit, lun.name) for lun in luns]
        return _some([f"{each.path}: {each.why}" for each in waits]) if all(each.stuck for each in waits) else ""

    def _say_once(self, unit: Unit, wish: Wish, text: str) -> None:
        key = unit.volume.uuid, wish.id
        if self._said.get(key, "") == text:
            return
        self._said[key] = text
        snapshot = _find(unit, wish)
        if text and snapshot is not None:
            self._event(unit, snapshot.name, "waiting", f"cannot go yet: {text}", Severity.WARNING)

    def _event(self, unit: Unit, name: str, verb: str, text: str, severity: Severity = Severity.NOTICE) -> None:
        self.core.events.emit(
            f"snapshot.detach.{verb}", f"snapshot {name} of volume {unit.name} {text}", subject=f"{unit.name}:{name}",
            severity=severity,
        )  # fmt: skip

    # -- kept --------------------------------------------------------------------------------------------

    async def _keep(self, uuid: str, *, add: Wish | None = None, drop: list[Wish] | None = None) -> None:
        kept = [wish for wish in wishes_of(self.core.state, uuid) if wish not in (drop or ()) and wish != add]
        kept += [add] if add is not None else []
        await self.core.store.change(functools.partial(_write, uuid=uuid, kept=[wish.record() for wish in kept]))


def _write(cursor: sqlite3.Cursor, uuid: str, kept: list[dict[str, Any]]) -> None:
    if kept:
        set_setting(cursor, key_of(uuid), json.dumps(kept))
    else:
        cursor.execute("DELETE FROM setting WHERE name = ?", (key_of(uuid),))


def _find(unit: Unit, wish: Wish) -> SnapshotInfo | None:
    return next((each for each in unit.volume.snapshots() if wish.means(each)), None)


def _some(texts: list[str]) -> str:
    more = f"; and {len(texts) - NAMED} more" if len(texts) > NAMED else ""
    return "; ".join(texts[:NAMED]) + more


def _luns(unit: Unit, snapshot: SnapshotInfo) -> list[Lun]:
    """Those that read through it."""
    return [lun for lun in unit.volume.luns() if lun.backing is not None and lun.backing.snapshot_id == snapshot.id]


def _counted(snapshot: SnapshotInfo, luns: list[Lun]) -> str:
    later = list(by_snapshot(snapshot.busy_holders)[1])
    cloned = f"{luns_text(len(luns))} {'is' if len(luns) == 1 else 'are'} cloned"
    return cloned + (f", and later snapshots that have some of it are gone: {_some(later)}" if later else "")
