"""Igroups and LUN maps: which initiators see which LUNs.  SQLite first, then the sessions are told."""

from __future__ import annotations

import itertools
import sqlite3

from target.management import models, serving
from target.management.core import Core
from target.management.events import Severity
from target.management.names import ANY_INITIATOR, LunPath, check_igroup_name, check_initiator, check_ostype
from target.management.refusal import Refused
from target.management.state import IGROUP_LIMIT, INITIATORS_PER_IGROUP, LUN_ID_LIMIT, AdminState, Igroup, LunMap


class Igroups:
    def __init__(self, core: Core) -> None:
        self.core = core

    def all(self) -> list[models.Igroup]:
        return [self._model(group) for group in self.core.state.igroups.values()]

    def get(self, name: str) -> models.Igroup:
        return self._model(self.core.state.igroup(name))

    def _model(self, group: Igroup) -> models.Igroup:
        maps = [
            models.IgroupMap(path=map_path(self.core, entry), lun_id=entry.lun_id)
            for entry in self.core.state.maps_by_igroup.get(group.name, ())
        ]
        return models.Igroup(name=group.name, ostype=group.ostype, initiators=list(group.initiators), maps=maps)

    async def create(self, wanted: models.IgroupCreate) -> models.Igroup:
        name = check_igroup_name(wanted.name)
        check_ostype(wanted.ostype)
        initiators = [check_initiator(each, any_allowed=True) for each in wanted.initiators]

        def change(cursor: sqlite3.Cursor) -> None:
            cursor.execute("INSERT INTO igroup VALUES (?, ?)", (name, wanted.ostype))
            _insert_initiators(cursor, name, initiators)

        async with self.core.changing:
            if name in self.core.state.igroups:
                raise Refused("name-taken", f"there is an igroup {name} already; choose another name")
            if len(self.core.state.igroups) >= IGROUP_LIMIT:
                raise Refused("limit-reached", f"{IGROUP_LIMIT} igroups are the limit")
            await self.core.store.change(change)
        self.core.events.emit("igroup.created", f"igroup {name}: {', '.join(initiators) or 'empty'}", subject=name)
        self._warn_of_any(name, initiators)
        return self.get(name)

    def _warn_of_any(self, name: str, initiators: list[str]) -> None:
        if ANY_INITIATOR in initiators:
            self.core.events.emit(
                "igroup.open",
                f"igroup {name} lets every initiator in that can reach a portal and passes its CHAP check",
                subject=name,
                severity=Severity.WARNING,
            )

    async def add(self, name: str, initiators: list[str]) -> models.Igroup:
        folded = [check_initiator(each, any_allowed=True) for each in initiators]
        async with self.core.changing:
            group = self.core.state.igroup(name)
            new = [each for each in dict.fromkeys(folded) if each not in group.initiators]
            if len(group.initiators) + len(new) > INITIATORS_PER_IGROUP:
                raise Refused("limit-reached", f"{INITIATORS_PER_IGROUP} initiators are the limit of one igroup")
            before = self.core.state
            await self.core.store.change(lambda cursor: _insert_initiators(cursor, name, new))
            serving.tell_maps(self.core, before)
        self.core.events.emit("igroup.changed", f"igroup {name}: added {', '.join(new) or 'nothing new'}", subject=name)
        self._warn_of_any(name, new)
        return self.get(name)

    async def remove(self, name: str, initiator: str, force: bool) -> models.Igroup:
        folded = check_initiator(initiator, any_allowed=True)
        async with self.core.changing:
            group = self.core.state.igroup(name)
            if folded not in group.initiators:
                raise Refused("no-such-initiator", f"{folded} is not in igroup {name}; see 'lun igroup show {name}'")
            maps = self.core.state.maps_by_igroup.get(name, [])
            if maps and not force and (users := await serving.sessions_from(self.core, folded)):
                raise Refused(
                    "igroup-in-use",
                    f"{folded} is logged in and would lose {len(maps)} LUNs; log out there first, or use -f",
                    users,
                )
            before = self.core.state
            await self.core.store.change(
                lambda cursor: cursor.execute(
                    "DELETE FROM igroup_initiator WHERE igroup = ? AND initiator = ?", (name, folded)
                )
            )
            serving.tell_maps(self.core, before)
        self.core.events.emit("igroup.changed", f"igroup {name}: removed {folded}", subject=name)
        return self.get(name)

    async def destroy(self, name: str, force: bool) -> None:
        async with self.core.changing:
            self.core.state.igroup(name)
            maps = self.core.state.maps_by_igroup.get(name, [])
            if maps and not force:
                paths = [map_path(self.core, entry) for entry in maps]
                raise Refused(
                    "igroup-in-use", f"igroup {name} has maps of {', '.join(paths)}; unmap them first, or use -f", paths
                )
            before = self.core.state
            await self.core.store.change(lambda cursor: cursor.execute("DELETE FROM igroup WHERE name = ?", (name,)))
            serving.tell_maps(self.core, before)
        self.core.events.emit("igroup.destroyed", f"igroup {name} is gone", subject=name)


