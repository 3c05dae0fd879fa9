"""Going back to a snapshot, one LUN or a whole volume, while hosts are logged in.

What can be refused is refused before anything stops.  Then the clone jobs of the LUNs are made quiet, a consistency
point takes what has gathered, and in one go, with nothing in between, the volume goes back (its own last consistency
point with it) and the sessions are told.  After that nothing can be refused: jobs start, maps are put in order.
"""

from __future__ import annotations

import sqlite3

from cloner import DEFAULTS, CloneStatus
from target.management import models, serving
from target.management.clones import Clones
from target.management.core import Core, Unit
from target.management.events import Severity
from target.management.names import LunPath
from target.management.refusal import Refused
from target.management.wishes import check_staying
from wafl import Lun, RestorePlan

NAMED = 5
"""LUNs and hosts that a refusal names in its line; all of them are in its holders."""


class Restores:
    def __init__(self, core: Core, clones: Clones) -> None:
        self.core = core
        self.clones = clones

    async def restore(self, volume: str, snapshot: str, wanted: models.SnapshotRestore) -> models.Restored:
        async with self.core.changing:
            unit = self.core.unit(volume)
            check_staying(self.core, unit, snapshot)
            name = None if wanted.path is None else self._lun(unit, wanted.path).name
            plan = unit.volume.plan_restore(snapshot, name)
            self._check(unit, snapshot, plan, wanted)
            unit.volume.core.check_writable()
            luns = [unit.volume.lun(each) for each in (*plan.restored, *plan.destroyed)]
            halted = await self._halt(unit, luns)
            try:
                await unit.service.commit()
                # Hosts may have logged in meanwhile.
                self._check(unit, snapshot, plan, wanted)
                sizes = {lun.uuid: lun.size_bytes for lun in luns}
                unit.volume.restore(snapshot, name)
            except BaseException:
                self._go_on(unit, halted)
                raise
            shown = self._settle(unit, snapshot, plan, luns, sizes, halted)
            await self._keep_maps(unit, luns)
        self._announce(unit, snapshot, shown, whole=name is None)
        return shown

    def _lun(self, unit: Unit, text: str) -> Lun:
        path = LunPath.parse_active(text)
        if path.volume != unit.name:
            raise Refused("other-volume", f"{path} is not on volume {unit.name}, and its snapshots have no LUN of it")
        return unit.lun(path)

    # -- before

    def _check(self, unit: Unit, snapshot: str, plan: RestorePlan, wanted: models.SnapshotRestore) -> None:
        if wanted.force:
            return
        if plan.destroyed:
            paths = [f"/vol/{unit.name}/{name}" for name in plan.destroyed]
            raise Refused(
                "would-lose-luns",
                f"snapshot {snapshot} of volume {unit.name} is older than {some(paths)}: going back destroys "
                f"{'it' if len(paths) == 1 else 'them'}; use -f",
                paths,
            )
        users: dict[str, list[str]] = {}
        for name in plan.restored:
            lun = unit.volume.lun(name)
            for user in serving.sessions_of(self.core, unit, lun) if lun.online else ():
                users.setdefault(user, []).append(f"/vol/{unit.name}/{name}")
        if users:
            paths = list(dict.fromkeys(path for used in users.values() for path in used))
            raise Refused(
                "lun-in-use",
                f"{some(paths)} {'is' if len(paths) == 1 else 'are'} in use by {some(list(users))}; unmount there and "
                "use -f",
                list(users),
            )

    async def _halt(self, unit: Unit, luns: list[Lun]) -> dict[str, CloneStatus]:
        """Their clone jobs are quiet; what they were doing, by LUN UUID."""
        found = [(lun.uuid, await self.core.clones.halt(unit.service, lun.name)) for lun in luns]
        return {uuid: status for uuid, status in found if status is not None}

    def _go_on(self, unit: Unit, halted: dict[str, CloneStatus]) -> None:
        """The restore was refused after all."""
        if unit.volume.failure is None:
            for status in halted.values():
                self.clones.launch(unit, unit.volume.lun(status.lun), status.options, status.position, force=True)

    # -- after

    def _settle(
        self, unit: Unit, snapshot: str, plan: RestorePlan, luns: list[Lun], sizes: dict[str, int],
        halted: dict[str, CloneStatus],
    ) -> models.Restored:  # fmt: skip
        """Awaits nothing: no command comes in between."""
        back = [unit.volume.lun(name) for name in plan.returned]
        for lun in luns:
            if lun.destroyed:
                serving.withdraw_lun(self.core, unit, lun)
            else:
                serving.tell_contents(self.core, unit, lun, resized=lun.size_bytes != sizes[lun.uuid])
        for lun in back:
            serving.serve_lun(self.core, unit, lun)
        restored = [lun for lun in luns if not lun.destroyed]
        for lun in (*restored, *back):
            before = halted.get(lun.uuid)
            options, position = (before.options, before.position) if before else (DEFAULTS, None)
            self.clones.launch(unit, lun, options, position, force=True)
        unit.service.kick_reclaim()
        paths = {lun.uuid: f"/vol/{unit.name}/{lun.name}" for lun in (*luns, *back)}
        return models.Restored(
            volume=unit.name,
            snapshot=snapshot,
            restored=[paths[lun.uuid] for lun in restored],
            returned=[paths[lun.uuid] for lun in back],
            destroyed=[paths[lun.uuid] for lun in luns if lun.destroyed],
            unmapped=[paths[lun.uuid] for lun in back if not self.core.state.maps_of(lun.uuid)],
        )

    async def _keep_maps(self, unit: Unit, luns: list[Lun]) -> None:
        """After the restore, not before: a crash in between leaves at worst a map to nothing, which a LUN that comes
        back would find again."""
        state = self.core.state
        gone = [(uuid,) for uuid in (lun.uuid for lun in luns if lun.destroyed) if state.knows_lun(str(uuid))]
        named = [(lun.name, lun.uuid) for lun in luns if not lun.destroyed and self.core.state.maps_of(lun.uuid)]

        def change(cursor: sqlite3.Cursor) -> None:
            cursor.executemany("DELETE FROM lun_map WHERE lun_uuid = ?", gone)
            cursor.executemany("DELETE FROM lun_value WHERE lun_uuid = ?", gone)
            cursor.executemany("UPDATE lun_map SET lun_name = ? WHERE lun_uuid = ?", named)

        if gone or named:
            await self.core.store.change(change)

    def _announce(self, unit: Unit, snapshot: str, shown: models.Restored, *, whole: bool) -> None:
        if whole:
            text = (f"volume {unit.name} is as in snapshot {snapshot}: {len(shown.restored)} LUNs restored, "
                    f"{len(shown.returned)} back, {len(shown.destroyed)} destroyed")  # fmt: skip
            self.core.events.emit("volume.restored", text, subject=unit.name, severity=Severity.NOTICE)
        for path in shown.restored:
            text = f"{path} is as in snapshot {snapshot}"
            self.core.events.emit("lun.restored", text, subject=path, severity=Severity.NOTICE)
        for path in shown.returned:
            text = f"{path} is back from snapshot {snapshot}"
            self.core.events.emit("lun.restored", text, subject=path, severity=Severity.NOTICE)
        for path in shown.destroyed:
            self.core.events.emit("lun.destroyed", f"{path} is gone", subject=path, severity=Severity.NOTICE)


def some(names: list[str]) -> str:
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