def _insert_initiators(cursor: sqlite3.Cursor, name: str, initiators: list[str]) -> None:
    cursor.executemany("INSERT OR IGNORE INTO igroup_initiator VALUES (?, ?)", [(name, each) for each in initiators])


class Maps:
    def __init__(self, core: Core) -> None:
        self.core = core

    def all(self) -> list[models.LunMap]:
        return [self._model(entry) for entry in self.core.state.maps]

    def _model(self, entry: LunMap) -> models.LunMap:
        return models.LunMap(
            path=map_path(self.core, entry),
            igroup=entry.igroup,
            lun_id=entry.lun_id,
            target=self.core.target_name(entry.volume),
        )

    async def create(self, wanted: models.MapCreate) -> models.LunMap:
        async with self.core.changing:
            unit, lun, path = self.core.find(wanted.path)
            uuid, name = str(lun.uuid), lun.name
            self.core.state.igroup(wanted.igroup)
            for entry in self.core.state.maps_of(uuid):
                if entry.igroup == wanted.igroup:
                    raise Refused("already-mapped", f"{path} is LUN {entry.lun_id} for igroup {entry.igroup} already")
            lun_id = choose_lun_id(self.core.state, wanted.igroup, unit.name, wanted.lun_id)
            row = (unit.name, uuid, name, wanted.igroup, lun_id)
            before = self.core.state
            await self.core.store.change(
                lambda cursor: cursor.execute("INSERT INTO lun_map VALUES (?, ?, ?, ?, ?)", row)
            )
            serving.tell_maps(self.core, before)
        self.core.events.emit("lun.mapped", f"{path} is LUN {lun_id} for igroup {wanted.igroup}", subject=str(path))
        return self._model(LunMap(*row))

    async def delete(self, text: str, igroup: str) -> None:
        path = LunPath.parse_active(text)
        async with self.core.changing:
            self.core.state.igroup(igroup)
            entry = self._find(path, igroup)
            before = self.core.state
            await self.core.store.change(
                lambda cursor: cursor.execute(
                    "DELETE FROM lun_map WHERE lun_uuid = ? AND igroup = ?", (entry.lun_uuid, igroup)
                )
            )
            serving.tell_maps(self.core, before)
        self.core.events.emit("lun.unmapped", f"{path} is not mapped to igroup {igroup} any more", subject=str(path))

    def _find(self, path: LunPath, igroup: str) -> LunMap:
        """Also while the volume is offline: then by the name the map remembers."""
        self.core.state.volume(path.volume)
        for entry in self.core.state.maps_by_igroup.get(igroup, ()):
            if map_path(self.core, entry) == str(path):
                return entry
        if path.volume in self.core.units:
            self.core.find(str(path))
        raise Refused("no-such-map", f"{path} is not mapped to igroup {igroup}; see 'lun show -m'")


def map_path(core: Core, entry: LunMap) -> str:
    """The mapped LUN's path as it is now, or as the map remembers it."""
    served = core.served.get(entry.volume)
    lun = served.lun(entry.lun_uuid) if served is not None else None
    return f"/vol/{entry.volume}/{lun.name if lun is not None else entry.lun_name}"


def choose_lun_id(state: AdminState, igroup: str, volume: str, wanted: int | None) -> int:
    """The id asked for, if it is free for everybody in the igroup, or the lowest that hides nothing from anybody."""
    if wanted is None:
        return free_lun_ids(state, igroup, volume, 1)[0]
    if wanted in state.lun_ids_taken(igroup, volume):
        raise Refused(
            "lun-id-taken",
            f"LUN id {wanted} of volume {volume} is in use for an initiator of igroup {igroup}; choose another id, "
            "or leave it out for the lowest free one",
        )
    return wanted


def free_lun_ids(state: AdminState, igroup: str, volume: str, count: int) -> list[int]:
    """The lowest ids that hide nothing from anybody."""
    seen = state.lun_ids_seen(igroup, volume)
    free = list(itertools.islice((number for number in range(LUN_ID_LIMIT) if number not in seen), count))
    if len(free) < count:
        few = f"only {len(free)}" if free else "none"
        raise Refused("limit-reached", f"{few} of the {LUN_ID_LIMIT} LUN ids of igroup {igroup} are free, not {count}")
    return free
